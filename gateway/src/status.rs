//! How a gateway is: per machine and in all. Written to a file once a second, for `landfall status` and the metrics.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use landfall_model::{Error, ErrorKind, GroupId, GroupName, MachineName, Result, Seq, Timestamp};
use landfall_vault::now;
use serde::{Deserialize, Serialize};

use crate::figures::{Figures, Recent};
use crate::groups::GroupConfig;
use crate::owner::Became;
use crate::reload::Configuration;
use crate::rules::BytesPerSecond;
use crate::state::replace;

const MINUTE_MS: i64 = 60_000;
/// Points that wait so long for the store are told of.
const BACKLOG_WARNING_MS: i64 = 30 * MINUTE_MS;
const BACKLOG_CRITICAL_MS: i64 = 45 * MINUTE_MS;
/// An agent that was not heard of for so long is told of.
const SILENCE_MS: i64 = 15 * MINUTE_MS;
/// Parts of the spool, in percent, that are free when it is told of.
const SPOOL_FREE_WARNING: u64 = 30;
const SPOOL_FREE_CRITICAL: u64 = 25;

/// What an operator has to know first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing to do.
    #[default]
    Ok,
    /// Look at it today.
    Warning,
    /// Look at it now: what is promised is not kept.
    Critical,
}

/// One machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Whether its agent has a link.
    pub linked: bool,
    /// When its agent was heard of last, where it has no link.
    pub heard: Option<Timestamp>,
    /// The cut of its newest spooled point.
    pub spooled: Option<Timestamp>,
    /// The cut of its newest committed point: what a failover would bring back.
    pub committed: Option<Timestamp>,
    /// The number of that point.
    pub seq: Option<u64>,
    /// Since when the oldest of its points that wait for the store does.
    pub waiting_since: Option<Timestamp>,
    /// How many of them wait.
    #[serde(default)]
    pub waiting_points: usize,
    /// Bytes of disks that their cycles brought, of those that were taken since the gateway was started.
    #[serde(default)]
    pub waiting_bytes: u64,
    /// Each of them.
    #[serde(skip)]
    pub(crate) waiting: VecDeque<Spooled>,
    /// When the cycles began that are no point yet, and what they brought.
    #[serde(skip)]
    pub(crate) unfinished: Option<(Timestamp, u64)>,
    /// What happened in the last 12 hours.
    #[serde(default)]
    pub window: Figures,
    #[serde(skip)]
    pub(crate) recent: Recent,
    /// Cycles taken since the gateway was started.
    pub cycles: u64,
    /// Bytes of disks that they brought.
    #[serde(default)]
    pub received_bytes: u64,
    /// Times that everything had to be compared since then.
    pub resyncs: u64,
    /// Cycles and commits that failed since then.
    pub failures: u64,
    /// The newest error; none since the last commit.
    pub error: Option<String>,
    /// Whether that error is one that waiting does not mend.
    pub stuck: bool,
    /// Most bytes that are received from it in a second, now.
    #[serde(default)]
    pub rate: BytesPerSecond,
    /// Why it must be compared in full, and is not yet.
    #[serde(default)]
    pub waits: Option<String>,
    /// The cycle that is being received.
    #[serde(default)]
    pub receiving: Option<Receiving>,
    /// Since when an operator lets it begin no cycle.
    #[serde(default)]
    pub paused: Option<Timestamp>,
    /// Why it is to begin no cycle, paused or for another reason.
    #[serde(default)]
    pub held: Option<String>,
}

/// A point that waits for the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spooled {
    since: Timestamp,
    /// When its cycle began, and what it brought; not known of what an earlier run took.
    cycle: Option<(Timestamp, u64)>,
}

