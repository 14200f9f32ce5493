//! The changes of one table, from the WAL into record batches with an operation per row.
//!
//! An UPDATE that keeps the key is one [`Op::Update`] with the new row; one that changes it is [`Op::MoveOut`] with
//! the old key, directly followed by [`Op::MoveIn`] with the new row. [`Op::Delete`] and [`Op::MoveOut`] carry the
//! key's columns only.
//!
//! Of a table whose every change is kept ([`Mode::History`]), old rows are taken as far as the source sends them: a whole one under REPLICA
//! IDENTITY FULL, where an UPDATE that keeps the key has an [`Op::Before`] in front.
//!
//! Of a table that keeps deleted rows ([`Mode::SoftDelete`]), a row that goes is one whose other values did not change.
//!
//! A value that is stored out of line and did not change is not sent. Under REPLICA IDENTITY FULL it is taken from
//! the old row here; else the batch says so, and it is filled from the key's earlier image later on.

use std::sync::Arc;

use arrow::array::{BinaryArray, RecordBatch, UInt8Array};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer};

use super::layout::{Mode, TableLayout};
use super::pgoutput::{OldKind, OldTuple, Tuple, Value};
use super::relation::RelationMap;
use super::row_builder::{Origin, RowBuilder};
use super::value_error::{Fault, OnUnrepresentable};
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// It is new.
    Insert = 0,
    /// It has new values under the same key.
    Update = 1,
    /// It is gone; only the key is real.
    Delete = 2,
    /// It leaves this key; only the key is real. The next row is its [`Op::MoveIn`].
    MoveOut = 3,
    /// It arrives under this key, with its new values; the row before is its [`Op::MoveOut`].
    MoveIn = 4,
    /// What the row was before the [`Op::Update`] that is the next row: in the changes of [`Mode::History`] only.
    Before = 5,
}

impl Op {
    /// The operation that a [`ChangeBatch`] holds as a number.
    pub fn from_u8(number: u8) -> Option<Op> {
        Some(match number {
            0 => Op::Insert,
            1 => Op::Update,
            2 => Op::Delete,
            3 => Op::MoveOut,
            4 => Op::MoveIn,
            5 => Op::Before,
            _ => return None,
        })
    }
}

/// Changes in the order in which they happened.
#[derive(Clone, Debug)]
pub struct ChangeBatch {
    /// An [`Op`] per row.
    pub ops: UInt8Array,
    /// The rows, in the layout's schema.
    pub rows: RecordBatch,
    /// Per row, which columns were not sent because they are stored out of line and unchanged: bit i (least
    /// significant first) is column i, whose value in `rows` is NULL. NULL, or no array at all: none.
    pub unchanged: Option<BinaryArray>,
}

/// Collects the changes of one table.
pub struct ChangeBuilder {
    rows: RowBuilder,
    ops: Vec<u8>,
    unchanged: Unchanged,
    mode: Mode,
}

impl ChangeBuilder {
    /// A builder for changes of a table of this layout.
    pub fn new(layout: Arc<TableLayout>, policy: OnUnrepresentable) -> Self {
        let unchanged = Unchanged::new(layout.columns.len());
        let mode = layout.mode;
        ChangeBuilder { rows: RowBuilder::new(layout, policy, Origin::Wal), ops: Vec::new(), unchanged, mode }
    }

    /// Adds an INSERT.
    ///
    /// # Errors
    /// `Table` where a value can't be taken, `Internal` where the tuple is not one of the relation. Nothing is added
    /// then.
    pub fn insert(&mut self, map: &RelationMap, new: &Tuple<'_>) -> Result<()> {
        self.expect_columns(map, new)?;
        self.append_row(map, Op::Insert, None, new)?;
        if self.unchanged.rows.last() != Some(&(self.rows.rows() - 1)) {
            return Ok(());
        }
        self.take_last_back();
        let what = format!(
            "{}: an UPDATE moved a row into the publication's row filter, and its large values were not sent",
            map.table()
        );
        Err(Error::new(ErrorKind::Table, what)
            .remedy("copy the table anew, `duckpipe tables resync`; with REPLICA IDENTITY FULL they would be sent")
            .mended_by_resync())
    }

