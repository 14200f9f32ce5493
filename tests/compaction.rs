//! Promise 8: compaction, expiry and cleanup change nothing that anybody reads, wherever they die and whatever runs beside them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, NativeLake, StoreKind};
use crate::scenario::{Files, Scenario, seed};
use crate::soak::{Plan, Rate, Tolerance, soak};
use crate::workload::{self, TABLES, Writer};

const MINUTE: Duration = Duration::from_secs(60);
const ON_POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };

/// The rows, their ids and the change feed of `public.t`, at every version.
#[derive(Debug, PartialEq)]
struct Reading {
    versions: BTreeMap<i64, Vec<Vec<Option<String>>>>,
    feed: Vec<Vec<Option<String>>>,
}

impl Reading {
    /// Versions that duckpipe stamped up to `last`; the feed from the first of them on.
    fn of(native: &NativeLake, last: i64) -> Reading {
        let ids: Vec<i64> =
            native.versions().iter().filter(|v| v.lsn().is_some() && v.id <= last).map(|v| v.id).collect();
        let rows = |id: &i64| {
            native.rows(&format!("SELECT rowid, * FROM {} ORDER BY id", NativeLake::table("public.t", Some(*id))))
        };
        let feed = format!(
            "SELECT snapshot_id, rowid, change_type, id, v FROM ducklake_table_changes('lake', 'public', 't', {}, {last}) ORDER BY ALL",
            ids[0]
        );
        Reading { versions: ids.iter().map(|id| (*id, rows(id))).collect(), feed: native.rows(&feed) }
    }
}

fn newest(native: &NativeLake) -> i64 {
    native.number("SELECT max(snapshot_id) FROM ducklake_snapshots('lake')")
}

/// A pipeline with one table in some ten files, half of them with deletes.
fn fragmented(name: &str, combination: Combination) -> Scenario<'static> {
    let rest = "[compact]\nenabled = false\nmin_files = 2\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new(name, combination, rest);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 1000) i",
    );
    scenario.converge(&["public.t"]);
    for round in 0..4 {
        scenario.source.execute(&format!(
            "UPDATE t SET v = 'round {round}' WHERE id % 7 = {round}; DELETE FROM t WHERE id % 50 = {round}; \
             INSERT INTO t SELECT 1000 + {round} * 100 + i, 'new' FROM generate_series(1, 50) i"
        ));
        scenario.converge(&["public.t"]);
    }
    scenario
}

fn compact(duckpipe: &Duckpipe, arguments: &[&str]) -> Value {
    let mut all = vec!["compact", "--json"];
    all.extend(arguments);
    let finished = duckpipe.run(&all).expect(0);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.output()))
}

/// Lets time pass in the catalog: everything that was recorded or scheduled there was so two hours ago.
fn two_hours_later(scenario: &Scenario<'_>) {
    let later = |prefix: &str| {
        format!(
            "UPDATE {prefix}ducklake_files_scheduled_for_deletion SET schedule_start = schedule_start - INTERVAL '2 hours'; \
             UPDATE {prefix}duckpipe_upload SET started_at = started_at - INTERVAL '2 hours'"
        )
    };
    match scenario.lake.combination().catalog {
        CatalogKind::Postgres => Client::connect(&scenario.lake.catalog()).execute(&later("")),
        CatalogKind::DuckDb => {
            scenario.lake.open_native_writable().execute(&later("__ducklake_metadata_lake."));
        }
    }
}

#[test]
fn history_reads_the_same_duckdb_local() {
    history_reads_the_same("compact_history_local", Combination::EMBEDDED);
}

#[test]
fn history_reads_the_same_postgres_s3() {
    history_reads_the_same("compact_history_pg", ON_POSTGRES);
}

