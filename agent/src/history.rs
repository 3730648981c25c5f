//! Which cycles an agent can send changes relative to, and what it decides when a gateway says which is its newest.
//!
//! ```text
//!   kept:  committed ----> spooled ----> spooled (the fingerprints are of this one)      pending: perhaps spooled, not heard of
//!                  ranges[1]     ranges[2]
//! ```
//! Pure: the state directory stores it.

use landfall_model::{CycleId, Timestamp};

use crate::ranges::Ranges;

/// Most runs of all kept ranges: some 4 MiB of memory.
pub(crate) const RUNS_MAX: usize = 128 * 1024;
/// Most runs of one cycle, so that one cycle of many small changes does not cost the others.
pub(crate) const RUNS_PER_CYCLE_MAX: usize = RUNS_MAX / 4;
/// Most kept cycles.
pub(crate) const KEPT_MAX: usize = 256;
/// The oldest so many are not merged: the newest committed cycle, and the one that a gateway may have committed without being able to say so.
const WHOLE: usize = 2;

/// A cycle that a gateway spooled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// Its name.
    pub(crate) cycle: CycleId,
    /// The moment of the cut.
    pub(crate) time: Timestamp,
    /// What changed since the kept cycle before it; of no meaning for the first.
    pub(crate) ranges: Ranges,
}

/// What the next cycle sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Plan {
    /// What changed since a cycle that the gateway has.
    Incremental {
        /// That cycle.
        parent: CycleId,
        /// Ranges that changed between it and the cycle that the fingerprints are of: they are sent as they are now.
        extra: Ranges,
        /// It is the pending cycle, which was spooled though nobody heard it: its journal is to be applied first.
        adopt: bool,
    },
    /// All data.
    Full {
        /// Why, for the log.
        reason: String,
    },
}

/// Spooled cycles, oldest first, and the one in flight.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct History {
    kept: Vec<Kept>,
    /// The cycle whose journal is durable and which was perhaps spooled.
    pub(crate) pending: Option<CycleId>,
}

impl History {
    /// The history of these cycles.
    pub(crate) fn new(kept: Vec<Kept>, pending: Option<CycleId>) -> Self {
        Self { kept, pending }
    }

    /// The kept cycles, oldest first.
    pub(crate) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// The newest cycle: the fingerprints are of it.
    pub(crate) fn newest(&self) -> Option<CycleId> {
        self.kept.last().map(|k| k.cycle)
    }

    /// What to send to a gateway whose newest cycle this is.
    pub(crate) fn decide(&self, newest_at_gateway: Option<CycleId>) -> Plan {
        let full = |reason: String| Plan::Full { reason };
        let Some(newest) = newest_at_gateway else {
            return full("the gateway has no cycle of this machine".to_owned());
        };
        if self.pending == Some(newest) {
            return Plan::Incremental { parent: newest, extra: Ranges::default(), adopt: true };
        }
        if self.kept.is_empty() {
            return full(format!("nothing is known here of cycle {newest}, which the gateway ends with: no state"));
        }
        let Some(at) = self.kept.iter().position(|k| k.cycle == newest) else {
            return full(format!("cycle {newest}, which the gateway ends with, is not known here"));
        };
        let mut extra = Ranges::default();
        self.kept[at + 1..].iter().for_each(|k| extra.add(&k.ranges));
        Plan::Incremental { parent: newest, extra, adopt: false }
    }

    /// A cycle was spooled and the fingerprints are of it. `full`: nothing is known of what changed since those before.
    pub(crate) fn push(&mut self, cycle: Kept, full: bool) {
        if full {
            self.kept.clear();
        }
        self.kept.push(cycle);
        if let [first] = self.kept.as_mut_slice() {
            first.ranges = Ranges::default();
        }
        self.pending = None;
    }

    /// A cycle is a recovery point: what is older is not needed any more. Returns the time of its cut if it is known.
    pub(crate) fn committed(&mut self, cycle: CycleId) -> Option<Timestamp> {
        let at = self.kept.iter().position(|k| k.cycle == cycle)?;
        self.kept.drain(..at);
        self.kept[0].ranges = Ranges::default();
        Some(self.kept[0].time)
    }

