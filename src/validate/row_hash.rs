//! Hashes of rows that are equal where all values are, of whatever type, and from whichever side they come.
//!
//! Both sides decode to the Arrow type of the lake's column, so a value's canonical form is its Arrow value: numbers by their bits
//! (every NaN is one), texts and bytes as they are, lists by their elements. A hash has 128 bits, of two functions that are seeded
//! anew in each process: what collides once does not collide in the next run.

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, RecordBatch};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, TimeUnit, TimestampMicrosecondType, UInt32Type,
};

use crate::error::{Error, ErrorKind, Result};

/// Two seeded functions.
#[derive(Clone, Debug)]
pub(super) struct RowHasher {
    one: RandomState,
    two: RandomState,
}

/// Stands for NULL; a value's hash is it with negligible chance.
const NULL: u128 = 0x6e75_6c6c_0000_0000_0000_0000_0000_0001;

impl RowHasher {
    pub(super) fn new() -> RowHasher {
        RowHasher { one: RandomState::new(), two: RandomState::new() }
    }

    fn hash<T: std::hash::Hash>(&self, value: T) -> u128 {
        u128::from(self.one.hash_one(&value)) << 64 | u128::from(self.two.hash_one(&value))
    }

    /// The hash of each row's values in these columns, in their order: values that change places change it.
    pub(super) fn rows(&self, batch: &RecordBatch, columns: &[usize]) -> Result<Vec<u128>> {
        let mut hashes = vec![0u128; batch.num_rows()];
        for column in columns {
            for (hash, value) in hashes.iter_mut().zip(self.values(batch.column(*column))?) {
                *hash = self.hash((*hash, value));
            }
        }
        Ok(hashes)
    }

    /// The hash of each value.
    pub(super) fn values(&self, array: &ArrayRef) -> Result<Vec<u128>> {
        let mut hashes = match array.data_type() {
            DataType::Boolean => {
                let array = array.as_boolean();
                (0..array.len()).map(|row| self.hash(array.value(row))).collect()
            }
            DataType::Int16 => self.primitive::<Int16Type, _>(array, |v| v),
            DataType::Int32 => self.primitive::<Int32Type, _>(array, |v| v),
            DataType::Int64 => self.primitive::<Int64Type, _>(array, |v| v),
            DataType::UInt32 => self.primitive::<UInt32Type, _>(array, |v| v),
            DataType::Float32 => {
                self.primitive::<Float32Type, _>(array, |v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() })
            }
            DataType::Float64 => {
                self.primitive::<Float64Type, _>(array, |v| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() })
            }
            DataType::Decimal128(..) => self.primitive::<Decimal128Type, _>(array, |v| v),
            DataType::Date32 => self.primitive::<Date32Type, _>(array, |v| v),
            DataType::Time64(TimeUnit::Microsecond) => self.primitive::<Time64MicrosecondType, _>(array, |v| v),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.primitive::<TimestampMicrosecondType, _>(array, |v| v)
            }
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                (0..array.len()).map(|row| self.hash(array.value(row).as_bytes())).collect()
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                (0..array.len()).map(|row| self.hash(array.value(row))).collect()
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                (0..array.len()).map(|row| self.hash(array.value(row))).collect()
            }
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                let elements = self.values(list.values())?;
                let offsets = list.value_offsets();
                (0..list.len())
                    .map(|row| self.hash(&elements[offsets[row] as usize..offsets[row + 1] as usize]))
                    .collect::<Vec<_>>()
            }
            other => {
                return Err(Error::new(ErrorKind::Internal, format!("values of type {other} have no canonical form")));
            }
        };
        if array.null_count() > 0 {
            for (row, hash) in hashes.iter_mut().enumerate() {
                if array.is_null(row) {
                    *hash = NULL;
                }
            }
        }
        Ok(hashes)
    }

    fn primitive<T: ArrowPrimitiveType, H: std::hash::Hash>(
        &self,
        array: &ArrayRef,
        canonical: impl Fn(T::Native) -> H,
    ) -> Vec<u128> {
        let array: &PrimitiveArray<T> = array.as_primitive();
        array.values().iter().map(|value| self.hash(canonical(*value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int32Array, ListArray, StringArray};
    use arrow::datatypes::{Field, Int32Type as Int4, Schema};

    use super::*;

    fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
        let fields: Vec<Field> =
            columns.iter().enumerate().map(|(i, c)| Field::new(i.to_string(), c.data_type().clone(), true)).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    #[test]
    fn equal_rows_have_equal_hashes_and_others_do_not() {
        let hasher = RowHasher::new();
        let a: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), Some(2), None, Some(1)]));
        let b: ArrayRef = Arc::new(StringArray::from(vec![Some("2"), None, Some(""), Some("2")]));
        let hashes = hasher.rows(&batch(vec![a.clone(), b.clone()]), &[0, 1]).unwrap();
        assert_eq!(hashes[0], hashes[3]);
        let distinct: std::collections::HashSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), 3);
        // A slice is its rows.
        let sliced = batch(vec![a.slice(1, 2), b.slice(1, 2)]);
        assert_eq!(hasher.rows(&sliced, &[0, 1]).unwrap(), hashes[1..3]);
        // Columns have their places.
        let twice = batch(vec![a.clone(), a]);
        assert_ne!(hasher.rows(&twice, &[0]).unwrap(), hasher.rows(&twice, &[0, 1]).unwrap());
    }

    #[test]
    fn floats_are_their_bits_but_nan_is_one() {
        let hasher = RowHasher::new();
        let values: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN]));
        let hashes = hasher.values(&values).unwrap();
        assert_ne!(hashes[0], hashes[1]);
        assert_eq!(hashes[2], hashes[3]);
    }

    #[test]
    fn lists_are_their_elements() {
        let hasher = RowHasher::new();
        let lists = vec![Some(vec![Some(1), None]), None, Some(vec![]), Some(vec![Some(1), None]), Some(vec![None])];
        let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int4, _, _>(lists));
        let hashes = hasher.values(&list).unwrap();
        assert_eq!(hashes[0], hashes[3]);
        assert_eq!(hashes.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(hasher.values(&list.slice(3, 2)).unwrap(), hashes[3..]);
    }
}
