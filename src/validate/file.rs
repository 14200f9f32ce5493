//! One file against its row in the catalog.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::{max_string, min_string};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use duckpipe_storage::{ColumnStats, DataFileReader, Rows, StatsCollector, Store, field_id, read_delete_file};
use futures::TryStreamExt;

use super::finding::{Finding, FindingKind};
use super::is_broken_file;
use super::lake_rows::{Blamed, is_at_fault, unreadable};
use crate::error::{Error, Result};
use crate::lake::{CatalogFieldColumn, RegisteredDelete, RegisteredFile};

/// What a data file really holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// Its rows.
    pub(super) rows: u64,
    /// The columns that it has.
    pub(super) columns: Vec<HeldColumn>,
}

/// What a leaf column of a file really holds.
#[derive(Clone, Debug)]
pub(super) struct HeldColumn {
    /// Its name in the lake; a list's element goes by the list's.
    pub(super) name: String,
    /// Its DuckLake type.
    pub(super) lake_type: String,
    /// It is the element of a list.
    pub(super) nested: bool,
    /// Counts and bounds; texts have their bounds whatever their length.
    pub(super) stats: ColumnStats,
}

/// Looks at a data file: that it is there, opens, has the size, the rows and the columns that the catalog says, and can be read to its
/// end. `None` where it can't be read.
pub(super) async fn data_file(
    store: &Store,
    file: &RegisteredFile,
    table: &str,
    columns: &[CatalogFieldColumn],
    findings: &mut Vec<Finding>,
) -> Result<Option<Held>> {
    let Some(reader) = open(store, &file.path, (file.bytes, file.footer_bytes), table, findings).await? else {
        return Ok(None);
    };
    let rows = reader.rows();
    if Ok(rows) != u64::try_from(file.rows) {
        let detail = format!("{rows} rows, but the catalog says {}", file.rows);
        findings.push(Finding::new(FindingKind::RowCount, table, detail).file(&file.path));
    }
    let known = known_columns(&reader, file, table, columns, findings);
    let error = match collect(&reader, &known).await {
        Ok(columns) => return Ok(Some(Held { rows, columns })),
        Err(error) => at_fault(store, &file.path, error).await?,
    };
    // Which column is it?
    let mut named = false;
    for column in &known {
        if let Err(error) = collect(&reader, std::slice::from_ref(column)).await {
            let error = at_fault(store, &file.path, error).await?;
            findings.push(unreadable(table, &file.path, &error).column(&column.catalog.name));
            named = true;
        }
    }
    if !named {
        findings.push(unreadable(table, &file.path, &error));
    }
    Ok(None)
}

/// The error where it is the file's own; else it is passed on.
async fn at_fault(store: &Store, path: &str, error: Error) -> Result<Error> {
    let blamed = Blamed { path: path.to_owned(), error };
    match is_at_fault(store, &blamed).await {
        true => Ok(blamed.error),
        false => Err(blamed.error),
    }
}

/// Looks at a delete file; `rows` are the rows of its data file, where they are known.
pub(super) async fn delete_file(
    store: &Store,
    delete: &RegisteredDelete,
    table: &str,
    rows: Option<u64>,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    if delete.format != "parquet" {
        let detail = format!("deletes as {}, which duckpipe does not read", delete.format);
        findings.push(Finding::new(FindingKind::DeleteFiles, table, detail).file(&delete.path));
        return Ok(());
    }
    let size = (delete.bytes, delete.footer_bytes);
    if open(store, &delete.path, size, table, findings).await?.is_none() {
        return Ok(());
    }
    let deletes = match read_delete_file(store, &delete.path).await.map_err(Error::from) {
        Ok(deletes) => deletes,
        Err(error) => {
            let error = at_fault(store, &delete.path, error).await?;
            let kind = match error.to_string().contains("ascend") || error.to_string().contains("negative") {
                true => FindingKind::DeletePositions,
                false => FindingKind::FileUnreadable,
            };
            findings.push(Finding::new(kind, table, error.to_string()).file(&delete.path));
            return Ok(());
        }
    };
    if Ok(deletes.len()) != usize::try_from(delete.rows) {
        let detail = format!("{} positions, but the catalog says {}", deletes.len(), delete.rows);
        findings.push(Finding::new(FindingKind::DeleteCount, table, detail).file(&delete.path));
    }
    if let (Some((last, _)), Some(rows)) = (deletes.last(), rows)
        && *last >= rows
    {
        let detail = format!("position {last} is deleted in a file of {rows} rows");
        findings.push(Finding::new(FindingKind::DeletePositions, table, detail).file(&delete.path));
    }
    Ok(())
}

