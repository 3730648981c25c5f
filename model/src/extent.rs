//! Runs of bytes on a disk, and sets of them.

use std::collections::BTreeMap;

/// A run of bytes: `start .. start + len`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Extent {
    /// The run from `start` up to, without, `end`; empty when they are the wrong way round.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, len: end.saturating_sub(start) }
    }

    /// The byte after the last; saturates at the end of the number range.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// What both have in common, if anything.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let both = Self::between(self.start.max(other.start), self.end().min(other.end()));
        (both.len > 0).then_some(both)
    }
}

/// A set of bytes of a disk, kept as maximal runs: touching and overlapping runs are one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExtentSet {
    ends_by_start: BTreeMap<u64, u64>,
}

impl ExtentSet {
    /// Adds a run.
    pub fn insert(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        let (mut start, mut end) = (extent.start, extent.end());
        let touching: Vec<u64> =
            self.ends_by_start.range(..=end).rev().take_while(|&(_, &e)| e >= start).map(|(&s, _)| s).collect();
        for s in touching {
            if let Some(e) = self.ends_by_start.remove(&s) {
                start = start.min(s);
                end = end.max(e);
            }
        }
        self.ends_by_start.insert(start, end);
    }

    /// The runs, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Extent> {
        self.ends_by_start.iter().map(|(&start, &end)| Extent::between(start, end))
    }

    /// Whether any byte of a run is in the set.
    pub fn intersects(&self, extent: &Extent) -> bool {
        extent.len > 0
            && self.ends_by_start.range(..extent.end()).next_back().is_some_and(|(_, &end)| end > extent.start)
    }

    /// Number of bytes in the set.
    pub fn len(&self) -> u64 {
        self.iter().map(|e| e.len).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.ends_by_start.is_empty()
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::default();
        extents.into_iter().for_each(|e| set.insert(e));
        set
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_of_extents_is_the_set_of_its_bytes(runs in prop::collection::vec((0u64..200, 0u64..40), 0..30)) {
            let set: ExtentSet = runs.iter().map(|&(start, len)| Extent { start, len }).collect();
            let mut oracle = [false; 240];
            for (start, len) in runs {
                (start..start + len).for_each(|b| oracle[b as usize] = true);
            }
            let mut bytes = [false; 240];
            let mut last_end = None;
            for extent in set.iter() {
                prop_assert!(last_end.is_none_or(|end| end < extent.start), "runs are maximal and ascending");
                last_end = Some(extent.end());
                (extent.start..extent.end()).for_each(|b| bytes[b as usize] = true);
            }
            prop_assert_eq!(bytes, oracle);
            for (start, len) in [(0, 240), (17, 1), (100, 30), (5, 0)] {
                let any = oracle[start..start + len].contains(&true);
                prop_assert_eq!(set.intersects(&Extent { start: start as u64, len: len as u64 }), any);
            }
            prop_assert_eq!(set.len(), oracle.iter().filter(|b| **b).count() as u64);
        }
    }
}
