//! The pipeline's row: who may write, and up to which position the lake is equal to its source.

use std::fmt;
use std::str::FromStr;

use super::session::Session;
use super::{Lake, copies, fan_in, parts};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::sql::literal;

/// Where a pipeline is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineState {
    /// Its slot is being made; a restart drops the slot and makes it again.
    Creating,
    /// The first copy runs.
    Snapshot,
    /// The lake follows the WAL.
    Streaming,
}

impl PipelineState {
    /// The state's name in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            PipelineState::Creating => "creating",
            PipelineState::Snapshot => "snapshot",
            PipelineState::Streaming => "streaming",
        }
    }
}

impl fmt::Display for PipelineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PipelineState {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [PipelineState::Creating, PipelineState::Snapshot, PipelineState::Streaming]
            .into_iter()
            .find(|state| state.name() == name)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{name:?} is no state of a pipeline")))
    }
}

/// A row of `duckpipe_pipeline`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineRow {
    /// The pipeline's name.
    pub name: String,
    /// The source cluster's identifier.
    pub system_id: String,
    /// The source's timeline on which `lsn` lies.
    pub timeline: u32,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Whether duckpipe made the publication.
    pub owns_publication: bool,
    /// Where it is in its life.
    pub state: PipelineState,
    /// Who may write: the holder of this number.
    pub epoch: i64,
    /// The applied position.
    pub lsn: Option<Lsn>,
}

/// What [`Lake::claim`] writes for a pipeline that is not there yet.
#[derive(Clone, Debug)]
pub struct NewPipeline {
    /// The pipeline's name.
    pub name: String,
    /// The source cluster's identifier.
    pub system_id: String,
    /// The source's timeline.
    pub timeline: u32,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Whether duckpipe made the publication.
    pub owns_publication: bool,
}

/// The right to write for a pipeline, until somebody else claims it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The pipeline's name.
    pub pipeline: String,
    /// The number that its row must still hold.
    pub epoch: i64,
}

/// What else [`Lake::set_state`] changes; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct PipelineChange {
    /// The source cluster's identifier.
    pub system_id: Option<String>,
    /// The source's timeline.
    pub timeline: Option<u32>,
    /// The replication slot.
    pub slot: Option<String>,
    /// The publication.
    pub publication: Option<String>,
    /// Whether duckpipe made the publication.
    pub owns_publication: Option<bool>,
    /// The applied position. Unlike [`Lake::advance`] this may move it back: a pipeline that starts anew.
    pub lsn: Option<Lsn>,
}

impl Lake {
    /// The pipeline's row; `None` where there is no such pipeline.
    pub async fn pipeline(&self, name: &str) -> Result<Option<PipelineRow>> {
        let name = name.to_owned();
        self.run(move |session| read(session, &name)).await
    }

    /// Takes the pipeline over: makes its row in [`PipelineState::Creating`] or raises the epoch of the one that is there, which
    /// keeps its other fields. Whoever held it before can't write any more.
    pub async fn claim(&self, new: &NewPipeline) -> Result<Fence> {
        let new = new.clone();
        self.run(move |session| {
            session.locked_transaction(|session| {
                let table = format!("{}.duckpipe_pipeline", session.tables());
                let pipeline = literal(&new.name);
                let epoch = match read(session, &new.name)? {
                    Some(row) => {
                        let epoch = row.epoch + 1;
                        session.write(&format!(
                            "UPDATE {table} SET epoch = {epoch}, updated_at = now() WHERE name = {pipeline}"
                        ))?;
                        epoch
                    }
                    None => {
                        session.write(&format!(
                            "INSERT INTO {table} (name, system_id, timeline, slot, publication, owns_publication, state, epoch, \
                             lsn, updated_at) VALUES ({pipeline}, {}, {}, {}, {}, {}, '{}', 1, NULL, now())",
                            literal(&new.system_id),
                            new.timeline,
                            literal(&new.slot),
                            literal(&new.publication),
                            new.owns_publication,
                            PipelineState::Creating,
                        ))?;
                        1
                    }
                };
                Ok(Fence { pipeline: new.name.clone(), epoch })
            })
        })
        .await
    }

    /// Moves the pipeline to `state`, with further fields.
    pub async fn set_state(&self, fence: &Fence, state: PipelineState, change: &PipelineChange) -> Result<()> {
        let (fence, change) = (fence.clone(), change.clone());
        self.run(move |session| {
            let mut assignments = format!("state = '{state}'");
            let mut set = |column: &str, value: Option<String>| {
                if let Some(value) = value {
                    assignments.push_str(&format!(", {column} = {value}"));
                }
            };
            set("system_id", change.system_id.as_deref().map(literal));
            set("timeline", change.timeline.map(|timeline| timeline.to_string()));
            set("slot", change.slot.as_deref().map(literal));
            set("publication", change.publication.as_deref().map(literal));
            set("owns_publication", change.owns_publication.map(|owns| owns.to_string()));
            set("lsn", change.lsn.map(|lsn| literal(&lsn.to_string())));
            session.locked_transaction(|session| update(session, &fence, &assignments))
        })
        .await
    }

