//! Fixed VHD: the bytes of the disk, then a footer of one sector.
//!
//! ```text
//! 0                      data, whole MiB                      size          size + 512
//! |-------------------------------------------------------------| footer, big-endian |
//! ```
//!
//! Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006): "Hard Disk Footer Format" and
//! the appendix "CHS Calculation". Sizes are whole MiB because Azure takes nothing else.
//!
//! The footer names Hyper-V as its creator: QEMU (`block/vpc.c`) takes the size from the rounded disk geometry unless it
//! knows the creator as one that means the size field.
//!
//! **What a crash leaves.** The footer is written last, so an image that was cut off does not open as a VHD.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::format::SECTOR_BYTES;

/// Disks are whole multiples of this.
pub(crate) const UNIT_BYTES: u64 = 1 << 20;

/// Hyper-V's and QEMU's limit.
pub(crate) const BYTES_MAX: u64 = 2040 << 30;

/// What the file has more than the disk.
pub(crate) const FOOTER_BYTES: u64 = FOOTER_LEN as u64;

const FOOTER_LEN: usize = 512;

const COOKIE: &[u8; 8] = b"conectix";
const FEATURES_RESERVED: u32 = 2;
const FILE_FORMAT_VERSION: u32 = 0x0001_0000;
const NO_DATA_OFFSET: u64 = u64::MAX;
const CREATOR_APPLICATION: &[u8; 4] = b"win ";
const CREATOR_VERSION: u32 = 0x000A_0000;
const CREATOR_HOST: &[u8; 4] = b"Wi2k";
const DISK_TYPE_FIXED: u32 = 2;

/// Seconds from 1970 to 2000, where VHD counts from.
const EPOCH_SECS: u64 = 946_684_800;

const CHECKSUM_AT: usize = 64;

/// A footer, as its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Footer([u8; FOOTER_LEN]);

impl Footer {
    /// The footer of a new image of `size` bytes.
    pub(crate) fn new(size: u64) -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(EPOCH_SECS)).unwrap_or_default();
        Ok(Self::build(size, u32::try_from(since.as_secs()).unwrap_or(u32::MAX), id))
    }

    fn build(size: u64, created_secs: u32, id: [u8; 16]) -> Self {
        let mut bytes = [0; FOOTER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(COOKIE);
        put(&FEATURES_RESERVED.to_be_bytes());
        put(&FILE_FORMAT_VERSION.to_be_bytes());
        put(&NO_DATA_OFFSET.to_be_bytes());
        put(&created_secs.to_be_bytes());
        put(CREATOR_APPLICATION);
        put(&CREATOR_VERSION.to_be_bytes());
        put(CREATOR_HOST);
        put(&size.to_be_bytes()); // original size
        put(&size.to_be_bytes()); // current size
        put(&geometry(size / u64::from(SECTOR_BYTES)));
        put(&DISK_TYPE_FIXED.to_be_bytes());
        put(&[0; 4]); // checksum, below
        put(&id);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_be_bytes());
        Self(bytes)
    }

    /// This footer for another size: what identifies the image stays.
    pub(crate) fn resized(&self, size: u64) -> Self {
        Self::build(size, u32::from_be_bytes(self.field(24)), self.field(68))
    }

    /// Reads and checks the footer of a file of `file_bytes`.
    ///
    /// # Errors
    /// `InvalidData` for anything but a fixed VHD whose data and footer are exactly the file.
    pub(crate) fn read(file: &File, file_bytes: u64) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let size = file_bytes.checked_sub(FOOTER_BYTES).ok_or_else(|| invalid("too short for a VHD"))?;
        let mut bytes = [0; FOOTER_LEN];
        file.read_exact_at(&mut bytes, size)?;
        let footer = Self(bytes);
        if !bytes.starts_with(COOKIE) {
            return Err(invalid("no VHD footer at the end of the file"));
        }
        if u32::from_be_bytes(footer.field(CHECKSUM_AT)) != checksum(&bytes) {
            return Err(invalid("the checksum of the VHD footer is wrong"));
        }
        if u32::from_be_bytes(footer.field(60)) != DISK_TYPE_FIXED {
            return Err(invalid("only fixed VHDs can be brought up to date, this one is dynamic or differencing"));
        }
        if u64::from_be_bytes(footer.field(48)) != size {
            return Err(invalid("the size in the VHD footer is not that of the file"));
        }
        Ok(footer)
    }

    /// Writes the footer behind the data.
    pub(crate) fn write(&self, file: &File, size: u64) -> io::Result<()> {
        file.write_all_at(&self.0, size)
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }
}

