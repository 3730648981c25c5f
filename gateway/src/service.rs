//! The gateway as a service: agents' links to the owners of their machines, and the uploads that all of them share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use landfall_model::{DomainName, Error, ErrorKind, MachineName, Outcome, Result};
use landfall_vault::{DedupIndex, Heartbeat, Vault, crash_point, layout, now};
use landfall_wire::pki::Authority;
use landfall_wire::server::{Limits, Service, alive_while};
use landfall_wire::{FromAgent, FromGateway, Incoming, Peer, Welcome, choose_version};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};

use crate::config::GatewayConfig;
use crate::flow::Flows;
use crate::groups::{GroupConfig, Groups};
use crate::holds::{Holds, Room};
use crate::listing::Listing;
use crate::orders::Orders;
use crate::owner::{Event, LARGE_CYCLES, Owner, Refused, Shared};
use crate::pipeline::Workers;
use crate::rate::Rate;
use crate::registry::Registry;
use crate::renewal::Renewal;
use crate::replicate::probe;
use crate::resync::Resync;
use crate::revoked::share_revocations;
use crate::rules::Rules;
use crate::spool::Spool;
use crate::state::{Lock, State};
use crate::status::{Board, MachineStatus, Status};
use crate::tasks::Tasks;
use crate::upload::{UPLOADS_IN_FLIGHT, put_object};
use crate::webhook::Notifier;

/// Waits after an upload that failed for a reason that may pass: the table of row F7 begins with shorter ones, and the store is asked
/// again at once when another upload works.
const UPLOAD_RETRY: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(240),
    Duration::from_secs(600),
];
/// How long a new link waits for the one before it of the same machine to end.
const LINK_WAIT_MAX: Duration = Duration::from_secs(45);
/// A machine without a link is given back after so long, so that its agent may go to another gateway.
const RELEASE_AFTER: Duration = Duration::from_secs(5);
/// When the gateway stops, its machines are given back for so long; then it ends. Another gateway waits for the heartbeat to run out.
const GIVE_BACK_MAX: Duration = Duration::from_secs(5);
/// How often a machine is tried to be taken of which something is spooled.
const TAKE_UP_RETRY: Duration = Duration::from_secs(30);
/// How often the files of the registry are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often revocations are looked for in the vault: one listing of a folder that has one object for each.
const SHARE_EVERY: Duration = Duration::from_secs(30);
/// How long an enrolment waits for that.
const SHARE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Certificates of agents are valid for so long; they are renewed after two thirds of it.
const CERTIFICATE_VALID: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a gateway is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The dedup domain of its machines.
    pub domain: DomainName,
    /// Most bytes of objects in the spool.
    pub spool_bytes: u64,
    /// What may change while it runs.
    pub rules: Rules,
    /// Host names and addresses in its certificate.
    pub names: Vec<String>,
    /// Machines whose points are of one moment.
    pub groups: Vec<GroupConfig>,
}

/// One machine: its owner while this gateway writes it.
#[derive(Default)]
struct Slot {
    owner: tokio::sync::Mutex<Option<Owner>>,
}

/// What a gateway does beside its links. Dropped, it ends at once, as in a crash; [`Gateway::stop`] ends it in order.
pub struct Background {
    ending: watch::Sender<bool>,
    tasks: [AbortOnDrop; 5],
}

/// A gateway that serves agents. What it began in the background ends with it.
pub struct Gateway {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    slots: Mutex<HashMap<MachineName, Arc<Slot>>>,
    board: Arc<Board>,
    _renewal: Renewal,
    rules: watch::Sender<Arc<Rules>>,
    holds: Arc<Holds>,
    groups: Arc<Groups>,
    orders: Arc<Orders>,
    _lock: Lock,
}

