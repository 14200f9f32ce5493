//! The rows of a query as text: aligned, as CSV or as JSON.
//!
//! Values arrive as the text that DuckDB's CAST to VARCHAR gives. In JSON, booleans, integers up to 64 bits and finite
//! floats are bare; DECIMAL, HUGEINT and everything else are strings, because a JSON reader's double would round them;
//! JSON columns stand as they are; lists, structs and maps are what DuckDB's `to_json` makes of them.

use std::io::{self, Write};

use clap::ValueEnum;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How the rows of a query are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns for people; long values are cut.
    Table,
    /// RFC 4180 with a heading, but lines end in LF, as psql writes them; NULL is empty, an empty text is "".
    Csv,
    /// One array of objects.
    Json,
}

/// Rows that decide the widths of a table; later ones may be wider.
const MEASURED_ROWS: usize = 1000;
/// The widest that a cell of a table is, in terminal columns.
const WIDEST: usize = 60;

/// A column of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Booleans and integers that JSON readers hold exactly enough to be bare.
    Bare,
    /// Numbers that are bare unless they are NaN or infinite.
    Float,
    /// Numbers that only a string holds exactly.
    Exact,
    Json,
    Nested,
    Text,
}

impl Column {
    /// A column by its name and DuckDB's name of its type.
    pub(super) fn new(name: String, duckdb_type: String) -> Column {
        let kind = match duckdb_type.as_str() {
            "BOOLEAN" | "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" | "UTINYINT" | "USMALLINT" | "UINTEGER"
            | "UBIGINT" => Kind::Bare,
            "FLOAT" | "DOUBLE" => Kind::Float,
            "HUGEINT" | "UHUGEINT" | "BIGNUM" => Kind::Exact,
            "JSON" => Kind::Json,
            text if text.ends_with(']')
                || ["STRUCT(", "MAP(", "UNION("].iter().any(|start| text.starts_with(start)) =>
            {
                Kind::Nested
            }
            text if text.starts_with("DECIMAL(") => Kind::Exact,
            _ => Kind::Text,
        };
        Column { name, kind }
    }

    /// The SQL expression that makes the column's text.
    pub(super) fn expression(&self, format: OutputFormat, column: &str) -> String {
        match (format, self.kind) {
            (OutputFormat::Json, Kind::Nested) => format!("to_json({column})::VARCHAR"),
            _ => format!("{column}::VARCHAR"),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self.kind, Kind::Bare | Kind::Float | Kind::Exact)
    }
}

