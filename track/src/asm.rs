//! Assembles eBPF instructions: registers, a handful of instructions, labels.
//!
//! An instruction is 64 bits, as in the kernel's `Documentation/bpf/standardization/instruction-set.rst`:
//! ```text
//! | imm 32 | offset 16 | src 4 | dst 4 | opcode 8 |
//! ```
//! Offsets of jumps count instructions from the one after the jump; [`Asm::finish`] fills them in.

use landfall_model::{Error, ErrorKind, Result};

/// A register: 0 to 5 are lost by a call, 6 to 9 are kept, 10 is the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reg(u8);

pub(crate) const R0: Reg = Reg(0);
pub(crate) const R1: Reg = Reg(1);
pub(crate) const R2: Reg = Reg(2);
pub(crate) const R3: Reg = Reg(3);
pub(crate) const R4: Reg = Reg(4);
pub(crate) const R5: Reg = Reg(5);
pub(crate) const R6: Reg = Reg(6);
pub(crate) const R7: Reg = Reg(7);
pub(crate) const R8: Reg = Reg(8);
pub(crate) const R9: Reg = Reg(9);
pub(crate) const FRAME: Reg = Reg(10);

/// Width of a load or store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    Byte = 0x10,
    Word = 0x00,
    Double = 0x18,
}

/// 64-bit arithmetic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Alu {
    Add = 0x07,
    Sub = 0x17,
    And = 0x57,
    ShiftLeft = 0x67,
    ShiftRight = 0x77,
    Move = 0xb7,
}

/// 64-bit unsigned comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cond {
    Equal = 0x15,
    Above = 0x25,
    AtLeast = 0x35,
    NotEqual = 0x55,
    Below = 0xa5,
}

/// Functions of the kernel that work on maps, by their numbers in `enum bpf_func_id`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Helper {
    Lookup = 1,
    Update = 2,
    Delete = 3,
}

/// The operand is a register and no constant.
const FROM_REGISTER: u8 = 0x08;
/// The second operand of an atomic instruction: add, or.
const ATOMIC_ADD: i32 = 0x00;
const ATOMIC_OR: i32 = 0x40;

/// A place in the code that jumps go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label(usize);

/// Code in the making.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    code: Vec<u64>,
    /// Where each label stands.
    labels: Vec<Option<usize>>,
    /// Jumps whose offset is not yet filled in.
    jumps: Vec<(usize, Label)>,
}

fn encode(opcode: u8, dst: Reg, src: Reg, offset: i16, imm: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = imm.to_le_bytes();
    u64::from_le_bytes([opcode, dst.0 | src.0 << 4, low, high, a, b, c, d])
}

impl Asm {
    fn push(&mut self, opcode: u8, dst: Reg, src: Reg, offset: i16, imm: i32) {
        self.code.push(encode(opcode, dst, src, offset, imm));
    }

    /// A label that stands nowhere yet.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub(crate) fn bind(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `dst = dst op imm`; the constant is sign-extended.
    pub(crate) fn alu(&mut self, op: Alu, dst: Reg, imm: i32) {
        self.push(op as u8, dst, R0, 0, imm);
    }

    /// `dst = dst op src`.
    pub(crate) fn alu_reg(&mut self, op: Alu, dst: Reg, src: Reg) {
        self.push(op as u8 | FROM_REGISTER, dst, src, 0, 0);
    }

    /// `dst = src`, the low 32 bits alone.
    pub(crate) fn move_word(&mut self, dst: Reg, src: Reg) {
        self.push(0xbc, dst, src, 0, 0);
    }

    /// `dst = value`, all 64 bits.
    pub(crate) fn constant(&mut self, dst: Reg, value: u64) {
        self.wide(dst, R0, value);
    }

    /// `dst` = the map of a descriptor, for helpers.
    pub(crate) fn map(&mut self, dst: Reg, fd: i32) {
        self.wide(dst, Reg(1), u64::from(fd.cast_unsigned()));
    }

    /// `dst` = address of the one value of an array map.
    pub(crate) fn map_value(&mut self, dst: Reg, fd: i32) {
        self.wide(dst, Reg(2), u64::from(fd.cast_unsigned()));
    }

    fn wide(&mut self, dst: Reg, src: Reg, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.push(0x18, dst, src, 0, i32::from_le_bytes([a, b, c, d]));
        self.push(0, R0, R0, 0, i32::from_le_bytes([e, f, g, h]));
    }

    /// `dst = *(src + offset)`.
    pub(crate) fn load(&mut self, size: Size, dst: Reg, src: Reg, offset: i16) {
        self.push(0x61 | size as u8, dst, src, offset, 0);
    }

    /// `*(dst + offset) = src`.
    pub(crate) fn store(&mut self, size: Size, dst: Reg, offset: i16, src: Reg) {
        self.push(0x63 | size as u8, dst, src, offset, 0);
    }

    /// `*(dst + offset) = imm`.
    pub(crate) fn store_imm(&mut self, size: Size, dst: Reg, offset: i16, imm: i32) {
        self.push(0x62 | size as u8, dst, R0, offset, imm);
    }

