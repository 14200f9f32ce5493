//! A replication connection: identifying the source, creating the slot, and starting the stream.
//!
//! Source: Postgres documentation, "Streaming Replication Protocol" and "Logical Streaming Replication Parameters".

use super::failure::ServerError;
use super::settings::SourceSettings;
use super::wal_stream::WalStream;
use super::wire::{QueryError, Row, Wire, text};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::sql;

/// A connection of the kind `replication=database`, idle.
pub struct ReplicationConnection {
    wire: Wire,
}

/// Which cluster the source is, and where its WAL stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's identifier, the same on its standbys.
    pub system_id: String,
    /// The timeline that the server writes; it rises with every promotion.
    pub timeline: u32,
    /// The end of the flushed WAL.
    pub position: Lsn,
}

/// The point where a timeline ended and the next one of a history began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that ended.
    pub timeline: u32,
    /// Where it ended: WAL past this point on that timeline is not part of the history.
    pub at: Lsn,
}

/// A slot that has just been created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions that end past this position come through the slot; the others are in the snapshot.
    pub consistent_point: Lsn,
    /// The exported snapshot's name. It can be imported until the connection runs its next command or ends.
    pub snapshot: String,
}

/// What a stream is asked for.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The slot's name.
    pub slot: String,
    /// The publication's name.
    pub publication: String,
    /// Transactions that end at or before this position are not sent. A position before the slot's own
    /// `confirmed_flush_lsn` is raised to that by the server, silently.
    pub from: Lsn,
    /// Values in their types' binary form where the types have one.
    pub binary: bool,
    /// Large transactions come in blocks before they commit, instead of being kept in files of the source until then.
    pub streaming: bool,
}

impl ReplicationConnection {
    /// Connects, with the same parameters pinned as in every session: pgoutput's text depends on them.
    pub async fn connect(settings: &SourceSettings) -> Result<Self> {
        Ok(ReplicationConnection { wire: Wire::connect(settings, true).await? })
    }

