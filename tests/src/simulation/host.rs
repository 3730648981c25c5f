//! The host of a gateway: it is started, stopped, killed, and loses its disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use landfall_gateway::{Background, Gateway, Options, Rules, State, Status};
use landfall_keys::SiteKey;
use landfall_model::{MachineName, Result};
use landfall_vault::{Store, Vault};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking, yield_now};
use tokio::time::sleep;

use super::dice::Dice;
use super::network::{self, Link, Weather};
use super::store::{Bucket, Keys, Line};

/// Between two tries to start.
const START_AGAIN: Duration = Duration::from_secs(5);
const URL: &str = "simulated://bucket";

/// A gateway that runs.
struct Running {
    gateway: Arc<Gateway>,
    background: Background,
    links: JoinSet<()>,
    cuts: Vec<(MachineName, watch::Sender<bool>)>,
}

#[derive(Default)]
struct Power {
    running: Option<Running>,
    starting: Option<JoinHandle<()>>,
}

/// A host, with the disk that its gateway's state is on.
#[derive(Clone)]
pub struct Host {
    /// Which one it is.
    pub number: u64,
    /// How it reaches the store.
    pub line: Line,
    root: PathBuf,
    spool_bytes: u64,
    seed: u64,
    power: Arc<Mutex<Power>>,
    links: Arc<AtomicU64>,
    calm: Arc<std::sync::atomic::AtomicBool>,
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a listing").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            fs::copy(path, target).expect("a copy");
        }
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort();
}

impl Host {
    /// A host that is off, with an empty disk.
    pub fn new(number: u64, seed: u64, bucket: Arc<Bucket>, folder: &Path, spool_bytes: u64) -> Self {
        Self {
            number,
            line: Line::new(bucket, number),
            root: folder.join(format!("gateway-{number}")),
            spool_bytes,
            seed,
            power: Arc::default(),
            links: Arc::default(),
            calm: Arc::default(),
        }
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        self.power.lock().expect("nobody panics")
    }

    fn state(&self) -> Result<State> {
        let site = SiteKey::read(&Keys::get().site)?;
        State::open(&self.root, site.vault_id())
    }

    async fn open(&self) -> Result<Gateway> {
        let site = SiteKey::read(&Keys::get().site)?;
        let state = State::open(&self.root, site.vault_id())?;
        let store = Store::over(Arc::new(self.line.clone()), object_store::path::Path::default(), URL);
        // The probe is tested elsewhere.
        state.set_probed(URL)?;
        let vault = Vault::open_with_site_key(store, site).await?;
        let domain = "default".parse().expect("a name");
        let options = Options {
            domain,
            spool_bytes: self.spool_bytes,
            rules: Rules::default(),
            names: Vec::new(),
            groups: Vec::new(),
        };
        Gateway::open(vault, state, &options).await
    }

    /// Starts the gateway, as a service manager does: again and again until it runs.
    pub fn start(&self) {
        let host = self.clone();
        let starting = tokio::spawn(async move {
            loop {
                match host.open().await {
                    Ok(gateway) => {
                        let gateway = Arc::new(gateway);
                        let background = gateway.start();
                        let running = Running { gateway, background, links: JoinSet::new(), cuts: Vec::new() };
                        host.power().running = Some(running);
                        return;
                    }
                    Err(error) => tracing::info!(%error, gateway = host.number, "it does not start"),
                }
                sleep(START_AGAIN).await;
            }
        });
        self.power().starting = Some(starting);
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.power().starting.is_some()
    }

    /// From now on its links are good.
    pub fn heal(&self) {
        self.calm.store(true, Ordering::Relaxed);
        self.line.set_cut(false);
        self.line.set_asleep(false);
    }

    /// A link of an agent, where the gateway runs.
    pub fn connect(&self, machine: &MachineName) -> Option<Link> {
        let mut power = self.power();
        let Running { gateway, links, cuts, .. } = power.running.as_mut()?;
        while links.try_join_next().is_some() {}
        cuts.retain(|(_, cut)| cut.receiver_count() > 0);
        let cut = watch::channel(false).0;
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let dice = Dice::of(self.seed, &[13, self.number, number]);
        let weather = Weather { dice, calm: self.calm.load(Ordering::Relaxed) };
        let link = network::connect(gateway, links, machine, &cut, weather);
        cuts.push((machine.clone(), cut));
        Some(link)
    }

