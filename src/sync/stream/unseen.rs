//! Columns that changed without a row that would say so: the source's catalog is looked at, and what it has is applied once
//! everything before it is in the lake.
//!
//! A definition that was read before the source was at a position holds at that position, or at a later one that the WAL has told
//! nothing of yet: a row that follows comes with a message of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::{Failure, Stream, Waiting, quarantine};
use crate::batch::pgoutput::Relation;
use crate::error::Result;
use crate::lake::{Alteration, LakeTable, Renamed, TableState};
use crate::lsn::Lsn;
use crate::source::partitions::{self, Partition};
use crate::source::table::{SourceTable, TableName};
use crate::sync::definition::{is_same, other_values, unclear, with_parts_of};
use crate::sync::failpoint::failpoint;
use crate::sync::flush::SyncTable;
use crate::sync::pipeline::Pipeline;
use crate::sync::renames::{self, Named};

/// How often the source's catalog is looked at, at most.
const LOOK: Duration = Duration::from_secs(2);
/// So long a look waits for a moment without changes; then these wait for it.
const OVERDUE: Duration = Duration::from_secs(3);
/// A look at very many tables costs the source its time: it rests so many times as long.
const REST: u32 = 50;

/// Tables may have each other's names in a chain as long as this; where it is a ring nobody leaves a name.
const LONGEST_CHAIN: u32 = 4;

/// So often a run looks at its end: changes that are made meanwhile are the next run's.
const LOOKS_AT_END: u32 = 6;

/// What the source's catalog had at the last look.
pub(super) struct Unseen {
    next: Instant,
    looks_at_end: u32,
    /// Definitions that hold nothing new, by the tables' oids.
    known: HashMap<u32, i64>,
    /// Definitions that do.
    found: HashMap<u32, Found>,
    /// Tables that are not there any more, each with the position that everything of it lies before.
    gone: HashMap<u32, Lsn>,
}

impl Unseen {
    pub(super) fn new() -> Unseen {
        let (next, looks_at_end) = (Instant::now(), 0);
        Unseen { next, looks_at_end, known: HashMap::new(), found: HashMap::new(), gone: HashMap::new() }
    }
}

struct Found {
    source: SourceTable,
    mark: i64,
    /// How often it waited for the name that it has now.
    waits: u32,
    /// Everything up to here must be in the lake before it.
    at: Lsn,
}

