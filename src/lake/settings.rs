//! Where a lake is and what its connection may use.

use std::fmt::Write as _;
use std::path::PathBuf;

use duckpipe_storage::S3Settings;
use url::Url;

use crate::error::{Because, Error, ErrorKind, Result};
use crate::secret::Secret;
use crate::sql::literal;

/// Where the catalog and the data files are, and the connection's share of memory.
#[derive(Clone, Debug)]
pub struct LakeSettings {
    /// The catalog's database.
    pub catalog: CatalogLocation,
    /// An absolute folder or `s3://bucket/prefix`.
    pub data_path: String,
    /// How to reach the bucket of an `s3://` data path.
    pub s3: Option<S3Settings>,
    /// DuckDB's `memory_limit` in bytes.
    pub memory: u64,
    /// Attach without the right to write. The lake must exist.
    pub read_only: bool,
}

/// The database that holds DuckLake's and duckpipe's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogLocation {
    /// A DuckDB file, by its absolute path. One process at a time can open it.
    File(PathBuf),
    /// A Postgres database.
    Postgres {
        /// `postgres://user:password@host:port/database`; libpq's TLS and timeout parameters may follow, and `schema=`.
        url: Secret,
        /// The schema of the tables; `public` unless given here or in the address.
        schema: Option<String>,
    },
}

impl CatalogLocation {
    /// The catalog for messages, without a password.
    pub fn describe(&self) -> String {
        match self {
            CatalogLocation::File(path) => path.display().to_string(),
            CatalogLocation::Postgres { url, schema } => match PostgresCatalog::parse(url, schema.as_deref()) {
                Ok(catalog) => catalog.describe(),
                Err(_) => "postgres://".into(),
            },
        }
    }
}

/// A Postgres catalog's address, taken apart so that the password can be kept out of connection strings.
#[derive(Clone, Debug)]
pub(crate) struct PostgresCatalog {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: String,
    pub(crate) schema: String,
    /// Further libpq parameters, none of them secret.
    parameters: Vec<(String, String)>,
}

/// The libpq parameters that an address may carry on.
const PARAMETERS: [&str; 13] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslcrl",
    "connect_timeout",
    "application_name",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "target_session_attrs",
    "channel_binding",
];

impl PostgresCatalog {
    pub(crate) fn parse(url: &Secret, schema: Option<&str>) -> Result<Self> {
        let wrong = |what: String| {
            Error::new(ErrorKind::Config, format!("the catalog's address is wrong: {what}"))
                .remedy("write lake.catalog as postgres://user:password@host:port/database?schema=name")
        };
        // The parser's error can't hold the text, but our message must not either.
        let parsed = Url::parse(url.expose()).map_err(|error| wrong(error.to_string()))?;
        if !matches!(parsed.scheme(), "postgres" | "postgresql") {
            return Err(wrong(format!("{:?} is neither postgres nor postgresql", parsed.scheme())));
        }
        let decode = |text: &str| -> Result<String> {
            percent_decode(text).because(ErrorKind::Config, || "the catalog's address holds a broken % escape".into())
        };
        let mut catalog = PostgresCatalog {
            host: decode(parsed.host_str().unwrap_or(""))?,
            port: parsed.port().unwrap_or(5432),
            user: Some(decode(parsed.username())?).filter(|user| !user.is_empty()),
            password: parsed.password().map(&decode).transpose()?.map(Secret::new),
            database: decode(parsed.path().trim_start_matches('/'))?,
            schema: schema.unwrap_or("public").to_owned(),
            parameters: Vec::new(),
        };
        // IPv6 addresses stand in brackets in an address only.
        if let Some(inner) = catalog.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            catalog.host = inner.to_owned();
        }
        for (name, value) in parsed.query_pairs() {
            match &*name {
                "schema" if schema.is_none() => catalog.schema = value.into_owned(),
                "schema" => {}
                "host" => catalog.host = value.into_owned(),
                "port" => catalog.port = value.parse().map_err(|_| wrong(format!("{value:?} is no port")))?,
                "user" => catalog.user = Some(value.into_owned()),
                "password" => catalog.password = Some(Secret::new(value)),
                "dbname" => catalog.database = value.into_owned(),
                name if PARAMETERS.contains(&name) => catalog.parameters.push((name.to_owned(), value.into_owned())),
                name => return Err(wrong(format!("unknown parameter {name:?}"))),
            }
        }
        if catalog.host.is_empty() {
            catalog.host = "localhost".into();
        }
        if catalog.database.is_empty() {
            return Err(wrong("it names no database".into()));
        }
        if catalog.schema.is_empty() {
            return Err(wrong("the schema is empty".into()));
        }
        Ok(catalog)
    }

    /// The catalog for messages, without a password.
    pub(crate) fn describe(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        format!("postgres://{user}{}:{}/{}?schema={}", self.host, self.port, self.database, self.schema)
    }

    /// The part of the connection string that holds nothing secret. The rest is in the secret that [`Self::secret`] makes.
    pub(crate) fn connection_string(&self) -> String {
        let mut text = String::from("application_name=duckpipe connect_timeout=10");
        for (name, value) in &self.parameters {
            let _ = write!(text, " {name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        }
        // A commit must not wait for a lock for ever: the caller tries again and can be stopped in between.
        text.push_str(" options='-c lock_timeout=60s -c statement_timeout=0 -c synchronous_commit=on'");
        text
    }

    /// The statement that hands the credentials to DuckDB as the secret `name`.
    pub(crate) fn secret(&self, name: &str) -> String {
        let mut sql = format!(
            "CREATE OR REPLACE SECRET {name} (TYPE postgres, HOST {}, PORT {}, DATABASE {}",
            literal(&self.host),
            self.port,
            literal(&self.database)
        );
        if let Some(user) = &self.user {
            let _ = write!(sql, ", USER {}", literal(user));
        }
        if let Some(password) = &self.password {
            let _ = write!(sql, ", PASSWORD {}", literal(password.expose()));
        }
        sql.push(')');
        sql
    }
}

/// Undoes the % escapes of an address.
fn percent_decode(text: &str) -> std::result::Result<String, std::string::FromUtf8Error> {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        let url = Secret::new("postgres://app:p%40ss%27w@db.example:5433/lake?schema=my%20lake&sslmode=require");
        let catalog = PostgresCatalog::parse(&url, None).unwrap();
        assert_eq!(catalog.describe(), "postgres://app@db.example:5433/lake?schema=my lake");
        assert_eq!(catalog.password.as_ref().unwrap().expose(), "p@ss'w");
        assert!(catalog.connection_string().contains("sslmode='require'"));
        assert!(!catalog.connection_string().contains("p@ss"));
        assert!(catalog.secret("s").contains("PASSWORD 'p@ss''w'"));
    }

    #[test]
    fn a_wrong_address_is_refused_without_showing_it() {
        for url in ["postgres://u:topsecret@h/db?what=1", "mysql://u:topsecret@h/db", "postgres://u:topsecret@h"] {
            let error = PostgresCatalog::parse(&Secret::new(url), None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!format!("{error} {error:?}").contains("topsecret"));
        }
    }
}
