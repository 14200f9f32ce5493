//! A partitioned table is one table of the lake, whatever becomes of its partitions.

use std::time::Duration;

use crate::lab::{CatalogKind, Combination, Duckpipe, Running, StoreKind, assert_equal};
use crate::scenario::Scenario;

const TABLE: &str = "public.events";
const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const MINUTE: Duration = Duration::from_secs(60);

/// Two levels, a default partition, and one whose columns come in another order. Some values are stored beside the rows.
const CREATE: &str = "CREATE TABLE events (id int, day int, note text, large text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day); \
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10); \
    CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20) PARTITION BY LIST (id); \
    CREATE TABLE events_2_some PARTITION OF events_2 FOR VALUES IN (1, 2, 3); \
    CREATE TABLE events_2_rest PARTITION OF events_2 DEFAULT; \
    CREATE TABLE events_3 (large text, day int NOT NULL, gone int, note text, id int NOT NULL); \
    ALTER TABLE events_3 DROP gone, ALTER large SET STORAGE EXTERNAL; \
    ALTER TABLE events ATTACH PARTITION events_3 FOR VALUES FROM (20) TO (30); \
    CREATE TABLE events_rest PARTITION OF events DEFAULT; \
    ALTER TABLE events_1 ALTER large SET STORAGE EXTERNAL; \
    CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 0); \
    INSERT INTO events SELECT i, i % 40, 'note ' || i, CASE WHEN i % 10 = 0 THEN repeat(md5(i::text), 200) END \
        FROM generate_series(1, 4000) i";

fn scenario(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    scenario.source.execute(CREATE);
    scenario
}