impl Stream<'_> {
    /// Whether nothing is under way that may tell of a change by itself, and the last look is long enough ago.
    pub(super) fn look_is_due(&self) -> bool {
        self.state == TableState::Streaming
            && self.boundary.is_none()
            && self.is_level()
            && self.paused.as_ref().is_none_or(|paused| paused.for_look)
            && !self.in_transaction
            && self.unseen.next <= Instant::now()
    }

    /// Whether the message begins a transaction, or a part of one, that has to wait for a look: where they follow each other without a
    /// pause, something is under way all the time.
    pub(super) fn looks_before(&self, message: &[u8]) -> bool {
        matches!(message.first(), Some(b'B' | b'S'))
            && self.state == TableState::Streaming
            && self.boundary.is_none()
            && !self.in_transaction
            && !self.streamed.in_block()
            && self.unseen.next + OVERDUE.max(self.options.flush_interval) <= Instant::now()
    }

    /// At the end of a run: whether there is something left to do, for which the run must go on.
    pub(super) async fn goes_on_after_look(&mut self) -> Result<bool> {
        if !self.options.looks_at_end || self.state != TableState::Streaming || self.unseen.looks_at_end == LOOKS_AT_END
        {
            return Ok(false);
        }
        self.unseen.looks_at_end += 1;
        self.look().await?;
        self.record_failures().await?;
        if self.waiting.is_some() {
            self.start_flush()?;
            return Ok(true);
        }
        let found = self.unseen.found.values().map(|found| found.at);
        let until = found.chain(self.unseen.gone.values().copied()).max().filter(|at| *at > self.applied);
        let goes_on = until.is_some() || !self.unseen.gone.is_empty() || !self.unseen.found.is_empty();
        if let Some(until) = until {
            (self.options.until, self.boundary) = (Some(until), Some(until));
            self.cross(self.received);
        }
        Ok(goes_on)
    }

    /// Looks at the catalog, and begins to apply what is due.
    pub(super) async fn look(&mut self) -> Result<()> {
        let oids: Vec<u32> =
            self.tables.iter().filter(|(_, table)| table.failed.is_none()).map(|(oid, _)| *oid).collect();
        let begun = Instant::now();
        let marks = self.definitions.marks(&oids).await?;
        self.unseen.next = begun + LOOK.max(begun.elapsed() * REST);
        for oid in oids {
            let Some(&mark) = marks.get(&oid) else {
                self.end_dropped(oid).await?;
                continue;
            };
            self.unseen.gone.remove(&oid);
            match self.unseen.found.remove(&oid) {
                Some(found) if found.mark == mark && self.received >= found.at => self.apply_unseen(oid, found).await?,
                Some(found) if found.mark == mark => drop(self.unseen.found.insert(oid, found)),
                _ if self.unseen.known.get(&oid) == Some(&mark) => {}
                _ => self.compare(oid, mark).await?,
            }
            // Columns that a transaction brought which was rolled back after it had told of them.
            self.begin_alone(oid);
        }
        Ok(())
    }

    /// A table that the source has dropped keeps its rows: those of its end, once everything before that is in the lake.
    async fn end_dropped(&mut self, oid: u32) -> Result<()> {
        let Some(&at) = self.unseen.gone.get(&oid) else {
            let at = self.definitions.session.wal_position().await?;
            self.unseen.gone.insert(oid, at);
            return Ok(());
        };
        let Some(table) = self.tables.get_mut(&oid).filter(|_| self.received >= at) else { return Ok(()) };
        self.pipeline.lake.end_table(&self.pipeline.fence, table.table.lake.table_id).await?;
        failpoint("table_ended");
        table.fail(Failure::Recorded);
        table.table.progress.set_state(TableState::Dropped);
        self.unseen.gone.remove(&oid);
        self.shared.remove(oid);
        tracing::info!(table = %table.source.name, "the source has the table no more: it was dropped, or is a partition of another one now; the lake keeps its rows");
        Ok(())
    }

    async fn compare(&mut self, oid: u32, mark: i64) -> Result<()> {
        let Some(table) = self.tables.get_mut(&oid) else { return Ok(()) };
        let now = self.definitions.now(&table.source).await?;
        if let Some(source) = now.as_ref().filter(|source| differs(source, &table.source)) {
            let (source, at) = (source.clone(), self.definitions.session.wal_position().await?);
            self.unseen.found.insert(oid, Found { source, mark, waits: 0, at });
            return Ok(());
        }
        if let Some(source) = now {
            // Another heap, or a column that was changed, but not both: the next time they are what is known.
            let is_new = (source.file_node, &source.columns) != (table.source.file_node, &table.source.columns);
            table.unrecorded |= is_new;
            table.source = with_parts_of(source, &table.source);
            if is_new && table.alteration.is_none() {
                self.shared.replace(&table.table, &table.source);
            }
        }
        self.unseen.known.insert(oid, mark);
        Ok(())
    }

    async fn apply_unseen(&mut self, oid: u32, found: Found) -> Result<()> {
        let Some(table) = self.tables.get(&oid) else { return Ok(()) };
        if found.source.name != table.source.name {
            if found.waits < LONGEST_CHAIN && self.waits_for_its_name(oid, &found.source.name).await? {
                self.unseen.found.insert(oid, Found { waits: found.waits + 1, ..found });
                return Ok(());
            }
            // Whatever else is new about it is the next look's.
            self.rename(oid, &found.source).await?;
            self.begin_alone(oid);
            return Ok(());
        }
        let Some(table) = self.tables.get_mut(&oid) else { return Ok(()) };
        if let (Some(known), Some(now)) = (&table.source.partitions, &found.source.partitions) {
            if let Some(what) = partitions::unsaid(known, now, &table.truncations) {
                return quarantine(table, unclear(&table.source, &what));
            }
            table.source.partitions = Some(now.clone());
            table.unrecorded = true;
            table.truncations.clear();
            if table.alteration.is_none() {
                self.shared.replace(&table.table, &table.source);
            }
        }
        if let Some(why) = other_values(&table.source, &found.source) {
            return quarantine(table, unclear(&table.source, why));
        }
        // Rows that were received in part would have to fit; a message has told meanwhile.
        if self.streamed.has_changes(oid) {
            return Ok(());
        }
        if is_same(&found.source, &table.source) {
            // What the WAL had to tell of columns that came and went is read.
            if table.source.last_attnum != found.source.last_attnum {
                table.source.last_attnum = found.source.last_attnum;
                table.unrecorded = true;
                if table.alteration.is_none() {
                    self.shared.replace(&table.table, &table.source);
                }
            }
            return Ok(());
        }
        let known = (&*table.table, &table.source);
        match self.definitions.changed(&self.pipeline.lake, known, found.source, None).await {
            Ok(changed) => {
                self.change_columns(changed);
                self.begin_alone(oid);
                Ok(())
            }
            Err(error) => quarantine(table, error),
        }
    }

    /// The first row that a partition brings comes after a Relation message of its root, and then one of its own (`maybe_send_schema` in
    /// `src/backend/replication/pgoutput/pgoutput.c`). So a partition is known of that is made, filled and gone between two looks.
    pub(super) fn hear_of(&mut self, relation: &Relation) {
        let followed = self.tables.get(&relation.oid);
        let root = self.root.take();
        self.root = followed.filter(|table| table.source.partitions.is_some()).map(|_| relation.oid);
        let (None, Some(root)) = (followed, root) else { return };
        let partition = Partition::heard_of(relation.oid, relation.name.clone());
        if self.streamed.in_block() {
            self.streamed.hear_of(root, partition);
        } else {
            self.add_partition(root, partition);
        }
    }

    /// A partition of the table `root` brought rows; the commit that brings them into the lake says so too.
    pub(super) fn add_partition(&mut self, root: u32, partition: Partition) {
        let Some(table) = self.tables.get_mut(&root).filter(|table| table.failed.is_none()) else { return };
        let Some(known) = &mut table.source.partitions else { return };
        if known.iter().any(|known| known.oid == partition.oid) {
            return;
        }
        known.push(partition);
        table.unrecorded = true;
        self.unseen.known.remove(&root);
        if table.alteration.is_none() {
            self.shared.replace(&table.table, &table.source);
        }
    }

    /// What changes of the lake's table without a row that would need it goes into a commit of its own.
    fn begin_alone(&mut self, oid: u32) {
        if let Some(table) = self.tables.get_mut(&oid).filter(|table| table.alteration.is_some()) {
            table.alone = true;
            self.waiting = Some(Waiting { lsn: self.received, commit_ts: None, since: Instant::now() });
        }
    }

    /// Whether the name is that of another table which is about to leave it to this one, as where tables are rotated.
    async fn waits_for_its_name(&self, oid: u32, now: &TableName) -> Result<bool> {
        let Some(table) = self.tables.get(&oid) else { return Ok(false) };
        let known = &table.table;
        let names = Named { selected: &known.selected, source: &table.source.name, target: &known.lake.name };
        let Some(wanted) = renames::wanted(self.definitions.config, names, now) else { return Ok(false) };
        let holder = self.pipeline.lake.table_of(&wanted).await?;
        let mut holders = self.tables.iter().filter(|(other, table)| {
            **other != oid && table.failed.is_none() && Some(table.table.lake.table_id) == holder
        });
        Ok(holders.any(|(other, table)| {
            table.alteration.as_ref().is_some_and(|alteration| alteration.name.is_some())
                || self.unseen.found.get(other).is_some_and(|found| found.source.name != table.source.name)
        }))
    }

    /// The source's table has another name; the lake's follows where it may.
    async fn rename(&mut self, oid: u32, now: &SourceTable) -> Result<()> {
        let Some(table) = self.tables.get_mut(&oid) else { return Ok(()) };
        let Pipeline { lake, fence, progress, .. } = &*self.pipeline;
        let known = Arc::clone(&table.table);
        let names = Named { selected: &known.selected, source: &table.source.name, target: &known.lake.name };
        let followed = renames::followed(self.definitions.config, lake, names, &now.name).await?;
        let target = followed.unwrap_or_else(|| known.lake.name.clone());
        tracing::info!(table = %table.source.name, now = %now.name, %target, "the source's table has another name");
        let progress = progress.rename(&known.progress, &now.name, &target);
        if target == known.lake.name {
            lake.rename_source(fence, known.lake.table_id, &now.name).await?;
        } else {
            let name = Some(Renamed { source: now.name.clone(), target: target.clone() });
            let columns = known.lake.columns.clone();
            let changes = table.alteration.take().map_or_else(Vec::new, |pending| pending.changes);
            table.alteration = Some(Alteration { changes, columns, name });
        }
        table.source.name.clone_from(&now.name);
        let lake = LakeTable { name: target, ..known.lake.clone() };
        let (selected, layout) = (known.selected.clone(), Arc::clone(&known.layout));
        let partitioned = known.partitioned;
        table.table = Arc::new(SyncTable { oid, selected, partitioned, layout, lake, progress });
        table.unrecorded = true;
        if table.alteration.is_none() {
            self.shared.replace(&table.table, &table.source);
        }
        Ok(())
    }
}

/// Whether there is anything to do about a table that the catalog has like this.
fn differs(now: &SourceTable, known: &SourceTable) -> bool {
    !is_same(now, known)
        || now.name != known.name
        || now.last_attnum != known.last_attnum
        || !has_same_partitions(now, known)
        || other_values(known, now).is_some()
}

fn has_same_partitions(one: &SourceTable, other: &SourceTable) -> bool {
    partitions::is_same(one.partitions.as_deref(), other.partitions.as_deref())
}
