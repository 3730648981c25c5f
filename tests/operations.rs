//! The gateway as its operators run it: windows, a configuration that is read anew, its end, and whom it tells. Real processes, as in `gateway.rs`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use landfall_tests::disks;
use landfall_tests::http::{Listener, Post};
use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::need;
use landfall_tests::peers::{Kind, Peer};
use landfall_tests::proxy::{Fault, Proxy, Rule};
use landfall_tests::service::{GatewayHost, protected};
use serde_json::Value;
use sha2::Sha256;
use support::MIB;

/// A window of half an hour that is shut now and for hours.
fn shut_window() -> String {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let hour = (seconds / 3600 + 12) % 24;
    format!("utc_offset = \"+00:00\"\n[resync]\nhours = \"{hour:02}:00-{hour:02}:30\"")
}

#[test]
fn a_full_comparison_waits_for_its_window_and_not_where_an_operator_asks_for_it() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", &shut_window());
    gateway.start();
    let (disk, host) = protected(&site, &gateway, 5 * MIB);
    host.ship();
    // A first copy does not wait.
    host.wait_for_points(1);
    // The host was installed anew: nothing is left but its certificate.
    for entry in fs::read_dir(host.state()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        } else if path.file_name().unwrap() != "identity" {
            fs::remove_dir_all(path).unwrap();
        }
    }
    disks::write_at(&disk, MIB, &disks::seeded_bytes(2, 40_000));
    host.try_ship().assert_refused(exit::UNAVAILABLE, &["resync waits for"]);
    let agent = host.start();
    let waiting = gateway.status_where(|s| s["machines"][0]["waits"].is_string() && s["machines"][0]["linked"] == true);
    let machine = &waiting["machines"][0];
    assert_eq!((machine["health"].as_str(), number(machine, "resyncs")), (Some("warning"), 0), "{waiting}");
    assert!(machine["why"].as_str().unwrap().contains(":00; `landfall resync --machine web`"), "{waiting}");
    assert_eq!(site.point_count("web"), 1);
    gateway.command(&["resync", "--machine", "web"]).json();
    host.wait_for_points(2);
    let done = gateway.status_where(|s| s["machines"][0]["health"] == "ok" && s["machines"][0]["waits"].is_null());
    assert_eq!(number(&done["machines"][0], "resyncs"), 1, "{done}");
    agent.interrupt();
    agent.finish();
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn a_configuration_is_read_anew_without_a_restart() {
    let site = Site::with_vault();
    // Both so slow that nothing gets through while the test lasts.
    let slow = "rate = \"1KiB\"\n[[machine]]\nname = \"web\"\nrate = \"1KiB\"\n";
    let mut gateway = GatewayHost::new(&site, "gw", slow);
    gateway.start();
    let (disk, host) = protected(&site, &gateway, 5 * MIB);
    let agent = host.start();
    let status = gateway.status_where(|s| s["machines"][0]["receiving"]["bytes"].as_u64().is_some_and(|n| n > 0));
    let machine = &status["machines"][0];
    assert_eq!((number(&status, "rate"), number(machine, "rate")), (1024, 1024), "{status}");
    assert!(number(&machine["receiving"], "bytes") <= 2 * MIB && machine["receiving"]["full"] == true, "{status}");

    // What is wrong is refused, and what was read before holds.
    gateway.reconfigure(|text| text.replace("[[machine]]\nname", "[[machine]]\nnam"));
    let why = gateway.refusal();
    assert!(why.contains("gateway.toml:") && why.contains("did you mean \"name\"?"), "{why}");
    gateway.command(&["status"]).assert_refused(exit::USAGE, &["did you mean"]);
    assert_eq!(site.point_count("web"), 0, "what was read before holds");
    // What waits goes on at the new rate; what cannot change is named.
    gateway.reconfigure(|text| {
        text.replace("nam = \"web\"\nrate = \"1KiB\"", "name = \"web\"\nrate = \"unlimited\"")
            .replace("[[machine]]", "spool = \"1GiB\"\n[[machine]]")
    });
    let status = gateway.status_where(|s| s["machines"][0]["waiting_since"].is_string());
    assert_eq!(status["configuration"]["needs_restart"], serde_json::json!(["spool"]), "{status}");
    assert!(status["configuration"]["refused"].is_null() && status["machines"][0]["rate"].is_null(), "{status}");
    assert_eq!((site.point_count("web"), number(&status, "rate")), (0, 1024), "uploads wait still: {status}");
    // By a window that is always open.
    gateway.reconfigure(|text| format!("{text}\n[[window]]\nrate = \"unlimited\"\n"));
    host.wait_for_points(1);
    agent.interrupt();
    agent.finish();
    site.assert_disk_is("web", "1", "root", &disk);
    assert_eq!(gateway.stop().code(), Some(exit::DONE));
}

