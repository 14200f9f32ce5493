//! The rewrite of one group of files: a DataFusion plan over the lake's own reader, into the lake's own writer.
//!
//! ```text
//! source files ──► rows + id + snapshot + origin + death ──► sort by key ──► new file(s)
//!                                                                       ╰──► where each row went, which rows are dead
//! ```
//!
//! Rows that are dead, but that a readable version shows, come along. Memory: DataFusion's pool for the sort, which spills to
//! disk; one row group of the writer; 4 bytes for each row that stays, some 32 for each dead one of them, and a bit or two for each
//! one that goes.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt32Type};
use datafusion_common::DataFusionError;
use datafusion_execution::{SendableRecordBatchStream, TaskContext};
use datafusion_physical_plan::stream::RecordBatchStreamAdapter;
use datafusion_physical_plan::streaming::PartitionStream;
use duckpipe_storage::{
    DataFile, DataFileOptions, DataFileReader, DataFileWriter, PositionedBatch, Rows, Store, UploadLog, batch_bytes,
    field_id, visit_delete_file,
};
use futures::{Stream, StreamExt, TryFutureExt, TryStreamExt, stream};
use roaring::RoaringTreemap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::lake::store::{of_its_table, store_error};
use crate::lake::{CompactionSchema, LiveDelete, ROW_ID, SNAPSHOT_ID, SourceFile};
use crate::plan::{Room, rows_of};

/// Rows of a row group, as DuckDB writes them.
const ROW_GROUP_ROWS: usize = 122_880;
/// The most rows of a batch; of wide rows a batch holds fewer.
const BATCH_ROWS: usize = 8192;
/// Dead rows with the snapshots that deleted them.
type Deaths = Vec<(u64, i64)>;

/// The dead rows of a source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dead {
    /// Those that a readable snapshot shows, ascending.
    shown: Deaths,
    /// Those that none shows: they go. There can be any number of them.
    gone: RoaringTreemap,
}

/// What a rewrite may use.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: u64,
    /// Plans' partitions.
    pub threads: usize,
    /// Where sorts go that exceed the memory.
    pub spill_directory: PathBuf,
}

impl Resources {
    /// How many rows one rewrite may remember: a fifth of the memory, 4 bytes each.
    pub fn max_weight(&self) -> u64 {
        (self.memory / 5 / 4).min(u64::from(u32::MAX) - 1)
    }

    fn sort_pool(&self) -> usize {
        // What a merge reserves has a least size: of little memory it needs more.
        let share = (self.memory / 4).max((self.memory / 5 * 2).min(4 << 20));
        usize::try_from(share).unwrap_or(usize::MAX)
    }

    /// Bytes that are read ahead of the writing: as many as it encodes at once.
    fn ahead(&self) -> usize {
        usize::try_from(self.memory / 64).unwrap_or(usize::MAX).min(8 << 20)
    }

    fn row_group(&self) -> usize {
        usize::try_from(self.memory / 5).unwrap_or(usize::MAX).min(64 << 20)
    }
}

/// One rewrite.
pub struct Job {
    /// The store.
    pub store: Store,
    /// Told of each new file.
    pub log: Arc<dyn UploadLog>,
    /// The table's folder.
    pub folder: String,
    /// The columns of the new files.
    pub columns: CompactionSchema,
    /// Ids of the columns to sort by; none: the rows stay in the order of the files.
    pub sort: Vec<i64>,
    /// The files.
    pub sources: Vec<SourceFile>,
    /// Rows that were deleted before this snapshot are dropped.
    pub oldest: i64,
    /// The size at which a file ends.
    pub target_bytes: u64,
}

/// What a rewrite wrote.
pub struct Rewritten {
    /// The new files, in the order of their rows.
    pub files: Vec<DataFile>,
    /// For each of them, its dead rows with the snapshots that deleted them.
    pub dead: Vec<Deaths>,
    /// What is known of each source.
    pub sources: Vec<Source>,
    /// Where each row went: the sources' rows that stay one after the other, to a row of the new files one after the other.
    places: Vec<u32>,
    /// The number of the first row of each new file.
    starts: Vec<u64>,
    /// Rows that were deleted before this snapshot went.
    oldest: i64,
}

/// A row that is in no new file.
const DROPPED: u32 = u32::MAX;

