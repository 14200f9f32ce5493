//! Statistics of the catalog against the values that they must hold.
//!
//! A reader skips files and answers aggregates by them, so counts must be exact; bounds may be wider than the values, never narrower.
//! Bounds are compared by DuckDB, whose casts of the catalog's texts are what a reader sees.

use std::collections::HashMap;

use super::file::Held;
use super::finding::{Finding, FindingKind};
use crate::error::Result;
use crate::lake::{FileStatistics, Lake, TableStatistics};

/// DuckDB's name of a DuckLake type whose texts are compared by casting them.
fn cast_type(lake_type: &str) -> Option<String> {
    Some(match lake_type {
        "boolean" => "BOOLEAN".into(),
        "int8" => "TINYINT".into(),
        "int16" => "SMALLINT".into(),
        "int32" => "INTEGER".into(),
        "int64" => "BIGINT".into(),
        "uint32" => "UINTEGER".into(),
        "float32" => "FLOAT".into(),
        "float64" => "DOUBLE".into(),
        "varchar" | "json" => "VARCHAR".into(),
        "date" | "time" | "timestamp" | "timestamptz" | "uuid" => lake_type.to_uppercase(),
        decimal if decimal.starts_with("decimal(") => decimal.to_uppercase(),
        _ => return None,
    })
}

/// Questions about bounds, asked together.
#[derive(Default)]
pub(super) struct Bounds {
    questions: Vec<(String, String, String)>,
    findings: Vec<Finding>,
}

impl Bounds {
    /// `min <= least` and `greatest <= max`, where all of them are known.
    fn ask(
        &mut self,
        lake_type: &str,
        said: (Option<&String>, Option<&String>),
        held: (Option<&String>, Option<&String>),
        finding: impl Fn(String) -> Finding,
    ) {
        let Some(cast) = cast_type(lake_type) else { return };
        if let (Some(min), Some(least)) = (said.0, held.0) {
            self.questions.push((cast.clone(), min.clone(), least.clone()));
            self.findings.push(finding(format!("the least value is {least}, but the catalog says {min}")));
        }
        if let (Some(max), Some(greatest)) = (said.1, held.1) {
            self.questions.push((cast, greatest.clone(), max.clone()));
            self.findings.push(finding(format!("the greatest value is {greatest}, but the catalog says {max}")));
        }
    }

    /// A file's statistics.
    pub(super) fn of_file(
        &mut self,
        (table, path): (&str, &str),
        held: &Held,
        said: &[FileStatistics],
        findings: &mut Vec<Finding>,
    ) {
        for column in &held.columns {
            let Some(said) = said.iter().find(|said| said.column_id == i64::from(column.stats.field_id)) else {
                // Nothing is said, and nothing is skipped by it.
                continue;
            };
            let finding =
                |detail| Finding::new(FindingKind::FileStatistics, table, detail).file(path).column(&column.name);
            let (values, nulls) = (column.stats.values, column.stats.nulls);
            // How lists count their elements is each writer's own way.
            if let Some(count) = said.nulls
                && (!column.nested && u64::try_from(count) != Ok(nulls) || column.nested && count == 0 && nulls > 0)
            {
                findings.push(finding(format!("{nulls} NULLs, but the catalog says {count}")));
            }
            if let Some(count) = said.values
                && !column.nested
                && u64::try_from(count) != Ok(values)
            {
                findings.push(finding(format!("{values} values, but the catalog says {count}")));
            }
            if said.contains_nan == Some(false) && column.stats.contains_nan == Some(true) {
                findings.push(finding("a NaN, but the catalog says that there is none".into()));
            }
            let bounds = (column.stats.min.as_ref(), column.stats.max.as_ref());
            self.ask(&column.lake_type, (said.min.as_ref(), said.max.as_ref()), bounds, finding);
        }
    }

    /// A table's statistics against all its live files.
    pub(super) fn of_table<'a>(
        &mut self,
        table: &str,
        held: impl IntoIterator<Item = &'a Held>,
        said: &TableStatistics,
        findings: &mut Vec<Finding>,
    ) {
        let mut nulls: HashMap<i64, (String, u64)> = HashMap::new();
        for column in held.into_iter().flat_map(|file| &file.columns) {
            let id = i64::from(column.stats.field_id);
            let Some(said) = said.columns.get(&id) else { continue };
            // A row without bounds tells DuckLake that there were only NULLs so far, and its next INSERT puts its own bounds there.
            // Which texts are too long for bounds is each writer's own way.
            let bounded = column.stats.min.is_some() && !matches!(column.lake_type.as_str(), "varchar" | "json");
            if bounded && !column.nested && said.min.is_none() && said.max.is_none() {
                let detail = "values, but the catalog says that there were only NULLs so far";
                let finding = Finding::new(FindingKind::TableStatistics, table, detail).column(&column.name);
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
            nulls.entry(id).or_insert_with(|| (column.name.clone(), 0)).1 += column.stats.nulls;
            let bounds = (column.stats.min.as_ref(), column.stats.max.as_ref());
            self.ask(&column.lake_type, (said.min.as_ref(), said.max.as_ref()), bounds, |detail| {
                Finding::new(FindingKind::TableStatistics, table, detail).column(&column.name)
            });
        }
        for (id, (name, nulls)) in nulls {
            if nulls > 0 && said.columns.get(&id).is_some_and(|said| said.contains_null == Some(false)) {
                let detail = format!("{nulls} NULLs, but the catalog says that there are none");
                findings.push(Finding::new(FindingKind::TableStatistics, table, detail).column(name));
            }
        }
    }

    /// Adds a finding for each bound that does not hold its values.
    pub(super) async fn answer(self, lake: &Lake, findings: &mut Vec<Finding>) -> Result<()> {
        const AT_ONCE: usize = 500;
        let mut wrong = self.findings.into_iter();
        for questions in self.questions.chunks(AT_ONCE) {
            for (holds, finding) in lake.in_order(questions).await?.into_iter().zip(wrong.by_ref()) {
                // A text that can't be cast is no bound either. A table's bound is asked of each file, and told once.
                let place = |f: &Finding| (f.kind, f.table.clone(), f.file.clone(), f.column.clone());
                if holds != Some(true) && !findings.iter().any(|earlier| place(earlier) == place(&finding)) {
                    findings.push(finding);
                }
            }
        }
        Ok(())
    }
}
