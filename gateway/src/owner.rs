//! The owner of a machine: it alone numbers the machine's points, spools them, and commits them in order.
//!
//! # Crash consistency
//! What is spooled is durable. Opened again, the owner takes up the prefix of its spool that follows the newest point of the vault: whole,
//! signed, chained, and with every segment in the spool or the store. The rest is deleted, and the agent is told the newest cycle
//! that is left.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use landfall_model::{
    Consistency, CycleId, DiskMeta, DomainName, Error, ErrorKind, GroupMark, MachineName, Progress, Result, SegmentId,
    Seq, Timeline, Timestamp,
};
use landfall_vault::{
    DedupIndex, Heartbeat, Held, Machine, MapView, SignedPoint, Tenure, Vault, crash_point, follows, now,
};
use landfall_wire::{Begin, CycleCheck, FromAgent, Incoming};
use tokio::sync::mpsc::channel;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;

use crate::flow::Flows;
use crate::listing::Listing;
use crate::newest::{Newest, know_inline_chunks, refuse_rollback, remember};
use crate::pipeline::{self, TASKS_AHEAD, Workers};
use crate::point::{self, Cut, Made};
use crate::rate::Rate;
use crate::source::Task;
use crate::spool::Spool;
use crate::state::State;
use crate::tasks::Tasks;
use crate::upload::{Epoch, Uploader};
use crate::waiting::{HeldLast, Queue, Waiting, lost};
use crate::{Cancel, Session, coalesce, intake};

/// An epoch is closed after so long: what is sealed later cannot be opened by who finds its key in memory.
const EPOCH_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Points that were spooled and not committed; beyond it the agent waits. Only points that may not become one come to so many.
const COMMITS_WAITING_MAX: usize = 1024;
/// Records in memory before those that are committed are read anew from the newest checkpoint.
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
    pub(crate) rate: Arc<Rate>,
    /// What flows in, by machine.
    pub(crate) flows: Flows,
    pub(crate) epoch: Mutex<Option<(Arc<Epoch>, Instant)>>,
    /// Cycles of more than one batch at a time: each has segments of 32 MiB open, the others of an agent wait unread.
    pub(crate) large: Arc<Semaphore>,
    /// Heads are read, changed and written as one file.
    pub(crate) heads: Mutex<()>,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) listing: Listing,
    /// What the gateway does in the background.
    pub(crate) tasks: Tasks,
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

    /// The object of a point that waits.
    async fn bytes_of(&self, machine: &Machine, point: &Waiting) -> Result<Bytes> {
        match point.bytes() {
            Some(bytes) => Ok(bytes),
            None => self.spool.read_point(machine.id(), point.point().timeline(), point.point().seq()).await,
        }
    }

    fn session(&self, machine: &Machine) -> Arc<Session> {
        let domain = self.vault.site().domain_id(&self.domain);
        let (index, workers) = (self.index.clone(), self.workers.clone());
        let pins = Some(self.spool.pins([]));
        Arc::new(Session::new(&self.vault, index, machine.id(), domain, Arc::new(Progress::default()), workers, pins))
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

/// A cycle that was taken.
pub(crate) struct Taken {
    pub(crate) cycle: CycleId,
    /// What became of it.
    pub(crate) became: Became,
}

/// What became of a cycle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Became {
    /// A point that waits.
    Point,
    /// One with the point before it.
    Joined,
    /// Nothing yet: it is unfinished.
    Unfinished,
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
    waiting: Queue,
    /// The newest cycle that an operator has ordered.
    kept: Option<CycleId>,
    events: broadcast::Sender<Event>,
    /// Others see that it is given back when this is dropped.
    _held: Held,
}

