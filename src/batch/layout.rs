//! The columns of a table on their way into the lake.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// The columns that a table's record batches carry, in the lake's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLayout {
    /// The source table's name, for messages.
    pub table: String,
    /// The columns.
    pub columns: Vec<LayoutColumn>,
    /// The key, as indices into `columns`.
    pub key: Vec<usize>,
    /// There is no key: `key` are all columns, and several rows may be equal.
    pub keyless: bool,
    /// What the lake's table holds of it.
    pub mode: Mode,
}

/// One column of a [`TableLayout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutColumn {
    /// The column's name in source and lake, unquoted.
    pub name: String,
    /// `pg_attribute.attnum` in the source.
    pub attnum: i16,
    /// The type that its values have in the lake.
    pub column_type: ColumnType,
    /// COPY must read `column::text` (or `column::text[]`) because the type's binary form is not decoded here. A
    /// pipeline with such a column reads its WAL in text too, where Postgres' own output functions make the text.
    pub cast_to_text: bool,
    /// Declared NOT NULL in the source.
    pub not_null: bool,
    /// Element delimiter of an array's text form.
    pub delimiter: u8,
    /// How a text column (or a list's text elements) is made from what Postgres sends.
    pub text_source: TextSource,
}

/// Where the text of a [`ColumnType::Text`] column comes from, so that snapshot and stream hold the same text: the
/// one that `SELECT column::text` gives. Meaningless for other column types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextSource {
    /// The bytes sent are the text, in binary as in text.
    #[default]
    AsSent,
    /// Only Postgres can print it: COPY casts, and a binary value from the WAL is refused.
    Cast,
    /// `numeric`, whose binary form is printed as Postgres does.
    Numeric,
    /// `boolean`: the output function prints `t`, the cast `true`.
    Bool,
    /// `inet` and `cidr`: the output function leaves out the netmask of a whole inet address, the cast shows it.
    Inet,
    /// `macaddr` and `macaddr8`, whose binary form is printed as Postgres does.
    MacAddr,
    /// `interval`, likewise.
    Interval,
    /// `time with time zone`, likewise.
    TimeTz,
    /// `bit` and `bit varying`, likewise.
    Bits,
    /// `jsonb`, likewise: its binary form is its text behind a version byte.
    Jsonb,
}

/// What a lake's table holds of a source table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Its rows.
    #[default]
    Mirror,
    /// Every change of its rows, one after the other: [`CHANGE_COLUMNS`] tell which and when.
    History,
    /// Its rows, and those that were deleted: [`DELETED_COLUMNS`] tell when.
    SoftDelete,
}

/// The columns of a change, behind those of the source: name, a number in the place of an attnum, which no column of a source has, type.
pub const CHANGE_COLUMNS: [(&str, i16, ColumnType); 4] = [
    ("_op", -101, ColumnType::Text),
    ("_lsn", -102, ColumnType::UInt8),
    ("_seq", -103, ColumnType::UInt8),
    ("_commit_ts", -104, ColumnType::TimestampTz),
];

/// The column that tells when a row was deleted, behind those of the source: name, number, type.
pub const DELETED_COLUMNS: [(&str, i16, ColumnType); 1] = [("_deleted_at", -111, ColumnType::TimestampTz)];

/// The type of a lake column, and with it the Arrow type of its builder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// `boolean`.
    Bool,
    /// `smallint`, 16 bits.
    Int2,
    /// `integer`, 32 bits.
    Int4,
    /// `bigint`, 64 bits.
    Int8,
    /// `oid`, 32 bits, unsigned.
    Oid,
    /// 64 bits, unsigned: a position in the WAL, and no type of Postgres.
    UInt8,
    /// `real`.
    Float4,
    /// `double precision`.
    Float8,
    /// `numeric(precision, scale)` with 0 ≤ scale ≤ precision ≤ 38.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// Text, and every type that arrives as text.
    Text,
    /// `bytea`.
    Bytes,
    /// `date`, days since 1970-01-01.
    Date,
    /// `time`, microseconds since midnight.
    Time,
    /// `timestamp`, microseconds since 1970-01-01.
    Timestamp,
    /// `timestamptz`, microseconds since 1970-01-01 UTC.
    TimestampTz,
    /// `uuid`, 16 bytes.
    Uuid,
    /// `json` and `jsonb`, as text.
    Json,
    /// A one-dimensional array.
    List(Box<ColumnType>),
}

