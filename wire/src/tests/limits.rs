use std::sync::Arc;
use std::time::{Duration, Instant};

use landfall_model::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::support::{Gateway, hello, refused, short};
use crate::client::connect;
use crate::client::dial::dial;
use crate::server::Limits;
use crate::tls;

/// How long until the other side closes a connection.
async fn closed_after(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    let mut sink = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut sink)).await.expect("nobody closes it");
    start.elapsed()
}

#[tokio::test]
async fn a_handshake_that_drags_on_is_ended() {
    let gateway = Gateway::start(short()).await;
    let mut silent = TcpStream::connect(&gateway.address).await.unwrap();
    assert!(closed_after(&mut silent).await < Duration::from_secs(4));
    // A header that promises more, and a byte of it now and then.
    let mut slow = TcpStream::connect(&gateway.address).await.unwrap();
    let start = Instant::now();
    slow.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    while slow.write_all(&[1]).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(8), "it is not ended");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_idle_connections_are_bounded_and_a_good_agent_is_served_after_them() {
    let limits = Limits { connections_per_address: 50, handshake: Duration::from_secs(6), ..short() };
    let gateway = Gateway::start(limits).await;
    let identity = gateway.enrolled("db-1").await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(&gateway.address).await.unwrap());
    }
    // All but 50 are closed at once, and then nobody gets in.
    let mut closed = 0;
    while closed < 250 {
        closed = 0;
        for stream in &mut crowd {
            closed += usize::from(timeout(Duration::from_millis(1), stream.read(&mut [0])).await.is_ok());
        }
        assert!(closed <= 250, "{closed} are closed");
    }
    let full = connect(&gateway.address, &identity, hello("db-1")).await;
    refused(full.map(|_| ()), ErrorKind::Unavailable, "cannot be reached");
    let served = timeout(Duration::from_secs(30), async {
        while connect(&gateway.address, &identity, hello("db-1")).await.is_err() {
            sleep(Duration::from_millis(200)).await;
        }
    });
    served.await.expect("it is not served");
    drop(crowd);
}

#[tokio::test]
async fn a_connection_without_a_call_or_without_a_certificate_does_not_live_long() {
    let limits = Limits { idle: Duration::from_millis(500), without_certificate: Duration::from_secs(1), ..short() };
    let gateway = Gateway::start(limits).await;
    let identity = gateway.enrolled("db-1").await;
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    for config in [tls::client(&identity).unwrap(), tls::enrolling_client(gateway.site.authority.pin()).unwrap()] {
        let dialled = dial(&gateway.address, config, "is wrong").await.unwrap();
        sleep(Duration::from_secs(4)).await;
        assert!(dialled.grpc(1024).ready().await.is_err(), "it lives on");
    }
    // A link is a call, also when nothing is said.
    link.to.send(crate::FromAgent::Alive).await.unwrap();
    assert_eq!(link.from.next().await.unwrap(), Some(crate::FromGateway::Alive));
}

#[tokio::test]
async fn who_does_not_say_that_it_speaks_http_2_is_not_served() {
    let gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let mut config = tls::client(&identity).unwrap().as_ref().clone();
    config.alpn_protocols.clear();
    let stream = TcpStream::connect(&gateway.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(tls::gateway_name().unwrap(), stream).await.unwrap();
    let read = timeout(Duration::from_secs(5), stream.read(&mut [0])).await.unwrap();
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

/// Passes bytes on until it is told to stop; then it keeps both connections open, and passes nothing.
async fn relay(listener: TcpListener, to: String, mut frozen: watch::Receiver<bool>) {
    let (mut agent, mut gateway) = (listener.accept().await.unwrap().0, TcpStream::connect(to).await.unwrap());
    tokio::select! {
        _ = copy_bidirectional(&mut agent, &mut gateway) => return,
        _ = frozen.wait_for(|frozen| *frozen) => {}
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_link_whose_network_falls_silent_is_ended() {
    let mut gateway = Gateway::start(Limits { keepalive: Duration::from_millis(300), ..short() }).await;
    let identity = gateway.enrolled("db-1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (freeze, frozen) = watch::channel(false);
    let relay = tokio::spawn(relay(listener, gateway.address.clone(), frozen));
    let (mut link, _) = connect(&address, &identity, hello("db-1")).await.unwrap();
    // An agent that says nothing and is there is left alone.
    sleep(Duration::from_secs(2)).await;
    link.to.send(crate::FromAgent::Alive).await.unwrap();
    assert_eq!(link.from.next().await.unwrap(), Some(crate::FromGateway::Alive));
    freeze.send_replace(true);
    let end = timeout(Duration::from_secs(3), gateway.ends.recv()).await.unwrap().unwrap();
    refused(end, ErrorKind::Unavailable, "");
    relay.abort();
    refused(timeout(Duration::from_secs(3), link.from.next()).await.unwrap(), ErrorKind::Unavailable, "");
}

#[tokio::test]
async fn a_link_whose_agent_dies_is_ended() {
    let mut gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let agent = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let address = gateway.address.clone();
    let link = agent.spawn(async move { connect(&address, &identity, hello("db-1")).await.unwrap() }).await.unwrap();
    agent.shutdown_background();
    let _ = timeout(Duration::from_secs(5), gateway.ends.recv()).await.unwrap().unwrap();
    drop(link);
}

#[tokio::test]
async fn one_machine_has_a_few_connections() {
    let gateway = Gateway::start(Limits { connections_per_machine: 2, ..short() }).await;
    let (identity, other) = (gateway.enrolled("db-1").await, gateway.enrolled("db-2").await);
    let _first = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    let _second = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    refused(connect(&gateway.address, &identity, hello("db-1")).await, ErrorKind::Unavailable, "");
    connect(&gateway.address, &other, hello("db-2")).await.unwrap();
}
