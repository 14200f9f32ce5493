//! What is seldom done to a table, and easily missed: while `sync` runs, and while none does.

use std::time::Duration;

use crate::lab::{Combination, Running, wait_for};
use crate::scenario::Scenario;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const MINUTE: Duration = Duration::from_secs(60);

/// A table with some rows, and what is done to it.
struct Case {
    table: &'static str,
    create: String,
    change: &'static str,
}

fn case(table: &'static str, create: &str, change: &'static str) -> Case {
    Case { table, create: create.to_owned(), change }
}

fn cases() -> Vec<Case> {
    let columns: String = (1..400).map(|number| format!(", c{number} int")).collect();
    let wide = format!(
        "CREATE TABLE wide (id int PRIMARY KEY{columns}); INSERT INTO wide (id, c1, c5, c250, c399) SELECT i, i, 5, 500, 999 FROM generate_series(1, 50) i"
    );
    vec![
        // The default of rows that were there is not in the catalog any more when the change is read.
        case(
            "vacuumed",
            "CREATE TABLE vacuumed (id int PRIMARY KEY, v text); INSERT INTO vacuumed SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE vacuumed ADD added int DEFAULT 7; UPDATE vacuumed SET v = 'w' WHERE id = 1; VACUUM FULL vacuumed; \
             INSERT INTO vacuumed VALUES (51, 'new', 8)",
        ),
        case(
            "volatile",
            "CREATE TABLE volatile (id int PRIMARY KEY, v text); INSERT INTO volatile SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE volatile ADD r float8 DEFAULT random(); UPDATE volatile SET v = 'w' WHERE id < 10; INSERT INTO volatile VALUES (51, 'x')",
        ),
        case(
            "generated",
            "CREATE TABLE generated (id int PRIMARY KEY, n int); INSERT INTO generated SELECT i, i FROM generate_series(1, 50) i",
            "ALTER TABLE generated ADD twice int GENERATED ALWAYS AS (n * 2) STORED; UPDATE generated SET n = -n WHERE id < 10; \
             INSERT INTO generated VALUES (51, 1)",
        ),
        case(
            "wide",
            &wide,
            "BEGIN; ALTER TABLE wide DROP c5, DROP c300; ALTER TABLE wide RENAME c250 TO other; \
             ALTER TABLE wide DROP c200, ADD c200 text, ADD late int DEFAULT 3; COMMIT; \
             UPDATE wide SET other = -1, c200 = 'text' WHERE id % 2 = 0; INSERT INTO wide (id, c399, late) VALUES (51, 1, 2)",
        ),
        case(
            "key_added",
            "CREATE TABLE key_added (id int NOT NULL, v text); ALTER TABLE key_added REPLICA IDENTITY FULL; \
             INSERT INTO key_added SELECT i, 'v' FROM generate_series(1, 50) i",
            "UPDATE key_added SET v = 'before' WHERE id < 5; ALTER TABLE key_added ADD PRIMARY KEY (id), REPLICA IDENTITY DEFAULT; \
             UPDATE key_added SET v = 'after' WHERE id < 10; DELETE FROM key_added WHERE id > 40",
        ),
        // Nobody could follow it before.
        case(
            "keyless_before",
            "CREATE TABLE keyless_before (id int NOT NULL, v text); INSERT INTO keyless_before SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE keyless_before ADD PRIMARY KEY (id); UPDATE keyless_before SET v = 'after' WHERE id < 10",
        ),
        case(
            "key_reordered",
            "CREATE TABLE key_reordered (id int, part int, v text, PRIMARY KEY (id, part)); \
             INSERT INTO key_reordered SELECT i, i % 3, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE key_reordered DROP CONSTRAINT key_reordered_pkey, ADD PRIMARY KEY (part, id); \
             UPDATE key_reordered SET part = id, id = part + 1000 WHERE id < 10; DELETE FROM key_reordered WHERE id BETWEEN 20 AND 30",
        ),
        case(
            "key_renamed",
            "CREATE TABLE key_renamed (id int PRIMARY KEY, v text); INSERT INTO key_renamed SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE key_renamed RENAME id TO ident; UPDATE key_renamed SET ident = ident + 100 WHERE ident < 10; \
             DELETE FROM key_renamed WHERE ident = 20",
        ),
        // As a rename would look to who knows columns by their types.
        case(
            "replaced",
            "CREATE TABLE replaced (id int PRIMARY KEY, a int); INSERT INTO replaced SELECT i, i FROM generate_series(1, 50) i",
            "ALTER TABLE replaced DROP a, ADD b int; UPDATE replaced SET b = 7 WHERE id < 10; INSERT INTO replaced VALUES (51, 8)",
        ),
        // The column of the rows in between has the name and the type of the one that is there when they are read.
        case(
            "replaced_twice",
            "CREATE TABLE replaced_twice (id int PRIMARY KEY, a int, b text); INSERT INTO replaced_twice SELECT i, i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE replaced_twice DROP a, ADD a int; UPDATE replaced_twice SET a = 7 WHERE id < 10; \
             ALTER TABLE replaced_twice DROP a, ADD a int; DELETE FROM replaced_twice WHERE id = 20",
        ),
        // Its values were there, and were not sent.
        case(
            "expression_dropped",
            "CREATE TABLE expression_dropped (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED); \
             INSERT INTO expression_dropped (id, n) SELECT i, i FROM generate_series(1, 50) i",
            "ALTER TABLE expression_dropped ALTER d DROP EXPRESSION; UPDATE expression_dropped SET n = -1 WHERE id < 10",
        ),
        // Each message by itself looks as if the last column that came were the one that is there when it is read.
        case(
            "named_again",
            "CREATE TABLE named_again (id int PRIMARY KEY, a int); INSERT INTO named_again SELECT i, i FROM generate_series(1, 50) i",
            "ALTER TABLE named_again RENAME a TO b; INSERT INTO named_again VALUES (51, 1); ALTER TABLE named_again ADD c int; \
             INSERT INTO named_again VALUES (52, 2, 33); ALTER TABLE named_again DROP c; ALTER TABLE named_again ADD c int",
        ),
        // What it was when the rows of the first time were written is in no catalog any more.
        case(
            "widened_at_once",
            "CREATE TABLE widened_at_once (id int PRIMARY KEY, v text); INSERT INTO widened_at_once SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE widened_at_once ADD n numeric(6,2) DEFAULT 1.25; UPDATE widened_at_once SET n = 2.5 WHERE id < 10; \
             ALTER TABLE widened_at_once ALTER n TYPE numeric(12,2); UPDATE widened_at_once SET n = 1234567.25 WHERE id = 20",
        ),
        case(
            "dropped_at_once",
            "CREATE TABLE dropped_at_once (id int PRIMARY KEY, v text); INSERT INTO dropped_at_once SELECT i, 'v' FROM generate_series(1, 50) i",
            "ALTER TABLE dropped_at_once ADD n int DEFAULT 7; UPDATE dropped_at_once SET n = 8, v = 'w' WHERE id < 10; \
             ALTER TABLE dropped_at_once DROP n; UPDATE dropped_at_once SET v = 'x' WHERE id = 20",
        ),
        // Sent in blocks: the columns are known before the transaction's end, and some rows of it go with a savepoint.
        case(
            "in_blocks",
            "CREATE TABLE in_blocks (id int PRIMARY KEY, v text); INSERT INTO in_blocks SELECT i, 'v' FROM generate_series(1, 50) i",
            "BEGIN; ALTER TABLE in_blocks ADD n int DEFAULT 7, DROP v; \
             INSERT INTO in_blocks SELECT i, i FROM generate_series(1000, 4000) i; SAVEPOINT s; \
             UPDATE in_blocks SET n = -1; INSERT INTO in_blocks SELECT i, i FROM generate_series(5000, 8000) i; ROLLBACK TO s; \
             DELETE FROM in_blocks WHERE id % 3 = 0; COMMIT; UPDATE in_blocks SET n = 8 WHERE id < 10",
        ),
        // A value that lies apart, deleted, inserted again, and not sent with the row's next change.
        case(
            "reinserted",
            "CREATE TABLE reinserted (id int PRIMARY KEY, n int, large text); ALTER TABLE reinserted ALTER large SET STORAGE EXTERNAL; \
             INSERT INTO reinserted SELECT i, 0, repeat(md5(i::text), 300) FROM generate_series(1, 50) i",
            "BEGIN; DELETE FROM reinserted WHERE id < 10; \
             INSERT INTO reinserted SELECT i, 1, repeat(md5('again' || i), 300) FROM generate_series(1, 9) i; \
             UPDATE reinserted SET n = 2 WHERE id < 20; COMMIT; ALTER TABLE reinserted ADD more int; \
             UPDATE reinserted SET n = 3, more = 4 WHERE id < 30",
        ),
    ]
}

