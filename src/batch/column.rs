//! The builder of one column: Postgres values, binary or text, straight into the buffers of an Arrow array.
//!
//! These are not Arrow's own builders because a row that fails half-way must be taken back, which those can't do. A
//! failing append leaves the column as it was.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, ListArray, NullBufferBuilder, PrimitiveArray,
    StringArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, Field};
use arrow::error::ArrowError;

use super::layout::{ColumnType, TextSource};
use super::value_error::{Fault, prefix};
use super::{array, datetime, decimal, network, printed, scalar};

/// The growing values of one column.
pub(crate) struct ColumnBuilder {
    values: Values,
    nulls: NullBufferBuilder,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int2(Vec<i16>),
    Int4(Vec<i32>),
    Int8(Vec<i64>),
    Oid(Vec<u32>),
    UInt8(Vec<u64>),
    Float4(Vec<f32>),
    Float8(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: u8 },
    Text { values: Variable, source: TextSource },
    Json(Variable),
    Bytes(Variable),
    Date(Vec<i32>),
    Time(Vec<i64>),
    Timestamp(Vec<i64>),
    TimestampTz(Vec<i64>),
    Uuid(Vec<u8>),
    List(Box<List>),
}

/// Values of variable length, end to end.
struct Variable {
    data: Vec<u8>,
    offsets: Vec<i32>,
}

struct List {
    elements: ColumnBuilder,
    offsets: Vec<i32>,
    delimiter: u8,
    scratch: Vec<u8>,
}

