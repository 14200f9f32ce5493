//! Step 2: bytes from Postgres to Arrow.
//!
//! In: COPY (FORMAT binary) chunks and pgoutput messages. Out: record batches. Pure: no I/O, so that it can be fuzzed
//! and benchmarked alone. Never: a panic on bytes that do not follow their format, a value that changed on its way.
//!
//! | file | what it knows |
//! |---|---|
//! | [`layout`] | the lake's columns of a table |
//! | [`mapping`] | which lake type a Postgres type gets, and what it can't hold |
//! | [`value_error`] | a value that its column can't take: what, where, and the policy |
//! | `reader`, `decimal`, `datetime`, `scalar`, `network`, `printed`, `array` | Postgres' value formats, binary and text |
//! | `column`, `row_builder` | Arrow builders that those formats are decoded into, a row at a time, with roll-back |
//! | [`copy`] | COPY (FORMAT binary) → record batches |
//! | [`pgoutput`] | the messages of logical replication |
//! | [`relation`] | a Relation message, matched with the layout that the lake was made from |
//! | [`change`] | inserts, updates and deletes → record batches with an operation per row |

pub mod layout;
pub mod mapping;
pub mod value_error;

mod reader;

mod datetime;
mod decimal;
mod network;
mod printed;
mod scalar;

mod array;
mod column;
mod row_builder;

pub mod copy;

pub mod change;
pub mod pgoutput;
pub mod relation;

pub(crate) use row_builder::value_of_text;
pub use value_error::{OnUnrepresentable, ValueError};

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod value_tests;
