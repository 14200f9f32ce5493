//! Tables that are copied beside the stream of their pipeline, by a slot of their own, until they are level with it.
//!
//! All tables of such a copy have one position: that slot's. It is a column of their rows, and moves with the commits that name the slot.

use super::Lake;
use super::commit::Commit;
use super::create::live_table;
use super::files::id_list;
use super::pipeline::{self, Fence, PipelineRow, parse_lsn};
use super::session::{LAKE, Session};
use super::table::table_folder;
use super::table_row::{TableState, Wanted};
use super::{fan_in, parts};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::lsn::Lsn;
use crate::source::table::TableName;
use crate::sql::{literal, qualified};

/// A table that a copy beside the stream begins.
#[derive(Clone, Debug)]
pub struct CopiedTable {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// The source table's oid.
    pub source_oid: u32,
    /// The source table.
    pub source: TableName,
}

impl Lake {
    /// These tables are to be copied beside the stream, which brings no changes of them any more: they keep their rows, and the
    /// position that the pipeline has now.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] where another process holds the pipeline.
    pub async fn leave_stream(&self, fence: &Fence, table_ids: &[i64]) -> Result<()> {
        let (fence, ids) = (fence.clone(), id_list(table_ids.iter().copied()));
        self.run(move |session| {
            session.locked_transaction(|session| {
                let row = pipeline::held(session, &fence)?;
                let lsn = row.lsn.map_or_else(|| "NULL".to_owned(), |lsn| literal(&lsn.to_string()));
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET state = '{}', lsn = {lsn} \
                     WHERE pipeline = {} AND state = '{}' AND table_id IN ({ids})",
                    session.tables(),
                    TableState::Pending,
                    literal(&fence.pipeline),
                    TableState::Streaming
                ))
            })
        })
        .await
    }

    /// A copy of these tables, none of which streams, begins by a slot that is yet to be made. Each keeps its rows, and the position that they show.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] where another process holds the pipeline.
    pub async fn begin_copy_beside(&self, fence: &Fence, tables: &[CopiedTable], slot: &str) -> Result<()> {
        let (fence, tables, slot) = (fence.clone(), tables.to_vec(), literal(slot));
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                for CopiedTable { table_id, source_oid, source } in &tables {
                    session.write(&format!(
                        "UPDATE {}.duckpipe_table SET state = '{}', slot = {slot}, wanted = NULLIF(wanted, '{}'), error = NULL, \
                         source_oid = {source_oid}, {} WHERE pipeline = {} AND table_id = {table_id}",
                        session.tables(),
                        TableState::Snapshot,
                        Wanted::Resync,
                        renamed(source),
                        literal(&fence.pipeline)
                    ))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// The copy of these tables can't go on; another one is to be made.
    ///
    /// # Errors
    /// As [`Lake::begin_copy_beside`].
    pub async fn give_copy_up(&self, fence: &Fence, table_ids: &[i64]) -> Result<()> {
        let (fence, ids) = (fence.clone(), id_list(table_ids.iter().copied()));
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET state = '{}', slot = NULL, wanted = coalesce(wanted, '{}') \
                     WHERE pipeline = {} AND table_id IN ({ids})",
                    session.tables(),
                    TableState::Pending,
                    Wanted::Resync,
                    literal(&fence.pipeline)
                ))
            })
        })
        .await
    }

    /// The source's table is called otherwise now; the configuration goes on to select it as before.
    ///
    /// # Errors
    /// As [`Lake::begin_copy_beside`].
    pub async fn rename_source(&self, fence: &Fence, table_id: i64, name: &TableName) -> Result<()> {
        let (fence, name) = (fence.clone(), name.clone());
        self.run(move |session| {
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET {} WHERE pipeline = {} AND table_id = {table_id}",
                    session.tables(),
                    renamed(&name),
                    literal(&fence.pipeline)
                ))
            })
        })
        .await
    }

    /// The configuration selects these tables by their present names from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn forget_selection(&self, pipeline: &str, table_ids: &[i64]) -> Result<()> {
        let (pipeline, ids) = (literal(pipeline), id_list(table_ids.iter().copied()));
        self.run(move |session| {
            session.locked_transaction(|session| {
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET selected_schema = NULL, selected_table = NULL \
                     WHERE pipeline = {pipeline} AND table_id IN ({ids})",
                    session.tables()
                ))
            })
        })
        .await
    }

    /// The live table of a name, in any case.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn table_of(&self, target: &TableName) -> Result<Option<i64>> {
        let target = target.clone();
        self.run(move |session| Ok(live_table(session, &target)?.map(|(table_id, _)| table_id))).await
    }

    /// Whether no table or view of the lake has this name, in any case, and no pipeline has a table of that name on its way, or had one.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn is_free(&self, target: &TableName) -> Result<bool> {
        let target = target.clone();
        self.run(move |session| Ok(!is_taken(session, &target, None)?)).await
    }

    /// A table stands still from now on: it keeps its rows, and the position that they show. `why` is shown, where nobody asked for it.
    ///
    /// # Errors
    /// As [`Lake::begin_copy_beside`].
    pub async fn pause_table(&self, fence: &Fence, table_id: i64, why: Option<&str>) -> Result<()> {
        let (fence, why) = (fence.clone(), why.map_or_else(|| "NULL".to_owned(), literal));
        self.run(move |session| {
            session.locked_transaction(|session| {
                let row = pipeline::held(session, &fence)?;
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET lsn = CASE WHEN state = '{}' THEN {} ELSE lsn END, state = '{}', slot = NULL, \
                     wanted = NULL, error = {why} WHERE pipeline = {} AND table_id = {table_id}",
                    session.tables(),
                    TableState::Streaming,
                    row.lsn.map_or_else(|| "NULL".to_owned(), |lsn| literal(&lsn.to_string())),
                    TableState::Paused,
                    literal(&fence.pipeline)
                ))
            })
        })
        .await
    }

    /// Lets go of a table. The lake's table stays, and is nobody's then; with `drop` it goes first: whoever dies in between does it again.
    ///
    /// # Errors
    /// As [`Lake::begin_copy_beside`].
    pub async fn remove_table(&self, fence: &Fence, table_id: i64, drop: bool) -> Result<()> {
        let fence = fence.clone();
        self.run(move |session| {
            pipeline::held(session, &fence)?;
            let view = fan_in::view_of(session, &fence, table_id)?;
            if let Some(view) = &view {
                // What it shows must be there.
                fan_in::refresh(session, view, Some(table_id))?;
                failpoint("left_view");
            }
            if let Some((name, _)) = table_folder(session, table_id)?.filter(|_| drop) {
                session.batch(&format!("DROP TABLE {LAKE}.{}", qualified(&name.schema, &name.table)))?;
                failpoint("lake_table_dropped");
            }
            session.locked_transaction(|session| {
                pipeline::held(session, &fence)?;
                let (tables, pipeline) = (session.tables(), literal(&fence.pipeline));
                session.write(&format!(
                    "{} DELETE FROM {tables}.duckpipe_definition WHERE pipeline = {pipeline} AND table_id = {table_id}; \
                     DELETE FROM {tables}.duckpipe_table WHERE pipeline = {pipeline} AND table_id = {table_id};",
                    parts::discard(&tables, &fence.pipeline, &format!("table_id = {table_id}"))
                ))
            })?;
            // Another pipeline may have shown it again, meanwhile.
            view.map_or(Ok(()), |view| fan_in::refresh(session, &view, None))
        })
        .await
    }

    /// The tables of a slot, which are at the pipeline's position `lsn`, stream with the others from then on.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where they are not level. Nothing was written then.
    pub async fn join(&self, fence: &Fence, slot: &str, lsn: Lsn) -> Result<()> {
        let (fence, slot) = (fence.clone(), slot.to_owned());
        self.run(move |session| {
            session.locked_transaction(|session| {
                let row = pipeline::held(session, &fence)?;
                let at = position(session, &row.name, &slot)?;
                if row.lsn != Some(lsn) || at != Some(lsn) {
                    let shown = |lsn: Option<Lsn>| lsn.unwrap_or_default();
                    let what = format!("the copy is at {}, the stream at {}, not {lsn}", shown(at), shown(row.lsn));
                    return Err(Error::new(ErrorKind::Transient, what));
                }
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET state = '{}', slot = NULL, error = NULL WHERE {}",
                    session.tables(),
                    TableState::Streaming,
                    followers(&row.name, &slot)
                ))
            })
        })
        .await
    }

    /// The position of a pipeline's tables that a slot of their own brings level; with `None` that of the pipeline.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn position(&self, pipeline: &str, slot: Option<&str>) -> Result<Option<Lsn>> {
        let (name, slot) = (pipeline.to_owned(), slot.map(str::to_owned));
        self.run(move |session| match slot {
            Some(slot) => position(session, &name, &slot),
            None => Ok(pipeline::read(session, &name)?.and_then(|row| row.lsn)),
        })
        .await
    }

    /// Says what is wanted of the pipeline's tables, by their names in the source; a running `sync` sees to it, or the next one.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn want(&self, pipeline: &str, sources: &[TableName], wanted: Wanted) -> Result<()> {
        self.set_wanted(pipeline, sources, Some(wanted)).await
    }

    /// As [`Lake::want`], of one table: two of one name are there where one was dropped and the other renamed.
    ///
    /// # Errors
    /// As [`Lake::want`].
    pub async fn want_of(&self, pipeline: &str, table_id: i64, wanted: Wanted) -> Result<()> {
        let (pipeline, wanted) = (literal(pipeline), literal(&wanted.to_string()));
        self.run(move |session| {
            session.locked_transaction(|session| {
                session.write(&format!(
                    "UPDATE {}.duckpipe_table SET wanted = {wanted} WHERE pipeline = {pipeline} AND table_id = {table_id}",
                    session.tables()
                ))
            })
        })
        .await
    }

    /// Nothing is wanted of the tables any more.
    ///
    /// # Errors
    /// As [`Lake::want`].
    pub async fn want_nothing(&self, pipeline: &str, sources: &[TableName]) -> Result<()> {
        self.set_wanted(pipeline, sources, None).await
    }

    async fn set_wanted(&self, pipeline: &str, sources: &[TableName], wanted: Option<Wanted>) -> Result<()> {
        let (pipeline, sources) = (literal(pipeline), sources.to_vec());
        let wanted = wanted.map_or_else(|| "NULL".to_owned(), |wanted| literal(&wanted.to_string()));
        self.run(move |session| {
            session.locked_transaction(|session| {
                for source in &sources {
                    session.write(&format!(
                        "UPDATE {}.duckpipe_table SET wanted = {wanted} \
                         WHERE pipeline = {pipeline} AND source_schema = {} AND source_table = {}",
                        session.tables(),
                        literal(&source.schema),
                        literal(&source.table)
                    ))?;
                }
                Ok(())
            })
        })
        .await
    }
}

