//! Opening the connection: DuckDB's settings, the extensions, the credentials and the attached lake.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use duckdb::{Config, Connection};
use duckpipe_storage::{S3Credentials, S3Settings};

use super::format;
use super::redaction::Redaction;
use super::session::{CatalogKind, LAKE, METADATA, Session, kind_of};
use super::settings::{CatalogLocation, LakeSettings, PostgresCatalog};
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::sql::literal;

/// The only DuckLake version whose tables this program writes.
const DUCKLAKE_VERSION: &str = "1.0";
/// How long a catalog file that another process holds is waited for. A query holds it briefly.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const S3_SECRET: &str = "duckpipe_s3";

/// What is known of an attached lake.
pub(crate) struct Attached {
    pub(crate) session: Session,
    pub(crate) catalog_id: String,
}

/// Whether the catalog exists, and whose it is.
pub(crate) enum Found {
    /// No lake is there yet.
    Nothing,
    /// A lake is there; its duckpipe id, where duckpipe has used it before.
    Lake(Option<String>),
}

/// Connects and attaches the lake, making its tables where it is new.
///
/// `inspect` is told what is there before anything is written.
pub(crate) fn open(settings: &LakeSettings, inspect: impl Fn(&Found) -> Result<()>) -> Result<Attached> {
    let mut redaction = Redaction::default();
    let connection = connect(settings)?;
    load_extensions(&connection, settings)?;
    let postgres = match &settings.catalog {
        CatalogLocation::File(_) => None,
        CatalogLocation::Postgres { url, schema } => {
            redaction.add(url.expose());
            let catalog = PostgresCatalog::parse(url, schema.as_deref())?;
            if let Some(password) = &catalog.password {
                redaction.add(password.expose());
            }
            Some(catalog)
        }
    };
    let mut session = Session {
        connection,
        kind: if postgres.is_some() { CatalogKind::Postgres } else { CatalogKind::File },
        schema: postgres.as_ref().map_or("main".into(), |catalog| catalog.schema.clone()),
        redaction,
        known_tables: Default::default(),
    };
    if let Some(s3) = &settings.s3 {
        set_s3_secret(&mut session, &settings.data_path, s3, None)?;
    }
    let describe = || format!("the catalog {}", settings.catalog.describe());
    let exists = match (&settings.catalog, &postgres) {
        (CatalogLocation::File(path), _) => file_exists(path)?,
        (_, Some(catalog)) => postgres_has_lake(&session, catalog).context(describe)?,
        _ => false,
    };
    if !exists {
        if settings.read_only {
            return Err(Error::new(ErrorKind::Missing, format!("{} does not exist yet", describe()))
                .remedy("run `duckpipe sync` first"));
        }
        inspect(&Found::Nothing)?;
        if let CatalogLocation::File(path) = &settings.catalog
            && let Some(folder) = path.parent()
        {
            std::fs::create_dir_all(folder)
                .because(ErrorKind::Precondition, || format!("can't make the catalog's folder {}", folder.display()))?;
        }
    }
    let attached = attach(&session, settings, postgres.as_ref());
    let exists = match (attached, &postgres) {
        (Ok(()), _) => exists,
        // Where two first starts make the lake at one moment, Postgres refuses the second; the first one's is there then.
        (Err(_), Some(catalog)) if !exists && postgres_has_lake(&session, catalog).context(describe)? => {
            attach(&session, settings, postgres.as_ref()).context(describe)?;
            true
        }
        (Err(error), _) => return Err(error).context(describe),
    };
    check_version(&session).context(describe)?;
    if exists {
        inspect(&Found::Lake(format::catalog_id(&session).context(describe)?))?;
    }
    let catalog_id = match settings.read_only {
        true => format::check(&session).context(describe)?,
        false => format::prepare(&session).context(describe)?,
    };
    Ok(Attached { session, catalog_id })
}

/// An in-memory DuckDB that fetches nothing by itself and spills nowhere.
fn connect(settings: &LakeSettings) -> Result<Connection> {
    let open = || {
        let config = Config::default()
            .enable_autoload_extension(false)?
            // The catalog's statements are small. A second thread would only have the first one spin while it waits.
            .threads(1)?
            .max_memory(&format!("{}B", settings.memory))?
            .with("temp_directory", "")?
            .with("enable_external_file_cache", "false")?
            .with("custom_user_agent", "duckpipe")?;
        let config = if trusts_extensions() { config.allow_unsigned_extensions()? } else { config };
        let connection = Connection::open_in_memory_with_flags(config)?;
        // Times in statistics are printed in the session's zone.
        connection.execute_batch("SET TimeZone = 'UTC'")?;
        Ok(connection)
    };
    open().map_err(|error: duckdb::Error| Error::new(ErrorKind::Internal, format!("can't start DuckDB: {error}")))
}

