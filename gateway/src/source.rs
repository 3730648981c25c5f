//! Where capture reads: a disk of this host, or bytes that an agent sent.

use std::sync::Arc;

use bytes::Bytes;
use landfall_disk::RawReader;
use landfall_model::num::to_usize;
use landfall_model::{Error, ErrorKind, Extent, RegionMap, Result};

/// Bytes of a disk as they were at the cut.
pub(crate) trait DiskBytes: Send + Sync {
    /// Runs of `within` that may hold data, ascending; the bytes between them are zeroes.
    ///
    /// # Errors
    /// `Io`.
    fn data_extents(&self, within: Extent) -> Result<Vec<Extent>>;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `Unavailable` where they cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;
}

impl DiskBytes for RawReader {
    fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        Ok(Self::data_extents(self, within)?)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(Self::read_exact_at(self, buffer, offset)?)
    }
}

/// A part of a region to capture. A region may come in several, ascending.
pub(crate) struct Task {
    pub(crate) disk: usize,
    pub(crate) region: u32,
    /// What the newest point says of the region. None: all of the part is taken as changed.
    pub(crate) old: Option<Arc<RegionMap>>,
    /// Which bytes of the region, ascending and apart.
    pub(crate) parts: Vec<Extent>,
    /// The number of this part, and whether it is the last of its region.
    pub(crate) number: u32,
    pub(crate) last: bool,
    pub(crate) bytes: Arc<dyn DiskBytes>,
}

/// Runs of one disk that arrived, held in memory: where there are none, zeroes.
#[derive(Default)]
pub(crate) struct Batch {
    runs: Vec<(u64, Bytes)>,
    len: usize,
}

impl Batch {
    /// Adds a run behind the others.
    pub(crate) fn push(&mut self, start: u64, bytes: Bytes) {
        self.len += bytes.len();
        self.runs.push((start, bytes));
    }

    /// Bytes that it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes off what lies at and behind `at`.
    pub(crate) fn split_off(&mut self, at: u64) -> Self {
        let mut rest = Self::default();
        let first = self.runs.partition_point(|(start, bytes)| start + bytes.len() as u64 <= at);
        for (start, mut bytes) in self.runs.split_off(first) {
            if start < at {
                let head = bytes.split_to(to_usize(at - start));
                self.runs.push((start, head));
                rest.push(at, bytes);
            } else {
                rest.push(start, bytes);
            }
        }
        self.len -= rest.len;
        rest
    }

    fn overlapping(&self, within: Extent) -> impl Iterator<Item = (Extent, &Bytes)> {
        let first = self.runs.partition_point(|(start, bytes)| start + bytes.len() as u64 <= within.start);
        let runs =
            self.runs[first..].iter().map(|(start, bytes)| (Extent { start: *start, len: bytes.len() as u64 }, bytes));
        runs.take_while(move |(run, _)| run.start < within.end())
    }
}

impl DiskBytes for Batch {
    fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        Ok(self.overlapping(within).filter_map(|(run, _)| run.intersection(&within)).collect())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let wanted = Extent { start: offset, len: buffer.len() as u64 };
        let mut filled = 0;
        for (run, bytes) in self.overlapping(wanted) {
            let Some(both) = run.intersection(&wanted) else { continue };
            let (from, to) = (to_usize(both.start - run.start), to_usize(both.end() - run.start));
            let at = to_usize(both.start - offset);
            buffer[at..at + (to - from)].copy_from_slice(&bytes[from..to]);
            filled += to - from;
        }
        if filled == buffer.len() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Bug, "bytes were read that did not arrive"))
        }
    }
}
