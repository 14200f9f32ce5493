//! The WAL stream: messages to logs, logs to flushes, flushes to confirmed positions.
//!
//! Receiving and flushing go on side by side, one flush at a time. What is confirmed to the slot was durable in the catalog
//! before; a position is taken over only where every transaction up to it is.

mod columns;
mod cut;
mod flight;
mod flushing;
mod streamed;
mod unseen;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::watch;

use crate::batch::change::ChangeBuilder;
use crate::batch::layout::Mode;
use crate::batch::pgoutput::{self, Message};
use crate::batch::relation::RelationMap;
use crate::batch::value_error::OnUnrepresentable;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::lake::{Alteration, TableState};
use crate::lsn::Lsn;
use crate::source::table::SourceTable;
use crate::source::wal_stream::{WalChunk, WalMessage, WalStream};

use super::boundary::Boundary;
use super::change_log::ChangeLog;
use super::definition::Definitions;
use super::flush::SyncTable;
use super::pipeline::Pipeline;
pub use columns::SharedTables;
use columns::{Asks, Paused};
use cut::Cut;
pub use flight::explain;
use flight::{Flight, joined, next_flush};
use flushing::STOP_PATIENCE;
use streamed::Streamed;
use unseen::Unseen;

/// How a stream is to run.
pub struct StreamOptions {
    /// The longest that a committed change waits for its flush.
    pub flush_interval: Duration,
    /// What to do with a value that its lake type can't hold.
    pub on_unrepresentable: OnUnrepresentable,
    /// Stop once everything up to this position is durable, and nothing after it.
    pub until: Option<Lsn>,
    /// See to it before the end that no change of a table's definition is left that no row told of, even if the end lies a little later then.
    pub looks_at_end: bool,
    /// Who else may want a flush to end at a position.
    pub boundary: Arc<Boundary>,
    /// How often a flush is tried when store or catalog fail; `None`: for ever.
    pub attempts: Option<u32>,
}

/// How often progress is brought up to date, and the server asked for its position when a run waits for one.
const TICK: Duration = Duration::from_millis(200);
/// Events that a builder holds before they become a batch.
const BATCH_EVENTS: usize = 65_536;
/// Bytes that a builder holds before they become a batch.
const BATCH_BYTES: usize = 4 << 20;

/// One table in the stream.
struct StreamTable {
    table: Arc<SyncTable>,
    source: SourceTable,
    /// The lake's catalog may not have `source` yet.
    unrecorded: bool,
    relation: Option<RelationMap>,
    on_unrepresentable: OnUnrepresentable,
    builder: ChangeBuilder,
    log: ChangeLog,
    /// Events of complete transactions; those after belong to the open one.
    committed: u64,
    /// Those of them that the flush to a boundary takes, while the stream has a [`Cut`].
    cut: u64,
    /// How the lake's columns change with the next flush of the table.
    alteration: Option<Alteration>,
    /// They do so without a row that would need it.
    alone: bool,
    /// The transactions that emptied a partitioned table since its partitions were last looked at.
    truncations: HashSet<u32>,
    /// Why the table stands still, until the catalog knows.
    failed: Option<Failure>,
}

enum Failure {
    /// Not yet in the catalog.
    New(Error),
    /// In the catalog: changes are passed over.
    Recorded,
}

impl StreamTable {
    fn events(&self) -> u64 {
        self.log.events() + self.builder.rows() as u64
    }

    fn memory(&self) -> usize {
        self.log.memory() + self.builder.bytes()
    }

    fn seal(&mut self) -> Result<()> {
        if self.builder.rows() > 0 {
            self.log.add_nulled(self.builder.nulled_rows());
            let batch = self.builder.finish()?;
            self.log.push(batch);
        }
        Ok(())
    }

    /// The open transaction empties the table.
    fn truncate(&mut self) -> Result<()> {
        self.seal()?;
        match self.table.layout.mode {
            Mode::Mirror | Mode::SoftDelete => self.log.truncate(self.committed),
            Mode::History => self.log.append_truncate(),
        }
        Ok(())
    }

