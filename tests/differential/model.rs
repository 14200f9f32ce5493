//! The model of the source at any LSN: a second slot, read with `test_decoding`, replayed into a shadow database.
//!
//! Independent of duckpipe in every part: another slot, another output plugin, and Postgres itself holds the rows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use duckpipe::lsn::Lsn;
use tokio_postgres::SimpleQueryMessage;

use super::decoding::{self, Change, Column, Kind, Value};
use super::schema::{GENERATED, Identity, TABLES, Table};
use super::workload::Workload;
use crate::lab::{Client, Comparison, Database, Fingerprint, Postgres, RUNTIME};
use crate::values;

/// The source's committed transactions and, in the shadow database, what those up to a position made.
pub struct Model {
    shadow: Database<'static>,
    slot: String,
    /// End position and statements of the transactions still to come, in commit order.
    transactions: VecDeque<(Lsn, Vec<(usize, String)>)>,
    /// What each table's rows add up to, until they change again.
    known: BTreeMap<usize, Fingerprint>,
    /// How many transactions were read.
    pub read: usize,
    /// How many TRUNCATEs the shadow database has seen.
    pub truncates: usize,
}

const TRUNCATE: &str = "TRUNCATE ";

/// Makes all tables in a database.
pub fn create_tables(client: &Client) {
    client.execute(values::PREPARE);
    for table in TABLES {
        client.execute(&table.create());
    }
}

