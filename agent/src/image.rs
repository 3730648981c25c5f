//! Reading files and block devices, at one moment of the caller's choosing: from end to end, or where something was written.
//!
//! Reads are of 1 MiB at most and in order; what the file system knows to be a hole is not read. Buffers go round between the thread that
//! reads and the one that compares, so that there are never more than [`BUFFERS`]; or all of it is read before anything is compared, up to
//! [`STAGE_BYTES_MAX`].

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use bytes::Bytes;
use landfall_disk::RawReader;
use landfall_model::{BlockSet, DiskName, Error, ErrorKind, Extent, Result};
use landfall_wire::{DATA_BYTES_MAX, DiskShape};

use crate::batch::Batch;
use crate::check::IMAGE;
use crate::fingerprints::{BATCH_BLOCKS, BLOCK_BYTES};
use crate::pace::Pace;
use crate::qemu::GuestDisk;
use crate::tracking::Dirty;

/// Buffers of one read each: one is being filled, one compared, the others wait.
pub(crate) const BUFFERS: usize = 4;
/// Bytes of one read, and of one message.
pub(crate) const READ_BYTES: u64 = DATA_BYTES_MAX as u64;
/// The file system is asked for the data in so much of a disk at once; a run of zeroes is not longer.
pub(crate) const WINDOW_BYTES: u64 = BATCH_BLOCKS as u64 * BLOCK_BYTES;
const _: () = assert!(READ_BYTES.is_multiple_of(BLOCK_BYTES) && WINDOW_BYTES.is_multiple_of(READ_BYTES));

/// Most bytes that are read before they are compared, while everything is held still.
pub(crate) const STAGE_BYTES_MAX: u64 = 16 * READ_BYTES;

/// How changes of a disk are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SourceChoice {
    /// As is best here.
    #[default]
    Auto,
    /// By comparison.
    Image,
    /// By watching the writes to the block device.
    Ebpf,
    /// By clones of the image file.
    Clone,
    /// By snapshots of a thin volume of LVM.
    LvmThin,
    /// By snapshots of a volume of ZFS.
    Zfs,
}

impl SourceChoice {
    /// What it is called, where nothing else will do.
    pub(crate) const fn demanded(self) -> Option<&'static str> {
        match self {
            Self::Auto | Self::Image => None,
            Self::Ebpf => Some("ebpf"),
            Self::Clone => Some("clone"),
            Self::LvmThin => Some("lvm-thin"),
            Self::Zfs => Some("zfs"),
        }
    }
}

/// A disk as the operator names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskConfig {
    /// Its name in the machine.
    pub name: DiskName,
    /// The file or device; an excluded disk may have none.
    pub path: Option<PathBuf>,
    /// Known, but not protected.
    pub exclude: bool,
    /// Mount points of the file systems on it, which are frozen while it is read.
    pub mounts: Vec<PathBuf>,
    /// How its changes are found.
    pub source: SourceChoice,
    /// What QEMU calls it, where it is a virtual machine's; it has no path then.
    pub device: Option<String>,
}

/// Where the bytes of a disk are read.
pub(crate) enum DiskReader {
    /// A file or device of this host, or a copy of one.
    Host(RawReader),
    /// A disk of a guest.
    Guest(GuestDisk),
}

impl DiskReader {
    fn size(&self) -> u64 {
        match self {
            Self::Host(reader) => reader.size(),
            Self::Guest(reader) => reader.size(),
        }
    }

    fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        match self {
            Self::Host(reader) => Ok(reader.data_extents(within)?),
            Self::Guest(reader) => reader.data_extents(within),
        }
    }

    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Self::Host(reader) => Ok(reader.read_exact_at(buf, offset)?),
            Self::Guest(reader) => reader.read_exact_at(buf, offset),
        }
    }

    fn check_not_shrunk(&self) -> Result<()> {
        match self {
            Self::Host(reader) => Ok(reader.check_not_shrunk()?),
            // It is of a snapshot.
            Self::Guest(_) => Ok(()),
        }
    }
}

/// A disk that was opened.
pub(crate) struct OpenDisk {
    pub(crate) shape: DiskShape,
    /// None where it is excluded.
    pub(crate) reader: Option<DiskReader>,
    /// What of it is looked at.
    pub(crate) look: Dirty,
    /// The reader is of a copy, which nobody writes to.
    pub(crate) copied: bool,
    /// Where all of it is read while everything goes on, others go first.
    pub(crate) leisurely: bool,
    /// What of it is zero to the gateway, whatever it holds: whole blocks, and so is what is looked at of them.
    pub(crate) skip: Option<BlockSet>,
}

