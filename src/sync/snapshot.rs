//! The first copy: every table as of the slot's exported snapshot, shown in one lake snapshot.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use duckpipe_storage::{DataFile, DataFileWriter};
use hashbrown::HashMap;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::batch::copy::CopyDecoder;
use crate::batch::layout::{LayoutColumn, Mode, TableLayout};
use crate::batch::value_error::OnUnrepresentable;
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::lake::store::store_error;
use crate::lake::{Alteration, Commit, Part, PipelineState, TableCommit, TableState};
use crate::lsn::Lsn;
use crate::source::replication::Identity;
use crate::source::settings::SourceSettings;
use crate::source::snapshot::{CopyColumn, CopyStream, SnapshotHolder, SnapshotReader};
use crate::source::table::{Heap, SourceTable};

mod kept;

use super::appended;
use super::failpoint::failpoint;
use super::flush::SyncTable;
use super::pipeline::Pipeline;
use super::stream::explain;

/// A range of a table's heap for one worker.
struct Job {
    table: Arc<SyncTable>,
    heap: Arc<Heap>,
    pages: Option<Range<u32>>,
    /// What an earlier try has read of it.
    kept: Option<Arc<Part>>,
    /// The number of the next row of a table that keeps all changes; 0 is what its copy begins with.
    next_row: Arc<AtomicU64>,
    /// It is the table's first.
    begins: bool,
}

/// How the first copy is made.
pub struct CopyOptions<'a> {
    /// The source.
    pub settings: &'a SourceSettings,
    /// Connections that copy at the same time.
    pub workers: usize,
    /// What to do with a value that its lake type can't hold.
    pub on_unrepresentable: OnUnrepresentable,
    /// The source's cluster: what was read of another one is of no use.
    pub identity: &'a Identity,
    /// What an earlier try has read is not looked at.
    pub anew: bool,
    /// Heap pages (8 KiB) of a range: a large table keeps all workers busy to its end, and what was read is not read twice.
    pub range_pages: u32,
    /// The slot's consistent point: the position that the copy shows.
    pub lsn: Lsn,
    /// How the lake's columns of some tables change with their copies, by the tables' oids.
    pub alterations: HashMap<u32, Alteration>,
}

/// Copies all tables at the slot's snapshot, which `holder` keeps, and commits them. What an earlier try has read of large tables is
/// brought up to this snapshot, and what this one reads of them is kept in case that it fails.
///
/// Returns whether the copy was finished: not, where it was told to stop.
///
/// # Errors
/// Kind `Transient`, when the source or the store fails; nothing is visible then, and the next try goes on.
pub async fn copy_all(
    pipeline: &Arc<Pipeline>,
    options: &CopyOptions<'_>,
    holder: &SnapshotHolder,
    tables: &[(Arc<SyncTable>, SourceTable)],
    stop: &watch::Receiver<bool>,
) -> Result<bool> {
    let workers = options.workers.max(1);
    let xmin = holder.xmin().await?;
    let (kept, any) = kept::usable(pipeline, options, tables, xmin).await?;
    let mut jobs = VecDeque::new();
    let mut definitions = HashMap::new();
    for (table, source) in tables {
        let parts = kept.get(&table.oid).map_or(&[][..], Vec::as_slice);
        jobs.extend(jobs_of(table, source, parts, options.range_pages));
        if kept::may_keep(&table.layout) {
            definitions.insert(table.oid, kept::definition(options, table, source)?);
        }
    }
    let definitions = Arc::new(definitions);
    let jobs = Arc::new(Mutex::new(jobs));
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let worker = Worker {
            pipeline: Arc::clone(pipeline),
            settings: options.settings.clone(),
            snapshot: holder.snapshot().to_owned(),
            workers,
            on_unrepresentable: options.on_unrepresentable,
            lsn: options.lsn,
            xmin,
            definitions: Arc::clone(&definitions),
            stop: stop.clone(),
        };
        running.spawn(worker.work(Arc::clone(&jobs)));
    }
    let mut copied: HashMap<u32, Copied> = HashMap::new();
    let mut failed: HashMap<u32, Error> = HashMap::new();
    while let Some(done) = running.join_next().await {
        let done = done.because(ErrorKind::Internal, || "a snapshot worker died".into())??;
        for (oid, result) in done {
            match result {
                Ok(part) => copied.entry(oid).or_default().add(part),
                Err(error) => drop(failed.entry(oid).or_insert(error)),
            }
        }
    }
    if *stop.borrow() {
        tracing::info!("stopped during the copy; the next start goes on with what was read");
        return Ok(false);
    }
    holder.check().await.context(|| "the snapshot was lost during the copy".into())?;
    for (table, _) in tables {
        if let Some(error) = failed.get(&table.oid) {
            let text = explain(error);
            tracing::error!(table = %table.layout.table, %error, fix = error.remedy_text(), "the table is left out");
            let resync = pipeline.resyncs && error.is_mended_by_resync();
            pipeline.lake.fail_table(&pipeline.fence, table.lake.table_id, &text, resync).await?;
            table.progress.fail(text);
        }
    }
    failpoint("snapshot_commit");
    commit(pipeline, tables, (&copied, &failed), options).await?;
    if any {
        // What of the earlier try was of no use.
        if let Err(error) = pipeline.lake.remove_orphans(&pipeline.fence, &pipeline.store).await {
            tracing::warn!(%error, "files of an earlier try stay until the next start");
        }
    }
    Ok(true)
}

