//! The changes of one table since its last flush, in commit order: in memory, or past the budget on local disk.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, UInt8Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use crate::batch::change::{ChangeBatch, Op};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// The events of one table in the order in which the source committed them, numbered from 0.
///
/// A TRUNCATE is one event, whatever the number of rows that it removes. It lasts until [`ChangeLog::settle`], which turns it
/// into a property of the log.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    /// The key's column indices.
    key: Vec<usize>,
    segments: Vec<Segment>,
    events: u64,
    /// The source emptied the table before the first event.
    truncated: bool,
    /// Events that hold values that became NULL because their type could not hold them: event, number of values.
    nulled: Vec<(u64, u64)>,
    /// The transactions of its events, where somebody wants to know.
    transactions: Vec<Transaction>,
    /// Where more of it would go; what is there already says so itself.
    spill: Option<Arc<Spill>>,
}

/// A committed transaction of the source, and which events of a log are its.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Their numbers.
    pub events: Range<u64>,
    /// The end of the transaction.
    pub lsn: Lsn,
    /// When it committed, µs since 1970.
    pub commit_ts: i64,
}

/// What the key of each event of a segment and its operation are; the values of the other columns stay where they are.
pub struct KeyedEvents {
    /// The operations, as [`Op`].
    pub ops: UInt8Array,
    /// Which columns' TOAST values are unchanged; see [`ChangeBatch::unchanged`].
    pub unchanged: Option<BinaryArray>,
    /// The key columns.
    pub keys: RecordBatch,
}

impl KeyedEvents {
    /// The unchanged columns of an event as a bitmap, where there are any.
    pub fn unchanged(&self, row: usize) -> Option<&[u8]> {
        unchanged_at(self.unchanged.as_ref(), row)
    }
}

fn unchanged_at(unchanged: Option<&BinaryArray>, row: usize) -> Option<&[u8]> {
    unchanged.filter(|array| array.is_valid(row)).map(|array| array.value(row))
}

/// Whether bit `column` is set in an unchanged bitmap.
pub fn is_unchanged(bitmap: &[u8], column: usize) -> bool {
    bitmap.get(column / 8).is_some_and(|byte| byte & (1 << (column % 8)) != 0)
}

/// A run of events: a slice of a batch in memory or on disk.
#[derive(Clone, Debug)]
struct Segment {
    place: Place,
    /// The first event of the batch that belongs to this segment.
    start: usize,
    len: usize,
    /// Each event is an INSERT.
    inserts_only: bool,
    /// The subtransactions that it may yet be rolled back with.
    xids: Xids,
}

/// Which subtransaction each event of a batch belongs to.
#[derive(Clone, Debug)]
enum Xids {
    /// They are committed.
    Committed,
    One(u32),
    /// One a row of the batch.
    Each(Arc<[u32]>),
}

impl Segment {
    /// The runs of its events that do not belong to the subtransaction: where each begins and ends.
    fn without(&self, xid: u32) -> Vec<(usize, usize)> {
        let each = match &self.xids {
            Xids::One(own) if *own == xid => return Vec::new(),
            Xids::Committed | Xids::One(_) => return vec![(0, self.len)],
            Xids::Each(all) => &all[self.start..self.start + self.len],
        };
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (row, _) in each.iter().enumerate().filter(|(_, own)| **own != xid) {
            match runs.last_mut() {
                Some((_, end)) if *end == row => *end += 1,
                _ => runs.push((row, row + 1)),
            }
        }
        runs
    }
}

#[derive(Clone, Debug)]
enum Place {
    Memory(Box<ChangeBatch>),
    Disk {
        spill: Arc<Spill>,
        keys: Extent,
        rows: Extent,
    },
    /// One event: the source emptied the table.
    Truncation,
}

/// Where a batch lies in the spill file, in bytes.
#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    len: u64,
}

impl ChangeLog {
    /// An empty log of a table whose key is made of these columns.
    pub fn new(key: Vec<usize>) -> Self {
        ChangeLog {
            key,
            segments: Vec::new(),
            events: 0,
            truncated: false,
            nulled: Vec::new(),
            transactions: Vec::new(),
            spill: None,
        }
    }

    /// Appends events.
    pub fn push(&mut self, batch: ChangeBatch) {
        self.append_batch(batch, Xids::Committed);
    }

