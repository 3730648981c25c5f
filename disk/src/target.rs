//! Where materialise compares and writes: one disk in one container, whatever was there before.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use landfall_model::Extent;

use crate::error::{DiskError, Operation, Reason, Result};
use crate::format::{Existing, Format};
use crate::place::{self, Found, Opened, Place};
use crate::qcow2::{self, Qcow2Image};
use crate::raw::RawImage;
use crate::reader::device_size;
use crate::vhd::{self, Footer};

/// Destination of the bytes of a disk. Nothing of it can be relied on before [`Target::finish`] has returned; what a
/// target that was dropped leaves is what a killed process leaves: see [`Target::create_or_open`].
pub struct Target {
    path: PathBuf,
    size: u64,
    place: Place,
    image: Image,
}

enum Image {
    Raw(RawImage),
    Qcow2(Qcow2Image),
    Vhd {
        data: RawImage,
        /// What is to be behind the data.
        footer: Box<Footer>,
        /// Whether it is there.
        is_written: bool,
    },
}

impl Target {
    /// Opens `path` for a disk of `size` bytes.
    ///
    /// | there is | `Refuse` | `Overwrite` | `Compare` |
    /// |---|---|---|---|
    /// | nothing | new image | new image | new image |
    /// | a file | error | new image that replaces the file | in place, resized if need be |
    /// | a device | error | in place | in place |
    ///
    /// A new image is made as `<path>.partial` and gets its name in [`Target::finish`]; until then, and after a kill,
    /// what was at `path` is untouched, and a `.partial` that was left behind is replaced. A file that is changed in
    /// place has `<path>.landfall-incomplete` beside it from before the first change to the end of `finish`. A device
    /// has no folder for such a sidecar: after a kill, nothing says that it is incomplete.
    ///
    /// Symbolic links are followed: the file that they lead to is replaced or changed, and has the names beside it.
    ///
    /// # Errors
    /// `Usage` for a size of 0 or over the format's limit, a device that is too small or in use; `Exists` when refused,
    /// or when another process writes there; `Unsupported` for what is neither a file nor a device, a device in another
    /// format than raw, an existing image that is not of the format, a dynamic VHD, a qcow2 that stands on other files,
    /// and for a size that the file system cannot hold.
    pub fn create_or_open(path: &Path, format: Format, size: u64, existing: Existing) -> Result<Self> {
        let size = format.virtual_size(path, size)?;
        let (place, image) = match (place::look(path)?, existing) {
            (Found::Nothing, _) => create(path.to_owned(), None, format, size)?,
            (_, Existing::Refuse) => return Err(DiskError::new(Operation::Create, path, Reason::Taken)),
            (Found::File(real, old), Existing::Overwrite) => create(real, Some(&old), format, size)?,
            (Found::File(real, _), Existing::Compare) => open_file(real, format, size)?,
            (Found::Device(_), _) if format != Format::Raw => {
                return Err(DiskError::new(Operation::Open, path, Reason::DeviceFormat));
            }
            (Found::Device(real), _) => open_device(real, size)?,
        };
        Ok(Self { path: path.to_owned(), size, place, image })
    }

    /// Bytes that can still be written near `path`, by a process without privileges; `u64::MAX` for a block device,
    /// whose space is there already.
    ///
    /// # Errors
    /// `NotFound` if the folder does not exist; `Io`.
    pub fn available_bytes(path: &Path) -> Result<u64> {
        if fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device()) {
            return Ok(u64::MAX);
        }
        let real = path.canonicalize();
        let folder = place::folder_of(real.as_deref().unwrap_or(path));
        let stat = rustix::fs::statvfs(folder).map_err(|e| DiskError::os(Operation::FreeSpace, path, e))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The path that was asked for.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the disk in bytes: what was asked for, rounded up to 512 for qcow2 and to whole MiB for VHD.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether all of the disk reads as zeroes until something is written.
    pub const fn is_fresh(&self) -> bool {
        self.place.is_new()
    }

