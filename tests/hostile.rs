//! A store that lies: every object of a vault changed, cut, swapped, replaced and deleted. `verify` finds each, and no disk ever
//! comes back with wrong bytes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "support/small.rs"]
mod small;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use landfall_tests::landfall::{Site, binary, exit, number, strs};
use landfall_tests::{disks, tools};
use landfall_vault::layout::{self, Name};
use small::Small;
use support::{Dice, KIB, MIB, REGION, Story, copy_tree, replicate_in, try_replicate_in, walk};

#[test]
fn a_flipped_byte_in_any_object_is_found_and_no_disk_comes_back_wrong() {
    let small = Small::full();
    let mut dice = Dice::new(41);
    let mut story = Story::new(&dice);
    for object in small.objects() {
        let right = small.read(&object);
        let len = right.len();
        let mut places = vec![0, len / 2, len - 1];
        places.push(dice.below(len));
        // The headers are small and full of lengths.
        places.push(dice.below(len.min(176)));
        places.sort_unstable();
        places.dedup();
        for at in places {
            let mut wrong = right.clone();
            wrong[at] ^= 1 << dice.below(8);
            story.tell(format!("{object}: byte {at} of {len} is {:02x}, not {:02x}", wrong[at], right[at]));
            small.write(&object, &wrong);
            small.assert_found(&object, &format!("byte {at} flipped"), &right);
        }
    }
    small.check();
}

#[test]
fn an_epoch_key_that_says_it_is_of_a_later_format_is_damage_of_its_own_chunks() {
    let small = Small::full();
    let mut affected = 0;
    for object in small.objects().into_iter().filter(|o| o.starts_with("epochs/")) {
        let right = small.read(&object);
        let mut wrong = right.clone();
        wrong[8] = 2;
        small.write(&object, &wrong);
        let what = format!("{object}: format 2");
        assert_eq!(small.verify().code(), Some(exit::CORRUPT), "{what}");
        for (moment, code, ran) in small.runs(&what) {
            if code != exit::DONE {
                affected += 1;
                assert!(ran.stderr.contains(&format!("point {}", moment.seq)), "{what}: where?\n{}", ran.story());
                small.assert_salvaged(moment, &what);
            }
        }
        small.write(&object, &right);
    }
    assert!(affected > 0, "no epoch is needed by any point: the test shows nothing");
}

#[test]
fn an_object_that_is_a_byte_too_short_is_found() {
    let small = Small::full();
    for object in small.objects().into_iter() {
        let right = small.read(&object);
        small.write(&object, &right[..right.len() - 1]);
        small.assert_found(&object, "a byte too short", &right);
    }
    small.check();
}

#[test]
fn an_object_that_is_a_byte_too_long_is_found() {
    let small = Small::full();
    for object in small.objects().into_iter() {
        let right = small.read(&object);
        small.write(&object, &[&right[..], &[7]].concat());
        small.assert_found(&object, "a byte too long", &right);
    }
    small.check();
}

#[test]
fn an_object_that_was_cut_in_half_or_emptied_is_damage_and_not_a_store_that_is_down() {
    let small = Small::full();
    for object in small.objects() {
        let right = small.read(&object);
        small.write(&object, &right[..right.len() / 2]);
        small.assert_found(&object, "cut in half", &right);
        small.write(&object, &[]);
        small.assert_found(&object, "emptied", &right);
    }
    small.check();
}

#[test]
fn two_objects_that_were_swapped_are_found() {
    let small = Small::full();
    let other = Small::full();
    let kind = |object: &str| layout::parse(object).map(|name| std::mem::discriminant(&name));
    let objects = small.objects();
    for (n, object) in objects.iter().enumerate() {
        let right = small.read(object);
        // The next object of its kind, in whatever machine, and one of the same kind of another vault.
        let next = objects[n + 1..].iter().chain(&objects[..n]).find(|o| kind(o) == kind(object) && *o != object);
        if let Some(next) = next {
            let of_next = small.read(next);
            small.write(object, &of_next);
            small.write(next, &right);
            let ran = small.verify();
            assert_eq!(ran.code(), Some(exit::CORRUPT), "{object} and {next} swapped\n{}", ran.story());
            small.outcomes(&format!("{object} and {next} swapped"));
            small.write(next, &of_next);
            small.assert_found(object, &format!("replaced by {next}"), &right);
        }
        let foreign = other.objects().into_iter().find(|o| kind(o) == kind(object)).unwrap();
        small.write(object, &other.read(&foreign));
        small.assert_found(object, &format!("replaced by {foreign} of another vault"), &right);
        small.write(object, &right);
    }
    small.check();
}

