//! The small vault that the hostile store is tried on, with copies of every disk at every point.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use landfall_tests::disks;
use landfall_tests::landfall::{Disk, Ran, Site, exit, number, strs};
use landfall_vault::layout::{self, Name};
use serde_json::Value;

use crate::support::{MIB, copy_tree, replicate_in, walk};

/// A point and the copies of its disks.
pub(crate) struct Moment {
    pub(crate) machine: &'static str,
    pub(crate) seq: u64,
    pub(crate) disks: Vec<(&'static str, PathBuf)>,
}

/// A small vault with everything in it that a vault can have, and what its points must be.
pub(crate) struct Small {
    pub(crate) site: Site,
    pub(crate) moments: Vec<Moment>,
    /// The vault as it was after each point.
    pub(crate) past: Vec<PathBuf>,
}

impl Small {
    pub(crate) fn new() -> Self {
        let mut site = Site::with_vault();
        // A local directory that fails once fails again.
        site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
        Self { site, moments: Vec::new(), past: Vec::new() }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.site.folder().join("state")
    }

    pub(crate) fn disk(&self, machine: &str, name: &str) -> PathBuf {
        self.site.disk(&format!("{machine}-{name}"))
    }

    /// Takes a point with a gateway, and keeps copies of the disks and of the vault.
    pub(crate) fn point(&mut self, state: &Path, machine: &'static str, names: &[&'static str]) -> Value {
        let paths: Vec<PathBuf> = names.iter().map(|name| self.disk(machine, name)).collect();
        let named: Vec<Disk<'_>> = names.iter().copied().zip(paths.iter().map(PathBuf::as_path)).collect();
        let point = replicate_in(&self.site, state, machine, &named, &[]);
        let seq = number(&point, "seq");
        let mut kept = Vec::new();
        for (name, path) in names.iter().zip(&paths) {
            let copy = self.site.disk(&format!("kept-{machine}-{name}-{seq}"));
            disks::copy(path, &copy);
            kept.push((*name, copy));
        }
        self.moments.push(Moment { machine, seq, disks: kept });
        let past = self.site.folder().join(format!("past-{}", self.past.len()));
        copy_tree(&self.site.vault_folder(), &past);
        self.past.push(past);
        point
    }

    /// Two machines, two disks, two gateways; segments and inline frames; a machine that uses the chunks of another.
    pub(crate) fn full() -> Self {
        let mut small = Self::new();
        let (state, other) = (small.state(), small.site.folder().join("state-other"));
        let (root, data) = (small.disk("web", "root"), small.disk("web", "data"));
        disks::random(&root, 3 * MIB + 512, 1);
        disks::random(&data, 100_000, 2);
        small.point(&state, "web", &["root", "data"]);
        disks::write_at(&root, 700_000, &disks::seeded_bytes(3, 40_000));
        small.point(&state, "web", &["root", "data"]);
        disks::write_at(&root, MIB, &disks::seeded_bytes(4, 2_300_000 - landfall_model::num::to_usize(MIB)));
        disks::resize(&data, 1_500_000);
        disks::write_at(&data, 100_000, &disks::seeded_bytes(5, 1_400_000));
        small.point(&state, "web", &["root", "data"]);
        disks::write_at(&data, 5000, &vec![0; 60_000]);
        disks::write_at(&root, 0, &disks::seeded_bytes(6, 9000));
        small.point(&other, "web", &["root", "data"]);

        let own = small.disk("db", "root");
        disks::copy(&root, &own);
        disks::write_at(&own, 2 * MIB, &disks::seeded_bytes(7, 50_000));
        small.point(&state, "db", &["root"]);
        disks::write_at(&own, 100, &disks::seeded_bytes(8, 300));
        small.point(&state, "db", &["root"]);
        small.check();
        small
    }

    /// Everything is right before anything is done to it.
    pub(crate) fn check(&self) {
        let ran = self.verify();
        ran.json();
        assert_eq!(self.outcomes("nothing was changed").values().copied().max(), Some(exit::DONE));
    }

