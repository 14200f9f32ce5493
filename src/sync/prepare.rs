//! What is decided before the first byte is written: which tables, whether the slot continues the lake, and from where.

use std::collections::BTreeMap;

use crate::batch::layout::{Mode, TableLayout};
use crate::batch::mapping;
use crate::config::{
    Config, SelectedTable, TableConfig, TablePattern, select, select_apart, selection_of, selection_of_any,
};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::lake::{NewTable, PipelineRow, TableRow, TableState};
use crate::lsn::Lsn;
use crate::source::publication::{Publication, Sent};
use crate::source::replication::{Identity, ReplicationConnection};
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::table::{ReplicaIdentity, SourceTable, TableName};
use crate::source::{catalog, preflight, publication, row_filter, slot};
use crate::sql::{identifier, qualified};

/// The oldest server that duckpipe reads from.
const OLDEST_VERSION: u32 = 140_000;

/// A table of the configuration, found in the source.
#[derive(Clone, Debug)]
pub struct ChosenTable {
    /// As the source describes it.
    pub source: SourceTable,
    /// The name by which the configuration selects it: that of a table which was renamed may be a former one.
    pub selected: TableName,
    /// Its place in the lake.
    pub target: TableName,
    /// The view that shows its rows among those of others.
    pub view: Option<TableName>,
    /// Its columns on their way.
    pub layout: TableLayout,
    /// Which of its rows the configuration wants, as the server prints it; `None`: all.
    pub filter: Option<String>,
}

impl ChosenTable {
    /// As a publication is to send it.
    pub fn sent(&self) -> Sent {
        Sent { name: self.source.name.clone(), filter: self.filter.clone() }
    }

    /// As the lake is to have it: see [`NewTable`].
    pub fn new_table(&self, recreate: bool) -> NewTable {
        NewTable {
            source_oid: self.source.oid,
            source: self.source.name.clone(),
            selected: (self.selected != self.source.name).then(|| self.selected.clone()),
            target: self.target.clone(),
            view: self.view.clone(),
            layout: self.layout.clone(),
            recreate,
        }
    }
}

/// The tables of the configuration that can be followed, and why the others can't.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Those that the source has.
    pub tables: Vec<ChosenTable>,
    /// What is wrong with those that the configuration names one by one.
    pub missing: Vec<Error>,
}

impl Chosen {
    /// The tables, where none is missing.
    ///
    /// # Errors
    /// The first one's, of kind `Precondition`.
    pub fn all(self) -> Result<Vec<ChosenTable>> {
        match self.missing.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(self.tables),
        }
    }
}

/// A server that can be read from.
///
/// # Errors
/// Kind `Precondition`, when the server is too old or does not write logical WAL.
pub async fn check_server(session: &Session) -> Result<()> {
    let version = session.server_version().await?;
    if version < OLDEST_VERSION {
        return Err(Error::new(
            ErrorKind::Precondition,
            format!("the source is PostgreSQL {}; duckpipe needs 14 or newer", version / 10_000),
        )
        .remedy("upgrade the source"));
    }
    let wal_level = session.setting("wal_level").await?;
    if wal_level != "logical" {
        return Err(Error::new(ErrorKind::Precondition, format!("the source has wal_level = {wal_level}"))
            .remedy("set wal_level = logical in postgresql.conf and restart the source"));
    }
    Ok(())
}

