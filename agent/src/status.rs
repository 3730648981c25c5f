//! `status.json`: what an agent did last, for those who watch it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use landfall_model::{CycleId, Error, ErrorKind, MachineName, Result, Seq, Timeline, Timestamp};
use serde::{Deserialize, Serialize};

use crate::durable::{self, failed};
use crate::link::now;
use crate::ship::{Event, Shipped};

const FILE: &str = "status.json";

/// A cut of the disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CutStatus {
    /// Its name.
    pub cycle: CycleId,
    /// Its moment.
    pub time: Timestamp,
}

/// A recovery point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommittedStatus {
    /// The cut that it is of.
    pub cycle: CycleId,
    /// The moment of the cut, where the agent still knew it.
    pub time: Option<Timestamp>,
    /// Its timeline.
    pub timeline: Timeline,
    /// Its number.
    pub seq: Seq,
}

/// The gateway lets no cycle begin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldStatus {
    /// When it was heard.
    pub since: Timestamp,
    /// Why.
    pub reason: String,
}

/// What went wrong last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorStatus {
    /// When it was met.
    pub time: Timestamp,
    /// The exit code of its kind.
    pub code: u8,
    /// What it is.
    pub text: String,
}

/// What the rounds of a cut did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Rounds {
    sent_bytes: u64,
    read_bytes: u64,
    elapsed_ms: u64,
    full: bool,
}

impl Rounds {
    fn add(&mut self, shipped: &Shipped) {
        self.sent_bytes += shipped.sent_bytes;
        self.read_bytes += shipped.read_bytes;
        self.elapsed_ms += millis(shipped.elapsed);
        self.full |= shipped.full;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What an agent did last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The machine.
    pub machine: MachineName,
    /// When this was written.
    pub updated: Timestamp,
    /// The gateway that the agent is connected to.
    pub gateway: Option<String>,
    /// Whether that gateway lets no cycle begin.
    #[serde(default)]
    pub held: Option<HeldStatus>,
    /// The newest cut, complete or not.
    pub last_cut: Option<CutStatus>,
    /// The newest cut that is durable on a gateway.
    pub last_spooled: Option<CutStatus>,
    /// The newest cut that is a recovery point, as far as a gateway has said so.
    pub last_committed: Option<CommittedStatus>,
    /// Bytes that the newest spooled cut has sent, with the rounds before it.
    pub sent_bytes: u64,
    /// Bytes that it has read.
    pub read_bytes: u64,
    /// From its beginning until it was spooled.
    pub elapsed_ms: u64,
    /// How long everything was held still for it.
    #[serde(default)]
    pub held_ms: u64,
    /// Of the cut that is under way.
    #[serde(skip)]
    rounds: Rounds,
    /// Whether it sent everything.
    pub full: bool,
    /// Why everything must be sent and is not yet; none when it is, or need not be.
    #[serde(default)]
    pub waits: Option<String>,
    /// What went wrong, until a cycle is spooled again.
    pub error: Option<ErrorStatus>,
}

impl Status {
    fn new(machine: MachineName) -> Self {
        Self {
            machine,
            updated: now(),
            gateway: None,
            held: None,
            last_cut: None,
            last_spooled: None,
            last_committed: None,
            sent_bytes: 0,
            read_bytes: 0,
            elapsed_ms: 0,
            held_ms: 0,
            rounds: Rounds::default(),
            full: false,
            waits: None,
            error: None,
        }
    }

    /// What the agent with this state directory wrote last; `None` where none has run.
    ///
    /// # Errors
    /// `Corrupt` where the file is damaged, `Usage` where it may not be read.
    pub fn read(state_dir: &Path) -> Result<Option<Self>> {
        let path = state_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::with_source(ErrorKind::Corrupt, format!("{} is damaged", path.display()), e))
    }

    fn event(&mut self, event: &Event) {
        match *event {
            Event::Held(ref reason) => {
                self.held = reason.clone().map(|reason| HeldStatus { since: now(), reason });
            }
            Event::Cut { cycle, time } => {
                self.last_cut = Some(CutStatus { cycle, time });
                self.waits = None;
            }
            Event::Waits(ref why) => self.waits = Some(why.clone()),
            Event::Spooled(shipped) => {
                self.last_spooled = Some(CutStatus { cycle: shipped.cycle, time: shipped.time });
                self.rounds.add(&shipped);
                let Rounds { sent_bytes, read_bytes, elapsed_ms, full } = std::mem::take(&mut self.rounds);
                (self.sent_bytes, self.read_bytes, self.elapsed_ms, self.full) =
                    (sent_bytes, read_bytes, elapsed_ms, full);
                self.held_ms = millis(shipped.held);
                self.error = None;
            }
            Event::Round(shipped) => self.rounds.add(&shipped),
            Event::Committed { cycle, time, timeline, seq } => {
                self.last_committed = Some(CommittedStatus { cycle, time, timeline, seq });
            }
        }
    }
}

/// Keeps the file.
pub(crate) struct StatusFile {
    path: PathBuf,
    status: Status,
}

impl StatusFile {
    /// Goes on from what was written before, if that was for this machine.
    pub(crate) fn open(state_dir: &Path, machine: &MachineName) -> Self {
        let before = Status::read(state_dir).ok().flatten().filter(|s| s.machine == *machine);
        let status = before.unwrap_or_else(|| Status::new(machine.clone()));
        let mut file = Self { path: state_dir.join(FILE), status };
        file.connected(None);
        file
    }

    fn write(&mut self) {
        self.status.updated = now();
        let bytes = serde_json::to_vec_pretty(&self.status).map_err(|e| Error::new(ErrorKind::Bug, e.to_string()));
        // The agent does its work whether anybody can watch it or not.
        if let Err(error) = bytes.and_then(|bytes| durable::swap(&self.path, &bytes)) {
            tracing::warn!(%error, "the status was not written");
        }
    }

    /// Something happened.
    pub(crate) fn event(&mut self, event: &Event) {
        self.status.event(event);
        self.write();
    }

    /// The link was opened, or has ended.
    pub(crate) fn connected(&mut self, gateway: Option<&str>) {
        self.status.gateway = gateway.map(str::to_owned);
        // Asked anew on each link.
        self.status.waits = None;
        self.status.held = None;
        self.write();
    }

    /// Something went wrong.
    pub(crate) fn failed(&mut self, error: &Error) {
        let text = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
        let text = text.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        self.status.error = Some(ErrorStatus { time: now(), code: error.kind().exit_code(), text });
        self.write();
    }
}