/// A source and the deletes that were carried over from it.
#[derive(Clone)]
pub struct Source {
    /// The file, with the delete file that was last read.
    pub file: SourceFile,
    /// Its dead rows.
    pub dead: Arc<Dead>,
    /// The number of its first row among those of all sources that stay.
    first: u32,
}

impl Source {
    /// Its rows that a readable snapshot shows.
    fn kept(&self) -> u64 {
        self.file.rows.saturating_sub(self.dead.gone())
    }
}

impl Rewritten {
    /// Carries deletes over that landed on a source since it was read.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] where a row is deleted that never was there.
    pub fn rebase(&mut self, source: usize, delete: LiveDelete, now: Dead) -> Result<usize> {
        let Source { file, dead, first } = &mut self.sources[source];
        let not_there = |position: u64| {
            let what = format!("{} deletes row {position} of {}, which is not there", delete.path, file.path);
            Error::new(ErrorKind::Table, what)
        };
        // What no snapshot shows was deleted before the rewrite began.
        if let Some(position) = (&now.gone - &dead.gone).min() {
            return Err(not_there(position));
        }
        let mut late = 0;
        for (position, snapshot) in &now.shown {
            if dead.shown.binary_search_by_key(position, |(position, _)| *position).is_ok() {
                continue;
            }
            if *position >= file.rows || dead.gone.contains(*position) {
                return Err(not_there(*position));
            }
            let kept = usize::try_from(*position - dead.gone.rank(*position)).ok();
            let place = kept.and_then(|kept| self.places.get(*first as usize + kept));
            let place = place.filter(|place| **place != DROPPED).ok_or_else(|| not_there(*position))?;
            let place = u64::from(*place);
            let output = self.starts.partition_point(|start| *start <= place) - 1;
            self.dead[output].push((place - self.starts[output], *snapshot));
            late += 1;
        }
        *dead = Arc::new(now);
        file.delete = Some(delete);
        Ok(late)
    }

    /// Reads the deletes of a source as they are now.
    ///
    /// # Errors
    /// As [`read_dead`].
    pub async fn read_dead(&self, store: &Store, delete: &LiveDelete) -> Result<Dead> {
        read_dead(store, delete, self.oldest).await
    }

    /// Rows of the new files.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }
}

/// Reads a delete file; what was deleted before `oldest` is gone.
///
/// # Errors
/// [`ErrorKind::Table`] where there is no such file, or none of deletes; [`ErrorKind::Transient`] where the store fails.
pub async fn read_dead(store: &Store, delete: &LiveDelete, oldest: i64) -> Result<Dead> {
    let mut dead = Dead::default();
    let read =
        visit_delete_file(store, &delete.path, |position, snapshot| match snapshot.unwrap_or(delete.begin_snapshot) {
            snapshot if snapshot >= oldest => dead.shown.push((position, snapshot)),
            _ => {
                dead.gone.insert(position);
            }
        });
    read.await.map_err(store_error(&format!("{} can't be read", delete.path))).map_err(of_its_table)?;
    Ok(dead)
}

impl Dead {
    /// How many rows go.
    pub fn gone(&self) -> u64 {
        self.gone.len()
    }
}

