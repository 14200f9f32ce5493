//! The frontend/backend protocol, version 3: what replication and COPY need of it.
//!
//! tokio-postgres knows no replication connections and hands a COPY out row by row, each in its own allocation. Here a
//! COPY arrives as the socket delivers it. Source: Postgres documentation, chapter "Frontend/Backend Protocol".

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::failure::ServerError;
use super::session_settings;
use super::settings::SourceSettings;
use super::socket::{self, LoginError, Socket};
use crate::error::{Because, Error, ErrorKind, Result};

/// Bytes that one read of the socket may take.
pub(crate) const READ_BYTES: usize = 256 * 1024;

/// Longest message before the login has succeeded: what is longer comes from something that is no Postgres.
const LOGIN_MESSAGE_BYTES: usize = 64 * 1024;

/// A connection that has logged in and pinned its settings.
pub(crate) struct Wire {
    pub(crate) socket: Box<dyn Socket>,
    pub(crate) input: BytesMut,
    /// What the server has reported of itself at the login.
    reported: HashMap<String, String>,
    /// Bytes of the current CopyData message that are still to come.
    copy_left: usize,
}

/// A row of a simple query: each value in its text form.
pub(crate) type Row = Vec<Option<Bytes>>;

/// What became of a query that gave no result.
#[derive(Debug)]
pub(crate) enum QueryError {
    /// The server refused it; the connection goes on.
    Server(ServerError),
    /// The connection is of no more use.
    Connection(Error),
}

impl QueryError {
    /// The error of doing `what`, a phrase such as `Creating the slot`.
    pub(crate) fn into_error(self, what: &str) -> Error {
        match self {
            QueryError::Server(error) => error.into_error(what),
            QueryError::Connection(error) => error.context(what),
        }
    }
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        QueryError::Connection(error)
    }
}

/// What a simple query answers with.
enum Answer {
    Rows(Vec<Row>),
    /// The server has begun to send (and, for CopyBoth, to take) CopyData.
    Copy,
}

impl Wire {
    /// Connects and logs in; with `replication`, as a walsender that also takes SQL.
    pub(crate) async fn connect(settings: &SourceSettings, replication: bool) -> Result<Wire> {
        let login = |socket| async move {
            let mut wire = Wire { socket, input: BytesMut::new(), reported: HashMap::new(), copy_left: 0 };
            wire.login(settings, replication).await?;
            settings.target.check(|name| wire.reported(name))?;
            Ok(wire)
        };
        let mut wire = socket::connect(settings, login).await?;
        let pin = session_settings::pin(wire.major_version());
        wire.query(&pin).await.map_err(|error| error.into_error("Setting the session's parameters"))?;
        Ok(wire)
    }

    /// The server's major version: 15.
    pub(crate) fn major_version(&self) -> u32 {
        session_settings::major_version(self.reported("server_version").unwrap_or_default())
    }

    fn reported(&self, name: &str) -> Option<&str> {
        self.reported.get(name).map(String::as_str)
    }

