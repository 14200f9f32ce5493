//! What `duckpipe check` says. The facts come from the source, the store and the catalog; this is how they are put together and shown.

use serde::{Deserialize, Serialize};

/// Whether a precondition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It holds.
    Pass,
    /// It holds, but a person should know something.
    Warn,
    /// It does not hold: `sync` would fail.
    Fail,
}

/// One precondition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckItem {
    /// Whether it holds.
    pub ok: Outcome,
    /// The precondition, in a few words: `wal_level`, `public.orders: key`.
    pub what: String,
    /// What was found.
    pub detail: String,
    /// What to do, where something is to be done. It may have several lines, such as SQL.
    pub remedy: Option<String>,
}

/// All preconditions, in the order in which they were looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The preconditions.
    pub items: Vec<CheckItem>,
}

impl CheckReport {
    /// Adds a precondition that holds.
    pub fn pass(&mut self, what: impl Into<String>, detail: impl Into<String>) {
        self.items.push(CheckItem { ok: Outcome::Pass, what: what.into(), detail: detail.into(), remedy: None });
    }

    /// Adds something that a person should know.
    pub fn warn(&mut self, what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        self.items.push(CheckItem { ok: Outcome::Warn, what: what.into(), detail: detail.into(), remedy });
    }

    /// Adds a precondition that does not hold.
    pub fn fail(&mut self, what: impl Into<String>, detail: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into()).filter(|remedy| !remedy.is_empty());
        self.items.push(CheckItem { ok: Outcome::Fail, what: what.into(), detail: detail.into(), remedy });
    }

    /// Adds the result of trying something: an error fails it, with the error's own remedy.
    pub fn tried<T>(
        &mut self,
        what: impl Into<String>,
        tried: crate::error::Result<T>,
        detail: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match tried {
            Ok(value) => {
                self.pass(what, detail(&value));
                Some(value)
            }
            Err(error) => {
                self.fail(what, error.to_string(), error.remedy_text().unwrap_or_default());
                None
            }
        }
    }

    /// Appends another report.
    pub fn extend(&mut self, other: CheckReport) {
        self.items.extend(other.items);
    }

    /// Whether a precondition does not hold.
    pub fn failed(&self) -> bool {
        self.items.iter().any(|item| item.ok == Outcome::Fail)
    }

    /// The report for people: one line each, its remedy below, a summary at the end.
    pub fn render(&self, color: bool) -> String {
        let paint = |code: &str, text: &str| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
        let mut out = String::new();
        for item in &self.items {
            let mark = match item.ok {
                Outcome::Pass => paint("32", "✓"),
                Outcome::Warn => paint("33", "!"),
                Outcome::Fail => paint("31", "✗"),
            };
            let detail = super::redact::redact(item.detail.trim_end()).replace('\n', "\n    ");
            out.push_str(&format!("{mark} {}{}{detail}\n", item.what, if detail.is_empty() { "" } else { ": " }));
            if let Some(remedy) = &item.remedy {
                for (index, line) in remedy.lines().enumerate() {
                    out.push_str(&format!("    {}{line}\n", if index == 0 { "→ " } else { "  " }));
                }
            }
        }
        let count = |outcome| self.items.iter().filter(|item| item.ok == outcome).count();
        let (passed, warned, failed) = (count(Outcome::Pass), count(Outcome::Warn), count(Outcome::Fail));
        let verdict = if failed > 0 { "sync can't run yet" } else { "sync can run" };
        out.push_str(&format!("\n{passed} passed, {warned} to know, {failed} failed: {verdict}\n"));
        out
    }
}

/// The facts about the source server that preconditions are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`, such as 150018.
    pub version: u32,
    /// Whether it is a standby.
    pub standby: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_slots: u32,
    /// Slots that exist.
    pub used_slots: u32,
    /// `max_wal_senders`.
    pub max_senders: u32,
    /// WAL senders that run.
    pub used_senders: u32,
    /// Whether this pipeline's slot is among those that exist.
    pub own_slot_exists: bool,
    /// Whether the role is a superuser or has REPLICATION.
    pub may_replicate: bool,
    /// The role's name.
    pub role: String,
    /// `max_slot_wal_keep_size` in MiB; -1 is without limit.
    pub keep_mib: i64,
}