fn history_reads_the_same(name: &str, combination: Combination) {
    let scenario = fragmented(name, combination);
    let (last, before) = {
        let native = scenario.lake.open_native();
        let last = newest(&native);
        (last, Reading::of(&native, last))
    };
    let dry = compact(&scenario.duckpipe, &["--dry-run"]);
    assert!(dry["dry_run"] == true && dry["tables"][0]["files_rewritten"].as_u64() > Some(4), "{dry}");
    assert_eq!(newest(&scenario.lake.open_native()), last, "a dry run made a snapshot");
    let report = compact(&scenario.duckpipe, &["--table", "public.t"]);
    assert_eq!(report["tables"][0]["files_written"], 1, "{report}");
    {
        let native = scenario.lake.open_native();
        assert_eq!(Reading::of(&native, last), before);
        let mut stamps: Vec<_> =
            native.versions().into_iter().rev().take(2).map(|version| (version.lsn(), version.extra)).collect();
        // The position may have moved on since the last change; the rest is the same.
        assert!(stamps[0].0 >= stamps[1].0 && stamps[1].0.is_some(), "{stamps:?}");
        stamps.iter_mut().for_each(|(_, extra)| extra["lsn"] = Value::Null);
        assert_eq!(stamps[0].1, stamps[1].1);
        Files::read(&scenario.lake, &native).assert_complete();
    }
    let again = compact(&scenario.duckpipe, &[]);
    assert_eq!(again["tables"][0]["files_rewritten"], 0, "{again}");
    // It goes on, on top of the rewritten file.
    scenario.source.execute("UPDATE t SET v = 'on top' WHERE id % 3 = 0; DELETE FROM t WHERE id % 11 = 5");
    scenario.converge(&["public.t"]);
    assert_eq!(Reading::of(&scenario.lake.open_native(), last), before);
    two_hours_later(&scenario);
    let report = compact(&scenario.duckpipe, &[]);
    assert!(report["files_deleted"].as_u64() > Some(5), "{report}");
    let native = scenario.lake.open_native();
    assert_eq!(Reading::of(&native, last), before);
    let files = Files::read(&scenario.lake, &native);
    files.assert_complete();
    files.assert_no_orphans();
    drop(native);
    let wrong = scenario.duckpipe.run_within(&["compact", "--table", "public.nothing"], MINUTE).expect(2);
    assert!(wrong.stderr.contains("public.t"), "{}", wrong.stderr);
}

#[test]
fn killed_at_each_point_duckdb_local() {
    killed_at_each_point("compact_kill_local", Combination::EMBEDDED);
}

#[test]
fn killed_at_each_point_postgres_s3() {
    killed_at_each_point("compact_kill_pg", ON_POSTGRES);
}

fn killed_at_each_point(name: &str, combination: Combination) {
    let mut scenario = fragmented(name, combination);
    for failpoint in ["compact_upload", "compact_before_commit", "compact_after_commit"] {
        let (last, before) = {
            let native = scenario.lake.open_native();
            let last = newest(&native);
            (last, Reading::of(&native, last))
        };
        scenario.duckpipe.die_at(failpoint, 1);
        let finished = scenario.duckpipe.run_within(&["compact"], MINUTE);
        assert_eq!(finished.code, None, "not killed at {failpoint}:\n{}", finished.output());
        scenario.duckpipe.live();
        {
            let native = scenario.lake.open_native();
            assert_eq!(Reading::of(&native, last), before, "{failpoint}");
            let committed = newest(&native) > last;
            assert_eq!(committed, failpoint == "compact_after_commit", "{failpoint}");
            Files::read(&scenario.lake, &native).assert_complete();
        }
        // A sync in between takes nothing away, and goes on.
        scenario.source.execute(&format!("UPDATE t SET v = '{failpoint}' WHERE id % 13 = 1"));
        scenario.converge(&["public.t"]);
    }
    two_hours_later(&scenario);
    let report = compact(&scenario.duckpipe, &[]);
    // Of a file's catalog each run takes over what the one before it left; on Postgres it may still live.
    let late = combination.catalog == CatalogKind::Postgres;
    assert!(!late || report["orphans_deleted"].as_u64() > Some(1), "{report}");
    two_hours_later(&scenario);
    compact(&scenario.duckpipe, &[]);
    let native = scenario.lake.open_native();
    let files = Files::read(&scenario.lake, &native);
    files.assert_complete();
    files.assert_no_orphans();
    drop(native);
    scenario.converge(&["public.t"]);
}

