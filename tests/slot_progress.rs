//! Promise 3, its other half: the slot does advance when nothing happens in the published tables, and stays connected when the
//! store hangs. Otherwise an idle pipeline fills its source's disk.
//!
//! `DUCKPIPE_FOREIGN_WAL_MB` says how much the others write; 2048 is the full size.

use std::time::Duration;

use crate::lab::minio::{ACCESS_KEY, SECRET_KEY};
use crate::lab::{CatalogKind, Client, Combination, Minio, Options, Postgres, StoreKind, wait_for};
use crate::scenario::Scenario;

const MEGABYTE: i64 = 1 << 20;
const LAG: i64 = 32 * MEGABYTE;
const TABLE: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.t\"\n";

fn foreign_wal() -> i64 {
    let megabytes = std::env::var("DUCKPIPE_FOREIGN_WAL_MB").ok().and_then(|text| text.parse().ok());
    megabytes.unwrap_or(300) * MEGABYTE
}

/// Writes about so many bytes of WAL in a table that no publication has.
fn write_foreign(client: &Client, bytes: i64) {
    client.execute(
        "CREATE TABLE IF NOT EXISTS foreign_rows (id bigserial PRIMARY KEY, v text); ALTER TABLE foreign_rows ALTER v SET STORAGE PLAIN",
    );
    let start = client.lsn();
    while client.lsn().bytes_since(start) < bytes as u64 {
        client.execute("INSERT INTO foreign_rows (v) SELECT repeat(md5(i::text), 200) FROM generate_series(1, 2000) i");
    }
    client.execute("TRUNCATE foreign_rows");
}

fn scenario<'a>(postgres: &'a Postgres, name: &str, catalog: CatalogKind) -> Scenario<'a> {
    let scenario = Scenario::on(postgres, name, Combination { catalog, store: StoreKind::Local }, TABLE);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i",
    );
    scenario
}

#[test]
fn a_running_sync_passes_over_what_others_write() {
    let postgres = Postgres::start(Options::default());
    let scenario = scenario(&postgres, "progress_running", CatalogKind::Postgres);
    let other = postgres.database("progress_other");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    let versions = scenario.version_ids();

    // Somebody else's table in the same database, then somebody else's database, then nobody at all.
    write_foreign(&scenario.source, foreign_wal());
    scenario.wait_for_lag_below(LAG, Duration::from_secs(120));
    write_foreign(&other, foreign_wal());
    scenario.wait_for_lag_below(LAG, Duration::from_secs(120));
    let other_end = scenario.source.lsn();
    scenario.source.execute("SELECT pg_switch_wal(); CHECKPOINT");
    wait_for(
        "an idle slot confirms the end of the WAL",
        Duration::from_secs(60),
        || (scenario.confirmed() >= Some(other_end)).then_some(()),
        || format!("{:?} of {other_end}; {}", scenario.confirmed(), sync.tail()),
    );
    assert!(scenario.confirmed() <= scenario.duckpipe.status().applied_lsn());
    assert_eq!(scenario.version_ids(), versions, "nothing of the lake's changed, but it has new versions");

    // And it is not asleep.
    scenario.source.execute("UPDATE t SET v = 'awake' WHERE id = 1");
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t"]);
    postgres.drop_database("progress_other");
}

#[test]
fn once_in_cron_passes_over_what_others_write() {
    let postgres = Postgres::start(Options::default());
    let scenario = scenario(&postgres, "progress_once", CatalogKind::DuckDb);
    let other = postgres.database("progress_other");
    scenario.converge(&["public.t"]);
    let versions = scenario.version_ids();
    for run in 0..20 {
        let target = scenario.source.lsn();
        let applied = scenario.duckpipe.status().applied_lsn();
        let writer: &Client = if run % 2 == 0 { &scenario.source } else { &other };
        // The runs without any WAL at all are those where waiting for some would take for ever.
        if run % 4 != 3 {
            write_foreign(writer, foreign_wal() / 10);
        }
        scenario.duckpipe.run_within(&["sync", "--once"], Duration::from_secs(60)).expect(0);
        let lag = scenario.slot_lag();
        assert!(lag < LAG, "run {run}: {lag} bytes behind");
        assert!(scenario.duckpipe.status().applied_lsn() >= applied.max(Some(target)), "run {run}");
    }
    assert_eq!(scenario.version_ids(), versions, "nothing of the lake's changed, but it has new versions");
    postgres.drop_database("progress_other");
}

