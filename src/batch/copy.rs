//! COPY (FORMAT binary) to record batches.
//!
//! Format: Postgres' documentation of COPY, "Binary Format": an 11-byte signature, int32 flags, an int32-long header
//! extension; per row int16 count of fields and per field int32 length (-1: NULL) and bytes; int16 -1 at the end. The
//! data comes in chunks that may end anywhere.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::layout::TableLayout;
use super::pgoutput::Value;
use super::row_builder::{Origin, RowBuilder};
use super::value_error::OnUnrepresentable;
use crate::error::{Error, ErrorKind, Result, ResultExt};

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags and the length of the header's extension.
const HEADER: usize = 19;
/// How much of a chunk is at least copied to complete a row that the chunk before it cut off.
const COMPLETION: usize = 4096;
/// The flag bits that say something a reader can't ignore.
const CRITICAL_FLAGS: u32 = 0xffff_0000;

/// Decodes the COPY data of one table's columns, in the layout's order.
pub struct CopyDecoder {
    rows: RowBuilder,
    state: State,
    /// The beginning of a header or a row that its chunk cut off.
    partial: Vec<u8>,
    /// Where the fields of the row at hand lie.
    fields: Vec<Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Rows,
    Ended,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Null,
    At { start: usize, end: usize },
}

/// What the bytes at hand begin with.
enum Frame {
    /// A row of so many bytes, whose fields were noted.
    Row(usize),
    /// The end of the data, of so many bytes.
    End(usize),
    /// Something that takes at least so many bytes.
    Needs(usize),
}

impl CopyDecoder {
    /// A decoder for the columns of `layout`.
    pub fn new(layout: Arc<TableLayout>, policy: OnUnrepresentable) -> Self {
        let fields = Vec::with_capacity(layout.columns.len());
        let rows = RowBuilder::new(layout, policy, Origin::Copy);
        CopyDecoder { rows, state: State::Header, partial: Vec::new(), fields }
    }

    /// Takes the next chunk of data.
    ///
    /// # Errors
    /// `Table` where a value can't be taken (the rows before it are kept), `Internal` where the data does not follow
    /// the format. After an error only [`CopyDecoder::take`] makes sense.
    pub fn push(&mut self, chunk: &[u8]) -> Result<()> {
        self.decode(chunk).context(|| format!("copying {}", self.rows.layout().table))
    }

