//! From the `[[tables]]` entries to the tables of a pipeline.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Mode, TableConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::TableName;

/// A table of the pipeline, with what its entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedTable {
    /// The source's table.
    pub source: TableName,
    /// The lake's table.
    pub target: TableName,
    /// The entry says which one that is.
    pub has_target: bool,
    /// The view of the lake that shows the table's rows among those of others, where there is one.
    pub view: Option<TableName>,
    /// Columns that do not enter the lake.
    pub exclude_columns: Vec<String>,
    /// Columns that arrive as text.
    pub text_columns: BTreeSet<String>,
    /// What the lake's table holds.
    pub mode: Mode,
    /// Which rows are followed, as SQL of the source.
    pub filter: Option<String>,
    /// What its compacted files are sorted by, where that is not the key.
    pub sort_by: Option<Vec<String>>,
    /// Whether only a pattern matched it: such a table is left out with a warning where it has no key.
    pub by_pattern: bool,
}

/// Matches the entries against the tables that the source has. An entry that names a table wins over a pattern, an earlier
/// pattern over a later one. The result is ordered by source name.
///
/// # Errors
/// [`ErrorKind::Precondition`] for a named table that the source does not have, and where nothing at all matches; [`ErrorKind::Config`] for
/// two tables with one target.
pub fn select(entries: &[TableConfig], found: &[TableName]) -> Result<Vec<SelectedTable>> {
    let selected = matched(entries, found)?;
    check_targets(&selected)?;
    Ok(selected)
}

/// As [`select`], without those that have another one's target: the later ones by name. Returns what is wrong with them.
///
/// # Errors
/// As [`select`], but for two tables with one target.
pub fn select_apart(entries: &[TableConfig], found: &[TableName]) -> Result<(Vec<SelectedTable>, Vec<Error>)> {
    let (mut targets, mut apart, mut errors) = (Targets::default(), Vec::new(), Vec::new());
    for table in matched(entries, found)? {
        match targets.add(&table) {
            Ok(()) => apart.push(table),
            Err(error) => errors.push(error),
        }
    }
    Ok((apart, errors))
}

fn matched(entries: &[TableConfig], found: &[TableName]) -> Result<Vec<SelectedTable>> {
    let mut selected = BTreeMap::new();
    for entry in entries {
        let Some(source) = entry.source.exact() else { continue };
        if !found.contains(&source) {
            let error = Error::new(ErrorKind::Precondition, format!("the source has no table {source}"));
            return Err(match nearest(&source, found) {
                Some(near) => error.remedy(format!(
                    "did you mean {near}? Names are compared as they are stored, upper and lower case apart"
                )),
                None => error.remedy(
                    "check the name in [[tables]], the database in source.url, and that the role may see the schema",
                ),
            });
        }
        selected.insert(source.clone(), selection(entry, &source, false));
    }
    for entry in entries.iter().filter(|entry| entry.source.exact().is_none()) {
        for source in found.iter().filter(|name| entry.source.matches(name)) {
            selected.entry(source.clone()).or_insert_with(|| selection(entry, source, true));
        }
    }
    if selected.is_empty() {
        let patterns: Vec<String> = entries.iter().map(|entry| entry.source.to_string()).collect();
        return Err(Error::new(
            ErrorKind::Precondition,
            format!("no table of the source matches {}", patterns.join(", ")),
        )
        .remedy("check the patterns in [[tables]], the database in source.url, and that the role may see the schema"));
    }
    Ok(selected.into_values().collect())
}

/// What the entries say of one table, which the source has.
pub fn selection_of(entries: &[TableConfig], source: &TableName) -> Option<SelectedTable> {
    let exact = entries.iter().find(|entry| entry.source.exact().as_ref() == Some(source));
    let pattern = || entries.iter().find(|entry| entry.source.exact().is_none() && entry.source.matches(source));
    let entry = exact.or_else(pattern)?;
    Some(selection(entry, source, exact.is_none()))
}

/// What the entries say of a table that has, or had, these names: by the first one that an entry selects.
pub fn selection_of_any<'a>(
    entries: &[TableConfig],
    names: impl IntoIterator<Item = &'a TableName>,
) -> Option<SelectedTable> {
    names.into_iter().find_map(|name| selection_of(entries, name))
}

