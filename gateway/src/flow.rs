//! What flows in from a machine: how fast it may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landfall_model::{MachineName, Timestamp};
use landfall_vault::now;
use tokio::sync::watch;

use crate::rate::Rate;
use crate::rules::Rules;

/// What flows in from one machine.
pub(crate) struct Flow {
    rate: Rate,
}

impl Flow {
    /// So many bytes were received: waits for as long as the machine's rate wants. Meanwhile its link is not read, and flow control holds the
    /// agent.
    pub(crate) async fn received(&self, bytes: u64) {
        self.rate.take(bytes).await;
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
        self.machines().entry(machine.clone()).or_insert_with(|| Arc::new(Flow { rate: rate() })).clone()
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
            flows.of(&db).received(1 << 40).await;
            flows.of(&web).received(1024).await;
        }
        assert_eq!(start.elapsed().as_secs(), 2, "the first goes at once");
        let waiting = tokio::spawn({
            let web = flows.of(&web);
            async move {
                web.received(1 << 30).await;
                web.received(1).await;
            }
        });
        sleep(std::time::Duration::from_secs(10)).await;
        flows.keep_to(&Rules::default(), now());
        let start = Instant::now();
        waiting.await.expect("it ends");
        assert_eq!(start.elapsed().as_secs(), 0);
    }
}
