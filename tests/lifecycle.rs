//! A pipeline's life: what continues, what can't continue and says so, and what else may be called meanwhile.

use std::process::Command;
use std::time::Duration;

use duckpipe::lsn::Lsn;

use crate::lab::{CatalogKind, Combination, Finished, Options, Postgres, Running, StoreKind, wait_for};
use crate::scenario::Scenario;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const MINUTE: Duration = Duration::from_secs(60);

/// A scenario with one table that has been copied, and streamed a little.
fn synced<'a>(postgres: &'a Postgres, name: &str, combination: Combination) -> Scenario<'a> {
    let scenario = Scenario::on(postgres, name, combination, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i",
    );
    scenario.converge(&["public.t"]);
    scenario.source.execute("UPDATE t SET v = 'streamed' WHERE id <= 10");
    scenario.converge(&["public.t"]);
    scenario
}

/// Asserts exit code 4, a message with `what` and the remedy, and that neither lake nor source were touched.
#[track_caller]
fn needs_resync(scenario: &Scenario<'_>, what: &str) -> Finished {
    let (versions, footprint) = (scenario.version_ids(), scenario.footprint());
    for arguments in [&["sync", "--once"][..], &["sync"]] {
        let finished = scenario.duckpipe.run_within(arguments, MINUTE).expect(4);
        assert!(finished.stderr.contains(what), "{arguments:?} does not say {what:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("sync --resnapshot"), "no remedy: {}", finished.stderr);
        assert_eq!(scenario.version_ids(), versions, "{arguments:?} wrote to the lake");
        assert_eq!(scenario.footprint(), footprint, "{arguments:?} wrote to the source");
    }
    scenario.duckpipe.sync_once().expect(4)
}

/// After the remedy all is equal, goes on, and the versions from before can still be read.
#[track_caller]
fn recovers(scenario: &Scenario<'_>) {
    let before = scenario.version_ids();
    scenario.resnapshot(&["public.t"]);
    scenario.source.execute("INSERT INTO t SELECT max(id) + 1, 'after' FROM t; DELETE FROM t WHERE id % 10 = 3");
    scenario.converge(&["public.t"]);
    let native = scenario.lake.open_native();
    assert!(native.versions().iter().map(|version| version.id).take(before.len()).eq(before), "history was lost");
    let version = native.versions().iter().find(|version| version.lsn().is_some()).unwrap().id;
    assert_eq!(native.number(&format!("SELECT count(*) FROM lake.public.t AT (VERSION => {version})")), 1000);
}

#[test]
fn a_dropped_slot() {
    let scenario = synced(Postgres::shared(), "life_dropped", Combination::EMBEDDED);
    scenario.source.execute(&format!("SELECT pg_drop_replication_slot('{}')", scenario.slot()));
    scenario.source.execute("UPDATE t SET v = 'missed' WHERE id > 990");
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

#[test]
fn a_recreated_slot() {
    let scenario = synced(Postgres::shared(), "life_recreated", Combination::EMBEDDED);
    scenario.source.execute(&format!("SELECT pg_drop_replication_slot('{}')", scenario.slot()));
    scenario.source.execute("UPDATE t SET v = 'missed' WHERE id > 990");
    scenario.source.execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", scenario.slot()));
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

#[test]
fn a_slot_with_another_plugin() {
    let scenario = synced(Postgres::shared(), "life_plugin", Combination::EMBEDDED);
    scenario.source.execute(&format!("SELECT pg_drop_replication_slot('{}')", scenario.slot()));
    scenario
        .source
        .execute(&format!("SELECT pg_create_logical_replication_slot('{}', 'test_decoding')", scenario.slot()));
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

#[test]
fn a_slot_ahead_of_the_lake() {
    let scenario = synced(Postgres::shared(), "life_ahead", Combination::EMBEDDED);
    scenario.source.execute("UPDATE t SET v = 'missed' WHERE id > 990");
    scenario
        .source
        .execute(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", scenario.slot()));
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

#[test]
fn an_invalidated_slot() {
    let postgres = Postgres::start(Options::default().set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB"));
    let scenario = synced(&postgres, "life_invalidated", Combination::EMBEDDED);
    scenario.source.execute("UPDATE t SET v = 'missed' WHERE id > 990");
    for _ in 0..4 {
        scenario.source.execute("CREATE TABLE filler (); DROP TABLE filler");
        scenario.source.execute("SELECT pg_switch_wal()");
    }
    scenario.source.execute("CHECKPOINT");
    assert_eq!(scenario.slot_column("wal_status"), "lost");
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

/// While `sync` runs, its slot goes: it must stop and say so, not try for ever.
#[test]
fn a_slot_that_is_dropped_while_it_is_read() {
    let scenario = synced(Postgres::shared(), "life_pulled", Combination::EMBEDDED);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    let slot = scenario.slot();
    wait_for(
        "the slot is dropped beneath sync",
        MINUTE,
        || {
            scenario.source.query(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active_pid IS NOT NULL"
            ));
            let _ = scenario.source.try_execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
            scenario.slot_column("slot_name").is_empty().then_some(())
        },
        || sync.tail(),
    );
    let finished = sync.wait(MINUTE).expect(4);
    assert!(finished.stderr.contains("sync --resnapshot"), "{}", finished.stderr);
    recovers(&scenario);
}

/// The server fails to decode a change, with the error that Postgres has where a savepoint with DDL was rolled back and its room in
/// pg_class was used again by more DDL of the transaction: two rows of pg_class for one file.
#[test]
fn a_change_that_the_server_does_not_decode() {
    let scenario = synced(Postgres::shared(), "life_undecodable", Combination::EMBEDDED);
    let sync = scenario.duckpipe.sync();
    let file_of = |table: &str, file: &str| {
        scenario.source.execute(&format!(
            "SET allow_system_table_mods = on; UPDATE pg_class SET relfilenode = {file} WHERE oid = '{table}'::regclass"
        ));
    };
    scenario.source.execute("CREATE SCHEMA apart; CREATE TABLE apart.u (id int)");
    let own = scenario.source.text("SELECT relfilenode FROM pg_class WHERE oid = 'apart.u'::regclass");
    file_of("apart.u", "(SELECT relfilenode FROM pg_class WHERE oid = 't'::regclass)");
    scenario.source.execute("INSERT INTO t VALUES (3000, 'not decoded')");
    let finished = sync.wait(MINUTE).expect(4);
    for said in ["unexpected duplicate for tablespace", "connecting again", "sync --resnapshot"] {
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
    }
    file_of("apart.u", &own);
    let finished = scenario.duckpipe.sync_once().expect(4);
    assert!(finished.stderr.contains("unexpected duplicate for tablespace"), "{}", finished.stderr);
    recovers(&scenario);
}

/// While `sync` waits for its source, its slot is made anew: what lay between is lost, so it must not go on.
#[test]
fn a_slot_that_is_recreated_while_it_is_read() {
    let scenario = synced(Postgres::shared(), "life_swapped", Combination::EMBEDDED);
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    let slot = scenario.slot();
    scenario.source.execute("UPDATE t SET v = 'lost' WHERE id > 990");
    // One call, faster than any reconnection.
    scenario.source.execute(&format!(
        "DO $$ BEGIN LOOP BEGIN \
           PERFORM pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active_pid IS NOT NULL; \
           PERFORM pg_drop_replication_slot('{slot}'); EXIT; \
         EXCEPTION WHEN object_in_use THEN NULL; END; END LOOP; END $$"
    ));
    scenario.source.execute("INSERT INTO t VALUES (2000, 'lost too')");
    scenario.source.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let finished = sync.wait(MINUTE).expect(4);
    assert!(finished.stderr.contains("sync --resnapshot"), "{}", finished.stderr);
    recovers(&scenario);
}

#[test]
fn another_cluster() {
    let (first, second) = (Postgres::start(Options::default()), Postgres::start(Options::default()));
    let scenario = synced(&first, "life_cluster", Combination::EMBEDDED);
    let other = second.database("life_cluster");
    other.execute("CREATE TABLE t (id int PRIMARY KEY, v text)");
    other.execute("CREATE PUBLICATION duckpipe_life_cluster FOR TABLE t");
    other.execute("SELECT pg_create_logical_replication_slot('duckpipe_life_cluster', 'pgoutput')");
    let configuration = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&configuration.replace(&scenario.source.url(), &other.url()));
    needs_resync(&scenario, "another cluster");
    // Back at its own source it goes on as if nothing had been.
    scenario.duckpipe.configure(&configuration);
    scenario.source.execute("DELETE FROM t WHERE id > 500");
    scenario.converge(&["public.t"]);
    // And moving to the other one for good is what the remedy does.
    scenario.duckpipe.configure(&configuration.replace(&scenario.source.url(), &other.url()));
    scenario.duckpipe.run(&["sync", "--once", "--resnapshot"]).expect(0);
    crate::lab::assert_equal(&other, &scenario.lake.open_native(), "public.t");
    second.drop_database("life_cluster");
}

/// A cluster that is stopped and started beneath its pipeline, which is therefore set up by hand.
struct Restored {
    postgres: Postgres,
    lake: crate::lab::Lake,
    duckpipe: crate::lab::Duckpipe,
    name: &'static str,
}

impl Restored {
    fn new(name: &'static str) -> Restored {
        let postgres = Postgres::start(Options::default());
        postgres.connect("postgres").execute(&format!("CREATE DATABASE {name}"));
        let lake = crate::lab::Lake::new(Combination::EMBEDDED, name);
        let duckpipe = crate::lab::Duckpipe::new(name, &postgres.url("postgres", name), &lake, TABLES);
        let restored = Restored { postgres, lake, duckpipe, name };
        let rows = "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i";
        restored.source().execute(&format!("CREATE TABLE t (id int PRIMARY KEY, v text); {rows}"));
        restored.duckpipe.sync_once().expect(0);
        restored
    }

    fn source(&self) -> crate::lab::Client {
        self.postgres.connect(self.name)
    }

    fn copy(&self) -> std::path::PathBuf {
        self.postgres.data().with_file_name("copy")
    }

    /// Copies the cluster's folder as a backup does, and lets the cluster go on.
    fn back_up(&mut self) {
        self.postgres.stop("INT");
        let copied =
            Command::new("cp").args(["-a", "--reflink=auto"]).arg(self.postgres.data()).arg(self.copy()).status();
        assert!(copied.unwrap().success());
        self.postgres.restart(|_| ());
    }

    /// Puts the backup back.
    fn restore(&mut self) {
        self.postgres.stop("INT");
        std::fs::remove_dir_all(self.postgres.data()).unwrap();
        std::fs::rename(self.copy(), self.postgres.data()).unwrap();
        self.postgres.restart(|_| ());
    }

    /// Makes the cluster a standby and promotes it, so that it goes on, on a new timeline.
    fn promote(&mut self) {
        self.postgres.stop("INT");
        std::fs::write(self.postgres.data().join("standby.signal"), "").unwrap();
        self.postgres.restart(|_| ());
        let source = self.source();
        assert_eq!(source.text("SELECT pg_promote()"), "t");
        wait_for(
            "the end of recovery",
            MINUTE,
            || (source.text("SELECT pg_is_in_recovery()") == "f").then_some(()),
            String::new,
        );
        source.execute("CHECKPOINT");
    }

    #[track_caller]
    fn needs_resync(&self, words: &str) {
        for arguments in [&["sync", "--once"][..], &["sync"]] {
            let finished = self.duckpipe.run_within(arguments, MINUTE).expect(4);
            assert!(finished.stderr.contains(words), "{}", finished.stderr);
            assert!(finished.stderr.contains("sync --resnapshot"), "{}", finished.stderr);
        }
    }

    #[track_caller]
    fn converges(&self, arguments: &[&str]) {
        self.duckpipe.run(arguments).expect(0);
        crate::lab::assert_equal(&self.source(), &self.lake.open_native(), "public.t");
    }
}

#[test]
fn a_source_restored_from_an_older_copy() {
    let mut restored = Restored::new("life_restored");
    restored.back_up();
    restored.source().execute("UPDATE t SET v = 'lost by the restore', id = -id");
    restored.converges(&["sync", "--once"]);
    restored.restore();
    restored.needs_resync("behind the lake");
    restored.converges(&["sync", "--once", "--resnapshot"]);
    restored.source().execute("DELETE FROM t WHERE id < 100");
    restored.converges(&["sync", "--once"]);
}

/// A failover to a standby that had everything: the new timeline continues the old one, and so does the pipeline.
#[test]
fn a_source_that_was_promoted() {
    let mut restored = Restored::new("life_promoted");
    restored.source().execute("UPDATE t SET v = 'before'");
    restored.converges(&["sync", "--once"]);
    let copied = restored.duckpipe.status().table("public.t")["rows_copied"].clone();
    restored.source().execute("DELETE FROM t WHERE id < 10");
    restored.promote();
    restored.source().execute("UPDATE t SET v = 'on the new timeline' WHERE id < 100");
    restored.converges(&["sync", "--once"]);
    restored.source().execute("UPDATE t SET v = 'again' WHERE id < 50");
    restored.converges(&["sync", "--once"]);
    assert_eq!(restored.duckpipe.status().table("public.t")["rows_copied"], copied, "it was copied again");
}

/// A failover to a standby that lacked what the lake already has: another history, even where its positions are ahead again.
#[test]
fn a_source_that_was_promoted_too_early() {
    let mut restored = Restored::new("life_branched");
    restored.back_up();
    restored.source().execute("UPDATE t SET v = 'lost by the failover', id = -id");
    restored.converges(&["sync", "--once"]);
    let position = restored.source().lsn();
    restored.restore();
    restored.promote();
    let source = restored.source();
    source.execute("CREATE TABLE filler (v text)");
    while source.lsn() <= position {
        source.execute(
            "INSERT INTO filler SELECT repeat('x', 500) FROM generate_series(1, 1000); SELECT pg_switch_wal()",
        );
    }
    restored.needs_resync("timeline");
    source.execute("DROP TABLE filler");
    restored.converges(&["sync", "--once", "--resnapshot"]);
}

fn two_at_once(name: &str, combination: Combination) {
    let scenario = synced(Postgres::shared(), name, combination);
    let mut first = scenario.duckpipe.sync();
    first.wait_for_lsn(scenario.source.lsn(), MINUTE);
    for arguments in [&["sync"][..], &["sync", "--once"], &["sync", "--resnapshot"]] {
        let second = scenario.duckpipe.run_within(arguments, MINUTE).expect(1);
        let said = second.stderr.to_lowercase();
        assert!(said.contains("another") || said.contains("already"), "{arguments:?}: {}", second.stderr);
    }
    // The first one did not even notice.
    scenario.source.execute("UPDATE t SET v = 'still the first' WHERE id <= 500");
    first.wait_for_lsn(scenario.source.lsn(), MINUTE);
    first.terminate().expect(0);
    scenario.assert_equal(&["public.t"]);
    scenario.converge(&["public.t"]);
}

#[test]
fn two_syncs_at_once_duckdb_local() {
    two_at_once("life_two_duckdb", Combination::EMBEDDED);
}

#[test]
fn two_syncs_at_once_postgres_local() {
    two_at_once("life_two_postgres", Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local });
}

#[test]
fn drop_removes_what_duckpipe_made_in_the_source() {
    let scenario = synced(Postgres::shared(), "life_drop", Combination::EMBEDDED);
    assert_eq!(scenario.footprint().len(), 2);
    let versions = scenario.version_ids();
    // Nobody answers the question.
    scenario.duckpipe.run(&["drop"]).expect(2);
    assert_eq!(scenario.footprint().len(), 2);
    scenario.duckpipe.run(&["drop", "--yes"]).expect(0);
    assert!(scenario.footprint().is_empty(), "{:?}", scenario.footprint());
    assert_eq!(scenario.version_ids(), versions, "the lake stays");
    scenario.assert_equal(&["public.t"]);
    // Twice is no error, and what is left can be taken up again.
    scenario.duckpipe.run(&["drop", "--yes"]).expect(0);
    needs_resync(&scenario, &scenario.slot());
    recovers(&scenario);
}

#[test]
fn drop_leaves_a_running_sync_and_a_foreign_publication_alone() {
    let scenario = Scenario::new("life_drop_foreign", Combination::EMBEDDED, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION duckpipe_life_drop_foreign FOR TABLE t",
    );
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    let finished = scenario.duckpipe.run_within(&["drop", "--yes"], MINUTE).expect(1);
    assert!(sync.runs(), "{}", sync.tail());
    assert_eq!(scenario.footprint().len(), 2, "{}", finished.output());
    scenario.source.execute("INSERT INTO t VALUES (1, 'after the attempt')");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);
    scenario.duckpipe.run(&["drop", "--yes"]).expect(0);
    let left: Vec<_> = scenario.footprint().into_iter().flatten().flatten().collect();
    assert_eq!(left, ["duckpipe_life_drop_foreign"], "the publication is its owner's");
}

/// Another slot and another publication, and it dies on the way to them: of the former ones nothing holds WAL, and what is somebody
/// else's stays that.
#[test]
fn another_slot() {
    let mut scenario = synced(Postgres::shared(), "life_other_slot", Combination::EMBEDDED);
    let source = scenario.source.connect();
    let slots = || {
        let query = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() ORDER BY 1";
        source.query(query).into_iter().flatten().flatten().collect::<Vec<_>>()
    };
    // As a copy beside the stream leaves one, when it is killed.
    let make = |slot: &str| source.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    make(&format!("{}_copy", scenario.slot()));
    make("life_somebodys");
    source.execute("CREATE PUBLICATION life_somebodys FOR TABLE t");
    scenario.duckpipe.set("DUCKPIPE_SOURCE__SLOT", "life_somebodys");
    let refused = scenario.duckpipe.run(&["sync", "--once", "--resnapshot"]).expect(1).output();
    assert!(refused.contains("life_somebodys exists"), "{refused}");

    scenario.duckpipe.set("DUCKPIPE_SOURCE__SLOT", "life_other");
    scenario.duckpipe.set("DUCKPIPE_SOURCE__PUBLICATION", "life_somebodys");
    for failpoint in ["former_slot", "creating", "slot"] {
        scenario.duckpipe.die_at(failpoint, 1);
        let died = scenario.duckpipe.run(&["sync", "--once", "--resnapshot"]);
        assert_eq!(died.code, None, "{failpoint}: {}", died.output());
    }
    scenario.duckpipe.live();
    scenario.duckpipe.run(&["sync", "--once", "--resnapshot"]).expect(0);
    assert_eq!(slots(), ["life_other", "life_somebodys"]);
    scenario.assert_equal(&["public.t"]);
    scenario.duckpipe.run(&["drop", "--yes"]).expect(0);
    assert_eq!(slots(), ["life_somebodys"]);
    assert_eq!(source.number("SELECT count(*) FROM pg_publication WHERE pubname = 'life_somebodys'"), 1);
    source.query("SELECT pg_drop_replication_slot('life_somebodys')");
}

/// Where the owner made the publication, a role with REPLICATION and SELECT is enough: no ownership, no CREATE.
#[test]
fn replication_and_select_suffice() {
    let scenario = Scenario::new(
        "life_role",
        Combination::EMBEDDED,
        "[[tables]]\nsource = \"public.t\"\n[[tables]]\nsource = \"public.u\"\n",
    );
    let role = "life_role_reader";
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i; \
         CREATE TABLE u (a int, b text, secret text, PRIMARY KEY (a, b)); INSERT INTO u VALUES (1, 'b', 's')",
    );
    scenario.source.replication_role(role);
    let configuration = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&configuration.replace(&scenario.source.url(), &scenario.source.url_of(role)));
    scenario.source.execute(&format!("GRANT SELECT ON t TO {role}; GRANT SELECT (a, b) ON u TO {role}"));

    // A column that may not be read: named, before anything is written.
    let finished = scenario.duckpipe.sync_once().expect(1);
    assert!(finished.stderr.contains("public.u") && finished.stderr.contains("GRANT SELECT"), "{}", finished.stderr);
    assert!(scenario.footprint().is_empty(), "{:?}", scenario.footprint());

    // Without the publication: the owner is told what to run.
    scenario.source.execute(&format!("GRANT SELECT ON u TO {role}"));
    let finished = scenario.duckpipe.sync_once().expect(1);
    assert!(finished.stderr.contains("CREATE PUBLICATION"), "{}", finished.stderr);
    assert!(scenario.footprint().is_empty(), "{:?}", scenario.footprint());

    scenario.source.execute("CREATE PUBLICATION duckpipe_life_role FOR TABLE t, u");
    scenario.converge(&["public.t", "public.u"]);
    scenario.source.execute(
        "UPDATE t SET v = 'w' WHERE id < 50; DELETE FROM t WHERE id > 90; INSERT INTO u VALUES (2, 'c', NULL)",
    );
    scenario.converge(&["public.t", "public.u"]);
    assert!(scenario.duckpipe.run(&["check"]).expect(0).stdout.contains("public.u"));
}

fn status_and_query(name: &str, combination: Combination) {
    let scenario = synced(Postgres::shared(), name, combination);
    let look = |rows: i64| {
        let status = scenario.duckpipe.status();
        assert_eq!(status.0["pipeline"], *scenario.name);
        assert_eq!(status.0["slot"], scenario.slot());
        let table = status.table("public.t");
        assert_eq!(table["target"], "public.t");
        assert_eq!(table["state"], "streaming");
        assert_eq!(table["rows_copied"], 1000);
        // A table is looked at after the pipeline, which goes on meanwhile.
        let applied: Option<Lsn> = table["applied_lsn"].as_str().and_then(|lsn| lsn.parse().ok());
        assert!(applied.is_some() && applied >= status.applied_lsn(), "{}", status.0);
        assert!(table["error"].is_null() && table["last_commit_at"].is_string(), "{table}");
        assert!(status.0["source_lsn"].is_string() && status.0["lag_bytes"].is_number(), "{}", status.0);
        assert!(!scenario.duckpipe.run(&["status"]).expect(0).stdout.is_empty());
        let count = "SELECT count(*) AS n, min(v) AS v FROM public.t";
        let csv = scenario.duckpipe.run(&["query", count, "--format", "csv"]).expect(0);
        assert_eq!(csv.stdout.lines().nth(1).unwrap_or_default().split(',').next(), Some(rows.to_string().as_str()));
        let json = scenario.duckpipe.run(&["query", count, "--format", "json"]).expect(0);
        assert!(
            json.stdout.contains(&format!("\"n\":{rows}")) || json.stdout.contains(&format!("\"n\": {rows}")),
            "{}",
            json.stdout
        );
        assert!(scenario.duckpipe.run(&["query", count]).expect(0).stdout.contains(&rows.to_string()));
        let refused = scenario.duckpipe.run(&["query", "DELETE FROM public.t"]);
        assert!(matches!(refused.code, Some(1 | 2)), "{refused:?}");
    };
    look(1000);
    let mut sync = scenario.duckpipe.sync();
    scenario.source.execute("INSERT INTO t VALUES (5000, 'new')");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    look(1001);
    // Called at every moment of its start and end, they neither fail nor disturb it.
    sync.terminate().expect(0);
    look(1001);
    scenario.source.execute("INSERT INTO t VALUES (5001, 'new')");
    // Once: with the catalog in the source's cluster, each position that is written down moves the source.
    let lsn = scenario.source.lsn();
    let mut sync = scenario.duckpipe.sync();
    let mut looks = 0;
    loop {
        let status = scenario.duckpipe.status();
        looks += 1;
        assert!(sync.runs(), "after {looks} looks: {}", sync.tail());
        if status.reached(lsn) {
            break;
        }
        assert!(looks < 1000, "{}", sync.tail());
    }
    sync.terminate().expect(0);
    scenario.converge(&["public.t"]);
}

#[test]
fn status_and_query_at_any_time_duckdb_local() {
    status_and_query("life_status_duckdb", Combination::EMBEDDED);
}

#[test]
fn status_and_query_at_any_time_postgres_s3() {
    status_and_query("life_status_postgres", Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 });
}

/// Both signals end it in order: in the first copy, at rest, and while the source is away.
#[test]
fn signals_end_it_in_order() {
    let mut restored = Restored::new("life_signals");
    restored.source().execute("TRUNCATE t; INSERT INTO t SELECT i, repeat('v', 100) FROM generate_series(1, 300000) i");
    let mut sync = restored.duckpipe.start(&["sync", "--resnapshot"]);
    sync.wait_until("the copy has begun", MINUTE, |status| status.all("snapshot"));
    sync.terminate().expect(0);

    let mut sync = restored.duckpipe.sync();
    sync.wait_for_lsn(restored.source().lsn(), 2 * MINUTE);
    sync.signal("INT");
    sync.wait(Duration::from_secs(20)).expect(0);
    crate::lab::assert_equal(&restored.source(), &restored.lake.open_native(), "public.t");

    let mut sync = restored.duckpipe.sync();
    // A source that is away when `sync` starts is an error; one that goes away while it streams is waited for.
    sync.wait_for_output("INFO streaming", MINUTE);
    restored.postgres.stop("INT");
    sync.wait_for_output("connecting again", MINUTE);
    // It waits for its source to come back, and goes on then.
    restored.postgres.restart(|_| ());
    restored.source().execute("UPDATE t SET v = 'back' WHERE id <= 100");
    sync.wait_for_lsn(restored.source().lsn(), MINUTE);
    restored.postgres.stop("INT");
    // A signal ends it also while there is no source.
    sync.terminate().expect(0);
    restored.postgres.restart(|_| ());
    crate::lab::assert_equal(&restored.source(), &restored.lake.open_native(), "public.t");
}

/// A table that somebody has locked: the slot waits for his transaction, and the copy for his lock, but a signal does not.
#[test]
fn a_signal_ends_a_copy_that_waits_for_a_lock() {
    let scenario = Scenario::new("life_locked", Combination::EMBEDDED, TABLES);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v'); CREATE PUBLICATION duckpipe_life_locked FOR TABLE t");
    let locker = scenario.source.connect();
    let ends_where = |sync: Running<'_>, what: &str, waiting: &str| {
        wait_for(what, MINUTE, || (scenario.source.number(waiting) > 0).then_some(()), || sync.tail());
        sync.terminate().expect(0);
        locker.execute("COMMIT");
    };
    locker.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    let slot =
        "SELECT count(*) FROM pg_replication_slots WHERE database = 'life_locked' AND confirmed_flush_lsn IS NULL";
    ends_where(scenario.duckpipe.sync(), "the slot waits for the transaction", slot);

    // One that begins when the slot is there.
    let sync = scenario.duckpipe.start_with(&["sync"], &[("DUCKPIPE_FAILPOINT", "slot:stop")]);
    wait_for("the slot", MINUTE, || sync.is_stopped().then_some(()), || sync.tail());
    locker.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    sync.signal("CONT");
    let lock = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
    ends_where(sync, "the copy waits for the lock", lock);
    scenario.converge(&["public.t"]);
}

/// A standby that synchronises slots can take over: from version 17 on the slot is one of those.
#[test]
fn the_slot_fails_over_where_it_can() {
    let scenario = Scenario::new("life_failover", Combination::EMBEDDED, "[[tables]]\nsource = \"public.t\"\n");
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    scenario.converge(&["public.t"]);
    if scenario.source.number("SELECT current_setting('server_version_num')::int / 10000") >= 17 {
        assert_eq!(scenario.slot_column("failover"), "t");
    }
    scenario.source.execute("INSERT INTO t VALUES (2)");
    scenario.converge(&["public.t"]);
}