    fn decode(&mut self, mut chunk: &[u8]) -> Result<()> {
        // First what the last chunk cut off, completed with little of this one.
        let mut lent = 0usize;
        while !self.partial.is_empty() {
            let partial = std::mem::take(&mut self.partial);
            let step = self.step(&partial);
            self.partial = partial;
            match step? {
                Step::Consumed(length) => {
                    // What lies behind the row is this chunk's.
                    lent = lent.saturating_sub(self.partial.len() - length);
                    self.partial.clear();
                }
                Step::Needs(needed) => {
                    // A row of many fields must not be looked at anew for each of them.
                    let missing = (needed - self.partial.len()).max(COMPLETION).min(chunk.len() - lent);
                    self.partial.extend_from_slice(&chunk[lent..lent + missing]);
                    lent += missing;
                    if self.partial.len() < needed {
                        return Ok(());
                    }
                }
            }
        }
        chunk = &chunk[lent..];
        while !chunk.is_empty() {
            match self.step(chunk)? {
                Step::Consumed(length) => chunk = &chunk[length..],
                Step::Needs(_) => {
                    self.partial.extend_from_slice(chunk);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Decodes the header, the row or the end that `bytes` begin with.
    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Result<Step> {
        match self.state {
            State::Rows => match self.frame(bytes)? {
                Frame::Needs(length) => Ok(Step::Needs(length)),
                Frame::Row(length) => {
                    self.append(bytes, length)?;
                    Ok(Step::Consumed(length))
                }
                Frame::End(length) => {
                    self.state = State::Ended;
                    Ok(Step::Consumed(length))
                }
            },
            State::Header => {
                let step = header(bytes)?;
                if let Step::Consumed(_) = step {
                    self.state = State::Rows;
                }
                Ok(step)
            }
            State::Ended => Err(malformed("data behind the end")),
        }
    }

    /// Finds the fields of the row that `bytes` begin with.
    #[inline]
    fn frame(&mut self, bytes: &[u8]) -> Result<Frame> {
        let Some(count) = bytes.first_chunk::<2>() else { return Ok(Frame::Needs(2)) };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            return Ok(Frame::End(2));
        }
        if usize::try_from(count) != Ok(self.rows.columns()) {
            return Err(malformed(format!("a row of {count} fields where {} were asked for", self.rows.columns())));
        }
        self.fields.clear();
        let mut at = 2;
        for _ in 0..count {
            let Some(length) = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
                return Ok(Frame::Needs(at + 4));
            };
            at += 4;
            match i32::from_be_bytes(*length) {
                -1 => self.fields.push(Field::Null),
                length => {
                    let length = usize::try_from(length).map_err(|_| malformed("a field of negative length"))?;
                    self.fields.push(Field::At { start: at, end: at + length });
                    at += length;
                }
            }
        }
        Ok(if at <= bytes.len() { Frame::Row(at) } else { Frame::Needs(at) })
    }

    /// Appends the row whose fields were found in `bytes`.
    #[inline]
    fn append(&mut self, bytes: &[u8], length: usize) -> Result<()> {
        for column in 0..self.fields.len() {
            let value = value(bytes, self.fields[column]);
            if let Err(fault) = self.rows.append(column, value) {
                self.rows.roll_back();
                let error = self.rows.value_error(column, fault, |column| value_at(bytes, &self.fields, column));
                return Err(error.into());
            }
        }
        self.rows.end_row(length);
        Ok(())
    }

    /// Rows that wait to be taken.
    pub fn rows(&self) -> usize {
        self.rows.rows()
    }

    /// What those rows and a row that was cut off take in memory, estimated from their size on the wire.
    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.partial.len()
    }

    /// All complete rows as one batch, which may be empty.
    ///
    /// # Errors
    /// `Internal` where Arrow refuses the arrays.
    pub fn take(&mut self) -> Result<RecordBatch> {
        self.rows.finish()
    }

    /// Values that became NULL by policy so far.
    pub fn nulled(&self) -> u64 {
        self.rows.nulled()
    }

    /// Says that no more data will come.
    ///
    /// # Errors
    /// `Internal` where the data ended before its trailer, or rows were left behind.
    pub fn finish(self) -> Result<()> {
        let problem = if self.state != State::Ended {
            "the data ended before its trailer"
        } else if self.rows.rows() > 0 {
            "decoded rows were not taken"
        } else {
            return Ok(());
        };
        Err(malformed(problem)).context(|| format!("copying {}", self.rows.layout().table))
    }
}

/// What came of the bytes at hand.
enum Step {
    Consumed(usize),
    Needs(usize),
}

fn header(bytes: &[u8]) -> Result<Step> {
    if bytes.len() < HEADER {
        return Ok(Step::Needs(HEADER));
    }
    let number = |at: usize| bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
    if !bytes.starts_with(SIGNATURE) {
        return Err(malformed("no binary COPY data"));
    }
    if number(11) & CRITICAL_FLAGS != 0 {
        return Err(malformed(format!("unknown flags {:#010x} in the header", number(11))));
    }
    let length = HEADER + number(15) as usize;
    Ok(if bytes.len() < length { Step::Needs(length) } else { Step::Consumed(length) })
}

#[inline]
fn value(bytes: &[u8], field: Field) -> Value<'_> {
    match field {
        Field::Null => Value::Null,
        Field::At { start, end } => Value::Binary(&bytes[start..end]),
    }
}

fn value_at<'a>(bytes: &'a [u8], fields: &[Field], column: usize) -> Value<'a> {
    fields.get(column).map_or(Value::Null, |field| value(bytes, *field))
}

