//! Number conversions that cannot fail on the machines that Landfall runs on.

const _: () = assert!(usize::BITS >= 64, "disks are addressed with 64 bits");

/// A byte count as a length in memory.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
pub const fn to_usize(n: u64) -> usize {
    n as usize
}

/// A length in memory as a 32-bit field of the format; saturates, and every encoder's bounds lie far below.
#[expect(clippy::cast_possible_truncation, reason = "checked in the same line")]
pub const fn to_u32(n: usize) -> u32 {
    if n > u32::MAX as usize { u32::MAX } else { n as u32 }
}
