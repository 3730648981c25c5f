//! From fetched frames to the disks: open, decompress, check the name, write. Chunks that follow each other on the disk are one write.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use landfall_disk::{AlignedBuf, Target};
use landfall_model::num::to_usize;
use landfall_model::{ErrorKind, Result};
use landfall_vault::{CHUNK_BYTES_MAX, Decompressor, crash_point};

use crate::openers::Openers;
use crate::plan::{Fetch, Place, Wanted};

/// Bytes gathered for one write.
const RUN_BYTES: usize = 4 * 1024 * 1024;

/// What became of a fetch.
#[derive(Default)]
pub(crate) struct Written {
    /// Disk and bytes written to it.
    pub(crate) bytes: Vec<(usize, u64)>,
    /// Runs that could not be had, and why.
    pub(crate) damaged: Vec<(Place, String)>,
}

/// Chunks that follow each other on one disk, gathered in one aligned buffer.
struct Run<'a> {
    targets: &'a [Arc<Target>],
    buffer: AlignedBuf,
    disk: usize,
    start: u64,
    len: usize,
}

impl Run<'_> {
    fn continues(&self, place: &Place) -> bool {
        self.disk == place.disk && self.start + self.len as u64 == place.start
    }

    /// Writes what is gathered; returns its bytes.
    fn flush(&mut self) -> Result<u64> {
        if self.len == 0 {
            return Ok(0);
        }
        self.targets[self.disk].write_at(&self.buffer[..self.len], self.start)?;
        crash_point("rehydrate.first-write");
        Ok(std::mem::take(&mut self.len) as u64)
    }
}

/// Writes the chunks of a fetch to wherever they belong. Each worker call has its own buffers.
///
/// # Errors
/// Those of the targets. A chunk that does not open is no error but damage.
pub(crate) fn write(openers: &Openers, targets: &[Arc<Target>], fetch: &Fetch, bytes: Bytes) -> Result<Written> {
    let mut decompressor = Decompressor::new()?;
    let mut out = Written::default();
    // The frames are opened where they were received: no copy is made of ciphertext.
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    let buffer = AlignedBuf::new(RUN_BYTES + CHUNK_BYTES_MAX as usize);
    let mut run = Run { targets, buffer, disk: 0, start: 0, len: 0 };
    for wanted in &fetch.chunks {
        let at = &wanted.chunk.location;
        let start = to_usize(u64::from(at.offset) - fetch.start);
        let frame = &mut bytes[start..start + at.stored_len as usize];
        let Some(first) = wanted.places.first() else { continue };
        if run.len >= RUN_BYTES || !run.continues(first) || first.skip != 0 {
            let (disk, written) = (run.disk, run.flush()?);
            out.bytes.push((disk, written));
            (run.disk, run.start) = (first.disk, first.start);
        }
        let raw_len = at.raw_len as usize;
        let here = run.len;
        if let Err(error) = openers.open(&mut decompressor, &wanted.chunk, frame, &mut run.buffer[here..here + raw_len])
        {
            if error.kind() != ErrorKind::Corrupt {
                return Err(error);
            }
            out.damaged.extend(wanted.places.iter().map(|p| (*p, error.to_string())));
            let (disk, written) = (run.disk, run.flush()?);
            out.bytes.push((disk, written));
            continue;
        }
        let gathered = first.skip == 0 && first.len as usize == raw_len && !first.compare;
        place_copies(&mut run, wanted, here, usize::from(gathered), &mut out)?;
        if gathered {
            run.len += raw_len;
        }
    }
    let (disk, written) = (run.disk, run.flush()?);
    out.bytes.push((disk, written));
    Ok(out)
}

/// Writes a chunk, which stands in the run's buffer at `here`, to its places from number `from` on.
fn place_copies(run: &mut Run<'_>, wanted: &Wanted, here: usize, from: usize, out: &mut Written) -> Result<()> {
    for place in &wanted.places[from..] {
        let first = here + place.skip as usize;
        let bytes = &run.buffer[first..first + place.len as usize];
        let target = &run.targets[place.disk];
        if place.compare {
            let mut there = vec![0; bytes.len()];
            target.read_at(&mut there, place.start)?;
            if there == bytes {
                continue;
            }
        }
        target.write_at(bytes, place.start)?;
        out.bytes.push((place.disk, u64::from(place.len)));
    }
    Ok(())
}
