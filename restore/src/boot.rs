//! What a machine reads when it boots: recorded in a test, and fetched ahead at the next boot.
//!
//! ```text
//!   test:       guest's reads --> Recording --> (up, and a while) --> boot profile in the vault
//!   next boot:  boot profile --> maps of the point that is booted --> requests, in the order in which they were read --> cache
//! ```
//! A profile names ranges, and nothing of what is in them: one that is old, damaged or forged fetches what nobody reads, within the bounds here, and no more.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use landfall_model::{BootProfile, DiskName, Extent, MachineName, Result, Timestamp};
use landfall_vault::Vault;

/// A profile of which so many hundredths are in the newest one is not kept again.
const KNOWN_PERCENT: u64 = 90;

/// What has been read since it began, in the order of the first reads.
pub(crate) struct Recording {
    disks: Vec<DiskName>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    seen: HashSet<(u16, u32)>,
    ranges: Vec<(u16, u32, u32)>,
}

impl Recording {
    /// Of a point's disks.
    pub(crate) fn new(disks: impl Iterator<Item = DiskName>) -> Self {
        Self { disks: disks.take(usize::from(u16::MAX)).collect(), inner: Mutex::default() }
    }

    /// A guest has read there.
    pub(crate) fn read(&self, disk: &DiskName, extent: Extent) {
        let Some(at) = self.disks.iter().position(|d| d == disk).and_then(|at| u16::try_from(at).ok()) else { return };
        let first = extent.start / BootProfile::BLOCK_BYTES;
        let end = extent.end().div_ceil(BootProfile::BLOCK_BYTES).min(first + BootProfile::BLOCKS_MAX);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { seen, ranges } = &mut *inner;
        for block in (first..end).filter_map(|block| u32::try_from(block).ok()) {
            if seen.len() as u64 >= BootProfile::BLOCKS_MAX || !seen.insert((at, block)) {
                continue;
            }
            let room = ranges.len() < BootProfile::RANGES_MAX;
            match ranges.last_mut() {
                Some((disk, start, blocks)) if *disk == at && start.checked_add(*blocks) == Some(block) => *blocks += 1,
                _ if room => ranges.push((at, block, 1)),
                _ => {}
            }
        }
    }

    /// As it is now; none where nothing was read.
    pub(crate) fn profile(&self, machine: &MachineName, recorded: Timestamp) -> Option<BootProfile> {
        let ranges = self.inner.lock().unwrap_or_else(PoisonError::into_inner).ranges.clone();
        let profile = BootProfile { machine: machine.clone(), recorded, disks: self.disks.clone(), ranges };
        (!profile.ranges.is_empty()).then_some(profile)
    }
}

/// The blocks of a profile.
fn blocks(profile: &BootProfile) -> HashSet<(&DiskName, u64)> {
    let each = |(disk, extent): (_, Extent)| {
        (extent.start / BootProfile::BLOCK_BYTES..extent.end() / BootProfile::BLOCK_BYTES).map(move |b| (disk, b))
    };
    profile.extents().flat_map(each).collect()
}

/// Whether one says about the same as another: most of what it names, and not twice as much.
fn is_known(new: &BootProfile, old: &BootProfile) -> bool {
    let (new, old) = (blocks(new), blocks(old));
    let both = new.intersection(&old).count() as u64;
    both * 100 >= new.len() as u64 * KNOWN_PERCENT && new.len() * 2 >= old.len()
}

/// Keeps a profile in the vault, unless the newest one says the same; what was done, for people.
///
/// # Errors
/// `Unavailable`.
pub(crate) async fn keep(vault: &Vault, profile: &BootProfile) -> Result<String> {
    let what = format!("{} MiB in {} runs", (profile.blocks() * BootProfile::BLOCK_BYTES) >> 20, profile.ranges.len());
    if let Some(newest) = vault.boot_profile(&profile.machine).await?
        && is_known(profile, &newest)
    {
        return Ok(format!("{what}: as recorded at {}", newest.recorded));
    }
    let kept = vault.keep_boot_profile(profile).await?;
    Ok(if kept { format!("{what}: kept for the next boot") } else { format!("{what}: another test kept its own") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DiskName {
        text.parse().expect("a name")
    }

    fn recorded(reads: &[(&str, u64, u64)]) -> Option<BootProfile> {
        let recording = Recording::new(["root", "data"].map(name).into_iter());
        reads.iter().for_each(|(disk, start, len)| recording.read(&name(disk), Extent { start: *start, len: *len }));
        recording.profile(&"web".parse().expect("a name"), Timestamp::from_millis(0))
    }

    #[test]
    fn what_is_read_is_recorded_once_in_order_and_in_runs() {
        assert_eq!(recorded(&[]), None);
        let block = BootProfile::BLOCK_BYTES;
        let reads = [
            ("data", 10 * block + 5, 1),
            ("root", 0, 4096),
            ("root", 100, 2 * block),
            ("root", 3 * block, block),
            ("data", 10 * block, block),
            ("other", 0, 1),
        ];
        let profile = recorded(&reads).expect("some");
        assert_eq!(profile.ranges, [(1, 10, 1), (0, 0, 4)]);
        assert!(profile.is_sound());
    }

    #[test]
    fn a_recording_stays_within_its_bounds() {
        let block = BootProfile::BLOCK_BYTES;
        let whole = recorded(&[("root", 0, 64 << 30), ("root", 0, u64::MAX >> 1)]).expect("some");
        assert_eq!(whole.blocks(), BootProfile::BLOCKS_MAX);
        let scattered: Vec<_> = (0..40_000).map(|n| ("root", 2 * n * block, 1)).collect();
        assert!(recorded(&scattered).expect("some").is_sound());
    }

    #[test]
    fn one_that_says_what_is_known_is_not_kept_again() {
        let block = BootProfile::BLOCK_BYTES;
        let of = |blocks: u64| recorded(&[("root", 0, blocks * block)]).expect("some");
        assert!(is_known(&of(100), &of(100)) && is_known(&of(100), &of(95)));
        assert!(!is_known(&of(100), &of(50)), "it knows more");
        assert!(!is_known(&of(40), &of(100)), "it needs far less");
    }
}
