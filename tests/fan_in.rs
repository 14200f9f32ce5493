//! `fan_in = true`: one view of the lake over tables of several schemas, or of several pipelines. What happens to one of them does not
//! reach the others.

use std::time::Duration;

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, NativeLake, StoreKind};
use crate::scenario::Scenario;

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);
const TENANTS: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"tenant_*.orders\"\ntarget = \"public.orders\"\nfan_in = true\n";

/// A tenant's orders: the same keys as all others'.
fn create(client: &Client, tenant: &str) {
    client.execute(&format!(
        "CREATE SCHEMA {tenant}; CREATE TABLE {tenant}.orders (id int PRIMARY KEY, v text); \
         INSERT INTO {tenant}.orders SELECT i, '{tenant}' FROM generate_series(1, 500) i"
    ));
}

/// The rows that the view should show: of each tenant, by its pipeline and its connection.
fn wanted(tenants: &[(&str, &str, &Client)], columns: &str) -> Vec<Vec<Option<String>>> {
    let mut rows: Vec<Vec<Option<String>>> = tenants
        .iter()
        .flat_map(|(pipeline, tenant, client)| {
            client.query(&format!("SELECT '{pipeline}.{tenant}.orders', {columns} FROM {tenant}.orders"))
        })
        .collect();
    rows.sort();
    rows
}

/// As [`wanted`], of tenants of one pipeline.
fn of_one(pipeline: &str, client: &Client, tenants: &[&str], columns: &str) -> Vec<Vec<Option<String>>> {
    let tenants: Vec<_> = tenants.iter().map(|tenant| (pipeline, *tenant, client)).collect();
    wanted(&tenants, columns)
}

fn shown(native: &NativeLake, columns: &str) -> Vec<Vec<Option<String>>> {
    let columns: Vec<String> = columns.split(", ").map(|column| format!("{column}::text")).collect();
    let mut rows = native.rows(&format!("SELECT _source, {} FROM lake.public.orders", columns.join(", ")));
    rows.sort();
    rows
}

