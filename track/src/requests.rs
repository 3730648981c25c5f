//! The program for devices that have requests (virtio, SCSI, NVMe, loop, ...): it runs where a request completes.
//!
//! The tracepoint lies before the kernel tells who waits for the request. Its argument is the number of bytes that are complete: of a
//! request that completes in pieces, each piece is told, and the request's first sector is then that of the piece.

use landfall_model::Result;

use crate::asm::{Alu, Asm, Cond, R1, R2, R6, R7, R8, R9, Size};
use crate::layout::Layout;
use crate::marking::{Chain, Head, Target, count, follow, is_disk, mark, mark_chain, raise, to_end};

/// When a request is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    Completed,
    /// Where it is given to the driver. Too early: for tests, which show that they would see it.
    #[cfg(test)]
    Issued,
}

impl When {
    /// Number of the type of the tracepoint.
    pub(crate) fn tracepoint(self, layout: &Layout) -> u32 {
        match self {
            Self::Completed => layout.request_complete.id,
            #[cfg(test)]
            Self::Issued => layout.request_issue.id,
        }
    }
}

/// The program; `shared` is the descriptor of the shared memory.
///
/// # Errors
/// A bug.
pub(crate) fn program(layout: &Layout, target: &Target, when: When, shared: i32) -> Result<Vec<u64>> {
    let (request, operations) = (&layout.request, &layout.operations);
    let mut asm = Asm::default();
    let [done, everything, ranged, discard, uncounted] = [(); 5].map(|()| asm.label());
    asm.alu_reg(Alu::Move, R9, R1);
    let subject = match when {
        When::Completed => layout.request_complete.subject,
        #[cfg(test)]
        When::Issued => layout.request_issue.subject,
    };
    asm.load(Size::Double, R6, R9, subject);
    follow(&mut asm, R6, &request.disk);
    is_disk(&mut asm, target, (layout.disk_major, layout.disk_minor), done);
    asm.map_value(R8, shared);
    count(&mut asm, Head::Seen);
    operation(&mut asm, R6, request.flags);
    match when {
        When::Completed => asm.load(Size::Double, R7, R9, layout.completed_bytes),
        #[cfg(test)]
        When::Issued => asm.load(Size::Word, R7, R6, request.length),
    }
    asm.move_word(R7, R7);
    for number in &operations.uncounted {
        asm.jump_if(Cond::Equal, R2, number.cast_signed(), uncounted);
    }
    asm.alu_reg(Alu::Move, R1, R7);
    asm.alu(Alu::ShiftRight, R1, 9);
    asm.atomic_add(R8, Head::Sectors as i16, R1);
    asm.bind(uncounted);
    for harmless in &operations.harmless {
        asm.jump_if(Cond::Equal, R2, harmless.cast_signed(), done);
    }
    for number in operations.ranged.iter().chain(&operations.append) {
        asm.jump_if(Cond::Equal, R2, number.cast_signed(), ranged);
    }
    asm.jump_if(Cond::Equal, R2, operations.discard.cast_signed(), discard);
    // Whatever else it is (a command from a program to the drive, a reset of zones), what it changes is not known.
    asm.bind(everything);
    raise(&mut asm, Head::Everything);
    asm.jump(done);

    asm.bind(discard);
    asm.load(Size::Double, R9, R6, request.bio);
    asm.jump_if(Cond::Equal, R9, 0, ranged);
    let bio = &layout.bio;
    let chain = Chain { sector: bio.sector, length: bio.length, next: bio.next };
    mark_chain(&mut asm, target, &chain, done);

    asm.bind(ranged);
    asm.load(Size::Double, R6, R6, request.sector);
    to_end(&mut asm);
    mark(&mut asm, target, done);

    asm.bind(done);
    asm.exit();
    asm.finish()
}

/// Makes register 2 the operation among the flags of what a register points to.
pub(crate) fn operation(asm: &mut Asm, from: crate::asm::Reg, flags: i16) {
    asm.load(Size::Word, R2, from, flags);
    asm.alu(Alu::And, R2, 0xff);
}
