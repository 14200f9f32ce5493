//! The source as it was at any position: a second database that replays the source's transactions, fed by a slot of its own.
//!
//! The slot decodes with `test_decoding`, so nothing of duckpipe's own decoding is in the model. A transaction is replayed if its end
//! is not past the wanted position, which is the rule for what a lake version with that `lsn` must show.

use std::collections::{HashMap, VecDeque};

use duckpipe::lsn::Lsn;

use super::compare::Comparison;
use super::lake::{NativeLake, Version};
use super::postgres::{Client, Database};

/// A follower of one source database.
#[derive(Debug)]
pub struct Shadow<'a> {
    source: Client,
    slot: String,
    shadow: Database<'a>,
    pending: VecDeque<Transaction>,
    at: Lsn,
    tables: HashMap<String, Table>,
}

#[derive(Debug)]
struct Transaction {
    end: Lsn,
    changes: Vec<String>,
}

/// What replaying needs to know of a table.
#[derive(Debug)]
struct Table {
    key: Vec<String>,
    generated: Vec<String>,
}

impl<'a> Shadow<'a> {
    /// Begins to follow `source`, whose tables must exist and be empty; `definitions` makes the same tables in the shadow.
    #[track_caller]
    pub fn follow(source: &'a Database<'_>, definitions: &str) -> Shadow<'a> {
        let slot = format!("shadow_{}", source.name());
        source.execute(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
        let shadow = source.postgres().database(&format!("{}_shadow", source.name()));
        shadow.execute(definitions);
        // Rows come in the order of the WAL, as they are: no trigger and no foreign key has a say.
        shadow.execute("SET session_replication_role = replica");
        Shadow {
            source: source.connect(),
            slot,
            shadow,
            pending: VecDeque::new(),
            at: Lsn::ZERO,
            tables: HashMap::new(),
        }
    }

    /// The database that now shows the source at the position of the last [`Shadow::advance`].
    pub fn client(&self) -> &Client {
        &self.shadow
    }

    /// Replays all transactions that end at or before `lsn`. Positions must not go back.
    #[track_caller]
    pub fn advance(&mut self, lsn: Lsn) {
        assert!(lsn >= self.at, "the shadow is at {} and can't go back to {lsn}", self.at);
        if self.pending.back().is_none_or(|last| last.end < lsn) {
            self.read();
        }
        while self.pending.front().is_some_and(|next| next.end <= lsn) {
            let Some(transaction) = self.pending.pop_front() else { break };
            let mut sql = String::from("BEGIN;\n");
            for change in &transaction.changes {
                sql += &self.statement(change);
                sql += ";\n";
            }
            self.shadow.execute(&(sql + "COMMIT"));
        }
        self.at = lsn;
    }

    /// Checks prefix consistency: at each of the `versions` that carries an `lsn`, in order, the lake's tables are the source's at that
    /// position; tables under `behind` are left out. Gives how many versions were compared. Tables have the same name on both sides.
    #[track_caller]
    pub fn check_versions(&mut self, lake: &NativeLake, tables: &[&str], versions: &[Version]) -> usize {
        let comparisons: Vec<Comparison> =
            tables.iter().map(|table| Comparison::new(&self.shadow, lake, table, table, &[])).collect();
        let mut compared = 0;
        for version in versions {
            let Some(lsn) = version.lsn() else { continue };
            self.advance(lsn);
            for (table, comparison) in tables.iter().zip(&comparisons) {
                if is_behind(version, table) {
                    continue;
                }
                let (source, found) =
                    (comparison.source_fingerprint(&self.shadow), comparison.lake_fingerprint(lake, Some(version.id)));
                assert_eq!(
                    source, found,
                    "{table} at version {}, {lsn}: source on the left, lake on the right",
                    version.id
                );
            }
            compared += 1;
        }
        compared
    }

    /// Takes everything that is committed by now out of the slot.
    fn read(&mut self) {
        let rows = self.source.query(&format!(
            "SELECT lsn, data FROM pg_logical_slot_get_changes('{}', NULL, NULL, 'include-xids', '0', 'skip-empty-xacts', '1')",
            self.slot
        ));
        let mut changes = Vec::new();
        for mut row in rows {
            let data = row[1].take().unwrap_or_default();
            match data.as_str() {
                "BEGIN" => changes.clear(),
                // The position of this line is the commit record's end.
                "COMMIT" => self.pending.push_back(Transaction {
                    end: row[0].as_deref().and_then(|lsn| lsn.parse().ok()).expect("an LSN"),
                    changes: std::mem::take(&mut changes),
                }),
                _ => changes.push(data),
            }
        }
    }

