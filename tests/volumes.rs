//! Disks that are volumes of LVM or ZFS, captured by snapshots: with stand-ins for their programs, because no kernel that tests run on has them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use landfall_tests::fleet::Machine;
use landfall_tests::landfall::{Running, Site, exit, number};
use landfall_tests::loops::{Loop, can_be_watched};
use landfall_tests::service::{AgentHost, GatewayHost, enrolled};
use landfall_tests::volumes::{Kind, StandIns};
use landfall_tests::{disks, need, tools};
use serde_json::Value;
use support::MIB;

/// Waits until something is so: 300 s at most.
#[track_caller]
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it never was so: {what}");
}

fn status(host: &AgentHost<'_>) -> Value {
    let text = fs::read_to_string(host.state().join("status.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn end(agent: Running) -> String {
    agent.interrupt();
    let ran = agent.finish();
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    ran.story()
}

/// A machine on loop devices that the stand-ins call volumes.
fn machine<'a>(site: &'a Site, gateway: &GatewayHost<'_>, kind: Kind) -> Option<(Machine<'a>, StandIns)> {
    if kind == Kind::Zfs {
        tools::need("unshare")?;
    }
    let mut machine = Machine::on_devices(site, "web", &[gateway.address()], 3)?;
    let lab = StandIns::new(site, kind, &machine.disks());
    machine.host.enroll(gateway);
    machine.host.launch_by(&lab.launcher());
    Some((machine, lab))
}

/// Several cycles under writes, an agent that is killed and one that is not: every point is a cut, little is read, and nothing is left.
fn cycles(kind: Kind, source: &str) {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, kind));
    let check = machine.host.check().json();
    assert!(check["disks"].as_array().unwrap().iter().all(|disk| disk["source"] == source), "{check}");
    assert_eq!(lab.snapshots(), [""; 0], "a check leaves nothing");
    let mut points = 0;
    for _ in 0..2 {
        let agent = machine.host.start();
        machine.host.wait_for_points(points + 3);
        agent.kill();
        agent.finish();
        assert!(!lab.snapshots().is_empty(), "one snapshot of each stays between cycles");
        points = site.point_count("web");
    }
    let agent = machine.host.start();
    for _ in 0..3 {
        machine.host.wait_for_points(points + 2);
        // Wherever a cycle is: what it has not brought is in the next one.
        gateway.kill();
        gateway.start();
        points = site.point_count("web");
    }
    machine.host.wait_for_points(points + 2);
    machine.rest();
    machine.host.wait_for_points(points + 4);
    wait_until("a cycle reads what changed", || status(&machine.host)["read_bytes"].as_u64().unwrap() < MIB);
    end(agent);
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, true);
    assert_eq!(lab.snapshots(), [""; 0], "also what the killed agents left is gone");
    if kind == Kind::Lvm {
        assert_eq!(lab.get("held"), "-");
    } else {
        let together = |line: &String| line.starts_with("zfs snapshot") && line.matches("tank/").count() == 3;
        assert!(lab.log().iter().filter(|line| together(line)).count() > 5, "one command for all volumes of a pool");
    }
}

#[test]
fn every_point_of_thin_volumes_is_a_cut_and_no_snapshot_is_left() {
    cycles(Kind::Lvm, "lvm-thin");
}

#[test]
fn every_point_of_volumes_of_zfs_is_a_cut_and_no_snapshot_is_left() {
    cycles(Kind::Zfs, "zfs");
}

/// Whatever a program prints that is wrong, all is compared, and the points are cuts.
fn wrong_output(kind: Kind, program: &str, faults: &[&str]) {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, kind));
    let agent = machine.host.start();
    machine.host.wait_for_points(2);
    for fault in faults {
        lab.fault(program, fault);
        wait_until("a cycle compares all", || status(&machine.host)["read_bytes"].as_u64().unwrap() >= 4 * MIB);
        machine.host.wait_for_points(site.point_count("web") + 1);
        lab.fault(program, "");
        machine.host.wait_for_points(site.point_count("web") + 3);
    }
    machine.rest();
    machine.host.wait_for_points(site.point_count("web") + 3);
    wait_until("a cycle reads what changed", || status(&machine.host)["read_bytes"].as_u64().unwrap() < MIB);
    let said = end(agent);
    assert!(said.contains("what was written to it is not known"), "{said}");
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, true);
    assert_eq!(lab.snapshots(), [""; 0]);
}