impl OpenDisk {
    /// Bytes that are to be read.
    fn look_bytes(&self) -> u64 {
        let (Some(reader), skip) = (&self.reader, self.skip.as_ref()) else { return 0 };
        let skipped = |look: &BlockSet| -> u64 {
            skip.into_iter().flat_map(BlockSet::runs).flat_map(|run| look.runs_within(run)).map(|run| run.len).sum()
        };
        match &self.look {
            Dirty::Nothing => 0,
            Dirty::All => reader.size() - skip.map_or(0, BlockSet::len),
            Dirty::Blocks(set) => set.len() - skipped(set),
        }
    }
}

/// Opens the disks of a machine; which of them are sent whole is said elsewhere. An excluded disk that cannot be opened is left out: nothing is known of it.
///
/// # Errors
/// `Usage` where a disk has no bytes, `NotFound` where a path leads nowhere.
pub(crate) fn open_disks(disks: &[DiskConfig]) -> Result<Vec<OpenDisk>> {
    let mut open = Vec::with_capacity(disks.len());
    for (number, disk) in disks.iter().enumerate() {
        let reader = match &disk.path {
            None if disk.exclude => continue,
            None => return Err(Error::new(ErrorKind::Usage, format!("disk {}: it has no path", disk.name))),
            Some(path) => RawReader::open(path).map_err(|e| Error::from(e).context(format!("disk {}", disk.name))),
        };
        let reader = match reader {
            Ok(reader) if reader.size() > 0 => reader,
            Ok(_) | Err(_) if disk.exclude => continue,
            // No disk has no bytes: a device whose medium is out, a file cut off. A point of it would hide the loss.
            Ok(_) => {
                let path = disk.path.as_deref().unwrap_or("?".as_ref()).display();
                let why = format!("{path}: it has no bytes (medium gone, file cut off?); no point was taken");
                return Err(Error::new(ErrorKind::Usage, why).context(format!("disk {}", disk.name)));
            }
            Err(error) => return Err(error),
        };
        let shape = DiskShape {
            name: disk.name.clone(),
            size: reader.size(),
            sector_size: reader.sector_size(),
            boot: number == 0,
            excluded: disk.exclude,
            whole: false,
            source: IMAGE.to_owned(),
            identity: reader.identity(),
        };
        open.push(OpenDisk {
            shape,
            reader: (!disk.exclude).then_some(DiskReader::Host(reader)),
            look: Dirty::All,
            copied: false,
            leisurely: false,
            skip: None,
        });
    }
    Ok(open)
}

/// A piece of a disk. Pieces of a disk ascend and cover what is looked at, and no more. A block is in one piece, or several that are apart.
pub(crate) enum Piece {
    /// Runs that were read, at most [`READ_BYTES`].
    Data {
        /// Number of the disk.
        disk: usize,
        /// Where they are.
        runs: Vec<Extent>,
        /// The bytes, one run behind the other, in a buffer that is wanted back.
        bytes: Vec<u8>,
    },
    /// The same of what was staged.
    Staged {
        /// Number of the disk.
        disk: usize,
        /// Where they are.
        runs: Vec<Extent>,
        /// The bytes.
        bytes: Bytes,
    },
    /// A hole, at most [`WINDOW_BYTES`].
    Zero {
        /// Number of the disk.
        disk: usize,
        /// Its range.
        extent: Extent,
    },
}

/// The one who compares has gone.
pub(crate) fn stopped() -> Error {
    Error::new(ErrorKind::Unavailable, "the cycle was stopped before all was read")
}

/// Where pieces go, and buffers come from.
pub(crate) trait Pieces {
    /// Takes a piece.
    ///
    /// # Errors
    /// `Unavailable` where nobody wants it.
    fn give(&self, piece: Piece) -> Result<()>;

    /// A buffer of this length.
    ///
    /// # Errors
    /// As for [`Self::give`].
    fn buffer(&self, len: usize) -> Result<Vec<u8>>;
}

/// Gives pieces to another thread, and gets the buffers back.
pub(crate) struct Flowing {
    pub(crate) pieces: SyncSender<Piece>,
    pub(crate) buffers: Receiver<Vec<u8>>,
}

impl Pieces for Flowing {
    fn give(&self, piece: Piece) -> Result<()> {
        self.pieces.send(piece).map_err(|_| stopped())
    }

    fn buffer(&self, len: usize) -> Result<Vec<u8>> {
        let mut buffer = self.buffers.recv().map_err(|_| stopped())?;
        buffer.resize(len, 0);
        Ok(buffer)
    }
}

impl Pieces for RefCell<Vec<Piece>> {
    fn give(&self, piece: Piece) -> Result<()> {
        self.borrow_mut().push(match piece {
            Piece::Data { disk, runs, bytes } => Piece::Staged { disk, runs, bytes: bytes.into() },
            other => other,
        });
        Ok(())
    }

