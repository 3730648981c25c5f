//! What all programs share: which device, how its marks lie in shared memory, and the instructions that set them.
//!
//! ```text
//! shared memory: | everything | seen | ended | overflow | past bios | canary | sectors | zero | marks ... | fine marks ... |
//!                  each a word of 64 bits
//! ```
//! Marks are a bit for each block, 64 to a word, set by atomic OR. What is at most [`FINE_SECTORS_MAX`] long sets fine marks, of smaller blocks, where the
//! disk is small enough for them: whoever reads what is marked reads little more than was written. What is longer sets the others, so that a
//! discard of gigabytes is some hundred steps and not some thousand. Where the kernel has no atomic OR (before 5.12) they are a byte for each
//! block, 8 to a word, stored plainly: a store of 1 cannot undo another, and a word that is exchanged by us is either before or after it.

use crate::asm::{Alu, Asm, Cond, FRAME, Label, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, Reg, Size};
use crate::layout::Path;

/// Words before the marks.
pub(crate) const HEAD_WORDS: usize = 8;
const HEAD_BYTES: i16 = 64;

/// A word before the marks, by its offset in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Head {
    /// Not 0: something was written, and what is not known.
    Everything = 0,
    /// Counts what reached the program, of this disk.
    Seen = 8,
    /// Counts bios whose end was seen.
    Ended = 16,
    /// Not 0: writes are under way that could not be noted. Never reset.
    Overflow = 24,
    /// Not 0: the driver writes pages past all bios. Never reset.
    PastBios = 32,
    /// Set by us: reads are noted too, so that the end of one can be seen.
    Canary = 40,
    /// Sums the sectors of completed requests, which the kernel does too: see `tally`.
    Sectors = 48,
    /// Always 0, which the verifier does not know: see `forget`.
    Zero = 56,
}

impl Head {
    /// Its place among the words.
    pub(crate) const fn word(self) -> usize {
        self as usize / 8
    }
}

/// Marks are at most this many bytes of kernel memory, with the words before them: the largest value of an array map in old kernels.
const SHARED_BYTES_MAX: u64 = 4 << 20;
/// Words that a step sets at most.
const STEP_WORDS: usize = 4;
/// Steps for one range. A request has at most 4 GiB, that is 1,025 words of 64 blocks of 64 KiB.
const STEPS_MAX: i32 = 264;
/// Steps for a chain of ranges, of which a discard has at most 256. Verifiers follow every step, and give up at 8,192 jumps that are open.
const CHAIN_STEPS_MAX: i32 = 400;
/// Ranges up to this length set fine marks: all writes do, for drivers take no more in one request.
const FINE_SECTORS_MAX: i32 = 8192;
/// Steps for such a range: 1,025 blocks of 4 KiB lie in 18 words at most.
const FINE_STEPS_MAX: i32 = 6;
/// Fine marks are of blocks of 4 KiB, in which file systems write.
const FINE_BITS_MIN: u32 = 12;
const SECTOR_BITS: u32 = 9;
const BLOCK_BITS_MIN: u32 = 16;
const BLOCK_BITS_MAX: u32 = 40;

/// How blocks are marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Marks {
    Bits,
    Bytes,
}

impl Marks {
    /// Blocks to a word, as a power of two.
    const fn blocks_bits(self) -> u32 {
        match self {
            Self::Bits => 6,
            Self::Bytes => 3,
        }
    }
}

/// The device that a program is for, and how its marks lie.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// Number of the disk.
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// The device among the sectors of the disk.
    pub(crate) start: u64,
    pub(crate) sectors: u64,
    pub(crate) marks: Marks,
    /// Bytes of a block, as a power of two.
    pub(crate) block_bits: u32,
    /// The same of fine marks, where there are such.
    pub(crate) fine_bits: Option<u32>,
}

/// A row of marks in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    /// Bytes of a block, as a power of two.
    pub(crate) block_bits: u32,
    /// Where its words are.
    pub(crate) first_word: usize,
    pub(crate) words: usize,
}

