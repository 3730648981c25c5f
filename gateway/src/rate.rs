//! How fast a gateway uploads.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// So many bytes in a second, shared by all uploads. Without a limit nothing waits.
pub(crate) struct Rate {
    bytes_per_second: Option<u64>,
    /// When the bytes that were let through so far are paid for.
    free_at: Mutex<Instant>,
}

impl Rate {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let mut free_at = self.free_at.lock().await;
        sleep_until(*free_at).await;
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        *free_at = Instant::now() + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn uploads_take_turns_at_the_rate() {
        let rate = Rate::new(Some(1000));
        let start = Instant::now();
        for _ in 0..4 {
            rate.take(500).await;
        }
        // The first goes at once; each then waits for the one before it.
        assert_eq!(start.elapsed().as_millis(), 1500);
        let unlimited = Rate::new(None);
        let start = Instant::now();
        unlimited.take(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
