use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use landfall_model::{ErrorKind, Seq, Timeline};
use tokio::time::timeout;

use super::support::{Gateway, cycle, cycle_id, data, hello, refused, short};
use crate::client::{connect, renew};
use crate::pki::{Certificate, Identity};
use crate::server::Limits;
use crate::{FromAgent, FromGateway};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_enrols_ships_renews_and_ships_again() {
    let gateway = Gateway::start(Limits::default()).await;
    let identity = gateway.enrolled("db-1").await;
    let folder = tempfile::tempdir().unwrap();
    identity.store(folder.path()).unwrap();
    let identity = Identity::load(folder.path()).unwrap();
    let renewed = renew(&gateway.address, &identity).await.unwrap();
    let serial = |i: &Identity| Certificate::read(i.certificate()).unwrap().serial;
    assert_ne!(serial(&identity), serial(&renewed));
    renewed.store(folder.path()).unwrap();
    for identity in [identity, Identity::load(folder.path()).unwrap()] {
        assert_eq!(identity.machine().as_str(), "db-1");
        let (mut link, welcome) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
        assert_eq!((welcome.version, welcome.newest), (1, Some(cycle_id(9))));
        for message in cycle() {
            link.to.send(message).await.unwrap();
        }
        assert_eq!(link.from.next().await.unwrap(), Some(FromGateway::Spooled(cycle_id(1))));
        let committed = FromGateway::Committed(cycle_id(1), Timeline(1), Seq(2));
        assert_eq!(link.from.next().await.unwrap(), Some(committed));
        link.to.send(FromAgent::Alive).await.unwrap();
        assert_eq!(link.from.next().await.unwrap(), Some(FromGateway::Alive));
        drop(link.to);
        assert_eq!(link.from.next().await.unwrap(), None);
    }
    gateway.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_read_holds_the_agent() {
    let gateway = Gateway::start(Limits::default()).await;
    gateway.site.held.store(true, Ordering::SeqCst);
    let identity = gateway.enrolled("db-1").await;
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    let mut sent = 0_u64;
    let extent = data(0, 0, vec![1; 1 << 20]);
    while timeout(Duration::from_secs(2), link.to.send(FromAgent::Data(extent.clone()))).await.is_ok() {
        sent += 1;
        assert!(sent < 16, "nothing holds the agent");
    }
    // The window of the stream, the channel, and what is being framed: no more.
    assert!((4..=11).contains(&sent), "{sent} MiB were taken");
    assert_eq!(gateway.site.received.load(Ordering::SeqCst), 0);
    gateway.site.release.notify_one();
    for _ in sent..40 {
        timeout(SOON, link.to.send(FromAgent::Data(extent.clone()))).await.unwrap().unwrap();
    }
    link.to.send(FromAgent::Alive).await.unwrap();
    assert_eq!(timeout(SOON, link.from.next()).await.unwrap().unwrap(), Some(FromGateway::Alive));
    assert_eq!(gateway.site.received.load(Ordering::SeqCst), 40 << 20);
}

#[tokio::test]
async fn a_gateway_may_say_that_it_is_alive_before_it_says_welcome_or_refuses() {
    let gateway = Gateway::start(Limits::default()).await;
    let identity = gateway.enrolled("db-1").await;
    gateway.site.alive.store(20, Ordering::SeqCst);
    let (mut link, welcome) =
        timeout(SOON, connect(&gateway.address, &identity, hello("db-1"))).await.unwrap().unwrap();
    assert_eq!(welcome.newest, Some(cycle_id(9)));
    link.to.send(FromAgent::Alive).await.unwrap();
    assert_eq!(timeout(SOON, link.from.next()).await.unwrap().unwrap(), Some(FromGateway::Alive));
    drop(link);
    *gateway.site.refuse.lock().unwrap() = Some((ErrorKind::NoSpace.exit_code(), "full".to_owned()));
    let refusal = timeout(SOON, connect(&gateway.address, &identity, hello("db-1"))).await.unwrap();
    refused(refusal.map(|_| ()), ErrorKind::NoSpace, "full");
}

#[tokio::test]
async fn the_kind_of_an_error_travels() {
    let gateway = Gateway::start(Limits::default()).await;
    let identity = gateway.enrolled("db-1").await;
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    link.to.send(FromAgent::Abort("somebody else writes \u{e9}".to_owned())).await.unwrap();
    refused(link.from.next().await, ErrorKind::Conflict, "somebody else writes \u{e9}");
    timeout(SOON, link.to.closed()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_of_the_service_is_an_error_of_its_kind() {
    let gateway = Gateway::start(Limits::default()).await;
    let identity = gateway.enrolled("db-1").await;
    *gateway.site.refuse.lock().unwrap() = Some((ErrorKind::NoSpace.exit_code(), "the spool is full".to_owned()));
    refused(connect(&gateway.address, &identity, hello("db-1")).await, ErrorKind::NoSpace, "the spool is full");
}

#[tokio::test]
async fn dropping_the_agents_reader_ends_the_link() {
    let mut gateway = Gateway::start(Limits::default()).await;
    let identity = gateway.enrolled("db-1").await;
    let (link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    drop(link.from);
    let _ = timeout(SOON, gateway.ends.recv()).await.unwrap().unwrap();
    timeout(SOON, link.to.closed()).await.unwrap();
}

#[tokio::test]
async fn a_gateway_that_stops_says_so_and_does_not_wait_for_agents() {
    let mut gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    let (address, start) = (gateway.address.clone(), Instant::now());
    let mut ends = std::mem::replace(&mut gateway.ends, tokio::sync::mpsc::unbounded_channel().1);
    gateway.stop().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    refused(ends.recv().await.unwrap(), ErrorKind::Unavailable, "stopping");
    refused(link.from.next().await, ErrorKind::Unavailable, "stopping");
    refused(connect(&address, &identity, hello("db-1")).await, ErrorKind::Unavailable, "cannot be reached");
}

#[tokio::test]
async fn a_service_that_does_not_end_is_dropped_after_the_grace() {
    let gateway = Gateway::start(short()).await;
    gateway.site.held.store(true, Ordering::SeqCst);
    let identity = gateway.enrolled("db-1").await;
    let (_link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    let start = Instant::now();
    gateway.stop().await.unwrap();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&start.elapsed()), "{:?}", start.elapsed());
}
