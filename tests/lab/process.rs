//! Child processes that never outlive the tests, free ports, and waiting for a condition.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` gives a value. Panics after `deadline`, saying what was waited for and what `describe` prints.
#[track_caller]
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Option<T>,
    describe: impl FnOnce() -> String,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}\n{}", describe());
        thread::sleep(POLL);
    }
}

/// A port of 127.0.0.1 that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Whether somebody listens on `port` of 127.0.0.1.
pub fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_millis(500)).is_ok()
}

/// The user that Postgres runs as: it refuses root, so then it is the distribution's `postgres`, else `nobody`.
#[derive(Clone, Copy, Debug)]
pub struct User {
    ids: Option<(u32, u32)>,
}

impl User {
    /// See [`User`].
    pub fn unprivileged() -> User {
        if id(&["-u"]) != Some(0) {
            return User { ids: None };
        }
        let of = |name: &str| Some((id(&["-u", name])?, id(&["-g", name])?));
        User { ids: Some(of("postgres").or_else(|| of("nobody")).expect("a user that is not root")) }
    }

    /// A command that runs as this user, without the environment's Postgres settings.
    pub fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        if let Some((user, group)) = self.ids {
            command.uid(user).gid(group);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C.UTF-8").current_dir("/");
        command
    }

    /// Makes this user the owner of `path`.
    pub fn own(self, path: &Path) {
        if let Some((user, group)) = self.ids {
            std::os::unix::fs::chown(path, Some(user), Some(group)).expect("chown");
        }
    }
}

fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// A folder of its own for one part of the laboratory, removed when the value is dropped, or, should the test process die
/// first, by the watchdog of the server that lives in it or by the next run.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes the folder. It lies where an unprivileged user can reach it: `DUCKPIPE_LAB_DIR`, else the system's temporary folder.
    pub fn new(what: &str) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = std::env::var_os("DUCKPIPE_LAB_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        if NUMBER.load(Ordering::Relaxed) == 0 {
            remove_left_overs(&root);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("duckpipe-lab-{}-{number}-{what}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Folder { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::env::var_os("DUCKPIPE_LAB_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the folders of test processes that are no more.
fn remove_left_overs(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix("duckpipe-lab-")) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A server process that ends with the test process, however that ends.
///
/// A watchdog shell, in a process group of its own, holds the read end of a pipe whose write end only this process has.
/// When the pipe closes, because the value is dropped or the test process was killed, it ends the server and removes its folder.
#[derive(Debug)]
pub struct Server {
    child: Child,
    watchdog: Option<Child>,
    log: PathBuf,
    stop: &'static str,
}

impl Server {
    /// Starts `command` with its output in `log`; `stop` is the name of the signal that ends it at once.
    pub fn start(mut command: Command, log: PathBuf, stop: &'static str, folder: &Path) -> io::Result<Server> {
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn()?;
        let watch = "cat >/dev/null; kill -s \"$1\" \"$2\" 2>/dev/null; i=0; \
                     while grep -q \"^State:.[^ZX]\" /proc/$2/status 2>/dev/null && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.1; done; \
                     kill -s KILL \"$2\" 2>/dev/null; [ -n \"$DUCKPIPE_LAB_KEEP\" ] || rm -rf \"$3\"";
        let watchdog = Command::new("sh")
            .args(["-c", watch, "watchdog", stop, &child.id().to_string()])
            .arg(folder)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Server { child, watchdog: Some(watchdog), log, stop })
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it printed.
    pub fn log(&self) -> String {
        tail(&self.log, 40)
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Leaves the folder in place when this server goes: its data is wanted again.
    pub fn keep_folder(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            let _ = watchdog.kill();
            let _ = watchdog.wait();
        }
    }

    /// Ends the process with `signal` and waits for it.
    pub fn end(&mut self, signal: &str, deadline: Duration) -> ExitStatus {
        self.signal(signal);
        let log = self.log.clone();
        let child = &mut self.child;
        wait_for("the end of a server", deadline, || child.try_wait().ok().flatten(), || tail(&log, 40))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.runs() {
            send_signal(self.child.id(), self.stop);
        }
        // Reaped here, so that the watchdog, which is let go next, finds no process to end.
        let start = Instant::now();
        while self.runs() {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            thread::sleep(POLL);
        }
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.stdin.take());
            let _ = watchdog.wait();
        }
    }
}

/// Sends a signal, by its name without `SIG`, to a process.
pub fn send_signal(process: u32, signal: &str) {
    // The shell's own kill: no unsafe code here and no further package on the machine.
    let _ = Command::new("sh")
        .args(["-c", "kill -s \"$1\" \"$2\" 2>/dev/null", "kill", signal, &process.to_string()])
        .status();
}

/// The last `lines` lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where the scripts put what they fetch.
pub fn cache() -> PathBuf {
    if let Some(path) = std::env::var_os("DUCKPIPE_CACHE") {
        return path.into();
    }
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("duckpipe")
}
