//! Fresh copies of single tables beside the stream: of those that only a copy mends, and of those that somebody asks for.
//!
//! ```text
//!  errored, or asked for ──► snapshot ──copy committed──► catchup ──level──► streaming
//!       ▲                       │ row before slot            │  by a second slot of its own
//!       └──── a value that the copy can't take ──────────────┘
//! ```
//!
//! The tables leave the stream and keep their rows until the copy takes their place, in one snapshot. A second slot holds the WAL
//! from there on; a second stream reads it, until the pipeline's stream stands still for a moment and both are at one position.
//! Whoever dies in between finds the slot's name in the tables' rows.

use std::collections::HashMap as Map;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::{MutexGuard, watch};

use super::connections::Reading;
use super::gate::Gate;
use super::newcomers::Newcomers;
use super::rejoin::check_mode;
use super::{Runner, Table, show};
use crate::config::selection_of_any;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Alteration, CopiedTable, Renamed, TableRow, TableState, Wanted};
use crate::lsn::Lsn;
use crate::source::catalog;
use crate::source::replication::ReplicationConnection;
use crate::source::session::Session;
use crate::source::slot;
use crate::source::snapshot::SnapshotHolder;
use crate::source::table::{SourceTable, TableName};
use crate::sync::boundary::Boundary;
use crate::sync::failpoint::failpoint;
use crate::sync::flush::SyncTable;
use crate::sync::pipeline::{Budget, Pipeline};
use crate::sync::prepare;
use crate::sync::progress::Progress;
use crate::sync::renames::{self, Named};
use crate::sync::snapshot::{self, CopyOptions};
use crate::sync::stream::SharedTables;

/// How often the catalog is asked which tables are to be copied.
const LOOK: Duration = Duration::from_secs(1);
/// How often the source is asked whether it has new tables.
const NEWCOMERS: Duration = Duration::from_secs(5);
/// How long a table that errs by itself stands until it is copied afresh; twice as long each time that it errs again.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The longest that it stands.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// So many bytes of WAL behind the stream, a copy is near enough to join it.
const NEAR: u64 = 16 << 20;
/// How long the stream stands still for a copy to join it; twice as long each time that it was not enough.
const STANDS: Duration = Duration::from_secs(20);
/// Waiting for the stream to come as far as a copy.
const AHEAD: Duration = Duration::from_millis(200);
/// The share of the memory limit that a copy has for itself, beside the stream's.
const MEMORY_SHARE: u64 = 4;

/// When a table that errs may be copied again.
struct Again {
    at: Instant,
    pause: Duration,
}

/// A copy on its way to the stream.
struct Copy {
    pipeline: Arc<Pipeline>,
    tables: SharedTables,
    slot: String,
    session: Session,
}

