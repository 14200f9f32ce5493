//! Record batches to the bytes of one Parquet file.
//!
//! Pure computation: it is moved to a blocking thread for each batch, and hands out the bytes of each finished row group.

use std::sync::Arc;

use ahash::AHashSet;
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::basic::{Compression, Encoding, LogicalType, Type as PhysicalType, ZstdLevel};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

use crate::data_file::DataFileOptions;
use crate::error::{Result, StorageError};
use crate::row_group::{RowGroup, RowGroups};
use crate::stats::{ColumnStats, StatsCollector};

/// The size at which the Parquet library ends a page.
const PAGE_BYTES: usize = 1024 * 1024;
/// How many values of a file's first batch decide on a column's encoding.
const SAMPLE: usize = 2048;

/// One file in the making.
pub(crate) struct Encoder {
    writer: SerializedFileWriter<Vec<u8>>,
    row_groups: RowGroups,
    /// The row group that is not whole yet.
    open: Option<RowGroup>,
    stats: StatsCollector,
    rows: u64,
    row_group_rows: usize,
    row_group_bytes: usize,
}

/// What a finished file is.
pub(crate) struct Encoded {
    pub(crate) last: Bytes,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) footer_bytes: u64,
    pub(crate) columns: Vec<ColumnStats>,
}

impl Encoder {
    /// A new file of `schema`, whose fields carry their ids. `first` is the batch that it begins with.
    pub(crate) fn new(schema: &SchemaRef, options: &DataFileOptions, first: &RecordBatch) -> Result<Encoder> {
        let stats = StatsCollector::new(schema.fields())?;
        let writer = open(schema, options, first).map_err(parquet)?;
        let row_groups = RowGroups::new(&writer, schema, options.threads);
        let DataFileOptions { row_group_rows, row_group_bytes, .. } = *options;
        Ok(Encoder { writer, row_groups, open: None, stats, rows: 0, row_group_rows, row_group_bytes })
    }

    /// Encodes a batch; hands out the bytes of the row groups that it completed, often none.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<Bytes> {
        let row_bytes = batch_bytes(batch) / batch.num_rows().max(1);
        // The row group's memory is kept to within a quarter.
        let step = (self.row_group_bytes / 4 / row_bytes.max(1)).max(1);
        let mut begin = 0;
        while begin < batch.num_rows() {
            let mut row_group = match self.open.take() {
                Some(row_group) => row_group,
                None => self.row_groups.begin(self.writer.flushed_row_groups().len()).map_err(parquet)?,
            };
            let rows = step.min(batch.num_rows() - begin).min(self.row_group_rows - row_group.rows());
            row_group.write(batch.slice(begin, rows), rows * row_bytes, &mut self.stats)?;
            match row_group.rows() >= self.row_group_rows || row_group.memory() >= self.row_group_bytes {
                true => row_group.end(&mut self.writer, &mut self.stats)?,
                false => self.open = Some(row_group),
            }
            begin += rows;
        }
        self.rows += batch.num_rows() as u64;
        Ok(self.take())
    }

    /// About how large the file would be if it ended here, in bytes.
    pub(crate) fn size(&self) -> u64 {
        (self.writer.bytes_written() + self.open.as_ref().map_or(0, RowGroup::size)) as u64
    }

    /// Memory in use for the open row group, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.open.as_ref().map_or(0, RowGroup::memory)
    }

    /// Ends the file.
    pub(crate) fn finish(mut self) -> Result<Encoded> {
        if let Some(row_group) = self.open.take() {
            row_group.end(&mut self.writer, &mut self.stats)?;
        }
        let metadata = self.writer.finish().map_err(parquet)?;
        let last = self.take();
        let bytes = self.writer.bytes_written() as u64;
        let columns = self.stats.finish(&compressed_sizes(&metadata));
        Ok(Encoded { footer_bytes: footer_bytes(&last)?, last, rows: self.rows, bytes, columns })
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(self.writer.inner_mut()))
    }
}

