//! `duckpipe.toml`: what a pipeline is.
//!
//! In: the file, the environment and the flags. Out: one [`Config`], checked as far as that is possible without the
//! source, the bucket or the catalog; paths are absolute, names are whole. A flag wins over the environment, that over
//! the file, that over the default. Every error here is [`ErrorKind::Config`], names the key and says where it is written.
//! Never: a connection, a file other than the configuration's own.

mod compact;
mod document;
pub mod edit;
mod entries;
mod keys;
mod location;
mod names;
mod selection;
mod template;
mod units;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::batch::layout::Mode;
pub use crate::batch::value_error::OnUnrepresentable;
pub use crate::lake::CatalogLocation;
pub use crate::source::pattern::TablePattern;
pub use compact::CompactConfig;
pub use document::Override;
pub use entries::Entries;
pub use selection::{SelectedTable, select, select_apart, selection_of, selection_of_any};
pub use template::{Known, name_from, template};
pub use units::{display_size, format_size, parse_duration, parse_size};

use duckpipe_storage::{S3Settings, SecretText};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::lake::LakeSettings;
use crate::secret::Secret;
use crate::source::table::TableName;
use document::{Document, Entry, wrong};

/// The file that is read where neither flag nor environment names one.
pub const DEFAULT_FILE: &str = "duckpipe.toml";

/// One pipeline's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from, absolute; the file need not exist where the environment says everything.
    pub path: PathBuf,
    /// The pipeline's name, `[a-z0-9_]{1,50}`.
    pub name: String,
    /// Where the changes come from.
    pub source: SourceConfig,
    /// Where they go.
    pub lake: LakeConfig,
    /// How the bucket is reached; only with an `s3://` data path, and `None` leaves all to the AWS chain.
    pub s3: Option<S3Config>,
    /// How the work is done.
    pub sync: SyncConfig,
    /// How files are compacted and how long history is kept.
    pub compact: CompactConfig,
    /// The tables; see [`Config::tables`].
    entries: Entries,
}

/// The `[source]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceConfig {
    /// The source's `postgres://` address, with certificate paths made absolute.
    pub url: Secret,
    /// The replication slot's name.
    pub slot: String,
    /// The publication's name.
    pub publication: String,
}

/// The `[lake]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LakeConfig {
    /// The catalog: a DuckDB file or a Postgres database.
    pub catalog: CatalogLocation,
    /// Where data files go: an absolute folder, or `s3://bucket/prefix`; without a slash at the end.
    pub data_path: String,
}

impl LakeConfig {
    /// Whether data files lie in a bucket.
    pub fn is_s3(&self) -> bool {
        self.data_path.starts_with("s3://")
    }
}

/// The `[s3]` section. Without keys the AWS chain decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Config {
    /// The server's address, for other servers than AWS.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The access key; given together with the secret one, or not at all.
    pub access_key_id: Option<String>,
    /// The secret key.
    pub secret_access_key: Option<Secret>,
    /// The session token of temporary keys.
    pub session_token: Option<Secret>,
    /// Whether the bucket is part of the path instead of the host name.
    pub path_style: bool,
}

/// The `[sync]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConfig {
    /// The longest that a committed change waits before its flush begins.
    pub flush_interval: Duration,
    /// Bytes of buffered changes that begin a flush.
    pub flush_bytes: u64,
    /// Bytes of memory that buffers, writers and DuckDB share.
    pub memory_limit: u64,
    /// Connections that copy tables at the same time.
    pub snapshot_workers: usize,
    /// Bytes of a table's heap that are copied, and kept where the copy is begun again, as one.
    pub snapshot_range: u64,
    /// What happens to a value that its lake type can't hold.
    pub on_unrepresentable: OnUnrepresentable,
    /// Who sees to it that a table which can't go on is copied afresh.
    pub resync: Resync,
    /// What the lake's table is called once the source's has another name.
    pub on_rename: OnRename,
}

/// What the lake's table is called once the source's has another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRename {
    /// As the source's, but for its schema.
    Follow,
    /// As before.
    Keep,
}

/// Who sees to it that a table which can't go on is copied afresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// `sync` itself: at once where nothing else helps, else after a pause.
    Auto,
    /// A person, by `duckpipe tables resync`.
    Manual,
}

impl SyncConfig {
    /// The pages (8 KiB) of `snapshot_range`.
    pub fn range_pages(&self) -> u32 {
        u32::try_from(self.snapshot_range / 8192).unwrap_or(u32::MAX)
    }

