//! What a catalog wants to know of each column of a file, computed while the file is written.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StringArray};
use arrow::compute;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt32Type, UInt64Type,
};
use serde::{Deserialize, Serialize};

use crate::error::{Result, StorageError};
use crate::fields::require_field_id;
use crate::stats_text::value_text;

/// Longer texts give no bounds: a shortened maximum would have to be rounded up.
const LONGEST_TEXT: usize = 64;

/// What a catalog stores of one leaf column of a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnStats {
    /// The lake's id of the column; for a list, that of its element.
    pub field_id: i32,
    /// The column's compressed size in the file, in bytes.
    pub bytes: u64,
    /// How many values are not NULL.
    pub values: u64,
    /// How many values are NULL; in a list only its elements count.
    pub nulls: u64,
    /// The smallest value, as DuckDB's `CAST(x AS VARCHAR)` prints it. `None` together with `max`: unknown.
    pub min: Option<String>,
    /// The largest value.
    pub max: Option<String>,
    /// For floating point: whether any value is NaN. There are no bounds then.
    pub contains_nan: Option<bool>,
}

/// The statistics of one file's columns, growing batch by batch.
#[derive(Debug)]
pub struct StatsCollector {
    columns: Vec<Leaf>,
}

/// The statistics of one leaf column.
#[derive(Debug)]
pub(crate) struct Leaf {
    field_id: i32,
    values: u64,
    nulls: u64,
    bounds: Bounds,
    contains_nan: Option<bool>,
}

#[derive(Debug)]
enum Bounds {
    /// No value yet.
    Empty,
    /// Arrays of one value each.
    Known { min: ArrayRef, max: ArrayRef },
    /// There are none: by type, or because of a value that was seen.
    Unknown,
}

impl StatsCollector {
    /// For columns of these fields, which carry their ids.
    pub fn new<'a>(fields: impl IntoIterator<Item = &'a Arc<Field>>) -> Result<StatsCollector> {
        let columns = fields.into_iter().map(|field| Leaf::new(field)).collect::<Result<_>>()?;
        Ok(StatsCollector { columns })
    }

    /// Adds a batch's columns, in the order of the fields.
    pub fn add(&mut self, columns: &[ArrayRef]) -> Result<()> {
        self.columns.iter_mut().zip(columns).try_for_each(|(leaf, array)| leaf.add(array))
    }

    /// Each column, in the order of the fields.
    pub(crate) fn columns(&mut self) -> impl Iterator<Item = &mut Leaf> + Send {
        self.columns.iter_mut()
    }

    /// `bytes`: the compressed size of each leaf column, in order.
    pub fn finish(self, bytes: &[u64]) -> Vec<ColumnStats> {
        self.columns.into_iter().zip(bytes).map(|(leaf, bytes)| leaf.finish(*bytes)).collect()
    }
}

impl Leaf {
    fn new(field: &Field) -> Result<Leaf> {
        if let DataType::List(element) = field.data_type() {
            let leaf = Leaf::new(element)?;
            return Ok(Leaf { bounds: Bounds::Unknown, ..leaf });
        }
        let bounds = match field.data_type() {
            DataType::Boolean
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt32
            | DataType::UInt64
            | DataType::Float32
            | DataType::Float64
            | DataType::Decimal128(..)
            | DataType::Utf8
            | DataType::Date32
            | DataType::Time64(TimeUnit::Microsecond)
            | DataType::Timestamp(TimeUnit::Microsecond, _)
            | DataType::FixedSizeBinary(16) => Bounds::Empty,
            _ => Bounds::Unknown,
        };
        let contains_nan = matches!(field.data_type(), DataType::Float32 | DataType::Float64).then_some(false);
        Ok(Leaf { field_id: require_field_id(field)?, values: 0, nulls: 0, bounds, contains_nan })
    }

