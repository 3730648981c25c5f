//! Errors on the link: a gRPC status with the kind's exit code beside it, so that the other side has an error of the same kind.

use landfall_model::{Error, ErrorKind};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// Metadata entry that carries the exit code.
const CODE_ENTRY: &str = "landfall-code";
/// Longest text of an error that is sent, in bytes: it travels in a header, whose list is bounded.
const WHY_BYTES_MAX: usize = 1024;

/// The kind of error that an exit code stands for; `Unsupported` where a newer program sent one that this one does not know.
pub fn kind_of_code(code: u8) -> ErrorKind {
    ErrorKind::of_exit_code(code).unwrap_or(ErrorKind::Unsupported)
}

fn grpc_code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Bug => Code::Internal,
        ErrorKind::Usage => Code::InvalidArgument,
        ErrorKind::Key => Code::Unauthenticated,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Conflict => Code::FailedPrecondition,
        ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::NotFound => Code::NotFound,
    }
}

pub(crate) fn to_status(error: &Error) -> Status {
    let mut why = error.to_string();
    why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
    let mut status = Status::new(grpc_code(error.kind()), why);
    status.metadata_mut().insert(CODE_ENTRY, MetadataValue::from(u16::from(error.kind().exit_code())));
    status
}

pub(crate) fn to_error(status: &Status) -> Error {
    let code = status.metadata().get(CODE_ENTRY).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if let Some(code) = code {
        return Error::new(kind_of_code(code), status.message());
    }
    // Not from this program: from HTTP/2, TLS or TCP beneath it, or from tonic, which refuses what it cannot frame.
    let kind = match status.code() {
        Code::OutOfRange | Code::InvalidArgument | Code::DataLoss => ErrorKind::Corrupt,
        Code::Unimplemented => ErrorKind::Unsupported,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the link failed: {}", status.message()))
}
