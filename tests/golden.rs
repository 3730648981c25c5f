//! Every format version that was ever released stays readable: vaults kept as they were written, with what each point holds.
//!
//! `tests/golden/v1` was made by the first release: `landfall vault create`, then the cycles of [`content`], each on a disk of that content.
//! Never make it anew to get a test green: a vault that a user has cannot be made anew.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::Path;

use landfall_tests::landfall::Site;
use landfall_tests::{disks, tools};

/// What the disk holds at each point of the vault of format 1.
fn content(seq: u64) -> Vec<u8> {
    let mut bytes = disks::seeded_bytes(1, 60_000);
    bytes.extend(b"a line that compresses well\n".repeat(2000));
    bytes.resize(200_000, 0);
    if seq >= 2 {
        bytes[4096..8192].copy_from_slice(&disks::seeded_bytes(2, 4096));
    }
    if seq >= 3 {
        bytes.truncate(150_001);
    }
    if seq >= 4 {
        bytes.resize(190_000, 0);
        bytes[8192..12_288].fill(0);
    }
    if seq >= 5 {
        bytes[20_000..20_100].copy_from_slice(&disks::seeded_bytes(seq, 100));
    }
    bytes
}

/// The last point of the vault of format 1: so many cycles that there is a checkpoint.
const LAST: u64 = 75;

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_vault_of_format_1_reads_as_it_did() {
    let golden = tools::repository().join("tests/golden/v1");
    let site = Site::new();
    copy_folder(&golden.join("vault"), &site.vault_folder());
    fs::copy(golden.join("recovery.key"), site.recovery_key()).unwrap();
    fs::copy(golden.join("site.key"), site.site_key()).unwrap();
    for seq in [1, 2, 3, 4, 60, LAST] {
        let wanted = site.disk(&format!("wanted-{seq}"));
        fs::write(&wanted, content(seq)).unwrap();
        site.assert_disk_is("golden", &seq.to_string(), "root", &wanted);
    }
    site.assert_sound();
    // And it can still be written to.
    let disk = site.disk("disk.img");
    fs::write(&disk, content(3)).unwrap();
    site.replicate("golden", &[("root", &disk)]);
    site.assert_disk_is("golden", "latest", "root", &disk);
}

/// Makes the vault of the format that is being released; run by hand, once a format: `cargo test --test golden -- --ignored`.
#[test]
#[ignore = "makes the files that the other test reads"]
fn make_the_vault_of_format_1() {
    let golden = tools::repository().join("tests/golden/v1");
    assert!(!golden.exists(), "{} is there: it is never made anew", golden.display());
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    for seq in 1..=LAST {
        fs::write(&disk, content(seq)).unwrap();
        site.replicate("golden", &[("root", &disk)]);
    }
    copy_folder(&site.vault_folder(), &golden.join("vault"));
    fs::copy(site.recovery_key(), golden.join("recovery.key")).unwrap();
    fs::copy(site.site_key(), golden.join("site.key")).unwrap();
}
