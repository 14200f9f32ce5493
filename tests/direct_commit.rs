//! duckpipe writes DuckLake's catalog itself. The oracle: the same changes made by stock DuckDB's own statements in a twin lake
//! (`DELETE … USING`, `TRUNCATE` and `ducklake_add_data_files`) must read the same, now, in every version and in the change feed.
//!
//! And stock DuckDB must be able to go on from what duckpipe wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Combination, Lake, NativeLake, StoreKind};
use crate::scenario::{Files, Scenario, seed};

const FLUSHES: usize = 18;
const COLUMNS: &str = "k INTEGER, part VARCHAR, n BIGINT, amount DECIMAL(10,2), v VARCHAR, f DOUBLE";
const TABLES: [&str; 2] = ["a", "b"];

type Key = (i32, String);

/// The columns beside the key, as literals that both engines read alike.
type Row = String;

#[test]
fn native_twin_duckdb_local() {
    let trial = twin("twin_duckdb_local", Combination::EMBEDDED, 0x7213);
    native_writes_on_top(&trial);
}

#[test]
fn native_twin_postgres_local() {
    twin("twin_postgres_local", Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }, 0x7214);
}

fn twin(name: &str, combination: Combination, default_seed: u64) -> Scenario<'static> {
    let seed = seed(name, default_seed);
    // One flush for each run: the interval is longer than a run.
    let rest = "[sync]\nflush_interval = \"60s\"\n[[tables]]\nsource = \"public.*\"\n";
    let scenario = Scenario::new(name, combination, rest);
    let twin = Lake::new(Combination::EMBEDDED, &format!("{name}_native"));
    let native = twin.open_native_writable();
    let files = scenario.duckpipe.folder().join("twin");
    std::fs::create_dir(&files).unwrap();
    native.execute("CREATE SCHEMA IF NOT EXISTS lake.public");
    for table in TABLES {
        scenario.source.execute(&format!(
            "CREATE TABLE {table} (k int, part text, n bigint, amount numeric(10,2), v text, f float8, PRIMARY KEY (k, part)); \
             ALTER TABLE {table} ALTER v SET STORAGE EXTERNAL"
        ));
        native.execute(&format!(
            "CREATE TABLE lake.public.{table} ({COLUMNS}); CREATE TEMP TABLE gone_{table} (k INTEGER, part VARCHAR); \
             CREATE TEMP TABLE new_{table} ({COLUMNS}); \
             CALL lake.set_option('data_inlining_row_limit', 0, schema => 'public', table_name => '{table}')"
        ));
    }
    let random = StdRng::seed_from_u64(seed);
    let mut generator = Generator { random, models: Default::default(), truncated: [false; 2], next: 1 };
    let mut truncates = 0;
    let first = generator.flush(true);
    scenario.source.execute(&first.source);
    native.execute(&first.native(&files, 0));
    scenario.duckpipe.sync_once().expect(0);

    let mut ours = newest(&scenario.lake.open_native());
    let mut theirs = newest(&native);
    let mut versions = vec![(ours, theirs)];
    for flush in 1..=FLUSHES {
        let changes = generator.flush(false);
        scenario.source.execute(&changes.source);
        native.execute(&changes.native(&files, flush));
        scenario.duckpipe.sync_once().expect(0);
        let lake = scenario.lake.open_native();
        let (our_next, their_next) = (newest(&lake), newest(&native));
        assert_eq!(
            (our_next, their_next),
            (ours + 1, theirs + 1),
            "flush {flush}: one version each\n{}",
            changes.source
        );
        for (index, table) in TABLES.into_iter().enumerate() {
            if changes.truncated[index] && !changes.net[index].0.is_empty() {
                // By ending its files, as DuckDB does: not a word of any single row.
                truncates += 1;
                assert_eq!(
                    live_and_ended(&lake, table, our_next),
                    live_and_ended(&native, table, their_next),
                    "flush {flush}, {table}\n{}",
                    changes.source
                );
            }
            assert_eq!(
                state(&lake, table, None),
                state(&native, table, None),
                "flush {flush}, {table}\n{}",
                changes.source
            );
            assert_eq!(
                feed(&lake, table, our_next, our_next),
                feed(&native, table, their_next, their_next),
                "the changes of flush {flush}, {table}\n{}",
                changes.source
            );
        }
        (ours, theirs) = (our_next, their_next);
        versions.push((ours, theirs));
    }

    assert!(truncates > 3, "only {truncates} truncates");
    let lake = scenario.lake.open_native();
    for (ours, theirs) in &versions {
        for table in TABLES {
            let version = format!("{table} at {ours}, of the twin at {theirs}");
            assert_eq!(state(&lake, table, Some(*ours)), state(&native, table, Some(*theirs)), "{version}");
        }
    }
    for table in TABLES {
        // The whole history in one, and the number of rows from the catalog's own sums.
        assert_eq!(
            feed(&lake, table, versions[0].0 + 1, ours),
            feed(&native, table, versions[0].1 + 1, theirs),
            "{table}"
        );
        let rows = state(&native, table, None).len();
        assert_eq!(lake.number(&format!("SELECT count(*) FROM lake.public.{table}")), rows as i64, "{table}");
        // Every column's bounds, which prune files, hold all its values.
        for column in ["k", "part", "n", "amount", "f"] {
            for row in state(&lake, table, None).iter().step_by(7) {
                let Some(value) =
                    &row[["k", "part", "n", "amount", "v", "f"].iter().position(|c| *c == column).unwrap()]
                else {
                    continue;
                };
                let literal = value.replace('\'', "''");
                let sql = format!("SELECT count(*) FROM lake.public.{table} WHERE {column} = '{literal}'");
                assert_eq!(lake.number(&sql), native.number(&sql), "{sql}");
                assert!(native.number(&sql) > 0, "{sql}");
            }
        }
        let ids = format!("SELECT count(*) - count(DISTINCT rowid) FROM lake.public.{table}");
        assert_eq!(lake.number(&ids), 0, "two rows of {table} have one id");
    }
    Files::read(&scenario.lake, &lake).assert_complete();
    drop(lake);
    scenario
}

