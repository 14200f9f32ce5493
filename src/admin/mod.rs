//! The control socket of a running sync.
//!
//! A DuckDB file can be open in one process only. While `sync` holds a catalog file, `status` and `query` ask it through a Unix
//! socket beside that file: for the status report, or for a consistent copy of the catalog to read on their own. `compact` asks
//! it to do the work.
//!
//! `validate` has it end a flush at a position: `{"op":"hold","patience":…}`, then `{"op":"flush_at","lsn":…,"patience":…,"stands":…}`;
//! to repair rows there it asks again and again that the lake stand still, `{"op":"stand","lsn":…}`, and hands the rows over in a file.
//!
//! `{"op":"want","tables":[…]}` asks for fresh copies.
//!
//! The protocol is one JSON object a line: `{"op":"status"}`, `{"op":"copy_catalog"}` or `{"op":"compact"}`, answered by `{"ok":…}` or
//! `{"error":{"message":…,"remedy":…}}`. It is for processes of the same user on the same machine.

mod client;
mod protocol;
mod server;
mod socket;

#[cfg(test)]
mod tests;

pub use client::{compact, copy_catalog, flush_at, hold, release, reload, repair, stand, status, want};
pub use server::{Handler, serve};
pub use socket::{ControlSocket, socket_path};
