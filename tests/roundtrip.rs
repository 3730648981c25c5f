//! What goes in comes out: real disks through the real command, judged by the tools that made them.

use std::fs;
use std::path::Path;

use landfall_tests::disks::{self, XFS_BYTES_MIN};
use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::{need, tools};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

// File systems.

#[test]
fn an_ext4_disk_comes_back_identical_and_healthy_at_both_points() {
    let site = Site::with_vault();
    let (disk, first) = (site.disk("root.img"), site.disk("root-first.img"));
    need!(disks::ext4(&disk, 96 * MIB, 40 * MIB));
    disks::copy(&disk, &first);
    let one = site.replicate("web", &[("root", &disk)]);
    disks::ext4_write(&disk, "report.bin", 3_000_000, 7);
    let two = site.replicate("web", &[("root", &disk)]);
    assert_eq!((number(&one, "seq"), number(&two, "seq")), (1, 2));

    // The originals are gone: what comes back comes from the vault.
    let (wanted_first, wanted_second) = (site.disk("kept-1"), site.disk("kept-2"));
    fs::rename(&first, &wanted_first).unwrap();
    fs::rename(&disk, &wanted_second).unwrap();
    for (point, wanted) in [("1", &wanted_first), ("2", &wanted_second)] {
        let back = site.disk(&format!("back-{point}"));
        site.rehydrate("web", point, &[("root", &back)]);
        disks::assert_same(wanted, &back);
        disks::assert_ext4_healthy(&back);
    }
    site.assert_sound();
}

#[test]
fn an_xfs_disk_comes_back_identical_and_healthy() {
    let site = Site::with_vault();
    let disk = site.disk("data.img");
    need!(disks::xfs(&disk, XFS_BYTES_MIN, 24 * MIB));
    site.replicate("db", &[("data", &disk)]);
    let back = site.disk("back.img");
    site.rehydrate("db", "latest", &[("data", &back)]);
    disks::assert_same(&disk, &back);
    disks::assert_xfs_healthy(&back);
}

// Sizes and contents.

#[test]
fn disks_of_odd_sizes_come_back_to_the_byte() {
    let site = Site::with_vault();
    let sizes = [
        1,
        511,
        512,
        4 * KIB - 512,
        4 * KIB + 512,
        64 * KIB - 1,
        64 * KIB - 512,
        64 * KIB,
        64 * KIB + 512,
        256 * KIB + 1,
        MIB + 512,
        5 * MIB - 1536,
    ];
    for size in sizes {
        let (disk, machine) = (site.disk(&format!("{size}.img")), format!("m{size}"));
        disks::random(&disk, size, size);
        let point = site.replicate(&machine, &[("disk", &disk)]);
        assert_eq!(number(&point["disks"][0], "size"), size, "{point}");
        site.assert_disk_is(&machine, "latest", "disk", &disk);
    }
}

#[test]
fn an_empty_disk_comes_back_empty_and_costs_next_to_nothing() {
    let site = Site::with_vault();
    let (hole, zeroes) = (site.disk("hole.img"), site.disk("zeroes.img"));
    assert!(disks::sparse(&hole, 256 * MIB));
    disks::zeroes(&zeroes, 32 * MIB);
    let point = site.replicate("new", &[("hole", &hole), ("zeroes", &zeroes)]);
    assert_eq!(number(&point, "new_chunk_bytes"), 0, "{point}");
    for (name, disk) in [("hole", &hole), ("zeroes", &zeroes)] {
        let back = site.disk(&format!("back-{name}"));
        site.rehydrate("new", "latest", &[(name, &back)]);
        disks::assert_same(disk, &back);
        assert!(disks::allocated_bytes(&back) < MIB, "{name}: holes stay holes");
    }
}

