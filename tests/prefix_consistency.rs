//! Promise 1: every version that carries an LSN shows all tables as of one moment of the source.
//!
//! The bank: money moves between accounts in three tables, in every way that a row can change, and is never made or lost.
//! A version that showed half a transaction, or one table ahead of another, would have another total.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::{CatalogKind, Client, Combination, Duckpipe, NativeLake, Options, Postgres, StoreKind, wait_for};
use crate::scenario::{Scenario, seed};

const BANKS: [&str; 3] = ["public.north", "public.south", "public.west"];
const ACCOUNTS: u32 = 400;
const BALANCE: u32 = 1000;
const CONNECTIONS: u64 = 4;

#[test]
fn the_bank_never_loses_money_duckdb_local() {
    bank("bank_duckdb_local", Combination::EMBEDDED, 0xBA1);
}

#[test]
fn the_bank_never_loses_money_postgres_s3() {
    bank("bank_postgres_s3", Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 }, 0xBA2);
}

fn bank(name: &str, combination: Combination, default_seed: u64) {
    let seed = seed(name, default_seed);
    let rest = format!("[sync]\nflush_interval = \"50ms\"\n{}", Duckpipe::tables(&BANKS));
    let mut scenario = Scenario::new(name, combination, &rest);
    for bank in BANKS {
        scenario.source.execute(&format!(
            "CREATE TABLE {bank} (id bigint PRIMARY KEY, balance bigint NOT NULL, history text); \
             INSERT INTO {bank} SELECT i, {BALANCE}, repeat('x', i % 50) FROM generate_series(1, {ACCOUNTS}) i"
        ));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (client, stop) = (scenario.source.connect(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut teller = Teller { random: StdRng::seed_from_u64(seed + number), number, moved: 0 };
                while !stop.load(Ordering::Relaxed) {
                    teller.transfer(&client);
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        })
        .collect();

    // The first copy is made while money moves; after that the process dies and comes back, and at last it ends in order.
    for (failpoint, nth) in [("handoff", 1), ("upload", 8), ("commit_after", 9), ("confirm", 10), ("commit_before", 7)]
    {
        scenario.duckpipe.die_at(failpoint, nth);
        let finished = scenario.duckpipe.run_within(&["sync"], Duration::from_secs(300));
        assert_eq!(finished.code, None, "{failpoint}: {}", finished.output());
    }
    scenario.duckpipe.live();
    let mut sync = scenario.duckpipe.sync();
    for _ in 0..3 {
        sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    }
    sync.terminate().expect(0);
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a teller failed");
    }
    scenario.converge(&BANKS);

    let native = scenario.lake.open_native();
    let total = i64::from(ACCOUNTS) * i64::from(BALANCE) * 3;
    let (mut stamped, mut empty) = (0, 0);
    for version in native.versions() {
        match version.lsn() {
            // Before the first copy, which all tables enter at once, there is nothing to see.
            None => {
                assert_eq!(stamped, 0, "version {} has no LSN: {}", version.id, version.extra);
                assert_eq!(money(&native, version.id).unwrap_or(0), 0, "version {}", version.id);
                empty += 1;
            }
            Some(lsn) => {
                assert_eq!(money(&native, version.id), Some(total), "version {} at {lsn}", version.id);
                assert_eq!(version.extra["pipeline"], scenario.name, "{}", version.extra);
                stamped += 1;
            }
        }
    }
    println!("{name}: {stamped} versions with the same total, after {empty} without any");
    assert!(stamped >= 30, "{stamped} versions only");
}

/// All money of a version; `None` where its tables are not there yet.
fn money(native: &NativeLake, version: i64) -> Option<i64> {
    let sums: Vec<String> = BANKS
        .iter()
        .map(|bank| format!("(SELECT coalesce(sum(balance), 0) FROM {})", NativeLake::table(bank, Some(version))))
        .collect();
    let rows = native.try_rows(&format!("SELECT {}", sums.join(" + "))).ok()?;
    rows[0][0].as_deref()?.parse().ok()
}

struct Teller {
    random: StdRng,
    number: u64,
    moved: u64,
}

impl Teller {
    /// Moves money in one transaction; those that two tellers' locks make impossible are given up.
    fn transfer(&mut self, client: &Client) {
        let bank = |random: &mut StdRng| BANKS[random.random_range(0..BANKS.len())];
        let account = |random: &mut StdRng| random.random_range(1..=ACCOUNTS);
        let (from, mut to) = (bank(&mut self.random), bank(&mut self.random));
        let (a, b, amount) = (account(&mut self.random), account(&mut self.random), self.random.random_range(1..50));
        let kind = self.random.random_range(0..6);
        if kind == 2 && to == from {
            to = if from == BANKS[0] { BANKS[1] } else { BANKS[0] };
        }
        let statements = match kind {
            // A whole account moves: a delete here, an insert there, under an id of its own.
            0 => {
                self.moved += 1;
                let id = 1_000_000 * (self.number + 1) + self.moved;
                format!(
                    "WITH gone AS (DELETE FROM {from} WHERE id = {a} RETURNING balance, history) \
                     INSERT INTO {to} SELECT {id}, balance, history FROM gone"
                )
            }
            // And one comes back to a number that may be free.
            1 => format!(
                "WITH gone AS (DELETE FROM {from} WHERE id = (SELECT max(id) FROM {from}) AND id > 1000000 AND NOT EXISTS \
                   (SELECT FROM {to} WHERE id = {a}) RETURNING balance, history) INSERT INTO {to} SELECT {a}, balance, history FROM gone"
            ),
            // Many small ones, between two tables: one statement can't change a row twice.
            2 => (0..10)
                .map(|i| {
                    format!(
                        "WITH taken AS (UPDATE {from} SET balance = balance - 1 WHERE id = {} RETURNING 1) \
                         UPDATE {to} SET balance = balance + (SELECT count(*) FROM taken) WHERE id = (SELECT min(id) FROM {to});",
                        (a + i) % ACCOUNTS
                    )
                })
                .collect(),
            // The number of an account changes.
            3 => format!("UPDATE {from} SET id = id + 2000 WHERE id = {a} AND NOT EXISTS (SELECT FROM {from} WHERE id = {a} + 2000)"),
            _ => format!(
                "WITH taken AS (UPDATE {from} SET balance = balance - {amount}, history = history || '-' \
                   WHERE id = {a} AND EXISTS (SELECT FROM {to} WHERE id = {b}) AND ('{from}', {a}) <> ('{to}', {b}) RETURNING 1), \
                 given AS (UPDATE {to} SET balance = balance + {amount} WHERE id = {b} AND EXISTS (SELECT FROM taken) RETURNING 1) \
                 SELECT (SELECT count(*) FROM taken) / (SELECT count(*) FROM given)"
            ),
        };
        // Two tellers at one account: the database itself must not lose money, so the strictest isolation.
        if client.try_execute(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; {statements}; COMMIT")).is_err() {
            let _ = client.try_execute("ROLLBACK");
        }
    }
}

/// SIGTERM while a large transaction is being received: what is complete gets in, the rest is dropped, and nothing is lost.
#[test]
fn stopped_within_a_large_transaction() {
    let rest = "[sync]\nflush_interval = \"60s\"\nmemory_limit = \"128MB\"\n[[tables]]\nsource = \"public.*\"\n";
    // A cluster of its own: the open transaction would hold other tests' slots back too.
    let postgres = Postgres::start(Options::default());
    let mut scenario = Scenario::on(&postgres, "bank_stopped", Combination::EMBEDDED, rest);
    scenario.source.execute("CREATE TABLE small (id int PRIMARY KEY); CREATE TABLE large (id int PRIMARY KEY, v text)");
    scenario.converge(&["public.small", "public.large"]);
    // What exceeds the memory lies in this folder, where the test can see it, even when the file has no name any more.
    let spill = scenario.duckpipe.folder().join("spill");
    std::fs::create_dir(&spill).unwrap();
    scenario.duckpipe.set("TMPDIR", spill.to_str().unwrap());
    scenario.source.execute("INSERT INTO small SELECT generate_series(1, 1000)");
    // It comes in blocks while it is open.
    let session = scenario.source.connect();
    session.execute("BEGIN; INSERT INTO large SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 600000) i");
    let sync = scenario.duckpipe.sync();
    wait_for(
        "the large transaction is larger than the memory",
        Duration::from_secs(180),
        || spills(sync.id(), &spill).then_some(()),
        || sync.tail(),
    );
    let finished = sync.terminate().expect(0);

    let native = scenario.lake.open_native();
    assert_eq!(native.number("SELECT count(*) FROM lake.public.large"), 0, "{}", finished.output());
    crate::lab::assert_equal(&scenario.source, &native, "public.small");
    drop(native);
    let applied = scenario.duckpipe.status().applied_lsn();
    assert!(scenario.confirmed() <= applied);
    session.execute("COMMIT");
    scenario.converge(&["public.small", "public.large"]);
}

/// Whether the process has a file of the folder open, or has left one there.
fn spills(process: u32, folder: &std::path::Path) -> bool {
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| target.starts_with(folder))
        || std::fs::read_dir(folder).into_iter().flatten().count() > 0
}
