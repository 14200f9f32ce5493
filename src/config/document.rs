//! Where settings come from: the file, the environment, the flags; and what each value's origin is, for messages.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys;
use super::units;
use crate::error::{Error, ErrorKind, Result};

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The key's path, such as `sync.flush_interval`.
    pub key: &'static str,
    /// The flag, as the person typed it, such as `--flush-interval`.
    pub flag: &'static str,
    /// The value's text.
    pub value: String,
}

/// A value with where it was written.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What TOML can hold and a setting can be.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Item>),
    Map(BTreeMap<String, Item>),
    /// Something that no setting is, with TOML's name for it.
    Other(&'static str),
}

/// Where a value was written.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    File { path: String, line: usize },
    Environment(String),
    Flag(&'static str),
}

impl Origin {
    fn describe(&self) -> String {
        match self {
            Origin::File { path, line } => format!("{path}, line {line}"),
            Origin::Environment(name) => format!("environment variable {name}"),
            Origin::Flag(flag) => format!("flag {flag}"),
        }
    }

    /// Environment and flags carry texts only: numbers and booleans among them are read from the text.
    fn is_text_only(&self) -> bool {
        !matches!(self, Origin::File { .. })
    }
}

/// An error about the value written at `origin`.
pub(super) fn wrong(origin: &Origin, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message).context(origin.describe())
}

/// All settings by their path, not yet typed, and the `[[tables]]` entries in order.
#[derive(Debug, Default)]
pub(super) struct Document {
    values: BTreeMap<String, Item>,
    pub(super) tables: Vec<Entry>,
}

/// One `[[tables]]` entry.
#[derive(Debug)]
pub(super) struct Entry {
    values: BTreeMap<String, Item>,
    pub(super) origin: Origin,
}

impl Document {
    /// Reads a file's text. `path` is for messages; `environment` is what `${VAR}` expands from.
    pub(super) fn parse(text: &str, path: &Path, environment: &BTreeMap<String, String>) -> Result<Document> {
        let reader = Reader { text, path: path.display().to_string(), environment };
        // The parser's own message shows the line's text, which may hold a password: only its words are passed on.
        let root = DeTable::parse(text).map_err(|error| {
            let origin = reader.origin(error.span().unwrap_or(0..0).start);
            wrong(&origin, format!("this is not TOML: {}", error.message().trim()))
        })?;
        let mut document = Document::default();
        for (key, value) in root.get_ref() {
            let name = key.get_ref().as_ref();
            let origin = reader.origin(key.span().start);
            match (name, value.get_ref()) {
                ("tables", DeValue::Array(entries)) => {
                    for entry in entries.iter() {
                        document.tables.push(reader.entry(entry)?);
                    }
                }
                ("tables", _) => return Err(wrong(&origin, "tables must be written as [[tables]] entries")),
                (section, DeValue::Table(table)) if keys::keys_of(section).is_some() => {
                    for (key, value) in table {
                        document.insert(
                            section,
                            key.get_ref(),
                            reader.item(value)?,
                            &reader.origin(key.span().start),
                        )?;
                    }
                }
                (section, DeValue::Table(_)) => {
                    return Err(unknown(&origin, "section", &format!("[{section}]"), section, ""));
                }
                (section, _) if !section.is_empty() && keys::keys_of(section).is_some() => {
                    return Err(wrong(&origin, format!("{section} must be a section, [{section}]")));
                }
                (key, _) => document.insert("", key, reader.item(value)?, &origin)?,
            }
        }
        Ok(document)
    }

    fn insert(&mut self, section: &str, key: &str, item: Item, origin: &Origin) -> Result<()> {
        let path = keys::path(section, key);
        if !keys::keys_of(section).is_some_and(|keys| keys.contains(&key)) {
            return Err(unknown(origin, "key", &path, key, section));
        }
        self.values.insert(path, item);
        Ok(())
    }

