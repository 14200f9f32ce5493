//! The life of a pipeline: created, copied, streamed, stopped, continued.
//!
//! ```text
//!  (none) ──► creating ──► snapshot ──► streaming ◄──► stopped
//!               ▲  row before slot        │
//!               └── dies: slot dropped, the copy goes on at a new one; `--resnapshot` leads here from anywhere
//! ```

mod connections;
mod copies;
mod gate;
mod newcomers;
mod rejoin;
mod wishes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use duckpipe_storage::Store;
use hashbrown::HashMap;
use tokio::sync::{oneshot, watch};

use crate::config::{Config, TableConfig};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::{Fence, Lake, NewPipeline, PipelineChange, PipelineRow, PipelineState, TableRow, TableState};
use crate::lsn::Lsn;
use crate::source::replication::{Identity, ReplicationConnection};
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::snapshot::SnapshotHolder;
use crate::source::table::SourceTable;
use crate::source::{publication, slot};

use super::boundary::Boundary;
use super::failpoint::failpoint;
use super::flush::SyncTable;
use super::pipeline::{Budget, Pipeline};
use super::prepare::{self, Chosen, ChosenTable};
use super::progress::{Progress, TableProgress};
use super::snapshot::{self, CopyOptions};
use super::stream::explain;

use rejoin::left_out;

/// How `sync` was called.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// Stop at the position that the source had at the start.
    pub once: bool,
    /// Copy all tables anew.
    pub resnapshot: bool,
    /// Stop at exactly this position, which is not past the source's present one.
    pub until: Option<Lsn>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tables that stand still, with their reason in the catalog.
    pub errored_tables: usize,
}

/// How long a predecessor's connections to the source may take to vanish.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);

/// Makes the lake equal to the source and keeps it so, until stopped; with `once`, up to the source's present position.
///
/// `opened` gets the lake as soon as it is open, so that others can ask it through this process; `boundary` is how they have
/// a flush end at a position.
///
/// # Errors
/// As [`ErrorKind`] says; before the first write for every precondition that does not hold.
pub async fn run(
    config: &Config,
    options: RunOptions,
    progress: Arc<Progress>,
    boundary: Arc<Boundary>,
    stop: watch::Receiver<bool>,
    opened: oneshot::Sender<Lake>,
) -> Result<Outcome> {
    let mut told = stop.clone();
    // What the stream begins with is chosen once; a reload meanwhile comes to effect when it runs.
    let fixed = config.fixed();
    let (runner, ready) = tokio::select! {
        begun = begin(&fixed, options, (progress, boundary), stop, opened) => begun?,
        // What is waited for here, a lock or the end of a long transaction in the source, may last for hours. Nothing of an
        // unfinished copy is used; the next start begins it anew.
        Ok(_) = told.wait_for(|told| *told) => {
            tracing::info!("stopped before the stream began");
            return Ok(Outcome::default());
        }
    };
    let runner = Runner { config, ..runner };
    let outcome = match ready {
        Some(Ready { pipeline, tables, from, state, until }) => {
            runner.stream(&pipeline, &tables, from, state, until).await
        }
        None => runner.outcome().await,
    };
    // A catalog file is whole by itself then, without its log beside it.
    runner.lake.clone().shutdown().await;
    outcome
}

