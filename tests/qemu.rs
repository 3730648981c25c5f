//! Virtual machines that are captured from their host: real guests, which write all the time, under a real QEMU.
//!
//! The guest's writer writes records in a fixed order, one after the other, in turns to two disks, and waits for each to be durable. So whatever the disks hold at one moment is what the first N records
//! make of them, for some N: a point is right if it is that, byte for byte, on both disks.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use landfall_qmp::{GuestAgent, Qmp};
use landfall_tests::guest::{Guest, GuestDisk, Programs};
use landfall_tests::landfall::{Running, Site, exit, number};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::{disks, need, tools};
use serde_json::{Value, json};
use support::{Dice, MIB};

const LONG: Duration = Duration::from_secs(120);
const RECORD: usize = 4096;
/// Records that a disk has room for.
const SLOTS: usize = 2048;
const DISK_BYTES: u64 = (SLOTS * RECORD) as u64;
/// Several times what an agent reads ahead of its link.
const LARGE_BYTES: u64 = 96 * MIB;

/// tests/tools/guest-writer.c
const WRITER: &str = "exec writer";

/// A guest with a system disk, two that its writer writes to, one raw, one qcow2, and a large one that takes long to read.
struct Machine {
    programs: Programs,
    folder: PathBuf,
    guest: Option<Guest>,
}

impl Machine {
    fn new(site: &Site, programs: Programs, start: &str) -> Option<Self> {
        let folder = site.folder().join("vm");
        fs::create_dir(&folder).unwrap();
        let mut machine = Self { programs, folder, guest: None };
        let writer = machine.folder.join("writer");
        machine.programs.compile("guest-writer.c", &writer)?;
        let programs = [("writer", writer.as_path())];
        machine.programs.system_disk_with(&machine.path("root"), 64 * MIB, start, &programs);
        for (name, seed) in [("a", 1), ("b", 2)] {
            disks::random(&machine.path(&format!("{name}-first")), DISK_BYTES, seed);
        }
        disks::random(&machine.path("large"), LARGE_BYTES, 3);
        fs::copy(machine.path("a-first"), machine.path("a")).unwrap();
        let (raw, image) = (machine.path("b-first"), machine.image());
        tools::succeed(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(image));
        machine.start();
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.raw"))
    }

    fn image(&self) -> PathBuf {
        self.folder.join("b.qcow2")
    }

    fn start(&mut self) {
        let (root, a, b, large) = (self.path("root"), self.path("a"), self.image(), self.path("large"));
        let written = [GuestDisk::raw("a", &a), GuestDisk::qcow2("b", &b)];
        let all = [&[GuestDisk::raw("root", &root)], &written[..], &[GuestDisk::raw("large", &large)]].concat();
        self.guest = None;
        self.guest = Some(self.programs.start(&self.folder.join("run"), &all, &[]));
    }

    fn guest(&self) -> &Guest {
        self.guest.as_ref().unwrap()
    }

    fn qmp(&self) -> Qmp {
        Qmp::connect(&self.guest().qmp(), LONG).unwrap()
    }

    /// How many records the writer says to have written, at least.
    fn wrote(&self) -> usize {
        let said = self.guest().serial();
        let numbers = said.lines().filter_map(|l| l.trim().strip_prefix("WROTE ")?.strip_suffix('.')?.parse().ok());
        numbers.max().unwrap_or(0)
    }

    fn wait_until_wrote(&self, count: usize) {
        self.guest().wait_until(&format!("record {count}"), |_| self.wrote() >= count);
    }

    /// Has the writer rest; the number of its last record.
    fn rest(&self) -> usize {
        let before = self.guest().serial().len();
        self.guest().run("touch /rest");
        let mut last = 0;
        self.guest().wait_until("rest", |said| {
            let numbers = said.get(before..).unwrap_or_default().lines();
            let rests =
                numbers.filter_map(|l| l.trim().strip_prefix("RESTS ")?.strip_suffix('.')?.parse().ok()).next_back();
            last = rests.unwrap_or(0);
            rests.is_some()
        });
        last
    }