fn newest(lake: &NativeLake) -> i64 {
    lake.versions().last().expect("a version").id
}

type Rows = Vec<Vec<Option<String>>>;

fn state(lake: &NativeLake, table: &str, version: Option<i64>) -> Rows {
    lake.rows(&format!("SELECT * FROM {} ORDER BY ALL", NativeLake::table(&format!("public.{table}"), version)))
}

/// The table's live data files, whether this version ended some, and whether it deleted rows of one.
fn live_and_ended(lake: &NativeLake, table: &str, version: i64) -> Vec<Option<String>> {
    let catalog = "__ducklake_metadata_lake";
    lake.rows(&format!(
        "SELECT count(*) FILTER (f.end_snapshot IS NULL), count(*) FILTER (f.end_snapshot = {version}) > 0, \
         (SELECT count(*) FROM {catalog}.ducklake_delete_file d WHERE d.table_id = t.table_id AND {version} IN (d.begin_snapshot, d.partial_max)) \
         FROM {catalog}.ducklake_table t LEFT JOIN {catalog}.ducklake_data_file f USING (table_id) WHERE t.table_name = '{table}' GROUP BY t.table_id"
    ))
    .remove(0)
}

/// What the change feed says of some versions, without the row ids and version numbers, which are each lake's own.
fn feed(lake: &NativeLake, table: &str, first: i64, last: i64) -> Rows {
    lake.rows(&format!(
        "SELECT snapshot_id - {first} AS flush, change_type, k, part, n, amount, v, f \
         FROM ducklake_table_changes('lake', 'public', '{table}', {first}, {last}) ORDER BY ALL"
    ))
}

struct Generator {
    random: StdRng,
    models: [BTreeMap<Key, Row>; 2],
    /// The tables that this flush has truncated.
    truncated: [bool; 2],
    next: i32,
}

/// The changes of one flush: as the source's transactions, and what they come to.
struct Changes {
    source: String,
    /// Per table, the keys whose old row goes and the rows that come.
    net: Vec<(BTreeSet<Key>, BTreeMap<Key, Row>)>,
    /// The tables all of whose old rows go at once.
    truncated: [bool; 2],
}

impl Generator {
    fn key(&mut self, table: usize) -> Option<Key> {
        let count = self.models[table].len();
        if count == 0 {
            return None;
        }
        let index = self.random.random_range(0..count);
        self.models[table].keys().nth(index).cloned()
    }

    fn row(&mut self) -> Row {
        let n: i64 = self.random.random_range(-1_000_000_000_000..1_000_000_000_000);
        let value = |random: &mut StdRng, text: String| if random.random_bool(0.1) { "NULL".to_owned() } else { text };
        let amount = value(&mut self.random, format!("{}.{:02}", n % 99_999, n.rem_euclid(100)));
        let length = if self.random.random_bool(0.2) { 400 } else { 1 };
        let v = value(&mut self.random, format!("'{}'", format!("ü'{n}'").repeat(length).replace('\'', "''")));
        let f = value(&mut self.random, format!("{}", n as f64 / 8.0));
        format!("{n}, {amount}, {v}, {f}")
    }

