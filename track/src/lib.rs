//! Which blocks of this host's block devices were written: without a kernel module, and without a compiler on the host.
//!
//! # Overview
//! ```text
//!  a write completes --> eBPF program of the watch --> a bit per block, in memory that the kernel and we share --> Watch::take
//! ```
//! A [`Watch`] is of one device, a whole disk or a partition. Its programs are assembled here, for this kernel and this device, and loaded
//! by bpf(2): where the kernel keeps what, its own BTF says.
//!
//! # Consistency
//! A write is marked when it completes: the device has it, and who wrote has not been told. Who takes the marks and then reads the marked
//! blocks *past the page cache* (`O_DIRECT`) reads either what was written, or an older state of a block that is marked in the next take.
//! So after a last take with nothing in flight (a frozen file system) and a last read the copy is the disk.
//!
//! No loss is silent: where anything may have gone by unseen, [`Marks::lost`] says why, and everything must be read and compared. Then drop
//! the watch and attach a new one *before* that reading begins.
//!
//! # Crash consistency
//! Marks live in memory. A process that ends, or a host that stops, loses them: the next one reads everything.

mod asm;
mod bios;
mod btf;
mod device;
mod layout;
mod marking;
mod requests;
mod sys;
mod tally;
mod watch;

#[cfg(test)]
mod tests;

pub use watch::{Kind, Marks, Watch, support};
