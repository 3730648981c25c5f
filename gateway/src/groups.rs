//! Consistency groups: machines whose points are of one moment (ADR 0014).
//!
//! ```text
//!   Prepare -> all ready -> Freeze -> all frozen -> the moment -> Cut -> each begins its cycle, which is marked -> all spooled
//!        '----------'-------------------'-- any fails, or is late: Cancel, and nothing is marked
//! ```
//! A mark stands for one cut only: it is given to a `Begin` that names the cut, of a machine that was frozen when the moment was named, once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use landfall_model::{Consistency, Error, ErrorKind, GroupId, GroupMark, GroupName, MachineName, Result, Timestamp};
use landfall_vault::now;
use landfall_wire::{Begin, FromAgent, FromGateway};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::holds::Holds;
use crate::status::Board;

/// From `Prepare` until no member is in a cycle.
const READY_MAX: Duration = Duration::from_secs(30);
/// From `Freeze` until all members are frozen. An agent waits longer for the moment.
const FROZEN_MAX: Duration = Duration::from_secs(10);
/// From the moment until every member has begun its cycle, or said that it does not: an agent that hears no `Cut` does so earlier.
const BEGUN_MAX: Duration = Duration::from_secs(60);
/// What is to be said to an agent and was not yet: a few steps.
const ORDERS_WAITING_MAX: usize = 16;
/// How often it is looked whether all members have come, after the gateway was started.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A group, as it is configured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupConfig {
    /// Its name.
    pub name: GroupName,
    /// Its machines: at least two, each in no other group.
    pub machines: Vec<MachineName>,
    /// From cut to cut.
    pub interval: Duration,
}

/// How far a member is in a cut.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    Asked,
    Ready,
    Frozen,
    Sending,
    Spooled,
    Failed(String),
}

/// One cut.
#[derive(Clone, Debug)]
struct Cut {
    id: GroupId,
    moment: Option<Timestamp>,
    stages: BTreeMap<MachineName, Stage>,
}

impl Cut {
    fn all(&self, stage: &Stage) -> bool {
        self.stages.values().all(|s| s == stage)
    }

    /// The first member that failed, and why.
    fn failed(&self) -> Option<String> {
        self.stages.iter().find_map(|(machine, stage)| match stage {
            Stage::Failed(why) => Some(format!("{machine}: {why}")),
            _ => None,
        })
    }

    /// The members that are not so far.
    fn behind(&self, stage: &Stage) -> String {
        let behind = self.stages.iter().filter(|(_, s)| *s != stage).map(|(machine, _)| machine.to_string());
        behind.collect::<Vec<_>>().join(", ")
    }
}

struct Group {
    config: GroupConfig,
    cut: watch::Sender<Option<Cut>>,
}

impl Group {
    /// Changes how far a member is in the cut under way, if it is in one.
    fn change(&self, machine: &MachineName, change: impl FnOnce(&mut Cut, &mut Stage)) {
        self.cut.send_modify(|cut| {
            let Some(cut) = cut else { return };
            let Some(mut stage) = cut.stages.remove(machine) else { return };
            change(cut, &mut stage);
            cut.stages.insert(machine.clone(), stage);
        });
    }
}

/// The groups of a gateway, and the links of all machines.
pub(crate) struct Groups {
    groups: Vec<Arc<Group>>,
    links: Mutex<HashMap<MachineName, AgentLink>>,
}

/// The link of a machine's agent.
#[derive(Clone)]
pub(crate) struct AgentLink {
    /// What is to be said on it beside cycles.
    pub(crate) orders: mpsc::Sender<FromGateway>,
    /// The version of the protocol that both speak.
    pub(crate) version: u32,
    /// Tells it from those before it.
    pub(crate) number: u64,
}

/// A machine while it has a link; dropped, it is out of the cut under way.
pub(crate) struct Member {
    groups: Arc<Groups>,
    machine: MachineName,
    group: Option<Arc<Group>>,
}

