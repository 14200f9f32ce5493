//! What each command asks of the other folders: the one place where the surfaces meet the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use duckpipe_storage::Store;
use tokio::sync::{oneshot, watch};

use super::arguments::{CompactArguments, QueryArguments};
use super::catalog_copy::{self, CatalogCopy};
use super::check::CheckReport;
use super::reload::Reloader;
use super::status::{StatusReport, TableStatus};
use super::sync_point;
use super::tables::{self, Which};
use crate::admin::{self, ControlSocket, Handler};
use crate::compact::{self, Compactor};
use crate::config::{CatalogLocation, Config};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::query::{self, QuerySettings};
use crate::lake::{Lake, LakeSettings, PipelineRow, PipelineState, Wanted};
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::{publication, slot};
use crate::sync::boundary::Boundary;
use crate::sync::progress::Progress;
use crate::sync::repair::Repair;
use crate::sync::{self, RunOptions};

/// How a sync ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SyncOutcome {
    /// Tables that are errored.
    pub(super) errored_tables: usize,
}

/// What `drop` would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DropPlan {
    /// The slot, where it exists.
    pub(super) slot: Option<String>,
    /// The slot of a copy beside the stream, where one was under way.
    pub(super) copy_slot: Option<String>,
    /// The publication, where it exists and duckpipe made it.
    pub(super) publication: Option<String>,
}

impl DropPlan {
    pub(super) fn is_empty(&self) -> bool {
        self.slot.is_none() && self.copy_slot.is_none() && self.publication.is_none()
    }

    /// The plan for people.
    pub(super) fn describe(&self) -> String {
        let mut out = String::from("this removes from the source:\n");
        for slot in self.slot.iter().chain(&self.copy_slot) {
            out.push_str(&format!("  replication slot {slot}\n"));
        }
        if let Some(publication) = &self.publication {
            out.push_str(&format!("  publication {publication}\n"));
        }
        out
    }
}

/// Memory for the DuckDB that reads a catalog, in bytes.
pub(super) const CATALOG_MEMORY: u64 = 128 << 20;

/// `sync`: works until done or told to stop, and says what it does to `progress`.
pub(super) async fn sync(
    (config, reloader): (Config, Reloader),
    once: bool,
    resnapshot: bool,
    progress: Arc<Progress>,
    shutdown: watch::Receiver<bool>,
) -> Result<SyncOutcome> {
    let (opened, lake) = oneshot::channel();
    let boundary = Arc::new(Boundary::default());
    let shown = (Arc::clone(&progress), Arc::clone(&boundary));
    let beside = tokio::spawn(beside((config.clone(), reloader.clone()), shown, lake, !once, shutdown.clone()));
    let hangups = tokio::spawn(async move { reloader.on_hangup().await });
    let options = RunOptions { once, resnapshot, until: None };
    let outcome = sync::run(&config, options, progress, boundary, shutdown, opened).await;
    beside.abort();
    hangups.abort();
    Ok(SyncOutcome { errored_tables: outcome?.errored_tables })
}

/// What goes on beside the stream: compaction, and answers to other commands while this process holds the catalog's file.
async fn beside(
    (config, reloader): (Config, Reloader),
    (progress, boundary): (Arc<Progress>, Arc<Boundary>),
    lake: oneshot::Receiver<Lake>,
    scheduled: bool,
    stop: watch::Receiver<bool>,
) {
    let Ok(lake) = lake.await else { return };
    let compaction = match compact::Background::start(&config, lake.clone(), scheduled, stop) {
        Ok(compaction) => Some(compaction),
        Err(error) => {
            tracing::warn!(%error, "the lake is not compacted");
            None
        }
    };
    let CatalogLocation::File(catalog) = config.lake.catalog.clone() else {
        // Anybody else can open the catalog; only `validate` wants something of the stream. The compaction lives as long as this.
        return sync_point::answer(&lake, &config.name, &boundary, &reloader).await;
    };
    if let Err(error) = catalog_copy::remove_abandoned(&catalog) {
        tracing::warn!(%error, "old copies of the catalog beside it can't be removed");
    }
    match ControlSocket::bind(&catalog).await {
        Ok(socket) => admin::serve(socket, Control { config, reloader, progress, boundary, lake, compaction }).await,
        Err(error) => {
            tracing::warn!(%error, "`status`, `query`, `compact` and `validate` can't reach this process");
            std::future::pending().await
        }
    }
}

struct Control {
    config: Config,
    reloader: Reloader,
    progress: Arc<Progress>,
    boundary: Arc<Boundary>,
    lake: Lake,
    compaction: Option<compact::Background>,
}

#[async_trait]
impl Handler for Control {
    async fn status(&self) -> Result<StatusReport> {
        Ok(StatusReport::of_progress(&self.config.name, &self.config.source.slot, &self.progress))
    }

