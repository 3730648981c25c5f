//! Which blocks differ between two clones of one image, found by where their bytes are, without reading them.
//!
//! # Why it is sound
//! A byte counts as unchanged only where both files have it at the same place of the same file system at the same
//! moment, or where both have nothing there. One place holds one byte, so then both files hold the same: how they came
//! to do so does not matter, be it cloning, deduplication or defragmentation. That needs four things.
//!
//! 1. **The map is true.** Neither file is being written, and what once was is on the disk: clones are only read, and
//!    FIEMAP is told to write out what is left.
//! 2. **A place is one place.** So only file systems are taken where the number that the map gives has one meaning:
//!    XFS, where it is a byte of the data device, and btrfs, where it is a logical address of all devices. Compressed,
//!    inline and encrypted extents have no such place, see [`Content::Unknown`]: they always count as changed. (XFS with
//!    a realtime device has two kinds of places. No image becomes a realtime file but by being made anew, empty: a clone
//!    from before that must not be compared.)
//! 3. **The maps are of one moment.** They are read one after the other; what is freed between could be used again. As
//!    long as a clone exists nothing of it is freed, but defragmentation, deduplication and balancing move the blocks of
//!    clones too. So both maps are read twice and must not have changed: then there was a moment, between the first
//!    reading and the second, at which both were true. Otherwise it is tried again, a few times.
//! 4. **The older clone is the one that was copied from.** It must exist until the comparison has ended, and must have
//!    survived crashes whole, which is why [`clone_file`](crate::clone_file) syncs.
//!
//! What moves without changing is named in vain: after a defragmentation that is everything that it moved.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use landfall_model::{BlockSet, Extent};
use rustix::fs::fstatfs;

use crate::error::{DiskError, Operation, Reason, Result};
use crate::extent_map::{self, Content, Piece};

/// `f_type` of statfs(2), from `linux/magic.h`.
const PLACES_KNOWN: [u64; 2] = [0x5846_5342, 0x9123_683e];

/// Times that the maps are read in the hope that nobody moves blocks meanwhile.
const TRIES_MAX: u32 = 4;

/// The blocks of `new` that may differ from the same bytes of `old`, an older clone of the same image; of a clone that is
/// larger than the older one, everything behind the older one's end.
///
/// Takes time with the number of extents of both, and memory with the number of blocks only. Neither file is read.
/// The older clone must have been there, unchanged, since its content was copied.
///
/// # Errors
/// [`Reason::NoMaps`] where this cannot be told, [`Reason::OtherFileSystem`] if the files are on two (or in two
/// subvolumes), [`Reason::Moving`] if the blocks of the clones are being moved, and what the operating system says.
pub fn changed_blocks(old: &File, new: &File, block_size: u64) -> Result<BlockSet> {
    let (old, new) = (Mapped::new(old)?, Mapped::new(new)?);
    if old.device != new.device {
        return Err(DiskError::new(Operation::Map, &new.path, Reason::OtherFileSystem));
    }
    for _ in 0..TRIES_MAX {
        let mut changed = BlockSet::new(new.size, block_size);
        let (mut old_map, mut new_map) = (Seen::new(old.pieces()), Seen::new(new.pieces()));
        let common = old.size.min(new.size);
        merge(&mut old_map, &mut new_map, common, |run| changed.insert(run))?;
        changed.insert(Extent::between(common, new.size));
        let first = (old_map.finish()?, new_map.finish()?);
        if first == (Seen::new(old.pieces()).finish()?, Seen::new(new.pieces()).finish()?) {
            return Ok(changed);
        }
    }
    Err(DiskError::new(Operation::Map, &new.path, Reason::Moving))
}

/// A file whose map means something.
struct Mapped<'a> {
    file: &'a File,
    /// For errors.
    path: PathBuf,
    size: u64,
    device: u64,
}

impl<'a> Mapped<'a> {
    fn new(file: &'a File) -> Result<Self> {
        let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let path = fs::read_link(&link).unwrap_or(link);
        let meta = file.metadata().map_err(|e| DiskError::os(Operation::Map, &path, e))?;
        let kind = fstatfs(file).map_err(|e| DiskError::os(Operation::Map, &path, e))?.f_type;
        if !meta.is_file() || !u64::try_from(kind).is_ok_and(|kind| PLACES_KNOWN.contains(&kind)) {
            return Err(DiskError::new(Operation::Map, &path, Reason::NoMaps));
        }
        Ok(Self { file, path, size: meta.len(), device: meta.dev() })
    }

    fn pieces(&self) -> impl Iterator<Item = Result<Piece>> {
        extent_map::pieces(self.file, self.size).map(|piece| {
            piece.map_err(|e| match e.kind() {
                io::ErrorKind::InvalidData => DiskError::new(Operation::Map, &self.path, Reason::BadMap),
                _ => DiskError::os(Operation::Map, &self.path, e),
            })
        })
    }
}

/// Pieces, and a fingerprint of those that went by. Nobody gains by making two maps of the same: 64 bits are enough.
struct Seen<I> {
    pieces: I,
    hasher: DefaultHasher,
}

impl<I: Iterator<Item = Result<Piece>>> Seen<I> {
    fn new(pieces: I) -> Self {
        Self { pieces, hasher: DefaultHasher::new() }
    }

    /// The fingerprint of the whole map.
    fn finish(mut self) -> Result<u64> {
        for piece in self.by_ref() {
            piece?;
        }
        Ok(self.hasher.finish())
    }
}

impl<I: Iterator<Item = Result<Piece>>> Iterator for Seen<I> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.pieces.next()?;
        if let Ok(piece) = &piece {
            piece.hash(&mut self.hasher);
        }
        Some(piece)
    }
}

