//! A small shop that never stands still: a seeded writer of transactions over three tables.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::lab::Client;

/// The tables.
pub const TABLES: [&str; 3] = ["public.orders", "public.items", "public.documents"];

/// Their definition: a plain key, a composite key, and rows whose large value an UPDATE leaves where it is.
const DDL: &str = "CREATE TABLE orders (id bigint PRIMARY KEY, customer int, amount numeric(12,2), note text, placed timestamptz); \
    CREATE TABLE items (order_id bigint, line smallint, sku text, quantity int, PRIMARY KEY (order_id, line)); \
    CREATE TABLE documents (id uuid PRIMARY KEY, version int NOT NULL, title text, body text); \
    ALTER TABLE documents ALTER body SET STORAGE EXTERNAL";

/// Makes the tables with so many orders, twice as many items and a hundredth of documents.
pub fn create(client: &Client, orders: u32) {
    client.execute(DDL);
    client.execute(&format!(
        "INSERT INTO orders SELECT i, i % 97, i * 1.37, md5(i::text) || repeat(md5((i * 7)::text), 2), \
             timestamptz '2024-02-29 23:59:59.999999+00' + i * interval '1 minute' FROM generate_series(1, {orders}) i; \
         INSERT INTO items SELECT i, l, 'sku-' || i % 1000, i % 13 FROM generate_series(1, {orders}) i, generate_series(1, 2) l; \
         INSERT INTO documents SELECT {}, 0, 'title ' || i, repeat(md5(i::text), 100) FROM generate_series(1, {orders} / 100) i",
        document("i")
    ));
}

/// The id of a document by its number.
fn document(number: &str) -> String {
    format!("md5('document ' || {number})::uuid")
}

/// A writer in a thread of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts to write to the shop, one transaction each `pace` at most.
    pub fn start(url: &str, orders: u32, seed: u64, pace: Duration) -> Writer {
        let mut shop = Shop::new(orders, seed);
        Writer::of(url, move |client| {
            client.execute(&shop.transaction());
            std::thread::sleep(pace);
        })
    }

    /// Starts to write: one transaction each time that `transaction` is called.
    pub fn of(url: &str, mut transaction: impl FnMut(&Client) + Send + 'static) -> Writer {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts, client) = (Arc::clone(&stop), Arc::clone(&done), Client::connect(url));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                transaction(&client);
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Writer { stop, done, thread: Some(thread) }
    }

    /// Whether it still writes: it ends by itself when a statement fails.
    pub fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// The transactions written until now.
    pub fn written(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Ends the writer; gives the number of its transactions.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("a thread").join().expect("the writer failed");
        self.written()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The source of transactions: the same seed gives the same ones, whatever else happens.
#[derive(Debug)]
pub struct Shop {
    random: StdRng,
    next_order: u64,
    next_document: u64,
}

impl Shop {
    /// A shop as [`create`] leaves it.
    pub fn new(orders: u32, seed: u64) -> Shop {
        Shop {
            random: StdRng::seed_from_u64(seed),
            next_order: u64::from(orders) + 1,
            next_document: u64::from(orders / 100) + 1,
        }
    }

    fn any_order(&mut self) -> u64 {
        self.random.random_range(1..self.next_order)
    }

    fn any_document(&mut self) -> String {
        let number = self.random.random_range(1..self.next_document);
        document(&number.to_string())
    }

    fn new_order(&mut self) -> String {
        let id = self.next_order;
        self.next_order += 1;
        let lines = self.random.random_range(1..5);
        let amount: u32 = self.random.random_range(0..1_000_000);
        format!(
            "INSERT INTO orders VALUES ({id}, {}, {amount} / 100.0, repeat('ä', {amount} % 200), '2026-01-01 00:00:00+00'::timestamptz + {amount} * interval '1 second'); \
             INSERT INTO items SELECT {id}, l, 'new-' || {amount}, NULLIF(l * 7 % 5, 0) FROM generate_series(1, {lines}) l;",
            amount % 97
        )
    }

    /// One more transaction, as SQL.
    pub fn transaction(&mut self) -> String {
        let statements = match self.random.random_range(0..11) {
            0 | 1 => self.new_order(),
            2 | 3 => {
                let ids: Vec<String> =
                    (0..self.random.random_range(1..20)).map(|_| self.any_order().to_string()).collect();
                let ids = ids.join(", ");
                format!(
                    "UPDATE orders SET amount = amount + 1, note = md5(note) WHERE id IN ({ids}); \
                     UPDATE items SET quantity = coalesce(quantity, 0) + 1 WHERE order_id IN ({ids}) AND line < 3;"
                )
            }
            4 => {
                let id = self.any_order();
                format!("DELETE FROM items WHERE order_id = {id}; DELETE FROM orders WHERE id = {id};")
            }
            5 => {
                // The key itself changes.
                let (old, new) = (self.any_order(), self.next_order);
                self.next_order += 1;
                format!(
                    "UPDATE orders SET id = {new} WHERE id = {old}; UPDATE items SET order_id = {new} WHERE order_id = {old};"
                )
            }
            6 => {
                let id = self.any_document();
                format!("UPDATE documents SET version = version + 1 WHERE id = {id};")
            }
            7 => {
                let (new, gone) = (document(&self.next_document.to_string()), self.any_document());
                self.next_document += 1;
                format!(
                    "DELETE FROM documents WHERE id = {gone}; \
                     INSERT INTO documents VALUES ({new}, 1, NULL, repeat(md5('{}'), 200));",
                    self.next_document
                )
            }
            8 => {
                // A row goes and comes back under its key, and another one comes and goes, in one transaction.
                let id = self.any_order();
                format!(
                    "INSERT INTO orders VALUES (-{id}, 0, 0, 'not for long', NULL); \
                     WITH gone AS (DELETE FROM orders WHERE id = {id} RETURNING *) INSERT INTO items SELECT id, 99, note, 1 FROM gone; \
                     INSERT INTO orders SELECT order_id, 1, 0.01, 'back', NULL FROM items WHERE order_id = {id} AND line = 99; \
                     DELETE FROM items WHERE order_id = {id} AND line = 99; DELETE FROM orders WHERE id = -{id};"
                )
            }
            9 => {
                let part = self.random.random_range(0..97);
                format!("UPDATE orders SET amount = amount * 1.01 WHERE customer = {part};")
            }
            _ => {
                let (kept, order) = (self.any_order(), self.new_order());
                format!("SAVEPOINT s; {order} ROLLBACK TO s; UPDATE orders SET customer = NULL WHERE id = {kept};")
            }
        };
        format!("BEGIN; {statements} COMMIT;")
    }
}
