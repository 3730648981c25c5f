//! Disks whose writes are watched: block devices of a host that is written to all the time, without a module in its kernel.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_tests::fleet::Machine;
use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::loops::{Loop, Mounted, can_be_watched};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::{disks, need, tools};
use serde_json::Value;
use support::{Dice, MIB};

fn watched() -> Option<()> {
    can_be_watched().then_some(())
}

/// What the agent says of itself.
fn status(host: &AgentHost<'_>) -> Value {
    serde_json::from_str(&fs::read_to_string(host.state().join("status.json")).unwrap()).unwrap()
}

/// Waits for a cycle that reads less than this. One that lost sight of the disk for a moment, as a busy host may, reads all of it.
#[track_caller]
fn wait_until_it_reads_less_than(host: &AgentHost<'_>, bytes: u64) {
    for _ in 0..600 {
        if status(host)["read_bytes"].as_u64().unwrap() < bytes {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("each cycle reads everything: {}", status(host));
}

#[test]
fn every_point_of_devices_that_are_written_to_is_a_cut_although_the_agent_is_killed() {
    need!(watched());
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let machine = need!(Machine::on_devices(&site, "web", &[gateway.address()], 3));
    machine.host.enroll(&gateway);
    let mut dice = Dice::new(11);
    for _ in 0..6 {
        let agent = machine.host.start();
        std::thread::sleep(Duration::from_millis(dice.within(1500..5000)));
        agent.kill();
        agent.finish();
    }
    let agent = machine.host.start();
    let before = machine.newest_point();
    for _ in 0..600 {
        if machine.newest_point() > before {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Two cuts later: what the last one read was marked, not compared.
    let points = site.point_count("web");
    machine.host.wait_for_points(points + 2);
    machine.rest();
    machine.host.wait_for_points(points + 4);
    wait_until_it_reads_less_than(&machine.host, MIB);
    agent.interrupt();
    agent.finish();
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, true);
}

/// Writes files to a folder all the time, and remembers which numbers were durable when. Ends when it is dropped.
struct Journal {
    stop: Arc<AtomicBool>,
    durable: Arc<AtomicU64>,
    writer: Option<JoinHandle<Vec<(u64, i128)>>>,
}

fn millis() -> i128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

impl Journal {
    /// Numbers of four digits in one file, each synced; beside them other files that come and go.
    fn start(folder: &Path) -> Self {
        let (stop, durable) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, folder) = (stop.clone(), durable.clone(), folder.to_owned());
        let writer = std::thread::spawn(move || {
            let mut journal = File::create(folder.join("journal")).unwrap();
            let mut log = Vec::new();
            for number in 1.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let name = |n: u64| folder.join(format!("file-{}", n % 40));
                fs::write(name(number), disks::seeded_bytes(number, 30_000)).unwrap();
                let _ = fs::remove_file(name(number + 13));
                writeln!(journal, "{number:07}").unwrap();
                journal.sync_data().unwrap();
                log.push((number, millis()));
                count.store(number, Ordering::SeqCst);
            }
            log
        });
        Self { stop, durable, writer: Some(writer) }
    }

    /// The numbers, and when each was durable.
    fn end(mut self) -> Vec<(u64, i128)> {
        self.stop.store(true, Ordering::SeqCst);
        self.writer.take().unwrap().join().unwrap()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The last number in the journal of an ext4 image.
fn last_number(image: &Path) -> u64 {
    let out = tools::output(Command::new(tools::find("debugfs").unwrap()).args(["-R", "cat /journal"]).arg(image));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().filter_map(|line| line.trim_matches('\0').parse().ok()).max().unwrap_or(0)
}

/// A host with one ext4 disk that is mounted, and its agent.
struct Ext4<'a> {
    file: PathBuf,
    host: AgentHost<'a>,
    mounted: Mounted,
    device: Loop,
}

fn ext4<'a>(site: &'a Site, gateway: &GatewayHost<'_>) -> Option<Ext4<'a>> {
    watched()?;
    tools::need("fsfreeze")?;
    let file = site.disk("disk.img");
    disks::ext4(&file, 96 * MIB, 8 * MIB)?;
    let device = Loop::of(&file)?;
    let mounted = device.mount(&site.folder().join("mnt"));
    let host = AgentHost::new(site, "web", &[gateway.address()], &[("root", device.device())], "");
    host.enroll(gateway);
    Some(Ext4 { file, host, mounted, device })
}

fn time_of(point: &Value) -> i128 {
    let out = Command::new("date").args(["-d", point["time"].as_str().unwrap(), "+%s%3N"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn a_mounted_file_system_is_whole_and_complete_in_every_point_and_frozen_for_a_moment() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let Ext4 { file, host, mounted, device } = need!(ext4(&site, &gateway));
    let journal = Journal::start(mounted.at());
    let agent = host.start();
    host.wait_for_points(6);
    wait_until_it_reads_less_than(&host, 48 * MIB);
    agent.interrupt();
    assert_eq!(agent.finish().code(), Some(exit::DONE));
    let last = status(&host);
    assert!(last["held_ms"].as_u64().unwrap() < 10_000, "{last}");
    let log = journal.end();
    assert!(mounted.is_thawed());
    for point in site.points("web") {
        assert_eq!(point["consistency"], "filesystem", "{point}");
        let (seq, back) = (number(&point, "seq").to_string(), site.disk("back"));
        site.rehydrate("web", &seq, &[("root", &back)]);
        // Nothing has to be recovered from a journal: it was empty at the cut.
        disks::assert_ext4_healthy(&back);
        let (has, cut) = (last_number(&back), time_of(&point));
        let durable = log.iter().take_while(|(_, at)| *at < cut).last().map_or(0, |(number, _)| *number);
        assert!(has >= durable, "point {seq}: number {durable} was durable before the cut, the last in it is {has}");
        assert!(
            log.iter().find(|(n, _)| *n == has + 2).is_none_or(|(_, at)| *at >= cut),
            "point {seq} is later than it says"
        );
        fs::remove_file(back).unwrap();
    }
    // At rest, and brought home by the next cut: what was watched missed nothing.
    drop(mounted);
    host.ship();
    drop(device);
    site.wait_until_newest_is("web", "root", &file);
}

#[test]
fn a_killed_agent_leaves_nothing_frozen_and_loses_no_write() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let Ext4 { file, host, mounted, device } = need!(ext4(&site, &gateway));
    let journal = Journal::start(mounted.at());
    let mut dice = Dice::new(5);
    host.ship();
    for _ in 0..12 {
        let agent = host.start();
        std::thread::sleep(Duration::from_millis(dice.within(100..1800)));
        agent.kill();
        agent.finish();
        let before = journal.durable.load(Ordering::SeqCst);
        let start = Instant::now();
        while journal.durable.load(Ordering::SeqCst) < before + 2 {
            assert!(start.elapsed() < Duration::from_secs(20), "it stays frozen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    journal.end();
    assert!(mounted.is_thawed());
    drop(mounted);
    host.ship();
    drop(device);
    site.wait_until_newest_is("web", "root", &file);
}

#[test]
fn image_files_that_can_be_cloned_are_held_still_for_a_clone_only_and_no_clone_is_left() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (file, mkfs) = (site.disk("xfs.img"), need!(tools::need("mkfs.xfs")));
    disks::zeroes(&file, disks::XFS_BYTES_MIN);
    tools::succeed(Command::new(mkfs).args(["-q", "-m", "reflink=1"]).arg(&file));
    let device = need!(Loop::of(&file));
    let mounted = device.mount(&site.folder().join("mnt"));
    let machine = Machine::in_folder(&site, "web", &[gateway.address()], 7, mounted.at());
    machine.host.enroll(&gateway);
    let config = machine.host.state().with_file_name("agent.toml");
    let check = site.run(&["agent", "check", "--config", config.to_str().unwrap(), "--json"]).json();
    assert!(check["disks"].as_array().unwrap().iter().all(|d| d["source"] == "clone"), "{check}");
    for _ in 0..2 {
        let agent = machine.host.start();
        machine.host.wait_for_points(site.point_count("web") + 2);
        agent.kill();
        agent.finish();
    }
    let agent = machine.host.start();
    let points = site.point_count("web");
    machine.host.wait_for_points(points + 3);
    machine.rest();
    machine.host.wait_for_points(points + 5);
    wait_until_it_reads_less_than(&machine.host, MIB);
    agent.interrupt();
    agent.finish();
    machine.wait_until_all_is_committed();
    machine.assert_points_are_cuts(1, true);
    let left: Vec<_> = fs::read_dir(mounted.at()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), machine.disks().len(), "{left:?}");
    drop((machine, mounted));
}

#[test]
fn the_state_directory_may_lie_on_the_disk_that_is_protected() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let Ext4 { host, mounted, device, .. } = need!(ext4(&site, &gateway));
    let state = mounted.at().join("state");
    let config = host.state().with_file_name("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    tools::succeed(Command::new("cp").arg("-a").arg(host.state()).arg(&state));
    fs::write(&config, text.replace(host.state().to_str().unwrap(), state.to_str().unwrap())).unwrap();
    let journal = Journal::start(mounted.at());
    for _ in 0..3 {
        host.ship();
    }
    assert!(!journal.end().is_empty() && mounted.is_thawed());
    host.wait_for_points(3);
    assert_eq!(site.points("web")[2]["consistency"], "filesystem");
    drop((mounted, device));
}

#[test]
fn what_cannot_be_watched_is_compared_and_the_agent_says_why() {
    need!(watched());
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let file = site.disk("disk.img");
    disks::random(&file, 4 * MIB, 1);
    let device = need!(Loop::of(&file));
    let image = site.disk("image.img");
    disks::random(&image, MIB, 2);
    let all = [("root", device.device()), ("data", image.as_path())];
    let mut host = AgentHost::new(&site, "web", &[gateway.address()], &all, "");
    host.enroll(&gateway);
    let config = host.state().with_file_name("agent.toml");
    let check = || site.run(&["agent", "check", "--config", config.to_str().unwrap(), "--json"]);
    let said = check().json();
    assert_eq!((&said["disks"][0]["source"], &said["disks"][1]["source"]), (&"ebpf".into(), &"image".into()), "{said}");
    assert!(said["disks"][1]["why"].as_str().unwrap().contains("clone"), "{said}");
    assert_eq!(said["consistency"], "crash");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}source = \"ebpf\"\n")).unwrap();
    check().assert_refused(exit::USAGE, &["disk data", "ebpf"]);
    host.try_ship().assert_refused(exit::USAGE, &["disk data", "ebpf"]);
    fs::write(&config, &text).unwrap();
    // Without the privilege.
    let setpriv = need!(tools::need("setpriv"));
    let without = ["--bounding-set=-bpf,-sys_admin,-perfmon", "--inh-caps=-bpf,-sys_admin,-perfmon"].map(str::to_owned);
    host.launch_by(&[&[setpriv.to_str().unwrap().to_owned()], &without[..]].concat());
    host.ship();
    host.wait_for_points(1);
    host.launch_by(&[]);
    disks::write_at(device.device(), 2 * MIB, b"new");
    host.ship();
    host.wait_for_points(2);
    File::open(device.device()).unwrap().sync_all().unwrap();
    drop(device);
    site.wait_until_newest_is("web", "root", &file);
}