#[test]
fn a_sparse_disk_stays_sparse() {
    let site = Site::with_vault();
    let (disk, back) = (site.disk("sparse.img"), site.disk("back.img"));
    assert!(disks::sparse(&disk, 512 * MIB + 512));
    for n in 0..16 {
        disks::write_at(&disk, n * 33 * MIB + n * 4096, &disks::seeded_bytes(n, 70_000));
    }
    disks::write_at(&disk, 512 * MIB, &disks::seeded_bytes(99, 512));
    site.replicate("thin", &[("disk", &disk)]);
    site.rehydrate("thin", "latest", &[("disk", &back)]);
    disks::assert_same(&disk, &back);
    let (was, is) = (disks::allocated_bytes(&disk), disks::allocated_bytes(&back));
    assert!(is <= 2 * was + MIB, "{was} bytes were allocated, {is} are now");
}

/// A disk larger than this machine: a few writes in it, first, last and in between, then one more.
fn huge_disk_comes_back(size: u64) {
    let site = Site::with_vault();
    let folder = need!(disks::folder_for(size));
    let (disk, back) = (folder.path().join("huge.img"), folder.path().join("back.img"));
    assert!(disks::sparse(&disk, size));
    for (n, offset) in [0, size / 3 / 512 * 512, size / 2 - 512, size - 4096].into_iter().enumerate() {
        disks::write_at(&disk, offset, &disks::seeded_bytes(n as u64, 4096));
    }
    site.replicate("huge", &[("disk", &disk)]);
    site.rehydrate("huge", "latest", &[("disk", &back)]);
    disks::assert_same(&disk, &back);

    disks::write_at(&disk, size / 5 / 512 * 512, &disks::seeded_bytes(9, 1024));
    let second = site.replicate("huge", &[("disk", &disk)]);
    assert!(number(&second["disks"][0], "changed_bytes") < MIB, "{second}");
    site.try_rehydrate("huge", &[("disk", &back)], &["--existing", "compare"]).json();
    disks::assert_same(&disk, &back);
}

#[test]
fn a_disk_of_16_tib_with_little_on_it_comes_back() {
    huge_disk_comes_back(16 * TIB);
}

#[test]
fn a_disk_of_64_tib_with_little_on_it_comes_back() {
    huge_disk_comes_back(64 * TIB);
}

// Cycles.

#[test]
fn a_later_cycle_stores_only_what_changed() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 48 * MIB, 1);
    let first = site.replicate("web", &[("disk", &disk)]);
    assert!(number(&first, "new_chunk_bytes") >= 48 * MIB, "{first}");

    disks::write_at(&disk, 7 * MIB + 4096, &disks::seeded_bytes(2, 4096));
    let second = site.replicate("web", &[("disk", &disk)]);
    let changed = number(&second["disks"][0], "changed_bytes");
    assert!((4096..=MIB).contains(&changed), "4 KiB were written: {second}");
    assert!(number(&second, "uploaded_bytes") < 2 * MIB, "{second}");

    let third = site.replicate("web", &[("disk", &disk)]);
    assert_eq!(number(&third["disks"][0], "changed_bytes"), 0, "{third}");
    assert_eq!(number(&third, "new_chunk_bytes"), 0, "{third}");
    site.assert_disk_is("web", "latest", "disk", &disk);
}

#[test]
fn a_second_machine_with_the_same_disk_stores_almost_nothing() {
    let site = Site::with_vault();
    let (disk, copy) = (site.disk("one.img"), site.disk("two.img"));
    need!(disks::ext4(&disk, 64 * MIB, 24 * MIB));
    disks::copy(&disk, &copy);
    let first = site.replicate("one", &[("root", &disk)]);
    let second = site.replicate("two", &[("root", &copy)]);
    let (first, second) = (number(&first, "new_chunk_bytes"), number(&second, "new_chunk_bytes"));
    assert!(second * 20 < first, "the first stored {first} bytes, the second {second} more");
    site.assert_disk_is("two", "latest", "root", &copy);
}