    /// IDENTIFY_SYSTEM.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        const WHAT: &str = "Identifying the source";
        let rows = self.wire.query("IDENTIFY_SYSTEM").await.map_err(|error| error.into_error(WHAT))?;
        let row = single(&rows, WHAT)?;
        Ok(Identity {
            system_id: text(row, 0)?.to_owned(),
            timeline: text(row, 1)?.parse().because(ErrorKind::Internal, || format!("{WHAT}: its timeline"))?,
            position: text(row, 2)?.parse().because(ErrorKind::Internal, || format!("{WHAT}: its position"))?,
        })
    }

    /// TIMELINE_HISTORY: where the ancestors of `timeline` ended, oldest first. Empty for timeline 1, which has none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Vec<TimelineSwitch>> {
        const WHAT: &str = "Reading the timeline's history";
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let command = format!("TIMELINE_HISTORY {timeline}");
        let rows = self.wire.query(&command).await.map_err(|error| error.into_error(WHAT))?;
        parse_history(text(single(&rows, WHAT)?, 1)?)
    }

    /// Creates a logical slot with the plugin `pgoutput` and exports the snapshot at its consistent point.
    ///
    /// Waits until every transaction that is open in the source has ended. Being dropped while it waits leaves no slot
    /// behind, once the server has noticed.
    pub async fn create_slot(&mut self, slot: &str) -> Result<CreatedSlot> {
        self.create(slot, false).await
    }

    /// The same with a slot that ends with this connection: a snapshot whose position is known.
    pub async fn create_temporary_slot(&mut self, slot: &str) -> Result<CreatedSlot> {
        self.create(slot, true).await
    }

    /// Whether the source is a standby.
    pub async fn in_recovery(&mut self) -> Result<bool> {
        const WHAT: &str = "Asking whether the source is a standby";
        let rows = self.wire.query("SELECT pg_is_in_recovery()").await.map_err(|error| error.into_error(WHAT))?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, format!("{WHAT} gave no answer")))?;
        Ok(text(row, 0)? == "t")
    }

    async fn create(&mut self, slot: &str, temporary: bool) -> Result<CreatedSlot> {
        const WHAT: &str = "Creating the replication slot";
        // So that the server sees a client that has gone while it waits for other transactions, and gives the slot up. The
        // second statement arms the timer, which the command that creates the slot would not do; it rearms itself.
        // Servers on systems without POLLRDHUP refuse it, and only lose that.
        match self.wire.query("SET client_connection_check_interval = '2s'; SELECT 1").await {
            Ok(_) | Err(QueryError::Server(_)) => {}
            Err(error) => return Err(error.into_error(WHAT)),
        }
        let standby = self.in_recovery().await?;
        let slot_name = sql::identifier(slot);
        let command = match temporary {
            // The form that versions before 15 know too; later ones still take it.
            true => format!("CREATE_REPLICATION_SLOT {slot_name} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"),
            // A standby that synchronises slots has it too, and can take over.
            false if self.wire.major_version() >= 17 && !standby => {
                format!("CREATE_REPLICATION_SLOT {slot_name} LOGICAL pgoutput (SNAPSHOT 'export', FAILOVER true)")
            }
            false => format!("CREATE_REPLICATION_SLOT {slot_name} LOGICAL pgoutput EXPORT_SNAPSHOT"),
        };
        let create = self.wire.query(&command);
        let mut create = std::pin::pin!(create);
        let rows = loop {
            match tokio::time::timeout(std::time::Duration::from_secs(10), &mut create).await {
                Ok(rows) => break rows,
                Err(_) if standby => tracing::warn!(
                    slot,
                    "the slot waits for word of its primary's open transactions: SELECT pg_log_standby_snapshot() there sends it"
                ),
                Err(_) => tracing::warn!(slot, "the slot waits for transactions that are open in the source to end"),
            }
        };
        let rows = rows.map_err(|error| match error {
            QueryError::Server(ServerError { code, message, .. }) if code == "42710" => {
                Error::new(ErrorKind::Precondition, format!("{WHAT} failed: {message}"))
                    .remedy("Another pipeline may own it: choose another slot, or drop it with `duckpipe drop`.")
            }
            QueryError::Server(error) if standby && matches!(error.code.as_str(), "0A000" | "55000") => {
                error.into_error(WHAT).remedy(
                    "A standby can be the source from Postgres 16 on, with wal_level = logical on its primary too.",
                )
            }
            QueryError::Server(error) if error.code == "55000" => {
                error.into_error(WHAT).remedy("Set wal_level = logical in the server's postgresql.conf and restart it.")
            }
            error => error.into_error(WHAT),
        })?;
        let row = single(&rows, WHAT)?;
        Ok(CreatedSlot {
            consistent_point: text(row, 1)?.parse().because(ErrorKind::Internal, || format!("{WHAT}: its position"))?,
            snapshot: text(row, 2)?.to_owned(),
        })
    }

    /// START_REPLICATION: turns the connection into a stream of WAL messages.
    ///
    /// [`ErrorKind::ResyncNeeded`] where the slot is gone or invalidated, [`ErrorKind::Transient`] where another
    /// connection still holds it.
    pub async fn start(mut self, options: &StreamOptions) -> Result<WalStream> {
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '2', publication_names {}{}{})",
            sql::identifier(&options.slot),
            options.from,
            sql::literal(&sql::identifier(&options.publication)),
            if options.binary { ", binary 'true'" } else { "" },
            if options.streaming { ", streaming 'on'" } else { "" },
        );
        match self.wire.begin_copy(&command).await {
            Ok(()) => Ok(WalStream::spawn(self.wire.socket, self.wire.input)),
            Err(QueryError::Server(error)) => Err(self.why_not_started(&options.slot, error).await),
            Err(error) => Err(error.into_error("Starting replication")),
        }
    }

    /// Asks the catalog why the slot would not start: the server's message may be in any language.
    async fn why_not_started(&mut self, slot: &str, error: ServerError) -> Error {
        const WHAT: &str = "Starting replication";
        let query = format!(
            "SELECT coalesce(wal_status, ''), coalesce(active_pid::text, ''), coalesce(plugin, ''), \
             coalesce(database, '') = current_database(), current_setting('wal_level') FROM pg_catalog.pg_replication_slots WHERE slot_name = {}",
            sql::literal(slot)
        );
        let rows = match self.wire.query(&query).await {
            Ok(rows) => rows,
            Err(_) => return error.into_error(WHAT),
        };
        // Of several hosts another one may have answered than the one that was looked at: who connects again looks again.
        match self.in_recovery().await {
            Ok(false) => {}
            Ok(true) => return error.into_error(WHAT).of_kind(ErrorKind::Transient),
            Err(_) => return error.into_error(WHAT),
        }
        let Some(row) = rows.first() else {
            return Error::new(
                ErrorKind::ResyncNeeded,
                format!("The replication slot {slot} does not exist in the source any more"),
            )
            .remedy(RESYNC);
        };
        let field = |index| text(row, index).unwrap_or("");
        if error.code == "55006" {
            let pid = field(1);
            return Error::new(
                ErrorKind::Transient,
                format!("The replication slot {slot} is in use by the server's process {pid}"),
            )
            .remedy(
                "Another duckpipe may run on this slot; a connection that died is let go after wal_sender_timeout.",
            );
        }
        if field(2) != "pgoutput" || field(3) != "t" {
            return Error::new(
                ErrorKind::Precondition,
                format!("The replication slot {slot} is not a pgoutput slot of this database"),
            )
            .remedy("Choose another slot name in the configuration.");
        }
        if field(4) != "logical" {
            return error
                .into_error(WHAT)
                .remedy("Set wal_level = logical in the server's postgresql.conf and restart it.");
        }
        // An invalidated slot, whatever the reason, answers with this state; a slot in order does not.
        if field(0) == "lost" || error.code == "55000" {
            return Error::new(
                ErrorKind::ResyncNeeded,
                format!("The replication slot {slot} was invalidated by the server: {}", error.message),
            )
            .remedy(RESYNC);
        }
        error.into_error(WHAT)
    }
}

pub(crate) const RESYNC: &str = "The lake can't be continued from here. `duckpipe sync --resnapshot` copies the tables \
                                 anew; the lake's older snapshots stay.";

fn single<'a>(rows: &'a [Row], what: &str) -> Result<&'a Row> {
    rows.first().ok_or_else(|| {
        Error::new(ErrorKind::Precondition, format!("{what} gave no answer"))
            .remedy("Connect to Postgres itself: a connection pooler does not pass replication on.")
    })
}

/// Lines of `timeline <tab> position <tab> reason`, and comments.
fn parse_history(content: &str) -> Result<Vec<TimelineSwitch>> {
    let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some(TimelineSwitch { timeline: words.next()?.parse().ok()?, at: words.next()?.parse().ok()? })
    };
    lines
        .map(|line| {
            parse(line)
                .ok_or_else(|| Error::new(ErrorKind::Internal, format!("the timeline history has the line {line:?}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_files() {
        let history = "# c\n1\t0/3000060\tno recovery target specified\n\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n";
        let expected =
            [(1, 0x300_0060), (2, 0x1_0000_00A0)].map(|(timeline, at)| TimelineSwitch { timeline, at: Lsn(at) });
        assert_eq!(parse_history(history).unwrap(), expected);
        assert!(parse_history("x\t0/0").is_err());
    }
}