/// All cases in one source, copied.
fn copied(name: &str) -> Scenario<'static> {
    let mut scenario = Scenario::new(name, Combination::EMBEDDED, TABLES);
    for case in cases() {
        scenario.source.execute(&case.create);
    }
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    scenario.duckpipe.sync_once();
    scenario
}

/// VACUUM FULL must be a statement of its own.
fn change(scenario: &Scenario<'_>, case: &Case) {
    for statement in case.change.split("; ") {
        scenario.source.execute(statement);
    }
}

/// The lake comes to be equal, with what no row tells of too.
fn all_are_equal(scenario: &Scenario<'_>, mut sync: Running<'_>) {
    for case in cases() {
        scenario.wait_for_state(&mut sync, &format!("public.{}", case.table), "streaming");
    }
    let equal = || (scenario.duckpipe.run(&["validate"]).code == Some(0)).then_some(());
    wait_for("validate finds all tables, and them equal", MINUTE, equal, || sync.tail());
    sync.terminate().expect(0);
    let tables: Vec<String> = cases().iter().map(|case| format!("public.{}", case.table)).collect();
    scenario.assert_equal(&tables.iter().map(String::as_str).collect::<Vec<_>>());
    scenario.duckpipe.run(&["validate", "--files"]).expect(0);
}

