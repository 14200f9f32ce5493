//! duckpipe's own tables in the catalog: made on first use, refused where they are newer than this program.

use super::session::{CatalogKind, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::sql::literal;

/// The version of the tables in `schemas/` that this program reads and writes.
const VERSION: i64 = 4;

/// The tables of [`VERSION`].
const TABLES: [&str; 7] = [
    include_str!("../../schemas/duckpipe_format.sql"),
    include_str!("../../schemas/duckpipe_pipeline.sql"),
    include_str!("../../schemas/duckpipe_table.sql"),
    include_str!("../../schemas/duckpipe_upload.sql"),
    REQUESTS,
    DEFINITIONS,
    PARTS,
];

/// Not in the first catalogs of version 1; a program that does not know them does not need them.
const LATER: [(&str, &str); 3] =
    [("duckpipe_request", REQUESTS), ("duckpipe_definition", DEFINITIONS), ("duckpipe_part", PARTS)];
const REQUESTS: &str = include_str!("../../schemas/duckpipe_request.sql");
const DEFINITIONS: &str = include_str!("../../schemas/duckpipe_definition.sql");
const PARTS: &str = include_str!("../../schemas/duckpipe_part.sql");

/// The columns of `duckpipe_table` that came with a version. With 2: an older program would take a table that another slot brings level for
/// one of its own. With 3: it would not know a table by another name than it was selected by. With 4: it would drop a
/// table that a view shows.
const ADDED: [(i64, &str); 5] =
    [(2, "slot"), (2, "wanted"), (3, "selected_schema"), (3, "selected_table"), (4, "fan_in")];

/// Indexes on DuckLake's own tables.
const INDEXES: &str = include_str!("../../schemas/postgres_indexes.sql");

/// Makes the tables where they are missing, and returns the catalog's id.
pub(crate) fn prepare(session: &Session) -> Result<String> {
    if session.has_table("duckpipe_format")? {
        migrate(session)?;
        let catalog_id = check(session)?;
        for (name, table) in LATER {
            if !session.has_table(name)? {
                session.locked_transaction(|session| match session.has_table(name)? {
                    true => Ok(()),
                    false => session.write(&in_catalog(session, table)),
                })?;
            }
        }
        return Ok(catalog_id);
    }
    session.transaction(|session| {
        // duckpipe_format is not there yet to be locked; two first starts meet at DuckLake's own table.
        session.lock("ducklake_metadata")?;
        if session.has_table("duckpipe_format")? {
            return check(session);
        }
        let tables = session.tables();
        for table in TABLES {
            session.write(&in_catalog(session, table))?;
        }
        let catalog_id = uuid::Uuid::now_v7().to_string();
        session.write(&format!(
            "INSERT INTO {tables}.duckpipe_format (version, catalog_id, created_at) VALUES ({VERSION}, {}, now())",
            literal(&catalog_id)
        ))?;
        index(session)?;
        Ok(catalog_id)
    })
}

/// Brings the tables of an older version up to this one's.
fn migrate(session: &Session) -> Result<()> {
    if read(session)?.0 == VERSION {
        return Ok(());
    }
    session.locked_transaction(|session| match read(session)?.0 {
        version @ 1..VERSION => {
            let tables = session.tables();
            for (_, column) in ADDED.iter().filter(|(since, _)| *since > version) {
                session.write(&format!("ALTER TABLE {tables}.duckpipe_table ADD COLUMN {column} VARCHAR"))?;
            }
            session.write(&format!("UPDATE {tables}.duckpipe_format SET version = {VERSION}"))
        }
        // This version, by a process that came first, or one that is refused.
        _ => Ok(()),
    })
}

fn in_catalog(session: &Session, table: &str) -> String {
    table.replace("CREATE TABLE ", &format!("CREATE TABLE {}.", session.tables()))
}

/// Makes the indexes where the tables are ours: a lake that another role has made works without them, only slower.
fn index(session: &Session) -> Result<()> {
    if session.kind != CatalogKind::Postgres {
        return Ok(());
    }
    let sql = format!(
        "SELECT count(*) FROM pg_catalog.pg_tables WHERE schemaname = {} AND pg_has_role(tableowner, 'USAGE') AND tablename \
         IN ('ducklake_data_file', 'ducklake_delete_file', 'ducklake_file_column_stats')",
        literal(&session.schema)
    );
    if session.read(&sql, |row| row.get::<_, i64>(0))? == [3] {
        session.write(&INDEXES.replace(" ON ", &format!(" ON {}.", session.tables())))?;
    }
    Ok(())
}

/// The catalog's id, where duckpipe has used the catalog before, in this version or an older one.
pub(crate) fn catalog_id(session: &Session) -> Result<Option<String>> {
    match session.has_table("duckpipe_format")? {
        true => match read(session)? {
            (1..VERSION, catalog_id) => Ok(Some(catalog_id)),
            _ => check(session).map(Some),
        },
        false => Ok(None),
    }
}

/// Refuses tables of another version; returns the catalog's id.
pub(crate) fn check(session: &Session) -> Result<String> {
    if !session.has_table("duckpipe_format")? {
        return Err(Error::new(ErrorKind::Precondition, "duckpipe has never written to this lake")
            .remedy("run `duckpipe sync` first"));
    }
    match read(session)? {
        (VERSION, catalog_id) => Ok(catalog_id),
        (version, _) if version > VERSION => Err(Error::new(
            ErrorKind::Precondition,
            format!("the catalog was written by a newer duckpipe: format {version}, and this one knows {VERSION}"),
        )
        .remedy("upgrade duckpipe")),
        (version, _) => Err(Error::new(
            ErrorKind::Precondition,
            format!("the catalog is of an older duckpipe: format {version}, and this one reads {VERSION}"),
        )
        .remedy("let `duckpipe sync` bring it up to date")),
    }
}

/// The version and the catalog's id.
fn read(session: &Session) -> Result<(i64, String)> {
    let sql = format!("SELECT version, catalog_id FROM {}.duckpipe_format", session.tables());
    let rows = session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
    let one = <[(i64, String); 1]>::try_from(rows).ok().map(|[row]| row);
    one.ok_or_else(|| Error::new(ErrorKind::Precondition, "duckpipe_format does not hold one row"))
}
