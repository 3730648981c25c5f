//! One cycle: from the moment that the disks are opened to the committed point.
//!
//! # Crash consistency
//! Killed at any instant, the vault holds all committed points, and perhaps segments that no point refers to yet; run again, they are
//! found by listing and not uploaded again. The order is: epoch key, segments, point; then the checkpoint, which only saves work.
//!
//! # Cancellation
//! [`Cancel`] stops the workers at the next region; what is uploaded stays and is found by the next run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::{StreamExt, stream};
use landfall_keys::ContentSealer;
use landfall_model::{
    ChunkRef, Counters, Digest, DiskName, DomainName, EntryKind, Error, ErrorKind, MachineName, PointMeta, Progress,
    RegionMap, Result, Seq, Source, Timeline, Timestamp,
};
use landfall_vault::segment::{Segment, SegmentBuilder};
use landfall_vault::{
    Body, DedupIndex, Kind, LEASE_RENEWAL, Machine, MapView, PointKey, Position, Tenure, Vault, checkpoint,
    crash_point, load_page, now, refers_only_to_stored, region_count, region_len,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use crate::image::{DiskSpec, OpenDisk, Quiesce, open_disks};
use crate::ledger::Ledger;
use crate::maps::{Inline, Maps};
use crate::region::{Done, Scanner, Task};
use crate::seal::ChunkStore;
use crate::state::State;
use crate::upload::{UPLOAD_QUEUE, UPLOADS_IN_FLIGHT, Uploader};
use crate::{Session, cut, tail};

/// Zstandard level of chunks where the CPU is what holds the pipeline back.
const LEVEL: i32 = 1;
/// No more workers than this: each has an open segment of 32 MiB; with those in the queue, in flight and of pages that is 11 of them,
/// 360 MiB, and 64 MiB of index: within 512.
const WORKERS_MAX: usize = 4;
/// Regions whose maps are loaded before a worker asks for them.
const REGIONS_AHEAD: usize = 8;
/// Captured regions on their way from the workers to the maps.
const DONE_QUEUE: usize = 8;
/// A clock that stands so much before the newest point's time is not believed; less is taken as its next millisecond.
const CLOCK_STEP_MAX_MS: i64 = 5_000;

/// Asks a running operation to stop.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops it soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<()> {
        if self.is_set() {
            let why = "interrupted: no point was committed; what was uploaded is kept; run again to go on";
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        Ok(())
    }
}

/// What to replicate.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine.
    pub machine: MachineName,
    /// Its dedup domain.
    pub domain: DomainName,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// Holds the application still while the disks are read.
    pub consistency_command: Option<String>,
    /// Go on although the clock stands before the newest point.
    pub accept_clock: bool,
}

/// What a cycle did with a disk.
#[derive(Clone, Debug)]
pub struct DiskOutcome {
    /// Its name.
    pub name: DiskName,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes read from it.
    pub read_bytes: u64,
    /// Bytes of it that are not what they were.
    pub changed_bytes: u64,
}

/// A committed point.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its number.
    pub seq: Seq,
    /// The moment that its bytes are of.
    pub time: Timestamp,
    /// Per disk.
    pub disks: Vec<DiskOutcome>,
    /// Bytes in chunks that the vault did not have.
    pub new_chunk_bytes: u64,
    /// Bytes sent to the store.
    pub uploaded_bytes: u64,
    /// Wall time.
    pub elapsed_ms: u64,
}

/// The newest point of a machine, and what is needed to write the next.
struct Newest {
    machine: Machine,
    view: Option<MapView>,
    line: Vec<PointKey>,
}

impl Newest {
    async fn open(vault: &Vault, name: &MachineName) -> Result<Self> {
        let machine = vault.machine(name);
        let line = machine.line().await?;
        let view = match line.last() {
            Some(last) => Some(MapView::open(&machine, &line, *last).await?),
            None => None,
        };
        Ok(Self { machine, view, line })
    }

    fn meta(&self) -> Option<&PointMeta> {
        self.view.as_ref().map(MapView::meta)
    }

    /// Where the next point stands.
    fn next(&self, tenure: &Tenure, vault: &Vault) -> Position {
        let newest = self.view.as_ref().and_then(|v| v.layers().last());
        let timeline = newest.map_or(Timeline::FIRST, landfall_vault::Point::timeline);
        Position {
            kind: Kind::Point,
            vault: vault.config().vault_id,
            machine: self.machine.id(),
            timeline,
            parent_timeline: timeline,
            seq: newest.map_or(Seq::FIRST, |p| p.seq().next()),
            generation: tenure.generation(),
            previous: self.view.as_ref().map_or(Digest::NONE, MapView::point_digest),
        }
    }
}

