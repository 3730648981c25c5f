//! What a machine did in the last 12 hours: sums of 5 minutes each, so that memory is bounded whatever the interval.

use std::collections::VecDeque;

use landfall_model::Timestamp;
use serde::{Deserialize, Serialize};

const BUCKET_MS: i64 = 5 * 60_000;
/// 12 hours.
const BUCKETS: i64 = 144;

/// Of several values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Sum {
    count: u64,
    total: u64,
    largest: u64,
}

impl Sum {
    fn add(&mut self, value: u64) {
        self.join(&Self { count: 1, total: value, largest: value });
    }

    fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.total = self.total.saturating_add(other.total);
        self.largest = self.largest.max(other.largest);
    }

    fn average(&self) -> Option<u64> {
        self.total.checked_div(self.count)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Bucket {
    failed: u64,
    missed: u64,
    /// Of cycles that were taken: bytes of disks that arrived.
    changes: Sum,
    /// Of cycles that became points: from their beginning to the commit, in milliseconds.
    latencies: Sum,
}

/// What a machine did, as of a moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Since when it counts: 12 hours ago, or when the gateway was started.
    pub since: Option<Timestamp>,
    /// Cycles that were taken.
    pub good: u64,
    /// Cycles and commits that failed.
    pub failed: u64,
    /// Cycles that were due by the agent's interval, and did not begin.
    pub missed: u64,
    /// Bytes of disks that a cycle brought, on average.
    pub change_average_bytes: Option<u64>,
    /// The most that one brought.
    pub change_largest_bytes: Option<u64>,
    /// From the beginning of a cycle to its point in the vault, on average, by the gateway's clock.
    pub latency_average_ms: Option<u64>,
    /// The longest.
    pub latency_largest_ms: Option<u64>,
    /// Bytes a second that cycles brought in the last 5 to 10 minutes.
    pub received_bytes_per_second: u64,
}

/// Sums of the last 12 hours.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recent {
    /// By number, ascending: milliseconds since the epoch in units of a bucket. Times without an event have none.
    buckets: VecDeque<(i64, Bucket)>,
    /// When it began to count.
    since: Option<Timestamp>,
    /// When the newest cycle began that was taken.
    newest: Option<Timestamp>,
    /// From one cycle to the next, where the agent said it.
    interval_ms: Option<u64>,
}

fn number(at: Timestamp) -> i64 {
    at.millis().div_euclid(BUCKET_MS)
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.millis().saturating_sub(from.millis())).unwrap_or(0)
}

impl Recent {
    fn bucket(&mut self, at: Timestamp) -> &mut Bucket {
        self.since.get_or_insert(at);
        // A clock that went backwards counts into the newest.
        let number = self.buckets.back().map_or(number(at), |(newest, _)| number(at).max(*newest));
        while self.buckets.front().is_some_and(|(oldest, _)| *oldest <= number - BUCKETS) {
            self.buckets.pop_front();
        }
        if self.buckets.back().is_none_or(|(newest, _)| *newest != number) {
            self.buckets.push_back((number, Bucket::default()));
        }
        let last = self.buckets.len() - 1;
        &mut self.buckets[last].1
    }

    /// The agent said how often it wants to ship.
    pub(crate) fn every(&mut self, interval_ms: u64, at: Timestamp) {
        self.since.get_or_insert(at);
        self.interval_ms = Some(interval_ms).filter(|ms| *ms > 0);
    }

    /// A cycle that began at a moment was taken.
    pub(crate) fn taken(&mut self, began: Timestamp, bytes: u64, at: Timestamp) {
        let missed = self.missed_until(began);
        let bucket = self.bucket(at);
        bucket.changes.add(bytes);
        bucket.missed += missed;
        self.newest = Some(began);
    }

    pub(crate) fn failed(&mut self, at: Timestamp) {
        self.bucket(at).failed += 1;
    }

    /// A cycle that began at a moment is a point.
    pub(crate) fn committed(&mut self, began: Timestamp, at: Timestamp) {
        self.bucket(at).latencies.add(millis(began, at));
    }

    /// Cycles that were due since the newest and before a moment, within the window. Half an interval of delay is none.
    fn missed_until(&self, at: Timestamp) -> u64 {
        let (Some(newest), Some(interval)) = (self.newest.or(self.since), self.interval_ms) else { return 0 };
        let longest = BUCKET_MS.unsigned_abs() * BUCKETS.unsigned_abs();
        let due = (millis(newest, at).min(longest) + interval / 2) / interval;
        due.saturating_sub(1)
    }

