//! The crate from outside: real files on real file systems, with `qemu-img` as the judge of what was made.

#![expect(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    reason = "what goes wrong in a test is to end it; its sizes are small"
)]

mod clones;
mod devices;
mod images;
mod judge;
mod mounts;
mod oracle;
mod places;
mod sources;

use std::path::Path;

use landfall_disk::{Existing, Format, Target};

/// Sizes around every border that a file system, a sector or a cluster has.
pub(crate) const SIZES: [u64; 7] = [1, 511, 512, 4095, 4097, 65_535, (1 << 20) + 513];

pub(crate) const FORMATS: [Format; 3] = [Format::Raw, Format::Qcow2, Format::Vhd];

/// Bytes that differ in every block and are never zero.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| ((n / 512 + n * 7 + seed * 31) % 255) as u8 + 1).collect()
}

/// Makes an image of these bytes.
pub(crate) fn make(path: &Path, format: Format, bytes: &[u8]) {
    let target = Target::create_or_open(path, format, bytes.len() as u64, Existing::Refuse).expect("a new image");
    target.write_at(bytes, 0).expect("written");
    target.finish().expect("finished");
}
