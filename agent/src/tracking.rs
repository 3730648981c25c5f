//! What was written to each disk since the newest kept cycle: as far as something watches the disk.
//!
//! ```text
//!   watch --marks--> dirty --take--> taken: what the cycle in flight reads
//!                      ^                |
//!                      '-- not spooled -'   spooled: forgotten
//! ```
//! A disk that nothing watches is dirty all over, and each cycle compares it from end to end. So is one whose watch has lost something, or was
//! begun a moment ago.
//!
//! A watch that copies the disk at the cut tells what differs from the copy before only afterwards, when everything is written to again.
//!
//! # Consistency
//! Dirty and taken together name every block that may differ from the fingerprints: marks are taken before the blocks are read, and leave
//! only when the cycle that has read them is known to be spooled. More may be named, never less.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use landfall_model::{BlockSet, DiskName, Error, ErrorKind, Result};

use crate::check::IMAGE;
use crate::image::DiskConfig;

/// After a watch could not be begun, it is tried again after so long.
const RETRY: Duration = Duration::from_secs(60);

/// Tells which blocks of a disk are written.
pub(crate) trait Watch: Send {
    /// What was written, and is on the disk, since the call before; what is still on its way there is told by a later call. A watch that makes copies makes one.
    fn take(&mut self) -> Written;

    /// A cut of all disks begins: the next call takes what is of it.
    fn begin_cut(&mut self) {}

    /// Nothing is held still: a copy that was made and will not be compared may go.
    fn tidy(&mut self) {}

    /// After [`Written::Later`]: what differs between the newest copy and the one before. Nothing is held still meanwhile; `stop` ends it early.
    fn compare(&mut self, stop: &dyn Fn() -> bool) -> Written {
        let _ = stop;
        Written::All("it makes no copies".to_owned())
    }

    /// The source that the points name.
    fn source(&self) -> &'static str;

    /// Where the watch makes a copy of the disk whenever it is asked: what it tells is of that copy, and the copy is what is to be read. The newest that was
    /// compared.
    fn copy(&self) -> Option<&Path> {
        None
    }

    /// Whether making the copy holds the file system still that lies on the device itself, and nobody else may do so then.
    fn holds_still(&self) -> bool {
        false
    }

    /// Why its copy cannot stay, where it cannot.
    fn gives_up(&self) -> Option<String> {
        None
    }
}

/// What was written to a disk.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// In these blocks at most.
    Blocks(BlockSet),
    /// A copy was made, and is to be compared.
    Later,
    /// Perhaps anywhere: why that is not known. From now on it is told again.
    All(String),
    /// Perhaps anywhere: why that is not known. The watch is of no use any more.
    Lost(String),
}

/// Begins to watch a disk.
pub(crate) type Begin = Box<dyn Fn(&Path) -> Result<Box<dyn Watch>> + Send>;

/// The blocks of a disk that may differ from what is known of it.
#[derive(Clone, Debug)]
pub(crate) enum Dirty {
    /// All.
    All,
    /// These at most.
    Blocks(BlockSet),
    /// None.
    Nothing,
}

impl Dirty {
    fn add(&mut self, more: Self) {
        *self = match (std::mem::replace(self, Self::Nothing), more) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::Nothing, other) | (other, Self::Nothing) => other,
            (Self::Blocks(mut set), Self::Blocks(more)) => {
                // A disk that has another size now is looked at whole.
                if set.disk_size() != more.disk_size() {
                    Self::All
                } else {
                    set.union(&more);
                    Self::Blocks(set)
                }
            }
        };
    }

    /// Bytes in them; none where that is all of the disk.
    pub(crate) fn bytes(&self) -> Option<u64> {
        match self {
            Self::All => None,
            Self::Blocks(set) => Some(set.len()),
            Self::Nothing => Some(0),
        }
    }
}

