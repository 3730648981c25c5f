//! What to fetch: pure. Needs are grouped by chunk, sorted by where the chunks lie, and near ones share a request.

use std::collections::HashMap;

use landfall_model::{ChunkRef, Extent, Source};

/// A fetch is closed at this length: long enough that latency does not matter, short enough that eight of them are little memory.
pub(crate) const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes that nobody asked for are fetched where they are fewer than this between two that were: cheaper than a request.
pub(crate) const FETCH_GAP_MAX: u64 = 64 * 1024;

/// A run of a disk that needs bytes of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    /// Which of the disks.
    pub(crate) disk: usize,
    /// First byte on the disk.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u32,
    /// First byte within the chunk.
    pub(crate) skip: u32,
    /// Write only where the disk has other bytes: a part of a chunk has no name to compare with.
    pub(crate) compare: bool,
}

impl Place {
    pub(crate) fn extent(&self) -> Extent {
        Extent { start: self.start, len: u64::from(self.len) }
    }
}

/// A chunk and everything that needs it: runs of disks, or whoever waits for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wanted<P = Place> {
    pub(crate) chunk: ChunkRef,
    pub(crate) places: Vec<P>,
}

/// One request: a range of one object, with the chunks in it, ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fetch<P = Place> {
    pub(crate) source: Source,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) chunks: Vec<Wanted<P>>,
}

/// Plans the requests for a set of needs.
pub(crate) fn plan<P>(needs: impl IntoIterator<Item = (ChunkRef, P)>) -> Vec<Fetch<P>> {
    plan_within(needs, FETCH_BYTES_MAX)
}

/// The same with requests of at most so many bytes, unless one chunk has more.
pub(crate) fn plan_within<P>(needs: impl IntoIterator<Item = (ChunkRef, P)>, bytes_max: u64) -> Vec<Fetch<P>> {
    let mut wanted: HashMap<ChunkRef, Vec<P>> = HashMap::new();
    for (chunk, place) in needs {
        wanted.entry(chunk).or_default().push(place);
    }
    let mut wanted: Vec<Wanted<P>> = wanted.into_iter().map(|(chunk, places)| Wanted { chunk, places }).collect();
    wanted.sort_by_key(|w| (w.chunk.location.source, w.chunk.location.offset));
    let mut fetches: Vec<Fetch<P>> = Vec::new();
    for want in wanted {
        let at = &want.chunk.location;
        let (start, end) = (u64::from(at.offset), u64::from(at.offset) + u64::from(at.stored_len));
        let near = fetches.last_mut().filter(|f| {
            f.source == at.source && start <= f.end + FETCH_GAP_MAX && end.saturating_sub(f.start) <= bytes_max
        });
        match near {
            Some(fetch) => {
                fetch.end = fetch.end.max(end);
                fetch.chunks.push(want);
            }
            None => fetches.push(Fetch { source: at.source, start, end, chunks: vec![want] }),
        }
    }
    fetches
}

#[cfg(test)]
mod tests {
    use landfall_model::{ChunkId, Codec, EpochId, Location, SegmentId};
    use proptest::prelude::*;

    use super::*;

    fn chunk(segment: u8, offset: u32, stored_len: u32) -> ChunkRef {
        let location = Location {
            source: Source::Segment(SegmentId::from_bytes([segment; 32])),
            offset,
            stored_len,
            raw_len: 65536,
            codec: Codec::Raw,
            epoch: EpochId::INDEX,
        };
        let mut id = [segment; 32];
        id[..4].copy_from_slice(&offset.to_le_bytes());
        ChunkRef { id: ChunkId::from_bytes(id), location }
    }

    proptest! {
        #[test]
        fn every_need_is_fetched_once_within_bounds(needs in prop::collection::vec((0u8..3, 0u32..400, 0u64..50), 0..200)) {
            let needs: Vec<(ChunkRef, Place)> = needs
                .into_iter()
                .map(|(segment, slot, start)| {
                    let place = Place { disk: 0, start, len: 65536, skip: 0, compare: false };
                    (chunk(segment, slot * 40_000, 30_000), place)
                })
                .collect();
            let fetches = plan(needs.clone());
            let mut got: Vec<(ChunkRef, Place)> = Vec::new();
            let mut chunks = std::collections::HashSet::new();
            for fetch in &fetches {
                prop_assert!(fetch.end - fetch.start <= FETCH_BYTES_MAX);
                for wanted in &fetch.chunks {
                    let at = &wanted.chunk.location;
                    prop_assert!(at.source == fetch.source && u64::from(at.offset) >= fetch.start);
                    prop_assert!(u64::from(at.offset + at.stored_len) <= fetch.end);
                    prop_assert!(chunks.insert(wanted.chunk.id), "a chunk is fetched once");
                    got.extend(wanted.places.iter().map(|p| (wanted.chunk, *p)));
                }
            }
            let key = |n: &(ChunkRef, Place)| (n.0.id, n.1.start);
            let mut expected = needs;
            expected.sort_by_key(key);
            got.sort_by_key(key);
            prop_assert_eq!(got, expected);
            prop_assert!(fetches.windows(2).all(|w| (w[0].source, w[0].start) < (w[1].source, w[1].start)), "sorted access");
        }
    }

    #[test]
    fn chunks_that_lie_together_share_a_request_and_far_ones_do_not() {
        let place = Place { disk: 0, start: 0, len: 65536, skip: 0, compare: false };
        let together: Vec<_> = (0..100).map(|i| (chunk(1, i * 30_000, 30_000), place)).collect();
        assert_eq!(plan(together).len(), 1);
        assert_eq!(plan([(chunk(1, 0, 30_000), place), (chunk(1, 1_000_000, 30_000), place)]).len(), 2);
        assert_eq!(plan([(chunk(1, 0, 30_000), place), (chunk(2, 30_000, 30_000), place)]).len(), 2);
    }
}
