//! A machine to protect: files as disks, and an agent that ships them to a fake gateway.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use landfall_model::{Consistency, CycleId, ErrorKind, Extent};
use tempfile::TempDir;

use super::gateway::{Disks, FakeGateway, Trouble};
use super::watches::Watches;
use crate::cancel::Cancel;
use crate::config::AgentConfig;
use crate::freeze::Freeze;
use crate::image::{DiskConfig, SourceChoice};
use crate::orders::Orders;
use crate::power::Power;
use crate::ship::{Event, Fault, Shared, Shipped, Shipper};
use crate::skip::Skip;
use crate::state::StateDir;
use crate::tracking::Tracking;

pub(super) const BLOCK: usize = 64 * 1024;

pub(super) struct Machine {
    pub(super) folder: TempDir,
    pub(super) disks: Vec<DiskConfig>,
    pub(super) freeze_command: Option<String>,
    pub(super) stop_command: Option<String>,
    pub(super) start_command: Option<String>,
    pub(super) events: Arc<Mutex<Vec<Event>>>,
    /// Watches its writes.
    pub(super) watches: Watches,
    shipper: Option<Shipper>,
}

/// Bytes that are not zero and not compressible, the same for the same seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

pub(super) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("a type").is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

impl Machine {
    pub(super) fn new(disks: &[(&str, usize)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let events = Arc::default();
        let mut machine = Self {
            folder,
            disks: Vec::new(),
            freeze_command: None,
            stop_command: None,
            start_command: None,
            events,
            watches: Watches::default(),
            shipper: None,
        };
        disks.iter().for_each(|(name, size)| machine.add(name, *size));
        machine
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.img"))
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(super) fn add(&mut self, name: &str, size: usize) {
        let file = fs::File::create(self.path(name)).expect("a disk");
        file.set_len(size as u64).expect("a size");
        let path = Some(self.path(name));
        self.disks.push(DiskConfig {
            name: name.parse().expect("a name"),
            path,
            exclude: false,
            mounts: Vec::new(),
            source: SourceChoice::Auto,
            device: None,
        });
        self.shipper = None;
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.disks.retain(|d| d.name.as_str() != name);
        self.shipper = None;
    }

    pub(super) fn exclude(&mut self, name: &str, exclude: bool) {
        self.disks.iter_mut().filter(|d| d.name.as_str() == name).for_each(|d| d.exclude = exclude);
        self.shipper = None;
    }

    pub(super) fn write(&self, name: &str, at: usize, bytes: &[u8]) {
        let file = fs::File::options().write(true).open(self.path(name)).expect("a disk");
        let size = usize::try_from(file.metadata().expect("a size").len()).expect("small");
        let end = size.min(at + bytes.len());
        if at < end {
            file.write_all_at(&bytes[..end - at], at as u64).expect("written");
            self.watches.written(&self.path(name), Extent::between(at as u64, end as u64));
        }
    }

    pub(super) fn resize(&self, name: &str, size: usize) {
        let file = fs::File::options().write(true).open(self.path(name)).expect("a disk");
        file.set_len(size as u64).expect("a size");
        self.watches.lose(&self.path(name));
    }

    /// What is to be protected, as it is now.
    pub(super) fn content(&self) -> Disks {
        let protected = self.disks.iter().filter(|d| !d.exclude);
        protected.map(|d| (d.name.clone(), fs::read(d.path.as_ref().expect("a path")).expect("a disk"))).collect()
    }

    pub(super) fn config(&self) -> AgentConfig {
        AgentConfig {
            machine: "m".parse().expect("a name"),
            gateways: vec!["a:1".to_owned(), "b:1".to_owned()],
            state_dir: self.state_dir(),
            interval: Duration::from_secs(1),
            freeze_command: self.freeze_command.clone(),
            freeze_max: Duration::from_secs(30),
            late_max: Duration::ZERO,
            skip_swap: false,
            stop_command: self.stop_command.clone(),
            start_command: self.start_command.clone(),
            stop_max: Duration::from_secs(30),
            disks: self.disks.clone(),
            qemu: None,
        }
    }

    /// The agent dies; what it has in the state directory is what the next one finds.
    pub(super) fn kill(&mut self) {
        self.shipper = None;
    }

    /// Opens the state directory as a new agent does; waits for the threads of one that was dropped, which a dead process would not have.
    pub(super) fn open_state(&self) -> StateDir {
        let start = Instant::now();
        loop {
            match StateDir::open(&self.state_dir()) {
                Err(error) if error.kind() == ErrorKind::Conflict && start.elapsed() < Duration::from_secs(20) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                other => return other.expect("a state directory"),
            }
        }
    }

    pub(super) fn shipper(&mut self) -> &mut Shipper {
        if self.shipper.is_none() {
            let events = self.events.clone();
            self.shipper = Some(Shipper {
                state: Shared::new(self.open_state()),
                state_root: self.state_dir(),
                disks: self.disks.clone(),
                freeze: Freeze::of(&self.config()),
                late_max: self.config().late_max,
                skip: Skip::default(),
                cancel: Cancel::default(),
                tracking: Tracking::new(&self.disks, self.watches.clone().begin(), Arc::default()),
                vm: None,
                patient: true,
                orders: Orders::default(),
                power: Power::of(&self.config(), None),
                application: false,
                hooked: None,
                answered: None,
                last: None,
                digests: Vec::new(),
                events: Box::new(move |event| events.lock().expect("events").push(event)),
            });
        }
        self.shipper.as_mut().expect("made above")
    }

    /// Tries one cycle on a new link. None: the agent died.
    pub(super) async fn attempt(
        &mut self,
        gateway: &FakeGateway,
        trouble: Trouble,
        commits: Vec<CycleId>,
    ) -> Option<Result<Shipped, Fault>> {
        let newest = gateway.newest();
        let (mut link, mut death, serving) = gateway.link(trouble, commits);
        let before = gateway.count();
        let outcome = {
            let ship = self.shipper().ship(&mut link, newest);
            tokio::pin!(ship);
            tokio::select! {
                biased;
                died = &mut death, if matches!(trouble, Trouble::DieAt(_)) => match died {
                    Ok(()) => None,
                    Err(_) => Some((&mut ship).await),
                },
                outcome = &mut ship => Some(outcome),
            }
        };
        if outcome.is_none() {
            self.kill();
        }
        drop(link);
        // What the dead agent still had on its way may arrive.
        serving.await.expect("the gateway finds nothing wrong");
        // What was written after a round is not in it.
        if gateway.count() > before && gateway.last().begin.consistency != Consistency::Unfinished {
            self.check(gateway);
        }
        outcome
    }

    /// A cycle that nothing disturbs.
    pub(super) async fn ship(&mut self, gateway: &FakeGateway) -> Shipped {
        let shipped = self.attempt(gateway, Trouble::None, Vec::new()).await;
        let shipped = shipped.expect("the agent lives").expect("the cycle is spooled");
        self.check(gateway);
        assert_eq!(gateway.newest(), Some(shipped.cycle));
        shipped
    }

    /// The gateway has what the disks hold.
    pub(super) fn check(&self, gateway: &FakeGateway) {
        let (has, wanted) = (gateway.last().disks, self.content());
        assert_eq!(has.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
        for (name, bytes) in &wanted {
            let differs = has[name].iter().zip(bytes).position(|(a, b)| a != b);
            assert_eq!((has[name].len(), differs), (bytes.len(), None), "disk {name}");
        }
    }
}
