//! Shares of a recovery key: `k` of `n` lines of text bring it back, fewer tell nothing (FORMAT.md section 11).
//!
//! ```text
//! LF1-AEAQC-AIDAM-...      base32 of 72 bytes:
//! 0         1          17        25          26       27  28      68       72
//! ├ version ┼ vault id ┼ set id ─┼ threshold ┼ shares ┼ x ┼ y ────┼ check ─┤      secret (40) = seed | tag
//! ```
//! Shamir's scheme over GF(2^8) is `blahaj`'s, byte by byte; the coefficients come from the system's generator.
//! Invariants: x is 1..=shares; a mistyped, foreign or repeated share is named before anything is combined; what comes
//! out is a key only if its tag says so.

use data_encoding::BASE32_NOPAD;
use getrandom::SysRng;
use getrandom::rand_core::{Infallible, TryCryptoRng, TryRng};
use landfall_model::VaultId;
use zeroize::{Zeroize, Zeroizing};

use blahaj::{Share as Point, Sharks};

use crate::error::{Problem, Result, ShareTypo};
use crate::random;
use crate::recovery::RecoveryKey;
use crate::schedule::{SHARE, SHARES};
use crate::secret::Secret;
use crate::signing::first_8;

const VERSION: u8 = 1;
const PREFIX: &str = "LF1";
const GROUP: usize = 5;
const TAG_LEN: usize = 8;
const SECRET_LEN: usize = 32 + TAG_LEN;
const CHECK_LEN: usize = 4;
const CHECKED_LEN: usize = 1 + VaultId::LEN + 8 + 3 + SECRET_LEN;
const SHARE_LEN: usize = CHECKED_LEN + CHECK_LEN;
/// Characters of base32 after the prefix: 8 for 5 bytes, rounded up.
const TEXT_LEN: usize = (SHARE_LEN * 8).div_ceil(5);

/// Splits a recovery key into `shares` lines of text, any `threshold` of which bring it back with [`combine`].
///
/// # Errors
/// [`Usage`](crate::KeyErrorKind::Usage) unless 2 <= threshold <= shares, or both are 1;
/// [`Io`](crate::KeyErrorKind::Io) when the system gives no random bytes.
pub fn split(key: &RecoveryKey, threshold: u8, shares: u8) -> Result<Vec<String>> {
    if threshold == 0 || threshold > shares || (threshold == 1 && shares != 1) {
        return Err(Problem::ShareNumbers { threshold, shares }.into());
    }
    let secret = Zeroizing::new([key.seed().as_bytes().as_slice(), &tag(key.vault_id(), key.seed())].concat());
    let mut rng = SystemRng::default();
    let points: Vec<Point> = Sharks(threshold).dealer_rng(&secret, &mut rng).take(usize::from(shares)).collect();
    rng.failure.map_or(Ok(()), |error| Err(Problem::Random(error)))?;
    let set = random::bytes()?;
    Ok(points.iter().map(|point| Share::new(key.vault_id(), set, threshold, shares, point).to_text()).collect())
}

/// Brings a recovery key back from its shares, in any order; more than needed are checked too.
///
/// # Errors
/// Each names the share by its position from 1, and its x where it could be read.
/// [`Corrupt`](crate::KeyErrorKind::Corrupt): mistyped, or the shares do not fit together;
/// [`Wrong`](crate::KeyErrorKind::Wrong): of another vault or split; [`Usage`](crate::KeyErrorKind::Usage): the same
/// one twice; [`Missing`](crate::KeyErrorKind::Missing): too few.
pub fn combine(lines: &[String]) -> Result<RecoveryKey> {
    let mut shares: Vec<Share> = Vec::with_capacity(lines.len());
    for (position, line) in (1..).zip(lines) {
        let share = Share::from_text(position, line)?;
        if let Some(first) = shares.first() {
            first.same_set(position, &share)?;
        }
        if let Some(first) = shares.iter().position(|other| other.x() == share.x()) {
            return Err(Problem::ShareRepeated { position, first: first + 1, x: share.x() }.into());
        }
        shares.push(share);
    }
    let first = shares.first().ok_or(Problem::SharesNone)?;
    let need = first.threshold();
    if shares.len() < usize::from(need) {
        let present = shares.iter().map(Share::x).collect();
        return Err(Problem::SharesMissing { need: need.into(), have: shares.len(), present }.into());
    }
    let forged = || Problem::SharesForged { need };
    let points: Option<Vec<Point>> = shares.iter().map(Share::point).collect();
    let secret = Sharks(need).recover(&points.ok_or_else(forged)?).map(Zeroizing::new).map_err(|_| forged())?;
    let (seed, found) = secret.split_last_chunk::<TAG_LEN>().ok_or_else(forged)?;
    let seed = Secret::copied_from(seed).ok_or_else(forged)?;
    if *found != tag(first.vault(), &seed) {
        return Err(forged().into());
    }
    Ok(RecoveryKey::from_seed(first.vault(), seed))
}

