//! A machine that follows the protocol of the agent (`agent/src/history.rs`), and remembers what its disks held at each cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use landfall_model::{Consistency, CycleId, DiskName, Extent, MachineName, Seq, Timeline, Timestamp};
use landfall_wire::{Begin, CycleDigest, Data, DiskShape, End, FromAgent, FromGateway, Hello, VERSIONS};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::dice::Dice;
use super::disk::{BLOCK, Image};
use super::host::Host;
use super::network::Link;

/// Longest wait for the answer to hello.
const ANSWER: Duration = Duration::from_secs(60);
/// Blocks in one message.
const RUN_BLOCKS: usize = 8;
/// The first moment of every simulation.
const EPOCH_MS: i64 = 1_800_000_000_000;

/// A disk and a block of it.
type Block = (usize, usize);

/// What the disks held at a cut.
#[derive(Clone)]
pub struct Cut {
    /// Which cut of the machine it was.
    pub order: u64,
    /// When it was, in the simulation.
    pub at: Instant,
    /// The disks.
    pub disks: Vec<Image>,
}

/// What a gateway said to an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// Durable on the gateway.
    Spooled,
    /// A recovery point, at this place.
    Committed(Timeline, Seq),
}

/// A cycle that a gateway spooled, and what changed since the one before.
#[derive(Clone)]
struct Kept {
    cycle: CycleId,
    changed: BTreeSet<Block>,
    disks: Vec<Image>,
}

/// The cycle whose end was perhaps heard.
#[derive(Clone)]
struct Pending {
    kept: Kept,
    full: bool,
}

/// What lies in the agent's state directory.
#[derive(Clone, Default)]
struct State {
    kept: Vec<Kept>,
    pending: Option<Pending>,
}

impl State {
    fn push(&mut self, pending: Pending) {
        if pending.full {
            self.kept.clear();
        }
        self.kept.push(pending.kept);
        self.pending = None;
    }

    fn spooled(&mut self, cycle: CycleId) {
        if let Some(pending) = self.pending.take_if(|p| p.kept.cycle == cycle) {
            self.push(pending);
        }
    }

    fn committed(&mut self, cycle: CycleId) {
        if let Some(at) = self.kept.iter().position(|k| k.cycle == cycle) {
            self.kept.drain(..at);
            self.kept[0].changed.clear();
        }
    }

    /// What to send to a gateway that ends with this cycle: its parent, and what changed between that and the newest kept one.
    fn plan(&mut self, newest: Option<CycleId>) -> Option<(CycleId, BTreeSet<Block>)> {
        let newest = newest?;
        self.spooled(newest);
        let at = self.kept.iter().position(|k| k.cycle == newest)?;
        Some((newest, self.kept[at + 1..].iter().flat_map(|k| k.changed.iter().copied()).collect()))
    }
}

/// Everything of a machine.
struct Machine {
    disks: Vec<(DiskName, Image)>,
    state: State,
    /// A copy of the state directory.
    copy: Option<State>,
    cuts: BTreeMap<CycleId, Cut>,
    said: Vec<(CycleId, Said)>,
    broken: Vec<String>,
    dice: Dice,
    /// By how many milliseconds its clock is wrong.
    clock_off: i64,
    /// Cycles taken, and those of them that sent everything.
    cycles: (u64, u64),
}

/// A machine and its agent. Clones are of the same machine.
#[derive(Clone)]
pub struct Agent {
    /// Its name.
    pub name: MachineName,
    machine: Arc<Mutex<Machine>>,
    interval: Arc<Mutex<Duration>>,
    /// Forgets to send a changed block now and then: to see that the law notices.
    forgets: bool,
    /// Where in the list of gateways it begins.
    first: Arc<Mutex<usize>>,
    quiet: Arc<AtomicBool>,
    start: Instant,
}

/// Why an attempt ended.
enum Fault {
    Link,
    Resync,
}

