//! The gateway: capture. From the disks of a machine to a recovery point in the vault.
//!
//! ```text
//!  source.rs --parts--> region.rs: compare with the map, cut, name --new--> seal.rs: compress, seal, pack
//!                           | changes                                             | full segments
//!                           v                                                     v
//!                       maps.rs: pages, when every chunk has a place  <---  upload.rs: to the store, into the ledger
//!                           |
//!                           v
//!                       point.rs: the signed record; its put-if-absent is the commit
//! ```
//! Every queue between the stages is bounded by a named constant. Nothing in this crate can open content: it has a
//! `ContentSealer` and the site key, and what was sealed is out of its reach.

mod cancel;
mod coalesce;
mod config;
mod cut;
mod figures;
mod files;
mod flow;
mod group_config;
mod groups;
mod holds;
mod image;
mod intake;
mod ledger;
mod level;
mod listing;
mod maps;
mod metrics;
mod newest;
mod orders;
mod owner;
mod pipeline;
mod point;
mod rate;
mod region;
mod registry;
mod reload;
mod renewal;
mod replicate;
mod resync;
mod revoked;
mod rules;
mod schedule;
mod seal;
mod service;
mod source;
mod spool;
mod state;
mod status;
mod tail;
mod tasks;
mod upload;
mod waiting;
mod webhook;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use landfall_keys::{Fingerprinter, PageSealer};
use landfall_model::{DomainId, MachineId, Progress, VaultId};
use landfall_vault::{DedupIndex, Vault};

pub use cancel::Cancel;
pub use config::GatewayConfig;
pub use figures::Figures;
pub use files::raise_open_files;
pub use groups::GroupConfig;
pub use image::DiskSpec;
pub use registry::Registry;
pub use reload::{Configuration, Refusal};
pub use replicate::{DiskOutcome, Outcome, Request, replicate};
pub use revoked::share_revocations;
pub use rules::{BytesPerSecond, Rules};
pub use schedule::{Schedule, WeekMinute, Window, Zone};
pub use service::{Background, Gateway, Options};
pub use state::{Lock, State};
pub use status::{GroupStatus, Health, MachineStatus, Receiving, Status};
pub use webhook::{Webhook, WebhookUrl};

/// What all stages of a cycle share.
struct Session {
    vault: Vault,
    ledger: ledger::Ledger,
    domain: DomainId,
    progress: Arc<Progress>,
    workers: Arc<pipeline::Workers>,
    pages: Fingerprinter,
    page_sealer: PageSealer,
    /// Bytes in chunks that the vault did not have.
    new_bytes: AtomicU64,
}

impl Session {
    fn new(
        vault: &Vault,
        index: Arc<RwLock<DedupIndex>>,
        machine: MachineId,
        domain: DomainId,
        progress: Arc<Progress>,
        workers: Arc<pipeline::Workers>,
        pins: Option<spool::Pins>,
    ) -> Self {
        Self {
            vault: vault.clone(),
            ledger: ledger::Ledger::new(index, machine, pins),
            domain,
            progress,
            workers,
            pages: vault.site().page_fingerprinter(),
            page_sealer: vault.site().index_sealer(),
            new_bytes: AtomicU64::new(0),
        }
    }

    /// The machine that is captured.
    fn machine(&self) -> MachineId {
        self.ledger.machine()
    }

    fn vault_id(&self) -> VaultId {
        self.vault.config().vault_id
    }

    fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }
}