/// The preconditions of a source server.
pub fn server(facts: &ServerFacts) -> CheckReport {
    let mut report = CheckReport::default();
    let version = format!("PostgreSQL {}.{}", facts.version / 10_000, facts.version % 10_000);
    if facts.version >= 140_000 {
        report.pass("server version", version);
    } else {
        report.fail("server version", version, "upgrade the source to PostgreSQL 14 or newer");
    }
    if facts.standby && facts.version < 160_000 {
        report.fail(
            "standby",
            "a standby can be the source from PostgreSQL 16 on",
            "name its primary in the source's url",
        );
    } else if facts.standby {
        report.warn(
            "standby",
            "the source is a standby: a new slot waits for its primary, which must keep the rows of the catalog that it reads",
            "set hot_standby_feedback = on; SELECT pg_log_standby_snapshot() on the primary ends the wait",
        );
    }
    if facts.wal_level == "logical" {
        report.pass("wal_level", "logical");
    } else {
        let remedy = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server (managed services have a parameter for it)";
        report.fail("wal_level", facts.wal_level.clone(), remedy);
    }
    let slots = format!("{} of {} in use", facts.used_slots, facts.max_slots);
    if facts.own_slot_exists || facts.used_slots < facts.max_slots {
        report.pass("replication slots", slots);
    } else {
        report.fail(
            "replication slots",
            slots,
            "raise max_replication_slots and restart, or drop a slot that nobody uses",
        );
    }
    let senders = format!("{} of {} in use", facts.used_senders, facts.max_senders);
    if facts.used_senders < facts.max_senders {
        report.pass("WAL senders", senders);
    } else {
        report.fail("WAL senders", senders, "raise max_wal_senders and restart, or stop a replica that is not needed");
    }
    if facts.may_replicate {
        report.pass("role", format!("{} may replicate", facts.role));
    } else {
        let remedy = format!("ALTER ROLE {} REPLICATION;", quoted_name(&facts.role));
        report.fail("role", format!("{} may not replicate", facts.role), remedy);
    }
    if facts.keep_mib >= 0 {
        let detail =
            format!("max_slot_wal_keep_size is {} MB: a slot that falls further behind is lost", facts.keep_mib);
        report.warn(
            "slot retention",
            detail,
            "a lost slot needs sync --resnapshot; raise the limit where sync may stand still for long",
        );
    }
    report
}

/// How a column of the source arrives in the lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Every value is the same.
    Exact,
    /// As the text that `SELECT column::text` gives.
    Text,
    /// Something is lost, said in these words.
    Lossy(String),
    /// Not at all, for this reason.
    Unsupported(String),
}

/// The facts about one column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` prints it.
    pub source_type: String,
    /// Its type in the lake.
    pub lake_type: String,
    /// How it arrives.
    pub mapping: Mapping,
}

/// The facts about one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// The source's `schema.table`, as SQL writes it.
    pub name: String,
    /// Whether only a pattern matched it.
    pub by_pattern: bool,
    /// Whether the role may SELECT from it.
    pub may_select: bool,
    /// The role's name.
    pub role: String,
    /// Whether the replica identity is NOTHING.
    pub identity_is_nothing: bool,
    /// It has no key, and REPLICA IDENTITY FULL.
    pub whole_rows: bool,
    /// The columns of its key; empty where it has none.
    pub key: Vec<String>,
    /// The columns that would enter the lake.
    pub columns: Vec<ColumnFacts>,
}

/// The preconditions of a table.
pub fn table(facts: &TableFacts) -> CheckReport {
    let mut report = CheckReport::default();
    let name = &facts.name;
    if !facts.may_select {
        let remedy = format!("GRANT SELECT ON {name} TO {};", quoted_name(&facts.role));
        report.fail(format!("{name}: access"), format!("{} may not SELECT from it", facts.role), remedy);
    }
    let what = format!("{name}: key");
    let remedy = format!(
        "ALTER TABLE {name} ADD PRIMARY KEY (…); or ALTER TABLE {name} REPLICA IDENTITY USING INDEX …; for a unique index on NOT NULL columns"
    );
    if facts.identity_is_nothing {
        let remedy = format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT;");
        report.fail(
            what,
            "its replica identity is NOTHING, so that updates and deletes fail in the source once it is published",
            remedy,
        );
    } else if !facts.key.is_empty() {
        report.pass(what, facts.key.join(", "));
    } else if facts.whole_rows {
        report.warn(
            what,
            "it has none; rows are told apart by all their values (REPLICA IDENTITY FULL), which takes longer",
            remedy,
        );
    } else if facts.by_pattern {
        report.warn(what, "it has none; only a pattern names it, so it is left out", remedy);
    } else {
        report.fail(what, "it has none", remedy);
    }
    columns(&mut report, facts);
    report
}

