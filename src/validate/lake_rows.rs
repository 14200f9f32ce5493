//! The rows that a table of the lake shows at a snapshot, read from its files.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use duckpipe_storage::{DataFileReader, Rows, Store, read_delete_file};
use futures::TryStreamExt;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use tokio::task::JoinSet;

use super::finding::{Finding, FindingKind};
use super::is_broken_file;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::{Registered, RegisteredDelete, RegisteredFile, SNAPSHOT_ID};

/// A data file as a snapshot shows it.
#[derive(Clone, Debug)]
pub(super) struct FileAt {
    pub(super) file: RegisteredFile,
    /// The delete file; there is at most one in a lake that is well.
    pub(super) delete: Option<RegisteredDelete>,
}

/// The files of a table at a snapshot, and what is wrong with them in the catalog already.
pub(super) fn files_at(
    registered: &Registered,
    table_id: i64,
    table: &str,
    snapshot: i64,
) -> (Vec<FileAt>, Vec<Finding>) {
    let mut findings = Vec::new();
    let mut deletes: HashMap<i64, Vec<&RegisteredDelete>> = HashMap::new();
    for delete in registered.deletes.iter().filter(|d| d.table_id == table_id && d.lives_at(snapshot)) {
        deletes.entry(delete.data_file_id).or_default().push(delete);
    }
    let mut files = Vec::new();
    for file in registered.files.iter().filter(|f| f.table_id == table_id && f.lives_at(snapshot)) {
        let of_file = deletes.remove(&file.data_file_id).unwrap_or_default();
        if of_file.len() > 1 {
            let detail = format!("{} live delete files: rows are shown more than once", of_file.len());
            findings.push(Finding::new(FindingKind::DeleteFiles, table, detail).file(&file.path));
        }
        files.push(FileAt { file: file.clone(), delete: of_file.last().map(|delete| (*delete).clone()) });
    }
    if let Some(place) = registered.inlined.get(&table_id) {
        let detail = format!("somebody else keeps changes of the table in the catalog's {place}");
        findings.push(Finding::new(FindingKind::Inlined, table, detail));
    }
    (files, findings)
}

/// Takes batches of rows, in any order.
pub(super) trait RowSink: Send + 'static {
    /// `file` is where the rows come from in the lake.
    fn add(&mut self, batch: &RecordBatch, file: Option<&str>) -> Result<()>;
}

/// What all of a table's files gave.
pub(super) struct Scanned<S> {
    /// What the rows were put into.
    pub(super) sinks: Vec<S>,
    /// The files that can't be read; none of their rows counts for sure.
    pub(super) broken: Vec<Finding>,
}

/// Reads the rows that `files` show at the snapshot, some files at once, each into a sink of its own.
pub(super) async fn scan<S: RowSink>(
    store: &Store,
    files: &[FileAt],
    schema: &SchemaRef,
    (table, snapshot): (&str, i64),
    make: impl Fn() -> S,
) -> Result<Scanned<S>> {
    let mut waiting = files.iter();
    let mut sinks: Vec<S> = (0..store.reads_at_once()).map(|_| make()).collect();
    let mut all = Scanned { sinks: Vec::new(), broken: Vec::new() };
    let mut running: JoinSet<(S, Result<(), Blamed>)> = JoinSet::new();
    let mut paths: HashMap<tokio::task::Id, String> = HashMap::new();
    loop {
        while let Some(mut sink) = sinks.pop() {
            let Some(file) = waiting.next() else {
                all.sinks.push(sink);
                break;
            };
            let (store, schema, file) = (store.clone(), Arc::clone(schema), file.clone());
            let path = file.file.path.clone();
            let task = running.spawn(async move {
                let read = read_file(&store, &file, schema, snapshot, &mut sink).await;
                (sink, read)
            });
            paths.insert(task.id(), path);
        }
        match running.join_next_with_id().await {
            None => break,
            Some(Ok((_, (sink, Ok(()))))) => sinks.push(sink),
            Some(Ok((_, (sink, Err(blamed))))) => {
                sinks.push(sink);
                if !is_at_fault(store, &blamed).await {
                    return Err(blamed.error);
                }
                all.broken.push(unreadable(table, &blamed.path, &blamed.error));
            }
            // Bytes that are wrong in a way that the Parquet library does not expect.
            Some(Err(died)) if died.is_panic() => {
                sinks.push(make());
                let path = paths.get(&died.id()).cloned().unwrap_or_default();
                let detail = "reading it made the Parquet library fail";
                all.broken.push(Finding::new(FindingKind::FileUnreadable, table, detail).file(path));
            }
            Some(Err(died)) => {
                return Err(died).because(ErrorKind::Internal, || "reading a data file did not end".into());
            }
        }
    }
    all.sinks.append(&mut sinks);
    Ok(all)
}

