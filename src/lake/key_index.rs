//! A set of keys that a file's rows are held against.

use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows, SortField};
use duckpipe_storage::value_text;
use hashbrown::HashMap;
use hashbrown::hash_table::{Entry, HashTable};
use uuid::Uuid;

use crate::error::{Because, Error, ErrorKind, Result};

/// Keys, each once, by their values' bits: −0.0 and 0.0 are two keys, as they are in the WAL's old and new tuples.
pub(crate) struct KeyIndex {
    search: Search,
    pruners: Vec<Option<Pruner>>,
}

enum Search {
    /// One column whose values are integers beneath: dates and times too.
    Integers(HashMap<i64, u32, RandomState>),
    /// Any other key, in arrow's row form.
    Rows { converter: RowConverter, rows: Rows, table: HashTable<u32>, hasher: RandomState },
}

/// One key column's values in order, to tell whether any of them lies between two bounds.
struct Pruner {
    data_type: DataType,
    order: Order,
}

enum Order {
    Integers(Vec<i64>),
    Rows { converter: RowConverter, rows: Rows, order: Vec<u32> },
}

impl KeyIndex {
    /// The keys are the rows of `keys`, whose columns have the types `types`. Fails where two are equal.
    pub(crate) fn new(types: &[DataType], keys: &RecordBatch) -> Result<KeyIndex> {
        if types.is_empty() || types.len() != keys.num_columns() {
            let message = format!("a key of {} columns is looked up by {}", types.len(), keys.num_columns());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let columns =
            types.iter().zip(keys.columns()).map(|(t, column)| retyped(column, t)).collect::<Result<Vec<_>>>()?;
        let search = match (types, columns.as_slice()) {
            ([data_type], [column]) if is_integer_like(data_type) => integers(column)?,
            _ => by_rows(types, &columns, false)?,
        };
        let pruners =
            types.iter().zip(&columns).map(|(t, column)| Pruner::new(t, column)).collect::<Result<Vec<_>>>()?;
        Ok(KeyIndex { search, pruners })
    }

    /// Whole rows in the place of keys, each once: NULL is a value as any other.
    pub(crate) fn of_rows(types: &[DataType], rows: &RecordBatch) -> Result<KeyIndex> {
        let columns =
            types.iter().zip(rows.columns()).map(|(t, column)| retyped(column, t)).collect::<Result<Vec<_>>>()?;
        // Bounds are of what is not NULL.
        let pruner = |(t, column): (&DataType, &ArrayRef)| match column.null_count() {
            0 => Pruner::new(t, column),
            _ => Ok(None),
        };
        let pruners = types.iter().zip(&columns).map(pruner).collect::<Result<Vec<_>>>()?;
        Ok(KeyIndex { search: by_rows(types, &columns, true)?, pruners })
    }

    /// Calls `found(row, key)` for each row of a batch of key columns that holds one of the keys.
    pub(crate) fn matches(&self, batch: &RecordBatch, mut found: impl FnMut(usize, u32)) -> Result<()> {
        match &self.search {
            Search::Integers(map) => {
                let values = as_integers(batch.column(0))?;
                let values = values.as_primitive::<Int64Type>();
                for (row, value) in values.values().iter().enumerate() {
                    if let Some(key) = map.get(value)
                        && values.is_valid(row)
                    {
                        found(row, *key);
                    }
                }
            }
            Search::Rows { converter, rows, table, hasher } => {
                let candidates =
                    converter.convert_columns(batch.columns()).because(ErrorKind::Internal, cant_compare)?;
                for (row, candidate) in candidates.iter().enumerate() {
                    let hash = hasher.hash_one(candidate.data());
                    if let Some(key) = table.find(hash, |key| rows.row(*key as usize) == candidate) {
                        found(row, *key);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether any key may lie in a file with these bounds, as text.
    pub(crate) fn may_be_within(&self, bounds: &[Option<(String, String)>]) -> bool {
        self.pruners.iter().zip(bounds).all(|(pruner, bounds)| match (pruner, bounds) {
            (Some(pruner), Some((min, max))) => {
                match parse(min, &pruner.data_type).zip(parse(max, &pruner.data_type)) {
                    Some((min, max)) => pruner.any_between(&min, &max, 0),
                    None => true,
                }
            }
            _ => true,
        })
    }

    /// Of row groups with these bounds of key column `column`, clears in `keep` those that can hold no key.
    pub(crate) fn prune(&self, column: usize, min: &ArrayRef, max: &ArrayRef, keep: &mut [bool]) {
        let Some(Some(pruner)) = self.pruners.get(column) else { return };
        // A column that was widened since has its bounds in the old type.
        let Some((min, max)) = cast(min, &pruner.data_type).ok().zip(cast(max, &pruner.data_type).ok()) else { return };
        for (group, keep) in keep.iter_mut().enumerate() {
            if *keep && min.is_valid(group) && max.is_valid(group) {
                *keep = pruner.any_between(&min, &max, group);
            }
        }
    }
}

impl Pruner {
    fn new(data_type: &DataType, column: &ArrayRef) -> Result<Option<Pruner>> {
        if !has_order(data_type) {
            return Ok(None);
        }
        let order = if is_integer_like(data_type) {
            let values = as_integers(column)?;
            let mut values: Vec<i64> = values.as_primitive::<Int64Type>().iter().flatten().collect();
            values.sort_unstable();
            values.dedup();
            Order::Integers(values)
        } else {
            let converter = RowConverter::new(vec![SortField::new(data_type.clone())])
                .because(ErrorKind::Internal, cant_compare)?;
            let rows =
                converter.convert_columns(std::slice::from_ref(column)).because(ErrorKind::Internal, cant_compare)?;
            let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
            order.sort_unstable_by(|a, b| rows.row(*a as usize).cmp(&rows.row(*b as usize)));
            Order::Rows { converter, rows, order }
        };
        Ok(Some(Pruner { data_type: data_type.clone(), order }))
    }

    /// Whether any key lies between the bounds at `index`, which are not NULL and of this column's type.
    fn any_between(&self, min: &ArrayRef, max: &ArrayRef, index: usize) -> bool {
        match &self.order {
            Order::Integers(values) => {
                let bound = |array: &ArrayRef| {
                    Some(as_integers(&array.slice(index, 1)).ok()?.as_primitive::<Int64Type>().value(0))
                };
                let Some((min, max)) = bound(min).zip(bound(max)) else { return true };
                values.get(values.partition_point(|value| *value < min)).is_some_and(|value| *value <= max)
            }
            Order::Rows { converter, rows, order } => {
                let bound = |array: &ArrayRef| converter.convert_columns(&[array.slice(index, 1)]).ok();
                let Some((min, max)) = bound(min).zip(bound(max)) else { return true };
                let first = order.partition_point(|key| rows.row(*key as usize) < min.row(0));
                order.get(first).is_some_and(|key| rows.row(*key as usize) <= max.row(0))
            }
        }
    }
}

fn integers(column: &ArrayRef) -> Result<Search> {
    let values = as_integers(column)?;
    let values = values.as_primitive::<Int64Type>();
    let mut map = HashMap::with_capacity_and_hasher(values.len(), RandomState::new());
    for (key, value) in values.iter().enumerate() {
        // A NULL key is no key: it is found nowhere.
        if let Some(value) = value
            && map.insert(value, key as u32).is_some()
        {
            return Err(twice());
        }
    }
    Ok(Search::Integers(map))
}

fn by_rows(types: &[DataType], columns: &[ArrayRef], nulls: bool) -> Result<Search> {
    let fields = types.iter().map(|data_type| SortField::new(data_type.clone())).collect();
    let converter = RowConverter::new(fields).because(ErrorKind::Internal, cant_compare)?;
    let rows = converter.convert_columns(columns).because(ErrorKind::Internal, cant_compare)?;
    let hasher = RandomState::new();
    let mut table = HashTable::with_capacity(rows.num_rows());
    for (key, row) in rows.iter().enumerate() {
        if !nulls && columns.iter().any(|column| column.is_null(key)) {
            continue;
        }
        let rehash = |other: &u32| hasher.hash_one(rows.row(*other as usize).data());
        match table.entry(hasher.hash_one(row.data()), |other: &u32| rows.row(*other as usize) == row, rehash) {
            Entry::Occupied(_) => return Err(twice()),
            Entry::Vacant(place) => drop(place.insert(key as u32)),
        }
    }
    Ok(Search::Rows { converter, rows, table, hasher })
}

/// The same values under the type that the lookup was told, where the labels differ (a list's element, a time zone's name).
fn retyped(column: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if column.data_type() == data_type {
        return Ok(Arc::clone(column));
    }
    cast(column, data_type).because(ErrorKind::Internal, cant_compare)
}

fn as_integers(column: &ArrayRef) -> Result<ArrayRef> {
    cast(column, &DataType::Int64).because(ErrorKind::Internal, cant_compare)
}

fn is_integer_like(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt32
            | DataType::Date32
            | DataType::Time64(TimeUnit::Microsecond)
            | DataType::Timestamp(TimeUnit::Microsecond, _)
    )
}

/// Whether bounds, the catalog's and the Parquet footer's, order values as arrow's row form does. Not so floating point: NaN
/// stands outside of any bounds.
fn has_order(data_type: &DataType) -> bool {
    is_integer_like(data_type)
        || matches!(data_type, DataType::Utf8 | DataType::Decimal128(..) | DataType::FixedSizeBinary(16))
}

/// A bound from its text; `None` where it can't be read back exactly, and then nothing is skipped by it.
fn parse(text: &str, data_type: &DataType) -> Option<ArrayRef> {
    let parsed: ArrayRef = match data_type {
        DataType::Utf8 => return Some(Arc::new(StringArray::from(vec![text]))),
        DataType::FixedSizeBinary(16) => {
            let uuid = Uuid::parse_str(text).ok()?;
            Arc::new(FixedSizeBinaryArray::try_from_iter(std::iter::once(uuid.as_bytes())).ok()?)
        }
        // The catalog's text is in UTC, and Arrow knows no zone by its name.
        DataType::Timestamp(unit, Some(zone)) => {
            let text = StringArray::from(vec![text.strip_suffix("+00")?]);
            let instant = cast(&text, &DataType::Timestamp(*unit, None)).ok()?;
            let instant = instant.as_primitive_opt::<TimestampMicrosecondType>()?.clone();
            Arc::new(instant.with_timezone(Arc::clone(zone)))
        }
        _ => cast(&StringArray::from(vec![text]), data_type).ok()?,
    };
    (value_text(&parsed, 0)? == text).then_some(parsed)
}

fn cant_compare() -> String {
    "keys can't be compared".to_string()
}

fn twice() -> Error {
    Error::new(ErrorKind::Internal, "one key is looked up twice at once")
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Decimal128Array, Float64Array, Int32Array, TimestampMicrosecondArray};

    use super::*;

    fn index(column: ArrayRef) -> KeyIndex {
        let types = [column.data_type().clone()];
        KeyIndex::new(&types, &RecordBatch::try_from_iter([("k", column)]).unwrap()).unwrap()
    }

    fn within(index: &KeyIndex, min: &str, max: &str) -> bool {
        index.may_be_within(&[Some((min.to_string(), max.to_string()))])
    }

    #[test]
    fn files_are_skipped_only_where_no_key_can_be() {
        let keys = index(Arc::new(Int32Array::from(vec![5, 100])));
        assert!(within(&keys, "5", "5") && within(&keys, "-3", "7") && within(&keys, "90", "101"));
        assert!(!within(&keys, "6", "99") && !within(&keys, "101", "2000") && !within(&keys, "-9", "4"));
        assert!(within(&keys, "x", "4"), "an unreadable bound");
        assert!(keys.may_be_within(&[None]) && keys.may_be_within(&[]));
        let keys = index(Arc::new(StringArray::from(vec!["m", "é"])));
        assert!(within(&keys, "a", "n") && !within(&keys, "n", "z") && within(&keys, "z", "ê"));
        let keys = index(Arc::new(Date32Array::from(vec![0])));
        assert!(within(&keys, "1969-12-31", "1970-01-01") && !within(&keys, "1970-01-02", "2000-01-01"));
        let keys = index(Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")));
        assert!(within(&keys, "1970-01-01 00:00:00.000001+00", "1970-01-01 00:00:00.000001+00"));
        assert!(!within(&keys, "1970-01-01 00:00:00.000002+00", "9999-01-01 00:00:00+00"));
        assert!(within(&keys, "1970-01-01 00:00:00.000002+01", "9999-01-01 00:00:00+00"), "another zone");
        let decimals = Decimal128Array::from(vec![-150]).with_precision_and_scale(38, 2).unwrap();
        let keys = index(Arc::new(decimals));
        assert!(within(&keys, "-1.50", "-1.50") && !within(&keys, "-1.49", "7.00") && within(&keys, "-1.4", "7.00"));
        let uuid = Uuid::from_u128(1 << 127);
        let keys = index(Arc::new(FixedSizeBinaryArray::try_from_iter([uuid.as_bytes()].into_iter()).unwrap()));
        assert!(within(&keys, "00000000-0000-0000-0000-000000000000", "80000000-0000-0000-0000-000000000000"));
        assert!(!within(&keys, "00000000-0000-0000-0000-000000000000", "7fffffff-ffff-ffff-ffff-ffffffffffff"));
        let keys = index(Arc::new(Float64Array::from(vec![f64::NAN])));
        assert!(within(&keys, "1.0", "2.0"));
    }

    #[test]
    fn keys_are_equal_by_their_bits() {
        let keys = index(Arc::new(Float64Array::from(vec![0.0, f64::NAN])));
        let rows: ArrayRef = Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::NAN), None, Some(0.0)]));
        let mut found = Vec::new();
        keys.matches(&RecordBatch::try_from_iter([("k", rows)]).unwrap(), |row, key| found.push((row, key))).unwrap();
        assert_eq!(found, [(1, 1), (3, 0)]);
    }

    #[test]
    fn one_key_twice_is_refused() {
        for column in [Arc::new(Int32Array::from(vec![1, 1])) as ArrayRef, Arc::new(StringArray::from(vec!["a", "a"]))]
        {
            let types = [column.data_type().clone()];
            assert!(KeyIndex::new(&types, &RecordBatch::try_from_iter([("k", column)]).unwrap()).is_err());
        }
    }
}
