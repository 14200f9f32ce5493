//! The data files and delete files that a table consists of at the newest snapshot.

use std::collections::{HashMap, HashSet};

use super::Lake;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::sql::identifier;

/// A live data file and what is deleted in it.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveFile {
    /// DuckLake's `data_file_id`.
    pub data_file_id: i64,
    /// The path below the data path.
    pub path: String,
    /// Rows in the file, deleted ones included.
    pub rows: u64,
    /// The first row's id; `None` where the file carries its row ids.
    pub row_id_start: Option<i64>,
    /// The snapshot that added it.
    pub begin_snapshot: i64,
    /// Its live delete file.
    pub delete: Option<LiveDelete>,
    /// Per key column: the least and the greatest value as text, where known.
    pub key_bounds: Vec<Option<(String, String)>>,
}

/// A live delete file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveDelete {
    /// DuckLake's `delete_file_id`.
    pub delete_file_id: i64,
    /// The path below the data path.
    pub path: String,
    /// Positions in it.
    pub rows: u64,
    /// The first snapshot that shows one of its deletes. A file without snapshot ids has all its deletes at this one.
    pub begin_snapshot: i64,
    /// The last snapshot that added a delete, where the file's positions have different ones.
    pub partial_max: Option<i64>,
}

/// What [`Lake::live_files`] read, all at one snapshot.
#[derive(Clone, Debug, Default)]
pub struct LiveFiles {
    /// The newest snapshot: a commit that builds on these files must name it.
    pub base_snapshot: i64,
    /// The files by `table_id`, oldest first.
    pub files: HashMap<i64, Vec<LiveFile>>,
}

/// The newest row of `ducklake_snapshot`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    pub(super) id: i64,
    pub(super) schema_version: i64,
    pub(super) next_catalog_id: i64,
    pub(super) next_file_id: i64,
}

pub(super) fn latest_snapshot(session: &Session) -> Result<Snapshot> {
    let table = format!("{}.ducklake_snapshot", session.tables());
    let sql = format!(
        "SELECT snapshot_id, schema_version, next_catalog_id, next_file_id FROM {table} \
         WHERE snapshot_id = (SELECT max(snapshot_id) FROM {table})"
    );
    let rows = session.read(&sql, |row| {
        Ok(Snapshot {
            id: row.get(0)?,
            schema_version: row.get(1)?,
            next_catalog_id: row.get(2)?,
            next_file_id: row.get(3)?,
        })
    })?;
    rows.first().copied().ok_or_else(|| Error::new(ErrorKind::Internal, "the lake has no snapshot"))
}

