//! What a running sync shows of itself: counters that the work updates cheaply and that any thread may read.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

pub use crate::lake::TableState;
use crate::lsn::Lsn;
use crate::source::table::TableName;

fn state_from(value: u8) -> TableState {
    use TableState::{Catchup, Dropped, Errored, Paused, Pending, Snapshot, Streaming};
    [Pending, Snapshot, Catchup, Streaming, Errored, Dropped, Paused]
        .into_iter()
        .find(|state| *state as u8 == value)
        .unwrap_or_default()
}

/// A running pipeline: shared between the task that works and those that show it. Positions never move back.
#[derive(Debug, Default)]
pub struct Progress {
    applied: AtomicU64,
    received: AtomicU64,
    source: AtomicU64,
    /// Microseconds since 1970; 0 before the first commit.
    last_commit: AtomicI64,
    /// When a position was last made durable, in microseconds since 1970; 0 before the first.
    applied_at: AtomicI64,
    commits: AtomicU64,
    buffered: AtomicU64,
    tables: Mutex<Vec<Arc<TableProgress>>>,
}

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Arc<Progress> {
        Arc::default()
    }

    /// The table's counters; a table that is new is added.
    pub fn table(&self, source: &TableName, target: &TableName) -> Arc<TableProgress> {
        let mut tables = lock(&self.tables);
        // Of two of one name, one was dropped and the other was renamed.
        tables.retain(|t| t.source != *source || t.target == *target || t.state() != TableState::Dropped);
        if let Some(table) = tables.iter().find(|table| table.source == *source) {
            return Arc::clone(table);
        }
        let table = Arc::new(TableProgress::new(source.clone(), target.clone()));
        tables.push(Arc::clone(&table));
        table
    }

    /// The table, unless another one of the lake has its name in the source.
    pub fn of_its_own(&self, source: &TableName, target: &TableName) -> Option<Arc<TableProgress>> {
        let has_other = lock(&self.tables).iter().any(|t| t.source == *source && t.target != *target);
        (!has_other).then(|| self.table(source, target))
    }

    /// The table by another name, with what was counted so far.
    pub fn rename(&self, table: &Arc<TableProgress>, source: &TableName, target: &TableName) -> Arc<TableProgress> {
        let renamed = TableProgress::new(source.clone(), target.clone());
        renamed.state.store(table.state.load(Relaxed), Relaxed);
        renamed.total.store(table.total.load(Relaxed), Relaxed);
        for (new, old) in [
            (&renamed.copied, &table.copied),
            (&renamed.applied_rows, &table.applied_rows),
            (&renamed.nulled, &table.nulled),
            (&renamed.applied, &table.applied),
        ] {
            new.store(old.load(Relaxed), Relaxed);
        }
        renamed.last_commit.store(table.last_commit.load(Relaxed), Relaxed);
        let renamed = Arc::new(renamed);
        let mut tables = lock(&self.tables);
        tables.retain(|known| known.source != *source);
        match tables.iter_mut().find(|known| Arc::ptr_eq(known, table)) {
            Some(known) => *known = Arc::clone(&renamed),
            None => tables.push(Arc::clone(&renamed)),
        }
        renamed
    }

    /// A table is none of the pipeline's any more.
    pub fn forget(&self, source: &TableName) {
        lock(&self.tables).retain(|table| table.source != *source);
    }

    /// All tables, in the order in which they were added.
    pub fn tables(&self) -> Vec<Arc<TableProgress>> {
        lock(&self.tables).clone()
    }

    /// A lake commit (or, while idle, a state row) made `lsn` durable: it becomes the pipeline's and all streaming tables' position.
    pub fn applied(&self, lsn: Lsn) {
        self.applied.fetch_max(lsn.0, Relaxed);
        self.applied_at.store(Utc::now().timestamp_micros(), Relaxed);
        for table in lock(&self.tables).iter().filter(|table| table.state() == TableState::Streaming) {
            table.applied(lsn);
        }
    }

    /// A lake snapshot was committed just now.
    pub fn committed(&self) {
        self.commits.fetch_add(1, Relaxed);
        self.last_commit.store(Utc::now().timestamp_micros(), Relaxed);
    }

    /// A connection to the source begins at this position: what an earlier one received comes again.
    pub fn begins(&self, lsn: Lsn) {
        self.received.store(lsn.0, Relaxed);
    }

    /// The source sent changes or a keepalive up to `lsn`.
    pub fn received(&self, lsn: Lsn) {
        self.received.fetch_max(lsn.0, Relaxed);
        self.source.fetch_max(lsn.0, Relaxed);
    }

    /// The source's own write position is `lsn`.
    pub fn source(&self, lsn: Lsn) {
        self.source.fetch_max(lsn.0, Relaxed);
    }

    /// Bytes of changes that wait for the next flush.
    pub fn set_buffered_bytes(&self, bytes: u64) {
        self.buffered.store(bytes, Relaxed);
    }

    /// The position that the lake shows; `None` before the first commit.
    pub fn applied_lsn(&self) -> Option<Lsn> {
        position(&self.applied)
    }

    /// The position up to which the source has sent.
    pub fn received_lsn(&self) -> Option<Lsn> {
        position(&self.received)
    }

    /// The source's last known position.
    pub fn source_lsn(&self) -> Option<Lsn> {
        position(&self.source)
    }

    /// When this process last made a position durable: on an idle source too.
    pub fn applied_at(&self) -> Option<DateTime<Utc>> {
        match self.applied_at.load(Relaxed) {
            0 => None,
            micros => DateTime::from_timestamp_micros(micros),
        }
    }

    /// When this process last committed a lake snapshot.
    pub fn last_commit_at(&self) -> Option<DateTime<Utc>> {
        match self.last_commit.load(Relaxed) {
            0 => None,
            micros => DateTime::from_timestamp_micros(micros),
        }
    }

    /// Lake snapshots that this process committed.
    pub fn commits(&self) -> u64 {
        self.commits.load(Relaxed)
    }

    /// Bytes of changes that wait for the next flush.
    pub fn buffered_bytes(&self) -> u64 {
        self.buffered.load(Relaxed)
    }

    /// Rows copied and rows applied, over all tables.
    pub fn rows(&self) -> (u64, u64) {
        lock(&self.tables)
            .iter()
            .fold((0, 0), |(copied, applied), table| (copied + table.rows_copied(), applied + table.rows_applied()))
    }
}

