//! A lake in a temporary folder, on either kind of catalog, and a stock DuckDB to judge it by.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use duckdb::{Config, Connection};
use duckpipe_storage::{ColumnStats, DataFile, DeleteFile};
use parquet::arrow::ArrowWriter;

use crate::batch::layout::{ColumnType, LayoutColumn, Mode, TableLayout};
use crate::error::Result;
use crate::lake::{
    CatalogLocation, Fence, Lake, LakeSettings, LakeStore, LakeTable, NewPipeline, NewTable, TableCommit, TableState,
};
use crate::secret::Secret;
use crate::source::table::TableName;
use crate::sql::literal;

pub const PASSWORD: &str = "gehe'im-7";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Postgres,
}

/// A Postgres cluster that lives as long as a test uses it.
pub struct Server {
    folder: tempfile::TempDir,
    pub port: u16,
    databases: Mutex<u32>,
}

static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
const BINARIES: &str = "/usr/lib/postgresql/15/bin";

impl Server {
    pub fn shared() -> Arc<Server> {
        let mut shared = SERVER.lock().unwrap_or_else(|broken| broken.into_inner());
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Server {
        let folder = tempfile::Builder::new().prefix("duckpipe-postgres").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = folder.path().join("data");
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).unwrap();
        if is_root() {
            run(Command::new("chown").args(["-R", "postgres"]).arg(folder.path()));
        }
        run(as_postgres(&format!("{BINARIES}/initdb"))
            .args(["-U", "postgres", "-A", "scram-sha-256", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(&data));
        let options = format!("-p {port} -k {} -c fsync=off", folder.path().display());
        run(as_postgres(&format!("{BINARIES}/pg_ctl"))
            .args(["start", "-w", "-o", &options, "-l"])
            .arg(folder.path().join("log"))
            .arg("-D")
            .arg(&data));
        Server { folder, port, databases: Mutex::new(0) }
    }

    /// A new database.
    pub fn database(&self) -> String {
        let mut count = self.databases.lock().unwrap();
        *count += 1;
        let name = format!("lake{count}");
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    pub fn url(&self, database: &str) -> Secret {
        let password = PASSWORD.replace('\'', "%27");
        Secret::new(format!("postgres://postgres:{password}@127.0.0.1:{}/{database}", self.port))
    }

    /// Runs psql; returns what it prints, unaligned.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let output = Command::new(format!("{BINARIES}/psql"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-AtX", "-v", "ON_ERROR_STOP=1", "-p", &self.port.to_string()])
            .args(["-d", database, "-c", sql])
            .env("PGPASSWORD", PASSWORD)
            .output()
            .unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.folder.path().join("data");
        let _ = as_postgres(&format!("{BINARIES}/pg_ctl")).args(["stop", "-m", "immediate", "-D"]).arg(data).output();
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim() == "0"
}

fn as_postgres(program: &str) -> Command {
    let mut command;
    if is_root() {
        command = Command::new("runuser");
        command.args(["-u", "postgres", "--", program]);
    } else {
        command = Command::new(program);
    }
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    // A server keeps the pipes of the command that started it: they must not be waited for.
    let status = command.stdout(std::process::Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
}

/// One lake.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub settings: LakeSettings,
    pub kind: Kind,
    pub server: Option<Arc<Server>>,
    pub database: String,
    pub lake: Lake,
    pub fence: Fence,
}

impl Lab {
    pub async fn new(kind: Kind) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let (server, database, catalog) = match kind {
            Kind::File => (None, String::new(), CatalogLocation::File(folder.path().join("catalog/lake.ducklake"))),
            Kind::Postgres => {
                let server = Server::shared();
                let database = server.database();
                let url = server.url(&database);
                (Some(server), database, CatalogLocation::Postgres { url, schema: Some("My lake".into()) })
            }
        };
        let settings = LakeSettings {
            catalog,
            data_path: folder.path().join("data").to_string_lossy().into_owned(),
            s3: None,
            memory: 256 << 20,
            read_only: false,
        };
        let lake = Lake::open(&settings).await.unwrap();
        let fence = lake.claim(&pipeline("shop")).await.unwrap();
        Lab { folder, settings, kind, server, database, lake, fence }
    }

    pub fn data_path(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub async fn table(&self, name: &str, columns: &[(&str, ColumnType)]) -> (LakeTable, TableLayout) {
        let layout = layout(columns);
        let table = self.lake.create_table(&self.fence, &new_table(name, &layout)).await.unwrap();
        (table, layout)
    }

    /// Lets a stock DuckDB work on the lake. It takes the catalog's file over for as long.
    pub async fn stock<T>(&mut self, work: impl FnOnce(&Connection) -> T) -> T {
        if self.kind == Kind::File {
            self.lake.clone().shutdown().await;
        }
        let result = {
            let connection = self.stock_duckdb();
            connection.execute_batch(&self.attach_statement()).unwrap();
            work(&connection)
        };
        if self.kind == Kind::File {
            self.lake = Lake::open(&self.settings).await.unwrap();
        }
        result
    }

    /// A stock DuckDB with the extensions that the lake needs, which is not attached yet.
    pub fn stock_duckdb(&self) -> Connection {
        // Their signatures were checked when they were fetched.
        let config = Config::default().threads(1).and_then(Config::allow_unsigned_extensions).unwrap();
        let connection = Connection::open_in_memory_with_flags(config).unwrap();
        let folder = std::env::var("DUCKPIPE_EXTENSIONS").ok();
        let load = |name: &str| {
            let statement = match &folder {
                Some(folder) => format!("LOAD '{folder}/{name}.duckdb_extension'"),
                None => format!("INSTALL {name}; LOAD {name}"),
            };
            connection.execute_batch(&statement).unwrap();
        };
        load("ducklake");
        if self.kind == Kind::Postgres {
            load("postgres_scanner");
        }
        connection
    }

    /// Where a stock DuckDB that has attached the lake finds the catalog's tables.
    pub fn stock_catalog(&self) -> &'static str {
        match self.kind {
            Kind::File => "__ducklake_metadata_lake",
            Kind::Postgres => "__ducklake_metadata_lake.\"My lake\"",
        }
    }

    /// Attaches the lake as `lake`.
    pub fn attach_statement(&self) -> String {
        match &self.settings.catalog {
            CatalogLocation::File(path) => attach_file(path),
            CatalogLocation::Postgres { .. } => {
                let server = self.server.as_ref().unwrap();
                let address = format!(
                    "ducklake:postgres:host=127.0.0.1 port={} user=postgres password='{}' dbname={}",
                    server.port,
                    PASSWORD.replace('\'', "\\'"),
                    self.database
                );
                format!("ATTACH {} AS lake (METADATA_SCHEMA 'My lake')", literal(&address))
            }
        }
    }
}

/// Attaches a catalog file as `lake`.
pub fn attach_file(path: &Path) -> String {
    format!("ATTACH {} AS lake", literal(&format!("ducklake:{}", path.display())))
}

pub fn pipeline(name: &str) -> NewPipeline {
    NewPipeline {
        name: name.into(),
        system_id: "7311111111111111111".into(),
        timeline: 1,
        slot: format!("duckpipe_{name}"),
        publication: format!("duckpipe_{name}"),
        owns_publication: true,
    }
}

pub fn layout(columns: &[(&str, ColumnType)]) -> TableLayout {
    let columns = columns.iter().enumerate().map(|(index, (name, column_type))| LayoutColumn {
        name: (*name).into(),
        attnum: index as i16 + 1,
        column_type: column_type.clone(),
        cast_to_text: false,
        not_null: index == 0,
        delimiter: b',',
        text_source: Default::default(),
    });
    TableLayout {
        table: "public.t".into(),
        columns: columns.collect(),
        key: vec![0],
        keyless: false,
        mode: Mode::Mirror,
    }
}

pub fn name(table: &str) -> TableName {
    TableName { schema: "public".into(), table: table.into() }
}

pub fn new_table(table: &str, layout: &TableLayout) -> NewTable {
    NewTable {
        source_oid: 16_400,
        source: name(table),
        selected: None,
        target: name(table),
        view: None,
        layout: layout.clone(),
        recreate: false,
    }
}

pub fn table_commit(table_id: i64) -> TableCommit {
    TableCommit {
        table_id,
        alteration: None,
        definition: None,
        data: Vec::new(),
        deletes: Vec::new(),
        replace: false,
        rows_copied: 0,
        rows_applied: 0,
        values_nulled: 0,
        state: TableState::Streaming,
        lsn: None,
    }
}

fn write_parquet(path: &Path, batch: &RecordBatch) -> (u64, u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let length: [u8; 4] = bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap();
    (bytes.len() as u64, u64::from(u32::from_le_bytes(length)))
}

/// Writes a data file whose columns' bounds are those that `bounds` gives by column, or none.
pub fn write_data(root: &Path, table: &LakeTable, schema: SchemaRef, columns: Vec<ArrayRef>) -> DataFile {
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let path = format!("{}/{}.parquet", table.folder, uuid::Uuid::now_v7());
    let (bytes, footer_bytes) = write_parquet(&root.join(&path), &batch);
    let mut stats = Vec::new();
    for (column, lake) in batch.columns().iter().zip(&table.columns) {
        let leaf = lake.id.element.as_ref().map_or(lake.id.column_id, |element| element.column_id);
        let bounds = if lake.id.element.is_some() { None } else { bounds(column) };
        stats.push(ColumnStats {
            field_id: leaf as i32,
            bytes: 10,
            values: (column.len() - column.null_count()) as u64,
            nulls: column.null_count() as u64,
            min: bounds.as_ref().map(|(min, _)| min.clone()),
            max: bounds.map(|(_, max)| max),
            contains_nan: None,
        });
    }
    DataFile { path, rows: batch.num_rows() as u64, bytes, footer_bytes, columns: stats }
}

/// Bounds as a writer gives them; tests of other types give their own.
fn bounds(column: &ArrayRef) -> Option<(String, String)> {
    let any = column.as_any();
    if let Some(values) = any.downcast_ref::<Int64Array>() {
        Some((arrow::compute::min(values)?.to_string(), arrow::compute::max(values)?.to_string()))
    } else if let Some(values) = any.downcast_ref::<Int32Array>() {
        Some((arrow::compute::min(values)?.to_string(), arrow::compute::max(values)?.to_string()))
    } else if let Some(values) = any.downcast_ref::<StringArray>() {
        let (min, max) = (arrow::compute::min_string(values)?, arrow::compute::max_string(values)?);
        (min.len() <= 64 && max.len() <= 64).then(|| (min.to_owned(), max.to_owned()))
    } else {
        None
    }
}

/// Writes a delete file.
pub fn write_deletes(root: &Path, table: &LakeTable, data_path: &str, deletes: &BTreeMap<u64, i64>) -> DeleteFile {
    let field = |name: &str, data_type, id: i64| {
        Field::new(name, data_type, false).with_metadata([("PARQUET:field_id".to_owned(), id.to_string())].into())
    };
    let schema = Arc::new(Schema::new(vec![
        field("file_path", DataType::Utf8, 2_147_483_546),
        field("pos", DataType::Int64, 2_147_483_545),
        field("_ducklake_internal_snapshot_id", DataType::Int64, 2_147_483_539),
    ]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![data_path; deletes.len()])),
        Arc::new(deletes.keys().map(|position| *position as i64).collect::<Int64Array>()),
        Arc::new(deletes.values().copied().collect::<Int64Array>()),
    ];
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let path = format!("{}/{}-delete.parquet", table.folder, uuid::Uuid::now_v7());
    let (bytes, footer_bytes) = write_parquet(&root.join(&path), &batch);
    DeleteFile { path, rows: deletes.len() as u64, bytes, footer_bytes }
}

/// A folder as a store.
pub struct Folder(pub PathBuf);

impl LakeStore for Folder {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        Ok(std::fs::read(self.0.join(path)).ok())
    }

    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        std::fs::create_dir_all(&self.0).unwrap();
        std::fs::write(self.0.join(path), bytes).unwrap();
        Ok(())
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let _ = std::fs::remove_file(self.0.join(path));
        Ok(())
    }
}

/// Rows of DuckDB as text, each value as it prints.
pub fn query(connection: &Connection, sql: &str) -> Vec<Vec<String>> {
    let columns = {
        let mut describe = connection.prepare(&format!("DESCRIBE {sql}")).unwrap();
        let names = describe.query_map([], |row| row.get::<_, String>(0)).unwrap();
        names.collect::<duckdb::Result<Vec<_>>>().unwrap().len()
    };
    let mut statement = connection
        .prepare(&format!(
            "SELECT {} FROM ({sql}) AS q({})",
            (0..columns).map(|i| format!("c{i}::VARCHAR")).collect::<Vec<_>>().join(", "),
            (0..columns).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", ")
        ))
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    let rows = statement
        .query_map([], |row| {
            (0..columns).map(|i| Ok(row.get::<_, Option<String>>(i)?.unwrap_or_else(|| "NULL".into()))).collect()
        })
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    rows.collect::<duckdb::Result<Vec<Vec<String>>>>().unwrap()
}