/// Tenants of one database, by a pattern: their changes, TRUNCATE, columns of their own, a new tenant, one that stands still.
fn tenants(combination: Combination) {
    let name = format!("fan_{}", combination.name());
    let scenario = Scenario::new(&name, combination, TENANTS);
    let client = scenario.source.connect();
    for tenant in ["tenant_a", "tenant_b", "tenant_c"] {
        create(&client, tenant);
    }
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let all = |tenants, columns| of_one(&name, &client, tenants, columns);
    let abc = &["tenant_a", "tenant_b", "tenant_c"][..];
    assert_eq!(shown(&scenario.lake.open_beside_sync(), "id, v"), all(abc, "id, v"));

    client.execute(
        "UPDATE tenant_a.orders SET v = 'changed' WHERE id <= 10; DELETE FROM tenant_b.orders WHERE id <= 10; \
         UPDATE tenant_b.orders SET id = id + 10000 WHERE id > 400; TRUNCATE tenant_c.orders; \
         INSERT INTO tenant_c.orders VALUES (1, 'after')",
    );
    sync.wait_for_lsn(client.lsn(), MINUTE);
    assert_eq!(shown(&scenario.lake.open_beside_sync(), "id, v"), all(abc, "id, v"));

    // Columns of one tenant, and one that has the name of the view's own.
    client.execute(
        "ALTER TABLE tenant_a.orders ADD COLUMN extra int DEFAULT 7, ADD COLUMN _source text; \
         UPDATE tenant_a.orders SET extra = 8, _source = 'mine' WHERE id = 1; ALTER TABLE tenant_b.orders DROP COLUMN v",
    );
    sync.wait_for_lsn(client.lsn(), MINUTE);
    let native = scenario.lake.open_beside_sync();
    assert_eq!(shown(&native, "id"), all(abc, "id"));
    let extras = "SELECT _source, extra, count(*) FROM lake.public.orders GROUP BY ALL ORDER BY ALL";
    let count = |tenant: &str| client.text(&format!("SELECT count(*) FROM {tenant}.orders"));
    let row = |tenant: &str, extra: Option<&str>, count: String| {
        vec![Some(format!("{name}.{tenant}.orders")), extra.map(str::to_owned), Some(count)]
    };
    assert_eq!(
        native.rows(extras),
        [
            row("tenant_a", Some("7"), "499".into()),
            row("tenant_a", Some("8"), "1".into()),
            row("tenant_b", None, count("tenant_b")),
            row("tenant_c", None, count("tenant_c")),
        ]
    );
    drop(native);

    // One stands still, another one comes.
    scenario.duckpipe.run(&["tables", "pause", "tenant_b.orders"]).expect(0);
    scenario.wait_for_state(&mut sync, "tenant_b.orders", "paused");
    let stands = all(&["tenant_b"], "id");
    client.execute("DELETE FROM tenant_b.orders; INSERT INTO tenant_a.orders (id) VALUES (77777)");
    create(&client, "tenant_d");
    scenario.wait_for_state(&mut sync, "tenant_d.orders", "streaming");
    scenario.wait_for_state(&mut sync, "tenant_a.orders", "streaming");
    let mut rows = all(&["tenant_a", "tenant_c", "tenant_d"], "id");
    rows.extend(stands);
    rows.sort();
    assert_eq!(shown(&scenario.lake.open_beside_sync(), "id"), rows);
    scenario.duckpipe.run(&["tables", "resume", "tenant_b.orders"]).expect(0);
    scenario.wait_for_state(&mut sync, "tenant_b.orders", "streaming");
    sync.terminate().expect(0);
    let rows = all(&["tenant_a", "tenant_b", "tenant_c", "tenant_d"], "id");
    assert_eq!(shown(&scenario.lake.open_native(), "id"), rows);
    let count = scenario.duckpipe.run(&["query", "SELECT count(*) AS n FROM public.orders"]).expect(0);
    assert!(count.stdout.contains(&rows.len().to_string()), "{}", count.output());
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn tenants_duckdb() {
    tenants(Combination::EMBEDDED);
}

#[test]
fn tenants_postgres() {
    tenants(POSTGRES);
}

/// Two pipelines, of two databases, whose tables have one name. One of the tables goes, with its table, and is
/// killed in between.
#[test]
fn pipelines() {
    let entry = |tables: &[&str]| -> String {
        let entry =
            |table: &&str| format!("[[tables]]\nsource = \"{table}\"\ntarget = \"public.orders\"\nfan_in = true\n");
        format!("[sync]\nflush_interval = \"50ms\"\n{}", tables.iter().map(entry).collect::<String>())
    };
    let mut north = Scenario::new("fan_north", POSTGRES, &entry(&["tenant_a.orders", "tenant_b.orders"]));
    let source = crate::lab::Postgres::shared().database("fan_south");
    let south = Duckpipe::new("fan_south", &source.url(), &north.lake, &entry(&["tenant_a.orders"]));
    let clients = (north.source.connect(), source.connect());
    create(&clients.0, "tenant_a");
    create(&clients.0, "tenant_b");
    create(&clients.1, "tenant_a");
    let mut first = north.duckpipe.sync();
    first.wait_for_output("the copy is complete", MINUTE);
    let mut second = south.sync();
    second.wait_for_output("the copy is complete", MINUTE);
    first.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    second.wait_until("the stream", MINUTE, |status| status.all("streaming"));
    let rows = || {
        let tables = [
            ("fan_north", "tenant_a", &clients.0),
            ("fan_north", "tenant_b", &clients.0),
            ("fan_south", "tenant_a", &clients.1),
        ];
        wanted(&tables, "id, v")
    };
    assert_eq!(shown(&north.lake.open_native(), "id, v"), rows());
    clients.0.execute("UPDATE tenant_a.orders SET v = 'north' WHERE id < 9; DELETE FROM tenant_b.orders WHERE id = 1");
    clients.1.execute("DELETE FROM tenant_a.orders WHERE id < 9");
    first.wait_for_lsn(clients.0.lsn(), MINUTE);
    second.wait_for_lsn(clients.1.lsn(), MINUTE);
    assert_eq!(shown(&north.lake.open_native(), "id, v"), rows());
    second.terminate().expect(0);

    // It leaves the view, then the lake's table goes, then its row: `sync` dies in between.
    first.terminate().expect(0);
    north.duckpipe.run(&["tables", "remove", "tenant_b.orders", "--drop"]).expect(0);
    let rows = || wanted(&[("fan_north", "tenant_a", &clients.0), ("fan_south", "tenant_a", &clients.1)], "id, v");
    for failpoint in ["left_view", "lake_table_dropped"] {
        north.duckpipe.die_at(failpoint, 1);
        let died = north.duckpipe.sync().wait(MINUTE);
        assert_eq!(died.code, None, "{failpoint}: {}", died.output());
        assert_eq!(shown(&north.lake.open_native(), "id, v"), rows(), "{failpoint}");
    }
    north.duckpipe.live();
    north.duckpipe.sync_once().expect(0);
    south.sync_once().expect(0);
    assert_eq!(shown(&north.lake.open_native(), "id, v"), rows());
}

/// A tenant comes, and `sync` dies once its table is recorded, before the view shows it.
#[test]
fn killed_before_the_view_shows_it() {
    let mut scenario = Scenario::new("fan_killed", Combination::EMBEDDED, TENANTS);
    let client = scenario.source.connect();
    create(&client, "tenant_a");
    scenario.duckpipe.sync_once().expect(0);
    create(&client, "tenant_b");
    scenario.duckpipe.die_at("newcomer_made", 1);
    let died = scenario.duckpipe.sync().wait(MINUTE);
    assert_eq!(died.code, None, "{}", died.output());
    scenario.duckpipe.live();
    let of = |tenants: &[&str]| of_one("fan_killed", &client, tenants, "id, v");
    assert_eq!(shown(&scenario.lake.open_native(), "id, v"), of(&["tenant_a"]));
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "tenant_b.orders", "streaming");
    client.execute("UPDATE tenant_b.orders SET v = 'later' WHERE id < 9");
    sync.wait_for_lsn(client.lsn(), MINUTE);
    sync.terminate().expect(0);
    assert_eq!(shown(&scenario.lake.open_native(), "id, v"), of(&["tenant_a", "tenant_b"]));
}

