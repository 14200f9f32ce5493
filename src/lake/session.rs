//! The DuckDB connection and the words that it understands: one SQL text for both kinds of catalog.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use duckdb::{Connection, Row};

use super::redaction::Redaction;
use super::table::KnownTable;
use crate::error::{Error, ErrorKind, Result};
use crate::sql::{identifier, literal};

/// The name under which the lake is attached.
pub(crate) const LAKE: &str = "lake";
/// The name under which DuckLake attaches the metadata database of [`LAKE`].
pub(crate) const METADATA: &str = "__ducklake_metadata_lake";

/// What kind of database holds the metadata tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CatalogKind {
    File,
    Postgres,
}

/// The connection, owned by the lake's thread.
///
/// [`Session::read`] and [`Session::write`] take SQL that is valid in DuckDB and in Postgres, with the metadata tables named
/// by [`Session::tables`]. On a Postgres catalog the text goes to Postgres as it is, inside the transaction that DuckDB holds
/// there: the planner that has the indexes plans it, and a script of many statements costs one round trip.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) kind: CatalogKind,
    pub(crate) schema: String,
    pub(crate) redaction: Redaction,
    /// Tables as of a schema version of the lake.
    pub(super) known_tables: RefCell<(i64, HashMap<i64, Arc<KnownTable>>)>,
}

impl Session {
    /// The qualifier of the metadata tables in [`Session::read`] and [`Session::write`].
    pub(crate) fn tables(&self) -> String {
        match self.kind {
            CatalogKind::File => self.attached(),
            CatalogKind::Postgres => identifier(&self.schema),
        }
    }

    /// The qualifier of the metadata tables in DuckDB's own SQL.
    pub(crate) fn attached(&self) -> String {
        format!("{METADATA}.{}", identifier(&self.schema))
    }

    /// Runs DuckDB statements.
    pub(crate) fn batch(&self, sql: &str) -> Result<()> {
        self.connection.execute_batch(sql).map_err(|error| self.error(&error))
    }

    /// Runs one DuckDB statement and says how many rows it changed.
    pub(crate) fn execute(&self, sql: &str) -> Result<usize> {
        self.connection.execute(sql, []).map_err(|error| self.error(&error))
    }

