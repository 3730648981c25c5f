//! From changes to pages: regions wait here, in order, until every chunk of theirs has a place; then they are pages.
//!
//! Pages stand in the point itself while they are few, and go into a segment of their own when they are not.

use std::collections::{BTreeMap, HashMap, VecDeque};

use landfall_model::num::to_u32;
use landfall_model::{
    ChunkId, ChunkRef, Entry, EntryKind, EpochId, Error, ErrorKind, Location, RegionMap, Result, SegmentId, Source,
};
use landfall_vault::segment::SegmentBuilder;
use landfall_vault::{Compressor, DiskPages, PageRef, encode_page};

use crate::Session;
use crate::ledger::Claim;
use crate::region::{Change, Done};
use crate::upload::Uploader;

/// Pages of more bytes than this go into a segment: a point's head stays readable in one small request.
const INLINE_PAGES_BYTES_MAX: usize = 256 * 1024;
/// Zstandard level of pages: written once, read at every comparison.
const PAGE_LEVEL: i32 = 3;

/// Chunks that will stand inline in the point that is being made.
pub(crate) type Inline = HashMap<ChunkId, Location>;

/// A region of which some parts have been captured.
#[derive(Default)]
struct Partial {
    got: u32,
    /// How many there are: known from the last of them.
    of: Option<u32>,
    changes: Vec<Change>,
}

/// A region whose parts have all been captured.
struct Whole {
    disk: usize,
    region: u32,
    changes: Vec<Change>,
}

/// The pages of one record under construction.
pub(crate) struct Maps {
    /// Regions of which some parts are still being captured.
    partial: BTreeMap<(usize, u32), Partial>,
    waiting: VecDeque<Whole>,
    /// Encoded pages that may yet stand inline: disk, region, bytes.
    small: Vec<(usize, u32, Vec<u8>)>,
    small_bytes: usize,
    /// Pages that are or will be in segments.
    stored: Vec<(usize, u32, ChunkId)>,
    /// Pages of earlier records that serve unchanged.
    kept: Vec<(usize, u32, ChunkRef)>,
    open: SegmentBuilder,
    compressor: Compressor,
    segments: BTreeMap<SegmentId, u64>,
    pub(crate) changed_bytes: Vec<u64>,
    pub(crate) read_bytes: Vec<u64>,
}

impl Maps {
    pub(crate) fn new(session: &Session, disks: usize) -> Result<Self> {
        Ok(Self {
            partial: BTreeMap::new(),
            waiting: VecDeque::new(),
            small: Vec::new(),
            small_bytes: 0,
            stored: Vec::new(),
            kept: Vec::new(),
            open: SegmentBuilder::new(session.vault_id()),
            compressor: Compressor::new(PAGE_LEVEL)?,
            segments: BTreeMap::new(),
            changed_bytes: vec![0; disks],
            read_bytes: vec![0; disks],
        })
    }

    /// Takes a captured part.
    pub(crate) fn push(&mut self, done: Done) {
        self.changed_bytes[done.disk] += done.changes.iter().map(|c| u64::from(c.len)).sum::<u64>();
        self.read_bytes[done.disk] += done.read_bytes;
        let at = (done.disk, done.region);
        let partial = self.partial.entry(at).or_default();
        partial.got += 1;
        partial.changes.extend(done.changes);
        if done.last {
            partial.of = Some(done.number + 1);
        }
        if partial.of != Some(partial.got) {
            return;
        }
        let Some(Partial { mut changes, .. }) = self.partial.remove(&at) else { return };
        if !changes.is_empty() {
            changes.sort_by_key(|c| c.start);
            self.waiting.push_back(Whole { disk: done.disk, region: done.region, changes });
        }
    }

    /// Makes pages of the regions whose chunks all have places by now; `inline` are those of the point itself.
    pub(crate) async fn settle(&mut self, session: &Session, uploader: &Uploader, inline: &Inline) -> Result<()> {
        while let Some(mut done) = self.waiting.pop_front() {
            for change in &mut done.changes {
                if let Some((id, location @ None)) = &mut change.data {
                    *location = match inline.get(id) {
                        Some(place) => Some(*place),
                        None => session.ledger.find(*id)?,
                    };
                    if location.is_none() {
                        self.waiting.push_front(done);
                        return Ok(());
                    }
                }
            }
            let map = map_of(&done.changes)?;
            self.page(session, uploader, done.disk, done.region, map).await?;
        }
        Ok(())
    }

