//! The writers: several sessions whose transactions one seeded scheduler interleaves, statement by statement.
//!
//! The scheduler knows the keys that each open transaction has touched and never lets another one wait for them, so that the same
//! seed writes the same transactions in the same order, whatever runs beside.

use std::collections::{BTreeMap, BTreeSet};

use duckpipe::lsn::Lsn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::random;
use super::schema::{Identity, TABLES, Table, quoted};
use crate::lab::{Client, Database};

/// How many sessions write.
const SESSIONS: usize = 5;
/// Small transactions work on the keys below: few, so that each lives several lives.
const SMALL: u32 = 60;
/// Every so many transactions one is huge.
const HUGE_EVERY: u32 = 250;
/// For so many transactions the same tables are written.
const FOCUS: u32 = 24;
/// One key of a table, by the table's index.
type Key = (usize, u32);

/// The writers' state.
pub struct Workload {
    rng: StdRng,
    sessions: Vec<Session>,
    /// The keys whose rows are committed.
    live: BTreeSet<Key>,
    /// The keys that an open transaction touched, and its session.
    touched: BTreeMap<Key, usize>,
    began: u32,
    commits: u32,
    next_id: u64,
    /// Tables are truncated too.
    truncates: bool,
    /// A position before the last commit that left a change.
    before_last_commit: Lsn,
}

struct Session {
    client: Client,
    transaction: Option<Transaction>,
}

/// An open transaction.
#[derive(Default)]
struct Transaction {
    steps: u32,
    huge: bool,
    tables: Vec<usize>,
    /// What it made of keys: live or not.
    changed: BTreeMap<Key, bool>,
    /// What `changed` held before each change, for savepoints.
    undo: Vec<(Key, Option<bool>)>,
    savepoints: Vec<usize>,
    writes: u32,
}

impl Workload {
    /// Writers on a database that has the tables.
    pub fn new(database: &Database<'_>, seed: u64) -> Workload {
        let connect = |_| {
            let client = database.connect();
            // The scheduler lets nobody wait; should it err, that must be an error and not a hang.
            client.execute("SET lock_timeout = '5s'");
            Session { client, transaction: None }
        };
        Workload {
            rng: StdRng::seed_from_u64(seed),
            sessions: (0..SESSIONS).map(connect).collect(),
            live: BTreeSet::new(),
            touched: BTreeMap::new(),
            began: 0,
            commits: 0,
            next_id: 0,
            truncates: false,
            before_last_commit: Lsn::ZERO,
        }
    }

    /// How many transactions that changed something were committed.
    pub fn commits(&self) -> u32 {
        self.commits
    }

    /// A position that is passed when the last commit is, and not before.
    pub fn before_last_commit(&self) -> Lsn {
        self.before_last_commit
    }

    /// From now on TRUNCATE is among the statements. It waits for whoever reads a table, such as the first copy.
    pub fn truncate_too(&mut self) {
        self.truncates = true;
    }

    /// Goes on until `count` transactions are committed.
    pub fn until(&mut self, count: u32) {
        while self.commits < count {
            self.step();
        }
    }

    /// Ends all open transactions.
    pub fn finish(&mut self) {
        for session in 0..SESSIONS {
            if self.sessions[session].transaction.is_some() {
                self.end(session);
            }
        }
    }

    /// One statement of one session.
    pub fn step(&mut self) {
        let session = self.rng.random_range(0..SESSIONS);
        let Some(transaction) = &mut self.sessions[session].transaction else { return self.begin(session) };
        if transaction.steps == 0 {
            return self.end(session);
        }
        transaction.steps -= 1;
        let (huge, savepoints) = (transaction.huge, transaction.savepoints.len());
        let table = transaction.tables[self.rng.random_range(0..transaction.tables.len())];
        if huge {
            return self.huge_statement(session, table);
        }
        if self.truncates && self.rng.random_ratio(1, 100) {
            return self.truncate(session, table);
        }
        match self.rng.random_range(0..100) {
            0..32 => self.insert(session, table),
            32..60 => self.update(session, table),
            60..72 => self.update_key(session, table),
            72..84 => self.delete(session, table),
            84..88 => self.delete_and_insert_again(session, table),
            88..91 => self.exchange_keys(session, table),
            91..95 => self.savepoint(session),
            95..98 if savepoints > 0 => self.roll_back_to_savepoint(session),
            _ => self.update_some(session, table),
        }
    }

    /// One of three tables, other ones every few transactions: tables that rest while others change are a case of their own, and a
    /// flush of three costs less than one of all.
    fn table_in_focus(&mut self) -> usize {
        let focus = (self.began / FOCUS) as usize;
        (focus + [0, 1, 3][self.rng.random_range(0..3)]) % TABLES.len()
    }

