//! Promises 2 and 3: wherever the process dies, nothing is lost and nothing is applied twice, and the slot never runs ahead.
//!
//! A seeded writer never stops. The process is killed in every phase, by failpoints and from outside; after each kill the lake
//! must be whole, its earlier versions must read as before, and nothing that was copied may be copied again.
//! `DUCKPIPE_KILL_ROUNDS` makes it longer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use duckpipe::lsn::Lsn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Client, Combination, Fingerprint, Running, StoreKind, wait_for};
use crate::scenario::{Files, Scenario, Tables, seed};
use crate::workload::{self, TABLES, Writer};

/// How long a process may take to come to a failpoint.
const TO_FAILPOINT: Duration = Duration::from_secs(90);
/// How often the slot is looked at, at least, before a process is killed from outside.
const LOOKS: u64 = 10;
/// Orders at the start: enough that the copy passes its failpoint several times.
const ORDERS: u32 = 60_000;

#[test]
fn killed_everywhere_duckdb_local() {
    killed_everywhere("kill_duckdb_local", Combination::EMBEDDED, 0xD0C, 4);
}

#[test]
fn killed_everywhere_postgres_s3() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
    killed_everywhere("kill_postgres_s3", combination, 0x9053, 4);
}

#[test]
fn killed_everywhere_duckdb_s3() {
    killed_everywhere("kill_duckdb_s3", Combination { catalog: CatalogKind::DuckDb, store: StoreKind::S3 }, 0xD053, 1);
}

#[test]
fn killed_everywhere_postgres_local() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
    killed_everywhere("kill_postgres_local", combination, 0x90C, 1);
}

