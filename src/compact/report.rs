//! What a pass is asked and what it says.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::config::display_size;
use crate::lake::CompactionTable;

/// What a pass is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The one table, as source or lake name it; `None`: all.
    #[serde(default)]
    pub table: Option<String>,
    /// Change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request {
    /// Whether the table is one that was asked for.
    pub(super) fn names(&self, table: &CompactionTable) -> bool {
        match &self.table {
            None => true,
            Some(name) => [&table.source, &table.name].iter().any(|own| own.to_string() == *name),
        }
    }
}

/// What a pass did, or with `dry_run` what it would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing was changed.
    pub dry_run: bool,
    /// The tables.
    pub tables: Vec<TableReport>,
    /// Snapshots older than `retain`.
    pub snapshots_expired: u64,
    /// Files that were scheduled for deletion longer than `delete_grace` ago.
    pub files_deleted: u64,
    /// Scheduled files that stay, because they lie elsewhere or are in use.
    pub files_kept: Vec<String>,
    /// Files of runs that died before they could register them.
    pub orphans_deleted: u64,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// The lake's table.
    pub table: String,
    /// Its live data files at the start.
    pub files: u64,
    /// Rewrites.
    pub groups: u64,
    /// Files that were replaced.
    pub files_rewritten: u64,
    /// Their bytes.
    pub bytes_rewritten: u64,
    /// Files in their place.
    pub files_written: u64,
    /// Their bytes.
    pub bytes_written: u64,
    /// Their rows.
    pub rows_written: u64,
    /// Rows that no readable snapshot showed any more.
    pub rows_dropped: u64,
    /// Deletes that landed on a file while it was being rewritten.
    pub deletes_carried_over: u64,
    /// Why rewrites were given up; they are tried again by the next pass.
    pub given_up: Vec<String>,
    /// Why the table is left alone.
    pub left_out: Option<String>,
}

impl Report {
    /// The report for people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let would = if self.dry_run { "would be " } else { "" };
        for table in &self.tables {
            let _ = write!(out, "{}: {} files", table.table, table.files);
            if table.groups > 0 {
                let size = display_size(table.bytes_rewritten);
                let _ = write!(out, ", {} ({size}) {would}rewritten", table.files_rewritten);
            }
            if table.files_written > 0 {
                let size = display_size(table.bytes_written);
                let _ = write!(out, " as {} ({size})", table.files_written);
            }
            if table.rows_dropped > 0 {
                let _ = write!(out, ", {} dead rows dropped", table.rows_dropped);
            }
            out.push('\n');
            for why in table.given_up.iter().chain(&table.left_out) {
                let _ = writeln!(out, "  left as it is: {why}");
            }
        }
        let _ = writeln!(out, "snapshots {would}expired: {}", self.snapshots_expired);
        let _ = writeln!(out, "files {would}deleted: {}", self.files_deleted + self.orphans_deleted);
        for path in &self.files_kept {
            let _ = writeln!(out, "  kept: {path}");
        }
        out
    }
}