fn tag(vault: VaultId, seed: &Secret<32>) -> [u8; TAG_LEN] {
    let tagged = Zeroizing::new(SHARES.then(&[vault.as_bytes(), seed.as_bytes()]));
    first_8(blake3::hash(&tagged))
}

/// One share, as its bytes before the check. Zeroised on drop.
struct Share(Secret<CHECKED_LEN>);

impl Share {
    fn new(vault: VaultId, set: [u8; 8], threshold: u8, shares: u8, point: &Point) -> Self {
        let mut share = Self(Secret::zeroed());
        let point = Zeroizing::new(Vec::from(point));
        let bytes = share.0.as_mut_bytes();
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(vault.as_bytes());
        bytes[17..25].copy_from_slice(&set);
        bytes[25] = threshold;
        bytes[26] = shares;
        bytes[27..].copy_from_slice(&point);
        share
    }

    fn vault(&self) -> VaultId {
        VaultId::from_bytes(std::array::from_fn(|i| self.0.as_bytes()[1 + i]))
    }

    fn threshold(&self) -> u8 {
        self.0.as_bytes()[25]
    }

    fn x(&self) -> u8 {
        self.0.as_bytes()[27]
    }

    fn point(&self) -> Option<Point> {
        Point::try_from(&self.0.as_bytes()[27..]).ok()
    }

    fn same_set(&self, position: usize, other: &Self) -> Result<()> {
        let (ours, theirs) = (self.0.as_bytes(), other.0.as_bytes());
        let what = match () {
            () if ours[1..17] != theirs[1..17] => "another vault",
            () if ours[17..27] != theirs[17..27] => "another split of the key",
            () => return Ok(()),
        };
        Err(Problem::ShareForeign { position, x: other.x(), what }.into())
    }

    fn check(&self) -> [u8; CHECK_LEN] {
        let checked = Zeroizing::new(SHARE.then(&[self.0.as_bytes()]));
        let [a, b, c, d, ..] = *blake3::hash(&checked).as_bytes();
        [a, b, c, d]
    }

    fn to_text(&self) -> String {
        let bytes = Zeroizing::new([self.0.as_bytes().as_slice(), &self.check()].concat());
        let digits = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        let mut text = String::with_capacity(PREFIX.len() + TEXT_LEN + TEXT_LEN.div_ceil(GROUP));
        text.push_str(PREFIX);
        for (i, digit) in digits.chars().enumerate() {
            if i % GROUP == 0 {
                text.push('-');
            }
            text.push(digit);
        }
        text
    }

    /// Reads a line; its case, and any `-` in it, do not matter.
    fn from_text(position: usize, line: &str) -> Result<Self> {
        let typo = |why| Problem::ShareMistyped { position, why };
        let mut text = Zeroizing::new(String::with_capacity(line.len()));
        text.extend(line.trim().chars().filter(|c| *c != '-').map(|c| c.to_ascii_uppercase()));
        let digits = text.strip_prefix(PREFIX).ok_or_else(|| typo(ShareTypo::Prefix))?;
        if let Some(wrong) = digits.chars().find(|c| !matches!(c, 'A'..='Z' | '2'..='7')) {
            return Err(typo(ShareTypo::Character(wrong)).into());
        }
        if digits.len() != TEXT_LEN {
            return Err(typo(ShareTypo::Length { found: digits.len(), expected: TEXT_LEN }).into());
        }
        let mut bytes = Zeroizing::new([0; SHARE_LEN]);
        BASE32_NOPAD.decode_mut(digits.as_bytes(), &mut *bytes).map_err(|_| typo(ShareTypo::Check))?;
        let (checked, check) = bytes.split_at(CHECKED_LEN);
        let share = Self(Secret::copied_from(checked).ok_or_else(|| typo(ShareTypo::Check))?);
        if share.check() != check {
            return Err(typo(ShareTypo::Check).into());
        }
        let [version, .., threshold, shares, x] = *checked.first_chunk::<28>().ok_or_else(|| typo(ShareTypo::Check))?;
        if version != VERSION {
            return Err(Problem::ShareFormat { position, x, format: version }.into());
        }
        if threshold == 0 || threshold > shares || x == 0 || x > shares {
            return Err(typo(ShareTypo::Numbers).into());
        }
        Ok(share)
    }
}

/// The system's generator, which `blahaj` wants as one that cannot fail: a failure is kept, and found before any share
/// is used.
#[derive(Default)]
struct SystemRng {
    failure: Option<getrandom::Error>,
}

impl TryRng for SystemRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> std::result::Result<(), Infallible> {
        if let Err(error) = SysRng.try_fill_bytes(out) {
            self.failure = Some(error);
            out.zeroize();
        }
        Ok(())
    }
}

impl TryCryptoRng for SystemRng {}

#[cfg(test)]
mod tests;
