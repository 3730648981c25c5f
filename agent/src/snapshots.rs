//! What the snapshots of a volume manager have in common (ADR 0022): names that are ours, a look at the pool, letting go before it is full.
//!
//! ```text
//!   attach: what a killed agent left goes | snapshot A
//!   cut:    freeze | snapshot B | thaw | what differs between A and B | read B | A goes
//! ```
//! One snapshot stays between cycles. It keeps what is overwritten, and so it takes room in a pool that is not ours: a pool that is nearly full gets none, and one
//! that fills up gets back what is there.

mod lvm;
mod text;
mod zfs;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_disk::RawReader;
use landfall_model::{BlockSet, Error, ErrorKind, Extent, Result};

use crate::durable;

pub(crate) use lvm::Thin;
pub(crate) use zfs::{Moments, Zvol};

/// From so much of a pool's room in use on, it gets no snapshot.
const FULL_PERCENT: u8 = 80;
/// From so much on, it gets back what ours takes.
const LET_GO_PERCENT: u8 = 90;
/// A pool that has a snapshot of ours is looked at as often.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A pool that cannot be looked at so often, one look after the other, counts as full.
const BLIND_LOOKS_MAX: u32 = 6;
/// Snapshots of one volume that could not be removed, before there are no new ones.
const LEFT_MAX: usize = 4;
/// What makes device nodes is given so long.
const DEVICE_WAIT_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// Tells a probe's from the agent's.
const PROBE: &str = "check";
/// Begins the name of all snapshots of ours.
const PREFIX: &str = "landfall-";

/// Who takes snapshots: one agent, by its state directory.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// Where it remembers what it holds.
    pub(crate) state_dir: PathBuf,
    /// Begins the names of its snapshots.
    prefix: String,
    /// It only tries how it would be, perhaps beside the agent that has the state directory.
    is_probe: bool,
}

impl Owner {
    /// The agent that has this state directory.
    pub(crate) fn agent(state_dir: &Path) -> Self {
        Self::new(state_dir, state_dir, false)
    }

    /// One that tries how it would be, and leaves alone what the agent has.
    pub(crate) fn probe(state_dir: &Path) -> Self {
        Self::new(state_dir, &state_dir.join(PROBE), true)
    }

    fn new(state_dir: &Path, of: &Path, is_probe: bool) -> Self {
        let hash = blake3::hash(of.as_os_str().as_encoded_bytes()).to_hex();
        Self { state_dir: state_dir.to_owned(), prefix: format!("{PREFIX}{}-", &hash[..8]), is_probe }
    }

    /// What its names are made of.
    pub(crate) fn named_by(&self) -> PathBuf {
        if self.is_probe { self.state_dir.join(PROBE) } else { self.state_dir.clone() }
    }

    /// A name that no snapshot has had.
    fn new_name(&self) -> Result<String> {
        let number = u32::from_le_bytes(durable::random()?);
        Ok(format!("{}{number:08x}", self.prefix))
    }

    /// Whether a snapshot of this name is one of its own.
    fn is_own(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.prefix);
        number.is_some_and(|n| n.len() == 8 && n.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    }
}

/// How full a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Usage {
    /// Of its room for data.
    data_percent: u8,
    /// Of its room for metadata, where that is apart.
    metadata_percent: u8,
}

impl Usage {
    /// What is fuller than it may be; none: nothing is.
    fn beyond(self, percent: u8) -> Option<String> {
        let is_beyond =
            |(what, used): (&str, u8)| (used >= percent).then(|| format!("{used} % of its {what} are used"));
        [("data", self.data_percent), ("metadata", self.metadata_percent)].into_iter().find_map(is_beyond)
    }
}

/// Refuses where the pool has no room for a snapshot.
fn check_room(pool: &str, usage: Usage) -> Result<()> {
    match usage.beyond(FULL_PERCENT) {
        Some(why) => Err(Error::new(
            ErrorKind::NoSpace,
            format!("the pool {pool} is nearly full ({why}; no snapshot from {FULL_PERCENT} % on): enlarge it"),
        )),
        None => Ok(()),
    }
}

