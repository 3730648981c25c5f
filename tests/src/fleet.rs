//! Machines whose disks never stand still, and the log of what they held whenever they were held still.
//!
//! Each machine has a writer: a thread that writes to all of its disks, and keeps its own copy of what it wrote. The freeze command of the
//! agent's configuration asks the writer to stand still, and returns when it does:
//!
//! ```text
//!  agent -- freeze --> frozen = ID, waits for still = ID        writer: sees frozen, logs a digest of every disk, writes still = ID, waits
//!  agent -- thaw ----> frozen is removed                        writer: goes on, with a write that changes every disk
//! ```
//! An ID is new each time: a freeze never takes for its own what the writer answered to another. Every write changes every disk, so a point with
//! one disk of before and one of after a write is no state of the log.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::disks;
use crate::landfall::{Disk, Site, number};
use crate::loops::Loop;
use crate::service::AgentHost;

/// The disks of each machine, and their sizes in bytes: one ends in the middle of a block.
const DISKS: [(&str, usize); 3] = [("root", 3 << 20), ("data", (1 << 20) + 512), ("log", 700_000)];
/// Bytes at the beginning of each disk that hold the number of the last write.
const HEADER_BYTES: usize = 8;
/// What a block device has a multiple of.
const SECTOR: u64 = 512;
/// Longest run that is written at once.
const RUN_BYTES_MAX: u64 = 16 << 10;
/// Between two writes.
const PACE: Duration = Duration::from_millis(3);

const FREEZE: &str = r#"#!/bin/sh
cd 'FOLDER' || exit 1
if [ "$LANDFALL_PHASE" = thaw ]; then exec rm -f frozen; fi
id="$$.$(date +%s%N)"
echo "$id" >"asked.$id" && mv "asked.$id" frozen || exit 1
tries=0
while [ "$(cat still 2>/dev/null)" != "$id" ]; do
    # Somebody else asks, or it was thawed: the agent that asked is gone.
    [ "$(cat frozen 2>/dev/null)" = "$id" ] || exit 1
    tries=$((tries + 1))
    [ "$tries" -lt 3000 ] || exit 1
    sleep 0.01
done
"#;

/// What a writer does.
const WRITES: u8 = 0;
const RESTS: u8 = 1;
const ENDS: u8 = 2;

/// What all disks of a machine held at one moment.
type Digests = Vec<u64>;

/// A protected machine with three disks and a writer. The writer ends when it is dropped.
pub struct Machine<'a> {
    site: &'a Site,
    name: String,
    /// The host with the agent.
    pub host: AgentHost<'a>,
    disks: Vec<(&'static str, PathBuf)>,
    mode: Arc<AtomicU8>,
    cuts: Arc<Mutex<Vec<Digests>>>,
    writer: Option<JoinHandle<()>>,
    _loops: Vec<Loop>,
}

impl<'a> Machine<'a> {
    /// A machine whose agent knows these gateways, and whose disks are written to from now on.
    ///
    /// # Panics
    /// If there is no room for its disks.
    pub fn new(site: &'a Site, name: &str, gateways: &[&str], seed: u64) -> Self {
        let folder = site.disk("");
        Self::in_folder(site, name, gateways, seed, &folder)
    }

    /// The same with its disks in a folder.
    ///
    /// # Panics
    /// If there is no room for its disks.
    pub fn in_folder(site: &'a Site, name: &str, gateways: &[&str], seed: u64, folder: &Path) -> Self {
        let disk = |(disk, size): (&'static str, usize)| {
            let path = folder.join(format!("{name}-{disk}"));
            disks::zeroes(&path, size as u64);
            (disk, path)
        };
        Self::of(site, name, gateways, seed, DISKS.map(disk).into(), Vec::new())
    }

    /// The same with block devices. `None` after saying that this host has none.
    ///
    /// # Panics
    /// If there is no room for its disks; where `CI` is set and there are no block devices.
    pub fn on_devices(site: &'a Site, name: &str, gateways: &[&str], seed: u64) -> Option<Self> {
        let (mut disks, mut loops) = (Vec::new(), Vec::new());
        for (disk, size) in DISKS {
            let path = site.disk(&format!("{name}-{disk}"));
            disks::zeroes(&path, size as u64 / SECTOR * SECTOR);
            let device = Loop::of(&path)?;
            disks.push((disk, device.device().to_owned()));
            loops.push(device);
        }
        Some(Self::of(site, name, gateways, seed, disks, loops))
    }

