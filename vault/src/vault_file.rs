//! `vault.json`: what a vault is, signed by the root key that only the recovery key can make (FORMAT.md section 4).

use landfall_keys::{Recipient, RecoveryKey, RootPublic, SiteKey, SitePublic};
use landfall_model::{ErrorKind, RecipientId, SiteKeyId, Timestamp, VaultId};
use serde::{Deserialize, Serialize};

use crate::frame::CHUNK_BYTES_MAX;
use crate::page::REGION_BYTES;
use landfall_model::{Error, Result};

/// The format version that this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope {
    landfall: String,
    format: u32,
    signed: String,
    signature: String,
}

/// How chunks are cut.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunking {
    /// Boundaries fall on multiples of this.
    pub sector: u32,
    /// Shortest chunk before a boundary.
    pub min: u32,
    /// What the boundaries average to.
    pub avg: u32,
    /// Longest chunk.
    pub max: u32,
    /// Hash that decides.
    pub hash: String,
    /// Zeroes of this length and longer are not data.
    pub zero_run: u32,
}

impl Chunking {
    /// The chunking of format version 1.
    pub fn version_1() -> Self {
        Self { sector: 4096, min: 16384, avg: 65536, max: CHUNK_BYTES_MAX, hash: "xxh3-64".to_owned(), zero_run: 16384 }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct RecipientEntry {
    id: RecipientId,
    x25519: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct SiteKeyEntry {
    id: SiteKeyId,
    ed25519: String,
}

/// The signed description of a vault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VaultConfig {
    /// The vault.
    pub vault_id: VaultId,
    /// When it was made.
    pub created: Timestamp,
    /// Raised at each rewrite.
    pub revision: u64,
    root_public: String,
    recipients: Vec<RecipientEntry>,
    site_keys: Vec<SiteKeyEntry>,
    /// How chunks are cut.
    pub chunking: Chunking,
    /// Bytes of a disk that one page describes.
    pub region_bytes: u64,
    /// Format features that a reader must know.
    pub requires: Vec<String>,
}

impl VaultConfig {
    /// The description of a new vault.
    pub fn new(recovery: &RecoveryKey, site: &SiteKey, created: Timestamp) -> Self {
        let recipient = recovery.recipient();
        Self {
            vault_id: recovery.vault_id(),
            created,
            revision: 1,
            root_public: recovery.root_public().to_string(),
            recipients: vec![RecipientEntry { id: recipient.id(), x25519: hex(recipient.x25519()) }],
            site_keys: vec![SiteKeyEntry { id: site.id(), ed25519: site.public().to_string() }],
            chunking: Chunking::version_1(),
            region_bytes: REGION_BYTES,
            requires: Vec::new(),
        }
    }

    /// The object, signed.
    ///
    /// # Errors
    /// `Bug` only.
    pub fn encode(&self, recovery: &RecoveryKey) -> Result<Vec<u8>> {
        let bug = |e| Error::with_source(ErrorKind::Bug, "cannot encode vault.json", e);
        let signed = serde_json::to_string_pretty(self).map_err(bug)?;
        let signature = hex(&recovery.sign_vault(signed.as_bytes()));
        let envelope = Envelope { landfall: "vault".to_owned(), format: FORMAT, signed, signature };
        serde_json::to_vec(&envelope).map_err(bug)
    }

    /// Reads the object and checks its signature.
    ///
    /// # Errors
    /// `Unsupported` for a later format or feature, `Key` where another root key signed it, `Corrupt` otherwise.
    pub fn decode(bytes: &[u8], root: &RootPublic) -> Result<Self> {
        let envelope = Self::envelope(bytes)?;
        let signature = data_encoding::HEXLOWER.decode(envelope.signature.as_bytes()).ok();
        let signature = signature.and_then(|s| <[u8; 64]>::try_from(s).ok());
        let signature = signature.ok_or_else(|| Error::corrupt("vault.json: its signature is not 64 bytes of hex"))?;
        let config: Self = serde_json::from_str(&envelope.signed)
            .map_err(|e| Error::corrupt(format!("vault.json: its signed part does not parse: {e}")))?;
        if !root.verify_vault(envelope.signed.as_bytes(), &signature) {
            if config.root_public == root.to_string() {
                return Err(Error::corrupt("vault.json: its signature does not hold; somebody changed it"));
            }
            let why = format!("vault {} belongs to another key: check the key file and the URL", config.vault_id);
            return Err(Error::new(ErrorKind::Key, why));
        }
        if let Some(feature) = config.requires.first() {
            let why = format!("the vault needs the format feature {feature:?}: use a newer Landfall");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        if config.chunking != Chunking::version_1() || config.region_bytes != REGION_BYTES {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the vault cuts disks in a way that this Landfall does not know",
            ));
        }
        Ok(config)
    }

    fn envelope(bytes: &[u8]) -> Result<Envelope> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|e| Error::corrupt(format!("vault.json: not JSON: {e}")))?;
        if let Some(format) = value.get("format").and_then(serde_json::Value::as_u64)
            && format != u64::from(FORMAT)
        {
            let why =
                format!("the vault is of format {format}, this Landfall reads format {FORMAT}: use a newer Landfall");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let envelope: Envelope =
            serde_json::from_value(value).map_err(|e| Error::corrupt(format!("vault.json: {e}")))?;
        if envelope.landfall != "vault" {
            return Err(Error::corrupt("vault.json: it does not describe a vault"));
        }
        Ok(envelope)
    }

    /// The recovery keys that epochs are wrapped to.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn recipients(&self) -> Result<Vec<Recipient>> {
        let parse = |entry: &RecipientEntry| {
            let key = data_encoding::HEXLOWER.decode(entry.x25519.as_bytes()).ok();
            let key = key.and_then(|k| <[u8; 32]>::try_from(k).ok()).map(Recipient::from_x25519);
            key.filter(|k| k.id() == entry.id).ok_or_else(|| Error::corrupt("vault.json: a recipient is no public key"))
        };
        self.recipients.iter().map(parse).collect()
    }

    /// The keys that may sign records.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn signers(&self) -> Result<Vec<SitePublic>> {
        let parse = |entry: &SiteKeyEntry| {
            let key = entry.ed25519.parse::<SitePublic>().ok();
            key.filter(|k| k.id() == entry.id).ok_or_else(|| Error::corrupt("vault.json: a site key is no public key"))
        };
        self.site_keys.iter().map(parse).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
