//! Who does what when: agents ship, gateways die, the store is down, and at last everything is well again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use landfall_keys::SiteKey;
use landfall_vault::{Store, Vault};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::agent::Agent;
use super::dice::Dice;
use super::host::Host;
use super::law::{self, Looked};
use super::store::{Bucket, Keys, Kind, Lie};

/// A bug that is put in from outside: the law must see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// Of the store.
    Lie(Lie),
    /// An agent does not send every block that changed.
    Forgets,
}

/// What a simulation is of.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Of everything that is thrown.
    pub seed: u64,
    /// Gateways of the site.
    pub gateways: u64,
    /// How long things go wrong.
    pub trouble: Duration,
    /// Mean time between two things that go wrong.
    pub every: Duration,
    /// Most bytes of objects in a spool.
    pub spool_bytes: u64,
    /// What is wrong with the world itself.
    pub plant: Option<Plant>,
}

/// How long machines may need, once all is well, until their newest cut is a point.
const HEALING_MAX: Duration = Duration::from_secs(3 * 3600);

impl Scenario {
    /// What a seed makes of everything.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::of(seed, &[15]);
        Self {
            seed,
            gateways: dice.within(1, 2),
            trouble: Duration::from_secs(dice.within(120, 1500)),
            every: Duration::from_secs(dice.within(8, 60)),
            spool_bytes: [64 << 20, 64 << 20, 3 << 20][dice.below(3)],
            plant: None,
        }
    }

    /// The same with a bug in it.
    #[must_use]
    pub fn with(mut self, plant: Plant) -> Self {
        if plant == Plant::Lie(Lie::Overwrites) {
            // One alone overwrites nothing.
            self.gateways = 2;
        }
        self.plant = Some(plant);
        self
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Outcome {
    /// What the law looked at.
    pub looked: Looked,
    /// Cycles that agents began, and those of them that sent everything.
    pub cycles: (u64, u64),
    /// Requests at the store.
    pub requests: u64,
    /// Time that went by in the simulation.
    pub simulated: Duration,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, other: Self) {
        self.looked.points += other.looked.points;
        self.looked.chunks += other.looked.chunks;
        self.looked.segments += other.looked.segments;
        self.looked.takeovers += other.looked.takeovers;
        self.looked.superseded += other.looked.superseded;
        self.cycles.0 += other.cycles.0;
        self.cycles.1 += other.cycles.1;
        self.requests += other.requests;
        self.simulated += other.simulated;
    }
}

/// Machines, gateways and a store.
pub struct World {
    /// Its gateways.
    pub hosts: Vec<Host>,
    /// Its machines.
    pub agents: Vec<Agent>,
    /// Its store.
    pub bucket: Arc<Bucket>,
    running: Vec<Option<JoinHandle<()>>>,
    vault: Vault,
    dice: Dice,
    _folder: tempfile::TempDir,
}

/// A folder where syncing costs nothing, if the host has one.
fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder")
}

/// Runs something with a clock that nobody waits for.
///
/// # Panics
/// Where there is no runtime.
pub fn simulated<T>(work: impl Future<Output = T>) -> T {
    // Before the runtime: making them needs one too.
    Keys::get();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // One thread for what blocks: it does things in their order.
    let runtime = builder.enable_all().start_paused(true).max_blocking_threads(1).build().expect("a runtime");
    runtime.block_on(work)
}

/// Panics of any thread of this process since this was called first: one of a task that nobody waits for is heard of here only.
pub fn panics() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
    COUNT.load(Ordering::Relaxed)
}

/// Runs a scenario and looks at what is left.
///
/// # Errors
/// What broke the law.
pub fn run(scenario: &Scenario) -> Result<Outcome, String> {
    simulated(async {
        let mut world = World::new(scenario).await;
        world.trouble(scenario).await;
        world.heal().await?;
        world.end().await
    })
}

impl World {
    /// Everything is on.
    ///
    /// # Panics
    /// Where the keys of the golden vault do not open the vault that was made of them.
    pub async fn new(scenario: &Scenario) -> Self {
        let seed = scenario.seed;
        let folder = folder();
        let lie = match scenario.plant {
            Some(Plant::Lie(lie)) => Some(lie),
            _ => None,
        };
        let bucket = Bucket::new(seed, lie, &Keys::get().objects).await;
        let forgets = scenario.plant == Some(Plant::Forgets);
        let mut dice = Dice::of(seed, &[16]);
        let sizes: [&[usize]; 3] = [&[4_300_800], &[1 << 20, 300_032], &[700_000]];
        let mut agents = Vec::new();
        for (name, sizes) in ["web", "db", "log"].iter().zip(sizes) {
            agents.push(Agent::new(name, sizes, seed, dice.millis(5_000, 90_000), forgets));
        }
        let host = |number| Host::new(number, seed, bucket.clone(), folder.path(), scenario.spool_bytes);
        let hosts: Vec<Host> = (0..scenario.gateways).map(host).collect();
        let store = Store::over(bucket.objects(), object_store::path::Path::default(), "simulated://bucket");
        let site = SiteKey::read(&Keys::get().site).expect("a site key");
        let vault = Vault::open_with_site_key(store, site).await.expect("the vault opens");
        let running = agents.iter().map(|_| None).collect();
        let mut world = Self { hosts, agents, bucket, running, vault, dice, _folder: folder };
        world.hosts.iter().for_each(Host::start);
        for number in 0..world.agents.len() {
            world.start_agent(number);
        }
        world
    }

    /// An agent runs from now on.
    pub fn start_agent(&mut self, number: usize) {
        let agent = self.agents[number].clone();
        let running = agent.run(self.hosts.clone(), self.bucket.clone(), self.vault.clone());
        self.running[number] = Some(tokio::spawn(running));
    }

