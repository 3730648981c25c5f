//! The spool: objects on this host's disk that wait for the store, in the bytes that they will have there.
//!
//! ```text
//! <spool>/objects/<object name>                          segments and wrapped epoch keys
//! <spool>/points/<machine id>/<timeline>-<seq>           records of points, in the order of their commits
//! ```
//! Nothing in it can be read by who could not read the vault: it is what a reader of the bucket sees.
//!
//! # Crash consistency
//! Objects are kept as a local vault directory keeps them: past the page cache, written aside, synced, linked, the folder synced, before
//! anybody is told; points the same way, by rename. An object is removed after the store has it,
//! a point after it is committed. What is found after a crash is checked like what comes from a store: segments by their names, points by
//! signature and chain ([`crate::owner`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use landfall_model::{Error, ErrorKind, MachineId, Result, SegmentId, Seq, Timeline};
use landfall_vault::segment::{self, Segment};
use landfall_vault::{DedupIndex, Put, Store, Vault, layout};
use tokio::sync::Notify;

use crate::state::replace;

/// What waits, and what is on its way.
#[derive(Default)]
struct Waiting {
    /// Sizes of the objects by name.
    sizes: BTreeMap<String, u64>,
    /// The order in which they came; those that are being uploaded are not in it.
    queue: VecDeque<String>,
    bytes: u64,
    /// Objects that need not be read again: the newest, within [`HOT_BYTES_MAX`].
    hot: BTreeMap<String, Bytes>,
    hot_bytes: usize,
    /// How many cycles and points that wait refer to a segment.
    pins: HashMap<SegmentId, usize>,
}

/// Segments that somebody refers to: while they are in the spool they are not dropped. Lets go of them when it is dropped.
pub(crate) struct Pins {
    spool: Arc<Spool>,
    ids: HashSet<SegmentId>,
}

