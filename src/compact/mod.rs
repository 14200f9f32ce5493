//! Step 6: fewer and larger files, and no more history than asked for.
//!
//! In: the lake's files. Out: files of a sensible size, sorted, in one catalog transaction that replaces the old ones; expired
//! snapshots; deleted files. Every version that is not expired, the ids of rows and the change feed read as before.
//!
//! It works beside the stream and never against it: rewriting takes no lock, deletes that land on a file meanwhile are carried
//! over before the commit, and a file that vanished is chosen anew another time.
//!
//! [`policy`] chooses, [`rewrite`] writes, [`Compactor`] commits; [`Background`] is the form that runs inside `sync`.

mod background;
pub mod policy;
mod report;
pub mod rewrite;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use duckpipe_storage::{Deletes, Store, UploadLog, field_id, new_delete_file_path, write_announced_delete_file};
use futures::{StreamExt, stream};

pub use background::Background;
pub use report::{Report, Request, TableReport};

use crate::config::{Config, selection_of_any};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::failpoint::failpoint;
use crate::lake::store::store_error;
use crate::lake::{
    CompactionSchema, CompactionTable, CompactionView, HEARTBEAT, Lake, LiveDelete, Maintenance, MaintenanceLog,
    Replaced, Replacement, RewrittenDelete, RewrittenFile, SourceFile,
};
use policy::{Candidate, Group, Policy, choose};
use rewrite::{Job, Resources, Rewritten, read_dead, rewrite, snapshots};

/// Times that deletes are carried over while flushes go on, before one has to wait.
const ROUNDS: usize = 4;
/// Times that a table is looked at in one pass: what was merged may be merged further.
const LOOKS: usize = 8;
/// A snapshot that is yet to come: the columns at it are those of now.
const NOW: i64 = i64::MAX;
/// Files that are deleted at once.
const DELETES_AT_ONCE: usize = 16;

/// Compacts the tables of one pipeline, expires snapshots and deletes files.
#[derive(Clone)]
pub struct Compactor {
    lake: Lake,
    store: Store,
    config: Arc<Config>,
    run: Maintenance,
    resources: Resources,
}

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Replaced { files: usize, bytes: u64, rows: u64, carried_over: usize },
    GivenUp(String),
}

impl Compactor {
    /// A compactor with the memory and the threads that the configuration gives it.
    pub fn new(config: Arc<Config>, lake: Lake, store: Store) -> Compactor {
        let resources = Resources {
            memory: config.compact.memory_limit,
            threads: config.compact.threads,
            spill_directory: crate::sync::spill_directory(),
        };
        let run = Maintenance::new(&config.name);
        Compactor { lake, store, config, run, resources }
    }

    /// One pass: what dead runs left is removed, snapshots expire, tables are compacted, files are deleted.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a table or a column that is not there; [`ErrorKind::Transient`] where store or catalog fail. What
    /// was committed before stays.
    pub async fn pass(&self, request: &Request) -> Result<Report> {
        let _alive = self.show_life();
        let mut report = Report { dry_run: request.dry_run, ..Report::default() };
        let worked = self.work(request, &mut report).await;
        if !request.dry_run {
            // Also after a failure: what was written for nothing goes.
            let discarded = self.lake.discard_uploads(&self.run, &self.store).await;
            worked?;
            discarded?;
        } else {
            worked?;
        }
        Ok(report)
    }

    async fn work(&self, request: &Request, report: &mut Report) -> Result<()> {
        report.orphans_deleted = match request.dry_run {
            true => self.lake.maintenance_orphans().await?,
            false => self.lake.remove_maintenance_orphans(&self.run, &self.store).await?,
        };
        let mut horizon = None;
        if let Some(retain) = self.config.compact.retain {
            let expirable = self.lake.expirable_snapshots(retain).await?;
            report.snapshots_expired = expirable.len() as u64;
            match request.dry_run {
                true => horizon = expirable.last().map(|last| last + 1),
                false => self.lake.expire_snapshots(&expirable).await?,
            }
        }
        let mut failed = None;
        for look in 0..LOOKS {
            let mut view = self.lake.compaction_view(&self.config.name).await?;
            view.oldest = view.oldest.max(horizon.unwrap_or(i64::MIN));
            if look == 0 {
                self.begin_report(&view, request, report)?;
            }
            if self.tables(&view, request, report, &mut failed).await? == 0 || request.dry_run {
                break;
            }
        }
        // What is wrong with one table keeps no other from its due, nor the store from being tidied.
        self.delete_scheduled(request, report).await?;
        failed.map_or(Ok(()), Err)
    }

