//! What can go wrong with keys, said so that the operator knows what to do.
//!
//! [`KeyErrorKind`] is what decides the exit code; the words are those of the private [`Problem`]. No message and no
//! field holds a byte of a secret.

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use landfall_model::{EpochId, RecipientId, SiteKeyId, VaultId};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, KeyError>;

/// What kind of failure it is: what the operator has to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyErrorKind {
    /// A key, a passphrase or shares are needed and were not given.
    Missing,
    /// What was given is a key, a passphrase or a share of something else.
    Wrong,
    /// What was given, or what the store holds, is damaged or forged.
    Corrupt,
    /// Written by a later version, or with parameters beyond what this one accepts.
    Unsupported,
    /// Asked for what makes no sense.
    Usage,
    /// The operating system failed.
    Io,
    /// A file is there already; key files are never overwritten.
    Exists,
}

/// A failure of this crate; its `Display` is one line, its `source` the operating system's error where there is one.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct KeyError(Box<Problem>);

impl KeyError {
    /// What kind of failure it is.
    pub fn kind(&self) -> KeyErrorKind {
        self.0.kind()
    }
}

impl From<Problem> for KeyError {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

/// Each failure with what it is about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("the operating system gives no random bytes, so no key or salt can be made; try again when it does")]
    Random(#[source] getrandom::Error),
    #[error("there is no {what} at {}; give the path of the file that was written when it was made", .path.display())]
    NoFile { what: &'static str, path: PathBuf, source: io::Error },
    #[error("will not write the {what} to {}: a file is there already; choose another path", .path.display())]
    FileExists { what: &'static str, path: PathBuf },
    #[error("cannot {verb} the {what} {}; check the path, its permissions and the disk", .path.display())]
    File { verb: &'static str, what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is not a {what}: {why}; use the file as it was written, or a copy of it", .path.display())]
    BadFile { what: &'static str, path: PathBuf, why: &'static str },
    #[error("{} is a {found}, not a {what}; give the path of the {what}", .path.display())]
    OtherFile { what: &'static str, path: PathBuf, found: &'static str },
    #[error("the {what} {} has format {format}, and this version reads format 1; use a later version", .path.display())]
    FileFormat { what: &'static str, path: PathBuf, format: u64 },
    #[error("the recovery key {} needs a passphrase, and none was given; use --passphrase-file", .path.display())]
    PassphraseMissing { path: PathBuf },
    #[error("the passphrase does not open the recovery key {}; check --passphrase-file", .path.display())]
    PassphraseWrong { path: PathBuf },
    #[error("the recovery key {} asks for {asks}, and this version stops at {limit}; check the file", .path.display())]
    PassphraseCost { path: PathBuf, asks: String, limit: &'static str },
    #[error("the passphrase is {why}; it is the first line of the file, 1 to 1024 bytes")]
    PassphraseUnfit { why: &'static str },
    #[error("there is no memory for the passphrase's {memory_kib} KiB; free some and try again")]
    PassphraseMemory { memory_kib: u32 },
    #[error("the text is not a {what}: expected 64 hex digits of a valid Ed25519 public key")]
    PublicKey { what: &'static str },
    #[error("the {what} is of vault {found}, and the key is of vault {expected}; use the key of that vault")]
    OtherVault { what: &'static str, expected: VaultId, found: VaultId },
    #[error("the frame is of epoch {found}, and the key is of epoch {expected}; use the key of that epoch")]
    OtherEpoch { expected: EpochId, found: EpochId },
    #[error("the key is wrapped to recovery key {found}, and this one is {expected}; use recovery key {found}")]
    OtherRecipient { expected: RecipientId, found: RecipientId },
    #[error(
        "the wrapped key is signed by site key {found}, and was checked against {expected}; give the key that signed it"
    )]
    OtherSigner { expected: SiteKeyId, found: SiteKeyId },
    #[error("the object wraps {found}, not {expected}; look under the other prefix")]
    OtherWrapped { expected: &'static str, found: &'static str },
    #[error("the wrapped key is damaged: {why}; try another copy of the object")]
    WrappedShape { why: &'static str },
    #[error("the wrapped key has format {format}, and this version reads format 1; use a later version")]
    WrappedFormat { format: u16 },
    #[error("the wrapped key is damaged or forged: {why}; try another copy of the object")]
    WrappedForged { why: &'static str },
    #[error("cannot wrap to recovery key {recipient}: its public key is none; check vault.json")]
    WeakRecipient { recipient: RecipientId },
    #[error("the {what} does not open: it was damaged or changed, or is in the place of another; try another copy")]
    DoesNotOpen { what: &'static str },
    #[error("the {what} has {bytes} bytes, more than one key may seal")]
    TooLong { what: &'static str, bytes: usize },
    #[error(
        "cannot split into {shares} shares of which {threshold} are needed; at least 2 must be needed, at most all, \
         or 1 of 1"
    )]
    ShareNumbers { threshold: u8, shares: u8 },
    #[error("share {position} is mistyped: {why}; compare it with its original")]
    ShareMistyped { position: usize, why: ShareTypo },
    #[error("share {position} (x = {x}) is of format {format}, and this version reads format 1; use a later version")]
    ShareFormat { position: usize, x: u8, format: u8 },
    #[error("share {position} (x = {x}) is foreign: it is of {what} than share 1; take it out")]
    ShareForeign { position: usize, x: u8, what: &'static str },
    #[error("share {position} is repeated: it is the same (x = {x}) as share {first}; give another")]
    ShareRepeated { position: usize, first: usize, x: u8 },
    #[error("no share was given; give each as a line of text")]
    SharesNone,
    #[error("{have} of {need} shares are here ({}), {} missing; add any others", xs(.present), .need - .have)]
    SharesMissing { need: usize, have: usize, present: Vec<u8> },
    #[error(
        "the shares do not fit together, although each is as it was printed; leave out any beyond {need} and try others"
    )]
    SharesForged { need: u8 },
}

/// What a mistyped share looks like.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareTypo {
    #[error("it does not begin with LF1-")]
    Prefix,
    #[error("{0:?} is no character of a share (A to Z and 2 to 7)")]
    Character(char),
    #[error("it has {found} characters after LF1-, and a share has {expected}")]
    Length { found: usize, expected: usize },
    #[error("its check fails")]
    Check,
    #[error("its numbers make no sense")]
    Numbers,
}

fn xs(present: &[u8]) -> String {
    format!("x = {}", present.iter().map(u8::to_string).collect::<Vec<_>>().join(", "))
}

impl Problem {
    fn kind(&self) -> KeyErrorKind {
        match self {
            Self::NoFile { .. } | Self::PassphraseMissing { .. } | Self::SharesNone | Self::SharesMissing { .. } => {
                KeyErrorKind::Missing
            }
            Self::OtherFile { .. }
            | Self::PassphraseWrong { .. }
            | Self::OtherVault { .. }
            | Self::OtherEpoch { .. }
            | Self::OtherRecipient { .. }
            | Self::OtherSigner { .. }
            | Self::OtherWrapped { .. }
            | Self::ShareForeign { .. } => KeyErrorKind::Wrong,
            Self::BadFile { .. }
            | Self::PublicKey { .. }
            | Self::WrappedShape { .. }
            | Self::WrappedForged { .. }
            | Self::WeakRecipient { .. }
            | Self::DoesNotOpen { .. }
            | Self::ShareMistyped { .. }
            | Self::SharesForged { .. } => KeyErrorKind::Corrupt,
            Self::FileFormat { .. }
            | Self::PassphraseCost { .. }
            | Self::WrappedFormat { .. }
            | Self::ShareFormat { .. } => KeyErrorKind::Unsupported,
            Self::PassphraseUnfit { .. }
            | Self::TooLong { .. }
            | Self::ShareNumbers { .. }
            | Self::ShareRepeated { .. } => KeyErrorKind::Usage,
            Self::Random(_) | Self::File { .. } | Self::PassphraseMemory { .. } => KeyErrorKind::Io,
            Self::FileExists { .. } => KeyErrorKind::Exists,
        }
    }
}
