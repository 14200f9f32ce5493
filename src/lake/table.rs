//! A pipeline's tables: their rows in the catalog and their columns in the lake.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use duckpipe_storage::INITIAL_DEFAULT;
use serde::{Deserialize, Serialize};

use super::Lake;
use super::files::id_list;
use super::pipeline::{self, Fence, parse_lsn};
use super::session::Session;
use crate::batch::layout::{ColumnType, TableLayout};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::source::table::TableName;
use crate::sql::literal;

/// Where a table is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableState {
    /// Not begun.
    #[default]
    Pending,
    /// Its first copy runs.
    Snapshot,
    /// Copied, on its way to its pipeline's position.
    Catchup,
    /// At its pipeline's position.
    Streaming,
    /// Stopped, at its last consistent rows.
    Errored,
    /// The source dropped it: its last rows stay.
    Dropped,
    /// Somebody wants it to stand still, or the configuration does not name it: its rows stay.
    Paused,
}

impl TableState {
    /// The state's name in the catalog and in `status`.
    pub fn name(self) -> &'static str {
        match self {
            TableState::Pending => "pending",
            TableState::Snapshot => "snapshot",
            TableState::Catchup => "catchup",
            TableState::Streaming => "streaming",
            TableState::Errored => "errored",
            TableState::Dropped => "dropped",
            TableState::Paused => "paused",
        }
    }
}

impl fmt::Display for TableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TableState {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        use TableState::{Catchup, Dropped, Errored, Paused, Pending, Snapshot, Streaming};
        [Pending, Snapshot, Catchup, Streaming, Errored, Dropped, Paused]
            .into_iter()
            .find(|state| state.name() == name)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{name:?} is no state of a table")))
    }
}

/// What somebody wants done with a table. Whoever runs its pipeline sees to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// A fresh copy of it.
    Resync,
    /// It shall stand still.
    Pause,
    /// It shall not be followed any more; the lake's table stays, and is nobody's.
    Remove,
    /// As [`Wanted::Remove`], and the lake's table shall go too.
    Drop,
}

impl Wanted {
    const ALL: [Wanted; 4] = [Wanted::Resync, Wanted::Pause, Wanted::Remove, Wanted::Drop];

    /// The name in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Wanted::Resync => "resync",
            Wanted::Pause => "pause",
            Wanted::Remove => "remove",
            Wanted::Drop => "drop",
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A row of `duckpipe_table`, with what `status` shows.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRow {
    /// The pipeline's name.
    pub pipeline: String,
    /// The source table's oid.
    pub source_oid: u32,
    /// The source table, as it is called now.
    pub source: TableName,
    /// What it was called when the configuration selected it, where that is something else.
    pub selected: Option<TableName>,
    /// The lake's table.
    pub target: TableName,
    /// DuckLake's `table_id`; `None` while the lake's table is being made.
    pub table_id: Option<i64>,
    /// How often the lake's table was made anew.
    pub generation: i64,
    /// Where it is in its life.
    pub state: TableState,
    /// The source position that the lake's table shows: its pipeline's where it is streaming.
    pub lsn: Option<Lsn>,
    /// The columns that duckpipe writes.
    pub columns: Vec<LakeColumn>,
    /// Rows copied by snapshots.
    pub rows_copied: u64,
    /// Row changes applied from the WAL.
    pub rows_applied: u64,
    /// Values set to NULL because the lake's type can't hold them.
    pub values_nulled: u64,
    /// The last commit with data of this table, in microseconds since 1970.
    pub last_commit_at: Option<i64>,
    /// Why it is errored, waits, or is paused where nobody asked for that.
    pub error: Option<String>,
    /// The slot that brings it level with the others, where that is not its pipeline's.
    pub slot: Option<String>,
    /// What somebody wants done with it.
    pub wanted: Option<Wanted>,
}

impl TableRow {
    /// The name that the configuration selected it by.
    pub fn named(&self) -> &TableName {
        self.selected.as_ref().unwrap_or(&self.source)
    }

