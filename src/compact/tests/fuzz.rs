//! Flushes, compactions, expiries, cleanups, kills and stock DuckDB's own INSERT, DELETE and CHECKPOINT in any order.
//!
//! After each step stock DuckDB reads the versions whose files in the catalog are others than when it last read them, one more at
//! random, and the change feed since; at the end it reads all. What it reads, with the ids of the rows, is what the model has, and
//! `validate --files` finds nothing. `DUCKPIPE_FUZZ_SEEDS` and `DUCKPIPE_FUZZ_STEPS` make it longer; with `DUCKPIPE_TEST_SEED` the
//! seeds begin there.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::judge::Judge;
use super::table::{Extent, Row, Table, compactor, newest, snapshots, texts};
use crate::compact::rewrite::Rewritten;
use crate::compact::{Compactor, Outcome, Report, Request};
use crate::lake::tests::lab::{Kind, Lab};
use crate::lake::{CompactionTable, Maintenance};
use crate::validate::{ValidateProgress, check_files, stored_files};

/// Tables by default, and steps of each.
const SEEDS: u64 = 3;
const STEPS: u64 = 20;

fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

/// What every run of some length must have met, or it proves little. What else it met is printed.
const MET: [&str; 10] = [
    "flush",
    "truncates",
    "merged files",
    "dropped rows",
    "carried over deletes",
    "killed passes",
    "expired snapshots",
    "deleted files",
    "native deletes",
    "checkpoints",
];

/// A rewrite whose process stopped before the commit. It may come to itself again.
struct Sleeping {
    compactor: Compactor,
    table: CompactionTable,
    rewritten: Rewritten,
}

struct Fuzz {
    lab: Lab,
    judge: Judge,
    table: Table,
    /// Rows of a table of somebody else's, which DuckLake's own maintenance works on.
    theirs: BTreeMap<i64, i64>,
    next_native: i64,
    base: Compactor,
    sleeping: Vec<Sleeping>,
    random: StdRng,
    /// Another one, so that what is checked does not decide what is done.
    checks: StdRng,
    met: BTreeMap<&'static str, u64>,
    spent: BTreeMap<&'static str, Duration>,
}

impl Fuzz {
    async fn new(kind: Kind, seed: u64) -> Fuzz {
        let mut lab = Lab::new(kind).await;
        let table = Table::new(&lab, "t").await;
        // Attached later than the table was made: a DuckDB reads the tables' options once, when it attaches the lake, and would
        // keep its deletes in the catalog.
        let judge = Judge::new(&lab);
        let create = "CREATE TABLE lake.main.theirs (id BIGINT, v BIGINT)";
        judge.write(&mut lab, |connection| connection.execute_batch(create).unwrap()).await;
        let base = compactor(&lab, "").await;
        Fuzz {
            lab,
            judge,
            table,
            theirs: BTreeMap::new(),
            next_native: 10_000_000,
            base,
            sleeping: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            checks: StdRng::seed_from_u64(seed),
            met: BTreeMap::new(),
            spent: BTreeMap::new(),
        }
    }

    fn met(&mut self, what: &'static str, times: u64) {
        *self.met.entry(what).or_default() += times;
    }

    fn spent(&mut self, what: &'static str, since: Instant) {
        *self.spent.entry(what).or_default() += since.elapsed();
    }

    /// One more run of maintenance, with settings that make much of little tables.
    fn compactor(&mut self) -> Compactor {
        let mut config = (*self.base.config).clone();
        let random = &mut self.random;
        config.compact.min_files = random.random_range(2..6);
        config.compact.delete_ratio = random.random_range(0.01..0.6);
        config.compact.target_file_size = [2_000, 20_000, 1_000_000][random.random_range(0..3)];
        let mut resources = self.base.resources.clone();
        resources.threads = random.random_range(1..4);
        // With little memory batches are small, so that a small file can be too large.
        resources.memory = [1 << 20, 8 << 20, 128 << 20][random.random_range(0..3)];
        Compactor {
            lake: self.lab.lake.clone(),
            run: Maintenance::new("shop"),
            config: config.into(),
            resources,
            store: self.base.store.clone(),
        }
    }

    /// Some of the table's files, rewritten and not committed.
    async fn rewrite(&mut self, likely: f64) -> Option<Sleeping> {
        let compactor = self.compactor();
        let view = compactor.lake.compaction_view("shop").await.unwrap();
        let table = view.tables[0].clone();
        let sources: Vec<_> = table.files.iter().filter(|_| self.random.random_bool(likely)).cloned().collect();
        if sources.is_empty() {
            return None;
        }
        let rewritten = compactor.rewrite(view.oldest, &table, sources).await.unwrap();
        if rewritten.files.len() > 1 {
            self.met("several files from one rewrite", 1);
        }
        Some(Sleeping { compactor, table, rewritten })
    }

