//! The gateway as a service, end to end: real agents and gateways as processes, over TLS on loopback.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::relay::Relay;
use landfall_tests::service::{AgentHost, GatewayHost, Outage, protected};
use landfall_tests::{disks, need, tools};
use support::{Dice, MIB, walk};

#[test]
fn an_agent_enrols_and_its_cuts_become_recovery_points() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 5 * MIB + 512, 1);
    disks::sparse(&data, 3 * MIB);
    disks::write_at(&data, MIB, &disks::seeded_bytes(2, 100_000));
    let named = [("root", root.as_path()), ("data", data.as_path())];
    let host = AgentHost::new(&site, "web", &[gateway.address()], &named, "");
    host.try_ship().assert_refused(exit::NOT_FOUND, &["enrol"]);
    host.enroll(&gateway);
    host.ship();
    host.wait_for_points(1);
    site.assert_disk_is("web", "1", "root", &root);
    site.assert_disk_is("web", "1", "data", &data);

    disks::write_at(&root, 2 * MIB, &disks::seeded_bytes(3, 5000));
    disks::write_at(&data, MIB, &vec![0; 50_000]);
    host.ship();
    host.wait_for_points(2);
    site.assert_disk_is("web", "2", "root", &root);
    site.assert_disk_is("web", "2", "data", &data);
    let points = site.points("web");
    assert!(number(&points[1]["shape"], "cpus") > 0 && points[1]["shape"]["nics"].is_array(), "{points:?}");
    assert!(number(&points[1], "stored_bytes") < 300_000, "only what changed is stored: {points:?}");
    gateway.status_where(|s| s["machines"][0]["seq"] == 2 && s["spool_bytes"] == 0 && s["running"] == true);
    site.assert_sound();
}

/// A request and its answer, as they are on the wire.
fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_tell_how_old_each_machines_newest_point_is() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", "metrics = \"127.0.0.1:0\"\nrate = \"100MiB\"");
    gateway.start();
    let (_, host) = protected(&site, &gateway, MIB);
    host.ship();
    host.wait_for_points(1);
    gateway.status_where(|s| s["machines"][0]["seq"] == 1 && s["machines"][0]["health"] == "ok");
    let metrics = get(gateway.metrics_address(), "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    let rpo = metrics.lines().find_map(|l| l.strip_prefix("landfall_machine_rpo_seconds{machine=\"web\"} ")).unwrap();
    assert!((0.0..60.0).contains(&rpo.parse::<f64>().unwrap()), "{metrics}");
    assert!(metrics.contains("landfall_machine_cycles_total{machine=\"web\"} 1\n"), "{metrics}");
    assert!(get(gateway.metrics_address(), "/health").starts_with("HTTP/1.1 200"));
    // Everything of the service is private but these two: nothing else is served without a certificate.
    assert!(get(gateway.metrics_address(), "/").starts_with("HTTP/1.1 404"));
}

#[test]
fn a_token_works_once_for_its_machine_at_its_gateway() {
    let site = Site::with_vault();
    let other_site = Site::with_vault();
    let (gateway, other) = (GatewayHost::started(&site, "gw"), GatewayHost::started(&other_site, "gw"));
    let disk = site.disk("disk.img");
    disks::random(&disk, 10_000, 1);
    let named = [("root", disk.as_path())];
    let web = AgentHost::new(&site, "web", &[gateway.address()], &named, "");
    let db = AgentHost::new(&site, "db", &[gateway.address()], &named, "");
    let token = gateway.token("web");
    db.try_enroll(gateway.address(), &token).assert_refused(exit::KEY, &["db"]);
    let token = gateway.token("web");
    web.try_enroll(other.address(), &token).assert_refused(exit::KEY, &[]);
    web.try_enroll(gateway.address(), &token).json();
    web.try_enroll(gateway.address(), &token).assert_refused(exit::KEY, &["token"]);
    let mistyped = token.replacen(['2', '3', 'A', 'B'], "7", 1);
    web.try_enroll(gateway.address(), &mistyped).assert_refused(exit::USAGE, &["token"]);
    web.ship();
    // Revoked, it is out until it enrols again.
    let revoked = gateway.command(&["gateway", "revoke", "--machine", "web"]).json();
    assert_eq!(revoked["known"], true, "{revoked}");
    std::thread::sleep(Duration::from_secs(2));
    web.try_ship().assert_refused(exit::KEY, &["revoked"]);
    web.enroll(&gateway);
    web.ship();
}

