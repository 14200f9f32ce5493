//! Large transactions, which the source sends in blocks before they commit: what is rolled back, whole or in part, leaves nothing; what
//! commits is there once, at its place.
//!
//! All servers of these tests begin to send at 64 kB.

use std::time::Duration;

use crate::lab::{CatalogKind, Client, Combination, StoreKind, wait_for};
use crate::scenario::{Files, Scenario};

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const TABLES: &str = "[sync]\nflush_interval = \"20ms\"\n[[tables]]\nsource = \"public.*\"\n";
const FOLLOWED: [&str; 3] = ["public.t", "public.wide", "public.other"];
const MINUTE: Duration = Duration::from_secs(60);

fn synced(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i; \
         CREATE TABLE wide (id int PRIMARY KEY, n int, body text); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL; \
         INSERT INTO wide SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 200) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (0)",
    );
    scenario.converge(&FOLLOWED);
    scenario
}

/// Transactions, and parts of them, that the slot sent in blocks.
fn sent_in_blocks(scenario: &Scenario<'_>) -> i64 {
    let sql = format!("SELECT stream_count FROM pg_stat_replication_slots WHERE slot_name = '{}'", scenario.slot());
    scenario.source.query(&sql).first().and_then(|row| row[0].clone()).map_or(0, |count| count.parse().unwrap())
}

fn fill(session: &Client, first: u32, rows: u32) {
    session.execute(&format!(
        "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series({first}, {}) i",
        first + rows - 1
    ));
}

/// Several at once, with small ones in between; savepoints that are rolled back and that are not; truncates; moved keys; values that
/// stay where they are.
fn all_forms(combination: Combination) {
    let scenario = synced(&format!("streamed_{}", combination.name()), combination);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let (one, two) = (scenario.source.connect(), scenario.source.connect());
    one.execute("BEGIN");
    two.execute("BEGIN");
    fill(&one, 10_000, 3000);
    fill(&two, 20_000, 3000);
    scenario.source.execute("INSERT INTO other VALUES (1)");
    one.execute("SAVEPOINT a; UPDATE t SET v = 'void' WHERE id >= 10000 AND id < 11000");
    fill(&one, 30_000, 2000);
    one.execute("SAVEPOINT b; UPDATE wide SET n = 1; UPDATE wide SET id = id + 1000 WHERE id <= 50; DELETE FROM t WHERE id >= 30500 AND id < 31000");
    fill(&two, 24_000, 1000);
    // A savepoint within one that goes.
    one.execute(
        "RELEASE b; UPDATE wide SET n = 2 WHERE id > 100; ROLLBACK TO a; UPDATE t SET v = 'kept' WHERE id < 300",
    );
    two.execute("SAVEPOINT c; TRUNCATE other; INSERT INTO other SELECT generate_series(100, 3000); ROLLBACK TO c");
    two.execute("UPDATE wide SET n = 3, id = -id WHERE id <= 20; UPDATE wide SET id = -id WHERE id < 0 AND id > -10; UPDATE wide SET n = n + 1 WHERE id < 30");
    scenario.source.execute("INSERT INTO other VALUES (2); DELETE FROM t WHERE id BETWEEN 900 AND 950");
    two.execute("COMMIT");
    one.execute("UPDATE t SET id = id + 1000000 WHERE id BETWEEN 10000 AND 10500; DELETE FROM t WHERE id BETWEEN 12000 AND 12100; COMMIT");
    // Emptied and filled within one, the first time for nothing.
    one.execute("BEGIN; SAVEPOINT s; TRUNCATE t, wide; ROLLBACK TO s");
    fill(&one, 40_000, 2000);
    one.execute(
        "TRUNCATE other; INSERT INTO other SELECT generate_series(1, 2000); DELETE FROM other WHERE id % 3 = 0; COMMIT",
    );
    // Nothing of these.
    one.execute("BEGIN; UPDATE t SET v = 'rolled back'; TRUNCATE wide");
    fill(&one, 60_000, 3000);
    one.execute("ROLLBACK");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(sent_in_blocks(&scenario) >= 10, "{} blocks", sent_in_blocks(&scenario));
    sync.terminate().expect(0);
    scenario.converge(&FOLLOWED);
    scenario.duckpipe.run(&["validate"]).expect(0);
    Files::read(&scenario.lake, &scenario.lake.open_native()).assert_no_orphans();
}

#[test]
fn all_forms_duckdb_local() {
    all_forms(Combination::EMBEDDED);
}

#[test]
fn all_forms_postgres_s3() {
    all_forms(Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 });
}

