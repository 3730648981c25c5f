//! Writing files so that a crash leaves the old or the new one, and what a failure of that means to the operator.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use landfall_model::{Error, ErrorKind, Result};

/// Nobody else may read what an agent keeps.
const MODE: u32 = 0o600;

/// A failure in the state directory.
pub(crate) fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&error), format!("cannot {doing} {} (state directory)", path.display()), error)
}

/// The name under which a file is written before it is whole.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Makes or empties a file that only its owner may read.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(path)
}

/// What was written aside becomes the file: fsync, rename, fsync of the folder.
pub(crate) fn publish(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(aside(path), path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// What was made, renamed or removed in a folder is durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Replaces a file durably.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = create(&aside(path))?;
        file.write_all(bytes)?;
        publish(&file, path)
    };
    write().map_err(|e| failed("write", path, e))
}

/// Replaces a file so that readers see the old or the new one. After a power cut it may be the old one.
pub(crate) fn swap(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        create(&aside(path))?.write_all(bytes)?;
        fs::rename(aside(path), path)
    };
    write().map_err(|e| failed("write", path, e))
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, "the host gives no random numbers", e))?;
    Ok(bytes)
}
