//! The source's tables, read from `pg_catalog` (versions 14 to 18).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tokio_postgres::types::Oid;
use tokio_postgres::{Row, SimpleQueryMessage};

use super::failure::from_client;
use super::partitions::{self, Partition};
use super::pattern::TablePattern;
use super::session::Session;
use super::table::{ArrayElement, PgType, PgTypeKind, ReplicaIdentity, SourceColumn, SourceTable, TableName};
use super::{publication, row_filter};
use crate::error::{Because, Error, ErrorKind, Result};

/// Domains over domains over arrays over domains: as deep as this, and no deeper.
const TYPE_DEPTH: usize = 32;

/// The logged tables that match one of the patterns (see [`TablePattern`]), sorted by name: ordinary ones, and partitioned ones.
///
/// Never system tables, nor `ducklake_*` and `duckpipe_*`; a pattern with `*` or `?` leaves out what belongs to an
/// extension, and partitions, whose rows are their root's. A name without wildcards that names no such table is simply missing from
/// the result.
pub async fn list_tables(session: &Session, patterns: &[TablePattern]) -> Result<Vec<TableName>> {
    let query = "SELECT n.nspname, c.relname, EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                 AND d.objid = c.oid AND d.deptype = 'e') OR c.relispartition \
                 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
                 AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
                 AND c.relname !~ '^(ducklake|duckpipe)_'";
    let rows = session.client().query(query, &[]).await.map_err(|e| from_client(e, "Listing the source's tables"))?;
    let mut tables = BTreeSet::new();
    for row in rows {
        let name = TableName { schema: row.get(0), table: row.get(1) };
        let only_by_name: bool = row.get(2);
        let wanted = |pattern: &TablePattern| match pattern.exact() {
            Some(exact) => exact == name,
            None => !only_by_name && pattern.matches(&name),
        };
        if patterns.iter().any(wanted) {
            tables.insert(name);
        }
    }
    Ok(tables.into_iter().collect())
}

/// A table with the columns that `publication` sends of it; without a publication, or where that does not exist yet,
/// the columns that a plain one would send. `None` where there is no such table, ordinary or partitioned.
pub async fn describe_table(
    session: &Session,
    name: &TableName,
    publication: Option<&str>,
) -> Result<Option<SourceTable>> {
    describe(session, Wanted::Name(name), publication, true).await
}

/// As [`describe_table`], for a table whatever it is called now, and but for the size, which is left at 0 pages: the stream, which asks, must
/// never wait for a lock. All of it is of one moment: who compares two of them must not miss that two things changed at once.
///
/// # Errors
/// Kind `Transient` where the source does not answer, or the table changes all the time.
pub async fn describe_definition(session: &Session, oid: Oid, publication: &str) -> Result<Option<SourceTable>> {
    let mut before = definition_marks(session, &[oid]).await?;
    for _ in 0..READ_AGAIN {
        let described = describe(session, Wanted::Oid(oid), Some(publication), false).await?;
        let after = definition_marks(session, &[oid]).await?;
        if after == before {
            return Ok(described);
        }
        before = after;
    }
    Err(Error::new(ErrorKind::Transient, format!("the definition of table {oid} changes all the time")))
}

/// What a table is called now; `None` where it is gone.
pub async fn name_of(session: &Session, oid: Oid) -> Result<Option<TableName>> {
    let query = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid = $1 AND c.relkind IN ('r', 'p')";
    let row = session.client().query_opt(query, &[&oid]).await;
    let row = row.map_err(|error| from_client(error, "Reading a table's name"))?;
    Ok(row.map(|row| TableName { schema: row.get(0), table: row.get(1) }))
}

/// What tables are called now, by their oids. Those that are gone are not among them.
pub async fn names_of(session: &Session, oids: &[Oid]) -> Result<hashbrown::HashMap<Oid, TableName>> {
    let query = "SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.oid = ANY ($1) AND c.relkind IN ('r', 'p')";
    let rows = session.client().query(query, &[&oids]).await;
    let rows = rows.map_err(|error| from_client(error, "Reading the tables' names"))?;
    Ok(rows.iter().map(|row| (row.get(0), TableName { schema: row.get(1), table: row.get(2) })).collect())
}