/// A definition that is changed and changed back by a rollback, and values that can't be taken in what is rolled back, are nothing to the
/// table. What commits is.
#[test]
fn what_does_not_fit_counts_when_it_commits() {
    let scenario = synced("streamed_unfit", POSTGRES);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let session = scenario.source.connect();
    session.execute("BEGIN");
    fill(&session, 10_000, 1000);
    session.execute("SAVEPOINT a; ALTER TABLE t ADD COLUMN extra int; SAVEPOINT b; INSERT INTO t SELECT i, 'x', 1 FROM generate_series(20000, 23000) i");
    session
        .execute("ROLLBACK TO b; INSERT INTO t SELECT i, 'x', 1 FROM generate_series(20000, 23000) i; ROLLBACK TO a");
    fill(&session, 30_000, 2000);
    session.execute("COMMIT");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{}", status.0);
    session.execute("BEGIN; ALTER TABLE t ADD COLUMN extra int; INSERT INTO t SELECT i, 'x', 1 FROM generate_series(40000, 43000) i; ROLLBACK");
    session.execute("BEGIN; ALTER TABLE t RENAME v TO undone; INSERT INTO t SELECT i, 'x' FROM generate_series(40000, 43000) i; ROLLBACK");
    scenario.source.execute("UPDATE t SET v = 'w' WHERE id < 10");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{}", status.0);
    assert!(sent_in_blocks(&scenario) >= 4, "{} blocks", sent_in_blocks(&scenario));
    let renamed = "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_column WHERE column_name = 'undone'";
    assert_eq!(scenario.lake.open_native().text(renamed), "0");

    session.execute("BEGIN");
    fill(&session, 50_000, 2000);
    session.execute("ALTER TABLE t ADD COLUMN extra int; INSERT INTO t SELECT i, 'x', 1 FROM generate_series(60000, 63000) i; INSERT INTO other VALUES (7); COMMIT");
    let status = sync.wait_until("the table stops", MINUTE, |status| status.state("public.t") == "errored");
    assert_eq!(status.state("public.other"), "streaming");
    let target = scenario.source.lsn();
    sync.wait_until("the others go on", MINUTE, |status| status.applied_lsn() >= Some(target));
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.wide", "public.other"]);
}

/// An open transaction of which much has come is nobody's business: not a version's, not a run's, and not the next process'.
#[test]
fn open_while_processes_come_and_go() {
    let mut scenario = synced("streamed_restart", POSTGRES);
    let session = scenario.source.connect();
    session.execute("BEGIN; UPDATE wide SET n = 7");
    fill(&session, 10_000, 3000);
    scenario.source.execute("INSERT INTO other VALUES (1)");
    scenario.duckpipe.sync_once().expect(0);
    scenario.assert_equal(&FOLLOWED);
    fill(&session, 20_000, 3000);
    let mut sync = scenario.duckpipe.sync();
    scenario.source.execute("INSERT INTO other VALUES (2)");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.kill9();
    session.execute("SAVEPOINT s; DELETE FROM wide; ROLLBACK TO s; DELETE FROM t WHERE id % 2 = 0");
    scenario.source.execute("INSERT INTO other VALUES (3)");
    scenario.duckpipe.sync_once().expect(0);
    scenario.assert_equal(&FOLLOWED);
    session.execute("COMMIT");
    // It comes whole, whatever a predecessor had of it, and once.
    for failpoint in ["upload", "commit_before", "commit_after", "confirm"] {
        scenario.duckpipe.die_at(failpoint, 1);
        scenario.duckpipe.sync_once();
        scenario.duckpipe.live();
    }
    assert!(sent_in_blocks(&scenario) >= 4, "{} blocks", sent_in_blocks(&scenario));
    scenario.converge(&FOLLOWED);
    scenario.duckpipe.run(&["validate"]).expect(0);
    Files::read(&scenario.lake, &scenario.lake.open_native()).assert_no_orphans();
}

/// A table gets columns while a transaction is open that had sent rows of it, or is rolled back after it had.
#[test]
fn columns_that_come_beside_an_open_transaction() {
    let scenario = synced("streamed_columns", Combination::EMBEDDED);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    // It took back what it had sent of the table, and writes more rows, of the columns that this has by then.
    let one = scenario.source.connect();
    one.execute("BEGIN; SAVEPOINT s");
    fill(&one, 10_000, 3000);
    one.execute("ROLLBACK TO s");
    scenario.source.execute("ALTER TABLE t ADD c int DEFAULT 5; INSERT INTO t VALUES (5000, 'x', 6)");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    one.execute("INSERT INTO t SELECT i, repeat('w', 100), 7 FROM generate_series(20000, 23000) i; COMMIT");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    // The first rows that have a column are rolled back.
    scenario.source.execute("ALTER TABLE t ADD d int DEFAULT 8");
    one.execute("BEGIN; INSERT INTO t SELECT i, repeat('w', 100), 7, 9 FROM generate_series(30000, 33000) i; ROLLBACK");
    let columns = || scenario.lake.open_beside_sync().columns("public.t", None).len();
    wait_for("the column", MINUTE, || (columns() == 4).then_some(()), || sync.tail());
    assert!(sent_in_blocks(&scenario) > 0);
    let finished = sync.terminate().expect(0);
    assert!(!finished.stderr.contains("the table stops"), "{}", finished.stderr);
    scenario.assert_equal(&FOLLOWED);
}

/// A block with an exception handler is a subtransaction: thousands of them in one transaction, every third of which fails.
#[test]
fn thousands_of_subtransactions() {
    let scenario = synced("streamed_handlers", Combination::EMBEDDED);
    scenario.source.execute(
        "DO $$ BEGIN FOR i IN 1..6000 LOOP BEGIN \
         INSERT INTO t VALUES (10000 + i, repeat('x', 30)); UPDATE wide SET n = i WHERE id = i % 200; \
         IF i % 3 = 0 THEN RAISE EXCEPTION 'not this one'; END IF; \
         EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
    );
    scenario.converge(&FOLLOWED);
    assert!(sent_in_blocks(&scenario) >= 4, "{} blocks", sent_in_blocks(&scenario));
    let native = scenario.lake.open_native();
    assert_eq!(native.number("SELECT count(*) FROM lake.public.t"), 5000);
}