impl Pins {
    /// Refers to one more segment; `false` where the spool does not have it.
    pub(crate) fn add(&mut self, id: SegmentId) -> bool {
        if self.ids.contains(&id) {
            return true;
        }
        let held = self.spool.pin(id);
        if held {
            self.ids.insert(id);
        }
        held
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut waiting = self.spool.waiting();
        for id in &self.ids {
            if let std::collections::hash_map::Entry::Occupied(mut count) = waiting.pins.entry(*id) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

/// Bytes of objects that are kept in memory until they are uploaded: what a store that keeps up never lets grow.
const HOT_BYTES_MAX: usize = 96 * 1024 * 1024;

/// Objects and points of one vault that wait for the store.
pub(crate) struct Spool {
    root: PathBuf,
    objects: Store,
    budget: u64,
    waiting: Mutex<Waiting>,
    /// Told whenever something came or went.
    changed: Notify,
    /// One record of a machine is written at a time, also where nobody waits for the one before any more.
    writing: Mutex<HashMap<MachineId, Arc<tokio::sync::Mutex<()>>>>,
}

/// The record of a point that waits, as its file.
pub(crate) struct SpooledPoint {
    pub(crate) timeline: Timeline,
    pub(crate) seq: Seq,
    pub(crate) bytes: Bytes,
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&error), format!("cannot {doing} {} (spool)", path.display()), error)
}

/// Whether a file was being written under this name: a record (`NAME.new`), or an object (`NAME#NUMBER`).
fn is_aside(name: &str) -> bool {
    name.ends_with(".new") || name.contains('#')
}

/// All files below a folder, in the order of their names. Files that were being written when a run ended are deleted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut ahead) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))? {
            let path = entry.map_err(|e| failed("list", &folder, e))?.path();
            if path.is_dir() {
                ahead.push(path);
            } else if path.file_name().is_some_and(|n| is_aside(&n.to_string_lossy())) {
                fs::remove_file(&path).map_err(|e| failed("delete", &path, e))?;
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Checks an object of an earlier run; the index is told of a segment: points of this run may refer to it, and be made one with those
/// that do.
fn take_up(name: &str, bytes: Vec<u8>, vault: &Vault, index: &RwLock<DedupIndex>) -> Result<()> {
    let Some(layout::Name::Segment(id)) = layout::parse(name) else { return vault.check_object(name, &bytes) };
    let chunks = segment::open_whole(vault.site(), vault.config().vault_id, id, &bytes)?;
    let segment = Segment { id, bytes: bytes.into(), chunks };
    index.write().unwrap_or_else(PoisonError::into_inner).add_segment(&segment)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::with_source(ErrorKind::Bug, "work on the spool ended early", e))?
}

impl Spool {
    /// Opens or makes a spool, and tells the index of the segments in it. Those that are not what their name says are deleted: the points
    /// that need them are no points then. With a wrapped epoch key that is damaged, everything is: what it seals could never be opened, and
    /// that is not told from the rest.
    ///
    /// # Errors
    /// `Usage`, `NoSpace`, `Unavailable` of the folder.
    pub(crate) fn open(root: &Path, budget: u64, vault: &Vault, index: &RwLock<DedupIndex>) -> Result<Self> {
        let objects = root.join("objects");
        for folder in [&objects, &root.join("points")] {
            fs::create_dir_all(folder).map_err(|e| failed("make", folder, e))?;
        }
        // What is in them is durable only if they are: the folders, the spool, and the state directory around it.
        for folder in root.ancestors().take(3) {
            File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed("sync", folder, e))?;
        }
        let mut waiting = Waiting::default();
        for path in files(&objects)? {
            let name = path.strip_prefix(&objects).ok().and_then(Path::to_str).unwrap_or_default().to_owned();
            let bytes = fs::read(&path).map_err(|e| failed("read", &path, e))?;
            let size = bytes.len() as u64;
            let error = match take_up(&name, bytes, vault, index) {
                Ok(()) => {
                    waiting.add(&name, size);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => error,
                Err(error) => return Err(error.context("the spool")),
            };
            if matches!(layout::parse(&name), Some(layout::Name::Epoch(..))) {
                tracing::error!(%error, "a key in the spool is damaged: all that is spooled is deleted, and asked for again");
                fs::remove_dir_all(root).map_err(|e| failed("delete", root, e))?;
                return Self::open(root, budget, vault, index);
            }
            tracing::warn!(%error, "an object in the spool is damaged: it is deleted");
            fs::remove_file(&path).map_err(|e| failed("delete", &path, e))?;
        }
        let url = format!("file://{}", objects.display());
        let objects = Store::open(&url).map_err(|e| e.context("the spool"))?;
        vault.look_ahead_in(objects.clone());
        // Epoch keys before what they seal: their names sort first.
        Ok(Self {
            root: root.to_owned(),
            objects,
            budget,
            waiting: Mutex::new(waiting),
            changed: Notify::new(),
            writing: Mutex::default(),
        })
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self, machine: MachineId, timeline: Timeline, seq: Seq) -> PathBuf {
        self.root.join("points").join(machine.to_string()).join(format!("{:08x}-{:016x}", timeline.0, seq.0))
    }

    /// Bytes of objects that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.waiting().bytes
    }

    /// Most bytes that may wait.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether room is getting short: points that wait are rather made one than kept apart.
    pub(crate) fn is_pressed(&self) -> bool {
        self.bytes() > self.budget / 2
    }

