//! Runs of a disk that are read together: several at once, into one buffer.
//!
//! Small runs that lie apart cost a disk a seek each, or a device its latency; who waits for one after the other reads slower than a busy
//! host writes.

use landfall_model::num::to_usize;
use landfall_model::{Extent, Result};

use crate::image::{DiskReader, READ_BYTES};

/// Threads that read at once: more would take what the host's own reads need.
const READERS: usize = 4;
/// A thread is begun for so many runs at least.
const RUNS_PER_READER_MIN: usize = 4;
/// Most runs of one batch: each at least 4 KiB where none is the end of a disk.
const RUNS_MAX: usize = to_usize(READ_BYTES) / 4096;

/// Runs that are to be read: ascending, apart or touching, at most [`READ_BYTES`].
#[derive(Debug, Default)]
pub(crate) struct Batch {
    runs: Vec<Extent>,
    bytes: u64,
}

impl Batch {
    /// Whether a run of this length finds no room.
    pub(crate) fn is_full_for(&self, len: u64) -> bool {
        self.bytes + len > READ_BYTES || self.runs.len() >= RUNS_MAX
    }

    /// Adds a run.
    pub(crate) fn push(&mut self, run: Extent) {
        self.bytes += run.len;
        self.runs.push(run);
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> usize {
        to_usize(self.bytes)
    }

    /// The runs; it is empty then.
    pub(crate) fn take(&mut self) -> Vec<Extent> {
        self.bytes = 0;
        std::mem::take(&mut self.runs)
    }

    /// Reads the runs one behind the other into a buffer that is as long as all of them.
    ///
    /// # Errors
    /// What the disk says first.
    pub(crate) fn read(&self, reader: &DiskReader, mut buffer: &mut [u8]) -> Result<()> {
        let mut places = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let (place, rest) = buffer.split_at_mut(to_usize(run.len));
            places.push((run.start, place));
            buffer = rest;
        }
        let read = |places: &mut [(u64, &mut [u8])]| {
            places.iter_mut().try_for_each(|(start, place)| reader.read_exact_at(place, *start))
        };
        let share = places.len().div_ceil(READERS).max(RUNS_PER_READER_MIN);
        let first = share.min(places.len());
        let (own, others) = places.split_at_mut(first);
        std::thread::scope(|scope| {
            let others: Vec<_> = others.chunks_mut(share).map(|part| scope.spawn(move || read(part))).collect();
            let first = read(own);
            let died = || crate::image::stopped();
            others.into_iter().fold(first, |so_far, other| so_far.and(other.join().unwrap_or_else(|_| Err(died()))))
        })
    }
}