#[test]
fn an_object_that_was_deleted_is_found() {
    let small = Small::full();
    for object in small.objects().into_iter().filter(|o| !is_heartbeat(o)) {
        let right = small.read(&object);
        fs::remove_file(small.vault().join(&object)).unwrap();
        small.assert_found(&object, "deleted", &right);
    }
    small.check();
}

/// What need not be there: one that is gone is no other than one that nobody renews.
fn is_heartbeat(object: &str) -> bool {
    matches!(layout::parse(object), Some(Name::Heartbeat(_)))
}

fn heartbeats(small: &Small) -> Vec<String> {
    small.objects().into_iter().filter(|o| is_heartbeat(o)).collect()
}

#[test]
fn a_heartbeat_that_was_rolled_back_or_deleted_harms_nothing() {
    let mut small = Small::full();
    assert_eq!(heartbeats(&small).len(), 2, "one for each gateway");
    for (n, past) in small.past.clone().iter().enumerate() {
        for object in &heartbeats(&small) {
            let right = small.read(object);
            match fs::read(past.join(object)) {
                Ok(older) => small.write(object, &older),
                Err(_) => fs::remove_file(small.vault().join(object)).unwrap(),
            }
            let what = format!("{object} is that of after point {n}");
            // Advice: an older one is no other than one that was not renewed, and is not told apart.
            small.verify().json();
            assert!(small.outcomes(&what).values().all(|code| *code == exit::DONE), "{what}");
            small.write(object, &right);
        }
    }
    // And the gateway goes on.
    let state = small.state();
    disks::write_at(&small.disk("db", "root"), 0, b"more");
    small.point(&state, "db", &["root"]);
    small.check();
}

#[test]
fn damaged_and_missing_heartbeats_do_not_stop_protection() {
    let mut small = Small::full();
    let (state, other) = (small.state(), small.site.folder().join("state-other"));
    for object in heartbeats(&small) {
        let mut wrong = small.read(&object);
        let middle = wrong.len() / 2;
        wrong[middle] ^= 1;
        small.write(&object, &wrong);
    }
    disks::write_at(&small.disk("db", "root"), 0, b"more");
    small.point(&state, "db", &["root"]);
    // Each gateway has put its own right; of another that one cannot be read, or is not there, nothing is known: it is waited for.
    small.point(&state, "web", &["root", "data"]);
    for object in heartbeats(&small) {
        fs::remove_file(small.vault().join(&object)).unwrap();
    }
    small.point(&other, "db", &["root"]);
    small.check();
}

// Rollback.

/// Names and contents of everything in the vault, to see that nothing was written.
fn snapshot(small: &Small) -> BTreeMap<String, Vec<u8>> {
    // Who writes is claimed before the points are looked at; that overwrites nothing but the heartbeat.
    let own = |o: &String| !o.contains("/generations/") && !is_heartbeat(o);
    small.objects().into_iter().filter(own).map(|o| (o.clone(), small.read(&o))).collect()
}

/// The site knows that the vault is not what it was, and writes nothing over it.
#[track_caller]
fn assert_rollback_is_seen(small: &Small, what: &str) {
    let ran = small.verify();
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{what}: verify\n{}", ran.story());
    assert!(ran.stdout.contains("roll"), "{what}: it does not say that the vault was rolled back\n{}", ran.story());
    let before = snapshot(small);
    let (root, data) = (small.disk("web", "root"), small.disk("web", "data"));
    let ran = try_replicate_in(&small.site, &small.state(), "web", &[("root", &root), ("data", &data)], &[]);
    ran.assert_refused(exit::CORRUPT, &["rolled back", "verify"]);
    assert!(snapshot(small) == before, "{what}: refused, and something was written all the same");
    // Once more: a refusal does not make it right.
    let ran = try_replicate_in(&small.site, &small.state(), "web", &[("root", &root), ("data", &data)], &[]);
    ran.assert_refused(exit::CORRUPT, &["rolled back"]);
    assert_eq!(small.verify().code(), Some(exit::CORRUPT), "{what}: a verify has made the site forget");
}

