//! The commented `duckpipe.toml` that `duckpipe init` writes.

/// What `init` knows to fill in.
#[derive(Clone, Debug, Default)]
pub struct Known<'a> {
    /// The source's address.
    pub source_url: Option<&'a str>,
    /// The catalog.
    pub catalog: Option<&'a str>,
    /// The data path.
    pub data_path: Option<&'a str>,
    /// The tables or patterns.
    pub tables: &'a [String],
}

/// The file's text, with every key, its default and what it means.
pub fn template(name: &str, known: &Known<'_>) -> String {
    let catalog = known.catalog.unwrap_or("lake/catalog.ducklake");
    let data_path = known.data_path.unwrap_or("lake/data");
    let url = known.source_url.unwrap_or("postgres://user:${PGPASSWORD}@localhost:5432/database?sslmode=prefer");
    let mut tables = String::new();
    let all = ["public.*".to_owned()];
    for source in if known.tables.is_empty() { &all } else { known.tables } {
        tables.push_str(&format!("[[tables]]\nsource = {}\n", quoted(source)));
    }
    let s3 = if data_path.starts_with("s3://") { "" } else { "# " };
    format!(
        r#"# One file is one pipeline: one source, one lake.
# Every key can also come from the environment, as DUCKPIPE_SECTION__KEY, such as DUCKPIPE_SYNC__FLUSH_BYTES.
# ${{VARIABLE}} in a text is replaced from the environment. Relative paths are seen from this file.

# The pipeline's name: lower-case letters, digits, underscores.
# The slot and the publication in the source are called duckpipe_<name>.
name = {name}

[source]
# sslmode, sslrootcert, sslcert and sslkey mean what they mean to psql.
url = {url}
# slot = "duckpipe_{bare_name}"
# publication = "duckpipe_{bare_name}"

[lake]
# A DuckDB file, or a Postgres database: "postgres://user:${{LAKE_PASSWORD}}@host/database?schema=lake"
catalog = {catalog}
# A folder, or a bucket: "s3://bucket/prefix"
data_path = {data_path}

# Only with an s3:// data path. Without keys the AWS chain decides: environment, profile, SSO, web identity, instance.
{s3}[s3]
# endpoint = "http://127.0.0.1:9000"   # for MinIO and others
# region = "us-east-1"
# access_key_id = "${{S3_KEY}}"
# secret_access_key = "${{S3_SECRET}}"
# path_style = false                    # true for MinIO

[sync]
# flush_interval = "1s"                 # the longest that a committed change waits before its flush begins
# flush_bytes = "64MB"                  # buffered changes that begin a flush earlier
# memory_limit = "512MB"                # shared by buffers, writers and DuckDB
# snapshot_workers = 2                  # connections that copy tables at the same time
# snapshot_range = "128MiB"             # of a table that is copied at once, and not again where a copy is interrupted
# on_unrepresentable = "error"          # a value that the lake's type can't hold: "error" stops its table, "null" drops the value
# resync = "auto"                       # a table that can't go on is copied afresh by itself; "manual": by `duckpipe tables resync`
# on_rename = "follow"                  # the lake's table is renamed with the source's; "keep": it is not

[compact]
# enabled = true                        # sync merges small files and drops what nobody can read any more
# interval = "1m"                       # how often it looks
# target_file_size = "128MB"            # the size that files shall have
# min_files = 8                         # small files that are worth a rewrite
# delete_ratio = "20%"                  # unreadable rows of a file that are worth a rewrite
# retain = "7d"                         # how long a snapshot can be read; "forever" keeps all
# delete_grace = "1h"                   # how long a replaced file stays for those who are reading it
# memory_limit = "128MB"                # of a rewrite, beside sync's own; what exceeds it spills to disk
# threads = 1                           # of a rewrite

# One entry for each table, or a pattern with * and ?.
{tables}# target = "public.orders"              # the lake's schema.table; the source's name unless set
# exclude_columns = ["card_number"]     # columns that do not enter the lake
# types = {{ payload = "text" }}          # columns that arrive as text, whatever their type
# sort_by = ["placed_at"]               # what compacted files are sorted by; the key unless set, [] for no order
# where = "region = 'eu'"               # which rows are followed, as SQL of the source; columns of the key only
# fan_in = false                        # true: the target is a view over all tables that lead there, with whose rows they are
# mode = "mirror"                       # the lake holds the table's rows; "history": every change of them
"#,
        name = quoted(name),
        bare_name = name,
        url = quoted(url),
        catalog = quoted(catalog),
        data_path = quoted(data_path),
    )
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A pipeline name made from any text, such as a database's name: `shop-2` becomes `shop_2`.
pub fn name_from(text: &str) -> String {
    let name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(50)
        .collect();
    let name = name.trim_matches('_');
    if name.is_empty() { "main".to_owned() } else { name.to_owned() }
}
