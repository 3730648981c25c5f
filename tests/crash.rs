//! Killed at any moment, nothing that was committed is lost, nothing is left lying around, and the next run goes on.
//!
//! Needs the binary with its crash points: `cargo build --bin landfall --features crash-points`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use landfall_tests::landfall::{Disk, IN_DRILL, IN_FAILOVER, Ran, Site, exit, number, strs};
use landfall_tests::{disks, tools};
use landfall_vault::CRASH_POINTS;
use rustix::process::{Pid, Signal, kill_process};
use support::{Dice, KIB, MIB, Needles, REGION, Story, replicate_in};

const SIGKILL: i32 = 9;
/// Stands in every MiB of the disks.
const MARKER: &[u8] = b"the marker that no file but the disk may show";
/// More than one segment of 32 MiB, and a rest that is none.
const NEW_BYTES: u64 = 44 * MIB;
/// What a run may send beyond the data: directories, maps, keys.
const OVERHEAD_BYTES: u64 = MIB;

/// Runs the binary to its end with a crash point set (`name` or `name:N`).
fn run_until(site: &Site, state: &Path, crash_point: &str, arguments: &[String]) -> Ran {
    let mut command = site.command(state);
    command.env("LANDFALL_CRASH_AT", crash_point).args(arguments);
    let out = tools::output(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let arguments = arguments.to_vec();
    Ran { arguments, status: out.status, stdout: text(&out.stdout), stderr: text(&out.stderr) }
}

#[track_caller]
fn assert_killed(ran: &Ran, crash_point: &str) {
    assert_eq!(
        ran.signal(),
        Some(SIGKILL),
        "it was not killed at {crash_point}: it does not come there, or the binary has no crash points \
         (cargo build --bin landfall --features crash-points)\n{}",
        ran.story()
    );
}

/// Random bytes with the marker in every MiB: none of it compresses.
fn marked(path: &Path, size: u64, seed: u64) {
    disks::random(path, size, seed);
    mark(path, size);
}

fn mark(path: &Path, size: u64) {
    (0..size.div_ceil(MIB)).for_each(|n| disks::write_at(path, (n * MIB + 77).min(size - 100), MARKER));
}

/// Nothing of the disks and nothing of the keys is anywhere but where it belongs; the folder for temporary files is empty.
#[track_caller]
fn assert_nothing_left_behind(site: &Site) {
    let mut needles = Needles::keys_of(site);
    needles.add("the marker", MARKER);
    for entry in fs::read_dir(site.folder()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name == "tmp" || name == "home" || name == "vault" || name.starts_with("state") {
            needles.assert_not_below(&entry.path());
        }
    }
    assert_eq!(site.files("tmp"), Vec::<PathBuf>::new(), "left in the folder for temporary files");
    assert_eq!(site.files("home"), Vec::<PathBuf>::new(), "left at home");
}

/// Bytes of the segments that are stored whole; `#` names are what `object_store` writes aside.
fn segment_bytes(site: &Site) -> u64 {
    let whole = |f: &&PathBuf| !f.to_string_lossy().contains('#');
    site.files("vault/segments").iter().filter(whole).map(|f| disks::size(f)).sum()
}

/// Nothing that a point refers to is missing.
#[track_caller]
fn assert_no_point_refers_to_a_missing_object(site: &Site) {
    let arguments = site.as_gateway(&["verify"]);
    let ran = site.start_in(&site.new_state(), &strs(&arguments)).finish();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{}", ran.story()));
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.is_empty(), "{}", ran.story());
}

// Named points.

/// The crash points, by the command that meets them.
const IN_CREATE: [&str; 2] = ["create.keys-written", "create.site-key-stored"];
const IN_CYCLE: [&str; 7] = [
    "generation.claimed",
    "epoch.stored",
    "segment.stored",
    "segment.indexed",
    "point.before-commit",
    "point.committed",
    "replicate.before-release",
];
const IN_CHECKPOINT: [&str; 1] = ["checkpoint.before-commit"];
const IN_REHYDRATE: [&str; 2] = ["rehydrate.first-write", "rehydrate.before-finish"];