/// One table of a running pipeline.
#[derive(Debug)]
pub struct TableProgress {
    source: TableName,
    target: TableName,
    state: AtomicU8,
    /// Negative where it is not known.
    total: AtomicI64,
    copied: AtomicU64,
    applied_rows: AtomicU64,
    nulled: AtomicU64,
    applied: AtomicU64,
    last_commit: AtomicI64,
    error: Mutex<Option<String>>,
}

impl TableProgress {
    fn new(source: TableName, target: TableName) -> TableProgress {
        TableProgress {
            source,
            target,
            state: AtomicU8::new(TableState::Pending as u8),
            total: AtomicI64::new(-1),
            copied: AtomicU64::new(0),
            applied_rows: AtomicU64::new(0),
            nulled: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            last_commit: AtomicI64::new(0),
            error: Mutex::new(None),
        }
    }

    /// The source's table.
    pub fn source(&self) -> &TableName {
        &self.source
    }

    /// The lake's table.
    pub fn target(&self) -> &TableName {
        &self.target
    }

    /// Where it is in its life.
    pub fn state(&self) -> TableState {
        state_from(self.state.load(Relaxed))
    }

    /// Moves it on. Leaving [`TableState::Errored`] forgets the reason.
    pub fn set_state(&self, state: TableState) {
        self.state.store(state as u8, Relaxed);
        if state != TableState::Errored {
            *lock(&self.error) = None;
        }
    }

    /// Stops it, with the reason.
    pub fn fail(&self, error: impl Into<String>) {
        *lock(&self.error) = Some(error.into());
        self.state.store(TableState::Errored as u8, Relaxed);
    }

    /// It stands still; `why`, where nobody asked for that.
    pub fn pause(&self, why: Option<String>) {
        *lock(&self.error) = why;
        self.state.store(TableState::Paused as u8, Relaxed);
    }

