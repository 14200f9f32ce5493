//! A stream over as many connections to the source as it takes.

use std::sync::Arc;
use std::time::Duration;

use super::{Outcome, Runner, Table, take_turn};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Fence, TableState};
use crate::lsn::Lsn;
use crate::source::replication::{ReplicationConnection, StreamOptions as WalOptions};
use crate::source::session::Session;
use crate::sync::definition::Definitions;
use crate::sync::pipeline::Pipeline;
use crate::sync::prepare;
use crate::sync::stream::{SharedTables, Stream, StreamOptions};

/// Tries of one flush when a single run meets a failing store or catalog.
const ATTEMPTS_ONCE: u32 = 6;
/// The longest pause between two connections to the source.
const MOST_BACKOFF: Duration = Duration::from_secs(30);

impl Runner<'_> {
    /// Streams, over as many connections as it takes.
    pub(super) async fn stream(
        &self,
        pipeline: &Arc<Pipeline>,
        tables: &[Table],
        from: Lsn,
        state: TableState,
        until: Option<Lsn>,
    ) -> Result<Outcome> {
        let mut from = from;
        let mut pause = Duration::from_millis(200);
        let mut failures = 0;
        let mut renewed: Option<Session> = None;
        for (table, _) in tables {
            table.progress.set_state(state);
        }
        let tables = SharedTables::new(tables.to_vec());
        loop {
            let started = tokio::time::Instant::now();
            let session = renewed.as_ref().unwrap_or(&self.session);
            let ended = tokio::select! {
                ended = self.stream_once(session, pipeline, &tables, from, state, until) => ended,
                error = self.watch_source(session) => Err(error),
            };
            let error = match ended {
                Ok(_) => return self.outcome().await,
                Err(error) if error.kind() == ErrorKind::Transient => error,
                Err(error) => return Err(error),
            };
            failures += 1;
            if self.options.once && failures >= ATTEMPTS_ONCE {
                return Err(error);
            }
            if started.elapsed() > MOST_BACKOFF {
                pause = Duration::from_millis(200);
            }
            tracing::warn!(%error, ?pause, "the stream broke; connecting again");
            let session = renewed.as_ref().unwrap_or(&self.session);
            match self.reconnect(session, &pipeline.fence, &mut pause).await? {
                Some((session, lsn)) => {
                    from = lsn.unwrap_or(from);
                    if session.is_some() {
                        renewed = session;
                    }
                }
                None => return self.outcome().await,
            }
        }
    }

    /// Waits until the source answers again and still continues the lake. Returns a new session, where the old one is broken,
    /// and the position to go on from; `None`: told to stop.
    async fn reconnect(
        &self,
        old: &Session,
        fence: &Fence,
        pause: &mut Duration,
    ) -> Result<Option<(Option<Session>, Option<Lsn>)>> {
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(*pause) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(None),
            }
            *pause = (*pause * 2).min(MOST_BACKOFF);
            match self.take_over(old, fence).await {
                Err(error) if error.kind() == ErrorKind::Transient => {
                    tracing::warn!(%error, ?pause, "the source does not answer; trying again");
                }
                other => return other.map(Some),
            }
        }
    }

    async fn take_over(&self, old: &Session, fence: &Fence) -> Result<(Option<Session>, Option<Lsn>)> {
        let Some(row) = self.lake.pipeline(&self.config.name).await?.filter(|row| row.epoch == fence.epoch) else {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!("another process has taken pipeline {} over", self.config.name),
            )
            .remedy("one `duckpipe sync` per pipeline: find the other one"));
        };
        // The session that is still alive holds the lock: a second one would wait for it in vain.
        let new = match old.flushed_position().await {
            Ok(_) => None,
            Err(_) => Some(Session::connect(&self.settings).await?),
        };
        let session = new.as_ref().unwrap_or(old);
        // Until the server notices that a connection is gone, its lock and its walsender stay: they are waited for.
        take_turn(session, &self.config.source.slot)
            .await
            .map_err(|error| Error::new(ErrorKind::Transient, error.to_string()))?;
        let mut replication = ReplicationConnection::connect(&self.settings).await?;
        let identity = replication.identify_system().await?;
        let database = self.settings.database();
        prepare::check_continuity(session, &mut replication, &identity, database, &row).await?;
        Ok((new, row.lsn))
    }

    /// Shows the source's position until its session breaks: with it goes the lock that keeps a second `sync` away.
    async fn watch_source(&self, session: &Session) -> Error {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            match session.flushed_position().await {
                Ok(position) => self.progress.source(position),
                Err(error) => return error,
            }
        }
    }

    async fn stream_once(
        &self,
        session: &Session,
        pipeline: &Arc<Pipeline>,
        tables: &SharedTables,
        from: Lsn,
        state: TableState,
        until: Option<Lsn>,
    ) -> Result<Lsn> {
        let replication = ReplicationConnection::connect(&self.settings).await?;
        let source = &self.config.source;
        let binary = tables.all().iter().all(|(table, _)| table.layout.reads_binary());
        let wal = replication
            .start(&WalOptions {
                slot: source.slot.clone(),
                publication: source.publication.clone(),
                from,
                binary,
                streaming: true,
            })
            .await?;
        wal.confirm(from);
        let options = StreamOptions {
            flush_interval: self.config.sync.flush_interval,
            on_unrepresentable: self.config.sync.on_unrepresentable,
            until,
            boundary: Arc::clone(&self.boundary),
            attempts: self.options.once.then_some(ATTEMPTS_ONCE),
        };
        // Tables that catch up are level with the others where the source was when the stream began.
        let level_at = match until {
            Some(until) => until,
            None => session.flushed_position().await?,
        };
        let definitions = Definitions { session, config: self.config, binary };
        Stream::new(Arc::clone(pipeline), options, wal, (definitions, tables), from, (state, level_at))
            .run(self.stop.clone())
            .await
    }
}
