//! Disks of model machines: blocks that copies share.

use std::sync::{Arc, LazyLock};

use super::dice::Dice;

/// What an agent compares and sends.
pub const BLOCK: usize = 64 * 1024;
/// Contents that all machines have in common.
const COMMON: u64 = 6;

static ZERO: LazyLock<Arc<[u8]>> = LazyLock::new(|| vec![0; BLOCK].into());

/// The bytes of a disk at a moment.
#[derive(Clone, Debug)]
pub struct Image {
    size: usize,
    /// All of the same length; the last reaches behind the end.
    blocks: Vec<Arc<[u8]>>,
}

impl Image {
    /// A disk of zeroes.
    pub fn zero(size: usize) -> Self {
        Self { size, blocks: vec![ZERO.clone(); size.div_ceil(BLOCK)] }
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of its blocks.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of a block that are in the disk.
    pub fn len_of(&self, block: usize) -> usize {
        BLOCK.min(self.size - block * BLOCK)
    }

    /// The bytes of a block.
    pub fn block(&self, block: usize) -> &[u8] {
        &self.blocks[block][..self.len_of(block)]
    }

    /// Whether a block of another image of this disk has the same bytes.
    pub fn same(&self, other: &Self, block: usize) -> bool {
        Arc::ptr_eq(&self.blocks[block], &other.blocks[block]) || self.blocks[block] == other.blocks[block]
    }

    /// Whether a block is all zeroes.
    pub fn is_zero(&self, block: usize) -> bool {
        Arc::ptr_eq(&self.blocks[block], &ZERO) || self.blocks[block] == *ZERO
    }

    /// Writes bytes, as far as the disk reaches.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = self.size.min(at + bytes.len());
        let mut from = at;
        while from < end {
            let (block, skip) = (from / BLOCK, from % BLOCK);
            let len = (BLOCK - skip).min(end - from);
            let mut content = self.blocks[block].to_vec();
            content[skip..skip + len].copy_from_slice(&bytes[from - at..from - at + len]);
            self.blocks[block] = content.into();
            from += len;
        }
    }

    /// Makes a run of blocks zero.
    pub fn clear(&mut self, first: usize, count: usize) {
        for block in first..(first + count).min(self.blocks.len()) {
            self.blocks[block] = ZERO.clone();
        }
    }

    /// Does what a machine may have done to it since the last cut.
    pub fn live(&mut self, dice: &mut Dice) {
        match dice.below(100) {
            0..12 => {}
            12..55 => {
                for _ in 0..dice.within(1, 4) {
                    let (at, len) = (dice.below(self.size), 1 + dice.below(20_000));
                    self.write(at, &dice.noise(len));
                }
            }
            55..70 => {
                let (first, count) = (dice.below(self.blocks.len()), 1 + dice.below(6));
                self.clear(first, count);
            }
            70..90 => {
                let at = dice.below(self.size) / 512 * 512;
                let common = dice.within(1, COMMON);
                self.write(at, &Dice::of(0, &[common]).noise(192 * 1024));
            }
            // Too much for one object: a small disk stays a small cycle.
            _ => {
                let at = dice.below(self.size / 4 + 1);
                self.write(at, &dice.noise(self.size * 3 / 4));
            }
        }
    }
}
