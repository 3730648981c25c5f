//! What comes of a request when the network or the store fails in the middle of it, and what the vault's own store makes of that.
//!
//! The first half asks `object_store` over real HTTP, through the proxy: these are the facts that the product is built on. The second
//! half asks the product's `Store`.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use landfall_model::ErrorKind;
use landfall_tests::conformance::{self as check, create};
use landfall_tests::disks::seeded_bytes;
use landfall_tests::faults::{self, Faulty};
use landfall_tests::need;
use landfall_tests::peers::{Kind, Peer, dead_address};
use landfall_tests::proxy::{Fault, Proxy, Rule};
use landfall_vault::{Put, Store};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};

/// How long an impatient client waits: long enough for a loaded machine, and nothing here asserts that it is exact.
const PATIENCE: Duration = Duration::from_secs(3);

fn proxied(kind: Kind, rules: Vec<Rule>) -> Option<(Peer, Proxy)> {
    let peer = Peer::start(kind)?;
    let proxy = Proxy::start(peer.address(), rules);
    Some((peer, proxy))
}

async fn stored(peer: &Peer, name: &Path) -> Option<Bytes> {
    match peer.object_store().get(name).await {
        Ok(got) => Some(got.bytes().await.unwrap()),
        Err(Error::NotFound { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

macro_rules! over_http {
    ($($store:ident = $kind:expr;)+) => {$(
        mod $store {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_proxy_without_rules_changes_nothing() {
                let (peer, proxy) = need!(proxied($kind, Vec::new()));
                let store = peer.client_at(proxy.address());
                check::create_once(Arc::clone(&store)).await.unwrap();
                check::reads(Arc::clone(&store)).await.unwrap();
                check::listing(store, 20).await.unwrap();
                assert_eq!(proxy.spoilt(), 0);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_busy_store_is_tried_again() {
                let rules = vec![Rule::every(Fault::Status(503)).method("PUT").times(2)];
                let (peer, proxy) = need!(proxied($kind, rules));
                let name = Path::from("busy");
                create(&*peer.client_at(proxy.address()), &name, Bytes::from_static(b"x")).await.unwrap();
                assert_eq!(stored(&peer, &name).await, Some(Bytes::from_static(b"x")));
                assert_eq!(proxy.spoilt(), 2);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_conflict_is_no_success_and_stores_nothing() {
                let (peer, proxy) = need!(proxied($kind, vec![Rule::every(Fault::Status(409)).conditional()]));
                let name = Path::from("conflict");
                let answer = create(&*peer.client_at(proxy.address()), &name, Bytes::from_static(b"x")).await;
                // The trap: "exists" is said of an object that does not.
                assert!(matches!(answer, Err(Error::AlreadyExists { .. })), "{answer:?}");
                assert_eq!(stored(&peer, &name).await, None);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn an_answer_that_is_lost_leaves_the_object_there() {
                for fault in [Fault::AppliedThenStatus(503), Fault::AppliedThenReset] {
                    let (peer, proxy) = need!(proxied($kind, vec![Rule::every(fault).conditional().times(1)]));
                    let name = Path::from("lost-answer");
                    let answer = create(&*peer.client_at(proxy.address()), &name, Bytes::from_static(b"mine")).await;
                    assert!(answer.is_err(), "{fault:?}: its own second try meets its own object: {answer:?}");
                    assert_eq!(stored(&peer, &name).await, Some(Bytes::from_static(b"mine")), "{fault:?}");
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn an_answer_that_breaks_off_never_passes_for_the_whole() {
                let (peer, proxy) = need!(proxied($kind, Vec::new()));
                let (name, bytes) = (Path::from("cut"), Bytes::from(seeded_bytes(3, 3_000_000)));
                peer.object_store().put(&name, bytes.clone().into()).await.unwrap();
                proxy.set_rules(vec![Rule::every(Fault::CutAnswer(1_000_000)).method("GET").times(1)]);
                let got = peer.client_at(proxy.address()).get(&name).await.unwrap().bytes().await;
                assert!(got.as_ref().is_ok_and(|got| *got == bytes) || got.is_err(), "a part was taken for the whole");
                assert_eq!(proxy.spoilt(), 1);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_store_that_hangs_ends_in_an_error() {
                let (peer, proxy) = need!(proxied($kind, vec![Rule::every(Fault::Stall)]));
                let store = peer.impatient_client(proxy.address(), PATIENCE);
                assert!(store.get(&Path::from("x")).await.is_err());
                assert!(create(&*store, &Path::from("x"), Bytes::from_static(b"x")).await.is_err());
                assert_eq!(stored(&peer, &Path::from("x")).await, None);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_store_that_is_not_there_ends_in_an_error() {
                let peer = need!(Peer::start($kind));
                let (address, _reserved) = dead_address();
                let store = peer.impatient_client(address, PATIENCE);
                assert!(matches!(store.get(&Path::from("x")).await, Err(Error::Generic { .. })));
            }
        }
    )+};
}

over_http! {
    s3 = Kind::S3;
    azure = Kind::Azure;
    gcs = Kind::Gcs;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_makes_a_store_ignore_put_if_absent() {
    for kind in [Kind::S3, Kind::Gcs] {
        let (peer, proxy) = need!(proxied(kind, vec![Rule::every(Fault::Unconditional).conditional()]));
        let found = check::create_once(peer.client_at(proxy.address())).await;
        assert_eq!(found, Err("the second put-if-absent succeeded".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_makes_a_store_wrong_in_a_race_only() {
    for kind in [Kind::S3, Kind::Gcs] {
        let (peer, proxy) = need!(proxied(kind, vec![Rule::every(Fault::UnconditionalInRace).conditional()]));
        let store = peer.client_at(proxy.address());
        assert_eq!(check::create_once(Arc::clone(&store)).await, Ok(()), "it is right alone");
        assert!(check::create_race(store).await.unwrap_err().contains("racing put-if-absent won"));
    }
}

// The product's store.

fn product(rules: Vec<faults::Rule>) -> (Store, Faulty) {
    let faulty = Faulty::new(Arc::new(InMemory::new()), rules);
    let store = Store::over(Arc::new(faulty.clone()), Path::from("vaults/one"), "mem://test");
    (store.with_retry_time(Duration::from_secs(20)), faulty)
}

fn on(kind: faults::Kind, fault: faults::Fault) -> Vec<faults::Rule> {
    vec![faults::Rule::every(kind, fault)]
}

async fn refusal(rules: Vec<faults::Rule>) -> (ErrorKind, String) {
    let (store, _) = product(rules);
    let error = store.probe().await.expect_err("the probe must refuse this store");
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn the_probe_accepts_an_honest_store_and_leaves_nothing_in_it() {
    let (store, _) = product(Vec::new());
    store.probe().await.unwrap();
    assert!(store.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn the_probe_refuses_a_store_that_ignores_put_if_absent() {
    let (kind, message) = refusal(on(faults::Kind::Create, faults::Fault::Overwrites)).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("mem://test") && message.contains("put-if-absent"), "{message}");
}

#[tokio::test]
async fn the_probe_refuses_a_store_that_is_wrong_only_in_a_race() {
    let (kind, message) = refusal(on(faults::Kind::Create, faults::Fault::OverwritesInRace)).await;
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(message.contains("mem://test") && message.contains("rac"), "{message}");
}

#[tokio::test]
async fn the_probe_survives_a_store_that_is_busy_for_a_moment() {
    let (store, _) = product(vec![faults::Rule::nth(faults::Kind::Create, 1, faults::Fault::Unavailable)]);
    store.probe().await.unwrap();
}

#[tokio::test]
async fn a_store_that_stays_down_is_unavailable_and_worth_a_retry() {
    let (store, faulty) = product(on(faults::Kind::Create, faults::Fault::Unavailable));
    let store = store.with_retry_time(Duration::from_secs(1));
    let error = store.put_if_absent("x", Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(faulty.count(faults::Kind::Create).requests > 1, "it was tried again first");
}

#[tokio::test]
async fn an_unclear_create_can_be_settled_by_reading_back() {
    let lost = faults::Rule::nth(faults::Kind::Create, 1, faults::Fault::AppliedUnavailable);
    let (store, _) = product(vec![lost]);
    let put = store.put_if_absent("point", Bytes::from_static(b"mine")).await.unwrap();
    assert_eq!(put, Put::Exists, "the second try meets what the first one stored");
    assert_eq!(store.get("point").await.unwrap(), Some(Bytes::from_static(b"mine")));
}

/// The trap that every caller has to know: see `stores.rs` for what the command makes of it.
#[tokio::test]
async fn a_conflict_answer_can_be_settled_by_reading_back() {
    let (store, _) = product(vec![faults::Rule::nth(faults::Kind::Create, 1, faults::Fault::Conflict)]);
    let mine = Bytes::from_static(b"mine");
    let put = store.put_if_absent("point", mine.clone()).await.unwrap();
    let there = store.get("point").await.unwrap();
    assert!(put == Put::Exists || there == Some(mine), "created, and yet not there");
    if there.is_none() {
        assert_eq!(store.put_if_absent("point", Bytes::from_static(b"again")).await.unwrap(), Put::Created);
    }
}

#[tokio::test]
async fn deleting_and_listing_what_is_not_there_does_no_harm() {
    let (store, faulty) = product(Vec::new());
    store.delete("nothing").await.unwrap();
    assert!(store.list("nothing").await.unwrap().is_empty());
    assert_eq!(store.get("nothing").await.unwrap(), None);
    assert_eq!(faulty.count(faults::Kind::Create).requests, 0);
}

#[tokio::test]
async fn the_products_store_serves_every_kind_of_peer() {
    for kind in [Kind::Local, Kind::S3, Kind::Azure, Kind::Gcs] {
        let peer = need!(Peer::start(kind));
        let store = Store::over(peer.object_store(), Path::from("a/vault"), &peer.url("a/vault"));
        store.probe().await.unwrap();
        assert_eq!(store.put_if_absent("points/1", Bytes::from_static(b"one")).await.unwrap(), Put::Created);
        assert_eq!(store.put_if_absent("points/1", Bytes::from_static(b"two")).await.unwrap(), Put::Exists);
        assert_eq!(store.get_range("points/1", 1, 3).await.unwrap(), Some(Bytes::from_static(b"ne")));
        store.put("lease", Bytes::from_static(b"long")).await.unwrap();
        store.put("lease", Bytes::from_static(b"s")).await.unwrap();
        assert_eq!(store.get("lease").await.unwrap(), Some(Bytes::from_static(b"s")));
        let listed = store.list("points").await.unwrap();
        assert_eq!(listed.iter().map(|o| (o.name.as_str(), o.size)).collect::<Vec<_>>(), [("points/1", 3)]);
        // A directory may keep the folder of the probe, empty.
        assert!(store.list_folders("").await.unwrap().contains(&"points".to_owned()));
        store.delete("points/1").await.unwrap();
        store.delete("points/1").await.unwrap();
        assert_eq!(store.get("points/1").await.unwrap(), None, "{kind:?}");
        let raw: Arc<dyn ObjectStore> = peer.object_store();
        assert!(raw.head(&Path::from("a/vault/lease")).await.is_ok(), "the prefix is where it belongs");
    }
}
