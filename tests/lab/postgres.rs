//! A real Postgres: a cluster of its own in a temporary folder, on a port of its own.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::process::{Folder, Server, User, free_port, listens, wait_for};

/// The password of every role that the laboratory makes: whatever prints it has leaked it.
pub const PASSWORD: &str = "lab-secret-Pa55";

/// One runtime for all sessions of the laboratory; the tests themselves are plain, synchronous code.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

/// How a cluster is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Off by default: a test that kills Postgres itself wants it on.
    pub fsync: bool,
    /// Further settings, which win: `("wal_level", "replica")`.
    pub settings: Vec<(String, String)>,
}

impl Options {
    /// With one more setting.
    pub fn set(mut self, name: &str, value: &str) -> Options {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running cluster. The superuser is `postgres`, its password [`PASSWORD`]; dropping the value ends it and removes its folder.
#[derive(Debug)]
pub struct Postgres {
    server: Option<Server>,
    options: Options,
    port: u16,
    user: User,
    folder: Folder,
}

impl Postgres {
    /// Makes and starts a cluster.
    pub fn start(options: Options) -> Postgres {
        let folder = Folder::new("postgres");
        let user = User::unprivileged();
        user.own(folder.path());
        let password = folder.path().join("password");
        std::fs::write(&password, PASSWORD).expect("password file");
        user.own(&password);
        let output = user
            .command(bin("initdb"))
            .args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres", "--auth=scram-sha-256"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(folder.path().join("data"))
            .output()
            .expect("initdb");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut postgres = Postgres { server: None, options, port: 0, user, folder };
        postgres.launch();
        postgres
    }

    /// The cluster that all tests of this process share; each takes a [database](Postgres::database) of its own.
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start(Options::default()))
    }

