//! The source's tables: every type, every kind of key, every replica identity, and names that a careless reader would trip over.

/// How the WAL identifies a table's old rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By the primary key.
    Default,
    /// By the whole row.
    Full,
    /// By a unique index beside the primary key, which is an `id` that nothing refers to.
    Index,
}

/// How a key column's value follows from the number of the key.
#[derive(Clone, Copy, Debug)]
pub enum KeyPart {
    /// The number itself.
    Number,
    /// A text, sometimes odd.
    Text,
    /// A UUID.
    Uuid,
    /// An instant, from BC on.
    Instant,
    /// A decimal number.
    Decimal,
    /// One of three: only together with another part does it say which row.
    Third,
}

/// A table.
#[derive(Debug)]
pub struct Table {
    /// Schema and name, unquoted.
    pub name: &'static str,
    /// What its rows are found by, whatever else is unique.
    pub key: &'static [(&'static str, &'static str, KeyPart)],
    /// The other columns: name and type.
    pub columns: &'static [(&'static str, &'static str)],
    /// Columns whose values are 10 to 50 KB, stored out of line: `text`, `jsonb` or `bytea`.
    pub large: &'static [(&'static str, &'static str)],
    /// The replica identity.
    pub identity: Identity,
    /// How many rows one statement of a huge transaction touches.
    pub huge: u32,
}

use KeyPart::{Decimal, Instant, Number, Text, Third, Uuid};

/// The tables.
pub const TABLES: &[Table] = &[
    Table {
        name: "public.numbers",
        key: &[("id", "int4", Number)],
        columns: &[
            ("b", "bool"),
            ("i2", "int2"),
            ("i4", "int4"),
            ("i8", "int8"),
            ("o", "oid"),
            ("f4", "float4"),
            ("f8", "float8"),
            ("n", "numeric(10,2)"),
            ("n38", "numeric(38,0)"),
            ("n_small", "numeric(38,38)"),
            ("n_any", "numeric"),
            ("p", "positive"),
            ("d", "price"),
        ],
        large: &[],
        identity: Identity::Default,
        huge: 5000,
    },
    Table {
        name: "public.texts",
        key: &[("k", "text", Text)],
        columns: &[
            ("t", "text"),
            ("v", "varchar(20)"),
            ("c", "char(6)"),
            ("ci", "citext"),
            ("n", "name"),
            ("one", "\"char\""),
            ("y", "bytea"),
            ("j", "json"),
            ("jb", "jsonb"),
            ("m", "mood"),
            ("co", "code_of_code"),
            ("x", "xml"),
        ],
        large: &[],
        identity: Identity::Default,
        huge: 500,
    },
    Table {
        name: "public.times",
        key: &[("at", "timestamptz", Instant)],
        columns: &[
            ("d", "date"),
            ("t", "time"),
            ("t3", "time(3)"),
            ("tz", "timetz"),
            ("ts", "timestamp"),
            ("tstz", "timestamptz"),
            ("i", "interval"),
            ("r", "tstzrange"),
            ("dr", "daterange"),
            ("mr", "tstzmultirange"),
        ],
        large: &[],
        identity: Identity::Default,
        huge: 500,
    },
    Table {
        name: "public.places",
        key: &[("id", "uuid", Uuid)],
        columns: &[
            ("i", "inet"),
            ("c", "cidr"),
            ("m", "macaddr"),
            ("b", "bit(5)"),
            ("vb", "varbit"),
            ("p", "point"),
            ("poly", "polygon"),
            ("money", "money"),
            ("pair", "pair"),
            ("r", "int4range"),
            ("nr", "numrange"),
            ("mr", "int4multirange"),
            ("n", "numeric"),
        ],
        large: &[],
        identity: Identity::Full,
        huge: 500,
    },
    Table {
        name: "public.documents",
        key: &[("tenant", "int4", Third), ("slug", "text", Text)],
        columns: &[("title", "text"), ("edits", "int8")],
        large: &[("body", "text"), ("meta", "jsonb"), ("blob", "bytea")],
        identity: Identity::Default,
        huge: 200,
    },
    Table {
        name: "public.documents_full",
        key: &[("id", "int8", Number)],
        columns: &[("title", "varchar(20)"), ("tags", "text[]")],
        large: &[("body", "text"), ("meta", "jsonb"), ("blob", "bytea")],
        identity: Identity::Full,
        huge: 200,
    },
    Table {
        name: "Sales 2024.Odd Names; DROP",
        key: &[("filename", "text", Text), ("rowid", "int2", Third)],
        columns: &[
            ("file_row_number", "int8"),
            ("snapshot_id", "int8"),
            ("select", "text"),
            ("Quoted \"column\"", "numeric(10,2)"),
            ("ünïcode", "float8"),
            ("count(*)", "text"),
            ("file_index", "int4"),
            ("position", "date"),
        ],
        large: &[("a b", "text")],
        identity: Identity::Index,
        huge: 500,
    },
    Table {
        name: "public.lists",
        key: &[("n", "numeric(20,5)", Decimal)],
        columns: &[
            ("ib", "bool[]"),
            ("ii", "int4[]"),
            ("i8", "int8[]"),
            ("f", "float8[]"),
            ("nu", "numeric(10,2)[]"),
            ("na", "numeric[]"),
            ("t", "text[]"),
            ("c", "char(6)[]"),
            ("y", "bytea[]"),
            ("d", "date[]"),
            ("ts", "timestamptz[]"),
            ("u", "uuid[]"),
            ("j", "jsonb[]"),
            ("m", "mood[]"),
            ("po", "positive[]"),
            ("inets", "inet[]"),
            ("rs", "int4range[]"),
            ("ps", "pair[]"),
            ("iv", "interval[]"),
            ("matrix", "int4[][]"),
            ("domain", "some_ints"),
        ],
        large: &[],
        identity: Identity::Default,
        huge: 500,
    },
];

