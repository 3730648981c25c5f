//! One cycle over a link: from the plan to the gateway's `spooled`.
//!
//! ```text
//!   plan -> cut (its own threads) -> Begin, runs -> journal durable -> End -> ... Spooled -> fingerprints
//! ```
//! # Cancellation
//! Where the future is dropped, or the agent is asked to stop, the cut ends and what is frozen is thawed. Whatever fails, the state says
//! what is true: a cycle whose end may have been sent is pending until a gateway says what it has.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use landfall_model::{
    Consistency, CycleId, DiskDigest, Error, ErrorKind, GroupId, OrderId, Outcome, Seq, Timeline, Timestamp,
};
use landfall_wire::{End, FromAgent, FromGateway, TEXT_BYTES_MAX, kind_of_code};
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use crate::cancel::Cancel;
use crate::compare::{Cut, CutDone, MESSAGES, Manner, Stop};
use crate::durable;
use crate::freeze::Freeze;
use crate::history::Plan;
use crate::image::DiskConfig;
use crate::link::{Link, Receive, now};
use crate::obey::Last;
use crate::orders::{Gate, Orders, gate};
use crate::power::Power;
use crate::qemu::{Hooks, Vm};
use crate::rounds::Unshipped;
use crate::skip::Skip;
use crate::state::StateDir;
use crate::tracking::Tracking;

/// How long a gateway that does not read is given to take that a cycle is aborted.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// After the link has ended: how long its last word is waited for.
const LAST_WORD_WAIT: Duration = Duration::from_secs(1);

/// Why a cycle, or a link, ended.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The link: connect again.
    Link(Error),
    /// This host: its disks, its state, what is to be frozen.
    Local(Error),
    /// The gateway, and trying again as it is does not help.
    Refused(Error),
    /// The gateway wants everything.
    Resync(String),
    /// The gateway wants everything, and not yet.
    Wait(String),
    /// The cut of a group does not take place: the link goes on.
    NoGroup(String),
    /// The agent is asked to stop.
    Cancelled,
}

/// What happened, for those who watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Everything was held still.
    Cut { cycle: CycleId, time: Timestamp },
    /// Everything must be sent, and the gateway does not want it yet: why.
    Waits(String),
    /// The cycle is durable on the gateway.
    Spooled(Shipped),
    /// The same of one that is unfinished.
    Round(Shipped),
    /// A cycle is a recovery point.
    Committed {
        cycle: CycleId,
        /// Where it is still known.
        time: Option<Timestamp>,
        timeline: Timeline,
        seq: Seq,
    },
    /// The gateway holds the machine, and why; `None`: not any more.
    Held(Option<String>),
}

/// A cycle that was spooled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shipped {
    pub(crate) cycle: CycleId,
    /// The moment of the cut.
    pub(crate) time: Timestamp,
    /// Whether it was relative to nothing.
    pub(crate) full: bool,
    /// Whether it is a part of the one after it.
    pub(crate) unfinished: bool,
    /// What it guarantees.
    pub(crate) consistency: Consistency,
    /// Bytes read from the disks.
    pub(crate) read_bytes: u64,
    /// Bytes of the disks that were sent.
    pub(crate) sent_bytes: u64,
    pub(crate) elapsed: Duration,
    /// How long everything was held still.
    pub(crate) held: Duration,
}

/// The state directory, as tasks and threads share it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<StateDir>>);

impl Shared {
    pub(crate) fn new(state: StateDir) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn lock(&self) -> MutexGuard<'_, StateDir> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the state where waiting for the disk holds up nobody. Goes on where the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut StateDir) -> landfall_model::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let shared = self.clone();
        let done = spawn_blocking(move || work(&mut shared.lock())).await;
        done.map_err(died).flatten().map_err(Fault::Local)
    }
}

pub(crate) fn died(error: JoinError) -> Error {
    Error::with_source(ErrorKind::Bug, "a task of the agent died", error)
}

fn ended() -> Fault {
    Fault::Link(Error::new(ErrorKind::Unavailable, "the gateway has ended the link"))
}