#[test]
fn what_thin_delta_does_not_say_rightly_is_compared() {
    wrong_output(Kind::Lvm, "thin_delta", &["truncated", "warns", "fails"]);
}

#[test]
fn what_zstream_does_not_say_rightly_is_compared() {
    wrong_output(Kind::Zfs, "zstream", &["truncated", "warns", "fails"]);
}

/// A pool that is nearly full gets no snapshot, and one that fills up gets back what ours take.
fn full_pool(kind: Kind, room: &str, nearly_full: &str, fuller: &str) {
    if !can_be_watched() {
        return;
    }
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, kind));
    let roomy = lab.get(room);
    lab.set(room, nearly_full);
    let check = machine.host.check().json();
    for disk in check["disks"].as_array().unwrap() {
        let why = disk["why"].as_str().unwrap();
        assert!(disk["source"] == "ebpf" && why.contains("nearly full"), "{check}");
    }
    lab.set(room, &roomy);
    // Between two cycles.
    machine.host.reconfigure(|text| text.replace("interval = \"1s\"", "interval = \"12h\""));
    let agent = machine.host.start();
    machine.host.wait_for_points(1);
    assert_eq!(lab.snapshots().len(), 3);
    lab.set(room, fuller);
    wait_until("the snapshots are given up", || lab.snapshots().is_empty());
    let said = end(agent);
    assert!(said.contains("the pool fills up"), "{said}");
    // At a cut, while there is room below.
    lab.set(room, &roomy);
    machine.host.reconfigure(|text| text.replace("interval = \"12h\"", "interval = \"1s\""));
    let agent = machine.host.start();
    machine.host.wait_for_points(site.point_count("web") + 2);
    lab.set(room, nearly_full);
    wait_until("the snapshots are given up", || lab.snapshots().is_empty());
    let points = site.point_count("web");
    machine.host.wait_for_points(points + 2);
    machine.rest();
    machine.host.wait_for_points(points + 4);
    assert_eq!(lab.snapshots(), [""; 0]);
    let said = end(agent);
    assert!(said.contains("nearly full") && said.contains("ebpf"), "{said}");
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, true);
    assert_eq!(site.points("web").last().unwrap()["consistency"], "application");
}

#[test]
fn a_thin_pool_is_never_filled_by_snapshots() {
    full_pool(Kind::Lvm, "usage", "820/1024 30/100", "17/1024 93/100");
}

#[test]
fn a_pool_of_zfs_is_never_filled_by_snapshots() {
    full_pool(Kind::Zfs, "capacity", "80", "95");
}

#[test]
fn the_metadata_snapshot_of_a_killed_agent_is_released_and_that_of_somebody_else_is_not() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, Kind::Lvm));
    let agent = machine.host.start();
    machine.host.wait_for_points(2);
    lab.fault("thin_delta", "hangs");
    let hanging = site.folder().join("stand-ins/hanging");
    wait_until("thin_delta runs", || fs::read_to_string(&hanging).is_ok_and(|pid| pid.ends_with('\n')));
    agent.kill();
    agent.finish();
    tools::succeed(Command::new("kill").arg(fs::read_to_string(&hanging).unwrap().trim()));
    lab.fault("thin_delta", "");
    assert_eq!(lab.get("held"), "95");
    let agent = machine.host.start();
    wait_until("the next agent releases it", || lab.get("held") == "-");
    machine.host.wait_for_points(site.point_count("web") + 2);
    end(agent);
    assert_eq!(lab.get("held"), "-");
    lab.set("held", "777");
    let before = lab.log().len();
    machine.host.ship();
    assert_eq!(lab.get("held"), "777");
    assert!(!lab.log()[before..].iter().any(|line| line.contains("release_metadata_snap")));
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, false);
    assert_eq!(lab.snapshots(), [""; 0]);
}

