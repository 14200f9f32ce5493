//! The address of a source: a libpq connection URI, parsed once, its password never printed.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// Where a source is and how to log in there.
#[derive(Clone, Debug)]
pub struct SourceSettings {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) password: Option<Secret>,
    pub(crate) database: String,
    pub(crate) tls: TlsSettings,
    pub(crate) target: Target,
    /// How long one host may take from the first packet to a session that is ready.
    pub(crate) connect_timeout: Duration,
    pub(crate) application_name: String,
}

/// One of the hosts that are tried in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Tcp {
        name: String,
        port: u16,
    },
    /// The folder of the socket `.s.PGSQL.<port>`.
    Unix {
        folder: PathBuf,
        port: u16,
    },
}

/// libpq's `target_session_attrs`: which of the hosts will do. `prefer-standby` is none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Target {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
}

impl Target {
    /// Whether a server will do, by what it reports of itself at the login (from version 14 on): `in_hot_standby` and
    /// `default_transaction_read_only`. [`ErrorKind::Transient`] where it does not, for its part may change.
    pub(crate) fn check<'a>(self, reported: impl Fn(&str) -> Option<&'a str>) -> Result<()> {
        let standby = reported("in_hot_standby") == Some("on");
        let read_only = standby || reported("default_transaction_read_only") == Some("on");
        let fits = match self {
            Target::Any => true,
            Target::ReadWrite => !read_only,
            Target::ReadOnly => read_only,
            Target::Primary => !standby,
            Target::Standby => standby,
        };
        if fits {
            return Ok(());
        }
        let is = if standby { "a standby" } else { "no standby" };
        let message =
            format!("the server is {is}, which is not what target_session_attrs in the source's url asks for");
        Err(Error::new(ErrorKind::Transient, message).remedy("Where a standby is being promoted, wait for that."))
    }
}

/// How the connection is encrypted and whom it trusts.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    pub(crate) root_certificates: RootCertificates,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SslMode {
    Disable,
    Allow,
    #[default]
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// libpq's `sslrootcert`. Where none is given, a mode that verifies trusts the system's certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    #[default]
    System,
    File(PathBuf),
}

impl SourceSettings {
    /// Parses `postgres://user:password@host:port/database?parameter=value`.
    ///
    /// Several hosts may be given, separated by commas, and are tried in order. Names, passwords and values may be
    /// percent-encoded. `?host=/folder` names a Unix socket's folder. Fails with [`ErrorKind::Config`], never quoting
    /// the address, because it holds the password.
    pub fn parse(url: &Secret) -> Result<SourceSettings> {
        let url = url.expose().trim();
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| invalid("it does not begin with postgres:// or postgresql://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // A password's own / or ? ends the authority too early, and the rest of the password would pass for a name.
        if path.contains(['@', '/']) || (query.contains('@') && !authority.contains('@')) {
            return Err(invalid("a special character is not percent-encoded"));
        }
        let (login, host_list) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let mut parameters = Parameters {
            user: decode(user, "user name")?,
            password: password.map(|p| decode(p, "password")).transpose()?,
            database: decode(path, "database name")?,
            ..Parameters::default()
        };
        for part in host_list.split(',').filter(|_| !host_list.is_empty()) {
            let (host, port) = split_host(part)?;
            parameters.hosts.push(decode(host, "host name")?);
            parameters.ports.push(port.to_owned());
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| invalid("a parameter has no value"))?;
            let name = decode(name, "parameter name")?;
            let value = decode(value, &name)?;
            parameters.set(&name, value)?;
        }
        parameters.finish()
    }

    /// `host:port/database`, for messages.
    pub fn describe(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(Host::describe).collect();
        format!("{}/{}", hosts.join(","), self.database)
    }

