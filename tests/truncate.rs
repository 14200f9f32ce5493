//! TRUNCATE: at its place among the changes all rows of its table go, in one version with everything else of its transaction; what
//! comes after it stays. No row is looked at for it.

use std::time::Duration;

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, Fingerprint, StoreKind, wait_for};
use crate::scenario::{Files, Scenario, Tables};

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);
/// One flush for each run: the interval is longer than a run.
const ONE_FLUSH: &str = "[sync]\nflush_interval = \"60s\"\n";

#[test]
fn every_form_duckdb_local() {
    every_form(Combination::all()[0]);
}

#[test]
fn every_form_postgres_s3() {
    every_form(Combination::all()[3]);
}

const FOLLOWED: [&str; 4] = ["public.parent", "public.child", "public.alone", "public.bystander"];

/// A lake that runs follow each other on, and what its versions showed.
struct Trial {
    scenario: Scenario<'static>,
    seen: Vec<(i64, Vec<Fingerprint>)>,
}

impl Trial {
    /// Each text is committed by itself; then a process of its own applies all, as so many versions. A TRUNCATE that stands first is
    /// the first event after the start.
    #[track_caller]
    fn step(&mut self, transactions: &[&str], versions: usize) {
        for transaction in transactions {
            self.scenario.source.execute(transaction);
        }
        let target = self.scenario.source.lsn();
        let before = self.scenario.version_ids().len();
        self.scenario.converge(&FOLLOWED);
        let status = self.scenario.duckpipe.status();
        assert!(status.all("streaming") && status.applied_lsn() >= Some(target), "{transactions:?}: {}", status.0);
        let native = self.scenario.lake.open_native();
        let ids: Vec<i64> = native.versions().iter().map(|version| version.id).collect();
        assert_eq!(ids.len(), before + versions, "versions of {transactions:?}");
        for table in FOLLOWED {
            let counted = native.number(&format!("SELECT count(*) FROM lake.{table}"));
            assert_eq!(counted, self.scenario.source.number(&format!("SELECT count(*) FROM {table}")), "{table}");
        }
        let newest = *ids.last().unwrap();
        let tables = Tables::new(&self.scenario.source, &native, &FOLLOWED);
        self.seen.push((newest, tables.fingerprints(&native, newest)));
    }

    #[track_caller]
    fn assert_past(&self) {
        let native = self.scenario.lake.open_native();
        let tables = Tables::new(&self.scenario.source, &native, &FOLLOWED);
        for (version, before) in &self.seen {
            assert_eq!(&tables.fingerprints(&native, *version), before, "version {version}");
        }
        Files::read(&self.scenario.lake, &native).assert_complete();
        drop(native);
        self.scenario.duckpipe.run(&["validate"]).expect(0);
        self.scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    }

    /// How many rows the newest version removed and added, says the change feed.
    #[track_caller]
    fn assert_feed(&self, table: &str, removed: i64, added: i64) {
        let native = self.scenario.lake.open_native();
        let version = native.versions().pop().unwrap().id;
        for (kind, count) in [("delete", removed), ("insert", added)] {
            let sql = format!(
                "SELECT count(*) FROM ducklake_table_changes('lake', 'public', '{table}', {version}, {version}) WHERE change_type = '{kind}'"
            );
            assert_eq!(native.number(&sql), count, "{kind}s of {table} in version {version}");
        }
    }
}

