//! What a source can do to rows, and how it can say so: two phases, messages, origins, identities; one key again and again; names and
//! sizes up to Postgres' own limits.

use std::time::Duration;

use crate::lab::{CatalogKind, Combination, StoreKind};
use crate::scenario::Scenario;

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);
/// One flush for each run: the interval is longer than a run.
const ONE_FLUSH: &str = "[sync]\nflush_interval = \"60s\"\n[[tables]]\nsource = \"public.*\"\n";

/// A table that has been copied.
fn synced(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, ONE_FLUSH);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL; \
         INSERT INTO t SELECT i, 0, repeat(md5(i::text), 100) FROM generate_series(1, 200) i",
    );
    scenario.converge(&["public.t"]);
    scenario
}

/// What is prepared is nobody's business until it is committed; small, and so large that it comes in blocks.
#[test]
fn two_phases() {
    let scenario = synced("changes_two_phases", Combination::EMBEDDED);
    let shown = |when: &str| {
        scenario.duckpipe.sync_once().expect(0);
        let native = scenario.lake.open_native();
        assert_eq!(native.number("SELECT count(*) FROM lake.public.t"), 200, "{when}");
    };
    let changes = "UPDATE t SET n = n + 1, id = id + 1000 WHERE id % 2 = 0; DELETE FROM t WHERE id % 3 = 0";
    for (round, rows) in [1, 4000].into_iter().enumerate() {
        let first = 10_000 * (round + 1);
        let begin = format!(
            "BEGIN; {changes}; INSERT INTO t SELECT i, 0, repeat('x', 50) FROM generate_series({first}, {first} + {rows} - 1) i"
        );
        let source = scenario.source.connect();
        source.execute(&format!("{begin}; PREPARE TRANSACTION 'void {round}'"));
        if round == 0 {
            shown("prepared");
        }
        source.execute(&format!("ROLLBACK PREPARED 'void {round}'"));
        if round == 0 {
            shown("rolled back");
        }
        source.execute(&format!("{begin}; PREPARE TRANSACTION 'kept {round}'"));
        scenario.duckpipe.sync_once().expect(0);
        source.execute(&format!("COMMIT PREPARED 'kept {round}'"));
        scenario.converge(&["public.t"]);
    }
    scenario.duckpipe.run(&["validate"]).expect(0);
}

/// `pg_logical_emit_message` is for others; what a replica of another node writes is followed as any other change.
#[test]
fn messages_and_origins() {
    let scenario = synced("changes_messages", POSTGRES);
    let session = scenario.source.connect();
    session.execute(
        "SELECT pg_logical_emit_message(false, 'app', 'outside of a transaction'); \
         BEGIN; SELECT pg_logical_emit_message(true, 'app', repeat('x', 100000)); UPDATE t SET n = 1 WHERE id < 10; COMMIT; \
         BEGIN; SELECT pg_logical_emit_message(true, 'app', 'alone'); COMMIT",
    );
    scenario.converge(&["public.t"]);
    session.execute("SELECT pg_replication_origin_create('changes_elsewhere'), pg_replication_origin_session_setup('changes_elsewhere')");
    session.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/10', now()); DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (500, 1, 'from elsewhere'); COMMIT");
    session.execute("BEGIN; SELECT pg_replication_origin_xact_setup('0/20', now()); INSERT INTO t SELECT i, 1, repeat('x', 100) FROM generate_series(1000, 4000) i; COMMIT");
    session.execute("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('changes_elsewhere')");
    scenario.converge(&["public.t"]);
}

