//! Aligned text for terminals.

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// For words.
    Left,
    /// For numbers.
    Right,
}

/// Rows of cells under headings, aligned, two spaces apart.
pub(crate) struct Table {
    headings: Vec<String>,
    aligns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new<H: Into<String> + Clone>(columns: &[(H, Align)]) -> Table {
        let headings = columns.iter().map(|(heading, _)| heading.clone().into()).collect();
        Table { headings, aligns: columns.iter().map(|(_, align)| *align).collect(), rows: Vec::new() }
    }

    /// Adds a row, with one cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text, each line ended; no spaces at the end of a line.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.chain([&self.headings[column]]).map(|cell| width(cell)).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
        for row in [&self.headings, &rule].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for ((cell, align), wanted) in row.iter().zip(&self.aligns).zip(&widths) {
                let space = " ".repeat(wanted.saturating_sub(width(cell)));
                match align {
                    Align::Left => line.extend([cell.as_str(), &space, "  "]),
                    Align::Right => line.extend([space.as_str(), cell, "  "]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The columns that a text takes on a terminal.
pub(crate) fn width(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separates_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn aligns() {
        let mut table = Table::new(&[("name", Align::Left), ("n", Align::Right)]);
        table.row(vec!["größe".into(), "1".into()]);
        table.row(vec!["b".into(), "1000".into()]);
        assert_eq!(table.render(), "name      n\n─────  ────\ngröße     1\nb      1000\n");
    }
}
