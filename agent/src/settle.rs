//! A cut of disks that nothing holds still: what was written while it was read is read again, until a pass in which nothing was.
//!
//! ```text
//!   take marks, read them | take: what completed meanwhile, read it | take: two blocks, read them | take: nothing -> all is of one moment
//! ```
//! Why that is a moment, as a power cut would have made one, is said in ADR 0017.

use bytes::Bytes;
use landfall_model::num::to_usize;
use landfall_model::{Extent, Result};

use crate::image::{OpenDisk, Piece, StagedPieces, stage};
use crate::tracking::{Dirty, Tracking};

/// Passes before one who writes without a pause is left alone. Each reads what was written during the one before: a few blocks after the first.
const PASSES_MAX: usize = 64;

/// How it ended.
pub(crate) enum Settled {
    /// What was read is of one moment.
    Moment,
    /// It is not: something was written in each pass.
    Never,
    /// More was written than may be read, or it is not known what.
    TooMuch,
}

/// Brings what was staged to one moment. `disks` are looked at no more, but for what is written meanwhile.
///
/// # Errors
/// As for [`stage`].
pub(crate) fn settle(
    tracking: &Tracking,
    disks: &mut [OpenDisk],
    staged: &mut StagedPieces,
    bytes_max: u64,
    stop: &dyn Fn() -> bool,
) -> Result<Settled> {
    let mut left = bytes_max;
    for _ in 0..PASSES_MAX {
        let written = tracking.written_again();
        if written.iter().all(|(_, dirty)| dirty.bytes() == Some(0)) {
            return Ok(Settled::Moment);
        }
        let mut bytes: u64 = 0;
        // Copies stand still, and are read later.
        for disk in disks.iter_mut().filter(|disk| !disk.copied && disk.reader.is_some()) {
            let dirty = written.iter().find(|(name, _)| *name == disk.shape.name).map(|(_, dirty)| dirty.clone());
            disk.look = dirty.unwrap_or(Dirty::All);
            match (disk.look.bytes(), &disk.look) {
                (Some(more), Dirty::Nothing) => bytes += more,
                (Some(more), Dirty::Blocks(set)) if set.disk_size() == disk.shape.size => bytes += more,
                _ => return Ok(Settled::TooMuch),
            }
        }
        let Some(rest) = left.checked_sub(bytes) else { return Ok(Settled::TooMuch) };
        left = rest;
        let Some(newer) = stage(disks, bytes_max, stop)? else { return Ok(Settled::TooMuch) };
        for (pieces, newer) in staged.iter_mut().zip(newer) {
            if let (Some(pieces), Some(newer)) = (pieces, newer) {
                *pieces = overlaid(std::mem::take(pieces), newer);
            }
        }
    }
    Ok(Settled::Never)
}

/// A run that was read, or is zero.
struct Part {
    disk: usize,
    run: Extent,
    bytes: Option<Bytes>,
}

impl Part {
    /// What of it lies in a run that it has.
    fn within(&self, run: Extent) -> Self {
        let at = to_usize(run.start - self.run.start);
        Self { disk: self.disk, run, bytes: self.bytes.as_ref().map(|b| b.slice(at..at + to_usize(run.len))) }
    }
}

fn parts(pieces: Vec<Piece>) -> Vec<Part> {
    let mut parts = Vec::new();
    for piece in pieces {
        let (disk, runs, bytes) = match piece {
            Piece::Zero { disk, extent } => {
                parts.push(Part { disk, run: extent, bytes: None });
                continue;
            }
            Piece::Data { disk, runs, bytes } => (disk, runs, Bytes::from(bytes)),
            Piece::Staged { disk, runs, bytes } => (disk, runs, bytes),
        };
        let mut at = 0;
        for run in runs {
            let end = at + to_usize(run.len);
            parts.push(Part { disk, run, bytes: Some(bytes.slice(at..end)) });
            at = end;
        }
    }
    parts
}

