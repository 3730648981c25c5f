//! What a gateway asks for beside cycles: to hold, and to take part in a group's cut.
//!
//! ```text
//!   Prepare -> Ready -> Freeze -> freeze -> Frozen -> Cut(moment) -> a cycle as any other, with the group's id
//! ```
//! # Bounds
//! Whatever the gateway leaves unsaid: an agent that is prepared goes on after [`PREPARED_MAX`], one that is frozen thaws after [`FROZEN_MAX`].
//! Both are longer than the gateway waits for the other members. A moment that is named later is not heeded.

use std::collections::VecDeque;
use std::sync::mpsc as threads;
use std::time::Duration;

use landfall_model::{Consistency, CycleId, Error, ErrorKind, GroupId, GroupName, Result, Timestamp};
use landfall_wire::{FromAgent, FromGateway, Order};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::link::{Link, Receive};
use crate::ship::{Event, Fault, Shipped, Shipper, abort};

/// After `Ready`: the others may still be in a cycle.
const PREPARED_MAX: Duration = Duration::from_secs(60);
/// From the beginning of the freezing until the moment is named.
const FROZEN_MAX: Duration = Duration::from_secs(15);
/// Orders of operators that wait for the end of a cycle.
const ORDERS_MAX: usize = 16;
const NOTHING_TO_FREEZE: &str = "nothing can be held still on this machine, so its point would be of no one moment: \
    set freeze_command, or mounts for every disk, in the agent's configuration";
const HELD_BY_SNAPSHOTS: &str = "file systems of this machine are held still by LVM's snapshots only, each at its own moment: \
    set freeze_command, or source = \"ebpf\" for their disks, in the agent's configuration";

/// How far a group's cut is.
#[derive(Debug)]
enum Step {
    Prepare(GroupName),
    Freeze,
    Cut(Timestamp),
    Cancel(String),
}

/// What was heard last, on one link.
#[derive(Default, Debug)]
pub(crate) struct Orders {
    held: Option<String>,
    group: Option<(GroupId, Step)>,
    /// What operators want done, in the order in which it was heard.
    waiting: VecDeque<Order>,
}

impl Orders {
    /// Why no cycle is to begin.
    pub(crate) fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// The group's cut that is to be prepared.
    pub(crate) fn prepare(&self) -> Option<(GroupId, &GroupName)> {
        match &self.group {
            Some((id, Step::Prepare(name))) => Some((*id, name)),
            _ => None,
        }
    }

    /// What an operator wants done, once.
    pub(crate) fn take_order(&mut self) -> Option<Order> {
        self.waiting.pop_front()
    }

    /// Of more than can be kept in mind, whoever ordered hears nothing, and orders again.
    fn wants(&mut self, order: Order) {
        if self.waiting.len() < ORDERS_MAX && !self.waiting.contains(&order) {
            self.waiting.push_back(order);
        }
    }

    /// A step of the cut that was prepared; what is said of another is late.
    fn step(&mut self, id: GroupId, step: Step) {
        if let Some((known, before)) = &mut self.group
            && *known == id
        {
            *before = step;
        }
    }

    /// How far a cut is; `None` where another has begun.
    fn of(&self, id: GroupId) -> Option<&Step> {
        self.group.as_ref().filter(|(known, _)| *known == id).map(|(_, step)| step)
    }

    fn is_over(&mut self, id: GroupId) {
        self.group.take_if(|(known, _)| *known == id);
    }
}

/// Where the thread that has frozen everything waits for the moment.
pub(crate) struct Gate {
    frozen: oneshot::Sender<()>,
    moment: threads::Receiver<Timestamp>,
}

/// Who opens the gate; dropped, nobody passes.
pub(crate) struct Opener {
    id: GroupId,
    frozen: oneshot::Receiver<()>,
    moment: threads::Sender<Timestamp>,
}

/// A gate for a group's cut, and who opens it.
pub(crate) fn gate(id: GroupId) -> (Gate, Opener) {
    let ((said, frozen), (name, moment)) = (oneshot::channel(), threads::channel());
    (Gate { frozen: said, moment }, Opener { id, frozen, moment: name })
}

impl Gate {
    /// Everything is frozen: blocks until the moment is named.
    ///
    /// # Errors
    /// `Unavailable` where it is not.
    pub(crate) fn pass(self) -> Result<Timestamp> {
        // Who would open it may have gone; then there is no moment either.
        let _ = self.frozen.send(());
        self.moment
            .recv_timeout(FROZEN_MAX)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the group's cut did not take place"))
    }
}

