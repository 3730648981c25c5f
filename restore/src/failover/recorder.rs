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

    /// The job, for whoever only reads it.
    pub(crate) fn job(&self) -> Job {
        self.job.clone()
    }

    /// Writes a state. Of one before that the store may have taken without saying so, it is found out first.
    async fn put(&mut self, meta: &JobMeta) -> Result<()> {
        if let Some(doubtful) = &self.doubtful {
            let newest = self.vault.job(meta.job).await?;
            if newest.meta == *doubtful {
                self.job = newest;
            }
            self.doubtful = None;
        }
        // Also where nobody waits for the answer any more.
        self.doubtful = Some(meta.clone());
        match self.vault.put_job(meta.clone(), Some(&self.job)).await {
            Ok(job) => {
                (self.job, self.doubtful) = (job, None);
                Ok(())
            }
            Err(error) => {
                if error.kind() != ErrorKind::Unavailable {
                    self.doubtful = None;
                }
                Err(error)
            }
        }
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
            match self.put(&meta).await {
                Err(error) if self.patient && error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(%error, "a job cannot be written down: it is tried again");
                    tokio::time::sleep(TELL_EVERY).await;
                }
                put => return put,
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
                    let put = self.put(&meta);
                    tokio::pin!(put);
                    let (put, ended) = tokio::select! {
                        put = &mut put => (put, None),
                        done = &mut work => (put.await, Some(done)),
                    };
                    match put {
                        Err(error) if error.kind() == ErrorKind::Conflict => return Err(error),
                        Err(error) => tracing::warn!(%error, "how far a job is cannot be written down"),
                        Ok(()) => {}
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
            Err(error) => (Some(error.line()), None),
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

/// What an operator does about a job that is in the way.
pub(crate) fn in_the_way(meta: &JobMeta) -> Error {
    let why = format!(
        "machine {} has failover {} already: see `landfall jobs show {}`; it is gone on with by `landfall jobs resume`, or ended by `landfall failover cancel`",
        meta.machine, meta.job, meta.job
    );
    Error::new(ErrorKind::Conflict, why)
}

#[cfg(test)]
mod tests {
    use landfall_keys::{RecoveryKey, SiteKey};
    use landfall_model::{JobId, JobKind, VaultId};
    use landfall_vault::Store;

    use super::*;

    #[tokio::test]
    async fn a_state_that_the_store_took_without_saying_so_is_ones_own_and_anothers_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let recovery = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        let site = SiteKey::generate(VaultId::from_bytes([3; 16]), recovery.root_public()).expect("randomness");
        let store = Store::open(&format!("file://{}", folder.path().display())).expect("a store");
        let vault = Vault::create(store, &recovery, site, now()).await.expect("a vault");
        let machine = "web".parse().expect("a name");
        let meta =
            JobMeta::begun(JobId::from_bytes([1; 16]), JobKind::Test, machine, "latest", ("here", "/job"), now());
        let job = vault.put_job(meta.clone(), None).await.expect("a new one");
        let mut recorder = Recorder::new(vault.clone(), job.clone());
        // The answer was lost: it is there, and nobody knows.
        let taken = JobMeta { folder: "/elsewhere".to_owned(), ..meta };
        vault.put_job(taken.clone(), Some(&job)).await.expect("stored");
        recorder.doubtful = Some(taken);
        recorder.change(|meta| meta.state = JobState::Up).await.expect("goes on from there");
        assert_eq!(vault.job(job.meta.job).await.expect("read").meta.state, JobState::Up);
        // Somebody else wrote.
        let newest = vault.job(job.meta.job).await.expect("read");
        vault
            .put_job(JobMeta { host: "there".to_owned(), ..newest.meta.clone() }, Some(&newest))
            .await
            .expect("stored");
        recorder.doubtful = Some(newest.meta);
        let late = recorder.change(|meta| meta.state = JobState::Cleaned).await.expect_err("another's");
        assert_eq!(late.kind(), ErrorKind::Conflict);
    }
}
