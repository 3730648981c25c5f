//! Every decoder against bytes that somebody changed: no panic, no allocation out of all proportion, an error or the truth.
//!
//! The same decoders as in `tests/fuzz`, in process and on stable Rust, over mutations of the golden seeds; and a short run of
//! libFuzzer itself where somebody wants it (`make fuzz`: `LANDFALL_FUZZ_SECONDS` for each target) and a nightly toolchain is there: building it takes longer than all else here.
//! `cargo test --test fuzz_short -- --ignored` makes the seeds anew.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "fuzz/decoders.rs"]
mod decoders;
mod support;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use decoders::DECODERS;
use landfall_keys::SiteKey;
use landfall_model::{
    ChunkId, ChunkRef, Codec, Entry, EntryKind, EpochId, Location, RegionMap, SegmentId, Seq, Source, Timeline,
};
use landfall_tests::disks;
use landfall_tests::landfall::{Site, exit};
use landfall_tests::tools::{self, repository};
use landfall_vault::layout;
use landfall_vault::segment::SegmentBuilder;
use landfall_vault::{Store, Vault, encode_page};
use support::{Dice, MIB, REGION};

/// Mutations of each seed: some seconds in all.
const MUTATIONS: u32 = 3000;
/// No decoder is given more than some KiB; what it allocates beyond this is not in proportion. The directory of a segment may be
/// 128 MiB when it is unpacked, and its columns as much again.
const MEMORY_BYTES_MAX: u64 = 512 * MIB;

fn seeds_of(target: &str) -> Vec<(String, Vec<u8>)> {
    let files = support::walk(&repository().join("tests/fuzz/seeds").join(target));
    assert!(!files.is_empty(), "there are no seeds for {target}");
    files.iter().map(|f| (f.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(f).unwrap())).collect()
}

/// Peak of the address space of this process, and of its memory.
fn peak_bytes() -> [u64; 2] {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    ["VmPeak:", "VmHWM:"].map(|name| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    })
}

/// One change, of the kinds that find something: a bit, a number, a cut, a copy of a part, a part of another seed.
fn mutate(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8]) {
    let len = bytes.len();
    if len == 0 {
        bytes.extend(dice.bytes(8));
        return;
    }
    let at = dice.below(len);
    match dice.within(0..8) {
        0 | 1 => bytes[at] ^= 1 << dice.below(8),
        2 => bytes[at] = *dice.pick(&[0, 1, 0x7f, 0x80, 0xff, b'0', b'-', b'/', b'"']),
        3 => {
            // A number where the format has many, as large as can be or a little off.
            let number = *dice.pick(&[0, 1, u64::MAX, u64::from(u32::MAX), 1 << 31, 1 << 16, 1 << 28, 1 << 40]);
            let number = number.wrapping_add(dice.within(0..5)).wrapping_sub(2).to_le_bytes();
            let width = (*dice.pick(&[2, 4, 8])).min(len - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        4 => bytes.truncate(at),
        5 => {
            let end = at + dice.below((len - at).min(64)) + 1;
            let part = bytes[at..end].to_vec();
            let to = dice.below(len);
            bytes.splice(to..to, part);
        }
        6 => {
            let end = at + dice.below((len - at).min(64)) + 1;
            bytes.drain(at..end);
        }
        _ if !other.is_empty() => {
            let from = dice.below(other.len());
            let end = from + dice.below((other.len() - from).min(200)) + 1;
            let to = (at + end - from).min(len);
            bytes.splice(at..to, other[from..end].iter().copied());
        }
        _ => bytes.reverse(),
    }
}

#[test]
fn every_decoder_knows_its_golden_seeds() {
    for (target, decode) in DECODERS {
        for (name, bytes) in seeds_of(target) {
            let wanted = !name.starts_with("bad-");
            assert_eq!(decode(&bytes), wanted, "{target}: seed {name}: whether it is accepted");
        }
    }
}

#[test]
fn no_decoder_panics_or_takes_gigabytes_whatever_it_is_given() {
    let mut dice = Dice::new(61);
    let mut accepted = 0;
    for (target, decode) in DECODERS {
        let seeds = seeds_of(target);
        let before = peak_bytes();
        for (name, seed) in &seeds {
            for _ in 0..MUTATIONS {
                let mut bytes = seed.clone();
                let other = &dice.pick(&seeds).1;
                for _ in 0..=dice.within(0..4) {
                    mutate(&mut dice, &mut bytes, other);
                }
                let outcome = catch_unwind(AssertUnwindSafe(|| decode(&bytes)));
                accepted += u32::from(matches!(outcome, Ok(true)));
                if outcome.is_err() {
                    let crash = std::env::temp_dir().join(format!("landfall-crash-{target}"));
                    fs::write(&crash, &bytes).unwrap();
                    panic!("{target} panics on a change of seed {name}: {} (seed {})", crash.display(), dice.seed());
                }
            }
        }
        for (what, (before, after)) in ["address space", "memory"].iter().zip(before.into_iter().zip(peak_bytes())) {
            assert!(after - before < MEMORY_BYTES_MAX, "{target}: {} bytes more of {what}", after - before);
        }
    }
    assert!(accepted > 100, "{accepted} accepted: the mutations are all alike");
}

#[test]
fn a_short_run_of_libfuzzer_finds_nothing() {
    let seconds = std::env::var("LANDFALL_FUZZ_SECONDS").map_or(0, |text| text.parse::<u32>().unwrap());
    if seconds == 0 {
        eprintln!("SKIPPED: the run of libFuzzer: `make fuzz` has it");
        return;
    }
    let nightly = Command::new("cargo").args(["+nightly", "--version"]).output();
    if !nightly.is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED: the run of libFuzzer: there is no nightly toolchain (rustup toolchain install nightly)");
        return;
    }
    let (folder, target) = (repository().join("tests/fuzz"), repository().join("target/fuzz"));
    tools::succeed(&mut libfuzzer_build(&folder, &target));
    let corpora = tempfile::tempdir().unwrap();
    for (name, _) in DECODERS {
        let corpus = corpora.path().join(name);
        fs::create_dir(&corpus).unwrap();
        let mut run = Command::new(target.join("x86_64-unknown-linux-gnu/release").join(name));
        run.args([&corpus, &folder.join("seeds").join(name)]);
        run.args([&format!("-max_total_time={seconds}"), "-rss_limit_mb=1024", "-malloc_limit_mb=512", "-timeout=10"]);
        run.arg(format!("-artifact_prefix={}/", std::env::temp_dir().display())).current_dir(corpora.path());
        tools::succeed(&mut run);
    }
}

/// What `cargo fuzz build --sanitizer none` does: coverage for libFuzzer, and checks of arithmetic.
fn libfuzzer_build(folder: &Path, target: &Path) -> Command {
    let flags = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Cdebug-assertions",
        "-Coverflow-checks",
        "--cfg=fuzzing",
    ];
    let mut build = Command::new("cargo");
    build.args(["+nightly", "build", "--release", "--target", "x86_64-unknown-linux-gnu", "--manifest-path"]);
    build.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(target);
    // Those of the stable toolchain that runs this test are not for nightly.
    for name in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO", "CARGO_TARGET_DIR"] {
        build.env_remove(name);
    }
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    build
}