impl Owner {
    /// Takes a machine and what the spool has of it; also gives what becomes of its points, from the first.
    ///
    /// # Errors
    /// `Conflict` where another gateway writes it, `Corrupt` where the vault was rolled back, `Unavailable`.
    pub(crate) async fn open(shared: Arc<Shared>, name: &MachineName) -> Result<(Self, broadcast::Receiver<Event>)> {
        let machine = shared.vault.machine(name);
        let (tenure, held) = machine.take(name, &shared.heartbeat, now).await?;
        let mut newest = Newest::open(&shared.vault, name).await?;
        let trusted = refuse_rollback(&shared.state, &newest).await?;
        shared.listing.catch_up(&shared, &newest).await?;
        // Before the spool is taken up: what is not committed is nothing that others may refer to.
        know_inline_chunks(&newest, &shared.index, trusted).await?;
        let committed = newest.meta().map(|m| m.source_time);
        let waiting = Queue::new();
        let (events, from_the_first) = broadcast::channel(COMMITS_WAITING_MAX);
        for point in recover(&shared, &machine, &newest).await? {
            newest.line.push(point.point.key());
            let pins = shared.spool.pins(point.point.body.segments.keys());
            let view = MapView::extended(&machine, newest.view.take(), point.point);
            newest.view = Some(view.clone());
            waiting.push(Waiting::recovered(view, pins))?;
        }
        let committer = Committer {
            shared: shared.clone(),
            machine,
            tenure: tenure.clone(),
            events: events.clone(),
            waiting: waiting.clone(),
        };
        shared.tasks.spawn(committer.run());
        let name = name.clone();
        let owner = Self { shared, name, tenure, newest, committed, waiting, kept: None, events, _held: held };
        Ok((owner, from_the_first))
    }

    /// The newest cycle that is spooled or committed.
    pub(crate) fn newest_cycle(&self) -> Option<CycleId> {
        match self.waiting.last() {
            Some(last) => last.meta().cycle,
            None => self.newest.meta().and_then(|m| m.cycle),
        }
    }

    /// The time of the newest committed or spooled point.
    pub(crate) fn newest_time(&self) -> Option<Timestamp> {
        self.newest.meta().map(|m| m.source_time)
    }

    /// Whether the machine has a point, spooled or committed.
    pub(crate) fn has_points(&self) -> bool {
        let unfinished = self.waiting.last().is_some_and(|last| last.is_unfinished());
        self.newest.line.len() > usize::from(unfinished)
    }

    /// The cut of the newest point in the vault, and how many waited in the spool, when the machine was taken.
    pub(crate) fn taken_up(&self) -> (Option<Timestamp>, usize) {
        (self.committed, self.waiting.finished())
    }

    /// Says from now on what becomes of its points.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Whether the machine can still be written here.
    pub(crate) fn is_alive(&self) -> bool {
        self.waiting.len().is_some()
    }

    /// Whether points wait for their commit.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_alive() && self.waiting.finished() > 0
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

    /// The point of this cycle does not become one with the next: an operator has ordered it.
    pub(crate) fn keep(&mut self, cycle: CycleId) {
        self.kept = Some(cycle);
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
    ) -> std::result::Result<Taken, Refused> {
        if !self.is_alive() {
            return Err(lost().into());
        }
        self.follow_queue();
        self.check(&begin)?;
        if begin.disks.iter().any(|d| d.whole && !d.excluded) && self.newest.view.is_some() {
            self.shared.listing.catch_up(&self.shared, &self.newest).await?;
        }
        self.waiting.until_below(COMMITS_WAITING_MAX).await?;
        let layers = self.newest.view.as_ref().map_or(0, |v| v.layers().len());
        if layers > LAYERS_MAX + self.waiting.len().unwrap_or(0) {
            self.read_anew().await?;
        }
        let position = self.newest.next(self.tenure.generation());
        let disks = self.disks(&begin, position.seq);
        let unfinished = self.waiting.last().filter(|last| last.is_unfinished());
        if unfinished.is_some_and(|last| !coalesce::same_disks(&last.meta().disks, &disks)) {
            return Err(self.drop_unfinished("the disks are others now").await.into());
        }
        let machine = self.newest.machine.clone();
        let session = self.shared.session(&machine);
        let uploader = Arc::new(Uploader::to_spool(self.shared.epoch()?, self.shared.spool.clone()));
        let cut = Cut {
            machine: self.name.clone(),
            domain: self.shared.domain.clone(),
            gateway: self.shared.heartbeat.gateway(),
            time: self.cut_time(&begin),
            consistency: begin.consistency,
            disks: disks.clone(),
            cycle: Some(begin.cycle),
            group,
            shape: begin.shape.clone(),
            hooks: begin.hooks.clone(),
        };
        let (cycle, finished) = (begin.cycle, begin.consistency != Consistency::Unfinished);
        let mut check = CycleCheck::new(begin);
        let (task_tx, task_rx) = channel::<Task>(TASKS_AHEAD);
        let flow = self.shared.flows.of(&self.name);
        let feed = intake::feed(from, &mut check, &self.newest, &disks, task_tx, (&self.shared.large, &flow));
        let captured = pipeline::run(&session, &uploader, disks.len(), &Cancel::default(), task_rx, feed).await?;
        let made = point::make(&session, &uploader, captured, position, cut, &machine).await?;

        let before = self.spool(&session, made).await?;
        drop(session);
        let became = match &before {
            _ if !finished => Became::Unfinished,
            Some((_, true)) => Became::Joined,
            _ => Became::Point,
        };
        if let Some((before, _)) = before
            && let Err(error) = self.shared.spool.drop_unpinned(&before, &self.shared.index).await
        {
            tracing::warn!(%error, machine = %self.name, "what need not be uploaded any more stays in the spool");
        }
        Ok(Taken { cycle, became })
    }