/// Ends a cut when the cycle ends, in whatever way.
pub(crate) struct StopOnDrop(pub(crate) Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ships the disks of a machine.
pub(crate) struct Shipper {
    pub(crate) state: Shared,
    pub(crate) state_root: PathBuf,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) freeze: Freeze,
    pub(crate) skip: Skip,
    /// A point may be so late, rather than that everything is held still until it is sent.
    pub(crate) late_max: Duration,
    pub(crate) cancel: Cancel,
    /// What was written to the disks.
    pub(crate) tracking: Tracking,
    /// The virtual machine whose disks they are, where they are one's.
    pub(crate) vm: Option<Arc<Vm>>,
    /// Whether it waits for as long as the gateway wants, before everything is sent.
    pub(crate) patient: bool,
    /// What the gateway asks for, on the link that is open.
    pub(crate) orders: Orders,
    /// Applications are to be quiet at the next cut, also where that is not due.
    pub(crate) application: bool,
    /// When they were so last.
    pub(crate) hooked: Option<Instant>,
    /// How the machine is stopped.
    pub(crate) power: Power,
    /// The operator's order that was answered last.
    pub(crate) answered: Option<(OrderId, Outcome)>,
    /// The cycle is the last one of a machine that was stopped.
    pub(crate) last: Option<Last>,
    /// Of the disks, by the cycle before, where they were asked for.
    pub(crate) digests: Vec<DiskDigest>,
    pub(crate) events: Box<dyn FnMut(Event) + Send>,
}