impl ColumnBuilder {
    /// An empty column. `delimiter` is that of an array's text, `source` that of its text values.
    pub(crate) fn new(column_type: &ColumnType, delimiter: u8, source: TextSource) -> Self {
        let values = match column_type {
            ColumnType::Bool => Values::Bool(BooleanBufferBuilder::new(0)),
            ColumnType::Int2 => Values::Int2(Vec::new()),
            ColumnType::Int4 => Values::Int4(Vec::new()),
            ColumnType::Int8 => Values::Int8(Vec::new()),
            ColumnType::Oid => Values::Oid(Vec::new()),
            ColumnType::UInt8 => Values::UInt8(Vec::new()),
            ColumnType::Float4 => Values::Float4(Vec::new()),
            ColumnType::Float8 => Values::Float8(Vec::new()),
            ColumnType::Decimal { precision, scale } => {
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale }
            }
            ColumnType::Text => Values::Text { values: Variable::new(), source },
            ColumnType::Json => Values::Json(Variable::new()),
            ColumnType::Bytes => Values::Bytes(Variable::new()),
            ColumnType::Date => Values::Date(Vec::new()),
            ColumnType::Time => Values::Time(Vec::new()),
            ColumnType::Timestamp => Values::Timestamp(Vec::new()),
            ColumnType::TimestampTz => Values::TimestampTz(Vec::new()),
            ColumnType::Uuid => Values::Uuid(Vec::new()),
            ColumnType::List(element) => Values::List(Box::new(List {
                elements: ColumnBuilder::new(element, delimiter, source),
                offsets: vec![0],
                delimiter,
                scratch: Vec::new(),
            })),
        };
        ColumnBuilder { values, nulls: NullBufferBuilder::new(0) }
    }

    /// Bytes that a value of this type takes in memory whatever its content.
    pub(crate) fn fixed_width(column_type: &ColumnType) -> usize {
        match column_type {
            ColumnType::Bool => 1,
            ColumnType::Int2 => 2,
            ColumnType::Int4 | ColumnType::Oid | ColumnType::Float4 | ColumnType::Date => 4,
            ColumnType::Text | ColumnType::Json | ColumnType::Bytes | ColumnType::List(_) => 4,
            ColumnType::Int8 | ColumnType::UInt8 | ColumnType::Float8 => 8,
            ColumnType::Time | ColumnType::Timestamp | ColumnType::TimestampTz => 8,
            ColumnType::Decimal { .. } | ColumnType::Uuid => 16,
        }
    }

    #[inline]
    pub(crate) fn append_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.append(false),
            Values::Int2(values) => values.push(0),
            Values::Int4(values) | Values::Date(values) => values.push(0),
            Values::Int8(values) | Values::Time(values) => values.push(0),
            Values::Timestamp(values) | Values::TimestampTz(values) => values.push(0),
            Values::Oid(values) => values.push(0),
            Values::UInt8(values) => values.push(0),
            Values::Float4(values) => values.push(0.0),
            Values::Float8(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Text { values, .. } | Values::Json(values) | Values::Bytes(values) => values.push_empty(),
            Values::Uuid(values) => values.extend_from_slice(&[0; 16]),
            Values::List(list) => list.offsets.push(list.offsets.last().copied().unwrap_or(0)),
        }
        self.nulls.append_null();
    }

    /// Appends what the type's send function wrote.
    #[inline]
    pub(crate) fn append_binary(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match &mut self.values {
            Values::Bool(values) => values.append(scalar::bool_from_binary(bytes)?),
            Values::Int2(values) => values.push(i16::from_be_bytes(scalar::fixed(bytes)?)),
            Values::Int4(values) => values.push(i32::from_be_bytes(scalar::fixed(bytes)?)),
            Values::Int8(values) => values.push(i64::from_be_bytes(scalar::fixed(bytes)?)),
            Values::Oid(values) => values.push(u32::from_be_bytes(scalar::fixed(bytes)?)),
            Values::UInt8(values) => values.push(u64::from_be_bytes(scalar::fixed(bytes)?)),
            Values::Float4(values) => values.push(one_nan_f32(f32::from_be_bytes(scalar::fixed(bytes)?))),
            Values::Float8(values) => values.push(one_nan_f64(f64::from_be_bytes(scalar::fixed(bytes)?))),
            Values::Decimal { values, precision, scale } => {
                values.push(decimal::decimal_from_binary(bytes, *precision, *scale)?);
            }
            Values::Text { values, source } => match source {
                TextSource::AsSent => values.push_text_as_sent(bytes)?,
                TextSource::Cast => return Err(Fault::malformed("a binary value of a type that is read as text only")),
                TextSource::Numeric => values.push_with(|data| decimal::text_from_binary(bytes, data))?,
                TextSource::Bool => values.push(if scalar::bool_from_binary(bytes)? { b"true" } else { b"false" })?,
                TextSource::Inet => values.push_with(|data| network::inet_from_binary(bytes, data))?,
                TextSource::MacAddr => values.push_with(|data| network::macaddr_from_binary(bytes, data))?,
                TextSource::Interval => values.push_with(|data| printed::interval(bytes, data))?,
                TextSource::TimeTz => values.push_with(|data| printed::timetz(bytes, data))?,
                TextSource::Bits => values.push_with(|data| printed::bits(bytes, data))?,
                TextSource::Jsonb => values.push_jsonb(bytes)?,
            },
            Values::Json(values) => values.push_jsonb(bytes)?,
            Values::Bytes(values) => values.push(bytes)?,
            Values::Date(values) => {
                values.push(datetime::date_from_postgres(i32::from_be_bytes(scalar::fixed(bytes)?))?);
            }
            Values::Time(values) => {
                values.push(datetime::time_from_postgres(i64::from_be_bytes(scalar::fixed(bytes)?))?);
            }
            Values::Timestamp(values) | Values::TimestampTz(values) => {
                values.push(datetime::timestamp_from_postgres(i64::from_be_bytes(scalar::fixed(bytes)?))?);
            }
            Values::Uuid(values) => values.extend_from_slice(&scalar::fixed::<16>(bytes)?),
            Values::List(list) => list.append_binary(bytes)?,
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Appends what the type's output function printed, under the settings that the source's sessions pin.
    #[inline]
    pub(crate) fn append_text(&mut self, text: &[u8]) -> Result<(), Fault> {
        match &mut self.values {
            Values::Bool(values) => values.append(scalar::bool_from_text(text)?),
            Values::Int2(values) => values.push(scalar::integer_from_text(text, "smallint")?),
            Values::Int4(values) => values.push(scalar::integer_from_text(text, "integer")?),
            Values::Int8(values) => values.push(scalar::integer_from_text(text, "bigint")?),
            Values::Oid(values) => values.push(scalar::integer_from_text(text, "oid")?),
            Values::UInt8(values) => values.push(scalar::integer_from_text(text, "unsigned number")?),
            Values::Float4(values) => values.push(one_nan_f32(scalar::float_from_text(text, "real")?)),
            Values::Float8(values) => values.push(one_nan_f64(scalar::float_from_text(text, "double precision")?)),
            Values::Decimal { values, precision, scale } => {
                values.push(decimal::decimal_from_text(text, *precision, *scale)?);
            }
            Values::Text { values, source } => match source {
                TextSource::Bool => values.push(if scalar::bool_from_text(text)? { b"true" } else { b"false" })?,
                TextSource::Inet => values.push_inet(text)?,
                _ => values.push_utf8(text)?,
            },
            Values::Json(values) => values.push_utf8(text)?,
            Values::Bytes(values) => values.push_with(|data| scalar::bytea_from_text(text, data))?,
            Values::Date(values) => values.push(datetime::date_from_text(text)?),
            Values::Time(values) => values.push(datetime::time_from_text(text)?),
            Values::Timestamp(values) => values.push(datetime::timestamp_from_text(text, false)?),
            Values::TimestampTz(values) => values.push(datetime::timestamp_from_text(text, true)?),
            Values::Uuid(values) => values.extend_from_slice(&scalar::uuid_from_text(text)?),
            Values::List(list) => list.append_text(text)?,
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// Takes back every value from the `length`th on.
    pub(crate) fn truncate(&mut self, length: usize) {
        match &mut self.values {
            Values::Bool(values) => values.truncate(length),
            Values::Int2(values) => values.truncate(length),
            Values::Int4(values) | Values::Date(values) => values.truncate(length),
            Values::Int8(values) | Values::Time(values) => values.truncate(length),
            Values::Timestamp(values) | Values::TimestampTz(values) => values.truncate(length),
            Values::Oid(values) => values.truncate(length),
            Values::UInt8(values) => values.truncate(length),
            Values::Float4(values) => values.truncate(length),
            Values::Float8(values) => values.truncate(length),
            Values::Decimal { values, .. } => values.truncate(length),
            Values::Text { values, .. } | Values::Json(values) | Values::Bytes(values) => values.truncate(length),
            Values::Uuid(values) => values.truncate(16 * length),
            Values::List(list) => {
                list.offsets.truncate(length + 1);
                list.take_back();
            }
        }
        self.nulls.truncate(length);
    }

    /// The array of everything appended; the builder is empty again.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        self.nulls = NullBufferBuilder::new(0);
        Ok(match &mut self.values {
            Values::Bool(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Values::Int2(values) => Arc::new(primitive::<_>(values, nulls, Int16Array::try_new)?),
            Values::Int4(values) => Arc::new(primitive(values, nulls, Int32Array::try_new)?),
            Values::Int8(values) => Arc::new(primitive(values, nulls, Int64Array::try_new)?),
            Values::Oid(values) => Arc::new(primitive(values, nulls, UInt32Array::try_new)?),
            Values::UInt8(values) => Arc::new(primitive(values, nulls, UInt64Array::try_new)?),
            Values::Float4(values) => Arc::new(primitive(values, nulls, Float32Array::try_new)?),
            Values::Float8(values) => Arc::new(primitive(values, nulls, Float64Array::try_new)?),
            Values::Decimal { values, precision, scale } => Arc::new(
                primitive(values, nulls, Decimal128Array::try_new)?
                    .with_precision_and_scale(*precision, (*scale).cast_signed())?,
            ),
            Values::Text { values, .. } | Values::Json(values) => {
                let (offsets, data) = values.finish();
                Arc::new(StringArray::try_new(offsets, data.into(), nulls)?)
            }
            Values::Bytes(values) => {
                let (offsets, data) = values.finish();
                Arc::new(BinaryArray::try_new(offsets, data.into(), nulls)?)
            }
            Values::Date(values) => Arc::new(primitive(values, nulls, Date32Array::try_new)?),
            Values::Time(values) => Arc::new(primitive(values, nulls, Time64MicrosecondArray::try_new)?),
            Values::Timestamp(values) => Arc::new(primitive(values, nulls, TimestampMicrosecondArray::try_new)?),
            Values::TimestampTz(values) => {
                Arc::new(primitive(values, nulls, TimestampMicrosecondArray::try_new)?.with_timezone("UTC"))
            }
            Values::Uuid(values) => Arc::new(FixedSizeBinaryArray::try_new(16, taken(values).into(), nulls)?),
            Values::List(list) => {
                let offsets = OffsetBuffer::new(std::mem::replace(&mut list.offsets, vec![0]).into());
                let elements = list.elements.finish()?;
                let field = Arc::new(Field::new("element", elements.data_type().clone(), true));
                Arc::new(ListArray::try_new(field, offsets, elements, nulls)?)
            }
        })
    }
}

/// An array over the values, without a copy.
fn primitive<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
    array: impl FnOnce(ScalarBuffer<T::Native>, Option<NullBuffer>) -> Result<PrimitiveArray<T>, ArrowError>,
) -> Result<PrimitiveArray<T>, ArrowError> {
    array(ScalarBuffer::from(taken(values)), nulls)
}

/// The values without the room that they were given to grow: a batch may wait in memory for its flush.
fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    let mut values = std::mem::take(values);
    values.shrink_to_fit();
    values
}

/// All NaNs are one value to Postgres, and its text has but one: so that a key is found again whichever way it came.
#[inline]
fn one_nan_f32(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value }
}

