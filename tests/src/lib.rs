//! What the tests of Landfall stand on: real peers, real disks, the real binary, and stores that misbehave on purpose.
//!
//! | module | gives |
//! |---|---|
//! | [`peers`] | Azurite, moto, our GCS emulator and a local directory, each started for one test and stopped after it |
//! | [`gcs`] | the XML API of Google Cloud Storage, in memory: nothing off the shelf speaks it |
//! | [`proxy`] | a reverse proxy that answers 503 or 409, stalls, resets, loses answers, and makes a store lie |
//! | [`tunnel`], [`tls`] | a forward proxy that wants credentials; TLS before a peer, with an authority of its own |
//! | [`faults`] | the same fault model as an `ObjectStore`, for tests below the binary |
//! | [`conformance`] | what a store must do to hold a vault, checked over any `ObjectStore` |
//! | [`fleet`] | machines whose disks are written to all the time, and a log of what they held at each cut |
//! | [`disks`] | disk images with real file systems, made without root, and the judges: `e2fsck`, `xfs_repair`, `qemu-img` |
//! | [`guest`] | a guest in QEMU that boots in seconds, does what a script says, and takes commands |
//! | [`landfall`] | the binary, run in an environment of its own, and a [`landfall::Site`] to tell stories with |
//! | [`loops`] | block devices, and file systems mounted from them |
//! | [`netns`] | hosts with networks of their own, whose cables can be pulled |
//! | [`postgres`] | PostgreSQL servers, as their own user |
//! | [`simulation`] | the gateway with time, store and network out of a seed |
//! | [`tools`] | finding programs; what to do when one is missing |
//!
//! Everything that a test starts ends with the value that stands for it, also when the test fails. Nothing listens on anything
//! but 127.0.0.1 and the networks of [`netns`], and nothing is written outside a temporary folder.
//!
//! Part of a harness's job is to stop a test with a message, so the helpers here panic where a product crate would return an error.
#![expect(clippy::expect_used, clippy::panic, reason = "a test harness reports what went wrong by failing the test")]

pub mod conformance;
pub mod disks;
pub mod faults;
pub mod fleet;
pub mod gcs;
pub mod guest;
pub mod http;
pub mod landfall;
pub mod loops;
pub mod netns;
pub mod peers;
pub mod postgres;
pub mod proxy;
pub mod relay;
pub mod service;
pub mod simulation;
pub mod tls;
pub mod tools;
pub mod tunnel;
pub mod volumes;