    fn go_on(&self) {
        // On the disk, too: a power cut may follow.
        self.guest().run("rm /rest; sync");
    }

    /// Fails the test if the guest noticed anything, or something of a cut is left.
    #[track_caller]
    fn assert_nothing_is_left(&self) {
        let mut qmp = self.qmp();
        assert_eq!(qmp.execute("query-block-exports", Value::Null).unwrap(), json!([]));
        let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).unwrap();
        for node in nodes.as_array().unwrap() {
            assert!(!node["node-name"].as_str().unwrap().starts_with("landfall"), "{node}");
        }
        for block in qmp.execute("query-block", Value::Null).unwrap().as_array().unwrap() {
            assert!(block["inserted"]["node-name"].as_str().unwrap().starts_with("node-"), "{block}");
        }
        assert_eq!(qmp.execute("query-status", Value::Null).unwrap()["status"], "running");
        assert!(!self.guest().serial().contains("WRITE-ERROR"));
    }
}

/// What the first `count` records make of the two disks.
fn model(machine: &Machine, count: usize) -> [Vec<u8>; 2] {
    let mut disks = [fs::read(machine.path("a-first")).unwrap(), fs::read(machine.path("b-first")).unwrap()];
    for n in 1..=count {
        let at = n % SLOTS * RECORD;
        disks[n % 2][at..at + RECORD].copy_from_slice(format!("{n:04096}").as_bytes());
    }
    disks
}

/// The newest record on a disk.
fn newest(disk: &[u8]) -> usize {
    let records = disk.chunks(RECORD).filter_map(|record| std::str::from_utf8(record).ok()?.parse().ok());
    records.max().unwrap_or(0)
}

fn status(host: &AgentHost<'_>) -> Value {
    serde_json::from_str(&fs::read_to_string(host.state().join("status.json")).unwrap()).unwrap()
}

/// Fails the test unless every point is a cut; returns the records of each.
#[track_caller]
fn assert_points_are_cuts(site: &Site, machine: &Machine) -> Vec<usize> {
    let mut all = Vec::new();
    for point in site.points("web") {
        let seq = number(&point, "seq").to_string();
        let (a, b) = (site.disk("back-a"), site.disk("back-b"));
        site.rehydrate("web", &seq, &[("a", &a), ("b", &b)]);
        let back = [fs::read(&a).unwrap(), fs::read(&b).unwrap()];
        let count = newest(&back[0]).max(newest(&back[1]));
        let wanted = model(machine, count);
        for (name, at) in [("a", 0), ("b", 1)] {
            let differs = back[at].iter().zip(&wanted[at]).position(|(one, other)| one != other);
            assert!(
                back[at].len() == wanted[at].len() && differs.is_none(),
                "point {seq} is not what {count} records make of disk {name}: it differs at {differs:?}"
            );
        }
        assert!(all.last().is_none_or(|last| *last <= count), "point {seq} is older than the one before");
        all.push(count);
        fs::remove_file(a).unwrap();
        fs::remove_file(b).unwrap();
    }
    all
}

/// A monitor that takes its time: each command reaches QEMU so much later. What should be one moment is none there, unless the guest stands still.
struct SlowMonitor(PathBuf);

impl SlowMonitor {
    const DELAY: Duration = Duration::from_millis(15);

    /// Serves beside a guest's monitor for as long as the test lasts.
    fn of(socket: PathBuf, slow: PathBuf) -> Self {
        let listener = UnixListener::bind(&slow).unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(qemu) = UnixStream::connect(&socket) else { continue };
                let (mut answers, mut back) = (qemu.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
                let mut to = qemu.try_clone().unwrap();
                for line in BufReader::new(client).split(b'\n').map_while(Result::ok) {
                    std::thread::sleep(Self::DELAY);
                    if to.write_all(&[&line[..], b"\n"].concat()).is_err() {
                        break;
                    }
                }
                // The client has gone: QEMU serves the next.
                let _ = qemu.shutdown(Shutdown::Both);
            }
        });
        Self(slow)
    }
}

