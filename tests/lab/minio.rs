//! A real MinIO server process, with a bucket for each test.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::process::{Folder, Server, cache, free_port, wait_for};

/// The root user of the laboratory's server.
pub const ACCESS_KEY: &str = "lab-access";
/// Its password: whatever prints it has leaked it.
pub const SECRET_KEY: &str = "lab-secret-5eCr3t";

/// A running MinIO. Dropping the value ends it and removes its folder.
#[derive(Debug)]
pub struct Minio {
    server: Server,
    port: u16,
    folder: Folder,
}

impl Minio {
    /// Starts a server on a folder and a port of its own.
    pub fn start() -> Minio {
        let program = std::env::var_os("DUCKPIPE_MINIO").map_or_else(|| cache().join("minio"), PathBuf::from);
        assert!(program.is_file(), "no MinIO at {}: scripts/bootstrap.sh minio builds it", program.display());
        let folder = Folder::new("minio");
        for _ in 0..5 {
            let port = free_port();
            let mut command = Command::new(&program);
            command
                .args([
                    "server",
                    "--quiet",
                    "--address",
                    &format!("127.0.0.1:{port}"),
                    "--console-address",
                    "127.0.0.1:0",
                ])
                .arg(folder.path().join("data"))
                .env("MINIO_ROOT_USER", ACCESS_KEY)
                .env("MINIO_ROOT_PASSWORD", SECRET_KEY)
                .env("MINIO_BROWSER", "off")
                .env("MINIO_UPDATE", "off")
                .env("HOME", folder.path());
            let mut server =
                Server::start(command, folder.path().join("minio.log"), "KILL", folder.path()).expect("minio");
            let endpoint = format!("http://127.0.0.1:{port}");
            let up = wait_for(
                "MinIO is ready",
                Duration::from_secs(120),
                || {
                    if !server.runs() {
                        return Some(false);
                    }
                    // Its health page says ready a moment before it takes requests.
                    signed(&endpoint, "s3", "GET", "/", &[]).is_ok().then_some(true)
                },
                || "see its log (DUCKPIPE_LAB_KEEP=1 keeps the folder)".to_owned(),
            );
            if up {
                return Minio { server, port, folder };
            }
            let log = server.log();
            assert!(log.contains("port"), "MinIO ended at its start:\n{log}");
            server.keep_folder();
        }
        panic!("no port for MinIO");
    }

    /// The server that all tests of this process share; each takes a [bucket](Minio::bucket) of its own.
    pub fn shared() -> &'static Minio {
        static SHARED: OnceLock<Minio> = OnceLock::new();
        SHARED.get_or_init(Minio::start)
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket; one of that name must not exist. Names: lower-case letters, digits, `-`.
    pub fn bucket(&self, name: &str) -> Bucket {
        self.request("PUT", &format!("/{name}"));
        Bucket { name: name.to_owned(), endpoint: self.endpoint() }
    }

    /// Temporary credentials that may do no more with the bucket than `minio/policy.json` says, as environment variables of the AWS chain.
    pub fn limited(&self, bucket: &Bucket) -> [(&'static str, String); 3] {
        let policy =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/minio/policy.json")).expect("the policy");
        let policy = format!("Policy={}", policy.replace("BUCKET", &bucket.name));
        let fields = ["Action=AssumeRole", "Version=2011-06-15", "DurationSeconds=3600", &policy];
        let form: Vec<&str> = fields.into_iter().flat_map(|field| ["--data-urlencode", field]).collect();
        let answer = signed(&self.endpoint(), "sts", "POST", "/", &form).unwrap_or_else(|error| panic!("{error}"));
        let part = |tag: &str| {
            let (_, after) = answer.split_once(&format!("<{tag}>")).expect("an answer of STS");
            after.split('<').next().unwrap_or_default().to_owned()
        };
        [
            ("AWS_ACCESS_KEY_ID", part("AccessKeyId")),
            ("AWS_SECRET_ACCESS_KEY", part("SecretAccessKey")),
            ("AWS_SESSION_TOKEN", part("SessionToken")),
        ]
    }

    /// One signed request as root; gives the body.
    pub fn request(&self, method: &str, path: &str) -> String {
        signed(&self.endpoint(), "s3", method, path, &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sends a signal: `STOP` and `CONT` make the store hang and come back.
    pub fn signal(&self, signal: &str) {
        self.server.signal(signal);
    }

    /// Where the objects lie.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

/// One request signed as root; gives the body.
fn signed(endpoint: &str, service: &str, method: &str, path: &str, further: &[&str]) -> Result<String, String> {
    let mut curl = Command::new("curl")
        // The credentials go through the standard input, not the command line, which every user can see.
        .args(["--noproxy", "*", "-sS", "--fail-with-body", "-K", "-", "-X", method])
        .args(["--aws-sigv4", &format!("aws:amz:us-east-1:{service}")])
        .args(further)
        .arg(format!("{endpoint}{path}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("curl");
    let mut input = curl.stdin.take().expect("piped");
    writeln!(input, "user = \"{ACCESS_KEY}:{SECRET_KEY}\"").expect("credentials");
    drop(input);
    let output = curl.wait_with_output().expect("curl");
    let body = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(body);
    }
    Err(format!("{method} {path}: {}{body}", String::from_utf8_lossy(&output.stderr)))
}

/// A bucket of a [`Minio`].
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// The server's address.
    pub endpoint: String,
}
