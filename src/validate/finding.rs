//! What a validation finds, and its report.

use std::fmt;

use serde::Serialize;

use crate::lsn::Lsn;

/// What kind of damage or difference it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The lake's table was dropped.
    TableMissing,
    /// A registered file is not in the store.
    FileMissing,
    /// A file can't be read.
    FileUnreadable,
    /// A file has another size than the catalog says.
    FileSize,
    /// A file's footer has another size than the catalog says.
    FooterSize,
    /// A file has another number of rows than the catalog says.
    RowCount,
    /// A file lacks a column or has it in another type.
    Schema,
    /// The catalog's statistics of a file do not hold its values.
    FileStatistics,
    /// The catalog's statistics of a table do not hold its values.
    TableStatistics,
    /// A delete file has another number of positions than the catalog says.
    DeleteCount,
    /// A delete file's positions do not ascend, or lie past the data file's end.
    DeletePositions,
    /// A data file has two live delete files, or a delete file has no data file.
    DeleteFiles,
    /// A key has two live rows.
    DuplicateKey,
    /// A file that a version needs is scheduled for deletion.
    ScheduledForDeletion,
    /// Rows or deletes are kept in the catalog, where duckpipe does not look.
    Inlined,
    /// The source has a row that the lake does not have.
    MissingInLake,
    /// The lake has a row that the source does not have.
    ExtraInLake,
    /// A row has another value in the lake.
    ValueDiffers,
    /// Source and lake do not add up to the same, beyond the rows that are shown.
    SumsDiffer,
}

impl FindingKind {
    /// For people.
    fn words(self) -> &'static str {
        match self {
            FindingKind::TableMissing => "table missing",
            FindingKind::FileMissing => "file missing",
            FindingKind::FileUnreadable => "file unreadable",
            FindingKind::FileSize => "file size",
            FindingKind::FooterSize => "footer size",
            FindingKind::RowCount => "row count",
            FindingKind::Schema => "schema",
            FindingKind::FileStatistics => "statistics",
            FindingKind::TableStatistics => "table statistics",
            FindingKind::DeleteCount => "delete count",
            FindingKind::DeletePositions => "delete positions",
            FindingKind::DeleteFiles => "delete files",
            FindingKind::DuplicateKey => "duplicate key",
            FindingKind::ScheduledForDeletion => "scheduled for deletion",
            FindingKind::Inlined => "kept in the catalog",
            FindingKind::MissingInLake => "missing in the lake",
            FindingKind::ExtraInLake => "not in the source",
            FindingKind::ValueDiffers => "value differs",
            FindingKind::SumsDiffer => "sums differ",
        }
    }
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub kind: FindingKind,
    /// The lake's table.
    pub table: String,
    /// The file, below the data path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The row's key: `id=7, line=2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is found, in words.
    pub detail: String,
}

impl Finding {
    /// A finding about a table.
    pub fn new(kind: FindingKind, table: impl fmt::Display, detail: impl Into<String>) -> Finding {
        Finding { kind, table: table.to_string(), file: None, column: None, key: None, detail: detail.into() }
    }

    /// In this file.
    #[must_use]
    pub fn file(mut self, file: impl Into<String>) -> Finding {
        self.file = Some(file.into());
        self
    }

    /// In this column.
    #[must_use]
    pub fn column(mut self, column: impl Into<String>) -> Finding {
        self.column = Some(column.into());
        self
    }

    /// In the row with this key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Finding {
        self.key = Some(key.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.table, self.kind.words())?;
        for (what, value) in [("row", &self.key), ("column", &self.column), ("file", &self.file)] {
            if let Some(value) = value {
                write!(f, ", {what} {value}")?;
            }
        }
        write!(f, ": {}", self.detail)
    }
}

/// What was done with one table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// The source table.
    pub source: String,
    /// The lake's table.
    pub target: String,
    /// Rows of the source that were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_rows: Option<u64>,
    /// Rows of the lake that were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lake_rows: Option<u64>,
    /// Data and delete files that were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// Keys whose rows were replaced by the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired_keys: Option<u64>,
    /// Why the table, or a part of the question, was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// The table is errored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub errored: bool,
}

/// The result of a validation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The pipeline.
    pub pipeline: String,
    /// The lake's snapshot that was looked at.
    pub snapshot: i64,
    /// The source position at which both sides were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// The tables.
    pub tables: Vec<TableReport>,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
    /// What was not as it should be, until it was repaired.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repaired: Vec<Finding>,
    /// Files in the store that nothing refers to: waste, but no damage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub orphans: Vec<String>,
}

impl Report {
    /// Tables whose rows were compared with the source's.
    pub fn compared(&self) -> usize {
        self.tables.iter().filter(|table| table.source_rows.is_some() && !table.errored).count()
    }

    /// The report for people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let at = self.lsn.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
        out.push_str(&format!("pipeline {}, snapshot {}{at}\n", self.pipeline, self.snapshot));
        for table in &self.tables {
            let mut done = Vec::new();
            if let (Some(source), Some(lake)) = (table.source_rows, table.lake_rows) {
                done.push(format!("{source} rows of the source, {lake} of the lake"));
            } else if let Some(rows) = table.lake_rows {
                done.push(format!("{rows} rows"));
            }
            done.extend(table.files.map(|files| format!("{files} files")));
            done.extend(
                table.repaired_keys.map(|keys| format!("the rows of {keys} keys were replaced by the source's")),
            );
            done.extend(table.left_out.clone());
            out.push_str(&format!("  {}: {}\n", table.target, done.join("; ")));
        }
        for finding in &self.repaired {
            out.push_str(&format!("repaired: {finding}\n"));
        }
        for finding in &self.findings {
            out.push_str(&format!("{finding}\n"));
        }
        for orphan in &self.orphans {
            out.push_str(&format!("orphan: {orphan}\n"));
        }
        let (compared, all) = (self.compared(), self.tables.len());
        out.push_str(&match (self.findings.len(), self.lsn) {
            (0, Some(_)) if compared == 0 => "no table was compared\n".to_owned(),
            (0, Some(_)) if compared < all => format!("what was compared is equal: {compared} of {all} tables\n"),
            (0, Some(_)) if !self.repaired.is_empty() => "the lake is equal to the source again\n".to_owned(),
            (0, Some(_)) => "the lake is equal to the source\n".to_owned(),
            (0, None) => "the files are what the catalog says\n".to_owned(),
            (1, _) => "1 finding\n".to_owned(),
            (many, _) => format!("{many} findings\n"),
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_its_place() {
        let finding = Finding::new(FindingKind::ValueDiffers, "public.t", "1 in the source, 2 in the lake")
            .key("id=7")
            .column("n");
        assert_eq!(finding.to_string(), "public.t: value differs, row id=7, column n: 1 in the source, 2 in the lake");
        let json = serde_json::to_value(&finding).unwrap();
        assert_eq!((json["kind"].as_str(), json.get("file")), (Some("value_differs"), None));
    }
}
