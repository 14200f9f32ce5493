//! What `test_decoding` prints, parsed: `table public.t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 name[text]:'x'`.
//!
//! Its values are those of the types' output functions, quoted as SQL literals where they are not numbers or booleans.

/// A change of one row, or a TRUNCATE of one table. Names are quoted as SQL quotes them.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// Schema and table.
    pub table: String,
    /// What happened.
    pub kind: Kind,
    /// The old key, or under REPLICA IDENTITY FULL the old row without its NULLs; empty where the key did not change.
    pub old: Vec<Column>,
    /// The new row; empty for a DELETE and for a TRUNCATE.
    pub new: Vec<Column>,
}

/// What happens to a row, or to all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// A column's name, as SQL quotes it, and its value.
pub type Column = (String, Value);

/// A column's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// A large value that the UPDATE did not touch: the WAL does not have it.
    Unchanged,
    /// An SQL literal.
    Literal(String),
}

/// Parses the line of a change; `None` where it is no such line.
pub fn change(line: &str) -> Option<Change> {
    let rest = line.strip_prefix("table ")?;
    let schema = identifier(rest)?;
    let rest = rest[schema.len()..].strip_prefix('.')?;
    let name = identifier(rest)?;
    let rest = rest[name.len()..].strip_prefix(": ")?;
    let table = format!("{schema}.{name}");
    if rest.starts_with("TRUNCATE: ") {
        return Some(Change { table, kind: Kind::Truncate, old: vec![], new: vec![] });
    }
    if let Some(rest) = rest.strip_prefix("INSERT: ") {
        return Some(Change { table, kind: Kind::Insert, old: vec![], new: columns(rest)?.0 });
    }
    if let Some(rest) = rest.strip_prefix("DELETE: ") {
        return Some(Change { table, kind: Kind::Delete, old: columns(rest)?.0, new: vec![] });
    }
    let rest = rest.strip_prefix("UPDATE: ")?;
    let (old, rest) = match rest.strip_prefix("old-key: ") {
        Some(rest) => columns(rest)?,
        None => (vec![], rest),
    };
    let new = columns(rest.strip_prefix("new-tuple: ").unwrap_or(rest))?.0;
    Some(Change { table, kind: Kind::Update, old, new })
}

/// `name[type]:value name[type]:value …`, up to the end or to `new-tuple:`.
fn columns(mut rest: &str) -> Option<(Vec<Column>, &str)> {
    let mut all = Vec::new();
    while !rest.is_empty() && !rest.starts_with("new-tuple: ") {
        let name = identifier(rest)?;
        rest = rest[name.len()..].strip_prefix('[')?;
        rest = &rest[rest.find("]:")? + 2..];
        let length = value_length(rest)?;
        let value = match &rest[..length] {
            "null" => Value::Null,
            "unchanged-toast-datum" => Value::Unchanged,
            quoted if quoted.starts_with('\'') || quoted.starts_with("B'") => Value::Literal(quoted.to_owned()),
            // Numbers stand bare, and so does NaN.
            bare => Value::Literal(format!("'{bare}'")),
        };
        all.push((name.to_owned(), value));
        rest = rest[length..].strip_prefix(' ').unwrap_or(&rest[length..]);
    }
    Some((all, rest))
}

/// The identifier that a text begins with, quotes included.
fn identifier(text: &str) -> Option<&str> {
    let length = if text.starts_with('"') { quoted_length(text, '"')? } else { text.find([':', '[', '.'])? };
    Some(&text[..length])
}

fn value_length(text: &str) -> Option<usize> {
    match text.strip_prefix('B') {
        Some(bits) if bits.starts_with('\'') => Some(1 + quoted_length(bits, '\'')?),
        _ if text.starts_with('\'') => quoted_length(text, '\''),
        _ => Some(text.find(' ').unwrap_or(text.len())),
    }
}

/// How long the quoted piece at the start is; a doubled quote is one inside.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut at = 1;
    loop {
        at += text[at..].find(quote)? + 1;
        if !text[at..].starts_with(quote) {
            return Some(at);
        }
        at += 1;
    }
}

#[test]
fn test_decoding_is_understood() {
    let literal = |text: &str| Value::Literal(text.to_owned());
    let line = "table public.\"Odd: [x]\": UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 \"a\"\"]: \"[text]:'it''s null ]: ' f[double precision]:NaN \
                b[bit]:B'101' big[text]:unchanged-toast-datum n[text]:null ia[integer[]]:'{1,NULL}'";
    let change = change(line).unwrap();
    assert_eq!((change.table.as_str(), change.kind), ("public.\"Odd: [x]\"", Kind::Update));
    assert_eq!(change.old, [("id".to_owned(), literal("'1'"))]);
    let values: Vec<Value> = change.new.iter().map(|(_, value)| value.clone()).collect();
    let expected = ["'2'", "'it''s null ]: '", "'NaN'", "B'101'"].map(literal);
    assert_eq!(values[..4], expected);
    assert_eq!(values[4..], [Value::Unchanged, Value::Null, literal("'{1,NULL}'")]);
    assert_eq!(change.new[1].0, "\"a\"\"]: \"");
    let truncate = super::decoding::change("table \"Odd: [x]\".t: TRUNCATE: restart_seqs").unwrap();
    assert_eq!((truncate.table.as_str(), truncate.kind), ("\"Odd: [x]\".t", Kind::Truncate));
}