    /// Waits until `ready` is so.
    async fn until<T>(&self, mut ready: impl FnMut(&mut Waiting) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.waiting()) {
                return value;
            }
            changed.await;
        }
    }

    /// Stores an object; waits while the budget is spent.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`.
    pub(crate) async fn put(self: &Arc<Self>, name: &str, bytes: Bytes) -> Result<()> {
        let size = bytes.len() as u64;
        let budget = self.budget;
        // One object always fits: else a budget that is too small would stop everything for good.
        self.until(|w| (w.bytes == 0 || w.bytes + size <= budget).then_some(())).await;
        match self.objects.put_if_absent(name, bytes.clone()).await? {
            Put::Created => self.waiting().add_hot(name, bytes),
            // Of a try that nobody waited for. A key that is wrapped anew has other bytes: what is on the disk is what is uploaded, now and
            // after a crash.
            Put::Exists => self.waiting().add(name, size),
        }
        self.changed.notify_waiters();
        Ok(())
    }

    /// Appends a point behind the others of its machine, or replaces the last; `then` is done as soon as it is durable. Where the future is dropped, it
    /// is done all the same, and before another record of the machine is written.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`.
    pub(crate) async fn put_point(
        &self,
        machine: MachineId,
        timeline: Timeline,
        seq: Seq,
        bytes: Bytes,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let (points, path) = (self.root.join("points"), self.point(machine, timeline, seq));
        let turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default().clone();
        let turn = turn.lock_owned().await;
        blocking(move || {
            let _turn = turn;
            let folder = points.join(machine.to_string());
            if !folder.exists() {
                let make = || fs::create_dir(&folder).and_then(|()| File::open(&points)?.sync_all());
                make().map_err(|e| failed("make", &folder, e))?;
            }
            replace(&path, &bytes)?;
            then();
            Ok(())
        })
        .await
    }

    /// The object of a point that waits.
    ///
    /// # Errors
    /// `Corrupt` where it is gone, `Unavailable`.
    pub(crate) async fn read_point(&self, machine: MachineId, timeline: Timeline, seq: Seq) -> Result<Bytes> {
        let path = self.point(machine, timeline, seq);
        blocking(move || match fs::read(&path) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(Error::corrupt(format!("point {seq} is gone from the spool: it was deleted by somebody else")))
            }
            Err(e) => Err(failed("read", &path, e)),
        })
        .await
    }

    /// The points of a machine that wait, in order; not checked.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn points_of(&self, machine: MachineId) -> Result<Vec<SpooledPoint>> {
        let folder = self.root.join("points").join(machine.to_string());
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for path in files(&folder)? {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let numbers = name.split_once('-').and_then(|(timeline, seq)| {
                Some((u32::from_str_radix(timeline, 16).ok()?, u64::from_str_radix(seq, 16).ok()?))
            });
            let Some((timeline, seq)) = numbers else { continue };
            let bytes = fs::read(&path).map_err(|e| failed("read", &path, e))?;
            found.push(SpooledPoint { timeline: Timeline(timeline), seq: Seq(seq), bytes: bytes.into() });
        }
        Ok(found)
    }

    /// The machines that have points here.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn machines(&self) -> Result<BTreeSet<MachineId>> {
        let folder = self.root.join("points");
        let entries = fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))?;
        Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
    }

    /// Forgets a point: it is committed, or can no longer be.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) async fn remove_point(&self, machine: MachineId, timeline: Timeline, seq: Seq) -> Result<()> {
        let path = self.point(machine, timeline, seq);
        blocking(move || match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("delete", &path, e)),
            _ => Ok(()),
        })
        .await
    }

    /// Refers to segments; those that are not here are in the store, or nowhere.
    pub(crate) fn pins<'a>(self: &Arc<Self>, ids: impl IntoIterator<Item = &'a SegmentId>) -> Pins {
        let mut pins = Pins { spool: self.clone(), ids: HashSet::new() };
        for id in ids {
            pins.add(*id);
        }
        pins
    }

    fn pin(&self, id: SegmentId) -> bool {
        let mut waiting = self.waiting();
        let here = waiting.sizes.contains_key(&layout::segment(id));
        if here {
            *waiting.pins.entry(id).or_default() += 1;
        }
        here
    }

    /// Deletes those of these segments that nobody refers to any more: they need not be uploaded. One that is on its way is only not waited
    /// for. Their chunks are no dedup targets from then on.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) async fn drop_unpinned(&self, ids: &[SegmentId], index: &RwLock<DedupIndex>) -> Result<()> {
        for id in ids {
            let name = layout::segment(*id);
            {
                let mut waiting = self.waiting();
                if waiting.pins.contains_key(id) || !waiting.sizes.contains_key(&name) {
                    continue;
                }
                // Under both locks: who finds one of its chunks has either pinned it before, or finds it no more.
                index.write().unwrap_or_else(PoisonError::into_inner).forget_segment(*id);
                waiting.queue.retain(|n| *n != name);
                waiting.remove(&name);
            }
            self.objects.delete(&name).await?;
            self.changed.notify_waiters();
        }
        Ok(())
    }

    /// Whether a segment waits here.
    pub(crate) fn holds(&self, id: SegmentId) -> bool {
        self.waiting().sizes.contains_key(&layout::segment(id))
    }

    /// Waits until the store has all of these segments that were here, and every epoch key (invariant 7).
    pub(crate) async fn until_stored(&self, ids: &[SegmentId]) {
        let names: Vec<String> = ids.iter().map(|id| layout::segment(*id)).collect();
        self.until(|w| {
            let epochs =
                w.sizes.range(layout::EPOCHS.to_owned()..).next().is_some_and(|(n, _)| n.starts_with(layout::EPOCHS));
            (!epochs && !names.iter().any(|n| w.sizes.contains_key(n))).then_some(())
        })
        .await;
    }

    /// The next object to upload; waits for one.
    pub(crate) async fn next(&self) -> String {
        self.until(|w| w.queue.pop_front()).await
    }

    /// The bytes of an object, as its name says; none where it need not be uploaded any more.
    ///
    /// # Errors
    /// `Unavailable`, `Corrupt` where it is gone or damaged.
    pub(crate) async fn read(&self, name: &str, vault: &Vault) -> Result<Option<Bytes>> {
        if let Some(bytes) = self.waiting().hot.get(name) {
            return Ok(Some(bytes.clone()));
        }
        match self.objects.get(name).await? {
            None if self.waiting().sizes.contains_key(name) => {
                Err(Error::corrupt(format!("{name} is gone from the spool: it was deleted by somebody else")))
            }
            bytes => {
                // The last look before the store has it for good. What never left the memory was named a moment ago.
                bytes
                    .iter()
                    .try_for_each(|bytes| vault.check_object(name, bytes))
                    .map_err(|e| e.context("in the spool"))?;
                Ok(bytes)
            }
        }
    }

    /// The store has it.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) async fn stored(&self, name: &str) -> Result<()> {
        self.objects.delete(name).await?;
        self.waiting().remove(name);
        self.changed.notify_waiters();
        Ok(())
    }

    /// It was not uploaded: it is tried again behind the others, so that one that cannot be uploaded does not hold them up.
    pub(crate) fn again(&self, name: String) {
        let mut waiting = self.waiting();
        if waiting.sizes.contains_key(&name) {
            waiting.queue.push_back(name);
        }
        drop(waiting);
        self.changed.notify_waiters();
    }
}

