//! Two points of a machine that wait become one: the moment and the disks of the later, the place of the earlier.
//!
//! ```text
//!   waiting   12  13  14 ... 43  44        a new cycle: 45
//!                                 `-- 44 has the bytes of 45; what only the old 44 referred to need not be uploaded
//! ```
//! No content is opened: pages are laid over each other. Frames that stood inline are copied as they are, and so are those of segments
//! of which little is left: then the rest of these need not be kept and uploaded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use landfall_model::num::to_usize;
use landfall_model::{
    ChunkId, ChunkRef, Consistency, Counters, DiskMeta, Entry, EntryKind, Error, ErrorKind, Location, PointMeta,
    RegionMap, Result, SegmentId, Source, Timestamp,
};
use landfall_vault::segment::SegmentBuilder;
use landfall_vault::{
    Body, Machine, Point, Position, REGION_BYTES, SignedPoint, layout, load_page, now, refers_only_to_stored,
};

use crate::Session;
use crate::maps::Maps;
use crate::spool::Spool;
use crate::tail;
use crate::upload::Uploader;
use crate::waiting::Last;

/// So many points may wait, each as its agent cut it. Beyond that, a point is kept for each part of so many of the time that is waited
/// for: however long the store is away, their number grows by its logarithm.
const KEPT_WHOLE: usize = 32;
/// A segment of the spool is copied when less than this part of it, one in so many bytes, is left.
const SPARSE: u64 = 2;
/// At most so many bytes of frames are copied for one point: they are in memory.
const COPIED_BYTES_MAX: u64 = 24 * 1024 * 1024;

/// Whether the last point that waits and one that was cut after it may and should be one. `pressed`: room in the spool is getting short. One
/// that is unfinished must.
pub(crate) fn is_due(last: &Last<'_>, next: &PointMeta, pressed: bool) -> bool {
    if last.meta.consistency == Consistency::Unfinished {
        return true;
    }
    if !may_vanish(last.meta, next) {
        return false;
    }
    let Some(before) = last.before else { return false };
    if pressed {
        return true;
    }
    let span = |from: Timestamp| i128::from(next.source_time.millis()) - i128::from(from.millis());
    last.count >= KEPT_WHOLE && span(before) * i128::try_from(KEPT_WHOLE).unwrap_or(1) <= span(last.first)
}

/// Whether two points are of the same disks: what a disk lost when it shrank is not in the pages.
pub(crate) fn same_disks(a: &[DiskMeta], b: &[DiskMeta]) -> bool {
    let same = |(a, b): (&DiskMeta, &DiskMeta)| {
        (&a.name, a.size, a.excluded, a.base_seq) == (&b.name, b.size, b.excluded, b.base_seq)
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// A point may vanish where the next is at least as consistent, nobody counts on it, and the disks did not change their shape.
fn may_vanish(last: &PointMeta, next: &PointMeta) -> bool {
    !last.pinned
        && last.group.is_none()
        && last.consistency < Consistency::Application
        && last.consistency <= next.consistency
        && last.domain == next.domain
        && same_disks(&last.disks, &next.disks)
}

/// Two points that follow each other, with their objects.
pub(crate) struct Pair<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) earlier: (&'a Point, &'a Bytes),
    pub(crate) later: (&'a Point, &'a Bytes),
}

