//! Columns of a data file by their id, with the position of each row.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{Fields, Schema, SchemaRef};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::{
    MetadataFetch, ParquetObjectReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder,
};
use parquet::basic::Type;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaDataReader};

use crate::encoder::footer_bytes;
use crate::error::{Result, StorageError};
use crate::fields::{field_id, require_field_id};
use crate::missing;
use crate::store::Store;

/// The footers and offset indexes of most files fit in one read of this many bytes from the end.
const TAIL_BYTES: u64 = 64 * 1024;
/// Rows per batch.
const BATCH_ROWS: usize = 8192;

/// An open data file: its footer is read, its columns are not.
#[derive(Clone)]
pub struct DataFileReader {
    url: String,
    bytes: u64,
    footer_bytes: u64,
    input: ParquetObjectReader,
    metadata: ArrowReaderMetadata,
    /// The lake's column id to the index of the file's top-level column.
    columns: HashMap<i32, usize>,
    batch_rows: usize,
}

/// Which rows to read.
#[derive(Clone, Debug)]
pub enum Rows {
    /// All.
    All,
    /// Those of these row groups, which ascend.
    RowGroups(Vec<usize>),
    /// Those at these positions, which ascend, each once. Pages without any of them are not read.
    Positions(Vec<u64>),
}

/// Rows and where they are.
#[derive(Clone, Debug)]
pub struct PositionedBatch {
    /// Each row's position in the file, counted from 0.
    pub positions: Vec<u64>,
    /// The rows.
    pub batch: RecordBatch,
}

