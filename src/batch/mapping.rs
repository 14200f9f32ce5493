//! Which lake type a Postgres type gets.
//!
//! A value either arrives exactly, or as the text that `SELECT column::text` gives, or its table stops: no value is
//! rounded, wrapped or cut. `docs/types.md` is this table for users, with what was measured.
//!
//! | Postgres | lake | how | what can't be held |
//! |---|---|---|---|
//! | boolean | BOOLEAN | exact | |
//! | smallint, integer, bigint | SMALLINT, INTEGER, BIGINT | exact | |
//! | oid | UINTEGER | exact | |
//! | real, double precision | FLOAT, DOUBLE | exact: -0, ±Infinity; all NaNs are one NaN | |
//! | numeric(p,s), 0 ≤ s ≤ p ≤ 38 | DECIMAL(p,s) | exact | NaN; ±Infinity can't be stored in such a column |
//! | numeric(p,s), s < 0, p - s ≤ 38 | DECIMAL(p-s,0) | exact | NaN |
//! | numeric(p,s), p < s ≤ 38 | DECIMAL(s,s) | exact | NaN |
//! | numeric without modifier, or larger | VARCHAR | as text, trailing zeros, NaN and ±Infinity included | |
//! | text, varchar, name, "char", citext | VARCHAR | exact | |
//! | char(n) | VARCHAR | exact, with the padding that Postgres stores and shows | |
//! | enum | VARCHAR | the label | |
//! | xml | VARCHAR | as text | |
//! | json, jsonb | JSON | the text that Postgres prints | |
//! | bytea | BLOB | exact | |
//! | date | DATE | exact: ±infinity, 4713 BC to 5874897 AD | |
//! | time | TIME | exact, 24:00:00 included | |
//! | timestamp, timestamptz | TIMESTAMP, TIMESTAMPTZ | exact to the microsecond: ±infinity, from 4713 BC | past 294247-01-10 04:00:54.775806 |
//! | uuid | UUID | exact | |
//! | array declared with one dimension | LIST of the element's lake type | as its element; NULL elements, empty | several dimensions, a lower bound other than 1, what its element can't hold |
//! | array declared with several | VARCHAR | as text | |
//! | domain | as its base type | | |
//! | interval, timetz, inet, cidr, macaddr, bit, bit varying | VARCHAR | as text, made here from the binary form | |
//! | money, ranges, points, composites, tsvector, hstore, and whatever is unknown | VARCHAR | as text, made by Postgres: COPY casts, and the pipeline reads its WAL in text | |
//!
//! The text is that of `SELECT column::text`, but for two types, of which it is that of `SELECT column`: char(n),
//! whose cast would strip the padding, and xml, whose cast would show the encoding that a stored declaration names.

use super::layout::{ColumnType, LayoutColumn, Mode, TableLayout, TextSource};
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::{PgType, PgTypeKind, ReplicaIdentity, SourceColumn, SourceTable};

/// How truly a column's values arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Every value that the lake's type can hold is the same value; one that it can't hold stops the table.
    Exact,
    /// As the text that a cast gives.
    Text,
    /// Something is lost: what.
    Lossy(String),
    /// The column can't be copied: why.
    Unsupported(String),
}

/// A column's way into the lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The lake's column.
    pub column: LayoutColumn,
    /// How truly its values arrive.
    pub fidelity: Fidelity,
}

/// The type oids of `pg_type.dat` that have a lake type of their own, or are sent in a form of their own.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const CHAR: u32 = 18;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT2VECTOR: u32 = 22;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const OID: u32 = 26;
    pub(super) const OIDVECTOR: u32 = 30;
    pub(super) const JSON: u32 = 114;
    pub(super) const XML: u32 = 142;
    pub(super) const CIDR: u32 = 650;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const MACADDR8: u32 = 774;
    pub(super) const MACADDR: u32 = 829;
    pub(super) const INET: u32 = 869;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIME: u32 = 1083;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const INTERVAL: u32 = 1186;
    pub(super) const TIMETZ: u32 = 1266;
    pub(super) const BIT: u32 = 1560;
    pub(super) const VARBIT: u32 = 1562;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const REFCURSOR: u32 = 1790;
    pub(super) const UUID: u32 = 2950;
    pub(super) const JSONB: u32 = 3802;
}

/// What becomes of a type, arrays aside.
struct TypeMapping {
    column_type: ColumnType,
    fidelity: Fidelity,
    cast_to_text: bool,
    text_source: TextSource,
}

impl TypeMapping {
    fn exact(column_type: ColumnType) -> Self {
        TypeMapping { column_type, fidelity: Fidelity::Exact, cast_to_text: false, text_source: TextSource::AsSent }
    }

