//! The source of a soak: a table of rows of some 100 bytes, and transactions that change random ones.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::Client;
use crate::workload::Writer;

/// How fast a table is written to.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Transactions a second.
    pub transactions: f64,
    /// Rows that each updates; one more is inserted, and one deleted.
    pub updates: u32,
}

/// Makes and fills the table. Its pages have room for an update or two of their rows. Its values are as hard to compress as those that
/// updates bring: else the lake's bytes and a scan's time would grow by what is updated for the first time.
pub fn create(client: &Client, rows: u64) {
    client.execute(&format!(
        "CREATE TABLE items (id bigint PRIMARY KEY, kind int NOT NULL, n bigint NOT NULL, code text NOT NULL, note text, at timestamp NOT NULL) \
             WITH (fillfactor = 80); \
         INSERT INTO items SELECT i, i % 1000, (random() * 1000000)::bigint, md5(i::text), 'note ' || i % 5000, \
                 clock_timestamp() - random() * interval '1 hour' \
             FROM generate_series(1, {rows}) i; \
         ANALYZE items"
    ));
}

/// Starts to write at this rate: no faster where it fell behind.
pub fn start(url: &str, rows: u64, rate: Rate, seed: u64) -> Writer {
    let mut random = StdRng::seed_from_u64(seed);
    let mut next_id = rows + 1;
    let pace = Duration::from_secs_f64(1.0 / rate.transactions);
    let mut due = Instant::now();
    Writer::of(url, move |client| {
        let mut any = || random.random_range(1..next_id);
        let updated: Vec<String> = (0..rate.updates).map(|_| any().to_string()).collect();
        let deleted = any();
        client.execute(&format!(
            "BEGIN; UPDATE items SET n = n + 1, code = md5(code), at = clock_timestamp() WHERE id IN ({}); \
             INSERT INTO items VALUES ({next_id}, {next_id} % 1000, (random() * 1000000)::bigint, md5('{next_id}'), NULL, clock_timestamp()); \
             DELETE FROM items WHERE id = {deleted}; COMMIT",
            updated.join(", ")
        ));
        next_id += 1;
        due = (due + pace).max(Instant::now());
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    })
}
