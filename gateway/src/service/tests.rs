//! Gateways of one vault in a folder, in this process and without a link.

use std::path::Path;

use landfall_keys::{RecoveryKey, SiteKey};
use landfall_model::{Progress, SegmentId, Timestamp, VaultId};
use landfall_vault::{Store, now};
use landfall_wire::pki::{Certificate, Identity};

use super::*;
use crate::{Cancel, DiskSpec, Request, replicate};

async fn vault(folder: &Path) -> Vault {
    let id = VaultId::from_bytes([3; 16]);
    let recovery = RecoveryKey::generate(id).expect("randomness");
    let site = SiteKey::generate(id, recovery.root_public()).expect("randomness");
    let store = Store::open(&format!("file://{}/vault", folder.display())).expect("a folder");
    Vault::create(store, &recovery, site, now()).await.expect("a vault")
}

fn state(folder: &Path, name: &str) -> State {
    State::open(&folder.join(name), VaultId::from_bytes([3; 16])).expect("a folder")
}

async fn gateway(vault: &Vault, folder: &Path, name: &str) -> Gateway {
    let domain = "default".parse().expect("a name");
    let options =
        Options { domain, spool_bytes: 1 << 30, rules: Rules::default(), names: Vec::new(), groups: Vec::new() };
    Gateway::open(vault.clone(), state(folder, name), &options).await.expect("opens")
}

/// Another gateway takes a point of a machine: of 3 MiB of new content, so that there is a segment. Gives its segments.
async fn another_writes(vault: &Vault, folder: &Path, machine: &str, seed: u64) -> Vec<SegmentId> {
    let mut noise = seed;
    let bytes = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.to_le_bytes()[6]
    });
    let bytes = bytes.take(3 << 20).collect::<Vec<u8>>();
    let path = folder.join(machine);
    std::fs::write(&path, bytes).expect("own folder");
    let request = Request {
        machine: machine.parse().expect("a name"),
        domain: "default".parse().expect("a name"),
        disks: vec![DiskSpec { name: "root".parse().expect("a name"), path: Some(path), excluded: false }],
        consistency_command: None,
        accept_clock: false,
    };
    let (progress, cancel) = (Arc::new(Progress::default()), Cancel::default());
    replicate(vault, &state(folder, "other"), &request, &progress, &cancel).await.expect("a point");
    let newest = crate::newest::Newest::open(vault, &request.machine).await.expect("there");
    newest.view.expect("a point").layers().iter().flat_map(|l| l.body.segments.keys().copied()).collect()
}

fn knows(gateway: &Gateway, segments: &[SegmentId]) -> bool {
    assert!(!segments.is_empty(), "nothing is referred to: the test shows nothing");
    let index = gateway.shared.index.read().unwrap_or_else(PoisonError::into_inner);
    segments.iter().all(|id| index.segment_size(*id).is_some())
}

async fn take(gateway: &Gateway, machine: &str) {
    let machine = machine.parse().expect("a name");
    Owner::open(gateway.shared.clone(), &machine).await.expect("it was given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_is_listed_once_and_again_for_what_a_machine_refers_to_and_nobody_here_knows() {
    let folder = tempfile::tempdir().expect("a folder");
    let vault = vault(folder.path()).await;
    let gateway = gateway(&vault, folder.path(), "own").await;
    let web = another_writes(&vault, folder.path(), "web", 1).await;
    assert!(!knows(&gateway, &web), "nothing was taken yet");
    take(&gateway, "web").await;
    assert!(knows(&gateway, &web));
    // What another stored since is nothing that this machine's points refer to, nor those of a machine without points.
    let db = another_writes(&vault, folder.path(), "db", 2).await;
    take(&gateway, "web").await;
    take(&gateway, "new").await;
    assert!(!knows(&gateway, &db), "it was listed again");
    // The machine that refers to it is not written before it is known.
    take(&gateway, "db").await;
    assert!(knows(&gateway, &db));
    // What is deleted is noticed when somebody asks for it, and else when the listing has become old.
    let object = folder.path().join("vault").join(layout::segment(web[0]));
    std::fs::remove_file(object).expect("it is there");
    take(&gateway, "web").await;
    assert!(knows(&gateway, &web));
    gateway.shared.listing.expire();
    take(&gateway, "web").await;
    assert!(!knows(&gateway, &web) && knows(&gateway, &db));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_not_heard_of_a_revocation_renews_what_stays_revoked() {
    let folder = tempfile::tempdir().expect("a folder");
    let vault = vault(folder.path()).await;
    let (first, second) = (gateway(&vault, folder.path(), "a").await, gateway(&vault, folder.path(), "b").await);
    let machine: MachineName = "web".parse().expect("a name");
    let address = ([127, 0, 0, 1], 1).into();
    let peer = |enrolled| Peer { machine: machine.clone(), enrolled, not_after: now(), address };
    let enrolled = Timestamp::from_millis(now().millis() / 1000 * 1000 - 20 * 24 * 3_600_000);
    first.registry.revoke(&machine).expect("revoked");
    assert!(first.is_revoked(&peer(enrolled)) && !second.is_revoked(&peer(enrolled)));
    let request = Identity::request().expect("randomness");
    let renewed = second.renew(peer(enrolled), request.csr().to_vec()).await.expect("it has not heard");
    let facts = Certificate::read(&renewed).expect("a certificate");
    assert_eq!((facts.machine.as_ref(), facts.enrolled), (Some(&machine), enrolled));
    assert!(facts.not_after > now());
    assert!(first.is_revoked(&peer(facts.enrolled)));
    // The first tells, the second hears.
    share(&vault, &first.registry).await;
    share(&vault, &second.registry).await;
    assert!(second.is_revoked(&peer(facts.enrolled)));
    assert!(!second.is_revoked(&peer(second.registry.enrolment(&machine))));
}
