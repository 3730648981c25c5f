//! Says what was refused, once a minute for each address and reason: who is refused may come again at once, for ever.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const QUIET: Duration = Duration::from_secs(60);
/// Most pairs of address and reason that are remembered. Beyond it nothing more is said until a minute has passed.
const REMEMBERED_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct Refusals {
    said: Mutex<HashMap<(IpAddr, &'static str), Instant>>,
}

impl Refusals {
    /// Logs a refusal, unless the same was logged within the last minute.
    pub(super) fn say(&self, address: SocketAddr, reason: &'static str, why: &dyn Display) {
        if self.is_news(address.ip(), reason, Instant::now()) {
            tracing::warn!(%address, reason, "refused: {why}");
        }
    }

    fn is_news(&self, address: IpAddr, reason: &'static str, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |then: &Instant| now.duration_since(*then) < QUIET;
        if said.get(&(address, reason)).is_some_and(recent) {
            return false;
        }
        if said.len() >= REMEMBERED_MAX {
            said.retain(|_, then| recent(then));
        }
        if said.len() >= REMEMBERED_MAX {
            return false;
        }
        said.insert((address, reason), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_reason_is_said_once_a_minute_and_memory_is_bounded() {
        let refusals = Refusals::default();
        let (a, start) = (IpAddr::from([10, 0, 0, 1]), Instant::now());
        assert!(refusals.is_news(a, "x", start));
        assert!(!refusals.is_news(a, "x", start + Duration::from_secs(59)));
        assert!(refusals.is_news(a, "y", start));
        assert!(refusals.is_news(a, "x", start + QUIET));
        for n in 0..10_000_u32 {
            refusals.is_news(IpAddr::from(n.to_be_bytes()), "x", start + QUIET);
        }
        assert_eq!(refusals.said.lock().unwrap().len(), REMEMBERED_MAX);
        assert!(refusals.is_news(a, "z", start + QUIET * 3));
        assert_eq!(refusals.said.lock().unwrap().len(), 1);
    }
}
