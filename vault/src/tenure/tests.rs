//! Several gateways on one vault in memory. Time is virtual: it passes at once where everybody sleeps.

use std::sync::Arc;

use landfall_keys::{RecoveryKey, SiteKey};
use landfall_model::VaultId;
use object_store::memory::InMemory;
use object_store::path::Path;
use tokio::time::Instant;

use super::*;
use crate::heartbeat::HEARTBEAT_EVERY;
use crate::{Store, Vault, layout, now};

const A: GatewayId = GatewayId::from_bytes([0xa; 16]);
const B: GatewayId = GatewayId::from_bytes([0xb; 16]);

struct World {
    vault: Vault,
    name: MachineName,
}

impl World {
    async fn new() -> Self {
        let recovery = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        let site = SiteKey::generate(VaultId::from_bytes([3; 16]), recovery.root_public()).expect("randomness");
        let store = Store::over(Arc::new(InMemory::new()), Path::default(), "memory");
        let vault = Vault::create(store, &recovery, site, now()).await.expect("a vault");
        Self { vault, name: "web".parse().expect("a name") }
    }

    /// A gateway that was just started.
    fn gateway(&self, id: GatewayId) -> Heartbeat {
        Heartbeat::new(&self.vault, id)
    }

    async fn take(&self, heartbeat: &Heartbeat) -> Result<(Tenure, Held)> {
        self.vault.machine(&self.name).take(&self.name, heartbeat, now).await
    }

    fn names(&self, names: &[&str]) -> Vec<MachineName> {
        names.iter().map(|n| n.parse().expect("a name")).collect()
    }
}

