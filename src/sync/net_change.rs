//! What a run of changes comes to: the rows that stay, the keys whose old rows go, and where unchanged values come from.

use ahash::RandomState;
use arrow::row::{RowConverter, SortField};
use hashbrown::{HashMap, HashTable};
use roaring::RoaringTreemap;

use crate::batch::change::Op;
use crate::batch::layout::{Mode, TableLayout};
use crate::error::{Because, Error, ErrorKind, Result};

use super::change_log::ChangeLog;
use super::net_rows;

/// The net change of a log. Events are named by their number in the log.
#[derive(Debug, Default)]
pub struct NetChange {
    /// The events whose row is the last image of a key that exists in the end.
    pub winners: RoaringTreemap,
    /// For each key that was in the lake before the log and is no more or has a new image: the first event with that
    /// key. Its old row must be found and deleted.
    pub lookups: RoaringTreemap,
    /// Those of them whose key need not be in the lake: where deleted rows are kept, a new one may have an old one's key.
    pub optional: RoaringTreemap,
    /// For each event with unchanged TOAST values: the image that they are unchanged from.
    pub origins: Origins,
    /// The number of rows that the source inserted, updated or deleted, but for those that a TRUNCATE removed afterwards.
    pub changes: u64,
}

/// The earlier image of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The row of an earlier event of the log.
    Event(u64),
    /// The row that the lake holds for the key of this event, which is one of [`NetChange::lookups`].
    Lake(u64),
}

/// The origins of many events. A row of the lake, the origin of most, costs a bit or two.
#[derive(Debug, Default)]
pub struct Origins {
    /// Events that replace the lake's row of their own key.
    updated: RoaringTreemap,
    /// Events that replace a row which the lake holds under the key of the event before, its MoveOut.
    moved: RoaringTreemap,
    /// Events that replace the image of an earlier event.
    earlier: HashMap<u64, u64>,
}

impl Origins {
    /// The origin of an event.
    pub fn get(&self, event: u64) -> Option<Origin> {
        if self.updated.contains(event) {
            Some(Origin::Lake(event))
        } else if self.moved.contains(event) {
            Some(Origin::Lake(event - 1))
        } else {
            self.earlier.get(&event).map(|earlier| Origin::Event(*earlier))
        }
    }

    /// The lookups whose row in the lake is an origin.
    pub fn lookups(&self) -> RoaringTreemap {
        let mut lookups = self.updated.clone();
        lookups.extend(self.moved.iter().map(|event| event - 1));
        lookups
    }

    /// The row that `event` changes was `before`.
    fn of_update(&mut self, event: u64, before: Before) {
        match before {
            Before::Lake => {
                self.updated.insert(event);
            }
            Before::Event(earlier) => {
                self.earlier.insert(event, earlier);
            }
        }
    }

    /// The row that `event` moves away, and the event after it moves in, was `before`.
    fn of_move(&mut self, event: u64, before: Before) {
        match before {
            Before::Lake => {
                self.moved.insert(event + 1);
            }
            Before::Event(earlier) => {
                self.earlier.insert(event + 1, earlier);
            }
        }
    }
}

/// The image that an event replaces, moves or removes.
#[derive(Clone, Copy)]
enum Before {
    Lake,
    Event(u64),
}

/// The life of one key within the log.
struct Key {
    /// Where its bytes lie in the arena.
    start: usize,
    len: u32,
    /// The first event, where the key was in the lake before.
    lookup: Option<u64>,
    /// The event with its present image; `None` once deleted, unless deleted rows are kept.
    image: Option<u64>,
    /// The image is of a deleted row.
    dead: bool,
    /// The key was in the lake as a deleted row's, or not at all.
    optional: bool,
}

/// Bytes that a key costs beside its own encoding, in the table and the arena.
const KEY_OVERHEAD: usize = 64;

/// Resolves a log that is settled. `memory` bounds the bytes for keys: a log with more keys is read in several passes over its keys, each of
/// which sees one part of them.
///
/// # Errors
/// Kind `Table`, when the events contradict each other, such as an INSERT of a key that exists: then lake and source have
/// parted. Kind `Transient`, when the spill file can't be read.
pub fn resolve(log: &ChangeLog, layout: &TableLayout, memory: usize) -> Result<NetChange> {
    if log.inserts_only() && layout.mode != Mode::SoftDelete {
        let mut net = NetChange::default();
        net.winners.insert_range(0..log.events());
        net.changes = log.events();
        return Ok(net);
    }
    if layout.keyless {
        return net_rows::resolve(log, layout, memory);
    }
    let passes = (log.events() as usize * KEY_OVERHEAD).div_ceil(memory.max(1)).max(1);
    in_parts(passes as u64, |part, net| resolve_part(log, layout, part, memory, net))
}

