//! How fast a disk is compared from end to end while everything goes on: as fast as it goes where nobody else needs the disk, and down to a quarter of that
//! where others do.
//!
//! ```text
//!   read 1 MiB | rest: 0 to 3 times as long as that took, by the share of the others in what the disk did meanwhile | read ...
//! ```
//! There is no set point and no memory, so nothing oscillates: who rests leaves more to the others, and at most three quarters of the time. So a
//! comparison always ends, in four times the time at most.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A write costs a disk at least as much as this many bytes.
const WRITE_BYTES_MIN: u64 = 64 * 1024;
const SECTOR_BYTES: u64 = 512;
/// Times the time of a read that is rested at most after it.
const REST_MAX: f64 = 3.0;
/// However long a read took.
const REST_LONGEST: Duration = Duration::from_secs(1);

/// What a disk did since it was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Work {
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
}

/// Of a disk that is compared.
pub(crate) struct Pace {
    stat: PathBuf,
    before: Work,
}

impl Pace {
    /// Of the disk with this identity; none where it is no device, or the kernel does not count what it does.
    pub(crate) fn of(identity: &str) -> Option<Self> {
        let folder = fs::canonicalize(PathBuf::from("/sys/dev/block").join(identity.strip_prefix("device-")?)).ok()?;
        // What is beside a partition is on the same disk.
        let disk = if folder.join("partition").exists() { folder.parent()? } else { &folder };
        let stat = disk.join("stat");
        let before = parse(&fs::read_to_string(&stat).ok()?)?;
        Some(Self { stat, before })
    }

    /// This was read, and it took so long: how long to rest.
    pub(crate) fn rest(&mut self, bytes: u64, took: Duration) -> Duration {
        let Some(now) = fs::read_to_string(&self.stat).ok().and_then(|text| parse(&text)) else {
            return Duration::ZERO;
        };
        let before = std::mem::replace(&mut self.before, now);
        rest(bytes, others(before, now, bytes), took)
    }
}

/// Fields 3, 5 and 7 (Documentation/block/stat.rst): sectors read, writes, sectors written.
fn parse(text: &str) -> Option<Work> {
    let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let [_, _, read, _, writes, _, written, ..] = fields[..] else { return None };
    let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
    Some(Work { read_bytes: bytes(read), writes, written_bytes: bytes(written) })
}

/// What the disk did for others, in bytes.
fn others(before: Work, now: Work, ours: u64) -> u64 {
    let written = now.written_bytes.saturating_sub(before.written_bytes);
    let writes = now.writes.saturating_sub(before.writes).saturating_mul(WRITE_BYTES_MIN);
    let read = now.read_bytes.saturating_sub(before.read_bytes).saturating_sub(ours);
    read.saturating_add(written.max(writes))
}

fn rest(ours: u64, others: u64, took: Duration) -> Duration {
    let (ours, others) = (ours.max(1) as f64, others as f64);
    took.mul_f64(REST_MAX * others / (ours + others)).min(REST_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_is_alone_does_not_rest_and_who_is_not_rests_by_the_share_of_the_others() {
        let took = Duration::from_millis(10);
        assert_eq!(rest(MIB, 0, took), Duration::ZERO);
        assert_eq!(rest(MIB, MIB, took), Duration::from_millis(15));
        assert!(rest(MIB, 1 << 40, took) > Duration::from_millis(29));
        let before = parse(" 5 0 100 1 7 0 16 9 0 0 0 0").expect("a disk");
        let now = parse(" 6 0 2148 1 9 0 32 9 0 0 0 0").expect("a disk");
        assert_eq!(others(before, now, MIB), 2 * WRITE_BYTES_MIN, "small writes cost more than their bytes");
        assert_eq!(parse("1 2 3 x"), None);
    }

    proptest! {
        #[test]
        fn a_comparison_takes_four_times_its_time_at_most(ours: u64, others: u64, millis in 0_u64..100_000) {
            let took = Duration::from_millis(millis);
            prop_assert!(rest(ours, others, took) <= took * 3 && rest(ours, others, took) <= REST_LONGEST);
        }
    }
}
