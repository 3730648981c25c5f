//! The token that a person carries from the gateway to a machine, once.
//!
//! ```text
//!  LFT1-<base32 of: 16 random bytes, the secret | 32 bytes, the authority's pin | 4 bytes, checksum of both>
//! ```

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use landfall_model::{Digest, Error, ErrorKind, Result};
use zeroize::{Zeroize, Zeroizing};

use super::bug;

const PREFIX: &str = "LFT1-";
const SECRET_BYTES: usize = 16;
const PIN_BYTES: usize = 32;
const BODY_BYTES: usize = SECRET_BYTES + PIN_BYTES;
const CHECKSUM_BYTES: usize = 4;

/// A one-time token for enrolment. Its text is a secret: `Display` writes it, `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    secret: [u8; SECRET_BYTES],
    pin: [u8; PIN_BYTES],
}

impl Token {
    /// A new token of the authority with this pin.
    ///
    /// # Errors
    /// `Bug` where the host gives no random numbers.
    pub fn new(pin: [u8; PIN_BYTES]) -> Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|e| bug("this host gives no random numbers", e))?;
        Ok(Self { secret, pin })
    }

    /// The pin of the authority that it trusts.
    pub fn pin(&self) -> &[u8; PIN_BYTES] {
        &self.pin
    }

    /// What the gateway keeps of the token.
    pub fn secret_hash(&self) -> Digest {
        Self::hash_of(&self.secret)
    }

    /// The hash of a secret that an agent presents, to compare with what was kept.
    pub fn hash_of(secret: &[u8; SECRET_BYTES]) -> Digest {
        Digest::from_bytes(blake3::derive_key("landfall enrolment token 1", secret))
    }

    /// What the agent presents.
    pub(crate) fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    fn body(&self) -> Zeroizing<[u8; BODY_BYTES]> {
        let mut body = Zeroizing::new([0; BODY_BYTES]);
        body[..SECRET_BYTES].copy_from_slice(&self.secret);
        body[SECRET_BYTES..].copy_from_slice(&self.pin);
        body
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let sum = blake3::derive_key("landfall enrolment token 1 checksum", body);
    [sum[0], sum[1], sum[2], sum[3]]
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = self.body();
        let whole = Zeroizing::new([&body[..], &checksum(&body[..])].concat());
        write!(f, "{PREFIX}{}", *Zeroizing::new(BASE32_NOPAD.encode(&whole)))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(ErrorKind::Usage, format!("the enrolment token {why}: copy it again"));
        let text = Zeroizing::new(text.trim().to_ascii_uppercase());
        let body = text.strip_prefix(PREFIX).ok_or_else(|| wrong("does not begin with LFT1-"))?;
        let whole = BASE32_NOPAD.decode(body.as_bytes()).map_err(|_| wrong("has a wrong letter or is cut off"))?;
        let whole = Zeroizing::new(whole);
        if whole.len() != BODY_BYTES + CHECKSUM_BYTES {
            return Err(wrong("is cut off or too long"));
        }
        let (body, sum) = whole.split_at(BODY_BYTES);
        if checksum(body) != sum {
            return Err(wrong("is mistyped"));
        }
        let mut token = Self { secret: [0; SECRET_BYTES], pin: [0; PIN_BYTES] };
        token.secret.copy_from_slice(&body[..SECRET_BYTES]);
        token.pin.copy_from_slice(&body[SECRET_BYTES..]);
        Ok(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}