/// Keys that swap, that go and come back, and that change thousands of times in one flush: in one transaction, and in many.
#[test]
fn one_key_again_and_again() {
    let scenario = synced("changes_one_key", Combination::EMBEDDED);
    scenario.source.execute(
        "BEGIN; UPDATE t SET id = -1 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = -1; \
         UPDATE t SET id = -3 WHERE id = 3; DELETE FROM t WHERE id = -3; INSERT INTO t VALUES (3, 3, 'back'); \
         DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (4, 4, 'back'); UPDATE t SET id = 5000 WHERE id = 4; COMMIT",
    );
    scenario.source.execute(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP UPDATE t SET n = i WHERE id = 10; \
         IF i % 7 = 0 THEN DELETE FROM t WHERE id = 11; INSERT INTO t VALUES (11, i, 'again'); END IF; \
         IF i % 11 = 0 THEN UPDATE t SET id = CASE id WHEN 12 THEN 6000 ELSE 12 END WHERE id IN (12, 6000); END IF; END LOOP; END $$",
    );
    scenario.source.execute(
        "DO $$ BEGIN FOR i IN 1..1500 LOOP UPDATE t SET n = -i WHERE id = 20; DELETE FROM t WHERE id = 21; \
         COMMIT; INSERT INTO t VALUES (21, i, 'again'); COMMIT; END LOOP; END $$",
    );
    let before = scenario.version_ids().len();
    scenario.converge(&["public.t"]);
    assert_eq!(scenario.version_ids().len(), before + 1, "one flush");
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
    let native = scenario.lake.open_native();
    let version = native.versions().pop().unwrap().id;
    let changes = native.number(&format!(
        "SELECT count(*) FROM ducklake_table_changes('lake', 'public', 't', {version}, {version}) WHERE id IN (10, 20)"
    ));
    assert_eq!(changes, 4, "of thousands of updates the last one counts: a row less and a row more for each key");
}

/// FULL and an index identify rows as well as a primary key does. Without any identity the source itself refuses changes of published
/// rows, so the table is refused before.
#[test]
fn replica_identities() {
    let scenario = Scenario::new("changes_identities", POSTGRES, ONE_FLUSH);
    scenario.source.execute(
        "CREATE TABLE full_row (id int PRIMARY KEY, v text); ALTER TABLE full_row REPLICA IDENTITY FULL; \
         CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, part int NOT NULL, v text); \
         CREATE UNIQUE INDEX by_index_code ON by_index (part, code); ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code; \
         CREATE TABLE index_alone (code text NOT NULL UNIQUE, v text); ALTER TABLE index_alone REPLICA IDENTITY USING INDEX index_alone_code_key; \
         ALTER TABLE full_row ALTER v SET STORAGE EXTERNAL; ALTER TABLE by_index ALTER v SET STORAGE EXTERNAL; \
         INSERT INTO full_row SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 50) i; \
         INSERT INTO by_index SELECT i, 'c' || i, i % 3, repeat(md5(i::text), 100) FROM generate_series(1, 50) i; \
         INSERT INTO index_alone SELECT 'c' || i, 'v' FROM generate_series(1, 50) i",
    );
    let tables = ["public.full_row", "public.by_index", "public.index_alone"];
    scenario.converge(&tables);
    scenario.source.execute(
        "UPDATE full_row SET id = id + 100 WHERE id <= 10; UPDATE full_row SET v = 'short' WHERE id BETWEEN 11 AND 15; DELETE FROM full_row WHERE id = 20; \
         UPDATE by_index SET code = 'moved ' || code WHERE id <= 10; UPDATE by_index SET id = -id WHERE id BETWEEN 11 AND 20; \
         UPDATE by_index SET part = part + 10, v = 'short' WHERE id = 25; DELETE FROM by_index WHERE id = 30; \
         UPDATE index_alone SET v = 'w', code = upper(code) WHERE code LIKE 'c1%'; DELETE FROM index_alone WHERE code = 'c20'",
    );
    scenario.converge(&tables);
    scenario.duckpipe.run(&["validate"]).expect(0);

    let scenario = Scenario::new("changes_no_identity", POSTGRES, "[[tables]]\nsource = \"public.t\"\n");
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING");
    let finished = scenario.duckpipe.sync_once().expect(1);
    assert!(
        finished.stderr.contains("public.t")
            && finished.stderr.contains("ALTER TABLE \"public\".\"t\" REPLICA IDENTITY DEFAULT"),
        "{}",
        finished.stderr
    );
    assert!(scenario.footprint().is_empty(), "nothing was made");
}