/// A gateway in front of a store that no longer answers, with a machine that it has.
fn without_an_answer(test: impl FnOnce(GatewayHost<'_>)) {
    let Some(peer) = Peer::start(Kind::Gcs) else { return };
    let proxy = Proxy::start(peer.address(), Vec::new());
    let mut site = Site::at_url(peer.url("vault"), peer.env_at(proxy.address()));
    site.set_env("LANDFALL_LOG", "warn");
    site.create_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let (_, host) = protected(&site, &gateway, MIB);
    let agent = host.start();
    gateway.status_where(|s| s["machines"][0]["seq"].is_u64());
    // Nothing is on its way: the machine is one that is to be given back.
    agent.pause();
    gateway.status_where(|s| s["machines"][0]["waiting_since"].is_null() && s["machines"][0]["receiving"].is_null());
    proxy.set_rules(vec![Rule::every(Fault::Stall)]);
    test(gateway);
}

#[test]
fn a_gateway_whose_store_does_not_answer_ends_all_the_same() {
    without_an_answer(|mut gateway| {
        let ran = gateway.stop();
        assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
        assert!(ran.stderr.contains("machines are not given back"), "{}", ran.story());
    });
}

#[test]
fn a_second_signal_ends_a_gateway_at_once() {
    without_an_answer(|mut gateway| {
        gateway.process().interrupt();
        std::thread::sleep(Duration::from_secs(1));
        let ran = gateway.stop();
        assert_eq!(ran.code(), Some(exit::UNAVAILABLE), "{}", ran.story());
        assert!(ran.stderr.contains("interrupted twice"), "{}", ran.story());
    });
}

#[test]
fn a_gateway_that_is_started_while_its_store_is_away_waits_for_it() {
    let peer = need!(Peer::start(Kind::S3));
    let proxy = Proxy::start(peer.address(), Vec::new());
    let mut site = Site::at_url(peer.url("vault"), peer.env_at(proxy.address()));
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
    site.create_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let (_, host) = protected(&site, &gateway, MIB);
    host.ship();
    gateway.stop();
    proxy.forget();
    proxy.set_rules(vec![Rule::every(Fault::Reset)]);
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            // Longer than one attempt lasts: it was refused, and tried again.
            std::thread::sleep(Duration::from_secs(5));
            let refused = proxy.spoilt();
            proxy.set_rules(Vec::new());
            refused
        });
        gateway.start();
        assert!(back.join().expect("the store is back") > 1, "nobody asked the store");
    });
    host.ship();
    host.wait_for_points(2);
}

