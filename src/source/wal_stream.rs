//! The stream of WAL messages: a task owns the socket, so that feedback never waits for what the messages are used for.
//!
//! The task reads into a queue that is bounded in bytes and goes on sending feedback when the queue is full, because a
//! server that hears nothing for `wal_sender_timeout` ends the stream. Messages are not looked at one by one: the task
//! cuts what has arrived at a message boundary and hands it on as one chunk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::failure::ServerError;
use super::replication::RESYNC;
use super::socket::Socket;
use super::wire;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;

/// Bytes of messages that may wait to be taken. One message alone may be larger.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// The longest silence towards the server. Half of the shortest `wal_sender_timeout` that anybody sets.
const FEEDBACK_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two feedback messages for positions that were confirmed.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(100);

/// How long the end of the stream may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A logical replication stream.
///
/// Dropping it ends the connection at once; [`WalStream::close`] ends it in order.
pub struct WalStream {
    chunks: mpsc::UnboundedReceiver<Result<(WalChunk, OwnedSemaphorePermit)>>,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<bool>,
}

/// What the stream's user tells the task.
#[derive(Default)]
struct Shared {
    /// The position that feedback reports; 0: none yet.
    confirmed: AtomicU64,
    keepalive_wanted: AtomicBool,
    closing: AtomicBool,
    wake: Notify,
}

impl Shared {
    fn confirm(&self, position: Lsn) {
        let before = self.confirmed.fetch_max(position.0, Ordering::AcqRel);
        if before < position.0 {
            self.wake.notify_one();
        }
    }

    fn request_keepalive(&self) {
        self.keepalive_wanted.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// Confirms positions of a [`WalStream`]. Of no effect once that has ended.
#[derive(Clone)]
pub struct Confirmer(Arc<Shared>);

impl Confirmer {
    /// See [`WalStream::confirm`].
    pub fn confirm(&self, position: Lsn) {
        self.0.confirm(position);
    }

    /// See [`WalStream::request_keepalive`].
    pub fn request_keepalive(&self) {
        self.0.request_keepalive();
    }
}

impl WalStream {
    pub(crate) fn spawn(socket: Box<dyn Socket>, input: BytesMut) -> WalStream {
        let shared = Arc::new(Shared::default());
        let (sender, chunks) = mpsc::unbounded_channel();
        let now = Instant::now();
        let task = Task {
            socket,
            input,
            shared: shared.clone(),
            chunks: sender,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            reported: Lsn::ZERO,
            last_feedback: now,
            feedback_due: now,
            reply_requested: false,
        };
        WalStream { chunks, shared, task: tokio::spawn(task.run()) }
    }

    /// The next messages, as many as have arrived together. `None`: the server ended the stream in order.
    ///
    /// Cancel-safe. Fails with [`ErrorKind::Transient`] where the connection broke, [`ErrorKind::ResyncNeeded`] where
    /// the slot or its publication can't serve this stream any more.
    pub async fn next(&mut self) -> Result<Option<WalChunk>> {
        match self.chunks.recv().await {
            Some(Ok((chunk, _room))) => Ok(Some(chunk)),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }

    /// Reports `position` to the server as written, flushed and applied: it may forget the WAL before. Never moves back.
    ///
    /// Until the first call, feedback reports no position, and the slot stays where it is.
    pub fn confirm(&self, position: Lsn) {
        self.shared.confirm(position);
    }

    /// Asks the server for a keepalive now: it answers with the position up to which everything has been sent.
    pub fn request_keepalive(&self) {
        self.shared.request_keepalive();
    }

    /// A handle that confirms from elsewhere while [`WalStream::next`] waits.
    pub fn confirmer(&self) -> Confirmer {
        Confirmer(self.shared.clone())
    }

    /// Sends the last confirmed position and ends the stream, so that the slot is free and holds the position.
    ///
    /// What was not taken yet is discarded. Where the server does not end it within some seconds (it finishes decoding
    /// a transaction first), the connection is cut; the position has arrived by then. Fails where the connection
    /// broke before.
    pub async fn close(mut self) -> Result<()> {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        self.chunks.close();
        match tokio::time::timeout(CLOSE_TIMEOUT + Duration::from_secs(1), &mut self.task).await {
            Ok(Ok(true)) | Err(_) => Ok(()),
            Ok(_) => Err(wire::lost(None).context("Ending the replication stream")),
        }
    }
}

impl Drop for WalStream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whole messages, as they came.
#[derive(Clone, Debug)]
pub struct WalChunk(Bytes);

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalMessage<'a> {
    /// A message of the output plugin.
    Data {
        /// The WAL position that the message belongs to; 0 for messages that belong to none.
        wal_start: Lsn,
        /// The same for logical streams: not the end of the WAL.
        wal_end: Lsn,
        /// The plugin's message.
        payload: &'a [u8],
    },
    /// The server's position: everything before it has been sent.
    Keepalive {
        /// The end of the WAL that was decoded.
        wal_end: Lsn,
        /// The server wanted feedback at once. It has been sent.
        reply_requested: bool,
    },
}

impl WalChunk {
    /// The messages, in order.
    pub fn messages(&self) -> Messages<'_> {
        Messages(&self.0)
    }

    /// The messages from this byte on: where [`Messages::left`] told that one begins.
    pub fn messages_from(&self, byte: usize) -> Messages<'_> {
        Messages(self.0.get(byte..).unwrap_or_default())
    }

