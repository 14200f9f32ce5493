//! The positions of rows that are no more.
//!
//! A delete file is a Parquet file of positions in one data file. Ours satisfy two readers at once:
//!
//! * DuckLake, which wants `file_path VARCHAR, pos BIGINT` and, where the file holds deletes of several snapshots, a third column
//!   `_ducklake_internal_snapshot_id BIGINT`, with ascending positions;
//! * Iceberg (table spec v2, "Position Delete Files"), which wants the first two required and under its reserved field ids.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::data_file::{UploadLog, announce};
use crate::deleted_rows::DeletedRows;
use crate::encoder::footer_bytes;
use crate::error::{Result, StorageError};
use crate::store::{Store, blocking};

/// Iceberg's reserved id of a delete file's `file_path`.
const FILE_PATH_ID: i32 = 2_147_483_546;
/// Iceberg's reserved id of a delete file's `pos`.
const POSITION_ID: i32 = 2_147_483_545;
/// DuckLake's reserved id of the snapshot that deleted a row.
const SNAPSHOT_ID: i32 = 2_147_483_539;
const SNAPSHOT_COLUMN: &str = "_ducklake_internal_snapshot_id";

/// How many delete files are written at once: each is one request.
const WRITES_AT_ONCE: usize = 8;

/// A delete file that is whole and durable, as a catalog registers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteFile {
    /// The path relative to the store: `public/orders/<uuid>-delete.parquet`.
    pub path: String,
    /// How many positions it holds.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The size of its Parquet footer in bytes.
    pub footer_bytes: u64,
}

/// All deleted rows of one data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Deletes {
    /// The data file's absolute path or address: [`Store::url`] of its path.
    pub data_file_url: String,
    /// The rows, each once.
    pub rows: DeletedRows,
}

/// Writes one delete file. See [`write_delete_files`].
pub async fn write_delete_file(
    store: &Store,
    log: &dyn UploadLog,
    folder: &str,
    data_file_url: &str,
    deletes: &[(u64, i64)],
) -> Result<DeleteFile> {
    let deletes = Deletes { data_file_url: data_file_url.to_string(), rows: deletes.iter().copied().collect() };
    let mut written = write_delete_files(store, log, folder, vec![deletes]).await?;
    written.pop().ok_or_else(|| StorageError::invalid(folder, "no delete file was written"))
}

/// Writes a delete file into `folder` for each data file, and returns them in the order of `deletes`. The log is told of all
/// of them at once. Fails where a file has no deletes or one position twice.
pub async fn write_delete_files(
    store: &Store,
    log: &dyn UploadLog,
    folder: &str,
    deletes: Vec<Deletes>,
) -> Result<Vec<DeleteFile>> {
    if deletes.is_empty() {
        return Ok(Vec::new());
    }
    let paths: Vec<String> = deletes.iter().map(|_| new_delete_file_path(folder)).collect();
    announce(log, &paths).await?;
    stream::iter(paths.into_iter().zip(deletes))
        .map(|(path, deletes)| write_announced_delete_file(store, path, deletes))
        .buffered(WRITES_AT_ONCE)
        .try_collect()
        .await
}

/// A name for a new delete file in a table's folder, never used twice.
pub fn new_delete_file_path(folder: &str) -> String {
    format!("{}/{}-delete.parquet", folder.trim_end_matches('/'), Uuid::now_v7())
}

/// Writes one delete file at a path that the log was told of before.
pub async fn write_announced_delete_file(store: &Store, path: String, deletes: Deletes) -> Result<DeleteFile> {
    let rows = deletes.rows.len();
    let bytes = blocking(move || encode(&deletes)).await?;
    let file = DeleteFile { rows, bytes: bytes.len() as u64, footer_bytes: footer_bytes(&bytes)?, path };
    store.put(&file.path, bytes).await?;
    Ok(file)
}

/// Reads a delete file, ours or DuckLake's own: ascending positions, each with the snapshot that deleted the row where the file
/// says so.
pub async fn read_delete_file(store: &Store, path: &str) -> Result<Vec<(u64, Option<i64>)>> {
    let mut rows = Vec::new();
    visit_delete_file(store, path, |position, snapshot| rows.push((position, snapshot))).await?;
    Ok(rows)
}

/// Reads a delete file, ours or DuckLake's own. A row whose snapshot the file does not say was deleted by `begin_snapshot`, the
/// one that the file began with.
pub async fn read_deleted_rows(store: &Store, path: &str, begin_snapshot: i64) -> Result<DeletedRows> {
    let mut rows = DeletedRows::default();
    visit_delete_file(store, path, |position, snapshot| rows.insert(position, snapshot.unwrap_or(begin_snapshot)))
        .await?;
    Ok(rows)
}

