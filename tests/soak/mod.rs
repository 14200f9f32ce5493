//! Random updates without end, with automatic compaction: the lake keeps its size, and a scan its time.
//!
//! One harness in two sizes. CI runs half a minute on a small table (`tests/compaction.rs`); `make soak` an hour on 5M rows, on both
//! catalogs at the same time. What is measured: `docs/soak.md`.

mod growth;
mod sample;
mod updates;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use growth::{Growth, Tolerance};
pub use sample::Sample;

use crate::lab::{CatalogKind, Combination, Duckpipe, Lake, Options, Postgres, Running, StoreKind};
use crate::scenario::{Scenario, seed};
use crate::workload::Writer;
pub use updates::Rate;

/// The table.
const TABLE: &str = "public.items";
/// The metadata tables, as stock DuckDB names them.
const METADATA: &str = "__ducklake_metadata_lake";
/// Where the whole runs: each catalog with the store that goes with it.
const COMBINATIONS: [Combination; 2] =
    [Combination::EMBEDDED, Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 }];

/// The size of a soak.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rows of the table, about 100 bytes each.
    pub rows: u64,
    /// How fast each table is written to.
    pub rate: Rate,
    /// Time before the halves that are compared.
    pub warm_up: Duration,
    /// Both halves together.
    pub duration: Duration,
    /// The time between two samples.
    pub interval: Duration,
    /// Scans per sample, of which the fastest counts; none: scans are not timed.
    pub scans: u32,
    /// The text of the configuration after source and lake.
    pub settings: &'static str,
    /// Tables of the catalog that can't level off within the duration.
    pub left_out: &'static [&'static str],
    /// Whether files in the store can level off within the duration.
    pub stored: bool,
    /// What counts as growth.
    pub tolerance: Tolerance,
}

/// The hour, unless the environment says otherwise. `[compact]` is the default but for two settings: `retain`, and `delete_grace`, for
/// what was replaced stays in the store so long: with its default, an hour, the store would grow for an hour, whatever compaction does.
fn the_whole() -> Plan {
    let number = |name: &str, default: f64| {
        let text = std::env::var(format!("DUCKPIPE_SOAK_{name}")).ok();
        text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("DUCKPIPE_SOAK_{name}: no number: {text}")))
    };
    Plan {
        rows: number("ROWS", 5e6) as u64,
        rate: Rate { transactions: number("RATE", 20.0), updates: number("UPDATES", 50.0) as u32 },
        warm_up: Duration::ZERO,
        duration: Duration::from_secs_f64(number("MINUTES", 60.0) * 60.0),
        interval: Duration::from_secs_f64(number("INTERVAL", 30.0)),
        scans: 10,
        settings: "[compact]\nretain = \"5m\"\ndelete_grace = \"1m\"\n",
        left_out: &[],
        stored: true,
        tolerance: Tolerance { factor: 1.2, handful: 0.0 },
    }
}

#[test]
#[ignore = "an hour: make soak"]
fn an_hour_of_random_updates() {
    let plan = the_whole();
    let options = Options::default()
        .set("shared_buffers", "512MB")
        .set("max_wal_size", "8GB")
        .set("checkpoint_timeout", "15min")
        .set("autovacuum_naptime", "1min");
    let postgres = Postgres::start(options);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("soak");
    std::fs::create_dir_all(&folder).expect("the folder of the numbers");
    let soaks: Vec<_> = COMBINATIONS.map(|combination| Soak::prepare(&postgres, "soak", combination, &plan)).into();
    let running = soaks.iter().map(|soak| soak.start(Some(&folder))).collect();
    let outcomes = run(&plan, running);
    println!("\n{}", sample::markdown(&outcomes, &plan));
    let grown: Vec<String> = outcomes.iter().flat_map(|outcome| outcome.grown(&plan)).collect();
    assert!(grown.is_empty(), "{grown:#?}");
}

/// The fewest samples that tell two halves apart.
const FEWEST_SAMPLES: usize = 20;

/// A short one on one lake, for CI.
pub fn soak(name: &str, combination: Combination, plan: &Plan) -> Outcome {
    let soak = Soak::prepare(Postgres::shared(), name, combination, plan);
    let outcome = run(plan, vec![soak.start(None)]).remove(0);
    for growth in outcome.growth(plan) {
        println!("{growth}");
    }
    let grown = outcome.grown(plan);
    assert!(grown.is_empty(), "{grown:#?}");
    outcome
}

/// A pipeline whose source is filled.
struct Soak<'a> {
    scenario: Scenario<'a>,
    rate: Rate,
    rows: u64,
}

/// A pipeline at work.
struct Active<'a> {
    soak: &'a Soak<'a>,
    sync: Running<'a>,
    writer: Option<Writer>,
    csv: Option<File>,
    samples: Vec<Sample>,
}

