//! Several gateways on one vault, and what a gateway asks of the store: real processes, over TLS on loopback.
#![expect(clippy::panic, reason = "helpers of tests fail the test")]

use std::fs;
use std::time::{Duration, Instant};

use landfall_tests::landfall::{Running, Site, exit};
use landfall_tests::peers::{Kind, Peer};
use landfall_tests::proxy::{Proxy, Seen};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::{disks, need};

/// Tries until a gateway refuses the machine's certificate: it reads what others wrote every half minute.
#[track_caller]
fn until_revoked(host: &AgentHost<'_>) {
    for _ in 0..180 {
        let ran = host.try_ship();
        if ran.code() == Some(exit::KEY) {
            return ran.assert_refused(exit::KEY, &["revoked"]);
        }
        // Until then it is let in, or waits for the gateway that had it a moment ago.
        assert!([Some(exit::DONE), Some(exit::CONFLICT)].contains(&ran.code()), "{}", ran.story());
        std::thread::sleep(Duration::from_millis(500));
    }
    panic!("the machine is let in for ever");
}

#[test]
fn a_machine_that_is_revoked_at_one_gateway_is_refused_by_all() {
    let site = Site::with_vault();
    let (mut first, second) = (GatewayHost::started(&site, "one"), GatewayHost::started(&site, "two"));
    let disk = site.disk("disk.img");
    disks::random(&disk, 100_000, 1);
    let named = [("root", disk.as_path())];
    let web = AgentHost::new(&site, "web", &[first.address()], &named, "");
    let db = AgentHost::new(&site, "db", &[second.address()], &named, "");
    web.enroll(&first);
    db.enroll(&first);
    web.ship();
    // At a gateway that never saw the machine, nor gave it a certificate.
    let revoked = second.command(&["gateway", "revoke", "--machine", "web"]).json();
    assert!(revoked["known"] == true && revoked["revoked_until"].is_string(), "{revoked}");
    until_revoked(&web);
    web.configure(&[second.address()], &named, "");
    web.try_ship().assert_refused(exit::KEY, &["revoked"]);
    db.ship();
    // What the vault says is sealed, and says no name.
    let objects = site.files("vault/revoked");
    assert_eq!(objects.len(), 1);
    assert!(!objects[0].to_string_lossy().contains("web") && !disks::holds_bytes(&objects[0], b"web"));
    site.gateway(&["verify"]).json();
    // A gateway that is new, and one that lost what it remembered, refuse it from the first moment.
    first.stop();
    fs::remove_dir_all(first.folder().join("state")).unwrap();
    first.start();
    for gateway in [&GatewayHost::started(&site, "three"), &first] {
        web.configure(&[gateway.address()], &named, "");
        web.try_ship().assert_refused(exit::KEY, &["revoked"]);
    }
    // Enrolled again at any of them it is let in by all.
    web.enroll(&second);
    for gateway in [&first, &second] {
        web.configure(&[gateway.address()], &named, "");
        web.ship_until_taken();
    }
    // Again: what the second enrolled, the first takes back.
    first.command(&["gateway", "revoke", "--machine", "web"]).json();
    web.configure(&[second.address()], &named, "");
    until_revoked(&web);
    // A name that is nobody's is told to be so.
    assert_eq!(first.command(&["gateway", "revoke", "--machine", "wbe"]).json()["known"], false);
    site.assert_sound();
}

