//! The recovery key in pieces, and under a passphrase: any of enough brings it back, anything wrong is named.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use landfall_tests::disks;
use landfall_tests::landfall::{Ran, Site, exit};
use serde_json::Value;
use support::{Dice, Needles, position, unhex};

/// A site with a point, and its recovery key split 3 of 5.
struct Split {
    site: Site,
    disk: PathBuf,
    shares: Vec<String>,
}

impl Split {
    fn new() -> Self {
        let site = Site::with_vault();
        let disk = site.disk("disk.img");
        disks::random(&disk, 200_000, 1);
        site.replicate("web", &[("root", &disk)]);
        let shares = split(&site, &site.recovery_key(), 3, 5);
        Self { site, disk, shares }
    }

    /// Combines lines that stand in a file each.
    fn combine(&self, lines: &[&str], target: &Path) -> Ran {
        let folder = tempfile::tempdir_in(self.site.folder()).unwrap();
        let files: Vec<PathBuf> = (0..lines.len()).map(|n| folder.path().join(format!("share-{n}"))).collect();
        for (file, line) in files.iter().zip(lines) {
            fs::write(file, format!("{line}\n")).unwrap();
        }
        let mut arguments = vec!["keys", "combine", "--json", "--quiet", "--recovery-key", plain(target)];
        arguments.extend(files.iter().map(|f| plain(f)));
        self.site.run(&arguments)
    }

    /// Combining these lines is refused in these words; no key file is made, no share is shown.
    #[track_caller]
    fn assert_refused(&self, lines: &[&str], code: i32, words: &[&str]) {
        let target = self.site.folder().join("combined.key");
        let ran = self.combine(lines, &target);
        ran.assert_refused(code, words);
        assert!(!target.exists(), "refused, and a key file was made\n{}", ran.story());
        for group in lines.iter().flat_map(|line| line.split('-')).filter(|group| group.len() == 5) {
            assert!(!ran.stderr.contains(group), "the error shows a piece of a share\n{}", ran.story());
        }
    }

