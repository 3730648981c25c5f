//! How the disks of this host are watched: block devices by eBPF, image files by clones where their file system can share blocks.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use landfall_disk::{changed_blocks, clone_file};
use landfall_model::{BlockSet, Error, ErrorKind, Result};

use crate::fingerprints::BLOCK_BYTES;
use crate::image::{DiskConfig, SourceChoice};
use crate::mounts;
use crate::tracking::{Tracking, Watch, Written};

/// The writes to a block device.
struct Device(landfall_track::Watch);

impl Watch for Device {
    fn take(&mut self) -> Written {
        let marks = self.0.take();
        match marks.lost {
            Some(why) => Written::Lost(why),
            None => Written::Blocks(marks.blocks),
        }
    }

    fn source(&self) -> &'static str {
        "ebpf"
    }
}

/// A clone of an image file beside it, and with the next one what changed in between. The clone goes with it.
struct Clone {
    image: PathBuf,
    clone: PathBuf,
    file: File,
}

impl Clone {
    /// Makes the first clone; `owner` tells the clones of one agent from those of another.
    fn of(image: &Path, owner: &Path) -> Result<Self> {
        // Clones are made where the file is, not where a link to it is.
        let image = fs::canonicalize(image)
            .map_err(|e| Error::with_source(ErrorKind::of_io(&e), format!("cannot find {}", image.display()), e))?;
        let of = blake3::hash(owner.as_os_str().as_encoded_bytes()).to_hex();
        let mut name = OsString::from(".");
        name.push(image.file_name().unwrap_or_default());
        name.push(format!(".landfall-{}", &of[..8]));
        let clone = image.with_file_name(name);
        // Of an agent that was killed: this one has the state directory now.
        let _ = fs::remove_file(&clone);
        let file = cloned(&image, &clone)?;
        Ok(Self { image, clone, file })
    }

    fn next(&mut self) -> Result<BlockSet> {
        let mut newer = self.clone.clone().into_os_string();
        newer.push("-new");
        let newer = PathBuf::from(newer);
        let _ = fs::remove_file(&newer);
        let file = cloned(&self.image, &newer)?;
        let changed = changed_blocks(&self.file, &file, BLOCK_BYTES);
        // Not before both were compared: what nobody refers to any more may be written to.
        let moved = fs::rename(&newer, &self.clone);
        moved.map_err(|e| Error::with_source(ErrorKind::of_io(&e), "cannot rename a clone", e))?;
        self.file = file;
        Ok(changed?)
    }
}

fn cloned(image: &Path, to: &Path) -> Result<File> {
    clone_file(image, to)?;
    File::open(to).map_err(|e| Error::with_source(ErrorKind::of_io(&e), format!("cannot open {}", to.display()), e))
}

impl Watch for Clone {
    fn take(&mut self) -> Written {
        match self.next() {
            Ok(set) => Written::Blocks(set),
            Err(error) => Written::Lost(error.to_string()),
        }
    }

    fn source(&self) -> &'static str {
        "clone"
    }

    fn copy(&self) -> Option<&Path> {
        Some(&self.clone)
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.clone);
    }
}

/// Begins to watch a disk, for the agent with this state directory.
///
/// # Errors
/// `Unsupported` where it cannot be watched: why.
fn attach(path: &Path, state_dir: &Path) -> Result<Box<dyn Watch>> {
    if mounts::is_device(path) {
        return Ok(Box::new(Device(landfall_track::Watch::attach(path)?)));
    }
    Ok(Box::new(Clone::of(path, state_dir)?))
}

/// Begins to watch a disk, as what the configuration demands where it demands something.
///
/// # Errors
/// As for [`attach`]; `Unsupported` where it can be watched, and not as that.
pub(crate) fn attach_as(choice: SourceChoice, path: &Path, state_dir: &Path) -> Result<Box<dyn Watch>> {
    let watch = attach(path, state_dir)?;
    match choice.demanded() {
        Some(wanted) if watch.source() != wanted => {
            Err(Error::new(ErrorKind::Unsupported, format!("it can be watched as \"{}\"", watch.source())))
        }
        _ => Ok(watch),
    }
}

/// Watches the disks of a machine, where that is wanted and can be.
///
/// # Errors
/// `Usage` where the configuration demands what cannot be had here.
pub(crate) fn tracking(disks: &[DiskConfig], state_dir: &Path) -> Result<Tracking> {
    for disk in disks.iter().filter(|d| !d.exclude) {
        let Some((path, wanted)) = disk.path.as_deref().zip(disk.source.demanded()) else { continue };
        attach_as(disk.source, path, state_dir).map_err(|error| {
            let name = &disk.name;
            let why =
                format!("disk {name}: source \"{wanted}\" is not possible here ({error}); \"auto\" takes what is");
            Error::new(ErrorKind::Usage, why)
        })?;
    }
    let state_dir = state_dir.to_owned();
    let begin = move |path: &Path| attach(path, &state_dir);
    Ok(Tracking::new(disks.iter().filter(|d| !d.exclude && d.source != SourceChoice::Image), Box::new(begin)))
}
