//! What an operator has to do about an error; every crate's error has one, and it is the exit code of the command line.

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