    /// A line for each table that is looked at.
    fn begin_report(&self, view: &CompactionView, request: &Request, report: &mut Report) -> Result<()> {
        let wanted = view.tables.iter().filter(|table| request.names(table));
        report.tables = wanted
            .map(|table| TableReport {
                table: table.name.to_string(),
                files: (table.files.len() + table.others) as u64,
                left_out: table.left_out.clone(),
                ..TableReport::default()
            })
            .collect();
        match &request.table {
            Some(name) if report.tables.is_empty() => {
                let known: Vec<String> = view.tables.iter().map(|table| table.name.to_string()).collect();
                Err(Error::new(ErrorKind::Config, format!("the pipeline {} has no table {name}", self.config.name))
                    .remedy(match known.is_empty() {
                        true => "it has none yet: let `duckpipe sync` copy them first".to_owned(),
                        false => format!("its tables are {}", known.join(", ")),
                    }))
            }
            _ => Ok(()),
        }
    }

    /// Rewrites what is worth it; the number of groups that were. The first error goes to `failed`: what keeps one table from being rewritten,
    /// a file that the store does not give, may be no other's.
    async fn tables(
        &self,
        view: &CompactionView,
        request: &Request,
        report: &mut Report,
        failed: &mut Option<Error>,
    ) -> Result<usize> {
        let mut rewritten = 0;
        for table in view.tables.iter().filter(|table| request.names(table) && table.left_out.is_none()) {
            let name = table.name.to_string();
            let Some(line) = report.tables.iter_mut().find(|line| line.table == name) else { continue };
            match self.table(view.oldest, table, request.dry_run, line).await.context(|| name) {
                Ok(groups) => rewritten += groups,
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        Ok(rewritten)
    }

    /// Rewrites the groups of one table.
    async fn table(
        &self,
        oldest: i64,
        table: &CompactionTable,
        dry_run: bool,
        line: &mut TableReport,
    ) -> Result<usize> {
        let mut rewritten = 0;
        for group in self.choose(oldest, table).await? {
            let sources: Vec<SourceFile> =
                table.files.iter().filter(|file| group.files.contains(&file.data_file_id)).cloned().collect();
            line.groups += 1;
            let (files, bytes, rows) = (sources.len(), total(&sources, |f| f.bytes), total(&sources, |f| f.rows));
            if dry_run {
                line.files_rewritten += files as u64;
                line.bytes_rewritten += bytes;
                continue;
            }
            match self.group(oldest, table, sources).await {
                Ok(Outcome::Replaced { files: new_files, bytes: new_bytes, rows: new_rows, carried_over }) => {
                    tracing::info!(
                        table = %table.name, reason = ?group.reason, files, bytes, new_files, new_bytes, carried_over, "compacted"
                    );
                    line.files_rewritten += files as u64;
                    line.bytes_rewritten += bytes;
                    line.files_written += new_files as u64;
                    line.bytes_written += new_bytes;
                    line.rows_written += new_rows;
                    line.rows_dropped += rows - new_rows;
                    line.deletes_carried_over += carried_over as u64;
                    rewritten += 1;
                }
                Ok(Outcome::GivenUp(why)) => line.given_up.push(why),
                // The files are not what they should be: other groups can be compacted.
                Err(error) if error.kind() == ErrorKind::Table => line.given_up.push(error.to_string()),
                Err(error) => return Err(error),
            }
            self.lake.discard_uploads(&self.run, &self.store).await?;
        }
        Ok(rewritten)
    }

    async fn choose(&self, oldest: i64, table: &CompactionTable) -> Result<Vec<Group>> {
        let compact = &self.config.compact;
        let policy = Policy {
            target_bytes: compact.target_file_size,
            min_files: compact.min_files,
            delete_ratio: compact.delete_ratio,
            max_weight: self.resources.max_weight(),
        };
        let mut candidates = Vec::with_capacity(table.files.len());
        for file in &table.files {
            let dead = file.delete.as_ref().map_or(0, |delete| delete.rows);
            candidates.push(Candidate {
                id: file.data_file_id,
                bytes: file.bytes,
                rows: file.rows,
                dead,
                droppable: self.droppable(oldest, file, &policy).await?,
                schema: file.schema,
            });
        }
        Ok(choose(&policy, &candidates))
    }

    /// The dead rows of a file that no readable snapshot shows. The file is only read where that can matter.
    async fn droppable(&self, oldest: i64, file: &SourceFile, policy: &Policy) -> Result<u64> {
        let Some(delete) = &file.delete else { return Ok(0) };
        if delete.begin_snapshot >= oldest || (delete.rows as f64) < policy.delete_ratio * file.rows as f64 {
            return Ok(0);
        }
        if delete.partial_max.unwrap_or(delete.begin_snapshot) < oldest {
            return Ok(delete.rows);
        }
        match read_dead(&self.store, delete, oldest).await {
            // Replaced meanwhile, and cleaned up: it will be looked at another time.
            Err(error) if error.kind() == ErrorKind::Table => Ok(0),
            read => Ok(read?.gone()),
        }
    }

    /// Rewrites files and puts the result in their place.
    async fn group(&self, oldest: i64, table: &CompactionTable, sources: Vec<SourceFile>) -> Result<Outcome> {
        let rewritten = self.rewrite(oldest, table, sources).await?;
        failpoint("compact_upload");
        self.replace(table, rewritten).await
    }

    async fn rewrite(&self, oldest: i64, table: &CompactionTable, sources: Vec<SourceFile>) -> Result<Rewritten> {
        let begin = sources.iter().map(|file| file.begin_snapshot).min().unwrap_or_default();
        let columns = self.lake.compaction_schema(table.table_id, begin).await?;
        // Files of an older schema may lack one of the columns.
        let order = self.order(table).await?;
        let sort = if order.iter().all(|id| is_sortable(&columns, *id)) { order } else { Vec::new() };
        let job = Job {
            store: self.store.clone(),
            log: self.log(),
            folder: table.folder.clone(),
            sort,
            columns,
            sources,
            oldest,
            target_bytes: self.config.compact.target_file_size,
        };
        rewrite(job, &self.resources).await
    }

    /// The ids of the columns to sort by: those that the configuration names, else the key's.
    async fn order(&self, table: &CompactionTable) -> Result<Vec<i64>> {
        let selected = selection_of_any(&self.config.tables(), [&table.selected, &table.source]);
        let Some(named) = selected.and_then(|selected| selected.sort_by) else { return Ok(table.key.clone()) };
        let columns = self.lake.compaction_schema(table.table_id, NOW).await?;
        let named = named.iter().map(|name| {
            let id = columns.names.get(&name.to_lowercase()).copied();
            id.filter(|id| is_sortable(&columns, *id)).ok_or_else(|| {
                Error::new(ErrorKind::Config, format!("sort_by names {name}, which is no column that can be sorted by"))
                    .remedy("correct sort_by in [[tables]]")
            })
        });
        named.collect()
    }

    /// Puts the new files in the place of the old ones, with the deletes that landed on these meanwhile.
    async fn replace(&self, table: &CompactionTable, rewritten: Rewritten) -> Result<Outcome> {
        let mut change = Change { rewritten, deletes: HashMap::new(), carried_over: 0 };
        let ids = change.source_ids();
        for _ in 0..ROUNDS {
            let live = self.lake.live_deletes(table.table_id, &ids).await?;
            if let Err(why) = change.carry_over(&self.store, &live).await? {
                return Ok(Outcome::GivenUp(why));
            }
            let paths = change.new_delete_paths(&table.folder);
            self.record(paths.iter().map(|(_, path)| path)).await?;
            change.write_deletes(&self.store, paths).await?;
            let replacement = change.replacement(table.table_id)?;
            match self.lake.replace_files(&self.run, &replacement).await {
                Ok(Replaced::Committed(_)) => return Ok(change.outcome()),
                Ok(Replaced::Void(why)) => return Ok(Outcome::GivenUp(why)),
                Ok(Replaced::Moved) => {}
                // Another writer took the snapshot's id.
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    tracing::debug!(%error, "the lake moved on beneath the compaction; looking again");
                }
                Err(error) => return Err(error),
            }
        }
        self.replace_at_once(table, change).await
    }

    /// The last resort against a table that is flushed faster than deletes are carried over: its next flush waits.
    async fn replace_at_once(&self, table: &CompactionTable, mut change: Change) -> Result<Outcome> {
        let paths: Vec<String> = change.rewritten.files.iter().map(|_| new_delete_file_path(&table.folder)).collect();
        // What is not used is no harm. Nothing can be recorded while the lock is held.
        self.record(paths.iter()).await?;
        let (store, table_id, ids) = (self.store.clone(), table.table_id, change.source_ids());
        let runtime = tokio::runtime::Handle::current();
        let (done, changed) = tokio::sync::oneshot::channel();
        let prepare = move |live: HashMap<i64, Option<LiveDelete>>| {
            let prepared = runtime.block_on(async {
                if let Err(why) = change.carry_over(&store, &live).await? {
                    return Ok(Err(why));
                }
                let due = change.due().into_iter().map(|file| (file, paths[file].clone())).collect();
                change.write_deletes(&store, due).await?;
                change.replacement(table_id).map(Ok)
            });
            // Nobody waits where this pass was ended.
            let _ = done.send(change.outcome());
            prepared
        };
        match self.lake.replace_files_at_once(&self.run, table_id, &ids, prepare).await? {
            Replaced::Committed(_) => {
                changed.await.map_err(|_| Error::new(ErrorKind::Internal, "a commit without its outcome"))
            }
            Replaced::Void(why) => Ok(Outcome::GivenUp(why)),
            Replaced::Moved => Err(Error::new(ErrorKind::Internal, "files changed while the commit lock was held")),
        }
    }

    async fn record(&self, paths: impl Iterator<Item = &String> + Send) -> Result<()> {
        let paths: Vec<String> = paths.cloned().collect();
        let recorded = self.log().starting(&paths).await;
        recorded.map_err(|error| Error::new(ErrorKind::Transient, "the uploads could not be recorded").caused_by(error))
    }

    /// Deletes what was scheduled for deletion long enough ago.
    async fn delete_scheduled(&self, request: &Request, report: &mut Report) -> Result<()> {
        let scheduled = self.lake.scheduled_files(self.config.compact.delete_grace).await?;
        report.files_deleted = scheduled.paths.len() as u64;
        for kept in &scheduled.kept {
            tracing::warn!(path = %kept, "scheduled for deletion, but outside the data path or still in use: it stays");
        }
        report.files_kept = scheduled.kept;
        if request.dry_run {
            return Ok(());
        }
        // The objects first: a row without its object is deleted once more, an object without its row never.
        let deleted: Vec<Result<String>> = stream::iter(scheduled.paths)
            .map(|path| async move {
                match self.store.delete(&path).await {
                    Ok(()) => Ok(path),
                    Err(error) => Err(store_error(&format!("{} can't be deleted", self.store.url(&path)))(error)),
                }
            })
            .buffer_unordered(DELETES_AT_ONCE)
            .collect()
            .await;
        let (deleted, failed): (Vec<Result<String>>, Vec<Result<String>>) =
            deleted.into_iter().partition(Result::is_ok);
        let deleted: Vec<String> = deleted.into_iter().flatten().collect();
        report.files_deleted = deleted.len() as u64;
        self.lake.forget_scheduled(&deleted).await?;
        failed.into_iter().next().map_or(Ok(()), |failed| failed.map(drop))
    }

    fn log(&self) -> Arc<dyn UploadLog> {
        Arc::new(MaintenanceLog { lake: self.lake.clone(), run: self.run.clone() })
    }

    /// Renews this run's records until it is dropped.
    fn show_life(&self) -> Alive {
        let (lake, run) = (self.lake.clone(), self.run.clone());
        Alive(tokio::spawn(async move {
            let mut tick = tokio::time::interval(HEARTBEAT);
            loop {
                tick.tick().await;
                if let Err(error) = lake.maintenance_lives(&run).await {
                    tracing::debug!(%error, "the run's records were not renewed");
                }
            }
        }))
    }
}

/// Whether there is such a column, of a type that has an order.
fn is_sortable(columns: &CompactionSchema, id: i64) -> bool {
    let mut fields = columns.schema.fields().iter();
    let field = fields.find(|field| field_id(field).map(i64::from) == Some(id));
    field.is_some_and(|field| !matches!(field.data_type(), DataType::List(_)))
}

/// A rewrite on its way into the catalog.
struct Change {
    rewritten: Rewritten,
    /// By new file: how many dead rows its delete file holds, and the file.
    deletes: HashMap<usize, (usize, RewrittenDelete)>,
    carried_over: usize,
}

impl Change {
    fn source_ids(&self) -> Vec<i64> {
        self.rewritten.sources.iter().map(|source| source.file.data_file_id).collect()
    }