/// Makes one point of two; returns it and the chunks that stand in it.
///
/// # Errors
/// Those of the spool and of old pages; `Corrupt` where a map refers to inline frames that are not there.
pub(crate) async fn merge(
    session: &Session,
    uploader: &Uploader,
    spool: &Spool,
    pair: &Pair<'_>,
) -> Result<(SignedPoint, Vec<ChunkRef>)> {
    let (earlier, later) = (pair.earlier.0, pair.later.0);
    let position = Position { generation: later.header.position.generation, ..earlier.header.position };
    let regions = regions_of(&[earlier, later]);

    // What is left of frames that would stand elsewhere, by where they are now.
    let mut left: BTreeMap<Source, BTreeMap<u32, ChunkRef>> = BTreeMap::new();
    for (disk, region) in &regions {
        for entry in pair.region(*disk, *region).await?.iter() {
            if let EntryKind::Data { chunk, .. } = entry.kind
                && pair.may_move(spool, &chunk.location)
            {
                left.entry(chunk.location.source).or_default().insert(chunk.location.offset, chunk);
            }
        }
    }
    let sparse = pair.sparse(&left);
    left.retain(|source, _| !matches!(source, Source::Segment(id) if !sparse.contains(id)));

    let mut frames = SegmentBuilder::new(session.vault_id());
    let mut copied = HashSet::new();
    for chunk in left.values().flat_map(BTreeMap::values).filter(|chunk| copied.insert(chunk.id)) {
        let (frame, at) = (pair.frame(&chunk.location).await?, &chunk.location);
        frames.push(chunk.id, at.raw_len, at.codec, at.epoch, |out| {
            out.extend_from_slice(&frame);
            Ok(())
        })?;
    }
    let (inline_bytes, inline) =
        tail::store(session, uploader, vec![frames], (position.timeline, position.seq)).await?;
    let mut places: HashMap<ChunkId, Location> = tail::places(&inline);
    for id in copied {
        if let std::collections::hash_map::Entry::Vacant(place) = places.entry(id) {
            let found = session.ledger.find(id)?;
            place.insert(found.ok_or_else(|| Error::new(ErrorKind::Bug, "a chunk that was copied has no place"))?);
        }
    }

    // Read twice, so that the maps of a large point are never in memory at once.
    let mut maps = Maps::new(session, later.meta().disks.len())?;
    for (disk, region) in regions {
        let map = pair.region(disk, region).await?;
        let moved = |at: &Location| left.contains_key(&at.source);
        let entries: Vec<Entry> = map.iter().map(|entry| relocated(entry, &moved, &places)).collect();
        let map = RegionMap::checked(&entries, u32::try_from(REGION_BYTES).unwrap_or(u32::MAX))
            .map_err(|e| Error::with_source(ErrorKind::Bug, "two maps are no map", e))?;
        maps.page(session, uploader, disk, region, map).await?;
    }
    let (disks, segments) = maps.finish(session, uploader).await?;
    let meta = PointMeta {
        store_time: now(),
        counters: sum(&earlier.meta().counters, &later.meta().counters),
        ..later.meta().clone()
    };
    let body = Body { meta, segments, disks };
    refers_only_to_stored(&body, |id| session.ledger.has_segment(id))?;
    Ok((pair.machine.sign(position, &body, &inline_bytes)?, inline))
}

fn sum(a: &Counters, b: &Counters) -> Counters {
    Counters {
        changed_bytes: a.changed_bytes + b.changed_bytes,
        read_bytes: a.read_bytes + b.read_bytes,
        new_chunk_bytes: a.new_chunk_bytes + b.new_chunk_bytes,
        stored_bytes: a.stored_bytes + b.stored_bytes,
    }
}

/// The regions that any of the points describes.
fn regions_of(points: &[&Point]) -> BTreeSet<(usize, u32)> {
    let of = |point: &&Point| -> Vec<(usize, u32)> {
        let disks = point.body.disks.iter().enumerate();
        disks.flat_map(|(disk, pages)| pages.keys().map(move |region| (disk, *region))).collect()
    };
    points.iter().flat_map(of).collect()
}

impl Pair<'_> {
    /// What both say of a region, the later over the earlier.
    async fn region(&self, disk: usize, region: u32) -> Result<RegionMap> {
        let mut map = RegionMap::default();
        for point in [self.earlier.0, self.later.0] {
            if let Some(page) = point.body.disks.get(disk).and_then(|pages| pages.get(&region)) {
                map.overlay(&load_page(self.machine, page).await?);
            }
        }
        Ok(map)
    }

    /// The one of the two in which frames of this place stand inline.
    fn inline_in(&self, at: &Location) -> Option<(&Point, &Bytes)> {
        let Source::Point(timeline, seq) = at.source else { return None };
        let of = |(point, _): &(&Point, &Bytes)| (point.timeline(), point.seq()) == (timeline, seq);
        [self.earlier, self.later].into_iter().find(of)
    }

    /// Whether a frame stands inline in one of the two, or in a segment that waits in the spool.
    fn may_move(&self, spool: &Spool, at: &Location) -> bool {
        match at.source {
            Source::Segment(id) => spool.holds(id),
            Source::Point(..) => self.inline_in(at).is_some(),
        }
    }

    /// Segments of which little is left: the emptiest first, as long as what is left of them is not too much to copy.
    fn sparse(&self, left: &BTreeMap<Source, BTreeMap<u32, ChunkRef>>) -> HashSet<SegmentId> {
        let size = |id: &SegmentId| {
            let listed = [self.earlier.0, self.later.0].into_iter().find_map(|point| point.body.segments.get(id));
            listed.copied().unwrap_or(0)
        };
        let mut sparse: Vec<(u64, SegmentId)> = Vec::new();
        for (source, chunks) in left {
            let bytes = chunks.values().map(|c| u64::from(c.location.stored_len)).sum::<u64>();
            if let Source::Segment(id) = source
                && bytes * SPARSE < size(id)
            {
                sparse.push((bytes, *id));
            }
        }
        sparse.sort_unstable();
        let mut room = COPIED_BYTES_MAX;
        let fits = |(bytes, id): (u64, SegmentId)| {
            room = room.checked_sub(bytes)?;
            Some(id)
        };
        sparse.into_iter().map_while(fits).collect()
    }

    /// The bytes of a frame.
    async fn frame(&self, at: &Location) -> Result<Bytes> {
        let missing = || Error::corrupt("a frame that a map names is not where it says");
        if let Source::Segment(id) = at.source {
            let (start, end) = (u64::from(at.offset), u64::from(at.offset) + u64::from(at.stored_len));
            let bytes = self.machine.vault().segment_range(&layout::segment(id), start, end).await?;
            return bytes.ok_or_else(missing);
        }
        let (point, bytes) = self.inline_in(at).ok_or_else(missing)?;
        let start = to_usize(point.header.inline_start()) + at.offset as usize;
        let end = start + at.stored_len as usize;
        if end <= bytes.len() { Ok(bytes.slice(start..end)) } else { Err(missing()) }
    }
}

