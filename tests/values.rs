//! The types of the sources that duckpipe supports, each with the values where mistakes hide: what both `types` and `differential` write.

/// A type with its extreme values.
#[derive(Debug)]
pub struct Case {
    /// The type as a column's declaration names it.
    pub pg_type: &'static str,
    /// The type of such a column in the lake, as DuckDB names it.
    pub lake_type: &'static str,
    /// Values in their text form, none of them NULL.
    pub values: &'static [&'static str],
}

/// What must exist in the database before the types of [`NATIVE`] and [`AS_TEXT`] do.
pub const PREPARE: &str = "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'Über, \"all\"'); \
    CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN price AS numeric(6,2); CREATE DOMAIN code AS varchar(10); \
    CREATE DOMAIN code_of_code AS code; CREATE DOMAIN some_ints AS int[]; CREATE TYPE pair AS (a int, b text)";

const fn case(pg_type: &'static str, lake_type: &'static str, values: &'static [&'static str]) -> Case {
    Case { pg_type, lake_type, values }
}

/// Types whose binary form is understood: with these alone a pipeline reads its WAL in binary.
pub const NATIVE: &[Case] = &[
    case("bool", "BOOLEAN", &["t", "f"]),
    case("int2", "SMALLINT", &["-32768", "32767", "0", "-1"]),
    case("int4", "INTEGER", &["-2147483648", "2147483647", "0", "-1"]),
    case("int8", "BIGINT", &["-9223372036854775808", "9223372036854775807", "0", "-1"]),
    case("oid", "UINTEGER", &["0", "4294967295", "2147483648"]),
    case("float4", "FLOAT", &["NaN", "Infinity", "-Infinity", "-0", "0", "3.4028235e38", "1e-45", "0.1", "16777217"]),
    case(
        "float8",
        "DOUBLE",
        &["NaN", "Infinity", "-Infinity", "-0", "0", "1.7976931348623157e308", "5e-324", "0.1", "-2.5e-9"],
    ),
    case("numeric(4,1)", "DECIMAL(4,1)", &["999.9", "-999.9", "0", "-0.1", "10"]),
    case("numeric(10,2)", "DECIMAL(10,2)", &["99999999.99", "-99999999.99", "0", "0.01", "10000", "100000000e-4"]),
    case("numeric(18,9)", "DECIMAL(18,9)", &["999999999.999999999", "-0.000000001", "10000.0001"]),
    case(
        "numeric(38,0)",
        "DECIMAL(38,0)",
        &["99999999999999999999999999999999999999", "-99999999999999999999999999999999999999", "0", "10000", "1e37"],
    ),
    case(
        "numeric(38,38)",
        "DECIMAL(38,38)",
        &["0.99999999999999999999999999999999999999", "-0.00000000000000000000000000000000000001", "0"],
    ),
    case("numeric(38,10)", "DECIMAL(38,10)", &["9999999999999999999999999999.9999999999", "-1.0000000001", "0.5"]),
    case(
        "numeric",
        "VARCHAR",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "0.000",
            "1.50",
            "-0.10",
            "10000",
            "0.00010000",
            "123456789012345678901234567890.1234567890000",
            "1e300",
            "1e-300",
        ],
    ),
    case("numeric(50,5)", "VARCHAR", &["NaN", "0", "1.5", "-123456789012345678901234567890123456789.12345"]),
    case("text", "VARCHAR", &["", " ", "ü€😀", "it's", "a\nb\tc\\d\"e", "\\N", "NULL", "{}", "e\u{301}"]),
    case("varchar(20)", "VARCHAR", &["", "   ", "twenty characters ok", "ÄÖÜäöüßÄÖÜäöüßÄÖÜäö"]),
    case("varchar", "VARCHAR", &["", "x"]),
    case("char(6)", "VARCHAR", &["", "ab", "ab  c", "üüüüüü"]),
    case("\"char\"", "VARCHAR", &["", "x", " "]),
    case("citext", "VARCHAR", &["", "AbC", "abc"]),
    case(
        "name",
        "VARCHAR",
        &["", "Name with spaces", "n23456789012345678901234567890123456789012345678901234567890123"],
    ),
    case("bytea", "BLOB", &["\\x", "\\x00", "\\x00ff5c275c78", "\\x20"]),
    case(
        "date",
        "DATE",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 BC",
            "0001-12-31 BC",
            "0001-01-01",
            "1582-10-10",
            "1969-12-31",
            "1970-01-01",
            "2000-02-29",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
        ],
    ),
    case("time", "TIME", &["00:00", "24:00:00", "23:59:59.999999", "00:00:00.000001", "12:34:56.7"]),
    case("time(3)", "TIME", &["23:59:59.999", "00:00"]),
    case(
        "timestamp",
        "TIMESTAMP",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00 BC",
            "0001-12-31 23:59:59.999999 BC",
            "0001-01-01",
            "1969-12-31 23:59:59.999999",
            "1970-01-01",
            "2000-01-01 00:00:00.000001",
            "9999-12-31 23:59:59.999999",
            "10000-01-01",
            "294247-01-10 04:00:54.775806",
        ],
    ),
    case(
        "timestamptz",
        "TIMESTAMP WITH TIME ZONE",
        &[
            "infinity",
            "-infinity",
            "4714-11-24 00:00:00+00 BC",
            "0001-12-31 23:59:59.999999+00 BC",
            "0001-01-01 00:00:00+00",
            "1969-12-31 23:59:59.999999+00",
            "2000-01-01 00:00:00.000001+05:30",
            "9999-12-31 23:59:59.999999+00",
            "10000-01-01 00:00:00-12",
            "294247-01-10 04:00:54.775806+00",
        ],
    ),
    case(
        "uuid",
        "UUID",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "80000000-0000-0000-0000-000000000001",
        ],
    ),
    case("json", "JSON", &["{\"b\" : 1,  \"a\":2, \"a\":3}", "null", "\"\"", "[]", "\"\\u00fc\"", " 1.50 ", "1e400"]),
    case(
        "jsonb",
        "JSON",
        &["{}", "null", "[1, 2.50, null, true, \"x\\ny\"]", "{\"ü\": {\"a\": -0.0}}", "1e40", "\"\""],
    ),
    case("mood", "VARCHAR", &["sad", "it's ok", "Über, \"all\""]),
    case("positive", "INTEGER", &["1", "2147483647"]),
    case("price", "DECIMAL(6,2)", &["9999.99", "-0.01", "0"]),
    case("code", "VARCHAR", &["", "Ü"]),
    case("code_of_code", "VARCHAR", &["", "twice"]),
    case("some_ints", "INTEGER[]", &["{}", "{1,NULL,-1}", "{NULL}"]),
    case("xml", "VARCHAR", &["", "<a/>", "<a x=\"1\">ü &amp; <!-- c --></a>", "text only"]),
];

