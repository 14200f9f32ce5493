//! Columns that changed without a row that would say so: the source's catalog is looked at, and what it has is applied once
//! everything before it is in the lake.
//!
//! A definition that was read before the source was at a position holds at that position, or at a later one that the WAL has told
//! nothing of yet: a row that follows comes with a message of its own.

use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::{Stream, Waiting, quarantine};
use crate::error::Result;
use crate::lake::TableState;
use crate::lsn::Lsn;
use crate::source::table::SourceTable;
use crate::sync::definition::is_same;

/// How often the source's catalog is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// What the source's catalog had at the last look.
#[derive(Default)]
pub(super) struct Unseen {
    looked_at: Option<Instant>,
    /// Definitions that hold nothing new, by the tables' oids.
    known: HashMap<u32, i64>,
    /// Definitions that do.
    found: HashMap<u32, Found>,
}

struct Found {
    source: SourceTable,
    mark: i64,
    /// Everything up to here must be in the lake before it.
    at: Lsn,
}

impl Stream<'_> {
    /// Whether nothing is under way that may tell of a change by itself, and the last look is long enough ago.
    pub(super) fn look_is_due(&self) -> bool {
        self.state == TableState::Streaming
            && self.boundary.is_none()
            && self.is_level()
            && self.paused.is_none()
            && !self.in_transaction
            && self.unseen.looked_at.is_none_or(|at| at.elapsed() >= LOOK)
    }

    /// Looks at the catalog, and begins to apply what is due.
    pub(super) async fn look(&mut self) -> Result<()> {
        let oids: Vec<u32> =
            self.tables.iter().filter(|(_, table)| table.failed.is_none()).map(|(oid, _)| *oid).collect();
        let marks = self.definitions.marks(&oids).await?;
        for oid in oids {
            // A table that is gone, or has another name, is looked for by others.
            let Some(&mark) = marks.get(&oid) else { continue };
            match self.unseen.found.remove(&oid) {
                Some(found) if found.mark == mark && self.received >= found.at => self.apply_unseen(oid, found).await?,
                Some(found) if found.mark == mark => drop(self.unseen.found.insert(oid, found)),
                _ if self.unseen.known.get(&oid) == Some(&mark) => {}
                _ => self.compare(oid, mark).await?,
            }
        }
        self.unseen.looked_at = Some(Instant::now());
        Ok(())
    }

    async fn compare(&mut self, oid: u32, mark: i64) -> Result<()> {
        let Some(table) = self.tables.get(&oid) else { return Ok(()) };
        match self.definitions.now(&table.source).await? {
            Some(source) if !is_same(&source, &table.source) => {
                let at = self.definitions.session.wal_position().await?;
                self.unseen.found.insert(oid, Found { source, mark, at });
            }
            _ => drop(self.unseen.known.insert(oid, mark)),
        }
        Ok(())
    }

    async fn apply_unseen(&mut self, oid: u32, found: Found) -> Result<()> {
        let Some(table) = self.tables.get_mut(&oid) else { return Ok(()) };
        // Rows that were received in part would have to fit; a message has told meanwhile.
        if self.streamed.has_changes(oid) || is_same(&found.source, &table.source) {
            return Ok(());
        }
        let known = (&*table.table, &table.source);
        match self.definitions.changed(&self.pipeline.lake, known, found.source, None).await {
            Ok(changed) => {
                self.change_columns(changed);
                if let Some(table) = self.tables.get_mut(&oid).filter(|table| table.alteration.is_some()) {
                    table.alone = true;
                    self.waiting = Some(Waiting { lsn: self.received, commit_ts: None, since: Instant::now() });
                }
                Ok(())
            }
            Err(error) => quarantine(table, error),
        }
    }
}