/// As [`one_nan_f32`].
#[inline]
fn one_nan_f64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value }
}

impl Variable {
    fn new() -> Self {
        Variable { data: Vec::new(), offsets: vec![0] }
    }

    fn push_empty(&mut self) {
        self.offsets.push(self.offsets.last().copied().unwrap_or(0));
    }

    /// Ends the value whose bytes were just added to `data`.
    #[inline]
    fn end_value(&mut self) -> Result<(), Fault> {
        match i32::try_from(self.data.len()) {
            Ok(end) => {
                self.offsets.push(end);
                Ok(())
            }
            Err(_) => {
                self.data.truncate(self.end());
                Err(Fault::malformed("a batch's column exceeds 2 GiB: batches must be taken sooner"))
            }
        }
    }

    fn end(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0) as usize
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.data.extend_from_slice(bytes);
        self.end_value()
    }

    /// Appends what `write` writes; takes it back where that fails.
    fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>) -> Result<(), Fault> {
        match write(&mut self.data) {
            Ok(()) => self.end_value(),
            Err(fault) => {
                self.data.truncate(self.end());
                Err(fault)
            }
        }
    }

    #[inline]
    fn push_utf8(&mut self, text: &[u8]) -> Result<(), Fault> {
        match std::str::from_utf8(text) {
            Ok(_) => self.push(text),
            Err(_) => Err(Fault::malformed(format!("{:?} is not valid UTF-8", prefix(text)))),
        }
    }

    /// Appends a text as its type's send function wrote it. That of `"char"` writes one raw byte where the output
    /// function prints nothing (for zero) or an octal escape (above 127); neither byte can be a whole text of any
    /// other type.
    #[inline]
    fn push_text_as_sent(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match bytes {
            [0] => self.push(b""),
            [byte @ 128..=255] => self.push(&[b'\\', b'0' + (byte >> 6), b'0' + (byte >> 3 & 7), b'0' + (byte & 7)]),
            text => self.push_utf8(text),
        }
    }

    /// Appends a binary jsonb, which is its text behind a version byte, or a json: no JSON text begins with that byte.
    #[inline]
    fn push_jsonb(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.push_utf8(bytes.strip_prefix(&[1]).unwrap_or(bytes))
    }

    fn push_inet(&mut self, text: &[u8]) -> Result<(), Fault> {
        std::str::from_utf8(text).map_err(|_| Fault::not_a("inet", text))?;
        self.push_with(|data| {
            data.extend_from_slice(text);
            data.extend_from_slice(network::missing_netmask(text).unwrap_or_default());
            Ok(())
        })
    }

    fn truncate(&mut self, length: usize) {
        self.offsets.truncate(length + 1);
        self.data.truncate(self.end());
    }

    fn finish(&mut self) -> (OffsetBuffer<i32>, Vec<u8>) {
        let offsets = OffsetBuffer::new(std::mem::replace(&mut self.offsets, vec![0]).into());
        (offsets, taken(&mut self.data))
    }
}

