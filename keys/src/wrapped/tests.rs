use super::*;
use crate::tests::{EPHEMERAL, domain, epoch, golden, hex, recovery, secret, site, tampered, unhex, vault};
use crate::{EpochOpener, KeyErrorKind, RecoveryKey, SiteKey};

fn kind_of<T>(result: Result<T>) -> KeyErrorKind {
    result.err().expect("refused").kind()
}

/// `object` with a byte changed and signed again by the golden site key: an attack from inside.
fn signed_again(mut object: Vec<u8>, at: usize) -> Vec<u8> {
    object[at] ^= 1;
    let signed = object.len() - SIGNATURE_LEN;
    let signature = site().signer().sign(SIGN_WRAP, blake3::hash(&object[..signed]).as_bytes());
    object[signed..].copy_from_slice(&signature);
    object
}

#[test]
fn wrapped_keys_are_golden() {
    let to = recovery().recipient();
    assert_eq!(hex(&epoch().wrapped_with(&site(), &to, secret(EPHEMERAL)).unwrap()), golden::WRAPPED_EPOCH);
    assert_eq!(hex(&site().wrap_with(&to, secret(EPHEMERAL)).unwrap()), golden::WRAPPED_SITE);
}

#[test]
fn wrapped_keys_say_what_they_are_without_a_private_key() {
    let header = WrappedHeader::parse(&unhex(golden::WRAPPED_EPOCH)).unwrap();
    assert_eq!(header.kind(), WrappedKind::Epoch { domain: domain(), epoch: epoch().epoch() });
    assert_eq!((header.vault(), header.recipient()), (vault(), recovery().recipient().id()));
    assert_eq!(header.signer(), site().id());
    assert!(header.verify_signature(&site().public()));

    let header = WrappedHeader::parse(&unhex(golden::WRAPPED_SITE)).unwrap();
    assert_eq!(header.kind(), WrappedKind::SiteKey(site().id()));
    assert!(header.verify_signature(&site().public()));
    let other = SiteKey::generate(vault(), site().root_public()).unwrap();
    assert!(!header.verify_signature(&other.public()));
}

#[test]
fn a_wrapped_site_key_brings_back_the_whole_site_key() {
    let restored = recovery().unwrap_site_key(&unhex(golden::WRAPPED_SITE), &site().public()).unwrap();
    assert_eq!((restored.id(), restored.vault_id()), (site().id(), vault()));
    assert_eq!(restored.root_public(), recovery().root_public());
    for (ours, theirs) in restored.secrets().into_iter().zip(site().secrets()) {
        assert_eq!(ours.as_bytes(), theirs.as_bytes());
    }
}

#[test]
fn no_byte_of_a_wrapped_key_can_be_changed() {
    let (recovery, signer) = (recovery(), site().public());
    for (at, changed) in tampered(&unhex(golden::WRAPPED_EPOCH)) {
        assert!(recovery.unwrap_epoch(&changed, &signer).is_err(), "byte {at}");
        assert!(!WrappedHeader::parse(&changed).is_ok_and(|h| h.verify_signature(&signer)), "byte {at}");
    }
    for (at, changed) in tampered(&unhex(golden::WRAPPED_SITE)) {
        assert!(recovery.unwrap_site_key(&changed, &signer).is_err(), "byte {at}");
    }
}

#[test]
fn the_header_is_bound_to_the_key_inside_even_when_signed_again() {
    // Domain, epoch, enc, ciphertext, tag: a site key may sign anything, but what it did not wrap does not open.
    for at in [40, 56, 71, 80, 112, 144, 159] {
        let object = signed_again(unhex(golden::WRAPPED_EPOCH), at);
        assert!(WrappedHeader::parse(&object).unwrap().verify_signature(&site().public()), "byte {at}");
        let refused = kind_of(recovery().unwrap_epoch(&object, &site().public()));
        assert_eq!(refused, KeyErrorKind::Corrupt, "byte {at}");
    }
}

