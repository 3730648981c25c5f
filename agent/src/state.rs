//! The state directory: what an agent knows of its disks and of what the gateways have.
//!
//! ```text
//! <state>/lock                    held by the agent: one for each directory
//! <state>/key                     key of the fingerprints, made at first use
//! <state>/state.json              which cycles there are, which one is in flight, whether its journal is being applied
//! <state>/fingerprints/<disk>     hashes of the disk's blocks as of the newest kept cycle
//! <state>/cycles/<cycle>.journal  what the cycle in flight changes
//! <state>/cycles/<cycle>.ranges   what a kept cycle changed
//! <state>/status.json             for those who watch
//! <state>/frozen.lock             held while something is frozen
//! ```
//! No key of a vault and no content is in it. Losing it costs one full cycle.
//!
//! # Crash consistency
//! `state.json` is replaced whole and durably, and alone says what the other files mean; files that it does not name are removed. Steps
//! of a cycle, and what a crash right after each leaves:
//!
//! | step | what is found |
//! |---|---|
//! | the journal is written aside | the cycle before; what lies aside is removed |
//! | it is durable under its name | the same |
//! | `pending` names it; only now `end` may be sent | the gateway's word decides: adopted or left out |
//! | `applying` is set: the gateway said `spooled` | it is applied from its start |
//! | fingerprints and ranges are durable | it is applied once more, with the same outcome |
//! | the cycle is the newest kept one | the next cycle; the journal is removed |
//!
//! What contradicts itself (files of another time, a lost file) is forgotten: the next cycle is a full one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::mem::replace;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landfall_model::{CycleId, DiskName, Error, ErrorKind, Extent, Result, Timestamp};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::durable::{self, failed};
use crate::fingerprints::{self, BLOCK_BYTES, FingerprintKey, HASH_BYTES};
use crate::history::{History, KEPT_MAX, Kept, Plan, RUNS_MAX, RUNS_PER_CYCLE_MAX};
use crate::journal::{DiskState, JournalHead, JournalReader, JournalWriter};
use crate::ranges::{ALL, Ranges, RangesBuilder};

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct SavedCycle {
    cycle: CycleId,
    time: Timestamp,
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct Saved {
    version: u32,
    /// Oldest first.
    kept: Vec<SavedCycle>,
    /// The protected disks as of the newest kept cycle.
    disks: Vec<DiskState>,
    pending: Option<CycleId>,
    applying: bool,
    last_cut: Option<Timestamp>,
}

impl Default for Saved {
    fn default() -> Self {
        Self { version: VERSION, kept: Vec::new(), disks: Vec::new(), pending: None, applying: false, last_cut: None }
    }
}

/// What the disks are compared with: the fingerprints as of the newest kept cycle. While one lives, the directory stays locked.
#[derive(Clone)]
pub(crate) struct Base {
    /// The cycle that they are of; none: nothing is known.
    pub(crate) cycle: Option<CycleId>,
    /// The disks that they are of.
    pub(crate) disks: Vec<DiskState>,
    /// Keys them.
    pub(crate) key: FingerprintKey,
    folder: PathBuf,
    _lock: Arc<File>,
}

impl Base {
    /// Whether the base has this disk.
    pub(crate) fn has(&self, disk: &DiskName) -> bool {
        self.cycle.is_some() && self.disks.iter().any(|d| d.name == *disk)
    }

    /// The cycle that is known of a disk.
    pub(crate) fn cycle_of(&self, disk: &DiskName) -> Option<CycleId> {
        self.cycle.filter(|_| self.has(disk))
    }

    /// Bytes that a disk had then.
    pub(crate) fn size_of(&self, disk: &DiskName) -> Option<u64> {
        self.disks.iter().find(|d| d.name == *disk).map(|d| d.size)
    }

    /// The fingerprints of a disk; none where the base does not have it, and all of it was zero.
    ///
    /// # Errors
    /// `Corrupt` where they are not those of the base.
    pub(crate) fn reader(&self, disk: &DiskName) -> Result<Option<fingerprints::Reader>> {
        let (Some(cycle), Some(known)) = (self.cycle, self.disks.iter().find(|d| d.name == *disk)) else {
            return Ok(None);
        };
        fingerprints::Reader::open(&self.folder.join(disk.as_str()), &self.key, cycle, known.size).map(Some)
    }
}

/// An open state directory.
pub(crate) struct StateDir {
    root: PathBuf,
    lock: Arc<File>,
    key: FingerprintKey,
    history: History,
    disks: Vec<DiskState>,
    applying: bool,
    last_cut: Option<Timestamp>,
}

impl StateDir {
    /// Opens the directory, makes it at first use, and completes what a crash has interrupted.
    ///
    /// # Errors
    /// `Conflict` where another agent has it, `Usage` where it cannot be made, `NoSpace`.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for folder in [root.to_owned(), root.join("fingerprints"), root.join("cycles")] {
            // Which blocks of a disk change is not public.
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|e| failed("make", &folder, e))?;
        }
        let lock = lock(root)?;
        let key = key(root)?;
        let saved = read_saved(root)?;
        let mut state = Self {
            root: root.to_owned(),
            lock,
            key,
            history: History::default(),
            disks: saved.disks,
            applying: saved.applying && saved.pending.is_some(),
            last_cut: saved.last_cut,
        };
        let kept = saved.kept.into_iter().map(|k| Kept { cycle: k.cycle, time: k.time, ranges: Ranges::default() });
        state.history = History::new(state.with_ranges(kept.collect()), saved.pending);
        state.complete()?;
        if let Err(error) = state.check() {
            state.forget(&error)?;
        }
        state.tidy(true)?;
        Ok(state)
    }

    fn cycles(&self) -> PathBuf {
        self.root.join("cycles")
    }

    fn journal_path(&self, cycle: CycleId) -> PathBuf {
        self.cycles().join(format!("{cycle}.journal"))
    }

    fn ranges_path(&self, cycle: CycleId) -> PathBuf {
        self.cycles().join(format!("{cycle}.ranges"))
    }

    fn fingerprints(&self) -> PathBuf {
        self.root.join("fingerprints")
    }

    /// Reads the ranges of kept cycles. Where some are lost, what is older cannot be used as a parent.
    fn with_ranges(&self, mut kept: Vec<Kept>) -> Vec<Kept> {
        for at in (1..kept.len()).rev() {
            let path = self.ranges_path(kept[at].cycle);
            let read = fs::read(&path).map_err(|e| failed("read", &path, e)).and_then(|bytes| Ranges::decode(&bytes));
            match read {
                Ok(ranges) => kept[at].ranges = ranges,
                Err(error) => {
                    tracing::warn!(%error, "older cycles are forgotten");
                    return kept.split_off(at);
                }
            }
        }
        kept
    }

    /// The fingerprints are those of the newest kept cycle.
    fn check(&self) -> Result<()> {
        let base = self.base();
        self.disks.iter().try_for_each(|disk| base.reader(&disk.name).map(|_| ()))
    }

    /// Removes what nothing refers to; what lies aside only when the directory is opened: later it is the journal of a running cycle.
    fn tidy(&self, also_aside: bool) -> Result<()> {
        let journals = self.history.pending.iter().map(|c| self.journal_path(*c));
        let ranges = self.history.kept().iter().skip(1).map(|k| self.ranges_path(k.cycle));
        let disks = self.disks.iter().map(|d| self.fingerprints().join(d.name.as_str()));
        remove_others(&self.cycles(), &journals.chain(ranges).collect(), also_aside)?;
        // Nothing lies aside here; a disk may have a name that looks like it.
        remove_others(&self.fingerprints(), &disks.collect(), true)
    }

    fn save(&self) -> Result<()> {
        let kept = self.history.kept().iter().map(|k| SavedCycle { cycle: k.cycle, time: k.time }).collect();
        let saved = Saved {
            version: VERSION,
            kept,
            disks: self.disks.clone(),
            pending: self.history.pending,
            applying: self.applying,
            last_cut: self.last_cut,
        };
        let bytes = serde_json::to_vec_pretty(&saved)
            .map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode the state", e))?;
        durable::replace(&self.root.join("state.json"), &bytes)
    }

    /// Nothing is known any more of the disks; the next cycle is a full one.
    fn forget(&mut self, why: &Error) -> Result<()> {
        tracing::warn!(error = %why, "the state is not usable: the next cycle sends everything");
        self.history = History::default();
        self.disks.clear();
        self.applying = false;
        self.save()
    }

    /// What the disks are compared with.
    pub(crate) fn base(&self) -> Base {
        Base {
            cycle: self.history.newest(),
            disks: self.disks.clone(),
            key: self.key.clone(),
            folder: self.fingerprints(),
            _lock: self.lock.clone(),
        }
    }

    /// The moment of a cut that is made now: later than all before, whatever the clock says.
    pub(crate) fn cut_time(&mut self, now: Timestamp) -> Timestamp {
        let next = self.last_cut.map_or(i64::MIN, |last| last.millis().saturating_add(1));
        let time = Timestamp::from_millis(now.millis().max(next));
        self.last_cut = Some(time);
        time
    }

    /// What the next cycle sends to a gateway whose newest cycle is this one.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`: the journal of a spooled cycle could not be applied.
    pub(crate) fn plan(&mut self, newest_at_gateway: Option<CycleId>) -> Result<Plan> {
        self.complete()?;
        if let Plan::Incremental { parent, adopt: true, .. } = self.history.decide(newest_at_gateway) {
            self.spooled(parent)?;
        }
        Ok(self.history.decide(newest_at_gateway))
    }

    /// Begins the journal of a cycle.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn begin(&self, head: &JournalHead) -> Result<JournalWriter> {
        JournalWriter::create(&self.journal_path(head.cycle), head)
    }

    /// The cycle was read and sent whole: it is pending from here on, and its end may be sent.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn seal(&mut self, cycle: CycleId, journal: JournalWriter) -> Result<()> {
        journal.seal()?;
        let before = self.history.pending.replace(cycle);
        self.save()?;
        before.map_or(Ok(()), |before| durable::remove(&self.journal_path(before)))
    }

    /// The cycle in flight is durable on the gateway: it becomes the newest kept one. Other cycles are not minded. Not to be called while
    /// disks are compared with [`Self::base`].
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`; what was begun is completed by the next [`Self::plan`].
    pub(crate) fn spooled(&mut self, cycle: CycleId) -> Result<()> {
        if self.history.pending == Some(cycle) {
            self.mark_spooled()?;
            self.complete()?;
        }
        Ok(())
    }

    /// The pending cycle was spooled: its journal is to be applied.
    fn mark_spooled(&mut self) -> Result<()> {
        self.applying = true;
        let saved = self.save();
        // Nothing is applied before this is durable: after a crash nobody would know that the fingerprints are of two cycles.
        self.applying = saved.is_ok();
        saved
    }

    /// Applies the journal that is being applied, from its start.
    fn complete(&mut self) -> Result<()> {
        let Some(cycle) = self.history.pending.filter(|_| self.applying) else { return Ok(()) };
        let applied = self.apply(cycle).and_then(|(head, ranges)| self.finish(head, ranges));
        match applied {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => self.forget(&error),
            other => other,
        }
    }

    /// Changes the fingerprints as the journal says; returns its head, and what it changed.
    fn apply(&self, cycle: CycleId) -> Result<(JournalHead, Ranges)> {
        let reader = JournalReader::open(&self.journal_path(cycle))?;
        let head = reader.head().clone();
        if head.cycle != cycle || head.base.is_some_and(|base| self.history.newest() != Some(base)) {
            return Err(Error::corrupt(format!("the journal of cycle {cycle} is of another state")));
        }
        let mut changed = RangesBuilder::new(RUNS_PER_CYCLE_MAX);
        add_shape_changes(&self.disks, &head.disks, &mut changed);
        let mut fingerprints = Applying { state: self, head: &head, open: None, next: 0 };
        reader.runs(|disk, first, hashes| {
            let len = (hashes.len() / HASH_BYTES) as u64 * BLOCK_BYTES;
            changed.insert(&head.disks[disk].name, Extent { start: first * BLOCK_BYTES, len });
            fingerprints.of(disk)?.put(first, hashes)
        })?;
        fingerprints.finish()?;
        durable::sync_folder(&self.fingerprints()).map_err(|e| failed("sync", &self.fingerprints(), e))?;
        let ranges = changed.finish();
        durable::replace(&self.ranges_path(cycle), &ranges.encode()?)?;
        Ok((head, ranges))
    }

    /// The fingerprints are of the cycle: it is the newest kept one.
    fn finish(&mut self, head: JournalHead, ranges: Ranges) -> Result<()> {
        let mut history = self.history.clone();
        history.push(Kept { cycle: head.cycle, time: head.time, ranges }, head.base.is_none());
        for changed in history.bound(KEPT_MAX, RUNS_MAX) {
            if let Some(kept) = history.kept().iter().find(|k| k.cycle == changed) {
                durable::replace(&self.ranges_path(changed), &kept.ranges.encode()?)?;
            }
        }
        let before = (replace(&mut self.history, history), replace(&mut self.disks, head.disks));
        self.applying = false;
        if let Err(error) = self.save() {
            (self.history, self.disks) = before;
            self.applying = true;
            return Err(error);
        }
        self.tidy(false)
    }

    /// A cycle is a recovery point: what is older is forgotten. Returns the moment of its cut if it is known.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn committed(&mut self, cycle: CycleId) -> Result<Option<Timestamp>> {
        let time = self.history.committed(cycle);
        if time.is_some() {
            self.save()?;
            self.tidy(false)?;
        }
        Ok(time)
    }
}

/// The fingerprints of the disks of a journal, one after the other.
struct Applying<'a> {
    state: &'a StateDir,
    head: &'a JournalHead,
    open: Option<fingerprints::Writer>,
    next: usize,
}

impl Applying<'_> {
    /// Those of a disk; the ones before it are complete.
    fn of(&mut self, disk: usize) -> Result<&fingerprints::Writer> {
        while self.next <= disk {
            self.close()?;
            let DiskState { name, size } = &self.head.disks[self.next];
            let fresh = self.head.base.is_none() || !self.state.disks.iter().any(|d| d.name == *name);
            let path = self.state.fingerprints().join(name.as_str());
            self.open = Some(fingerprints::Writer::open(&path, *size, fresh)?);
            self.next += 1;
        }
        let open = self.open.as_ref().filter(|_| self.next == disk + 1);
        open.ok_or_else(|| Error::corrupt(format!("the journal of cycle {} is out of order", self.head.cycle)))
    }

    fn close(&mut self) -> Result<()> {
        self.open.take().map_or(Ok(()), |writer| writer.finish(&self.state.key, self.head.cycle))
    }

    fn finish(mut self) -> Result<()> {
        if let Some(last) = self.head.disks.len().checked_sub(1) {
            self.of(last)?;
        }
        self.close()
    }
}

/// What is not there any more counts as changed to its end: a gateway with an older cycle still has it. All of a disk that has come or
/// gone counts as changed: a gateway with an older cycle may not know it.
fn add_shape_changes(before: &[DiskState], now: &[DiskState], changed: &mut RangesBuilder) {
    let of = |disks: &[DiskState], name: &DiskName| disks.iter().find(|d| d.name == *name).map(|d| d.size);
    for disk in before.iter().chain(now) {
        match (of(before, &disk.name), of(now, &disk.name)) {
            (Some(old), Some(new)) if new < old => {
                changed.insert(&disk.name, Extent::between(new - new % BLOCK_BYTES, u64::MAX));
            }
            (Some(_), Some(_)) => {}
            _ => changed.insert(&disk.name, ALL),
        }
    }
}

fn lock(root: &Path) -> Result<Arc<File>> {
    let path = root.join("lock");
    let file = durable::create(&path).map_err(|e| failed("open", &path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Arc::new(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let why = format!("another agent runs with the state directory {}: stop it first", root.display());
            Err(Error::new(ErrorKind::Conflict, why))
        }
        Err(error) => Err(failed("lock", &path, error.into())),
    }
}

fn key(root: &Path) -> Result<FingerprintKey> {
    let path = root.join("key");
    let found = match fs::read(&path) {
        Ok(bytes) => <[u8; FingerprintKey::LEN]>::try_from(bytes).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read", &path, error)),
    };
    if let Some(key) = found {
        return Ok(FingerprintKey::from_bytes(key));
    }
    // Fingerprints of a key that is lost are refused where they are opened.
    let key = durable::random()?;
    durable::replace(&path, &key)?;
    Ok(FingerprintKey::from_bytes(key))
}

fn read_saved(root: &Path) -> Result<Saved> {
    let path = root.join("state.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
        Err(error) => return Err(failed("read", &path, error)),
    };
    match serde_json::from_slice::<Saved>(&bytes) {
        Ok(saved) if saved.version == VERSION => Ok(saved),
        Ok(saved) => {
            let why = format!("{} has version {}, this program knows {VERSION}", path.display(), saved.version);
            Err(Error::new(ErrorKind::Unsupported, why))
        }
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "damaged: the next cycle sends everything");
            Ok(Saved::default())
        }
    }
}

fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>, also_aside: bool) -> Result<()> {
    let fail = |e| failed("read", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let aside = path.extension().is_some_and(|e| e == "new");
        if !wanted.contains(&path) && (also_aside || !aside) {
            durable::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