    fn begin(&mut self, session: usize) {
        self.began += 1;
        let huge = self.began.is_multiple_of(HUGE_EVERY);
        let table = self.table_in_focus();
        let mut transaction = Transaction { huge, tables: vec![table], ..Transaction::default() };
        if huge {
            transaction.steps = self.rng.random_range(1..=3);
        } else {
            transaction.steps = if self.rng.random_bool(0.5) { 1 } else { self.rng.random_range(2..=10) };
            if transaction.steps > 2 {
                transaction.tables.push(self.table_in_focus());
            }
        }
        self.sessions[session].client.execute("BEGIN");
        self.sessions[session].transaction = Some(transaction);
    }

    fn end(&mut self, session: usize) {
        let commit = self.rng.random_bool(0.88);
        let Some(transaction) = self.sessions[session].transaction.take() else { return };
        self.touched.retain(|_, holder| *holder != session);
        let client = &self.sessions[session].client;
        if !commit {
            return client.execute("ROLLBACK");
        }
        if transaction.changed.is_empty() {
            return client.execute("COMMIT");
        }
        let before = client.lsn();
        client.execute("COMMIT");
        // Rolled back to its first savepoint, it has nothing to say.
        if transaction.writes > 0 {
            self.commits += 1;
        }
        // Rows that came and went within it leave nothing to show.
        if transaction.changed.iter().any(|(key, live)| *live || self.live.contains(key)) {
            self.before_last_commit = before;
        }
        for (key, live) in transaction.changed {
            if live {
                self.live.insert(key);
            } else {
                self.live.remove(&key);
            }
        }
    }

    /// Whether the session's transaction sees a row under the key.
    fn sees(&self, session: usize, key: Key) -> bool {
        let own = self.sessions[session].transaction.as_ref().and_then(|transaction| transaction.changed.get(&key));
        own.copied().unwrap_or_else(|| self.live.contains(&key))
    }

    /// Whether no other open transaction has touched the key.
    fn free(&self, session: usize, key: Key) -> bool {
        self.touched.get(&key).is_none_or(|holder| *holder == session)
    }

    /// A key that the session may write, with a row under it or without; a few tries may find none.
    fn pick(&mut self, session: usize, table: usize, with_row: bool) -> Option<u32> {
        (0..20).find_map(|_| {
            // One in ten of the rows that a huge transaction left.
            let huge = with_row && self.rng.random_ratio(1, 10);
            let number = if huge {
                SMALL + self.rng.random_range(0..TABLES[table].huge)
            } else {
                self.rng.random_range(0..SMALL)
            };
            let key = (table, number);
            (self.free(session, key) && self.sees(session, key) == with_row).then_some(number)
        })
    }

    fn write(&mut self, session: usize, sql: &str, changes: &[(Key, bool)]) {
        self.sessions[session].client.execute(sql);
        let Some(transaction) = &mut self.sessions[session].transaction else { return };
        transaction.writes += 1;
        for (key, live) in changes {
            self.touched.insert(*key, session);
            let before = transaction.changed.insert(*key, *live);
            transaction.undo.push((*key, before));
        }
    }

    fn insert(&mut self, session: usize, table: usize) {
        let Some(number) = self.pick(session, table, false) else { return };
        let row = self.row(&TABLES[table], number);
        self.write(session, &insert(&TABLES[table], &[row]), &[((table, number), true)]);
    }

    fn update(&mut self, session: usize, table: usize) {
        let Some(number) = self.pick(session, table, true) else { return };
        let mut set = self.assignments(&TABLES[table]);
        if TABLES[table].identity == Identity::Index {
            // The primary key, which is not what identifies the row: the WAL shows no old one.
            self.next_id += 1;
            set = format!("{set}, id = {}", self.next_id);
        }
        let sql = format!("UPDATE {} SET {set} WHERE {}", TABLES[table].sql(), condition(&TABLES[table], number));
        self.write(session, &sql, &[((table, number), true)]);
    }

    fn update_key(&mut self, session: usize, table: usize) {
        let (Some(old), Some(new)) = (self.pick(session, table, true), self.pick(session, table, false)) else {
            return;
        };
        let mut set = new_key(&TABLES[table], new);
        if self.rng.random_bool(0.5) {
            set = format!("{set}, {}", self.assignments(&TABLES[table]));
        }
        let sql = format!("UPDATE {} SET {set} WHERE {}", TABLES[table].sql(), condition(&TABLES[table], old));
        self.write(session, &sql, &[((table, old), false), ((table, new), true)]);
    }