/// An agent on the guest's host, enrolled; `more`: lines of its section [qemu], and the disks.
fn host<'a>(site: &'a Site, gateway: &GatewayHost<'_>, qmp: &Path, scratch: &Path, more: &str) -> AgentHost<'a> {
    fs::create_dir_all(scratch).unwrap();
    let host = AgentHost::new(site, "web", &[gateway.address()], &[], "");
    let text = format!(
        "[agent]\nmachine = \"web\"\ngateways = [\"{}\"]\nstate_dir = \"{}\"\ninterval = \"1s\"\n\
         [qemu]\nqmp = \"{}\"\nscratch_dir = \"{}\"\n{more}",
        gateway.address(),
        host.state().display(),
        qmp.display(),
        scratch.display(),
    );
    fs::write(host.state().with_file_name("agent.toml"), text).unwrap();
    host.enroll(gateway);
    host
}

const TWO_DISKS: &str = "[[disk]]\nname = \"a\"\ndevice = \"a\"\n[[disk]]\nname = \"b\"\ndevice = \"node-b\"\n";

/// Waits for another `count` points.
fn wait_for_more(site: &Site, host: &AgentHost<'_>, count: usize) {
    host.wait_for_points(site.point_count("web") + count);
}

/// Ends an agent in order; what it has said.
fn stop(agent: Running) -> String {
    agent.interrupt();
    let ran = agent.finish();
    assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    // Figures, for whoever looks; nothing is asserted of time.
    ran.stderr
        .lines()
        .filter(|line| line.contains("stopped_us") || line.contains("held_ms"))
        .for_each(|l| eprintln!("{l}"));
    ran.stderr
}

#[test]
fn every_point_of_a_guest_that_writes_is_a_cut_although_agent_and_qemu_are_killed() {
    let programs = need!(Programs::find());
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_LOG", "landfall_agent=debug");
    let gateway = GatewayHost::started(&site, "gw");
    let mut machine = need!(Machine::new(&site, programs, WRITER));
    let monitor = SlowMonitor::of(machine.guest().qmp(), site.folder().join("slow.qmp"));
    let host = host(&site, &gateway, &monitor.0, &site.folder().join("scratch"), TWO_DISKS);
    let agent = host.start();
    wait_for_more(&site, &host, 3);
    agent.kill();
    agent.finish();
    let mut dice = Dice::new(7);
    for _ in 0..6 {
        let agent = host.start();
        std::thread::sleep(Duration::from_millis(dice.within(200..1500)));
        agent.kill();
        agent.finish();
        // If it died while the guest stood still, a guard lets it go on.
        machine.wait_until_wrote(machine.wrote() + 200);
    }
    // What the last one left is found, and what is known goes on: nothing is compared whole.
    let agent = host.start();
    wait_for_more(&site, &host, 3);
    let read = status(&host)["read_bytes"].as_u64().unwrap();
    assert!(read < DISK_BYTES, "{read} bytes are read for what was written in a second");
    assert_eq!(site.points("web").last().unwrap()["consistency"], "crash");
    let last = machine.rest();
    wait_for_more(&site, &host, 2);
    assert_eq!(status(&host)["read_bytes"], 0);
    stop(agent);
    machine.assert_nothing_is_left();
    // Another QEMU knows nothing: all is compared, and nothing is sent that did not change.
    machine.guest().run(&format!("echo {last} >/n; sync"));
    machine.go_on();
    machine.wait_until_wrote(last + 200);
    machine.guest.as_mut().unwrap().kill();
    machine.start();
    let agent = host.start();
    wait_for_more(&site, &host, 1);
    let again = status(&host);
    assert!(again["sent_bytes"].as_u64().unwrap() < DISK_BYTES, "everything was sent again: {again}");
    stop(agent);
    machine.assert_nothing_is_left();
    let counts = assert_points_are_cuts(&site, &machine);
    // A disk that grows is compared; at rest, its file is what the guest sees.
    machine.rest();
    let grown = json!({ "node-name": "node-a", "size": DISK_BYTES + MIB });
    machine.qmp().execute("block_resize", grown).unwrap();
    machine.guest().run("printf grown | dd of=/dev/vdb bs=512 seek=17000 conv=notrunc,fsync");
    host.ship();
    host.wait_for_points(counts.len() + 1);
    site.assert_disk_is("web", "latest", "a", &machine.path("a"));
    assert_eq!(disks::size(&machine.path("a")), DISK_BYTES + MIB);
    assert!(counts.first() < counts.last() && counts.contains(&last), "{counts:?} {last}");
}

