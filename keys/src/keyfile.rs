//! Key files: the recovery key and the site key on disk (FORMAT.md section 11).
//!
//! A file is written once, under a name that did not exist, with mode 0600 from its first byte, and is durable (file
//! and folder) when the call returns; a crash before that leaves a file that does not read, and is never used. What is
//! read is bounded, and the texts that hold secrets are zeroised.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use landfall_model::VaultId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::{KeyError, Problem, Result};
use crate::passphrase::{Cost, ITERATIONS_MAX, MEMORY_KIB_MAX, Passphrase, read_full};
use crate::random;
use crate::recovery::RecoveryKey;
use crate::secret::Secret;
use crate::signing::RootPublic;
use crate::site::SiteKey;

/// Longest key file in bytes: several times the longest that is written.
const FILE_BYTES_MAX: usize = 16 * 1024;

const FORMAT: u64 = 1;
const RECOVERY: Kind = Kind { tag: "recovery-key", what: "recovery key" };
const SITE: Kind = Kind { tag: "site-key", what: "site key" };

/// Which file it is: as `"landfall"` says it, and as people do.
struct Kind {
    tag: &'static str,
    what: &'static str,
}

/// What every key file begins with.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    landfall: Cow<'a, str>,
    format: u64,
}

#[derive(Serialize, Deserialize)]
struct RecoveryFile<'a> {
    landfall: &'a str,
    format: u64,
    vault_id: VaultId,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", borrow)]
    kdf: Option<Kdf<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct Kdf<'a> {
    name: &'a str,
    memory_kib: u32,
    iterations: u32,
    lanes: u32,
    salt: &'a str,
}

#[derive(Serialize, Deserialize)]
struct SiteFile<'a> {
    landfall: &'a str,
    format: u64,
    vault_id: VaultId,
    index_key: &'a str,
    fingerprint_key: &'a str,
    signing_seed: &'a str,
    root_public: &'a str,
}

/// Writes a recovery key, sealed under a fresh salt when there is a passphrase.
pub(crate) fn write_recovery(path: &Path, key: &RecoveryKey, passphrase: Option<&Passphrase>) -> Result<()> {
    let salt = random::bytes()?;
    write(path, &RECOVERY, &recovery_text(path, key, passphrase, salt)?)
}

fn recovery_text(
    path: &Path,
    key: &RecoveryKey,
    passphrase: Option<&Passphrase>,
    salt: [u8; 16],
) -> Result<Zeroizing<Vec<u8>>> {
    let vault_id = key.vault_id();
    let (landfall, format) = (RECOVERY.tag, FORMAT);
    let Some(passphrase) = passphrase else {
        let seed = key.seed().to_hex();
        let seed = Some(seed.as_str());
        return text(path, &RECOVERY, &RecoveryFile { landfall, format, vault_id, seed, kdf: None, sealed: None });
    };
    let cost = Cost::with_salt(salt);
    let sealed = HEXLOWER.encode(&cost.seal(passphrase, vault_id, key.seed())?);
    let salt = HEXLOWER.encode(cost.salt());
    let (memory_kib, iterations, lanes) = (cost.memory_kib(), cost.iterations(), cost.lanes());
    let kdf = Some(Kdf { name: "argon2id", memory_kib, iterations, lanes, salt: &salt });
    text(path, &RECOVERY, &RecoveryFile { landfall, format, vault_id, seed: None, kdf, sealed: Some(&sealed) })
}

/// Reads a recovery key.
pub(crate) fn read_recovery(path: &Path, passphrase: Option<&Passphrase>) -> Result<RecoveryKey> {
    let text = read(path, &RECOVERY)?;
    let file: RecoveryFile<'_> = parse(path, &RECOVERY, &text)?;
    let bad = |why| bad(path, &RECOVERY, why);
    let vault = file.vault_id;
    let seed = match (file.seed, file.kdf, file.sealed) {
        (Some(seed), None, None) => Secret::from_hex(seed).ok_or_else(|| bad("its seed is not 64 hex digits"))?,
        (None, Some(kdf), Some(sealed)) => {
            let cost = cost(path, &kdf)?;
            let sealed = HEXLOWER.decode(sealed.as_bytes()).map_err(|_| bad("its sealed seed is not hex"))?;
            let passphrase = passphrase.ok_or_else(|| Problem::PassphraseMissing { path: path.to_owned() })?;
            let seed = cost.open(passphrase, vault, &sealed)?;
            seed.ok_or_else(|| Problem::PassphraseWrong { path: path.to_owned() })?
        }
        _ => return Err(bad("it has neither a seed, nor a kdf and what is sealed by it")),
    };
    Ok(RecoveryKey::from_seed(vault, seed))
}