impl Table {
    /// The table as SQL names it.
    pub fn sql(&self) -> String {
        self.name.split('.').map(quoted).collect::<Vec<_>>().join(".")
    }

    /// The statements that make it. `seq` is generated and must not be copied.
    pub fn create(&self) -> String {
        let (schema, name) = self.name.split_once('.').expect("a schema");
        let mut columns = Vec::new();
        if self.identity == Identity::Index {
            columns.push("id bigint".to_owned());
        }
        columns.extend(self.key.iter().map(|(name, pg_type, _)| format!("{} {pg_type} NOT NULL", quoted(name))));
        columns.extend(self.columns.iter().map(|(name, pg_type)| format!("{} {pg_type}", quoted(name))));
        columns.push(format!("derived text GENERATED ALWAYS AS ({}) STORED", DERIVED));
        columns.extend(self.large.iter().map(|(name, pg_type)| format!("{} {pg_type}", quoted(name))));
        let key = self.key.iter().map(|(name, ..)| quoted(name)).collect::<Vec<_>>().join(", ");
        let primary = if self.identity == Identity::Index { "id" } else { key.as_str() };
        let mut sql = format!(
            "CREATE SCHEMA IF NOT EXISTS {}; CREATE TABLE {} ({}, PRIMARY KEY ({primary}));",
            quoted(schema),
            self.sql(),
            columns.join(", ")
        );
        for (column, _) in self.large {
            sql += &format!("ALTER TABLE {} ALTER {} SET STORAGE EXTERNAL;", self.sql(), quoted(column));
        }
        match self.identity {
            Identity::Default => {}
            Identity::Full => sql += &format!("ALTER TABLE {} REPLICA IDENTITY FULL;", self.sql()),
            Identity::Index => {
                let index = quoted(&format!("{name} key"));
                sql += &format!(
                    "CREATE UNIQUE INDEX {index} ON {} ({key}); ALTER TABLE {} REPLICA IDENTITY USING INDEX {index};",
                    self.sql(),
                    self.sql()
                );
            }
        }
        sql
    }
}

/// What the generated column of every table says.
const DERIVED: &str = "'derived'::text";
/// The name of the generated column of every table.
pub const GENERATED: &str = "derived";

/// An identifier, always quoted.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
