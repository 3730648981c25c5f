//! What flows in from a machine: how fast it may, and how far it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landfall_model::{MachineName, Timestamp};
use landfall_vault::now;
use landfall_wire::{Begin, Data};
use tokio::sync::watch;

use crate::rate::Rate;
use crate::rules::Rules;
use crate::status::Receiving;

/// What flows in from one machine.
pub(crate) struct Flow {
    rate: Rate,
    cycle: Mutex<Option<Cycle>>,
}

/// The cycle that is being received.
struct Cycle {
    receiving: Receiving,
    /// Where each disk begins, if they lay one after the other.
    begins: Vec<u64>,
}

/// A cycle is being received until it is dropped.
pub(crate) struct InFlight(Arc<Flow>);

impl InFlight {
    /// When it began, and the bytes of disks that have arrived.
    pub(crate) fn so_far(&self) -> (Timestamp, u64) {
        self.0.receiving().map_or_else(|| (now(), 0), |r| (r.since, r.bytes))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        *self.0.cycle() = None;
    }
}

impl Flow {
    fn cycle(&self) -> MutexGuard<'_, Option<Cycle>> {
        self.cycle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cycle begins to arrive.
    pub(crate) fn begins(self: &Arc<Self>, begin: &Begin) -> InFlight {
        let (mut begins, mut of_bytes) = (Vec::with_capacity(begin.disks.len()), 0_u64);
        for disk in &begin.disks {
            begins.push(of_bytes);
            of_bytes = of_bytes.saturating_add(if disk.excluded { 0 } else { disk.size });
        }
        let receiving = Receiving { full: begin.parent.is_none(), since: now(), bytes: 0, reached_bytes: 0, of_bytes };
        *self.cycle() = Some(Cycle { receiving, begins });
        InFlight(self.clone())
    }

    /// Bytes were received: waits for as long as the machine's rate wants. Meanwhile its link is not read, and flow control holds the
    /// agent.
    pub(crate) async fn received(&self, data: &Data) {
        let bytes = data.bytes.len() as u64;
        self.rate.take(bytes).await;
        if let Some(Cycle { receiving, begins }) = &mut *self.cycle() {
            receiving.bytes += bytes;
            let begin = begins.get(data.disk).copied().unwrap_or(0);
            receiving.reached_bytes = begin.saturating_add(data.start).saturating_add(bytes);
        }
    }

    /// How far the cycle is that is being received.
    pub(crate) fn receiving(&self) -> Option<Receiving> {
        self.cycle().as_ref().map(|cycle| cycle.receiving.clone())
    }
}

/// What flows in from all machines.
pub(crate) struct Flows {
    rules: watch::Receiver<Arc<Rules>>,
    machines: Mutex<HashMap<MachineName, Arc<Flow>>>,
}

impl Flows {
    pub(crate) fn new(rules: watch::Receiver<Arc<Rules>>) -> Self {
        Self { rules, machines: Mutex::default() }
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<MachineName, Arc<Flow>>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of one machine.
    pub(crate) fn of(&self, machine: &MachineName) -> Arc<Flow> {
        let rate = || Rate::new(self.rules.borrow().machine_rate(machine, now()));
        self.machines()
            .entry(machine.clone())
            .or_insert_with(|| Arc::new(Flow { rate: rate(), cycle: Mutex::default() }))
            .clone()
    }

    /// Rates as the rules want them at a moment.
    pub(crate) fn keep_to(&self, rules: &Rules, at: Timestamp) {
        for (machine, flow) in self.machines().iter() {
            flow.rate.set(rules.machine_rate(machine, at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    fn data(disk: usize, start: u64, len: usize) -> Data {
        Data { disk, start, bytes: vec![1; len].into() }
    }

    fn rules(text: &str) -> Arc<Rules> {
        let text = format!("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\n{text}");
        Arc::new(crate::GatewayConfig::parse(&text, std::path::Path::new("g.toml")).expect("a configuration").rules)
    }

    #[tokio::test(start_paused = true)]
    async fn each_machine_is_received_at_its_own_rate_and_new_rules_hold_at_once() {
        let slow = rules("[[machine]]\nname = \"web\"\nrate = \"1KiB\"\n");
        let changes = watch::Sender::new(slow);
        let flows = Flows::new(changes.subscribe());
        let (web, db) = ("web".parse().expect("a name"), "db".parse().expect("a name"));
        let start = Instant::now();
        for _ in 0..3 {
            flows.of(&db).received(&data(0, 0, 1 << 20)).await;
            flows.of(&web).received(&data(0, 0, 1024)).await;
        }
        assert_eq!(start.elapsed().as_secs(), 2, "the first goes at once");
        let waiting = tokio::spawn({
            let web = flows.of(&web);
            async move {
                web.received(&data(0, 0, 1 << 20)).await;
                web.received(&data(0, 0, 1)).await;
            }
        });
        sleep(std::time::Duration::from_secs(10)).await;
        flows.keep_to(&Rules::default(), now());
        let start = Instant::now();
        waiting.await.expect("it ends");
        assert_eq!(start.elapsed().as_secs(), 0);
    }

    #[tokio::test]
    async fn a_cycle_in_flight_says_how_far_it_is_until_it_ends() {
        let disk = |name: &str, size, excluded| landfall_wire::DiskShape {
            name: name.parse().expect("a name"),
            size,
            sector_size: 512,
            boot: false,
            excluded,
            whole: true,
            source: String::new(),
            identity: String::new(),
        };
        let begin = Begin {
            group: None,
            shape: None,
            hooks: Vec::new(),
            cycle: landfall_model::CycleId::from_bytes([1; 16]),
            parent: None,
            time: now(),
            consistency: landfall_model::Consistency::Crash,
            disks: vec![disk("a", 1000, false), disk("swap", 9000, true), disk("b", 3000, false)],
        };
        let flows = Flows::new(watch::Sender::new(Arc::default()).subscribe());
        let flow = flows.of(&"web".parse().expect("a name"));
        flow.received(&data(0, 0, 1)).await;
        assert_eq!(flow.receiving(), None);
        let in_flight = flow.begins(&begin);
        flow.received(&data(0, 100, 100)).await;
        flow.received(&data(2, 1000, 500)).await;
        let receiving = flow.receiving().expect("a cycle");
        assert_eq!(
            (receiving.full, receiving.bytes, receiving.reached_bytes, receiving.of_bytes),
            (true, 600, 2500, 4000)
        );
        drop(in_flight);
        assert_eq!(flow.receiving(), None);
    }
}
