//! A copy that is interrupted goes on with the ranges that it has read: at the next start, and beside the stream. The table is equal then,
//! whatever happened to it meanwhile.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, StoreKind, assert_equal, wait_for};
use crate::scenario::{Files, Scenario, seed};
use crate::workload::Writer;

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
const MINUTE: Duration = Duration::from_secs(60);
const SYNC: &str = "[sync]\nflush_interval = \"50ms\"\nsnapshot_range = \"64KiB\"\n";
const GOES_ON: &str = "the copy goes on with what an earlier try has read";

/// About 350 pages, so 44 ranges; some values lie outside of them.
const TABLE: &str = "CREATE TABLE t (id bigint PRIMARY KEY, n int, v text, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL; \
     INSERT INTO t SELECT i, i % 97, repeat(md5(i::text), 3), CASE i % 500 WHEN 0 THEN repeat(md5(i::text), 200) END \
     FROM generate_series(1, 20000) i";

fn scenario(name: &str, combination: Combination, ddl: &str) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, &format!("{SYNC}{}", Duckpipe::tables(&["public.t"])));
    scenario.source.execute(ddl);
    scenario
}

/// `sync --once`, which dies when it has kept so many ranges.
fn die_after(scenario: &mut Scenario<'_>, ranges: u32) -> String {
    scenario.duckpipe.die_at("part_kept", ranges);
    let died = scenario.duckpipe.sync_once();
    assert_eq!(died.code, None, "{}", died.output());
    scenario.duckpipe.live();
    died.output()
}

/// It dies after so many ranges; the other worker may have kept one more by then, or two.
#[track_caller]
fn assert_kept(output: &str, ranges_kept: u32) {
    let kept = ranges(output);
    assert!(
        kept == ranges_kept || ranges_kept > 0 && (ranges_kept..=ranges_kept + 2).contains(&kept),
        "{kept} for {ranges_kept}: {output}"
    );
}

/// How many ranges a copy went on with.
fn ranges(output: &str) -> u32 {
    let line = output.lines().find(|line| line.contains(GOES_ON));
    let count = line.and_then(|line| line.split("ranges=").nth(1)?.split_whitespace().next()?.parse().ok());
    count.unwrap_or_default()
}

