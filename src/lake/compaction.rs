//! The files of a pipeline's tables as compaction sees them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use super::Lake;
use super::files::{LiveDelete, StoredPath, below_data_path, id_list, latest_snapshot, refuse_inlined};
use super::pipeline::{self, PipelineState};
use super::session::Session;
use super::table::{CatalogColumn, FieldId, with_default, with_element_ids};
use super::table_row::{TableState, read_rows};
use crate::batch::layout::ColumnType;
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::TableName;
use crate::sql::literal;

/// DuckLake's reserved id of the column that carries row ids.
pub(crate) const ROW_ID: i32 = 2_147_483_540;
/// DuckLake's reserved id of the column that carries the snapshot that added each row.
pub(crate) const SNAPSHOT_ID: i32 = 2_147_483_539;

/// What a pipeline's tables consist of, all at one snapshot.
#[derive(Clone, Debug, Default)]
pub struct CompactionView {
    /// The oldest snapshot that can still be read.
    pub oldest: i64,
    /// The tables.
    pub tables: Vec<CompactionTable>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct CompactionTable {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// The source's table.
    pub source: TableName,
    /// The name by which the configuration selects it.
    pub selected: TableName,
    /// The lake's table.
    pub name: TableName,
    /// The folder of its files below the data path.
    pub folder: String,
    /// The column ids of its key, in the key's order; empty where the catalog does not know it.
    pub key: Vec<i64>,
    /// The live files that can be rewritten, oldest first.
    pub files: Vec<SourceFile>,
    /// Live files that can't: somebody else's with partitions, name mappings, encryption or deletes of another form.
    pub others: usize,
    /// Why nothing of the table can be compacted.
    pub left_out: Option<String>,
}

/// A live data file that a compaction can replace.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceFile {
    /// DuckLake's `data_file_id`.
    pub data_file_id: i64,
    /// The path below the data path.
    pub path: String,
    /// Rows in the file, deleted ones included.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// The first row's id, where the file does not carry its row ids.
    pub row_id_start: Option<i64>,
    /// The first snapshot that shows one of its rows.
    pub begin_snapshot: i64,
    /// Which of the table's schemas it was written under: files of two schemas are never merged.
    pub schema: usize,
    /// Its live delete file.
    pub delete: Option<LiveDelete>,
}

/// The columns of a table as of a snapshot, as a rewritten file has them.
#[derive(Clone, Debug)]
pub struct CompactionSchema {
    /// The table's columns with their ids, then the row id and the snapshot id.
    pub schema: SchemaRef,
    /// The columns by name, for what people call them.
    pub names: HashMap<String, i64>,
}

impl Lake {
    /// The tables of a pipeline with the files that a compaction may replace. No table where the pipeline is not streaming:
    /// a first copy replaces everything anyway.
    pub async fn compaction_view(&self, pipeline: &str) -> Result<CompactionView> {
        let pipeline = pipeline.to_owned();
        self.run(move |session| session.transaction(|session| view(session, &pipeline))).await
    }

    /// The columns that a table had at a snapshot, those of now at one that is yet to come; at the oldest one where it is older, for what a column was before can be
    /// gone from the catalog with the history that showed it.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] where it has a column of a type that is not written here.
    pub async fn compaction_schema(&self, table_id: i64, snapshot: i64) -> Result<CompactionSchema> {
        self.run(move |session| {
            session.transaction(|session| schema_at(session, table_id, snapshot.max(oldest_snapshot(session)?)))
        })
        .await
    }

    /// Of these data files, those that are live, each with its live delete file.
    pub async fn live_deletes(&self, table_id: i64, data_file_ids: &[i64]) -> Result<HashMap<i64, Option<LiveDelete>>> {
        let ids = data_file_ids.to_vec();
        self.run(move |session| session.transaction(|session| live_deletes(session, table_id, &ids))).await
    }
}