    /// Whether another host would be tried where one does not answer.
    pub(crate) fn has_other_hosts(&self) -> bool {
        self.hosts.len() > 1
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role that logs in.
    pub fn user(&self) -> &str {
        &self.user
    }
}

impl Host {
    pub(crate) fn describe(&self) -> String {
        match self {
            Host::Tcp { name, port } if name.contains(':') => format!("[{name}]:{port}"),
            Host::Tcp { name, port } => format!("{name}:{port}"),
            Host::Unix { folder, port } => format!("{}:{port}", folder.display()),
        }
    }
}

/// What the parts of the address say, before defaults.
#[derive(Default)]
struct Parameters {
    user: String,
    password: Option<String>,
    database: String,
    hosts: Vec<String>,
    ports: Vec<String>,
    tls: TlsSettings,
    target: Target,
    connect_timeout: Option<Duration>,
    application_name: Option<String>,
}

impl Parameters {
    fn set(&mut self, name: &str, value: String) -> Result<()> {
        let list = |value: &str| value.split(',').map(str::to_owned).collect();
        match name {
            "host" => self.hosts = list(&value),
            "port" => self.ports = list(&value),
            "user" => self.user = value,
            "password" => self.password = Some(value),
            "dbname" => self.database = value,
            "application_name" => self.application_name = Some(value),
            "connect_timeout" => {
                let seconds: u32 =
                    value.parse().map_err(|_| invalid("connect_timeout is not a whole number of seconds"))?;
                // libpq: zero waits for ever. A pipeline that does not say why it waits is of no use to anybody.
                self.connect_timeout = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
            }
            "sslmode" => {
                self.tls.mode = match value.as_str() {
                    "disable" => SslMode::Disable,
                    "allow" => SslMode::Allow,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => SslMode::VerifyCa,
                    "verify-full" => SslMode::VerifyFull,
                    _ => {
                        return Err(invalid(
                            "sslmode is none of disable, allow, prefer, require, verify-ca, verify-full",
                        ));
                    }
                }
            }
            "sslrootcert" if value == "system" => self.tls.root_certificates = RootCertificates::System,
            "sslrootcert" => self.tls.root_certificates = RootCertificates::File(value.into()),
            "sslcert" => self.tls.certificate = Some(value.into()),
            "sslkey" => self.tls.key = Some(value.into()),
            // Said often in copied addresses, and already so here.
            "client_encoding" if value.eq_ignore_ascii_case("utf8") || value == "auto" => {}
            "gssencmode" if value != "require" => {}
            "channel_binding" if value != "require" => {}
            "target_session_attrs" => {
                self.target = match value.as_str() {
                    "any" => Target::Any,
                    "read-write" => Target::ReadWrite,
                    "read-only" => Target::ReadOnly,
                    "primary" => Target::Primary,
                    "standby" => Target::Standby,
                    _ => {
                        return Err(invalid(
                            "target_session_attrs is none of any, read-write, read-only, primary, standby",
                        ));
                    }
                }
            }
            "keepalives" if value == "1" => {}
            "gssencmode" | "channel_binding" | "keepalives" | "client_encoding" => {
                return Err(invalid(&format!("this value of {name} is not supported")));
            }
            _ => return Err(unknown_parameter(name)),
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SourceSettings> {
        if self.hosts.is_empty() {
            self.hosts.push("localhost".into());
        }
        if self.ports.is_empty() {
            self.ports.push(String::new());
        }
        if self.ports.len() != 1 && self.ports.len() != self.hosts.len() {
            return Err(invalid("there are not as many ports as hosts"));
        }
        if self.user.is_empty() {
            return Err(invalid("it names no user").remedy("Write postgres://user:password@host/database."));
        }
        if self.tls.certificate.is_some() != self.tls.key.is_some() {
            return Err(invalid("sslcert and sslkey go together, and one of them is missing"));
        }
        let hosts = self.hosts.iter().enumerate().map(|(i, host)| {
            let port = self.ports.get(i).or(self.ports.first()).map_or("", String::as_str);
            let port = if port.is_empty() { Some(5432) } else { port.parse().ok().filter(|port| *port > 0) };
            let port = port.ok_or_else(|| invalid("a port is not a number from 1 to 65535"))?;
            Ok(match host.as_str() {
                "" => Host::Tcp { name: "localhost".into(), port },
                folder if folder.starts_with('/') => Host::Unix { folder: folder.into(), port },
                name => Host::Tcp { name: name.to_owned(), port },
            })
        });
        let hosts = hosts.collect::<Result<Vec<_>>>()?;
        let database = if self.database.is_empty() { self.user.clone() } else { self.database };
        for text in [&self.user, &database].into_iter().chain(&self.password).chain(&self.application_name) {
            // The protocol ends a text with a zero byte.
            if text.contains('\0') {
                return Err(invalid("it holds a zero byte"));
            }
        }
        Ok(SourceSettings {
            hosts,
            user: self.user,
            password: self.password.map(Secret::new),
            database,
            tls: self.tls,
            target: self.target,
            connect_timeout: self.connect_timeout.unwrap_or(Duration::from_secs(10)),
            application_name: self.application_name.unwrap_or_else(|| "duckpipe".into()),
        })
    }
}

/// `host`, `host:port` or `[v6]:port`.
fn split_host(part: &str) -> Result<(&str, &str)> {
    if let Some(rest) = part.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(|| invalid("an IPv6 address lacks its closing bracket"))?;
        let port = match port {
            "" => "",
            port => {
                port.strip_prefix(':').ok_or_else(|| invalid("something other than a port follows an IPv6 address"))?
            }
        };
        return Ok((host, port));
    }
    match part.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            Err(invalid("an IPv6 address needs brackets, as in postgres://user@[::1]:5432/database"))
        }
        Some(split) => Ok(split),
        None => Ok((part, "")),
    }
}

/// Undoes percent-encoding. `what` names the part, never its value.
fn decode(text: &str, what: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.filter(|d| !d.contains('+')).and_then(|d| u8::from_str_radix(d, 16).ok());
        let byte = byte.ok_or_else(|| {
            invalid(&format!("in the {what}, % is not followed by two hexadecimal digits"))
                .remedy("Write a % of the text itself as %25.")
        })?;
        bytes.push(byte);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| invalid(&format!("the {what} is not UTF-8")))
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::Config, format!("The source's url is not valid: {why}")).remedy(
        "Write postgres://user:password@host:5432/database, special characters percent-encoded (@ is %40, / is %2F).",
    )
}

