//! From what an agent sends to parts for the workers: runs of a disk are gathered into batches; where a disk is sent whole, each batch is
//! compared with the map of its region.

use std::collections::BTreeSet;
use std::sync::Arc;

use landfall_model::num::{to_u32, to_usize};
use landfall_model::{DiskMeta, EntryKind, Error, ErrorKind, Extent, RegionMap, Result};
use landfall_vault::{REGION_BYTES, region_count, region_len};
use landfall_wire::{CycleCheck, Data, FromAgent, Incoming};
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::flow::Flow;
use crate::newest::Newest;
use crate::source::{Batch, Task};

/// Bytes gathered for one worker: enough to keep it busy, and few enough that eight of them wait in 64 MiB.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Runs gathered for one worker.
const PARTS_MAX: usize = 16 * 1024;

/// A disk that is being received.
struct Receiving<'a> {
    newest: &'a Newest,
    tasks: &'a Sender<Task>,
    disks: &'a [DiskMeta],
    whole: Vec<bool>,
    /// Of each disk that is sent whole: the regions of which the newest point says something.
    described: Vec<BTreeSet<u32>>,
    disk: usize,
    region: u32,
    /// Of the region: its map where the disk is sent whole.
    old: Option<Arc<RegionMap>>,
    batch: Batch,
    parts: Vec<Extent>,
    /// Where the next batch of the region begins, where the disk is sent whole.
    from: u64,
    number: u32,
    open: bool,
    /// Places for cycles of more than one batch, and the one that this cycle has.
    large: &'a Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
}

/// Feeds the runs of one cycle, from after its beginning to its end.
///
/// # Errors
/// `Corrupt` where what arrives cannot be, `Unavailable` where the agent gives the cycle up or the link ends, and those of the old maps.
pub(crate) async fn feed(
    from: &mut Incoming<FromAgent>,
    check: &mut CycleCheck,
    newest: &Newest,
    disks: &[DiskMeta],
    tasks: Sender<Task>,
    (large, flow): (&Arc<Semaphore>, &Flow),
) -> Result<()> {
    let whole: Vec<bool> = check.begin().disks.iter().map(|d| d.whole).collect();
    let described = |(disk, whole): (&DiskMeta, &bool)| match &newest.view {
        Some(view) if *whole && !disk.excluded && newest.has_history(disk) => view.described_regions(disk),
        _ => BTreeSet::new(),
    };
    let described = disks.iter().zip(&whole).map(described).collect();
    let mut receiving = Receiving {
        newest,
        tasks: &tasks,
        disks,
        whole,
        described,
        disk: 0,
        region: 0,
        old: None,
        batch: Batch::default(),
        parts: Vec::new(),
        from: 0,
        number: 0,
        open: false,
        large,
        place: None,
    };
    receiving.enter(0, 0).await?;
    loop {
        let message = from.next().await?.ok_or_else(|| gave_up("the link ended within a cycle"))?;
        match message {
            FromAgent::Data(data) => {
                check.data(&data)?;
                flow.received(&data).await;
                receiving.data(data).await?;
            }
            FromAgent::Zero(disk, extent) => {
                check.zero(disk, extent)?;
                receiving.zero(disk, extent).await?;
            }
            FromAgent::End(end) => {
                check.end(&end)?;
                return receiving.finish().await;
            }
            FromAgent::Abort(why) => return Err(gave_up(&format!("the agent gave the cycle up: {why}"))),
            FromAgent::Alive => {}
            FromAgent::Hello(_) | FromAgent::Begin(_) | FromAgent::Ask(_) => {
                return Err(Error::corrupt("the agent began again within a cycle"));
            }
            FromAgent::Ready(_) | FromAgent::Frozen(_) | FromAgent::Unready(..) | FromAgent::Answer(..) => {
                return Err(Error::corrupt("the agent spoke of something else within a cycle"));
            }
        }
    }
}

