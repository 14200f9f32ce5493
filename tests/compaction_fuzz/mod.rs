//! Promise 8, fuzzed across processes: `sync`, `compact` and stock DuckDB work on one lake in any order and at once, and are killed.
//!
//! After each step stock DuckDB reads every version: it shows the source as of the position that is stamped on it, and what stock
//! DuckDB wrote until then; it reads as it read the first time; row ids are unique; the change feed is the difference between
//! the versions. `validate --files` finds nothing. `DUCKPIPE_FUZZ_SEEDS` and `DUCKPIPE_FUZZ_STEPS` make it longer; with
//! `DUCKPIPE_TEST_SEED` the seeds begin there.

mod examine;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use duckpipe::lsn::Lsn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::examine::{Validator, assert_same};
use crate::lab::{CatalogKind, Combination, NativeLake, Running, StoreKind};
use crate::scenario::{Files, Scenario};

const MINUTE: Duration = Duration::from_secs(60);
/// Lakes by default, and steps of each.
const SEEDS: u64 = 1;
const STEPS: u64 = 30;
/// Keys from here on are stock DuckDB's own.
const FOREIGN: i64 = 1_000_000_000;
const IN_SYNC: [&str; 7] = [
    "upload",
    "commit_before",
    "commit_after",
    "confirm",
    "compact_upload",
    "compact_before_commit",
    "compact_after_commit",
];

type Rows = BTreeMap<i64, String>;

/// What the source showed between two of its positions.
struct State {
    /// The transaction that made it ended after this position,
    before: Lsn,
    /// and not after this one.
    after: Lsn,
    text: String,
}

/// A running `sync`, and whether it is to die by itself.
struct Sync<'a> {
    process: Running<'a>,
    doomed: bool,
}

struct Fuzz<'a> {
    scenario: &'a Scenario<'static>,
    /// Stock DuckDB with a Postgres catalog attached all the time. A DuckDB file is opened when nobody else has it.
    attached: Option<NativeLake>,
    validator: Option<Validator>,
    sync: Option<Sync<'a>>,
    /// A compaction beside everything else.
    compact: Option<Running<'a>>,
    rows: Rows,
    states: Vec<State>,
    next_id: i64,
    /// Rows of stock DuckDB's own in our table, now and by the snapshot that made them so.
    foreign: Rows,
    foreign_states: BTreeMap<i64, String>,
    theirs: i64,
    next_foreign: i64,
    /// Positions of the versions seen so far, and what these read as: their rows with their ids, hashed.
    stamps: BTreeMap<i64, Lsn>,
    seen: BTreeMap<i64, String>,
    random: StdRng,
    met: BTreeMap<&'static str, u64>,
}

fn text(rows: &Rows) -> String {
    rows.iter().map(|(id, v)| format!("{id}|{v}")).collect::<Vec<_>>().join("\n")
}

/// Values for VALUES. None of the texts needs quoting.
fn values(rows: &Rows) -> String {
    rows.iter().map(|(id, v)| format!("({id}, '{v}')")).collect::<Vec<_>>().join(", ")
}

fn list(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}