    fn buffer(&self, len: usize) -> Result<Vec<u8>> {
        Ok(vec![0; len])
    }
}

/// What was read of each disk before anything was compared; none of disks that are read later.
pub(crate) type StagedPieces = Vec<Option<Vec<Piece>>>;

/// Reads what is looked at of all disks, in their order, and gives what was staged in its place.
///
/// # Errors
/// `Unavailable` where a disk shrinks or cannot be read, or nobody wants the pieces any more.
pub(crate) fn read_all(
    disks: &[OpenDisk],
    staged: StagedPieces,
    to: &dyn Pieces,
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    let mut staged = staged.into_iter().chain(std::iter::repeat_with(|| None));
    for (number, disk) in disks.iter().enumerate() {
        let Some(reader) = &disk.reader else {
            staged.next();
            continue;
        };
        let mut read = || match staged.next().flatten() {
            Some(pieces) => pieces.into_iter().try_for_each(|piece| to.give(piece)),
            None => Reading::of(number, reader, disk, to, stop).read(),
        };
        read().map_err(|e| e.context(format!("disk {}", disk.shape.name)))?;
    }
    for (disk, reader) in disks.iter().filter_map(|d| Some((d, d.reader.as_ref()?))) {
        reader.check_not_shrunk().map_err(|e| e.context(format!("disk {}", disk.shape.name)))?;
    }
    Ok(())
}

/// Reads what is looked at of the disks that are written to, before any of it is compared; none where that is more than `bytes_max`.
///
/// # Errors
/// As for [`read_all`].
pub(crate) fn stage(disks: &[OpenDisk], bytes_max: u64, stop: &dyn Fn() -> bool) -> Result<Option<StagedPieces>> {
    let written_to = disks.iter().filter(|disk| !disk.copied);
    if written_to.map(OpenDisk::look_bytes).fold(0, u64::saturating_add) > bytes_max {
        return Ok(None);
    }
    let stage = |(number, disk): (usize, &OpenDisk)| {
        let Some(reader) = disk.reader.as_ref().filter(|_| !disk.copied) else { return Ok(None) };
        let pieces = RefCell::default();
        Reading::of(number, reader, disk, &pieces, stop)
            .read()
            .map_err(|e| e.context(format!("disk {}", disk.shape.name)))?;
        Ok(Some(pieces.into_inner()))
    };
    disks.iter().enumerate().map(stage).collect::<Result<_>>().map(Some)
}

/// One disk that is being read.
struct Reading<'a> {
    disk: usize,
    reader: &'a DiskReader,
    of: &'a OpenDisk,
    to: &'a dyn Pieces,
    stop: &'a dyn Fn() -> bool,
    /// What is read next.
    batch: Batch,
    /// Where others go first.
    pace: Option<Pace>,
}

impl<'a> Reading<'a> {
    fn of(
        disk: usize,
        reader: &'a DiskReader,
        of: &'a OpenDisk,
        to: &'a dyn Pieces,
        stop: &'a dyn Fn() -> bool,
    ) -> Self {
        let at_leisure = of.leisurely && matches!(of.look, Dirty::All);
        let pace = if at_leisure { Pace::of(&of.shape.identity) } else { None };
        Self { disk, reader, of, to, stop, batch: Batch::default(), pace }
    }

    fn read(mut self) -> Result<()> {
        let size = self.reader.size();
        let mut at = 0;
        while at < size {
            let window = Extent::between(at, (at + WINDOW_BYTES).min(size));
            match &self.of.look {
                Dirty::Nothing => break,
                Dirty::All => self.look_at(window)?,
                Dirty::Blocks(set) => {
                    set.runs_within(window).try_for_each(|run| self.look_at(run))?;
                }
            }
            at = window.end();
        }
        self.flush()
    }

    /// Reads a run as far as it is not skipped.
    fn look_at(&mut self, run: Extent) -> Result<()> {
        let mut at = run.start;
        for skipped in self.of.skip.iter().flat_map(|skip| skip.runs_within(run)) {
            self.extent(Extent::between(at, skipped.start))?;
            self.hole(skipped)?;
            at = skipped.end();
        }
        self.extent(Extent::between(at, run.end()))
    }

    fn extent(&mut self, extent: Extent) -> Result<()> {
        let (mut at, end) = (extent.start, extent.end());
        for data in whole_blocks(&self.reader.data_extents(extent)?, end) {
            let data = Extent::between(data.start.max(extent.start), data.end());
            self.hole(Extent::between(at, data.start))?;
            at = data.start;
            while at < data.end() {
                if (self.stop)() {
                    return Err(stopped());
                }
                let part = (at - at % READ_BYTES + READ_BYTES).min(data.end());
                if self.batch.is_full_for(part - at) {
                    self.flush()?;
                }
                self.batch.push(Extent::between(at, part));
                at = part;
            }
        }
        self.hole(Extent::between(at, end))
    }

