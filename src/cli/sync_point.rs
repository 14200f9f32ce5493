//! How `validate` has the lake show one source position exactly: through the `sync` that runs, wherever it can be asked, else by a
//! run of its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use duckpipe_storage::Store;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::catalog_copy::CatalogCopy;
use super::engine::CATALOG_MEMORY;
use super::reload::Reloader;
use crate::admin;
use crate::config::{CatalogLocation, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, LakeSettings, PipelineState, RequestRow, RequestState};
use crate::lsn::Lsn;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::sync::boundary::{Boundary, STANDS};
use crate::sync::progress::Progress;
use crate::sync::repair::Repair;
use crate::sync::{self, RunOptions};
use crate::validate::{SyncPoint, columns_changed};

/// How often a row in the catalog is looked at.
const POLL: Duration = Duration::from_millis(150);

/// The way to the pipeline's `sync`, or in its place.
pub(super) struct ThroughSync<'a> {
    config: &'a Config,
    shutdown: watch::Receiver<bool>,
    way: Mutex<Way>,
    /// Lives as long as the lake that was opened from it.
    copy: Mutex<Option<CatalogCopy>>,
    /// Asks again and again that the lake stand still.
    standing: Mutex<Option<JoinSet<()>>>,
}

/// How often that is asked: some times before the stream would go on.
const ASK_AGAIN: Duration = Duration::from_secs(STANDS.as_secs() / 6);

#[derive(Clone)]
enum Way {
    /// Not yet known.
    Unknown,
    /// The control socket beside the catalog's file.
    Socket(PathBuf),
    /// A row in the Postgres catalog.
    Row { lake: Lake, id: String },
    /// No sync is running.
    Own,
}

impl<'a> ThroughSync<'a> {
    pub(super) fn new(config: &'a Config, shutdown: watch::Receiver<bool>) -> Self {
        ThroughSync {
            config,
            shutdown,
            way: Mutex::new(Way::Unknown),
            copy: Mutex::new(None),
            standing: Mutex::new(None),
        }
    }

    fn way(&self) -> Way {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn go(&self, way: Way) {
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = way;
    }

    /// The lake, read-only: the catalog itself where it can be shared, else a copy.
    pub(super) async fn open_lake(&self) -> Result<Lake> {
        let catalog = match &self.config.lake.catalog {
            CatalogLocation::File(file) => {
                let copy = CatalogCopy::of(file).await?;
                let path = copy.path();
                *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy);
                CatalogLocation::File(path)
            }
            shared => shared.clone(),
        };
        Lake::open(&LakeSettings { catalog, ..self.config.lake_settings(CATALOG_MEMORY, true) }).await
    }

    /// Has the stream stand where it is, until the position is released. Whether it does is seen when something is committed there.
    fn keep_standing(&self, lsn: Lsn) {
        let (way, pipeline) = (self.way(), self.config.name.clone());
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            loop {
                tokio::time::sleep(ASK_AGAIN).await;
                let asked = match &way {
                    Way::Socket(file) => admin::stand(file, lsn).await.map(drop),
                    Way::Row { lake, id } => lake.renew_request(&pipeline, id).await,
                    Way::Own | Way::Unknown => return,
                };
                if let Err(error) = asked {
                    tracing::debug!(%error, "the stream does not stand still");
                }
            }
        });
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(asking);
    }

    /// Follows columns that the source has changed, before a position is chosen: a run that has to stop at one does not look for them.
    async fn follow_columns(&self) -> Result<()> {
        let lake = self.open_lake().await?;
        let changed = columns_changed(self.config, &lake).await;
        lake.shutdown().await;
        if changed? { self.catch_up(None).await } else { Ok(()) }
    }

    /// Brings the lake to the position by a run that stops there; `None`: to where the source is.
    async fn catch_up(&self, until: Option<Lsn>) -> Result<()> {
        // A pipeline that was never copied is not to be copied by the way.
        let lake = self.open_lake().await?;
        let row = lake.pipeline(&self.config.name).await?;
        lake.shutdown().await;
        if row.is_none_or(|row| row.state != PipelineState::Streaming) {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!("the lake holds no complete copy of the pipeline {}", self.config.name),
            )
            .remedy("run `duckpipe sync` first"));
        }
        let to = until.map_or_else(|| "where the source is".to_owned(), |lsn| lsn.to_string());
        tracing::info!(%to, "no sync is running; catching up");
        let (opened, _) = oneshot::channel();
        let options = RunOptions { once: true, resnapshot: false, until };
        let boundary = Arc::new(Boundary::default());
        sync::run(self.config, options, Progress::new(), boundary, self.shutdown.clone(), opened).await?;
        if *self.shutdown.borrow() {
            return Err(Error::new(ErrorKind::Transient, "stopped before the lake had caught up"));
        }
        Ok(())
    }
}

