//! Decides whether a text is one harmless SELECT.
//!
//! DuckDB's own parser makes the tree (`json_serialize_sql`, which knows SELECT statements only), on a connection that has
//! nothing attached. Then every node must be of a kind that is known to be harmless: what is not listed is refused, so
//! that a construct which a later DuckDB adds is refused too. A read-only transaction would not do: `ducklake_expire_snapshots`
//! deletes snapshots in one, and COPY TO writes files (both measured).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use duckdb::Connection;

use super::select_lists::{
    DELETED_ROWS, EXPRESSIONS, FILE_ENDINGS, NODES, SCALAR_DENIED, SYSTEM_VIEWS, TABLE_FUNCTIONS,
};
use crate::error::{Because, Error, ErrorKind, Result};

/// The longest statement that is looked at, in bytes.
const LONGEST: usize = 1 << 20;

/// The judge of statements.
pub struct Guard {
    connection: Connection,
    /// Functions that DuckDB itself brings.
    builtin: HashSet<String>,
}

/// A statement that is one SELECT of harmless parts. What it names is still to be compared with the lake: [`Select::check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    /// The statement, without a semicolon at its end.
    pub text: String,
    /// The tables that it names, as written; common table expressions are not among them.
    pub tables: BTreeSet<TableReference>,
    /// The scalar and aggregate functions that it calls, in lower case.
    pub functions: BTreeSet<String>,
    /// Whether it reads rows that the lake deleted, each with its snapshot: [`DELETED_ROWS`].
    pub deleted_rows: bool,
}

/// A table as a statement names it; parts that are not given are empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableReference {
    /// The attached database.
    pub catalog: String,
    /// The schema; DuckDB reads `lake.x` with the database's name here.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl std::fmt::Display for TableReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [&self.catalog, &self.schema, &self.table];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        f.write_str(&parts.join("."))
    }
}

/// What a lake has, for [`Select::check`].
#[derive(Clone, Debug, Default)]
pub struct LakeNames {
    /// The name that the lake is attached by.
    pub catalog: String,
    /// Tables and harmless views: schema and name.
    pub tables: Vec<(String, String)>,
    /// Views that are not harmless, each with the reason.
    pub refused_views: Vec<(String, String, String)>,
    /// The schemas in which a bare name is looked up.
    pub search_path: Vec<String>,
    /// The lake's own macros: they could go by the name of a built-in function.
    pub functions: HashSet<String>,
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message).remedy("query runs one SELECT that only reads the lake")
}

impl Guard {
    /// Starts a DuckDB of its own, with nothing in it.
    pub fn open() -> Result<Guard> {
        let open = || -> duckdb::Result<Guard> {
            let config = duckdb::Config::default().threads(1)?.enable_external_access(false)?.max_memory("256MB")?;
            let connection = Connection::open_in_memory_with_flags(config)?;
            let mut builtin = HashSet::new();
            {
                let sql = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() \
                    WHERE internal AND function_type IN ('scalar', 'aggregate', 'macro')";
                let mut statement = connection.prepare(sql)?;
                let mut rows = statement.query([])?;
                while let Some(row) = rows.next()? {
                    builtin.insert(row.get::<_, String>(0)?);
                }
            }
            Ok(Guard { connection, builtin })
        };
        open().because(ErrorKind::Internal, || "DuckDB's parser can't be started".into())
    }

    /// Judges a text.
    pub fn inspect(&self, sql: &str) -> Result<Select> {
        if sql.len() > LONGEST {
            return Err(refused("the statement is longer than a megabyte"));
        }
        if sql.contains('\0') {
            return Err(refused("the statement holds a NUL character"));
        }
        let tree = self.parse(sql)?;
        let mut select =
            Walk { tree: &tree, builtin: &self.builtin, ctes: tree.ctes(), found: Select::empty() }.run()?;
        select.text = self.without_semicolon(sql)?;
        Ok(select)
    }

    /// The text up to the semicolon that ends it, so that it can stand in parentheses. A semicolon inside a string or a comment
    /// ends nothing: the parser tells, because a text cut there does not read the same.
    fn without_semicolon(&self, sql: &str) -> Result<String> {
        let wanted = self.serialized(sql)?;
        let mut text = sql;
        while let Some(at) = text.rfind(';') {
            if self.serialized(&text[..at])? != wanted {
                break;
            }
            text = &text[..at];
        }
        Ok(text.trim().to_owned())
    }

