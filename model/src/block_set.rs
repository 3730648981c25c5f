//! Sets of blocks of a disk: a bit for each.

use crate::extent::Extent;
use crate::num::to_usize;

const WORD_BITS: u64 = 64;

/// A set of blocks of one size, of a disk of one size; the last block may be short.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockSet {
    disk_size: u64,
    block_size: u64,
    words: Vec<u64>,
}

impl BlockSet {
    /// The empty set for a disk of `disk_size` bytes in blocks of `block_size` bytes (0 is taken for 1).
    pub fn new(disk_size: u64, block_size: u64) -> Self {
        let block_size = block_size.max(1);
        let words = disk_size.div_ceil(block_size).div_ceil(WORD_BITS);
        Self { disk_size, block_size, words: vec![0; to_usize(words)] }
    }

    /// Bytes of the disk.
    pub const fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// Bytes of a block.
    pub const fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Adds each block that a run touches; what lies behind the end of the disk is left out.
    pub fn insert(&mut self, extent: Extent) {
        let end = extent.end().min(self.disk_size);
        if extent.start >= end {
            return;
        }
        let (first, last) = (extent.start / self.block_size, (end - 1) / self.block_size);
        for word in first / WORD_BITS..=last / WORD_BITS {
            let from = first.max(word * WORD_BITS) % WORD_BITS;
            let to = last.min(word * WORD_BITS + WORD_BITS - 1) % WORD_BITS;
            self.words[to_usize(word)] |= (u64::MAX << from) & (u64::MAX >> (WORD_BITS - 1 - to));
        }
    }

    /// Adds 64 blocks as bits, the lowest first: `word` 0 is of the first 64 blocks of the disk. Bits behind the end are left out.
    pub fn insert_word(&mut self, word: usize, bits: u64) {
        let blocks = self.disk_size.div_ceil(self.block_size);
        let left = blocks.saturating_sub(word as u64 * WORD_BITS);
        let mask = if left >= WORD_BITS { u64::MAX } else { (1 << left) - 1 };
        if let Some(held) = self.words.get_mut(word) {
            *held |= bits & mask;
        }
    }

    /// Adds all blocks that those of another set touch.
    pub fn union(&mut self, other: &Self) {
        if (self.disk_size, self.block_size) == (other.disk_size, other.block_size) {
            self.words.iter_mut().zip(&other.words).for_each(|(held, more)| *held |= more);
        } else {
            other.runs().for_each(|run| self.insert(run));
        }
    }

    /// Whether any byte of a run lies in one of the blocks.
    pub fn intersects(&self, extent: &Extent) -> bool {
        let end = extent.end().min(self.disk_size);
        extent.start < end && self.next_from(extent.start / self.block_size).is_some_and(|b| b * self.block_size < end)
    }

    /// The first block of the set from this one on.
    fn next_from(&self, block: u64) -> Option<u64> {
        self.next_where(block, |word| word)
    }

    /// The first block from this one on whose bit is set in what `look` makes of its word.
    fn next_where(&self, block: u64, look: impl Fn(u64) -> u64) -> Option<u64> {
        let first = to_usize(block / WORD_BITS);
        let mut mask = u64::MAX << (block % WORD_BITS);
        for (at, word) in self.words.iter().enumerate().skip(first) {
            let bits = look(*word) & mask;
            if bits != 0 {
                return Some(at as u64 * WORD_BITS + u64::from(bits.trailing_zeros()));
            }
            mask = u64::MAX;
        }
        None
    }

    /// The blocks as maximal runs of bytes, ascending; the last ends at the end of the disk at most.
    pub fn runs(&self) -> impl Iterator<Item = Extent> + '_ {
        self.runs_within(Extent::between(0, self.disk_size))
    }

    /// The runs as far as they lie within `within`.
    pub fn runs_within(&self, within: Extent) -> impl Iterator<Item = Extent> + '_ {
        let mut from = within.start / self.block_size;
        let end = within.end().min(self.disk_size);
        let end = if within.start < end { end } else { 0 };
        std::iter::from_fn(move || {
            let first = self.next_from(from).filter(|first| first * self.block_size < end)?;
            from = self.next_where(first, |word| !word).unwrap_or(self.words.len() as u64 * WORD_BITS);
            Some(Extent::between((first * self.block_size).max(within.start), (from * self.block_size).min(end)))
        })
    }

    /// Number of bytes in the set.
    pub fn len(&self) -> u64 {
        self.runs().map(|run| run.len).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExtentSet;
    use proptest::prelude::*;

    #[test]
    fn bits_behind_the_end_are_none() {
        let mut set = BlockSet::new(70 * 10 - 3, 10);
        set.insert_word(1, u64::MAX);
        set.insert_word(7, u64::MAX);
        assert_eq!(set.runs().collect::<Vec<_>>(), [Extent::between(640, 697)]);
        assert_eq!(set.len(), 57);
        set.insert(Extent::between(690, 10_000));
        set.insert(Extent::between(697, 698));
        assert_eq!(set.len(), 57);
        assert!(!BlockSet::new(0, 10).intersects(&Extent::between(0, 10)));
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_blocks_that_the_runs_touch(
            size in 0_u64..5000,
            block in 1_u64..40,
            runs in prop::collection::vec((0_u64..6000, 0_u64..900), 0..12),
            probes in prop::collection::vec((0_u64..6000, 0_u64..100), 1..20),
        ) {
            let (mut set, mut wanted) = (BlockSet::new(size, block), ExtentSet::default());
            for (start, len) in runs {
                let run = Extent { start, len };
                set.insert(run);
                if let Some(run) = run.intersection(&Extent::between(0, size)) {
                    let end = run.end().next_multiple_of(block).min(size);
                    wanted.insert(Extent::between(run.start - run.start % block, end));
                }
            }
            prop_assert_eq!(set.runs().collect::<Vec<_>>(), wanted.iter().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), wanted.len());
            prop_assert_eq!(set.is_empty(), wanted.is_empty());
            for (start, len) in probes {
                let probe = Extent { start, len };
                prop_assert_eq!(set.intersects(&probe), wanted.intersects(&probe));
                let parts: Vec<Extent> = wanted.iter().filter_map(|run| run.intersection(&probe)).collect();
                prop_assert_eq!(set.runs_within(probe).collect::<Vec<_>>(), parts);
            }
            let mut other = BlockSet::new(size, block + 1);
            other.union(&set);
            prop_assert!(wanted.iter().all(|run| other.intersects(&run)));
            let mut same = BlockSet::new(size, block);
            same.union(&set);
            prop_assert_eq!(same, set);
        }
    }
}
