//! What `duckpipe status` says.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::text::{Align, Table, thousands};
use crate::config::display_size;
use crate::lsn::Lsn;
use crate::sync::progress::{Progress, TableState};

/// The state of a pipeline. Its JSON form is a contract that others script against: extend it, never rename.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The pipeline's name.
    pub pipeline: String,
    /// Its replication slot.
    pub slot: String,
    /// The source position that the lake shows; null before the first commit.
    pub applied_lsn: Option<Lsn>,
    /// The source's write position; null where the source can't be asked.
    pub source_lsn: Option<Lsn>,
    /// Bytes of WAL between the two.
    pub lag_bytes: Option<u64>,
    /// Seconds since the lake was last known to move, 0 where it is level with the source.
    pub lag_seconds: Option<f64>,
    /// The tables, ordered by source.
    pub tables: Vec<TableStatus>,
}

/// The state of one table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The source's `schema.table`.
    pub source: String,
    /// The lake's `schema.table`.
    pub target: String,
    /// Where it is in its life.
    pub state: TableState,
    /// Rows of its first copy, or of the last one.
    pub rows_copied: u64,
    /// Changes applied since.
    pub rows_applied: u64,
    /// The source position up to which the lake shows it: it moves on idle tables too.
    pub applied_lsn: Option<Lsn>,
    /// When a change of it was last committed.
    #[serde(with = "rfc3339")]
    pub last_commit_at: Option<DateTime<Utc>>,
    /// Why it is errored, waits, or is paused where nobody asked for that.
    pub error: Option<String>,
    /// Values set to NULL because their type could not hold them (`on_unrepresentable = "null"`).
    #[serde(default)]
    pub values_nulled: u64,
}

impl StatusReport {
    /// Puts the report together. `moved_at` is when the applied position last moved.
    pub fn new(
        pipeline: impl Into<String>,
        slot: impl Into<String>,
        (applied, source): (Option<Lsn>, Option<Lsn>),
        (moved_at, now): (Option<DateTime<Utc>>, DateTime<Utc>),
        mut tables: Vec<TableStatus>,
    ) -> StatusReport {
        tables.sort_by(|a, b| a.source.cmp(&b.source));
        let lag_bytes = applied.zip(source).map(|(applied, source)| source.bytes_since(applied));
        let lag_seconds = match lag_bytes {
            Some(0) => Some(0.0),
            Some(_) => moved_at.map(|at| ((now - at).num_milliseconds().max(0) as f64) / 1000.0),
            None => None,
        };
        StatusReport {
            pipeline: pipeline.into(),
            slot: slot.into(),
            applied_lsn: applied,
            source_lsn: source,
            lag_bytes,
            lag_seconds,
            tables,
        }
    }

    /// The report of a sync that runs in this process.
    pub fn of_progress(pipeline: &str, slot: &str, progress: &Progress) -> StatusReport {
        let table = |table: &std::sync::Arc<crate::sync::progress::TableProgress>| TableStatus {
            source: table.source().to_string(),
            target: table.target().to_string(),
            state: table.state(),
            rows_copied: table.rows_copied(),
            rows_applied: table.rows_applied(),
            applied_lsn: table.applied_lsn(),
            last_commit_at: table.last_commit_at(),
            error: table.error(),
            values_nulled: table.nulled(),
        };
        let positions = (progress.applied_lsn(), progress.source_lsn());
        let tables = progress.tables().iter().map(table).collect();
        StatusReport::new(pipeline, slot, positions, (progress.applied_at(), Utc::now()), tables)
    }

    /// How many tables are errored.
    pub fn errored_tables(&self) -> usize {
        self.tables.iter().filter(|table| table.state == TableState::Errored).count()
    }