/// The table of a name; `None` where there is none.
pub async fn oid_of(session: &Session, name: &TableName) -> Result<Option<Oid>> {
    let query = "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')";
    let row = session.client().query_opt(query, &[&name.schema, &name.table]).await;
    Ok(row.map_err(|error| from_client(error, "Looking for a table"))?.map(|row| row.get(0)))
}

/// How often a definition that changes while it is read is read again.
const READ_AGAIN: u32 = 10;

/// What the texts of a column's values depend on beside the values: the labels of the enums and the attributes of the composites that the
/// type of `pg_attribute a` is, or is made of. Rows of what it is and how it looks. What comes with the server (below `FirstNormalObjectId`,
/// `src/include/access/transam.h`) is made of neither: to look at each column of thousands of tables took seconds.
const PARTS: &str = "WITH RECURSIVE made AS (SELECT a.atttypid AS oid \
    UNION SELECT part FROM made m JOIN pg_type t ON t.oid = m.oid, \
          LATERAL (SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END AS part \
                   UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid) \
                   UNION ALL SELECT f.atttypid FROM pg_attribute f \
                             WHERE t.typtype = 'c' AND f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped) p) \
    SELECT v.oid::text AS part, v.enumlabel::text AS look FROM pg_enum v WHERE v.enumtypid IN (SELECT oid FROM made) \
    UNION ALL SELECT 'composite ' || t.oid, string_agg(concat_ws(' ', f.attnum, f.atttypid, f.atttypmod), ', ' ORDER BY f.attnum) \
              FROM pg_type t JOIN pg_attribute f ON f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped \
              WHERE t.typtype = 'c' AND t.oid IN (SELECT oid FROM made) GROUP BY t.oid";

/// The least OID of what users make.
const OF_USERS: Oid = 16_384;

/// Which table is described.
enum Wanted<'a> {
    Name(&'a TableName),
    Oid(Oid),
}

