//! Everything that a source can do to its tables, in any order, while `sync` dies again and again: the lake comes to show the source.
//!
//! Each seed makes a source of its own. In each round `sync` follows and is killed at some moment, while rows and columns change, tables and
//! partitions come and go, are renamed and truncated, in transactions that are sent in blocks and that are rolled back whole or in part;
//! then the writers rest, and every table must be equal. `DUCKPIPE_TEST_SEED` says where the seeds begin, `DUCKPIPE_UPHEAVAL_SEEDS` how
//! many there are.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Combination, Comparison, NativeLake, Running, StoreKind};
use crate::scenario::Scenario;

/// Seeds by default.
const SEEDS: u64 = 1;
/// In each round the process is killed once.
const ROUNDS: u32 = 3;
const STEPS: u32 = 14;
/// How long the lake may take to show the source, copies included.
const PATIENCE: Duration = Duration::from_secs(300);

const TYPES: [&str; 8] = ["int", "bigint", "text", "numeric(8,2)", "date", "bool", "int[]", "text[]"];

#[derive(Clone, Debug)]
struct Column {
    name: String,
    sql_type: String,
}

#[derive(Clone, Debug)]
struct Table {
    name: String,
    /// Without `id`, `part` and `large`.
    columns: Vec<Column>,
    /// Its partitions, each with the one value of `part` that it takes; `None`: an ordinary table.
    partitions: Option<Vec<(String, u32)>>,
    /// REPLICA IDENTITY FULL without a primary key.
    keyless: bool,
}

struct Upheaval<'a> {
    scenario: &'a Scenario<'a>,
    random: StdRng,
    tables: Vec<Table>,
    paused: Vec<String>,
    next: u32,
    met: BTreeMap<&'static str, u32>,
}

impl<'a> Upheaval<'a> {
    fn new(scenario: &'a Scenario<'a>, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let mut upheaval =
            Upheaval { scenario, random, tables: Vec::new(), paused: Vec::new(), next: 0, met: BTreeMap::new() };
        for (partitioned, keyless) in [(false, false), (true, false), (false, true)] {
            let sql = upheaval.create(partitioned, keyless);
            upheaval.run(&sql);
        }
        upheaval
    }

    fn run(&self, sql: &str) {
        if std::env::var_os("DUCKPIPE_UPHEAVAL_TELL").is_some() {
            println!("{sql};");
        }
        self.scenario.source.execute(sql);
    }

