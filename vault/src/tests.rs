//! Segments, pages, bodies and records: what was written reads back, and no byte of it can be changed unnoticed.

use std::collections::BTreeMap;

use landfall_keys::{ContentSealer, RecoveryKey, SiteKey};
use landfall_model::{
    ChunkId, ChunkRef, Codec, Consistency, Counters, Digest, DiskMeta, Entry, EntryKind, EpochId, Generation, Location,
    MachineId, PointMeta, RegionMap, SegmentId, Seq, Source, Timeline, Timestamp, VaultId,
};
use proptest::prelude::*;

use crate::record::{self, Kind, Position};
use crate::segment::{self, SegmentBuilder};
use crate::{Body, Compressor, Decompressor, DiskPages, PageRef, decode_page, encode_page, wire};

const VAULT: VaultId = VaultId::from_bytes([3; 16]);

struct Keys {
    recovery: RecoveryKey,
    site: SiteKey,
}

fn keys() -> Keys {
    let recovery = RecoveryKey::generate(VAULT).expect("randomness");
    let site = SiteKey::generate(VAULT, recovery.root_public()).expect("randomness");
    Keys { recovery, site }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()[6]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_a_segment_holds_opens_with_the_recovery_key_and_checks_against_its_names() {
    let keys = keys();
    let domain = keys.site.domain_id(&"default".parse().expect("a name"));
    let sealer = ContentSealer::open_epoch(&keys.site, domain).expect("randomness");
    let names = keys.site.fingerprinter(domain);
    let mut compressor = Compressor::new(1).expect("a level");
    let chunks = [noise(16 * 1024, 1), vec![b'x'; 100_000], noise(1, 2), vec![0; 4096]];
    let mut open = SegmentBuilder::new(VAULT);
    for chunk in &chunks {
        let id = names.chunk_id(chunk);
        let compressed = compressor.compress(chunk);
        let (codec, raw_len) = (compressed.codec(), u32::try_from(chunk.len()).expect("small"));
        let seal = |out: &mut Vec<u8>| compressed.seal_content(&sealer, VAULT, id, out);
        open.push(id, raw_len, codec, sealer.epoch(), seal).expect("sealed");
    }
    let segment = open.finish(&keys.site).expect("finished");
    let directory = segment::open_whole(&keys.site, VAULT, segment.id, &segment.bytes).expect("opens");
    assert_eq!(directory, segment.chunks);

    let wrapped = sealer.wrapped_for(&keys.site, &keys.recovery.recipient()).expect("wrapped");
    let opener = keys.recovery.unwrap_epoch(&wrapped, &keys.site.public()).expect("unwrapped");
    let mut decompressor = Decompressor::new().expect("a context");
    for (chunk, expected) in directory.iter().zip(&chunks) {
        let start = chunk.location.offset as usize;
        let mut frame = segment.bytes[start..start + chunk.location.stored_len as usize].to_vec();
        let mut out = vec![0; expected.len()];
        decompressor.open_content(&opener, &names, VAULT, chunk, &mut frame, &mut out).expect("opens");
        assert_eq!(&out, expected);
        let other = ChunkRef { id: ChunkId::from_bytes([9; 32]), ..*chunk };
        let mut frame = segment.bytes[start..start + chunk.location.stored_len as usize].to_vec();
        assert!(
            decompressor.open_content(&opener, &names, VAULT, &other, &mut frame, &mut out).is_err(),
            "another's name"
        );
    }
}

#[test]
fn no_byte_of_a_segment_can_be_changed() {
    let keys = keys();
    let mut open = SegmentBuilder::new(VAULT);
    let frame = noise(100, 5);
    let push = |out: &mut Vec<u8>| {
        out.extend_from_slice(&frame);
        Ok(())
    };
    open.push(ChunkId::from_bytes([1; 32]), 68, Codec::Raw, EpochId::from_bytes([2; 16]), push).expect("pushed");
    let segment = open.finish(&keys.site).expect("finished");
    for at in 0..segment.bytes.len() {
        let mut bytes = segment.bytes.to_vec();
        bytes[at] ^= 1;
        assert!(segment::open_whole(&keys.site, VAULT, segment.id, &bytes).is_err(), "byte {at} by name");
        // An attacker who also renames it fails at the directory, unless only ciphertext of frames changed: that is the frame's own tag.
        let renamed = SegmentId::from_bytes(*blake3::hash(&bytes).as_bytes());
        let opened = segment::open_whole(&keys.site, VAULT, renamed, &bytes);
        assert_eq!(opened.is_ok(), (32..132).contains(&at), "byte {at} renamed");
    }
    for len in 0..segment.bytes.len() {
        let cut = &segment.bytes[..len];
        let renamed = SegmentId::from_bytes(*blake3::hash(cut).as_bytes());
        assert!(segment::open_whole(&keys.site, VAULT, renamed, cut).is_err(), "cut to {len}");
    }
}

fn chunk_ref() -> impl Strategy<Value = ChunkRef> {
    let source = prop_oneof![
        any::<[u8; 32]>().prop_map(|id| Source::Segment(SegmentId::from_bytes(id))),
        (1u32..9, 1u64..99).prop_map(|(t, s)| Source::Point(Timeline(t), Seq(s))),
    ];
    (any::<[u8; 32]>(), source, any::<u32>(), 1u32..=262_144, any::<bool>(), any::<[u8; 16]>()).prop_map(
        |(id, source, offset, raw_len, packed, epoch)| {
            let codec = if packed { Codec::Zstd } else { Codec::Raw };
            let epoch = EpochId::from_bytes(epoch);
            let location = Location { source, offset, stored_len: raw_len.min(40) + 32, raw_len, codec, epoch };
            ChunkRef { id: ChunkId::from_bytes(id), location }
        },
    )
}

fn region_map() -> impl Strategy<Value = RegionMap> {
    prop::collection::vec((0u32..2000, 1u32..64, prop::option::of(chunk_ref())), 0..40).prop_map(|writes| {
        let mut map = RegionMap::default();
        for (start, len, chunk) in writes {
            let kind = match chunk {
                Some(chunk) => EntryKind::Data { chunk, skip: 0 },
                None => EntryKind::Zero,
            };
            let len = match kind {
                EntryKind::Data { chunk, .. } => len.min(chunk.location.raw_len.div_ceil(512)) * 512,
                _ => len * 512,
            };
            let len = match kind {
                EntryKind::Data { chunk, .. } => len.min(chunk.location.raw_len),
                _ => len,
            };
            map.put(Entry { start: start * 65536, len, kind });
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_page_reads_back_and_damage_is_an_error_not_a_panic(map in region_map(), at: prop::sample::Index, flip in 1u8..) {
        let bytes = encode_page(&map).expect("encodes");
        prop_assert_eq!(decode_page(&bytes).expect("decodes"), map);
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] ^= flip;
        let _ = decode_page(&damaged);
        prop_assert!(decode_page(&bytes[..at.index(bytes.len())]).is_err(), "cut short");
    }

    #[test]
    fn a_packed_block_reads_back_within_its_bound(raw in prop::collection::vec(0u8..4, 0..3000)) {
        let block = wire::pack_block(&raw);
        prop_assert_eq!(wire::unpack_block(&block, raw.len(), "block").expect("unpacks"), raw.clone());
        if !raw.is_empty() {
            prop_assert!(wire::unpack_block(&block, raw.len() - 1, "block").is_err(), "larger than allowed");
        }
    }
}

fn meta() -> PointMeta {
    let disk = DiskMeta {
        name: "root".parse().expect("a name"),
        size: 1 << 30,
        sector_size: 512,
        boot: true,
        excluded: false,
        source: "image".to_owned(),
        identity: "file".to_owned(),
        base_seq: Seq(1),
    };
    PointMeta {
        machine: "web-01".parse().expect("a name"),
        domain: "default".parse().expect("a name"),
        source_time: Timestamp::from_millis(1_700_000_000_123),
        store_time: Timestamp::from_millis(1_700_000_001_000),
        consistency: Consistency::Crash,
        gateway: landfall_model::GatewayId::from_bytes([4; 16]),
        shape: None,
        disks: vec![disk],
        counters: Counters::default(),
        pinned: false,
        cycle: None,
        group: None,
        hooks: Vec::new(),
    }
}

fn body() -> Body {
    let page = RegionMap::checked(&[Entry { start: 0, len: 4096, kind: EntryKind::Zero }], 1 << 27).expect("a map");
    let segment = SegmentId::from_bytes([7; 32]);
    let location = Location {
        source: Source::Segment(segment),
        offset: 32,
        stored_len: 100,
        raw_len: 500,
        codec: Codec::Zstd,
        epoch: EpochId::INDEX,
    };
    let stored = PageRef::Stored(ChunkRef { id: ChunkId::from_bytes([8; 32]), location });
    let pages: DiskPages = BTreeMap::from([(0, PageRef::inline(&encode_page(&page).expect("a page"))), (5, stored)]);
    Body { meta: meta(), segments: BTreeMap::from([(segment, 1000)]), disks: vec![pages] }
}

fn position() -> Position {
    Position {
        kind: Kind::Point,
        vault: VAULT,
        machine: MachineId::from_bytes([6; 16]),
        timeline: Timeline(1),
        parent_timeline: Timeline(1),
        seq: Seq(2),
        generation: Generation(1),
        previous: Digest::from_bytes([5; 32]),
    }
}

#[test]
fn no_byte_of_a_record_can_be_changed() {
    let keys = keys();
    let body = body();
    let signed =
        record::encode(&keys.site, position(), &body.encode().expect("encodes"), b"inline frames").expect("signed");
    let signers = [keys.site.public()];
    let read = record::decode(&keys.site, &signers, &signed.bytes).expect("decodes");
    assert_eq!((read.header.position, read.digest), (position(), signed.digest));
    assert_eq!(Body::decode(&read.body).expect("a body"), body);
    let head = usize::try_from(read.header.inline_start()).expect("small");
    assert_eq!(&signed.bytes[head..], b"inline frames");
    for at in 0..head {
        let mut bytes = signed.bytes.clone();
        bytes[at] ^= 0x10;
        assert!(record::check_signature(&signers, &bytes).is_err(), "byte {at}");
    }
    for len in 0..head {
        assert!(record::check_signature(&signers, &signed.bytes[..len]).is_err(), "cut to {len}");
    }
    let stranger = self::keys();
    assert!(record::check_signature(&[stranger.site.public()], &signed.bytes).is_err(), "another's key");
}

#[test]
fn a_body_that_is_cut_or_damaged_is_an_error_not_a_panic() {
    let bytes = body().encode().expect("encodes");
    for len in 0..bytes.len() {
        assert!(Body::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
    for at in 0..bytes.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let _ = Body::decode(&damaged);
        }
    }
}
