use super::*;
use crate::tests::{golden, hex, recovery, secret, tampered, vault};

#[test]
fn every_derived_key_is_golden() {
    let key = recovery();
    assert_eq!(hex(key.recipient().x25519()), golden::X25519);
    assert_eq!(key.recipient().id().to_string(), golden::RECIPIENT_ID);
    assert_eq!(key.root_public().to_string(), golden::ROOT_PUBLIC);
}

#[test]
fn the_root_signature_is_golden_and_holds_for_one_key_and_one_text() {
    let (key, text) = (recovery(), br#"{"vault":true}"#);
    let signature = key.sign_vault(text);
    assert_eq!(hex(&signature), golden::VAULT_SIGNATURE);
    assert!(key.root_public().verify_vault(text, &signature));
    for (_, changed) in tampered(text) {
        assert!(!key.root_public().verify_vault(&changed, &signature));
    }
    for (at, changed) in tampered(&signature) {
        assert!(!key.root_public().verify_vault(text, &changed.try_into().unwrap()), "byte {at}");
    }
    let other = RecoveryKey::from_seed(vault(), secret(1));
    assert!(!other.root_public().verify_vault(text, &signature));
}

#[test]
fn generated_keys_differ() {
    let [one, two] = [(); 2].map(|()| RecoveryKey::generate(vault()).unwrap());
    assert_ne!(one.recipient(), two.recipient());
    assert_ne!(one.root_public(), two.root_public());
}
