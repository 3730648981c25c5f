//! The newest point of a machine: what the next one is compared with and chained to, and whether the vault still has what this site saw.

use std::sync::{PoisonError, RwLock};

use landfall_model::{
    Digest, DiskMeta, DiskName, EntryKind, Error, Generation, MachineName, PointMeta, Result, Seq, Source, Timeline,
};
use landfall_vault::{DedupIndex, Kind, Machine, MapView, PointKey, Position, Vault, load_page};

use crate::state::State;

/// The newest point of a machine, and what is needed to write the next.
pub(crate) struct Newest {
    pub(crate) machine: Machine,
    pub(crate) view: Option<MapView>,
    pub(crate) line: Vec<PointKey>,
}

impl Newest {
    pub(crate) async fn open(vault: &Vault, name: &MachineName) -> Result<Self> {
        let machine = vault.machine(name);
        let line = machine.line().await?;
        let view = match line.last() {
            Some(last) => Some(MapView::open(&machine, &line, *last).await?),
            None => None,
        };
        Ok(Self { machine, view, line })
    }

    pub(crate) fn meta(&self) -> Option<&PointMeta> {
        self.view.as_ref().map(MapView::meta)
    }

    /// Whether the newest point knows this disk as protected, so that it can be compared with and what is not sent is as it was.
    pub(crate) fn has_history(&self, disk: &DiskMeta) -> bool {
        let same = |d: &DiskMeta| d.name == disk.name && d.base_seq == disk.base_seq && !d.excluded;
        self.meta().is_some_and(|m| m.disks.iter().any(same))
    }

    /// The point at which the history of a disk begins that is now `excluded` or not: one that was not there, or not protected, begins
    /// anew, because what was known of it is of another time.
    pub(crate) fn base_seq(&self, name: &DiskName, excluded: bool, next: Seq) -> Seq {
        let known = self.meta().and_then(|m| m.disks.iter().find(|d| d.name == *name));
        known.filter(|d| !d.excluded && !excluded).map_or(next, |d| d.base_seq)
    }

    /// Where the next point stands.
    pub(crate) fn next(&self, generation: Generation) -> Position {
        let newest = self.view.as_ref().and_then(|v| v.layers().last());
        let timeline = newest.map_or(Timeline::FIRST, |p| p.timeline());
        Position {
            kind: Kind::Point,
            vault: self.machine.vault().config().vault_id,
            machine: self.machine.id(),
            timeline,
            parent_timeline: timeline,
            seq: newest.map_or(Seq::FIRST, |p| p.seq().next()),
            generation,
            previous: self.view.as_ref().map_or(Digest::NONE, MapView::point_digest),
        }
    }
}

/// A vault that no longer has the point that this site saw last was rolled back or rewritten: writing to it would hide that.
///
/// Returns whether there was such a point to compare with: what this site knows of earlier points is then true.
pub(crate) async fn refuse_rollback(state: &State, newest: &Newest) -> Result<bool> {
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

pub(crate) fn remember(state: &State, machine: &Machine, point: &landfall_vault::Point) -> Result<()> {
    let mut heads = state.heads()?;
    let head = landfall_vault::verify::Head { timeline: point.timeline(), seq: point.seq(), digest: point.digest };
    heads.insert(machine.id(), head);
    state.remember(&heads)
}

/// Tells the index of the chunks that stand inline in the points of this machine's view.
pub(crate) async fn know_inline_chunks(newest: &Newest, index: &RwLock<DedupIndex>, trusted: bool) -> Result<()> {
    let write = || index.write().unwrap_or_else(PoisonError::into_inner);
    let machine = newest.machine.id();
    write().set_points(machine, newest.line.iter().map(|p| (p.timeline, p.seq)), trusted);
    let layers = newest.view.iter().flat_map(|v| v.layers());
    for point in layers.filter(|l| l.header.position.kind == Kind::Point && l.header.inline_len > 0) {
        if write().knows_point(machine, point.timeline(), point.seq()) {
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
        write().add_point(machine, point.timeline(), point.seq(), &chunks)?;
    }
    Ok(())
}