    /// Spools a point that was made: one with the last that waits where that is due, else behind it. Where they became one, returns the
    /// segments that both referred to, and whether the last was a point before.
    async fn spool(&mut self, session: &Session, made: Made) -> Result<Option<(Vec<SegmentId>, bool)>> {
        let pressed = self.shared.spool.is_pressed();
        let kept = self.kept;
        let last = self.waiting.hold_last(|last| {
            // Somebody waits for the point of an order.
            let is_kept = kept.is_some() && last.meta.cycle == kept;
            !is_kept && coalesce::is_due(last, made.signed.point.meta(), pressed)
        });
        if let Some(last) = last {
            let unfinished = last.point().is_unfinished();
            let bodies = [&last.point().point().body, &made.signed.point.body];
            let segments = bodies.iter().flat_map(|b| b.segments.keys().copied()).collect();
            match self.join(session, last, &made).await {
                Ok(()) => return Ok(Some((segments, !unfinished))),
                // It alone is no point, and neither is what follows it.
                Err(error) if unfinished && error.kind() == ErrorKind::NoSpace => return Err(error),
                Err(error) if unfinished => return Err(self.drop_unfinished(&error.to_string()).await),
                Err(error) => {
                    tracing::warn!(%error, machine = %self.name, "two points that wait were not made one: both are kept");
                }
            }
        }
        if !self.is_alive() {
            return Err(lost());
        }
        let key = made.signed.point.key();
        crash_point("spool.before-point");
        let bytes = made.signed.bytes.clone();
        self.shared.spool.put_point(session.machine(), key.timeline, key.seq, bytes, || {}).await?;
        crash_point("spool.point-written");
        let pins = self.shared.spool.pins(made.signed.point.body.segments.keys());
        let view = MapView::extended(&self.newest.machine, self.newest.view.take(), made.signed.point);
        self.newest.view = Some(view.clone());
        self.newest.line.push(key);
        self.waiting.push(Waiting::made(view, made.signed.bytes, made.inline, pins))?;
        Ok(None)
    }

    /// Makes one point of the last that waits and the one after it, in the place of the first of both.
    async fn join(&mut self, session: &Session, last: HeldLast, made: &Made) -> Result<()> {
        let shared = &self.shared;
        let before = shared.bytes_of(&self.newest.machine, last.point()).await?;
        let pair = coalesce::Pair {
            machine: &self.newest.machine,
            earlier: (last.point().point(), &before),
            later: (&made.signed.point, &made.signed.bytes),
        };
        let uploader = Uploader::to_spool(shared.epoch()?, shared.spool.clone());
        let (signed, inline) = coalesce::merge(session, &uploader, &shared.spool, &pair).await?;
        let key = signed.point.key();
        let pins = shared.spool.pins(signed.point.body.segments.keys());
        let view = self.newest.view.clone().unwrap_or_else(|| last.point().view.clone()).amended(signed.point);
        let joined = Waiting::made(view, signed.bytes.clone(), inline, pins);
        crash_point("coalesce.before-point");
        let replace = move || last.replace(joined);
        shared.spool.put_point(session.machine(), key.timeline, key.seq, signed.bytes, replace).await?;
        crash_point("coalesce.point-written");
        self.follow_queue();
        if self.is_alive() { Ok(()) } else { Err(lost()) }
    }

    /// Forgets the last point that waits, which is unfinished and cannot be completed. The machine is taken anew then, and its agent sends what
    /// changed since the point before.
    async fn drop_unfinished(&self, why: &str) -> Error {
        if let Some(last) = self.waiting.last().filter(|last| last.is_unfinished()) {
            let (machine, point) = (self.newest.machine.id(), last.point());
            if let Err(error) = self.shared.spool.remove_point(machine, point.timeline(), point.seq()).await {
                return error;
            }
        }
        self.waiting.lose();
        Error::new(ErrorKind::Unavailable, format!("the unfinished cycle was dropped ({why}); the agent begins again"))
    }