/// The entry, with its chunk where that lies now.
fn relocated(entry: &Entry, moved: &dyn Fn(&Location) -> bool, places: &HashMap<ChunkId, Location>) -> Entry {
    match entry.kind {
        EntryKind::Data { chunk, skip } if moved(&chunk.location) => {
            let location = places.get(&chunk.id).copied().unwrap_or(chunk.location);
            Entry { kind: EntryKind::Data { chunk: ChunkRef { id: chunk.id, location }, skip }, ..*entry }
        }
        _ => *entry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use landfall_model::{GatewayId, Seq};

    fn meta(time: i64) -> PointMeta {
        PointMeta {
            machine: "web".parse().expect("a name"),
            domain: "default".parse().expect("a name"),
            source_time: Timestamp::from_millis(time),
            store_time: Timestamp::from_millis(time),
            consistency: Consistency::Crash,
            gateway: GatewayId::from_bytes([1; 16]),
            shape: None,
            disks: vec![DiskMeta {
                name: "root".parse().expect("a name"),
                size: 1 << 30,
                sector_size: 512,
                boot: true,
                excluded: false,
                source: "image".to_owned(),
                identity: "a".to_owned(),
                base_seq: Seq(1),
            }],
            counters: Counters::default(),
            pinned: false,
            cycle: None,
            group: None,
            hooks: Vec::new(),
        }
    }

    /// What waits after so many cycles, one each second, while nothing is committed.
    fn waiting_after(cycles: i64) -> Vec<i64> {
        let mut waiting: Vec<i64> = Vec::new();
        for time in 0..cycles {
            let due = waiting.last().is_some_and(|last| {
                let last_meta = meta(*last);
                let before = waiting.len().checked_sub(2).map(|at| Timestamp::from_millis(waiting[at]));
                let first = Timestamp::from_millis(waiting[0]);
                is_due(&Last { meta: &last_meta, before, first, count: waiting.len() }, &meta(time), false)
            });
            if due {
                waiting.pop();
            }
            waiting.push(time);
        }
        waiting
    }

    #[test]
    fn however_long_the_store_is_away_few_points_wait_and_their_distances_grow_with_their_age() {
        assert_eq!(waiting_after(60).len(), 60, "a short outage costs no point");
        let (hour, day, days) = (waiting_after(3600), waiting_after(86_400), waiting_after(4 * 86_400));
        assert!(hour.len() < 220 && day.len() < 330 && days.len() < 380, "{} {} {}", hour.len(), day.len(), days.len());
        for waiting in [&hour, &day, &days] {
            // No gap is longer than a part of the time until then, but for the cycle itself.
            assert!(waiting.windows(2).all(|w| w[1] - w[0] <= w[1] / 32 + 2), "{waiting:?}");
        }
        assert_eq!(days.last(), Some(&(4 * 86_400 - 1)), "the newest cycle is always there");
    }

    #[test]
    fn a_point_that_somebody_counts_on_never_vanishes() {
        let due = |last: &PointMeta, next: &PointMeta| {
            let first = Timestamp::from_millis(0);
            is_due(&Last { meta: last, before: Some(first), first, count: 100 }, next, true)
        };
        let (last, next) = (meta(1), meta(2));
        assert!(due(&last, &next));
        assert!(!due(&PointMeta { pinned: true, ..last.clone() }, &next));
        let application = |meta: &PointMeta| PointMeta { consistency: Consistency::Application, ..meta.clone() };
        assert!(!due(&application(&last), &application(&next)));
        assert!(due(&last, &application(&next)), "what is better may take its place");
        let frozen = PointMeta { consistency: Consistency::Filesystem, ..last.clone() };
        assert!(!due(&frozen, &next), "a crash-consistent one does not take the place of a better one");
        for change in [
            |disk: &mut DiskMeta| disk.size += 512,
            |disk: &mut DiskMeta| disk.excluded = true,
            |disk: &mut DiskMeta| disk.base_seq = Seq(7),
        ] {
            let mut other = next.clone();
            change(&mut other.disks[0]);
            assert!(!due(&last, &other), "the pages of both do not say what was in between");
        }
        let alone = Last { meta: &last, before: None, first: Timestamp::from_millis(1), count: 1 };
        assert!(!is_due(&alone, &next, true), "the only one is about to be committed");
    }
}
