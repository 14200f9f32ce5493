//! `where` in `[[tables]]`: the lake has the rows that the source's publication sends, and no others.

use std::time::Duration;

use crate::lab::{Combination, Database};
use crate::scenario::Scenario;

const MINUTE: Duration = Duration::from_secs(60);

fn configuration(filter: &str) -> String {
    format!(
        "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.t\"\nwhere = \"{filter}\"\n[[tables]]\nsource = \"public.other\"\n"
    )
}

fn scenario(name: &str, filter: &str) -> Scenario<'static> {
    let scenario = Scenario::new(name, Combination::EMBEDDED, &configuration(filter));
    scenario.source.execute(
        "CREATE TABLE t (region text, id int, v text, large text, PRIMARY KEY (region, id)); ALTER TABLE t ALTER large SET STORAGE EXTERNAL; \
         INSERT INTO t SELECT CASE WHEN i % 3 = 0 THEN 'eu' WHEN i % 3 = 1 THEN 'us' ELSE 'x''y' END, i, 'v', repeat('l', 3000) \
             FROM generate_series(1, 300) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    scenario
}

/// Columns and values of the rows that the filter takes.
fn rows(source: &Database<'_>, filter: &str) -> Vec<Vec<Option<String>>> {
    source
        .query(&format!("SELECT region, id, v, length(large) FROM t WHERE {filter} ORDER BY region COLLATE \"C\", id"))
}

#[track_caller]
fn assert_has(scenario: &Scenario<'_>, filter: &str) {
    let lake =
        scenario.lake.open_native().rows("SELECT region, id, v, length(large) FROM lake.public.t ORDER BY region, id");
    assert_eq!(lake, rows(&scenario.source, filter));
    assert!(!lake.is_empty());
}

