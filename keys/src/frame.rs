//! Frames: chunks and pages, each sealed under its own key (FORMAT.md section 6).
//!
//! A frame is `salt | ciphertext | tag`, [`FRAME_OVERHEAD`] bytes longer than its data. It does not know its place;
//! what it is, it knows: vault, epoch, ChunkId, raw length and codec are authenticated with it.
//!
//! What can be done with content is three types: [`ContentSealer`] (a gateway, one open epoch) only seals,
//! [`EpochOpener`] (who holds the recovery key) only opens, [`PageSealer`] does both, for pages, whose key the gateway
//! keeps.

use std::sync::Arc;

use landfall_model::{ChunkId, DomainId, EpochId, VaultId};

use crate::error::{Problem, Result};
use crate::random;
use crate::recovery::Recipient;
use crate::schedule::{FRAME, PAGE, Prk};
use crate::sealed::{self, Sealing};
use crate::secret::Secret;
use crate::site::SiteKey;
use crate::wrapped::{self, WrappedKind};

/// How many bytes longer a frame is than its data: salt and tag.
pub const FRAME_OVERHEAD: usize = sealed::OVERHEAD;

/// Format version in the additional data.
const FORMAT: u16 = 1;

/// What a frame is, authenticated with its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAad {
    /// The vault.
    pub vault: VaultId,
    /// The epoch whose key seals it; [`EpochId::INDEX`] for a page.
    pub epoch: EpochId,
    /// ChunkId, or PageId for a page.
    pub id: ChunkId,
    /// Length of the uncompressed bytes.
    pub raw_len: u32,
    /// How the data is stored: 0 as it is, 1 one Zstandard frame.
    pub codec: u8,
}

impl FrameAad {
    /// Length of the additional data in bytes.
    pub const LEN: usize = 71;

    /// The additional data: format version, vault id, epoch id, ChunkId, raw length, codec.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..2].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[2..18].copy_from_slice(self.vault.as_bytes());
        bytes[18..34].copy_from_slice(self.epoch.as_bytes());
        bytes[34..66].copy_from_slice(self.id.as_bytes());
        bytes[66..70].copy_from_slice(&self.raw_len.to_le_bytes());
        bytes[70] = self.codec;
        bytes
    }

    /// Refuses a frame of another vault or epoch before any key is derived.
    fn expect(&self, vault: VaultId, epoch: EpochId) -> Result<()> {
        if self.vault != vault {
            return Err(Problem::OtherVault { what: "frame", expected: vault, found: self.vault }.into());
        }
        if self.epoch != epoch {
            return Err(Problem::OtherEpoch { expected: epoch, found: self.epoch }.into());
        }
        Ok(())
    }
}

fn content<'a>(prk: &'a Prk, aad: &'a FrameAad) -> Sealing<'a> {
    Sealing { prk, label: FRAME, context: aad.id.as_bytes(), what: "content frame" }
}

fn page<'a>(prk: &'a Prk, aad: &'a FrameAad) -> Sealing<'a> {
    Sealing { prk, label: PAGE, context: aad.id.as_bytes(), what: "index frame" }
}

/// The key of one open epoch of one domain. It seals, it wraps itself to recovery keys, and it cannot open.
///
/// `Send + Sync`; share it by reference. Closing the epoch is dropping it.
pub struct ContentSealer {
    vault: VaultId,
    domain: DomainId,
    epoch: EpochId,
    key: Secret<32>,
    prk: Prk,
}