impl List {
    fn append_binary(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let elements = &mut self.elements;
        let appended = array::each_binary(bytes, |element| match element {
            None => {
                elements.append_null();
                Ok(())
            }
            Some(bytes) => elements.append_binary(bytes),
        });
        self.end_list(appended)
    }

    fn append_text(&mut self, text: &[u8]) -> Result<(), Fault> {
        let elements = &mut self.elements;
        let appended = array::each_text(text, self.delimiter, &mut self.scratch, |element| match element {
            None => {
                elements.append_null();
                Ok(())
            }
            Some(text) => elements.append_text(text),
        });
        self.end_list(appended)
    }

    fn end_list(&mut self, appended: Result<(), Fault>) -> Result<(), Fault> {
        let ended = appended.and_then(|()| {
            i32::try_from(self.elements.nulls.len())
                .map_err(|_| Fault::malformed("a batch's lists exceed 2³¹ elements: batches must be taken sooner"))
        });
        match ended {
            Ok(end) => {
                self.offsets.push(end);
                Ok(())
            }
            Err(fault) => {
                self.take_back();
                Err(fault)
            }
        }
    }

    /// Takes back the elements behind the last offset.
    fn take_back(&mut self) {
        let end = self.offsets.last().copied().unwrap_or(0);
        self.elements.truncate(end as usize);
    }
}