/// With its catalog in the source's own cluster, each position that is written down is WAL itself: it must not feed itself.
#[test]
fn a_catalog_in_the_source_does_not_feed_itself() {
    let scenario =
        Scenario::new("progress_self", Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }, TABLE);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')");
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    let catalog = Client::connect(&scenario.lake.catalog());
    // What is measured is a rate, so that here time itself must pass. Each write of an idle pipeline moves its position.
    let mut positions = std::collections::BTreeSet::new();
    let end = std::time::Instant::now() + Duration::from_secs(25);
    while std::time::Instant::now() < end {
        positions.insert(catalog.text("SELECT lsn FROM duckpipe_pipeline"));
        std::thread::sleep(Duration::from_millis(100));
    }
    // The one that it begins with, and one every ten seconds.
    assert!(positions.len() <= 4, "an idle pipeline wrote its position again and again: {positions:?}");
    sync.terminate().expect(0);
}

/// A store that hangs for longer than `wal_sender_timeout`: the source keeps the connection, and all arrives in the end.
#[test]
fn a_hanging_store_does_not_cost_the_connection() {
    let postgres = Postgres::start(Options::default().set("wal_sender_timeout", "5s"));
    let minio = Minio::start();
    let bucket = minio.bucket("hanging");
    let scenario = Scenario::on(
        &postgres,
        "progress_hanging",
        Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 },
        TABLE,
    );
    // A MinIO of the test's own: nobody else may hang.
    scenario.duckpipe.configure(&format!(
        "name = \"progress_hanging\"\n[source]\nurl = \"{}\"\n[lake]\ncatalog = \"{}\"\ndata_path = \"s3://hanging/lake\"\n[s3]\nendpoint = \"{}\"\n\
         region = \"us-east-1\"\naccess_key_id = \"{ACCESS_KEY}\"\nsecret_access_key = \"{SECRET_KEY}\"\npath_style = true\n{TABLE}",
        scenario.source.url(),
        scenario.lake.catalog(),
        bucket.endpoint
    ));
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i",
    );
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    let sender = scenario.slot_column("active_pid");
    assert!(!sender.is_empty());

    minio.signal("STOP");
    scenario.source.execute("UPDATE t SET v = 'while it hangs' WHERE id <= 500");
    let changed = scenario.source.lsn();
    // Six times the server's patience.
    let end = std::time::Instant::now() + Duration::from_secs(31);
    while std::time::Instant::now() < end {
        assert_eq!(scenario.slot_column("active_pid"), sender, "the source gave the connection up\n{}", sync.tail());
        scenario.source.execute("INSERT INTO t SELECT coalesce(max(id), 0) + 1, 'more' FROM t");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(scenario.confirmed() < Some(changed), "confirmed what the store can't have");
    minio.signal("CONT");
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(120));
    assert_eq!(scenario.slot_column("active_pid"), sender, "{}", sync.tail());
    sync.terminate().expect(0);
    let native = scenario.lake.open_native();
    native.execute(&format!(
        "CREATE OR REPLACE SECRET (TYPE s3, PROVIDER config, KEY_ID '{ACCESS_KEY}', SECRET '{SECRET_KEY}', ENDPOINT '{}', REGION 'us-east-1', \
         URL_STYLE 'path', USE_SSL false)",
        bucket.endpoint.trim_start_matches("http://")
    ));
    crate::lab::assert_equal(&scenario.source, &native, "public.t");
}
