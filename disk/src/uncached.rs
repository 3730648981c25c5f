//! Reading once, without pushing what others need out of the page cache.
//!
//! A capture or comparison reads whole disks. Read the usual way, each page of them would stay in memory in place of a
//! page that somebody will want again, and finding room for it costs several times what reading it costs. `O_DIRECT`
//! would be no better: it does not read ahead, and reads from the disk what lies in the page cache. So reads use what is
//! in the page cache, and drop again what they themselves have brought there: `RWF_DONTCACHE`, preadv2(2), Linux 6.14;
//! file systems that do not have it are read the usual way.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// From `linux/fs.h`; `rustix` does not name it yet.
const RWF_DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Whether the file system of one file can do it, as far as is known.
#[derive(Debug)]
pub(crate) struct UncachedReads(AtomicBool);

impl UncachedReads {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    /// Reads some bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.0.load(Ordering::Relaxed) {
            match preadv2(file, &mut [IoSliceMut::new(buf)], offset, RWF_DONTCACHE) {
                // PERM: a sandbox that does not know the call.
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                    self.0.store(false, Ordering::Relaxed);
                }
                result => return Ok(result?),
            }
        }
        file.read_at(buf, offset)
    }

    /// Fills `buf`, or tells how much of it was filled before the end of the file.
    ///
    /// # Errors
    /// With the offset at which reading failed.
    pub(crate) fn read_up_to(&self, file: &File, buf: &mut [u8], offset: u64) -> Result<usize, (u64, io::Error)> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.read_at(file, &mut buf[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err((at, e)),
            }
        }
        Ok(done)
    }
}
