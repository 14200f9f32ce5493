//! A table of the source gets another name, or another schema: it is the same table, and another one of its old name is another one.

use std::time::Duration;

use crate::lab::{CatalogKind, Combination, Comparison, Duckpipe, NativeLake, Running, StoreKind, wait_for};
use crate::scenario::{Files, Scenario};

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

fn scenario(name: &str, combination: Combination, on_rename: &str, tables: &[&str]) -> Scenario<'static> {
    let sync = format!("[sync]\nflush_interval = \"50ms\"\non_rename = \"{on_rename}\"\n");
    let mut scenario = Scenario::new(name, combination, &(sync + &Duckpipe::tables(tables)));
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.source.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders SELECT i, 'old' FROM generate_series(1, 500) i; \
         CREATE TABLE stays (id int PRIMARY KEY); CREATE SCHEMA shop",
    );
    scenario
}

#[track_caller]
fn assert_is(scenario: &Scenario<'_>, source: &str, target: &str) {
    let native = scenario.lake.open_native();
    let compared = Comparison::new(&scenario.source, &native, source, target, &[]).run(&scenario.source, &native);
    compared.unwrap_or_else(|difference| panic!("{difference}"));
}

/// The lake's table follows, with rows before and after, streamed and while nobody runs; old versions show the old name. A new table of
/// the old name gets a table of its own.
fn follows(combination: Combination) {
    let name = format!("rename_{}", combination.name());
    let scenario = scenario(&name, combination, "follow", &["public.*"]);
    scenario.converge(&["public.orders", "public.stays"]);
    let before = scenario.version_ids().pop().unwrap();
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    scenario.source.execute("UPDATE orders SET v = 'a' WHERE id = 1");
    scenario.source.execute("ALTER TABLE orders RENAME TO orders_2025; UPDATE orders_2025 SET v = 'b' WHERE id = 2");
    scenario.wait_for_state(&mut sync, "public.orders_2025", "streaming");
    scenario
        .source
        .execute("CREATE TABLE orders (id int PRIMARY KEY, other date); INSERT INTO orders VALUES (1, '2026-01-01')");
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    scenario.source.execute("INSERT INTO orders VALUES (2, '2026-01-02'); DELETE FROM orders_2025 WHERE id > 400; INSERT INTO stays VALUES (1)");
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.orders", "public.orders_2025", "public.stays"]);
    let old = format!("SELECT count(*) FROM lake.public.orders AT (VERSION => {before}) WHERE v = 'old'");
    assert_eq!(scenario.lake.open_native().number(&old), 500, "as it was called then");

    // Between two runs, with a column that changes too.
    scenario.source.execute("ALTER TABLE orders_2025 RENAME TO archive; ALTER TABLE archive ADD n int DEFAULT 7; UPDATE archive SET n = 8 WHERE id < 5");
    scenario.converge(&["public.archive", "public.orders"]);
    scenario.source.execute(
        "ALTER TABLE archive RENAME TO \"The \"\"Archive\"; INSERT INTO \"The \"\"Archive\" VALUES (1000, 'x', 1)",
    );
    scenario.duckpipe.sync_once().expect(0);
    let rows = scenario.lake.open_native().number("SELECT count(*) FROM lake.public.\"The \"\"Archive\"");
    assert_eq!(rows, 401);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    scenario.duckpipe.run(&["compact"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    scenario.converge(&["public.orders", "public.stays"]);
}

#[test]
fn follows_duckdb() {
    follows(Combination::EMBEDDED);
}

#[test]
fn follows_postgres() {
    follows(POSTGRES);
}

/// The lake's table keeps its name, under an entry that names the table as it was: it is still that one, and still leaves out what the entry says.
#[test]
fn keeps() {
    let scenario = scenario("rename_keeps", Combination::EMBEDDED, "keep", &["public.stays", "public.orders"]);
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&(text + "exclude_columns = [\"secret\"]\n"));
    scenario.source.execute("ALTER TABLE orders ADD secret text DEFAULT 'psst'");
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("ALTER TABLE orders RENAME TO renamed; UPDATE renamed SET v = 'new' WHERE id < 10");
    scenario.duckpipe.sync_once().expect(0);
    assert_eq!(scenario.duckpipe.status().table("public.renamed")["target"], "public.orders");
    // Columns change under the new name, and so does the schema.
    scenario.source.execute(
        "ALTER TABLE renamed ADD n int; UPDATE renamed SET n = 1 WHERE id < 20; ALTER TABLE renamed SET SCHEMA shop",
    );
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("INSERT INTO shop.renamed VALUES (1000, 'x', 'y', 2)");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "shop.renamed", "streaming");
    // A fresh copy finds it too.
    scenario.duckpipe.run(&["tables", "resync", "shop.renamed"]).expect(0);
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    scenario.wait_for_state(&mut sync, "shop.renamed", "streaming");
    // Another name while it streams. Its first one, which its lake's table has, is another table's now: that one can't have it.
    scenario.source.execute(
        "ALTER TABLE shop.renamed RENAME TO again; UPDATE shop.again SET v = 'again' WHERE id < 5; \
         CREATE TABLE orders (LIKE shop.again INCLUDING ALL); INSERT INTO orders VALUES (1, 'a namesake')",
    );
    scenario.wait_for_state(&mut sync, "shop.again", "streaming");
    let refused = "the lake's table public.orders: it is that of shop.";
    sync.wait_for_output(refused, MINUTE);
    let goes_on = |sync: &mut Running<'_>, v: &str| {
        scenario.source.execute(&format!(
            "UPDATE shop.again SET v = '{v}' WHERE id < 3; INSERT INTO stays SELECT count(*) FROM stays"
        ));
        scenario.wait_for_state(sync, "shop.again", "streaming");
    };
    goes_on(&mut sync, "beside its namesake");
    sync.terminate().expect(0);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output(refused, MINUTE);
    goes_on(&mut sync, "after another start");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.stays"]);
    let native = scenario.lake.open_native();
    let compared = Comparison::new(&scenario.source, &native, "shop.again", "public.orders", &["secret"]);
    assert_eq!(compared.run(&scenario.source, &native).unwrap_or_else(|difference| panic!("{difference}")), 501);
    drop(native);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Into another schema, and back; a name that is taken is not taken away. Another table may come where the first one was.
