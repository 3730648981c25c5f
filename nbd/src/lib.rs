//! The network block device protocol, as far as disks of virtual machines need it: a client and a server.
//!
//! Fixed newstyle negotiation, `GO`, `LIST` and `INFO`, structured replies, block status by metadata contexts; reads, writes, flushes, trims and
//! zeroes. The server side serves disks straight from a vault; the client side reads the disks of running virtual machines.
//!
//! Everything that the other side sends is hostile until checked: lengths before anything is allocated, handles before anything is believed.
//!
//! Source: "The NBD protocol", `doc/proto.md` of the reference implementation.

mod address;
pub mod client;
pub mod protocol;
pub mod server;

pub use address::Address;
