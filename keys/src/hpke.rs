//! HPKE base mode, single shot (RFC 9180): DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
//!
//! Written here on top of `x25519-dalek` and `hkdf`, because the `hpke` crate would bring a second, older AEAD into the
//! build, and only two of its functions are needed. There is no context that lives on, so no sequence number: each call
//! makes one key that seals one message, with an empty aad (what is to be bound goes into `info`).
//!
//! ```text
//! dh = X25519(skE, pkR)                          enc = pkE
//! shared = ExtractAndExpand(dh, enc | pkR)       section 4.1, suite "KEM" | 0x0020
//! context = 0x00 | psk_id_hash | info_hash       section 5.1, suite "HPKE" | 0x0020 | 0x0001 | 0x0002
//! key, nonce = LabeledExpand(LabeledExtract(shared, "secret", ""), "key" / "base_nonce", context)
//! ```
//! Invariant: a Diffie-Hellman result of all zeroes is refused on both sides (section 7.1.4).

use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

use crate::aead::{self, NONCE_LEN};
use crate::secret::Secret;

/// Length of `enc` in bytes (RFC 9180 section 7.1: Nenc).
pub(crate) const ENC_LEN: usize = 32;

/// "KEM" and the id of DHKEM(X25519, HKDF-SHA256).
const KEM_SUITE: &[u8] = b"KEM\x00\x20";
/// "HPKE" and the ids of the KEM, of HKDF-SHA256 and of AES-256-GCM.
const HPKE_SUITE: &[u8] = b"HPKE\x00\x20\x00\x01\x00\x02";
const VERSION: &[u8] = b"HPKE-v1";
const MODE_BASE: u8 = 0x00;

/// Public key of an X25519 private key.
pub(crate) fn public_key(private: &Secret<32>) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*private.as_bytes())).to_bytes()
}

/// Seals `plain` to `recipient` under a fresh ephemeral key: `enc` and ciphertext | tag.
///
/// `ephemeral` must be random and used this once. `None` when `recipient` is a point of small order.
pub(crate) fn seal(
    recipient: &[u8; 32],
    ephemeral: Secret<32>,
    info: &[u8],
    plain: &[u8],
) -> Option<([u8; ENC_LEN], Vec<u8>)> {
    let enc = public_key(&ephemeral);
    let shared = shared_secret(&ephemeral, recipient, &enc, recipient)?;
    let (key, nonce) = key_and_nonce(&shared, info);
    let mut sealed = Vec::new();
    aead::seal(key.as_bytes(), &nonce, &[], plain, &mut sealed)?;
    Some((enc, sealed))
}

/// Opens ciphertext | tag in place and returns the plain part. `None` when it is not for this key, or not what was
/// sealed.
pub(crate) fn open<'a>(
    private: &Secret<32>,
    enc: &[u8; ENC_LEN],
    info: &[u8],
    sealed: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let shared = shared_secret(private, enc, enc, &public_key(private))?;
    let (key, nonce) = key_and_nonce(&shared, info);
    aead::open_in_place(key.as_bytes(), &nonce, &[], sealed)
}

/// Encap and Decap without the key generation (section 4.1). `None` for an all-zero Diffie-Hellman result.
fn shared_secret(
    private: &Secret<32>,
    other: &[u8; 32],
    enc: &[u8; ENC_LEN],
    recipient: &[u8; 32],
) -> Option<Secret<32>> {
    let dh = StaticSecret::from(*private.as_bytes()).diffie_hellman(&PublicKey::from(*other));
    if !dh.was_contributory() {
        return None;
    }
    let eae_prk = labeled_extract(KEM_SUITE, &[], b"eae_prk", dh.as_bytes());
    let mut shared = Secret::zeroed();
    labeled_expand(KEM_SUITE, &eae_prk, b"shared_secret", &[enc, recipient], shared.as_mut_bytes());
    Some(shared)
}

/// KeySchedule in base mode (section 5.1): an empty psk and psk_id. Key and base nonce, which is the first message's
/// nonce.
fn key_and_nonce(shared: &Secret<32>, info: &[u8]) -> (Secret<32>, [u8; NONCE_LEN]) {
    let psk_id_hash = labeled_extract(HPKE_SUITE, &[], b"psk_id_hash", &[]);
    let info_hash = labeled_extract(HPKE_SUITE, &[], b"info_hash", info);
    let context: [&[u8]; 3] = [&[MODE_BASE], psk_id_hash.as_slice(), info_hash.as_slice()];
    let secret = labeled_extract(HPKE_SUITE, shared.as_bytes(), b"secret", &[]);
    let mut key = Secret::zeroed();
    let mut nonce = [0; NONCE_LEN];
    labeled_expand(HPKE_SUITE, &secret, b"key", &context, key.as_mut_bytes());
    labeled_expand(HPKE_SUITE, &secret, b"base_nonce", &context, &mut nonce);
    (key, nonce)
}

/// LabeledExtract (section 4).
fn labeled_extract(suite: &[u8], salt: &[u8], label: &[u8], ikm: &[u8]) -> Zeroizing<[u8; 32]> {
    let labeled = Zeroizing::new([VERSION, suite, label, ikm].concat());
    let (mut prk, _) = Hkdf::<Sha256>::extract(Some(salt), &labeled);
    let copy = Zeroizing::new(prk.into());
    prk.as_mut_slice().zeroize();
    copy
}

/// LabeledExpand (section 4) to `N` bytes.
fn labeled_expand<const N: usize>(suite: &[u8], prk: &[u8; 32], label: &[u8], info: &[&[u8]], out: &mut [u8; N]) {
    const { assert!(N <= 255 * 32, "RFC 5869: L <= 255 * HashLen") };
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    let len = (N as u16).to_be_bytes();
    let labeled = [&[len.as_slice(), VERSION, suite, label], info].concat();
    #[expect(clippy::expect_used, reason = "a PRK of 32 bytes by its type, and a length asserted above")]
    Hkdf::<Sha256>::from_prk(prk)
        .expect("a PRK of HashLen bytes")
        .expand_multi_info(&labeled, out)
        .expect("L <= 255 * HashLen");
}

#[cfg(test)]
mod tests;
