//! Compaction beside DuckLake's own, in one run: rows per second, peak memory, and the time of a scan afterwards beside a table
//! freshly written by DuckDB.
//!
//! `make bench-compaction`; `DUCKPIPE_BENCH_FILES` and `DUCKPIPE_BENCH_FILE_ROWS` set the sizes, `DUCKPIPE_BENCH_ROUNDS` how often
//! each is run, in turn: the best time counts, of memory and scans the worst.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code, unused_imports)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Combination, Database, Duckpipe, Lake, NativeLake, Options, Postgres};

/// Scans are timed so often, and the best is kept: the machine's noise only ever adds.
const SCANS: usize = 5;
/// The memory that each side may use.
const MEMORY: &str = "512MB";

fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    // A process of its own for DuckLake's, so that its memory can be told apart.
    if let [_, which, catalog, data] = arguments.as_slice()
        && which.starts_with("ducklake_")
    {
        return native(which, catalog, data);
    }
    // `cargo test --benches` and `cargo bench` both run this; only the latter measures.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let postgres = Postgres::start(Options::default());
    let files = size("DUCKPIPE_BENCH_FILES", 200);
    let rows = size("DUCKPIPE_BENCH_FILE_ROWS", 50_000);
    let rounds = size("DUCKPIPE_BENCH_ROUNDS", 3);
    println!(
        "{files} files of {rows} rows, {MEMORY}, 2 threads; {rounds} rounds: the best time, the worst of the rest"
    );
    for deleted in [Deleted::Nothing, Deleted::Some, Deleted::SomeStillShown] {
        println!("{}", deleted.text());
        let native = match deleted {
            Deleted::Nothing => "ducklake_merge_adjacent_files",
            _ => "ducklake_rewrite_data_files",
        };
        let mut all = [native, "duckpipe compact, unsorted", "duckpipe compact, sorted by the key"].map(Measured::new);
        for round in 0..rounds {
            for measured in all.iter_mut().filter(|measured| is_wanted(deleted, measured.which)) {
                let which = measured.which;
                let name = format!("bench_{}_{}_{round}", deleted as u8, which.len());
                let place = Place::new(&postgres, &name, which);
                place.fill(files, rows, deleted);
                let (took, peak) = if which == native { place.native(native) } else { place.ours() };
                measured.times.push(took);
                measured.peak = measured.peak.max(peak);
                measured.scan = measured.scan.max(place.scan_ratio());
            }
        }
        all.iter().filter(|measured| !measured.times.is_empty()).for_each(|measured| measured.print(files * rows));
    }
}

fn is_wanted(deleted: Deleted, which: &str) -> bool {
    std::env::var("DUCKPIPE_BENCH_ONLY").map_or(true, |only| format!("{}: {which}", deleted.text()).contains(&only))
}

/// One way of compacting, over all rounds.
struct Measured {
    which: &'static str,
    times: Vec<Duration>,
    /// Bytes.
    peak: u64,
    /// A scan's time afterwards, by that of a fresh table.
    scan: f64,
}

impl Measured {
    fn new(which: &'static str) -> Measured {
        Measured { which, times: Vec::new(), peak: 0, scan: 0.0 }
    }

    fn print(&self, rows: u64) {
        let best = self.times.iter().min().unwrap();
        println!(
            "{:<36} {best:>6.2?} {:>9.0} rows/s {:>4} MB peak, scan {:.2} of a fresh table  {:.2?}",
            self.which,
            rows as f64 / best.as_secs_f64(),
            self.peak / 1_000_000,
            self.scan,
            self.times
        );
    }
}

/// What was deleted before.
#[derive(Clone, Copy, PartialEq)]
enum Deleted {
    Nothing,
    Some,
    /// By the last snapshot, whose changes are still to be read: ours keeps the rows in the merged file.
    SomeStillShown,
}

impl Deleted {
    fn text(self) -> &'static str {
        match self {
            Deleted::Nothing => "nothing deleted",
            Deleted::Some => "10 % of the rows deleted",
            Deleted::SomeStillShown => "10 % deleted by the last snapshot",
        }
    }
}

/// A lake with one table that a pipeline owns.
struct Place<'a> {
    lake: Lake,
    duckpipe: Duckpipe,
    _source: Database<'a>,
}