    /// Whether `sync` itself copies afresh a table that can't go on.
    pub fn resyncs(&self) -> bool {
        self.resync == Resync::Auto
    }
}

impl Default for SyncConfig {
    fn default() -> Self {
        SyncConfig {
            flush_interval: Duration::from_secs(1),
            flush_bytes: 64_000_000,
            memory_limit: 512_000_000,
            snapshot_workers: 2,
            snapshot_range: 128 << 20,
            on_unrepresentable: OnUnrepresentable::Error,
            resync: Resync::Auto,
            on_rename: OnRename::Follow,
        }
    }
}

/// One `[[tables]]` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableConfig {
    /// The table, or the pattern of tables.
    pub source: TablePattern,
    /// The lake's table; `None`: the source's name. Never given with a pattern, but for a fan-in.
    pub target: Option<TableName>,
    /// `target` shows the rows of all tables that lead there: it is a view, and each of them has a lake's table of its own, named after
    /// the pipeline that this says and after itself.
    pub fan_in: Option<String>,
    /// Columns that do not enter the lake.
    pub exclude_columns: Vec<String>,
    /// Columns that arrive in another type than their own: column to type. The one type is `text`.
    pub types: BTreeMap<String, String>,
    /// Columns that compacted files are sorted by; `None`: the key's, none: they are not sorted.
    pub sort_by: Option<Vec<String>>,
    /// What the lake's table holds.
    pub mode: Mode,
    /// Which rows are followed, as SQL of the source; `None`: all. Never given with a pattern.
    pub filter: Option<String>,
}

impl TableConfig {
    /// An entry that says nothing but which tables.
    pub fn of(source: TablePattern) -> TableConfig {
        TableConfig {
            source,
            target: None,
            fan_in: None,
            exclude_columns: Vec::new(),
            types: BTreeMap::new(),
            sort_by: None,
            mode: Mode::Mirror,
            filter: None,
        }
    }

    /// Whether a column arrives as text, whatever its type.
    pub fn is_text(&self, column: &str) -> bool {
        self.types.contains_key(column)
    }
}

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct CliOverrides {
    /// `-c`, `--config`.
    pub config: Option<PathBuf>,
    /// Settings given as flags.
    pub settings: Vec<Override>,
}

impl Config {
    /// How the store of the data files is reached.
    pub fn s3_settings(&self) -> Option<S3Settings> {
        let secret = |secret: &Secret| SecretText::new(secret.expose());
        self.s3.as_ref().map(|s3| S3Settings {
            endpoint: s3.endpoint.clone(),
            region: s3.region.clone(),
            access_key_id: s3.access_key_id.clone(),
            secret_access_key: s3.secret_access_key.as_ref().map(secret),
            session_token: s3.session_token.as_ref().map(secret),
            path_style: s3.path_style,
        })
    }

    /// How the lake is opened, with `memory` bytes for DuckDB.
    pub fn lake_settings(&self, memory: u64, read_only: bool) -> LakeSettings {
        LakeSettings {
            catalog: self.lake.catalog.clone(),
            data_path: self.lake.data_path.clone(),
            s3: self.s3_settings(),
            memory,
            read_only,
        }
    }

    /// Reads the file, the environment and the flags.
    pub fn load(overrides: &CliOverrides) -> Result<Config> {
        let environment = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let folder = std::env::current_dir()
            .map_err(|cause| Error::new(ErrorKind::Config, "the working folder can't be read").caused_by(cause))?;
        Config::load_from(overrides, &environment.collect(), &folder)
    }

    /// [`Config::load`] with the environment and the working folder given.
    pub fn load_from(
        overrides: &CliOverrides,
        environment: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<Config> {
        let named = match (&overrides.config, environment.get("DUCKPIPE_CONFIG")) {
            (Some(path), _) => Some((path.clone(), "--config")),
            (None, Some(path)) if !path.is_empty() => Some((PathBuf::from(path), "DUCKPIPE_CONFIG")),
            _ => None,
        };
        let path = location::absolute(folder, named.as_ref().map_or(Path::new(DEFAULT_FILE), |(path, _)| path));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() && says_all(environment) => {
                String::new()
            }
            Err(error) => return Err(unreadable(&path, named.map(|(_, by)| by), error)),
        };
        let mut document = Document::parse(&text, &path, environment)?;
        document.overlay_environment(environment)?;
        document.overlay_flags(&overrides.settings);
        read(&document, path)
    }
}

/// Whether the environment alone may be the configuration.
fn says_all(environment: &BTreeMap<String, String>) -> bool {
    ["DUCKPIPE_SOURCE__URL", "DUCKPIPE_LAKE__CATALOG"].iter().all(|key| environment.contains_key(*key))
}

