use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::*;
use crate::KeyErrorKind;
use crate::tests::{SALT, golden, hex, recovery, run, site, vault};

const PHRASE: &[u8] = b"correct horse battery staple";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}

fn phrase(text: &[u8]) -> Passphrase {
    Passphrase::from_bytes(text.to_vec()).unwrap()
}

fn kind_of<T>(result: Result<T>) -> KeyErrorKind {
    result.err().expect("refused").kind()
}

/// A recovery file's text with its parts.
fn recovery_json(rest: &str) -> String {
    format!(r#"{{"landfall":"recovery-key","format":1,"vault_id":"{}",{rest}}}"#, vault())
}

fn kdf_json(memory_kib: u32, iterations: u32, lanes: u32) -> String {
    let (salt, sealed) = (hex(&run::<16>(SALT)), golden::SEALED_SEED);
    recovery_json(&format!(
        r#""kdf":{{"name":"argon2id","memory_kib":{memory_kib},"iterations":{iterations},"lanes":{lanes},"salt":"{salt}"}},"sealed":"{sealed}""#
    ))
}

#[test]
fn files_are_what_the_format_says() {
    let seed = hex(&run::<32>(0));
    let text = recovery_text(Path::new("-"), &recovery(), None, run(SALT)).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), recovery_json(&format!(r#""seed":"{seed}""#)) + "\n");

    let text = recovery_text(Path::new("-"), &recovery(), Some(&phrase(PHRASE)), run(SALT)).unwrap();
    assert_eq!(String::from_utf8_lossy(&text), kdf_json(65536, 3, 1) + "\n");

    let folder = Folder::new();
    site().write_new(&folder.path("site")).unwrap();
    let [index, fingerprint, signing] = [0x20, 0x40, 0x60].map(|start| hex(&run::<32>(start)));
    let expected = format!(
        r#"{{"landfall":"site-key","format":1,"vault_id":"{}","index_key":"{index}","fingerprint_key":"{fingerprint}","signing_seed":"{signing}","root_public":"{}"}}"#,
        vault(),
        golden::ROOT_PUBLIC
    );
    assert_eq!(fs::read_to_string(folder.path("site")).unwrap(), expected + "\n");
}

#[test]
fn keys_read_back() {
    let folder = Folder::new();
    let (plain, sealed, site_path) = (folder.path("plain"), folder.path("sealed"), folder.path("site"));
    recovery().write_new(&plain, None).unwrap();
    recovery().write_new(&sealed, Some(&phrase(PHRASE))).unwrap();
    site().write_new(&site_path).unwrap();
    let read = [
        RecoveryKey::read(&plain, None).unwrap(),
        RecoveryKey::read(&plain, Some(&phrase(PHRASE))).unwrap(),
        RecoveryKey::read(&sealed, Some(&phrase(PHRASE))).unwrap(),
    ];
    for key in read {
        assert_eq!((key.vault_id(), key.seed().as_bytes()), (vault(), recovery().seed().as_bytes()));
    }
    let read = SiteKey::read(&site_path).unwrap();
    assert_eq!((read.id(), read.vault_id(), read.root_public()), (site().id(), vault(), site().root_public()));
    for (ours, theirs) in read.secrets().into_iter().zip(site().secrets()) {
        assert_eq!(ours.as_bytes(), theirs.as_bytes());
    }
}

#[test]
fn files_are_for_the_owner_only_and_never_overwritten() {
    let folder = Folder::new();
    let (a, b) = (folder.path("a"), folder.path("b"));
    recovery().write_new(&a, None).unwrap();
    site().write_new(&b).unwrap();
    for path in [&a, &b] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o600);
        let before = fs::read(path).unwrap();
        assert_eq!(kind_of(recovery().write_new(path, None)), KeyErrorKind::Exists);
        assert_eq!(kind_of(site().write_new(path)), KeyErrorKind::Exists);
        assert_eq!(fs::read(path).unwrap(), before);
    }
    assert_eq!(kind_of(site().write_new(&folder.path("none/key"))), KeyErrorKind::Io);
}

#[test]
fn a_passphrase_that_is_missing_or_wrong_is_said_so() {
    let folder = Folder::new();
    let path = folder.file("key", kdf_json(65536, 3, 1));
    let error = RecoveryKey::read(&path, None).err().unwrap();
    assert_eq!(error.kind(), KeyErrorKind::Missing);
    assert!(error.to_string().contains("--passphrase-file"), "{error}");
    assert_eq!(kind_of(RecoveryKey::read(&path, Some(&phrase(b"wrong")))), KeyErrorKind::Wrong);
    assert!(RecoveryKey::read(&path, Some(&phrase(PHRASE))).is_ok());
}

#[test]
fn a_sealed_seed_is_bound_to_its_vault_and_cost() {
    let folder = Folder::new();
    let other = VaultId::from_bytes([1; 16]).to_string();
    let path = folder.file("vault", kdf_json(65536, 3, 1).replace(&vault().to_string(), &other));
    assert_eq!(kind_of(RecoveryKey::read(&path, Some(&phrase(PHRASE)))), KeyErrorKind::Wrong);
    let path = folder.file("cost", kdf_json(65536, 2, 1));
    assert_eq!(kind_of(RecoveryKey::read(&path, Some(&phrase(PHRASE)))), KeyErrorKind::Wrong);
    let path = folder.file("sealed", kdf_json(65536, 3, 1).replace(golden::SEALED_SEED, ""));
    assert_eq!(kind_of(RecoveryKey::read(&path, Some(&phrase(PHRASE)))), KeyErrorKind::Wrong);
}

