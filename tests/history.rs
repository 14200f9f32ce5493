//! A table that keeps every change (`mode = "history"`): replayed up to a position, its changes are what a mirror shows there.

use std::time::Duration;

use crate::lab::{CatalogKind, Combination, Database, Duckpipe, Lake, NativeLake, Postgres, StoreKind};
use crate::scenario::{Scenario, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SYNC: &str = "[sync]\nflush_interval = \"20ms\"\n";
const MINUTE: Duration = Duration::from_secs(60);
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };

fn entry(mode: &str, table: &str) -> String {
    format!("[[tables]]\nsource = \"{table}\"\nmode = \"{mode}\"\n")
}

/// One source, mirrored into one lake, and its changes kept in another.
struct Both<'a> {
    mirror: Scenario<'a>,
    changes: Duckpipe,
    kept: Lake,
}

/// Large values are stored beside their rows, and are not sent where they did not change.
const CREATE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL; \
    CREATE TABLE whole (id int PRIMARY KEY, n int, large text); ALTER TABLE whole ALTER large SET STORAGE EXTERNAL, REPLICA IDENTITY FULL; \
    INSERT INTO t SELECT i, i, repeat(md5(i::text), 100) FROM generate_series(1, 60) i; INSERT INTO whole SELECT * FROM t";

fn both(name: &str, combination: Combination, create: &str, tables: &[&str]) -> Both<'static> {
    let all = |mode: &str| SYNC.to_owned() + &tables.iter().map(|table| entry(mode, table)).collect::<String>();
    let mirror = Scenario::new(name, combination, &all("mirror"));
    mirror.source.execute(create);
    let other = format!("{name}_kept");
    let kept = Lake::new(combination, &other);
    let changes = Duckpipe::new(&other, &mirror.source.url(), &kept, &all("history"));
    mirror.duckpipe.sync_once().expect(0);
    changes.sync_once().expect(0);
    Both { mirror, changes, kept }
}

/// What the changes of a table come to up to a position: the last one of each key.
fn replayed(table: &str, columns: &str, lsn: u64) -> String {
    format!(
        "WITH known AS (SELECT * FROM lake.{table} WHERE _lsn <= {lsn}), \
         since AS (SELECT * FROM known WHERE (_lsn, _seq) > coalesce((SELECT (_lsn, _seq) FROM known WHERE _op = 'truncate' \
             ORDER BY _lsn DESC, _seq DESC LIMIT 1), (0::UBIGINT, 0::UBIGINT))), \
         last AS (SELECT * FROM since QUALIFY row_number() OVER (PARTITION BY id ORDER BY _lsn DESC, _seq DESC) = 1) \
         SELECT {columns} FROM last WHERE _op IN ('snapshot', 'insert', 'update') ORDER BY id"
    )
}

/// A random transaction: rows come, change, move to another key, go, and sometimes all of them; some of it is rolled back.
fn transaction(random: &mut StdRng, table: &str) -> String {
    let mut sql = String::from("BEGIN; ");
    for _ in 0..random.random_range(1..8) {
        let id = random.random_range(1..80);
        let statement = match random.random_range(0..40) {
            0..10 => format!("UPDATE {table} SET n = {} WHERE id = {id}", random.random_range(0..1000)),
            10..14 => format!("UPDATE {table} SET large = repeat('{}', 3000) WHERE id = {id}", id % 10),
            14..18 => format!("DELETE FROM {table} WHERE id = {id}"),
            18..28 => format!(
                "INSERT INTO {table} VALUES ({id}, 0, repeat(md5('{id}'), 90)) ON CONFLICT (id) DO UPDATE SET n = {table}.n + 1"
            ),
            28..33 => {
                let to = random.random_range(100..1_000_000);
                format!("UPDATE {table} SET id = {to} WHERE id = {id}; UPDATE {table} SET n = n + 1 WHERE id = {to}")
            }
            33..36 => {
                format!("SAVEPOINT s; UPDATE {table} SET n = -1; DELETE FROM {table} WHERE id < {id}; ROLLBACK TO s")
            }
            36..38 => format!("UPDATE {table} SET n = n + 1 WHERE id % 7 = {}", id % 7),
            38 => format!(
                "UPDATE {table} SET n = 0 WHERE id < 20; TRUNCATE {table}; INSERT INTO {table} SELECT i, i, repeat('t', 2500) FROM generate_series(1, 30) i"
            ),
            _ => format!(
                "DELETE FROM {table} WHERE id = {id}; INSERT INTO {table} VALUES ({id}, 1, 'back') ON CONFLICT DO NOTHING"
            ),
        };
        sql += &statement;
        sql += "; ";
    }
    sql + if random.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" }
}

