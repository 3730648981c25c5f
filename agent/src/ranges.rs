//! Which ranges of which disks changed: kept of each cycle until it is committed.

use std::collections::BTreeMap;

use landfall_model::{DiskName, Error, ErrorKind, Extent, ExtentSet, Result};

/// Runs that may be added between two looks at the bound.
const UNCHECKED_MAX: usize = 16 * 1024;

/// All of a disk, whatever its size.
pub(crate) const ALL: Extent = Extent { start: 0, len: u64::MAX };

/// Ranges of disks. May say more than changed, never less.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ranges {
    disks: BTreeMap<DiskName, ExtentSet>,
}

impl Ranges {
    /// Adds a range of a disk.
    pub(crate) fn insert(&mut self, disk: &DiskName, extent: Extent) {
        match self.disks.get_mut(disk) {
            Some(set) => set.insert(extent),
            None => {
                self.disks.insert(disk.clone(), std::iter::once(extent).collect());
            }
        }
    }

    /// Adds all ranges of another set.
    pub(crate) fn add(&mut self, other: &Self) {
        for (disk, set) in &other.disks {
            set.iter().for_each(|extent| self.insert(disk, extent));
        }
    }

    /// The ranges of a disk.
    pub(crate) fn of(&self, disk: &DiskName) -> Option<&ExtentSet> {
        self.disks.get(disk)
    }

    /// A disk has come, or has gone: all of it, whatever its size.
    pub(crate) fn has_all_of(&self, disk: &DiskName) -> bool {
        self.of(disk).is_some_and(|set| set.iter().next() == Some(ALL))
    }

    /// Number of runs.
    pub(crate) fn count(&self) -> usize {
        self.disks.values().map(|set| set.iter().count()).sum()
    }

    /// Makes no more than `runs_max` runs of it, or one for each disk, by rounding to larger and larger blocks.
    pub(crate) fn bound(&mut self, runs_max: usize) {
        let mut grain = 2 * crate::fingerprints::BLOCK_BYTES;
        while self.count() > runs_max.max(self.disks.len()) {
            let round = |e: Extent| {
                let end = e.end().checked_next_multiple_of(grain).unwrap_or(u64::MAX);
                Extent::between(e.start - e.start % grain, end)
            };
            for set in self.disks.values_mut() {
                *set = set.iter().map(round).collect();
            }
            grain = grain.saturating_mul(2);
        }
    }

    /// As they stand in a file.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let runs = |set: &ExtentSet| set.iter().map(|e| (e.start, e.end())).collect::<Vec<_>>();
        let disks: BTreeMap<&DiskName, Vec<(u64, u64)>> = self.disks.iter().map(|(d, set)| (d, runs(set))).collect();
        serde_json::to_vec(&disks).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode ranges", e))
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let disks: BTreeMap<DiskName, Vec<(u64, u64)>> =
            serde_json::from_slice(bytes).map_err(|e| Error::with_source(ErrorKind::Corrupt, "damaged ranges", e))?;
        let set = |runs: Vec<(u64, u64)>| runs.into_iter().map(|(start, end)| Extent::between(start, end)).collect();
        Ok(Self { disks: disks.into_iter().map(|(disk, runs)| (disk, set(runs))).collect() })
    }
}

/// Collects ranges without ever holding many more than a bound.
pub(crate) struct RangesBuilder {
    ranges: Ranges,
    runs_max: usize,
    unchecked: usize,
}

impl RangesBuilder {
    /// At most so many runs.
    pub(crate) fn new(runs_max: usize) -> Self {
        Self { ranges: Ranges::default(), runs_max, unchecked: 0 }
    }

    /// Adds a range of a disk.
    pub(crate) fn insert(&mut self, disk: &DiskName, extent: Extent) {
        self.ranges.insert(disk, extent);
        self.unchecked += 1;
        if self.unchecked >= UNCHECKED_MAX {
            self.ranges.bound(self.runs_max);
            self.unchecked = 0;
        }
    }

    /// What was collected.
    pub(crate) fn finish(mut self) -> Ranges {
        self.ranges.bound(self.runs_max);
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprints::BLOCK_BYTES;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bounded_ranges_cover_all_that_was_added(
            runs in prop::collection::vec((0usize..3, 0u64..4000, 1u64..4), 1..300), runs_max in 1usize..40,
        ) {
            let names: Vec<DiskName> = ["a", "b", "c"].iter().map(|n| n.parse().expect("a name")).collect();
            let mut builder = RangesBuilder::new(runs_max);
            for (disk, block, blocks) in &runs {
                builder.insert(&names[*disk], Extent { start: block * BLOCK_BYTES, len: blocks * BLOCK_BYTES });
            }
            builder.insert(&names[0], Extent::between(5000 * BLOCK_BYTES, u64::MAX));
            let ranges = builder.finish();
            prop_assert!(ranges.count() <= runs_max.max(3));
            for (disk, block, blocks) in runs {
                let set = ranges.of(&names[disk]).expect("the disk");
                let covered = |b| set.intersects(&Extent { start: b * BLOCK_BYTES, len: 1 });
                prop_assert!((block..block + blocks).all(covered));
            }
            let last = Extent { start: u64::MAX - 1, len: 1 };
            prop_assert!(ranges.of(&names[0]).expect("the disk").intersects(&last));
            let bytes = ranges.encode().expect("encoded");
            prop_assert_eq!(Ranges::decode(&bytes).expect("decoded"), ranges);
        }
    }
}