#[test]
fn while_sync_runs() {
    let scenario = copied("rare_runs");
    let mut sync = scenario.duckpipe.sync();
    for case in cases() {
        change(&scenario, &case);
        scenario.wait_for_state(&mut sync, &format!("public.{}", case.table), "streaming");
    }
    all_are_equal(&scenario, sync);
}

#[test]
fn while_nobody_runs() {
    let scenario = copied("rare_rests");
    cases().iter().for_each(|case| change(&scenario, case));
    all_are_equal(&scenario, scenario.duckpipe.sync());
}

/// A table that stopped for its values, which are mended at the source: it is copied again after a while, and nobody has to ask.
#[test]
fn a_table_comes_back_by_itself() {
    let mut scenario = Scenario::new("rare_back", Combination::EMBEDDED, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric(10,2)); INSERT INTO t SELECT i, 1.25 FROM generate_series(1, 50) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    scenario.converge(&["public.t", "public.other"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let mut sync = scenario.duckpipe.sync();
    scenario.source.execute("UPDATE t SET n = 'NaN' WHERE id = 7");
    scenario.wait_for_state(&mut sync, "public.t", "errored");
    scenario.source.execute("UPDATE t SET n = 2.5 WHERE id = 7; INSERT INTO other VALUES (2)");
    scenario.wait_for_state(&mut sync, "public.other", "streaming");
    let lsn = scenario.source.lsn();
    sync.wait_until("t is back", 3 * MINUTE, |status| status.all("streaming") && status.applied_lsn() >= Some(lsn));
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.other"]);
}

/// A column that comes, with values, after the look at the table and before the snapshot that it is copied at: until a transaction
/// of somebody else's ends, no slot is made.
#[test]
fn altered_while_a_copy_begins() {
    let scenario = Scenario::new("rare_begins", Combination::EMBEDDED, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)",
    );
    let somebody = scenario.source.connect();
    let altered_before_the_slot = |column: &str| {
        let made = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE database = '{}' AND confirmed_flush_lsn IS NULL",
            scenario.source.name()
        );
        wait_for("a slot waits", MINUTE, || (scenario.source.number(&made) == 1).then_some(()), String::new);
        scenario.source.execute(&format!("ALTER TABLE t ADD {column} int"));
        scenario.source.execute(&format!("UPDATE t SET {column} = id WHERE id > 10"));
        somebody.execute("COMMIT");
    };
    somebody.execute("BEGIN; INSERT INTO other VALUES (2)");
    let mut sync = scenario.duckpipe.sync();
    altered_before_the_slot("first");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    somebody.execute("BEGIN; INSERT INTO other VALUES (3)");
    scenario.duckpipe.run(&["tables", "resync", "public.t"]).expect(0);
    altered_before_the_slot("second");
    scenario.wait_for_state(&mut sync, "public.t", "streaming");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.other"]);
}