    /// `*(u64 *)(dst + offset) += src`, atomically. In every kernel.
    pub(crate) fn atomic_add(&mut self, dst: Reg, offset: i16, src: Reg) {
        self.push(0xdb, dst, src, offset, ATOMIC_ADD);
    }

    /// `*(u64 *)(dst + offset) |= src`, atomically. Since Linux 5.12.
    pub(crate) fn atomic_or(&mut self, dst: Reg, offset: i16, src: Reg) {
        self.push(0xdb, dst, src, offset, ATOMIC_OR);
    }

    /// Jumps where `dst cond imm`; the constant is sign-extended.
    pub(crate) fn jump_if(&mut self, cond: Cond, dst: Reg, imm: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(cond as u8, dst, R0, 0, imm);
    }

    /// Jumps where `dst cond src`.
    pub(crate) fn jump_if_reg(&mut self, cond: Cond, dst: Reg, src: Reg, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(cond as u8 | FROM_REGISTER, dst, src, 0, 0);
    }

    /// Jumps.
    pub(crate) fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(0x05, R0, R0, 0, 0);
    }

    /// Calls a function of the kernel: arguments in 1 to 5, the answer in 0.
    pub(crate) fn call(&mut self, helper: Helper) {
        self.push(0x85, R0, R0, 0, helper as i32);
    }

    /// Returns 0.
    pub(crate) fn exit(&mut self) {
        self.alu(Alu::Move, R0, 0);
        self.push(0x95, R0, R0, 0, 0);
    }

    /// The code.
    ///
    /// # Errors
    /// A jump to a label that stands nowhere, or too far away.
    pub(crate) fn finish(mut self) -> Result<Vec<u64>> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].and_then(|to| i64::try_from(to).ok());
            let distance = to.zip(i64::try_from(at).ok()).and_then(|(to, at)| i16::try_from(to - at - 1).ok());
            let distance =
                distance.ok_or_else(|| Error::new(ErrorKind::Bug, "a jump of an eBPF program goes nowhere"))?;
            self.code[at] |= u64::from(distance.cast_unsigned()) << 16;
        }
        Ok(self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the bytes that the kernel's own macros (`BPF_MOV64_REG` and so on) give.
    #[test]
    fn instructions_have_the_bytes_of_the_kernels_macros() {
        let mut asm = Asm::default();
        let (back, out) = (asm.label(), asm.label());
        asm.bind(back);
        asm.alu_reg(Alu::Move, R6, R1);
        asm.load(Size::Double, R7, R6, 16);
        asm.load(Size::Word, R2, R6, -4);
        asm.load(Size::Byte, R2, R6, 1);
        asm.alu(Alu::ShiftRight, R7, 9);
        asm.alu(Alu::Add, R7, -1);
        asm.jump_if(Cond::NotEqual, R7, 7, out);
        asm.jump_if_reg(Cond::Below, R6, R7, back);
        asm.store(Size::Double, FRAME, -8, R7);
        asm.store_imm(Size::Byte, R8, 5, 1);
        asm.atomic_or(R0, 64, R5);
        asm.atomic_add(R8, 8, R1);
        asm.move_word(R7, R7);
        asm.constant(R3, 0x1122_3344_5566_7788);
        asm.map_value(R8, 9);
        asm.call(Helper::Lookup);
        asm.jump(back);
        asm.bind(out);
        asm.exit();
        let bytes: Vec<[u8; 8]> = asm.finish().unwrap().into_iter().map(u64::to_le_bytes).collect();
        let wanted = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x79, 0x67, 16, 0, 0, 0, 0, 0],
            [0x61, 0x62, 0xfc, 0xff, 0, 0, 0, 0],
            [0x71, 0x62, 1, 0, 0, 0, 0, 0],
            [0x77, 0x07, 0, 0, 9, 0, 0, 0],
            [0x07, 0x07, 0, 0, 0xff, 0xff, 0xff, 0xff],
            [0x55, 0x07, 12, 0, 7, 0, 0, 0],
            [0xad, 0x76, 0xf8, 0xff, 0, 0, 0, 0],
            [0x7b, 0x7a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x72, 0x08, 5, 0, 1, 0, 0, 0],
            [0xdb, 0x50, 64, 0, 0x40, 0, 0, 0],
            [0xdb, 0x18, 8, 0, 0, 0, 0, 0],
            [0xbc, 0x77, 0, 0, 0, 0, 0, 0],
            [0x18, 0x03, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x18, 0x28, 0, 0, 9, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0x85, 0, 0, 0, 1, 0, 0, 0],
            [0x05, 0, 0xed, 0xff, 0, 0, 0, 0],
            [0xb7, 0, 0, 0, 0, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn a_jump_to_nowhere_and_one_too_far_are_refused() {
        let mut asm = Asm::default();
        let nowhere = asm.label();
        asm.jump(nowhere);
        assert!(asm.finish().is_err());
        let mut asm = Asm::default();
        let far = asm.label();
        asm.jump(far);
        (0..40_000).for_each(|_| asm.exit());
        asm.bind(far);
        assert!(asm.finish().is_err());
    }
}