fn every_form(combination: Combination) {
    let rest = format!("{ONE_FLUSH}{}", Duckpipe::tables(&FOLLOWED));
    let scenario = Scenario::new(&format!("truncate_{}", combination.name()), combination, &rest);
    scenario.source.execute(
        "CREATE TABLE parent (id serial PRIMARY KEY, v text); \
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, body text); \
         CREATE TABLE unfollowed (id int PRIMARY KEY, parent int REFERENCES parent); \
         CREATE TABLE alone (id int PRIMARY KEY, v text); CREATE TABLE bystander (id int PRIMARY KEY, v text); \
         ALTER TABLE child ALTER body SET STORAGE EXTERNAL; \
         INSERT INTO parent (v) SELECT 'v' FROM generate_series(1, 300); \
         INSERT INTO child SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(1, 100) i; \
         INSERT INTO unfollowed SELECT i, i FROM generate_series(1, 10) i; \
         INSERT INTO alone SELECT i, 'v' FROM generate_series(1, 500) i; INSERT INTO bystander SELECT i, 'v' FROM generate_series(1, 50) i",
    );
    scenario.converge(&FOLLOWED);
    let mut trial = Trial { scenario, seen: Vec::new() };
    // Files with deletes, and several of them.
    trial.step(
        &["DELETE FROM parent WHERE id > 290; UPDATE child SET parent = 1 WHERE id <= 20; DELETE FROM alone WHERE id % 7 = 0"],
        1,
    );
    // CASCADE reaches a followed table and one that is not; sequences are nothing to the lake.
    trial.step(&["TRUNCATE parent RESTART IDENTITY CASCADE"], 1);
    trial.assert_feed("parent", 290, 0);
    trial.assert_feed("child", 100, 0);
    trial.assert_feed("alone", 0, 0);
    // What is empty stays so: no version, but the position goes on.
    trial.step(&["TRUNCATE parent, child, unfollowed", "TRUNCATE child"], 0);
    trial.step(
        &[
            "INSERT INTO parent (v) SELECT 'again' FROM generate_series(1, 30)",
            "INSERT INTO child SELECT i, i, repeat(md5(i::text), 90) FROM generate_series(1, 20) i",
        ],
        1,
    );
    // Several tables, and rows after.
    trial.step(&["TRUNCATE alone, bystander", "INSERT INTO alone SELECT i, 'new' FROM generate_series(1, 40) i"], 1);
    trial.assert_feed("alone", 429, 40);
    trial.assert_feed("bystander", 50, 0);
    // Within a larger transaction, twice; large values stay where they are before and after; a savepoint takes one back.
    trial.step(
        &["UPDATE child SET parent = 2 WHERE id <= 10; UPDATE alone SET id = id + 1000 WHERE id <= 5",
          "BEGIN; UPDATE child SET parent = 3 WHERE id <= 15; UPDATE child SET id = -id WHERE id = 16; DELETE FROM child WHERE id = 17; \
           INSERT INTO child VALUES (500, 1, 'not for long'); TRUNCATE child; \
           INSERT INTO child SELECT i, 1, repeat(md5(i::text), 80) FROM generate_series(1, 60) i; UPDATE child SET parent = 4 WHERE id <= 30; \
           TRUNCATE child; INSERT INTO child SELECT i, 1, repeat(md5(i::text), 70) FROM generate_series(1, 50) i; \
           UPDATE child SET parent = 5 WHERE id <= 30; UPDATE child SET id = id + 100 WHERE id <= 3; DELETE FROM child WHERE id = 40; \
           SAVEPOINT s; TRUNCATE parent CASCADE; TRUNCATE alone; ROLLBACK TO s; INSERT INTO bystander VALUES (1, 'beside'); COMMIT",
          "UPDATE child SET parent = 6 WHERE id BETWEEN 20 AND 45"],
        1,
    );
    trial.assert_feed("child", 20, 49);
    // Several transactions of one flush.
    trial.step(
        &[
            "UPDATE alone SET v = 'void'",
            "INSERT INTO alone VALUES (7000, 'void')",
            "TRUNCATE alone",
            "INSERT INTO alone VALUES (1, 'stays')",
            "UPDATE alone SET v = 'stays, changed'",
            "INSERT INTO alone VALUES (2, 'void')",
            "TRUNCATE alone",
            "INSERT INTO alone VALUES (2, 'stays')",
        ],
        1,
    );
    trial.assert_feed("alone", 40, 1);
    // Rows that come and go within.
    trial.step(&["BEGIN; TRUNCATE bystander; INSERT INTO bystander VALUES (9, 'x'); TRUNCATE bystander; COMMIT"], 1);
    trial.step(&["BEGIN; INSERT INTO bystander VALUES (9, 'x'); TRUNCATE bystander; COMMIT"], 0);
    trial.assert_past();
    let native = trial.scenario.lake.open_native();
    assert_eq!(
        native.number("SELECT count(*) FROM lake.public.alone WHERE id < 1000"),
        1,
        "bounds of the past hide nothing"
    );
    drop(native);
    trial.scenario.duckpipe.run(&["compact"]).expect(0);
    trial.assert_past();
    trial.step(&["TRUNCATE parent, child, unfollowed, alone, bystander", "INSERT INTO parent (v) VALUES ('last')"], 1);
    trial.assert_past();
}