/// The positions in a delete file, whoever deleted them.
pub async fn read_deleted_positions(store: &Store, path: &str) -> Result<RoaringTreemap> {
    let mut positions = RoaringTreemap::new();
    let each = |position, _| {
        positions.insert(position);
    };
    visit_delete_file(store, path, each).await?;
    Ok(positions)
}

/// Rows that are encoded at once: the path is repeated in each row, and millions of it would not fit the memory.
const SLICE_ROWS: usize = 65_536;

fn encode(deletes: &Deletes) -> Result<Bytes> {
    let place = &deletes.data_file_url;
    if deletes.rows.is_empty() {
        return Err(StorageError::invalid(place, "a delete file without deletes"));
    }
    let failed = |cause| StorageError::Parquet { url: format!("deletes of {place}"), cause };
    let mut writer = open_writer().map_err(failed)?;
    let slice_rows = usize::try_from(deletes.rows.len()).map_or(SLICE_ROWS, |rows| rows.min(SLICE_ROWS));
    let paths = StringArray::from_iter_values(std::iter::repeat_n(place, slice_rows));
    let mut rows = deletes.rows.iter().peekable();
    let mut last = None;
    while rows.peek().is_some() {
        let (mut positions, mut snapshots) = (Vec::new(), Vec::new());
        for (position, snapshot) in rows.by_ref().take(slice_rows) {
            if last == Some(position) {
                return Err(StorageError::invalid(place, format!("row {position} is deleted twice")));
            }
            last = Some(position);
            let past_every_end = |_| StorageError::invalid(place, format!("row {position} is past every file's end"));
            positions.push(i64::try_from(position).map_err(past_every_end)?);
            snapshots.push(snapshot);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(paths.slice(0, positions.len())),
            Arc::new(Int64Array::from(positions)),
            Arc::new(Int64Array::from(snapshots)),
        ];
        let batch = RecordBatch::try_new(schema(), columns).map_err(|error| failed(error.into()))?;
        writer.write(&batch).map_err(failed)?;
    }
    Ok(Bytes::from(writer.into_inner().map_err(failed)?))
}

fn open_writer() -> parquet::errors::Result<ArrowWriter<Vec<u8>>> {
    let properties = WriterProperties::builder()
        .set_created_by(concat!("duckpipe version ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        // Positions never repeat; the path always does.
        .set_column_dictionary_enabled("pos".into(), false)
        .build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    ArrowWriter::try_new_with_options(Vec::new(), schema(), options)
}

fn schema() -> SchemaRef {
    let field = |name, data_type, id: i32, nullable| {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())]);
        Field::new(name, data_type, nullable).with_metadata(metadata)
    };
    Arc::new(Schema::new(vec![
        field("file_path", DataType::Utf8, FILE_PATH_ID, false),
        field("pos", DataType::Int64, POSITION_ID, false),
        field(SNAPSHOT_COLUMN, DataType::Int64, SNAPSHOT_ID, true),
    ]))
}

/// Reads a delete file, ours or DuckLake's own, without keeping it: ascending positions, each with the snapshot that deleted the
/// row where the file says so.
pub async fn visit_delete_file(store: &Store, path: &str, mut each: impl FnMut(u64, Option<i64>) + Send) -> Result<()> {
    let url = store.url(path);
    let failed = |cause| StorageError::Parquet { url: url.clone(), cause };
    let bytes = store.get(path).await?;
    let mut reader =
        ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|builder| builder.build()).map_err(failed)?;
    let mut last = None;
    loop {
        let (next, rest) = blocking(move || Ok((reader.next(), reader))).await?;
        reader = rest;
        let Some(batch) = next else { return Ok(()) };
        let batch = batch.map_err(|error| failed(error.into()))?;
        let column = |name| batch.column_by_name(name).and_then(|array| array.as_primitive_opt::<Int64Type>());
        let positions =
            column("pos").ok_or_else(|| StorageError::invalid(&url, "a delete file without a column pos"))?;
        let snapshots = column(SNAPSHOT_COLUMN);
        for row in 0..batch.num_rows() {
            let position = u64::try_from(positions.value(row))
                .map_err(|_| StorageError::invalid(&url, "a delete file with a negative position"))?;
            if last.is_some_and(|last| last >= position) {
                return Err(StorageError::invalid(&url, "a delete file whose positions do not ascend"));
            }
            last = Some(position);
            each(position, snapshots.filter(|array| array.is_valid(row)).map(|array| array.value(row)));
        }
    }
}