#[test]
fn nothing_acknowledged_is_lost_when_gateway_and_agent_are_killed_again_and_again() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    disks::random(&root, 6 * MIB, 1);
    disks::random(&data, MIB, 2);
    let named = [("root", root.as_path()), ("data", data.as_path())];
    let host = AgentHost::new(&site, "web", &[gateway.address()], &named, "");
    host.enroll(&gateway);
    let mut dice = Dice::new(31);
    let mut moments = Vec::new();
    for round in 0..25_u64 {
        for (disk, size) in [(&root, 6 * MIB), (&data, MIB)] {
            let at = dice.within(0..size - 20_000);
            let len = usize::try_from(dice.within(1..20_000)).unwrap();
            let bytes = if dice.once_in(4) { vec![0; len] } else { disks::seeded_bytes(round * 7 + size, len) };
            disks::write_at(disk, at, &bytes);
        }
        moments.push((fs::read(&root).unwrap(), fs::read(&data).unwrap()));
        let mut agent = host.start();
        let wait = Duration::from_millis(dice.within(5..900));
        let start = std::time::Instant::now();
        agent.wait_until(|| start.elapsed() > wait);
        match dice.within(0..3) {
            0 => agent.kill(),
            1 => gateway.kill(),
            _ => {}
        }
        agent.kill();
        agent.finish();
        gateway.kill();
        gateway.start();
    }
    host.ship_until_taken();
    gateway.stop();
    // Each point is the disks at one moment, both disks at the same one, and moments ascend.
    let mut from = 0;
    for point in site.points("web") {
        let seq = number(&point, "seq").to_string();
        let (a, b) = (site.disk(&format!("back-root-{seq}")), site.disk(&format!("back-data-{seq}")));
        site.rehydrate("web", &seq, &[("root", &a), ("data", &b)]);
        let back = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
        let found = moments[from..].iter().position(|m| *m == back);
        from += found.unwrap_or_else(|| panic!("point {seq} is no moment of the disks from {from} on"));
        fs::remove_file(a).unwrap();
        fs::remove_file(b).unwrap();
    }
    assert_eq!(from, moments.len() - 1, "the newest point is the newest moment");
    site.assert_sound();
}

#[test]
fn killed_at_every_step_of_a_cycle_the_gateway_loses_and_doubles_nothing() {
    for crash_point in support::IN_GATEWAY {
        let site = Site::with_vault();
        let mut gateway = GatewayHost::started(&site, "gw");
        let (disk, host) = protected(&site, &gateway, 6 * MIB);
        // The first cycle meets the claim of the machine, later ones do not.
        if crash_point != "generation.claimed" {
            host.ship();
            host.wait_for_points(1);
        }
        gateway.stop();
        disks::write_at(&disk, MIB, &disks::seeded_bytes(2, 3_000_000));
        gateway.start_to_die_at(crash_point);
        let told = host.try_ship().code() == Some(exit::DONE);
        gateway.wait_until_dead();
        gateway.start();
        if told {
            // Acknowledged is acknowledged: nothing more is asked of the agent.
            host.wait_for_points(2);
            site.assert_disk_is("web", "2", "root", &disk);
        }
        host.ship_until_taken();
        disks::write_at(&disk, 0, &disks::seeded_bytes(3, 5000));
        host.ship();
        let points = if crash_point == "generation.claimed" { 2 } else { 3 };
        host.wait_for_points(points);
        site.assert_disk_is("web", "latest", "root", &disk);
        gateway.status_where(|s| s["spool_bytes"] == 0);
        gateway.stop();
        site.assert_sound();
    }
}