fn where_it_can(combination: Combination) {
    let name = format!("rename_where_{}", combination.name());
    let scenario = scenario(&name, combination, "follow", &["public.*", "shop.*"]);
    scenario.duckpipe.sync_once().expect(0);
    let before = scenario.version_ids().into_iter().max().unwrap();
    scenario.source.execute("ALTER TABLE orders SET SCHEMA shop; UPDATE shop.orders SET v = 'moved' WHERE id < 7");
    scenario.duckpipe.sync_once().expect(0);
    assert_is(&scenario, "shop.orders", "shop.orders");
    let native = scenario.lake.open_native();
    let old = format!("SELECT count(*) FROM lake.public.orders AT (VERSION => {before}) WHERE v <> 'moved'");
    assert_eq!(native.number(&old), native.number("SELECT count(*) FROM lake.shop.orders"), "as it was called then");
    assert!(native.try_rows("FROM lake.public.orders").is_err());
    drop(native);
    scenario.duckpipe.run(&["compact"]).expect(0);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);

    // Back and forth again, while `sync` runs; no file is written for it.
    let files = |native: &NativeLake| Files::read(&scenario.lake, native).registered;
    let registered = files(&scenario.lake.open_native());
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    for (from, to) in [("shop", "public"), ("public", "shop")] {
        scenario.source.execute(&format!("ALTER TABLE {from}.orders SET SCHEMA {to}"));
        scenario.wait_for_state(&mut sync, &format!("{to}.orders"), "streaming");
    }
    sync.terminate().expect(0);
    assert_is(&scenario, "shop.orders", "shop.orders");
    assert_eq!(files(&scenario.lake.open_native()), registered);

    // Its namesake lies in a folder of its own.
    scenario
        .source
        .execute("CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'another')");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    scenario.source.execute(
        "UPDATE orders SET v = 'one'; INSERT INTO shop.orders SELECT i, 'late' FROM generate_series(5001, 5100) i",
    );
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    // A fresh copy keeps its place.
    let joined = |sync: &Running<'_>| sync.output().matches("the fresh copy streams with the others").count();
    let before = joined(&sync);
    scenario.duckpipe.run(&["tables", "resync", "shop.orders"]).expect(0);
    wait_for("the fresh copy", MINUTE, || (joined(&sync) > before).then_some(()), || sync.tail());
    scenario.wait_for_state(&mut sync, "shop.orders", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.orders", "shop.orders"]);
    let native = scenario.lake.open_native();
    let files = Files::read(&scenario.lake, &native);
    files.assert_complete();
    files.assert_no_orphans();
    drop(native);

    scenario.lake.open_native_writable().execute("CREATE TABLE lake.shop.taken (id int)");
    scenario.source.execute("ALTER TABLE shop.orders RENAME TO taken; UPDATE shop.taken SET v = 'again' WHERE id < 5");
    let told = scenario.duckpipe.sync_once().expect(0);
    assert!(told.output().contains("keeps its name"), "{}", told.output());
    assert_is(&scenario, "shop.taken", "shop.orders");
    // Home again: the name there is another table's, until that one is gone.
    scenario.source.execute("DROP TABLE orders; ALTER TABLE shop.taken RENAME TO orders2; ALTER TABLE shop.orders2 SET SCHEMA public; UPDATE orders2 SET v = 'home' WHERE id < 9");
    scenario.duckpipe.sync_once().expect(0);
    assert_is(&scenario, "public.orders2", "public.orders2");
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    // What nobody can read any more goes, the rows of its former places too.
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&(text + "[compact]\nretain = \"1ms\"\n"));
    scenario.duckpipe.run(&["compact"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    scenario.source.execute("UPDATE orders2 SET v = 'last' WHERE id < 9");
    scenario.duckpipe.sync_once().expect(0);
    assert_is(&scenario, "public.orders2", "public.orders2");
}

#[test]
fn where_it_can_duckdb() {
    where_it_can(Combination::EMBEDDED);
}

#[test]
fn where_it_can_postgres() {
    where_it_can(POSTGRES);
}

/// A table is built anew beside the one that it takes the name of: the first one is dropped, and its rows stay in the lake; the other goes on
/// under the name that it has there. In one step, in two, and while nobody runs.
#[test]
fn built_anew_beside() {
    let mut scenario = scenario("rename_rebuilt", Combination::EMBEDDED, "follow", &["public.*"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__SNAPSHOT_RANGE", "1MB");
    let next = |number: u32| {
        scenario.source.execute(&format!(
            "CREATE TABLE orders_{number} (LIKE orders INCLUDING ALL); INSERT INTO orders_{number} SELECT i, 'number {number}' FROM generate_series(1, 300) i"
        ));
    };
    for number in 1..=3 {
        next(number);
    }
    scenario.converge(&["public.orders", "public.stays", "public.orders_1", "public.orders_2", "public.orders_3"]);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    let goes_on = |sync: &mut Running<'_>, v: &str| {
        scenario.source.execute(&format!(
            "UPDATE orders SET v = '{v}' WHERE id < 10; INSERT INTO stays SELECT count(*) FROM stays"
        ));
        let lsn = scenario.source.lsn();
        sync.wait_until(v, MINUTE, |status| status.applied_lsn() >= Some(lsn));
    };
    // A table that is taken in proves a look for new tables, in the order of their names.
    let looked = |sync: &mut Running<'_>, table: &str| {
        scenario.source.execute(&format!("CREATE TABLE {table} (id int PRIMARY KEY)"));
        scenario.wait_for_state(sync, &format!("public.{table}"), "streaming");
    };
    scenario.source.execute("DROP TABLE orders; ALTER TABLE orders_1 RENAME TO orders");
    sync.wait_for_output("keeps its name", MINUTE);
    looked(&mut sync, "seen_1");
    goes_on(&mut sync, "in one step");
    assert_is_beside(&scenario, "public.orders", "public.orders_1");

    scenario.source.execute("DROP TABLE orders");
    wait_for(
        "the end of the first",
        MINUTE,
        || (sync.output().matches("was dropped").count() == 2).then_some(()),
        || sync.tail(),
    );
    scenario.source.execute("ALTER TABLE orders_2 RENAME TO orders");
    looked(&mut sync, "seen_2");
    goes_on(&mut sync, "in two");
    assert_is_beside(&scenario, "public.orders", "public.orders_2");
    sync.terminate().expect(0);

    scenario.source.execute("DROP TABLE orders; ALTER TABLE orders_3 RENAME TO orders; UPDATE orders SET v = 'while nobody runs' WHERE id < 20");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("keeps its name", MINUTE);
    looked(&mut sync, "seen_3");
    goes_on(&mut sync, "at the end");
    let copied = |line: &&str| line.contains("copying the table afresh") && line.contains("table=public.orders");
    assert_eq!(sync.output().lines().filter(copied).count(), 0, "{}", sync.tail());
    sync.terminate().expect(0);
    assert_is(&scenario, "public.orders", "public.orders_3");
    let native = scenario.lake.open_native();
    assert_eq!(native.number("SELECT count(*) FROM lake.public.orders WHERE v = 'old'"), 500, "the first one's rows");
    drop(native);
    scenario.assert_equal(&["public.stays"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

#[track_caller]
fn assert_is_beside(scenario: &Scenario<'_>, source: &str, target: &str) {
    let native = scenario.lake.open_beside_sync();
    let compared = Comparison::new(&scenario.source, &native, source, target, &[]).run(&scenario.source, &native);
    compared.unwrap_or_else(|difference| panic!("{difference}"));
}

/// The lake's table of a dropped one was dropped by somebody; another table of the source takes its name: the catalog's row has that still.
#[test]
fn a_name_that_only_a_row_has() {
    let scenario = scenario("rename_row", Combination::EMBEDDED, "follow", &["public.*"]);
    scenario.source.execute("CREATE TABLE gone (id int PRIMARY KEY)");
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("DROP TABLE gone; INSERT INTO stays VALUES (1)");
    let sync = scenario.duckpipe.sync();
    sync.wait_for_output("was dropped", MINUTE);
    sync.terminate().expect(0);
    scenario.lake.open_native_writable().execute("DROP TABLE lake.public.gone");
    scenario.source.execute("ALTER TABLE orders RENAME TO gone; UPDATE gone SET v = 'new' WHERE id < 9");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.gone", "streaming");
    scenario.source.execute("UPDATE gone SET v = 'again' WHERE id < 7; INSERT INTO stays VALUES (2)");
    scenario.wait_for_state(&mut sync, "public.gone", "streaming");
    sync.terminate().expect(0);
    assert_is(&scenario, "public.gone", "public.orders");
    scenario.assert_equal(&["public.stays"]);
}

/// Tables that are rotated, all in one transaction: each takes the name that another one leaves. Where two swap their names nobody leaves one.
#[test]
fn rotated() {
    let scenario = scenario("rename_rotated", Combination::EMBEDDED, "follow", &["public.*"]);
    for table in ["events", "events_1", "events_2"] {
        scenario.source.execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i, '{table}' FROM generate_series(1, 50) i"
        ));
    }
    scenario.duckpipe.sync_once().expect(0);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.source.execute(
        "BEGIN; ALTER TABLE events_2 RENAME TO events_3; ALTER TABLE events_1 RENAME TO events_2; ALTER TABLE events RENAME TO events_1; \
         CREATE TABLE events (id int PRIMARY KEY, v text); INSERT INTO events VALUES (1, 'new'); COMMIT",
    );
    let renamed = || (sync.output().matches("has another name").count() == 3).then_some(());
    wait_for("three other names", MINUTE, renamed, || sync.tail());
    sync.wait_for_output("a new table: it is copied", MINUTE);
    scenario.wait_for_state(&mut sync, "public.events", "streaming");
    scenario.source.execute("UPDATE events_1 SET v = 'one' WHERE id < 5; UPDATE events_3 SET v = 'three' WHERE id < 5; INSERT INTO events VALUES (2, 'x')");
    scenario.wait_for_state(&mut sync, "public.events", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.events", "public.events_1", "public.events_2", "public.events_3", "public.orders"]);

    scenario.source.execute(
        "BEGIN; ALTER TABLE events_1 RENAME TO other; ALTER TABLE events_2 RENAME TO events_1; ALTER TABLE other RENAME TO events_2; \
         UPDATE events_2 SET v = 'swapped' WHERE id < 9; COMMIT",
    );
    for _ in 0..2 {
        scenario.duckpipe.sync_once().expect(0);
        assert_is(&scenario, "public.events_2", "public.events_1");
        assert_is(&scenario, "public.events_1", "public.events_2");
    }
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// A table that was renamed is what its own entry says, though another one matches its name now; and it may be called as in between.
#[test]
fn under_its_own_entry() {
    let mut scenario = scenario("rename_entry", Combination::EMBEDDED, "follow", &["public.stays", "public.orders"]);
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&(text + "exclude_columns = [\"secret\"]\n[[tables]]\nsource = \"public.*\"\n"));
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "manual");
    scenario.source.execute("ALTER TABLE orders ADD secret text DEFAULT 'psst'");
    scenario.duckpipe.sync_once().expect(0);
    let shows = |target: &str, source: &str| {
        let native = scenario.lake.open_native();
        let compared = Comparison::new(&scenario.source, &native, source, target, &["secret"]);
        compared.run(&scenario.source, &native).unwrap_or_else(|difference| panic!("{difference}"));
    };
    scenario.source.execute("ALTER TABLE orders RENAME TO orders_2025; UPDATE orders_2025 SET v = 'a' WHERE id < 5");
    for _ in 0..2 {
        scenario.duckpipe.sync_once().expect(0);
        shows("public.orders_2025", "public.orders_2025");
    }
    // The name is taken: it keeps the one between.
    scenario.lake.open_native_writable().execute("CREATE TABLE lake.public.orders_2026 (id int)");
    scenario
        .source
        .execute("ALTER TABLE orders_2025 RENAME TO orders_2026; UPDATE orders_2026 SET v = 'b' WHERE id < 5");
    for _ in 0..2 {
        scenario.duckpipe.sync_once().expect(0);
        shows("public.orders_2025", "public.orders_2026");
    }
}

/// The entry is renamed with its table: while nobody runs, and while `sync` does, the one first or the other. It is the same table.
#[test]
fn its_entry_too() {
    let scenario = scenario("rename_both", Combination::EMBEDDED, "follow", &["public.stays", "public.orders"]);
    scenario.duckpipe.sync_once().expect(0);
    let rename = |from: &str, to: &str| {
        scenario
            .source
            .execute(&format!("ALTER TABLE {from} RENAME TO {to}; UPDATE {to} SET v = '{to}' WHERE id % 9 = 1"));
    };
    let enter = |from: &str, to: &str| {
        let text = scenario.duckpipe.configuration();
        scenario.duckpipe.configure(&text.replace(&format!("\"public.{from}\""), &format!("\"public.{to}\"")));
    };
    rename("orders", "nobody_ran");
    enter("orders", "nobody_ran");
    scenario.converge(&["public.nobody_ran", "public.stays"]);

    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    rename("nobody_ran", "table_first");
    scenario.wait_for_state(&mut sync, "public.table_first", "streaming");
    // An entry that comes with it proves that the configuration was read.
    enter("nobody_ran", "table_first");
    let text = scenario.duckpipe.configuration();
    scenario.source.execute("CREATE TABLE comes (id int PRIMARY KEY)");
    scenario.duckpipe.configure(&(text + &Duckpipe::tables(&["public.comes"])));
    sync.signal("HUP");
    scenario.wait_for_state(&mut sync, "public.comes", "streaming");
    scenario.source.execute("ALTER TABLE table_first ADD n int DEFAULT 3; UPDATE table_first SET n = 4 WHERE id < 9");
    scenario.wait_for_state(&mut sync, "public.table_first", "streaming");

    enter("table_first", "entry_first");
    sync.signal("HUP");
    scenario.wait_for_state(&mut sync, "public.table_first", "paused");
    rename("table_first", "entry_first");
    scenario.wait_for_state(&mut sync, "public.entry_first", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.entry_first", "public.stays", "public.comes"]);
    scenario.duckpipe.run(&["validate"]).expect(0);

    // The entry has the former name still: it is removed by that.
    rename("entry_first", "last");
    scenario.converge(&["public.last"]);
    let refused = scenario.duckpipe.run(&["tables", "remove", "public.last"]).expect(2).output();
    assert!(refused.contains("is named there as before"), "{refused}");
    scenario.duckpipe.run(&["tables", "remove", "public.entry_first"]).expect(0);
    scenario.converge(&["public.stays"]);
    assert_eq!(scenario.duckpipe.status().0["tables"].as_array().map(Vec::len), Some(2));
}

/// A table that stands still is renamed, and another one takes its name: that can't have the lake's table, until the first one goes on and
/// takes this with it.
#[test]
fn while_it_stands_still() {
    let scenario = scenario("rename_paused", Combination::EMBEDDED, "follow", &["public.*"]);
    scenario.duckpipe.sync_once().expect(0);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.duckpipe.run(&["tables", "pause", "public.orders"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.orders", "paused");
    scenario.source.execute(
        "ALTER TABLE orders RENAME TO archive; UPDATE archive SET v = 'new' WHERE id < 9; \
         CREATE TABLE orders (id int PRIMARY KEY, v text); INSERT INTO orders VALUES (1, 'another')",
    );
    scenario.wait_for_state(&mut sync, "public.archive", "paused");
    sync.wait_for_output("the lake's table public.orders: it is that of public.archive", MINUTE);
    scenario.duckpipe.run(&["tables", "resume", "public.archive"]).expect(0);
    scenario.wait_for_state(&mut sync, "public.archive", "streaming");
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    scenario.source.execute("INSERT INTO orders VALUES (2, 'x'); DELETE FROM archive WHERE id > 450");
    scenario.wait_for_state(&mut sync, "public.orders", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.archive", "public.orders", "public.stays"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// A table that kept its name in the lake is dropped there by somebody, and whoever makes it again dies before the catalog knows of it: the next one goes on with it.
#[test]
fn made_again_under_the_name_it_kept() {
    let mut scenario = scenario("rename_again", Combination::EMBEDDED, "keep", &["public.stays", "public.orders"]);
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("ALTER TABLE orders RENAME TO archive; UPDATE archive SET v = 'new' WHERE id < 9");
    scenario.duckpipe.sync_once().expect(0);
    assert_is(&scenario, "public.archive", "public.orders");
    scenario.lake.open_native_writable().execute("DROP TABLE lake.public.orders");
    scenario.source.execute("DELETE FROM archive WHERE id > 400; INSERT INTO stays VALUES (1)");
    scenario.duckpipe.die_at("lake_table_made", 1);
    scenario.duckpipe.run(&["tables", "resync", "public.archive"]).expect(0);
    assert_eq!(scenario.duckpipe.run_within(&["sync"], MINUTE).code, None, "not killed");
    scenario.duckpipe.live();
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.archive", "streaming");
    scenario.source.execute("INSERT INTO archive VALUES (1000, 'last'); INSERT INTO stays VALUES (2)");
    scenario.wait_for_state(&mut sync, "public.archive", "streaming");
    sync.terminate().expect(0);
    assert_is(&scenario, "public.archive", "public.orders");
    scenario.assert_equal(&["public.stays"]);
}