/// The length of the footer, as the eight bytes at a Parquet file's end tell it.
pub(crate) fn footer_bytes(end: &[u8]) -> Result<u64> {
    match end.last_chunk::<8>() {
        Some([a, b, c, d, b'P', b'A', b'R', b'1']) => Ok(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
        _ => Err(StorageError::invalid("Parquet file", "it does not end as one")),
    }
}

fn open(
    schema: &SchemaRef,
    options: &DataFileOptions,
    first: &RecordBatch,
) -> ParquetResult<SerializedFileWriter<Vec<u8>>> {
    let descriptor = parquet_schema(schema)?;
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("duckpipe version ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(options.compression_level)?))
        .set_data_page_size_limit(PAGE_BYTES)
        .set_write_batch_size(values_per_check(first))
        // Row group statistics let a lookup skip row groups; the offset index, which is on by default, lets it skip pages.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(Some(64));
    // Each column has one leaf: lists are the only nesting.
    for (leaf, array) in descriptor.columns().iter().zip(first.columns()) {
        if is_mostly_distinct(array) {
            let path = leaf.path().clone();
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, plain_encoding(leaf.physical_type()));
        }
    }
    // Readers of the lake have its schema; nothing of ours needs Arrow's own in each footer.
    SerializedFileWriter::new(Vec::new(), descriptor.root_schema_ptr(), Arc::new(properties.build()))
}

/// A dictionary of a column whose values hardly repeat costs time and saves nothing, until the Parquet library gives it up at
/// 1 MiB, in each row group anew.
fn is_mostly_distinct(array: &ArrayRef) -> bool {
    if matches!(array.data_type(), DataType::List(_) | DataType::Boolean) {
        return false;
    }
    let sample = array.slice(0, array.len().min(SAMPLE));
    let values = sample.len() - sample.null_count();
    let Ok(converter) = RowConverter::new(vec![SortField::new(sample.data_type().clone())]) else { return false };
    let Ok(rows) = converter.convert_columns(&[sample]) else { return false };
    let distinct = rows.iter().map(|row| row.data().to_vec()).collect::<AHashSet<_>>().len();
    values >= SAMPLE / 16 && distinct * 10 > values * 9
}

/// The Parquet library looks at a page's size after this many values. Wide values need a closer look, or one page, which is the
/// least that a fetch of one row reads, would grow far beyond the usual 1 MiB.
fn values_per_check(first: &RecordBatch) -> usize {
    let widest = first.columns().iter().map(array_bytes).max().unwrap_or_default() / first.num_rows().max(1);
    (PAGE_BYTES / widest.max(1)).clamp(8, 1024)
}

/// The encoding of a column that has no dictionary. (Measured with sysbench's rows, zstd level 1: 1.7 times as fast as plain
/// encoding, and smaller.)
fn plain_encoding(physical: PhysicalType) -> Encoding {
    match physical {
        PhysicalType::INT32 | PhysicalType::INT64 => Encoding::DELTA_BINARY_PACKED,
        PhysicalType::BYTE_ARRAY => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        _ => Encoding::PLAIN,
    }
}

/// The Parquet schema of `schema`: what the library makes of it, with 16-byte values declared as UUIDs, which they are.
fn parquet_schema(schema: &SchemaRef) -> ParquetResult<SchemaDescriptor> {
    let converted = ArrowSchemaConverter::new().convert(schema)?;
    let root = converted.root_schema();
    let fields = root.get_fields().iter().map(declare_uuids).collect::<ParquetResult<Vec<_>>>()?;
    let root = Type::group_type_builder(root.name()).with_fields(fields).build()?;
    Ok(SchemaDescriptor::new(Arc::new(root)))
}

fn declare_uuids(field: &TypePtr) -> ParquetResult<TypePtr> {
    let info = field.get_basic_info();
    let id = info.has_id().then(|| info.id());
    let declared = match field.as_ref() {
        Type::GroupType { fields, .. } => {
            let fields = fields.iter().map(declare_uuids).collect::<ParquetResult<Vec<_>>>()?;
            Type::group_type_builder(field.name())
                .with_repetition(info.repetition())
                .with_converted_type(info.converted_type())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_fields(fields)
                .with_id(id)
                .build()?
        }
        Type::PrimitiveType { physical_type: PhysicalType::FIXED_LEN_BYTE_ARRAY, type_length: 16, .. }
            if info.logical_type_ref().is_none() && info.converted_type() == parquet::basic::ConvertedType::NONE =>
        {
            Type::primitive_type_builder(field.name(), PhysicalType::FIXED_LEN_BYTE_ARRAY)
                .with_length(16)
                .with_repetition(info.repetition())
                .with_logical_type(Some(LogicalType::Uuid))
                .with_id(id)
                .build()?
        }
        Type::PrimitiveType { .. } => return Ok(Arc::clone(field)),
    };
    Ok(Arc::new(declared))
}

/// The compressed size of each leaf column over all row groups.
fn compressed_sizes(metadata: &ParquetMetaData) -> Vec<u64> {
    let mut sizes = vec![0; metadata.file_metadata().schema_descr().num_columns()];
    for row_group in metadata.row_groups() {
        for (size, column) in sizes.iter_mut().zip(row_group.columns()) {
            *size += u64::try_from(column.compressed_size()).unwrap_or_default();
        }
    }
    sizes
}

/// The bytes that a batch's rows take in memory, without what its arrays share with other rows.
pub fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(array_bytes).sum()
}

/// The bytes that an array's values take in memory, without what it shares with others.
pub(crate) fn array_bytes(array: &ArrayRef) -> usize {
    array.to_data().get_slice_memory_size().unwrap_or_default()
}

pub(crate) fn parquet(cause: ParquetError) -> StorageError {
    StorageError::Parquet { url: "encoding".to_string(), cause }
}