/// One's complement of the sum of all bytes but those of the checksum.
fn checksum(footer: &[u8; FOOTER_LEN]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    !(sum(&footer[..CHECKSUM_AT]) + sum(&footer[CHECKSUM_AT + 4..]))
}

/// Cylinders, heads and sectors per track: at most the disk, and all of it only by chance. From the appendix of the
/// specification.
#[expect(clippy::cast_possible_truncation, reason = "at most 65,535 cylinders, 16 heads and 255 sectors")]
fn geometry(sectors: u64) -> [u8; 4] {
    let sectors = sectors.min(65_535 * 16 * 255);
    let (track, heads, tracks);
    if sectors >= 65_535 * 16 * 63 {
        (track, heads, tracks) = (255, 16, sectors / 255);
    } else {
        let by_17 = sectors / 17;
        let heads_by_17 = by_17.div_ceil(1024).max(4);
        if by_17 < heads_by_17 * 1024 && heads_by_17 <= 16 {
            (track, heads, tracks) = (17, heads_by_17, by_17);
        } else if sectors / 31 < 16 * 1024 {
            (track, heads, tracks) = (31, 16, sectors / 31);
        } else {
            (track, heads, tracks) = (63, 16, sectors / 63);
        }
    }
    let cylinders = ((tracks / heads) as u16).to_be_bytes();
    [cylinders[0], cylinders[1], heads as u8, track as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footer_has_the_fields_of_the_specification_where_it_says() {
        let footer = Footer::build(3 << 20, 0x0102_0304, [0xab; 16]).0;
        assert_eq!(&footer[..8], b"conectix");
        assert_eq!(footer[8..16], [0, 0, 0, 2, 0, 1, 0, 0]);
        assert_eq!(footer[16..24], [0xff; 8]);
        assert_eq!(footer[24..28], [1, 2, 3, 4]);
        assert_eq!(&footer[28..32], b"win ");
        assert_eq!(footer[40..48], (3u64 << 20).to_be_bytes());
        assert_eq!(footer[48..56], (3u64 << 20).to_be_bytes());
        assert_eq!(footer[60..64], [0, 0, 0, 2]);
        assert_eq!(footer[68..84], [0xab; 16]);
        assert!(footer[84..].iter().all(|&b| b == 0));
        let whole: u32 = footer.iter().map(|&b| u32::from(b)).sum();
        let stored = u32::from_be_bytes([footer[64], footer[65], footer[66], footer[67]]);
        assert_eq!(!stored, whole - footer[64..68].iter().map(|&b| u32::from(b)).sum::<u32>());
    }

    #[test]
    fn resizing_keeps_the_identity_and_the_same_size_changes_nothing() {
        let footer = Footer::build(1 << 20, 77, [9; 16]);
        assert_eq!(footer.resized(1 << 20), footer);
        let larger = footer.resized(2 << 20);
        assert_eq!(larger, Footer::build(2 << 20, 77, [9; 16]));
    }

    /// The C of the specification's appendix, line by line.
    fn geometry_of_the_appendix(sectors: u64) -> (u64, u64, u64) {
        let mut total = sectors;
        if total > 65535 * 16 * 255 {
            total = 65535 * 16 * 255;
        }
        let (mut track, mut heads, mut cylinder_times_heads);
        if total >= 65535 * 16 * 63 {
            track = 255;
            heads = 16;
            cylinder_times_heads = total / track;
        } else {
            track = 17;
            cylinder_times_heads = total / track;
            heads = cylinder_times_heads.div_ceil(1024);
            if heads < 4 {
                heads = 4;
            }
            if cylinder_times_heads >= heads * 1024 || heads > 16 {
                track = 31;
                heads = 16;
                cylinder_times_heads = total / track;
            }
            if cylinder_times_heads >= heads * 1024 {
                track = 63;
                heads = 16;
                cylinder_times_heads = total / track;
            }
        }
        (cylinder_times_heads / heads, heads, track)
    }

    #[test]
    fn the_geometry_is_that_of_the_appendix_at_every_border_and_between() {
        let borders =
            [17 * 1024 * 4, 17 * 1024 * 16, 31 * 1024 * 16, 63 * 1024 * 16, 65_535 * 16 * 63, 65_535 * 16 * 255];
        let near = borders.iter().flat_map(|&b: &u64| b.saturating_sub(40)..b + 40);
        for sectors in near.chain((0..4000).map(|n| n * 1_234_567)).chain(0..3000) {
            let [c1, c2, heads, track] = geometry(sectors);
            let got = (u64::from(u16::from_be_bytes([c1, c2])), u64::from(heads), u64::from(track));
            assert_eq!(got, geometry_of_the_appendix(sectors), "{sectors} sectors");
        }
    }
}