    fn serialized(&self, sql: &str) -> Result<String> {
        self.connection
            .query_row("SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", [sql], |row| row.get(0))
            .because(ErrorKind::Config, || "the statement can't be read".into())
    }

    fn parse(&self, sql: &str) -> Result<Tree> {
        // DuckDB takes its own JSON apart, into one row for each node: a statement may nest deeper than a stack.
        let rows = || -> duckdb::Result<Tree> {
            let mut statement = self.connection.prepare(
                "SELECT id, parent, key, type, json_extract_string(atom, '$') \
                 FROM json_tree(json_serialize_sql(?::VARCHAR)) ORDER BY id",
            )?;
            let mut rows = statement.query([sql])?;
            let mut tree = Tree::default();
            while let Some(row) = rows.next()? {
                let id: u64 = row.get(0)?;
                let parent: Option<u64> = row.get(1)?;
                let key: Option<String> = row.get(2)?;
                let kind: String = row.get(3)?;
                let atom: Option<String> = row.get(4)?;
                tree.add(id, parent, key, &kind, atom);
            }
            Ok(tree)
        };
        let tree = rows().because(ErrorKind::Config, || "the statement can't be read".into())?;
        let root = tree.node(0);
        if root.atom("error") != Some("false") {
            let message = root.atom("error_message").unwrap_or("the statement can't be read");
            return Err(match root.atom("error_type") {
                Some("parser") => Error::new(ErrorKind::Config, message.to_owned())
                    .remedy("the statement must be in DuckDB's SQL; a lake table is named schema.table"),
                _ => refused("this is no SELECT"),
            });
        }
        match root.child("statements").map(|statements| tree.node(statements).children.len()) {
            Some(1) => Ok(tree),
            Some(0) => Err(refused("the statement is empty")),
            _ => Err(refused("there is more than one statement")),
        }
    }
}

/// The parser's JSON as nodes by their id.
#[derive(Default)]
struct Tree {
    nodes: HashMap<u64, Node>,
}

/// An object or an array: its atoms by key, its objects and arrays by key.
#[derive(Default)]
struct Node {
    key: String,
    parent: Option<u64>,
    is_object: bool,
    atoms: BTreeMap<String, String>,
    children: Vec<(String, u64)>,
}

impl Node {
    fn atom(&self, key: &str) -> Option<&str> {
        self.atoms.get(key).map(String::as_str)
    }

    fn child(&self, key: &str) -> Option<u64> {
        self.children.iter().find(|(name, _)| name == key).map(|(_, id)| *id)
    }
}

/// An empty node, for ids that are not there.
static NOTHING: Node =
    Node { key: String::new(), parent: None, is_object: false, atoms: BTreeMap::new(), children: Vec::new() };

impl Tree {
    fn add(&mut self, id: u64, parent: Option<u64>, key: Option<String>, kind: &str, atom: Option<String>) {
        let key = key.unwrap_or_default();
        let parent_node = parent.and_then(|parent| self.nodes.get_mut(&parent));
        if kind == "OBJECT" || kind == "ARRAY" {
            if let Some(parent) = parent_node {
                parent.children.push((key.clone(), id));
            }
            self.nodes.insert(id, Node { key, parent, is_object: kind == "OBJECT", ..Node::default() });
        } else if let (Some(parent), Some(atom)) = (parent_node, atom) {
            parent.atoms.insert(key, atom);
        }
    }

    fn node(&self, id: u64) -> &Node {
        self.nodes.get(&id).unwrap_or(&NOTHING)
    }

    /// The names of all common table expressions, in lower case.
    fn ctes(&self) -> HashSet<String> {
        let maps = self.nodes.values().filter(|node| node.key == "map" && !node.is_object);
        let entries = maps.flat_map(|map| map.children.iter().map(|(_, id)| self.node(*id)));
        let named = entries.filter_map(|entry| entry.atom("key"));
        // A recursive one carries its name on its own node.
        let recursive = self.nodes.values().filter_map(|node| node.atom("cte_name"));
        named.chain(recursive).map(str::to_lowercase).collect()
    }
}

