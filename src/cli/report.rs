//! How an error is shown: what, where, and what to do.

use serde_json::json;

use super::arguments::LogFormat;
use super::redact::redact;
use crate::error::{Error, ErrorKind};

/// Writes the error to stderr.
pub(super) fn print(error: &Error, format: LogFormat) {
    let text = match format {
        LogFormat::Text => text(error),
        LogFormat::Json => json_line(error),
    };
    eprintln!("{text}");
}

/// ```text
/// error: what
///   where: a place, a place within it
///   cause: why
///   fix: what to do
/// ```
fn text(error: &Error) -> String {
    let mut out = format!("error: {}", indented(error.message()));
    let places: Vec<&str> = error.places().collect();
    if !places.is_empty() {
        out.push_str(&format!("\n  where: {}", indented(&places.join(": "))));
    }
    for cause in error.causes() {
        out.push_str(&format!("\n  cause: {}", indented(cause.trim())));
    }
    if let Some(remedy) = error.remedy_text() {
        out.push_str(&format!("\n  fix: {}", indented(remedy)));
    }
    redact(&out).into_owned()
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n    ")
}

fn json_line(error: &Error) -> String {
    let clean = |text: &str| redact(text).into_owned();
    let mut line = json!({
        "timestamp": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        "level": "ERROR",
        "kind": kind(error.kind()),
        "error": clean(error.message()),
        "exit_code": error.kind().exit_code(),
    });
    let places: Vec<&str> = error.places().collect();
    if !places.is_empty() {
        line["where"] = clean(&places.join(": ")).into();
    }
    let causes = error.causes();
    if !causes.is_empty() {
        line["cause"] = clean(&causes.join(": ")).into();
    }
    if let Some(remedy) = error.remedy_text() {
        line["fix"] = clean(remedy).into();
    }
    line.to_string()
}

/// The kind's word in JSON.
fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Config => "config",
        ErrorKind::Precondition => "precondition",
        ErrorKind::Locked => "locked",
        ErrorKind::Missing => "missing",
        ErrorKind::Transient => "transient",
        ErrorKind::Undecodable => "undecodable",
        ErrorKind::Table => "table",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Conflict => "conflict",
        ErrorKind::ResyncNeeded => "resync_needed",
        ErrorKind::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::new(ErrorKind::Transient, "the source can't be reached")
            .caused_by(std::io::Error::other("connect to postgres://app:hidden@db/shop: refused"))
            .context("db:5432/shop")
            .context("duckpipe.toml, line 4")
            .remedy("start Postgres,\nor change source.url")
    }

    #[test]
    fn people_read_what_where_and_what_to_do() {
        let expected = "error: the source can't be reached\n  where: duckpipe.toml, line 4: db:5432/shop\n  cause: connect to postgres://app:***@db/shop: refused\n  fix: start Postgres,\n    or change source.url";
        assert_eq!(text(&error()), expected);
    }

    #[test]
    fn scripts_read_one_line() {
        let line = json_line(&error());
        assert_eq!(line.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["kind"], "transient");
        assert_eq!(value["exit_code"], 1);
        assert!(!line.contains("hidden"));
    }
}
