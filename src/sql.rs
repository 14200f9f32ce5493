//! Quoting of names and texts: the one place that puts foreign text into SQL.
//!
//! The same rules serve Postgres (with `standard_conforming_strings` on, which every session pins) and DuckDB.

/// A name as a quoted identifier: `my "table"` becomes `"my ""table"""`.
pub fn identifier(name: &str) -> String {
    quoted(name, '"')
}

/// A text as a string literal: `it's` becomes `'it''s'`.
pub fn literal(text: &str) -> String {
    quoted(text, '\'')
}

/// A schema-qualified name as quoted identifiers.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}

fn quoted(text: &str, quote: char) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        if c == quote {
            out.push(quote);
        }
        out.push(c);
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_the_quote_and_leaves_the_rest() {
        assert_eq!(identifier(r#"a"b'c\"#), r#""a""b'c\""#);
        assert_eq!(literal(r#"a"b'c\"#), r#"'a"b''c\'"#);
        assert_eq!(qualified("s", "t.u"), r#""s"."t.u""#);
        assert_eq!(identifier(""), "\"\"");
    }
}