/// Everything up to where the stream can begin.
async fn begin(
    config: &Config,
    options: RunOptions,
    (progress, boundary): (Arc<Progress>, Arc<Boundary>),
    stop: watch::Receiver<bool>,
    opened: oneshot::Sender<Lake>,
) -> Result<(Runner<'_>, Option<Ready>)> {
    let settings = SourceSettings::parse(&config.source.url)?;
    let session = Session::connect(&settings).await?;
    prepare::check_server(&session).await?;
    let mut replication = ReplicationConnection::connect(&settings).await?;
    let identity = replication.identify_system().await?;
    let until = match options.until {
        Some(until) => Some(until),
        None => prepare::target_position(&session, options.once).await?,
    };
    let published = publication::find(&session, &config.source.publication).await?;
    let chosen = prepare::choose_tables(&session, config, published.as_ref().map(|p| p.name.as_str())).await?;
    // Only a lake that is there already can do without one of them; a new one is not even begun.
    let chosen = match chosen.missing.is_empty() || !options.resnapshot && streams(config).await? {
        true => chosen,
        false => Chosen { tables: chosen.all()?, missing: Vec::new() },
    };
    take_turn(&session, &config.source.slot).await?;

    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref())
        .await
        .because(ErrorKind::Precondition, || format!("{} can't be used as data_path", config.lake.data_path))?;
    store
        .probe()
        .await
        .because(ErrorKind::Precondition, || format!("{} can't be written, read and deleted", config.lake.data_path))?;
    let budget = Budget::new(config.sync.memory_limit, config.sync.flush_bytes);
    let lake = Lake::open_with_store(&config.lake_settings(budget.duckdb, false), &store).await?;
    let row = lake.pipeline(&config.name).await?;
    // What is known is shown before anybody can ask this process, and no longer the catalog.
    for known in lake.tables(&config.name).await? {
        show(&progress, &known);
    }
    if let Some(lsn) = row.as_ref().filter(|row| row.state == PipelineState::Streaming).and_then(|row| row.lsn) {
        progress.applied(lsn);
    }
    // Nobody may be interested.
    let _ = opened.send(lake.clone());

    let entries = config.tables();
    let runner =
        Runner { config, entries, options, settings, session, store, lake, budget, progress, boundary, stop, identity };
    let ready = match row {
        Some(row) if row.state == PipelineState::Streaming && !options.resnapshot => {
            if row.slot != config.source.slot || row.publication != config.source.publication {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "the pipeline {} reads the slot {} of the publication {}, but [source] names {} and {}",
                        row.name, row.slot, row.publication, config.source.slot, config.source.publication
                    ),
                )
                .remedy(
                    "put the former names back, or copy everything anew with the others: `duckpipe sync --resnapshot`",
                ));
            }
            if let Some(published) = &published {
                prepare::check_kinds(published)?;
            }
            let settings = &runner.settings;
            prepare::check_continuity(&runner.session, &mut replication, &runner.identity, settings, &row).await?;
            drop(replication);
            Some(runner.resume(row, chosen, until).await?)
        }
        mut row => {
            let mut chosen = chosen.all()?;
            loop {
                match runner.create(row, &chosen, replication, until).await {
                    // As after a restart: the next try looks at the tables again, and at what this one left.
                    Err(error) if error.kind() == ErrorKind::Conflict => {
                        tracing::warn!(%error, "the copy begins again")
                    }
                    ready => break ready?,
                }
                let sent = Some(config.source.publication.as_str());
                chosen = prepare::choose_tables(&runner.session, config, sent).await?.all()?;
                row = runner.lake.pipeline(&config.name).await?;
                replication = ReplicationConnection::connect(&runner.settings).await?;
            }
        }
    };
    Ok((runner, ready))
}

/// Whether there is a lake that this pipeline streams into. Writes nothing.
async fn streams(config: &Config) -> Result<bool> {
    let lake = match Lake::open(&config.lake_settings(config.sync.memory_limit, true)).await {
        // Nothing is there, or nothing of ours.
        Err(error) if matches!(error.kind(), ErrorKind::Missing | ErrorKind::Precondition) => return Ok(false),
        opened => opened?,
    };
    let row = lake.pipeline(&config.name).await;
    lake.shutdown().await;
    Ok(row?.is_some_and(|row| row.state == PipelineState::Streaming))
}

/// Shows a table as the catalog knows it.
fn show(progress: &Progress, known: &TableRow) -> Arc<TableProgress> {
    let shown = progress.table(&known.source, &known.target);
    shown.set_state(known.state);
    shown.set_rows_copied(known.rows_copied);
    shown.set_rows_applied(known.rows_applied);
    if let Some(lsn) = known.lsn {
        shown.applied(lsn);
    }
    match (&known.error, known.state) {
        (why, TableState::Paused) => shown.pause(why.clone()),
        (Some(why), TableState::Pending) => shown.wait(why.clone()),
        (Some(error), _) => shown.fail(error),
        (None, _) => {}
    }
    shown
}

