//! Names in folders: everything that decides what a killed run leaves behind. All of the crate's renaming, locking and
//! syncing of folders is here.
//!
//! ```text
//! new image       NAME.partial --- data, fsync --- rename to NAME --- fsync folder
//! in place        NAME.landfall-incomplete, fsync --- changes to NAME --- fsync NAME --- sidecar removed, fsync folder
//! ```
//!
//! **Invariants.** At its own name, a new image is complete. An image that is changed in place has the sidecar from
//! before the first change until after the last one is on stable storage.
//!
//! **What a crash leaves.** Before the rename: what was at `NAME` before, and a `NAME.partial`, which the next run
//! replaces. In place: the sidecar, which says that the image is neither the old nor the new one; running the same
//! comparison to its end removes it. Block devices have no folder of ours to put a sidecar in: a killed run leaves a
//! device without a mark.
//!
//! Two runs at once on one image are kept apart by `flock` on the partial file, image or device. In-place writes also
//! refuse an image on which another program (a running QEMU) holds record locks, and a device that is mounted.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, fcntl_lock, flock, renameat_with};
use rustix::io::Errno;

use crate::error::{DiskError, Operation, Reason, Result};

const PARTIAL_SUFFIX: &str = ".partial";
const SIDECAR_SUFFIX: &str = ".landfall-incomplete";

/// A disk holds what everybody on the machine wrote: only its owner reads the image.
const NEW_IMAGE_MODE: u32 = 0o600;

/// Times that the partial file may vanish or be replaced between opening and locking it; each time another run ended.
const PARTIAL_TRIES_MAX: u32 = 16;

/// A locked file or device, open for reading and writing.
pub(crate) struct Opened {
    pub(crate) file: File,
    /// Where it is now, with all symbolic links resolved.
    pub(crate) path: PathBuf,
    pub(crate) is_device: bool,
}

impl Drop for Opened {
    /// Gives the lock back at once: a child process that is just being started has the descriptor too, until it runs.
    fn drop(&mut self) {
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// What is at a path.
pub(crate) enum Found {
    Nothing,
    File(PathBuf, Metadata),
    Device(PathBuf),
}

/// Looks without opening. The paths found have their symbolic links resolved, so that what is replaced or marked is the
/// image and not a link to it.
pub(crate) fn look(path: &Path) -> Result<Found> {
    let fail = |e: io::Error| DiskError::os(Operation::Open, path, e);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) => return Err(fail(e)),
        Ok(_) => {}
    }
    let meta = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(DiskError::new(Operation::Open, path, Reason::DanglingLink));
        }
        other => other.map_err(fail)?,
    };
    let real = path.canonicalize().map_err(fail)?;
    match meta.file_type() {
        kind if kind.is_file() => Ok(Found::File(real, meta)),
        kind if kind.is_block_device() => Ok(Found::Device(real)),
        _ => Err(DiskError::new(Operation::Open, path, Reason::NotADisk)),
    }
}

/// Opens what is there for changes in place.
pub(crate) fn open_in_place(real: PathBuf, is_device: bool) -> Result<Opened> {
    // For a device this claims it against mounting; for a file it means nothing without O_CREAT.
    let flags = if is_device { OFlags::EXCL } else { OFlags::empty() };
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(&real);
    let file = match opened {
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            return Err(DiskError::new(Operation::Open, &real, Reason::Busy));
        }
        other => other.map_err(|e| DiskError::os(Operation::Open, &real, e))?,
    };
    lock(&file, &real)?;
    let opened = Opened { file, path: real, is_device };
    // Taken and given back: it would be lost anyway as soon as any other descriptor of the file is closed.
    let others = fcntl_lock(&opened.file, FlockOperation::NonBlockingLockExclusive);
    if matches!(others, Err(Errno::ACCESS | Errno::AGAIN)) {
        return Err(DiskError::new(Operation::Open, &opened.path, Reason::Locked));
    }
    let _ = fcntl_lock(&opened.file, FlockOperation::Unlock);
    Ok(opened)
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(DiskError::new(Operation::Open, path, Reason::Locked)),
        // Some network file systems have no locks: then nobody else has one either.
        _ => Ok(()),
    }
}

/// The names of one image.
pub(crate) struct Place {
    name: PathBuf,
    state: State,
}

enum State {
    New { replaces: bool },
    InPlace { sidecar_made: Mutex<bool> },
    Device,
}