impl<'a> Fuzz<'a> {
    fn new(scenario: &'a Scenario<'static>, seed: u64) -> Fuzz<'a> {
        scenario.source.execute("CREATE TABLE t (id bigint PRIMARY KEY, v text NOT NULL)");
        let mut fuzz = Fuzz {
            scenario,
            attached: None,
            validator: None,
            sync: None,
            compact: None,
            rows: Rows::new(),
            states: Vec::new(),
            next_id: 0,
            foreign: Rows::new(),
            foreign_states: BTreeMap::new(),
            theirs: 0,
            next_foreign: FOREIGN,
            stamps: BTreeMap::new(),
            seen: BTreeMap::new(),
            random: StdRng::seed_from_u64(seed),
            met: BTreeMap::new(),
        };
        for _ in 0..3 {
            fuzz.transaction();
        }
        scenario.converge(&["public.t"]);
        if fuzz.on_postgres() {
            fuzz.attached = Some(scenario.lake.open_native_writable());
            fuzz.validator = Some(Validator::new(&scenario.duckpipe));
        }
        fuzz.with_native(|native| native.execute("CREATE TABLE lake.main.theirs (id BIGINT)"));
        fuzz
    }

    fn on_postgres(&self) -> bool {
        self.scenario.lake.combination().catalog == CatalogKind::Postgres
    }

    fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn with_native<T>(&self, work: impl FnOnce(&NativeLake) -> T) -> T {
        match &self.attached {
            Some(native) => work(native),
            None => work(&self.scenario.lake.open_native_writable()),
        }
    }

    /// Nobody but us is at work on the lake.
    fn alone(&self) -> bool {
        self.sync.is_none() && self.compact.is_none()
    }

    /// One transaction in the source, of every kind of change.
    fn transaction(&mut self) {
        let random = &mut self.random;
        let known: Vec<i64> = self.rows.keys().copied().collect();
        let (mut new, mut changed, mut gone) = (Rows::new(), Rows::new(), Vec::new());
        for _ in 0..random.random_range(1..30) {
            let value = format!("{:x}", random.random::<u32>());
            if known.len() < 20 || random.random_bool(0.4) {
                self.next_id += 1;
                // Not in order, so that files overlap.
                new.insert(self.next_id * 7919 % 1_000_003, value);
            } else {
                let id = known[random.random_range(0..known.len())];
                match random.random_bool(0.4) {
                    true if !changed.contains_key(&id) && !gone.contains(&id) => gone.push(id),
                    false if !gone.contains(&id) => drop(changed.insert(id, value)),
                    _ => {}
                }
            }
        }
        let mut sql = String::from("BEGIN;");
        if !gone.is_empty() {
            sql += &format!("DELETE FROM t WHERE id IN ({});", list(&gone));
        }
        if !changed.is_empty() {
            sql += &format!("UPDATE t SET v = n.v FROM (VALUES {}) n(id, v) WHERE t.id = n.id;", values(&changed));
        }
        if !new.is_empty() {
            sql += &format!("INSERT INTO t VALUES {};", values(&new));
        }
        sql += "COMMIT";
        gone.iter().for_each(|id| drop(self.rows.remove(id)));
        self.rows.extend(changed);
        self.rows.extend(new);
        let source = &self.scenario.source;
        let before = source.lsn();
        source.execute(&sql);
        self.states.push(State { before, after: source.lsn(), text: text(&self.rows) });
    }

    fn step(&mut self) -> &'static str {
        match self.random.random_range(0..20) {
            0..5 => {
                for _ in 0..self.random.random_range(1..4) {
                    self.transaction();
                }
                "transactions"
            }
            5..8 => match self.sync.take() {
                None => {
                    self.start_sync();
                    "sync starts"
                }
                Some(sync) => {
                    self.end_sync(sync);
                    "sync ends"
                }
            },
            8..11 => {
                self.compact();
                "compact"
            }
            11..13 => {
                self.compact_beside();
                "compact beside"
            }
            13..15 => {
                self.native_write();
                "native write"
            }
            15 => {
                self.native_maintenance();
                "native maintenance"
            }
            16 => {
                self.clean_up();
                "cleanup"
            }
            _ => {
                self.converge();
                "convergence"
            }
        }
    }

    fn start_sync(&mut self) {
        if !self.on_postgres() {
            self.end_compact();
        }
        let doomed = self.random.random_bool(0.5);
        let point =
            format!("{}:{}", IN_SYNC[self.random.random_range(0..IN_SYNC.len())], self.random.random_range(1..4));
        let environment = [("DUCKPIPE_FAILPOINT", point.as_str())];
        let environment = if doomed { &environment[..] } else { &[] };
        let mut process = self.scenario.duckpipe.start_with(&["sync"], environment);
        if !self.on_postgres() {
            // Until its socket answers, others take the catalog's file for free.
            let socket = format!("{}.sock", self.scenario.lake.catalog_file().display());
            let start = Instant::now();
            while process.runs() && UnixStream::connect(&socket).is_err() {
                assert!(start.elapsed() < MINUTE, "{}", process.tail());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.sync = Some(Sync { process, doomed });
        self.bury();
    }

    /// Ends `sync`, in order or not.
    fn end_sync(&mut self, sync: Sync<'a>) {
        if self.random.random_bool(0.5) {
            sync.process.kill9();
            self.met("sync killed");
        } else {
            let finished = sync.process.terminate();
            assert!(finished.code == Some(0) || sync.doomed && finished.code.is_none(), "{}", finished.output());
        }
    }

    /// A `sync` that came to its failpoint is no more; any other one runs.
    fn bury(&mut self) {
        let Some(sync) = &mut self.sync else { return };
        if sync.process.runs() {
            return;
        }
        let Some(sync) = self.sync.take() else { return };
        let finished = sync.process.wait(MINUTE);
        assert!(sync.doomed && finished.code.is_none(), "sync ended by itself:\n{}", finished.output());
        self.met("sync died at a failpoint");
    }

    /// One compaction to its end, sometimes with little history left.
    fn compact(&mut self) {
        let retain = ["7d", "7d", "2s", "1ms"][self.random.random_range(0..4)];
        let ratio = ["1%", "20%"][self.random.random_range(0..2)];
        let environment = [
            ("DUCKPIPE_COMPACT__RETAIN", retain),
            ("DUCKPIPE_COMPACT__DELETE_RATIO", ratio),
            ("DUCKPIPE_COMPACT__MIN_FILES", "2"),
        ];
        let finished = self.scenario.duckpipe.start_with(&["compact", "--json"], &environment).wait(MINUTE);
        self.bury();
        if finished.code != Some(0) {
            // It asked a sync that died while it was at work.
            assert!(!self.on_postgres() && self.sync.is_none(), "{}", finished.output());
            self.met("compact lost its sync");
            return;
        }
        let report: serde_json::Value = serde_json::from_str(&finished.stdout).unwrap();
        for (what, count) in [
            ("files merged", &report["tables"][0]["files_rewritten"]),
            ("rows dropped", &report["tables"][0]["rows_dropped"]),
            ("deletes carried over", &report["tables"][0]["deletes_carried_over"]),
            ("snapshots expired", &report["snapshots_expired"]),
        ] {
            *self.met.entry(what).or_default() += count.as_u64().unwrap_or_default();
        }
    }

    /// A compaction that goes on beside what comes next, or the end of one: some come to a failpoint, some are killed.
    fn compact_beside(&mut self) {
        if self.compact.is_some() {
            return self.end_compact();
        }
        let point = IN_SYNC[self.random.random_range(4..IN_SYNC.len())];
        let environment = [("DUCKPIPE_COMPACT__MIN_FILES", "2"), ("DUCKPIPE_FAILPOINT", point)];
        let environment = &environment[..self.random.random_range(1..=2)];
        self.compact = Some(self.scenario.duckpipe.start_with(&["compact"], environment));
        if !self.on_postgres() {
            std::thread::sleep(Duration::from_millis(self.random.random_range(0..1_000)));
            self.end_compact();
        }
    }

    fn end_compact(&mut self) {
        let Some(mut compact) = self.compact.take() else { return };
        if compact.runs() {
            compact.kill9();
            self.met("compact killed");
        } else if compact.wait(MINUTE).code.is_none() {
            self.met("compact died at a failpoint");
        }
    }

    /// Runs a transaction of stock DuckDB's own, and gives its snapshot. Where another writer is in its way, it tries again.
    fn native_transaction(&mut self, sql: &str) -> i64 {
        self.next_foreign += 1;
        let message = format!("step {}", self.next_foreign);
        let sql = format!("BEGIN; {sql}; CALL ducklake_set_commit_message('lake', 'fuzz', '{message}'); COMMIT");
        let mut conflicts = 0;
        let snapshot = self.with_native(|native| {
            while let Err(error) = native.connection().execute_batch(&sql) {
                let error = error.to_string();
                let _ = native.connection().execute_batch("ROLLBACK");
                assert!(error.to_lowercase().contains("conflict") && conflicts < 50, "{error}\n{sql}");
                conflicts += 1;
            }
            native.number(&format!(
                "SELECT snapshot_id FROM ducklake_snapshots('lake') WHERE author = 'fuzz' AND commit_message = '{message}'"
            ))
        });
        if conflicts > 0 {
            self.met("native conflicts");
        }
        snapshot
    }

    /// Stock DuckDB's own rows in our table. A DELETE only while nobody else commits: DuckLake stamps the deletes of a commit that
    /// it had to repeat with the wrong snapshot.
    fn native_write(&mut self) {
        if !self.on_postgres() && !self.alone() {
            return;
        }
        let random = &mut self.random;
        let delete =
            !self.foreign.is_empty() && self.sync.is_none() && self.compact.is_none() && random.random_bool(0.5);
        let sql = if delete {
            let gone: Vec<i64> = self.foreign.keys().copied().filter(|_| random.random_bool(0.6)).collect();
            if gone.is_empty() {
                return;
            }
            gone.iter().for_each(|id| drop(self.foreign.remove(id)));
            self.met("native deletes");
            format!("DELETE FROM lake.public.t WHERE id IN ({})", list(&gone))
        } else {
            let new: Rows = (0..random.random_range(1..6))
                .map(|_| {
                    self.next_foreign += 1;
                    (self.next_foreign, format!("theirs {}", self.next_foreign))
                })
                .collect();
            self.foreign.extend(new.clone());
            self.met("native inserts");
            format!("INSERT INTO lake.public.t VALUES {}", values(&new))
        };
        let snapshot = self.native_transaction(&sql);
        self.foreign_states.insert(snapshot, text(&self.foreign));
    }

    /// DuckLake's own maintenance, with a table of somebody else's to work on.
    fn native_maintenance(&mut self) {
        // Like a DELETE, a merge must not be repeated; and none of it knows of uploads in flight.
        if !self.alone() {
            return;
        }
        for _ in 0..3 {
            self.theirs += 20;
            self.native_transaction(&format!(
                "INSERT INTO lake.main.theirs SELECT range FROM range({}, {})",
                self.theirs - 20,
                self.theirs
            ));
        }
        let newest = self.with_native(|native| {
            native.execute("CHECKPOINT lake");
            native.number("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
        });
        let keep = self.random.random_range(0..20);
        self.with_native(|native| {
            let old = native.rows(&format!(
                "SELECT snapshot_id FROM ducklake_snapshots('lake') WHERE snapshot_id < {}",
                newest - keep
            ));
            let old: Vec<i64> = old.iter().map(|row| row[0].as_deref().unwrap().parse().unwrap()).collect();
            if !old.is_empty() {
                native.execute(&format!("CALL ducklake_expire_snapshots('lake', versions => [{}])", list(&old)));
            }
            native.execute("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)");
        });
        self.met("checkpoints");
    }

    /// Two hours pass: what was replaced before is deleted, and what dead processes left.
    fn clean_up(&mut self) {
        // A process that is at work would be taken for dead, and files for long out of use that it has only begun to read.
        if !self.alone() {
            return;
        }
        self.two_hours_later();
        self.compact();
        self.met("cleanups");
    }

    fn two_hours_later(&self) {
        self.with_native(|native| {
            for change in [
                "ducklake_files_scheduled_for_deletion SET schedule_start = schedule_start",
                "duckpipe_upload SET started_at = started_at",
            ] {
                native.execute(&format!("UPDATE __ducklake_metadata_lake.{change} - INTERVAL '2 hours'"));
            }
        });
    }

    /// The lake comes to show all of the source, and does.
    fn converge(&mut self) {
        self.bury();
        let lsn = self.scenario.source.lsn();
        match self.sync.take() {
            Some(mut sync) if !sync.doomed && self.random.random_bool(0.5) => {
                sync.process.wait_for_lsn(lsn, MINUTE);
                self.sync = Some(sync);
            }
            sync => {
                if let Some(sync) = sync {
                    self.end_sync(sync);
                }
                if !self.on_postgres() {
                    self.end_compact();
                }
                self.scenario.duckpipe.sync_once().expect(0);
            }
        }
        let source = self.scenario.source.text("SELECT string_agg(id || '|' || v, E'\\n' ORDER BY id) FROM t");
        assert_eq!(source, text(&self.rows), "the source is not as its model");
        if self.on_postgres() || self.sync.is_none() {
            let sql = format!(
                "SELECT string_agg(id || '|' || v, chr(10) ORDER BY id) FROM lake.public.t WHERE id < {FOREIGN}"
            );
            assert_same(&self.with_native(|native| native.text(&sql)), &source, "the lake and the source");
        }
        self.met("convergences");
    }

    /// Everything comes to its end; then the store holds what the catalog knows, and nothing else.
    fn end(mut self) -> BTreeMap<&'static str, u64> {
        self.end_compact();
        if let Some(sync) = self.sync.take() {
            self.end_sync(sync);
        }
        self.converge();
        self.examine();
        for _ in 0..2 {
            self.two_hours_later();
            self.compact();
        }
        self.examine();
        self.validate();
        self.with_native(|native| {
            let files = Files::read(&self.scenario.lake, native);
            files.assert_complete();
            files.assert_no_orphans();
        });
        self.met
    }
}

fn run(name: &str, combination: Combination, first: u64) {
    let asked = |variable: &str, default: u64| {
        std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    let (seeds, steps) = (asked("DUCKPIPE_FUZZ_SEEDS", SEEDS), asked("DUCKPIPE_FUZZ_STEPS", STEPS));
    let first = asked("DUCKPIPE_TEST_SEED", first);
    let left = Mutex::new(first..first + seeds);
    // Several at once, where there are several: each waits for one process most of the time.
    std::thread::scope(|scope| {
        let threads = (0..seeds.min(4)).map(|_| {
            scope.spawn(|| {
                loop {
                    let Some(seed) = left.lock().unwrap().next() else { return };
                    run_seed(name, combination, seed, steps);
                }
            })
        });
        join_all(threads.collect());
    });
}

/// Waits for the ends of the threads. The scope itself waits for their work alone, and a process whose exit handlers run beside a
/// thread on its way out dies of what the libraries in DuckDB's extensions free twice.
fn join_all(threads: Vec<ScopedJoinHandle<'_, ()>>) {
    for thread in threads {
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    }
}

fn run_seed(name: &str, combination: Combination, seed: u64, steps: u64) {
    let rest = "[sync]\nflush_interval = \"50ms\"\n[compact]\ninterval = \"1s\"\nmin_files = 3\n[[tables]]\nsource = \"public.t\"\n";
    println!("{name}: seed {seed}");
    let start = Instant::now();
    let scenario = Scenario::new(&format!("{name}_{seed}"), combination, rest);
    let mut fuzz = Fuzz::new(&scenario, seed);
    let mut spent: BTreeMap<&str, Duration> = BTreeMap::new();
    fuzz.examine();
    for step in 0..steps {
        let begun = Instant::now();
        let what = fuzz.step();
        let worked = begun.elapsed();
        fuzz.examine();
        let examined = begun.elapsed() - worked;
        // What only begins something leaves nothing new to find.
        if !["transactions", "sync starts"].contains(&what) {
            fuzz.validate();
        }
        let validated = begun.elapsed() - worked - examined;
        println!("seed {seed}, step {step}: {what}, {} ms", begun.elapsed().as_millis());
        for (part, time) in [(what, worked), ("examining", examined), ("validating", validated)] {
            *spent.entry(part).or_default() += time;
        }
    }
    let met = fuzz.end();
    println!("{name}: seed {seed}, {steps} steps in {} s: {met:?}, {spent:?}", start.elapsed().as_secs());
    let missed: Vec<&str> =
        ["files merged", "convergences"].into_iter().filter(|what| !met.contains_key(what)).collect();
    assert!(steps < STEPS || missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn processes_in_any_order_duckdb_local() {
    run("fuzz_duckdb", Combination::EMBEDDED, 0);
}

#[test]
fn processes_in_any_order_postgres_local() {
    run("fuzz_postgres", Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }, 100);
}