/// As [`Small::full`], with the newest point of "web" by the site's own gateway.
fn with_newest_point_of_the_site() -> Small {
    let mut small = Small::full();
    let state = small.state();
    disks::write_at(&small.disk("web", "data"), 90_000, b"the newest");
    small.point(&state, "web", &["root", "data"]);
    small
}

#[test]
fn a_vault_that_was_rolled_back_is_seen_by_the_site_and_not_written_to() {
    let small = with_newest_point_of_the_site();
    let newest = small.past.len() - 1;
    for past in [newest - 1, 3, 1, 0] {
        copy_tree(&small.past[past], &small.vault());
        assert_rollback_is_seen(&small, &format!("the vault is that of after its point {past}"));
    }
    copy_tree(&small.past[newest], &small.vault());
    small.check();
}

#[test]
fn a_vault_whose_newest_point_was_deleted_is_seen_by_the_site_and_not_written_to() {
    let small = with_newest_point_of_the_site();
    let newest = small.objects().into_iter().filter(|o| o.contains("/points/0000000000000005")).collect::<Vec<_>>();
    assert_eq!(newest.len(), 1, "{newest:?}");
    fs::remove_file(small.vault().join(&newest[0])).unwrap();
    assert_rollback_is_seen(&small, "the newest point is deleted");
}

#[test]
fn a_vault_without_all_of_a_machine_is_seen_by_the_site() {
    let small = with_newest_point_of_the_site();
    for object in small.objects().iter().filter(|o| matches!(layout::parse(o), Some(Name::Point(..)))) {
        fs::remove_file(small.vault().join(object)).unwrap();
    }
    assert_rollback_is_seen(&small, "all points are deleted");
}

#[test]
fn a_vault_that_was_rolled_back_and_written_by_another_gateway_is_seen_by_the_site() {
    let site = Site::with_vault();
    let (disk, before, after) = (site.disk("disk.img"), site.disk("before.img"), site.disk("after.img"));
    let (other, past, back) = (site.folder().join("state-other"), site.folder().join("past"), site.disk("back.img"));
    disks::random(&disk, 300_000, 1);
    disks::copy(&disk, &before);
    site.replicate("web", &[("root", &disk)]);
    copy_tree(&site.vault_folder(), &past);
    // Point 2 of the site: its chunks stand in it, and the site's index knows where.
    disks::write_at(&disk, 100_000, &disks::seeded_bytes(2, 100_000));
    disks::copy(&disk, &after);
    site.replicate("web", &[("root", &disk)]);

    // A backup of the bucket is played back, and a gateway that knows nothing of the time after it takes its own point 2.
    copy_tree(&past, &site.vault_folder());
    disks::write_at(&before, 250_000, &disks::seeded_bytes(3, 40_000));
    let point = replicate_in(&site, &other, "web", &[("root", &before)], &[]);
    assert_eq!(number(&point, "seq"), 2);
    let ran = site.run(&strs(&site.as_customer(&["verify", "--deep"])));
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    assert!(ran.stdout.contains("rolled back"), "{}", ran.story());

    let ran = try_replicate_in(&site, &site.folder().join("state"), "web", &[("root", &disk)], &[]);
    if ran.code() == Some(exit::DONE) {
        // If it goes on, what it commits must be right at least.
        let rehydrated = site.try_rehydrate("web", &[("root", &back)], &["--point", "3"]);
        assert_eq!(rehydrated.code(), Some(exit::DONE), "it committed a point that is broken\n{}", rehydrated.story());
        disks::assert_same(&after, &back);
    }
    ran.assert_refused(exit::CORRUPT, &["rolled back"]);
}

// What is not one object.

/// Removes an object, and the folders that were made for it: a store has none.
fn remove(small: &Small, object: &str) {
    let (vault, file) = (small.vault(), small.vault().join(object));
    fs::remove_file(&file).unwrap();
    let folders = file.ancestors().skip(1).take_while(|folder| **folder != vault);
    let _ = folders.map(fs::remove_dir).take_while(Result::is_ok).count();
}