impl Shipper {
    /// Ships one cycle to a gateway whose newest cycle is `newest`.
    ///
    /// # Errors
    /// Where it is not known to be spooled. The next call, on a new link, does what is right then.
    pub(crate) async fn ship<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
    ) -> Result<Shipped, Fault> {
        self.ship_or_all(link, newest, None).await
    }

    /// Ships one cycle that is a group's cut. Where everything is asked for, that is a later cut, and the machine's own.
    ///
    /// # Errors
    /// As for [`Self::ship`]; `NoGroup` where nothing was begun.
    pub(crate) async fn ship_at<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
        group: GroupId,
    ) -> Result<Shipped, Fault> {
        self.ship_or_all(link, newest, Some(group)).await
    }

    async fn ship_or_all<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
        group: Option<GroupId>,
    ) -> Result<Shipped, Fault> {
        let plan = match self.state.run(move |state| state.plan(newest)).await {
            Ok(plan) => plan,
            Err(fault) => return Err(abort(link, false, group, fault).await),
        };
        let reason = match plan {
            // That may have to wait for its hours; the others do not wait for it.
            Plan::Full { reason } if group.is_some() => {
                return Err(abort(link, false, group, Fault::NoGroup(reason)).await);
            }
            Plan::Full { reason } => {
                tracing::info!(reason, "everything must be sent");
                self.deliver(link, FromAgent::Ask(shortened(reason))).await?;
                self.until_wanted(link).await?
            }
            changes @ Plan::Incremental { .. } => match self.cycle(link, changes, group).await {
                Err(Fault::Resync(reason)) => reason,
                Err(Fault::Wait(why)) => {
                    self.waits(why)?;
                    self.until_wanted(link).await?
                }
                other => return other,
            },
        };
        tracing::warn!(reason, "the gateway takes everything");
        match self.cycle(link, Plan::Full { reason }, None).await {
            Err(Fault::Resync(reason) | Fault::Wait(reason)) => {
                let why = format!("the gateway does not take everything either: {reason}");
                Err(Fault::Refused(Error::new(ErrorKind::Conflict, why)))
            }
            other => other,
        }
    }

    /// Waits until the gateway wants everything: nothing is frozen or read before. Says why it is wanted.
    async fn until_wanted<R: Receive>(&mut self, link: &mut Link<R>) -> Result<String, Fault> {
        loop {
            let incoming = tokio::select! {
                incoming = link.from.next() => incoming,
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            };
            match self.hear(incoming, None).await {
                Err(Fault::Resync(reason)) => return Ok(reason),
                Err(Fault::Wait(why)) => self.waits(why)?,
                other => {
                    other?;
                }
            }
        }
    }

    fn waits(&mut self, why: String) -> Result<(), Fault> {
        if !self.patient {
            return Err(Fault::Refused(Error::new(ErrorKind::Unavailable, why)));
        }
        (self.events)(Event::Waits(why));
        Ok(())
    }

    /// Ships one cycle, in this manner.
    ///
    /// # Errors
    /// `TooMuch` where a staged cut found too much to read; nothing was sent then.
    pub(crate) async fn one<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        plan: Plan,
        group: Option<GroupId>,
        manner: Manner,
    ) -> Result<Shipped, Unshipped> {
        let shipped = self.attempt(link, plan, group, manner).await;
        self.tracking.settle(shipped.is_ok());
        shipped
    }

    async fn attempt<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        plan: Plan,
        group: Option<GroupId>,
        manner: Manner,
    ) -> Result<Shipped, Unshipped> {
        let start = Instant::now();
        let full = matches!(plan, Plan::Full { .. });
        let cycle = CycleId::from_bytes(durable::random().map_err(Fault::Local)?);
        let stop = StopOnDrop(Stop::default());
        let cut = Cut {
            manner,
            tracking: self.tracking.clone(),
            vm: self.vm.clone(),
            cycle,
            plan,
            disks: self.disks.clone(),
            freeze: self.freeze_now(),
            skip: self.skip,
            base: self.state.run(|state| Ok(state.base())).await?,
            state_root: self.state_root.clone(),
            stop: stop.0.clone(),
            group,
            stopped: self.last.is_some(),
            proof: self.last.is_some_and(|last| last.proof),
        };
        let (out, mut runs) = mpsc::channel(MESSAGES);
        let state = self.state.clone();
        let (gate, opener) = group.map(gate).unzip();
        let cutting = spawn_blocking(move || {
            let time = || gate.map_or_else(|| Ok(now()), Gate::pass).map(|time| state.lock().cut_time(time));
            cut.make(time, |head| state.lock().begin(head), out)
        });
        let mut begun = None;
        let opened = match opener {
            Some(opener) => self.open_at_the_moment(link, opener).await,
            None => Ok(()),
        };
        let pumped = match opened {
            Ok(()) => self.pump(link, &mut runs, &mut begun).await,
            Err(fault) => Err(fault),
        };
        // Ends the cut if it has not ended; waited for in any case: everything is thawed then.
        drop((stop, runs));
        let cut = cutting.await.map_err(died).flatten();
        let (done, (time, consistency)) = match (pumped, cut, begun) {
            (Ok(()), Ok(Some(done)), Some(begun)) => (done, begun),
            (Ok(()), Ok(None), None) => return Err(Unshipped::TooMuch),
            (Err(fault), _, begun) => return Err(abort(link, begun.is_some(), group, fault).await.into()),
            (Ok(()), Err(error), begun) => {
                return Err(abort(link, begun.is_some(), group, Fault::Local(error)).await.into());
            }
            (Ok(()), Ok(_), _) => {
                return Err(Fault::Local(Error::new(ErrorKind::Bug, "a cut without a beginning")).into());
            }
        };
        let CutDone { journal, digest, read_bytes, sent_bytes, held, digests } = done;
        self.digests = digests;
        if consistency == Consistency::Application {
            self.hooked = Some(start);
        }
        if let Err(fault) = self.state.run(move |state| state.seal(cycle, journal)).await {
            return Err(abort(link, true, group, fault).await.into());
        }
        if let Err(fault) = self.deliver(link, FromAgent::End(End { cycle, digest })).await {
            return Err(abort(link, true, group, fault).await.into());
        }
        let unfinished = manner == Manner::Round;
        let mut shipped = Shipped {
            cycle,
            time,
            full,
            unfinished,
            consistency,
            read_bytes,
            sent_bytes,
            held,
            elapsed: start.elapsed(),
        };
        loop {
            let incoming = tokio::select! {
                incoming = link.from.next() => incoming,
                () = self.cancel.cancelled() => return Err(Fault::Cancelled.into()),
            };
            shipped.elapsed = start.elapsed();
            if self.hear(incoming, Some(shipped)).await? {
                return Ok(shipped);
            }
        }
    }

    /// What the cut freezes. A guest that is shut down has nothing to freeze, and nobody who would answer; its hooks are run when that is due.
    fn freeze_now(&self) -> Freeze {
        let mut freeze = self.freeze.clone();
        if let Some(last) = self.last {
            freeze.guest = None;
            // What is compared whole takes longer than anything may be held still, and what would write was stopped.
            if last.proof {
                (freeze.command, freeze.mounts) = (None, Vec::new());
            }
        }
        if let Some(guest) = &mut freeze.guest {
            let is_due = |hooks: &Hooks| self.hooked.is_none_or(|hooked| hooked.elapsed() >= hooks.every);
            guest.hooks.take_if(|hooks| !self.application && !is_due(hooks));
        }
        freeze
    }

    /// Sends what the cut gives, until it ends.
    async fn pump<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        runs: &mut mpsc::Receiver<FromAgent>,
        begun: &mut Option<(Timestamp, Consistency)>,
    ) -> Result<(), Fault> {
        loop {
            let message = tokio::select! {
                message = runs.recv() => message,
                incoming = link.from.next() => {
                    self.hear(incoming, None).await?;
                    continue;
                }
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            };
            let Some(message) = message else { return Ok(()) };
            if let FromAgent::Begin(begin) = &message {
                *begun = Some((begin.time, begin.consistency));
                if begin.consistency != Consistency::Unfinished {
                    (self.events)(Event::Cut { cycle: begin.cycle, time: begin.time });
                }
            }
            self.deliver(link, message).await?;
        }
    }

    /// Gives a message to the link, and hears what the gateway says meanwhile.
    pub(crate) async fn deliver<R: Receive>(&mut self, link: &mut Link<R>, message: FromAgent) -> Result<(), Fault> {
        loop {
            tokio::select! {
                permit = link.to.reserve() => {
                    let Ok(permit) = permit else { break };
                    permit.send(message);
                    return Ok(());
                }
                incoming = link.from.next() => {
                    self.hear(incoming, None).await?;
                }
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            }
        }
        // What the gateway said last tells why.
        while let Ok(incoming) = timeout(LAST_WORD_WAIT, link.from.next()).await {
            self.hear(incoming, None).await?;
        }
        Err(ended())
    }

    /// Does what a message of the gateway asks for; `true` where it says that the awaited cycle is spooled.
    pub(crate) async fn hear(
        &mut self,
        incoming: landfall_model::Result<Option<FromGateway>>,
        awaited: Option<Shipped>,
    ) -> Result<bool, Fault> {
        match incoming.map_err(Fault::Link)?.ok_or_else(ended)? {
            FromGateway::Spooled(cycle) => self.spooled(awaited.filter(|a| a.cycle == cycle)).await,
            FromGateway::Committed(cycle, timeline, seq) => {
                // What is committed is durable, whether that was said before or not.
                let spooled = self.spooled(awaited.filter(|a| a.cycle == cycle)).await?;
                let time = self.state.run(move |state| state.committed(cycle)).await?;
                (self.events)(Event::Committed { cycle, time, timeline, seq });
                Ok(spooled)
            }
            FromGateway::Resync(reason) => Err(Fault::Resync(reason)),
            FromGateway::Wait(why) => Err(Fault::Wait(why)),
            FromGateway::Refuse(code, reason) => Err(Fault::Refused(Error::new(kind_of_code(code), reason))),
            FromGateway::Alive => Ok(false),
            order @ (FromGateway::Hold(_)
            | FromGateway::Go
            | FromGateway::Prepare(..)
            | FromGateway::Freeze(_)
            | FromGateway::Cut(..)
            | FromGateway::Cancel(..)
            | FromGateway::Order(_)) => {
                self.order(order);
                Ok(false)
            }
            FromGateway::Welcome(_) => Err(Fault::Link(Error::corrupt("the gateway says welcome twice"))),
        }
    }

    async fn spooled(&mut self, shipped: Option<Shipped>) -> Result<bool, Fault> {
        let Some(shipped) = shipped else { return Ok(false) };
        self.state.run(move |state| state.spooled(shipped.cycle)).await?;
        (self.events)(if shipped.unfinished { Event::Round(shipped) } else { Event::Spooled(shipped) });
        Ok(true)
    }
}

/// As much of a text as a message may hold.
pub(crate) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// Tells the gateway that the cycle it has begun to take will not be completed, or that this machine takes no part in a group's cut. Where
/// it cannot be told, the link is of no use.
pub(crate) async fn abort<R>(link: &Link<R>, begun: bool, group: Option<GroupId>, fault: Fault) -> Fault {
    let why = match &fault {
        Fault::Link(_) | Fault::Refused(_) => return fault,
        _ if !begun && group.is_none() => return fault,
        Fault::Local(error) => error.to_string(),
        Fault::NoGroup(why) => why.clone(),
        Fault::Resync(_) | Fault::Wait(_) => "everything will be sent".to_owned(),
        Fault::Cancelled => "the agent stops".to_owned(),
    };
    let why = shortened(why);
    let message = match group {
        Some(id) if !begun => FromAgent::Unready(id, why),
        _ => FromAgent::Abort(why),
    };
    match (timeout(ABORT_WAIT, link.to.send(message)).await, fault) {
        (Ok(Ok(())), fault) | (_, fault @ (Fault::Cancelled | Fault::Local(_))) => fault,
        _ => ended(),
    }
}
