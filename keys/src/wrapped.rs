//! Wrapped keys: a site key or an epoch key, sealed to a recovery key and signed by a site key (FORMAT.md section 5).
//!
//! ```text
//! 0          8         10     11  12      16      32          40       56             72       80
//! ├ LANDWRAP ┼ version ┼ kind ┼ 0 ┼ c ────┼ vault ┼ recipient ┼ domain ┼ epoch / site ┼ signer ┤
//! 80         112              112 + c            176 + c
//! ├ enc ─────┼ ciphertext ────┼ signature ───────┤
//! ```
//! Invariants: nothing is decrypted before its signature was checked; the header is the HPKE info, so it is bound to
//! the plain text too; a header says exactly one thing (reserved and unused bytes are zero, lengths fit the kind).

use landfall_model::{DomainId, EpochId, RecipientId, SiteKeyId, VaultId};
use zeroize::Zeroizing;

use crate::aead::TAG_LEN;
use crate::error::{Problem, Result};
use crate::hpke::{self, ENC_LEN};
use crate::recovery::Recipient;
use crate::schedule::SIGN_WRAP;
use crate::secret::Secret;
use crate::signing::{SIGNATURE_LEN, Signer, SitePublic};

const MAGIC: [u8; 8] = *b"LANDWRAP";
const FORMAT: u16 = 1;
const KIND_EPOCH: u8 = 1;
const KIND_SITE: u8 = 2;
const HEADER_LEN: usize = 80;
const CIPHERTEXT_AT: usize = HEADER_LEN + ENC_LEN;

/// Plain length of an epoch key.
pub(crate) const EPOCH_PLAIN_LEN: usize = 32;
/// Plain length of a site key: index key, fingerprint key, signing seed.
pub(crate) const SITE_PLAIN_LEN: usize = 96;

/// Which key is inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WrappedKind {
    /// The content key of an epoch of a domain.
    Epoch {
        /// The dedup domain.
        domain: DomainId,
        /// The epoch.
        epoch: EpochId,
    },
    /// A site key; it signs its own wrapping.
    SiteKey(SiteKeyId),
}

impl WrappedKind {
    /// How it is called in an error.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Self::Epoch { .. } => "an epoch key",
            Self::SiteKey(_) => "a site key",
        }
    }

    fn plain_len(&self) -> usize {
        match self {
            Self::Epoch { .. } => EPOCH_PLAIN_LEN,
            Self::SiteKey(_) => SITE_PLAIN_LEN,
        }
    }
}

/// What a wrapped key says about itself, to anybody. It is only said until [`verify_signature`](Self::verify_signature)
/// holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrappedHeader {
    kind: WrappedKind,
    vault: VaultId,
    recipient: RecipientId,
    signer: SiteKeyId,
    digest: [u8; 32],
    signature: [u8; SIGNATURE_LEN],
}

impl WrappedHeader {
    /// Reads a whole object. No private key is needed.
    ///
    /// # Errors
    /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when it is not the shape of FORMAT.md section 5 to the byte,
    /// [`Unsupported`](crate::KeyErrorKind::Unsupported) when a later version wrote it.
    pub fn parse(object: &[u8]) -> Result<Self> {
        let shape = |why| Problem::WrappedShape { why };
        let mut fields = Fields(object);
        if fields.take::<8>() != Some(MAGIC) {
            return Err(shape("it does not begin with LANDWRAP").into());
        }
        let format = fields.take().map(u16::from_le_bytes).ok_or(shape("it is cut short"))?;
        if format != FORMAT {
            return Err(Problem::WrappedFormat { format }.into());
        }
        let header = fields.header().ok_or(shape("it is cut short"))?;
        let kind = header.kind()?;
        let sealed_len = kind.plain_len() + TAG_LEN;
        if usize::try_from(header.sealed_len) != Ok(sealed_len) {
            return Err(shape("its length is not that of its kind").into());
        }
        let (signed, signature) = object.split_last_chunk().ok_or(shape("it is cut short"))?;
        if signed.len() != CIPHERTEXT_AT + sealed_len {
            return Err(shape("it has not the length that it says").into());
        }
        Ok(Self {
            kind,
            vault: VaultId::from_bytes(header.vault),
            recipient: RecipientId::from_bytes(header.recipient),
            signer: SiteKeyId::from_bytes(header.signer),
            digest: *blake3::hash(signed).as_bytes(),
            signature: *signature,
        })
    }

    /// Which key is inside.
    pub fn kind(&self) -> WrappedKind {
        self.kind
    }

    /// The vault that it belongs to.
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The recovery key that it is wrapped to.
    pub fn recipient(&self) -> RecipientId {
        self.recipient
    }

    /// The site key that signed it.
    pub fn signer(&self) -> SiteKeyId {
        self.signer
    }

    /// Whether `signer` is the site key that it names and signed the whole object.
    pub fn verify_signature(&self, signer: &SitePublic) -> bool {
        signer.id() == self.signer && signer.verify_wrapped(&self.digest, &self.signature)
    }
}

/// The fields of the header as they stand.
struct RawHeader {
    kind: u8,
    reserved: u8,
    sealed_len: u32,
    vault: [u8; 16],
    recipient: [u8; 8],
    domain: [u8; 16],
    key: [u8; 16],
    signer: [u8; 8],
}