/// A comma-separated list of ids.
pub(super) fn id_list(ids: impl IntoIterator<Item = i64>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

/// The path below the data path.
pub(super) fn below_data_path(folder: &str, (path, relative): &StoredPath) -> Result<String> {
    match relative {
        true => Ok(format!("{folder}/{path}")),
        false => Err(Error::new(
            ErrorKind::Table,
            format!("{path} is registered in the lake but lies outside its data path, where duckpipe does not look"),
        )
        .remedy("copy the table anew: `duckpipe tables resync`")),
    }
}

impl Lake {
    /// The live files of tables, each with the ids of its key columns (for their bounds), and the snapshot that shows them.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] where a table was dropped or holds rows or deletes that are in no file.
    pub async fn live_files(&self, tables: &[(i64, Vec<i64>)]) -> Result<LiveFiles> {
        let tables = tables.to_vec();
        self.run(move |session| session.transaction(|session| read(session, &tables))).await
    }

    /// Those of the tables that show rows at the newest snapshot, wherever these are kept. The catalog's counts tell.
    pub async fn with_rows(&self, table_ids: &[i64]) -> Result<HashSet<i64>> {
        if table_ids.is_empty() {
            return Ok(HashSet::new());
        }
        let ids = id_list(table_ids.iter().copied());
        self.run(move |session| session.transaction(|session| with_rows(session, &ids))).await
    }
}

fn with_rows(session: &Session, table_ids: &str) -> Result<HashSet<i64>> {
    let metadata = session.tables();
    let sql = format!(
        "SELECT f.table_id FROM {metadata}.ducklake_data_file f LEFT JOIN {metadata}.ducklake_delete_file d \
         ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL \
         WHERE f.table_id IN ({table_ids}) AND f.end_snapshot IS NULL \
         GROUP BY f.table_id HAVING sum(f.record_count) > sum(COALESCE(d.delete_count, 0))"
    );
    let mut found: HashSet<i64> = session.read(&sql, |row| row.get::<_, i64>(0))?.into_iter().collect();
    let sql = format!(
        "SELECT table_id, table_name FROM {metadata}.ducklake_inlined_data_tables WHERE table_id IN ({table_ids})"
    );
    for (table_id, table) in session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? {
        if holds_rows(session, &table, "WHERE end_snapshot IS NULL")? {
            found.insert(table_id);
        }
    }
    Ok(found)
}

/// Whether a table of the catalog has a row that meets the condition.
fn holds_rows(session: &Session, table: &str, condition: &str) -> Result<bool> {
    let sql = format!("SELECT count(*) FROM {}.{} {condition}", session.tables(), identifier(table));
    Ok(session.read(&sql, |row| row.get::<_, i64>(0))?.first().is_some_and(|count| *count > 0))
}

fn read(session: &Session, tables: &[(i64, Vec<i64>)]) -> Result<LiveFiles> {
    let snapshot = latest_snapshot(session)?;
    let mut live = LiveFiles { base_snapshot: snapshot.id, files: HashMap::new() };
    if tables.is_empty() {
        return Ok(live);
    }
    let mut folders = HashMap::new();
    for (table_id, _) in tables {
        let known = session.known_table(*table_id, snapshot.schema_version)?.ok_or_else(|| {
            Error::new(ErrorKind::Table, format!("the lake's table {table_id} was dropped by somebody else"))
                .remedy("copy the table anew: `duckpipe tables resync`")
                .of_table(*table_id)
        })?;
        folders.insert(*table_id, known);
        live.files.insert(*table_id, Vec::new());
    }
    let ids: Vec<i64> = tables.iter().map(|(table_id, _)| *table_id).collect();
    refuse_inlined(session, &ids)?;
    let ids = id_list(ids);
    let bounds = read_bounds(session, tables)?;
    let keys: HashMap<i64, &Vec<i64>> = tables.iter().map(|(table_id, key)| (*table_id, key)).collect();
    for row in read_rows(session, &ids)? {
        let (Some(known), Some(key), Some(files)) =
            (folders.get(&row.table_id), keys.get(&row.table_id), live.files.get_mut(&row.table_id))
        else {
            continue;
        };
        let broken = |what: String| {
            Error::new(ErrorKind::Table, format!("{}: {what}", known.name))
                .remedy("copy the table anew: `duckpipe tables resync`")
                .of_table(row.table_id)
        };
        let below =
            |path: &StoredPath| below_data_path(&known.folder, path).map_err(|error| error.of_table(row.table_id));
        if files.last().is_some_and(|last| last.data_file_id == row.file.data_file_id) {
            return Err(broken(format!("{} has two live delete files in the catalog", row.path.0)));
        }
        let delete = match row.delete {
            Some((_, _, format)) if format != "parquet" => {
                return Err(broken(format!("{} has its deletes as {format}", row.path.0)));
            }
            Some((delete, path, _)) => Some(LiveDelete { path: below(&path)?, ..delete }),
            None => None,
        };
        let key_bounds = key.iter().map(|column| bounds.get(&(row.file.data_file_id, *column)).cloned()).collect();
        files.push(LiveFile { path: below(&row.path)?, delete, key_bounds, ..row.file });
    }
    Ok(live)
}

/// A path and whether it is relative to its table's folder.
pub(super) type StoredPath = (String, bool);

/// A live data file with its delete file, paths not yet put together.
struct FileRow {
    table_id: i64,
    file: LiveFile,
    path: StoredPath,
    delete: Option<(LiveDelete, StoredPath, String)>,
}

fn read_rows(session: &Session, table_ids: &str) -> Result<Vec<FileRow>> {
    let metadata = session.tables();
    let sql = format!(
        "SELECT f.table_id, f.data_file_id, f.path, f.path_is_relative, f.record_count, f.row_id_start, f.begin_snapshot, \
         d.delete_file_id, d.path AS delete_path, d.path_is_relative AS delete_relative, d.delete_count, \
         d.begin_snapshot AS delete_begin, d.partial_max, d.format \
         FROM {metadata}.ducklake_data_file f LEFT JOIN {metadata}.ducklake_delete_file d \
         ON d.data_file_id = f.data_file_id AND d.table_id = f.table_id AND d.end_snapshot IS NULL \
         WHERE f.table_id IN ({table_ids}) AND f.end_snapshot IS NULL ORDER BY f.table_id, f.data_file_id"
    );
    session.read(&sql, |row| {
        let file = LiveFile {
            data_file_id: row.get(1)?,
            path: String::new(),
            rows: row.get::<_, i64>(4)?.max(0) as u64,
            row_id_start: row.get(5)?,
            begin_snapshot: row.get(6)?,
            delete: None,
            key_bounds: Vec::new(),
        };
        let delete = match row.get::<_, Option<i64>>(7)? {
            None => None,
            Some(delete_file_id) => {
                let delete = LiveDelete {
                    delete_file_id,
                    path: String::new(),
                    rows: row.get::<_, i64>(10)?.max(0) as u64,
                    begin_snapshot: row.get(11)?,
                    partial_max: row.get(12)?,
                };
                Some((delete, (row.get(8)?, row.get(9)?), row.get(13)?))
            }
        };
        Ok(FileRow { table_id: row.get(0)?, file, path: (row.get(2)?, row.get(3)?), delete })
    })
}

/// Bounds by data file and column, where both are known.
fn read_bounds(session: &Session, tables: &[(i64, Vec<i64>)]) -> Result<HashMap<(i64, i64), (String, String)>> {
    let wanted = tables.iter().filter(|(_, key)| !key.is_empty()).map(|(table_id, key)| {
        format!("(s.table_id = {table_id} AND s.column_id IN ({}))", id_list(key.iter().copied()))
    });
    let wanted = wanted.collect::<Vec<_>>().join(" OR ");
    if wanted.is_empty() {
        return Ok(HashMap::new());
    }
    let metadata = session.tables();
    let sql = format!(
        "SELECT s.data_file_id, s.column_id, s.min_value, s.max_value FROM {metadata}.ducklake_file_column_stats s \
         JOIN {metadata}.ducklake_data_file f ON f.data_file_id = s.data_file_id AND f.end_snapshot IS NULL \
         WHERE ({wanted}) AND s.min_value IS NOT NULL AND s.max_value IS NOT NULL"
    );
    let rows = session.read(&sql, |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?))))?;
    Ok(rows.into_iter().collect())
}

