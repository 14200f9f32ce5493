//! Changing the `[[tables]]` entries of a file, which stays as it is otherwise, comments included.

use std::path::Path;

use super::{Config, DEFAULT_FILE};
use crate::error::{Because, Error, ErrorKind, Result};
use crate::source::table::TableName;

/// The text with one more entry. `settings` are further lines of it.
pub fn with_entry(text: &str, source: &str, settings: &[String]) -> String {
    let mut out = text.to_owned();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.push_str(&format!("\n[[tables]]\nsource = {}\n", toml_text(source)));
    for setting in settings {
        out.push_str(&format!("{setting}\n"));
    }
    out
}

/// The text without the entry that begins at the `header`th `[[tables]]`, counted from 0: from there to the next header, without the
/// comments and empty lines before that. `None`: there is no such entry.
pub fn without_entry(text: &str, header: usize) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let headers = lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[tables]]"));
    let start = headers.map(|(at, _)| at).nth(header)?;
    let after = lines[start + 1..].iter().position(|line| line.trim_start().starts_with('['));
    let mut end = after.map_or(lines.len(), |after| start + 1 + after);
    let is_gap = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    while end > start + 1 && is_gap(lines[end - 1]) {
        end -= 1;
    }
    Some(lines[..start].concat().trim_end().to_owned() + "\n" + &lines[end..].concat())
}

/// A basic string of TOML, which is one of JSON.
pub fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Puts another text in the place of the configuration's file, whole or not at all.
///
/// # Errors
/// Kind `Config`, where the file can't be written.
pub fn replace_file(config: &Config, text: &str) -> Result<()> {
    let cant = || format!("the configuration file {} can't be written", config.path.display());
    // What a link leads to, not the link.
    let path = std::fs::canonicalize(&config.path).because(ErrorKind::Config, cant)?;
    let permissions = std::fs::metadata(&path).because(ErrorKind::Config, cant)?.permissions();
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/"))).because(ErrorKind::Config, cant)?;
    std::io::Write::write_all(&mut file, text.as_bytes()).because(ErrorKind::Config, cant)?;
    file.as_file().set_permissions(permissions).because(ErrorKind::Config, cant)?;
    file.as_file().sync_all().because(ErrorKind::Config, cant)?;
    file.persist(&path).because(ErrorKind::Config, cant)?;
    Ok(())
}

/// The file's text.
///
/// # Errors
/// Kind `Config`, where there is no file, for the environment says everything.
pub fn file_text(config: &Config) -> Result<String> {
    std::fs::read_to_string(&config.path)
        .because(ErrorKind::Config, || format!("the configuration file {} can't be read", config.path.display()))
        .map_err(|error| {
            error.remedy(format!("tables are added to a file: write {DEFAULT_FILE}, or name it by --config"))
        })
}

/// Which entry names this table, counted from 0.
///
/// # Errors
/// Kind `Config`, where none does: the message tells a pattern that selects it.
pub fn entry_of(config: &Config, table: &TableName) -> Result<usize> {
    let tables = config.tables();
    if let Some(at) = tables.iter().position(|entry| entry.source.exact().as_ref() == Some(table)) {
        return Ok(at);
    }
    let error = |message: String| Error::new(ErrorKind::Config, message);
    Err(match tables.iter().find(|entry| entry.source.matches(table)) {
        Some(pattern) => error(format!("{table} has no entry of its own: the pattern {} selects it", pattern.source))
            .remedy(format!(
                "let it stand still, `duckpipe tables pause {table}`, or name the pattern's tables one by one"
            )),
        None => error(format!("no [[tables]] entry selects {table}"))
            .remedy("a table that was renamed is named there as before: say that name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"shop\"\n\n# the orders\n[[tables]]\nsource = \"public.orders\" # all of them\nexclude_columns = [\n  \"a\",\n]\n\n# the rest\n[[tables]]\nsource = \"public.items\"\n\n[compact]\nretain = \"7d\"\n";

    #[test]
    fn an_entry_comes_and_goes() {
        let added = with_entry(TEXT, "public.a\"b", &["target = \"main.t\"".to_owned()]);
        assert_eq!(added, format!("{TEXT}\n[[tables]]\nsource = \"public.a\\\"b\"\ntarget = \"main.t\"\n"));
        assert_eq!(without_entry(&added, 2).unwrap(), TEXT);
        let gone = without_entry(TEXT, 0).unwrap();
        assert_eq!(
            gone,
            "name = \"shop\"\n\n# the orders\n\n# the rest\n[[tables]]\nsource = \"public.items\"\n\n[compact]\nretain = \"7d\"\n"
        );
        let gone = without_entry(TEXT, 1).unwrap();
        assert!(gone.ends_with("# the rest\n\n[compact]\nretain = \"7d\"\n"), "{gone}");
        assert_eq!(without_entry(TEXT, 2), None);
    }
}
