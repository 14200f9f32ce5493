//! What a real server prints and sends for values of every type, decoded both ways: `fixtures/sent.tsv`.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt32Type,
};
use proptest::prelude::*;

use super::mapping;
use super::pgoutput::Value;
use super::row_builder::Origin;
use super::testing::{decode, pg_type};
use crate::source::table::SourceColumn;

struct Sent {
    type_name: String,
    printed: String,
    cast: String,
    bytes: Vec<u8>,
}

fn sent() -> Vec<Sent> {
    let lines = include_str!("fixtures/sent.tsv").lines();
    let values: Vec<Sent> = lines
        .map(|line| {
            let mut fields = line.split('\t').map(unescape);
            let mut next = || fields.next().unwrap();
            let (type_name, printed, cast, hex) = (next(), next(), next(), next());
            let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
            Sent { type_name, printed, cast, bytes }
        })
        .collect();
    assert!(values.len() > 250);
    values
}

/// Undoes the escapes of COPY's text format.
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut characters = field.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next().unwrap() {
                'n' => '\n',
                't' => '\t',
                escaped => escaped,
            },
            plain => plain,
        });
    }
    text
}

fn column(type_name: &str) -> mapping::ColumnMapping {
    let column = SourceColumn {
        attnum: 1,
        name: "v".into(),
        pg_type: pg_type(type_name),
        not_null: false,
        missing: None,
        changed_by: 0,
        parts: Default::default(),
    };
    mapping::map_column(&column, false)
}

#[test]
fn what_a_server_prints_and_what_it_sends_is_the_same_value() {
    for Sent { type_name, printed, cast, bytes } in sent() {
        let place = format!("{type_name} {printed:?}");
        let mapping = column(&type_name).column;
        let from_text = decode(&type_name, Origin::Wal, Value::Text(printed.as_bytes()));
        let from_copy = if mapping.cast_to_text {
            if mapping.column_type.arrow() != DataType::Utf8 {
                // Sent as text[], which the server casts element by element: the lists of text are tested with values
                // by hand.
                continue;
            }
            decode(&type_name, Origin::Copy, Value::Binary(cast.as_bytes()))
        } else {
            let from_wal = decode(&type_name, Origin::Wal, Value::Binary(&bytes));
            assert_eq!(from_wal, from_text, "{place} as the WAL brings it");
            decode(&type_name, Origin::Copy, Value::Binary(&bytes))
        };
        assert_eq!(from_copy, from_text, "{place} as COPY brings it");
        let Ok(array) = from_text else {
            assert!(matches!(printed.as_str(), "{{1,2},{3,4}}" | "[0:1]={1,2}"), "{place}: {from_text:?}");
            continue;
        };
        if array.data_type() == &DataType::Utf8 && !matches!(type_name.as_str(), "json" | "jsonb") {
            // Of char(n), the padding stays; of xml, the encoding that a stored declaration names goes, as in SELECT.
            let expected = if matches!(type_name.as_str(), "char(5)" | "xml") { &printed } else { &cast };
            assert_eq!(array.as_string::<i32>().value(0), expected, "{place}");
        }
    }
}

fn text(type_name: &str, text: &str) -> ArrayRef {
    decode(type_name, Origin::Wal, Value::Text(text.as_bytes())).unwrap()
}

fn binary(type_name: &str, bytes: &[u8]) -> ArrayRef {
    decode(type_name, Origin::Wal, Value::Binary(bytes)).unwrap()
}

