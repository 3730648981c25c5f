//! The gateway: capture. From the disks of a machine to a recovery point in the vault.
//!
//! ```text
//!  disk --read--> region.rs: compare with the map, cut, name --new--> seal.rs: compress, seal, pack
//!                     | changes                                             | full segments
//!                     v                                                     v
//!                 maps.rs: pages, when every chunk has a place  <---  upload.rs: to the store, into the ledger
//!                     |
//!                     v
//!                 capture.rs: the point: one put-if-absent is the commit
//! ```
//! Every queue between the stages is bounded by a named constant. Nothing in this crate can open content: it has a
//! `ContentSealer` and the site key, and what was sealed is out of its reach.

mod capture;
mod cut;
mod image;
mod ledger;
mod maps;
mod region;
mod seal;
mod state;
mod tail;
mod upload;

use std::sync::Arc;

use landfall_keys::{Fingerprinter, PageSealer};
use landfall_model::{Progress, VaultId};
use landfall_vault::Vault;

pub use capture::{Cancel, DiskOutcome, Outcome, Request, replicate};
pub use image::DiskSpec;
pub use state::{Lock, State};

/// What all stages of a cycle share.
struct Session {
    vault: Vault,
    ledger: ledger::Ledger,
    progress: Arc<Progress>,
    /// Zstandard level of chunks.
    level: i32,
    pages: Fingerprinter,
    page_sealer: PageSealer,
}

impl Session {
    fn vault_id(&self) -> VaultId {
        self.vault.config().vault_id
    }
}
