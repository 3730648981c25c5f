//! Consistency groups and holds, end to end: real agents and a real gateway, over TLS on loopback, and disks that are written to meanwhile.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_tests::landfall::{Running, Site, exit, number};
use landfall_tests::service::{AgentHost, GatewayHost, Outage, enrolled};
use landfall_tests::{disks, need};
use serde_json::Value;
use support::MIB;

/// Bytes of one write; each disk has so many places for them.
const WRITE: u64 = 512;
const PLACES: u64 = 512;

/// What holds the application still on each machine: `frozen` is there while its freeze lasts, and `busy` while somebody has the turn.
struct Gates(PathBuf);

impl Gates {
    fn new(site: &Site) -> Self {
        let folder = site.folder().join("gates");
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn of(&self, machine: &str, what: &str) -> PathBuf {
        self.0.join(format!("{machine}.{what}"))
    }

    /// The line of a machine's configuration whose command holds it still: when that returns, no write is under way and none begins.
    /// It takes `delay` seconds, and does not return while `block` is there.
    fn freeze_command(&self, machine: &str, delay: u32) -> String {
        let script = self.of(machine, "sh");
        let path = |what| self.of(machine, what).display().to_string();
        let [frozen, busy, block, waits] = ["frozen", "busy", "block", "waits"].map(path);
        let text = format!(
            "if [ $LANDFALL_PHASE = thaw ]; then rm -f {frozen}; exit; fi\nsleep {delay}\nwhile [ -e {block} ]; do touch {waits}; sleep 0.02; done\n\
             until mkdir {busy} 2>/dev/null; do sleep 0.01; done\ntouch {frozen}\nrmdir {busy}\n"
        );
        fs::write(&script, text).unwrap();
        format!("freeze_command = \"/bin/sh {}\"", script.display())
    }

    fn is_frozen(&self, machine: &str) -> bool {
        self.of(machine, "frozen").exists()
    }
}

/// The place of a write on its disk, and its bytes.
fn write_of(number: u64, machines: u64) -> (u64, Vec<u8>) {
    let mut bytes = disks::seeded_bytes(number, usize::try_from(WRITE).unwrap());
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    (number / machines % PLACES * WRITE, bytes)
}

/// Writes 1, 2, 3, ... each to the disk of machine `n mod k`, and waits while that machine is held still.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Writer {
    fn start(gates: &Gates, machines: &[(&'static str, PathBuf)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, folder, machines) = (stop.clone(), Gates(gates.0.clone()), machines.to_vec());
        let files: Vec<_> = machines.iter().map(|(_, p)| fs::File::options().write(true).open(p).unwrap()).collect();
        let thread = std::thread::spawn(move || {
            let count = machines.len() as u64;
            for number in 1.. {
                let which = usize::try_from(number % count).unwrap();
                let (frozen, busy) = (folder.of(machines[which].0, "frozen"), folder.of(machines[which].0, "busy"));
                loop {
                    if stopped.load(Ordering::SeqCst) {
                        return number - 1;
                    }
                    let turn = fs::create_dir(&busy).is_ok();
                    let may = turn && !frozen.exists();
                    if may {
                        let (at, bytes) = write_of(number, count);
                        files[which].write_all_at(&bytes, at).unwrap();
                    }
                    if turn {
                        fs::remove_dir(&busy).unwrap();
                    }
                    if may {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            0
        });
        Self { stop, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// The highest number on a disk of machine `which`; fails the test unless every lower one of it is there too.
fn highest(disk: &Path, which: u64, machines: u64) -> u64 {
    let bytes = fs::read(disk).unwrap();
    let place = |at: u64| &bytes[usize::try_from(at).unwrap()..][..usize::try_from(WRITE).unwrap()];
    let number_at = |at: u64| u64::from_le_bytes(place(at)[..8].try_into().unwrap());
    let highest = (0..PLACES).map(|p| number_at(p * WRITE)).max().unwrap();
    assert!(highest == 0 || highest % machines == which, "write {highest} is on the disk of machine {which}");
    let of_machine = (1..=highest).filter(|n| n % machines == which);
    for number in of_machine.rev().take(usize::try_from(PLACES).unwrap()) {
        let (at, wanted) = write_of(number, machines);
        assert!(place(at) == wanted, "write {number} is not whole, although {highest} is there");
    }
    highest
}

/// Lets an agent begin cycles of its own rarely: what it ships after the first is a group's.
fn rarely(host: &AgentHost<'_>) {
    let config = host.state().with_file_name("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("interval = \"1s\"", "interval = \"1h\"")).unwrap();
}

/// What an agent says of itself.
fn agent_status(site: &Site, host: &AgentHost<'_>) -> Value {
    let config = host.state().with_file_name("agent.toml");
    site.run(&["agent", "status", "--config", config.to_str().unwrap(), "--json"]).json()
}

#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stop(agents: Vec<Running>) {
    for agent in agents {
        agent.interrupt();
        let ran = agent.finish();
        assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
    }
}

fn shop(machines: &str, interval: &str) -> String {
    format!("[[group]]\nname = \"shop\"\nmachines = [{machines}]\ninterval = \"{interval}\"")
}

/// Whether nothing waits for the store.
fn all_committed(status: &Value) -> bool {
    status["machines"].as_array().unwrap().iter().all(|m| m["waiting_since"].is_null())
}

/// Of each group that is complete: the number of its point of a machine.
fn complete_groups(site: &Site, machine: &str) -> BTreeMap<String, u64> {
    let points = site.points(machine).into_iter().filter(|p| p["group"]["complete"] == true);
    points.map(|p| (p["group"]["id"].as_str().unwrap().to_owned(), number(&p, "seq"))).collect()
}

#[test]
fn every_complete_group_is_one_moment_of_all_its_machines() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", &shop("\"web\", \"db\", \"mail\"", "1s"));
    gateway.start();
    let gates = Gates::new(&site);
    let machines = ["web", "db", "mail"].map(|name| (name, site.disk(&format!("{name}.img"))));
    let mut hosts = Vec::new();
    for (name, disk) in &machines {
        disks::zeroes(disk, WRITE * PLACES + 70_000);
        let freeze = gates.freeze_command(name, 0);
        let host = AgentHost::new(&site, name, &[gateway.address()], &[("root", disk.as_path())], &freeze);
        host.enroll(&gateway);
        hosts.push(host);
    }
    let writer = Writer::start(&gates, &machines);
    let agents: Vec<_> = hosts.iter().map(AgentHost::start).collect();
    gateway.status_where(|s| s["groups"]["shop"]["cuts"].as_u64() >= Some(4));
    stop(agents);
    let last = writer.end();
    let status = gateway.status_where(all_committed);
    assert!(status["groups"]["shop"]["taken"].is_string(), "{status}");
    gateway.stop();

    let groups = machines.each_ref().map(|(name, _)| complete_groups(&site, name));
    assert!(groups[0].len() >= 4, "{groups:?}");
    assert!(groups.iter().all(|g| g.keys().eq(groups[0].keys())), "complete for one is complete for all: {groups:?}");
    let mut before = 0;
    let mut ids: Vec<_> = groups[0].iter().collect();
    ids.sort_by_key(|(_, seq)| **seq);
    for (id, _) in ids {
        let mut held = Vec::new();
        for (which, ((name, _), group)) in (0..).zip(machines.iter().zip(&groups)) {
            let back = site.disk(&format!("back-{name}"));
            site.rehydrate(name, &group[id].to_string(), &[("root", &back)]);
            held.push(highest(&back, which, 3));
            fs::remove_file(back).unwrap();
        }
        // No machine has a write that comes after one which another lacks.
        let newest = *held.iter().max().unwrap();
        let wanted: Vec<u64> = (0..3).map(|which| (0..=newest).rev().find(|n| n % 3 == which).unwrap_or(0)).collect();
        assert_eq!(held, wanted, "group {id}: the writes do not fit together");
        assert!((before + 1..=last).contains(&newest), "writes go on from group to group: {before}, {newest}, {last}");
        before = newest;
    }
    assert!(machines.iter().all(|(name, _)| !gates.is_frozen(name)), "all is thawed");
    site.assert_sound();
}

#[test]
fn a_member_that_dies_before_the_moment_leaves_no_mark_and_all_thawed() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", &shop("\"web\", \"db\"", "2s"));
    gateway.start();
    let gates = Gates::new(&site);
    let host = |name: &'static str| {
        let (_, host) = enrolled(&site, &gateway, name, 200_000, &gates.freeze_command(name, 0));
        host.ship();
        host.wait_for_points(1);
        rarely(&host);
        host
    };
    let (web, db) = (host("web"), host("db"));
    let (agent_of_web, agent_of_db) = (web.start(), db.start());
    gateway.status_where(|s| s["groups"]["shop"]["cuts"].as_u64() >= Some(1));
    // The freeze of web does not return: the next cut stands before the moment.
    fs::write(gates.of("web", "block"), "").unwrap();
    until("web waits, and db is frozen", || gates.of("web", "waits").exists() && gates.is_frozen("db"));
    agent_of_db.kill();
    agent_of_db.finish();
    until("db is thawed without its agent", || !gates.is_frozen("db"));
    gateway
        .status_where(|s| s["groups"]["shop"]["why"].as_str().is_some_and(|why| why.starts_with("db: its link ended")));
    fs::remove_file(gates.of("web", "block")).unwrap();
    // It comes back, and there are groups again.
    let cuts = number(&gateway.status_where(|_| true)["groups"]["shop"], "cuts");
    let agent_of_db = db.start();
    gateway.status_where(|s| s["groups"]["shop"]["cuts"].as_u64() > Some(cuts) && s["groups"]["shop"]["why"].is_null());
    stop(vec![agent_of_web, agent_of_db]);
    assert!(!gates.is_frozen("web") && !gates.is_frozen("db"));
    gateway.status_where(all_committed);
    gateway.stop();
    // Of the cut that did not take place there is no mark: each that is there is of a whole group.
    for machine in ["web", "db"] {
        let points = site.points(machine);
        assert!(points.iter().all(|p| p["group"].is_null() || p["group"]["complete"] == true), "{machine}: {points:?}");
        assert!(complete_groups(&site, machine).len() >= 2, "{machine}: {points:?}");
    }
    site.assert_sound();
}

