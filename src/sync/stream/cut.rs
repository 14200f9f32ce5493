//! Ending a flush at a position: the logs are cut where the stream crosses it.

use super::{Stream, Waiting};
use crate::error::Result;
use crate::lsn::Lsn;
use crate::sync::boundary::Wish;

/// Everything up to a boundary was received. What came after waits until the lake shows the boundary.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// What of it is yet to be flushed.
    pub(super) waiting: Option<Waiting>,
}

impl Stream<'_> {
    /// Takes note of what somebody else wants of this stream; says whether it must not read now.
    pub(super) fn mind_wish(&mut self) -> bool {
        match self.options.boundary.wish() {
            Wish::Nothing if self.boundary != self.options.until && self.cut.is_none() => {
                self.boundary = self.options.until;
                false
            }
            Wish::Nothing | Wish::Stand => false,
            Wish::Hold => {
                self.options.boundary.holding();
                true
            }
            Wish::FlushAt { lsn, .. } => {
                if self.boundary == Some(lsn) || self.cut.is_some() {
                    return false;
                }
                if self.received > lsn {
                    self.options.boundary.missed(lsn, self.received);
                    return false;
                }
                // A run's own end that lies before is reached first.
                if self.options.until.is_none_or(|until| lsn < until) {
                    self.boundary = Some(lsn);
                    self.cross(self.received);
                }
                false
            }
        }
    }

    /// All transactions that end at or before `position` were received, and none after it: cuts the logs, where that is
    /// at or past the boundary.
    pub(super) fn cross(&mut self, position: Lsn) {
        if self.cut.is_some() || self.boundary.is_none_or(|boundary| position < boundary) {
            return;
        }
        for table in self.tables.values_mut() {
            table.cut = table.committed;
        }
        self.cut = Some(Cut { waiting: self.waiting.take() });
    }

    /// Says that the lake shows the boundary, once its flush is done.
    pub(super) async fn finish_cut(&mut self) -> Result<()> {
        let (Some(lsn), Some(Cut { waiting: None })) = (self.boundary, self.cut) else { return Ok(()) };
        let stands = match self.options.boundary.wish() {
            Wish::Stand => return Ok(()),
            Wish::FlushAt { lsn: due, stands } => stands && due == lsn,
            Wish::Nothing | Wish::Hold => false,
        };
        // What was received since, and changes nothing here, may count as shown too, but where the position itself is asked for.
        let exact = stands || self.options.until == Some(lsn);
        let position = if self.waiting.is_none() && !exact { self.received } else { lsn };
        if position > self.applied {
            self.advance_to(position).await?;
        }
        if matches!(self.options.boundary.wish(), Wish::FlushAt { lsn: due, .. } if due == lsn) {
            let snapshot = self.pipeline.lake.latest_snapshot().await?;
            self.options.boundary.reached(lsn, snapshot);
            if stands {
                return Ok(());
            }
        }
        self.cut = None;
        self.boundary = self.options.until.filter(|until| *until > lsn);
        self.cross(self.received);
        Ok(())
    }
}
