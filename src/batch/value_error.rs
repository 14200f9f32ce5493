//! A value that its column can't take.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// What happens to a value that its lake type can't hold (NaN in `numeric(10,2)`, a two-dimensional value in `int[]`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnrepresentable {
    /// The table stops.
    #[default]
    Error,
    /// The value becomes NULL, and is counted. Never in a key column: there the table stops.
    Null,
}

/// A value of one row that could not be decoded, with where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ValueError {
    /// The column's name.
    pub column: String,
    /// Why, with no more of the value than a short prefix.
    pub reason: String,
    /// The row's key as `id=7, line=2`, shortened, where it could be read.
    pub key: Option<String>,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {:?}", self.column)?;
        if let Some(key) = &self.key {
            write!(f, " of the row with {key}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl From<ValueError> for Error {
    fn from(error: ValueError) -> Error {
        let remedy = format!(
            "set `types = {{ \"{}\" = \"text\" }}` for the table, or correct the row, and copy the table anew: `duckpipe tables resync`",
            error.column
        );
        Error::new(ErrorKind::Table, error.to_string()).remedy(remedy)
    }
}

/// Why one value could not be appended. A pointer wide, because every append returns one.
#[derive(Debug)]
pub(crate) struct Fault(Box<FaultKind>);

#[derive(Debug)]
enum FaultKind {
    Unrepresentable(String),
    Malformed(String),
}

impl Fault {
    /// The value is right, but the lake's type can't hold it.
    #[cold]
    pub(crate) fn unrepresentable(reason: impl Into<String>) -> Fault {
        Fault(Box::new(FaultKind::Unrepresentable(reason.into())))
    }

    /// The bytes do not follow the type's format.
    #[cold]
    pub(crate) fn malformed(reason: impl Into<String>) -> Fault {
        Fault(Box::new(FaultKind::Malformed(reason.into())))
    }

    /// Bytes that are no text of the type named `what`.
    #[cold]
    pub(crate) fn not_a(what: &str, text: &[u8]) -> Fault {
        Fault::malformed(format!("{:?} is no {what}", prefix(text)))
    }

    /// Whether [`OnUnrepresentable::Null`] applies.
    pub(crate) fn is_unrepresentable(&self) -> bool {
        matches!(*self.0, FaultKind::Unrepresentable(_))
    }

    /// The reason alone.
    pub(crate) fn into_reason(self) -> String {
        match *self.0 {
            FaultKind::Unrepresentable(reason) | FaultKind::Malformed(reason) => reason,
        }
    }
}

/// The beginning of a value, for messages: rows belong to the user, not to logs.
pub(crate) fn prefix(text: &[u8]) -> String {
    const SHOWN: usize = 32;
    let lossy = String::from_utf8_lossy(&text[..text.len().min(4 * SHOWN)]);
    let mut shown: String = lossy.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_error_names_column_key_and_remedy() {
        let error = ValueError { column: "price".into(), reason: "NaN".into(), key: Some("id=7".into()) };
        let error = Error::from(error);
        assert_eq!(error.kind(), ErrorKind::Table);
        assert_eq!(error.to_string(), "column \"price\" of the row with id=7: NaN");
        assert!(error.remedy_text().unwrap().contains("types = { \"price\" = \"text\" }"));
    }

    #[test]
    fn a_prefix_is_short_and_never_splits_a_character() {
        assert_eq!(prefix(b"short"), "short");
        let long = "ä".repeat(500);
        assert_eq!(prefix(long.as_bytes()).chars().count(), 33);
        assert!(prefix(&[0xff; 200]).ends_with('…'));
    }
}