#[test]
fn a_member_that_fails_after_the_moment_leaves_a_group_that_is_shown_as_incomplete() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", &shop("\"web\", \"db\"", "15s"));
    gateway.start();
    let gates = Gates::new(&site);
    let host = |name: &'static str, delay: u32, more: &str| {
        let freeze = format!("{}\n{more}", gates.freeze_command(name, delay));
        let (_, host) = enrolled(&site, &gateway, name, 200_000, &freeze);
        host.ship_until_taken();
        rarely(&host);
        host
    };
    // When db is frozen, web was thawed by its guard, and cannot know it before it has read everything.
    let (web, db) = (host("web", 0, "freeze_max = \"3s\""), host("db", 5, ""));
    let agents = vec![web.start(), db.start()];
    let status = gateway
        .status_where(|s| s["groups"]["shop"]["why"].as_str().is_some_and(|why| why.contains("is incomplete: web: ")));
    assert!(status["groups"]["shop"]["taken"].is_null(), "{status}");
    until("a mark in the vault", || site.points("db").iter().any(|p| p["group"]["name"] == "shop"));
    stop(agents);
    let marked: Vec<_> = site.points("db").into_iter().filter(|p| !p["group"].is_null()).collect();
    assert!(marked.iter().all(|p| p["group"]["complete"] == false), "{marked:?}");
    assert!(site.points("web").iter().all(|p| p["group"].is_null()), "{:?}", site.points("web"));
    let told = site.run(&[
        "points",
        "--machine",
        "db",
        "--vault",
        site.url(),
        "--site-key",
        site.site_key().to_str().unwrap(),
    ]);
    assert!(told.stdout.contains("shop (incomplete)"), "{}", told.story());
    assert!(!gates.is_frozen("web") && !gates.is_frozen("db"));
    gateway.stop();
    site.assert_sound();
}