/// Runs a rewrite.
///
/// # Errors
/// [`ErrorKind::Table`] where a source is not what the catalog says, [`ErrorKind::Transient`] where the store fails.
pub async fn rewrite(job: Job, resources: &Resources) -> Result<Rewritten> {
    let sources = open(&job).await?;
    let rows: u64 = sources.iter().map(|(source, _)| source.kept()).sum();
    let row_bytes = sources.iter().map(|(_, reader)| reader.row_bytes()).max().unwrap_or_default();
    let row_bytes = usize::try_from(row_bytes).unwrap_or(usize::MAX).max(1);
    // A batch of each input of a merge must fit the pool.
    let batch_rows = (resources.sort_pool() / 64 / row_bytes).clamp(16, BATCH_ROWS);
    let known: Vec<Source> = sources.iter().map(|(source, _)| source.clone()).collect();
    let width = job.columns.schema.fields().len();
    let sort = sort_columns(&job)?;
    let schema = with_helpers(&job.columns.schema);
    let plan_room =
        Room { memory: resources.sort_pool(), batch_rows, spill_directory: resources.spill_directory.clone() };
    let parts = partitions(&job, sources, &schema, resources.threads, batch_rows);
    let mut input = rows_of(parts, &schema, &sort, &plan_room).map_err(unwrap)?;

    let total: u64 = known.iter().map(|source| source.file.bytes).sum();
    let options = DataFileOptions {
        // A little more than the target is one file, not one and a crumb.
        target_bytes: if total <= job.target_bytes / 2 * 3 { u64::MAX } else { job.target_bytes },
        row_group_rows: ROW_GROUP_ROWS,
        row_group_bytes: resources.row_group(),
        threads: resources.threads,
        ..DataFileOptions::default()
    };
    let schema = Arc::clone(&job.columns.schema);
    let mut writer = DataFileWriter::new(job.store.clone(), job.log, &job.folder, Arc::clone(&schema), options);
    let mut places = vec![DROPPED; usize::try_from(rows).because(ErrorKind::Internal, too_many)?];
    let mut dead: Deaths = Vec::new();
    let mut next = 0u32;
    // By the bytes that were read: what the footers tell of these is an estimate.
    let ahead = u32::try_from(resources.ahead()).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(ahead as usize));
    let (sender, mut receiver) = mpsc::unbounded_channel::<(RecordBatch, OwnedSemaphorePermit)>();
    let reading = async {
        // Dropped at the end, which ends the writing.
        let sender = sender;
        while let Some(batch) = input.next().await {
            let batch = batch.map_err(unwrap)?;
            let origins = batch.column(width).as_primitive::<UInt32Type>();
            let deaths = batch.column(width + 1).as_primitive::<Int64Type>();
            for (row, origin) in origins.values().iter().enumerate() {
                places[*origin as usize] = next + row as u32;
                if deaths.is_valid(row) {
                    dead.push((u64::from(next) + row as u64, deaths.value(row)));
                }
            }
            next += batch.num_rows() as u32;
            let own = batch.project(&(0..width).collect::<Vec<_>>()).because(ErrorKind::Internal, mismatch)?;
            let bytes = u32::try_from(batch_bytes(&own)).unwrap_or(u32::MAX).min(ahead);
            let taken = Arc::clone(&room).acquire_many_owned(bytes).await;
            let taken = taken.because(ErrorKind::Internal, || "the room for rows was closed".into())?;
            // Where nobody receives, the writing failed, and tells why.
            if sender.send((own, taken)).is_err() {
                break;
            }
        }
        Ok(())
    };
    let writing = async {
        while let Some((batch, taken)) = receiver.recv().await {
            writer.write(&batch).await?;
            drop(taken);
        }
        writer.finish().await
    };
    let writing = writing.map_err(store_error("the rewritten file can't be written"));
    let ((), files) = tokio::try_join!(reading, writing)?;
    let mut starts = Vec::with_capacity(files.len());
    let mut end = 0;
    let mut by_file = Vec::with_capacity(files.len());
    let mut rest = dead.as_slice();
    for file in &files {
        starts.push(end);
        let start = end;
        end += file.rows;
        let (own, later) = rest.split_at(rest.partition_point(|(place, _)| *place < end));
        by_file.push(own.iter().map(|(place, snapshot)| (place - start, *snapshot)).collect());
        rest = later;
    }
    if end != u64::from(next) {
        return Err(Error::new(ErrorKind::Internal, format!("{next} rows were read, but {end} were written")));
    }
    Ok(Rewritten { files, dead: by_file, sources: known, places, starts, oldest: job.oldest })
}

/// Opens the sources and reads their deletes.
async fn open(job: &Job) -> Result<Vec<(Source, Arc<DataFileReader>)>> {
    let opened = job.sources.iter().cloned().map(|file| async move {
        let dead = match &file.delete {
            Some(delete) => read_dead(&job.store, delete, job.oldest).await?,
            None => Dead::default(),
        };
        let reader = DataFileReader::open(&job.store, &file.path).await.map_err(of_its_table)?;
        if reader.rows() != file.rows || dead.gone.max().is_some_and(|last| last >= file.rows) {
            return Err(Error::new(
                ErrorKind::Table,
                format!("{} holds {} rows, but the catalog says {}", file.path, reader.rows(), file.rows),
            ));
        }
        Ok((Source { file, dead: Arc::new(dead), first: 0 }, Arc::new(reader)))
    });
    let opened = stream::iter(opened.collect::<Vec<_>>()).buffered(job.store.reads_at_once());
    let mut sources: Vec<(Source, Arc<DataFileReader>)> = opened.try_collect().await?;
    let mut next = 0u64;
    for (source, _) in &mut sources {
        source.first = u32::try_from(next).because(ErrorKind::Internal, too_many)?;
        next += source.kept();
    }
    u32::try_from(next).because(ErrorKind::Internal, too_many)?;
    Ok(sources)
}