fn unknown_parameter(name: &str) -> Error {
    const KNOWN: [&str; 12] = [
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "connect_timeout",
        "application_name",
        "target_session_attrs",
    ];
    let nearest = KNOWN.iter().min_by_key(|known| strsim::damerau_levenshtein(known, name));
    // An unencoded ? or & in a password lands here, so the name itself may be a secret: say it only where it looks like a name.
    let shown = match name.len() <= 30 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
        true => format!("the parameter {name} is not known"),
        false => "it has a parameter that is not known".into(),
    };
    invalid(&shown).remedy(format!("Did you mean {}? Known are: {}.", nearest.unwrap_or(&""), KNOWN.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<SourceSettings> {
        SourceSettings::parse(&Secret::new(url))
    }

    fn tcp(name: &str, port: u16) -> Host {
        Host::Tcp { name: name.into(), port }
    }

    #[test]
    fn a_full_address() {
        let settings = parse(
            "postgres://app:p%40ss%2Fw%25%C3%A9@db.example:6432/my%20shop?sslmode=verify-full&sslrootcert=/ca.pem&connect_timeout=3",
        )
        .unwrap();
        assert_eq!(settings.hosts, [tcp("db.example", 6432)]);
        assert_eq!(settings.user, "app");
        assert_eq!(settings.password.as_ref().unwrap().expose(), "p@ss/w%é");
        assert_eq!(settings.database, "my shop");
        assert_eq!(settings.tls.mode, SslMode::VerifyFull);
        assert_eq!(settings.tls.root_certificates, RootCertificates::File("/ca.pem".into()));
        assert_eq!(settings.connect_timeout, Duration::from_secs(3));
        assert_eq!(settings.describe(), "db.example:6432/my shop");
    }

    #[test]
    fn which_hosts_will_do() {
        let fits = |wanted: &str, standby: &str, read_only: &str| {
            let settings = parse(&format!("postgres://app@a,b/?target_session_attrs={wanted}")).unwrap();
            let reported = |name: &str| match name {
                "in_hot_standby" => Some(standby),
                "default_transaction_read_only" => Some(read_only),
                _ => None,
            };
            let checked = settings.target.check(reported);
            assert!(checked.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Transient));
            checked.is_ok()
        };
        for (wanted, primary, closed, standby) in [
            ("any", true, true, true),
            ("read-write", true, false, false),
            ("read-only", false, true, true),
            ("primary", true, true, false),
            ("standby", false, false, true),
        ] {
            let found = (fits(wanted, "off", "off"), fits(wanted, "off", "on"), fits(wanted, "on", "on"));
            assert_eq!(found, (primary, closed, standby), "{wanted}");
        }
        assert!(parse("postgres://app@a,b/?target_session_attrs=prefer-standby").is_err());
    }

    #[test]
    fn defaults_are_those_of_libpq() {
        let settings = parse("postgresql://app@").unwrap();
        assert_eq!(settings.hosts, [tcp("localhost", 5432)]);
        assert_eq!(settings.database, "app");
        assert_eq!(settings.tls.mode, SslMode::Prefer);
        assert!(settings.password.is_none());
    }

    #[test]
    fn many_hosts_ipv6_and_sockets() {
        let settings = parse("postgres://a:b@[::1]:5433,second,third:9/d").unwrap();
        assert_eq!(settings.hosts, [tcp("::1", 5433), tcp("second", 5432), tcp("third", 9)]);
        assert_eq!(settings.describe(), "[::1]:5433,second:5432,third:9/d");
        let settings = parse("postgres:///d?user=u&host=/var/run/postgresql&port=7").unwrap();
        assert_eq!(settings.hosts, [Host::Unix { folder: "/var/run/postgresql".into(), port: 7 }]);
        let settings = parse("postgres://u@%2Frun%2Fpg/d").unwrap();
        assert_eq!(settings.hosts, [Host::Unix { folder: "/run/pg".into(), port: 5432 }]);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for url in [
            "mysql://app:hunter2@h/d",
            "postgres://app:hunter2@h:x/d",
            "postgres://app:hunter2@h:70000/d",
            "postgres://app:hunter2%zz@h/d",
            "postgres://app:hunter2@::1/d",
            "postgres://app:hunter2@h/d?sslmod=require",
            "postgres://app:x?hunter2=1@h/d",
            "postgres://app:hunter2@h/d?sslmode=on",
            "postgres://:hunter2@h/d",
            "postgres://app:hunter2@h/d?sslcert=/a",
            "postgres://app:hunter2%00@h/d",
            "postgres://app:12/hunter2@h/d",
            "postgres://app:12?hunter=hunter2@h/d",
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            let text = format!("{error} {:?} {error:?}", error.remedy_text());
            assert!(!text.contains("hunter2"), "{text}");
        }
        let error = parse("postgres://app@h/d?sslmod=require").unwrap_err();
        assert!(error.remedy_text().unwrap().contains("Did you mean sslmode?"));
        let settings = parse("postgres://app:hunter2@h/d").unwrap();
        assert!(!format!("{settings:?} {}", settings.describe()).contains("hunter2"));
    }
}
