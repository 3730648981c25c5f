//! How fast bytes are let through.

use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};

const SECOND_NANOS: u128 = 1_000_000_000;

/// So many bytes in a second, shared by all who ask. Without a limit nothing waits. A change holds at once, also for who waits.
pub(crate) struct Rate {
    bytes_per_second: watch::Sender<Option<u64>>,
    /// Whoever waits has it: the others take turns.
    turn: Mutex<Debt>,
}

/// Bytes that were let through and are not paid for.
struct Debt {
    bytes: u64,
    as_of: Instant,
}

impl Debt {
    fn pay(&mut self, bytes_per_second: u64) {
        let now = Instant::now();
        let paid = now.duration_since(self.as_of).as_nanos() * u128::from(bytes_per_second) / SECOND_NANOS;
        self.bytes = self.bytes.saturating_sub(u64::try_from(paid).unwrap_or(u64::MAX));
        self.as_of = now;
    }

    fn paid_in(&self, bytes_per_second: u64) -> Duration {
        let nanos = (u128::from(self.bytes) * SECOND_NANOS).div_ceil(u128::from(bytes_per_second.max(1)));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Rate {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        let turn = Mutex::new(Debt { bytes: 0, as_of: Instant::now() });
        Self { bytes_per_second: watch::Sender::new(bytes_per_second), turn }
    }

    /// From now on.
    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.bytes_per_second.send_if_modified(|rate| std::mem::replace(rate, bytes_per_second) != bytes_per_second);
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn take(&self, bytes: u64) {
        let mut debt = self.turn.lock().await;
        let mut changes = self.bytes_per_second.subscribe();
        loop {
            let Some(rate) = *changes.borrow_and_update() else {
                *debt = Debt { bytes: 0, as_of: Instant::now() };
                return;
            };
            debt.pay(rate);
            if debt.bytes == 0 {
                debt.bytes = bytes;
                return;
            }
            tokio::select! {
                () = sleep(debt.paid_in(rate)) => {}
                // What has passed is paid at the rate that it passed at.
                _ = changes.changed() => debt.pay(rate),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

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

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_rate_holds_at_once_for_who_waits() {
        let rate = Arc::new(Rate::new(Some(1000)));
        let start = Instant::now();
        rate.take(10_000).await;
        let waiting = tokio::spawn({
            let rate = rate.clone();
            async move {
                rate.take(1000).await;
                Instant::now()
            }
        });
        sleep(Duration::from_secs(4)).await;
        // 4000 are paid; what is left takes 3 s at twice the rate, and not 6.
        rate.set(Some(2000));
        assert_eq!((waiting.await.expect("it ends") - start).as_millis(), 7000);
        // Without a limit who waits goes on at once.
        let waiting = tokio::spawn({
            let rate = rate.clone();
            async move { rate.take(1).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        rate.set(None);
        waiting.await.expect("it ends");
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_saved_up_while_nobody_asks() {
        let rate = Rate::new(Some(1000));
        sleep(Duration::from_secs(3600)).await;
        let start = Instant::now();
        for _ in 0..3 {
            rate.take(1000).await;
        }
        assert_eq!(start.elapsed().as_millis(), 2000);
    }
}