impl Gateway {
    /// Opens the state directory, the index and the spool.
    ///
    /// # Errors
    /// `Conflict` where another landfall uses the state directory, `Unsupported` where the store lacks what is needed, `Unavailable`.
    pub async fn open(vault: Vault, state: State, options: &Options) -> Result<Self> {
        let lock = state.lock().await?;
        probe(&vault, &state).await?;
        let index = Arc::new(RwLock::new(DedupIndex::open(&state.index_path())?));
        let spool = Arc::new(Spool::open(&state.spool_path(), options.spool_bytes, &vault, &index)?);
        let heartbeat = Heartbeat::new(&vault, state.gateway_id()?);
        let renewal = Renewal::start(heartbeat.clone());
        let registry = Arc::new(Registry::open(state.agents_path())?);
        share(&vault, &registry).await;
        let authority = Arc::new(Authority::from_seed(vault.site().agent_authority_seed().as_bytes())?);
        let board = Arc::new(Board::new(state.status_path(), options.spool_bytes, &options.groups));
        let rules = watch::Sender::new(Arc::new(options.rules.clone()));
        let shared = Arc::new(Shared {
            vault,
            state,
            domain: options.domain.clone(),
            spool,
            index,
            workers: Arc::new(Workers::new()),
            rate: Arc::new(Rate::new(options.rules.upload_rate(now()))),
            flows: Flows::new(rules.subscribe()),
            epoch: Mutex::default(),
            large: Arc::new(tokio::sync::Semaphore::new(LARGE_CYCLES)),
            heads: Mutex::default(),
            heartbeat,
            listing: Listing::default(),
            tasks: Tasks::default(),
        });
        let (holds, groups) = (Arc::new(Holds::default()), Arc::new(Groups::new(&options.groups)));
        let orders = Arc::new(Orders::new(shared.vault.clone(), groups.clone()));
        let slots = Mutex::default();
        let gateway = Self {
            shared,
            registry,
            authority,
            slots,
            board,
            holds,
            groups,
            orders,
            rules,
            _renewal: renewal,
            _lock: lock,
        };
        // Before the first agent asks.
        gateway.look_at_room();
        Ok(gateway)
    }

