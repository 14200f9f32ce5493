//! Transactions that come in blocks before they commit.
//!
//! Their changes are decoded as they come, into logs of their own, and wait there: in memory, or past the budget on local disk. A
//! commit appends them to the tables' logs; a rollback, of the whole or of a subtransaction, takes them back. What such a transaction says of a
//! relation holds for itself alone until it commits.

use std::path::Path;
use std::sync::Arc;

use hashbrown::HashMap;

use super::StreamTable;
use crate::batch::change::ChangeBuilder;
use crate::batch::pgoutput::Relation;
use crate::batch::relation::RelationMap;
use crate::error::{Error, ErrorKind, Result};
use crate::source::partitions::Partition;
use crate::sync::change_log::ChangeLog;

/// The transactions that have begun to come, by their ids.
#[derive(Default)]
pub(super) struct Streamed {
    transactions: HashMap<u32, HashMap<u32, StreamedTable>>,
    /// Partitions that they brought rows of, each with its transaction and its root's oid.
    partitions: Vec<(u32, u32, Partition)>,
    /// The transaction whose block is open.
    open: Option<u32>,
}

/// What a transaction that has not committed did to one table.
pub(super) struct StreamedTable {
    /// As the transaction sees it, where it said so.
    relation: Seen,
    pub(super) log: ChangeLog,
    builder: ChangeBuilder,
    /// The subtransaction that each of the builder's rows belongs to.
    xids: Vec<u32>,
    /// What could not be taken, by the subtransaction that brought it.
    failures: Vec<(u32, Error)>,
}

/// How a transaction sees a table.
enum Seen {
    /// As those that committed before.
    Before,
    Now(RelationMap),
    /// As something that the lake's table does not fit, and why. The server describes the table anew after a rollback, as it does in
    /// the next block of any transaction that changed a definition.
    Unfit(String),
}

impl StreamedTable {
    fn new(table: &StreamTable) -> StreamedTable {
        StreamedTable {
            relation: Seen::Before,
            log: ChangeLog::new(table.table.layout.key.clone()),
            builder: ChangeBuilder::new(Arc::clone(&table.table.layout), table.on_unrepresentable),
            xids: Vec::new(),
            failures: Vec::new(),
        }
    }

    fn seal(&mut self) -> Result<()> {
        if self.builder.rows() > 0 {
            self.log.add_nulled(self.builder.nulled_rows());
            let batch = self.builder.finish()?;
            self.log.push_of(batch, std::mem::take(&mut self.xids));
        }
        Ok(())
    }

    /// An error of the table's own counts once its subtransaction commits; any other is passed on.
    fn note(&mut self, xid: u32, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::Table => {
                if self.failures.iter().all(|(failed, _)| *failed != xid) {
                    self.failures.push((xid, error));
                }
                Ok(())
            }
            other => other,
        }
    }

    /// How the table looks once the transaction has committed, where it said so.
    pub(super) fn seen(&mut self) -> Option<RelationMap> {
        match std::mem::replace(&mut self.relation, Seen::Before) {
            Seen::Now(relation) => Some(relation),
            Seen::Before | Seen::Unfit(_) => None,
        }
    }

    /// What of it is to stop the table.
    pub(super) fn failure(&mut self) -> Option<Error> {
        (!self.failures.is_empty()).then(|| self.failures.swap_remove(0).1)
    }

    fn memory(&self) -> usize {
        self.log.memory() + self.builder.bytes()
    }
}

