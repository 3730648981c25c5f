//! The loop: ticks, gateways that fail, the request to stop, what is shown.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use landfall_model::{CycleId, Error, ErrorKind, Result};
use landfall_wire::FromGateway;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::gateway::{FakeGateway, Trouble};
use super::machine::{BLOCK, Machine, noise};
use crate::cancel::Cancel;
use crate::link::{Connect, Link};
use crate::run::Agent;
use crate::status::Status;

/// Two gateways of one site; the first may be down.
#[derive(Clone, Default)]
pub(super) struct Site {
    pub(super) gateway: FakeGateway,
    /// Why it holds from the beginning.
    pub(super) held: Option<String>,
    pub(super) first_is_down: bool,
    pub(super) troubles: Arc<Mutex<Vec<Trouble>>>,
    pub(super) asked: Arc<Mutex<Vec<String>>>,
}

impl Connect for Site {
    type From = mpsc::Receiver<FromGateway>;

    async fn connect(&mut self, gateway: &str) -> Result<(Link<Self::From>, Option<CycleId>)> {
        self.asked.lock().expect("asked").push(gateway.to_owned());
        if self.first_is_down && gateway == "a:1" {
            return Err(Error::new(ErrorKind::Unavailable, "down"));
        }
        let trouble = self.troubles.lock().expect("troubles").pop().unwrap_or(Trouble::None);
        let newest = self.gateway.newest();
        let commits = newest.into_iter().collect();
        let (mut link, _, _) = self.gateway.link(trouble, commits);
        link.held.clone_from(&self.held);
        Ok((link, newest))
    }
}

pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn agent(machine: &Machine, site: &Site, cancel: &Cancel) -> tokio::task::JoinHandle<()> {
    let agent = Agent::open(&machine.config(), site.clone(), cancel).expect("an agent");
    tokio::spawn(agent.run())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_ships_at_every_interval_and_stops_when_asked() {
    let machine = Machine::new(&[("root", 5 * BLOCK)]);
    let (site, cancel) = (Site::default(), Cancel::default());
    let running = agent(&machine, &site, &cancel);
    until("a first cycle", || site.gateway.count() == 1).await;
    machine.write("root", 0, &noise(1, BLOCK));
    until("more cycles", || site.gateway.count() >= 3).await;
    cancel.cancel();
    timeout(Duration::from_secs(10), running).await.expect("it stops").expect("in order");
    machine.check(&site.gateway);
    let status = Status::read(&machine.state_dir()).expect("a status").expect("written");
    assert_eq!(status.last_spooled.map(|c| Some(c.cycle)), Some(site.gateway.newest()));
    assert_eq!(status.last_cut, status.last_spooled);
    assert_eq!((status.gateway, status.error), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_gateway_is_used_where_one_is_down_and_broken_links_are_opened_again() {
    let machine = Machine::new(&[("root", 5 * BLOCK)]);
    machine.write("root", 0, &noise(1, 5 * BLOCK));
    let site = Site { first_is_down: true, ..Site::default() };
    *site.troubles.lock().expect("troubles") = vec![Trouble::SpoolAndCut, Trouble::CutAt(2)];
    let cancel = Cancel::default();
    let running = agent(&machine, &site, &cancel);
    until("an error is shown", || {
        Status::read(&machine.state_dir()).is_ok_and(|s| s.is_some_and(|s| s.error.is_some_and(|e| e.code == 7)))
    })
    .await;
    until("cycles after two broken links", || site.gateway.count() >= 2).await;
    until("the error is gone", || {
        Status::read(&machine.state_dir()).is_ok_and(|s| s.is_some_and(|s| s.error.is_none()))
    })
    .await;
    cancel.cancel();
    running.await.expect("in order");
    assert_eq!(site.asked.lock().expect("asked")[..2], ["a:1", "b:1"]);
    let status = Status::read(&machine.state_dir()).expect("a status").expect("written");
    assert!(status.last_committed.is_some_and(|c| c.time.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cycle_in_flight_is_aborted_and_thawed_when_the_agent_is_asked_to_stop() {
    let mut machine = Machine::new(&[("root", 5 * BLOCK)]);
    let log = machine.folder.path().join("log");
    machine.freeze_command =
        Some(format!("echo $LANDFALL_PHASE >> {}; test $LANDFALL_PHASE = thaw || sleep 60", log.display()));
    let (site, cancel) = (Site::default(), Cancel::default());
    let running = agent(&machine, &site, &cancel);
    until("it freezes", || std::fs::read_to_string(&log).is_ok_and(|text| text == "freeze\n")).await;
    cancel.cancel();
    timeout(Duration::from_secs(10), running).await.expect("it stops").expect("in order");
    assert_eq!(std::fs::read_to_string(&log).expect("a log"), "freeze\nthaw\n");
    assert_eq!(site.gateway.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_for_each_state_directory() {
    let machine = Machine::new(&[("root", 5 * BLOCK)]);
    let first = Agent::open(&machine.config(), Site::default(), &Cancel::default()).expect("an agent");
    let second = Agent::open(&machine.config(), Site::default(), &Cancel::default());
    assert_eq!(second.err().expect("refused").kind(), ErrorKind::Conflict);
    drop(first);
    assert!(Agent::open(&machine.config(), Site::default(), &Cancel::default()).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_cycle_is_one_cycle() {
    let machine = Machine::new(&[("root", 5 * BLOCK)]);
    let site = Site::default();
    let open = || Agent::open(&machine.config(), site.clone(), &Cancel::default()).expect("an agent");
    open().run_once().await.expect("spooled");
    assert_eq!(site.gateway.count(), 1);
    site.troubles.lock().expect("troubles").push(Trouble::RefuseAt(1));
    assert_eq!(open().run_once().await.expect_err("refused").kind(), ErrorKind::Conflict);
    machine.check(&site.gateway);
}
