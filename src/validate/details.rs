//! The rows of the buckets that differ, and in what they differ.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use duckpipe_storage::value_text;
use hashbrown::{HashMap, HashSet};

use super::finding::{Finding, FindingKind};
use super::lake_rows::RowSink;
use super::progress::ValidateProgress;
use super::sums::Hashing;
use crate::batch::layout::TableLayout;
use crate::error::{Because, ErrorKind, Result};

/// Characters of a value that are shown.
const SHOWN: usize = 60;

/// One row: per column the hash of its value, and the value for people.
#[derive(Clone, Debug)]
struct Row {
    file: Option<Arc<str>>,
    values: Vec<(u128, String)>,
}

/// The rows of chosen buckets by the hash of their key. Keys of one bucket are few, so memory is bounded by the number of buckets.
pub(super) struct Details {
    hashing: Hashing,
    chosen: Arc<HashSet<usize>>,
    progress: Arc<ValidateProgress>,
    rows: HashMap<u128, Vec<Row>>,
}

impl Details {
    pub(super) fn new(hashing: &Hashing, chosen: &Arc<HashSet<usize>>, progress: &Arc<ValidateProgress>) -> Details {
        let rows = HashMap::new();
        Details { hashing: hashing.clone(), chosen: Arc::clone(chosen), progress: Arc::clone(progress), rows }
    }

    fn total(all: Vec<Details>) -> HashMap<u128, Vec<Row>> {
        let mut total: HashMap<u128, Vec<Row>> = HashMap::new();
        for (key, rows) in all.into_iter().flat_map(|details| details.rows) {
            total.entry(key).or_default().extend(rows);
        }
        total
    }
}

impl RowSink for Details {
    fn add(&mut self, batch: &RecordBatch, file: Option<&str>) -> Result<()> {
        let keys = self.hashing.hasher.rows(batch, &self.hashing.key)?;
        let wanted: Vec<usize> = (0..keys.len())
            .filter(|row| self.hashing.counts(keys[*row]) && self.chosen.contains(&self.hashing.bucket(keys[*row])))
            .collect();
        self.progress.add(batch.num_rows() as u64);
        if wanted.is_empty() {
            return Ok(());
        }
        let file: Option<Arc<str>> = file.map(Arc::from);
        let mut rows: Vec<Row> = wanted
            .iter()
            .map(|_| Row { file: file.clone(), values: Vec::with_capacity(batch.num_columns()) })
            .collect();
        for column in batch.columns() {
            for (place, row) in rows.iter_mut().zip(&wanted) {
                let value = column.slice(*row, 1);
                let hash = self.hashing.hasher.values(&value)?.first().copied().unwrap_or_default();
                place.values.push((hash, shown(column, *row)?));
            }
        }
        for (row, index) in rows.into_iter().zip(wanted) {
            self.rows.entry(keys[index]).or_default().push(row);
        }
        Ok(())
    }
}

/// What the chosen buckets differ in, at most `most` rows.
pub(super) fn compare(
    source: Vec<Details>,
    lake: Vec<Details>,
    (table, layout): (&str, &TableLayout),
    most: usize,
) -> Vec<Finding> {
    let (source, mut lake) = (Details::total(source), Details::total(lake));
    let mut differing: Vec<(String, Vec<Finding>)> = Vec::new();
    let text_of = |row: &Row| -> String {
        let parts = layout.key.iter().map(|index| format!("{}={}", layout.columns[*index].name, row.values[*index].1));
        parts.collect::<Vec<_>>().join(", ")
    };
    let with_file = |finding: Finding, row: &Row| match &row.file {
        Some(file) => finding.file(file.as_ref()),
        None => finding,
    };
    for (key, of_source) in &source {
        let of_lake = lake.remove(key).unwrap_or_default();
        let Some(expected) = of_source.first() else { continue };
        let key = text_of(expected);
        let findings = match of_lake.as_slice() {
            [] => vec![
                Finding::new(FindingKind::MissingInLake, table, "the source has this row, the lake does not").key(&key),
            ],
            [found] if of_source.len() == 1 => expected
                .values
                .iter()
                .zip(&found.values)
                .zip(&layout.columns)
                .filter(|((expected, found), _)| expected.0 != found.0)
                .map(|((expected, found), column)| {
                    let detail = format!("{} in the source, {} in the lake", expected.1, found.1);
                    let finding = Finding::new(FindingKind::ValueDiffers, table, detail);
                    finding.key(&key).column(&column.name)
                })
                .map(|finding| with_file(finding, found))
                .collect(),
            rows => rows
                .iter()
                .map(|row| {
                    let detail =
                        format!("the lake shows {} rows with this key, the source {}", rows.len(), of_source.len());
                    with_file(Finding::new(FindingKind::DuplicateKey, table, detail).key(&key), row)
                })
                .collect(),
        };
        if !findings.is_empty() {
            differing.push((key, findings));
        }
    }
    for rows in lake.values() {
        let findings = rows.iter().map(|row| {
            let key = text_of(row);
            let detail = "the lake shows this row, the source does not have it";
            with_file(Finding::new(FindingKind::ExtraInLake, table, detail).key(key), row)
        });
        let key = rows.first().map(text_of).unwrap_or_default();
        differing.push((key, findings.collect()));
    }
    // Numbers in their order, not in that of their digits.
    differing.sort_by(|a, b| (a.0.len(), &a.0).cmp(&(b.0.len(), &b.0)));
    differing.into_iter().take(most).flat_map(|(_, findings)| findings).collect()
}

/// A value for people: as the lake prints it, cut where it is long.
pub(super) fn shown(array: &ArrayRef, row: usize) -> Result<String> {
    if array.is_null(row) {
        return Ok("NULL".into());
    }
    let text = match value_text(array, row) {
        Some(text) => text,
        None => ArrayFormatter::try_new(array, &FormatOptions::default())
            .because(ErrorKind::Internal, || "a value can't be shown".into())?
            .value(row)
            .try_to_string()
            .because(ErrorKind::Internal, || "a value can't be shown".into())?,
    };
    Ok(match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text,
    })
}