#[test]
fn an_object_that_nobody_knows_hides_no_point() {
    let small = Small::full();
    let machine = small.objects().iter().find_map(|o| match layout::parse(o) {
        Some(Name::Point(machine, ..)) => Some(machine),
        _ => None,
    });
    let machine = machine.unwrap();
    let timelines = layout::timelines(machine);
    for name in [
        "readme.txt".to_owned(),
        "segments/ab/readme".to_owned(),
        "machines/readme".to_owned(),
        format!("{timelines}/00000001/points/readme"),
        format!("{timelines}/00000001/readme"),
        format!("{timelines}/readme/readme"),
        format!("{timelines}/00000009/readme"),
        format!("{timelines}/00000009/points/readme"),
        format!("{}/readme", layout::generations(machine)),
    ] {
        let file = small.vault().join(&name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "nobody knows").unwrap();
        let codes = small.outcomes(&name);
        let verified = small.verify();
        let hidden = codes.values().any(|code| *code != exit::DONE);
        assert!(!hidden, "{name}: it hides points: {codes:?}, and verify says {:?}", verified.code());
        // A timeline that nobody committed to may be told of; the rest is none of ours.
        let told = name.contains("timelines/00000009") && verified.stdout.contains("timelines/00000009");
        assert!(told || verified.code() == Some(exit::DONE), "{name}\n{}", verified.story());
        remove(&small, &name);
    }
}

#[test]
fn a_point_that_was_copied_to_another_place_is_found_and_hides_no_other() {
    let small = Small::full();
    let points: Vec<String> =
        small.objects().into_iter().filter(|o| matches!(layout::parse(o), Some(Name::Point(..)))).collect();
    for from in &points {
        let Some(Name::Point(machine, timeline, seq)) = layout::parse(from) else { unreachable!() };
        for (timeline, seq) in [
            (timeline, seq.next().next().next().next().next()),
            (landfall_timeline(2), seq),
            (landfall_timeline(2), seq.next()),
        ] {
            let to = layout::point(machine, timeline, seq);
            let file = small.vault().join(&to);
            assert!(!file.exists());
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::copy(small.vault().join(from), &file).unwrap();
            let what = format!("{from} copied to {to}");
            let ran = small.verify();
            assert_eq!(ran.code(), Some(exit::CORRUPT), "{what}\n{}", ran.story());
            for ((machine, seq), code) in small.outcomes(&what) {
                let right = [exit::DONE, exit::CORRUPT].contains(&code);
                assert!(
                    right,
                    "{what}: point {seq} of {machine}: exit code {code}: a store that lies is not 'not found'"
                );
            }
            remove(&small, &to);
        }
    }
    small.check();
}

fn landfall_timeline(number: u32) -> landfall_model::Timeline {
    landfall_model::Timeline(number)
}

#[test]
fn an_object_of_gigabytes_is_refused_and_not_read_into_memory() {
    /// More than the process may have.
    const HUGE_BYTES: u64 = 6 << 30;
    const MEMORY_KIB: u64 = 2 << 20;
    let small = Small::full();
    let mut failures = Vec::new();
    let mut kinds = Vec::new();
    for object in small.objects() {
        let kind = layout::parse(&object).map(|name| std::mem::discriminant(&name));
        if kinds.contains(&kind) {
            continue;
        }
        kinds.push(kind);
        let right = small.read(&object);
        let file = fs::OpenOptions::new().write(true).open(small.vault().join(&object)).unwrap();
        file.set_len(HUGE_BYTES).unwrap();
        if matches!(layout::parse(&object), Some(Name::Point(..))) {
            // A body of 4 GiB, as its header says.
            file.write_all_at(&[0xff; 4], 12).unwrap();
        }
        let arguments = small.site.as_customer(&["verify", "--deep"]);
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -v {MEMORY_KIB} && exec \"$@\"",), "sh"]).arg(binary()).args(&arguments);
        let out = tools::output(&mut small.site.environment(limited, &small.site.new_state()));
        if out.status.code() != Some(exit::CORRUPT) {
            failures.push(format!("{object}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim()));
        }
        small.write(&object, &right);
    }
    assert!(failures.is_empty(), "with 2 GiB of memory:\n{}", failures.join("\n"));
}

