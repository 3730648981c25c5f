//! The digest of a disk: equal where all bytes are, whatever the runs in which they were read (FORMAT.md section 8).
//!
//! ```text
//!   BLAKE3, derived with CONTEXT, of: size, u64 | for each block of 64 KiB that is not all zeroes, ascending: its number, u64 | BLAKE3 of its bytes
//! ```
//! Numbers are little-endian; the last block of a disk may be shorter. Holes cost nothing.

use landfall_model::num::to_usize;
use landfall_model::{Digest, Error, ErrorKind, Result};

const CONTEXT: &str = "landfall 2026-11-22 digest of a disk";
const BLOCK_BYTES: u64 = 64 * 1024;

/// Makes the digest of a disk, whose bytes pass once and in order.
pub struct DiskDigester {
    size: u64,
    at: u64,
    disk: blake3::Hasher,
    /// The block that has begun, and whether something in it is not zero.
    block: blake3::Hasher,
    zero: bool,
}

impl DiskDigester {
    /// For a disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        let mut disk = blake3::Hasher::new_derive_key(CONTEXT);
        disk.update(&size.to_le_bytes());
        Self { size, at: 0, disk, block: blake3::Hasher::new(), zero: true }
    }

    /// How far it is: the first byte that has not passed.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes of the disk.
    pub fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = to_usize(BLOCK_BYTES - self.at % BLOCK_BYTES);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.zero &= is_zero(now);
            self.block.update(now);
            self.passed(now.len() as u64);
            bytes = later;
        }
    }

    /// The next `len` bytes are zero.
    pub fn zeroes(&mut self, mut len: u64) {
        static ZEROES: [u8; to_usize(BLOCK_BYTES)] = [0; to_usize(BLOCK_BYTES)];
        while len > 0 {
            let within = self.at % BLOCK_BYTES;
            // Blocks of zeroes are left out.
            let whole = if within == 0 { len - len % BLOCK_BYTES } else { 0 };
            if whole > 0 {
                self.at += whole;
                len -= whole;
                continue;
            }
            let part = len.min(BLOCK_BYTES - within);
            self.block.update(&ZEROES[..to_usize(part)]);
            self.passed(part);
            len -= part;
        }
    }

    fn passed(&mut self, len: u64) {
        self.at += len;
        if self.at.is_multiple_of(BLOCK_BYTES) {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        if !self.zero {
            self.disk.update(&((self.at - 1) / BLOCK_BYTES).to_le_bytes());
            self.disk.update(self.block.finalize().as_bytes());
        }
        self.block.reset();
        self.zero = true;
    }

    /// The digest, once all bytes have passed.
    ///
    /// # Errors
    /// `Bug` where fewer or more have.
    pub fn finish(mut self) -> Result<Digest> {
        if self.at != self.size {
            let why = format!("the digest of a disk of {} bytes was made of {}", self.size, self.at);
            return Err(Error::new(ErrorKind::Bug, why));
        }
        if !self.at.is_multiple_of(BLOCK_BYTES) {
            self.end_block();
        }
        Ok(Digest::from_bytes(*self.disk.finalize().as_bytes()))
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0) && bytes[..bytes.len() - 1] == bytes[1..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 5 * 65536 + 4096;

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; SIZE];
        disk[65536 + 100..65536 + 9000].fill(7);
        disk[3 * 65536..4 * 65536].fill(9);
        disk[SIZE - 1] = 1;
        disk
    }

    fn whole(disk: &[u8]) -> Digest {
        let mut digester = DiskDigester::new(disk.len() as u64);
        digester.data(disk);
        digester.finish().expect("all of it")
    }

    #[test]
    fn it_is_what_its_description_says() {
        let disk = disk();
        let mut expected = blake3::Hasher::new_derive_key(CONTEXT);
        expected.update(&(SIZE as u64).to_le_bytes());
        for block in [1_u64, 3, 5] {
            let start = to_usize(block * BLOCK_BYTES);
            let bytes = &disk[start..SIZE.min(start + 65536)];
            expected.update(&block.to_le_bytes()).update(blake3::hash(bytes).as_bytes());
        }
        assert_eq!(whole(&disk).as_bytes(), expected.finalize().as_bytes());
    }

    #[test]
    fn the_runs_in_which_it_was_read_do_not_matter_and_each_byte_does() {
        let disk = disk();
        for step in [512, 4096, 65536, 100_000] {
            let mut digester = DiskDigester::new(SIZE as u64);
            for part in disk.chunks(step) {
                if is_zero(part) { digester.zeroes(part.len() as u64) } else { digester.data(part) }
            }
            assert_eq!(digester.finish().expect("all of it"), whole(&disk), "in steps of {step}");
        }
        for at in [0, 65536 + 100, SIZE - 1] {
            let mut other = disk.clone();
            other[at] ^= 1;
            assert_ne!(whole(&other), whole(&disk), "byte {at}");
        }
        assert_ne!(whole(&[0; 65536]), whole(&[0; 2 * 65536]));
        let mut short = DiskDigester::new(2);
        short.data(&[1]);
        assert!(short.finish().is_err());
    }
}