#[test]
fn a_link_that_is_cut_at_any_byte_costs_time_and_no_point() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let relay = Relay::start(gateway.address());
    let disk = site.disk("disk.img");
    disks::random(&disk, 4 * MIB, 1);
    let host = AgentHost::new(&site, "web", &[&relay.address()], &[("root", disk.as_path())], "");
    host.enroll(&gateway);
    let mut dice = Dice::new(37);
    for round in 0..12_u64 {
        // Within the handshake, within the data, within the answer.
        relay.cut_after(dice.within(1..600_000));
        let taken = host.try_ship();
        assert!([Some(exit::DONE), Some(exit::UNAVAILABLE)].contains(&taken.code()), "{}", taken.story());
        relay.heal();
        host.ship_until_taken();
        disks::write_at(&disk, dice.within(0..3 * MIB), &disks::seeded_bytes(round + 5, 400_000));
    }
    // A slow link is only slow.
    relay.be_slow(Duration::from_millis(2));
    host.ship();
    host.wait_for_points(13);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn a_link_that_falls_silent_is_given_up_and_the_next_one_goes_on() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let relay = Relay::start(gateway.address());
    let disk = site.disk("disk.img");
    disks::random(&disk, 12 * MIB, 1);
    let named = [("root", disk.as_path())];
    let host = AgentHost::new(&site, "web", &[&relay.address()], &named, "");
    host.enroll(&gateway);
    host.ship();
    host.wait_for_points(1);
    disks::write_at(&disk, 0, &disks::seeded_bytes(2, 11_000_000));
    relay.be_slow(Duration::from_millis(1));
    let agent = host.start();
    std::thread::sleep(Duration::from_millis(300));
    relay.fall_silent();
    // The agent is moved to another way to the same gateway, which still holds the dead link.
    agent.kill();
    agent.finish();
    host.configure(&[gateway.address()], &named, "");
    host.ship_until_taken();
    host.wait_for_points(2);
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn a_damaged_spool_costs_a_repetition_and_never_a_wrong_point() {
    for (what, spoil) in [("segment", "objects/segments"), ("record", "points"), ("key", "objects/epochs")] {
        let site = Site::with_vault();
        let mut gateway = GatewayHost::started(&site, "gw");
        let (disk, host) = protected(&site, &gateway, 3 * MIB);
        host.ship();
        host.wait_for_points(1);
        // A new run has a new epoch, whose key goes into the spool with the first thing that it seals.
        gateway.kill();
        gateway.start();
        host.ship();
        host.wait_for_points(2);
        let outage = Outage::of(&site);
        // One cycle of a segment, and one that stands inline behind it.
        disks::write_at(&disk, 0, &disks::seeded_bytes(2, 2_900_000));
        host.ship();
        disks::write_at(&disk, MIB, &disks::seeded_bytes(3, 5000));
        host.ship();
        gateway.kill();
        outage.end();
        let spooled: Vec<_> = walk(gateway.folder())
            .into_iter()
            .filter(|f| f.to_str().unwrap().contains(&format!("/spool/{spoil}/")))
            .collect();
        assert!(!spooled.is_empty(), "{what}: nothing is in the spool");
        let mut bytes = fs::read(&spooled[0]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&spooled[0], &bytes).unwrap();
        gateway.start();
        host.ship_until_taken();
        disks::write_at(&disk, 2 * MIB, &disks::seeded_bytes(4, 5000));
        host.ship();
        host.wait_for_points(4);
        site.assert_disk_is("web", "latest", "root", &disk);
        gateway.status_where(|s| s["spool_bytes"] == 0);
        gateway.stop();
        site.assert_sound();
    }
}

#[test]
fn machines_cannot_disturb_each_other_and_share_chunks() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let names: Vec<String> = (0..6).map(|n| format!("m{n}")).collect();
    let disks_of: Vec<_> = names.iter().map(|name| site.disk(name)).collect();
    disks::random(&disks_of[0], 12 * MIB, 1);
    for (number, disk) in (1..).zip(&disks_of[1..]) {
        disks::copy(&disks_of[0], disk);
        disks::write_at(disk, MIB, &disks::seeded_bytes(number, 9000));
    }
    let hosts: Vec<_> = names
        .iter()
        .zip(&disks_of)
        .map(|(name, disk)| AgentHost::new(&site, name, &[gateway.address()], &[("root", disk.as_path())], ""))
        .collect();
    hosts.iter().for_each(|host| drop(host.enroll(&gateway)));
    hosts[0].ship();
    let mut agents: Vec<_> = hosts.iter().map(AgentHost::start).collect();
    hosts.iter().for_each(|host| host.wait_for_points(3));
    agents.iter().for_each(landfall_tests::landfall::Running::interrupt);
    agents.drain(..).for_each(|agent| assert_eq!(agent.finish().code(), Some(exit::DONE)));
    for (name, disk) in names.iter().zip(&disks_of) {
        site.assert_disk_is(name, "latest", "root", disk);
    }
    let stored: u64 = walk(&site.vault_folder()).iter().map(|f| disks::size(f)).sum();
    assert!(stored < 16 * MIB, "six machines of 12 MiB with nearly the same content take {stored} bytes");
    site.assert_sound();
}