// Maps.

/// Blocks that are far apart, so that the maps are large and the data is small.
const BLOCKS: u64 = 4300;
const STRIDE: u64 = 64 * KIB;

/// A machine whose maps are so large that they lie in a segment: three regions.
fn with_pages_in_segments() -> Small {
    let mut small = Small::new();
    let disk = small.disk("wide", "root");
    assert!(disks::sparse(&disk, BLOCKS * STRIDE));
    for block in 0..BLOCKS {
        disks::write_at(&disk, block * STRIDE, &disks::seeded_bytes(block, 100));
    }
    let state = small.state();
    small.point(&state, "wide", &["root"]);
    small.check();
    small
}

#[test]
fn where_a_map_is_damaged_the_rest_of_the_disk_can_be_saved() {
    let small = with_pages_in_segments();
    let segments: Vec<String> = small.objects().into_iter().filter(|o| o.starts_with("segments/")).collect();
    let vault_tail = |o: &String| disks::size(&small.vault().join(o));
    // The pages' segment has few frames, of some 100 KiB each.
    let pages = segments.iter().max_by_key(|o| vault_tail(o)).unwrap();
    let right = small.read(pages);
    let mut wrong = right.clone();
    // In the first page: that of region 0.
    wrong[32 + 1000] ^= 1;
    small.write(pages, &wrong);
    let ran = small.verify();
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    let moment = &small.moments[0];
    let (ran, backs) = small.rehydrate(moment, &[]);
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    assert!(!backs[0].exists());
    for word in ["disk root", "bytes", "point 1"] {
        assert!(ran.stderr.contains(word), "the error does not say {word:?}\n{}", ran.story());
    }
    let lost = small.assert_salvaged(moment, "a map of one of three regions is damaged");
    assert!(lost <= REGION, "{lost} bytes are lost with the map of one region");
}

/// A machine with a checkpoint at its point 6, and a point after it.
fn with_checkpoint() -> Small {
    /// So many change in each cycle that the sixth is due a checkpoint.
    const REGIONS: u64 = 35;
    let mut small = Small::new();
    let (disk, state) = (small.disk("wide", "root"), small.state());
    assert!(disks::sparse(&disk, REGIONS * REGION));
    for cycle in 1..=7_u64 {
        for region in 0..REGIONS {
            let bytes = disks::seeded_bytes(cycle << 32 | region, 300);
            disks::write_at(&disk, region * REGION + cycle % 4 * 20_000, &bytes);
        }
        small.point(&state, "wide", &["root"]);
    }
    let checkpoints = small.objects().iter().filter(|o| o.contains("/checkpoints/")).count();
    assert_eq!(checkpoints, 1);
    small.check();
    small
}

#[test]
fn a_damaged_checkpoint_is_found_and_no_disk_comes_back_wrong() {
    let small = with_checkpoint();
    let object = small.objects().into_iter().find(|o| o.contains("/checkpoints/")).unwrap();
    let right = small.read(&object);
    let mut dice = Dice::new(42);
    for at in [0, right.len() - 1, dice.below(160), dice.below(right.len())] {
        let mut wrong = right.clone();
        wrong[at] ^= 0x10;
        small.write(&object, &wrong);
        small.assert_found(&object, &format!("byte {at} flipped"), &right);
    }
    // Before the checkpoint, its own, and after it.
    for point in small.objects().iter().filter(|o| o.contains("/points/")).skip(4) {
        let right = small.read(point);
        let mut wrong = right.clone();
        wrong[200] ^= 1;
        small.write(point, &wrong);
        small.assert_found(point, "byte 200 flipped, with a checkpoint after or before it", &right);
    }
    // The point of another number under the checkpoint's name, and the other way round.
    let point = small.objects().into_iter().find(|o| o.ends_with("/points/0000000000000006")).unwrap();
    let of_point = small.read(&point);
    small.write(&object, &of_point);
    small.assert_found(&object, "replaced by its point", &right);
    small.write(&point, &right);
    small.assert_found(&point, "replaced by its checkpoint", &of_point);
}