    fn launch(&mut self) {
        let data = self.folder.path().join("data");
        // Somebody else may take the port between the look and the start: then another one is tried.
        for _ in 0..5 {
            if self.port == 0 {
                self.port = free_port();
            }
            let mut settings: Vec<(String, String)> = [
                ("listen_addresses", "127.0.0.1"),
                ("wal_level", "logical"),
                ("max_wal_senders", "40"),
                ("max_replication_slots", "40"),
                ("max_connections", "150"),
                ("max_prepared_transactions", "10"),
                ("wal_sender_timeout", "30s"),
                // Transactions that are hardly large come in blocks.
                ("logical_decoding_work_mem", "64kB"),
                ("shared_buffers", "64MB"),
                ("max_wal_size", "4GB"),
                ("logging_collector", "off"),
                ("autovacuum_naptime", "10min"),
                // Small databases: compiling a query takes longer than running it.
                ("jit", "off"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
            settings.push(("port".to_owned(), self.port.to_string()));
            settings.push(("unix_socket_directories".to_owned(), self.folder.path().display().to_string()));
            if !self.options.fsync {
                settings.push(("fsync".to_owned(), "off".to_owned()));
                settings.push(("full_page_writes".to_owned(), "off".to_owned()));
            }
            settings.extend(self.options.settings.iter().cloned());
            let mut command = self.user.command(bin("postgres"));
            command.arg("-D").arg(&data);
            for (name, value) in &settings {
                command.arg("-c").arg(format!("{name}={value}"));
            }
            let log = self.folder.path().join("postgres.log");
            let mut server = Server::start(command, log, "QUIT", self.folder.path()).expect("postgres");
            let url = self.url("postgres", "postgres");
            let up = wait_for(
                "Postgres accepts connections",
                Duration::from_secs(120),
                || {
                    if !server.runs() {
                        return Some(false);
                    }
                    RUNTIME.block_on(tokio_postgres::connect(&url, NoTls)).is_ok().then_some(true)
                },
                || "see the server's log in its folder (DUCKPIPE_LAB_KEEP=1 keeps it)".to_owned(),
            );
            if up {
                self.server = Some(server);
                return;
            }
            server.keep_folder();
            let log = server.log();
            assert!(listens(self.port), "Postgres ended at its start:\n{log}");
            self.port = 0;
        }
        panic!("no port for Postgres");
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The cluster's data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The address of `database` for `role`, with the password.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// A new superuser session.
    pub fn connect(&self, database: &str) -> Client {
        Client::connect(&self.url("postgres", database))
    }

    /// Makes the database anew, dropping one of that name together with its slots. It is dropped with the value.
    #[track_caller]
    pub fn database(&self, name: &str) -> Database<'_> {
        self.create_database(name);
        Database { postgres: self, name: name.to_owned(), client: self.connect(name) }
    }

    /// Makes the database anew; it stays as long as the cluster.
    #[track_caller]
    pub fn create_database(&self, name: &str) {
        self.drop_database(name);
        self.connect("postgres").execute(&format!("CREATE DATABASE {name}"));
    }

    /// Drops a database, where it exists, with the sessions and the slots that hold it.
    #[track_caller]
    pub fn drop_database(&self, name: &str) {
        let admin = self.connect("postgres");
        let last = wait_for(
            &format!("database {name} is gone"),
            Duration::from_secs(60),
            || match try_drop_database(&admin, name) {
                Ok(()) => Some(Ok(())),
                // A walsender that was told to end still holds its slot for a moment.
                Err(error) if error.contains("is active") || error.contains("used by an active") => None,
                Err(error) => Some(Err(error)),
            },
            String::new,
        );
        last.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Stops the cluster in order (`INT`), at once (`QUIT`) or by `KILL`; [`Postgres::restart`] starts it again.
    pub fn stop(&mut self, signal: &str) {
        if let Some(mut server) = self.server.take() {
            server.end(signal, Duration::from_secs(120));
            // The watchdog must not remove the folder of a cluster that comes back.
            server.keep_folder();
        }
    }

    /// Starts the cluster again on its port, with changed options.
    pub fn restart(&mut self, change: impl FnOnce(&mut Options)) {
        self.stop("INT");
        change(&mut self.options);
        self.launch();
    }

    /// A standby that follows this cluster by the slot `standby`, with further settings of its own. The cluster stops for a moment
    /// while its folder is copied as a backup does, without its slots.
    pub fn standby(&mut self, settings: &[(&str, &str)]) -> Postgres {
        self.connect("postgres").execute("SELECT pg_create_physical_replication_slot('standby')");
        self.stop("INT");
        let folder = Folder::new("standby");
        self.user.own(folder.path());
        let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(self.data()).arg(folder.path()).status();
        assert!(copied.expect("cp").success());
        std::fs::remove_dir_all(folder.path().join("data/pg_replslot/standby")).expect("the copied slot");
        let signal = folder.path().join("data/standby.signal");
        std::fs::write(&signal, "").expect("standby.signal");
        self.user.own(&signal);
        self.launch();
        let primary = format!("host=127.0.0.1 port={} user=postgres password={PASSWORD} dbname=postgres", self.port);
        let mut options = self.options.clone().set("primary_conninfo", &primary).set("hot_standby_feedback", "on");
        options = settings
            .iter()
            .fold(options.set("primary_slot_name", "standby"), |options, (name, value)| options.set(name, value));
        let mut standby = Postgres { server: None, options, port: 0, user: self.user, folder };
        standby.launch();
        standby
    }

    /// Sends a signal to the postmaster.
    pub fn signal(&self, signal: &str) {
        if let Some(server) = &self.server {
            server.signal(signal);
        }
    }

    /// The end of the server's log.
    pub fn log(&self) -> String {
        self.server.as_ref().map_or_else(String::new, Server::log)
    }
}

/// A database of its own, with a superuser session on it.
#[derive(Debug)]
pub struct Database<'a> {
    postgres: &'a Postgres,
    name: String,
    client: Client,
}

impl Database<'_> {
    /// The cluster it lies in.
    pub fn postgres(&self) -> &Postgres {
        self.postgres
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The superuser's address.
    pub fn url(&self) -> String {
        self.postgres.url("postgres", &self.name)
    }

    /// The address for another role.
    pub fn url_of(&self, role: &str) -> String {
        self.postgres.url(role, &self.name)
    }

    /// One more session.
    pub fn connect(&self) -> Client {
        self.postgres.connect(&self.name)
    }

    /// Makes the role anew: it may log in and replicate, and nothing else.
    pub fn replication_role(&self, role: &str) {
        self.execute(&format!(
            "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN DROP OWNED BY {role}; DROP ROLE {role}; END IF; END $$; \
             CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'"
        ));
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        // What a failed test leaves may be wanted, and a panic in a panic ends the process.
        if !std::thread::panicking() {
            self.postgres.drop_database(&self.name);
        }
    }
}

impl Deref for Database<'_> {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A session, for plain synchronous code. Values come as the text that Postgres prints; every failure is a panic with the statement.
#[derive(Debug)]
pub struct Client {
    client: tokio_postgres::Client,
}

impl Client {
    /// Opens a session on a `postgres://` address.
    #[track_caller]
    pub fn connect(url: &str) -> Client {
        let connect = async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            tokio::spawn(connection);
            // What is compared must not depend on the machine's settings.
            client
                .batch_execute(
                    "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET extra_float_digits = 1; \
                     SET bytea_output = 'hex'; SET client_min_messages = warning",
                )
                .await?;
            Ok::<_, tokio_postgres::Error>(client)
        };
        match RUNTIME.block_on(connect) {
            Ok(client) => Client { client },
            Err(error) => panic!("no session: {}", describe(&error)),
        }
    }

    /// The session itself, for what this wrapper does not have; run its futures on [`RUNTIME`].
    pub fn inner(&self) -> &tokio_postgres::Client {
        &self.client
    }

    /// Runs statements.
    #[track_caller]
    pub fn execute(&self, sql: &str) {
        if let Err(error) = self.try_execute(sql) {
            panic!("{error}\n{}", shorten(sql));
        }
    }

    /// Runs statements that may fail; the error is Postgres' message.
    pub fn try_execute(&self, sql: &str) -> Result<(), String> {
        RUNTIME.block_on(self.client.batch_execute(sql)).map_err(|error| describe(&error))
    }

    /// The rows of a query.
    #[track_caller]
    pub fn query(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let messages = match RUNTIME.block_on(self.client.simple_query(sql)) {
            Ok(messages) => messages,
            Err(error) => panic!("{}\n{}", describe(&error), shorten(sql)),
        };
        messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()),
                _ => None,
            })
            .collect()
    }

    /// The one value of a query, `NULL` as an empty text.
    #[track_caller]
    pub fn text(&self, sql: &str) -> String {
        let rows = self.query(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "not one value but {} rows: {}", rows.len(), shorten(sql));
        rows[0][0].clone().unwrap_or_default()
    }

    /// The one number of a query.
    #[track_caller]
    pub fn number(&self, sql: &str) -> i64 {
        let text = self.text(sql);
        text.parse().unwrap_or_else(|_| panic!("{text:?} is no number: {}", shorten(sql)))
    }

    /// The position up to which everything that is committed now has been written: what a reader must reach to show it.
    pub fn lsn(&self) -> duckpipe::lsn::Lsn {
        const PAGE: u64 = 8192;
        const SEGMENT: u64 = 16 << 20;
        let inserted: duckpipe::lsn::Lsn = self.text("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
        // At a page's start it lies behind the page's header, which nobody sends before something follows it.
        let header = if inserted.0 % SEGMENT < PAGE { 40 } else { 24 };
        duckpipe::lsn::Lsn(if inserted.0 % PAGE == header { inserted.0 - header } else { inserted.0 })
    }
}

fn try_drop_database(admin: &Client, name: &str) -> Result<(), String> {
    admin.try_execute(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    ))?;
    admin.try_execute(&format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'"
    ))?;
    admin.try_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
}

fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| format!("{}: {}", db.code().code(), db.message()))
}

fn shorten(sql: &str) -> String {
    sql.chars().take(2000).collect()
}

/// A program of the server's folder.
pub fn bin(program: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let mut folders: Vec<PathBuf> =
                std::env::var_os("DUCKPIPE_POSTGRES_BIN").map(PathBuf::from).into_iter().collect();
            folders.push("/usr/lib/postgresql/15/bin".into());
            let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
            folders.extend(installed.map(|entry| entry.path().join("bin")));
            folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
            let found = folders.into_iter().find(|folder| is_file(folder, "initdb") && is_file(folder, "postgres"));
            found.expect(
                "a Postgres server: scripts/bootstrap.sh postgres installs one, DUCKPIPE_POSTGRES_BIN names another",
            )
        })
        .join(program)
}

fn is_file(folder: &Path, name: &str) -> bool {
    folder.join(name).is_file()
}