/// The gateway lives: it renews as it should, until this is aborted.
fn alive(heartbeat: &Heartbeat) -> tokio::task::JoinHandle<()> {
    let heartbeat = heartbeat.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(HEARTBEAT_EVERY).await;
            heartbeat.renew().await.expect("stored");
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_a_living_gateway_holds_is_not_taken() {
    let world = World::new().await;
    let (a, b) = (world.gateway(A), world.gateway(B));
    let (tenure, _held) = world.take(&a).await.expect("free");
    let life = alive(&a);
    for _ in 0..5 {
        let refused = world.take(&b).await.map(|_| ()).expect_err("held");
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    }
    tenure.still_held().await.expect("nobody claimed it");
    // It holds others still, and gave this one back: there is nothing to wait for.
    let other = world.vault.machine(&"db".parse().expect("a name"));
    let _other = other.take(&"db".parse().expect("a name"), &a, now).await.expect("free");
    drop(_held);
    a.tell().await.expect("stored");
    let before = Instant::now();
    let (taken, _held) = world.take(&b).await.expect("given back");
    assert_eq!((taken.generation(), before.elapsed()), (Generation(2), Duration::ZERO));
    // A commit of the first would be fenced, and it does not get the machine back while the other lives.
    assert_eq!(tenure.still_held().await.expect_err("fenced").kind(), ErrorKind::Conflict);
    let also = alive(&b);
    assert_eq!(world.take(&a).await.map(|_| ()).expect_err("held").kind(), ErrorKind::Conflict);
    life.abort();
    also.abort();
}

#[tokio::test(start_paused = true)]
async fn what_a_gateway_that_died_held_is_taken_after_its_time_to_live_and_not_before() {
    let world = World::new().await;
    let (a, b) = (world.gateway(A), world.gateway(B));
    let (tenure, _held) = world.take(&a).await.expect("free");
    let before = Instant::now();
    let (taken, _held_too) = world.take(&b).await.expect("given up");
    assert_eq!(taken.generation(), Generation(2));
    assert!((HEARTBEAT_TTL..HEARTBEAT_TTL + 2 * POLL).contains(&before.elapsed()), "{:?}", before.elapsed());
    // It had only slept, and knows nothing of it: its generation is not the newest.
    a.renew().await.expect("stored");
    assert_eq!(tenure.still_held().await.expect_err("fenced").kind(), ErrorKind::Conflict);
    // That its heartbeat still names the machine holds nobody up: it is not the holder.
    let (c, before) = (world.gateway(GatewayId::from_bytes([0xc; 16])), Instant::now());
    drop(_held_too);
    b.tell().await.expect("stored");
    assert_eq!(world.take(&c).await.expect("given back").0.generation(), Generation(3));
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_started_again_goes_on_with_its_generation_and_holds_nobody_up_without() {
    let world = World::new().await;
    let a = world.gateway(A);
    let (first, held) = world.take(&a).await.expect("free");
    // Killed: what it held is in its heartbeat still.
    std::mem::forget(held);
    let again = world.gateway(A);
    let (second, held) = world.take(&again).await.expect("its own");
    assert_eq!((first.generation(), second.generation()), (Generation(1), Generation(1)));
    std::mem::forget(held);
    // Killed again; now it lives on with another machine, and this one's agent cannot reach it.
    let third = world.gateway(A);
    let db: MachineName = "db".parse().expect("a name");
    let _db = world.vault.machine(&db).take(&db, &third, now).await.expect("free");
    let life = alive(&third);
    assert_eq!(world.take(&world.gateway(B)).await.expect("not held").0.generation(), Generation(2));
    life.abort();
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_is_gone_damaged_or_of_another_is_none() {
    let world = World::new().await;
    let (a, b) = (world.gateway(A), world.gateway(B));
    let store = world.vault.store().clone();
    let (_, _held) = world.take(&a).await.expect("free");
    let right = store.get(&layout::heartbeat(A)).await.expect("stored").expect("there");
    let _other = b.hold(world.vault.site().machine_id(&"db".parse().expect("a name")));
    b.tell().await.expect("stored");
    // B's own says that it does not hold the machine; in A's place it says nothing of A.
    let of_b = store.get(&layout::heartbeat(B)).await.expect("stored").expect("there");
    let mut damaged = right.to_vec();
    damaged[100] ^= 1;
    for wrong in [of_b, damaged.into(), bytes::Bytes::new()] {
        store.put(&layout::heartbeat(A), wrong).await.expect("stored");
        assert_eq!(world.vault.heartbeat(A).await.expect_err("wrong").kind(), ErrorKind::Corrupt);
        let before = Instant::now();
        let (_, held) = world.take(&world.gateway(B)).await.expect("in the end");
        assert!(before.elapsed() >= HEARTBEAT_TTL, "it was not waited for");
        drop(held);
        // The machine is A's again, as at the beginning.
        let generations = world.vault.machine(&world.name).generations().await.expect("listed");
        assert_eq!(generations.len(), 2);
        let newest = layout::generation(world.vault.machine(&world.name).id(), Generation(2));
        store.delete(&newest).await.expect("deleted");
    }
}

#[tokio::test]
async fn many_machines_are_told_of_in_one_request() {
    let world = World::new().await;
    let heartbeat = world.gateway(A);
    let names: Vec<String> = (0..200).map(|n| format!("m{n}")).collect();
    let names = world.names(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut held: Vec<Held> = names.iter().map(|name| heartbeat.hold(world.vault.site().machine_id(name))).collect();
    let before = world.vault.store().traffic().requests();
    let told = futures_util::future::join_all((0..200).map(|_| heartbeat.tell())).await;
    assert!(told.iter().all(Result::is_ok));
    assert_eq!(world.vault.store().traffic().requests() - before, 1);
    let beat = world.vault.heartbeat(A).await.expect("right").expect("there");
    assert_eq!(beat.meta.machines.len(), 200);
    // Held twice, given back once: it is held.
    let first = world.vault.site().machine_id(&names[0]);
    let twice = heartbeat.hold(first);
    drop(held.remove(0));
    heartbeat.tell().await.expect("stored");
    assert!(!world.vault.heartbeat(A).await.expect("right").expect("there").gave_back(A, first));
    drop(twice);
    heartbeat.tell().await.expect("stored");
    assert!(world.vault.heartbeat(A).await.expect("right").expect("there").gave_back(A, first));
}

const J: JobId = JobId::from_bytes([0x1; 16]);
const K: JobId = JobId::from_bytes([0x2; 16]);

#[tokio::test(start_paused = true)]
async fn a_failover_fences_the_gateway_that_lives_and_every_other_until_it_is_cancelled() {
    let world = World::new().await;
    let (a, b) = (world.gateway(A), world.gateway(B));
    let (tenure, _held) = world.take(&a).await.expect("nobody else is there");
    let renewing = alive(&a);
    let machine = world.vault.machine(&world.name);
    let fence = machine.fence(&world.name, J, now).await.expect("fenced");
    assert!(fence > tenure.generation());
    assert_eq!(machine.fence(&world.name, J, now).await.expect("done already"), fence);
    assert_eq!(tenure.still_held().await.expect_err("fenced").kind(), ErrorKind::Conflict);
    for gateway in [&a, &b] {
        let refused = world.take(gateway).await.map(drop).expect_err("nobody may write it");
        assert!(refused.to_string().contains(&J.to_string()), "{refused}");
    }
    assert!(machine.fence(&world.name, K, now).await.is_err(), "another failover");
    assert!(machine.unfence(&world.name, K, now).await.is_err(), "which cannot lift the fence of the first");
    let lifted = machine.unfence(&world.name, J, now).await.expect("lifted");
    assert!(lifted > fence);
    assert_eq!(machine.unfence(&world.name, J, now).await.expect("done already"), lifted);
    let (tenure, _held) = world.take(&b).await.expect("it may be written again");
    assert!(tenure.generation() > lifted);
    renewing.abort();
}
