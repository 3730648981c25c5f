//! Thin volumes of LVM: a snapshot at each cut, and from `thin_delta` what differs from the one before.
//!
//! ```text
//!   cut        lvcreate --snapshot (inactive; LVM freezes the file system on the volume for it)
//!   after it   lvchange --activate y -K | reserve_metadata_snap, thin_delta, release_metadata_snap | lvremove of the one before
//! ```
//! # Crash consistency
//! What a killed agent leaves are snapshots with its prefix, a tag of ours and this origin, and the pool's metadata snapshot. The next agent removes the former; the latter
//! it releases where the note of it (`metadata-snapshot.json`, written before and after it was reserved) says that it is ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use landfall_disk::thin_delta;
use landfall_model::{BlockSet, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::text::{self, PoolStatus, ROW, Row};
use super::{LEFT_MAX, Lookout, Owner, POLL, Usage, check_room, size_of_new, with_growth};
use crate::fingerprints::BLOCK_BYTES;
use crate::tracking::{Watch, Written};
use crate::{durable, mounts, program};

/// What this needs, and what it is a part of.
const PROGRAMS: [(&str, &str); 6] = [
    ("lvs", "lvm2"),
    ("lvcreate", "lvm2"),
    ("lvchange", "lvm2"),
    ("lvremove", "lvm2"),
    ("dmsetup", "dmsetup"),
    ("thin_delta", "thin-provisioning-tools"),
];
/// All snapshots of ours have it.
const TAG: &str = "landfall";
/// In the state directory.
const NOTE: &str = "metadata-snapshot.json";
/// A pool has one metadata snapshot. Who else holds it is given so long.
const METADATA_WAIT_MAX: Duration = Duration::from_secs(10);

/// A thin volume.
#[derive(Clone, Debug)]
struct Volume {
    vg: String,
    lv: String,
    pool: String,
}

/// What is left to release of a metadata snapshot.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Note {
    /// The pool, as device mapper calls it.
    pool: String,
    /// Its block; none: it was about to be reserved.
    root: Option<u64>,
}

fn rows(more: &[&str]) -> Result<Vec<Row>> {
    let words = ["lvs", "--reportformat", "json", "--options", ROW];
    text::rows(&program::output(&[&words[..], more].concat())?)
}

impl Volume {
    /// The thin volume at a path; none where there is another thing.
    fn find(path: &Path) -> Result<Option<Self>> {
        let Some((major, minor)) = mounts::number(path) else { return Ok(None) };
        let select = format!("lv_kernel_major={major} && lv_kernel_minor={minor}");
        let listed = program::need(&PROGRAMS[..1]).and_then(|()| rows(&["--select", &select]));
        let row = match listed {
            Ok(rows) => rows.into_iter().next(),
            Err(error) => {
                // Of other devices LVM is not expected to say anything.
                let uuid = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid"));
                return if uuid.is_ok_and(|uuid| uuid.starts_with("LVM-")) { Err(error) } else { Ok(None) };
            }
        };
        Ok(row.filter(|row| row.segtype == "thin").map(|row| Self {
            pool: row.pool_lv.trim_matches(['[', ']']).to_owned(),
            vg: row.vg_name,
            lv: row.lv_name,
        }))
    }

    fn full_name(&self, lv: &str) -> String {
        format!("{}/{lv}", self.vg)
    }

    /// The pool's device.
    fn pool_device(&self) -> String {
        text::mapped_name(&self.vg, &self.pool) + "-tpool"
    }

    fn usage(&self) -> Result<Usage> {
        Ok(status(&self.pool_device())?.usage)
    }

    /// All snapshots of this volume that this agent made.
    fn own(&self, owner: &Owner) -> Result<Vec<Row>> {
        let is_tagged = |row: &Row| row.lv_tags.split(',').any(|tag| tag == TAG);
        let is_own = |row: &Row| row.origin == self.lv && owner.is_own(&row.lv_name) && is_tagged(row);
        Ok(rows(&[&self.vg])?.into_iter().filter(is_own).collect())
    }