impl DataFileReader {
    /// Opens a file by its path in the store.
    pub async fn open(store: &Store, path: &str) -> Result<DataFileReader> {
        let url = store.url(path);
        let tail = Tail::read(store, path).await?;
        let size = tail.size;
        let footer_bytes = footer_bytes(&tail.bytes)
            .map_err(|_| StorageError::invalid(url.as_str(), "the file does not end as a Parquet file"))?;
        let input = store.parquet(path)?.with_file_size(size);
        let failed = |cause| StorageError::Parquet { url: url.clone(), cause };
        let footer = ParquetMetaDataReader::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional)
            .load_and_finish(tail, size)
            .await
            .map_err(failed)?;
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(footer), options).map_err(failed)?;
        let fields = metadata.schema().fields();
        let columns: HashMap<i32, usize> =
            fields.iter().enumerate().filter_map(|(index, field)| Some((field_id(field)?, index))).collect();
        if columns.is_empty() && !fields.is_empty() {
            return Err(StorageError::invalid(url, "no column of the file carries a column id"));
        }
        Ok(DataFileReader { url, bytes: size, footer_bytes, input, metadata, columns, batch_rows: BATCH_ROWS })
    }

    /// Reads batches of at most so many rows.
    #[must_use]
    pub fn with_batch_rows(mut self, rows: usize) -> DataFileReader {
        self.batch_rows = rows.clamp(1, BATCH_ROWS);
        self
    }

    /// About how many bytes a row is once it is read, as the footer tells.
    pub fn row_bytes(&self) -> u64 {
        let columns = self.metadata.metadata().row_groups().iter().flat_map(|group| group.columns());
        columns.map(decoded_bytes).sum::<u64>() / self.rows().max(1)
    }

    /// The file's size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size of its Parquet footer in bytes.
    pub fn footer_bytes(&self) -> u64 {
        self.footer_bytes
    }

    /// The file's top-level columns as it has them, with their column ids: see [`field_id`](crate::field_id).
    pub fn fields(&self) -> &Fields {
        self.metadata.schema().fields()
    }

    /// The rows of each row group.
    pub fn row_groups(&self) -> Vec<u64> {
        let groups = self.metadata.metadata().row_groups();
        groups.iter().map(|group| u64::try_from(group.num_rows()).unwrap_or_default()).collect()
    }

    /// The rows of the file.
    pub fn rows(&self) -> u64 {
        self.row_groups().iter().sum()
    }

    /// Whether the file has the column.
    pub fn has_column(&self, field_id: i32) -> bool {
        self.columns.contains_key(&field_id)
    }

    /// The least and the greatest value of a column in each row group, as the footer tells them: NULL where it doesn't.
    /// A text's bounds may be wider than its values. `None` where the file lacks the column.
    pub fn bounds(&self, field_id: i32) -> Result<Option<(ArrayRef, ArrayRef)>> {
        let Some(index) = self.columns.get(&field_id) else { return Ok(None) };
        let schema = self.metadata.schema();
        let footer = self.metadata.metadata();
        let parquet_schema = footer.file_metadata().schema_descr();
        StatisticsConverter::try_new(schema.field(*index).name(), schema, parquet_schema)
            .and_then(|converter| {
                let groups = footer.row_groups();
                Ok(Some((converter.row_group_mins(groups)?, converter.row_group_maxes(groups)?)))
            })
            .map_err(|cause| self.failed(cause))
    }

    /// Reads the columns that the fields of `schema` name by their column id, in the form that they say. A column that the file
    /// does not have, because it was written before, shows its [`INITIAL_DEFAULT`](crate::INITIAL_DEFAULT), else NULL.
    pub fn read(&self, schema: SchemaRef, rows: Rows) -> Result<PositionedStream> {
        let mut wanted = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            wanted.push(self.columns.get(&require_field_id(field)?).copied());
        }
        let mut roots: Vec<usize> = wanted.iter().flatten().copied().collect();
        roots.sort_unstable();
        roots.dedup();
        let sources = wanted
            .iter()
            .zip(schema.fields())
            .map(|(root, field)| match root.and_then(|root| roots.binary_search(&root).ok()) {
                Some(index) => Ok(Source::Column(index)),
                None => missing::value(field).map(Source::Missing),
            })
            .collect::<Result<Vec<_>>>()?;

        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.input.clone(), self.metadata.clone())
            .with_batch_size(self.batch_rows);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let builder = builder.with_projection(mask);
        let (builder, positions) = match self.plan(rows)? {
            Plan::Groups(groups, positions) => (builder.with_row_groups(groups), positions),
            Plan::Selection(groups, selection, positions) => {
                (builder.with_row_groups(groups).with_row_selection(selection), positions)
            }
        };
        let input = builder.build().map_err(|cause| self.failed(cause))?;
        Ok(PositionedStream { url: self.url.clone(), input, schema, sources, positions })
    }

    fn plan(&self, rows: Rows) -> Result<Plan> {
        let sizes = self.row_groups();
        let starts: Vec<u64> = sizes
            .iter()
            .scan(0, |next, size| {
                let start = *next;
                *next += size;
                Some(start)
            })
            .collect();
        match rows {
            Rows::All => {
                let all: u64 = sizes.iter().sum();
                Ok(Plan::Groups((0..sizes.len()).collect(), std::iter::once(0..all).collect()))
            }
            Rows::RowGroups(groups) => {
                if groups.windows(2).any(|pair| pair[0] >= pair[1]) || groups.last().is_some_and(|g| *g >= sizes.len())
                {
                    return Err(StorageError::invalid(
                        self.url.as_str(),
                        "row groups that do not ascend or are not there",
                    ));
                }
                let positions = groups.iter().map(|group| starts[*group]..starts[*group] + sizes[*group]).collect();
                Ok(Plan::Groups(groups, positions))
            }
            Rows::Positions(wanted) => {
                if wanted.windows(2).any(|pair| pair[0] >= pair[1]) || wanted.last().is_some_and(|p| *p >= self.rows())
                {
                    return Err(StorageError::invalid(
                        self.url.as_str(),
                        "positions that do not ascend or are not there",
                    ));
                }
                let mut groups = Vec::new();
                let mut selectors: Vec<RowSelector> = Vec::new();
                let mut positions: VecDeque<Range<u64>> = VecDeque::new();
                let mut rest = wanted.as_slice();
                for (group, (start, size)) in starts.iter().zip(&sizes).enumerate() {
                    let inside;
                    (inside, rest) = rest.split_at(rest.partition_point(|position| *position < start + size));
                    if inside.is_empty() {
                        continue;
                    }
                    groups.push(group);
                    let mut next = *start;
                    for position in inside {
                        if *position > next {
                            selectors.push(RowSelector::skip((position - next) as usize));
                        }
                        selectors.push(RowSelector::select(1));
                        match positions.back_mut() {
                            Some(range) if range.end == *position => range.end += 1,
                            _ => positions.push_back(*position..position + 1),
                        }
                        next = position + 1;
                    }
                    if next < start + size {
                        selectors.push(RowSelector::skip((start + size - next) as usize));
                    }
                }
                // Joins neighbours of a kind.
                Ok(Plan::Selection(groups, selectors.into_iter().collect::<RowSelection>(), positions))
            }
        }
    }

    fn failed(&self, cause: ParquetError) -> StorageError {
        StorageError::Parquet { url: self.url.clone(), cause }
    }
}

/// A file's end, read by one request that also tells the file's size. (The Parquet library's own way to open a file of unknown
/// size, `load_via_suffix_and_finish`, looks for the offset index at the wrong place in what it has read.)
struct Tail {
    store: Store,
    path: String,
    size: u64,
    bytes: Bytes,
}

