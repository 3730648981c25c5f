//! The stages between a source and the maps: workers capture parts, full segments go to the store or spool, pages are made in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use landfall_model::{DomainId, Error, ErrorKind, Result};
use landfall_vault::Compressor;
use landfall_vault::segment::{Segment, SegmentBuilder};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::level::Level;
use crate::maps::{Inline, Maps};
use crate::region::{Done, Scanner};
use crate::seal::{ChunkStore, Packing};
use crate::source::Task;
use crate::upload::{UPLOAD_QUEUE, UPLOADS_IN_FLIGHT, Uploader};
use crate::{Cancel, Session, cut};

/// No more parts are captured at once than this, for all machines: each may have an open segment of 32 MiB; with those in the queue, in
/// flight and of pages that is 11 of them, 360 MiB, and 64 MiB of index: within 512.
const WORKERS_MAX: usize = 4;
/// Parts that wait for a worker.
pub(crate) const TASKS_AHEAD: usize = 8;

/// The cores that capture, and their buffers, shared by all cycles.
pub(crate) struct Workers {
    permits: Arc<Semaphore>,
    /// How hard they compress.
    pub(crate) level: Level,
    idle: Mutex<HashMap<DomainId, Vec<Kit>>>,
}

/// What a worker reuses from part to part.
struct Kit {
    scanner: Scanner,
    compressor: Compressor,
}

impl Workers {
    pub(crate) fn new() -> Self {
        // One more than cores: one of them is mostly waiting for its disk.
        let count = std::thread::available_parallelism().map_or(2, usize::from).min(WORKERS_MAX - 1) + 1;
        Self { permits: Arc::new(Semaphore::new(count)), level: Level::new(), idle: Mutex::default() }
    }

    /// Whether more could be captured at this moment.
    pub(crate) fn is_free(&self) -> bool {
        self.permits.available_permits() > 0
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit> {
        let permit = self.permits.clone().acquire_owned().await;
        permit.map_err(|e| Error::with_source(ErrorKind::Bug, "the workers are gone", e))
    }

    fn take(&self, session: &Session) -> Result<Kit> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&session.domain).and_then(Vec::pop);
        let level = self.level.get();
        if let Some(mut kit) = idle {
            kit.compressor.set_level(level)?;
            return Ok(kit);
        }
        let (site, domain) = (session.vault.site(), session.domain);
        let scanner = Scanner::new(cut::Cutter::new(site.cut_secret(domain)), site.fingerprinter(domain));
        Ok(Kit { scanner, compressor: Compressor::new(level)? })
    }

    fn give_back(&self, domain: DomainId, kit: Kit) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).entry(domain).or_default().push(kit);
    }
}

/// Everything that the workers made of a cycle.
pub(crate) struct Captured {
    pub(crate) maps: Maps,
    pub(crate) open: Vec<SegmentBuilder>,
}

/// What the workers of one cycle share.
struct Cycle {
    session: Arc<Session>,
    uploader: Arc<Uploader>,
    /// Segments being filled. First in, first out: none is left behind while maps wait for its chunks.
    packings: Mutex<VecDeque<Packing>>,
    full: Sender<Segment>,
}

impl Cycle {
    fn packings(&self) -> std::sync::MutexGuard<'_, VecDeque<Packing>> {
        self.packings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, task: &Task) -> Result<Done> {
        let session = &*self.session;
        let mut kit = session.workers.take(session)?;
        let packing = self.packings().pop_front();
        let mut packing = packing.unwrap_or_else(|| Packing::new(session));
        let mut store = ChunkStore {
            session,
            sealer: self.uploader.sealer(),
            compressor: &mut kit.compressor,
            packing: &mut packing,
            full: &self.full,
        };
        // A kit that failed may hold half a chunk: it is not used again.
        let done = kit.scanner.scan(task, &mut store)?;
        store.end_part()?;
        self.packings().push_back(packing);
        session.workers.give_back(session.domain, kit);
        Ok(done)
    }
}

/// Captures what `feed` puts into the queue behind `tasks`, until its other end is closed.
///
/// # Errors
/// The first cause: of the feeder, a worker, the store or spool; `Unavailable` where it was cancelled.
pub(crate) async fn run(
    session: &Arc<Session>,
    uploader: &Arc<Uploader>,
    disks: usize,
    cancel: &Cancel,
    tasks: Receiver<Task>,
    feed: impl Future<Output = Result<()>>,
) -> Result<Captured> {
    let (full_tx, full_rx) = channel::<Segment>(UPLOAD_QUEUE);
    let uploads = upload(session.clone(), uploader.clone(), full_rx);
    let cycle = Arc::new(Cycle {
        session: session.clone(),
        uploader: uploader.clone(),
        packings: Mutex::default(),
        full: full_tx,
    });
    let (fed, uploaded, collected) = tokio::join!(feed, uploads, collect(cycle, disks, cancel, tasks));
    // The first cause, not what followed from it: a worker that cannot hand over its segment is told so by the upload.
    uploaded?;
    let captured = collected?;
    fed?;
    Ok(captured)
}

/// Hands parts to workers and their outcomes to the maps. All ends of queues are gone when it returns, so that a failure here stops the
/// other stages.
async fn collect(cycle: Arc<Cycle>, disks: usize, cancel: &Cancel, mut tasks: Receiver<Task>) -> Result<Captured> {
    let session = cycle.session.clone();
    let mut maps = Maps::new(&session, disks)?;
    let none = Inline::new();
    let mut working: JoinSet<Result<Done>> = JoinSet::new();
    let mut more = true;
    while more || !working.is_empty() {
        tokio::select! {
            task = tasks.recv(), if more => match task {
                Some(task) => {
                    cancel.check()?;
                    let (cycle, permit) = (cycle.clone(), session.workers.permit().await?);
                    working.spawn_blocking(move || {
                        let done = cycle.work(&task);
                        drop(permit);
                        done
                    });
                }
                None => more = false,
            },
            Some(done) = working.join_next() => {
                let done = done.map_err(|e| Error::with_source(ErrorKind::Bug, "a worker ended early", e))??;
                session.progress.add_done(done.covered_bytes);
                maps.push(done);
                maps.settle(&session, &cycle.uploader, &none).await?;
            }
        }
    }
    let open = std::mem::take(&mut *cycle.packings()).into_iter().map(Packing::into_open).collect();
    Ok(Captured { maps, open })
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
