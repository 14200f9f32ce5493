//! Tables of the lake that tell of changes: what a flush and a copy add to the source's columns.
//!
//! A table that keeps deleted rows has `_deleted_at` ([`DELETED_COLUMNS`]): when the transaction committed that removed the row.
//!
//! A table that keeps every change is appended to, and no row is ever removed.
//!
//! A change is a row of the source's columns with four more: `_op`, `_lsn`, `_seq` and `_commit_ts` ([`CHANGE_COLUMNS`]). `_lsn` is the
//! end of its transaction, `_seq` its number among the table's changes of that, so that the two order all changes of a table. They come from the
//! WAL alone: who reads it again after a crash makes the same rows.
//!
//! | `_op` | the row | what a reader of the changes does |
//! |---|---|---|
//! | `truncate` | nothing | forgets all rows |
//! | `snapshot` | a row of a copy | puts it |
//! | `insert`, `update` | the new row | puts it under its key |
//! | `before` | what an `update` right after it replaces: as much as the source sends | removes the row of that key |
//! | `delete` | what went: as much as the source sends | removes the row of that key |

use std::sync::Arc;

use arrow::array::{
    ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray, UInt8Array, UInt64Array, new_null_array,
};
use arrow::datatypes::SchemaRef;

use super::change_log::ChangeLog;
use super::net_change::{self, NetChange};
use crate::batch::change::Op;
#[cfg(doc)]
use crate::batch::layout::DELETED_COLUMNS;
use crate::batch::layout::{CHANGE_COLUMNS, Mode, TableLayout};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// Changes between two TRUNCATEs, and where their unchanged values come from.
pub struct Run {
    /// The number of its first event in the whole log. A TRUNCATE is the event before, unless it is the first run.
    pub first: u64,
    /// Its events.
    pub log: ChangeLog,
    /// Every event is a row that stays.
    pub net: NetChange,
}

/// Cuts a log at its TRUNCATEs, and finds the earlier image of each row that comes without all its values.
///
/// # Errors
/// As [`net_change::resolve`].
pub fn resolve(log: &ChangeLog, layout: &TableLayout, memory: usize) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for (first, log) in log.runs() {
        let mut net = net_change::resolve(&log, layout, memory)?;
        net.winners = Default::default();
        net.winners.insert_range(0..log.events());
        // No old row goes: one is looked up for its values only.
        net.lookups = net.origins.lookups();
        runs.push(Run { first, log, net });
    }
    Ok(runs)
}

/// Adds the columns that tell of the changes to the rows of these events of a log. `ops` are theirs.
///
/// # Errors
/// Kind `Internal`, where the log does not know the transaction of an event.
pub fn with_changes(
    log: &ChangeLog,
    events: impl Iterator<Item = u64>,
    rows: &RecordBatch,
    ops: &UInt8Array,
    (mode, schema): (Mode, &SchemaRef),
) -> Result<RecordBatch> {
    let ops: Vec<Op> = ops.values().iter().map(|op| net_change::op_at(*op)).collect::<Result<_>>()?;
    let events: Vec<u64> = events.collect();
    let mut columns = rows.columns().to_vec();
    if mode == Mode::SoftDelete {
        let gone = ops.iter().map(|op| matches!(op, Op::Delete | Op::MoveOut));
        let times = told(log, &events)?.into_iter().zip(gone).map(|(told, gone)| gone.then_some(told.commit_ts));
        columns.push(Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC")));
        return batch(schema, columns);
    }
    let names = ops.iter().map(|op| match op {
        Op::Insert => "insert",
        Op::Update | Op::MoveIn => "update",
        Op::Delete => "delete",
        Op::Before | Op::MoveOut => "before",
    });
    complete(columns, StringArray::from_iter_values(names), told(log, &events)?, schema)
}

/// The row of a TRUNCATE, which is this event of the log.
///
/// # Errors
/// As [`with_changes`].
pub fn truncation(log: &ChangeLog, event: u64, schema: &SchemaRef) -> Result<RecordBatch> {
    complete(nothing(schema), StringArray::from(vec!["truncate"]), told(log, &[event])?, schema)
}

/// Where and when a change was.
struct Told {
    lsn: u64,
    number: u64,
    commit_ts: i64,
}

/// What the log knows of these events, which ascend.
fn told(log: &ChangeLog, events: &[u64]) -> Result<Vec<Told>> {
    let Some(first) = events.first() else { return Ok(Vec::new()) };
    let mut transactions = log.transactions_from(*first).peekable();
    let mut all = Vec::with_capacity(events.len());
    for event in events {
        while transactions.next_if(|transaction| transaction.events.end <= *event).is_some() {}
        let transaction = transactions
            .peek()
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("event {event} is of no transaction")))?;
        let (lsn, number) = (transaction.lsn.0, event - transaction.events.start);
        all.push(Told { lsn, number, commit_ts: transaction.commit_ts });
    }
    Ok(all)
}

