//! A crash between every two steps of a cycle, and what is decided after it.

use super::*;
use crate::fingerprints::BlockHash;
use landfall_model::Consistency;

fn id(n: u8) -> CycleId {
    CycleId::from_bytes([n; 16])
}

fn name() -> DiskName {
    "a".parse().expect("a name")
}

const BLOCKS: u64 = 8;

/// How far a cycle came before the crash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reached {
    Aside,
    JournalDurable,
    Pending,
    Applying,
    PartlyApplied,
    Applied,
    RangesWritten,
    Kept,
}

const ALL: [Reached; 8] = [
    Reached::Aside,
    Reached::JournalDurable,
    Reached::Pending,
    Reached::Applying,
    Reached::PartlyApplied,
    Reached::Applied,
    Reached::RangesWritten,
    Reached::Kept,
];

fn head(n: u8, base: Option<CycleId>, size: u64) -> JournalHead {
    JournalHead {
        cycle: id(n),
        base,
        parent: base,
        time: Timestamp::from_millis(i64::from(n)),
        consistency: Consistency::Crash,
        disks: vec![DiskState { name: name(), size }],
    }
}

fn hash(n: u8) -> BlockHash {
    BlockHash([n; HASH_BYTES])
}

/// Takes a cycle that changes block `n`, as far as this; the state is as after a crash then.
fn cycle(root: &Path, n: u8, full: bool, size: u64, reached: Reached) {
    let mut state = StateDir::open(root).expect("a state");
    let base = state.base().cycle.filter(|_| !full);
    let mut journal = state.begin(&head(n, base, size)).expect("a journal");
    journal.push(0, u64::from(n), hash(n)).expect("pushed");
    if reached == Reached::Aside {
        // A crash, unlike a drop, leaves it there.
        std::mem::forget(journal);
        return;
    }
    if reached == Reached::JournalDurable {
        journal.seal().expect("sealed");
        return;
    }
    state.seal(id(n), journal).expect("sealed");
    if reached == Reached::Pending {
        return;
    }
    state.mark_spooled().expect("marked");
    match reached {
        Reached::Applying => {}
        Reached::PartlyApplied => {
            let writer = fingerprints::Writer::open(&root.join("fingerprints/a"), size, full).expect("a writer");
            writer.put(u64::from(n), &hash(n).0).expect("written");
        }
        Reached::Applied => {
            state.apply(id(n)).expect("applied");
            fs::remove_file(state.ranges_path(id(n))).expect("not yet written");
        }
        Reached::RangesWritten => {
            state.apply(id(n)).expect("applied");
        }
        _ => state.complete().expect("completed"),
    }
}

fn known(state: &StateDir) -> Vec<BlockHash> {
    let reader = state.base().reader(&name()).expect("fingerprints");
    let mut reader = reader.expect("of this disk");
    reader
        .next(usize::try_from(BLOCKS).expect("few"))
        .expect("hashes")
        .chunks(HASH_BYTES)
        .map(BlockHash::read)
        .collect()
}

fn expected(changed: &[u8]) -> Vec<BlockHash> {
    let hash = |n: u64| u8::try_from(n).ok().filter(|n| changed.contains(n)).map_or(BlockHash::ZERO, hash);
    (0..BLOCKS).map(hash).collect()
}

const SIZE: u64 = BLOCKS * BLOCK_BYTES;

#[test]
fn a_crash_between_every_two_steps_leaves_the_cycle_before_or_the_whole_cycle() {
    for full in [false, true] {
        for reached in ALL {
            for spooled in [false, true] {
                let folder = tempfile::tempdir().expect("a folder");
                cycle(folder.path(), 1, true, SIZE, Reached::Kept);
                cycle(folder.path(), 2, full, SIZE, reached);
                // A gateway cannot have what was not sent to its end, and has what it said it has.
                if spooled && reached < Reached::Pending || !spooled && reached > Reached::Pending {
                    continue;
                }
                let mut state = StateDir::open(folder.path()).expect("a state");
                let parent = if spooled { id(2) } else { id(1) };
                let wanted = Plan::Incremental { parent, extra: Ranges::default(), adopt: false };
                assert_eq!(state.plan(Some(parent)).expect("a plan"), wanted, "{reached:?}, spooled: {spooled}");
                let changed: &[u8] = match (spooled, full) {
                    (false, _) => &[1],
                    (true, false) => &[1, 2],
                    (true, true) => &[2],
                };
                assert_eq!(known(&state), expected(changed), "{reached:?}, spooled: {spooled}");
                drop(state);
                let state = StateDir::open(folder.path()).expect("a state");
                assert_eq!((state.base().cycle, known(&state)), (Some(parent), expected(changed)), "opened again");
            }
        }
    }
}

#[test]
fn the_very_first_cycle_may_crash_too() {
    for reached in ALL {
        let folder = tempfile::tempdir().expect("a folder");
        cycle(folder.path(), 1, true, SIZE, reached);
        let mut state = StateDir::open(folder.path()).expect("a state");
        let plan = state.plan(Some(id(1))).expect("a plan");
        if reached < Reached::Pending {
            assert!(matches!(plan, Plan::Full { .. }), "{reached:?}");
        } else {
            let wanted = Plan::Incremental { parent: id(1), extra: Ranges::default(), adopt: false };
            assert_eq!(plan, wanted, "{reached:?}");
        }
    }
}

