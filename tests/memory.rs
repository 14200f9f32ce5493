//! Promise 6: memory stays within its limit, whatever the size of a table or a transaction.
//!
//! CI runs a tenth. The whole: `make test-memory`.

use std::time::{Duration, Instant};

use crate::lab::{Combination, Duckpipe, Lake, Options, Postgres, assert_equal};

/// What a process needs beside `memory_limit`: code, DuckDB's and Tokio's own, and what the allocator keeps.
const OVERHEAD: u64 = 256 << 20;

fn rows() -> u64 {
    std::env::var("DUCKPIPE_TEST_ROWS").map_or(500_000, |rows| rows.parse().expect("DUCKPIPE_TEST_ROWS"))
}

/// One of its own: a slot's creation waits for all transactions of its server, and these are long.
fn server() -> Postgres {
    Postgres::start(Options::default())
}

fn stays_within(limit: u64, name: &str) {
    let rows = rows();
    let postgres = server();
    let database = postgres.database(name);
    let client = database.connect();
    client.execute(&format!(
        "CREATE TABLE big(id bigint PRIMARY KEY, k int NOT NULL, c text NOT NULL, pad text NOT NULL);
         INSERT INTO big SELECT i, i % 1000, repeat(md5(i::text), 4), repeat('x', 60) FROM generate_series(1, {rows}) i;
         ANALYZE big;"
    ));
    let lake = Lake::new(Combination::EMBEDDED, name);
    let tables = Duckpipe::tables(&["public.big"]);
    let sync = format!("[sync]\nmemory_limit = \"{limit}B\"\n\n{tables}");
    let duckpipe = Duckpipe::new(name, &database.url(), &lake, &sync);
    let deadline = Duration::from_secs(120 + rows / 2_000);
    let mut running = duckpipe.sync();
    let mut step = |what: &str, sql: &str| {
        let start = Instant::now();
        if !sql.is_empty() {
            client.execute(sql);
        }
        let written = start.elapsed();
        running.wait_for_lsn(client.lsn(), deadline);
        let peak = running.peak_memory();
        println!(
            "memory_limit {} MiB, {rows} rows, {what}: peak {} MiB, written in {written:.1?}, in the lake after {:.1?}",
            limit >> 20,
            peak >> 20,
            start.elapsed()
        );
        assert!(peak <= limit + OVERHEAD, "{what}: peak of {} MiB\n{}", peak >> 20, running.tail());
    };
    step("first copy", "");
    step(
        "one INSERT",
        &format!(
            "INSERT INTO big SELECT i, i % 1000, repeat(md5(i::text), 4), repeat('y', 60)
             FROM generate_series({rows} + 1, {rows} * 2) i"
        ),
    );
    let update = format!("UPDATE big SET k = k + 1 WHERE id <= {rows}");
    step("one transaction that updates each row twice", &format!("BEGIN; {update}; {update}; COMMIT"));
    step("one DELETE", &format!("DELETE FROM big WHERE id > {rows}"));
    step("one TRUNCATE", "TRUNCATE big");
    // What is taken away again within its transaction is not kept either.
    let load = format!(
        "INSERT INTO big SELECT i, i % 1000, repeat(md5(i::text), 4), repeat('z', 60) FROM generate_series(1, {rows}) i"
    );
    step(
        "one transaction that loads twice, truncating before",
        &format!("BEGIN; {load}; TRUNCATE big; {load}; COMMIT"),
    );
    step(
        "one transaction of which a savepoint is taken back",
        &format!("BEGIN; SAVEPOINT s; {update}; ROLLBACK TO s; UPDATE big SET k = 0 WHERE id <= 1000; COMMIT"),
    );
    running.terminate().expect(0);
    assert_eq!(assert_equal(&client, &lake.open_native(), "public.big"), rows);
}

#[test]
fn within_256_mib() {
    stays_within(256 << 20, "memory_256");
}

#[test]
fn within_1_gib() {
    stays_within(1 << 30, "memory_1024");
}

/// Large values that an UPDATE leaves where they are: none of them is in the WAL, all must be in the new rows.
#[test]
fn with_large_values_that_stay() {
    let rows = rows() / 20;
    let limit = 128u64 << 20;
    let postgres = server();
    let database = postgres.database("memory_toast");
    let client = database.connect();
    client.execute(&format!(
        "CREATE TABLE wide(id bigint PRIMARY KEY, n int NOT NULL, body text NOT NULL); ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT i, 0, repeat(md5(i::text), 250) FROM generate_series(1, {rows}) i; ANALYZE wide;"
    ));
    let lake = Lake::new(Combination::EMBEDDED, "memory_toast");
    let sync = format!("[sync]\nmemory_limit = \"{limit}B\"\n\n{}", Duckpipe::tables(&["public.wide"]));
    let duckpipe = Duckpipe::new("memory_toast", &database.url(), &lake, &sync);
    let mut running = duckpipe.sync();
    running.wait_for_lsn(client.lsn(), Duration::from_secs(120));
    // Each row twice, the second time under another key: from the lake, from an earlier image, over a move.
    client.execute(&format!("BEGIN; UPDATE wide SET n = 1; UPDATE wide SET n = 2, id = id + {rows}; COMMIT"));
    running.wait_for_lsn(client.lsn(), Duration::from_secs(300));
    let peak = running.peak_memory();
    println!("memory_limit {} MiB, {rows} rows of 8 kB: peak {} MiB", limit >> 20, peak >> 20);
    assert!(peak <= limit + OVERHEAD, "peak of {} MiB\n{}", peak >> 20, running.tail());
    running.terminate().expect(0);
    assert_eq!(assert_equal(&client, &lake.open_native(), "public.wide"), rows);
}

/// Without a key a row is found by all that it holds.
#[test]
fn without_a_key() {
    let rows = rows();
    let limit = 256u64 << 20;
    let postgres = server();
    let database = postgres.database("memory_keyless");
    let client = database.connect();
    client.execute(&format!(
        "CREATE TABLE bag(n bigint, c text NOT NULL); ALTER TABLE bag REPLICA IDENTITY FULL;
         INSERT INTO bag SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, {rows}) i; ANALYZE bag;"
    ));
    let lake = Lake::new(Combination::EMBEDDED, "memory_keyless");
    let sync = format!("[sync]\nmemory_limit = \"{limit}B\"\n\n{}", Duckpipe::tables(&["public.bag"]));
    let duckpipe = Duckpipe::new("memory_keyless", &database.url(), &lake, &sync);
    let mut running = duckpipe.sync();
    running.wait_for_lsn(client.lsn(), Duration::from_secs(120));
    client.execute("DELETE FROM bag WHERE n % 10 > 0");
    running.wait_for_lsn(client.lsn(), Duration::from_secs(120 + rows / 1_000));
    let peak = running.peak_memory();
    println!("memory_limit {} MiB, {rows} rows without a key: peak {} MiB", limit >> 20, peak >> 20);
    assert!(peak <= limit + OVERHEAD, "peak of {} MiB\n{}", peak >> 20, running.tail());
    running.terminate().expect(0);
    assert_eq!(assert_equal(&client, &lake.open_native(), "public.bag"), rows / 10);
}
