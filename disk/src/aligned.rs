//! Memory that direct I/O takes as it is.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Address, offset and length of direct I/O are multiples of this: the largest logical block of today's devices, and
/// the block of the usual file systems.
pub const DIRECT_ALIGN: usize = 4096;

/// Memory that is not aligned goes in and out in pieces of this size: large enough for full speed of a disk.
pub(crate) const BOUNCE_BYTES: usize = 1 << 20;

thread_local! {
    /// Made once a thread: fresh memory would cost as much as the copy.
    static BOUNCE: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::new(BOUNCE_BYTES));
}

/// Works with [`BOUNCE_BYTES`] of aligned memory, which the thread has for that.
pub(crate) fn bounced<T>(work: impl FnOnce(&mut AlignedBuf) -> T) -> T {
    BOUNCE.with_borrow_mut(work)
}

/// Zeroed bytes whose address is a multiple of [`DIRECT_ALIGN`]. Its length is any; only pieces whose offset and length
/// are multiples too go out directly.
#[derive(Debug)]
pub struct AlignedBuf {
    /// Never grows, so the bytes stay where they are.
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    pub fn new(len: usize) -> Self {
        let storage = vec![0; len + DIRECT_ALIGN];
        // Bounded so that a platform that refuses to align costs speed (the buffer is then copied), not correctness.
        let start = storage.as_ptr().align_offset(DIRECT_ALIGN).min(DIRECT_ALIGN);
        Self { storage, start, len }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage[self.start..][..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..][..self.len]
    }
}

/// Whether direct I/O takes this memory.
pub(crate) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_starts_on_a_block_and_moving_it_keeps_it_there() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::new(len);
            buf.fill(7);
            let moved = Box::new(buf);
            assert!(is_aligned(&moved), "length {len}");
            assert_eq!(moved.len(), len);
            assert!(moved.iter().all(|&b| b == 7));
        }
    }
}
