//! The storm: three machines with three disks each, written to all the time, while agents, gateway and store are killed at random.
//!
//! The law: no acknowledged cycle is lost, and no point is torn. `LANDFALL_STORM_SECONDS` says how long it blows, `LANDFALL_TEST_SEED` how.

mod support;

use std::time::{Duration, Instant};

use landfall_tests::fleet::Machine;
use landfall_tests::landfall::{Running, Site};
use landfall_tests::service::{GatewayHost, Outage};
use support::{Dice, Story};

const SECONDS: u64 = 40;
/// In between everything is healed, and what was acknowledged is looked for.
const ROUNDS: u32 = 3;

struct Storm<'a> {
    site: &'a Site,
    gateway: GatewayHost<'a>,
    /// Whether the gateway runs.
    up: bool,
    machines: Vec<Machine<'a>>,
    agents: Vec<Option<Running>>,
    outage: Option<Outage>,
    dice: Dice,
    story: Story,
    kills: [u64; 3],
}

impl<'a> Storm<'a> {
    fn new(site: &'a Site, seed: u64) -> Self {
        let gateway = GatewayHost::started(site, "gw");
        let machine = |n: u64| {
            let machine = Machine::new(site, &format!("m{n}"), &[gateway.address()], seed + n);
            machine.host.enroll(&gateway);
            machine
        };
        let machines: Vec<Machine<'_>> = (1..=3).map(machine).collect();
        let agents = machines.iter().map(|_| None).collect();
        let dice = Dice::new(seed);
        let story = Story::new(&dice);
        Self { site, gateway, up: true, machines, agents, outage: None, dice, story, kills: [0; 3] }
    }

    fn agent(&mut self, n: usize) {
        if let Some(agent) = self.agents[n].take() {
            self.story.tell(format!("agent {n} is killed"));
            agent.kill();
            agent.finish();
            self.kills[0] += 1;
        } else {
            self.story.tell(format!("agent {n} starts"));
            self.agents[n] = Some(self.machines[n].host.start());
        }
    }

    fn gateway(&mut self) {
        if self.up {
            self.story.tell("the gateway is killed".to_owned());
            self.gateway.kill();
            self.kills[1] += 1;
        } else {
            // It reads the vault's description before it does anything.
            self.store_is_there();
            self.story.tell("the gateway starts".to_owned());
            self.gateway.start();
        }
        self.up = !self.up;
    }

    fn store(&mut self) {
        if self.outage.is_some() {
            self.store_is_there();
        } else {
            self.story.tell("the store is gone".to_owned());
            self.outage = Some(Outage::of(self.site));
            self.kills[2] += 1;
        }
    }

    fn store_is_there(&mut self) {
        if let Some(outage) = self.outage.take() {
            self.story.tell("the store is back".to_owned());
            outage.end();
        }
    }

    fn step(&mut self) {
        match self.dice.within(0..10) {
            0..5 => {
                let n = self.dice.below(self.agents.len());
                self.agent(n);
            }
            5..7 => self.gateway(),
            7..9 => self.store(),
            // All at once: a power cut of the site.
            _ => {
                (0..self.agents.len())
                    .filter(|n| self.agents[*n].is_some())
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|n| self.agent(n));
                if self.up {
                    self.gateway();
                }
            }
        }
        // A gateway or a store that is gone does not stay away for long: nothing could be acknowledged.
        let longest = if self.up && self.outage.is_none() { 2500 } else { 900 };
        std::thread::sleep(Duration::from_millis(self.dice.within(20..longest)));
        (0..self.agents.len()).for_each(|n| {
            if self.agents[n].is_none() && self.dice.once_in(2) {
                self.agent(n);
            }
        });
    }

    fn blow(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            self.step();
        }
    }

    /// Ends all agents, heals the rest, and finds in the vault what agents were told to be safe.
    fn calm(&mut self) {
        for n in 0..self.agents.len() {
            if self.agents[n].is_some() {
                self.agent(n);
            }
        }
        self.store_is_there();
        if self.up {
            self.gateway();
        }
        self.gateway();
        self.machines.iter().for_each(Machine::wait_until_all_is_committed);
    }
}

#[test]
fn no_acknowledged_cycle_is_lost_and_no_point_is_torn_whatever_is_killed() {
    let seconds = std::env::var("LANDFALL_STORM_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "2");
    let mut storm = Storm::new(&site, 41);
    for _ in 0..ROUNDS {
        storm.blow(Duration::from_secs(seconds) / ROUNDS);
        storm.calm();
    }
    for machine in &storm.machines {
        machine.rest();
        machine.host.ship_until_taken();
        machine.wait_until_all_is_committed();
    }
    let points: Vec<u64> = storm.machines.iter().map(|machine| machine.assert_points_are_cuts(1, true)).collect();
    let cuts: Vec<usize> = storm.machines.iter().map(Machine::cuts).collect();
    let [agents, gateways, stores] = storm.kills;
    eprintln!(
        "{seconds} s: {agents} agents, {gateways} gateways, {stores} stores killed; points {points:?} of cuts {cuts:?}"
    );
    assert!(agents > 0 && gateways > 0, "nothing was killed");
    assert!(points.iter().all(|points| *points > 1), "nothing was taken in the storm: {points:?}");
    storm.gateway.stop();
    site.assert_sound();
}
