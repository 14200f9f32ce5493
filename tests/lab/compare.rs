//! Is every row and every value of a lake's table that of its source table?
//!
//! Each side turns a row into one canonical text by its own SQL, chosen per column by the lake's type and exact for it: floats as
//! their bits, instants as microseconds, bytes as hex, everything else as its text. The engines then hash and add up the rows, so that
//! millions cost seconds; only where the sums differ are the differing rows fetched and shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::lake::NativeLake;
use super::postgres::Client;

/// Between columns; between the elements of a list it is [`ELEMENT`].
const COLUMN: &str = "chr(31)";
const ELEMENT: &str = "chr(30)";
/// How many differing rows a report shows.
const SHOWN: usize = 10;

/// What all rows of a table add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The number of rows.
    pub rows: String,
    /// The sum of 60 bits of each row's md5.
    pub sum: String,
}

/// How one table is compared: the same columns, canonically, on both sides.
#[derive(Debug)]
pub struct Comparison {
    source_from: String,
    target: String,
    source_row: String,
    lake_row: String,
    source_key: String,
    lake_key: String,
}

impl Comparison {
    /// Prepares to compare `source` (`schema.table`, unquoted) with the lake's table `target`, all columns but `excluded`.
    /// Panics where the columns are not the same, or where a pair of types has no canonical form.
    #[track_caller]
    pub fn new(client: &Client, lake: &NativeLake, source: &str, target: &str, excluded: &[&str]) -> Comparison {
        let columns: Vec<SourceColumn> =
            source_columns(client, source).into_iter().filter(|c| !excluded.contains(&c.name.as_str())).collect();
        let lake_columns = lake.columns(target, None);
        let names = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(", ");
        assert_eq!(
            names(&mut columns.iter().map(|c| c.name.clone())),
            names(&mut lake_columns.iter().map(|(name, _)| name.clone())),
            "the columns of {source} and of the lake's {target}"
        );
        let (mut source_all, mut lake_all, mut source_key, mut lake_key) = (vec![], vec![], vec![], vec![]);
        for (column, (_, lake_type)) in columns.iter().zip(&lake_columns) {
            let quoted = format!("\"{}\"", column.name.replace('"', "\"\""));
            let (source, lake) = canonical(lake_type, column, &quoted).unwrap_or_else(|| {
                panic!("{source}.{}: {} in the source, {lake_type} in the lake", column.name, column.base)
            });
            source_all.push(format!("coalesce({source}, '\\N')"));
            lake_all.push(format!("coalesce({lake}, '\\N')"));
            if column.key {
                source_key.push(source);
                lake_key.push(lake);
            }
        }
        let join = |parts: &[String]| parts.join(&format!(" || {COLUMN} || "));
        // Without a key the whole row stands for it.
        let key = |key: &[String], all: &[String]| if key.is_empty() { join(all) } else { join(key) };
        let quoted = source.replace('\'', "''").replace('.', "\".\"");
        let kind = client.text(&format!("SELECT relkind::text FROM pg_class WHERE oid = '\"{quoted}\"'::regclass"));
        Comparison {
            source_from: format!(
                "{}{}",
                // A partitioned table has its rows in its partitions.
                if kind == "p" { "" } else { "ONLY " },
                source.split('.').map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".")
            ),
            target: target.to_owned(),
            source_key: key(&source_key, &source_all),
            lake_key: key(&lake_key, &lake_all),
            source_row: join(&source_all),
            lake_row: join(&lake_all),
        }
    }

    /// What the source's rows add up to, as the session sees them now.
    #[track_caller]
    pub fn source_fingerprint(&self, client: &Client) -> Fingerprint {
        let sql =
            format!("SELECT count(*), coalesce(sum({}), 0) FROM {}", source_hash(&self.source_row), self.source_from);
        fingerprint(client.query(&sql))
    }

    /// What the lake's rows add up to, now or at a version.
    #[track_caller]
    pub fn lake_fingerprint(&self, lake: &NativeLake, version: Option<i64>) -> Fingerprint {
        let from = NativeLake::table(&self.target, version);
        fingerprint(lake.rows(&format!("SELECT count(*), coalesce(sum({}), 0) FROM {from}", lake_hash(&self.lake_row))))
    }

    /// Compares all rows; gives their number, or a text with the first differing ones.
    #[track_caller]
    pub fn run(&self, client: &Client, lake: &NativeLake) -> Result<u64, String> {
        self.run_at(client, lake, None)
    }

    /// The same with the lake's rows at a version.
    #[track_caller]
    pub fn run_at(&self, client: &Client, lake: &NativeLake, version: Option<i64>) -> Result<u64, String> {
        let (source, target) = (self.source_fingerprint(client), self.lake_fingerprint(lake, version));
        if source == target {
            return Ok(source.rows.parse().unwrap_or_default());
        }
        Err(self.difference(client, lake, version, &source, &target))
    }

    /// Finds differing rows by halves: sums per bucket of the key's hash, then the rows of some buckets that differ.
    fn difference(
        &self,
        client: &Client,
        lake: &NativeLake,
        version: Option<i64>,
        source: &Fingerprint,
        target: &Fingerprint,
    ) -> String {
        let mut report =
            format!("{} differs: {} rows in the source, {} in the lake\n", self.target, source.rows, target.rows);
        let lake_from = NativeLake::table(&self.target, version);
        let grouped = |key: &str, hash: String, from: &str| {
            format!("SELECT substr(md5({key}), 1, 3) AS bucket, count(*) AS n, sum({hash}) AS h FROM {from} GROUP BY 1")
        };
        let source_buckets =
            buckets(client.query(&grouped(&self.source_key, source_hash(&self.source_row), &self.source_from)));
        let lake_buckets = buckets(lake.rows(&grouped(&self.lake_key, lake_hash(&self.lake_row), &lake_from)));
        let mut different: Vec<&String> = source_buckets.keys().chain(lake_buckets.keys()).collect();
        different.sort();
        different.dedup();
        different.retain(|bucket| source_buckets.get(*bucket) != lake_buckets.get(*bucket));
        let mut shown = 0;
        for bucket in different {
            let rows = |key: &str, row: &str, from: &str| {
                format!(
                    "SELECT {key} AS k, {row} AS r FROM {from} WHERE substr(md5({key}), 1, 3) = '{bucket}' ORDER BY 1, 2"
                )
            };
            let mut in_source = client.query(&rows(&self.source_key, &self.source_row, &self.source_from));
            let mut in_lake = lake.rows(&rows(&self.lake_key, &self.lake_row, &lake_from));
            in_source.retain(|row| match in_lake.iter().position(|other| other == row) {
                Some(position) => {
                    in_lake.swap_remove(position);
                    false
                }
                None => true,
            });
            for (side, rows) in [("source", in_source), ("lake  ", in_lake)] {
                for row in rows {
                    let _ = writeln!(report, "  only in {side}: {}", visible(row[1].as_deref()));
                    shown += 1;
                }
            }
            if shown >= SHOWN {
                report.push_str("  …\n");
                break;
            }
        }
        report
    }
}