/// Each version of the mirror is what the changes come to at its position. Gives the number of versions.
fn compare(mirror: &NativeLake, kept: &NativeLake, table: &str, columns: &str) -> usize {
    // The history begins where it was copied.
    let first = kept.number(&format!("SELECT min(_lsn) FROM lake.{table}")) as u64;
    let begun = |lsn: Option<duckpipe::lsn::Lsn>| lsn.is_some_and(|lsn| lsn.0 >= first);
    let versions: Vec<_> = mirror.versions().into_iter().filter(|version| begun(version.lsn())).collect();
    let mut seen = 0;
    for version in &versions {
        let lsn = version.lsn().expect("a position");
        let shown =
            mirror.rows(&format!("SELECT {columns} FROM {} ORDER BY id", NativeLake::table(table, Some(version.id))));
        let came_to = kept.rows(&replayed(table, columns, lsn.0));
        assert_eq!(came_to, shown, "{table} at {lsn}");
        seen += 1;
    }
    seen
}

fn replays(combination: Combination) {
    let name = format!("history_{}", combination.name());
    let tables = ["public.t", "public.whole"];
    let mut both = both(&name, combination, CREATE, &tables);
    let mut random = StdRng::seed_from_u64(seed(&name, 77));
    for round in 0..3 {
        let (mut mirroring, mut keeping) = (both.mirror.duckpipe.sync(), both.changes.sync());
        for number in 0..40 {
            let table = if random.random_bool(0.5) { "t" } else { "whole" };
            both.mirror.source.execute(&transaction(&mut random, table));
            // So often, at least, there is another version.
            if number % 6 == 0 {
                mirroring.wait_for_lsn(both.mirror.source.lsn(), MINUTE);
            }
        }
        if round == 1 {
            // A process that dies writes nothing twice.
            keeping.kill9();
            both.changes.die_at("commit_after", 1);
            both.mirror.source.execute(&transaction(&mut random, "t"));
            both.changes.start(&["sync", "--once"]).wait(MINUTE);
            both.changes.live();
            keeping = both.changes.sync();
        }
        let lsn = both.mirror.source.lsn();
        mirroring.wait_for_lsn(lsn, MINUTE);
        keeping.wait_for_lsn(lsn, MINUTE);
        mirroring.terminate().expect(0);
        keeping.terminate().expect(0);
        both.changes.run(&["compact"]).expect(0);
    }
    let (mirror, kept) = (both.mirror.lake.open_native(), both.kept.open_native());
    let mut seen = 0;
    for table in tables {
        seen += compare(&mirror, &kept, table, "id, n, large");
        let twice = kept.number(&format!("SELECT count(*) - count(DISTINCT (_lsn, _seq)) FROM lake.{table}"));
        assert_eq!(twice, 0, "changes of {table} with one number");
        let unfilled = format!(
            "SELECT count(*) FROM lake.{table} WHERE large IS NULL AND _op IN ('snapshot', 'insert', 'update')"
        );
        assert_eq!(kept.number(&unfilled), 0, "values of {table} that were not sent");
        let untimed = format!(
            "SELECT count(*) FROM lake.{table} WHERE _commit_ts IS NULL AND _lsn > (SELECT min(_lsn) FROM lake.{table})"
        );
        assert_eq!(kept.number(&untimed), 0, "changes of {table} without a time");
    }
    assert!(seen >= 30, "{seen} versions");
    assert_eq!(kept.text("SELECT typeof(any_value(_lsn)) FROM lake.public.t"), "UBIGINT");
    // Under FULL the whole row is there before the change, and when it is gone; else its key.
    let before = |table: &str| {
        format!("SELECT count(*) FROM lake.public.{table} WHERE _op IN ('before', 'delete') AND large IS NOT NULL")
    };
    assert!(kept.number(&before("whole")) > 20);
    assert_eq!(kept.number(&before("t")), 0);
    drop((mirror, kept));
    both.changes.run(&["validate", "--files"]).expect(0);
    let validated = both.changes.run(&["validate"]).expect(0).stdout;
    assert!(validated.contains("it holds changes, not rows"), "{validated}");
}

