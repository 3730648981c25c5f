//! How the disks of this host are watched: volumes of LVM and ZFS by snapshots, other block devices by eBPF, image files by clones where their file system can
//! share blocks.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use landfall_disk::{changed_blocks, clone_file};
use landfall_model::{BlockSet, Error, ErrorKind, Result};

use crate::fingerprints::BLOCK_BYTES;
use crate::image::{DiskConfig, SourceChoice};
use crate::mounts;
use crate::snapshots::{Moments, Owner, Thin, Zvol};
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

/// A clone of an image file beside it, and with the next one what changed in between. The clones go with it.
struct Clone {
    image: PathBuf,
    clone: PathBuf,
    /// What the next one is compared with.
    file: File,
    /// Made since, and not compared yet.
    newer: Option<File>,
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
        Ok(Self { image, clone, file, newer: None })
    }

    fn newer(&self) -> PathBuf {
        let mut newer = self.clone.clone().into_os_string();
        newer.push("-new");
        PathBuf::from(newer)
    }

    fn next(&mut self) -> Result<()> {
        let newer = self.newer();
        let _ = fs::remove_file(&newer);
        self.newer = Some(cloned(&self.image, &newer)?);
        Ok(())
    }

    fn changed(&mut self) -> Result<BlockSet> {
        let file = self.newer.take().ok_or_else(|| Error::new(ErrorKind::Bug, "no clone was made"))?;
        let changed = changed_blocks(&self.file, &file, BLOCK_BYTES);
        // Not before both were compared: what nobody refers to any more may be written to.
        let moved = fs::rename(self.newer(), &self.clone);
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
        self.next().map_or_else(|error| Written::Lost(error.to_string()), |()| Written::Later)
    }

    fn compare(&mut self, _stop: &dyn Fn() -> bool) -> Written {
        match self.changed() {
            Ok(set) => Written::Blocks(set),
            Err(error) if self.clone.exists() && !self.newer().exists() => Written::All(error.to_string()),
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
        let _ = fs::remove_file(self.newer());
    }
}

/// What all watches of a machine share.
#[derive(Clone)]
pub(crate) struct Watching {
    owner: Owner,
    moments: Moments,
    alarm: Arc<AtomicBool>,
}

impl Watching {
    pub(crate) fn new(owner: Owner) -> Self {
        Self { owner, moments: Moments::default(), alarm: Arc::default() }
    }

    /// Begins to watch a disk, as the configuration wants it.
    ///
    /// # Errors
    /// `Unsupported` where it cannot be watched, or not so: why.
    pub(crate) fn attach(&self, choice: SourceChoice, path: &Path) -> Result<Attached> {
        let plain = |watch: Box<dyn Watch>| Attached { watch, instead: None };
        if !mounts::is_device(path) {
            return Ok(plain(Box::new(Clone::of(path, &self.owner.named_by())?)));
        }
        let by_snapshots = match choice {
            SourceChoice::Auto | SourceChoice::LvmThin | SourceChoice::Zfs => self.snapshots(choice, path),
            SourceChoice::Image | SourceChoice::Ebpf | SourceChoice::Clone => Ok(None),
        };
        let instead = match by_snapshots {
            Ok(Some(watch)) => return Ok(plain(watch)),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        match (choice, instead) {
            (SourceChoice::LvmThin | SourceChoice::Zfs, Some(error)) => Err(error),
            (SourceChoice::LvmThin, None) => Err(Error::new(ErrorKind::Unsupported, "it is no thin volume of LVM")),
            (SourceChoice::Zfs, None) => Err(Error::new(ErrorKind::Unsupported, "it is no volume of ZFS")),
            (_, instead) => match landfall_track::Watch::attach(path) {
                Ok(watch) => Ok(Attached { watch: Box::new(Device(watch)), instead: instead.map(|e| e.line()) }),
                Err(error) => match instead {
                    Some(instead) => {
                        Err(instead.context(format!("its writes cannot be watched ({error}), and no snapshot taken")))
                    }
                    None => Err(error),
                },
            },
        }
    }

    fn snapshots(&self, choice: SourceChoice, path: &Path) -> Result<Option<Box<dyn Watch>>> {
        if choice != SourceChoice::Zfs
            && let Some(thin) = Thin::attach(path, &self.owner, &self.alarm)?
        {
            return Ok(Some(Box::new(thin)));
        }
        if choice != SourceChoice::LvmThin
            && let Some(volume) = Zvol::attach(path, &self.owner, &self.moments, &self.alarm)?
        {
            return Ok(Some(Box::new(volume)));
        }
        Ok(None)
    }
}

/// A watch, and why it is not a better one where one was to be expected.
pub(crate) struct Attached {
    pub(crate) watch: Box<dyn Watch>,
    pub(crate) instead: Option<String>,
}

/// Begins to watch a disk, as what the configuration demands where it demands something.
///
/// # Errors
/// As for [`Watching::attach`]; `Unsupported` where it can be watched, and not as that.
pub(crate) fn attach_as(choice: SourceChoice, path: &Path, by: &Watching) -> Result<Attached> {
    let attached = by.attach(choice, path)?;
    match choice.demanded() {
        Some(wanted) if attached.watch.source() != wanted => {
            let source = attached.watch.source();
            Err(Error::new(ErrorKind::Unsupported, format!("it can be watched as \"{source}\"")))
        }
        _ => Ok(attached),
    }
}

/// Watches the disks of a machine, where that is wanted and can be.
///
/// # Errors
/// `Usage` where the configuration demands what cannot be had here.
pub(crate) fn tracking(disks: &[DiskConfig], state_dir: &Path) -> Result<Tracking> {
    let by = Watching::new(Owner::agent(state_dir));
    for disk in disks.iter().filter(|d| !d.exclude) {
        let Some((path, wanted)) = disk.path.as_deref().zip(disk.source.demanded()) else { continue };
        attach_as(disk.source, path, &by).map_err(|error| {
            let name = &disk.name;
            let why =
                format!("disk {name}: source \"{wanted}\" is not possible here ({error}); \"auto\" takes what is");
            Error::new(ErrorKind::Usage, why)
        })?;
    }
    let watched = || disks.iter().filter(|d| !d.exclude && d.source != SourceChoice::Image);
    let choices: Vec<(PathBuf, SourceChoice)> =
        watched().filter_map(|disk| Some((disk.path.clone()?, disk.source))).collect();
    let alarm = by.alarm.clone();
    let begin = move |path: &Path| {
        let choice = choices.iter().find(|(of, _)| of == path).map_or(SourceChoice::Auto, |(_, choice)| *choice);
        let attached = by.attach(choice, path)?;
        if let Some(why) = attached.instead {
            tracing::warn!(disk = %path.display(), why, source = attached.watch.source(), "no snapshots are taken of it");
        }
        Ok(attached.watch)
    };
    Ok(Tracking::new(watched(), Box::new(begin), alarm))
}