/// Wherever the process dies, the table is emptied once, and together with what else its transaction did.
#[test]
fn killed_at_each_failpoint() {
    let rest = "[sync]\nflush_interval = \"20ms\"\n[[tables]]\nsource = \"public.*\"\n";
    for (name, combination) in [("truncate_kill_duckdb", Combination::EMBEDDED), ("truncate_kill_postgres", POSTGRES)] {
        let mut scenario = Scenario::new(name, combination, rest);
        scenario.source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i; \
             CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (0)",
        );
        scenario.converge(&["public.t", "public.other"]);
        for (round, failpoint) in ["upload", "commit_before", "commit_after", "confirm"].into_iter().enumerate() {
            let round = round + 1;
            // One that loads rows again, and one that leaves nothing.
            for (rows, sql) in [
                (
                    round * 2,
                    format!(
                        "TRUNCATE t; INSERT INTO t SELECT i, 'round {round}' FROM generate_series(1, {round} * 2) i"
                    ),
                ),
                (0, "TRUNCATE t".to_owned()),
            ] {
                let before = scenario.source.number("SELECT count(*) FROM t");
                scenario.source.execute(&format!(
                    "BEGIN; UPDATE t SET v = 'void'; {sql}; INSERT INTO other SELECT max(id) + 1 FROM other; COMMIT"
                ));
                let others = scenario.source.number("SELECT count(*) FROM other");
                scenario.duckpipe.die_at(failpoint, 1);
                let finished = scenario.duckpipe.sync_once();
                assert_eq!(finished.code, None, "{failpoint}: {}", finished.output());
                scenario.duckpipe.live();
                let committed = matches!(failpoint, "commit_after" | "confirm");
                let native = scenario.lake.open_native();
                let counts =
                    ["t", "other"].map(|table| native.number(&format!("SELECT count(*) FROM lake.public.{table}")));
                let expected = if committed { [rows as i64, others] } else { [before, others - 1] };
                assert_eq!(counts, expected, "{name}, {failpoint}");
                drop(native);
                scenario.converge(&["public.t", "public.other"]);
            }
        }
        Files::read(&scenario.lake, &scenario.lake.open_native()).assert_no_orphans();
    }
}

/// Between the first copy and the stream: the copy stays what it was, and the TRUNCATE follows at its place.
#[test]
fn after_the_copy_before_the_stream() {
    let mut scenario = Scenario::new(
        "truncate_handoff",
        POSTGRES,
        "[sync]\nflush_interval = \"10ms\"\n[[tables]]\nsource = \"public.*\"\n",
    );
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i",
    );
    scenario.duckpipe.die_at("handoff", 1);
    assert_eq!(scenario.duckpipe.sync_once().code, None);
    scenario.duckpipe.live();
    for transaction in ["UPDATE t SET v = 'w' WHERE id < 50", "TRUNCATE t", "INSERT INTO t VALUES (1, 'new')"] {
        scenario.source.execute(transaction);
    }
    scenario.converge(&["public.t"]);
    assert!(scenario.duckpipe.status().all("streaming"));
    let native = scenario.lake.open_native();
    let first = native.versions().into_iter().find(|version| version.lsn().is_some()).unwrap().id;
    assert_eq!(native.number(&format!("SELECT count(*) FROM lake.public.t AT (VERSION => {first})")), 100);
}

/// A table that `COPY` can be stopped at, and others that come after it.
fn with_a_gate(name: &str) -> (Scenario<'static>, Gate) {
    let scenario = Scenario::new(name, POSTGRES, "[sync]\nsnapshot_workers = 1\n[[tables]]\nsource = \"public.*\"\n");
    // Its text is made by a function that waits.
    scenario.source.execute(
        "CREATE TYPE slow AS (n int); \
         CREATE FUNCTION slow_text(slow) RETURNS text LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN ($1).n; END'; \
         CREATE CAST (slow AS text) WITH FUNCTION slow_text(slow); \
         CREATE TABLE a_gate (id int PRIMARY KEY, s slow); INSERT INTO a_gate VALUES (1, ROW(1)); \
         CREATE TABLE goes_on (id int PRIMARY KEY, v text); INSERT INTO goes_on SELECT i, 'v' FROM generate_series(1, 100) i; \
         CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i",
    );
    let gate = Gate { holder: scenario.source.connect() };
    (scenario, gate)
}

