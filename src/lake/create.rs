//! Making a lake's table.
//!
//! Native DDL and direct writes can't share a transaction, so the table's row is written first, without a `table_id`: a
//! process that dies in between leaves a row that says whose the half-made table is.

use std::collections::HashMap;

use super::Lake;
use super::fan_in;
use super::pipeline::{self, Fence};
use super::session::{LAKE, Session};
use super::table::{FieldId, LakeColumn, LakeTable, catalog_columns, data_path, match_columns, table_folder};
use super::table_row::{TableRow, TableState, read_rows};
use crate::batch::layout::TableLayout;
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::failpoint::failpoint;
use crate::source::table::TableName;
use crate::sql::{identifier, literal, qualified};

/// A table that the lake shall have.
#[derive(Clone, Debug)]
pub struct NewTable {
    /// The source table's oid.
    pub source_oid: u32,
    /// The source table.
    pub source: TableName,
    /// The name by which the configuration selects it, where that is another one.
    pub selected: Option<TableName>,
    /// The lake's table.
    pub target: TableName,
    /// The view that shows its rows among those of others, in the schema of `target`.
    pub view: Option<TableName>,
    /// Its columns.
    pub layout: TableLayout,
    /// Take the pipeline's table of that name, also where another source table's rows are in it, and make it anew where its columns are
    /// not the layout's. Without this such a table is an error.
    pub recreate: bool,
}

/// What is to be done after the table's row was written.
enum Plan {
    Use { table_id: i64, columns: Vec<LakeColumn>, generation: i64 },
    Make { drop: Option<TableName>, generation: i64 },
}

impl Lake {
    /// Refuses a target that [`Lake::create_table`] would refuse, and a view that could not be made, before anything is written.
    ///
    /// # Errors
    /// [`ErrorKind::Precondition`] where the target is another pipeline's, or another source table's, or exists and is nobody's.
    pub async fn check_target(&self, pipeline: &str, new: &NewTable) -> Result<()> {
        let (pipeline, new) = (pipeline.to_owned(), new.clone());
        self.run(move |session| {
            claimable(session, &pipeline, &new).map(drop).context(|| format!("the lake's table {}", new.target))?;
            new.view.map_or(Ok(()), |view| fan_in::check(session, &view))
        })
        .await
    }

    /// The lake's table of a row whose source table has `layout` now.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] where it was dropped, or its columns are not the layout's any more.
    pub async fn fitting_table(&self, row: &TableRow, layout: &TableLayout) -> Result<LakeTable> {
        let table = self.lake_table(row).await?;
        let (table_id, layout, row) = (table.table_id, layout.clone(), row.clone());
        let columns = self
            .run(move |session| {
                let differs = |difference: &str| {
                    let what = format!("{} has other columns than when it was copied ({difference})", row.source);
                    Error::new(ErrorKind::Table, what).remedy("copy everything anew: `duckpipe sync --resnapshot`")
                };
                let columns =
                    match_columns(&layout, &catalog_columns(session, table_id)?).map_err(|what| differs(&what))?;
                // A column that was dropped and added anew is another one, whatever its name.
                let filled_by = |id: &FieldId| row.columns.iter().find(|column| column.id == *id).map(|c| c.attnum);
                match columns
                    .iter()
                    .zip(layout.lake_columns())
                    .find(|(column, _)| filled_by(&column.id) != Some(column.attnum))
                {
                    None => Ok(columns),
                    Some((_, (name, ..))) => Err(differs(name)),
                }
            })
            .await?;
        Ok(LakeTable { columns, ..table })
    }

    /// Makes a schema where there is none.
    ///
    /// # Errors
    /// As DuckDB's.
    pub async fn create_schema(&self, schema: &str) -> Result<()> {
        let statement = format!("CREATE SCHEMA IF NOT EXISTS {LAKE}.{}", identifier(schema));
        self.run(move |session| session.batch(&statement)).await
    }

