//! Disks of a point as exports: read only, or with an overlay for what is written.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use landfall_model::{Error, ErrorKind, Extent, Result};
use landfall_nbd::server::{Disk, Run};

use tokio::time::{Instant, sleep};

use crate::disk_view::DiskView;

/// A disk that takes no writes.
pub struct ReadOnly(pub DiskView);

/// The same for a machine that runs: a store that is away is waited for, since a machine that is told of an error may never ask again.
pub(crate) struct Patient(pub(crate) ReadOnly);

/// How long a store may be away before the machine is told.
const PATIENCE: Duration = Duration::from_secs(3600);
/// How often it is tried meanwhile; each try waits for the store itself.
const RETRY: Duration = Duration::from_secs(2);

/// Waits where something failed because the store is away, and is to be done again.
async fn waited(failed: Option<&Error>, deadline: Instant) -> bool {
    match failed {
        Some(error) if error.kind() == ErrorKind::Unavailable && Instant::now() < deadline => {
            tracing::warn!(%error, "the machine waits for the store");
            sleep(RETRY).await;
            true
        }
        _ => false,
    }
}

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

#[async_trait]
impl Disk for Patient {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn writable(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        self.0.description()
    }

    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.0.read(start, out).await;
            if !waited(done.as_ref().err(), deadline).await {
                return done;
            }
        }
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            let done = self.0.status(extent, runs_max).await;
            if !waited(done.as_ref().err(), deadline).await {
                return done;
            }
        }
    }
}