impl Target {
    /// Chooses the size of the blocks: 64 KiB, doubled until the marks are small enough; of fine marks 4 KiB, doubled until both are.
    pub(crate) fn new((major, minor): (u32, u32), start: u64, sectors: u64, marks: Marks) -> Self {
        let mut target = Self { major, minor, start, sectors, marks, block_bits: BLOCK_BITS_MIN, fine_bits: None };
        let fits = |target: &Self| target.words() as u64 * 8 <= SHARED_BYTES_MAX;
        while !fits(&target) && target.block_bits < BLOCK_BITS_MAX {
            target.block_bits += 1;
        }
        if marks == Marks::Bits {
            let fine = FINE_BITS_MIN..target.block_bits;
            let with = |bits| Self { fine_bits: Some(bits), ..target.clone() };
            target = fine.map(with).find(fits).unwrap_or(target);
        }
        target
    }

    /// Words of shared memory.
    pub(crate) fn words(&self) -> usize {
        let last = self.fine().unwrap_or_else(|| self.coarse());
        last.first_word + last.words
    }

    /// The marks that any range may set.
    pub(crate) fn coarse(&self) -> Row {
        self.row(self.block_bits, HEAD_WORDS)
    }

    /// Those of short ranges.
    pub(crate) fn fine(&self) -> Option<Row> {
        let coarse = self.coarse();
        self.fine_bits.map(|bits| self.row(bits, coarse.first_word + coarse.words))
    }

    fn row(&self, block_bits: u32, first_word: usize) -> Row {
        let blocks = self.sectors.div_ceil(1 << (block_bits - SECTOR_BITS));
        let words = blocks.div_ceil(1 << self.marks.blocks_bits()).max(1);
        Row { block_bits, first_word, words: usize::try_from(words).unwrap_or(usize::MAX / 16) }
    }

    fn end(&self) -> u64 {
        self.start + self.sectors
    }
}

/// Lets the verifier forget what it knows of a number, so that the next step of a loop looks to it like the last, and it need not follow
/// all ways through all steps. Register 8 is the shared memory. Uses register 1.
fn forget(asm: &mut Asm, number: Reg) {
    asm.load(Size::Double, R1, R8, Head::Zero as i16);
    asm.alu_reg(Alu::Add, number, R1);
}

/// Jumps to `other` unless register 1, a disk, is that of the target. Uses registers 1 and 2.
pub(crate) fn is_disk(asm: &mut Asm, target: &Target, (major, minor): (i16, i16), other: Label) {
    for (offset, wanted) in [(major, target.major), (minor, target.minor)] {
        asm.load(Size::Word, R2, R1, offset);
        asm.jump_if(Cond::NotEqual, R2, wanted.cast_signed(), other);
    }
}

/// Follows a path of pointers from a register into register 1.
pub(crate) fn follow(asm: &mut Asm, from: Reg, path: &Path) {
    let mut at = from;
    for offset in &path.0 {
        asm.load(Size::Double, R1, at, *offset);
        at = R1;
    }
}

/// Adds 1 to a word of shared memory, whose address is in register 8. Uses register 1.
pub(crate) fn count(asm: &mut Asm, head: Head) {
    asm.alu(Alu::Move, R1, 1);
    asm.atomic_add(R8, head as i16, R1);
}

/// Sets a word of shared memory, whose address is in register 8.
pub(crate) fn raise(asm: &mut Asm, head: Head) {
    asm.store_imm(Size::Double, R8, head as i16, 1);
}