/// Waits until everything that the source has by now is in the lake, with all tables streaming.
fn level(scenario: &Scenario<'_>, sync: &mut Running<'_>, what: &str) {
    let lsn = scenario.source.lsn();
    sync.wait_until(what, MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
}

/// What comes by messages.
const TOLD: [&str; 8] = [
    "UPDATE events SET note = 'here' WHERE id <= 500",
    // From one partition to another, and back with another key: values that are stored beside the row are not sent twice.
    "UPDATE events SET day = (day + 15) % 40 WHERE id BETWEEN 100 AND 300",
    "UPDATE events SET id = id + 10000 WHERE day = 5; UPDATE events SET note = 'again' WHERE day IN (5, 25)",
    "DELETE FROM events WHERE day IN (3, 13, 23, 33)",
    "CREATE TABLE events_5 PARTITION OF events FOR VALUES FROM (50) TO (60); INSERT INTO events SELECT i, 55, 'new' FROM generate_series(1, 50) i",
    "BEGIN; CREATE TABLE events_6 PARTITION OF events FOR VALUES FROM (60) TO (70); INSERT INTO events_6 VALUES (1, 65, 'at once'); COMMIT",
    "ALTER TABLE events ADD kind text DEFAULT 'old'; INSERT INTO events SELECT i, 11, 'with', NULL, 'new' FROM generate_series(9000, 9100) i",
    "BEGIN; UPDATE events SET note = 'lost'; TRUNCATE events; INSERT INTO events SELECT i, i % 70, 'after' FROM generate_series(1, 300) i; COMMIT",
];

fn one_table(combination: Combination) {
    let scenario = scenario(&format!("parts_{}", combination.name()), combination);
    scenario.converge(&[TABLE, "public.other"]);
    let tables = scenario
        .lake
        .open_native()
        .rows("SELECT table_name FROM duckdb_tables() WHERE database_name = 'lake' ORDER BY 1");
    assert_eq!(
        tables,
        [[Some("events".to_owned())], [Some("other".to_owned())]],
        "no table of the lake is a partition"
    );
    for (step, change) in TOLD.iter().enumerate() {
        scenario.source.execute(change);
        // Some while nobody runs, some streamed.
        if step % 2 == 0 {
            scenario.converge(&[TABLE]);
        } else {
            let mut sync = scenario.duckpipe.sync();
            level(&scenario, &mut sync, change);
            // The catalog is looked at meanwhile, and there is nothing to find.
            scenario.source.execute("UPDATE other SET v = v + 1");
            level(&scenario, &mut sync, change);
            sync.terminate().expect(0);
            scenario.assert_equal(&[TABLE]);
        }
    }
    assert!(scenario.duckpipe.status().all("streaming"));
    scenario.duckpipe.run(&["validate"]).expect(0);
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn one_table_duckdb() {
    one_table(Combination::EMBEDDED);
}

#[test]
fn one_table_postgres() {
    one_table(Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 });
}

/// What no message tells, and what is said of it.
const UNTOLD: [(&str, &str); 6] = [
    (
        "CREATE TABLE more (LIKE events INCLUDING ALL); INSERT INTO more VALUES (1, 71, 'brought'); \
         ALTER TABLE events ATTACH PARTITION more FOR VALUES FROM (70) TO (80)",
        "public.more was attached",
    ),
    (
        "BEGIN; CREATE TABLE at_once (id int NOT NULL, day int NOT NULL, note text, large text); INSERT INTO at_once VALUES (1, 81, 'brought'); \
         ALTER TABLE events ATTACH PARTITION at_once FOR VALUES FROM (80) TO (90); COMMIT",
        "public.at_once was attached",
    ),
    ("ALTER TABLE events DETACH PARTITION events_3", "public.events_3 was detached"),
    ("DROP TABLE events_1", "public.events_1 was detached or dropped"),
    ("TRUNCATE events_2_rest", "public.events_2_rest was truncated"),
    (
        "ALTER TABLE events DETACH PARTITION more; UPDATE more SET note = 'apart'; \
         ALTER TABLE events ATTACH PARTITION more FOR VALUES FROM (70) TO (80)",
        "public.more was detached, and attached again",
    ),
];

/// It is found by a look at the catalog, and mended by a fresh copy, while the other table streams.
#[test]
fn what_no_message_tells() {
    let mut scenario = scenario("parts_untold", Combination::EMBEDDED);
    scenario.converge(&[TABLE]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    for (change, said) in UNTOLD {
        level(&scenario, &mut sync, "before");
        scenario.source.execute(change);
        sync.wait_for_output(said, MINUTE);
        scenario.source.execute("UPDATE events SET note = note || '.' WHERE id % 7 = 0; UPDATE other SET v = v + 1");
        level(&scenario, &mut sync, change);
        crate::lab::assert_equal(&scenario.source, &scenario.lake.open_beside_sync(), TABLE);
    }
    sync.terminate().expect(0);
    scenario.assert_equal(&[TABLE, "public.other"]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Between two runs; and where nobody copies by himself, the table says why it stands.
#[test]
fn what_no_message_tells_while_nobody_runs() {
    let mut scenario = scenario("parts_between", Combination::EMBEDDED);
    scenario.converge(&[TABLE]);
    scenario.source.execute("TRUNCATE events_1; UPDATE other SET v = 7");
    scenario.converge_but(5, &["public.other"]);
    let status = scenario.duckpipe.status();
    let error = status.table(TABLE)["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("public.events_1 was truncated by itself"), "{error}");
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.duckpipe.run(&["tables", "resync", TABLE]).expect(0);
    let mut sync = scenario.duckpipe.sync();
    level(&scenario, &mut sync, "the copy");
    sync.terminate().expect(0);
    scenario.assert_equal(&[TABLE]);
}

/// Attached with rows, or made, filled, and gone or emptied, before the catalog was looked at: only the stream tells of such a partition.
const BETWEEN_LOOKS: [(&str, &str); 4] = [
    (
        "CREATE TABLE comes (LIKE events INCLUDING ALL); INSERT INTO comes VALUES (1, 91, 'brought'); \
         ALTER TABLE events ATTACH PARTITION comes FOR VALUES FROM (90) TO (100); UPDATE events SET note = 'told' WHERE day = 11",
        "public.comes was attached",
    ),
    (
        "CREATE TABLE brief PARTITION OF events FOR VALUES FROM (100) TO (110); \
         INSERT INTO events SELECT i, 105, 'gone' FROM generate_series(1, 50) i; DROP TABLE brief",
        "public.brief was detached or dropped",
    ),
    (
        "CREATE TABLE emptied PARTITION OF events FOR VALUES FROM (110) TO (120); \
         INSERT INTO events SELECT i, 115, 'gone' FROM generate_series(1, 50) i; TRUNCATE emptied",
        "public.emptied was truncated by itself",
    ),
    (
        "CREATE TABLE long PARTITION OF events FOR VALUES FROM (120) TO (130); \
         INSERT INTO events SELECT i, 125, 'gone' FROM generate_series(1, 5000) i; ALTER TABLE events DETACH PARTITION long",
        "public.long was detached or dropped",
    ),
];

#[test]
fn partitions_that_come_and_go_between_two_looks() {
    let mut scenario = scenario("parts_brief", Combination::EMBEDDED);
    scenario.converge(&[TABLE]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    for (change, said) in BETWEEN_LOOKS {
        change.split("; ").for_each(|statement| scenario.source.execute(statement));
        let mut sync = scenario.duckpipe.sync();
        sync.wait_for_output(said, MINUTE);
        level(&scenario, &mut sync, change);
        sync.terminate().expect(0);
        scenario.assert_equal(&[TABLE]);
    }
}

/// The rows of a partition came into the lake, the process died, and the partition went.
#[test]
fn a_partition_that_goes_after_a_kill() {
    let mut scenario = scenario("parts_killed", Combination::EMBEDDED);
    scenario.converge(&[TABLE]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.source.execute("CREATE TABLE brief PARTITION OF events FOR VALUES FROM (100) TO (110)");
    scenario.source.execute("INSERT INTO events SELECT i, 105, 'gone' FROM generate_series(1, 50) i");
    let dying = scenario.duckpipe.start_with(&["sync"], &[("DUCKPIPE_FAILPOINT", "commit_after")]);
    assert_eq!(dying.wait(MINUTE).code, None, "not killed");
    scenario.source.execute("DROP TABLE brief");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("public.brief was detached or dropped", MINUTE);
    level(&scenario, &mut sync, "the copy");
    sync.terminate().expect(0);
    scenario.assert_equal(&[TABLE]);
}

/// What can't be followed as one table is refused, with what to do about it.
#[test]
fn what_is_refused() {
    let scenario = scenario("parts_refused", Combination::EMBEDDED);
    let configuration = scenario.duckpipe.configuration();
    let both = configuration.clone() + &Duckpipe::tables(&["public.events_1"]);
    scenario.duckpipe.configure(&both);
    let refused = scenario.duckpipe.sync_once();
    assert_ne!(refused.code, Some(0));
    let refused = refused.output();
    assert!(
        refused.contains("public.events_1 is a partition of public.events, and both are in [[tables]]"),
        "{refused}"
    );
    scenario.duckpipe.configure(&configuration);

    let publication = format!("\"{}\"", scenario.slot());
    scenario.source.execute(&format!("CREATE PUBLICATION {publication} FOR ALL TABLES"));
    let refused = scenario.duckpipe.sync_once();
    assert_ne!(refused.code, Some(0));
    let statement = format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)");
    assert!(refused.output().contains(&statement), "{}", refused.output());
    scenario.source.execute(&statement);
    scenario.converge(&[TABLE, "public.other"]);

    // One partition alone, where its root is none of ours.
    let alone = Scenario::new("parts_alone", Combination::EMBEDDED, &Duckpipe::tables(&["public.events_1"]));
    alone.source.execute(CREATE);
    alone.converge(&["public.events_1"]);
    alone
        .source
        .execute("UPDATE events SET day = 5 WHERE id < 100; TRUNCATE events_3; DELETE FROM events WHERE day = 7");
    alone.converge(&["public.events_1"]);
}

/// A table that is followed becomes a partition of one that is not, and its changes come as that one's: it stops, and says so. At once, or
/// when somebody has the publication send them so.
#[test]
fn attached_to_another_root() {
    let version = Scenario::new("parts_version", Combination::EMBEDDED, &Duckpipe::tables(&["public.alone"]))
        .source
        .number("SELECT current_setting('server_version_num')::int");
    for (name, of, via_root) in [
        ("parts_all", "ALL TABLES", true),
        ("parts_all_later", "ALL TABLES", false),
        ("parts_schema", "TABLES IN SCHEMA public", true),
    ] {
        if of != "ALL TABLES" && version < 150_000 {
            continue;
        }
        let scenario = Scenario::new(name, Combination::EMBEDDED, &Duckpipe::tables(&["public.alone"]));
        let publication = format!("\"{}\"", scenario.slot());
        scenario.source.execute(&format!(
            "CREATE TABLE alone (id int PRIMARY KEY, v text); INSERT INTO alone VALUES (1, 'alone'); \
             CREATE PUBLICATION {publication} FOR {of} WITH (publish_via_partition_root = {via_root})"
        ));
        scenario.converge(&["public.alone"]);
        let mut sync = scenario.duckpipe.sync();
        sync.wait_for_output("INFO streaming", MINUTE);
        scenario.source.execute(
            "CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); ALTER TABLE root ATTACH PARTITION alone DEFAULT",
        );
        if !via_root {
            scenario.source.execute("UPDATE root SET v = 'still its own' WHERE id = 1");
            scenario.wait_for_state(&mut sync, "public.alone", "streaming");
            assert_equal(&scenario.source, &scenario.lake.open_beside_sync(), "public.alone");
            scenario
                .source
                .execute(&format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)"));
        }
        scenario.source.execute("UPDATE root SET v = 'as of the root' WHERE id = 1");
        scenario.wait_for_state(&mut sync, "public.alone", "errored");
        let status = scenario.duckpipe.status();
        let why = status.table("public.alone")["error"].as_str().unwrap_or_default();
        assert!(why.contains("the publication does not send its changes any more"), "{why}");
        scenario.duckpipe.run(&["tables", "resync", "public.alone"]).expect(0);
        sync.wait_for_output("a partition is published as its root: name that in [[tables]]", MINUTE);
        sync.terminate().expect(0);
    }
}