/// Opens a file and holds its size and its footer's against the catalog.
async fn open(
    store: &Store,
    path: &str,
    (bytes, footer_bytes): (i64, Option<i64>),
    table: &str,
    findings: &mut Vec<Finding>,
) -> Result<Option<DataFileReader>> {
    match store.size(path).await.map_err(Error::from) {
        Ok(None) => {
            findings.push(Finding::new(FindingKind::FileMissing, table, "the file is not in the store").file(path));
            return Ok(None);
        }
        Ok(Some(found)) if u64::try_from(bytes) != Ok(found) => {
            let detail = format!("{found} bytes, but the catalog says {bytes}");
            findings.push(Finding::new(FindingKind::FileSize, table, detail).file(path));
        }
        Err(error) if !is_broken_file(&error) => return Err(error),
        _ => {}
    }
    let reader = match DataFileReader::open(store, path).await.map_err(Error::from) {
        Ok(reader) => reader,
        Err(error) => {
            let error = at_fault(store, path, error).await?;
            findings.push(unreadable(table, path, &error));
            return Ok(None);
        }
    };
    if let Some(said) = footer_bytes
        && u64::try_from(said) != Ok(reader.footer_bytes())
    {
        let detail = format!("a footer of {} bytes, but the catalog says {said}", reader.footer_bytes());
        findings.push(Finding::new(FindingKind::FooterSize, table, detail).file(path));
    }
    Ok(Some(reader))
}

/// A column that file and catalog both have.
#[derive(Clone, Debug)]
struct KnownColumn {
    field: FieldRef,
    catalog: CatalogFieldColumn,
    element: Option<CatalogFieldColumn>,
}

/// The table's columns as the file has them; findings for those that it should have otherwise.
fn known_columns(
    reader: &DataFileReader,
    file: &RegisteredFile,
    table: &str,
    columns: &[CatalogFieldColumn],
    findings: &mut Vec<Finding>,
) -> Vec<KnownColumn> {
    let mut known = Vec::new();
    for column in columns.iter().filter(|column| column.parent.is_none()) {
        let of_id = |field: &&FieldRef| field_id(field).map(i64::from) == Some(column.id);
        let Some(field) = reader.fields().iter().find(of_id) else {
            // A file that is older than the column shows it as NULL.
            if file.begin_snapshot >= column.begin_snapshot && !file.mapped_by_name {
                let detail = format!("no column has the id {}", column.id);
                findings.push(Finding::new(FindingKind::Schema, table, detail).file(&file.path).column(&column.name));
            }
            continue;
        };
        let element = columns.iter().find(|child| child.parent == Some(column.id)).cloned();
        let fits = match (field.data_type(), &element) {
            (DataType::List(inner), Some(child)) => {
                column.lake_type == "list"
                    && field_id(inner).map(i64::from) == Some(child.id)
                    && fits(inner.data_type(), &child.lake_type)
            }
            (data_type, _) => fits(data_type, &column.lake_type),
        };
        if fits {
            known.push(KnownColumn { field: Arc::clone(field), catalog: column.clone(), element });
        } else {
            let lake_type = &column.lake_type;
            let detail = format!("the column is {} in the file and {lake_type} in the catalog", field.data_type());
            findings.push(Finding::new(FindingKind::Schema, table, detail).file(&file.path).column(&column.name));
        }
    }
    known
}