/// What an entry says of a table that it selects.
pub(super) fn selection(entry: &TableConfig, source: &TableName, by_pattern: bool) -> SelectedTable {
    let (target, view) = match (&entry.target, &entry.fan_in) {
        (Some(view), Some(pipeline)) => (fan_in_target(view, pipeline, source), Some(view.clone())),
        (Some(target), None) => (target.clone(), None),
        (None, _) => (source.clone(), None),
    };
    SelectedTable {
        source: source.clone(),
        target,
        view,
        has_target: entry.target.is_some(),
        exclude_columns: entry.exclude_columns.clone(),
        text_columns: entry.types.keys().cloned().collect(),
        mode: entry.mode,
        filter: entry.filter.clone(),
        sort_by: entry.sort_by.clone(),
        by_pattern,
    }
}

/// The lake's table of one of the tables that a view shows: `public."orders@shop.tenant_1.orders"`. What follows the `@` is what the
/// view's `_source` says.
fn fan_in_target(view: &TableName, pipeline: &str, source: &TableName) -> TableName {
    let table = format!("{}@{pipeline}.{}.{}", view.table, source.schema, source.table);
    TableName { schema: view.schema.clone(), table }
}

/// Refuses two sources with one target; lake names are the same in upper and lower case.
pub(super) fn check_targets(selected: &[SelectedTable]) -> Result<()> {
    let mut targets = Targets::default();
    selected.iter().try_for_each(|table| targets.add(table))
}

/// The names that tables and their views have in the lake, in lower case, each with whose and which it is.
#[derive(Default)]
struct Targets {
    tables: HashMap<String, (TableName, TableName)>,
    views: HashMap<String, (TableName, TableName)>,
    schemas: HashMap<String, TableName>,
}

impl Targets {
    /// Nothing is added where it is refused.
    fn add(&mut self, table: &SelectedTable) -> Result<()> {
        let folded = |target: &TableName| format!("{:?}", (target.schema.to_lowercase(), target.table.to_lowercase()));
        self.check(&table.source, &table.target, self.views.get(&folded(&table.target)))?;
        if let Some(view) = &table.view {
            // A view shows several.
            let others = self.views.get(&folded(view)).filter(|(_, other)| other != view);
            self.check(&table.source, view, others)?;
        }
        let mut add = |names: fn(&mut Self) -> &mut HashMap<String, (TableName, TableName)>, target: &TableName| {
            self.schemas.entry(target.schema.to_lowercase()).or_insert_with(|| target.clone());
            names(self).entry(folded(target)).or_insert_with(|| (table.source.clone(), target.clone()));
        };
        add(|targets| &mut targets.tables, &table.target);
        if let Some(view) = &table.view {
            add(|targets| &mut targets.views, view);
        }
        Ok(())
    }

    fn check(&self, source: &TableName, target: &TableName, view: Option<&(TableName, TableName)>) -> Result<()> {
        let folded = format!("{:?}", (target.schema.to_lowercase(), target.table.to_lowercase()));
        if let Some((other, other_target)) = self.tables.get(&folded).or(view) {
            let message = if other_target == target {
                format!("{other} and {source} have one target, {target}")
            } else {
                format!(
                    "{other} and {source} have targets that differ only in case, {other_target} and {target}, which the lake takes for one"
                )
            };
            return Err(Error::new(ErrorKind::Config, message).remedy("give one of them another target"));
        }
        let schema = self.schemas.get(&target.schema.to_lowercase());
        match schema.filter(|other| other.schema != target.schema) {
            None => Ok(()),
            Some(other) => {
                let message = format!(
                    "the targets {other} and {target} lie in schemas that differ only in case, which the lake takes for one"
                );
                Err(Error::new(ErrorKind::Config, message).remedy("give one of them another target"))
            }
        }
    }
}

fn nearest<'a>(wanted: &TableName, found: &'a [TableName]) -> Option<&'a TableName> {
    let wanted = wanted.to_string();
    let distance = |name: &TableName| {
        let name = name.to_string();
        if name.eq_ignore_ascii_case(&wanted) { 0 } else { strsim::damerau_levenshtein(&name, &wanted) }
    };
    found.iter().min_by_key(|name| distance(name)).filter(|name| distance(name) <= 1 + wanted.len() / 4)
}
