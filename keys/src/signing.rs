//! Ed25519 (RFC 8032), always over a label and a digest: `sign(label, m)` of FORMAT.md section 3.
//!
//! Two roles, each a type: the root key signs `vault.json`, a site key signs records and wrapped keys. Verification is
//! strict: it refuses keys and commitments of small order, so that one signature cannot fit several messages.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use landfall_model::SiteKeyId;

use crate::error::{KeyError, Problem, Result};
use crate::schedule::{Label, SIGN_RECORD, SIGN_VAULT, SIGN_WRAP};
use crate::secret::Secret;

/// Length of a signature in bytes.
pub(crate) const SIGNATURE_LEN: usize = 64;

/// A private signing key with its seed; `ed25519-dalek` zeroises what it holds of it on drop.
pub(crate) struct Signer {
    seed: Secret<32>,
    key: Box<SigningKey>,
}

impl Signer {
    pub(crate) fn new(seed: Secret<32>) -> Self {
        let key = Box::new(SigningKey::from_bytes(seed.as_bytes()));
        Self { seed, key }
    }

    /// Signs label | 0x00 | digest, where the digest is BLAKE3 of what is meant.
    pub(crate) fn sign(&self, label: Label, digest: &[u8; 32]) -> [u8; SIGNATURE_LEN] {
        self.key.sign(&label.then(&[digest])).to_bytes()
    }

    /// The seed.
    pub(crate) fn seed(&self) -> &Secret<32> {
        &self.seed
    }

    pub(crate) fn root_public(&self) -> RootPublic {
        RootPublic(self.key.verifying_key())
    }

    pub(crate) fn site_public(&self) -> SitePublic {
        SitePublic(self.key.verifying_key())
    }
}

fn verify(key: &VerifyingKey, label: Label, digest: &[u8; 32], signature: &[u8; SIGNATURE_LEN]) -> bool {
    key.verify_strict(&label.then(&[digest]), &Signature::from_bytes(signature)).is_ok()
}

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub struct $name(VerifyingKey);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = 32;

            /// The key with these bytes.
            ///
            /// # Errors
            /// [`Corrupt`](crate::KeyErrorKind::Corrupt) when they are no point of the curve, or one of small order.
            pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
                match VerifyingKey::from_bytes(bytes) {
                    Ok(key) if !key.is_weak() => Ok(Self(key)),
                    _ => Err(Problem::PublicKey { what: $what }.into()),
                }
            }

            /// Its bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            /// 64 lower-case hex digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER.encode(self.as_bytes()))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;
            /// Reads 64 lower-case hex digits.
            fn from_str(text: &str) -> Result<Self> {
                let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
                Self::from_bytes(&bytes.ok_or(Problem::PublicKey { what: $what })?)
            }
        }
    };
}

public_key!(
    /// Public half of the root signing key: what `vault.json` must be signed by. Ed25519, 32 bytes.
    RootPublic, "root public key"
);
public_key!(
    /// Public half of a site key: what records and wrapped keys must be signed by. Ed25519, 32 bytes.
    SitePublic, "site public key"
);

impl RootPublic {
    /// Whether `signature` is sign("landfall/1/vault", message) by this key; `message` is the text in `vault.json`.
    pub fn verify_vault(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        verify(&self.0, SIGN_VAULT, blake3::hash(message).as_bytes(), signature)
    }
}

impl SitePublic {
    /// Its id: the first 8 bytes of BLAKE3 of the key.
    pub fn id(&self) -> SiteKeyId {
        SiteKeyId::from_bytes(first_8(blake3::hash(self.as_bytes())))
    }

    /// Whether `signature` is sign("landfall/1/record", ..) by this key over the record digest, the BLAKE3 of the bytes
    /// signed.
    pub fn verify_record(&self, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        verify(&self.0, SIGN_RECORD, digest, signature)
    }

    pub(crate) fn verify_wrapped(&self, digest: &[u8; 32], signature: &[u8; SIGNATURE_LEN]) -> bool {
        verify(&self.0, SIGN_WRAP, digest, signature)
    }
}

/// The first 8 bytes of a hash: how public keys are named (FORMAT.md section 1).
pub(crate) fn first_8(hash: blake3::Hash) -> [u8; 8] {
    std::array::from_fn(|i| hash.as_bytes()[i])
}