    fn flush(&mut self, first: bool) -> Changes {
        let before = self.models.clone();
        self.truncated = [false; 2];
        let mut source = String::new();
        let transactions = if first { 1 } else { self.random.random_range(1..6) };
        for _ in 0..transactions {
            source += "BEGIN;\n";
            let operations = if first { 300 } else { self.random.random_range(1..25) };
            for _ in 0..operations {
                let table = self.random.random_range(0..TABLES.len());
                let kind = if first { 0 } else { self.random.random_range(0..8) };
                if !first && self.random.random_bool(0.01) {
                    self.truncate(&mut source, table);
                } else {
                    self.operation(&mut source, table, kind);
                }
            }
            source += "COMMIT;\n";
        }
        // Never nothing: the twin would make no version then.
        self.operation(&mut source, 0, 0);
        let net = before
            .iter()
            .zip(&self.models)
            .zip(self.truncated)
            .map(|((before, after), truncated)| {
                let touched = |key: &Key| truncated || source.contains(&touch(key));
                let gone = before.iter().filter(|(key, row)| after.get(*key) != Some(row) || touched(key));
                let new = after.iter().filter(|(key, row)| before.get(*key) != Some(row) || touched(key));
                (gone.map(|(key, _)| key.clone()).collect(), new.map(|(key, row)| (key.clone(), row.clone())).collect())
            })
            .collect();
        Changes { source, net, truncated: self.truncated }
    }

    /// The table is emptied, perhaps after some of its rows were changed, and perhaps loaded again, with keys that it had too.
    fn truncate(&mut self, source: &mut String, table: usize) {
        for kind in [0, 1, 3] {
            self.operation(source, table, kind);
        }
        writeln!(source, "TRUNCATE {};", TABLES[table]).unwrap();
        self.truncated[table] = true;
        let before = std::mem::take(&mut self.models[table]);
        if self.random.random_bool(0.7) {
            for key in before.into_keys().step_by(3) {
                let row = self.row();
                writeln!(source, "INSERT INTO {} VALUES ({}, {row});", TABLES[table], literal(&key)).unwrap();
                self.models[table].insert(key, row);
            }
            (0..40).for_each(|_| self.operation(source, table, 0));
        }
    }

    fn operation(&mut self, source: &mut String, table: usize, kind: u32) {
        let name = TABLES[table];
        let old = self.key(table);
        let (Some(old), 1..) = (old, kind) else {
            let key = (self.next, ["", "x", "it's", "ß"][self.random.random_range(0..4)].to_owned());
            self.next += 1;
            let row = self.row();
            writeln!(source, "INSERT INTO {name} VALUES ({}, {row}); {}", literal(&key), touch(&key)).unwrap();
            self.models[table].insert(key, row);
            return;
        };
        let place = format!("(k, part) = ({})", literal(&old));
        match kind {
            1 | 2 => {
                let row = self.row();
                writeln!(source, "UPDATE {name} SET (n, amount, v, f) = ROW ({row}) WHERE {place}; {}", touch(&old))
                    .unwrap();
                self.models[table].insert(old, row);
            }
            3 => {
                // What is large stays where it is.
                let n: i64 = self.random.random_range(0..1000);
                writeln!(source, "UPDATE {name} SET n = {n} WHERE {place}; {}", touch(&old)).unwrap();
                let row = self.models[table].get_mut(&old).unwrap();
                let rest = row.split_once(", ").unwrap().1.to_owned();
                *row = format!("{n}, {rest}");
            }
            4 => {
                writeln!(source, "DELETE FROM {name} WHERE {place}; {}", touch(&old)).unwrap();
                self.models[table].remove(&old);
            }
            5 => {
                let key = (self.next, old.1.clone());
                self.next += 1;
                writeln!(source, "UPDATE {name} SET k = {} WHERE {place}; {}{}", key.0, touch(&old), touch(&key))
                    .unwrap();
                let row = self.models[table].remove(&old).unwrap();
                self.models[table].insert(key, row);
            }
            6 => {
                let row = self.row();
                writeln!(
                    source,
                    "DELETE FROM {name} WHERE {place}; INSERT INTO {name} VALUES ({}, {row}); {}",
                    literal(&old),
                    touch(&old)
                )
                .unwrap();
                self.models[table].insert(old, row);
            }
            _ => {
                // Comes and goes: leaves no trace.
                let key = (self.next, String::new());
                self.next += 1;
                let row = self.row();
                writeln!(
                    source,
                    "INSERT INTO {name} VALUES ({0}, {row}); UPDATE {name} SET n = 1 WHERE k = {1}; DELETE FROM {name} WHERE k = {1};",
                    literal(&key),
                    key.0
                )
                .unwrap();
            }
        }
    }
}