    /// It can't be begun yet, and why.
    pub fn wait(&self, why: String) {
        *lock(&self.error) = Some(why);
        self.state.store(TableState::Pending as u8, Relaxed);
    }

    /// Why it is errored, waits, or is paused where nobody asked for that.
    pub fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }

    /// The planner's estimate of its rows; a negative one means that it is not known.
    pub fn set_rows_total_estimate(&self, rows: i64) {
        self.total.store(rows, Relaxed);
    }

    /// The planner's estimate of its rows.
    pub fn rows_total_estimate(&self) -> Option<u64> {
        u64::try_from(self.total.load(Relaxed)).ok()
    }

    /// `rows` more were copied.
    pub fn add_rows_copied(&self, rows: u64) {
        self.copied.fetch_add(rows, Relaxed);
    }

    /// Sets the rows copied: what the lake says at a start, or 0 where a copy begins anew.
    pub fn set_rows_copied(&self, rows: u64) {
        self.copied.store(rows, Relaxed);
    }

    /// Rows copied.
    pub fn rows_copied(&self) -> u64 {
        self.copied.load(Relaxed)
    }

    /// `rows` more changes were applied.
    pub fn add_rows_applied(&self, rows: u64) {
        self.applied_rows.fetch_add(rows, Relaxed);
    }

    /// Sets the changes applied: what the lake says at a start.
    pub fn set_rows_applied(&self, rows: u64) {
        self.applied_rows.store(rows, Relaxed);
    }

    /// Changes applied.
    pub fn rows_applied(&self) -> u64 {
        self.applied_rows.load(Relaxed)
    }

    /// `values` more were set to NULL because their type could not hold them.
    pub fn add_nulled(&self, values: u64) {
        self.nulled.fetch_add(values, Relaxed);
    }

    /// Values set to NULL because their type could not hold them.
    pub fn nulled(&self) -> u64 {
        self.nulled.load(Relaxed)
    }

    /// The lake shows the table as of `lsn`.
    pub fn applied(&self, lsn: Lsn) {
        self.applied.fetch_max(lsn.0, Relaxed);
    }

    /// The position as of which the lake shows it.
    pub fn applied_lsn(&self) -> Option<Lsn> {
        position(&self.applied)
    }

    /// A lake snapshot that changed this table was committed just now.
    pub fn committed(&self) {
        self.last_commit.store(Utc::now().timestamp_micros(), Relaxed);
    }

    /// When this process last committed a change of it.
    pub fn last_commit_at(&self) -> Option<DateTime<Utc>> {
        match self.last_commit.load(Relaxed) {
            0 => None,
            micros => DateTime::from_timestamp_micros(micros),
        }
    }
}

fn position(value: &AtomicU64) -> Option<Lsn> {
    match value.load(Relaxed) {
        0 => None,
        lsn => Some(Lsn(lsn)),
    }
}

/// A poisoned lock guards counters only: they stay readable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str) -> TableName {
        TableName { schema: "public".into(), table: table.into() }
    }

    #[test]
    fn streaming_tables_move_with_the_pipeline_and_errored_ones_stay() {
        let progress = Progress::new();
        let a = progress.table(&name("a"), &name("a"));
        let b = progress.table(&name("b"), &name("b"));
        a.set_state(TableState::Streaming);
        b.set_state(TableState::Streaming);
        progress.applied(Lsn(10));
        b.fail("a value does not fit");
        progress.applied(Lsn(20));
        progress.applied(Lsn(15));
        assert_eq!((a.applied_lsn(), b.applied_lsn()), (Some(Lsn(20)), Some(Lsn(10))));
        assert_eq!(progress.applied_lsn(), Some(Lsn(20)));
        assert_eq!(b.error().as_deref(), Some("a value does not fit"));
        b.set_state(TableState::Snapshot);
        assert_eq!(b.error(), None);
        assert!(Arc::ptr_eq(&a, &progress.table(&name("a"), &name("a"))));
        a.add_rows_copied(5);
        b.add_rows_applied(7);
        assert_eq!(progress.rows(), (5, 7));
    }
}