struct Walk<'a> {
    tree: &'a Tree,
    builtin: &'a HashSet<String>,
    ctes: HashSet<String>,
    found: Select,
}

impl Select {
    fn empty() -> Select {
        Select { text: String::new(), tables: BTreeSet::new(), functions: BTreeSet::new(), deleted_rows: false }
    }
}

impl Walk<'_> {
    fn run(mut self) -> Result<Select> {
        // In the order of the text, so that the first thing wrong is the one that is told.
        let mut ids: Vec<u64> = self.tree.nodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            let node = self.tree.node(id);
            match (node.atom("class"), node.atom("type")) {
                (Some(class), _) => self.expression(node, class)?,
                (None, Some(kind)) => self.reference(node, kind)?,
                (None, None) => {}
            }
        }
        Ok(self.found)
    }

    fn expression(&mut self, node: &Node, class: &str) -> Result<()> {
        if class == "PARAMETER" {
            return Err(refused("the statement has parameters, and query has no values for them"));
        }
        if !EXPRESSIONS.contains(&class) {
            return Err(refused(format!("an expression of the kind {class} is not allowed")));
        }
        let Some(name) = node.atom("function_name") else { return Ok(()) };
        let name = name.to_lowercase();
        let holder = node.parent.map(|parent| self.tree.node(parent));
        let is_table_function =
            node.key == "function" && holder.is_some_and(|node| node.atom("type") == Some("TABLE_FUNCTION"));
        if is_table_function {
            if !TABLE_FUNCTIONS.contains(&name.as_str()) {
                return Err(refused(format!("the table function {name} is not allowed")));
            }
            self.found.deleted_rows |= DELETED_ROWS.contains(&name.as_str());
            return Ok(());
        }
        // unnest stands among columns too, and the tree shows operators as functions.
        let known = self.builtin.contains(&name) || name == "unnest" || class == "WINDOW";
        if !known || SCALAR_DENIED.contains(&name.as_str()) {
            return Err(refused(format!("the function {name} is not allowed")));
        }
        self.found.functions.insert(name);
        Ok(())
    }

    fn reference(&mut self, node: &Node, kind: &str) -> Result<()> {
        // A type's details, as in DECIMAL(10,2), are no node of the statement.
        if node.key == "type_info" || kind.ends_with("_TYPE_INFO") {
            return Ok(());
        }
        if !NODES.contains(&kind) {
            return Err(refused(format!("a statement part of the kind {kind} is not allowed")));
        }
        match kind {
            "BASE_TABLE" => self.table(node),
            "SHOW_REF" => show(node),
            _ => Ok(()),
        }
    }

    fn table(&mut self, node: &Node) -> Result<()> {
        let part = |key: &str| node.atom(key).unwrap_or_default().to_owned();
        let table =
            TableReference { catalog: part("catalog_name"), schema: part("schema_name"), table: part("table_name") };
        for name in [&table.catalog, &table.schema, &table.table] {
            if name.contains(['/', '\\', '*', '?', '[', ':']) {
                return Err(refused(format!("{name:?} names a file, not a table of the lake")));
            }
        }
        let ending = table.table.rsplit_once('.').map(|(_, ending)| ending.to_lowercase());
        if ending.is_some_and(|ending| FILE_ENDINGS.contains(&ending.as_str())) {
            return Err(refused(format!("{:?} names a file, not a table of the lake", table.table)));
        }
        let is_cte =
            table.catalog.is_empty() && table.schema.is_empty() && self.ctes.contains(&table.table.to_lowercase());
        if !is_cte {
            self.found.tables.insert(table);
        }
        Ok(())
    }
}

/// `SHOW TABLES`, `DESCRIBE …` and `SUMMARIZE …` only look; `SHOW DATABASES` and `SHOW VARIABLES` look elsewhere than at the lake.
fn show(node: &Node) -> Result<()> {
    let what = node.atom("table_name").unwrap_or_default();
    let allowed = ["", "\"tables\"", "\"schemas\"", "__show_tables_expanded"];
    if node.child("query").is_some() || allowed.contains(&what) {
        return Ok(());
    }
    Err(refused(format!("SHOW {} is not allowed", what.trim_matches('"'))))
}