/// Loads the extensions that the settings need: from `DUCKPIPE_EXTENSIONS`, else from beside the program, else DuckDB's own
/// folder, into which it installs them where they are missing.
fn load_extensions(connection: &Connection, settings: &LakeSettings) -> Result<()> {
    let mut needed = vec!["ducklake"];
    if matches!(settings.catalog, CatalogLocation::Postgres { .. }) {
        needed.push("postgres_scanner");
    }
    if settings.data_path.starts_with("s3://") {
        needed.push("httpfs");
    }
    let folder = extension_folder();
    for name in needed {
        let statement = match &folder {
            Some(folder) => {
                let file = folder.join(format!("{name}.duckdb_extension"));
                format!("LOAD {}", literal(&file.to_string_lossy()))
            }
            None => format!("INSTALL {name}; LOAD {name};"),
        };
        connection.execute_batch(&statement).map_err(|error| {
            Error::new(ErrorKind::Precondition, format!("can't load DuckDB's extension {name}: {error}")).remedy(
                "set DUCKPIPE_EXTENSIONS to a folder that holds the extensions of DuckDB 1.5.5, or allow it to download them",
            )
        })?;
    }
    Ok(())
}

/// DuckDB hashes each extension whenever it loads it, for 0.1 to 0.4 s of a processor in all. `DUCKPIPE_TRUST_EXTENSIONS=1` saves that
/// where the folder of `DUCKPIPE_EXTENSIONS` was checked when it was filled.
fn trusts_extensions() -> bool {
    let is =
        |name: &str, wanted: fn(&std::ffi::OsStr) -> bool| std::env::var_os(name).is_some_and(|text| wanted(&text));
    is("DUCKPIPE_TRUST_EXTENSIONS", |text| text == "1") && is("DUCKPIPE_EXTENSIONS", |folder| !folder.is_empty())
}

fn extension_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("DUCKPIPE_EXTENSIONS").filter(|folder| !folder.is_empty()) {
        return Some(folder.into());
    }
    let folder = std::env::current_exe().ok()?.parent()?.join("extensions");
    folder.join("ducklake.duckdb_extension").is_file().then_some(folder)
}

/// A file of no bytes is what a process leaves that died while making it.
fn file_exists(path: &Path) -> Result<bool> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(found.len() > 0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            Err(error).because(ErrorKind::Precondition, || format!("can't look at the catalog {}", path.display()))
        }
    }
}

/// Whether the schema holds DuckLake's tables. Attaching the lake would make them.
fn postgres_has_lake(session: &Session, catalog: &PostgresCatalog) -> Result<bool> {
    session.batch(&catalog.secret("duckpipe_catalog"))?;
    session
        .batch(&format!(
            "ATTACH {} AS duckpipe_probe (TYPE postgres, SECRET duckpipe_catalog, READ_ONLY)",
            literal(&catalog.connection_string())
        ))
        .map_err(unreachable)?;
    let sql = format!(
        "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = {} AND tablename = 'ducklake_metadata'",
        literal(&catalog.schema)
    );
    let found = session.rows(&format!("SELECT * FROM postgres_query('duckpipe_probe', {})", literal(&sql)), |row| {
        row.get::<_, i64>(0)
    });
    session.batch("DETACH duckpipe_probe")?;
    Ok(found?.first().is_some_and(|count| *count > 0))
}

/// Postgres' own refusals are preconditions; the rest of what fails while connecting passes.
fn unreachable(error: Error) -> Error {
    let text = error.to_string();
    let refused =
        ["does not exist", "authentication failed", "permission denied", "no password supplied", "pg_hba.conf"];
    if refused.iter().any(|word| text.contains(word)) {
        Error::new(ErrorKind::Precondition, text)
            .remedy("the catalog's database must exist, and its role must be able to log in and to create tables")
    } else {
        error.remedy("check lake.catalog: host, port, database, user and password")
    }
}

fn attach(session: &Session, settings: &LakeSettings, postgres: Option<&PostgresCatalog>) -> Result<()> {
    // Inlined rows and deletes have data-losing races in this build, and reserve column names.
    let mut options = String::from("DATA_INLINING_ROW_LIMIT 0");
    if settings.read_only {
        options.push_str(", READ_ONLY");
    }
    match (&settings.catalog, postgres) {
        (CatalogLocation::File(path), _) => {
            let address = literal(&format!("ducklake:{}", path.display()));
            let data = literal(&settings.data_path);
            wait_for_lock(|| session.batch(&format!("ATTACH {address} AS {LAKE} (DATA_PATH {data}, {options})")), path)
        }
        (_, Some(catalog)) => {
            session.batch(&format!(
                "CREATE OR REPLACE SECRET duckpipe_lake (TYPE ducklake, METADATA_PATH {}, DATA_PATH {}, \
                 METADATA_PARAMETERS MAP {{'TYPE': 'postgres', 'SECRET': 'duckpipe_catalog'}})",
                literal(&catalog.connection_string()),
                literal(&settings.data_path)
            ))?;
            let schema = literal(&catalog.schema);
            session
                .batch(&format!("ATTACH 'ducklake:duckpipe_lake' AS {LAKE} (METADATA_SCHEMA {schema}, {options})"))
                .map_err(unreachable)
        }
        _ => Err(Error::new(ErrorKind::Internal, "a catalog without an address")),
    }
    .map_err(explain)
}