    pub(crate) fn vault(&self) -> PathBuf {
        self.site.vault_folder()
    }

    /// Every object's name, relative to the vault.
    pub(crate) fn objects(&self) -> Vec<String> {
        let vault = self.vault();
        walk(&vault).iter().map(|f| f.strip_prefix(&vault).unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// `verify --deep` at the site, which remembers the newest points.
    pub(crate) fn verify(&self) -> Ran {
        self.site.run(&strs(&self.site.as_customer(&["verify", "--deep"])))
    }

    pub(crate) fn rehydrate(&self, moment: &Moment, more: &[&str]) -> (Ran, Vec<PathBuf>) {
        let backs: Vec<PathBuf> =
            moment.disks.iter().map(|(name, _)| self.site.disk(&format!("back-{name}"))).collect();
        let targets: Vec<Disk<'_>> =
            moment.disks.iter().zip(&backs).map(|((name, _), back)| (*name, back.as_path())).collect();
        let seq = moment.seq.to_string();
        let ran = self.site.try_rehydrate(moment.machine, &targets, &[&["--point", &seq], more].concat());
        (ran, backs)
    }

    /// Brings back every point: each is exactly right, or refused with no file under the final name.
    #[track_caller]
    pub(crate) fn runs(&self, what: &str) -> Vec<(&Moment, i32, Ran)> {
        let mut runs = Vec::new();
        for moment in &self.moments {
            let (ran, backs) = self.rehydrate(moment, &[]);
            let code = ran.code().unwrap_or_else(|| panic!("{what}: it crashed\n{}", ran.story()));
            for ((_, kept), back) in moment.disks.iter().zip(&backs) {
                if code == exit::DONE {
                    assert_bytes(kept, back, 0..disks::size(kept), what, &ran);
                    fs::remove_file(back).unwrap();
                } else {
                    assert!(!back.exists(), "{what}: refused, and a file has its name\n{}", ran.story());
                    assert_eq!(ran.stderr.lines().count(), 1, "{what}: an error is one line\n{}", ran.story());
                }
            }
            runs.push((moment, code, ran));
        }
        runs
    }

    /// As [`Self::runs`]: the exit codes by machine and point.
    #[track_caller]
    pub(crate) fn outcomes(&self, what: &str) -> BTreeMap<(&'static str, u64), i32> {
        self.runs(what).into_iter().map(|(moment, code, _)| ((moment.machine, moment.seq), code)).collect()
    }

    /// Brings back what is left of a point: all that is not told of as damaged is right, what is damaged is zero and inside
    /// the disk. Gives the number of damaged bytes.
    #[track_caller]
    pub(crate) fn assert_salvaged(&self, moment: &Moment, what: &str) -> u64 {
        let (ran, backs) = self.rehydrate(moment, &["--salvage"]);
        let what = format!("{what}: what is left of {} at point {}", moment.machine, moment.seq);
        assert_eq!(ran.code(), Some(exit::CORRUPT), "{what}\n{}", ran.story());
        let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{what}: {e}\n{}", ran.story()));
        let damaged = told["damaged"].as_array().unwrap();
        assert!(!damaged.is_empty(), "{what}: exit code 4, and no range is told\n{}", ran.story());
        let mut lost = 0;
        for ((name, kept), back) in moment.disks.iter().zip(&backs) {
            let (size, mut at) = (disks::size(kept), 0);
            let of_disk = damaged.iter().filter(|d| d["disk"] == *name);
            let mut ranges: Vec<(u64, u64)> =
                of_disk.map(|d| (number(d, "start"), number(d, "start") + number(d, "length"))).collect();
            ranges.sort_unstable();
            for (start, end) in ranges {
                assert!(start < end && end <= size, "{what}: {start}..{end} of {size} bytes");
                assert_bytes(kept, back, at..start.max(at), &what, &ran);
                at = end.max(at);
                lost += end - start;
            }
            assert_bytes(kept, back, at..size, &what, &ran);
            assert_eq!(disks::size(back), size, "{what}");
            fs::remove_file(back).unwrap();
        }
        lost
    }

    pub(crate) fn write(&self, object: &str, bytes: &[u8]) {
        fs::write(self.vault().join(object), bytes).unwrap();
    }

    pub(crate) fn read(&self, object: &str) -> Vec<u8> {
        fs::read(self.vault().join(object)).unwrap()
    }

    /// Looks at a vault in which one object is not what it was: `verify` says so and names it, no disk comes back wrong.
    /// Puts the object back.
    #[track_caller]
    pub(crate) fn assert_found(&self, object: &str, done: &str, right: &[u8]) {
        let what = format!("{object}: {done}");
        let ran = self.verify();
        let code = ran.code().unwrap_or_else(|| panic!("{what}: verify crashed\n{}", ran.story()));
        if object == layout::VAULT_FILE {
            // Without it there is no vault to look into, and the error names it.
            assert!([exit::KEY, exit::CORRUPT, exit::UNSUPPORTED, exit::NOT_FOUND].contains(&code), "{}", ran.story());
            assert!(ran.stderr.contains("vault"), "{what}: the error does not name it\n{}", ran.story());
        } else {
            // A site key that is none of this vault's may be told as a wrong key, where that is what it is.
            let foreign = matches!(layout::parse(object), Some(Name::SiteKey(..))) && done.contains("another vault");
            let right = code == exit::CORRUPT || (foreign && code == exit::KEY);
            assert!(right, "{what}: verify does not find it\n{}", ran.story());
            let name = Path::new(object).file_name().unwrap().to_str().unwrap();
            let id = name.split_once('-').map_or(name, |(id, rest)| if id == "site" { rest } else { id });
            let told = format!("{}{}", ran.stdout, ran.stderr);
            // Where a point is gone it is the next one that tells.
            let next = matches!(layout::parse(object), Some(Name::Point(..))) && told.contains("missing");
            assert!(next || told.contains(id), "{what}: verify does not name it\n{}", ran.story());
        }
        for (moment, code, ran) in self.runs(&what) {
            if code == exit::DONE {
                continue;
            }
            let allowed = match layout::parse(object) {
                Some(Name::Vault) => &[exit::KEY, exit::CORRUPT, exit::UNSUPPORTED, exit::NOT_FOUND][..],
                Some(Name::SiteKey(..)) => &[exit::KEY, exit::CORRUPT, exit::UNSUPPORTED],
                // The point that is gone is not there.
                Some(Name::Point(_, _, seq)) if done == "deleted" && seq.0 == moment.seq => {
                    &[exit::NOT_FOUND, exit::CORRUPT]
                }
                _ => &[exit::CORRUPT, exit::UNSUPPORTED],
            };
            assert!(allowed.contains(&code), "{what}: exit code\n{}", ran.story());
            if Self::is_data(object) && code == exit::CORRUPT {
                for word in ["disk ", " bytes ", &format!("point {}", moment.seq), moment.machine] {
                    assert!(ran.stderr.contains(word), "{what}: the error does not say {word:?}\n{}", ran.story());
                }
                self.assert_salvaged(moment, &what);
            }
        }
        self.write(object, right);
    }

    /// Whether an object holds data or the key to it, so that ranges are lost and not points.
    pub(crate) fn is_data(object: &str) -> bool {
        // The segments of this vault have no pages: its points hold them.
        matches!(layout::parse(object), Some(Name::Epoch(..) | Name::Segment(_)))
    }
}

#[track_caller]
pub(crate) fn assert_bytes(kept: &Path, back: &Path, range: std::ops::Range<u64>, what: &str, ran: &Ran) {
    let differs = disks::first_difference(kept, back, range);
    assert!(differs.is_none(), "{what}: WRONG BYTES at {}\n{}", differs.unwrap_or_default(), ran.story());
}