#[test]
fn no_crash_point_is_without_a_test() {
    let in_gateway = [&support::IN_GATEWAY[..], &support::IN_COALESCING].concat();
    let tested: BTreeSet<&str> =
        [&IN_CREATE[..], &IN_CYCLE, &IN_CHECKPOINT, &IN_REHYDRATE, &in_gateway, &IN_FAILOVER, &IN_DRILL]
            .concat()
            .into_iter()
            .collect();
    let listed: BTreeSet<&str> = CRASH_POINTS.iter().copied().collect();
    assert_eq!(tested, listed);
}

#[test]
fn killed_while_the_vault_is_made_it_can_be_made_again() {
    for crash_point in IN_CREATE {
        let site = Site::new();
        let (recovery, key) = (site.recovery_key(), site.site_key());
        let create: Vec<String> = ["vault", "create", "--vault", site.url(), "--json", "--quiet", "--recovery-key"]
            .into_iter()
            .chain([recovery.to_str().unwrap(), "--site-key", key.to_str().unwrap()])
            .map(str::to_owned)
            .collect();
        assert_killed(&run_until(&site, &site.folder().join("state"), crash_point, &create), crash_point);
        assert_nothing_left_behind(&site);
        assert!(!site.vault_folder().join("vault.json").exists(), "{crash_point}: there is a vault already");

        // The keys that were made are nobody's yet, and are not overwritten.
        let before = [&recovery, &key].map(|file| fs::read(file).unwrap());
        site.try_create_vault().assert_refused(exit::CONFLICT, &["recovery.key", "exists"]);
        assert_eq!(before, [&recovery, &key].map(|file| fs::read(file).unwrap()), "{crash_point}: a key was changed");
        // Without them it is a new vault, and as good as any.
        [&recovery, &key].iter().for_each(|file| fs::remove_file(file).unwrap());
        site.create_vault();
        let disk = site.disk("disk.img");
        marked(&disk, 3 * MIB, 1);
        site.replicate("web", &[("root", &disk)]);
        site.assert_disk_is("web", "latest", "root", &disk);
        site.assert_sound();
        assert_nothing_left_behind(&site);
    }
}

/// A site that has one point and 44 MiB that no point has yet.
fn with_much_that_is_new() -> (Site, PathBuf, PathBuf) {
    let site = Site::with_vault();
    let (disk, first) = (site.disk("disk.img"), site.disk("first.img"));
    marked(&disk, 2 * MIB, 1);
    site.replicate("web", &[("root", &disk)]);
    disks::copy(&disk, &first);
    let more = site.disk("more.img");
    marked(&more, NEW_BYTES, 2);
    disks::resize(&disk, 2 * MIB + NEW_BYTES);
    disks::write_at(&disk, 2 * MIB, &fs::read(&more).unwrap());
    (site, disk, first)
}

