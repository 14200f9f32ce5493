//! A flush that ends exactly at a source position that somebody else names.
//!
//! The position is not known when it is asked for: it is the consistent point of a slot that is yet to be made, and a stream
//! that goes on meanwhile has long passed it then. So the stream first stops to read, for a while that ends by itself:
//!
//! ```text
//!  free ──hold──► asked ──stream──► holding ──flush_at(L)──► due ──stream──► reached
//!   ▲                                   │ patience ends                         │
//!   └───────────────────────────────────┴────────────release────────────────────┘
//! ```
//!
//! While the stream holds, the WAL waits in the server, and what was received is flushed as ever. Whoever asks may die at any
//! point: the patience ends, and the stream goes on.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// The stream shall read no further.
    Asked(Instant),
    /// It reads no further, until then.
    Holding(Instant),
    /// It reads on, and ends a flush at the position.
    Due(Lsn, Instant),
    /// The lake's snapshot shows the source at exactly the position.
    Reached(Lsn, i64),
    /// The stream was past the position already.
    Missed(Lsn),
}

/// What a stream has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on as ever.
    Nothing,
    /// Read no further.
    Hold,
    /// End a flush at this position.
    FlushAt(Lsn),
}

/// Connects a running stream with whoever wants a flush to end at a position. One request at a time.
#[derive(Debug)]
pub struct Boundary {
    state: watch::Sender<State>,
}

impl Default for Boundary {
    fn default() -> Self {
        Boundary { state: watch::Sender::new(State::Free) }
    }
}

impl Boundary {
    /// Stops the stream's reading: every position that the source reaches from now on lies past what was read. It reads on
    /// after `patience`.
    ///
    /// # Errors
    /// Kind `Transient`, where another request is under way, or the stream does not answer.
    pub async fn hold(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let taken = self.state.send_if_modified(|state| {
            let free = match *state {
                State::Free | State::Reached(..) | State::Missed(_) => true,
                State::Asked(end) | State::Holding(end) | State::Due(_, end) => end <= Instant::now(),
            };
            if free {
                *state = State::Asked(until);
            }
            free
        });
        if !taken {
            return Err(
                Error::new(ErrorKind::Transient, "another `duckpipe validate` is under way").remedy("wait for its end")
            );
        }
        let asked = self.wait(patience, |state| !matches!(state, State::Asked(_))).await;
        match asked {
            Some(State::Holding(end)) if end == until => Ok(()),
            _ => {
                self.release();
                Err(Error::new(ErrorKind::Transient, "the stream is not under way")
                    .remedy("`duckpipe status` shows it"))
            }
        }
    }

    /// Lets the stream read on, and waits until a lake snapshot shows exactly this position. Returns the snapshot's id.
    ///
    /// # Errors
    /// Kind `Transient`, where the stream was past it already, or does not get there in time.
    pub async fn flush_at(&self, lsn: Lsn, patience: Duration) -> Result<i64> {
        let until = Instant::now() + patience;
        self.state.send_replace(State::Due(lsn, until));
        let ended = self.wait(patience, |state| !matches!(state, State::Due(..))).await;
        match ended {
            Some(State::Reached(at, snapshot)) if at == lsn => Ok(snapshot),
            Some(State::Missed(at)) => Err(Error::new(
                ErrorKind::Transient,
                format!("the stream was at {at} already when it was to stop at {lsn}"),
            )
            .remedy("try again")),
            Some(_) => Err(Error::new(ErrorKind::Transient, "another `duckpipe validate` came in between")),
            None => {
                self.release();
                Err(Error::new(
                    ErrorKind::Transient,
                    format!("the lake did not reach {lsn} within {} s", patience.as_secs()),
                )
                .remedy("`duckpipe status` shows how far it is behind; give more time with --timeout"))
            }
        }
    }

    /// Ends a request: the stream goes on as ever.
    pub fn release(&self) {
        self.state.send_replace(State::Free);
    }

    async fn wait(&self, patience: Duration, wanted: impl Fn(&State) -> bool) -> Option<State> {
        let mut changes = self.state.subscribe();
        let found = tokio::time::timeout(patience, changes.wait_for(wanted)).await;
        found.ok()?.ok().map(|state| *state)
    }

    // --- the stream's side -------------------------------------------------------------------------------------------

    /// What the stream has to do now; it calls this before it reads.
    pub fn wish(&self) -> Wish {
        let now = Instant::now();
        match *self.state.borrow() {
            State::Asked(end) | State::Holding(end) if end > now => Wish::Hold,
            State::Due(lsn, end) if end > now => Wish::FlushAt(lsn),
            _ => Wish::Nothing,
        }
    }

    /// The stream reads no further.
    pub fn holding(&self) {
        self.state.send_if_modified(|state| match *state {
            State::Asked(end) => {
                *state = State::Holding(end);
                true
            }
            _ => false,
        });
    }

    /// The lake's snapshot shows exactly `lsn`.
    pub fn reached(&self, lsn: Lsn, snapshot: i64) {
        self.end(lsn, State::Reached(lsn, snapshot));
    }

    /// The stream is at `at` already, past `lsn`.
    pub fn missed(&self, lsn: Lsn, at: Lsn) {
        self.end(lsn, State::Missed(at));
    }

    fn end(&self, lsn: Lsn, with: State) {
        self.state.send_if_modified(|state| match *state {
            State::Due(due, _) if due == lsn => {
                *state = with;
                true
            }
            _ => false,
        });
    }

    /// Becomes ready when there may be another wish.
    pub fn subscribe(&self) -> impl Future<Output = ()> + use<> {
        let mut changes = self.state.subscribe();
        async move {
            // The sender lives as long as the stream.
            let _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_request_goes_its_way() {
        let boundary = Arc::new(Boundary::default());
        assert_eq!(boundary.wish(), Wish::Nothing);
        let asking = tokio::spawn({
            let boundary = Arc::clone(&boundary);
            async move {
                boundary.hold(PATIENCE).await?;
                boundary.flush_at(Lsn(7), PATIENCE).await
            }
        });
        let mut states = boundary.state.subscribe();
        states.wait_for(|state| matches!(state, State::Asked(_))).await.unwrap();
        assert_eq!(boundary.wish(), Wish::Hold);
        assert!(boundary.hold(PATIENCE).await.is_err(), "one at a time");
        boundary.holding();
        states.wait_for(|state| matches!(state, State::Due(..))).await.unwrap();
        assert_eq!(boundary.wish(), Wish::FlushAt(Lsn(7)));
        boundary.reached(Lsn(6), 1);
        assert_eq!(boundary.wish(), Wish::FlushAt(Lsn(7)));
        boundary.reached(Lsn(7), 42);
        assert_eq!(asking.await.unwrap().unwrap(), 42);
        assert_eq!(boundary.wish(), Wish::Nothing);
    }

    #[tokio::test]
    async fn patience_ends_a_request_whose_client_died() {
        let boundary = Boundary::default();
        let short = Duration::from_millis(1);
        assert!(boundary.hold(short).await.is_err());
        boundary.state.send_replace(State::Holding(Instant::now() - short));
        assert_eq!(boundary.wish(), Wish::Nothing);
        boundary.state.send_replace(State::Due(Lsn(1), Instant::now() - short));
        assert_eq!(boundary.wish(), Wish::Nothing);
    }
}