    /// Removes them but for one. Returns how many could not be, and why the first.
    fn remove_own(&self, owner: &Owner, but: Option<&str>) -> Result<(usize, Option<Error>)> {
        let (mut left, mut why) = (0, None);
        for row in self.own(owner)?.iter().filter(|row| Some(row.lv_name.as_str()) != but) {
            let name = self.full_name(&row.lv_name);
            if let Err(error) = program::output(&["lvremove", "--yes", "--autobackup", "n", &name]) {
                left += 1;
                why = why.or(Some(error));
            }
        }
        Ok((left, why))
    }
}

fn status(pool: &str) -> Result<PoolStatus> {
    text::pool_status(&program::output(&["dmsetup", "status", pool])?)
}

fn release(pool: &str) -> Result<()> {
    program::output(&["dmsetup", "message", pool, "0", "release_metadata_snap"]).map(drop)
}

/// The pool's metadata as of one moment, until it is dropped.
struct Metadata {
    pool: String,
    note: PathBuf,
    /// Its block; it is another one's where that is another.
    root: Option<u64>,
}

impl Metadata {
    fn reserve(owner: &Owner, pool: String, stop: &dyn Fn() -> bool) -> Result<Self> {
        release_left(owner)?;
        let start = Instant::now();
        while let Some(root) = status(&pool)?.held {
            if start.elapsed() >= METADATA_WAIT_MAX || stop() {
                let why = format!(
                    "somebody else holds the metadata snapshot of {pool} (block {root}); where nobody does any more: dmsetup message {pool} 0 release_metadata_snap"
                );
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            std::thread::sleep(POLL);
        }
        let note = owner.state_dir.join(NOTE);
        write_note(&note, &pool, None)?;
        let reserved = program::output(&["dmsetup", "message", &pool, "0", "reserve_metadata_snap"]);
        if let Err(error) = reserved {
            // It is not ours, whoever has it.
            durable::remove(&note)?;
            return Err(error);
        }
        // Released from here on, whatever happens.
        let mut metadata = Self { pool, note, root: None };
        metadata.root = status(&metadata.pool)?.held;
        write_note(&metadata.note, &metadata.pool, metadata.root)?;
        Ok(metadata)
    }

    /// Whether it was there all the time: what is read of one that somebody has released may be anything.
    fn is_held(&self) -> Result<bool> {
        Ok(self.root.is_some() && status(&self.pool)?.held == self.root)
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        // What somebody else holds now is not ours.
        if self.root.is_some() && status(&self.pool).is_ok_and(|status| status.held != self.root) {
            drop(durable::remove(&self.note));
            return;
        }
        match release(&self.pool) {
            Ok(()) => drop(durable::remove(&self.note)),
            Err(error) => tracing::warn!(%error, pool = self.pool, "its metadata snapshot was not released yet"),
        }
    }
}

fn write_note(at: &Path, pool: &str, root: Option<u64>) -> Result<()> {
    let note = serde_json::to_vec(&Note { pool: pool.to_owned(), root });
    durable::replace(at, &note.map_err(|e| Error::with_source(ErrorKind::Bug, "a note cannot be written", e))?)
}

/// Releases what an agent that was killed held, if it is still that.
fn release_left(owner: &Owner) -> Result<()> {
    let at = owner.state_dir.join(NOTE);
    let Ok(bytes) = std::fs::read(&at) else { return Ok(()) };
    // One that was damaged says nothing. So does one of before it was reserved: what is held now may be anybody's.
    let note = serde_json::from_slice::<Note>(&bytes).ok().filter(|note| text::is_lvm_name(&note.pool));
    if let Some(Note { pool, root: Some(root) }) = note {
        match status(&pool) {
            Ok(status) if status.held == Some(root) => release(&pool)?,
            Ok(_) => {}
            // It may be gone, and then so is what it held.
            Err(error) => tracing::warn!(%error, pool, "whether its metadata snapshot is still held is not known"),
        }
    }
    durable::remove(&at)
}

/// A snapshot that can be read.
#[derive(Debug)]
struct Snapshot {
    name: String,
    path: PathBuf,
    thin_id: String,
    size: u64,
}

/// What is written to a thin volume, by its snapshots. They go with it.
pub(crate) struct Thin {
    owner: Owner,
    volume: Volume,
    /// What the next one is compared with, and the newest that can be read.
    base: Snapshot,
    /// Made since, and not compared yet.
    newer: Option<String>,
    /// Could not be removed.
    left: usize,
    lookout: Option<Lookout>,
}

impl Thin {
    /// Begins with a first snapshot; none where there is no thin volume at the path. `alarm` is set where a pool fills up.
    ///
    /// # Errors
    /// Why it cannot be done although there is one.
    pub(crate) fn attach(path: &Path, owner: &Owner, alarm: &Arc<AtomicBool>) -> Result<Option<Self>> {
        let Some(volume) = Volume::find(path)? else { return Ok(None) };
        program::need(&PROGRAMS)?;
        text::check_thin_delta(&program::output(&["thin_delta", "-V"])?)?;
        if !owner.is_probe {
            release_left(owner)?;
        }
        // Of an agent that was killed: this one has the state directory now.
        if let (_, Some(error)) = volume.remove_own(owner, None)? {
            return Err(error.context("a snapshot of before cannot be removed"));
        }
        check_room(&volume.pool, volume.usage()?)?;
        let begun = create(&volume, owner).and_then(|name| open(&volume, owner, name));
        let base = begun.inspect_err(|_| drop(volume.remove_own(owner, None)))?;
        let (looks_at, lets_go, of) = (volume.clone(), volume.clone(), owner.clone());
        let usage = move || looks_at.usage();
        let let_go = move || match lets_go.remove_own(&of, None)? {
            (_, Some(error)) => Err(error),
            _ => Ok(()),
        };
        let lookout = Lookout::start(volume.full_name(&volume.pool), alarm.clone(), usage, let_go);
        Ok(Some(Self { owner: owner.clone(), volume, base, newer: None, left: 0, lookout: Some(lookout) }))
    }

