//! qcow2 through `imago`: version 3, clusters of 64 KiB, written past the page cache where that is possible.
//!
//! **Consistency.** `imago` lets reads and writes run at once and locks what they share. Giving clusters back breaks the
//! mappings that running requests hold, so [`Qcow2Image::zero`] alone takes the image for itself.
//!
//! **What a crash leaves.** Tables are written back lazily: between the first change and [`Qcow2Image::sync`] the file
//! need not be a valid image. An existing image is open read only until the first change, because opening it for writing
//! already changes its header (it drops persistent bitmaps, which the change makes wrong).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::file::File as ImageFile;
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, ShallowMapping, StorageOpenOptions};
use landfall_model::Extent;
use landfall_model::num::to_usize;

use crate::aligned::AlignedBuf;
use crate::place::Opened;
use crate::raw::open_direct;

/// Zeroes that have to be written are written in pieces of this size.
const ZERO_BYTES: u64 = 1 << 20;

/// Largest cluster that the format knows; existing images may have any size up to it.
const CLUSTER_BYTES_MAX: u64 = 2 << 20;

type Access = FormatAccess<ImageFile>;

/// Why an existing image is refused.
pub(crate) const BACKED: &str = "it has a backing file or an external data file";

pub(crate) struct Qcow2Image {
    /// Before the lock: dropping it writes the tables back.
    image: RwLock<Image>,
    opened: Opened,
}

struct Image {
    access: Access,
    is_writable: bool,
}

impl Qcow2Image {
    /// Formats an empty file.
    pub(crate) fn create(opened: Opened, size: u64) -> io::Result<Self> {
        let format = Qcow2::<ImageFile>::create_builder(storage_for_writes(&opened)?)
            .size(size)
            .create_open(DenyImplicitOpenGate::default(), |image| {
                Ok(Qcow2::<ImageFile>::builder(image).backing(None))
            })?;
        let image = Image { access: FormatAccess::new(format), is_writable: true };
        Ok(Self { image: RwLock::new(image), opened })
    }

    /// Opens an image without changing it; `None` if it stands on other files.
    pub(crate) fn open(opened: Opened) -> io::Result<Option<Self>> {
        let file = opened.file.as_fd().try_clone_to_owned()?;
        let mut format = Qcow2::<ImageFile>::open_image(ImageFile::try_from(File::from(file))?, false)?;
        if format.implicit_backing_file().is_some() || format.requires_external_data_file() {
            return Ok(None);
        }
        format.set_backing(None);
        format.set_data_file(None);
        let image = Image { access: FormatAccess::new(format), is_writable: false };
        Ok(Some(Self { image: RwLock::new(image), opened }))
    }

    pub(crate) fn size(&self) -> u64 {
        self.read().access.size()
    }

    /// Changes the size; what is added reads as zeroes.
    pub(crate) fn resize(&self, size: u64) -> io::Result<()> {
        let old_size = self.size();
        self.make_writable()?;
        self.write().access.resize(size, PreallocateMode::None)?;
        // Shrinking keeps the cluster that the end is in, with all that it held.
        let rest = Extent::between(old_size, old_size.next_multiple_of(CLUSTER_BYTES_MAX).min(size));
        self.data_extents(rest)?.into_iter().try_for_each(|run| self.zero(run))
    }

    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read().access.read(buf, offset)
    }

    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.make_writable()?;
        self.read().access.write(buf, offset)
    }

    /// Runs of `within` that have data clusters.
    pub(crate) fn data_extents(&self, within: Extent) -> io::Result<Vec<Extent>> {
        let image = self.read();
        let mut found: Vec<Extent> = Vec::new();
        let mut at = within.start;
        while at < within.end() {
            let (mapping, len) = image.access.get_shallow_mapping(at, within.end() - at)?;
            // Nothing is mapped beyond the end, which the caller has checked.
            let len = if len == 0 { within.end() - at } else { len };
            if !matches!(mapping, ShallowMapping::Zero { .. } | ShallowMapping::Eof { .. }) {
                match found.last_mut().filter(|last| last.end() == at) {
                    Some(last) => last.len += len,
                    None => found.push(Extent { start: at, len }),
                }
            }
            at += len;
        }
        Ok(found)
    }

    /// Makes the run zero. Whole clusters are given back to the image, which uses them for later writes; the parts of
    /// clusters at the ends are written, because `imago` 0.2 miscounts when it does so itself near the end of the disk.
    pub(crate) fn zero(&self, run: Extent) -> io::Result<()> {
        self.make_writable()?;
        let mut image = self.write();
        let end = run.end();
        let clusters = match image.access.inner().zero_granularity() {
            // The rest of the last cluster, beyond the end of the disk, is of no use to anybody.
            Some(cluster) if end == image.access.size() => Extent::between(run.start.next_multiple_of(cluster), end),
            Some(cluster) => Extent::between(run.start.next_multiple_of(cluster), end - end % cluster),
            // Version 2 has no zero clusters.
            None => Extent::between(end, end),
        };
        if clusters.len == 0 {
            return write_zero_bytes(&image.access, run);
        }
        image.access.discard_to_zero(clusters.start, clusters.len)?;
        write_zero_bytes(&image.access, Extent::between(run.start, clusters.start))?;
        write_zero_bytes(&image.access, Extent::between(clusters.end(), end))
    }

    /// Writes the tables back and waits until everything is on stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.read().access.flush()?;
        self.opened.file.sync_all()
    }

    fn make_writable(&self) -> io::Result<()> {
        if self.read().is_writable {
            return Ok(());
        }
        let mut image = self.write();
        if !image.is_writable {
            let mut format = Qcow2::<ImageFile>::open_image(storage_for_writes(&self.opened)?, true)?;
            format.set_backing(None);
            format.set_data_file(None);
            *image = Image { access: FormatAccess::new(format), is_writable: true };
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One descriptor for data and tables alike: direct, or buffered where that does not exist.
fn storage_for_writes(opened: &Opened) -> io::Result<ImageFile> {
    let (file, is_direct) = match open_direct(opened) {
        Some(file) => (file, true),
        None => (opened.file.try_clone()?, false),
    };
    ImageFile::from_open_file(file, StorageOpenOptions::new().write(true).direct(is_direct))
}

fn write_zero_bytes(access: &Access, run: Extent) -> io::Result<()> {
    let zeroes = AlignedBuf::new(to_usize(run.len.min(ZERO_BYTES)));
    let mut at = run.start;
    while at < run.end() {
        let len = (run.end() - at).min(ZERO_BYTES);
        access.write(&zeroes[..to_usize(len)], at)?;
        at += len;
    }
    Ok(())
}
