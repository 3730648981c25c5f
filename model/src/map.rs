//! The map of one region of a disk: what lies where, and how a newer map is laid over an older one.
//!
//! ```text
//!   region   |--zero--|----data A----|--data B--|......not described: zero......|
//!   overlay           |--data C (part of A's range)--|
//!   result   |--zero--|----data C----|-B, from its 3rd sector-|.................|
//! ```
//! An entry may show only a part of a chunk: an overwrite never reads or rewrites what it half covers.

use std::collections::BTreeMap;

use crate::{ChunkId, EpochId, Extent, SegmentId, Seq, Timeline};

/// How a chunk's bytes were stored before sealing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Codec {
    /// As they are.
    Raw,
    /// One Zstandard frame (RFC 8878).
    Zstd,
}

impl Codec {
    /// The number in the format.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    /// The codec with this number.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The object that holds a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Source {
    /// A segment.
    Segment(SegmentId),
    /// The inline frames of a recovery point of the same machine.
    Point(Timeline, Seq),
}

/// Where a frame lies, and what is needed to open it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Location {
    /// The object.
    pub source: Source,
    /// First byte in the segment object, or in the point's inline frames.
    pub offset: u32,
    /// Bytes of the frame.
    pub stored_len: u32,
    /// Bytes after opening and decompressing.
    pub raw_len: u32,
    /// How the bytes were stored.
    pub codec: Codec,
    /// Whose key seals it.
    pub epoch: EpochId,
}

/// A chunk and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct ChunkRef {
    /// Its name.
    pub id: ChunkId,
    /// Its place.
    pub location: Location,
}

/// What a run of a disk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// Bytes of a chunk, from `skip` on.
    Data {
        /// The chunk.
        chunk: ChunkRef,
        /// First byte within the chunk.
        skip: u32,
    },
    /// Zeroes.
    Zero,
    /// Not protected; reads as zeroes.
    Excluded,
}

/// A run of a region, `start` counted from the region's first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// First byte within the region.
    pub start: u32,
    /// Length in bytes, at least 1.
    pub len: u32,
    /// What it holds.
    pub kind: EntryKind,
}

impl Entry {
    /// The byte after the last.
    pub const fn end(&self) -> u32 {
        self.start + self.len
    }

    /// Whether it shows one whole chunk, so that its ChunkId names exactly these bytes of the disk.
    pub fn whole_chunk(&self) -> Option<&ChunkRef> {
        match &self.kind {
            EntryKind::Data { chunk, skip: 0 } if chunk.location.raw_len == self.len => Some(chunk),
            _ => None,
        }
    }

    /// The same bytes, but only those from `start` up to `end`.
    fn clipped(&self, start: u32, end: u32) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        if from >= to {
            return None;
        }
        let kind = match self.kind {
            EntryKind::Data { chunk, skip } => EntryKind::Data { chunk, skip: skip + (from - self.start) },
            other => other,
        };
        Some(Self { start: from, len: to - from, kind })
    }
}

/// A map that breaks an invariant of FORMAT.md section 9.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Two entries claim the same byte, or they are not ascending.
    #[error("entries of a page overlap or are out of order at byte {at} of the region")]
    Overlap {
        /// Where.
        at: u32,
    },
    /// An entry is empty or reaches beyond the region.
    #[error("an entry of a page leaves the region at byte {at}")]
    Outside {
        /// Where.
        at: u32,
    },
    /// An entry shows more of a chunk than there is.
    #[error("an entry of a page at byte {at} of the region reaches beyond its chunk")]
    BeyondChunk {
        /// Where.
        at: u32,
    },
}

/// What one region of a disk holds; bytes that no entry describes are zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegionMap {
    entries: BTreeMap<u32, Entry>,
}

impl RegionMap {
    /// Checks entries from outside: ascending, disjoint, inside `region_len`, inside their chunks (invariant 4 of the vault).
    ///
    /// # Errors
    /// The first rule that is broken, and where.
    pub fn checked(entries: &[Entry], region_len: u32) -> Result<Self, MapError> {
        let mut map = Self::default();
        let mut last_end = 0;
        for entry in entries {
            let end = entry.start.checked_add(entry.len).filter(|&end| end <= region_len && entry.len > 0);
            let end = end.ok_or(MapError::Outside { at: entry.start })?;
            if entry.start < last_end {
                return Err(MapError::Overlap { at: entry.start });
            }
            if let EntryKind::Data { chunk, skip } = entry.kind
                && skip.checked_add(entry.len).is_none_or(|last| last > chunk.location.raw_len)
            {
                return Err(MapError::BeyondChunk { at: entry.start });
            }
            last_end = end;
            map.entries.insert(entry.start, *entry);
        }
        Ok(map)
    }

    /// Forgets what lies in `start .. end`; what half covers it is cut.
    fn clear(&mut self, start: u32, end: u32) {
        let first = self.entries.range(..start).next_back().map(|(&s, _)| s).filter(|s| self.entries[s].end() > start);
        let touched: Vec<u32> = first.into_iter().chain(self.entries.range(start..end).map(|(&s, _)| s)).collect();
        for key in touched {
            if let Some(entry) = self.entries.remove(&key) {
                for rest in [entry.clipped(0, start), entry.clipped(end, u32::MAX)].into_iter().flatten() {
                    self.entries.insert(rest.start, rest);
                }
            }
        }
    }

    /// Lays an entry over what is there.
    pub fn put(&mut self, entry: Entry) {
        self.clear(entry.start, entry.end());
        self.entries.insert(entry.start, entry);
    }

    /// Lays a newer map over this one.
    pub fn overlay(&mut self, newer: &Self) {
        newer.entries.values().for_each(|e| self.put(*e));
    }

    /// Makes everything from `len` on zero: the disk ended there.
    pub fn truncate(&mut self, len: u32) {
        self.clear(len, u32::MAX);
    }

    /// The entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is described.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every byte of `0 .. len`, in order: the entries, and zero entries where nothing is described.
    pub fn covering(&self, len: u32) -> Vec<Entry> {
        let mut out = Vec::with_capacity(self.entries.len() + 1);
        let mut at = 0;
        let zero = |start, end| Entry { start, len: end - start, kind: EntryKind::Zero };
        for entry in self.entries.values().filter_map(|e| e.clipped(0, len)) {
            if entry.start > at {
                out.push(zero(at, entry.start));
            }
            at = entry.end();
            out.push(entry);
        }
        if at < len {
            out.push(zero(at, len));
        }
        out
    }

    /// The entry that describes a byte of the region.
    pub fn at(&self, byte: u32) -> Option<&Entry> {
        self.entries.range(..=byte).next_back().map(|(_, e)| e).filter(|e| e.end() > byte)
    }

    /// The part of the map that lies in an extent (of the region).
    pub fn within(&self, extent: Extent) -> impl Iterator<Item = Entry> {
        let start = u32::try_from(extent.start).unwrap_or(u32::MAX);
        let end = u32::try_from(extent.end()).unwrap_or(u32::MAX);
        let before = self.entries.range(..start).next_back().map(|(_, e)| e);
        before
            .into_iter()
            .chain(self.entries.range(start..end.max(start)).map(|(_, e)| e))
            .filter_map(move |e| e.clipped(start, end))
    }
}

#[cfg(test)]
mod tests;