/// The cost that a file asks for, within the limits, before anything is spent.
fn cost(path: &Path, kdf: &Kdf<'_>) -> Result<Cost> {
    let too_much = |asks, limit| Problem::PassphraseCost { path: path.to_owned(), asks, limit };
    if kdf.name != "argon2id" {
        return Err(too_much(format!("the kdf {:?}", kdf.name), "argon2id").into());
    }
    if kdf.memory_kib > MEMORY_KIB_MAX {
        return Err(too_much(format!("{} KiB", kdf.memory_kib), "1048576 KiB").into());
    }
    if kdf.iterations > ITERATIONS_MAX {
        return Err(too_much(format!("{} iterations", kdf.iterations), "64 iterations").into());
    }
    let mut salt = [0; 16];
    if kdf.salt.len() != 2 * salt.len() || HEXLOWER.decode_mut(kdf.salt.as_bytes(), &mut salt).is_err() {
        return Err(bad(path, &RECOVERY, "its salt is not 32 hex digits"));
    }
    Cost::new(kdf.memory_kib, kdf.iterations, kdf.lanes, salt)
        .ok_or_else(|| bad(path, &RECOVERY, "Argon2id has no such parameters"))
}

/// Writes a site key.
pub(crate) fn write_site(path: &Path, key: &SiteKey) -> Result<()> {
    let [index, fingerprint, signing] = key.secrets().map(Secret::to_hex);
    let file = SiteFile {
        landfall: SITE.tag,
        format: FORMAT,
        vault_id: key.vault_id(),
        index_key: &index,
        fingerprint_key: &fingerprint,
        signing_seed: &signing,
        root_public: &key.root_public().to_string(),
    };
    write(path, &SITE, &text(path, &SITE, &file)?)
}

/// Reads a site key.
pub(crate) fn read_site(path: &Path) -> Result<SiteKey> {
    let text = read(path, &SITE)?;
    let file: SiteFile<'_> = parse(path, &SITE, &text)?;
    let secret = |hex| Secret::from_hex(hex).ok_or_else(|| bad(path, &SITE, "one of its keys is not 64 hex digits"));
    let root: RootPublic = file.root_public.parse().map_err(|_| bad(path, &SITE, "its root_public is no key"))?;
    let (index, fingerprint) = (secret(file.index_key)?, secret(file.fingerprint_key)?);
    Ok(SiteKey::from_parts(file.vault_id, root, index, fingerprint, secret(file.signing_seed)?))
}

fn bad(path: &Path, kind: &Kind, why: &'static str) -> KeyError {
    Problem::BadFile { what: kind.what, path: path.to_owned(), why }.into()
}

/// One line of JSON, in a buffer that never grew.
fn text(path: &Path, kind: &Kind, file: &impl Serialize) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX));
    serde_json::to_writer(&mut *text, file).map_err(|error| failed("write", kind, path)(error.into()))?;
    text.push(b'\n');
    Ok(text)
}

/// Parses a file of this kind and format. The parser's own error is not passed on: it may quote what it read.
fn parse<'a, T: Deserialize<'a>>(path: &Path, kind: &Kind, text: &'a [u8]) -> Result<T> {
    let what = kind.what;
    let head: Head<'_> = serde_json::from_slice(text).map_err(|_| bad(path, kind, "it is not a key file's JSON"))?;
    if let Some(found) = [RECOVERY, SITE].into_iter().find(|k| k.tag == head.landfall && k.tag != kind.tag) {
        return Err(Problem::OtherFile { what, path: path.to_owned(), found: found.what }.into());
    }
    if head.landfall != kind.tag {
        return Err(bad(path, kind, "its \"landfall\" says that it is something else"));
    }
    if head.format != FORMAT {
        return Err(Problem::FileFormat { what, path: path.to_owned(), format: head.format }.into());
    }
    serde_json::from_slice(text).map_err(|_| bad(path, kind, "a field is missing or not of its kind"))
}

fn failed(verb: &'static str, kind: &Kind, path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let (what, path) = (kind.what, path.to_owned());
    move |source| match source.kind() {
        io::ErrorKind::NotFound if verb == "read" => Problem::NoFile { what, path, source },
        io::ErrorKind::AlreadyExists => Problem::FileExists { what, path },
        _ => Problem::File { verb, what, path, source },
    }
}

fn read(path: &Path, kind: &Kind) -> Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(vec![0; FILE_BYTES_MAX + 1]);
    let len = File::open(path).and_then(|mut file| read_full(&mut file, &mut text));
    let len = len.map_err(failed("read", kind, path))?;
    if len > FILE_BYTES_MAX {
        return Err(bad(path, kind, "it is longer than any key file"));
    }
    text.truncate(len);
    Ok(text)
}

fn write(path: &Path, kind: &Kind, text: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(failed("write", kind, path))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let written = (&file).write_all(text).and_then(|()| file.sync_all());
    written.and_then(|()| File::open(folder)?.sync_all()).map_err(|source| {
        // The file is ours and useless; if it cannot be removed either, the next write says that it is there.
        let _ = std::fs::remove_file(path);
        failed("write", kind, path)(source).into()
    })
}

#[cfg(test)]
mod tests;