/// Marks the sectors from register 6 up to, without, register 7, then goes to `done`.
///
/// Register 8 is the shared memory. Registers 0 to 7 are used.
pub(crate) fn mark(asm: &mut Asm, target: &Target, done: Label) {
    let everything = asm.label();
    asm.alu(Alu::Move, R2, 0);
    if let Some(fine) = target.fine() {
        let long = asm.label();
        asm.alu_reg(Alu::Move, R1, R7);
        asm.alu_reg(Alu::Sub, R1, R6);
        asm.jump_if(Cond::Above, R1, FINE_SECTORS_MAX, long);
        clip(asm, target, fine, done);
        set_words(asm, target, fine, FINE_STEPS_MAX, everything);
        asm.jump(done);
        asm.bind(long);
    }
    let coarse = target.coarse();
    clip(asm, target, coarse, done);
    set_words(asm, target, coarse, STEPS_MAX, everything);
    asm.jump(done);
    asm.bind(everything);
    raise(asm, Head::Everything);
    asm.jump(done);
}

/// Fields of a bio that tell its range, and the one that leads to the next.
pub(crate) struct Chain {
    pub(crate) sector: i16,
    pub(crate) length: i16,
    pub(crate) next: i16,
}

/// Marks the range of each bio of a chain that begins with register 9, then goes to `done`. Registers as of [`mark`], and 9.
pub(crate) fn mark_chain(asm: &mut Asm, target: &Target, chain: &Chain, done: Label) {
    let (next, everything) = (asm.label(), asm.label());
    asm.alu(Alu::Move, R2, 0);
    asm.bind(next);
    asm.jump_if(Cond::Equal, R9, 0, done);
    step(asm, CHAIN_STEPS_MAX, everything);
    asm.load(Size::Double, R6, R9, chain.sector);
    asm.load(Size::Word, R7, R9, chain.length);
    asm.load(Size::Double, R9, R9, chain.next);
    to_end(asm);
    let coarse = target.coarse();
    clip(asm, target, coarse, next);
    set_words(asm, target, coarse, CHAIN_STEPS_MAX, everything);
    asm.jump(next);
    asm.bind(everything);
    raise(asm, Head::Everything);
    asm.jump(done);
}

/// Makes of register 7, a length in bytes, the end of the sectors that begin with register 6.
pub(crate) fn to_end(asm: &mut Asm) {
    asm.alu(Alu::Add, R7, (1 << SECTOR_BITS) - 1);
    asm.alu(Alu::ShiftRight, R7, SECTOR_BITS.cast_signed());
    asm.alu_reg(Alu::Add, R7, R6);
}

/// One step more in register 2; beyond the limit to `everything`.
fn step(asm: &mut Asm, steps_max: i32, everything: Label) {
    asm.alu(Alu::Add, R2, 1);
    asm.jump_if(Cond::Above, R2, steps_max, everything);
}

/// Makes of the sectors of the disk in registers 6 and 7 blocks of the device; to `outside` if there are none. Uses register 1.
fn clip(asm: &mut Asm, target: &Target, row: Row, outside: Label) {
    let (begins_within, ends_within) = (asm.label(), asm.label());
    asm.constant(R1, target.start);
    asm.jump_if_reg(Cond::AtLeast, R6, R1, begins_within);
    asm.alu_reg(Alu::Move, R6, R1);
    asm.bind(begins_within);
    asm.constant(R1, target.end());
    asm.jump_if_reg(Cond::AtLeast, R1, R7, ends_within);
    asm.alu_reg(Alu::Move, R7, R1);
    asm.bind(ends_within);
    asm.jump_if_reg(Cond::AtLeast, R6, R7, outside);
    asm.constant(R1, target.start);
    asm.alu_reg(Alu::Sub, R6, R1);
    asm.alu_reg(Alu::Sub, R7, R1);
    let shift = (row.block_bits - SECTOR_BITS).cast_signed();
    asm.alu(Alu::ShiftRight, R6, shift);
    asm.alu(Alu::Sub, R7, 1);
    asm.alu(Alu::ShiftRight, R7, shift);
    asm.alu(Alu::Add, R7, 1);
}