    fn fail(&mut self, failure: Failure) {
        self.log = ChangeLog::new(self.table.layout.key.clone());
        self.builder = ChangeBuilder::new(Arc::clone(&self.table.layout), self.on_unrepresentable);
        self.committed = 0;
        self.cut = 0;
        self.alteration = None;
        self.alone = false;
        self.failed = Some(failure);
    }
}

/// Complete transactions that wait for a flush.
#[derive(Clone, Copy)]
struct Waiting {
    lsn: Lsn,
    /// Of the last of them, µs since 1970; `None`: only columns change.
    commit_ts: Option<i64>,
    since: Instant,
}

/// The stream of one connection.
pub struct Stream<'a> {
    definitions: Definitions<'a>,
    /// The tables as a later connection is to take them up.
    shared: &'a SharedTables,
    pipeline: Arc<Pipeline>,
    options: StreamOptions,
    wal: WalStream,
    tables: HashMap<u32, StreamTable>,
    in_transaction: bool,
    /// The open transaction, or the last one, outside blocks.
    xid: u32,
    /// The open transaction is in the lake already: it may come again after a reconnect.
    is_applied: bool,
    /// Where reading goes on once everything that waits is flushed.
    paused: Option<Paused>,
    /// Indexes of `tables` that the open transaction changed.
    touched: Vec<u32>,
    /// The partitioned table that the message before described.
    root: Option<u32>,
    /// Transactions that came in part.
    streamed: Streamed,
    /// Changes of columns that no row tells of.
    unseen: Unseen,
    waiting: Option<Waiting>,
    /// The position at which a flush must end.
    boundary: Option<Lsn>,
    cut: Option<Cut>,
    /// Everything that committed up to here was received.
    received: Lsn,
    applied: Lsn,
    advanced_at: Instant,
    state: TableState,
    /// Where tables that catch up are level with the others: the source's position when the stream began.
    level_at: Lsn,
    in_flight: Option<Flight>,
    /// The tables whose columns it changes.
    altering: Vec<u32>,
}

impl<'a> Stream<'a> {
    /// A stream that goes on from `applied`. `state` is what the catalog says of the tables that stream.
    pub fn new(
        pipeline: Arc<Pipeline>,
        options: StreamOptions,
        wal: WalStream,
        (definitions, shared): (Definitions<'a>, &'a SharedTables),
        applied: Lsn,
        (state, level_at): (TableState, Lsn),
    ) -> Self {
        let tables = shared
            .all()
            .iter()
            .map(|(table, source)| {
                let stream = StreamTable {
                    table: Arc::clone(table),
                    source: source.clone(),
                    unrecorded: true,
                    relation: None,
                    on_unrepresentable: options.on_unrepresentable,
                    builder: ChangeBuilder::new(Arc::clone(&table.layout), options.on_unrepresentable),
                    log: ChangeLog::new(table.layout.key.clone()),
                    committed: 0,
                    cut: 0,
                    alteration: None,
                    alone: false,
                    truncations: HashSet::new(),
                    failed: None,
                };
                (table.oid, stream)
            })
            .collect();
        let mut stream = Stream {
            definitions,
            shared,
            pipeline,
            boundary: options.until,
            cut: None,
            options,
            wal,
            tables,
            in_transaction: false,
            xid: 0,
            is_applied: false,
            paused: None,
            touched: Vec::new(),
            root: None,
            streamed: Streamed::default(),
            unseen: Unseen::new(),
            waiting: None,
            received: applied,
            applied,
            advanced_at: Instant::now(),
            state,
            level_at,
            in_flight: None,
            altering: Vec::new(),
        };
        stream.cross(applied);
        stream
    }