    /// Text whose bytes are sent as they are, in binary too.
    fn sent_as_text() -> Self {
        TypeMapping { fidelity: Fidelity::Text, ..TypeMapping::exact(ColumnType::Text) }
    }

    /// Text that is made here of what is sent.
    fn printed(text_source: TextSource) -> Self {
        TypeMapping { text_source, ..TypeMapping::sent_as_text() }
    }

    /// Text that only Postgres can make.
    fn cast() -> Self {
        TypeMapping { cast_to_text: true, text_source: TextSource::Cast, ..TypeMapping::sent_as_text() }
    }
}

/// Maps a column; with `forced_text`, to text whatever its type.
pub fn map_column(column: &SourceColumn, forced_text: bool) -> ColumnMapping {
    let pg_type = &column.pg_type;
    let mut delimiter = b',';
    let mapping = match &pg_type.element {
        Some(element) if is_list(pg_type) && !forced_text => {
            delimiter = u8::try_from(element.delimiter).unwrap_or(b',');
            if element.dimensions > 1 {
                TypeMapping::cast()
            } else {
                // The element's own type, with the modifier that was declared for the array.
                let mapping = scalar(&element.pg_type, element_typmod(pg_type, &element.pg_type));
                TypeMapping { column_type: ColumnType::List(Box::new(mapping.column_type)), ..mapping }
            }
        }
        _ if forced_text => as_text(pg_type),
        _ => scalar(pg_type, pg_type.base_typmod),
    };
    ColumnMapping {
        column: LayoutColumn {
            name: column.name.clone(),
            attnum: column.attnum,
            column_type: mapping.column_type,
            cast_to_text: mapping.cast_to_text,
            not_null: column.not_null,
            delimiter,
            text_source: mapping.text_source,
        },
        fidelity: mapping.fidelity,
    }
}

/// `int2vector` and `oidvector` have elements, but are sent and cast as types of their own, with a lower bound of 0.
fn is_list(pg_type: &PgType) -> bool {
    !matches!(pg_type.base_oid, oid::INT2VECTOR | oid::OIDVECTOR)
}

fn element_typmod(array: &PgType, element: &PgType) -> i32 {
    if array.base_typmod == -1 { element.base_typmod } else { array.base_typmod }
}

fn scalar(pg_type: &PgType, typmod: i32) -> TypeMapping {
    let column_type = match pg_type.base_oid {
        oid::BOOL => ColumnType::Bool,
        oid::INT2 => ColumnType::Int2,
        oid::INT4 => ColumnType::Int4,
        oid::INT8 => ColumnType::Int8,
        oid::OID => ColumnType::Oid,
        oid::FLOAT4 => ColumnType::Float4,
        oid::FLOAT8 => ColumnType::Float8,
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR => ColumnType::Text,
        oid::BYTEA => ColumnType::Bytes,
        oid::DATE => ColumnType::Date,
        oid::TIME => ColumnType::Time,
        oid::TIMESTAMP => ColumnType::Timestamp,
        oid::TIMESTAMPTZ => ColumnType::TimestampTz,
        oid::UUID => ColumnType::Uuid,
        oid::JSON | oid::JSONB => ColumnType::Json,
        oid::NUMERIC => match decimal(typmod) {
            Some(decimal) => decimal,
            None => return as_text(pg_type),
        },
        _ if is_citext(pg_type) => ColumnType::Text,
        _ => return as_text(pg_type),
    };
    TypeMapping::exact(column_type)
}

/// What arrives as text, because it has no lake type or because the user wants it so.
fn as_text(pg_type: &PgType) -> TypeMapping {
    match pg_type.base_oid {
        oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::CHAR | oid::REFCURSOR => TypeMapping::sent_as_text(),
        // With a client encoding of UTF-8, xml_send writes what xml_out prints; it names the encoding for others only.
        oid::JSON | oid::XML => TypeMapping::sent_as_text(),
        oid::NUMERIC => TypeMapping::printed(TextSource::Numeric),
        oid::BOOL => TypeMapping::printed(TextSource::Bool),
        oid::INET | oid::CIDR => TypeMapping::printed(TextSource::Inet),
        oid::MACADDR | oid::MACADDR8 => TypeMapping::printed(TextSource::MacAddr),
        oid::INTERVAL => TypeMapping::printed(TextSource::Interval),
        oid::TIMETZ => TypeMapping::printed(TextSource::TimeTz),
        oid::BIT | oid::VARBIT => TypeMapping::printed(TextSource::Bits),
        oid::JSONB => TypeMapping::printed(TextSource::Jsonb),
        _ if pg_type.kind == PgTypeKind::Enum || is_citext(pg_type) => TypeMapping::sent_as_text(),
        _ => TypeMapping::cast(),
    }
}

/// The extension's type, which borrows text's send function.
fn is_citext(pg_type: &PgType) -> bool {
    pg_type.base_name == "citext" && pg_type.kind == PgTypeKind::Base && pg_type.element.is_none()
}

