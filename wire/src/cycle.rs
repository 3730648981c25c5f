//! What is between `begin` and `end`: its order, its ranges, its digest. Both sides count with the same code.

use landfall_model::{Digest, Error, Extent, Result};
use twox_hash::XxHash3_128;

use crate::message::{Begin, Data, End};

/// BLAKE3 over everything that is sent between `begin` and `end`, in its order:
/// for each run `kind u8 (0 data, 1 zeroes) | disk u32 | start u64 | length u64`, little-endian, and for data XXH3-128 of the bytes
/// (u128, little-endian).
///
/// TLS keeps others from changing what is sent. This finds what either program got wrong: a run lost, doubled, or out of place.
#[derive(Default)]
pub struct CycleDigest(blake3::Hasher);

impl CycleDigest {
    fn head(&mut self, kind: u8, disk: usize, start: u64, len: u64) {
        self.0.update(&[kind]);
        self.0.update(&u32::try_from(disk).unwrap_or(u32::MAX).to_le_bytes());
        self.0.update(&start.to_le_bytes());
        self.0.update(&len.to_le_bytes());
    }

    /// Data is sent.
    pub fn data(&mut self, data: &Data) {
        self.head(0, data.disk, data.start, data.bytes.len() as u64);
        self.0.update(&XxHash3_128::oneshot(&data.bytes).to_le_bytes());
    }

    /// Zeroes are sent.
    pub fn zero(&mut self, disk: usize, extent: Extent) {
        self.head(1, disk, extent.start, extent.len);
    }

    /// The digest of all that was sent.
    pub fn finish(&self) -> Digest {
        Digest::from_bytes(*self.0.finalize().as_bytes())
    }
}

/// Checks the runs of a cycle as they arrive: disks ascend, runs of a disk ascend without overlap and lie in the disk, and what arrived
/// is what was sent.
pub struct CycleCheck {
    /// Size of each disk; zero where it takes no data.
    sizes: Vec<u64>,
    disk: usize,
    end: u64,
    digest: CycleDigest,
    begin: Begin,
}

impl CycleCheck {
    /// A cycle begins.
    pub fn new(begin: Begin) -> Self {
        let sizes = begin.disks.iter().map(|d| if d.excluded { 0 } else { d.size }).collect();
        Self { sizes, disk: 0, end: 0, digest: CycleDigest::default(), begin }
    }

    /// Its beginning.
    pub fn begin(&self) -> &Begin {
        &self.begin
    }

    fn run(&mut self, disk: usize, extent: Extent) -> Result<()> {
        if disk > self.disk {
            (self.disk, self.end) = (disk, 0);
        }
        let inside =
            self.sizes.get(disk).is_some_and(|size| extent.start.checked_add(extent.len).is_some_and(|e| e <= *size));
        if disk < self.disk || extent.start < self.end || !inside {
            let why = format!(
                "{} bytes at {} of disk number {disk}: out of order, or not in the disk",
                extent.len, extent.start
            );
            return Err(Error::corrupt(format!("the agent sent what cannot be: {why}")));
        }
        self.end = extent.end();
        Ok(())
    }

    /// Data arrived.
    ///
    /// # Errors
    /// `Corrupt` where it is out of order or not in the disk.
    pub fn data(&mut self, data: &Data) -> Result<()> {
        self.run(data.disk, Extent { start: data.start, len: data.bytes.len() as u64 })?;
        self.digest.data(data);
        Ok(())
    }

    /// Zeroes arrived.
    ///
    /// # Errors
    /// As for [`Self::data`].
    pub fn zero(&mut self, disk: usize, extent: Extent) -> Result<()> {
        self.run(disk, extent)?;
        self.digest.zero(disk, extent);
        Ok(())
    }

    /// The cycle is complete.
    ///
    /// # Errors
    /// `Corrupt` where another cycle is ended, or something else arrived than was sent.
    pub fn end(&self, end: &End) -> Result<()> {
        if end.cycle != self.begin.cycle {
            return Err(Error::corrupt(format!("the agent began cycle {} and ended {}", self.begin.cycle, end.cycle)));
        }
        if end.digest != self.digest.finish() {
            return Err(Error::corrupt(format!("cycle {}: what arrived is not what the agent sent", end.cycle)));
        }
        Ok(())
    }
}