/// The positions of the sort columns in the schema.
fn sort_columns(job: &Job) -> Result<Vec<usize>> {
    let fields = job.columns.schema.fields();
    let position = |id: &i64| fields.iter().position(|field| field_id(field).map(i64::from) == Some(*id));
    job.sort
        .iter()
        .map(|id| {
            position(id)
                .ok_or_else(|| Error::new(ErrorKind::Table, format!("the sort column {id} is not in the files")))
        })
        .collect()
}

/// The sources, dealt out to at most so many partitions.
fn partitions(
    job: &Job,
    sources: Vec<(Source, Arc<DataFileReader>)>,
    schema: &SchemaRef,
    threads: usize,
    batch_rows: usize,
) -> Vec<Arc<dyn PartitionStream>> {
    let count = threads.clamp(1, sources.len().max(1));
    let mut parts: Vec<Vec<(Source, Arc<DataFileReader>)>> = vec![Vec::new(); count];
    for (index, source) in sources.into_iter().enumerate() {
        parts[index % count].push(source);
    }
    let partition = |sources| {
        let read = Arc::clone(&job.columns.schema);
        let schema = Arc::clone(schema);
        Arc::new(Partition { sources, read, schema, batch_rows }) as Arc<dyn PartitionStream>
    };
    parts.into_iter().map(partition).collect()
}

/// The columns of the new files, then where a row comes from and when it was deleted.
fn with_helpers(schema: &SchemaRef) -> SchemaRef {
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("origin", DataType::UInt32, false)));
    fields.push(Arc::new(Field::new("deleted", DataType::Int64, true)));
    Arc::new(Schema::new(fields))
}

/// Some of the sources, one after the other.
struct Partition {
    sources: Vec<(Source, Arc<DataFileReader>)>,
    read: SchemaRef,
    schema: SchemaRef,
    batch_rows: usize,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} data files", self.sources.len())
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (read, schema) = (Arc::clone(&self.read), Arc::clone(&self.schema));
        let batch_rows = self.batch_rows;
        let rows = stream::iter(self.sources.clone())
            .map(move |(source, reader)| {
                read_source(source, &reader, &read, Arc::clone(&schema), batch_rows).map_err(wrap)
            })
            .try_flatten();
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows))
    }
}

/// The rows of one source under the plan's schema.
fn read_source(
    source: Source,
    reader: &DataFileReader,
    read: &SchemaRef,
    schema: SchemaRef,
    batch_rows: usize,
) -> Result<impl Stream<Item = Result<RecordBatch, DataFusionError>> + use<>> {
    let rows = reader.clone().with_batch_rows(batch_rows).read(Arc::clone(read), Rows::All).map_err(of_its_table)?;
    let carried = (reader.has_column(ROW_ID), reader.has_column(SNAPSHOT_ID));
    let mut walk = Walk::default();
    Ok(rows.map(move |batch| {
        let batch = batch.map_err(|error| wrap(of_its_table(error)))?;
        without(&source.dead.gone, batch)
            .and_then(|batch| complete(&source, &batch, carried, &schema, &mut walk))
            .context(|| source.file.path.clone())
            .map_err(wrap)
    }))
}

/// The rows but for those that go. A row that the oldest readable snapshot deleted is part of its changes: it stays.
fn without(gone: &RoaringTreemap, rows: PositionedBatch) -> Result<PositionedBatch> {
    let (Some(first), Some(last)) = (rows.positions.first(), rows.positions.last()) else { return Ok(rows) };
    let mut here = gone.iter();
    here.advance_to(*first);
    let mut stays = vec![true; rows.positions.len()];
    let mut all_stay = true;
    for position in here.take_while(|position| position <= last) {
        if let Ok(row) = rows.positions.binary_search(&position) {
            stays[row] = false;
            all_stay = false;
        }
    }
    if all_stay {
        return Ok(rows);
    }
    let positions = rows.positions.iter().zip(&stays).filter(|(_, stays)| **stays).map(|(position, _)| *position);
    let positions = positions.collect();
    let batch = filter_record_batch(&rows.batch, &BooleanArray::from(stays)).because(ErrorKind::Internal, mismatch)?;
    Ok(PositionedBatch { positions, batch })
}

