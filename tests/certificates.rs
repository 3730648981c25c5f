//! The life of a machine's certificate, end to end.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use landfall_tests::disks;
use landfall_tests::landfall::{Site, exit};
use landfall_tests::service::{AgentHost, GatewayHost};

/// Makes a certificate look as if it had been stored so long ago.
fn age(certificate: &Path, days: u64) {
    let stored = SystemTime::now() - Duration::from_secs(days * 24 * 3600);
    File::options().write(true).open(certificate).and_then(|file| file.set_modified(stored)).expect("own file");
}

#[test]
fn an_agent_that_is_run_once_now_and_then_renews_its_certificate_when_it_is_due() {
    let site = Site::with_vault();
    let mut gateway = GatewayHost::started(&site, "gw");
    let disk = site.disk("disk.img");
    disks::random(&disk, 300_000, 1);
    let address = gateway.address().to_owned();
    let host = AgentHost::new(&site, "web", &[&address], &[("root", disk.as_path())], "");
    host.enroll(&gateway);
    let certificate = host.state().join("identity/agent.pem");
    let read = || fs::read(&certificate).expect("an identity");
    let first = read();
    host.ship();
    assert!(read() == first, "it is new: nothing is due");

    // It is valid for 30 more days: stored 100 days ago, more than two thirds of its life are over.
    age(&certificate, 100);
    host.ship();
    let second = read();
    assert!(second != first, "it was due");
    host.ship();
    assert!(read() == second, "once is enough");

    // Where no gateway is there to renew it, it serves on.
    age(&certificate, 100);
    gateway.kill();
    assert_eq!(host.try_ship().code(), Some(exit::UNAVAILABLE));
    assert!(read() == second, "nothing is changed by a failure");
    gateway.start();
    host.ship_until_taken();
    assert!(read() != second, "it is still due");
    site.assert_sound();
}