    /// Records a table that can't be made yet, and why. Its row claims the target until it is made.
    ///
    /// # Errors
    /// As [`Lake::check_target`].
    pub async fn claim_table(&self, fence: &Fence, new: &NewTable, why: &str) -> Result<()> {
        let (fence, new, why) = (fence.clone(), new.clone(), literal(why));
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                if claimable(session, &fence.pipeline, &new)?.0.is_none() {
                    insert_row(session, &fence, &new)?;
                }
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET error = {why} WHERE pipeline = {} AND target_schema = {} AND target_table = {} \
                     AND table_id IS NULL",
                    session.tables(),
                    literal(&fence.pipeline),
                    literal(&new.target.schema),
                    literal(&new.target.table)
                ))
            })
        })
        .await
    }

    /// Lets go of a table that was claimed, or begun to be made, and that the source does not have any more. What was made of it goes too,
    /// unless it holds rows: that of an earlier copy stays.
    ///
    /// # Errors
    /// As DuckDB's, and [`ErrorKind::Fenced`].
    pub async fn discard_half_made(&self, fence: &Fence, target: &TableName) -> Result<()> {
        let (fence, target) = (fence.clone(), target.clone());
        self.run(move |session| {
            pipeline::held(session, &fence)?;
            if let Some((table_id, name)) = live_table(session, &target)? {
                let tables = session.tables();
                let files = format!("SELECT count(*) FROM {tables}.ducklake_data_file WHERE table_id = {table_id}");
                if session.read(&files, |row| row.get::<_, i64>(0))?.first().is_none_or(|files| *files > 0) {
                    return Ok(());
                }
                session.batch(&format!("DROP TABLE {LAKE}.{}", qualified(&name.schema, &name.table)))?;
            }
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                session.write(&format!(
                    "DELETE FROM {}.duckpipe_table WHERE pipeline = {} AND target_schema = {} AND target_table = {} AND table_id IS NULL",
                    session.tables(),
                    literal(&fence.pipeline),
                    literal(&target.schema),
                    literal(&target.table)
                ))
            })
        })
        .await
    }

    /// The lake's table for a source table: the pipeline's own one where its columns fit, else a new one. It belongs to the
    /// pipeline from then on, in [`TableState::Pending`] where it is new.
    ///
    /// # Errors
    /// [`ErrorKind::Precondition`] where the target exists and is not this pipeline's; without `recreate`, where it is another source
    /// table's, or differs.
    pub async fn create_table(&self, fence: &Fence, new: &NewTable) -> Result<LakeTable> {
        let (fence, new) = (fence.clone(), new.clone());
        self.run(move |session| {
            let context = || format!("the lake's table {}", new.target);
            let plan = session.locked_transaction(|session| plan(session, &fence, &new)).context(context)?;
            let (table_id, columns, generation) = match plan {
                Plan::Use { table_id, columns, generation } => (table_id, columns, generation),
                Plan::Make { drop, generation } => {
                    let (table_id, columns) = make(session, &new, drop.as_ref()).context(context)?;
                    (table_id, columns, generation)
                }
            };
            failpoint("lake_table_made");
            set_options(session, table_id).context(context)?;
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                own_folder(session, table_id)?;
                record(session, &fence, &new, table_id, &columns, generation)
            })?;
            let (name, folder) = table_folder(session, table_id)?
                .ok_or_else(|| Error::new(ErrorKind::Conflict, "the table was dropped while it was being made"))?;
            Ok(LakeTable { table_id, name, folder, columns, shown: HashMap::new() })
        })
        .await
    }
}

/// What the catalog knows of a target: its row, and the lake's table of that name.
type Target = (Option<TableRow>, Option<(i64, TableName)>);

/// Refuses a target that the pipeline must not write to.
fn claimable(session: &Session, pipeline: &str, new: &NewTable) -> Result<Target> {
    let target = &new.target;
    let condition = format!(
        "lower(t.target_schema) = lower({}) AND lower(t.target_table) = lower({})",
        literal(&target.schema),
        literal(&target.table)
    );
    let rows = read_rows(session, &condition)?;
    if let Some(other) = rows.iter().find(|row| row.pipeline != pipeline) {
        return Err(Error::new(ErrorKind::Precondition, format!("it belongs to pipeline {}", other.pipeline))
            .remedy("give the table another target"));
    }
    if let Some(other) = rows.iter().find(|row| row.target != *target) {
        return Err(Error::new(ErrorKind::Precondition, format!("{} differs from it in case only", other.target))
            .remedy("give the table another target"));
    }
    // One that was renamed at the source, and kept its name here.
    let another =
        |row: &&TableRow| row.table_id.is_some() && row.source_oid != new.source_oid && row.source != new.source;
    if let Some(other) = rows.iter().find(another).filter(|_| !new.recreate) {
        return Err(Error::new(ErrorKind::Precondition, format!("it is that of {}", other.source))
            .remedy("give the table another target"));
    }
    let lives = live_table(session, target)?;
    if rows.is_empty() && lives.is_some() {
        return Err(Error::new(ErrorKind::Precondition, "it exists already and is not this pipeline's")
            .remedy("give the table another target, or drop the lake's table"));
    }
    Ok((rows.into_iter().next(), lives))
}