    fn hole(&mut self, extent: Extent) -> Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        self.flush()?;
        self.to.give(Piece::Zero { disk: self.disk, extent })
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.bytes() == 0 {
            return Ok(());
        }
        let mut bytes = self.to.buffer(self.batch.bytes())?;
        let begun = Instant::now();
        self.batch.read(self.reader, &mut bytes)?;
        if let Some(pace) = &mut self.pace {
            // Whether to stop is seen before the next read.
            std::thread::sleep(pace.rest(bytes.len() as u64, begun.elapsed()));
        }
        self.to.give(Piece::Data { disk: self.disk, runs: self.batch.take(), bytes })
    }
}

/// The blocks that extents touch, as maximal runs that do not reach over the end.
fn whole_blocks(extents: &[Extent], end: u64) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for extent in extents {
        let first = extent.start - extent.start % BLOCK_BYTES;
        let last = extent.end().next_multiple_of(BLOCK_BYTES).min(end);
        match runs.last_mut() {
            Some(run) if run.end() >= first => run.len = last - run.start,
            _ => runs.push(Extent::between(first, last)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use landfall_model::num::to_usize;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::{channel, sync_channel};

    fn config(name: &str, path: Option<PathBuf>, exclude: bool) -> DiskConfig {
        DiskConfig {
            name: name.parse().expect("a name"),
            path,
            exclude,
            mounts: Vec::new(),
            source: SourceChoice::Auto,
            device: None,
        }
    }

    #[test]
    fn pieces_cover_the_disk_in_order_and_holes_are_not_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let file = std::fs::File::create_new(&path).expect("a file");
        let size = WINDOW_BYTES + 3 * READ_BYTES + 777;
        file.set_len(size).expect("a size");
        for at in [5, READ_BYTES - 10, WINDOW_BYTES - 1, size - 3] {
            file.write_all_at(b"abc", at).expect("written");
        }
        let disks = open_disks(&[config("a", Some(path), false)]).expect("opened");
        let ((pieces, got), (back, buffers)) = (sync_channel(64), channel());
        (0..64).for_each(|_| back.send(Vec::new()).expect("a buffer"));
        read_all(&disks, Vec::new(), &Flowing { pieces, buffers }, &|| false).expect("read");
        let (mut at, mut read) = (0, 0);
        let mut next = |extent: &Extent| {
            assert_eq!((extent.start, extent.start % BLOCK_BYTES), (at, 0));
            at = extent.end();
        };
        for piece in got {
            let (runs, mut bytes) = match &piece {
                Piece::Data { runs, bytes, .. } => (runs, &bytes[..]),
                Piece::Staged { runs, bytes, .. } => (runs, &bytes[..]),
                Piece::Zero { extent, .. } => {
                    next(extent);
                    continue;
                }
            };
            assert!(bytes.len() as u64 <= READ_BYTES);
            for run in runs {
                next(run);
                let (here, rest) = bytes.split_at(to_usize(run.len));
                let mut wanted = vec![0; here.len()];
                file.read_exact_at(&mut wanted, run.start).expect("read");
                assert!(here == wanted);
                read += run.len;
                bytes = rest;
            }
            assert_eq!(bytes.len(), 0);
        }
        assert_eq!(at, size);
        assert!(read <= 8 * BLOCK_BYTES, "{read} bytes were read");
    }

    #[test]
    fn a_disk_of_no_bytes_is_refused_unless_it_is_excluded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        std::fs::write(&path, b"").expect("a file");
        let error = open_disks(&[config("a", Some(path.clone()), false)]).err().expect("refused");
        assert!(error.to_string().contains("has no bytes"), "{error}");
        assert_eq!(open_disks(&[config("a", Some(path), true)]).expect("left out").len(), 0);
        let error = open_disks(&[config("a", Some("/nowhere/at/all".into()), false)]).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn runs_of_whole_blocks_are_maximal() {
        let block = BLOCK_BYTES;
        let extents = [(1, 2), (10, block), (3 * block, 3 * block + 1), (4 * block + 5, 4 * block + 9)];
        let extents: Vec<_> = extents.map(|(start, end)| Extent::between(start, end)).into();
        let runs = whole_blocks(&extents, 4 * block + 100);
        assert_eq!(runs, [Extent::between(0, block), Extent::between(3 * block, 4 * block + 100)]);
    }
}