    fn met(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn pick(&mut self) -> usize {
        self.random.random_range(0..self.tables.len())
    }

    // --- tables ------------------------------------------------------------------------------------------------------

    fn create(&mut self, partitioned: bool, keyless: bool) -> String {
        let name = format!("t{}", self.number());
        self.create_as(&name, partitioned, keyless)
    }

    fn create_as(&mut self, name: &str, partitioned: bool, keyless: bool) -> String {
        let key = match (partitioned, keyless) {
            (true, _) => ", part int NOT NULL, PRIMARY KEY (id, part)",
            (false, false) => ", PRIMARY KEY (id)",
            (false, true) => "",
        };
        let by = if partitioned { " PARTITION BY LIST (part)" } else { "" };
        let mut sql = format!("CREATE TABLE {name} (id bigint NOT NULL, n int, large text{key}){by}");
        if keyless {
            sql += &format!("; ALTER TABLE {name} REPLICA IDENTITY FULL");
        }
        let columns = vec![Column { name: "n".into(), sql_type: "int".into() }];
        let partitions = partitioned.then(Vec::new);
        self.tables.push(Table { name: name.to_owned(), columns, partitions, keyless });
        let table = self.tables.len() - 1;
        if partitioned {
            for _ in 0..2 {
                sql += &format!("; {}", self.new_partition(table));
            }
        } else {
            sql += &format!("; ALTER TABLE {name} ALTER large SET STORAGE EXTERNAL");
        }
        format!("{sql}; {}", self.insert(table, 60))
    }

    fn new_partition(&mut self, table: usize) -> String {
        let number = self.number();
        let name = format!("part{number}");
        let root = self.tables[table].name.clone();
        if let Some(partitions) = &mut self.tables[table].partitions {
            partitions.push((name.clone(), number));
        }
        format!("CREATE TABLE {name} PARTITION OF {root} FOR VALUES IN ({number})")
    }

    /// Something is done to a partition of a table that has one.
    fn partition(&mut self) -> Option<String> {
        let with_parts: Vec<usize> = (0..self.tables.len())
            .filter(|at| self.tables[*at].partitions.as_ref().is_some_and(|p| p.len() > 1))
            .collect();
        let table = *with_parts.choose(&mut self.random)?;
        let root = self.tables[table].name.clone();
        let count = self.tables[table].partitions.as_ref().map_or(0, Vec::len);
        let at = self.random.random_range(0..count);
        let (name, value) = self.tables[table].partitions.as_ref().expect("partitions")[at].clone();
        let forget = |tables: &mut Vec<Table>| drop(tables[table].partitions.as_mut().expect("partitions").remove(at));
        Some(match self.random.random_range(0..6) {
            0 | 1 => {
                self.met("partitions made");
                format!("{}; {}", self.new_partition(table), self.insert(table, 30))
            }
            2 => {
                self.met("partitions attached");
                let (name, value) = (format!("part{}", self.number()), self.next);
                let columns = self.tables[table].columns.clone();
                let list: Vec<String> = columns.iter().map(|column| format!(", {}", column.name)).collect();
                let values: Vec<String> =
                    columns.iter().map(|column| format!(", {}", self.value(&column.sql_type, "i"))).collect();
                self.tables[table].partitions.as_mut().expect("partitions").push((name.clone(), value));
                format!(
                    "CREATE TABLE {name} (LIKE {root} INCLUDING ALL); INSERT INTO {name} (id, part{}) SELECT i, {value}{} \
                     FROM generate_series(1, 20) i; ALTER TABLE {root} ATTACH PARTITION {name} FOR VALUES IN ({value})",
                    list.concat(),
                    values.concat()
                )
            }
            3 => {
                self.met("partitions detached");
                let columns = self.tables[table].columns.clone();
                forget(&mut self.tables);
                // It is a table of its own from then on; its `part` is a column like others.
                let part = Column { name: "part".into(), sql_type: "part".into() };
                let columns = columns.into_iter().chain([part]).collect();
                self.tables.push(Table { name: name.clone(), columns, partitions: None, keyless: false });
                format!("ALTER TABLE {root} DETACH PARTITION {name}")
            }
            4 => {
                self.met("partitions dropped");
                forget(&mut self.tables);
                format!("DROP TABLE {name}")
            }
            _ => {
                self.met("partitions truncated");
                let _ = value;
                format!("TRUNCATE {name}")
            }
        })
    }

    /// Tables come, go, and get other names.
    fn table(&mut self) -> String {
        let table = self.pick();
        let name = self.tables[table].name.clone();
        match self.random.random_range(0..11) {
            0..3 if self.tables.len() < 8 => {
                self.met("tables made");
                let (partitioned, keyless) = (self.random.random_bool(0.3), self.random.random_bool(0.3));
                self.create(partitioned, keyless && !partitioned)
            }
            0..6 => {
                self.met("tables renamed");
                let new = format!("r{}", self.number());
                self.tables[table].name.clone_from(&new);
                format!("ALTER TABLE {name} RENAME TO {new}")
            }
            6..8 if self.tables.len() > 3 => {
                self.met("tables dropped");
                self.tables.remove(table);
                format!("DROP TABLE {name}")
            }
            8 => {
                self.met("tables made anew");
                self.tables.remove(table);
                format!("DROP TABLE {name}; {}", self.create_as(&name, false, false))
            }
            9 if self.tables.len() > 3 => {
                self.met("tables replaced by others");
                let gone = self.tables.remove(table).name;
                let other = self.pick();
                let other = std::mem::replace(&mut self.tables[other].name, gone);
                format!("DROP TABLE {name}; ALTER TABLE {other} RENAME TO {name}")
            }
            _ => {
                self.met("several truncated");
                let other = self.pick();
                let other = self.tables[other].name.clone();
                let (table, again) = (self.tables.iter().position(|known| known.name == name).expect("it"), 10);
                format!("TRUNCATE {name}, {other} RESTART IDENTITY CASCADE; {}", self.insert(table, again))
            }
        }
    }

    // --- columns -----------------------------------------------------------------------------------------------------

    fn column(&mut self) -> String {
        let table = self.pick();
        let name = self.tables[table].name.clone();
        let own: Vec<usize> =
            (0..self.tables[table].columns.len()).filter(|at| self.tables[table].columns[*at].name != "part").collect();
        let column = own.choose(&mut self.random).copied();
        match (self.random.random_range(0..12), column) {
            (4 | 5, Some(column)) if own.len() > 1 => {
                self.met("columns dropped");
                let gone = self.tables[table].columns.remove(column).name;
                format!("ALTER TABLE {name} DROP {gone}")
            }
            (6 | 7, Some(column)) => {
                self.met("columns renamed");
                let new = format!("c{}", self.number());
                let old = std::mem::replace(&mut self.tables[table].columns[column].name, new.clone());
                format!("ALTER TABLE {name} RENAME {old} TO {new}")
            }
            (8 | 9, Some(column)) => {
                let Column { name: changed, sql_type } = self.tables[table].columns[column].clone();
                let (to, using) = match sql_type.as_str() {
                    "int" => ("bigint", String::new()),
                    "bigint" => ("text", format!(" USING {changed}::text")),
                    "numeric(8,2)" => ("numeric(12,2)", String::new()),
                    "date" => ("text", format!(" USING {changed}::text")),
                    _ => ("text", format!(" USING {changed}::text")),
                };
                self.met("types changed");
                self.tables[table].columns[column].sql_type = to.to_owned();
                // A default may not fit the new type.
                format!("ALTER TABLE {name} ALTER {changed} DROP DEFAULT, ALTER {changed} TYPE {to}{using}")
            }
            (10, Some(column)) => {
                self.met("columns replaced");
                // Its place among the attnums is another one.
                let gone = self.tables[table].columns.remove(column);
                let sql = format!("ALTER TABLE {name} DROP {0}, ADD {0} {1}", gone.name, gone.sql_type);
                self.tables[table].columns.push(gone);
                sql
            }
            _ => {
                self.met("columns added");
                let new = format!("c{}", self.number());
                let sql_type = *TYPES.choose(&mut self.random).expect("a type");
                let default = match self.random.random_range(0..6) {
                    0..2 => String::new(),
                    2 => format!(" NOT NULL DEFAULT {}", constant(sql_type)),
                    5 if sql_type == "text" => " DEFAULT md5(random()::text)".to_owned(),
                    _ => format!(" DEFAULT {}", constant(sql_type)),
                };
                self.tables[table].columns.push(Column { name: new.clone(), sql_type: sql_type.to_owned() });
                format!("ALTER TABLE {name} ADD {new} {sql_type}{default}")
            }
        }
    }

    // --- rows --------------------------------------------------------------------------------------------------------

    /// An expression over the row's number.
    fn value(&mut self, sql_type: &str, row: &str) -> String {
        let number = self.random.random_range(1..1000);
        match sql_type {
            "int" | "bigint" => format!("{row} % 100000 * {number}"),
            "bool" => format!("{row} % 2 = {}", number % 2),
            "date" => format!("date '2026-01-01' + ({row} % 300)::int + {}", number % 50),
            "text" => format!("'v{number} ' || {row}"),
            "int[]" => format!("ARRAY[({row} % 1000)::int, NULL, {number}]"),
            // Some are stored beside their rows.
            "text[]" if number % 2 == 0 => {
                format!("(SELECT array_agg(md5(({row} + k)::text)) FROM generate_series(1, 90) k)")
            }
            "text[]" => format!("ARRAY['v{number}', {row}::text, NULL]"),
            _ => format!("({row} % 1000) + {number}::numeric / 100"),
        }
    }

    fn insert(&mut self, table: usize, rows: u32) -> String {
        let Table { name, columns, partitions, keyless } = self.tables[table].clone();
        let first = self.number() * 10_000;
        let mut names = vec!["id".to_owned(), "large".to_owned()];
        let mut values = vec!["i".to_owned(), "CASE WHEN i % 9 = 0 THEN repeat(md5(i::text), 90) END".to_owned()];
        if let Some(partitions) = &partitions {
            if partitions.is_empty() {
                return "SELECT 1".to_owned();
            }
            let all: Vec<String> = partitions.iter().map(|(_, value)| value.to_string()).collect();
            names.push("part".to_owned());
            values.push(format!("(ARRAY[{}])[1 + i % {}]", all.join(", "), all.len()));
        }
        for column in &columns {
            names.push(column.name.clone());
            let value = if column.sql_type == "part" { "0".to_owned() } else { self.value(&column.sql_type, "i") };
            values.push(value);
        }
        // Equal rows, where they may be.
        let id = if keyless { "j / 3" } else { "j" };
        format!(
            "INSERT INTO {name} ({}) SELECT {} FROM generate_series({first}, {}) s (j), LATERAL (SELECT ({})::bigint) x (i)",
            names.join(", "),
            values.join(", "),
            first + rows - 1,
            id
        )
    }

    fn change(&mut self) -> String {
        let table = self.pick();
        let name = self.tables[table].name.clone();
        let modulo = self.random.random_range(3..9);
        let rest = self.random.random_range(0..modulo);
        let columns: Vec<Column> =
            self.tables[table].columns.iter().filter(|column| column.sql_type != "part").cloned().collect();
        let column = columns.choose(&mut self.random).cloned();
        match (self.random.random_range(0..12), column) {
            (0..4, _) => {
                let rows = self.random.random_range(1..40);
                self.insert(table, rows)
            }
            (4 | 5, _) => format!("DELETE FROM {name} WHERE id % {modulo} = {rest}"),
            (6, _) => format!(
                "UPDATE {name} SET id = id + {} WHERE id % {modulo} = {rest}",
                i64::from(self.number()) * 10_000_000
            ),
            (7, _) if self.random.random_bool(0.5) => {
                self.met("inserted again");
                format!(
                    "WITH gone AS (DELETE FROM {name} WHERE id % {modulo} = {rest} RETURNING *) INSERT INTO {name} SELECT * FROM gone"
                )
            }
            (7, _) => format!("UPDATE {name} SET large = repeat('x', 2500) WHERE id % {modulo} = {rest}"),
            (8, _) if !self.tables[table].keyless => {
                self.met("in blocks");
                self.insert(table, 2500)
            }
            (_, Some(column)) => {
                let value = self.value(&column.sql_type, "id");
                format!("UPDATE {name} SET {} = {value} WHERE id % {modulo} = {rest}", column.name)
            }
            (_, None) => self.insert(table, 5),
        }
    }

    /// A transaction of several statements, some of which are taken back.
    fn transaction(&mut self) -> String {
        let before = self.tables.clone();
        let mut sql = vec!["BEGIN".to_owned()];
        for _ in 0..self.random.random_range(1..5) {
            match self.random.random_range(0..10) {
                0 => {
                    self.met("changed in a transaction");
                    let ddl = self.column();
                    sql.push(ddl);
                }
                1 => {
                    self.met("savepoints rolled back");
                    let known = self.tables.clone();
                    let inner = if self.random.random_bool(0.4) { self.column() } else { self.change() };
                    sql.push(format!("SAVEPOINT s; {inner}; {}; ROLLBACK TO s", self.change()));
                    self.tables = known;
                }
                _ => {
                    let change = self.change();
                    sql.push(change);
                }
            }
        }
        if self.random.random_bool(0.12) {
            self.met("rolled back");
            self.tables = before;
            sql.push("ROLLBACK".into());
        } else {
            sql.push("COMMIT".into());
        }
        sql.join("; ")
    }

    fn step(&mut self) {
        let sql = match self.random.random_range(0..20) {
            0..11 => self.transaction(),
            11..14 => self.column(),
            14..16 => match self.partition() {
                Some(sql) => sql,
                None => self.transaction(),
            },
            16..18 => self.table(),
            18 => return self.command(),
            _ => self.change(),
        };
        self.run(&sql);
    }

    /// Somebody wants something of a table that the pipeline knows.
    fn command(&mut self) {
        let table = self.pick();
        let name = format!("public.{}", self.tables[table].name);
        let wanted = *["pause", "resync"].choose(&mut self.random).expect("a command");
        // It may be unknown as yet, or nobody may answer just now.
        if self.scenario.duckpipe.run(&["tables", wanted, &name]).code == Some(0) {
            if wanted == "pause" {
                self.met("paused");
                self.paused.push(name);
            } else {
                self.met("copied on demand");
            }
        }
    }

    // --- the lake ----------------------------------------------------------------------------------------------------

    /// Why the lake does not show the source yet; `None`: it does.
    fn differs(&self, native: &NativeLake, status: &serde_json::Value) -> Option<String> {
        for table in &self.tables {
            let name = format!("public.{}", table.name);
            let mut rows = status["tables"].as_array().into_iter().flatten();
            // One that has the name of a dropped one is called as before in the lake.
            let row = rows.find(|row| row["source"] == name.as_str() && row["state"] == "streaming");
            let target = row.and_then(|row| row["target"].as_str()).unwrap_or(&name).to_owned();
            let there = native.number(&format!(
                "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'lake' AND concat_ws('.', schema_name, table_name) = '{target}'",
            ));
            if there == 0 {
                return Some(format!("{name} is not in the lake"));
            }
            // A type that changed last may not be followed yet.
            let as_source = |lake: &str| lake.replace("VARCHAR", "text").replace("DECIMAL", "numeric").to_lowercase();
            let lake = native.columns(&target, None);
            let lake: Vec<String> = lake.iter().map(|(name, kind)| format!("{name} {}", as_source(kind))).collect();
            let source = self.scenario.source.text(&format!(
                "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = '{}'::regclass AND attnum > 0 \
                 AND NOT attisdropped",
                table.name
            ));
            if lake.join(", ") != source {
                return Some(format!("{name} has the columns {} in the lake, {source} in the source", lake.join(", ")));
            }
            let comparison = Comparison::new(&self.scenario.source, native, &name, &target, &[]);
            if let Err(difference) = comparison.run(&self.scenario.source, native) {
                return Some(difference);
            }
        }
        None
    }

    /// Waits until the lake shows the source.
    fn settle(&mut self, sync: &mut Running<'a>) {
        for name in std::mem::take(&mut self.paused) {
            // It may have got another name since, or be gone.
            self.scenario.duckpipe.run(&["tables", "resume", &name]);
        }
        let begun = Instant::now();
        let lsn = self.scenario.source.lsn();
        loop {
            if !sync.runs() {
                self.copy_anew(sync);
            }
            let why = match self.scenario.duckpipe.try_status() {
                Err(why) => why,
                Ok(status) => {
                    self.resume_renamed(&status.0);
                    match (status.applied_lsn() >= Some(lsn), self.unsettled(&status.0)) {
                        (false, _) => format!("it is at {:?}, before {lsn}", status.applied_lsn()),
                        (true, Some(why)) => format!("{why}\n{:#}", status.0["tables"]),
                        (true, None) => match self.differs(&self.scenario.lake.open_beside_sync(), &status.0) {
                            None => match self.scenario.duckpipe.run(&["validate"]) {
                                equal if equal.code == Some(0) => return,
                                // A type that changed last, with no row behind it, is followed next.
                                left_out if left_out.code == Some(5) => left_out.output(),
                                // A copy has begun.
                                not_now if not_now.output().contains("gave no consistent point") => not_now.output(),
                                not_now if not_now.output().contains("stream is not under way") => not_now.output(),
                                other => panic!("validate: {}", other.output()),
                            },
                            Some(why) => format!("{why}\n{:#}", status.0["tables"]),
                        },
                    }
                }
            };
            assert!(begun.elapsed() < PATIENCE, "after {PATIENCE:?}: {why}\n{}", sync.tail());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Postgres itself fails to decode some transactions that roll a savepoint with DDL in it back and go on with DDL. `sync` ends
    /// with that, and is told to copy anew.
    fn copy_anew(&mut self, sync: &mut Running<'a>) {
        let anew = self.scenario.duckpipe.start(&["sync", "--resnapshot"]);
        let ended = std::mem::replace(sync, anew).wait(PATIENCE).expect(4);
        assert!(ended.stderr.contains("unexpected duplicate for tablespace"), "{}", ended.output());
        self.met("not decoded by Postgres");
    }

    /// Why the pipeline is on its way yet: a table is not followed, or one that the source has no more still is.
    fn unsettled(&self, status: &serde_json::Value) -> Option<String> {
        let rows = || status["tables"].as_array().into_iter().flatten();
        let streams = |name: &str| rows().any(|row| row["source"] == name && row["state"] == "streaming");
        rows().find_map(|row| {
            let name = row["source"].as_str().unwrap_or_default();
            let there = self.tables.iter().any(|table| format!("public.{}", table.name) == name);
            (there != streams(name)).then(|| format!("{name} is {}", row["state"]))
        })
    }

    /// Tables that were renamed while they were paused go on by their new names.
    fn resume_renamed(&self, status: &serde_json::Value) {
        for table in status["tables"].as_array().into_iter().flatten().filter(|table| table["state"] == "paused") {
            let name = table["source"].as_str().unwrap_or_default();
            self.scenario.duckpipe.run(&["tables", "resume", name]);
        }
    }
}

fn constant(sql_type: &str) -> &'static str {
    match sql_type {
        "int" | "bigint" => "7",
        "bool" => "true",
        "date" => "'2026-02-03'",
        "text" => "'default'",
        "int[]" => "'{1,NULL}'",
        "text[]" => "'{a,b}'",
        _ => "1.25",
    }
}

fn run(name: &str, combination: Combination, first: u64) {
    let asked = |variable: &str, default: u64| {
        std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
    };
    let first = asked("DUCKPIPE_TEST_SEED", first);
    let mut met: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in first..first + asked("DUCKPIPE_UPHEAVAL_SEEDS", SEEDS) {
        println!("{name}: DUCKPIPE_TEST_SEED={seed}");
        let begun = Instant::now();
        let rest = "[sync]\nflush_interval = \"50ms\"\nsnapshot_range = \"8KiB\"\n[[tables]]\nsource = \"public.*\"\n";
        let mut scenario = Scenario::new(&format!("{name}_{seed}"), combination, rest);
        scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
        let scenario = scenario;
        let mut upheaval = Upheaval::new(&scenario, seed);
        scenario.duckpipe.sync_once().expect(0);
        for _ in 0..ROUNDS {
            let mut sync = Some(scenario.duckpipe.sync());
            let (dies, returns) = (upheaval.random.random_range(0..STEPS), upheaval.random.random_range(0..4));
            for step in 0..STEPS {
                upheaval.step();
                std::thread::sleep(Duration::from_millis(upheaval.random.random_range(0..250)));
                if step == dies {
                    if let Some(sync) = sync.take() {
                        sync.kill9();
                    }
                    upheaval.met("killed");
                }
                if sync.is_none() && step >= dies + returns {
                    sync = Some(scenario.duckpipe.sync());
                }
            }
            let mut sync = sync.unwrap_or_else(|| scenario.duckpipe.sync());
            upheaval.settle(&mut sync);
            sync.terminate().expect(0);
        }
        if scenario.duckpipe.run(&["validate"]).code == Some(5) {
            // The last look found what only a copy mends, of a table that is equal without it.
            let mut sync = scenario.duckpipe.sync();
            upheaval.settle(&mut sync);
            sync.terminate().expect(0);
        }
        scenario.duckpipe.run(&["validate"]).expect(0);
        scenario.duckpipe.run(&["validate", "--files"]).expect(0);
        println!("{name}: seed {seed}: {} s, {:?}", begun.elapsed().as_secs(), upheaval.met);
        upheaval.met.into_iter().for_each(|(what, times)| *met.entry(what).or_default() += times);
    }
    println!("{name}: {met:?}");
}

#[test]
fn any_order_duckdb() {
    run("upheaval_duckdb", Combination::EMBEDDED, 0);
}

#[test]
fn any_order_postgres() {
    run("upheaval_postgres", Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }, 1000);
}