/// A small file system that QEMU sees too. `None` where this machine cannot do that.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mount =
            tools::output(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(at));
        if !mount.status.success() {
            tools::missing("leave to mount a file system");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Stops the agent in the middle of a cycle: when QEMU exports what it reads, and the agent has no connection to QEMU.
fn pause_while_it_reads(machine: &Machine, agent: &Running) {
    let start = Instant::now();
    while start.elapsed() < LONG {
        agent.pause();
        let exports = Qmp::connect(&machine.guest().qmp(), Duration::from_millis(300))
            .and_then(|mut qmp| qmp.execute("query-block-exports", Value::Null));
        if exports.is_ok_and(|exports| exports != json!([])) {
            return;
        }
        agent.resume();
        std::thread::sleep(Duration::from_millis(3));
    }
    panic!("the agent never reads");
}

#[test]
fn a_guest_goes_on_where_there_is_no_room_for_what_it_overwrites_and_later_points_are_right() {
    let programs = need!(Programs::find());
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_LOG", "landfall_agent=info");
    let scratch = site.folder().join("scratch");
    let _small = need!(Small::mount(&scratch, 2 * MIB));
    let gateway = GatewayHost::started(&site, "gw");
    let machine = need!(Machine::new(&site, programs, WRITER));
    // The first cycle reads everything, and the disks that are written to last.
    let disks = format!("[[disk]]\nname = \"large\"\ndevice = \"large\"\n{TWO_DISKS}");
    let host = host(&site, &gateway, &machine.guest().qmp(), &scratch, &disks);
    let agent = host.start();
    pause_while_it_reads(&machine, &agent);
    // 6 MiB on each disk: several times what there is room for.
    machine.wait_until_wrote(machine.wrote() + 1600);
    assert_eq!(machine.qmp().execute("query-status", Value::Null).unwrap()["status"], "running");
    agent.resume();
    wait_for_more(&site, &host, 2);
    let last = machine.rest();
    wait_for_more(&site, &host, 2);
    let said = stop(agent);
    assert!(said.contains("the snapshot cannot be read"), "no cycle was in want of room: {said}");
    machine.assert_nothing_is_left();
    assert_eq!(assert_points_are_cuts(&site, &machine).last(), Some(&last));
}

/// Writes files all the time, and counts them in a journal; each is durable before the next.
const FILES: &str = r"
n=0
while true; do
    n=$((n + 1))
    dd if=/dev/urandom of=/file-$((n % 20)) bs=4k count=5 conv=fsync 2>/dev/null
    echo $n >>/journal
    sync
    echo DURABLE $n.
done
";

#[test]
fn a_guests_file_system_is_whole_in_every_point_where_its_agent_freezes_it() {
    let programs = need!(Programs::find());
    need!(tools::need("e2fsck"));
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_LOG", "landfall_agent=debug");
    let gateway = GatewayHost::started(&site, "gw");
    let machine = need!(Machine::new(&site, programs, FILES));
    let agent_socket = machine.guest().agent();
    let disk = "[[disk]]\nname = \"root\"\ndevice = \"root\"\n[[disk]]\nname = \"b\"\ndevice = \"b\"\nexclude = true\n";
    let more = format!("guest_agent = \"{}\"\n{disk}", agent_socket.display());
    let host = host(&site, &gateway, &machine.guest().qmp(), &site.folder().join("scratch"), &more);
    let config = host.state().with_file_name("agent.toml");
    let check = || site.run(&["agent", "check", "--config", config.to_str().unwrap(), "--json"]);
    let said = check().json();
    assert_eq!((&said["disks"][0]["source"], &said["consistency"]), (&"qemu".into(), &"filesystem".into()), "{said}");
    assert_eq!(said["disks"][1]["source"], Value::Null);
    let durable = || machine.guest().serial().matches("DURABLE").count();
    let mut dice = Dice::new(3);
    for _ in 0..8 {
        let agent = host.start();
        std::thread::sleep(Duration::from_millis(dice.within(50..900)));
        agent.kill();
        agent.finish();
        // Whatever was frozen is thawed, by nobody but the guard.
        let before = durable();
        machine.guest().wait_until("the guest writes again", |_| durable() > before + 1);
    }
    let agent = host.start();
    wait_for_more(&site, &host, 3);
    stop(agent);
    for point in site.points("web") {
        assert_eq!(point["consistency"], "filesystem", "{point}");
        let (seq, back) = (number(&point, "seq").to_string(), site.disk("back"));
        site.rehydrate("web", &seq, &[("root", &back)]);
        // Nothing has to be recovered from a journal: it was empty at the cut.
        disks::assert_ext4_healthy(&back);
        fs::remove_file(back).unwrap();
    }
    // The guest is not frozen any more, and what guards run for an agent that died does its work.
    assert_eq!(machine.guest().run("touch /thawed && echo yes"), "yes");
    let mut guest = GuestAgent::connect(&agent_socket, LONG).unwrap();
    assert!(!guest.is_frozen(LONG).unwrap());
    assert_eq!(guest.freeze(LONG).unwrap(), 1);
    drop(guest);
    let released = site.run(&["agent", "release", "--guest-agent", agent_socket.to_str().unwrap()]);
    assert_eq!(released.code(), Some(exit::DONE), "{}", released.story());
    assert!(!GuestAgent::connect(&agent_socket, LONG).unwrap().is_frozen(LONG).unwrap());
    machine.qmp().execute("stop", Value::Null).unwrap();
    let released = site.run(&["agent", "release", "--qmp", machine.guest().qmp().to_str().unwrap()]);
    assert_eq!(released.code(), Some(exit::DONE), "{}", released.story());
    assert_eq!(machine.qmp().execute("query-status", Value::Null).unwrap()["status"], "running");
    let points = site.point_count("web");
    // Without the guest's agent there are points all the same, and they say so; so does the check.
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(agent_socket.to_str().unwrap(), "/nowhere/agent")).unwrap();
    host.ship();
    host.wait_for_points(points + 1);
    assert_eq!(site.points("web").last().unwrap()["consistency"], "crash");
    let said = check().json();
    assert!(said["consistency"] == "crash" && said["disks"][0]["why"].as_str().unwrap().contains("/nowhere"), "{said}");
    // A disk that the guest does not have is named, with those that it has.
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("device = \"root\"", "device = \"nobody\"")).unwrap();
    check().assert_refused(exit::USAGE, &["disk root", "nobody", "it has: root"]);
    let refused = host.try_ship();
    assert!(refused.code() == Some(exit::NOT_FOUND) && refused.stderr.contains("nobody"), "{}", refused.story());
    machine.assert_nothing_is_left();
}
