//! A stream over as many connections to the source as it takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::gate::Gate;
use super::{Outcome, Runner, Table, take_turn};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Fence, PipelineChange, PipelineRow, PipelineState, TableState};
use crate::lsn::Lsn;
use crate::source::replication::{RESYNC, ReplicationConnection, StreamOptions as WalOptions};
use crate::source::session::Session;
use crate::sync::boundary::Boundary;
use crate::sync::definition::Definitions;
use crate::sync::pipeline::Pipeline;
use crate::sync::prepare;
use crate::sync::stream::{SharedTables, Stream, StreamOptions};

/// Tries of one flush when a single run meets a failing store or catalog.
const ATTEMPTS_ONCE: u32 = 6;
/// Tries to have the server decode what follows one position, before the slot is given up.
const ATTEMPTS_TO_DECODE: u32 = 6;
/// The longest pause between two connections to the source.
const MOST_BACKOFF: Duration = Duration::from_secs(30);

/// What one connection reads.
pub(super) struct Reading<'a> {
    /// A session in the source beside it.
    pub(super) session: &'a Session,
    pub(super) slot: &'a str,
    pub(super) from: Lsn,
    /// The tables' state, and the position at which one that catches up is level; `None`: where the source is now.
    pub(super) state: (TableState, Option<Lsn>),
    pub(super) until: Option<Lsn>,
    pub(super) boundary: Arc<Boundary>,
}