// The seeds.

/// Little-endian columns of FORMAT.md, written without the product's code.
fn number(out: &mut Vec<u8>, value: u64, bytes: usize) {
    out.extend_from_slice(&value.to_le_bytes()[..bytes]);
}

fn chunk(n: u8, source: Source, raw_len: u32, epoch: EpochId) -> ChunkRef {
    let location = Location {
        source,
        offset: 32 + 1000 * u32::from(n),
        stored_len: raw_len / 2 + 32,
        raw_len,
        codec: Codec::Zstd,
        epoch,
    };
    ChunkRef { id: ChunkId::from_bytes([n; 32]), location }
}

fn pages() -> Vec<(&'static str, Vec<u8>)> {
    let (segment, point) = (Source::Segment(SegmentId::from_bytes([9; 32])), Source::Point(Timeline(1), Seq(7)));
    let [one, two] = [[1; 16], [2; 16]].map(EpochId::from_bytes);
    let (a, b) = (chunk(1, segment, 65_536, one), chunk(2, point, 4096, two));
    let data = |chunk, skip| EntryKind::Data { chunk, skip };
    let entries = [
        Entry { start: 0, len: 65_536, kind: data(a, 0) },
        Entry { start: 65_536, len: 4096, kind: EntryKind::Zero },
        Entry { start: 69_632, len: 1000, kind: data(b, 96) },
        Entry { start: 100_000, len: 7, kind: EntryKind::Excluded },
        Entry { start: 200_000, len: 30_000, kind: data(a, 35_536) },
    ];
    let len = u32::try_from(REGION).unwrap();
    let encode = |entries: &[Entry]| encode_page(&RegionMap::checked(entries, len).unwrap()).unwrap();
    vec![
        ("empty", encode(&[])),
        ("small", encode(&entries)),
        ("last-byte", encode(&[Entry { start: len - 1, len: 1, kind: EntryKind::Zero }])),
    ]
}

/// Thirteen bytes as `sealed_directory` reads them, and the raw bytes of a directory of two frames.
fn directory() -> Vec<u8> {
    let mut out = vec![0];
    number(&mut out, 2, 4);
    number(&mut out, 100 + 200, 8);
    number(&mut out, 2, 2);
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&[5; 16]);
    number(&mut out, 2, 4);
    out.extend_from_slice(&[[1; 32], [2; 32]].concat());
    [100, 200].iter().for_each(|n| number(&mut out, *n, 4));
    [4096, 65_536].iter().for_each(|n| number(&mut out, *n, 4));
    out.extend_from_slice(&[0, 1]);
    [0, 1].iter().for_each(|n| number(&mut out, *n, 2));
    out
}