fn literal(key: &Key) -> String {
    format!("{}, '{}'", key.0, key.1.replace('\'', "''"))
}

/// A comment that says of a key that a statement wrote it: also a row that is written as it was is a change.
fn touch(key: &Key) -> String {
    format!("/*{}*/", key.0)
}

impl Changes {
    /// The same as one native transaction.
    fn native(&self, files: &std::path::Path, flush: usize) -> String {
        let mut prepare = String::new();
        let mut change = "BEGIN;\n".to_owned();
        for ((table, (gone, new)), truncated) in TABLES.iter().zip(&self.net).zip(self.truncated) {
            writeln!(prepare, "DELETE FROM gone_{table}; DELETE FROM new_{table};").unwrap();
            for key in gone {
                writeln!(prepare, "INSERT INTO gone_{table} VALUES ({});", literal(key)).unwrap();
            }
            for (key, row) in new {
                writeln!(prepare, "INSERT INTO new_{table} VALUES ({}, {row});", literal(key)).unwrap();
            }
            if truncated {
                writeln!(change, "TRUNCATE lake.public.{table};").unwrap();
            } else if !gone.is_empty() {
                writeln!(
                    change,
                    "DELETE FROM lake.public.{table} USING gone_{table} g WHERE {table}.k = g.k AND {table}.part = g.part;"
                )
                .unwrap();
            }
            if !new.is_empty() {
                let file = files.join(format!("{table}-{flush}.parquet"));
                writeln!(prepare, "COPY new_{table} TO '{}' (FORMAT parquet);", file.display()).unwrap();
                writeln!(
                    change,
                    "CALL ducklake_add_data_files('lake', '{table}', '{}', schema => 'public');",
                    file.display()
                )
                .unwrap();
            }
        }
        format!("{prepare}{change}COMMIT;")
    }
}

/// In a copy of the lake, stock DuckDB deletes, updates and inserts on top of duckpipe's commits, and reads right.
fn native_writes_on_top(scenario: &Scenario<'_>) {
    let copy = scenario.duckpipe.folder().join("copy");
    let data = copy.join("data");
    std::fs::create_dir(&copy).unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(scenario.lake.data_path()).arg(&data).status().unwrap();
    assert!(copied.success());
    std::fs::copy(scenario.lake.catalog_file(), copy.join("catalog.ducklake")).unwrap();
    // Any session with the extensions will do.
    let native = Lake::new(Combination::EMBEDDED, "twin_on_top").open_native_writable();
    native.execute("DETACH lake");
    native.execute(&format!(
        "ATTACH 'ducklake:{}' AS lake (DATA_PATH '{}', OVERRIDE_DATA_PATH true)",
        copy.join("catalog.ducklake").display(),
        data.display()
    ));
    for table in TABLES {
        let before = newest(&native);
        let history = state(&native, table, Some(before));
        native.execute(&format!("CREATE TEMP TABLE model AS SELECT * FROM lake.public.{table}"));
        for change in [
            "DELETE FROM {t} WHERE k % 3 = 0",
            "UPDATE {t} SET n = n + 1, v = 'native' WHERE k % 3 = 1",
            "INSERT INTO {t} SELECT 100000 + k, part, n, amount, v, f FROM {t} WHERE k % 4 = 0",
            "UPDATE {t} SET f = -f WHERE amount IS NOT NULL",
            "DELETE FROM {t} WHERE f > 0",
        ] {
            native.execute(&change.replace("{t}", "model"));
            native.execute(&change.replace("{t}", &format!("lake.public.{table}")));
            let model = native.rows("SELECT * FROM model ORDER BY ALL");
            assert_eq!(state(&native, table, None), model, "{table}: {change}");
            let count = native.number(&format!("SELECT count(*) FROM lake.public.{table}"));
            assert_eq!(count, model.len() as i64, "{table}: {change}");
        }
        assert_eq!(state(&native, table, Some(before)), history, "{table} at {before}");
        native.execute("DROP TABLE model");
    }
}
