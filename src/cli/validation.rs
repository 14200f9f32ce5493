//! Runs a validation and shows it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use duckpipe_storage::Store;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;

use super::arguments::ValidateArguments;
use super::log;
use super::sync_point::ThroughSync;
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::validate::{self, CompareOptions, FindingKind, Report, ValidateProgress};

const DRAW_INTERVAL: Duration = Duration::from_millis(200);
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Validates, with a bar on a terminal, else with a log line every ten seconds.
pub(super) async fn shown(
    config: &Config,
    arguments: &ValidateArguments,
    mut shutdown: watch::Receiver<bool>,
) -> Result<Report> {
    let progress = ValidateProgress::new();
    let point = ThroughSync::new(config, shutdown.clone());
    let work = run(config, arguments, &point, &progress);
    let bar = std::io::stderr().is_terminal().then(bar);
    let mut ticks = tokio::time::interval(if bar.is_some() { DRAW_INTERVAL } else { SUMMARY_INTERVAL });
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    tokio::pin!(work);
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = ticks.tick() => show(&progress, bar.as_ref()),
            _ = shutdown.wait_for(|told| *told) => {
                // What was begun in the source ends with its connections.
                validate::SyncPoint::release(&point).await;
                break Err(Error::new(ErrorKind::Transient, "stopped before the end"));
            }
        }
    };
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    ended
}

async fn run(
    config: &Config,
    arguments: &ValidateArguments,
    point: &ThroughSync<'_>,
    progress: &Arc<ValidateProgress>,
) -> Result<Report> {
    if !arguments.files {
        let options = CompareOptions {
            table: arguments.table.clone(),
            sample: arguments.sample,
            max_diffs: arguments.max_diffs.into(),
            source_connections: arguments.source_connections.into(),
            statement_timeout: arguments.statement_timeout,
            timeout: arguments.timeout,
            repair: arguments.repair,
        };
        return validate::compare(config, &options, point, progress).await;
    }
    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref())
        .await
        .because(ErrorKind::Precondition, || format!("{} can't be used as data_path", config.lake.data_path))?;
    let stored = validate::stored_files(&store).await?;
    let lake = point.open_lake().await?;
    let report = validate::check_files(config, &lake, (&store, stored), arguments.table.as_deref(), progress).await;
    lake.shutdown().await;
    let mut report = report?;
    if report.findings.iter().any(|finding| finding.kind == FindingKind::FileMissing) {
        let lake = point.open_lake().await?;
        let forgotten = validate::forget_removed(&lake, &mut report).await;
        lake.shutdown().await;
        forgotten?;
    }
    Ok(report)
}

fn bar() -> ProgressBar {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    log::above(&all);
    let bar = all.add(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{prefix:40!} {bar:30} {pos}/{len} {per_sec:>16} {eta:>4}") {
        bar.set_style(style);
    }
    bar
}

fn show(progress: &ValidateProgress, bar: Option<&ProgressBar>) {
    let (step, done) = progress.now();
    match bar {
        Some(bar) => {
            bar.set_prefix(step.what);
            // The total is an estimate: a bar must not stand at more than its end.
            bar.set_length(step.total.max(done));
            bar.set_position(done);
        }
        None => tracing::info!(step = step.what, done, of = step.total.max(done), "validating"),
    }
}