impl ColumnType {
    /// The Arrow type of the column's arrays. List items are nullable and named `element`.
    pub fn arrow(&self) -> DataType {
        match self {
            ColumnType::Bool => DataType::Boolean,
            ColumnType::Int2 => DataType::Int16,
            ColumnType::Int4 => DataType::Int32,
            ColumnType::Int8 => DataType::Int64,
            ColumnType::Oid => DataType::UInt32,
            ColumnType::UInt8 => DataType::UInt64,
            ColumnType::Float4 => DataType::Float32,
            ColumnType::Float8 => DataType::Float64,
            ColumnType::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            ColumnType::Text | ColumnType::Json => DataType::Utf8,
            ColumnType::Bytes => DataType::Binary,
            ColumnType::Date => DataType::Date32,
            ColumnType::Time => DataType::Time64(TimeUnit::Microsecond),
            ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            ColumnType::Uuid => DataType::FixedSizeBinary(16),
            ColumnType::List(element) => DataType::List(Arc::new(Field::new("element", element.arrow(), true))),
        }
    }

    /// The column's type in the lake, as DuckDB's SQL names it.
    pub fn lake(&self) -> String {
        match self {
            ColumnType::Bool => "BOOLEAN".into(),
            ColumnType::Int2 => "SMALLINT".into(),
            ColumnType::Int4 => "INTEGER".into(),
            ColumnType::Int8 => "BIGINT".into(),
            ColumnType::Oid => "UINTEGER".into(),
            ColumnType::UInt8 => "UBIGINT".into(),
            ColumnType::Float4 => "FLOAT".into(),
            ColumnType::Float8 => "DOUBLE".into(),
            ColumnType::Decimal { precision, scale } => format!("DECIMAL({precision},{scale})"),
            ColumnType::Text => "VARCHAR".into(),
            ColumnType::Json => "JSON".into(),
            ColumnType::Bytes => "BLOB".into(),
            ColumnType::Date => "DATE".into(),
            ColumnType::Time => "TIME".into(),
            ColumnType::Timestamp => "TIMESTAMP".into(),
            ColumnType::TimestampTz => "TIMESTAMPTZ".into(),
            ColumnType::Uuid => "UUID".into(),
            ColumnType::List(element) => format!("{}[]", element.lake()),
        }
    }
}

impl LayoutColumn {
    /// What COPY must cast the column to, if anything.
    pub fn copy_cast(&self) -> Option<&'static str> {
        match (self.cast_to_text, &self.column_type) {
            (false, _) => None,
            (true, ColumnType::List(_)) => Some("text[]"),
            (true, _) => Some("text"),
        }
    }
}

impl Mode {
    /// The mode of a table in the lake with columns of these numbers.
    pub fn of(mut attnums: impl Iterator<Item = i16>) -> Mode {
        match attnums.find(|attnum| *attnum < 0) {
            None => Mode::Mirror,
            Some(attnum) if attnum == DELETED_COLUMNS[0].1 => Mode::SoftDelete,
            Some(_) => Mode::History,
        }
    }

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Mirror => "mirror",
            Mode::History => "history",
            Mode::SoftDelete => "soft-delete",
        }
    }
}

impl TableLayout {
    /// The Arrow schema of the table's batches: all columns nullable, because an event that deletes carries only its
    /// key.
    pub fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|c| Field::new(&c.name, c.column_type.arrow(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The columns of the lake's table: name, attnum, type. Those of the source come first.
    pub fn lake_columns(&self) -> impl Iterator<Item = (&str, i16, &ColumnType)> {
        let of_changes: &[_] = match self.mode {
            Mode::Mirror => &[],
            Mode::History => &CHANGE_COLUMNS,
            Mode::SoftDelete => &DELETED_COLUMNS,
        };
        let columns = self.columns.iter().map(|column| (column.name.as_str(), column.attnum, &column.column_type));
        columns.chain(of_changes.iter().map(|(name, attnum, column_type)| (*name, *attnum, column_type)))
    }

    /// The place of a column, one of the source or behind them, in the key of the lake's rows, where these have one.
    pub fn key_place(&self, column: usize) -> Option<u16> {
        let place =
            self.key.iter().position(|key| *key == column).filter(|_| self.mode != Mode::History && !self.keyless);
        place.and_then(|place| u16::try_from(place).ok())
    }

    /// Whether the WAL can be read with pgoutput's `binary 'true'`.
    pub fn reads_binary(&self) -> bool {
        !self.columns.iter().any(|c| c.cast_to_text)
    }
}
