//! What a run of changes of a table without a key comes to. Its rows are told apart by their values alone, all of which the source sends
//! (REPLICA IDENTITY FULL); n equal rows are n rows, and it does not matter which of them goes.

use ahash::RandomState;
use arrow::row::{RowConverter, SortField};
use hashbrown::HashTable;

use super::change_log::ChangeLog;
use super::net_change::{KeyBytes, NetChange, contradiction, in_parts, op_at};
use crate::batch::change::Op;
use crate::batch::layout::TableLayout;
use crate::error::{Because, ErrorKind, Result};

/// Rows with these values that the log brought and did not take away again.
struct Equal {
    /// Where the values' bytes lie in the arena.
    start: usize,
    len: usize,
    /// The events that brought them.
    images: Vec<u64>,
}

/// Bytes that a row costs beside its own encoding.
const ROW_OVERHEAD: usize = 96;

/// Resolves a log that is settled. Each event that takes away a row which the log did not bring is one of [`NetChange::lookups`]: one row
/// of the lake goes for each. `memory` bounds the bytes of rows, as for [`super::net_change::resolve`].
///
/// # Errors
/// As [`super::net_change::resolve`].
pub fn resolve(log: &ChangeLog, layout: &TableLayout, memory: usize) -> Result<NetChange> {
    in_parts(1, |part, net| resolve_part(log, layout, part, memory, net))
}