impl<'a> Place<'a> {
    fn new(postgres: &'a Postgres, name: &str, which: &str) -> Place<'a> {
        let source = postgres.database(name);
        source.execute("CREATE TABLE t (id bigint PRIMARY KEY, a int, b double precision, c text, d timestamp)");
        let lake = Lake::new(Combination::EMBEDDED, name);
        let sort = if which.contains("unsorted") { "sort_by = []\n" } else { "" };
        let rest = format!(
            "[compact]\nmin_files = 2\ndelete_ratio = \"1%\"\nretain = \"1ms\"\ntarget_file_size = \"2GB\"\nthreads = 2\n\
             memory_limit = \"{MEMORY}\"\n[[tables]]\nsource = \"public.t\"\n{sort}"
        );
        let duckpipe = Duckpipe::new(name, &source.url(), &lake, &rest);
        duckpipe.sync_once().expect(0);
        Place { lake, duckpipe, _source: source }
    }

    fn fill(&self, files: u64, rows: u64, deleted: Deleted) {
        let native = self.lake.open_native_writable();
        for file in 0..files {
            // Neither in the key's order nor clustered by it.
            native.execute(&format!(
                "INSERT INTO lake.public.t SELECT (i * 7919 % {rows}) * {files} + {file}, i % 1000, random(), \
                 md5((i * {files} + {file})::VARCHAR), TIMESTAMP '2026-01-01' + INTERVAL (i) SECOND FROM range({rows}) r(i)"
            ));
        }
        if deleted != Deleted::Nothing {
            native.execute("DELETE FROM lake.public.t WHERE a % 10 = 3");
        }
        if deleted == Deleted::Some {
            native.execute("CREATE TABLE lake.public.later (i INTEGER)");
        }
    }

    /// From the process' start to its end, as ours.
    fn native(&self, which: &str) -> (Duration, u64) {
        let start = Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([which, &self.lake.catalog(), &self.lake.data_path()])
            .output()
            .unwrap();
        let took = start.elapsed();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (took, String::from_utf8_lossy(&output.stdout).trim().parse().unwrap())
    }

    /// From the process' start to its end.
    fn ours(&self) -> (Duration, u64) {
        let start = Instant::now();
        let mut running = self.duckpipe.start(&["compact", "--json"]);
        let mut peak = 0;
        while running.runs() {
            peak = peak.max(running.peak_memory());
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = start.elapsed();
        let finished = running.wait(Duration::from_secs(1)).expect(0);
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!(report["tables"][0]["files_written"], 1, "{report}");
        (took, peak)
    }

    /// A scan's time, by that of the same rows freshly written by DuckDB.
    fn scan_ratio(&self) -> f64 {
        let native = self.lake.open_native_writable();
        native.execute("CREATE TABLE lake.public.fresh AS FROM lake.public.t");
        let scan = |table: &str| {
            let sql = format!("SELECT count(*), sum(a), sum(b), max(c), max(d), max(id) FROM lake.public.{table}");
            let timed = |_| {
                let start = Instant::now();
                native.rows(&sql);
                start.elapsed()
            };
            (0..SCANS).map(timed).min().unwrap().as_secs_f64()
        };
        scan("t") / scan("fresh")
    }
}

/// DuckLake's own compaction: prints the peak of the memory in bytes.
fn native(which: &str, catalog: &str, data: &str) {
    let connection = duckdb::Connection::open_in_memory().unwrap();
    let run = |sql: &str| connection.execute_batch(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    let folder = std::env::var("DUCKPIPE_EXTENSIONS").expect("DUCKPIPE_EXTENSIONS");
    run(&format!(
        "LOAD '{folder}/ducklake.duckdb_extension'; SET threads = 2; SET memory_limit = '{MEMORY}'; \
         ATTACH 'ducklake:{catalog}' AS lake (DATA_PATH '{data}')"
    ));
    run("CALL lake.set_option('auto_compact', true, schema => 'public', table_name => 't')");
    run("CALL lake.set_option('target_file_size', '2GB')");
    match which {
        "ducklake_merge_adjacent_files" => run("CALL ducklake_merge_adjacent_files('lake')"),
        _ => run("CALL ducklake_rewrite_data_files('lake', delete_threshold => 0.01)"),
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{}", peak * 1024);
}
