//! Every kind of store that a vault can live in does what the vault needs of it, and a store that lies is found out.
//!
//! The checks are in `landfall_tests::conformance`; each runs against each store, in a store of its own.

use std::sync::Arc;

use landfall_tests::conformance as check;
use landfall_tests::faults::{Fault, Faulty, Kind as Request, Rule};
use landfall_tests::need;
use landfall_tests::peers::{Kind, Peer};
use object_store::memory::InMemory;

/// More objects than a store lists in one page (1000 at S3 and Google, 5000 at Azure): only where making them is cheap.
const OBJECTS_OF_PAGES: usize = 1100;
const OBJECTS_OF_ONE_PAGE: usize = 70;

macro_rules! stores {
    ($($store:ident = $kind:expr, $objects:expr;)+) => {$(
        mod $store {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn lets_one_of_two_writers_create_an_object() {
                let peer = need!(Peer::start($kind));
                check::create_once(peer.object_store()).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn lets_one_of_eight_racing_writers_create_an_object() {
                let peer = need!(Peer::start($kind));
                check::create_race(peer.object_store()).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn reads_whole_objects_and_ranges() {
                let peer = need!(Peer::start($kind));
                check::reads(peer.object_store()).await.unwrap();
                check::empty_object(peer.object_store()).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn holds_objects_as_large_as_segments() {
                let peer = need!(Peer::start($kind));
                check::large_object(peer.object_store()).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn lists_all_of_a_folder_and_nothing_else() {
                let peer = need!(Peer::start($kind));
                check::listing(peer.object_store(), $objects).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn deletes_overwrites_and_misses_objects() {
                let peer = need!(Peer::start($kind));
                check::deletes(peer.object_store()).await.unwrap();
                check::overwrite(peer.object_store()).await.unwrap();
                check::missing(peer.object_store()).await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn takes_odd_names() {
                let peer = need!(Peer::start($kind));
                check::odd_names(peer.object_store()).await.unwrap();
            }
        }
    )+};
}

stores! {
    local = Kind::Local, OBJECTS_OF_ONE_PAGE;
    s3 = Kind::S3, OBJECTS_OF_PAGES;
    azure = Kind::Azure, OBJECTS_OF_ONE_PAGE;
    gcs = Kind::Gcs, OBJECTS_OF_PAGES;
}

fn lying(fault: Fault) -> Arc<Faulty> {
    Arc::new(Faulty::new(Arc::new(InMemory::new()), vec![Rule::every(Request::Create, fault)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_put_if_absent_is_found_out() {
    let found = check::create_once(lying(Fault::Overwrites)).await;
    assert_eq!(found, Err("the second put-if-absent succeeded".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_wrong_only_in_a_race_is_found_out() {
    let store = lying(Fault::OverwritesInRace);
    assert_eq!(check::create_once(Arc::clone(&store) as _).await, Ok(()), "it is right alone");
    let found = check::create_race(store).await.unwrap_err();
    assert!(found.contains("racing put-if-absent won"), "{found}");
}

#[tokio::test]
async fn parts_that_are_given_up_do_not_stay_in_the_google_emulator() {
    let emulator = landfall_tests::gcs::GcsEmulator::start("landfall");
    let peer = need!(Peer::start(Kind::Gcs));
    let store = peer.client_at(emulator.address());
    check::large_object(store).await.unwrap();
    assert_eq!(emulator.open_uploads(), 0);
    assert_eq!(emulator.objects().len(), 2, "the whole object and the one of parts");
}