/// Finds the configured tables and their columns, as `publication` sends them where it exists.
///
/// # Errors
/// Kind `Precondition` or `Config`, when no table matches, or when two would share one name in the lake.
pub async fn choose_tables(session: &Session, config: &Config, publication: Option<&str>) -> Result<Chosen> {
    let patterns: Vec<TablePattern> = config.tables().iter().map(|table| table.source.clone()).collect();
    let found = catalog::list_tables(session, &patterns).await?;
    let is_there = |entry: &TableConfig| entry.source.exact().is_none_or(|name| found.contains(&name));
    let (there, absent): (Vec<TableConfig>, Vec<TableConfig>) = config.tables().iter().cloned().partition(is_there);
    let mut missing: Vec<Error> =
        absent.iter().filter_map(|entry| select(std::slice::from_ref(entry), &found).err()).collect();
    let selected = match select_apart(&there, &found) {
        Err(error) if !missing.is_empty() && error.kind() == ErrorKind::Precondition => Vec::new(),
        selected => {
            let (selected, others) = selected?;
            missing.extend(others);
            selected
        }
    };
    let mut chosen = Vec::new();
    for table in selected {
        match choose(session, &table, publication).await {
            Err(error) if table.by_pattern && error.kind() == ErrorKind::Table => {
                tracing::warn!(table = %table.source, "{error}; it is left out");
            }
            // Where there is a lake, the others go on.
            Err(error) if matches!(error.kind(), ErrorKind::Table | ErrorKind::Precondition | ErrorKind::Config) => {
                let kind = if error.kind() == ErrorKind::Table { ErrorKind::Precondition } else { error.kind() };
                missing.push(error.of_kind(kind));
            }
            found => chosen.push(found?),
        }
    }
    if chosen.is_empty() && missing.is_empty() {
        return Err(Error::new(ErrorKind::Precondition, "no table that matches [[tables]] has a key")
            .remedy("give the tables primary keys"));
    }
    // The changes of both would come as the root's.
    while let Some((partition, root)) = nested(session, &chosen).await? {
        let root = chosen[root].source.name.clone();
        let name = chosen.remove(partition).source.name;
        missing.push(
            Error::new(ErrorKind::Precondition, format!("{name} is a partition of {root}, and both are in [[tables]]"))
                .remedy(format!("leave {name} out: its rows are among those of {root}")),
        );
    }
    for (name, error) in unreadable(session, config, &chosen).await? {
        chosen.retain(|table| table.source.name != name);
        missing.push(error);
    }
    Ok(Chosen { tables: chosen, missing })
}

/// A table must be as it was described before the snapshot was taken that it is copied at: what a column that came in between holds is
/// among the snapshot's rows, and no message brings it.
///
/// # Errors
/// Kind `Conflict`, where it was altered since.
pub async fn check_unchanged(session: &Session, described: &SourceTable, publication: &str) -> Result<()> {
    let now = catalog::describe_table(session, &described.name, Some(publication)).await?;
    let same = |now: &SourceTable| {
        (now.oid, &now.columns, &now.key, now.replica_identity, &now.published)
            == (described.oid, &described.columns, &described.key, described.replica_identity, &described.published)
    };
    // One that was made anew meanwhile has the name of one that is sent, and is not sent itself.
    if now.as_ref().is_some_and(|now| same(now) && now.published.is_some()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Conflict, format!("{} was altered while its copy began", described.name)))
}

/// A table must not be a partition of one that is followed: its changes come as that one's.
///
/// # Errors
/// Kind `Table`, where it is.
pub async fn refuse_partition(session: &Session, table: &SourceTable, rows: &[TableRow]) -> Result<()> {
    let others = rows.iter().filter(|row| row.state != TableState::Dropped).map(|row| row.source_oid);
    let oids: Vec<u32> = others.chain([table.oid]).collect();
    let nested = catalog::nested(session, &oids).await?;
    let Some((_, root)) = nested.into_iter().find(|(partition, _)| *partition == table.oid) else { return Ok(()) };
    let root = rows.iter().find(|row| row.source_oid == root).map(|row| row.source.to_string()).unwrap_or_default();
    Err(Error::new(ErrorKind::Table, format!("{} is a partition of {root}, which is followed", table.name))
        .remedy(format!("leave {} out of [[tables]]: its rows are among those of {root}", table.name)))
}

/// A table that is a partition of another one: the places of both.
async fn nested(session: &Session, chosen: &[ChosenTable]) -> Result<Option<(usize, usize)>> {
    let oids: Vec<u32> = chosen.iter().map(|table| table.source.oid).collect();
    let place = |oid| oids.iter().position(|known| *known == oid);
    let first = catalog::nested(session, &oids).await?.into_iter().next();
    Ok(first.and_then(|(partition, root)| Some((place(partition)?, place(root)?))))
}

