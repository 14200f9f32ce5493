//! Where a lake lies, and how somebody who knows nothing of duckpipe reads it: stock DuckDB with its own extensions.

use std::path::PathBuf;
use std::time::Duration;

use duckdb::Connection;
use duckpipe::lsn::Lsn;
use tempfile::TempPath;

use super::minio::{ACCESS_KEY, Bucket, Minio, SECRET_KEY};
use super::postgres::{Database, PASSWORD, Postgres, RUNTIME};
use super::process::{Folder, cache, wait_for};

/// How long a sync may take to open its socket.
const SYNC_STARTS: Duration = Duration::from_secs(20);

/// What holds the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CatalogKind {
    /// A DuckDB file: only one process can have it open.
    DuckDb,
    /// A Postgres database.
    Postgres,
}

/// What holds the data files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// A folder.
    Local,
    /// A bucket of a MinIO server.
    S3,
}

/// One of the four places where a lake can lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    /// What holds the catalog.
    pub catalog: CatalogKind,
    /// What holds the data files.
    pub store: StoreKind,
}

impl Combination {
    /// The default of a new configuration.
    pub const EMBEDDED: Combination = Combination { catalog: CatalogKind::DuckDb, store: StoreKind::Local };

    /// All four.
    pub fn all() -> [Combination; 4] {
        use {CatalogKind::*, StoreKind::*};
        [(DuckDb, Local), (DuckDb, S3), (Postgres, Local), (Postgres, S3)]
            .map(|(catalog, store)| Combination { catalog, store })
    }

    /// `duckdb_local`, `postgres_s3`, …: usable in the names of databases; with `-` for `_`, of buckets.
    pub fn name(self) -> &'static str {
        match (self.catalog, self.store) {
            (CatalogKind::DuckDb, StoreKind::Local) => "duckdb_local",
            (CatalogKind::DuckDb, StoreKind::S3) => "duckdb_s3",
            (CatalogKind::Postgres, StoreKind::Local) => "postgres_local",
            (CatalogKind::Postgres, StoreKind::S3) => "postgres_s3",
        }
    }
}

/// A place for one lake, empty at first.
#[derive(Debug)]
pub struct Lake {
    combination: Combination,
    folder: Folder,
    catalog_database: Option<(u16, String)>,
    bucket: Option<Bucket>,
}

impl Lake {
    /// Makes the place; `name` (letters, digits, `_`) must be the caller's alone in this process.
    pub fn new(combination: Combination, name: &str) -> Lake {
        Lake::with_catalog_on(Postgres::shared, combination, name)
    }