/// Makes every seed from a vault of its own, and keeps the vault's keys beside them.
#[tokio::test]
#[ignore = "makes tests/fuzz/seeds anew, with new keys"]
async fn make_the_seeds() {
    let seeds = repository().join("tests/fuzz/seeds");
    let _ = fs::remove_dir_all(&seeds);
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(seeds.join(target)).unwrap();
        fs::write(seeds.join(target).join(name), bytes).unwrap();
    };
    let site = Site::with_vault();
    for (name, file) in [("recovery.key", site.recovery_key()), ("site.key", site.site_key())] {
        let bytes = fs::read(file).unwrap();
        write("keys", name, &bytes);
        write("key_files", name, &bytes);
    }
    let (disk, swap) = (site.disk("disk.img"), site.disk("swap.img"));
    disks::random(&disk, 50_000, 1);
    disks::random(&swap, 5000, 2);
    site.replicate("web", &[("root", &disk), ("swap", &swap)]);
    disks::write_at(&disk, 10_000, &[0; 20_000]);
    disks::resize(&disk, 300_000);
    site.try_replicate("web", &[("root", &disk)], &["--exclude", "swap"]).json();

    for (name, bytes) in pages() {
        write("page", name, &bytes);
    }
    let key = SiteKey::read(&site.site_key()).unwrap();
    let vault = Vault::open_with_site_key(Store::open(site.url()).unwrap(), key).await.unwrap();
    let machine = vault.machine(&"web".parse().unwrap());
    for at in machine.line().await.unwrap() {
        let point = machine.point(at).await.unwrap();
        write("body", &format!("point-{}", at.seq), &point.body.encode().unwrap());
    }
    let mut segment = SegmentBuilder::new(vault.config().vault_id);
    for n in 1..4 {
        let id = ChunkId::from_bytes([n; 32]);
        let frame = |out: &mut Vec<u8>| {
            out.extend_from_slice(&[n; 90]);
            Ok(())
        };
        segment.push(id, 4096, Codec::Raw, EpochId::from_bytes([8; 16]), frame).unwrap();
    }
    write("directory", "segment", &segment.finish(vault.site()).unwrap().bytes);
    write("sealed_directory", "two-frames", &directory());
    let mut packed = vec![1];
    packed.resize(13, 0);
    // Packed, and as large as a directory may claim to be.
    write(
        "sealed_directory",
        "bad-packed",
        &[&packed[..], &[1], &(128_u32 << 20).to_le_bytes(), &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]].concat(),
    );

    let names = support::walk(&site.vault_folder());
    for (n, file) in names.iter().enumerate() {
        let name = file.strip_prefix(site.vault_folder()).unwrap().to_str().unwrap();
        let bytes = fs::read(file).unwrap();
        write("object_name", &format!("{n}"), name.as_bytes());
        match layout::parse(name) {
            Some(layout::Name::Vault) => {
                write("vault_file", "vault.json", &bytes);
                let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                write("signed_vault_file", "signed", envelope["signed"].as_str().unwrap().as_bytes());
            }
            Some(layout::Name::SiteKey(..)) => write("wrapped_key", "site-key", &bytes),
            Some(layout::Name::Epoch(..)) => write("wrapped_key", "epoch", &bytes),
            Some(layout::Name::Point(_, _, seq)) => {
                write("record_header", &format!("point-{seq}"), &bytes[..bytes.len().min(400)])
            }
            Some(layout::Name::Generation(..)) => write("record_header", "generation", &bytes),
            Some(layout::Name::Heartbeat(..)) => write("record_header", "heartbeat", &bytes),
            other => panic!("{name}: {other:?}"),
        }
    }
    write("object_name", "segment", layout::segment(SegmentId::from_bytes([0xab; 32])).as_bytes());
    write("object_name", "revocation", layout::revocation(machine.id(), Seq(256)).as_bytes());
    write("object_name", "checkpoint", layout::checkpoint(machine.id(), Timeline(1), Seq(256)).as_bytes());
    let recovery = site.recovery_key();
    let ran = site.run(&[
        "keys",
        "shares",
        "--threshold",
        "2",
        "--shares",
        "3",
        "--recovery-key",
        recovery.to_str().unwrap(),
    ]);
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    write("shares", "three", ran.stdout.as_bytes());
    let first: String = ran.stdout.lines().take(1).collect();
    write("shares", "bad-one", first.as_bytes());
    for (n, word) in ["web-01.example.com", "2026-11-21T09:30:00.125Z", "2026-11-21T09:30:00+01:00"].iter().enumerate()
    {
        write("words", &format!("{n}"), word.as_bytes());
    }
    for (n, word) in ["a/b", "-x", ""].iter().enumerate() {
        write("words", &format!("bad-{n}"), word.as_bytes());
    }
    write("key_files", "bad-passphrase", br#"{"landfall":"recovery-key","format":1,"vault_id":"00112233445566778899aabbccddeeff","kdf":{"name":"argon2id","memory_kib":65536,"iterations":3,"lanes":4,"salt":"00112233445566778899aabbccddeeff"},"sealed":"00"}"#);
    let all: Vec<PathBuf> = support::walk(&seeds);
    let bytes: u64 = all.iter().map(|file| disks::size(file)).sum();
    assert!(bytes < MIB / 4, "{} seeds of {bytes} bytes in all are too many to keep", all.len());
}