impl Agent {
    /// A machine with disks of these sizes that ships so often.
    ///
    /// # Panics
    /// Where the name is none.
    pub fn new(name: &str, sizes: &[usize], seed: u64, interval: Duration, forgets: bool) -> Self {
        let matter: Vec<u64> = std::iter::once(14).chain(name.bytes().map(u64::from)).collect();
        let mut dice = Dice::of(seed, &matter);
        let mut disks = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let mut image = Image::zero(*size);
            image.write(0, &dice.noise(size / 2));
            disks.push((format!("disk{number}").parse().expect("a name"), image));
        }
        let machine = Machine {
            disks,
            state: State::default(),
            copy: None,
            cuts: BTreeMap::new(),
            said: Vec::new(),
            broken: Vec::new(),
            dice,
            clock_off: 0,
            cycles: (0, 0),
        };
        Self {
            name: name.parse().expect("a name"),
            machine: Arc::new(Mutex::new(machine)),
            interval: Arc::new(Mutex::new(interval)),
            forgets,
            first: Arc::default(),
            quiet: Arc::default(),
            start: Instant::now(),
        }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().expect("nobody panics")
    }

    /// What its disks held at each cut.
    pub fn cuts(&self) -> BTreeMap<CycleId, Cut> {
        self.machine().cuts.clone()
    }

    /// The names of its disks.
    pub fn disks(&self) -> Vec<DiskName> {
        self.machine().disks.iter().map(|(name, _)| name.clone()).collect()
    }

    /// What was said to it, in order.
    pub fn said(&self) -> Vec<(CycleId, Said)> {
        self.machine().said.clone()
    }

    /// How many cycles were said to be spooled.
    pub fn spooled(&self) -> usize {
        self.machine().said.iter().filter(|(_, said)| *said == Said::Spooled).count()
    }

    /// What broke the law while it looked.
    pub fn broken(&self) -> Vec<String> {
        self.machine().broken.clone()
    }

    /// Cycles taken, and those of them that sent everything.
    pub fn cycles(&self) -> (u64, u64) {
        self.machine().cycles
    }

    /// The newest cut that was said to be committed.
    pub fn newest_committed(&self) -> Option<Cut> {
        let machine = self.machine();
        let committed = machine.said.iter().filter(|(_, said)| matches!(said, Said::Committed(..)));
        committed.filter_map(|(cycle, _)| machine.cuts.get(cycle)).max_by_key(|cut| cut.order).cloned()
    }

    /// Ships so often from now on.
    pub fn set_interval(&self, interval: Duration) {
        *self.interval.lock().expect("nobody panics") = interval;
    }

    /// Its disks do not change any more.
    pub fn rest(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// Its state directory is lost.
    pub fn lose_state(&self) {
        self.machine().state = State::default();
    }

    /// A copy of its state directory is put aside.
    pub fn copy_state(&self) {
        let mut machine = self.machine();
        machine.copy = Some(machine.state.clone());
    }

    /// The copy is put back.
    pub fn restore_state(&self) {
        let mut machine = self.machine();
        if let Some(copy) = machine.copy.clone() {
            machine.state = copy;
        }
    }

    /// It begins with another gateway.
    pub fn prefer(&self, host: usize) {
        *self.first.lock().expect("nobody panics") = host;
    }

    /// Runs until it is dropped: a killed agent is one whose future is dropped.
    pub async fn run(self, hosts: Vec<Host>, bucket: Arc<super::store::Bucket>, vault: landfall_vault::Vault) {
        let looking = Looking { agent: self.clone(), bucket, vault };
        let mut failures = 0u32;
        loop {
            let at = *self.first.lock().expect("nobody panics") % hosts.len();
            if let Some(mut link) = hosts[at].connect(&self.name)
                && self.serve(&mut link, &looking).await
            {
                failures = 0;
            }
            failures += 1;
            let (wait, turn) = {
                let dice = &mut self.machine().dice;
                let most = 1000 << failures.min(6);
                (dice.millis(most / 2, most.min(60_000)), dice.permille(600))
            };
            if turn {
                self.prefer(at + 1);
            }
            sleep(wait).await;
        }
    }

    /// Ships over a link until it ends; whether a cycle was spooled.
    async fn serve(&self, link: &mut Link, looking: &Looking) -> bool {
        let hello = Hello {
            versions: (*VERSIONS.start(), *VERSIONS.end()),
            machine: self.name.clone(),
            program: "simulated".to_owned(),
            interval_ms: 0,
        };
        if link.to.send(FromAgent::Hello(hello)).await.is_err() {
            return false;
        }
        let welcome = loop {
            match timeout(ANSWER, link.from.recv()).await {
                Ok(Some(Ok(FromGateway::Welcome(welcome)))) => break welcome,
                Ok(Some(Ok(FromGateway::Alive))) => {}
                _ => return false,
            }
        };
        let mut newest = welcome.newest;
        let mut shipped = false;
        loop {
            let plan = self.machine().state.plan(newest);
            let done = match self.cycle(link, looking, plan).await {
                Err(Fault::Resync) => self.cycle(link, looking, None).await,
                other => other,
            };
            let Ok(cycle) = done else { return shipped };
            shipped = true;
            newest = Some(cycle);
            let interval = *self.interval.lock().expect("nobody panics");
            let due = Instant::now() + interval;
            loop {
                tokio::select! {
                    () = sleep_until(due) => break,
                    said = link.from.recv() => if looking.hear(said, None).await.is_err() { return true },
                }
            }
        }
    }

    /// How long it is there.
    pub fn age(&self) -> Duration {
        self.start.elapsed()
    }

    fn time(&self, off: i64) -> Timestamp {
        let since = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_millis(EPOCH_MS + since + off)
    }

    /// Ships a cycle: everything where there is no plan.
    async fn cycle(
        &self,
        link: &mut Link,
        looking: &Looking,
        plan: Option<(CycleId, BTreeSet<Block>)>,
    ) -> Result<CycleId, Fault> {
        let (cycle, messages, pending) = self.cut(plan);
        let mut messages = messages.into_iter().peekable();
        while let Some(message) = messages.next() {
            if messages.peek().is_none() {
                self.machine().state.pending = Some(pending.clone());
            }
            loop {
                tokio::select! {
                    permit = link.to.reserve() => {
                        permit.map_err(|_| Fault::Link)?.send(message);
                        break;
                    }
                    said = link.from.recv() => {
                        if let Err(fault) = looking.hear(said, None).await {
                            if matches!(fault, Fault::Resync) {
                                let abort = FromAgent::Abort("everything will be sent".to_owned());
                                link.to.send(abort).await.map_err(|_| Fault::Link)?;
                            }
                            return Err(fault);
                        }
                    }
                }
            }
        }
        loop {
            let said = link.from.recv().await;
            if looking.hear(said, Some(cycle)).await? {
                return Ok(cycle);
            }
        }
    }

    /// Cuts: lets the machine live, and says what to send.
    fn cut(&self, plan: Option<(CycleId, BTreeSet<Block>)>) -> (CycleId, Vec<FromAgent>, Pending) {
        let mut machine = self.machine();
        let machine = &mut *machine;
        if !self.quiet.load(Ordering::Relaxed) {
            machine.disks.iter_mut().for_each(|(_, image)| image.live(&mut machine.dice));
        }
        if machine.dice.permille(20) {
            machine.clock_off = i64::try_from(machine.dice.below(7_200_000)).unwrap_or_default() - 3_600_000;
        }
        let cycle = CycleId::from_bytes(machine.dice.noise(16).try_into().expect("sixteen"));
        let mut disks: Vec<Image> = machine.disks.iter().map(|(_, image)| image.clone()).collect();
        let unfinished = !self.quiet.load(Ordering::Relaxed) && machine.dice.permille(250);
        if unfinished {
            // What is read while it is written is no state that the machine ever had. It is no cut: a point of it breaks the law.
            disks.iter_mut().for_each(|image| image.live(&mut machine.dice));
        } else {
            let order = machine.cuts.len() as u64;
            machine.cuts.insert(cycle, Cut { order, at: Instant::now(), disks: disks.clone() });
        }
        machine.cycles.0 += 1;
        machine.cycles.1 += u64::from(plan.is_none());
        let base = machine.state.kept.last().map(|k| k.disks.clone());
        let mut changed = BTreeSet::new();
        for (number, image) in disks.iter().enumerate() {
            let differs = |block: &usize| match &base {
                Some(base) => !base[number].same(image, *block),
                None => true,
            };
            changed.extend((0..image.count()).filter(differs).map(|block| (number, block)));
        }
        let full = plan.is_none();
        let mut sent: BTreeSet<Block> = match &plan {
            Some((_, extra)) => changed.union(extra).copied().collect(),
            None => disks.iter().enumerate().flat_map(|(n, image)| (0..image.count()).map(move |b| (n, b))).collect(),
        };
        if self.forgets && !full && machine.dice.permille(200) {
            sent.pop_first();
        }
        let shape = |(name, image): &(DiskName, Image)| DiskShape {
            name: name.clone(),
            size: image.size() as u64,
            sector_size: 512,
            boot: false,
            excluded: false,
            whole: full,
            source: "simulated".to_owned(),
            identity: String::new(),
        };
        let begin = Begin {
            group: None,
            shape: None,
            hooks: Vec::new(),
            cycle,
            parent: plan.map(|(parent, _)| parent),
            time: self.time(machine.clock_off),
            consistency: if unfinished { Consistency::Unfinished } else { Consistency::Crash },
            disks: machine.disks.iter().map(shape).collect(),
        };
        let mut messages = vec![FromAgent::Begin(begin)];
        let mut digest = CycleDigest::default();
        runs(&disks, &sent, full, &mut messages, &mut digest);
        messages.push(FromAgent::End(End { cycle, digest: digest.finish() }));
        (cycle, messages, Pending { kept: Kept { cycle, changed, disks }, full })
    }
}

