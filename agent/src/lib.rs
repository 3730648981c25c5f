//! The agent: on a protected host, ships what changed on its disks to a gateway of the site. It has no key of the vault, and knows no
//! store.
//!
//! # Overview
//! ```text
//!  disks --> cut: freeze, read, compare with fingerprints --> link --> gateway
//!              |                                                         |
//!              '--> journal (durable before `End`) --- applied when `Spooled` is heard --> fingerprints, history
//! ```
//! A cycle is one cut of all disks, named by a random id. It is relative to the newest cycle that the gateway has, if that is known here,
//! else it is a full one. Ranges of spooled cycles are kept until they are committed, so that another gateway, which lacks the spool of the
//! first, can be given what changed since its own newest cycle.
//!
//! # Consistency
//! The fingerprints are of exactly one cycle, which was spooled. A gateway takes a cycle only on top of its parent. So what a gateway has
//! is, after each spooled cycle, what the disks held at the cut, whatever failed in between.
//!
//! # Crash consistency
//! All of it is in the module `state`: one file, replaced whole, says what the others mean.

mod backoff;
mod batch;
mod cancel;
mod check;
mod compare;
mod config;
mod durable;
mod fingerprints;
mod freeze;
mod history;
mod image;
mod journal;
mod link;
mod mounts;
mod obey;
mod orders;
mod pace;
mod power;
mod program;
mod qemu;
mod ranges;
mod rounds;
mod run;
mod settle;
mod shape;
mod ship;
mod skip;
mod snapshots;
mod state;
mod status;
mod tracking;
mod watch;

#[cfg(test)]
mod tests;

pub use cancel::Cancel;
pub use check::{Check, DiskCheck, check};
pub use config::AgentConfig;
pub use image::{DiskConfig, SourceChoice};
pub use qemu::{Hooks, QemuConfig, release_guest, release_machine};
pub use run::{run, run_once};
pub use status::{CommittedStatus, CutStatus, ErrorStatus, HeldStatus, Status};