/// An identity that goes while `sync` runs: the table stops at its next change, saying what it needs, and comes back by itself
/// once it has one. The others go on.
#[test]
fn an_identity_that_goes() {
    let mut scenario = Scenario::new("changes_identity_goes", Combination::EMBEDDED, &ONE_FLUSH.replace("60s", "50ms"));
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    scenario.converge(&["public.t", "public.other"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    scenario.source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING; INSERT INTO t VALUES (51, 'without')");
    let refused = scenario.source.try_execute("UPDATE t SET v = 'w' WHERE id = 1").unwrap_err();
    assert!(refused.contains("does not have a replica identity"), "{refused}");
    scenario.source.execute("INSERT INTO other VALUES (2)");
    scenario.wait_for_state(&mut sync, "public.t", "errored");
    scenario.wait_for_state(&mut sync, "public.other", "streaming");
    let status = scenario.duckpipe.status();
    let error = status.table("public.t")["error"].as_str().unwrap_or_default();
    assert!(error.contains("NOTHING"), "{error}");
    scenario.source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET v = 'w' WHERE id < 10");
    // The first try may have come before it had one; the second comes a minute after that.
    sync.wait_until("it streams again", 3 * MINUTE, |status| status.state("public.t") == "streaming");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.other"]);
}

/// Names that need quotes everywhere, and are as long as they may be.
#[test]
fn names() {
    const SCHEMA: &str = "Sch.ema \"ß\" 'x'";
    let long = format!("{}\" é;--", "t".repeat(56));
    assert_eq!(long.len(), 63);
    let column = format!("ключ \"{}\"", "k".repeat(52));
    assert_eq!(column.len(), 63);
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let rest = format!("[[tables]]\nsource = '''{}.*'''\n", quoted(SCHEMA));
    for combination in [Combination::EMBEDDED, POSTGRES] {
        let scenario = Scenario::new(&format!("changes_names_{}", combination.name()), combination, &rest);
        let tables = [long.as_str(), "select", "a.b", "UPPER"];
        scenario.source.execute(&format!("CREATE SCHEMA {}", quoted(SCHEMA)));
        for table in tables {
            let name = format!("{}.{}", quoted(SCHEMA), quoted(table));
            scenario.source.execute(&format!(
                "CREATE TABLE {name} ({} int PRIMARY KEY, \"order\" text, \"a b\" text, \"filename\" text, \"rowid\" int); \
                 INSERT INTO {name} SELECT i, 'o', 'b', 'f', i FROM generate_series(1, 20) i",
                quoted(&column)
            ));
        }
        scenario.duckpipe.sync_once().expect(0);
        for table in tables {
            let name = format!("{}.{}", quoted(SCHEMA), quoted(table));
            scenario.source.execute(&format!(
                "UPDATE {name} SET \"order\" = 'x', rowid = 7 WHERE {key} < 5; DELETE FROM {name} WHERE {key} = 9; \
                 UPDATE {name} SET {key} = -{key} WHERE {key} = 12",
                key = quoted(&column)
            ));
        }
        scenario.duckpipe.sync_once().expect(0);
        scenario.duckpipe.run(&["validate"]).expect(0);
        let native = scenario.lake.open_native();
        for table in tables {
            let name = format!("lake.{}.{}", quoted(SCHEMA), quoted(table));
            let sql = format!(
                "SELECT count(*) FILTER (\"order\" = 'x') || ' ' || count(*) || ' ' || min({}) FROM {name}",
                quoted(&column)
            );
            assert_eq!(native.text(&sql), "4 19 -12", "{table}");
        }
    }
}

/// As many columns as a table can have.
#[test]
fn the_widest_table() {
    let scenario = Scenario::new("changes_wide", Combination::EMBEDDED, ONE_FLUSH);
    let columns: Vec<String> =
        (1..1600).map(|number| format!("c{number} {}", if number % 3 == 0 { "text" } else { "int2" })).collect();
    scenario.source.execute(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", ")));
    scenario.source.execute(
        "INSERT INTO wide (id, c1, c3, c1599) SELECT i, i, 'text ' || i, 'last' FROM generate_series(1, 50) i",
    );
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("UPDATE wide SET c2 = id, c1598 = 7, c600 = 'x' WHERE id % 2 = 0; DELETE FROM wide WHERE id = 3; INSERT INTO wide (id, c5) VALUES (99, 5)");
    scenario.duckpipe.sync_once().expect(0);
    scenario.duckpipe.run(&["validate"]).expect(0);
    let native = scenario.lake.open_native();
    let sql = "SELECT count(*) FILTER (c1598 = 7 AND c600 = 'x') || ' ' || count(c1599) || ' ' || sum(c5) FROM lake.public.wide";
    assert_eq!(native.text(sql), "25 49 5");
}