    /// Serves agents at `listener`, and metrics where they are wanted, until `stop` is ready; then links end, and what is spooled stays for the
    /// next run.
    ///
    /// # Errors
    /// `Usage` where a name is none.
    pub async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        metrics: Option<TcpListener>,
        options: &Options,
        limits: Limits,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let background = self.start();
        let (board, spool, ended) = (self.board.clone(), self.shared.spool.clone(), background.ending.subscribe());
        let metrics = metrics.map(|listener| tokio::spawn(crate::metrics::serve(listener, board, spool, ended)));
        let served =
            landfall_wire::server::serve(listener, self.authority.clone(), &options.names, self.clone(), limits, stop);
        let outcome = served.await;
        self.stop(background).await;
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        outcome
    }

    /// Begins what a gateway does beside its links: uploads, the look at what other commands wrote, revocations of other gateways, and commits of
    /// what an earlier run spooled. [`Self::run`] does so itself; whoever brings links in another way (each a [`Service::ship`]) begins here.
    pub fn start(self: &Arc<Self>) -> Background {
        let (ending, ended) = watch::channel(false);
        let uploads = tokio::spawn(upload(self.shared.clone(), self.board.clone(), ended.clone()));
        let looks = tokio::spawn(self.clone().look(ended.clone()));
        let shares =
            tokio::spawn(share_again_and_again(self.shared.vault.clone(), self.registry.clone(), ended.clone()));
        let orders = tokio::spawn(self.orders.clone().run(ended.clone()));
        let cuts = tokio::spawn(self.groups.clone().run(self.holds.clone(), self.board.clone(), ended));
        self.take_up_spooled();
        let tasks = [uploads, looks, shares, orders, cuts];
        Background { ending, tasks: tasks.map(AbortOnDrop) }
    }

    /// Gives all machines back and ends what [`Self::start`] began. Links must have ended.
    pub async fn stop(&self, background: Background) {
        background.ending.send_replace(true);
        if tokio::time::timeout(GIVE_BACK_MAX, self.give_back()).await.is_err() {
            tracing::warn!(
                "the store does not answer: the machines are not given back, and other gateways wait for the heartbeat to run out"
            );
        }
        for mut task in background.tasks {
            let _ = (&mut task.0).await;
        }
    }

    /// Gives all machines back but those of which something waits in the spool: others wait for these, as for those of a gateway that died,
    /// because its next run is the one that can commit what waits.
    async fn give_back(&self) {
        let slots: Vec<Arc<Slot>> = self.slots().values().cloned().collect();
        let mut waiting = Vec::new();
        for slot in slots {
            waiting.extend(slot.owner.lock().await.take().filter(Owner::is_waiting));
        }
        let heartbeat = &self.shared.heartbeat;
        if let Err(error) = heartbeat.renew().await {
            tracing::warn!(%error, "the machines were not given back: another gateway waits for them");
        }
    }

    /// Has a configuration that was read anew, as far as it can change while the gateway runs: it was started with `running`. What became of it
    /// stands in the status and in the log.
    pub fn reload(&self, running: &GatewayConfig, read: Result<GatewayConfig>) {
        let taken = self.board.configuration(|configuration| configuration.again(running, read));
        if let Some(newer) = taken {
            self.rules.send_replace(Arc::new(newer.rules));
            self.keep_to_rules();
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<MachineName, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits what an earlier run spooled, whether its agents come back or not.
    fn take_up_spooled(&self) {
        let vault = &self.shared.vault;
        for machine in self.shared.spool.machines().unwrap_or_default() {
            let machine = vault.machine_by_id(machine);
            let points = self.shared.spool.points_of(machine.id()).unwrap_or_default();
            let Some(first) = points.into_iter().find_map(|p| machine.open_signed(p.bytes).ok()) else { continue };
            let name = first.point.meta().machine.clone();
            let slot = self.slot(&name);
            let (shared, board) = (self.shared.clone(), self.board.clone());
            self.shared.tasks.spawn(async move {
                loop {
                    let mut owner = slot.owner.lock().await;
                    if owner.is_some() {
                        return;
                    }
                    match open(shared.clone(), board.clone(), &name).await {
                        Ok(open) => {
                            *owner = Some(open);
                            drop(owner);
                            return release(slot).await;
                        }
                        Err(error) => tracing::warn!(%error, machine = %name, "what is spooled of it waits"),
                    }
                    drop(owner);
                    tokio::time::sleep(TAKE_UP_RETRY).await;
                }
            });
        }
    }

    fn slot(&self, machine: &MachineName) -> Arc<Slot> {
        self.slots().entry(machine.clone()).or_default().clone()
    }

    async fn link(
        &self,
        owner: &mut Owner,
        from: &mut Incoming<FromAgent>,
        to: &mpsc::Sender<FromGateway>,
        machine: &MachineName,
        welcome: Welcome,
    ) -> Result<()> {
        let told = AbortOnDrop(tokio::spawn(tell(owner.events(), to.clone())));
        let (member, orders) = self.groups.join(machine, welcome.version);
        let (holds, to_agent, name) = (self.holds.clone(), to.clone(), machine.clone());
        let _orders = AbortOnDrop(tokio::spawn(async move { holds.tell(&name, welcome.held, orders, to_agent).await }));
        let mut skipping = false;
        let mut resync = Resync::new(self.rules.subscribe(), &self.registry, machine);
        loop {
            let message = tokio::select! {
                message = from.next() => message?,
                () = resync.until_changed(), if resync.waits() => {
                    self.want_all(&mut resync, true, "it waited for this", to, machine).await?;
                    continue;
                }
            };
            match message {
                None => break,
                Some(FromAgent::Ask(why)) => {
                    self.want_all(&mut resync, owner.has_points(), &why, to, machine).await?;
                }
                Some(FromAgent::Begin(begin)) => {
                    skipping = false;
                    let (time, full, has_points) = (begin.time, begin.parent.is_none(), owner.has_points());
                    let mark = member.mark(&begin);
                    resync.begins();
                    let in_flight = self.shared.flows.of(machine).begins(&begin);
                    let taken = if full && let Some(why) = resync.must_wait(has_points) {
                        Err(Refused::Error(Error::new(ErrorKind::Unavailable, why)))
                    } else if !full && mark.is_none() && resync.is_asked() {
                        // What the vault has lost is to be known to be gone.
                        self.shared.listing.expire();
                        Err(Refused::Resync("an operator asked for a full comparison".to_owned()))
                    } else {
                        self.board.change(machine, |m| m.resyncs += u64::from(full && has_points));
                        owner.cycle(begin, mark, from).await
                    };
                    match taken {
                        Ok(taken) => {
                            member.done(Ok(()));
                            if full {
                                resync.done();
                            }
                            let (began, bytes) = in_flight.so_far();
                            self.board.change(machine, |m| m.spooled(time, began, bytes, taken.became));
                            say(to, FromGateway::Spooled(taken.cycle)).await?;
                        }
                        Err(Refused::Resync(why)) => {
                            member.done(Err(format!("everything must be sent: {why}")));
                            self.want_all(&mut resync, has_points, &why, to, machine).await?;
                            skipping = true;
                        }
                        Err(Refused::Error(error)) => {
                            member.done(Err(error.to_string()));
                            self.board.change(machine, |m| m.failed(error.to_string(), false));
                            return Err(error);
                        }
                    }
                }
                Some(FromAgent::Alive) => say(to, FromGateway::Alive).await?,
                Some(message @ (FromAgent::Ready(_) | FromAgent::Frozen(_) | FromAgent::Unready(..))) => {
                    member.said(message);
                }
                Some(FromAgent::Answer(id, outcome)) => {
                    if let Outcome::Done { cycle: Some(cycle), .. } = &outcome {
                        owner.keep(*cycle);
                    }
                    self.orders.answered(machine, id, outcome);
                }
                // What was on its way when a cycle was refused.
                Some(_) if skipping => {}
                Some(_) => return Err(Error::corrupt("the agent sent a part of a cycle that it did not begin")),
            }
        }
        drop(told);
        Ok(())
    }

    /// Tells an agent to send everything, or to wait until it may.
    async fn want_all(
        &self,
        resync: &mut Resync<'_>,
        has_points: bool,
        why: &str,
        to: &mpsc::Sender<FromGateway>,
        machine: &MachineName,
    ) -> Result<()> {
        let waits = resync.must_wait(has_points);
        tracing::info!(%machine, why, waits, "resync");
        self.board.change(machine, |m| m.waits = waits.clone());
        let answer = waits.map_or_else(|| FromGateway::Resync(why.to_owned()), FromGateway::Wait);
        say(to, answer).await
    }
}

/// Gives a machine back that has no link and nothing spooled.
async fn release(slot: Arc<Slot>) {
    loop {
        tokio::time::sleep(RELEASE_AFTER).await;
        // A link holds the lock while it lasts.
        let Ok(mut owner) = slot.owner.try_lock() else { return };
        if owner.as_ref().is_some_and(Owner::is_waiting) {
            continue;
        }
        *owner = None;
        return;
    }
}

/// Opens the owner of a machine, and tells the board of it from then on.
async fn open(shared: Arc<Shared>, board: Arc<Board>, machine: &MachineName) -> Result<Owner> {
    let (owner, events) = Owner::open(shared.clone(), machine).await?;
    let (committed, waiting) = owner.taken_up();
    board.change(machine, |m| m.taken_up(committed, waiting));
    shared.tasks.spawn(follow(events, board, machine.clone()));
    Ok(owner)
}

/// Ends a task when the link ends.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn say(to: &mpsc::Sender<FromGateway>, message: FromGateway) -> Result<()> {
    to.send(message).await.map_err(|_| Error::new(ErrorKind::Unavailable, "the link is lost"))
}