/// The bytes of a part's keys, against what they may take together.
pub(super) struct KeyBytes {
    limit: usize,
    taken: usize,
    /// One is larger than the limit by itself. It gets no smaller by more parts: each may have one such.
    has_large: bool,
}

impl KeyBytes {
    pub(super) fn new(limit: usize) -> KeyBytes {
        KeyBytes { limit, taken: 0, has_large: false }
    }

    /// One key more, of so many bytes. `false`: it does not fit.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        if bytes > self.limit {
            return !std::mem::replace(&mut self.has_large, true);
        }
        self.taken += bytes;
        self.taken <= self.limit
    }
}

/// Resolves a log part by part, each as (its number, how many there are). Where one does not fit, which `resolve` says by `false`, it begins
/// again with twice as many.
pub(super) fn in_parts(
    mut parts: u64,
    resolve: impl Fn((u64, u64), &mut NetChange) -> Result<bool>,
) -> Result<NetChange> {
    loop {
        let mut net = NetChange::default();
        let (mut fits, mut part) = (true, 0);
        while fits && part < parts {
            fits = resolve((part, parts), &mut net)?;
            part += 1;
        }
        if fits {
            return Ok(net);
        }
        parts *= 2;
    }
}

/// Resolves a part of the keys. `false`: their own bytes are more than `memory`.
fn resolve_part(
    log: &ChangeLog,
    layout: &TableLayout,
    (part, parts): (u64, u64),
    memory: usize,
    net: &mut NetChange,
) -> Result<bool> {
    let encoding = || format!("the key of {} can't be encoded", layout.table);
    let fields = layout.key.iter().map(|&i| SortField::new(layout.columns[i].column_type.arrow())).collect();
    let converter = RowConverter::new(fields).because(ErrorKind::Internal, encoding)?;
    // Fixed seeds: a key must fall into the same part in each pass.
    let hasher = RandomState::with_seeds(1, 2, 3, 4);
    let mut arena: Vec<u8> = Vec::new();
    let mut table: HashTable<Key> = HashTable::new();
    let mut taken = KeyBytes::new(memory);
    let keeps_deleted = layout.mode == Mode::SoftDelete;

    for (segment, first) in log.segment_starts().into_iter().enumerate() {
        let events = log.keyed_events(segment)?;
        let rows = converter.convert_columns(events.keys.columns()).because(ErrorKind::Internal, encoding)?;
        for (index, row) in rows.iter().enumerate() {
            let bytes = row.as_ref();
            let hash = hasher.hash_one(bytes);
            // The table uses the low and the top bits; the part is chosen by others.
            if parts > 1 && (hash >> 20) % parts != part {
                continue;
            }
            let event = first + index as u64;
            let op = op_at(events.ops.value(index))?;
            if op == Op::Before {
                continue;
            }
            let known = |key: &Key| &arena[key.start..key.start + key.len as usize] == bytes;
            let entry = match table.find_mut(hash, known) {
                Some(entry) => entry,
                None => {
                    let start = arena.len();
                    if !taken.take(bytes.len()) {
                        return Ok(false);
                    }
                    arena.extend_from_slice(bytes);
                    let was_in_lake = !matches!(op, Op::Insert | Op::MoveIn);
                    if was_in_lake && log.is_truncated() {
                        return Err(contradiction(layout, op));
                    }
                    let key = Key {
                        start,
                        len: bytes.len() as u32,
                        lookup: (was_in_lake || keeps_deleted && !log.is_truncated()).then_some(event),
                        // Stands for the image in the lake until the first event is applied below.
                        image: was_in_lake.then_some(event),
                        dead: false,
                        optional: !was_in_lake,
                    };
                    let rehash = |key: &Key| hasher.hash_one(&arena[key.start..key.start + key.len as usize]);
                    table.insert_unique(hash, key, rehash).into_mut()
                }
            };
            net.changes += u64::from(op != Op::MoveOut);
            let goes = matches!(op, Op::Delete | Op::MoveOut);
            if matches!(op, Op::Insert | Op::MoveIn) == (entry.image.is_some() && !entry.dead) {
                return Err(contradiction(layout, op));
            }
            let before = entry.image.map(|image| match entry.lookup {
                Some(lookup) if lookup == event => Before::Lake,
                _ => Before::Event(image),
            });
            match (op, before) {
                (Op::Update | Op::Delete, Some(before)) if events.unchanged(index).is_some() => {
                    net.origins.of_update(event, before);
                }
                // A MoveOut is directly followed by the MoveIn of the same row, which may lack values.
                (Op::MoveOut, Some(before)) => {
                    if events.unchanged(index).is_some() {
                        net.origins.of_update(event, before);
                    }
                    if index + 1 < rows.num_rows() && events.unchanged(index + 1).is_some() {
                        net.origins.of_move(event, before);
                    }
                }
                _ => {}
            }
            entry.image = (!goes || keeps_deleted).then_some(event);
            entry.dead = goes;
        }
    }
    for key in &table {
        net.winners.extend(key.image);
        net.lookups.extend(key.lookup);
        net.optional.extend(key.lookup.filter(|_| key.optional));
    }
    Ok(true)
}

