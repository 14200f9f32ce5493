//! The lake's files against the catalog.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use duckpipe_storage::Store;
use tokio::task::JoinSet;

use super::bounds::Bounds;
use super::file::{self, Held};
use super::finding::{Finding, FindingKind, Report, TableReport};
use super::keys::{self, KeySchema};
use super::lake_rows;
use super::progress::ValidateProgress;
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::{CatalogFieldColumn, Lake, Registered, RegisteredFile, TableRow};
use crate::plan::Room;
use crate::source::publication;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::sync::prepare::{self, ChosenTable};

/// Checks the files of the pipeline's tables, of all versions. `lake` is open for reading; it may be a copy of the catalog, made
/// after `stored` was listed: see [`stored_files`].
///
/// # Errors
/// Kind `Transient` or `Precondition` where catalog or store can't be reached.
pub async fn check_files(
    config: &Config,
    lake: &Lake,
    (store, stored): (&Store, Vec<String>),
    table: Option<&str>,
    progress: &Arc<ValidateProgress>,
) -> Result<Report> {
    let rows = super::wanted_tables(lake, &config.name, table).await?;
    let ids: Vec<i64> = rows.iter().filter_map(|row| row.table_id).collect();
    let registered = lake.registered(&ids, true).await?;
    let mut report = Report { pipeline: config.name.clone(), snapshot: registered.snapshot, ..Report::default() };
    let (chosen, no_keys) = match source_tables(config).await {
        Ok(chosen) => (chosen, None),
        Err(error) => (Vec::new(), Some(format!("keys were not looked at, as the source does not tell them: {error}"))),
    };
    let room = Room {
        memory: usize::try_from(config.sync.memory_limit / 4).unwrap_or(usize::MAX),
        batch_rows: keys::BATCH_ROWS,
        spill_directory: crate::sync::spill_directory(),
    };
    for row in &rows {
        let Some(table_id) = row.table_id else { continue };
        let name = row.target.to_string();
        let mut checked =
            TableReport { source: row.source.to_string(), target: name.clone(), ..TableReport::default() };
        if !registered.columns.contains_key(&table_id) {
            report.findings.push(Finding::new(FindingKind::TableMissing, &name, "the lake's table was dropped"));
            report.tables.push(checked);
            continue;
        }
        let check = TableCheck { lake, store, registered: &registered, table_id, name: &name, progress };
        let (count, readable) = check.files(&mut report.findings).await?;
        checked.files = Some(count);
        let (mut files, mut found) = lake_rows::files_at(&registered, table_id, &name, registered.snapshot);
        report.findings.append(&mut found);
        let dead = |at: &lake_rows::FileAt| at.delete.as_ref().map_or(0, |delete| delete.rows);
        checked.lake_rows = Some(files.iter().map(|at| (at.file.rows - dead(at)).max(0) as u64).sum());
        files.retain(|at| readable.contains(&at.file.data_file_id));
        if row.columns.iter().all(|column| column.key.is_none()) {
            // Changes have no key.
            report.tables.push(checked);
            continue;
        }
        match key_schema(row, &chosen, lake).await? {
            Some(key) => {
                progress.begin(format!("{name}: keys"), files.len() as u64);
                let place = (name.as_str(), registered.snapshot);
                report.findings.extend(keys::duplicates(store, &files, &key, place, &room, progress).await?);
            }
            None => {
                let why = no_keys.clone().unwrap_or_else(|| {
                    "its key was not looked at: the source has it no more, or with other columns".into()
                });
                checked.left_out = Some(why);
            }
        }
        report.tables.push(checked);
    }
    report.findings.extend(scheduled(&registered, &rows));
    report.orphans = orphans(store, &stored, &registered).await?;
    Ok(report)
}

/// Takes back that files are missing which no version needs any more: those that a compaction replaced, and whose readers had their time,
/// while they were checked. `lake` is a later look at the catalog than that of [`check_files`].
///
/// # Errors
/// Kind `Transient` where the catalog can't be reached.
pub async fn forget_removed(lake: &Lake, report: &mut Report) -> Result<()> {
    let registered = lake.registered(&[], true).await?;
    let known: HashSet<&str> = registered.all_paths.iter().map(String::as_str).collect();
    let is_needed = |finding: &Finding| finding.file.as_deref().is_none_or(|file| known.contains(file));
    report.findings.retain(|finding| finding.kind != FindingKind::FileMissing || is_needed(finding));
    Ok(())
}

