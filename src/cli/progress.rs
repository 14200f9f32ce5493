//! Shows a running sync: bars on a terminal, else one log line every ten seconds.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;

use super::engine::{self, SyncOutcome};
use super::log;
use super::reload::Reloader;
use super::text::thousands;
use crate::config::{Config, display_size};
use crate::error::Result;
use crate::sync::progress::{Progress, TableProgress, TableState};

const DRAW_INTERVAL: Duration = Duration::from_millis(200);
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Runs a sync and shows it.
pub(super) async fn shown(
    (config, reloader): (Config, Reloader),
    once: bool,
    resnapshot: bool,
    shutdown: watch::Receiver<bool>,
) -> Result<SyncOutcome> {
    let progress = Progress::new();
    let mut view = View::new(std::io::stderr().is_terminal());
    let work = engine::sync((config, reloader), once, resnapshot, Arc::clone(&progress), shutdown);
    let mut ticks = tokio::time::interval(view.interval());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    tokio::pin!(work);
    loop {
        tokio::select! {
            outcome = &mut work => {
                view.finish(&progress);
                return outcome;
            }
            _ = ticks.tick() => view.show(&progress),
        }
    }
}

enum View {
    Bars(Box<Bars>),
    Lines(Rates),
}

impl View {
    fn new(terminal: bool) -> View {
        if terminal { View::Bars(Box::new(Bars::new())) } else { View::Lines(Rates::new()) }
    }

    fn interval(&self) -> Duration {
        match self {
            View::Bars(_) => DRAW_INTERVAL,
            View::Lines(_) => SUMMARY_INTERVAL,
        }
    }

    fn show(&mut self, progress: &Progress) {
        match self {
            View::Bars(bars) => bars.draw(progress),
            View::Lines(rates) => summarise(progress, rates),
        }
    }

    fn finish(&mut self, progress: &Progress) {
        match self {
            View::Bars(bars) => bars.clear(),
            View::Lines(rates) => summarise(progress, rates),
        }
        let (copied, applied) = progress.rows();
        let lsn = progress.applied_lsn().map(tracing::field::display);
        tracing::info!(
            rows_copied = copied,
            rows_applied = applied,
            commits = progress.commits(),
            applied_lsn = lsn,
            "sync ended"
        );
    }
}

/// Rows a second since the last look.
struct Rates {
    at: Instant,
    rows: (u64, u64),
}

impl Rates {
    fn new() -> Rates {
        Rates { at: Instant::now(), rows: (0, 0) }
    }

    /// Copied and applied rows a second since the last call.
    fn take(&mut self, progress: &Progress) -> (u64, u64) {
        let (now, rows) = (Instant::now(), progress.rows());
        let seconds = now.duration_since(self.at).as_secs_f64().max(0.001);
        let rate = |new: u64, old: u64| (new.saturating_sub(old) as f64 / seconds).round() as u64;
        let rates = (rate(rows.0, self.rows.0), rate(rows.1, self.rows.1));
        (self.at, self.rows) = (now, rows);
        rates
    }
}

/// Bytes that the lake is behind, and the seconds since its last commit.
fn lag(progress: &Progress) -> (Option<u64>, Option<f64>) {
    let bytes = progress.applied_lsn().zip(progress.source_lsn()).map(|(applied, source)| source.bytes_since(applied));
    let age = progress.last_commit_at().map(|at| (Utc::now() - at).num_milliseconds().max(0) as f64 / 1000.0);
    (bytes, age)
}

fn summarise(progress: &Progress, rates: &mut Rates) {
    let (copied_rate, applied_rate) = rates.take(progress);
    let (copied, applied) = progress.rows();
    let mut states: HashMap<TableState, usize> = HashMap::new();
    for table in progress.tables() {
        *states.entry(table.state()).or_default() += 1;
    }
    let count = |state| states.get(&state).copied().unwrap_or(0);
    let (lag_bytes, last_commit_age) = lag(progress);
    tracing::info!(
        pending = count(TableState::Pending),
        snapshot = count(TableState::Snapshot),
        catchup = count(TableState::Catchup),
        streaming = count(TableState::Streaming),
        errored = count(TableState::Errored),
        rows_copied = copied,
        rows_copied_per_second = copied_rate,
        rows_applied = applied,
        rows_applied_per_second = applied_rate,
        applied_lsn = progress.applied_lsn().map(tracing::field::display),
        lag_bytes,
        buffered_bytes = progress.buffered_bytes(),
        commits = progress.commits(),
        seconds_since_commit = last_commit_age,
        "progress"
    );
}

/// A bar for each table that is being copied, and a line for the stream.
struct Bars {
    all: MultiProgress,
    tables: HashMap<String, ProgressBar>,
    line: ProgressBar,
    rates: Rates,
    rate: (u64, u64),
}

