//! Disks of a point as exports: read only, or with an overlay for what is written.

use async_trait::async_trait;
use bytes::Bytes;
use landfall_model::{Error, ErrorKind, Extent, Result};
use landfall_nbd::server::{Disk, Run};

use crate::disk_view::DiskView;

/// A disk that takes no writes.
pub struct ReadOnly(pub DiskView);

/// What a disk of a point is, for people.
pub(crate) fn description(view: &DiskView, how: &str) -> String {
    format!("disk {} of point {}, {how}", view.meta().name, view.point().seq)
}

fn read_only() -> Error {
    Error::new(ErrorKind::Usage, "the export is read only: serve it with --overlay FILE")
}

#[async_trait]
impl Disk for ReadOnly {
    fn size(&self) -> u64 {
        self.0.meta().size
    }

    fn writable(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        description(&self.0, "read only")
    }

    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        self.0.read(start, out).await
    }

    async fn write(&self, _start: u64, _bytes: Bytes) -> Result<()> {
        Err(read_only())
    }

    async fn zero(&self, _extent: Extent) -> Result<()> {
        Err(read_only())
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn status(&self, extent: Extent, runs_max: usize) -> Result<Vec<Run>> {
        self.0.status(extent, runs_max).await
    }
}