    /// Reads rows by DuckDB's own SQL.
    pub(crate) fn rows<T>(&self, sql: &str, map: impl FnMut(&Row<'_>) -> duckdb::Result<T>) -> Result<Vec<T>> {
        let read = || -> duckdb::Result<Vec<T>> {
            let mut statement = self.connection.prepare(sql)?;
            let rows = statement.query_map([], map)?;
            rows.collect()
        };
        read().map_err(|error| self.error(&error))
    }

    /// Reads rows of the metadata database.
    pub(crate) fn read<T>(&self, sql: &str, map: impl FnMut(&Row<'_>) -> duckdb::Result<T>) -> Result<Vec<T>> {
        match self.kind {
            CatalogKind::File => self.rows(sql, map),
            CatalogKind::Postgres => {
                self.rows(&format!("SELECT * FROM postgres_query('{METADATA}', {})", literal(sql)), map)
            }
        }
    }

    /// Writes to the metadata database: one statement or several, each ended by a semicolon.
    pub(crate) fn write(&self, sql: &str) -> Result<()> {
        match self.kind {
            CatalogKind::File => self.batch(sql),
            CatalogKind::Postgres => self.batch(&format!("CALL postgres_execute('{METADATA}', {})", literal(sql))),
        }
    }

    /// The time of this statement, in the dialect of [`Session::write`]. `now()` is the transaction's begin, which on Postgres
    /// lies before the wait for the commit lock: snapshots would not be in the order of their times.
    pub(crate) fn clock(&self) -> &'static str {
        match self.kind {
            CatalogKind::File => "now()",
            CatalogKind::Postgres => "clock_timestamp()",
        }
    }

    /// Runs `work` in one transaction: all of it or nothing.
    ///
    /// Errors of `work` are passed on after a rollback. A commit that fails without a conflict is [`ErrorKind::Transient`]: it
    /// may have taken place, so the caller must read the state again.
    pub(crate) fn transaction<T>(&self, work: impl FnOnce(&Session) -> Result<T>) -> Result<T> {
        self.batch("BEGIN TRANSACTION")?;
        match work(self) {
            Ok(value) => match self.batch("COMMIT") {
                Ok(()) => Ok(value),
                Err(error) => {
                    self.roll_back();
                    match error.kind() {
                        ErrorKind::Conflict => Err(error),
                        _ => Err(Error::new(
                            ErrorKind::Transient,
                            format!("the answer to COMMIT was lost, so it is not known whether it took place: {error}"),
                        )),
                    }
                }
            },
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    /// A transaction that holds the lake-wide commit lock. What it reads is not older than the lock.
    pub(crate) fn locked_transaction<T>(&self, work: impl FnOnce(&Session) -> Result<T>) -> Result<T> {
        self.transaction(|session| {
            session.lock("duckpipe_format")?;
            work(session)
        })
    }

    /// Locks a metadata table against other writers. It must be the first statement of its transaction: under REPEATABLE READ
    /// Postgres fixes what the transaction sees at the first statement after LOCK TABLE. A DuckDB file has one process and
    /// one thread that writes, and needs no lock.
    pub(crate) fn lock(&self, table: &str) -> Result<()> {
        match self.kind {
            CatalogKind::File => Ok(()),
            CatalogKind::Postgres => self.write(&format!("LOCK TABLE {}.{table} IN EXCLUSIVE MODE", self.tables())),
        }
    }

    /// Whether the metadata database has a table of this name.
    pub(crate) fn has_table(&self, table: &str) -> Result<bool> {
        Ok(!self.existing_tables(&[table.to_owned()])?.is_empty())
    }

    /// Those of the tables that the metadata database has.
    pub(crate) fn existing_tables(&self, tables: &[String]) -> Result<Vec<String>> {
        match self.kind {
            // DuckDB lists no tables of the database that DuckLake attached for itself.
            CatalogKind::File => {
                let mut existing = Vec::new();
                for table in tables {
                    let sql = format!("SELECT 1 FROM {}.{} LIMIT 0", self.tables(), identifier(table));
                    match self.rows(&sql, |_| Ok(())) {
                        Ok(_) => existing.push(table.clone()),
                        Err(error) if error.to_string().contains("does not exist") => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(existing)
            }
            CatalogKind::Postgres => {
                let sql = format!(
                    "SELECT tablename::text AS name FROM pg_catalog.pg_tables WHERE schemaname = {} AND tablename IN ({})",
                    literal(&self.schema),
                    tables.iter().map(|table| literal(table)).collect::<Vec<_>>().join(", ")
                );
                self.read(&sql, |row| row.get::<_, String>(0))
            }
        }
    }

    fn roll_back(&self) {
        // A failed COMMIT and a lost connection have already ended the transaction.
        if let Err(error) = self.connection.execute_batch("ROLLBACK") {
            tracing::debug!(error = self.redaction.text(&error.to_string()), "nothing to roll back");
        }
    }

    /// DuckDB's error as ours: its kind read from its text, without anything secret.
    pub(crate) fn error(&self, error: &duckdb::Error) -> Error {
        let text = self.redaction.text(&error.to_string());
        Error::new(kind_of(&text), text)
    }
}

/// DuckDB gives errors as text only.
pub(crate) fn kind_of(text: &str) -> ErrorKind {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&[
        "duplicate key",
        "Duplicate key",
        "PRIMARY KEY or UNIQUE constraint",
        "could not serialize",
        "write-write conflict",
        "Conflict on",
        "Transaction conflict",
        "deadlock detected",
    ]) {
        ErrorKind::Conflict
    } else if has(&[
        "Connection refused",
        "Unable to connect",
        "could not connect",
        "server closed the connection",
        "terminating connection",
        "connection to server",
        "no connection to the server",
        "SSL connection has been closed",
        "the database system is",
        "lock timeout",
        "too many clients",
        "No space left",
        "HTTP Error",
        "Failed to execute query \"ROLLBACK\"",
    ]) {
        ErrorKind::Transient
    } else {
        ErrorKind::Internal
    }
}
