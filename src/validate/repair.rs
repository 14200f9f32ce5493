//! From buckets that differ to the changes that make the lake's rows those of the source.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt8Array, new_null_array};
use arrow::compute::filter_record_batch;
use hashbrown::{HashMap, HashSet};

use super::lake_rows::RowSink;
use super::progress::ValidateProgress;
use super::sums::Hashing;
use crate::batch::change::{ChangeBatch, Op};
use crate::batch::layout::TableLayout;
use crate::error::{Because, ErrorKind, Result};

/// The whole rows of chosen buckets.
pub(super) struct ChosenRows {
    hashing: Hashing,
    chosen: Arc<HashSet<usize>>,
    progress: Arc<ValidateProgress>,
    parts: Vec<Part>,
}

/// Rows, with the hashes of their keys and of all their values.
struct Part {
    rows: RecordBatch,
    keys: Vec<u128>,
    hashes: Vec<u128>,
}

impl ChosenRows {
    pub(super) fn new(hashing: &Hashing, chosen: &Arc<HashSet<usize>>, progress: &Arc<ValidateProgress>) -> ChosenRows {
        let parts = Vec::new();
        ChosenRows { hashing: hashing.clone(), chosen: Arc::clone(chosen), progress: Arc::clone(progress), parts }
    }
}

impl RowSink for ChosenRows {
    fn add(&mut self, batch: &RecordBatch, _: Option<&str>) -> Result<()> {
        self.progress.add(batch.num_rows() as u64);
        let keys = self.hashing.hasher.rows(batch, &self.hashing.key)?;
        let wanted: BooleanArray =
            keys.iter().map(|key| Some(self.chosen.contains(&self.hashing.bucket(*key)))).collect();
        if wanted.true_count() == 0 {
            return Ok(());
        }
        let rows = filtered(batch, &wanted)?;
        let keys = self.hashing.hasher.rows(&rows, &self.hashing.key)?;
        let hashes = self.hashing.hasher.rows(&rows, &self.hashing.all)?;
        self.parts.push(Part { rows, keys, hashes });
        Ok(())
    }
}

/// What makes the lake's rows of the chosen buckets those of the source, and how many keys differ: a DELETE for each of these that
/// the lake has, then an INSERT for each that the source has.
pub(super) fn changes(
    source: Vec<ChosenRows>,
    lake: Vec<ChosenRows>,
    layout: &TableLayout,
) -> Result<(u64, Vec<ChangeBatch>)> {
    let parts = |rows: Vec<ChosenRows>| rows.into_iter().flat_map(|rows| rows.parts).collect::<Vec<Part>>();
    let (source, lake) = (parts(source), parts(lake));
    // Per key, how many rows there are and what they add up to, on both sides.
    let mut sums: HashMap<u128, [(u64, u128); 2]> = HashMap::new();
    for (side, part) in source.iter().map(|part| (0, part)).chain(lake.iter().map(|part| (1, part))) {
        for (key, hash) in part.keys.iter().zip(&part.hashes) {
            let sum = &mut sums.entry(*key).or_default()[side];
            *sum = (sum.0 + 1, sum.1.wrapping_add(*hash));
        }
    }
    let differing: HashSet<u128> =
        sums.into_iter().filter(|(_, [source, lake])| source != lake).map(|(key, _)| key).collect();
    let mut changes = Vec::new();
    let mut deleted: HashSet<u128> = HashSet::new();
    for part in &lake {
        let wanted: BooleanArray =
            part.keys.iter().map(|key| Some(differing.contains(key) && deleted.insert(*key))).collect();
        if wanted.true_count() > 0 {
            let rows = keys_only(&filtered(&part.rows, &wanted)?, layout)?;
            changes.push(ChangeBatch { ops: ops(Op::Delete, &rows), rows, unchanged: None });
        }
    }
    for part in &source {
        let wanted: BooleanArray = part.keys.iter().map(|key| Some(differing.contains(key))).collect();
        if wanted.true_count() > 0 {
            let rows = filtered(&part.rows, &wanted)?;
            changes.push(ChangeBatch { ops: ops(Op::Insert, &rows), rows, unchanged: None });
        }
    }
    Ok((differing.len() as u64, changes))
}

fn filtered(rows: &RecordBatch, wanted: &BooleanArray) -> Result<RecordBatch> {
    filter_record_batch(rows, wanted).because(ErrorKind::Internal, || "rows can't be filtered".into())
}

fn ops(op: Op, rows: &RecordBatch) -> UInt8Array {
    std::iter::repeat_n(op as u8, rows.num_rows()).collect()
}

/// The rows as a DELETE has them.
fn keys_only(rows: &RecordBatch, layout: &TableLayout) -> Result<RecordBatch> {
    let schema = layout.schema();
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| match layout.key.contains(&index) {
            true => Arc::clone(rows.column(index)),
            false => new_null_array(field.data_type(), rows.num_rows()),
        })
        .collect();
    RecordBatch::try_new(schema, columns).because(ErrorKind::Internal, || "keys do not fit their table".into())
}
