//! Everything that the catalog says of tables' files, of every version, read in one transaction. For those who hold the files
//! against it; nothing is judged here.

use std::collections::HashMap;

use super::Lake;
use super::files::{id_list, latest_snapshot};
use super::session::Session;
use super::table::{data_path, table_folder};
use crate::error::Result;
use crate::sql::{identifier, literal};

/// A row of `ducklake_data_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredFile {
    /// `table_id`.
    pub table_id: i64,
    /// `data_file_id`.
    pub data_file_id: i64,
    /// The path below the data path, or an absolute one.
    pub path: String,
    /// `record_count`.
    pub rows: i64,
    /// `file_size_bytes`.
    pub bytes: i64,
    /// `footer_size`.
    pub footer_bytes: Option<i64>,
    /// `row_id_start`.
    pub row_id_start: Option<i64>,
    /// The snapshot that added it.
    pub begin_snapshot: i64,
    /// The snapshot from which on it is gone.
    pub end_snapshot: Option<i64>,
    /// Where its rows were added by several snapshots: the last of them.
    pub partial_max: Option<i64>,
    /// A mapping by name takes the place of field ids.
    pub mapped_by_name: bool,
}

impl RegisteredFile {
    /// Whether the table consists of it at a snapshot.
    pub fn lives_at(&self, snapshot: i64) -> bool {
        self.begin_snapshot <= snapshot && self.end_snapshot.is_none_or(|end| end > snapshot)
    }
}

/// A row of `ducklake_delete_file`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredDelete {
    /// `table_id`.
    pub table_id: i64,
    /// `delete_file_id`.
    pub delete_file_id: i64,
    /// The file whose rows it deletes.
    pub data_file_id: i64,
    /// The path below the data path, or an absolute one.
    pub path: String,
    /// `format`.
    pub format: String,
    /// `delete_count`.
    pub rows: i64,
    /// `file_size_bytes`.
    pub bytes: i64,
    /// `footer_size`.
    pub footer_bytes: Option<i64>,
    /// The first snapshot that shows one of its deletes.
    pub begin_snapshot: i64,
    /// The snapshot from which on it is gone.
    pub end_snapshot: Option<i64>,
}

impl RegisteredDelete {
    /// Whether any of its deletes may be shown at a snapshot.
    pub fn lives_at(&self, snapshot: i64) -> bool {
        self.begin_snapshot <= snapshot && self.end_snapshot.is_none_or(|end| end > snapshot)
    }
}

/// A row of `ducklake_file_column_stats`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatistics {
    /// `column_id`.
    pub column_id: i64,
    /// `value_count`.
    pub values: Option<i64>,
    /// `null_count`.
    pub nulls: Option<i64>,
    /// `min_value`.
    pub min: Option<String>,
    /// `max_value`.
    pub max: Option<String>,
    /// `contains_nan`.
    pub contains_nan: Option<bool>,
}

/// A row of `ducklake_table_column_stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableColumnStatistics {
    /// `contains_null`.
    pub contains_null: Option<bool>,
    /// `min_value`.
    pub min: Option<String>,
    /// `max_value`.
    pub max: Option<String>,
}

/// What the catalog says of all rows that a table has: `ducklake_table_stats` and `ducklake_table_column_stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStatistics {
    /// `next_row_id`; `None` where the table never had rows.
    pub next_row_id: Option<i64>,
    /// By `column_id`.
    pub columns: HashMap<i64, TableColumnStatistics>,
}

/// A row of `ducklake_column` that is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogFieldColumn {
    /// `column_id`: the Parquet field id.
    pub id: i64,
    /// `column_name`.
    pub name: String,
    /// `column_type`, in DuckLake's words.
    pub lake_type: String,
    /// `parent_column`.
    pub parent: Option<i64>,
    /// The snapshot that added it.
    pub begin_snapshot: i64,
}

/// A row of `duckpipe_upload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadRow {
    /// The path below the data path.
    pub path: String,
    /// Whether the process that began it may still register it.
    pub live: bool,
}

/// What the catalog says.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// The newest snapshot.
    pub snapshot: i64,
    /// Data files of the tables, of all versions, by id.
    pub files: Vec<RegisteredFile>,
    /// Their delete files.
    pub deletes: Vec<RegisteredDelete>,
    /// Per table, its live columns; tables that are gone have no entry.
    pub columns: HashMap<i64, Vec<CatalogFieldColumn>>,
    /// Per table, where changes are kept in the catalog instead of in files: what keeps them.
    pub inlined: HashMap<i64, String>,
    /// Per data file.
    pub file_statistics: HashMap<i64, Vec<FileStatistics>>,
    /// Per table.
    pub table_statistics: HashMap<i64, TableStatistics>,
    /// Paths below the data path that a later cleanup deletes, of the whole lake.
    pub scheduled: Vec<String>,
    /// Paths of all data and delete files of the whole lake.
    pub all_paths: Vec<String>,
    /// Uploads that no commit has registered, of the whole lake.
    pub uploads: Vec<UploadRow>,
}

