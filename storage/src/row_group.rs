//! One row group in the making: its columns are encoded side by side.

use std::sync::{Mutex, PoisonError};
use std::thread;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::errors::Result as ParquetResult;
use parquet::file::writer::SerializedFileWriter;

use crate::encoder::parquet;
use crate::error::Result;
use crate::stats::StatsCollector;

/// Makes the row groups of one file.
pub(crate) struct RowGroups {
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    threads: usize,
}

/// The rows that were encoded since the last row group ended.
pub(crate) struct RowGroup {
    columns: Vec<ArrowColumnWriter>,
    schema: SchemaRef,
    threads: usize,
    rows: usize,
}

impl RowGroups {
    /// Those of `writer`'s file, which use so many threads.
    pub(crate) fn new(writer: &SerializedFileWriter<Vec<u8>>, schema: &SchemaRef, threads: usize) -> RowGroups {
        let factory = ArrowRowGroupWriterFactory::new(writer, SchemaRef::clone(schema));
        RowGroups { factory, schema: SchemaRef::clone(schema), threads }
    }

    /// Begins the row group with this number, counted from 0.
    pub(crate) fn begin(&self, number: usize) -> ParquetResult<RowGroup> {
        let columns = self.factory.create_column_writers(number)?;
        Ok(RowGroup { columns, schema: SchemaRef::clone(&self.schema), threads: self.threads, rows: 0 })
    }
}

impl RowGroup {
    /// Encodes the rows, and adds them to the file's statistics.
    pub(crate) fn write(&mut self, batch: &RecordBatch, stats: &mut StatsCollector) -> Result<()> {
        self.rows += batch.num_rows();
        let fields = self.schema.fields().iter();
        let columns = self.columns.iter_mut().zip(stats.columns()).zip(batch.columns().iter().zip(fields));
        side_by_side(self.threads, columns, |((column, stats), (array, field))| {
            stats.add(array)?;
            // One: lists are the only nesting.
            compute_leaves(field, array)
                .and_then(|leaves| leaves.iter().try_for_each(|leaf| column.write(leaf)))
                .map_err(parquet)
        })?;
        Ok(())
    }

    /// Its rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The memory in use, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::memory_size).sum()
    }

    /// About how large it would be in the file, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.columns.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum()
    }

    /// Writes it into the file.
    pub(crate) fn end(self, writer: &mut SerializedFileWriter<Vec<u8>>) -> ParquetResult<()> {
        let chunks = side_by_side(self.threads, self.columns.into_iter(), ArrowColumnWriter::close)?;
        let mut row_group = writer.next_row_group()?;
        for chunk in chunks {
            chunk.append_to_row_group(&mut row_group)?;
        }
        row_group.close()?;
        Ok(())
    }
}

/// Does the work for each item, on so many threads, of which the caller's is one; the results are in the items' order.
fn side_by_side<T, R: Send, E: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let queue = Mutex::new(items.enumerate());
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
