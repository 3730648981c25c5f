//! The site key: what a gateway holds, and what reading indexes needs (FORMAT.md sections 2 and 3).
//!
//! Three independent random keys: the index key seals what says where data lies, the fingerprint key names machines,
//! domains and chunks, the signing key signs. None of them opens content.

use std::path::Path;
use std::sync::Arc;

use landfall_model::{DomainId, DomainName, MachineId, MachineName, SiteKeyId, VaultId};

use crate::error::Result;
use crate::fingerprint::{CutSecret, Fingerprinter};
use crate::frame::PageSealer;
use crate::keyfile;
use crate::recovery::Recipient;
use crate::schedule::{self, DIRECTORY, Prk, RECORD, SIGN_RECORD};
use crate::sealed::Sealing;
use crate::secret::Secret;
use crate::signing::{RootPublic, Signer, SitePublic};
use crate::wrapped::{self, SITE_PLAIN_LEN, WrappedKind};

/// A site's key: index key, fingerprint key and signing key, with the vault that they are for and whom that vault
/// trusts.
pub struct SiteKey {
    vault: VaultId,
    root: RootPublic,
    index: Secret<32>,
    fingerprint: Secret<32>,
    signer: Signer,
    public: SitePublic,
    index_prk: Arc<Prk>,
    fingerprint_prk: Prk,
}

/// The private key of the agents' certificate authority, Ed25519.
pub struct AuthoritySeed(Secret<32>);