/// A number for each of these tables that are there, which is another one once the table's name, its heap, its columns, the enums and
/// composites of these, its key, its replica identity, what publications send of it or its partitions are. A table that has become a partition of another one of these is none any more. It waits for no lock.
pub async fn definition_marks(session: &Session, oids: &[Oid]) -> Result<hashbrown::HashMap<Oid, i64>> {
    let partitions = format!(
        "CASE WHEN c.relkind = 'p' THEN ({} SELECT string_agg(concat_ws(' ', t.oid, t.link, p.relfilenode), ',' ORDER BY t.oid) \
         FROM tree t JOIN pg_class p ON p.oid = t.oid) END",
        partitions::tree("c.oid")
    );
    let query = format!(
        "SELECT c.oid, hashtextextended(concat_ws(' ', n.nspname, c.relname, c.relreplident, c.relfilenode, c.relnatts, \
                 (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.xmin), ',' ORDER BY a.attnum) \
                  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
                 (SELECT string_agg(concat_ws(' ', e.part, e.look), ',' ORDER BY a.attnum, e.part) \
                  FROM pg_attribute a, LATERAL ({PARTS}) e \
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= {OF_USERS}), \
                 (SELECT string_agg(concat_ws(' ', i.indkey, i.indisprimary, i.indisreplident), ',' ORDER BY i.indexrelid) \
                  FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident))"
    );
    let filters = match session.major_version() {
        ..15 => "NULL",
        _ => {
            "(SELECT string_agg(concat_ws(' ', r.prpubid, r.prqual::text), ',' ORDER BY r.oid) FROM pg_publication_rel r \
              WHERE r.prrelid = c.oid)"
        }
    };
    let published = format!(
        "(SELECT string_agg(m.oid::text, ',' ORDER BY m.oid) FROM ({}) m), \
         (SELECT string_agg(concat_ws(' ', v.oid, v.pubviaroot), ',' ORDER BY v.oid) FROM pg_publication v)",
        publication::memberships(session.major_version())
    );
    let from = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) AND NOT (c.relispartition \
                AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid AND a.relid = ANY ($1)))";
    let rows =
        session.client().query(&format!("{query}, {filters}, {published}, {partitions}), 0) {from}"), &[&oids]).await;
    let rows = rows.map_err(|error| from_client(error, "Looking at the tables' definitions"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn describe(
    session: &Session,
    wanted: Wanted<'_>,
    publication: Option<&str>,
    measured: bool,
) -> Result<Option<SourceTable>> {
    const WHAT: &str = "Reading the table's definition";
    let called = match wanted {
        Wanted::Name(name) => name.to_string(),
        Wanted::Oid(oid) => format!("table {oid}"),
    };
    let failed = |error| from_client(error, WHAT).context(called.clone());
    let client = session.client();
    let pages = if measured { partitions::SIZE } else { "0" };
    let query = format!(
        "SELECT c.oid, c.relreplident::text, c.reltuples::int8, ({pages})::int8, \
         c.relfilenode, c.relkind = 'p', n.nspname, c.relname, c.relnatts \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'"
    );
    let row = match wanted {
        Wanted::Name(TableName { schema, table }) => {
            let query = format!("{query} AND n.nspname = $1 AND c.relname = $2");
            client.query_opt(&query, &[schema, table]).await
        }
        Wanted::Oid(oid) => client.query_opt(&format!("{query} AND c.oid = $1"), &[&oid]).await,
    };
    let Some(row) = row.map_err(failed)? else { return Ok(None) };
    let name = TableName { schema: row.get(6), table: row.get(7) };
    let oid: Oid = row.get(0);
    let replica_identity = match row.get::<_, &str>(1) {
        "d" => ReplicaIdentity::Default,
        "i" => ReplicaIdentity::Index,
        "f" => ReplicaIdentity::Full,
        _ => ReplicaIdentity::Nothing,
    };
    let pages: i64 = row.get(3);
    let partitions = match row.get(5) {
        true => Some(partitions_of(session, oid, measured).await.map_err(|error| error.context(name.to_string()))?),
        false => None,
    };

    let filter = match publication {
        Some(publication) => row_filter::published(session, publication, oid).await?,
        None => None,
    };
    let published = match publication {
        Some(publication) => publication::membership(session, publication, oid).await?,
        None => None,
    };
    let columns = client.query(&columns_query(session.major_version()), &[&oid, &publication]).await.map_err(failed)?;
    let mut types = Types { session, rows: HashMap::new() };
    types.load(columns.iter().map(|row| row.get("atttypid")).collect()).await?;
    let columns = columns.iter().map(|row| types.column(row)).collect::<Result<Vec<_>>>();
    let columns = columns.map_err(|error| error.context(name.to_string()))?;

    let key = match replica_identity {
        ReplicaIdentity::Nothing => Vec::new(),
        identity => {
            // An index that is checked only at a transaction's end lets a key stand twice before: it identifies nothing.
            let query = "SELECT k.attnum FROM pg_index i, \
                         unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k (attnum, position) \
                         WHERE i.indrelid = $1 AND CASE WHEN $2 THEN i.indisreplident ELSE i.indisprimary END \
                         AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL ORDER BY k.position";
            let by_index = identity == ReplicaIdentity::Index;
            let rows = client.query(query, &[&oid, &by_index]).await.map_err(failed)?;
            let position = |row: &Row| columns.iter().position(|column| column.attnum == row.get::<_, i16>(0));
            // A key that is not published whole is no key.
            rows.iter().map(position).collect::<Option<Vec<_>>>().unwrap_or_default()
        }
    };
    // A column may have come between the two queries.
    let last_attnum = columns.iter().map(|column| column.attnum).fold(row.get(8), i16::max);
    Ok(Some(SourceTable {
        oid,
        name,
        columns,
        last_attnum,
        replica_identity,
        key,
        estimated_rows: match &partitions {
            None => row.get(2),
            Some(partitions) => {
                partitions.iter().filter(|leaf| leaf.file_node != 0).map(|leaf| leaf.estimated_rows).sum()
            }
        },
        pages: u32::try_from(pages).unwrap_or(u32::MAX),
        file_node: row.get(4),
        published,
        filter,
        partitions,
    }))
}

/// The partitions of a partitioned table, as they are now.
async fn partitions_of(session: &Session, oid: Oid, measured: bool) -> Result<Vec<Partition>> {
    let answer = session.client().simple_query(&partitions::statement(oid, measured)).await;
    let answer = answer.map_err(|error| from_client(error, "Reading the table's partitions"))?;
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| partitions::partition(|column| row.get(column))).collect()
}

/// Those of these tables that are partitions of others of them, at any depth: (partition, ancestor).
pub async fn nested(session: &Session, oids: &[Oid]) -> Result<Vec<(Oid, Oid)>> {
    let query = "SELECT w.oid, a.relid::oid FROM unnest($1::oid[]) w (oid), pg_partition_ancestors(w.oid) a \
                 WHERE a.relid <> w.oid AND a.relid = ANY ($1) ORDER BY 1, 2";
    let rows = session.client().query(query, &[&oids]).await;
    let rows = rows.map_err(|error| from_client(error, "Reading the tables' ancestors"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Column lists came with version 15, published generated columns with 18.
fn columns_query(major: u32) -> String {
    let list = if major >= 15 { "pr.prattrs::int2[]" } else { "NULL::int2[]" };
    // A publication that is yet to be made sends stored ones where it can.
    let (generated, unmade) = if major >= 18 { ("p.pubgencols::text", "'s'") } else { ("'n'", "'n'") };
    // A partitioned table has no rows of its own that could be older than a column.
    let of_partitions = format!(
        "({} SELECT min((l.attmissingval::text::text[])[1]) FROM tree t JOIN pg_attribute l ON l.attrelid = t.oid \
         AND l.attname = a.attname AND l.atthasmissing)",
        partitions::tree("$1")
    );
    format!(
        "SELECT a.attnum, a.attname, a.atttypid, a.atttypmod, a.attndims::int2 AS attndims, a.attnotnull, \
         CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] WHEN c.relkind = 'p' THEN {of_partitions} END AS missing, \
         format_type(a.atttypid, a.atttypmod) AS display, a.xmin::text::int8 AS changed_by, \
         CASE WHEN a.atttypid >= {OF_USERS} THEN (SELECT jsonb_object_agg(e.part, e.look)::text FROM ({PARTS}) e) END AS parts \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         LEFT JOIN (SELECT {list} AS list, {generated} AS generated FROM pg_publication p \
                    LEFT JOIN pg_publication_rel pr ON pr.prpubid = p.oid AND pr.prrelid = $1 \
                    WHERE p.pubname = $2) p ON true \
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
         AND CASE WHEN p.list IS NOT NULL THEN a.attnum = ANY (p.list) \
             ELSE a.attgenerated = '' OR (a.attgenerated = 's' AND coalesce(p.generated, {unmade}) = 's') END \
         ORDER BY a.attnum"
    )
}

/// What `pg_type` says of the types seen so far.
struct Types<'a> {
    session: &'a Session,
    rows: HashMap<Oid, TypeRow>,
}

struct TypeRow {
    name: String,
    kind: String,
    base: Oid,
    base_typmod: i32,
    dimensions: i32,
    /// The element, for a true array type: one that its element calls its array. (`int2vector`, `point` and others have
    /// elements too, but are no arrays.)
    element: Option<Oid>,
    delimiter: char,
    display: String,
}

impl Types<'_> {
    /// Reads these types, and all that they are made of.
    async fn load(&mut self, mut wanted: Vec<Oid>) -> Result<()> {
        let query = "SELECT t.oid, t.typname, t.typtype::text, t.typbasetype, t.typtypmod, t.typndims, \
                     CASE WHEN e.typarray = t.oid THEN e.oid END, t.typdelim::text, format_type(t.oid, NULL) \
                     FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = ANY ($1)";
        for _ in 0..TYPE_DEPTH {
            wanted.retain(|oid| !self.rows.contains_key(oid));
            if wanted.is_empty() {
                return Ok(());
            }
            let client = self.session.client();
            let rows =
                client.query(query, &[&wanted]).await.map_err(|e| from_client(e, "Reading the columns' types"))?;
            wanted.clear();
            for row in rows {
                let delimiter: &str = row.get(7);
                let found = TypeRow {
                    name: row.get(1),
                    kind: row.get(2),
                    base: row.get(3),
                    base_typmod: row.get(4),
                    dimensions: row.get(5),
                    element: row.get(6),
                    delimiter: delimiter.chars().next().unwrap_or(','),
                    display: row.get(8),
                };
                wanted.extend(found.element.into_iter().chain((found.base != 0).then_some(found.base)));
                self.rows.insert(row.get(0), found);
            }
        }
        Err(Error::new(ErrorKind::Precondition, "A column's type is nested too deeply"))
    }

    fn column(&self, row: &Row) -> Result<SourceColumn> {
        let display = row.get("display");
        let pg_type = self.resolve(row.get("atttypid"), row.get("atttypmod"), row.get("attndims"), display, 0)?;
        Ok(SourceColumn {
            attnum: row.get("attnum"),
            name: row.get("attname"),
            pg_type,
            not_null: row.get("attnotnull"),
            missing: row.get("missing"),
            changed_by: row.get::<_, i64>("changed_by") as u32,
            parts: match row.get::<_, Option<&str>>("parts") {
                Some(parts) => serde_json::from_str(parts)
                    .because(ErrorKind::Internal, || "reading what a column's type is made of".to_owned())?,
                None => BTreeMap::new(),
            },
        })
    }

    fn resolve(&self, oid: Oid, typmod: i32, dimensions: i16, display: String, depth: usize) -> Result<PgType> {
        let lost = || Error::new(ErrorKind::Transient, "A column's type changed while it was read: try again");
        let mut base_oid = oid;
        let mut base_typmod = typmod;
        let mut dimensions = dimensions;
        let mut base = self.rows.get(&oid).ok_or_else(lost)?;
        let mut steps = depth;
        while base.kind == "d" {
            // A column of a domain has no modifier of its own: the domain's holds, or that of a domain further in.
            if base_typmod < 0 {
                base_typmod = base.base_typmod;
            }
            if dimensions == 0 {
                dimensions = i16::try_from(base.dimensions).unwrap_or(i16::MAX);
            }
            base_oid = base.base;
            base = self.rows.get(&base_oid).ok_or_else(lost)?;
            steps += 1;
            if steps > TYPE_DEPTH {
                return Err(lost());
            }
        }
        let element = match base.element {
            None => None,
            Some(element_oid) => {
                let element = self.rows.get(&element_oid).ok_or_else(lost)?;
                // `character varying(10)[]` is `character varying(10)` with brackets; behind a domain, only the type's
                // name is known.
                let shown = display.strip_suffix("[]").unwrap_or(&element.display).to_owned();
                let pg_type = self.resolve(element_oid, base_typmod, 0, shown, steps + 1)?;
                Some(Box::new(ArrayElement { pg_type, dimensions, delimiter: element.delimiter }))
            }
        };
        Ok(PgType {
            oid,
            typmod,
            display,
            base_oid,
            base_typmod,
            base_name: base.name.clone(),
            kind: match base.kind.as_str() {
                "b" => PgTypeKind::Base,
                "c" => PgTypeKind::Composite,
                "e" => PgTypeKind::Enum,
                "r" => PgTypeKind::Range,
                "m" => PgTypeKind::Multirange,
                _ => PgTypeKind::Other,
            },
            element,
        })
    }
}
