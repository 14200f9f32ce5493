//! A table that keeps deleted rows (`mode = "soft-delete"`): the source's rows, and the last values of those that are gone.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Combination, StoreKind};
use crate::scenario::{Scenario, seed};

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
const MINUTE: Duration = Duration::from_secs(60);

/// The source itself keeps what the lake shall show, by triggers.
const CREATE: &str = "CREATE TABLE {t} (id int PRIMARY KEY, n int, large text); ALTER TABLE {t} ALTER large SET STORAGE EXTERNAL; \
    CREATE TABLE expected.{t} (id int PRIMARY KEY, n int, large text, gone bool); \
    CREATE FUNCTION expected.{t}_put() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        IF TG_OP <> 'INSERT' THEN UPDATE expected.{t} SET gone = true WHERE id = OLD.id; END IF; \
        IF TG_OP <> 'DELETE' THEN INSERT INTO expected.{t} VALUES (NEW.id, NEW.n, NEW.large, false) \
            ON CONFLICT (id) DO UPDATE SET n = NEW.n, large = NEW.large, gone = false; END IF; \
        RETURN NULL; END $$; \
    CREATE TRIGGER put AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION expected.{t}_put(); \
    CREATE FUNCTION expected.{t}_empty() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN TRUNCATE expected.{t}; RETURN NULL; END $$; \
    CREATE TRIGGER empty AFTER TRUNCATE ON {t} FOR EACH STATEMENT EXECUTE FUNCTION expected.{t}_empty(); \
    INSERT INTO {t} SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(1, 80) i";

fn transaction(random: &mut StdRng, table: &str) -> String {
    let mut sql = String::from("BEGIN; ");
    for _ in 0..random.random_range(1..7) {
        let id = random.random_range(1..120);
        sql += &match random.random_range(0..40) {
            0..8 => format!("UPDATE {table} SET n = n + 1 WHERE id = {id}"),
            8..11 => format!("UPDATE {table} SET large = repeat('{}', 3000) WHERE id = {id}", id % 10),
            11..20 => format!("DELETE FROM {table} WHERE id = {id}"),
            20..29 => format!(
                "INSERT INTO {table} VALUES ({id}, 0, repeat(md5('{id}'), 90)) ON CONFLICT (id) DO UPDATE SET n = {table}.n + 1"
            ),
            29..33 => format!(
                "UPDATE {table} SET id = id + 1000 * {} WHERE id = {id} AND NOT EXISTS (SELECT FROM {table} WHERE id = {id} + 1000 * {0})",
                random.random_range(1..4)
            ),
            33..35 => format!(
                "DELETE FROM {table} WHERE id = {id}; INSERT INTO {table} VALUES ({id}, 1, 'back'); UPDATE {table} SET n = 2 WHERE id = {id}"
            ),
            35..37 => format!("SAVEPOINT s; DELETE FROM {table}; ROLLBACK TO s"),
            37 => format!("DELETE FROM {table} WHERE id % 5 = {}", id % 5),
            38 if random.random_bool(0.2) => format!(
                "TRUNCATE {table}; INSERT INTO {table} SELECT i, i, repeat('t', 2500) FROM generate_series(1, 40) i"
            ),
            _ => format!("UPDATE {table} SET n = 0 WHERE id % 11 = {}", id % 11),
        };
        sql += "; ";
    }
    sql + if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" }
}

fn keeps_what_is_deleted(combination: Combination) {
    let name = format!("soft_{}", combination.name());
    let rest = "[sync]\nflush_interval = \"20ms\"\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new(&name, combination, rest);
    let text = scenario.duckpipe.configuration();
    scenario.duckpipe.configure(&text.replace("[[tables]]\n", "[[tables]]\nmode = \"soft-delete\"\n"));
    scenario.source.execute("CREATE SCHEMA expected");
    for table in ["t", "whole"] {
        scenario.source.execute(&CREATE.replace("{t}", table));
    }
    scenario.source.execute("ALTER TABLE whole REPLICA IDENTITY FULL");
    scenario.duckpipe.sync_once().expect(0);
    let mut random = StdRng::seed_from_u64(seed(&name, 3));
    for round in 0..4 {
        let mut sync = scenario.duckpipe.sync();
        for _ in 0..40 {
            let table = if random.random_bool(0.5) { "t" } else { "whole" };
            scenario.source.execute(&transaction(&mut random, table));
        }
        if round == 2 {
            sync.kill9();
            sync = scenario.duckpipe.sync();
        }
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
        sync.terminate().expect(0);
        scenario.duckpipe.run(&["compact"]).expect(0);
        let native = scenario.lake.open_native();
        for table in ["t", "whole"] {
            let expected = scenario
                .source
                .query(&format!("SELECT id, n, md5(large), gone::int FROM expected.{table} ORDER BY id"));
            let shown = native.rows(&format!(
                "SELECT id, n, md5(large), (_deleted_at IS NOT NULL)::INT FROM lake.public.{table} ORDER BY id"
            ));
            assert_eq!(shown, expected, "{table} in round {round}");
            let live = scenario.source.query(&format!("SELECT id, n, md5(large) FROM {table} ORDER BY id"));
            let shown = native.rows(&format!(
                "SELECT id, n, md5(large) FROM lake.public.{table} WHERE _deleted_at IS NULL ORDER BY id"
            ));
            assert_eq!(shown, live, "{table} in round {round}");
        }
        let at = native.number("SELECT count(*) FROM lake.public.t WHERE _deleted_at > now() - INTERVAL 1 HOUR AND _deleted_at <= now() + INTERVAL 1 MINUTE");
        let gone = native.number("SELECT count(*) FROM lake.public.t WHERE _deleted_at IS NOT NULL");
        assert_eq!(at, gone, "the time of the DELETE");
    }
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    let validated = scenario.duckpipe.run(&["validate"]).expect(0).stdout;
    assert!(!validated.contains("not compared"), "{validated}");
    // A row that is missing is found, and a deleted one is none.
    scenario.lake.open_native_writable().execute(
        "DELETE FROM lake.public.t WHERE rowid IN (SELECT rowid FROM lake.public.t WHERE _deleted_at IS NULL LIMIT 1)",
    );
    scenario.duckpipe.run(&["validate"]).expect(3);
}

