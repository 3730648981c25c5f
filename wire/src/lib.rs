//! What agent and gateway say to each other: messages, their bounds, the version that both speak, and the link that carries them.
//!
//! ```text
//!  agent                              gateway
//!    Hello(versions, machine)  --->
//!                              <---   (Alive ...) Welcome(version, newest cycle) | Refuse
//!    Ask(why)                  --->   only where everything must be sent
//!                              <---   Wait(why) ... Resync(reason)
//!    Begin(cycle, parent)      --->
//!    Data, Zero ...            --->
//!    End(cycle, digest)        --->
//!                              <---   Spooled(cycle) ... Committed(cycle, seq) | Resync(reason) | Refuse
//!
//!  between cycles:             <---   Hold(reason) ... Go
//!                              <---   Prepare(id)
//!    Ready(id)                 --->
//!                              <---   Freeze(id)
//!    Frozen(id)                --->
//!                              <---   Cut(id, time)      | Cancel(id, reason) at any step
//!    Begin(cycle, group id) ...--->                      | Unready(id, reason) at any step
//! ```
//! Encoded as Protocol Buffers. Whatever comes from the other side is checked here before anybody sees it: lengths, counts, order,
//! ranges ([`decode`](FromAgent::decode)). What cannot be right is an error of kind `Corrupt`, and the link ends.
//!
//! A link is one bidirectional gRPC call (`/landfall.v1.Gateway/Ship`) on HTTP/2, TLS 1.3, certificates on both sides ([`pki`]).
//! Two more calls give a machine its certificate: `Enroll`, with a token, and `Renew`, with the certificate before. [`server::serve`] is
//! the gateway's end, [`client`] the agent's. The flow control of HTTP/2 reaches from the gateway's reader to the agent's.

mod begin;
mod codec;
mod cycle;
mod link;
mod message;
mod order;
mod raw;
mod status;
mod tls;

pub mod client;
pub mod pki;
pub mod server;

#[cfg(test)]
mod tests;

pub use cycle::{CycleCheck, CycleDigest};
pub use link::Incoming;
pub use message::{Begin, Data, DiskShape, End, FromAgent, FromGateway, Hello, Welcome, choose_version};
pub use order::Order;
pub use status::kind_of_code;
pub use tls::Peer;

/// Versions of the protocol that this build speaks. Version 2 knows cycles that are [`landfall_model::Consistency::Unfinished`], version 3 orders.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;
/// Agents of an older version cannot be given an order.
pub const ORDERS_SINCE: u32 = 3;
/// Longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most bytes of a disk in one message.
pub const DATA_BYTES_MAX: usize = 1024 * 1024;
/// Largest disk: 256 TiB.
pub const DISK_BYTES_MAX: u64 = 1 << 48;
/// Most disks of a machine.
pub const DISKS_MAX: usize = 1024;
/// Most network interfaces of a machine.
pub const NICS_MAX: usize = 256;
/// Longest text in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Most messages that wait between a link and the task that feeds or reads it: few, so that flow control reaches that task.
pub const MESSAGES_WAITING_MAX: usize = 4;
