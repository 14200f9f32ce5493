//! `validate --repair`: the lake's rows that differ become those of the source, and nothing else changes; whatever runs meanwhile, and
//! wherever the process dies.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{CatalogKind, Combination, StoreKind};
use crate::scenario::{Files, Scenario, Tables};
use crate::workload::Writer;

const TABLES: &str =
    "[sync]\nflush_interval = \"50ms\"\n[compact]\ninterval = \"1s\"\n[[tables]]\nsource = \"public.*\"\n";
const FOLLOWED: [&str; 2] = ["public.t", "public.other"];
const MINUTE: Duration = Duration::from_secs(60);

fn synced(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int, part text, n int, v text, PRIMARY KEY (part, id)); \
         INSERT INTO t SELECT i, 'p' || i % 3, i, md5(i::text) FROM generate_series(1, 5000) i; \
         CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other SELECT i, 'v' FROM generate_series(1, 100) i",
    );
    scenario.converge(&FOLLOWED);
    scenario.source.execute("UPDATE t SET n = -id WHERE id <= 20; DELETE FROM t WHERE id BETWEEN 21 AND 30");
    scenario.converge(&FOLLOWED);
    scenario
}

/// Changes, removes, adds and doubles rows of the lake: 5 keys of `t`, 1 of `other`.
fn damage(scenario: &Scenario<'_>) {
    let native = scenario.lake.open_native_writable();
    native.execute("UPDATE lake.public.t SET n = 7 WHERE id = 100");
    native.execute("DELETE FROM lake.public.t WHERE id IN (200, 5)");
    native.execute(
        "INSERT INTO lake.public.t VALUES (9001, 'p0', 1, 'not from the source'), (300, 'p0', 300, 'a second one'), (300, 'p0', 1, 'a third')",
    );
    native.execute("UPDATE lake.public.other SET v = NULL WHERE id = 50");
}

#[track_caller]
fn repaired(scenario: &Scenario<'_>) -> Value {
    let finished = scenario.duckpipe.run(&["validate", "--repair", "--json"]).expect(0);
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.output()))
}

#[track_caller]
fn keys_of(report: &Value, table: &str) -> Option<u64> {
    let tables = report["tables"].as_array().unwrap();
    tables.iter().find(|found| found["target"] == table).unwrap()["repaired_keys"].as_u64()
}

#[track_caller]
fn is_well(scenario: &Scenario<'_>) {
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// While `sync` runs, and the source changes all the time: also rows beside those that are repaired.
fn beside_a_running_sync(combination: Combination) {
    let scenario = synced(&format!("repair_beside_{}", combination.name()), combination);
    damage(&scenario);
    let native = scenario.lake.open_native();
    let before = native.versions().last().unwrap().id;
    let tables = Tables::new(&scenario.source, &native, &FOLLOWED);
    let shown = tables.fingerprints(&native, before);
    drop(native);

    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    let mut round = 0;
    let writer = Writer::of(&scenario.source.url(), move |client| {
        round += 1;
        let id = 1000 + round % 3000;
        client.execute(&format!(
            "UPDATE t SET n = {round} WHERE id = {id}; INSERT INTO t VALUES ({round} + 100000, 'new', 0, 'v'); \
             UPDATE other SET v = 'round {round}' WHERE id = {round} % 40"
        ));
    });
    let report = repaired(&scenario);
    assert_eq!((keys_of(&report, "public.t"), keys_of(&report, "public.other")), (Some(5), Some(1)), "{report:#}");
    let kinds: BTreeSet<&str> =
        report["repaired"].as_array().unwrap().iter().filter_map(|found| found["kind"].as_str()).collect();
    assert_eq!(
        kinds,
        BTreeSet::from(["duplicate_key", "extra_in_lake", "missing_in_lake", "sums_differ", "value_differs"]),
        "{report:#}"
    );
    assert_eq!(report["findings"], Value::Array(Vec::new()));
    // The stream goes on at once, and there is nothing to repair any more.
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    let report = repaired(&scenario);
    assert_eq!((keys_of(&report, "public.t"), keys_of(&report, "public.other")), (None, None), "{report:#}");
    assert!(writer.stop() > 20 && sync.runs(), "{}", sync.tail());
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    // Rows that were repaired are rows like others.
    scenario.source.execute("UPDATE t SET n = 1 WHERE id IN (100, 300); DELETE FROM t WHERE id IN (200, 5)");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{}", status.0);
    sync.terminate().expect(0);
    scenario.converge(&FOLLOWED);
    is_well(&scenario);
    let native = scenario.lake.open_native();
    assert_eq!(tables.fingerprints(&native, before), shown, "the past stays what it was");
}

#[test]
fn beside_a_running_sync_duckdb() {
    beside_a_running_sync(Combination::EMBEDDED);
}

#[test]
fn beside_a_running_sync_postgres() {
    beside_a_running_sync(Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 });
}