/// Tells an agent what becomes of its points.
async fn tell(mut events: broadcast::Receiver<Event>, to: mpsc::Sender<FromGateway>) {
    loop {
        let message = match events.recv().await {
            Ok(Event::Committed(Some(cycle), timeline, seq, _)) => FromGateway::Committed(cycle, timeline, seq),
            Ok(Event::Failed(_, why, false)) => FromGateway::Refuse(ErrorKind::Conflict.exit_code(), why),
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if to.send(message).await.is_err() {
            return;
        }
    }
}

/// Keeps what the board says of a machine true, with a link or without.
async fn follow(mut events: broadcast::Receiver<Event>, board: Arc<Board>, machine: MachineName) {
    loop {
        match events.recv().await {
            Ok(Event::Committed(_, _, seq, time)) => board.change(&machine, |m| m.committed(seq, time)),
            Ok(Event::Failed(kind, why, again)) => {
                // Tried again, and waiting alone does not mend it: credentials, a full bucket.
                let needs_somebody = matches!(kind, ErrorKind::Usage | ErrorKind::Key | ErrorKind::NoSpace);
                board.change(&machine, |m| {
                    m.failed(why, !again || needs_somebody);
                    if !again {
                        m.lost();
                    }
                });
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

impl Service for Gateway {
    async fn ship(&self, peer: Peer, mut from: Incoming<FromAgent>, to: mpsc::Sender<FromGateway>) -> Result<()> {
        let Some(FromAgent::Hello(hello)) = from.next().await? else {
            return Err(Error::corrupt("the agent did not say who it is"));
        };
        let version = choose_version(hello.versions).ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "agent and gateway have no version of the protocol in common: update the older",
            )
        })?;
        let machine = peer.machine;
        let slot = self.slot(&machine);
        let busy = || Error::new(ErrorKind::Unavailable, "another link of this machine is open; try again");
        let waited = alive_while(&to, tokio::time::timeout(LINK_WAIT_MAX, slot.owner.lock())).await;
        let mut owner = waited.map_err(|_| busy())?;
        if owner.as_ref().is_some_and(|o| !o.is_alive()) {
            *owner = None;
        }
        let opened = match owner.take() {
            Some(opened) => opened,
            None => alive_while(&to, open(self.shared.clone(), self.board.clone(), &machine)).await?,
        };
        let opened = owner.insert(opened);
        self.board.change(&machine, |m| m.linked(hello.interval_ms));
        let held = self.holds.reason(&machine);
        let welcome = Welcome { version, newest: opened.newest_cycle(), held };
        say(&to, FromGateway::Welcome(welcome.clone())).await?;
        let outcome = self.link(opened, &mut from, &to, &machine, welcome).await;
        self.board.change(&machine, MachineStatus::unlinked);
        drop(owner);
        self.shared.tasks.spawn(release(slot));
        outcome
    }

    async fn enroll(&self, address: SocketAddr, token_secret: [u8; 16], csr: Vec<u8>) -> Result<Vec<u8>> {
        let machine = self.registry.use_token(&token_secret)?;
        tracing::info!(%machine, %address, "a machine enrolled");
        // It is of after every revocation, also of one that somebody said elsewhere a moment ago.
        let _ = tokio::time::timeout(SHARE_WAIT_MAX, share(&self.shared.vault, &self.registry)).await;
        self.authority.sign_agent(&csr, &machine, self.registry.enrolment(&machine), CERTIFICATE_VALID)
    }

    async fn renew(&self, peer: Peer, csr: Vec<u8>) -> Result<Vec<u8>> {
        // Of the same enrolment: whatever is revoked of it stays so, even where this gateway has not heard yet.
        self.authority.sign_agent(&csr, &peer.machine, peer.enrolled, CERTIFICATE_VALID)
    }

    fn is_revoked(&self, peer: &Peer) -> bool {
        self.registry.is_revoked(&peer.machine, peer.enrolled)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.tasks.end();
    }
}

impl Gateway {
    /// Looks each second at what other commands wrote beside a running gateway and at the clock, and writes the status.
    async fn look(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        let mut notifier = None;
        loop {
            if let Err(error) = self.registry.look() {
                tracing::warn!(%error, "revocations, or paused machines, cannot be read");
            }
            self.keep_to_rules();
            self.look_at_room();
            let holds = &self.holds;
            self.board.each(|name, machine| (machine.paused, machine.held) = (holds.paused(name), holds.reason(name)));
            let spooled = self.shared.spool.bytes();
            self.shared.workers.level.look(spooled, self.shared.workers.is_free());
            let status = self.board.now(spooled);
            if let Err(error) = self.board.write(&status) {
                tracing::warn!(%error, "the status cannot be written");
            }
            self.notify(&mut notifier, &status);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = ended.wait_for(|e| *e) => return,
            }
        }
    }

    /// Whether agents are to begin no cycle: for want of room in the spool, or because an operator said so.
    fn look_at_room(&self) {
        let spool = &self.shared.spool;
        let room = Room::of(&self.shared.state.spool_path(), spool.bytes(), spool.budget());
        self.holds.look(room, self.registry.paused());
    }

    /// Tells the webhooks, where there are any, what has changed.
    fn notify(&self, notifier: &mut Option<Notifier>, status: &Status) {
        let webhooks = self.rules.borrow().webhooks.clone();
        if notifier.is_none() && !webhooks.is_empty() {
            let made = Notifier::new(self.shared.heartbeat.gateway());
            *notifier = made.inspect_err(|error| tracing::error!(%error, "nobody is told when health changes")).ok();
        }
        if let Some(notifier) = notifier {
            notifier.keep_to(&webhooks);
            notifier.look(status, now());
        }
    }

    /// Rates as the rules want them now.
    fn keep_to_rules(&self) {
        let (rules, at) = (self.rules.borrow().clone(), now());
        self.shared.rate.set(rules.upload_rate(at));
        self.shared.flows.keep_to(&rules, at);
        let flow = |machine: &MachineName| (rules.machine_rate(machine, at), self.shared.flows.of(machine).receiving());
        self.board.flows(rules.upload_rate(at), flow);
    }
}

/// Uploads what is in the spool, until told to end.
async fn upload(shared: Arc<Shared>, board: Arc<Board>, ended: watch::Receiver<bool>) {
    let works = Arc::new(tokio::sync::Notify::new());
    let mut lanes = tokio::task::JoinSet::new();
    for _ in 0..UPLOADS_IN_FLIGHT {
        let (shared, board, works, mut ended) = (shared.clone(), board.clone(), works.clone(), ended.clone());
        lanes.spawn(async move {
            tokio::select! {
                () = upload_lane(&shared, &board, &works) => {}
                _ = ended.wait_for(|e| *e) => {}
            }
        });
    }
    while lanes.join_next().await.is_some() {}
}

async fn upload_lane(shared: &Shared, board: &Board, works: &tokio::sync::Notify) {
    let mut tries = 0;
    loop {
        let name = shared.spool.next().await;
        match upload_one(shared, &name).await {
            Ok(sent) => {
                tries = 0;
                board.uploaded(sent);
                works.notify_waiters();
            }
            Err(error) => {
                tracing::warn!(%error, object = name, "an object waits in the spool");
                board.upload_failed(error.to_string());
                shared.spool.again(name);
                let wait = UPLOAD_RETRY[tries.min(UPLOAD_RETRY.len() - 1)];
                tries += 1;
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = works.notified() => {}
                }
            }
        }
    }
}

async fn upload_one(shared: &Shared, name: &str) -> Result<u64> {
    let Some(bytes) = shared.spool.read(name, &shared.vault).await? else { return Ok(0) };
    let size = bytes.len() as u64;
    shared.rate.take(size).await;
    put_object(&shared.vault, name, bytes).await?;
    if let Some(layout::Name::Segment(id)) = layout::parse(name) {
        shared.index.write().unwrap_or_else(PoisonError::into_inner).segment_stored(id);
    }
    crash_point("spool.object-stored");
    shared.spool.stored(name).await?;
    Ok(size)
}

async fn share(vault: &Vault, registry: &Registry) {
    if let Err(error) = share_revocations(vault, registry).await {
        tracing::warn!(%error, "revocations are not shared with other gateways; those that are known here hold");
    }
}

async fn share_again_and_again(vault: Vault, registry: Arc<Registry>, mut ended: watch::Receiver<bool>) {
    let shares = async {
        loop {
            tokio::time::sleep(SHARE_EVERY).await;
            share(&vault, &registry).await;
        }
    };
    tokio::select! {
        () = shares => {}
        _ = ended.wait_for(|e| *e) => {}
    }
}

#[cfg(test)]
mod tests;