/// One table of the configuration, as [`choose_tables`].
///
/// # Errors
/// Kind `Table`, where it is no longer there, has no key, or is not in `[[tables]]`; as [`choose_tables`] else.
pub async fn choose_table(
    session: &Session,
    config: &Config,
    name: &TableName,
    publication: Option<&str>,
) -> Result<ChosenTable> {
    let Some(selected) = selection_of(&config.tables(), name) else {
        return Err(Error::new(ErrorKind::Table, format!("{name} is not in [[tables]]")).remedy("name it there"));
    };
    let chosen = choose(session, &selected, publication).await?;
    check_access(session, config, std::slice::from_ref(&chosen)).await?;
    Ok(chosen)
}

/// A table that the lake knows, whatever it is called now, as [`choose_table`].
///
/// # Errors
/// As [`choose_table`].
pub async fn choose_known(
    session: &Session,
    config: &Config,
    row: &TableRow,
    publication: Option<&str>,
) -> Result<ChosenTable> {
    let source = catalog::name_of(session, row.source_oid).await?.unwrap_or_else(|| row.source.clone());
    let names = row.names().into_iter().chain([&source]);
    let Some(by) = selection_of_any(&config.tables(), names) else {
        return Err(
            Error::new(ErrorKind::Table, format!("{} is not in [[tables]]", row.named())).remedy("name it there")
        );
    };
    let fixed = by.has_target && by.view.is_none();
    let target = if fixed { by.target.clone() } else { row.target.clone() };
    let selected = by.source.clone();
    let chosen = choose(session, &SelectedTable { source, target, ..by }, publication).await?;
    check_access(session, config, std::slice::from_ref(&chosen)).await?;
    Ok(ChosenTable { selected, ..chosen })
}

