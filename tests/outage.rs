//! The store is away for long: points that wait become one, what was overwritten meanwhile is never uploaded, and nothing is lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use landfall_tests::disks;
use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::service::{self, AgentHost, GatewayHost, Outage};
use support::MIB;

/// So little that every third cycle of 4 MiB is short of room.
const SPOOL: &str = "spool = \"20MiB\"";
const SPOOL_BYTES: u64 = 20 * MIB;
/// Too much to stand in a point.
const CHANGE_BYTES: usize = 4 << 20;

/// A gateway with a small spool, and a machine with one disk of which a point is in the vault.
fn protected(site: &Site) -> (GatewayHost<'_>, PathBuf, AgentHost<'_>) {
    let mut gateway = GatewayHost::new(site, "gw", SPOOL);
    gateway.start();
    let (disk, host) = service::protected(site, &gateway, 8 * MIB);
    host.ship();
    host.wait_for_points(1);
    (gateway, disk, host)
}

/// Writes to the disk, and returns a copy of it: the next cycle is of this state.
fn change(site: &Site, disk: &Path, round: u64) -> PathBuf {
    // The same place again and again, and a little elsewhere each time.
    disks::write_at(disk, MIB, &disks::seeded_bytes(round, CHANGE_BYTES));
    disks::write_at(disk, 6 * MIB + round * 4096, &disks::seeded_bytes(100 + round, 4096));
    let copy = site.disk(&format!("cut-{round}"));
    disks::copy(disk, &copy);
    copy
}

/// Every point of the machine is one of the cuts, in their order, and the newest is the last of them. Returns how many points there are.
fn assert_points_are_cuts(site: &Site, cuts: &[PathBuf]) -> usize {
    let points = site.points("web");
    let mut before = None;
    for point in &points {
        let (seq, out) = (number(point, "seq"), site.disk("out.img"));
        site.rehydrate("web", &seq.to_string(), &[("root", out.as_path())]);
        let found = fs::read(&out).unwrap();
        let at = cuts.iter().position(|cut| fs::read(cut).unwrap() == found);
        assert!(at.is_some(), "point {seq} is no state that the disk ever had at a cut");
        assert!(at >= before, "point {seq} is of an earlier cut than the point before it");
        before = at;
        fs::remove_file(&out).unwrap();
    }
    assert_eq!(before, Some(cuts.len() - 1), "the newest point is of the last cut");
    points.len()
}

#[test]
fn while_the_store_is_away_points_become_one_and_what_was_overwritten_is_not_uploaded() {
    let site = Site::with_vault();
    let (mut gateway, disk, host) = protected(&site);
    let mut cuts = vec![site.disk("cut-0")];
    disks::copy(&disk, &cuts[0]);
    let stored_before: u64 = site.files("segments").iter().map(|f| fs::metadata(f).unwrap().len()).sum();
    let outage = Outage::of(&site);
    // Five times what the spool may hold.
    for round in 1..=25 {
        cuts.push(change(&site, &disk, round));
        host.ship();
        let status = gateway.status_where(|s| s["machines"][0]["waiting_since"].is_string());
        assert!(number(&status, "spool_bytes") <= SPOOL_BYTES, "{status}");
    }
    // What waits survives the gateway, coalesced or not.
    gateway.kill();
    outage.end();
    gateway.start();
    gateway.status_where(|s| s["spool_bytes"] == 0 && s["machines"][0]["waiting_since"].is_null());
    let points = assert_points_are_cuts(&site, &cuts);
    assert!((3..20).contains(&points), "{points} points of 26 cycles");
    let stored: u64 = site.files("segments").iter().map(|f| fs::metadata(f).unwrap().len()).sum();
    assert!(stored - stored_before < 2 * SPOOL_BYTES, "{} bytes were uploaded", stored - stored_before);
    gateway.stop();
    site.assert_sound();
}

#[test]
fn killed_while_it_makes_one_point_of_two_the_gateway_loses_and_doubles_nothing() {
    for crash_point in support::IN_COALESCING {
        let site = Site::with_vault();
        let (mut gateway, disk, host) = protected(&site);
        let mut cuts = vec![site.disk("cut-0")];
        disks::copy(&disk, &cuts[0]);
        gateway.stop();
        gateway.start_to_die_at(crash_point);
        // It has the machine before the store goes.
        cuts.push(change(&site, &disk, 1));
        host.ship();
        let outage = Outage::of(&site);
        let dies_at = (2..20).find(|round| {
            cuts.push(change(&site, &disk, *round));
            host.try_ship().code() != Some(exit::DONE)
        });
        assert!(dies_at.is_some(), "two points never became one");
        gateway.wait_until_dead();
        outage.end();
        gateway.start();
        host.ship_until_taken();
        gateway.status_where(|s| s["spool_bytes"] == 0 && s["machines"][0]["waiting_since"].is_null());
        assert_points_are_cuts(&site, &cuts);
        gateway.stop();
        site.assert_sound();
    }
}
