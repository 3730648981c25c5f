//! The same small story in every kind of store, through the real command; and what the command says of a store that fails or lies.

use landfall_tests::disks;
use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::need;
use landfall_tests::peers::{Kind, Peer, dead_address};
use landfall_tests::proxy::{Fault, Proxy, Rule};

const MIB: u64 = 1 << 20;

/// Create, replicate, change, replicate, lose everything, rehydrate both points, verify.
fn tell_the_story(site: &Site) {
    let (disk, first) = (site.disk("disk.img"), site.disk("first.img"));
    disks::random(&disk, 5 * MIB + 512, 1);
    disks::copy(&disk, &first);
    site.create_vault();
    site.gateway(&["vault", "info"]).json();
    site.replicate("web", &[("root", &disk)]);
    disks::write_at(&disk, 2 * MIB, &disks::seeded_bytes(2, 123_456));
    let second = site.replicate("web", &[("root", &disk)]);
    assert!(number(&second, "uploaded_bytes") < 2 * MIB, "{second}");
    assert_eq!(site.points("web").len(), 2);
    site.assert_disk_is("web", "1", "root", &first);
    site.assert_disk_is("web", "latest", "root", &disk);
    site.gateway(&["verify"]).json();
    site.assert_sound();
}

#[test]
fn a_vault_lives_in_a_directory() {
    tell_the_story(&Site::new());
}

#[test]
fn a_vault_lives_in_s3() {
    tell_the_story(&Site::at(&need!(Peer::start(Kind::S3))));
}

#[test]
fn a_vault_lives_in_azure_blob_storage() {
    tell_the_story(&Site::at(&need!(Peer::start(Kind::Azure))));
}

#[test]
fn a_vault_lives_in_google_cloud_storage() {
    tell_the_story(&Site::at(&need!(Peer::start(Kind::Gcs))));
}

#[test]
fn two_vaults_share_a_bucket_under_their_prefixes() {
    let peer = need!(Peer::start(Kind::S3));
    let sites = ["customers/a", "customers/ab"].map(|prefix| Site::at_url(peer.url(prefix), peer.env()));
    for (n, site) in sites.iter().enumerate() {
        site.create_vault();
        let disk = site.disk("disk.img");
        disks::random(&disk, 300_000, n as u64);
        site.replicate("same-name", &[("root", &disk)]);
    }
    for site in &sites {
        assert_eq!(site.points("same-name").len(), 1);
        site.assert_disk_is("same-name", "latest", "root", &site.disk("disk.img"));
        site.assert_sound();
    }
}

// A store that fails.

/// A site whose store is reached through a proxy, so that it can fail later.
fn behind_a_proxy(kind: Kind) -> Option<(Peer, Proxy, Site)> {
    let peer = Peer::start(kind)?;
    let proxy = Proxy::start(peer.address(), Vec::new());
    let site = Site::at_url(peer.url("vault"), peer.env_at(proxy.address()));
    Some((peer, proxy, site))
}

/// A cycle with these faults on the way; then the vault is as if nothing had been.
fn a_cycle_survives(kind: Kind, rules: Vec<Rule>) {
    let (_peer, proxy, site) = need!(behind_a_proxy(kind));
    site.create_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    proxy.set_rules(rules);
    let point = site.replicate("web", &[("root", &disk)]);
    assert!(proxy.spoilt() > 0, "nothing went wrong: the test is wrong");
    assert_eq!(number(&point, "seq"), 1);
    proxy.set_rules(Vec::new());
    assert_eq!(site.points("web").len(), 1, "one cycle, one point");
    site.assert_disk_is("web", "latest", "root", &disk);
    site.assert_sound();
}

#[test]
fn a_store_that_is_down_is_worth_a_retry() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        let peer = need!(Peer::start(kind));
        let (address, _reserved) = dead_address();
        let mut site = Site::at(&peer);
        site.create_vault();
        let disk = site.disk("disk.img");
        disks::random(&disk, 300_000, 1);
        for (name, value) in peer.env_at(address) {
            site.set_env(&name, &value);
        }
        site.set_env("LANDFALL_STORE_RETRY_SECONDS", "2");
        site.try_replicate("web", &[("root", &disk)], &[]).assert_refused(exit::UNAVAILABLE, &[site.url()]);
        for (name, value) in peer.env() {
            site.set_env(&name, &value);
        }
        site.replicate("web", &[("root", &disk)]);
        site.assert_disk_is("web", "latest", "root", &disk);
    }
}

#[test]
fn a_store_that_goes_down_in_the_middle_of_a_cycle_is_worth_a_retry() {
    let (_peer, proxy, mut site) = need!(behind_a_proxy(Kind::S3));
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "2");
    site.create_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 40 * MIB, 1);
    proxy.set_rules(vec![Rule::every(Fault::Reset).target_has("/segments/").method("PUT").skip(1)]);
    let ran = site.try_replicate("web", &[("root", &disk)], &[]);
    ran.assert_refused(exit::UNAVAILABLE, &[site.url()]);
    proxy.set_rules(Vec::new());
    assert_eq!(site.point_count("web"), 0, "a cycle that failed is no point");
    proxy.forget();
    site.replicate("web", &[("root", &disk)]);
    let sent: u64 = proxy.seen().iter().filter(|s| s.method == "PUT").map(|s| s.body_bytes).sum();
    assert!(sent < 40 * MIB, "{sent} bytes were sent: what was stored before was sent again");
    site.assert_disk_is("web", "latest", "root", &disk);
}