/// One line for the columns that arrive whole, one for each that does not.
fn columns(report: &mut CheckReport, facts: &TableFacts) {
    let name = &facts.name;
    let whole = |column: &&ColumnFacts| matches!(column.mapping, Mapping::Exact | Mapping::Text);
    let show = |column: &ColumnFacts| {
        let note = if column.mapping == Mapping::Text { " as text" } else { "" };
        format!("{} {} → {}{note}", column.name, column.source_type, column.lake_type)
    };
    let whole: Vec<String> = facts.columns.iter().filter(whole).map(show).collect();
    if !whole.is_empty() {
        report.pass(format!("{name}: columns"), whole.join(", "));
    }
    for column in &facts.columns {
        let what = format!("{name}: column {} {}", column.name, column.source_type);
        let in_key = facts.key.contains(&column.name);
        let text = format!("types = {{ {} = \"text\" }} lets it arrive as text", column.name);
        match &column.mapping {
            Mapping::Exact | Mapping::Text => {}
            Mapping::Lossy(loss) if in_key => {
                report.fail(what, format!("{loss}; a key column must not lose anything"), text)
            }
            Mapping::Lossy(loss) => report.warn(what, loss.clone(), text),
            Mapping::Unsupported(reason) if in_key => report.fail(what, reason.clone(), text),
            Mapping::Unsupported(reason) => {
                let remedy = format!("exclude_columns = [\"{}\"] leaves it out; {text}", column.name);
                report.fail(what, reason.clone(), remedy);
            }
        }
    }
}

/// A name as SQL writes it, in double quotes where it needs them.
fn quoted_name(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    fn good() -> ServerFacts {
        ServerFacts {
            version: 150_018,
            standby: false,
            wal_level: "logical".into(),
            max_slots: 10,
            used_slots: 1,
            max_senders: 10,
            used_senders: 1,
            own_slot_exists: false,
            may_replicate: true,
            role: "app".into(),
            keep_mib: -1,
        }
    }

    #[test]
    fn a_good_server_passes() {
        let report = server(&good());
        assert!(!report.failed() && report.items.iter().all(|item| item.ok == Outcome::Pass), "{report:?}");
        // A slot that exists already needs no free place.
        assert!(!server(&ServerFacts { used_slots: 10, own_slot_exists: true, ..good() }).failed());
    }

    #[test]
    fn each_lack_fails_with_its_remedy() {
        let bad = ServerFacts {
            version: 130_002,
            standby: true,
            wal_level: "replica".into(),
            max_slots: 4,
            used_slots: 4,
            max_senders: 2,
            used_senders: 2,
            may_replicate: false,
            role: "App".into(),
            keep_mib: 1024,
            ..good()
        };
        let mut report = server(&bad);
        let error = Error::new(ErrorKind::Transient, "PUT failed for s3://key:hidden@x").remedy("check [s3]");
        report.tried("bucket", Err::<(), _>(error), |()| String::new());
        assert!(report.failed());
        insta::assert_snapshot!(report.render(false));
        assert!(report.render(true).contains("\x1b[31m✗"));
    }

    #[test]
    fn tables_say_their_key_and_their_types() {
        let column = |name: &str, source: &str, lake: &str, mapping| ColumnFacts {
            name: name.into(),
            source_type: source.into(),
            lake_type: lake.into(),
            mapping,
        };
        let good = TableFacts {
            name: "public.orders".into(),
            by_pattern: false,
            may_select: true,
            role: "app".into(),
            identity_is_nothing: false,
            whole_rows: false,
            key: vec!["id".into()],
            columns: vec![
                column("id", "bigint", "BIGINT", Mapping::Exact),
                column("area", "polygon", "VARCHAR", Mapping::Text),
            ],
        };
        let mut report = table(&good);
        assert!(!report.failed());
        report.extend(table(&TableFacts { name: "public.log".into(), by_pattern: true, key: vec![], ..good.clone() }));
        assert!(!report.failed(), "a pattern's keyless table is left out, no failure");
        let bad = TableFacts {
            name: "public.bad".into(),
            may_select: false,
            identity_is_nothing: true,
            whole_rows: false,
            columns: vec![
                column("id", "x", "VARCHAR", Mapping::Lossy("digits are cut".into())),
                column("at", "y", "VARCHAR", Mapping::Lossy("the zone is lost".into())),
                column("z", "z", "VARCHAR", Mapping::Unsupported("it has no output".into())),
            ],
            ..good.clone()
        };
        report.extend(table(&bad));
        report.extend(table(&TableFacts { name: "public.keyless".into(), key: vec![], ..good }));
        insta::assert_snapshot!(report.render(false));
    }
}
