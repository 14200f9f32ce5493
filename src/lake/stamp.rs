//! What a snapshot says of its pipeline's position: `commit_extra_info`.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::Lake;
use super::pipeline::PipelineRow;
use super::session::Session;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::sql::literal;

/// The text of a stamp. `behind` are the tables that do not show `lsn`, with what they show.
pub(super) fn stamp(
    pipeline: &PipelineRow,
    lsn: Option<Lsn>,
    commit_ts: Option<DateTime<Utc>>,
    behind: serde_json::Map<String, serde_json::Value>,
) -> String {
    serde_json::json!({
        "v": 1,
        "pipeline": pipeline.name,
        "system_id": pipeline.system_id,
        "lsn": lsn,
        "commit_ts": commit_ts.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)),
        "behind": behind,
    })
    .to_string()
}

/// The snapshots that a pipeline has stamped, as FROM and WHERE.
fn stamped(session: &Session, pipeline: &str) -> String {
    format!(
        "{}.ducklake_snapshot_changes WHERE author = 'duckpipe' AND strpos(commit_extra_info, {}) > 0",
        session.tables(),
        literal(&format!("\"pipeline\":\"{pipeline}\""))
    )
}

impl Lake {
    /// The tables of the source that snapshots after this one say to be behind their position. A fresh copy says so too, until it is
    /// level.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`](crate::error::ErrorKind::Transient) where the catalog fails.
    pub async fn behind_since(&self, pipeline: &str, snapshot: i64) -> Result<BTreeSet<String>> {
        let pipeline = pipeline.to_owned();
        let stamps = self.run(move |session| {
            let stamped = stamped(session, &pipeline);
            let sql = format!("SELECT commit_extra_info FROM {stamped} AND snapshot_id > {snapshot}");
            session.read(&sql, |row| row.get::<_, String>(0))
        });
        let stamps = stamps.await?;
        let stamps = stamps.iter().filter_map(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        Ok(stamps
            .flat_map(|stamp| stamp["behind"].as_object().cloned().unwrap_or_default())
            .map(|(name, _)| name)
            .collect())
    }
}

/// When the last transaction that the pipeline shows was committed at the source. Its position may have moved on since without a
/// transaction: the last one's time stays.
pub(super) fn last_commit_ts(session: &Session, pipeline: &PipelineRow) -> Result<Option<DateTime<Utc>>> {
    let sql =
        format!("SELECT commit_extra_info FROM {} ORDER BY snapshot_id DESC LIMIT 1", stamped(session, &pipeline.name));
    let before = session.read(&sql, |row| row.get::<_, String>(0))?;
    let before = before.first().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
    let commit_ts = before.as_ref().and_then(|info| info["commit_ts"].as_str());
    Ok(commit_ts.and_then(|text| text.parse().ok()))
}