impl Tail {
    async fn read(store: &Store, path: &str) -> Result<Tail> {
        let (size, bytes) = store.tail(path, TAIL_BYTES).await?;
        Ok(Tail { store: store.clone(), path: path.to_string(), size, bytes })
    }
}

impl MetadataFetch for Tail {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        let start = self.size - self.bytes.len() as u64;
        if range.start >= start && range.end <= self.size {
            let part = self.bytes.slice((range.start - start) as usize..(range.end - start) as usize);
            return std::future::ready(Ok(part)).boxed();
        }
        async move { self.store.range(&self.path, range).await.map_err(|e| ParquetError::External(Box::new(e))) }
            .boxed()
    }
}

enum Plan {
    Groups(Vec<usize>, VecDeque<Range<u64>>),
    Selection(Vec<usize>, RowSelection, VecDeque<Range<u64>>),
}

/// Where a column comes from.
enum Source {
    /// This column of the input's batches.
    Column(usize),
    /// The file lacks it: the value of all rows.
    Missing(ArrayRef),
}

/// The rows of a file, batch by batch, in the order of their positions.
pub struct PositionedStream {
    url: String,
    input: ParquetRecordBatchStream<ParquetObjectReader>,
    schema: SchemaRef,
    /// For each field of `schema`.
    sources: Vec<Source>,
    /// The positions that are still to come.
    positions: VecDeque<Range<u64>>,
}

impl Stream for PositionedStream {
    type Item = Result<PositionedBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.input.poll_next_unpin(cx));
        Poll::Ready(match next {
            Some(Ok(batch)) => Some(self.deliver(&batch)),
            Some(Err(cause)) => Some(Err(StorageError::Parquet { url: self.url.clone(), cause })),
            None if self.positions.is_empty() => None,
            None => {
                self.positions.clear();
                Some(Err(StorageError::invalid(self.url.as_str(), "the file ended before its last row")))
            }
        })
    }
}

impl PositionedStream {
    fn deliver(&mut self, batch: &RecordBatch) -> Result<PositionedBatch> {
        let positions = self.take_positions(batch.num_rows())?;
        let columns = self
            .schema
            .fields()
            .iter()
            .zip(&self.sources)
            .map(|(field, source)| match source {
                Source::Missing(value) => missing::rows(value, batch.num_rows()),
                Source::Column(index) if batch.column(*index).data_type() == field.data_type() => {
                    Ok(Arc::clone(batch.column(*index)))
                }
                // The column's type was widened since, or a list's element is labelled otherwise.
                Source::Column(index) => {
                    let options = CastOptions { safe: false, ..CastOptions::default() };
                    cast_with_options(batch.column(*index), field.data_type(), &options)
                }
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| StorageError::invalid(self.url.as_str(), error.to_string()))?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(nullable(&self.schema), columns, &options)
            .map_err(|error| StorageError::invalid(self.url.as_str(), error.to_string()))?;
        Ok(PositionedBatch { positions, batch })
    }

    fn take_positions(&mut self, rows: usize) -> Result<Vec<u64>> {
        let mut taken = Vec::with_capacity(rows);
        while taken.len() < rows {
            let Some(range) = self.positions.front_mut() else {
                return Err(StorageError::invalid(self.url.as_str(), "the file has more rows than its footer says"));
            };
            let end = range.end.min(range.start + (rows - taken.len()) as u64);
            taken.extend(range.start..end);
            range.start = end;
            if range.is_empty() {
                self.positions.pop_front();
            }
        }
        Ok(taken)
    }
}

/// A column that is missing is NULL, whatever its declaration says today.
fn nullable(schema: &SchemaRef) -> SchemaRef {
    if schema.fields().iter().all(|field| field.is_nullable()) {
        return Arc::clone(schema);
    }
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// Bytes of a column's values in memory. A dictionary may hold each of them once (`SizeStatistics` in parquet.thrift): of a file that does not
/// say how long texts are together, what is stored counts.
fn decoded_bytes(column: &ColumnChunkMetaData) -> u64 {
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    let width = match column.column_type() {
        Type::BOOLEAN => 1,
        Type::INT32 | Type::FLOAT => 4,
        Type::INT64 | Type::DOUBLE => 8,
        Type::INT96 => 12,
        Type::FIXED_LEN_BYTE_ARRAY => number(column.column_descr().type_length().into()),
        Type::BYTE_ARRAY => {
            let text = column.unencoded_byte_array_data_bytes().unwrap_or_else(|| column.uncompressed_size());
            // And where each ends.
            return number(text) + 4 * number(column.num_values());
        }
    };
    number(column.num_values()) * width
}
