//! The kernel's own count of what a disk has read, written and discarded, against that of the program.
//!
//! Whether a program runs is up to the kernel, and not every way of not running it is counted or told. So the program adds up the sectors
//! of all requests that complete. The kernel does so for its statistics, a moment later. Read in this order:
//! ```text
//! kernel's sum, then program's sum:      program - kernel >= what it was when the watch began
//! ```
//! A completion that passes the program by makes the difference smaller, for good. What is between the two sums just then makes it larger,
//! for a moment; of several readings the smallest counts. So a loss may stay unseen while a disk is busy, and not when it is quiet. Where an
//! operator turns the statistics off (`queue/iostats`), there is no such check.

use crate::device::Device;

/// Readings in a row. Each takes some 20 us, in which a fast disk may complete a request.
const READINGS: usize = 16;

/// The smallest difference that was seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally(Option<u64>);

impl Tally {
    /// Begins. `seen` gives the program's sum.
    pub(crate) fn begin(device: &Device, seen: impl Fn() -> u64) -> Self {
        Self(smallest(device, seen))
    }

    /// Whether completions have passed the program by since the last time.
    pub(crate) fn passed_by(&mut self, device: &Device, seen: impl Fn() -> u64) -> bool {
        let (Some(was), Some(now)) = (self.0, smallest(device, seen)) else { return false };
        // Sums wrap; the difference is far from where that matters.
        let fell = now.wrapping_sub(was).cast_signed() < 0;
        if fell {
            self.0 = Some(now);
        }
        fell
    }
}

/// None where the kernel keeps no such sums, or not at the moment.
fn smallest(device: &Device, seen: impl Fn() -> u64) -> Option<u64> {
    let mut least: Option<u64> = None;
    for _ in 0..READINGS {
        let kernel = device.sectors_done()?;
        let difference = seen().wrapping_sub(kernel);
        least = Some(least.filter(|least| difference.wrapping_sub(*least).cast_signed() >= 0).unwrap_or(difference));
    }
    least
}