#[async_trait]
impl SyncPoint for ThroughSync<'_> {
    async fn hold(&self, patience: Duration) -> Result<()> {
        match &self.config.lake.catalog {
            CatalogLocation::File(file) => {
                self.go(Way::Socket(file.clone()));
                let deadline = tokio::time::Instant::now() + patience;
                while admin::hold(file, patience).await?.is_none() {
                    if !sync_runs(self.config).await? {
                        self.go(Way::Own);
                        return self.follow_columns().await;
                    }
                    // One that is starting answers soon.
                    if tokio::time::Instant::now() >= deadline {
                        return Err(Error::new(ErrorKind::Transient, "a sync is running, but does not answer")
                            .context(format!("the control socket of {}", file.display()))
                            .remedy("run this command on the machine, and as the user, that runs sync"));
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
            CatalogLocation::Postgres { .. } => {
                if !sync_runs(self.config).await? {
                    self.go(Way::Own);
                    return self.follow_columns().await;
                }
                let lake = Lake::open(&self.config.lake_settings(CATALOG_MEMORY, false)).await?;
                let id = Uuid::new_v4().to_string();
                if !lake.place_request(&self.config.name, &id, RequestState::Hold, patience).await? {
                    return Err(Error::new(ErrorKind::Transient, "another `duckpipe validate` is under way")
                        .remedy("wait for its end"));
                }
                self.go(Way::Row { lake: lake.clone(), id: id.clone() });
                follow(&lake, &self.config.name, &id, RequestState::Hold).await?;
            }
        }
        Ok(())
    }

    async fn reach(&self, lsn: Lsn, patience: Duration, stands: bool) -> Result<(Lake, i64)> {
        match self.way() {
            Way::Socket(file) => {
                let Some(snapshot) = admin::flush_at(&file, lsn, patience, stands).await? else {
                    return Err(ended_meanwhile());
                };
                if stands {
                    self.keep_standing(lsn);
                }
                Ok((self.open_lake().await?, snapshot))
            }
            Way::Row { lake, id } => {
                let state = if stands { RequestState::Stand } else { RequestState::Flush };
                let wanted =
                    RequestRow { id: id.clone(), state, lsn: Some(lsn), snapshot: None, message: None, patience };
                lake.move_request(&self.config.name, RequestState::Holding, &wanted).await?;
                let reached = follow(&lake, &self.config.name, &id, state).await;
                if stands && reached.is_ok() {
                    self.keep_standing(lsn);
                } else {
                    lake.withdraw_request(&self.config.name, &id).await?;
                    lake.shutdown().await;
                    self.go(Way::Own);
                }
                let snapshot = reached?.snapshot.unwrap_or_default();
                Ok((self.open_lake().await?, snapshot))
            }
            Way::Own | Way::Unknown => {
                if sync_runs(self.config).await? {
                    return Err(Error::new(ErrorKind::Transient, "a sync has begun meanwhile").remedy("try again"));
                }
                self.catch_up(Some(lsn)).await?;
                let lake = self.open_lake().await?;
                // The position last: where it is the one that is wanted, the snapshot before shows no other.
                let snapshot = lake.latest_snapshot().await?;
                match lake.pipeline(&self.config.name).await?.and_then(|row| row.lsn) {
                    Some(at) if at == lsn => Ok((lake, snapshot)),
                    // Nothing held the others off.
                    Some(at) if at > lsn => Err(Error::new(
                        ErrorKind::Transient,
                        format!("the lake is at {at} already, past {lsn}: a sync has run meanwhile"),
                    )
                    .remedy("try again")),
                    at => Err(Error::new(
                        ErrorKind::Transient,
                        format!("the lake is at {}, not yet at {lsn}", at.unwrap_or_default()),
                    )),
                }
            }
        }
    }

    async fn repair(&self, repair: Repair) -> Result<(Lake, i64)> {
        let snapshot = match self.way() {
            Way::Socket(file) => admin::repair(&file, &repair).await?.ok_or_else(ended_meanwhile)?,
            Way::Row { .. } | Way::Own | Way::Unknown => {
                let store = Store::open(&self.config.lake.data_path, self.config.s3_settings().as_ref()).await?;
                let settings = self.config.lake_settings(CATALOG_MEMORY, false);
                let lake = Lake::open_with_store(&settings, &store).await?;
                let repaired = sync::repair::repair(self.config, &lake, &store, repair).await;
                lake.shutdown().await;
                repaired?
            }
        };
        Ok((self.open_lake().await?, snapshot))
    }

    async fn release(&self) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let ended = match self.way() {
            Way::Socket(file) => admin::release(&file).await.map(drop),
            Way::Row { lake, id } => lake.withdraw_request(&self.config.name, &id).await,
            Way::Own | Way::Unknown => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "the hold ends by itself");
        }
    }
}

