//! The program's one error: what the caller can do about it, where it happened, and what a person should do.

use std::fmt;

/// What a caller can do about an error. The exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The configuration or the command line is wrong: fix it and start again.
    Config,
    /// A precondition in the source, the bucket or the catalog does not hold; nothing was written.
    Precondition,
    /// Another process has the catalog's file open.
    Locked,
    /// What was to be read does not exist yet.
    Missing,
    /// The source, the store or the catalog could not be reached or answered with a passing error: try again.
    Transient,
    /// One table can't go on; the others can.
    Table,
    /// Another process has taken this pipeline over: stop without touching anything.
    Fenced,
    /// The catalog moved on beneath a commit: look again and commit anew.
    Conflict,
    /// The server fails to decode its own WAL: the next try may do, else only a fresh snapshot helps.
    Undecodable,
    /// The slot can't continue the lake: only a fresh snapshot helps.
    ResyncNeeded,
    /// Bytes that do not follow their format, or a broken invariant.
    Internal,
}

impl ErrorKind {
    /// The process exit code that scripts see.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Config => 2,
            ErrorKind::ResyncNeeded => 4,
            _ => 1,
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error with its kind, a message, where it happened, its cause and a remedy.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<String>,
    remedy: Option<String>,
    resync: bool,
    table_id: Option<i64>,
    cause: Option<Cause>,
}

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            context: Vec::new(),
            remedy: None,
            resync: false,
            table_id: None,
            cause: None,
        }))
    }

    /// What underlies this error.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// What a person should do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Trying again or waiting is in vain: a fresh copy of the table mends it, at once.
    #[must_use]
    pub fn mended_by_resync(mut self) -> Self {
        self.0.resync = true;
        self
    }

    /// See [`Error::mended_by_resync`].
    pub fn is_mended_by_resync(&self) -> bool {
        self.0.resync
    }

    /// Which of the lake's tables it is of, by DuckLake's `table_id`, where something was done with several at once.
    #[must_use]
    pub fn of_table(mut self, table_id: i64) -> Self {
        self.0.table_id = Some(table_id);
        self
    }

    /// See [`Error::of_table`].
    pub fn table_id(&self) -> Option<i64> {
        self.0.table_id
    }

    /// Where it happened: a table, a file, an LSN. The outermost comes first in print.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.0.context.push(context.into());
        self
    }

    /// The same error, with which a caller can do something else.
    #[must_use]
    pub fn of_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What happened, without where and why.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened, the outermost first.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.0.context.iter().rev().map(String::as_str)
    }

    /// What underlies it, the nearest first, each said once.
    pub fn causes(&self) -> Vec<String> {
        let mut said = Vec::new();
        let mut cause = self.0.cause.as_deref().map(|c| c as &dyn std::error::Error);
        while let Some(next) = cause {
            let text = next.to_string();
            let repeated =
                self.0.message.contains(&text) || said.iter().any(|earlier: &String| earlier.contains(&text));
            if !repeated {
                said.push(text);
            }
            cause = next.source();
        }
        said
    }

    /// What a person should do, where it is known.
    pub fn remedy_text(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.0.context.iter().rev() {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.0.message)?;
        let mut cause = self.0.cause.as_deref().map(|c| c as &dyn std::error::Error);
        while let Some(next) = cause {
            let text = next.to_string();
            // tokio-postgres prints its cause itself; the chain would say it twice.
            if !self.0.message.contains(&text) {
                write!(f, ": {text}")?;
            }
            cause = next.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds where it happened to a failing result.
pub trait ResultExt<T> {
    /// See [`Error::context`].
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.context(context()))
    }
}

/// Turns a foreign error into ours, with its kind and what was being done.
pub trait Because<T> {
    /// Wraps the error as `kind`, saying `message`.
    fn because(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> Because<T> for std::result::Result<T, E> {
    fn because(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::new(kind, message()).caused_by(cause))
    }
}