/// How far a cycle is that is being received.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receiving {
    /// Whether everything is sent: a first copy, or a full comparison.
    pub full: bool,
    /// When it began to arrive.
    pub since: Timestamp,
    /// Bytes of disks that have arrived.
    pub bytes: u64,
    /// How far it is on the disks, one after the other, in bytes.
    pub reached_bytes: u64,
    /// Size of the disks, in bytes.
    pub of_bytes: u64,
}

impl Receiving {
    /// Of the disks, in percent.
    pub fn percent(&self) -> u64 {
        let part = u128::from(self.reached_bytes) * 100;
        part.checked_div(u128::from(self.of_bytes)).and_then(|p| u64::try_from(p).ok()).unwrap_or(100)
    }

    /// How long the rest takes if it goes on like this, in milliseconds.
    pub fn left_ms(&self, at: Timestamp) -> Option<u64> {
        let elapsed = u128::try_from(at.millis().saturating_sub(self.since.millis())).ok()?;
        let left = elapsed * u128::from(self.of_bytes.saturating_sub(self.reached_bytes));
        u64::try_from(left.checked_div(u128::from(self.reached_bytes))?).ok()
    }
}

/// A consistency group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its machines.
    pub machines: Vec<MachineName>,
    /// The moment of its newest cut of which every machine's point was spooled.
    pub taken: Option<Timestamp>,
    /// The id of that cut.
    pub id: Option<GroupId>,
    /// When a cut was missed last; none since the last one that was taken.
    pub missed: Option<Timestamp>,
    /// Why.
    pub why: Option<String>,
    /// Cuts taken since the gateway was started.
    pub cuts: u64,
    /// Cuts missed since then.
    pub misses: u64,
}

impl GroupStatus {
    pub(crate) fn taken(&mut self, id: GroupId, moment: Timestamp) {
        (self.id, self.taken) = (Some(id), Some(moment));
        (self.missed, self.why) = (None, None);
        self.cuts += 1;
    }

    pub(crate) fn missed(&mut self, why: String) {
        (self.missed, self.why) = (Some(now()), Some(why));
        self.misses += 1;
    }
}

impl MachineStatus {
    /// Its spool was taken up: what the vault has, and what waits.
    pub(crate) fn taken_up(&mut self, committed: Option<Timestamp>, waiting: usize) {
        self.committed = committed;
        self.unfinished = None;
        self.waiting = std::iter::repeat_n(Spooled { since: now(), cycle: None }, waiting).collect();
        self.count_waiting();
    }

    fn count_waiting(&mut self) {
        self.waiting_since = self.waiting.front().map(|w| w.since);
        self.waiting_points = self.waiting.len();
        self.waiting_bytes = self.waiting.iter().filter_map(|w| w.cycle).map(|(_, bytes)| bytes).sum();
    }

    /// Its agent has a link, and ships so often.
    pub(crate) fn linked(&mut self, interval_ms: u64) {
        self.linked = true;
        self.recent.every(interval_ms, now());
    }

    pub(crate) fn unlinked(&mut self) {
        self.linked = false;
        self.waits = None;
        self.heard = Some(now());
    }

    /// A cycle was taken: its cut, when it began by this host's clock, what it brought, and what became of it. Those that are unfinished count
    /// as parts of the one that completes them.
    pub(crate) fn spooled(&mut self, time: Timestamp, mut began: Timestamp, mut bytes: u64, became: Became) {
        self.received_bytes += bytes;
        if let Some((before, more)) = self.unfinished.take() {
            (began, bytes) = (before, bytes + more);
        }
        if became == Became::Unfinished {
            self.unfinished = Some((began, bytes));
            return;
        }
        self.cycles += 1;
        self.spooled = self.spooled.max(Some(time));
        self.recent.taken(began, bytes, now());
        match self.waiting.back_mut().filter(|_| became == Became::Joined) {
            Some(last) => {
                let before = last.cycle.map_or(0, |(_, bytes)| bytes);
                last.cycle = Some((began, before + bytes));
            }
            None => self.waiting.push_back(Spooled { since: now(), cycle: Some((began, bytes)) }),
        }
        self.count_waiting();
    }

