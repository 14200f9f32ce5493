//! The program under test, as a user runs it: a `duckpipe.toml` in a folder, and processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use duckpipe::lsn::Lsn;
use serde_json::Value;

use super::lake::Lake;
use super::minio::SECRET_KEY;
use super::postgres::PASSWORD;
use super::process::{Folder, send_signal, tail, wait_for};

/// How long one run of a command that ends by itself may take.
const RUN_DEADLINE: Duration = Duration::from_secs(300);

/// Its number on Linux.
const SIGTERM: u32 = 15;

/// A pipeline's folder with its `duckpipe.toml`.
#[derive(Debug)]
pub struct Duckpipe {
    folder: Folder,
    environment: Vec<(String, String)>,
}

/// What one run gave.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Finished {
    /// Asserts the exit code, printing all output where it is another.
    #[track_caller]
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(self.code, Some(code), "exit code\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// All that it printed.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Duckpipe {
    /// Writes a `duckpipe.toml` for the source at `url` and the lake; `rest` is the further text: `[sync]`, `[[tables]]`.
    pub fn new(name: &str, url: &str, lake: &Lake, rest: &str) -> Duckpipe {
        let folder = Folder::new(&format!("pipeline-{name}"));
        let duckpipe = Duckpipe { folder, environment: Vec::new() };
        duckpipe.configure(&format!("name = \"{name}\"\n\n[source]\nurl = \"{url}\"\n\n{}\n{rest}\n", lake.toml()));
        duckpipe
    }

    /// `[[tables]]` sections for these sources.
    pub fn tables(sources: &[&str]) -> String {
        sources.iter().map(|source| format!("[[tables]]\nsource = \"{source}\"\n")).collect()
    }

    /// Replaces the whole configuration.
    pub fn configure(&self, toml: &str) {
        fs::write(self.config(), toml).expect("duckpipe.toml");
    }

    /// The whole configuration.
    pub fn configuration(&self) -> String {
        fs::read_to_string(self.config()).expect("duckpipe.toml")
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("duckpipe.toml")
    }

    /// The folder that all commands run in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sets an environment variable for all later runs.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes an environment variable away again.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// Later runs kill themselves, as by SIGKILL, when they pass the failpoint for the `nth` time (from 1).
    pub fn die_at(&mut self, failpoint: &str, nth: u32) {
        self.set("DUCKPIPE_FAILPOINT", &format!("{failpoint}:{nth}"));
    }

    /// Later runs don't die.
    pub fn live(&mut self) {
        self.unset("DUCKPIPE_FAILPOINT");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // Measurements drive an optimised program from tests that need not be.
        let program = std::env::var_os("DUCKPIPE_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_duckpipe").into());
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = ["DUCKPIPE_CACHE", "DUCKPIPE_EXTENSIONS", "DUCKPIPE_LAB_DIR"].contains(&text.as_ref());
            // Nothing of the machine's own settings may decide a test.
            if !ours && (text.starts_with("DUCKPIPE_") || text.starts_with("AWS_") || text.starts_with("PG")) {
                command.env_remove(&name);
            }
        }
        if std::env::var_os("DUCKPIPE_EXTENSIONS").is_none() {
            command.env("DUCKPIPE_EXTENSIONS", super::process::cache().join("extensions"));
        }
        // Hashing them takes longer than most commands of a test.
        command.env("DUCKPIPE_TRUST_EXTENSIONS", "1");
        // A table that stops must be seen to stop: most tests want no fresh copy that hides it.
        command.env("DUCKPIPE_SYNC__RESYNC", "manual");
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.run_within(arguments, RUN_DEADLINE)
    }

    /// Runs a command that must end within `deadline`.
    #[track_caller]
    pub fn run_within(&self, arguments: &[&str], deadline: Duration) -> Finished {
        self.start(arguments).wait(deadline)
    }

    /// `sync --once`.
    #[track_caller]
    pub fn sync_once(&self) -> Finished {
        self.run(&["sync", "--once"])
    }

    /// `sync`, which goes on until it is ended.
    #[track_caller]
    pub fn sync(&self) -> Running<'_> {
        self.start(&["sync"])
    }

    /// Starts any command. Its output goes to files, so that nothing blocks on a pipe.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> Running<'_> {
        self.start_with(arguments, &[])
    }

    /// Starts any command with further environment variables of its own.
    #[track_caller]
    pub fn start_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Running<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let stem = format!("run-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let stdout = self.folder.path().join(format!("{stem}.out"));
        let stderr = self.folder.path().join(format!("{stem}.err"));
        let child = self
            .command(arguments)
            .envs(environment.iter().copied())
            .stdout(File::create(&stdout).expect("output file"))
            .stderr(File::create(&stderr).expect("output file"))
            .spawn()
            .expect("duckpipe");
        Running { duckpipe: self, child, stdout, stderr, name: arguments.join(" ") }
    }

    /// `status --json`, whether `sync` runs or not; an error is what it printed.
    pub fn try_status(&self) -> Result<Status, String> {
        let finished = self.run_within(&["status", "--json"], Duration::from_secs(120));
        // 5 says that a table is errored, which the JSON shows.
        if !matches!(finished.code, Some(0 | 5)) {
            return Err(format!("status ended with {:?}: {}", finished.code, finished.output()));
        }
        serde_json::from_str(&finished.stdout).map(Status).map_err(|error| format!("{error}: {}", finished.output()))
    }

    /// `status --json`.
    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What `status --json` printed.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// The position up to which the lake holds the source.
    pub fn applied_lsn(&self) -> Option<Lsn> {
        self.0["applied_lsn"].as_str()?.parse().ok()
    }

    /// The entry of a source table.
    #[track_caller]
    pub fn table(&self, source: &str) -> &Value {
        let tables = self.0["tables"].as_array();
        let found = tables.and_then(|all| all.iter().find(|table| table["source"] == source));
        found.unwrap_or_else(|| panic!("no table {source} in {}", self.0))
    }

    /// The state of a source table.
    #[track_caller]
    pub fn state(&self, source: &str) -> &str {
        self.table(source)["state"].as_str().unwrap_or_default()
    }

    /// Whether there are tables and all of them are in `state`.
    pub fn all(&self, state: &str) -> bool {
        self.0["tables"]
            .as_array()
            .is_some_and(|all| !all.is_empty() && all.iter().all(|table| table["state"] == state))
    }

    /// Whether all tables are streaming and the lake shows the source up to `lsn`.
    pub fn reached(&self, lsn: Lsn) -> bool {
        self.all("streaming") && self.applied_lsn().is_some_and(|applied| applied >= lsn)
    }
}