    /// Lays `DUCKPIPE_SECTION__KEY`, `DUCKPIPE_NAME` and `DUCKPIPE_TABLES__<n>__KEY` over what the file says. Variables of
    /// the prefix without two underscores name no setting (but the pipeline's name) and are left alone.
    pub(super) fn overlay_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<()> {
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix("DUCKPIPE_") else { continue };
            let origin = Origin::Environment(variable.clone());
            let item = Item { value: Value::Text(value.clone()), origin: origin.clone() };
            let path = rest.to_ascii_lowercase();
            match path.split("__").collect::<Vec<_>>().as_slice() {
                ["name"] => self.insert("", "name", item, &origin)?,
                [_] => {}
                ["tables", index, key] => self.overlay_table(index, key, item, &origin)?,
                [section, key] if !section.is_empty() && keys::keys_of(section).is_some() => {
                    self.insert(section, key, item, &origin)?;
                }
                parts => {
                    let last = parts.last().copied().unwrap_or_default();
                    return Err(unknown(&origin, "key", &parts.join("."), last, parts[0]));
                }
            }
        }
        Ok(())
    }

    fn overlay_table(&mut self, index: &str, key: &str, item: Item, origin: &Origin) -> Result<()> {
        if !keys::TABLE_KEYS.contains(&key) {
            return Err(unknown(origin, "key", &format!("tables.{key}"), key, "tables"));
        }
        let index: usize = index.parse().map_err(|_| wrong(origin, "the table's number must be 0, 1, 2 …"))?;
        if index > self.tables.len() {
            let count = self.tables.len();
            return Err(wrong(
                origin,
                format!("table number {index} leaves a gap: there are {count} [[tables]] before it"),
            ));
        }
        if index == self.tables.len() {
            self.tables.push(Entry { values: BTreeMap::new(), origin: origin.clone() });
        }
        self.tables[index].values.insert(key.to_owned(), item);
        Ok(())
    }

    /// Lays the flags over everything else.
    pub(super) fn overlay_flags(&mut self, flags: &[Override]) {
        for Override { key, flag, value } in flags {
            let item = Item { value: Value::Text(value.clone()), origin: Origin::Flag(flag) };
            self.values.insert((*key).to_owned(), item);
        }
    }

    /// The value at a path.
    pub(super) fn get(&self, path: &str) -> Option<&Item> {
        self.values.get(path)
    }

    /// Some value of a section, for saying where the section is.
    pub(super) fn any_of(&self, section: &str) -> Option<&Item> {
        let prefix = format!("{section}.");
        self.values.iter().find(|(path, _)| path.starts_with(&prefix)).map(|(_, item)| item)
    }
}

impl Entry {
    /// The value of a key of this entry.
    pub(super) fn get(&self, key: &str) -> Option<&Item> {
        self.values.get(key)
    }
}

impl Item {
    fn is_not(&self, path: &str, expected: &str) -> Error {
        let found = match &self.value {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Bool(_) => "a boolean",
            Value::List(_) => "an array",
            Value::Map(_) => "a table",
            Value::Other(name) => name,
        };
        wrong(&self.origin, format!("{path} must be {expected}, not {found}"))
    }

    pub(super) fn text(&self, path: &str) -> Result<&str> {
        match &self.value {
            Value::Text(text) => Ok(text),
            _ => Err(self.is_not(path, "a string")),
        }
    }

    pub(super) fn boolean(&self, path: &str) -> Result<bool> {
        match &self.value {
            Value::Bool(value) => Ok(*value),
            Value::Text(text) if self.origin.is_text_only() => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "on" | "yes" => Ok(true),
                "false" | "0" | "off" | "no" => Ok(false),
                _ => Err(wrong(&self.origin, format!("{path} must be true or false, not {text:?}"))),
            },
            _ => Err(self.is_not(path, "true or false")),
        }
    }

    pub(super) fn count(&self, path: &str) -> Result<u64> {
        match &self.value {
            Value::Integer(value) => {
                u64::try_from(*value).map_err(|_| wrong(&self.origin, format!("{path} must not be negative")))
            }
            Value::Text(text) if self.origin.is_text_only() => text
                .trim()
                .parse()
                .map_err(|_| wrong(&self.origin, format!("{path} must be a whole number, not {text:?}"))),
            _ => Err(self.is_not(path, "a whole number")),
        }
    }

    /// A size: a text with a unit, or a whole number of bytes.
    pub(super) fn size(&self, path: &str) -> Result<u64> {
        match &self.value {
            Value::Text(text) => {
                units::parse_size(text).map_err(|message| wrong(&self.origin, format!("{path}: {message}")))
            }
            Value::Integer(_) => self.count(path),
            _ => Err(self.is_not(path, "a size such as \"64MB\"")),
        }
    }

    pub(super) fn duration(&self, path: &str) -> Result<Duration> {
        match &self.value {
            Value::Text(text) => {
                units::parse_duration(text).map_err(|message| wrong(&self.origin, format!("{path}: {message}")))
            }
            _ => Err(self.is_not(path, "a duration such as \"1s\", in quotes and with its unit")),
        }
    }

    /// An array of strings; from the environment, a text with commas.
    pub(super) fn texts(&self, path: &str) -> Result<Vec<String>> {
        match &self.value {
            Value::List(items) => items.iter().map(|item| item.text(path).map(str::to_owned)).collect(),
            Value::Text(text) if self.origin.is_text_only() => {
                Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
            }
            _ => Err(self.is_not(path, "an array of strings")),
        }
    }

    /// A table of strings; from the environment, `a=text,b=text`.
    pub(super) fn text_map(&self, path: &str) -> Result<BTreeMap<String, String>> {
        match &self.value {
            Value::Map(map) => {
                let pair =
                    |(key, item): (&String, &Item)| Ok((key.clone(), item.text(&format!("{path}.{key}"))?.to_owned()));
                map.iter().map(pair).collect()
            }
            Value::Text(text) if self.origin.is_text_only() => {
                let pairs = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                let pair = |pair: &str| match pair.split_once('=') {
                    Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
                    None => Err(wrong(&self.origin, format!("{path} must read column=text,column=text"))),
                };
                pairs.map(pair).collect()
            }
            _ => Err(self.is_not(path, "a table such as { payload = \"text\" }")),
        }
    }
}

