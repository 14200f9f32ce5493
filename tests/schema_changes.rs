//! Changes of a table's columns, while `sync` runs and while none does: the lake has the new columns in the version that brings the first rows which need
//! them, earlier versions keep theirs, and nothing is copied again.

use std::time::Duration;

use crate::lab::{CatalogKind, Client, Combination, NativeLake, Running, StoreKind, Version, assert_equal, wait_for};
use crate::scenario::{Files, Scenario};
use crate::workload::Writer;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[compact]\ninterval = \"1s\"\nmin_files = 3\n[[tables]]\nsource = \"public.*\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

/// A table with a column dropped before its key, and one that must not notice.
fn streaming(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (gone int, id int PRIMARY KEY, a int, b int, n numeric(10,2), v varchar(10), large text); \
         ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ALTER large SET STORAGE EXTERNAL; \
         INSERT INTO t SELECT i, i, -i, i / 7.0, 'v' || i, repeat(md5(i::text), 100) FROM generate_series(1, 500) i; \
         CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT i, 'v' FROM generate_series(1, 50) i",
    );
    scenario.duckpipe.sync_once().expect(0);
    scenario
}

/// Changes of the table, each with rows that need it.
const CHANGES: [(&str, &str); 11] = [
    // Rows that are there show a constant default, without being written.
    (
        "ALTER TABLE t ADD i int NOT NULL DEFAULT 7, ADD none text, ADD words text DEFAULT 'it''s', ADD d numeric(6,3) DEFAULT 1.5, \
         ADD at timestamptz DEFAULT '2024-02-29 12:00:00.5+00', ADD yes boolean DEFAULT true, ADD f float8 DEFAULT -0.1, \
         ADD u uuid DEFAULT '6e0cf3e4-2b6d-4b5b-9d3f-0a1b2c3d4e5f', ADD day date DEFAULT '1999-12-31', ADD tags text[]",
        "UPDATE t SET none = 'some', tags = '{x,NULL}' WHERE id BETWEEN 10 AND 20; DELETE FROM t WHERE id = 4; \
         INSERT INTO t (id, v) VALUES (1000, 'new')",
    ),
    ("ALTER TABLE t DROP COLUMN b", "INSERT INTO t (id, v) VALUES (1001, 'without b')"),
    ("ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME i TO a", "UPDATE t SET c = 5, a = 6 WHERE id = 30"),
    // Two that take each other's names: the message looks as before, but for the order.
    (
        "BEGIN; ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME c TO a; ALTER TABLE t RENAME x TO c; COMMIT",
        "UPDATE t SET a = 55, c = 66 WHERE id IN (30, 31)",
    ),
    // The name of one that goes, with another type.
    (
        "BEGIN; ALTER TABLE t DROP COLUMN words; ALTER TABLE t ADD words int DEFAULT 3; COMMIT",
        "UPDATE t SET words = 4 WHERE id = 40",
    ),
    // Its name and its type: the one that goes was not the last.
    ("ALTER TABLE t DROP a; ALTER TABLE t ADD a int", "UPDATE t SET a = 44 WHERE id = 41"),
    (
        "ALTER TABLE t ALTER n TYPE numeric(14,2), ALTER v TYPE varchar(50)",
        "UPDATE t SET n = 123456789012.34, v = repeat('w', 40) WHERE id = 50",
    ),
    ("ALTER TABLE t ALTER v TYPE text, ALTER d DROP DEFAULT", "UPDATE t SET v = repeat('x', 500) WHERE id = 51"),
    // The first rows come in blocks.
    (
        "ALTER TABLE t ADD block int DEFAULT 8",
        "BEGIN; INSERT INTO t (id, large, block) SELECT i, md5(i::text), 9 FROM generate_series(5000, 9000) i; \
         UPDATE t SET block = 10 WHERE id < 10; COMMIT",
    ),
    (
        "ALTER TABLE t ADD undone int DEFAULT 1",
        "BEGIN; INSERT INTO t (id, large) SELECT i, md5(i::text) FROM generate_series(10000, 14000) i; ROLLBACK; \
         UPDATE t SET undone = 2 WHERE id = 1",
    ),
    // In one transaction with the first rows that need it.
    (
        "BEGIN; ALTER TABLE t ADD late int DEFAULT 1; UPDATE t SET late = 2 WHERE id < 10; COMMIT",
        "UPDATE t SET v = 'x' WHERE id = 52",
    ),
];