#[test]
fn native_values_are_the_numbers_that_the_lake_expects() {
    assert!(text("bool", "t").as_boolean().value(0));
    assert!(!binary("bool", &[0]).as_boolean().value(0));
    assert_eq!(binary("int2", &[0x80, 0]).as_primitive::<Int16Type>().value(0), i16::MIN);
    assert_eq!(binary("int4", &[0, 0, 1, 0]).as_primitive::<Int32Type>().value(0), 256);
    assert_eq!(binary("int8", &[0xff; 8]).as_primitive::<Int64Type>().value(0), -1);
    assert_eq!(binary("oid", &[0xff; 4]).as_primitive::<UInt32Type>().value(0), u32::MAX);
    assert_eq!(text("float4", "-0").as_primitive::<Float32Type>().value(0).to_bits(), (-0f32).to_bits());
    assert_eq!(binary("float8", &[0x3f, 0xf8, 0, 0, 0, 0, 0, 0]).as_primitive::<Float64Type>().value(0), 1.5);
    let negative_nan = (-f64::NAN).to_be_bytes();
    assert_eq!(&*binary("float8", &negative_nan), &*text("float8", "NaN"));
    let decimal = text("numeric(10,2)", "-1.50");
    assert_eq!(decimal.as_primitive::<Decimal128Type>().value(0), -150);
    assert_eq!(decimal.data_type(), &DataType::Decimal128(10, 2));
    assert_eq!(text("numeric(5,-2)", "1234500").data_type(), &DataType::Decimal128(7, 0));
    assert_eq!(text("numeric(2,5)", "0.00099").as_primitive::<Decimal128Type>().value(0), 99);
    assert_eq!(binary("date", &[0; 4]).as_primitive::<Date32Type>().value(0), 10_957);
    assert_eq!(text("time", "24:00:00").as_primitive::<Time64MicrosecondType>().value(0), 86_400_000_000);
    let zoned = text("timestamptz", "1970-01-01 01:00:00+00");
    assert_eq!(zoned.as_primitive::<TimestampMicrosecondType>().value(0), 3_600_000_000);
    assert_eq!(zoned.data_type(), &DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())));
    let uuid = text("uuid", "00112233-4455-6677-8899-aabbccddeeff");
    assert_eq!(uuid.as_fixed_size_binary().value(0)[15], 0xff);
    assert_eq!(text("bytea", "\\x00ff").as_binary::<i32>().value(0), [0, 255]);
    assert_eq!(binary("jsonb", b"\x01{}").as_string::<i32>().value(0), "{}");
    assert_eq!(binary("json", b"{}").as_string::<i32>().value(0), "{}");
    assert_eq!(binary("\"char\"", &[0]).as_string::<i32>().value(0), "");
    assert_eq!(binary("\"char\"", &[0xe9]).as_string::<i32>().value(0), "\\351");
}

#[test]
fn lists_keep_their_elements_nulls_and_emptiness() {
    let numbers = text("int4[]", "{1,NULL,-3}");
    let numbers = numbers.as_list::<i32>().value(0);
    assert_eq!(numbers.as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(1), None, Some(-3)]);
    assert_eq!(text("int4[]", "{}").as_list::<i32>().value(0).len(), 0);
    let addresses = text("inet[]", "{10.0.0.1,NULL,10.0.0.0/8,::1}");
    let addresses = addresses.as_list::<i32>().value(0);
    assert_eq!(
        addresses.as_string::<i32>().iter().collect::<Vec<_>>(),
        [Some("10.0.0.1/32"), None, Some("10.0.0.0/8"), Some("::1/128")]
    );
    let boxes = text("box[]", "{(3,4),(1,2);(1,1),(0,0)}");
    assert_eq!(boxes.as_list::<i32>().value(0).as_string::<i32>().value(1), "(1,1),(0,0)");
}

#[test]
fn a_type_that_only_postgres_can_print_is_not_guessed_from_its_binary_form() {
    assert!(decode("money", Origin::Wal, Value::Binary(&[0; 8])).is_err());
    assert!(decode("money", Origin::Wal, Value::Text(b"$0.00")).is_ok());
    assert!(decode("money", Origin::Copy, Value::Binary(b"$0.00")).is_ok());
}

#[test]
fn malformed_values_are_refused() {
    for (type_name, bytes) in [
        ("bool", &b""[..]),
        ("int4", b"123"),
        ("int8", b"1234"),
        ("float8", b"1234"),
        ("uuid", b"1234"),
        ("text", b"\xff\xfe"),
        ("jsonb", b"\x01\xff\xfe"),
        ("time", &[0xff; 8]),
    ] {
        assert!(decode(type_name, Origin::Wal, Value::Binary(bytes)).is_err(), "{type_name} in binary");
    }
    for (type_name, text) in [
        ("bool", "yes"),
        ("int4", "2147483648"),
        ("oid", "-1"),
        ("float4", "1,5"),
        ("uuid", "1234"),
        ("bytea", "\\xz"),
        ("int4[]", "{1,x}"),
        ("date", "01/02/2024"),
    ] {
        assert!(decode(type_name, Origin::Wal, Value::Text(text.as_bytes())).is_err(), "{type_name} as text");
    }
}

/// Both forms of one value must decode to the same array.
fn same(type_name: &str, printed: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let from_text = decode(type_name, Origin::Wal, Value::Text(printed.as_bytes()));
    let from_binary = decode(type_name, Origin::Wal, Value::Binary(bytes));
    prop_assert_eq!(&from_text, &from_binary, "{} {:?}", type_name, printed);
    prop_assert!(from_text.is_ok(), "{:?}", from_text);
    Ok(())
}

