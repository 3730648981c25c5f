//! What the vault has, what this cycle is storing, and what is new: asked by every worker, told by the uploader.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use landfall_model::{ChunkId, ChunkRef, Error, Location, MachineId, Result, SegmentId, Seq, Source, Timeline};
use landfall_vault::DedupIndex;
use landfall_vault::segment::Segment;

use crate::spool::Pins;

/// What a worker does with a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Claim {
    /// The vault has it.
    Known(Location),
    /// Another worker is storing it, or this one did a moment ago: its place is known when its segment is stored.
    Pending,
    /// Store it.
    New,
}

/// The dedup index of the vault, and the chunks of one cycle that are on their way into it.
pub(crate) struct Ledger {
    index: Arc<RwLock<DedupIndex>>,
    machine: MachineId,
    pending: Mutex<HashSet<ChunkId>>,
    /// Raised whenever chunks move from pending into the index.
    moves: AtomicU64,
    /// Of a gateway: the segments of the spool that the cycle refers to.
    pins: Option<Mutex<Pins>>,
}

impl Ledger {
    pub(crate) fn new(index: Arc<RwLock<DedupIndex>>, machine: MachineId, pins: Option<Pins>) -> Self {
        let pins = pins.map(Mutex::new);
        Self { index, machine, pending: Mutex::default(), moves: AtomicU64::new(0), pins }
    }

    /// Refers to a segment from here on; `false` where there is a spool that does not have it.
    fn pin(&self, id: SegmentId) -> bool {
        let Some(pins) = &self.pins else { return true };
        pins.lock().unwrap_or_else(PoisonError::into_inner).add(id)
    }

    pub(crate) fn machine(&self) -> MachineId {
        self.machine
    }

    fn read(&self) -> RwLockReadGuard<'_, DedupIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, DedupIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides who stores a chunk: exactly one asker is told `New`.
    pub(crate) fn claim(&self, id: ChunkId) -> Result<Claim> {
        loop {
            let moves = self.moves.load(Ordering::Acquire);
            if let Some(location) = self.find(id)? {
                return Ok(Claim::Known(location));
            }
            let mut pending = self.pending();
            if pending.contains(&id) {
                return Ok(Claim::Pending);
            }
            // It may have moved into the index between the two looks.
            if self.moves.load(Ordering::Acquire) == moves {
                pending.insert(id);
                return Ok(Claim::New);
            }
        }
    }

    /// Where a chunk is, once its object is stored.
    pub(crate) fn find(&self, id: ChunkId) -> Result<Option<Location>> {
        let (found, on_its_way) = {
            let index = self.read();
            let found = index.find(self.machine, id)?;
            let segment = found.and_then(|location| match location.source {
                Source::Segment(segment) => Some(segment),
                Source::Point(..) => None,
            });
            (found, segment.filter(|s| !index.is_in_store(*s)))
        };
        match on_its_way {
            // Not in the spool any more: it was uploaded, and is still found, or was dropped, and is not.
            Some(segment) if !self.pin(segment) => self.read().find(self.machine, id),
            _ => Ok(found),
        }
    }

    /// A segment is in the store, or in the spool: its chunks have places now.
    pub(crate) fn stored(&self, segment: &Segment, in_store: bool) -> Result<()> {
        self.pin(segment.id);
        {
            let mut index = self.write();
            index.add_segment(segment)?;
            if in_store {
                index.segment_stored(segment.id);
            }
        }
        let mut pending = self.pending();
        self.moves.fetch_add(1, Ordering::Release);
        segment.chunks.iter().for_each(|c| {
            pending.remove(&c.id);
        });
        Ok(())
    }

    /// Whether what a map says of a chunk can still be restored.
    pub(crate) fn is_stored(&self, location: &Location) -> bool {
        self.read().is_stored(self.machine, location)
    }

    /// Size of a stored segment.
    pub(crate) fn segment_size(&self, id: SegmentId) -> Result<u64> {
        let size = self.read().segment_size(id);
        size.ok_or_else(|| {
            Error::corrupt(format!("segment {id} is missing, and a map refers to it; run `landfall verify`"))
        })
    }

    /// Whether a segment can be referred to.
    pub(crate) fn has_segment(&self, id: SegmentId) -> bool {
        self.read().segment_size(id).is_some()
    }

    /// A point of the machine is committed, with these chunks inline.
    pub(crate) fn add_point(&self, timeline: Timeline, seq: Seq, chunks: &[ChunkRef]) -> Result<()> {
        self.write().add_point(self.machine, timeline, seq, chunks)
    }
}