    /// As [`Lake::new`]; a Postgres catalog lies on this server.
    pub fn with_catalog_on<'a>(server: impl FnOnce() -> &'a Postgres, combination: Combination, name: &str) -> Lake {
        let folder = Folder::new(&format!("lake-{name}"));
        let catalog_database = (combination.catalog == CatalogKind::Postgres).then(|| {
            let server = server();
            let database = format!("{name}_catalog");
            server.create_database(&database);
            (server.port(), database)
        });
        let bucket = (combination.store == StoreKind::S3).then(|| Minio::shared().bucket(&name.replace('_', "-")));
        Lake { combination, folder, catalog_database, bucket }
    }

    /// Which of the four it is.
    pub fn combination(&self) -> Combination {
        self.combination
    }

    /// The catalog as the configuration names it.
    pub fn catalog(&self) -> String {
        match &self.catalog_database {
            Some((port, database)) => format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/{database}"),
            None => self.catalog_file().display().to_string(),
        }
    }

    /// The catalog's file, where it is one.
    pub fn catalog_file(&self) -> PathBuf {
        self.folder.path().join("catalog.ducklake")
    }

    /// The data path as the configuration names it.
    pub fn data_path(&self) -> String {
        match &self.bucket {
            Some(bucket) => format!("s3://{}/lake", bucket.name),
            None => self.folder.path().join("data").display().to_string(),
        }
    }

    /// The bucket, where there is one.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// The `[lake]` and `[s3]` sections of a `duckpipe.toml`.
    pub fn toml(&self) -> String {
        let mut text = format!("[lake]\ncatalog = \"{}\"\ndata_path = \"{}\"\n", self.catalog(), self.data_path());
        if let Some(bucket) = &self.bucket {
            text += &format!(
                "\n[s3]\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"{ACCESS_KEY}\"\nsecret_access_key = \"{SECRET_KEY}\"\npath_style = true\n",
                bucket.endpoint
            );
        }
        text
    }

    /// Opens the lake read-only. With a DuckDB-file catalog no `sync` may run meanwhile, and the value must be dropped before one starts.
    #[track_caller]
    pub fn open_native(&self) -> NativeLake {
        self.open("READ_ONLY")
    }

    /// Opens the lake read-only while a `sync` runs on it: a DuckDB-file catalog as the consistent copy that the `sync` gives.
    #[track_caller]
    pub fn open_beside_sync(&self) -> NativeLake {
        match self.combination.catalog {
            CatalogKind::Postgres => self.open_native(),
            CatalogKind::DuckDb => {
                let ask = || {
                    let copy = RUNTIME.block_on(duckpipe::admin::copy_catalog(&self.catalog_file()));
                    copy.unwrap_or_else(|error| panic!("{error}"))
                };
                // There is none before the sync has its socket, a moment after it was started.
                let copy = wait_for("the sync's copy of its catalog", SYNC_STARTS, ask, String::new);
                let mut lake = self.open_at(&copy.display().to_string(), "READ_ONLY");
                lake.copy = Some(copy);
                lake
            }
        }
    }

    /// Opens the lake for native DuckLake writes, creating it where there is none: the oracle of duckpipe's own commits.
    #[track_caller]
    pub fn open_native_writable(&self) -> NativeLake {
        if self.bucket.is_none() {
            std::fs::create_dir_all(self.data_path()).expect("data folder");
        }
        self.open(&format!("DATA_PATH '{}'", self.data_path()))
    }

    #[track_caller]
    fn open(&self, options: &str) -> NativeLake {
        let address = match &self.catalog_database {
            Some((port, database)) => {
                format!("postgres:host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname={database}")
            }
            None => self.catalog(),
        };
        self.open_at(&address, options)
    }

    #[track_caller]
    fn open_at(&self, address: &str, options: &str) -> NativeLake {
        // Their signatures were checked when they were fetched.
        let config = duckdb::Config::default().allow_unsigned_extensions();
        let connection = config.and_then(Connection::open_in_memory_with_flags).expect("DuckDB");
        let lake = NativeLake { connection, copy: None };
        // One thread: on more, DuckLake 1.5.5 now and then dates what was deleted from a file wrongly in the change feed (`duckpipe
        // query` reads that feed on one thread for the same reason).
        lake.execute(
            "SET autoinstall_known_extensions = false; SET threads = 1; SET memory_limit = '1GB'; SET TimeZone = 'UTC'",
        );
        lake.load("ducklake");
        if self.catalog_database.is_some() {
            lake.load("postgres_scanner");
        }
        if let Some(bucket) = &self.bucket {
            lake.load("httpfs");
            lake.execute(&format!(
                "CREATE SECRET (TYPE s3, PROVIDER config, KEY_ID '{ACCESS_KEY}', SECRET '{SECRET_KEY}', ENDPOINT '{}', REGION 'us-east-1', \
                 URL_STYLE 'path', USE_SSL false)",
                bucket.endpoint.trim_start_matches("http://")
            ));
        }
        // The catalog's own tables under their usual name; where it is not asked for, DuckDB hides them from `duckdb_tables()`.
        let metadata = "METADATA_CATALOG '__ducklake_metadata_lake'";
        lake.execute(&format!("ATTACH 'ducklake:{address}' AS lake ({options}, {metadata})"));
        lake
    }
}

/// Where the file of a DuckDB extension is.
pub fn extension_file(extension: &str) -> PathBuf {
    let folder = std::env::var_os("DUCKPIPE_EXTENSIONS").map_or_else(|| cache().join("extensions"), PathBuf::from);
    folder.join(format!("{extension}.duckdb_extension"))
}

