//! The vault: everything that recovery needs, in one prefix of one object store, in a format that `docs/FORMAT.md` describes byte for byte.
//!
//! What writes it is [`landfall-gateway`]; what reads it is [`landfall-restore`]. Neither a database nor anything else outside the vault is
//! needed. This crate can open metadata (with the site key), and content only through an `EpochOpener`, which needs the recovery key.
//!
//! [`landfall-gateway`]: https://github.com/landfall-dr/landfall
//! [`landfall-restore`]: https://github.com/landfall-dr/landfall

mod access;
mod aside;
mod body;
mod buffer;
pub mod checkpoint;
mod crash;
mod drill;
mod frame;
mod heartbeat;
mod index;
mod job;
pub mod layout;
mod local;
mod machine;
mod order;
mod page;
mod probe;
mod profile;
mod record;
mod revocation;
mod row;
pub mod segment;
mod store;
mod tenure;
mod vault;
mod vault_file;
pub mod verify;
mod view;
mod wire;

pub use access::StoreOptions;
pub use body::{Body, DiskPages, PageRef};
pub use crash::{CRASH_POINTS, crash_point};
pub use drill::{DrillKey, PICTURE_BYTES_MAX};
pub use frame::{CHUNK_BYTES_MAX, Compressed, Compressor, Decompressor, PAGE_BYTES_MAX};
pub use heartbeat::{Beat, HEARTBEAT_EVERY, HEARTBEAT_TTL, Heartbeat, Held};
pub use index::{DedupIndex, read_directory};
pub use job::Job;
pub use landfall_model::{Error, Result};
pub use machine::{Machine, Point, PointKey, Selector, SignedPoint, follows, refers_only_to_stored};
pub use order::{ORDER_TIME, Order};
pub use page::{REGION_BYTES, decode as decode_page, encode as encode_page};
pub use record::{Header, Kind, Position};
pub use revocation::RevocationKey;
pub use row::Row;
pub use store::{Listed, Put, PutExact, Store, Traffic};
pub use tenure::Tenure;
pub use vault::Vault;
pub use vault_file::{Chunking, FORMAT, VaultConfig};
pub use view::{MapView, load_page, region_count, region_len};

#[cfg(test)]
mod tests;

use landfall_model::{ErrorKind, Timestamp};

/// The moment by this host's clock.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Random bytes.
///
/// # Errors
/// `Unavailable` where the host has no randomness.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut random = [0; N];
    getrandom::fill(&mut random)
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, "the host gives no random numbers", e))?;
    Ok(random)
}

/// Sixteen random hex digits.
///
/// # Errors
/// As for [`random`].
pub fn random_hex() -> Result<String> {
    Ok(data_encoding::HEXLOWER.encode(&random::<8>()?))
}
