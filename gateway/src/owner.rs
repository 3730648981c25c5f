//! The owner of a machine: it alone numbers the machine's points, spools them, and commits them in order.
//!
//! # Crash consistency
//! What is spooled is durable. Opened again, the owner takes up the prefix of its spool that follows the newest point of the vault: whole,
//! signed, chained, and with every segment in the spool or the store. The rest is deleted, and the agent is told the newest cycle
//! that is left.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use landfall_model::{
    ChunkRef, CycleId, DiskMeta, DomainName, Error, ErrorKind, GroupMark, MachineName, Progress, Result, SegmentId,
    Seq, Timeline, Timestamp,
};
use landfall_vault::{DedupIndex, Machine, MapView, SignedPoint, Tenure, Vault, crash_point, follows, now};
use landfall_wire::{Begin, CycleCheck, FromAgent, Incoming};
use tokio::sync::mpsc::channel;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};

use crate::newest::{Newest, know_inline_chunks, refuse_rollback, remember};
use crate::pipeline::{self, TASKS_AHEAD, Workers};
use crate::point::{self, Cut};
use crate::rate::Rate;
use crate::renewal::Renewal;
use crate::source::Task;
use crate::spool::Spool;
use crate::state::State;
use crate::upload::{Epoch, Uploader};
use crate::{Cancel, Session, intake};

/// An epoch is closed after so long: what is sealed later cannot be opened by who finds its key in memory.
const EPOCH_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Points that were spooled and not committed; beyond it the agent waits.
const COMMITS_WAITING_MAX: usize = 1024;
/// Records in memory before they are read anew from the newest checkpoint.
const LAYERS_MAX: usize = 300;
/// Large cycles that are taken at once.
pub(crate) const LARGE_CYCLES: usize = 6;
/// Waits after a commit that failed for a reason that may pass.
const COMMIT_RETRY: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(10)];

/// What all owners of one gateway share.
pub(crate) struct Shared {
    pub(crate) vault: Vault,
    pub(crate) state: State,
    pub(crate) domain: DomainName,
    pub(crate) spool: Arc<Spool>,
    pub(crate) index: Arc<RwLock<DedupIndex>>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) rate: Rate,
    pub(crate) epoch: Mutex<Option<(Arc<Epoch>, Instant)>>,
    /// Cycles of more than one batch at a time: each has segments of 32 MiB open, the others of an agent wait unread.
    pub(crate) large: Arc<Semaphore>,
    /// Heads are read, changed and written as one file.
    pub(crate) heads: Mutex<()>,
}

impl Shared {
    fn epoch(&self) -> Result<Arc<Epoch>> {
        let mut open = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((epoch, _)) = open.as_ref().filter(|(_, since)| since.elapsed() < EPOCH_AGE_MAX) {
            return Ok(epoch.clone());
        }
        let epoch = Arc::new(Epoch::open(self.vault.site(), self.vault.site().domain_id(&self.domain))?);
        *open = Some((epoch.clone(), Instant::now()));
        Ok(epoch)
    }

    fn session(&self, machine: &Machine) -> Arc<Session> {
        let domain = self.vault.site().domain_id(&self.domain);
        let (index, workers) = (self.index.clone(), self.workers.clone());
        Arc::new(Session::new(&self.vault, index, machine.id(), domain, Arc::new(Progress::default()), workers))
    }
}

/// What became of a machine's points.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A point is in the vault.
    Committed(Option<CycleId>, Timeline, Seq, Timestamp),
    /// The commit did not work: the kind of the error, what it says, and whether it is tried again.
    Failed(ErrorKind, String, bool),
}