    /// Appends events of subtransactions, one a row, which [`ChangeLog::abort`] may take back.
    pub fn push_of(&mut self, batch: ChangeBatch, xids: Vec<u32>) {
        let xids = match xids.as_slice() {
            [first, rest @ ..] if rest.iter().all(|xid| xid == first) => Xids::One(*first),
            _ => Xids::Each(xids.into()),
        };
        self.append_batch(batch, xids);
    }

    fn append_batch(&mut self, batch: ChangeBatch, xids: Xids) {
        let len = batch.ops.len();
        if len == 0 {
            return;
        }
        let inserts_only = arrow::compute::max(&batch.ops) == Some(Op::Insert as u8);
        self.events += len as u64;
        self.segments.push(Segment { place: Place::Memory(Box::new(batch)), start: 0, len, inserts_only, xids });
    }

    /// Appends a TRUNCATE. The events after the first `committed` belong to the same transaction: what they left is gone.
    pub fn truncate(&mut self, committed: u64) {
        drop(self.split_off(committed));
        self.append_truncation(Xids::Committed);
    }

    /// Appends a TRUNCATE, and keeps what it removes.
    pub fn append_truncate(&mut self) {
        self.append_truncation(Xids::Committed);
    }

    /// The events since the last transaction, up to the `end`th, are this one's.
    pub fn end_transaction(&mut self, end: u64, lsn: Lsn, commit_ts: i64) {
        let start = self.transactions.last().map_or(0, |last| last.events.end);
        if start < end {
            self.transactions.push(Transaction { events: start..end, lsn, commit_ts });
        }
    }

    /// The transactions from that of an event on.
    pub fn transactions_from(&self, event: u64) -> impl Iterator<Item = &Transaction> {
        let first = self.transactions.partition_point(|transaction| transaction.events.end <= event);
        self.transactions[first..].iter()
    }

    /// The events between TRUNCATEs, which are none of them, each run with the number of its first event; the first run is what came
    /// before all of them.
    pub fn runs(&self) -> Vec<(u64, ChangeLog)> {
        let mut runs = Vec::new();
        let (mut rest, mut first) = (self.clone(), 0);
        loop {
            let at = rest.segments.iter().position(|segment| matches!(segment.place, Place::Truncation));
            let before: usize =
                rest.segments[..at.unwrap_or(rest.segments.len())].iter().map(|segment| segment.len).sum();
            let mut later = rest.split_off(before as u64);
            rest.truncated = first > 0;
            runs.push((first, rest));
            if at.is_none() {
                return runs;
            }
            rest = later.split_off(1);
            first += before as u64 + 1;
        }
    }

    /// Appends a TRUNCATE of a subtransaction that [`ChangeLog::abort`] may take back.
    pub fn truncate_of(&mut self, xid: u32) {
        self.append_truncation(Xids::One(xid));
    }

    fn append_truncation(&mut self, xids: Xids) {
        self.events += 1;
        self.segments.push(Segment { place: Place::Truncation, start: 0, len: 1, inserts_only: false, xids });
    }

    /// Takes back what a subtransaction did.
    pub fn abort(&mut self, xid: u32) {
        let mut kept: Vec<Segment> = Vec::with_capacity(self.segments.len());
        let mut nulled = Vec::new();
        let mut waiting = std::mem::take(&mut self.nulled).into_iter().peekable();
        let (mut before, mut after) = (0, 0);
        for segment in self.segments.drain(..) {
            for (from, to) in segment.without(xid) {
                let first = before + from as u64;
                // Those of rows that go are passed over.
                while waiting.next_if(|(event, _)| *event < first).is_some() {}
                while let Some((event, values)) = waiting.next_if(|(event, _)| *event < before + to as u64) {
                    nulled.push((event - first + after, values));
                }
                after += (to - from) as u64;
                kept.push(Segment { start: segment.start + from, len: to - from, ..segment.clone() });
            }
            before += segment.len as u64;
        }
        (self.segments, self.nulled, self.events) = (kept, nulled, after);
    }

    /// Appends the events of another log of the table, which stay.
    pub fn append(&mut self, other: ChangeLog) {
        let before = self.events;
        self.nulled.extend(other.nulled.into_iter().map(|(event, values)| (before + event, values)));
        self.segments.extend(other.segments.into_iter().map(|segment| Segment { xids: Xids::Committed, ..segment }));
        self.events += other.events;
    }

    /// Drops what the last TRUNCATE removed, and the TRUNCATE itself: [`ChangeLog::is_truncated`] tells of it from then on.
    pub fn settle(&mut self) {
        let truncation = |segment: &Segment| matches!(segment.place, Place::Truncation);
        if let Some(last) = self.segments.iter().rposition(truncation) {
            let up_to_it: usize = self.segments[..=last].iter().map(|segment| segment.len).sum();
            *self = ChangeLog { truncated: true, ..self.split_off(up_to_it as u64) };
        }
    }