/// Whether another table than this one has a name in the lake, or a row of `duckpipe_table` has it for another.
pub(super) fn is_taken(session: &Session, target: &TableName, table_id: Option<i64>) -> Result<bool> {
    if live_table(session, target)?.is_some_and(|(other, _)| Some(other) != table_id) {
        return Ok(true);
    }
    let (tables, schema, table) = (session.tables(), literal(&target.schema), literal(&target.table));
    let own = table_id.map_or_else(String::new, |id| format!("AND table_id IS DISTINCT FROM {id}"));
    let sql = format!(
        "SELECT (SELECT count(*) FROM {tables}.duckpipe_table \
                 WHERE lower(target_schema) = lower({schema}) AND lower(target_table) = lower({table}) {own}) \
              + (SELECT count(*) FROM {tables}.ducklake_view v JOIN {tables}.ducklake_schema s ON s.schema_id = v.schema_id \
                 WHERE v.end_snapshot IS NULL AND s.end_snapshot IS NULL \
                 AND lower(s.schema_name) = lower({schema}) AND lower(v.view_name) = lower({table}))"
    );
    let taken = session.read(&sql, |row| row.get::<_, i64>(0))?;
    Ok(taken.into_iter().any(|rows| rows > 0))
}

/// The assignments to a row of `duckpipe_table` whose source table has this name now. What it was selected by stays.
pub(super) fn renamed(name: &TableName) -> String {
    let (schema, table) = (literal(&name.schema), literal(&name.table));
    let is_new = format!("selected_table IS NULL AND (source_schema <> {schema} OR source_table <> {table})");
    format!(
        "selected_schema = CASE WHEN {is_new} THEN source_schema ELSE selected_schema END, \
         selected_table = CASE WHEN {is_new} THEN source_table ELSE selected_table END, \
         source_schema = {schema}, source_table = {table}"
    )
}

