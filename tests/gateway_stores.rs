//! A gateway before real stores whose network fails in every way, while machines are written to and ship all the time.

use std::time::Duration;

use landfall_tests::fleet::Machine;
use landfall_tests::landfall::{Running, Site};
use landfall_tests::need;
use landfall_tests::peers::{Kind, Peer};
use landfall_tests::proxy::{Fault, Proxy, Rule};
use landfall_tests::service::GatewayHost;

/// How long each fault lasts, and how long all is well between two.
const SPELL: Duration = Duration::from_millis(1500);

/// What goes wrong, one after the other. Each is met by points, segments and leases alike.
fn faults(kind: Kind) -> Vec<(&'static str, Vec<Rule>)> {
    let puts = |fault| vec![Rule::every(fault).method("PUT")];
    // What a store answers to a put-if-absent while another one of that name is under way.
    let conflict = if kind == Kind::S3 { Fault::Status(409) } else { Fault::Status(503) };
    vec![
        ("the network is cut", vec![Rule::every(Fault::Reset)]),
        ("the store is busy", vec![Rule::every(Fault::Status(503))]),
        ("it conflicts with itself", vec![Rule::every(conflict).conditional().times(20)]),
        ("answers are lost", puts(Fault::AppliedThenReset)),
        ("what was applied is said to have failed", puts(Fault::AppliedThenStatus(500))),
        ("answers break off", vec![Rule::every(Fault::CutAnswer(40))]),
        ("everything is slow", vec![Rule::every(Fault::Slow(Duration::from_millis(300)))]),
        ("requests overtake each other", vec![Rule::every(Fault::Overtaken)]),
        ("a put falls silent", vec![Rule::every(Fault::Stall).method("PUT").times(1)]),
        ("the answer to a put never comes", vec![Rule::every(Fault::AppliedThenStall).method("PUT").times(1)]),
    ]
}

fn every_point_is_a_cut_whatever_the_network_does(kind: Kind) {
    let peer = need!(Peer::start(kind));
    let proxy = Proxy::start(peer.address(), Vec::new());
    let mut site = Site::at_url(peer.url("vault"), peer.env_at(proxy.address()));
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "3");
    site.create_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let machines = ["web", "db"].map(|name| Machine::new(&site, name, &[gateway.address()], 7));
    machines.iter().for_each(|machine| drop(machine.host.enroll(&gateway)));
    machines.iter().for_each(|machine| machine.host.ship_until_taken());
    let agents: Vec<Running> = machines.iter().map(|machine| machine.host.start()).collect();
    for (what, rules) in faults(kind) {
        proxy.forget();
        proxy.set_rules(rules);
        for _ in 0..100 {
            std::thread::sleep(SPELL / 10);
            if proxy.spoilt() > 0 {
                break;
            }
        }
        std::thread::sleep(SPELL);
        assert!(proxy.spoilt() > 0, "{what}: it met no request");
        proxy.set_rules(Vec::new());
        std::thread::sleep(SPELL);
    }
    for (machine, agent) in machines.iter().zip(agents) {
        machine.rest();
        agent.interrupt();
        agent.finish();
        machine.host.ship_until_taken();
    }
    machines.iter().for_each(Machine::wait_until_all_is_committed);
    let points = [0, 1].map(|n| machines[n].assert_points_are_cuts(1, true));
    eprintln!("{kind:?}: points {points:?} of cuts {:?}", machines.each_ref().map(Machine::cuts));
    assert!(points.iter().all(|points| *points > 2), "points were taken between the faults: {points:?}");
    gateway.stop();
    site.assert_sound();
}

#[test]
fn before_s3_every_point_is_a_cut_whatever_the_network_does() {
    every_point_is_a_cut_whatever_the_network_does(Kind::S3);
}

#[test]
fn before_azure_every_point_is_a_cut_whatever_the_network_does() {
    every_point_is_a_cut_whatever_the_network_does(Kind::Azure);
}