#[test]
fn a_group_that_cannot_be_taken_says_why() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", &shop("\"web\", \"db\"", "1s"));
    gateway.start();
    let why_is = |wanted: &str| {
        gateway.status_where(|s| s["groups"]["shop"]["why"].as_str().is_some_and(|why| why.contains(wanted)));
    };
    let gates = Gates::new(&site);
    let (_, web) = enrolled(&site, &gateway, "web", 100_000, &gates.freeze_command("web", 0));
    let (_, db) = enrolled(&site, &gateway, "db", 100_000, "");
    let agent_of_web = web.start();
    why_is("db has no link to this gateway");
    let agent_of_db = db.start();
    why_is("db: nothing can be held still on this machine");
    gateway.command(&["pause", "--machine", "web"]).json();
    why_is("web is held: an operator paused web");
    web.wait_for_points(1);
    db.wait_for_points(1);
    stop(vec![agent_of_web, agent_of_db]);
    for machine in ["web", "db"] {
        assert!(site.points(machine).iter().all(|p| p["group"].is_null()));
    }
    let people = site.run(&["status", "--config", gateway.folder().join("gateway.toml").to_str().unwrap()]);
    assert!(people.stdout.contains("Group shop: never taken; MISSED at "), "{}", people.story());
}

#[test]
fn a_machine_that_is_paused_begins_no_cycle_until_it_is_resumed_and_loses_nothing() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let (disk, host) = enrolled(&site, &gateway, "web", MIB, "");
    gateway.command(&["resume", "--machine", "web"]).assert_refused(exit::NOT_FOUND, &["web", "not paused"]);
    let agent = host.start();
    host.wait_for_points(2);
    let paused = gateway.command(&["pause", "--machine", "web"]).json();
    let held = || {
        let status = agent_status(&site, &host);
        let why = status["held"]["reason"].as_str().unwrap_or_default();
        why.contains("paused web") && status["last_cut"] == status["last_spooled"]
    };
    until("the agent says that it is held", held);
    let machine = |s: &Value| s["machines"][0].clone();
    let status =
        gateway.status_where(|s| machine(s)["paused"] == paused["paused"] && machine(s)["waiting_since"].is_null());
    assert_eq!(machine(&status)["health"], "warning", "{status}");
    let points = site.points("web");
    disks::write_at(&disk, 5000, &disks::seeded_bytes(2, 9000));
    // It was paused once, and it survives the gateway.
    gateway.kill();
    gateway.start();
    assert_eq!(gateway.command(&["pause", "--machine", "web"]).json(), paused);
    until("the agent is held again", || agent_status(&site, &host)["gateway"].is_string() && held());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(site.points("web"), points, "three intervals later: no cycle, and all points are there");
    gateway.command(&["resume", "--machine", "web"]).json();
    until("what was written meanwhile is in a point", || site.point_count("web") > points.len());
    gateway.status_where(|s| machine(s)["paused"].is_null() && machine(s)["health"] == "ok");
    stop(vec![agent]);
    site.assert_disk_is("web", &(points.len() + 1).to_string(), "root", &disk);
    // One cycle by hand asks too.
    gateway.command(&["pause", "--machine", "web"]).json();
    gateway.status_where(|s| machine(s)["paused"].is_string());
    host.try_ship().assert_refused(exit::UNAVAILABLE, &["paused web", "landfall resume"]);
    gateway.command(&["resume", "--machine", "web"]).json();
    gateway.status_where(|s| machine(s)["paused"].is_null());
    host.ship();
    site.assert_sound();
}

