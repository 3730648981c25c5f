//! The maps of a machine's disks as of one point: the newest checkpoint at or before it, overlaid with the points after it.
//!
//! Pages load region by region, so memory is bounded by the records between two checkpoints, whatever the size of the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use landfall_model::{ChunkRef, Digest, DiskMeta, DiskName, ErrorKind, PointMeta, RegionMap, Source};

use crate::body::PageRef;
use crate::machine::{Machine, Point, PointKey, follows};
use crate::page::{self, REGION_BYTES};
use crate::record::Kind;
use crate::{frame, layout, wire};
use landfall_model::{Error, Result};

/// Records fetched at once while a view opens.
const RECORDS_IN_FLIGHT: usize = 16;

/// The maps of all disks as of one point.
#[derive(Clone)]
pub struct MapView {
    machine: Machine,
    /// A checkpoint or none, then points, ascending; the last is the point itself.
    layers: Vec<Arc<Point>>,
    key: PointKey,
}

/// The length of a region of a disk of this size: regions are whole but for the last.
pub fn region_len(disk_size: u64, region: u32) -> u32 {
    let len = disk_size.saturating_sub(u64::from(region) * REGION_BYTES).min(REGION_BYTES);
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Number of regions of a disk of this size.
///
/// # Errors
/// `Unsupported` for a disk of more than 2^59 bytes.
pub fn region_count(disk_size: u64) -> Result<u32> {
    u32::try_from(disk_size.div_ceil(REGION_BYTES))
        .map_err(|_| Error::new(ErrorKind::Unsupported, "the disk is larger than the format can describe (512 PiB)"))
}

impl MapView {
    /// Opens the maps as of a point of a line.
    ///
    /// # Errors
    /// `Corrupt` where a record between the checkpoint and the point is missing, tampered with or does not follow the one before.
    pub async fn open(machine: &Machine, line: &[PointKey], at: PointKey) -> Result<Self> {
        let base = Self::checkpoint_for(machine, line, at).await?;
        let from = base.as_ref().map_or(0, |c| c.seq().0);
        let keys: Vec<PointKey> = line.iter().filter(|p| p.seq.0 > from && p.seq <= at.seq).copied().collect();
        let points: Vec<Point> =
            stream::iter(keys).map(|key| machine.point(key)).buffered(RECORDS_IN_FLIGHT).try_collect().await?;
        // A checkpoint carries the digest of its point, so the chain goes on from it.
        let mut before = base.as_ref().map(|c| (c.header.position, c.header.position.previous));
        for point in &points {
            let position = &point.header.position;
            follows(position, before.as_ref().map(|(p, d)| (p, *d)))?;
            before = Some((*position, point.digest));
        }
        let layers: Vec<Arc<Point>> = base.into_iter().chain(points).map(Arc::new).collect();
        match layers.last() {
            Some(last) if last.seq() == at.seq => Ok(Self { machine: machine.clone(), layers, key: at }),
            _ => Err(Error::corrupt(format!("point {} cannot be opened: records before it are missing", at.seq))),
        }
    }

    async fn checkpoint_for(machine: &Machine, line: &[PointKey], at: PointKey) -> Result<Option<Point>> {
        let timelines: BTreeSet<_> = line.iter().map(|p| p.timeline).collect();
        for timeline in timelines.into_iter().rev() {
            let on_line = |seq| line.iter().any(|p| p.timeline == timeline && p.seq == seq);
            let checkpoints = machine.checkpoints_of(timeline).await?;
            for key in checkpoints.into_iter().rev().filter(|c| c.seq <= at.seq && on_line(c.seq)) {
                match machine.checkpoint(key).await {
                    Ok(checkpoint) => return Ok(Some(checkpoint)),
                    // A checkpoint only saves work: the points before it say the same.
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        tracing::warn!(%error, "a checkpoint cannot be used: going back to the one before; run `landfall verify`");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }

    /// The view of the point that was committed right after this one; of a machine's first point where there was none.
    pub fn extended(machine: &Machine, before: Option<Self>, point: Point) -> Self {
        let key = point.key();
        let mut layers = before.map(|view| view.layers).unwrap_or_default();
        layers.push(Arc::new(point));
        Self { machine: machine.clone(), layers, key }
    }

    /// The view with another point in the place of its newest.
    #[must_use]
    pub fn amended(mut self, point: Point) -> Self {
        self.layers.pop();
        let machine = self.machine.clone();
        Self::extended(&machine, Some(self), point)
    }

    /// The point.
    pub fn key(&self) -> PointKey {
        self.key
    }

    /// The record digest of the point: what the next one carries.
    pub fn point_digest(&self) -> Digest {
        match self.last().header.position.kind {
            Kind::Checkpoint => self.last().header.position.previous,
            _ => self.last().digest,
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    fn last(&self) -> &Point {
        &self.layers[self.layers.len() - 1]
    }

    /// What the point says of itself.
    pub fn meta(&self) -> &PointMeta {
        self.last().meta()
    }

    /// The records that it is made of: a checkpoint or none, then points.
    pub fn layers(&self) -> &[Arc<Point>] {
        &self.layers
    }

    /// A disk of the point.
    pub fn disk(&self, name: &DiskName) -> Option<&DiskMeta> {
        self.meta().disks.iter().find(|d| d.name == *name)
    }

    /// A disk in each layer of its history: its metadata there and its pages.
    fn history<'a>(&'a self, disk: &'a DiskMeta) -> impl Iterator<Item = (&'a DiskMeta, &'a BTreeMap<u32, PageRef>)> {
        self.layers.iter().filter(|layer| layer.seq() >= disk.base_seq).filter_map(|layer| {
            let (meta, pages) = layer.meta().disks.iter().zip(&layer.body.disks).find(|(d, _)| d.name == disk.name)?;
            (meta.base_seq == disk.base_seq && !meta.excluded).then_some((meta, pages))
        })
    }

    /// The regions of a disk that any layer describes, ascending; all others are zero.
    pub fn described_regions(&self, disk: &DiskMeta) -> BTreeSet<u32> {
        let regions = region_count(disk.size).unwrap_or(u32::MAX);
        self.history(disk).flat_map(|(_, pages)| pages.range(..regions).map(|(r, _)| *r)).collect()
    }

    /// The page of a region where it alone says everything about it: it need not be read to be put into a checkpoint.
    pub fn sole_stored_page(&self, disk: &DiskMeta, region: u32) -> Option<ChunkRef> {
        let mut pages = self.history(disk).filter_map(|(_, pages)| pages.get(&region));
        let PageRef::Stored(only) = pages.next()? else { return None };
        let same_len = self.history(disk).all(|(d, _)| region_len(d.size, region) == region_len(disk.size, region));
        (pages.next().is_none() && same_len).then_some(*only)
    }

    /// Page references that opening the view has to lay over each other.
    pub fn page_refs(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.body.disks).map(BTreeMap::len).sum()
    }

    /// The map of one region of a disk of this point.
    ///
    /// # Errors
    /// `Corrupt`, naming the page; `Unavailable`.
    pub async fn region(&self, disk: &DiskMeta, region: u32) -> Result<RegionMap> {
        let mut map = RegionMap::default();
        for (layer, pages) in self.history(disk) {
            map.truncate(region_len(layer.size, region));
            if let Some(page) = pages.get(&region) {
                map.overlay(&load_page(&self.machine, page).await?);
            }
        }
        map.truncate(region_len(disk.size, region));
        Ok(map)
    }
}

/// Loads one page.
///
/// # Errors
/// `Corrupt`, `Unavailable`.
pub async fn load_page(machine: &Machine, page: &PageRef) -> Result<RegionMap> {
    match page {
        PageRef::Inline(block) => {
            page::decode(&wire::unpack_block(block, frame::PAGE_BYTES_MAX as usize, "inline page")?)
        }
        PageRef::Stored(chunk) => {
            let at = &chunk.location;
            let Source::Segment(id) = at.source else {
                return Err(Error::corrupt("a page is not in a segment"));
            };
            let name = layout::segment(id);
            let (start, end) = (u64::from(at.offset), u64::from(at.offset) + u64::from(at.stored_len));
            let vault = machine.vault();
            let frame = vault.segment_range(&name, start, end).await?;
            let frame = frame.ok_or_else(|| Error::corrupt(format!("{name}: it is missing, and a map is in it")))?;
            page::decode(&frame::open_page(vault.site(), vault.config().vault_id, chunk, &frame)?)
        }
    }
}
