//! Statistics of whole tables, widened by those of new files.
//!
//! DuckLake removes whole filters by them, so a bound that does not hold every value loses rows silently. What is not known
//! must be absent: a missing row is "unknown" to DuckLake and stays so under its own INSERTs, while a row with NULL bounds is
//! "only NULLs so far", whose place the next INSERT's bounds take.

use std::cmp::Ordering;
use std::collections::HashMap;

use duckpipe_storage::DataFile;

use super::session::Session;
use super::table::CatalogColumn;
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::sql::literal;

/// A row of `ducklake_table_column_stats`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableColumnStats {
    pub(super) contains_null: Option<bool>,
    pub(super) contains_nan: Option<bool>,
    pub(super) min: Option<String>,
    pub(super) max: Option<String>,
}

/// What becomes of a column's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Keep,
    Write(TableColumnStats),
    /// A bound is unknown from now on.
    Remove,
}

/// How the texts of a type's values compare.
enum Order {
    Integer,
    Text,
    /// Only DuckDB knows: the type's name in its SQL.
    Cast(String),
    /// Bounds of this type are not used.
    Unknown,
}

impl Order {
    fn of(lake_type: &str) -> Order {
        match lake_type {
            "int8" | "int16" | "int32" | "int64" | "uint8" | "uint16" | "uint32" | "uint64" => Order::Integer,
            "boolean" | "varchar" | "json" => Order::Text,
            "float32" => Order::Cast("FLOAT".into()),
            "float64" => Order::Cast("DOUBLE".into()),
            "date" | "time" | "timestamp" | "timestamptz" | "uuid" => Order::Cast(lake_type.to_uppercase()),
            decimal if decimal.starts_with("decimal(") => Order::Cast(decimal.to_uppercase()),
            _ => Order::Unknown,
        }
    }
}

/// A comparison that DuckDB has to make, and where its answer belongs.
struct Question {
    column: usize,
    greatest: bool,
    cast: String,
    values: Vec<String>,
}

/// The row of each of the table's columns after `files` were added.
///
/// `current` holds the rows that there are; `had_data` says whether the table ever had any: if not, a missing row is not
/// "unknown" but "nothing yet".
pub(super) fn widen(
    session: &Session,
    columns: &[CatalogColumn],
    current: &HashMap<i64, TableColumnStats>,
    had_data: bool,
    files: &[DataFile],
) -> Result<Vec<(i64, Change)>> {
    let mut changes: Vec<(i64, Change)> = Vec::new();
    let mut questions = Vec::new();
    // A list or struct has no values of its own; its leaves have.
    let leaves = columns.iter().filter(|column| !columns.iter().any(|child| child.parent == Some(column.id)));
    for column in leaves {
        let old = match (current.get(&column.id), had_data) {
            (None, true) => continue,
            (None, false) => None,
            (Some(old), _) => Some(old),
        };
        let at = changes.len();
        changes.push((column.id, fold(column, old, files, at, &mut questions)));
    }
    answer(session, &questions, &mut changes)?;
    for (column_id, change) in &mut changes {
        if matches!(change, Change::Write(new) if current.get(column_id) == Some(new)) {
            *change = Change::Keep;
        }
    }
    Ok(changes)
}

fn fold(
    column: &CatalogColumn,
    old: Option<&TableColumnStats>,
    files: &[DataFile],
    at: usize,
    questions: &mut Vec<Question>,
) -> Change {
    let order = Order::of(&column.lake_type);
    let floating = column.lake_type.starts_with("float");
    let mut new = old.cloned().unwrap_or(TableColumnStats {
        contains_null: Some(false),
        contains_nan: floating.then_some(false),
        ..TableColumnStats::default()
    });
    // A row without bounds that knows of a NaN has lost its bounds to it.
    let lost = new.contains_nan == Some(true) && new.min.is_none();
    let mut mins: Vec<String> = new.min.take().into_iter().collect();
    let mut maxs: Vec<String> = new.max.take().into_iter().collect();
    if mins.len() != maxs.len() || lost {
        return Change::Remove;
    }
    for file in files.iter().filter(|file| file.rows > 0) {
        let Some(stats) = file.columns.iter().find(|stats| i64::from(stats.field_id) == column.id) else {
            // The file does not have the column: all its values are NULL.
            new.contains_null = Some(true);
            continue;
        };
        if stats.nulls > 0 {
            new.contains_null = new.contains_null.map(|_| true);
        }
        if stats.values == 0 {
            continue;
        }
        if floating {
            match (new.contains_nan, stats.contains_nan) {
                (Some(before), Some(now)) => new.contains_nan = Some(before || now),
                _ => return Change::Remove,
            }
        }
        match (&stats.min, &stats.max) {
            (Some(min), Some(max)) => {
                mins.push(min.clone());
                maxs.push(max.clone());
            }
            _ => return Change::Remove,
        }
    }
    if !mins.is_empty() {
        match order {
            Order::Unknown => return Change::Remove,
            Order::Text => {
                new.min = mins.into_iter().min();
                new.max = maxs.into_iter().max();
            }
            Order::Integer => {
                let number = |text: &String| text.parse::<i128>().ok();
                if mins.iter().chain(&maxs).any(|text| number(text).is_none()) {
                    return Change::Remove;
                }
                let compare = |a: &String, b: &String| number(a).cmp(&number(b));
                new.min = mins.into_iter().min_by(compare);
                new.max = maxs.into_iter().max_by(compare);
            }
            Order::Cast(cast) => {
                for (greatest, mut values, slot) in [(false, mins, &mut new.min), (true, maxs, &mut new.max)] {
                    values.sort();
                    values.dedup();
                    if values.len() > 1 {
                        questions.push(Question { column: at, greatest, cast: cast.clone(), values });
                    } else {
                        *slot = values.pop();
                    }
                }
            }
        }
    }
    Change::Write(new)
}

/// Lets DuckDB's own casts compare, all questions in one statement.
fn answer(session: &Session, questions: &[Question], changes: &mut [(i64, Change)]) -> Result<()> {
    if questions.is_empty() {
        return Ok(());
    }
    let expressions = questions.iter().map(|question| {
        let function = if question.greatest { "greatest" } else { "least" };
        let values = question.values.iter().map(|value| format!("CAST({} AS {})", literal(value), question.cast));
        format!("CAST({function}({}) AS VARCHAR)", values.collect::<Vec<_>>().join(", "))
    });
    let sql = format!("SELECT [{}]", expressions.collect::<Vec<_>>().join(", "));
    // One column per answer would do too; a list keeps the reading in one place.
    let sql = format!("SELECT unnest(({sql}))");
    let answers = session
        .rows(&sql, |row| row.get::<_, Option<String>>(0))
        .context(|| "comparing the bounds of statistics".into())?;
    if answers.len().cmp(&questions.len()) != Ordering::Equal {
        return Err(Error::new(ErrorKind::Internal, "DuckDB compared other bounds than it was asked to"));
    }
    for (question, answer) in questions.iter().zip(answers) {
        if let Change::Write(new) = &mut changes[question.column].1 {
            match question.greatest {
                true => new.max = answer,
                false => new.min = answer,
            }
        }
    }
    Ok(())
}
