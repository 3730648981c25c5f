//! What of a disk is not worth sending: swap that is in use, where the configuration says so (ADR 0021).
//!
//! ```text
//! swap partition | first 64 KiB: signature, UUID, label | zeroes ............................ | less than a block |
//! swap file      | the same                             | zeroes, extent by extent of the file                    |
//! ```
//! What the kernel says at this moment is believed, and only together with the signature on the disk: a swap that is not in use is read like
//! anything else. Its places are whole blocks, so that what is beside them is sent as it is.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use landfall_disk::{RawReader, places_on_device};
use landfall_model::num::to_usize;
use landfall_model::{BlockSet, Extent};

use crate::fingerprints::BLOCK_BYTES;
use crate::mounts::{Number, number, parse_number, unescaped};

const SECTOR_BYTES: u64 = 512;
/// What is at the end of the first page.
const SIGNATURE: &[u8] = b"SWAPSPACE2";
/// Pages of the processors that Linux runs on.
const PAGES: [usize; 4] = [4096, 8192, 16384, 65536];
/// Bits of a set are at most this many bytes: blocks grow with the disk.
const SET_BYTES_MAX: u64 = 4 << 20;
/// File systems whose FIEMAP gives bytes of their one device.
const ONE_DEVICE: &[&str] = &["ext2", "ext3", "ext4", "xfs"];

/// Of a disk that is copied nothing is left out: why.
pub(crate) const OF_COPIES: &str = "its swap is sent: a snapshot is read as it is";

/// What is left out of points.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Skip {
    /// Swap that is in use.
    pub(crate) swap: bool,
}

impl Skip {
    /// As the configuration says; warns where that is of no effect.
    pub(crate) fn new(swap: bool) -> Self {
        if let Err(error) = fs::read("/proc/swaps")
            && swap
        {
            tracing::warn!(%error, "swap is sent like anything else: /proc/swaps cannot be read (a unit with ProcSubset=pid hides it)");
        }
        Self { swap }
    }

    /// Why nothing can be skipped, where something is to be.
    pub(crate) fn hindered(self) -> Option<String> {
        let error = fs::read("/proc/swaps").err().filter(|_| self.swap)?;
        Some(format!("swap is sent: /proc/swaps cannot be read ({error})"))
    }

    /// The blocks of a disk that are not read now; none where that is nothing.
    pub(crate) fn of(self, disk: &Path, reader: &RawReader) -> Option<BlockSet> {
        let of_disk = number(disk).filter(|_| self.swap)?;
        let swaps = active();
        let mut places = Vec::new();
        for swap in &swaps {
            let found = swap.places(of_disk).filter(|places| has_signature(reader, places));
            places.extend(found.into_iter().flatten().map(|place| (swap, place)));
        }
        // What ended while it was looked at is not swap.
        let still = active();
        let mut set = BlockSet::new(reader.size(), block_bytes(reader.size()));
        for (_, place) in places.into_iter().filter(|(swap, _)| still.contains(swap)) {
            within(&set, place).into_iter().for_each(|run| set.insert(run));
        }
        (!set.is_empty()).then_some(set)
    }
}

/// Bytes of a block of a set for a disk of this size.
fn block_bytes(size: u64) -> u64 {
    size.div_ceil(8 * SET_BYTES_MAX).max(BLOCK_BYTES).checked_next_power_of_two().unwrap_or(1 << 63)
}

/// The whole blocks that lie in a place.
fn within(set: &BlockSet, place: Extent) -> Option<Extent> {
    let block = set.block_size();
    let start = place.start.checked_next_multiple_of(block)?;
    let end = place.end().min(set.disk_size());
    Some(Extent::between(start, end - end % block)).filter(|run| run.len > 0)
}

/// A swap that is in use.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Swap {
    path: PathBuf,
    is_file: bool,
}

impl Swap {
    /// Where it is on a disk, without its first 64 KiB; the place of its first byte comes first, with no length where that is all. None where it is elsewhere, or that
    /// is not known.
    fn places(&self, disk: Number) -> Option<Vec<Extent>> {
        let mut places = if self.is_file {
            let file = File::open(&self.path).ok()?;
            let device = file.metadata().ok()?.dev();
            let device = (rustix::fs::major(device), rustix::fs::minor(device));
            let place = place_of(Path::new("/sys/dev/block"), device, disk)?;
            let is_known = is_on_one_device(&fs::read("/proc/self/mountinfo").ok()?, device);
            let places = places_on_device(&file).filter(|_| is_known)?;
            let moved = places.into_iter().map(|p| {
                let start = place.start.checked_add(p.start)?;
                (p.end() <= place.len).then_some(Extent { start, len: p.len })
            });
            moved.collect::<Option<Vec<Extent>>>()?
        } else {
            vec![place_of(Path::new("/sys/dev/block"), number(&self.path)?, disk)?]
        };
        let first = places.first_mut()?;
        let head = first.len.min(BLOCK_BYTES);
        let rest = Extent { start: first.start + head, len: first.len - head };
        *first = Extent { start: first.start, len: 0 };
        places.insert(1, rest);
        Some(places)
    }
}

/// What `/proc/swaps` says (proc(5)).
fn active() -> Vec<Swap> {
    parse(&fs::read("/proc/swaps").unwrap_or_default())
}

fn parse(table: &[u8]) -> Vec<Swap> {
    let swap = |line: &[u8]| {
        let mut fields = line.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
        let (path, kind) = (unescaped(fields.next()?), fields.next()?);
        let is_file = kind == b"file";
        // A file that was removed is found at no path.
        (path.is_absolute() && (is_file || kind == b"partition")).then_some(Swap { path, is_file })
    };
    table.split(|b| *b == b'\n').filter_map(swap).collect()
}