    async fn flush(&mut self, most: usize) {
        let changes = self.table.random_changes(&mut self.random, most);
        self.table.flush(&self.lab, &changes).await;
        self.met("flush", 1);
    }

    async fn truncate(&mut self, most: usize) {
        let changes = self.table.random_changes(&mut self.random, most);
        self.table.truncate(&self.lab, &changes).await;
        self.met("truncates", 1);
    }

    /// One step; its name.
    async fn step(&mut self) -> &'static str {
        match self.random.random_range(0..24) {
            0..8 if self.random.random_bool(0.1) => {
                self.truncate(20).await;
                "truncate"
            }
            0..8 => {
                self.flush(30).await;
                "flush"
            }
            8..10 => {
                self.pass().await;
                "pass"
            }
            10..13 => {
                self.merge_under_writes(false).await;
                "merge under flushes"
            }
            13 => {
                self.merge_under_writes(true).await;
                "merge under native deletes"
            }
            14 => {
                self.killed_pass().await;
                "killed pass"
            }
            15 => {
                if let Some(sleeping) = self.rewrite(0.5).await {
                    self.sleeping.push(sleeping);
                }
                "abandoned rewrite"
            }
            16 => {
                self.wake().await;
                "late run"
            }
            17..20 => {
                self.expire().await;
                "expiry"
            }
            20 => {
                self.clean_up().await;
                "cleanup"
            }
            21 => {
                self.native_insert().await;
                "native insert"
            }
            22 => {
                self.native_delete(0.1).await;
                "native delete"
            }
            _ => {
                self.checkpoint().await;
                "checkpoint"
            }
        }
    }

    async fn pass(&mut self) {
        let mut compactor = self.compactor();
        if self.random.random_bool(0.5) {
            let mut config = (*compactor.config).clone();
            config.compact.retain = Some(Duration::from_millis(self.random.random_range(0..2_000)));
            compactor.config = config.into();
        }
        let report = compactor.pass(&Request::default()).await.unwrap();
        self.learn(&report);
    }

    fn learn(&mut self, report: &Report) {
        assert_eq!(report.tables[0].given_up, [] as [String; 0]);
        assert_eq!(report.files_kept, [] as [String; 0]);
        self.met("merged files", report.tables[0].files_rewritten);
        self.met("dropped rows", report.tables[0].rows_dropped);
        self.met("expired snapshots", report.snapshots_expired);
        self.met("deleted files", report.files_deleted);
    }

    /// Others delete rows of files while these are being rewritten.
    async fn merge_under_writes(&mut self, native: bool) {
        let Some(mut rewrite) = self.rewrite(0.7).await else { return };
        let mut truncated = false;
        for _ in 0..self.random.random_range(1..4) {
            match native {
                true => self.native_delete(0.1).await,
                false if self.random.random_bool(0.04) => {
                    self.truncate(20).await;
                    truncated = true;
                }
                false => self.flush(20).await,
            }
        }
        rewrite.compactor.lake = self.lab.lake.clone();
        match rewrite.compactor.replace(&rewrite.table, rewrite.rewritten).await.unwrap() {
            Outcome::Replaced { carried_over, .. } => self.met("carried over deletes", carried_over as u64),
            // A DELETE of DuckDB's that empties a file ends it, and so does a TRUNCATE.
            Outcome::GivenUp(why) => assert!((native || truncated) && why.contains("not live any more"), "{why}"),
        }
        rewrite.compactor.lake.discard_uploads(&rewrite.compactor.run, &rewrite.compactor.store).await.unwrap();
    }

    /// A pass whose process dies at some moment: a runtime that is dropped with all that it was doing. What the lake's own
    /// thread has begun it ends, as Postgres does with what a dead client sent.
    async fn killed_pass(&mut self) {
        let compactor = self.compactor();
        let life = Duration::from_micros(self.random.random_range(0..80_000));
        let ended = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let request = Request::default();
            let ended = runtime.block_on(async { tokio::time::timeout(life, compactor.pass(&request)).await });
            // Waits for the files that were being written: nothing of a dead process goes on.
            drop(runtime);
            ended
        });
        match ended.await.unwrap() {
            Ok(report) => self.learn(&report.unwrap()),
            Err(_) => self.met("killed passes", 1),
        }
    }

    /// A run that stood still tries to commit what it rewrote long ago.
    async fn wake(&mut self) {
        if self.sleeping.is_empty() {
            return;
        }
        let chosen = self.random.random_range(0..self.sleeping.len());
        let Sleeping { mut compactor, table, rewritten } = self.sleeping.swap_remove(chosen);
        compactor.lake = self.lab.lake.clone();
        match compactor.replace(&table, rewritten).await.unwrap() {
            Outcome::Replaced { .. } => self.met("late commits", 1),
            Outcome::GivenUp(_) => self.met("given up by a late run", 1),
        }
        // What it wrote for nothing, it takes away; or it dies now, and others do.
        if self.random.random_bool(0.5) {
            compactor.lake.discard_uploads(&compactor.run, &compactor.store).await.unwrap();
        }
    }

    /// Old snapshots go; by DuckDB's own hand also some in between.
    async fn expire(&mut self) {
        let readable = self.judge.read(&self.lab, snapshots).await;
        let last = readable.len() - 1;
        let number = self.random.random_range(0..=last);
        let native = self.random.random_bool(0.4);
        let gone: Vec<i64> = match native && self.random.random_bool(0.5) {
            true => readable[..last].iter().copied().filter(|_| self.random.random_bool(0.2)).collect(),
            false => readable[..number].to_vec(),
        };
        if gone.is_empty() {
            return;
        }
        self.met("expired snapshots", gone.len() as u64);
        if native {
            let ids = gone.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
            let sql = format!("CALL ducklake_expire_snapshots('lake', versions => [{ids}])");
            self.judge.write(&mut self.lab, |connection| connection.execute_batch(&sql).unwrap()).await;
        } else {
            self.lab.lake.expire_snapshots(&gone).await.unwrap();
        }
    }

    /// Files that nothing needs any more go, at once: ours, or those that DuckDB's own cleanup finds.
    async fn clean_up(&mut self) {
        if self.random.random_bool(0.3) {
            let sql = "CALL ducklake_cleanup_old_files('lake', cleanup_all => true)";
            self.judge.write(&mut self.lab, |connection| connection.execute_batch(sql).unwrap()).await;
            return;
        }
        if self.random.random_bool(0.5) {
            self.hearts_stop();
        }
        let compactor = self.compactor();
        let mut report = Report::default();
        compactor.delete_scheduled(&Request::default(), &mut report).await.unwrap();
        assert_eq!(report.files_kept, [] as [String; 0]);
        self.met("deleted files", report.files_deleted);
        compactor.lake.remove_maintenance_orphans(&compactor.run, &compactor.store).await.unwrap();
    }

    /// Runs that did not end are dead from now on. In a file's catalog they are anyway.
    fn hearts_stop(&self) {
        if let Some(server) = &self.lab.server {
            let stop = "UPDATE \"My lake\".duckpipe_upload SET started_at = started_at - interval '1 hour'";
            server.sql(&self.lab.database, stop);
        }
    }

    async fn native_insert(&mut self) {
        let mut rows: BTreeMap<i64, Row> = BTreeMap::new();
        for _ in 0..self.random.random_range(1..6) {
            self.next_native += 1;
            rows.insert(self.next_native, (format!("theirs {}", self.next_native), self.random.random()));
        }
        let table = &mut self.table;
        self.judge.write(&mut self.lab, |connection| table.native_insert(connection, &rows)).await;
        self.met("native inserts", 1);
    }

    async fn native_delete(&mut self, part: f64) {
        let random = &mut self.random;
        // Of its own rows most, so that whole files are emptied.
        let part_of = |id: i64| if id > 10_000_000 { 0.7 } else { part };
        let gone: Vec<i64> = self.table.rows.keys().copied().filter(|id| random.random_bool(part_of(*id))).collect();
        if gone.is_empty() {
            return;
        }
        let table = &mut self.table;
        self.judge.write(&mut self.lab, |connection| table.native_delete(connection, &gone)).await;
        self.met("native deletes", 1);
    }

    /// DuckLake's own maintenance works on a table that is not ours, and leaves ours alone.
    async fn checkpoint(&mut self) {
        let before = self.lab.lake.compaction_view("shop").await.unwrap().tables[0].files.clone();
        let (random, theirs) = (&mut self.random, &mut self.theirs);
        let mut statements = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let first = self.next_native;
            self.next_native += random.random_range(1..30);
            theirs.extend((first..self.next_native).map(|id| (id, id * 2)));
            statements.push(format!(
                "INSERT INTO lake.main.theirs SELECT i, i * 2 FROM range({first}, {}) r(i)",
                self.next_native
            ));
            let rest = random.random_range(0..7);
            theirs.retain(|id, _| id % 7 != rest);
            statements.push(format!("DELETE FROM lake.main.theirs WHERE id % 7 = {rest}"));
        }
        statements.push("CHECKPOINT lake".into());
        let sums = [theirs.len() as i64, theirs.keys().sum(), theirs.values().sum()].map(|sum: i64| sum.to_string());
        self.judge
            .write(&mut self.lab, |connection| {
                statements.iter().for_each(|sql| connection.execute_batch(sql).unwrap());
                let sql = "SELECT count(*)::VARCHAR, coalesce(sum(id), 0)::VARCHAR, coalesce(sum(v), 0)::VARCHAR \
                    FROM lake.main.theirs";
                assert_eq!(texts(connection, sql), [sums]);
            })
            .await;
        let after = self.lab.lake.compaction_view("shop").await.unwrap().tables[0].files.clone();
        assert_eq!(after, before, "DuckLake's own maintenance touched our table");
        self.met("checkpoints", 1);
    }

    /// Everything that is promised, of all that can be read.
    async fn check(&mut self, extent: Extent) {
        let begun = Instant::now();
        let (table, checks) = (&mut self.table, &mut self.checks);
        let read = self.judge.read(&self.lab, |connection| table.check(connection, checks, extent));
        let (versions, read) = read.await;
        self.met("versions", versions as u64);
        self.met("versions read", read as u64);
        self.spent("reading", begun);

        let begun = Instant::now();
        let store = &self.base.store;
        let stored = stored_files(store).await.unwrap();
        let progress = ValidateProgress::new();
        let report = check_files(&self.base.config, &self.lab.lake, (store, stored), None, &progress).await.unwrap();
        assert!(report.findings.is_empty() && report.orphans.is_empty(), "{}", report.render());
        self.spent("validating", begun);
    }

    /// All that died is dead for good; then the store holds what the catalog knows, and nothing else.
    async fn end(&mut self) {
        self.sleeping.clear();
        self.hearts_stop();
        let last = self.compactor();
        last.pass(&Request::default()).await.unwrap();
        self.check(Extent::Whole).await;
        let newest = self.judge.read(&self.lab, newest).await;
        let old: Vec<i64> = (0..newest).collect();
        self.lab.lake.expire_snapshots(&old).await.unwrap();
        last.pass(&Request::default()).await.unwrap();
        self.check(Extent::Whole).await;
        let tables = self.lab.stock_catalog();
        let sql = format!(
            "SELECT (SELECT count(*) FROM {tables}.duckpipe_upload)::VARCHAR, \
             (SELECT count(*) FROM {tables}.ducklake_files_scheduled_for_deletion)::VARCHAR"
        );
        let left = self.judge.read(&self.lab, |connection| texts(connection, &sql)).await;
        assert_eq!(left, [["0", "0"]], "recorded uploads and files to delete");
    }
}

