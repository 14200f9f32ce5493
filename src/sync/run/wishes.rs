//! Tables that are to stand still or to go, while the others stream: because somebody asked for it, or because the configuration does
//! not name them any more.

use std::sync::Arc;
use std::time::Duration;

use super::Runner;
use super::gate::Gate;
use super::rejoin::other_target;
use crate::config::{SelectedTable, TableConfig, selection_of, selection_of_any};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{TableRow, TableState, Wanted};
use crate::source::session::Session;
use crate::source::{catalog, publication, slot};
use crate::sync::failpoint::failpoint;
use crate::sync::pipeline::Pipeline;
use crate::sync::stream::SharedTables;

/// How often the catalog is asked what is wanted.
const LOOK: Duration = Duration::from_secs(1);
/// How long the stream may take to stand still.
const STANDS: Duration = Duration::from_secs(20);

/// What becomes of a table that leaves the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// It stands still; the reason, where nobody asked for that.
    Pause(Option<&'static str>),
    /// It is not followed any more; its table in the lake goes too.
    Remove { drop: bool },
}

const UNNAMED: &str = "[[tables]] does not name it any more";

impl Runner<'_> {
    /// Sees to what is wanted of tables, for ever.
    ///
    /// # Errors
    /// Kind `Fenced`, when another process has taken over.
    pub(super) async fn mind_wishes(&self, pipeline: &Arc<Pipeline>, shared: &SharedTables, gate: &Gate) -> Result<()> {
        let mut entries = Arc::clone(&self.entries);
        loop {
            tokio::time::sleep(LOOK).await;
            // A copy that begins takes what is wanted of its tables with it: what is said from now on comes after that.
            let _turn = gate.turn().await;
            let now = self.config.tables();
            if !Arc::ptr_eq(&entries, &now) {
                match self.follow_entries(&entries, &now).await {
                    Ok(()) => entries = now,
                    Err(error) => tracing::warn!(%error, "the catalog does not take what the configuration says now"),
                }
            }
            match self.let_go(pipeline, Some((shared, gate))).await {
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, fix = error.remedy_text(), "a table could not leave the stream; trying again")
                }
                Ok(()) => {}
            }
        }
    }

    /// Tables that the configuration selects otherwise than before are copied afresh.
    async fn follow_entries(&self, before: &[TableConfig], now: &[TableConfig]) -> Result<()> {
        self.forget_former_names(before).await?;
        self.forget_removals().await?;
        let columns = |table: SelectedTable| (table.exclude_columns, table.text_columns, table.filter);
        // What somebody asked for meanwhile comes first: a table that stands still is copied when it comes back.
        for row in self.lake.tables(&self.config.name).await?.into_iter().filter(|row| row.wanted.is_none()) {
            let said = |entries| selection_of_any(entries, row.names());
            let (Some(before), Some(now)) = (said(before), said(now)) else {
                continue;
            };
            if columns(before) != columns(now) && row.state != TableState::Paused {
                tracing::info!(table = %row.source, "[[tables]] says other columns or rows of the table: it is copied afresh");
                self.want_copy(&row).await?;
            }
        }
        Ok(())
    }

    /// The table is to be copied afresh.
    pub(super) async fn want_copy(&self, row: &TableRow) -> Result<()> {
        match row.table_id {
            Some(table_id) => self.lake.want_of(&self.config.name, table_id, Wanted::Resync).await,
            // It is copied as soon as it is made.
            None => Ok(()),
        }
    }

    /// A former name that no entry has is of no use, and another table may be entered by it later.
    pub(super) async fn forget_former_names(&self, entries: &[TableConfig]) -> Result<()> {
        let is_renamed = |row: &TableRow| {
            let by_present = selection_of(entries, &row.source).filter(|_| row.selected.is_some());
            let same =
                by_present.is_some_and(|by| other_target(&TableRow { selected: None, ..row.clone() }, &by).is_none());
            same && selection_of(entries, row.named()).is_none()
        };
        let rows = self.lake.tables(&self.config.name).await?;
        let renamed: Vec<i64> = rows.iter().filter(|row| is_renamed(row)).filter_map(|row| row.table_id).collect();
        match renamed.is_empty() {
            true => Ok(()),
            false => self.lake.forget_selection(&self.config.name, &renamed).await,
        }
    }

    /// Tables that were to be removed, and are named in the configuration again: whoever takes one out of it later may mean something else.
    pub(super) async fn forget_removals(&self) -> Result<()> {
        let is_removed = |row: &TableRow| matches!(row.wanted, Some(Wanted::Remove | Wanted::Drop));
        let rows = self.lake.tables(&self.config.name).await?;
        let named = rows.into_iter().filter(|row| is_removed(row) && self.is_named(row));
        let sources: Vec<_> = named.map(|row| row.source).collect();
        match sources.is_empty() {
            true => Ok(()),
            false => self.lake.want_nothing(&self.config.name, &sources).await,
        }
    }

    /// Lets the tables go that are to, after everything that the lake has of them. Nobody else moves tables meanwhile.
    pub(super) async fn let_go(&self, pipeline: &Pipeline, stream: Option<(&SharedTables, &Gate)>) -> Result<()> {
        let rows = self.lake.tables(&self.config.name).await?;
        for row in rows.iter().filter(|row| self.comes_back(row)) {
            self.want_copy(row).await?;
        }
        let copying = |row: &TableRow| row.slot.is_some();
        // A copy that is under way beside the stream comes to its end first.
        let may_leave = |row: &&TableRow| stream.is_none() || !copying(row);
        let mut leaving: Vec<(&TableRow, i64, Leaving)> =
            rows.iter().filter(may_leave).filter_map(|row| Some((row, row.table_id?, self.leaves(row)?))).collect();
        self.keep_renamed(&mut leaving).await?;
        if leaving.is_empty() {
            return Ok(());
        }
        let closed = match stream.filter(|_| leaving.iter().any(|(row, ..)| row.follows())) {
            Some((_, gate)) => {
                let closed = gate.close(STANDS).await;
                let what = "the stream did not stand still for a table to leave it";
                Some(closed.ok_or_else(|| Error::new(ErrorKind::Transient, what))?)
            }
            None => None,
        };
        for (row, table_id, leaving) in &leaving {
            let shown = self.progress.table(&row.source, &row.target);
            match leaving {
                Leaving::Pause(why) => {
                    self.lake.pause_table(&pipeline.fence, *table_id, *why).await?;
                    failpoint("table_paused");
                    shown.pause(why.map(str::to_owned));
                    tracing::info!(table = %row.source, why, "the table stands still; the others go on");
                }
                Leaving::Remove { drop } => {
                    self.lake.remove_table(&pipeline.fence, *table_id, *drop).await?;
                    failpoint("table_removed");
                    self.progress.forget(&row.source);
                    tracing::info!(table = %row.source, drop, "the table is not followed any more; the others go on");
                }
            }
            if let Some((shared, _)) = stream {
                shared.remove(row.source_oid);
            }
        }
        drop(closed);
        let gone = |row: &TableRow| leaving.iter().any(|(left, ..)| left.table_id == row.table_id);
        if rows.iter().any(|row| copying(row) && gone(row)) && !rows.iter().any(|row| copying(row) && !gone(row)) {
            slot::drop(&self.session, &self.copy_slot()).await?;
        }
        for (row, ..) in leaving.iter().filter(|(_, _, leaving)| matches!(leaving, Leaving::Remove { .. })) {
            if let Err(error) = self.unpublish(row).await {
                tracing::warn!(table = %row.source, %error, "the publication goes on sending the table's changes");
            }
        }
        Ok(())
    }

    /// A table that was renamed, and its entry with it, does not leave: its row is told of the name later.
    async fn keep_renamed(&self, leaving: &mut Vec<(&TableRow, i64, Leaving)>) -> Result<()> {
        let is_unnamed = |leaving: &Leaving| *leaving == Leaving::Pause(Some(UNNAMED));
        let unnamed: Vec<u32> =
            leaving.iter().filter(|(.., how)| is_unnamed(how)).map(|(row, ..)| row.source_oid).collect();
        if unnamed.is_empty() {
            return Ok(());
        }
        let names = catalog::names_of(&Session::connect(&self.settings).await?, &unnamed).await?;
        let entries = self.config.tables();
        leaving.retain(|(row, _, how)| {
            !is_unnamed(how) || selection_of_any(&entries, names.get(&row.source_oid)).is_none()
        });
        Ok(())
    }

    fn is_named(&self, row: &TableRow) -> bool {
        selection_of_any(&self.config.tables(), row.names()).is_some()
    }

    fn leaves(&self, row: &TableRow) -> Option<Leaving> {
        let stands = matches!(row.state, TableState::Paused | TableState::Dropped | TableState::Errored);
        match row.wanted {
            Some(Wanted::Pause) => Some(Leaving::Pause(None)),
            // As long as the configuration names it, it would come back.
            Some(Wanted::Remove) if !self.is_named(row) => Some(Leaving::Remove { drop: false }),
            Some(Wanted::Drop) if !self.is_named(row) => Some(Leaving::Remove { drop: true }),
            Some(Wanted::Remove | Wanted::Drop) => None,
            None | Some(Wanted::Resync) if !stands && !self.is_named(row) => Some(Leaving::Pause(Some(UNNAMED))),
            None | Some(Wanted::Resync) => None,
        }
    }

    /// A table that stood still because it was not named, and is named again.
    fn comes_back(&self, row: &TableRow) -> bool {
        row.state == TableState::Paused && row.error.is_some() && row.wanted.is_none() && self.is_named(row)
    }

    async fn unpublish(&self, row: &TableRow) -> Result<()> {
        let pipeline = self.lake.pipeline(&self.config.name).await?;
        if !pipeline.is_some_and(|pipeline| pipeline.owns_publication) {
            return Ok(());
        }
        let session = Session::connect(&self.settings).await?;
        let published = self.published(&session).await?;
        match published.tables.contains(&row.source) {
            true => publication::remove_table(&session, &published.name, &row.source).await,
            false => Ok(()),
        }
    }
}