#[test]
fn old_history_goes_with_its_files() {
    let scenario = fragmented("compact_expiry", Combination::EMBEDDED);
    let toml = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&toml.replace("min_files = 2", "min_files = 2\nretain = \"1ms\""));
    let report = compact(&scenario.duckpipe, &[]);
    assert!(report["snapshots_expired"].as_u64() > Some(3), "{report}");
    assert!(report["tables"][0]["rows_dropped"].as_u64() > Some(100), "{report}");
    two_hours_later(&scenario);
    compact(&scenario.duckpipe, &[]);
    two_hours_later(&scenario);
    compact(&scenario.duckpipe, &[]);
    scenario.assert_equal(&["public.t"]);
    let files = Files::read(&scenario.lake, &scenario.lake.open_native());
    assert_eq!(files.stored, files.registered, "only what the newest snapshot needs");
    assert!(files.stored.len() <= 2, "{files:?}");
    scenario.source.execute("DELETE FROM t WHERE id % 2 = 0");
    scenario.converge(&["public.t"]);
}

/// A file that the store does not give keeps its own table from being compacted, and no other one, nor the store from being tidied.
#[test]
fn a_file_that_the_store_does_not_give() {
    let scenario = fragmented("compact_no_file", Combination::EMBEDDED);
    scenario.source.execute("CREATE TABLE a (id int PRIMARY KEY)");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.a", "streaming");
    for id in 10..14 {
        scenario.source.execute(&format!("INSERT INTO a VALUES ({id})"));
        scenario.wait_for_state(&mut sync, "public.a", "streaming");
    }
    sync.terminate().expect(0);
    let native = scenario.lake.open_native();
    let list = "SELECT data_file FROM ducklake_list_files('lake', 'a', schema => 'public') ORDER BY 1 LIMIT 1";
    let file = native.text(list);
    drop(native);
    // It is there, and no read succeeds.
    let aside = format!("{file}.aside");
    std::fs::rename(&file, &aside).unwrap();
    std::os::unix::fs::symlink(&file, &file).unwrap();
    let failed = scenario.duckpipe.run_within(&["compact"], MINUTE);
    assert_ne!(failed.code, Some(0), "{}", failed.output());
    assert!(failed.output().contains("public.a"), "{}", failed.output());
    two_hours_later(&scenario);
    let failed = scenario.duckpipe.run_within(&["compact"], MINUTE);
    assert_ne!(failed.code, Some(0), "{}", failed.output());
    let files = Files::read(&scenario.lake, &scenario.lake.open_native());
    // The other one's former files.
    assert!(files.scheduled.is_empty(), "{files:?}");
    let native = scenario.lake.open_native();
    let of = |table: &str| {
        native.number(&format!("SELECT count(*) FROM ducklake_list_files('lake', '{table}', schema => 'public')"))
    };
    assert_eq!(of("t"), 1);
    assert!(of("a") > 2);
    drop(native);
    std::fs::remove_file(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    compact(&scenario.duckpipe, &[]);
    scenario.assert_equal(&["public.a", "public.t"]);
}

/// More dead rows than a rewrite could remember: those that nobody can read need not be remembered.
#[test]
fn however_many_rows_died_they_go() {
    let rows = 600_000;
    let rest =
        "[compact]\nenabled = false\nretain = \"1ms\"\nmemory_limit = \"64MB\"\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new("compact_many_dead", Combination::EMBEDDED, rest);
    scenario.source.execute(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, {rows}) i"
    ));
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute(&format!("UPDATE t SET v = 1 WHERE id <= {rows} * 0.9"));
    scenario.duckpipe.sync_once().expect(0);
    // The snapshot that deleted them still shows what it changed.
    scenario.source.execute("INSERT INTO t VALUES (0, 0)");
    scenario.duckpipe.sync_once().expect(0);
    let report = compact(&scenario.duckpipe, &[]);
    assert_eq!(report["tables"][0]["rows_dropped"], rows * 9 / 10, "{report}");
    scenario.assert_equal(&["public.t"]);
}

