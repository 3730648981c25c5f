//! AES-256-GCM (NIST SP 800-38D): 12-byte nonce, 16-byte tag appended. Nobody else names it.
//!
//! Every caller's key seals one message only, so the nonce is [`NONCE_ZERO`], except where HPKE derives one.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};

/// Length of the authentication tag in bytes.
pub const TAG_LEN: usize = 16;

/// Length of a nonce in bytes.
pub(crate) const NONCE_LEN: usize = 12;

/// The nonce of keys that seal one message.
pub(crate) const NONCE_ZERO: [u8; NONCE_LEN] = [0; NONCE_LEN];

/// Appends ciphertext | tag of `data` to `out`; `None`, with `out` as it was, when `data` is above the algorithm's 64
/// GiB.
pub(crate) fn seal(key: &[u8; 32], nonce: &[u8; NONCE_LEN], aad: &[u8], data: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    out.reserve(data.len() + TAG_LEN);
    out.extend_from_slice(data);
    let tag = Aes256Gcm::new(key.into()).encrypt_inout_detached(&Nonce::from(*nonce), aad, (&mut out[start..]).into());
    let Ok(tag) = tag else {
        out.truncate(start);
        return None;
    };
    out.extend_from_slice(&tag);
    Some(())
}

/// Opens ciphertext | tag in place and returns the data part; `None`, with `sealed` unchanged, when the tag does not
/// fit.
pub(crate) fn open_in_place<'a>(
    key: &[u8; 32],
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    sealed: &'a mut [u8],
) -> Option<&'a mut [u8]> {
    let (data, tag) = sealed.split_last_chunk_mut::<TAG_LEN>()?;
    let tag = Tag::from(*tag);
    Aes256Gcm::new(key.into()).decrypt_inout_detached(&Nonce::from(*nonce), aad, (&mut *data).into(), &tag).ok()?;
    Some(data)
}
