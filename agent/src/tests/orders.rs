//! What a gateway asks for beside cycles: to hold, and to take part in a group's cut.

use std::time::Duration;

use landfall_model::{Consistency, ErrorKind, GroupId, Timestamp};
use landfall_wire::{FromAgent, FromGateway};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::looping::{Site, until};
use super::machine::{BLOCK, Machine, noise};
use crate::cancel::Cancel;
use crate::run::Agent;
use crate::status::Status;

const ID: GroupId = GroupId::from_bytes([6; 16]);
/// Later than the clock of any host that runs this.
fn moment() -> Timestamp {
    Timestamp::from_millis(32_503_680_000_000)
}

/// An agent whose freeze command keeps a log, and that has shipped its first cycle.
struct Running {
    machine: Machine,
    site: Site,
    cancel: Cancel,
    agent: JoinHandle<()>,
}

impl Running {
    /// `more` is run by the freeze command first.
    async fn start(more: &str, interval: Duration) -> Self {
        let mut machine = Machine::new(&[("root", 5 * BLOCK)]);
        let log = machine.folder.path().join("log");
        machine.freeze_command = Some(format!("{more}\necho $LANDFALL_PHASE >> {}", log.display()));
        Self::of(machine, interval).await
    }

    async fn of(machine: Machine, interval: Duration) -> Self {
        let (site, cancel) = (Site::default(), Cancel::default());
        let mut config = machine.config();
        config.interval = interval;
        let agent = Agent::open(&config, site.clone(), &cancel).expect("an agent");
        let agent = tokio::spawn(agent.run());
        until("a first cycle", || site.gateway.count() == 1).await;
        Self { machine, site, cancel, agent }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.machine.folder.path().join("log")).unwrap_or_default()
    }

    fn status(&self) -> Status {
        Status::read(&self.machine.state_dir()).expect("readable").expect("written")
    }

    async fn until_said(&self, message: FromAgent) {
        until(&format!("{message:?}"), || self.site.gateway.said().contains(&message)).await;
    }

    /// Why it took no part, once it has said so.
    async fn unready(&self) -> String {
        let why = || {
            self.site.gateway.said().into_iter().find_map(|m| match m {
                FromAgent::Unready(ID, why) => Some(why),
                _ => None,
            })
        };
        until("it takes no part", || why().is_some()).await;
        why().expect("said")
    }

    async fn prepare_and_freeze(&self) {
        let gateway = &self.site.gateway;
        gateway.say(FromGateway::Prepare(ID, "shop".parse().expect("a name"))).await;
        self.until_said(FromAgent::Ready(ID)).await;
        gateway.say(FromGateway::Freeze(ID)).await;
    }

    async fn stop(self) {
        self.cancel.cancel();
        timeout(Duration::from_secs(20), self.agent).await.expect("it stops").expect("in order");
    }
}

