//! `replicate`: one cycle of disks of this host, in this process, from opening them to the committed point.
//!
//! # Crash consistency
//! Killed at any instant, the vault holds all committed points, and perhaps segments that no point refers to yet; run again, they are
//! found by listing and not uploaded again. The order is: epoch key, segments, point; then the checkpoint, which only saves work.
//!
//! # Cancellation
//! [`Cancel`] stops the workers at the next region; what is uploaded stays and is found by the next run.

use std::sync::{Arc, RwLock};
use std::time::Instant;

use futures_util::{StreamExt, stream};
use landfall_model::{
    DiskName, DomainName, Error, ErrorKind, Extent, MachineName, PointMeta, Progress, RegionMap, Result, Seq, Timeline,
    Timestamp,
};
use landfall_vault::{DedupIndex, Heartbeat, MapView, Tenure, Vault, crash_point, now, region_count, region_len};
use tokio::sync::mpsc::{Sender, channel};

use crate::image::{DiskSpec, OpenDisk, Quiesce, open_disks};
use crate::newest::{Newest, know_inline_chunks, refuse_rollback, remember};
use crate::pipeline::{self, TASKS_AHEAD, Workers};
use crate::point::{self, Cut};
use crate::renewal::Renewal;
use crate::source::Task;
use crate::state::State;
use crate::upload::{Epoch, Uploader};
use crate::{Cancel, Session};

/// Regions whose maps are loaded before a worker asks for them.
const REGIONS_AHEAD: usize = 8;
/// A clock that stands so much before the newest point's time is not believed; less is taken as its next millisecond.
const CLOCK_STEP_MAX_MS: i64 = 5_000;

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
    let heartbeat = Heartbeat::new(vault, state.gateway_id()?);
    let (tenure, held) = machine.take(&request.machine, &heartbeat, now).await?;
    let renewal = Renewal::start(heartbeat.clone());
    let outcome = cycle(vault, state, request, progress, cancel, &tenure, start).await;
    drop(renewal);
    crash_point("replicate.before-release");
    drop(held);
    if let Err(error) = heartbeat.tell().await {
        // The point stands; the next gateway waits until this heartbeat has died.
        tracing::warn!(%error, "the machine was not given back");
    }
    outcome
}

pub(crate) async fn probe(vault: &Vault, state: &State) -> Result<()> {
    let url = vault.store().url();
    if !state.was_probed(url) {
        vault.store().probe().await?;
        state.set_probed(url)?;
    }
    Ok(())
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
    let position = newest.next(tenure.generation());
    source_time(newest.meta(), request.accept_clock)?;
    let domain = vault.site().domain_id(&request.domain);
    let index = Arc::new(RwLock::new(DedupIndex::open(&state.index_path())?));
    DedupIndex::catch_up(&index, vault, domain).await?;
    know_inline_chunks(&newest, &index, trusted).await?;
    let workers = Arc::new(Workers::new());
    let session = Arc::new(Session::new(vault, index, newest.machine.id(), domain, progress.clone(), workers, None));
    let uploader = Arc::new(Uploader::to_store(Arc::new(Epoch::open(vault.site(), domain)?)));

    let quiesce = Quiesce::freeze(request.consistency_command.as_deref())?;
    let consistency = quiesce.consistency();
    let time = source_time(newest.meta(), request.accept_clock)?;
    let disks = open_disks(&request.disks, newest.meta(), position.seq)?;
    let (task_tx, task_rx) = channel::<Task>(TASKS_AHEAD);
    let feeder = feed(&newest, &disks, task_tx, progress);
    let captured = pipeline::run(&session, &uploader, disks.len(), cancel, task_rx, feeder).await?;
    for disk in &disks {
        disk.reader.as_ref().map_or(Ok(()), |reader| reader.check_not_shrunk())?;
    }
    quiesce.thaw()?;
    cancel.check()?;

    let cut = Cut {
        machine: request.machine.clone(),
        domain: request.domain.clone(),
        gateway: state.gateway_id()?,
        time,
        consistency,
        disks: disks.iter().map(|d| d.meta.clone()).collect(),
        cycle: None,
        group: None,
        shape: None,
        hooks: Vec::new(),
    };
    let made = point::make(&session, &uploader, captured, position, cut, &newest.machine).await?;
    tenure.still_held().await?;
    crash_point("point.before-commit");
    let sent_before = vault.store().traffic().sent_bytes();
    newest.machine.commit(&made.signed.point, made.signed.bytes.clone()).await?;
    uploader.add_uploaded(vault.store().traffic().sent_bytes() - sent_before);
    crash_point("point.committed");

    let committed = format!("point {} is committed, but", position.seq);
    let point = made.signed.point;
    remember(state, &newest.machine, &point).map_err(|e| e.context(&committed))?;
    let view = MapView::extended(&newest.machine, newest.view, point);
    // What follows only saves work later: that it failed is no failure of the point.
    let told = session.ledger.add_point(position.timeline, position.seq, &made.inline);
    if let Err(error) = told.and(point::afterwards(&session, &uploader, &view).await) {
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
        disks: disks.iter().zip(made.read.into_iter().zip(made.changed)).map(outcome).collect(),
        new_chunk_bytes: session.new_bytes(),
        uploaded_bytes: uploader.uploaded_bytes(),
        elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Feeds disks of this host whole, in their order; loads the maps of the regions ahead of the workers.
async fn feed(newest: &Newest, disks: &[OpenDisk], tasks: Sender<Task>, progress: &Progress) -> Result<()> {
    for (number, disk) in disks.iter().enumerate() {
        let Some(reader) = &disk.reader else { continue };
        progress.add_total(disk.meta.size);
        let known = newest.view.as_ref().filter(|_| newest.has_history(&disk.meta));
        let described = known.map(|v| v.described_regions(&disk.meta)).unwrap_or_default();
        let mut loaded = stream::iter(0..region_count(disk.meta.size)?)
            .map(|region| {
                let view = known.filter(|_| described.contains(&region));
                let part = Extent { start: 0, len: u64::from(region_len(disk.meta.size, region)) };
                async move {
                    let old = match view {
                        Some(view) => view.region(&disk.meta, region).await?,
                        None => RegionMap::default(),
                    };
                    let (old, parts, bytes) = (Some(Arc::new(old)), vec![part], reader.clone());
                    Ok::<_, Error>(Task { disk: number, region, old, parts, number: 0, last: true, bytes })
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
