//! Promise 4: what can't be applied stops its own table, says why, and comes back by a fresh copy; the others go on.

use std::time::Duration;

use duckpipe::lsn::Lsn;

use crate::lab::{CatalogKind, Combination, NativeLake, StoreKind};
use crate::scenario::Scenario;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

/// The two tables, copied: `stops` meets its end in each test, `goes_on` must not notice.
fn synced(name: &str, combination: Combination, more: &str) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(&format!(
        "CREATE TABLE stops (id int PRIMARY KEY, n int, v text); INSERT INTO stops SELECT i, i, 'v' FROM generate_series(1, 200) i; \
         CREATE TABLE goes_on (id int PRIMARY KEY, v text); INSERT INTO goes_on SELECT i, 'v' FROM generate_series(1, 200) i; {more}"
    ));
    scenario.converge(&["public.stops", "public.goes_on"]);
    scenario
}

/// `event` stops the one table, whose error must have all of `words`. Its rows stay as they were at its last good position.
#[track_caller]
fn stops(scenario: &Scenario<'_>, event: &str, words: &[&str]) {
    let source = &scenario.source;
    // One good change more, in a transaction of its own, so that both tables move before the one stops.
    source.execute("UPDATE stops SET v = 'last' WHERE id <= 10; UPDATE goes_on SET v = 'first' WHERE id <= 10");
    scenario.duckpipe.sync_once().expect(0);
    let good = scenario.duckpipe.status().applied_lsn().unwrap();
    let rows = "SELECT * FROM lake.public.stops ORDER BY id";
    let before = scenario.lake.open_native().rows(rows);

    source.execute("BEGIN; UPDATE stops SET v = 'not to be seen' WHERE id = 11; UPDATE goes_on SET v = 'seen' WHERE id = 11; COMMIT");
    source.execute(event);
    source.execute("UPDATE goes_on SET v = 'after' WHERE id > 190; INSERT INTO goes_on VALUES (1000, 'after')");
    let target = source.lsn();
    let finished = scenario.duckpipe.sync_once().expect(5);
    assert!(finished.stderr.contains("public.stops"), "{}", finished.stderr);
    examine(scenario, words, good, target, &before);

    // It stays so over a restart, and over more changes of both.
    source.execute("UPDATE goes_on SET v = 'again'; DELETE FROM goes_on WHERE id < 20");
    let _ = source.try_execute("INSERT INTO stops (id) VALUES (2000)");
    let target = source.lsn();
    scenario.duckpipe.sync_once().expect(5);
    examine(scenario, words, good, target, &before);
    // A `sync` that goes on is no failure: it has other tables.
    let mut sync = scenario.duckpipe.sync();
    source.execute("INSERT INTO goes_on VALUES (1001, 'while sync runs')");
    let lsn = source.lsn();
    sync.wait_until("the other table goes on", Duration::from_secs(60), |status| {
        status.state("public.goes_on") == "streaming" && status.applied_lsn() >= Some(lsn)
    });
    let status = scenario.duckpipe.run(&["status"]).expect(5);
    assert!(status.stdout.contains("errored"), "{}", status.stdout);
    scenario.wait_for_confirmation(lsn);
    sync.terminate().expect(0);
    examine(scenario, words, good, lsn, &before);
}

