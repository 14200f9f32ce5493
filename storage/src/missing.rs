//! Columns that a file does not have, because it was written before they were added.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, FixedSizeBinaryArray, StringArray, UInt32Array, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use uuid::Uuid;

use crate::error::{Result, StorageError};

/// The key in a field's metadata under which stands what rows show that are older than the column, as DuckDB prints the value
/// (`ducklake_column.initial_default`). Without it they show NULL.
pub const INITIAL_DEFAULT: &str = "ducklake:initial_default";

/// The one value that all rows of a file have in a column that the file lacks.
pub(crate) fn value(field: &Field) -> Result<ArrayRef> {
    let Some(text) = field.metadata().get(INITIAL_DEFAULT) else { return Ok(new_null_array(field.data_type(), 1)) };
    let failed = |why: String| StorageError::invalid(field.name().as_str(), format!("the default {text:?}: {why}"));
    let parsed: std::result::Result<ArrayRef, ArrowError> = match field.data_type() {
        DataType::Utf8 => Ok(Arc::new(StringArray::from(vec![text.as_str()]))),
        DataType::FixedSizeBinary(16) => {
            let uuid = Uuid::parse_str(text).map_err(|error| failed(error.to_string()))?;
            FixedSizeBinaryArray::try_from_iter(std::iter::once(uuid.into_bytes())).map(|array| Arc::new(array) as _)
        }
        DataType::Binary => {
            let bytes = blob(text).ok_or_else(|| failed("no bytes as DuckDB prints them".into()))?;
            Ok(Arc::new(BinaryArray::from(vec![bytes.as_slice()])))
        }
        DataType::List(_) => return Err(failed("a list has none".into())),
        other => {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(&StringArray::from(vec![text.as_str()]), other, &options)
        }
    };
    parsed.map_err(|error| failed(error.to_string()))
}

/// So many rows of the value.
pub(crate) fn rows(value: &ArrayRef, rows: usize) -> std::result::Result<ArrayRef, ArrowError> {
    take(value, &UInt32Array::from(vec![0; rows]), None)
}

/// DuckDB's text of a BLOB: printable ASCII as it is, every other byte as `\xAB`.
fn blob(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'\\' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let hex = std::str::from_utf8(after.get(1..3)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok().filter(|_| after[0] == b'x')?);
        rest = &after[3..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Decimal128Type, Float64Type, TimeUnit, TimestampMicrosecondType};

    use super::*;
    use crate::value_text;

    fn of(data_type: DataType, text: &str) -> Result<ArrayRef> {
        let metadata = [(INITIAL_DEFAULT.to_owned(), text.to_owned())].into();
        value(&Field::new("c", data_type, true).with_metadata(metadata))
    }

    #[test]
    fn a_value_is_what_its_text_says() {
        let zone = Some("UTC".into());
        for (data_type, text) in [
            (DataType::Boolean, "true"),
            (DataType::Int16, "-7"),
            (DataType::Int64, "9223372036854775807"),
            (DataType::UInt32, "4294967295"),
            (DataType::Float32, "0.1"),
            (DataType::Float64, "1e+300"),
            (DataType::Decimal128(10, 2), "-0.05"),
            (DataType::Utf8, "it's"),
            (DataType::Date32, "0001-02-03"),
            (DataType::Time64(TimeUnit::Microsecond), "23:59:59.000001"),
            (DataType::Timestamp(TimeUnit::Microsecond, None), "2024-02-29 12:00:00.5"),
            (DataType::Timestamp(TimeUnit::Microsecond, zone), "2024-02-29 12:00:00+00"),
            (DataType::FixedSizeBinary(16), "6e0cf3e4-2b6d-4b5b-9d3f-0a1b2c3d4e5f"),
        ] {
            let found = rows(&of(data_type.clone(), text).unwrap(), 3).unwrap();
            assert_eq!((found.len(), found.data_type()), (3, &data_type));
            assert_eq!(value_text(&found, 2).as_deref(), Some(text), "{data_type}");
        }
        let bytes = of(DataType::Binary, "a\\x00\\xFFb").unwrap();
        assert_eq!(bytes.as_binary::<i32>().value(0), b"a\x00\xFFb");
        let exact = of(DataType::Decimal128(38, 0), "99999999999999999999999999999999999999").unwrap();
        assert_eq!(exact.as_primitive::<Decimal128Type>().value(0), 10i128.pow(38) - 1);
        let old = of(DataType::Timestamp(TimeUnit::Microsecond, None), "0001-01-01 00:00:00").unwrap();
        assert_eq!(old.as_primitive::<TimestampMicrosecondType>().value(0), -62_135_596_800_000_000);
        assert_eq!(of(DataType::Float64, "-0.0").unwrap().as_primitive::<Float64Type>().value(0).to_bits(), 1 << 63);
    }

    #[test]
    fn without_a_default_it_is_null_and_a_wrong_one_is_an_error() {
        let array = value(&Field::new("c", DataType::Int32, true)).unwrap();
        assert!(array.is_null(0) && rows(&array, 2).unwrap().null_count() == 2);
        for (data_type, text) in [
            (DataType::Int32, "seven"),
            (DataType::Int16, "70000"),
            (DataType::FixedSizeBinary(16), "x"),
            (DataType::Binary, "\\x0"),
            (DataType::Decimal128(4, 2), "1000"),
        ] {
            assert!(of(data_type.clone(), text).is_err(), "{data_type}: {text}");
        }
    }
}
