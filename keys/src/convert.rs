//! What a failure of this crate means to the operator.

use std::error::Error as _;

use landfall_model::{Error, ErrorKind};

use crate::{KeyError, KeyErrorKind};

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        let kind = match error.kind() {
            KeyErrorKind::Missing | KeyErrorKind::Wrong => ErrorKind::Key,
            KeyErrorKind::Corrupt => ErrorKind::Corrupt,
            KeyErrorKind::Unsupported => ErrorKind::Unsupported,
            KeyErrorKind::Usage => ErrorKind::Usage,
            KeyErrorKind::Io => ErrorKind::Unavailable,
            KeyErrorKind::Exists => ErrorKind::Conflict,
        };
        match error.source() {
            Some(source) => Self::with_source(kind, error.to_string(), source.to_string()),
            None => Self::new(kind, error.to_string()),
        }
    }
}