/// Runs the change, then rows that need it, and waits until the lake is equal.
#[track_caller]
fn follows(scenario: &Scenario<'_>, sync: &mut Running<'_>, change: &str, rows: &str) {
    scenario.source.execute("UPDATE t SET a = a + 1 WHERE id <= 3; UPDATE other SET v = v || '.' WHERE id = 1");
    scenario.source.execute(change);
    scenario.source.execute(rows);
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{change}: {}", status.0);
    let finished = scenario.duckpipe.run(&["validate"]).expect(0);
    assert!(finished.stdout.contains("public.t"), "{}", finished.output());
}

fn every_change(combination: Combination) {
    let scenario = streaming(&format!("schema_all_{}", combination.name()), combination);
    let copied = scenario.duckpipe.status().table("public.t")["rows_copied"].clone();
    let first = scenario.lake.open_native().versions().last().unwrap().id;
    let at_first = format!("SELECT * FROM lake.public.t AT (VERSION => {first}) ORDER BY id");
    let before = scenario.lake.open_native().rows(&at_first);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));

    for (change, rows) in CHANGES {
        follows(&scenario, &mut sync, change, rows);
    }
    // Values that an UPDATE leaves where they are come from rows that are older than all this.
    scenario
        .source
        .execute("UPDATE t SET id = id + 10000 WHERE id BETWEEN 100 AND 120; UPDATE t SET a = 0 WHERE id > 450");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert_eq!(status.table("public.t")["rows_copied"], copied, "something was copied again");
    sync.terminate().expect(0);

    // Whoever starts anew finds the columns as they are, wherever the last change of them was interrupted after its commit.
    scenario.converge(&["public.t", "public.other"]);
    let native = scenario.lake.open_native();
    assert_eq!(native.rows(&at_first), before, "the past keeps its columns");
    Files::read(&scenario.lake, &native).assert_no_orphans();
    drop(native);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    scenario.duckpipe.run(&["compact"]).expect(0);
    let native = scenario.lake.open_native();
    assert_eq!(native.rows(&at_first), before, "the past keeps its columns over a compaction");
    assert_equal(&scenario.source, &native, "public.t");
    drop(native);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    killed(&scenario);
}

/// Dies on the way to the commit that changes columns, or right after it: the next start neither misses nor repeats them.
fn killed(scenario: &Scenario<'_>) {
    for point in ["upload", "commit_before", "commit_after"] {
        let mut sync = scenario.duckpipe.start_with(&["sync"], &[("DUCKPIPE_FAILPOINT", point)]);
        sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
        scenario.source.execute(&format!("ALTER TABLE t ADD at_{point} int DEFAULT 9"));
        scenario.source.execute(&format!("UPDATE t SET at_{point} = 10 WHERE id = 60"));
        assert_eq!(sync.wait(MINUTE).code, None, "not killed at {point}");
        scenario.converge(&["public.t", "public.other"]);
    }
}

/// The versions in which the table's columns changed, and how many of its rows did with them.
fn column_changes(native: &NativeLake) -> Vec<(i64, i64)> {
    let versions = native.versions();
    let versions: Vec<_> = versions.iter().skip_while(|version| version.lsn().is_none()).collect();
    let columns = |version: &Version| native.columns("public.t", Some(version.id));
    let changed = versions.windows(2).filter(|pair| columns(pair[0]) != columns(pair[1])).map(|pair| pair[1].id);
    let rows = |id| format!("SELECT count(*) FROM ducklake_table_changes('lake', 'public', 't', {id}, {id})");
    changed.map(|id| (id, native.number(&rows(id)))).collect()
}

