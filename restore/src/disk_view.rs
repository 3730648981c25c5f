//! Random reads of disks as of a point, straight from the vault.
//!
//! ```text
//!   read --> maps of the regions --> cache of opened chunks --here--> bytes
//!                                      | unknown: with what lies behind on the disk
//!                                      v
//!                                    plan --> fetch, open, settle (8 at once) --> all who wait
//! ```
//! A chunk that several readers want at the same time is fetched once. What lies behind on the disk is fetched along: the further, the longer a
//! reader has gone straight on.
//!
//! # Bounds
//! Opened chunks by bytes (chosen by the caller), maps by their entries, requests in flight by number.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::{Bytes, BytesMut};
use landfall_keys::RecoveryKey;
use landfall_model::num::to_usize;
use landfall_model::{
    ChunkId, ChunkRef, DiskMeta, DiskName, EntryKind, Error, ErrorKind, Extent, MachineName, PointMeta, RegionMap,
    Result,
};
use landfall_nbd::server::Run;
use landfall_vault::{Decompressor, MapView, PointKey, REGION_BYTES, Selector, Vault};
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::boot::Recording;
use crate::cache::{Arrival, Cache, Found, Ticket};
use crate::fetch::Fetcher;
use crate::openers::Openers;
use crate::plan::{Fetch, plan};

/// Requests in flight, each of up to 4 MiB and as much again being opened.
const FETCHES_IN_FLIGHT: usize = 8;
/// Fetched along with what is read.
const AHEAD_BYTES: u64 = 512 * 1024;
/// The same for a reader that has gone straight on for long.
const AHEAD_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// A read that is so near to the end of the one before goes on from there.
const NEAR_BYTES: u64 = 4 * 1024 * 1024;
/// Readers on one disk that are told apart.
const STREAMS: usize = 8;
/// Entries of maps that are kept.
const ENTRIES_MAX: usize = 1024 * 1024;
/// Regions looked at for one answer about what a disk holds.
const STATUS_REGIONS_MAX: u64 = 8;

/// The disks of a point.
pub struct PointView {
    shared: Arc<Shared>,
}

struct Shared {
    view: MapView,
    openers: Openers,
    fetcher: Arc<Fetcher>,
    cache: Arc<Cache>,
    maps: Maps,
    fetches: Semaphore,
    /// Where guests read, if that is recorded.
    recording: OnceLock<Recording>,
    /// What a boot profile has fetched ahead: nothing need be fetched behind it.
    profiled: OnceLock<ahead::Profiled>,
    reads: AtomicU64,
    /// Of the reads, those that waited for the store.
    waited: AtomicU64,
    /// Bytes of chunks that a boot profile had fetched.
    ahead_bytes: AtomicU64,
}

/// One disk of a point.
pub struct DiskView {
    shared: Arc<Shared>,
    disk: DiskMeta,
    streams: Mutex<Streams>,
}