/// Rows and deletes that somebody else left in the catalog instead of in files would be missed by a lookup over files.
pub(super) fn refuse_inlined(session: &Session, table_ids: &[i64]) -> Result<()> {
    let metadata = session.tables();
    let refuse = |table_id: i64, table: &str| {
        Err(Error::new(
            ErrorKind::Table,
            format!("somebody else keeps changes of the lake's table in its catalog ({table})"),
        )
        .remedy("CALL ducklake_flush_inlined_data('lake'), and write to it with data_inlining_row_limit = 0")
        .of_table(table_id))
    };
    let ids = id_list(table_ids.iter().copied());
    let sql =
        format!("SELECT table_id, table_name FROM {metadata}.ducklake_inlined_data_tables WHERE table_id IN ({ids})");
    for (table_id, table) in session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? {
        if holds_rows(session, &table, "WHERE end_snapshot IS NULL")? {
            return refuse(table_id, &table);
        }
    }
    let deletes: Vec<String> = table_ids.iter().map(|table_id| format!("ducklake_inlined_delete_{table_id}")).collect();
    let existing = session.existing_tables(&deletes)?;
    for (table_id, table) in table_ids.iter().zip(&deletes).filter(|(_, table)| existing.contains(table)) {
        if holds_rows(session, table, "")? {
            return refuse(*table_id, table);
        }
    }
    Ok(())
}