    fn of(
        site: &'a Site,
        name: &str,
        gateways: &[&str],
        seed: u64,
        disks: Vec<(&'static str, PathBuf)>,
        loops: Vec<Loop>,
    ) -> Self {
        let folder = site.folder().join(format!("writer-{name}"));
        fs::create_dir(&folder).expect("own folder");
        let command = folder.join("freeze.sh");
        fs::write(&command, FREEZE.replace("FOLDER", folder.to_str().expect("a plain name"))).expect("own folder");
        fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).expect("own file");
        let (mode, cuts) = (Arc::new(AtomicU8::new(WRITES)), Arc::default());
        let writer = Writer::new(folder, &disks, seed, &cuts);
        let named: Vec<Disk<'_>> = disks.iter().map(|(disk, path)| (*disk, path.as_path())).collect();
        let host = AgentHost::new(site, name, gateways, &named, &format!("freeze_command = \"{}\"", command.display()));
        let told = mode.clone();
        let writer = Some(std::thread::spawn(move || writer.run(&told)));
        Self { site, name: name.to_owned(), host, disks, mode, cuts, writer, _loops: loops }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Nothing is written any more: the next cut is the last state of the disks.
    pub fn rest(&self) {
        self.mode.store(RESTS, Ordering::SeqCst);
    }

    /// Writes go on.
    pub fn go_on(&self) {
        self.mode.store(WRITES, Ordering::SeqCst);
    }

    /// How often the disks were held still in different states.
    pub fn cuts(&self) -> usize {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The moment of the newest cycle that a gateway acknowledged to the agent; `None` before the first.
    ///
    /// # Panics
    /// If the agent's status is no JSON.
    pub fn acknowledged(&self) -> Option<String> {
        let text = fs::read_to_string(self.host.state().join("status.json")).ok()?;
        let status: Value = serde_json::from_str(&text).expect("a status is JSON");
        status["last_spooled"]["time"].as_str().map(str::to_owned)
    }

    /// The moment of the newest point in the vault, empty without any. Moments of one format sort as text.
    pub fn newest_point(&self) -> String {
        if self.site.point_count(&self.name) == 0 {
            return String::new();
        }
        self.site.points(&self.name).last().and_then(|p| p["time"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until everything that was acknowledged is in the vault.
    ///
    /// # Panics
    /// If it never is.
    #[track_caller]
    pub fn wait_until_all_is_committed(&self) {
        let Some(acknowledged) = self.acknowledged() else { return };
        for _ in 0..600 {
            if self.newest_point() >= acknowledged {
                return;
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        panic!("{}: {acknowledged} was acknowledged, the vault ends with {:?}", self.name, self.newest_point());
    }

    /// Fails the test unless every point from `first` on is one logged state of all disks together, in order, without a hole in the numbers.
    /// With `to_the_end` the newest point is the last state. Returns how many points there are in all.
    #[track_caller]
    pub fn assert_points_are_cuts(&self, first: u64, to_the_end: bool) -> u64 {
        let cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut newest, mut last) = (0, 0);
        for point in self.site.points(&self.name) {
            let seq = number(&point, "seq");
            assert_eq!(seq, last + 1, "{}: numbers ascend by one", self.name);
            last = seq;
            if seq < first {
                continue;
            }
            let held = self.digests_of(seq);
            let found = cuts[newest..].iter().position(|cut| *cut == held);
            newest += found.unwrap_or_else(|| {
                let before = cuts[..newest].contains(&held);
                let disks: Vec<bool> = (0..held.len()).map(|d| cuts.iter().any(|c| c[d] == held[d])).collect();
                panic!(
                    "{}: point {seq} is no cut from the {newest}th of {} on (an earlier one: {before}; disks that are of any cut: {disks:?}): {point}",
                    self.name,
                    cuts.len()
                )
            });
        }
        if to_the_end {
            assert_eq!(newest + 1, cuts.len(), "{}: the newest point is the last state of the disks", self.name);
        }
        last
    }

    fn digests_of(&self, seq: u64) -> Digests {
        let backs: Vec<(&str, PathBuf)> =
            DISKS.iter().map(|(disk, _)| (*disk, self.site.disk(&format!("back-{}-{disk}", self.name)))).collect();
        let named: Vec<Disk<'_>> = backs.iter().map(|(disk, path)| (*disk, path.as_path())).collect();
        self.site.rehydrate(&self.name, &seq.to_string(), &named);
        let read = |(_, path): &(&str, PathBuf)| {
            let bytes = fs::read(path).expect("it was brought back");
            fs::remove_file(path).expect("own file");
            digest(&bytes)
        };
        backs.iter().map(read).collect()
    }

    /// Where its disks are.
    pub fn disks(&self) -> Vec<Disk<'_>> {
        self.disks.iter().map(|(disk, path)| (*disk, path.as_path())).collect()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.mode.store(ENDS, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            // One that panicked has said so, and its machine gets no new points.
            let _ = writer.join();
        }
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

struct Writer {
    folder: PathBuf,
    disks: Vec<(File, Vec<u8>)>,
    random: u64,
    writes: u64,
    cuts: Arc<Mutex<Vec<Digests>>>,
}

impl Writer {
    fn new(folder: PathBuf, disks: &[(&str, PathBuf)], seed: u64, cuts: &Arc<Mutex<Vec<Digests>>>) -> Self {
        let open = |(n, (_, path)): (usize, &(&str, PathBuf))| {
            let mut file = OpenOptions::new().write(true).open(path).expect("own file");
            let size = file.seek(SeekFrom::End(0)).expect("a disk has a size");
            let bytes = disks::seeded_bytes(seed ^ (n as u64).rotate_left(32), usize::try_from(size).expect("small"));
            file.write_all_at(&bytes, 0).expect("room for a disk");
            (file, bytes)
        };
        let disks = disks.iter().enumerate().map(open).collect();
        Self { folder, disks, random: seed, writes: 0, cuts: cuts.clone() }
    }

    fn run(mut self, mode: &AtomicU8) {
        let mut answered = None;
        loop {
            let now = mode.load(Ordering::SeqCst);
            match asked(&self.folder.join("frozen")) {
                _ if now == ENDS => return,
                Some(id) if answered.as_ref() != Some(&id) => {
                    self.log();
                    // As a database does: what it has written is on the disk.
                    self.disks.iter().for_each(|(file, _)| file.sync_data().expect("synced"));
                    self.answer(&id);
                    answered = Some(id);
                }
                None if now == WRITES => self.write(),
                _ => {}
            }
            std::thread::sleep(PACE);
        }
    }

    /// Keeps what the disks hold, unless that is what they held at the last freeze.
    fn log(&self) {
        let held: Digests = self.disks.iter().map(|(_, bytes)| digest(bytes)).collect();
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if cuts.last() != Some(&held) {
            cuts.push(held);
        }
    }

    fn answer(&self, id: &str) {
        let aside = self.folder.join("still.new");
        fs::write(&aside, id).expect("own folder");
        fs::rename(aside, self.folder.join("still")).expect("own folder");
    }

    fn dice(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(1);
        let bytes = disks::seeded_bytes(self.random, 8);
        u64::from_le_bytes(bytes.try_into().expect("eight bytes")) % end
    }

    /// One write: a run somewhere, and its number on every disk.
    fn write(&mut self) {
        self.writes += 1;
        let number = self.writes.to_le_bytes();
        for disk in 0..self.disks.len() {
            self.put(disk, 0, &number);
        }
        let disk = usize::try_from(self.dice(self.disks.len() as u64)).expect("a disk");
        let len = 1 + self.dice(RUN_BYTES_MAX);
        let room = (self.disks[disk].1.len() - HEADER_BYTES) as u64 - len;
        let at = HEADER_BYTES + usize::try_from(self.dice(room)).expect("on the disk");
        let len = usize::try_from(len).expect("short");
        let bytes = if self.dice(4) == 0 { vec![0; len] } else { disks::seeded_bytes(self.random, len) };
        self.put(disk, at, &bytes);
    }

    fn put(&mut self, disk: usize, at: usize, bytes: &[u8]) {
        let (file, held) = &mut self.disks[disk];
        file.write_all_at(bytes, at as u64).expect("room on the disk");
        held[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Who asks to stand still.
fn asked(frozen: &Path) -> Option<String> {
    fs::read_to_string(frozen).ok().map(|id| id.trim().to_owned())
}
