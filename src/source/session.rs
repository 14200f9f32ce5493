//! An ordinary connection to the source, for SQL.

use std::error::Error as _;

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, NoTls};

use super::failure;
use super::session_settings;
use super::settings::SourceSettings;
use super::socket::{self, LoginError, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// A connection whose parameters are pinned: neither the server's nor the role's settings change what it reads.
///
/// `search_path` is empty, so that names outside `pg_catalog` need their schema.
pub struct Session {
    client: Client,
    major: u32,
}

impl Session {
    /// Connects. [`ErrorKind::Transient`] where the server can't be reached, [`ErrorKind::Precondition`] where it
    /// refuses the login.
    pub async fn connect(settings: &SourceSettings) -> Result<Session> {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&settings.user)
            .dbname(&settings.database)
            .application_name(&settings.application_name)
            // The socket is encrypted already, where it is to be.
            .ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(password) = &settings.password {
            config.password(password.expose());
        }
        let config = &config;
        let login = |socket: Box<dyn Socket>| async move {
            let (client, connection) = config.connect_raw(socket, NoTls).await.map_err(login_error)?;
            let major = session_settings::major_version(connection.parameter("server_version").unwrap_or_default());
            settings.target.check(|name| connection.parameter(name))?;
            // Ends with the client. Its error reaches whoever uses the client as "connection closed".
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a session with the source ended");
                }
            });
            Ok(Session { client, major })
        };
        let session = socket::connect(settings, login).await?;
        session
            .client
            .batch_execute(&session_settings::pin(session.major))
            .await
            .map_err(|error| failure::from_client(error, "Setting the session's parameters"))?;
        Ok(session)
    }

    /// The client. Its errors are best told by [`failure::from_client`].
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The server's major version: 15.
    pub fn major_version(&self) -> u32 {
        self.major
    }

    /// `server_version_num`: 150018 for 15.18.
    pub async fn server_version(&self) -> Result<u32> {
        let query = "SELECT current_setting('server_version_num')::int4";
        let row = self
            .client
            .query_one(query, &[])
            .await
            .map_err(|e| failure::from_client(e, "Reading the server's version"))?;
        let version: i32 = row.get(0);
        Ok(version.unsigned_abs())
    }

    /// The position up to which the server's WAL is durable: what can be sent at most. Writes nothing.
    pub async fn flushed_position(&self) -> Result<Lsn> {
        Ok(self.position().await?.0)
    }

    /// The same, and whether the server is a standby.
    pub async fn position(&self) -> Result<(Lsn, bool)> {
        let query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
                     pg_is_in_recovery()";
        let row = self
            .client
            .query_one(query, &[])
            .await
            .map_err(|e| failure::from_client(e, "Reading the source's WAL position"))?;
        let position: PgLsn = row.get(0);
        Ok((Lsn(position.into()), row.get(1)))
    }

    /// A server setting's value.
    pub async fn setting(&self, name: &str) -> Result<String> {
        let row = self
            .client
            .query_one("SELECT current_setting($1)", &[&name])
            .await
            .map_err(|e| failure::from_client(e, "Reading a setting"))?;
        Ok(row.get(0))
    }

    /// Whether a transaction that has written its commit record is seen by all queries from now on: it holds the lock on its own
    /// id until then. (`ProcArrayEndTransaction` comes after the record, and after a wait for a synchronous standby.)
    pub async fn is_visible(&self, xid: u32) -> Result<bool> {
        let query = "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND transactionid::text = $1 \
                     AND mode = 'ExclusiveLock' AND granted)";
        let row = self
            .client
            .query_one(query, &[&xid.to_string()])
            .await
            .map_err(|e| failure::from_client(e, "Looking whether a transaction has ended"))?;
        Ok(row.get(0))
    }

    /// Takes a lock of that name in the database, unless another session holds it. It goes with this session.
    pub async fn try_lock(&self, name: &str) -> Result<bool> {
        let row = self
            .client
            .query_one("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", &[&name])
            .await
            .map_err(|e| failure::from_client(e, "Taking the pipeline's lock"))?;
        Ok(row.get(0))
    }

    /// The position up to which everything is read that was visible to readers when this was called, commits with
    /// `synchronous_commit = off` included. An idle server does send its WAL up to here.
    pub async fn wal_position(&self) -> Result<Lsn> {
        const WHAT: &str = "Reading the source's WAL position";
        let query = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                     ELSE pg_current_wal_insert_lsn() END, \
                     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
                     (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_block_size'), \
                     (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')";
        let row = self.client.query_one(query, &[]).await.map_err(|error| failure::from_client(error, WHAT))?;
        let inserted: PgLsn = row.get(0);
        let flushed: PgLsn = row.get(1);
        let (page, segment): (i64, i64) = (row.get(2), row.get(3));
        let position = before_page_header(u64::from(inserted), page.unsigned_abs(), segment.unsigned_abs());
        if u64::from(flushed) < position {
            // Only flushed WAL is sent. What other transactions have written so far may wait long for the next flush; an
            // (empty) commit of ours makes the WAL writer flush up to it. A read-only role's failure costs time only.
            let _ = self.client.batch_execute("SELECT pg_current_xact_id()").await;
        }
        Ok(Lsn(position))
    }
}

/// The insert position names where the next record's bytes go: at a page's start, past the page's header. Nothing is
/// sent up to there before something is written, so step back to the page's start.
///
/// Source: `XLogPageHeaderData` (24 bytes) and `XLogLongPageHeaderData` (40 bytes, first page of a segment).
fn before_page_header(position: u64, page: u64, segment: u64) -> u64 {
    let header = if position % segment < page { 40 } else { 24 };
    if position % page == header { position - header } else { position }
}

fn login_error(error: tokio_postgres::Error) -> LoginError {
    if let Some(server) = failure::server_error(&error) {
        let not_admitted = server.not_admitted();
        return LoginError { error: server.into_error("Logging in"), not_admitted };
    }
    let from_socket = error.is_closed() || error.source().is_some_and(|cause| cause.is::<std::io::Error>());
    let error = match from_socket {
        true => failure::from_client(error, "Logging in"),
        false => Error::new(ErrorKind::Precondition, "logging in failed")
            .caused_by(error)
            .remedy("Check user and password in the source's url."),
    };
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_behind_a_page_header_step_back() {
        let (page, segment) = (8192, 16 << 20);
        assert_eq!(before_page_header(3 * segment + 40, page, segment), 3 * segment);
        assert_eq!(before_page_header(3 * segment + 24, page, segment), 3 * segment + 24);
        assert_eq!(before_page_header(3 * segment + 2 * page + 24, page, segment), 3 * segment + 2 * page);
        assert_eq!(before_page_header(3 * segment + 2 * page + 40, page, segment), 3 * segment + 2 * page + 40);
        assert_eq!(before_page_header(3 * segment + 2 * page, page, segment), 3 * segment + 2 * page);
    }
}
