//! A table that can't go on, or that somebody wants anew, is copied beside the stream; the others do not notice.

use std::time::Duration;

use crate::lab::{
    CatalogKind, Client, Combination, Comparison, NativeLake, Running, StoreKind, assert_equal, wait_for,
};
use crate::scenario::{Scenario, assert_level};
use crate::workload::Writer;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
const BOTH: [&str; 2] = ["public.t", "public.other"];
const MINUTE: Duration = Duration::from_secs(60);

/// Two tables, copied and streaming. Large enough that a copy comes in several batches.
fn copied(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, a int, v text NOT NULL, large text); \
         INSERT INTO t SELECT i, 0, i, repeat('v', 100), repeat(md5(i::text), 3) FROM generate_series(1, 30000) i; \
         CREATE TABLE other (id int PRIMARY KEY, n int, v text); INSERT INTO other SELECT i, 0, 'v' FROM generate_series(1, 200) i",
    );
    scenario.converge(&BOTH);
    scenario
}

/// Writes the same number into both tables, in one transaction, again and again; other rows of theirs come, change and go.
fn both_at_once(client: &Client, number: u64) {
    let id = 100_000 + number;
    client.execute(&format!(
        "BEGIN; UPDATE t SET n = {number} WHERE id = 1; UPDATE other SET n = {number} WHERE id = 1; \
         INSERT INTO t (id, n, v) VALUES ({id}, {number}, 'new'); UPDATE t SET n = {number} WHERE id = 2 + {number} % 20000; \
         DELETE FROM t WHERE id = {id} - 5; COMMIT"
    ));
}

fn writer(scenario: &Scenario<'_>) -> Writer {
    let mut number = 0;
    Writer::of(&scenario.source.url(), move |client| {
        number += 1;
        both_at_once(client, number);
        std::thread::sleep(Duration::from_millis(5));
    })
}