    /// Whether the source emptied the table before the first event: no row of the lake is left.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Notes which rows of the batch that is pushed next hold values that became NULL by policy, and how many.
    pub fn add_nulled(&mut self, rows: &[(usize, u64)]) {
        self.nulled.extend(rows.iter().map(|(row, values)| (self.events + *row as u64, *values)));
    }

    /// Values that became NULL because their type could not hold them.
    pub fn nulled(&self) -> u64 {
        self.nulled.iter().map(|(_, values)| values).sum()
    }

    /// The number of events.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether every event is an INSERT, so that each row stays and no key can be in the lake already.
    pub fn inserts_only(&self) -> bool {
        self.segments.iter().all(|segment| segment.inserts_only)
    }

    /// Bytes of memory that the events hold; what was spilled counts nothing.
    pub fn memory(&self) -> usize {
        self.segments
            .iter()
            .map(|segment| match &segment.place {
                Place::Memory(batch) => batch.memory(),
                Place::Disk { .. } | Place::Truncation => 0,
            })
            .sum()
    }

    /// Whether a part lies on disk.
    pub fn is_spilled(&self) -> bool {
        self.segments.iter().any(|segment| matches!(segment.place, Place::Disk { .. }))
    }

    /// The number of segments and, for each, its first event's number.
    pub fn segment_starts(&self) -> Vec<u64> {
        let mut next = 0;
        self.segments
            .iter()
            .map(|segment| {
                let start = next;
                next += segment.len as u64;
                start
            })
            .collect()
    }

    /// The operations and keys of a segment.
    ///
    /// # Errors
    /// Transient, when the spill file can't be read.
    pub fn keyed_events(&self, segment: usize) -> Result<KeyedEvents> {
        let Segment { place, start, len, .. } = &self.segments[segment];
        match place {
            Place::Truncation => Err(unsettled()),
            Place::Memory(batch) => Ok(KeyedEvents {
                ops: batch.ops.slice(*start, *len),
                unchanged: batch.unchanged.as_ref().map(|array| array.slice(*start, *len)),
                keys: batch.rows.slice(*start, *len).project(&self.key).because(ErrorKind::Internal, projection)?,
            }),
            Place::Disk { spill, keys, .. } => {
                let batch = spill.read(*keys)?.slice(*start, *len);
                let key: Vec<usize> = (2..batch.num_columns()).collect();
                Ok(KeyedEvents {
                    ops: batch.column(0).as_primitive::<UInt8Type>().clone(),
                    unchanged: Some(batch.column(1).as_binary::<i32>().clone())
                        .filter(|array| array.null_count() < array.len()),
                    keys: batch.project(&key).because(ErrorKind::Internal, projection)?,
                })
            }
        }
    }

    /// The rows of a segment: one an event, NULL but for the key where the event carries no image.
    ///
    /// # Errors
    /// Transient, when the spill file can't be read.
    pub fn rows(&self, segment: usize) -> Result<RecordBatch> {
        let Segment { place, start, len, .. } = &self.segments[segment];
        match place {
            Place::Truncation => Err(unsettled()),
            Place::Memory(batch) => Ok(batch.rows.slice(*start, *len)),
            Place::Disk { spill, rows, .. } => Ok(spill.read(*rows)?.slice(*start, *len)),
        }
    }

    /// Cuts the log: keeps the first `events`, returns the rest.
    #[must_use]
    pub fn split_off(&mut self, events: u64) -> ChangeLog {
        let mut rest = ChangeLog { spill: self.spill.clone(), ..ChangeLog::new(self.key.clone()) };
        let cut = self.nulled.partition_point(|(event, _)| *event < events);
        rest.nulled = self.nulled.split_off(cut).into_iter().map(|(event, values)| (event - events, values)).collect();
        let cut = self.transactions.partition_point(|transaction| transaction.events.end <= events);
        let later = self.transactions.split_off(cut).into_iter().map(|transaction| Transaction {
            events: transaction.events.start.saturating_sub(events)..transaction.events.end - events,
            ..transaction
        });
        rest.transactions = later.collect();
        let mut kept = Vec::new();
        let mut seen = 0u64;
        for segment in self.segments.drain(..) {
            let here = events.saturating_sub(seen).min(segment.len as u64) as usize;
            seen += segment.len as u64;
            if here > 0 {
                kept.push(Segment { len: here, ..segment.clone() });
            }
            if here < segment.len {
                rest.events += (segment.len - here) as u64;
                rest.segments.push(Segment { start: segment.start + here, len: segment.len - here, ..segment });
            }
        }
        self.events -= rest.events;
        self.segments = kept;
        for log in [self, &mut rest] {
            if !log.is_spilled() {
                log.spill = None;
            }
        }
        rest
    }

