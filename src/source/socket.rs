//! A socket to one of the source's hosts, encrypted as the settings say. Both kinds of connection begin here.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::settings::{Host, SourceSettings, SslMode};
use super::tls;
use crate::error::{Because, Error, ErrorKind, Result};

/// A byte stream in both directions.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Why a login did not succeed.
pub(crate) struct LoginError {
    pub(crate) error: Error,
    /// `pg_hba.conf` does not let this user in this way; encrypted (or not), it may.
    pub(crate) not_admitted: bool,
}

impl From<Error> for LoginError {
    fn from(error: Error) -> Self {
        LoginError { error, not_admitted: false }
    }
}

/// Tries the hosts in order, and on each the encryptions that `sslmode` allows, until `login` succeeds on one.
///
/// `login` speaks the protocol's start on a fresh socket. As in libpq, a host that can't be reached is passed over, while
/// a login that fails ends the search. What is reported is the first failure.
pub(crate) async fn connect<T, F>(settings: &SourceSettings, login: impl Fn(Box<dyn Socket>) -> F) -> Result<T>
where
    F: Future<Output = Result<T, LoginError>>,
{
    let mut first_error = None;
    for host in &settings.hosts {
        for encryption in attempts(host, settings.tls.mode) {
            let whole = async { login(open(settings, host, *encryption).await?).await };
            let failed = match tokio::time::timeout(settings.connect_timeout, whole).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failed)) => failed,
                Err(_) => {
                    let message = format!("no answer within {} s", settings.connect_timeout.as_secs());
                    Error::new(ErrorKind::Transient, message).remedy(UNREACHABLE).into()
                }
            };
            let kind = failed.error.kind();
            let place =
                format!("Connecting to Postgres at {}/{} as {}", host.describe(), settings.database, settings.user);
            let error = first_error.take().unwrap_or_else(|| failed.error.context(place));
            if kind != ErrorKind::Transient && !failed.not_admitted {
                return Err(error);
            }
            first_error = Some(error);
            if !failed.not_admitted {
                break;
            }
        }
    }
    Err(first_error.unwrap_or_else(|| Error::new(ErrorKind::Config, "The source's url names no host")))
}

pub(crate) const UNREACHABLE: &str =
    "Check host and port in the source's url, that the server runs and listens there, and that no firewall is between.";

#[derive(Clone, Copy, PartialEq)]
enum Encryption {
    Plain,
    /// TLS where the server offers it.
    Preferred,
    Required,
}

fn attempts(host: &Host, mode: SslMode) -> &'static [Encryption] {
    match mode {
        _ if matches!(host, Host::Unix { .. }) => &[Encryption::Plain],
        SslMode::Disable => &[Encryption::Plain],
        SslMode::Allow => &[Encryption::Plain, Encryption::Required],
        SslMode::Prefer => &[Encryption::Preferred, Encryption::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Required],
    }
}

async fn open(settings: &SourceSettings, host: &Host, encryption: Encryption) -> Result<Box<dyn Socket>> {
    let (name, port) = match host {
        Host::Unix { folder, port } => {
            let path = folder.join(format!(".s.PGSQL.{port}"));
            let socket = UnixStream::connect(&path).await.map_err(unreachable)?;
            return Ok(Box::new(socket));
        }
        Host::Tcp { name, port } => (name, *port),
    };
    let mut socket = TcpStream::connect((name.as_str(), port)).await.map_err(unreachable)?;
    keep_alive(&socket).because(ErrorKind::Internal, || "The socket's options could not be set".into())?;
    if encryption == Encryption::Plain {
        return Ok(Box::new(socket));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(unreachable)?;
    // One byte only: what an attacker could have put behind it must not be taken for encrypted data.
    match socket.read_u8().await.map_err(unreachable)? {
        b'S' => {}
        _ if encryption == Encryption::Preferred => return Ok(Box::new(socket)),
        _ => {
            return Err(Error::new(ErrorKind::Precondition, "the server does not offer TLS, and sslmode asks for it")
                .remedy(
                    "Set ssl = on in the server, or sslmode=disable in the source's url where the network is trusted.",
                ));
        }
    }
    let server = ServerName::try_from(name.clone())
        .because(ErrorKind::Config, || format!("{name} is not a name that a certificate can hold"))?;
    let connector = TlsConnector::from(tls::client_config(&settings.tls)?);
    let socket = connector.connect(server, socket).await.map_err(|error| {
        // rustls reports what it dislikes about a certificate as InvalidData.
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::InvalidData => (
                ErrorKind::Precondition,
                "sslrootcert must hold the authority that signed the server's certificate, and with sslmode=verify-full the \
                 certificate's subjectAltName must hold the host's name as the url writes it. It must be a \
                 certificate of X.509 version 3.",
            ),
            _ => (ErrorKind::Transient, "Try again; where it stays so, look into the server's log."),
        };
        Error::new(kind, "TLS could not be agreed on").caused_by(error).remedy(remedy)
    })?;
    Ok(Box::new(socket))
}

fn unreachable(error: io::Error) -> Error {
    Error::new(ErrorKind::Transient, "the server can't be reached").caused_by(error).remedy(UNREACHABLE)
}

/// A peer that vanished without a word is noticed after about a minute, on connections that only listen too.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let socket_options = socket2::SockRef::from(socket);
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket_options.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket_options.set_tcp_user_timeout(Some(Duration::from_secs(60)))?;
    socket.set_nodelay(true)
}
