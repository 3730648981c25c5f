//! What a user tells about a machine's protection, end to end: holding an application still, disks left out, healing, the demo.

use std::fs;

use landfall_tests::landfall::{Site, exit, number, strs};
use landfall_tests::{disks, tools};
use serde_json::Value;

#[test]
fn the_consistency_command_freezes_before_and_thaws_after_and_the_point_says_so() {
    let site = Site::with_vault();
    let (disk, log) = (site.disk("disk.img"), site.disk("phases"));
    disks::random(&disk, 3_000_000, 1);
    let command = format!("echo said; echo $LANDFALL_PHASE >> {}", log.display());
    let done = site.try_replicate("db", &[("data", &disk)], &["--consistency-cmd", &command]).json();
    assert_eq!(number(&done, "seq"), 1);
    assert_eq!(fs::read_to_string(&log).unwrap(), "freeze\nthaw\n");
    assert_eq!(site.points("db")[0]["consistency"], "application");

    let failing = format!("echo $LANDFALL_PHASE >> {}; [ $LANDFALL_PHASE = thaw ]", log.display());
    let ran = site.try_replicate("db", &[("data", &disk)], &["--consistency-cmd", &failing]);
    ran.assert_refused(exit::USAGE, &["freeze", "no point was taken"]);
    assert_eq!(site.point_count("db"), 1);
    assert!(fs::read_to_string(&log).unwrap().ends_with("freeze\nthaw\n"), "thawed although the freeze failed");
}

#[test]
fn an_excluded_disk_needs_no_path_and_brings_no_content() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 100_000, 2);
    site.try_replicate("web", &[("root", &disk)], &["--exclude", "swap"]).json();
    let ran = site.try_rehydrate("web", &[("swap", &site.disk("swap.img"))], &[]);
    ran.assert_refused(exit::NOT_FOUND, &["swap", "excluded"]);
    site.assert_disk_is("web", "latest", "root", &disk);
    let twice = site.try_replicate("web", &[("root", &disk)], &["--exclude", "swap", "--exclude", "swap"]);
    twice.assert_refused(exit::USAGE, &["swap"]);
}

#[test]
fn what_the_vault_has_lost_is_stored_again_while_the_disk_still_has_it() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 5_000_000, 3);
    site.replicate("web", &[("root", &disk)]);
    let segments = site.files("vault/segments");
    assert_eq!(segments.len(), 1);
    fs::remove_file(&segments[0]).unwrap();
    let ran = site.try_rehydrate("web", &[("root", &site.disk("lost.img"))], &[]);
    ran.assert_refused(exit::CORRUPT, &["root", "point 1"]);

    let healed = site.replicate("web", &[("root", &disk)]);
    assert!(number(&healed, "uploaded_bytes") > 5_000_000, "{healed}");
    site.assert_disk_is("web", "2", "root", &disk);
    let unchanged = site.replicate("web", &[("root", &disk)]);
    assert!(number(&unchanged, "uploaded_bytes") < 10_000, "{unchanged}");
}

#[test]
fn a_point_tells_what_is_needed_to_know_its_disks_again() {
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 100_000, 4);
    disks::random(&data, 4096, 5);
    site.replicate("web", &[("root", &root), ("data", &data)]);
    let machines = site.gateway(&["machines"]).json();
    let machine = &machines["machines"][0];
    assert_eq!(machine["machine"], "web");
    let disks: Vec<(&Value, u64)> =
        machine["disks"].as_array().unwrap().iter().map(|d| (&d["name"], number(d, "size"))).collect();
    assert_eq!(disks, [(&Value::from("root"), 100_000), (&Value::from("data"), 4096)]);
    assert!(number(machine, "rpo_seconds") < 600);
}

#[test]
fn a_machine_is_migrated_without_losing_a_byte_of_its_last_moment() {
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 9_000_000, 4);
    disks::random(&data, 2_000_000, 5);
    // While it runs: everything that a later cycle need not move.
    let first = site.replicate("web", &[("root", &root), ("data", &data)]);
    disks::write_at(&root, 4_000_000, &disks::seeded_bytes(6, 300_000));
    // Shut down: what is left, then the other place has nothing but the vault, the point and the key.
    let last = site.replicate("web", &[("root", &root), ("data", &data)]);
    assert!(number(&last, "uploaded_bytes") * 10 < number(&first, "uploaded_bytes"), "{last}");
    let place = site.folder().join("other-place");
    fs::create_dir(&place).unwrap();
    let (there_root, there_data) = (place.join("root.img"), place.join("data.img"));
    let (root_there, data_there) = (format!("root={}", there_root.display()), format!("data={}", there_data.display()));
    let arguments = site.as_customer(&["rehydrate", "--machine", "web", "--disk", &root_there, "--disk", &data_there]);
    tools::succeed(site.command(&site.new_state()).args(&arguments));
    disks::assert_same(&root, &there_root);
    disks::assert_same(&data, &there_data);
}

#[test]
fn the_demo_tells_the_whole_story_and_proves_it() {
    let site = Site::new();
    let dir = site.folder().join("demo");
    let told = site
        .run(&strs(&["demo", "--json", "--size-mib", "128", "--dir", &dir.display().to_string()].map(String::from)));
    let report = told.json();
    assert_eq!(report["proved"], true, "{report}");
    let points = report["points"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    for point in points {
        assert!(point["same_bytes"] == true && point["fsck_clean"] == true, "{report}");
    }
    assert!(number(&points[1], "changed_bytes") < number(&points[0], "changed_bytes") / 2, "{report}");
    assert!(!dir.join("server.img").exists(), "the original is gone");
}
