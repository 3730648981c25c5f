//! What a machine reads of its disks when it boots, as a test of it has seen (FORMAT.md section 8).

use serde::{Deserialize, Serialize};

use crate::{DiskName, Extent, MachineName, Timestamp};

/// Body of a boot profile record: where the machine read, in the order in which it did first. It says nothing of what was there, so that it helps with any later point too.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BootProfile {
    /// The machine.
    pub machine: MachineName,
    /// When it was recorded.
    pub recorded: Timestamp,
    /// Disks that are spoken of.
    pub disks: Vec<DiskName>,
    /// Runs of blocks of [`BootProfile::BLOCK_BYTES`]: which of the disks, the first block, and how many.
    pub ranges: Vec<(u16, u32, u32)>,
}

impl BootProfile {
    /// Bytes of a block.
    pub const BLOCK_BYTES: u64 = 64 * 1024;
    /// Most runs of one.
    pub const RANGES_MAX: usize = 32 * 1024;
    /// Most blocks of one: 1 GiB.
    pub const BLOCKS_MAX: u64 = 16 * 1024;

    /// How many blocks it names.
    pub fn blocks(&self) -> u64 {
        self.ranges.iter().map(|(_, _, blocks)| u64::from(*blocks)).sum()
    }

    /// Whether it is within the bounds, and speaks of disks that it names.
    pub fn is_sound(&self) -> bool {
        let known = |(disk, _, _): &(u16, u32, u32)| usize::from(*disk) < self.disks.len();
        self.ranges.len() <= Self::RANGES_MAX && self.blocks() <= Self::BLOCKS_MAX && self.ranges.iter().all(known)
    }

    /// Its ranges, in order: the disk, and bytes of it.
    pub fn extents(&self) -> impl Iterator<Item = (&DiskName, Extent)> {
        self.ranges.iter().filter_map(|(disk, first, blocks)| {
            let start = u64::from(*first) * Self::BLOCK_BYTES;
            Some((self.disks.get(usize::from(*disk))?, Extent { start, len: u64::from(*blocks) * Self::BLOCK_BYTES }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(ranges: Vec<(u16, u32, u32)>) -> BootProfile {
        let disks = vec!["root".parse().expect("a name")];
        BootProfile { machine: "web".parse().expect("a name"), recorded: Timestamp::from_millis(0), disks, ranges }
    }

    #[test]
    fn one_that_is_too_large_or_speaks_of_what_it_does_not_name_is_not_sound() {
        assert!(profile(vec![(0, 7, 2), (0, 1, 1)]).is_sound());
        for ranges in [vec![(1, 0, 1)], vec![(0, 0, u32::MAX); 2], vec![(0, 0, 0); BootProfile::RANGES_MAX + 1]] {
            assert!(!profile(ranges).is_sound());
        }
        let both = profile(vec![(0, u32::MAX, 1)]);
        let (_, last) = both.extents().next().expect("one");
        assert_eq!(last.end(), 1 << 48, "no overflow");
    }

    #[test]
    fn it_is_written_as_the_format_says() {
        let text = serde_json::to_string(&profile(vec![(0, 7, 2)])).expect("encodes");
        let wanted = r#"{"machine":"web","recorded":"1970-01-01T00:00:00.000Z","disks":["root"],"ranges":[[0,7,2]]}"#;
        assert_eq!(text, wanted);
    }
}
