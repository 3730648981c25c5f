//! A block device of this host: what it is, whether it is still the same, and a read that proves that it answers.
//!
//! The device is held open only while it is asked something. A process that kept it open would stop its owner from detaching it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landfall_model::{Error, ErrorKind, Result};

/// Bytes of a sector, wherever the kernel counts in sectors.
pub(crate) const SECTOR_BYTES: u64 = 512;
/// Address, place and length of what is read past the page cache: the largest logical block of today's devices.
const DIRECT_BYTES: usize = 4096;
/// How long is waited for what was in flight already when a watch was attached.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(20);
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// The kernel adds up counts of its CPUs, one after the other, and so may say 0 where that is not so. Not often in a row.
const SETTLED_TIMES: u32 = 5;
/// Devices upon devices.
const STACK_MAX: usize = 16;

/// Tells a device from every other that has its number before or after it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Identity {
    number: u64,
    start: u64,
    sectors: u64,
    /// Counts disks of the kernel, and what loop devices are given; not in kernels before 5.15.
    sequence: Option<String>,
    /// The directories in which the kernel describes the device and, of a loop device, its file: made anew with it.
    directories: Vec<u64>,
}

/// A whole disk or a partition.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    path: PathBuf,
    identity: Identity,
    /// Number of the disk.
    pub(crate) disk: (u32, u32),
    /// Where the kernel describes the disk.
    folder: PathBuf,
}

/// Why a device is not, or no longer, what was asked for.
fn refused(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("cannot track {}: {why}", path.display()))
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&error), format!("cannot track {}", path.display()), error)
}