impl Lake {
    /// Reads what is registered for these tables; with `everything`, statistics and what is stored for the whole lake too.
    pub async fn registered(&self, table_ids: &[i64], everything: bool) -> Result<Registered> {
        let table_ids = table_ids.to_vec();
        self.run(move |session| session.transaction(|session| read(session, &table_ids, everything))).await
    }

    /// Whether each of these statements of the form `(type, lesser, greater)` holds: `lesser <= greater` as DuckDB, which casts
    /// the catalog's texts, compares them. `None` where a text can't be cast.
    pub async fn in_order(&self, questions: &[(String, String, String)]) -> Result<Vec<Option<bool>>> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let answers = questions.iter().map(|(cast, lesser, greater)| {
            format!("TRY_CAST({} AS {cast}) <= TRY_CAST({} AS {cast})", literal(lesser), literal(greater))
        });
        let sql = format!("SELECT unnest([{}])", answers.collect::<Vec<_>>().join(", "));
        self.run(move |session| session.rows(&sql, |row| row.get::<_, Option<bool>>(0))).await
    }
}

fn read(session: &Session, table_ids: &[i64], everything: bool) -> Result<Registered> {
    let mut all = Registered { snapshot: latest_snapshot(session)?.id, ..Registered::default() };
    for table_id in table_ids {
        if table_folder(session, *table_id)?.is_none() {
            continue;
        }
        all.columns.insert(*table_id, columns(session, *table_id)?);
        if let Some(place) = inlined(session, *table_id)? {
            all.inlined.insert(*table_id, place);
        }
    }
    if !table_ids.is_empty() {
        let ids = id_list(table_ids.iter().copied());
        all.files = data_files(session, &ids)?;
        all.deletes = delete_files(session, &ids)?;
        if everything {
            all.file_statistics = file_statistics(session, &ids)?;
            all.table_statistics = table_statistics(session, &ids)?;
        }
    }
    if everything {
        let metadata = session.tables();
        let relative = |row: &duckdb::Row<'_>| row.get::<_, String>(0);
        all.scheduled =
            session.read(&format!("SELECT path FROM {metadata}.ducklake_files_scheduled_for_deletion"), relative)?;
        let path = path_sql(&data_path(session)?);
        let every = |table: &str| format!("SELECT {path} AS path FROM {metadata}.{table} f {}", joins(&metadata));
        all.all_paths = session
            .read(&format!("{} UNION ALL {}", every("ducklake_data_file"), every("ducklake_delete_file")), relative)?;
        all.uploads = session.read(
            &format!(
                "SELECT u.path, COALESCE(u.epoch >= p.epoch, true) AS live FROM {metadata}.duckpipe_upload u \
                 LEFT JOIN {metadata}.duckpipe_pipeline p ON p.name = u.pipeline \
                 UNION ALL SELECT path, true FROM {metadata}.duckpipe_part"
            ),
            |row| Ok(UploadRow { path: row.get(0)?, live: row.get(1)? }),
        )?;
    }
    Ok(all)
}

fn columns(session: &Session, table_id: i64) -> Result<Vec<CatalogFieldColumn>> {
    // A column that was renamed or widened has an earlier row too.
    let sql = format!(
        "SELECT c.column_id, c.column_name, c.column_type, c.parent_column, (SELECT min(b.begin_snapshot) FROM \
         {metadata}.ducklake_column b WHERE b.table_id = c.table_id AND b.column_id = c.column_id) AS begun \
         FROM {metadata}.ducklake_column c WHERE c.table_id = {table_id} AND c.end_snapshot IS NULL ORDER BY c.column_order",
        metadata = session.tables()
    );
    session.read(&sql, |row| {
        Ok(CatalogFieldColumn {
            id: row.get(0)?,
            name: row.get(1)?,
            lake_type: row.get(2)?,
            parent: row.get(3)?,
            begin_snapshot: row.get(4)?,
        })
    })
}

/// A file's path below the data path `root`, in both dialects; of one outside of it, all of it. The rows of tables that were dropped since are
/// joined too.
fn path_sql(root: &str) -> String {
    let (length, root) = (root.chars().count() + 1, literal(root));
    format!(
        "CASE WHEN NOT f.path_is_relative THEN f.path WHEN t.path_is_relative THEN s.path || t.path || f.path \
         WHEN starts_with(t.path, {root}) THEN substr(t.path, {length}) || f.path ELSE t.path || f.path END"
    )
}

fn joins(metadata: &str) -> String {
    // A schema or table that was renamed has a row for each name; its files stay where they are, so any row tells.
    format!(
        "JOIN {metadata}.ducklake_table t ON t.table_id = f.table_id \
         AND t.begin_snapshot = (SELECT min(b.begin_snapshot) FROM {metadata}.ducklake_table b WHERE b.table_id = f.table_id) \
         JOIN (SELECT schema_id, max(path) AS path FROM {metadata}.ducklake_schema GROUP BY schema_id) s \
         ON s.schema_id = t.schema_id"
    )
}

