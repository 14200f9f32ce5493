//! Changes of a table's columns, made by the commit that brings the first rows which need them.
//!
//! What is written is what DuckLake's own ALTER TABLE writes. A column that changes is a new row under its old id, from the
//! commit's snapshot on; the old row ends there, so that time travel shows the old column. All changes of one commit are one
//! new version of the lake's schema.

use std::collections::{HashMap, HashSet};

use super::Lake;
use super::files::id_list;
use super::script::text;
use super::session::Session;
use super::table::{CatalogColumn, FieldId, LakeColumn, catalog_columns, ducklake_type};
use crate::batch::layout::ColumnType;
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::TableName;
use crate::sql::literal;

/// How a commit changes the columns of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Alteration {
    /// The changes, in the order in which they are made.
    pub changes: Vec<ColumnChange>,
    /// The columns that duckpipe writes from then on.
    pub columns: Vec<LakeColumn>,
    /// The table has another name from then on.
    pub name: Option<Renamed>,
}

/// What a table is called from a commit on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The source's table.
    pub source: TableName,
    /// The lake's table. Its schema is there.
    pub target: TableName,
}

/// One change of a table's columns.
#[derive(Clone, Debug, PartialEq)]
pub enum ColumnChange {
    /// A new column, behind all others but where it takes the place of one.
    Add {
        /// Ids that no column of the table had before: see [`Lake::next_column_id`].
        id: FieldId,
        /// Its name.
        name: String,
        /// Its type.
        column_type: ColumnType,
        /// The value of all rows that are there already, as DuckDB prints it; `None`: NULL. A list has none.
        shown: Option<String>,
        /// The id of a column that goes, whose place among the others it takes.
        instead_of: Option<i64>,
    },
    /// The column goes, with what is nested in it.
    Drop {
        /// Its id.
        column_id: i64,
    },
    /// The column gets another name.
    Rename {
        /// Its id.
        column_id: i64,
        /// The new name.
        name: String,
    },
    /// The column gets a type that holds all values of the one before.
    Widen {
        /// Its id.
        column_id: i64,
        /// The new type.
        column_type: ColumnType,
    },
}

impl FieldId {
    /// The ids of a new column of this type, from `next` on, which is raised past them.
    pub fn of_new(column_type: &ColumnType, next: &mut i64) -> FieldId {
        let column_id = *next;
        *next += 1;
        let element = match column_type {
            ColumnType::List(element) => Some(Box::new(FieldId::of_new(element, next))),
            _ => None,
        };
        FieldId { column_id, element }
    }
}

impl Lake {
    /// The least id that no column of the table ever had. It is another commit's where one comes in between; then the table stops.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn next_column_id(&self, table_id: i64) -> Result<i64> {
        self.run(move |session| next_column_id(session, table_id)).await
    }

    /// Whether the lake's table is as an alteration makes it: its commit got in, though its answer did not come.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn is_altered(&self, pipeline: &str, table_id: i64, alteration: &Alteration) -> Result<bool> {
        let columns = self.run(move |session| catalog_columns(session, table_id)).await?;
        if !is_made(&columns, &alteration.changes) {
            return Ok(false);
        }
        let Some(name) = &alteration.name else { return Ok(true) };
        let rows = self.tables(pipeline).await?;
        Ok(rows.iter().any(|row| row.table_id == Some(table_id) && row.target == name.target))
    }
}

/// Whether columns are what all the changes make of them.
fn is_made(columns: &[CatalogColumn], changes: &[ColumnChange]) -> bool {
    let (mut names, mut types, mut gone) = (HashMap::new(), HashMap::new(), HashSet::new());
    for change in changes {
        match change {
            ColumnChange::Add { id, name, column_type, .. } => {
                names.insert(id.column_id, name);
                types.insert(id.column_id, column_type);
            }
            ColumnChange::Drop { column_id } => drop(gone.insert(*column_id)),
            ColumnChange::Rename { column_id, name } => drop(names.insert(*column_id, name)),
            ColumnChange::Widen { column_id, column_type } => drop(types.insert(*column_id, column_type)),
        }
    }
    let find = |id: &i64| columns.iter().find(|column| column.id == *id);
    let is_there = |id: &&i64| !gone.contains(*id);
    gone.iter().all(|id| find(id).is_none())
        && names
            .iter()
            .filter(|(id, _)| is_there(id))
            .all(|(id, name)| find(id).is_some_and(|column| column.name == **name))
        && types
            .iter()
            .filter(|(id, _)| is_there(id))
            .all(|(id, wanted)| find(id).is_some_and(|column| column.lake_type == ducklake_type(wanted)))
}