fn unreadable(path: &Path, named_by: Option<&str>, error: std::io::Error) -> Error {
    let missing = error.kind() == std::io::ErrorKind::NotFound;
    let message = match (named_by, missing) {
        (Some(by), true) => format!("the configuration file {}, named by {by}, does not exist", path.display()),
        (None, true) => format!("there is no configuration file {}", path.display()),
        (_, false) => format!("the configuration file {} can't be read", path.display()),
    };
    let remedy = if missing {
        "run duckpipe init to write one, or name another by -c or DUCKPIPE_CONFIG"
    } else {
        "check that it is a file in UTF-8 that this user may read"
    };
    let out = Error::new(ErrorKind::Config, message).remedy(remedy);
    if missing { out } else { out.caused_by(error) }
}

/// Types the values and checks what can be checked without the outside.
fn read(document: &Document, path: PathBuf) -> Result<Config> {
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    let name = required(document, "name", &path)?;
    if !names::is_pipeline_name(name) {
        return Err(at(document, "name", format!("name is {name:?}, but must match [a-z0-9_]{{1,50}}"))
            .remedy("use lower-case letters, digits and underscores: the slot is called after it"));
    }
    let source = read_source(document, name, &base, &path)?;
    let catalog = required(document, "lake.catalog", &path)?;
    let catalog = location::catalog(catalog, &base).map_err(|message| at(document, "lake.catalog", message))?;
    let data_path = required(document, "lake.data_path", &path)?;
    let data_path = location::data_path(data_path, &base).map_err(|message| at(document, "lake.data_path", message))?;
    let lake = LakeConfig { catalog, data_path };
    let s3 = read_s3(document, &lake)?;
    let sync = read_sync(document)?;
    let compact = compact::read(document)?;
    let tables = document.tables.iter().map(|entry| read_table(entry, name)).collect::<Result<Vec<_>>>()?;
    check_tables(&tables, &document.tables)?;
    if tables.is_empty() {
        return Err(Error::new(ErrorKind::Config, format!("{} names no table", path.display()))
            .remedy("add [[tables]] with source = \"public.orders\", or source = \"public.*\" for all of a schema"));
    }
    Ok(Config { name: name.to_owned(), source, lake, s3, sync, compact, entries: Entries::new(tables), path })
}

fn read_source(document: &Document, name: &str, base: &Path, path: &Path) -> Result<SourceConfig> {
    let mut url = required(document, "source.url", path)?.to_owned();
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(at(document, "source.url", "source.url is no postgres:// address")
            .remedy("write it as postgres://user:password@host:5432/database"));
    }
    for key in location::CERTIFICATES {
        if let Some(file) = text(document, &format!("source.{key}"))? {
            url = location::with_parameter(&url, key, file);
        }
    }
    let url = Secret::new(location::absolute_certificates(&url, base));
    let fallback = format!("duckpipe_{name}");
    let slot = text(document, "source.slot")?.unwrap_or(&fallback).to_owned();
    if !names::is_slot_name(&slot) {
        return Err(at(document, "source.slot", format!("source.slot is {slot:?}, but must match [a-z0-9_]{{1,63}}"))
            .remedy("Postgres allows lower-case letters, digits and underscores in the name of a slot"));
    }
    let publication = text(document, "source.publication")?.unwrap_or(&fallback).to_owned();
    if publication.is_empty() || publication.len() > 63 {
        return Err(at(document, "source.publication", "source.publication must have 1 to 63 bytes"));
    }
    Ok(SourceConfig { url, slot, publication })
}