#[test]
fn a_checkpoint_that_is_damaged_or_gone_loses_no_point() {
    let small = with_checkpoint();
    let object = small.objects().into_iter().find(|o| o.contains("/checkpoints/")).unwrap();
    let right = small.read(&object);
    fs::remove_file(small.vault().join(&object)).unwrap();
    let codes = small.outcomes("the checkpoint is gone");
    assert!(codes.values().all(|code| *code == exit::DONE), "it only saves work: {codes:?}");
    let mut wrong = right.clone();
    wrong[right.len() / 2] ^= 1;
    small.write(&object, &wrong);
    // All that the points say is there without it.
    let codes = small.outcomes("the checkpoint is damaged");
    assert!(codes.values().all(|code| *code == exit::DONE), "points are lost with a checkpoint: {codes:?}");
}

#[test]
fn damage_while_a_disk_is_changed_in_place_leaves_it_marked() {
    let small = Small::full();
    // All of the first point is in one segment: the damage is met when half of the disk is written.
    let vault = &small.past[0];
    let segments = walk(&vault.join(layout::SEGMENTS));
    assert_eq!(segments.len(), 1, "{segments:?}");
    let segment = segments[0].strip_prefix(vault).unwrap().to_str().unwrap();
    let right = small.read(segment);
    let mut wrong = right.clone();
    wrong[right.len() / 2] ^= 1;
    small.write(segment, &wrong);

    let moment = &small.moments[0];
    let (image, mark) = (small.site.disk("image"), small.site.disk("image.landfall-incomplete"));
    let (seq, kept) = (moment.seq.to_string(), &moment.disks[0].1);
    disks::random(&image, 3 * MIB, 99);
    let more = ["--point", &seq, "--existing", "compare"];
    let ran = small.site.try_rehydrate(moment.machine, &[("root", &image)], &more);
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    assert!(mark.exists(), "nothing says that the disk is neither old nor new\n{}", ran.story());
    // With what is left it is still not whole: the damaged range is what it was before.
    let ran = small.site.try_rehydrate(moment.machine, &[("root", &image)], &[&more[..], &["--salvage"]].concat());
    assert_eq!(ran.code(), Some(exit::CORRUPT), "{}", ran.story());
    assert!(disks::first_difference(kept, &image, 0..disks::size(kept)).is_some());
    assert!(mark.exists(), "salvaged in place, with a range of something else, and nothing says so\n{}", ran.story());

    small.write(segment, &right);
    small.site.try_rehydrate(moment.machine, &[("root", &image)], &more).json();
    assert!(!mark.exists(), "the disk is the point again, and is still marked");
    disks::assert_same(kept, &image);
}

// Keys.

#[test]
fn verify_with_the_recovery_key_of_another_vault_says_wrong_key_and_not_damage() {
    let (small, other) = (Small::full(), Site::with_vault());
    let foreign = other.recovery_key();
    let arguments = small.site.as_gateway(&["verify", "--deep", "--recovery-key", foreign.to_str().unwrap()]);
    small.site.run(&strs(&arguments)).assert_refused(exit::KEY, &["recovery key"]);
}

#[test]
fn with_both_keys_at_hand_a_lost_copy_of_the_site_key_loses_nothing() {
    let small = Small::full();
    for object in small.objects().iter().filter(|o| o.starts_with("keys/")) {
        fs::remove_file(small.vault().join(object)).unwrap();
    }
    let (moment, back) = (&small.moments[0], small.site.disk("back"));
    let (named, site_key) = (format!("root={}", back.display()), small.site.site_key());
    let arguments = small.site.as_customer(&[
        "rehydrate",
        "--machine",
        moment.machine,
        "--point",
        "1",
        "--disk",
        &named,
        "--site-key",
        site_key.to_str().unwrap(),
    ]);
    let ran = small.site.run(&strs(&arguments));
    assert_eq!(ran.code(), Some(exit::DONE), "the site key was given\n{}", ran.story());
    disks::assert_same(&moment.disks[0].1, &back);
}

#[test]
fn verify_of_a_machine_that_is_not_there_is_not_all_well() {
    let small = Small::full();
    let arguments = small.site.as_customer(&["verify", "--machine", "wbe"]);
    small.site.start_in(&small.site.new_state(), &strs(&arguments)).finish().assert_refused(exit::NOT_FOUND, &["wbe"]);
}
