//! Tables without a key under REPLICA IDENTITY FULL: n equal rows are n rows, and a DELETE of one leaves n - 1.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Combination, Duckpipe, StoreKind};
use crate::scenario::{Scenario, seed};

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
const MINUTE: Duration = Duration::from_secs(60);
const TABLE: &str = "public.t";

/// Few different rows, NULLs among their values, and values that compare equal but are not: -0 and 0, 1.0 and 1.00.
const CREATE: &str = "CREATE TABLE t (a int, b text, f float8, n numeric, tags int[], large text); ALTER TABLE t REPLICA IDENTITY FULL; \
    ALTER TABLE t ALTER large SET STORAGE EXTERNAL; \
    INSERT INTO t SELECT i % 5, NULLIF('b' || i % 3, 'b0'), CASE WHEN i % 2 = 0 THEN 0 ELSE '-0'::float8 END, \
        CASE WHEN i % 4 = 0 THEN 1.0 WHEN i % 4 = 1 THEN 1.00 END, CASE WHEN i % 3 = 0 THEN ARRAY[1, NULL, i % 2] END, \
        CASE WHEN i % 7 = 0 THEN repeat('x', 3000) END FROM generate_series(1, 600) i";

/// One of n equal rows: Postgres tells them apart by where they lie.
fn one(condition: &str, limit: u32) -> String {
    format!("ctid IN (SELECT ctid FROM t WHERE {condition} ORDER BY ctid LIMIT {limit})")
}

fn transaction(random: &mut StdRng) -> String {
    let mut sql = String::from("BEGIN; ");
    for _ in 0..random.random_range(1..6) {
        let condition = match random.random_range(0..3) {
            0 => format!("a = {}", random.random_range(0..5)),
            1 => "b IS NULL".to_owned(),
            _ => format!("tags IS NOT NULL AND a <> {}", random.random_range(0..5)),
        };
        let limit = random.random_range(1..5);
        sql += &match random.random_range(0..20) {
            0..6 => format!("DELETE FROM t WHERE {}", one(&condition, limit)),
            6..11 => format!("INSERT INTO t SELECT * FROM t WHERE {}", one(&condition, limit)),
            11..15 => format!("UPDATE t SET a = (a + 1) % 5 WHERE {}", one(&condition, limit)),
            15 => format!("UPDATE t SET b = b WHERE {}", one(&condition, limit)),
            16 => format!("UPDATE t SET f = -f, n = n + 0.00 WHERE {}", one(&condition, limit)),
            17 => format!("SAVEPOINT s; DELETE FROM t WHERE {condition}; ROLLBACK TO s"),
            18 => format!(
                "DELETE FROM t WHERE {0}; INSERT INTO t (a, b) SELECT 1, 'b1' FROM generate_series(1, {limit})",
                one(&condition, limit)
            ),
            _ if random.random_bool(0.2) => {
                "TRUNCATE t; INSERT INTO t (a) SELECT i % 3 FROM generate_series(1, 50) i".to_owned()
            }
            _ => format!(
                "INSERT INTO t (a, b, large) SELECT {limit}, NULL, repeat('y', 2500) FROM generate_series(1, {limit})"
            ),
        };
        sql += "; ";
    }
    sql + "COMMIT"
}

