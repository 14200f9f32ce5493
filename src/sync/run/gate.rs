//! How a copy beside the stream has the stream stand still for a moment, so that its tables can join it.

use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, watch};

use crate::lsn::Lsn;

/// Between the stream and a copy beside it.
pub(super) struct Gate {
    turn: Mutex<()>,
    wanted: watch::Sender<bool>,
    stands: watch::Sender<Option<Lsn>>,
}

impl Gate {
    pub(super) fn new() -> Gate {
        Gate { turn: Mutex::default(), wanted: watch::Sender::new(false), stands: watch::Sender::new(None) }
    }

    /// One at a time decides which tables the stream has.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Asks the stream to stand still. `None`: it did not within `patience`.
    pub(super) async fn close(&self, patience: Duration) -> Option<Closed<'_>> {
        let mut closed = Closed { gate: self, at: Lsn(0) };
        self.wanted.send_replace(true);
        let mut stands = self.stands.subscribe();
        let at = tokio::time::timeout(patience, stands.wait_for(Option::is_some)).await;
        closed.at = at.ok()?.ok().and_then(|at| *at)?;
        Some(closed)
    }

    // --- the stream's side -------------------------------------------------------------------------------------------

    /// Becomes ready when the stream is to stand still.
    pub(super) async fn closed(&self) {
        // The sender lives as long as this.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// The stream stands at a position; returns when it may go on. Whoever waits no longer for that does not stand either.
    pub(super) async fn stand(&self, at: Lsn) {
        self.stands.send_replace(Some(at));
        let _standing = Standing(&self.stands);
        let _ = self.wanted.subscribe().wait_for(|wanted| !*wanted).await;
    }
}

/// The stream stands still as long as this lives.
pub(super) struct Closed<'a> {
    gate: &'a Gate,
    /// Where it does.
    pub(super) at: Lsn,
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.gate.wanted.send_replace(false);
    }
}

struct Standing<'a>(&'a watch::Sender<Option<Lsn>>);

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_stream_stands_until_it_is_released() {
        let gate = Arc::new(Gate::new());
        assert!(!*gate.wanted.borrow());
        let stream = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move {
                gate.closed().await;
                gate.stand(Lsn(7)).await;
            }
        });
        let closed = gate.close(Duration::from_secs(20)).await.unwrap();
        assert_eq!(closed.at, Lsn(7));
        assert!(*gate.wanted.borrow() && !stream.is_finished());
        drop(closed);
        stream.await.unwrap();
        assert!(gate.close(Duration::from_millis(1)).await.is_none(), "nobody is there");
        assert!(!*gate.wanted.borrow());
    }
}