    /// The names that the configuration may select it by: [`TableRow::named`] as long as an entry has that, else what it is called now.
    pub fn names(&self) -> [&TableName; 2] {
        [self.named(), &self.source]
    }

    /// Whether the lake has a table of it, or had one in whose place another one is being made.
    pub fn was_made(&self) -> bool {
        self.table_id.is_some() || !self.columns.is_empty()
    }

    /// Whether the source's table of this oid is that of another one of the pipeline's rows. A table that was copied under another name once
    /// more has two: the later one counts.
    pub fn is_anothers(&self, rows: &[TableRow], oid: u32) -> bool {
        rows.iter().any(|other| {
            other.source_oid == oid
                && other.state != TableState::Dropped
                && other.table_id.is_some()
                && other.table_id != self.table_id
                && (oid != self.source_oid || other.table_id > self.table_id)
        })
    }

    /// Whether the lake's table shows the pipeline's position.
    pub fn follows(&self) -> bool {
        self.state == TableState::Streaming || self.state == TableState::Catchup && self.slot.is_none()
    }
}

/// A column of the lake and the source column that fills it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LakeColumn {
    /// `pg_attribute.attnum` in the source.
    pub attnum: i16,
    /// Its place in the table's key, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u16>,
    /// DuckLake's ids.
    #[serde(flatten)]
    pub id: FieldId,
}

/// DuckLake's `column_id`s of a column and of what is nested in it; they are the Parquet field ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldId {
    /// The column's id.
    pub column_id: i64,
    /// A list's element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<Box<FieldId>>,
}

/// A table of the lake as a writer needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LakeTable {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// The name in the lake.
    pub name: TableName,
    /// The folder of its files below the data path, without a slash at its end: `public/orders`.
    pub folder: String,
    /// Its columns, in the order of the layout that it was made from.
    pub columns: Vec<LakeColumn>,
    /// What rows show that are older than a column, by the column's id, as DuckDB prints it. Not among them: NULL.
    pub shown: HashMap<i64, String>,
}

/// The key in a field's metadata under which the Parquet writer looks for the field id.
const FIELD_ID: &str = "PARQUET:field_id";

impl LakeTable {
    /// The Arrow schema of the layout's columns in the lake, with the lake's field ids: what the table's Parquet files have.
    pub fn schema(&self, layout: &TableLayout) -> Result<SchemaRef> {
        if layout.lake_columns().count() != self.columns.len() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "{}: {} columns in the layout, {} in the lake",
                    self.name,
                    layout.lake_columns().count(),
                    self.columns.len()
                ),
            ));
        }
        let fields = layout.lake_columns().zip(&self.columns).map(|((name, _, column_type), lake)| {
            let data_type = with_element_ids(&column_type.arrow(), &lake.id);
            with_default(Field::new(name, data_type, true), &lake.id, self.shown.get(&lake.id.column_id))
        });
        Ok(Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>())))
    }

    /// The lake's ids of the layout's key columns.
    pub fn key_ids(&self, layout: &TableLayout) -> Vec<i64> {
        layout.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.id.column_id).collect()
    }
}

fn with_id(field: Field, id: &FieldId) -> FieldRef {
    with_default(field, id, None)
}

/// The field with its id, and with what rows show that are older than it.
pub(super) fn with_default(field: Field, id: &FieldId, shown: Option<&String>) -> FieldRef {
    let mut metadata = HashMap::from([(FIELD_ID.to_owned(), id.column_id.to_string())]);
    metadata.extend(shown.map(|text| (INITIAL_DEFAULT.to_owned(), text.clone())));
    Arc::new(field.with_metadata(metadata))
}

