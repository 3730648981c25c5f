//! The gateway as a service: agents' links to the owners of their machines, and the uploads that all of them share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use landfall_model::{DomainName, Error, ErrorKind, MachineName, Result};
use landfall_vault::{DedupIndex, Heartbeat, Vault, crash_point, layout, segment};
use landfall_wire::pki::Authority;
use landfall_wire::server::{Limits, Service, alive_while};
use landfall_wire::{FromAgent, FromGateway, Incoming, Peer, Welcome, choose_version};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc, watch};

use crate::listing::Listing;
use crate::owner::{Event, LARGE_CYCLES, Owner, Refused, Shared};
use crate::pipeline::Workers;
use crate::rate::Rate;
use crate::registry::Registry;
use crate::renewal::Renewal;
use crate::replicate::probe;
use crate::revoked::share_revocations;
use crate::spool::Spool;
use crate::state::{Lock, State};
use crate::status::{Board, MachineStatus};
use crate::upload::put_object;

/// Objects on their way to the store at once.
const UPLOADS_IN_FLIGHT: usize = 4;
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
    /// Most bytes uploaded in a second.
    pub rate: Option<u64>,
    /// Host names and addresses in its certificate.
    pub names: Vec<String>,
}

/// One machine: its owner while this gateway writes it.
#[derive(Default)]
struct Slot {
    owner: tokio::sync::Mutex<Option<Owner>>,
}

