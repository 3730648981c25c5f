use landfall_model::{Digest, ErrorKind, Extent};

use super::support::{begin, cycle_id, data, refused};
use crate::{CycleCheck, CycleDigest, End};

const SIZE: u64 = 4 << 20;

fn check() -> CycleCheck {
    CycleCheck::new(begin(SIZE))
}

fn zeroes(start: u64, len: u64) -> Extent {
    Extent { start, len }
}

#[test]
fn runs_ascend_within_their_disk_and_disks_ascend() {
    let mut check = check();
    check.data(&data(0, 0, vec![1; 4096])).unwrap();
    check.zero(0, zeroes(4096, 4096)).unwrap();
    check.data(&data(0, SIZE - 512, vec![1; 512])).unwrap();
    check.zero(1, zeroes(0, SIZE)).unwrap();
}

#[test]
fn what_is_out_of_order_or_outside_is_corrupt() {
    for (disk, extent) in [
        (0, zeroes(0, 512)),
        (0, zeroes(8191, 512)),
        (1, zeroes(SIZE - 512, 513)),
        (1, zeroes(SIZE, 512)),
        (1, zeroes(u64::MAX, 2)),
        (2, zeroes(0, 512)),
        (3, zeroes(0, 512)),
    ] {
        let mut check = check();
        check.data(&data(0, 4096, vec![1; 4096])).unwrap();
        refused(check.zero(disk, extent), ErrorKind::Corrupt, &format!("disk number {disk}"));
    }
    let mut check = check();
    check.zero(1, zeroes(0, 512)).unwrap();
    refused(check.data(&data(0, 8192, vec![1; 512])), ErrorKind::Corrupt, "out of order");
}

#[test]
fn a_refused_run_is_not_part_of_the_digest() {
    let (mut check, mut digest) = (check(), CycleDigest::default());
    check.zero(0, zeroes(512, 512)).unwrap();
    assert!(check.zero(0, zeroes(0, 512)).is_err());
    digest.zero(0, zeroes(512, 512));
    check.end(&End { cycle: cycle_id(1), digest: digest.finish() }).unwrap();
}

#[test]
fn another_cycle_or_other_bytes_cannot_be_ended() {
    let mut check = check();
    let (right, mut digest) = (data(0, 0, vec![1; 512]), CycleDigest::default());
    check.data(&right).unwrap();
    digest.data(&right);
    let end = End { cycle: cycle_id(1), digest: digest.finish() };
    check.end(&end).unwrap();
    refused(check.end(&End { cycle: cycle_id(2), ..end.clone() }), ErrorKind::Corrupt, "ended");
    let other = End { digest: Digest::from_bytes([0; 32]), ..end };
    refused(check.end(&other), ErrorKind::Corrupt, "not what the agent sent");
}

#[test]
fn the_digest_tells_data_from_zeroes_and_one_run_from_two() {
    let of = |f: &dyn Fn(&mut CycleDigest)| {
        let mut digest = CycleDigest::default();
        f(&mut digest);
        digest.finish()
    };
    let digests = [
        of(&|_| {}),
        of(&|d| d.zero(0, zeroes(0, 1024))),
        of(&|d| d.data(&data(0, 0, vec![0; 1024]))),
        of(&|d| d.zero(1, zeroes(0, 1024))),
        of(&|d| {
            d.zero(0, zeroes(0, 512));
            d.zero(0, zeroes(512, 512));
        }),
    ];
    for (n, digest) in digests.iter().enumerate() {
        assert!(!digests[n + 1..].contains(digest));
    }
}
