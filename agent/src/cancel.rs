//! Asking a running agent to stop.

use std::sync::Arc;

use tokio::sync::watch;

/// Asks a running agent to stop; clones ask the same one.
#[derive(Clone, Debug)]
pub struct Cancel(Arc<watch::Sender<bool>>);

impl Default for Cancel {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Cancel {
    /// Stops it soon: the cycle in flight is aborted, frozen disks are thawed.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was asked to stop.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is asked to stop.
    pub async fn cancelled(&self) {
        let mut changes = self.0.subscribe();
        // The sender lives as long as self: the wait ends only with the request.
        let _ = changes.wait_for(|set| *set).await;
    }
}
