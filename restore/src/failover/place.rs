//! The folder of a job on the host that does it: who works there, and what is left when nobody does.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use landfall_model::{Error, ErrorKind, JobId, Result};
use rustix::process::{Pid, Signal};

use crate::kvm::{self, Files};

/// Says which job a folder is of.
const MARK: &str = "job";
/// The target's file, as the job was begun with it.
const SETTINGS: &str = "target.toml";
/// Longest folder: the sockets in it must fit into an address of the system, which has 108 bytes.
const FOLDER_BYTES_MAX: usize = 90;

/// A job's folder.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    folder: PathBuf,
}

/// Nobody else works in the folder while this lives.
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Writes down who we are: whoever wants this to end tells us.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn sign(&mut self) -> Result<()> {
        let written = self.file.set_len(0).and_then(|()| write!(self.file, "{}", std::process::id()));
        written.map_err(|e| Error::with_source(ErrorKind::of_io(&e), "cannot write the lock of a job", e))
    }
}

fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&e), format!("cannot {what} {}", path.display()), e)
}

/// A folder that is ours, and that nobody else can look into: what stands in it was put there by us.
fn is_private(found: &fs::Metadata) -> bool {
    found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0
}

impl Place {
    /// The folder that a job's record names, where it is on this host and is the job's: made by us, and named and marked by the job's id. A record may be
    /// forged by who has the site key; what is done in a folder, and removing it, must not be.
    ///
    /// # Errors
    /// `Conflict` where it is there and is something else.
    pub(crate) fn of_job(folder: &Path, job: JobId) -> Result<Option<Self>> {
        let found = match fs::symlink_metadata(folder) {
            // Only what is not there is not there: what cannot be looked at may hold a machine that runs.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(|e| failed("look at", folder, e))?,
        };
        let named = folder.file_name().is_some_and(|name| name == job.to_string().as_str());
        let marked = fs::read_to_string(folder.join(MARK)).is_ok_and(|mark| mark == job.to_string());
        if !(folder.is_absolute() && is_private(&found) && named && marked) {
            let why = format!("{} is no folder of job {job}: nothing is done in it", folder.display());
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        Ok(Some(Self { folder: folder.to_owned() }))
    }

    /// Makes the folder of a job below a root, for us alone; one that is there stays.
    ///
    /// # Errors
    /// `Usage` where its path is too long for sockets; what the host says.
    pub(crate) fn make(root: &Path, job: JobId) -> Result<Self> {
        let folder = root.join(job.to_string());
        if folder.as_os_str().len() > FOLDER_BYTES_MAX {
            let why = format!("{}: sockets do not fit in so long a path: pass a shorter --folder", folder.display());
            return Err(Error::new(ErrorKind::Usage, why));
        }
        // It stands in the arguments of QEMU, which are parted by commas.
        if folder.as_os_str().as_encoded_bytes().contains(&b',') {
            let why = format!("{}: QEMU takes no path with a comma: pass another --folder", folder.display());
            return Err(Error::new(ErrorKind::Usage, why));
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        let found = made.and_then(|()| fs::symlink_metadata(&folder)).map_err(|e| failed("make", &folder, e))?;
        if !is_private(&found) {
            let why = format!("{} is there and is not ours alone: nothing is done in it", folder.display());
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let marked = fs::write(folder.join(MARK), job.to_string());
        marked.map_err(|e| failed("make", &folder, e))?;
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps the target's file.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn keep_settings(&self, text: &str) -> Result<()> {
        let path = self.folder.join(SETTINGS);
        fs::write(&path, text).map_err(|e| failed("write", &path, e))
    }

    /// The target's file as it was kept, and its path.
    ///
    /// # Errors
    /// `Usage` where there is none.
    pub(crate) fn settings(&self) -> Result<(String, PathBuf)> {
        let path = self.folder.join(SETTINGS);
        match fs::read_to_string(&path) {
            Ok(text) => Ok((text, path)),
            Err(e) => {
                let why =
                    format!("{}: the target's file of the job is not there: pass --target-file FILE", path.display());
                Err(Error::with_source(ErrorKind::Usage, why, e))
            }
        }
    }

    /// Takes the folder, and says who has it; none where somebody works there.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn take(&self) -> Result<Option<Lock>> {
        let path = self.folder.join("lock");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = opened.map_err(|e| failed("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &path, e)),
        }
        Ok(Some(Lock { file }))
    }

    /// Whether there is such a folder on this host.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// Asks whoever works here to end in order; the folder is ours where nobody does.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn ask_to_end(&self) -> Result<Option<Lock>> {
        if let Some(lock) = self.take()? {
            return Ok(Some(lock));
        }
        let path = self.folder.join("lock");
        let mut text = String::new();
        File::open(&path).and_then(|mut f| f.read_to_string(&mut text)).map_err(|e| failed("read", &path, e))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended in between.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        Ok(None)
    }

    /// Removes the folder with all that is in it, and the networks that were made for its job: first those, so that what is left is found by the folder.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn remove(&self) -> Result<()> {
        kvm::remove_networks(&Files::of(&self.folder))?;
        match fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &self.folder, e)),
            _ => Ok(()),
        }
    }
}
