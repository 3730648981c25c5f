//! The cutter against what FORMAT.md section 10 says, on content with zero runs of all lengths, fed in pieces of all sizes.

use landfall_keys::{RecoveryKey, SiteKey};
use landfall_model::VaultId;
use proptest::prelude::*;

use super::*;

fn secret() -> CutSecret {
    let vault = VaultId::from_bytes([1; 16]);
    let recovery = RecoveryKey::generate(vault).expect("randomness");
    let site = SiteKey::generate(vault, recovery.root_public()).expect("randomness");
    site.cut_secret(site.domain_id(&"default".parse().expect("a name")))
}

/// Start, length, and the bytes of data pieces.
type Cut = Vec<(u32, u32, Option<Vec<u8>>)>;

fn cut(cutter: &mut Cutter, start: u32, data: &[u8], feed: usize) -> Cut {
    let mut out = Cut::new();
    let mut emit = |piece: Piece<'_>| {
        out.push(match piece {
            Piece::Zero { start, len } => (start, len, None),
            Piece::Data { start, bytes } => (start, to_u32(bytes.len()), Some(bytes.to_vec())),
        });
        Ok(())
    };
    cutter.begin_run(start);
    for part in data.chunks(feed) {
        cutter.feed(part, &mut emit).expect("emit does not fail");
    }
    cutter.end_run(&mut emit).expect("emit does not fail");
    out
}

/// Sectors that are zero or seeded noise, as a disk has them.
fn content(plan: &[(bool, usize)], seed: u64, tail: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::new();
    for &(zero, sectors) in plan {
        for _ in 0..sectors * SECTOR {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out.push(if zero { 0 } else { state.to_le_bytes()[7] | 1 });
        }
    }
    out.truncate(out.len().saturating_sub(tail));
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn pieces_are_the_run_whatever_the_feed(
        plan in prop::collection::vec((any::<bool>(), 1usize..40), 1..8), seed: u64, tail in 0usize..SECTOR, feed in 1usize..64
    ) {
        let data = content(&plan, seed, tail);
        let mut cutter = Cutter::new(secret());
        let whole = cut(&mut cutter, 8192, &data, data.len().max(1));
        let mut at = 8192;
        let mut rebuilt = Vec::new();
        for (start, len, bytes) in &whole {
            prop_assert_eq!(*start, at);
            at += len;
            match bytes {
                None => {
                    prop_assert!(*len as usize >= ZERO_RUN);
                    rebuilt.resize(rebuilt.len() + *len as usize, 0);
                }
                Some(bytes) => {
                    prop_assert!(bytes.len() <= MAX && !bytes.is_empty());
                    rebuilt.extend_from_slice(bytes);
                }
            }
        }
        prop_assert!(rebuilt == data);
        prop_assert_eq!(cut(&mut cutter, 8192, &data, feed * SECTOR), whole);
    }
}

#[test]
fn the_average_chunk_is_64_kib_and_equal_content_is_cut_equally_wherever_it_lies() {
    let mut cutter = Cutter::new(secret());
    let data = content(&[(false, 8192)], 42, 0);
    let here = cut(&mut cutter, 0, &data, 1 << 20);
    let average = data.len() / here.len();
    assert!((52_000..76_000).contains(&average), "average chunk is {average} bytes");
    let moved = [content(&[(false, 77)], 7, 0), data].concat();
    let there = cut(&mut cutter, 1 << 20, &moved, 1 << 20);
    let known: std::collections::HashSet<_> = here.into_iter().map(|(_, _, bytes)| bytes).collect();
    let again = there.iter().filter(|(_, _, bytes)| known.contains(bytes)).count();
    assert!(again * 100 > there.len() * 95, "{again} of {} chunks were recognised", there.len());
}

#[test]
fn short_zero_runs_stay_in_their_chunk_and_long_ones_do_not() {
    let mut cutter = Cutter::new(secret());
    let short = cut(&mut cutter, 0, &content(&[(false, 1), (true, 3), (false, 1)], 3, 0), SECTOR);
    assert!(short.iter().all(|(_, _, bytes)| bytes.is_some()), "three zero sectors are data");
    let long = cut(&mut cutter, 0, &content(&[(false, 1), (true, 4), (false, 1)], 3, 0), SECTOR);
    assert_eq!(long.iter().filter(|(_, len, bytes)| bytes.is_none() && *len as usize == ZERO_RUN).count(), 1);
}
