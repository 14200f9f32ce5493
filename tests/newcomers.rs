//! Tables that come and go in the source: new ones are copied beside the stream, dropped ones keep their rows, the others do not notice.

use std::time::Duration;

use crate::lab::{CatalogKind, Combination, NativeLake, Running, Status, StoreKind, assert_equal};
use crate::scenario::{Scenario, assert_level};
use crate::workload::Writer;

const SYNC: &str = "[sync]\nflush_interval = \"50ms\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

fn state<'a>(status: &'a Status, table: &str) -> &'a str {
    let tables = status.0["tables"].as_array().map_or(&[] as &[_], Vec::as_slice);
    tables.iter().find(|known| known["source"] == table).and_then(|known| known["state"].as_str()).unwrap_or("unknown")
}

/// Waits until the table has this state, and everything that the source has by now is in the lake.
fn waits_for(scenario: &Scenario<'_>, sync: &mut Running<'_>, table: &str, wanted: &str) {
    let lsn = scenario.source.lsn();
    sync.wait_until(&format!("{table} {wanted}"), MINUTE, |status| {
        state(status, table) == wanted && status.applied_lsn() >= Some(lsn)
    });
}

/// Writes into the tables, in one transaction each time.
fn writer(scenario: &Scenario<'_>, tables: &'static [&'static str]) -> Writer {
    let mut number = 0;
    Writer::of(&scenario.source.url(), move |client| {
        number += 1;
        let changes: String = tables
            .iter()
            .map(|table| {
                format!(
                    "INSERT INTO {table} VALUES ({}, 'new'); UPDATE {table} SET v = 'v{number}' WHERE id % 100 = 7; ",
                    100_000 + number
                )
            })
            .collect();
        client.execute(&format!("BEGIN; {changes} COMMIT"));
        std::thread::sleep(Duration::from_millis(10));
    })
}

fn rows(table: &str, count: u32) -> String {
    format!(
        "CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i, 'v' FROM generate_series(1, {count}) i"
    )
}

fn come_and_go(combination: Combination) {
    let tables = format!("{SYNC}[[tables]]\nsource = \"public.*\"\n");
    let scenario = Scenario::new(&format!("come_{}", combination.name()), combination, &tables);
    scenario.source.execute(&rows("stays", 500));
    scenario.converge(&["public.stays"]);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));

    // A new one, which is written to from its first moment on.
    scenario.source.execute(&rows("comes", 20_000));
    let writing = writer(&scenario, &["stays", "comes"]);
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    writing.stop();
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    let native = scenario.lake.open_beside_sync();
    for table in ["public.stays", "public.comes"] {
        assert_equal(&scenario.source, &native, table);
    }
    assert!(assert_level(&native, &["public.stays", "public.comes"], "v", 7) > 0, "no version shows both");
    drop(native);

    // It goes: the lake has its very last rows.
    scenario.source.execute("UPDATE comes SET v = 'the last' WHERE id <= 10");
    scenario.source.execute("DROP TABLE comes; UPDATE stays SET v = 'goes on'");
    waits_for(&scenario, &mut sync, "public.comes", "dropped");
    sync.terminate().expect(0);
    let last = "SELECT count(*) FROM lake.public.comes WHERE v = 'the last'";
    assert_eq!(scenario.lake.open_native().number(last), 10);
    scenario.converge(&["public.stays"]);
    assert_eq!(state(&scenario.duckpipe.status(), "public.comes"), "dropped");
    scenario.duckpipe.run(&["validate"]).expect(0);

    // Another one of that name is another one, and takes its place in one version.
    let before = scenario.version_ids().pop().unwrap();
    scenario
        .source
        .execute("CREATE TABLE comes (id int PRIMARY KEY, other date); INSERT INTO comes VALUES (1, '2026-01-01')");
    let mut sync = scenario.duckpipe.sync();
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    scenario.source.execute("INSERT INTO comes VALUES (2, '2026-01-02'); UPDATE stays SET v = 'and on'");
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    let finished = sync.terminate().expect(0);
    assert!(finished.output().contains("was dropped and made anew"), "{}", finished.output());
    scenario.assert_equal(&["public.stays", "public.comes"]);
    let native = scenario.lake.open_native();
    assert_eq!(native.number(&last.replace("comes", &format!("comes AT (VERSION => {before})"))), 10);
    for version in native.versions().iter().filter(|version| version.id > before) {
        let from = NativeLake::table("public.comes", Some(version.id));
        let former = native.try_rows(&format!("SELECT v FROM {from}")).map_or(0, |rows| rows.len());
        let rows = native.number(&format!("SELECT count(*) FROM {from}"));
        assert!(
            former > 20_000 || former == 0 && rows > 0,
            "version {} shows {former} former rows, {rows} in all",
            version.id
        );
    }
    drop(native);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn come_and_go_duckdb() {
    come_and_go(Combination::EMBEDDED);
}

