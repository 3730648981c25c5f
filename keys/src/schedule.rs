//! The key schedule: every key that is derived, every label, on one page (FORMAT.md section 3).
//!
//! `X(key, label, context, n)` is HKDF-Expand with SHA-256 (RFC 5869 section 2.3): PRK = key, info = label | 0x00 |
//! context, L = n. Every `key` is 32 uniformly random bytes, so Extract is not needed.
//!
//! ```text
//! recovery seed ─┬─ RECOVERY_X25519 ───────────────── X25519 private key [32]      everything is wrapped to it
//!                ├─ RECOVERY_ED25519 ──────────────── root signing seed [32]       signs vault.json
//!                └─ RECOVERY_PICTURE | salt ───────── key of one picture [32]      what a drill saw
//! fingerprint ───┬─ DOMAIN_ID    | domain name ────── domain id [16]
//! key            ├─ MACHINE_ID   | machine name ───── machine id [16]
//!                ├─ AGENT_CA     | ────────────────── seed of the agents' certificate authority [32], not in the vault
//!                ├─ FINGERPRINT  | domain id ──────── chunk fingerprint key [32]   ChunkId = keyed BLAKE3
//!                ├─ CUT          | domain id ──────── cut secret [192]             where chunks end
//!                └─ PAGE_ID      | ────────────────── page fingerprint key [32]    PageId = keyed BLAKE3
//! epoch key ─────── FRAME        | ChunkId | salt ─── key of one content frame [32]
//! index key ─────┬─ PAGE         | PageId | salt ──── key of one index frame [32]
//!                ├─ DIRECTORY    | salt ───────────── key of one directory [32]
//!                └─ RECORD       | salt ───────────── key of one record body [32]
//! signing seed ──── (none: it is the Ed25519 seed)
//! ```
//!
//! | label, elsewhere | use |
//! |---|---|
//! | [`SIGN_VAULT`], [`SIGN_WRAP`], [`SIGN_RECORD`] | `sign(label, m)` = Ed25519 over label \| 0x00 \| BLAKE3(m) |
//! | [`SIGN_WRAP`] | also begins the HPKE info of a wrapped key |
//! | [`PASSPHRASE`] | begins the additional data of a recovery seed sealed by a passphrase |
//! | [`SHARE`], [`SHARES`] | checksum of one share; tag of the shared secret |
//!
//! Invariants: no two uses of one key have the same label ("landfall/1/record" derives from the index key and signs
//! with the signing key); labels hold no zero byte, so none followed by 0x00 begins another; no derived key is itself a
//! PRK.

use hkdf::Hkdf;
use sha2::Sha256;

use crate::secret::Secret;

/// What a derived key, a signature or a checksum is for. ASCII, no zero byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Label(&'static str);

pub(crate) const RECOVERY_X25519: Label = Label("landfall/1/recovery/x25519");
pub(crate) const RECOVERY_ED25519: Label = Label("landfall/1/recovery/ed25519");
pub(crate) const RECOVERY_PICTURE: Label = Label("landfall/1/recovery/picture");
pub(crate) const DOMAIN_ID: Label = Label("landfall/1/domain-id");
pub(crate) const MACHINE_ID: Label = Label("landfall/1/machine-id");
pub(crate) const AGENT_CA: Label = Label("landfall/1/agent-ca");
pub(crate) const FINGERPRINT: Label = Label("landfall/1/fingerprint");
pub(crate) const CUT: Label = Label("landfall/1/cut");
pub(crate) const PAGE_ID: Label = Label("landfall/1/page-id");
pub(crate) const FRAME: Label = Label("landfall/1/frame");
pub(crate) const PAGE: Label = Label("landfall/1/page");
pub(crate) const DIRECTORY: Label = Label("landfall/1/directory");
pub(crate) const RECORD: Label = Label("landfall/1/record");

pub(crate) const SIGN_VAULT: Label = Label("landfall/1/vault");
pub(crate) const SIGN_WRAP: Label = Label("landfall/1/wrap");
pub(crate) const SIGN_RECORD: Label = RECORD;
pub(crate) const PASSPHRASE: Label = Label("landfall/1/passphrase");
pub(crate) const SHARE: Label = Label("landfall/1/share");
pub(crate) const SHARES: Label = Label("landfall/1/shares");

impl Label {
    /// label | 0x00 | the parts, one after another.
    pub(crate) fn then(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [self.0.as_bytes(), &[0]].concat();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        bytes
    }
}

/// A uniformly random key that others are derived from: the PRK of `X`, with its HMAC state ready.
///
/// The state is zeroised on drop (`sha2/zeroize`), and boxed like every secret.
pub(crate) struct Prk(Box<Hkdf<Sha256>>);

impl Prk {
    /// Takes the key as PRK.
    pub(crate) fn new(key: &Secret<32>) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "32 bytes are the one length that from_prk asks for, and the type has them"
        )]
        let hkdf = Hkdf::from_prk(key.as_bytes()).expect("a PRK of HashLen bytes");
        Self(Box::new(hkdf))
    }

    /// X(key, label, head | tail, N), written to `out`.
    pub(crate) fn expand<const N: usize>(&self, label: Label, [head, tail]: [&[u8]; 2], out: &mut [u8; N]) {
        const { assert!(N <= 255 * 32, "RFC 5869: L <= 255 * HashLen") };
        #[expect(clippy::expect_used, reason = "expand fails above 255 * HashLen bytes only, asserted above")]
        self.0.expand_multi_info(&[label.0.as_bytes(), &[0], head, tail], out).expect("L <= 255 * HashLen");
    }

    /// X(key, label, context, N) as a secret.
    pub(crate) fn derive<const N: usize>(&self, label: Label, context: &[u8]) -> Secret<N> {
        let mut secret = Secret::zeroed();
        self.expand(label, [context, &[]], secret.as_mut_bytes());
        secret
    }

    /// X(key, label, context, 16) as an id, which is no secret.
    pub(crate) fn id(&self, label: Label, context: &[u8]) -> [u8; 16] {
        let mut id = [0; 16];
        self.expand(label, [context, &[]], &mut id);
        id
    }
}