/// Says what to do about the refusals of ATTACH that a person can cause.
fn explain(error: Error) -> Error {
    let text = error.to_string();
    if text.contains("DATA_PATH") || text.contains("data path") {
        return Error::new(ErrorKind::Precondition, text)
            .remedy("the catalog belongs to another data path: set lake.data_path to that one, or take a new catalog");
    }
    if text.contains("ersion") && text.contains("DuckLake") {
        return Error::new(ErrorKind::Precondition, text)
            .remedy(format!("this program writes DuckLake {DUCKLAKE_VERSION} only"));
    }
    match error.kind() {
        ErrorKind::Internal => Error::new(ErrorKind::Precondition, text),
        _ => error,
    }
}

/// Tries again while another process holds the catalog file.
fn wait_for_lock(mut attempt: impl FnMut() -> Result<()>, path: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        let error = match attempt() {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let text = error.to_string();
        if !text.contains("Could not set lock on file") {
            return Err(error);
        }
        if start.elapsed() > LOCK_PATIENCE {
            let holder = text
                .split_once("Conflicting lock is held in ")
                .map(|(_, rest)| rest.split(". See also").next().unwrap_or(rest).trim().to_owned())
                .unwrap_or_else(|| "another process".into());
            return Err(Error::new(ErrorKind::Locked, format!("{} is held by {holder}", path.display())).remedy(
                "a DuckDB file can be open in one process only: stop the other one, ask it through its control socket, or keep \
                 the catalog in Postgres",
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn check_version(session: &Session) -> Result<()> {
    let sql = format!("SELECT value FROM {}.ducklake_metadata WHERE key = 'version'", session.tables());
    match session.read(&sql, |row| row.get::<_, String>(0))?.first() {
        Some(version) if version == DUCKLAKE_VERSION => Ok(()),
        version => Err(Error::new(
            ErrorKind::Precondition,
            format!("DuckLake version {} is not known here", version.map_or("none", String::as_str)),
        )
        .remedy(format!("this program writes DuckLake {DUCKLAKE_VERSION} only"))),
    }
}

/// Hands S3 settings, with fresh credentials where given, to DuckDB.
pub(crate) fn set_s3_secret(
    session: &mut Session,
    data_path: &str,
    settings: &S3Settings,
    credentials: Option<&S3Credentials>,
) -> Result<()> {
    let (key_id, secret, token) = match credentials {
        Some(fresh) => (Some(&fresh.key_id), Some(&fresh.secret), fresh.session_token.as_ref()),
        None => (settings.access_key_id.as_ref(), settings.secret_access_key.as_ref(), settings.session_token.as_ref()),
    };
    let mut sql = format!("CREATE OR REPLACE SECRET {S3_SECRET} (TYPE s3, SCOPE {}", literal(data_path));
    let mut add = |name: &str, value: &str| sql.push_str(&format!(", {name} {}", literal(value)));
    if let Some(key_id) = key_id {
        add("KEY_ID", key_id);
    }
    if let Some(secret) = secret {
        session.redaction.add(secret.expose());
        add("SECRET", secret.expose());
    }
    if let Some(token) = token {
        session.redaction.add(token.expose());
        add("SESSION_TOKEN", token.expose());
    }
    if let Some(region) = &settings.region {
        add("REGION", region);
    }
    if let Some(endpoint) = &settings.endpoint {
        let (plain, host) = match endpoint.split_once("://") {
            Some((scheme, host)) => (scheme == "http", host),
            None => (false, endpoint.as_str()),
        };
        add("ENDPOINT", host.trim_end_matches('/'));
        add("USE_SSL", if plain { "false" } else { "true" });
    }
    add("URL_STYLE", if settings.path_style { "path" } else { "vhost" });
    sql.push(')');
    session.batch(&sql)
}

/// A consistent copy of a DuckDB-file catalog, made while it is attached.
pub(crate) fn copy_catalog(session: &Session, to: &Path) -> Result<()> {
    if session.kind != CatalogKind::File {
        return Err(Error::new(ErrorKind::Internal, "a Postgres catalog needs no copy: read it directly"));
    }
    session.batch(&format!("ATTACH {} AS duckpipe_copy", literal(&to.to_string_lossy())))?;
    let copied = session.batch(&format!("COPY FROM DATABASE {METADATA} TO duckpipe_copy"));
    session.batch("DETACH duckpipe_copy")?;
    copied.map_err(|error| Error::new(kind_of(&error.to_string()), format!("can't copy the catalog: {error}")))
}