struct Disk {
    name: DiskName,
    path: PathBuf,
    watch: std::result::Result<Box<dyn Watch>, String>,
    /// Its newest copy was not compared yet.
    later: bool,
    /// When a watch may be tried to begin.
    retry: Instant,
    dirty: Dirty,
    taken: Dirty,
    /// What the newest kept cycle, or one since that failed, may have as zero in place of what was written.
    skipped: Option<BlockSet>,
    /// The same of the cycle in flight.
    skipping: Option<BlockSet>,
}

impl Disk {
    /// Bytes of it that are to be read, as far as that is known.
    fn left(&self) -> Option<u64> {
        let Dirty::Blocks(set) = &self.dirty else { return self.dirty.bytes() };
        let skipped = self.skipped.iter().flat_map(BlockSet::runs).flat_map(|run| set.runs_within(run));
        Some(set.len() - skipped.map(|run| run.len).sum::<u64>())
    }

    fn copy(&self) -> Option<&Path> {
        self.watch.as_ref().ok()?.copy()
    }

    /// Has a watch where one can be had, and adds what it saw. Copies are made of the disk as it is `cut` only.
    fn gather(&mut self, begin: &Begin, cut: bool) {
        if self.watch.is_err() && Instant::now() >= self.retry {
            self.retry = Instant::now() + RETRY;
            let before = std::mem::replace(&mut self.watch, begin(&self.path).map_err(|e| e.to_string()));
            match &self.watch {
                Ok(_) => {
                    tracing::info!(disk = %self.name, "its writes are watched from now on; this cycle compares it whole")
                }
                Err(why) if before.as_ref().err() != Some(why) => {
                    tracing::warn!(disk = %self.name, why, "its writes are not watched: each cycle compares it whole");
                }
                Err(_) => {}
            }
            self.dirty = Dirty::All;
        }
        let Ok(watch) = &mut self.watch else { return };
        if let Some(why) = watch.gives_up() {
            return self.lost(begin, why);
        }
        if watch.copy().is_some() && !cut {
            return watch.tidy();
        }
        self.later = false;
        match watch.take() {
            Written::Blocks(set) => self.dirty.add(Dirty::Blocks(set)),
            Written::Later => self.later = true,
            Written::All(why) => {
                warn_not_known(&self.name, &why);
                self.dirty = Dirty::All;
            }
            Written::Lost(why) => self.lost(begin, why),
        }
    }

    fn lost(&mut self, begin: &Begin, why: String) {
        warn_not_known(&self.name, &why);
        (self.watch, self.retry, self.dirty, self.later) = (Err(why), Instant::now(), Dirty::All, false);
        // What is written from here on is seen, so that the next cycle need not compare.
        self.watch = begin(&self.path).map_err(|e| e.to_string());
    }

    /// Adds what the newest copy differs in.
    fn compare(&mut self, stop: &dyn Fn() -> bool) -> Result<()> {
        let Ok(watch) = &mut self.watch else { return Ok(()) };
        if !std::mem::take(&mut self.later) {
            return Ok(());
        }
        match watch.compare(stop) {
            Written::Blocks(set) => self.taken.add(Dirty::Blocks(set)),
            Written::Later => self.taken = Dirty::All,
            Written::All(why) => {
                warn_not_known(&self.name, &why);
                self.taken = Dirty::All;
            }
            Written::Lost(why) => {
                let error =
                    Error::new(ErrorKind::Unavailable, format!("disk {}: its copy cannot be read: {why}", self.name));
                // Not at once: the next cycles are made without copies.
                (self.watch, self.retry, self.dirty) = (Err(why), Instant::now() + RETRY, Dirty::All);
                return Err(error);
            }
        }
        Ok(())
    }
}

fn warn_not_known(disk: &DiskName, why: &str) {
    tracing::warn!(%disk, why, "what was written to it is not known: this cycle compares it whole");
}