    pub(crate) fn committed(&mut self, seq: Seq, time: Timestamp) {
        self.committed = self.committed.max(Some(time));
        self.seq = Some(seq.0);
        self.error = None;
        self.stuck = false;
        if let Some((began, _)) = self.waiting.pop_front().and_then(|w| w.cycle) {
            self.recent.committed(began, now());
        }
        self.count_waiting();
    }

    pub(crate) fn failed(&mut self, why: String, stuck: bool) {
        self.failures += 1;
        self.recent.failed(now());
        self.error = Some(why);
        self.stuck = stuck;
    }

    /// Nothing of what waits is ever committed here: another gateway writes the machine.
    pub(crate) fn lost(&mut self) {
        self.waiting.clear();
        self.waiting_since = None;
    }

    /// How well it is protected at a moment, and why not better.
    pub fn health(&self, at: Timestamp) -> (Health, Option<String>) {
        let age = |since: Option<Timestamp>| since.map_or(0, |since| at.millis() - since.millis());
        let minutes = |ms: i64| ms / MINUTE_MS;
        let (backlog, silence) = (age(self.waiting_since), if self.linked { 0 } else { age(self.heard) });
        if self.stuck {
            return (Health::Critical, self.error.clone());
        }
        if backlog > BACKLOG_CRITICAL_MS {
            return (Health::Critical, Some(format!("points wait for the store since {} min", minutes(backlog))));
        }
        if silence > SILENCE_MS {
            return (Health::Critical, Some(format!("its agent was not heard of for {} min", minutes(silence))));
        }
        if backlog > BACKLOG_WARNING_MS {
            return (Health::Warning, Some(format!("points wait for the store since {} min", minutes(backlog))));
        }
        match self.error.as_ref().or(self.waits.as_ref()) {
            Some(why) => (Health::Warning, Some(why.clone())),
            // It grows older, as somebody wants it.
            None => (if self.held.is_some() { Health::Warning } else { Health::Ok }, self.held.clone()),
        }
    }
}

/// A gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// When this was written.
    pub time: Option<Timestamp>,
    /// Bytes that wait in the spool.
    pub spool_bytes: u64,
    /// Most bytes that may wait there.
    pub spool_budget_bytes: u64,
    /// Bytes that were uploaded from the spool since the gateway was started.
    pub uploaded_bytes: u64,
    /// Most bytes that are uploaded in a second, now.
    #[serde(default)]
    pub rate: BytesPerSecond,
    /// The newest error of an upload; none since the last one that worked.
    pub upload_error: Option<String>,
    /// Its configuration.
    #[serde(default)]
    pub configuration: Configuration,
    /// Its machines.
    pub machines: BTreeMap<String, MachineStatus>,
    /// Its consistency groups.
    #[serde(default)]
    pub groups: BTreeMap<String, GroupStatus>,
}

impl Status {
    /// Reads what a gateway wrote.
    ///
    /// # Errors
    /// `NotFound` where none ever ran on this state directory, `Corrupt`.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| {
            let why = format!("no gateway has run here ({}): start `landfall gateway run`", path.display());
            Error::with_source(ErrorKind::of_io(&e), why, e)
        })?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::with_source(ErrorKind::Corrupt, format!("{} is damaged", path.display()), e))
    }

    /// How well the spool is, and why not better.
    pub fn spool_health(&self) -> (Health, Option<String>) {
        let free = self.spool_budget_bytes.saturating_sub(self.spool_bytes);
        let percent = free.saturating_mul(100).checked_div(self.spool_budget_bytes).unwrap_or(100);
        let why = || Some(format!("{percent} % of the spool are free"));
        match percent {
            p if p < SPOOL_FREE_CRITICAL => (Health::Critical, why()),
            p if p < SPOOL_FREE_WARNING => (Health::Warning, why()),
            _ => (Health::Ok, None),
        }
    }
}

