//! The bytes of a disk in a file or device, written past the page cache.
//!
//! **Invariant: whether a byte goes through the page cache depends on where it is, never on the buffer.** A write is cut
//! at the borders of 4 KiB blocks; the blocks that it covers whole go out with `O_DIRECT`, the partial ones at its ends
//! through the page cache. So two writes that do not overlap never meet in one block on different ways, and the partial
//! last block of a disk of odd size only ever sees the page cache. Memory that is not aligned is copied first, which is
//! far cheaper than the page cache. Where `O_DIRECT` does not exist (some network and memory file systems), everything
//! goes through the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use landfall_model::Extent;
use landfall_model::num::to_usize;

use crate::aligned::{AlignedBuf, BOUNCE_BYTES, DIRECT_ALIGN, bounced, is_aligned};
use crate::holes;
use crate::place::Opened;
use crate::uncached::UncachedReads;

/// One call into the kernel zeroes at most this much, so that a run can be interrupted between the calls.
const ZERO_STEP_BYTES: u64 = 1 << 30;

/// The bytes, in an opened file or device.
pub(crate) struct RawImage {
    direct: Option<Direct>,
    reads: UncachedReads,
    opened: Opened,
}

/// A second descriptor of the same file, with `O_DIRECT`.
struct Direct {
    file: File,
    /// Cleared when the kernel turns out to refuse what it promised at open.
    works: AtomicBool,
}

impl RawImage {
    pub(crate) fn new(opened: Opened) -> Self {
        let direct = open_direct(&opened).map(|file| Direct { file, works: AtomicBool::new(true) });
        Self { direct, reads: UncachedReads::new(), opened }
    }

    pub(crate) fn file(&self) -> &File {
        &self.opened.file
    }

    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let align = DIRECT_ALIGN as u64;
        let end = offset + buf.len() as u64;
        let body_start = offset.next_multiple_of(align).min(end);
        let body_end = (end - end % align).max(body_start);
        let (head, rest) = buf.split_at(to_usize(body_start - offset));
        let (body, tail) = rest.split_at(to_usize(body_end - body_start));
        self.opened.file.write_all_at(head, offset)?;
        self.write_blocks(body, body_start)?;
        self.opened.file.write_all_at(tail, body_end)
    }

    /// Writes whole blocks.
    fn write_blocks(&self, blocks: &[u8], offset: u64) -> io::Result<()> {
        let Some(direct) = self.direct.as_ref().filter(|d| !blocks.is_empty() && d.works.load(Ordering::Relaxed))
        else {
            return self.opened.file.write_all_at(blocks, offset);
        };
        match direct.write(blocks, offset) {
            // Also what the rest of a short write gives: the page cache then tells the true error, or works.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                direct.works.store(false, Ordering::Relaxed);
                self.opened.file.write_all_at(blocks, offset)
            }
            result => result,
        }
    }

    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let done = self.reads.read_up_to(&self.opened.file, buf, offset).map_err(|(_, e)| e)?;
        if done == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    pub(crate) fn data_extents(&self, within: Extent) -> io::Result<Vec<Extent>> {
        if self.opened.is_device { Ok(vec![within]) } else { holes::data_extents(&self.opened.file, within) }
    }

    /// Makes the run zero, as a hole where that is possible.
    pub(crate) fn zero(&self, run: Extent) -> io::Result<()> {
        let mut at = run.start;
        while at < run.end() {
            let step = Extent::between(at, run.end().min(at + ZERO_STEP_BYTES));
            if !holes::punch(&self.opened.file, step)? {
                self.write_zero_bytes(step)?;
            }
            at = step.end();
        }
        Ok(())
    }

    fn write_zero_bytes(&self, run: Extent) -> io::Result<()> {
        let zeroes = AlignedBuf::new(to_usize(run.len.min(BOUNCE_BYTES as u64)));
        let mut at = run.start;
        while at < run.end() {
            // To the next multiple of the piece, so that all but the first and last pieces are whole blocks.
            let end = (at + 1).next_multiple_of(BOUNCE_BYTES as u64).min(run.end());
            self.write_at(&zeroes[..to_usize(end - at)], at)?;
            at = end;
        }
        Ok(())
    }

    /// Until all that was written, on either way, is on stable storage.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.opened.file.sync_all()
    }
}

impl Direct {
    fn write(&self, blocks: &[u8], offset: u64) -> io::Result<()> {
        if is_aligned(blocks) {
            return self.file.write_all_at(blocks, offset);
        }
        bounced(|bounce| {
            let mut at = offset;
            for piece in blocks.chunks(BOUNCE_BYTES) {
                bounce[..piece.len()].copy_from_slice(piece);
                self.file.write_all_at(&bounce[..piece.len()], at)?;
                at += piece.len() as u64;
            }
            Ok(())
        })
    }
}

/// The same file again with `O_DIRECT`; `None` where that does not exist, or if the path has another file by now.
pub(crate) fn open_direct(opened: &Opened) -> Option<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&opened.path).ok()?;
    let (a, b) = (file.metadata().ok()?, opened.file.metadata().ok()?);
    ((a.dev(), a.ino()) == (b.dev(), b.ino())).then_some(file)
}
