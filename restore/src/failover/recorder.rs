//! A job that is being worked on: each step is begun, done and written down.

use landfall_model::{Error, ErrorKind, JobMeta, JobState, JobStep, Result};
use landfall_vault::{Job, Vault, crash_point, now};

/// How often it is written down how far a long step is.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(10);

/// A job that this process works on.
pub(crate) struct Recorder {
    vault: Vault,
    job: Job,
    patient: bool,
    /// A state that the store may have, although it did not say so.
    doubtful: Option<JobMeta>,
}

impl Recorder {
    pub(crate) fn new(vault: Vault, job: Job) -> Self {
        Self { vault, job, patient: false, doubtful: None }
    }

    /// From here on a store that is away is waited for: a machine runs that needs us, whatever can be written down.
    pub(crate) fn be_patient(&mut self) {
        self.patient = true;
    }

    pub(crate) fn meta(&self) -> &JobMeta {
        &self.job.meta
    }

    /// Changes the job, and writes it.
    ///
    /// # Errors
    /// `Conflict` where somebody else works on it; `Unavailable`.
    pub(crate) async fn change(&mut self, change: impl FnOnce(&mut JobMeta)) -> Result<()> {
        let mut meta = self.job.meta.clone();
        change(&mut meta);
        meta.updated = now();
        loop {
            match self.vault.put_job(meta.clone(), Some(&self.job)).await {
                Err(error) if self.patient && error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(%error, "a job cannot be written down: it is tried again");
                    self.doubtful = Some(meta.clone());
                    tokio::time::sleep(TELL_EVERY).await;
                }
                Err(error) if error.kind() == ErrorKind::Conflict && self.doubtful.is_some() => {
                    let newest = self.vault.job(meta.job).await?;
                    if Some(&newest.meta) != self.doubtful.as_ref() {
                        return Err(error);
                    }
                    // It was our own.
                    (self.job, self.doubtful) = (newest, None);
                }
                put => {
                    self.job = put?;
                    return Ok(());
                }
            }
        }
    }

    /// Does a step, and writes down how it went. What it gives is what came of it, for people.
    ///
    /// # Errors
    /// Those of the step; those of writing it down.
    pub(crate) async fn step<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<(T, Option<String>)>>,
    ) -> Result<T> {
        self.long_step(name, || None, work).await
    }

    /// The same of a step that takes long: how far it is, is written down now and then.
    ///
    /// # Errors
    /// As for [`Self::step`].
    pub(crate) async fn long_step<T>(
        &mut self,
        name: &str,
        how_far: impl Fn() -> Option<String>,
        work: impl Future<Output = Result<(T, Option<String>)>>,
    ) -> Result<T> {
        let begun = JobStep { name: name.to_owned(), started: now(), ended: None, error: None, detail: None };
        self.change(|meta| {
            if meta.state != JobState::Up {
                meta.state = JobState::Running;
            }
            match meta.steps.iter_mut().find(|s| s.name == begun.name) {
                Some(step) => *step = begun,
                None => meta.steps.push(begun),
            }
        })
        .await?;
        tokio::pin!(work);
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = tokio::time::sleep(TELL_EVERY) => {
                    let Some(far) = how_far() else { continue };
                    let mut meta = self.job.meta.clone();
                    meta.updated = now();
                    meta.steps.iter_mut().filter(|s| s.name == name).for_each(|s| s.detail = Some(far.clone()));
                    // The work does not wait for it, and goes on without.
                    let before = self.job.clone();
                    let put = self.vault.put_job(meta.clone(), Some(&before));
                    tokio::pin!(put);
                    let (put, ended) = tokio::select! {
                        put = &mut put => (put, None),
                        done = &mut work => (put.await, Some(done)),
                    };
                    match put {
                        Ok(job) => self.job = job,
                        Err(error) if error.kind() == ErrorKind::Conflict => return Err(error),
                        Err(error) => {
                            tracing::warn!(%error, "how far a job is cannot be written down");
                            self.doubtful = Some(meta);
                        }
                    }
                    if let Some(done) = ended {
                        break done;
                    }
                }
            }
        };
        crash_point("failover.step-done");
        let (error, detail) = match &done {
            Ok((_, detail)) => (None, detail.clone()),
            Err(error) => (Some(line(error)), None),
        };
        self.change(|meta| {
            if error.is_some() {
                meta.state = JobState::Failed;
            }
            if let Some(step) = meta.steps.iter_mut().find(|s| s.name == name) {
                (step.ended, step.error, step.detail) = (Some(now()), error, detail);
            }
        })
        .await?;
        crash_point("failover.step-written");
        done.map(|(value, _)| value)
    }
}

/// An error and its causes on one line.
fn line(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace('\n', " ")
}

/// What an operator does about a job that is in the way.
pub(crate) fn in_the_way(meta: &JobMeta) -> Error {
    let why = format!(
        "machine {} has failover {} already: see `landfall jobs show {}`; it is gone on with by `landfall jobs resume`, or ended by `landfall failover cancel`",
        meta.machine, meta.job, meta.job
    );
    Error::new(ErrorKind::Conflict, why)
}