#[test]
fn come_and_go_postgres() {
    come_and_go(POSTGRES);
}

/// While nobody runs: one is dropped after its last changes, and one is added to the configuration.
#[test]
fn while_nobody_runs() {
    let of = |names: &[&str]| {
        let tables: String = names.iter().map(|name| format!("[[tables]]\nsource = \"public.{name}\"\n")).collect();
        format!("{SYNC}{tables}")
    };
    let scenario = Scenario::new("come_between", Combination::EMBEDDED, &of(&["stays", "goes"]));
    scenario.source.execute(&format!("{}; {}; {}", rows("stays", 100), rows("goes", 100), rows("comes", 100)));
    scenario.converge(&["public.stays", "public.goes"]);
    scenario.source.execute("UPDATE goes SET v = 'the last' WHERE id <= 10; UPDATE stays SET v = 'x' WHERE id <= 10");
    scenario.source.execute("DROP TABLE goes");
    scenario.converge(&["public.stays"]);
    assert_eq!(state(&scenario.duckpipe.status(), "public.goes"), "dropped");
    let last = "SELECT count(*) FROM lake.public.goes WHERE v = 'the last'";
    assert_eq!(scenario.lake.open_native().number(last), 10);

    let configuration = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&configuration.replace(&of(&["stays", "goes"]), &of(&["stays", "goes", "comes"])));
    let mut sync = scenario.duckpipe.sync();
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    scenario.source.execute("UPDATE comes SET v = 'streams'; UPDATE stays SET v = 'too'");
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.comes"]);
}