impl Groups {
    pub(crate) fn new(configs: &[GroupConfig]) -> Self {
        let group = |config: &GroupConfig| Arc::new(Group { config: config.clone(), cut: watch::Sender::new(None) });
        Self { groups: configs.iter().map(group).collect(), links: Mutex::default() }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<MachineName, AgentLink>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link of a machine, if it has one here.
    pub(crate) fn link(&self, machine: &MachineName) -> Option<AgentLink> {
        self.links().get(machine).cloned()
    }

    /// A machine has a link of this version; also gives what is to be said on it.
    pub(crate) fn join(self: &Arc<Self>, machine: &MachineName, version: u32) -> (Member, mpsc::Receiver<FromGateway>) {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let (to_agent, orders) = mpsc::channel(ORDERS_WAITING_MAX);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.links().insert(machine.clone(), AgentLink { orders: to_agent, version, number });
        let group = self.groups.iter().find(|g| g.config.machines.contains(machine)).cloned();
        (Member { groups: self.clone(), machine: machine.clone(), group }, orders)
    }

    /// Takes the cuts of all groups, until told to end.
    pub(crate) async fn run(self: Arc<Self>, holds: Arc<Holds>, board: Arc<Board>, mut ended: watch::Receiver<bool>) {
        let mut tasks = tokio::task::JoinSet::new();
        for group in &self.groups {
            let (groups, group, holds, board) = (self.clone(), group.clone(), holds.clone(), board.clone());
            tasks.spawn(async move { groups.keep(&group, &holds, &board).await });
        }
        // Without a group nothing is waited for.
        tokio::select! {
            _ = ended.wait_for(|e| *e) => {}
            () = async { while tasks.join_next().await.is_some() {} } => {}
        }
    }

    async fn keep(&self, group: &Group, holds: &Holds, board: &Board) {
        let name = &group.config.name;
        let _ = timeout(group.config.interval, self.until_linked(group)).await;
        let mut ticks = interval(group.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            match self.take(group, holds).await {
                Ok((id, moment)) => {
                    tracing::info!(group = %name, %id, %moment, "the group's points are spooled");
                    board.group(name, |g| g.taken(id, moment));
                }
                Err(error) => {
                    tracing::warn!(group = %name, %error, "the group was missed");
                    board.group(name, |g| g.missed(error.to_string()));
                }
            }
        }
    }

    async fn until_linked(&self, group: &Group) {
        while self.absent(group).is_some() {
            sleep(LOOK_EVERY).await;
        }
    }

    fn absent(&self, group: &Group) -> Option<MachineName> {
        let links = self.links();
        group.config.machines.iter().find(|m| !links.contains_key(*m)).cloned()
    }

    /// Takes one cut; gives its id and its moment when every member's point is spooled.
    ///
    /// # Errors
    /// `Unavailable`, saying which member and why.
    async fn take(&self, group: &Group, holds: &Holds) -> Result<(GroupId, Timestamp)> {
        if let Some(machine) = self.absent(group) {
            return Err(missed(format!("{machine} has no link to this gateway")));
        }
        if let Some((machine, why)) = group.config.machines.iter().find_map(|m| Some((m, holds.reason(m)?))) {
            return Err(missed(format!("{machine} is held: {why}")));
        }
        let mut bytes = [0; GroupId::LEN];
        getrandom::fill(&mut bytes).map_err(|e| Error::new(ErrorKind::Bug, format!("no randomness: {e}")))?;
        let id = GroupId::from_bytes(bytes);
        let stages = group.config.machines.iter().map(|m| (m.clone(), Stage::Asked)).collect();
        group.cut.send_replace(Some(Cut { id, moment: None, stages }));
        let outcome = match self.moment(group, id).await {
            Ok(moment) => spooled(group, moment).await.map(|()| (id, moment)),
            Err(error) => {
                self.say(group, &FromGateway::Cancel(id, error.to_string()));
                Err(error)
            }
        };
        group.cut.send_replace(None);
        outcome
    }

    /// Has all members hold still, and names the moment.
    async fn moment(&self, group: &Group, id: GroupId) -> Result<Timestamp> {
        self.say(group, &FromGateway::Prepare(id, group.config.name.clone()));
        until(group, &Stage::Ready, READY_MAX, "in a cycle, or silent").await?;
        self.say(group, &FromGateway::Freeze(id));
        until(group, &Stage::Frozen, FROZEN_MAX, "not frozen").await?;
        let mut moment = None;
        group.cut.send_modify(|cut| {
            if let Some(cut) = cut.as_mut().filter(|c| c.all(&Stage::Frozen)) {
                cut.moment = Some(now());
                moment = cut.moment;
            }
        });
        let moment = moment.ok_or_else(|| missed("a member was lost when all were frozen".to_owned()))?;
        self.say(group, &FromGateway::Cut(id, moment));
        Ok(moment)
    }

    /// Says something to every member. Who cannot be told is late, and the cut is cancelled for that.
    fn say(&self, group: &Group, message: &FromGateway) {
        let links = self.links();
        for link in group.config.machines.iter().filter_map(|m| links.get(m)) {
            let _ = link.orders.try_send(message.clone());
        }
    }
}

fn missed(why: String) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

/// Waits until every member is so far.
async fn until(group: &Group, stage: &Stage, longest: Duration, late: &str) -> Result<()> {
    let mut cut = group.cut.subscribe();
    let settled = cut.wait_for(|cut| cut.as_ref().is_none_or(|c| c.all(stage) || c.failed().is_some()));
    let _ = timeout(longest, settled).await;
    let cut = group.cut.borrow();
    let Some(cut) = cut.as_ref() else { return Err(missed("the cut is over".to_owned())) };
    match cut.failed() {
        Some(why) => Err(missed(why)),
        None if cut.all(stage) => Ok(()),
        None => Err(missed(format!("{}: still {late} after {} s", cut.behind(stage), longest.as_secs()))),
    }
}

/// After the moment: waits until each member's point is spooled, or can no longer be.
async fn spooled(group: &Group, moment: Timestamp) -> Result<()> {
    let mut cut = group.cut.subscribe();
    let begun = cut.wait_for(|cut| cut.as_ref().is_none_or(|c| !c.stages.values().any(|s| *s == Stage::Frozen)));
    if timeout(BEGUN_MAX, begun).await.is_err() {
        for machine in &group.config.machines {
            group.change(machine, |_, stage| {
                if *stage == Stage::Frozen {
                    *stage = Stage::Failed(format!("it did not begin within {} s", BEGUN_MAX.as_secs()));
                }
            });
        }
    }
    let over = |s: &Stage| matches!(s, Stage::Spooled | Stage::Failed(_));
    let settled = cut.wait_for(|cut| cut.as_ref().is_none_or(|c| c.stages.values().all(over))).await;
    let failed = settled.ok().and_then(|cut| cut.as_ref().and_then(Cut::failed));
    failed.map_or(Ok(()), |why| Err(missed(format!("the group of {moment} is incomplete: {why}"))))
}

impl Member {
    /// What the agent says of a cut.
    pub(crate) fn said(&self, message: FromAgent) {
        let (id, next) = match message {
            FromAgent::Ready(id) => (id, Stage::Ready),
            FromAgent::Frozen(id) => (id, Stage::Frozen),
            FromAgent::Unready(id, why) => (id, Stage::Failed(why)),
            _ => return,
        };
        self.change(|cut, stage| {
            let follows = matches!(
                (&*stage, &next),
                (Stage::Asked, Stage::Ready)
                    | (Stage::Ready, Stage::Frozen)
                    | (Stage::Asked | Stage::Ready | Stage::Frozen, Stage::Failed(_))
            );
            if cut.id == id && follows {
                *stage = next;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Cut, &mut Stage)) {
        if let Some(group) = &self.group {
            group.change(&self.machine, change);
        }
    }

    /// A cycle begins: its mark, where it is of the cut whose moment was named.
    pub(crate) fn mark(&self, begin: &Begin) -> Option<GroupMark> {
        let config = &self.group.as_ref()?.config;
        let mut mark = None;
        self.change(|cut, stage| match (cut.moment, &*stage) {
            // The cycle that was in flight, or one that never heard of the cut.
            (_, Stage::Asked | Stage::Spooled | Stage::Failed(_)) => {}
            (Some(time), Stage::Frozen) if begin.group == Some(cut.id) => {
                if begin.consistency < Consistency::Filesystem {
                    *stage = Stage::Failed("it says that nothing was frozen".to_owned());
                    return;
                }
                let (name, members) = (config.name.clone(), config.machines.clone());
                mark = Some(GroupMark { name, id: cut.id, time, members });
                *stage = Stage::Sending;
            }
            _ => *stage = Stage::Failed("it began another cycle".to_owned()),
        });
        mark
    }

    /// What became of the cycle that was marked.
    pub(crate) fn done(&self, outcome: std::result::Result<(), String>) {
        self.change(|_, stage| {
            if *stage == Stage::Sending {
                *stage = outcome.map_or_else(Stage::Failed, |()| Stage::Spooled);
            }
        });
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.groups.links().remove(&self.machine);
        self.change(|_, stage| {
            if !matches!(stage, Stage::Spooled | Stage::Failed(_)) {
                *stage = Stage::Failed("its link ended".to_owned());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landfall_model::CycleId;

    /// A machine with a link, as its agent sees it.
    struct Agent {
        member: Member,
        orders: mpsc::Receiver<FromGateway>,
    }

    impl Agent {
        async fn hears(&mut self) -> FromGateway {
            let said = timeout(Duration::from_secs(600), self.orders.recv()).await;
            said.expect("something is said").expect("a link")
        }

        async fn is_ready(&mut self) -> GroupId {
            let FromGateway::Prepare(id, name) = self.hears().await else { panic!("prepare") };
            assert_eq!(name.as_str(), "shop");
            self.member.said(FromAgent::Ready(id));
            id
        }

        async fn is_frozen(&mut self) -> GroupId {
            let id = self.is_ready().await;
            assert_eq!(self.hears().await, FromGateway::Freeze(id));
            self.member.said(FromAgent::Frozen(id));
            id
        }

        async fn is_cancelled(&mut self) -> String {
            let FromGateway::Cancel(_, why) = self.hears().await else { panic!("cancel") };
            why
        }
    }

    fn machine(name: &str) -> MachineName {
        name.parse().expect("a name")
    }

    fn two() -> (Arc<Groups>, Agent, Agent) {
        let machines = vec![machine("web"), machine("db")];
        let interval = Duration::from_secs(60);
        let groups =
            Arc::new(Groups::new(&[GroupConfig { name: "shop".parse().expect("a name"), machines, interval }]));
        let agent = |name| {
            let (member, orders) = groups.join(&machine(name), 3);
            Agent { member, orders }
        };
        let (web, db) = (agent("web"), agent("db"));
        (groups, web, db)
    }

    fn begin(group: Option<GroupId>, consistency: Consistency) -> Begin {
        let cycle = CycleId::from_bytes([1; 16]);
        Begin {
            cycle,
            parent: None,
            time: now(),
            consistency,
            disks: Vec::new(),
            group,
            shape: None,
            hooks: Vec::new(),
        }
    }

    async fn both_frozen(web: &mut Agent, db: &mut Agent) -> GroupId {
        let (id, other) = tokio::join!(web.is_frozen(), db.is_frozen());
        assert_eq!(id, other);
        id
    }

    async fn take(groups: &Groups) -> Result<(GroupId, Timestamp)> {
        groups.take(&groups.groups[0], &Holds::default()).await
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_are_frozen_each_gets_one_mark_of_one_moment() {
        let (groups, mut web, mut db) = two();
        let agents = async {
            let id = both_frozen(&mut web, &mut db).await;
            assert_eq!(web.member.mark(&begin(Some(id), Consistency::Application)), None, "before the moment");
            // It is not of this cut any more.
            assert!(web.is_cancelled().await.contains("web: it began another cycle"));
            assert!(db.is_cancelled().await.contains("web: "));
            assert_eq!(db.member.mark(&begin(Some(id), Consistency::Application)), None, "of a cut that was cancelled");
        };
        let (outcome, ()) = tokio::join!(take(&groups), agents);
        assert!(outcome.is_err());

        let agents = async {
            let id = both_frozen(&mut web, &mut db).await;
            let FromGateway::Cut(_, moment) = web.hears().await else { panic!("cut") };
            assert_eq!(db.hears().await, FromGateway::Cut(id, moment));
            let mark = web.member.mark(&begin(Some(id), Consistency::Filesystem)).expect("a mark");
            assert_eq!((mark.id, mark.time, mark.members.len()), (id, moment, 2));
            assert_eq!(web.member.mark(&begin(Some(id), Consistency::Filesystem)), None, "once");
            assert_eq!(db.member.mark(&begin(Some(id), Consistency::Application)), Some(mark));
            db.member.done(Ok(()));
            (id, moment)
        };
        let (outcome, agreed) = tokio::join!(take(&groups), agents);
        let why = outcome.expect_err("web began twice").to_string();
        assert!(
            why.contains(&format!("the group of {} is incomplete: web: it began another cycle", agreed.1)),
            "{why}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_is_taken_when_every_members_point_is_spooled() {
        let (groups, mut web, mut db) = two();
        let agents = async {
            let id = both_frozen(&mut web, &mut db).await;
            let FromGateway::Cut(_, moment) = web.hears().await else { panic!("cut") };
            for agent in [&web, &db] {
                assert!(agent.member.mark(&begin(Some(id), Consistency::Application)).is_some());
                agent.member.done(Ok(()));
            }
            (id, moment)
        };
        let (outcome, agreed) = tokio::join!(take(&groups), agents);
        assert_eq!(outcome.expect("taken"), agreed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_late_or_lost_or_unready_cancels_the_cut_for_all() {
        let (groups, mut web, mut db) = two();
        let (outcome, why) = tokio::join!(take(&groups), async {
            web.is_ready().await;
            let FromGateway::Prepare(..) = db.hears().await else { panic!("prepare") };
            (web.is_cancelled().await, db.is_cancelled().await)
        });
        assert!(why.0 == why.1 && why.0.starts_with("db: still in a cycle, or silent after 30 s"), "{why:?}");
        assert_eq!(outcome.expect_err("late").to_string(), why.0);

        let (outcome, why) = tokio::join!(take(&groups), async {
            let (id, _) = tokio::join!(web.is_frozen(), db.is_ready());
            assert_eq!(db.hears().await, FromGateway::Freeze(id));
            (web.is_cancelled().await, db.is_cancelled().await)
        });
        assert!(why.0 == why.1 && why.0.starts_with("db: still not frozen after 10 s"), "{why:?}");
        assert!(outcome.is_err());

        let (outcome, why) = tokio::join!(take(&groups), async {
            let (id, _) = tokio::join!(web.is_frozen(), db.is_ready());
            assert_eq!(db.hears().await, FromGateway::Freeze(id));
            db.member.said(FromAgent::Unready(id, "it cannot".to_owned()));
            assert_eq!(db.is_cancelled().await, "db: it cannot");
            web.is_cancelled().await
        });
        assert!(why == "db: it cannot" && outcome.is_err(), "{why}");

        let (outcome, why) = tokio::join!(take(&groups), async {
            tokio::join!(web.is_frozen(), db.is_ready());
            drop(db);
            web.is_cancelled().await
        });
        assert!(why == "db: its link ended" && outcome.is_err(), "{why}");
        assert_eq!(take(&groups).await.expect_err("alone").to_string(), "db has no link to this gateway");
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_moment_a_member_that_does_not_ship_leaves_the_cut_incomplete() {
        let fates: [fn(&Agent, GroupId); 4] = [
            |_, _| {},
            |agent, id| agent.member.said(FromAgent::Unready(id, "it gave up".to_owned())),
            |agent, id| assert_eq!(agent.member.mark(&begin(Some(id), Consistency::Crash)), None),
            |agent, id| {
                assert!(agent.member.mark(&begin(Some(id), Consistency::Application)).is_some());
                agent.member.done(Err("the disk went".to_owned()));
            },
        ];
        let whys = ["did not begin within 60 s", "it gave up", "nothing was frozen", "the disk went"];
        for (fate, wanted) in fates.into_iter().zip(whys) {
            let (groups, mut web, mut db) = two();
            let (outcome, ()) = tokio::join!(take(&groups), async {
                let id = both_frozen(&mut web, &mut db).await;
                let (FromGateway::Cut(..), FromGateway::Cut(..)) = (web.hears().await, db.hears().await) else {
                    panic!("cut")
                };
                assert!(web.member.mark(&begin(Some(id), Consistency::Application)).is_some());
                web.member.done(Ok(()));
                fate(&db, id);
            });
            let why = outcome.expect_err("incomplete").to_string();
            assert!(why.contains("is incomplete: db: ") && why.contains(wanted), "{why}");
        }
    }
}