/// Whether values of a file's type are values of the lake's: the same type, or one that was widened since.
fn fits(data_type: &DataType, lake_type: &str) -> bool {
    use DataType as T;
    match lake_type {
        "boolean" => matches!(data_type, T::Boolean),
        "int8" => matches!(data_type, T::Int8),
        "int16" => matches!(data_type, T::Int8 | T::Int16 | T::UInt8),
        "int32" => matches!(data_type, T::Int8 | T::Int16 | T::Int32 | T::UInt8 | T::UInt16),
        "int64" => {
            matches!(data_type, T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32)
        }
        "uint32" => matches!(data_type, T::UInt8 | T::UInt16 | T::UInt32),
        "float32" => matches!(data_type, T::Float32),
        "float64" => matches!(data_type, T::Float32 | T::Float64),
        "varchar" | "json" => matches!(data_type, T::Utf8),
        "blob" => matches!(data_type, T::Binary),
        "date" => matches!(data_type, T::Date32),
        "time" => matches!(data_type, T::Time64(TimeUnit::Microsecond)),
        "timestamp" => matches!(data_type, T::Timestamp(TimeUnit::Microsecond, None)),
        "timestamptz" => matches!(data_type, T::Timestamp(TimeUnit::Microsecond, Some(_))),
        "uuid" => matches!(data_type, T::FixedSizeBinary(16)),
        decimal if decimal.starts_with("decimal(") => {
            let wanted = decimal.trim_start_matches("decimal(").trim_end_matches(')').split_once(',');
            let wanted = wanted.and_then(|(p, s)| Some((p.trim().parse::<u8>().ok()?, s.trim().parse::<i8>().ok()?)));
            matches!((data_type, wanted), (T::Decimal128(p, s), Some((wide, scale))) if *p <= wide && *s <= scale)
        }
        // A type that duckpipe does not write: nothing is known of it.
        _ => true,
    }
}

/// Reads columns whole, for what they hold.
async fn collect(reader: &DataFileReader, columns: &[KnownColumn]) -> Result<Vec<HeldColumn>> {
    let fields: Vec<FieldRef> = columns.iter().map(|column| in_known_form(&column.field)).collect();
    let mut collector = StatsCollector::new(&fields)?;
    let mut texts: Vec<Option<(String, String)>> = vec![None; fields.len()];
    let mut input = reader.read(Arc::new(Schema::new(fields)), Rows::All)?;
    while let Some(rows) = input.try_next().await? {
        collector.add(rows.batch.columns())?;
        for (bounds, array) in texts.iter_mut().zip(rows.batch.columns()) {
            widen_text(bounds, array);
        }
    }
    let stats = collector.finish(&vec![0; columns.len()]);
    let held = columns.iter().zip(stats).zip(texts).map(|((column, mut stats), text)| {
        if let Some((min, max)) = text {
            (stats.min, stats.max) = (Some(min), Some(max));
        }
        HeldColumn {
            name: column.catalog.name.clone(),
            lake_type: column.element.as_ref().unwrap_or(&column.catalog).lake_type.clone(),
            nested: column.element.is_some(),
            stats,
        }
    });
    Ok(held.collect())
}

/// A field as it is read: everything may be NULL.
fn in_known_form(field: &FieldRef) -> FieldRef {
    Arc::new(Field::clone(field).with_nullable(true))
}

fn widen_text(bounds: &mut Option<(String, String)>, array: &ArrayRef) {
    let Some(texts) = array.as_string_opt::<i32>() else { return };
    let (Some(min), Some(max)) = (min_string(texts), max_string(texts)) else { return };
    match bounds {
        None => *bounds = Some((min.to_owned(), max.to_owned())),
        Some((least, greatest)) => {
            if min < least.as_str() {
                *least = min.to_owned();
            }
            if max > greatest.as_str() {
                *greatest = max.to_owned();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_fits_itself_and_what_it_was_widened_to() {
        assert!(fits(&DataType::Int32, "int32") && fits(&DataType::Int32, "int64"));
        assert!(!fits(&DataType::Int64, "int32") && !fits(&DataType::Utf8, "blob"));
        assert!(
            fits(&DataType::Decimal128(10, 2), "decimal(12,2)") && !fits(&DataType::Decimal128(12, 2), "decimal(10,2)")
        );
        assert!(!fits(&DataType::Timestamp(TimeUnit::Microsecond, None), "timestamptz"));
    }
}