/// Marks the blocks from register 6 up to, without, register 7, which are not none, and goes on after that. Takes a step for each
/// `STEP_WORDS` words but the last.
fn set_words(asm: &mut Asm, target: &Target, row: Row, steps_max: i32, everything: Label) {
    let (next, all) = (asm.label(), asm.label());
    let blocks_bits = target.marks.blocks_bits().cast_signed();
    forget(asm, R7);
    asm.bind(next);
    for _ in 0..STEP_WORDS {
        forget(asm, R6);
        // The word's number; what the verifier must see is that it lies within.
        asm.alu_reg(Alu::Move, R3, R6);
        asm.alu(Alu::ShiftRight, R3, blocks_bits);
        asm.jump_if(Cond::Above, R3, i32::try_from(row.words - 1).unwrap_or(i32::MAX), everything);
        match target.marks {
            Marks::Bits => set_bits(asm, row),
            Marks::Bytes => set_bytes(asm),
        }
        asm.jump_if_reg(Cond::AtLeast, R6, R7, all);
    }
    step(asm, steps_max, everything);
    asm.jump(next);
    asm.bind(all);
}

/// Sets the bits of the word whose number is register 3, and makes register 6 the first block of the next word.
fn set_bits(asm: &mut Asm, row: Row) {
    let to_the_end = asm.label();
    asm.alu_reg(Alu::Move, R4, R6);
    asm.alu(Alu::And, R4, 63);
    asm.alu(Alu::Move, R5, -1);
    asm.alu_reg(Alu::ShiftLeft, R5, R4);
    asm.alu_reg(Alu::Move, R0, R3);
    asm.alu(Alu::ShiftLeft, R0, 6);
    asm.alu_reg(Alu::Move, R4, R7);
    asm.alu_reg(Alu::Sub, R4, R0);
    asm.alu_reg(Alu::Move, R6, R0);
    asm.alu(Alu::Add, R6, 64);
    asm.jump_if(Cond::Above, R4, 63, to_the_end);
    asm.alu(Alu::Move, R1, 1);
    asm.alu_reg(Alu::ShiftLeft, R1, R4);
    asm.alu(Alu::Sub, R1, 1);
    asm.alu_reg(Alu::And, R5, R1);
    asm.bind(to_the_end);
    asm.alu(Alu::ShiftLeft, R3, 3);
    asm.alu_reg(Alu::Move, R0, R8);
    asm.alu_reg(Alu::Add, R0, R3);
    asm.alu(Alu::Add, R0, i32::try_from(row.first_word * 8).unwrap_or(i32::MAX));
    asm.atomic_or(R0, 0, R5);
}

/// Sets all bytes of the word whose number is register 3 if they are all meant, else that of block 6 alone; then the next.
fn set_bytes(asm: &mut Asm) {
    let (one, next) = (asm.label(), asm.label());
    asm.alu(Alu::ShiftLeft, R3, 3);
    asm.alu_reg(Alu::Move, R0, R8);
    asm.alu_reg(Alu::Add, R0, R3);
    asm.alu_reg(Alu::Move, R4, R6);
    asm.alu(Alu::And, R4, 7);
    asm.jump_if(Cond::NotEqual, R4, 0, one);
    asm.alu_reg(Alu::Move, R5, R7);
    asm.alu_reg(Alu::Sub, R5, R6);
    asm.jump_if(Cond::Below, R5, 8, one);
    asm.constant(R5, 0x0101_0101_0101_0101);
    asm.store(Size::Double, R0, HEAD_BYTES, R5);
    asm.alu(Alu::Add, R6, 8);
    asm.jump(next);
    asm.bind(one);
    asm.alu_reg(Alu::Add, R0, R4);
    asm.store_imm(Size::Byte, R0, HEAD_BYTES, 1);
    asm.alu(Alu::Add, R6, 1);
    asm.bind(next);
}

/// Offsets in the frame of a program.
pub(crate) const KEY: i16 = -24;
pub(crate) const RANGE_START: i16 = -16;
pub(crate) const RANGE_END: i16 = -8;

/// Makes a register the address of something in the frame.
pub(crate) fn address(asm: &mut Asm, dst: Reg, offset: i16) {
    asm.alu_reg(Alu::Move, dst, FRAME);
    asm.alu(Alu::Add, dst, i32::from(offset));
}
