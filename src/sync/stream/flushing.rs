//! From logs to flushes, and from flushes to confirmed positions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::flight::{Flight, Flushed, joined, record_failure};
use super::{Failure, Stream};
use crate::batch::layout::Mode;
use crate::error::Result;
use crate::lake::TableState;
use crate::lsn::Lsn;
use crate::sync::failpoint::failpoint;
use crate::sync::flush::{Flush, RowsOfAKey};
use crate::sync::pipeline::Pipeline;

/// Idle positions are written to the catalog at most this often.
const ADVANCE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a flush may take after the process was told to stop.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(12);

impl Stream<'_> {
    pub(super) fn flush_is_due(&self) -> bool {
        if let Some(cut) = &self.cut {
            return cut.waiting.is_some();
        }
        let Some(waiting) = self.waiting else { return false };
        self.paused.is_some()
            || waiting.since.elapsed() >= self.options.flush_interval
            || self.memory() >= self.pipeline.budget.buffer
            || self.options.until.is_some_and(|until| self.received >= until)
    }

    pub(super) fn start_flush(&mut self) -> Result<()> {
        let cut = self.cut.is_some();
        let waiting = match &mut self.cut {
            Some(cut) => cut.waiting.take(),
            None => self.waiting.take(),
        };
        let Some(waiting) = waiting else { return Ok(()) };
        let (mut logs, mut alterations, mut definitions) = (Vec::new(), HashMap::new(), HashMap::new());
        for (oid, table) in self.tables.iter_mut().filter(|(_, table)| table.failed.is_none()) {
            let events = if cut { std::mem::take(&mut table.cut) } else { table.committed };
            if events == 0 && !std::mem::take(&mut table.alone) {
                continue;
            }
            table.seal()?;
            let later = table.log.split_off(events);
            let mut log = std::mem::replace(&mut table.log, later);
            if table.table.layout.mode != Mode::History {
                log.settle();
            }
            logs.push((Arc::clone(&table.table), log));
            alterations.extend(table.alteration.take().map(|alteration| (*oid, alteration)));
            if std::mem::take(&mut table.unrecorded) {
                definitions.insert(*oid, table.source.clone());
            }
            table.committed -= events;
        }
        self.altering = alterations.keys().copied().collect();
        let flush = Flush {
            follows: self.applied,
            lsn: waiting.lsn,
            commit_ts: waiting.commit_ts,
            logs,
            alterations,
            definitions,
            state: self.state,
            rows_of_a_key: RowsOfAKey::One,
        };
        self.in_flight = Some(Flight::begin(Arc::clone(&self.pipeline), flush, self.options.attempts));
        Ok(())
    }

    pub(super) fn finish_flush(&mut self, flushed: Flushed) -> Result<()> {
        for oid in flushed.failed {
            self.shared.remove(oid);
            if let Some(table) = self.tables.get_mut(&oid) {
                table.fail(Failure::Recorded);
            }
        }
        let altered = std::mem::take(&mut self.altering);
        self.altered(&altered);
        failpoint("confirm");
        self.applied = flushed.lsn;
        self.advanced_at = Instant::now();
        // Shown first: nobody may see the slot ahead of what the lake is said to hold.
        self.show_applied(flushed.lsn);
        self.pipeline.progress.committed();
        self.wal.confirm(flushed.lsn);
        Ok(())
    }

    pub(super) fn advance_is_due(&self) -> bool {
        let idle = self.waiting.is_none() && self.cut.is_none() && self.received > self.applied;
        let reached = self.options.until.is_some_and(|until| self.received >= until)
            || self.state == TableState::Catchup && self.received >= self.level_at;
        idle && (reached || self.advanced_at.elapsed() >= ADVANCE_INTERVAL)
    }

    /// Takes over the position of a source that has nothing for this pipeline.
    pub(super) async fn advance(&mut self) -> Result<()> {
        self.advance_to(self.received).await
    }

    pub(super) async fn advance_to(&mut self, position: Lsn) -> Result<()> {
        let Pipeline { lake, fence, slot, .. } = &*self.pipeline;
        lake.advance(fence, slot.as_deref(), position).await?;
        self.applied = position;
        self.advanced_at = Instant::now();
        self.show_applied(position);
        self.wal.confirm(position);
        Ok(())
    }

    fn show_applied(&self, position: Lsn) {
        self.pipeline.progress.applied(position);
        if self.pipeline.slot.is_some() {
            for table in self.tables.values().filter(|table| table.failed.is_none()) {
                table.table.progress.applied(position);
            }
        }
    }

    pub(super) async fn finish_catchup(&mut self) -> Result<()> {
        self.pipeline.lake.finish_catchup(&self.pipeline.fence).await?;
        self.state = TableState::Streaming;
        for table in self.tables.values().filter(|t| t.failed.is_none()) {
            table.table.progress.set_state(TableState::Streaming);
        }
        self.pipeline.progress.applied(self.applied);
        Ok(())
    }

    /// A stopped table must be known to the catalog before a position is confirmed that lies past its lost changes.
    pub(super) async fn record_failures(&mut self) -> Result<()> {
        for table in self.tables.values_mut() {
            if let Some(Failure::New(error)) = &table.failed {
                record_failure(&self.pipeline, &table.table, error).await?;
                self.shared.remove(table.table.oid);
                table.failed = Some(Failure::Recorded);
            }
        }
        Ok(())
    }

    /// Flushes the complete transactions and drops the open one.
    pub(super) async fn wind_up(&mut self) -> Result<()> {
        let patience = tokio::time::sleep(STOP_PATIENCE);
        tokio::pin!(patience);
        loop {
            if self.in_flight.is_none() {
                self.record_failures().await?;
                if self.cut.is_some_and(|cut| cut.waiting.is_none()) {
                    self.cut = None;
                }
                if self.cut.is_some() || self.waiting.is_some() {
                    self.start_flush()?;
                }
            }
            let Some(flush) = self.in_flight.as_mut() else { break };
            tokio::select! {
                done = &mut flush.0 => {
                    self.in_flight = None;
                    self.finish_flush(joined(done)?)?;
                }
                () = &mut patience => {
                    tracing::warn!("stopped before the last flush was done; the next start applies it");
                    self.in_flight = None;
                    return Ok(());
                }
            }
        }
        if self.received > self.applied {
            self.advance().await?;
        }
        Ok(())
    }
}
