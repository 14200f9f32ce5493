//! Rows of a table: one column builder per column of the layout, a policy for what they can't take, and roll-back.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::column::ColumnBuilder;
use super::layout::{LayoutColumn, TableLayout, TextSource};
use super::pgoutput::Value;
use super::value_error::{Fault, OnUnrepresentable, ValueError, prefix};
use crate::error::{Because, Error, ErrorKind, Result};

/// Which of Postgres' two ways a table's rows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// COPY, which casts columns to text where the layout says so: their bytes are then the final text.
    Copy,
    /// pgoutput, which prints them with their output function.
    Wal,
}

/// Rows on their way into a record batch.
pub(crate) struct RowBuilder {
    layout: Arc<TableLayout>,
    schema: SchemaRef,
    columns: Vec<ColumnBuilder>,
    is_key: Vec<bool>,
    origin: Origin,
    policy: OnUnrepresentable,
    /// Complete rows.
    rows: usize,
    bytes: usize,
    /// The least that a row takes in memory.
    row_width: usize,
    /// Values set to NULL by policy, in complete rows and in the open one.
    nulled: u64,
    nulled_in_row: u64,
    /// The complete rows since the last batch that hold such values: row, number of values.
    nulled_rows: Vec<(usize, u64)>,
}

impl RowBuilder {
    pub(crate) fn new(layout: Arc<TableLayout>, policy: OnUnrepresentable, origin: Origin) -> Self {
        let mut is_key = vec![false; layout.columns.len()];
        for &column in &layout.key {
            if let Some(is_key) = is_key.get_mut(column) {
                *is_key = true;
            }
        }
        RowBuilder {
            schema: layout.schema(),
            columns: layout.columns.iter().map(|column| builder(column, origin)).collect(),
            is_key,
            origin,
            policy,
            rows: 0,
            bytes: 0,
            row_width: layout.columns.iter().map(|column| ColumnBuilder::fixed_width(&column.column_type)).sum(),
            nulled: 0,
            nulled_in_row: 0,
            nulled_rows: Vec::new(),
            layout,
        }
    }

    pub(crate) fn layout(&self) -> &TableLayout {
        &self.layout
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn nulled(&self) -> u64 {
        self.nulled
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Appends the open row's value of a column. After a failure the row must be rolled back.
    #[inline]
    pub(crate) fn append(&mut self, column: usize, value: Value<'_>) -> Result<(), Fault> {
        let builder = &mut self.columns[column];
        let appended = match value {
            Value::Binary(bytes) => builder.append_binary(bytes),
            Value::Text(text) => builder.append_text(text),
            Value::Null | Value::Unchanged => {
                builder.append_null();
                Ok(())
            }
        };
        match appended {
            Ok(()) => Ok(()),
            Err(fault) => self.refused(column, fault),
        }
    }

    #[cold]
    fn refused(&mut self, column: usize, fault: Fault) -> Result<(), Fault> {
        if self.policy == OnUnrepresentable::Null && fault.is_unrepresentable() && !self.is_key[column] {
            self.columns[column].append_null();
            self.nulled_in_row += 1;
            return Ok(());
        }
        Err(fault)
    }

    /// Ends the open row, all of whose columns were appended. `sent` is the size that it had on the wire.
    #[inline]
    pub(crate) fn end_row(&mut self, sent: usize) {
        self.rows += 1;
        self.bytes += sent.max(self.row_width);
        if self.nulled_in_row > 0 {
            self.nulled_rows.push((self.rows - 1, self.nulled_in_row));
            self.nulled += self.nulled_in_row;
            self.nulled_in_row = 0;
        }
    }

    /// Takes back the open row.
    #[cold]
    pub(crate) fn roll_back(&mut self) {
        let rows = self.rows;
        self.columns.iter_mut().for_each(|column| column.truncate(rows));
        self.nulled_in_row = 0;
    }

    /// Takes back complete rows too, down to `rows` of them, which together counted `bytes`.
    #[cold]
    pub(crate) fn roll_back_to(&mut self, rows: usize, bytes: usize, nulled: u64) {
        self.rows = rows;
        self.bytes = bytes;
        self.nulled = nulled;
        self.nulled_rows.retain(|(row, _)| *row < rows);
        self.roll_back();
    }

    /// What is wrong with a value, with the row's key, whose values `value_of` gives.
    #[cold]
    pub(crate) fn value_error<'a>(
        &self,
        column: usize,
        fault: Fault,
        value_of: impl Fn(usize) -> Value<'a>,
    ) -> ValueError {
        let key: Option<Vec<String>> = self
            .layout
            .key
            .iter()
            .map(|&index| {
                let column = &self.layout.columns[index];
                printed(column, self.origin, value_of(index)).map(|value| format!("{}={value}", column.name))
            })
            .collect();
        ValueError {
            column: self.layout.columns[column].name.clone(),
            reason: fault.into_reason(),
            key: key.map(|key| key.join(", ")).filter(|key| !key.is_empty()),
        }
    }

    /// The rows of the next batch that hold nulled values, and how many each.
    pub(crate) fn nulled_rows(&self) -> &[(usize, u64)] {
        &self.nulled_rows
    }

    /// All complete rows as a batch; the builder is empty again, but for the count of nulled values.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch> {
        self.rows = 0;
        self.nulled_rows.clear();
        self.bytes = 0;
        let arrays: Result<Vec<ArrayRef>, _> = self.columns.iter_mut().map(ColumnBuilder::finish).collect();
        arrays
            .and_then(|arrays| RecordBatch::try_new(self.schema.clone(), arrays))
            .because(ErrorKind::Internal, || format!("making a record batch of {}", self.layout.table))
    }
}

fn builder(column: &LayoutColumn, origin: Origin) -> ColumnBuilder {
    let already_text = origin == Origin::Copy && column.cast_to_text;
    let source = if already_text { TextSource::AsSent } else { column.text_source };
    ColumnBuilder::new(&column.column_type, column.delimiter, source)
}

/// A value in Postgres' own text, as an array of one.
///
/// # Errors
/// Kind `Table` where the column's lake type can't hold it.
pub(crate) fn value_of_text(column: &LayoutColumn, text: &str) -> Result<ArrayRef> {
    let mut builder = builder(column, Origin::Wal);
    let failed = |fault: Fault| Error::new(ErrorKind::Table, format!("{text:?}: {}", fault.into_reason()));
    builder.append_text(text.as_bytes()).map_err(failed)?;
    builder.finish().because(ErrorKind::Internal, || "making an array of one value".into())
}

/// One value as a person reads it, shortened; `None` where it can't be read.
fn printed(column: &LayoutColumn, origin: Origin, value: Value<'_>) -> Option<String> {
    let mut scratch = builder(column, origin);
    match value {
        Value::Null | Value::Unchanged => return None,
        Value::Binary(bytes) => scratch.append_binary(bytes).ok()?,
        Value::Text(text) => scratch.append_text(text).ok()?,
    }
    let mut array = scratch.finish().ok()?;
    if let Some(moments) = array.as_primitive_opt::<TimestampMicrosecondType>() {
        // Arrow knows "UTC" only with a database of time zones.
        array = Arc::new(moments.clone().with_timezone_opt(None::<Arc<str>>));
    }
    let formatter = ArrayFormatter::try_new(&array, &FormatOptions::default()).ok()?;
    // Arrow can't print the lake's infinite dates and timestamps.
    let text = formatter.value(0).try_to_string().unwrap_or_else(|_| "?".to_owned());
    Some(prefix(text.as_bytes()))
}
