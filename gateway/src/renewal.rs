//! The lease of a machine that is being written.

use landfall_vault::{LEASE_RENEWAL, Tenure, now};

/// Renews the lease in the background until it is dropped.
pub(crate) struct Renewal(tokio::task::JoinHandle<()>);

impl Renewal {
    pub(crate) fn start(tenure: Tenure) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEASE_RENEWAL).await;
                if let Err(error) = tenure.renew(now()).await {
                    tracing::warn!(%error, "the lease was not renewed");
                }
            }
        }))
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}
