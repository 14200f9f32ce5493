//! One flush: the logs of all tables up to a source commit become files, and the files one lake snapshot.
//!
//! Order of what is durable: the upload is recorded, the files are written, the catalog commits files and LSN together. Whoever
//! dies in between leaves the lake as it was, and files that the next start removes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use duckpipe_storage::{DataFile, DataFileWriter, DeletedRows, Deletes, read_deleted_rows, write_delete_files};
use futures::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, stream};
use hashbrown::HashMap;
use roaring::RoaringTreemap;

use crate::batch::layout::{Mode, TableLayout};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::lookup::{self, KeyColumns, RowPosition};
use crate::lake::store::{of_its_table, store_error};
use crate::lake::{Alteration, Commit, DeleteCommit, LakeTable, LiveFile, TableCommit, TableState};
use crate::lsn::Lsn;
use crate::source::table::{SourceTable, TableName};

use super::appended;
use super::change_log::ChangeLog;
use super::failpoint::failpoint;
use super::fill::Fill;
use super::net_change::{self, NetChange};
use super::pipeline::Pipeline;
use super::progress::TableProgress;

/// A table on its way from source to lake: what does not change while it streams.
pub struct SyncTable {
    /// `pg_class.oid` in the source.
    pub oid: u32,
    /// The name by which the configuration selects it, whatever it is called now.
    pub selected: TableName,
    /// What is done to one of its partitions is told by no message: a change may be of a row that came with one.
    pub partitioned: bool,
    /// The columns and the key.
    pub layout: Arc<TableLayout>,
    /// The table in the lake.
    pub lake: LakeTable,
    /// What people see of it.
    pub progress: Arc<TableProgress>,
}

impl SyncTable {
    /// The key's columns as the lake's files hold them.
    pub fn key_columns(&self) -> KeyColumns {
        KeyColumns {
            field_ids: self.layout.key.iter().map(|&i| self.lake.columns[i].id.column_id as i32).collect(),
            types: self.layout.key.iter().map(|&i| self.layout.columns[i].column_type.arrow()).collect(),
        }
    }

    /// The columns of a table of changes that order those of a key: the ids of `_lsn` and `_seq`.
    fn order_columns(&self) -> Option<[i32; 2]> {
        if self.layout.mode != Mode::History {
            return None;
        }
        let of_changes = self.lake.columns.get(self.layout.columns.len()..)?;
        let id = |at: usize| of_changes.get(at).map(|column| column.id.column_id as i32);
        Some([id(1)?, id(2)?])
    }
}

/// What one flush makes durable.
pub struct Flush {
    /// The applied position that the transactions in it follow.
    pub follows: Lsn,
    /// The end of the last transaction in it.
    pub lsn: Lsn,
    /// When that transaction committed at the source, µs since 1970.
    pub commit_ts: Option<i64>,
    /// The changes, a table each, settled.
    pub logs: Vec<(Arc<SyncTable>, ChangeLog)>,
    /// How the lake's columns of some of these tables change with them, by the table's oid.
    pub alterations: HashMap<u32, Alteration>,
    /// How the source defines some of these tables, where that is not recorded yet, by the table's oid.
    pub definitions: HashMap<u32, SourceTable>,
    /// The state that the flushed tables have from then on.
    pub state: TableState,
    /// How many rows of the lake may have one key.
    pub rows_of_a_key: RowsOfAKey,
}

/// How many rows of the lake may have one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOfAKey {
    /// One, or lake and source have parted.
    One,
    /// Any number, all of which go.
    Any,
}

/// A flush that failed, and the table at fault where it is one table's.
pub struct FlushError {
    /// The table to quarantine.
    pub table: Option<Arc<SyncTable>>,
    /// What happened.
    pub error: Error,
}

impl From<Error> for FlushError {
    fn from(error: Error) -> Self {
        FlushError { table: None, error }
    }
}

/// What a table's log came to.
struct Resolved<'a> {
    table: &'a Arc<SyncTable>,
    log: &'a ChangeLog,
    runs: Vec<Run<'a>>,
    data: Vec<DataFile>,
}

/// Events of a log that are resolved together: all of them, or where each change is kept, those between two TRUNCATEs.
struct Run<'a> {
    /// The number of the first event in the whole log.
    first: u64,
    log: Cow<'a, ChangeLog>,
    net: NetChange,
}