/// Wherever it dies while a table comes or goes, the next start goes on with it.
#[test]
fn killed_while_tables_come_and_go() {
    let tables = format!("{SYNC}[[tables]]\nsource = \"public.*\"\n");
    let mut scenario = Scenario::new("come_killed", POSTGRES, &tables);
    scenario.source.execute(&rows("stays", 100));
    scenario.converge(&["public.stays"]);
    for failpoint in ["newcomer_published", "newcomer_made", "beside_slot", "beside_joined"] {
        scenario.source.execute(&rows(failpoint, 300));
        scenario.duckpipe.die_at(failpoint, 1);
        let died = scenario.duckpipe.sync().wait(MINUTE);
        assert_eq!(died.code, None, "{failpoint}: {}", died.output());
        scenario.duckpipe.live();
        let table = format!("public.{failpoint}");
        scenario
            .source
            .execute(&format!("UPDATE {failpoint} SET v = 'later' WHERE id < 50; UPDATE stays SET v = '{failpoint}'"));
        let mut sync = scenario.duckpipe.sync();
        waits_for(&scenario, &mut sync, &table, "streaming");
        scenario.source.execute(&format!("DELETE FROM {failpoint} WHERE id > 200"));
        waits_for(&scenario, &mut sync, &table, "streaming");
        sync.terminate().expect(0);
        scenario.assert_equal(&["public.stays", &table]);
        let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", scenario.source.name());
        assert_eq!(scenario.source.number(&slots), 1, "{failpoint}: the copy's slot is left");
    }
    scenario.source.execute("UPDATE newcomer_made SET v = 'the last'");
    scenario.source.execute("DROP TABLE newcomer_made");
    scenario.duckpipe.die_at("table_ended", 1);
    let died = scenario.duckpipe.sync().wait(MINUTE);
    assert_eq!(died.code, None, "{}", died.output());
    scenario.duckpipe.live();
    scenario.converge(&["public.stays", "public.newcomer_published"]);
    assert_eq!(state(&scenario.duckpipe.status(), "public.newcomer_made"), "dropped");
    let last = "SELECT count(*) FROM lake.public.newcomer_made WHERE v = 'the last'";
    assert_eq!(scenario.lake.open_native().number(last), 200);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// It gets another name, or is gone, before the next start goes on with it: nothing is left of what was made of it.
#[test]
fn gone_while_it_is_made() {
    let tables = format!("{SYNC}[[tables]]\nsource = \"public.*\"\n");
    let mut scenario = Scenario::new("come_gone", POSTGRES, &tables);
    scenario.source.execute(&rows("stays", 100));
    scenario.converge(&["public.stays"]);
    for (change, there) in [("ALTER TABLE comes RENAME TO came", "public.came"), ("DROP TABLE comes", "public.stays")] {
        scenario.source.execute(&rows("comes", 300));
        scenario.duckpipe.die_at("lake_table_made", 1);
        let died = scenario.duckpipe.sync().wait(MINUTE);
        assert_eq!(died.code, None, "{}", died.output());
        scenario.duckpipe.live();
        scenario.source.execute(change);
        let mut sync = scenario.duckpipe.sync();
        sync.wait_until("nothing waits", MINUTE, |status| status.all("streaming"));
        waits_for(&scenario, &mut sync, there, "streaming");
        sync.terminate().expect(0);
        scenario.assert_equal(&["public.stays", there]);
        let left = "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = 'comes'";
        assert_eq!(scenario.lake.open_native().number(left), 0);
        scenario.duckpipe.run(&["validate"]).expect(0);
    }
}

/// A publication that is somebody else's: the statement is told to its owner, and once it was run the table comes.
#[test]
fn a_publication_of_somebody_else() {
    let tables = format!("{SYNC}[[tables]]\nsource = \"public.*\"\n");
    let scenario = Scenario::new("come_foreign", Combination::EMBEDDED, &tables);
    scenario.source.execute(&rows("stays", 100));
    scenario.source.execute(&format!("CREATE PUBLICATION duckpipe_{} FOR TABLE stays", scenario.name));
    scenario.converge(&["public.stays"]);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.source.execute(&rows("comes", 100));
    let statement = format!("ALTER PUBLICATION \"duckpipe_{}\" ADD TABLE ONLY \"public\".\"comes\"", scenario.name);
    crate::lab::wait_for(
        "the statement is told",
        MINUTE,
        || sync.tail().contains("ADD TABLE ONLY").then_some(()),
        || sync.tail(),
    );
    scenario.source.execute("UPDATE stays SET v = 'goes on'");
    waits_for(&scenario, &mut sync, "public.stays", "streaming");
    waits_for(&scenario, &mut sync, "public.comes", "pending");
    let error = scenario.duckpipe.status().table("public.comes")["error"].to_string();
    assert!(error.contains(&statement.replace('"', "\\\"")), "{error}");
    // Another one that waits is dropped before its time.
    scenario.source.execute(&rows("goes", 100));
    waits_for(&scenario, &mut sync, "public.goes", "pending");
    scenario.source.execute("DROP TABLE goes");
    waits_for(&scenario, &mut sync, "public.goes", "unknown");
    // It is told by who comes later, too.
    sync.terminate().expect(0);
    let mut sync = scenario.duckpipe.sync();
    waits_for(&scenario, &mut sync, "public.comes", "pending");
    scenario.source.execute(&statement);
    waits_for(&scenario, &mut sync, "public.comes", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.comes"]);
}