impl Model {
    /// The model of `source`, whose tables are empty yet.
    pub fn new(source: &Database<'_>) -> Model {
        let slot = format!("{}_model", source.name());
        source.query(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
        let shadow = Postgres::shared().database(&format!("{}_shadow", source.name()));
        create_tables(&shadow);
        Model { shadow, slot, transactions: VecDeque::new(), known: BTreeMap::new(), read: 0, truncates: 0 }
    }

    /// Reads what was committed since the last time.
    pub fn read(&mut self, source: &Client) {
        // In parts: one answer holds all its rows in memory.
        loop {
            let rows = source.query(&format!(
                "SELECT lsn, data FROM pg_logical_slot_get_changes('{}', NULL, 20000, 'include-xids', '0', 'skip-empty-xacts', '1')",
                self.slot
            ));
            if rows.is_empty() {
                return;
            }
            let mut statements = Vec::new();
            for row in rows {
                let (lsn, line) = (row[0].as_deref().unwrap_or_default(), row[1].as_deref().unwrap_or_default());
                match line {
                    "BEGIN" => statements.clear(),
                    // The position of this row is that of the end of the commit record; see the test below.
                    "COMMIT" => {
                        self.read += 1;
                        self.transactions.push_back((lsn.parse().expect("an LSN"), std::mem::take(&mut statements)));
                    }
                    _ => statements
                        .push(statement(&decoding::change(line).unwrap_or_else(|| panic!("not understood: {line}")))),
                }
            }
        }
    }

    /// Brings the shadow database to the source's state at `lsn`; gives the tables, by index, that transactions up to there changed.
    pub fn advance_to(&mut self, lsn: Lsn) -> BTreeSet<usize> {
        let mut all_changed = BTreeSet::new();
        while self.transactions.front().is_some_and(|(end, _)| *end <= lsn) {
            let Some((_, statements)) = self.transactions.pop_front() else { break };
            all_changed.extend(statements.iter().map(|(table, _)| *table));
            for part in statements.chunks(500) {
                self.known.retain(|table, _| part.iter().all(|(changed, _)| changed != table));
                let sql: Vec<&str> = part.iter().map(|(_, sql)| sql.as_str()).collect();
                let sql = sql.join(";\n");
                let results = RUNTIME
                    .block_on(self.shadow.inner().simple_query(&sql))
                    .unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
                let hits =
                    results.iter().filter(|message| matches!(message, SimpleQueryMessage::CommandComplete(1))).count();
                let truncates = part.iter().filter(|(_, sql)| sql.starts_with(TRUNCATE)).count();
                self.truncates += truncates;
                assert_eq!(hits, part.len() - truncates, "every change must hit one row of the model\n{sql}");
            }
        }
        all_changed
    }

    /// What the rows of a table add up to where the model stands.
    pub fn fingerprint(&mut self, table: usize, comparison: &Comparison) -> Fingerprint {
        self.known.entry(table).or_insert_with(|| comparison.source_fingerprint(&self.shadow)).clone()
    }

    /// The database where the model's rows lie.
    pub fn shadow(&self) -> &Client {
        &self.shadow
    }
}

/// The table's index, and the statement that repeats a change.
fn statement(change: &Change) -> (usize, String) {
    let quoted = |text: &str| if text.starts_with('"') { text.to_owned() } else { format!("\"{text}\"") };
    let name: String = {
        // Both parts quoted, as the schema writes it.
        let (schema, table) = change.table.split_once('.').expect("a schema");
        format!("{}.{}", quoted(schema), quoted(table))
    };
    let index = TABLES.iter().position(|table| table.sql() == name).unwrap_or_else(|| panic!("unknown table {name}"));
    let stored: Vec<&Column> = change.new.iter().filter(|(name, _)| name != GENERATED).collect();
    let literal = |value: &Value| match value {
        Value::Null => "NULL".to_owned(),
        Value::Literal(literal) => literal.clone(),
        Value::Unchanged => panic!("an unchanged value in {change:?}"),
    };
    let condition = |columns: &[Column]| {
        let equal = |(key, _, _): &(&str, &str, _)| {
            let (name, value) = columns.iter().find(|(name, _)| quoted(name) == format!("\"{key}\"")).expect("the key");
            format!("{name} = {}", literal(value))
        };
        TABLES[index].key.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    };
    let sql = match change.kind {
        Kind::Insert => {
            let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
            let literals: Vec<String> = stored.iter().map(|(_, value)| literal(value)).collect();
            format!("INSERT INTO {name} ({}) VALUES ({})", names.join(", "), literals.join(", "))
        }
        Kind::Update => {
            let set = stored.iter().filter(|(_, value)| *value != Value::Unchanged);
            let set: Vec<String> = set.map(|(name, value)| format!("{name} = {}", literal(value))).collect();
            let old = if change.old.is_empty() { &change.new } else { &change.old };
            format!("UPDATE {name} SET {} WHERE {}", set.join(", "), condition(old))
        }
        Kind::Delete => format!("DELETE FROM {name} WHERE {}", condition(&change.old)),
        Kind::Truncate => format!("{TRUNCATE}{name}"),
    };
    (index, sql)
}

#[test]
fn a_commit_of_test_decoding_carries_the_end_of_its_record() {
    let postgres = Postgres::shared();
    let source = postgres.database("differential_commit_lsn");
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t");
    source.query("SELECT pg_create_logical_replication_slot('commit_lsn_text', 'test_decoding'), pg_create_logical_replication_slot('commit_lsn_pgoutput', 'pgoutput')");
    source.execute("INSERT INTO t VALUES (1)");
    source.execute("BEGIN; INSERT INTO t VALUES (2); INSERT INTO t VALUES (3); COMMIT");
    let text = source
        .query("SELECT lsn FROM pg_logical_slot_get_changes('commit_lsn_text', NULL, NULL) WHERE data LIKE 'COMMIT%'");
    // A Commit message: 'C', flags, 8 bytes of the record's position, 8 bytes of its end.
    let binary = source.query(
        "SELECT encode(substr(data, 11, 8), 'hex') FROM pg_logical_slot_get_binary_changes('commit_lsn_pgoutput', NULL, NULL, \
         'proto_version', '1', 'publication_names', 'p') WHERE get_byte(data, 0) = ascii('C')",
    );
    let of = |hex: &str| Lsn(u64::from_str_radix(hex, 16).unwrap());
    assert_eq!(text.len(), 2);
    for (text, binary) in text.iter().zip(&binary) {
        assert_eq!(text[0].as_deref().unwrap().parse::<Lsn>().unwrap(), of(binary[0].as_deref().unwrap()));
    }
    postgres.drop_database("differential_commit_lsn");
}

/// The oracle itself: the model that the second slot feeds ends as the source, and the same seed makes the same source.
#[test]
fn the_model_ends_as_its_source() {
    let postgres = Postgres::shared();
    let mut sums = Vec::new();
    for run in ["first", "second"] {
        let source = postgres.database(&format!("differential_model_{run}"));
        create_tables(&source);
        let mut model = Model::new(&source);
        let mut workload = Workload::new(&source, 7);
        workload.until(600);
        workload.truncate_too();
        workload.until(1_200);
        workload.finish();
        model.read(&source);
        assert_eq!(model.read, workload.commits() as usize);
        model.advance_to(Lsn(u64::MAX));
        let of = |client: &Client, table: &Table| {
            client.text(&format!(
                "SELECT count(*) || ' ' || md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM {} t",
                table.sql()
            ))
        };
        let source_sums: Vec<String> = TABLES.iter().map(|table| of(&source, table)).collect();
        let model_sums: Vec<String> = TABLES.iter().map(|table| of(model.shadow(), table)).collect();
        assert_eq!(source_sums, model_sums);
        assert!(source_sums.iter().all(|sum| !sum.starts_with("0 ")), "{source_sums:?}");
        assert!(model.truncates > 3, "{} truncates", model.truncates);
        assert!(TABLES.iter().any(|table| table.identity == Identity::Index));
        sums.push(source_sums);
        drop((model, workload, source));
        postgres.drop_database(&format!("differential_model_{run}_shadow"));
        postgres.drop_database(&format!("differential_model_{run}"));
    }
    assert_eq!(sums[0], sums[1], "the same seed");
}