impl RawHeader {
    fn kind(&self) -> Result<WrappedKind> {
        let shape = |why| Problem::WrappedShape { why };
        if self.reserved != 0 {
            return Err(shape("its reserved byte is not zero").into());
        }
        match self.kind {
            KIND_EPOCH if self.key == *EpochId::INDEX.as_bytes() => Err(shape("its epoch id is zero").into()),
            KIND_EPOCH => Ok(WrappedKind::Epoch {
                domain: DomainId::from_bytes(self.domain),
                epoch: EpochId::from_bytes(self.key),
            }),
            KIND_SITE if self.domain != [0; 16] || self.key[8..] != [0; 8] => {
                Err(shape("bytes that a site key does not use are not zero").into())
            }
            KIND_SITE if self.key[..8] != self.signer => Err(shape("it is a site key that another signed").into()),
            KIND_SITE => Ok(WrappedKind::SiteKey(SiteKeyId::from_bytes(self.signer))),
            _ => Err(shape("it is of an unknown kind").into()),
        }
    }
}

/// Bytes yet to be read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn header(&mut self) -> Option<RawHeader> {
        let [kind, reserved] = self.take()?;
        Some(RawHeader {
            kind,
            reserved,
            sealed_len: u32::from_le_bytes(self.take()?),
            vault: self.take()?,
            recipient: self.take()?,
            domain: self.take()?,
            key: self.take()?,
            signer: self.take()?,
        })
    }
}

/// Wraps `plain`, whose length is that of `kind`, and signs the whole. `ephemeral` must be random and used this once.
///
/// # Errors
/// [`Problem::WeakRecipient`] when the recipient's public key is a point of small order.
pub(crate) fn wrap<const PLAIN: usize>(
    kind: WrappedKind,
    vault: VaultId,
    recipient: &Recipient,
    signer: &Signer,
    plain: &Secret<PLAIN>,
    ephemeral: Secret<32>,
) -> Result<Vec<u8>> {
    const { assert!(PLAIN == EPOCH_PLAIN_LEN || PLAIN == SITE_PLAIN_LEN, "a kind of wrapped key") };
    let signer_id = signer.site_public().id();
    let (kind_byte, domain, key) = match kind {
        WrappedKind::Epoch { domain, epoch } => (KIND_EPOCH, *domain.as_bytes(), *epoch.as_bytes()),
        WrappedKind::SiteKey(id) => {
            let mut key = [0; 16];
            key[..SiteKeyId::LEN].copy_from_slice(id.as_bytes());
            (KIND_SITE, [0; 16], key)
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "48 or 112, asserted above")]
    let sealed_len = (PLAIN + TAG_LEN) as u32;
    let mut object = Vec::with_capacity(CIPHERTEXT_AT + PLAIN + TAG_LEN + SIGNATURE_LEN);
    object.extend_from_slice(&MAGIC);
    object.extend_from_slice(&FORMAT.to_le_bytes());
    object.extend_from_slice(&[kind_byte, 0]);
    object.extend_from_slice(&sealed_len.to_le_bytes());
    object.extend_from_slice(vault.as_bytes());
    object.extend_from_slice(recipient.id().as_bytes());
    object.extend_from_slice(&domain);
    object.extend_from_slice(&key);
    object.extend_from_slice(signer_id.as_bytes());
    let (enc, sealed) = hpke::seal(recipient.x25519(), ephemeral, &SIGN_WRAP.then(&[&object]), plain.as_bytes())
        .ok_or(Problem::WeakRecipient { recipient: recipient.id() })?;
    object.extend_from_slice(&enc);
    object.extend_from_slice(&sealed);
    object.extend_from_slice(&signer.sign(SIGN_WRAP, blake3::hash(&object).as_bytes()));
    Ok(object)
}

/// Checks that `object` is of this vault, for this recipient and signed by `signer`, and opens it with the private key.
///
/// The caller has checked that the header's kind has `PLAIN` plain bytes.
pub(crate) fn unwrap<const PLAIN: usize>(
    header: &WrappedHeader,
    object: &[u8],
    vault: VaultId,
    recipient: RecipientId,
    signer: &SitePublic,
    private: &Secret<32>,
) -> Result<Secret<PLAIN>> {
    if header.vault != vault {
        return Err(Problem::OtherVault { what: "wrapped key", expected: vault, found: header.vault }.into());
    }
    if header.recipient != recipient {
        return Err(Problem::OtherRecipient { expected: recipient, found: header.recipient }.into());
    }
    if header.signer != signer.id() {
        return Err(Problem::OtherSigner { expected: signer.id(), found: header.signer }.into());
    }
    if !header.verify_signature(signer) {
        return Err(Problem::WrappedForged { why: "its signature does not fit" }.into());
    }
    open(object, private).ok_or_else(|| Problem::WrappedForged { why: "it does not open" }.into())
}

fn open<const PLAIN: usize>(object: &[u8], private: &Secret<32>) -> Option<Secret<PLAIN>> {
    let (head, rest) = object.split_first_chunk::<HEADER_LEN>()?;
    let (enc, rest) = rest.split_first_chunk::<ENC_LEN>()?;
    let (sealed, _signature) = rest.split_last_chunk::<SIGNATURE_LEN>()?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let plain = hpke::open(private, enc, &SIGN_WRAP.then(&[head]), &mut buffer)?;
    Secret::copied_from(plain)
}

#[cfg(test)]
mod tests;