impl Place {
    /// A new image that will have the name; whose owner and mode are those of the image that it replaces.
    pub(crate) fn new_image(name: PathBuf, replaces: Option<&Metadata>) -> Result<(Self, Opened)> {
        let opened = open_partial(&name)?;
        if let Some(old) = replaces {
            // Only root can give files away; everybody else replaces files of their own.
            let _ = fchown(&opened.file, Some(old.uid()), Some(old.gid()));
            opened.file.set_permissions(old.permissions()).map_err(|e| DiskError::os(Operation::Create, &name, e))?;
        }
        Ok((Self { name, state: State::New { replaces: replaces.is_some() } }, opened))
    }

    /// The image or device that is at the name.
    pub(crate) fn in_place(opened: &Opened) -> Self {
        let state = if opened.is_device { State::Device } else { State::InPlace { sidecar_made: Mutex::new(false) } };
        Self { name: opened.path.clone(), state }
    }

    pub(crate) const fn is_new(&self) -> bool {
        matches!(self.state, State::New { .. })
    }

    /// To be called before every change of the image; only the first in place costs something.
    pub(crate) fn before_write(&self) -> Result<()> {
        let State::InPlace { sidecar_made } = &self.state else { return Ok(()) };
        let mut made = sidecar_made.lock().unwrap_or_else(PoisonError::into_inner);
        if !*made {
            self.make_sidecar().map_err(|e| DiskError::os(Operation::Mark, &self.name, e))?;
            *made = true;
        }
        Ok(())
    }

    fn make_sidecar(&self) -> io::Result<()> {
        let path = with_suffix(&self.name, SIDECAR_SUFFIX);
        let mut sidecar = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        writeln!(
            sidecar,
            "Landfall is changing {:?} in place (process {}).\n\
             As long as this file exists, that image is neither what it was before nor what it is to become.\n\
             Run the same command again, to its end, to complete it.",
            self.name,
            std::process::id()
        )?;
        sidecar.sync_all()?;
        sync_folder(&path)
    }

    /// Gives a new image its name, removes the sidecar. The image itself must be on stable storage.
    pub(crate) fn publish(self) -> Result<()> {
        let fail = |e: io::Error| DiskError::os(Operation::Publish, &self.name, e);
        if let State::New { replaces } = self.state {
            let partial = with_suffix(&self.name, PARTIAL_SUFFIX);
            if replaces { fs::rename(&partial, &self.name) } else { rename_to_free_name(&partial, &self.name) }
                .map_err(|e| match e.kind() {
                    io::ErrorKind::AlreadyExists => DiskError::new(Operation::Publish, &self.name, Reason::Taken),
                    _ => fail(e),
                })?;
            sync_folder(&self.name).map_err(fail)?;
        }
        if matches!(self.state, State::Device) {
            return Ok(());
        }
        // Whoever made it: the image is whole now.
        match fs::remove_file(with_suffix(&self.name, SIDECAR_SUFFIX)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(fail(e)),
            Ok(()) => sync_folder(&self.name).map_err(fail),
        }
    }
}

/// Opens and locks an empty partial file, replacing what a killed run left.
fn open_partial(name: &Path) -> Result<Opened> {
    let fail = |e: io::Error| DiskError::os(Operation::Create, name, e);
    let path = with_suffix(name, PARTIAL_SUFFIX);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    for _ in 0..PARTIAL_TRIES_MAX {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(NEW_IMAGE_MODE)
            .custom_flags(flags.bits().cast_signed())
            .open(&path)
            .map_err(fail)?;
        lock(&file, name)?;
        let opened = Opened { file, path: path.clone(), is_device: false };
        let meta = opened.file.metadata().map_err(fail)?;
        if !meta.is_file() {
            return Err(DiskError::new(Operation::Create, &path, Reason::NotADisk));
        }
        let there = fs::symlink_metadata(&path);
        let is_ours = there.is_ok_and(|there| (there.dev(), there.ino()) == (meta.dev(), meta.ino()));
        if is_ours && meta.nlink() == 1 {
            opened.file.set_len(0).map_err(fail)?;
            // If it was there already, who could read it is not who may read what comes. Some file systems have no modes.
            let _ = opened.file.set_permissions(Permissions::from_mode(NEW_IMAGE_MODE));
            return Ok(opened);
        }
        if is_ours {
            // A run was killed after the image got its name and before it lost this one: the other name is a whole image.
            fs::remove_file(&path).map_err(fail)?;
        }
    }
    Err(DiskError::new(Operation::Create, name, Reason::Locked))
}

/// Renames, but never over something.
fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

/// Makes the names in the folder of `path` survive a crash.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// The folder that a path is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