/// Tells, ascending, the runs of the first `size` bytes that are not known to be the same in two maps.
fn merge<E>(
    old: impl Iterator<Item = Result<Piece, E>>,
    new: impl Iterator<Item = Result<Piece, E>>,
    size: u64,
    mut differs: impl FnMut(Extent),
) -> Result<(), E> {
    let (mut old, mut new) = (Walk::new(old), Walk::new(new));
    let mut at = 0;
    while at < size {
        let ((a, a_end), (b, b_end)) = (old.look(at)?, new.look(at)?);
        let end = a_end.min(b_end).min(size);
        let same = match (a, b) {
            (Content::Zero, Content::Zero) => true,
            (Content::At(a), Content::At(b)) => a == b,
            _ => false,
        };
        if !same {
            differs(Extent::between(at, end));
        }
        at = end;
    }
    Ok(())
}

/// Goes through a map from its beginning.
struct Walk<I> {
    pieces: I,
    /// The piece at the last place looked at, or the next one.
    piece: Option<Piece>,
}

impl<I: Iterator<Item = Result<Piece, E>>, E> Walk<I> {
    const fn new(pieces: I) -> Self {
        Self { pieces, piece: None }
    }

    /// What is at a byte, and up to which byte, always a later one, it goes on like that. Never goes back.
    fn look(&mut self, at: u64) -> Result<(Content, u64), E> {
        while self.piece.is_none_or(|piece| piece.run.end() <= at) {
            match self.pieces.next() {
                Some(piece) => self.piece = Some(piece?),
                None => return Ok((Content::Zero, u64::MAX)),
            }
        }
        Ok(match self.piece {
            Some(Piece { run, content }) if run.start <= at => match content {
                Content::At(place) => (Content::At(place.wrapping_add(at - run.start)), run.end()),
                other => (other, run.end()),
            },
            Some(Piece { run, .. }) => (Content::Zero, run.start),
            None => (Content::Zero, u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent_map::tests::{normal, piece};
    use proptest::prelude::*;

    const BLOCK: u64 = 16;

    /// What each block of a file is: not there, unwritten, at a place, or unknown.
    fn blocks() -> impl Strategy<Value = Vec<Option<Content>>> {
        let block = prop_oneof![
            2 => Just(None),
            1 => Just(Some(Content::Zero)),
            6 => (0_u64..8).prop_map(|n| Some(Content::At(n * BLOCK))),
            1 => Just(Some(Content::Unknown)),
        ];
        prop::collection::vec(block, 0..40)
    }

    /// The map of such a file as a file system gives it, block by block; `normal` joins what can be.
    fn map_of(blocks: &[Option<Content>]) -> Vec<Piece> {
        let at = |n: usize| n as u64 * BLOCK;
        blocks.iter().enumerate().filter_map(|(n, content)| content.map(|c| piece(at(n), BLOCK, c))).collect()
    }

    fn runs_of(old: Vec<Piece>, new: Vec<Piece>, old_size: u64, new_size: u64) -> io::Result<BlockSet> {
        let common = old_size.min(new_size);
        let mut changed = BlockSet::new(new_size, BLOCK);
        merge(normal(old, old_size), normal(new, new_size), common, |run| changed.insert(run))?;
        changed.insert(Extent::between(common, new_size));
        Ok(changed)
    }

    proptest! {
        #[test]
        fn only_blocks_that_are_the_same_in_both_are_left_out(old in blocks(), new in blocks(), cut in 0..BLOCK) {
            let size = |blocks: &[_]| (blocks.len() as u64 * BLOCK).saturating_sub(cut);
            let (old_size, new_size) = (size(&old), size(&new));
            let changed = runs_of(map_of(&old), map_of(&new), old_size, new_size).unwrap();
            let zero = |content: Option<Content>| content.unwrap_or(Content::Zero);
            for n in 0..new.len() {
                let run = Extent::between(n as u64 * BLOCK, ((n as u64 + 1) * BLOCK).min(new_size));
                if run.len == 0 {
                    continue;
                }
                let same = run.end() <= old_size
                    && zero(old[n]) == zero(new[n])
                    && zero(old[n]) != Content::Unknown;
                prop_assert_eq!(changed.intersects(&run), !same, "block {} of {:?} and {:?}", n, &old, &new);
            }
        }

        #[test]
        fn no_pair_of_maps_makes_it_panic_or_go_on_for_ever(
            old in prop::collection::vec((0_u64..2000, 0_u64..300, any::<u64>(), 0_usize..3), 0..12),
            new in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_usize..3), 0..12),
            sizes in (0_u64..3000, 0_u64..3000),
        ) {
            let pieces = |given: Vec<(u64, u64, u64, usize)>| -> Vec<Piece> {
                let content = |place, kind: usize| [Content::Zero, Content::At(place), Content::Unknown][kind];
                given.into_iter().map(|(start, len, place, kind)| piece(start, len, content(place, kind))).collect()
            };
            let (old, new) = (pieces(old), pieces(new));
            let _ = runs_of(old.clone(), new.clone(), sizes.0, sizes.1);
            let _ = runs_of(new, old, sizes.0, sizes.1);
        }
    }

    #[test]
    fn a_piece_is_compared_byte_by_byte_with_what_overlaps_it() {
        let old = vec![piece(0, 100, Content::At(1000))];
        let new =
            vec![piece(0, 20, Content::At(1000)), piece(20, 30, Content::At(5000)), piece(50, 50, Content::At(1050))];
        let mut runs = Vec::new();
        merge(normal(old, 100), normal(new, 100), 100, |run| runs.push(run)).unwrap();
        assert_eq!(runs, [Extent::between(20, 50)]);
    }
}