proptest! {
    #[test]
    fn both_forms_of_a_number_are_the_same_value(
        small in any::<i16>(),
        integer in any::<i32>(),
        large in any::<i64>(),
        oid in any::<u32>(),
        single in any::<f32>(),
        double in any::<f64>(),
    ) {
        same("int2", &small.to_string(), &small.to_be_bytes())?;
        same("int4", &integer.to_string(), &integer.to_be_bytes())?;
        same("int8", &large.to_string(), &large.to_be_bytes())?;
        same("oid", &oid.to_string(), &oid.to_be_bytes())?;
        same("float4", &format!("{single:e}"), &single.to_be_bytes())?;
        same("float8", &format!("{double:e}"), &double.to_be_bytes())?;
    }

    #[test]
    fn both_forms_of_a_text_are_the_same_value(
        value in "[^\0]*",
        bytes in proptest::collection::vec(any::<u8>(), 0..40),
        uuid in any::<[u8; 16]>(),
    ) {
        same("text", &value, value.as_bytes())?;
        same("json", &value, value.as_bytes())?;
        same("jsonb", &value, &[b"\x01", value.as_bytes()].concat())?;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        same("bytea", &format!("\\x{hex}"), &bytes)?;
        same("uuid", &uuid::Uuid::from_bytes(uuid).to_string(), &uuid)?;
    }

    #[test]
    fn both_forms_of_a_moment_are_the_same_value(
        days in -2_451_545i32..2_145_031_949,
        time in 0i64..=86_400_000_000,
        micros in -211_813_488_000_000_000i64..9_222_000_000_000_000_000,
    ) {
        same("date", &date(i64::from(days)), &days.to_be_bytes())?;
        same("time", &clock(time), &time.to_be_bytes())?;
        let (day, time) = (micros.div_euclid(86_400_000_000), micros.rem_euclid(86_400_000_000));
        let (era_day, era) = date(day).strip_suffix(" BC").map_or((date(day), ""), |day| (day.to_owned(), " BC"));
        same("timestamp", &format!("{era_day} {}{era}", clock(time)), &micros.to_be_bytes())?;
        same("timestamptz", &format!("{era_day} {}+00{era}", clock(time)), &micros.to_be_bytes())?;
    }

    #[test]
    fn both_forms_of_a_list_are_the_same_value(
        elements in proptest::collection::vec(proptest::option::of("[^\0]*"), 0..6),
    ) {
        let printed: Vec<String> = elements.iter().map(|element| match element {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        }).collect();
        let mut bytes = Vec::new();
        let dimensions = i32::from(!elements.is_empty());
        bytes.extend(dimensions.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 25]);
        if dimensions == 1 {
            bytes.extend((elements.len() as i32).to_be_bytes());
            bytes.extend(1i32.to_be_bytes());
        }
        for element in &elements {
            bytes.extend(element.as_ref().map_or(-1, |text| text.len() as i32).to_be_bytes());
            bytes.extend(element.as_deref().unwrap_or_default().as_bytes());
        }
        same("text[]", &format!("{{{}}}", printed.join(",")), &bytes)?;
    }

    #[test]
    fn arbitrary_values_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        for type_name in [
            "bool", "int2", "int8", "float4", "numeric", "numeric(10,2)", "text", "jsonb", "bytea", "date", "time",
            "timestamp", "timestamptz", "uuid", "int4[]", "text[]", "numeric[]", "inet", "inet[]", "interval",
            "timetz", "macaddr", "bit varying", "\"char\"",
        ] {
            for origin in [Origin::Wal, Origin::Copy] {
                let _ = decode(type_name, origin, Value::Binary(&bytes));
                let _ = decode(type_name, origin, Value::Text(&bytes));
            }
        }
    }
}

/// A day since 2000-01-01 as Postgres prints it, counted day by day from known years: slow, and not the decoder's way.
fn date(day: i64) -> String {
    let cycles = day.div_euclid(146_097);
    let mut left = day.rem_euclid(146_097);
    let mut year = 2000 + 400 * cycles;
    let leap = |year: i64| year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    while left >= if leap(year) { 366 } else { 365 } {
        left -= if leap(year) { 366 } else { 365 };
        year += 1;
    }
    let mut month = 1;
    for length in [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    format!("{shown:04}-{month:02}-{:02}{era}", left + 1)
}

fn clock(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    match micros % 1_000_000 {
        0 => whole,
        fraction => format!("{whole}.{fraction:06}").trim_end_matches('0').to_owned(),
    }
}
