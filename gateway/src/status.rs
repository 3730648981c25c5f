//! How a gateway is: per machine and in all. Written to a file once a second, for `landfall status` and the metrics.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use landfall_model::{Error, ErrorKind, MachineName, Result, Seq, Timestamp};
use landfall_vault::now;
use serde::{Deserialize, Serialize};

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
    /// Since when each of them does.
    #[serde(skip)]
    pub(crate) waiting: VecDeque<Timestamp>,
    /// Cycles taken since the gateway was started.
    pub cycles: u64,
    /// Times that everything had to be compared since then.
    pub resyncs: u64,
    /// Cycles and commits that failed since then.
    pub failures: u64,
    /// The newest error; none since the last commit.
    pub error: Option<String>,
    /// Whether that error is one that waiting does not mend.
    pub stuck: bool,
}

impl MachineStatus {
    /// Its spool was taken up: what the vault has, and what waits.
    pub(crate) fn taken_up(&mut self, committed: Option<Timestamp>, waiting: usize) {
        self.committed = committed;
        self.waiting = std::iter::repeat_n(now(), waiting).collect();
        self.waiting_since = self.waiting.front().copied();
    }

    pub(crate) fn linked(&mut self) {
        self.linked = true;
    }

    pub(crate) fn unlinked(&mut self) {
        self.linked = false;
        self.heard = Some(now());
    }

    /// A cycle was spooled; `joined` to the last point that waits, or as a point of its own.
    pub(crate) fn spooled(&mut self, time: Timestamp, joined: bool) {
        self.cycles += 1;
        self.spooled = self.spooled.max(Some(time));
        if !joined {
            self.waiting.push_back(now());
        }
        self.waiting_since = self.waiting.front().copied();
    }

    pub(crate) fn committed(&mut self, seq: Seq, time: Timestamp) {
        self.committed = self.committed.max(Some(time));
        self.seq = Some(seq.0);
        self.error = None;
        self.stuck = false;
        self.waiting.pop_front();
        self.waiting_since = self.waiting.front().copied();
    }

    pub(crate) fn failed(&mut self, why: String, stuck: bool) {
        self.failures += 1;
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
        match &self.error {
            Some(error) => (Health::Warning, Some(error.clone())),
            None => (Health::Ok, None),
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
    /// The newest error of an upload; none since the last one that worked.
    pub upload_error: Option<String>,
    /// Its machines.
    pub machines: BTreeMap<String, MachineStatus>,
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
    pub(crate) fn new(path: PathBuf, spool_budget_bytes: u64) -> Self {
        let mut status = Status { spool_budget_bytes, ..Status::default() };
        for (name, before) in Status::read(&path).map(|s| s.machines).unwrap_or_default() {
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

    pub(crate) fn uploaded(&self, bytes: u64) {
        let mut status = self.status();
        status.uploaded_bytes += bytes;
        status.upload_error = None;
    }

    pub(crate) fn upload_failed(&self, why: String) {
        self.status().upload_error = Some(why);
    }

    /// As of now.
    pub(crate) fn now(&self, spool_bytes: u64) -> Status {
        let mut status = self.status();
        (status.time, status.spool_bytes) = (Some(now()), spool_bytes);
        status.clone()
    }

    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub(crate) fn write(&self, spool_bytes: u64) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.now(spool_bytes))
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
        machine.spooled(at(2), false);
        machine.spooled(at(3), false);
        let first = machine.waiting_since;
        assert!(first.is_some());
        machine.waiting[1] = at(50_000_000);
        machine.committed(Seq(2), at(2));
        assert_eq!(machine.waiting_since, Some(at(50_000_000)), "since when the oldest that is left waits");
        machine.committed(Seq(3), at(3));
        assert_eq!(machine.waiting_since, None);
    }

    #[test]
    fn a_spool_that_fills_is_told_of() {
        let spool = |used| Status { spool_bytes: used, spool_budget_bytes: 1000, ..Status::default() }.spool_health().0;
        assert_eq!([spool(0), spool(700), spool(701), spool(750), spool(751)].map(|h| h as u8), [0, 0, 1, 1, 2]);
        assert_eq!(spool(5000), Health::Critical);
    }
}
