//! Every decoder of Landfall as a function of bytes, for libFuzzer and for `tests/fuzz_short.rs`. `true` where the bytes were accepted.
//!
//! None may panic, allocate much more than it was given, or accept what says two things: what is decoded and encoded again must decode
//! to the same. What stands behind a seal or a signature is reached by sealing and signing the bytes here, as a gateway that was taken
//! over could. The keys are those of `seeds/keys`, which open nothing but the seeds.
#![allow(clippy::expect_used, reason = "a fuzz target that meets the impossible must stop")]
#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::path::Path;
use std::sync::OnceLock;

use landfall_keys::{Passphrase, RecoveryKey, SiteKey, WrappedHeader, combine};
use landfall_model::{DiskName, DomainName, MachineName, SegmentId, Timestamp, VaultId};
use landfall_vault::layout::{self, Name};
use landfall_vault::segment::{Trailer, open_directory, open_whole};
use landfall_vault::{Body, Header, Selector, VaultConfig, decode_page, encode_page};

/// A decoder by the name of its fuzz target.
pub(crate) type Decoder = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub(crate) const DECODERS: [Decoder; 12] = [
    ("page", page),
    ("body", body),
    ("record_header", record_header),
    ("directory", directory),
    ("sealed_directory", sealed_directory),
    ("vault_file", vault_file),
    ("signed_vault_file", signed_vault_file),
    ("object_name", object_name),
    ("wrapped_key", wrapped_key),
    ("shares", shares),
    ("key_files", key_files),
    ("words", words),
];

/// The keys that made the seeds.
struct Keys {
    recovery: RecoveryKey,
    site: SiteKey,
}

fn in_file<T>(bytes: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("room for a key file");
    read(file.path())
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let recovery = in_file(include_bytes!("seeds/keys/recovery.key"), |file| RecoveryKey::read(file, None));
        let site = in_file(include_bytes!("seeds/keys/site.key"), SiteKey::read);
        Keys { recovery: recovery.expect("the seeds' recovery key"), site: site.expect("the seeds' site key") }
    })
}

fn vault() -> VaultId {
    keys().site.vault_id()
}

/// A page of a map (FORMAT.md section 9).
pub(crate) fn page(data: &[u8]) -> bool {
    let Ok(map) = decode_page(data) else { return false };
    let again = encode_page(&map).expect("what was decoded can be encoded");
    assert_eq!(decode_page(&again).expect("what was encoded can be decoded"), map);
    let mut twice = map.clone();
    twice.overlay(&map);
    assert_eq!(twice, map, "a map laid over itself is itself");
    let covering = map.covering(u32::try_from(landfall_vault::REGION_BYTES).expect("a region"));
    assert!(covering.windows(2).all(|pair| pair[0].end() == pair[1].start), "every byte once");
    true
}

/// The body of a point or checkpoint (section 8).
pub(crate) fn body(data: &[u8]) -> bool {
    let Ok(body) = Body::decode(data) else { return false };
    let again = body.encode().expect("what was decoded can be encoded");
    assert_eq!(Body::decode(&again).expect("what was encoded can be decoded"), body);
    true
}

/// The plain header of a record (section 8).
pub(crate) fn record_header(data: &[u8]) -> bool {
    let Ok(header) = Header::parse(data) else { return false };
    assert_eq!(header.inline_start(), 160 + 64 + u64::from(header.body_len));
    true
}

/// A segment as it comes from a store (section 7): nothing of it is right by chance.
pub(crate) fn directory(data: &[u8]) -> bool {
    let id = SegmentId::from_bytes([7; 32]);
    assert!(open_whole(&keys().site, vault(), id, data).is_err(), "no bytes have that hash");
    let Ok(trailer) = Trailer::parse(data, data.len() as u64) else { return false };
    let (start, len) = (trailer.directory_start(), trailer.directory_len());
    assert_eq!(start + len + Trailer::LEN, data.len() as u64, "a trailer that fits the object");
    let sealed = &data[usize::try_from(start).expect("inside")..][..usize::try_from(len).expect("inside")];
    open_directory(&keys().site, vault(), id, &trailer, sealed).is_ok()
}

/// A directory under a right seal: the first 13 bytes are what the trailer says and whether the rest is packed already.
pub(crate) fn sealed_directory(data: &[u8]) -> bool {
    let Some((head, rest)) = data.split_first_chunk::<13>() else { return false };
    let block = match head[0] {
        0 => [&[0][..], &u32::try_from(rest.len()).unwrap_or(u32::MAX).to_le_bytes(), rest].concat(),
        _ => rest.to_vec(),
    };
    let (frames, frames_len) = (&head[1..5], &head[5..13]);
    let mut trailer = u32::try_from(block.len() + 32).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    trailer.extend_from_slice(frames);
    trailer.extend_from_slice(frames_len);
    trailer.extend_from_slice(keys().site.id().as_bytes());
    trailer.extend_from_slice(b"LANDSEND");
    let frames_len = u64::from_le_bytes(frames_len.try_into().expect("eight bytes"));
    let Some(object_len) = frames_len.checked_add(block.len() as u64 + 32 + 64) else { return false };
    let Ok(parsed) = Trailer::parse(&trailer, object_len) else { return false };
    let mut header = b"LANDSEGM\x01\0\0\0\0\0\0\0".to_vec();
    header.extend_from_slice(vault().as_bytes());
    let sealed = keys().site.seal_directory(&[header, trailer].concat(), &block).expect("a seal");
    let opened = open_directory(&keys().site, vault(), SegmentId::from_bytes([7; 32]), &parsed, &sealed);
    let Ok(chunks) = opened else { return false };
    let mut at = 32;
    for chunk in &chunks {
        assert_eq!(u64::from(chunk.location.offset), at, "frames lie back to back");
        at += u64::from(chunk.location.stored_len);
    }
    assert_eq!(at, 32 + frames_len);
    true
}