#[test]
fn what_is_missing_for_snapshots_is_told_and_another_source_is_taken() {
    if !can_be_watched() {
        return;
    }
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, Kind::Lvm));
    let assert_says = |words: &str| {
        let check = machine.host.check().json();
        let disk = &check["disks"][0];
        assert!(disk["source"] == "ebpf" && disk["why"].as_str().unwrap().contains(words), "{check}");
    };
    lab.set("version", "thin_delta 1.0.3");
    assert_says("does not name all differences");
    lab.fault("lvcreate", "fails");
    lab.set("version", "thin_delta 1.0.6");
    assert_says("lvcreate --snapshot: Device vg0-pool-tpool not found");
    lab.uninstall("lvcreate");
    if !["/usr/sbin/lvcreate", "/sbin/lvcreate"].iter().any(|path| PathBuf::from(path).exists()) {
        assert_says("lvcreate was not found (install lvm2)");
    }
    machine.host.reconfigure(|text| text.replace("name = \"root\"", "name = \"root\"\nsource = \"lvm-thin\""));
    machine.host.check().assert_refused(exit::USAGE, &["disk root", "lvm-thin"]);
    machine.host.try_ship().assert_refused(exit::USAGE, &["disk root", "lvm-thin", "\"auto\""]);
    machine.host.reconfigure(|text| text.replace("\"lvm-thin\"", "\"zfs\""));
    machine.host.check().assert_refused(exit::USAGE, &["disk root", "no volume of ZFS"]);
}

#[test]
fn snapshots_of_zfs_that_have_no_device_are_told_with_what_to_do() {
    if !can_be_watched() {
        return;
    }
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (machine, lab) = need!(machine(&site, &gateway, Kind::Zfs));
    lab.set("snapdev", "hidden");
    let check = machine.host.check().json();
    let why = check["disks"][1]["why"].as_str().unwrap();
    assert!(check["disks"][1]["source"] == "ebpf" && why.contains("zfs set snapdev=visible 'tank/data'"), "{check}");
    assert!(!lab.log().iter().any(|line| line.starts_with("zfs set") || line.starts_with("zfs snapshot")));
}

#[test]
fn a_file_system_on_a_thin_volume_is_frozen_by_lvm_alone_and_whole_in_every_point() {
    let site = Site::with_vault();
    let group = "[[group]]\nname = \"shop\"\nmachines = [\"web\", \"db\"]\ninterval = \"1s\"";
    let mut gateway = GatewayHost::new(&site, "gw", group);
    gateway.start();
    need!(tools::need("fsfreeze"));
    let file = site.disk("disk.img");
    need!(disks::ext4(&file, 64 * MIB, 8 * MIB));
    let device = need!(Loop::of(&file));
    let mounted = device.mount(&site.folder().join("mnt"));
    let mut host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", device.device())], "");
    let lab = StandIns::new(&site, Kind::Lvm, &[("root", device.device())]);
    // It fails where anybody else has frozen it, as kernels before 6.8 do.
    lab.is_mounted("root", mounted.at());
    host.enroll(&gateway);
    host.launch_by(&lab.launcher());
    let check = host.check().json();
    assert!(check["disks"][0]["source"] == "lvm-thin" && check["consistency"] == "filesystem", "{check}");
    let agent = host.start();
    for n in 0..60_u64 {
        fs::write(mounted.at().join(format!("file-{}", n % 20)), disks::seeded_bytes(n, 40_000)).unwrap();
        if n % 10 == 9 {
            host.wait_for_points(site.point_count("web") + 1);
        }
    }
    // Nothing holds it still until a group's moment.
    let (_, db) = enrolled(&site, &gateway, "db", 100_000, "freeze_command = \"true\"");
    let agent_of_db = db.start();
    gateway.status_where(|status| {
        let why = status["groups"]["shop"]["why"].as_str().unwrap_or_default();
        why.contains("web: file systems of this machine are held still by LVM's snapshots only")
    });
    end(agent_of_db);
    end(agent);
    assert!(mounted.is_thawed());
    for point in site.points("web") {
        assert!(point["consistency"] == "filesystem" && point["group"].is_null(), "{point}");
        let (seq, back) = (number(&point, "seq").to_string(), site.disk("back"));
        site.rehydrate("web", &seq, &[("root", &back)]);
        disks::assert_ext4_healthy(&back);
        fs::remove_file(back).unwrap();
    }
    assert_eq!(lab.snapshots(), [""; 0]);
    drop(mounted);
    // Not mounted any more: nothing is frozen.
    lab.is_mounted("root", "".as_ref());
    host.ship();
    drop(device);
    site.wait_until_newest_is("web", "root", &file);
}