#[test]
fn another_gateway_is_given_what_changed_also_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 1..=4 {
        cycle(folder.path(), n, n == 1, SIZE, Reached::Kept);
    }
    cycle(folder.path(), 5, false, SIZE, Reached::PartlyApplied);
    let mut state = StateDir::open(folder.path()).expect("a state");
    let Plan::Incremental { parent, extra, .. } = state.plan(Some(id(3))).expect("a plan") else { panic!("known") };
    assert_eq!(parent, id(3));
    let ranges = extra.of(&name()).expect("ranges").iter().collect::<Vec<_>>();
    assert_eq!(ranges, [Extent { start: 4 * BLOCK_BYTES, len: 2 * BLOCK_BYTES }]);
}

#[test]
fn a_disk_that_shrank_counts_as_changed_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    cycle(folder.path(), 1, true, SIZE, Reached::Kept);
    cycle(folder.path(), 2, false, 5 * BLOCK_BYTES - 1, Reached::Kept);
    cycle(folder.path(), 3, false, SIZE, Reached::Kept);
    let mut state = StateDir::open(folder.path()).expect("a state");
    assert_eq!(known(&state), expected(&[1, 2, 3]));
    let Plan::Incremental { extra, .. } = state.plan(Some(id(1))).expect("a plan") else { panic!("known") };
    let set = extra.of(&name()).expect("ranges");
    assert!([2, 3, 4, 5, 6, 7].iter().all(|b| set.intersects(&Extent { start: b * BLOCK_BYTES, len: 1 })));
    assert!(!set.intersects(&Extent { start: 0, len: 2 * BLOCK_BYTES }));
}

#[test]
fn what_nothing_refers_to_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 1..=3 {
        cycle(folder.path(), n, n == 1, SIZE, Reached::Kept);
    }
    cycle(folder.path(), 4, false, SIZE, Reached::Aside);
    cycle(folder.path(), 5, false, SIZE, Reached::JournalDurable);
    let names = || {
        let entries = fs::read_dir(folder.path().join("cycles")).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    };
    let mut state = StateDir::open(folder.path()).expect("a state");
    assert_eq!(names(), [format!("{}.ranges", id(2)), format!("{}.ranges", id(3))]);
    assert_eq!(state.committed(id(2)).expect("noted"), Some(Timestamp::from_millis(2)));
    assert_eq!(state.committed(id(9)).expect("not known"), None);
    assert_eq!(names(), [format!("{}.ranges", id(3))]);
}

#[test]
fn lost_ranges_cost_older_parents_only() {
    let folder = tempfile::tempdir().expect("a folder");
    for n in 1..=4 {
        cycle(folder.path(), n, n == 1, SIZE, Reached::Kept);
    }
    fs::remove_file(folder.path().join(format!("cycles/{}.ranges", id(3)))).expect("lost");
    let mut state = StateDir::open(folder.path()).expect("a state");
    assert!(matches!(state.plan(Some(id(2))).expect("a plan"), Plan::Full { .. }));
    assert!(matches!(state.plan(Some(id(3))).expect("a plan"), Plan::Incremental { .. }));
}

#[test]
fn a_damaged_journal_of_a_spooled_cycle_means_everything() {
    let folder = tempfile::tempdir().expect("a folder");
    cycle(folder.path(), 1, true, SIZE, Reached::Kept);
    cycle(folder.path(), 2, false, SIZE, Reached::Pending);
    let path = folder.path().join(format!("cycles/{}.journal", id(2)));
    let mut bytes = fs::read(&path).expect("a journal");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("damaged");
    let mut state = StateDir::open(folder.path()).expect("a state");
    assert!(matches!(state.plan(Some(id(2))).expect("a plan"), Plan::Full { .. }));
    assert!(matches!(state.plan(Some(id(1))).expect("a plan"), Plan::Full { .. }), "half of it may be applied");
}

#[test]
fn times_of_cuts_ascend_whatever_the_clock_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut state = StateDir::open(folder.path()).expect("a state");
    let at = Timestamp::from_millis;
    assert_eq!(state.cut_time(at(1000)), at(1000));
    assert_eq!(state.cut_time(at(1000)), at(1001));
    assert_eq!(state.cut_time(at(5)), at(1002));
    state.save().expect("saved");
    drop(state);
    let mut state = StateDir::open(folder.path()).expect("a state");
    assert_eq!(state.cut_time(at(5)), at(1003));
    assert_eq!(state.cut_time(at(2000)), at(2000));
}

#[test]
fn only_the_owner_may_read_the_state() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("state");
    cycle(&root, 1, true, SIZE, Reached::Kept);
    cycle(&root, 2, false, SIZE, Reached::Pending);
    let mode = |path: &str| fs::metadata(root.join(path)).expect("there").permissions().mode() & 0o077;
    for path in ["", "key", "state.json", "lock", "fingerprints/a", &format!("cycles/{}.journal", id(2))] {
        assert_eq!(mode(path), 0, "{path}");
    }
}