#[test]
fn a_busy_store_slows_a_cycle_down_and_loses_nothing() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        a_cycle_survives(kind, vec![Rule::every(Fault::Status(503)).skip(3).times(4)]);
    }
}

#[test]
fn a_reset_connection_is_tried_again() {
    for kind in [Kind::S3, Kind::Gcs] {
        a_cycle_survives(kind, vec![Rule::every(Fault::Reset).skip(2).times(2)]);
    }
}

#[test]
fn a_commit_whose_answer_is_lost_is_committed_once() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        for fault in [Fault::AppliedThenReset, Fault::AppliedThenStatus(503)] {
            a_cycle_survives(kind, vec![Rule::every(fault).target_has("/points/").method("PUT").times(1)]);
        }
    }
}

/// S3 answers 409 where two conditional puts meet, and `object_store` says "exists" of it: nothing may be believed to be stored.
#[test]
fn a_conflict_answer_does_not_pass_for_an_object_that_is_not_there() {
    for objects in ["/points/", "/segments/", "/epochs/", "/generations/", "/checkpoints/"] {
        let (_peer, proxy, site) = need!(behind_a_proxy(Kind::S3));
        site.create_vault();
        let disk = site.disk("disk.img");
        disks::random(&disk, 3 * MIB, 1);
        proxy.set_rules(vec![Rule::every(Fault::Status(409)).target_has(objects).conditional().times(1)]);
        // Tried again or given up, both are right.
        let ran = site.try_replicate("web", &[("root", &disk)], &[]);
        let codes = [exit::DONE, exit::CONFLICT, exit::UNAVAILABLE];
        assert!(ran.code().is_some_and(|code| codes.contains(&code)), "409 for {objects}: {}", ran.story());
        assert!(proxy.spoilt() > 0 || objects != "/points/", "nothing went wrong: the test is wrong");
        proxy.set_rules(Vec::new());
        site.replicate("web", &[("root", &disk)]);
        let newest = site.points("web").last().map(|point| number(point, "seq"));
        for seq in 1..=newest.unwrap_or(0) {
            site.assert_disk_is("web", &seq.to_string(), "root", &disk);
        }
        site.assert_sound();
    }
}

#[test]
fn a_segment_whose_answer_is_lost_is_there_once() {
    let rule = Rule::every(Fault::AppliedThenReset).target_has("/segments/").method("PUT").times(1);
    a_cycle_survives(Kind::S3, vec![rule]);
}

#[test]
fn an_answer_that_breaks_off_does_not_spoil_a_rehydrate() {
    for kind in [Kind::S3, Kind::Gcs] {
        let (_peer, proxy, site) = need!(behind_a_proxy(kind));
        site.create_vault();
        let disk = site.disk("disk.img");
        disks::random(&disk, 3 * MIB, 1);
        site.replicate("web", &[("root", &disk)]);
        proxy.set_rules(vec![Rule::every(Fault::CutAnswer(100_000)).target_has("/segments/").method("GET").times(1)]);
        site.assert_disk_is("web", "latest", "root", &disk);
    }
}

// A store that lies.

#[test]
fn a_vault_is_not_made_in_a_store_that_ignores_put_if_absent() {
    for kind in [Kind::S3, Kind::Gcs] {
        let (_peer, proxy, site) = need!(behind_a_proxy(kind));
        proxy.set_rules(vec![Rule::every(Fault::Unconditional).conditional()]);
        site.try_create_vault().assert_refused(exit::UNSUPPORTED, &[site.url(), "put-if-absent"]);
    }
}

#[test]
fn a_vault_is_not_made_in_a_store_that_is_wrong_in_a_race() {
    for kind in [Kind::S3, Kind::Gcs] {
        let (_peer, proxy, site) = need!(behind_a_proxy(kind));
        proxy.set_rules(vec![Rule::every(Fault::UnconditionalInRace).conditional()]);
        site.try_create_vault().assert_refused(exit::UNSUPPORTED, &[site.url()]);
    }
}

#[test]
fn nothing_is_replicated_into_a_store_that_began_to_lie() {
    let (_peer, proxy, site) = need!(behind_a_proxy(Kind::S3));
    site.create_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 300_000, 1);
    proxy.set_rules(vec![Rule::every(Fault::Unconditional).conditional()]);
    site.try_replicate("web", &[("root", &disk)], &[]).assert_refused(exit::UNSUPPORTED, &[site.url()]);
    proxy.set_rules(Vec::new());
    assert_eq!(site.point_count("web"), 0);
}

#[test]
fn a_bucket_that_is_not_there_is_said_to_be_so() {
    let peer = need!(Peer::start(Kind::S3));
    let site = Site::at_url("s3://no-such-bucket/vault".to_owned(), peer.env());
    let ran = site.try_create_vault();
    let code = if ran.code() == Some(exit::USAGE) { exit::USAGE } else { exit::NOT_FOUND };
    ran.assert_refused(code, &["no-such-bucket"]);
}
