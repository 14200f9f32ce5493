//! What a commit reads before it writes: a fixed number of statements, whatever the number of its tables.

use std::collections::{HashMap, HashSet};

use super::commit::{Commit, DeleteCommit};
use super::copies::Shown;
use super::files::id_list;
use super::pipeline::{Fence, parse_lsn};
use super::session::Session;
use super::statistics::TableColumnStats;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::source::table::TableName;
use crate::sql::literal;

/// The present of a commit's tables.
#[derive(Default)]
pub(super) struct Facts {
    own: HashMap<i64, Shown>,
    next_row_ids: HashMap<i64, i64>,
    column_stats: HashMap<i64, HashMap<i64, TableColumnStats>>,
    /// Live data files among those that deletes name, with their live delete files.
    files: HashMap<i64, Vec<LiveRow>>,
    /// Tables for rows that other writers keep in the catalog instead of in files.
    inlined: HashMap<i64, Vec<String>>,
}

struct LiveRow {
    table_id: i64,
    delete: Option<OldDelete>,
}

/// The delete file that a commit replaces.
#[derive(Clone, Debug)]
pub(super) struct OldDelete {
    pub(super) id: i64,
    pub(super) path: String,
    pub(super) relative: bool,
}

impl Facts {
    pub(super) fn read(session: &Session, fence: &Fence, commit: &Commit) -> Result<Facts> {
        let mut facts = Facts::default();
        if commit.tables.is_empty() {
            return Ok(facts);
        }
        facts.read_own(session, fence)?;
        let changed = |wanted: &dyn Fn(&super::TableCommit) -> bool| {
            let ids = commit.tables.iter().filter(|table| wanted(table)).map(|table| table.table_id);
            ids.collect::<Vec<i64>>()
        };
        let with_data = changed(&|table| table.data.iter().any(|file| file.rows > 0));
        if !with_data.is_empty() {
            facts.read_stats(session, &id_list(with_data))?;
        }
        let replaced = changed(&|table| table.replace);
        if !replaced.is_empty() {
            facts.read_inlined(session, &id_list(replaced))?;
        }
        let files = commit.tables.iter().flat_map(|table| &table.deletes).map(|delete| delete.data_file_id);
        let files: HashSet<i64> = files.collect();
        if !files.is_empty() {
            facts.read_files(session, &id_list(files))?;
        }
        Ok(facts)
    }

    fn read_own(&mut self, session: &Session, fence: &Fence) -> Result<()> {
        let sql = format!(
            "SELECT table_id, target_schema, target_table, state, lsn, slot FROM {}.duckpipe_table \
             WHERE pipeline = {} AND table_id IS NOT NULL",
            session.tables(),
            literal(&fence.pipeline)
        );
        let rows = session.read(&sql, |row| {
            let name = TableName { schema: row.get(1)?, table: row.get(2)? };
            let texts = (row.get::<_, String>(3)?, row.get::<_, Option<String>>(4)?);
            Ok((row.get::<_, i64>(0)?, name, texts, row.get::<_, Option<String>>(5)?))
        })?;
        for (table_id, name, (state, lsn), slot) in rows {
            self.own.insert(table_id, Shown { name, state: state.parse()?, lsn: parse_lsn(lsn)?, slot });
        }
        Ok(())
    }