impl Bars {
    fn new() -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        log::above(&all);
        let line = all.add(ProgressBar::new_spinner());
        line.set_style(style("{spinner} {msg}"));
        Bars { all, tables: HashMap::new(), line, rates: Rates::new(), rate: (0, 0) }
    }

    fn draw(&mut self, progress: &Progress) {
        for table in progress.tables() {
            self.draw_table(&table);
        }
        // A rate over a fifth of a second jumps about; over a second it can be read.
        if self.rates.at.elapsed() >= Duration::from_secs(1) {
            self.rate = self.rates.take(progress);
        }
        self.line.set_message(stream_line(progress, self.rate));
        self.line.tick();
    }

    fn draw_table(&mut self, table: &TableProgress) {
        let name = table.source().to_string();
        match table.state() {
            TableState::Snapshot => {
                let total = table.rows_total_estimate();
                let bar = self.tables.entry(name.clone()).or_insert_with(|| {
                    let bar = self.all.insert_before(&self.line, ProgressBar::new(total.unwrap_or(0)));
                    bar.set_style(style(match total {
                        Some(_) => "{prefix:30!} {bar:30} {msg:>14} {per_sec:>16} {eta:>4}",
                        None => "{prefix:30!} {spinner} {msg:>14} {per_sec:>16}",
                    }));
                    bar.set_prefix(name);
                    bar
                });
                let copied = table.rows_copied();
                // The planner's number is an estimate: a bar must not stand at more than its end.
                bar.set_length(total.unwrap_or(0).max(copied));
                bar.set_position(copied);
                bar.set_message(format!("{} rows", thousands(copied)));
            }
            _ => {
                if let Some(bar) = self.tables.remove(&name) {
                    bar.finish_and_clear();
                    self.all.remove(&bar);
                    if table.state() != TableState::Errored {
                        tracing::info!(table = %name, rows = table.rows_copied(), "copied");
                    }
                }
            }
        }
    }

    fn clear(&mut self) {
        for (_, bar) in self.tables.drain() {
            bar.finish_and_clear();
        }
        self.line.finish_and_clear();
        let _ = self.all.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that indicatif refuses would show its own default; the test below keeps ours valid.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// The live line: `3 streaming, 1 errored · 12,345 rows/s · 1.2 MB behind · last commit 0.4 s ago · 16/B374D848`.
fn stream_line(progress: &Progress, (copied_rate, applied_rate): (u64, u64)) -> String {
    let tables = progress.tables();
    let states = [
        TableState::Pending,
        TableState::Snapshot,
        TableState::Catchup,
        TableState::Streaming,
        TableState::Errored,
        TableState::Dropped,
        TableState::Paused,
    ];
    let counted: Vec<String> = states
        .into_iter()
        .map(|state| (state, tables.iter().filter(|table| table.state() == state).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let mut parts = vec![if counted.is_empty() { "starting".to_owned() } else { counted.join(", ") }];
    if !counted.is_empty() {
        parts.push(format!("{} rows/s", thousands(copied_rate + applied_rate)));
    }
    let (bytes, age) = lag(progress);
    match bytes {
        Some(0) => parts.push("level".to_owned()),
        Some(bytes) => parts.push(format!("{} behind", display_size(bytes))),
        None => {}
    }
    if let Some(age) = age {
        parts.push(format!("last commit {age:.1} s ago"));
    }
    if let Some(lsn) = progress.applied_lsn() {
        parts.push(lsn.to_string());
    }
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::source::table::TableName;

    #[test]
    fn the_line_says_where_the_pipeline_is() {
        let progress = Progress::new();
        assert_eq!(stream_line(&progress, (0, 0)), "starting");
        let name = TableName { schema: "public".into(), table: "orders".into() };
        let table = progress.table(&name, &name);
        table.set_state(TableState::Streaming);
        progress.applied(Lsn(1000));
        progress.received(Lsn(2_001_000));
        assert_eq!(stream_line(&progress, (0, 1234)), "1 streaming · 1,234 rows/s · 2.0 MB behind · 0/3E8");
    }

    #[test]
    fn bars_draw_every_state() {
        let progress = Progress::new();
        let mut bars = Bars::new();
        bars.all.set_draw_target(ProgressDrawTarget::hidden());
        for (table, total) in [("a", 10), ("b", -1)] {
            let name = TableName { schema: "public".into(), table: table.into() };
            let table = progress.table(&name, &name);
            table.set_rows_total_estimate(total);
            table.set_state(TableState::Snapshot);
            table.add_rows_copied(20);
        }
        bars.draw(&progress);
        assert_eq!(bars.tables.len(), 2);
        assert_eq!(bars.tables["public.a"].length(), Some(20));
        for table in progress.tables() {
            table.set_state(TableState::Streaming);
        }
        bars.draw(&progress);
        assert!(bars.tables.is_empty());
        bars.clear();
    }

    #[test]
    fn templates_are_valid() {
        for template in [
            "{spinner} {msg}",
            "{prefix:30!} {bar:30} {msg:>14} {per_sec:>16} {eta:>4}",
            "{prefix:30!} {spinner} {msg:>14} {per_sec:>16}",
        ] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