impl Runner<'_> {
    /// The slot of copies beside the stream.
    pub(super) fn copy_slot(&self) -> String {
        slot::of_copies(&self.config.source.slot)
    }

    /// Copies tables that need it, for ever.
    ///
    /// # Errors
    /// Kind `Fenced`, when another process has taken over.
    pub(super) async fn copy_beside(&self, pipeline: &Arc<Pipeline>, shared: &SharedTables, gate: &Gate) -> Result<()> {
        let mut again: Map<u32, Again> = Map::new();
        let (mut newcomers, mut looked_at): (Newcomers, Option<Instant>) = (Newcomers::default(), None);
        let mut pause = LOOK;
        loop {
            if looked_at.is_none_or(|at| at.elapsed() >= NEWCOMERS) {
                looked_at = Some(Instant::now());
                if let Err(error) = self.take_in(pipeline, &mut newcomers).await {
                    tracing::warn!(%error, fix = error.remedy_text(), "new tables of the source can't be looked for");
                }
            }
            match self.copy_those_due(pipeline, shared, gate, &mut again).await {
                Ok(()) => pause = LOOK,
                Err(error) if error.kind() == ErrorKind::Fenced => return Err(error),
                Err(error) => {
                    pause = (pause * 2).min(FIRST_PAUSE);
                    tracing::warn!(%error, fix = error.remedy_text(), ?pause, "the copy of tables failed; trying again");
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn copy_those_due(
        &self,
        pipeline: &Arc<Pipeline>,
        shared: &SharedTables,
        gate: &Gate,
        again: &mut Map<u32, Again>,
    ) -> Result<()> {
        let turn = gate.turn().await;
        // Long after its last trouble a table is as good as any.
        again.retain(|_, again| again.at.elapsed() < LONGEST_PAUSE);
        let rows = self.lake.tables(&self.config.name).await?;
        let (begun, others): (Vec<TableRow>, Vec<TableRow>) = rows.into_iter().partition(|row| row.slot.is_some());
        if !begun.is_empty() {
            drop(turn);
            return match self.take_up(pipeline, &begun).await? {
                Some(copy) => self.bring_level(&copy, shared, gate).await,
                None => Ok(()),
            };
        }
        let due: Vec<TableRow> = others.into_iter().filter(|row| self.is_due(row, again)).collect();
        if due.is_empty() {
            return Ok(());
        }
        let leaving: Vec<&TableRow> = due.iter().filter(|row| row.state == TableState::Streaming).collect();
        if !leaving.is_empty() {
            let Some(_closed) = gate.close(STANDS).await else {
                return Err(Error::new(ErrorKind::Transient, "the stream did not stand still for a copy to begin"));
            };
            // Should the stream not stand any more, the catalog refuses what it still brings of them.
            let ids: Vec<i64> = leaving.iter().filter_map(|row| row.table_id).collect();
            self.lake.leave_stream(&pipeline.fence, &ids).await?;
            failpoint("left_stream");
            for row in &leaving {
                shared.remove(row.source_oid);
                self.progress.table(&row.source, &row.target).set_state(TableState::Pending);
            }
        }
        let Some(copy) = self.copy(pipeline, &due, turn).await? else { return Ok(()) };
        self.bring_level(&copy, shared, gate).await
    }

    /// Whether the table is to be copied now.
    fn is_due(&self, row: &TableRow, again: &mut Map<u32, Again>) -> bool {
        if !row.was_made() || selection_of_any(&self.config.tables(), row.names()).is_none() {
            return false;
        }
        if row.state == TableState::Catchup {
            // The pipeline's own first copy, which the stream still brings level.
            return false;
        }
        let half_made = row.table_id.is_none();
        if row.wanted == Some(Wanted::Resync) || row.state == TableState::Pending && row.wanted.is_none() {
            if !half_made {
                return true;
            }
        } else if row.state != TableState::Errored || !self.config.sync.resyncs() {
            return false;
        }
        let now = Instant::now();
        // The catalog has no place for what goes wrong with one that is half made.
        let first = if half_made { Duration::ZERO } else { FIRST_PAUSE };
        let next = again.entry(row.source_oid).or_insert(Again { at: now + first, pause: FIRST_PAUSE });
        if next.at > now {
            return false;
        }
        next.pause = (next.pause * 2).min(LONGEST_PAUSE);
        next.at = now + next.pause;
        true
    }

    /// Copies the tables, which the lake shows then as of the copy's own slot. `None`: none of them could be copied. It has the turn to
    /// decide about tables until the catalog says that they are being copied.
    async fn copy(&self, pipeline: &Arc<Pipeline>, due: &[TableRow], turn: MutexGuard<'_, ()>) -> Result<Option<Copy>> {
        let session = Session::connect(&self.settings).await?;
        let slot = self.copy_slot();
        let (mut tables, mut alterations) = (Vec::new(), HashMap::new());
        let recorded = self.lake.definitions(&self.config.name).await?;
        for row in due {
            let recorded = row.table_id.and_then(|table_id| recorded.get(&table_id));
            match self.prepare_copy(&session, pipeline, row, recorded).await {
                Ok((table, alteration)) => {
                    alterations.extend(alteration.map(|alteration| (table.0.oid, alteration)));
                    tables.push(table);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Fenced) => return Err(error),
                Err(_) if self.is_gone(&session, row).await? => self.end_table(pipeline, row).await?,
                Err(error) => self.stop_table(pipeline, row, &error).await?,
            }
        }
        if tables.is_empty() {
            return Ok(None);
        }
        let begun: Vec<CopiedTable> = tables
            .iter()
            .map(|(table, source): &Table| CopiedTable {
                table_id: table.lake.table_id,
                source_oid: table.oid,
                source: match alterations.get(&table.oid) {
                    // The commit of the copy gives both tables their names.
                    Some(Alteration { name: Some(_), .. }) => known_name(due, table.lake.table_id, &source.name),
                    _ => source.name.clone(),
                },
            })
            .collect();
        self.lake.begin_copy_beside(&pipeline.fence, &begun, &slot).await?;
        drop(turn);
        failpoint("beside_begun");
        for (table, source) in &tables {
            table.progress.set_state(TableState::Snapshot);
            table.progress.set_rows_total_estimate(source.estimated_rows);
            tracing::info!(table = %source.name, "copying the table afresh, beside the stream");
        }
        let beside = self.beside(pipeline, &slot);
        let copied = self.copy_at_new_slot(&session, &beside, &mut tables, alterations).await;
        if copied.is_err() {
            self.give_up(&session, pipeline, &tables.iter().map(|(table, _)| table.lake.table_id).collect::<Vec<_>>())
                .await?;
            for (table, _) in &tables {
                let removed = self.lake.remove_uploads(&pipeline.fence, &table.lake.folder, &self.store).await;
                if let Err(error) = removed {
                    tracing::warn!(%error, "files of a copy that failed stay until the next start");
                }
            }
        }
        copied?;
        self.copied(beside, session, tables).await
    }

    async fn copy_at_new_slot(
        &self,
        session: &Session,
        beside: &Arc<Pipeline>,
        tables: &mut [Table],
        alterations: HashMap<u32, Alteration>,
    ) -> Result<()> {
        let slot = self.copy_slot();
        // One of the same name can only be what an earlier copy left: the rows name it before it is made.
        slot::drop(session, &slot).await?;
        let mut replication = ReplicationConnection::connect(&self.settings).await?;
        // The source may have been promoted since this process began.
        let identity = replication.identify_system().await?;
        let created = replication.create_slot(&slot).await?;
        failpoint("beside_slot");
        let holder = SnapshotHolder::import(&self.settings, &created.snapshot).await?;
        for (_, source) in tables.iter_mut() {
            prepare::check_unchanged(session, source, &self.config.source.publication).await?;
            holder.settle(source).await?;
        }
        let options = CopyOptions {
            settings: &self.settings,
            workers: self.config.sync.snapshot_workers,
            on_unrepresentable: self.config.sync.on_unrepresentable,
            identity: &identity,
            anew: false,
            range_pages: self.config.sync.range_pages(),
            lsn: created.consistent_point,
            alterations,
        };
        snapshot::copy_all(beside, &options, &holder, tables, &self.stop).await?;
        holder.release().await;
        Ok(())
    }

    /// What of the tables was copied, and is on its way.
    async fn copied(&self, pipeline: Arc<Pipeline>, session: Session, tables: Vec<Table>) -> Result<Option<Copy>> {
        let slot = self.copy_slot();
        let rows = self.lake.tables(&self.config.name).await?;
        let on_its_way = |table_id: i64| {
            rows.iter()
                .any(|row| row.table_id == Some(table_id) && row.state == TableState::Catchup && row.slot.is_some())
        };
        let tables: Vec<Table> = tables.into_iter().filter(|(table, _)| on_its_way(table.lake.table_id)).collect();
        if tables.is_empty() {
            slot::drop(&session, &slot).await?;
            return Ok(None);
        }
        for (table, _) in &tables {
            table.progress.set_state(TableState::Catchup);
        }
        Ok(Some(Copy { pipeline, tables: SharedTables::new(tables), slot, session }))
    }

    /// Whether the source has no table any more that a row is of: neither that one, nor another of its name that is not another row's.
    async fn is_gone(&self, session: &Session, row: &TableRow) -> Result<bool> {
        let rows = self.lake.tables(&self.config.name).await?;
        if row.is_anothers(&rows, row.source_oid) {
            return Ok(true);
        }
        let named = catalog::name_of(session, row.source_oid).await?;
        let namesake = catalog::oid_of(session, &row.source).await?;
        Ok(named.is_none() && namesake.is_none_or(|oid| row.is_anothers(&rows, oid)))
    }

    /// A table that was to be copied, and that the source has dropped meanwhile, keeps the rows that it shows.
    async fn end_table(&self, pipeline: &Pipeline, row: &TableRow) -> Result<()> {
        match row.table_id {
            Some(table_id) => self.lake.end_table(&pipeline.fence, table_id).await?,
            None => self.lake.discard_half_made(&pipeline.fence, &row.target).await?,
        }
        if let Some(progress) = self.progress.of_its_own(&row.source, &row.target) {
            progress.set_state(TableState::Dropped);
        }
        tracing::info!(table = %row.source, "the source has the table no more; the lake keeps the rows that it shows");
        Ok(())
    }

    /// The table as the source has it now, and the lake's table for it.
    async fn prepare_copy(
        &self,
        session: &Session,
        pipeline: &Pipeline,
        row: &TableRow,
        recorded: Option<&SourceTable>,
    ) -> Result<(Table, Option<Alteration>)> {
        let published = self.published(session).await?;
        let chosen = prepare::choose_known(session, self.config, row, Some(&published.name));
        let chosen = chosen.await?;
        check_mode(row, chosen.layout.mode)?;
        let rows = self.lake.tables(&self.config.name).await?;
        if row.is_anothers(&rows, chosen.source.oid) {
            let what = format!("{} is that of another table of the lake", chosen.source.name);
            return Err(Error::new(ErrorKind::Table, what).remedy("let go of one: `duckpipe tables remove`"));
        }
        prepare::refuse_partition(session, &chosen.source, &rows).await?;
        let source = self.publish(session, &published, &chosen).await?;
        if chosen.target != row.target {
            let (lake, target) = (&row.target, &chosen.target);
            let what = format!("{} is the lake's {lake}, but has the target {target} now", row.source);
            return Err(Error::new(ErrorKind::Table, what).remedy("copy everything anew: `duckpipe sync --resnapshot`"));
        }
        // The row has the oid of a copy that was begun, the definition that of the rows in the lake.
        let same_table = source.oid == recorded.map_or(row.source_oid, |recorded| recorded.oid);
        if !same_table {
            tracing::warn!(table = %row.source, "the source's table was dropped and made anew: it is another one, copied afresh");
        }
        let (mut lake, mut alteration) = match self.lake.refit(row, &chosen.layout, same_table).await? {
            Some(refitted) => refitted,
            None => (self.lake.create_table(&pipeline.fence, &chosen.new_table(true)).await?, None),
        };
        let mut progress = self.progress.table(&row.source, &row.target);
        if source.name != row.source || source.name != *row.named() {
            let names = Named { selected: row.named(), source: &row.source, target: &lake.name };
            if let Some(target) = renames::followed(self.config, &self.lake, names, &source.name).await? {
                let name = Some(Renamed { source: source.name.clone(), target: target.clone() });
                let (changes, columns) =
                    alteration.map_or_else(|| (Vec::new(), lake.columns.clone()), |a| (a.changes, a.columns));
                alteration = Some(Alteration { changes, columns, name });
                lake.name = target;
            }
            progress = self.progress.rename(&progress, &source.name, &lake.name);
        }
        let (selected, layout, partitioned) = (chosen.selected, Arc::new(chosen.layout), source.partitions.is_some());
        let table = SyncTable { oid: source.oid, selected, partitioned, layout, lake, progress };
        Ok(((Arc::new(table), source), alteration))
    }

    /// Goes on with what an earlier process, or an earlier try, began. `None`: that has to begin anew.
    async fn take_up(&self, pipeline: &Arc<Pipeline>, begun: &[TableRow]) -> Result<Option<Copy>> {
        let session = Session::connect(&self.settings).await?;
        let slot = self.copy_slot();
        let (copied, lost): (Vec<&TableRow>, Vec<&TableRow>) = begun
            .iter()
            .partition(|row| row.state == TableState::Catchup && row.slot.as_deref() == Some(slot.as_str()));
        let ids = |rows: &[&TableRow]| rows.iter().filter_map(|row| row.table_id).collect::<Vec<i64>>();
        // What was not committed was copied at a snapshot that nobody has any more.
        if !lost.is_empty() {
            self.lake.give_copy_up(&pipeline.fence, &ids(&lost)).await?;
        }
        let continues = match slot::find(&session, &slot).await? {
            Some(found) => {
                let lsn = self.lake.position(&self.config.name, Some(&slot)).await?;
                found.wal_status.as_deref() != Some("lost")
                    && found.invalidation.is_none()
                    && found.confirmed_flush.is_none_or(|confirmed| Some(confirmed) <= lsn)
            }
            None => false,
        };
        if copied.is_empty() || !continues {
            self.give_up(&session, pipeline, &ids(&copied)).await?;
            return Ok(None);
        }
        let recorded = self.lake.definitions(&self.config.name).await?;
        let published = self.published(&session).await?;
        let mut tables = Vec::new();
        for row in copied {
            let chosen = prepare::choose_known(&session, self.config, row, Some(&published.name));
            let joined = match chosen.await {
                Ok(chosen) => {
                    let recorded = row.table_id.and_then(|table_id| recorded.get(&table_id));
                    self.rejoin(row, recorded, &[chosen]).await
                }
                Err(error) => Err(error),
            };
            match joined {
                Ok(table) => {
                    show(&self.progress, row);
                    tables.push(table);
                }
                Err(error) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Fenced) => return Err(error),
                Err(error) => self.stop_table(pipeline, row, &error).await?,
            }
        }
        self.copied(self.beside(pipeline, &slot), session, tables).await
    }

    async fn give_up(&self, session: &Session, pipeline: &Pipeline, table_ids: &[i64]) -> Result<()> {
        if !table_ids.is_empty() {
            self.lake.give_copy_up(&pipeline.fence, table_ids).await?;
        }
        slot::drop(session, &self.copy_slot()).await
    }

    /// What the parts of a copy share. Its own counters are nobody's; those of its tables are shown.
    fn beside(&self, pipeline: &Pipeline, slot: &str) -> Arc<Pipeline> {
        let memory = self.config.sync.memory_limit / MEMORY_SHARE;
        Arc::new(Pipeline {
            lake: self.lake.clone(),
            store: self.store.clone(),
            fence: pipeline.fence.clone(),
            budget: Budget::new(memory, self.config.sync.flush_bytes),
            spill_directory: pipeline.spill_directory.clone(),
            progress: Progress::new(),
            slot: Some(slot.to_owned()),
            resyncs: pipeline.resyncs,
        })
    }

    /// Reads the WAL since the copy, until its tables are where the pipeline's stream is, and hands them over.
    async fn bring_level(&self, copy: &Copy, shared: &SharedTables, gate: &Gate) -> Result<()> {
        let mut patience = STANDS;
        loop {
            let position = self.lake.position(&self.config.name, Some(&copy.slot)).await?;
            let Some(at) = position else {
                // All of them stopped on the way.
                return slot::drop(&copy.session, &copy.slot).await;
            };
            let stream = self.progress.applied_lsn().unwrap_or_default();
            if stream.0.saturating_sub(at.0) > NEAR {
                self.read_up_to(copy, at, stream).await?;
                continue;
            }
            // The slot's point may lie past what the stream has come to.
            if self.progress.received_lsn().is_none_or(|received| received < at) {
                tokio::time::sleep(AHEAD).await;
                continue;
            }
            let turn = gate.turn().await;
            let Some(closed) = gate.close(STANDS).await else {
                return Err(Error::new(ErrorKind::Transient, "the stream did not stand still for a copy to join it"));
            };
            let stands = closed.at;
            if stands >= at {
                let joined = tokio::time::timeout(patience, self.join(copy, at, stands)).await;
                self.hand_over(copy, shared, stands).await;
                drop(closed);
                match joined {
                    Ok(Ok(())) => return slot::drop(&copy.session, &copy.slot).await,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => {
                        tracing::warn!(
                            %at, %stands, ?patience,
                            "the copy did not become level while the stream stood for it; the stream goes on, and stands longer the next time"
                        );
                        // What it takes may be the same each time: the WAL that an open transaction holds, rows that are looked up. So the
                        // others have the stream for as long as they had to wait for this one.
                        drop(turn);
                        tokio::time::sleep(patience).await;
                        patience *= 2;
                    }
                }
            } else {
                drop((closed, turn));
                tokio::time::sleep(AHEAD).await;
            }
        }
    }

    /// The stream stands at `stands`, and the copy comes there too.
    async fn join(&self, copy: &Copy, at: Lsn, stands: Lsn) -> Result<()> {
        self.read_up_to(copy, at, stands).await?;
        failpoint("beside_join");
        if self.lake.position(&self.config.name, Some(&copy.slot)).await?.is_none() {
            return Ok(());
        }
        self.lake.join(&copy.pipeline.fence, &copy.slot, stands).await?;
        failpoint("beside_joined");
        Ok(())
    }

    /// The stream takes up what the catalog has as streaming, before it goes on. That decides, not what [`Runner::join`] came to: a
    /// transaction whose end was not waited for, or not told, may have committed. It is asked until it answers.
    async fn hand_over(&self, copy: &Copy, shared: &SharedTables, stands: Lsn) {
        let rows = loop {
            match self.lake.settled_tables(&self.config.name).await {
                Ok(rows) => break rows,
                Err(error) => {
                    tracing::warn!(%error, "whether a copy has joined the stream can't be read; the stream waits");
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        for (table, source) in copy.tables.all() {
            let row = rows.iter().find(|row| row.table_id == Some(table.lake.table_id));
            if row.is_some_and(|row| row.state == TableState::Streaming && row.slot.is_none()) {
                table.progress.set_state(TableState::Streaming);
                table.progress.applied(stands);
                tracing::info!(table = %source.name, lsn = %stands, "the fresh copy streams with the others");
                shared.add((table, source));
            }
        }
    }

    async fn read_up_to(&self, copy: &Copy, at: Lsn, until: Lsn) -> Result<()> {
        if at >= until {
            return Ok(());
        }
        let reading = Reading {
            session: &copy.session,
            slot: &copy.slot,
            from: at,
            // It never becomes level by itself.
            state: (TableState::Catchup, Some(Lsn(u64::MAX))),
            until: Some(until),
            boundary: Arc::new(Boundary::default()),
        };
        let (_stop, stop) = watch::channel(false);
        self.stream_once(&copy.pipeline, &copy.tables, reading, stop).await.map(drop)
    }
}

/// The name by which the catalog knows a table.
fn known_name(rows: &[TableRow], table_id: i64, now: &TableName) -> TableName {
    rows.iter().find(|row| row.table_id == Some(table_id)).map_or_else(|| now.clone(), |row| row.source.clone())
}