/// A value of 200 MB, in the copy and in the WAL, and its row changed while the value stays.
#[test]
fn the_largest_value() {
    let scenario = Scenario::new("changes_large", POSTGRES, &ONE_FLUSH.replace("60s", "50ms"));
    scenario.source.execute(
        "CREATE TABLE large (id int PRIMARY KEY, n int, b bytea); ALTER TABLE large ALTER b SET STORAGE EXTERNAL; \
         INSERT INTO large SELECT 1, 0, decode(repeat(md5('copied'), 12500000), 'hex')",
    );
    let digest = |native: &crate::lab::NativeLake| {
        native.rows("SELECT id, n, octet_length(b), md5(b) FROM lake.public.large ORDER BY id")
    };
    let expected = || scenario.source.query("SELECT id, n, octet_length(b), md5(b) FROM large ORDER BY id");
    scenario.duckpipe.sync_once().expect(0);
    assert_eq!(digest(&scenario.lake.open_native()), expected());
    let mut sync = scenario.duckpipe.sync();
    let insert = "INSERT INTO large SELECT 2, 0, decode(repeat(md5('streamed'), 12500000), 'hex')";
    scenario.source.execute(&format!("BEGIN; {insert}; UPDATE large SET n = 1; COMMIT"));
    sync.wait_for_lsn(scenario.source.lsn(), 2 * MINUTE);
    println!("200 MB in one row: a peak of {} MB", sync.peak_memory() / 1_000_000);
    scenario.source.execute("UPDATE large SET n = 2");
    sync.wait_for_lsn(scenario.source.lsn(), 2 * MINUTE);
    println!("left where they are: a peak of {} MB", sync.peak_memory() / 1_000_000);
    assert!(
        sync.peak_memory() < 256_000_000 + 10 * 200_000_000,
        "a row that is larger than the budget costs ten times its size"
    );
    sync.terminate().expect(0);
    assert_eq!(digest(&scenario.lake.open_native()), expected());
}

/// Lists that an UPDATE leaves where they are, and those of a row that is gone and is kept.
#[test]
fn lists_that_stay() {
    let entry = |table: &str, mode: &str| format!("[[tables]]\nsource = \"public.{table}\"\nmode = \"{mode}\"\n");
    let tables = [("t", "mirror"), ("h", "history"), ("s", "soft-delete")];
    let entries: String = tables.iter().map(|(table, mode)| entry(table, mode)).collect();
    let rest = format!("[sync]\nflush_interval = \"60s\"\n{entries}");
    let scenario = Scenario::new("changes_lists", Combination::EMBEDDED, &rest);
    for (table, _) in tables {
        scenario.source.execute(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, n int, e float8[], w text[]); ALTER TABLE {table} ALTER e SET STORAGE EXTERNAL; \
             INSERT INTO {table} SELECT i, 0, (SELECT array_agg(i * x) FROM generate_series(1, 1000) x), ARRAY['a', NULL, 'b' || i] \
             FROM generate_series(1, 50) i"
        ));
    }
    scenario.duckpipe.sync_once().expect(0);
    for (table, _) in tables {
        scenario.source.execute(&format!(
            "UPDATE {table} SET n = 1 WHERE id <= 20; UPDATE {table} SET id = id + 1000 WHERE id BETWEEN 30 AND 35; \
             DELETE FROM {table} WHERE id BETWEEN 41 AND 50"
        ));
    }
    scenario.converge(&["public.t"]);
    let native = scenario.lake.open_native();
    let whole = "len(e) = 1000 AND e[2] = 2 * id AND w[3] = 'b' || id";
    assert_eq!(native.number(&format!("SELECT count(*) FROM lake.public.h WHERE n = 1 AND {whole}")), 20);
    assert_eq!(native.number(&format!("SELECT count(*) FROM lake.public.s WHERE n = 1 AND {whole}")), 20);
    let kept = format!(
        "SELECT count(*) FROM lake.public.s WHERE _deleted_at IS NOT NULL AND id BETWEEN 41 AND 50 AND {whole}"
    );
    assert_eq!(native.number(&kept), 10);
}