impl<'a> Resolved<'a> {
    fn new(table: &'a Arc<SyncTable>, log: &'a ChangeLog, memory: usize) -> Result<Self> {
        let runs = match table.layout.mode {
            Mode::Mirror | Mode::SoftDelete => {
                let net = net_change::resolve(log, &table.layout, memory)?;
                vec![Run { first: 0, log: Cow::Borrowed(log), net }]
            }
            Mode::History => {
                let owned = |appended::Run { first, log, net }| Run { first, log: Cow::Owned(log), net };
                appended::resolve(log, &table.layout, memory)?.into_iter().map(owned).collect()
            }
        };
        Ok(Resolved { table, log, runs, data: Vec::new() })
    }

    /// The run whose old rows are in the lake: there is none left after a TRUNCATE.
    fn lookups(&self) -> Option<&Run<'a>> {
        self.runs.first().filter(|run| !run.net.lookups.is_empty())
    }

    /// The number of rows that the source changed.
    fn changes(&self) -> u64 {
        self.runs.iter().map(|run| run.net.changes).sum()
    }
}

/// Where the old rows of a table lie: per file (index into `files`) the positions, and the rows that unchanged values come from.
struct Located {
    files: Vec<LiveFile>,
    positions: BTreeMap<usize, RoaringTreemap>,
    origins: LakeRows,
}

/// Where the lake's rows lie that unchanged values come from: 8 bytes a row.
#[derive(Default)]
pub struct LakeRows {
    /// The lookups that found them.
    events: RoaringTreemap,
    /// File and position, in the order of the events.
    packed: Vec<u64>,
}

/// Bits of a packed position; the rest are the file's index. A file of so many rows or a table of so many files there is not.
const POSITION_BITS: u32 = 40;

impl LakeRows {
    fn new(events: RoaringTreemap) -> Self {
        LakeRows { packed: Vec::with_capacity(events.len() as usize), events }
    }

    /// Takes the next event's row, if it is one of those wanted: events come in ascending order.
    fn push(&mut self, event: u64, row: RowPosition) -> Result<()> {
        if self.events.contains(event) {
            let file = row.file as u64;
            if row.position >> POSITION_BITS != 0 || file >> (u64::BITS - POSITION_BITS) != 0 {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("row {} of file {file} is out of range", row.position),
                ));
            }
            self.packed.push(file << POSITION_BITS | row.position);
        }
        Ok(())
    }

    /// The row that the lookup of this event found.
    pub fn get(&self, event: u64) -> Option<RowPosition> {
        if !self.events.contains(event) {
            return None;
        }
        let packed = self.packed.get(self.events.rank(event) as usize - 1)?;
        let position = packed & ((1 << POSITION_BITS) - 1);
        Some(RowPosition { file: (packed >> POSITION_BITS) as usize, position })
    }
}

