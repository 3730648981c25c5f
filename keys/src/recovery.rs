//! The recovery key: one 32-byte seed, held by the customer and never by a gateway (FORMAT.md section 2).
//!
//! Its X25519 half is what site keys and epoch keys are wrapped to; its Ed25519 half, the root key, signs `vault.json`.

use std::path::Path;

use landfall_model::{RecipientId, VaultId};

use crate::error::{Problem, Result};
use crate::frame::EpochOpener;
use crate::hpke;
use crate::keyfile;
use crate::passphrase::Passphrase;
use crate::schedule::{Prk, RECOVERY_ED25519, RECOVERY_PICTURE, RECOVERY_X25519, SIGN_VAULT};
use crate::sealed::Sealing;
use crate::secret::Secret;
use crate::signing::{RootPublic, Signer, SitePublic, first_8};
use crate::site::SiteKey;
use crate::wrapped::{self, WrappedHeader, WrappedKind};

/// A vault's recovery key.
pub struct RecoveryKey {
    vault: VaultId,
    seed: Secret<32>,
}

impl RecoveryKey {
    /// A new, random recovery key of a vault.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn generate(vault: VaultId) -> Result<Self> {
        Ok(Self::from_seed(vault, Secret::random()?))
    }

    pub(crate) fn from_seed(vault: VaultId, seed: Secret<32>) -> Self {
        Self { vault, seed }
    }

    pub(crate) fn seed(&self) -> &Secret<32> {
        &self.seed
    }

    /// The vault.
    pub fn vault_id(&self) -> VaultId {
        self.vault
    }

    /// Its public half: what gateways wrap to.
    pub fn recipient(&self) -> Recipient {
        Recipient::from_x25519(hpke::public_key(&self.private_x25519()))
    }

    /// Public half of the root signing key.
    pub fn root_public(&self) -> RootPublic {
        self.root_signer().root_public()
    }

    /// sign("landfall/1/vault", message): the signature of `vault.json` over the text in it.
    pub fn sign_vault(&self, message: &[u8]) -> [u8; 64] {
        self.root_signer().sign(SIGN_VAULT, blake3::hash(message).as_bytes())
    }

    /// Writes a recovery key file (FORMAT.md section 11), sealed when there is a passphrase: a new file, mode 0600,
    /// durable on return.
    ///
    /// # Errors
    /// [`Exists`](crate::KeyErrorKind::Exists) when there is a file, [`Io`](crate::KeyErrorKind::Io).
    pub fn write_new(&self, path: &Path, passphrase: Option<&Passphrase>) -> Result<()> {
        keyfile::write_recovery(path, self, passphrase)
    }

    /// Reads a recovery key file. A passphrase that the file does not need is not looked at.
    ///
    /// # Errors
    /// [`Missing`](crate::KeyErrorKind::Missing) when there is no file, or it needs a passphrase and there is none;
    /// [`Wrong`](crate::KeyErrorKind::Wrong) when the passphrase does not open it, or it is another kind of key;
    /// [`Unsupported`](crate::KeyErrorKind::Unsupported) when it asks for more than 1 GiB or 64 iterations;
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt), [`Io`](crate::KeyErrorKind::Io).
    pub fn read(path: &Path, passphrase: Option<&Passphrase>) -> Result<Self> {
        keyfile::read_recovery(path, passphrase)
    }

    /// The site key in a whole object of FORMAT.md section 5 that `signer`, a site key of the vault's signed
    /// `vault.json`, signed. It trusts this key's own root.
    ///
    /// # Errors
    /// [`Wrong`](crate::KeyErrorKind::Wrong) when it is of another vault, for another recovery key, signed by another,
    /// or an epoch key; [`Corrupt`](crate::KeyErrorKind::Corrupt) when its shape or signature does not hold.
    pub fn unwrap_site_key(&self, wrapped: &[u8], signer: &SitePublic) -> Result<SiteKey> {
        let header = WrappedHeader::parse(wrapped)?;
        let WrappedKind::SiteKey(id) = header.kind() else {
            return Err(Problem::OtherWrapped { expected: "a site key", found: header.kind().words() }.into());
        };
        let plain = self.unwrap(&header, wrapped, signer)?;
        let site = SiteKey::from_plain(self.vault, self.root_public(), &plain);
        let fits = site.filter(|site| site.id() == id && site.public() == *signer);
        fits.ok_or_else(|| Problem::WrappedForged { why: "the key inside is not the one that it names" }.into())
    }

    /// The opener of the epoch in a whole object of FORMAT.md section 5 that `signer` signed.
    ///
    /// # Errors
    /// As [`unwrap_site_key`](Self::unwrap_site_key).
    pub fn unwrap_epoch(&self, wrapped: &[u8], signer: &SitePublic) -> Result<EpochOpener> {
        let header = WrappedHeader::parse(wrapped)?;
        let WrappedKind::Epoch { domain, epoch } = header.kind() else {
            return Err(Problem::OtherWrapped { expected: "an epoch key", found: header.kind().words() }.into());
        };
        let key = self.unwrap(&header, wrapped, signer)?;
        Ok(EpochOpener::new(self.vault, domain, epoch, &key))
    }

    /// A picture of a machine's screen, sealed so that only this recovery key opens it: salt | ciphertext | tag, 32 bytes more than `plain`.
    /// `aad`: the vault's id and the drill's.
    ///
    /// # Errors
    /// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
    pub fn seal_picture(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        Self::picture(&Prk::new(&self.seed)).seal(aad, plain)
    }

    /// A picture that was sealed.
    ///
    /// # Errors
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when it is not what was sealed with this key and `aad`, to the bit.
    pub fn open_picture(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        Self::picture(&Prk::new(&self.seed)).open(aad, sealed)
    }

    fn picture(prk: &Prk) -> Sealing<'_> {
        Sealing { prk, label: RECOVERY_PICTURE, context: &[], what: "the picture of a drill" }
    }

    fn unwrap<const N: usize>(&self, header: &WrappedHeader, object: &[u8], signer: &SitePublic) -> Result<Secret<N>> {
        wrapped::unwrap(header, object, self.vault, self.recipient().id(), signer, &self.private_x25519())
    }

    fn private_x25519(&self) -> Secret<32> {
        Prk::new(&self.seed).derive(RECOVERY_X25519, &[])
    }

    fn root_signer(&self) -> Signer {
        Signer::new(Prk::new(&self.seed).derive(RECOVERY_ED25519, &[]))
    }
}

/// Public half of a recovery key: what keys are wrapped to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recipient {
    id: RecipientId,
    x25519: [u8; 32],
}

impl Recipient {
    /// The recipient with this X25519 public key. Its id follows from it: the first 8 bytes of BLAKE3 of the key.
    pub fn from_x25519(x25519: [u8; 32]) -> Self {
        Self { id: RecipientId::from_bytes(first_8(blake3::hash(&x25519))), x25519 }
    }

    /// Its id.
    pub fn id(&self) -> RecipientId {
        self.id
    }

    /// Its X25519 public key.
    pub fn x25519(&self) -> &[u8; 32] {
        &self.x25519
    }
}

#[cfg(test)]
mod tests;
