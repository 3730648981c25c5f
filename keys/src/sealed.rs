//! `salt | ciphertext | tag`: how frames, directories and record bodies are sealed (FORMAT.md sections 3, 6, 7, 8).
//!
//! ```text
//! 0        16                     16 + n      32 + n
//! ├─ salt ─┼─ ciphertext of n ────┼─ tag ─────┤        key = X(prk, label, context | salt, 32), nonce = zero
//! ```
//! Invariant: the salt is fresh from the system at every seal, so the key is too, and seals one message only.

use zeroize::Zeroizing;

use crate::aead::{self, NONCE_ZERO, TAG_LEN};
use crate::error::{Problem, Result};
use crate::random;
use crate::schedule::{Label, Prk};

/// Length of the salt that begins everything sealed, in bytes.
pub const SALT_LEN: usize = 16;

/// How many bytes sealing adds.
pub(crate) const OVERHEAD: usize = SALT_LEN + TAG_LEN;

/// Which key, and for what: with a salt it makes the key of one message.
#[derive(Clone, Copy)]
pub(crate) struct Sealing<'a> {
    pub(crate) prk: &'a Prk,
    pub(crate) label: Label,
    /// What of the context stands before the salt: the ChunkId or PageId of a frame, else nothing.
    pub(crate) context: &'a [u8],
    /// What it is called in an error.
    pub(crate) what: &'static str,
}

impl Sealing<'_> {
    fn key(&self, salt: &[u8; SALT_LEN]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        self.prk.expand(self.label, [self.context, salt], &mut key);
        key
    }

    /// Appends `salt | ciphertext | tag` of `data` to `out`, under a fresh salt.
    ///
    /// # Errors
    /// No random bytes; `data` too long. `out` is then as it was.
    pub(crate) fn seal_into(&self, aad: &[u8], data: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.seal_with_salt(&random::bytes()?, aad, data, out)
    }

    /// The same under a given salt, which must not have been used before with this key and context.
    pub(crate) fn seal_with_salt(
        &self,
        salt: &[u8; SALT_LEN],
        aad: &[u8],
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let start = out.len();
        out.reserve(OVERHEAD.saturating_add(data.len()));
        out.extend_from_slice(salt);
        aead::seal(&self.key(salt), &NONCE_ZERO, aad, data, out).ok_or_else(|| {
            out.truncate(start);
            Problem::TooLong { what: self.what, bytes: data.len() }.into()
        })
    }

    /// `salt | ciphertext | tag` of `data` as its own buffer.
    pub(crate) fn seal(&self, aad: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.seal_into(aad, data, &mut out)?;
        Ok(out)
    }

    /// Opens in place and returns the data part.
    ///
    /// # Errors
    /// [`Problem::DoesNotOpen`], and `sealed` is unchanged.
    pub(crate) fn open_in_place<'a>(&self, aad: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8]> {
        let what = self.what;
        let (salt, rest) = sealed.split_first_chunk_mut::<SALT_LEN>().ok_or(Problem::DoesNotOpen { what })?;
        let key = self.key(salt);
        Ok(aead::open_in_place(&key, &NONCE_ZERO, aad, rest).ok_or(Problem::DoesNotOpen { what })?)
    }

    /// Opens into a new buffer.
    pub(crate) fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let what = self.what;
        let (salt, rest) = sealed.split_first_chunk::<SALT_LEN>().ok_or(Problem::DoesNotOpen { what })?;
        let mut data = rest.to_vec();
        let len = aead::open_in_place(&self.key(salt), &NONCE_ZERO, aad, &mut data).map(|data| data.len());
        data.truncate(len.ok_or(Problem::DoesNotOpen { what })?);
        Ok(data)
    }
}
