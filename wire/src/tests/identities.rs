use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use landfall_model::{ErrorKind, MachineName, Timestamp};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

use super::support::refused;
use crate::pki::{Authority, Certificate, Identity, Token, now};

const HOUR: Duration = Duration::from_secs(3600);

fn authority() -> Authority {
    Authority::from_seed(&[7; 32]).unwrap()
}

fn machine() -> MachineName {
    "db-1".parse().unwrap()
}

fn identity() -> Identity {
    let (authority, request) = (authority(), Identity::request().unwrap());
    let certificate = authority.sign_agent(request.csr(), &machine(), now(), HOUR).unwrap();
    Identity::new(request, certificate, authority.certificate().to_vec()).unwrap()
}

#[test]
fn one_seed_makes_one_authority() {
    let (authority, again) = (authority(), authority());
    assert_eq!(authority.certificate(), again.certificate());
    assert_ne!(authority.pin(), Authority::from_seed(&[8; 32]).unwrap().pin());
    // Gateways of different versions make the same certificate: this changes only with a new protocol.
    assert_eq!(
        data_encoding::HEXLOWER.encode(&authority.pin()),
        "3925fba3d017cf736c226128ed25c39138ad5eb266433cdc3770fa820ee0e63a"
    );
}

#[test]
fn a_certificate_names_the_machine_that_the_gateway_chose() {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let params = CertificateParams::new(vec!["landfall-gateway".to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let before = now();
    let certificate = authority().sign_agent(csr.der(), &machine(), now(), HOUR).unwrap();
    let facts = Certificate::read(&certificate).unwrap();
    assert_eq!((facts.machine, facts.serial.len()), (Some(machine()), 16));
    let valid = facts.not_after.millis() - before.millis();
    assert!((3_599_000..3_602_000).contains(&valid), "{valid}");
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
}

#[test]
fn a_certificate_says_when_its_machine_enrolled_and_renewal_does_not_change_it() {
    let (authority, request) = (authority(), Identity::request().unwrap());
    // A month and a half ago, to the second.
    let enrolled = Timestamp::from_millis(now().millis() - 45 * 24 * 3_600_000);
    let renewed = authority.sign_agent(request.csr(), &machine(), enrolled, HOUR).unwrap();
    let facts = Certificate::read(&renewed).unwrap();
    assert_eq!(facts.enrolled.millis(), enrolled.millis() / 1000 * 1000);
    assert!(facts.not_after > now());
    // It is as good as any other.
    Identity::new(request, renewed, authority.certificate().to_vec()).unwrap();
}

#[test]
fn a_request_that_proves_nothing_is_refused() {
    let request = Identity::request().unwrap();
    let mut csr = request.csr().to_vec();
    for wrong in [&[][..], &csr[..csr.len() - 1], &[0x30; 100], &[0; 20_000]] {
        refused(authority().sign_agent(wrong, &machine(), now(), HOUR), ErrorKind::Corrupt, "request");
    }
    *csr.last_mut().unwrap() ^= 1;
    refused(authority().sign_agent(&csr, &machine(), now(), HOUR), ErrorKind::Corrupt, "signature");
    let weak = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default().serialize_request(&weak).unwrap();
    refused(authority().sign_agent(csr.der(), &machine(), now(), HOUR), ErrorKind::Unsupported, "Ed25519");
    refused(
        authority().sign_agent(request.csr(), &machine(), now(), HOUR * 24 * 365 * 9),
        ErrorKind::Usage,
        "five years",
    );
}

#[test]
fn a_gateway_has_right_names() {
    authority().server(&["gw.example".to_owned(), "10.0.0.7".to_owned(), "fe80::1".to_owned()]).unwrap();
    for name in ["", "a b", "gw.example:7000", "-x-"] {
        refused(authority().server(&[name.to_owned()]), ErrorKind::Usage, "name");
    }
}

#[test]
fn an_identity_is_stored_and_loaded_and_its_files_are_its_owners() {
    let folder = tempfile::tempdir().unwrap();
    refused(Identity::load(folder.path()), ErrorKind::NotFound, "not enrolled");
    let stored = identity();
    stored.store(folder.path()).unwrap();
    for name in ["agent.key", "agent.pem", "ca.pem"] {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    let loaded = Identity::load(folder.path()).unwrap();
    assert_eq!((loaded.machine(), loaded.expires()), (&machine(), stored.expires()));
    assert_eq!((loaded.certificate(), loaded.authority()), (stored.certificate(), stored.authority()));
    refused(stored.store(&folder.path().join("none")), ErrorKind::NotFound, "none");
}

/// A crash at each step of storing a second identity leaves the first or the second.
#[test]
fn a_crash_while_storing_leaves_a_whole_identity() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (identity(), identity());
    first.store(old.path()).unwrap();
    second.store(new.path()).unwrap();
    let copy = |from: &str, to: &str| fs::copy(new.path().join(from), old.path().join(to)).unwrap();
    let loaded = |folder: &Path| Identity::load(folder).unwrap().certificate().to_vec();
    copy("agent.key", "agent.key.new");
    assert_eq!(loaded(old.path()), first.certificate());
    copy("agent.pem", "agent.pem");
    assert_eq!(loaded(old.path()), second.certificate());
    second.store(old.path()).unwrap();
    assert_eq!(loaded(old.path()), second.certificate());
}

#[test]
fn damaged_files_are_told() {
    for name in ["agent.key", "agent.pem", "ca.pem"] {
        let folder = tempfile::tempdir().unwrap();
        identity().store(folder.path()).unwrap();
        fs::write(folder.path().join(name), "-----BEGIN nothing").unwrap();
        refused(Identity::load(folder.path()), ErrorKind::Corrupt, name);
    }
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    identity().store(folder.path()).unwrap();
    identity().store(other.path()).unwrap();
    fs::copy(other.path().join("agent.key"), folder.path().join("agent.key")).unwrap();
    refused(Identity::load(folder.path()), ErrorKind::Corrupt, "not the key");
}

#[test]
fn an_answer_for_another_key_or_by_another_authority_is_no_identity() {
    let (ours, evil) = (authority(), Authority::from_seed(&[66; 32]).unwrap());
    let (request, other) = (Identity::request().unwrap(), Identity::request().unwrap());
    let certificate = ours.sign_agent(other.csr(), &machine(), now(), HOUR).unwrap();
    refused(Identity::new(request, certificate, ours.certificate().to_vec()), ErrorKind::Corrupt, "not the key");
    let request = Identity::request().unwrap();
    let certificate = evil.sign_agent(request.csr(), &machine(), now(), HOUR).unwrap();
    refused(Identity::new(request, certificate, ours.certificate().to_vec()), ErrorKind::Corrupt, "not accept");
}

#[test]
fn a_token_is_its_text_and_nothing_prints_a_secret() {
    let token = Token::new(authority().pin()).unwrap();
    let text = token.to_string();
    assert_eq!(text.len(), 5 + 84);
    let read: Token = format!(" {text}\n").parse().unwrap();
    assert!(read == token && read.pin() == &authority().pin());
    assert_eq!(read.secret_hash(), Token::hash_of(token.secret()));
    for wrong in ["", "LFT1-", "LFT2-AAAA", &text[..80], &format!("{text}A"), &text.replace("LFT1-", "")] {
        refused(wrong.parse::<Token>(), ErrorKind::Usage, "copy it again");
    }
    let printed = format!("{token:?} {:?} {:?} {:?}", authority(), identity(), Identity::request().unwrap());
    assert_eq!(printed.matches("(..)").count(), 3);
    assert!(!printed.contains(&text[5..20]));
}