/// A stock DuckDB connection with the lake attached as `lake`.
pub struct NativeLake {
    connection: Connection,
    /// What it reads instead of a catalog file that somebody holds; removed after the connection is closed.
    copy: Option<TempPath>,
}

/// One DuckLake snapshot.
#[derive(Clone, Debug)]
pub struct Version {
    /// The snapshot's id: what `AT (VERSION => …)` takes.
    pub id: i64,
    /// `commit_extra_info`, `Null` where there is none.
    pub extra: serde_json::Value,
}

impl Version {
    /// The source position that duckpipe stamped on it.
    pub fn lsn(&self) -> Option<Lsn> {
        self.extra.get("lsn")?.as_str()?.parse().ok()
    }
}

impl NativeLake {
    /// The connection itself.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Loads an extension that this combination does not need by itself.
    #[track_caller]
    pub fn load(&self, extension: &str) {
        self.execute(&format!("LOAD '{}'", extension_file(extension).display()));
    }

    /// Attaches a database of a Postgres, read-only, as `source`.
    #[track_caller]
    pub fn attach_source(&self, database: &Database<'_>) {
        self.load("postgres_scanner");
        let (port, name) = (database.postgres().port(), database.name());
        let address = format!("host=127.0.0.1 port={port} user=postgres password={PASSWORD} dbname={name}");
        self.execute(&format!("ATTACH '{address}' AS source (TYPE postgres, READ_ONLY)"));
    }

    /// Runs statements.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        if let Err(error) = self.connection.execute_batch(sql) {
            panic!("{error}\n{sql}");
        }
    }

    /// The rows of a query, each value as DuckDB casts it to text.
    #[track_caller]
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// The rows of a query that may fail.
    pub fn try_rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        let read = || -> duckdb::Result<Vec<Vec<Option<String>>>> {
            let mut statement = self.connection.prepare(&format!("SELECT COLUMNS(*)::VARCHAR FROM ({sql})"))?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                let width = row.as_ref().column_count();
                all.push((0..width).map(|i| row.get::<_, Option<String>>(i)).collect::<duckdb::Result<_>>()?);
            }
            Ok(all)
        };
        read().map_err(|error| error.to_string())
    }

    /// The one value of a query, `NULL` as an empty text.
    #[track_caller]
    pub fn text(&self, sql: &str) -> String {
        let rows = self.rows(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "not one value but {} rows: {sql}", rows.len());
        rows[0][0].clone().unwrap_or_default()
    }

    /// The one number of a query.
    #[track_caller]
    pub fn number(&self, sql: &str) -> i64 {
        let text = self.text(sql);
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no number: {sql}"))
    }

    /// All snapshots, oldest first.
    #[track_caller]
    pub fn versions(&self) -> Vec<Version> {
        self.rows("SELECT snapshot_id, commit_extra_info FROM ducklake_snapshots('lake') ORDER BY snapshot_id")
            .into_iter()
            .map(|row| Version {
                id: row[0].as_deref().and_then(|id| id.parse().ok()).expect("a snapshot id"),
                extra: row[1].as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
            })
            .collect()
    }

    /// `table` (`schema.name`, unquoted) as a FROM item, at a version where one is given.
    pub fn table(table: &str, version: Option<i64>) -> String {
        let quoted: Vec<String> = table.split('.').map(|part| format!("\"{part}\"")).collect();
        let at = version.map_or_else(String::new, |id| format!(" AT (VERSION => {id})"));
        format!("lake.{}{at}", quoted.join("."))
    }

    /// The columns of a table: name and DuckDB type, in order.
    #[track_caller]
    pub fn columns(&self, table: &str, version: Option<i64>) -> Vec<(String, String)> {
        self.rows(&format!(
            "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {})",
            NativeLake::table(table, version)
        ))
        .into_iter()
        .map(|mut row| (row[0].take().unwrap_or_default(), row[1].take().unwrap_or_default()))
        .collect()
    }
}
