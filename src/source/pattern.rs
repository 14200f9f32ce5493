//! Patterns of table names: `public.orders`, `public.*`, `*.order_?`, `"My.Schema".t`.

use std::fmt;

use super::table::TableName;

/// What a `[[tables]]` entry's `source` says: one table, or a pattern such as `public.*` or `public.order_?`.
///
/// The text is `schema.table`, as the catalog stores the names: case matters and nothing is folded. `*` stands for any
/// characters, `?` for one. A part in double quotes is literal and may hold dots and stars; `""` in it is one quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: Part,
    table: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    text: String,
    literal: bool,
}

impl Part {
    fn any() -> Part {
        Part { text: "*".into(), literal: false }
    }

    fn is_pattern(&self) -> bool {
        !self.literal && self.text.contains(['*', '?'])
    }

    fn matches(&self, name: &str) -> bool {
        if self.is_pattern() { glob(&self.text, name) } else { self.text == name }
    }
}

impl TablePattern {
    /// Every table that may be followed.
    pub fn all() -> TablePattern {
        TablePattern { schema: Part::any(), table: Part::any() }
    }

    /// Reads `schema.table`. The error says what is wrong with the text.
    pub fn parse(text: &str) -> Result<TablePattern, String> {
        let (schema, rest) = part(text)?;
        let Some(rest) = rest.strip_prefix('.') else {
            return Err(format!("{text:?} has no schema; write it as \"public.{}\"", text.trim()));
        };
        let (table, rest) = part(rest)?;
        if !rest.is_empty() {
            return Err(format!(
                "{text:?} has more than two parts; write \"schema.table\", with a part that holds a dot in double quotes"
            ));
        }
        Ok(TablePattern { schema, table })
    }

    /// The one table that this names; `None` for a pattern.
    pub fn exact(&self) -> Option<TableName> {
        let exact = !self.schema.is_pattern() && !self.table.is_pattern();
        exact.then(|| TableName { schema: self.schema.text.clone(), table: self.table.text.clone() })
    }

    /// Whether a table is meant. A pattern never matches system schemas, nor tables called `ducklake_*` and `duckpipe_*`.
    pub fn matches(&self, name: &TableName) -> bool {
        let system = name.schema == "pg_catalog"
            || name.schema == "information_schema"
            || name.schema.starts_with("pg_toast")
            || name.schema.starts_with("pg_temp");
        let ours = name.table.starts_with("ducklake_") || name.table.starts_with("duckpipe_");
        if self.exact().is_none() && (system || ours) {
            return false;
        }
        self.schema.matches(&name.schema) && self.table.matches(&name.table)
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in [&self.schema, &self.table].into_iter().enumerate() {
            if index == 1 {
                f.write_str(".")?;
            }
            if part.literal && part.text.contains(['.', '*', '?', '"']) {
                write!(f, "\"{}\"", part.text.replace('"', "\"\""))?;
            } else {
                f.write_str(&part.text)?;
            }
        }
        Ok(())
    }
}

/// Reads one part off the front of `text`; what remains begins with the dot after it, or is empty.
fn part(text: &str) -> Result<(Part, &str), String> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() || name.trim() != name || name.contains('"') {
            return Err(format!("{text:?} is not a name; write \"schema.table\""));
        }
        return Ok((Part { text: name.to_owned(), literal: false }, rest));
    };
    let mut name = String::new();
    loop {
        let Some(end) = rest.find('"') else { return Err(format!("{text:?} has a double quote that is not closed")) };
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => break,
        }
    }
    if name.is_empty() {
        return Err(format!("{text:?} has an empty part; write \"schema.table\""));
    }
    Ok((Part { text: name, literal: true }, rest))
}

/// Whether `name` matches `pattern`, where `*` is any run of characters and `?` one. Linear in space, quadratic at worst.
fn glob(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(schema: &str, table: &str) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    #[test]
    fn reads_names_and_patterns() {
        assert_eq!(TablePattern::parse("public.orders").unwrap().exact(), Some(name("public", "orders")));
        assert_eq!(TablePattern::parse("public.\"a.b\"\"*\"").unwrap().exact(), Some(name("public", "a.b\"*")));
        assert_eq!(TablePattern::parse("Sales.Orders").unwrap().exact(), Some(name("Sales", "Orders")));
        assert_eq!(TablePattern::parse("public.*").unwrap().exact(), None);
        for wrong in ["orders", "a.b.c", "", ".", "a.", ".b", "a.\"b", "a. b", "a.\"\""] {
            assert!(TablePattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn matches_as_it_says() {
        let all = TablePattern::parse("*.*").unwrap();
        assert!(all.matches(&name("shop", "orders")));
        assert!(!all.matches(&name("pg_catalog", "pg_class")));
        assert!(!all.matches(&name("public", "ducklake_snapshot")));
        assert!(!all.matches(&name("public", "duckpipe_table")));
        let one = TablePattern::parse("public.order_?").unwrap();
        assert!(one.matches(&name("public", "order_7")));
        assert!(!one.matches(&name("public", "order_77")));
        assert!(!one.matches(&name("Public", "order_7")));
    }

    #[test]
    fn globs() {
        assert!(glob("*", ""));
        assert!(glob("a*b*c", "aXbXbc"));
        assert!(!glob("a*b*c", "aXbXb"));
        assert!(!glob("", "a"));
        assert!(glob("größe_?", "größe_ü"));
    }

    proptest! {
        #[test]
        fn a_printed_name_reads_back(schema in "[a-zA-Z.*?\" ]{1,6}", table in "[a-z.*?\"]{1,6}") {
            let quoted = format!("\"{}\".\"{}\"", schema.replace('"', "\"\""), table.replace('"', "\"\""));
            let pattern = TablePattern::parse(&quoted).unwrap();
            prop_assert_eq!(pattern.exact(), Some(name(&schema, &table)));
        }
    }
}