/// All steps of one table, and what they met.
async fn run(kind: Kind, seed: u64, steps: u64) -> BTreeMap<&'static str, u64> {
    let mut fuzz = Fuzz::new(kind, seed).await;
    println!("{kind:?}, seed {seed}");
    fuzz.flush(30).await;
    for step in 0..steps {
        let begun = Instant::now();
        let name = fuzz.step().await;
        fuzz.spent("working", begun);
        println!("seed {seed}, step {step}: {name}, {} ms", begun.elapsed().as_millis());
        fuzz.check(Extent::Changed).await;
    }
    fuzz.end().await;
    println!("{kind:?}, seed {seed}: {:?}, {:?}", fuzz.met, fuzz.spent);
    fuzz.met
}

/// Several seeds, two at once.
fn run_all(kind: Kind, first: u64) {
    let first = asked("DUCKPIPE_TEST_SEED", first);
    let (seeds, steps) = (asked("DUCKPIPE_FUZZ_SEEDS", SEEDS), asked("DUCKPIPE_FUZZ_STEPS", STEPS));
    let left = Mutex::new(first..first + seeds);
    let met: Mutex<BTreeMap<&str, u64>> = Mutex::default();
    std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                loop {
                    let Some(seed) = left.lock().unwrap().next() else { return };
                    let of_seed = runtime.block_on(run(kind, seed, steps));
                    let mut met = met.lock().unwrap();
                    of_seed.into_iter().for_each(|(what, times)| *met.entry(what).or_default() += times);
                }
            })
        });
        // The scope waits for their work alone, and the exit handlers of what DuckDB's extensions carry free what a thread on its
        // way out still uses.
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let met = met.into_inner().unwrap();
    println!("{kind:?}: {seeds} seeds of {steps} steps, {met:?}");
    let missed: Vec<&str> = MET.into_iter().filter(|what| met.get(what).is_none_or(|times| *times == 0)).collect();
    assert!(seeds * steps < SEEDS * STEPS || missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn any_order_of_maintenance_reads_as_its_model_in_a_file() {
    run_all(Kind::File, 0);
}

#[test]
fn any_order_of_maintenance_reads_as_its_model_in_postgres() {
    run_all(Kind::Postgres, 100);
}
