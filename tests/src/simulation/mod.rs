//! The gateway in a simulation: real code of intake, spool, upload and commit, in one process, with time, store, network and the moments of
//! crashes out of a seed.
//!
//! ```text
//!  agents (model) <--- network (seeded) ---> Gateway (the product) <--- store (seeded) ---> bucket in memory
//!        |                                        | state directory, real files
//!        '--- what was cut, what was said ---> law <--- what the bucket holds in the end
//! ```
//! | module | gives |
//! |---|---|
//! | [`dice`] | numbers out of a seed |
//! | [`disk`] | disks of model machines, whose copies cost nothing |
//! | [`store`] | an `ObjectStore` with latency, errors, outages, answers that are lost and requests that arrive late |
//! | [`network`] | a link that delays and is cut |
//! | [`agent`] | a machine that follows the protocol of the agent |
//! | [`host`] | a gateway that is started, killed, put to sleep, and loses its disk |
//! | [`world`] | who does what when |
//! | [`law`] | what must be true of the vault in the end |
//!
//! # Time
//! Tokio's clock is paused: it goes on by itself when nothing is left to do. Hours cost what is done in them. The clock of the host (the
//! `store_time` of points, the time in leases) is the real one.
//!
//! # What a seed repeats
//! All that is thrown: disks, delays, faults, and when they happen. Not the random bytes of keys and ids, the order in which `select!` looks, nor
//! how a thread that writes a file races the runtime. A seed that fails mostly fails again, and not always in the same way.
//!
//! # What is not simulated
//! The agent (it has a simulation of its own), sockets and TLS, and a page cache that loses what was not synced: a crash here is one of the
//! process. The tests of crash points and of real processes cover what lies between two steps of one write.

pub mod agent;
pub mod dice;
pub mod disk;
pub mod host;
pub mod law;
pub mod network;
pub mod store;
pub mod world;