impl PointView {
    /// Opens a point; `cache_bytes` of opened chunks are kept.
    ///
    /// # Errors
    /// `NotFound` where there is no such machine or point, `Corrupt`, `Unavailable`.
    pub async fn open(
        vault: &Vault,
        recovery: Arc<RecoveryKey>,
        machine: &MachineName,
        selector: Selector,
        cache_bytes: u64,
    ) -> Result<Self> {
        let (machine_log, line) = vault.protected(machine).await?;
        let key = machine_log.select(&line, selector).await.map_err(|e| e.context(format!("machine {machine}")))?;
        let view = MapView::open(&machine_log, &line, key).await?;
        let domain = vault.site().domain_id(&view.meta().domain);
        let shared = Shared {
            openers: Openers::new(vault.clone(), recovery, domain),
            fetcher: Fetcher::new(machine_log, line),
            cache: Cache::new(cache_bytes),
            maps: Maps::default(),
            fetches: Semaphore::new(FETCHES_IN_FLIGHT),
            recording: OnceLock::new(),
            profiled: OnceLock::new(),
            reads: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            ahead_bytes: AtomicU64::new(0),
            view,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Which point it is.
    pub fn key(&self) -> PointKey {
        self.shared.view.key()
    }

    /// What the point says of itself.
    pub fn meta(&self) -> &PointMeta {
        self.shared.view.meta()
    }

    /// One of its disks.
    ///
    /// # Errors
    /// `NotFound` where the point has none of that name, or no content of it.
    pub fn disk(&self, name: &DiskName) -> Result<DiskView> {
        let disk = self.shared.view.disk(name).filter(|d| !d.excluded).ok_or_else(|| {
            let there: Vec<&str> = self.meta().disks.iter().filter(|d| !d.excluded).map(|d| d.name.as_str()).collect();
            let why = format!("point {} has no content of a disk {name}: it has {}", self.key().seq, there.join(", "));
            Error::new(ErrorKind::NotFound, why)
        })?;
        Ok(DiskView { shared: self.shared.clone(), disk: disk.clone(), streams: Mutex::default() })
    }
}

/// Maps of regions, the last that were used.
#[derive(Default)]
struct Maps(Mutex<MapsInner>);

/// The map of a region, read once by whoever asks first.
type Loaded = Arc<OnceCell<Arc<RegionMap>>>;

#[derive(Default)]
struct MapsInner {
    /// With the moment of their last use.
    by_place: BTreeMap<(DiskName, u32), (Loaded, u64)>,
    clock: u64,
}

impl Maps {
    async fn region(&self, view: &MapView, disk: &DiskMeta, region: u32) -> Result<Arc<RegionMap>> {
        let cell = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inner.clock += 1;
            let clock = inner.clock;
            let (cell, used) = inner.by_place.entry((disk.name.clone(), region)).or_default();
            *used = clock;
            cell.clone()
        };
        if let Some(map) = cell.get() {
            return Ok(map.clone());
        }
        let map = cell.get_or_try_init(|| async { view.region(disk, region).await.map(Arc::new) }).await?.clone();
        self.trim();
        Ok(map)
    }

    fn trim(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = |cell: &OnceCell<Arc<RegionMap>>| cell.get().map_or(0, |map| map.len());
        let mut total: usize = inner.by_place.values().map(|(cell, _)| entries(cell)).sum();
        while total > ENTRIES_MAX && inner.by_place.len() > 1 {
            let oldest = inner.by_place.iter().min_by_key(|(_, (_, used))| *used).map(|(place, _)| place.clone());
            let Some((cell, _)) = oldest.and_then(|place| inner.by_place.remove(&place)) else { break };
            total -= entries(&cell);
        }
    }
}

/// A reader that goes straight on.
struct Stream {
    /// End of its furthest read.
    end: u64,
    /// Bytes that it has read since it jumped.
    gone: u64,
    /// Fetched until there, or on its way.
    until: u64,
}

/// Where readers of a disk are, and for how long each has gone straight on.
#[derive(Default)]
struct Streams {
    /// The last that read comes first.
    known: Vec<Stream>,
}

impl Streams {
    /// A read; returns what is to be fetched behind it, as much at once as makes large requests. `true`: even if what is read is here, since the reader goes straight on.
    fn read(&mut self, extent: Extent) -> (Extent, bool) {
        // Requests of one reader that are in flight together come in any order.
        let is_near = |stream: &Stream| extent.start.abs_diff(stream.end) <= NEAR_BYTES;
        let Some(at) = self.known.iter().position(is_near) else {
            let behind = Extent { start: extent.end(), len: AHEAD_BYTES };
            self.known.truncate(STREAMS - 1);
            self.known.insert(0, Stream { end: extent.end(), gone: extent.len, until: behind.end() });
            return (behind, false);
        };
        let mut stream = self.known.remove(at);
        if extent.end() > stream.end {
            stream.end = extent.end();
            stream.gone += extent.len;
        }
        // Half as far as it has come: what nobody reads in the end is no more than half of what was read.
        let ahead = (stream.gone / 2).clamp(AHEAD_BYTES, AHEAD_BYTES_MAX);
        let mut behind = Extent { start: extent.end(), len: 0 };
        if stream.until < stream.end + ahead / 2 {
            behind = Extent::between(stream.until.max(stream.end), stream.end + ahead);
            stream.until = behind.end();
        }
        self.known.insert(0, stream);
        (behind, true)
    }
}

/// Bytes of a chunk that belong into a buffer.
struct Piece {
    chunk: ChunkId,
    /// First byte in the chunk.
    skip: usize,
    /// First byte in the buffer.
    at: usize,
    len: usize,
}

/// A chunk that is needed.
enum Source {
    Here(Bytes),
    Coming(watch::Receiver<Arrival>),
}

impl DiskView {
    /// The disk.
    pub fn meta(&self) -> &DiskMeta {
        &self.disk
    }

    /// The point.
    pub fn point(&self) -> PointKey {
        self.shared.view.key()
    }