    /// Adds an UPDATE.
    ///
    /// # Errors
    /// As [`ChangeBuilder::insert`].
    pub fn update(&mut self, map: &RelationMap, old: Option<&OldTuple<'_>>, new: &Tuple<'_>) -> Result<()> {
        self.expect_columns(map, new)?;
        let Some(old) = old else {
            return self.append_row(map, Op::Update, None, new);
        };
        self.expect_columns(map, &old.tuple)?;
        let keeps_key = !key_changed(map, &old.tuple, new);
        if keeps_key && !(self.mode == Mode::History && self.takes_whole(old)) {
            return self.append_row(map, Op::Update, Some(old), new);
        }
        let before = (self.rows.rows(), self.rows.bytes(), self.rows.nulled());
        let (out, into) = if keeps_key { (Op::Before, Op::Update) } else { (Op::MoveOut, Op::MoveIn) };
        self.append_old(map, out, old)?;
        let moved = self.append_row(map, into, Some(old), new);
        if moved.is_err() {
            self.rows.roll_back_to(before.0, before.1, before.2);
            self.ops.truncate(before.0);
            self.unchanged.truncate(before.0);
        }
        moved
    }

    /// Adds a DELETE.
    ///
    /// # Errors
    /// As [`ChangeBuilder::insert`].
    pub fn delete(&mut self, map: &RelationMap, old: &OldTuple<'_>) -> Result<()> {
        self.expect_columns(map, &old.tuple)?;
        self.append_old(map, Op::Delete, old)
    }

    #[cfg(test)]
    pub(super) fn layout(&self) -> &TableLayout {
        self.rows.layout()
    }

    /// Rows that wait; a change of the key counts as two.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// What they take in memory, estimated from their size on the wire.
    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.ops.len() + self.unchanged.bytes()
    }

    /// Values that became NULL by policy so far.
    pub fn nulled(&self) -> u64 {
        self.rows.nulled()
    }

    /// Which of the rows that wait hold values that became NULL by policy, and how many: a row's number from 0, a count.
    pub fn nulled_rows(&self) -> &[(usize, u64)] {
        self.rows.nulled_rows()
    }

    /// Hands out all changes, of which there may be none, and empties the builder.
    ///
    /// # Errors
    /// `Internal` where Arrow refuses the arrays.
    pub fn finish(&mut self) -> Result<ChangeBatch> {
        let ops = UInt8Array::from(std::mem::take(&mut self.ops));
        let unchanged = self.unchanged.finish(ops.len())?;
        Ok(ChangeBatch { ops, rows: self.rows.finish()?, unchanged })
    }

    #[inline]
    fn expect_columns(&self, map: &RelationMap, tuple: &Tuple<'_>) -> Result<()> {
        if tuple.len() == map.slots().len() && map.mapped() == self.rows.columns() {
            return Ok(());
        }
        let what = format!("{}: a row of {} values for a relation of {}", map.table(), tuple.len(), map.slots().len());
        Err(Error::new(ErrorKind::Internal, what))
    }

    /// Appends a whole row, its unsent values filled from `old` as far as that holds them.
    #[inline]
    fn append_row(&mut self, map: &RelationMap, op: Op, old: Option<&OldTuple<'_>>, new: &Tuple<'_>) -> Result<()> {
        let row = self.rows.rows();
        let mut old_values = old.map(|old| old.tuple.values());
        for (slot, mut value) in map.slots().iter().zip(new.values()) {
            let old_value = old_values.as_mut().and_then(Iterator::next);
            let Some(slot) = slot else { continue };
            if value == Value::Unchanged {
                value = match (old.map(|old| old.kind), old_value) {
                    (Some(OldKind::Full), Some(old_value)) => old_value,
                    (Some(OldKind::Key), Some(old_value)) if slot.is_key => old_value,
                    _ => Value::Unchanged,
                };
            }
            let appended = match value {
                Value::Unchanged if slot.is_key => Err(unsent_key()),
                Value::Unchanged => {
                    self.unchanged.mark(row, slot.column);
                    self.rows.append(slot.column, Value::Null)
                }
                value => self.rows.append(slot.column, value),
            };
            if let Err(fault) = appended {
                return self.take_back(map, slot.column, fault, new);
            }
        }
        self.rows.end_row(new.bytes());
        self.ops.push(op as u8);
        Ok(())
    }

    /// Whether an old row is taken with all its columns.
    #[inline]
    fn takes_whole(&self, old: &OldTuple<'_>) -> bool {
        self.mode != Mode::Mirror && old.kind == OldKind::Full
    }

    #[inline]
    fn append_old(&mut self, map: &RelationMap, op: Op, old: &OldTuple<'_>) -> Result<()> {
        match self.takes_whole(old) {
            true => self.append_row(map, op, None, &old.tuple),
            false => self.append_key(map, op, &old.tuple),
        }
    }

    /// Appends a row of which only the key is real.
    #[inline]
    fn append_key(&mut self, map: &RelationMap, op: Op, old: &Tuple<'_>) -> Result<()> {
        let row = self.rows.rows();
        for (slot, value) in map.slots().iter().zip(old.values()) {
            let Some(slot) = slot else { continue };
            let appended = match value {
                Value::Unchanged if slot.is_key => Err(unsent_key()),
                value if slot.is_key => self.rows.append(slot.column, value),
                _ if self.mode == Mode::SoftDelete => {
                    self.unchanged.mark(row, slot.column);
                    self.rows.append(slot.column, Value::Null)
                }
                _ => self.rows.append(slot.column, Value::Null),
            };
            if let Err(fault) = appended {
                return self.take_back(map, slot.column, fault, old);
            }
        }
        self.rows.end_row(old.bytes());
        self.ops.push(op as u8);
        Ok(())
    }

    /// Takes the last row back.
    #[cold]
    fn take_last_back(&mut self) {
        let before = self.rows.rows() - 1;
        self.rows.roll_back_to(before, self.rows.bytes(), self.rows.nulled());
        self.ops.truncate(before);
        self.unchanged.truncate(before);
    }

    #[cold]
    fn take_back(&mut self, map: &RelationMap, column: usize, fault: Fault, tuple: &Tuple<'_>) -> Result<()> {
        self.rows.roll_back();
        self.unchanged.truncate(self.rows.rows());
        let value_of = |column: usize| {
            let at = map.slots().iter().position(|slot| slot.is_some_and(|slot| slot.column == column));
            at.and_then(|at| tuple.values().nth(at)).unwrap_or(Value::Null)
        };
        let error = self.rows.value_error(column, fault, value_of);
        Err(Error::from(error)).context(|| map.table().to_owned())
    }
}

