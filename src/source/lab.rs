//! A real Postgres for this module's tests: one temporary cluster, shared by the tests that run at the same time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use super::session::Session;
use super::settings::SourceSettings;
use crate::secret::Secret;

pub(crate) const PASSWORD: &str = "it's 100% s€cret/@?";
pub(crate) const PASSWORD_ENCODED: &str = "it%27s%20100%25%20s%E2%82%ACcret%2F%40%3F";

/// A running cluster with TLS, `wal_level=logical`, and logins of every kind. Stopped and removed when dropped.
pub(crate) struct Cluster {
    folder: PathBuf,
    pub(crate) port: u16,
}

/// The cluster, started if no test has it yet.
pub(crate) fn cluster() -> Arc<Cluster> {
    static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    shared.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Cluster::start());
        *shared = Arc::downgrade(&started);
        started
    })
}

impl Cluster {
    /// A cluster of a test's own, for what would disturb others.
    pub(crate) fn start() -> Cluster {
        let folder = std::env::temp_dir().join(format!("duckpipe-source-{}", uuid::Uuid::new_v4().simple()));
        // The server does not run as root.
        run(Command::new("install")
            .args(["-d", "-m", "700"])
            .args(root_args(&["-o", "postgres", "-g", "postgres"]))
            .arg(&folder));
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Cluster { folder, port };
        let password = cluster.path("password");
        std::fs::write(&password, PASSWORD).unwrap();
        run(Command::new("chmod").arg("644").arg(&password));
        let data = cluster.path("data");
        let mut initdb = server_program("initdb");
        run(initdb
            .args(["-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data));
        cluster.make_certificates();
        let hba = "local all all trust\n\
                   hostssl all only_tls 127.0.0.1/32 scram-sha-256\n\
                   hostnossl all only_plain 127.0.0.1/32 scram-sha-256\n\
                   host all only_tls,only_plain 127.0.0.1/32 reject\n\
                   hostssl all by_certificate 127.0.0.1/32 cert\n\
                   host all by_md5 127.0.0.1/32 md5\n\
                   host all by_text 127.0.0.1/32 password\n\
                   host all all all scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let configuration = format!(
            "port = {port}\nlisten_addresses = 'localhost'\nunix_socket_directories = '{0}'\nwal_level = logical\n\
             fsync = off\nmax_replication_slots = 20\nmax_wal_senders = 20\nssl = on\nssl_cert_file = '{0}/server.crt'\n\
             ssl_key_file = '{0}/server.key'\nssl_ca_file = '{0}/ca.crt'\nautovacuum = off\nmax_wal_size = 4GB\n",
            cluster.folder.display()
        );
        let file = data.join("postgresql.auto.conf");
        std::fs::write(&file, configuration).unwrap();
        cluster.control(&["start", "-w", "-l", &cluster.path("log").display().to_string()]);
        let roles = "CREATE ROLE only_tls LOGIN PASSWORD 'x'; CREATE ROLE only_plain LOGIN PASSWORD 'x'; \
                     CREATE ROLE by_certificate LOGIN; CREATE ROLE by_text LOGIN PASSWORD 'x'; \
                     SET password_encryption = md5; CREATE ROLE by_md5 LOGIN PASSWORD 'x'";
        cluster.psql("postgres", roles);
        cluster
    }

    /// A certificate authority, a second one that signed nothing, and the server's certificate for `localhost`.
    fn make_certificates(&self) {
        let openssl = |script: &str| run(Command::new("bash").arg("-ec").arg(script).current_dir(&self.folder));
        for name in ["ca", "other-ca"] {
            openssl(&format!(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN={name}' \
                 -keyout {name}.key -out {name}.crt 2>&1"
            ));
        }
        openssl(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=by_certificate -keyout client.key -out client.csr 2>&1; \
             openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client-v1.crt 2>&1; \
             openssl x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out client.crt \
             -extfile <(printf 'keyUsage=digitalSignature') 2>&1; \
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout server.key -out server.csr 2>&1; \
             openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out server.crt \
             -extfile <(printf 'subjectAltName=DNS:localhost') 2>&1; chmod 600 server.key",
        );
        if is_root() {
            openssl("chown postgres server.key");
        }
    }

    /// `pg_ctl` with these arguments.
    pub(crate) fn control(&self, arguments: &[&str]) {
        let mut pg_ctl = server_program("pg_ctl");
        run(pg_ctl.args(arguments).arg("-s").arg("-D").arg(self.path("data")));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The superuser's address of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{PASSWORD_ENCODED}@localhost:{}/{database}", self.port)
    }

    pub(crate) fn settings(&self, database: &str) -> SourceSettings {
        settings(&self.url(database))
    }

    /// A fresh database, and a session in it.
    pub(crate) async fn database(&self, name: &str) -> (SourceSettings, Session) {
        self.psql("postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        let settings = self.settings(name);
        let session = Session::connect(&settings).await.unwrap();
        (settings, session)
    }

    pub(crate) fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = server_program("psql");
        run(psql
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"])
            .arg(&self.folder)
            .args(["-p", &self.port.to_string(), "-c", sql]))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut stop = server_program("pg_ctl");
        let _ = stop.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.path("data")).status();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn settings(url: &str) -> SourceSettings {
    SourceSettings::parse(&Secret::new(url)).unwrap()
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|own| own.uid() == 0).unwrap_or(false)
}

fn root_args<'a>(arguments: &'a [&'a str]) -> &'a [&'a str] {
    if is_root() { arguments } else { &[] }
}

/// A program of the server's package, to be run by an unprivileged user.
fn server_program(name: &str) -> Command {
    let newest = || {
        let mut versions: Vec<_> =
            std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
        versions.sort();
        versions.pop().map(|version| version.join("bin").join(name))
    };
    let program = newest().filter(|path| Path::exists(path)).unwrap_or_else(|| name.into());
    let mut command = match is_root() {
        true => {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        }
        false => Command::new(program),
    };
    command.current_dir("/");
    command
}

fn run(command: &mut Command) -> String {
    // pg_ctl leaves the server with the descriptors that it was given: pipes would never end.
    let (out, file) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(out.reopen().unwrap())
        .stderr(file.reopen().unwrap())
        .status()
        .unwrap();
    let read = |file: &tempfile::NamedTempFile| std::fs::read_to_string(file.path()).unwrap();
    assert!(status.success(), "{command:?}: {}{}", read(&out), read(&file));
    read(&out).trim_end().to_owned()
}
