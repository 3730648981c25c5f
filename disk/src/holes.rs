//! Where a file has data, and how a run of it becomes a hole.

use std::fs::File;
use std::io;

use landfall_model::Extent;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

/// Runs of `within` that may hold something other than zeroes, ascending and not overlapping.
///
/// Costs two system calls a run, however large the holes are. What the file system cannot tell counts as data. Seeking
/// moves the shared position of the descriptor, which nothing in this crate uses.
pub(crate) fn data_extents(file: &File, within: Extent) -> io::Result<Vec<Extent>> {
    let mut found = Vec::new();
    let mut at = within.start;
    while at < within.end() {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) if is_unsupported(e) => at,
            Err(e) => return Err(e.into()),
        };
        if start >= within.end() {
            break;
        }
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(within.end()),
            Err(Errno::NXIO) => break,
            Err(e) if is_unsupported(e) => within.end(),
            Err(e) => return Err(e.into()),
        };
        // A hole where there was data a moment ago: the file is being changed. As data it is read once too often.
        let end = if end > start { end } else { within.end() };
        found.push(Extent::between(start, end));
        at = end;
    }
    Ok(found)
}

/// Makes the run read as zeroes without writing it; `false` if the file system or device cannot.
pub(crate) fn punch(file: &File, run: Extent) -> io::Result<bool> {
    // A device that cannot discard to zeroes may still be able to zero by itself.
    for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
        match retry(|| fallocate(file, how | FallocateFlags::KEEP_SIZE, run.start, run.len)) {
            Ok(()) => return Ok(true),
            Err(e) if is_unsupported(e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(false)
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn is_unsupported(e: Errno) -> bool {
    matches!(e, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::NODEV | Errno::SPIPE)
}