/// Looks at a pool for as long as there are snapshots in it, and has them removed before it is full.
struct Lookout {
    full: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lookout {
    /// `alarm` is set where the pool fills up; then `let_go` is called until it has worked.
    fn start(
        pool: String,
        alarm: Arc<AtomicBool>,
        usage: impl Fn() -> Result<Usage> + Send + 'static,
        let_go: impl Fn() -> Result<()> + Send + 'static,
    ) -> Self {
        let (full, ended): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let (is_full, is_over) = (full.clone(), ended.clone());
        let look = move || {
            let mut blind = 0;
            loop {
                std::thread::park_timeout(LOOK_EVERY);
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                let why = match usage() {
                    Ok(usage) => {
                        blind = 0;
                        usage.beyond(LET_GO_PERCENT)
                    }
                    Err(error) => {
                        blind += 1;
                        (blind >= BLIND_LOOKS_MAX).then(|| format!("it cannot be told how full it is: {error}"))
                    }
                };
                if let Some(why) = why.filter(|_| !is_full.swap(true, Ordering::SeqCst)) {
                    tracing::warn!(pool, why, "the pool fills up: its snapshots are given up");
                }
                if is_full.load(Ordering::SeqCst) {
                    alarm.store(true, Ordering::SeqCst);
                    if let Err(error) = let_go() {
                        // Somebody still reads it. The alarm ends that.
                        tracing::debug!(%error, pool, "a snapshot was not removed yet");
                    }
                }
            }
        };
        Self { full, ended, thread: Some(std::thread::spawn(look)) }
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Bytes of a device, once there is a node for it.
fn size_of_new(path: &Path) -> Result<u64> {
    let start = Instant::now();
    while !path.exists() {
        if start.elapsed() >= DEVICE_WAIT_MAX {
            let why = format!("{} did not appear within {} s", path.display(), DEVICE_WAIT_MAX.as_secs());
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        std::thread::sleep(POLL);
    }
    Ok(RawReader::open(path)?.size())
}

/// Adds what lies behind the end that a volume had before.
fn with_growth(mut changed: BlockSet, before: u64) -> BlockSet {
    let size = changed.disk_size();
    if before < size {
        changed.insert(Extent::between(before, size));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_agent_makes_are_its_own() {
        let owner = Owner::agent(Path::new("/state"));
        let name = owner.new_name().expect("a name");
        assert!(owner.is_own(&name) && name.len() == PREFIX.len() + 17, "{name}");
        assert!(!Owner::probe(Path::new("/state")).is_own(&name));
        for other in [format!("{name}0"), format!("x{name}"), name[..name.len() - 1].to_owned(), "landfall-".to_owned()]
        {
            assert!(!owner.is_own(&other), "{other}");
        }
        assert!(!owner.is_own(&format!("{}/../../..", &name[..18])));
        assert_ne!(name, owner.new_name().expect("another name"));
    }

    #[test]
    fn a_pool_is_nearly_full_by_its_data_or_its_metadata() {
        let usage = |data_percent, metadata_percent| Usage { data_percent, metadata_percent };
        assert!(check_room("p", usage(79, 79)).is_ok());
        for (full, what) in [(usage(80, 0), "80 % of its data"), (usage(1, 99), "99 % of its metadata")] {
            let error = check_room("p", full).expect_err("full");
            assert!(error.kind() == ErrorKind::NoSpace && error.line().contains(what), "{error}");
        }
        assert_eq!(usage(89, 89).beyond(LET_GO_PERCENT), None);
        assert!(usage(90, 0).beyond(LET_GO_PERCENT).is_some());
    }

    #[test]
    fn what_a_volume_grew_by_has_changed() {
        let runs = |set: BlockSet| set.runs().collect::<Vec<_>>();
        assert_eq!(runs(with_growth(BlockSet::new(1 << 20, 65536), 1 << 19)), [Extent::between(1 << 19, 1 << 20)]);
        assert_eq!(runs(with_growth(BlockSet::new(1 << 20, 65536), 1 << 21)), []);
    }
}
