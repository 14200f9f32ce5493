//! duckpipe keeps a DuckLake on object storage equal to a PostgreSQL database.
//!
//! # The way of a row
//!
//! ```text
//! Postgres ──► source ──► batch ──► sync ──► storage ──► lake ──► any engine
//!            snapshot    binary    per-table  Parquet     one catalog
//!            COPY, WAL   → Arrow   net change  → bucket    transaction
//! ```
//!
//! Read the folders in that order; each depends only on those to its left.
//!
//! * [`source`]: connections, the table definitions, the publication, the slot, COPY streams and the WAL stream.
//! * [`batch`]: COPY and pgoutput bytes to Arrow, without a row struct in between. Pure: no I/O.
//! * [`sync`]: the net change of each table at a source commit boundary, when to flush, the life of a table.
//! * `duckpipe_storage`: record batches to Parquet objects in a bucket or a folder.
//! * [`lake`]: data files, deleted positions and the applied LSN to one DuckLake snapshot.
//! * [`plan`]: DataFusion's operators over rows that we read ourselves: sorted in bounded memory.
//! * [`compact`]: fewer and larger files, and no more history than asked for.
//! * [`validate`]: whether the files are what the catalog says, and the lake what the source is.
//! * [`config`], [`cli`] and [`admin`]: the surfaces.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod error;
pub mod failpoint;
pub mod lsn;
pub mod secret;
pub mod sql;

pub mod source;

pub mod batch;

pub mod sync;

pub mod lake;

pub mod plan;

pub mod compact;
pub mod validate;

pub mod admin;
pub mod cli;
pub mod config;