    fn delete(&mut self, session: usize, table: usize) {
        let Some(number) = self.pick(session, table, true) else { return };
        let sql = format!("DELETE FROM {} WHERE {}", TABLES[table].sql(), condition(&TABLES[table], number));
        self.write(session, &sql, &[((table, number), false)]);
    }

    fn delete_and_insert_again(&mut self, session: usize, table: usize) {
        let Some(number) = self.pick(session, table, true) else { return };
        let delete = format!("DELETE FROM {} WHERE {}", TABLES[table].sql(), condition(&TABLES[table], number));
        let row = self.row(&TABLES[table], number);
        let sql = format!("{delete}; {}", insert(&TABLES[table], &[row]));
        self.write(session, &sql, &[((table, number), true)]);
    }

    /// a → c, b → a, c → b: each of the three keys is an old and a new one.
    fn exchange_keys(&mut self, session: usize, table: usize) {
        let picks =
            (self.pick(session, table, true), self.pick(session, table, true), self.pick(session, table, false));
        let (Some(a), Some(b), Some(c)) = picks else { return };
        if a == b {
            return;
        }
        let this = &TABLES[table];
        let step =
            |old, new| format!("UPDATE {} SET {} WHERE {}", this.sql(), new_key(this, new), condition(this, old));
        let sql = [step(a, c), step(b, a), step(c, b)].join("; ");
        self.write(session, &sql, &[((table, a), true), ((table, b), true), ((table, c), false)]);
    }

    /// One statement that updates several rows.
    fn update_some(&mut self, session: usize, table: usize) {
        let picks: BTreeSet<u32> = (0..6).filter_map(|_| self.pick(session, table, true)).collect();
        if picks.is_empty() {
            return;
        }
        let set = self.assignments(&TABLES[table]);
        let numbers: Vec<u32> = picks.into_iter().collect();
        let sql = format!("UPDATE {} SET {set} WHERE {}", TABLES[table].sql(), conditions(&TABLES[table], &numbers));
        let changes: Vec<_> = numbers.iter().map(|number| ((table, *number), true)).collect();
        self.write(session, &sql, &changes);
    }

    /// Removes all rows, where no other open transaction has anything to do with the table. None will before this one ends: it has
    /// touched all keys then.
    fn truncate(&mut self, session: usize, table: usize) {
        let all = 0..SMALL + TABLES[table].huge;
        if all.clone().any(|number| !self.free(session, (table, number))) {
            return;
        }
        let changes: Vec<_> = all.map(|number| ((table, number), false)).collect();
        self.write(session, &format!("TRUNCATE {}", TABLES[table].sql()), &changes);
    }

    fn savepoint(&mut self, session: usize) {
        let Some(transaction) = &mut self.sessions[session].transaction else { return };
        transaction.savepoints.push(transaction.undo.len());
        let sql = format!("SAVEPOINT s{}", transaction.savepoints.len());
        self.sessions[session].client.execute(&sql);
    }

    fn roll_back_to_savepoint(&mut self, session: usize) {
        let Some(transaction) = &mut self.sessions[session].transaction else { return };
        let number = transaction.savepoints.len();
        let Some(length) = transaction.savepoints.pop() else { return };
        while transaction.undo.len() > length {
            let Some((key, before)) = transaction.undo.pop() else { break };
            match before {
                Some(live) => transaction.changed.insert(key, live),
                None => transaction.changed.remove(&key),
            };
        }
        transaction.writes = u32::try_from(transaction.undo.len()).unwrap_or(u32::MAX);
        self.sessions[session].client.execute(&format!("ROLLBACK TO SAVEPOINT s{number}; RELEASE SAVEPOINT s{number}"));
    }

