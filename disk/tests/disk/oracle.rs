//! Random changes by several threads to an image, and the same changes to bytes in memory.

use std::path::Path;
use std::thread;

use landfall_disk::{AlignedBuf, Existing, Format, RawReader, Target};
use landfall_model::Extent;
use landfall_model::num::to_usize;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::{FORMATS, SIZES, judge};

const THREADS: usize = 3;

/// One round: the disk is cut at random places, and each piece is written, made zero or left alone.
#[derive(Clone, Debug)]
struct Round {
    cuts: Vec<u64>,
    /// One a piece, in turn.
    actions: Vec<u8>,
}

fn round() -> impl Strategy<Value = Round> {
    let cut = prop_oneof![any::<u64>(), any::<u64>().prop_map(|n| n & !0xfff), any::<u64>().prop_map(|n| n & !0xffff)];
    (prop::collection::vec(cut, 0..24), prop::collection::vec(any::<u8>(), 25))
        .prop_map(|(cuts, actions)| Round { cuts, actions })
}

impl Round {
    fn pieces(&self, size: u64) -> Vec<(Extent, u8)> {
        let mut cuts: Vec<u64> = self.cuts.iter().map(|cut| cut % size).chain([0, size]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<_> =
            cuts.windows(2).zip(&self.actions).map(|(w, &action)| (Extent::between(w[0], w[1]), action)).collect();
        // Neighbours, which may share a block, go to different threads and in any order.
        pieces.sort_by_key(|&(_, action)| action);
        pieces
    }

    fn apply(&self, target: &Target, oracle: &mut [u8]) {
        let pieces = self.pieces(oracle.len() as u64);
        thread::scope(|scope| {
            for worker in 0..THREADS {
                let mine = pieces.iter().skip(worker).step_by(THREADS);
                scope.spawn(move || mine.for_each(|&(piece, action)| act(target, piece, action)));
            }
        });
        for (piece, action) in pieces {
            let bytes = &mut oracle[to_usize(piece.start)..to_usize(piece.end())];
            match action % 4 {
                0 => {}
                1 => bytes.fill(0),
                _ => bytes.copy_from_slice(&content(piece, action)),
            }
        }
    }
}

fn content(piece: Extent, action: u8) -> Vec<u8> {
    crate::pattern(to_usize(piece.len), u64::from(action))
}

fn act(target: &Target, piece: Extent, action: u8) {
    match action % 4 {
        0 => {}
        1 => {
            let written = target.write_zeroes(piece).expect("zeroed");
            assert!(written <= piece.len);
        }
        2 => target.write_at(&content(piece, action), piece.start).expect("written"),
        _ => {
            let mut buf = AlignedBuf::new(to_usize(piece.len));
            buf.copy_from_slice(&content(piece, action));
            target.write_at(&buf, piece.start).expect("written");
        }
    }
    let mut seen = vec![0xee; to_usize(piece.len)];
    target.read_at(&mut seen, piece.start).expect("read back at once");
    if !action.is_multiple_of(4) {
        let wanted = if action % 4 == 1 { vec![0; seen.len()] } else { content(piece, action) };
        assert!(seen == wanted, "what a thread wrote is what it reads, {piece:?}");
    }
}

fn assert_target_holds(target: &Target, oracle: &[u8]) {
    let mut bytes = vec![0xee; oracle.len()];
    target.read_at(&mut bytes, 0).expect("read");
    assert!(bytes == oracle, "first difference at {:?}", bytes.iter().zip(oracle).position(|(a, b)| a != b));
    let whole = Extent { start: 0, len: oracle.len() as u64 };
    assert_holes_are_zero(&target.data_extents(whole).expect("extents"), oracle);
}

fn assert_holes_are_zero(data: &[Extent], oracle: &[u8]) {
    let mut at = 0;
    for extent in data.iter().chain([&Extent { start: oracle.len() as u64, len: 0 }]) {
        assert!(extent.start >= at, "ascending");
        assert!(
            oracle[to_usize(at)..to_usize(extent.start)].iter().all(|&b| b == 0),
            "data in a hole before {extent:?}"
        );
        at = extent.end();
    }
}

fn assert_file_holds(path: &Path, format: Format, oracle: &[u8]) {
    judge::assert_holds(path, format, oracle, oracle.len() as u64);
    if format == Format::Raw {
        let reader = RawReader::open(path).expect("opened");
        assert_eq!(reader.size(), oracle.len() as u64);
        let mut bytes = vec![0xee; oracle.len()];
        reader.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes == oracle);
        assert_holes_are_zero(&reader.data_extents(Extent { start: 0, len: u64::MAX }).expect("extents"), oracle);
    }
}

/// A new image, then the same image in another size, changed in place.
fn check(parent: &Path, format: Format, sizes: (u64, u64), rounds: &[Round]) {
    let folder = tempfile::tempdir_in(parent).expect("temporary folder");
    let path = folder.path().join("image");
    let mut oracle = Vec::new();
    for size in [sizes.0, sizes.1] {
        let target = Target::create_or_open(&path, format, size, Existing::Compare).expect("opened");
        oracle.resize(to_usize(target.size()), 0);
        assert_target_holds(&target, &oracle);
        rounds.iter().for_each(|round| round.apply(&target, &mut oracle));
        assert_target_holds(&target, &oracle);
        target.finish().expect("finished");
        assert_file_holds(&path, format, &oracle);
    }
}

fn for_random_changes(format: Format, parent: &Path, cases: u32) {
    let size = prop_oneof![prop::sample::select(&SIZES[..]), 1u64..3 << 20];
    let strategy = ((size.clone(), size), prop::collection::vec(round(), 1..3));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |(sizes, rounds)| {
        check(parent, format, sizes, &rounds);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_raw_image_is_the_bytes_that_several_threads_wrote() {
    for_random_changes(Format::Raw, &std::env::temp_dir(), 40);
}

#[test]
fn a_qcow2_image_is_the_bytes_that_several_threads_wrote() {
    for_random_changes(Format::Qcow2, &std::env::temp_dir(), 40);
}

#[test]
fn a_vhd_image_is_the_bytes_that_several_threads_wrote() {
    for_random_changes(Format::Vhd, &std::env::temp_dir(), 30);
}

#[test]
fn images_in_memory_file_systems_are_the_bytes_that_several_threads_wrote() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        eprintln!("SKIPPED: no /dev/shm");
        return;
    }
    FORMATS.into_iter().for_each(|format| for_random_changes(format, memory, 10));
}