/// Asserts that the lake's table equals the source's of the same name; gives the number of rows.
#[track_caller]
pub fn assert_equal(client: &Client, lake: &NativeLake, table: &str) -> u64 {
    Comparison::new(client, lake, table, table, &[]).run(client, lake).unwrap_or_else(|report| panic!("{report}"))
}

/// A row for people: the separators visible, long values cut.
fn visible(row: Option<&str>) -> String {
    let cut = |value: &str| {
        let head: String = value.chars().take(80).collect();
        if head.len() < value.len() { format!("{head}… ({} bytes)", value.len()) } else { head }
    };
    row.unwrap_or("NULL").split('\u{1f}').map(cut).collect::<Vec<_>>().join(" | ").replace('\u{1e}', ",")
}

fn source_hash(row: &str) -> String {
    format!("('x' || substr(md5({row}), 1, 15))::bit(60)::bigint")
}

fn lake_hash(row: &str) -> String {
    format!("('0x' || substr(md5({row}), 1, 15))::BIGINT")
}

fn fingerprint(rows: Vec<Vec<Option<String>>>) -> Fingerprint {
    let value = |i: usize| rows[0][i].clone().unwrap_or_default();
    Fingerprint { rows: value(0), sum: value(1) }
}

type Buckets = BTreeMap<String, (Option<String>, Option<String>)>;

fn buckets(rows: Vec<Vec<Option<String>>>) -> Buckets {
    rows.into_iter().map(|mut row| (row[0].take().unwrap_or_default(), (row[1].take(), row[2].take()))).collect()
}

/// A column of the source, its type seen through domains.
#[derive(Debug)]
struct SourceColumn {
    name: String,
    /// `pg_type.typname` of the base type.
    base: String,
    /// The element's, for an array.
    element: Option<String>,
    key: bool,
}

