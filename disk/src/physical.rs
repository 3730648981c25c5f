//! Where on its device the bytes of a file are that the kernel itself writes past the file system: a swap file.

use std::fs::File;

use fiemap::{Fiemap, FiemapExtentFlags as Flags, FiemapFlags};
use landfall_model::Extent;

/// Extents of a file that is looked at, at most: one that lies in more pieces is read like any other.
const EXTENTS_MAX: usize = 64 * 1024;
/// What an extent may be said to be. One that is unwritten has its place too, and the kernel swaps to it.
const PLAIN: u32 = Flags::LAST.union(Flags::MERGED).union(Flags::UNWRITTEN).bits();

/// Where the bytes of a file lie, in bytes of the device of its file system; ascending in the file, not on the device. None where not all of it lies in
/// places of its own that are known: it is shared, compressed, inline, not yet allocated, or in too many pieces; or where the file system does not say.
///
/// That these are bytes of the device, and not of an address space of the file system's own (btrfs), is known to the caller.
pub fn places_on_device(file: &File) -> Option<Vec<Extent>> {
    let mut places = Vec::new();
    for extent in Fiemap::with_flags(file, FiemapFlags::empty()) {
        let extent = extent.ok()?;
        let is_plain = extent.fe_flags.bits() & !PLAIN == 0;
        let ends = extent.fe_physical.checked_add(extent.fe_length);
        if !is_plain || ends.is_none() || places.len() == EXTENTS_MAX {
            return None;
        }
        places.push(Extent { start: extent.fe_physical, len: extent.fe_length });
    }
    Some(places)
}
