//! Jobs: failovers as they stand in the vault, so that whoever has the keys sees them and goes on with them (FORMAT.md section 8).

use landfall_model::{JobId, JobMeta, Result};

use crate::layout;
use crate::record::Kind;
use crate::row::{Row, State};
use crate::vault::Vault;

/// A job as it was read or written last.
pub type Job = Row<JobMeta>;

impl State for JobMeta {
    const KIND: Kind = Kind::Job;
    const WHAT: &str = "job";
    const SEE: &str = "`landfall jobs`";
    type Id = JobId;

    fn id(&self) -> JobId {
        self.job
    }

    fn id_bytes(id: JobId) -> [u8; 16] {
        *id.as_bytes()
    }

    fn folder(id: JobId) -> String {
        layout::job(id)
    }
}

impl Vault {
    /// All jobs.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs(&self) -> Result<Vec<JobId>> {
        let folders = self.store().list_folders(layout::JOBS).await?;
        Ok(folders.iter().filter_map(|f| f.parse().ok()).collect())
    }

    /// Reads a job as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where its newest record is damaged, false or another object; `Unavailable`.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        self.row(id).await
    }

    /// Writes the next state of a job; `before`: as it was read or written last, none for a new one.
    ///
    /// # Errors
    /// `Conflict` where somebody else has written to it; `Unavailable`.
    pub async fn put_job(&self, meta: JobMeta, before: Option<&Job>) -> Result<Job> {
        self.put_row(meta, before).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use landfall_keys::{RecoveryKey, SiteKey};
    use landfall_model::{ErrorKind, JobKind, JobState, Seq, Timestamp, VaultId};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::{Store, now};

    async fn vault() -> Vault {
        let recovery = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        let site = SiteKey::generate(VaultId::from_bytes([3; 16]), recovery.root_public()).expect("randomness");
        let store = Store::over(Arc::new(InMemory::new()), Path::default(), "memory");
        Vault::create(store, &recovery, site, now()).await.expect("a vault")
    }

    fn meta(id: u8) -> JobMeta {
        let (job, machine) = (JobId::from_bytes([id; 16]), "web".parse().expect("a name"));
        JobMeta::begun(job, JobKind::Test, machine, "latest", ("here", "/run/job"), Timestamp::from_millis(1))
    }

    #[tokio::test]
    async fn a_job_is_what_was_written_last_and_only_one_can_go_on_with_it() {
        let vault = vault().await;
        let first = vault.put_job(meta(1), None).await.expect("a new one");
        let other = vault.put_job(meta(2), None).await.expect("another");
        assert_eq!(vault.jobs().await.expect("listed").len(), 2);
        let up = JobMeta { state: JobState::Up, ..meta(1) };
        let second = vault.put_job(up.clone(), Some(&first)).await.expect("the next state");
        assert_eq!(vault.job(up.job).await.expect("read"), second);
        let late = vault.put_job(JobMeta { state: JobState::Cancelled, ..meta(1) }, Some(&first)).await;
        assert_eq!(late.expect_err("somebody went on with it").kind(), ErrorKind::Conflict);
        assert_eq!(vault.job(up.job).await.expect("read").meta.state, JobState::Up);
        assert_eq!(vault.job(other.meta.job).await.expect("read"), other);
        let none = vault.job(JobId::from_bytes([9; 16])).await;
        assert_eq!(none.expect_err("not there").kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_record_that_was_copied_to_another_place_is_no_state_of_a_job() {
        let vault = vault().await;
        let first = vault.put_job(meta(1), None).await.expect("a new one");
        vault.put_job(JobMeta { state: JobState::Cancelled, ..meta(1) }, Some(&first)).await.expect("cancelled");
        let old = vault.store().get(&layout::job_record(first.meta.job, Seq(1))).await.expect("read").expect("there");
        vault.store().put(&layout::job_record(first.meta.job, Seq(3)), old.clone()).await.expect("stored");
        assert_eq!(vault.job(first.meta.job).await.expect_err("a replay").kind(), ErrorKind::Corrupt);
        vault.store().put(&layout::job_record(JobId::from_bytes([7; 16]), Seq(1)), old).await.expect("stored");
        assert_eq!(vault.job(JobId::from_bytes([7; 16])).await.expect_err("another's").kind(), ErrorKind::Corrupt);
    }
}
