//! What the adversarial tests share: seeded randomness, the search for what must not be found, and a vault as files.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]
#![allow(dead_code, unused_macros, reason = "each test target uses its own part of it")]

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use landfall_tests::landfall::{Disk, Ran, Site, strs};
use serde_json::Value;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
/// `region_bytes` of the format: what one page of a map describes.
pub(crate) const REGION: u64 = 128 * MIB;

/// SplitMix64: the same throws for the same seed, on every machine.
pub(crate) struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    /// Dice with this seed, or with that of `LANDFALL_TEST_SEED`: to run a failure again.
    pub(crate) fn new(seed: u64) -> Self {
        let named = std::env::var("LANDFALL_TEST_SEED").ok();
        let seed = named.map_or(seed, |text| text.parse().expect("LANDFALL_TEST_SEED is a number"));
        Self { seed, state: seed }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in a range.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "an empty range");
        range.start + self.next() % (range.end - range.start)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.within(0..end as u64)).expect("below a usize")
    }

    /// `true` once in `n` throws.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

/// What a test did so far; printed with the seed where the test fails.
pub(crate) struct Story {
    seed: u64,
    steps: Vec<String>,
}

impl Story {
    pub(crate) fn new(dice: &Dice) -> Self {
        Self { seed: dice.seed(), steps: Vec::new() }
    }

    pub(crate) fn tell(&mut self, step: String) {
        self.steps.push(step);
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("LANDFALL_TEST_SEED={} runs this again. What was done:", self.seed);
            self.steps.iter().for_each(|step| eprintln!("  {step}"));
        }
    }
}

/// Runs one cycle with a state folder of its own choice.
pub(crate) fn try_replicate_in(site: &Site, state: &Path, machine: &str, disks: &[Disk<'_>], more: &[&str]) -> Ran {
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments(machine, disks, more)));
    site.start_in(state, &strs(&arguments)).finish()
}

/// One cycle with a state folder of its own choice.
#[track_caller]
pub(crate) fn replicate_in(site: &Site, state: &Path, machine: &str, disks: &[Disk<'_>], more: &[&str]) -> Value {
    try_replicate_in(site, state, machine, disks, more).json()
}

/// Crash points of a gateway that takes a cycle from an agent, in the order in which it meets them.
pub(crate) const IN_GATEWAY: [&str; 9] = [
    "generation.claimed",
    "epoch.stored",
    "segment.stored",
    "segment.indexed",
    "spool.before-point",
    "spool.point-written",
    "spool.object-stored",
    "point.before-commit",
    "point.committed",
];

/// Every file below a folder, ascending.
pub(crate) fn walk(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a kind of file");
            if kind.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

/// Reads a part of a file; zeroes where it has ended.
pub(crate) fn read_at(path: &Path, at: u64, len: usize) -> Vec<u8> {
    let file = fs::File::open(path).expect("the disk is there");
    let (mut bytes, mut done) = (vec![0; len], 0);
    while done < len {
        match file.read_at(&mut bytes[done..], at + done as u64).expect("a disk that reads") {
            0 => break,
            n => done += n,
        }
    }
    bytes
}

/// Where a run of bytes first stands in another (Horspool: most of the haystack is never looked at).
pub(crate) fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (last, len) = (needle.len().checked_sub(1)?, needle.len());
    let mut shift = [len; 256];
    for (at, byte) in needle[..last].iter().enumerate() {
        shift[usize::from(*byte)] = last - at;
    }
    let mut at = 0;
    while at + len <= haystack.len() {
        if haystack[at..at + len] == *needle {
            return Some(at);
        }
        at += shift[usize::from(haystack[at + last])];
    }
    None
}

/// What must be found nowhere: plain text, key material, names.
#[derive(Default)]
pub(crate) struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    /// Something that must not be found, under a name that a failure may print.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= 8, "{name} is so short that it is found by chance");
        self.0.push((name.to_owned(), bytes.to_vec()));
    }

    /// The secrets of both key files: as bytes, and as hex in both cases.
    pub(crate) fn keys_of(site: &Site) -> Self {
        let mut needles = Self::default();
        for (file, fields) in
            [(site.recovery_key(), &["seed"][..]), (site.site_key(), &["index_key", "fingerprint_key", "signing_seed"])]
        {
            let text = fs::read(&file).expect("the key file is there");
            let json: Value = serde_json::from_slice(&text).expect("a key file is JSON");
            for field in fields {
                // A recovery key under a passphrase has no seed in its file.
                let Some(hex) = json[field].as_str() else { continue };
                let raw = unhex(hex);
                assert_eq!(raw.len(), 32, "{field} of {}", file.display());
                needles.add(&format!("{field} (bytes)"), &raw);
                needles.add(&format!("{field} (hex)"), hex.as_bytes());
                needles.add(&format!("{field} (HEX)"), hex.to_uppercase().as_bytes());
            }
        }
        needles
    }

    /// Fails the test where one of them stands in these bytes.
    #[track_caller]
    pub(crate) fn assert_not_in(&self, place: &str, bytes: &[u8]) {
        for (name, needle) in &self.0 {
            let found = position(bytes, needle);
            assert!(found.is_none(), "{name} stands in {place} at byte {}", found.unwrap_or_default());
        }
    }

    /// Fails the test where one of them stands in a file below a folder, or in its name. Gives the number of files searched.
    #[track_caller]
    pub(crate) fn assert_not_below(&self, folder: &Path) -> usize {
        let files = walk(folder);
        for file in &files {
            let name = file.strip_prefix(folder).expect("below the folder").to_string_lossy().into_owned();
            self.assert_not_in(&format!("the name of {}", file.display()), name.as_bytes());
            self.assert_not_in(&file.display().to_string(), &fs::read(file).expect("a file that reads"));
        }
        files.len()
    }
}

/// Bytes of lower-case hex.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
    digits.map(byte).collect()
}

/// Puts the same objects where others were: as a store that was rolled back shows them.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("own folder");
    }
    for file in walk(from) {
        let target = to.join(file.strip_prefix(from).expect("below the folder"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("own folder");
        fs::copy(&file, &target).expect("room for a copy");
    }
}

/// While it lasts, the store is not there.
pub(crate) struct Outage {
    vault: PathBuf,
    away: PathBuf,
}

impl Outage {
    pub(crate) fn of(site: &Site) -> Self {
        let (vault, away) = (site.vault_folder(), site.folder().join("away"));
        fs::rename(&vault, &away).expect("own folder");
        fs::write(&vault, "no folder").expect("own folder");
        Self { vault, away }
    }

    pub(crate) fn end(self) {
        fs::remove_file(&self.vault).expect("own folder");
        fs::rename(&self.away, &self.vault).expect("own folder");
    }
}