    /// Tells this disk of this point from all others.
    pub fn identity(&self) -> [u8; 32] {
        *blake3::Hasher::new()
            .update(self.shared.view.point_digest().as_bytes())
            .update(self.disk.name.as_str().as_bytes())
            .finalize()
            .as_bytes()
    }

    async fn entries(&self, extent: Extent) -> Result<Vec<(u64, landfall_model::Entry)>> {
        self.shared.entries(&self.disk, extent).await
    }

    /// Fills `out` from `start` on.
    ///
    /// # Errors
    /// `Usage` for a range beyond the end; `Corrupt`, naming disk, range and point; `Unavailable`.
    pub async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let extent = Extent { start, len: out.len() as u64 };
        if start.checked_add(extent.len).is_none_or(|end| end > self.disk.size) {
            let why = format!(
                "disk {} has {} bytes: no read of {} from {start} on",
                self.disk.name, self.disk.size, extent.len
            );
            return Err(Error::new(ErrorKind::Usage, why));
        }
        self.fill(extent, out).await.map_err(|error| {
            let (disk, seq) = (&self.disk.name, self.shared.view.key().seq);
            error.context(format!("disk {disk} bytes {start}..{} of point {seq}", extent.end()))
        })
    }

    async fn fill(&self, extent: Extent, out: &mut [u8]) -> Result<()> {
        let (behind, straight_on) = self.streams.lock().unwrap_or_else(PoisonError::into_inner).read(extent);
        let mut filled = 0;
        let mut pieces = Vec::new();
        let mut sources: HashMap<ChunkId, Source> = HashMap::new();
        let mut wanted: Vec<(ChunkRef, Ticket)> = Vec::new();
        let here = self.entries(extent).await?;
        // What is only guessed is no error where it cannot be had. Looked up now: from the first chunk that is ours to fetch until all are being
        // fetched nothing waits, so that nobody is left waiting for us.
        let profiled = self.shared.profiled.get().is_some_and(|known| known.has(&self.disk.name, extent));
        let behind = if profiled { Vec::new() } else { self.entries(behind).await.unwrap_or_default() };
        for (start, entry) in here {
            let EntryKind::Data { chunk, skip } = entry.kind else { continue };
            let (at, len) = (to_usize(start - extent.start), entry.len as usize);
            if let Some(recording) = self.shared.recording.get() {
                recording.read(&self.disk.name, Extent { start, len: u64::from(entry.len) });
            }
            out[filled..at].fill(0);
            filled = at + len;
            pieces.push(Piece { chunk: chunk.id, skip: skip as usize, at, len });
            sources.entry(chunk.id).or_insert_with(|| match self.shared.cache.find(chunk.id) {
                Found::Here(bytes) => Source::Here(bytes),
                Found::Coming(arrival) => Source::Coming(arrival),
                Found::Ours(ticket) => {
                    let arrival = ticket.arrival();
                    wanted.push((chunk, ticket));
                    Source::Coming(arrival)
                }
            });
        }
        out[filled..].fill(0);
        // One who goes straight on never waits for what comes next; one who jumps pays for no more than one request.
        if straight_on || !wanted.is_empty() {
            for (_, entry) in behind {
                let EntryKind::Data { chunk, .. } = entry.kind else { continue };
                if !self.shared.cache.knows(chunk.id)
                    && let Found::Ours(ticket) = self.shared.cache.find(chunk.id)
                {
                    wanted.push((chunk, ticket));
                }
            }
        }
        self.shared.begin(wanted);
        let mut waited = false;
        for piece in pieces {
            let bytes = match sources.get_mut(&piece.chunk) {
                Some(Source::Here(bytes)) => bytes.clone(),
                Some(Source::Coming(arrival)) => {
                    waited |= arrival.borrow().is_none();
                    arrived(arrival).await?
                }
                None => continue,
            };
            let part = bytes.get(piece.skip..piece.skip + piece.len);
            let part =
                part.ok_or_else(|| Error::corrupt(format!("chunk {} is shorter than the map says", piece.chunk)))?;
            out[piece.at..piece.at + piece.len].copy_from_slice(part);
        }
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        self.shared.waited.fetch_add(u64::from(waited), Ordering::Relaxed);
        Ok(())
    }