/// Where no `sync` runs, `validate` does it by itself; wherever that dies, the rows are replaced or they are not.
#[test]
fn killed_at_each_failpoint() {
    for combination in [Combination::EMBEDDED, Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }]
    {
        let mut scenario = synced(&format!("repair_kill_{}", combination.name()), combination);
        damage(&scenario);
        for failpoint in ["upload", "commit_before", "commit_after"] {
            scenario.duckpipe.die_at(failpoint, 1);
            let finished = scenario.duckpipe.run(&["validate", "--repair", "--table", "public.t"]);
            assert_eq!(finished.code, None, "{failpoint}: {}", finished.output());
            scenario.duckpipe.live();
            let whole = failpoint == "commit_after";
            scenario.duckpipe.run(&["validate", "--table", "public.t"]).expect(if whole { 0 } else { 3 });
        }
        let report = repaired(&scenario);
        assert_eq!((keys_of(&report, "public.t"), keys_of(&report, "public.other")), (None, Some(1)), "{report:#}");
        scenario.converge(&FOLLOWED);
        is_well(&scenario);
        Files::read(&scenario.lake, &scenario.lake.open_native()).assert_no_orphans();
    }
}

/// The stream stands still for whoever asked it to: no longer than that one lives, and not past its own death.
fn either_dies_while_the_stream_stands(combination: Combination) {
    let scenario = synced(&format!("repair_stands_{}", combination.name()), combination);
    damage(&scenario);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    let dies = |failpoint| [("DUCKPIPE_FAILPOINT", failpoint)];
    let finished = scenario.duckpipe.start_with(&["validate", "--repair"], &dies("validate_reached")).wait(MINUTE);
    assert_eq!(finished.code, None, "{}", finished.output());
    scenario.source.execute("UPDATE t SET n = 1 WHERE id = 1000");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);

    let sync = scenario.duckpipe.start_with(&["sync"], &dies("reached"));
    sync.wait_for_output("INFO streaming", MINUTE);
    let finished = scenario.duckpipe.run(&["validate", "--repair", "--timeout", "20s"]).expect(1);
    assert!(finished.stderr.contains("sync"), "{}", finished.stderr);
    assert_eq!(sync.wait(MINUTE).code, None);

    let sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    let report = repaired(&scenario);
    assert_eq!((keys_of(&report, "public.t"), keys_of(&report, "public.other")), (Some(5), Some(1)), "{report:#}");
    sync.terminate().expect(0);
    scenario.converge(&FOLLOWED);
    is_well(&scenario);
}

#[test]
fn either_dies_while_the_stream_stands_duckdb() {
    either_dies_while_the_stream_stands(Combination::EMBEDDED);
}

#[test]
fn either_dies_while_the_stream_stands_postgres() {
    either_dies_while_the_stream_stands(Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local });
}

/// More than is held in memory at once.
#[test]
fn many_rows_take_several_commits() {
    let scenario = synced("repair_many", Combination::EMBEDDED);
    let native = scenario.lake.open_native_writable();
    native
        .execute("UPDATE lake.public.t SET v = upper(v) WHERE id % 2 = 0; DELETE FROM lake.public.t WHERE id % 10 = 1");
    let damaged = native.number("SELECT count(*) FROM lake.public.t WHERE v = upper(v) AND v <> lower(v)");
    drop(native);
    let before = scenario.version_ids().len();
    let report = repaired(&scenario);
    // 1 is among those that were removed; 21 was gone already.
    assert_eq!(keys_of(&report, "public.t"), Some(damaged as u64 + 499), "{report:#}");
    assert!(scenario.version_ids().len() > before + 1, "several commits");
    is_well(&scenario);
}

/// What can't be told by rows is not repaired, and said so.
#[test]
fn a_broken_file_is_not_papered_over() {
    let scenario = synced("repair_broken", Combination::EMBEDDED);
    let native = scenario.lake.open_native();
    let path = native.text("SELECT data_file FROM ducklake_list_files('lake', 't', schema => 'public') LIMIT 1");
    drop(native);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let versions = scenario.version_ids();
    let finished = scenario.duckpipe.run(&["validate", "--repair"]).expect(3);
    assert!(finished.stdout.contains("file unreadable"), "{}", finished.output());
    assert_eq!(scenario.version_ids(), versions, "nothing was written");
    std::fs::write(&path, &bytes).unwrap();
    is_well(&scenario);
}