/// The rows of a table must have an identity.
///
/// # Errors
/// Kind `Table`, where it is NOTHING.
pub fn check_identity(source: &SourceTable) -> Result<()> {
    if source.replica_identity != ReplicaIdentity::Nothing {
        return Ok(());
    }
    let name = qualified(&source.name.schema, &source.name.table);
    Err(Error::new(ErrorKind::Table, format!("the replica identity of {} is NOTHING", source.name))
        .remedy(format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT; without a primary key, REPLICA IDENTITY FULL")))
}

async fn choose(session: &Session, table: &SelectedTable, publication: Option<&str>) -> Result<ChosenTable> {
    let name = &table.source;
    let Some(source) = catalog::describe_table(session, name, publication).await? else {
        return Err(Error::new(ErrorKind::Table, format!("{name} is not in the source"))
            .remedy("name in [[tables]] what the source has"));
    };
    check_identity(&source)?;
    if source.key.is_empty() && source.replica_identity != ReplicaIdentity::Full {
        return Err(Error::new(ErrorKind::Table, format!("{name} has no primary key and no replica identity index"))
            .remedy(format!(
                "give it one: ALTER TABLE {0} ADD PRIMARY KEY (…), or ALTER TABLE {0} REPLICA IDENTITY USING INDEX …; without \
                 any, ALTER TABLE {0} REPLICA IDENTITY FULL",
                qualified(&name.schema, &name.table)
            )));
    }
    let mut partitions = source.partitions.iter().flatten();
    if let Some(partition) = partitions.find(|partition| !partition.logged) {
        let what = format!(
            "the changes of {name}'s partition {} are not in the WAL: it is foreign, or unlogged",
            partition.name
        );
        return Err(Error::new(ErrorKind::Table, what).remedy("detach it, or follow the other partitions one by one"));
    }
    let layout = mapping::layout(&source, &table.exclude_columns, |column| table.text_columns.contains(column))
        .context(|| name.to_string())?;
    let layout = TableLayout { mode: table.mode, ..layout };
    refuse_collisions(&layout)?;
    refuse_keyless(&layout)?;
    let filter = match &table.filter {
        Some(filter) => Some(filter_of(session, &source, filter).await?),
        None => None,
    };
    let (selected, target, view) = (name.clone(), table.target.clone(), table.view.clone());
    Ok(ChosenTable { source, selected, target, view, layout, filter })
}

/// A filter on a table as the server prints it.
///
/// # Errors
/// Kind `Table`, where the server does not take it, or would refuse the table's UPDATEs for it.
pub async fn filter_of(session: &Session, source: &SourceTable, filter: &str) -> Result<String> {
    let understood = row_filter::understood(session, &source.name, filter, source.filter.as_deref()).await?;
    let is_sent = |attnum: &i16| source.key.iter().any(|&key| source.columns[key].attnum == *attnum);
    let other = match source.replica_identity {
        ReplicaIdentity::Full => None,
        _ => understood.columns.iter().find(|attnum| !is_sent(attnum)),
    };
    let Some(other) = other else { return Ok(understood.text) };
    let column = source.columns.iter().find(|column| column.attnum == *other);
    let column = column.map_or_else(|| "a column".to_owned(), |column| format!("the column {:?}", column.name));
    let what = format!(
        "{} can't be filtered by {filter:?}: {column} is not in its replica identity, so the source would refuse its UPDATEs",
        source.name
    );
    let name = qualified(&source.name.schema, &source.name.table);
    Err(Error::new(ErrorKind::Table, what)
        .remedy(format!("ALTER TABLE {name} REPLICA IDENTITY FULL; or filter by columns of the key")))
}

/// Every table's rows must be there to be read.
async fn check_access(session: &Session, config: &Config, chosen: &[ChosenTable]) -> Result<()> {
    match unreadable(session, config, chosen).await?.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// The tables whose rows the role may not read, and what their owner has to do.
async fn unreadable(session: &Session, config: &Config, chosen: &[ChosenTable]) -> Result<Vec<(TableName, Error)>> {
    let mut found = Vec::new();
    let names: Vec<TableName> = chosen.iter().map(|table| table.source.name.clone()).collect();
    for access in preflight::table_access(session, &names).await? {
        let table = chosen.iter().find(|table| table.source.name == access.name);
        let all = table.is_none_or(|table| table.layout.columns.len() == table.source.columns.len());
        if !access.may_use_schema || !access.may_select && all {
            let name = format!("{}.{}", identifier(&access.name.schema), identifier(&access.name.table));
            let what = format!("the role may not read {}", access.name);
            let error = Error::new(ErrorKind::Precondition, what).remedy(format!(
                "let its owner run: GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {name} TO {role};",
                identifier(&access.name.schema),
                role = identifier(SourceSettings::parse(&config.source.url)?.user()),
            ));
            found.push((access.name, error));
        }
    }
    Ok(found)
}

/// Without a key nothing tells which of equal rows is the deleted one.
///
/// # Errors
/// Kind `Table`, where the mode is to keep deleted rows.
pub fn refuse_keyless(layout: &TableLayout) -> Result<()> {
    if !layout.keyless || layout.mode != Mode::SoftDelete {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Table, format!("mode = \"soft-delete\" needs a key, and {} has none", layout.table))
        .remedy("give it a PRIMARY KEY; or say mode = \"history\", which keeps every change"))
}

/// Names in a lake are case-insensitive.
fn refuse_collisions(layout: &TableLayout) -> Result<()> {
    let mut columns: BTreeMap<String, &str> = BTreeMap::new();
    for (name, attnum, _) in layout.lake_columns() {
        if let Some(other) = columns.insert(name.to_lowercase(), name) {
            let what = match attnum < 0 {
                true => format!("{}: the column {other:?} is called as one of duckpipe's own", layout.table),
                false => format!("{}: columns {other:?} and {name:?} differ only in case", layout.table),
            };
            return Err(Error::new(ErrorKind::Config, what)
                .remedy("names in the lake are case-insensitive: put one of them into `exclude_columns`"));
        }
    }
    Ok(())
}

/// The publication's tables must hold those of the configuration; where there is none, it must be possible to create it. One that is
/// `owned` can be changed.
///
/// # Errors
/// Kind `Precondition`, with the SQL that its owner has to run.
pub async fn check_publication(session: &Session, name: &str, tables: &[ChosenTable], owned: bool) -> Result<bool> {
    let names: Vec<TableName> = tables.iter().map(|t| t.source.name.clone()).collect();
    let Some(found) = publication::find(session, name).await? else {
        if let Some(reason) = publication::may_create(session, &names).await? {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!("the publication {name} can't be created: {reason}"),
            )
            .remedy(format!(
                "let the owner of the tables run: {};",
                publication::create_sql(
                    session.major_version(),
                    name,
                    &tables.iter().map(ChosenTable::sent).collect::<Vec<_>>()
                )
            )));
        }
        check_generated(session, name, &names).await?;
        return Ok(false);
    };
    check_kinds(&found)?;
    check_generated(session, name, &names).await?;
    if owned {
        // What it lacks, it is given.
        return Ok(true);
    }
    check_via_root(&found, tables.iter().map(|table| &table.source))?;
    let missing: Vec<String> = names
        .iter()
        .filter(|table| !found.tables.contains(table))
        .map(|table| qualified(&table.schema, &table.table))
        .collect();
    if !missing.is_empty() {
        let list = missing.join(", ");
        let statement = format!("ALTER PUBLICATION {} ADD TABLE {list}", identifier(name));
        return Err(lacks(name, &list, found.all_tables, &statement));
    }
    for table in tables {
        check_filter(&found, table)?;
    }
    Ok(true)
}