pub(super) fn with_element_ids(data_type: &DataType, id: &FieldId) -> DataType {
    match (data_type, &id.element) {
        (DataType::List(element), Some(element_id)) => {
            let inner = with_element_ids(element.data_type(), element_id);
            DataType::List(with_id(Field::new(element.name(), inner, true), element_id))
        }
        _ => data_type.clone(),
    }
}

/// The name that DuckLake's metadata gives a type.
pub(super) fn ducklake_type(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Bool => "boolean".into(),
        ColumnType::Int2 => "int16".into(),
        ColumnType::Int4 => "int32".into(),
        ColumnType::Int8 => "int64".into(),
        ColumnType::Oid => "uint32".into(),
        ColumnType::UInt8 => "uint64".into(),
        ColumnType::Float4 => "float32".into(),
        ColumnType::Float8 => "float64".into(),
        ColumnType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        ColumnType::Text => "varchar".into(),
        ColumnType::Json => "json".into(),
        ColumnType::Bytes => "blob".into(),
        ColumnType::Date => "date".into(),
        ColumnType::Time => "time".into(),
        ColumnType::Timestamp => "timestamp".into(),
        ColumnType::TimestampTz => "timestamptz".into(),
        ColumnType::Uuid => "uuid".into(),
        ColumnType::List(_) => "list".into(),
    }
}

/// A live row of `ducklake_column`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CatalogColumn {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) lake_type: String,
    pub(super) parent: Option<i64>,
}

/// The lake's current columns of a table, nested ones included.
pub(super) fn catalog_columns(session: &Session, table_id: i64) -> Result<Vec<CatalogColumn>> {
    let sql = format!(
        "SELECT column_id, column_name, column_type, parent_column FROM {}.ducklake_column \
         WHERE table_id = {table_id} AND end_snapshot IS NULL ORDER BY column_order",
        session.tables()
    );
    session.read(&sql, |row| {
        Ok(CatalogColumn { id: row.get(0)?, name: row.get(1)?, lake_type: row.get(2)?, parent: row.get(3)? })
    })
}