/// Why a cycle is not taken.
pub(crate) enum Refused {
    /// It does not continue what is here: everything must be sent.
    Resync(String),
    /// An error.
    Error(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A point on its way from the spool to the vault, and the maps as of it.
struct Waiting {
    signed: SignedPoint,
    view: MapView,
    /// The chunks that stand in it, where they are known.
    inline: Vec<ChunkRef>,
}

/// The owner of a machine while this gateway writes it.
pub(crate) struct Owner {
    shared: Arc<Shared>,
    name: MachineName,
    tenure: Tenure,
    /// As of the newest spooled point.
    newest: Newest,
    /// The cut of the newest point in the vault when it was opened.
    committed: Option<Timestamp>,
    commits: mpsc::Sender<Waiting>,
    events: broadcast::Sender<Event>,
    /// Points that wait for their commit; `None` when the machine can no longer be written here.
    pending: watch::Receiver<Option<usize>>,
    count: watch::Sender<Option<usize>>,
    _renewal: Renewal,
}

impl Owner {
    /// Takes a machine and what the spool has of it; also gives what becomes of its points, from the first.
    ///
    /// # Errors
    /// `Conflict` where another gateway writes it, `Corrupt` where the vault was rolled back, `Unavailable`.
    pub(crate) async fn open(shared: Arc<Shared>, name: &MachineName) -> Result<(Self, broadcast::Receiver<Event>)> {
        let machine = shared.vault.machine(name);
        let tenure = machine.take(name, shared.state.gateway_id()?, now).await?;
        let renewal = Renewal::start(tenure.clone());
        let mut newest = Newest::open(&shared.vault, name).await?;
        let trusted = refuse_rollback(&shared.state, &newest).await?;
        let domain = shared.vault.site().domain_id(&shared.domain);
        DedupIndex::catch_up(&shared.index, &shared.vault, &shared.vault.epochs(domain).await?).await?;
        // Before the spool is taken up: what is not committed is nothing that others may refer to.
        know_inline_chunks(&newest, &shared.index, trusted).await?;
        let committed = newest.meta().map(|m| m.source_time);
        let (commits, waiting) = channel(COMMITS_WAITING_MAX + 1);
        let (events, from_the_first) = broadcast::channel(COMMITS_WAITING_MAX);
        let (count, pending) = watch::channel(Some(0));
        for point in recover(&shared, &machine, &newest).await? {
            newest.line.push(point.point.key());
            let view = MapView::extended(&machine, newest.view.take(), point.point.clone());
            newest.view = Some(view.clone());
            count.send_modify(|n| *n = n.map(|n| n + 1));
            // The channel holds as many as the spool may.
            if commits.try_send(Waiting { signed: point, view, inline: Vec::new() }).is_err() {
                return Err(Error::new(ErrorKind::Bug, "the spool holds more points than it may"));
            }
        }
        let committer = Committer {
            shared: shared.clone(),
            machine,
            tenure: tenure.clone(),
            events: events.clone(),
            count: count.clone(),
        };
        tokio::spawn(committer.run(waiting));
        let name = name.clone();
        let owner =
            Self { shared, name, tenure, newest, committed, commits, events, pending, count, _renewal: renewal };
        Ok((owner, from_the_first))
    }

    /// The newest cycle that is spooled or committed.
    pub(crate) fn newest_cycle(&self) -> Option<CycleId> {
        self.newest.meta().and_then(|m| m.cycle)
    }

    /// The time of the newest committed or spooled point.
    pub(crate) fn newest_time(&self) -> Option<Timestamp> {
        self.newest.meta().map(|m| m.source_time)
    }

    /// The cut of the newest point in the vault, and how many waited in the spool, when the machine was taken.
    pub(crate) fn taken_up(&self) -> (Option<Timestamp>, usize) {
        (self.committed, self.pending.borrow().unwrap_or(0))
    }

    /// Says from now on what becomes of its points.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether the machine can still be written here.
    pub(crate) fn is_alive(&self) -> bool {
        self.pending.borrow().is_some()
    }

    /// Whether points wait for their commit.
    pub(crate) fn is_waiting(&self) -> bool {
        self.pending.borrow().is_some_and(|n| n > 0)
    }

    /// Waits until no point waits.
    ///
    /// # Errors
    /// `Conflict` where the machine can no longer be written here.
    pub(crate) async fn drained(&self) -> Result<()> {
        let mut pending = self.pending.clone();
        let drained = pending.wait_for(|n| n.is_none_or(|n| n == 0)).await.ok().and_then(|n| *n);
        drained.map(|_| ()).ok_or_else(lost)
    }

    /// Gives the machine back: another gateway need not wait for the lease.
    pub(crate) async fn close(self) {
        if !self.is_alive() || self.is_waiting() {
            return;
        }
        if let Err(error) = self.tenure.release(now()).await {
            tracing::warn!(%error, machine = %self.name, "the lease was not given back");
        }
    }

    fn check(&self, begin: &Begin) -> std::result::Result<(), Refused> {
        let here = self.newest_cycle();
        if let Some(parent) = begin.parent.filter(|parent| Some(*parent) != here) {
            let here = here.map_or_else(|| "none".to_owned(), |c| c.to_string());
            return Err(Refused::Resync(format!(
                "cycle {parent}, which it continues, is not the newest here ({here})"
            )));
        }
        if begin.parent.is_some() {
            let known = |d: &&landfall_wire::DiskShape| {
                let base = self.newest.base_seq(&d.name, d.excluded, Seq(0));
                !d.excluded && !d.whole && base == Seq(0)
            };
            if let Some(disk) = begin.disks.iter().find(known) {
                return Err(Refused::Resync(format!(
                    "disk {} is not in the newest point, and not sent whole",
                    disk.name
                )));
            }
        }
        Ok(())
    }

    /// Takes a cycle that has begun: captures what arrives and spools its point, with this mark.
    ///
    /// # Errors
    /// [`Refused`].
    pub(crate) async fn cycle(
        &mut self,
        begin: Begin,
        group: Option<GroupMark>,
        from: &mut Incoming<FromAgent>,
    ) -> std::result::Result<CycleId, Refused> {
        if !self.is_alive() {
            return Err(lost().into());
        }
        self.check(&begin)?;
        // What is compared with maps needs their pages in the store.
        if begin.disks.iter().any(|d| d.whole && !d.excluded) && self.newest.view.is_some() {
            self.drained().await?;
        }
        if self.newest.view.as_ref().is_some_and(|v| v.layers().len() > LAYERS_MAX) {
            self.drained().await?;
            self.newest = Newest::open(&self.shared.vault, &self.name).await?;
        }
        let position = self.newest.next(self.tenure.generation());
        let disks = self.disks(&begin, position.seq);
        let machine = self.newest.machine.clone();
        let session = self.shared.session(&machine);
        let uploader = Arc::new(Uploader::to_spool(self.shared.epoch()?, self.shared.spool.clone()));
        let cut = Cut {
            machine: self.name.clone(),
            domain: self.shared.domain.clone(),
            gateway: self.shared.state.gateway_id()?,
            time: self.cut_time(&begin),
            consistency: begin.consistency,
            disks: disks.clone(),
            cycle: Some(begin.cycle),
            group,
        };
        let cycle = begin.cycle;
        let mut check = CycleCheck::new(begin);
        let (task_tx, task_rx) = channel::<Task>(TASKS_AHEAD);
        let feed = intake::feed(from, &mut check, &self.newest, &disks, task_tx, &self.shared.large);
        let captured = pipeline::run(&session, &uploader, disks.len(), &Cancel::default(), task_rx, feed).await?;
        let made = point::make(&session, &uploader, captured, position, cut, &machine).await?;

        let place = self.commits.reserve().await.map_err(|_| lost())?;
        let bytes = made.signed.bytes.clone();
        crash_point("spool.before-point");
        self.shared.spool.put_point(machine.id(), position.timeline, position.seq, bytes).await?;
        crash_point("spool.point-written");
        let view = MapView::extended(&machine, self.newest.view.take(), made.signed.point.clone());
        self.newest.view = Some(view.clone());
        self.newest.line.push(made.signed.point.key());
        self.count.send_modify(|n| *n = n.map(|n| n + 1));
        place.send(Waiting { signed: made.signed, view, inline: made.inline });
        Ok(cycle)
    }

    fn disks(&self, begin: &Begin, seq: Seq) -> Vec<DiskMeta> {
        let meta = |d: &landfall_wire::DiskShape| DiskMeta {
            name: d.name.clone(),
            size: d.size,
            sector_size: d.sector_size,
            boot: d.boot,
            excluded: d.excluded,
            source: d.source.clone(),
            identity: d.identity.clone(),
            base_seq: self.newest.base_seq(&d.name, d.excluded, seq),
        };
        begin.disks.iter().map(meta).collect()
    }

    /// Times ascend along a timeline, whatever an agent's clock does.
    fn cut_time(&self, begin: &Begin) -> Timestamp {
        match self.newest_time() {
            Some(last) if begin.time <= last => {
                tracing::warn!(machine = %self.name, time = %begin.time, %last, "the agent's clock stands before its newest point");
                Timestamp::from_millis(last.millis() + 1)
            }
            _ => begin.time,
        }
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Conflict, "this gateway no longer writes this machine; the agent asks again")
}

/// The prefix of a machine's spool that follows the newest point of the vault. The rest is deleted.
async fn recover(shared: &Shared, machine: &Machine, newest: &Newest) -> Result<Vec<SignedPoint>> {
    let mut before = newest.view.as_ref().and_then(|v| Some((v.layers().last()?.header.position, v.point_digest())));
    let (mut good, mut whole) = (Vec::new(), true);
    for spooled in shared.spool.points_of(machine.id())? {
        if before.is_some_and(|(p, _)| p.timeline == spooled.timeline && spooled.seq <= p.seq) {
            // It was committed, and the gateway ended before it could forget it; or another gateway's stands in its place.
            shared.spool.remove_point(machine.id(), spooled.timeline, spooled.seq).await?;
            continue;
        }
        let checked = machine.open_signed(spooled.bytes).and_then(|point| {
            let position = point.point.header.position;
            follows(&position, before.as_ref().map(|(p, d)| (p, *d)))?;
            missing_segment(shared, &point)?;
            Ok(point)
        });
        match checked {
            Ok(point) if whole => {
                before = Some((point.point.header.position, point.point.digest));
                good.push(point);
            }
            outcome => {
                whole = false;
                let why = outcome.err().map_or_else(|| "a point before it is gone".to_owned(), |e| e.to_string());
                tracing::warn!(seq = %spooled.seq, why, "a spooled point cannot be committed: it is dropped, and its changes are asked for again");
                shared.spool.remove_point(machine.id(), spooled.timeline, spooled.seq).await?;
            }
        }
    }
    Ok(good)
}

/// Every segment of a spooled point is in the spool or in the store.
fn missing_segment(shared: &Shared, point: &SignedPoint) -> Result<()> {
    let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
    let here = |id: SegmentId| shared.spool.holds(id) || index.segment_size(id).is_some();
    landfall_vault::refers_only_to_stored(&point.point.body, here)
}

/// Commits the points of one machine, in order.
struct Committer {
    shared: Arc<Shared>,
    machine: Machine,
    tenure: Tenure,
    events: broadcast::Sender<Event>,
    count: watch::Sender<Option<usize>>,
}

impl Committer {
    async fn run(self, mut waiting: mpsc::Receiver<Waiting>) {
        while let Some(next) = waiting.recv().await {
            let mut tries = 0;
            while let Err(error) = self.commit(&next).await {
                let again = !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Corrupt | ErrorKind::Bug);
                tracing::warn!(%error, seq = %next.signed.point.seq(), again, "a point was not committed");
                let _ = self.events.send(Event::Failed(error.kind(), error.to_string(), again));
                if !again {
                    self.give_up().await;
                    return;
                }
                tokio::time::sleep(COMMIT_RETRY[tries.min(COMMIT_RETRY.len() - 1)]).await;
                tries += 1;
            }
            self.count.send_modify(|n| *n = n.map(|n| n.saturating_sub(1)));
            let meta = next.signed.point.meta();
            let (timeline, seq) = (next.signed.point.timeline(), next.signed.point.seq());
            let _ = self.events.send(Event::Committed(meta.cycle, timeline, seq, meta.source_time));
            if let Err(error) = self.afterwards(&next.view).await {
                tracing::warn!(%error, %seq, "the point is committed, but what makes later work faster was not done");
            }
        }
    }

    async fn commit(&self, next: &Waiting) -> Result<()> {
        let point = &next.signed.point;
        let segments: Vec<SegmentId> = point.body.segments.keys().copied().collect();
        self.shared.spool.until_stored(&segments).await;
        self.shared.rate.take(next.signed.bytes.len() as u64).await;
        self.tenure.still_held().await?;
        crash_point("point.before-commit");
        self.machine.commit(&next.signed).await?;
        crash_point("point.committed");
        {
            let _one = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
            remember(&self.shared.state, &self.machine, point)?;
        }
        // Never before it is committed: another gateway's point may come to stand in its place.
        {
            let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            index.add_point(self.machine.id(), point.timeline(), point.seq(), &next.inline)?;
        }
        self.shared.spool.remove_point(self.machine.id(), point.timeline(), point.seq()).await
    }

    async fn afterwards(&self, view: &MapView) -> Result<()> {
        let session = self.shared.session(&self.machine);
        let uploader = Uploader::to_store(self.shared.epoch()?);
        point::afterwards(&session, &uploader, view).await
    }

    /// Another gateway writes the machine: what is spooled of it can never be committed.
    async fn give_up(&self) {
        self.count.send_replace(None);
        let points = self.shared.spool.points_of(self.machine.id()).unwrap_or_default();
        for point in points {
            if let Err(error) = self.shared.spool.remove_point(self.machine.id(), point.timeline, point.seq).await {
                tracing::warn!(%error, "a spooled point that was fenced was not deleted");
            }
        }
    }
}