#[test]
fn a_disk_that_grows_and_shrinks_comes_back_as_it_was_at_each_point() {
    let site = Site::with_vault();
    let (disk, mut kept) = (site.disk("disk.img"), Vec::new());
    disks::random(&disk, 4 * MIB, 1);
    for (n, size) in [4 * MIB, 9 * MIB + 512, 2 * MIB + 1024, 2 * MIB, 6 * MIB].into_iter().enumerate() {
        disks::resize(&disk, size);
        disks::write_at(&disk, size - 700, &disks::seeded_bytes(n as u64, 700));
        let keep = site.disk(&format!("kept-{n}"));
        disks::copy(&disk, &keep);
        let point = site.replicate("m", &[("disk", &disk)]);
        assert_eq!(number(&point["disks"][0], "size"), size);
        kept.push(keep);
    }
    for (n, keep) in kept.iter().enumerate() {
        site.assert_disk_is("m", &(n + 1).to_string(), "disk", keep);
    }
}

#[test]
fn what_was_cut_off_does_not_come_back_when_a_disk_grows_again() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    site.replicate("m", &[("disk", &disk)]);
    disks::resize(&disk, MIB);
    site.replicate("m", &[("disk", &disk)]);
    disks::resize(&disk, 3 * MIB);
    site.replicate("m", &[("disk", &disk)]);
    site.assert_disk_is("m", "latest", "disk", &disk);
}

#[test]
fn a_disk_can_be_added_and_removed_and_older_points_stay_as_they_were() {
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 2 * MIB, 1);
    disks::random(&data, 3 * MIB, 2);
    site.replicate("m", &[("root", &root)]);
    site.replicate("m", &[("root", &root), ("data", &data)]);
    site.replicate("m", &[("root", &root)]);
    site.assert_disk_is("m", "2", "data", &data);
    for point in ["1", "3"] {
        site.assert_disk_is("m", point, "root", &root);
        let back = site.disk(&format!("no-{point}"));
        let ran = site.try_rehydrate("m", &[("data", &back)], &["--point", point]);
        ran.assert_refused(exit::NOT_FOUND, &["data"]);
        assert!(!back.exists());
    }
}

#[test]
fn an_excluded_disk_is_not_read_into_the_vault_and_older_points_still_have_it() {
    let site = Site::with_vault();
    let (root, swap) = (site.disk("root.img"), site.disk("swap.img"));
    disks::random(&root, 2 * MIB, 1);
    disks::random(&swap, 8 * MIB, 2);
    let both = [("root", root.as_path()), ("swap", swap.as_path())];
    let first = site.try_replicate("m", &both, &["--exclude", "swap"]).json();
    assert!(number(&first, "new_chunk_bytes") < 4 * MIB, "{first}");
    site.replicate("m", &both);
    site.try_replicate("m", &both, &["--exclude", "swap"]).json();
    site.assert_disk_is("m", "2", "swap", &swap);
    for point in ["1", "3"] {
        site.assert_disk_is("m", point, "root", &root);
        // Refused, or an empty disk so that the machine has all of its disks: but never half of something.
        let back = site.disk(&format!("swap-{point}"));
        if site.try_rehydrate("m", &[("swap", &back)], &["--point", point]).code() == Some(exit::DONE) {
            let empty = site.disk(&format!("empty-{point}"));
            assert!(disks::sparse(&empty, 8 * MIB));
            disks::assert_same(&empty, &back);
        }
    }
}