/// The publication does not send tables, or sends them as their root; else `statement` has it send them.
pub fn lacks(publication: &str, tables: &str, as_root: bool, statement: &str) -> Error {
    let remedy = match as_root {
        true => "a partition is published as its root: name that in [[tables]]".to_owned(),
        false => format!("let its owner run: {statement};"),
    };
    Error::new(ErrorKind::Precondition, format!("the publication {publication} lacks {tables}")).remedy(remedy)
}

/// The publication must send those rows of a table that the configuration wants.
///
/// # Errors
/// Kind `Precondition`, with what is to be changed.
pub fn check_filter(found: &Publication, table: &ChosenTable) -> Result<()> {
    let name = &table.source.name;
    let (what, remedy) = match (&table.source.filter, &table.filter) {
        (sent, wanted) if sent == wanted => return Ok(()),
        (Some(sent), None) => (
            format!("the publication {} filters the rows of {name} by {sent}", found.name),
            format!(
                "say so, `where = {}` in [[tables]]; or publish the table without WHERE",
                crate::sql::literal(sent)
            ),
        ),
        (sent, Some(wanted)) => (
            format!(
                "the publication {} sends {} of {name}, not those by {wanted}",
                found.name,
                sent.as_deref().unwrap_or("all rows")
            ),
            format!("let its owner run: {};", publication::change_sql(&found.name, &table.sent())),
        ),
        (None, None) => return Ok(()),
    };
    Err(Error::new(ErrorKind::Precondition, what).remedy(remedy))
}

/// The changes of a partitioned table must come as its own.
///
/// # Errors
/// Kind `Precondition`, with the SQL that the publication's owner has to run.
pub fn check_via_root<'a>(found: &Publication, mut tables: impl Iterator<Item = &'a SourceTable>) -> Result<()> {
    match tables.find(|table| table.partitions.is_some() && !found.via_root) {
        None => Ok(()),
        Some(table) => Err(Error::new(
            ErrorKind::Precondition,
            format!("the publication {} sends the changes of {} as those of its partitions", found.name, table.name),
        )
        .remedy(format!("let its owner run: {};", publication::via_root_sql(&found.name)))),
    }
}

/// A publication must not keep the source from its own UPDATEs.
///
/// # Errors
/// Kind `Precondition`, with what its owner, or the table's, has to do.
pub async fn check_generated(session: &Session, name: &str, tables: &[TableName]) -> Result<()> {
    let Some(found) = publication::unpublished(session, name, tables).await? else { return Ok(()) };
    let remedy = match found.stored {
        true => format!(
            "let the publication's owner run: ALTER PUBLICATION {} SET (publish_generated_columns = stored);",
            identifier(name)
        ),
        false => format!("give {} another replica identity: a virtual column can't be published", found.table),
    };
    let what = format!(
        "{} has REPLICA IDENTITY FULL and the generated column {:?}, which the publication {name} does not send: the source would \
         refuse its UPDATEs and DELETEs",
        found.table, found.column
    );
    Err(Error::new(ErrorKind::Precondition, what).remedy(remedy))
}

/// A publication that sends every kind of change.
///
/// # Errors
/// Kind `Precondition`, with the SQL that its owner has to run.
pub fn check_kinds(publication: &Publication) -> Result<()> {
    let unsent = publication.unsent();
    if unsent.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Precondition,
        format!("the publication {} does not publish {}", publication.name, unsent.join(", ")),
    )
    .remedy(format!("let its owner run: {};", publication.send_all_sql())))
}

