//! What the server's errors mean for a pipeline: SQLSTATE to kind and remedy, in one place.

use tokio_postgres::error::SqlState;

use crate::error::{Error, ErrorKind};

/// An error response, as much of it as people need.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl ServerError {
    /// The error of doing `what`, a phrase such as `Reading the publication`.
    pub(crate) fn into_error(self, what: &str) -> Error {
        let (kind, remedy) = classify(&self.code);
        let mut message = format!("{what} failed: {} (SQLSTATE {})", self.message, self.code);
        if let Some(detail) = &self.detail {
            message.push_str(". ");
            message.push_str(detail);
        }
        let error = Error::new(kind, message);
        match (remedy, self.hint) {
            (Some(remedy), _) => error.remedy(remedy),
            (None, Some(hint)) => error.remedy(hint),
            (None, None) => error,
        }
    }

    /// `pg_hba.conf` has no line for this user, database, address and encryption.
    pub(crate) fn not_admitted(&self) -> bool {
        self.code == "28000"
    }
}

/// The error of doing `what` with a `tokio_postgres` client, a phrase such as `Reading the publication`.
pub fn from_client(error: tokio_postgres::Error, what: &str) -> Error {
    match server_error(&error) {
        Some(server) => server.into_error(what),
        None if error.is_closed() => connection_lost(what, None),
        None => connection_lost(what, Some(error)),
    }
}

pub(crate) fn server_error(error: &tokio_postgres::Error) -> Option<ServerError> {
    error.as_db_error().map(|db| ServerError {
        code: db.code().code().to_owned(),
        message: db.message().to_owned(),
        detail: db.detail().map(str::to_owned),
        hint: db.hint().map(str::to_owned),
    })
}

fn connection_lost(what: &str, cause: Option<tokio_postgres::Error>) -> Error {
    let error = Error::new(ErrorKind::Transient, format!("{what} failed: the connection to Postgres was lost"))
        .remedy("Try again; where it stays so, look into the server's log.");
    match cause {
        Some(cause) => error.caused_by(cause),
        None => error,
    }
}

/// Kind and remedy of a SQLSTATE. Source: Postgres documentation, appendix A, "PostgreSQL Error Codes".
fn classify(code: &str) -> (ErrorKind, Option<&'static str>) {
    use ErrorKind::{Internal, Precondition, Transient};
    let state = SqlState::from_code(code);
    let known = [
        (SqlState::INVALID_PASSWORD, Precondition, "Check user and password in the source's url."),
        (
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            Precondition,
            "Check user and sslmode in the source's url, and that the server's pg_hba.conf has a line for this user, \
             database and address.",
        ),
        (SqlState::INVALID_CATALOG_NAME, Precondition, "Check the database's name in the source's url."),
        (
            SqlState::INSUFFICIENT_PRIVILEGE,
            Precondition,
            "Grant the role what is missing: SELECT on the tables, USAGE on their schemas, ALTER ROLE … REPLICATION. \
             `duckpipe check` prints the statements.",
        ),
        (SqlState::UNDEFINED_TABLE, Precondition, "Check the tables' names in the configuration."),
        (SqlState::CANNOT_CONNECT_NOW, Transient, "The server is starting or stopping: try again in a moment."),
        (
            SqlState::TOO_MANY_CONNECTIONS,
            Transient,
            "Raise max_connections or max_wal_senders in the server, or end connections that nobody needs.",
        ),
        (
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            Precondition,
            "Raise max_replication_slots in the server, or drop slots that nobody needs (pg_replication_slots lists them).",
        ),
        (
            SqlState::LOCK_NOT_AVAILABLE,
            Transient,
            "Another transaction holds a lock on the table: try again when it has ended.",
        ),
        (SqlState::DISK_FULL, Transient, "The server's disk is full."),
    ];
    if let Some((_, kind, remedy)) = known.into_iter().find(|(known, ..)| *known == state) {
        return (kind, Some(remedy));
    }
    let kind = match code.get(..2) {
        // Connection, transaction rollback, resources, operator intervention, system error.
        Some("08" | "40" | "53" | "57" | "58") => Transient,
        // Object in use, lock not available; the rest of the class is a precondition by its name.
        _ if code == "55006" || code == "55P03" => Transient,
        // Feature, authorization, catalog and schema names, prerequisite state, syntax or access rule.
        Some("0A" | "28" | "2B" | "3D" | "3F" | "42" | "55") => Precondition,
        _ => Internal,
    };
    (kind, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_what_the_caller_can_do() {
        for (code, kind) in [
            ("57P03", ErrorKind::Transient),
            ("57P01", ErrorKind::Transient),
            ("08006", ErrorKind::Transient),
            ("55006", ErrorKind::Transient),
            ("53300", ErrorKind::Transient),
            ("53400", ErrorKind::Precondition),
            ("28P01", ErrorKind::Precondition),
            ("28000", ErrorKind::Precondition),
            ("3D000", ErrorKind::Precondition),
            ("42501", ErrorKind::Precondition),
            ("42P01", ErrorKind::Precondition),
            ("55000", ErrorKind::Precondition),
            ("XX000", ErrorKind::Internal),
            ("", ErrorKind::Internal),
        ] {
            assert_eq!(classify(code).0, kind, "{code}");
        }
    }
}
