//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::config::{CliOverrides, Override, parse_duration, parse_size};

/// Keeps a DuckLake on object storage equal to a PostgreSQL database.
#[derive(Debug, Parser)]
#[command(name = "duckpipe", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 differences found, \
    4 resync needed, 5 finished with an errored table.")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// The configuration file; else DUCKPIPE_CONFIG, else ./duckpipe.toml
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// How logs and errors are written to stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "DUCKPIPE_LOG_FORMAT")]
    pub(super) log_format: LogFormat,
    /// More logs (-v debug, -vv trace); DUCKPIPE_LOG takes a filter such as info,duckpipe::source=trace
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// Warnings and errors only
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
}

impl Global {
    /// The log level where no filter is set.
    pub(super) fn level(&self) -> &'static str {
        match (self.quiet, self.verbose) {
            (true, _) => "warn",
            (false, 0) => "info",
            (false, 1) => "info,duckpipe=debug,duckpipe_storage=debug",
            (false, _) => "debug,duckpipe=trace,duckpipe_storage=trace",
        }
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented duckpipe.toml; never overwrites
    Init(InitArguments),
    /// Check every precondition, each with its remedy; changes nothing
    Check(CheckArguments),
    /// Copy the tables, then stream their changes until stopped
    Sync(SyncArguments),
    /// Remove the slot, and the publication if duckpipe made it; the lake stays
    Drop(DropArguments),
    /// Show how far each table is; works while sync runs and while it does not
    Status(StatusArguments),
    /// List the pipeline's tables; add, remove, pause, resume some of them or copy them afresh, while the others go on
    Tables(TablesArguments),
    /// Run one SELECT on the lake; public.orders names the lake's table
    Query(QueryArguments),
    /// Merge small files, drop what nobody can read any more, expire old snapshots; works beside a running sync
    Compact(CompactArguments),
    /// Prove that the lake is equal to the source, or with --files that its files are what the catalog says
    Validate(ValidateArguments),
}