/// The data and delete files that are in the store. List them before the catalog is read: what is registered then, or about to be,
/// was recorded before it was stored.
pub async fn stored_files(store: &Store) -> Result<Vec<String>> {
    let all = store.list("").await?;
    Ok(all.into_iter().map(|object| object.path).filter(|path| path.ends_with(".parquet")).collect())
}

async fn source_tables(config: &Config) -> Result<Vec<ChosenTable>> {
    let session = Session::connect(&SourceSettings::parse(&config.source.url)?).await?;
    let published = publication::find(&session, &config.source.publication).await?;
    let chosen = prepare::choose_tables(&session, config, published.as_ref().map(|p| p.name.as_str()));
    Ok(chosen.await?.tables)
}

/// The table's key as its files have it; `None` where it is not known.
async fn key_schema(row: &TableRow, chosen: &[ChosenTable], lake: &Lake) -> Result<Option<KeySchema>> {
    let Some(chosen) = chosen.iter().find(|chosen| chosen.source.oid == row.source_oid) else { return Ok(None) };
    let table = match lake.fitting_table(row, &chosen.layout).await {
        Ok(table) => table,
        Err(error) if error.kind() == ErrorKind::Table => return Ok(None),
        Err(error) => return Err(error),
    };
    let schema = table.schema(&chosen.layout)?;
    let schema = schema.project(&chosen.layout.key).because(ErrorKind::Internal, || "a key's columns".into())?;
    Ok(Some(KeySchema { schema: Arc::new(schema) }))
}

/// What the look at one data file gave.
struct Looked {
    data_file_id: i64,
    held: Option<Held>,
    findings: Vec<Finding>,
}

/// One table's files.
struct TableCheck<'a> {
    lake: &'a Lake,
    store: &'a Store,
    registered: &'a Registered,
    table_id: i64,
    name: &'a str,
    progress: &'a Arc<ValidateProgress>,
}

