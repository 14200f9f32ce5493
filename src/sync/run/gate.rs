//! How a copy beside the stream has the stream stand still for a moment, so that its tables can join it.

use std::time::Duration;

use tokio::sync::watch;

use crate::lsn::Lsn;

/// Between the stream and a copy beside it.
pub(super) struct Gate {
    wanted: watch::Sender<bool>,
    stands: watch::Sender<Option<Lsn>>,
}

impl Gate {
    pub(super) fn new() -> Gate {
        Gate { wanted: watch::Sender::new(false), stands: watch::Sender::new(None) }
    }

    /// Asks the stream to stand still. Returns where it does; `None`: not within `patience`. It stands until [`Gate::release`].
    pub(super) async fn close(&self, patience: Duration) -> Option<Lsn> {
        self.wanted.send_replace(true);
        let mut stands = self.stands.subscribe();
        let at = tokio::time::timeout(patience, stands.wait_for(Option::is_some)).await;
        at.ok()?.ok().and_then(|at| *at)
    }

    /// Lets the stream go on.
    pub(super) fn release(&self) {
        self.wanted.send_replace(false);
    }

    // --- the stream's side -------------------------------------------------------------------------------------------

    /// Becomes ready when the stream is to stand still.
    pub(super) async fn closed(&self) {
        // The sender lives as long as this.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Whether the stream is to stand still.
    pub(super) fn is_closed(&self) -> bool {
        *self.wanted.borrow()
    }

    /// The stream stands at a position; returns when it may go on. Whoever waits no longer for that does not stand either.
    pub(super) async fn stand(&self, at: Lsn) {
        self.stands.send_replace(Some(at));
        let _standing = Standing(&self.stands);
        let _ = self.wanted.subscribe().wait_for(|wanted| !*wanted).await;
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
        assert!(!gate.is_closed());
        let stream = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move {
                gate.closed().await;
                gate.stand(Lsn(7)).await;
            }
        });
        assert_eq!(gate.close(Duration::from_secs(20)).await, Some(Lsn(7)));
        assert!(gate.is_closed() && !stream.is_finished());
        gate.release();
        stream.await.unwrap();
        assert_eq!(gate.close(Duration::from_millis(1)).await, None, "nobody is there");
    }
}