    fn snapshot(&mut self) -> Result<()> {
        if self.left >= LEFT_MAX {
            return Err(Error::new(ErrorKind::Conflict, format!("{} snapshots cannot be removed", self.left)));
        }
        check_room(&self.volume.pool, self.volume.usage()?)?;
        self.newer = Some(create(&self.volume, &self.owner)?);
        Ok(())
    }

    /// Removes all but the newest that was compared.
    fn remove_others(&mut self) {
        let (left, why) = match self.volume.remove_own(&self.owner, Some(&self.base.name)) {
            Ok((left, why)) => (left, why),
            Err(error) => (self.left + 1, Some(error)),
        };
        self.left = left;
        if let Some(error) = why {
            tracing::warn!(%error, "a snapshot was not removed; it is tried again after the next cut");
        }
    }

    fn changed(&self, newer: &Snapshot, stop: &dyn Fn() -> bool) -> Result<BlockSet> {
        let metadata = Metadata::reserve(&self.owner, self.volume.pool_device(), stop)?;
        self.are_there(newer)?;
        let device = format!("/dev/mapper/{}_tmeta", text::mapped_name(&self.volume.vg, &self.volume.pool));
        let words = ["thin_delta", "-m", "--thin1", &self.base.thin_id, "--thin2", &newer.thin_id, &device];
        let size = newer.size;
        let changed = program::listen(&[&words], stop, move |from| {
            thin_delta(from, size, BLOCK_BYTES).map_err(|e| Error::corrupt(e.to_string()))
        });
        let held = metadata.is_held();
        drop(metadata);
        if !held? {
            return Err(Error::new(
                ErrorKind::Conflict,
                "somebody has released the metadata snapshot while it was read",
            ));
        }
        Ok(with_growth(changed?, self.base.size))
    }

