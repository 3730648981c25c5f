//! What the report of a drill says (FORMAT.md section 8): a machine was brought up beside its source, or was not, and how that went.

use serde::{Deserialize, Serialize};

use crate::{Consistency, Digest, ErrorKind, JobId, JobPoint, JobStep, MachineName, Timestamp};

/// How a drill ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillResult {
    /// Every probe passed.
    Passed,
    /// One did not, or it did not come so far.
    Failed,
}

/// Something that was asked of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillProbe {
    /// What, as the target's file says it.
    pub probe: String,
    /// When it passed, in milliseconds since the command was given; none where it did not.
    pub passed_ms: Option<u64>,
    /// Why it did not, at the last try.
    pub why: Option<String>,
}

/// The picture of the machine's screen that stands behind the report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillPicture {
    /// `png` or `ppm`.
    pub format: String,
    /// Its length in bytes, before it was sealed.
    pub bytes: u64,
    /// BLAKE3 of it, before it was sealed.
    pub blake3: Digest,
}

/// Body of a drill's report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillMeta {
    /// The job that was the drill: the report has its id.
    pub job: JobId,
    /// Which machine.
    pub machine: MachineName,
    /// Where it was brought up: `kvm`.
    pub target: String,
    /// The point as it was asked for: `latest`, a number or a time.
    pub asked: String,
    /// The point, once it was chosen.
    pub point: Option<JobPoint>,
    /// What the point guarantees.
    pub consistency: Option<Consistency>,
    /// The host where the machine was brought up.
    pub host: String,
    /// When the command was given.
    pub begun: Timestamp,
    /// When the last probe passed, or it was given up.
    pub ended: Timestamp,
    /// From the command to the last probe that passed, in milliseconds; none unless all passed.
    pub rto_ms: Option<u64>,
    /// What was done, in order.
    pub steps: Vec<JobStep>,
    /// What was asked of the machine.
    pub probes: Vec<DrillProbe>,
    /// Bytes of objects that were fetched from the store, metadata included.
    pub fetched_bytes: u64,
    /// How it ended.
    pub result: DrillResult,
    /// Why it failed.
    pub why: Option<String>,
    /// The exit code of what it failed by; 0 where it passed.
    pub code: u8,
    /// The version of the program that did it.
    pub version: String,
    /// The screen when the probes had passed, or were given up.
    pub picture: Option<DrillPicture>,
    /// Why there is no picture.
    pub no_picture: Option<String>,
}

impl DrillMeta {
    /// Whether the machine came up.
    pub fn passed(&self) -> bool {
        self.result == DrillResult::Passed
    }

    /// What it failed by.
    pub fn failure(&self) -> Option<ErrorKind> {
        (!self.passed()).then(|| ErrorKind::of_exit_code(self.code).unwrap_or(ErrorKind::Unavailable))
    }
}
