//! A source table's rows as of a snapshot, in page ranges, over a bounded number of connections.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use tokio::task::JoinSet;

use super::lake_rows::RowSink;
use crate::batch::copy::CopyDecoder;
use crate::batch::layout::TableLayout;
use crate::batch::value_error::OnUnrepresentable;
use crate::error::{Because, ErrorKind, Result};
use crate::source::settings::SourceSettings;
use crate::source::snapshot::{CopyColumn, SnapshotReader};
use crate::source::table::{Heap, SourceTable};

/// Heap pages (8 KiB) of a range: 32 MiB, so that no statement lasts long.
const RANGE_PAGES: u32 = 4096;
/// Heap pages of a range of a sample: 1 MiB.
const SAMPLE_PAGES: u32 = 128;
/// What a worker decodes before it hands a batch on.
const BATCH_BYTES: usize = 2 << 20;
const BATCH_ROWS: usize = 16_384;

/// How the source is read.
#[derive(Clone, Debug)]
pub(super) struct SourceReads {
    pub(super) settings: SourceSettings,
    pub(super) snapshot: String,
    pub(super) connections: usize,
    pub(super) statement_timeout: Duration,
    pub(super) on_unrepresentable: OnUnrepresentable,
}

/// Pages of a heap; `None`: all.
type HeapRange = (Arc<Heap>, Option<Range<u32>>);

/// One table of the source.
#[derive(Clone, Debug)]
pub(super) struct SourceRows {
    pub(super) layout: Arc<TableLayout>,
    ranges: Vec<HeapRange>,
}

impl SourceRows {
    /// All rows, or those of about so many percent of the pages, chosen anew each time.
    pub(super) fn new(table: &SourceTable, layout: &TableLayout, sample: Option<f64>) -> SourceRows {
        let pages = if sample.is_some() { SAMPLE_PAGES } else { RANGE_PAGES };
        let mut ranges = Vec::new();
        for heap in table.heaps().into_iter().map(Arc::new) {
            let all = ranges_of(&heap, pages);
            ranges.extend(match sample {
                Some(percent) if all.len() > 1 => choose(all, percent),
                _ => all,
            });
        }
        SourceRows { layout: Arc::new(layout.clone()), ranges }
    }
}

fn ranges_of(heap: &Arc<Heap>, pages: u32) -> Vec<HeapRange> {
    if heap.pages <= pages {
        return vec![(Arc::clone(heap), None)];
    }
    let mut starts: Vec<u32> = (0..heap.pages).step_by(pages as usize).collect();
    // The last range is open: the heap may have grown since it was measured.
    starts.push(u32::MAX);
    starts.windows(2).map(|w| (Arc::clone(heap), Some(w[0]..w[1]))).collect()
}

/// About so many percent of the ranges, one at least.
fn choose(mut all: Vec<HeapRange>, percent: f64) -> Vec<HeapRange> {
    let wanted = ((all.len() as f64 * percent / 100.0).round() as usize).clamp(1, all.len());
    let random = RandomState::new();
    all.sort_by_cached_key(|(_, range)| random.hash_one(range));
    all.truncate(wanted);
    all
}

/// Reads the rows, each connection into a sink of its own.
pub(super) async fn scan<S: RowSink>(reads: &SourceReads, rows: &SourceRows, make: impl Fn() -> S) -> Result<Vec<S>> {
    let ranges: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(rows.ranges.iter().cloned().collect()));
    let mut running: JoinSet<Result<S>> = JoinSet::new();
    for _ in 0..reads.connections.clamp(1, rows.ranges.len().max(1)) {
        let (reads, rows, ranges, mut sink) = (reads.clone(), rows.clone(), Arc::clone(&ranges), make());
        running.spawn(async move {
            let mut reader = SnapshotReader::open(&reads.settings, &reads.snapshot).await?;
            reader.limit(reads.statement_timeout).await?;
            while let Some(range) = { ranges.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
                read(&mut reader, &reads, &rows, range, &mut sink).await?;
            }
            Ok(sink)
        });
    }
    let mut sinks = Vec::new();
    while let Some(ended) = running.join_next().await {
        sinks.push(ended.because(ErrorKind::Internal, || "reading the source did not end".into())??);
    }
    Ok(sinks)
}

async fn read<S: RowSink>(
    reader: &mut SnapshotReader,
    reads: &SourceReads,
    rows: &SourceRows,
    (heap, pages): HeapRange,
    sink: &mut S,
) -> Result<()> {
    let columns: Vec<CopyColumn> = rows
        .layout
        .columns
        .iter()
        .map(|column| CopyColumn { name: column.name.clone(), cast: column.copy_cast() })
        .collect();
    let mut stream = reader.copy(&heap, &columns, pages).await?;
    let mut decoder = CopyDecoder::new(Arc::clone(&rows.layout), reads.on_unrepresentable);
    while let Some(chunk) = stream.next().await? {
        decoder.push(&chunk)?;
        if decoder.bytes() >= BATCH_BYTES || decoder.rows() >= BATCH_ROWS {
            sink.add(&decoder.take()?, None)?;
        }
    }
    if decoder.rows() > 0 {
        sink.add(&decoder.take()?, None)?;
    }
    decoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::table::TableName;

    #[test]
    fn a_sample_is_about_as_large_as_asked_and_never_empty() {
        let heap = Arc::new(Heap {
            oid: 1,
            name: TableName { schema: "s".into(), table: "t".into() },
            root: None,
            pages: 200,
            filter: None,
        });
        let all = ranges_of(&heap, 1);
        assert_eq!(choose(all.clone(), 10.0).len(), 20);
        assert_eq!(choose(all.clone(), 0.01).len(), 1);
        let whole: std::collections::HashSet<_> = choose(all, 100.0).into_iter().map(|(_, range)| range).collect();
        assert_eq!(whole.len(), 200);
    }
}