    /// Adds a batch's values of this column.
    pub(crate) fn add(&mut self, array: &ArrayRef) -> Result<()> {
        if let DataType::List(_) = array.data_type() {
            let list = array.as_list::<i32>();
            let (first, last) = (list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize);
            return self.add(&list.values().slice(first, last - first));
        }
        let nulls = array.null_count();
        self.nulls += nulls as u64;
        self.values += (array.len() - nulls) as u64;
        if let Some(contains_nan) = &mut self.contains_nan {
            *contains_nan |= has_nan(array);
        }
        if nulls == array.len() || matches!(self.bounds, Bounds::Unknown) {
            return Ok(());
        }
        let mut found = extremes(array);
        if let (Bounds::Known { min: old_min, max: old_max }, Some((min, max))) = (&self.bounds, &found) {
            let joined = compute::concat(&[old_min, old_max, min, max])
                .map_err(|error| StorageError::invalid("statistics", error.to_string()))?;
            found = extremes(&joined);
        }
        self.bounds = match found {
            Some((min, max)) => Bounds::Known { min, max },
            None => Bounds::Unknown,
        };
        Ok(())
    }

    fn finish(self, bytes: u64) -> ColumnStats {
        let bounds = match &self.bounds {
            Bounds::Known { min, max } => value_text(min, 0).zip(value_text(max, 0)),
            _ => None,
        };
        let (min, max) = bounds.unzip();
        ColumnStats {
            field_id: self.field_id,
            bytes,
            values: self.values,
            nulls: self.nulls,
            min,
            max,
            contains_nan: self.contains_nan,
        }
    }
}