fn killed_everywhere(name: &str, combination: Combination, default_seed: u64, rounds: u32) {
    let seed = seed(name, default_seed);
    let mut random = StdRng::seed_from_u64(seed);
    let rounds: u32 = std::env::var("DUCKPIPE_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(rounds);
    let rest = "[sync]\nflush_interval = \"100ms\"\nmemory_limit = \"128MB\"\n[compact]\nenabled = false\n\
                [[tables]]\nsource = \"public.*\"\n";
    let mut trial = Trial::new(Scenario::new(name, combination, rest));
    workload::create(&trial.scenario.source, ORDERS);
    let writer = Writer::start(&trial.scenario.source.url(), ORDERS, seed, Duration::from_millis(15));
    // A DuckDB file can't be read beside `sync`: there the polls are made through `status`, while it runs and after each kill.
    let watch = (combination.catalog == CatalogKind::Postgres).then(|| SlotWatch::start(&trial.scenario));

    // Before the first copy is whole, the lake shows nothing.
    for (failpoint, nth) in
        [("creating", 1), ("slot", 1), ("copy", 1), ("copy", 2), ("copy", 4), ("snapshot_commit", 1)]
    {
        trial.die("snapshot", &["sync"], failpoint, nth);
        let versions = trial.scenario.lake.open_native().versions();
        assert!(versions.iter().all(|version| version.lsn().is_none()), "{failpoint}: {versions:?}");
    }
    for round in 0..rounds {
        let again: &[&str] = if round == 0 { &["sync"] } else { &["sync", "--resnapshot"] };
        if round > 0 {
            // A fresh copy that dies leaves what the lake showed before.
            trial.die("snapshot", again, "copy", 1 + round % 3);
            trial.examine();
        }
        trial.die("hand-off", again, "handoff", 1);
        let copied = trial.rows_copied();
        trial.examine();
        trial.die("upload", &["sync"], "upload", random.random_range(1..5));
        trial.examine();
        let commit = if round % 2 == 0 { "commit_before" } else { "commit_after" };
        trial.die("commit", &["sync"], commit, random.random_range(1..5));
        trial.examine();
        trial.die("confirm", &["sync"], "confirm", random.random_range(1..5));
        trial.examine();
        trial.kill_from_outside(Duration::from_millis(random.random_range(100..2500)));
        trial.examine();
        assert_eq!(trial.rows_copied(), copied, "something was copied again after a kill in streaming");
    }

    let written = writer.stop();
    trial.scenario.duckpipe.live();
    trial.scenario.converge(&TABLES);
    trial.examine();
    let native = trial.scenario.lake.open_native();
    Files::read(&trial.scenario.lake, &native).assert_no_orphans();
    for (version, before) in &trial.seen {
        assert_eq!(&trial.tables.as_ref().unwrap().fingerprints(&native, *version), before, "version {version}");
    }
    let polls = watch.map_or(trial.polls.get(), SlotWatch::stop);
    println!("{name}: {written} transactions, {:?}, {polls} polls of the slot", trial.kills);
    let phases = ["snapshot", "hand-off", "upload", "commit", "confirm", "outside"];
    assert!(phases.iter().all(|phase| trial.kills.get(phase) >= Some(&rounds)), "{:?}", trial.kills);
    assert!(polls >= LOOKS * u64::from(rounds), "the slot was looked at {polls} times only");
}

struct Trial {
    scenario: Scenario<'static>,
    tables: Option<Tables>,
    kills: BTreeMap<&'static str, u32>,
    /// Versions and what they read as, the first time.
    seen: BTreeMap<i64, Vec<Fingerprint>>,
    /// How often the slot was compared with `status`.
    polls: Cell<u64>,
}

impl Trial {
    fn new(scenario: Scenario<'static>) -> Trial {
        Trial { scenario, tables: None, kills: BTreeMap::new(), seen: BTreeMap::new(), polls: Cell::new(0) }
    }

    /// Runs until the failpoint kills the process.
    #[track_caller]
    fn die(&mut self, kind: &'static str, arguments: &[&str], failpoint: &str, nth: u32) {
        self.scenario.duckpipe.die_at(failpoint, nth);
        let finished = self.scenario.duckpipe.run_within(arguments, TO_FAILPOINT);
        assert_eq!(finished.code, None, "not killed at {failpoint}:{nth}, but ended:\n{}", finished.output());
        self.scenario.duckpipe.live();
        *self.kills.entry(kind).or_default() += 1;
    }

    /// Lets `sync` run for a while, looking at the slot and at the lake's position by turns, and kills it.
    #[track_caller]
    fn kill_from_outside(&mut self, after: Duration) {
        let mut sync = self.scenario.duckpipe.sync();
        // From its start on any moment is as good as another.
        let (start, polled) = (Instant::now(), self.polls.get());
        if self.scenario.lake.combination().catalog == CatalogKind::DuckDb {
            while start.elapsed() < after || self.polls.get() < polled + LOOKS {
                assert!(start.elapsed() < TO_FAILPOINT, "{}", sync.tail());
                self.compare_slot_with_status();
            }
        } else {
            std::thread::sleep(after);
        }
        assert!(sync.runs(), "{}", sync.tail());
        sync.kill9();
        *self.kills.entry("outside").or_default() += 1;
    }

    /// The slot is read first: what the lake holds can only have grown when it is read.
    #[track_caller]
    fn compare_slot_with_status(&self) {
        let confirmed = self.scenario.confirmed();
        let status = self.scenario.duckpipe.status();
        let applied = status.applied_lsn();
        if ["pending", "snapshot"].iter().any(|state| status.all(state)) || status.0["tables"] == serde_json::json!([])
        {
            // A fresh copy is being made: its slot has nothing to do with what the lake shows.
            return;
        }
        assert!(confirmed <= applied, "the slot is at {confirmed:?}, the lake at {applied:?}: {}", status.0);
        self.polls.set(self.polls.get() + 1);
    }

    fn rows_copied(&self) -> Vec<i64> {
        let status = self.scenario.duckpipe.status();
        TABLES.iter().map(|table| status.table(table)["rows_copied"].as_i64().expect("rows_copied")).collect()
    }

    /// What must hold of the lake whenever no process runs.
    #[track_caller]
    fn examine(&mut self) {
        if self.scenario.lake.combination().catalog == CatalogKind::DuckDb {
            self.compare_slot_with_status();
        }
        let native = self.scenario.lake.open_native();
        let source = &self.scenario.source;
        let tables = self.tables.get_or_insert_with(|| Tables::new(source, &native, &TABLES));
        let stamped: Vec<(i64, Lsn)> =
            native.versions().iter().filter_map(|version| Some((version.id, version.lsn()?))).collect();
        assert!(stamped.is_sorted_by_key(|(_, lsn)| *lsn), "the lake went back: {stamped:?}");
        // The versions of the last kill, and the newest two, which are remembered.
        for (version, before) in self.seen.iter().rev().take(2) {
            assert_eq!(
                &tables.fingerprints(&native, *version),
                before,
                "version {version} reads otherwise than before"
            );
        }
        for (version, _) in stamped.iter().rev().take(2) {
            self.seen.entry(*version).or_insert_with(|| tables.fingerprints(&native, *version));
        }
        Files::read(&self.scenario.lake, &native).assert_complete();
    }
}

/// Looks at the slot and then at the state row of a Postgres catalog, all the time.
struct SlotWatch {
    stop: Arc<AtomicBool>,
    polls: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl SlotWatch {
    fn start(scenario: &Scenario<'_>) -> SlotWatch {
        let (stop, polls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&stop), Arc::clone(&polls));
        let source = scenario.source.connect();
        let slot_sql =
            format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'", scenario.slot());
        let catalog = Client::connect(&scenario.lake.catalog());
        let name = scenario.name.clone();
        let thread = std::thread::spawn(move || {
            let mut earlier = None;
            while !ends.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                let confirmed: Option<Lsn> =
                    source.query(&slot_sql).first().and_then(|row| row[0].as_deref()?.parse().ok());
                let exists = catalog.text("SELECT to_regclass('duckpipe_pipeline') IS NOT NULL");
                if exists != "t" {
                    continue;
                }
                let row = catalog
                    .query(&format!("SELECT state, lsn, epoch FROM duckpipe_pipeline WHERE name = '{name}'"))
                    .into_iter()
                    .next();
                let Some(row) = row else { continue };
                let epoch: i64 = row[2].as_deref().and_then(|text| text.parse().ok()).expect("an epoch");
                assert!(earlier <= Some(epoch), "the epoch went from {earlier:?} to {epoch}");
                earlier = Some(epoch);
                if row[0].as_deref() == Some("streaming") {
                    let applied: Option<Lsn> = row[1].as_deref().and_then(|text| text.parse().ok());
                    assert!(confirmed <= applied, "the slot is at {confirmed:?}, the lake at {applied:?}");
                    counts.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        SlotWatch { stop, polls, thread }
    }

    #[track_caller]
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the slot ran ahead");
        self.polls.load(Ordering::Relaxed)
    }
}

/// The transaction during which the process dies is neither lost nor applied twice: every kind of change, one kill per point.
#[test]
fn one_transaction_at_each_failpoint() {
    let rest = "[sync]\nflush_interval = \"20ms\"\n[[tables]]\nsource = \"public.t\"\n";
    let mut scenario = Scenario::new("kill_one", Combination::EMBEDDED, rest);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, 0, 'v' FROM generate_series(1, 100) i");
    scenario.converge(&["public.t"]);
    for (round, failpoint) in ["upload", "commit_before", "commit_after", "confirm"].into_iter().enumerate() {
        let id = 1000 + round;
        scenario.source.execute(&format!(
            "BEGIN; INSERT INTO t VALUES ({id}, 1, 'new'); UPDATE t SET n = n + 1 WHERE id <= 50; DELETE FROM t WHERE id = 51 + {round}; \
             UPDATE t SET id = -id WHERE id = 70 + {round}; COMMIT"
        ));
        let applied = scenario.duckpipe.status().applied_lsn();
        scenario.duckpipe.die_at(failpoint, 1);
        let finished = scenario.duckpipe.sync_once();
        assert_eq!(finished.code, None, "{failpoint}: {}", finished.output());
        scenario.duckpipe.live();
        // Before the commit the lake is as it was; after it the transaction is there, once.
        let committed = matches!(failpoint, "commit_after" | "confirm");
        let status = scenario.duckpipe.status();
        assert_eq!(status.applied_lsn() > applied, committed, "{failpoint}");
        let native = scenario.lake.open_native();
        let there = native.number(&format!("SELECT count(*) FROM lake.public.t WHERE id = {id}"));
        assert_eq!(there, i64::from(committed), "{failpoint}");
        if committed {
            crate::lab::assert_equal(&scenario.source, &native, "public.t");
        }
        drop(native);
        scenario.converge(&["public.t"]);
    }
    let native = scenario.lake.open_native();
    Files::read(&scenario.lake, &native).assert_no_orphans();
}

/// Stops it where it does not hold the catalog's lock, which its successor needs.
fn freeze_between_commits(scenario: &Scenario<'_>, sync: &mut Running<'_>) {
    let catalog = Client::connect(&scenario.lake.catalog());
    let locked = "SELECT count(*) FROM pg_locks WHERE relation = 'duckpipe_format'::regclass";
    wait_for(
        "a moment without a commit",
        Duration::from_secs(60),
        || {
            sync.signal("STOP");
            wait_for("it stands", Duration::from_secs(20), || sync.is_stopped().then_some(()), || sync.tail());
            let between = catalog.number(locked) == 0;
            if !between {
                sync.signal("CONT");
            }
            between.then_some(())
        },
        || catalog.text(locked),
    );
}

/// A process that was frozen while another one took its pipeline over can't commit any more.
#[test]
fn a_stale_process_is_fenced() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
    let rest = "[sync]\nflush_interval = \"20ms\"\n[[tables]]\nsource = \"public.t\"\n";
    let scenario = Scenario::new("kill_fenced", combination, rest);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i",
    );
    let mut stale = scenario.duckpipe.sync();
    stale.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    freeze_between_commits(&scenario, &mut stale);
    // Its connections to the source break, as they do when a machine is cut off; its catalog's do not.
    scenario.source.query(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        scenario.name
    ));
    wait_for(
        "the slot is free",
        Duration::from_secs(20),
        || scenario.slot_column("active_pid").is_empty().then_some(()),
        || scenario.slot_column("active_pid"),
    );
    let source = &scenario.source;
    source.execute("UPDATE t SET v = 'from the successor' WHERE id <= 10");
    let successor = scenario.duckpipe.sync_once().expect(0);
    drop(successor);
    let native = scenario.lake.open_native();
    let after = native.versions().len();
    source.execute("UPDATE t SET v = 'later' WHERE id <= 20");
    stale.signal("CONT");
    let finished = stale.wait(Duration::from_secs(60));
    assert_ne!(finished.code, Some(0), "{}", finished.output());
    assert_eq!(native.versions().len(), after, "the stale process committed: {}", finished.output());
    drop(native);
    scenario.converge(&["public.t"]);
}
