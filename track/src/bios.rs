//! The two programs for devices without requests (zram, device mapper, md, heads of NVMe multipath): one where a bio is queued, one where
//! it completes.
//!
//! ```text
//! queued:    noted[bio] = range            completed:    mark(noted[bio]), then forget it
//! ```
//! **What is noted counts as written at every take.** So nothing is lost where a completion goes by unseen, and kernels have such: of a
//! bio in a chain (older ones, 5.10 among them), and where a driver passes on the bio itself and the one beneath completes it as part of a request. Such a
//! note stands until a bio is queued under the same address: the kernel tells of the queueing of a bio once in its life, so the earlier
//! one has ended, and its range is marked then.
//!
//! Marks are set before the note goes, so who reads the notes and then takes the marks finds each write in one of the two.

use landfall_model::Result;

use crate::asm::{Alu, Asm, Cond, Helper, R0, R1, R2, R3, R4, R6, R7, R8, R9, Size};
use crate::layout::Layout;
use crate::marking::{Head, KEY, RANGE_END, RANGE_START, Target, address, count, follow, is_disk, mark, raise, to_end};
use crate::requests::operation;

/// Bios of a device that can be noted at once. Some 100 bytes each, taken when the watch is attached. Those that have this many in flight
/// are told that everything may have changed.
pub(crate) const NOTES_MAX: u32 = 16 << 10;

/// Descriptors of what the programs use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maps {
    pub(crate) shared: i32,
    pub(crate) notes: i32,
}

/// The program that notes what is queued.
///
/// # Errors
/// A bug.
pub(crate) fn queue_program(layout: &Layout, target: &Target, maps: Maps) -> Result<Vec<u64>> {
    let (bio, operations) = (&layout.bio, &layout.operations);
    let mut asm = Asm::default();
    let [done, ranged, unknown, noted, note, read] = [(); 6].map(|()| asm.label());
    asm.load(Size::Double, R9, R1, layout.bio_queue.subject);
    follow(&mut asm, R9, &bio.disk);
    is_disk(&mut asm, target, (layout.disk_major, layout.disk_minor), done);
    asm.map_value(R8, maps.shared);
    count(&mut asm, Head::Seen);
    if let Some(path) = &layout.write_past_bios {
        let none = asm.label();
        follow(&mut asm, R9, &bio.disk);
        asm.alu_reg(Alu::Move, R6, R1);
        follow(&mut asm, R6, path);
        asm.jump_if(Cond::Equal, R1, 0, none);
        raise(&mut asm, Head::PastBios);
        asm.bind(none);
    }
    operation(&mut asm, R9, bio.flags);
    for harmless in &operations.harmless {
        asm.jump_if(Cond::Equal, R2, harmless.cast_signed(), read);
    }
    asm.load(Size::Word, R7, R9, bio.length);
    for number in operations.ranged.iter().chain([&operations.discard]) {
        asm.jump_if(Cond::Equal, R2, number.cast_signed(), ranged);
    }
    // What it changes is not known: the whole device.
    asm.bind(unknown);
    asm.alu(Alu::Move, R6, 0);
    asm.alu(Alu::Move, R7, -1);
    asm.jump(noted);
    // A read has no range. It is noted while a canary is on its way, so that its end can be seen.
    asm.bind(read);
    asm.load(Size::Double, R1, R8, Head::Canary as i16);
    asm.jump_if(Cond::Equal, R1, 0, done);
    asm.alu(Alu::Move, R6, 0);
    asm.alu(Alu::Move, R7, 0);
    asm.jump(noted);
    asm.bind(ranged);
    asm.jump_if(Cond::Equal, R7, 0, done);
    asm.load(Size::Double, R6, R9, bio.sector);
    to_end(&mut asm);

    asm.bind(noted);
    asm.store(Size::Double, crate::asm::FRAME, KEY, R9);
    asm.alu_reg(Alu::Move, R9, R7);
    look_up(&mut asm, maps.notes);
    asm.store(Size::Double, crate::asm::FRAME, RANGE_START, R6);
    asm.store(Size::Double, crate::asm::FRAME, RANGE_END, R9);
    asm.jump_if(Cond::Equal, R0, 0, note);
    asm.load(Size::Double, R6, R0, 0);
    asm.load(Size::Double, R7, R0, 8);
    mark(&mut asm, target, note);

    asm.bind(note);
    asm.map(R1, maps.notes);
    address(&mut asm, R2, KEY);
    address(&mut asm, R3, RANGE_START);
    asm.alu(Alu::Move, R4, 0);
    asm.call(Helper::Update);
    asm.jump_if(Cond::Equal, R0, 0, done);
    raise(&mut asm, Head::Overflow);

    asm.bind(done);
    asm.exit();
    asm.finish()
}

/// The program that marks what completes.
///
/// # Errors
/// A bug.
pub(crate) fn complete_program(layout: &Layout, target: &Target, maps: Maps) -> Result<Vec<u64>> {
    let mut asm = Asm::default();
    let [done, marked] = [(); 2].map(|()| asm.label());
    asm.load(Size::Double, R6, R1, layout.bio_complete.subject);
    asm.store(Size::Double, crate::asm::FRAME, KEY, R6);
    look_up(&mut asm, maps.notes);
    asm.jump_if(Cond::Equal, R0, 0, done);
    asm.load(Size::Double, R6, R0, 0);
    asm.load(Size::Double, R7, R0, 8);
    asm.map_value(R8, maps.shared);
    count(&mut asm, Head::Ended);
    mark(&mut asm, target, marked);
    asm.bind(marked);
    asm.map(R1, maps.notes);
    address(&mut asm, R2, KEY);
    asm.call(Helper::Delete);
    asm.bind(done);
    asm.exit();
    asm.finish()
}

/// Makes register 0 the address of the note of the bio in the frame, or 0.
fn look_up(asm: &mut Asm, notes: i32) {
    asm.map(R1, notes);
    address(asm, R2, KEY);
    asm.call(Helper::Lookup);
}