/// The smallest and the largest value of an array that has any, as arrays of one value; `None` where no bounds may be given.
fn extremes(array: &ArrayRef) -> Option<(ArrayRef, ArrayRef)> {
    match array.data_type() {
        DataType::Boolean => {
            let array = array.as_boolean();
            let one = |value| Arc::new(BooleanArray::from(vec![value])) as ArrayRef;
            compute::min_boolean(array).map(one).zip(compute::max_boolean(array).map(one))
        }
        DataType::Int16 => primitive::<Int16Type>(array),
        DataType::Int32 => primitive::<Int32Type>(array),
        DataType::Int64 => primitive::<Int64Type>(array),
        DataType::UInt32 => primitive::<UInt32Type>(array),
        DataType::UInt64 => primitive::<UInt64Type>(array),
        DataType::Float32 if !has_nan(array) => primitive::<Float32Type>(array),
        DataType::Float64 if !has_nan(array) => primitive::<Float64Type>(array),
        DataType::Decimal128(..) => primitive::<Decimal128Type>(array),
        DataType::Date32 => primitive::<Date32Type>(array),
        DataType::Time64(TimeUnit::Microsecond) => primitive::<Time64MicrosecondType>(array),
        DataType::Timestamp(TimeUnit::Microsecond, _) => primitive::<TimestampMicrosecondType>(array),
        DataType::FixedSizeBinary(16) => {
            let bytes = array.as_fixed_size_binary();
            let values = || bytes.iter().flatten();
            let one = |value: &[u8]| FixedSizeBinaryArray::try_from_iter(std::iter::once(value)).ok();
            let (min, max) = (one(values().min()?)?, one(values().max()?)?);
            Some((Arc::new(min), Arc::new(max)))
        }
        DataType::Utf8 => {
            let texts = array.as_string::<i32>();
            let (min, max) = (compute::min_string(texts)?, compute::max_string(texts)?);
            let short = min.len() <= LONGEST_TEXT && max.len() <= LONGEST_TEXT;
            let one = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
            short.then(|| (one(min), one(max)))
        }
        _ => None,
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef) -> Option<(ArrayRef, ArrayRef)>
where
    T::Native: arrow::array::ArrowNativeTypeOp,
{
    let typed = array.as_primitive::<T>();
    let one = |value| {
        Arc::new(PrimitiveArray::<T>::from_value(value, 1).with_data_type(array.data_type().clone())) as ArrayRef
    };
    compute::min(typed).map(one).zip(compute::max(typed).map(one))
}

fn has_nan(array: &ArrayRef) -> bool {
    match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().iter().flatten().any(f32::is_nan),
        DataType::Float64 => array.as_primitive::<Float64Type>().iter().flatten().any(f64::is_nan),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{BinaryArray, Float64Array, Int32Array, ListArray};
    use arrow::datatypes::Int32Type as Int4;
    use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

    use super::*;

    fn collect(batches: &[ArrayRef]) -> ColumnStats {
        let id = || HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), "7".to_string())]);
        let data_type = match batches[0].data_type() {
            DataType::List(element) => DataType::List(Arc::new(element.as_ref().clone().with_metadata(id()))),
            other => other.clone(),
        };
        let field = Arc::new(Field::new("c", data_type, true).with_metadata(id()));
        let mut collector = StatsCollector::new([&field]).unwrap();
        batches.iter().for_each(|batch| collector.add(&[Arc::clone(batch)]).unwrap());
        collector.finish(&[100]).remove(0)
    }

    #[test]
    fn bounds_span_all_batches_and_skip_nulls() {
        let stats = collect(&[
            Arc::new(Int32Array::from(vec![None, None])),
            Arc::new(Int32Array::from(vec![Some(5), None])),
            Arc::new(Int32Array::from(vec![Some(-9), Some(3)])),
        ]);
        let expected = ColumnStats {
            field_id: 7,
            bytes: 100,
            values: 3,
            nulls: 3,
            min: Some("-9".into()),
            max: Some("5".into()),
            contains_nan: None,
        };
        assert_eq!(stats, expected);
        let stats = collect(&[Arc::new(Int32Array::from(vec![None]))]);
        assert_eq!((stats.values, stats.nulls, stats.min, stats.max), (0, 1, None, None));
    }

    #[test]
    fn not_a_number_and_the_infinities_take_the_bounds_away() {
        let stats = collect(&[Arc::new(Float64Array::from(vec![1.0, -2.5]))]);
        assert_eq!(
            (stats.min.as_deref(), stats.max.as_deref(), stats.contains_nan),
            (Some("-2.5"), Some("1.0"), Some(false))
        );
        let stats = collect(&[
            Arc::new(Float64Array::from(vec![1.0])),
            Arc::new(Float64Array::from(vec![f64::NAN])),
            Arc::new(Float64Array::from(vec![7.0])),
        ]);
        assert_eq!((stats.min, stats.max, stats.contains_nan), (None, None, Some(true)));
        let stats = collect(&[Arc::new(Float64Array::from(vec![1.0, f64::INFINITY]))]);
        assert_eq!((stats.min, stats.max, stats.contains_nan), (None, None, Some(false)));
    }

    #[test]
    fn long_texts_and_bytes_have_no_bounds() {
        let long = "x".repeat(LONGEST_TEXT + 1);
        let stats = collect(&[Arc::new(StringArray::from(vec!["b", "a"])), Arc::new(StringArray::from(vec!["", "é"]))]);
        assert_eq!((stats.min.as_deref(), stats.max.as_deref()), (Some(""), Some("é")));
        let stats =
            collect(&[Arc::new(StringArray::from(vec!["a", long.as_str()])), Arc::new(StringArray::from(vec!["b"]))]);
        assert_eq!((stats.min, stats.max), (None, None));
        let stats = collect(&[Arc::new(BinaryArray::from(vec![b"a".as_slice()]))]);
        assert_eq!((stats.min, stats.max, stats.values), (None, None, 1));
    }

    #[test]
    fn of_a_list_its_elements_are_counted() {
        let lists = vec![Some(vec![Some(1), None]), None, Some(vec![]), Some(vec![Some(3), Some(4)])];
        let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int4, _, _>(lists));
        let stats = collect(&[list.slice(1, 3), list]);
        assert_eq!((stats.values, stats.nulls, stats.min), (5, 1, None));
    }
}