    /// Runs until the wanted position is durable, or until told to stop; returns the applied position.
    ///
    /// # Errors
    /// Kind `Transient`, when the connection ends: start anew from the applied position. Kind `Fenced`, when another process
    /// has taken over.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<Lsn> {
        let result = self.follow(&mut stop).await;
        if let Err(error) = result {
            // The flush that is under way decides from where the next connection goes on, and with which columns and tables.
            if let Some(mut flush) = self.in_flight.take()
                && let Ok(done) = tokio::time::timeout(STOP_PATIENCE, &mut flush.0).await
                && let Ok(flushed) = joined(done)
            {
                self.finish_flush(flushed)?;
            }
            return Err(error);
        }
        let applied = self.applied;
        // A last position that the server does not take is sent again by the next start.
        self.wal.close().await?;
        Ok(applied)
    }

    async fn follow(&mut self, stop: &mut watch::Receiver<bool>) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if *stop.borrow() {
                return self.wind_up().await;
            }
            let changed = self.options.boundary.subscribe();
            let holds = self.mind_wish();
            if self.in_flight.is_none() {
                self.record_failures().await?;
                self.finish_cut().await?;
                // What came after a run's end is not its business.
                if !self.is_done() {
                    if self.flush_is_due() {
                        self.start_flush()?;
                    } else if self.advance_is_due() {
                        self.advance().await?;
                    }
                }
                if self.state == TableState::Catchup && self.applied >= self.level_at {
                    self.finish_catchup().await?;
                }
                if self.is_done() && !self.goes_on_after_look().await? {
                    return Ok(());
                }
                if self.in_flight.is_none() && self.look_is_due() {
                    self.look().await?;
                }
            }
            if !holds
                && self.is_level()
                && let Some(paused) = self.paused.take()
            {
                self.receive(paused.chunk, paused.byte).await?;
                continue;
            }
            let full = self.memory() >= self.pipeline.budget.buffer;
            if full && self.in_flight.is_none() {
                // What is left in memory belongs to transactions that are not complete.
                self.spill()?;
            }
            let reads = !(holds || self.paused.is_some() || full && self.in_flight.is_some());
            let due = self.waiting.map(|w| w.since + self.options.flush_interval);
            tokio::select! {
                chunk = self.wal.next(), if reads => match chunk? {
                    Some(chunk) => self.receive(chunk, 0).await?,
                    None => return Err(Error::new(ErrorKind::Transient, "the source ended the replication stream")),
                },
                done = next_flush(&mut self.in_flight), if self.in_flight.is_some() => {
                    self.in_flight = None;
                    self.finish_flush(joined(done)?)?;
                }
                () = sleep_until(due), if due.is_some() && self.in_flight.is_none() => {}
                _ = tick.tick() => self.on_tick(),
                () = changed => {}
                _ = stop.changed() => {}
            }
        }
    }

    fn on_tick(&self) {
        if self.boundary.is_some_and(|boundary| self.received < boundary) || self.received == self.applied {
            self.wal.request_keepalive();
        }
        self.pipeline.progress.received(self.received);
        self.pipeline.progress.set_buffered_bytes(self.memory() as u64);
    }

    fn memory(&self) -> usize {
        self.tables.values().map(StreamTable::memory).sum::<usize>() + self.streamed.memory()
    }

    fn is_done(&self) -> bool {
        self.options.until.is_some_and(|until| self.applied >= until)
    }

    // --- receiving ---------------------------------------------------------------------------------------------------

    /// Takes the messages from this byte on, up to one that has to wait.
    async fn receive(&mut self, chunk: WalChunk, byte: usize) -> Result<()> {
        let mut messages = chunk.messages_from(byte);
        loop {
            let byte = chunk.bytes() - messages.left();
            let Some(message) = messages.next() else { return Ok(()) };
            match message? {
                WalMessage::Data { payload, .. } if self.looks_before(payload) => {
                    self.paused = Some(Paused { chunk, byte, for_look: true });
                    return Ok(());
                }
                WalMessage::Data { payload, wal_start, .. } => {
                    let at = || format!("WAL message at {wal_start}");
                    match self.apply(payload).context(at)? {
                        Asks::Nothing => {}
                        Asks::Committed(xid, oids) => self.verify(xid, &oids).await.context(at)?,
                        Asks::Relation(relation) if self.describe(&relation).await.context(at)? => {}
                        Asks::InBlock(xid, relation) if self.describe_in_block(xid, &relation).await.context(at)? => {}
                        Asks::Relation(_) | Asks::InBlock(..) => {
                            self.paused = Some(Paused { chunk, byte, for_look: false });
                            return Ok(());
                        }
                    }
                }
                WalMessage::Keepalive { wal_end, .. } if !self.in_transaction => {
                    self.received = self.received.max(wal_end);
                    self.cross(self.received);
                }
                WalMessage::Keepalive { .. } => {}
            }
        }
    }

    /// Takes a message; says what of it is to be asked for at the source.
    fn apply(&mut self, payload: &[u8]) -> Result<Asks> {
        let (xid, message) = match self.streamed.in_block() {
            true => pgoutput::parse_in_block(payload)?,
            false => (0, pgoutput::parse(payload)?),
        };
        match &message {
            Message::Relation(relation) => self.hear_of(relation),
            // The types of its columns come before a relation.
            Message::Type => {}
            _ => self.root = None,
        }
        match message {
            Message::Begin { final_lsn, xid, .. } => {
                self.in_transaction = true;
                self.xid = xid;
                // The position is a record's end, and this is where the commit record begins.
                self.is_applied = final_lsn < self.applied;
                self.all_before(final_lsn);
            }
            Message::Commit { end_lsn, commit_ts, .. } => self.commit(end_lsn, commit_ts),
            Message::Insert { oid, new } => self.change((oid, xid), |builder, map| builder.insert(map, &new))?,
            Message::Update { oid, old, new } => {
                self.change((oid, xid), |builder, map| builder.update(map, old.as_ref(), &new))?;
            }
            Message::Delete { oid, old } => self.change((oid, xid), |builder, map| builder.delete(map, &old))?,
            Message::Relation(relation) if self.streamed.in_block() => {
                let Some(table) = self.tables.get(&relation.oid).filter(|table| table.failed.is_none()) else {
                    return Ok(Asks::Nothing);
                };
                if RelationMap::new(&table.table.layout, &table.source, &relation).is_err() {
                    return Ok(Asks::InBlock(xid, relation));
                }
                self.streamed.relation(xid, table, &relation)?;
            }
            Message::Relation(relation) => return Ok(Asks::Relation(relation)),
            // The message names each table that CASCADE reached; sequences, which RESTART IDENTITY sets back, are not in the lake.
            Message::Truncate { oids, .. } => {
                for oid in oids {
                    self.truncate(oid, xid)?;
                }
            }
            Message::StreamStart { xid, .. } => {
                self.in_transaction = true;
                self.streamed.start(xid);
            }
            Message::StreamStop => {
                self.in_transaction = false;
                self.streamed.stop();
            }
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_ts } => {
                self.all_before(commit_lsn);
                return Ok(Asks::Committed(xid, self.commit_streamed(xid, end_lsn, commit_ts)?));
            }
            Message::StreamAbort { xid, subxid } => self.streamed.abort(xid, subxid)?,
            Message::Origin | Message::Type | Message::Logical(_) => {}
        }
        Ok(Asks::Nothing)
    }

    /// Transactions come in commit order: all that committed before this commit record were received.
    fn all_before(&mut self, commit: Lsn) {
        self.received = self.received.max(commit);
        self.cross(self.received);
    }

    fn truncate(&mut self, oid: u32, xid: u32) -> Result<()> {
        let Some(table) = self.tables.get_mut(&oid).filter(|table| table.failed.is_none()) else { return Ok(()) };
        if table.source.partitions.is_some() {
            table.truncations.insert(if self.streamed.in_block() { xid } else { self.xid });
        }
        if self.streamed.in_block() {
            return self.streamed.truncate((oid, xid), table);
        }
        if self.is_applied {
            return Ok(());
        }
        if self.touched.last() != Some(&oid) {
            self.touched.push(oid);
        }
        table.truncate()
    }

    fn change(
        &mut self,
        (oid, xid): (u32, u32),
        append: impl FnOnce(&mut ChangeBuilder, &RelationMap) -> Result<()>,
    ) -> Result<()> {
        let Some(table) = self.tables.get_mut(&oid).filter(|table| table.failed.is_none()) else { return Ok(()) };
        if self.streamed.in_block() {
            return self.streamed.change((oid, xid), table, append);
        }
        if self.is_applied {
            return Ok(());
        }
        let Some(relation) = &table.relation else { return Err(undescribed(oid)) };
        if self.touched.last() != Some(&oid) {
            self.touched.push(oid);
        }
        if let Err(error) = append(&mut table.builder, relation) {
            quarantine(table, error)?;
        } else if is_batch(&table.builder) {
            table.seal()?;
        }
        Ok(())
    }

    /// What came in blocks takes its place behind everything that committed before. Returns the tables that it described anew.
    fn commit_streamed(&mut self, xid: u32, end_lsn: Lsn, commit_ts: i64) -> Result<Vec<u32>> {
        let tables = self.streamed.take(xid)?;
        for (root, partition) in self.streamed.take_partitions(xid) {
            self.add_partition(root, partition);
        }
        let mut described = Vec::new();
        // An applied transaction may come again after a reconnect.
        let applied = end_lsn <= self.applied;
        for (oid, mut streamed) in tables {
            let Some(table) = self.tables.get_mut(&oid).filter(|table| table.failed.is_none()) else { continue };
            let failure = streamed.failure();
            if let Some(relation) = streamed.seen() {
                table.relation = Some(relation);
                if !applied {
                    described.push(oid);
                }
            }
            if let Some(error) = failure.filter(|_| !applied) {
                quarantine(table, error)?;
            } else if !applied && streamed.log.events() > 0 {
                table.seal()?;
                table.log.append(streamed.log);
                self.touched.push(oid);
            }
        }
        self.commit(end_lsn, commit_ts);
        Ok(described)
    }

    fn commit(&mut self, end_lsn: Lsn, commit_ts: i64) {
        self.in_transaction = false;
        self.is_applied = false;
        if self.boundary.is_some_and(|boundary| boundary < end_lsn) {
            self.cross(end_lsn);
        }
        self.received = self.received.max(end_lsn);
        let mut changed = false;
        for oid in self.touched.drain(..) {
            if let Some(table) = self.tables.get_mut(&oid) {
                table.committed = table.events();
                if table.table.layout.mode != Mode::Mirror {
                    table.log.end_transaction(table.committed, end_lsn, commit_ts);
                }
                changed |= table.failed.is_none();
            }
        }
        // An applied transaction may come again after a reconnect, before the slot's own position; it must not count twice.
        if end_lsn <= self.applied {
            self.forget_up_to(end_lsn);
            self.cross(self.received);
            return;
        }
        if changed || self.waiting.is_some() {
            let since = self.waiting.map_or_else(Instant::now, |w| w.since);
            self.waiting = Some(Waiting { lsn: end_lsn, commit_ts: Some(commit_ts), since });
        }
        self.cross(self.received);
    }

    /// Drops what an already applied transaction brought.
    fn forget_up_to(&mut self, end_lsn: Lsn) {
        debug_assert!(self.waiting.is_none(), "transactions come in commit order");
        tracing::debug!(%end_lsn, "passed over a transaction that the lake holds already");
        for table in self.tables.values_mut() {
            table.builder = ChangeBuilder::new(Arc::clone(&table.table.layout), table.on_unrepresentable);
            table.log = ChangeLog::new(table.table.layout.key.clone());
            table.committed = 0;
            table.cut = 0;
        }
    }

    fn spill(&mut self) -> Result<()> {
        let directory: &Path = &self.pipeline.spill_directory;
        for table in self.tables.values_mut().filter(|t| t.memory() > 0) {
            table.seal()?;
            tokio::task::block_in_place(|| table.log.spill(directory))?;
        }
        self.streamed.spill(directory)
    }
}

/// Whether the builder's rows are enough for a batch.
fn is_batch(builder: &ChangeBuilder) -> bool {
    builder.rows() >= BATCH_EVENTS || builder.bytes() >= BATCH_BYTES
}

fn undescribed(oid: u32) -> Error {
    Error::new(ErrorKind::Internal, format!("a change of relation {oid} came before its description"))
}

/// A table's error stops the table; any other error is passed on.
fn quarantine(table: &mut StreamTable, error: Error) -> Result<()> {
    if error.kind() != ErrorKind::Table {
        return Err(error);
    }
    table.fail(Failure::New(error));
    Ok(())
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