    /// LVM gives the number of a snapshot that somebody has removed to the next one: two of one number have no differences.
    fn are_there(&self, newer: &Snapshot) -> Result<()> {
        let rows = self.volume.own(&self.owner)?;
        let is_there = |s: &Snapshot| rows.iter().any(|row| row.lv_name == s.name && row.thin_id == s.thin_id);
        if is_there(&self.base) && is_there(newer) && self.base.thin_id != newer.thin_id {
            return Ok(());
        }
        let why = format!("the snapshot {} is not what it was: somebody has removed it", self.base.name);
        Err(Error::new(ErrorKind::Conflict, why))
    }
}

/// Makes a snapshot that is not active yet.
fn create(volume: &Volume, owner: &Owner) -> Result<String> {
    let (name, origin) = (owner.new_name()?, volume.full_name(&volume.lv));
    // Without a backup of the metadata in /etc, whose file system may be frozen, and which would fill with those of our snapshots.
    let how = ["--permission", "r", "--activate", "n", "--autobackup", "n", "--addtag", TAG];
    let words = [&["lvcreate", "--snapshot", "--name", &name][..], &how, &[&origin]].concat();
    program::output(&words)?;
    Ok(name)
}

fn open(volume: &Volume, owner: &Owner, name: String) -> Result<Snapshot> {
    let full_name = volume.full_name(&name);
    let how = ["--activate", "y", "--ignoreactivationskip", "--autobackup", "n"];
    program::output(&[&["lvchange"], &how[..], &[&full_name]].concat())?;
    let row = volume.own(owner)?.into_iter().find(|row| row.lv_name == name);
    let is_right = |row: &Row| {
        let is_placed = row.segtype == "thin" && row.pool_lv.trim_matches(['[', ']']) == volume.pool;
        is_placed && text::number(&row.thin_id).is_some() && Path::new(&row.lv_path).is_absolute()
    };
    let row = row.filter(is_right);
    let row =
        row.ok_or_else(|| Error::corrupt(format!("LVM does not know the snapshot {full_name} as it was made")))?;
    let path = PathBuf::from(row.lv_path);
    let size = size_of_new(&path)?;
    Ok(Snapshot { name, path, thin_id: row.thin_id, size })
}

impl Watch for Thin {
    fn take(&mut self) -> Written {
        self.snapshot().map_or_else(|error| Written::Lost(error.line()), |()| Written::Later)
    }

    fn tidy(&mut self) {
        if self.newer.take().is_some() {
            self.remove_others();
        }
    }

    fn compare(&mut self, stop: &dyn Fn() -> bool) -> Written {
        let Some(name) = self.newer.take() else { return Written::All("no snapshot was taken".to_owned()) };
        let newer = match open(&self.volume, &self.owner, name) {
            Ok(newer) => newer,
            Err(error) => return Written::Lost(error.line()),
        };
        let changed = self.changed(&newer, stop);
        self.base = newer;
        self.remove_others();
        changed.map_or_else(|error| Written::All(error.line()), Written::Blocks)
    }

    fn source(&self) -> &'static str {
        "lvm-thin"
    }

    fn copy(&self) -> Option<&Path> {
        Some(&self.base.path)
    }

    fn holds_still(&self) -> bool {
        true
    }

    fn gives_up(&self) -> Option<String> {
        let is_full = self.lookout.as_ref().is_some_and(Lookout::is_full);
        is_full.then(|| format!("the pool {} is nearly full", self.volume.full_name(&self.volume.pool)))
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        drop(self.lookout.take());
        match self.volume.remove_own(&self.owner, None) {
            Ok((_, None)) => {}
            Ok((_, Some(error))) | Err(error) => {
                tracing::warn!(%error, "a snapshot was left; the next agent removes it");
            }
        }
    }
}
