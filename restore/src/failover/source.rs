//! The source of a failover: stopped before it, and started again where that is taken back.

use std::cell::RefCell;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, JobKind, OrderKind, Result};
use landfall_vault::{PointKey, Vault};

use super::recorder::Recorder;
use crate::orders::{self, COMMIT_MAX, Request};

/// The step.
pub(super) const STOP: &str = "stop";
/// The step of going back.
const START: &str = "start source";
/// A source that may be lost is asked for so long, and waited for so much longer when somebody has heard it.
const LOST_TAKEN_MAX: Duration = Duration::from_secs(15);
const LOST_DONE_MAX: Duration = Duration::from_secs(120);
/// One that did not say that it was stopped may stop all the same, or may be gone.
const MAYBE_TAKEN_MAX: Duration = Duration::from_secs(120);
/// Its agent finds the way back to a gateway that was fenced within a minute or two.
const START_TAKEN_MAX: Duration = Duration::from_secs(600);
const START_DONE_MAX: Duration = Duration::from_secs(900);

/// Has the source stopped, and writes down its last cycle. A source that may be lost need not answer.
///
/// # Errors
/// Of a planned failover: where it is not stopped.
pub(super) async fn stop(vault: &Vault, recorder: &mut Recorder) -> Result<()> {
    let meta = recorder.meta();
    let planned = meta.kind == JobKind::Planned;
    let done = meta.step(STOP).is_some_and(landfall_model::JobStep::is_done);
    if meta.source.lost || done || meta.source.cycle.is_some() {
        return Ok(());
    }
    let usual = Request::of(&meta.machine, OrderKind::Stop);
    let request = if planned {
        Request { proof: meta.source.proof, ..usual }
    } else {
        Request { taken_max: LOST_TAKEN_MAX, done_max: LOST_DONE_MAX, ..usual }
    };
    let (machine, far) = (meta.machine.clone(), RefCell::new(None));
    let work = async {
        let ordered = async {
            let done = orders::give(vault, request, |text| *far.borrow_mut() = Some(text.to_owned())).await?;
            let limit = if planned { COMMIT_MAX } else { LOST_DONE_MAX };
            *far.borrow_mut() = Some("it is stopped; its last cycle is committed".to_owned());
            let key = match done.cycle {
                Some(cycle) => Some(orders::point_of(vault, &machine, cycle, limit).await?.0),
                None => None,
            };
            Ok::<_, Error>((done, key))
        };
        match ordered.await {
            Ok((done, key)) => {
                let said = key.map(|key: PointKey| format!("it is stopped; its last point is {}", key.seq));
                Ok((Some(done), said))
            }
            Err(error) if !planned => {
                tracing::warn!(%error, "the source could not be stopped");
                Ok((None, Some(format!("the source could not be stopped: {}", error.line()))))
            }
            Err(error) => Err(error),
        }
    };
    let stopped = recorder.long_step(STOP, || far.borrow().clone(), work).await?;
    if let Some(done) = stopped {
        recorder.change(|meta| (meta.source.cycle, meta.source.disks) = (done.cycle, done.disks)).await?;
    }
    Ok(())
}

/// Lets a source go on that was told to stop. One that cannot be reached is told so in the job: it is for somebody who can reach it.
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
    let (machine, far) = (meta.machine.clone(), RefCell::new(None));
    let work = async {
        match orders::give(vault, request, |text| *far.borrow_mut() = Some(text.to_owned())).await {
            Ok(_) => Ok(((), Some("it goes on".to_owned()))),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                Ok(((), Some(format!("it did not answer: start {machine} by hand ({})", error.line()))))
            }
            Err(error) => Err(error.context(format!("start {machine} by hand"))),
        }
    };
    recorder.long_step(START, || far.borrow().clone(), work).await
}
