//! The commands: what a person or a script types, and what they see.
//!
//! In: arguments, signals. Out: results on stdout, logs, progress and errors on stderr, an exit code:
//! 0 done, 1 failed, 2 wrong usage or configuration, 3 differences found, 4 resync needed, 5 finished with an errored table,
//! 130 stopped at once by a second signal.
//! Never: work of its own; [`engine`] names what each command asks of the other folders.

mod arguments;
mod catalog_copy;
pub mod check;
mod engine;
mod exit;
mod init;
mod log;
mod preconditions;
pub mod progress;
mod redact;
mod reload;
mod report;
mod signals;
pub mod status;
mod sync_point;
mod tables;
pub(crate) mod text;
mod validation;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};

use clap::Parser;

use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::Wanted;
use arguments::{Arguments, Command, LogFormat, StatusArguments, TablesCommand};
use exit::exit;
use reload::Reloader;
use tables::Which;

/// The exit code where a validation found something.
const DIFFERENT: u8 = 3;
/// The exit code where a run finished but a table is errored.
const TABLE_ERRORED: u8 = 5;

/// Runs the program with the process's arguments, and ends the process.
pub fn main() -> ! {
    let raw: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::try_parse_from(&raw) {
        Ok(arguments) => arguments,
        Err(error) => exit(usage(&error, &raw)),
    };
    log::start(arguments.global.log_format, arguments.global.level());
    let code = match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            report::print(&error, arguments.global.log_format);
            error.kind().exit_code()
        }
    };
    exit(code)
}

/// What clap has to say: help and version go to stdout, mistakes to stderr with exit code 2.
fn usage(error: &clap::Error, raw: &[OsString]) -> u8 {
    let json = raw.windows(2).any(|pair| pair[0] == "--log-format" && pair[1] == "json")
        || raw.iter().any(|argument| argument == "--log-format=json");
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let message = text.trim().strip_prefix("error: ").unwrap_or(text.trim()).to_owned();
        report::print(&Error::new(ErrorKind::Config, message), LogFormat::Json);
    } else {
        let _ = error.print();
    }
    if error.use_stderr() { 2 } else { 0 }
}

fn run(arguments: &Arguments) -> Result<u8> {
    match &arguments.command {
        Command::Init(init) => init::run(init, arguments.global.config.as_deref()).map(|()| 0),
        Command::Check(check) => {
            let config = Config::load(&arguments.overrides())?;
            let report = block_on(engine::check(&config))??;
            if check.json {
                print_json(&report)?;
            } else {
                print(&report.render(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()))?;
            }
            Ok(u8::from(report.failed()))
        }
        Command::Sync(sync) => {
            let config = Config::load(&arguments.overrides())?;
            let shutdown = signals::listen()?;
            let reloader = Reloader::new(config.clone(), arguments.overrides());
            let outcome = block_on(progress::shown((config, reloader), sync.once, sync.resnapshot, shutdown))??;
            Ok(if sync.once && outcome.errored_tables > 0 { TABLE_ERRORED } else { 0 })
        }
        Command::Status(status) => show_status(arguments, status),
        Command::Tables(tables) => run_tables(arguments, &tables.command),
        Command::Drop(drop) => {
            let config = Config::load(&arguments.overrides())?;
            block_on(run_drop(&config, drop.yes))??;
            Ok(0)
        }
        Command::Query(query) => {
            let config = Config::load(&arguments.overrides())?;
            let shutdown = signals::listen()?;
            block_on(engine::query(&config, query, shutdown))??;
            Ok(0)
        }
        Command::Compact(compact) => {
            let config = Config::load(&arguments.overrides())?;
            let shutdown = signals::listen()?;
            let report = block_on(engine::compact(config, compact, shutdown))??;
            if compact.json {
                print_json(&report)?;
            } else {
                print(&report.render())?;
            }
            Ok(0)
        }
        Command::Validate(validate) => {
            let config = Config::load(&arguments.overrides())?;
            let shutdown = signals::listen()?;
            let report = block_on(validation::shown(&config, validate, shutdown))??;
            if validate.json {
                print_json(&report)?;
            } else {
                print(&report.render())?;
            }
            // Who names a table, and hears 0, takes it for equal.
            let unanswered = validate.table.is_some() && !validate.files && report.compared() == 0;
            Ok(match report.findings.is_empty() {
                false => DIFFERENT,
                true if unanswered || report.tables.iter().any(|table| table.errored) => TABLE_ERRORED,
                true => 0,
            })
        }
    }
}

