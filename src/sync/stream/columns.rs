//! Tables whose definition changes while they stream.
//!
//! A transaction that describes a table anew waits until everything before it is in the lake. The lake's columns then change in the
//! commit that brings its rows: no version shows one without the other.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Failure, Stream, quarantine};
use crate::batch::change::ChangeBuilder;
use crate::batch::pgoutput::Relation;
use crate::batch::relation::RelationMap;
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::SourceTable;
use crate::source::wal_stream::WalChunk;
use crate::sync::change_log::ChangeLog;
use crate::sync::definition::{Changed, Described};
use crate::sync::flush::SyncTable;

/// Messages that wait, from this byte of a chunk on.
pub(super) struct Paused {
    pub(super) chunk: WalChunk,
    pub(super) byte: usize,
    /// They wait for a look at the catalog, and not for what is to be in the lake before them.
    pub(super) for_look: bool,
}

/// What a message tells that the source's catalog must be asked about.
pub(super) enum Asks {
    Nothing,
    /// A table as the next changes see it.
    Relation(Relation),
    /// A table as a subtransaction of a block sees it, which is not as it is known.
    InBlock(u32, Relation),
    /// A transaction that came in blocks committed, and described these tables, which look as they did.
    Committed(u32, Vec<u32>),
}

/// A pipeline's tables as the lake holds them, over all its connections.
pub struct SharedTables(Mutex<Vec<(Arc<SyncTable>, SourceTable)>>);

impl SharedTables {
    /// The tables as they are at the start.
    pub fn new(tables: Vec<(Arc<SyncTable>, SourceTable)>) -> Self {
        SharedTables(Mutex::new(tables))
    }

    /// All of them.
    pub fn all(&self) -> Vec<(Arc<SyncTable>, SourceTable)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A table that stopped is not taken up again by a later connection: changes of it were passed over.
    pub fn remove(&self, oid: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(table, _)| table.oid != oid);
    }

    /// A table that is where the others are.
    pub fn add(&self, table: (Arc<SyncTable>, SourceTable)) {
        self.remove(table.0.oid);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(table);
    }

    pub(super) fn replace(&self, table: &Arc<SyncTable>, source: &SourceTable) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (known, described) in tables.iter_mut().filter(|(known, _)| known.oid == table.oid) {
            (*known, *described) = (Arc::clone(table), source.clone());
        }
    }
}

impl Stream<'_> {
    /// Nothing that was received waits for the lake.
    pub(super) fn is_level(&self) -> bool {
        self.waiting.is_none() && self.in_flight.is_none() && self.cut.is_none()
    }

    /// Takes a relation as the next changes are to be understood. `false`: it must be told again, once the stream is level.
    pub(super) async fn describe(&mut self, relation: &Relation) -> Result<bool> {
        let Some(table) = self.tables.get_mut(&relation.oid).filter(|table| table.failed.is_none()) else {
            return Ok(true);
        };
        if self.is_applied {
            // Its changes are passed over. What comes after them is described anew where that is another definition.
            table.relation = RelationMap::new(&table.table.layout, &table.source, relation).ok();
            return Ok(true);
        }
        match self
            .definitions
            .judge(&self.pipeline.lake, (&table.table, &table.source), (relation, Some(self.xid)))
            .await
        {
            Ok(Described::Same(map, source)) => {
                table.unrecorded |= *source != table.source;
                (table.relation, table.source) = (Some(map), *source);
            }
            Ok(Described::Changed(changed)) => {
                if !self.is_level() {
                    return Ok(false);
                }
                self.change_columns(*changed);
            }
            Err(error) => quarantine(table, error)?,
        }
        Ok(true)
    }

    /// As [`Stream::describe`], for a transaction that comes in blocks. What changed before it is followed; what it changed itself
    /// counts against the table once it commits.
    pub(super) async fn describe_in_block(&mut self, xid: u32, relation: &Relation) -> Result<bool> {
        let oid = relation.oid;
        let Some(table) = self.tables.get(&oid).filter(|table| table.failed.is_none()) else { return Ok(true) };
        if !self.streamed.has_changes(oid) {
            match self.definitions.judge(&self.pipeline.lake, (&table.table, &table.source), (relation, None)).await {
                Ok(Described::Changed(changed)) => {
                    if !self.is_level() {
                        return Ok(false);
                    }
                    self.change_columns(*changed);
                }
                Ok(Described::Same(..)) => {}
                Err(error) if error.kind() == ErrorKind::Table => tracing::debug!(%error, "described within a block"),
                Err(error) => return Err(error),
            }
        }
        if let Some(table) = self.tables.get(&oid).filter(|table| table.failed.is_none()) {
            self.streamed.relation(xid, table, relation)?;
        }
        Ok(true)
    }

    /// Tables that look as they did may have other columns for all that.
    pub(super) async fn verify(&mut self, xid: u32, oids: &[u32]) -> Result<()> {
        for oid in oids {
            let Some(table) = self.tables.get_mut(oid).filter(|table| table.failed.is_none()) else { continue };
            if let Err(error) = self.definitions.verify(&table.source, xid).await {
                quarantine(table, error)?;
            }
        }
        Ok(())
    }

    pub(super) fn change_columns(&mut self, changed: Changed) {
        let Changed { source, table: new, relation, alteration } = changed;
        let Some(table) = self.tables.get_mut(&new.oid) else { return };
        if table.events() > 0 || table.alteration.is_some() || self.streamed.has_changes(new.oid) {
            let what =
                format!("one transaction of the source changed the rows of {} and then its columns", source.name);
            let error = Error::new(ErrorKind::Table, what)
                .remedy("copy the table anew: `duckpipe tables resync`")
                .mended_by_resync();
            table.fail(Failure::New(error));
            return;
        }
        tracing::info!(table = %source.name, columns = alteration.is_some(), "the table's definition changed");
        self.streamed.forget(new.oid);
        table.log = ChangeLog::new(new.layout.key.clone());
        table.builder = ChangeBuilder::new(Arc::clone(&new.layout), table.on_unrepresentable);
        table.table = Arc::new(new);
        (table.source, table.relation, table.alteration) = (source, relation, alteration);
        table.unrecorded = true;
        if table.alteration.is_none() {
            self.shared.replace(&table.table, &table.source);
        }
    }

    /// The lake has the columns that a flush brought.
    pub(super) fn altered(&self, oids: &[u32]) {
        let known = oids.iter().filter_map(|oid| self.tables.get(oid));
        for table in known.filter(|table| table.failed.is_none()) {
            self.shared.replace(&table.table, &table.source);
        }
    }
}
