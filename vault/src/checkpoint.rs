//! When a checkpoint is due: so that no point needs more than one checkpoint and a bounded number of points after it.

use crate::view::MapView;

/// Points after which a checkpoint is written in any case: opening reads their heads, 16 at once.
pub const CHECKPOINT_POINTS_MAX: usize = 256;
/// A checkpoint is due when opening lays this many times more pages over each other than the disks have described regions.
pub const CHECKPOINT_PAGES_FACTOR: usize = 4;
/// So few pages are never worth a checkpoint.
pub const CHECKPOINT_PAGES_MIN: usize = 64;

/// Whether opening this view costs more than a checkpoint would.
pub fn is_due(view: &MapView) -> bool {
    let points = view.layers().iter().filter(|l| l.header.position.kind == crate::record::Kind::Point).count();
    let regions: usize = view.meta().disks.iter().map(|d| view.described_regions(d).len()).sum();
    points >= CHECKPOINT_POINTS_MAX || view.page_refs() > CHECKPOINT_PAGES_FACTOR * regions + CHECKPOINT_PAGES_MIN
}
