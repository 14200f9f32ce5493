//! The `[[tables]]` entries of a configuration at work: a reload replaces them, while everything else stays as it was read.

use std::sync::{Arc, PoisonError, RwLock};

use super::{Config, TableConfig};

/// The entries as they are now. Clones share them.
#[derive(Clone, Debug)]
pub struct Entries(Arc<RwLock<Arc<[TableConfig]>>>);

impl Entries {
    pub(super) fn new(tables: Vec<TableConfig>) -> Entries {
        Entries(Arc::new(RwLock::new(tables.into())))
    }

    fn get(&self) -> Arc<[TableConfig]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Config {
    /// The tables, as written: in order, patterns not yet resolved. See [`super::select`].
    pub fn tables(&self) -> Arc<[TableConfig]> {
        self.entries.get()
    }

    /// The configuration as it is now, which no later reload reaches.
    pub fn fixed(&self) -> Config {
        Config { entries: Entries(Arc::new(RwLock::new(self.tables()))), ..self.clone() }
    }

    /// Takes over the tables of another reading, here and in all clones. Gives the sections that differ otherwise: they stay as they are
    /// until the next start.
    pub fn reload(&self, other: &Config) -> Vec<&'static str> {
        let tables = other.tables();
        *self.entries.0.write().unwrap_or_else(PoisonError::into_inner) = tables;
        [
            ("name", self.name == other.name),
            ("[source]", self.source == other.source),
            ("[lake]", self.lake == other.lake),
            ("[s3]", self.s3 == other.s3),
            ("[sync]", self.sync == other.sync),
            ("[compact]", self.compact == other.compact),
        ]
        .into_iter()
        .filter(|(_, same)| !same)
        .map(|(section, _)| section)
        .collect()
    }
}