fn unknown(origin: &Origin, what: &str, shown: &str, wrong_key: &str, section: &str) -> Error {
    let error = wrong(origin, format!("unknown {what} {shown}"));
    match keys::nearest(wrong_key, section) {
        Some(near) => error.remedy(format!("did you mean {near}?")),
        None => {
            let known = keys::keys_of(section).filter(|_| !section.is_empty());
            let known = if section == "tables" { Some(keys::TABLE_KEYS) } else { known };
            match known {
                Some(known) => error.remedy(format!("[{section}] has the keys {}", known.join(", "))),
                None => error.remedy(
                    "the sections are [source], [lake], [s3], [sync], [compact] and [[tables]]; name stands above them",
                ),
            }
        }
    }
}

/// Turns the parser's values into ours.
struct Reader<'a> {
    text: &'a str,
    path: String,
    environment: &'a BTreeMap<String, String>,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Origin::File { path: self.path.clone(), line }
    }

    fn entry(&self, entry: &Spanned<DeValue<'_>>) -> Result<Entry> {
        let origin = self.origin(entry.span().start);
        let DeValue::Table(table) = entry.get_ref() else {
            return Err(wrong(&origin, "tables must be written as [[tables]] entries"));
        };
        let mut values = BTreeMap::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if !keys::TABLE_KEYS.contains(&name) {
                let origin = self.origin(key.span().start);
                return Err(unknown(&origin, "key", &format!("tables.{name}"), name, "tables"));
            }
            values.insert(name.to_owned(), self.item(value)?);
        }
        Ok(Entry { values, origin })
    }

    fn item(&self, value: &Spanned<DeValue<'_>>) -> Result<Item> {
        let origin = self.origin(value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(self.expand(text, &origin)?),
            DeValue::Integer(number) => {
                let digits = number.as_str().replace('_', "");
                match i64::from_str_radix(&digits, number.radix()) {
                    Ok(number) => Value::Integer(number),
                    Err(_) => return Err(wrong(&origin, format!("{digits} is out of range"))),
                }
            }
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.item(item)).collect::<Result<_>>()?),
            DeValue::Table(table) => {
                let pair = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    Ok((key.to_string(), self.item(value)?))
                };
                Value::Map(table.iter().map(pair).collect::<Result<_>>()?)
            }
            DeValue::Float(_) => Value::Other("a float"),
            DeValue::Datetime(_) => Value::Other("a date"),
        };
        Ok(Item { value, origin })
    }

    /// Replaces `${VAR}` by the variable's value; `$${` is a literal `${`.
    fn expand(&self, text: &str, origin: &Origin) -> Result<String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, after) = rest.split_at(at);
            let after = &after[2..];
            if let Some(before) = before.strip_suffix('$') {
                out.push_str(before);
                out.push_str("${");
                rest = after;
                continue;
            }
            out.push_str(before);
            let Some(end) = after.find('}') else {
                return Err(wrong(origin, "a ${ is not closed by }").remedy("write $${ for a literal ${"));
            };
            let name = &after[..end];
            match self.environment.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    let message = format!("the environment variable {name} is not set, but the file uses ${{{name}}}");
                    return Err(wrong(origin, message).remedy(format!("set {name}, or write the value itself")));
                }
            }
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }
}