/// Writes rows to `out`.
pub(super) struct Writer<W: Write> {
    format: OutputFormat,
    columns: Vec<Column>,
    out: io::BufWriter<W>,
    /// A table's first rows, until their widths are known.
    held: Vec<Vec<Option<String>>>,
    widths: Option<Vec<usize>>,
    written: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(format: OutputFormat, columns: Vec<Column>, out: W) -> Writer<W> {
        let out = io::BufWriter::with_capacity(1 << 16, out);
        Writer { format, columns, out, held: Vec::new(), widths: None, written: 0 }
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub(super) fn format(&self) -> OutputFormat {
        self.format
    }

    /// What stands before the first row.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        match self.format {
            OutputFormat::Table => Ok(()),
            OutputFormat::Json => self.out.write_all(b"["),
            OutputFormat::Csv => {
                let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
                write_csv(&mut self.out, names.into_iter().map(Some))
            }
        }
    }

    /// One row; `None` is NULL.
    pub(super) fn row<'a>(&mut self, cells: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
        self.written += 1;
        match self.format {
            OutputFormat::Csv => write_csv(&mut self.out, cells),
            OutputFormat::Json => self.json_row(cells),
            OutputFormat::Table => {
                let cells: Vec<Option<String>> = cells.map(|cell| cell.map(shortened)).collect();
                if self.widths.is_some() {
                    return self.table_row(&cells);
                }
                self.held.push(cells);
                if self.held.len() >= MEASURED_ROWS { self.table_begin() } else { Ok(()) }
            }
        }
    }

    /// What stands after the last row.
    pub(super) fn end(&mut self, count: u64) -> io::Result<()> {
        match self.format {
            OutputFormat::Csv => {}
            OutputFormat::Json => self.out.write_all(if self.written == 0 { b"]\n" } else { b"\n]\n" })?,
            OutputFormat::Table => {
                if self.widths.is_none() {
                    self.table_begin()?;
                }
                writeln!(self.out, "({count} {})", if count == 1 { "row" } else { "rows" })?;
            }
        }
        self.out.flush()
    }

    fn json_row<'a>(&mut self, cells: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
        self.out.write_all(if self.written == 1 { b"\n{" } else { b",\n{" })?;
        for (index, (column, cell)) in self.columns.iter().zip(cells).enumerate() {
            if index > 0 {
                self.out.write_all(b", ")?;
            }
            write_json_text(&mut self.out, &column.name)?;
            self.out.write_all(b": ")?;
            match cell {
                None => self.out.write_all(b"null")?,
                Some(text) if is_bare(column.kind, text) => self.out.write_all(text.as_bytes())?,
                Some(text) => write_json_text(&mut self.out, text)?,
            }
        }
        self.out.write_all(b"}")
    }

    fn table_begin(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let width = |(index, column): (usize, &Column)| {
            let cells =
                held.iter().map(|row| row.get(index).map_or(0, |cell| cell.as_deref().unwrap_or("NULL").width()));
            cells.chain([shortened(&column.name).width()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = self.columns.iter().enumerate().map(width).collect();
        let rule: Vec<Option<String>> = widths.iter().map(|width| Some("─".repeat(*width))).collect();
        self.widths = Some(widths);
        let names: Vec<Option<String>> = self.columns.iter().map(|column| Some(shortened(&column.name))).collect();
        for row in [names, rule].iter().chain(&held) {
            self.table_row(row)?;
        }
        Ok(())
    }

    fn table_row(&mut self, cells: &[Option<String>]) -> io::Result<()> {
        let mut line = String::new();
        let widths = self.widths.as_deref().unwrap_or_default();
        for ((column, cell), wanted) in self.columns.iter().zip(cells).zip(widths) {
            let cell = cell.as_deref().unwrap_or("NULL");
            let space = " ".repeat(wanted.saturating_sub(cell.width()));
            let (before, after) = if column.is_number() { (space.as_str(), "") } else { ("", space.as_str()) };
            line.extend([before, cell, after, "  "]);
        }
        self.out.write_all(line.trim_end().as_bytes())?;
        self.out.write_all(b"\n")
    }
}

fn is_bare(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Bare => true,
        Kind::Float => !text.ends_with(['n', 'f', 'y']),
        // A file that another program wrote may hold anything.
        Kind::Json | Kind::Nested => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        Kind::Exact | Kind::Text => false,
    }
}

fn write_json_text(out: &mut impl Write, text: &str) -> io::Result<()> {
    serde_json::to_writer(out, text).map_err(io::Error::from)
}

/// As RFC 4180, but LF ends a record; a field with a comma, a quote or a line end stands in quotes. NULL is nothing, and an empty
/// text is two quotes, so that the two differ.
fn write_csv<'a>(out: &mut impl Write, cells: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
    for (index, cell) in cells.enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        match cell {
            None => {}
            Some(text) if text.is_empty() || text.contains([',', '"', '\r', '\n']) => {
                write!(out, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\n")
}

/// At most [`WIDEST`] terminal columns, without anything that moves a terminal's cursor.
fn shortened(text: &str) -> String {
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let shown: Vec<char> = match c {
            '\n' => vec!['↵'],
            '\t' => vec![' '],
            c if c.is_control() => c.escape_default().collect(),
            c => vec![c],
        };
        let more: usize = shown.iter().map(|c| c.width().unwrap_or(0)).sum();
        if used + more > WIDEST {
            while used >= WIDEST {
                used -= out.pop().and_then(|c| c.width()).unwrap_or(0);
            }
            out.push('…');
            return out;
        }
        used += more;
        out.extend(shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: OutputFormat, columns: &[(&str, &str)], rows: &[&[Option<&str>]]) -> String {
        let columns = columns.iter().map(|(name, kind)| Column::new((*name).into(), (*kind).into())).collect();
        let mut bytes = Vec::new();
        let mut writer = Writer::new(format, columns, &mut bytes);
        writer.begin().unwrap();
        for row in rows {
            writer.row(row.iter().copied()).unwrap();
        }
        writer.end(rows.len() as u64).unwrap();
        drop(writer);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn csv_follows_the_rfc() {
        let got = written(
            OutputFormat::Csv,
            &[("a", "VARCHAR"), ("b,c", "VARCHAR")],
            &[&[Some("x\"y\nz"), None], &[Some(""), Some("1")]],
        );
        assert_eq!(got, "a,\"b,c\"\n\"x\"\"y\nz\",\n\"\",1\n");
    }

    #[test]
    fn json_is_valid_and_exact() {
        let columns = [
            ("i", "BIGINT"),
            ("d", "DECIMAL(38,2)"),
            ("f", "DOUBLE"),
            ("j", "JSON"),
            ("l", "INTEGER[]"),
            ("t", "VARCHAR"),
            ("b", "BOOLEAN"),
        ];
        let rows: &[&[Option<&str>]] = &[
            &[
                Some("9223372036854775807"),
                Some("12345678901234567890.10"),
                Some("1e+300"),
                Some("{\"a\": 1}"),
                Some("[1,null]"),
                Some("\"\u{1}"),
                Some("true"),
            ],
            &[None, None, Some("-inf"), Some("broken"), None, Some("nan"), None],
        ];
        let got = written(OutputFormat::Json, &columns, rows);
        let value: serde_json::Value = serde_json::from_str(&got).unwrap();
        assert_eq!(value[0]["i"].to_string(), "9223372036854775807");
        assert_eq!(value[0]["d"], "12345678901234567890.10");
        assert_eq!(value[0]["j"]["a"], 1);
        assert_eq!(value[0]["l"][1], serde_json::Value::Null);
        assert_eq!((value[1]["f"].as_str(), value[1]["j"].as_str()), (Some("-inf"), Some("broken")));
        assert_eq!(written(OutputFormat::Json, &columns, &[]), "[]\n");
    }

    #[test]
    fn tables_are_aligned_and_cut() {
        let long = "x".repeat(200);
        let got = written(
            OutputFormat::Table,
            &[("n", "INTEGER"), ("text", "VARCHAR")],
            &[&[Some("1"), Some("a\nb\u{1b}[2J")], &[Some("1000"), Some(&long)], &[None, Some("größe 字")]],
        );
        let lines: Vec<&str> = got.lines().collect();
        assert_eq!(lines[0], "   n  text");
        assert_eq!(lines[2], "   1  a↵b\\u{1b}[2J");
        assert_eq!(lines[3], format!("1000  {}…", "x".repeat(59)));
        assert_eq!(lines[4], "NULL  größe 字");
        assert_eq!(lines[5], "(3 rows)");
    }
}