fn read_s3(document: &Document, lake: &LakeConfig) -> Result<Option<S3Config>> {
    let Some(some) = document.any_of("s3") else { return Ok(None) };
    if !lake.is_s3() {
        return Err(wrong(&some.origin, "[s3] is given, but lake.data_path is no s3:// address")
            .remedy("remove [s3], or write lake.data_path as \"s3://bucket/prefix\""));
    }
    // An empty text, as ${VAR} may leave behind, means the same as no key.
    let owned = |key: &str| -> Result<Option<String>> {
        Ok(text(document, key)?.filter(|text| !text.is_empty()).map(str::to_owned))
    };
    let s3 = S3Config {
        endpoint: owned("s3.endpoint")?.map(|endpoint: String| endpoint.trim_end_matches('/').to_owned()),
        region: owned("s3.region")?,
        access_key_id: owned("s3.access_key_id")?,
        secret_access_key: owned("s3.secret_access_key")?.map(Secret::new),
        session_token: owned("s3.session_token")?.map(Secret::new),
        path_style: document
            .get("s3.path_style")
            .map(|item| item.boolean("s3.path_style"))
            .transpose()?
            .unwrap_or(false),
    };
    if s3.access_key_id.is_some() != s3.secret_access_key.is_some() {
        return Err(wrong(
            &some.origin,
            "s3.access_key_id and s3.secret_access_key belong together, but only one is given",
        )
        .remedy("give both, or neither to leave it to the AWS chain"));
    }
    if let Some(endpoint) = &s3.endpoint
        && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
    {
        return Err(at(
            document,
            "s3.endpoint",
            format!("s3.endpoint is {endpoint:?}, but must begin with http:// or https://"),
        ));
    }
    Ok(Some(s3))
}

fn read_sync(document: &Document) -> Result<SyncConfig> {
    let mut sync = SyncConfig::default();
    if let Some(item) = document.get("sync.flush_interval") {
        sync.flush_interval = item.duration("sync.flush_interval")?;
        let range = Duration::from_millis(10)..=Duration::from_secs(3600);
        if !range.contains(&sync.flush_interval) {
            return Err(wrong(&item.origin, "sync.flush_interval must be between \"10ms\" and \"1h\""));
        }
    }
    if let Some(item) = document.get("sync.memory_limit") {
        sync.memory_limit = item.size("sync.memory_limit")?;
        if sync.memory_limit < 128_000_000 {
            return Err(wrong(&item.origin, "sync.memory_limit must be at least \"128MB\""));
        }
    }
    match document.get("sync.flush_bytes") {
        Some(item) => {
            sync.flush_bytes = item.size("sync.flush_bytes")?;
            if sync.flush_bytes < 1_000 || sync.flush_bytes > sync.memory_limit {
                let limit = format_size(sync.memory_limit);
                let message =
                    format!("sync.flush_bytes must be between \"1KB\" and sync.memory_limit, which is \"{limit}\"");
                return Err(wrong(&item.origin, message));
            }
        }
        None => sync.flush_bytes = sync.flush_bytes.min(sync.memory_limit / 4),
    }
    if let Some(item) = document.get("sync.snapshot_workers") {
        let count = item.count("sync.snapshot_workers")?;
        if !(1..=64).contains(&count) {
            return Err(wrong(&item.origin, "sync.snapshot_workers must be between 1 and 64"));
        }
        sync.snapshot_workers = count as usize;
    }
    if let Some(item) = document.get("sync.snapshot_range") {
        sync.snapshot_range = item.size("sync.snapshot_range")?;
        if !(8192..=1 << 40).contains(&sync.snapshot_range) {
            return Err(wrong(&item.origin, "sync.snapshot_range must be between \"8KiB\" and \"1TiB\""));
        }
    }
    if let Some(item) = document.get("sync.on_unrepresentable") {
        sync.on_unrepresentable = match item.text("sync.on_unrepresentable")? {
            "error" => OnUnrepresentable::Error,
            "null" => OnUnrepresentable::Null,
            other => {
                let message = format!("sync.on_unrepresentable must be \"error\" or \"null\", not {other:?}");
                return Err(wrong(&item.origin, message));
            }
        };
    }
    if let Some(item) = document.get("sync.resync") {
        sync.resync = match item.text("sync.resync")? {
            "auto" => Resync::Auto,
            "manual" => Resync::Manual,
            other => {
                let message = format!("sync.resync must be \"auto\" or \"manual\", not {other:?}");
                return Err(wrong(&item.origin, message));
            }
        };
    }
    if let Some(item) = document.get("sync.on_rename") {
        sync.on_rename = match item.text("sync.on_rename")? {
            "follow" => OnRename::Follow,
            "keep" => OnRename::Keep,
            other => {
                let message = format!("sync.on_rename must be \"follow\" or \"keep\", not {other:?}");
                return Err(wrong(&item.origin, message));
            }
        };
    }
    Ok(sync)
}