    /// Runs statements and returns the rows of them all.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Vec<Row>, QueryError> {
        match self.simple_query(sql).await? {
            Answer::Rows(rows) => Ok(rows),
            Answer::Copy => Err(unexpected(b'H').into()),
        }
    }

    /// Runs a statement that begins a COPY: `COPY … TO STDOUT` or START_REPLICATION.
    pub(crate) async fn begin_copy(&mut self, sql: &str) -> Result<(), QueryError> {
        match self.simple_query(sql).await? {
            Answer::Copy => Ok(()),
            Answer::Rows(_) => Err(unexpected(b'C').into()),
        }
    }

    /// The next piece of a COPY's data, cut anywhere; `None` after its end, when the connection is free again.
    pub(crate) async fn copy_data(&mut self) -> Result<Option<Bytes>, QueryError> {
        loop {
            if let Some(data) = self.take_copy_data() {
                return Ok(Some(data));
            }
            match self.frame() {
                None => self.read().await?,
                Some((b'Z', _)) => return Ok(None),
                Some((b'E', body)) => {
                    self.until_ready().await?;
                    return Err(QueryError::Server(server_error(&body)));
                }
                Some((b'c' | b'C' | b'N' | b'S' | b'A', _)) => {}
                Some((tag, _)) => return Err(unexpected(tag).into()),
            }
        }
    }

    /// Sends bytes that are whole messages.
    pub(crate) async fn send(&mut self, messages: &[u8]) -> Result<()> {
        send(&mut self.socket, messages).await
    }

    async fn login(&mut self, settings: &SourceSettings, replication: bool) -> Result<(), LoginError> {
        let mut out = BytesMut::new();
        let mut parameters = vec![
            ("user", settings.user.as_str()),
            ("database", &settings.database),
            ("application_name", &settings.application_name),
            ("client_encoding", "UTF8"),
        ];
        if replication {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut out).because(ErrorKind::Config, not_sendable)?;
        self.send(&out).await?;
        let mut scram = None;
        loop {
            let (tag, body) = self.login_message().await?;
            match tag {
                b'R' => self.authenticate(settings, &body, &mut scram).await?,
                b'S' => {
                    let mut texts =
                        body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
                    if let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                        self.reported.insert(name, value);
                    }
                }
                b'E' => {
                    let error = server_error(&body);
                    let not_admitted = error.not_admitted();
                    return Err(LoginError { error: error.into_error("Logging in"), not_admitted });
                }
                b'Z' => return Ok(()),
                // Key data for cancelling, notices, a lower minor version.
                b'K' | b'N' | b'v' => {}
                tag => return Err(unexpected(tag).into()),
            }
        }
    }

    async fn login_message(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(header) = self.input.get(..5) {
                let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
                if !(4..LOGIN_MESSAGE_BYTES).contains(&length) {
                    return Err(Error::new(
                        ErrorKind::Precondition,
                        "what answers there does not speak as Postgres does",
                    )
                    .remedy(socket::UNREACHABLE));
                }
            }
            match self.frame() {
                Some(frame) => return Ok(frame),
                None => self.read().await?,
            }
        }
    }

    /// Answers one authentication request.
    async fn authenticate(
        &mut self,
        settings: &SourceSettings,
        body: &[u8],
        scram: &mut Option<sasl::ScramSha256>,
    ) -> Result<()> {
        let Some((code, data)) = body.split_first_chunk::<4>() else { return Err(malformed()) };
        let password = || {
            let password = settings.password.as_ref().map(|password| password.expose().as_bytes());
            password.ok_or_else(|| {
                Error::new(ErrorKind::Precondition, "the server asks for a password, and the source's url has none")
                    .remedy("Write postgres://user:password@host/database.")
            })
        };
        let failed = || "The server's part of the password's exchange is wrong".to_owned();
        let mut out = BytesMut::new();
        match u32::from_be_bytes(*code) {
            0 => return Ok(()),
            3 => frontend::password_message(password()?, &mut out).because(ErrorKind::Config, not_sendable)?,
            5 => {
                let salt = data.first_chunk::<4>().ok_or_else(malformed)?;
                let hash = md5_hash(settings.user.as_bytes(), password()?, *salt);
                frontend::password_message(hash.as_bytes(), &mut out).because(ErrorKind::Config, not_sendable)?;
            }
            10 => {
                let offered = data.split(|byte| *byte == 0).any(|name| name == sasl::SCRAM_SHA_256.as_bytes());
                if !offered {
                    return Err(Error::new(
                        ErrorKind::Precondition,
                        "the server offers no SCRAM-SHA-256 for this role",
                    ));
                }
                // Channel binding would need the certificate's signature algorithm; verify-full gives what it gives.
                let begun = sasl::ScramSha256::new(password()?, sasl::ChannelBinding::unsupported());
                frontend::sasl_initial_response(sasl::SCRAM_SHA_256, begun.message(), &mut out)
                    .because(ErrorKind::Config, not_sendable)?;
                *scram = Some(begun);
            }
            11 => {
                let scram = scram.as_mut().ok_or_else(malformed)?;
                scram.update(data).because(ErrorKind::Precondition, failed)?;
                frontend::sasl_response(scram.message(), &mut out).because(ErrorKind::Config, not_sendable)?;
            }
            12 => {
                let scram = scram.as_mut().ok_or_else(malformed)?;
                // The server proves that it knows the password too.
                return scram.finish(data).because(ErrorKind::Precondition, failed);
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Precondition,
                    "the server asks for a way of authentication that is not supported",
                )
                .remedy("Let pg_hba.conf ask this role for scram-sha-256, md5, password, cert or trust."));
            }
        }
        self.send(&out).await
    }

    async fn simple_query(&mut self, sql: &str) -> Result<Answer, QueryError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).because(ErrorKind::Internal, not_sendable)?;
        self.send(&out).await?;
        let mut rows = Vec::new();
        loop {
            let Some((tag, body)) = self.frame() else {
                self.read().await?;
                continue;
            };
            match tag {
                b'D' => rows.push(data_row(body)?),
                b'Z' => return Ok(Answer::Rows(rows)),
                b'H' | b'W' => return Ok(Answer::Copy),
                b'E' => {
                    self.until_ready().await?;
                    return Err(QueryError::Server(server_error(&body)));
                }
                // Row description, command complete, empty query, notice, parameter status, notification.
                b'T' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                tag => return Err(unexpected(tag).into()),
            }
        }
    }

    /// Reads past everything up to ReadyForQuery, after an error.
    async fn until_ready(&mut self) -> Result<(), QueryError> {
        loop {
            match self.frame() {
                Some((b'Z', _)) => return Ok(()),
                Some(_) => {}
                None => self.read().await?,
            }
        }
    }

    /// The next whole message, if it has arrived.
    fn frame(&mut self) -> Option<(u8, Bytes)> {
        take_frame(&mut self.input)
    }

    async fn read(&mut self) -> Result<()> {
        make_room(&mut self.input);
        match self.socket.read_buf(&mut self.input).await {
            Ok(0) => Err(lost(None)),
            Ok(_) => Ok(()),
            Err(error) => Err(lost(Some(error))),
        }
    }

    /// What has arrived of CopyData messages, without their headers. Moves the payloads together within the buffer.
    fn take_copy_data(&mut self) -> Option<Bytes> {
        let (mut from, mut to) = (0, 0);
        loop {
            if self.copy_left > 0 {
                let here = self.copy_left.min(self.input.len() - from);
                self.input.copy_within(from..from + here, to);
                (from, to) = (from + here, to + here);
                self.copy_left -= here;
                if self.copy_left > 0 {
                    break;
                }
            }
            match self.input.get(from..from + 5) {
                Some([b'd', length @ ..]) => {
                    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
                    self.copy_left = (length as usize).saturating_sub(4);
                    from += 5;
                }
                _ => break,
            }
        }
        let data = (to > 0).then(|| self.input.split_to(to).freeze());
        self.input.advance(from - to);
        data
    }
}