    async fn copy_catalog(&self) -> Result<PathBuf> {
        let CatalogLocation::File(catalog) = &self.config.lake.catalog else {
            return Err(Error::new(ErrorKind::Internal, "a Postgres catalog needs no copy"));
        };
        let copy = catalog_copy::new_copy(catalog);
        if let Err(error) = self.lake.copy_catalog(&copy).await {
            // Half a copy helps nobody.
            let _ = std::fs::remove_file(&copy);
            return Err(error);
        }
        Ok(copy)
    }

    async fn compact(&self, request: &compact::Request) -> Result<compact::Report> {
        match &self.compaction {
            Some(compaction) => compaction.pass(request).await,
            None => Err(Error::new(ErrorKind::Internal, "this sync has no thread to compact with; its log says why")),
        }
    }

    async fn repair(&self, repair: Repair) -> Result<i64> {
        let store = Store::open(&self.config.lake.data_path, self.config.s3_settings().as_ref()).await?;
        sync::repair::repair(&self.config, &self.lake, &store, repair).await
    }

    async fn want(&self, names: &[String], paused: bool, wanted: Wanted) -> Result<Vec<String>> {
        let which = match names {
            [] => Which::Errored,
            _ if paused => Which::Paused,
            _ => Which::Named,
        };
        tables::want_in(&self.lake, &self.config.name, names, which, wanted).await
    }

    async fn reload(&self) -> Result<()> {
        self.reloader.reload()
    }

    fn boundary(&self) -> &Boundary {
        &self.boundary
    }
}

/// Has the sync that holds a catalog's file do something, or does it here where none answers. A sync that is only starting has the file
/// a moment before it answers: it is asked again.
pub(super) async fn there_or_here<T>(
    ask: impl AsyncFn() -> Result<Option<T>>,
    here: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    if let Some(answer) = ask().await? {
        return Ok(answer);
    }
    match here().await {
        Err(error) if error.kind() == ErrorKind::Locked => ask().await?.ok_or(error),
        done => done,
    }
}

/// Where a catalog's file is not there, opening it to write would make it.
pub(super) fn must_exist(catalog: &Path) -> Result<()> {
    match catalog.exists() {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Missing, format!("there is no lake yet: {}", catalog.display()))
            .remedy("run `duckpipe sync` first")),
    }
}

/// `compact`: by the running sync where it holds the catalog, else here.
pub(super) async fn compact(
    config: Config,
    arguments: &CompactArguments,
    shutdown: watch::Receiver<bool>,
) -> Result<compact::Report> {
    let request = compact::Request { table: arguments.table.clone(), dry_run: arguments.dry_run };
    let here = compact_here(&config, &request, shutdown);
    match &config.lake.catalog {
        CatalogLocation::File(catalog) => {
            let here = async || {
                must_exist(catalog)?;
                here.await
            };
            there_or_here(async || admin::compact(catalog, &request).await, here).await
        }
        CatalogLocation::Postgres { .. } => {
            // Read-only first: opening it to write would make what is not there.
            let settings = LakeSettings { read_only: true, ..config.lake_settings(CATALOG_MEMORY, false) };
            Lake::open(&settings).await?.shutdown().await;
            here.await
        }
    }
}

async fn compact_here(
    config: &Config,
    request: &compact::Request,
    mut shutdown: watch::Receiver<bool>,
) -> Result<compact::Report> {
    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref()).await?;
    let lake = Lake::open_with_store(&config.lake_settings(CATALOG_MEMORY, false), &store).await?;
    let compactor = Compactor::new(Arc::new(config.clone()), lake.clone(), store);
    let report = tokio::select! {
        report = compactor.pass(request) => report,
        _ = shutdown.wait_for(|stop| *stop) => {
            Err(Error::new(ErrorKind::Transient, "stopped; what was committed stays, the rest is undone by the next run"))
        }
    };
    lake.shutdown().await;
    report
}

/// `check`: looks at every precondition and changes nothing.
pub(super) async fn check(config: &Config) -> Result<CheckReport> {
    super::preconditions::examine(config).await
}

/// `status`: from the running sync where it holds the catalog, else from the catalog and the source.
pub(super) async fn status(config: &Config) -> Result<StatusReport> {
    let CatalogLocation::File(catalog) = &config.lake.catalog else {
        return status_of_lake(config, config.lake.catalog.clone()).await;
    };
    if let Some(report) = admin::status(catalog).await? {
        return Ok(report);
    }
    let copy = CatalogCopy::of(catalog).await?;
    status_of_lake(config, CatalogLocation::File(copy.path())).await
}