/// What a cycle reads of a disk.
pub(crate) struct Taken {
    pub(crate) name: DiskName,
    /// Not of a copy: that is told when it was compared.
    pub(crate) dirty: Dirty,
    /// A copy is read in place of the disk, and nothing need be held still for that.
    pub(crate) copied: bool,
    /// The source that captures it.
    pub(crate) source: &'static str,
}

/// What a cycle reads of a disk that was copied.
pub(crate) struct Copied {
    pub(crate) name: DiskName,
    pub(crate) dirty: Dirty,
    /// The copy.
    pub(crate) path: PathBuf,
}

/// All disks of a machine.
struct Inner {
    disks: Vec<Disk>,
    begin: Begin,
}

/// What was written to the disks of a machine, as the loop of the agent and the thread that reads them share it.
#[derive(Clone)]
pub(crate) struct Tracking {
    inner: Arc<Mutex<Inner>>,
    /// A copy cannot stay: whoever reads it is to stop.
    alarm: Arc<AtomicBool>,
}

impl Tracking {
    /// Of the disks that are to be watched; watches that give up a copy set `alarm`.
    pub(crate) fn new<'a>(
        disks: impl IntoIterator<Item = &'a DiskConfig>,
        begin: Begin,
        alarm: Arc<AtomicBool>,
    ) -> Self {
        let disk = |disk: &DiskConfig| {
            Some(Disk {
                name: disk.name.clone(),
                path: disk.path.clone()?,
                watch: Err(String::new()),
                later: false,
                retry: Instant::now(),
                dirty: Dirty::All,
                taken: Dirty::Nothing,
                skipped: None,
                skipping: None,
            })
        };
        let inner = Inner { disks: disks.into_iter().filter_map(disk).collect(), begin };
        Self { inner: Arc::new(Mutex::new(inner)), alarm }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a copy that is being read cannot stay. Waits for nobody.
    pub(crate) fn is_alarmed(&self) -> bool {
        self.alarm.load(Ordering::SeqCst)
    }

    /// The disks whose file systems are held still by making their copies.
    pub(crate) fn still_by_themselves(&self) -> Vec<PathBuf> {
        let holds_still = |disk: &&Disk| disk.watch.as_ref().is_ok_and(|watch| watch.holds_still());
        self.lock().disks.iter().filter(holds_still).map(|disk| disk.path.clone()).collect()
    }

    /// Adds what was written by now. Blocks.
    ///
    /// Returns how many bytes of these disks are to be read; none where a disk is to be read whole. A disk that is not known here is not
    /// watched.
    pub(crate) fn gather<'a>(&self, disks: impl IntoIterator<Item = &'a DiskName>) -> Option<u64> {
        let Inner { disks: known, begin } = &mut *self.lock();
        known.iter_mut().for_each(|disk| disk.gather(begin, false));
        // Who could not keep its copy has let it go.
        self.alarm.store(false, Ordering::SeqCst);
        let left = |name: &DiskName| {
            let disk = known.iter().find(|d| d.name == *name)?;
            // A copy is read while everything goes on.
            if disk.copy().is_some() { Some(0) } else { disk.left() }
        };
        disks.into_iter().map(left).sum()
    }

    /// Whether writes to all these disks are watched.
    pub(crate) fn watches<'a>(&self, disks: impl IntoIterator<Item = &'a DiskName>) -> bool {
        let inner = self.lock();
        disks.into_iter().all(|name| inner.disks.iter().any(|d| d.name == *name && d.watch.is_ok()))
    }

    /// Whether all these disks are copied at the cut.
    pub(crate) fn copies<'a>(&self, disks: impl IntoIterator<Item = &'a DiskName>) -> bool {
        let inner = self.lock();
        disks.into_iter().all(|name| inner.disks.iter().any(|d| d.name == *name && d.copy().is_some()))
    }

    /// The disks whose writes are watched.
    pub(crate) fn watched(&self) -> Vec<PathBuf> {
        self.lock().disks.iter().filter(|d| d.watch.is_ok()).map(|d| d.path.clone()).collect()
    }

    /// A cycle begins: what it must read of each disk that is known here. `cut`: everything is held still. Blocks.
    pub(crate) fn take(&self, cut: bool) -> Vec<Taken> {
        let Inner { disks, begin } = &mut *self.lock();
        if cut {
            disks.iter_mut().filter_map(|disk| disk.watch.as_mut().ok()).for_each(|watch| watch.begin_cut());
        }
        let take = |disk: &mut Disk| {
            disk.gather(begin, cut);
            let is_copied = disk.copy().is_some();
            if !is_copied || cut {
                disk.taken.add(std::mem::replace(&mut disk.dirty, Dirty::Nothing));
            }
            let source = disk.watch.as_ref().map_or(IMAGE, |watch| watch.source());
            Taken { name: disk.name.clone(), dirty: disk.taken.clone(), copied: is_copied && cut, source }
        };
        disks.iter_mut().map(take).collect()
    }

    /// After a cut was taken and everything is written to again: what differs in the copies, and is to be read of them. `stop` ends it early. Blocks.
    ///
    /// # Errors
    /// `Unavailable` where a copy cannot be read.
    pub(crate) fn compare(&self, stop: &dyn Fn() -> bool) -> Result<Vec<Copied>> {
        let mut inner = self.lock();
        let mut copied = Vec::new();
        for disk in &mut inner.disks {
            disk.compare(stop)?;
            if let Some(path) = disk.copy() {
                let (name, dirty) = (disk.name.clone(), disk.taken.clone());
                copied.push(Copied { name, dirty, path: path.to_owned() });
            }
        }
        Ok(copied)
    }

    /// Within a cycle: what was written to each disk since the last look, which the cycle answers for from now on. Nothing where the disk is read from a
    /// copy. Blocks.
    pub(crate) fn written_again(&self) -> Vec<(DiskName, Dirty)> {
        let Inner { disks, begin } = &mut *self.lock();
        let again = |disk: &mut Disk| {
            // A watch of another kind makes a copy where it is asked.
            if disk.copy().is_none() {
                disk.gather(begin, false);
            }
            if disk.watch.is_err() {
                disk.dirty = Dirty::All;
            }
            let written = std::mem::replace(&mut disk.dirty, Dirty::Nothing);
            disk.taken.add(written.clone());
            (disk.name.clone(), written)
        };
        disks.iter_mut().map(again).collect()
    }

    /// The cycle takes these blocks of a disk for zero. Returns what is to be looked at beside what is marked: blocks that were taken for zero before, where
    /// these are others.
    pub(crate) fn skip(&self, disk: &DiskName, now: Option<&BlockSet>) -> Option<BlockSet> {
        let mut inner = self.lock();
        let disk = inner.disks.iter_mut().find(|d| d.name == *disk)?;
        disk.skipping = now.cloned();
        let before = disk.skipped.clone().filter(|before| Some(before) != now)?;
        tracing::info!(disk = %disk.name, "what is skipped of it has changed: what was skipped is compared");
        disk.taken.add(Dirty::Blocks(before.clone()));
        Some(before)
    }

    /// The cycle is over; whether it is known to be spooled.
    pub(crate) fn settle(&self, spooled: bool) {
        for disk in &mut self.lock().disks {
            let taken = std::mem::replace(&mut disk.taken, Dirty::Nothing);
            let skipping = disk.skipping.take();
            if spooled {
                disk.skipped = skipping;
            } else {
                disk.dirty.add(taken);
                disk.skipped = match (disk.skipped.take(), skipping) {
                    (Some(mut before), Some(now)) => {
                        before.union(&now);
                        Some(before)
                    }
                    (before, now) => before.or(now),
                };
            }
            if disk.watch.is_err() {
                disk.dirty = Dirty::All;
            }
        }
    }
}
