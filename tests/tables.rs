//! `duckpipe tables add|remove|pause|resume`, and an edited configuration with SIGHUP: the other tables do not notice.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use duckpipe::lsn::Lsn;

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, NativeLake, StoreKind, assert_equal, wait_for};
use crate::scenario::{Scenario, assert_level};
use crate::workload::Writer;

const SYNC: &str = "[sync]\nflush_interval = \"50ms\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

/// Three tables, of which two are followed.
fn scenario(name: &str, combination: Combination) -> Scenario<'static> {
    let rest = format!("{SYNC}{}", Duckpipe::tables(&["public.stays", "public.t"]));
    let mut scenario = Scenario::new(name, combination, &rest);
    for table in ["stays", "t", "more"] {
        scenario.source.execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int, v text); \
             INSERT INTO {table} SELECT i, 0, 'v' FROM generate_series(1, 2000) i"
        ));
    }
    scenario.converge(&["public.stays", "public.t"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario
}

/// Writes the same number into all tables, in one transaction, again and again.
fn writer(scenario: &Scenario<'_>) -> Writer {
    let mut number = 0;
    Writer::of(&scenario.source.url(), move |client| {
        number += 1;
        let changes: String = ["stays", "t", "more"]
            .iter()
            .map(|table| {
                format!(
                    "UPDATE {table} SET n = {number} WHERE id = 1; INSERT INTO {table} VALUES ({}, {number}); \
                     UPDATE {table} SET v = 'v{number}' WHERE id = 2 + {number} % 1000; ",
                    10_000 + number
                )
            })
            .collect();
        client.execute(&format!("BEGIN; {changes} COMMIT"));
        std::thread::sleep(Duration::from_millis(10));
    })
}

/// What the lake shows of the first row of a table, now.
fn n(scenario: &Scenario<'_>, table: &str) -> String {
    let native = scenario.lake.open_beside_sync();
    native.text(&format!("SELECT n FROM {} WHERE id = 1", NativeLake::table(table, None)))
}

fn every_command(combination: Combination) {
    let scenario = scenario(&format!("commands_{}", combination.name()), combination);
    let tables = |arguments: &[&str]| scenario.duckpipe.run(&[&["tables"][..], arguments].concat());
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let writing = writer(&scenario);

    // One stands still, the other goes on.
    tables(&["pause", "public.t"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    let (stands, before) = (n(&scenario, "public.t"), n(&scenario, "public.stays"));
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    assert_eq!(n(&scenario, "public.t"), stands);
    assert_ne!(n(&scenario, "public.stays"), before);
    // No WAL is kept for it.
    scenario.wait_for_confirmation(scenario.source.lsn());
    let refused = tables(&["resume", "public.stays"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.output().contains("there is nothing to resume"), "{}", refused.output());
    tables(&["resume", "public.t"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "streaming");

    // One comes, while it is written to.
    let added = tables(&["add", "public.more", "--exclude-column", "v"]).expect(0).stdout;
    assert!(added.contains("the running sync copies it"), "{added}");
    scenario.wait_for_state(&mut sync, "public.more", "streaming");
    let refused = tables(&["add", "public.more"]).expect(2).output();
    assert!(refused.contains("followed already"), "{refused}");
    let refused = tables(&["add", "public.mor"]);
    assert!(refused.code != Some(0) && refused.output().contains("did you mean public.more?"), "{}", refused.output());

    // One goes, and its table in the lake with it.
    tables(&["remove", "public.t", "--drop"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "unknown");
    writing.stop();
    scenario.wait_for_state(&mut sync, "public.stays", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays"]);
    let native = scenario.lake.open_native();
    crate::lab::Comparison::new(&scenario.source, &native, "public.more", "public.more", &["v"])
        .run(&scenario.source, &native)
        .unwrap_or_else(|difference| panic!("{difference}"));
    let left = native.rows("SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' ORDER BY 1");
    assert_eq!(left, [[Some("more".to_owned())], [Some("stays".to_owned())]]);
    let together = assert_level(&native, &["public.stays", "public.t", "public.more"], "n", 1);
    assert!(together > 0, "no version shows all three");
    drop(native);
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(scenario.source.text(published), "more stays");
    let text = scenario.duckpipe.configuration();
    assert!(text.contains("public.more") && !text.contains("public.t\""), "{text}");
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Whose publication it is has to add the table: `add` says so, `list` has the statement, and the table comes when it was run.
#[test]
fn added_where_the_publication_is_somebody_elses() {
    let rest = format!("{SYNC}{}", Duckpipe::tables(&["public.stays"]));
    let scenario = Scenario::new("commands_foreign", Combination::EMBEDDED, &rest);
    for table in ["stays", "more"] {
        scenario.source.execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY); INSERT INTO {table} VALUES (1)"));
    }
    scenario.source.execute(&format!("CREATE PUBLICATION duckpipe_{} FOR TABLE stays", scenario.name));
    scenario.converge(&["public.stays"]);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.duckpipe.run(&["tables", "add", "public.more"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.more", "pending");
    let list = scenario.duckpipe.run(&["tables", "list", "--json"]).stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let state = |name: &str| {
        let tables = list["tables"].as_array().unwrap();
        let table = tables.iter().find(|table| table["source"] == name).unwrap();
        (table["state"].as_str().unwrap().to_owned(), table["error"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(state("public.stays"), ("streaming".to_owned(), String::new()));
    let statement = format!("ALTER PUBLICATION \"duckpipe_{}\" ADD TABLE ONLY \"public\".\"more\"", scenario.name);
    let (waits, why) = state("public.more");
    assert!(waits == "pending" && why.contains(&statement), "{waits}: {why}");
    let text = scenario.duckpipe.run(&["tables", "list"]).stdout;
    assert!(text.contains("public.stays") && text.contains("public.more") && text.contains("pending"), "{text}");
    scenario.source.execute(&statement);
    scenario.wait_for_state(&mut sync, "public.more", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.more"]);
}

#[test]
fn every_command_duckdb() {
    every_command(Combination::EMBEDDED);
}

#[test]
fn every_command_postgres() {
    every_command(POSTGRES);
}

/// It comes to no copy any more: the lake keeps the rows that it had, and nothing is amiss.
#[test]
fn a_table_that_is_dropped_while_it_is_paused() {
    let scenario = scenario("commands_gone", Combination::EMBEDDED);
    scenario.converge(&["public.t", "public.stays"]);
    let shown = |native: &NativeLake| native.number("SELECT count(*) FROM lake.public.t");
    let rows = shown(&scenario.lake.open_native());
    let mut sync = scenario.duckpipe.sync();
    scenario.duckpipe.run(&["tables", "pause", "public.t"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    scenario.source.execute("DELETE FROM t WHERE id < 20; DROP TABLE t");
    scenario.duckpipe.run(&["tables", "resume", "public.t"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "dropped");
    sync.terminate().expect(0);
    assert_eq!(shown(&scenario.lake.open_native()), rows);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.converge(&["public.stays"]);
    assert_eq!(scenario.duckpipe.status().state("public.t"), "dropped");
}

/// While `sync` runs: its rows stay as they are from then on.
#[test]
fn a_table_that_is_removed() {
    let scenario = scenario("commands_removed", Combination::EMBEDDED);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.source.execute("UPDATE t SET v = 'the last'; UPDATE stays SET v = 'x'");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    scenario.duckpipe.run(&["tables", "remove", "public.t"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.t", "unknown");
    scenario.source.execute("UPDATE t SET v = 'later'; UPDATE stays SET v = 'later'");
    scenario.wait_for_state(&mut sync, "public.stays", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays"]);
    let last = "SELECT count(*) FROM lake.public.t WHERE v = 'the last'";
    assert_eq!(scenario.lake.open_native().number(last), 2000);
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(scenario.source.text(published), "stays");
}

/// Wherever it dies, what was wanted is done by the next start.
#[test]
fn killed_in_a_command() {
    let mut scenario = scenario("commands_killed", Combination::EMBEDDED);
    let dies_at = |scenario: &mut Scenario<'_>, failpoint: &str| {
        scenario.duckpipe.die_at(failpoint, 1);
        let died = scenario.duckpipe.sync().wait(MINUTE);
        assert_eq!(died.code, None, "{failpoint}: {}", died.output());
        scenario.duckpipe.live();
        scenario.source.execute("UPDATE t SET v = v || '.' WHERE id < 50; UPDATE stays SET v = v || '.'");
    };
    scenario.duckpipe.run(&["tables", "pause", "public.t"]).expect(0);
    dies_at(&mut scenario, "table_paused");
    scenario.converge(&["public.stays"]);
    assert_eq!(scenario.duckpipe.status().state("public.t"), "paused");
    scenario.duckpipe.run(&["tables", "resume", "public.t"]).expect(0);
    dies_at(&mut scenario, "beside_join");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.t"]);
    scenario.duckpipe.run(&["tables", "remove", "public.t", "--drop"]).expect(0);
    dies_at(&mut scenario, "lake_table_dropped");
    dies_at(&mut scenario, "table_removed");
    scenario.converge(&["public.stays"]);
    let status = scenario.duckpipe.status();
    assert_eq!(status.0["tables"].as_array().map(Vec::len), Some(1), "{}", status.0);
    let left = "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = 't'";
    assert_eq!(scenario.lake.open_native().number(left), 0);
}

/// While nobody runs: the next start sees to it.
#[test]
fn every_command_while_nobody_runs() {
    let scenario = scenario("commands_between", Combination::EMBEDDED);
    let change =
        |text: &str| scenario.source.execute(&format!("UPDATE t SET v = '{text}'; UPDATE stays SET v = '{text}'"));
    scenario.duckpipe.run(&["tables", "pause", "public.t"]).expect(0);
    change("one");
    scenario.converge(&["public.stays"]);
    assert_eq!(scenario.duckpipe.status().state("public.t"), "paused");
    let old = "SELECT count(*) FROM lake.public.t WHERE v = 'one'";
    assert_eq!(scenario.lake.open_native().number(old), 0);
    scenario.duckpipe.run(&["tables", "resume", "public.t"]).expect(0);
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.t"]);

    let removed = scenario.duckpipe.run(&["tables", "remove", "public.t"]).expect(0).stdout;
    assert!(removed.contains("the next sync lets it go"), "{removed}");
    change("two");
    scenario.converge(&["public.stays"]);
    let status = scenario.duckpipe.status();
    assert_eq!(status.0["tables"].as_array().map(Vec::len), Some(1), "{}", status.0);
    assert!(scenario.lake.open_native().number("SELECT count(*) FROM lake.public.t") > 0, "the lake's table stays");
    let only = scenario.duckpipe.run(&["tables", "remove", "public.stays"]).expect(2).output();
    assert!(only.contains("the only table"), "{only}");
}

/// A `sync` that has the catalog's file open, and answers nobody yet: it is asked when it does.
#[test]
fn a_command_while_sync_opens_the_lake() {
    let scenario = scenario("commands_early", Combination::EMBEDDED);
    let file = std::fs::metadata(scenario.lake.catalog_file()).unwrap().ino();
    let opening = || {
        let mut sync = scenario.duckpipe.sync();
        // A line of /proc/locks names the locked file as major:minor:inode.
        let lock = format!(":{file} ");
        while !std::fs::read_to_string("/proc/locks").unwrap().contains(&lock) {
            assert!(sync.runs(), "{}", sync.tail());
        }
        sync
    };
    for (wanted, state) in [("pause", "paused"), ("resume", "streaming"), ("pause", "paused"), ("resume", "streaming")]
    {
        let mut sync = opening();
        scenario.duckpipe.run(&["tables", wanted, "public.t"]).expect(0);
        scenario.wait_for_state(&mut sync, "public.t", state);
        sync.terminate().expect(0);
        let sync = opening();
        scenario.duckpipe.run(&["compact"]).expect(0);
        sync.terminate().expect(0);
    }
}

/// A file that is edited while `sync` begins: what the stream begins with was chosen before, so the change comes to effect after that.
#[test]
fn an_edited_file_while_it_begins() {
    let scenario = scenario("commands_begin", Combination::EMBEDDED);
    let turn = scenario.source.connect();
    let lock = "(hashtextextended('duckpipe:duckpipe_commands_begin', 0))";
    turn.query(&format!("SELECT pg_advisory_lock{lock}"));
    let mut sync = scenario.duckpipe.sync();
    wait_for(
        "sync waits for its turn",
        MINUTE,
        || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%' \
                         AND datname = current_database()";
            (scenario.source.connect().number(waits) > 0).then_some(())
        },
        || sync.tail(),
    );
    let file = scenario.duckpipe.configuration();
    let head = file.split("[[tables]]").next().unwrap();
    scenario.duckpipe.configure(&format!("{head}[[tables]]\nsource = \"public.t\"\nexclude_columns = [\"v\"]\n"));
    sync.signal("HUP");
    sync.wait_for_output("was read again", MINUTE);
    turn.query(&format!("SELECT pg_advisory_unlock{lock}"));

    scenario.wait_for_state(&mut sync, "public.stays", "paused");
    wait_for(
        "the column is gone",
        MINUTE,
        || (scenario.lake.open_beside_sync().columns("public.t", None).len() == 2).then_some(()),
        || sync.tail(),
    );
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
}

/// An edited file and SIGHUP: what is named comes, what is not named any more stands still, and comes back once it is named again. A
/// file that is wrong changes nothing.
#[test]
fn an_edited_file_and_sighup() {
    let scenario = scenario("commands_hup", Combination::EMBEDDED);
    let file = scenario.duckpipe.configuration();
    let head = file.split("[[tables]]").next().unwrap().to_owned();
    let name = |tables: &[&str]| scenario.duckpipe.configure(&(head.clone() + &Duckpipe::tables(tables)));
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let writing = writer(&scenario);

    name(&["public.stays", "public.more"]);
    sync.signal("HUP");
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    scenario.wait_for_state(&mut sync, "public.more", "streaming");
    let status = scenario.duckpipe.status();
    assert_eq!(status.table("public.t")["error"], "[[tables]] does not name it any more");

    scenario.duckpipe.configure("this is no configuration");
    sync.signal("HUP");
    sync.wait_for_output("the former one stays", MINUTE);
    name(&["public.stays", "public.more"]);
    scenario.wait_for_state(&mut sync, "public.more", "streaming");

    // Named again, with other columns: a fresh copy.
    name(&["public.stays", "public.t"]);
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&(text + "[[tables]]\nsource = \"public.more\"\nexclude_columns = [\"v\"]\n"));
    sync.signal("HUP");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    wait_for(
        "the column is gone",
        MINUTE,
        || {
            let columns = scenario.lake.open_beside_sync().columns("public.more", None);
            (columns.len() == 2).then_some(())
        },
        || sync.tail(),
    );
    scenario.wait_for_state(&mut sync, "public.more", "streaming");
    writing.stop();
    scenario.wait_for_state(&mut sync, "public.more", "streaming");
    assert_equal(&scenario.source, &scenario.lake.open_beside_sync(), "public.t");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays", "public.t"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// What was to be removed, and is named in the configuration again before anybody saw to it, is not removed when it is taken out another time.
#[test]
fn a_removal_that_is_taken_back() {
    let scenario = scenario("commands_back", Combination::EMBEDDED);
    let file = scenario.duckpipe.configuration();
    scenario.duckpipe.run(&["tables", "remove", "public.t", "--drop"]).expect(0);
    scenario.duckpipe.run(&["tables", "add", "public.t"]).expect(0);
    scenario.source.execute("UPDATE t SET v = 'later'");
    scenario.converge(&["public.stays", "public.t"]);
    let head = file.split("[[tables]]").next().unwrap();
    scenario.duckpipe.configure(&format!("{head}{}", Duckpipe::tables(&["public.stays"])));
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    sync.terminate().expect(0);
    assert_eq!(scenario.lake.open_native().number("SELECT count(*) FROM lake.public.t WHERE v = 'later'"), 2000);
}

/// A catalog that answers nobody for longer than is waited for the stream to stand still: the table leaves it later, and `sync` runs on.
#[test]
fn a_catalog_that_hangs_while_a_table_leaves() {
    let scenario = scenario("commands_hangs", POSTGRES);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let catalogs = [(), ()].map(|()| Client::connect(&scenario.lake.catalog()));
    catalogs[0].execute("BEGIN; LOCK TABLE duckpipe_format IN EXCLUSIVE MODE");
    // Something to take over without a change: the stream that is to stand waits for the catalog.
    scenario.source.execute("UPDATE more SET v = 'moves the WAL on'");
    let received = scenario.source.lsn();
    wait_for(
        "the position",
        MINUTE,
        || (scenario.duckpipe.status().0["source_lsn"].as_str()?.parse::<Lsn>().ok()? >= received).then_some(()),
        || sync.tail(),
    );
    catalogs[1].execute("UPDATE duckpipe_table SET wanted = 'pause' WHERE source_table = 't'");
    let locked = std::time::Instant::now();
    wait_for("time", MINUTE, || (locked.elapsed() > Duration::from_secs(26)).then_some(()), || sync.tail());
    catalogs[0].execute("COMMIT");
    scenario.wait_for_state(&mut sync, "public.t", "paused");
    scenario.source.execute("UPDATE stays SET v = 'afterwards' WHERE id = 1");
    scenario.wait_for_state(&mut sync, "public.stays", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays"]);
}