/// Resolves a part of the values. `false`: they take more than `memory`.
fn resolve_part(
    log: &ChangeLog,
    layout: &TableLayout,
    (part, parts): (u64, u64),
    memory: usize,
    net: &mut NetChange,
) -> Result<bool> {
    let encoding = || format!("the rows of {} can't be encoded", layout.table);
    let fields = layout.key.iter().map(|&i| SortField::new(layout.columns[i].column_type.arrow())).collect();
    let converter = RowConverter::new(fields).because(ErrorKind::Internal, encoding)?;
    // Fixed seeds: equal rows must fall into the same part in each pass.
    let hasher = RandomState::with_seeds(1, 2, 3, 4);
    let mut arena: Vec<u8> = Vec::new();
    let mut table: HashTable<Equal> = HashTable::new();
    let mut taken = KeyBytes::new(memory);
    for (segment, first) in log.segment_starts().into_iter().enumerate() {
        let events = log.keyed_events(segment)?;
        let rows = converter.convert_columns(events.keys.columns()).because(ErrorKind::Internal, encoding)?;
        for (index, row) in rows.iter().enumerate() {
            let bytes = row.as_ref();
            let hash = hasher.hash_one(bytes);
            if parts > 1 && (hash >> 20) % parts != part {
                continue;
            }
            let event = first + index as u64;
            let op = op_at(events.ops.value(index))?;
            net.changes += u64::from(op != Op::MoveOut);
            if matches!(op, Op::Update | Op::Before) {
                // All values stay.
                continue;
            }
            let known = |equal: &Equal| &arena[equal.start..equal.start + equal.len] == bytes;
            let equal = match table.find_mut(hash, known) {
                Some(equal) => equal,
                None => {
                    let start = arena.len();
                    if !taken.take(bytes.len() + ROW_OVERHEAD) {
                        return Ok(false);
                    }
                    arena.extend_from_slice(bytes);
                    let rehash = |equal: &Equal| hasher.hash_one(&arena[equal.start..equal.start + equal.len]);
                    let equal = Equal { start, len: bytes.len(), images: Vec::new() };
                    table.insert_unique(hash, equal, rehash).into_mut()
                }
            };
            match op {
                Op::Insert | Op::MoveIn => equal.images.push(event),
                _ if equal.images.pop().is_some() => {}
                _ if log.is_truncated() => return Err(contradiction(layout, op)),
                _ => drop(net.lookups.insert(event)),
            }
        }
    }
    for equal in &table {
        net.winners.extend(equal.images.iter().copied());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{Int32Array, RecordBatch, StringArray, UInt8Array};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::change::ChangeBatch;
    use crate::batch::testing::{layout, numbered_table};

    /// A row: two values, either of which may be NULL.
    type Row = (Option<i32>, Option<&'static str>);

    const ROWS: [Row; 4] = [(None, None), (Some(1), None), (Some(1), Some("a")), (None, Some(""))];

    fn batch(events: &[(Op, Row)], layout: &TableLayout) -> ChangeBatch {
        let rows = RecordBatch::try_new(
            layout.schema(),
            vec![
                Arc::new(events.iter().map(|(_, row)| row.0).collect::<Int32Array>()),
                Arc::new(events.iter().map(|(_, row)| row.1).collect::<StringArray>()),
            ],
        );
        let ops = UInt8Array::from_iter_values(events.iter().map(|(op, _)| *op as u8));
        ChangeBatch { ops, rows: rows.unwrap(), unchanged: None }
    }

    /// A part without others is hard to find for it among many.
    #[test]
    fn a_row_larger_than_the_memory_leaves_room_for_the_others() {
        let mut layout = (*layout(&numbered_table(&[(1, "id", "int4"), (2, "b", "text")]))).clone();
        (layout.key, layout.keyless) = (vec![0, 1], true);
        let large: &str = "x".repeat(10_000).leak();
        let events = |large_ones: i32| {
            let mut log = ChangeLog::new(layout.key.clone());
            let rows = (0..20).map(|id| (Op::Insert, (Some(id), (id < large_ones).then_some(large))));
            log.push(batch(&rows.collect::<Vec<_>>(), &layout));
            log
        };
        let fits = |log: &ChangeLog| resolve_part(log, &layout, (0, 1), 5_000, &mut NetChange::default()).unwrap();
        assert!(fits(&events(0)) && fits(&events(1)));
        assert!(!fits(&events(2)));
    }

    proptest! {
        /// Taking the lookups' rows out of the lake and putting the winners in gives what the events lead to, in however many passes.
        #[test]
        fn counts_as_the_events_one_by_one(
            wanted in prop::collection::vec((0..3u8, 0..ROWS.len(), 0..ROWS.len()), 0..80),
            cuts in 1..20usize,
            memory in prop_oneof![Just(usize::MAX), Just(300usize), Just(40usize)],
        ) {
            let mut layout = (*layout(&numbered_table(&[(1, "id", "int4"), (2, "b", "text")]))).clone();
            (layout.key, layout.keyless) = (vec![0, 1], true);
            let lake: BTreeMap<Row, i32> = ROWS.iter().map(|row| (*row, 3)).collect();
            let mut model = lake.clone();
            let mut events = Vec::new();
            for (kind, from, to) in wanted {
                let (from, to) = (ROWS[from], ROWS[to]);
                match kind {
                    0 => {
                        *model.entry(to).or_default() += 1;
                        events.push((Op::Insert, to));
                    }
                    1 if model[&from] > 0 => {
                        *model.entry(from).or_default() -= 1;
                        events.push((Op::Delete, from));
                    }
                    2 if model[&from] > 0 && from == to => events.push((Op::Update, to)),
                    2 if model[&from] > 0 => {
                        *model.entry(from).or_default() -= 1;
                        *model.entry(to).or_default() += 1;
                        events.extend([(Op::MoveOut, from), (Op::MoveIn, to)]);
                    }
                    _ => {}
                }
            }
            let mut log = ChangeLog::new(layout.key.clone());
            for part in events.chunks(cuts) {
                log.push(batch(part, &layout));
            }
            let net = super::super::net_change::resolve(&log, &layout, memory).unwrap();
            let mut result = lake;
            for event in &net.lookups {
                *result.get_mut(&events[event as usize].1).unwrap() -= 1;
            }
            prop_assert!(result.values().all(|count| *count >= 0));
            for event in &net.winners {
                *result.get_mut(&events[event as usize].1).unwrap() += 1;
            }
            prop_assert_eq!(result, model);
            let changes = events.iter().filter(|(op, _)| *op != Op::MoveOut).count();
            prop_assert_eq!(net.changes, changes as u64);
        }
    }
}