    fn picked(&self, numbers: &[usize]) -> Vec<&str> {
        numbers.iter().map(|n| self.shares[*n].as_str()).collect()
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn split(site: &Site, key: &Path, threshold: u8, shares: u8) -> Vec<String> {
    let (threshold, shares) = (threshold.to_string(), shares.to_string());
    let split = ["keys", "shares", "--threshold", &threshold, "--shares", &shares, "--recovery-key", plain(key)];
    let ran = site.run(&split);
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    ran.stdout.lines().map(str::to_owned).collect()
}

fn seed_of(key: &Path) -> String {
    let file: Value = serde_json::from_slice(&fs::read(key).unwrap()).unwrap();
    file["seed"].as_str().unwrap().to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn any_three_of_five_shares_bring_the_key_back_and_the_key_the_disk() {
    let split = Split::new();
    assert_eq!(split.shares.len(), 5);
    let seed = seed_of(&split.site.recovery_key());
    let lost = split.site.folder().join("lost.key");
    fs::rename(split.site.recovery_key(), &lost).unwrap();
    // Every three, in an order that is not theirs too, and more than are needed.
    let threes = (0..5).flat_map(|a| (a + 1..5).flat_map(move |b| (b + 1..5).map(move |c| vec![a, b, c])));
    for numbers in threes.chain([vec![4, 1, 0], vec![2, 4, 3], vec![4, 1, 0, 2], vec![0, 1, 2, 3, 4]]) {
        let target = split.site.folder().join(format!("{numbers:?}.key"));
        let said = split.combine(&split.picked(&numbers), &target).json();
        assert_eq!(said["recovery_key"], plain(&target));
        assert_eq!(seed_of(&target), seed, "shares {numbers:?}");
        assert_eq!(mode(&target), 0o600);
        fs::copy(&target, split.site.recovery_key()).unwrap();
    }
    split.site.assert_disk_is("web", "latest", "root", &split.disk);
    split.site.assert_sound();
}

#[test]
fn shares_are_read_as_people_type_them_and_from_stdin() {
    let split = Split::new();
    let seed = seed_of(&split.site.recovery_key());
    let [a, b, c] = [0, 2, 4].map(|n| split.shares[n].clone());
    let typed = [a.to_lowercase(), b.replace('-', ""), format!("  {}  ", c.replace('-', "--"))];
    let target = split.site.folder().join("typed.key");
    split.combine(&typed.each_ref().map(String::as_str), &target).json();
    assert_eq!(seed_of(&target), seed);

    let target = split.site.folder().join("piped.key");
    let mut command = split.site.command(&split.site.new_state());
    command.args(["keys", "combine", "--quiet", "--recovery-key", plain(&target)]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    write!(child.stdin.take().unwrap(), "\n{a}\r\n\n{b}\n{c}").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(seed_of(&target), seed);
}

#[test]
fn a_mistyped_share_is_named_by_its_place_whatever_the_mistake() {
    let split = Split::new();
    let mut dice = Dice::new(51);
    let right = split.shares[1].clone();
    let letters: Vec<usize> = (4..right.len()).filter(|at| right.as_bytes()[*at] != b'-').collect();
    let mut wrong = vec![
        right[..right.len() - 1].to_owned(),
        format!("{right}A"),
        right.replacen("LF1", "LF2", 1),
        right[4..].to_owned(),
        right.replacen('-', " ", 3),
        format!("{}0{}", &right[..10], &right[11..]),
        format!("{}é{}", &right[..10], &right[11..]),
        "LF1-".to_owned(),
        "hello".to_owned(),
    ];
    for _ in 0..25 {
        // One letter for another, two neighbours swapped.
        let (at, mut typo) = (*dice.pick(&letters), right.clone().into_bytes());
        let other = *dice.pick(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567");
        let next = letters.iter().find(|n| **n > at).copied().unwrap_or(at);
        if dice.once_in(2) {
            typo[at] = other;
        } else {
            typo.swap(at, next);
        }
        wrong.push(String::from_utf8(typo).unwrap());
    }
    for typo in wrong.iter().filter(|typo| **typo != right) {
        let lines = [split.shares[0].as_str(), typo, split.shares[2].as_str()];
        split.assert_refused(&lines, exit::CORRUPT, &["share 2", "mistyped"]);
    }
}

#[test]
fn a_foreign_share_is_named_and_what_it_is_of() {
    let (split, other) = (Split::new(), Split::new());
    let lines = [&split.shares[0], &split.shares[1], &other.shares[2]].map(String::as_str);
    split.assert_refused(&lines, exit::KEY, &["share 3", "foreign", "vault"]);
    // The same key, split another time.
    let again = split_again(&split);
    let lines = [&split.shares[0], &again[1], &split.shares[2]].map(String::as_str);
    split.assert_refused(&lines, exit::KEY, &["share 2", "foreign", "split"]);
}

fn split_again(of: &Split) -> Vec<String> {
    split(&of.site, &of.site.recovery_key(), 3, 5)
}

#[test]
fn a_repeated_share_is_named_with_the_one_that_it_repeats() {
    let split = Split::new();
    split.assert_refused(&split.picked(&[0, 3, 0]), exit::USAGE, &["share 3", "repeated", "share 1"]);
}

#[test]
fn missing_shares_are_counted() {
    let split = Split::new();
    split.assert_refused(&split.picked(&[1, 4]), exit::KEY, &["2 of 3", "1 missing"]);
    split.assert_refused(&split.picked(&[1]), exit::KEY, &["1 of 3", "2 missing"]);
    split.assert_refused(&[""], exit::KEY, &["no share"]);
    let gone = split.site.folder().join("no-such-share");
    let target = split.site.folder().join("combined.key");
    let ran = split.site.run(&["keys", "combine", "--quiet", "--recovery-key", plain(&target), plain(&gone)]);
    ran.assert_refused(exit::NOT_FOUND, &["no-such-share"]);
}

#[test]
fn no_share_shows_the_key() {
    let split = Split::new();
    let seed = seed_of(&split.site.recovery_key());
    for share in &split.shares {
        assert!(!share.to_lowercase().contains(&seed), "the seed stands in a share");
        assert!(position(share.as_bytes(), &unhex(&seed)).is_none());
    }
    let distinct: std::collections::BTreeSet<&String> = split.shares.iter().collect();
    assert_eq!(distinct.len(), 5);
}

#[test]
fn combining_overwrites_no_key_file() {
    let split = Split::new();
    let (target, lines) = (split.site.recovery_key(), split.picked(&[0, 1, 2]));
    let before = fs::read(&target).unwrap();
    split.combine(&lines, &target).assert_refused(exit::CONFLICT, &["recovery.key"]);
    assert_eq!(fs::read(&target).unwrap(), before);
}

#[test]
fn numbers_of_shares_that_make_no_sense_are_refused() {
    let split = Split::new();
    let key = split.site.recovery_key();
    for (threshold, shares) in [("6", "5"), ("0", "5"), ("1", "5"), ("0", "0"), ("300", "500"), ("-1", "3"), ("x", "3")]
    {
        let ran = split.site.run(&[
            "keys",
            "shares",
            "--threshold",
            threshold,
            "--shares",
            shares,
            "--recovery-key",
            plain(&key),
        ]);
        assert_eq!(ran.code(), Some(exit::USAGE), "{}", ran.story());
        assert!(!ran.stdout.contains("LF1"), "shares were made\n{}", ran.story());
    }
    let ran = split.site.run(&["keys", "shares", "--threshold", "2", "--shares", "3", "--quiet"]);
    ran.assert_refused(exit::KEY, &["--recovery-key"]);
    // The widest split there is.
    assert_eq!(shares_of_all(&split).len(), 255);
}

fn shares_of_all(of: &Split) -> Vec<String> {
    split(&of.site, &of.site.recovery_key(), 2, 255)
}

// Passphrases.

/// A site whose recovery key is under a passphrase.
fn with_passphrase(passphrase: &str) -> (Site, PathBuf, PathBuf) {
    let site = Site::new();
    let (file, disk) = (site.folder().join("passphrase"), site.disk("disk.img"));
    fs::write(&file, passphrase).unwrap();
    let (recovery, key) = (site.recovery_key(), site.site_key());
    let create = ["vault", "create", "--vault", site.url(), "--quiet", "--passphrase-file", plain(&file)];
    let keys = ["--recovery-key", plain(&recovery), "--site-key", plain(&key)];
    let ran = site.run(&[&create[..], &keys].concat());
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    disks::random(&disk, 200_000, 1);
    site.replicate("web", &[("root", &disk)]);
    (site, disk, file)
}

#[test]
fn a_recovery_key_under_a_passphrase_opens_with_it_and_with_nothing_else() {
    let (site, disk, file) = with_passphrase("correct horse battery staple\nsecond line\n");
    assert_eq!(mode(&site.recovery_key()), 0o600);
    let text = fs::read_to_string(site.recovery_key()).unwrap();
    assert!(!text.contains("seed\""), "{text}");
    let back = site.disk("back.img");
    let rehydrate = |more: &[&str]| site.try_rehydrate("web", &[("root", &back)], more);

    rehydrate(&[]).assert_refused(exit::KEY, &["recovery.key", "passphrase"]);
    for wrong in ["correct horse battery stapl", "Correct horse battery staple", "correct horse battery staple ", "x"] {
        let other = site.folder().join("other");
        fs::write(&other, format!("{wrong}\n")).unwrap();
        rehydrate(&["--passphrase-file", plain(&other)]).assert_refused(exit::KEY, &["passphrase", "recovery.key"]);
    }
    for (unfit, words) in [("", "passphrase"), ("\n", "passphrase"), ("\nsecond", "passphrase")] {
        let other = site.folder().join("other");
        fs::write(&other, unfit).unwrap();
        let ran = rehydrate(&["--passphrase-file", plain(&other)]);
        let code = ran.code().unwrap();
        assert!([exit::USAGE, exit::KEY].contains(&code), "{}", ran.story());
        ran.assert_refused(code, &[words]);
    }
    rehydrate(&["--passphrase-file", plain(&site.folder().join("gone"))]).assert_refused(exit::KEY, &["gone"]);
    assert!(!back.exists());
    // Of the file only the first line counts.
    rehydrate(&["--passphrase-file", plain(&file)]).json();
    disks::assert_same(&disk, &back);

    // Shares of it need it; a key that is combined can be under a new one.
    let ran = site.run(&[
        "keys",
        "shares",
        "--threshold",
        "2",
        "--shares",
        "2",
        "--quiet",
        "--recovery-key",
        plain(&site.recovery_key()),
    ]);
    ran.assert_refused(exit::KEY, &["passphrase"]);
    let ran = site.run(&[
        "keys",
        "shares",
        "--threshold",
        "2",
        "--shares",
        "2",
        "--recovery-key",
        plain(&site.recovery_key()),
        "--passphrase-file",
        plain(&file),
    ]);
    let (shares, new, combined) =
        (site.folder().join("shares"), site.folder().join("new"), site.folder().join("new.key"));
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    fs::write(&shares, &ran.stdout).unwrap();
    fs::write(&new, "another passphrase\n").unwrap();
    let combine = ["keys", "combine", "--quiet", "--recovery-key", plain(&combined), "--passphrase-file", plain(&new)];
    let ran = site.run(&[&combine[..], &[plain(&shares)]].concat());
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    assert!(fs::read_to_string(&combined).unwrap().contains("argon2id"));
    fs::rename(&combined, site.recovery_key()).unwrap();
    fs::remove_file(&back).unwrap();
    rehydrate(&["--passphrase-file", plain(&file)]).assert_refused(exit::KEY, &["passphrase"]);
    rehydrate(&["--passphrase-file", plain(&new)]).json();
    disks::assert_same(&disk, &back);
    assert!(Needles::keys_of(&site).assert_not_below(&site.vault_folder()) > 0);
}

#[test]
fn a_damaged_key_file_is_said_to_be_damaged_and_is_not_quoted() {
    let split = Split::new();
    let (key, back) = (split.site.recovery_key(), split.site.disk("back.img"));
    let right = fs::read_to_string(&key).unwrap();
    let seed = seed_of(&key);
    let cut = format!("{}\"}}", &right[..right.find(&seed).unwrap() + 40]);
    let wrong = [
        cut,
        right.replace(&seed, &seed[1..]),
        right.replace(&seed, &format!("{}zz", &seed[2..])),
        right.replace(&seed, &seed.to_uppercase()).replace("recovery-key", "recovery-kex"),
        right[..right.len() / 2].to_owned(),
        String::new(),
        "{}".to_owned(),
        "[1, 2]".to_owned(),
        right.replace("\"format\":1", "\"format\":\"1\""),
        right.replace("\"format\":1", "\"format\":-1"),
        "x".repeat(1 << 20),
    ];
    for text in &wrong {
        assert_ne!(*text, right);
        fs::write(&key, text).unwrap();
        let ran = split.site.try_rehydrate("web", &[("root", &back)], &[]);
        assert_ne!(ran.code(), Some(exit::DONE), "{}", ran.story());
        let code = ran.code().unwrap();
        assert!([exit::KEY, exit::CORRUPT, exit::UNSUPPORTED].contains(&code), "{}", ran.story());
        ran.assert_refused(code, &["recovery.key"]);
        assert!(!ran.stderr.contains(&seed[8..24]), "the error quotes the key\n{}", ran.story());
        assert!(ran.stderr.len() < 1000, "{}", ran.stderr.len());
    }
    fs::write(&key, right.replace("\"format\":1", "\"format\":2")).unwrap();
    let ran = split.site.try_rehydrate("web", &[("root", &back)], &[]);
    ran.assert_refused(exit::UNSUPPORTED, &["recovery.key", "format 2"]);
    // The wrong kind of key is told apart.
    let site_key = split.site.site_key();
    fs::copy(&site_key, &key).unwrap();
    let ran = split.site.try_rehydrate("web", &[("root", &back)], &[]);
    ran.assert_refused(exit::KEY, &["site key", "recovery key"]);
    assert!(!back.exists());
    // A key file that asks for all the memory of the machine is refused before it gets it.
    let kdf = r#""kdf":{"name":"argon2id","memory_kib":4294967295,"iterations":4294967295,"lanes":1,"salt":"00112233445566778899aabbccddeeff"},"sealed":"00""#;
    fs::write(&key, right.replace(&format!("\"seed\":\"{seed}\""), kdf)).unwrap();
    let passphrase = split.site.folder().join("passphrase");
    fs::write(&passphrase, "x").unwrap();
    let ran = split.site.try_rehydrate("web", &[("root", &back)], &["--passphrase-file", plain(&passphrase)]);
    ran.assert_refused(exit::UNSUPPORTED, &["recovery.key"]);
}
