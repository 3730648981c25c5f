//! What a drill saw, and the report of it.

use std::sync::{Mutex, PoisonError};

use landfall_keys::RecoveryKey;
use landfall_model::{
    Consistency, Digest, DrillMeta, DrillPicture, DrillProbe, DrillResult, Error, ErrorKind, JobMeta, Result, Timestamp,
};
use landfall_vault::{Vault, now};

use crate::kvm::{Picture, Plan, Probed, not_passed};

/// What was seen so far of a machine that is brought up.
#[derive(Default)]
pub(crate) struct Seen {
    /// What became of each probe.
    pub(crate) probed: Mutex<Vec<Probed>>,
    consistency: Mutex<Option<Consistency>>,
    failed: Mutex<Option<(ErrorKind, String)>>,
}

fn of<T: Clone>(cell: &Mutex<T>) -> T {
    cell.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn set<T>(cell: &Mutex<Option<T>>, value: T) {
    *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
}

impl Seen {
    /// What the point guarantees.
    pub(crate) fn point(&self, consistency: Consistency) {
        set(&self.consistency, consistency);
    }

    /// It did not come up, or not so far.
    pub(crate) fn failed(&self, error: &Error) {
        set(&self.failed, (error.kind(), error.line()));
    }

    /// The error that not all probes passed in time. Nobody can look at the console of a drill any more.
    pub(crate) fn not_up(&self, plan: &Plan, drill: bool) -> Error {
        let (limit, what) = (plan.settings.probe_limit.as_secs(), not_passed(&of(&self.probed)));
        let mut why = format!("the machine runs, and was not up within {limit} s: {what}");
        if !drill {
            why.push_str(&format!("; see {}", plan.files.console().display()));
        }
        Error::new(ErrorKind::Unavailable, why)
    }
}

/// Milliseconds between two moments of this host's clock.
fn between(begun: Timestamp, at: Timestamp) -> u64 {
    u64::try_from(at.millis().saturating_sub(begun.millis())).unwrap_or(0)
}

/// The report. Pure.
fn report(job: &JobMeta, seen: &Seen, fetched_bytes: u64, ended: Timestamp) -> DrillMeta {
    let (begun, probed, failed) = (job.drill.unwrap_or(job.created), of(&seen.probed), of(&seen.failed));
    let last = probed.iter().map(|p| p.passed).max().flatten();
    let passed = failed.is_none() && !probed.is_empty() && probed.iter().all(|p| p.passed.is_some());
    let failed = failed.unwrap_or((ErrorKind::Unavailable, "it was not asked anything".to_owned()));
    let probe = |p: Probed| DrillProbe { probe: p.probe, passed_ms: p.passed.map(|at| between(begun, at)), why: p.why };
    let ended = last.filter(|_| passed).unwrap_or(ended);
    DrillMeta {
        job: job.job,
        machine: job.machine.clone(),
        target: job.target.clone(),
        asked: job.asked.clone(),
        point: job.point,
        consistency: of(&seen.consistency),
        host: job.host.clone(),
        begun,
        ended,
        rto_ms: passed.then(|| between(begun, ended)),
        steps: job.steps.clone(),
        probes: probed.into_iter().map(probe).collect(),
        fetched_bytes,
        result: if passed { DrillResult::Passed } else { DrillResult::Failed },
        code: if passed { 0 } else { failed.0.exit_code() },
        why: (!passed).then_some(failed.1),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        picture: None,
        no_picture: None,
    }
}

/// Stores the report of a drill; `picture`: of its screen, or why there is none.
///
/// # Errors
/// `Conflict` where it has a report; `Unavailable`.
pub(crate) async fn store(
    vault: &Vault,
    recovery: &RecoveryKey,
    job: &JobMeta,
    seen: &Seen,
    picture: std::result::Result<Picture, String>,
) -> Result<()> {
    let mut meta = report(job, seen, vault.store().traffic().fetched_bytes(), now());
    let bytes = match picture {
        Ok(Picture { format, bytes }) => {
            meta.picture = Some(DrillPicture {
                format: format.to_owned(),
                bytes: bytes.len() as u64,
                blake3: Digest::from_bytes(*blake3::hash(&bytes).as_bytes()),
            });
            Some(bytes)
        }
        Err(why) => {
            meta.no_picture = Some(why);
            None
        }
    };
    vault.put_drill(&meta, bytes.as_deref().map(|bytes| (bytes, recovery))).await
}

#[cfg(test)]
mod tests {
    use landfall_model::{JobId, JobKind};

    use super::*;

    fn job() -> JobMeta {
        let (id, machine) = (JobId::from_bytes([1; 16]), "web".parse().expect("a name"));
        let at = Timestamp::from_millis(1500);
        let mut job = JobMeta::begun(id, JobKind::Test, machine, "latest", ("here", "/run/job"), at);
        job.drill = Some(Timestamp::from_millis(1000));
        job
    }

    fn probed(passed: &[Option<i64>]) -> Mutex<Vec<Probed>> {
        let one =
            |at: &Option<i64>| Probed { probe: "agent".to_owned(), passed: at.map(Timestamp::from_millis), why: None };
        Mutex::new(passed.iter().map(one).collect())
    }

    #[test]
    fn it_passes_only_when_everything_that_was_asked_passed_and_takes_until_the_last() {
        let ended = Timestamp::from_millis(9000);
        let seen = |passed: &[Option<i64>]| Seen { probed: probed(passed), ..Seen::default() };
        let right = report(&job(), &seen(&[Some(4000), Some(6000), Some(5000)]), 7, ended);
        assert_eq!((right.passed(), right.rto_ms, right.code, right.failure()), (true, Some(5000), 0, None));
        assert_eq!(right.probes.iter().map(|p| p.passed_ms).collect::<Vec<_>>(), [Some(3000), Some(5000), Some(4000)]);
        for wrong in [seen(&[]), seen(&[Some(4000), None])] {
            let wrong = report(&job(), &wrong, 7, ended);
            assert_eq!((wrong.passed(), wrong.rto_ms, wrong.ended), (false, None, ended));
            assert!(wrong.why.is_some() && wrong.failure() == Some(ErrorKind::Unavailable));
        }
        let damaged = seen(&[Some(4000)]);
        damaged.failed(&Error::corrupt("a chunk is missing"));
        let damaged = report(&job(), &damaged, 7, ended);
        assert_eq!((damaged.passed(), damaged.code), (false, ErrorKind::Corrupt.exit_code()));
        assert_eq!(damaged.why.as_deref(), Some("a chunk is missing"));
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_negative_time() {
        let seen = Seen { probed: probed(&[Some(10)]), ..Seen::default() };
        assert_eq!(report(&job(), &seen, 0, Timestamp::from_millis(20)).rto_ms, Some(0));
    }
}