/// Waits until something that is so was posted so many times; gives the newest.
#[track_caller]
fn posted_where(listener: &Listener, times: usize, so: impl Fn(&Value) -> bool) -> (Post, Value) {
    for _ in 0..1200 {
        let read = |post: Post| serde_json::from_slice(&post.body).ok().map(|value| (post, value));
        let found = listener.posts().into_iter().filter_map(read).filter(|(_, value)| so(value));
        if let Some(last) = found.skip(times - 1).last() {
            return last;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("that was never posted: {:?}", listener.posts());
}

#[test]
fn a_change_of_health_is_told_to_a_webhook_and_signed() {
    let site = Site::with_vault();
    // Busy at first: it is tried again.
    let (signed, plain) = (Listener::start(1), Listener::start(0));
    let secret = site.folder().join("webhook.secret");
    let hooks = format!(
        "[[webhook]]\nurl = \"http://{}/landfall?key=hidden\"\nsecret_file = \"{}\"\n[[webhook]]\nurl = \"http://{}/\"\n",
        signed.address(),
        secret.display(),
        plain.address()
    );
    let mut gateway = GatewayHost::new(&site, "gw", &hooks);
    gateway.command(&["gateway", "check-config"]).assert_refused(exit::NOT_FOUND, &["webhook.secret"]);
    fs::write(&secret, "a secret of the operators\n").unwrap();
    gateway.start();
    let (disk, host) = protected(&site, &gateway, MIB);
    host.ship();
    host.wait_for_points(1);

    // The store is away; a disk is in its place.
    let (vault, away) = (site.vault_folder(), site.folder().join("away"));
    fs::rename(&vault, &away).unwrap();
    fs::write(&vault, "no folder").unwrap();
    disks::write_at(&disk, 1000, &disks::seeded_bytes(2, 5000));
    host.ship();
    let ill = |value: &Value| value["machine"] == "web" && value["health"] != "ok";
    // The first attempt was answered with 503.
    let (post, value) = posted_where(&signed, 2, ill);
    assert_eq!(post.target, "POST /landfall?key=hidden");
    assert!(post.head.contains("content-type: application/json\r\n"), "{post:?}");
    assert!(value["was"] == "ok" && value["why"].is_string() && value["time"].is_string(), "{value}");
    assert_eq!(value["gateway"].as_str().map(str::len), Some(32), "{value}");
    let mut mac = Hmac::<Sha256>::new_from_slice(b"a secret of the operators").unwrap();
    mac.update(&post.body);
    let wanted: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(post.head.contains(&format!("landfall-signature: {wanted}\r\n")), "{post:?}");
    let (post, _) = posted_where(&plain, 1, ill);
    assert!(!post.head.contains("landfall-signature"), "{post:?}");

    fs::remove_file(&vault).unwrap();
    fs::rename(&away, &vault).unwrap();
    host.wait_for_points(2);
    let well = |value: &Value| value["machine"] == "web" && value["health"] == "ok" && value["was"] != "ok";
    posted_where(&signed, 1, well);
    posted_where(&plain, 1, well);
    let ran = gateway.stop();
    assert!(!ran.story().contains("hidden") && !ran.story().contains("a secret"), "{}", ran.story());
}

#[test]
fn status_tells_what_a_machine_did_and_what_waits() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::new(&site, "gw", "metrics = \"127.0.0.1:0\"");
    gateway.start();
    let (disk, host) = protected(&site, &gateway, 2 * MIB);
    host.ship();
    host.wait_for_points(1);
    disks::write_at(&disk, 0, &disks::seeded_bytes(2, 1000));
    host.ship();
    host.wait_for_points(2);
    let status = gateway.status_where(|s| s["machines"][0]["seq"] == 2 && s["machines"][0]["window"]["good"] == 2);
    let (machine, window) = (&status["machines"][0], &status["machines"][0]["window"]);
    // The first brought everything, the second a block of 64 KiB.
    assert_eq!(number(window, "change_largest_bytes"), 2 * MIB, "{status}");
    assert_eq!(number(window, "change_average_bytes"), MIB + 32 * 1024, "{status}");
    assert_eq!(number(machine, "received_bytes"), 2 * MIB + 64 * 1024, "{status}");
    assert!(number(window, "latency_largest_ms") >= number(window, "latency_average_ms"), "{status}");
    assert_eq!((number(window, "failed"), number(machine, "waiting_points")), (0, 0), "{status}");
    assert!(number(machine, "rpo_seconds") * 1000 <= number(machine, "rpo_ms"), "{status}");

    // While the store is away, points wait: how many, and what they brought.
    let (vault, away) = (site.vault_folder(), site.folder().join("away"));
    fs::rename(&vault, &away).unwrap();
    fs::write(&vault, "no folder").unwrap();
    for seed in [3, 4] {
        disks::write_at(&disk, MIB, &disks::seeded_bytes(seed, 1000));
        host.ship();
    }
    let waiting = gateway.status_where(|s| s["machines"][0]["window"]["failed"].as_u64().is_some_and(|n| n > 0));
    let machine = &waiting["machines"][0];
    assert_eq!((number(machine, "waiting_points"), number(machine, "waiting_bytes")), (2, 128 * 1024), "{waiting}");
    assert!(machine["waiting_ms"].is_u64() && machine["state"] == "down" && machine["health"] != "ok", "{waiting}");
    fs::remove_file(&vault).unwrap();
    fs::rename(&away, &vault).unwrap();
    gateway.status_where(|s| s["machines"][0]["waiting_points"] == 0);
    gateway.command(&["status", "--machine", "db"]).assert_refused(exit::NOT_FOUND, &["db"]);
    let one = gateway.command(&["status", "--machine", "web"]).json();
    assert_eq!(one["machines"].as_array().map(Vec::len), Some(1), "{one}");
    let metrics = landfall_tests::http::request(gateway.metrics_address().parse().unwrap(), "GET", "/metrics").unwrap();
    assert!(
        metrics.text.contains("landfall_machine_window_cycles{machine=\"web\",result=\"good\"} 4\n"),
        "{}",
        metrics.text
    );
}