impl Select {
    /// Compares the names with what the lake has. A name that is not there is refused here, before DuckDB looks for a file of that name.
    pub fn check(&self, lake: &LakeNames) -> Result<()> {
        if let Some(function) = self.functions.iter().find(|name| lake.functions.contains(*name)) {
            return Err(refused(format!("the lake has a macro {function}, and macros are not run")));
        }
        self.tables.iter().try_for_each(|table| check_table(table, lake))
    }
}

fn check_table(table: &TableReference, lake: &LakeNames) -> Result<()> {
    let same = str::eq_ignore_ascii_case;
    if !table.catalog.is_empty() && !same(&table.catalog, &lake.catalog) {
        return Err(refused(format!("{table} lies outside of the lake")));
    }
    if table.catalog.is_empty() {
        let system = same(&table.schema, "information_schema")
            || (same(&table.schema, "pg_catalog") && !same(&table.table, "pg_settings"))
            || (table.schema.is_empty() && SYSTEM_VIEWS.iter().any(|view| same(view, &table.table)));
        if system {
            return Ok(());
        }
    }
    let in_scope = |schema: &str| {
        let by_schema = same(&table.schema, schema);
        // lake.orders names the lake's default schema, where lake is no schema itself.
        let bare = table.schema.is_empty() || (table.catalog.is_empty() && same(&table.schema, &lake.catalog));
        by_schema || (bare && lake.search_path.iter().any(|path| same(path, schema)))
    };
    let refused_view = lake.refused_views.iter().find(|(schema, name, _)| same(name, &table.table) && in_scope(schema));
    if let Some((schema, name, reason)) = refused_view {
        return Err(refused(format!("the view {schema}.{name} is not harmless: {reason}")));
    }
    if lake.tables.iter().any(|(schema, name)| same(name, &table.table) && in_scope(schema)) {
        return Ok(());
    }
    let error = Error::new(ErrorKind::Config, format!("the lake has no table {table}"));
    let wanted = table.to_string().to_lowercase();
    let names = lake.tables.iter().map(|(schema, name)| (format!("{schema}.{name}"), name));
    let distance = |full: &str, bare: &str| {
        strsim::damerau_levenshtein(&full.to_lowercase(), &wanted)
            .min(strsim::damerau_levenshtein(&bare.to_lowercase(), &wanted))
    };
    let nearest = names.map(|(full, bare)| (distance(&full, bare), full)).min();
    Err(match nearest {
        Some((distance, near)) if distance <= 1 + wanted.len() / 3 => error.remedy(format!("did you mean {near}?")),
        _ => error.remedy("name it schema.table; SHOW ALL TABLES lists the tables"),
    })
}

