//! Talking to QEMU: its monitor by the QEMU Machine Protocol (QMP), and its guest agent, which speaks nearly the same from inside a guest.
//!
//! ```text
//!  caller --- Qmp ---------- unix socket --- QEMU               commands with ids, replies, events
//!         '-- GuestAgent --- unix socket --- serial port --- qemu-ga in the guest
//! ```
//! Both are blocking: cuts are made by threads that block anyhow, and a line of JSON and its answer need no runtime. From async code, call them
//! in `spawn_blocking`.
//!
//! # Bounds
//! Every call has a time limit. A line has at most [`LINE_BYTES_MAX`]. At most [`EVENTS_MAX`] events wait for somebody who asks for them; after that the oldest are dropped, and counted.
//! What comes from a guest's agent is written by whoever has the guest: it is checked as anything from outside.
//!
//! # One at a time
//! A socket of QEMU serves one client; the next one is not greeted before the first has gone. So whoever uses one keeps it for as long as it gives commands, and no longer.
//!
//! Source: "QEMU Machine Protocol Specification", `docs/interop/qmp-spec` and `docs/interop/qemu-ga-ref` of QEMU.

mod error;
mod guest;
mod lines;
mod monitor;

pub use error::{QmpError, Result};
pub use guest::{Exited, GuestAgent};
pub use lines::LINE_BYTES_MAX;
pub use monitor::{EVENTS_MAX, Event, Qmp, Version};