/// Sends bytes that are whole messages. A peer that takes nothing for a minute is lost.
pub(crate) async fn send(socket: &mut (impl AsyncWriteExt + Unpin), messages: &[u8]) -> Result<()> {
    let write = async {
        socket.write_all(messages).await?;
        socket.flush().await
    };
    match tokio::time::timeout(std::time::Duration::from_secs(60), write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(lost(Some(error))),
        Err(_) => Err(lost(None)),
    }
}

/// Splits the next whole message off the front of `input`, if it is there: its tag and its body.
pub(crate) fn take_frame(input: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header = input.get(..5)?;
    let tag = header[0];
    let length = (u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize).max(4);
    if input.len() < 1 + length {
        input.reserve(1 + length - input.len());
        return None;
    }
    let mut frame = input.split_to(1 + length).freeze();
    frame.advance(5);
    Some((tag, frame))
}

/// Makes room for a read that is worth its system call.
pub(crate) fn make_room(input: &mut BytesMut) {
    if input.capacity() - input.len() < READ_BYTES / 4 {
        input.reserve(READ_BYTES);
    }
}

/// The fields of an ErrorResponse.
pub(crate) fn server_error(body: &[u8]) -> ServerError {
    let mut error = ServerError::default();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
    error
}

pub(crate) fn lost(cause: Option<std::io::Error>) -> Error {
    let error = Error::new(ErrorKind::Transient, "the connection to Postgres was lost")
        .remedy("Try again; where it stays so, look into the server's log.");
    match cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}

pub(crate) fn unexpected(tag: u8) -> Error {
    Error::new(ErrorKind::Internal, format!("the server sent a message {:?} that does not belong here", tag as char))
}

fn malformed() -> Error {
    Error::new(ErrorKind::Internal, "the server sent a message that is cut short")
}

fn not_sendable() -> String {
    "A text holds a zero byte, which the protocol can't carry".into()
}

fn data_row(mut body: Bytes) -> Result<Row> {
    let count = body.try_get_u16().map_err(|_| malformed())?;
    let mut row = Vec::with_capacity(count.into());
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| malformed())?;
        match usize::try_from(length) {
            Ok(length) if length > body.len() => return Err(malformed()),
            Ok(length) => row.push(Some(body.split_to(length))),
            Err(_) => row.push(None),
        }
    }
    Ok(row)
}

/// The text at `index` of a row of a query that this program wrote.
pub(crate) fn text(row: &Row, index: usize) -> Result<&str> {
    let value = row.get(index).and_then(Option::as_ref).ok_or_else(malformed)?;
    std::str::from_utf8(value).because(ErrorKind::Internal, || "the server sent a text that is not UTF-8".into())
}