#[test]
fn what_would_take_the_machine_down_is_refused_before_it_is_computed() {
    let folder = Folder::new();
    for (name, text, kind) in [
        ("memory", kdf_json(MEMORY_KIB_MAX + 1, 1, 1), KeyErrorKind::Unsupported),
        ("most", kdf_json(u32::MAX, u32::MAX, u32::MAX), KeyErrorKind::Unsupported),
        ("iterations", kdf_json(64, ITERATIONS_MAX + 1, 1), KeyErrorKind::Unsupported),
        ("kdf", kdf_json(64, 1, 1).replace("argon2id", "argon2d"), KeyErrorKind::Unsupported),
        ("none", kdf_json(64, 0, 1), KeyErrorKind::Corrupt),
        ("lanes", kdf_json(64, 1, u32::MAX), KeyErrorKind::Corrupt),
    ] {
        let path = folder.file(name, text);
        // Also without a passphrase: it is no use to ask for one.
        assert_eq!(kind_of(RecoveryKey::read(&path, None)), kind, "{name}");
        assert_eq!(kind_of(RecoveryKey::read(&path, Some(&phrase(PHRASE)))), kind, "{name}");
    }
}

#[test]
fn files_that_are_none_are_refused_by_what_they_are() {
    let folder = Folder::new();
    let seed = hex(&run::<32>(0));
    let good = recovery_json(&format!(r#""seed":"{seed}""#));
    let sealed = kdf_json(65536, 3, 1);
    for (name, text, kind) in [
        ("empty", String::new(), KeyErrorKind::Corrupt),
        ("cut", good[..good.len() - 1].to_owned(), KeyErrorKind::Corrupt),
        ("long", good.clone() + &" ".repeat(FILE_BYTES_MAX), KeyErrorKind::Corrupt),
        ("other", good.replace("recovery-key", "house-key"), KeyErrorKind::Corrupt),
        ("later", good.replace("\"format\":1", "\"format\":2"), KeyErrorKind::Unsupported),
        ("short", good.replace(&seed, &seed[2..]), KeyErrorKind::Corrupt),
        ("upper", good.replace(&seed, &seed.to_uppercase()), KeyErrorKind::Corrupt),
        ("none", good.replace("seed", "seeds"), KeyErrorKind::Corrupt),
        ("salt", sealed.replace(&hex(&run::<16>(SALT)), "e0"), KeyErrorKind::Corrupt),
        ("both", recovery_json(&format!(r#""seed":"{seed}","sealed":"00""#)), KeyErrorKind::Corrupt),
    ] {
        let path = folder.file(name, text);
        assert_eq!(kind_of(RecoveryKey::read(&path, None)), kind, "{name}");
    }
    let site_path = folder.path("site");
    site().write_new(&site_path).unwrap();
    assert_eq!(kind_of(RecoveryKey::read(&site_path, None)), KeyErrorKind::Wrong);
    assert_eq!(kind_of(SiteKey::read(&folder.file("recovery", good.clone()))), KeyErrorKind::Wrong);
    assert_eq!(kind_of(SiteKey::read(&folder.path("absent"))), KeyErrorKind::Missing);
    assert_eq!(kind_of(RecoveryKey::read(folder.0.path(), None)), KeyErrorKind::Io);
    let unknown = good.replace('}', r#","comment":"kept in the safe"}"#);
    assert!(RecoveryKey::read(&folder.file("unknown", unknown), None).is_ok());
}

#[test]
fn no_error_says_a_secret() {
    let folder = Folder::new();
    let seed = hex(&run::<32>(0));
    let swapped =
        recovery_json(&format!(r#""seed":"{seed}""#)).replace("\"format\":1", &format!("\"format\":\"{seed}\""));
    let error = RecoveryKey::read(&folder.file("key", swapped), None).err().unwrap();
    assert!(!format!("{error} {error:?}").contains(&seed[..8]), "{error:?}");
}

#[test]
fn a_passphrase_is_the_first_line_of_its_file() {
    let folder = Folder::new();
    let path = folder.file("key", kdf_json(65536, 3, 1));
    for (name, text) in [("bare", ""), ("line", "\n"), ("dos", "\r\n"), ("more", "\nsecond line\n")] {
        let file = folder.file(name, [PHRASE, text.as_bytes()].concat());
        let passphrase = Passphrase::from_file(&file).unwrap();
        assert!(RecoveryKey::read(&path, Some(&passphrase)).is_ok(), "{name}");
    }
    for (name, text) in [("empty", Vec::new()), ("blank", b"\nsecond".to_vec()), ("long", vec![b'x'; 5000])] {
        let file = folder.file(name, text);
        assert_eq!(kind_of(Passphrase::from_file(&file)), KeyErrorKind::Usage, "{name}");
    }
    assert!(Passphrase::from_file(&folder.file("longest", vec![b'x'; 1024])).is_ok());
    assert_eq!(kind_of(Passphrase::from_file(&folder.file("too", vec![b'x'; 1025]))), KeyErrorKind::Usage);
    assert_eq!(kind_of(Passphrase::from_file(&folder.path("absent"))), KeyErrorKind::Missing);
}