impl ContentSealer {
    /// A new epoch: a random key under a random id. Its wrapped key must be durable before anything sealed is
    /// acknowledged.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn open_epoch(site: &SiteKey, domain: DomainId) -> Result<Self> {
        Ok(Self::new(site.vault_id(), domain, EpochId::from_bytes(random::bytes()?), Secret::random()?))
    }

    pub(crate) fn new(vault: VaultId, domain: DomainId, epoch: EpochId, key: Secret<32>) -> Self {
        let prk = Prk::new(&key);
        Self { vault, domain, epoch, key, prk }
    }

    /// The epoch.
    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// The dedup domain.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// The epoch key wrapped to `recipient` and signed by `site`: the whole object of FORMAT.md section 5, 224 bytes.
    ///
    /// # Errors
    /// [`Wrong`](crate::KeyErrorKind::Wrong) when `site` is of another vault, [`Corrupt`](crate::KeyErrorKind::Corrupt)
    /// when the recipient's public key is none, [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn wrapped_for(&self, site: &SiteKey, recipient: &Recipient) -> Result<Vec<u8>> {
        self.wrapped_with(site, recipient, Secret::random()?)
    }

    pub(crate) fn wrapped_with(&self, site: &SiteKey, to: &Recipient, ephemeral: Secret<32>) -> Result<Vec<u8>> {
        if site.vault_id() != self.vault {
            let (expected, found) = (site.vault_id(), self.vault);
            return Err(Problem::OtherVault { what: "epoch", expected, found }.into());
        }
        let kind = WrappedKind::Epoch { domain: self.domain, epoch: self.epoch };
        wrapped::wrap(kind, self.vault, to, site.signer(), &self.key, ephemeral)
    }

    /// Appends the frame of `data` to `out`: [`FRAME_OVERHEAD`] bytes more than `data`, under a fresh salt. `data` is
    /// the chunk's bytes as `aad.codec` stores them.
    ///
    /// # Errors
    /// [`Wrong`](crate::KeyErrorKind::Wrong) when `aad` is of another vault or epoch, [`Io`](crate::KeyErrorKind::Io)
    /// when the system gives no random bytes. `out` is then as it was.
    pub fn seal_into(&self, aad: &FrameAad, data: &[u8], out: &mut Vec<u8>) -> Result<()> {
        aad.expect(self.vault, self.epoch)?;
        content(&self.prk, aad).seal_into(&aad.to_bytes(), data, out)
    }
}

/// The key of one epoch, unwrapped by a recovery key. It opens content, and seals nothing.
///
/// `Send + Sync`; share it by reference.
pub struct EpochOpener {
    vault: VaultId,
    domain: DomainId,
    epoch: EpochId,
    prk: Prk,
}

impl EpochOpener {
    pub(crate) fn new(vault: VaultId, domain: DomainId, epoch: EpochId, key: &Secret<32>) -> Self {
        Self { vault, domain, epoch, prk: Prk::new(key) }
    }

    /// The epoch.
    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// The dedup domain.
    pub fn domain(&self) -> DomainId {
        self.domain
    }

    /// Opens a frame where it stands and returns its data part, still as `aad.codec` stores it. The caller
    /// decompresses, recomputes the ChunkId and refuses a mismatch.
    ///
    /// # Errors
    /// [`Wrong`](crate::KeyErrorKind::Wrong) when `aad` is of another vault or epoch,
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when the frame is not what `aad` says, to the bit. `frame` is then
    /// unchanged.
    pub fn open_in_place<'a>(&self, aad: &FrameAad, frame: &'a mut [u8]) -> Result<&'a mut [u8]> {
        aad.expect(self.vault, self.epoch)?;
        content(&self.prk, aad).open_in_place(&aad.to_bytes(), frame)
    }
}

/// Seals and opens index frames: pages, under a site's index key. A clone shares the key.
#[derive(Clone)]
pub struct PageSealer {
    vault: VaultId,
    index: Arc<Prk>,
}

impl PageSealer {
    pub(crate) fn new(vault: VaultId, index: Arc<Prk>) -> Self {
        Self { vault, index }
    }

    /// The frame of a page: [`FRAME_OVERHEAD`] bytes more than `data`. `aad.epoch` is [`EpochId::INDEX`], `aad.id` the
    /// PageId.
    ///
    /// # Errors
    /// As [`ContentSealer::seal_into`].
    pub fn seal_page(&self, aad: &FrameAad, data: &[u8]) -> Result<Vec<u8>> {
        aad.expect(self.vault, EpochId::INDEX)?;
        page(&self.index, aad).seal(&aad.to_bytes(), data)
    }

    /// The data of a page's frame, still as `aad.codec` stores it.
    ///
    /// # Errors
    /// As [`EpochOpener::open_in_place`].
    pub fn open_page(&self, aad: &FrameAad, frame: &[u8]) -> Result<Vec<u8>> {
        aad.expect(self.vault, EpochId::INDEX)?;
        page(&self.index, aad).open(&aad.to_bytes(), frame)
    }
}

#[cfg(test)]
mod tests;