/// Types that only Postgres can turn into their text: a pipeline with one of these reads its WAL as text.
pub const AS_TEXT: &[Case] = &[
    case("timetz", "VARCHAR", &["00:00:00+15:59:59", "24:00:00-15:59:59", "12:34:56.789+05:30"]),
    case(
        "interval",
        "VARCHAR",
        &[
            "0",
            "1 year 2 mons -3 days 04:05:06.789",
            "-178000000 years",
            "178000000 years",
            "1 mon -1 day",
            "-00:00:00.000001",
        ],
    ),
    case("money", "VARCHAR", &["0", "-92233720368547758.08", "92233720368547758.07", "0.01"]),
    case(
        "inet",
        "VARCHAR",
        &[
            "0.0.0.0",
            "192.168.0.1",
            "192.168.0.1/24",
            "255.255.255.255/0",
            "::",
            "::1",
            "2001:db8::/32",
            "::ffff:1.2.3.4",
        ],
    ),
    case("cidr", "VARCHAR", &["0.0.0.0/0", "10.0.0.0/8", "192.168.0.1/32", "2001:db8::/32", "::1/128"]),
    case("macaddr", "VARCHAR", &["00:00:00:00:00:00", "08:00:2b:01:02:03"]),
    case("macaddr8", "VARCHAR", &["08:00:2b:01:02:03:04:05"]),
    case("bit(5)", "VARCHAR", &["00000", "10101", "11111"]),
    case("varbit", "VARCHAR", &["", "1", "0101010101010101010101"]),
    case("int4range", "VARCHAR", &["empty", "[1,5)", "(,)", "[1,)", "(,2147483647)"]),
    case("int8range", "VARCHAR", &["empty", "[-9223372036854775808,5)"]),
    case("numrange", "VARCHAR", &["[1.50,2.5]", "(,0)"]),
    case("daterange", "VARCHAR", &["[2020-01-01,infinity)", "[4714-11-24 BC,2000-02-29)"]),
    case("tsrange", "VARCHAR", &["[2020-01-01 00:00:00.5,)"]),
    case("tstzrange", "VARCHAR", &["[2020-01-01 00:00:00.5+02,2021-01-01 00:00:00-03)", "empty"]),
    case("int4multirange", "VARCHAR", &["{}", "{[1,3),[5,8)}"]),
    case("tstzmultirange", "VARCHAR", &["{}", "{[2020-01-01 00:00:00+02,2021-01-01 00:00:00-03)}"]),
    case("point", "VARCHAR", &["(1.5,-0)", "(NaN,Infinity)", "(1e300,0.1)"]),
    case("line", "VARCHAR", &["{1,-1,0.5}"]),
    case("lseg", "VARCHAR", &["[(0,0),(1,1)]"]),
    case("box", "VARCHAR", &["(1,1),(0,0)"]),
    case("path", "VARCHAR", &["[(0,0),(1,1),(2,0)]", "((0,0),(1,1))"]),
    case("polygon", "VARCHAR", &["((0,0),(1,1),(2,0))"]),
    case("circle", "VARCHAR", &["<(0,0),1.5>"]),
    case("pair", "VARCHAR", &["(1,\"x \"\"y\"\" \\\\ ,\")", "(,)", "(-1,\"\")"]),
    case("tsvector", "VARCHAR", &["", "'a':1 'it''s':2A"]),
    case("tsquery", "VARCHAR", &["'a' & !'b'"]),
    case("pg_lsn", "VARCHAR", &["0/0", "FFFFFFFF/FFFFFFFF"]),
    case("jsonpath", "VARCHAR", &["$.\"a\"[*]?(@ > 1)"]),
    case("int4[][]", "VARCHAR", &["{}", "{{1,2},{3,NULL}}", "{5,6}", "[0:1]={7,8}", "[2:2][3:4]={{1,2}}"]),
    case("text[][]", "VARCHAR", &["{{\"\",NULL},{\"NULL\",\"a,\\\"b\\\\\"}}"]),
];

/// The case of a type.
#[track_caller]
pub fn of(pg_type: &str) -> &'static Case {
    let found = NATIVE.iter().chain(AS_TEXT).find(|case| case.pg_type == pg_type);
    found.unwrap_or_else(|| panic!("no values for {pg_type}"))
}

/// A value as an SQL literal, without a type of its own.
pub fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// An array of values, `None` for a NULL element, as an SQL expression.
pub fn array(pg_type: &str, values: &[Option<&str>]) -> String {
    let elements: Vec<String> = values.iter().map(|v| v.map_or_else(|| "NULL".to_owned(), literal)).collect();
    format!("ARRAY[{}]::{pg_type}[]", elements.join(", "))
}