/// What was seen of a lake.
pub struct Outcome {
    /// Which one.
    pub combination: Combination,
    /// The samples, in time.
    pub samples: Vec<Sample>,
    /// What the two validations said at the end.
    pub validated: [String; 2],
}

impl<'a> Soak<'a> {
    fn prepare(postgres: &'a Postgres, name: &str, combination: Combination, plan: &Plan) -> Soak<'a> {
        let name = format!("{name}_{}", combination.name());
        let source = postgres.database(&name);
        updates::create(&source, plan.rows);
        let lake = Lake::with_catalog_on(|| postgres, combination, &name);
        let settings = format!("{}{}", plan.settings, Duckpipe::tables(&[TABLE]));
        let duckpipe = Duckpipe::new(&name, &source.url(), &lake, &settings);
        Soak { scenario: Scenario { duckpipe, source, lake, name }, rate: plan.rate, rows: plan.rows }
    }

    /// Copies the table and begins to write to it.
    fn start(&'a self, folder: Option<&PathBuf>) -> Active<'a> {
        let name = &self.scenario.name;
        let mut sync = self.scenario.duckpipe.sync();
        let patience = Duration::from_secs(60 + self.rows / 5_000);
        sync.wait_until("the first copy", patience, |status| status.all("streaming"));
        let writer = updates::start(&self.scenario.source.url(), self.rows, self.rate, seed(name, 0x50A6));
        let csv = folder.map(|folder| {
            let path = folder.join(format!("{name}.csv"));
            println!("{name}: {}", path.display());
            let mut file = File::create(path).expect("the file of the numbers");
            writeln!(file, "{}", Sample::HEAD.join(",")).expect("a line");
            file
        });
        Active { soak: self, sync, writer: Some(writer), csv, samples: Vec::new() }
    }
}

/// Takes samples of all until the time is over; then each must be equal to its source, with its files as they should be.
fn run(plan: &Plan, mut all: Vec<Active<'_>>) -> Vec<Outcome> {
    let start = Instant::now();
    let end = plan.warm_up + plan.duration;
    println!("{}", Sample::HEAD.join(" "));
    // On a busy machine a sample takes long: there must be enough of them.
    while start.elapsed() < end || all[0].samples.len() < FEWEST_SAMPLES {
        for active in &mut all {
            active.sample(start, plan);
        }
        let due = all[0].samples.len() as u32 * plan.interval;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let writers: Vec<u64> = all.iter_mut().map(|active| active.writer.take().expect("a writer").stop()).collect();
    println!("transactions written: {writers:?}");
    all.into_iter().map(Active::end).collect()
}

impl Active<'_> {
    fn sample(&mut self, start: Instant, plan: &Plan) {
        assert!(self.sync.runs(), "{}", self.sync.tail());
        let writer = self.writer.as_ref().expect("a writer");
        assert!(writer.runs(), "the writer failed");
        let sample = Sample::take(&self.soak.scenario, &self.sync, writer.written(), start, plan.scans);
        println!("{} {}", self.soak.scenario.lake.combination().name(), sample.fields().join(" "));
        if let Some(file) = &mut self.csv {
            writeln!(file, "{}", sample.fields().join(",")).expect("a line");
        }
        self.samples.push(sample);
    }

    fn end(mut self) -> Outcome {
        let Scenario { duckpipe, source, lake, name } = &self.soak.scenario;
        let patience = Duration::from_secs(120 + self.soak.rows / 5_000);
        self.sync.wait_for_lsn(source.lsn(), patience);
        let equal = duckpipe.run_within(&["validate"], patience).expect(0).stdout;
        self.sync.terminate().expect(0);
        let recorded = format!("SELECT count(*) FROM {METADATA}.duckpipe_upload WHERE pipeline = '{name}'");
        assert_eq!(lake.open_native().number(&recorded), 0, "uploads of a sync that has nothing to upload");
        let files = duckpipe.run_within(&["validate", "--files"], patience).expect(0).stdout;
        let validated = [equal, files].map(|text| text.trim().to_owned());
        println!("{name}: {}\n{}", validated[0], validated[1]);
        Outcome { combination: lake.combination(), samples: self.samples, validated }
    }
}

impl Outcome {
    /// The maxima of both halves, each measure a line.
    pub fn growth(&self, plan: &Plan) -> Vec<Growth> {
        growth::growth(&self.samples, plan)
    }

    /// What grew more than it may.
    pub fn grown(&self, plan: &Plan) -> Vec<String> {
        let grown = self.growth(plan).into_iter().filter(|growth| growth.judged && !growth.within(plan.tolerance));
        grown.map(|growth| format!("{}: {growth}", self.combination.name())).collect()
    }
}