const RARELY: Duration = Duration::from_secs(3600);
const OWN: &str = "freeze\nthaw\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_cycle_is_of_the_moment_and_frozen_from_before_it_to_its_end() {
    let running = Running::start("true", RARELY).await;
    let gateway = &running.site.gateway;
    gateway.say(FromGateway::Prepare(ID, "shop".parse().expect("a name"))).await;
    running.until_said(FromAgent::Ready(ID)).await;
    assert_eq!(running.log(), OWN, "nothing is frozen while others are in a cycle");
    gateway.say(FromGateway::Freeze(GroupId::from_bytes([7; 16]))).await;
    gateway.say(FromGateway::Freeze(ID)).await;
    running.until_said(FromAgent::Frozen(ID)).await;
    assert_eq!(running.log(), format!("{OWN}freeze\n"));
    // What is written until here was written before the moment.
    running.machine.write("root", 0, &noise(1, BLOCK));
    gateway.say(FromGateway::Cut(GroupId::from_bytes([7; 16]), Timestamp::from_millis(1))).await;
    assert_eq!(gateway.count(), 1, "nothing is sent before the moment");
    gateway.say(FromGateway::Cut(ID, moment())).await;
    until("the group's cycle", || gateway.count() == 2).await;
    let begin = gateway.last().begin;
    assert_eq!((begin.group, begin.time, begin.consistency), (Some(ID), moment(), Consistency::Application));
    running.machine.check(gateway);
    assert_eq!(running.log(), format!("{OWN}{OWN}"));
    assert_eq!(gateway.said(), [FromAgent::Ready(ID), FromAgent::Frozen(ID)]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_in_flight_is_finished_before_a_member_is_ready() {
    let folder = tempfile::tempdir().expect("a folder");
    let (block, waits) = (folder.path().join("block"), folder.path().join("waits"));
    let wait = format!("while [ -e {} ]; do touch {}; sleep 0.02; done", block.display(), waits.display());
    let running = Running::start(&wait, Duration::from_secs(1)).await;
    std::fs::write(&block, "").expect("a file");
    until("a cycle is in flight", || waits.exists()).await;
    let gateway = &running.site.gateway;
    let count = gateway.count();
    gateway.say(FromGateway::Prepare(ID, "shop".parse().expect("a name"))).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!((gateway.said(), gateway.count()), (Vec::new(), count), "it is in a cycle");
    std::fs::remove_file(&block).expect("removed");
    running.until_said(FromAgent::Ready(ID)).await;
    assert_eq!(gateway.count(), count + 1, "that cycle, and no other");
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(gateway.count(), count + 1, "none begins while the others are waited for");
    gateway.say(FromGateway::Cancel(ID, "web is late".to_owned())).await;
    until("cycles go on", || gateway.count() > count + 1).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_is_thawed_and_a_late_moment_is_not_heeded() {
    let running = Running::start("true", RARELY).await;
    let gateway = &running.site.gateway;
    running.prepare_and_freeze().await;
    running.until_said(FromAgent::Frozen(ID)).await;
    gateway.say(FromGateway::Cancel(ID, "db died".to_owned())).await;
    assert_eq!(running.unready().await, "db died");
    assert_eq!(running.log(), format!("{OWN}{OWN}"), "thawed before it is said");
    gateway.say(FromGateway::Cut(ID, moment())).await;
    // The next cut is not disturbed by what was said of this one.
    let next = GroupId::from_bytes([8; 16]);
    gateway.say(FromGateway::Prepare(next, "shop".parse().expect("a name"))).await;
    running.until_said(FromAgent::Ready(next)).await;
    gateway.say(FromGateway::Cancel(ID, "late".to_owned())).await;
    gateway.say(FromGateway::Freeze(next)).await;
    running.until_said(FromAgent::Frozen(next)).await;
    gateway.say(FromGateway::Cut(next, moment())).await;
    until("a cycle", || gateway.count() == 2).await;
    assert_eq!(gateway.last().begin.group, Some(next));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_falls_silent_or_is_lost_leaves_nothing_frozen() {
    let running = Running::start("true", RARELY).await;
    running.prepare_and_freeze().await;
    running.until_said(FromAgent::Frozen(ID)).await;
    // It never names a moment.
    assert!(running.unready().await.contains("said nothing more"));
    assert_eq!(running.log(), format!("{OWN}{OWN}"));
    let gateway = &running.site.gateway;
    gateway.forget_said();
    running.prepare_and_freeze().await;
    running.until_said(FromAgent::Frozen(ID)).await;
    gateway.cut_links();
    until("thawed", || running.log() == format!("{OWN}{OWN}{OWN}")).await;
    assert_eq!(gateway.count(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_frozen_says_so_and_goes_on() {
    let mark = tempfile::tempdir().expect("a folder");
    let refuses = mark.path().join("refuses");
    let refuse = format!("if [ -e {} ] && [ $LANDFALL_PHASE = freeze ]; then exit 1; fi", refuses.display());
    let running = Running::start(&refuse, RARELY).await;
    std::fs::write(&refuses, "").expect("a file");
    running.prepare_and_freeze().await;
    let why = running.unready().await;
    assert!(why.contains("the freeze command: freeze failed"), "{why}");
    until("it is shown", || running.status().error.is_some_and(|e| e.text.contains("freeze failed"))).await;
    assert_eq!(running.site.gateway.count(), 1);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_nothing_to_freeze_is_in_no_group() {
    let running = Running::of(Machine::new(&[("root", 5 * BLOCK)]), Duration::from_secs(1)).await;
    let gateway = &running.site.gateway;
    gateway.say(FromGateway::Prepare(ID, "shop".parse().expect("a name"))).await;
    assert!(running.unready().await.contains("set freeze_command"));
    until("its own cycles go on", || gateway.count() >= 3).await;
    assert!(gateway.said().iter().all(|m| matches!(m, FromAgent::Unready(..))));
    assert_eq!(gateway.last().begin.group, None);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_everything_is_asked_for_the_cycle_is_no_longer_the_groups() {
    let running = Running::start("true", RARELY).await;
    let gateway = &running.site.gateway;
    running.prepare_and_freeze().await;
    running.until_said(FromAgent::Frozen(ID)).await;
    gateway.resync_next();
    gateway.say(FromGateway::Cut(ID, moment())).await;
    until("a full cycle", || gateway.count() == 2).await;
    let begin = gateway.last().begin;
    assert_eq!((begin.parent, begin.group), (None, None));
    assert_eq!(running.log(), format!("{OWN}{OWN}{OWN}"), "frozen anew: a later cut");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_agent_begins_no_cycle_and_freezes_nothing_until_it_may_go_on() {
    let running = Running::start("true", Duration::from_secs(1)).await;
    let gateway = &running.site.gateway;
    gateway.say(FromGateway::Hold("the spool is full".to_owned())).await;
    until("it says so", || running.status().held.is_some_and(|h| h.reason == "the spool is full")).await;
    // The one that was in flight.
    until("no cycle is in flight", || running.status().last_cut == running.status().last_spooled).await;
    let (count, log) = (gateway.count(), running.log());
    running.machine.write("root", 0, &noise(1, BLOCK));
    sleep(Duration::from_millis(2500)).await;
    assert_eq!((gateway.count(), running.log()), (count, log), "two intervals later");
    gateway.say(FromGateway::Go).await;
    until("a cycle", || gateway.count() > count).await;
    running.machine.check(gateway);
    until("it says so", || running.status().held.is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_held_from_the_beginning_begins_nothing() {
    let machine = Machine::new(&[("root", 5 * BLOCK)]);
    let site = Site { held: Some("paused".to_owned()), ..Site::default() };
    let cancel = Cancel::default();
    let open = || Agent::open(&machine.config(), site.clone(), &cancel).expect("an agent");
    let error = open().run_once().await.expect_err("held");
    assert_eq!((error.kind(), error.to_string().contains("paused")), (ErrorKind::Unavailable, true), "{error}");
    let running = tokio::spawn(open().run());
    let status = || Status::read(&machine.state_dir()).ok().flatten();
    until("it says so", || status().is_some_and(|s| s.held.is_some_and(|h| h.reason == "paused"))).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(site.gateway.count(), 0);
    site.gateway.say(FromGateway::Go).await;
    until("a first cycle", || site.gateway.count() == 1).await;
    cancel.cancel();
    running.await.expect("in order");
}
