//! Networks that divide: two gateways and an agent on hosts of their own, and the store behind another network.
#![expect(clippy::panic, reason = "helpers of tests fail the test")]

use std::time::Duration;

use landfall_tests::fleet::Machine;
use landfall_tests::landfall::Site;
use landfall_tests::need;
use landfall_tests::netns::{Cable, Network};
use landfall_tests::peers::{Kind, Peer};
use landfall_tests::relay::Relay;
use landfall_tests::service::GatewayHost;
use serde_json::Value;

/// Waits for what takes as long as a lease, or as the discovery that a link is dead.
#[track_caller]
fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("it never came to pass that {what}");
}

/// What a gateway says of the machine.
fn machine(gateway: &GatewayHost<'_>) -> Value {
    gateway.command(&["status"]).json()["machines"][0].clone()
}

/// Waits until there are points of what was written from now on.
#[track_caller]
fn until_points_go_on(web: &Machine<'_>) {
    let cuts = web.cuts();
    until("the disks are cut again", || web.cuts() > cuts);
    let acknowledged = web.acknowledged();
    until("a later cut is taken", || web.acknowledged() > acknowledged);
    web.wait_until_all_is_committed();
}

#[test]
fn a_network_that_divides_leaves_one_writer_at_every_moment_and_loses_nothing() {
    let network = need!(Network::new());
    let peer = need!(Peer::start(Kind::S3));
    let relay = Relay::start_at(&format!("{}:0", network.store_address()), &peer.address().to_string());
    let mut site = Site::at_url(peer.url("vault"), peer.env_at(relay.address().parse().unwrap()));
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "2");
    site.create_vault();
    let started = |host: &str| {
        let mut gateway = GatewayHost::placed(&site, host, &network.on(host), &network.gateway_address(host));
        gateway.start();
        gateway
    };
    let (mut a, mut b) = (started("a"), started("b"));
    let mut web = Machine::new(&site, "web", &[a.address(), b.address()], 11);
    web.host.launch_by(&network.on("agent"));
    web.host.enroll(&a);
    let agent = web.host.start();
    until_points_go_on(&web);

    // Without the store A takes cycles still, and they wait.
    network.cut("a", Cable::Wan);
    until("something waits at A", || machine(&a)["waiting_since"].is_string());
    let committed = web.newest_point();
    until("A takes more", || web.acknowledged().is_some_and(|taken| taken > committed));
    // Nobody hears of A any more. B has its place when the lease is over, and is given what waits at A once more.
    network.cut("a", Cable::Lan);
    until("B commits", || machine(&b)["seq"].is_u64());
    until_points_go_on(&web);
    // A is back, with what it spooled: it is fenced, and what waited there is no point.
    let (of_a, of_b) = (machine(&a), machine(&b));
    assert!(of_a["seq"].as_u64() < of_b["seq"].as_u64(), "A does not write any more: {of_a} {of_b}");
    network.heal("a", Cable::Wan);
    until("A knows that it is fenced", || machine(&a)["waiting_since"].is_null());
    network.heal("a", Cable::Lan);
    until_points_go_on(&web);

    // The agent loses B, and B the agent, and B does reach the store: it gives the machine back when it knows that the link is dead.
    let before = machine(&b)["seq"].as_u64();
    network.cut("b", Cable::Lan);
    until("A writes again", || machine(&a)["seq"].as_u64() > before);
    network.heal("b", Cable::Lan);
    until_points_go_on(&web);

    agent.interrupt();
    agent.finish();
    web.rest();
    web.host.ship_until_taken();
    web.wait_until_all_is_committed();
    // No number is missing or doubled, no point is of an earlier cut than the one before it, none is torn.
    let points = web.assert_points_are_cuts(1, true);
    assert!(points >= 6, "{points} points");
    a.stop();
    b.stop();
    site.assert_sound();
}