/// Whether an UPDATE changed its row's key. An old row is sent whenever the key changed, but not only then: also when
/// the key is stored out of line, and always under FULL.
#[inline]
fn key_changed(map: &RelationMap, old: &Tuple<'_>, new: &Tuple<'_>) -> bool {
    map.slots()
        .iter()
        .zip(old.values().zip(new.values()))
        .any(|(slot, (old, new))| slot.is_some_and(|slot| slot.is_key) && new != Value::Unchanged && old != new)
}

#[cold]
fn unsent_key() -> Fault {
    Fault::malformed("a value of the key that was not sent")
}

/// Which values of which rows were not sent, kept only for the rows that have such values.
struct Unchanged {
    /// Bytes of a row's mask.
    width: usize,
    rows: Vec<usize>,
    masks: Vec<u8>,
}

impl Unchanged {
    fn new(columns: usize) -> Self {
        Unchanged { width: columns.div_ceil(8), rows: Vec::new(), masks: Vec::new() }
    }

    fn mark(&mut self, row: usize, column: usize) {
        if self.rows.last() != Some(&row) {
            self.rows.push(row);
            self.masks.resize(self.masks.len() + self.width, 0);
        }
        let mask = self.masks.len() - self.width;
        self.masks[mask + column / 8] |= 1 << (column % 8);
    }

    /// Forgets the rows from the `length`th on.
    fn truncate(&mut self, length: usize) {
        while self.rows.last().is_some_and(|&row| row >= length) {
            self.rows.pop();
        }
        self.masks.truncate(self.rows.len() * self.width);
    }

    fn bytes(&self) -> usize {
        self.masks.len() + self.rows.len() * size_of::<usize>()
    }

    fn finish(&mut self, length: usize) -> Result<Option<BinaryArray>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let rows = std::mem::take(&mut self.rows);
        let masks = std::mem::take(&mut self.masks);
        let mut lengths = vec![0; length];
        rows.iter().for_each(|&row| lengths[row] = self.width);
        let nulls = NullBuffer::new(BooleanBuffer::collect_bool(length, |row| lengths[row] > 0));
        let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
        BinaryArray::try_new(offsets, masks.into(), Some(nulls))
            .map(Some)
            .because(ErrorKind::Internal, || "making the array of unsent values".to_owned())
    }
}
