//! Tables of the lake: where their files lie, which columns they have, and the Arrow schema of what is written to them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use duckpipe_storage::INITIAL_DEFAULT;
use serde::{Deserialize, Serialize};

use super::Lake;
use super::session::Session;
use super::table_row::TableRow;
use crate::batch::layout::{ColumnType, TableLayout};
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::TableName;

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

impl Lake {
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
}