/// As [`every_change`], but nobody is there to see the changes: the next start finds them.
fn every_change_unseen(combination: Combination) {
    let scenario = streaming(&format!("schema_unseen_{}", combination.name()), combination);
    let copied = scenario.duckpipe.status().table("public.t")["rows_copied"].clone();
    for (change, rows) in CHANGES {
        scenario.source.execute("UPDATE t SET large = 'x' WHERE id <= 3; UPDATE other SET v = v || '.' WHERE id = 1");
        scenario.source.execute(change);
        scenario.source.execute(rows);
        scenario.converge(&["public.t", "public.other"]);
    }
    let native = scenario.lake.open_native();
    let with_rows = column_changes(&native).iter().filter(|(_, rows)| *rows > 0).count();
    assert_eq!(with_rows, column_changes(&native).len(), "columns came apart from the rows that need them");
    assert!(with_rows >= CHANGES.len() - 2, "{with_rows}");
    drop(native);
    // What no row followed yet is nothing to stop for, neither now nor later.
    scenario.source.execute("ALTER TABLE t ADD idle int DEFAULT 12; UPDATE other SET v = 'x' WHERE id = 2");
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("VACUUM FULL other");
    scenario.source.execute("UPDATE other SET v = 'y' WHERE id = 2");
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute(
        "ALTER TABLE other ADD n int DEFAULT 1; UPDATE t SET idle = 13 WHERE id = 5; DELETE FROM other WHERE id = 7",
    );
    scenario.converge(&["public.t", "public.other"]);
    // Several changes, each with its rows, before the first is read.
    for (change, rows) in [
        ("ALTER TABLE t ADD one int DEFAULT 5", "UPDATE t SET one = 1, idle = 14 WHERE id = 70"),
        ("ALTER TABLE t ADD two text DEFAULT 'x', DROP idle", "UPDATE t SET two = 'y' WHERE id = 71"),
        (
            "ALTER TABLE t RENAME large TO huge; ALTER TABLE t ADD three int",
            "UPDATE t SET huge = 'z', three = 3 WHERE id = 72",
        ),
    ] {
        scenario.source.execute(change);
        scenario.source.execute(rows);
    }
    scenario.converge(&["public.t", "public.other"]);
    assert_eq!(scenario.duckpipe.status().table("public.t")["rows_copied"], copied, "something was copied again");
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn every_change_unseen_duckdb_local() {
    every_change_unseen(Combination::EMBEDDED);
}

#[test]
fn every_change_unseen_postgres_local() {
    every_change_unseen(POSTGRES);
}

#[test]
fn every_change_duckdb_local() {
    every_change(Combination::EMBEDDED);
}

#[test]
fn every_change_postgres_local() {
    every_change(POSTGRES);
}

/// What the WAL and the catalog do not tell stops the table, with what happened, and nothing is guessed.
#[test]
fn what_can_not_be_told_stops_the_table() {
    for (number, (change, words)) in [
        ("ALTER TABLE t ALTER a TYPE bigint; UPDATE t SET a = 5000000000 WHERE id = 1", "written anew"),
        ("ALTER TABLE t ADD r float8 DEFAULT random(); UPDATE t SET r = 1 WHERE id = 1", "written anew"),
        ("ALTER TABLE t DROP large; ALTER TABLE t ADD large text; UPDATE t SET large = 'x' WHERE id = 1", "its name"),
        // The first rows come in blocks.
        (
            "BEGIN; ALTER TABLE t DROP large; ALTER TABLE t ADD large text; COMMIT; \
             INSERT INTO t (id, large) SELECT i, md5(i::text) FROM generate_series(5000, 9000) i",
            "its name",
        ),
        ("ALTER TABLE t ADD tags int[] DEFAULT '{1}'; UPDATE t SET tags = '{2}' WHERE id = 1", "list"),
        (
            "BEGIN; UPDATE t SET a = 0 WHERE id = 1; ALTER TABLE t ADD x int; UPDATE t SET x = 1 WHERE id = 2; COMMIT",
            "one transaction",
        ),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, v); UPDATE t SET a = 1 WHERE id = 1", "key"),
    ]
    .into_iter()
    .enumerate()
    {
        let scenario = streaming(&format!("schema_unclear_{number}"), Combination::EMBEDDED);
        // Few rows, so that what writes them anew does not come in blocks.
        scenario.source.execute("DELETE FROM t WHERE id BETWEEN 3 AND 498; UPDATE t SET large = NULL");
        let mut sync = scenario.duckpipe.sync();
        sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
        scenario.source.execute(change);
        scenario.source.execute("UPDATE other SET v = 'after'");
        let lsn = scenario.source.lsn();
        let status = sync.wait_until("the other table goes on", MINUTE, |status| {
            status.state("public.t") == "errored" && status.applied_lsn() >= Some(lsn)
        });
        let error = status.table("public.t")["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains(words) && error.contains("resync"), "{change}: {error}");
        stays_stopped(&scenario, &mut sync);
        sync.terminate().expect(0);
        assert_equal(&scenario.source, &scenario.lake.open_native(), "public.other");
        scenario.resnapshot(&["public.t", "public.other"]);
    }
}

/// A quiet table changes, while the transactions of another follow each other without a pause.
#[test]
fn no_row_follows_under_load() {
    let scenario = streaming("schema_load", Combination::EMBEDDED);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let writers = [1, 2, 3].map(|id| {
        Writer::of(&scenario.source.url(), move |client| {
            client.execute(&format!("UPDATE other SET v = md5(v) WHERE id = {id}"));
        })
    });
    for (change, column) in [("ADD quiet int DEFAULT 3, DROP b", "quiet"), ("RENAME a TO renamed", "renamed")] {
        scenario.source.execute(&format!("ALTER TABLE t {change}"));
        let columns = || scenario.lake.open_beside_sync().columns("public.t", None);
        let is_there = || columns().iter().any(|(name, _)| name == column).then_some(());
        // A slow machine falls behind three writers.
        wait_for("the columns", 3 * MINUTE, is_there, || format!("{:?}: {}", columns(), sync.tail()));
    }
    assert!(writers.iter().all(Writer::runs));
    for writer in writers {
        writer.stop();
    }
    sync.wait_for_lsn(scenario.source.lsn(), 3 * MINUTE);
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.other"]);
}

/// The connection to the source breaks while the commit that brings new columns is under way.
#[test]
fn a_connection_that_breaks_while_columns_come() {
    let scenario = streaming("schema_breaks", POSTGRES);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.source.execute("UPDATE t SET a = 1 WHERE id = 1");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    let catalogs = [(), ()].map(|()| Client::connect(&scenario.lake.catalog()));
    for step in 1..4 {
        catalogs[0].execute("BEGIN; LOCK TABLE duckpipe_format IN EXCLUSIVE MODE");
        scenario.source.execute(&format!("ALTER TABLE t ADD late{step} int DEFAULT 1"));
        scenario.source.execute(&format!("UPDATE t SET late{step} = 2 WHERE id < 9"));
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'duckpipe_format'::regclass";
        wait_for("the commit", MINUTE, || (catalogs[1].number(waits) == 1).then_some(()), || sync.tail());
        let slot = scenario.slot();
        let holder = format!("FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
        scenario.source.query(&format!("SELECT pg_terminate_backend(active_pid) {holder}"));
        let gone = || (scenario.source.number(&format!("SELECT count(*) {holder}")) == 0).then_some(());
        wait_for("the connection's end", MINUTE, gone, || sync.tail());
        catalogs[0].execute("COMMIT");
        scenario.source.execute(&format!("UPDATE t SET late{step} = 3 WHERE id = 20"));
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    }
    let finished = sync.terminate().expect(0);
    assert!(!finished.stderr.contains("the table stops"), "{}", finished.stderr);
    scenario.assert_equal(&["public.t", "public.other"]);
}

/// The catalog's connection breaks while columns are committed that no row follows: whether they got in is not told by a position.
#[test]
fn a_catalog_that_breaks_while_columns_come() {
    let scenario = streaming("schema_catalog", POSTGRES);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let catalogs = [(), ()].map(|()| Client::connect(&scenario.lake.catalog()));
    for step in 1..4 {
        catalogs[0].execute("BEGIN; LOCK TABLE duckpipe_format IN EXCLUSIVE MODE");
        scenario.source.execute(&format!("ALTER TABLE t ADD alone{step} int DEFAULT 1"));
        let waits = "FROM pg_locks WHERE NOT granted AND relation = 'duckpipe_format'::regclass";
        let waiting = || (catalogs[1].number(&format!("SELECT count(*) {waits}")) >= 1).then_some(());
        wait_for("the commit", MINUTE, waiting, || sync.tail());
        // Not the last answer that it waits for: an idle source's position is taken over in the same way.
        for _ in 0..3 {
            wait_for("the commit", MINUTE, waiting, || sync.tail());
            catalogs[1].query(&format!("SELECT pg_terminate_backend(pid) {waits}"));
        }
        catalogs[0].execute("COMMIT");
        let columns = || scenario.lake.open_beside_sync().columns("public.t", None);
        let is_there = || columns().iter().any(|(name, _)| *name == format!("alone{step}")).then_some(());
        wait_for("the column", MINUTE, is_there, || format!("{:?}: {}", columns(), sync.tail()));
        scenario.source.execute(&format!("UPDATE t SET alone{step} = 2 WHERE id < 9"));
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    }
    let finished = sync.terminate().expect(0);
    assert!(!finished.stderr.contains("the table stops"), "{}", finished.stderr);
    scenario.assert_equal(&["public.t", "public.other"]);
}

/// Changes that no row follows are in the lake before long, also what was changed while nobody ran, and wherever that is interrupted.
fn no_row_follows(combination: Combination) {
    let scenario = streaming(&format!("schema_alone_{}", combination.name()), combination);
    let tables = ["public.t", "public.other"];
    let columns = |native: &crate::lab::NativeLake| -> Vec<String> {
        native.columns("public.t", None).into_iter().map(|(name, _)| name).collect()
    };
    scenario.source.execute("ALTER TABLE t ADD unseen text DEFAULT 'while nobody ran'");
    let mut sync = scenario.duckpipe.sync();
    // What `status` shows may be what the last run left: a row that arrives is this one's.
    let runs = |sync: &mut Running<'_>| {
        scenario.source.execute("UPDATE other SET v = v || '.' WHERE id = 1");
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    };
    runs(&mut sync);
    let shown = |sync: &mut Running<'_>, what: &str, column: &str, there: bool| {
        wait_for(
            what,
            MINUTE,
            || {
                assert!(sync.runs(), "{}", sync.tail());
                let columns = columns(&scenario.lake.open_beside_sync());
                (columns.iter().any(|name| name == column) == there).then_some(())
            },
            || format!("{:?}", columns(&scenario.lake.open_beside_sync())),
        );
    };
    shown(&mut sync, "a column that came while nobody ran", "unseen", true);
    scenario.source.execute("ALTER TABLE t ADD seven int DEFAULT 7, DROP b");
    shown(&mut sync, "one that came while sync runs", "seven", true);
    shown(&mut sync, "one that went", "b", false);
    scenario.source.execute("ALTER TABLE t RENAME seven TO eight");
    shown(&mut sync, "one with another name", "eight", true);
    // Rows after it are as any others, also those in blocks.
    scenario.source.execute("UPDATE t SET eight = 8 WHERE id < 10");
    scenario
        .source
        .execute("INSERT INTO t (id, large, eight) SELECT i, md5(i::text), 9 FROM generate_series(5000, 9000) i");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{}", status.0);
    sync.terminate().expect(0);
    scenario.assert_equal(&tables);

    for point in ["commit_before", "commit_after"] {
        let mut dying = scenario.duckpipe.start_with(&["sync"], &[("DUCKPIPE_FAILPOINT", point)]);
        dying.wait_until("the stream", MINUTE, |status| status.all("streaming"));
        scenario.source.execute(&format!("ALTER TABLE t ADD at_{point} int DEFAULT 9"));
        assert_eq!(dying.wait(MINUTE).code, None, "not killed at {point}");
        let mut sync = scenario.duckpipe.sync();
        runs(&mut sync);
        shown(&mut sync, point, &format!("at_{point}"), true);
        sync.terminate().expect(0);
        scenario.assert_equal(&tables);
    }
    let native = scenario.lake.open_native();
    let times = native.versions().into_iter().filter(|version| version.lsn().is_some());
    let mut times = times.map(|version| version.extra["commit_ts"].clone()).skip_while(|time| time.is_null());
    assert!(times.all(|time| !time.is_null()), "a change without a row repeats the last transaction's time");
    let alone = column_changes(&native).iter().filter(|(_, rows)| *rows == 0).count();
    assert!(alone >= 5, "{alone} versions have other columns and no other rows");
    drop(native);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn no_row_follows_duckdb_local() {
    no_row_follows(Combination::EMBEDDED);
}

#[test]
fn no_row_follows_postgres_local() {
    no_row_follows(POSTGRES);
}

/// A connection that breaks brings no stopped table back: its changes were passed over.
fn stays_stopped(scenario: &Scenario<'_>, sync: &mut Running<'_>) {
    let walsender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{}'", scenario.slot());
    let before = scenario.source.text(&walsender);
    scenario.source.execute(&format!("SELECT pg_terminate_backend({before})"));
    wait_for(
        "another connection",
        MINUTE,
        || {
            (!["", &before]
                .contains(&scenario.source.text(&format!("SELECT coalesce(({walsender})::text, '')")).as_str()))
            .then_some(())
        },
        String::new,
    );
    scenario.source.execute("DELETE FROM t WHERE id = 499; UPDATE other SET v = 'and on'");
    let lsn = scenario.source.lsn();
    let status = sync.wait_until("the other table goes on", MINUTE, |status| status.applied_lsn() >= Some(lsn));
    assert_eq!(status.state("public.t"), "errored", "{}", status.0);
    assert_eq!(status.state("public.other"), "streaming", "{}", status.0);
}

/// A type that a column has is called otherwise, or lies elsewhere: its values are read as before, and no message tells.
#[test]
fn a_type_of_another_name() {
    let scenario = Scenario::new(
        "schema_type_name",
        Combination::EMBEDDED,
        "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n",
    );
    scenario.source.execute(
        "CREATE TYPE mood AS ENUM ('ok', 'sad'); CREATE DOMAIN small AS int CHECK (VALUE < 1000); CREATE SCHEMA types; \
         CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY, m mood, s small, a mood[]); \
         INSERT INTO t SELECT i, 'ok', i, '{sad}' FROM generate_series(1, 100) i",
    );
    scenario.converge(&["public.t"]);
    let mut number = 1000;
    for change in [
        "ALTER TYPE mood RENAME TO feeling",
        "ALTER DOMAIN small RENAME TO tiny",
        "ALTER TYPE feeling SET SCHEMA types",
    ] {
        scenario.source.execute(change);
        let mut sync = scenario.duckpipe.sync();
        sync.wait_for_output("INFO streaming", Duration::from_secs(60));
        // A row before the table is looked at, and one after: what comes of another table at a look proves it.
        for look in [true, false] {
            number += 1;
            scenario.source.execute(&format!("INSERT INTO t VALUES ({number}, 'sad', 7, '{{ok}}')"));
            sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
            if look {
                scenario.source.execute(&format!("ALTER TABLE other ADD c{number} int"));
                sync.wait_for_output("the table's definition changed table=public.other", Duration::from_secs(60));
            }
        }
        assert!(!sync.output().contains("copying the table afresh"), "{}", sync.tail());
        sync.terminate().expect(0);
        scenario.assert_equal(&["public.t"]);
    }
}
