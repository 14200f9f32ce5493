//! Requests to a running `sync`, on a Postgres catalog: one row that both sides poll.

use std::str::FromStr;
use std::time::Duration;

use super::Lake;
use super::pipeline::parse_lsn;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::sql::literal;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// The stream shall read no further.
    Hold,
    /// It reads no further.
    Holding,
    /// It shall end a flush at the row's position.
    Flush,
    /// The row's snapshot shows exactly the position.
    Reached,
    /// As [`RequestState::Flush`], and nothing shall be flushed afterwards.
    Stand,
    /// The row's snapshot shows exactly the position, and so does the lake as long as the row is renewed.
    Standing,
    /// The configuration shall be read again.
    Reload,
    /// It was.
    Reloaded,
    /// The row's message says why not.
    Failed,
}

const STATES: [(RequestState, &str); 9] = [
    (RequestState::Hold, "hold"),
    (RequestState::Holding, "holding"),
    (RequestState::Flush, "flush"),
    (RequestState::Reached, "reached"),
    (RequestState::Stand, "stand"),
    (RequestState::Standing, "standing"),
    (RequestState::Reload, "reload"),
    (RequestState::Reloaded, "reloaded"),
    (RequestState::Failed, "failed"),
];

impl RequestState {
    fn name(self) -> &'static str {
        STATES.iter().find(|(state, _)| *state == self).map_or("failed", |(_, name)| name)
    }
}

impl FromStr for RequestState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = STATES.iter().find(|(_, name)| *name == text).map(|(state, _)| *state);
        found.ok_or_else(|| Error::new(ErrorKind::Internal, format!("{text:?} is no state of a request")))
    }
}

/// A row of `duckpipe_request`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRow {
    /// Whose it is: a UUID.
    pub id: String,
    /// Where it is.
    pub state: RequestState,
    /// The position at which a flush shall end.
    pub lsn: Option<Lsn>,
    /// The lake's snapshot that shows it.
    pub snapshot: Option<i64>,
    /// Why it failed.
    pub message: Option<String>,
    /// How long it holds from its last change on.
    pub patience: Duration,
}

impl Lake {
    /// Places a request in this state, unless another one is under way; says whether it did.
    pub async fn place_request(
        &self,
        pipeline: &str,
        id: &str,
        state: RequestState,
        patience: Duration,
    ) -> Result<bool> {
        let (pipeline, id) = (pipeline.to_owned(), id.to_owned());
        self.run(move |session| {
            session.transaction(|session| {
                // Two that come at once meet at the primary key.
                let (table, name) = (table(session), literal(&pipeline));
                session.write(&format!("DELETE FROM {table} WHERE pipeline = {name} AND NOT ({})", under_way(session)))?;
                if read(session, &pipeline)?.is_some() {
                    return Ok(false);
                }
                session.write(&format!(
                    "INSERT INTO {table} (pipeline, id, state, patience_ms, changed_at) VALUES ({name}, {}, '{}', {}, {})",
                    literal(&id),
                    state.name(),
                    patience.as_millis(),
                    session.clock()
                ))?;
                Ok(true)
            })
        })
        .await
    }

    /// The pipeline's request, where one is under way.
    pub async fn request(&self, pipeline: &str) -> Result<Option<RequestRow>> {
        let pipeline = pipeline.to_owned();
        self.run(move |session| read(session, &pipeline)).await
    }

    /// Moves the request on, where it is still in the state `from`.
    pub async fn move_request(&self, pipeline: &str, from: RequestState, to: &RequestRow) -> Result<()> {
        let (pipeline, to) = (pipeline.to_owned(), to.clone());
        self.run(move |session| {
            let text = |value: Option<String>| value.map_or_else(|| "NULL".to_owned(), |value| literal(&value));
            session.write(&format!(
                "UPDATE {} SET state = '{}', lsn = {}, snapshot_id = {}, message = {}, patience_ms = {}, changed_at = {} \
                 WHERE pipeline = {} AND id = {} AND state = '{}'",
                table(session),
                to.state.name(),
                text(to.lsn.map(|lsn| lsn.to_string())),
                to.snapshot.map_or_else(|| "NULL".to_owned(), |snapshot| snapshot.to_string()),
                text(to.message.clone()),
                to.patience.as_millis(),
                session.clock(),
                literal(&pipeline),
                literal(&to.id),
                from.name()
            ))
        })
        .await
    }

    /// Shows that whoever placed the request lives.
    pub async fn renew_request(&self, pipeline: &str, id: &str) -> Result<()> {
        let (pipeline, id) = (literal(pipeline), literal(id));
        self.run(move |session| {
            session.write(&format!(
                "UPDATE {} SET changed_at = {} WHERE pipeline = {pipeline} AND id = {id} AND {}",
                table(session),
                session.clock(),
                under_way(session)
            ))
        })
        .await
    }

    /// Takes the request away.
    pub async fn withdraw_request(&self, pipeline: &str, id: &str) -> Result<()> {
        let (pipeline, id) = (literal(pipeline), literal(id));
        self.run(move |session| {
            session.write(&format!("DELETE FROM {} WHERE pipeline = {pipeline} AND id = {id}", table(session)))
        })
        .await
    }
}

fn table(session: &Session) -> String {
    format!("{}.duckpipe_request", session.tables())
}

/// The clock is the catalog's, on both sides.
fn under_way(session: &Session) -> String {
    format!("changed_at + patience_ms * INTERVAL '1 millisecond' > {}", session.clock())
}

fn read(session: &Session, pipeline: &str) -> Result<Option<RequestRow>> {
    let sql = format!(
        "SELECT id, state, lsn, snapshot_id, message, patience_ms FROM {} WHERE pipeline = {} AND {}",
        table(session),
        literal(pipeline),
        under_way(session)
    );
    let rows = session.read(&sql, |row| {
        let texts = (row.get::<_, String>(1)?, row.get::<_, Option<String>>(2)?);
        let patience = Duration::from_millis(row.get::<_, i64>(5)?.max(0) as u64);
        let read = RequestRow {
            id: row.get(0)?,
            state: RequestState::Failed,
            lsn: None,
            snapshot: row.get(3)?,
            message: row.get(4)?,
            patience,
        };
        Ok((read, texts))
    })?;
    let Some((row, (state, lsn))) = rows.into_iter().next() else { return Ok(None) };
    Ok(Some(RequestRow { state: state.parse()?, lsn: parse_lsn(lsn)?, ..row }))
}