/// Both tables as they must be, in `status` and in every version of the lake since.
#[track_caller]
fn examine(scenario: &Scenario<'_>, words: &[&str], good: Lsn, target: Lsn, before: &[Vec<Option<String>>]) {
    let status = scenario.duckpipe.status();
    assert!(status.applied_lsn() >= Some(target), "{}", status.0);
    assert_eq!(status.state("public.goes_on"), "streaming");
    assert!(status.table("public.goes_on")["error"].is_null());
    let stopped = status.table("public.stops");
    assert_eq!(stopped["state"], "errored", "{stopped}");
    let error = stopped["error"].as_str().unwrap_or_default();
    for word in words {
        assert!(error.to_lowercase().contains(&word.to_lowercase()), "the error lacks {word:?}: {error}");
    }
    let position: Lsn = stopped["applied_lsn"].as_str().expect("the position of its rows").parse().unwrap();
    assert!(position >= good && position < target, "{position} is not between {good} and {target}");

    let native = scenario.lake.open_native();
    crate::lab::assert_equal(&scenario.source, &native, "public.goes_on");
    let rows = native.rows("SELECT * FROM lake.public.stops ORDER BY id");
    // Either before or after the transaction that came before the event, but nothing between and nothing later.
    let seen = rows.iter().filter(|row| row.iter().flatten().any(|value| value == "not to be seen")).count();
    if seen == 0 {
        assert_eq!(rows, before);
    } else {
        assert!(position > good);
    }
    for version in native.versions().iter().filter(|version| version.lsn() > Some(position)) {
        let behind = &version.extra["behind"];
        let entry =
            behind.as_array().and_then(|all| all.iter().find(|entry| entry.to_string().contains("public.stops")));
        let entry = entry.map(ToString::to_string).or_else(|| behind.get("public.stops").map(ToString::to_string));
        let entry = entry.unwrap_or_else(|| {
            panic!("version {} does not say that the table is behind: {}", version.id, version.extra)
        });
        assert!(entry.contains(&position.to_string()), "version {}: {entry} is not at {position}", version.id);
        assert!(!behind.to_string().contains("goes_on"));
    }
}

#[track_caller]
fn recovers(scenario: &Scenario<'_>) {
    let tables = ["public.stops", "public.goes_on"];
    scenario.resnapshot(&tables);
    scenario.source.execute("UPDATE goes_on SET v = 'streams'; DELETE FROM stops WHERE id % 2 = 0");
    scenario.converge(&tables);
    let status = scenario.duckpipe.status();
    assert!(status.all("streaming"), "{}", status.0);
    assert!(status.table("public.stops")["error"].is_null(), "{}", status.0);
    let native = scenario.lake.open_native();
    let last = native.versions().pop().unwrap();
    let behind = &last.extra["behind"];
    assert!(behind.is_null() || *behind == serde_json::json!([]) || *behind == serde_json::json!({}), "{}", last.extra);
}

/// The second change hides from the catalog what the column was at the first.
#[test]
fn columns_changed_twice() {
    let scenario = synced("stop_twice", Combination::EMBEDDED, "");
    stops(
        &scenario,
        "BEGIN; ALTER TABLE stops ADD COLUMN extra int; UPDATE stops SET extra = 1 WHERE id = 1; COMMIT; \
         BEGIN; ALTER TABLE stops RENAME extra TO more; UPDATE stops SET more = 1 WHERE id = 2; COMMIT",
        &["changed again", "resync"],
    );
    recovers(&scenario);
}

#[test]
fn change_of_type() {
    let scenario = synced("stop_type", POSTGRES, "");
    stops(
        &scenario,
        "ALTER TABLE stops ALTER n TYPE bigint; UPDATE stops SET n = 5000000000 WHERE id = 1",
        &["n", "resync"],
    );
    recovers(&scenario);
}

#[test]
fn change_of_key() {
    let scenario = synced("stop_key", Combination::EMBEDDED, "");
    stops(
        &scenario,
        "ALTER TABLE stops DROP CONSTRAINT stops_pkey, ALTER v SET NOT NULL, ADD PRIMARY KEY (id, v); UPDATE stops SET n = 1 WHERE id = 1",
        &["key", "resync"],
    );
    recovers(&scenario);
}

/// The rows of the table's end stay, and those of another table under its name do not come among them.
#[test]
fn dropped_and_made_anew() {
    let scenario = synced("stop_anew", Combination::EMBEDDED, "");
    scenario.source.execute("UPDATE stops SET v = 'last' WHERE id <= 10");
    scenario.source.execute(
        "DROP TABLE stops; CREATE TABLE stops (id int PRIMARY KEY, n int, v text); INSERT INTO stops VALUES (1, 1, 'another table'); \
         ALTER PUBLICATION duckpipe_stop_anew ADD TABLE stops; UPDATE goes_on SET v = 'after' WHERE id <= 10",
    );
    for _ in 0..2 {
        scenario.converge(&["public.goes_on"]);
        let status = scenario.duckpipe.status();
        assert_eq!((status.state("public.stops"), status.state("public.goes_on")), ("dropped", "streaming"));
        let native = scenario.lake.open_native();
        assert_eq!(native.number("SELECT count(*) FROM lake.public.stops WHERE v = 'last'"), 10);
        assert_eq!(native.number("SELECT count(*) FROM lake.public.stops WHERE v = 'another table'"), 0);
        drop(native);
        scenario.source.execute("UPDATE stops SET v = 'another table'; UPDATE goes_on SET v = 'again'");
    }
    recovers(&scenario);
}