    /// Adds the page of a region.
    pub(crate) async fn page(
        &mut self,
        session: &Session,
        uploader: &Uploader,
        disk: usize,
        region: u32,
        map: RegionMap,
    ) -> Result<()> {
        self.refer_all(session, &map)?;
        let bytes = encode_page(&map)?;
        if !self.stored.is_empty() {
            return self.store(session, uploader, disk, region, bytes).await;
        }
        self.small_bytes += bytes.len();
        self.small.push((disk, region, bytes));
        if self.small_bytes > INLINE_PAGES_BYTES_MAX {
            for (disk, region, bytes) in std::mem::take(&mut self.small) {
                self.store(session, uploader, disk, region, bytes).await?;
            }
        }
        Ok(())
    }

    fn refer(&mut self, session: &Session, id: SegmentId) -> Result<()> {
        if let std::collections::btree_map::Entry::Vacant(new) = self.segments.entry(id) {
            new.insert(session.ledger.segment_size(id)?);
        }
        Ok(())
    }

    /// Keeps a page that is in the store already.
    pub(crate) fn keep(
        &mut self,
        session: &Session,
        disk: usize,
        region: u32,
        page: ChunkRef,
        map: &RegionMap,
    ) -> Result<()> {
        self.refer_all(session, map)?;
        self.kept.push((disk, region, page));
        Ok(())
    }

    /// Lists the segments that a map refers to.
    fn refer_all(&mut self, session: &Session, map: &RegionMap) -> Result<()> {
        for entry in map.iter() {
            if let EntryKind::Data { chunk, .. } = &entry.kind
                && let Source::Segment(id) = chunk.location.source
            {
                self.refer(session, id)?;
            }
        }
        Ok(())
    }

    async fn store(
        &mut self,
        session: &Session,
        uploader: &Uploader,
        disk: usize,
        region: u32,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let id = session.pages.chunk_id(&bytes);
        self.stored.push((disk, region, id));
        if let Claim::New = session.ledger.claim(id)? {
            let compressed = self.compressor.compress(&bytes);
            let frame = compressed.seal_page(&session.page_sealer, session.vault_id(), id)?;
            let codec = compressed.codec();
            self.open.push(id, to_u32(bytes.len()), codec, EpochId::INDEX, |out| {
                out.extend_from_slice(&frame);
                Ok(())
            })?;
            if self.open.frame_bytes() >= landfall_vault::segment::SEGMENT_BYTES {
                self.flush(session, uploader).await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self, session: &Session, uploader: &Uploader) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let open = std::mem::replace(&mut self.open, SegmentBuilder::new(session.vault_id()));
        uploader.store(session, open.finish(session.vault.site())?).await
    }

    /// The finished tables of all disks, and the segments that they refer to.
    pub(crate) async fn finish(
        mut self,
        session: &Session,
        uploader: &Uploader,
    ) -> Result<(Vec<DiskPages>, BTreeMap<SegmentId, u64>)> {
        if !self.waiting.is_empty() || !self.partial.is_empty() {
            return Err(Error::new(ErrorKind::Bug, "chunks of the cycle have no place"));
        }
        self.flush(session, uploader).await?;
        let mut disks = vec![DiskPages::new(); self.changed_bytes.len()];
        for (disk, region, bytes) in std::mem::take(&mut self.small) {
            disks[disk].insert(region, PageRef::inline(&bytes));
        }
        for (disk, region, id) in std::mem::take(&mut self.stored) {
            let location = session.ledger.find(id)?;
            let location = location.ok_or_else(|| Error::new(ErrorKind::Bug, "a page of the cycle has no place"))?;
            if let Source::Segment(segment) = location.source {
                self.refer(session, segment)?;
            }
            disks[disk].insert(region, PageRef::Stored(ChunkRef { id, location }));
        }
        for (disk, region, page) in std::mem::take(&mut self.kept) {
            if let Source::Segment(segment) = page.location.source {
                self.refer(session, segment)?;
            }
            disks[disk].insert(region, PageRef::Stored(page));
        }
        Ok((disks, self.segments))
    }
}

fn map_of(changes: &[Change]) -> Result<RegionMap> {
    let entries: Vec<Entry> = changes
        .iter()
        .map(|change| {
            let kind = match change.data {
                Some((id, Some(location))) => EntryKind::Data { chunk: ChunkRef { id, location }, skip: 0 },
                _ => EntryKind::Zero,
            };
            Entry { start: change.start, len: change.len, kind }
        })
        .collect();
    let region_len = u32::try_from(landfall_vault::REGION_BYTES).unwrap_or(u32::MAX);
    RegionMap::checked(&entries, region_len)
        .map_err(|e| Error::with_source(ErrorKind::Bug, "a captured region is no map", e))
}
