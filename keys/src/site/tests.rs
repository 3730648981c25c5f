use super::*;
use crate::KeyErrorKind;
use crate::tests::{SALT, data, domain, golden, hex, recovery, run, secret, site, tampered, unhex, vault};

#[test]
fn every_derived_key_and_id_is_golden() {
    let site = site();
    assert_eq!(site.public().to_string(), golden::SITE_PUBLIC);
    assert_eq!(site.id().to_string(), golden::SITE_ID);
    assert_eq!(site.domain_id(&"default".parse().unwrap()).to_string(), golden::DOMAIN_ID);
    assert_eq!(site.machine_id(&"web-01".parse().unwrap()).to_string(), golden::MACHINE_ID);
    assert_eq!(site.fingerprinter(domain()).chunk_id(&data()).to_string(), golden::CHUNK_ID);
    assert_eq!(site.page_fingerprinter().chunk_id(&data()).to_string(), golden::PAGE_ID);
    assert_eq!(hex(site.cut_secret(domain()).as_bytes()), golden::CUT_SECRET);
    assert_eq!(hex(site.agent_authority_seed().as_bytes()), golden::AGENT_CA);
}

#[test]
fn domains_share_no_names() {
    let site = site();
    let other = site.domain_id(&"tenant-b".parse().unwrap());
    assert_ne!(other, domain());
    assert_ne!(site.fingerprinter(other).chunk_id(&data()), site.fingerprinter(domain()).chunk_id(&data()));
    assert_ne!(site.cut_secret(other).as_bytes(), site.cut_secret(domain()).as_bytes());
    // One name, two roles.
    let machine = site.machine_id(&"default".parse().unwrap());
    assert_ne!(machine.as_bytes(), domain().as_bytes());
}

#[test]
fn records_and_directories_are_golden_and_open() {
    let site = site();
    for (sealing, expected) in [(site.record(), golden::RECORD), (site.directory(), golden::DIRECTORY)] {
        let mut sealed = Vec::new();
        sealing.seal_with_salt(&run(SALT), b"header", &data(), &mut sealed).unwrap();
        assert_eq!(hex(&sealed), expected);
    }
    assert_eq!(site.open_record(b"header", &unhex(golden::RECORD)).unwrap(), data());
    assert_eq!(site.open_directory(b"header", &unhex(golden::DIRECTORY)).unwrap(), data());
    for plain in [&b""[..], b"x", &[7; 5000]] {
        let sealed = site.seal_record(b"aad", plain).unwrap();
        assert_eq!(sealed.len(), plain.len() + 32);
        assert_eq!(site.open_record(b"aad", &sealed).unwrap(), plain);
        let sealed = site.seal_directory(b"aad", plain).unwrap();
        assert_eq!(site.open_directory(b"aad", &sealed).unwrap(), plain);
    }
}

#[test]
fn what_was_changed_or_is_another_does_not_open() {
    let site = site();
    let kind = |result: Result<Vec<u8>>| result.unwrap_err().kind();
    for (at, changed) in tampered(&unhex(golden::RECORD)) {
        assert_eq!(kind(site.open_record(b"header", &changed)), KeyErrorKind::Corrupt, "byte {at}");
    }
    for (at, changed) in tampered(&unhex(golden::DIRECTORY)) {
        assert_eq!(kind(site.open_directory(b"header", &changed)), KeyErrorKind::Corrupt, "byte {at}");
    }
    for (_, changed) in tampered(b"header") {
        assert_eq!(kind(site.open_record(&changed, &unhex(golden::RECORD))), KeyErrorKind::Corrupt);
    }
    assert_eq!(kind(site.open_directory(b"header", &unhex(golden::RECORD))), KeyErrorKind::Corrupt);
    assert_eq!(kind(site.open_record(b"header", &unhex(golden::DIRECTORY))), KeyErrorKind::Corrupt);
    for len in 0..32 {
        assert_eq!(kind(site.open_record(b"", &vec![0; len])), KeyErrorKind::Corrupt);
    }
    let other = SiteKey::from_parts(vault(), site.root_public(), secret(0x21), secret(0x40), secret(0x60));
    assert_eq!(kind(other.open_record(b"header", &unhex(golden::RECORD))), KeyErrorKind::Corrupt);
}

#[test]
fn signatures_are_golden_and_hold_for_one_key_one_message_and_one_role() {
    let (site, digest) = (site(), *blake3::hash(b"record").as_bytes());
    let signature = site.sign_record(&digest);
    assert_eq!(hex(&signature), golden::RECORD_SIGNATURE);
    assert!(site.public().verify_record(&digest, &signature));
    for (at, changed) in tampered(&signature) {
        assert!(!site.public().verify_record(&digest, &changed.try_into().unwrap()), "byte {at}");
    }
    for (_, changed) in tampered(&digest) {
        assert!(!site.public().verify_record(&changed.try_into().unwrap(), &signature));
    }
    let other = SiteKey::generate(vault(), site.root_public()).unwrap();
    assert!(!other.public().verify_record(&digest, &signature));
    assert!(!site.public().verify_wrapped(&digest, &signature));
    let as_root = RootPublic::from_bytes(site.public().as_bytes()).unwrap();
    assert!(!as_root.verify_vault(b"record", &signature));
}

#[test]
fn public_keys_read_back_what_they_print_and_nothing_weak() {
    let public = site().public();
    assert_eq!(public.to_string().parse::<SitePublic>().unwrap(), public);
    assert_eq!(SitePublic::from_bytes(public.as_bytes()).unwrap(), public);
    let root = recovery().root_public();
    assert_eq!(root.to_string().parse::<RootPublic>().unwrap(), root);
    let identity = format!("01{}", "00".repeat(31));
    for wrong in ["", "00", &identity, &golden::SITE_PUBLIC.to_uppercase(), &golden::SITE_PUBLIC[2..]] {
        assert_eq!(wrong.parse::<SitePublic>().unwrap_err().kind(), KeyErrorKind::Corrupt, "{wrong}");
    }
}

#[test]
fn generated_site_keys_differ_in_every_part() {
    let [one, two] = [(); 2].map(|()| SiteKey::generate(vault(), recovery().root_public()).unwrap());
    for (a, b) in one.secrets().into_iter().zip(two.secrets()) {
        assert_ne!(a.as_bytes(), b.as_bytes());
    }
}
