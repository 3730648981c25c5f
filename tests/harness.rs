//! The harness itself: disks are what they claim to be, and a judge that should complain does.

use std::fs;
use std::path::Path;
use std::process::Command;

use landfall_tests::disks::{self, XFS_BYTES_MIN};
use landfall_tests::{need, tools};

const MIB: u64 = 1 << 20;

#[test]
fn an_ext4_disk_has_files_of_this_machine_and_is_healthy() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("root.img");
    need!(disks::ext4(&disk, 64 * MIB, 16 * MIB));
    disks::assert_ext4_healthy(&disk);
    assert_eq!(disks::size(&disk), 64 * MIB);
    assert!(disks::allocated_bytes(&disk) > 12 * MIB, "it has content");
    let debugfs = need!(tools::need("debugfs"));
    let listed = tools::succeed(Command::new(debugfs).args(["-R", "ls -p /usr-bin"]).arg(&disk));
    assert!(listed.lines().count() > 10, "{listed}");
}

#[test]
fn a_changed_ext4_disk_is_still_healthy_and_mostly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, before) = (folder.path().join("root.img"), folder.path().join("before.img"));
    need!(disks::ext4(&disk, 64 * MIB, 8 * MIB));
    disks::copy(&disk, &before);
    disks::assert_same(&disk, &before);
    disks::ext4_write(&disk, "report.bin", 1_000_000, 7);
    disks::assert_ext4_healthy(&disk);
    assert!(disks::first_difference(&disk, &before, 0..64 * MIB).is_some());
    disks::ext4_remove(&disk, "report.bin");
    disks::assert_ext4_healthy(&disk);
}

#[test]
fn an_xfs_disk_has_files_of_this_machine_and_is_healthy() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("data.img");
    need!(disks::xfs(&disk, XFS_BYTES_MIN, 16 * MIB));
    disks::assert_xfs_healthy(&disk);
    assert_eq!(disks::size(&disk), XFS_BYTES_MIN);
    let etc = fs::read("/etc/passwd").unwrap();
    assert!(disks::holds_bytes(&disk, &etc[..etc.len().min(512)]), "a file of this machine is on it");
}

#[test]
fn the_same_disk_is_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    for disk in [&one, &two] {
        disks::random(disk, 3 * MIB + 512, 42);
    }
    disks::assert_same(&one, &two);
    disks::write_at(&two, 2 * MIB + 7, b"x");
    assert_eq!(disks::first_difference(&one, &two, 0..3 * MIB), Some(2 * MIB + 7));
}

#[test]
fn a_huge_empty_disk_is_compared_without_being_read() {
    let folder = need!(disks::folder_for(64 << 40));
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    for disk in [&one, &two] {
        assert!(disks::sparse(disk, 64 << 40));
    }
    disks::assert_same(&one, &two);
    disks::write_at(&two, (64 << 40) - 512, b"x");
    assert_eq!(disks::first_difference(&one, &two, 0..64 << 40), Some((64 << 40) - 512));
}

#[test]
#[should_panic(expected = "ended with")]
fn a_broken_file_system_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("root.img");
    assert!(disks::ext4(&disk, 32 * MIB, MIB).is_some(), "ended with no program to make a disk with");
    disks::write_at(&disk, 8192, &disks::seeded_bytes(1, 200_000));
    disks::assert_ext4_healthy(&disk);
}

#[test]
fn programs_of_administrators_are_found() {
    assert!(tools::find("sh").is_some());
    assert!(tools::find("no-such-program-anywhere").is_none());
    assert!(Path::new(&tools::repository()).join("Cargo.toml").is_file());
}