/// The decimal type that holds every number of a `numeric(precision, scale)`; `None` where there is none.
fn decimal(typmod: i32) -> Option<ColumnType> {
    // numeric's modifier: precision in the upper 16 bits, scale in the lower 11 bits as a signed number, plus 4.
    let modifier = typmod.checked_sub(4).filter(|modifier| *modifier >= 0)?;
    let precision = modifier >> 16 & 0xffff;
    let scale = ((modifier & 0x7ff) ^ 1024) - 1024;
    let (precision, scale) = if scale < 0 {
        (precision - scale, 0)
    } else {
        // numeric(2,5) holds up to 0.00099: all of its digits lie behind the point.
        (precision.max(scale), scale)
    };
    match (u8::try_from(precision), u8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) => Some(ColumnType::Decimal { precision, scale }),
        _ => None,
    }
}

/// The lake's columns of a table, without those in `exclude`; those for which `forced_text` holds arrive as text.
///
/// # Errors
/// `Precondition` where the table has no key, or has columns that the lake can't tell apart or can't hold; `Config`
/// where a key column is excluded.
pub fn layout(table: &SourceTable, exclude: &[String], forced_text: impl Fn(&str) -> bool) -> Result<TableLayout> {
    let keyless = table.key.is_empty();
    if keyless && table.replica_identity != ReplicaIdentity::Full {
        return Err(Error::new(ErrorKind::Precondition, format!("{} has no key to find its rows by", table.name))
            .remedy("give it a primary key, a REPLICA IDENTITY USING a unique index of NOT NULL columns, or REPLICA IDENTITY FULL"));
    }
    let mut columns: Vec<LayoutColumn> = Vec::with_capacity(table.columns.len());
    let mut positions = vec![None; table.columns.len()];
    for (index, source) in table.columns.iter().enumerate() {
        let is_key = table.key.contains(&index);
        if exclude.contains(&source.name) {
            if is_key {
                let what = format!("{}: column {:?} is part of the key and can't be excluded", table.name, source.name);
                return Err(Error::new(ErrorKind::Config, what).remedy("take it out of `exclude_columns`"));
            }
            continue;
        }
        let mapping = map_column(source, forced_text(&source.name));
        let problem = match mapping.fidelity {
            Fidelity::Lossy(what) if is_key => {
                Some((format!("is part of the key, and the lake would lose {what}"), "map it to text with `types`"))
            }
            Fidelity::Unsupported(why) => Some((format!("can't be copied: {why}"), "put it into `exclude_columns`")),
            _ => None,
        };
        if let Some((problem, remedy)) = problem {
            let what = format!("{}: column {:?} {problem}", table.name, source.name);
            return Err(Error::new(ErrorKind::Precondition, what).remedy(remedy));
        }
        if let Some(other) = columns.iter().find(|other| other.name.eq_ignore_ascii_case(&source.name)) {
            let what = format!(
                "{}: the lake does not tell the columns {:?} and {:?} apart, whose names differ only in case",
                table.name, other.name, source.name
            );
            return Err(Error::new(ErrorKind::Precondition, what)
                .remedy("put one of them into `exclude_columns`, or rename it in the source"));
        }
        positions[index] = Some(columns.len());
        columns.push(mapping.column);
    }
    let key = match keyless {
        true => (0..columns.len()).collect(),
        false => table.key.iter().filter_map(|&index| positions[index]).collect(),
    };
    Ok(TableLayout { table: table.name.to_string(), columns, key, keyless, mode: Mode::Mirror })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{pg_type, table};
    use super::*;

    fn mapped(type_name: &str, forced_text: bool) -> ColumnMapping {
        let column = SourceColumn {
            attnum: 1,
            name: "v".into(),
            pg_type: pg_type(type_name),
            not_null: false,
            missing: None,
            changed_by: 0,
            parts: Default::default(),
        };
        map_column(&column, forced_text)
    }

    fn lake(type_name: &str) -> (String, Option<&'static str>) {
        let mapping = mapped(type_name, false);
        (mapping.column.column_type.lake(), mapping.column.copy_cast())
    }

    #[test]
    fn every_type_has_its_lake_type() {
        for (type_name, expected) in [
            ("bool", "BOOLEAN"),
            ("int2", "SMALLINT"),
            ("int4", "INTEGER"),
            ("int8", "BIGINT"),
            ("oid", "UINTEGER"),
            ("float4", "FLOAT"),
            ("float8", "DOUBLE"),
            ("numeric(10,2)", "DECIMAL(10,2)"),
            ("numeric(38,0)", "DECIMAL(38,0)"),
            ("numeric(5,-2)", "DECIMAL(7,0)"),
            ("numeric(38,-1)", "VARCHAR"),
            ("numeric(2,5)", "DECIMAL(5,5)"),
            ("numeric(2,39)", "VARCHAR"),
            ("numeric(39,0)", "VARCHAR"),
            ("numeric(1000,2)", "VARCHAR"),
            ("numeric", "VARCHAR"),
            ("text", "VARCHAR"),
            ("varchar(5)", "VARCHAR"),
            ("char(5)", "VARCHAR"),
            ("name", "VARCHAR"),
            ("\"char\"", "VARCHAR"),
            ("citext", "VARCHAR"),
            ("mood", "VARCHAR"),
            ("xml", "VARCHAR"),
            ("json", "JSON"),
            ("jsonb", "JSON"),
            ("bytea", "BLOB"),
            ("date", "DATE"),
            ("time", "TIME"),
            ("timestamp", "TIMESTAMP"),
            ("timestamptz", "TIMESTAMPTZ"),
            ("uuid", "UUID"),
            ("posint", "INTEGER"),
            ("interval", "VARCHAR"),
            ("timetz", "VARCHAR"),
            ("inet", "VARCHAR"),
            ("cidr", "VARCHAR"),
            ("macaddr8", "VARCHAR"),
            ("bit(3)", "VARCHAR"),
            ("interval[]", "VARCHAR[]"),
            ("int4[]", "INTEGER[]"),
            ("numeric(10,2)[]", "DECIMAL(10,2)[]"),
            ("numeric[]", "VARCHAR[]"),
            ("mood[]", "VARCHAR[]"),
            ("jsonb[]", "JSON[]"),
        ] {
            assert_eq!(lake(type_name), (expected.to_owned(), None), "{type_name}");
        }
    }

    #[test]
    fn what_only_postgres_can_print_is_cast() {
        for type_name in ["money", "tsvector", "pair", "hstore", "point", "int4range", "int2vector", "no such type"] {
            assert_eq!(lake(type_name), ("VARCHAR".to_owned(), Some("text")), "{type_name}");
            assert_eq!(mapped(type_name, false).fidelity, Fidelity::Text);
        }
        assert_eq!(lake("point[]"), ("VARCHAR[]".to_owned(), Some("text[]")));
        assert_eq!(mapped("box[]", false).column.delimiter, b';');
    }

    #[test]
    fn several_dimensions_or_a_wish_make_a_text() {
        let mut column = SourceColumn {
            attnum: 1,
            name: "v".into(),
            pg_type: pg_type("int4[]"),
            not_null: false,
            missing: None,
            changed_by: 0,
            parts: Default::default(),
        };
        let dimensions = |column: &mut SourceColumn, dimensions| {
            column.pg_type.element.as_mut().unwrap().dimensions = dimensions;
            map_column(column, false).column.column_type.lake()
        };
        assert_eq!(dimensions(&mut column, 0), "INTEGER[]");
        assert_eq!(dimensions(&mut column, 2), "VARCHAR");
        for (type_name, cast) in [("int4", Some("text")), ("int4[]", Some("text")), ("text", None), ("numeric", None)] {
            let mapping = mapped(type_name, true);
            assert_eq!(mapping.column.column_type, ColumnType::Text);
            assert_eq!(mapping.column.copy_cast(), cast, "{type_name}");
        }
    }

    #[test]
    fn a_layout_leaves_out_excluded_columns_and_keeps_the_keys_order() {
        let columns = [("a", "int4"), ("b", "text"), ("c", "uuid")];
        let table = table(&columns, &["c", "a"], ReplicaIdentity::Default);
        let layout = layout(&table, &["b".to_owned()], |_| false).unwrap();
        let names: Vec<&str> = layout.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!((names, layout.key), (vec!["a", "c"], vec![1, 0]));
        assert_eq!(layout.table, "public.t");
    }

    #[test]
    fn tables_that_can_not_be_followed_are_refused() {
        let kind = |columns: &[(&str, &str)], key: &[&str], exclude: &[String]| {
            let error = layout(&table(columns, key, ReplicaIdentity::Default), exclude, |_| false).unwrap_err();
            assert!(error.remedy_text().is_some());
            (error.kind(), error.to_string())
        };
        let columns = [("id", "int4"), ("Name", "text"), ("name", "text")];
        assert_eq!(kind(&columns, &[], &[]).0, ErrorKind::Precondition);
        assert_eq!(kind(&columns, &["id"], &["id".to_owned()]).0, ErrorKind::Config);
        let (case, message) = kind(&columns, &["id"], &[]);
        assert_eq!(case, ErrorKind::Precondition);
        assert!(message.contains("\"Name\"") && message.contains("\"name\""), "{message}");
        assert!(layout(&table(&columns, &["id"], ReplicaIdentity::Full), &["Name".to_owned()], |_| false).is_ok());
    }
}