fn gave_up(why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

/// The largest place up to `at` where no chunk of the old map is torn.
fn untorn(old: &RegionMap, at: u64) -> u64 {
    match old.at(to_u32(to_usize(at))) {
        Some(entry) if matches!(entry.kind, EntryKind::Data { .. }) => u64::from(entry.start),
        _ => at,
    }
}

impl Receiving<'_> {
    fn region_len(&self) -> u64 {
        u64::from(region_len(self.disks[self.disk].size, self.region))
    }

    async fn send(&mut self, last: bool) -> Result<()> {
        let (number, batch) = (self.number, std::mem::take(&mut self.batch));
        self.number += 1;
        let task = Task {
            disk: self.disk,
            region: self.region,
            old: self.old.clone(),
            parts: std::mem::take(&mut self.parts),
            number,
            last,
            bytes: Arc::new(batch),
        };
        self.tasks.send(task).await.map_err(|_| gave_up("the capture stopped; its own error says why"))
    }

    /// Begins a region.
    async fn enter(&mut self, disk: usize, region: u32) -> Result<()> {
        (self.disk, self.region, self.from, self.number, self.open) = (disk, region, 0, 0, true);
        self.old = None;
        let meta = &self.disks[disk];
        if meta.excluded {
            self.open = false;
        } else if self.whole[disk] {
            let map = match &self.newest.view {
                Some(view) if self.described[disk].contains(&region) => view.region(meta, region).await?,
                _ => RegionMap::default(),
            };
            self.old = Some(Arc::new(map));
        }
        Ok(())
    }

    /// Ends the region.
    async fn leave(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        if self.old.is_some() {
            let end = self.region_len();
            self.parts = vec![Extent::between(self.from, end)];
        } else if self.number == 0 && self.parts.is_empty() {
            return Ok(());
        }
        self.send(true).await
    }

    /// Goes on to a region of a disk. Regions of whole disks that are passed over have become zero: those that were not are looked at.
    async fn go_to(&mut self, disk: usize, region: u32) -> Result<()> {
        while (self.disk, self.region) != (disk, region) {
            self.leave().await?;
            let next = self.next_described();
            match next.filter(|next| *next < (disk, region)) {
                Some((d, r)) => self.enter(d, r).await?,
                None => self.enter(disk, region).await?,
            }
        }
        Ok(())
    }

    /// The next region of a whole disk of which the newest point says something.
    fn next_described(&self) -> Option<(usize, u32)> {
        (self.disk..self.disks.len()).find_map(|disk| {
            let after = if disk == self.disk { self.region.saturating_add(1) } else { 0 };
            self.described[disk].range(after..).next().map(|region| (disk, *region))
        })
    }

    async fn data(&mut self, data: Data) -> Result<()> {
        let (mut start, mut bytes) = (data.start, data.bytes);
        while !bytes.is_empty() {
            let region = region_of(start)?;
            self.go_to(data.disk, region).await?;
            let base = u64::from(region) * REGION_BYTES;
            let len = to_usize((base + REGION_BYTES - start).min(bytes.len() as u64));
            let run = bytes.split_to(len);
            let extent = Extent { start: start - base, len: len as u64 };
            self.batch.push(start, run);
            self.push_part(extent).await?;
            start += len as u64;
            if self.batch.len() >= BATCH_BYTES {
                self.send_batch(extent.end()).await?;
            }
        }
        Ok(())
    }

    /// Adds a run: to the one before where it touches it. However small an agent cuts its runs, few are kept.
    async fn push_part(&mut self, part: Extent) -> Result<()> {
        match self.parts.last_mut() {
            Some(last) if last.end() == part.start => last.len += part.len,
            _ => self.parts.push(part),
        }
        if self.parts.len() >= PARTS_MAX { self.send_batch(part.end()).await } else { Ok(()) }
    }

    /// Hands on what was gathered up to `end` of the region.
    async fn send_batch(&mut self, end: u64) -> Result<()> {
        if self.place.is_none() {
            let place = self.large.clone().acquire_owned().await;
            self.place =
                Some(place.map_err(|e| Error::with_source(ErrorKind::Bug, "the gateway's places are gone", e))?);
        }
        let Some(old) = &self.old else { return self.send(false).await };
        let end = untorn(old, end);
        if end <= self.from {
            return Ok(());
        }
        let base = u64::from(self.region) * REGION_BYTES;
        let rest = self.batch.split_off(base + end);
        self.parts = vec![Extent::between(self.from, end)];
        self.from = end;
        self.send(false).await?;
        self.batch = rest;
        Ok(())
    }

    async fn zero(&mut self, disk: usize, extent: Extent) -> Result<()> {
        let mut start = extent.start;
        while start < extent.end() {
            let region = region_of(start)?;
            self.go_to(disk, region).await?;
            let base = u64::from(region) * REGION_BYTES;
            let end = extent.end().min(base + REGION_BYTES);
            self.push_part(Extent::between(start - base, end - base)).await?;
            start = end;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        self.leave().await?;
        while let Some((disk, region)) = self.next_described() {
            self.enter(disk, region).await?;
            self.leave().await?;
        }
        Ok(())
    }
}

fn region_of(at: u64) -> Result<u32> {
    // The number of the last region that begins at or before it.
    Ok(region_count(at.saturating_add(1))?.saturating_sub(1))
}