fn equal_rows_are_counted(combination: Combination) {
    let name = format!("keyless_{}", combination.name());
    let rest = format!("[sync]\nflush_interval = \"20ms\"\n{}", Duckpipe::tables(&[TABLE]));
    let mut scenario = Scenario::new(&name, combination, &rest);
    scenario.source.execute(CREATE);
    scenario.converge(&[TABLE]);
    let mut random = StdRng::seed_from_u64(seed(&name, 5));
    for round in 0..4 {
        let mut sync = scenario.duckpipe.sync();
        for _ in 0..25 {
            scenario.source.execute(&transaction(&mut random));
        }
        if round == 2 {
            sync.kill9();
            scenario.converge(&[TABLE]);
            sync = scenario.duckpipe.sync();
        }
        sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
        sync.terminate().expect(0);
        assert!(scenario.assert_equal(&[TABLE]) > 0);
        scenario.duckpipe.run(&["compact"]).expect(0);
        scenario.duckpipe.run(&["validate"]).expect(0);
        scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    }

    // More than fits the memory at once, of which many are equal.
    scenario.duckpipe.set("DUCKPIPE_SYNC__MEMORY_LIMIT", "128MB");
    scenario.source.execute("INSERT INTO t (a, b) SELECT i % 20000, 'many' FROM generate_series(1, 60000) i");
    scenario.converge(&[TABLE]);
    scenario.source.execute("UPDATE t SET b = 'more' WHERE b = 'many'; DELETE FROM t WHERE ctid IN (SELECT min(ctid) FROM t WHERE b = 'more' GROUP BY a)");
    scenario.converge(&[TABLE]);
    // Another column is another row: a fresh copy.
    scenario
        .source
        .execute("ALTER TABLE t ADD extra int DEFAULT 3; DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 10)");
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let lsn = scenario.source.lsn();
    let mut sync = scenario.duckpipe.sync();
    sync.wait_until("the copy", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
    scenario.source.execute("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t LIMIT 10)");
    let lsn = scenario.source.lsn();
    sync.wait_until("the stream", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
    sync.terminate().expect(0);
    scenario.assert_equal(&[TABLE]);
}

#[test]
fn equal_rows_are_counted_duckdb() {
    equal_rows_are_counted(Combination::EMBEDDED);
}

#[test]
fn equal_rows_are_counted_postgres() {
    equal_rows_are_counted(POSTGRES);
}

/// Rows that the lake has too few of stop the table, and `validate` counts them.
#[test]
fn a_row_that_is_missing_in_the_lake() {
    let scenario = Scenario::new("keyless_missing", Combination::EMBEDDED, &Duckpipe::tables(&[TABLE]));
    scenario.source.execute(
        "CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT 1, NULL FROM generate_series(1, 3)",
    );
    scenario.converge(&[TABLE]);
    scenario.lake.open_native_writable().execute("DELETE FROM lake.public.t WHERE rowid = 0");
    let found = scenario.duckpipe.run(&["validate"]).expect(3).stdout;
    assert!(found.contains("the source has 3 rows, the lake 2"), "{found}");
    scenario.source.execute("DELETE FROM t");
    scenario.duckpipe.sync_once().expect(5);
    let error = scenario.duckpipe.status().table(TABLE)["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("which the lake does not hold"), "{error}");
}

/// Under FULL the source sends all columns of an old row; those that the lake shall not have tell no rows apart there.
#[test]
fn without_all_columns() {
    let tables = format!("{}exclude_columns = [\"secret\"]\n", Duckpipe::tables(&[TABLE]));
    let scenario = Scenario::new("keyless_excluded", Combination::EMBEDDED, &tables);
    scenario.source.execute(
        "CREATE TABLE t (a int, secret text, b text); ALTER TABLE t REPLICA IDENTITY FULL; \
         INSERT INTO t SELECT i % 3, 'secret ' || i, NULLIF('b' || i % 2, 'b0') FROM generate_series(1, 60) i",
    );
    let rows = |lake: &str| format!("SELECT a, b, count(*) FROM {lake} GROUP BY a, b ORDER BY a, b");
    let compare = || {
        scenario.duckpipe.sync_once().expect(0);
        let native = scenario.lake.open_native();
        assert_eq!(native.rows(&rows("lake.public.t")), scenario.source.query(&rows("t")));
        let columns: Vec<String> = native.columns("public.t", None).into_iter().map(|(name, _)| name).collect();
        assert_eq!(columns, ["a", "b"]);
        drop(native);
        scenario.duckpipe.run(&["validate"]).expect(0);
    };
    compare();
    scenario.source.execute("DELETE FROM t WHERE secret IN ('secret 1', 'secret 2', 'secret 7')");
    compare();
    scenario.source.execute(
        "UPDATE t SET secret = 'another' WHERE a = 1; UPDATE t SET b = 'c' WHERE secret LIKE '%3'; \
         DELETE FROM t WHERE secret = 'another' AND b IS NULL; INSERT INTO t SELECT * FROM t",
    );
    compare();
}
