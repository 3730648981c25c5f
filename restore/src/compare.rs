//! What of an existing disk is not what the point says: by fingerprint, so that what is equal is neither fetched nor written.

use landfall_disk::Target;
use landfall_keys::Fingerprinter;
use landfall_model::num::to_usize;
use landfall_model::{ChunkRef, Entry, EntryKind, Extent, Result};

use crate::plan::Place;

/// Zeroes are looked for in pieces of this many bytes.
const ZERO_PIECE_BYTES: u64 = 1024 * 1024;

/// What comparing a region found.
#[derive(Default)]
pub(crate) struct Differences {
    pub(crate) needs: Vec<(ChunkRef, Place)>,
    /// Bytes that were made zero.
    pub(crate) zeroed: u64,
}

/// Compares a region of a disk, whose entries cover it, with what stands on the target; makes zero what must be zero.
pub(crate) fn region(
    target: &Target,
    disk: usize,
    base: u64,
    entries: &[Entry],
    fingerprinter: &Fingerprinter,
) -> Result<Differences> {
    let len = entries.last().map_or(0, |e| u64::from(e.end()));
    let data = target.data_extents(Extent { start: base, len })?;
    let mut found = Differences::default();
    let mut buffer = vec![0; to_usize(ZERO_PIECE_BYTES)];
    for entry in entries {
        let run = Extent { start: base + u64::from(entry.start), len: u64::from(entry.len) };
        let allocated = || data.iter().filter_map(|d| d.intersection(&run));
        match entry.kind {
            EntryKind::Zero | EntryKind::Excluded => {
                for part in allocated() {
                    found.zeroed += clear(target, part, &mut buffer)?;
                }
            }
            EntryKind::Data { chunk, skip } => {
                let whole = entry.whole_chunk().is_some();
                if whole && allocated().next().is_some() {
                    let bytes = &mut buffer[..entry.len as usize];
                    target.read_at(bytes, run.start)?;
                    if fingerprinter.chunk_id(bytes) == chunk.id {
                        continue;
                    }
                }
                let place = Place { disk, start: run.start, len: entry.len, skip, compare: !whole };
                found.needs.push((chunk, place));
            }
        }
    }
    Ok(found)
}

/// Makes a run zero where it is not; returns the bytes that were written.
fn clear(target: &Target, run: Extent, buffer: &mut [u8]) -> Result<u64> {
    let mut written = 0;
    let mut at = run.start;
    while at < run.end() {
        let piece = Extent::between(at, run.end().min(at + ZERO_PIECE_BYTES));
        let bytes = &mut buffer[..to_usize(piece.len)];
        target.read_at(bytes, piece.start)?;
        if bytes.iter().any(|b| *b != 0) {
            target.write_zeroes(piece)?;
            written += piece.len;
        }
        at = piece.end();
    }
    Ok(written)
}