/// A value that the lake's type can't hold: named by its column and key, with the remedy that keeps it.
#[test]
fn an_unrepresentable_value() {
    let scenario = synced("stop_value", Combination::EMBEDDED, "ALTER TABLE stops ADD a int[]");
    stops(&scenario, "UPDATE stops SET a = '{{1,2},{3,4}}' WHERE id = 77", &["\"a\"", "77", "types"]);
    // The remedy, as it says.
    let configuration = scenario.duckpipe.configuration();
    let text =
        "[[tables]]\nsource = \"public.stops\"\ntypes = { a = \"text\" }\n[[tables]]\nsource = \"public.goes_on\"\n";
    scenario.duckpipe.configure(&configuration.replace("[[tables]]\nsource = \"public.*\"\n", text));
    scenario.resnapshot(&["public.goes_on"]);
    let native = scenario.lake.open_native();
    assert_eq!(native.text("SELECT a FROM lake.public.stops WHERE id = 77"), "{{1,2},{3,4}}");
    drop(native);
    assert!(scenario.duckpipe.status().all("streaming"));
}

/// A value that can't be held already in the first copy stops its table there; the others are copied and stream.
#[test]
fn an_unrepresentable_value_in_the_copy() {
    let scenario = Scenario::new("stop_copy", POSTGRES, TABLES);
    scenario.source.execute(
        "CREATE TABLE stops (id int PRIMARY KEY, n numeric(10,2)); INSERT INTO stops VALUES (1, 1), (2, 'NaN'); \
         CREATE TABLE goes_on (id int PRIMARY KEY, v text); INSERT INTO goes_on VALUES (1, 'v')",
    );
    scenario.duckpipe.sync_once().expect(5);
    scenario.source.execute("INSERT INTO goes_on VALUES (2, 'w'); INSERT INTO stops VALUES (3, 3)");
    scenario.duckpipe.sync_once().expect(5);
    let status = scenario.duckpipe.status();
    assert_eq!((status.state("public.stops"), status.state("public.goes_on")), ("errored", "streaming"));
    let error = status.table("public.stops")["error"].to_string();
    assert!(error.contains('n') && error.contains("types") && error.contains('2'), "{error}");
    let native = scenario.lake.open_native();
    crate::lab::assert_equal(&scenario.source, &native, "public.goes_on");
    assert_eq!(native.number("SELECT count(*) FROM lake.public.stops"), 0);
    drop(native);
    scenario.source.execute("UPDATE stops SET n = 2 WHERE id = 2");
    recovers(&scenario);
}

/// Somebody deleted rows of the lake's table: a change of such a row stops the table, instead of being passed over.
#[test]
fn a_row_that_the_lake_does_not_hold() {
    let scenario = synced("stop_foreign", Combination::EMBEDDED, "");
    scenario.lake.open_native_writable().execute("DELETE FROM lake.public.stops WHERE id = 50");
    scenario.source.execute("UPDATE stops SET v = 'x' WHERE id = 50; UPDATE goes_on SET v = 'x' WHERE id = 50");
    scenario.duckpipe.sync_once().expect(5);
    let status = scenario.duckpipe.status();
    let error = status.table("public.stops")["error"].to_string();
    assert!(error.contains("50") && error.contains("resync"), "{error}");
    crate::lab::assert_equal(&scenario.source, &scenario.lake.open_native(), "public.goes_on");
    recovers(&scenario);
}