impl Streamed {
    /// Whether a block is open.
    pub(super) fn in_block(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn start(&mut self, xid: u32) {
        self.transactions.entry(xid).or_default();
        self.open = Some(xid);
    }

    pub(super) fn stop(&mut self) {
        self.open = None;
    }

    fn table(&mut self, oid: u32, table: &StreamTable) -> Result<&mut StreamedTable> {
        let open = self.open.and_then(|xid| self.transactions.get_mut(&xid));
        let open = open.ok_or_else(|| Error::new(ErrorKind::Internal, "a change of a block that is not open"))?;
        Ok(open.entry(oid).or_insert_with(|| StreamedTable::new(table)))
    }

    /// Whether a transaction did anything to the table that would have to fit another definition of it.
    pub(super) fn has_changes(&self, oid: u32) -> bool {
        let tables = self.transactions.values().filter_map(|tables| tables.get(&oid));
        tables.into_iter().any(|table| table.log.events() > 0 || table.builder.rows() > 0 || !table.failures.is_empty())
    }

    /// The table has another definition, which [`Streamed::has_changes`] says that nothing speaks against.
    pub(super) fn forget(&mut self, oid: u32) {
        for tables in self.transactions.values_mut() {
            tables.remove(&oid);
        }
    }

    /// How the table looks in the transaction from here on.
    pub(super) fn relation(&mut self, xid: u32, table: &StreamTable, relation: &Relation) -> Result<()> {
        let streamed = self.table(relation.oid, table)?;
        match RelationMap::new(&table.table.layout, &table.source, relation) {
            Ok(map) => {
                streamed.relation = Seen::Now(map);
                Ok(())
            }
            Err(error) => {
                streamed.relation = Seen::Unfit(error.to_string());
                streamed.note(xid, Err(error))
            }
        }
    }

    /// A change of a row.
    pub(super) fn change(
        &mut self,
        (oid, xid): (u32, u32),
        table: &StreamTable,
        append: impl FnOnce(&mut ChangeBuilder, &RelationMap) -> Result<()>,
    ) -> Result<()> {
        let streamed = self.table(oid, table)?;
        let appended = match (&streamed.relation, &table.relation) {
            (Seen::Now(relation), _) | (Seen::Before, Some(relation)) => append(&mut streamed.builder, relation),
            (Seen::Unfit(why), _) => Err(Error::new(ErrorKind::Table, why.clone())
                .remedy("copy the table anew: `duckpipe tables resync`")
                .mended_by_resync()),
            (Seen::Before, None) => Err(super::undescribed(oid)),
        };
        streamed.xids.resize(streamed.builder.rows(), xid);
        streamed.note(xid, appended)?;
        if super::is_batch(&streamed.builder) {
            streamed.seal()?;
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, (oid, xid): (u32, u32), table: &StreamTable) -> Result<()> {
        let streamed = self.table(oid, table)?;
        streamed.seal()?;
        streamed.log.truncate_of(xid);
        Ok(())
    }

    /// The transaction, or a subtransaction of it, rolled back.
    pub(super) fn abort(&mut self, xid: u32, subxid: u32) -> Result<()> {
        if xid == subxid {
            self.transactions.remove(&xid);
            self.partitions.retain(|(of, ..)| *of != xid);
            return Ok(());
        }
        for table in self.transactions.get_mut(&xid).into_iter().flat_map(HashMap::values_mut) {
            table.seal()?;
            table.log.abort(subxid);
            table.failures.retain(|(failed, _)| *failed != subxid);
        }
        Ok(())
    }

    /// The open block's transaction brings rows of a partition of the table `root`. Should only a subtransaction that rolls back have
    /// made it, it is looked for in vain, and the table copied for nothing.
    pub(super) fn hear_of(&mut self, root: u32, partition: Partition) {
        self.partitions.extend(self.open.map(|xid| (xid, root, partition)));
    }

    /// The transaction committed: the partitions that it named, with their roots' oids.
    pub(super) fn take_partitions(&mut self, xid: u32) -> Vec<(u32, Partition)> {
        let named = self.partitions.extract_if(.., |(of, ..)| *of == xid);
        named.map(|(_, root, partition)| (root, partition)).collect()
    }

    /// The transaction committed: what it did, by table, whole.
    pub(super) fn take(&mut self, xid: u32) -> Result<HashMap<u32, StreamedTable>> {
        let mut tables = self.transactions.remove(&xid).unwrap_or_default();
        for table in tables.values_mut() {
            table.seal()?;
        }
        Ok(tables)
    }

    pub(super) fn memory(&self) -> usize {
        self.transactions.values().flat_map(HashMap::values).map(StreamedTable::memory).sum()
    }

    /// Moves what is in memory to local disk.
    pub(super) fn spill(&mut self, directory: &Path) -> Result<()> {
        for table in self.transactions.values_mut().flat_map(HashMap::values_mut).filter(|table| table.memory() > 0) {
            table.seal()?;
            tokio::task::block_in_place(|| table.log.spill(directory))?;
        }
        Ok(())
    }
}
