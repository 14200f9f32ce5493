//! Keys with more than one live row.
//!
//! DataFusion sorts the keys of all files, in a bounded memory pool and on disk beyond it: equal ones are neighbours then. A key is one
//! binary value in arrow's row form, so every type of key goes the same way and equals itself by its bits.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion_common::DataFusionError;
use datafusion_execution::{SendableRecordBatchStream, TaskContext};
use datafusion_physical_plan::stream::RecordBatchReceiverStream;
use datafusion_physical_plan::streaming::PartitionStream;
use duckpipe_storage::Store;
use futures::TryStreamExt;
use tokio::sync::mpsc;

use super::details::shown;
use super::finding::{Finding, FindingKind};
use super::lake_rows::{self, FileAt, RowSink};
use super::progress::ValidateProgress;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::plan::{Room, rows_of};

/// Keys that are named.
const NAMED: usize = 20;
/// Keys of a batch.
pub(super) const BATCH_ROWS: usize = 4096;
/// Inputs that are read and sorted side by side.
const PARTITIONS: usize = 2;

/// A table's key columns as its files have them.
#[derive(Clone, Debug)]
pub(super) struct KeySchema {
    /// With field ids.
    pub(super) schema: SchemaRef,
}

/// Finds keys that more than one row shows at the snapshot. Files that can't be read are passed over: they are findings elsewhere.
pub(super) async fn duplicates(
    store: &Store,
    files: &[FileAt],
    key: &KeySchema,
    (table, snapshot): (&str, i64),
    room: &Room,
    progress: &Arc<ValidateProgress>,
) -> Result<Vec<Finding>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let schema = output_schema();
    let partitions = (0..PARTITIONS).map(|part| {
        Arc::new(Keys {
            schema: Arc::clone(&schema),
            store: store.clone(),
            files: files.iter().skip(part).step_by(PARTITIONS).cloned().collect(),
            key: key.clone(),
            snapshot,
            progress: Arc::clone(progress),
        }) as Arc<dyn PartitionStream>
    });
    let failed = |error| sort_error(error, table);
    let mut sorted = rows_of(partitions.collect(), &schema, &[0, 1], room).map_err(failed)?;
    let mut run = Run::default();
    let mut findings = Vec::new();
    while let Some(batch) = sorted.try_next().await.map_err(failed)? {
        let keys = batch.column(0).as_binary::<i32>();
        let at = batch.column(1).as_primitive::<Int64Type>();
        for (row, file) in at.values().iter().enumerate() {
            if run.rows > 0 && run.key == keys.value(row) {
                run.rows += 1;
                run.last_file = *file;
                continue;
            }
            findings.extend(run.finding(files, key, table)?);
            if findings.len() == NAMED {
                return Ok(findings);
            }
            run.begin(keys.value(row), *file);
        }
    }
    findings.extend(run.finding(files, key, table)?);
    Ok(findings)
}

fn sort_error(error: DataFusionError, table: &str) -> Error {
    Error::new(ErrorKind::Transient, format!("{table}: the keys can't be sorted"))
        .caused_by(error)
        .remedy("make room for its temporary files: TMPDIR, else /var/tmp")
}

/// Neighbours with one key.
#[derive(Default)]
struct Run {
    key: Vec<u8>,
    rows: u64,
    first_file: i64,
    last_file: i64,
}

impl Run {
    fn begin(&mut self, key: &[u8], file: i64) {
        self.key.clear();
        self.key.extend_from_slice(key);
        (self.rows, self.first_file, self.last_file) = (1, file, file);
    }

    /// What there is to say, if they are several.
    fn finding(&self, files: &[FileAt], key: &KeySchema, table: &str) -> Result<Option<Finding>> {
        if self.rows < 2 {
            return Ok(None);
        }
        let path = |id: i64| {
            files.iter().find(|at| at.file.data_file_id == id).map_or_else(|| "?".to_owned(), |at| at.file.path.clone())
        };
        let (first, last) = (path(self.first_file), path(self.last_file));
        let places = if first == last { "in one file".to_owned() } else { format!("the first in {first}") };
        let detail = format!("{} live rows have this key, {places}", self.rows);
        let text = key_text(&self.key, &key.schema)?;
        Ok(Some(Finding::new(FindingKind::DuplicateKey, table, detail).key(text).file(last)))
    }
}

/// A key in row form as `name=value, …`.
fn key_text(key: &[u8], schema: &SchemaRef) -> Result<String> {
    let converter = converter(schema)?;
    let columns: Vec<ArrayRef> = converter
        .convert_rows(&converter.from_binary(BinaryArray::from_vec(vec![key])))
        .because(ErrorKind::Internal, || "a key can't be read back".into())?;
    let parts = schema.fields().iter().zip(&columns);
    let parts = parts.map(|(field, values)| Ok(format!("{}={}", field.name(), shown(values, 0)?)));
    Ok(parts.collect::<Result<Vec<_>>>()?.join(", "))
}

fn converter(key: &SchemaRef) -> Result<RowConverter> {
    let fields = key.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    RowConverter::new(fields).because(ErrorKind::Internal, || "keys of these types have no row form".into())
}

fn output_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("key", DataType::Binary, false), Field::new("file", DataType::Int64, false)]))
}

/// The keys of some files.
struct Keys {
    schema: SchemaRef,
    store: Store,
    files: Vec<FileAt>,
    key: KeySchema,
    snapshot: i64,
    progress: Arc<ValidateProgress>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the keys of {} files", self.files.len())
    }
}

impl PartitionStream for Keys {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStream::builder(Arc::clone(&self.schema), 2);
        let (output, schema, key) = (builder.tx(), Arc::clone(&self.schema), self.key.clone());
        let (store, files, snapshot) = (self.store.clone(), self.files.clone(), self.snapshot);
        let progress = Arc::clone(&self.progress);
        builder.spawn(async move {
            for at in files {
                let converter = converter(&key.schema).map_err(external)?;
                let mut sink = KeySink {
                    converter,
                    schema: Arc::clone(&schema),
                    file: at.file.data_file_id,
                    output: output.clone(),
                };
                let read = lake_rows::read_file(&store, &at, Arc::clone(&key.schema), snapshot, &mut sink).await;
                if output.is_closed() {
                    // Enough was found.
                    return Ok(());
                }
                if let Err(blamed) = read
                    && !lake_rows::is_at_fault(&store, &blamed).await
                {
                    return Err(external(blamed.error));
                }
                // A broken file has a finding of its own.
                progress.add(1);
            }
            Ok(())
        });
        builder.build()
    }
}

fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

struct KeySink {
    converter: RowConverter,
    schema: SchemaRef,
    file: i64,
    output: mpsc::Sender<Result<RecordBatch, DataFusionError>>,
}

impl RowSink for KeySink {
    fn add(&mut self, batch: &RecordBatch, _: Option<&str>) -> Result<()> {
        let broken = || "keys can't be put into row form".to_string();
        let rows = self.converter.convert_columns(batch.columns()).because(ErrorKind::Internal, broken)?;
        let keys = rows.try_into_binary().because(ErrorKind::Internal, broken)?;
        let files = Int64Array::from_value(self.file, batch.num_rows());
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::new(keys), Arc::new(files)])
            .because(ErrorKind::Internal, broken)?;
        // The sort takes what it can hold; meanwhile this thread waits.
        let sent = tokio::task::block_in_place(|| self.output.blocking_send(Ok(batch)));
        sent.map_err(|_| Error::new(ErrorKind::Transient, "the sorting of the keys ended"))
    }
}