/// Decides what to do, and writes the row that claims the target.
fn plan(session: &Session, fence: &Fence, new: &NewTable) -> Result<Plan> {
    pipeline::held(session, fence)?;
    let (row, lives) = claimable(session, &fence.pipeline, new)?;
    let Some(row) = row else {
        insert_row(session, fence, new)?;
        return Ok(Plan::Make { drop: None, generation: 1 });
    };
    plan_existing(session, fence, new, &row, lives)
}

fn plan_existing(
    session: &Session,
    fence: &Fence,
    new: &NewTable,
    row: &TableRow,
    lives: Option<(i64, TableName)>,
) -> Result<Plan> {
    let half_made = row.table_id.is_none();
    // Whoever dies between this and the row that says what was made finds a table that is half made, and goes on with it.
    let begin = || {
        session.write(&format!(
            "UPDATE {}.duckpipe_table SET table_id = NULL WHERE pipeline = {} AND target_schema = {} AND target_table = {}",
            session.tables(),
            literal(&fence.pipeline),
            literal(&row.target.schema),
            literal(&row.target.table)
        ))
    };
    let Some((table_id, name)) = lives else {
        begin()?;
        return Ok(Plan::Make { drop: None, generation: if half_made { row.generation } else { row.generation + 1 } });
    };
    if !half_made && row.table_id != Some(table_id) {
        return Err(Error::new(
            ErrorKind::Precondition,
            "somebody else dropped it and made another table of that name",
        )
        .remedy("drop the lake's table, or give the table another target"));
    }
    let difference = match match_columns(&new.layout, &catalog_columns(session, table_id)?) {
        Ok(columns) => return Ok(Plan::Use { table_id, columns, generation: row.generation }),
        Err(difference) => difference,
    };
    if !half_made && !new.recreate {
        return Err(Error::new(
            ErrorKind::Precondition,
            format!("its columns are not those of the source table {} ({difference})", new.source),
        )
        .remedy("copy the table anew: `duckpipe sync --resnapshot`"));
    }
    begin()?;
    Ok(Plan::Make { drop: Some(name), generation: row.generation + 1 })
}

/// The live table of that name in any case, with its name as the lake spells it.
pub(super) fn live_table(session: &Session, target: &TableName) -> Result<Option<(i64, TableName)>> {
    let tables = session.tables();
    let sql = format!(
        "SELECT t.table_id, s.schema_name, t.table_name FROM {tables}.ducklake_table t \
         JOIN {tables}.ducklake_schema s ON s.schema_id = t.schema_id \
         WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL \
         AND lower(s.schema_name) = lower({}) AND lower(t.table_name) = lower({})",
        literal(&target.schema),
        literal(&target.table)
    );
    let rows = session.read(&sql, |row| Ok((row.get(0)?, TableName { schema: row.get(1)?, table: row.get(2)? })))?;
    Ok(rows.into_iter().next())
}

fn make(session: &Session, new: &NewTable, drop: Option<&TableName>) -> Result<(i64, Vec<LakeColumn>)> {
    let columns =
        new.layout.lake_columns().map(|(name, _, column_type)| format!("{} {}", identifier(name), column_type.lake()));
    let columns = columns.collect::<Vec<_>>().join(", ");
    let qualified = |name: &TableName| format!("{LAKE}.{}.{}", identifier(&name.schema), identifier(&name.table));
    if let Some(name) = drop {
        session.batch(&format!("DROP TABLE {}", qualified(name)))?;
    }
    session.transaction(|session| {
        session.batch(&format!("CREATE SCHEMA IF NOT EXISTS {LAKE}.{}", identifier(&new.target.schema)))?;
        session.batch(&format!("CREATE TABLE {} ({columns})", qualified(&new.target)))
    })?;
    let (table_id, _) = live_table(session, &new.target)?
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "the table was dropped while it was being made"))?;
    let columns = match_columns(&new.layout, &catalog_columns(session, table_id)?)
        .map_err(|column| Error::new(ErrorKind::Internal, format!("column {column} was not made as asked")))?;
    Ok((table_id, columns))
}

