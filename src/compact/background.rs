//! Compaction inside `sync`: a thread with a runtime of its own, so that no flush waits for a sort.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use duckpipe_storage::Store;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Compactor, Report, Request};
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::Lake;

/// A pass that somebody asked for, and where its report goes.
type Asked = (Request, oneshot::Sender<Result<Report>>);

/// The handle. Dropping it ends the thread at its next step; what it had not committed is undone by a later pass.
pub struct Background {
    asked: mpsc::Sender<Asked>,
}

impl Background {
    /// Starts it. With `scheduled` it works by the configuration's interval; asked, it works in any case.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where no thread can be had.
    pub fn start(config: &Config, lake: Lake, scheduled: bool, stop: watch::Receiver<bool>) -> Result<Background> {
        let (asked, requests) = mpsc::channel(1);
        let config = Arc::new(config.clone());
        let interval = (scheduled && config.compact.enabled).then_some(config.compact.interval);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.compact.threads)
            .thread_name("compact")
            .enable_all()
            .build()
            .because(ErrorKind::Internal, || "the compaction's runtime can't start".into())?;
        std::thread::Builder::new()
            .name("compact".into())
            .spawn(move || {
                runtime.block_on(run(config, lake, interval, requests, stop));
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .because(ErrorKind::Internal, || "the compaction's thread can't start".into())?;
        Ok(Background { asked })
    }

    /// A pass now, after the one that is under way.
    ///
    /// # Errors
    /// As [`Compactor::pass`]; [`ErrorKind::Transient`] where the process is ending.
    pub async fn pass(&self, request: &Request) -> Result<Report> {
        let ending = || Error::new(ErrorKind::Transient, "sync is ending").remedy("try again when it has ended");
        let (answer, answered) = oneshot::channel();
        self.asked.send((request.clone(), answer)).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }
}

async fn run(
    config: Arc<Config>,
    lake: Lake,
    interval: Option<Duration>,
    mut requests: mpsc::Receiver<Asked>,
    mut stop: watch::Receiver<bool>,
) {
    let mut compactor: Option<Compactor> = None;
    let mut told = HashSet::new();
    loop {
        let asked = tokio::select! {
            asked = requests.recv() => match asked {
                Some(asked) => Some(asked),
                None => return,
            },
            () = pause(interval) => None,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let (request, answer) = asked.map_or((Request::default(), None), |(request, answer)| (request, Some(answer)));
        let report = tokio::select! {
            report = pass(&mut compactor, &config, &lake, &request) => report,
            // The files of a rewrite that was begun are removed by the next pass, in whichever process.
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match (answer, report) {
            // Nobody may wait any more.
            (Some(answer), report) => drop(answer.send(report)),
            (None, Err(error)) => tracing::warn!(%error, "compaction failed; it is tried again"),
            (None, Ok(report)) => told = tell(&report, &told),
        }
    }
}

/// Says what could not be rewritten, where the pass before did not say so. Returns what is said now.
fn tell(report: &Report, told: &HashSet<(String, String)>) -> HashSet<(String, String)> {
    let why = report
        .tables
        .iter()
        .flat_map(|line| line.given_up.iter().chain(&line.left_out).map(|why| (line.table.clone(), why.clone())));
    let now: HashSet<(String, String)> = why.collect();
    for (table, why) in now.difference(told) {
        tracing::info!(table, why, "files of the table were not compacted");
    }
    now
}

/// The time until the next pass; for ever where there is no schedule.
async fn pause(interval: Option<Duration>) {
    match interval {
        Some(interval) => tokio::time::sleep(interval).await,
        None => std::future::pending().await,
    }
}

/// The store's connections belong to this runtime: it is opened here, once it is needed.
async fn pass(
    compactor: &mut Option<Compactor>,
    config: &Arc<Config>,
    lake: &Lake,
    request: &Request,
) -> Result<Report> {
    let compactor = match compactor {
        Some(compactor) => compactor,
        none => {
            let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref()).await?;
            none.insert(Compactor::new(Arc::clone(config), lake.clone(), store))
        }
    };
    compactor.pass(request).await
}
