//! How hard chunks are compressed: a little harder while uploads are what holds the gateway back and its cores have time, and at once as little
//! as possible when cores are what everybody waits for.

use std::sync::atomic::{AtomicI32, Ordering};

/// Zstandard level where the CPU is what holds the pipeline back.
pub(crate) const FASTEST: i32 = 1;
/// Beyond it each level costs much and saves little.
const HARDEST: i32 = 9;
/// Less than this in the spool is what any upload leaves there for a moment.
const BACKLOG_BYTES: u64 = 64 * 1024 * 1024;

/// The level that all cycles of a gateway use.
pub(crate) struct Level(AtomicI32);

impl Level {
    pub(crate) fn new() -> Self {
        Self(AtomicI32::new(FASTEST))
    }

    pub(crate) fn get(&self) -> i32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Looks again, at regular times: how much waits for the store, and whether a core was free.
    pub(crate) fn look(&self, backlog_bytes: u64, core_is_free: bool) {
        let level = self.get();
        let next = match (core_is_free, backlog_bytes > BACKLOG_BYTES) {
            (false, _) => FASTEST,
            (true, true) => (level + 1).min(HARDEST),
            (true, false) => (level - 1).max(FASTEST),
        };
        if next != level {
            tracing::debug!(level = next, backlog_bytes, "compression level");
            self.0.store(next, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_rises_while_only_the_store_is_slow_and_falls_at_once_when_cores_are() {
        let level = Level::new();
        let after = |times: usize, backlog, free| {
            (0..times).for_each(|_| level.look(backlog, free));
            level.get()
        };
        assert_eq!(after(5, 0, true), FASTEST, "a store that keeps up");
        assert_eq!(after(3, 2 * BACKLOG_BYTES, true), FASTEST + 3);
        assert_eq!(after(100, 2 * BACKLOG_BYTES, true), HARDEST);
        assert_eq!(after(1, 2 * BACKLOG_BYTES, false), FASTEST);
        assert_eq!(after(4, 2 * BACKLOG_BYTES, true), FASTEST + 4);
        assert_eq!(after(2, 0, true), FASTEST + 2, "it goes down as it went up");
    }
}
