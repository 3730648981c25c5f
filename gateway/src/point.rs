//! From what was captured to a recovery point: its tail, its pages, its record; and what saves work after it is committed.

use landfall_model::{
    ChunkRef, Consistency, Counters, CycleId, DiskMeta, DomainName, GatewayId, GroupMark, HookResult, MachineName,
    MachineShape, PointMeta, Result, Timestamp,
};
use landfall_vault::{Body, Kind, MapView, Position, SignedPoint, checkpoint, crash_point, now, refers_only_to_stored};

use crate::Session;
use crate::maps::Maps;
use crate::pipeline::Captured;
use crate::tail;
use crate::upload::Uploader;

/// What a point says of the cut that it is of.
pub(crate) struct Cut {
    pub(crate) machine: MachineName,
    pub(crate) domain: DomainName,
    pub(crate) gateway: GatewayId,
    pub(crate) time: Timestamp,
    pub(crate) consistency: Consistency,
    pub(crate) disks: Vec<DiskMeta>,
    pub(crate) cycle: Option<CycleId>,
    pub(crate) group: Option<GroupMark>,
    pub(crate) shape: Option<MachineShape>,
    pub(crate) hooks: Vec<HookResult>,
}

/// A point that waits for its commit.
pub(crate) struct Made {
    pub(crate) signed: SignedPoint,
    /// The chunks that stand in it.
    pub(crate) inline: Vec<ChunkRef>,
    /// Bytes read and changed, by disk.
    pub(crate) read: Vec<u64>,
    pub(crate) changed: Vec<u64>,
}

/// Stores what is left of a cycle and makes the record of its point.
///
/// # Errors
/// Those of the store or spool; `Unsupported` where the maps are larger than a record can hold.
pub(crate) async fn make(
    session: &Session,
    uploader: &Uploader,
    mut captured: Captured,
    position: Position,
    cut: Cut,
    machine: &landfall_vault::Machine,
) -> Result<Made> {
    let place = (position.timeline, position.seq);
    let (inline_bytes, inline) = tail::store(session, uploader, std::mem::take(&mut captured.open), place).await?;
    captured.maps.settle(session, uploader, &tail::places(&inline)).await?;
    let (changed, read) = (captured.maps.changed_bytes.clone(), captured.maps.read_bytes.clone());
    let (pages, segments) = captured.maps.finish(session, uploader).await?;
    let counters = Counters {
        changed_bytes: changed.iter().sum(),
        read_bytes: read.iter().sum(),
        new_chunk_bytes: session.new_bytes(),
        stored_bytes: uploader.uploaded_bytes() + inline_bytes.len() as u64,
    };
    let meta = PointMeta {
        machine: cut.machine,
        domain: cut.domain,
        source_time: cut.time,
        store_time: now(),
        consistency: cut.consistency,
        gateway: cut.gateway,
        shape: cut.shape,
        disks: cut.disks,
        counters,
        pinned: false,
        cycle: cut.cycle,
        group: cut.group,
        hooks: cut.hooks,
    };
    let body = Body { meta, segments, disks: pages };
    refers_only_to_stored(&body, |id| session.ledger.has_segment(id))?;
    let signed = machine.sign(position, &body, &inline_bytes)?;
    Ok(Made { signed, inline, read, changed })
}

/// Writes a checkpoint where one is due, and makes the local index durable.
///
/// # Errors
/// `Unavailable`, `NoSpace`.
pub(crate) async fn afterwards(session: &Session, uploader: &Uploader, view: &MapView) -> Result<()> {
    if checkpoint::is_due(view) {
        write_checkpoint(session, uploader, view).await?;
    }
    session.ledger.write().flush()
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
    refers_only_to_stored(&body, |id| session.ledger.has_segment(id))?;
    crash_point("checkpoint.before-commit");
    let at = view.layers()[view.layers().len() - 1].header.position;
    let position = Position { kind: Kind::Checkpoint, previous: view.point_digest(), ..at };
    view.machine().commit_checkpoint(position, &body).await
}
