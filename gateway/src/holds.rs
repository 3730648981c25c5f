//! Why machines are to begin no cycle: the spool is nearly full, or an operator has paused them. And telling their agents so.
//!
//! A cycle in flight goes on: where the spool is full it waits by flow control. So nothing is lost, and nothing is frozen in vain.

use std::collections::BTreeMap;
use std::path::Path;

use landfall_model::{MachineName, Timestamp};
use landfall_wire::FromGateway;
use tokio::sync::{mpsc, watch};

/// Cycles begin again when there is so many times the room at which they were held.
const ENOUGH: u64 = 2;
/// They are held while less than one in so many bytes of the spool's budget is left.
const PART_LEFT: u64 = 10;
/// They are held while the spool's file system has less room than this, in bytes.
const DISK_LEFT: u64 = 64 << 20;

/// The room that a spool has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// Bytes that may still be spooled.
    pub(crate) left: u64,
    /// Most bytes that may be.
    pub(crate) budget: u64,
    /// Bytes that its file system has; `None` where that is not known.
    pub(crate) disk: Option<u64>,
}

impl Room {
    /// The room of a spool of so many bytes.
    pub(crate) fn of(folder: &Path, used: u64, budget: u64) -> Self {
        let stat = rustix::fs::statvfs(folder).ok();
        let disk = stat.map(|s| s.f_bavail.saturating_mul(s.f_frsize));
        Self { left: budget.saturating_sub(used), budget, disk }
    }

    fn is_enough(self, times: u64) -> bool {
        self.left >= self.budget / PART_LEFT * times && self.disk.is_none_or(|disk| disk >= DISK_LEFT * times)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Held {
    spool: Option<&'static str>,
    paused: BTreeMap<MachineName, Timestamp>,
}

impl Held {
    fn reason(&self, machine: &MachineName) -> Option<String> {
        match self.paused.get(machine) {
            Some(since) => Some(format!("an operator paused {machine} at {since}; `landfall resume` ends that")),
            None => self.spool.map(str::to_owned),
        }
    }
}

/// Who is held.
#[derive(Default)]
pub(crate) struct Holds(watch::Sender<Held>);

impl Holds {
    /// Looks at the spool's room and at who is paused.
    pub(crate) fn look(&self, room: Room, paused: BTreeMap<MachineName, Timestamp>) {
        let now_full = |was: Option<&'static str>| match was {
            Some(why) => (!room.is_enough(ENOUGH)).then_some(why),
            None if room.is_enough(1) => None,
            None if room.disk.is_some_and(|disk| disk < DISK_LEFT) => {
                Some("the disk of the gateway's spool is nearly full: make room on it")
            }
            None => Some("the gateway's spool is nearly full: it waits for the store"),
        };
        self.0.send_if_modified(|held| {
            let spool = now_full(held.spool);
            if spool != held.spool {
                tracing::warn!(why = spool.unwrap_or("the spool has room again"), "all machines: hold, or go on");
            }
            let changed = spool != held.spool || paused != held.paused;
            (held.spool, held.paused) = (spool, paused);
            changed
        });
    }

    /// Why a machine is held, if it is.
    pub(crate) fn reason(&self, machine: &MachineName) -> Option<String> {
        self.0.borrow().reason(machine)
    }

    /// Since when a machine is paused, if it is.
    pub(crate) fn paused(&self, machine: &MachineName) -> Option<Timestamp> {
        self.0.borrow().paused.get(machine).copied()
    }

    /// Tells an agent, until its link ends, when it is held, when it may go on, and whatever else it is given to say. `told` is what the agent knows.
    pub(crate) async fn tell(
        &self,
        machine: &MachineName,
        mut told: Option<String>,
        mut orders: mpsc::Receiver<FromGateway>,
        to: mpsc::Sender<FromGateway>,
    ) {
        let mut changes = self.0.subscribe();
        changes.mark_changed();
        loop {
            let message = tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let reason = changes.borrow_and_update().reason(machine);
                    if reason == told {
                        continue;
                    }
                    told.clone_from(&reason);
                    reason.map_or(FromGateway::Go, FromGateway::Hold)
                }
                order = orders.recv() => match order {
                    Some(order) => order,
                    None => return,
                },
            };
            if to.send(message).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn room(left: u64, disk: u64) -> Room {
        Room { left: left * MIB, budget: 1000 * MIB, disk: Some(disk * MIB) }
    }

    #[test]
    fn a_spool_that_is_nearly_full_holds_all_until_it_has_twice_the_room() {
        let (holds, web) = (Holds::default(), "web".parse().expect("a name"));
        let held = |left, disk| {
            holds.look(room(left, disk), BTreeMap::new());
            holds.reason(&web).is_some()
        };
        assert!(!held(1000, 1000) && !held(100, 1000), "a tenth is enough");
        assert!(held(99, 1000) && held(150, 1000) && held(199, 1000), "until there is twice as much");
        assert!(!held(200, 1000) && !held(100, 1000));
        assert!(held(1000, 63) && held(1000, 100), "the disk itself");
        assert!(!held(1000, 128) && !held(1000, 64));
    }

    #[tokio::test]
    async fn an_agent_is_told_what_changed_and_its_orders_in_between() {
        let (holds, web): (_, MachineName) = (Holds::default(), "web".parse().expect("a name"));
        let paused = |at| BTreeMap::from([(web.clone(), Timestamp::from_millis(at))]);
        holds.look(room(1000, 1000), paused(1));
        let (to, mut told) = mpsc::channel(1);
        let (order, orders) = mpsc::channel(1);
        let telling = holds.tell(&web, holds.reason(&web), orders, to);
        let test = async {
            holds.look(room(1000, 1000), BTreeMap::new());
            assert_eq!(told.recv().await, Some(FromGateway::Go), "what Welcome said is not said again");
            order.send(FromGateway::Alive).await.expect("taken");
            assert_eq!(told.recv().await, Some(FromGateway::Alive));
            holds.look(room(1, 1000), BTreeMap::new());
            let Some(FromGateway::Hold(why)) = told.recv().await else { panic!("held") };
            assert!(why.contains("waits for the store"), "{why}");
            holds.look(room(1, 1000), paused(2));
            let Some(FromGateway::Hold(why)) = told.recv().await else { panic!("held") };
            assert!(why.contains("paused web at 1970-01-01"), "{why}");
            drop(order);
        };
        tokio::join!(telling, test);
    }
}