    /// An agent is killed.
    pub async fn kill_agent(&mut self, number: usize) {
        if let Some(running) = self.running[number].take() {
            running.abort();
            let _ = running.await;
        }
    }

    /// Things go wrong for a while.
    pub async fn trouble(&mut self, scenario: &Scenario) {
        let end = Instant::now() + scenario.trouble;
        let most = u64::try_from(scenario.every.as_millis() * 2).unwrap_or(u64::MAX);
        while Instant::now() < end {
            let wait = self.dice.millis(500, most);
            sleep(wait).await;
            self.mishap().await;
        }
    }

    /// Something goes wrong, or ends going wrong.
    async fn mishap(&mut self) {
        let host = self.dice.below(self.hosts.len());
        let agent = self.dice.below(self.agents.len());
        let what = self.dice.below(100);
        tracing::debug!(what, host, agent, "mishap");
        match what {
            0..22 => self.kill_host(host).await,
            22..28 => {
                self.hosts[host].stop().await;
                self.pause(30_000).await;
                self.hosts[host].start();
            }
            28..36 => {
                self.bucket.set_down(true);
                let bucket = self.bucket.clone();
                self.later(400_000, move || bucket.set_down(false));
            }
            36..42 => {
                self.hosts[host].line.set_cut(true);
                let line = self.hosts[host].line.clone();
                self.later(120_000, move || line.set_cut(false));
            }
            42..54 => self.sleep_host(host).await,
            54..66 => {
                let name = self.agents[agent].name.clone();
                self.hosts[host].cut(Some(&name));
            }
            66..70 => self.hosts[host].cut(None),
            70..80 => self.kill_some_agent(agent).await,
            80..84 => self.hosts[host].copy_disk(),
            84..87 => self.agents[agent].copy_state(),
            87..91 => {
                let name = self.agents[agent].name.clone();
                self.hosts[host].ask_resync(&name);
            }
            _ => {
                let other = self.dice.below(self.hosts.len());
                self.agents[agent].prefer(other);
                self.hosts[host].cut(None);
            }
        }
    }

    async fn pause(&mut self, most_ms: u64) {
        let wait = self.dice.millis(10, most_ms);
        sleep(wait).await;
    }

    /// A gateway dies, and something may happen to its disk before it is started again.
    async fn kill_host(&mut self, number: usize) {
        let host = self.hosts[number].clone();
        match self.dice.below(4) {
            0 => host.line.on_its_way(Kind::Point).await,
            1 => host.line.on_its_way(Kind::Object).await,
            2 => host.line.on_its_way(Kind::Any).await,
            _ => {}
        }
        self.pause(50).await;
        host.kill().await;
        let dice = &mut self.dice;
        match dice.below(20) {
            0..2 => host.lose_disk(),
            2..4 => host.restore_disk(),
            4..7 => host.damage_spool(dice),
            7..10 => host.leave_halves(dice),
            _ => {}
        }
        if dice.permille(300) {
            self.pause(60_000).await;
        }
        host.start();
    }

    /// A gateway sleeps: its links are dead, and what it sent to the store goes on when it wakes.
    async fn sleep_host(&mut self, number: usize) {
        let host = self.hosts[number].clone();
        // Above all with a commit that was sent: when it arrives, another gateway may have taken its number.
        if self.dice.permille(700) {
            host.line.on_its_way(Kind::Point).await;
        }
        host.line.set_asleep(true);
        host.cut(None);
        for agent in &self.agents {
            agent.prefer(number + 1);
        }
        self.later(90_000, move || host.line.set_asleep(false));
    }

    /// Does something after a while; other things happen meanwhile.
    fn later(&mut self, most_ms: u64, what: impl FnOnce() + Send + 'static) {
        let wait = self.dice.millis(10, most_ms);
        tokio::spawn(async move {
            sleep(wait).await;
            what();
        });
    }

    async fn kill_some_agent(&mut self, number: usize) {
        self.kill_agent(number).await;
        match self.dice.below(8) {
            0 => self.agents[number].lose_state(),
            1 => self.agents[number].restore_state(),
            _ => {}
        }
        self.pause(20_000).await;
        self.start_agent(number);
    }

    /// All is well again: every machine's newest cut becomes a point.
    ///
    /// # Errors
    /// Where it does not within three hours.
    pub async fn heal(&mut self) -> Result<(), String> {
        self.bucket.heal();
        for host in &self.hosts {
            host.heal();
            if !host.is_on() {
                host.start();
            }
        }
        let healed = Instant::now();
        for agent in &self.agents {
            agent.set_interval(Duration::from_secs(20));
        }
        let last = |agent: &Agent| agent.newest_committed().is_some_and(|cut| cut.at > healed);
        while !self.agents.iter().all(last) {
            if healed.elapsed() > HEALING_MAX {
                let late: Vec<String> = self.agents.iter().filter(|a| !last(a)).map(|a| a.name.to_string()).collect();
                return Err(format!("three hours after all was well nothing of {late:?} is committed"));
            }
            sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// Everything ends, and the law is asked.
    ///
    /// # Errors
    /// What broke it.
    pub async fn end(&mut self) -> Result<Outcome, String> {
        for number in 0..self.agents.len() {
            self.kill_agent(number).await;
        }
        for host in &self.hosts {
            host.kill().await;
        }
        let cycles = self.agents.iter().map(Agent::cycles).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        let simulated = self.agents[0].age();
        let looked = law::check(&self.bucket, &self.agents).await?;
        Ok(Outcome { looked, cycles, requests: self.bucket.requests(), simulated })
    }
}
