//! The laboratory: a real Postgres, a real MinIO, stock DuckDB as an independent reader, and the program as a user runs it.
//!
//! ```ignore
//! let source = Postgres::shared().database("shop");
//! source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 1000) i");
//! let lake = Lake::new(Combination::EMBEDDED, "shop");
//! let duckpipe = Duckpipe::new("shop", &source.url(), &lake, &Duckpipe::tables(&["public.t"]));
//! duckpipe.sync_once().expect(0);
//! assert_equal(&source, &lake.open_native(), "public.t");
//! ```
//!
//! Names of databases, lakes and pipelines are shared by all tests of the process: take the test's own name.
//! `DUCKPIPE_LAB_KEEP=1` keeps the folders of a failed test, `DUCKPIPE_LAB_DIR` says where they lie.

// Each promise uses another part of it.
#![allow(dead_code, unused_imports)]

pub mod compare;
pub mod duckpipe;
pub mod lake;
pub mod minio;
pub mod postgres;
pub mod process;

pub use compare::{Comparison, Fingerprint, assert_equal};
pub use duckpipe::{Duckpipe, Finished, Running, Status};
pub use lake::{CatalogKind, Combination, Lake, NativeLake, StoreKind, Version};
pub use minio::{Bucket, Minio};
pub use postgres::{Client, Database, Options, PASSWORD, Postgres, RUNTIME, bin};
pub use process::{free_port, wait_for};