    /// The size, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// See [`WalChunk::messages`].
pub struct Messages<'a>(&'a [u8]);

impl Messages<'_> {
    /// The bytes of the messages that are still to come.
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<WalMessage<'a>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<5>()?;
        // The task has put only whole frames into the chunk.
        let (frame, rest) = self.0.split_at_checked(frame_bytes(header))?;
        self.0 = rest;
        Some(parse_message(&frame[5..]))
    }
}

/// Source: "XLogData (B)" and "Primary keepalive message (B)" in the streaming replication protocol.
#[inline]
fn parse_message(body: &[u8]) -> Result<WalMessage<'_>> {
    let position = |at: usize| body.get(at..at + 8)?.first_chunk().map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
    let parse = || match body.first()? {
        b'w' => Some(WalMessage::Data { wal_start: position(1)?, wal_end: position(9)?, payload: body.get(25..)? }),
        b'k' => Some(WalMessage::Keepalive { wal_end: position(1)?, reply_requested: *body.get(17)? != 0 }),
        _ => None,
    };
    parse().ok_or_else(|| {
        let start = &body[..body.len().min(24)];
        Error::new(ErrorKind::Internal, format!("a replication message has an unknown form: {start:02x?}"))
    })
}

/// The length of a message with its header.
#[inline]
fn frame_bytes(header: &[u8; 5]) -> usize {
    1 + (u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize).max(4)
}

struct Task {
    socket: Box<dyn Socket>,
    input: BytesMut,
    shared: Arc<Shared>,
    chunks: mpsc::UnboundedSender<Result<(WalChunk, OwnedSemaphorePermit)>>,
    room: Arc<Semaphore>,
    /// The position that the last feedback reported.
    reported: Lsn,
    last_feedback: Instant,
    feedback_due: Instant,
    /// Of the server, and not answered yet.
    reply_requested: bool,
}

/// What to do next.
enum Step {
    /// Whole CopyData messages, this many bytes of them, lie at the front of the input.
    HandOn(usize),
    /// Some other message does.
    Other(u8, Bytes),
    Read,
}

impl Task {
    /// Runs until the stream has ended. Whether it ended in order.
    async fn run(mut self) -> bool {
        match self.stream().await {
            Ok(()) => true,
            Err(error) => {
                // Nobody listens while the stream is being closed.
                let _ = self.chunks.send(Err(error));
                false
            }
        }
    }

    async fn stream(&mut self) -> Result<()> {
        loop {
            self.feedback_if_due().await?;
            if self.shared.closing.load(Ordering::Acquire) {
                return self.close().await;
            }
            match self.step() {
                Step::HandOn(bytes) => self.hand_on(bytes).await?,
                Step::Other(tag, body) => {
                    if self.other(tag, &body).await? {
                        return Ok(());
                    }
                }
                Step::Read => self.read().await?,
            }
        }
    }