impl TableCheck<'_> {
    /// All data files and delete files, and their statistics; returns how many, and the data files that can be read.
    async fn files(&self, findings: &mut Vec<Finding>) -> Result<(u64, HashSet<i64>)> {
        let of_table: Vec<&RegisteredFile> =
            self.registered.files.iter().filter(|file| file.table_id == self.table_id).collect();
        let deletes: Vec<_> = self.registered.deletes.iter().filter(|d| d.table_id == self.table_id).collect();
        let count = (of_table.len() + deletes.len()) as u64;
        self.progress.begin(self.name, count);
        let held = self.data_files(&of_table, findings).await?;

        let mut bounds = Bounds::default();
        for file in &of_table {
            if let (Some(held), Some(said)) =
                (held.get(&file.data_file_id), self.registered.file_statistics.get(&file.data_file_id))
            {
                bounds.of_file((self.name, &file.path), held, said, findings);
            }
        }
        let live = of_table.iter().filter(|file| file.lives_at(self.registered.snapshot));
        let live = live.filter_map(|file| held.get(&file.data_file_id));
        if let Some(said) = self.registered.table_statistics.get(&self.table_id) {
            bounds.of_table(self.name, live, said, findings);
            self.row_ids(&of_table, said.next_row_id, findings);
        }
        bounds.answer(self.lake, findings).await?;

        let ids: HashSet<i64> = of_table.iter().map(|file| file.data_file_id).collect();
        for delete in deletes {
            let rows = held.get(&delete.data_file_id).map(|held| held.rows);
            if !ids.contains(&delete.data_file_id) {
                let detail = format!("it deletes rows of data file {}, which is not registered", delete.data_file_id);
                findings.push(Finding::new(FindingKind::DeleteFiles, self.name, detail).file(&delete.path));
            }
            file::delete_file(self.store, delete, self.name, rows, findings).await?;
            self.progress.add(1);
        }
        Ok((count, held.into_keys().collect()))
    }

    /// What each data file really holds, where it can be read.
    async fn data_files(&self, files: &[&RegisteredFile], findings: &mut Vec<Finding>) -> Result<HashMap<i64, Held>> {
        let columns: Arc<Vec<CatalogFieldColumn>> =
            Arc::new(self.registered.columns.get(&self.table_id).cloned().unwrap_or_default());
        let mut held = HashMap::new();
        let mut waiting = files.iter();
        let mut running: JoinSet<Result<Looked>> = JoinSet::new();
        let mut paths: HashMap<tokio::task::Id, String> = HashMap::new();
        loop {
            while running.len() < self.store.reads_at_once()
                && let Some(file) = waiting.next()
            {
                let (store, columns, name) = (self.store.clone(), Arc::clone(&columns), self.name.to_owned());
                let (file, path) = ((*file).clone(), file.path.clone());
                let task = running.spawn(async move {
                    let mut findings = Vec::new();
                    let held = file::data_file(&store, &file, &name, &columns, &mut findings).await?;
                    Ok(Looked { data_file_id: file.data_file_id, held, findings })
                });
                paths.insert(task.id(), path);
            }
            let Some(ended) = running.join_next_with_id().await else { break };
            self.progress.add(1);
            match ended {
                Ok((_, read)) => {
                    let mut looked = read?;
                    findings.append(&mut looked.findings);
                    held.extend(looked.held.map(|found| (looked.data_file_id, found)));
                }
                // Bytes that are wrong in a way that the Parquet library does not expect.
                Err(died) if died.is_panic() => {
                    let path = paths.get(&died.id()).cloned().unwrap_or_default();
                    let detail = "reading it made the Parquet library fail";
                    findings.push(Finding::new(FindingKind::FileUnreadable, self.name, detail).file(path));
                }
                Err(died) => {
                    return Err(Error::new(ErrorKind::Internal, "reading a file did not end").caused_by(died));
                }
            }
        }
        Ok(held)
    }

    /// No file has row ids that the next one would get again.
    fn row_ids(&self, files: &[&RegisteredFile], next: Option<i64>, findings: &mut Vec<Finding>) {
        let Some(next) = next else { return };
        for file in files {
            if let Some(start) = file.row_id_start
                && start + file.rows > next
            {
                let detail = format!("its row ids reach {}, but the catalog gives {next} next", start + file.rows);
                findings.push(Finding::new(FindingKind::TableStatistics, self.name, detail).file(&file.path));
            }
        }
    }
}

/// Files that are registered and scheduled for deletion.
fn scheduled(registered: &Registered, rows: &[TableRow]) -> Vec<Finding> {
    let scheduled: HashSet<&str> = registered.scheduled.iter().map(String::as_str).collect();
    let name_of = |table_id: i64| {
        let row = rows.iter().find(|row| row.table_id == Some(table_id));
        row.map_or_else(|| table_id.to_string(), |row| row.target.to_string())
    };
    let files = registered.files.iter().map(|file| (file.table_id, &file.path));
    let deletes = registered.deletes.iter().map(|delete| (delete.table_id, &delete.path));
    files
        .chain(deletes)
        .filter(|(_, path)| scheduled.contains(path.as_str()))
        .map(|(table_id, path)| {
            let detail = "the file is registered, and a cleanup will delete it";
            Finding::new(FindingKind::ScheduledForDeletion, name_of(table_id), detail).file(path)
        })
        .collect()
}

/// Files that are neither registered, nor scheduled, nor on their way.
async fn orphans(store: &Store, stored: &[String], registered: &Registered) -> Result<Vec<String>> {
    let root = format!("{}/", store.root());
    let relative = |path: &'_ String| path.strip_prefix(&root).unwrap_or(path).to_owned();
    let live = registered.uploads.iter().filter(|upload| upload.live).map(|upload| &upload.path);
    let known: HashSet<String> =
        registered.all_paths.iter().chain(&registered.scheduled).chain(live).map(relative).collect();
    let mut orphans = Vec::new();
    for path in stored.iter().filter(|path| !known.contains(*path)) {
        // It may have been cleaned up since the store was listed.
        if store.exists(path).await? {
            orphans.push(path.clone());
        }
    }
    Ok(orphans)
}