/// The condition on `duckpipe_table` for the tables that a slot brings level, and that were copied.
fn followers(pipeline: &str, slot: &str) -> String {
    format!("pipeline = {} AND slot = {} AND state = '{}'", literal(pipeline), literal(slot), TableState::Catchup)
}

fn position(session: &Session, pipeline: &str, slot: &str) -> Result<Option<Lsn>> {
    let sql =
        format!("SELECT DISTINCT lsn FROM {}.duckpipe_table WHERE {}", session.tables(), followers(pipeline, slot));
    let mut positions = session.read(&sql, |row| row.get::<_, Option<String>>(0))?.into_iter();
    match (positions.next(), positions.next()) {
        (position, None) => parse_lsn(position.flatten()),
        _ => Err(Error::new(ErrorKind::Internal, format!("tables of the slot {slot} are at different positions"))),
    }
}

/// Refuses a commit that does not follow the slot's position, and moves that.
pub(super) fn advance(
    session: &Session,
    pipeline: &PipelineRow,
    slot: &str,
    (follows, lsn): (Option<Lsn>, Lsn),
) -> Result<()> {
    let at = position(session, &pipeline.name, slot)?;
    if follows.is_some() && follows != at || at.is_some_and(|at| at > lsn) {
        let what = format!("these changes do not follow {}, where the slot {slot} is", at.unwrap_or_default());
        return Err(Error::new(ErrorKind::Transient, what));
    }
    session.write(&format!(
        "UPDATE {}.duckpipe_table SET lsn = {} WHERE {}",
        session.tables(),
        literal(&lsn.to_string()),
        followers(&pipeline.name, slot)
    ))
}

