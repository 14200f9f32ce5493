//! Keys with more than one live row.
//!
//! DataFusion groups the keys of all files, in a bounded memory pool and on disk beyond it. A key is one binary value in arrow's row
//! form, so every type of key goes the same way and equals itself by its bits.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext, col, lit};
use duckpipe_storage::Store;
use tokio::sync::mpsc;

use super::details::shown;
use super::finding::{Finding, FindingKind};
use super::lake_rows::{self, FileAt, RowSink};
use super::progress::ValidateProgress;
use crate::error::{Because, Error, ErrorKind, Result};

/// Keys that are named.
const NAMED: usize = 20;
/// Files that one partition reads, so that a broken one costs no other its place.
const PARTITIONS: usize = 2;

/// A table's key columns as its files have them.
#[derive(Clone, Debug)]
pub(super) struct KeySchema {
    /// With field ids.
    pub(super) schema: SchemaRef,
}

/// What the grouping may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    pub(super) memory: usize,
    pub(super) spill: &'a Path,
}

/// Finds keys that more than one row shows at the snapshot. Files that can't be read are passed over: they are findings elsewhere.
pub(super) async fn duplicates(
    store: &Store,
    files: &[FileAt],
    key: &KeySchema,
    (table, snapshot): (&str, i64),
    room: Room<'_>,
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
    let groups = async {
        let source = StreamingTable::try_new(Arc::clone(&schema), partitions.collect())?;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(room.memory)))
            .with_temp_file_path(room.spill)
            .build_arc()?;
        let config = SessionConfig::new().with_target_partitions(PARTITIONS);
        let context = SessionContext::new_with_config_rt(config, runtime);
        context
            .read_table(Arc::new(source))?
            .aggregate(
                vec![col("key")],
                vec![
                    count(lit(1i64)).alias("rows"),
                    min(col("file")).alias("first_file"),
                    max(col("file")).alias("last_file"),
                ],
            )?
            .filter(col("rows").gt(lit(1i64)))?
            .limit(0, Some(NAMED))?
            .collect()
            .await
    };
    let groups = groups.await.map_err(|error| group_error(error, table))?;
    let mut findings = Vec::new();
    for batch in &groups {
        findings.extend(named(batch, files, key, table)?);
    }
    Ok(findings)
}

fn group_error(error: DataFusionError, table: &str) -> Error {
    Error::new(ErrorKind::Transient, format!("{table}: the keys can't be grouped"))
        .caused_by(error)
        .remedy("make room for its temporary files: TMPDIR, else /var/tmp")
}

fn named(batch: &RecordBatch, files: &[FileAt], key: &KeySchema, table: &str) -> Result<Vec<Finding>> {
    let column = |name: &str| {
        let found = batch.column_by_name(name).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::Internal, format!("the groups have no column {name}")))
    };
    let number = |array: ArrayRef| -> Result<Int64Array> {
        let cast = arrow::compute::cast(&array, &DataType::Int64);
        Ok(cast.because(ErrorKind::Internal, || "a group's numbers".into())?.as_primitive::<Int64Type>().clone())
    };
    let (rows, first, last) = (number(column("rows")?)?, number(column("first_file")?)?, number(column("last_file")?)?);
    let keys = arrow::compute::cast(&column("key")?, &DataType::Binary)
        .because(ErrorKind::Internal, || "a group's key".into())?;
    let converter = converter(&key.schema)?;
    let columns = converter
        .convert_rows(&converter.from_binary(keys.as_binary::<i32>().clone()))
        .because(ErrorKind::Internal, || "a key can't be read back".into())?;
    let path = |id: i64| {
        files.iter().find(|at| at.file.data_file_id == id).map_or_else(|| "?".to_owned(), |at| at.file.path.clone())
    };
    (0..batch.num_rows())
        .map(|row| {
            let parts = key
                .schema
                .fields()
                .iter()
                .zip(&columns)
                .map(|(field, values)| Ok(format!("{}={}", field.name(), shown(values, row)?)));
            let text = parts.collect::<Result<Vec<_>>>()?.join(", ");
            let (first, last) = (path(first.value(row)), path(last.value(row)));
            let places = if first == last { "in one file".to_owned() } else { format!("the first in {first}") };
            let detail = format!("{} live rows have this key, {places}", rows.value(row));
            Ok(Finding::new(FindingKind::DuplicateKey, table, detail).key(text).file(last))
        })
        .collect()
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
    output: mpsc::Sender<datafusion::error::Result<RecordBatch>>,
}

impl RowSink for KeySink {
    fn add(&mut self, batch: &RecordBatch, _: Option<&str>) -> Result<()> {
        let broken = || "keys can't be put into row form".to_string();
        let rows = self.converter.convert_columns(batch.columns()).because(ErrorKind::Internal, broken)?;
        let keys = rows.try_into_binary().because(ErrorKind::Internal, broken)?;
        let files = Int64Array::from_value(self.file, batch.num_rows());
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::new(keys), Arc::new(files)])
            .because(ErrorKind::Internal, broken)?;
        // The grouping takes what it can hold; meanwhile this thread waits.
        let sent = tokio::task::block_in_place(|| self.output.blocking_send(Ok(batch)));
        sent.map_err(|_| Error::new(ErrorKind::Transient, "the grouping of the keys ended"))
    }
}