fn data_files(session: &Session, ids: &str) -> Result<Vec<RegisteredFile>> {
    let metadata = session.tables();
    let sql = format!(
        "SELECT f.table_id, f.data_file_id, {} AS path, f.record_count, f.file_size_bytes, f.footer_size, f.row_id_start, \
         f.begin_snapshot, f.end_snapshot, f.partial_max, f.mapping_id IS NOT NULL AS mapped \
         FROM {metadata}.ducklake_data_file f {} WHERE f.table_id IN ({ids}) ORDER BY f.data_file_id",
        path_sql(&data_path(session)?),
        joins(&metadata)
    );
    session.read(&sql, |row| {
        Ok(RegisteredFile {
            table_id: row.get(0)?,
            data_file_id: row.get(1)?,
            path: row.get(2)?,
            rows: row.get(3)?,
            bytes: row.get(4)?,
            footer_bytes: row.get(5)?,
            row_id_start: row.get(6)?,
            begin_snapshot: row.get(7)?,
            end_snapshot: row.get(8)?,
            partial_max: row.get(9)?,
            mapped_by_name: row.get(10)?,
        })
    })
}

fn delete_files(session: &Session, ids: &str) -> Result<Vec<RegisteredDelete>> {
    let metadata = session.tables();
    let sql = format!(
        "SELECT f.table_id, f.delete_file_id, f.data_file_id, {} AS path, f.format, f.delete_count, f.file_size_bytes, \
         f.footer_size, f.begin_snapshot, f.end_snapshot \
         FROM {metadata}.ducklake_delete_file f {} WHERE f.table_id IN ({ids}) ORDER BY f.delete_file_id",
        path_sql(&data_path(session)?),
        joins(&metadata)
    );
    session.read(&sql, |row| {
        Ok(RegisteredDelete {
            table_id: row.get(0)?,
            delete_file_id: row.get(1)?,
            data_file_id: row.get(2)?,
            path: row.get(3)?,
            format: row.get::<_, Option<String>>(4)?.unwrap_or_default(),
            rows: row.get(5)?,
            bytes: row.get(6)?,
            footer_bytes: row.get(7)?,
            begin_snapshot: row.get(8)?,
            end_snapshot: row.get(9)?,
        })
    })
}

fn file_statistics(session: &Session, ids: &str) -> Result<HashMap<i64, Vec<FileStatistics>>> {
    let sql = format!(
        "SELECT data_file_id, column_id, value_count, null_count, min_value, max_value, contains_nan \
         FROM {}.ducklake_file_column_stats WHERE table_id IN ({ids}) ORDER BY data_file_id, column_id",
        session.tables()
    );
    let rows = session.read(&sql, |row| {
        let statistics = FileStatistics {
            column_id: row.get(1)?,
            values: row.get(2)?,
            nulls: row.get(3)?,
            min: row.get(4)?,
            max: row.get(5)?,
            contains_nan: row.get(6)?,
        };
        Ok((row.get::<_, i64>(0)?, statistics))
    })?;
    let mut by_file: HashMap<i64, Vec<FileStatistics>> = HashMap::new();
    for (file, statistics) in rows {
        by_file.entry(file).or_default().push(statistics);
    }
    Ok(by_file)
}

fn table_statistics(session: &Session, ids: &str) -> Result<HashMap<i64, TableStatistics>> {
    let metadata = session.tables();
    let sql = format!("SELECT table_id, next_row_id FROM {metadata}.ducklake_table_stats WHERE table_id IN ({ids})");
    let mut by_table: HashMap<i64, TableStatistics> = HashMap::new();
    for (table, next) in session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))? {
        by_table.entry(table).or_default().next_row_id = next;
    }
    let sql = format!(
        "SELECT table_id, column_id, contains_null, min_value, max_value \
         FROM {metadata}.ducklake_table_column_stats WHERE table_id IN ({ids})"
    );
    let rows = session.read(&sql, |row| {
        let statistics = TableColumnStatistics { contains_null: row.get(2)?, min: row.get(3)?, max: row.get(4)? };
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, statistics))
    })?;
    for (table, column, statistics) in rows {
        by_table.entry(table).or_default().columns.insert(column, statistics);
    }
    Ok(by_table)
}

/// The metadata table that keeps rows or deletes of a table, where one does.
fn inlined(session: &Session, table_id: i64) -> Result<Option<String>> {
    let metadata = session.tables();
    let sql = format!("SELECT table_name FROM {metadata}.ducklake_inlined_data_tables WHERE table_id = {table_id}");
    let rows = session.read(&sql, |row| row.get::<_, String>(0))?;
    let deletes = session.existing_tables(&[format!("ducklake_inlined_delete_{table_id}")])?;
    for (table, condition) in
        rows.into_iter().map(|table| (table, "WHERE end_snapshot IS NULL")).chain(deletes.into_iter().map(|t| (t, "")))
    {
        let sql = format!("SELECT count(*) FROM {metadata}.{} {condition}", identifier(&table));
        if session.read(&sql, |row| row.get::<_, i64>(0))?.first().is_some_and(|count| *count > 0) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}