impl Waiting {
    fn add(&mut self, name: &str, size: u64) {
        if self.sizes.insert(name.to_owned(), size).is_none() {
            self.bytes += size;
            if name.starts_with(layout::EPOCHS) {
                self.queue.push_front(name.to_owned());
            } else {
                self.queue.push_back(name.to_owned());
            }
        }
    }

    fn add_hot(&mut self, name: &str, bytes: Bytes) {
        self.add(name, bytes.len() as u64);
        if self.hot_bytes + bytes.len() <= HOT_BYTES_MAX {
            self.hot_bytes += bytes.len();
            if let Some(before) = self.hot.insert(name.to_owned(), bytes) {
                self.hot_bytes -= before.len();
            }
        }
    }

    fn remove(&mut self, name: &str) {
        self.bytes -= self.sizes.remove(name).unwrap_or(0);
        self.hot_bytes -= self.hot.remove(name).map_or(0, |b| b.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landfall_keys::{RecoveryKey, SiteKey};
    use landfall_model::VaultId;

    #[tokio::test]
    async fn a_key_that_is_spooled_twice_is_uploaded_as_it_lies_on_the_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&format!("file://{}/vault", folder.path().display())).expect("a store");
        let recovery = RecoveryKey::generate(VaultId::from_bytes([1; 16])).expect("randomness");
        let site = SiteKey::generate(recovery.vault_id(), recovery.root_public()).expect("randomness");
        let vault = Vault::create(store, &recovery, site, landfall_vault::now()).await.expect("a vault");
        let sealer = landfall_keys::ContentSealer::open_epoch(
            vault.site(),
            vault.site().domain_id(&"default".parse().expect("a name")),
        );
        let sealer = sealer.expect("an epoch");
        let name = layout::epoch(sealer.domain(), sealer.epoch(), recovery.recipient().id());
        let wrapped =
            || -> Bytes { sealer.wrapped_for(vault.site(), &recovery.recipient()).expect("a wrapped key").into() };
        let root = folder.path().join("spool");
        let index = RwLock::new(DedupIndex::open(&folder.path().join("index")).expect("an index"));
        let spool = Arc::new(Spool::open(&root, 1 << 20, &vault, &index).expect("a spool"));
        let (first, second) = (wrapped(), wrapped());
        assert_ne!(first, second, "each wrap is its own");
        // The first try is on the disk, and nobody heard of it: its link was lost.
        spool.objects.put_if_absent(&name, first.clone()).await.expect("stored");
        spool.put(&name, second).await.expect("spooled");
        assert_eq!(spool.next().await, name);
        assert_eq!(spool.read(&name, &vault).await.expect("its bytes"), Some(first.clone()));
        let again = Spool::open(&root, 1 << 20, &vault, &index).expect("a spool");
        assert_eq!(again.read(&name, &vault).await.expect("its bytes"), Some(first), "after a crash too");
    }
}