/// Kills a cycle at a point, looks at what is there, runs it again and looks at everything.
fn cycle_killed_at(crash_point: &str) {
    let (site, disk, first) = with_much_that_is_new();
    let state = site.folder().join("state");
    // Only a machine's first run claims a generation.
    let machine = if crash_point == "generation.claimed" { "new" } else { "web" };
    let committed = matches!(crash_point, "point.committed" | "replicate.before-release");
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments(machine, &[("root", &disk)], &[])));
    assert_killed(&run_until(&site, &state, crash_point, &arguments), crash_point);

    assert_nothing_left_behind(&site);
    assert_no_point_refers_to_a_missing_object(&site);
    let points = if machine == "web" { 1 + usize::from(committed) } else { 0 };
    assert_eq!(site.point_count(machine), points, "{crash_point}");
    site.assert_disk_is("web", "1", "root", &first);
    if committed {
        site.assert_disk_is("web", "2", "root", &disk);
    }

    let stored = segment_bytes(&site);
    let segments: BTreeSet<PathBuf> = site.files("vault/segments").into_iter().collect();
    let again = site.replicate(machine, &[("root", &disk)]);
    let sent = number(&again, "uploaded_bytes");
    let whole = 2 * MIB + NEW_BYTES;
    assert!(
        stored + sent <= whole + OVERHEAD_BYTES,
        "{crash_point}: {stored} bytes were stored before, {sent} were sent again, of {whole} in all"
    );
    assert!(segments.iter().all(|s| s.exists()), "{crash_point}: a segment is gone");
    if crash_point.starts_with("segment.") {
        assert!(stored >= 32 * MIB, "{crash_point}: {stored} bytes: no segment was full, the test shows nothing");
        assert!(sent <= NEW_BYTES - 32 * MIB + OVERHEAD_BYTES, "{crash_point}: {sent} bytes sent again");
    }
    if matches!(crash_point, "point.before-commit" | "point.committed" | "replicate.before-release") {
        assert!(sent < 64 * KIB, "{crash_point}: everything was stored, and {sent} bytes were sent again");
    }
    assert_eq!(number(&again["disks"][0], "changed_bytes") == 0, committed, "{crash_point}: {again}");
    site.assert_disk_is("web", "1", "root", &first);
    site.assert_disk_is(machine, "latest", "root", &disk);
    let report = site.customer(&["verify", "--deep"]).json();
    assert_eq!(number(&report, "unreferenced_segments"), 0, "{crash_point}: what was stored is not used: {report}");
    assert_nothing_left_behind(&site);
}

#[test]
fn killed_at_every_step_of_a_cycle_the_next_one_goes_on_from_there() {
    IN_CYCLE.into_iter().for_each(cycle_killed_at);
}

#[test]
fn killed_after_a_later_segment_the_next_cycle_sends_neither_again() {
    for crash_point in ["segment.stored:2", "segment.indexed:2"] {
        cycle_killed_at(crash_point);
    }
}

#[test]
fn killed_again_and_again_at_different_steps_a_cycle_gets_done() {
    let (site, disk, first) = with_much_that_is_new();
    let state = site.folder().join("state");
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    for crash_point in
        ["epoch.stored", "segment.stored", "segment.stored", "point.before-commit", "point.before-commit"]
    {
        let ran = run_until(&site, &state, crash_point, &arguments);
        // What is stored is not stored again: a later run does not come by there any more.
        let killed = ran.signal() == Some(SIGKILL);
        assert!(killed || ran.code() == Some(exit::DONE), "{}", ran.story());
        assert_no_point_refers_to_a_missing_object(&site);
    }
    site.replicate("web", &[("root", &disk)]);
    assert!(segment_bytes(&site) <= 2 * MIB + NEW_BYTES + OVERHEAD_BYTES, "something was stored twice");
    site.assert_disk_is("web", "1", "root", &first);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
    assert_nothing_left_behind(&site);
}

