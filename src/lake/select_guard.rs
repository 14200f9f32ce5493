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

#[cfg(test)]
pub(crate) mod tests;