/// Runs the flush to its commit.
///
/// # Errors
/// As [`FlushError`] says; nothing of the flush is visible then.
pub async fn flush(pipeline: &Pipeline, flush: &Flush) -> Result<(), FlushError> {
    let memory = pipeline.budget.resolve;
    let blame = |table: &Arc<SyncTable>| {
        let table = Arc::clone(table);
        move |error: Error| FlushError { table: (error.kind() == ErrorKind::Table).then_some(table), error }
    };
    let mut resolved = Vec::with_capacity(flush.logs.len());
    for (table, log) in &flush.logs {
        let found = tokio::task::block_in_place(|| Resolved::new(table, log, memory));
        resolved.push(found.map_err(blame(table))?);
    }
    let mut base = live_files(pipeline, &resolved).await.map_err(|error| of_lake(flush, error))?;
    let mut located = locate_all(pipeline, flush, &resolved, &mut base, Vec::new()).await?;

    // Tables are written side by side, unless one is so large that it needs the memory for itself.
    let at_once = if resolved.iter().any(|r| r.log.is_spilled()) { 1 } else { 4 };
    let mut writes = Vec::with_capacity(resolved.len());
    for (r, l) in resolved.iter().zip(&located) {
        writes.push(write_images(pipeline, r, l, at_once).map_err(blame(r.table)).boxed());
    }
    let written: Vec<Vec<DataFile>> = stream::iter(writes).buffered(at_once).try_collect().await?;
    for (r, data) in resolved.iter_mut().zip(written) {
        r.data = data;
    }
    failpoint("upload");

    let mut abandoned = Vec::new();
    loop {
        let mut tables = Vec::with_capacity(resolved.len());
        for (r, l) in resolved.iter().zip(&located) {
            let deletes = write_deletes(pipeline, r.table, l, base.snapshot + 1).await.map_err(blame(r.table))?;
            tables.push(TableCommit {
                table_id: r.table.lake.table_id,
                alteration: flush.alterations.get(&r.table.oid).cloned(),
                definition: flush.definitions.get(&r.table.oid).cloned(),
                data: r.data.clone(),
                deletes,
                // Without rows in the lake there is nothing to remove, and no snapshot to make for it.
                replace: r.log.is_truncated() && base.with_rows.contains(&r.table.lake.table_id),
                rows_copied: 0,
                rows_applied: r.changes(),
                values_nulled: r.log.nulled(),
                state: flush.state,
                lsn: None,
            });
        }
        let commit = Commit {
            base_snapshot: base.snapshot,
            follows: Some(flush.follows),
            lsn: flush.lsn,
            commit_ts: flush.commit_ts,
            tables,
            slot: pipeline.slot.clone(),
            pipeline_state: None,
        };
        match pipeline.lake.commit(&pipeline.fence, &commit).await {
            Ok(_) => {
                for r in &resolved {
                    r.table.progress.add_rows_applied(r.changes());
                    r.table.progress.add_nulled(r.log.nulled());
                    r.table.progress.committed();
                }
                discard(pipeline, &abandoned).await;
                return Ok(());
            }
            // Somebody else committed to the lake: look again, so that no delete builds on a file that is gone.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::debug!(%error, "the lake moved on beneath the commit; looking again");
                let deletes = commit.tables.iter().flat_map(|table| &table.deletes);
                abandoned.extend(deletes.map(|delete| delete.file.path.clone()));
                base = live_files(pipeline, &resolved).await.map_err(|error| of_lake(flush, error))?;
                located = locate_all(pipeline, flush, &resolved, &mut base, located).await?;
            }
            Err(error) => return Err(of_lake(flush, error)),
        }
    }
}

/// An error of the catalog, which says by itself what table it is of.
fn of_lake(flush: &Flush, error: Error) -> FlushError {
    let of = error.table_id().filter(|_| error.kind() == ErrorKind::Table);
    let table = flush.logs.iter().map(|(table, _)| table).find(|table| Some(table.lake.table_id) == of);
    FlushError { table: table.cloned(), error }
}

/// Removes delete files that were written for a commit which came too late. The flush is durable by now: what can't be removed
/// stays recorded as an upload, and goes when the next process takes the pipeline over.
async fn discard(pipeline: &Pipeline, paths: &[String]) {
    if paths.is_empty() {
        return;
    }
    let removed = async {
        for path in paths {
            let removed = pipeline.store.delete(path).await;
            removed.map_err(store_error(&format!("{} can't be removed", pipeline.store.url(path))))?;
        }
        pipeline.lake.forget_uploads(&pipeline.fence, paths).await
    };
    if let Err(error) = removed.await {
        tracing::warn!(%error, "delete files of a commit that came too late stay until the next start");
    }
}

/// What the flush builds upon, as of one snapshot: any commit after it is a conflict.
struct Base {
    snapshot: i64,
    /// The live files of the tables whose old rows are looked up.
    files: HashMap<i64, Vec<LiveFile>>,
    /// Those of the truncated tables that hold rows.
    with_rows: HashSet<i64>,
}