/// What rows show that are older than a column, by the ids of the table's current columns. DuckLake says NULL by that word.
pub(super) fn initial_defaults(session: &Session, table_id: i64) -> Result<HashMap<i64, String>> {
    let sql = format!(
        "SELECT column_id, initial_default FROM {}.ducklake_column WHERE table_id = {table_id} AND end_snapshot IS NULL \
         AND parent_column IS NULL AND initial_default IS NOT NULL AND initial_default <> 'NULL'",
        session.tables()
    );
    Ok(session.read(&sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect())
}

/// The ids of a layout's columns, or which column the lake's table does not have as the layout wants it.
pub(super) fn match_columns(
    layout: &TableLayout,
    columns: &[CatalogColumn],
) -> std::result::Result<Vec<LakeColumn>, String> {
    let matched: Vec<LakeColumn> = layout
        .lake_columns()
        .enumerate()
        .map(|(index, (name, attnum, column_type))| {
            let lower = name.to_lowercase();
            let found = columns.iter().find(|column| column.parent.is_none() && column.name.to_lowercase() == lower);
            let id = found.and_then(|found| field_id(column_type, found, columns));
            id.map(|id| LakeColumn { attnum, key: layout.key_place(index), id }).ok_or_else(|| name.to_owned())
        })
        .collect::<std::result::Result<_, _>>()?;
    match columns.iter().filter(|column| column.parent.is_none()).count() == matched.len() {
        true => Ok(matched),
        false => Err("the number of columns".into()),
    }
}

pub(super) fn field_id(wanted: &ColumnType, found: &CatalogColumn, columns: &[CatalogColumn]) -> Option<FieldId> {
    if found.lake_type != ducklake_type(wanted) {
        return None;
    }
    let element = match wanted {
        ColumnType::List(element) => {
            let child = columns.iter().find(|column| column.parent == Some(found.id))?;
            Some(Box::new(field_id(element, child, columns)?))
        }
        _ => None,
    };
    Some(FieldId { column_id: found.id, element })
}

/// Where the lake's files lie, as its catalog says, with a slash at the end.
pub(super) fn data_path(session: &Session) -> Result<String> {
    let sql = format!("SELECT value FROM {}.ducklake_metadata WHERE key = 'data_path'", session.tables());
    let path = session.read(&sql, |row| row.get::<_, String>(0))?.into_iter().next().unwrap_or_default();
    Ok(format!("{}/", path.trim_end_matches('/')))
}

/// The folder of a live table below the data path, and its name; `None` where the table is gone.
pub(super) fn table_folder(session: &Session, table_id: i64) -> Result<Option<(TableName, String)>> {
    let tables = session.tables();
    let sql = format!(
        "SELECT s.schema_name, t.table_name, s.path AS schema_path, \
         s.path_is_relative AS schema_relative, t.path AS table_path, t.path_is_relative AS table_relative \
         FROM {tables}.ducklake_table t JOIN {tables}.ducklake_schema s ON s.schema_id = t.schema_id \
         WHERE t.table_id = {table_id} AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL"
    );
    let rows = session.read(&sql, |row| {
        let name = TableName { schema: row.get(0)?, table: row.get(1)? };
        Ok((
            name,
            (row.get::<_, String>(2)?, row.get::<_, bool>(3)?),
            (row.get::<_, String>(4)?, row.get::<_, bool>(5)?),
        ))
    })?;
    let Some((name, (schema, below_root), (table, below_schema))) = rows.into_iter().next() else { return Ok(None) };
    let folder = match (below_root, below_schema) {
        (true, true) => Some(schema + &table),
        // It has moved to another schema; its files have not.
        (_, false) => table.strip_prefix(&data_path(session)?).map(str::to_owned),
        (false, true) => None,
    };
    match folder {
        Some(folder) => Ok(Some((name, folder.trim_end_matches('/').to_owned()))),
        None => Err(Error::new(
            ErrorKind::Table,
            format!("{name}: the table's files lie outside the lake's data path, where duckpipe does not write"),
        )),
    }
}

/// A live table of the lake, as it is until the lake's schema changes.
#[derive(Debug)]
pub(super) struct KnownTable {
    pub(super) name: TableName,
    /// Below the data path, without a slash at its end.
    pub(super) folder: String,
    pub(super) columns: Vec<CatalogColumn>,
}

impl Session {
    /// The table as of a schema version of the lake, read once; `None` where it is gone.
    pub(super) fn known_table(&self, table_id: i64, schema_version: i64) -> Result<Option<Arc<KnownTable>>> {
        let mut known = self.known_tables.borrow_mut();
        if known.0 != schema_version {
            *known = (schema_version, HashMap::new());
        }
        if let Some(table) = known.1.get(&table_id) {
            return Ok(Some(table.clone()));
        }
        let Some((name, folder)) = table_folder(self, table_id)? else { return Ok(None) };
        let table = Arc::new(KnownTable { name, folder, columns: catalog_columns(self, table_id)? });
        known.1.insert(table_id, table.clone());
        Ok(Some(table))
    }
}

/// Columns of `duckpipe_table` in the order that [`TableRow`] is read in.
const ROW: &str = "t.pipeline, t.source_oid, t.source_schema, t.source_table, t.target_schema, t.target_table, t.table_id, \
     t.generation, t.state, CASE WHEN t.state = 'streaming' THEN p.lsn ELSE t.lsn END AS applied, t.columns, t.rows_copied, \
     t.rows_applied, t.values_nulled, CAST(extract(epoch FROM t.last_commit_at) * 1000000 AS BIGINT) AS committed, t.error, t.slot, \
     t.wanted, t.selected_schema, t.selected_table";

/// Rows of `duckpipe_table` that `condition` (on `t` and `p`) holds for.
pub(super) fn read_rows(session: &Session, condition: &str) -> Result<Vec<TableRow>> {
    let tables = session.tables();
    let sql = format!(
        "SELECT {ROW} FROM {tables}.duckpipe_table t JOIN {tables}.duckpipe_pipeline p ON p.name = t.pipeline \
         WHERE {condition} ORDER BY t.target_schema, t.target_table"
    );
    let rows = session.read(&sql, |row| {
        let texts = (row.get::<_, String>(8)?, row.get::<_, Option<String>>(9)?, row.get::<_, String>(10)?);
        let wanted = row.get::<_, Option<String>>(17)?;
        let selected = row.get::<_, Option<String>>(18)?.zip(row.get::<_, Option<String>>(19)?);
        let count = |index| row.get::<_, i64>(index).map(|count| count.max(0) as u64);
        let read = TableRow {
            pipeline: row.get(0)?,
            source_oid: row.get::<_, i64>(1)? as u32,
            source: TableName { schema: row.get(2)?, table: row.get(3)? },
            selected: selected.map(|(schema, table)| TableName { schema, table }),
            target: TableName { schema: row.get(4)?, table: row.get(5)? },
            table_id: row.get(6)?,
            generation: row.get(7)?,
            state: TableState::Pending,
            lsn: None,
            columns: Vec::new(),
            rows_copied: count(11)?,
            rows_applied: count(12)?,
            values_nulled: count(13)?,
            last_commit_at: row.get(14)?,
            error: row.get(15)?,
            slot: row.get(16)?,
            // What a later program may write there is not for this one.
            wanted: Wanted::ALL.into_iter().find(|known| Some(known.name()) == wanted.as_deref()),
        };
        Ok((read, texts))
    })?;
    rows.into_iter()
        .map(|(row, (state, lsn, columns))| {
            let columns = serde_json::from_str(&columns)
                .because(ErrorKind::Internal, || format!("{}: the columns in duckpipe_table are broken", row.target))?;
            Ok(TableRow { state: state.parse()?, lsn: parse_lsn(lsn)?, columns, ..row })
        })
        .collect()
}

impl Lake {
    /// The pipeline's tables, by name.
    pub async fn tables(&self, pipeline: &str) -> Result<Vec<TableRow>> {
        let condition = format!("t.pipeline = {}", literal(pipeline));
        self.run(move |session| read_rows(session, &condition)).await
    }

    /// As [`Lake::tables`], after whoever is writing the catalog has come to an end: a COMMIT whose answer was lost is among them.
    pub async fn settled_tables(&self, pipeline: &str) -> Result<Vec<TableRow>> {
        let condition = format!("t.pipeline = {}", literal(pipeline));
        self.run(move |session| session.locked_transaction(|session| read_rows(session, &condition))).await
    }

    /// The lake's table of a row, read anew from the catalog.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] where the lake's table was dropped, moved or its columns changed by somebody else.
    pub async fn lake_table(&self, row: &TableRow) -> Result<LakeTable> {
        let row = row.clone();
        self.run(move |session| {
            let gone = |what: &str| {
                Error::new(ErrorKind::Table, format!("{}: {what}", row.target))
                    .remedy("copy the table anew: `duckpipe tables resync`")
            };
            let table_id = row.table_id.ok_or_else(|| gone("the lake's table was never made"))?;
            let (name, folder) = table_folder(session, table_id)?
                .ok_or_else(|| gone("the lake's table was dropped by somebody else"))?;
            let columns = catalog_columns(session, table_id)?;
            let lives = |id: &FieldId| {
                columns.iter().any(|column| column.id == id.column_id)
                    && id.element.as_ref().is_none_or(|e| columns.iter().any(|column| column.id == e.column_id))
            };
            if !row.columns.iter().all(|column| lives(&column.id)) {
                return Err(gone("columns of the lake's table were dropped by somebody else"));
            }
            let shown = initial_defaults(session, table_id)?;
            Ok(LakeTable { table_id, name, folder, columns: row.columns.clone(), shown })
        })
        .await
    }

    /// A fresh copy of these tables begins: they leave every other state, and forget an error.
    pub async fn begin_copy(&self, fence: &Fence, table_ids: &[i64]) -> Result<()> {
        self.set_states(
            fence,
            &format!("table_id IN ({})", id_list(table_ids.iter().copied())),
            TableState::Snapshot,
            ", wanted = NULL",
        )
        .await
    }

    /// The tables that were catching up by the pipeline's own slot are level with the source.
    pub async fn finish_catchup(&self, fence: &Fence) -> Result<()> {
        let which = format!("state = '{}' AND slot IS NULL", TableState::Catchup);
        self.set_states(fence, &which, TableState::Streaming, "").await
    }

    async fn set_states(&self, fence: &Fence, which: &str, state: TableState, more: &'static str) -> Result<()> {
        let (fence, which) = (fence.clone(), which.to_owned());
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET state = '{state}', error = NULL, slot = NULL{more} \
                     WHERE pipeline = {} AND {which}",
                    session.tables(),
                    literal(&fence.pipeline)
                ))
            })
        })
        .await
    }

    /// Stops a table: it keeps its rows and the position at which it stands, and the reason is shown. With `resync` it is to be
    /// copied afresh.
    pub async fn fail_table(&self, fence: &Fence, table_id: i64, error: &str, resync: bool) -> Result<()> {
        let (fence, error) = (fence.clone(), error.to_owned());
        let wanted = if resync { literal(Wanted::Resync.name()) } else { "NULL".to_owned() };
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                let tables = session.tables();
                let pipeline = literal(&fence.pipeline);
                session.write(&format!(
                    "UPDATE {tables}.duckpipe_table SET \
                     lsn = CASE WHEN state = 'streaming' THEN \
                     (SELECT p.lsn FROM {tables}.duckpipe_pipeline p WHERE p.name = {pipeline}) ELSE lsn END, \
                     state = '{}', error = {}, slot = NULL, \
                     wanted = CASE WHEN wanted <> '{}' THEN wanted ELSE {wanted} END \
                     WHERE pipeline = {pipeline} AND table_id = {table_id}",
                    TableState::Errored,
                    literal(&error),
                    Wanted::Resync
                ))
            })
        })
        .await
    }

    /// The source has dropped a table. The lake shows it up to its end where it streamed, else as it stood.
    pub async fn end_table(&self, fence: &Fence, table_id: i64) -> Result<()> {
        let fence = fence.clone();
        self.run(move |session| {
            session.locked_transaction(|session| {
                let row = pipeline::held(session, &fence)?;
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET lsn = CASE WHEN state = '{}' THEN {} ELSE lsn END, state = '{}', slot = NULL, \
                     wanted = NULL, error = NULL WHERE pipeline = {} AND table_id = {table_id}",
                    session.tables(),
                    TableState::Streaming,
                    row.lsn.map_or_else(|| "NULL".to_owned(), |lsn| literal(&lsn.to_string())),
                    TableState::Dropped,
                    literal(&fence.pipeline)
                ))
            })
        })
        .await
    }

    /// Moves a table to another state on its own: no rows, no position. [`Lake::commit`] does it together with rows.
    pub async fn set_table_state(&self, fence: &Fence, table_id: i64, state: TableState) -> Result<()> {
        self.change_own_row(fence, move |tables| {
            format!("UPDATE {tables}.duckpipe_table SET state = '{state}' WHERE table_id = {table_id}")
        })
        .await
    }

    /// Runs a statement whose WHERE clause is narrowed to the pipeline's own rows.
    async fn change_own_row(&self, fence: &Fence, sql: impl FnOnce(&str) -> String + Send + 'static) -> Result<()> {
        let fence = fence.clone();
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                session.write(&format!("{} AND pipeline = {}", sql(&session.tables()), literal(&fence.pipeline)))
            })
        })
        .await
    }
}
