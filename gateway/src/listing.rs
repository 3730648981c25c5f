//! When the store is listed for the dedup index: one listing for all machines of a gateway.
//!
//! # Consistency
//! The index must know two things of the store. What a machine's next point goes on referring to must be there: a segment that the
//! machine's newest records name and the index does not know is looked for before the machine is written. And what was deleted behind our back must be
//! noticed some time, so that it is stored again: the store is listed when the gateway first takes a machine, and again when it takes one, or
//! compares one in full, and the last listing is older than [`AGE_MAX`], or an operator asked for a full comparison since. What other gateways stored meanwhile and no record of this machine names is not known as a
//! dedup target, and that is all.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use landfall_model::Result;
use landfall_vault::DedupIndex;
use tokio::time::Instant;

use crate::newest::Newest;
use crate::owner::Shared;

/// A listing serves all machines that are taken within so long. It is some requests for each 1000 segments.
const AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// When the store was listed last.
#[derive(Default)]
pub(crate) struct Listing {
    /// One at a time: who waits for it uses it.
    last: tokio::sync::Mutex<Option<Instant>>,
    expired: AtomicBool,
}

impl Listing {
    /// Sees to it that the index knows what a machine refers to.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) async fn catch_up(&self, shared: &Shared, newest: &Newest) -> Result<()> {
        let mut last = self.last.lock().await;
        if self.expired.swap(false, Ordering::Relaxed) {
            *last = None;
        }
        if last.is_some_and(|at| at.elapsed() < AGE_MAX) && knows_all(shared, newest) {
            return Ok(());
        }
        // What is stored from here on may be missing in it.
        let begun = Instant::now();
        let domain = shared.vault.site().domain_id(&shared.domain);
        DedupIndex::catch_up(&shared.index, &shared.vault, domain).await?;
        *last = Some(begun);
        Ok(())
    }

    /// What was listed counts no more: somebody wants to know what the store has now.
    pub(crate) fn expire(&self) {
        self.expired.store(true, Ordering::Relaxed);
    }
}

/// Whether the index knows every segment that the newest records of a machine refer to, as they say it.
fn knows_all(shared: &Shared, newest: &Newest) -> bool {
    let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
    let mut segments = newest.view.iter().flat_map(|v| v.layers()).flat_map(|l| &l.body.segments);
    segments.all(|(id, size)| index.segment_size(*id) == Some(*size))
}