/// A stream about to begin.
struct Ready {
    pipeline: Arc<Pipeline>,
    tables: Vec<Table>,
    from: Lsn,
    state: TableState,
    until: Option<Lsn>,
}

/// One `sync` per slot: a session lock in the source, which goes with its connection.
async fn take_turn(session: &Session, slot: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        if session.try_lock(&format!("duckpipe:{slot}")).await? {
            break;
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!("another `duckpipe sync` runs with the slot {slot}"),
            )
            .remedy("stop it first, or give this pipeline another `name`"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The walsender of a process that died may live a little longer than its session.
    loop {
        let holder = slot::find(session, slot).await?.and_then(|slot| slot.active_pid);
        let Some(pid) = holder else { return Ok(()) };
        if tokio::time::Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!("the replication slot {slot} is in use by the source's process {pid}"),
            )
            .remedy("stop what reads it, or give this pipeline another `name`"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Runner<'a> {
    config: &'a Config,
    /// The `[[tables]]` that the stream began with.
    entries: Arc<[TableConfig]>,
    options: RunOptions,
    settings: SourceSettings,
    session: Session,
    store: Store,
    lake: Lake,
    budget: Budget,
    progress: Arc<Progress>,
    boundary: Arc<Boundary>,
    stop: watch::Receiver<bool>,
    identity: Identity,
}

type Table = (Arc<SyncTable>, SourceTable);

impl Runner<'_> {
    /// Creates the slot and copies all tables; `None`: told to stop.
    async fn create(
        &self,
        row: Option<PipelineRow>,
        chosen: &[ChosenTable],
        mut replication: ReplicationConnection,
        until: Option<Lsn>,
    ) -> Result<Option<Ready>> {
        let source = &self.config.source;
        let owned = row.as_ref().is_some_and(|row| row.owns_publication && row.publication == source.publication);
        let exists = prepare::check_publication(&self.session, &source.publication, chosen, owned).await?;
        let slot = slot::find(&self.session, &source.slot).await?;
        if slot.is_some() && row.as_ref().is_none_or(|row| row.slot != source.slot) {
            let known = match &row {
                Some(row) => format!("the slot of pipeline {} is {}", row.name, row.slot),
                None => format!("this lake knows no pipeline {}", self.config.name),
            };
            return Err(Error::new(
                ErrorKind::Precondition,
                format!("the replication slot {} exists, but {known}", source.slot),
            )
            .remedy("if nothing else uses it, remove it with `duckpipe drop`; else set another `slot` in [source]"));
        }
        for table in chosen {
            self.lake.check_target(&self.config.name, &table.new_table(true)).await?;
        }
        let owns_publication = !exists || owned;
        let fence = self.lake.claim(&self.new_pipeline(owns_publication)).await?;
        // From here on the row says `creating`: whoever dies, the next start begins here again.
        self.lake.set_state(&fence, PipelineState::Creating, &PipelineChange::default()).await?;
        // Only the row knows a former slot: it stays there until that one is gone.
        if let Some(row) = row.filter(|row| row.slot != source.slot && row.system_id == self.identity.system_id) {
            failpoint("former_slot");
            slot::drop(&self.session, &slot::of_copies(&row.slot)).await?;
            slot::drop(&self.session, &row.slot).await?;
        }
        let change = PipelineChange {
            system_id: Some(self.identity.system_id.clone()),
            timeline: Some(self.identity.timeline),
            slot: Some(source.slot.clone()),
            publication: Some(source.publication.clone()),
            owns_publication: Some(owns_publication),
            lsn: None,
        };
        self.lake.set_state(&fence, PipelineState::Creating, &change).await?;
        failpoint("creating");
        if !exists {
            let sent: Vec<_> = chosen.iter().map(ChosenTable::sent).collect();
            publication::create(&self.session, &source.publication, &sent).await?;
        }
        let published = self.published(&self.session).await?;
        let mut sources = Vec::with_capacity(chosen.len());
        for table in chosen {
            sources.push(self.publish(&self.session, &published, table).await?);
        }
        if slot.is_some() {
            slot::drop(&self.session, &source.slot).await?;
        }
        slot::drop(&self.session, &self.copy_slot()).await?;
        let created = replication.create_slot(&source.slot).await?;
        failpoint("slot");
        let holder = SnapshotHolder::import(&self.settings, &created.snapshot).await?;
        for described in &sources {
            prepare::check_unchanged(&self.session, described, &source.publication).await?;
        }
        let change = PipelineChange { lsn: Some(created.consistent_point), ..PipelineChange::default() };
        self.lake.set_state(&fence, PipelineState::Snapshot, &change).await?;

        let mut tables = Vec::with_capacity(chosen.len());
        for (table, described) in chosen.iter().zip(sources) {
            let lake = self.lake.create_table(&fence, &table.new_table(true)).await?;
            let layout = Arc::new(table.layout.clone());
            let progress = self.progress.table(&table.source.name, &table.target);
            progress.set_state(TableState::Snapshot);
            progress.set_rows_total_estimate(table.source.estimated_rows);
            let selected = table.selected.clone();
            let partitioned = table.source.partitions.is_some();
            let ready = SyncTable { oid: table.source.oid, selected, partitioned, layout, lake, progress };
            tables.push((Arc::new(ready), described));
        }
        for (_, source) in &mut tables {
            holder.settle(source).await?;
        }
        let pipeline = self.pipeline(fence);
        self.lake.refresh_views(&pipeline.fence).await?;
        self.remove_orphans(&pipeline).await?;
        let table_ids: Vec<i64> = tables.iter().map(|(table, _)| table.lake.table_id).collect();
        self.lake.begin_copy(&pipeline.fence, &table_ids).await?;
        for row in self.lake.tables(&self.config.name).await? {
            let Some(table_id) = row.table_id.filter(|id| !table_ids.contains(id)) else { continue };
            if tables.iter().any(|(table, _)| table.oid == row.source_oid) {
                // It is copied under another name.
                self.lake.end_table(&pipeline.fence, table_id).await?;
            } else {
                self.stop_table(&pipeline, &row, &left_out(&row)).await?;
            }
        }
        tracing::info!(slot = %source.slot, lsn = %created.consistent_point, tables = tables.len(), "copying");
        let copy = CopyOptions {
            settings: &self.settings,
            workers: self.config.sync.snapshot_workers,
            on_unrepresentable: self.config.sync.on_unrepresentable,
            identity: &self.identity,
            anew: self.options.resnapshot,
            range_pages: self.config.sync.range_pages(),
            lsn: created.consistent_point,
            alterations: HashMap::new(),
        };
        let finished = snapshot::copy_all(&pipeline, &copy, &holder, &tables, &self.stop).await?;
        holder.release().await;
        drop(replication);
        if !finished {
            return Ok(None);
        }
        failpoint("handoff");
        self.progress.applied(created.consistent_point);
        tracing::info!(lsn = %created.consistent_point, "the copy is complete; streaming");
        let until = until.map(|until| until.max(created.consistent_point));
        Ok(Some(Ready { pipeline, tables, from: created.consistent_point, state: TableState::Catchup, until }))
    }

    /// Goes on from the lake's position.
    async fn resume(&self, row: PipelineRow, chosen: Chosen, until: Option<Lsn>) -> Result<Ready> {
        let lsn = row.lsn.unwrap_or_default();
        let fence = self.lake.claim(&self.new_pipeline(row.owns_publication)).await?;
        self.on_timeline(&fence, &row, self.identity.timeline).await?;
        let pipeline = self.pipeline(fence);
        self.remove_orphans(&pipeline).await?;
        self.forget_former_names(&self.config.tables()).await?;
        self.forget_removals().await?;
        self.let_go(&pipeline, None).await?;
        self.lake.refresh_views(&pipeline.fence).await?;
        let rows = self.lake.tables(&row.name).await?;
        if rows.iter().all(|row| row.slot.is_none()) {
            // What joined the stream just before a process died left it behind.
            slot::drop(&self.session, &self.copy_slot()).await?;
        }
        let recorded = self.lake.definitions(&row.name).await?;
        let mut tables: Vec<Table> = Vec::new();
        let mut state = TableState::Streaming;
        for known in &rows {
            if known.state == TableState::Dropped
                && rows.iter().any(|row| row.source == known.source && row.state != known.state)
            {
                // Another one has its name.
                continue;
            }
            let shown = show(&self.progress, known);
            shown.add_nulled(known.values_nulled);
            if known.slot.is_some() || matches!(known.state, TableState::Pending | TableState::Snapshot) {
                // It is copied beside the stream.
                continue;
            }
            if matches!(known.state, TableState::Dropped | TableState::Paused) {
                continue;
            }
            if known.state == TableState::Errored {
                shown.fail(known.error.as_deref().unwrap_or("errored"));
                continue;
            }
            if known.is_anothers(&rows, known.source_oid) {
                let what = format!("{} is that of another table of the lake", known.source);
                let error = Error::new(ErrorKind::Table, what).remedy("let go of one: `duckpipe tables remove`");
                self.stop_table(&pipeline, known, &error).await?;
                continue;
            }
            let recorded = known.table_id.and_then(|table_id| recorded.get(&table_id));
            let own = self.chosen_by_former_name(known, &chosen).await?;
            match self.rejoin(known, recorded, own.as_deref().unwrap_or(&chosen.tables)).await {
                Ok(table) => tables.push(table),
                Err(error) if error.kind() == ErrorKind::Table => {
                    self.stop_table(&pipeline, known, &error).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if known.state == TableState::Catchup {
                state = TableState::Catchup;
            }
        }
        for error in &chosen.missing {
            tracing::warn!(%error, fix = error.remedy_text(), "a table of [[tables]] can't be followed; the others go on");
        }
        if until.is_some() {
            for table in chosen.tables.iter().filter(|t| !rows.iter().any(|row| row.source == t.source.name)) {
                tracing::warn!(table = %table.source.name, "a new table; a `sync` that goes on takes it in");
            }
        }
        self.progress.applied(lsn);
        tracing::info!(%lsn, tables = tables.len(), "streaming");
        Ok(Ready { pipeline, tables, from: lsn, state, until })
    }

    async fn stop_table(&self, pipeline: &Pipeline, row: &TableRow, error: &Error) -> Result<()> {
        tracing::error!(table = %row.source, %error, fix = error.remedy_text(), "the table stops; the others go on");
        let text = explain(error);
        if let Some(table_id) = row.table_id {
            let resync = pipeline.resyncs && error.is_mended_by_resync();
            self.lake.fail_table(&pipeline.fence, table_id, &text, resync).await?;
        }
        self.progress.table(&row.source, &row.target).fail(text);
        Ok(())
    }

    fn new_pipeline(&self, owns_publication: bool) -> NewPipeline {
        NewPipeline {
            name: self.config.name.clone(),
            system_id: self.identity.system_id.clone(),
            timeline: self.identity.timeline,
            slot: self.config.source.slot.clone(),
            publication: self.config.source.publication.clone(),
            owns_publication,
        }
    }

    fn pipeline(&self, fence: Fence) -> Arc<Pipeline> {
        Arc::new(Pipeline {
            lake: self.lake.clone(),
            store: self.store.clone(),
            fence,
            budget: self.budget,
            spill_directory: spill_directory(),
            progress: Arc::clone(&self.progress),
            slot: None,
            resyncs: self.config.sync.resyncs(),
        })
    }

    async fn remove_orphans(&self, pipeline: &Pipeline) -> Result<()> {
        let removed = self.lake.remove_orphans(&pipeline.fence, &self.store).await?;
        if removed > 0 {
            tracing::info!(removed, "removed files of an earlier run that never reached the lake");
        }
        Ok(())
    }

    async fn outcome(&self) -> Result<Outcome> {
        let rows = self.lake.tables(&self.config.name).await?;
        let errored_tables = rows.iter().filter(|row| row.state == TableState::Errored).count();
        Ok(Outcome { errored_tables })
    }
}

/// Where transactions go that exceed the memory: not `/tmp`, which is memory itself on many machines.
pub(crate) fn spill_directory() -> PathBuf {
    match std::env::var_os("TMPDIR") {
        Some(directory) => directory.into(),
        None if std::path::Path::new("/var/tmp").is_dir() => "/var/tmp".into(),
        None => std::env::temp_dir(),
    }
}