pub(super) fn next_column_id(session: &Session, table_id: i64) -> Result<i64> {
    let tables = session.tables();
    let sql = format!(
        "SELECT CAST(coalesce(max(column_id), 0) + 1 AS BIGINT) AS next FROM {tables}.ducklake_column WHERE table_id = {table_id}"
    );
    Ok(session.read(&sql, |row| row.get::<_, i64>(0))?.into_iter().next().unwrap_or(1))
}

/// A table's columns after an alteration, and the statements that make them so.
pub(super) struct Altered {
    pub(super) columns: Vec<CatalogColumn>,
    pub(super) statements: Vec<String>,
}

/// Where an alteration takes place.
pub(super) struct Place<'a> {
    /// The catalog's tables, as SQL names them.
    pub(super) tables: &'a str,
    pub(super) table_id: i64,
    /// The commit's snapshot.
    pub(super) snapshot: i64,
}

/// Applies the changes to `before`, the table's live columns. `next` is the least id that no column of the table ever had.
///
/// # Errors
/// [`ErrorKind::Table`] where the columns are not those that the changes are made for, the ids of a new one are taken, or two get one
/// name.
pub(super) fn alter(
    place: &Place<'_>,
    before: &[CatalogColumn],
    next: i64,
    changes: &[ColumnChange],
) -> Result<Altered> {
    let mut columns = before.to_vec();
    let (mut shown, mut places) = (HashMap::new(), HashMap::new());
    for change in changes {
        match change {
            ColumnChange::Add { id, name, column_type, shown: value, instead_of } => {
                if id.column_id < next {
                    let what = format!(
                        "the column id {} of the lake's table is taken already, by somebody else",
                        id.column_id
                    );
                    return Err(taken(what));
                }
                nest(&mut columns, id, None, name, column_type);
                shown.extend(value.clone().map(|value| (id.column_id, value)));
                places.extend(instead_of.map(|old| (id.column_id, old)));
            }
            ColumnChange::Drop { column_id } => {
                present(&mut columns, *column_id)?;
                let mut gone = HashSet::from([*column_id]);
                // What is nested in a column comes behind it.
                columns.retain(|column| {
                    let goes = gone.contains(&column.id) || column.parent.is_some_and(|parent| gone.contains(&parent));
                    if goes {
                        gone.insert(column.id);
                    }
                    !goes
                });
            }
            ColumnChange::Rename { column_id, name } => present(&mut columns, *column_id)?.name.clone_from(name),
            ColumnChange::Widen { column_id, column_type } => {
                present(&mut columns, *column_id)?.lake_type = ducklake_type(column_type);
            }
        }
    }
    refuse_namesakes(&columns)?;
    let statements = statements(place, before, &columns, (&shown, &places));
    Ok(Altered { columns, statements })
}

/// What no other try mends.
fn taken(what: String) -> Error {
    Error::new(ErrorKind::Table, what).remedy("copy the table anew: `duckpipe tables resync`").mended_by_resync()
}

fn present(columns: &mut [CatalogColumn], column_id: i64) -> Result<&mut CatalogColumn> {
    columns
        .iter_mut()
        .find(|column| column.id == column_id)
        .ok_or_else(|| taken(format!("column {column_id} of the lake's table was dropped by somebody else")))
}

fn nest(columns: &mut Vec<CatalogColumn>, id: &FieldId, parent: Option<i64>, name: &str, column_type: &ColumnType) {
    let lake_type = ducklake_type(column_type);
    columns.push(CatalogColumn { id: id.column_id, name: name.to_owned(), lake_type, parent });
    if let (ColumnType::List(element), Some(element_id)) = (column_type, &id.element) {
        nest(columns, element_id, Some(id.column_id), "element", element);
    }
}