/// Waits until everything that the source has by now is in the lake, with both tables streaming.
fn level(scenario: &Scenario<'_>, sync: &mut Running<'_>, what: &str) {
    let lsn = scenario.source.lsn();
    sync.wait_until(what, MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
}

/// No version shows one table ahead of the other, but where it says so; and then it keeps its rows until the whole copy takes their place.
#[track_caller]
fn examine(native: &NativeLake, least: usize) {
    let together = assert_level(native, &BOTH, "n", 1);
    let (mut behind, mut last) = (0, None);
    for version in native.versions() {
        let Some(position) = version.extra["behind"].get("public.t") else {
            // Versions without a position are made on the way to the copy's end.
            last = last.filter(|_| version.lsn().is_none());
            continue;
        };
        behind += 1;
        let from = NativeLake::table("public.t", Some(version.id));
        let rows = native.rows(&format!("SELECT count(*), sum(hash(id, n::VARCHAR)) FROM {from}"));
        let now = (position.clone(), rows);
        if let Some(last) = last.filter(|(known, _): &(_, _)| *known == now.0) {
            assert_eq!(last, now, "version {} shows something of the copy", version.id);
        }
        last = Some(now);
    }
    assert!(together >= least && behind > 0, "{together} versions show both, {behind} do not");
}

/// The one slot is left, and no row of the catalog names another.
#[track_caller]
fn nothing_is_left(scenario: &Scenario<'_>) {
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", scenario.source.name());
    assert_eq!(scenario.source.number(&slots), 1);
}

/// What neither WAL nor catalog tells.
const CHANGES: [&str; 7] = [
    "ALTER TABLE t ALTER a TYPE bigint; UPDATE t SET a = 5000000000 WHERE id = 1",
    "ALTER TABLE t ADD r float8 DEFAULT random(); UPDATE t SET r = 1 WHERE id = 1",
    "ALTER TABLE t DROP large; ALTER TABLE t ADD large text; UPDATE t SET large = 'x' WHERE id = 1",
    "ALTER TABLE t ADD tags int[] DEFAULT '{1}'; UPDATE t SET tags = '{2}' WHERE id = 1",
    // Its lock comes first: the writer that waits for row 1 would be in ALTER's way.
    "BEGIN; LOCK TABLE t; UPDATE t SET a = 0 WHERE id = 1; ALTER TABLE t ADD x int; UPDATE t SET x = 1 WHERE id = 2; COMMIT",
    "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, v); UPDATE t SET a = 1 WHERE id = 1",
    "ALTER TABLE t ALTER a TYPE text USING 'a' || a, DROP x; UPDATE t SET a = 'text' WHERE id = 1",
];

/// Each change is followed by a fresh copy, while writers go on; versions before it show what they showed.
fn what_only_a_copy_mends(combination: Combination) {
    let mut scenario = copied(&format!("mends_{}", combination.name()), combination);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let before = scenario.version_ids().pop().unwrap();
    let then = |native: &NativeLake| {
        native.rows(&format!("SELECT * FROM {} ORDER BY id LIMIT 50", NativeLake::table("public.t", Some(before))))
    };
    let shown = then(&scenario.lake.open_native());
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let writer = writer(&scenario);
    for change in CHANGES {
        scenario.source.execute(change);
        level(&scenario, &mut sync, change);
        assert!(writer.runs());
    }
    // Each of these is one more version that shows both, or more of them.
    for _ in 0..10 {
        level(&scenario, &mut sync, "what is written beside the copies");
    }
    writer.stop();
    level(&scenario, &mut sync, "the end");
    sync.terminate().expect(0);
    let native = scenario.lake.open_native();
    assert_eq!(then(&native), shown, "the version before all changes");
    assert!(scenario.assert_equal(&BOTH) > 30_000);
    examine(&native, 10);
    drop(native);
    nothing_is_left(&scenario);
    // What came of it is a lake as any other: it goes on, and its files are what the catalog says.
    scenario.source.execute("UPDATE t SET n = -1 WHERE id < 100; DELETE FROM t WHERE id BETWEEN 100 AND 200");
    scenario.converge(&BOTH);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

#[test]
fn what_only_a_copy_mends_duckdb() {
    what_only_a_copy_mends(Combination::EMBEDDED);
}

#[test]
fn what_only_a_copy_mends_postgres() {
    what_only_a_copy_mends(POSTGRES);
}

/// By hand: of a table that streams, whose lake somebody else damaged; of one that stopped; of one that was made anew; and before `sync` runs.
fn asked_for(combination: Combination) {
    let scenario = copied(&format!("asked_{}", combination.name()), combination);
    let resync = |table: &str| scenario.duckpipe.run(&["tables", "resync", table]);
    let unknown = resync("public.nobody").output();
    assert!(unknown.contains("public.other"), "{unknown}");
    scenario.lake.open_native_writable().execute("DELETE FROM lake.public.t WHERE id % 3 = 0");
    // Nobody runs: it is done by the next sync.
    resync("public.t").expect(0);
    let mut sync = scenario.duckpipe.sync();
    let writing = writer(&scenario);
    // What was asked of a table that streams says nothing until it begins: how often its rows were copied tells that it did.
    let copies = |sync: &mut Running<'_>, copies: u64, what: &str| {
        sync.wait_until(what, MINUTE, |status| {
            status.table("public.t")["rows_copied"].as_u64() >= Some(copies * 30_000)
        });
        level(&scenario, sync, what);
    };
    copies(&mut sync, 2, "the copy that was asked for before the start");
    resync("public.t").expect(0);
    copies(&mut sync, 3, "the copy of a table that streams");
    // Each of these is one more version that shows both, or more of them.
    for _ in 0..10 {
        level(&scenario, &mut sync, "what is written beside the copies");
    }
    writing.stop();

    scenario.source.execute("ALTER TABLE t ALTER a TYPE bigint; UPDATE t SET a = 5000000000 WHERE id = 1");
    sync.wait_until("the table stops", MINUTE, |status| status.state("public.t") == "errored");
    let asked = scenario.duckpipe.run(&["tables", "resync", "--errored"]).expect(0).stdout;
    assert!(asked.contains("public.t:") && !asked.contains("other"), "{asked}");
    level(&scenario, &mut sync, "the copy of a table that stopped");
    examine(&scenario.lake.open_beside_sync(), 10);

    scenario.source.execute(&format!(
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n text, b int); INSERT INTO t VALUES (1, 'another', 1); \
         ALTER PUBLICATION duckpipe_{} ADD TABLE t",
        scenario.name
    ));
    resync("public.t").expect(0);
    // Its state may still be the former table's: its columns can't be.
    let columns = || scenario.lake.open_beside_sync().columns("public.t", None);
    let is_there = || columns().iter().any(|(name, _)| name == "b").then_some(());
    wait_for("another table is copied", MINUTE, is_there, || format!("{:?}", columns()));
    scenario.source.execute("INSERT INTO t VALUES (2, 'and another', 2); UPDATE other SET v = 'last'");
    level(&scenario, &mut sync, "the other table of that name");
    sync.terminate().expect(0);
    scenario.assert_equal(&BOTH);
    nothing_is_left(&scenario);
    assert_equal(&scenario.source, &scenario.lake.open_native(), "public.t");
}