impl Runner<'_> {
    /// Streams, over as many connections as it takes, and copies tables beside that.
    pub(super) async fn stream(
        &self,
        pipeline: &Arc<Pipeline>,
        tables: &[Table],
        from: Lsn,
        state: TableState,
        until: Option<Lsn>,
    ) -> Result<Outcome> {
        for (table, _) in tables {
            table.progress.set_state(state);
        }
        let (tables, gate) = (SharedTables::new(tables.to_vec()), Gate::new());
        let stream = self.follow(pipeline, (&tables, &gate), from, state, until);
        if until.is_some() {
            // It ends where the source is now: a copy would begin after that.
            return stream.await;
        }
        tokio::select! {
            outcome = stream => outcome,
            Err(error) = self.copy_beside(pipeline, &tables, &gate) => Err(error),
            Err(error) = self.mind_wishes(pipeline, &tables, &gate) => Err(error),
        }
    }

    async fn follow(
        &self,
        pipeline: &Arc<Pipeline>,
        (tables, gate): (&SharedTables, &Gate),
        from: Lsn,
        state: TableState,
        until: Option<Lsn>,
    ) -> Result<Outcome> {
        let mut from = from;
        let mut pause = Duration::from_millis(200);
        let mut failures = 0;
        let (mut stuck_at, mut tries_to_decode) = (from, 0);
        let mut renewed: Option<Session> = None;
        loop {
            let started = tokio::time::Instant::now();
            let session = renewed.as_ref().unwrap_or(&self.session);
            let slot = self.config.source.slot.as_str();
            let boundary = Arc::clone(&self.boundary);
            let reading = Reading { session, slot, from, state: (state, None), until, boundary };
            let (end, ended) = watch::channel(false);
            let ended = tokio::select! {
                ended = self.stream_once(pipeline, tables, reading, ended) => ended,
                error = self.watch_source(session) => Err(error),
                never = self.end_stream(gate, end) => match never {},
            };
            let stopped = *self.stop.borrow();
            let error = match ended {
                // It was to stand still, if only for somebody who no longer waits for that.
                Ok(_) if until.is_none() && !stopped => {
                    // A flush that was given up on may have got in for all that.
                    match self.lake.position(&self.config.name, None).await {
                        Ok(stands) => {
                            from = stands.unwrap_or(from);
                            tokio::select! {
                                () = gate.stand(from) => {}
                                error = self.watch_source(session) => tracing::debug!(%error, "while the stream stands"),
                                () = self.told_to_stop() => {}
                            }
                            continue;
                        }
                        Err(error) if error.kind() == ErrorKind::Transient => error,
                        Err(error) => return Err(error),
                    }
                }
                Ok(_) => return self.outcome().await,
                Err(error) if error.kind() == ErrorKind::Transient => error,
                Err(error) if error.kind() == ErrorKind::Undecodable => {
                    tries_to_decode = if stuck_at == from { tries_to_decode + 1 } else { 1 };
                    stuck_at = from;
                    if tries_to_decode == ATTEMPTS_TO_DECODE {
                        return Err(error.of_kind(ErrorKind::ResyncNeeded).remedy(RESYNC));
                    }
                    error
                }
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

    /// Tells the stream to end, when the process is told to, or a copy wants it to stand still. Never returns.
    async fn end_stream(&self, gate: &Gate, end: watch::Sender<bool>) -> Infallible {
        tokio::select! {
            () = self.told_to_stop() => {}
            () = gate.closed() => {}
        }
        end.send_replace(true);
        std::future::pending().await
    }

    async fn told_to_stop(&self) {
        // The sender lives as long as the process.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
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
        prepare::check_continuity(session, &mut replication, &identity, &self.settings, &row).await?;
        self.on_timeline(fence, &row, identity.timeline).await?;
        Ok((new, row.lsn))
    }

    /// From here on the lake's position is one of this timeline.
    pub(super) async fn on_timeline(&self, fence: &Fence, row: &PipelineRow, timeline: u32) -> Result<()> {
        if row.timeline == timeline {
            return Ok(());
        }
        let change = PipelineChange { timeline: Some(timeline), ..PipelineChange::default() };
        self.lake.set_state(fence, PipelineState::Streaming, &change).await
    }

    /// Shows the source's position until its session breaks: with it goes the lock that keeps a second `sync` away. A standby that is
    /// promoted goes on sending, on a timeline that is looked at where a stream begins.
    async fn watch_source(&self, session: &Session) -> Error {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut was_standby = false;
        loop {
            tick.tick().await;
            match session.position().await {
                Ok((_, false)) if was_standby => {
                    return Error::new(ErrorKind::Transient, "the source is no standby any more");
                }
                Ok((position, standby)) => {
                    was_standby = standby;
                    self.progress.source(position);
                }
                Err(error) => return error,
            }
        }
    }

    /// Streams over one connection; returns the applied position.
    pub(super) async fn stream_once(
        &self,
        pipeline: &Arc<Pipeline>,
        tables: &SharedTables,
        reading: Reading<'_>,
        stop: watch::Receiver<bool>,
    ) -> Result<Lsn> {
        let Reading { session, slot, from, state: (state, level_at), until, boundary } = reading;
        let replication = ReplicationConnection::connect(&self.settings).await?;
        let binary = tables.all().iter().all(|(table, _)| table.layout.reads_binary());
        let wal = replication
            .start(&WalOptions {
                slot: slot.to_owned(),
                publication: self.config.source.publication.clone(),
                from,
                binary,
                streaming: true,
            })
            .await?;
        wal.confirm(from);
        pipeline.progress.begins(from);
        let options = StreamOptions {
            flush_interval: self.config.sync.flush_interval,
            on_unrepresentable: self.config.sync.on_unrepresentable,
            until,
            // Only an end that nobody else counts on can be put off.
            looks_at_end: self.options.once && self.options.until.is_none() && pipeline.slot.is_none(),
            boundary,
            attempts: self.options.once.then_some(ATTEMPTS_ONCE),
        };
        // Tables that catch up are level with the others where the source was when the stream began.
        let level_at = match level_at.or(until) {
            Some(level_at) => level_at,
            None => session.flushed_position().await?,
        };
        let definitions = Definitions { session, config: self.config, binary };
        let place = (state, level_at);
        Stream::new(Arc::clone(pipeline), options, wal, (definitions, tables), from, place).run(stop).await
    }
}
