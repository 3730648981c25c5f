//! Block devices and full file systems: need root, and skip loudly without.

use std::path::{Path, PathBuf};

use landfall_disk::{DiskErrorKind, Existing, Format, RawReader, Reason, Target};
use landfall_model::Extent;
use tempfile::{TempDir, tempdir};

use crate::{judge, pattern};

const MIB: u64 = 1 << 20;

/// A loop device, detached when dropped.
struct Loop {
    path: PathBuf,
    folder: TempDir,
}

impl Loop {
    fn new(bytes: u64, sector_bytes: &str) -> Option<Self> {
        let folder = tempdir().expect("temporary folder");
        let backing = folder.path().join("backing");
        let file = std::fs::File::create(&backing).expect("created");
        file.set_len(bytes).expect("sized");
        let args = ["--find", "--show", "--sector-size", sector_bytes, judge::text(&backing)];
        let Some(output) = judge::run("losetup", &args).filter(|o| o.status.success()) else {
            eprintln!("SKIPPED: no loop devices here");
            return None;
        };
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Some(Self { path, folder })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        judge::run("losetup", &["--detach", judge::text(&self.path)]);
    }
}

/// A mounted file system, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(args: &[&str], at: &Path) -> Option<Self> {
        let Some(_) = judge::run("mount", args).filter(|o| o.status.success()) else {
            eprintln!("SKIPPED: mounting is not allowed here");
            return None;
        };
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        judge::run("umount", &[judge::text(&self.0)]);
    }
}

#[test]
fn a_device_is_written_in_place_compared_and_read_back() {
    for sector_bytes in ["512", "4096"] {
        let Some(device) = Loop::new(4 * MIB, sector_bytes) else { return };
        let size = 3 * MIB + 4096 + 512 * u64::from(sector_bytes == "512");
        let mut bytes = pattern(size as usize, 7);
        let target = Target::create_or_open(&device.path, Format::Raw, size, Existing::Overwrite).unwrap();
        assert!(!target.is_fresh(), "there may be anything on a device");
        target.write_at(&bytes, 0).unwrap();
        target.finish().unwrap();

        let target = Target::create_or_open(&device.path, Format::Raw, size, Existing::Compare).unwrap();
        let zero = Extent { start: 10_000, len: 2 * MIB };
        assert_eq!(target.write_zeroes(zero).unwrap(), zero.len);
        bytes[zero.start as usize..zero.end() as usize].fill(0);
        let mut read = vec![1; bytes.len()];
        target.read_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        target.finish().unwrap();

        let reader = RawReader::open(&device.path).unwrap();
        assert_eq!((reader.size(), reader.sector_size().to_string().as_str()), (4 * MIB, sector_bytes));
        assert!(reader.identity().starts_with("device-7:"), "{}", reader.identity());
        let whole = Extent { start: 0, len: 4 * MIB };
        assert_eq!(reader.data_extents(whole).unwrap(), [whole]);
        reader.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        assert_eq!(std::fs::read_dir(device.folder.path()).unwrap().count(), 1);
        assert!(!Path::new(&format!("{}.landfall-incomplete", device.path.display())).exists());
        assert_eq!(Target::available_bytes(&device.path).unwrap(), u64::MAX);
    }
}

#[test]
fn a_device_that_is_too_small_refused_or_in_another_format_is_not_touched() {
    let Some(device) = Loop::new(MIB, "512") else { return };
    let open = |format, size, existing| Target::create_or_open(&device.path, format, size, existing).unwrap_err();
    let e = open(Format::Raw, MIB + 1, Existing::Compare);
    assert_eq!(e.reason(), Some(Reason::DeviceTooSmall { has: MIB, needs: MIB + 1 }));
    assert_eq!(e.kind(), DiskErrorKind::Usage);
    assert_eq!(open(Format::Raw, MIB, Existing::Refuse).kind(), DiskErrorKind::Exists);
    assert_eq!(open(Format::Qcow2, MIB, Existing::Overwrite).kind(), DiskErrorKind::Unsupported);
    assert_eq!(open(Format::Vhd, MIB, Existing::Compare).kind(), DiskErrorKind::Unsupported);
}

#[test]
fn a_mounted_device_is_refused() {
    let Some(device) = Loop::new(8 * MIB, "512") else { return };
    let made = judge::run("mkfs.ext4", &["-q", judge::text(&device.path)]);
    if made.is_none() {
        return;
    }
    let at = tempdir().unwrap();
    let Some(_mount) = Mount::new(&[judge::text(&device.path), judge::text(at.path())], at.path()) else { return };
    let e = Target::create_or_open(&device.path, Format::Raw, MIB, Existing::Overwrite).unwrap_err();
    assert_eq!((e.kind(), e.reason()), (DiskErrorKind::Usage, Some(Reason::Busy)));
}

#[test]
fn a_full_file_system_is_told_from_other_errors_in_every_format() {
    let Some(device) = Loop::new(16 * MIB, "512") else { return };
    if judge::run("mkfs.ext4", &["-q", judge::text(&device.path)]).is_none() {
        return;
    }
    let (on_disk, in_memory) = (tempdir().unwrap(), tempdir().unwrap());
    let ext4 = Mount::new(&[judge::text(&device.path), judge::text(on_disk.path())], on_disk.path());
    let tmpfs = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", judge::text(in_memory.path())];
    let tmpfs = Mount::new(&tmpfs, in_memory.path());
    for mount in [ext4, tmpfs].into_iter().flatten() {
        for format in crate::FORMATS {
            let path = mount.0.join("image");
            let target = Target::create_or_open(&path, format, 64 * MIB, Existing::Refuse).unwrap();
            let block = pattern(MIB as usize, 3);
            let e = (0..64).find_map(|n| target.write_at(&block, n * MIB).err()).expect("full");
            assert_eq!(e.kind(), DiskErrorKind::NoSpace, "{format:?}: {e}");
            assert_eq!(e.path(), path);
            drop(target);
            assert!(!path.exists());
            std::fs::remove_file(mount.0.join("image.partial")).unwrap();
        }
    }
}