struct Gate {
    holder: Client,
}

impl Gate {
    fn close(&self) {
        self.holder.query("SELECT pg_advisory_lock(7)");
    }

    #[track_caller]
    fn wait_for_somebody(&self) {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        wait_for(
            "a COPY stands at the gate",
            MINUTE,
            || (self.holder.number(waiting) > 0).then_some(()),
            || {
                self.holder.text("SELECT coalesce(string_agg(query, '; '), '') FROM pg_stat_activity WHERE datname = current_database()")
            },
        );
    }

    fn open(&self) {
        self.holder.query("SELECT pg_advisory_unlock(7)");
    }
}

/// TRUNCATE does not wait for snapshots: a table that is truncated after the slot was made and before it is copied has none of the
/// rows of that moment any more. It stops, and says so; it is never shown empty, and the others go on.
#[test]
fn while_the_first_copy_is_made() {
    let (scenario, gate) = with_a_gate("truncate_copy");
    gate.close();
    let running = scenario.duckpipe.start(&["sync", "--once"]);
    gate.wait_for_somebody();
    scenario.source.execute("SET lock_timeout = '10s'; UPDATE t SET v = 'before' WHERE id < 10");
    scenario.source.execute("TRUNCATE t");
    scenario.source.execute("INSERT INTO t VALUES (1, 'after'); UPDATE goes_on SET v = 'after' WHERE id < 10");
    gate.open();
    running.wait(MINUTE).expect(5);
    let status = scenario.duckpipe.status();
    assert_eq!((status.state("public.t"), status.state("public.goes_on")), ("errored", "streaming"));
    let error = status.table("public.t")["error"].to_string();
    assert!(error.contains("truncated") && error.contains("resync"), "{error}");
    let native = scenario.lake.open_native();
    let stamped = native.versions().into_iter().filter(|version| version.lsn().is_some());
    for version in stamped {
        assert!(version.extra["behind"].get("public.t").is_some(), "{}", version.extra);
    }
    drop(native);
    scenario.converge_but(5, &["public.goes_on"]);
    scenario.resnapshot(&["public.t", "public.goes_on"]);
    scenario.source.execute("TRUNCATE t");
    scenario.converge(&["public.t", "public.goes_on"]);
}