/// Pieces of a disk with newer ones over them. Both ascend, and so does what comes out. Where newer bytes lie within a run, it stays one run: what was
/// a whole block is one.
fn overlaid(older: Vec<Piece>, newer: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Part> = Vec::new();
    let newer = parts(newer);
    let mut rest: Vec<Extent> = newer.iter().map(|part| part.run).collect();
    for old in parts(older) {
        let over: Vec<&Part> = newer.iter().filter(|n| n.run.intersection(&old.run).is_some()).collect();
        if over.is_empty() {
            all.push(old);
            continue;
        }
        // What was skipped stays so: both are zero there.
        let Some(bytes) = &old.bytes else {
            rest = rest.into_iter().flat_map(|run| without(run, old.run)).collect();
            all.push(old);
            continue;
        };
        let mut bytes = bytes.to_vec();
        for part in over {
            let Some(both) = part.run.intersection(&old.run) else { continue };
            let at = to_usize(both.start - old.run.start);
            let place = &mut bytes[at..at + to_usize(both.len)];
            match part.within(both).bytes {
                Some(newer) => place.copy_from_slice(&newer),
                None => place.fill(0),
            }
        }
        rest = rest.into_iter().flat_map(|run| without(run, old.run)).collect();
        all.push(Part { bytes: Some(bytes.into()), ..old });
    }
    for run in rest {
        all.extend(newer.iter().filter_map(|part| Some(part.within(part.run.intersection(&run)?))));
    }
    all.sort_by_key(|part| part.run.start);
    let piece = |part: Part| match part.bytes {
        Some(bytes) => Piece::Staged { disk: part.disk, runs: vec![part.run], bytes },
        None => Piece::Zero { disk: part.disk, extent: part.run },
    };
    all.into_iter().map(piece).collect()
}

/// A run without another: what is before it, and what is behind it.
fn without(run: Extent, other: Extent) -> impl Iterator<Item = Extent> {
    let before = Extent::between(run.start, run.end().min(other.start));
    let behind = Extent::between(run.start.max(other.end()), run.end());
    [before, behind].into_iter().filter(|part| part.len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: u64 = 4096;

    /// Runs of some units that are apart, each as a piece of one value.
    fn pieces(runs: &[(u64, u64)], value: u8) -> Vec<Piece> {
        let mut at = 0;
        let mut pieces = Vec::new();
        for (gap, len) in runs {
            let run = Extent { start: (at + gap) * UNIT, len: len * UNIT };
            at = run.end() / UNIT;
            pieces.push(Piece::Data { disk: 0, runs: vec![run], bytes: vec![value; to_usize(run.len)] });
        }
        pieces
    }

    fn drawn(pieces: Vec<Piece>) -> Vec<u8> {
        let mut units = vec![0; 200];
        let mut end = 0;
        for part in parts(pieces) {
            assert!(part.run.start >= end, "they ascend, and none lies over another");
            end = part.run.end();
            for unit in part.run.start / UNIT..end / UNIT {
                let at = to_usize(unit * UNIT - part.run.start);
                units[to_usize(unit)] = part.bytes.as_ref().expect("data")[at];
            }
        }
        units
    }

    proptest! {
        #[test]
        fn the_newest_bytes_are_on_top_and_runs_stay_whole(
            older in prop::collection::vec((0_u64..6, 1_u64..9), 0..12),
            newer in prop::collection::vec((0_u64..6, 1_u64..9), 0..12),
        ) {
            let (below, above) = (drawn(pieces(&older, 1)), drawn(pieces(&newer, 2)));
            let wanted: Vec<u8> = below.iter().zip(&above).map(|(b, a)| if *a == 0 { *b } else { *a }).collect();
            let all = overlaid(pieces(&older, 1), pieces(&newer, 2));
            let starts: Vec<Extent> = parts(overlaid(pieces(&older, 1), pieces(&newer, 2))).iter().map(|p| p.run).collect();
            prop_assert!(parts(pieces(&older, 1)).iter().all(|old| starts.contains(&old.run)));
            prop_assert_eq!(drawn(all), wanted);
        }
    }
}