    /// Inserts what is missing, updates all, or deletes some of a table's many rows.
    fn huge_statement(&mut self, session: usize, table: usize) {
        let this = &TABLES[table];
        let all: Vec<u32> = (SMALL..SMALL + this.huge).filter(|n| self.free(session, (table, *n))).collect();
        let (there, missing): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|n| self.sees(session, (table, *n)));
        let (sql, changed, live) = if missing.len() > there.len() {
            // A few different rows over and over: what counts is their number.
            let rows: Vec<Row> = (0..20).map(|_| self.row(this, 0)).collect();
            let numbered =
                missing.iter().zip(rows.iter().cycle()).map(|(number, row)| self.renumbered(this, row, *number));
            let rows: Vec<Row> = numbered.collect();
            self.next_id += u64::from(SMALL + this.huge) + 1;
            (insert(this, &rows), missing, true)
        } else if there.is_empty() {
            return;
        } else if self.rng.random_bool(0.6) {
            let set = self.assignments(this);
            (format!("UPDATE {} SET {set} WHERE {}", this.sql(), conditions(this, &there)), there, true)
        } else {
            let part = self.rng.random_range(1..=3);
            let some: Vec<u32> = there.into_iter().filter(|n| part == 3 || n % 3 < part).collect();
            if some.is_empty() {
                return;
            }
            (format!("DELETE FROM {} WHERE {}", this.sql(), conditions(this, &some)), some, false)
        };
        let changes: Vec<_> = changed.into_iter().map(|number| ((table, number), live)).collect();
        self.write(session, &sql, &changes);
    }

    /// All values of a new row.
    fn row(&mut self, table: &Table, number: u32) -> Row {
        self.next_id += 1;
        let mut values = Vec::new();
        if table.identity == Identity::Index {
            values.push(self.next_id.to_string());
        }
        values.extend(table.key.iter().map(|(_, _, part)| random::key(*part, number)));
        values.extend(table.columns.iter().map(|(_, pg_type)| random::value(&mut self.rng, pg_type)));
        for (_, pg_type) in table.large {
            let filled = self.rng.random_bool(0.4);
            values.push(if filled { random::large(&mut self.rng, pg_type) } else { "NULL".to_owned() });
        }
        Row(values)
    }

    /// The row under another key.
    fn renumbered(&self, table: &Table, row: &Row, number: u32) -> Row {
        let mut values = row.0.clone();
        let first = usize::from(table.identity == Identity::Index);
        if first == 1 {
            values[0] = (self.next_id + 1 + u64::from(number)).to_string();
        }
        for (i, (_, _, part)) in table.key.iter().enumerate() {
            values[first + i] = random::key(*part, number);
        }
        if !number.is_multiple_of(16) {
            // Large values in a few of many rows are enough.
            let large = values.len() - table.large.len();
            values[large..].fill("NULL".to_owned());
        }
        Row(values)
    }

    /// New values for some columns. The large ones mostly keep theirs, and then the WAL does not have them.
    fn assignments(&mut self, table: &Table) -> String {
        let mut set = Vec::new();
        let start = self.rng.random_range(0..table.columns.len());
        for i in 0..self.rng.random_range(1..=table.columns.len().min(4)) {
            let (name, pg_type) = table.columns[(start + i) % table.columns.len()];
            set.push(format!("{} = {}", quoted(name), random::value(&mut self.rng, pg_type)));
        }
        for (name, pg_type) in table.large {
            if self.rng.random_ratio(1, 8) {
                let filled = self.rng.random_bool(0.8);
                let value = if filled { random::large(&mut self.rng, pg_type) } else { "NULL".to_owned() };
                set.push(format!("{} = {value}", quoted(name)));
            }
        }
        set.join(", ")
    }
}

/// The values of a row as SQL expressions, in the order of [`columns`].
struct Row(Vec<String>);

fn columns(table: &Table) -> String {
    let mut names = Vec::new();
    if table.identity == Identity::Index {
        names.push("id".to_owned());
    }
    names.extend(table.key.iter().map(|(name, ..)| quoted(name)));
    names.extend(table.columns.iter().chain(table.large).map(|(name, _)| quoted(name)));
    names.join(", ")
}

fn insert(table: &Table, rows: &[Row]) -> String {
    let one = |rows: &[Row]| {
        let lists: Vec<String> = rows.iter().map(|row| format!("({})", row.0.join(", "))).collect();
        format!("INSERT INTO {} ({}) VALUES {}", table.sql(), columns(table), lists.join(", "))
    };
    rows.chunks(1000).map(one).collect::<Vec<_>>().join("; ")
}

fn condition(table: &Table, number: u32) -> String {
    conditions(table, &[number])
}

fn conditions(table: &Table, numbers: &[u32]) -> String {
    let names: Vec<String> = table.key.iter().map(|(name, ..)| quoted(name)).collect();
    let of = |number: &u32| {
        let values: Vec<String> = table
            .key
            .iter()
            .map(|(_, pg_type, part)| format!("({})::{pg_type}", random::key(*part, *number)))
            .collect();
        format!("({})", values.join(", "))
    };
    format!("({}) IN ({})", names.join(", "), numbers.iter().map(of).collect::<Vec<_>>().join(", "))
}

fn new_key(table: &Table, number: u32) -> String {
    let set = table.key.iter().map(|(name, _, part)| format!("{} = {}", quoted(name), random::key(*part, number)));
    set.collect::<Vec<_>>().join(", ")
}