    fn step(&mut self) -> Step {
        let mut end = 0;
        while let Some([b'd', ..]) = self.input.get(end..end + 5) {
            let Some(header) = self.input[end..].first_chunk() else { break };
            let bytes = frame_bytes(header);
            let Some(frame) = self.input.get(end..end + bytes) else {
                if end == 0 {
                    self.input.reserve(bytes - self.input.len());
                }
                break;
            };
            // A keepalive that asks for feedback gets it from here, whatever waits before it.
            if frame.len() >= 23 && frame[5] == b'k' && frame[22] != 0 {
                self.reply_requested = true;
            }
            end += bytes;
        }
        if end > 0 {
            return Step::HandOn(end);
        }
        match self.input.first() {
            Some(tag) if *tag != b'd' => match wire::take_frame(&mut self.input) {
                Some((tag, body)) => Step::Other(tag, body),
                None => Step::Read,
            },
            _ => Step::Read,
        }
    }

    /// Puts the first `bytes` of the input into the queue, as soon as it has room.
    async fn hand_on(&mut self, bytes: usize) -> Result<()> {
        let chunk = WalChunk(self.input.split_to(bytes).freeze());
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(permits);
        let mut room = std::pin::pin!(room);
        loop {
            self.feedback_if_due().await?;
            tokio::select! {
                biased;
                room = &mut room => {
                    let room = room.map_err(|_| Error::new(ErrorKind::Internal, "the queue of WAL messages is gone"))?;
                    // Fails when the user closes the stream, which the caller sees next.
                    let _ = self.chunks.send(Ok((chunk, room)));
                    return Ok(());
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(self.feedback_due) => {}
            }
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(());
            }
        }
    }

    /// Reads what there is, or returns when feedback may be due.
    async fn read(&mut self) -> Result<()> {
        wire::make_room(&mut self.input);
        tokio::select! {
            biased;
            () = self.shared.wake.notified() => Ok(()),
            () = tokio::time::sleep_until(self.feedback_due) => Ok(()),
            read = self.socket.read_buf(&mut self.input) => match read {
                Ok(0) => Err(wire::lost(None)),
                Ok(_) => Ok(()),
                Err(error) => Err(wire::lost(Some(error))),
            },
        }
    }

    /// Takes a message that is not CopyData. Whether the stream has ended.
    async fn other(&mut self, tag: u8, body: &[u8]) -> Result<bool> {
        match tag {
            b'c' => {
                let mut out = BytesMut::new();
                frontend::copy_done(&mut out);
                wire::send(&mut self.socket, &out).await?;
                Ok(false)
            }
            // The command is complete: also what a server says that shuts down.
            b'C' | b'Z' => Ok(true),
            b'E' => Err(stream_error(wire::server_error(body))),
            b'N' | b'S' | b'A' => Ok(false),
            tag => Err(wire::unexpected(tag)),
        }
    }

    async fn feedback_if_due(&mut self) -> Result<()> {
        let now = Instant::now();
        let confirmed = Lsn(self.shared.confirmed.load(Ordering::Acquire));
        if confirmed > self.reported {
            self.feedback_due = self.feedback_due.min(self.last_feedback + CONFIRM_INTERVAL);
        }
        let ask = self.shared.keepalive_wanted.swap(false, Ordering::AcqRel);
        if !ask && !self.reply_requested && now < self.feedback_due {
            return Ok(());
        }
        wire::send(&mut self.socket, &feedback(confirmed, ask)).await?;
        self.reply_requested = false;
        self.reported = confirmed;
        self.last_feedback = now;
        self.feedback_due = now + FEEDBACK_INTERVAL;
        Ok(())
    }