    /// The statement that does again what a line of `test_decoding` says.
    fn statement(&mut self, line: &str) -> String {
        let rest = line.strip_prefix("table ").unwrap_or_else(|| panic!("not understood: {line}"));
        let (table, rest) = split_outside_quotes(rest, ": ");
        let (operation, rest) = rest.split_once(':').unwrap_or_else(|| panic!("not understood: {line}"));
        if operation == "TRUNCATE" {
            return format!("TRUNCATE {table}");
        }
        if !self.tables.contains_key(table) {
            let described = describe(&self.shadow, table);
            self.tables.insert(table.to_owned(), described);
        }
        let known = &self.tables[table];
        let rest = rest.trim_start();
        match operation {
            "INSERT" => {
                let columns: Vec<(String, String)> =
                    columns(rest).into_iter().filter(|(name, _)| !known.generated.contains(name)).collect();
                let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
                let values: Vec<&str> = columns.iter().map(|(_, value)| value.as_str()).collect();
                format!(
                    "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE VALUES ({})",
                    names.join(", "),
                    values.join(", ")
                )
            }
            "UPDATE" => {
                let (old, new) = match rest.strip_prefix("old-key: ") {
                    Some(both) => {
                        let (old, new) = split_outside_quotes(both, " new-tuple: ");
                        (Some(columns(old)), columns(new))
                    }
                    None => (None, columns(rest)),
                };
                let set: Vec<String> = new
                    .iter()
                    .filter(|(name, value)| value != UNCHANGED && !known.generated.contains(name))
                    .map(|(name, value)| format!("{name} = {value}"))
                    .collect();
                format!("UPDATE {table} SET {} WHERE {}", set.join(", "), known.condition(old.as_ref().unwrap_or(&new)))
            }
            "DELETE" => format!("DELETE FROM {table} WHERE {}", known.condition(&columns(rest))),
            _ => panic!("not understood: {line}"),
        }
    }
}

impl Drop for Shadow<'_> {
    fn drop(&mut self) {
        let slot = &self.slot;
        let _ = self.source.try_execute(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    }
}

impl Table {
    /// Finds the row by its primary key, or by all that there is where the replica identity is another index.
    fn condition(&self, columns: &[(String, String)]) -> String {
        let has = |name: &String| columns.iter().any(|(column, _)| column == name);
        let by_key = !self.key.is_empty() && self.key.iter().all(has);
        let parts: Vec<String> = columns
            .iter()
            .filter(|(name, _)| !by_key || self.key.contains(name))
            .map(|(name, value)| if value == "null" { format!("{name} IS NULL") } else { format!("{name} = {value}") })
            .collect();
        parts.join(" AND ")
    }
}

/// `behind` lists tables by name, in an object or in an array of names or of objects with a name.
fn is_behind(version: &Version, table: &str) -> bool {
    match &version.extra["behind"] {
        serde_json::Value::Object(map) => map.contains_key(table),
        serde_json::Value::Array(entries) => entries.iter().any(|entry| {
            entry == table
                || ["table", "source", "target", "name"].iter().any(|key| entry[*key] == table)
                || entry[0] == table
        }),
        _ => false,
    }
}

fn describe(client: &Client, table: &str) -> Table {
    let names = |sql: &str| client.query(sql).into_iter().filter_map(|mut row| row[0].take()).collect();
    Table {
        key: names(&format!(
            "SELECT quote_ident(attname) FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey) \
             WHERE indrelid = '{}'::regclass AND indisprimary",
            table.replace('\'', "''")
        )),
        generated: names(&format!(
            "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = '{}'::regclass AND attgenerated <> ''",
            table.replace('\'', "''")
        )),
    }
}

const UNCHANGED: &str = "unchanged-toast-datum";

/// Splits at the first `separator` that is not within `'…'` or `"…"`.
fn split_outside_quotes<'t>(text: &'t str, separator: &str) -> (&'t str, &'t str) {
    let mut quote = None;
    for (at, byte) in text.bytes().enumerate() {
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if text.as_bytes()[at..].starts_with(separator.as_bytes()) => {
                return (&text[..at], &text[at + separator.len()..]);
            }
            None if byte == b'\'' || byte == b'"' => quote = Some(byte),
            None => {}
        }
    }
    panic!("no {separator:?} in {text}");
}

/// `id[integer]:1 "V"[text]:'it''s'` → names and values, both ready for SQL.
fn columns(text: &str) -> Vec<(String, String)> {
    let bytes = text.as_bytes();
    let mut columns = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (name, after) = split_outside_quotes(&text[at..], "[");
        at = text.len() - after.len();
        // The type may hold brackets of its own, in pairs: integer[].
        let mut depth = 1;
        while depth > 0 {
            match bytes[at] {
                b'[' => depth += 1,
                b']' => depth -= 1,
                _ => {}
            }
            at += 1;
        }
        assert_eq!(bytes[at], b':', "no value at {at} of {text}");
        at += 1;
        let start = at;
        let mut quoted = false;
        while at < bytes.len() && (quoted || bytes[at] != b' ') {
            quoted ^= bytes[at] == b'\'';
            at += 1;
        }
        let value = &text[start..at];
        // Numbers come bare, NaN and Infinity too, which only a literal in quotes can be.
        let bare = !value.contains('\'') && value != "null" && value != UNCHANGED;
        columns.push((name.to_owned(), if bare { format!("'{value}'") } else { value.to_owned() }));
        at += 1;
    }
    columns
}