/// Statements that must never run, for this module's test and for the one that runs them against a lake.
#[cfg(test)]
pub(crate) const HOSTILE: &[&str] = &[
    "",
    ";",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE public.orders",
    "INSERT INTO public.orders VALUES (1, 'x')",
    "UPDATE public.orders SET id = 1",
    "DELETE FROM public.orders",
    "TRUNCATE public.orders",
    "DROP TABLE public.orders",
    "DROP SCHEMA public CASCADE",
    "ALTER TABLE public.orders ADD COLUMN x INT",
    "CREATE TABLE public.evil AS SELECT 1",
    "CREATE OR REPLACE TEMP VIEW x AS SELECT 1",
    "CREATE MACRO lower(x) AS x",
    "CREATE SECRET s (TYPE s3)",
    "MERGE INTO public.orders USING (SELECT 1 AS id) s ON true WHEN MATCHED THEN DELETE",
    "WITH x AS (DELETE FROM public.orders RETURNING *) SELECT * FROM x",
    "COPY (SELECT 1) TO '/tmp/duckpipe-hostile.csv'",
    "COPY public.orders FROM '/etc/passwd'",
    "EXPORT DATABASE '/tmp/duckpipe-hostile'",
    "IMPORT DATABASE '/tmp/duckpipe-hostile'",
    "ATTACH '/tmp/duckpipe-hostile.db' AS x",
    "DETACH lake",
    "USE memory",
    "SET memory_limit = '1TB'",
    "RESET memory_limit",
    "SET VARIABLE x = 1",
    "PRAGMA enable_profiling",
    "PRAGMA force_checkpoint",
    "PRAGMA json_execute_serialized_sql('{}')",
    "LOAD httpfs",
    "INSTALL httpfs",
    "CHECKPOINT lake",
    "VACUUM",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "CALL lake.merge_adjacent_files()",
    "CALL ducklake_expire_snapshots('lake', older_than => now())",
    "CALL lake.set_option('auto_compact', true)",
    "COMMENT ON TABLE public.orders IS 'x'",
    "SELECT * FROM ducklake_expire_snapshots('lake', older_than => now())",
    "SELECT * FROM ducklake_cleanup_old_files('lake', cleanup_all => true)",
    "SELECT * FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)",
    "SELECT * FROM ducklake_merge_adjacent_files('lake')",
    "SELECT * FROM ducklake_rewrite_data_files('lake')",
    "SELECT * FROM ducklake_flush_inlined_data('lake')",
    "SELECT * FROM ducklake_add_data_files('lake', 'orders', '/tmp/x.parquet', schema => 'public')",
    "SELECT * FROM ducklake_set_option('lake', 'auto_compact', 'true')",
    "SELECT * FROM ducklake_set_commit_message('lake', 'a', 'b')",
    "SELECT * FROM ducklake_commit('__ducklake_metadata_lake', 1)",
    "SELECT * FROM lake.expire_snapshots(older_than => now())",
    "SELECT * FROM lake.main.cleanup_old_files(cleanup_all => true)",
    "SELECT (SELECT count(*) FROM ducklake_expire_snapshots('lake', older_than => now()))",
    "WITH x AS (SELECT * FROM lake.expire_snapshots(older_than => now())) SELECT 1",
    "SELECT 1 WHERE EXISTS (FROM ducklake_cleanup_old_files('lake'))",
    "DESCRIBE SELECT * FROM postgres_execute('lake', 'DROP TABLE x')",
    "SELECT * FROM postgres_execute('__ducklake_metadata_lake', 'DROP TABLE ducklake_snapshot')",
    "SELECT * FROM postgres_query('__ducklake_metadata_lake', 'DROP TABLE ducklake_snapshot')",
    "SELECT * FROM postgres_scan('host=localhost', 'public', 'x')",
    "CALL postgres_attach('host=localhost')",
    "SELECT * FROM pg_clear_cache()",
    "SELECT * FROM query('DELETE FROM public.orders')",
    "SELECT * FROM query_table('orders')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT nextval('s')",
    "SELECT list_transform([1], lambda x: nextval('s'))",
    "SELECT 1 ORDER BY nextval('s')",
    "SELECT s.nextval()",
    "SELECT write_log('x')",
    "SELECT sleep_ms(10000)",
    "SELECT pg_sleep(10)",
    "SELECT my_macro(1)",
    "SELECT no_such_function(1)",
    "FROM checkpoint('lake')",
    "FROM force_checkpoint('lake')",
    "FROM enable_logging()",
    "FROM truncate_duckdb_logs()",
    "FROM duckdb_secrets()",
    "FROM duckdb_databases",
    "FROM duckdb_settings()",
    "FROM pg_catalog.pg_settings",
    "FROM which_secret('s3://x', 's3')",
    "FROM '/etc/passwd'",
    "FROM \"/etc/passwd\"",
    "FROM 'x.parquet'",
    "FROM x.parquet",
    "FROM 's3://bucket/*.parquet'",
    "FROM \"https://example.com/x.csv\"",
    "DESCRIBE '/etc/passwd'",
    "SUMMARIZE 'x.csv'",
    "SELECT * FROM \"/etc/passwd\", (WITH \"/etc/passwd\" AS (SELECT 1) SELECT 1)",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('x.parquet')",
    "SELECT * FROM read_json('x.json')",
    "SELECT * FROM read_duckdb('x.db')",
    "SELECT * FROM parquet_metadata('x.parquet')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "FROM __ducklake_metadata_lake.ducklake_snapshot",
    "FROM __ducklake_metadata_lake.main.ducklake_snapshot",
    "FROM memory.main.x",
    "FROM public.evil",
    "FROM public.nothing",
    "SHOW DATABASES",
    "SHOW VARIABLES",
    "SELECT $1",
    "SELECT ?",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn lake() -> LakeNames {
        LakeNames {
            catalog: "lake".into(),
            tables: vec![
                ("public".into(), "orders".into()),
                ("public".into(), "Weird.name".into()),
                ("main".into(), "m".into()),
            ],
            refused_views: vec![("public".into(), "evil".into(), "it reads a file".into())],
            search_path: vec!["public".into(), "main".into()],
            functions: HashSet::from(["my_macro".to_owned()]),
        }
    }

    #[test]
    fn harmless_selects_pass() {
        let guard = Guard::open().unwrap();
        let good = [
            "SELECT 1",
            "SELECT 1;",
            "SELECT ';' -- a comment; with a semicolon",
            "  select count(*), sum(id) filter (where id > 3) from public.orders o where o.id between 1 and 2 group by all having count(*) > 1 order by 1 desc nulls last limit 5 offset 1",
            "WITH a AS (SELECT * FROM orders), b AS MATERIALIZED (SELECT * FROM a) SELECT * FROM a JOIN b USING (id)",
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
            "VALUES (1, 'a'), (2, 'b')",
            "TABLE public.orders",
            "FROM public.orders SELECT id LIMIT 1",
            "FROM lake.public.orders",
            "FROM lake.m",
            "SELECT * FROM public.\"Weird.name\"",
            "SELECT * EXCLUDE (id) REPLACE (1 AS x) FROM public.orders",
            "SELECT columns('i.*') FROM public.orders",
            "SELECT id, row_number() OVER (PARTITION BY id ORDER BY t) FROM public.orders QUALIFY row_number() OVER () < 3",
            "SELECT list_transform([1, 2], lambda x: x + 1), {'a': 1}.a, [y * 2 FOR y IN [1, 2]], 'a' COLLATE NOCASE, CASE WHEN true THEN 1 END",
            "SELECT a::DECIMAL(10, 2), b::VARCHAR[], CAST('x' AS BLOB), INTERVAL 1 DAY, DATE '2026-01-01' FROM (VALUES (1, 2)) t(a, b)",
            "SELECT random() IS NOT NULL, now() < now() + INTERVAL 1 DAY, uuid() IS NULL, setseed(0.5)",
            "SELECT * FROM public.orders AT (VERSION => 3)",
            "SELECT * FROM public.orders AT (TIMESTAMP => now())",
            "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2])",
            "SELECT unnest([1, 2])",
            "SELECT * FROM lake.snapshots()",
            "SELECT * FROM lake.table_changes('orders', 0, 1)",
            "SELECT * FROM ducklake_table_insertions('lake', 'public', 'orders', 0, 1)",
            "DESCRIBE public.orders",
            "SUMMARIZE public.orders",
            "SHOW TABLES",
            "SHOW ALL TABLES",
            "SELECT * FROM information_schema.columns",
            "SELECT * FROM duckdb_tables",
            "SELECT EXISTS (SELECT 1), (SELECT 2), 1 IN (SELECT 3), 1 = ANY (SELECT 1)",
            "SELECT * FROM public.orders UNION ALL BY NAME SELECT * FROM public.orders",
            "SELECT * FROM public.orders PIVOT (count(*) FOR t IN ('a', 'b'))",
            "SELECT * FROM public.orders TABLESAMPLE 10 PERCENT",
            "SELECT * FROM public.orders a ASOF JOIN public.orders b ON a.id >= b.id",
            "SELECT DISTINCT ON (id) id FROM public.orders LIMIT 10%",
            "SELECT id FROM public.orders GROUP BY GROUPING SETS ((id), ())",
            "SELECT GROUPING(id), TRY(id / 0), TRY_CAST(t AS INTEGER), EXTRACT(year FROM now()), POSITION('a' IN t), t LIKE 'a!%' ESCAPE '!' FROM public.orders GROUP BY ROLLUP (id, t)",
            "SELECT ARRAY[1, 2], ARRAY(SELECT 1), MAP {'a': 1}, MAP(['a'], [1])['a'], ROW(1, 2), [1, 2, 3][1:2], '{\"a\": 1}'::JSON -> 'a' ->> 'b', j.a.b FROM (SELECT {'a': {'b': 1}} AS j)",
            "SELECT current_date, CURRENT_TIMESTAMP, approx_quantile(id, 0.5), string_agg(t, ',' ORDER BY id), list(DISTINCT id), max_by(t, id), id IS DISTINCT FROM 3, id NOT IN (1, 2), t IS NOT NULL FROM public.orders GROUP BY ALL ORDER BY ALL",
            "SELECT o.*, x.n FROM public.orders o, LATERAL (SELECT o.id + 1 AS n) x",
            "SELECT * FROM public.orders o SEMI JOIN public.orders p USING (id) ANTI JOIN public.orders q ON o.id = q.id CROSS JOIN public.orders NATURAL JOIN public.orders r",
            "SELECT id FROM public.orders INTERSECT SELECT id FROM public.orders EXCEPT ALL SELECT 1 ORDER BY 1 LIMIT 1",
            "SELECT sum(id) OVER w, lag(id, 1, 0 IGNORE NULLS) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM public.orders WINDOW w AS (PARTITION BY t)",
            "SELECT [x * 2 FOR x IN [1, 2, 3] IF x > 1], list_reduce([1, 2], lambda a, b: a + b), struct_pack(a := 1), coalesce(NULL, 1), nullif(1, 2), if(true, 1, 2), greatest(1, 2), date_trunc('day', now()), strftime(now(), '%Y'), md5('x'), hash(1), typeof(1)",
            "SELECT #1 FROM public.orders ORDER BY 1",
            "UNPIVOT public.orders ON id INTO NAME n VALUE v",
            "SELECT id, count(*) c FROM public.orders WHERE id > ALL (SELECT 1) AND (id, t) IN (SELECT id, t FROM public.orders) GROUP BY CUBE (id) HAVING c > 1 OR NOT EXISTS (SELECT 1)",
            "SELECT EXTRACT(EPOCH FROM TIMESTAMP '2026-01-01'), INTERVAL '1 month' * 2, TIMESTAMPTZ '2026-01-01' AT TIME ZONE 'UTC', x'ff', 1e10, 0xff, 1_000, $$text$$, E'\\n'",
            "SELECT regexp_matches(t, '^x'), t LIKE 'a%', t ILIKE 'b', t SIMILAR TO 'c', t GLOB 'd*', NOT true, -id, id % 2 FROM public.orders",
        ];
        let judge = |sql: &&str| {
            guard.inspect(sql).and_then(|select| select.check(&lake())).err().map(|error| format!("{sql}: {error}"))
        };
        let refused: Vec<String> = good.iter().filter_map(judge).collect();
        assert!(refused.is_empty(), "{refused:#?}");
        assert_eq!(guard.inspect(" SELECT ';' ; -- x; y\n").unwrap().text, "SELECT ';'");
        // Within a comment a cut does no harm.
        assert_eq!(guard.inspect("SELECT ';' -- x; y").unwrap().text, "SELECT ';' -- x");
    }

    #[test]
    fn everything_else_is_refused() {
        let guard = Guard::open().unwrap();
        for sql in HOSTILE {
            let judged = guard.inspect(sql).and_then(|select| select.check(&lake()));
            let error = judged.expect_err(&format!("{sql} must be refused"));
            assert_eq!(error.kind(), ErrorKind::Config, "{sql}: {error}");
        }
        assert!(HOSTILE.len() >= 40);
    }

    #[test]
    fn a_deep_statement_is_judged_without_a_deep_stack() {
        let guard = Guard::open().unwrap();
        let sum = format!("SELECT 1{}", " + 1".repeat(800));
        guard.inspect(&sum).unwrap();
        let too_deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
        let _ = guard.inspect(&too_deep);
        let hidden = format!("SELECT 1{} + nextval('s')", " + 1".repeat(800));
        assert!(guard.inspect(&hidden).unwrap_err().to_string().contains("nextval"));
    }

    #[test]
    fn a_misspelt_table_finds_its_neighbour() {
        let guard = Guard::open().unwrap();
        let error = guard.inspect("FROM public.order").unwrap().check(&lake()).unwrap_err();
        assert_eq!(error.remedy_text(), Some("did you mean public.orders?"));
        let error = guard.inspect("SELEC 1").unwrap_err();
        assert!(error.to_string().contains("syntax error"), "{error}");
    }
}