/// Names in a lake are case-insensitive.
fn refuse_namesakes(columns: &[CatalogColumn]) -> Result<()> {
    let mut names = HashSet::new();
    match columns.iter().find(|column| column.parent.is_none() && !names.insert(column.name.to_lowercase())) {
        None => Ok(()),
        Some(column) => Err(Error::new(ErrorKind::Table, format!("two columns are called {:?} now", column.name))
            .remedy("names in the lake are case-insensitive: put one of them into `exclude_columns`")),
    }
}

const ROW: &str = "column_id, begin_snapshot, end_snapshot, table_id, column_order, column_name, column_type, initial_default, \
     default_value, nulls_allowed, parent_column, default_value_type, default_value_dialect";

fn statements(
    place: &Place<'_>,
    before: &[CatalogColumn],
    after: &[CatalogColumn],
    (shown, places): (&HashMap<i64, String>, &HashMap<i64, i64>),
) -> Vec<String> {
    let Place { tables, table_id, snapshot } = place;
    let mut statements = Vec::new();
    let later = |old: &CatalogColumn| after.iter().find(|new| new.id == old.id);
    let ended = before.iter().filter(|old| later(old) != Some(old)).map(|old| old.id);
    let ended = id_list(ended);
    if !ended.is_empty() {
        statements.push(format!(
            "UPDATE {tables}.ducklake_column SET end_snapshot = {snapshot} \
             WHERE table_id = {table_id} AND end_snapshot IS NULL AND column_id IN ({ended})"
        ));
    }
    for (old, new) in before.iter().filter_map(|old| Some((old, later(old)?))).filter(|(old, new)| old != new) {
        statements.push(format!(
            "INSERT INTO {tables}.ducklake_column ({ROW}) SELECT column_id, {snapshot}, NULL, table_id, column_order, {}, {}, \
             initial_default, default_value, nulls_allowed, parent_column, default_value_type, default_value_dialect \
             FROM {tables}.ducklake_column WHERE table_id = {table_id} AND column_id = {} AND end_snapshot = {snapshot}",
            literal(&new.name),
            literal(&new.lake_type),
            old.id
        ));
        if old.lake_type == "float32" && new.lake_type != old.lake_type {
            // Its bounds are texts of the narrow type: 0.1 there is more than 0.1 here.
            statements.extend(["ducklake_file_column_stats", "ducklake_table_column_stats"].map(|stats| {
                format!("DELETE FROM {tables}.{stats} WHERE table_id = {table_id} AND column_id = {}", old.id)
            }));
        }
    }
    let added = after.iter().filter(|new| !before.iter().any(|old| old.id == new.id));
    let added: Vec<String> = added.map(|new| row(place, new, shown.get(&new.id), places.get(&new.id))).collect();
    if !added.is_empty() {
        statements.push(format!("INSERT INTO {tables}.ducklake_column ({ROW}) VALUES {}", added.join(", ")));
    }
    statements
}

/// A new column's row. Its place among the columns is its id, or that of the column that it stands for.
fn row(place: &Place<'_>, column: &CatalogColumn, shown: Option<&String>, instead_of: Option<&i64>) -> String {
    let id = column.id;
    let order = instead_of.map_or_else(
        || id.to_string(),
        |old| {
            let Place { tables, table_id, .. } = place;
            format!(
                "(SELECT max(column_order) FROM {tables}.ducklake_column WHERE table_id = {table_id} AND column_id = {old})"
            )
        },
    );
    let default = shown.map_or("NULL", String::as_str);
    format!(
        "({id}, {}, NULL, {}, {order}, {}, {}, {}, {}, true, {}, {}, 'duckdb')",
        place.snapshot,
        place.table_id,
        literal(&column.name),
        literal(&column.lake_type),
        text(shown.map(String::as_str)),
        literal(default),
        column.parent.map_or_else(|| "NULL".into(), |parent| parent.to_string()),
        literal(if column.lake_type == "list" { "" } else { "literal" }),
    )
}