/// Rows move in and out, with and without values that are not sent; all of it streamed.
#[test]
fn rows_come_and_go() {
    let filter = "region = 'eu' OR id < 10";
    let scenario = scenario("filter_rows", filter);
    scenario.duckpipe.sync_once().expect(0);
    assert_has(&scenario, filter);
    for change in [
        "UPDATE t SET v = 'new' WHERE id % 2 = 0",
        "UPDATE t SET region = 'eu', large = 'small' WHERE region = 'us' AND id > 250",
        "UPDATE t SET region = 'us' WHERE region = 'eu' AND id < 100",
        "DELETE FROM t WHERE id BETWEEN 40 AND 90",
        "DELETE FROM t WHERE id < 6; INSERT INTO t SELECT 'us', i, 'in', NULL FROM generate_series(1000, 1100) i; UPDATE t SET id = id - 1095 WHERE id > 1095",
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT CASE WHEN i % 2 = 0 THEN 'eu' ELSE 'us' END, i FROM generate_series(1, 3000) i; COMMIT",
        "ALTER TABLE t ADD w int DEFAULT 3; UPDATE t SET w = 4 WHERE id % 5 = 0",
    ] {
        scenario.source.execute(change);
        scenario.duckpipe.sync_once().expect(0);
        assert_has(&scenario, filter);
        scenario.assert_equal(&["public.other"]);
    }
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

/// A row that comes in is an INSERT, whose large values the source has not sent and the lake never had: only a copy has them. Under
/// REPLICA IDENTITY FULL they are sent.
#[test]
fn large_values_come_in() {
    let filter = "region = 'eu'";
    let mut scenario = scenario("filter_large", filter);
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("UPDATE t SET region = 'eu' WHERE region = 'us' AND id > 250");
    scenario.duckpipe.sync_once().expect(5);
    let status = scenario.duckpipe.status();
    let error = status.table("public.t")["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("its large values were not sent"), "{error}");
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
    let mut sync = scenario.duckpipe.sync();
    let lsn = scenario.source.lsn();
    sync.wait_until("the copy", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
    sync.terminate().expect(0);
    assert_has(&scenario, filter);
    scenario.source.execute("ALTER TABLE t REPLICA IDENTITY FULL");
    scenario.source.execute("UPDATE t SET region = 'eu' WHERE region = 'us'");
    scenario.duckpipe.sync_once().expect(0);
    assert_has(&scenario, filter);
}

/// Another filter is another set of rows: a fresh copy.
#[test]
fn another_filter() {
    let mut scenario = scenario("filter_other", "region = 'eu'");
    scenario.duckpipe.sync_once().expect(0);
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&text.replace("region = 'eu'", "region IN ('us', 'x''y')"));
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    let lsn = scenario.source.lsn();
    sync.wait_until("the copy", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
    scenario.source.execute("UPDATE t SET v = 'us' WHERE id < 50");
    let lsn = scenario.source.lsn();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));

    // While it runs, by an edited file.
    scenario.duckpipe.configure(&text.replace("region = 'eu'", "id > 200"));
    sync.signal("HUP");
    sync.wait_for_output("says other columns or rows", MINUTE);
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    scenario.source.execute("UPDATE t SET v = 'more' WHERE id > 190");
    let lsn = scenario.source.lsn();
    crate::lab::wait_for(
        "the rows of the new filter",
        MINUTE,
        || {
            let status = scenario.duckpipe.try_status().ok()?;
            let shown = scenario.lake.open_beside_sync().number("SELECT count(*) FROM lake.public.t WHERE v = 'more'");
            (status.all("streaming") && status.applied_lsn() >= Some(lsn) && shown == 100).then_some(())
        },
        || sync.tail(),
    );
    sync.terminate().expect(0);
    assert_has(&scenario, "id > 200");
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// What the source would refuse, or does not understand, and what a publication of somebody else's says otherwise.
#[test]
fn what_is_refused() {
    let scenario = scenario("filter_refused", "v = 'v'");
    let refused = |scenario: &Scenario<'_>, text: &str, code: i32| {
        let refused = scenario.duckpipe.sync_once();
        assert_ne!(refused.code, Some(0));
        assert!(refused.output().contains(text), "{}", refused.output());
        let checked = scenario.duckpipe.run(&["check"]);
        assert_eq!(checked.code, Some(code), "{}", checked.output());
    };
    refused(&scenario, "the column \"v\" is not in its replica identity", 1);
    assert!(scenario.footprint().is_empty());
    scenario.source.execute("ALTER TABLE t REPLICA IDENTITY FULL");
    scenario.duckpipe.run(&["check"]).expect(0);
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("UPDATE t SET v = 'gone' WHERE id < 20; UPDATE t SET v = 'v' WHERE id < 5");
    scenario.duckpipe.sync_once().expect(0);
    assert_has(&scenario, "v = 'v'");

    let other = self::scenario("filter_sql", "nonsense = ");
    refused(&other, "syntax error", 1);

    let foreign = self::scenario("filter_foreign", "id < 100");
    let publication = format!("\"{}\"", foreign.slot());
    foreign.source.execute(&format!("CREATE PUBLICATION {publication} FOR TABLE t WHERE (id < 50), other"));
    let statements = format!(
        "ALTER PUBLICATION {publication} DROP TABLE \"public\".\"t\"; ALTER PUBLICATION {publication} ADD TABLE"
    );
    // `sync` could change one of its own.
    refused(&foreign, &statements, 0);
    foreign.source.execute(&format!(
        "DROP PUBLICATION {publication}; CREATE PUBLICATION {publication} FOR TABLE t WHERE (id<100), other"
    ));
    foreign.duckpipe.run(&["check"]).expect(0);
    foreign.duckpipe.sync_once().expect(0);
    assert_has(&foreign, "id < 100");
}

/// A role that owns nothing, and a table that is named while `sync` runs: its owner is told the whole statement.
#[test]
fn waits_for_the_owner() {
    let filter = "id < 100";
    let scenario = scenario("filter_owner", filter);
    let role = "filter_owner_reader";
    scenario.source.replication_role(role);
    scenario.source.execute(&format!(
        "GRANT SELECT ON t, other TO {role}; CREATE PUBLICATION \"{}\" FOR TABLE other",
        scenario.slot()
    ));
    let named = scenario.duckpipe.configuration().replace(&scenario.source.url(), &scenario.source.url_of(role));
    let filtered = format!("[[tables]]\nsource = \"public.t\"\nwhere = \"{filter}\"\n");
    scenario.duckpipe.configure(&named.replace(&filtered, ""));
    scenario.converge(&["public.other"]);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.duckpipe.configure(&named);
    sync.signal("HUP");
    scenario.source.execute("INSERT INTO other VALUES (2)");
    scenario.wait_for_state(&mut sync, "public.t", "pending");
    let statement =
        format!("ALTER PUBLICATION \"{}\" ADD TABLE ONLY \"public\".\"t\" WHERE ({filter})", scenario.slot());
    let status = scenario.duckpipe.status();
    let told = status.table("public.t")["error"].as_str().unwrap_or_default();
    assert!(told.contains(&statement), "{told}");
    scenario.source.execute(&statement);
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    scenario.source.execute("UPDATE t SET v = 'streams' WHERE id % 2 = 0");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    assert_has(&scenario, filter);
    scenario.assert_equal(&["public.other"]);
}

/// Publications have filters from Postgres 15 on; before, the filter is refused, and nothing is made.
#[test]
fn needs_publications_with_filters() {
    let scenario = scenario("filter_version", "region = 'eu'");
    let checked = scenario.duckpipe.run(&["check"]);
    if scenario.source.number("SELECT current_setting('server_version_num')::int / 10000") >= 15 {
        checked.expect(0);
        return;
    }
    assert!(checked.expect(1).output().contains("PostgreSQL 15"));
    let refused = scenario.duckpipe.sync_once().expect(1).stderr;
    assert!(refused.contains("public.t") && refused.contains("PostgreSQL 15"), "{refused}");
    assert!(scenario.footprint().is_empty());
}