#[test]
fn all_disks_of_a_machine_come_back_together() {
    let site = Site::with_vault();
    let disks: Vec<_> = (0..4).map(|n| (format!("disk{n}"), site.disk(&format!("{n}.img")))).collect();
    for (n, (_, disk)) in disks.iter().enumerate() {
        disks::random(disk, MIB + n as u64 * 512, n as u64);
    }
    let named: Vec<(&str, &Path)> = disks.iter().map(|(name, disk)| (name.as_str(), disk.as_path())).collect();
    let point = site.replicate("m", &named);
    assert_eq!(point["disks"].as_array().map(Vec::len), Some(4), "{point}");
    let backs: Vec<_> = disks.iter().map(|(name, _)| (name.as_str(), site.disk(&format!("back-{name}")))).collect();
    let targets: Vec<(&str, &Path)> = backs.iter().map(|(name, back)| (*name, back.as_path())).collect();
    let done = site.rehydrate("m", "latest", &targets);
    assert_eq!(done["disks"].as_array().map(Vec::len), Some(4), "{done}");
    for ((_, disk), (_, back)) in disks.iter().zip(&backs) {
        disks::assert_same(disk, back);
    }
}

// Points.

#[test]
fn a_point_is_found_as_latest_by_number_and_by_time() {
    let site = Site::with_vault();
    let (disk, mut times) = (site.disk("disk.img"), Vec::new());
    for n in 1..=3_u64 {
        let keep = site.disk(&format!("kept-{n}"));
        disks::random(&keep, 300 * KIB, n);
        fs::copy(&keep, &disk).unwrap();
        let point = site.replicate("m", &[("disk", &disk)]);
        times.push(point["time"].as_str().expect("a time").to_owned());
        // The next point is of another second, so that times can be told apart however they are printed.
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    let kept = |n: usize| site.disk(&format!("kept-{n}"));
    site.assert_disk_is("m", "latest", "disk", &kept(3));
    for n in 1..=3 {
        site.assert_disk_is("m", &n.to_string(), "disk", &kept(n));
        site.assert_disk_is("m", &times[n - 1], "disk", &kept(n));
    }
    site.assert_disk_is("m", "2999-01-01T00:00:00Z", "disk", &kept(3));
    let early = site.try_rehydrate("m", &[("disk", &site.disk("x"))], &["--point", "2001-01-01T00:00:00Z"]);
    early.assert_refused(exit::NOT_FOUND, &["2001"]);
    let without = site.disk("without-a-point");
    site.try_rehydrate("m", &[("disk", &without)], &[]).json();
    disks::assert_same(&kept(3), &without);
}

#[test]
fn points_and_machines_are_listed() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 300 * KIB, 1);
    site.replicate("web.1", &[("disk", &disk)]);
    site.replicate("web.1", &[("disk", &disk)]);
    site.replicate("db_2-b", &[("disk", &disk)]);
    let points = site.points("web.1");
    assert_eq!(points.iter().map(|point| number(point, "seq")).collect::<Vec<_>>(), [1, 2]);
    for point in &points {
        for name in ["time", "timeline", "consistency", "changed_bytes", "stored_bytes", "pinned"] {
            assert!(!point[name].is_null(), "no {name} in {point}");
        }
    }
    let machines = site.gateway(&["machines"]).json().to_string();
    assert!(machines.contains("web.1") && machines.contains("db_2-b"), "{machines}");
}

#[test]
fn the_options_may_come_from_the_environment() {
    let mut site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 300 * KIB, 1);
    let (url, key) = (site.url().to_owned(), site.site_key());
    site.set_env("LANDFALL_VAULT", &url);
    site.set_env("LANDFALL_SITE_KEY", key.to_str().unwrap());
    let named = format!("disk={}", disk.display());
    let point = site.run(&["replicate", "--machine", "m", "--disk", &named, "--json"]).json();
    assert_eq!(number(&point, "seq"), 1);
}

// Outputs.

#[test]
fn a_qcow2_image_is_whole_and_holds_the_disk() {
    let site = Site::with_vault();
    let (disk, back) = (site.disk("root.img"), site.disk("root.qcow2"));
    need!(tools::need("qemu-img"));
    need!(disks::ext4(&disk, 64 * MIB, 16 * MIB));
    site.replicate("m", &[("root", &disk)]);
    site.try_rehydrate("m", &[("root", &back)], &["--format", "qcow2"]).json();
    disks::assert_image_whole(&back, "qcow2");
    disks::assert_image_holds(&back, "qcow2", &disk);
    assert!(disks::size(&back) < 48 * MIB, "empty space takes none in the image");
}