/// The same for a validation: a table whose rows of the compared position are gone is left out, and nothing is called different.
#[test]
fn while_source_and_lake_are_compared() {
    let (scenario, gate) = with_a_gate("truncate_validate");
    scenario.converge(&["public.t", "public.goes_on"]);
    gate.close();
    let running = scenario.duckpipe.start(&["validate", "--json"]);
    gate.wait_for_somebody();
    scenario.source.execute("SET lock_timeout = '10s'; TRUNCATE t");
    gate.open();
    let finished = running.wait(MINUTE).expect(5);
    let report: serde_json::Value = serde_json::from_str(&finished.stdout).expect("a report");
    assert_eq!(report["findings"], serde_json::json!([]));
    let tables = report["tables"].as_array().expect("tables");
    let table = tables.iter().find(|table| table["source"] == "public.t").expect("the table");
    assert!(table["left_out"].as_str().is_some_and(|why| why.contains("truncated")), "{table}");
    scenario.converge(&["public.t", "public.goes_on"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Partitions that are followed as tables of their own, each by its name: each is emptied by itself, or all with the table that they
/// belong to.
#[test]
fn of_partitions() {
    let tables = Duckpipe::tables(&["public.one", "public.two"]);
    let scenario = Scenario::new("truncate_partitions", Combination::EMBEDDED, &format!("{ONE_FLUSH}{tables}"));
    scenario.source.execute(
        "CREATE TABLE whole (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part); \
         CREATE TABLE one PARTITION OF whole FOR VALUES IN (1); CREATE TABLE two PARTITION OF whole FOR VALUES IN (2); \
         INSERT INTO whole SELECT i, 1 + i % 2 FROM generate_series(1, 100) i",
    );
    let partitions = ["public.one", "public.two"];
    scenario.converge(&partitions);
    for (truncate, left) in [("TRUNCATE one", 50), ("INSERT INTO whole VALUES (1000, 1); TRUNCATE whole", 0)] {
        scenario.source.execute(truncate);
        scenario.converge(&partitions);
        let native = scenario.lake.open_native();
        let rows =
            native.number("SELECT (SELECT count(*) FROM lake.public.one) + (SELECT count(*) FROM lake.public.two)");
        assert_eq!(rows, left, "{truncate}");
    }
}

/// A table that stands still keeps its last rows, also when the source's are gone.
#[test]
fn of_a_table_that_stands_still() {
    let scenario = Scenario::new(
        "truncate_errored",
        Combination::EMBEDDED,
        &format!("{ONE_FLUSH}[[tables]]\nsource = \"public.*\"\n"),
    );
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i; \
         CREATE TABLE goes_on (id int PRIMARY KEY); INSERT INTO goes_on SELECT generate_series(1, 100)",
    );
    scenario.converge(&["public.t", "public.goes_on"]);
    // In one flush and one message: the one table stops at its new column, the other is emptied.
    scenario.source.execute("ALTER TABLE t ADD x int; INSERT INTO t VALUES (101, 'x', 1)");
    scenario.source.execute("TRUNCATE t, goes_on");
    scenario.source.execute("INSERT INTO goes_on VALUES (1)");
    scenario.converge_but(5, &["public.goes_on"]);
    let rows = |scenario: &Scenario<'_>| scenario.lake.open_native().number("SELECT count(*) FROM lake.public.t");
    assert_eq!(rows(&scenario), 100);
    scenario.source.execute("TRUNCATE t, goes_on");
    scenario.converge_but(5, &["public.goes_on"]);
    assert_eq!(rows(&scenario), 100);
    scenario.resnapshot(&["public.t", "public.goes_on"]);
}

/// A publication that does not send TRUNCATE would lose it without a word.
#[test]
fn a_publication_without_truncate_is_refused() {
    let scenario = Scenario::new("truncate_unsent", Combination::EMBEDDED, "[[tables]]\nsource = \"public.t\"\n");
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let name = scenario.slot();
    let refused = |code| {
        for command in [&["check"][..], &["sync", "--once"]] {
            let output = scenario.duckpipe.run(command).expect(code).output();
            assert!(output.contains("does not publish truncate") && output.contains("ALTER PUBLICATION"), "{output}");
        }
    };
    scenario
        .source
        .execute(&format!("CREATE PUBLICATION {name} FOR TABLE t WITH (publish = 'insert, update, delete')"));
    refused(1);
    scenario.source.execute(&format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"));
    scenario.converge(&["public.t"]);
    // Also where it is changed once everything goes.
    scenario.source.execute(&format!("ALTER PUBLICATION {name} SET (publish = 'insert, update, delete')"));
    refused(1);
}

/// Beside a `sync` that compacts all the time.
#[test]
fn beside_compaction() {
    let rest = "[sync]\nflush_interval = \"20ms\"\n[compact]\ninterval = \"1s\"\nmin_files = 2\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new("truncate_compact", POSTGRES, rest);
    scenario
        .source
        .execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY, v text)");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the first copy", MINUTE, |status| status.all("streaming"));
    let catalog = Client::connect(&scenario.lake.catalog());
    let merges =
        || catalog.number("SELECT count(*) FROM ducklake_snapshot_changes WHERE changes_made LIKE 'merge_adjacent%'");
    let mut round = 0;
    let start = std::time::Instant::now();
    while merges() < 6 || round < 12 {
        assert!(start.elapsed() < 5 * MINUTE && sync.runs(), "{round} rounds, {} merges; {}", merges(), sync.tail());
        round += 1;
        scenario.source.execute(&format!(
            "INSERT INTO t SELECT {round} * 1000 + i, md5(i::text) FROM generate_series(1, 200) i; UPDATE t SET v = md5(v) WHERE id % 7 = {round} % 7; \
             INSERT INTO other VALUES ({round}, 'v')"
        ));
        if round % 3 == 0 {
            scenario.source.execute(if round % 2 == 0 { "TRUNCATE t" } else { "TRUNCATE t, other" });
        }
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    }
    sync.terminate().expect(0);
    println!("{round} rounds, {} merges", merges());
    scenario.converge(&["public.t", "public.other"]);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}