/// Somebody drops its table in the lake, while others are written.
#[test]
fn a_table_that_the_lake_has_no_more() {
    let mut scenario = synced("stop_dropped", POSTGRES, "");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.lake.open_native_writable().execute("DROP TABLE lake.public.stops");
    scenario.source.execute("UPDATE stops SET v = 'x' WHERE id = 50; UPDATE goes_on SET v = 'x' WHERE id = 50");
    scenario.wait_for_state(&mut sync, "public.stops", "errored");
    scenario.source.execute("UPDATE goes_on SET v = 'y' WHERE id = 51");
    scenario.wait_for_state(&mut sync, "public.goes_on", "streaming");
    sync.terminate().expect(0);
    // It is made again, and whoever does that dies before the catalog knows of it.
    scenario.duckpipe.run(&["tables", "resync", "public.stops"]).expect(0);
    scenario.duckpipe.die_at("lake_table_made", 1);
    assert_eq!(scenario.duckpipe.run_within(&["sync"], MINUTE).code, None, "not killed");
    scenario.duckpipe.live();
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.stops", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stops", "public.goes_on"]);
}

/// A file of its is there, and can't be read: a data file, then a delete file. Nothing of it can be compacted either, and all of the others.
#[test]
fn a_file_that_can_not_be_read() {
    let more = "UPDATE stops SET v = 'w' WHERE id < 20; UPDATE goes_on SET v = 'w' WHERE id < 20";
    for kind in ["data", "delete"] {
        let scenario = synced(&format!("stop_broken_{kind}"), Combination::EMBEDDED, "");
        scenario.source.execute(more);
        scenario.converge(&["public.stops", "public.goes_on"]);
        let native = scenario.lake.open_native();
        let files = format!(
            "SELECT {kind}_file FROM ducklake_list_files('lake', 'stops', schema => 'public') WHERE {kind}_file IS NOT NULL \
             ORDER BY 1 LIMIT 1"
        );
        let file = native.text(&files);
        drop(native);
        let mut bytes = std::fs::read(&file).unwrap();
        // The length of the footer, which says where to begin.
        let at = bytes.len() - 8;
        bytes[at..at + 4].copy_from_slice(&[3, 0, 0, 0]);
        std::fs::write(&file, bytes).unwrap();
        scenario.source.execute("UPDATE stops SET v = 'x'; UPDATE goes_on SET v = 'x' WHERE id = 50");
        scenario.duckpipe.sync_once().expect(5);
        let status = scenario.duckpipe.status();
        let error = status.table("public.stops")["error"].to_string();
        assert!(error.contains(".parquet") && error.contains("resync"), "{error}");
        crate::lab::assert_equal(&scenario.source, &scenario.lake.open_native(), "public.goes_on");
        recovers(&scenario);
    }
}

/// Somebody has a table to himself for as long as he likes: an open TRUNCATE, a VACUUM FULL. The next start does not wait for him.
#[test]
fn a_table_that_somebody_has_to_himself() {
    let more = "CREATE TABLE parted (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); \
                CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (1000); INSERT INTO parted VALUES (1, 'v')";
    let scenario = synced("has_a_lock", Combination::EMBEDDED, more);
    scenario.source.execute("UPDATE stops SET v = 'before'");
    let other = scenario.source.connect();
    other.execute("BEGIN; LOCK TABLE stops; TRUNCATE parted");
    scenario.source.execute("UPDATE goes_on SET v = 'beside'");
    scenario.duckpipe.start(&["sync", "--once"]).wait(MINUTE).expect(0);
    let shown = |table: &str, text: &str| {
        let lake = scenario.lake.open_native();
        lake.text(&format!("SELECT count(*) FROM {} WHERE v = '{text}'", NativeLake::table(table, None)))
    };
    assert_eq!([shown("public.stops", "before"), shown("public.goes_on", "beside")], ["200", "200"]);
    let mut sync = scenario.duckpipe.sync();
    scenario.source.execute("UPDATE goes_on SET v = 'again'");
    let status = sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    assert!(status.all("streaming"), "{}", status.0);
    other.execute("UPDATE stops SET v = 'mine'; COMMIT");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stops", "public.goes_on", "public.parted"]);
}