/// Where a device is on a disk that it is, or is a partition of.
fn place_of(sys: &Path, device: Number, disk: Number) -> Option<Extent> {
    let folder = sys.join(format!("{}:{}", device.0, device.1));
    let text = |path: PathBuf| fs::read_to_string(path).ok();
    let sectors = |name: &str| text(folder.join(name))?.trim().parse::<u64>().ok()?.checked_mul(SECTOR_BYTES);
    let len = sectors("size")?;
    if device == disk {
        return Some(Extent { start: 0, len });
    }
    folder.join("partition").exists().then_some(())?;
    let parent = text(fs::canonicalize(&folder).ok()?.parent()?.join("dev"))?;
    (parse_number(parent.trim().as_bytes())? == disk).then_some(Extent { start: sectors("start")?, len })
}

/// Whether all that is mounted of a device is of a kind that says where on this device its files are.
fn is_on_one_device(table: &[u8], device: Number) -> bool {
    let mut kinds = table.split(|b| *b == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        (parse_number(fields.get(2)?)? == device)
            .then(|| (fields.get(dash + 1).copied(), fields.get(dash + 3).copied()))
    });
    let is_plain = |(kind, options): (Option<&[u8]>, Option<&[u8]>)| {
        let known = kind.is_some_and(|kind| ONE_DEVICE.iter().any(|known| known.as_bytes() == kind));
        // A file of XFS may lie on its realtime device.
        known && options.is_some_and(|all| !all.split(|b| *b == b',').any(|option| option.starts_with(b"rtdev=")))
    };
    kinds.next().is_some_and(is_plain) && kinds.all(is_plain)
}

/// Whether the first of the places begins as a swap.
fn has_signature(reader: &RawReader, places: &[Extent]) -> bool {
    let Some(first) = places.first() else { return false };
    let len = reader.size().saturating_sub(first.start).min(BLOCK_BYTES);
    let mut head = vec![0; to_usize(len)];
    reader.read_exact_at(&mut head, first.start).is_ok()
        && PAGES.iter().any(|page| head.get(page - SIGNATURE.len()..*page) == Some(SIGNATURE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swaps_are_what_the_kernel_says_and_one_that_was_removed_is_at_no_path() {
        let table = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /dev/vda2                               partition\t65532\t\t0\t\t-2\n\
            /srv/my\\040swap                          file\t\t20464\t\t0\t\t-3\n\
            /gone\\040(deleted) file 1 0 -4\n/odd other 1 0 -5\ngarbage\n";
        let swap = |path: &str, is_file| Swap { path: path.into(), is_file };
        let wanted = [swap("/dev/vda2", false), swap("/srv/my swap", true), swap("/gone (deleted)", true)];
        assert_eq!(parse(table), wanted);
        assert_eq!(parse(b""), []);
    }

    #[test]
    fn only_whole_blocks_are_skipped() {
        let set = BlockSet::new(10 * BLOCK_BYTES + 5, BLOCK_BYTES);
        let place = |start, end| within(&set, Extent::between(start, end));
        assert_eq!(place(1, 3 * BLOCK_BYTES + 7), Some(Extent::between(BLOCK_BYTES, 3 * BLOCK_BYTES)));
        assert_eq!(place(1, 2 * BLOCK_BYTES - 1), None);
        assert_eq!(place(9 * BLOCK_BYTES, u64::MAX), Some(Extent::between(9 * BLOCK_BYTES, 10 * BLOCK_BYTES)));
        for size in [1, 1 << 41, 1 << 46, u64::MAX] {
            let block = block_bytes(size);
            assert!(block.is_multiple_of(BLOCK_BYTES) && size.div_ceil(block) <= 8 * SET_BYTES_MAX, "{size}");
        }
    }

    #[test]
    fn a_partition_has_a_place_on_its_own_disk_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let (disk, sys) = (folder.path().join("sda"), folder.path().join("block"));
        fs::create_dir_all(disk.join("sda1")).expect("made");
        fs::create_dir(&sys).expect("made");
        let write = |path: &str, text: &str| fs::write(disk.join(path), text).expect("written");
        write("dev", "8:0\n");
        write("size", "1000\n");
        for (name, text) in [("dev", "8:1\n"), ("size", "100\n"), ("start", "64\n"), ("partition", "1\n")] {
            write(&format!("sda1/{name}"), text);
        }
        std::os::unix::fs::symlink(&disk, sys.join("8:0")).expect("linked");
        std::os::unix::fs::symlink(disk.join("sda1"), sys.join("8:1")).expect("linked");
        assert_eq!(place_of(&sys, (8, 1), (8, 0)), Some(Extent { start: 64 * 512, len: 100 * 512 }));
        assert_eq!(place_of(&sys, (8, 1), (8, 1)), Some(Extent { start: 0, len: 100 * 512 }));
        assert_eq!(place_of(&sys, (8, 1), (8, 16)), None);
        assert_eq!(place_of(&sys, (8, 0), (8, 1)), None, "a disk is not on its partition");
    }

    #[test]
    fn only_file_systems_of_one_device_say_where_a_swap_file_is() {
        let line = |kind: &str, options: &str| format!("31 22 8:1 / /srv rw shared:2 - {kind} /dev/sda1 {options}\n");
        let known = |table: String| is_on_one_device(table.as_bytes(), (8, 1));
        assert!(known(line("ext4", "rw")) && known(line("xfs", "rw,attr2")));
        assert!(!known(line("btrfs", "rw")) && !known(line("xfs", "rw,rtdev=/dev/sdb")) && !known(String::new()));
        assert!(!known(line("ext4", "rw") + &line("f2fs", "rw")));
    }
}