/// Whether the source and its slot can continue the lake from `lsn`.
///
/// # Errors
/// Kind `ResyncNeeded`, saying why they can't; `Transient` on a standby that does not stand in for its primary yet.
pub async fn check_continuity(
    session: &Session,
    replication: &mut ReplicationConnection,
    identity: &Identity,
    settings: &SourceSettings,
    row: &PipelineRow,
) -> Result<()> {
    let resync = |what: String| {
        Err(Error::new(ErrorKind::ResyncNeeded, what)
            .remedy("if the source is the right one, copy it anew: `duckpipe sync --resnapshot`"))
    };
    let lsn = row.lsn.unwrap_or_default();
    if identity.system_id != row.system_id {
        return resync(format!(
            "the source is another cluster (system identifier {}) than the one the lake was copied from ({})",
            identity.system_id, row.system_id
        ));
    }
    let standby = replication.in_recovery().await?;
    if session.position().await?.1 != standby {
        let what = "of two connections to the source one is to a standby, and one to its primary";
        return Err(Error::new(ErrorKind::Transient, what));
    }
    let found = slot::find(session, &row.slot).await?;
    // A standby that the primary's slot is not on says nothing about it: the primary may come back, or another one be promoted.
    let waits = found.as_ref().map_or(settings.has_other_hosts(), |slot| slot.synchronised);
    if waits && standby {
        let what = format!("the source is a standby, where the slot {} can't be read", row.slot);
        return Err(Error::new(ErrorKind::Transient, what).remedy(
            "wait for its promotion, or for the primary's return; target_session_attrs=primary passes it over",
        ));
    }
    if identity.timeline < row.timeline {
        return resync(format!(
            "the source is on timeline {}, older than the lake's timeline {}: it was restored from a backup",
            identity.timeline, row.timeline
        ));
    }
    if identity.timeline > row.timeline {
        let history = replication.timeline_history(identity.timeline).await?;
        let mut since = history.iter().skip_while(|switch| switch.timeline != row.timeline).peekable();
        if since.peek().is_none() {
            return resync(format!(
                "the source's timeline {} does not descend from the lake's timeline {}",
                identity.timeline, row.timeline
            ));
        }
        // A slot does not take a position of another timeline's with it past the switch. What was confirmed behind one was read
        // behind it: a standby that is promoted goes on sending, and nobody may have noticed before the lake had more.
        let confirmed = found.as_ref().and_then(|slot| slot.confirmed_flush).unwrap_or_default();
        if let Some(switch) = since.find(|switch| switch.at < lsn && confirmed <= switch.at) {
            return resync(format!(
                "the source left timeline {} at {}, before the lake's position {}: the lake holds changes that the source lost",
                switch.timeline, switch.at, lsn
            ));
        }
    }
    if identity.position < lsn {
        return resync(format!(
            "the source is at {}, behind the lake's position {}: it was restored from a backup",
            identity.position, lsn
        ));
    }
    let Some(found) = found else {
        return resync(format!("the replication slot {} is gone; changes since {} may be lost", row.slot, lsn));
    };
    if found.wal_status.as_deref() == Some("lost") || found.invalidation.is_some() {
        let reason = found.invalidation.as_deref().unwrap_or("its WAL was removed (max_slot_wal_keep_size)");
        return resync(format!("the replication slot {} was invalidated: {reason}", row.slot));
    }
    if found.plugin.as_deref() != Some("pgoutput") || found.database.as_deref() != Some(settings.database()) {
        return resync(format!("the replication slot {} is not a pgoutput slot of this database", row.slot));
    }
    match found.confirmed_flush {
        Some(confirmed) if confirmed > lsn => resync(format!(
            "the replication slot {} is at {confirmed}, ahead of the lake's position {}: it was created anew or used by somebody else, and the changes in between are lost",
            row.slot, lsn
        )),
        _ => Ok(()),
    }
}

/// The position that a single run must reach.
///
/// # Errors
/// As the session's.
pub async fn target_position(session: &Session, once: bool) -> Result<Option<Lsn>> {
    if once { session.wal_position().await.map(Some) } else { Ok(None) }
}
