//! How long to wait after a failure of the link.

use std::time::Duration;

use crate::durable;

const FIRST: Duration = Duration::from_secs(1);
/// A gateway that comes back is found within a minute.
const LONGEST: Duration = Duration::from_secs(60);

/// 1, 2, 4, 8 ... 60 seconds, each shortened at random by up to a half, so that agents which lost one gateway do not return as one.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

fn jittered(whole: Duration, random: u8) -> Duration {
    whole / 2 + whole * u32::from(random) / 510
}

fn random() -> u8 {
    // Without random numbers the waits are whole.
    durable::random::<1>().map_or(u8::MAX, |[byte]| byte)
}

impl Backoff {
    /// After one more failure: how long to wait.
    pub(crate) fn failed(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        jittered(whole, random())
    }

    /// After a refusal by everybody: trying soon does not help.
    pub(crate) fn refused(&mut self) -> Duration {
        self.next = LONGEST;
        self.failed()
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_are_never_shorter_than_half() {
        let mut backoff = Backoff::default();
        for whole in [1, 2, 4, 8, 16, 32, 60, 60] {
            let wait = backoff.failed();
            assert!(
                wait >= Duration::from_secs(whole) / 2 && wait <= Duration::from_secs(whole),
                "{wait:?} of {whole}"
            );
        }
        backoff.reset();
        assert!(backoff.failed() <= FIRST);
        assert!(backoff.refused() >= LONGEST / 2);
    }

    #[test]
    fn jitter_reaches_both_ends() {
        assert_eq!(jittered(LONGEST, 0), LONGEST / 2);
        assert_eq!(jittered(LONGEST, u8::MAX), LONGEST);
    }
}