#[test]
fn shapes_that_are_none_are_refused_before_anything_is_believed() {
    let parse = |at, value| {
        let mut object = unhex(golden::WRAPPED_SITE);
        object[at] = value;
        kind_of(WrappedHeader::parse(&object))
    };
    assert_eq!(parse(0, b'X'), KeyErrorKind::Corrupt);
    assert_eq!(parse(8, 2), KeyErrorKind::Unsupported);
    assert_eq!(parse(10, 0), KeyErrorKind::Corrupt);
    assert_eq!(parse(10, 1), KeyErrorKind::Corrupt);
    assert_eq!(parse(10, 3), KeyErrorKind::Corrupt);
    assert_eq!(parse(11, 1), KeyErrorKind::Corrupt);
    assert_eq!(parse(12, 111), KeyErrorKind::Corrupt);
    assert_eq!(parse(15, 0xff), KeyErrorKind::Corrupt);
    assert_eq!(parse(40, 1), KeyErrorKind::Corrupt);
    assert_eq!(parse(56, 1), KeyErrorKind::Corrupt);
    assert_eq!(parse(64, 1), KeyErrorKind::Corrupt);
    let mut zero_epoch = unhex(golden::WRAPPED_EPOCH);
    zero_epoch[56..72].fill(0);
    assert_eq!(kind_of(WrappedHeader::parse(&zero_epoch)), KeyErrorKind::Corrupt);
    for golden in [golden::WRAPPED_SITE, golden::WRAPPED_EPOCH] {
        let object = unhex(golden);
        for len in 0..object.len() {
            assert_eq!(kind_of(WrappedHeader::parse(&object[..len])), KeyErrorKind::Corrupt, "{len} bytes");
        }
        assert_eq!(kind_of(WrappedHeader::parse(&[object, vec![0]].concat())), KeyErrorKind::Corrupt);
    }
}

#[test]
fn the_wrong_key_is_told_from_a_damaged_object() {
    let (object, signer) = (unhex(golden::WRAPPED_EPOCH), site().public());
    let unwrap = |key: &RecoveryKey, signer: &SitePublic| -> Result<EpochOpener> { key.unwrap_epoch(&object, signer) };
    let other_seed = RecoveryKey::from_seed(vault(), secret(1));
    let other_vault = RecoveryKey::from_seed(VaultId::from_bytes([1; 16]), secret(0));
    let other_signer = SiteKey::generate(vault(), site().root_public()).unwrap().public();
    assert_eq!(kind_of(unwrap(&other_seed, &signer)), KeyErrorKind::Wrong);
    assert_eq!(kind_of(unwrap(&other_vault, &signer)), KeyErrorKind::Wrong);
    assert_eq!(kind_of(unwrap(&recovery(), &other_signer)), KeyErrorKind::Wrong);
    assert_eq!(kind_of(recovery().unwrap_site_key(&object, &signer)), KeyErrorKind::Wrong);
    assert_eq!(kind_of(recovery().unwrap_epoch(&unhex(golden::WRAPPED_SITE), &signer)), KeyErrorKind::Wrong);
    assert!(unwrap(&recovery(), &signer).is_ok());
}

#[test]
fn a_wrap_of_another_vaults_site_or_to_a_weak_recipient_is_refused() {
    let foreign = SiteKey::generate(VaultId::from_bytes([1; 16]), site().root_public()).unwrap();
    assert_eq!(kind_of(epoch().wrapped_for(&foreign, &recovery().recipient())), KeyErrorKind::Wrong);
    assert_eq!(kind_of(epoch().wrapped_for(&site(), &Recipient::from_x25519([0; 32]))), KeyErrorKind::Corrupt);
}

#[test]
fn every_wrap_is_fresh() {
    let [one, two] = [(); 2].map(|()| epoch().wrapped_for(&site(), &recovery().recipient()).unwrap());
    assert_eq!(one[..HEADER_LEN], two[..HEADER_LEN]);
    assert_ne!(one[HEADER_LEN..CIPHERTEXT_AT], two[HEADER_LEN..CIPHERTEXT_AT]);
}