fn text(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

fn number(file: &Path) -> io::Result<u64> {
    text(file)?.parse().map_err(|_| io::Error::other(format!("{} holds no number", file.display())))
}

impl Device {
    /// The device of a path.
    ///
    /// # Errors
    /// It is no block device, or holds nothing, or can be written past the block layer.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let device = Self::describe(path).map_err(|error| failed(path, error))?;
        let Some(device) = device else {
            let context = format!("cannot track {}: it is no block device", path.display());
            return Err(Error::new(ErrorKind::Usage, context));
        };
        if device.identity.sectors == 0 {
            return Err(refused(path, "it has no size: nothing is attached to it"));
        }
        if text(&device.folder.join("queue/dax")).is_ok_and(|dax| dax != "0") {
            return Err(refused(path, "it is memory that programs may write directly (DAX)"));
        }
        Ok(device)
    }

    fn describe(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let number_of = metadata.rdev();
        let (major, minor) = (libc::major(number_of), libc::minor(number_of));
        let own = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
        let is_partition = own.join("partition").exists();
        let folder = if is_partition { own.parent().unwrap_or(&own).to_path_buf() } else { own.clone() };
        let disk = text(&folder.join("dev"))?;
        let numbers = disk.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let directories = [own.clone(), folder.clone(), folder.join("loop")];
        let identity = Identity {
            number: number_of,
            start: if is_partition { number(&own.join("start"))? } else { 0 },
            sectors: number(&own.join("size"))?,
            sequence: text(&folder.join("diskseq")).ok(),
            directories: directories.iter().filter_map(|dir| Some(fs::metadata(dir).ok()?.ino())).collect(),
        };
        let disk = numbers.ok_or_else(|| io::Error::other(format!("the kernel names the disk {disk:?}")))?;
        Ok(Some(Self { path: path.to_path_buf(), identity, disk, folder }))
    }

    /// First sector of the device on its disk.
    pub(crate) fn start(&self) -> u64 {
        self.identity.start
    }

    /// Sectors of the device.
    pub(crate) fn sectors(&self) -> u64 {
        self.identity.sectors
    }

    /// Bytes of the device.
    pub(crate) fn size(&self) -> u64 {
        self.identity.sectors.saturating_mul(SECTOR_BYTES)
    }

    /// Why the path no longer leads to the same device of the same size, if so.
    pub(crate) fn changed(&self) -> Option<String> {
        let name = self.path.display();
        let now = match Self::describe(&self.path) {
            Ok(Some(now)) => now.identity,
            Ok(None) => return Some(format!("{name} is no block device any more")),
            Err(error) => return Some(format!("{name} is gone: {error}")),
        };
        let was = &self.identity;
        if now == *was {
            return None;
        }
        Some(if (now.start, now.sectors) == (was.start, was.sectors) {
            format!("{name} is not the device that it was")
        } else {
            format!(
                "{name} had {} sectors from {} on and has {} from {} on",
                was.sectors, was.start, now.sectors, now.start
            )
        })
    }

    /// Reads the first sector past the page cache, so that the device must do something.
    ///
    /// # Errors
    /// It cannot be read, or the path leads to another device.
    pub(crate) fn touch(&self) -> io::Result<()> {
        let file = self.direct()?;
        if file.metadata()?.rdev() != self.identity.number {
            return Err(io::Error::other("the path leads to another device"));
        }
        let mut room = vec![0; DIRECT_BYTES * 2];
        let start = room.as_ptr().align_offset(DIRECT_BYTES).min(DIRECT_BYTES);
        let read = file.read_at(&mut room[start..start + DIRECT_BYTES], 0)?;
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn direct(&self) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&self.path)
    }

    /// Sectors that the disk has read, written and discarded, as the kernel counts them, if it does.
    pub(crate) fn sectors_done(&self) -> Option<u64> {
        const READ: usize = 2;
        const WRITTEN: usize = 6;
        const DISCARDED: usize = 13;
        let setting = |name: &str| text(&self.folder.join("queue").join(name)).ok();
        // With the second, commands past the block layer are counted too, which programs do not.
        if setting("iostats")? == "0" || setting("iostats_passthrough").is_some_and(|value| value != "0") {
            return None;
        }
        let counts = text(&self.folder.join("stat")).ok()?;
        let fields = counts.split_whitespace().enumerate();
        let sums = fields.filter(|(at, _)| [READ, WRITTEN, DISCARDED].contains(at));
        sums.map(|(_, count)| count.parse::<u64>().ok()).try_fold(0_u64, |sum, count| Some(sum.wrapping_add(count?)))
    }

    /// A device that is built upon this disk or a partition of it, if there is one.
    pub(crate) fn holder(&self) -> Option<String> {
        let partitions = fs::read_dir(&self.folder).ok()?.flatten().map(|entry| entry.path());
        let partitions = partitions.filter(|path| path.join("partition").exists());
        let mut folders = partitions.chain([self.folder.clone()]).map(|path| path.join("holders"));
        folders.find_map(|folder| Some(fs::read_dir(folder).ok()?.flatten().next()?.file_name().display().to_string()))
    }

    /// Waits until nothing was in flight on the disk, nor on those beneath it, for a moment.
    ///
    /// # Errors
    /// It did not come to that.
    pub(crate) fn settle(&self) -> Result<()> {
        let end = Instant::now() + SETTLE_TIME_MAX;
        let mut times = 0;
        while times < SETTLED_TIMES {
            times = if in_flight(&self.folder, STACK_MAX).map_err(|error| failed(&self.path, error))? == 0 {
                times + 1
            } else {
                0
            };
            if Instant::now() > end {
                let context = format!(
                    "cannot track {}: it was never without writes under way for {} s, and those that were when tracking began are not known",
                    self.path.display(),
                    SETTLE_TIME_MAX.as_secs()
                );
                return Err(Error::new(ErrorKind::Unavailable, context));
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
        Ok(())
    }
}

/// Reads and writes under way, on a disk and on those beneath it.
fn in_flight(folder: &Path, depth: usize) -> io::Result<u64> {
    let counts = text(&folder.join("inflight"))?;
    let mut sum: u64 = counts.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).sum();
    if let (Ok(beneath), true) = (fs::read_dir(folder.join("slaves")), depth > 0) {
        for entry in beneath.flatten() {
            let folder = fs::canonicalize(entry.path())?;
            let is_partition = folder.join("partition").exists();
            let disk = if is_partition { folder.parent().unwrap_or(&folder) } else { &folder };
            sum = sum.saturating_add(in_flight(disk, depth - 1)?);
        }
    }
    Ok(sum)
}
