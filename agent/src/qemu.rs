//! Source `qemu`: the disks of a virtual machine, captured from its host by dirty bitmaps. Nothing runs in the guest.
//!
//! ```text
//!                            guest writes
//!                                 |
//!   device --drive--> [cbw filter] ------> root node (the disk; bitmaps: landfall-OWNER-CYCLE)
//!                        |   \ old bytes first
//!   NBD export <-- snapshot    '--> scratch file
//! ```
//! A cut puts a filter between the guest's device and its disk: before a block is overwritten, what it held goes to a scratch file, and the snapshot reads it there. So what is read
//! is the disk as it was at the cut, while the guest writes on. A bitmap that begins before the filter is put in says what is written from this cut on; the one of the cut before ends after it. What is written between is in both.
//!
//! # Consistency
//! A bitmap is named after the cycle at whose cut it begins. The fingerprints of the agent are of one cycle: its bitmap, if QEMU has it, names all that may differ from them. Nothing else is
//! remembered: another QEMU, a lost bitmap, an older state directory have no bitmap of that name, and the disk is compared. A bitmap goes only when the fingerprints are of a later cycle; of a cycle that failed, it is
//! merged into the one before.
//!
//! # What the guest feels
//! Nothing but the moment in which the filter is put in. Several disks are cut while the guest is stopped, for milliseconds, with a guard that lets it go on if the agent dies meanwhile. A full scratch file, or one that fails,
//! ends the snapshot (`break-snapshot`): the cycle fails, the guest goes on.
//!
//! # Crash consistency
//! All that a killed agent leaves in QEMU carries its name and is removed before the next cut: export, filter, scratch, server. Bitmaps stay, and are of use.

mod config;
mod cut;
mod graph;
mod guest;
mod hooks;
mod names;
mod power;
mod view;
mod vm;

#[cfg(test)]
mod tests;

pub use config::QemuConfig;
pub use guest::{release_guest, release_machine};
pub use hooks::Hooks;

pub(crate) use config::qemu;
pub(crate) use guest::{FrozenGuest, GuestFreeze, Thawed};
pub(crate) use view::GuestDisk;
pub(crate) use vm::{Vm, check};

/// The source that points name.
pub(crate) const SOURCE: &str = "qemu";