    /// Carries over the deletes that landed on the sources since they were last looked at; or why that can't be.
    async fn carry_over(
        &mut self,
        store: &Store,
        live: &HashMap<i64, Option<LiveDelete>>,
    ) -> Result<std::result::Result<(), String>> {
        for source in 0..self.rewritten.sources.len() {
            let file = &self.rewritten.sources[source].file;
            let (id, before) = (file.data_file_id, file.delete.as_ref().map(|delete| delete.delete_file_id));
            match live.get(&id) {
                None => return Ok(Err(format!("data file {id} is not live any more"))),
                Some(now) if now.as_ref().map(|delete| delete.delete_file_id) == before => {}
                Some(None) => return Ok(Err(format!("data file {id} got rows back"))),
                Some(Some(now)) => {
                    let dead = match self.rewritten.read_dead(store, now).await {
                        // Replaced and removed between the look and the read.
                        Err(error) if error.kind() == ErrorKind::Table => return Ok(Err(error.to_string())),
                        read => read?,
                    };
                    self.carried_over += self.rewritten.rebase(source, now.clone(), dead)?;
                }
            }
        }
        Ok(Ok(()))
    }

    /// The new files whose dead rows have become more since their delete file was written.
    fn due(&self) -> Vec<usize> {
        let is_due = |file: &usize| {
            let dead = self.rewritten.dead[*file].len();
            dead > 0 && self.deletes.get(file).is_none_or(|(before, _)| *before != dead)
        };
        (0..self.rewritten.files.len()).filter(is_due).collect()
    }

