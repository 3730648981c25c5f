//! Which file systems are mounted from a disk: the ones that must be held still while it is read.
//!
//! From `/sys` (partitions, and what is stacked on them) and `/proc/self/mountinfo`, anew each time: mounts come and go.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// File systems that `FIFREEZE` can hold still. Others (FAT of an EFI partition) are left as they are.
const FREEZABLE: &[&str] =
    &["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2", "gfs2", "ocfs2", "reiserfs"];

/// A device by its numbers.
pub(crate) type Number = (u32, u32);

/// Mounted file systems of block devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mounts {
    /// What is frozen, in this order: the newest mount first, because it may stand on an older one.
    pub(crate) freezable: Vec<PathBuf>,
    /// What is mounted for writing and cannot be frozen.
    pub(crate) others: Vec<PathBuf>,
}

/// What is mounted for writing from these block devices, their partitions, and what is stacked on them. Each file system once.
pub(crate) fn on(devices: &[PathBuf]) -> Mounts {
    let mut numbers = BTreeSet::new();
    devices
        .iter()
        .filter_map(|path| number(path))
        .for_each(|device| add(Path::new("/sys/dev/block"), device, &mut numbers));
    if numbers.is_empty() {
        return Mounts::default();
    }
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    parse(&table, |mount| {
        numbers.contains(&mount.device) || number(&mount.source).is_some_and(|n| numbers.contains(&n))
    })
}

/// The numbers of a block device.
pub(crate) fn number(path: &Path) -> Option<Number> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())))
}

/// Adds a device, its partitions, and all that holds one of them.
fn add(sys: &Path, device: Number, found: &mut BTreeSet<Number>) {
    if !found.insert(device) {
        return;
    }
    let folder = sys.join(format!("{}:{}", device.0, device.1));
    let below = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let partitions = below(&folder).filter(|path| path.join("partition").exists());
    for other in partitions.chain(below(&folder.join("holders"))) {
        let text = fs::read_to_string(other.join("dev")).unwrap_or_default();
        if let Some(device) = parse_number(text.trim().as_bytes()) {
            add(sys, device, found);
        }
    }
}

/// Numbers as the kernel writes them: `8:1`.
pub(crate) fn parse_number(text: &[u8]) -> Option<Number> {
    let (major, minor) = str::from_utf8(text).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A line of the table.
struct Mount {
    device: Number,
    source: PathBuf,
}

/// The mounts of a table that are `wanted` (proc(5), "mountinfo").
fn parse(table: &[u8], wanted: impl Fn(&Mount) -> bool) -> Mounts {
    let (mut mounts, mut seen) = (Mounts::default(), BTreeSet::new());
    for line in table.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let Some(dash) = fields.iter().position(|f| *f == b"-") else { continue };
        let (Some(device), [kind, source, options, ..]) =
            (fields.get(2).and_then(|f| parse_number(f)), &fields[dash + 1..])
        else {
            continue;
        };
        let is_read_only = options.split(|b| *b == b',').any(|o| o == b"ro");
        let mount = Mount { device, source: unescaped(source) };
        if is_read_only || !wanted(&mount) || !seen.insert(device) {
            continue;
        }
        let at = unescaped(fields[4]);
        let freezable = FREEZABLE.iter().any(|known| known.as_bytes() == *kind);
        if freezable { mounts.freezable.push(at) } else { mounts.others.push(at) }
    }
    mounts.freezable.reverse();
    mounts
}

/// A field of the table: blanks and backslashes stand in octal.
pub(crate) fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3).and_then(|d| str::from_utf8(d).ok())).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether the file system at a mount point lies on this device itself, and not on a part of it.
pub(crate) fn is_directly_on(mount: &Path, device: &Path) -> bool {
    let of = fs::metadata(mount).ok().map(|meta| (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev())));
    of.is_some() && of == number(device)
}

/// Whether a path is a block device.
pub(crate) fn is_device(path: &Path) -> bool {
    number(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
23 22 0:20 / /proc rw - proc proc rw
30 22 254:2 / /boot/efi rw,relatime shared:1 - vfat /dev/vda2 rw
31 22 254:3 / /srv/my\\040data rw,relatime shared:2 master:1 - xfs /dev/vda3 rw
32 22 254:3 /sub /bind rw - xfs /dev/vda3 rw
33 22 254:4 / /archive rw - ext4 /dev/vda4 ro,errors=remount-ro
34 22 0:45 /@ /var rw - btrfs /dev/vda5 rw,space_cache
35 22 7:0 / /srv/my\\040data/image rw - ext4 /dev/loop0 rw
garbage
36 22 x:y / /no rw - ext4 /dev/none rw
";

    #[test]
    fn each_file_system_once_and_the_newest_first() {
        let disk =
            |mount: &Mount| mount.device.0 == 254 || mount.source.starts_with("/dev/vda5") || mount.device.0 == 7;
        let mounts = parse(TABLE.as_bytes(), disk);
        assert_eq!(mounts.freezable, ["/srv/my data/image", "/var", "/srv/my data", "/"].map(PathBuf::from));
        assert_eq!(mounts.others, [PathBuf::from("/boot/efi")], "what is read only needs nothing");
        assert_eq!(parse(b"", |_| true), Mounts::default());
        assert_eq!(parse(b"1 2 3\n - \n5 6 1:1 / /x rw -\n", |_| true), Mounts::default());
    }

    #[test]
    fn partitions_and_what_is_stacked_on_them_belong_to_a_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let sys = folder.path();
        let device = |numbers: &str, is_partition: bool| {
            let at = sys.join(numbers);
            fs::create_dir_all(at.join("holders")).expect("made");
            fs::write(at.join("dev"), format!("{numbers}\n")).expect("written");
            if is_partition {
                fs::write(at.join("partition"), "1\n").expect("written");
            }
            at
        };
        let (disk, part, dm, md) =
            (device("8:0", false), device("8:1", true), device("253:0", false), device("9:0", false));
        std::os::unix::fs::symlink(&part, disk.join("sda1")).expect("linked");
        std::os::unix::fs::symlink(&dm, part.join("holders/dm-0")).expect("linked");
        std::os::unix::fs::symlink(&md, dm.join("holders/md0")).expect("linked");
        let mut found = BTreeSet::new();
        add(sys, (8, 0), &mut found);
        assert_eq!(found, [(8, 0), (8, 1), (9, 0), (253, 0)].into());
        let mut found = BTreeSet::new();
        add(sys, (8, 1), &mut found);
        assert_eq!(found, [(8, 1), (9, 0), (253, 0)].into(), "not the disk that it is a part of");
    }
}