async fn live_files(pipeline: &Pipeline, resolved: &[Resolved<'_>]) -> Result<Base> {
    let tables: Vec<(i64, Vec<i64>)> = resolved
        .iter()
        .filter(|r| r.lookups().is_some())
        .map(|r| (r.table.lake.table_id, r.table.lake.key_ids(&r.table.layout)))
        .collect();
    let live = pipeline.lake.live_files(&tables).await?;
    let truncated = resolved.iter().filter(|r| r.log.is_truncated()).map(|r| r.table.lake.table_id);
    let with_rows = pipeline.lake.with_rows(&truncated.collect::<Vec<_>>()).await?;
    Ok(Base { snapshot: live.base_snapshot, files: live.files.into_iter().collect(), with_rows })
}

/// Where the old rows of each table lie, as of `base`. What was located before holds where the table's files are still those: else
/// others who commit to the lake all the time could keep a flush from ever coming to its own commit.
async fn locate_all(
    pipeline: &Pipeline,
    flush: &Flush,
    resolved: &[Resolved<'_>],
    base: &mut Base,
    before: Vec<Located>,
) -> Result<Vec<Located>, FlushError> {
    let mut all = Vec::with_capacity(resolved.len());
    let mut before = before.into_iter();
    for r in resolved {
        let files = base.files.remove(&r.table.lake.table_id).unwrap_or_default();
        if let Some(located) = before.next().filter(|located| located.files == files) {
            all.push(located);
            continue;
        }
        let located = locate(pipeline, r, files, flush.rows_of_a_key).await.map_err(|error| FlushError {
            table: (error.kind() == ErrorKind::Table).then(|| Arc::clone(r.table)),
            error,
        })?;
        all.push(located);
    }
    Ok(all)
}

/// Bytes that a key costs while it is looked up, beside its own encoding.
const LOOKUP_OVERHEAD: usize = 96;

/// Finds the old row of each key that the log touches first by an UPDATE or a DELETE.
async fn locate(
    pipeline: &Pipeline,
    r: &Resolved<'_>,
    files: Vec<LiveFile>,
    rows_of_a_key: RowsOfAKey,
) -> Result<Located> {
    let key = r.table.key_columns();
    let mut located = Located { files, positions: BTreeMap::new(), origins: LakeRows::default() };
    let Some(run) = r.lookups() else { return Ok(located) };
    located.origins = LakeRows::new(run.net.origins.lookups());
    let chunk_rows = (pipeline.budget.resolve / LOOKUP_OVERHEAD).max(1024);
    // They are joined, encoded and compared.
    let chunk_bytes = pipeline.budget.resolve / 2;
    let mut bytes = 0;
    let mut chunk: Vec<RecordBatch> = Vec::new();
    let mut events: Vec<u64> = Vec::new();
    let starts = run.log.segment_starts();
    for (segment, first) in starts.iter().copied().enumerate() {
        let keys = run.log.keyed_events(segment)?.keys;
        let mask = net_change::mask(&run.net.lookups, first, keys.num_rows());
        if mask.true_count() > 0 {
            events.extend(mask.values().set_indices().map(|i| first + i as u64));
            let wanted = arrow::compute::filter_record_batch(&keys, &mask)
                .because(ErrorKind::Internal, || "the keys to look up can't be filtered".into())?;
            bytes += wanted.get_array_memory_size();
            chunk.push(wanted);
        }
        if events.len() >= chunk_rows || bytes >= chunk_bytes || segment + 1 == starts.len() && !events.is_empty() {
            let keys = arrow::compute::concat_batches(&chunk[0].schema(), &chunk)
                .because(ErrorKind::Internal, || "the keys to look up can't be joined".into())?;
            chunk.clear();
            bytes = 0;
            if rows_of_a_key == RowsOfAKey::Any {
                events.clear();
                for row in lookup::locate_every(&pipeline.store, &located.files, &key, &keys).await? {
                    located.positions.entry(row.file).or_default().insert(row.position);
                }
                continue;
            }
            let found = match r.table.order_columns() {
                None if r.table.layout.keyless => {
                    lookup::locate_equal(&pipeline.store, &located.files, &key, &keys, &located.positions).await?
                }
                None => lookup::locate(&pipeline.store, &located.files, &key, &keys).await?,
                Some(order) => lookup::locate_newest(&pipeline.store, &located.files, &key, &keys, order).await?,
            };
            for (row, (event, position)) in events.drain(..).zip(found).enumerate() {
                let Some(position) = position else {
                    if run.net.optional.contains(event) {
                        continue;
                    }
                    return Err(missing(r.table, &keys, row));
                };
                if r.table.layout.mode != Mode::History {
                    located.positions.entry(position.file).or_default().insert(position.position);
                }
                located.origins.push(event, position)?;
            }
        }
    }
    Ok(located)
}

fn missing(table: &SyncTable, keys: &RecordBatch, row: usize) -> Error {
    let key = arrow::util::pretty::pretty_format_batches(&[keys.slice(row, 1)])
        .map_or_else(|_| "?".to_owned(), |text| text.to_string().lines().nth(3).unwrap_or("?").trim().to_owned());
    let what =
        format!("{}: the source changed the row with key {key}, which the lake does not hold", table.layout.table);
    let error = Error::new(ErrorKind::Table, what);
    match table.partitioned {
        true => {
            error.remedy("a partition was attached: take a fresh copy, `duckpipe tables resync`").mended_by_resync()
        }
        false => error.remedy("something else changed the lake's table; take a fresh copy: `duckpipe tables resync`"),
    }
}

/// Writes the rows that stay.
async fn write_images(
    pipeline: &Pipeline,
    r: &Resolved<'_>,
    located: &Located,
    at_once: usize,
) -> Result<Vec<DataFile>> {
    if r.runs.len() == 1 && r.runs.iter().all(|run| run.net.winners.is_empty()) {
        return Ok(Vec::new());
    }
    let table = r.table;
    let schema = table.lake.schema(&table.layout)?;
    let unwritten = format!("the files of {} can't be written", table.layout.table);
    let mut writer = DataFileWriter::new(
        pipeline.store.clone(),
        pipeline.upload_log(),
        &table.lake.folder,
        Arc::clone(&schema),
        pipeline.budget.data_files(at_once),
    );
    for run in &r.runs {
        if run.first > 0 {
            let truncation = appended::truncation(r.log, run.first - 1, &schema)?;
            writer.write(&truncation).await.map_err(store_error(&unwritten))?;
        }
        let whole = (table.layout.mode != Mode::Mirror).then_some((r.log, run.first));
        let mut fill = Fill::new(pipeline, (&**table, whole), &run.log, &run.net, &located.files, &located.origins);
        for (segment, first) in run.log.segment_starts().into_iter().enumerate() {
            let rows = run.log.rows(segment)?;
            let mask = net_change::mask(&run.net.winners, first, rows.num_rows());
            if mask.true_count() > 0 {
                fill.write(segment, first, &rows, &mask, &mut writer).await?;
            }
        }
    }
    writer.finish().await.map_err(store_error(&unwritten))
}

/// Writes a delete file for each data file that loses rows: the union of what was deleted before and now.
async fn write_deletes(
    pipeline: &Pipeline,
    table: &SyncTable,
    located: &Located,
    snapshot: i64,
) -> Result<Vec<DeleteCommit>> {
    let what = format!("the delete files of {} can't be written", table.layout.table);
    let mut reads = Vec::with_capacity(located.positions.len());
    for (&file, positions) in &located.positions {
        let what = &what;
        let read = async move {
            let live = &located.files[file];
            let mut rows = match &live.delete {
                Some(earlier) => read_deleted_rows(&pipeline.store, &earlier.path, earlier.begin_snapshot)
                    .await
                    .map_err(store_error(what))
                    .map_err(of_its_table)?,
                None => DeletedRows::default(),
            };
            rows.add(positions.clone(), snapshot);
            Ok::<_, Error>(Deletes { data_file_url: pipeline.store.url(&live.path), rows })
        };
        reads.push(read.boxed());
    }
    // A table's delete files go out together; what they hold at once is bounded by the files that a flush touches.
    let all: Vec<Deletes> = stream::iter(reads).buffered(4).try_collect().await?;
    let begins: Vec<i64> = all.iter().map(|deletes| deletes.rows.first_snapshot().unwrap_or(snapshot)).collect();
    let log = pipeline.upload_log();
    let files =
        write_delete_files(&pipeline.store, log.as_ref(), &table.lake.folder, all).await.map_err(store_error(&what))?;
    let commits = located.positions.keys().zip(begins).zip(files).map(|((&file, begin_snapshot), written)| {
        let live = &located.files[file];
        DeleteCommit {
            data_file_id: live.data_file_id,
            file: written,
            replaces: live.delete.as_ref().map(|d| d.delete_file_id),
            begin_snapshot,
            partial_max: snapshot,
        }
    });
    Ok(commits.collect())
}