fn run_tables(arguments: &Arguments, command: &TablesCommand) -> Result<u8> {
    let overrides = arguments.overrides();
    let config = Config::load(&overrides)?;
    let want = |names: &[String], which, wanted| block_on(tables::want(&config, names, which, wanted))?;
    let (asked, what) = match command {
        TablesCommand::List(list) => return show_status(arguments, list),
        TablesCommand::Add(add) => {
            let runs = block_on(tables::add(&config, &overrides, add))??;
            let then = if runs { "the running sync copies it, beside the others" } else { "the next sync copies it" };
            print(&format!("{}: {then}; `duckpipe status` shows how far it is\n", add.table))?;
            return Ok(0);
        }
        TablesCommand::Remove(remove) => {
            let runs = block_on(tables::remove(&config, &overrides, remove))??;
            let then = if runs { "the running sync lets it go" } else { "the next sync lets it go" };
            let left =
                if remove.drop { "the lake's table is dropped" } else { "the lake's table stays, and is nobody's" };
            print(&format!("{}: {then}; {left}\n", remove.table))?;
            return Ok(0);
        }
        TablesCommand::Pause(names) => {
            (want(&names.tables, Which::Named, Wanted::Pause)?, "it stands still as soon as the sync has seen to it")
        }
        TablesCommand::Resume(names) => (
            want(&names.tables, Which::Paused, Wanted::Resync)?,
            "a fresh copy is asked for; `duckpipe status` shows how far it is",
        ),
        TablesCommand::Resync(names) => {
            let which = if names.errored { Which::Errored } else { Which::Named };
            (
                want(&names.tables, which, Wanted::Resync)?,
                "a fresh copy is asked for; `duckpipe status` shows how far it is",
            )
        }
    };
    for table in &asked {
        print(&format!("{table}: {what}\n"))?;
    }
    if asked.is_empty() {
        print("no table is errored\n")?;
    }
    Ok(0)
}

fn show_status(arguments: &Arguments, status: &StatusArguments) -> Result<u8> {
    let config = Config::load(&arguments.overrides())?;
    let report = block_on(engine::status(&config))??;
    if status.json {
        print_json(&report)?;
    } else {
        print(&report.render())?;
    }
    Ok(if report.errored_tables() > 0 { TABLE_ERRORED } else { 0 })
}

async fn run_drop(config: &Config, yes: bool) -> Result<()> {
    let plan = engine::drop_plan(config).await?;
    if plan.is_empty() {
        return print("nothing to drop: the source has neither the slot nor a publication of duckpipe's\n");
    }
    print(&plan.describe())?;
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(Error::new(
                ErrorKind::Config,
                "drop asks before it removes anything, and nobody is there to answer",
            )
            .remedy("add --yes"));
        }
        print("Go on? [y/N] ")?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).because(ErrorKind::Internal, || "the answer can't be read".into())?;
        if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return print("nothing was removed\n");
        }
    }
    engine::drop(config, &plan).await?;
    print("done; the lake stays as it is\n")
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.because(ErrorKind::Internal, || "the runtime can't start".into())?;
    let output = runtime.block_on(future);
    // A name lookup that hangs must not hold the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(output)
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value);
    print(&(text.because(ErrorKind::Internal, || "the report has no JSON form".into())? + "\n"))
}

/// Writes to stdout. A reader that went away, as `head` does, is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).because(ErrorKind::Internal, || "stdout can't be written".into())
        }
        _ => Ok(()),
    }
}