/// An error, and the file that it came from.
pub(super) struct Blamed {
    pub(super) path: String,
    pub(super) error: Error,
}

/// Whether it is the file that is broken, and not the way to it. A file whose own words lead a reader past its end looks like a
/// store that fails; but then the store answers for the file, and its bytes can be had.
pub(super) async fn is_at_fault(store: &Store, blamed: &Blamed) -> bool {
    is_broken_file(&blamed.error)
        || blamed.error.kind() == ErrorKind::Transient && store.get(&blamed.path).await.is_ok()
}

/// A file that is missing or broken.
pub(super) fn unreadable(table: &str, path: &str, error: &Error) -> Finding {
    let kind = match error.kind() {
        ErrorKind::Table => FindingKind::FileMissing,
        _ => FindingKind::FileUnreadable,
    };
    Finding::new(kind, table, error.to_string()).file(path)
}

/// In the metadata of a schema: a row of its last column, which no sink sees, is NULL where the row is none that was deleted.
const KEEPS_DELETED: &str = "keeps deleted rows";

/// The schema of a table that keeps deleted rows, of which only the others are read.
pub(super) fn without_deleted(schema: &SchemaRef) -> SchemaRef {
    let metadata = HashMap::from([(KEEPS_DELETED.to_owned(), String::new())]);
    Arc::new(schema.as_ref().clone().with_metadata(metadata))
}

/// Puts the rows that a file shows at the snapshot into `sink`.
pub(super) async fn read_file<S: RowSink>(
    store: &Store,
    at: &FileAt,
    schema: SchemaRef,
    snapshot: i64,
    sink: &mut S,
) -> Result<(), Blamed> {
    let dead = match &at.delete {
        None => Vec::new(),
        Some(delete) => dead_positions(store, delete, snapshot)
            .await
            .map_err(|error| Blamed { path: delete.path.clone(), error })?,
    };
    let read = read_data(store, &at.file, &dead, (schema, snapshot), sink).await;
    read.map_err(|error| Blamed { path: at.file.path.clone(), error })
}

async fn read_data<S: RowSink>(
    store: &Store,
    registered: &RegisteredFile,
    dead: &[u64],
    (schema, snapshot): (SchemaRef, i64),
    sink: &mut S,
) -> Result<()> {
    let file = DataFileReader::open(store, &registered.path).await?;
    // A file of several snapshots' rows may hold some that are younger than the snapshot.
    let by_snapshot = registered.partial_max.is_some_and(|last| last > snapshot) && file.has_column(SNAPSHOT_ID);
    let wanted = if by_snapshot { with_snapshot_id(&schema) } else { Arc::clone(&schema) };
    let columns: Vec<usize> = (0..schema.fields().len()).collect();
    let deleted = schema.metadata().contains_key(KEEPS_DELETED).then(|| schema.fields().len() - 1);
    let mut input = file.read(wanted, Rows::All)?;
    while let Some(rows) = input.try_next().await? {
        let mut shown: Vec<bool> =
            rows.positions.iter().map(|position| dead.binary_search(position).is_err()).collect();
        let mut batch = rows.batch;
        if by_snapshot {
            let added = batch.column(columns.len()).as_primitive::<Int64Type>();
            for (row, shown) in shown.iter_mut().enumerate() {
                *shown &= added.is_null(row) || added.value(row) <= snapshot;
            }
            batch = batch.project(&columns).because(ErrorKind::Internal, || "columns can't be taken".into())?;
        }
        if let Some(deleted) = deleted {
            for (row, shown) in shown.iter_mut().enumerate() {
                *shown &= batch.column(deleted).is_null(row);
            }
            batch =
                batch.project(&columns[..deleted]).because(ErrorKind::Internal, || "columns can't be taken".into())?;
        }
        if shown.iter().any(|shown| !shown) {
            batch = filter_record_batch(&batch, &BooleanArray::from(shown))
                .because(ErrorKind::Internal, || "rows can't be filtered".into())?;
        }
        if batch.num_rows() > 0 {
            sink.add(&batch, Some(&registered.path))?;
        }
    }
    Ok(())
}

/// The positions of the rows that are deleted at the snapshot, ascending.
async fn dead_positions(store: &Store, delete: &RegisteredDelete, snapshot: i64) -> Result<Vec<u64>> {
    let deletes = read_delete_file(store, &delete.path).await?;
    let gone = |by: Option<i64>| by.unwrap_or(delete.begin_snapshot) <= snapshot;
    Ok(deletes.into_iter().filter(|(_, by)| gone(*by)).map(|(position, _)| position).collect())
}

fn with_snapshot_id(schema: &SchemaRef) -> SchemaRef {
    let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), SNAPSHOT_ID.to_string())]);
    let field = Field::new("_ducklake_internal_snapshot_id", DataType::Int64, true).with_metadata(id);
    let fields = schema.fields().iter().cloned().chain([Arc::new(field)]);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