/// Where everything of a gateway says how it is.
pub(crate) struct Board {
    path: PathBuf,
    status: Mutex<Status>,
}

impl Board {
    /// A board that goes on from what an earlier run wrote: machines whose agents do not come back are still known.
    pub(crate) fn new(path: PathBuf, spool_budget_bytes: u64, groups: &[GroupConfig]) -> Self {
        let configuration = Configuration::first();
        let mut status = Status { spool_budget_bytes, configuration, ..Status::default() };
        let before = Status::read(&path).unwrap_or_default();
        for group in groups {
            let name = group.name.to_string();
            let (taken, id) = before.groups.get(&name).map_or((None, None), |g| (g.taken, g.id));
            let machines = group.machines.clone();
            status.groups.insert(name, GroupStatus { machines, taken, id, ..GroupStatus::default() });
        }
        for (name, before) in before.machines {
            let MachineStatus { linked, heard, spooled, committed, seq, .. } = before;
            let heard = if linked { Some(now()) } else { heard };
            let known = MachineStatus { heard, spooled, committed, seq, ..MachineStatus::default() };
            status.machines.insert(name, known);
        }
        Self { path, status: Mutex::new(status) }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, machine: &MachineName, change: impl FnOnce(&mut MachineStatus)) {
        change(self.status().machines.entry(machine.to_string()).or_default());
    }

    /// Changes what is said of each machine that is known.
    pub(crate) fn each(&self, change: impl Fn(&MachineName, &mut MachineStatus)) {
        for (name, machine) in &mut self.status().machines {
            if let Ok(name) = name.parse() {
                change(&name, machine);
            }
        }
    }

    pub(crate) fn group(&self, group: &GroupName, change: impl FnOnce(&mut GroupStatus)) {
        change(self.status().groups.entry(group.to_string()).or_default());
    }

    pub(crate) fn uploaded(&self, bytes: u64) {
        let mut status = self.status();
        status.uploaded_bytes += bytes;
        status.upload_error = None;
    }

    /// How fast is uploaded now; what may flow in from a machine, and what does.
    pub(crate) fn flows(
        &self,
        uploads: BytesPerSecond,
        of: impl Fn(&MachineName) -> (BytesPerSecond, Option<Receiving>),
    ) {
        self.status().rate = uploads;
        self.each(|name, machine| (machine.rate, machine.receiving) = of(name));
    }

    /// The configuration was read anew.
    pub(crate) fn configuration<T>(&self, change: impl FnOnce(&mut Configuration) -> T) -> T {
        change(&mut self.status().configuration)
    }

    pub(crate) fn upload_failed(&self, why: String) {
        self.status().upload_error = Some(why);
    }

    /// As of now.
    pub(crate) fn now(&self, spool_bytes: u64) -> Status {
        let mut status = self.status();
        let at = now();
        (status.time, status.spool_bytes) = (Some(at), spool_bytes);
        for machine in status.machines.values_mut() {
            machine.window = machine.recent.figures(at);
        }
        status.clone()
    }

    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub(crate) fn write(&self, status: &Status) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(status)
            .map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode the status", e))?;
        replace(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_millis(minutes * MINUTE_MS)
    }

