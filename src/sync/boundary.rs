//! A flush that ends exactly at a source position that somebody else names.
//!
//! The position is not known when it is asked for: it is the consistent point of a slot that is yet to be made, and a stream
//! that goes on meanwhile has long passed it then. So the stream first stops to read, for a while that ends by itself:
//!
//! ```text
//!  free ──hold──► asked ──stream──► holding ──flush_at(L)──► due ──stream──► reached, or standing
//!   ▲                                   │ patience ends                         │
//!   └───────────────────────────────────┴────────────release────────────────────┘
//! ```
//!
//! While the stream holds, the WAL waits in the server, and what was received is flushed as ever. A stream that is to stand at L
//! reads on, but flushes nothing: the lake shows L as long as that is asked for again and again. Whoever asks may die at any
//! point: the patience ends, and the stream goes on.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::failpoint::failpoint;
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
    /// It reads on, and ends a flush at the position; `stands` there afterwards.
    Due {
        lsn: Lsn,
        until: Instant,
        stands: bool,
    },
    /// The lake's snapshot shows the source at exactly the position.
    Reached(Lsn, i64),
    /// As reached, and nothing is flushed until then.
    Standing {
        lsn: Lsn,
        snapshot: i64,
        until: Instant,
    },
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
    FlushAt {
        /// The position.
        lsn: Lsn,
        /// The lake shall not pass it afterwards.
        stands: bool,
    },
    /// Read on, but flush nothing.
    Stand,
}

/// How long a stream stands still for somebody who does not ask for it again.
pub const STANDS: Duration = Duration::from_secs(30);

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
                State::Asked(end)
                | State::Holding(end)
                | State::Due { until: end, .. }
                | State::Standing { until: end, .. } => end <= Instant::now(),
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

    /// Lets the stream read on, and waits until a lake snapshot shows exactly this position. Returns the snapshot's id. With
    /// `stands`, the lake goes on showing the position for [`STANDS`], or until [`Boundary::release`].
    ///
    /// # Errors
    /// Kind `Transient`, where the stream was past it already, or does not get there in time.
    pub async fn flush_at(&self, lsn: Lsn, patience: Duration, stands: bool) -> Result<i64> {
        let until = Instant::now() + patience;
        self.state.send_replace(State::Due { lsn, until, stands });
        let ended = self.wait(patience, |state| !matches!(state, State::Due { .. })).await;
        match ended {
            Some(State::Reached(at, snapshot) | State::Standing { lsn: at, snapshot, .. }) if at == lsn => Ok(snapshot),
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

    /// Keeps a stream that stands at this position there, for [`STANDS`] from now on.
    ///
    /// # Errors
    /// Kind `Transient`, where it does not stand there any more.
    pub fn stand(&self, at: Lsn) -> Result<()> {
        let now = Instant::now();
        let stands = self.state.send_if_modified(|state| match state {
            State::Standing { lsn, until, .. } if *lsn == at && *until > now => {
                *until = now + STANDS;
                true
            }
            _ => false,
        });
        if stands { Ok(()) } else { Err(moved_on(at)) }
    }

    /// Ends a request: the stream goes on as ever.
    pub fn release(&self) {
        self.state.send_if_modified(|state| std::mem::replace(state, State::Free) != State::Free);
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
            State::Due { lsn, until, stands } if until > now => Wish::FlushAt { lsn, stands },
            State::Standing { until, .. } if until > now => Wish::Stand,
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
        failpoint("reached");
        self.end(lsn, |stands| match stands {
            true => State::Standing { lsn, snapshot, until: Instant::now() + STANDS },
            false => State::Reached(lsn, snapshot),
        });
    }

    /// The stream is at `at` already, past `lsn`.
    pub fn missed(&self, lsn: Lsn, at: Lsn) {
        self.end(lsn, |_| State::Missed(at));
    }

    fn end(&self, lsn: Lsn, with: impl FnOnce(bool) -> State) {
        self.state.send_if_modified(|state| match *state {
            State::Due { lsn: due, stands, .. } if due == lsn => {
                *state = with(stands);
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

/// The lake does not show the position any more.
pub fn moved_on(from: Lsn) -> Error {
    Error::new(ErrorKind::Transient, format!("the stream went on from {from}, where it was to stand"))
        .remedy("try again")
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
                boundary.flush_at(Lsn(7), PATIENCE, false).await
            }
        });
        let mut states = boundary.state.subscribe();
        states.wait_for(|state| matches!(state, State::Asked(_))).await.unwrap();
        assert_eq!(boundary.wish(), Wish::Hold);
        assert!(boundary.hold(PATIENCE).await.is_err(), "one at a time");
        boundary.holding();
        states.wait_for(|state| matches!(state, State::Due { .. })).await.unwrap();
        assert_eq!(boundary.wish(), Wish::FlushAt { lsn: Lsn(7), stands: false });
        boundary.reached(Lsn(6), 1);
        assert_eq!(boundary.wish(), Wish::FlushAt { lsn: Lsn(7), stands: false });
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
        let (lsn, until) = (Lsn(1), Instant::now() - short);
        boundary.state.send_replace(State::Due { lsn, until, stands: true });
        assert_eq!(boundary.wish(), Wish::Nothing);
        boundary.state.send_replace(State::Standing { lsn, snapshot: 1, until });
        assert_eq!(boundary.wish(), Wish::Nothing);
        assert!(boundary.stand(lsn).is_err(), "it may have moved on");
    }

    #[tokio::test]
    async fn a_stream_stands_as_long_as_it_is_asked() {
        let boundary = Arc::new(Boundary::default());
        let asking = tokio::spawn({
            let boundary = Arc::clone(&boundary);
            async move { boundary.flush_at(Lsn(7), PATIENCE, true).await }
        });
        let mut states = boundary.state.subscribe();
        states.wait_for(|state| matches!(state, State::Due { .. })).await.unwrap();
        assert_eq!(boundary.wish(), Wish::FlushAt { lsn: Lsn(7), stands: true });
        boundary.reached(Lsn(7), 42);
        assert_eq!(boundary.wish(), Wish::Stand, "before whoever asked has woken up");
        assert_eq!(asking.await.unwrap().unwrap(), 42);
        boundary.stand(Lsn(7)).unwrap();
        assert!(boundary.stand(Lsn(8)).is_err());
        assert!(boundary.hold(PATIENCE).await.is_err(), "one at a time");
        boundary.release();
        assert_eq!(boundary.wish(), Wish::Nothing);
    }
}
