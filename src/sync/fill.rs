//! Unchanged TOAST values: an UPDATE does not send them, so they are taken from the row's earlier image.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, RecordBatch, UInt8Array, UInt64Array};
use arrow::datatypes::{Schema, UInt8Type};
use duckpipe_storage::DataFileWriter;
use hashbrown::HashMap;

use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::LiveFile;
use crate::lake::lookup;
use crate::lake::store::store_error;

use super::appended;
use super::change_log::{ChangeLog, is_unchanged};
use super::flush::{LakeRows, SyncTable};
use super::net_change::{NetChange, Origin, trace};
use super::pipeline::Pipeline;

/// Completes the rows of one log while they are written.
pub struct Fill<'a> {
    pipeline: &'a Pipeline,
    table: &'a SyncTable,
    /// Where changes are written: the whole log, and the number in it of this log's first event.
    changes: Option<(&'a ChangeLog, u64)>,
    log: &'a ChangeLog,
    net: &'a NetChange,
    files: &'a [LiveFile],
    /// Where the lake's row of a lookup event lies.
    lake_rows: &'a LakeRows,
    starts: Vec<u64>,
    bitmaps: HashMap<usize, Option<BinaryArray>>,
    /// Rows to complete at once, so that their values fit the memory: few at first, and at most four times as many as before, for what comes
    /// next may be larger than what was fetched.
    step: usize,
}

/// One value's place: an index into the arrays that a column is put together from, and a row there.
type Pick = (usize, usize);

