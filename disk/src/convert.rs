//! What a failure of this crate means to the operator.

use std::error::Error as _;

use landfall_model::{Error, ErrorKind};

use crate::{DiskError, DiskErrorKind};

impl From<DiskError> for Error {
    fn from(error: DiskError) -> Self {
        let kind = match error.kind() {
            DiskErrorKind::NotFound => ErrorKind::NotFound,
            DiskErrorKind::Exists => ErrorKind::Conflict,
            DiskErrorKind::NoSpace => ErrorKind::NoSpace,
            DiskErrorKind::Unsupported => ErrorKind::Unsupported,
            DiskErrorKind::Usage => ErrorKind::Usage,
            DiskErrorKind::Shrunk | DiskErrorKind::Io => ErrorKind::Unavailable,
        };
        match error.source() {
            Some(source) => Self::with_source(kind, error.to_string(), source.to_string()),
            None => Self::new(kind, error.to_string()),
        }
    }
}
