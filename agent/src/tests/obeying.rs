//! What an operator orders: a point, a last cycle that is compared whole, and going on again.

use std::time::Duration;

use landfall_disk::DiskDigester;
use landfall_model::{Consistency, DiskDigest, ErrorKind, OrderId, OrderKind, Outcome};
use landfall_wire::{FromAgent, FromGateway, Order};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::looping::{Site, until};
use super::machine::{BLOCK, Machine, noise};
use crate::cancel::Cancel;
use crate::run::Agent;

const RARELY: Duration = Duration::from_secs(3600);

/// An agent that has shipped its first cycle, on a host whose commands keep a log.
struct Running {
    machine: Machine,
    site: Site,
    cancel: Cancel,
    agent: JoinHandle<()>,
}

fn id(n: u8) -> OrderId {
    OrderId::from_bytes([n; 16])
}

impl Running {
    /// `stop` is run by the stop command, after it has kept the log.
    async fn start(stop: Option<&str>) -> Self {
        let mut machine = Machine::new(&[("root", 5 * BLOCK + 4096), ("data", 3 * BLOCK)]);
        let log = machine.folder.path().join("log");
        let keep = format!("echo $LANDFALL_PHASE >> {}", log.display());
        machine.stop_command = stop.map(|stop| format!("{keep}\n{stop}"));
        machine.start_command = stop.map(|_| keep);
        let (site, cancel) = (Site::default(), Cancel::default());
        let mut config = machine.config();
        config.interval = RARELY;
        let agent = Agent::open(&config, site.clone(), &cancel).expect("an agent");
        let agent = tokio::spawn(agent.run());
        until("a first cycle", || site.gateway.count() == 1).await;
        Self { machine, site, cancel, agent }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.machine.folder.path().join("log")).unwrap_or_default()
    }

    async fn order(&self, n: u8, kind: OrderKind, proof: bool) {
        let order = Order { id: id(n), kind, consistency: Consistency::Crash, proof };
        self.site.gateway.say(FromGateway::Order(order)).await;
    }

    fn answers(&self, n: u8) -> Vec<Outcome> {
        let of = |said| match said {
            FromAgent::Answer(order, outcome) if order == id(n) => Some(outcome),
            _ => None,
        };
        self.site.gateway.said().into_iter().filter_map(of).collect()
    }

    async fn answer(&self, n: u8) -> Outcome {
        until("an answer", || !self.answers(n).is_empty()).await;
        self.answers(n).remove(0)
    }

    async fn stop(self) {
        self.cancel.cancel();
        timeout(Duration::from_secs(20), self.agent).await.expect("it stops").expect("in order");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_cycle_is_taken_when_the_host_was_stopped_and_tells_the_digests_of_what_the_gateway_has() {
    let running = Running::start(Some("true")).await;
    running.machine.write("root", 4 * BLOCK, &noise(7, 100));
    running.order(1, OrderKind::Stop, true).await;
    let Outcome::Done { cycle, disks, .. } = running.answer(1).await else { panic!("done") };
    let last = running.site.gateway.last();
    assert_eq!((cycle, running.log().as_str()), (Some(last.begin.cycle), "stop\n"));
    running.machine.check(&running.site.gateway);
    let digest = |(name, bytes): (_, Vec<u8>)| {
        let mut digester = DiskDigester::new(bytes.len() as u64);
        digester.data(&bytes);
        DiskDigest { name, digest: digester.finish().expect("all of it") }
    };
    let expected: Vec<DiskDigest> = running.machine.content().into_iter().map(digest).collect();
    assert_eq!(disks.len(), 2);
    assert!(disks.iter().all(|disk| expected.contains(disk)), "{disks:?}");
    // Said again, it is answered again and not done again.
    running.order(1, OrderKind::Stop, true).await;
    until("another answer", || running.answers(1).len() == 2).await;
    assert_eq!((running.log().as_str(), running.site.gateway.count()), ("stop\n", 2));
    running.order(2, OrderKind::Start, false).await;
    running.answer(2).await;
    assert_eq!(running.log(), "stop\nstart\n");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_is_taken_at_once_and_nothing_is_stopped_for_it() {
    let running = Running::start(Some("true")).await;
    running.machine.write("data", 0, &noise(3, BLOCK));
    running.order(1, OrderKind::Point, false).await;
    let Outcome::Done { cycle, consistency, disks } = running.answer(1).await else { panic!("done") };
    assert_eq!((cycle, consistency), (Some(running.site.gateway.last().begin.cycle), Consistency::Crash));
    assert!(disks.is_empty() && running.log().is_empty());
    running.machine.check(&running.site.gateway);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_not_stopped_says_why_and_its_agent_goes_on() {
    let failed = |outcome| match outcome {
        Outcome::Failed { code, why } => (code, why),
        Outcome::Done { .. } => panic!("not done"),
    };
    let running = Running::start(None).await;
    running.order(1, OrderKind::Stop, true).await;
    let (code, why) = failed(running.answer(1).await);
    assert!(code == ErrorKind::Unsupported.exit_code() && why.contains("stop_command"), "{why}");
    running.order(2, OrderKind::Point, false).await;
    running.answer(2).await;
    assert_eq!(running.site.gateway.count(), 2);
    running.stop().await;
    let running = Running::start(Some("exit 3")).await;
    running.order(1, OrderKind::Stop, true).await;
    let (code, why) = failed(running.answer(1).await);
    assert!(code == ErrorKind::Unavailable.exit_code() && why.contains("exit status: 3"), "{why}");
    assert_eq!((running.log().as_str(), running.site.gateway.count()), ("stop\n", 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_could_not_send_its_last_cycle_is_not_stopped() {
    let running = Running::start(Some("true")).await;
    running.site.gateway.say(FromGateway::Hold("the spool is nearly full".to_owned())).await;
    running.order(1, OrderKind::Stop, true).await;
    let Outcome::Failed { code, why } = running.answer(1).await else { panic!("held") };
    assert!(code == ErrorKind::Unavailable.exit_code() && why.contains("nearly full"), "{why}");
    assert_eq!((running.log().as_str(), running.site.gateway.count()), ("", 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_last_cycle_fails_is_started_again() {
    let running = Running::start(Some("true")).await;
    std::fs::remove_file(running.machine.path("data")).expect("own file");
    running.order(1, OrderKind::Stop, true).await;
    let Outcome::Failed { code, why } = running.answer(1).await else { panic!("no disk") };
    assert!(code == ErrorKind::NotFound.exit_code() && why.contains("last cycle failed"), "{code} {why}");
    assert_eq!(running.log(), "stop\nstart\n");
    running.stop().await;
}
