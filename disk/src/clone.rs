//! A moment's copy of an image that shares its blocks: FICLONE, ioctl_ficlone(2).
//!
//! The file system shares every block of the image with a new file, and from then on writes to either go to new places.
//! It has writers of the image wait until that is done, which takes time with the number of extents, not with their size:
//! 10 to 60 µs each where it was measured, so nothing for an image that was written in one go, and seconds for one of
//! 100,000 pieces. What was written before is put on the disk first, so that they need not wait for that too.
//!
//! **What it is a copy of.** All that was written before the call began, and none of what is written after it has
//! ended; of what is written meanwhile, everything up to one moment. So for a guest it is what a power cut would leave.
//!
//! **What a crash leaves.** A clone has its name only when it is whole and on stable storage: a clone that had lost some
//! of its extents in a crash would make [`changed_blocks`](crate::changed_blocks) miss what changed since. Before that, a
//! `NAME.partial`, which the next clone of that name replaces.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{IFlags, OFlags, ioctl_ficlone, ioctl_getflags, ioctl_setflags};
use rustix::io::{Errno, retry_on_intr};

use crate::error::{DiskError, Operation, Reason, Result};
use crate::place::{Found, Place, look};

/// Makes `to`, which must not exist yet, a clone of the image file at `path`; only its owner reads it.
///
/// # Errors
/// [`Reason::NoClones`] where the file system cannot do this, [`Reason::OtherFileSystem`] if `to` is on another one,
/// [`Reason::Taken`] if there is something at `to`, and what the operating system says.
pub fn clone_file(path: &Path, to: &Path) -> Result<()> {
    let image = open_image(path)?;
    if !matches!(look(to)?, Found::Nothing) {
        return Err(DiskError::new(Operation::Create, to, Reason::Taken));
    }
    let (place, opened) = Place::new_image(to.to_owned(), None)?;
    let cloned = share(&image, &opened.file, path)
        .and_then(|()| opened.file.sync_all().map_err(|e| DiskError::os(Operation::Sync, to, e)))
        .and_then(|()| place.publish());
    if cloned.is_err() {
        // Still locked: nobody else's. What cannot be removed, the next clone of this name replaces.
        let _ = fs::remove_file(&opened.path);
    }
    cloned
}

fn open_image(path: &Path) -> Result<File> {
    // Without waiting for the other end if it is a pipe.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let fail = |e| DiskError::os(Operation::Open, path, e);
    let image = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(fail)?;
    if image.metadata().map_err(fail)?.is_file() {
        Ok(image)
    } else {
        Err(DiskError::new(Operation::Clone, path, Reason::NoClones))
    }
}

fn share(image: &File, clone: &File, path: &Path) -> Result<()> {
    let fail = |e| DiskError::os(Operation::Clone, path, e);
    like_in_copying(image, clone).map_err(fail)?;
    // The file system writes out what is still in memory, and has writers wait for that: the less the better.
    image.sync_data().map_err(|e| DiskError::os(Operation::Sync, path, e))?;
    retry_on_intr(|| ioctl_ficlone(clone, image)).map_err(|e| match e {
        Errno::XDEV => DiskError::new(Operation::Clone, path, Reason::OtherFileSystem),
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY | Errno::NOSYS => {
            DiskError::new(Operation::Clone, path, Reason::NoClones)
        }
        e => fail(e),
    })
}

/// btrfs shares blocks only between files that both have checksums or both have none, which goes with `chattr +C`.
fn like_in_copying(image: &File, clone: &File) -> rustix::io::Result<()> {
    // Where there are no such flags there is nothing to set.
    let (Ok(wanted), Ok(has)) = (ioctl_getflags(image), ioctl_getflags(clone)) else { return Ok(()) };
    if (wanted ^ has).contains(IFlags::NOCOW) {
        return ioctl_setflags(clone, has ^ IFlags::NOCOW);
    }
    Ok(())
}
