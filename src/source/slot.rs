//! The replication slot: what the server keeps for the pipeline.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::failure::from_client;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// How long a walsender whose client has gone may take to let the slot go.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(15);

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The name.
    pub name: String,
    /// The output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// The database that a logical slot decodes.
    pub database: Option<String>,
    /// The server's process that reads it now.
    pub active_pid: Option<i32>,
    /// Transactions that end past this position will still be sent.
    pub confirmed_flush: Option<Lsn>,
    /// WAL from here on is kept.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why it can't be used any more: `invalidation_reason` (version 17), or what earlier versions show of it.
    pub invalidation: Option<String>,
    /// Bytes of WAL that may be written before the slot is in danger of losing some; `None`: without limit.
    pub safe_wal_bytes: Option<i64>,
    /// Created with two-phase decoding.
    pub two_phase: bool,
    /// The copy of a primary's slot on its standby, which nobody can read until that is promoted (version 17).
    pub synchronised: bool,
}

/// The slot of the copies beside the stream of a pipeline's slot.
pub fn of_copies(slot: &str) -> String {
    // A name has at most 63 bytes, all of them ASCII.
    format!("{}_copy", &slot[..slot.len().min(58)])
}

/// The slot of this name, if there is one.
pub async fn find(session: &Session, name: &str) -> Result<Option<Slot>> {
    let invalidation = match session.major_version() {
        17.. => "invalidation_reason",
        16 => "CASE WHEN conflicting THEN 'conflict with recovery' WHEN wal_status = 'lost' THEN 'wal_removed' END",
        _ => "CASE WHEN wal_status = 'lost' THEN 'wal_removed' END",
    };
    let synchronised = if session.major_version() >= 17 { "synced AND pg_is_in_recovery()" } else { "false" };
    let query = format!(
        "SELECT plugin::text, database::text, active_pid, confirmed_flush_lsn, restart_lsn, wal_status, {invalidation}, \
         safe_wal_size, two_phase, {synchronised} FROM pg_replication_slots WHERE slot_name = $1"
    );
    let row = session.client().query_opt(&query, &[&name]).await;
    let row = row.map_err(|error| from_client(error, "Reading the replication slot").context(name.to_owned()))?;
    let position = |position: Option<PgLsn>| position.map(|position| Lsn(position.into()));
    Ok(row.map(|row| Slot {
        name: name.to_owned(),
        plugin: row.get(0),
        database: row.get(1),
        active_pid: row.get(2),
        confirmed_flush: position(row.get(3)),
        restart: position(row.get(4)),
        wal_status: row.get(5),
        invalidation: row.get(6),
        safe_wal_bytes: row.get(7),
        two_phase: row.get(8),
        synchronised: row.get(9),
    }))
}

/// Drops the slot; one that does not exist is fine. Waits some seconds for a connection that is just ending, and fails
/// with [`ErrorKind::Transient`] where one goes on reading the slot.
pub async fn drop(session: &Session, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let query = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        let Err(error) = session.client().query(query, &[&name]).await else { return Ok(()) };
        match error.code() {
            Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Some(&SqlState::OBJECT_IN_USE) if begun.elapsed() < RELEASE_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Some(&SqlState::OBJECT_IN_USE) => {
                let pid = find(session, name).await?.and_then(|slot| slot.active_pid);
                let by = pid.map(|pid| format!(" by the server's process {pid}")).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::Transient,
                    format!("The replication slot {name} is still in use{by}"),
                )
                .remedy("Stop the duckpipe that reads it, then try again."));
            }
            _ => return Err(from_client(error, "Dropping the replication slot").context(name.to_owned())),
        }
    }
}

/// A transaction that keeps a new slot from its consistent point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// The server's process, or the name of a prepared transaction, with what is known of it, for messages.
    pub description: String,
    /// How long it has been open.
    pub age: Duration,
}

/// The oldest transaction that has written; a new slot waits for its end. `None` where there is none.
pub async fn oldest_writer(session: &Session) -> Result<Option<OpenTransaction>> {
    let query = "SELECT 'the source''s process ' || pid || coalesce(' of ' || usename, '') || \
                 coalesce(' (' || nullif(application_name, '') || ')', '') || coalesce(', ' || state, '') || \
                 coalesce(': ' || left(nullif(query, ''), 100), ''), \
                 extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity \
                 WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() \
                 UNION ALL SELECT 'the prepared transaction ' || gid || ' of ' || owner, \
                 extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts \
                 ORDER BY 2 DESC NULLS LAST LIMIT 1";
    let row = session.client().query_opt(query, &[]).await;
    let row = row.map_err(|error| from_client(error, "Reading the open transactions"))?;
    Ok(row.map(|row| OpenTransaction {
        description: row.get(0),
        age: Duration::from_secs_f64(row.get::<_, Option<f64>>(1).unwrap_or_default().max(0.0)),
    }))
}