    fn new_delete_paths(&self, folder: &str) -> Vec<(usize, String)> {
        self.due().into_iter().map(|file| (file, new_delete_file_path(folder))).collect()
    }

    async fn write_deletes(&mut self, store: &Store, due: Vec<(usize, String)>) -> Result<()> {
        for (index, path) in due {
            let dead = &self.rewritten.dead[index];
            let data_file_url = store.url(&self.rewritten.files[index].path);
            let deletes = Deletes { data_file_url, rows: dead.iter().copied().collect() };
            let written = write_announced_delete_file(store, path, deletes).await;
            let snapshots = || dead.iter().map(|(_, snapshot)| *snapshot);
            let delete = RewrittenDelete {
                file: written.map_err(store_error("a delete file can't be written"))?,
                begin_snapshot: snapshots().min().unwrap_or_default(),
                partial_max: snapshots().max().unwrap_or_default(),
            };
            self.deletes.insert(index, (dead.len(), delete));
        }
        Ok(())
    }

    fn replacement(&self, table_id: i64) -> Result<Replacement> {
        let mut outputs = Vec::with_capacity(self.rewritten.files.len());
        for (index, data) in self.rewritten.files.iter().enumerate() {
            let (begin_snapshot, partial_max) = snapshots(data)?;
            let delete = self.deletes.get(&index).map(|(_, delete)| delete.clone());
            outputs.push(RewrittenFile { data: data.clone(), begin_snapshot, partial_max, delete });
        }
        let sources =
            self.rewritten.sources.iter().map(|source| {
                (source.file.data_file_id, source.file.delete.as_ref().map(|delete| delete.delete_file_id))
            });
        Ok(Replacement { table_id, sources: sources.collect(), outputs })
    }

    fn outcome(&self) -> Outcome {
        Outcome::Replaced {
            files: self.rewritten.files.len(),
            bytes: self.rewritten.files.iter().map(|file| file.bytes).sum(),
            rows: self.rewritten.rows(),
            carried_over: self.carried_over,
        }
    }
}

struct Alive(tokio::task::JoinHandle<()>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn total(files: &[SourceFile], of: impl Fn(&SourceFile) -> u64) -> u64 {
    files.iter().map(of).sum()
}