/// The status that a catalog tells, with the source's position where the source answers.
async fn status_of_lake(config: &Config, catalog: CatalogLocation) -> Result<StatusReport> {
    let settings = LakeSettings { catalog, ..config.lake_settings(CATALOG_MEMORY, true) };
    let lake = Lake::open(&settings).await?;
    let Some(row) = lake.pipeline(&config.name).await? else {
        return Err(Error::new(ErrorKind::Precondition, format!("the lake knows no pipeline {}", config.name))
            .remedy("run `duckpipe sync` first, or check `name`"));
    };
    let rows = lake.tables(&config.name).await?;
    lake.shutdown().await;
    let source = match source_session(config).await {
        Ok(session) => session.flushed_position().await.ok(),
        Err(error) => {
            tracing::debug!(%error, "the source's position is not known");
            None
        }
    };
    let at = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros);
    let moved_at = at(rows.iter().filter_map(|row| row.last_commit_at).max());
    let tables = rows.into_iter().map(|row| TableStatus {
        source: row.source.to_string(),
        target: row.target.to_string(),
        state: row.state,
        rows_copied: row.rows_copied,
        rows_applied: row.rows_applied,
        applied_lsn: row.lsn,
        last_commit_at: at(row.last_commit_at),
        error: row.error,
        values_nulled: row.values_nulled,
    });
    // Before the first copy is complete the row's position is the slot's, and the lake shows nothing.
    let applied = row.lsn.filter(|_| row.state == PipelineState::Streaming);
    Ok(StatusReport::new(row.name, row.slot, (applied, source), (moved_at, Utc::now()), tables.collect()))
}

async fn source_session(config: &Config) -> Result<Session> {
    Session::connect(&SourceSettings::parse(&config.source.url)?).await
}

/// What `drop` would remove; removes nothing. A pipeline that the lake does not know has no publication of ours.
pub(super) async fn drop_plan(config: &Config) -> Result<DropPlan> {
    let session = source_session(config).await?;
    let row = known_pipeline(config).await?;
    let (slot_name, publication_name, owned) = match &row {
        Some(row) => (row.slot.as_str(), row.publication.as_str(), row.owns_publication),
        None => (config.source.slot.as_str(), config.source.publication.as_str(), false),
    };
    let slot = slot::find(&session, slot_name).await?.map(|slot| slot.name);
    let copy_slot = slot::find(&session, &slot::of_copies(slot_name)).await?.map(|slot| slot.name);
    let publication = match owned {
        true => publication::find(&session, publication_name).await?.map(|publication| publication.name),
        false => None,
    };
    Ok(DropPlan { slot, copy_slot, publication })
}

/// The pipeline's row, where there is a lake that knows it.
async fn known_pipeline(config: &Config) -> Result<Option<PipelineRow>> {
    let copy = match &config.lake.catalog {
        CatalogLocation::File(catalog) if !catalog.exists() => return Ok(None),
        CatalogLocation::File(catalog) => Some(CatalogCopy::of(catalog).await?),
        CatalogLocation::Postgres { .. } => None,
    };
    let catalog = copy.as_ref().map_or_else(|| config.lake.catalog.clone(), |copy| CatalogLocation::File(copy.path()));
    let settings = LakeSettings { catalog, ..config.lake_settings(CATALOG_MEMORY, true) };
    let lake = match Lake::open(&settings).await {
        Err(error) if error.kind() == ErrorKind::Missing => return Ok(None),
        opened => opened?,
    };
    let row = lake.pipeline(&config.name).await?;
    lake.shutdown().await;
    Ok(row)
}

/// `drop`: the slot first, so that nothing holds WAL back, then the publication.
pub(super) async fn drop(config: &Config, plan: &DropPlan) -> Result<()> {
    let session = source_session(config).await?;
    for slot in plan.slot.iter().chain(&plan.copy_slot) {
        slot::drop(&session, slot).await?;
    }
    if let Some(publication) = &plan.publication {
        publication::drop(&session, publication).await?;
    }
    Ok(())
}

/// `query`: one SELECT on the lake, in a DuckDB of its own.
pub(super) async fn query(config: &Config, arguments: &QueryArguments, shutdown: watch::Receiver<bool>) -> Result<()> {
    let sql = match arguments.sql.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())
            .because(ErrorKind::Config, || "the statement can't be read from stdin".into())?,
        sql => sql.to_owned(),
    };
    // A statement that can't run must not wait for a lake.
    query::inspect(&sql)?;
    // The copy lives until the query has ended.
    let copy = match &config.lake.catalog {
        CatalogLocation::File(catalog) => Some(CatalogCopy::of(catalog).await?),
        CatalogLocation::Postgres { .. } => None,
    };
    let catalog = match &copy {
        Some(copy) => CatalogLocation::File(copy.path()),
        None => config.lake.catalog.clone(),
    };
    let connection = open_lake(config, catalog, arguments.memory_limit).await?;
    let settings = QuerySettings {
        sql,
        data_path: config.lake.data_path.clone(),
        memory: arguments.memory_limit,
        threads: arguments.threads,
        timeout: arguments.timeout,
        format: arguments.format,
    };
    query::run(connection, settings, std::io::stdout(), shutdown).await.map(|_| ())
}

/// A DuckDB of its own, with the lake attached read-only as `lake`.
async fn open_lake(config: &Config, catalog: CatalogLocation, memory: u64) -> Result<duckdb::Connection> {
    let mut settings = LakeSettings { catalog, ..config.lake_settings(memory, true) };
    let mut credentials = None;
    if config.lake.is_s3() {
        settings.s3.get_or_insert_default();
        let store = Store::open(&config.lake.data_path, settings.s3.as_ref()).await?;
        credentials = store.credentials().await?;
    }
    crate::lake::open_connection(&settings, credentials).await
}
