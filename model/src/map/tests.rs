//! A region map against a slow oracle: an array that says of each byte which chunk and which byte of it stands there.

use proptest::prelude::*;

use super::*;

const REGION: u32 = 256;

fn chunk(n: u8, raw_len: u32) -> ChunkRef {
    let location = Location {
        source: Source::Segment(SegmentId::from_bytes([n; 32])),
        offset: 0,
        stored_len: 32,
        raw_len,
        codec: Codec::Raw,
        epoch: EpochId::INDEX,
    };
    ChunkRef { id: ChunkId::from_bytes([n; 32]), location }
}

fn oracle_of(map: &RegionMap, len: u32) -> Vec<Option<(u8, u32)>> {
    let mut bytes = vec![None; len as usize];
    for entry in map.iter() {
        for i in 0..entry.len {
            bytes[(entry.start + i) as usize] = match entry.kind {
                EntryKind::Data { chunk, skip } => Some((chunk.id.as_bytes()[0], skip + i)),
                EntryKind::Zero | EntryKind::Excluded => None,
            };
        }
    }
    bytes
}

proptest! {
    #[test]
    fn laying_entries_over_each_other_is_writing_bytes(
        writes in prop::collection::vec((0u32..REGION, 1u32..64, any::<bool>()), 0..40), cut in 0u32..=REGION
    ) {
        let mut map = RegionMap::default();
        let mut oracle = vec![None; REGION as usize];
        for (n, (start, len, zero)) in (1u8..).zip(writes) {
            let len = len.min(REGION - start);
            let kind = if zero { EntryKind::Zero } else { EntryKind::Data { chunk: chunk(n, len), skip: 0 } };
            map.put(Entry { start, len, kind });
            for i in 0..len {
                oracle[(start + i) as usize] = (!zero).then_some((n, i));
            }
        }
        prop_assert_eq!(oracle_of(&map, REGION), oracle.clone());
        let covering = map.covering(REGION);
        prop_assert_eq!(covering.iter().map(|e| u64::from(e.len)).sum::<u64>(), u64::from(REGION));
        prop_assert!(RegionMap::checked(&covering, REGION).is_ok());
        let part: Vec<Entry> = map.within(Extent::between(u64::from(cut), u64::from(REGION))).collect();
        prop_assert!(part.iter().all(|e| e.start >= cut));
        map.truncate(cut);
        oracle[cut as usize..].fill(None);
        prop_assert_eq!(oracle_of(&map, REGION), oracle);
        prop_assert!(map.iter().all(|e| e.end() <= cut));
    }
}

#[test]
fn maps_from_outside_that_break_a_rule_are_refused() {
    let data = |start, len, skip| Entry { start, len, kind: EntryKind::Data { chunk: chunk(1, 8), skip } };
    let zero = |start, len| Entry { start, len, kind: EntryKind::Zero };
    let cases = [
        (vec![zero(0, 10), zero(9, 1)], MapError::Overlap { at: 9 }),
        (vec![zero(10, 2), zero(0, 2)], MapError::Overlap { at: 0 }),
        (vec![zero(0, 0)], MapError::Outside { at: 0 }),
        (vec![zero(REGION - 1, 2)], MapError::Outside { at: REGION - 1 }),
        (vec![zero(2, u32::MAX)], MapError::Outside { at: 2 }),
        (vec![data(0, 9, 0)], MapError::BeyondChunk { at: 0 }),
        (vec![data(0, 4, u32::MAX)], MapError::BeyondChunk { at: 0 }),
    ];
    for (entries, error) in cases {
        assert_eq!(RegionMap::checked(&entries, REGION), Err(error));
    }
}
