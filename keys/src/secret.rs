//! Secret bytes.

use data_encoding::HEXLOWER;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Result;
use crate::random;

/// `N` secret bytes. They live on the heap, so that moving the value copies a pointer and not the bytes; drop zeroises
/// them. No `Clone`, `Debug`, `Default`, `PartialEq` or `Serialize`.
pub(crate) struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// All zero: to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self(Box::new([0; N]))
    }

    /// Fresh from the operating system.
    ///
    /// # Errors
    /// When that gives no random bytes.
    pub(crate) fn random() -> Result<Self> {
        let mut secret = Self::zeroed();
        random::fill(secret.as_mut_bytes())?;
        Ok(secret)
    }

    /// A copy of exactly `N` bytes.
    pub(crate) fn copied_from(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self::zeroed();
        (bytes.len() == N).then(|| secret.0.copy_from_slice(bytes))?;
        Some(secret)
    }

    /// Reads exactly `2 * N` lower-case hex digits.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut secret = Self::zeroed();
        if text.len() != 2 * N {
            return None;
        }
        HEXLOWER.decode_mut(text.as_bytes(), secret.as_mut_bytes()).ok()?;
        Some(secret)
    }

    /// Lower-case hex, zeroised like the bytes.
    pub(crate) fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(HEXLOWER.encode(&*self.0))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
