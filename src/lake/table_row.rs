//! A pipeline's tables as the catalog has them: the rows of `duckpipe_table`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Lake;
use super::files::id_list;
use super::pipeline::{self, Fence, parse_lsn};
use super::session::Session;
use super::table::LakeColumn;
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