/// A gateway that serves agents.
pub struct Gateway {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    authority: Arc<Authority>,
    slots: Mutex<HashMap<MachineName, Arc<Slot>>>,
    board: Arc<Board>,
    _renewal: Renewal,
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
        let spool = Arc::new(Spool::open(&state.spool_path(), options.spool_bytes, &vault)?);
        let index = Arc::new(RwLock::new(DedupIndex::open(&state.index_path())?));
        let heartbeat = Heartbeat::new(&vault, state.gateway_id()?);
        let renewal = Renewal::start(heartbeat.clone());
        let registry = Arc::new(Registry::open(state.agents_path())?);
        share(&vault, &registry).await;
        let authority = Arc::new(Authority::from_seed(vault.site().agent_authority_seed().as_bytes())?);
        let board = Arc::new(Board::new(state.status_path(), options.spool_bytes));
        let shared = Arc::new(Shared {
            vault,
            state,
            domain: options.domain.clone(),
            spool,
            index,
            workers: Arc::new(Workers::new()),
            rate: Rate::new(options.rate),
            epoch: Mutex::default(),
            large: Arc::new(tokio::sync::Semaphore::new(LARGE_CYCLES)),
            heads: Mutex::default(),
            heartbeat,
            listing: Listing::default(),
        });
        Ok(Self { shared, registry, authority, slots: Mutex::default(), board, _renewal: renewal, _lock: lock })
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
        let (ending, ended) = watch::channel(false);
        let uploads = tokio::spawn(upload(self.shared.clone(), self.board.clone(), ended.clone()));
        let (board, spool) = (self.board.clone(), self.shared.spool.clone());
        let looks = tokio::spawn(look(self.registry.clone(), board.clone(), spool.clone(), ended.clone()));
        let shares = share_again_and_again(self.shared.vault.clone(), self.registry.clone(), ended.clone());
        let shares = tokio::spawn(shares);
        let metrics = metrics.map(|listener| tokio::spawn(crate::metrics::serve(listener, board, spool, ended)));
        self.take_up_spooled();
        let served =
            landfall_wire::server::serve(listener, self.authority.clone(), &options.names, self.clone(), limits, stop);
        let outcome = served.await;
        ending.send_replace(true);
        self.give_back().await;
        for task in [uploads, looks, shares] {
            let _ = task.await;
        }
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        outcome
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
            tokio::spawn(async move {
                loop {
                    let mut owner = slot.owner.lock().await;
                    if owner.is_some() {
                        return;
                    }
                    match open(shared.clone(), board.clone(), &name).await {
                        Ok(open) => {
                            *owner = Some(open);
                            drop(owner);
                            return Self::release_later(slot);
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

    /// Gives a machine back that has no link and nothing spooled.
    fn release_later(slot: Arc<Slot>) {
        tokio::spawn(async move {
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
        });
    }

    async fn link(
        &self,
        owner: &mut Owner,
        from: &mut Incoming<FromAgent>,
        to: &mpsc::Sender<FromGateway>,
        machine: &MachineName,
    ) -> Result<()> {
        let told = AbortOnDrop(tokio::spawn(tell(owner.events(), to.clone())));
        let mut skipping = false;
        while let Some(message) = from.next().await? {
            match message {
                FromAgent::Begin(begin) => {
                    skipping = false;
                    let time = begin.time;
                    let asked = begin.parent.is_some() && self.registry.take_resync(machine);
                    let taken = if asked {
                        // What the vault has lost is to be known to be gone.
                        self.shared.listing.expire();
                        Err(Refused::Resync("an operator asked for a full comparison".to_owned()))
                    } else {
                        owner.cycle(begin, from).await
                    };
                    match taken {
                        Ok(taken) => {
                            self.board.change(machine, |m| m.spooled(time, taken.joined));
                            say(to, FromGateway::Spooled(taken.cycle)).await?;
                        }
                        Err(Refused::Resync(why)) => {
                            tracing::info!(%machine, why, "resync");
                            self.board.change(machine, |m| m.resyncs += 1);
                            say(to, FromGateway::Resync(why)).await?;
                            skipping = true;
                        }
                        Err(Refused::Error(error)) => {
                            self.board.change(machine, |m| m.failed(error.to_string(), false));
                            return Err(error);
                        }
                    }
                }
                FromAgent::Alive => say(to, FromGateway::Alive).await?,
                // What was on its way when a cycle was refused.
                _ if skipping => {}
                _ => return Err(Error::corrupt("the agent sent a part of a cycle that it did not begin")),
            }
        }
        drop(told);
        Ok(())
    }
}

/// Opens the owner of a machine, and tells the board of it from then on.
async fn open(shared: Arc<Shared>, board: Arc<Board>, machine: &MachineName) -> Result<Owner> {
    let (owner, events) = Owner::open(shared, machine).await?;
    let (committed, waiting) = owner.taken_up();
    board.change(machine, |m| m.taken_up(committed, waiting));
    tokio::spawn(follow(events, board, machine.clone()));
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
        self.board.change(&machine, MachineStatus::linked);
        say(&to, FromGateway::Welcome(Welcome { version, newest: opened.newest_cycle() })).await?;
        let outcome = self.link(opened, &mut from, &to, &machine).await;
        self.board.change(&machine, MachineStatus::unlinked);
        drop(owner);
        Self::release_later(slot);
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
    put_object(&shared.vault, name, bytes.clone()).await?;
    if let Some(layout::Name::Segment(id)) = layout::parse(name) {
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        if !index.segment_stored(id) {
            // Of an earlier run.
            let chunks = segment::open_whole(shared.vault.site(), shared.vault.config().vault_id, id, &bytes)?;
            index.add_segment(&segment::Segment { id, bytes, chunks })?;
            index.segment_stored(id);
        }
    }
    crash_point("spool.object-stored");
    shared.spool.stored(name).await?;
    Ok(size)
}

/// Looks at what other commands wrote beside a running gateway, and writes the status.
async fn look(registry: Arc<Registry>, board: Arc<Board>, spool: Arc<Spool>, mut ended: watch::Receiver<bool>) {
    loop {
        if let Err(error) = registry.look() {
            tracing::warn!(%error, "revocations cannot be read");
        }
        if let Err(error) = board.write(spool.bytes()) {
            tracing::warn!(%error, "the status cannot be written");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = ended.wait_for(|e| *e) => return,
        }
    }
}

async fn share(vault: &Vault, registry: &Registry) {
    if let Err(error) = share_revocations(vault, registry).await {
        tracing::warn!(%error, "revocations are not shared with other gateways; those that are known here hold");
    }
}

async fn share_again_and_again(vault: Vault, registry: Arc<Registry>, mut ended: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SHARE_EVERY) => {}
            _ = ended.wait_for(|e| *e) => return,
        }
        tokio::select! {
            () = share(&vault, &registry) => {}
            _ = ended.wait_for(|e| *e) => return,
        }
    }
}

#[cfg(test)]
mod tests;