    #[test]
    fn health_follows_backlog_silence_and_errors() {
        let mut machine = MachineStatus { linked: true, ..MachineStatus::default() };
        assert_eq!(machine.health(at(100)).0, Health::Ok);
        machine.waiting_since = Some(at(0));
        for (minutes, wanted) in
            [(30, Health::Ok), (31, Health::Warning), (45, Health::Warning), (46, Health::Critical)]
        {
            assert_eq!(machine.health(at(minutes)).0, wanted, "{minutes} min");
        }
        let mut silent = MachineStatus { heard: Some(at(0)), ..MachineStatus::default() };
        assert_eq!(silent.health(at(15)).0, Health::Ok);
        assert_eq!(silent.health(at(16)).0, Health::Critical);
        silent.linked = true;
        assert_eq!(silent.health(at(16)).0, Health::Ok, "a link is alive");
        silent.failed("the store is down".to_owned(), false);
        assert_eq!(silent.health(at(16)), (Health::Warning, Some("the store is down".to_owned())));
        silent.failed("the vault was rolled back".to_owned(), true);
        assert_eq!(silent.health(at(16)).0, Health::Critical);
        silent.committed(Seq(2), at(16));
        assert_eq!(silent.health(at(16)).0, Health::Ok);
    }

    #[test]
    fn a_machine_that_stays_behind_is_behind_although_its_points_are_committed() {
        let mut machine = MachineStatus { linked: true, ..MachineStatus::default() };
        machine.taken_up(Some(at(1)), 0);
        assert_eq!(machine.committed, Some(at(1)), "what is spooled is not in the vault");
        machine.spooled(at(2), now(), 1000, Became::Point);
        machine.spooled(at(3), now(), 100, Became::Unfinished);
        assert_eq!((machine.waiting_points, machine.spooled), (1, Some(at(2))), "it is no point");
        machine.spooled(at(3), now(), 200, Became::Point);
        machine.spooled(at(3), now(), 200, Became::Joined);
        assert_eq!((machine.waiting_points, machine.waiting_bytes, machine.received_bytes), (2, 1500, 1500));
        let first = machine.waiting_since;
        assert!(first.is_some());
        machine.waiting[1].since = at(50_000_000);
        machine.committed(Seq(2), at(2));
        assert_eq!(machine.waiting_since, Some(at(50_000_000)), "since when the oldest that is left waits");
        assert_eq!((machine.waiting_points, machine.waiting_bytes), (1, 500));
        machine.committed(Seq(3), at(3));
        assert_eq!((machine.waiting_since, machine.waiting_points, machine.waiting_bytes), (None, 0, 0));
        let window = machine.recent.figures(now());
        assert_eq!((window.good, window.change_largest_bytes), (3, Some(1000)));
        assert!(window.latency_largest_ms.is_some());
    }

    #[test]
    fn a_cycle_that_arrives_says_how_far_it_is_and_how_long_it_takes() {
        let receiving =
            |reached_bytes, of_bytes| Receiving { full: true, since: at(0), bytes: 1, reached_bytes, of_bytes };
        assert_eq!((receiving(0, 1000).percent(), receiving(0, 1000).left_ms(at(10))), (0, None));
        assert_eq!((receiving(250, 1000).percent(), receiving(250, 1000).left_ms(at(10))), (25, Some(30 * 60_000)));
        assert_eq!((receiving(1000, 1000).percent(), receiving(1000, 1000).left_ms(at(10))), (100, Some(0)));
        assert_eq!(receiving(0, 0).percent(), 100);
        assert_eq!(receiving(u64::MAX / 2, u64::MAX).left_ms(at(-1)), None, "a clock that went backwards");
    }

    #[test]
    fn a_machine_that_waits_for_its_window_is_no_longer_well() {
        let mut machine =
            MachineStatus { linked: true, waits: Some("until Sat 22:00".to_owned()), ..MachineStatus::default() };
        assert_eq!(machine.health(at(1)), (Health::Warning, Some("until Sat 22:00".to_owned())));
        machine.unlinked();
        assert_eq!(machine.waits, None);
    }

    #[test]
    fn a_spool_that_fills_is_told_of() {
        let spool = |used| Status { spool_bytes: used, spool_budget_bytes: 1000, ..Status::default() }.spool_health().0;
        assert_eq!([spool(0), spool(700), spool(701), spool(750), spool(751)].map(|h| h as u8), [0, 0, 1, 1, 2]);
        assert_eq!(spool(5000), Health::Critical);
    }
}