#[track_caller]
fn source_columns(client: &Client, table: &str) -> Vec<SourceColumn> {
    let quoted: Vec<String> = table.split('.').map(|part| format!("\"{part}\"")).collect();
    let rows = client.query(&format!(
        "WITH RECURSIVE base(attnum, oid, typtype, typbasetype) AS ( \
           SELECT a.attnum, t.oid, t.typtype, t.typbasetype FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
           WHERE a.attrelid = '{}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND (a.attgenerated = '' OR a.attgenerated = 's' AND current_setting('server_version_num')::int >= 180000) \
           UNION ALL SELECT b.attnum, t.oid, t.typtype, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.typbasetype WHERE b.typtype = 'd') \
         SELECT a.attname, t.typname, e.typname, coalesce(a.attnum = ANY (i.indkey), false) \
         FROM base b JOIN pg_attribute a ON a.attrelid = '{0}'::regclass AND a.attnum = b.attnum JOIN pg_type t ON t.oid = b.oid \
         LEFT JOIN pg_type e ON t.typcategory = 'A' AND e.oid = t.typelem \
         LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
         WHERE b.typtype <> 'd' ORDER BY a.attnum",
        quoted.join(".")
    ));
    rows.into_iter()
        .map(|mut row| SourceColumn {
            name: row[0].take().unwrap_or_default(),
            base: row[1].take().unwrap_or_default(),
            element: row[2].take(),
            key: row[3].as_deref() == Some("t"),
        })
        .collect()
}

/// The SQL on each side that gives the same text for the same value, and NULL for NULL.
fn canonical(lake_type: &str, column: &SourceColumn, quoted: &str) -> Option<(String, String)> {
    let Some(element_type) = lake_type.strip_suffix("[]") else { return scalar(lake_type, &column.base, quoted) };
    // By subscript: unnest would spread the fields of composite elements over columns.
    let (source, _) = scalar(element_type, column.element.as_deref()?, &format!("({quoted})[i]"))?;
    let (_, lake) = scalar(element_type, column.element.as_deref()?, "e")?;
    Some((
        format!(
            "CASE WHEN {quoted} IS NOT NULL THEN '[' || coalesce((SELECT string_agg(coalesce({source}, '\\N'), {ELEMENT} ORDER BY i) \
             FROM generate_subscripts({quoted}, 1) i), '') || ']' END"
        ),
        format!(
            "CASE WHEN {quoted} IS NOT NULL THEN '[' || coalesce(array_to_string(list_transform({quoted}, lambda e: \
             coalesce({lake}, '\\N')), {ELEMENT}), '') || ']' END"
        ),
    ))
}

fn scalar(lake_type: &str, source_type: &str, x: &str) -> Option<(String, String)> {
    let kind = lake_type.split('(').next().unwrap_or(lake_type);
    let finite = |number: String| format!("CASE WHEN isfinite({x}) THEN {number} ELSE {x}::text END");
    let pair = match kind {
        // A cast to text drops the padding of char(n), which is part of the value that the source sends.
        "VARCHAR" | "JSON" if source_type == "bpchar" => {
            (format!("CASE WHEN {x} IS NOT NULL THEN format('%s', {x}) END"), format!("{x}::VARCHAR"))
        }
        "VARCHAR"
        | "JSON"
        | "BOOLEAN"
        | "SMALLINT"
        | "INTEGER"
        | "BIGINT"
        | "UINTEGER"
        | "UBIGINT"
        | "HUGEINT"
        | "UUID"
        | "TIME WITH TIME ZONE" => (format!("{x}::text"), format!("{x}::VARCHAR")),
        // DuckDB prints no digit before the point where all digits lie behind it: DECIMAL(38,38).
        "DECIMAL" => (format!("{x}::text"), format!("regexp_replace({x}::VARCHAR, '^(-?)[.]', '\\10.')")),
        "FLOAT" => (format!("('x' || encode(float4send({x}), 'hex'))::bit(32)::text"), format!("{x}::BIT::VARCHAR")),
        "DOUBLE" => (format!("('x' || encode(float8send({x}), 'hex'))::bit(64)::text"), format!("{x}::BIT::VARCHAR")),
        "BLOB" => (format!("encode({x}, 'hex')"), format!("lower(hex({x}))")),
        "DATE" => (
            finite(format!("({x} - date '1970-01-01')::text")),
            format!(
                "CASE WHEN isfinite({x}) THEN date_diff('day', DATE '1970-01-01', {x})::VARCHAR ELSE {x}::VARCHAR END"
            ),
        ),
        "TIMESTAMP" | "TIMESTAMP WITH TIME ZONE" => (
            finite(format!("(extract(epoch FROM {x}) * 1000000)::bigint::text")),
            format!("CASE WHEN isfinite({x}) THEN epoch_us({x})::VARCHAR ELSE {x}::VARCHAR END"),
        ),
        "TIME" => (format!("(extract(epoch FROM {x}) * 1000000)::bigint::text"), format!("epoch_us({x})::VARCHAR")),
        _ => return None,
    };
    Some(pair)
}