#[test]
fn keeps_what_is_deleted_duckdb() {
    keeps_what_is_deleted(Combination::EMBEDDED);
}

#[test]
fn keeps_what_is_deleted_postgres() {
    keeps_what_is_deleted(POSTGRES);
}

/// Columns that come, go and are renamed, of rows that are gone too; a fresh copy has the source's rows alone.
#[test]
fn columns_change_and_a_copy_begins_anew() {
    let rest = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.t\"\nmode = \"soft-delete\"\n";
    let mut scenario = Scenario::new("soft_columns", Combination::EMBEDDED, rest);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, i, 'v' FROM generate_series(1, 20) i",
    );
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute(
        "DELETE FROM t WHERE id = 1; BEGIN; ALTER TABLE t ADD extra int DEFAULT 7, DROP n; ALTER TABLE t RENAME v TO w; COMMIT; \
         DELETE FROM t WHERE id = 2; UPDATE t SET extra = 8 WHERE id = 3; DELETE FROM t WHERE id = 3; UPDATE t SET id = 40 WHERE id = 4",
    );
    scenario.duckpipe.sync_once().expect(0);
    let gone = |expected: &[[&str; 3]]| {
        let native = scenario.lake.open_native();
        let shown = native.rows("SELECT id, extra, w FROM lake.public.t WHERE _deleted_at IS NOT NULL ORDER BY id");
        let expected: Vec<Vec<Option<String>>> =
            expected.iter().map(|row| row.iter().map(|value| Some((*value).to_owned())).collect()).collect();
        assert_eq!(shown, expected);
        let live = "SELECT id, extra, w FROM lake.public.t WHERE _deleted_at IS NULL ORDER BY id";
        assert_eq!(native.rows(live), scenario.source.query("SELECT id, extra, w FROM t ORDER BY id"));
    };
    // What a row that was gone before has in a new column is the column's default, as in every row that was there.
    gone(&[["1", "7", "v"], ["2", "7", "v"], ["3", "8", "v"], ["4", "7", "v"]]);
    scenario.duckpipe.run(&["validate"]).expect(0);

    let mut sync = scenario.duckpipe.sync();
    scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
    sync.wait_for_output("the fresh copy streams with the others", MINUTE);
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    scenario.source.execute("DELETE FROM t WHERE id = 10");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);
    gone(&[["10", "7", "v"]]);
    // Another type is a copy too.
    scenario.source.execute("ALTER TABLE t ALTER extra TYPE text; UPDATE t SET extra = 'text' WHERE id = 11");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    scenario.source.execute("DELETE FROM t WHERE id = 11");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);
    gone(&[["11", "text", "v"]]);
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// Which of equal rows is gone can't be said of a table without a key: it is refused.
#[test]
fn without_a_key() {
    let rest = "[[tables]]\nsource = \"public.t\"\nmode = \"soft-delete\"\n[[tables]]\nsource = \"public.other\"\n";
    let scenario = Scenario::new("soft_keyless", Combination::EMBEDDED, rest);
    scenario.source.execute(
        "CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 'v'); \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    let refused = scenario.duckpipe.sync_once().expect(1).output();
    assert!(
        refused.contains("public.t") && refused.contains("soft-delete") && refused.contains("PRIMARY KEY"),
        "{refused}"
    );
    scenario.source.execute("ALTER TABLE t ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT");
    scenario.duckpipe.sync_once().expect(0);
    // It loses its key while it streams.
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    scenario.source.execute(
        "ALTER TABLE t DROP CONSTRAINT t_pkey, REPLICA IDENTITY FULL; DELETE FROM t; INSERT INTO other VALUES (2)",
    );
    scenario.wait_for_state(&mut sync, "public.t", "errored");
    sync.terminate().expect(0);
    assert_eq!(scenario.lake.open_native().number("SELECT count(*) FROM lake.public.t"), 1);
    scenario.assert_equal(&["public.other"]);
}