    /// As of a moment.
    pub(crate) fn figures(&self, at: Timestamp) -> Figures {
        let oldest = number(at) - BUCKETS + 1;
        let mut all = Bucket::default();
        for (_, bucket) in self.buckets.iter().filter(|(number, _)| *number >= oldest) {
            all.failed += bucket.failed;
            all.missed += bucket.missed;
            all.changes.join(&bucket.changes);
            all.latencies.join(&bucket.latencies);
        }
        let lately =
            self.buckets.iter().filter(|(n, _)| *n >= number(at) - 1).map(|(_, b)| b.changes.total).sum::<u64>();
        let seconds = (BUCKET_MS + at.millis().rem_euclid(BUCKET_MS)).unsigned_abs() / 1000;
        let begin = Timestamp::from_millis(oldest * BUCKET_MS);
        Figures {
            since: self.since.map(|since| since.max(begin)),
            good: all.changes.count,
            failed: all.failed,
            missed: all.missed + self.missed_until(at),
            change_average_bytes: all.changes.average(),
            change_largest_bytes: (all.changes.count > 0).then_some(all.changes.largest),
            latency_average_ms: all.latencies.average(),
            latency_largest_ms: (all.latencies.count > 0).then_some(all.latencies.largest),
            received_bytes_per_second: lately / seconds.max(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn averages_and_extremes_are_of_the_last_12_hours() {
        let mut recent = Recent::default();
        assert_eq!(recent.figures(at(0)), Figures::default());
        recent.taken(at(0), 9000, at(1));
        recent.committed(at(0), at(50));
        recent.failed(at(10));
        let hour = 3600;
        recent.taken(at(6 * hour), 100, at(6 * hour));
        recent.taken(at(6 * hour + 30), 300, at(6 * hour + 31));
        recent.committed(at(6 * hour), at(6 * hour + 2));
        recent.committed(at(6 * hour + 30), at(6 * hour + 36));
        let figures = recent.figures(at(11 * hour));
        assert_eq!((figures.good, figures.failed, figures.since), (3, 1, Some(at(1))));
        assert_eq!((figures.change_average_bytes, figures.change_largest_bytes), (Some(3133), Some(9000)));
        assert_eq!((figures.latency_average_ms, figures.latency_largest_ms), (Some(19_333), Some(50_000)));
        let figures = recent.figures(at(13 * hour));
        assert_eq!((figures.good, figures.failed, figures.since), (2, 0, Some(at(hour + 300))));
        assert_eq!((figures.change_average_bytes, figures.change_largest_bytes), (Some(200), Some(300)));
        assert_eq!((figures.latency_average_ms, figures.latency_largest_ms), (Some(4000), Some(6000)));
        assert_eq!(recent.figures(at(30 * hour)).latency_largest_ms, None);
    }

    #[test]
    fn memory_is_bounded_whatever_happens() {
        let mut recent = Recent::default();
        for n in 0..100_000 {
            recent.taken(at(n * 7), 1, at(n * 7));
            recent.failed(at(n * 7 - 1_000_000));
        }
        assert!(recent.buckets.len() <= 144, "{}", recent.buckets.len());
        assert!(recent.figures(at(700_000)).good <= 43_200 / 7 + 1);
    }

    #[test]
    fn cycles_that_did_not_begin_are_missed_and_a_little_delay_is_none() {
        let mut recent = Recent::default();
        recent.every(60_000, at(0));
        recent.taken(at(0), 1, at(1));
        recent.taken(at(85), 1, at(86));
        assert_eq!(recent.figures(at(100)).missed, 0);
        // Three were due while one took long.
        recent.taken(at(85 + 240), 1, at(400));
        assert_eq!(recent.figures(at(400)).missed, 3);
        // The agent is gone: they are counted while it is, and once.
        assert_eq!(recent.figures(at(325 + 600)).missed, 3 + 9);
        recent.taken(at(325 + 600), 1, at(925));
        assert_eq!(recent.figures(at(925)).missed, 3 + 9);
        assert_eq!(recent.figures(at(925 + 7 * 86_400)).missed, 719, "those of the window");
        // Who does not say its interval misses none.
        recent.every(0, at(1000));
        assert_eq!(recent.figures(at(90_000)).missed, 0);
    }

    #[test]
    fn the_rate_is_of_the_last_minutes() {
        let mut recent = Recent::default();
        recent.taken(at(0), 1 << 40, at(0));
        recent.taken(at(700), 900_000, at(700));
        assert_eq!(recent.figures(at(900)).received_bytes_per_second, 3000);
        assert_eq!(recent.figures(at(1200)).received_bytes_per_second, 0);
    }
}
