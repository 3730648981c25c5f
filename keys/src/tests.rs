//! What all tests share: the fixed inputs of the golden vectors, and what no secret may be.

pub(crate) mod golden;

use landfall_model::{DomainId, EpochId, VaultId};

use crate::frame::ContentSealer;
use crate::recovery::RecoveryKey;
use crate::secret::Secret;
use crate::site::SiteKey;
use crate::{CutSecret, EpochOpener, Fingerprinter, PageSealer, Passphrase};

/// `N` bytes counting up from `start`: the inputs of golden.py.
pub(crate) fn run<const N: usize>(start: u8) -> [u8; N] {
    std::array::from_fn(|i| start.wrapping_add(u8::try_from(i).unwrap()))
}

pub(crate) fn secret<const N: usize>(start: u8) -> Secret<N> {
    Secret::copied_from(&run::<N>(start)).unwrap()
}

pub(crate) const SALT: u8 = 0xe0;
pub(crate) const EPHEMERAL: u8 = 0xc0;

pub(crate) fn vault() -> VaultId {
    VaultId::from_bytes(run(0xa0))
}

pub(crate) fn recovery() -> RecoveryKey {
    RecoveryKey::from_seed(vault(), secret(0x00))
}

pub(crate) fn site() -> SiteKey {
    SiteKey::from_parts(vault(), recovery().root_public(), secret(0x20), secret(0x40), secret(0x60))
}

pub(crate) fn domain() -> DomainId {
    site().domain_id(&"default".parse().unwrap())
}

pub(crate) fn epoch() -> ContentSealer {
    ContentSealer::new(vault(), domain(), EpochId::from_bytes(run(0xb0)), secret(0x80))
}

/// The data that golden.py seals.
pub(crate) fn data() -> Vec<u8> {
    (0..300_u32).map(|i| u8::try_from(i * i % 251).unwrap()).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// Each copy of `bytes` with one bit of one byte changed.
pub(crate) fn tampered(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len()).map(|at| {
        let mut copy = bytes.to_vec();
        copy[at] ^= 1 << (at % 8);
        (at, copy)
    })
}

/// Does not compile when a type has the trait: the item is then ambiguous.
macro_rules! assert_not {
    ($trait:path: $($type:ty),+ $(,)?) => {$(
        const _: fn() = || {
            trait Ambiguous<A> { fn item() {} }
            impl<T: ?Sized> Ambiguous<()> for T {}
            impl<T: ?Sized + $trait> Ambiguous<u8> for T {}
            let _ = <$type as Ambiguous<_>>::item;
        };
    )+};
}

assert_not!(Clone: SiteKey, RecoveryKey, ContentSealer, EpochOpener, CutSecret, Passphrase, Secret<32>);
assert_not!(Default: SiteKey, RecoveryKey, ContentSealer, EpochOpener, CutSecret, Passphrase, Secret<32>);
assert_not!(std::fmt::Debug: SiteKey, RecoveryKey, ContentSealer, EpochOpener, CutSecret, Passphrase, Secret<32>);
assert_not!(std::fmt::Debug: Fingerprinter, PageSealer);
assert_not!(std::fmt::Display: SiteKey, RecoveryKey, ContentSealer, EpochOpener, CutSecret, Passphrase, Secret<32>);
assert_not!(serde::Serialize: SiteKey, RecoveryKey, ContentSealer, EpochOpener, CutSecret, Passphrase, Secret<32>);

const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<SiteKey>();
    shared::<RecoveryKey>();
    shared::<ContentSealer>();
    shared::<EpochOpener>();
    shared::<Fingerprinter>();
    shared::<PageSealer>();
};