fn ended_meanwhile() -> Error {
    Error::new(ErrorKind::Transient, "the sync ended meanwhile").remedy("try again")
}

/// Whether a `sync` holds the pipeline's lock in the source. The answer's own session ends with it.
async fn sync_runs(config: &Config) -> Result<bool> {
    let session = Session::connect(&SourceSettings::parse(&config.source.url)?).await?;
    Ok(!session.try_lock(&format!("duckpipe:{}", config.source.slot)).await?)
}

/// Waits until the request has left the state, which is an error where it failed or became void.
async fn follow(lake: &Lake, pipeline: &str, id: &str, from: RequestState) -> Result<RequestRow> {
    loop {
        match lake.request(pipeline).await? {
            Some(row) if row.id == id && row.state == from => tokio::time::sleep(POLL).await,
            Some(row) if row.id == id && row.state != RequestState::Failed => return Ok(row),
            Some(RequestRow { id: other, message: Some(message), .. }) if other == id => {
                return Err(Error::new(ErrorKind::Transient, message).context("the running sync"));
            }
            _ => {
                return Err(Error::new(ErrorKind::Transient, "the running sync did not answer in time")
                    .remedy("`duckpipe status` shows it; it may be of an earlier version"));
            }
        }
    }
}

/// Has the pipeline's `sync` on a Postgres catalog read its configuration again. Says whether one is running.
pub(super) async fn ask_for_reload(config: &Config, patience: Duration) -> Result<bool> {
    if !sync_runs(config).await? {
        return Ok(false);
    }
    let lake = Lake::open(&config.lake_settings(CATALOG_MEMORY, false)).await?;
    let id = Uuid::new_v4().to_string();
    let begun = Instant::now();
    let asked = async {
        // A validation that is under way comes to its end first.
        while !lake.place_request(&config.name, &id, RequestState::Reload, patience).await? {
            if begun.elapsed() > patience {
                return Err(Error::new(ErrorKind::Transient, "the running sync is asked something else all the time")
                    .remedy("the file is changed; send SIGHUP to the running sync"));
            }
            tokio::time::sleep(POLL).await;
        }
        follow(&lake, &config.name, &id, RequestState::Reload).await?;
        lake.withdraw_request(&config.name, &id).await
    };
    let asked = asked.await;
    lake.shutdown().await;
    asked.map(|()| true)
}

/// The running sync's side on a Postgres catalog: carries requests to the stream, for ever.
pub(super) async fn answer(lake: &Lake, pipeline: &str, boundary: &Boundary, reloader: &Reloader) {
    loop {
        tokio::time::sleep(POLL).await;
        if let Err(error) = answer_one(lake, pipeline, boundary, reloader).await {
            // The catalog's own troubles are met, and told, by the flushes.
            tracing::debug!(%error, "requests can't be read");
            tokio::time::sleep(POLL * 10).await;
        }
    }
}

async fn answer_one(lake: &Lake, pipeline: &str, boundary: &Boundary, reloader: &Reloader) -> Result<()> {
    let Some(row) = lake.request(pipeline).await? else {
        // Withdrawn, or whoever placed it is gone.
        boundary.release();
        return Ok(());
    };
    let failed =
        |error: Error| RequestRow { state: RequestState::Failed, message: Some(error.to_string()), ..row.clone() };
    let answer = match (row.state, row.lsn) {
        (RequestState::Hold, _) => match boundary.hold(row.patience).await {
            Ok(()) => RequestRow { state: RequestState::Holding, ..row.clone() },
            Err(error) => failed(error),
        },
        (RequestState::Flush, Some(lsn)) => match boundary.flush_at(lsn, row.patience, false).await {
            Ok(snapshot) => RequestRow { state: RequestState::Reached, snapshot: Some(snapshot), ..row.clone() },
            Err(error) => failed(error),
        },
        (RequestState::Stand, Some(lsn)) => match boundary.flush_at(lsn, row.patience, true).await {
            Ok(snapshot) => {
                let snapshot = Some(snapshot);
                RequestRow { state: RequestState::Standing, snapshot, patience: STANDS, ..row.clone() }
            }
            Err(error) => failed(error),
        },
        (RequestState::Standing, Some(lsn)) => match boundary.stand(lsn) {
            Ok(()) => return Ok(()),
            Err(error) => failed(error),
        },
        (RequestState::Reload, _) => match reloader.reload() {
            Ok(()) => RequestRow { state: RequestState::Reloaded, ..row.clone() },
            Err(error) => failed(error),
        },
        _ => return Ok(()),
    };
    lake.move_request(pipeline, row.state, &answer).await
}
