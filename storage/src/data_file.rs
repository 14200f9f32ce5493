//! A table's record batches to its data files.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::encoder::Encoder;
use crate::error::{BoxError, Result, StorageError};
use crate::stats::ColumnStats;
use crate::store::{Store, blocking};
use crate::upload::Upload;

/// Told of each new file before its first byte is sent, so that what a dead process left can be found and removed.
#[async_trait]
pub trait UploadLog: Send + Sync {
    /// Records that files of these paths, relative to the store, may come into being. An error keeps them from being begun.
    async fn starting(&self, paths: &[String]) -> Result<(), BoxError>;
}

/// How data files are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFileOptions {
    /// The size at which a file ends and the next begins, in bytes, kept to within a few thousand rows.
    pub target_bytes: u64,
    /// The most rows of a row group.
    pub row_group_rows: usize,
    /// The memory at which the open row group ends early, in bytes: the cap of what a writer holds.
    pub row_group_bytes: usize,
    /// zstd's level. 1 to 3 are the sensible ones while streaming.
    pub compression_level: i32,
    /// How many threads encode the columns of a batch.
    pub threads: usize,
}

impl Default for DataFileOptions {
    fn default() -> Self {
        DataFileOptions {
            target_bytes: 256 * 1024 * 1024,
            row_group_rows: 122_880,
            row_group_bytes: 32 * 1024 * 1024,
            compression_level: 1,
            threads: 1,
        }
    }
}

/// A data file that is whole and durable, as a catalog registers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// The path relative to the store: `public/orders/<uuid>.parquet`.
    pub path: String,
    /// How many rows it holds.
    pub rows: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// The size of its Parquet footer in bytes.
    pub footer_bytes: u64,
    /// The statistics of its leaf columns, in order.
    pub columns: Vec<ColumnStats>,
}

/// A name for a new data file in a table's folder. Names sort by the time of their making and are never used twice.
pub fn new_file_path(folder: &str) -> String {
    format!("{}/{}.parquet", folder.trim_end_matches('/'), Uuid::now_v7())
}

/// Writes one table's rows to as many files as they need. Nothing is created before the first row.
///
/// Dropped before [`DataFileWriter::finish`], it gives up the open file; finished files stay, unregistered, known to the log.
pub struct DataFileWriter {
    store: Store,
    log: Arc<dyn UploadLog>,
    folder: String,
    schema: SchemaRef,
    options: DataFileOptions,
    open: Option<OpenFile>,
    finished: Vec<DataFile>,
    broken: bool,
}

struct OpenFile {
    path: String,
    encoder: Encoder,
    upload: Upload,
}

impl DataFileWriter {
    /// A writer of files in `folder` (like `public/orders`, relative to the store). Each field of `schema`, and each list's
    /// element, carries its column id: see [`with_field_ids`](crate::with_field_ids).
    pub fn new(
        store: Store,
        log: Arc<dyn UploadLog>,
        folder: &str,
        schema: SchemaRef,
        options: DataFileOptions,
    ) -> DataFileWriter {
        DataFileWriter {
            store,
            log,
            folder: folder.to_string(),
            schema,
            options,
            open: None,
            finished: Vec::new(),
            broken: false,
        }
    }

