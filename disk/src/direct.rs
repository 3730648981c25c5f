//! Reading block devices past the page cache.
//!
//! A file system that is mounted from a device writes its files to the device, and not to the pages of the device in the cache: whoever has read
//! these once is given them again, as they were. So a device is read with `O_DIRECT`, which asks the device; what is dirty in its pages
//! is brought out by the kernel before. It does not read ahead, so reads should be large.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use landfall_model::num::to_usize;

use crate::aligned::{BOUNCE_BYTES, bounced};

/// A device that is read directly.
#[derive(Debug)]
pub(crate) struct DirectReads {
    file: File,
    sector: u64,
}

impl DirectReads {
    /// Opens a device with sectors of so many bytes.
    ///
    /// # Errors
    /// Those of the operating system: `InvalidInput` where it cannot be read directly.
    pub(crate) fn open(path: &Path, sector: u32) -> io::Result<Self> {
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        Ok(Self {
            file: OpenOptions::new().read(true).custom_flags(flags).open(path)?,
            sector: u64::from(sector.max(1)),
        })
    }

    /// Fills `buf`, or tells how much of it was filled before the end of the device.
    ///
    /// # Errors
    /// With the offset at which reading failed.
    pub(crate) fn read_up_to(&self, buf: &mut [u8], offset: u64) -> Result<usize, (u64, io::Error)> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            // Whole sectors around what is wanted.
            let start = at - at % self.sector;
            let skip = to_usize(at - start);
            let end = (offset + buf.len() as u64).next_multiple_of(self.sector).min(start + BOUNCE_BYTES as u64);
            let read = bounced(|bounce| {
                let room = &mut bounce[..to_usize(end - start)];
                let read = self.file.read_at(room, start)?;
                let useful = room[..read].get(skip..).unwrap_or_default();
                let useful = &useful[..useful.len().min(buf.len() - done)];
                buf[done..done + useful.len()].copy_from_slice(useful);
                Ok(useful.len())
            });
            match read {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if io::Error::kind(&e) == io::ErrorKind::Interrupted => {}
                Err(e) => return Err((at, e)),
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_is_read_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        let bytes: Vec<u8> = (0..3 * BOUNCE_BYTES + 4096).map(|n| u8::try_from(n * 7 % 251).unwrap_or(0)).collect();
        std::fs::write(&path, &bytes).expect("written");
        // Memory has no direct I/O.
        let Ok(reads) = DirectReads::open(&path, 4096) else { return };
        let ends = [0, 1, 4095, 4096, 4097, 70_000, BOUNCE_BYTES - 1, BOUNCE_BYTES + 5, 2 * BOUNCE_BYTES, bytes.len()];
        for start in ends {
            for end in ends.into_iter().filter(|end| *end >= start) {
                let mut buf = vec![0; end - start];
                assert_eq!(reads.read_up_to(&mut buf, start as u64).expect("read"), end - start);
                assert!(buf == bytes[start..end], "{start}..{end}");
            }
        }
        let mut beyond = vec![0; 10_000];
        let last = bytes.len() - 100;
        assert_eq!(reads.read_up_to(&mut beyond, last as u64).expect("read"), 100);
        assert!(beyond[..100] == bytes[last..]);
    }
}
