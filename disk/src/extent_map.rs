//! Where on the file system the bytes of a file are: FIEMAP, Documentation/filesystems/fiemap.rst of Linux.
//!
//! ```text
//! FIEMAP    |0 @1000 +4096 shared|4096 @5096 +4096|   hole   |unwritten|16384 @9000 +8192 encoded|   behind the end
//! pieces    |0 +8192 at 1000                      |                    |16384 +8192 unknown      |
//! ```
//!
//! **Invariants of the pieces.** Ascending, none empty, none touches the next unless they differ in more than length, none
//! behind the end of the file. Bytes in no piece are zero. So a map says the same however the file system cuts it up, and
//! whatever it says about sharing. What it gives is checked: a map that is not ascending is an error, not a loop.

use std::fs::File;
use std::io;
use std::iter::Peekable;

use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags as Flags, FiemapFlags};
use landfall_model::Extent;

/// What says nothing about where the bytes are.
const NEUTRAL: u32 = Flags::LAST.union(Flags::MERGED).union(Flags::SHARED).bits();
const UNWRITTEN: u32 = Flags::UNWRITTEN.bits();

/// What a file has in a run of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Content {
    /// Allocated, never written.
    Zero,
    /// The bytes of the file system from here on.
    At(u64),
    /// Bytes that are not on the disk as they are, or nobody says where.
    ///
    /// This is also what a compressed extent is. Its map gives the place where it begins, but not which part of it the
    /// file uses: two files may have different parts of it with the same map, after deduplication or copies of ranges.
    Unknown,
}

/// A run of bytes of a file that are all in one place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Piece {
    pub(crate) run: Extent,
    pub(crate) content: Content,
}

impl Piece {
    /// Joins the next piece to this one if it goes on where this one ends, in the file and on the file system.
    fn join(&mut self, next: &Self) -> bool {
        let goes_on = match (self.content, next.content) {
            (Content::At(here), Content::At(there)) => here.checked_add(self.run.len) == Some(there),
            (a, b) => a == b,
        };
        let joined = goes_on && self.run.end() == next.run.start;
        if joined {
            self.run.len += next.run.len;
        }
        joined
    }
}

/// The error of a map that cannot be.
fn nonsense() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// The map of a file of `size` bytes, as the file system has it now. Takes little memory, however many pieces there are.
pub(crate) fn pieces(file: &File, size: u64) -> impl Iterator<Item = io::Result<Piece>> {
    // Without the flag, what is only in memory so far would have no place yet.
    let extents = Fiemap::with_flags(file, FiemapFlags::SYNC);
    joined(checked(extents.map(|e| e.map(|e| read(&e))), size))
}

fn read(extent: &FiemapExtent) -> Piece {
    let content = match extent.fe_flags.bits() & !NEUTRAL {
        0 if extent.fe_physical.checked_add(extent.fe_length).is_some() => Content::At(extent.fe_physical),
        UNWRITTEN => Content::Zero,
        _ => Content::Unknown,
    };
    Piece { run: Extent { start: extent.fe_logical, len: extent.fe_length }, content }
}

/// Up to the end of the file; ends with an error where a piece is empty, overflows or begins before the last one ended.
fn checked(mut pieces: impl Iterator<Item = io::Result<Piece>>, size: u64) -> impl Iterator<Item = io::Result<Piece>> {
    let mut from = Some(0);
    std::iter::from_fn(move || {
        let at_least = from?;
        // Ends the iteration whatever comes, unless there is one more good piece.
        from = None;
        let mut piece = match pieces.next()? {
            Ok(piece) => piece,
            Err(e) => return Some(Err(e)),
        };
        let Some(end) = piece.run.start.checked_add(piece.run.len).filter(|_| piece.run.len > 0) else {
            return Some(Err(nonsense()));
        };
        if piece.run.start < at_least {
            return Some(Err(nonsense()));
        }
        if piece.run.start >= size {
            return None;
        }
        from = Some(end);
        piece.run.len = end.min(size) - piece.run.start;
        Some(Ok(piece))
    })
}

/// Leaves out what is zero anyhow and makes one piece of those that go on.
fn joined(pieces: impl Iterator<Item = io::Result<Piece>>) -> impl Iterator<Item = io::Result<Piece>> {
    let kept = pieces.filter(|p| !matches!(p, Ok(Piece { content: Content::Zero, .. })));
    let mut kept: Peekable<_> = kept.peekable();
    std::iter::from_fn(move || {
        let mut piece = match kept.next()? {
            Ok(piece) => piece,
            error => return Some(error),
        };
        while kept.next_if(|next| next.as_ref().is_ok_and(|next| piece.join(next))).is_some() {}
        Some(Ok(piece))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What [`pieces`] makes of a map that a file system gave.
    pub(crate) fn normal(given: Vec<Piece>, size: u64) -> impl Iterator<Item = io::Result<Piece>> {
        joined(checked(given.into_iter().map(Ok), size))
    }

    pub(crate) fn piece(start: u64, len: u64, content: Content) -> Piece {
        Piece { run: Extent { start, len }, content }
    }

    #[test]
    fn a_map_says_the_same_however_it_is_cut() {
        let given = vec![
            piece(0, 10, Content::At(100)),
            piece(10, 10, Content::At(110)),
            piece(20, 10, Content::At(121)),
            piece(30, 10, Content::Zero),
            piece(50, 5, Content::Unknown),
            piece(55, 5, Content::Unknown),
            piece(60, 90, Content::At(0)),
            piece(150, 10, Content::At(90)),
        ];
        let pieces: Vec<Piece> = normal(given, 100).map(Result::unwrap).collect();
        let wanted = [
            piece(0, 20, Content::At(100)),
            piece(20, 10, Content::At(121)),
            piece(50, 10, Content::Unknown),
            piece(60, 40, Content::At(0)),
        ];
        assert_eq!(pieces, wanted);
    }

    #[test]
    fn a_map_that_cannot_be_is_an_error_and_ends() {
        let good = piece(10, 10, Content::At(100));
        for bad in [
            piece(0, 5, Content::At(0)),
            piece(19, 5, Content::At(0)),
            piece(10, 10, Content::At(100)),
            piece(20, 0, Content::At(0)),
            piece(u64::MAX, 2, Content::Unknown),
        ] {
            let mut pieces = normal(vec![good, bad, good], u64::MAX);
            assert_eq!(pieces.next().unwrap().unwrap(), good);
            assert_eq!(pieces.next().unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData, "{bad:?}");
            assert!(pieces.next().is_none());
        }
    }

    proptest! {
        #[test]
        fn no_map_makes_it_panic_or_breaks_the_invariants(
            given in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>(), 0_usize..3), 0..20),
            size in any::<u64>(),
        ) {
            let given = given.into_iter().map(|(start, len, place, kind)| {
                let content = [Content::Zero, Content::At(place), Content::Unknown][kind];
                piece(start, len, content)
            });
            let mut from = 0;
            for piece in normal(given.collect(), size).map_while(Result::ok) {
                prop_assert!(piece.run.len > 0 && piece.run.start >= from && piece.run.end() <= size);
                prop_assert!(piece.content != Content::Zero);
                from = piece.run.end();
            }
        }
    }
}