fn complete(
    mut columns: Vec<ArrayRef>,
    names: StringArray,
    told: Vec<Told>,
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    let times = TimestampMicrosecondArray::from_iter_values(told.iter().map(|told| told.commit_ts));
    columns.extend::<[ArrayRef; CHANGE_COLUMNS.len()]>([
        Arc::new(names),
        Arc::new(UInt64Array::from_iter_values(told.iter().map(|told| told.lsn))),
        Arc::new(UInt64Array::from_iter_values(told.iter().map(|told| told.number))),
        Arc::new(times.with_timezone("UTC")),
    ]);
    batch(schema, columns)
}

/// What a copy at this position begins with: whatever there was before is gone.
///
/// # Errors
/// Kind `Internal`, where the schema is not one of changes.
pub fn start_of_copy(lsn: Lsn, schema: &SchemaRef) -> Result<RecordBatch> {
    of_copy(nothing(schema), "truncate", (lsn, 0), 1, schema)
}

/// Rows of a copy of a table that keeps deleted ones: none is.
///
/// # Errors
/// As [`start_of_copy`].
pub fn live_rows_of_copy(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(TimestampMicrosecondArray::new_null(rows.num_rows()).with_timezone("UTC")));
    batch(schema, columns)
}

/// Rows of a copy at a position, numbered from `number` on.
///
/// # Errors
/// As [`start_of_copy`].
pub fn rows_of_copy(rows: &RecordBatch, (lsn, number): (Lsn, u64), schema: &SchemaRef) -> Result<RecordBatch> {
    of_copy(rows.columns().to_vec(), "snapshot", (lsn, number), rows.num_rows(), schema)
}

fn of_copy(
    mut columns: Vec<ArrayRef>,
    op: &str,
    (lsn, number): (Lsn, u64),
    rows: usize,
    schema: &SchemaRef,
) -> Result<RecordBatch> {
    columns.extend::<[ArrayRef; CHANGE_COLUMNS.len()]>([
        Arc::new(StringArray::from(vec![op; rows])),
        Arc::new(UInt64Array::from(vec![lsn.0; rows])),
        Arc::new(UInt64Array::from_iter_values(number..number + rows as u64)),
        Arc::new(TimestampMicrosecondArray::new_null(rows).with_timezone("UTC")),
    ]);
    batch(schema, columns)
}

/// One row of the source's columns, all NULL.
fn nothing(schema: &SchemaRef) -> Vec<ArrayRef> {
    let of_source = schema.fields().len().saturating_sub(CHANGE_COLUMNS.len());
    schema.fields().iter().take(of_source).map(|field| new_null_array(field.data_type(), 1)).collect()
}

fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    // Names of nested fields and field ids are the lake's, not the batch's.
    let columns =
        schema.fields().iter().zip(columns).map(|(field, column)| match column.data_type() == field.data_type() {
            true => Ok(column),
            false => arrow::compute::cast(&column, field.data_type()),
        });
    let columns: std::result::Result<Vec<_>, _> = columns.collect();
    columns
        .and_then(|columns| RecordBatch::try_new(Arc::clone(schema), columns))
        .because(ErrorKind::Internal, || "changes do not fit their table".into())
}