pub(super) fn op_at(code: u8) -> Result<Op> {
    Op::from_u8(code)
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("a change log holds the unknown operation {code}")))
}

pub(super) fn contradiction(layout: &TableLayout, op: Op) -> Error {
    let what = match op {
        Op::Insert | Op::MoveIn => "the source inserts a key that already exists",
        _ => "the source changes a key that it removed before",
    };
    Error::new(ErrorKind::Table, format!("{}: {what}; lake and source have parted", layout.table))
        .remedy("take a fresh copy: `duckpipe tables resync`")
}

/// Follows the unchanged value of `column` from `event` to the image that holds it.
///
/// `unchanged` tells whether a column of an event is unchanged.
///
/// # Errors
/// Kind `Internal`, when an image with unchanged values has no origin.
pub fn trace(
    net: &NetChange,
    event: u64,
    column: usize,
    unchanged: &mut impl FnMut(u64, usize) -> Result<bool>,
) -> Result<Origin> {
    let mut at = event;
    loop {
        match net.origins.get(at) {
            Some(Origin::Event(earlier)) => {
                if !unchanged(earlier, column)? {
                    return Ok(Origin::Event(earlier));
                }
                at = earlier;
            }
            Some(lake) => return Ok(lake),
            None => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("event {at} has unchanged values of no known row"),
                ));
            }
        }
    }
}

