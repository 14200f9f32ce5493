//! Step 1: what Postgres holds and what it sends.
//!
//! In: connection settings. Out: table definitions, COPY chunks at an exported snapshot, pgoutput messages of a slot.
//! Never: anything about lakes, Arrow or files.
//!
//! Two kinds of connection: [`session::Session`] for SQL, and our own client for replication and COPY
//! ([`replication`], [`snapshot`]). Both begin in `socket` (hosts, TLS) and pin the same parameters (`session_settings`);
//! `failure` says what the server's errors mean.

pub mod catalog;
pub mod failure;
pub mod partitions;
pub mod pattern;
pub mod preflight;
pub mod publication;
pub mod replication;
pub mod row_filter;
pub mod session;
pub mod settings;
pub mod slot;
pub mod snapshot;
pub mod table;
pub mod wal_stream;

mod session_settings;
mod socket;
mod tls;
mod wire;

#[cfg(test)]
mod lab;
#[cfg(test)]
mod tests;