fn read_table(entry: &Entry, pipeline: &str) -> Result<TableConfig> {
    let item = entry.get("source").ok_or_else(|| {
        wrong(&entry.origin, "this [[tables]] entry has no source").remedy("add source = \"public.orders\"")
    })?;
    let source = TablePattern::parse(item.text("tables.source")?)
        .map_err(|message| wrong(&item.origin, format!("tables.source: {message}")))?;
    let fan_in = entry.get("fan_in").map(|item| item.boolean("tables.fan_in")).transpose()?.unwrap_or_default();
    let target = match entry.get("target") {
        None if fan_in => {
            return Err(wrong(&entry.origin, format!("the fan-in of {source} has no target"))
                .remedy("say which view of the lake shows these tables: target = \"public.orders\""));
        }
        None => None,
        Some(item) if source.exact().is_none() && !fan_in => {
            return Err(wrong(&item.origin, format!("the pattern {source} can't have one target for many tables"))
                .remedy("remove target, or name each table in an entry of its own; or let the target be a view of them all: fan_in = true"));
        }
        Some(item) => Some(
            names::parse_target(item.text("tables.target")?)
                .map_err(|message| wrong(&item.origin, format!("tables.target: {message}")))?,
        ),
    };
    let texts = |key: &str, path: &str| entry.get(key).map(|item| item.texts(path)).transpose();
    let exclude_columns = texts("exclude_columns", "tables.exclude_columns")?.unwrap_or_default();
    let mut types = BTreeMap::new();
    if let Some(item) = entry.get("types") {
        types = item.text_map("tables.types")?;
        for (column, wanted) in &types {
            if wanted != "text" {
                let message = format!("tables.types: column {column} of {source} can't arrive as {wanted:?}");
                return Err(
                    wrong(&item.origin, message).remedy(format!("the one other type is text: {column} = \"text\""))
                );
            }
            if exclude_columns.contains(column) {
                let message = format!("column {column} of {source} is in types and in exclude_columns");
                return Err(wrong(&item.origin, message));
            }
        }
    }
    let sort_by = texts("sort_by", "tables.sort_by")?;
    if let Some(column) = sort_by.iter().flatten().find(|column| exclude_columns.contains(column)) {
        let message = format!("column {column} of {source} is in sort_by and in exclude_columns");
        return Err(wrong(&entry.origin, message));
    }
    let mode = match entry.get("mode") {
        None => Mode::Mirror,
        Some(item) => match item.text("tables.mode")? {
            "mirror" => Mode::Mirror,
            "history" => Mode::History,
            "soft-delete" => Mode::SoftDelete,
            other => {
                let message = format!("tables.mode must be \"mirror\", \"history\" or \"soft-delete\", not {other:?}");
                return Err(wrong(&item.origin, message));
            }
        },
    };
    let filter = match entry.get("where") {
        None => None,
        Some(item) if source.exact().is_none() => {
            return Err(wrong(&item.origin, format!("the pattern {source} can't have one `where` for many tables"))
                .remedy("name each table in an entry of its own"));
        }
        Some(item) => Some(item.text("tables.where")?.to_owned()),
    };
    let fan_in = fan_in.then(|| pipeline.to_owned());
    Ok(TableConfig { source, target, fan_in, exclude_columns, types, sort_by, mode, filter })
}

/// Two entries must not say the same table, nor lead to one target: lake names are the same in upper and lower case.
fn check_tables(tables: &[TableConfig], entries: &[Entry]) -> Result<()> {
    for (later, (table, entry)) in tables.iter().zip(entries).enumerate() {
        for earlier in &tables[..later] {
            if table.source == earlier.source {
                return Err(wrong(&entry.origin, format!("two [[tables]] entries have the source {}", table.source)));
            }
        }
    }
    let exact = tables.iter().filter_map(|table| Some(selection::selection(table, &table.source.exact()?, false)));
    selection::check_targets(&exact.collect::<Vec<_>>()).context(|| match entries.first().map(|entry| &entry.origin) {
        Some(document::Origin::File { path, .. }) => path.clone(),
        _ => "[[tables]]".to_owned(),
    })
}

fn text<'a>(document: &'a Document, path: &str) -> Result<Option<&'a str>> {
    document.get(path).map(|item| item.text(path)).transpose()
}

fn required<'a>(document: &'a Document, path: &str, file: &Path) -> Result<&'a str> {
    match text(document, path)? {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(at(document, path, format!("{path} is empty"))),
        None => {
            let variable = path.to_ascii_uppercase().replace('.', "__");
            Err(Error::new(ErrorKind::Config, format!("{path} is missing"))
                .context(file.display().to_string())
                .remedy(format!("set it in the file, or as DUCKPIPE_{variable}")))
        }
    }
}

/// An error about the value at `path`, which exists.
fn at(document: &Document, path: &str, message: impl Into<String>) -> Error {
    match document.get(path) {
        Some(item) => wrong(&item.origin, message),
        None => Error::new(ErrorKind::Config, message),
    }
}