    /// The newest point is the last that waits, where that became another: also after a link was lost while it did.
    fn follow_queue(&mut self) {
        let Some(last) = self.waiting.last() else { return };
        let same = |view: &MapView| view.point_digest() == last.view.point_digest();
        let newest = self.newest.view.take();
        self.newest.view = newest.map(|v| if same(&v) { v } else { v.amended(last.point().clone()) });
        self.newest.line.pop();
        self.newest.line.push(last.point().key());
    }

    /// Reads what is committed anew, from the newest checkpoint on; what waits stays.
    async fn read_anew(&mut self) -> Result<()> {
        // Before the store is asked: what is committed meanwhile is in both.
        let waiting = self.waiting.points();
        let mut newest = Newest::open(&self.shared.vault, &self.name).await?;
        for point in waiting {
            if newest.line.last().is_none_or(|last| last.seq < point.point().seq()) {
                newest.line.push(point.point().key());
                newest.view = Some(MapView::extended(&newest.machine, newest.view.take(), point.point().clone()));
            }
        }
        self.newest = newest;
        Ok(())
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

impl Drop for Owner {
    fn drop(&mut self) {
        self.waiting.close();
    }
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

/// Every segment of a spooled point is in the spool or in the store: the index knows both.
fn missing_segment(shared: &Shared, point: &SignedPoint) -> Result<()> {
    let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
    landfall_vault::refers_only_to_stored(&point.point.body, |id| index.segment_size(id).is_some())
}

/// Commits the points of one machine, in order.
struct Committer {
    shared: Arc<Shared>,
    machine: Machine,
    tenure: Tenure,
    events: broadcast::Sender<Event>,
    waiting: Queue,
}

impl Committer {
    async fn run(self) {
        while let Some(next) = self.waiting.hold_first().await {
            let mut tries = 0;
            while let Err(error) = self.commit(&next).await {
                let again = !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Corrupt | ErrorKind::Bug);
                tracing::warn!(%error, seq = %next.point().seq(), again, "a point was not committed");
                let _ = self.events.send(Event::Failed(error.kind(), error.to_string(), again));
                if !again {
                    self.give_up().await;
                    return;
                }
                tokio::time::sleep(COMMIT_RETRY[tries.min(COMMIT_RETRY.len() - 1)]).await;
                tries += 1;
            }
            self.waiting.pop_first();
            let (meta, timeline, seq) = (next.meta(), next.point().timeline(), next.point().seq());
            let _ = self.events.send(Event::Committed(meta.cycle, timeline, seq, meta.source_time));
            if let Err(error) = self.afterwards(&next.view).await {
                tracing::warn!(%error, %seq, "the point is committed, but what makes later work faster was not done");
            }
        }
    }

    async fn commit(&self, next: &Waiting) -> Result<()> {
        let point = next.point();
        let segments: Vec<SegmentId> = point.body.segments.keys().copied().collect();
        self.shared.spool.until_stored(&segments).await;
        let bytes = self.shared.bytes_of(&self.machine, next).await?;
        self.shared.rate.take(bytes.len() as u64).await;
        self.tenure.still_held().await?;
        crash_point("point.before-commit");
        self.machine.commit(point, bytes).await?;
        crash_point("point.committed");
        {
            let _one = self.shared.heads.lock().unwrap_or_else(PoisonError::into_inner);
            remember(&self.shared.state, &self.machine, point)?;
        }
        // Never before it is committed: another gateway's point may come to stand in its place.
        {
            let mut index = self.shared.index.write().unwrap_or_else(PoisonError::into_inner);
            index.add_point(self.machine.id(), point.timeline(), point.seq(), next.inline())?;
        }
        self.shared.spool.remove_point(self.machine.id(), point.timeline(), point.seq()).await
    }

    async fn afterwards(&self, view: &MapView) -> Result<()> {
        let session = self.shared.session(&self.machine);
        let uploader = Uploader::to_store(self.shared.epoch()?).keeping_to(self.shared.rate.clone());
        point::afterwards(&session, &uploader, view).await
    }

    /// Another gateway writes the machine: what is spooled of it can never be committed.
    async fn give_up(&self) {
        self.waiting.lose();
        let points = self.shared.spool.points_of(self.machine.id()).unwrap_or_default();
        for point in points {
            if let Err(error) = self.shared.spool.remove_point(self.machine.id(), point.timeline, point.seq).await {
                tracing::warn!(%error, "a spooled point that was fenced was not deleted");
            }
        }
    }
}