impl<'a> Fill<'a> {
    /// For the rows of `log`.
    pub fn new(
        pipeline: &'a Pipeline,
        (table, changes): (&'a SyncTable, Option<(&'a ChangeLog, u64)>),
        log: &'a ChangeLog,
        net: &'a NetChange,
        files: &'a [LiveFile],
        lake_rows: &'a LakeRows,
    ) -> Self {
        let starts = log.segment_starts();
        Fill { pipeline, table, changes, log, net, files, lake_rows, starts, bitmaps: HashMap::new(), step: 8 }
    }

    /// Writes the rows of a segment that `mask` chooses, completed.
    ///
    /// # Errors
    /// Kind `Transient`, when the lake's files can't be read or the new ones not written.
    pub async fn write(
        &mut self,
        segment: usize,
        first: u64,
        rows: &RecordBatch,
        mask: &BooleanArray,
        writer: &mut DataFileWriter,
    ) -> Result<()> {
        let chosen = if mask.true_count() == rows.num_rows() {
            rows.clone()
        } else {
            arrow::compute::filter_record_batch(rows, mask).because(ErrorKind::Internal, mismatch)?
        };
        let events: Vec<u64> = mask.values().set_indices().map(|i| first + i as u64).collect();
        let ops = match self.changes {
            Some(_) => Some(filtered(&self.log.keyed_events(segment)?.ops, mask)?),
            None => None,
        };
        let wanting = self.bitmap(segment)?.is_some();
        if !wanting {
            return self.put(writer, &chosen, (&events, ops.as_ref())).await;
        }
        let mut done = 0;
        while done < events.len() {
            let len = self.step.min(events.len() - done);
            let some = &events[done..done + len];
            let complete = self.complete(&chosen.slice(done, len), some).await?;
            let bytes_per_row = complete.get_array_memory_size() / len.max(1);
            let fitting = self.pipeline.budget.resolve / bytes_per_row.max(64);
            self.step = fitting.min(self.step * 4).clamp(1, 8192);
            let ops = ops.as_ref().map(|ops| ops.slice(done, len));
            self.put(writer, &complete, (some, ops.as_ref())).await?;
            done += len;
        }
        Ok(())
    }

    /// Writes the rows of these events, with their operations where the lake's table tells of them.
    async fn put(
        &self,
        writer: &mut DataFileWriter,
        rows: &RecordBatch,
        (events, ops): (&[u64], Option<&UInt8Array>),
    ) -> Result<()> {
        let told = match (self.changes, ops) {
            (Some((whole, first)), Some(ops)) => {
                let schema = self.table.lake.schema(&self.table.layout)?;
                let events = events.iter().map(|event| first + event);
                Some(appended::with_changes(whole, events, rows, ops, (self.table.layout.mode, &schema))?)
            }
            _ => None,
        };
        writer
            .write(told.as_ref().unwrap_or(rows))
            .await
            .map_err(store_error(&format!("the files of {} can't be written", self.table.layout.table)))
    }

    /// The rows of these events with each unchanged value in its place.
    async fn complete(&mut self, rows: &RecordBatch, events: &[u64]) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        for (index, column) in columns.iter_mut().enumerate() {
            let mut wanted: Vec<(usize, Origin)> = Vec::new();
            for (row, event) in events.iter().enumerate() {
                if self.unchanged(*event, index)? {
                    let net = self.net;
                    let origin = trace(net, *event, index, &mut |event, column| self.unchanged(event, column))?;
                    wanted.push((row, origin));
                }
            }
            if !wanted.is_empty() {
                *column = self.column(index, column, &wanted).await?;
            }
        }
        RecordBatch::try_new(rows.schema(), columns).because(ErrorKind::Internal, mismatch)
    }

    /// A column with the wanted rows replaced by their origins' values.
    async fn column(&self, index: usize, column: &ArrayRef, wanted: &[(usize, Origin)]) -> Result<ArrayRef> {
        let mut picks: Vec<Pick> = (0..column.len()).map(|row| (0, row)).collect();
        let mut arrays: Vec<ArrayRef> = vec![Arc::clone(column)];
        let mut positions = Vec::new();
        let mut by_segment: std::collections::BTreeMap<usize, Vec<(usize, u64)>> = std::collections::BTreeMap::new();
        for (row, origin) in wanted {
            match origin {
                Origin::Lake(event) => {
                    let position = self
                        .lake_rows
                        .get(*event)
                        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("event {event} was not looked up")))?;
                    picks[*row] = (1, positions.len());
                    positions.push(position);
                }
                Origin::Event(event) => {
                    let segment = self.starts.partition_point(|start| start <= event) - 1;
                    by_segment.entry(segment).or_default().push((*row, event - self.starts[segment]));
                }
            }
        }
        if !positions.is_empty() {
            // A list's type holds its element's metadata, which the log's own lists do not have.
            let field = self.table.lake.schema(&self.table.layout)?.field(index).clone();
            let field = field.with_data_type(column.data_type().clone());
            let id = self.table.lake.columns[index].id.column_id as i32;
            let schema = Arc::new(Schema::new(vec![field]));
            let fetched = lookup::fetch(&self.pipeline.store, self.files, &[id], schema, &positions).await?;
            arrays.push(Arc::clone(fetched.column(0)));
        }
        for (segment, rows) in by_segment {
            let source = self.log.rows(segment)?;
            let indices = UInt64Array::from_iter_values(rows.iter().map(|(_, at)| *at));
            let taken =
                arrow::compute::take(source.column(index), &indices, None).because(ErrorKind::Internal, mismatch)?;
            for (at, (row, _)) in rows.iter().enumerate() {
                picks[*row] = (arrays.len(), at);
            }
            arrays.push(taken);
        }
        let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
        arrow::compute::interleave(&arrays, &picks).because(ErrorKind::Internal, mismatch)
    }

    fn unchanged(&mut self, event: u64, column: usize) -> Result<bool> {
        let segment = self.starts.partition_point(|start| *start <= event) - 1;
        let row = (event - self.starts[segment]) as usize;
        Ok(self.bitmap(segment)?.is_some_and(|bits| bits.is_valid(row) && is_unchanged(bits.value(row), column)))
    }

    fn bitmap(&mut self, segment: usize) -> Result<Option<&BinaryArray>> {
        if !self.bitmaps.contains_key(&segment) {
            let bitmap = self.log.keyed_events(segment)?.unchanged.filter(|bits| bits.null_count() < bits.len());
            // A copy: that of the log would keep the segment's keys with it.
            self.bitmaps.insert(segment, bitmap.map(|bits| bits.iter().collect()));
        }
        Ok(self.bitmaps.get(&segment).and_then(Option::as_ref))
    }
}

fn filtered(ops: &UInt8Array, mask: &BooleanArray) -> Result<UInt8Array> {
    let ops = arrow::compute::filter(ops, mask).because(ErrorKind::Internal, mismatch)?;
    Ok(ops.as_primitive::<UInt8Type>().clone())
}

fn mismatch() -> String {
    "rows can't be completed with their unchanged values".to_owned()
}