/// See [`Lake::live_deletes`].
pub(super) fn live_deletes(session: &Session, table_id: i64, ids: &[i64]) -> Result<HashMap<i64, Option<LiveDelete>>> {
    let snapshot = latest_snapshot(session)?;
    let Some(known) = session.known_table(table_id, snapshot.schema_version)? else { return Ok(HashMap::new()) };
    let condition = format!("f.table_id = {table_id} AND f.data_file_id IN ({})", id_list(ids.iter().copied()));
    let mut live = HashMap::new();
    for row in read_files(session, &condition)? {
        if let Some(file) = row.assemble(&known.folder, &[])? {
            live.insert(file.data_file_id, file.delete);
        }
    }
    Ok(live)
}

fn view(session: &Session, pipeline: &str) -> Result<CompactionView> {
    let Some(row) = pipeline::read(session, pipeline)? else {
        return Err(Error::new(ErrorKind::Precondition, format!("the lake knows no pipeline {pipeline}"))
            .remedy("run `duckpipe sync` first, or check `name`"));
    };
    let snapshot = latest_snapshot(session)?;
    let mut view = CompactionView { oldest: oldest_snapshot(session)?, tables: Vec::new() };
    if row.state != PipelineState::Streaming {
        return Ok(view);
    }
    for row in read_rows(session, &format!("t.pipeline = {}", literal(pipeline)))? {
        let (Some(table_id), TableState::Catchup | TableState::Streaming | TableState::Errored | TableState::Paused) =
            (row.table_id, row.state)
        else {
            continue;
        };
        let mut key: Vec<(u16, i64)> =
            row.columns.iter().filter_map(|column| Some((column.key?, column.id.column_id))).collect();
        key.sort_unstable();
        let mut table = CompactionTable {
            table_id,
            selected: row.named().clone(),
            source: row.source,
            name: row.target,
            folder: String::new(),
            key: key.into_iter().map(|(_, column)| column).collect(),
            files: Vec::new(),
            others: 0,
            left_out: None,
        };
        let read = match session.known_table(table_id, snapshot.schema_version) {
            Ok(Some(known)) => {
                table.folder.clone_from(&known.folder);
                read_table(session, &mut table)
            }
            Ok(None) => Err(Error::new(ErrorKind::Table, "it was dropped by somebody else")),
            Err(error) => Err(error),
        };
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Table => {
                table.files.clear();
                table.left_out = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        view.tables.push(table);
    }
    Ok(view)
}

fn read_table(session: &Session, table: &mut CompactionTable) -> Result<()> {
    let table_id = table.table_id;
    refuse_inlined(session, &[table_id])?;
    let sql = format!(
        "SELECT begin_snapshot FROM {}.ducklake_schema_versions WHERE table_id = {table_id} ORDER BY begin_snapshot",
        session.tables()
    );
    let schemas = session.read(&sql, |row| row.get::<_, i64>(0))?;
    let mut rows = read_files(session, &format!("f.table_id = {table_id}"))?.into_iter().peekable();
    while let Some(row) = rows.next() {
        let mut deletes = 1;
        while rows.next_if(|next| next.file.data_file_id == row.file.data_file_id).is_some() {
            deletes += 1;
        }
        // Two delete files: one of them is history that only it tells.
        match row.assemble(&table.folder, &schemas)?.filter(|_| deletes == 1) {
            Some(file) => table.files.push(file),
            None => table.others += 1,
        }
    }
    Ok(())
}

/// A live data file with one of its delete files, paths not yet put together.
struct FileRow {
    file: SourceFile,
    path: StoredPath,
    plain: bool,
    delete: Option<(LiveDelete, StoredPath)>,
}

impl FileRow {
    /// `None` where a compaction can't replace it.
    fn assemble(self, folder: &str, schemas: &[i64]) -> Result<Option<SourceFile>> {
        if !self.plain {
            return Ok(None);
        }
        let delete = match self.delete {
            Some((delete, path)) => Some(LiveDelete { path: below_data_path(folder, &path)?, ..delete }),
            None => None,
        };
        let schema = schemas.partition_point(|begin| *begin <= self.file.begin_snapshot);
        Ok(Some(SourceFile { path: below_data_path(folder, &self.path)?, schema, delete, ..self.file }))
    }
}

fn read_files(session: &Session, condition: &str) -> Result<Vec<FileRow>> {
    let tables = session.tables();
    let sql = format!(
        "SELECT f.data_file_id, f.path, f.path_is_relative, f.record_count, f.file_size_bytes, f.row_id_start, \
         f.begin_snapshot, (f.mapping_id IS NULL AND f.partition_id IS NULL AND f.encryption_key IS NULL \
         AND f.file_format = 'parquet' AND (d.delete_file_id IS NULL OR (d.format = 'parquet' AND d.end_snapshot IS NULL \
         AND d.encryption_key IS NULL))) AS plain, \
         d.delete_file_id, d.path AS delete_path, d.path_is_relative AS delete_relative, d.delete_count, \
         d.begin_snapshot AS delete_begin, d.partial_max \
         FROM {tables}.ducklake_data_file f LEFT JOIN {tables}.ducklake_delete_file d ON d.data_file_id = f.data_file_id \
         WHERE {condition} AND f.end_snapshot IS NULL ORDER BY f.begin_snapshot, f.data_file_id"
    );
    session.read(&sql, |row| {
        let count = |index| row.get::<_, i64>(index).map(|count| count.max(0) as u64);
        let delete = match row.get::<_, Option<i64>>(8)? {
            None => None,
            Some(delete_file_id) => {
                let delete = LiveDelete {
                    delete_file_id,
                    path: String::new(),
                    rows: count(11)?,
                    begin_snapshot: row.get(12)?,
                    partial_max: row.get(13)?,
                };
                Some((delete, (row.get(9)?, row.get(10)?)))
            }
        };
        let file = SourceFile {
            data_file_id: row.get(0)?,
            path: String::new(),
            rows: count(3)?,
            bytes: count(4)?,
            row_id_start: row.get(5)?,
            begin_snapshot: row.get(6)?,
            schema: 0,
            delete: None,
        };
        Ok(FileRow { file, path: (row.get(1)?, row.get(2)?), plain: row.get(7)?, delete })
    })
}

/// The oldest snapshot that was not expired.
pub(super) fn oldest_snapshot(session: &Session) -> Result<i64> {
    let sql = format!("SELECT min(snapshot_id) FROM {}.ducklake_snapshot", session.tables());
    let oldest = session.read(&sql, |row| row.get::<_, Option<i64>>(0))?;
    oldest.first().copied().flatten().ok_or_else(|| Error::new(ErrorKind::Internal, "the lake has no snapshot"))
}

fn schema_at(session: &Session, table_id: i64, snapshot: i64) -> Result<CompactionSchema> {
    let sql = format!(
        "SELECT column_id, column_name, column_type, parent_column, initial_default FROM {}.ducklake_column \
         WHERE table_id = {table_id} AND begin_snapshot <= {snapshot} AND (end_snapshot IS NULL OR end_snapshot > {snapshot}) \
         ORDER BY column_order",
        session.tables()
    );
    let rows = session.read(&sql, |row| {
        let column = CatalogColumn { id: row.get(0)?, name: row.get(1)?, lake_type: row.get(2)?, parent: row.get(3)? };
        Ok((column, row.get::<_, Option<String>>(4)?))
    })?;
    let (columns, defaults): (Vec<CatalogColumn>, Vec<Option<String>>) = rows.into_iter().unzip();
    let mut fields: Vec<FieldRef> = Vec::with_capacity(columns.len() + 2);
    let mut names = HashMap::new();
    for (column, default) in columns.iter().zip(defaults).filter(|(column, _)| column.parent.is_none()) {
        let Some((column_type, id)) = column_type(column, &columns) else {
            return Err(Error::new(
                ErrorKind::Table,
                format!("the column {} has the type {}, which is not rewritten here", column.name, column.lake_type),
            ));
        };
        // DuckLake says NULL by that word.
        let default = default.filter(|default| default != "NULL");
        names.insert(column.name.to_lowercase(), column.id);
        let data_type = with_element_ids(&column_type.arrow(), &id);
        fields.push(with_default(Field::new(&column.name, data_type, true), &id, default.as_ref()));
    }
    for (name, id) in [("_ducklake_internal_row_id", ROW_ID), ("_ducklake_internal_snapshot_id", SNAPSHOT_ID)] {
        let id = FieldId { column_id: id.into(), element: None };
        fields.push(with_default(Field::new(name, DataType::Int64, true), &id, None));
    }
    Ok(CompactionSchema { schema: Arc::new(Schema::new(fields)), names })
}

/// The type that a column's name in DuckLake's metadata says: the other way round than `ducklake_type`.
fn column_type(column: &CatalogColumn, columns: &[CatalogColumn]) -> Option<(ColumnType, FieldId)> {
    let mut element = None;
    let column_type = match column.lake_type.as_str() {
        "boolean" => ColumnType::Bool,
        "int16" => ColumnType::Int2,
        "int32" => ColumnType::Int4,
        "int64" => ColumnType::Int8,
        "uint32" => ColumnType::Oid,
        "uint64" => ColumnType::UInt8,
        "float32" => ColumnType::Float4,
        "float64" => ColumnType::Float8,
        "varchar" => ColumnType::Text,
        "json" => ColumnType::Json,
        "blob" => ColumnType::Bytes,
        "date" => ColumnType::Date,
        "time" => ColumnType::Time,
        "timestamp" => ColumnType::Timestamp,
        "timestamptz" => ColumnType::TimestampTz,
        "uuid" => ColumnType::Uuid,
        "list" => {
            let child = columns.iter().find(|child| child.parent == Some(column.id))?;
            let (inner, id) = column_type(child, columns)?;
            element = Some(Box::new(id));
            ColumnType::List(Box::new(inner))
        }
        decimal => {
            let digits = decimal.strip_prefix("decimal(")?.strip_suffix(')')?;
            let (precision, scale) = digits.split_once(',')?;
            ColumnType::Decimal { precision: precision.trim().parse().ok()?, scale: scale.trim().parse().ok()? }
        }
    };
    Some((column_type, FieldId { column_id: column.id, element }))
}

#[cfg(test)]
mod tests {
    use super::super::table::ducklake_type;
    use super::*;

    #[test]
    fn types_are_read_as_they_are_written() {
        use ColumnType::*;
        let list = List(Box::new(Decimal { precision: 10, scale: 2 }));
        for wanted in [Bool, Int2, Int4, Int8, Oid, Float4, Float8, Text, Json, Bytes, Date, Time, Timestamp] {
            assert_eq!(read(&wanted), Some(wanted));
        }
        for wanted in [TimestampTz, Uuid, Decimal { precision: 38, scale: 0 }, list] {
            assert_eq!(read(&wanted), Some(wanted));
        }
        assert_eq!(column_type(&column(1, "struct", None), &[]).map(|(t, _)| t), None);
    }

    fn column(id: i64, lake_type: &str, parent: Option<i64>) -> CatalogColumn {
        CatalogColumn { id, name: format!("c{id}"), lake_type: lake_type.into(), parent }
    }

    fn read(wanted: &ColumnType) -> Option<ColumnType> {
        let mut columns = vec![column(1, &ducklake_type(wanted), None)];
        if let ColumnType::List(element) = wanted {
            columns.push(column(2, &ducklake_type(element), Some(1)));
        }
        column_type(&columns[0], &columns).map(|(found, _)| found)
    }
}