/// What is sent of these blocks: zeroes as ranges, bytes in pieces.
fn runs(disks: &[Image], sent: &BTreeSet<Block>, full: bool, out: &mut Vec<FromAgent>, digest: &mut CycleDigest) {
    let mut blocks = sent.iter().copied().peekable();
    while let Some((disk, first)) = blocks.next() {
        let image = &disks[disk];
        let zero = image.is_zero(first);
        let mut last = first;
        while last - first < RUN_BLOCKS
            && let Some(next) = blocks.next_if(|(d, b)| *d == disk && *b == last + 1 && image.is_zero(*b) == zero)
        {
            last = next.1;
        }
        let start = (first * BLOCK) as u64;
        if zero {
            let len: usize = (first..=last).map(|block| image.len_of(block)).sum();
            let extent = Extent { start, len: len as u64 };
            // What is not sent of a whole disk is zero.
            if !full {
                digest.zero(disk, extent);
                out.push(FromAgent::Zero(disk, extent));
            }
        } else {
            let mut bytes = Vec::with_capacity((last - first + 1) * BLOCK);
            (first..=last).for_each(|block| bytes.extend_from_slice(image.block(block)));
            let data = Data { disk, start, bytes: Bytes::from(bytes) };
            digest.data(&data);
            out.push(FromAgent::Data(data));
        }
    }
}