    /// Ends the stream from this side.
    async fn close(&mut self) -> Result<()> {
        let mut out = feedback(Lsn(self.shared.confirmed.load(Ordering::Acquire)), false);
        frontend::copy_done(&mut out);
        wire::send(&mut self.socket, &out).await?;
        let drain = async {
            loop {
                match wire::take_frame(&mut self.input) {
                    Some((b'Z', _)) => return Ok(()),
                    Some((b'E', body)) => return Err(stream_error(wire::server_error(&body))),
                    Some(_) => {}
                    None => {
                        wire::make_room(&mut self.input);
                        match self.socket.read_buf(&mut self.input).await {
                            Ok(0) => return Err(wire::lost(None)),
                            Ok(_) => {}
                            Err(error) => return Err(wire::lost(Some(error))),
                        }
                    }
                }
            }
        };
        match tokio::time::timeout(CLOSE_TIMEOUT, drain).await {
            Ok(ended) => ended?,
            Err(_) => {
                tracing::debug!("the server did not end the replication stream in time; the connection is cut");
                return Ok(());
            }
        }
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        // The server may be gone already, and nothing is lost by that.
        let _ = wire::send(&mut self.socket, &out).await;
        Ok(())
    }
}

/// "Standby status update (F)" in the streaming replication protocol, in its CopyData frame.
fn feedback(confirmed: Lsn, reply: bool) -> BytesMut {
    const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(POSTGRES_EPOCH);
    let micros = i64::try_from(now.saturating_sub(POSTGRES_EPOCH).as_micros()).unwrap_or(i64::MAX);
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(b'd');
    out.put_u32(4 + 34);
    out.put_u8(b'r');
    for _written_flushed_applied in 0..3 {
        out.put_u64(confirmed.0);
    }
    out.put_i64(micros);
    out.put_u8(reply.into());
    out
}

/// An error that the server ended a running stream with.
fn stream_error(error: ServerError) -> Error {
    const WHAT: &str = "Replication";
    match error.code.as_str() {
        // The publication was dropped: decoding looks it up as of the change, so that creating it again does not help.
        "42704" => Error::new(ErrorKind::ResyncNeeded, format!("{WHAT} failed: {}", error.message)).remedy(RESYNC),
        // WAL that the slot needs is not there any more.
        "58P01" | "55000" => {
            Error::new(ErrorKind::ResyncNeeded, format!("{WHAT} failed: {}", error.message)).remedy(RESYNC)
        }
        // An internal error. One that stays, `unexpected duplicate for tablespace 0, relfilenode …`, comes of a savepoint rolled
        // back after DDL, with DDL after it in the same transaction (version 15.18).
        "XX000" => error.into_error(WHAT).of_kind(ErrorKind::Undecodable),
        _ => error.into_error(WHAT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = vec![b'd'];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
        out
    }

    #[test]
    fn messages_of_a_chunk() {
        let mut data = vec![b'w'];
        for position in [7u64, 8, 9] {
            data.extend(position.to_be_bytes());
        }
        data.extend(b"Bxyz");
        let mut keepalive = vec![b'k'];
        keepalive.extend(11u64.to_be_bytes());
        keepalive.extend(0u64.to_be_bytes());
        keepalive.push(1);
        let chunk = WalChunk(Bytes::from([frame(&data), frame(&keepalive), frame(b"?")].concat()));
        let messages: Vec<_> = chunk.messages().collect();
        assert_eq!(
            *messages[0].as_ref().unwrap(),
            WalMessage::Data { wal_start: Lsn(7), wal_end: Lsn(8), payload: b"Bxyz" }
        );
        assert_eq!(*messages[1].as_ref().unwrap(), WalMessage::Keepalive { wal_end: Lsn(11), reply_requested: true });
        assert!(messages[2].is_err());
        assert_eq!(messages.len(), 3);
    }

    #[test]
    fn feedback_has_the_documented_form() {
        let out = feedback(Lsn(0x16_B374_D848), true);
        assert_eq!(out.len(), 1 + 4 + 34);
        assert_eq!(&out[..6], b"d\0\0\0\x26r");
        assert_eq!(&out[6..14], &0x16_B374_D848u64.to_be_bytes());
        assert_eq!(out[38], 1);
    }
}
