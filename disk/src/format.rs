//! The words of the command line for images, and how large a disk is inside each container.

use std::path::Path;
use std::str::FromStr;

use crate::error::{DiskError, Operation, Reason, Result};
use crate::vhd;

/// Smallest unit that every format but raw counts in.
pub(crate) const SECTOR_BYTES: u32 = 512;

/// How a disk is stored in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// The bytes of the disk, holes for zeroes.
    Raw,
    /// QEMU's copy-on-write image, version 3.
    Qcow2,
    /// Fixed VHD: the bytes of the disk and a footer.
    Vhd,
}

/// What to do about something that exists already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// Nothing: it is an error.
    Refuse,
    /// Replace a file as a whole once the new one is complete; write to a device in place.
    Overwrite,
    /// Keep what is equal, write what differs, in place.
    Compare,
}

/// A word that is none of those that are known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name:?} is none of {known}")]
pub struct UnknownName {
    name: String,
    known: &'static str,
}

impl FromStr for Format {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vhd" => Ok(Self::Vhd),
            _ => Err(UnknownName { name: name.to_owned(), known: "raw, qcow2, vhd" }),
        }
    }
}

impl FromStr for Existing {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "refuse" => Ok(Self::Refuse),
            "overwrite" => Ok(Self::Overwrite),
            "compare" => Ok(Self::Compare),
            _ => Err(UnknownName { name: name.to_owned(), known: "refuse, overwrite, compare" }),
        }
    }
}

impl Format {
    /// Size of the disk that a guest sees when `size_bytes` are asked for: the bytes after those read as zeroes.
    pub(crate) fn virtual_size(self, path: &Path, size_bytes: u64) -> Result<u64> {
        let refuse = |reason| DiskError::new(Operation::Create, path, reason);
        if size_bytes == 0 {
            return Err(refuse(Reason::NoBytes));
        }
        let (unit, max) = match self {
            Self::Raw => (1, i64::MAX as u64),
            Self::Qcow2 => (u64::from(SECTOR_BYTES), QCOW2_BYTES_MAX),
            Self::Vhd => (vhd::UNIT_BYTES, vhd::BYTES_MAX),
        };
        match size_bytes.checked_next_multiple_of(unit) {
            Some(size) if size <= max => Ok(size),
            _ => Err(refuse(Reason::TooLarge { size: size_bytes, max })),
        }
    }
}

/// QEMU limits the first-level table to 32 MiB: 4 Mi entries of 512 MiB each at 64 KiB clusters.
const QCOW2_BYTES_MAX: u64 = (32 << 20) / 8 * (512 << 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DiskErrorKind;

    #[test]
    fn sizes_are_rounded_to_what_each_container_counts_in() {
        let size = |format: Format, bytes| format.virtual_size(Path::new("/x"), bytes).unwrap();
        assert_eq!(size(Format::Raw, 511), 511);
        assert_eq!(size(Format::Qcow2, 511), 512);
        assert_eq!(size(Format::Qcow2, 512), 512);
        assert_eq!(size(Format::Vhd, 1), 1 << 20);
        assert_eq!(size(Format::Vhd, (1 << 20) + 1), 2 << 20);
    }

    #[test]
    fn no_bytes_and_too_many_bytes_are_refused() {
        for format in [Format::Raw, Format::Qcow2, Format::Vhd] {
            for size in [0, u64::MAX] {
                let e = format.virtual_size(Path::new("/x"), size).unwrap_err();
                assert_eq!(e.kind(), DiskErrorKind::Usage, "{format:?} {size}");
            }
        }
    }

    #[test]
    fn words_are_those_of_the_command_line() {
        assert_eq!("vhd".parse(), Ok(Format::Vhd));
        assert_eq!("compare".parse(), Ok(Existing::Compare));
        let e = "vhdx".parse::<Format>().unwrap_err();
        assert_eq!(e.to_string(), r#""vhdx" is none of raw, qcow2, vhd"#);
    }
}