    fn read_stats(&mut self, session: &Session, table_ids: &str) -> Result<()> {
        let tables = session.tables();
        let sql =
            format!("SELECT table_id, next_row_id FROM {tables}.ducklake_table_stats WHERE table_id IN ({table_ids})");
        self.next_row_ids = session.read(&sql, |row| Ok((row.get(0)?, row.get(1)?)))?.into_iter().collect();
        let sql = format!(
            "SELECT table_id, column_id, contains_null, contains_nan, min_value, max_value \
             FROM {tables}.ducklake_table_column_stats WHERE table_id IN ({table_ids})"
        );
        let rows = session.read(&sql, |row| {
            let stats = TableColumnStats {
                contains_null: row.get(2)?,
                contains_nan: row.get(3)?,
                min: row.get(4)?,
                max: row.get(5)?,
            };
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, stats))
        })?;
        for (table_id, column_id, stats) in rows {
            self.column_stats.entry(table_id).or_default().insert(column_id, stats);
        }
        Ok(())
    }

    fn read_inlined(&mut self, session: &Session, table_ids: &str) -> Result<()> {
        let sql = format!(
            "SELECT table_id, table_name FROM {}.ducklake_inlined_data_tables WHERE table_id IN ({table_ids})",
            session.tables()
        );
        for (table_id, name) in session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? {
            self.inlined.entry(table_id).or_default().push(name);
        }
        Ok(())
    }

    fn read_files(&mut self, session: &Session, data_file_ids: &str) -> Result<()> {
        let tables = session.tables();
        let sql = format!(
            "SELECT f.data_file_id, f.table_id, d.delete_file_id, d.path, d.path_is_relative \
             FROM {tables}.ducklake_data_file f \
             LEFT JOIN {tables}.ducklake_delete_file d ON d.data_file_id = f.data_file_id AND d.end_snapshot IS NULL \
             WHERE f.end_snapshot IS NULL AND f.data_file_id IN ({data_file_ids})"
        );
        let rows = session.read(&sql, |row| {
            let delete = match row.get::<_, Option<i64>>(2)? {
                Some(id) => Some(OldDelete { id, path: row.get(3)?, relative: row.get(4)? }),
                None => None,
            };
            Ok((row.get::<_, i64>(0)?, LiveRow { table_id: row.get(1)?, delete }))
        })?;
        for (data_file_id, live) in rows {
            self.files.entry(data_file_id).or_default().push(live);
        }
        Ok(())
    }

    /// The pipeline's own row of a table.
    pub(super) fn own(&self, pipeline: &str, table_id: i64) -> Result<&Shown> {
        self.own
            .get(&table_id)
            .ok_or_else(|| Error::new(ErrorKind::Table, format!("the table is not one of pipeline {pipeline}")))
    }

    /// The pipeline's tables that do not show `lsn` after the commit, with the positions that they show.
    pub(super) fn behind(&self, commit: &Commit, lsn: Option<Lsn>) -> serde_json::Map<String, serde_json::Value> {
        let after = self.own.iter().map(|(table_id, own)| own.clone().after(*table_id, commit));
        after.filter_map(|own| own.behind(lsn)).collect()
    }

    /// The next row id; `None` where the table never had data.
    pub(super) fn next_row_id(&self, table_id: i64) -> Option<i64> {
        self.next_row_ids.get(&table_id).copied()
    }

    /// The rows of `ducklake_table_column_stats` by column.
    pub(super) fn column_stats(&self, table_id: i64) -> HashMap<i64, TableColumnStats> {
        self.column_stats.get(&table_id).cloned().unwrap_or_default()
    }

    pub(super) fn inlined(&self, table_id: i64) -> &[String] {
        self.inlined.get(&table_id).map_or(&[], Vec::as_slice)
    }

    /// Checks that the data file is live and that its live delete file is the one to be replaced, which is returned.
    pub(super) fn replaced(&self, table_id: i64, delete: &DeleteCommit) -> Result<Option<OldDelete>> {
        let moved = |what: &str| Error::new(ErrorKind::Conflict, format!("data file {} {what}", delete.data_file_id));
        let [live] = self.files.get(&delete.data_file_id).map_or(&[] as &[LiveRow], Vec::as_slice) else {
            return Err(moved("is not live any more"));
        };
        if live.table_id != table_id {
            return Err(Error::new(ErrorKind::Internal, "a delete file for another table's data file"));
        }
        match live.delete.as_ref().map(|old| old.id) == delete.replaces {
            true => Ok(live.delete.clone()),
            false => Err(moved("has got other deletes")),
        }
    }
}