#[test]
fn asked_for_duckdb() {
    asked_for(Combination::EMBEDDED);
}

#[test]
fn asked_for_postgres() {
    asked_for(POSTGRES);
}

/// Wherever it dies, the next start ends the copy or begins it anew; no row is lost, none is doubled, nothing is left.
fn killed(combination: Combination) {
    let mut scenario = copied(&format!("resync_killed_{}", combination.name()), combination);
    for (number, failpoint) in [
        "left_stream",
        "beside_begun",
        "beside_slot",
        "copy",
        "snapshot_commit",
        "commit_before",
        "commit_after",
        "beside_join",
        "beside_joined",
    ]
    .into_iter()
    .enumerate()
    {
        scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
        scenario.duckpipe.die_at(failpoint, 1);
        let dying = scenario.duckpipe.sync();
        let died = dying.wait(MINUTE);
        assert_eq!(died.code, None, "{failpoint}: {}", died.output());
        scenario.duckpipe.live();
        let client = scenario.source.connect();
        (0..30).for_each(|step| both_at_once(&client, number as u64 * 100 + step));
        let mut sync = scenario.duckpipe.sync();
        (30..60).for_each(|step| both_at_once(&client, number as u64 * 100 + step));
        level(&scenario, &mut sync, failpoint);
        sync.terminate().expect(0);
        scenario.assert_equal(&BOTH);
        nothing_is_left(&scenario);
    }
    examine(&scenario.lake.open_native(), 2);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn killed_duckdb() {
    killed(Combination::EMBEDDED);
}

#[test]
fn killed_postgres() {
    killed(POSTGRES);
}

/// A catalog that answers nobody for longer than the stream stands still for a copy: who has joined is asked when it answers again.
#[test]
fn a_catalog_that_hangs() {
    let mut scenario = copied("resync_hangs", POSTGRES);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let writer = writer(&scenario);
    scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
    let catalog = Client::connect(&scenario.lake.catalog());
    let copied = "SELECT count(*) FROM duckpipe_table WHERE source_table = 't' AND state = 'catchup'";
    wait_for("the copy", MINUTE, || (catalog.number(copied) == 1).then_some(()), || sync.tail());
    catalog.execute("BEGIN; LOCK TABLE duckpipe_format IN EXCLUSIVE MODE");
    let before = writer.written();
    let locked = std::time::Instant::now();
    // Longer than any of them waits.
    wait_for("time", MINUTE, || (locked.elapsed() > Duration::from_secs(23)).then_some(()), || sync.tail());
    assert!(sync.runs() && writer.written() > before);
    catalog.execute("COMMIT");
    level(&scenario, &mut sync, "the copy joins");
    writer.stop();
    level(&scenario, &mut sync, "the end");
    sync.terminate().expect(0);
    scenario.assert_equal(&BOTH);
    nothing_is_left(&scenario);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// A table that the publication did not send for a while, which no message tells: while `sync` runs, and while none does.
#[test]
fn what_the_publication_did_not_send() {
    let mut scenario = copied("resync_unsent", Combination::EMBEDDED);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let taken_out = |number: u64, back: bool| {
        let publication = scenario.slot();
        scenario.source.execute(&format!("ALTER PUBLICATION {publication} DROP TABLE t"));
        both_at_once(&scenario.source, number);
        if back {
            scenario.source.execute(&format!("ALTER PUBLICATION {publication} ADD TABLE t"));
            both_at_once(&scenario.source, number + 1);
        }
    };
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    for (times, back) in [(1, true), (2, false)] {
        taken_out(times as u64 * 10, back);
        let joined = || sync.output().matches("the fresh copy streams with the others").count();
        wait_for("the copy", MINUTE, || (joined() == times).then_some(()), || sync.tail());
        both_at_once(&scenario.source, times as u64 * 10 + 5);
        level(&scenario, &mut sync, "copied");
        assert_equal(&scenario.source, &scenario.lake.open_beside_sync(), "public.t");
    }
    sync.terminate().expect(0);
    taken_out(30, true);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    both_at_once(&scenario.source, 40);
    level(&scenario, &mut sync, "the end");
    sync.terminate().expect(0);
    scenario.assert_equal(&BOTH);
}

/// Somebody else's publication with a column list, of which a column that it did not send becomes one: its values are in no message.
/// And one that is not sent any more is the lake's no more.
#[test]
fn a_column_list_that_grows_and_shrinks() {
    let mut scenario = Scenario::new("resync_list", Combination::EMBEDDED, TABLES);
    if scenario.source.number("SELECT current_setting('server_version_num')::int / 10000") < 15 {
        return;
    }
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let publication = scenario.slot();
    scenario.source.execute(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, n int, a int, v text); INSERT INTO t SELECT i, 0, i, 'v' FROM generate_series(1, 500) i; \
         CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other SELECT i, 0 FROM generate_series(1, 200) i; \
         CREATE PUBLICATION {publication} FOR TABLE t (id, n), other"
    ));
    let columns =
        |native: &NativeLake| native.columns("public.t", None).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let assert_is = |left_out: &[&str]| {
        let native = scenario.lake.open_native();
        let compared = Comparison::new(&scenario.source, &native, "public.t", "public.t", left_out);
        compared.run(&scenario.source, &native).unwrap_or_else(|difference| panic!("{difference}"));
        let all = ["id", "n", "a", "v"].into_iter().filter(|name| !left_out.contains(name));
        assert_eq!(columns(&native), all.collect::<Vec<_>>());
    };
    scenario.duckpipe.sync_once().expect(0);
    assert_is(&["a", "v"]);

    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.source.execute(&format!("ALTER PUBLICATION {publication} SET TABLE t (id, n, a), other"));
    scenario.source.execute("UPDATE t SET n = 1 WHERE id < 10");
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    level(&scenario, &mut sync, "the copy with another column");
    sync.terminate().expect(0);
    assert_is(&["v"]);

    // Nobody runs, and no row follows.
    scenario.source.execute(&format!("ALTER PUBLICATION {publication} SET TABLE t (id, n, v), other"));
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    scenario.source.execute("UPDATE t SET n = 2, v = 'w' WHERE id < 20; UPDATE other SET n = 1");
    level(&scenario, &mut sync, "the copy with another one");
    sync.terminate().expect(0);
    assert_is(&["a"]);
    scenario.assert_equal(&["public.other"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Columns and heap change while the table's definition is read: it is read again, or nothing tells later that both changed at once.
#[test]
fn a_definition_that_changes_while_it_is_read() {
    let mut scenario = copied("resync_torn", Combination::EMBEDDED);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    level(&scenario, &mut sync, "the stream");
    let (somebody, watcher) = (scenario.source.connect(), scenario.source.connect());
    // Whoever reads the definition waits here, with a part of it read.
    somebody.execute("BEGIN; LOCK TABLE pg_publication IN ACCESS EXCLUSIVE MODE");
    scenario.source.execute("ALTER TABLE t ALTER v SET DEFAULT 'd'");
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_publication'::regclass";
    wait_for("a look", MINUTE, || (watcher.number(waits) > 0).then_some(()), || sync.tail());
    somebody.execute("ALTER TABLE t ALTER v TYPE text USING upper(v); COMMIT");
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    level(&scenario, &mut sync, "the copy");
    sync.terminate().expect(0);
    scenario.assert_equal(&BOTH);
}

/// A column that keeps its type and gets other values in all rows, of which no message tells: while `sync` runs, with a row behind it or without, and
/// while none does. What writes a table anew and leaves its values alone copies nothing.
#[test]
fn other_values_of_the_same_type() {
    let mut scenario = copied("recast", Combination::EMBEDDED);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let copies = |output: &str| output.matches("copying the table afresh").count();
    let mut sync = scenario.duckpipe.sync();
    level(&scenario, &mut sync, "the stream");
    let native = |scenario: &Scenario<'_>| scenario.lake.open_beside_sync();

    // Each with a row behind it, whose message has the table looked at.
    for (step, harmless) in
        ["VACUUM FULL t", "ALTER TABLE t ALTER v SET DEFAULT 'd'", "CLUSTER t USING t_pkey"].iter().enumerate()
    {
        scenario.source.execute(harmless);
        scenario.source.execute(&format!("INSERT INTO t (id, v) VALUES ({}, 'x')", 200_000 + step));
        level(&scenario, &mut sync, harmless);
    }
    assert_eq!(copies(&sync.output()), 0, "{}", sync.tail());

    scenario.source.execute("ALTER TABLE t ALTER v TYPE text USING upper(v)");
    scenario.source.execute("UPDATE t SET n = 1 WHERE id = 7");
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    level(&scenario, &mut sync, "after a row");
    assert_equal(&scenario.source, &native(&scenario), "public.t");

    scenario.source.execute("ALTER TABLE t ALTER n TYPE int USING n + 1");
    wait_for(
        "the second copy",
        MINUTE,
        || (sync.output().matches("the fresh copy streams with the others").count() == 2).then_some(()),
        || sync.tail(),
    );
    level(&scenario, &mut sync, "without a row");
    assert_equal(&scenario.source, &native(&scenario), "public.t");

    // It may not be empty any more, or may be now: that is not all that changed.
    scenario.source.execute("ALTER TABLE t ALTER v DROP NOT NULL, ALTER v TYPE text USING nullif(v, 'X')");
    wait_for(
        "the third copy",
        MINUTE,
        || (sync.output().matches("the fresh copy streams with the others").count() == 3).then_some(()),
        || sync.tail(),
    );
    level(&scenario, &mut sync, "with NULLs");
    assert_equal(&scenario.source, &native(&scenario), "public.t");

    // What rows say that nobody wrote; a label that comes is none of theirs.
    scenario.source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN moods AS mood[]; \
         ALTER TABLE t ADD feels moods; UPDATE t SET feels = '{sad,ok}' WHERE id < 100",
    );
    level(&scenario, &mut sync, "with an enum");
    scenario.source.execute("ALTER TYPE mood ADD VALUE 'happy'");
    scenario.source.execute("UPDATE t SET feels = '{happy}' WHERE id < 10");
    level(&scenario, &mut sync, "with another value");
    assert_eq!(copies(&sync.output()), 3, "{}", sync.tail());
    scenario.source.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'");
    wait_for(
        "the fourth copy",
        MINUTE,
        || (sync.output().matches("the fresh copy streams with the others").count() == 4).then_some(()),
        || sync.tail(),
    );
    level(&scenario, &mut sync, "with another label");
    assert_equal(&scenario.source, &native(&scenario), "public.t");

    // An attribute more is a comma in every value that is there. (The column itself comes by a copy: it is read as text.)
    let joined = |sync: &Running<'_>| sync.output().matches("the fresh copy streams with the others").count();
    let copied = |sync: &mut Running<'_>, times: usize, what: &str| {
        wait_for(what, MINUTE, || (joined(sync) == times).then_some(()), || sync.tail());
        level(&scenario, sync, what);
        assert_equal(&scenario.source, &native(&scenario), "public.t");
    };
    scenario.source.execute(
        "CREATE TYPE inner_place AS (x int, y int); CREATE TYPE place AS (name text, at inner_place); \
         ALTER TABLE t ADD places place[]; UPDATE t SET places = ARRAY[('a', (1, 2))::place] WHERE id < 100",
    );
    copied(&mut sync, 5, "with a composite");
    scenario.source.execute("ALTER TYPE inner_place RENAME ATTRIBUTE y TO z");
    scenario.source.execute("UPDATE t SET places = ARRAY[('b', (3, 4))::place] WHERE id < 10");
    copied(&mut sync, 5, "with another name of an attribute");
    scenario.source.execute("ALTER TYPE inner_place ADD ATTRIBUTE note text");
    copied(&mut sync, 6, "with another attribute");
    // Beside a change that can be followed.
    scenario.source.execute("BEGIN; ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'; ALTER TABLE t ADD k int; COMMIT");
    scenario.source.execute("UPDATE t SET k = 1 WHERE id = 50");
    copied(&mut sync, 7, "with both");
    sync.terminate().expect(0);

    scenario.source.execute("ALTER TABLE t ALTER a TYPE int USING a * 2");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    level(&scenario, &mut sync, "while nobody ran");
    sync.terminate().expect(0);
    scenario.assert_equal(&BOTH);
}