    /// Raises the applied position on its own: no row changed up to `lsn`. It makes no lake snapshot. With `slot` it is the position
    /// of that slot's tables.
    pub async fn advance(&self, fence: &Fence, slot: Option<&str>, lsn: Lsn) -> Result<()> {
        let (fence, slot) = (fence.clone(), slot.map(str::to_owned));
        self.run(move |session| {
            session.locked_transaction(|session| {
                let row = held(session, &fence)?;
                if let Some(slot) = &slot {
                    return copies::advance(session, &row, slot, (None, lsn));
                }
                if row.lsn.is_some_and(|applied| applied > lsn) {
                    return Err(moved_back(&row, lsn));
                }
                update(session, &fence, &format!("lsn = {}", literal(&lsn.to_string())))
            })
        })
        .await
    }

    /// Removes the pipeline with its tables' rows: the lake's tables stay, and belong to nobody then. They leave the views that showed them
    /// among those of others.
    pub async fn forget_pipeline(&self, fence: &Fence) -> Result<()> {
        let fence = fence.clone();
        self.run(move |session| {
            let views = session.locked_transaction(|session| {
                held(session, &fence)?;
                let (tables, pipeline) = (session.tables(), literal(&fence.pipeline));
                let views = fan_in::views(session, &format!("pipeline = {pipeline} AND fan_in IS NOT NULL"))?;
                session.write(&format!(
                    "{} DELETE FROM {tables}.duckpipe_table WHERE pipeline = {pipeline}; \
                     DELETE FROM {tables}.duckpipe_pipeline WHERE name = {pipeline};",
                    parts::discard(&tables, &fence.pipeline, "true")
                ))?;
                Ok(views)
            })?;
            views.iter().try_for_each(|view| fan_in::refresh(session, view, None))
        })
        .await
    }
}

/// Reads one pipeline's row.
pub(super) fn read(session: &Session, name: &str) -> Result<Option<PipelineRow>> {
    let sql = format!(
        "SELECT name, system_id, timeline, slot, publication, owns_publication, state, epoch, lsn \
         FROM {}.duckpipe_pipeline WHERE name = {}",
        session.tables(),
        literal(name)
    );
    let rows = session.read(&sql, |row| {
        let texts = (row.get::<_, String>(6)?, row.get::<_, Option<String>>(8)?);
        let read = PipelineRow {
            name: row.get(0)?,
            system_id: row.get(1)?,
            timeline: row.get::<_, i64>(2)? as u32,
            slot: row.get(3)?,
            publication: row.get(4)?,
            owns_publication: row.get(5)?,
            state: PipelineState::Creating,
            epoch: row.get(7)?,
            lsn: None,
        };
        Ok((read, texts))
    })?;
    let Some((row, (state, lsn))) = rows.into_iter().next() else { return Ok(None) };
    Ok(Some(PipelineRow { state: state.parse()?, lsn: parse_lsn(lsn)?, ..row }))
}

/// A stored position.
pub(super) fn parse_lsn(text: Option<String>) -> Result<Option<Lsn>> {
    text.map(|text| text.parse().because(ErrorKind::Internal, || "a position in the catalog is broken".into()))
        .transpose()
}

/// The pipeline's row, if the fence still holds it.
pub(super) fn held(session: &Session, fence: &Fence) -> Result<PipelineRow> {
    match read(session, &fence.pipeline)? {
        Some(row) if row.epoch == fence.epoch => Ok(row),
        _ => Err(fenced(fence)),
    }
}

/// Updates the pipeline's row; an error unless the fence still holds it. The count comes from the database itself.
pub(super) fn update(session: &Session, fence: &Fence, assignments: &str) -> Result<()> {
    let changed = session.execute(&format!(
        "UPDATE {}.duckpipe_pipeline SET {assignments}, updated_at = now() WHERE name = {} AND epoch = {}",
        session.attached(),
        literal(&fence.pipeline),
        fence.epoch
    ))?;
    if changed == 1 { Ok(()) } else { Err(fenced(fence)) }
}

pub(super) fn moved_back(row: &PipelineRow, lsn: Lsn) -> Error {
    let applied = row.lsn.unwrap_or_default();
    Error::new(ErrorKind::Internal, format!("pipeline {}: {lsn} lies before the applied position {applied}", row.name))
}

fn fenced(fence: &Fence) -> Error {
    Error::new(ErrorKind::Fenced, format!("another process has taken pipeline {} over", fence.pipeline))
        .remedy("one `duckpipe sync` per pipeline: find the other one")
}