#[test]
fn a_vhd_image_is_what_azure_wants_and_holds_the_disk() {
    let site = Site::with_vault();
    need!(tools::need("qemu-img"));
    for (name, size) in [("whole", 3 * MIB), ("odd", 3 * MIB + 512), ("small", 512)] {
        let (disk, back) = (site.disk(&format!("{name}.img")), site.disk(&format!("{name}.vhd")));
        disks::random(&disk, size, size);
        site.replicate(name, &[("disk", &disk)]);
        site.try_rehydrate(name, &[("disk", &back)], &["--format", "vhd"]).json();
        assert_eq!(disks::size(&back), size.next_multiple_of(MIB) + 512, "{name}: whole MiB and the footer");
        disks::assert_image_whole(&back, "vpc");
        disks::assert_image_holds(&back, "vpc", &disk);
    }
}

#[test]
fn images_of_odd_sizes_hold_the_disk_and_zeroes_behind_it() {
    let site = Site::with_vault();
    need!(tools::need("qemu-img"));
    let (disk, back) = (site.disk("odd.img"), site.disk("odd.qcow2"));
    disks::random(&disk, 2 * MIB + 512, 1);
    site.replicate("m", &[("disk", &disk)]);
    site.try_rehydrate("m", &[("disk", &back)], &["--format", "qcow2"]).json();
    disks::assert_image_whole(&back, "qcow2");
    disks::assert_image_holds(&back, "qcow2", &disk);
}

// What is there already.

#[test]
fn comparing_with_what_is_there_moves_only_what_differs() {
    let site = Site::with_vault();
    let (disk, target) = (site.disk("disk.img"), site.disk("target.img"));
    disks::random(&disk, 64 * MIB, 1);
    site.replicate("m", &[("disk", &disk)]);
    disks::copy(&disk, &target);
    disks::write_at(&target, 20 * MIB + 100, &disks::seeded_bytes(5, 50_000));
    disks::write_at(&target, 41 * MIB, &[0; 4096]);
    let done = site.try_rehydrate("m", &[("disk", &target)], &["--existing", "compare"]).json();
    disks::assert_same(&disk, &target);
    let (written, skipped) = (number(&done["disks"][0], "written_bytes"), number(&done["disks"][0], "skipped_bytes"));
    assert!((54_000..4 * MIB).contains(&written), "{done}");
    assert!(skipped > 60 * MIB, "{done}");
    assert!(number(&done, "fetched_bytes") < 8 * MIB, "{done}");

    let again = site.try_rehydrate("m", &[("disk", &target)], &["--existing", "compare"]).json();
    assert_eq!(number(&again["disks"][0], "written_bytes"), 0, "{again}");
}

#[test]
fn comparing_repairs_a_target_of_another_size() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    site.replicate("m", &[("disk", &disk)]);
    for (name, size) in [("shorter", MIB), ("longer", 5 * MIB)] {
        let target = site.disk(name);
        disks::copy(&disk, &target);
        disks::resize(&target, size);
        site.try_rehydrate("m", &[("disk", &target)], &["--existing", "compare"]).json();
        disks::assert_same(&disk, &target);
    }
}

#[test]
fn overwriting_what_is_there_gives_the_disk_and_nothing_of_the_old() {
    let site = Site::with_vault();
    let (disk, target) = (site.disk("disk.img"), site.disk("target.img"));
    assert!(disks::sparse(&disk, 4 * MIB));
    disks::write_at(&disk, MIB, &disks::seeded_bytes(1, 10_000));
    disks::random(&target, 6 * MIB, 2);
    site.replicate("m", &[("disk", &disk)]);
    site.try_rehydrate("m", &[("disk", &target)], &["--existing", "overwrite"]).json();
    disks::assert_same(&disk, &target);
}