/// A table of a pipeline as a stamp speaks of it.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) name: TableName,
    pub(super) state: TableState,
    pub(super) lsn: Option<Lsn>,
    pub(super) slot: Option<String>,
}

impl Shown {
    /// Refuses a commit of another reader than the one that brings the table on.
    pub(super) fn check(&self, commit: &Commit) -> Result<()> {
        let begins = self.state == TableState::Snapshot && commit.follows.is_none();
        let goes_on = matches!(self.state, TableState::Streaming | TableState::Catchup);
        if self.slot == commit.slot && (begins || goes_on || commit.follows.is_none() && commit.slot.is_none()) {
            return Ok(());
        }
        let by = self.slot.as_deref().map_or_else(|| "the stream".to_owned(), |slot| format!("the slot {slot}"));
        Err(Error::new(
            ErrorKind::Table,
            format!("{} is {}, by {by}: these changes are another reader's", self.name, self.state),
        )
        .remedy("copy the table anew: `duckpipe tables resync`"))
    }

    /// The table after a commit.
    pub(super) fn after(mut self, table_id: i64, commit: &Commit) -> Shown {
        let own = commit.tables.iter().find(|table| table.table_id == table_id);
        if let Some(own) = own {
            self.state = own.state;
            if own.state != TableState::Errored {
                self.lsn = own.lsn.or(Some(commit.lsn));
            }
        } else if self.slot.is_some() && self.slot == commit.slot && self.state == TableState::Catchup {
            self.lsn = Some(commit.lsn);
        }
        self
    }

    /// What a stamp with this position says of the table: its name, and the position that it shows instead.
    pub(super) fn behind(&self, lsn: Option<Lsn>) -> Option<(String, serde_json::Value)> {
        let follows = match self.state {
            TableState::Streaming => true,
            // Level with the pipeline, whose first copy it is part of.
            TableState::Catchup => self.slot.is_none() || self.lsn == lsn,
            TableState::Pending
            | TableState::Snapshot
            | TableState::Errored
            | TableState::Dropped
            | TableState::Paused => false,
        };
        (!follows).then(|| (self.name.to_string(), self.lsn.unwrap_or_default().to_string().into()))
    }
}
