//! What a job says of itself (FORMAT.md section 8): a failover, with what was asked for, what was done, and what runs where.

use serde::{Deserialize, Serialize};

use crate::{CycleId, DiskDigest, JobId, MachineName, OrderId, Seq, Timeline, Timestamp};

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// A machine beside the source, for a while. Source and replication are not touched.
    Test,
    /// The source is lost: a machine in its place.
    Unplanned,
    /// The source is stopped and its last cycle sent, then a machine takes its place: nothing is lost.
    Planned,
}

impl JobKind {
    /// Whether a machine takes the source's place.
    pub const fn is_real(self) -> bool {
        matches!(self, Self::Unplanned | Self::Planned)
    }
}

/// What is wanted of the source, and what it said.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobSource {
    /// It is not asked to stop: it is gone.
    pub lost: bool,
    /// Digests of its disks are compared with those of the point before anything is started.
    pub proof: bool,
    /// The order that was given to it last.
    pub order: Option<OrderId>,
    /// The failover is being taken back: nobody goes on with it.
    pub cancelling: bool,
    /// Its last cycle, once it was stopped.
    pub cycle: Option<CycleId>,
    /// Its disks then.
    pub disks: Vec<DiskDigest>,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// A step is being done, or was when its process was killed: to be gone on with.
    Running,
    /// The machine runs.
    Up,
    /// A step failed: the last one says why. To be gone on with, or cleaned up.
    Failed,
    /// The failover is final.
    Committed,
    /// The machine was ended and its disks removed, and the source may go on.
    Cancelled,
    /// The test is over, and nothing of it is left.
    Cleaned,
}

impl JobState {
    /// Whether nothing more is done.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Committed | Self::Cancelled | Self::Cleaned)
    }
}

/// A step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobStep {
    /// What is done.
    pub name: String,
    /// When it was begun last.
    pub started: Timestamp,
    /// When it was done, or failed; none while it is being done.
    pub ended: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
    /// What came of it, for people.
    pub detail: Option<String>,
}

impl JobStep {
    /// Whether it was done, and need not be done again.
    pub fn is_done(&self) -> bool {
        self.ended.is_some() && self.error.is_none()
    }

    /// How long it took, in milliseconds; none while it is being done.
    pub fn took_ms(&self) -> Option<u64> {
        u64::try_from(self.ended?.millis().saturating_sub(self.started.millis())).ok()
    }
}

/// The point that the machine was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobPoint {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its number.
    pub seq: Seq,
    /// The moment that its bytes are of.
    pub time: Timestamp,
}

/// Body of a job record: all of its state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobMeta {
    /// Which job.
    pub job: JobId,
    /// What is done.
    pub kind: JobKind,
    /// To which machine.
    pub machine: MachineName,
    /// Where it is brought up: `kvm`.
    pub target: String,
    /// The point as it was asked for: `latest`, a number or a time.
    pub asked: String,
    /// The point, once it was chosen.
    pub point: Option<JobPoint>,
    /// How far it is.
    pub state: JobState,
    /// What was done, in order.
    pub steps: Vec<JobStep>,
    /// The host that does it.
    pub host: String,
    /// The folder of that host where the machine's disks lie.
    pub folder: String,
    /// When it was made.
    pub created: Timestamp,
    /// When this was written.
    pub updated: Timestamp,
    /// A test is over then.
    pub lease_until: Option<Timestamp>,
    /// The source, of a failover that is no test.
    #[serde(default)]
    pub source: JobSource,
    /// A test that is a drill: when its command was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Timestamp>,
}

impl JobMeta {
    /// A job that was begun a moment ago, of which nothing is done; `place`: its host, and its folder there.
    pub fn begun(
        job: JobId,
        kind: JobKind,
        machine: MachineName,
        asked: &str,
        (host, folder): (&str, &str),
        created: Timestamp,
    ) -> Self {
        Self {
            job,
            kind,
            machine,
            target: "kvm".to_owned(),
            asked: asked.to_owned(),
            point: None,
            state: JobState::Running,
            steps: Vec::new(),
            host: host.to_owned(),
            folder: folder.to_owned(),
            created,
            updated: created,
            lease_until: None,
            source: JobSource::default(),
            drill: None,
        }
    }

    /// Whether it is a drill, whose machine is ended when it was asked what it was to be asked. Only a test is: a record that says it of another kind of
    /// job must not end a machine that is needed.
    pub fn is_drill(&self) -> bool {
        self.kind == JobKind::Test && self.drill.is_some()
    }

    /// A step by its name.
    pub fn step(&self, name: &str) -> Option<&JobStep> {
        self.steps.iter().find(|s| s.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_test_is_a_drill_whatever_a_record_says() {
        let (id, machine) = (JobId::from_bytes([1; 16]), "web".parse().expect("a name"));
        let at = Timestamp::from_millis(1);
        let mut job = JobMeta::begun(id, JobKind::Test, machine, "latest", ("here", "/run/job"), at);
        assert!(!job.is_drill());
        let old = serde_json::to_string(&job).expect("JSON");
        assert!(!old.contains("drill"), "{old}");
        job.drill = Some(at);
        assert!(job.is_drill());
        job.kind = JobKind::Unplanned;
        assert!(!job.is_drill());
    }
}
