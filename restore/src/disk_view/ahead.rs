//! A boot profile is fetched ahead, and what guests read is recorded for the next one.
//!
//! Who reads comes first: each request of a profile waits until no read of a guest waits for its turn, and takes no place of theirs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use landfall_model::num::to_usize;
use landfall_model::{BootProfile, ChunkRef, DiskName, EntryKind, Extent, MachineName, Result, Timestamp};
use tokio::sync::Semaphore;

use super::{PointView, Shared};
use crate::boot::Recording;
use crate::cache::Found;
use crate::plan::{Fetch, Wanted, plan_within};

/// Requests of a profile in flight, beside those of who reads.
const REQUESTS_IN_FLIGHT: usize = 4;
/// Longest of them: who reads what is in one waits for all of it.
const REQUEST_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of chunks that are planned together: within them the order is that of the objects.
const BATCH_BYTES: u64 = 8 * 1024 * 1024;

/// Blocks that a profile names.
pub(super) struct Profiled(HashMap<DiskName, HashSet<u64>>);

impl Profiled {
    /// Of a profile, as far as so many bytes go.
    fn new(profile: &BootProfile, bytes_max: u64) -> Self {
        let (mut blocks, mut bytes) = (HashMap::<DiskName, HashSet<u64>>::new(), 0);
        for (name, extent) in profile.extents() {
            bytes += extent.len;
            if bytes > bytes_max {
                break;
            }
            blocks.entry(name.clone()).or_default().extend(blocks_of(extent));
        }
        Self(blocks)
    }

    /// Whether it names all of a range.
    pub(super) fn has(&self, disk: &DiskName, extent: Extent) -> bool {
        self.0.get(disk).is_some_and(|known| blocks_of(extent).all(|block| known.contains(&block)))
    }
}

fn blocks_of(extent: Extent) -> std::ops::Range<u64> {
    extent.start / BootProfile::BLOCK_BYTES..extent.end().div_ceil(BootProfile::BLOCK_BYTES)
}

impl PointView {
    /// From now on it is recorded where its disks are read.
    pub(crate) fn record(&self) {
        let disks = self.meta().disks.iter().filter(|d| !d.excluded).map(|d| d.name.clone());
        let _ = self.shared.recording.set(Recording::new(disks));
    }

    /// Where they were read; none where nothing was, or it is not recorded.
    pub(crate) fn recorded(&self, machine: &MachineName, at: Timestamp) -> Option<BootProfile> {
        self.shared.recording.get()?.profile(machine, at)
    }

    /// How reading went so far, for people.
    pub(crate) fn story(&self) -> String {
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (reads, waited) = (of(&self.shared.reads), of(&self.shared.waited));
        let ahead = of(&self.shared.ahead_bytes) >> 10;
        format!("{waited} of {reads} reads waited for the store, {ahead} KiB fetched ahead by a boot profile")
    }

    /// Fetches what a profile names, in its order, until three quarters of the cache are filled.
    ///
    /// # Errors
    /// Where a map cannot be read: then no more is fetched.
    pub(crate) async fn fetch_ahead(&self, profile: &BootProfile) -> Result<()> {
        let (shared, permits) = (&self.shared, Arc::new(Semaphore::new(REQUESTS_IN_FLIGHT)));
        let budget = shared.cache.bytes_max() / 4 * 3;
        let _ = shared.profiled.set(Profiled::new(profile, budget));
        let (mut batch, mut names, mut bytes, mut total) = (Vec::new(), HashSet::new(), 0, 0);
        'all: for (name, extent) in profile.extents() {
            let Some(disk) = self.meta().disks.iter().find(|d| d.name == *name && !d.excluded) else { continue };
            for (_, entry) in shared.entries(disk, extent).await? {
                let EntryKind::Data { chunk, .. } = entry.kind else { continue };
                let len = u64::from(chunk.location.raw_len);
                if total + len > budget {
                    break 'all;
                }
                if !shared.cache.knows(chunk.id) && names.insert(chunk.id) {
                    batch.push(chunk);
                    (bytes, total) = (bytes + len, total + len);
                }
            }
            if bytes >= BATCH_BYTES {
                shared.send_ahead(std::mem::take(&mut batch), &permits).await;
                bytes = 0;
            }
        }
        shared.send_ahead(batch, &permits).await;
        // All that are in flight have arrived.
        let _all = permits.acquire_many(u32::try_from(REQUESTS_IN_FLIGHT).unwrap_or(1)).await;
        Ok(())
    }
}

impl Shared {
    async fn send_ahead(self: &Arc<Self>, chunks: Vec<ChunkRef>, permits: &Arc<Semaphore>) {
        for fetch in plan_within(chunks.into_iter().map(|chunk| (chunk, ())), REQUEST_BYTES_MAX) {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            drop(self.fetches.acquire().await);
            // Only now, when nothing is between them and the store: who reads waits for what is being fetched.
            let mut bytes = 0;
            let chunks: Vec<Wanted<_>> = fetch
                .chunks
                .into_iter()
                .filter(|wanted| !self.cache.knows(wanted.chunk.id))
                .filter_map(|wanted| match self.cache.find(wanted.chunk.id) {
                    Found::Ours(ticket) => {
                        bytes += to_usize(u64::from(wanted.chunk.location.raw_len));
                        Some(Wanted { chunk: wanted.chunk, places: vec![ticket] })
                    }
                    Found::Here(_) | Found::Coming(_) => None,
                })
                .collect();
            if chunks.is_empty() {
                continue;
            }
            let shared = self.clone();
            let fetch = Fetch { source: fetch.source, start: fetch.start, end: fetch.end, chunks };
            tokio::spawn(async move {
                shared.get(fetch).await;
                shared.ahead_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                drop(permit);
            });
        }
    }
}