/// Keeps DuckLake's own maintenance away: its merge, rewrite and flush lose data in races with ours.
fn set_options(session: &Session, table_id: i64) -> Result<()> {
    let (name, _) = table_folder(session, table_id)?
        .ok_or_else(|| Error::new(ErrorKind::Conflict, "the table was dropped while it was being made"))?;
    for (option, value) in [("auto_compact", "false"), ("data_inlining_row_limit", "0")] {
        session.batch(&format!(
            "CALL {LAKE}.set_option('{option}', {value}, schema => {}, table_name => {})",
            literal(&name.schema),
            literal(&name.table)
        ))?;
    }
    Ok(())
}

/// A new table gets the folder of its name. Where one that was renamed, or moved to another schema, has it already, its files lie there: the
/// new one takes its uuid.
fn own_folder(session: &Session, table_id: i64) -> Result<()> {
    let (tables, root) = (session.tables(), literal(&data_path(session)?));
    session.write(&format!(
        "UPDATE {tables}.ducklake_table SET path = CAST(table_uuid AS VARCHAR) || '/' WHERE table_id = {table_id} AND path_is_relative \
         AND NOT EXISTS (SELECT 1 FROM {tables}.ducklake_data_file f WHERE f.table_id = {table_id}) \
         AND EXISTS (SELECT 1 FROM {tables}.ducklake_table own \
             JOIN {tables}.ducklake_schema s ON s.schema_id = own.schema_id AND s.end_snapshot IS NULL \
             JOIN {tables}.ducklake_table other ON own.path = other.path AND own.schema_id = other.schema_id \
             OR NOT other.path_is_relative AND other.path = {root} || s.path || own.path \
             WHERE own.table_id = {table_id} AND other.table_id <> {table_id} AND other.end_snapshot IS NULL)"
    ))
}

fn insert_row(session: &Session, fence: &Fence, new: &NewTable) -> Result<()> {
    session.write(&format!(
        "INSERT INTO {}.duckpipe_table (pipeline, source_oid, source_schema, source_table, target_schema, target_table, \
         table_id, generation, state, lsn, columns, rows_copied, rows_applied, values_nulled, last_commit_at, error) \
         VALUES ({}, {}, {}, {}, {}, {}, NULL, 1, '{}', NULL, '[]', 0, 0, 0, NULL, NULL)",
        session.tables(),
        literal(&fence.pipeline),
        new.source_oid,
        literal(&new.source.schema),
        literal(&new.source.table),
        literal(&new.target.schema),
        literal(&new.target.table),
        TableState::Pending
    ))
}

fn record(
    session: &Session,
    fence: &Fence,
    new: &NewTable,
    table_id: i64,
    columns: &[LakeColumn],
    generation: i64,
) -> Result<()> {
    let columns = serde_json::to_string(columns).because(ErrorKind::Internal, || "writing the columns".into())?;
    let selected = |part: fn(&TableName) -> &String| {
        new.selected.as_ref().map_or_else(|| "NULL".to_owned(), |name| literal(part(name)))
    };
    session.write(&format!(
        "UPDATE {}.duckpipe_table SET table_id = {table_id}, columns = {}, generation = {generation}, source_oid = {}, \
         source_schema = {}, source_table = {}, selected_schema = {}, selected_table = {}, fan_in = {} WHERE pipeline = {} AND target_schema = {} AND target_table = {}",
        session.tables(),
        literal(&columns),
        new.source_oid,
        literal(&new.source.schema),
        literal(&new.source.table),
        selected(|name| &name.schema),
        selected(|name| &name.table),
        new.view.as_ref().map_or_else(|| "NULL".to_owned(), |view| literal(&view.table)),
        literal(&fence.pipeline),
        literal(&new.target.schema),
        literal(&new.target.table)
    ))
}