#[test]
fn a_revocation_holds_here_while_the_store_is_down_and_everywhere_afterwards() {
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
    let (first, second) = (GatewayHost::started(&site, "one"), GatewayHost::started(&site, "two"));
    let disk = site.disk("disk.img");
    disks::random(&disk, 100_000, 1);
    let named = [("root", disk.as_path())];
    let web = AgentHost::new(&site, "web", &[first.address()], &named, "");
    web.enroll(&first);
    web.ship();
    web.wait_for_points(1);
    let (vault, away) = (site.vault_folder(), site.folder().join("away"));
    fs::rename(&vault, &away).unwrap();
    fs::write(&vault, "no folder").unwrap();
    let ran = first.command(&["gateway", "revoke", "--machine", "web"]);
    assert_ne!(ran.code(), Some(exit::DONE), "it cannot have told the others\n{}", ran.story());
    assert!(ran.stderr.contains("is revoked at this gateway"), "{}", ran.story());
    std::thread::sleep(Duration::from_secs(2));
    web.try_ship().assert_refused(exit::KEY, &["revoked"]);
    fs::remove_file(&vault).unwrap();
    fs::rename(&away, &vault).unwrap();
    web.configure(&[second.address()], &named, "");
    until_revoked(&web);
    // Somebody deletes it from the vault: who knows it puts it back.
    let object = site.files("vault/revoked").remove(0);
    fs::remove_file(&object).unwrap();
    let start = Instant::now();
    while !object.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "nobody puts it back");
        std::thread::sleep(Duration::from_millis(200));
    }
    site.assert_sound();
}

/// What a request to store an object is for: the first part of its name in the vault.
fn kind_of(seen: &Seen) -> Option<String> {
    let target = seen.target.replace("%2F", "/").replace("%2f", "/");
    let name = target.split_once("/vault/")?.1.split('?').next()?.to_owned();
    let stores = ["PUT", "POST"].contains(&seen.method.as_str());
    let folder = |name: &str| {
        let known = ["points", "generations", "checkpoints"].into_iter().find(|f| name.contains(&format!("/{f}/")));
        known.unwrap_or_else(|| name.split('/').next().unwrap_or_default()).to_owned()
    };
    stores.then(|| folder(&name))
}

#[test]
fn many_machines_cost_a_point_each_cycle_and_one_heartbeat_and_one_listing_together() {
    let peer = need!(Peer::start(Kind::Gcs));
    let proxy = Proxy::start(peer.address(), Vec::new());
    let site = Site::at_url(peer.url("vault"), peer.env_at(proxy.address()));
    site.create_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let names: Vec<String> = (0..6).map(|n| format!("m{n}")).collect();
    let mut hosts = Vec::new();
    for (seed, name) in (1..).zip(&names) {
        let disk = site.disk(name);
        disks::random(&disk, 50_000, seed);
        let host = AgentHost::new(&site, name, &[gateway.address()], &[("root", disk.as_path())], "");
        host.enroll(&gateway);
        hosts.push(host);
    }
    proxy.forget();
    let start = Instant::now();
    let agents: Vec<Running> = hosts.iter().map(AgentHost::start).collect();
    hosts.iter().for_each(|host| host.wait_for_points(14));
    agents.iter().for_each(Running::interrupt);
    agents.into_iter().for_each(|agent| assert_eq!(agent.finish().code(), Some(exit::DONE)));
    gateway.status_where(|s| s["spool_bytes"] == 0 && s["machines"].as_array().is_some_and(|m| m.len() == 6));
    gateway.stop();
    let (seen, elapsed) = (proxy.seen(), start.elapsed());
    let count = |kind: &str| seen.iter().filter(|s| kind_of(s).as_deref() == Some(kind)).count() as u64;
    let points: usize = names.iter().map(|name| site.point_count(name)).sum();
    assert!(points >= 6 * 14, "{points}");
    let all = seen.iter().filter_map(kind_of).count() as u64;
    let cycles = count("points") + count("segments") + count("epochs") + count("checkpoints");
    assert_eq!((count("points"), count("generations")), (points as u64, 6));
    // Renewed each 4 s while any machine is held; and for each machine at most once when it is taken, and once when it is given back.
    let heartbeats = elapsed.as_secs() / 4 + 1 + 6 + 6 + 1;
    assert!(count("gateways") <= heartbeats, "{} heartbeats in {elapsed:?}", count("gateways"));
    assert_eq!(all, cycles + count("generations") + count("gateways"), "something else is stored");
    // What all machines of one epoch and of no new content need beyond their points is next to nothing.
    assert!(cycles - count("points") <= 6 + 1, "{cycles} for {points} points");
    let listings = seen.iter().filter(|s| s.method == "GET" && s.target.contains("prefix=vault%2Fsegments"));
    assert_eq!(listings.count(), 1, "one listing for six machines");
}