impl AuthoritySeed {
    /// Its bytes; they must not outlive it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl SiteKey {
    /// A new, random site key of the vault whose root key is `root`.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn generate(vault: VaultId, root: RootPublic) -> Result<Self> {
        Ok(Self::from_parts(vault, root, Secret::random()?, Secret::random()?, Secret::random()?))
    }

    pub(crate) fn from_parts(
        vault: VaultId,
        root: RootPublic,
        index: Secret<32>,
        fingerprint: Secret<32>,
        signing_seed: Secret<32>,
    ) -> Self {
        let signer = Signer::new(signing_seed);
        let public = signer.site_public();
        let (index_prk, fingerprint_prk) = (Arc::new(Prk::new(&index)), Prk::new(&fingerprint));
        Self { vault, root, index, fingerprint, signer, public, index_prk, fingerprint_prk }
    }

    /// Its id: the first 8 bytes of BLAKE3 of its public key.
    pub fn id(&self) -> SiteKeyId {
        self.public.id()
    }

    /// The vault.
    pub fn vault_id(&self) -> VaultId {
        self.vault
    }

    /// The root key that `vault.json` must be signed by.
    pub fn root_public(&self) -> RootPublic {
        self.root
    }

    /// Its public half.
    pub fn public(&self) -> SitePublic {
        self.public
    }

    /// Writes a site key file (FORMAT.md section 11): a new file, mode 0600, durable on return.
    ///
    /// # Errors
    /// [`Exists`](crate::KeyErrorKind::Exists) when there is a file, [`Io`](crate::KeyErrorKind::Io).
    pub fn write_new(&self, path: &Path) -> Result<()> {
        keyfile::write_site(path, self)
    }

    /// Reads a site key file.
    ///
    /// # Errors
    /// [`Missing`](crate::KeyErrorKind::Missing) when there is no file, [`Wrong`](crate::KeyErrorKind::Wrong) when it
    /// is another kind of key, [`Corrupt`](crate::KeyErrorKind::Corrupt),
    /// [`Unsupported`](crate::KeyErrorKind::Unsupported), [`Io`](crate::KeyErrorKind::Io).
    pub fn read(path: &Path) -> Result<Self> {
        keyfile::read_site(path)
    }

    /// The site key wrapped to `recipient` and signed by itself: the whole object of FORMAT.md section 5, 288 bytes.
    ///
    /// # Errors
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when the recipient's public key is none,
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn wrap_to(&self, recipient: &Recipient) -> Result<Vec<u8>> {
        self.wrap_with(recipient, Secret::random()?)
    }

    pub(crate) fn wrap_with(&self, recipient: &Recipient, ephemeral: Secret<32>) -> Result<Vec<u8>> {
        let mut plain = Secret::<SITE_PLAIN_LEN>::zeroed();
        for (place, part) in plain.as_mut_bytes().chunks_exact_mut(32).zip(self.secrets()) {
            place.copy_from_slice(part.as_bytes());
        }
        wrapped::wrap(WrappedKind::SiteKey(self.id()), self.vault, recipient, &self.signer, &plain, ephemeral)
    }

    /// The site key in the plain text of a wrapped one.
    pub(crate) fn from_plain(vault: VaultId, root: RootPublic, plain: &Secret<SITE_PLAIN_LEN>) -> Option<Self> {
        let bytes = plain.as_bytes();
        let part = |i: usize| Secret::copied_from(&bytes[32 * i..32 * (i + 1)]);
        Some(Self::from_parts(vault, root, part(0)?, part(1)?, part(2)?))
    }

    /// How the store names a domain.
    pub fn domain_id(&self, name: &DomainName) -> DomainId {
        DomainId::from_bytes(self.fingerprint_prk.id(schedule::DOMAIN_ID, name.as_str().as_bytes()))
    }

    /// How the store names a machine.
    pub fn machine_id(&self, name: &MachineName) -> MachineId {
        MachineId::from_bytes(self.fingerprint_prk.id(schedule::MACHINE_ID, name.as_str().as_bytes()))
    }

    /// Names the chunks of a domain.
    pub fn fingerprinter(&self, domain: DomainId) -> Fingerprinter {
        Fingerprinter::new(self.fingerprint_prk.derive(schedule::FINGERPRINT, domain.as_bytes()))
    }

    /// Names pages.
    pub fn page_fingerprinter(&self) -> Fingerprinter {
        Fingerprinter::new(self.fingerprint_prk.derive(schedule::PAGE_ID, &[]))
    }

    /// What decides where the chunks of a domain end.
    pub fn cut_secret(&self, domain: DomainId) -> CutSecret {
        CutSecret::new(self.fingerprint_prk.derive(schedule::CUT, domain.as_bytes()))
    }

    /// The seed of the certificate authority of this site's agents: every gateway that holds the site key has the same authority. Not part
    /// of the vault format.
    pub fn agent_authority_seed(&self) -> AuthoritySeed {
        AuthoritySeed(self.fingerprint_prk.derive(schedule::AGENT_CA, &[]))
    }

    /// Seals and opens pages.
    pub fn index_sealer(&self) -> PageSealer {
        PageSealer::new(self.vault, Arc::clone(&self.index_prk))
    }

    /// A record's body, sealed: salt | ciphertext | tag, 32 bytes more than `plain`. `aad` is the record's header,
    /// bytes 0..160.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn seal_record(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        self.record().seal(aad, plain)
    }

    /// The body of a record.
    ///
    /// # Errors
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when it is not what was sealed with this key and `aad`, to the bit.
    pub fn open_record(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        self.record().open(aad, sealed)
    }

    /// A segment's directory, sealed: salt | ciphertext | tag, 32 bytes more than `plain`. `aad` is the segment's first
    /// and last 32 bytes.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn seal_directory(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        self.directory().seal(aad, plain)
    }

    /// A segment's directory.
    ///
    /// # Errors
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when it is not what was sealed with this key and `aad`, to the bit.
    pub fn open_directory(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        self.directory().open(aad, sealed)
    }

    /// Signs a record by its digest, the BLAKE3 of everything before the signature (FORMAT.md section 8).
    pub fn sign_record(&self, digest: &[u8; 32]) -> [u8; 64] {
        self.signer.sign(SIGN_RECORD, digest)
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Index key, fingerprint key, signing seed: as they are written down.
    pub(crate) fn secrets(&self) -> [&Secret<32>; 3] {
        [&self.index, &self.fingerprint, self.signer.seed()]
    }

    fn record(&self) -> Sealing<'_> {
        Sealing { prk: &self.index_prk, label: RECORD, context: &[], what: "record's body" }
    }

    fn directory(&self) -> Sealing<'_> {
        Sealing { prk: &self.index_prk, label: DIRECTORY, context: &[], what: "segment's directory" }
    }
}

#[cfg(test)]
mod tests;