/// `vault.json` as it comes from a store (section 4).
pub(crate) fn vault_file(data: &[u8]) -> bool {
    VaultConfig::decode(data, &keys().recovery.root_public()).is_ok()
}

/// `vault.json` with any text in it, rightly signed.
pub(crate) fn signed_vault_file(data: &[u8]) -> bool {
    let Ok(signed) = std::str::from_utf8(data) else { return false };
    let signature = keys().recovery.sign_vault(data).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let file = serde_json::json!({ "landfall": "vault", "format": 1, "signed": signed, "signature": signature });
    let root = keys().recovery.root_public();
    let Ok(config) = VaultConfig::decode(file.to_string().as_bytes(), &root) else { return false };
    let again = config.encode(&keys().recovery).expect("what was decoded can be encoded");
    assert_eq!(VaultConfig::decode(&again, &root).expect("what was encoded can be decoded"), config);
    let _ = config.signers();
    let _ = config.recipients();
    true
}

/// The name of an object (section 1): each has one spelling.
pub(crate) fn object_name(data: &[u8]) -> bool {
    let Some(text) = std::str::from_utf8(data).ok() else { return false };
    let Some(name) = layout::parse(text) else { return false };
    let again = match name {
        Name::Vault => layout::VAULT_FILE.to_owned(),
        Name::SiteKey(key, recipient) => layout::site_key(key, recipient),
        Name::Epoch(domain, epoch, recipient) => layout::epoch(domain, epoch, recipient),
        Name::Segment(id) => layout::segment(id),
        Name::Generation(machine, generation) => layout::generation(machine, generation),
        Name::Heartbeat(gateway) => layout::heartbeat(gateway),
        Name::Revocation(machine, until) => layout::revocation(machine, until),
        Name::Job(job, seq) => layout::job_record(job, seq),
        Name::Order(order, seq) => layout::order_record(order, seq),
        Name::Profile(machine, seq) => layout::profile(machine, seq),
        Name::Drill(begun, job) => layout::drill(begun, job),
        Name::Point(machine, timeline, seq) => layout::point(machine, timeline, seq),
        Name::Checkpoint(machine, timeline, seq) => layout::checkpoint(machine, timeline, seq),
    };
    assert_eq!(again, text, "an object has two names");
    true
}

/// A wrapped key (section 5): nothing but the very bytes that were made opens.
pub(crate) fn wrapped_key(data: &[u8]) -> bool {
    let Ok(header) = WrappedHeader::parse(data) else { return false };
    let signer = keys().site.public();
    let signed = header.verify_signature(&signer);
    let epoch = keys().recovery.unwrap_epoch(data, &signer).is_ok();
    let site = keys().recovery.unwrap_site_key(data, &signer).is_ok();
    assert!(signed || !(epoch || site), "a wrapped key opens without its signature");
    assert!(!(epoch && site), "a wrapped key is of two kinds");
    epoch || site
}

/// Shares of a recovery key, as people type them (section 11).
pub(crate) fn shares(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match combine(&lines) {
        Ok(key) => {
            assert!(key.root_public() == keys().recovery.root_public(), "other shares made another key");
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "an error is one line: {error}");
            false
        }
    }
}

/// Key files (section 11), and the file of a passphrase.
pub(crate) fn key_files(data: &[u8]) -> bool {
    in_file(data, |file| {
        // Without a passphrase: what a file asks for to check one may take a second.
        let recovery = RecoveryKey::read(file, None).is_ok();
        let site = SiteKey::read(file).is_ok();
        let _ = Passphrase::from_file(file);
        assert!(!(recovery && site), "a key file is of two kinds");
        recovery || site
    })
}

/// Words of the command line and of metadata.
pub(crate) fn words(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let _ = text.parse::<Selector>();
    if let Ok(time) = text.parse::<Timestamp>() {
        let again: Timestamp = time.to_string().parse().expect("a time that was printed can be read");
        assert_eq!(again, time, "{text:?}");
    }
    let machine = text.parse::<MachineName>().map(|name| assert_eq!(name.to_string(), text)).is_ok();
    let disk = text.parse::<DiskName>().map(|name| assert_eq!(name.to_string(), text)).is_ok();
    let domain = text.parse::<DomainName>().map(|name| assert_eq!(name.to_string(), text)).is_ok();
    machine || disk || domain || text.parse::<Timestamp>().is_ok()
}