    /// Brings it back within its bounds by merging the oldest two that may be merged, again and again. Returns the cycles whose ranges
    /// are others now.
    pub(crate) fn bound(&mut self, kept_max: usize, runs_max: usize) -> Vec<CycleId> {
        let mut changed = Vec::new();
        loop {
            let runs: usize = self.kept.iter().map(|k| k.ranges.count()).sum();
            if self.kept.len() <= kept_max && runs <= runs_max {
                return changed;
            }
            if self.kept.len() > WHOLE + 1 {
                let gone = self.kept.remove(WHOLE);
                changed.retain(|c| *c != gone.cycle);
                self.kept[WHOLE].ranges.add(&gone.ranges);
                changed.push(self.kept[WHOLE].cycle);
                continue;
            }
            let share = runs_max / self.kept.len().max(1);
            for kept in &mut self.kept {
                kept.ranges.bound(share);
                changed.push(kept.cycle);
            }
            return changed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprints::BLOCK_BYTES;
    use landfall_model::{DiskName, Extent};

    fn id(n: u8) -> CycleId {
        CycleId::from_bytes([n; 16])
    }

    fn disk() -> DiskName {
        "a".parse().expect("a name")
    }

    fn block(n: u64) -> Extent {
        Extent { start: n * BLOCK_BYTES, len: BLOCK_BYTES }
    }

    fn ranges(blocks: &[u64]) -> Ranges {
        let mut ranges = Ranges::default();
        blocks.iter().for_each(|b| ranges.insert(&disk(), block(*b)));
        ranges
    }

    fn kept(n: u8, blocks: &[u64]) -> Kept {
        Kept { cycle: id(n), time: Timestamp::from_millis(i64::from(n)), ranges: ranges(blocks) }
    }

    fn history() -> History {
        let mut history = History::default();
        history.push(kept(1, &[9]), true);
        history.push(kept(2, &[2]), false);
        history.push(kept(3, &[3]), false);
        history
    }

    fn incremental(parent: u8, extra: &[u64], adopt: bool) -> Plan {
        Plan::Incremental { parent: id(parent), extra: ranges(extra), adopt }
    }

    #[test]
    fn nothing_at_the_gateway_means_everything() {
        assert!(matches!(history().decide(None), Plan::Full { .. }));
        assert!(matches!(History::default().decide(None), Plan::Full { .. }));
    }

    #[test]
    fn a_cycle_that_is_not_known_means_everything() {
        assert!(matches!(history().decide(Some(id(7))), Plan::Full { .. }));
        assert!(matches!(History::default().decide(Some(id(3))), Plan::Full { .. }));
    }

    #[test]
    fn the_newest_cycle_means_what_changed_since() {
        let plan = history().decide(Some(id(3)));
        assert_eq!(plan, incremental(3, &[], false));
    }

    #[test]
    fn an_older_cycle_means_also_what_changed_in_between() {
        assert_eq!(history().decide(Some(id(2))), incremental(2, &[3], false));
        assert_eq!(history().decide(Some(id(1))), incremental(1, &[2, 3], false));
    }

    #[test]
    fn a_cycle_that_was_spooled_unheard_is_adopted_and_one_that_was_not_is_left_out() {
        let mut history = history();
        history.pending = Some(id(4));
        assert_eq!(history.decide(Some(id(4))), incremental(4, &[], true));
        assert_eq!(history.decide(Some(id(3))), incremental(3, &[], false));
        let first = History::new(Vec::new(), Some(id(4)));
        assert_eq!(first.decide(Some(id(4))), incremental(4, &[], true));
        assert!(matches!(first.decide(None), Plan::Full { .. }));
    }

    #[test]
    fn what_is_older_than_a_committed_cycle_is_forgotten() {
        let mut history = history();
        assert_eq!(history.committed(id(7)), None);
        assert_eq!(history.committed(id(2)), Some(Timestamp::from_millis(2)));
        assert!(matches!(history.decide(Some(id(1))), Plan::Full { .. }));
        assert_eq!(history.decide(Some(id(2))), incremental(2, &[3], false));
        history.committed(id(3));
        assert_eq!(history.kept().len(), 1);
    }

    #[test]
    fn a_full_cycle_ends_what_was_known_before() {
        let mut history = history();
        history.push(kept(4, &[4]), true);
        assert_eq!(history.kept().len(), 1);
        assert!(matches!(history.decide(Some(id(3))), Plan::Full { .. }));
        assert_eq!(history.decide(Some(id(4))), incremental(4, &[], false));
    }

    #[test]
    fn bounds_hold_and_what_is_left_still_covers_everything() {
        let mut history = History::default();
        history.push(kept(1, &[]), true);
        for n in 2..40 {
            history.push(kept(n, &[u64::from(n), 100 + 2 * u64::from(n)]), false);
            let changed = history.bound(6, 1000);
            assert!(history.kept().len() <= 6);
            assert!(changed.iter().all(|c| history.kept().iter().any(|k| k.cycle == *c)));
        }
        let (oldest, second) = (history.kept()[0].cycle, history.kept()[1].cycle);
        assert_eq!((oldest, second), (id(1), id(2)), "the likeliest parents are kept");
        let all: Vec<u64> = (2..40).flat_map(|n| [n, 100 + 2 * n]).collect();
        assert_eq!(history.decide(Some(id(1))), incremental(1, &all, false));

        history.bound(6, 10);
        let Plan::Incremental { extra, .. } = history.decide(Some(id(1))) else { panic!("still known") };
        assert!(history.kept().iter().map(|k| k.ranges.count()).sum::<usize>() <= 10);
        assert!(all.iter().all(|b| extra.of(&disk()).is_some_and(|set| set.intersects(&block(*b)))));
    }
}