fn assert_nothing_is_left(scenario: &Scenario<'_>) {
    let native = scenario.lake.open_native();
    assert_eq!(native.number("SELECT count(*) FROM __ducklake_metadata_lake.duckpipe_part"), 0);
    let files = Files::read(&scenario.lake, &native);
    files.assert_complete();
    files.assert_no_orphans();
    drop(native);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// Killed twice, at nine tenths, with rows that change, move, go and come meanwhile, in the place of others too.
fn goes_on(combination: Combination) {
    let mut scenario = scenario(&format!("goes_on_{}", combination.name()), combination, TABLE);
    let client = scenario.source.connect();
    // Where another transaction of the server is older than the rows, they are no older than the copy, and all are read again.
    let is_old =
        "SELECT count(*) FROM t WHERE id = 1 AND age(xmin) > age(pg_snapshot_xmin(pg_current_snapshot())::text::xid)";
    wait_for("older transactions end", 3 * MINUTE, || (client.number(is_old) > 0).then_some(()), String::new);
    die_after(&mut scenario, 40);
    let native = scenario.lake.open_native();
    let shown = native.try_rows("SELECT * FROM lake.public.t LIMIT 1");
    assert!(shown.as_ref().is_ok_and(Vec::is_empty), "half of a copy shows: {shown:?}");
    let first = Files::read(&scenario.lake, &native).stored;
    drop(native);
    client.execute("UPDATE t SET n = n + 1 WHERE id % 700 < 50; DELETE FROM t WHERE id % 1100 < 40");
    client.execute("VACUUM t");
    client.execute(
        "INSERT INTO t SELECT i, 0, repeat('new', 20) FROM generate_series(30001, 31000) i; \
         UPDATE t SET id = -id WHERE id % 1300 < 20; UPDATE t SET v = 'large stays' WHERE id = 500; \
         DELETE FROM t WHERE id = 1000; INSERT INTO t VALUES (1000, 1, 'deleted and inserted')",
    );
    // Two rows change places.
    client.execute(
        "UPDATE t SET id = -7 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 8; UPDATE t SET id = 8 WHERE id = -7",
    );
    let output = die_after(&mut scenario, 2);
    assert_kept(&output, 40);
    client.execute("UPDATE t SET n = -n WHERE id BETWEEN 3000 AND 3100; DELETE FROM t WHERE id > 19000 AND id < 19500");
    let output = scenario.duckpipe.sync_once().expect(0).output();
    assert!((42..=44).contains(&ranges(&output)), "{output}");
    let native = scenario.lake.open_native();
    assert_equal(&client, &native, "public.t");
    // Files that nothing of the above has touched are those of the first try.
    let registered = Files::read(&scenario.lake, &native).registered;
    assert!(registered.intersection(&first).count() >= 3, "{first:?}\n{registered:?}");
    drop(native);
    assert_nothing_is_left(&scenario);
}

#[test]
fn goes_on_duckdb() {
    goes_on(Combination::EMBEDDED);
}

#[test]
fn goes_on_postgres() {
    goes_on(POSTGRES);
}

/// What can't be held against the present table is read anew: one that was rewritten, has other columns, lost its rows, was created anew, has no
/// key, or is to be copied anew.
#[test]
fn begins_anew() {
    let keyless = TABLE.replace("PRIMARY KEY", "") + "; ALTER TABLE t REPLICA IDENTITY FULL";
    let cases = [
        ("vacuum", TABLE, "DELETE FROM t WHERE id % 2 = 0; VACUUM FULL t", &["sync", "--once"][..]),
        ("column", TABLE, "ALTER TABLE t ADD COLUMN more int DEFAULT 5", &["sync", "--once"]),
        ("truncate", TABLE, "TRUNCATE t; INSERT INTO t SELECT i FROM generate_series(1, 5000) i", &["sync", "--once"]),
        (
            "created",
            TABLE,
            "DROP TABLE t; CREATE TABLE t AS SELECT i::bigint AS id, 0 AS n FROM generate_series(1, 5000) i; \
          ALTER TABLE t ADD PRIMARY KEY (id)",
            &["sync", "--once"],
        ),
        ("asked", TABLE, "DELETE FROM t WHERE id < 100", &["sync", "--once", "--resnapshot"]),
        ("keyless", &keyless, "DELETE FROM t WHERE id < 100", &["sync", "--once"]),
    ];
    for (case, ddl, change, command) in cases {
        let mut scenario = scenario(&format!("anew_{case}"), Combination::EMBEDDED, ddl);
        match case {
            "keyless" => {
                scenario.duckpipe.die_at("snapshot_commit", 1);
                assert_eq!(scenario.duckpipe.sync_once().code, None);
                scenario.duckpipe.live();
            }
            _ => drop(die_after(&mut scenario, 20)),
        }
        for statement in change.split("; ") {
            scenario.source.execute(statement);
        }
        let output = scenario.duckpipe.run(command).expect(0).output();
        // That a table was rewritten shows when it is read.
        let looked = matches!(case, "vacuum" | "truncate");
        assert_kept(&output, if looked { 20 } else { 0 });
        assert_equal(&scenario.source.connect(), &scenario.lake.open_native(), "public.t");
        assert_nothing_is_left(&scenario);
    }
}

/// A partitioned table that is copied afresh while others stream and writers write; `sync` dies in the middle, twice.
#[test]
fn beside_the_stream() {
    let ddl = "CREATE TABLE t (id bigint PRIMARY KEY, n int, v text) PARTITION BY RANGE (id); \
         CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (10000); \
         CREATE TABLE high PARTITION OF t FOR VALUES FROM (10000) TO (1000000); CREATE TABLE stays (id int PRIMARY KEY, n int); \
         INSERT INTO t SELECT i, 0, repeat(md5(i::text), 3) FROM generate_series(1, 20000) i; INSERT INTO stays VALUES (1, 0)";
    let rest = format!("{SYNC}{}", Duckpipe::tables(&["public.t", "public.stays"]));
    let mut scenario = Scenario::new("goes_on_beside", POSTGRES, &rest);
    scenario.source.execute(ddl);
    scenario.converge(&["public.t", "public.stays"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut number: i64 = 0;
    let writing = Writer::of(&scenario.source.url(), move |client| {
        number += 1;
        // Rows change, and move from one partition to the other.
        client.execute(&format!(
            "BEGIN; UPDATE t SET n = n + 1 WHERE id % 2000 = {}; UPDATE t SET id = id + 20000 WHERE id = {}; \
             DELETE FROM t WHERE id = {}; INSERT INTO t VALUES ({}, {number}); UPDATE stays SET n = n + 1; COMMIT",
            number % 2000,
            number % 9000 + 1,
            number * 3 % 20000,
            100_000 + number
        ));
        std::thread::sleep(Duration::from_millis(5));
    });
    scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
    for kept in [20, 10] {
        scenario.duckpipe.die_at("part_kept", kept);
        let died = scenario.duckpipe.sync().wait(MINUTE);
        assert_eq!(died.code, None, "{}", died.output());
        scenario.duckpipe.live();
    }
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output(GOES_ON, MINUTE);
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    writing.stop();
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    let output = sync.output();
    assert!(ranges(&output) >= 25, "{output}");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.stays"]);
    assert_nothing_is_left(&scenario);
}

/// Random changes, in transactions that are open for a while, and a copy that dies again and again.
#[test]
fn however_often_it_dies() {
    let seed = seed("resumed_copy", 7);
    let mut random = StdRng::seed_from_u64(seed);
    let mut scenario = scenario("goes_on_random", Combination::EMBEDDED, TABLE);
    let mut numbers = StdRng::seed_from_u64(seed + 1);
    let writing = Writer::of(&scenario.source.url(), move |client: &Client| {
        client.execute("BEGIN");
        for _ in 0..numbers.random_range(1..6) {
            let id: i32 = numbers.random_range(1..20_000);
            let statement = match numbers.random_range(0..6) {
                0 => format!("DELETE FROM t WHERE id BETWEEN {id} AND {id} + 30"),
                1 => format!(
                    "INSERT INTO t SELECT i, 1, 'again' FROM generate_series({id}, {id} + 20) i ON CONFLICT DO NOTHING"
                ),
                2 => format!("UPDATE t SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 50"),
                3 => format!("UPDATE t SET id = id + (SELECT max(id) FROM t) WHERE id BETWEEN {id} AND {id} + 5"),
                4 => format!("UPDATE t SET large = repeat(md5(id::text), 150) WHERE id = {id}"),
                _ => format!("SAVEPOINT s; UPDATE t SET v = 'gone' WHERE id % 100 = {}; ROLLBACK TO s", id % 100),
            };
            client.execute(&statement);
        }
        std::thread::sleep(Duration::from_millis(numbers.random_range(0..40)));
        client.execute(if numbers.random_range(0..8) == 0 { "ROLLBACK" } else { "COMMIT" });
        if numbers.random_range(0..10) == 0 {
            client.execute("VACUUM t");
        }
    });
    for _ in 0..6 {
        let output = die_after(&mut scenario, random.random_range(1..9));
        println!("went on with {} ranges", ranges(&output));
    }
    let output = scenario.duckpipe.sync_once().expect(0).output();
    assert!(ranges(&output) >= 6, "{output}");
    writing.stop();
    scenario.converge(&["public.t"]);
    assert_nothing_is_left(&scenario);
}

/// Tables are dropped and altered before their turn in a first copy comes: the others are copied, and what is there is copied beside them.
#[test]
fn tables_that_change_before_their_turn() {
    let mut scenario = Scenario::new(
        "copy_turns",
        Combination::EMBEDDED,
        "[sync]\nsnapshot_workers = 1\n[[tables]]\nsource = \"public.*\"\n",
    );
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.source.execute(
        "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' FROM generate_series(1, 100000) i; \
         CREATE TABLE b_dropped (LIKE a INCLUDING ALL); CREATE TABLE c_renamed (LIKE a INCLUDING ALL); CREATE TABLE d_altered (LIKE a INCLUDING ALL); \
         INSERT INTO c_renamed VALUES (1, 'x'); INSERT INTO d_altered VALUES (1, 'x')",
    );
    // Within the first table, once.
    let mut sync = scenario.duckpipe.start_with(&["sync"], &[("DUCKPIPE_FAILPOINT", "copy:stop")]);
    wait_for("the first table", MINUTE, || sync.is_stopped().then_some(()), || sync.tail());
    scenario.source.execute(
        "DROP TABLE b_dropped; ALTER TABLE c_renamed RENAME TO c; ALTER TABLE d_altered RENAME v TO w; ALTER TABLE d_altered ADD n int DEFAULT 2",
    );
    sync.signal("CONT");
    for (table, state) in [("a", "streaming"), ("b_dropped", "dropped"), ("c", "streaming"), ("d_altered", "streaming")]
    {
        scenario.wait_for_state(&mut sync, &format!("public.{table}"), state);
    }
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.a", "public.c", "public.d_altered"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}
