//! Names of chunks and pages, and where chunks are cut: keyed, so that equality shows only to who holds the key.

use std::sync::Arc;

use landfall_model::ChunkId;

use crate::secret::Secret;

/// Names bytes by BLAKE3 keyed with one domain's chunk fingerprint key, or with the page fingerprint key (FORMAT.md
/// section 3). A clone shares the key.
#[derive(Clone)]
pub struct Fingerprinter(Arc<Secret<32>>);

impl Fingerprinter {
    pub(crate) fn new(key: Secret<32>) -> Self {
        Self(Arc::new(key))
    }

    /// The ChunkId (or PageId) of the uncompressed bytes of a chunk (or page).
    pub fn chunk_id(&self, data: &[u8]) -> ChunkId {
        ChunkId::from_bytes(*blake3::keyed_hash(self.0.as_bytes(), data).as_bytes())
    }
}

/// The secret of XXH3-64 that decides where a domain's chunks end (FORMAT.md section 10).
pub struct CutSecret(Secret<{ CutSecret::LEN }>);

impl CutSecret {
    /// Length in bytes.
    pub const LEN: usize = 192;

    pub(crate) fn new(secret: Secret<{ Self::LEN }>) -> Self {
        Self(secret)
    }

    /// Its bytes; they must not outlive it.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        self.0.as_bytes()
    }
}