/// A table that stops keeps its last rows in the view; the others' rows go on, and it comes back by a fresh copy.
#[test]
fn one_that_stops() {
    let scenario = Scenario::new("fan_stops", Combination::EMBEDDED, TENANTS);
    let client = scenario.source.connect();
    for tenant in ["tenant_a", "tenant_b"] {
        create(&client, tenant);
    }
    scenario.duckpipe.sync_once().expect(0);
    let stands = of_one("fan_stops", &client, &["tenant_b"], "id, v");
    client.execute(
        "ALTER TABLE tenant_b.orders ALTER v TYPE int USING 7; UPDATE tenant_b.orders SET v = 8 WHERE id < 10; \
         UPDATE tenant_a.orders SET v = 'on' WHERE id < 10",
    );
    scenario.duckpipe.sync_once().expect(5);
    assert_eq!(scenario.duckpipe.status().state("tenant_b.orders"), "errored");
    let mut rows = of_one("fan_stops", &client, &["tenant_a"], "id, v");
    rows.extend(stands);
    rows.sort();
    assert_eq!(shown(&scenario.lake.open_native(), "id, v"), rows);

    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.duckpipe.run(&["tables", "resync", "tenant_b.orders"]).expect(0);
    scenario.wait_for_state(&mut sync, "tenant_b.orders", "streaming");
    client.execute("DELETE FROM tenant_a.orders WHERE id > 490; DELETE FROM tenant_b.orders WHERE id > 480");
    sync.wait_for_lsn(client.lsn(), MINUTE);
    sync.terminate().expect(0);
    assert_eq!(
        shown(&scenario.lake.open_native(), "id, v"),
        of_one("fan_stops", &client, &["tenant_a", "tenant_b"], "id, v")
    );
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// What the view would take the place of is left alone, before anything is made; and what takes its place later stops no table.
#[test]
fn what_is_there_stays() {
    let scenario = Scenario::new("fan_taken", POSTGRES, &TENANTS.replace("public.orders", "public.mine"));
    let client = scenario.source.connect();
    create(&client, "tenant_a");
    scenario.duckpipe.sync_once().expect(0);
    scenario.lake.open_native_writable().execute("CREATE VIEW lake.public.orders AS SELECT 1 AS one");

    let other = crate::lab::Postgres::shared().database("fan_other");
    create(&other.connect(), "tenant_a");
    let second = Duckpipe::new("fan_other", &other.url(), &scenario.lake, TENANTS);
    let output = second.sync_once().expect(1).output();
    assert!(output.contains("a view of that name exists") && output.contains("another target"), "{output}");
    assert_eq!(other.connect().number("SELECT count(*) FROM pg_publication"), 0);
    assert_eq!(scenario.lake.open_native().text("SELECT one FROM lake.public.orders"), "1");

    scenario.lake.open_native_writable().execute("DROP VIEW lake.public.mine; CREATE TABLE lake.public.mine (a int)");
    client.execute("INSERT INTO tenant_a.orders VALUES (1001, 'on')");
    let output = scenario.duckpipe.sync_once().expect(0).output();
    assert!(output.contains("a table of that name exists"), "{output}");
    let own = "SELECT count(*) FROM lake.public.\"mine@fan_taken.tenant_a.orders\"";
    assert_eq!(scenario.lake.open_native().number(own), 501);
    scenario.lake.open_native_writable().execute("DROP TABLE lake.public.mine");
    scenario.duckpipe.sync_once().expect(0);
    assert_eq!(scenario.lake.open_native().number("SELECT count(*) FROM lake.public.mine"), 501);
}