    /// Moves what is in memory to an unnamed file in `directory`, which vanishes with the process.
    ///
    /// # Errors
    /// Transient, when the disk is full or not writable.
    pub fn spill(&mut self, directory: &Path) -> Result<()> {
        let spill = match &self.spill {
            Some(spill) => Arc::clone(spill),
            None => Arc::new(Spill::create(directory)?),
        };
        for segment in &mut self.segments {
            let Place::Memory(batch) = &segment.place else { continue };
            let keys = key_batch(batch, &self.key)?.slice(segment.start, segment.len);
            let rows = batch.rows.slice(segment.start, segment.len);
            let (keys, rows) = (spill.append(&keys)?, spill.append(&rows)?);
            segment.place = Place::Disk { spill: Arc::clone(&spill), keys, rows };
            if let Xids::Each(all) = &segment.xids {
                segment.xids = Xids::Each(all[segment.start..segment.start + segment.len].into());
            }
            segment.start = 0;
        }
        self.spill = Some(spill);
        Ok(())
    }
}

impl ChangeBatch {
    /// Bytes of memory that the batch holds.
    pub fn memory(&self) -> usize {
        self.rows.get_array_memory_size()
            + self.ops.get_array_memory_size()
            + self.unchanged.as_ref().map_or(0, Array::get_array_memory_size)
    }
}

fn unsettled() -> Error {
    Error::new(ErrorKind::Internal, "a TRUNCATE is read as if it were rows")
}

fn projection() -> String {
    "the key's columns are not in the batch".to_owned()
}

/// Operation, unchanged bitmap and key columns as one batch: what net change reads, without the wide columns.
fn key_batch(batch: &ChangeBatch, key: &[usize]) -> Result<RecordBatch> {
    let rows = batch.rows.project(key).because(ErrorKind::Internal, projection)?;
    let unchanged = batch.unchanged.clone().unwrap_or_else(|| BinaryArray::new_null(batch.ops.len()));
    let mut fields = vec![Field::new("op", DataType::UInt8, false), Field::new("unchanged", DataType::Binary, true)];
    fields.extend(rows.schema().fields().iter().map(|field| field.as_ref().clone()));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(batch.ops.clone()), Arc::new(unchanged)];
    columns.extend(rows.columns().iter().cloned());
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).because(ErrorKind::Internal, projection)
}

/// An unnamed temporary file of Arrow IPC streams, one a batch, each found by its extent.
#[derive(Debug)]
struct Spill {
    file: File,
    end: std::sync::Mutex<u64>,
}

impl Spill {
    fn create(directory: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(directory)
            .because(ErrorKind::Transient, || format!("no spill file can be made in {}", directory.display()))?;
        Ok(Spill { file, end: std::sync::Mutex::new(0) })
    }

    fn append(&self, batch: &RecordBatch) -> Result<Extent> {
        let failed = || "a transaction that exceeds the memory limit can't be written to the spill file".to_owned();
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).because(ErrorKind::Transient, failed)?;
        writer.write(batch).because(ErrorKind::Transient, failed)?;
        let bytes = writer.into_inner().because(ErrorKind::Transient, failed)?;
        let mut end = self.end.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.file.write_all_at(&bytes, *end).because(ErrorKind::Transient, failed)?;
        let extent = Extent { offset: *end, len: bytes.len() as u64 };
        *end += extent.len;
        Ok(extent)
    }

    fn read(&self, extent: Extent) -> Result<RecordBatch> {
        let failed = || "the spill file can't be read back".to_owned();
        let mut bytes = vec![0; extent.len as usize];
        self.file.read_exact_at(&mut bytes, extent.offset).because(ErrorKind::Transient, failed)?;
        let mut reader = StreamReader::try_new(bytes.as_slice(), None).because(ErrorKind::Internal, failed)?;
        match reader.next() {
            Some(batch) => batch.because(ErrorKind::Internal, failed),
            None => Err(Error::new(ErrorKind::Internal, failed())),
        }
    }
}
