//! Where capture reads: a raw file or a block device, opened read only.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use landfall_model::Extent;

use crate::direct::DirectReads;
use crate::error::{DiskError, Operation, Reason, Result};
use crate::format::SECTOR_BYTES;
use crate::holes;
use crate::uncached::UncachedReads;

/// Source of the bytes of a disk. Holds the size that the disk had when it was opened; growing meanwhile is not seen,
/// shrinking is an error where it is met.
#[derive(Debug)]
pub struct RawReader {
    file: File,
    reads: Reads,
    path: PathBuf,
    size: u64,
    sector_size: u32,
    is_device: bool,
    identity: String,
}

/// How it is read.
#[derive(Debug)]
enum Reads {
    /// A file: by way of the page cache, which has its newest bytes.
    File(UncachedReads),
    /// A device: past it.
    Device(DirectReads),
}

impl RawReader {
    /// Opens a regular file or a block device, following symbolic links.
    ///
    /// # Errors
    /// `NotFound`, and `Unsupported` for anything else, without having opened it.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |e: io::Error| DiskError::os(Operation::Open, path, e);
        // Before opening: opening a pipe would wait for somebody to write to it.
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::new(Operation::Open, path, Reason::NotADisk));
        }
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        let is_device = meta.file_type().is_block_device();
        let (size, sector_size, identity) = if is_device {
            let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            let sector_size = rustix::fs::ioctl_blksszget(&file).unwrap_or(SECTOR_BYTES);
            (device_size(&file).map_err(fail)?, sector_size, format!("device-{major}:{minor}"))
        } else {
            let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
            (meta.len(), SECTOR_BYTES, format!("file-{major}:{minor}-{}", meta.ino()))
        };
        let reads = if is_device {
            Reads::Device(DirectReads::open(path, sector_size).map_err(fail)?)
        } else {
            Reads::File(UncachedReads::new())
        };
        Ok(Self { file, reads, path: path.to_owned(), size, sector_size, is_device, identity })
    }

    /// Bytes of the disk when it was opened: any number.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Smallest unit that the device reads and writes, in bytes; 512 for files.
    pub const fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Names what was opened, whatever path led to it: device and inode numbers, which a reboot may change.
    pub fn identity(&self) -> String {
        self.identity.clone()
    }

    /// Runs of `within` that may hold data, ascending; the bytes between them are zeroes. All of it for a device, or
    /// where the file system cannot tell. What lies beyond the end of the disk is left out.
    ///
    /// # Errors
    /// `Io`.
    pub fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        let within = Extent::between(within.start, within.end().min(self.size));
        if self.is_device || within.len == 0 {
            return Ok(if within.len == 0 { Vec::new() } else { vec![within] });
        }
        holes::data_extents(&self.file, within)
            .map_err(|e| DiskError::os(Operation::FindData, &self.path, e).at(within.start))
    }

    /// Fills `buf` from `offset` on, and leaves the page cache as it was. Threads that each read their own part of the
    /// disk in order are faster than threads that take turns in one order.
    ///
    /// # Errors
    /// `Usage` for a range over the end; `Shrunk`, with the offset where the bytes end, when there are fewer than there
    /// were at open; `Io`.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let len = buf.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let reason = Reason::OutOfRange { len, size: self.size };
            return Err(DiskError::new(Operation::Read, &self.path, reason).at(offset));
        }
        let read = match &self.reads {
            Reads::File(reads) => reads.read_up_to(&self.file, buf, offset),
            Reads::Device(reads) => reads.read_up_to(buf, offset),
        };
        let done = read.map_err(|(at, e)| DiskError::os(Operation::Read, &self.path, e).at(at))?;
        if done == buf.len() {
            return Ok(());
        }
        let reason = Reason::Shrunk { opened: self.size, now: self.size_now()? };
        Err(DiskError::new(Operation::Read, &self.path, reason).at(offset + done as u64))
    }

    /// Whether the disk still has all the bytes that it had at open.
    ///
    /// # Errors
    /// `Shrunk`, with the offset where it ends now; `Io`.
    pub fn check_not_shrunk(&self) -> Result<()> {
        let now = self.size_now()?;
        if now >= self.size {
            return Ok(());
        }
        Err(DiskError::new(Operation::Read, &self.path, Reason::Shrunk { opened: self.size, now }).at(now))
    }

    fn size_now(&self) -> Result<u64> {
        let size = if self.is_device { device_size(&self.file) } else { self.file.metadata().map(|m| m.len()) };
        size.map_err(|e| DiskError::os(Operation::Size, &self.path, e))
    }
}

/// Bytes of a block device; its metadata says 0.
pub(crate) fn device_size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