#[cold]
fn malformed(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::compute::concat_batches;
    use arrow::datatypes::{Decimal128Type, Int32Type};
    use proptest::prelude::*;

    use super::super::testing::{copy_data, layout, table};
    use super::*;
    use crate::source::table::ReplicaIdentity;

    fn layout_of(columns: &[(&str, &str)]) -> Arc<TableLayout> {
        layout(&table(columns, &["id"], ReplicaIdentity::Default))
    }

    fn simple() -> Arc<TableLayout> {
        layout_of(&[("id", "int4"), ("v", "text")])
    }

    fn row(id: i32, text: Option<&str>) -> Vec<Option<Vec<u8>>> {
        vec![Some(id.to_be_bytes().to_vec()), text.map(|text| text.as_bytes().to_vec())]
    }

    /// Decodes chunks, taking a batch after each of them.
    fn decode(layout: &Arc<TableLayout>, chunks: &[&[u8]]) -> Result<RecordBatch> {
        let mut decoder = CopyDecoder::new(layout.clone(), OnUnrepresentable::Error);
        let mut batches = Vec::new();
        for chunk in chunks {
            decoder.push(chunk)?;
            batches.push(decoder.take()?);
        }
        decoder.finish()?;
        Ok(concat_batches(&layout.schema(), &batches).unwrap())
    }

    #[test]
    fn rows_nulls_and_empty_texts() {
        let data = copy_data(&[row(1, Some("one")), row(2, None), row(3, Some(""))]);
        let batch = decode(&simple(), &[&data]).unwrap();
        assert_eq!(batch.column(0).as_primitive::<Int32Type>().values(), &[1, 2, 3]);
        let texts: Vec<_> = batch.column(1).as_string::<i32>().iter().collect();
        assert_eq!(texts, [Some("one"), None, Some("")]);
    }

    #[test]
    fn what_a_server_sends() {
        // \copy (select i, 'row ' || i, case when i % 3 > 0 then i / 8.0 end::numeric(10,3), array[i, null]::int[]
        //        from generate_series(1, 5) i) to 'copy.bin' (format binary)
        let columns = [("id", "int4"), ("name", "text"), ("n", "numeric(10,3)"), ("a", "int4[]")];
        let batch = decode(&layout_of(&columns), &[include_bytes!("fixtures/copy.bin")]).unwrap();
        assert_eq!(batch.column(0).as_primitive::<Int32Type>().values(), &[1, 2, 3, 4, 5]);
        assert_eq!(batch.column(1).as_string::<i32>().value(4), "row 5");
        let numbers: Vec<_> = batch.column(2).as_primitive::<Decimal128Type>().iter().collect();
        assert_eq!(numbers, [Some(125), Some(250), None, Some(500), Some(625)]);
        let last = batch.column(3).as_list::<i32>().value(4);
        assert_eq!(last.as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(5), None]);
    }

    #[test]
    fn a_key_that_is_a_moment_is_shown_too() {
        let layout = layout_of(&[("price", "numeric(10,2)"), ("id", "timestamptz")]);
        let nan = Some(vec![0, 0, 0, 0, 0xc0, 0, 0, 0]);
        for (moment, shown) in [(0, "id=2000-01-01T00:00:00"), (i64::MAX, "id=?")] {
            let row = vec![nan.clone(), Some(i64::to_be_bytes(moment).to_vec())];
            let error = decode(&layout, &[&copy_data(&[row])]).unwrap_err();
            assert!(error.to_string().contains(shown), "{error}");
        }
    }

    #[test]
    fn an_empty_table_and_a_header_with_an_extension() {
        assert_eq!(decode(&simple(), &[&copy_data(&[])]).unwrap().num_rows(), 0);
        let mut data = copy_data(&[row(1, None)]);
        data[18] = 3;
        data.splice(19..19, [1, 2, 3]);
        assert_eq!(decode(&simple(), &[&data]).unwrap().num_rows(), 1);
    }

    #[test]
    fn what_is_no_copy_data_is_refused() {
        let data = copy_data(&[row(1, Some("one"))]);
        let kind = |data: &[u8]| decode(&simple(), &[data]).unwrap_err().kind();
        assert_eq!(kind(&data[..data.len() - 2]), ErrorKind::Internal, "no trailer");
        assert_eq!(kind(&data[..data.len() - 4]), ErrorKind::Internal, "half a row");
        assert_eq!(kind(b"PGCOPX\n\xff\r\n\0\0\0\0\0\0\0\0\0"), ErrorKind::Internal, "signature");
        let mut flags = data.clone();
        flags[12] = 1;
        assert_eq!(kind(&flags), ErrorKind::Internal, "rows with oids");
        let mut longer = data.clone();
        longer.push(0);
        assert_eq!(kind(&longer), ErrorKind::Internal, "data behind the end");
        assert_eq!(kind(&copy_data(&[vec![None]])), ErrorKind::Internal, "too few fields");
        let mut decoder = CopyDecoder::new(simple(), OnUnrepresentable::Error);
        decoder.push(&data).unwrap();
        assert!(decoder.finish().is_err(), "rows that nobody took");
    }

    #[test]
    fn a_value_that_does_not_fit_names_its_column_and_key_and_leaves_the_rows_before_it() {
        let layout = layout_of(&[("price", "numeric(10,2)"), ("id", "int4")]);
        let good = vec![Some(vec![0, 1, 0, 0, 0, 0, 0, 2, 0, 5]), Some(1i32.to_be_bytes().to_vec())];
        let nan = vec![Some(vec![0, 0, 0, 0, 0xc0, 0, 0, 0]), Some(7i32.to_be_bytes().to_vec())];
        let data = copy_data(&[good.clone(), nan, good]);

        let mut decoder = CopyDecoder::new(layout.clone(), OnUnrepresentable::Error);
        let error = decoder.push(&data).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Table);
        let expected = "copying public.t: column \"price\" of the row with id=7: NaN does not fit";
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(decoder.take().unwrap().num_rows(), 1);

        let mut decoder = CopyDecoder::new(layout, OnUnrepresentable::Null);
        decoder.push(&data).unwrap();
        assert_eq!((decoder.rows(), decoder.nulled()), (3, 1));
        let batch = decoder.take().unwrap();
        let prices: Vec<_> = batch.column(0).as_primitive::<Decimal128Type>().iter().collect();
        assert_eq!(prices, [Some(500), None, Some(500)]);
        assert_eq!(decoder.nulled(), 1);
    }

    #[test]
    fn a_key_is_never_nulled() {
        let layout = layout_of(&[("id", "numeric(10,2)")]);
        let mut decoder = CopyDecoder::new(layout, OnUnrepresentable::Null);
        let nan = vec![Some(vec![0, 0, 0, 0, 0xc0, 0, 0, 0])];
        assert_eq!(decoder.push(&copy_data(&[nan])).unwrap_err().kind(), ErrorKind::Table);
        assert_eq!(decoder.nulled(), 0);
    }

    #[test]
    fn rows_longer_and_shorter_than_chunks() {
        let texts: Vec<String> = (0..40).map(|row| "x".repeat(row * row * 17 % 9_973)).collect();
        let rows: Vec<_> = texts.iter().zip(0..).map(|(text, id)| row(id, Some(text))).collect();
        let data = copy_data(&rows);
        for size in [100, 1_000, 4_096, 5_000, 20_000, data.len()] {
            let chunks: Vec<&[u8]> = data.chunks(size).collect();
            let batch = decode(&simple(), &chunks).unwrap();
            let decoded: Vec<_> = batch.column(1).as_string::<i32>().iter().flatten().collect();
            assert_eq!(decoded, texts, "in chunks of {size} bytes");
        }
    }

    /// Cuts `data` at the given places, which are taken modulo what is left.
    fn cut<'a>(mut data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        for cut in cuts {
            let (chunk, rest) = data.split_at(cut % (data.len() + 1));
            chunks.push(chunk);
            data = rest;
        }
        chunks.push(data);
        chunks
    }

    proptest! {
        #[test]
        fn chunks_may_end_anywhere(
            rows in proptest::collection::vec((any::<i32>(), proptest::option::of("[^\0]{0,40}")), 0..20),
            cuts in proptest::collection::vec(0usize..200, 0..40),
        ) {
            let rows: Vec<_> = rows.iter().map(|(id, text)| row(*id, text.as_deref())).collect();
            let data = copy_data(&rows);
            let whole = decode(&simple(), &[&data]).unwrap();
            prop_assert_eq!(whole.num_rows(), rows.len());
            prop_assert_eq!(&decode(&simple(), &cut(&data, &cuts)).unwrap(), &whole);
            let bytes: Vec<&[u8]> = data.chunks(1).collect();
            prop_assert_eq!(&decode(&simple(), &bytes).unwrap(), &whole);
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cuts in proptest::collection::vec(0usize..50, 0..8),
        ) {
            let headed = [&copy_data(&[])[..19], &bytes].concat();
            let _ = decode(&simple(), &cut(&bytes, &cuts));
            let _ = decode(&simple(), &cut(&headed, &cuts));
        }

        #[test]
        fn a_flipped_byte_never_panics(
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            cuts in proptest::collection::vec(0usize..50, 0..8),
        ) {
            let layout = layout_of(&[("id", "int4"), ("n", "numeric"), ("d", "numeric(10,2)"), ("a", "int4[]")]);
            let array: Vec<u8> = [1i32, 0, 23, 1, 1, 4, 9].iter().flat_map(|word| word.to_be_bytes()).collect();
            let number = vec![0, 1, 0, 0, 0, 0, 0, 2, 0, 5];
            let row = vec![Some(vec![0, 0, 0, 1]), Some(number.clone()), Some(number), Some(array)];
            let mut data = copy_data(&[row.clone(), row]);
            let at = at.index(data.len());
            data[at] = byte;
            let _ = decode(&layout, &cut(&data, &cuts));
        }
    }
}