/// Takes one recovery point of a machine and commits it.
///
/// # Errors
/// `Usage` for what is asked, `NotFound` and `Unavailable` for its disks, `Conflict` where another gateway writes this machine,
/// `Unavailable`, `NoSpace` for the store, `Corrupt` where the newest point cannot be read.
pub async fn replicate(
    vault: &Vault,
    state: &State,
    request: &Request,
    progress: &Arc<Progress>,
    cancel: &Cancel,
) -> Result<Outcome> {
    let start = Instant::now();
    let _lock = state.lock().await?;
    probe(vault, state).await?;
    let machine = vault.machine(&request.machine);
    // Fails on what the operator can mend before anything is claimed or written; what a command makes cannot be there yet.
    if request.consistency_command.is_none() {
        open_disks(&request.disks, None, Seq::FIRST)?;
    }
    let tenure = machine.take(&request.machine, state.gateway_id()?, now).await?;
    let renewal = Renewal::start(tenure.clone());
    let outcome = cycle(vault, state, request, progress, cancel, &tenure, start).await;
    drop(renewal);
    crash_point("replicate.before-release");
    let released = tenure.release(now()).await;
    if let Err(error) = released {
        // The point stands; the next gateway waits for the lease to run out.
        tracing::warn!(%error, "the lease was not given back");
    }
    outcome
}

async fn probe(vault: &Vault, state: &State) -> Result<()> {
    let url = vault.store().url();
    if !state.was_probed(url) {
        vault.store().probe().await?;
        state.set_probed(url)?;
    }
    Ok(())
}

/// Renews the lease in the background until it is dropped.
struct Renewal(tokio::task::JoinHandle<()>);

