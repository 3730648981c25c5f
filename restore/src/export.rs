//! Disks of a point as exports: read only, or with an overlay for what is written.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use landfall_model::{Error, ErrorKind, Extent, Result};
use landfall_nbd::server::{Disk, Run};

use tokio::time::{Instant, sleep};

use crate::disk_view::DiskView;

/// A disk that takes no writes.
pub struct ReadOnly {
    view: DiskView,
    /// How long a store may be away before who reads is told.
    patience: Duration,
}

impl ReadOnly {
    /// Tells at once that something cannot be read.
    pub fn new(view: DiskView) -> Self {
        Self { view, patience: Duration::ZERO }
    }

    /// For a machine that runs: a store that is away is waited for, since a machine that is told of an error may never ask again.
    pub(crate) fn patient(view: DiskView) -> Self {
        Self { view, patience: PATIENCE }
    }
}

/// How long a store may be away before a machine is told.
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
        self.view.meta().size
    }

    fn writable(&self) -> bool {
        false
    }

    fn description(&self) -> String {
        description(&self.view, "read only")
    }

    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            let done = self.view.read(start, out).await;
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
        let deadline = Instant::now() + self.patience;
        loop {
            let done = self.view.status(extent, runs_max).await;
            if !waited(done.as_ref().err(), deadline).await {
                return done;
            }
        }
    }
}
