//! End to end against the floors, in one run: Postgres' own COPY and `pg_recvlogical`, and DuckDB's CREATE TABLE AS from
//! postgres_scanner into a DuckLake.
//!
//! `make bench-end-to-end`; `DUCKPIPE_BENCH_ROWS` and `DUCKPIPE_BENCH_TRANSACTIONS` set the sizes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code, unused_imports)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Client, Combination, Database, Duckpipe, Lake, Options, Postgres};

/// Times a step `RUNS` times and keeps the best: the machine's noise only ever adds.
const RUNS: usize = 3;

fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn best(mut step: impl FnMut(usize) -> Duration) -> Duration {
    (0..RUNS).map(&mut step).min().expect("at least one run")
}

fn timed(step: impl FnOnce()) -> Duration {
    let start = Instant::now();
    step();
    start.elapsed()
}

struct Report {
    rows: Vec<(String, f64, &'static str)>,
}

impl Report {
    fn add(&mut self, what: &str, count: u64, unit: &'static str, took: Duration) -> f64 {
        let rate = count as f64 / took.as_secs_f64();
        println!("{what:<58} {took:>9.2?}  {rate:>12.0} {unit}");
        self.rows.push((what.to_owned(), rate, unit));
        rate
    }
}

fn main() {
    // `cargo test --benches` and `cargo bench` both run this; only the latter measures.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rows = size("DUCKPIPE_BENCH_ROWS", 2_000_000);
    let transactions = size("DUCKPIPE_BENCH_TRANSACTIONS", 200_000);
    let options = Options::default()
        .set("shared_buffers", "1GB")
        .set("synchronous_commit", "off")
        .set("max_wal_size", "8GB")
        .set("checkpoint_timeout", "1h");
    let postgres = Postgres::start(options);
    let database = postgres.database("bench");
    let client = database.connect();
    client.execute(&format!(
        "CREATE TABLE sbtest1(id int PRIMARY KEY, k int NOT NULL, c char(120) NOT NULL, pad char(60) NOT NULL);
         INSERT INTO sbtest1 SELECT i, (random() * {rows})::int,
             repeat(lpad((i::bigint * 7919 % 99999999999)::text, 11, '0') || '-', 10), repeat(lpad(i::text, 11, '0') || '-', 5)
         FROM generate_series(1, {rows}) i"
    ));
    client.execute("VACUUM ANALYZE sbtest1");
    let mut report = Report { rows: Vec::new() };

    println!("snapshot of sbtest1, {rows} rows, best of {RUNS}");
    let copy = best(|_| timed(|| client.execute("COPY sbtest1 TO '/dev/null' (FORMAT binary)")));
    report.add("Postgres COPY (FORMAT binary) to /dev/null, one connection", rows, "rows/s", copy);
    let ctas = best(|run| create_table_as(&database, run));
    let ctas = report.add("DuckDB CREATE TABLE AS, postgres_scanner to DuckLake", rows, "rows/s", ctas);
    let snapshot = best(|run| first_sync(&database, &client, run));
    let snapshot = report.add("duckpipe sync --once, from start to exit", rows, "rows/s", snapshot);
    println!("  duckpipe / CREATE TABLE AS = {:.2}\n", snapshot / ctas);

    println!("backlog of {transactions} transactions of one INSERT, best of {RUNS}");
    backlog(&database, &client, &mut report, transactions);
}

fn create_table_as(database: &Database<'_>, run: usize) -> Duration {
    let lake = Lake::new(Combination::EMBEDDED, &format!("bench_ctas_{run}"));
    let native = lake.open_native_writable();
    native.attach_source(database);
    timed(|| native.execute("CREATE TABLE lake.main.sbtest1 AS FROM source.public.sbtest1"))
}

fn pipeline(database: &Database<'_>, name: &str) -> (Lake, Duckpipe) {
    let lake = Lake::new(Combination::EMBEDDED, name);
    let duckpipe = Duckpipe::new(name, &database.url(), &lake, &Duckpipe::tables(&["public.sbtest1"]));
    (lake, duckpipe)
}

fn first_sync(database: &Database<'_>, client: &Client, run: usize) -> Duration {
    let (lake, duckpipe) = pipeline(database, &format!("bench_snapshot_{run}"));
    let took = timed(|| drop(duckpipe.run_within(&["sync", "--once"], Duration::from_secs(600)).expect(0)));
    let copied = lake.open_native().number("SELECT count(*) FROM lake.public.sbtest1");
    assert_eq!(copied, client.number("SELECT count(*) FROM sbtest1"));
    duckpipe.run(&["drop", "--yes"]).expect(0);
    took
}

fn backlog(database: &Database<'_>, client: &Client, report: &mut Report, transactions: u64) {
    client.execute("CREATE PUBLICATION floor FOR TABLE sbtest1");
    let (lake, duckpipe) = pipeline(database, "bench_backlog");
    duckpipe.run_within(&["sync", "--once"], Duration::from_secs(600)).expect(0);
    let mut floor = Duration::MAX;
    let mut ours = Duration::MAX;
    for _ in 0..RUNS {
        client.query("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')");
        client.execute(&format!(
            "DO $$ DECLARE first int := (SELECT max(id) FROM sbtest1); BEGIN
               FOR i IN 1..{transactions} LOOP
                 INSERT INTO sbtest1 VALUES (first + i, i, repeat('0123456789-', 10), repeat('0123456789-', 5));
                 COMMIT;
               END LOOP;
             END $$"
        ));
        let end = client.lsn();
        // pg_recvlogical stops only at a record past the end position.
        client.execute("SELECT pg_logical_emit_message(true, 'floor', 'end'), pg_switch_wal()");
        floor = floor.min(timed(|| receive(database, end)));
        client.query("SELECT pg_drop_replication_slot('floor')");
        ours = ours.min(timed(|| drop(duckpipe.run_within(&["sync", "--once"], Duration::from_secs(600)).expect(0))));
    }
    let floor = report.add("pg_recvlogical, protocol 1, to /dev/null", transactions, "transactions/s", floor);
    let ours = report.add("duckpipe sync --once, from start to exit", transactions, "transactions/s", ours);
    println!("  duckpipe / pg_recvlogical = {:.2}", ours / floor);
    let rows = lake.open_native().number("SELECT count(*) FROM lake.public.sbtest1");
    assert_eq!(rows, client.number("SELECT count(*) FROM sbtest1"));
    duckpipe.run(&["drop", "--yes"]).expect(0);
}

fn receive(database: &Database<'_>, end: duckpipe::lsn::Lsn) {
    let status = Command::new(lab::bin("pg_recvlogical"))
        .args(["--slot", "floor", "--start", "--no-loop", "-o", "proto_version=1", "-o", "publication_names=floor"])
        .args(["--file", "/dev/null", "--endpos", &end.to_string(), "--dbname", &database.url()])
        .status()
        .expect("pg_recvlogical");
    assert!(status.success());
}