async fn commit(
    pipeline: &Pipeline,
    tables: &[(Arc<SyncTable>, SourceTable)],
    (copied, failed): (&HashMap<u32, Copied>, &HashMap<u32, Error>),
    CopyOptions { lsn, alterations, .. }: &CopyOptions<'_>,
) -> Result<()> {
    let commits: Vec<TableCommit> = tables
        .iter()
        .filter(|(table, _)| !failed.contains_key(&table.oid))
        .map(|(table, source)| {
            let part = copied.get(&table.oid);
            TableCommit {
                table_id: table.lake.table_id,
                alteration: alterations.get(&table.oid).cloned(),
                definition: Some(source.clone()),
                data: part.map(|p| p.files.clone()).unwrap_or_default(),
                deletes: Vec::new(),
                // What happened before is not forgotten by a table of changes.
                replace: table.layout.mode != Mode::History,
                rows_copied: part.map_or(0, |p| p.rows),
                rows_applied: 0,
                values_nulled: part.map_or(0, |p| p.nulled),
                state: TableState::Catchup,
                lsn: None,
            }
        })
        .collect();
    loop {
        let base_snapshot = pipeline.lake.live_files(&[]).await?.base_snapshot;
        let commit = Commit {
            base_snapshot,
            follows: None,
            lsn: *lsn,
            commit_ts: None,
            tables: commits.clone(),
            slot: pipeline.slot.clone(),
            pipeline_state: pipeline.slot.is_none().then_some(PipelineState::Streaming),
        };
        match pipeline.lake.commit(&pipeline.fence, &commit).await {
            Err(error) if error.kind() == ErrorKind::Conflict => tracing::debug!(%error, "committing the copy anew"),
            other => return other.map(drop),
        }
    }
}

/// What was copied of a table.
#[derive(Default)]
struct Copied {
    files: Vec<DataFile>,
    rows: u64,
    nulled: u64,
}

impl Copied {
    fn add(&mut self, other: Copied) {
        self.files.extend(other.files);
        self.rows += other.rows;
        self.nulled += other.nulled;
    }
}

fn jobs_of(table: &Arc<SyncTable>, source: &SourceTable, kept: &[Arc<Part>], range_pages: u32) -> Vec<Job> {
    let mut jobs = Vec::new();
    let next_row = Arc::new(AtomicU64::new(1));
    for heap in source.heaps().into_iter().map(Arc::new) {
        let job = |pages, kept| {
            let next_row = Arc::clone(&next_row);
            Job { table: Arc::clone(table), heap: Arc::clone(&heap), pages, kept, next_row, begins: false }
        };
        let kept: Vec<Arc<Part>> = kept.iter().filter(|part| part.relation == heap.oid).cloned().collect();
        if kept.is_empty() && heap.pages <= range_pages.saturating_mul(3) / 2 {
            jobs.push(job(None, None));
            continue;
        }
        for gap in kept::uncovered(&kept) {
            let measured = gap.start..gap.end.min(heap.pages.max(gap.start + 1));
            let mut starts: Vec<u32> = measured.step_by(range_pages as usize).collect();
            // The last range is open: the heap may have grown since it was measured.
            starts.push(gap.end);
            jobs.extend(starts.windows(2).map(|w| job(Some(w[0]..w[1]), None)));
        }
        jobs.extend(kept.into_iter().map(|part| job(Some(part.pages.clone()), Some(part))));
    }
    if let Some(first) = jobs.first_mut() {
        first.begins = true;
    }
    jobs
}

struct Worker {
    pipeline: Arc<Pipeline>,
    settings: SourceSettings,
    snapshot: String,
    workers: usize,
    on_unrepresentable: OnUnrepresentable,
    lsn: Lsn,
    /// Of the snapshot.
    xmin: u64,
    /// Of tables whose ranges are kept, by oid.
    definitions: Arc<HashMap<u32, String>>,
    stop: watch::Receiver<bool>,
}

/// Connections that a worker may lose before the copy is given up.
const RECONNECTS: u32 = 5;