/// A bitmap over the events of a segment that starts at event `first`: whether each is in `set`.
pub fn mask(set: &RoaringTreemap, first: u64, len: usize) -> arrow::array::BooleanArray {
    let mut bits = arrow::array::BooleanBufferBuilder::new(len);
    bits.append_n(len, false);
    let mut iter = set.iter();
    iter.advance_to(first);
    for event in iter.take_while(|event| *event < first + len as u64) {
        bits.set_bit((event - first) as usize, true);
    }
    arrow::array::BooleanArray::new(bits.finish(), None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{BinaryArray, Int64Array, RecordBatch, StringArray, UInt8Array};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::change::ChangeBatch;
    use crate::batch::layout::{ColumnType, LayoutColumn};

    fn layout() -> TableLayout {
        let column = |name: &str, attnum, column_type| LayoutColumn {
            name: name.into(),
            attnum,
            column_type,
            cast_to_text: false,
            not_null: false,
            delimiter: b',',
            text_source: Default::default(),
        };
        TableLayout {
            table: "public.t".into(),
            columns: vec![column("id", 1, ColumnType::Int8), column("big", 2, ColumnType::Text)],
            key: vec![0],
            keyless: false,
            mode: Default::default(),
        }
    }

    /// One event: operation, key, and the value of `big` (`None`: unchanged).
    type Event = (Op, i64, Option<String>);

    fn batch(events: &[Event]) -> ChangeBatch {
        let has_image = |op: Op| !matches!(op, Op::Delete | Op::MoveOut);
        let rows = RecordBatch::try_new(
            layout().schema(),
            vec![
                Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.1))),
                Arc::new(StringArray::from_iter(events.iter().map(|e| e.2.clone()))),
            ],
        )
        .unwrap();
        let unchanged = events.iter().map(|(op, _, big)| (has_image(*op) && big.is_none()).then_some([0b10u8]));
        ChangeBatch {
            ops: UInt8Array::from_iter_values(events.iter().map(|e| e.0 as u8)),
            rows,
            unchanged: Some(BinaryArray::from_iter(unchanged)),
        }
    }

    /// What a user does to a table with a few keys, as (kind, key, other key, keeps the big value).
    fn operations() -> impl Strategy<Value = Vec<(u8, i64, i64, bool)>> {
        let kind = prop_oneof![40 => 0..4u8, 1 => Just(TRUNCATE)];
        prop::collection::vec((kind, 0..6i64, 0..6i64, any::<bool>()), 0..120)
    }

    const TRUNCATE: u8 = 4;

    proptest! {
        /// Applying the net change to the old table gives the table that the events lead to, whatever the number of passes
        /// and wherever the log is cut, spilled or split into batches.
        #[test]
        fn equals_the_events_one_by_one(
            operations in operations(),
            cuts in prop::collection::vec(1..20usize, 1..10),
            spill in any::<bool>(),
            memory in prop_oneof![Just(usize::MAX), Just(200usize)],
        ) {
            let old: BTreeMap<i64, String> = (0..3).map(|k| (k, format!("lake{k}"))).collect();
            let mut model = old.clone();
            // From one TRUNCATE to the next.
            let mut parts: Vec<Vec<Vec<Event>>> = vec![Vec::new()];
            for (n, (kind, key, other, keep)) in operations.into_iter().enumerate() {
                if kind == TRUNCATE {
                    model.clear();
                    parts.push(Vec::new());
                    continue;
                }
                let changes = parts.last_mut().unwrap();
                let value = format!("v{n}");
                let given = (!keep).then(|| value.clone());
                match (kind, model.contains_key(&key)) {
                    (0 | 3, false) => {
                        model.insert(key, value.clone());
                        changes.push(vec![(Op::Insert, key, Some(value))]);
                    }
                    (1, true) => {
                        if let Some(given) = &given {
                            model.insert(key, given.clone());
                        }
                        changes.push(vec![(Op::Update, key, given)]);
                    }
                    (2, true) => {
                        model.remove(&key);
                        changes.push(vec![(Op::Delete, key, None)]);
                    }
                    (3, true) if !model.contains_key(&other) => {
                        let before = model.remove(&key).unwrap();
                        model.insert(other, given.clone().unwrap_or(before));
                        changes.push(vec![(Op::MoveOut, key, None), (Op::MoveIn, other, given)]);
                    }
                    _ => {}
                }
            }
            let mut log = ChangeLog::new(vec![0]);
            let mut cuts = cuts.into_iter().cycle();
            for (number, part) in parts.iter().enumerate() {
                if number > 0 {
                    // Some of the events before belong to the same transaction.
                    log.truncate(log.events() * cuts.next().unwrap() as u64 / 20);
                }
                let mut rest = part.as_slice();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                    log.push(batch(&now.concat()));
                    if spill {
                        log.spill(&std::env::temp_dir()).unwrap();
                    }
                    rest = later;
                }
            }
            log.settle();
            prop_assert_eq!(log.is_truncated(), parts.len() > 1);
            let net = resolve(&log, &layout(), memory).unwrap();

            let changes = parts.pop().unwrap();
            let events = changes.concat();
            let mut applied = if log.is_truncated() { BTreeMap::new() } else { old.clone() };
            for lookup in &net.lookups {
                prop_assert!(applied.remove(&events[lookup as usize].1).is_some());
            }
            for winner in &net.winners {
                let (_, key, big) = &events[winner as usize];
                let value = match big {
                    Some(value) => value.clone(),
                    None => match trace(&net, winner, 1, &mut |e, _| Ok(events[e as usize].2.is_none())).unwrap() {
                        Origin::Event(event) => events[event as usize].2.clone().unwrap(),
                        Origin::Lake(event) => old[&events[event as usize].1].clone(),
                    },
                };
                prop_assert!(applied.insert(*key, value).is_none());
            }
            prop_assert_eq!(applied, model);
            prop_assert_eq!(net.changes as usize, changes.len());
        }
    }

    #[test]
    fn an_insert_of_an_existing_key_is_a_contradiction() {
        let mut log = ChangeLog::new(vec![0]);
        let insert = |value: &str| (Op::Insert, 1, Some(value.to_owned()));
        log.push(batch(&[insert("a"), (Op::Update, 1, Some("b".into())), insert("c")]));
        assert_eq!(resolve(&log, &layout(), usize::MAX).unwrap_err().kind(), ErrorKind::Table);
    }

    /// After a TRUNCATE a row can only be changed once it was inserted.
    #[test]
    fn a_change_of_a_row_that_a_truncate_removed_is_a_contradiction() {
        for op in [Op::Update, Op::Delete, Op::MoveOut] {
            let mut log = ChangeLog::new(vec![0]);
            log.push(batch(&[(Op::Insert, 1, Some("a".into()))]));
            log.truncate(1);
            log.push(batch(&[(op, 1, Some("b".into()))]));
            log.settle();
            assert_eq!(resolve(&log, &layout(), usize::MAX).unwrap_err().kind(), ErrorKind::Table, "{op:?}");
        }
    }

    /// A TRUNCATE of an open transaction leaves those before it as they are, and needs no row of the lake for an UPDATE that it
    /// made void.
    #[test]
    fn a_truncate_lies_between_its_neighbours() {
        let mut log = ChangeLog::new(vec![0]);
        log.push(batch(&[(Op::Update, 1, None), (Op::Insert, 2, Some("a".into()))]));
        let committed = log.events();
        log.push(batch(&[(Op::Update, 1, None), (Op::Insert, 3, Some("gone".into()))]));
        log.truncate(committed);
        assert_eq!(log.events(), committed + 1, "what the same transaction did before is forgotten at once");
        log.push(batch(&[(Op::Insert, 1, Some("new".into()))]));

        let mut first = log.clone();
        let mut rest = first.split_off(committed);
        first.settle();
        rest.settle();
        assert!(!first.is_truncated() && rest.is_truncated());
        assert_eq!(resolve(&first, &layout(), usize::MAX).unwrap().lookups.iter().collect::<Vec<_>>(), [0]);
        assert!(rest.inserts_only() && rest.events() == 1);

        log.settle();
        let net = resolve(&log, &layout(), usize::MAX).unwrap();
        assert!(log.is_truncated() && net.lookups.is_empty() && net.origins.lookups().is_empty());
        assert_eq!((net.winners.len(), net.changes), (1, 1));
    }

    /// What several subtransactions did, in one batch and in several, in memory and on disk: what is left is what the others did, in its
    /// order, and so are the values that became NULL.
    #[test]
    fn a_subtransaction_is_taken_back_wherever_its_events_lie() {
        for spilled in [false, true] {
            let mut log = ChangeLog::new(vec![0]);
            log.push(batch(&[(Op::Insert, 1, Some("a".into()))]));
            log.add_nulled(&[(1, 10), (2, 20), (4, 40)]);
            let inserts =
                |keys: &[i64]| -> Vec<_> { keys.iter().map(|key| (Op::Insert, *key, Some("x".into()))).collect() };
            log.push_of(batch(&inserts(&[2, 3, 4, 5, 6])), vec![7, 7, 8, 7, 8]);
            log.truncate_of(8);
            log.push_of(batch(&inserts(&[7])), vec![8]);
            log.push_of(batch(&inserts(&[8])), vec![9]);
            if spilled {
                log.spill(&std::env::temp_dir()).unwrap();
            }
            log.abort(8);
            assert_eq!((log.events(), log.nulled()), (5, 10));
            let mut all = ChangeLog::new(vec![0]);
            all.push(batch(&inserts(&[0])));
            all.append(log);
            all.settle();
            assert!(!all.is_truncated());
            let keys: Vec<i64> = (0..all.segment_starts().len())
                .flat_map(|segment| {
                    let rows = all.rows(segment).unwrap();
                    rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
                })
                .collect();
            assert_eq!(keys, [0, 1, 2, 3, 5, 8]);
            // The value was one of the row with key 3, the fourth event.
            let rest = all.split_off(3);
            assert_eq!((all.nulled(), rest.nulled()), (0, 10));
        }
    }

    #[test]
    fn a_cut_log_keeps_its_halves_apart() {
        let mut log = ChangeLog::new(vec![0]);
        for n in 0..3 {
            log.push(batch(&[(Op::Insert, n, Some("x".into())), (Op::Insert, n + 10, Some("y".into()))]));
        }
        let rest = log.split_off(3);
        assert_eq!((log.events(), rest.events()), (3, 3));
        let keys = |log: &ChangeLog| -> Vec<i64> {
            (0..log.segment_starts().len())
                .flat_map(|s| {
                    let rows = log.rows(s).unwrap();
                    let ids: &Int64Array = rows.column(0).as_any().downcast_ref().unwrap();
                    ids.values().to_vec()
                })
                .collect()
        };
        assert_eq!((keys(&log), keys(&rest)), (vec![0, 10, 1], vec![11, 2, 12]));
    }
}
