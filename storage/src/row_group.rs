//! One row group in the making: its columns are encoded side by side.

use std::cmp::Reverse;
use std::sync::{Mutex, PoisonError};
use std::thread;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::Result as ParquetResult;
use parquet::file::writer::SerializedFileWriter;

use crate::encoder::{array_bytes, parquet};
use crate::error::Result;
use crate::stats::StatsCollector;

/// Makes the row groups of one file.
pub(crate) struct RowGroups {
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    threads: usize,
}

/// The rows since the last row group ended.
pub(crate) struct RowGroup {
    columns: Vec<ArrowColumnWriter>,
    schema: SchemaRef,
    threads: usize,
    rows: usize,
    /// Those of them that are not encoded yet.
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
}

/// Several threads are worth their start for this many bytes; one takes what comes.
const WORTH_THREADS: usize = 8 << 20;

impl RowGroups {
    /// Those of `writer`'s file, which use so many threads.
    pub(crate) fn new(writer: &SerializedFileWriter<Vec<u8>>, schema: &SchemaRef, threads: usize) -> RowGroups {
        let factory = ArrowRowGroupWriterFactory::new(writer, SchemaRef::clone(schema));
        RowGroups { factory, schema: SchemaRef::clone(schema), threads }
    }

    /// Begins the row group with this number, counted from 0.
    pub(crate) fn begin(&self, number: usize) -> ParquetResult<RowGroup> {
        let columns = self.factory.create_column_writers(number)?;
        Ok(RowGroup {
            columns,
            schema: SchemaRef::clone(&self.schema),
            threads: self.threads,
            rows: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
        })
    }
}

impl RowGroup {
    /// Takes rows of so many bytes. Sooner or later they are encoded, and added to the file's statistics.
    pub(crate) fn write(&mut self, batch: RecordBatch, bytes: usize, stats: &mut StatsCollector) -> Result<()> {
        self.rows += batch.num_rows();
        self.waiting.push(batch);
        self.waiting_bytes += bytes;
        if self.threads == 1 || self.waiting_bytes >= WORTH_THREADS {
            self.encode(stats)?;
        }
        Ok(())
    }

    fn encode(&mut self, stats: &mut StatsCollector) -> Result<()> {
        let batches = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let fields = self.schema.fields().iter();
        let columns = self.columns.iter_mut().zip(stats.columns()).zip(fields).enumerate();
        let weigh = |(index, _): &(usize, _)| batches.iter().map(|batch| array_bytes(batch.column(*index))).sum();
        side_by_side(self.threads, columns, weigh, |(index, ((column, stats), field))| {
            batches.iter().map(|batch| batch.column(index)).try_for_each(|array| {
                stats.add(array)?;
                // One: lists are the only nesting.
                let leaves = compute_leaves(field, array).map_err(parquet)?;
                leaves.iter().try_for_each(|leaf| column.write(leaf)).map_err(parquet)
            })
        })?;
        Ok(())
    }

    /// Its rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The memory in use, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::memory_size).sum::<usize>() + self.waiting_bytes
    }

    /// About how large it would be in the file, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum::<usize>() + self.waiting_bytes
    }

    /// Writes it into the file.
    pub(crate) fn end(mut self, writer: &mut SerializedFileWriter<Vec<u8>>, stats: &mut StatsCollector) -> Result<()> {
        self.encode(stats)?;
        let columns = self.columns.into_iter();
        let chunks = side_by_side(self.threads, columns, ArrowColumnWriter::memory_size, ArrowColumnWriter::close);
        let mut row_group = writer.next_row_group().map_err(parquet)?;
        for chunk in chunks.map_err(parquet)? {
            chunk.append_to_row_group(&mut row_group).map_err(parquet)?;
        }
        row_group.close().map_err(parquet)?;
        Ok(())
    }
}

/// Does the work for each item, on so many threads, of which the caller's is one; the results are in the items' order. The heaviest
/// come first: one that came last would be waited for.
fn side_by_side<T: Send, R: Send, E: Send>(
    threads: usize,
    items: impl Iterator<Item = T>,
    weigh: impl Fn(&T) -> usize,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let mut queue: Vec<(usize, T)> = items.enumerate().collect();
    queue.sort_by_cached_key(|(_, item)| Reverse(weigh(item)));
    let queue = Mutex::new(queue.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut done = Vec::new();
        while let Some((place, item)) = next() {
            done.push((place, work(item)?));
        }
        Ok(done)
    };
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut done = run()?;
        for helper in helpers {
            // A panic goes on in the caller.
            done.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(done)
    })?;
    done.sort_unstable_by_key(|(place, _)| *place);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