#[derive(Debug, Args)]
pub(super) struct InitArguments {
    /// The source's postgres:// address; ${VARIABLE} in it stays as it is written
    #[arg(long, value_name = "URL")]
    pub(super) source_url: Option<String>,
    /// The pipeline's name; else the database's
    #[arg(long)]
    pub(super) name: Option<String>,
    /// The catalog: a DuckDB file, or a postgres:// address
    #[arg(long)]
    pub(super) catalog: Option<String>,
    /// Where data files go: a folder, or s3://bucket/prefix
    #[arg(long)]
    pub(super) data_path: Option<String>,
    /// A table or a pattern; may be given more than once
    #[arg(long = "table", value_name = "SCHEMA.TABLE")]
    pub(super) tables: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct TablesArguments {
    #[command(subcommand)]
    pub(super) command: TablesCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum TablesCommand {
    /// Show the tables; the same as status
    List(StatusArguments),
    /// Follow one more table, or the tables of a pattern: an entry in the configuration's file
    Add(AddTable),
    /// Follow a table no more: its entry in the configuration's file goes; the lake's table stays, unless --drop
    Remove(RemoveTable),
    /// Let tables stand still, with the rows that they have; the slot is not held for them
    Pause(Tables),
    /// Let paused tables go on, by a fresh copy: the changes in between were passed over
    Resume(Tables),
    /// Copy tables afresh; the running sync does it, or the next one
    Resync(TableNames),
}

#[derive(Debug, Args)]
pub(super) struct AddTable {
    /// The table in the source, or a pattern
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: String,
    /// The lake's table; else that of the source's name
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub(super) target: Option<String>,
    /// The target is a view that shows the rows of all tables that lead there, and whose they are
    #[arg(long, requires = "target")]
    pub(super) fan_in: bool,
    /// What the lake's table holds: its rows, all their changes, or its rows and the deleted ones
    #[arg(long, value_name = "mirror|history|soft-delete")]
    pub(super) mode: Option<String>,
    /// A column that does not enter the lake; may be given more than once
    #[arg(long = "exclude-column", value_name = "COLUMN")]
    pub(super) exclude_columns: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RemoveTable {
    /// The table in the source
    #[arg(value_name = "SCHEMA.TABLE")]
    pub(super) table: String,
    /// Drop the lake's table too
    #[arg(long)]
    pub(super) drop: bool,
}

#[derive(Debug, Args)]
pub(super) struct Tables {
    /// The tables, as the source or the lake names them
    #[arg(value_name = "SCHEMA.TABLE", required = true)]
    pub(super) tables: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct TableNames {
    /// The tables, as the source or the lake names them
    #[arg(value_name = "SCHEMA.TABLE", required_unless_present = "errored")]
    pub(super) tables: Vec<String>,
    /// All tables that are errored
    #[arg(long, conflicts_with = "tables")]
    pub(super) errored: bool,
}

#[derive(Debug, Args)]
pub(super) struct DropArguments {
    /// Do not ask
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct SyncArguments {
    /// Up to the source's position at the start of the call, then exit
    #[arg(long)]
    pub(super) once: bool,
    /// Begin anew: a new slot, and a fresh copy of every table
    #[arg(long)]
    pub(super) resnapshot: bool,
    /// The longest that a committed change waits before its flush begins, such as 500ms
    #[arg(long, value_name = "DURATION")]
    flush_interval: Option<String>,
    /// Buffered changes that begin a flush earlier, such as 64MB
    #[arg(long, value_name = "SIZE")]
    flush_bytes: Option<String>,
    /// Memory that buffers, writers and DuckDB share, such as 512MB
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// Connections that copy tables at the same time
    #[arg(long, value_name = "COUNT")]
    snapshot_workers: Option<String>,
    /// What happens to a value that its lake type can't hold: error or null
    #[arg(long, value_name = "POLICY")]
    on_unrepresentable: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CompactArguments {
    /// One table only, as the source or the lake names it; snapshots and files are the whole lake's in any case
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<String>,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct QueryArguments {
    /// The statement; - reads it from stdin
    #[arg(value_name = "SQL")]
    pub(super) sql: String,
    /// How the rows are written
    #[arg(long, value_enum, default_value_t = crate::lake::query::OutputFormat::Table)]
    pub(super) format: crate::lake::query::OutputFormat,
    /// The query is cancelled after this time
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(super) timeout: Duration,
    /// The query's own memory
    #[arg(long, value_name = "SIZE", default_value = "512MB", value_parser = parse_size)]
    pub(super) memory_limit: u64,
    /// The query's own threads
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
}

#[derive(Debug, Args)]
pub(super) struct ValidateArguments {
    /// Hold all files against the catalog instead of the lake against the source
    #[arg(long)]
    pub(super) files: bool,
    /// Only this table
    #[arg(long, value_name = "SCHEMA.TABLE")]
    pub(super) table: Option<String>,
    /// Read so many percent of the source's pages only, such as 5%; what only the lake has is not found then
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, conflicts_with = "files")]
    pub(super) sample: Option<f64>,
    /// Put the source's rows in the place of those that differ; the running sync applies nothing meanwhile
    #[arg(long, conflicts_with_all = ["files", "sample"])]
    pub(super) repair: bool,
    /// Rows that differ and are shown, per table
    #[arg(long, value_name = "COUNT", default_value_t = 20, conflicts_with = "files")]
    pub(super) max_diffs: u16,
    /// Connections that read the source at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64), conflicts_with = "files")]
    pub(super) source_connections: u8,
    /// The longest that the source may take for one part of a table (32 MiB)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration, conflicts_with = "files")]
    pub(super) statement_timeout: Duration,
    /// The longest wait for a position that both sides show
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration, conflicts_with = "files")]
    pub(super) timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `5%` or `5`: more than 0, 100 at most.
fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches('%').trim();
    match number.parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("say a percentage above 0, such as 5%".into()),
    }
}

impl Arguments {
    /// What the command line says about the configuration.
    pub(super) fn overrides(&self) -> CliOverrides {
        let mut settings = Vec::new();
        if let Command::Sync(sync) = &self.command {
            let flags = [
                ("sync.flush_interval", "--flush-interval", &sync.flush_interval),
                ("sync.flush_bytes", "--flush-bytes", &sync.flush_bytes),
                ("sync.memory_limit", "--memory-limit", &sync.memory_limit),
                ("sync.snapshot_workers", "--snapshot-workers", &sync.snapshot_workers),
                ("sync.on_unrepresentable", "--on-unrepresentable", &sync.on_unrepresentable),
            ];
            for (key, flag, value) in flags {
                settings.extend(value.clone().map(|value| Override { key, flag, value }));
            }
        }
        CliOverrides { config: self.global.config.clone(), settings }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_become_overrides() {
        let arguments =
            Arguments::try_parse_from(["duckpipe", "sync", "--once", "-c", "x.toml", "--memory-limit", "1GB"]).unwrap();
        let overrides = arguments.overrides();
        assert_eq!(overrides.config, Some("x.toml".into()));
        let expected = Override { key: "sync.memory_limit", flag: "--memory-limit", value: "1GB".into() };
        assert_eq!(overrides.settings, [expected]);
        let arguments = Arguments::try_parse_from(["duckpipe", "query", "SELECT 1", "--timeout", "5s"]).unwrap();
        let Command::Query(query) = arguments.command else { panic!("no query") };
        assert_eq!((query.timeout, query.memory_limit), (Duration::from_secs(5), 512_000_000));
        assert!(Arguments::try_parse_from(["duckpipe", "query", "SELECT 1", "--timeout", "5"]).is_err());
    }
}
