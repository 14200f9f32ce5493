//! The keys of `duckpipe.toml`, and the nearest one to a misspelt key.

/// A section and its keys. The nameless section is the top level.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    ("", &["name"]),
    ("source", &["url", "slot", "publication", "sslrootcert", "sslcert", "sslkey"]),
    ("lake", &["catalog", "data_path"]),
    ("s3", &["endpoint", "region", "access_key_id", "secret_access_key", "session_token", "path_style"]),
    (
        "sync",
        &[
            "flush_interval",
            "flush_bytes",
            "memory_limit",
            "snapshot_workers",
            "snapshot_range",
            "on_unrepresentable",
            "resync",
            "on_rename",
        ],
    ),
    (
        "compact",
        &[
            "enabled",
            "interval",
            "target_file_size",
            "min_files",
            "delete_ratio",
            "retain",
            "delete_grace",
            "memory_limit",
            "threads",
        ],
    ),
];

/// The keys of one `[[tables]]` entry.
pub(super) const TABLE_KEYS: &[&str] =
    &["source", "target", "exclude_columns", "types", "sort_by", "mode", "where", "fan_in"];

/// The keys of a section; `None` where there is no such section.
pub(super) fn keys_of(section: &str) -> Option<&'static [&'static str]> {
    SECTIONS.iter().find(|(name, _)| *name == section).map(|(_, keys)| *keys)
}

/// The path of a key as messages print it: `sync.flush_bytes`, or `name`.
pub(super) fn path(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// Every key with its path, those of `[[tables]]` included.
fn every_path() -> Vec<String> {
    let plain = SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(|key| path(section, key)));
    plain.chain(TABLE_KEYS.iter().map(|key| format!("tables.{key}"))).collect()
}

/// The valid key nearest to `wrong`, first among `candidates`, then among all keys by their last part, so that a key in
/// the wrong section finds its home. Nothing where nothing is near.
pub(super) fn nearest(wrong: &str, section: &str) -> Option<String> {
    let all = every_path();
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    let siblings = all.iter().filter(|path| match path.strip_prefix(prefix.as_str()) {
        Some(rest) => !rest.contains('.'),
        None => false,
    });
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let score = |path: &&String| (strsim::damerau_levenshtein(wrong, &last(path)), (*path).clone());
    let near = |distance: usize| distance <= 1 + wrong.chars().count() / 3;
    let best_sibling = siblings.map(|path| score(&path)).min();
    if let Some((distance, path)) = best_sibling
        && near(distance)
    {
        return Some(path);
    }
    let sections = SECTIONS.iter().map(|(name, _)| *name).chain(["tables"]).filter(|name| !name.is_empty());
    let best_section = sections.map(|name| (strsim::damerau_levenshtein(wrong, name), name.to_owned())).min();
    let best_any = all.iter().map(|path| score(&path)).min();
    match (best_section, best_any) {
        (Some((a, section_name)), Some((b, _))) if section.is_empty() && a <= b && near(a) => {
            Some(if section_name == "tables" { "[[tables]]".to_owned() } else { format!("[{section_name}]") })
        }
        (_, Some((b, path))) if near(b) => Some(path),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_key() {
        assert_eq!(nearest("flush_intervall", "sync").as_deref(), Some("sync.flush_interval"));
        assert_eq!(nearest("nmae", "").as_deref(), Some("name"));
        assert_eq!(nearest("flush_bytes", "").as_deref(), Some("sync.flush_bytes"));
        assert_eq!(nearest("sorce", "").as_deref(), Some("[source]"));
        assert_eq!(nearest("table", "").as_deref(), Some("[[tables]]"));
        assert_eq!(nearest("exclude_column", "tables").as_deref(), Some("tables.exclude_columns"));
        assert_eq!(nearest("catalog", "source").as_deref(), Some("lake.catalog"));
        assert_eq!(nearest("quetzalcoatl", ""), None);
    }

    #[test]
    fn the_schema_names_the_same_keys() {
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../schemas/duckpipe.schema.json")).unwrap();
        let keys = |value: &serde_json::Value| -> std::collections::BTreeSet<String> {
            value["properties"].as_object().unwrap().keys().cloned().collect()
        };
        let expected = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        for (section, known) in SECTIONS.iter().filter(|(section, _)| !section.is_empty()) {
            assert_eq!(keys(&schema["properties"][section]), expected(known), "[{section}]");
        }
        assert_eq!(keys(&schema["properties"]["tables"]["items"]), expected(TABLE_KEYS));
        assert_eq!(keys(&schema), expected(&["name", "source", "lake", "s3", "sync", "compact", "tables"]));
    }
}