/// How far the rows of a source that stay were walked: its deletes are walked along with them.
#[derive(Default)]
struct Walk {
    /// Dead rows that are shown.
    shown: usize,
    /// Rows that stay.
    kept: u32,
}

impl Walk {
    /// The next row's number, and the snapshot that deleted it.
    fn step(&mut self, dead: &Dead, position: u64) -> (u32, Option<i64>) {
        while dead.shown.get(self.shown).is_some_and(|(row, _)| *row < position) {
            self.shown += 1;
        }
        let death = dead.shown.get(self.shown).filter(|(row, _)| *row == position).map(|(_, snapshot)| *snapshot);
        self.kept += 1;
        (self.kept - 1, death)
    }
}

/// Gives each row its id, the snapshot that added it, its origin and the snapshot that deleted it.
fn complete(
    source: &Source,
    batch: &PositionedBatch,
    (row_ids, snapshots): (bool, bool),
    schema: &SchemaRef,
    walk: &mut Walk,
) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = batch.batch.columns().to_vec();
    let own = columns.len();
    if !row_ids {
        let first = source.file.row_id_start.ok_or_else(|| {
            Error::new(ErrorKind::Table, "neither the file nor the catalog tells the ids of its rows")
        })?;
        columns[own - 2] =
            Arc::new(batch.positions.iter().map(|position| first + *position as i64).collect::<Int64Array>());
    }
    if !snapshots {
        columns[own - 1] = Arc::new(Int64Array::from_value(source.file.begin_snapshot, batch.positions.len()));
    }
    if columns[own - 2].null_count() + columns[own - 1].null_count() > 0 {
        return Err(Error::new(ErrorKind::Table, "a row without its id or its snapshot"));
    }
    let steps = batch.positions.iter().map(|position| walk.step(&source.dead, *position));
    let (origins, deaths): (Vec<u32>, Vec<Option<i64>>) =
        steps.map(|(kept, death)| (source.first + kept, death)).unzip();
    columns.push(Arc::new(UInt32Array::from(origins)));
    columns.push(Arc::new(Int64Array::from(deaths)));
    RecordBatch::try_new(Arc::clone(schema), columns).because(ErrorKind::Internal, mismatch)
}

/// The least and the greatest snapshot that added a row of the file, which its statistics tell.
pub fn snapshots(file: &DataFile) -> Result<(i64, i64)> {
    let stats = file.columns.iter().find(|column| column.field_id == SNAPSHOT_ID);
    let bound = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
    stats
        .and_then(|stats| bound(stats.min.as_ref()).zip(bound(stats.max.as_ref())))
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{} does not tell its snapshots", file.path)))
}

/// The sources by their ids.
pub fn by_id(sources: &[Source]) -> HashMap<i64, usize> {
    sources.iter().enumerate().map(|(index, source)| (source.file.data_file_id, index)).collect()
}

fn wrap(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Our own error where it was one, on its way through a plan.
fn unwrap(error: DataFusionError) -> Error {
    match error {
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::new(ErrorKind::Internal, "the rewrite failed").caused_by(other),
        },
        DataFusionError::Context(_, inner) => unwrap(*inner),
        DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
            Ok(inner) => unwrap(inner),
            Err(inner) => Error::new(ErrorKind::Internal, "the rewrite failed").caused_by(inner),
        },
        DataFusionError::ResourcesExhausted(what) => {
            Error::new(ErrorKind::Table, format!("the rewrite does not fit its memory: {what}"))
                .remedy("raise compact.memory_limit")
        }
        other => Error::new(ErrorKind::Internal, "the rewrite failed").caused_by(other),
    }
}

fn too_many() -> String {
    "a group of more rows than one rewrite takes".into()
}

fn mismatch() -> String {
    "rows do not fit their table".into()
}