    /// The report for people.
    pub fn render(&self) -> String {
        let position = |lsn: Option<Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
        let mut out = format!("pipeline  {}\nslot      {}\n", self.pipeline, self.slot);
        out.push_str(&format!("applied   {}\n", position(self.applied_lsn)));
        let lag = match (self.lag_bytes, self.lag_seconds) {
            (Some(0), _) => "  (level)".to_owned(),
            (Some(bytes), Some(seconds)) => format!("  ({} behind, {seconds:.1} s)", display_size(bytes)),
            (Some(bytes), None) => format!("  ({} behind)", display_size(bytes)),
            (None, _) if self.source_lsn.is_none() => "  (the source did not answer)".to_owned(),
            (None, _) => String::new(),
        };
        out.push_str(&format!("source    {}{lag}\n\n", position(self.source_lsn)));
        let columns = [
            ("source", Align::Left),
            ("target", Align::Left),
            ("state", Align::Left),
            ("copied", Align::Right),
            ("applied", Align::Right),
            ("lsn", Align::Left),
            ("last commit", Align::Left),
        ];
        let mut table = Table::new(&columns);
        for row in &self.tables {
            table.row(vec![
                row.source.clone(),
                row.target.clone(),
                row.state.to_string(),
                thousands(row.rows_copied),
                thousands(row.rows_applied),
                position(row.applied_lsn),
                row.last_commit_at.map_or("-".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            ]);
        }
        out.push_str(&table.render());
        for row in &self.tables {
            if let Some(error) = &row.error {
                out.push_str(&format!("\n✗ {}: {error}\n", row.source));
            }
            if row.values_nulled > 0 {
                let count = thousands(row.values_nulled);
                out.push_str(&format!(
                    "\n! {}: {count} values became NULL because their lake type can't hold them\n",
                    row.source
                ));
            }
        }
        out
    }
}

/// Times as `2026-11-21T10:00:00.123456Z`.
mod rfc3339 {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(
        at: &Option<DateTime<Utc>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.serialize_str(&at.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        Option::<DateTime<Utc>>::deserialize(d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> StatusReport {
        let at = DateTime::from_timestamp_micros(1_795_000_000_123_456).unwrap();
        let table = |source: &str, state, error: Option<&str>| TableStatus {
            source: source.into(),
            target: source.into(),
            state,
            rows_copied: 1_234_567,
            rows_applied: 89,
            applied_lsn: Some(Lsn(0x16_B374_D848)),
            last_commit_at: Some(at),
            error: error.map(str::to_owned),
            values_nulled: 0,
        };
        let tables = vec![
            table("public.orders", TableState::Streaming, None),
            table("public.items", TableState::Errored, Some("column price: NaN does not fit")),
        ];
        let positions = (Some(Lsn(0x16_B374_D848)), Some(Lsn(0x16_B375_0000)));
        StatusReport::new(
            "shop",
            "duckpipe_shop",
            positions,
            (Some(at), at + chrono::Duration::milliseconds(1500)),
            tables,
        )
    }

    #[test]
    fn its_json_is_the_contract() {
        insta::assert_snapshot!(serde_json::to_string_pretty(&report()).unwrap());
        let back: StatusReport = serde_json::from_str(&serde_json::to_string(&report()).unwrap()).unwrap();
        assert_eq!(back, report());
    }

    #[test]
    fn people_can_read_it() {
        insta::assert_snapshot!(report().render());
        assert_eq!(report().errored_tables(), 1);
    }

    #[test]
    fn lag_is_zero_where_level_and_unknown_where_the_source_is_silent() {
        let now = Utc::now();
        let level = StatusReport::new("p", "s", (Some(Lsn(9)), Some(Lsn(9))), (None, now), vec![]);
        assert_eq!((level.lag_bytes, level.lag_seconds), (Some(0), Some(0.0)));
        let silent = StatusReport::new("p", "s", (Some(Lsn(9)), None), (Some(now), now), vec![]);
        assert_eq!((silent.lag_bytes, silent.lag_seconds), (None, None));
    }
}