#[test]
fn replays_duckdb() {
    replays(Combination::EMBEDDED);
}

#[test]
fn replays_postgres() {
    replays(POSTGRES);
}

/// Columns come and go, a transaction arrives in blocks, and what only a copy mends begins anew within the history.
#[test]
fn columns_blocks_and_copies() {
    let create = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 50) i";
    let mut both = both("history_columns", Combination::EMBEDDED, create, &["public.t"]);
    let source: &Database<'_> = &both.mirror.source;
    let converge = |both: &Both<'_>| {
        both.mirror.duckpipe.sync_once().expect(0);
        both.changes.sync_once().expect(0);
        let (mirror, kept) = (both.mirror.lake.open_native(), both.kept.open_native());
        let lsn = both.mirror.source.lsn();
        let columns: Vec<String> = mirror.columns("public.t", None).into_iter().map(|(name, _)| name).collect();
        let columns = columns.join(", ");
        let shown = mirror.rows(&format!("SELECT {columns} FROM lake.public.t ORDER BY id"));
        assert_eq!(kept.rows(&replayed("public.t", &columns, lsn.0)), shown);
    };
    source.execute("ALTER TABLE t ADD v text DEFAULT 'old'; UPDATE t SET v = 'new' WHERE id < 10");
    converge(&both);
    source.execute("UPDATE t SET n = 1 WHERE id = 20");
    source.execute("ALTER TABLE t RENAME n TO m");
    source.execute("UPDATE t SET m = 2 WHERE id = 21");
    converge(&both);
    source.execute(
        "BEGIN; INSERT INTO t SELECT i, i, repeat('x', 100) FROM generate_series(1000, 6000) i; \
         SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; UPDATE t SET m = m + 1 WHERE id % 2 = 0; COMMIT",
    );
    converge(&both);
    let rows = "SELECT count(*) FROM lake.public.t";
    let before = both.kept.open_native().number(rows);

    // The type changes: the copy follows on what was kept before.
    source.execute("ALTER TABLE t ALTER m TYPE bigint; UPDATE t SET m = 5000000000 WHERE id = 3");
    for program in [&mut both.changes, &mut both.mirror.duckpipe] {
        program.set("DUCKPIPE_SYNC__RESYNC", "auto");
        let lsn = both.mirror.source.lsn();
        let mut sync = program.sync();
        sync.wait_until("the copy", MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
        sync.terminate().expect(0);
        program.set("DUCKPIPE_SYNC__RESYNC", "manual");
    }
    converge(&both);
    let kept = both.kept.open_native();
    assert!(kept.number(rows) > before + 5000, "what was kept stays");
    assert_eq!(kept.number("SELECT count(*) FROM lake.public.t WHERE _op = 'truncate'"), 2, "one a copy");
    drop(kept);

    // Rows and changes do not mix.
    let configuration = std::fs::read_to_string(both.changes.config()).unwrap();
    both.changes.configure(&configuration.replace("\"history\"", "\"mirror\""));
    let refused = both.changes.sync_once();
    assert_eq!(refused.code, Some(5), "{}", refused.output());
    assert!(refused.output().contains("was made with mode = \"history\""), "{}", refused.output());
    // The slot of the second pipeline is of the same database.
    let _ = Postgres::shared();
}

/// The table is made anew, and the copy of the new one dies: what was kept of the former one is not taken for the new one's.
#[test]
fn made_anew_and_killed() {
    let mut scenario =
        Scenario::new("history_anew", Combination::EMBEDDED, &(SYNC.to_owned() + &entry("history", "public.t")));
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'former' FROM generate_series(1, 20) i",
    );
    scenario.duckpipe.sync_once().expect(0);
    scenario
        .source
        .execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, w text); INSERT INTO t VALUES (1, 'new')");
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.duckpipe.die_at("beside_begun", 1);
    assert_eq!(scenario.duckpipe.run_within(&["sync"], MINUTE).code, None, "not killed");
    scenario.duckpipe.live();
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    scenario.source.execute("UPDATE t SET w = 'newer'");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    let native = scenario.lake.open_native();
    let shown = native.rows("SELECT DISTINCT w FROM lake.public.t WHERE w IS NOT NULL ORDER BY 1");
    assert_eq!(shown, [[Some("new".to_owned())], [Some("newer".to_owned())]]);
}