    /// Cuts the links of a machine, or all.
    pub fn cut(&self, machine: Option<&MachineName>) {
        let power = self.power();
        for (name, cut) in power.running.iter().flat_map(|running| &running.cuts) {
            if machine.is_none_or(|machine| machine == name) {
                cut.send_replace(true);
            }
        }
    }

    /// Power is lost: all its tasks end where they wait. What it sent may still arrive.
    ///
    /// # Panics
    /// Where a task of it does not end.
    pub async fn kill(&self) {
        let power = std::mem::take(&mut *self.power());
        if let Some(starting) = power.starting {
            starting.abort();
            let _ = starting.await;
        }
        if let Some(running) = power.running.or_else(|| self.power().running.take()) {
            let gone = Arc::downgrade(&running.gateway);
            drop(running);
            Self::settled(&gone).await;
        }
    }

    /// Stops it in order: links end, machines are given back.
    pub async fn stop(&self) {
        self.cut(None);
        let power = std::mem::take(&mut *self.power());
        if let Some(starting) = power.starting {
            starting.abort();
            let _ = starting.await;
        }
        let Some(running) = power.running.or_else(|| self.power().running.take()) else { return };
        let Running { gateway, background, mut links, .. } = running;
        while links.join_next().await.is_some() {}
        gateway.stop(background).await;
        let gone = Arc::downgrade(&gateway);
        drop(gateway);
        Self::settled(&gone).await;
    }

    /// Waits until nothing is left of a gateway, and what its threads had begun is done.
    async fn settled(gone: &Weak<Gateway>) {
        for _ in 0..1000 {
            yield_now().await;
            // There is one such thread: what it was given before is done.
            spawn_blocking(|| {}).await.expect("it returns");
            if gone.strong_count() == 0 {
                yield_now().await;
                return;
            }
        }
        panic!("tasks of a gateway that was killed do not end");
    }

    /// Its disk is lost.
    pub fn lose_disk(&self) {
        let _ = fs::remove_dir_all(&self.root);
    }

    fn aside(&self) -> PathBuf {
        self.root.with_extension("aside")
    }

    /// A copy of its disk is put aside.
    pub fn copy_disk(&self) {
        let _ = fs::remove_dir_all(self.aside());
        if self.root.exists() {
            copy_tree(&self.root, &self.aside());
        }
    }

    /// The copy of its disk is put back: an old snapshot of a virtual machine.
    pub fn restore_disk(&self) {
        if self.aside().exists() {
            self.lose_disk();
            copy_tree(&self.aside(), &self.root);
        }
    }

    /// The files of the spool.
    ///
    /// # Panics
    /// Where there is no state directory.
    pub fn spooled(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        files(&self.state().expect("a state directory").spool_path(), &mut found);
        found
    }

    /// A file of the spool is damaged, cut short, or gone.
    ///
    /// # Panics
    /// Where the file cannot be written.
    pub fn damage_spool(&self, dice: &mut Dice) {
        let files = self.spooled();
        if files.is_empty() {
            return;
        }
        let file = &files[dice.below(files.len())];
        let mut bytes = fs::read(file).expect("its bytes");
        match dice.below(3) {
            0 => return drop(fs::remove_file(file)),
            1 => bytes.truncate(dice.below(bytes.len())),
            _ if bytes.is_empty() => {}
            _ => {
                let at = dice.below(bytes.len());
                bytes[at] ^= 1;
            }
        }
        fs::write(file, bytes).expect("a write");
    }

    /// Leaves beside the files of the spool what a write leaves that was not finished.
    ///
    /// # Panics
    /// Where no file can be made.
    pub fn leave_halves(&self, dice: &mut Dice) {
        for file in self.spooled() {
            let aside = if file.to_string_lossy().contains("/points/") { ".new" } else { "#1" };
            let mut name = file.into_os_string();
            name.push(aside);
            fs::write(name, dice.noise(100)).expect("a file");
        }
    }

    /// What it says of itself, where it has said something.
    pub fn status(&self) -> Option<Status> {
        Status::read(&self.state().ok()?.status_path()).ok()
    }

    /// An operator asks for a full comparison.
    ///
    /// # Panics
    /// Where the state directory cannot be written.
    pub fn ask_resync(&self, machine: &MachineName) {
        let registry = landfall_gateway::Registry::open(self.state().expect("a state").agents_path());
        registry.and_then(|r| r.ask_resync(machine)).expect("asked");
    }
}
