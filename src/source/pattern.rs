//! Patterns of table names: `public.orders`, `public.*`, `*.order_?`, `"My.Schema".t`.

use super::table::TableName;
use crate::error::{Error, ErrorKind, Result};

/// A schema pattern and a table pattern. `*` stands for any text, `?` for one character; in double quotes nothing
/// stands for anything but itself. Case counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: Glob,
    table: Glob,
}

type Glob = Vec<Piece>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    One(char),
    AnyOne,
    AnyText,
}

impl TablePattern {
    /// Parses `schema.table`. Fails with [`ErrorKind::Config`].
    pub fn parse(text: &str) -> Result<TablePattern> {
        let invalid = |why: &str| {
            Error::new(ErrorKind::Config, format!("The table pattern {text:?} is not valid: {why}")).remedy(
                "Write schema.table, such as public.orders, public.* or \"my.schema\".orders (with double quotes where a \
                 name holds a dot, * or ?).",
            )
        };
        let mut parts: Vec<Glob> = vec![Vec::new()];
        let mut quoted = false;
        let mut characters = text.chars().peekable();
        while let Some(c) = characters.next() {
            let piece = match c {
                '"' if quoted && characters.peek() == Some(&'"') => {
                    characters.next();
                    Piece::One('"')
                }
                '"' => {
                    quoted = !quoted;
                    continue;
                }
                '.' if !quoted => {
                    parts.push(Vec::new());
                    continue;
                }
                '*' if !quoted => Piece::AnyText,
                '?' if !quoted => Piece::AnyOne,
                c => Piece::One(c),
            };
            if let Some(part) = parts.last_mut() {
                part.push(piece);
            }
        }
        if quoted {
            return Err(invalid("a double quote is not closed"));
        }
        match <[Glob; 2]>::try_from(parts) {
            Ok([schema, table]) if !schema.is_empty() && !table.is_empty() => Ok(TablePattern { schema, table }),
            _ => Err(invalid("it is not a schema and a table with a dot between")),
        }
    }

    /// The one table that it names, where it holds no `*` or `?`.
    pub fn exact(&self) -> Option<TableName> {
        Some(TableName { schema: plain(&self.schema)?, table: plain(&self.table)? })
    }

    /// Whether it stands for this table.
    pub fn matches(&self, name: &TableName) -> bool {
        glob_matches(&self.schema, &name.schema) && glob_matches(&self.table, &name.table)
    }
}

fn plain(glob: &Glob) -> Option<String> {
    glob.iter().map(|piece| if let Piece::One(c) = piece { Some(*c) } else { None }).collect()
}

/// Tries again one character later behind the last `*` seen, which suffices for globs.
fn glob_matches(glob: &[Piece], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut g, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match glob.get(g) {
            Some(Piece::AnyText) => {
                g += 1;
                retry = Some((g, t));
                continue;
            }
            Some(Piece::AnyOne) => {}
            Some(Piece::One(c)) if *c == text[t] => {}
            _ => {
                let Some((after, from)) = retry else { return false };
                retry = Some((after, from + 1));
                (g, t) = (after, from + 1);
                continue;
            }
        }
        (g, t) = (g + 1, t + 1);
    }
    glob[g..].iter().all(|piece| *piece == Piece::AnyText)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, schema: &str, table: &str) -> bool {
        TablePattern::parse(pattern).unwrap().matches(&TableName { schema: schema.into(), table: table.into() })
    }

    #[test]
    fn globs() {
        assert!(matches("public.orders", "public", "orders"));
        assert!(!matches("public.orders", "public", "Orders"));
        assert!(matches("public.*", "public", "a.b"));
        assert!(matches("*.order_?", "x", "order_1"));
        assert!(!matches("*.order_?", "x", "order_12"));
        assert!(matches("p*c.*a*b*", "public", "xaaxbb"));
        assert!(!matches("p*c.*a*b", "public", "xaaxbbc"));
        assert!(matches("\"a.b\".\"*\"\"\"", "a.b", "*\""));
        assert!(matches("*.*", "é", "ü"));
    }

    #[test]
    fn exact_names_and_errors() {
        let name = TablePattern::parse("public.\"a*\"").unwrap().exact().unwrap();
        assert_eq!(name.to_string(), "public.a*");
        assert!(TablePattern::parse("public.a*").unwrap().exact().is_none());
        for wrong in ["orders", "a.b.c", ".b", "a.", "\"a.b", ""] {
            assert_eq!(TablePattern::parse(wrong).unwrap_err().kind(), ErrorKind::Config, "{wrong}");
        }
    }
}