#[test]
fn beside_a_running_sync_duckdb_local() {
    beside_a_running_sync("compact_live_local", Combination::EMBEDDED, 0xC0);
}

#[test]
fn beside_a_running_sync_postgres_s3() {
    beside_a_running_sync("compact_live_pg", ON_POSTGRES, 0xC1);
}

/// A writer that never stops, a sync that compacts each second, and other compactions beside it: on Postgres processes of
/// their own, on a DuckDB file through the control socket.
fn beside_a_running_sync(name: &str, combination: Combination, default_seed: u64) {
    let seed = seed(name, default_seed);
    let rest = "[sync]\nflush_interval = \"50ms\"\n[compact]\ninterval = \"1s\"\nmin_files = 3\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new(name, combination, rest);
    workload::create(&scenario.source, 5_000);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the first copy", MINUTE, |status| status.all("streaming"));
    let writer = Writer::start(&scenario.source.url(), 5_000, seed, Duration::from_millis(2));
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(20) || asked < 4 {
        let report = compact(&scenario.duckpipe, &[]);
        assert!(report["tables"].as_array().is_some_and(|tables| tables.len() == 3), "{report}");
        asked += 1;
        assert!(sync.runs(), "{}", sync.tail());
    }
    let written = writer.stop();
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    // What was flushed during the last one.
    compact(&scenario.duckpipe, &[]);
    sync.terminate().expect(0);
    scenario.assert_equal(&TABLES);
    let native = scenario.lake.open_native();
    let merges = native.number(
        "SELECT count(*) FROM __ducklake_metadata_lake.ducklake_snapshot_changes WHERE changes_made LIKE 'merge_adjacent%'",
    );
    let live =
        native.number("SELECT count(*) FROM __ducklake_metadata_lake.ducklake_data_file WHERE end_snapshot IS NULL");
    println!("{name}: {written} transactions, {asked} asked for, {merges} merges, {live} live files");
    assert!(merges > 2, "{merges} merges");
    assert!(live < 40, "{live} live files");
    Files::read(&scenario.lake, &native).assert_complete();
    // Flushes that a compaction was faster than wrote their delete files anew; the first ones went.
    let recorded = format!("SELECT count(*) FROM __ducklake_metadata_lake.duckpipe_upload WHERE pipeline = '{name}'");
    assert_eq!(native.number(&recorded), 0, "uploads of a sync that has nothing to upload");
    drop(native);
    two_hours_later(&scenario);
    compact(&scenario.duckpipe, &[]);
    scenario.converge(&TABLES);
    Files::read(&scenario.lake, &scenario.lake.open_native()).assert_no_orphans();
}

/// Updates all over a table, flushed three times a second, on a lake that keeps four seconds: what it consists of does not grow.
/// The hour-long form is `make soak`.
pub const SHORT_SOAK: Plan = Plan {
    rows: 20_000,
    rate: Rate { transactions: 25.0, updates: 40 },
    // Fills the retention up.
    warm_up: Duration::from_secs(8),
    duration: Duration::from_secs(28),
    interval: Duration::from_millis(500),
    scans: 0,
    // A loaded machine keeps this pace too.
    settings: "[sync]\nflush_interval = \"300ms\"\n\
        [compact]\ninterval = \"1s\"\nmin_files = 4\nretain = \"4s\"\ndelete_grace = \"1m\"\n",
    // A replaced file stays for a minute at least; uploads come and go with each flush.
    left_out: &["ducklake_files_scheduled_for_deletion", "duckpipe_upload"],
    stored: false,
    // Other tests run beside this one, so that the pace of flushes changes.
    tolerance: Tolerance { factor: 1.4, handful: 30.0 },
};

#[test]
fn constant_updates_do_not_grow_the_lake_duckdb_local() {
    soak("compact_soak", Combination::EMBEDDED, &SHORT_SOAK);
}

#[test]
fn constant_updates_do_not_grow_the_lake_postgres_s3() {
    soak("compact_soak", ON_POSTGRES, &SHORT_SOAK);
}