#[test]
fn a_second_gateway_takes_over_what_the_first_had_spooled_and_lost() {
    let site = Site::with_vault();
    let (mut first, mut second) = (GatewayHost::started(&site, "one"), GatewayHost::started(&site, "two"));
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    let named = [("root", disk.as_path())];
    let host = AgentHost::new(&site, "web", &[first.address(), second.address()], &named, "");
    host.enroll(&first);
    host.ship();
    host.wait_for_points(1);
    // The store is gone: the next cycles are acknowledged, and are nowhere but in the spool of the first.
    let outage = Outage::of(&site);
    disks::write_at(&disk, MIB, &disks::seeded_bytes(2, 300_000));
    host.ship();
    disks::write_at(&disk, 0, &disks::seeded_bytes(3, 9000));
    host.ship();
    first.kill();
    outage.end();
    // The second has never heard of them; the agent has, and sends what changed since the point that the vault has.
    host.ship_until_taken();
    host.wait_for_points(2);
    site.assert_disk_is("web", "latest", "root", &disk);
    let status = second.status_where(|s| s["machines"][0]["seq"] == 2);
    assert_eq!(number(&status["machines"][0], "resyncs"), 0, "no full comparison was needed: {status}");
    // The first comes back with its old spool: none of it becomes a point, and the machine stays with the second.
    first.start();
    disks::write_at(&disk, 2 * MIB, &disks::seeded_bytes(4, 9000));
    host.ship_until_taken();
    host.wait_for_points(3);
    site.assert_disk_is("web", "latest", "root", &disk);
    // The second is lost as well. What the first once spooled is no place that a point may refer to: another's stands there.
    second.kill();
    let block = fs::read(&disk).unwrap()[..65_536].to_vec();
    disks::write_at(&disk, 20 * 65_536, &block);
    host.ship_until_taken();
    host.wait_for_points(4);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn a_gateway_that_slept_is_fenced_and_what_it_had_spooled_is_no_place_to_refer_to() {
    let site = Site::with_vault();
    let (first, mut second) = (GatewayHost::started(&site, "one"), GatewayHost::started(&site, "two"));
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    let named = [("root", disk.as_path())];
    let host = AgentHost::new(&site, "web", &[first.address(), second.address()], &named, "");
    host.enroll(&first);
    host.ship();
    host.wait_for_points(1);
    let outage = Outage::of(&site);
    disks::write_at(&disk, 0, &disks::seeded_bytes(2, 65_536));
    host.ship();
    first.process().pause();
    outage.end();
    // Another takes over, and its points stand where the first's would have.
    disks::write_at(&disk, MIB, &disks::seeded_bytes(3, 9000));
    host.configure(&[second.address()], &named, "");
    host.ship_until_taken();
    host.wait_for_points(2);
    second.kill();
    first.process().resume();
    // The bytes of the cycle that it spooled and that was never committed, at another place.
    disks::write_at(&disk, 2 * MIB, &disks::seeded_bytes(2, 65_536));
    host.configure(&[first.address()], &named, "");
    host.ship_until_taken();
    host.wait_for_points(3);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn while_the_store_is_down_cycles_are_spooled_and_become_points_later() {
    let site = Site::with_vault();
    // A name of the operator's that looks like those of half-written files below it.
    let mut gateway = GatewayHost::started(&site, "gw#1.new");
    let (disk, host) = protected(&site, &gateway, 3 * MIB);
    host.ship();
    host.wait_for_points(1);
    let outage = Outage::of(&site);
    let mut kept = Vec::new();
    for round in 2..6_u64 {
        disks::write_at(&disk, round * 100_000, &disks::seeded_bytes(round, 70_000));
        let copy = site.disk(&format!("kept-{round}"));
        disks::copy(&disk, &copy);
        kept.push(copy);
        host.ship();
    }
    let status = gateway.status_where(|s| s["machines"][0]["error"].is_string());
    let machine = &status["machines"][0];
    assert!(machine["waiting_since"].is_string() && machine["seq"] == 1, "it says what waits: {machine}");
    assert_ne!(machine["health"], "ok", "{machine}");
    assert!(number(machine, "rpo_ms") > 0, "the age of what is in the vault, not of what is spooled: {machine}");
    // What waits is durable, and nothing of it can be read: the disks' bytes are nowhere in the gateway's folder.
    gateway.kill();
    let wanted = &disks::seeded_bytes(5, 70_000)[..64];
    for file in walk(gateway.folder()) {
        assert!(!disks::holds_bytes(&file, wanted), "plain text in {}", file.display());
    }
    outage.end();
    gateway.start();
    host.wait_for_points(5);
    gateway.status_where(|s| s["machines"][0]["health"] == "ok" && s["machines"][0]["waiting_since"].is_null());
    for (number, copy) in (2..).zip(&kept) {
        site.assert_disk_is("web", &u32::to_string(&number), "root", copy);
    }
    gateway.stop();
    site.assert_sound();
}

/// A disk image that is mounted. Unmounted when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` after saying that this host, which may be a container, cannot.
    fn of(disk: &Path, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new(tools::need("mount")?);
        if !tools::output(mount.args(["-o", "loop"]).args([disk, &at])).status.success() {
            eprintln!("SKIPPED: this host does not let us mount a disk image");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_is_written_to_all_the_time_is_whole_in_every_point() {
    need!(tools::need("fsfreeze"));
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let disk = site.disk("disk.img");
    need!(disks::ext4(&disk, 48 * MIB, 4 * MIB));
    let mounted = need!(Mounted::of(&disk, site.folder().join("mnt")));
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", disk.as_path())], "");
    let config = host.state().with_file_name("agent.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}mounts = [\"{}\"]\n", mounted.0.display())).unwrap();
    host.enroll(&gateway);
    let (stop, folder) = (Arc::new(AtomicBool::new(false)), mounted.0.clone());
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        for number in 0_u64.. {
            if stopped.load(Ordering::SeqCst) {
                return number;
            }
            // Files are made, grown and removed: the journal is never empty.
            let name = |n: u64| folder.join(format!("file-{}", n % 40));
            fs::write(name(number), disks::seeded_bytes(number, 30_000)).unwrap();
            let _ = fs::remove_file(name(number + 13));
        }
        0
    });
    for _ in 0..4 {
        host.ship();
    }
    stop.store(true, Ordering::SeqCst);
    assert!(writer.join().unwrap() > 40, "the writer went on between the cuts");
    host.wait_for_points(4);
    for point in site.points("web") {
        assert_eq!(point["consistency"], "filesystem", "{point}");
        let (seq, back) = (number(&point, "seq").to_string(), site.disk("back"));
        site.rehydrate("web", &seq, &[("root", &back)]);
        // Nothing has to be recovered from a journal: it was empty at the cut.
        disks::assert_ext4_healthy(&back);
        fs::remove_file(back).unwrap();
    }
}

#[test]
fn an_operator_has_a_machine_compared_in_full() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (disk, host) = protected(&site, &gateway, 9 * MIB);
    host.ship();
    host.wait_for_points(1);
    // The vault lost a segment; what an agent sends is not compared with that, but a full comparison stores it again: by the gateway that
    // stored it, and by one that comes anew.
    for (round, name) in (1..).zip(["gw", "gw-anew"]) {
        for segment in site.files("vault/segments") {
            fs::remove_file(segment).unwrap();
        }
        let anew = (name != "gw").then(|| GatewayHost::started(&site, name));
        let gateway = anew.as_ref().unwrap_or(&gateway);
        gateway.command(&["resync", "--machine", "web"]).json();
        host.configure(&[gateway.address()], &[("root", disk.as_path())], "");
        host.ship_until_taken();
        host.wait_for_points(round + 1);
        gateway.status_where(|s| s["machines"][0]["resyncs"] == 1 && s["machines"][0]["seq"] == round + 1);
        site.assert_disk_is("web", "latest", "root", &disk);
    }
}

