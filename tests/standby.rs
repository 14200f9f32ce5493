//! A standby as the source, from Postgres 16 on, and one that takes over from its primary, with its slots from 17 on.

use std::time::Duration;

use crate::lab::{Client, Combination, Duckpipe, Lake, Options, Postgres, assert_equal, wait_for};
use crate::workload::Writer;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.t\"\n";
const MINUTE: Duration = Duration::from_secs(60);
const NAME: &str = "standby";
const MAJOR: &str = "SELECT current_setting('server_version_num')::int / 10000";

fn converges(duckpipe: &Duckpipe, lake: &Lake, source: &Client) {
    duckpipe.sync_once().expect(0);
    assert_equal(source, &lake.open_native(), "public.t");
}

/// Copied and followed while it is a standby, and on, when it becomes the primary.
#[test]
fn is_followed_and_promoted() {
    let mut primary = Postgres::start(Options::default());
    primary.connect("postgres").execute(&format!("CREATE DATABASE {NAME}"));
    primary.connect(NAME).execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i",
    );
    let standby = primary.standby(&[]);
    let (source, writable) = (standby.connect(NAME), primary.connect(NAME));
    let lake = Lake::new(Combination::EMBEDDED, NAME);
    let duckpipe = Duckpipe::new(NAME, &standby.url("postgres", NAME), &lake, TABLES);

    let checked = duckpipe.run(&["check"]).expect(1).stdout;
    if source.number(MAJOR) < 16 {
        assert!(checked.contains("a standby can be the source from PostgreSQL 16 on"), "{checked}");
        writable.execute(&format!("CREATE PUBLICATION duckpipe_{NAME} FOR TABLE t"));
        caught_up(&source, &writable);
        let refused = duckpipe.sync_once().expect(1).stderr;
        assert!(refused.contains("A standby can be the source from Postgres 16 on"), "{refused}");
        return;
    }
    assert!(checked.contains("! standby: "), "{checked}");
    // Nothing can be made there; who may make it on the primary is told what.
    let refused = duckpipe.sync_once().expect(1).stderr;
    let statement = format!("CREATE PUBLICATION \"duckpipe_{NAME}\" FOR TABLE");
    assert!(refused.contains("the source is a standby") && refused.contains(&statement), "{refused}");
    writable.execute(&format!("CREATE PUBLICATION duckpipe_{NAME} FOR TABLE t"));
    caught_up(&source, &writable);
    duckpipe.run(&["check"]).expect(0);

    let word = Writer::of(&primary.url("postgres", NAME), |client| {
        client.execute("SELECT pg_log_standby_snapshot()");
        std::thread::sleep(Duration::from_millis(200));
    });
    converges(&duckpipe, &lake, &source);
    let mut sync = duckpipe.sync();
    writable.execute("UPDATE t SET v = 'changed' WHERE id < 100; DELETE FROM t WHERE id > 900");
    writable.execute("ALTER TABLE t ADD n int DEFAULT 7; UPDATE t SET n = 8 WHERE id < 10");
    sync.wait_for_lsn(writable.lsn(), MINUTE);
    duckpipe.run(&["validate"]).expect(0);
    writable.execute("TRUNCATE t; INSERT INTO t SELECT i, 'anew', i FROM generate_series(1, 500) i");
    sync.wait_for_lsn(writable.lsn(), MINUTE);
    sync.terminate().expect(0);
    assert_equal(&source, &lake.open_native(), "public.t");

    // Promoted under a running `sync`, whose connections stay; it is killed before it has said anything about that.
    word.stop();
    let mut sync = duckpipe.sync();
    writable.execute("UPDATE t SET v = 'the last' WHERE id < 50");
    sync.wait_for_lsn(writable.lsn(), MINUTE);
    assert_eq!(source.text("SELECT pg_promote()"), "t");
    source.execute("UPDATE t SET v = 'on the new timeline' WHERE id > 450");
    let lsn = source.lsn();
    sync.wait_for_lsn(lsn, MINUTE);
    // The slot's own position is what proves then that the lake's is one of the new timeline. A moment before, nothing does.
    let confirmed = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'duckpipe_{NAME}' AND confirmed_flush_lsn >= '{lsn}'"
    );
    wait_for("the position is confirmed", MINUTE, || (source.number(&confirmed) == 1).then_some(()), || sync.tail());
    sync.kill9();
    source.execute("DELETE FROM t WHERE id = 450");
    converges(&duckpipe, &lake, &source);
    assert_eq!(duckpipe.status().table("public.t")["rows_copied"], 1000, "it was copied again");
}

/// The primary dies. `sync`, which has the addresses of both, waits for the standby to be promoted, and goes on there.
#[test]
fn takes_over_from_its_primary() {
    const NAME: &str = "failover";
    let mut primary = Postgres::start(Options::default());
    if primary.connect("postgres").number(MAJOR) < 17 {
        return;
    }
    primary.connect("postgres").execute(&format!("CREATE DATABASE {NAME}"));
    primary.connect(NAME).execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i",
    );
    let standby = primary.standby(&[("sync_replication_slots", "on")]);
    let writable = primary.connect(NAME);
    // What the standby lacks is not sent to the lake either: a failover loses nothing that the lake has.
    writable.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'");
    writable.execute("SELECT pg_reload_conf()");
    let [first, second] = [&primary, &standby].map(|server| format!("127.0.0.1:{}", server.port()));
    let url = primary.url("postgres", NAME).replace(&first, &format!("{first},{second}"));
    let lake = Lake::new(Combination::EMBEDDED, NAME);
    let duckpipe = Duckpipe::new(NAME, &url, &lake, TABLES);
    converges(&duckpipe, &lake, &writable);

    let mut sync = duckpipe.sync();
    let source = standby.connect(NAME);
    let synchronised = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'duckpipe_{NAME}' AND synced AND NOT temporary AND invalidation_reason IS NULL"
    );
    wait_for(
        "the standby has the slot",
        2 * MINUTE,
        || {
            writable.execute("UPDATE t SET v = v || '.' WHERE id <= 10");
            writable.execute("SELECT pg_log_standby_snapshot()");
            (source.number(&synchronised) == 1).then_some(())
        },
        || sync.tail(),
    );
    writable.execute("DELETE FROM t WHERE id > 900; UPDATE t SET v = 'the last of the primary' WHERE id < 50");
    sync.wait_for_lsn(writable.lsn(), MINUTE);
    primary.stop("QUIT");
    sync.wait_for_output("the source is a standby, where the slot", MINUTE);
    assert_eq!(source.text("SELECT pg_promote()"), "t");
    source.execute("UPDATE t SET v = 'on the new timeline' WHERE id > 450");
    sync.wait_for_lsn(source.lsn(), MINUTE);
    sync.terminate().expect(0);
    assert_equal(&source, &lake.open_native(), "public.t");
    assert_eq!(duckpipe.status().table("public.t")["rows_copied"], 1000, "it was copied again");

    // By its part rather than by the order of the addresses.
    duckpipe.configure(&duckpipe.configuration().replace(&url, &format!("{url}?target_session_attrs=primary")));
    converges(&duckpipe, &lake, &source);
}

/// Waits until the standby has all that the primary has by now.
fn caught_up(standby: &Client, primary: &Client) {
    let lsn = primary.text("SELECT pg_current_wal_flush_lsn()");
    let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn");
    wait_for("the standby catches up", MINUTE, || (standby.text(&caught_up) == "t").then_some(()), || lsn.clone());
}