impl Worker {
    async fn work(self, jobs: Arc<Mutex<VecDeque<Job>>>) -> Result<Vec<(u32, Result<Copied>)>> {
        let mut done = Vec::new();
        let mut reader = None;
        let mut losses = 0;
        while let Some(job) = { jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front() } {
            if *self.stop.borrow() {
                break;
            }
            let mut stop = self.stop.clone();
            let copied = tokio::select! {
                copied = self.copy(&mut reader, &job) => copied,
                // A copy may wait for a lock in the source for as long as somebody holds it.
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match copied {
                Err(error) if error.kind() == ErrorKind::Table => {
                    let error = match error.remedy_text() {
                        Some(_) => error,
                        None => error.remedy("take a fresh copy: `duckpipe tables resync`"),
                    };
                    done.push((job.table.oid, Err(error)));
                    // The rest of the failed table still comes on that connection.
                    reader = None;
                }
                Err(error) if error.kind() == ErrorKind::Transient && losses < RECONNECTS => {
                    losses += 1;
                    tracing::warn!(table = %job.table.layout.table, %error, "a part of the copy failed; reading it again");
                    reader = None;
                    jobs.lock().unwrap_or_else(PoisonError::into_inner).push_back(job);
                    tokio::time::sleep(std::time::Duration::from_millis(200 << losses)).await;
                }
                other => done.push((job.table.oid, Ok(other?))),
            }
        }
        Ok(done)
    }

    async fn copy(&self, reader: &mut Option<SnapshotReader>, job: &Job) -> Result<Copied> {
        let table = &job.table;
        let connection = match reader {
            Some(connection) => connection,
            None => reader.insert(SnapshotReader::open(&self.settings, &self.snapshot).await?),
        };
        if let Some(part) = &job.kept {
            if let Some(copied) = kept::renew(self, connection, job, part).await? {
                return Ok(copied);
            }
            tracing::debug!(table = %table.layout.table, pages = ?job.pages, "a range is read anew");
            let paths = part.files.iter().map(|file| file.path.clone()).collect();
            self.pipeline.lake.discard_parts(&self.pipeline.fence, paths).await?;
        }
        let mut stream = connection.copy(&job.heap, &copy_columns(&table.layout), job.pages.clone()).await?;
        let schema = table.lake.schema(&table.layout)?;
        let mut writer = self.writer(table, &schema);
        let unwritten = format!("the files of {} can't be written", table.layout.table);
        if table.layout.mode == Mode::History && job.begins {
            let start = appended::start_of_copy(self.lsn, &schema)?;
            writer.write(&start).await.map_err(store_error(&unwritten))?;
        }
        let (rows, nulled) = self.read(&mut stream, job, (&mut writer, &schema)).await?;
        let file_node = stream.file_node();
        let files = writer.finish().await.map_err(store_error(&unwritten))?;
        if let Some((pages, definition)) = job.pages.clone().zip(self.definitions.get(&table.oid))
            && !files.is_empty()
        {
            let (table_id, relation) = (table.lake.table_id, job.heap.oid);
            let (definition, files) = (definition.clone(), files.clone());
            let part = Part { table_id, relation, file_node, pages, xmin: self.xmin, definition, files, nulled };
            self.pipeline.lake.keep_part(&self.pipeline.fence, &part).await?;
            failpoint("part_kept");
        }
        Ok(Copied { files, rows, nulled })
    }

    fn writer(&self, table: &SyncTable, schema: &SchemaRef) -> DataFileWriter {
        let pipeline = &self.pipeline;
        DataFileWriter::new(
            pipeline.store.clone(),
            pipeline.upload_log(),
            &table.lake.folder,
            Arc::clone(schema),
            pipeline.budget.data_files(self.workers),
        )
    }

    /// Writes what a COPY sends, to its end. Gives the numbers of rows and of values that became NULL.
    async fn read(
        &self,
        stream: &mut CopyStream<'_>,
        job: &Job,
        (writer, schema): (&mut DataFileWriter, &SchemaRef),
    ) -> Result<(u64, u64)> {
        let table = &job.table;
        let mut decoder = CopyDecoder::new(Arc::clone(&table.layout), self.on_unrepresentable);
        let unwritten = format!("the files of {} can't be written", table.layout.table);
        let mut rows = 0;
        let numbered = |batch: RecordBatch| match table.layout.mode {
            Mode::Mirror => Ok(batch),
            Mode::SoftDelete => appended::live_rows_of_copy(&batch, schema),
            Mode::History => {
                let first = job.next_row.fetch_add(batch.num_rows() as u64, Relaxed);
                appended::rows_of_copy(&batch, (self.lsn, first), schema)
            }
        };
        while let Some(chunk) = stream.next().await? {
            decoder.push(&chunk)?;
            if decoder.bytes() >= self.pipeline.budget.copy_batch || decoder.rows() >= 65_536 {
                rows += decoder.rows() as u64;
                table.progress.add_rows_copied(decoder.rows() as u64);
                writer.write(&numbered(decoder.take()?)?).await.map_err(store_error(&unwritten))?;
                failpoint("copy");
            }
        }
        if decoder.rows() > 0 {
            rows += decoder.rows() as u64;
            table.progress.add_rows_copied(decoder.rows() as u64);
            writer.write(&numbered(decoder.take()?)?).await.map_err(store_error(&unwritten))?;
        }
        let nulled = decoder.nulled();
        table.progress.add_nulled(nulled);
        if nulled > 0 {
            tracing::warn!(table = %table.layout.table, nulled, "values that their lake type can't hold were copied as NULL");
        }
        decoder.finish()?;
        Ok((rows, nulled))
    }
}

/// A layout's columns as COPY shall read them.
fn copy_columns(layout: &TableLayout) -> Vec<CopyColumn> {
    let column = |column: &LayoutColumn| CopyColumn { name: column.name.clone(), cast: column.copy_cast() };
    layout.columns.iter().map(column).collect()
}