#[test]
fn killed_before_its_checkpoint_a_cycle_is_a_point_and_the_next_one_writes_the_checkpoint() {
    /// So many regions change in each of five cycles that the fifth is due a checkpoint.
    const REGIONS: u64 = 70;
    let site = Site::with_vault();
    let (disk, state) = (site.disk("disk.img"), site.folder().join("state"));
    assert!(disks::sparse(&disk, REGIONS * REGION));
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("wide", &[("root", &disk)], &[])));
    for cycle in 1..=5_u64 {
        for region in 0..REGIONS {
            disks::write_at(&disk, region * REGION + cycle * 40_000, &disks::seeded_bytes(cycle << 32 | region, 3000));
            disks::write_at(&disk, region * REGION + cycle * 40_000 + 3000, MARKER);
        }
        disks::copy(&disk, &site.disk(&format!("kept-{cycle}")));
        let crash_point = IN_CHECKPOINT[0];
        let ran = run_until(&site, &state, crash_point, &arguments);
        if cycle == 5 {
            assert_killed(&ran, crash_point);
        } else {
            ran.json();
        }
    }
    let checkpoints =
        || site.files("vault/machines").into_iter().filter(|f| f.parent().unwrap().ends_with("checkpoints"));
    assert_eq!(checkpoints().count(), 0);
    assert_eq!(site.point_count("wide"), 5);
    assert_no_point_refers_to_a_missing_object(&site);
    site.assert_disk_is("wide", "5", "root", &disk);

    site.replicate("wide", &[("root", &disk)]);
    assert_eq!(checkpoints().count(), 1, "the next cycle writes it");
    for point in 1..=5 {
        site.assert_disk_is("wide", &point.to_string(), "root", &site.disk(&format!("kept-{point}")));
    }
    site.assert_disk_is("wide", "6", "root", &disk);
    site.assert_sound();
    assert_nothing_left_behind(&site);
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn rehydrate_arguments(site: &Site, disks: &[Disk<'_>], more: &[&str]) -> Vec<String> {
    let named: Vec<String> = disks.iter().map(|(name, path)| format!("{name}={}", path.display())).collect();
    let mut arguments = vec!["rehydrate", "--machine", "web"];
    named.iter().for_each(|disk| arguments.extend(["--disk", disk]));
    site.as_customer(&[&arguments[..], more].concat())
}

#[test]
fn killed_at_every_step_of_a_rehydrate_no_half_disk_has_its_name() {
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    marked(&root, 20 * MIB, 1);
    marked(&data, 3 * MIB + 512, 2);
    site.replicate("web", &[("root", &root), ("data", &data)]);
    let (one, two) = (site.disk("one"), site.disk("two"));
    for crash_point in IN_REHYDRATE {
        for format in ["raw", "qcow2", "vhd"] {
            let arguments = rehydrate_arguments(&site, &[("root", &one), ("data", &two)], &["--format", format]);
            assert_killed(&run_until(&site, &site.new_state(), crash_point, &arguments), crash_point);
            assert!(!one.exists() && !two.exists(), "{crash_point}, {format}: half a disk has its name");
            assert_nothing_left_behind(&site);
        }
        let arguments = rehydrate_arguments(&site, &[("root", &one), ("data", &two)], &[]);
        site.start_in(&site.new_state(), &strs(&arguments)).finish().json();
        for (wanted, back) in [(&root, &one), (&data, &two)] {
            disks::assert_same(wanted, back);
            assert!(!with_suffix(back, ".partial").exists(), "{crash_point}: the half disk is still there");
            fs::remove_file(back).unwrap();
        }
    }
}

#[test]
fn killed_while_it_changes_a_disk_in_place_the_mark_says_so_until_it_is_whole() {
    let site = Site::with_vault();
    let (disk, image) = (site.disk("root.img"), site.disk("image"));
    marked(&disk, 20 * MIB, 1);
    site.replicate("web", &[("root", &disk)]);
    disks::random(&image, 25 * MIB, 3);
    let mark = with_suffix(&image, ".landfall-incomplete");
    let arguments = rehydrate_arguments(&site, &[("root", &image)], &["--existing", "compare"]);
    for crash_point in IN_REHYDRATE {
        disks::write_at(&image, 5 * MIB, &disks::seeded_bytes(9, 300_000));
        assert_killed(&run_until(&site, &site.new_state(), crash_point, &arguments), crash_point);
        assert!(mark.exists(), "{crash_point}: nothing says that the disk is neither old nor new");
        assert_nothing_left_behind(&site);
        site.start_in(&site.new_state(), &strs(&arguments)).finish().json();
        assert!(!mark.exists(), "{crash_point}: the disk is whole, and still marked");
        disks::assert_same(&disk, &image);
    }
}

#[test]
fn killed_while_it_replaces_a_disk_the_old_one_is_untouched() {
    let site = Site::with_vault();
    let (disk, image) = (site.disk("root.img"), site.disk("image"));
    marked(&disk, 20 * MIB, 1);
    site.replicate("web", &[("root", &disk)]);
    fs::write(&image, "what was there").unwrap();
    let arguments = rehydrate_arguments(&site, &[("root", &image)], &["--existing", "overwrite"]);
    for crash_point in IN_REHYDRATE {
        assert_killed(&run_until(&site, &site.new_state(), crash_point, &arguments), crash_point);
        assert_eq!(fs::read_to_string(&image).unwrap(), "what was there", "{crash_point}");
    }
    site.start_in(&site.new_state(), &strs(&arguments)).finish().json();
    disks::assert_same(&disk, &image);
}

// Other gateways.

/// A run that a test may stop and let go on.
struct Held(Child);

impl Held {
    fn start(site: &Site, state: &Path, arguments: &[String]) -> Self {
        let mut command = site.command(state);
        command.args(arguments).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.0), signal);
    }

    fn wait_until(&mut self, mut so: impl FnMut() -> bool) {
        let start = Instant::now();
        while !so() {
            assert!(self.0.try_wait().unwrap().is_none(), "it ended before it got there");
            assert!(start.elapsed() < Duration::from_secs(120), "it does not get there");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_gateway_that_was_killed_is_replaced_by_another_which_uses_what_it_stored() {
    let (site, disk, first) = with_much_that_is_new();
    let (state, other) = (site.folder().join("state"), site.folder().join("state-other"));
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    assert_killed(&run_until(&site, &state, "segment.stored", &arguments), "segment.stored");
    let stored = segment_bytes(&site);

    let start = Instant::now();
    let point = replicate_in(&site, &other, "web", &[("root", &disk)], &[]);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(8), "after {waited:?} a living gateway would have been pushed aside");
    assert!(waited < Duration::from_secs(60), "{waited:?} until another gateway took over");
    assert_eq!(number(&point, "seq"), 2);
    let sent = number(&point, "uploaded_bytes");
    assert!(stored + sent <= 2 * MIB + NEW_BYTES + OVERHEAD_BYTES, "{stored} bytes were there, {sent} were sent");
    // The first is back, with an index from before it died.
    let point = replicate_in(&site, &state, "web", &[("root", &disk)], &[]);
    assert_eq!((number(&point, "seq"), number(&point["disks"][0], "changed_bytes")), (3, 0));
    site.assert_disk_is("web", "1", "root", &first);
    for seq in ["2", "3"] {
        site.assert_disk_is("web", seq, "root", &disk);
    }
    site.assert_sound();
    assert_nothing_left_behind(&site);
}

#[test]
fn a_gateway_that_slept_while_another_took_over_is_fenced_and_commits_nothing() {
    let site = Site::with_vault();
    let (disk, newer, state) = (site.disk("disk.img"), site.disk("newer.img"), site.folder().join("state"));
    marked(&disk, 100 * MIB, 1);
    marked(&newer, 3 * MIB, 2);
    let arguments = site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    let mut sleeper = Held::start(&site, &state, &arguments);
    sleeper.wait_until(|| segment_bytes(&site) > 0);
    sleeper.signal(Signal::STOP);
    let other = replicate_in(&site, &site.folder().join("state-other"), "web", &[("root", &newer)], &[]);
    assert_eq!(number(&other, "seq"), 1);
    sleeper.signal(Signal::CONT);
    let status = sleeper.0.wait().unwrap();
    let mut stderr = String::new();
    std::io::Read::read_to_string(sleeper.0.stderr.as_mut().unwrap(), &mut stderr).unwrap();
    assert_eq!(status.code(), Some(exit::CONFLICT), "{stderr}");
    assert_eq!(site.point_count("web"), 1);
    site.assert_disk_is("web", "latest", "root", &newer);
    site.assert_sound();
    // It may go on as a new writer, after the other's point.
    let point = site.replicate("web", &[("root", &disk)]);
    assert_eq!(number(&point, "seq"), 2);
    site.assert_disk_is("web", "1", "root", &newer);
    site.assert_disk_is("web", "2", "root", &disk);
    site.assert_sound();
}

// Any moment.

const BIG_BYTES: u64 = 192 * MIB;

/// Starts a run, kills it after a random part of `whole`; `true` where it had ended by itself before.
fn kill_within(site: &Site, state: &Path, arguments: &[String], whole: Duration, dice: &mut Dice) -> (bool, Duration) {
    let mut held = Held::start(site, state, arguments);
    let micros = dice.within(1..u64::try_from(whole.as_micros()).unwrap());
    let after = Duration::from_micros(micros);
    std::thread::sleep(after);
    let over = held.0.try_wait().unwrap();
    held.signal(Signal::KILL);
    let status = held.0.wait().unwrap();
    assert!(over.is_none_or(|s| s.success()), "it failed by itself: {status}");
    (status.success(), after)
}

#[test]
fn killed_at_any_moment_of_a_first_copy_nothing_is_stored_twice_and_it_gets_done() {
    let mut dice = Dice::new(77);
    let mut story = Story::new(&dice);
    let origin = Site::with_vault();
    let disk = origin.disk("disk.img");
    marked(&disk, BIG_BYTES, 1);
    let arguments = |site: &Site| site.as_gateway(&strs(&Site::replicate_arguments("web", &[("root", &disk)], &[])));
    let start = Instant::now();
    origin.start(&strs(&arguments(&origin))).finish().json();
    let whole = start.elapsed();
    story.tell(format!("undisturbed it takes {whole:?}"));
    for _ in 0..3 {
        let site = Site::with_vault();
        let state = site.folder().join("state");
        for _ in 0..3 {
            let (done, after) = kill_within(&site, &state, &arguments(&site), whole, &mut dice);
            let stored = segment_bytes(&site);
            story.tell(format!("killed after {after:?}, done: {done}, {stored} bytes in segments"));
            assert_no_point_refers_to_a_missing_object(&site);
            assert!(site.files("tmp").is_empty());
        }
        let stored = segment_bytes(&site);
        let point = site.replicate("web", &[("root", &disk)]);
        let sent = number(&point, "uploaded_bytes");
        assert!(stored + sent <= BIG_BYTES + 2 * OVERHEAD_BYTES, "{stored} bytes were stored, {sent} were sent again");
        for seq in 1..=number(&point, "seq") {
            site.assert_disk_is("web", &seq.to_string(), "root", &disk);
        }
        site.assert_sound();
        assert_nothing_left_behind(&site);
    }
}

#[test]
fn killed_at_any_moment_of_a_rehydrate_a_disk_is_whole_or_has_no_name_or_is_marked() {
    let mut dice = Dice::new(78);
    let mut story = Story::new(&dice);
    let site = Site::with_vault();
    let (disk, image, rubbish) = (site.disk("disk.img"), site.disk("image"), site.disk("rubbish"));
    marked(&disk, BIG_BYTES, 1);
    disks::random(&rubbish, BIG_BYTES - 512, 2);
    site.replicate("web", &[("root", &disk)]);
    let start = Instant::now();
    site.rehydrate("web", "latest", &[("root", &image)]);
    let whole = start.elapsed();
    fs::remove_file(&image).unwrap();

    let fresh = rehydrate_arguments(&site, &[("root", &image)], &[]);
    for _ in 0..5 {
        let (done, after) = kill_within(&site, &site.new_state(), &fresh, whole, &mut dice);
        story.tell(format!("new image: killed after {after:?}, done: {done}"));
        if image.exists() {
            disks::assert_same(&disk, &image);
            fs::remove_file(&image).unwrap();
        }
        assert!(site.files("tmp").is_empty());
    }
    site.rehydrate("web", "latest", &[("root", &image)]);
    disks::assert_same(&disk, &image);

    let compare = rehydrate_arguments(&site, &[("root", &image)], &["--existing", "compare"]);
    let mark = with_suffix(&image, ".landfall-incomplete");
    for _ in 0..5 {
        fs::copy(&rubbish, &image).unwrap();
        let (done, after) = kill_within(&site, &site.new_state(), &compare, whole * 2, &mut dice);
        let marked = mark.exists();
        story.tell(format!("in place: killed after {after:?}, done: {done}, marked: {marked}"));
        if !marked {
            let like = |other: &Path| {
                disks::size(other) == disks::size(&image)
                    && disks::first_difference(other, &image, 0..disks::size(&image)).is_none()
            };
            assert!(like(&disk) || like(&rubbish), "neither old nor new, and nothing says so");
        }
        site.start_in(&site.new_state(), &strs(&compare)).finish().json();
        disks::assert_same(&disk, &image);
        assert!(!mark.exists());
    }
}