/// A process of the program. Dropping it kills it.
#[derive(Debug)]
pub struct Running<'a> {
    duckpipe: &'a Duckpipe,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    name: String,
}

impl Running<'_> {
    /// The process id, for /proc.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it printed until now.
    pub fn tail(&self) -> String {
        format!("duckpipe {}\nstdout:\n{}\nstderr:\n{}", self.name, tail(&self.stdout, 20), tail(&self.stderr, 60))
    }

    /// All that it printed until now.
    pub fn output(&self) -> String {
        [&self.stdout, &self.stderr]
            .map(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned())
            .concat()
    }

    /// Waits until it has printed `text`.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str, deadline: Duration) {
        let what = format!("it prints «{text}»");
        wait_for(&what, deadline, || self.output().contains(text).then_some(()), || self.tail());
    }

    /// Waits until the status is as wanted. Panics when the process ends before, or after `deadline`, with the last status and output.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, deadline: Duration, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        let start = Instant::now();
        // Each look is a process: a long wait is worth fewer of them.
        let mut pause = Duration::from_millis(100);
        let mut last;
        loop {
            match self.duckpipe.try_status() {
                Ok(status) if wanted(&status) => return status,
                Ok(status) => last = status.0.to_string(),
                Err(error) => last = error,
            }
            assert!(self.runs(), "{what}: the process ended before\n{last}\n{}", self.tail());
            assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}\n{last}\n{}", self.tail());
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(Duration::from_millis(600));
        }
    }

    /// Waits until all tables stream and the lake shows the source up to `lsn`.
    #[track_caller]
    pub fn wait_for_lsn(&mut self, lsn: Lsn, deadline: Duration) -> Status {
        self.wait_until(&format!("the lake shows {lsn}"), deadline, |status| status.reached(lsn))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(mut self) -> Finished {
        let _ = self.child.kill();
        self.wait(Duration::from_secs(20))
    }

    /// SIGTERM, and waits for the orderly end, which may take 20 s.
    #[track_caller]
    pub fn terminate(mut self) -> Finished {
        // One that has only just begun does not listen yet, and would end at once.
        let listens = |running: &mut Self| (!running.runs() || running.catches(SIGTERM)).then_some(());
        wait_for("it listens to signals", Duration::from_secs(60), || listens(&mut self), String::new);
        self.signal("TERM");
        self.wait(Duration::from_secs(20))
    }

    /// Sends a signal by its name without `SIG`.
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(mut self, deadline: Duration) -> Finished {
        let what = format!("the end of duckpipe {}", self.name);
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let child = &mut self.child;
        let status: ExitStatus = wait_for(
            &what,
            deadline,
            || child.try_wait().expect("wait"),
            || format!("stdout:\n{}\nstderr:\n{}", tail(&stdout, 20), tail(&stderr, 60)),
        );
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let finished = Finished { code: status.code(), stdout: read(&self.stdout), stderr: read(&self.stderr) };
        // Every run of every test is a test of this promise too.
        for secret in [PASSWORD, SECRET_KEY] {
            assert!(!finished.output().contains(secret), "{what}: a secret was printed:\n{}", finished.output());
        }
        // A test may run thousands of commands.
        for path in [&self.stdout, &self.stderr] {
            let _ = fs::remove_file(path);
        }
        finished
    }

    /// Whether it was stopped, and not told to go on yet.
    pub fn is_stopped(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:\tT"))
    }

    /// Whether it has a handler for the signal of this number.
    fn catches(&self, signal: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        caught >> (signal - 1) & 1 == 1
    }

    /// The peak of its resident memory until now, in bytes (`VmHWM`).
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Its resident memory now, in bytes (`VmRSS`).
    pub fn resident_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.runs() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