#[test]
fn an_agent_that_lost_or_went_back_in_its_state_sends_everything_and_stores_only_what_differs() {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (disk, host) = protected(&site, &gateway, 20 * MIB);
    host.ship();
    host.wait_for_points(1);
    let (state, old) = (host.state(), site.folder().join("old-state"));
    support::copy_tree(&state, &old);
    disks::write_at(&disk, 5 * MIB, &disks::seeded_bytes(2, 40_000));
    host.ship();
    host.wait_for_points(2);
    // A host that was restored from an image of itself.
    fs::remove_dir_all(&state).unwrap();
    support::copy_tree(&old, &state);
    disks::write_at(&disk, 9 * MIB, &disks::seeded_bytes(3, 40_000));
    host.ship();
    host.wait_for_points(3);
    site.assert_disk_is("web", "latest", "root", &disk);
    // A host whose agent's state is gone, but for its certificate.
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        } else if path.file_name().unwrap() != "identity" {
            fs::remove_dir_all(path).unwrap();
        }
    }
    disks::write_at(&disk, 12 * MIB, &disks::seeded_bytes(4, 40_000));
    host.ship();
    host.wait_for_points(4);
    site.assert_disk_is("web", "latest", "root", &disk);
    for point in &site.points("web")[1..] {
        assert!(number(point, "stored_bytes") < 2 * MIB, "a comparison stores what differs: {point}");
    }
    site.assert_sound();
}