    /// Appends the batch's rows. Its columns are those of the schema, by position; its own names and metadata don't matter.
    /// After an error the writer can only be dropped.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if std::mem::replace(&mut self.broken, true) {
            return Err(StorageError::invalid(self.folder.as_str(), "the writer failed before"));
        }
        let batch = relabel(batch, &self.schema)?;
        let mut file = match self.open.take() {
            Some(file) => file,
            None => self.begin(&batch).await?,
        };
        let (encoder, bytes) = encode(file.encoder, batch).await.map_err(|error| at(&self.store, &file.path, error))?;
        file.encoder = encoder;
        if !bytes.is_empty() {
            file.upload.write(bytes).await?;
        }
        if file.encoder.size() >= self.options.target_bytes {
            self.end(file).await?;
        } else {
            self.open = Some(file);
        }
        self.broken = false;
        Ok(())
    }

    /// Ends the last file and returns all of them, in the order of their rows.
    pub async fn finish(mut self) -> Result<Vec<DataFile>> {
        if self.broken {
            return Err(StorageError::invalid(self.folder.as_str(), "the writer failed before"));
        }
        if let Some(file) = self.open.take() {
            self.end(file).await?;
        }
        Ok(std::mem::take(&mut self.finished))
    }

    /// Gives the open file up, as dropping the writer does, but waits until the store has removed what was sent of it.
    pub async fn abort(mut self) {
        if let Some(file) = self.open.take() {
            file.upload.abort().await;
        }
    }

    /// The memory in use, in bytes.
    pub fn memory(&self) -> usize {
        self.open.as_ref().map_or(0, |file| file.encoder.memory() + file.upload.memory())
    }

    /// The files that are whole already.
    pub fn finished(&self) -> &[DataFile] {
        &self.finished
    }

    async fn begin(&mut self, first: &RecordBatch) -> Result<OpenFile> {
        let path = new_file_path(&self.folder);
        let encoder = Encoder::new(&self.schema, &self.options, first).map_err(|e| at(&self.store, &path, e))?;
        announce(&*self.log, std::slice::from_ref(&path)).await?;
        let upload = Upload::begin(&self.store, &path).await?;
        Ok(OpenFile { path, encoder, upload })
    }

    async fn end(&mut self, file: OpenFile) -> Result<()> {
        let OpenFile { path, encoder, mut upload } = file;
        let encoded = blocking(move || encoder.finish()).await.map_err(|error| at(&self.store, &path, error))?;
        upload.write(encoded.last).await?;
        upload.finish().await?;
        self.finished.push(DataFile {
            path,
            rows: encoded.rows,
            bytes: encoded.bytes,
            footer_bytes: encoded.footer_bytes,
            columns: encoded.columns,
        });
        Ok(())
    }
}

/// Encoding is computation for tens of milliseconds: on a thread that may be kept, so that no timer or socket waits for it.
async fn encode(mut encoder: Encoder, batch: RecordBatch) -> Result<(Encoder, Bytes)> {
    blocking(move || {
        let bytes = encoder.write(&batch)?;
        Ok((encoder, bytes))
    })
    .await
}

/// The batch under the schema with the column ids, after a check that it is one of its kind.
fn relabel(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(array, field)| match array.data_type() == field.data_type() {
            true => Ok(Arc::clone(array)),
            // A list's type includes its element's metadata: the same values under another label.
            false => arrow::compute::cast(array, field.data_type()).and_then(|cast| {
                match cast.data_type().equals_datatype(array.data_type()) {
                    true => Ok(cast),
                    false => Err(arrow::error::ArrowError::SchemaError(format!(
                        "column {} is {}, not {}",
                        field.name(),
                        array.data_type(),
                        field.data_type()
                    ))),
                }
            }),
        })
        .collect::<Result<Vec<_>, _>>()
        .and_then(|columns| RecordBatch::try_new(Arc::clone(schema), columns));
    match batch.num_columns() == schema.fields().len() {
        true => columns.map_err(|error| StorageError::invalid("batch", error.to_string())),
        false => Err(StorageError::invalid(
            "batch",
            format!("{} columns, but the table has {}", batch.num_columns(), schema.fields().len()),
        )),
    }
}

pub(crate) async fn announce(log: &dyn UploadLog, paths: &[String]) -> Result<()> {
    log.starting(paths)
        .await
        .map_err(|cause| StorageError::UploadLog { path: paths.first().cloned().unwrap_or_default(), cause })
}

/// Names the file in an error of the encoder, which does not know it.
pub(crate) fn at(store: &Store, path: &str, error: StorageError) -> StorageError {
    match error {
        StorageError::Parquet { cause, .. } => StorageError::Parquet { url: store.url(path), cause },
        other => other,
    }
}
