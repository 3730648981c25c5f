//! Every secret of Landfall, and all cryptography: the only crate that names an AEAD, a signature or a key agreement.
//!
//! The bytes are those of `docs/FORMAT.md`, sections 2 to 6, 8 and 11; the whole key schedule stands on one page, in
//! `schedule.rs`.
//!
//! | who | type | can |
//! |---|---|---|
//! | customer | [`RecoveryKey`] | sign `vault.json`, unwrap a site key, or an epoch as [`EpochOpener`] |
//! | gateway | [`SiteKey`] | name, fingerprint, seal and open indexes and records, sign records |
//! | gateway | [`ContentSealer`] | seal content of one open epoch; it has no way to open |
//! | anybody | [`RootPublic`], [`SitePublic`], [`WrappedHeader`], [`Recipient`] | check signatures; be wrapped to |
//!
//! # Invariants
//! - Secrets are types that cannot be printed, cloned, defaulted or serialised. They are kept on the heap, so that a
//!   move leaves no copy behind, and are zeroised on drop. (What a dependency spills to the stack is out of reach.)
//! - No key seals two messages: every seal draws a fresh 128-bit salt from the system, and the salt makes the key.
//! - Lengths are checked against the bytes that are there, before anything is allocated; bytes from outside never
//!   panic.
//! - A key file is never overwritten, never readable by others, and is durable when `write_new` returns.
//!
//! What the types forbid:
//! ```compile_fail,E0308
//! fn two(key: &landfall_keys::RecoveryKey) -> landfall_keys::RecoveryKey { key.clone() }
//! ```
//! ```compile_fail,E0308
//! fn two(key: &landfall_keys::SiteKey) -> landfall_keys::SiteKey { key.clone() }
//! ```
//! ```compile_fail,E0308
//! fn two(sealer: &landfall_keys::ContentSealer) -> landfall_keys::ContentSealer { sealer.clone() }
//! ```
//! ```compile_fail,E0277
//! fn tell(key: &landfall_keys::RecoveryKey) -> String { format!("{key:?}") }
//! ```
//! ```compile_fail,E0277
//! fn tell(key: &landfall_keys::SiteKey) -> String { format!("{key:?}") }
//! ```
//! ```compile_fail,E0277
//! fn tell(sealer: &landfall_keys::ContentSealer) -> String { format!("{sealer:?}") }
//! ```
//! A gateway cannot open what it sealed:
//! ```compile_fail,E0599
//! use landfall_keys::{ContentSealer, FrameAad};
//! fn open(sealer: &ContentSealer, aad: &FrameAad, frame: &mut [u8]) { let _ = sealer.open_in_place(aad, frame); }
//! ```
//! while one who holds the recovery key can:
//! ```
//! use landfall_keys::{EpochOpener, FrameAad};
//! fn open(opener: &EpochOpener, aad: &FrameAad, frame: &mut [u8]) { let _ = opener.open_in_place(aad, frame); }
//! ```

mod aead;
mod convert;
mod error;
mod fingerprint;
mod frame;
mod hpke;
mod keyfile;
mod passphrase;
mod random;
mod recovery;
mod schedule;
mod sealed;
mod secret;
mod share;
mod signing;
mod site;
mod wrapped;

pub use aead::TAG_LEN;
pub use error::{KeyError, KeyErrorKind, Result};
pub use fingerprint::{CutSecret, Fingerprinter};
pub use frame::{ContentSealer, EpochOpener, FRAME_OVERHEAD, FrameAad, PageSealer};
pub use passphrase::Passphrase;
pub use recovery::{Recipient, RecoveryKey};
pub use sealed::SALT_LEN;
pub use share::{combine, split};
pub use signing::{RootPublic, SitePublic};
pub use site::{AuthoritySeed, SiteKey};
pub use wrapped::{WrappedHeader, WrappedKind};

#[cfg(test)]
mod tests;
