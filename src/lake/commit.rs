//! One commit: files, deletes, statistics and the applied position in one catalog transaction.

use std::fmt::Write as _;

use duckpipe_storage::{DataFile, DeleteFile};

use super::Lake;
use super::alter::Alteration;
use super::copies;
use super::facts::Facts;
use super::files::latest_snapshot;
use super::pipeline::{self, Fence, PipelineState};
use super::script::Script;
use super::session::Session;
use super::table_row::TableState;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::lsn::Lsn;
use crate::source::table::SourceTable;
use crate::sql::literal;

/// What one commit brings.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The newest snapshot as the caller saw it. The commit's own id is the next one; delete files carry it.
    pub base_snapshot: i64,
    /// The applied position that these changes follow, where they follow one: the commit is refused at any other.
    pub follows: Option<Lsn>,
    /// The position up to which the streaming tables are equal to the source once this is committed; with `slot`, those of that slot.
    pub lsn: Lsn,
    /// The slot whose tables move, where that is not the pipeline's: a copy beside the stream. The pipeline stays where it is.
    pub slot: Option<String>,
    /// When the last transaction up to there was committed at the source, in microseconds since 1970.
    pub commit_ts: Option<i64>,
    /// The tables that change.
    pub tables: Vec<TableCommit>,
    /// The pipeline's new state, where it changes.
    pub pipeline_state: Option<PipelineState>,
}

/// What one commit brings to one table.
#[derive(Clone, Debug)]
pub struct TableCommit {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// How its columns change, before `data` comes, whose files have the new ones.
    pub alteration: Option<Alteration>,
    /// How the source defines the table from then on, where that is to be recorded.
    pub definition: Option<SourceTable>,
    /// New data files.
    pub data: Vec<DataFile>,
    /// New delete files.
    pub deletes: Vec<DeleteCommit>,
    /// End all current files first: the table was truncated, or `data` is a fresh copy. No `deletes` then.
    pub replace: bool,
    /// Rows copied, added to the table's count.
    pub rows_copied: u64,
    /// Changes applied, added to the table's count.
    pub rows_applied: u64,
    /// Values set to NULL because the lake's type can't hold them, added to the table's count.
    pub values_nulled: u64,
    /// The table's state after the commit. An errored table keeps its error: see [`Lake::fail_table`].
    pub state: TableState,
    /// The position that the table shows where it is not streaming; the commit's where this is `None`.
    pub lsn: Option<Lsn>,
}

/// A delete file for one data file.
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteCommit {
    /// The data file.
    pub data_file_id: i64,
    /// All its deletes: those of the delete file that this one replaces too.
    pub file: DeleteFile,
    /// The live delete file that it replaces.
    pub replaces: Option<i64>,
    /// The least snapshot id among its positions.
    pub begin_snapshot: i64,
    /// The greatest.
    pub partial_max: i64,
}

/// What a commit made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The newest snapshot: the commit's own, or the base where no row changed.
    pub snapshot: i64,
    /// Per table of the commit: the ids that its data files got.
    pub data_file_ids: Vec<Vec<i64>>,
    /// Per table of the commit: the ids that its delete files got.
    pub delete_file_ids: Vec<Vec<i64>>,
}

impl TableCommit {
    /// Whether it changes rows of the lake.
    pub(super) fn changes_rows(&self) -> bool {
        self.replace || !self.deletes.is_empty() || self.data.iter().any(|file| file.rows > 0)
    }

    /// Whether it changes what the lake shows.
    fn changes_lake(&self) -> bool {
        self.alteration.is_some() || self.changes_rows()
    }
}

impl Lake {
    /// Makes everything in `commit` visible in one snapshot, or nothing. A commit that changes neither rows nor columns makes no
    /// snapshot; it moves the position and the tables' states.
    ///
    /// # Errors
    /// * [`ErrorKind::Conflict`]: a snapshot was added since `base_snapshot`, or a file that it builds on is not live any
    ///   more. Nothing was written: look again, and write the delete files anew.
    /// * [`ErrorKind::Fenced`]: another process holds the pipeline. Nothing was written.
    /// * [`ErrorKind::Transient`]: the catalog failed. Where its message speaks of COMMIT, the commit may have taken place:
    ///   the pipeline's position tells.
    /// * [`ErrorKind::Table`]: a table was dropped from the lake, or is not what the commit takes it for: the error says which one
    ///   ([`Error::table_id`]). Nothing was written.
    pub async fn commit(&self, fence: &Fence, commit: &Commit) -> Result<Committed> {
        let (fence, commit) = (fence.clone(), commit.clone());
        self.run(move |session| {
            let committed = session.locked_transaction(|session| write(session, &fence, &commit))?;
            failpoint("commit_after");
            Ok(committed)
        })
        .await
    }
}

fn write(session: &Session, fence: &Fence, commit: &Commit) -> Result<Committed> {
    let pipeline = pipeline::held(session, fence)?;
    if commit.slot.is_none() && pipeline.lsn.is_some_and(|applied| applied > commit.lsn) {
        return Err(pipeline::moved_back(&pipeline, commit.lsn));
    }
    if let Some(follows) = commit.follows
        && commit.slot.is_none()
        && pipeline.lsn != Some(follows)
    {
        // A flush whose stream was given up may still have got in: what it brought must not come twice.
        return Err(Error::new(
            ErrorKind::Transient,
            format!(
                "these changes follow {follows}, but the lake's position is {}",
                pipeline.lsn.map_or_else(|| "not set".into(), |lsn| lsn.to_string())
            ),
        ));
    }
    let base = latest_snapshot(session)?;
    let changes_lake = commit.tables.iter().any(TableCommit::changes_lake);
    if changes_lake && base.id != commit.base_snapshot {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("the lake moved on from snapshot {} to {} beneath this commit", commit.base_snapshot, base.id),
        ));
    }
    let facts = Facts::read(session, fence, commit)?;
    let mut assignments = match &commit.slot {
        None => format!("lsn = {}", literal(&commit.lsn.to_string())),
        Some(slot) => {
            copies::advance(session, &pipeline, slot, (commit.follows, commit.lsn))?;
            "lsn = lsn".to_owned()
        }
    };
    let mut script = Script::new(session, base, pipeline, facts);
    for table in &commit.tables {
        script.table(commit, table).map_err(|error| error.of_table(table.table_id))?;
    }
    if changes_lake {
        script.snapshot(commit)?;
    }
    if let Some(state) = commit.pipeline_state {
        let _ = write!(assignments, ", state = '{state}'");
    }
    pipeline::update(session, fence, &assignments)?;
    if !script.sql.is_empty() {
        session.write(&script.sql)?;
    }
    failpoint("commit_before");
    Ok(Committed {
        snapshot: if changes_lake { script.id } else { base.id },
        data_file_ids: script.data_file_ids,
        delete_file_ids: script.delete_file_ids,
    })
}