    /// Writes all of `buf` at `offset`. Fastest from an [`AlignedBuf`](crate::AlignedBuf) at a multiple of
    /// [`DIRECT_ALIGN`](crate::DIRECT_ALIGN).
    ///
    /// # Errors
    /// `Usage` for a range over the end, `NoSpace`, `Io`.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_range(Operation::Write, buf.len() as u64, offset)?;
        if buf.is_empty() {
            return Ok(());
        }
        self.place.before_write()?;
        match &self.image {
            Image::Raw(raw) | Image::Vhd { data: raw, .. } => raw.write_at(buf, offset),
            Image::Qcow2(image) => image.write_at(buf, offset),
        }
        .map_err(|e| self.error(Operation::Write, e).at(offset))
    }

    /// Makes the run read as zeroes and gives its space back where that is possible: to the file system, or, in a
    /// qcow2, to the image. What is a hole already stays untouched and does not count: the result is the number of bytes
    /// that were made zero.
    ///
    /// # Errors
    /// As [`Target::write_at`].
    pub fn write_zeroes(&self, run: Extent) -> Result<u64> {
        let mut written = 0;
        for data in self.data_extents(run)? {
            self.place.before_write()?;
            match &self.image {
                Image::Raw(raw) | Image::Vhd { data: raw, .. } => raw.zero(data),
                Image::Qcow2(image) => image.zero(data),
            }
            .map_err(|e| self.error(Operation::WriteZeroes, e).at(data.start))?;
            written += data.len;
        }
        Ok(written)
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    /// `Usage` for a range over the end, `Io`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.check_range(Operation::Read, buf.len() as u64, offset)?;
        match &self.image {
            Image::Raw(raw) | Image::Vhd { data: raw, .. } => raw.read_at(buf, offset),
            Image::Qcow2(image) => image.read_at(buf, offset),
        }
        .map_err(|e| self.error(Operation::Read, e).at(offset))
    }

    /// Runs of `within` that may hold data, ascending; the bytes between them read as zeroes.
    ///
    /// # Errors
    /// `Usage` for a range over the end, `Io`.
    pub fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        self.check_range(Operation::FindData, within.len, within.start)?;
        if within.len == 0 {
            return Ok(Vec::new());
        }
        match &self.image {
            Image::Raw(raw) | Image::Vhd { data: raw, .. } => raw.data_extents(within),
            Image::Qcow2(image) => image.data_extents(within),
        }
        .map_err(|e| self.error(Operation::FindData, e).at(within.start))
    }

    /// Completes the image: writes what belongs to its container, waits until all of it is on stable storage, and only
    /// then gives a new image its name or removes the sidecar of one that was changed in place.
    ///
    /// # Errors
    /// `Exists` if something has got the name meanwhile, `NoSpace`, `Io`. The state is then that of a killed run.
    pub fn finish(self) -> Result<()> {
        if let Image::Vhd { data, footer, is_written: false } = &self.image {
            self.place.before_write()?;
            footer.write(data.file(), self.size).map_err(|e| self.error(Operation::Write, e).at(self.size))?;
        }
        match &self.image {
            Image::Raw(raw) | Image::Vhd { data: raw, .. } => raw.sync(),
            Image::Qcow2(image) => image.sync(),
        }
        .map_err(|e| self.error(Operation::Sync, e))?;
        self.place.publish()
    }

    fn check_range(&self, operation: Operation, len: u64, offset: u64) -> Result<()> {
        if offset.checked_add(len).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(DiskError::new(operation, &self.path, Reason::OutOfRange { len, size: self.size }).at(offset))
    }

    fn error(&self, operation: Operation, e: io::Error) -> DiskError {
        DiskError::os(operation, &self.path, e)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

fn create(name: PathBuf, replaces: Option<&fs::Metadata>, format: Format, size: u64) -> Result<(Place, Image)> {
    let fail = |name: &Path, e: io::Error| DiskError::os(Operation::Create, name, e);
    let (place, opened) = Place::new_image(name.clone(), replaces)?;
    let image = match format {
        Format::Raw => {
            opened.file.set_len(size).map_err(|e| fail(&name, e))?;
            Image::Raw(RawImage::new(opened))
        }
        Format::Qcow2 => Image::Qcow2(Qcow2Image::create(opened, size).map_err(|e| fail(&name, e))?),
        Format::Vhd => {
            opened.file.set_len(size + vhd::FOOTER_BYTES).map_err(|e| fail(&name, e))?;
            let footer = Footer::new(size).map_err(|e| fail(&name, e))?;
            Image::Vhd { data: RawImage::new(opened), footer: Box::new(footer), is_written: false }
        }
    };
    Ok((place, image))
}

fn open_file(real: PathBuf, format: Format, size: u64) -> Result<(Place, Image)> {
    let opened = place::open_in_place(real, false)?;
    let place = Place::in_place(&opened);
    let path = opened.path.clone();
    let open_failed = |e| DiskError::os(Operation::Open, &path, e);
    let resize_failed = |e| DiskError::os(Operation::Resize, &path, e);
    let file_bytes = opened.file.metadata().map_err(open_failed)?.len();
    let image = match format {
        Format::Raw => {
            if file_bytes != size {
                place.before_write()?;
                opened.file.set_len(size).map_err(resize_failed)?;
            }
            Image::Raw(RawImage::new(opened))
        }
        Format::Qcow2 => {
            let image = Qcow2Image::open(opened).map_err(open_failed)?;
            let image = image.ok_or_else(|| DiskError::new(Operation::Open, &path, Reason::Image(qcow2::BACKED)))?;
            if image.size() != size {
                place.before_write()?;
                image.resize(size).map_err(resize_failed)?;
            }
            Image::Qcow2(image)
        }
        Format::Vhd => {
            let found = Footer::read(&opened.file, file_bytes).map_err(open_failed)?;
            let footer = found.resized(size);
            if file_bytes != size + vhd::FOOTER_BYTES {
                place.before_write()?;
                resize_vhd(&opened, file_bytes - vhd::FOOTER_BYTES, size).map_err(resize_failed)?;
            }
            Image::Vhd { data: RawImage::new(opened), footer: Box::new(footer), is_written: footer == found }
        }
    };
    Ok((place, image))
}

/// Cuts first: where the old footer was, a larger disk has zeroes.
fn resize_vhd(opened: &Opened, old_size: u64, size: u64) -> io::Result<()> {
    opened.file.set_len(old_size.min(size))?;
    opened.file.set_len(size + vhd::FOOTER_BYTES)
}

fn open_device(real: PathBuf, size: u64) -> Result<(Place, Image)> {
    let opened = place::open_in_place(real, true)?;
    let has = device_size(&opened.file).map_err(|e| DiskError::os(Operation::Size, &opened.path, e))?;
    if has < size {
        return Err(DiskError::new(Operation::Open, &opened.path, Reason::DeviceTooSmall { has, needs: size }));
    }
    let place = Place::in_place(&opened);
    Ok((place, Image::Raw(RawImage::new(opened))))
}