/// Hears what gateways say, and looks at once whether it is true.
struct Looking {
    agent: Agent,
    bucket: Arc<super::store::Bucket>,
    vault: landfall_vault::Vault,
}

impl Looking {
    /// Does what a message asks for; `true` where it says that the awaited cycle is spooled.
    async fn hear(
        &self,
        said: Option<landfall_model::Result<FromGateway>>,
        awaited: Option<CycleId>,
    ) -> Result<bool, Fault> {
        let Some(Ok(message)) = said else { return Err(Fault::Link) };
        match message {
            FromGateway::Spooled(cycle) => {
                let mut machine = self.agent.machine();
                machine.said.push((cycle, Said::Spooled));
                if awaited == Some(cycle) {
                    machine.state.spooled(cycle);
                }
                Ok(awaited == Some(cycle))
            }
            FromGateway::Committed(cycle, timeline, seq) => {
                let name = landfall_vault::layout::point(self.vault.machine(&self.agent.name).id(), timeline, seq);
                let there = self.bucket.get(&name).await.is_some();
                let mut machine = self.agent.machine();
                if !there {
                    let name = &self.agent.name;
                    machine.broken.push(format!("{name}: point {seq} was said to be committed and is not there"));
                }
                machine.said.push((cycle, Said::Committed(timeline, seq)));
                // What is committed is durable, whether that was said before or not.
                if awaited == Some(cycle) {
                    machine.state.spooled(cycle);
                }
                machine.state.committed(cycle);
                Ok(awaited == Some(cycle))
            }
            FromGateway::Resync(_) => Err(Fault::Resync),
            FromGateway::Refuse(..) | FromGateway::Welcome(_) => Err(Fault::Link),
            // What a gateway may say besides.
            _ => Ok(false),
        }
    }
}
