//! The files of an identity: written whole, synced, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use landfall_model::{Error, ErrorKind, Result};

/// Bytes of base64 in a line of PEM (RFC 7468).
const LINE_BYTES: usize = 64;

pub(super) fn failed(what: &str, path: &Path, source: io::Error) -> Error {
    let kind = match source.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::PermissionDenied => ErrorKind::Usage,
        _ => ErrorKind::Unavailable,
    };
    Error::with_source(kind, format!("{}: cannot {what}", path.display()), source)
}

/// PEM of something that is DER.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..body.len()).step_by(LINE_BYTES) {
        text.push_str(&body[start..body.len().min(start + LINE_BYTES)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Writes a file that only its owner reads; what was there is replaced at once, or not at all.
pub(super) fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (new, path) = (folder.join(format!(".{name}.tmp")), folder.join(name));
    write_new(&new, bytes).map_err(|e| failed("be written", &new, e))?;
    rename(folder, &new, &path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Renames, durably.
pub(super) fn rename(folder: &Path, from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| failed("be written", to, e))?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("be synced", folder, e))
}