#[test]
fn while_the_spool_is_nearly_full_agents_hold_and_what_was_acknowledged_is_committed_later() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", "spool = \"10MiB\"");
    gateway.start();
    let (disk, other) = (site.disk("disk.img"), site.disk("other.img"));
    disks::zeroes(&disk, 12 * MIB);
    disks::random(&other, 100_000, 7);
    let web = AgentHost::new(&site, "web", &[gateway.address()], &[("root", disk.as_path())], "");
    let db = AgentHost::new(&site, "db", &[gateway.address()], &[("root", other.as_path())], "");
    for host in [&web, &db] {
        host.enroll(&gateway);
    }
    let agents = vec![web.start(), db.start()];
    for host in [&web, &db] {
        host.wait_for_points(1);
    }
    let held = |host: &AgentHost<'_>, wanted| {
        let status = agent_status(&site, host);
        let why = status["held"]["reason"].as_str().unwrap_or_default();
        why.contains(wanted) && status["last_cut"] == status["last_spooled"]
    };
    // What comes next of web is one cycle, which nearly fills the spool while the store is away.
    gateway.command(&["pause", "--machine", "web"]).json();
    until("web is paused", || held(&web, "paused web"));
    gateway.status_where(|s| s["machines"][1]["waiting_since"].is_null());
    let before = number(site.points("web").last().unwrap(), "seq");
    let outage = Outage::of(&site);
    disks::write_at(&disk, MIB, &disks::seeded_bytes(2, 9_600_000));
    let kept = site.disk("kept");
    disks::copy(&disk, &kept);
    gateway.command(&["resume", "--machine", "web"]).json();
    // Also another machine's cycles: there is room for none.
    until("both agents say that they are held", || {
        held(&web, "spool is nearly full") && held(&db, "spool is nearly full")
    });
    disks::write_at(&disk, 0, &disks::seeded_bytes(3, 50_000));
    disks::write_at(&other, 0, &disks::seeded_bytes(4, 50_000));
    let cycles = || [0, 1].map(|m| number(&gateway.status_where(|_| true)["machines"][m], "cycles"));
    std::thread::sleep(Duration::from_millis(1500));
    let counted = cycles();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(cycles(), counted, "three intervals later");
    outage.end();
    until("cycles of both", || cycles().iter().zip(counted).all(|(now, before)| *now > before));
    stop(agents);
    until("all is committed", || all_committed(&gateway.status_where(|_| true)));
    site.assert_disk_is("web", &(before + 1).to_string(), "root", &kept);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_disk_is("db", "latest", "root", &other);
    gateway.stop();
    site.assert_sound();
}

#[test]
fn a_gateway_whose_disk_is_nearly_full_lets_no_cycle_begin() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let (_, host) = enrolled(&site, &gateway, "web", MIB, "");
    host.ship();
    host.wait_for_points(1);
    gateway.stop();
    need!(gateway.start_in_small_file_system(60 * MIB));
    // Another gateway id: it may have to wait for the lease of the first.
    until("it is held", || {
        let ran = host.try_ship();
        assert_ne!(ran.code(), Some(exit::DONE), "{}", ran.story());
        ran.code() == Some(exit::UNAVAILABLE) && ran.stderr.contains("the disk of the gateway's spool is nearly full")
    });
    assert_eq!(site.point_count("web"), 1);
    gateway.stop();
    need!(gateway.start_in_small_file_system(300 * MIB));
    host.ship_until_taken();
    host.wait_for_points(2);
    gateway.stop();
    site.assert_sound();
}
