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
use crate::source::table::SourceTable;

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

/// One table of the source.
#[derive(Clone, Debug)]
pub(super) struct SourceRows {
    pub(super) table: Arc<SourceTable>,
    pub(super) layout: Arc<TableLayout>,
    ranges: Vec<Option<Range<u32>>>,
}

impl SourceRows {
    /// All rows, or those of about so many percent of the pages, chosen anew each time.
    pub(super) fn new(table: &SourceTable, layout: &TableLayout, sample: Option<f64>) -> SourceRows {
        let pages = if sample.is_some() { SAMPLE_PAGES } else { RANGE_PAGES };
        let ranges = match table.pages <= pages {
            true => vec![None],
            false => {
                let mut starts: Vec<u32> = (0..table.pages).step_by(pages as usize).collect();
                // The last range is open: the heap may have grown since it was measured.
                starts.push(u32::MAX);
                let all: Vec<_> = starts.windows(2).map(|w| Some(w[0]..w[1])).collect();
                match sample {
                    None => all,
                    Some(percent) => choose(all, percent),
                }
            }
        };
        SourceRows { table: Arc::new(table.clone()), layout: Arc::new(layout.clone()), ranges }
    }
}

/// About so many percent of the ranges, one at least.
fn choose(mut all: Vec<Option<Range<u32>>>, percent: f64) -> Vec<Option<Range<u32>>> {
    let wanted = ((all.len() as f64 * percent / 100.0).round() as usize).clamp(1, all.len());
    let random = RandomState::new();
    all.sort_by_cached_key(|range| random.hash_one(range));
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
    range: Option<Range<u32>>,
    sink: &mut S,
) -> Result<()> {
    let columns: Vec<CopyColumn> = rows
        .layout
        .columns
        .iter()
        .map(|column| CopyColumn { name: column.name.clone(), cast: column.copy_cast() })
        .collect();
    let mut stream = reader.copy(&rows.table, &columns, range).await?;
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

    #[test]
    fn a_sample_is_about_as_large_as_asked_and_never_empty() {
        let all: Vec<_> = (0..200u32).map(|i| Some(i..i + 1)).collect();
        assert_eq!(choose(all.clone(), 10.0).len(), 20);
        assert_eq!(choose(all.clone(), 0.01).len(), 1);
        let whole: std::collections::HashSet<_> = choose(all, 100.0).into_iter().collect();
        assert_eq!(whole.len(), 200);
    }
}