impl Renewal {
    fn start(tenure: Tenure) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEASE_RENEWAL).await;
                if let Err(error) = tenure.renew(now()).await {
                    tracing::warn!(%error, "the lease was not renewed");
                }
            }
        }))
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The moment of the cycle: this host's clock, but never before the newest point.
fn source_time(before: Option<&PointMeta>, accept_clock: bool) -> Result<Timestamp> {
    let time = now();
    let Some(last) = before.map(|m| m.source_time).filter(|last| time <= *last) else { return Ok(time) };
    let behind_ms = last.millis() - time.millis();
    if behind_ms > CLOCK_STEP_MAX_MS && !accept_clock {
        let why = format!(
            "the clock of this host has gone backwards: it says {time}, the newest point is of {last}; set the clock, or pass \
             --accept-clock to take the point as of right after it"
        );
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(Timestamp::from_millis(last.millis() + 1))
}

async fn cycle(
    vault: &Vault,
    state: &State,
    request: &Request,
    progress: &Arc<Progress>,
    cancel: &Cancel,
    tenure: &Tenure,
    start: Instant,
) -> Result<Outcome> {
    let newest = Newest::open(vault, &request.machine).await?;
    let trusted = refuse_rollback(state, &newest).await?;
    let position = newest.next(tenure, vault);
    source_time(newest.meta(), request.accept_clock)?;
    let domain = vault.site().domain_id(&request.domain);
    let mut index =
        DedupIndex::open(&state.index_path(), vault, newest.machine.id(), &vault.epochs(domain).await?).await?;
    know_inline_chunks(&newest, &mut index, trusted).await?;
    let session = Arc::new(Session {
        vault: vault.clone(),
        ledger: Ledger::new(index),
        progress: progress.clone(),
        level: LEVEL,
        pages: vault.site().page_fingerprinter(),
        page_sealer: vault.site().index_sealer(),
    });
    let sealer = Arc::new(ContentSealer::open_epoch(vault.site(), domain)?);
    let uploader = Arc::new(Uploader::new(sealer.clone()));

    let quiesce = Quiesce::freeze(request.consistency_command.as_deref())?;
    let consistency = quiesce.consistency();
    let time = source_time(newest.meta(), request.accept_clock)?;
    let disks = Arc::new(open_disks(&request.disks, newest.meta(), position.seq)?);
    let mut captured = Captured::run(&session, &uploader, &newest, &disks, &sealer, domain, cancel).await?;
    for disk in disks.iter() {
        disk.reader.as_ref().map_or(Ok(()), landfall_disk::RawReader::check_not_shrunk)?;
    }
    quiesce.thaw()?;
    cancel.check()?;

    let place = (position.timeline, position.seq);
    let (inline, chunks) = tail::store(&session, &uploader, std::mem::take(&mut captured.open), place).await?;
    captured.maps.settle(&session, &uploader, &tail::places(&chunks)).await?;
    let (changed, read) = (captured.maps.changed_bytes.clone(), captured.maps.read_bytes.clone());
    let (pages, segments) = captured.maps.finish(&session, &uploader).await?;
    let counters = Counters {
        changed_bytes: changed.iter().sum(),
        read_bytes: read.iter().sum(),
        new_chunk_bytes: captured.new_bytes,
        stored_bytes: uploader.uploaded_bytes() + inline.len() as u64,
    };
    let meta = PointMeta {
        machine: request.machine.clone(),
        domain: request.domain.clone(),
        source_time: time,
        store_time: now(),
        consistency,
        gateway: state.gateway_id()?,
        shape: None,
        disks: disks.iter().map(|d| d.meta.clone()).collect(),
        counters,
        pinned: false,
    };
    let body = Body { meta, segments, disks: pages };
    refers_only_to_stored(&body, &session.ledger.stored_segments())?;
    tenure.still_held().await?;
    crash_point("point.before-commit");
    let sent_before = vault.store().traffic().sent_bytes();
    let point = newest.machine.commit(position, &body, &inline).await?;
    uploader.add_uploaded(vault.store().traffic().sent_bytes() - sent_before);
    crash_point("point.committed");

    let committed = format!("point {} is committed, but", position.seq);
    remember(state, &newest.machine, &point).map_err(|e| e.context(&committed))?;
    let size = point.header.inline_start() + point.header.inline_len;
    let key = PointKey { timeline: position.timeline, seq: position.seq, size };
    let view = MapView::extended(&newest.machine, newest.view, point, key);
    // What follows only saves work later: that it failed is no failure of the point.
    if let Err(error) = afterwards(&session, &uploader, &view, &chunks).await {
        tracing::warn!(%error, "{committed} what makes later runs faster was not done");
    }
    let outcome = |(disk, (read, changed)): (&OpenDisk, (u64, u64))| DiskOutcome {
        name: disk.meta.name.clone(),
        size: disk.meta.size,
        read_bytes: read,
        changed_bytes: changed,
    };
    Ok(Outcome {
        timeline: position.timeline,
        seq: position.seq,
        time,
        disks: disks.iter().zip(read.into_iter().zip(changed)).map(outcome).collect(),
        new_chunk_bytes: captured.new_bytes,
        uploaded_bytes: uploader.uploaded_bytes(),
        elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Tells the local index of the new point, and writes a checkpoint where one is due.
async fn afterwards(session: &Session, uploader: &Uploader, view: &MapView, inline: &[ChunkRef]) -> Result<()> {
    if !inline.is_empty() {
        session.ledger.write().add_point(view.key().timeline, view.key().seq, inline)?;
    }
    if checkpoint::is_due(view) {
        write_checkpoint(session, uploader, view).await?;
    }
    session.ledger.write().flush()
}

/// A vault that no longer has the point that this site saw last was rolled back or rewritten: writing to it would hide that.
///
/// Returns whether there was such a point to compare with: what this site knows of earlier points is then true.
async fn refuse_rollback(state: &State, newest: &Newest) -> Result<bool> {
    let heads = state.heads()?;
    let Some(head) = heads.get(&newest.machine.id()) else { return Ok(false) };
    let there = newest.machine.points_of(head.timeline).await?.into_iter().find(|p| p.seq == head.seq);
    let digest = match there {
        Some(key) => Some(newest.machine.point(key).await?.digest),
        None => None,
    };
    if digest == Some(head.digest) {
        return Ok(true);
    }
    let what = if digest.is_some() { "another stands in its place" } else { "it is gone" };
    let why = format!(
        "the vault was rolled back or rewritten: this site saw point {} of the machine, and {what}; run `landfall verify`",
        head.seq
    );
    Err(Error::corrupt(why))
}

fn remember(state: &State, machine: &Machine, point: &landfall_vault::Point) -> Result<()> {
    let mut heads = state.heads()?;
    let head = landfall_vault::verify::Head { timeline: point.timeline(), seq: point.seq(), digest: point.digest };
    heads.insert(machine.id(), head);
    state.remember(&heads)
}

/// Tells the index of the chunks that stand inline in the points of this machine's view.
async fn know_inline_chunks(newest: &Newest, index: &mut DedupIndex, trusted: bool) -> Result<()> {
    index.set_points(newest.line.iter().map(|p| (p.timeline, p.seq)), trusted);
    let layers = newest.view.iter().flat_map(|v| v.layers());
    for point in layers.filter(|l| l.header.position.kind == Kind::Point && l.header.inline_len > 0) {
        if index.knows_point(point.timeline(), point.seq()) {
            continue;
        }
        let own = Source::Point(point.timeline(), point.seq());
        let mut chunks = Vec::new();
        for page in point.body.disks.iter().flat_map(|d| d.values()) {
            for entry in load_page(&newest.machine, page).await?.iter() {
                if let EntryKind::Data { chunk, .. } = entry.kind
                    && chunk.location.source == own
                {
                    chunks.push(chunk);
                }
            }
        }
        index.add_point(point.timeline(), point.seq(), &chunks)?;
    }
    Ok(())
}

/// Everything that the workers made of the disks.
struct Captured {
    maps: Maps,
    open: Vec<SegmentBuilder>,
    new_bytes: u64,
}

impl Captured {
    async fn run(
        session: &Arc<Session>,
        uploader: &Arc<Uploader>,
        newest: &Newest,
        disks: &Arc<Vec<OpenDisk>>,
        sealer: &Arc<ContentSealer>,
        domain: landfall_model::DomainId,
        cancel: &Cancel,
    ) -> Result<Self> {
        let (task_tx, task_rx) = channel::<Task>(REGIONS_AHEAD);
        let (done_tx, done_rx) = channel::<Done>(DONE_QUEUE);
        let (full_tx, full_rx) = channel::<Segment>(UPLOAD_QUEUE);
        let tasks = Arc::new(Mutex::new(task_rx));
        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(WORKERS_MAX - 1) + 1;
        let stop = Cancel::default();
        let mut running = JoinSet::new();
        for _ in 0..workers {
            let worker = Worker {
                session: session.clone(),
                disks: disks.clone(),
                sealer: sealer.clone(),
                domain,
                cancel: cancel.clone(),
                stop: stop.clone(),
                tasks: tasks.clone(),
                done: done_tx.clone(),
                full: full_tx.clone(),
            };
            running.spawn_blocking(move || worker.run());
        }
        drop((done_tx, full_tx, tasks));
        let feeder = feed(newest, disks, task_tx, &session.progress);
        let uploads = upload(session.clone(), uploader.clone(), full_rx);
        let mut maps = Maps::new(session, disks.len())?;
        let none = Inline::new();
        // The receiver ends with the block, so that a failure here stops the workers.
        let collect = async {
            let mut done_rx = done_rx;
            while let Some(done) = done_rx.recv().await {
                let region = u64::from(region_len(disks[done.disk].meta.size, done.region));
                session.progress.add_done(region);
                maps.push(done);
                maps.settle(session, uploader, &none).await?;
            }
            Ok::<(), Error>(())
        };
        let (fed, uploaded, collected) = tokio::join!(feeder, uploads, collect);
        let mut captured = Vec::new();
        while let Some(worker) = running.join_next().await {
            captured.push(worker.map_err(|e| Error::with_source(ErrorKind::Bug, "a worker ended early", e))?);
        }
        // The first cause, not what followed from it: a worker that cannot hand over its segment is told so by the upload.
        uploaded?;
        let mut open = Vec::new();
        let mut new_bytes = 0;
        for worker in captured {
            let (builder, bytes) = worker?;
            open.push(builder);
            new_bytes += bytes;
        }
        collected?;
        fed?;
        Ok(Self { maps, open, new_bytes })
    }
}

/// Loads the maps of the regions ahead of the workers, in the order of the disks.
async fn feed(newest: &Newest, disks: &[OpenDisk], tasks: Sender<Task>, progress: &Progress) -> Result<()> {
    for (number, disk) in disks.iter().enumerate().filter(|(_, d)| d.reader.is_some()) {
        progress.add_total(disk.meta.size);
        let known = newest.view.as_ref().filter(|_| newest.meta().is_some_and(|m| has_history(m, disk)));
        let described = known.map(|v| v.described_regions(&disk.meta)).unwrap_or_default();
        let mut loaded = stream::iter(0..region_count(disk.meta.size)?)
            .map(|region| {
                let view = known.filter(|_| described.contains(&region));
                async move {
                    let old = match view {
                        Some(view) => view.region(&disk.meta, region).await?,
                        None => RegionMap::default(),
                    };
                    Ok::<_, Error>(Task { disk: number, region, old })
                }
            })
            .buffered(REGIONS_AHEAD);
        while let Some(task) = loaded.next().await {
            if tasks.send(task?).await.is_err() {
                // The workers stopped: their own error says why.
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether the newest point knows this disk as protected, so that its map can be compared with.
fn has_history(before: &PointMeta, disk: &OpenDisk) -> bool {
    before.disks.iter().any(|d| d.name == disk.meta.name && d.base_seq == disk.meta.base_seq && !d.excluded)
}

async fn upload(session: Arc<Session>, uploader: Arc<Uploader>, mut full: Receiver<Segment>) -> Result<()> {
    let mut flying = JoinSet::new();
    loop {
        tokio::select! {
            segment = full.recv(), if flying.len() < UPLOADS_IN_FLIGHT => match segment {
                Some(segment) => {
                    let (session, uploader) = (session.clone(), uploader.clone());
                    flying.spawn(async move { uploader.store(&session, segment).await });
                }
                None => break,
            },
            Some(done) = flying.join_next() => joined(done)?,
        }
    }
    while let Some(done) = flying.join_next().await {
        joined(done)?;
    }
    Ok(())
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|e| Error::with_source(ErrorKind::Bug, "an upload ended early", e))?
}

struct Worker {
    session: Arc<Session>,
    disks: Arc<Vec<OpenDisk>>,
    sealer: Arc<ContentSealer>,
    domain: landfall_model::DomainId,
    cancel: Cancel,
    /// Set by the first worker that fails.
    stop: Cancel,
    tasks: Arc<Mutex<Receiver<Task>>>,
    done: Sender<Done>,
    full: Sender<Segment>,
}

impl Worker {
    /// Captures regions until there are no more; returns the open segment and the bytes that were new.
    fn run(self) -> Result<(SegmentBuilder, u64)> {
        let stop = self.stop.clone();
        let done = self.capture();
        if done.is_err() {
            stop.cancel();
        }
        done
    }

    fn capture(self) -> Result<(SegmentBuilder, u64)> {
        let site = self.session.vault.site();
        let mut scanner = Scanner::new(cut::Cutter::new(site.cut_secret(self.domain)), site.fingerprinter(self.domain));
        let mut store = ChunkStore::new(&self.session, self.sealer.clone(), self.full.clone())?;
        loop {
            let task = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(task) = task.filter(|_| !self.stop.is_set()) else { break };
            self.cancel.check()?;
            let Some(reader) = &self.disks[task.disk].reader else { continue };
            let done = scanner.scan(&task, reader, &mut store)?;
            store.end_region()?;
            if self.done.blocking_send(done).is_err() {
                break;
            }
        }
        let new_bytes = store.new_bytes;
        Ok((store.into_open(), new_bytes))
    }
}

/// Writes the whole maps as of the point of a view; unchanged pages are shared with earlier records.
async fn write_checkpoint(session: &Session, uploader: &Uploader, view: &MapView) -> Result<()> {
    let meta = view.meta();
    let mut maps = Maps::new(session, meta.disks.len())?;
    for (number, disk) in meta.disks.iter().enumerate().filter(|(_, d)| !d.excluded) {
        for region in view.described_regions(disk) {
            // Read in any case: the checkpoint lists what its maps refer to, and nothing that they no longer do.
            let map = view.region(disk, region).await?;
            match view.sole_stored_page(disk, region) {
                Some(page) => maps.keep(session, number, region, page, &map)?,
                None => maps.page(session, uploader, number, region, map).await?,
            }
        }
    }
    let (pages, segments) = maps.finish(session, uploader).await?;
    let body = Body { meta: meta.clone(), segments, disks: pages };
    refers_only_to_stored(&body, &session.ledger.stored_segments())?;
    crash_point("checkpoint.before-commit");
    let at = view.layers()[view.layers().len() - 1].header.position;
    let position = Position { kind: Kind::Checkpoint, previous: view.point_digest(), ..at };
    view.machine().commit_checkpoint(position, &body).await
}
