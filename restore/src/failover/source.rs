//! The source of a failover: stopped before it, and started again where that is taken back.

use std::cell::RefCell;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, JobKind, JobPoint, JobStep, OrderKind, Result};
use landfall_vault::{Point, PointKey, Vault};

use super::recorder::Recorder;
use crate::orders::{self, COMMIT_MAX, Done, Request};

/// The steps.
pub(super) const STOP: &str = "stop";
pub(super) const STILL: &str = "still";
const START: &str = "start source";
/// A source that may be lost is asked for so long, and waited for so much longer when somebody has heard it.
const LOST_TAKEN_MAX: Duration = Duration::from_secs(15);
const LOST_DONE_MAX: Duration = Duration::from_secs(120);
/// One that did not say that it was stopped may stop all the same, or may be gone.
const MAYBE_TAKEN_MAX: Duration = Duration::from_secs(120);
/// Its agent finds the way back to a gateway that was fenced within a minute or two.
const START_TAKEN_MAX: Duration = Duration::from_secs(600);
const START_DONE_MAX: Duration = Duration::from_secs(900);

/// How far an order is, for whoever looks at the job.
type Far = RefCell<Option<String>>;

/// A new order stands in the job before it is given; the one before it is withdrawn, which may be of somebody who was killed.
async fn next_order(vault: &Vault, recorder: &mut Recorder) -> Result<landfall_model::OrderId> {
    if let Some(before) = recorder.meta().source.order {
        orders::withdraw(vault, before).await?;
    }
    let id = orders::new_id()?;
    recorder.change(|meta| meta.source.order = Some(id)).await?;
    Ok(id)
}

/// The point of a last cycle.
async fn last_point(vault: &Vault, recorder: &Recorder, done: &Done, longest: Duration) -> Result<(PointKey, Point)> {
    let cycle = done.cycle.ok_or_else(|| Error::corrupt("the agent does not say which cycle was the last"))?;
    orders::point_of(vault, &recorder.meta().machine, cycle, longest).await
}

/// Has the source stopped, and writes down its last cycle. A source that may be lost need not answer.
///
/// # Errors
/// Of a planned failover: where it is not stopped.
pub(super) async fn stop(vault: &Vault, recorder: &mut Recorder) -> Result<()> {
    let meta = recorder.meta();
    let planned = meta.kind == JobKind::Planned;
    let done = if planned { meta.source.cycle.is_some() } else { meta.step(STOP).is_some_and(JobStep::is_done) };
    if meta.source.lost || done {
        return Ok(());
    }
    let usual = Request::of(&meta.machine, OrderKind::Stop);
    let (request, commit_max) = if planned {
        (Request { proof: meta.source.proof, ..usual }, COMMIT_MAX)
    } else {
        (Request { taken_max: LOST_TAKEN_MAX, done_max: LOST_DONE_MAX, ..usual }, LOST_DONE_MAX)
    };
    let (id, far) = (next_order(vault, recorder).await?, Far::default());
    let job = Recorder::new(vault.clone(), recorder.job());
    let work = async {
        let done = match orders::give(vault, id, request, |text| *far.borrow_mut() = Some(text.to_owned())).await {
            Err(error) if !planned => {
                tracing::warn!(%error, "the source could not be stopped");
                return Ok((None, Some(format!("the source could not be stopped: {}", error.line()))));
            }
            done => done?,
        };
        *far.borrow_mut() = Some("it is stopped; its last cycle is committed".to_owned());
        let (point, said) = match last_point(vault, &job, &done, commit_max).await {
            Ok((key, point)) => {
                let time = point.meta().source_time;
                let said = format!("it is stopped; its last point is {}", key.seq);
                (Some(JobPoint { timeline: key.timeline, seq: key.seq, time }), said)
            }
            Err(error) if !planned => {
                (None, format!("it is stopped; its last cycle is not in the vault: {}", error.line()))
            }
            Err(error) => return Err(error),
        };
        Ok((Some((done, point)), Some(said)))
    };
    let stopped = recorder.long_step(STOP, || far.borrow().clone(), work).await?;
    if let Some((done, point)) = stopped {
        let change = |meta: &mut landfall_model::JobMeta| {
            (meta.source.cycle, meta.source.disks) = (done.cycle, done.disks);
            meta.point = point.filter(|_| planned);
        };
        recorder.change(change).await?;
    }
    Ok(())
}

/// Looks once more, right before the fence, whether the source has written since its last point: what is not committed by then would be lost.
///
/// # Errors
/// `Conflict` where it has; `Unavailable` where it does not answer.
pub(super) async fn is_still(vault: &Vault, recorder: &mut Recorder, last: JobPoint) -> Result<()> {
    let request = Request::of(&recorder.meta().machine, OrderKind::Stop);
    let (id, far) = (next_order(vault, recorder).await?, Far::default());
    let job = Recorder::new(vault.clone(), recorder.job());
    let work = async {
        let done = orders::give(vault, id, request, |text| *far.borrow_mut() = Some(text.to_owned())).await?;
        let (key, _) = last_point(vault, &job, &done, COMMIT_MAX).await?;
        let later = written_after(vault, &job.meta().machine, last).await?;
        if later > 0 {
            let why = format!(
                "the source wrote {later} bytes after it was stopped: something on it still writes. `landfall failover cancel` lets it go on"
            );
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        Ok(((), Some(format!("it has written nothing since; its last point is {}", key.seq))))
    };
    recorder.long_step(STILL, || far.borrow().clone(), work).await
}

/// How many bytes of the source's disks are not what they were at a point, by the points after it.
pub(super) async fn written_after(
    vault: &Vault,
    machine: &landfall_model::MachineName,
    point: JobPoint,
) -> Result<u64> {
    let log = vault.machine(machine);
    let mut bytes = 0;
    for key in log.line().await?.into_iter().rev().take_while(|key| key.seq > point.seq) {
        bytes += log.point(key).await?.meta().counters.changed_bytes;
    }
    Ok(bytes)
}

/// Lets a source go on that was told to stop. One that does not is named in the job: it is for somebody who can reach it.
///
/// # Errors
/// What writing the job down says.
pub(super) async fn start(vault: &Vault, recorder: &mut Recorder, mut told: impl FnMut(&str)) -> Result<()> {
    let meta = recorder.meta();
    if meta.source.lost || meta.step(STOP).is_none() {
        return Ok(());
    }
    let known = meta.kind == JobKind::Planned || meta.source.cycle.is_some();
    told("the source is told to go on; that may take minutes");
    let usual = Request::of(&meta.machine, OrderKind::Start);
    let taken_max = if known { START_TAKEN_MAX } else { MAYBE_TAKEN_MAX };
    let request = Request { taken_max, done_max: START_DONE_MAX, ..usual };
    let (machine, far) = (meta.machine.clone(), Far::default());
    let id = next_order(vault, recorder).await?;
    let work = async {
        match orders::give(vault, id, request, |text| *far.borrow_mut() = Some(text.to_owned())).await {
            Ok(_) => Ok(((), Some("it goes on".to_owned()))),
            Err(error) => {
                tracing::warn!(%error, "the source does not go on by itself");
                Ok(((), Some(format!("start {machine} by hand: {}", error.line()))))
            }
        }
    };
    recorder.long_step(START, || far.borrow().clone(), work).await
}
