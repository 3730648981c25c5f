//! What goes wrong between us and a socket of QEMU.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use landfall_model::{Error, ErrorKind};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached, or the connection broke.
    #[error("cannot talk to the socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing was heard in time. What was asked for may still be done.
    #[error(
        "{path}: no answer to {to} within {limit:?}; another client may be connected, each socket serves one at a time"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The command, or what was waited for.
        to: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The other side has hung up.
    #[error("{path}: the other side has ended the connection")]
    Ended {
        /// The socket.
        path: PathBuf,
    },
    /// The command was refused.
    #[error("{path}: {command} is refused: {desc} ({class})")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: String,
        /// The kind of error, as QEMU names it: `GenericError`, `CommandNotFound`, `DeviceNotFound`, ...
        class: String,
        /// For people.
        desc: String,
    },
    /// What came is not the protocol. The connection is of no use any more.
    #[error("{path}: not what the protocol says: {why}")]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, QmpError>;

impl QmpError {
    /// What QEMU calls the error, where it has refused a command.
    pub fn class(&self) -> Option<&str> {
        match self {
            Self::Refused { class, .. } => Some(class),
            _ => None,
        }
    }

    /// What QEMU says of the error, where it has refused a command.
    pub fn desc(&self) -> Option<&str> {
        match self {
            Self::Refused { desc, .. } => Some(desc),
            _ => None,
        }
    }
}

impl From<QmpError> for Error {
    fn from(error: QmpError) -> Self {
        let kind = match &error {
            QmpError::Io { source, .. } => ErrorKind::of_io(source),
            QmpError::Silent { .. } | QmpError::Ended { .. } => ErrorKind::Unavailable,
            QmpError::Refused { class, .. } if class == "CommandNotFound" => ErrorKind::Unsupported,
            QmpError::Refused { class, .. } if class == "DeviceNotFound" => ErrorKind::NotFound,
            QmpError::Refused { .. } => ErrorKind::Unavailable,
            QmpError::Malformed { .. } => ErrorKind::Corrupt,
        };
        let text = error.to_string();
        match error {
            QmpError::Io { source, .. } => Self::with_source(kind, text, source),
            _ => Self::new(kind, text),
        }
    }
}