impl Shipper {
    /// Takes part in a group's cut. `None` where that does not take place: the link is as good as before, and nothing is frozen.
    ///
    /// # Errors
    /// As for [`Shipper::ship`].
    pub(crate) async fn ship_in_group<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
        id: GroupId,
    ) -> std::result::Result<Option<Shipped>, Fault> {
        let outcome = match self.rounds_before(link, newest).await {
            Ok(newest) => match self.prepared(link, id).await {
                Ok(()) => self.ship_at(link, newest, id).await,
                Err(fault) => Err(abort(link, false, Some(id), fault).await),
            },
            Err(fault) => Err(abort(link, false, Some(id), fault).await),
        };
        self.orders.is_over(id);
        match outcome {
            Ok(shipped) => Ok(Some(shipped)),
            Err(Fault::NoGroup(why)) => {
                tracing::info!(group = %id, why, "no point of the group");
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    /// Says that nothing is in flight, and waits until all members have said so.
    async fn prepared<R: Receive>(&mut self, link: &mut Link<R>, id: GroupId) -> std::result::Result<(), Fault> {
        if self.freeze.consistency() == Consistency::Crash {
            return Err(Fault::NoGroup(NOTHING_TO_FREEZE.to_owned()));
        }
        if !self.freeze.holds_until_the_cut() {
            return Err(Fault::NoGroup(HELD_BY_SNAPSHOTS.to_owned()));
        }
        self.deliver(link, FromAgent::Ready(id)).await?;
        let late = sleep(PREPARED_MAX);
        tokio::pin!(late);
        loop {
            match self.orders.of(id) {
                Some(Step::Freeze) => return Ok(()),
                Some(Step::Prepare(_)) => {}
                other => return Err(no_group(other)),
            }
            tokio::select! {
                incoming = link.from.next() => {
                    self.hear(incoming, None).await?;
                }
                () = &mut late => return Err(silent(PREPARED_MAX)),
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            }
        }
    }

    /// Says when everything is frozen, waits for the moment, and opens the gate. Also `Ok` where the freezing failed: the cut says why.
    pub(crate) async fn open_at_the_moment<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        mut opener: Opener,
    ) -> std::result::Result<(), Fault> {
        let id = opener.id;
        let late = sleep(FROZEN_MAX);
        tokio::pin!(late);
        let mut told = false;
        loop {
            match self.orders.of(id) {
                Some(Step::Cut(moment)) if told => {
                    // Where nobody waits any more the cut says why.
                    let _ = opener.moment.send(*moment);
                    return Ok(());
                }
                Some(Step::Freeze) => {}
                other => return Err(no_group(other)),
            }
            tokio::select! {
                frozen = &mut opener.frozen, if !told => {
                    if frozen.is_err() {
                        return Ok(());
                    }
                    told = true;
                    self.deliver(link, FromAgent::Frozen(id)).await?;
                }
                incoming = link.from.next() => {
                    self.hear(incoming, None).await?;
                }
                () = &mut late => return Err(silent(FROZEN_MAX)),
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            }
        }
    }

    /// The gateway holds this machine from now on, or lets it go.
    pub(crate) fn hold(&mut self, reason: Option<String>) {
        if self.orders.held != reason {
            self.orders.held.clone_from(&reason);
            (self.events)(Event::Held(reason));
        }
    }

    /// Hears what is not of a cycle.
    pub(crate) fn order(&mut self, message: FromGateway) {
        match message {
            FromGateway::Hold(why) => self.hold(Some(why)),
            FromGateway::Go => self.hold(None),
            FromGateway::Prepare(id, name) => self.orders.group = Some((id, Step::Prepare(name))),
            FromGateway::Freeze(id) => self.orders.step(id, Step::Freeze),
            FromGateway::Cut(id, moment) => self.orders.step(id, Step::Cut(moment)),
            FromGateway::Cancel(id, why) => self.orders.step(id, Step::Cancel(why)),
            FromGateway::Order(order) => self.orders.wants(order),
            _ => {}
        }
    }
}

fn silent(longest: Duration) -> Fault {
    Fault::NoGroup(format!("the gateway said nothing more of it within {} s", longest.as_secs()))
}

fn no_group(step: Option<&Step>) -> Fault {
    Fault::NoGroup(match step {
        Some(Step::Cancel(why)) => why.clone(),
        Some(_) => "the gateway said its steps out of order".to_owned(),
        None => "another cut of the group has begun".to_owned(),
    })
}
