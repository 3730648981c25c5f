//! The heartbeat of this gateway, kept beating.

use landfall_vault::{HEARTBEAT_EVERY, Heartbeat};

/// Renews the heartbeat in the background, and at once when a machine was given back; until it is dropped. One task for all machines.
pub(crate) struct Renewal(tokio::task::JoinHandle<()>);

impl Renewal {
    pub(crate) fn start(heartbeat: Heartbeat) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(HEARTBEAT_EVERY) => {}
                    () = heartbeat.given_back() => {}
                }
                if let Err(error) = heartbeat.renew().await {
                    tracing::warn!(%error, "the heartbeat was not renewed");
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