    /// What a range holds, from its beginning on, by the map: at least one run, not all of it where it is long.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub async fn status(&self, extent: Extent, runs_max: usize) -> Result<Vec<Run>> {
        let limit = (extent.start / REGION_BYTES + STATUS_REGIONS_MAX) * REGION_BYTES;
        let extent = Extent::between(extent.start, extent.end().min(limit).min(self.disk.size));
        let mut runs: Vec<Run> = Vec::new();
        let mut add = |extent: Extent, data: bool| match runs.last_mut() {
            _ if extent.len == 0 => {}
            Some(last) if last.data == data => last.extent.len += extent.len,
            _ => runs.push(Run { extent, data }),
        };
        let mut at = extent.start;
        for (start, entry) in self.entries(extent).await? {
            add(Extent::between(at, start), false);
            let here = Extent { start, len: u64::from(entry.len) };
            add(here, matches!(entry.kind, EntryKind::Data { .. }));
            at = here.end();
        }
        add(Extent::between(at, extent.end()), false);
        runs.truncate(runs_max.max(1));
        Ok(runs)
    }
}

/// Waits for a chunk.
async fn arrived(arrival: &mut watch::Receiver<Arrival>) -> Result<Bytes> {
    match arrival.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(Ok(bytes))) => Ok(bytes.clone()),
        Ok(Some(Err(failed))) => Err(Error::new(failed.kind, &*failed.why)),
        Ok(None) | Err(_) => Err(Error::new(ErrorKind::Unavailable, "the one who fetched it was stopped: try again")),
    }
}

impl Shared {
    /// What lies in a range of a disk: entries with their place on it. Ends at the end of the disk.
    async fn entries(&self, disk: &DiskMeta, extent: Extent) -> Result<Vec<(u64, landfall_model::Entry)>> {
        let end = extent.end().min(disk.size);
        let mut found = Vec::new();
        let mut at = extent.start;
        while at < end {
            let region = u32::try_from(at / REGION_BYTES).unwrap_or(u32::MAX);
            let base = u64::from(region) * REGION_BYTES;
            let until = end.min(base + REGION_BYTES);
            let map = self.maps.region(&self.view, disk, region).await?;
            found.extend(map.within(Extent::between(at - base, until - base)).map(|e| (base + u64::from(e.start), e)));
            at = until;
        }
        Ok(found)
    }

    /// Fetches chunks, and goes on with that whatever becomes of who asked.
    fn begin(self: &Arc<Self>, wanted: Vec<(ChunkRef, Ticket)>) {
        for fetch in plan(wanted) {
            let shared = self.clone();
            tokio::spawn(async move {
                let Ok(_one) = shared.fetches.acquire().await else { return };
                shared.get(fetch).await;
            });
        }
    }

    async fn get(self: &Arc<Self>, fetch: Fetch<Ticket>) {
        match self.bytes(&fetch).await {
            Ok(bytes) => {
                let shared = self.clone();
                let opening = tokio::task::spawn_blocking(move || open(&shared.openers, fetch, bytes));
                if let Err(error) = opening.await {
                    tracing::error!(%error, "opening chunks ended early");
                }
            }
            Err(error) => settle_all(fetch, &error),
        }
    }

    async fn bytes(&self, fetch: &Fetch<Ticket>) -> Result<Bytes> {
        self.openers.prepare(fetch.chunks.iter().map(|w| w.chunk.location.epoch)).await?;
        self.fetcher.fetch(fetch).await
    }
}

fn settle_all(fetch: Fetch<Ticket>, error: &Error) {
    for ticket in fetch.chunks.into_iter().flat_map(|w| w.places) {
        ticket.settle(Err(error.into()));
    }
}

/// Opens the chunks of a fetch, and settles each as soon as it is open.
fn open(openers: &Openers, fetch: Fetch<Ticket>, bytes: Bytes) {
    let mut decompressor = match Decompressor::new() {
        Ok(decompressor) => decompressor,
        Err(error) => return settle_all(fetch, &error),
    };
    let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    for wanted in fetch.chunks {
        let at = &wanted.chunk.location;
        let start = to_usize(u64::from(at.offset) - fetch.start);
        let mut out = vec![0; at.raw_len as usize];
        let frame = &mut bytes[start..start + at.stored_len as usize];
        let opened = openers.open(&mut decompressor, &wanted.chunk, frame, &mut out).map(|()| Bytes::from(out));
        for ticket in wanted.places {
            ticket.settle(opened.as_ref().map(Bytes::clone).map_err(Into::into));
        }
    }
}

mod ahead;
#[cfg(test)]
mod tests;
