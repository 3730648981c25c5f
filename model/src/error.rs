//! The workspace's error, and what an operator has to do about it: its kind is the exit code of the command line.

use std::error::Error as StdError;
use std::fmt;

/// The kind of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ErrorKind {
    /// A bug in Landfall.
    Bug,
    /// Usage or configuration: change the command.
    Usage,
    /// A key or passphrase is missing or wrong.
    Key,
    /// Data in the vault is corrupt, missing or tampered with.
    Corrupt,
    /// Fenced, already there, or in conflict with somebody else's work.
    Conflict,
    /// No space left.
    NoSpace,
    /// The store or host does not answer, or a source went away: try again.
    Unavailable,
    /// This store, format or file system lacks what is needed.
    Unsupported,
    /// What was named does not exist.
    NotFound,
}

impl ErrorKind {
    /// What an I/O error of this host means to the operator.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Self::NoSpace,
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied | Io::InvalidInput | Io::NotADirectory | Io::IsADirectory | Io::ReadOnlyFilesystem => {
                Self::Usage
            }
            Io::AlreadyExists => Self::Conflict,
            _ => Self::Unavailable,
        }
    }

    const ALL: [Self; 9] = [
        Self::Bug,
        Self::Usage,
        Self::Key,
        Self::Corrupt,
        Self::Conflict,
        Self::NoSpace,
        Self::Unavailable,
        Self::Unsupported,
        Self::NotFound,
    ];

    /// The kind with this exit code.
    pub fn of_exit_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.exit_code() == code)
    }

    /// Exit code of the command.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Bug => 1,
            Self::Usage => 2,
            Self::Key => 3,
            Self::Corrupt => 4,
            Self::Conflict => 5,
            Self::NoSpace => 6,
            Self::Unavailable => 7,
            Self::Unsupported => 8,
            Self::NotFound => 9,
        }
    }
}

/// Any failure: what was being done, to what, why it failed; its kind says what the operator does.
///
/// `Display` is one line and never repeats the source.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result with the workspace's error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with no cause beneath it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// An error with the one that caused it.
    pub fn with_source(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// Data in the vault that is not what it must be.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }

    /// What the operator does about it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error and its causes, on one line.
    pub fn line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text.replace('\n', " ")
    }

    /// The same error, said of a larger thing.
    #[must_use]
    pub fn context(mut self, outer: impl fmt::Display) -> Self {
        self.context = format!("{outer}: {}", self.context);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
