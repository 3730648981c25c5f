use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{iter, pending};
use landfall_model::ErrorKind;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::Request;

use super::support::{Gateway, data, hello, refused, short};
use crate::client::dial::{Dialled, dial};
use crate::client::{connect, enroll, renew, ship};
use crate::codec::WireCodec;
use crate::link::{RENEW, SHIP};
use crate::pki::{Authority, Certificate, Credentials, Identity, Token, now};
use crate::raw::{Certified, Enroll, Renew};
use crate::{FromAgent, FromGateway, tls};

const SOON: Duration = Duration::from_secs(10);

/// A connection of somebody who has no certificate.
async fn stranger(gateway: &Gateway) -> Dialled {
    let config = tls::enrolling_client(gateway.site.authority.pin()).unwrap();
    dial(&gateway.address, config, "is wrong").await.unwrap()
}

async fn known(gateway: &Gateway, identity: &Identity) -> Dialled {
    dial(&gateway.address, tls::client(identity).unwrap(), "is wrong").await.unwrap()
}

/// The first answer to these messages.
async fn answer_to(dialled: Dialled, messages: Vec<FromAgent>) -> landfall_model::Result<Option<FromGateway>> {
    let (mut from, dialled) = ship(dialled, iter(messages)).await?;
    from.next().await.map_err(|e| dialled.explain(e))
}

#[tokio::test]
async fn no_link_and_no_renewal_without_a_certificate() {
    let gateway = Gateway::start(short()).await;
    let answer = answer_to(stranger(&gateway).await, vec![FromAgent::Hello(hello("db-1"))]).await;
    refused(answer, ErrorKind::Key, "no certificate");
    let dialled = stranger(&gateway).await;
    let request = Request::new(Renew { csr: Bytes::copy_from_slice(Identity::request().unwrap().csr()) });
    let codec = WireCodec::<Renew, Certified>::new();
    let answer = dialled.grpc(1024).unary(request, http::uri::PathAndQuery::from_static(RENEW), codec).await;
    refused(answer.map_err(|s| dialled.failed(&s)), ErrorKind::Key, "no certificate");
}

/// The machine's key and certificate, of another authority than the one that it trusts.
async fn foreign(gateway: &Gateway) -> Identity {
    let evil = Authority::from_seed(&[66; 32]).unwrap();
    let request = Identity::request().unwrap();
    let certificate = evil.sign_agent(request.csr(), &"db-1".parse().unwrap(), now(), Duration::from_secs(60)).unwrap();
    let (folder, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Identity::new(request, certificate, evil.certificate().to_vec()).unwrap().store(folder.path()).unwrap();
    gateway.enrolled("db-1").await.store(ours.path()).unwrap();
    std::fs::copy(ours.path().join("ca.pem"), folder.path().join("ca.pem")).unwrap();
    Identity::load(folder.path()).unwrap()
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let gateway = Gateway::start(short()).await;
    let result = connect(&gateway.address, &foreign(&gateway).await, hello("db-1")).await;
    refused(result, ErrorKind::Key, "");
}

#[tokio::test]
async fn a_machine_does_not_trust_a_gateway_of_another_site() {
    let gateway = Gateway::start(short()).await;
    let other = Gateway::with_seed(short(), &[66; 32]).await;
    let identity = gateway.enrolled("db-1").await;
    refused(connect(&other.address, &identity, hello("db-1")).await, ErrorKind::Key, "not a gateway of the site");
    refused(renew(&other.address, &identity).await, ErrorKind::Key, "not a gateway of the site");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_both_sides() {
    let gateway = Gateway::start(short()).await;
    *gateway.site.valid.lock().unwrap() = Duration::from_secs(2);
    let identity = gateway.enrolled("db-1").await;
    sleep(Duration::from_millis(3100)).await;
    refused(connect(&gateway.address, &identity, hello("db-1")).await, ErrorKind::Key, "has expired");
    let answer = answer_to(known(&gateway, &identity).await, vec![FromAgent::Hello(hello("db-1"))]).await;
    refused(answer, ErrorKind::Key, "has expired");
}

#[tokio::test]
async fn a_link_ends_when_its_certificate_expires() {
    let gateway = Gateway::start(short()).await;
    *gateway.site.valid.lock().unwrap() = Duration::from_secs(4);
    let identity = gateway.enrolled("db-1").await;
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    refused(timeout(SOON, link.from.next()).await.unwrap(), ErrorKind::Key, "has expired");
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_link_and_opens_no_other() {
    let mut gateway = Gateway::start(short()).await;
    let other = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let bystander = gateway.enrolled("db-2").await;
    let renewed = renew(&gateway.address, &identity).await.unwrap();
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    let enrolled = |identity: &Identity| Certificate::read(identity.certificate()).unwrap().enrolled;
    gateway.site.revoked.lock().unwrap().insert(identity.machine().clone(), enrolled(&identity));
    refused(timeout(SOON, link.from.next()).await.unwrap(), ErrorKind::Key, "revoked");
    refused(gateway.ends.recv().await.unwrap(), ErrorKind::Key, "revoked");
    refused(connect(&gateway.address, &identity, hello("db-1")).await, ErrorKind::Key, "revoked");
    refused(renew(&gateway.address, &identity).await, ErrorKind::Key, "revoked");
    // Neither is what was made of it before, nor what a gateway makes of it that has not heard: renewal washes nothing clean.
    let washed = renew(&other.address, &renewed).await.unwrap();
    for identity in [&renewed, &washed] {
        refused(connect(&gateway.address, identity, hello("db-1")).await, ErrorKind::Key, "revoked");
        refused(renew(&gateway.address, identity).await, ErrorKind::Key, "revoked");
    }
    connect(&gateway.address, &bystander, hello("db-2")).await.unwrap();
    // Enrolled again, if need be within the second, it is let in.
    let again = gateway.enrolled("db-1").await;
    assert!(enrolled(&again) > enrolled(&identity));
    connect(&gateway.address, &again, hello("db-1")).await.unwrap();
    let renewed = renew(&gateway.address, &again).await.unwrap();
    assert_eq!(enrolled(&renewed), enrolled(&again));
    connect(&gateway.address, &renewed, hello("db-1")).await.unwrap();
}

#[tokio::test]
async fn a_machine_cannot_say_that_it_is_another() {
    let mut gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    gateway.enrolled("db-2").await;
    refused(connect(&gateway.address, &identity, hello("db-2")).await, ErrorKind::Key, "machine db-1");
    assert!(gateway.ends.try_recv().is_err(), "the service saw it");
}

#[tokio::test]
async fn what_is_not_hello_or_has_no_common_version_never_reaches_the_service() {
    let mut gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let answer = answer_to(known(&gateway, &identity).await, vec![FromAgent::Alive]).await;
    refused(answer, ErrorKind::Corrupt, "not hello");
    refused(answer_to(known(&gateway, &identity).await, vec![]).await, ErrorKind::Corrupt, "not hello");
    let mut newer = hello("db-1");
    newer.versions = (4, 7);
    refused(connect(&gateway.address, &identity, newer).await, ErrorKind::Unsupported, "versions 4 to 7");
    assert!(gateway.ends.try_recv().is_err(), "the service saw it");
}

#[tokio::test]
async fn malformed_and_oversize_messages_end_the_link() {
    let mut gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    // A disk that no machine has, in the middle of a link.
    let (mut link, _) = connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
    link.to.send(FromAgent::Data(data(5000, 0, vec![1]))).await.unwrap();
    refused(link.from.next().await, ErrorKind::Corrupt, "disk number 5000");
    refused(timeout(SOON, gateway.ends.recv()).await.unwrap().unwrap(), ErrorKind::Corrupt, "disk number 5000");
    // Longer than any message may be; the agent's own bound is lifted.
    let (dialled, long) = (known(&gateway, &identity).await, FromAgent::Abort("x".repeat(5 << 20)));
    let messages = iter(vec![FromAgent::Hello(hello("db-1")), long]);
    let codec = WireCodec::<FromAgent, FromGateway>::new();
    let path = http::uri::PathAndQuery::from_static(SHIP);
    let _link = dialled.grpc(64 << 20).streaming(Request::new(messages), path, codec).await.unwrap();
    refused(timeout(SOON, gateway.ends.recv()).await.unwrap().unwrap(), ErrorKind::Corrupt, "");
    // The gateway goes on.
    connect(&gateway.address, &identity, hello("db-1")).await.unwrap();
}

#[tokio::test]
async fn malformed_first_message_is_corrupt() {
    let gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let other = Enroll { secret: Bytes::from_static(&[0xff; 16]), csr: Bytes::new() };
    let result = ship(known(&gateway, &identity).await, iter(vec![other])).await;
    refused(result.map(|_| ()), ErrorKind::Corrupt, "cannot be");
}

#[tokio::test]
async fn a_first_message_that_does_not_come_is_not_waited_for() {
    let gateway = Gateway::start(short()).await;
    let identity = gateway.enrolled("db-1").await;
    let result = timeout(SOON, ship(known(&gateway, &identity).await, pending::<FromAgent>())).await.unwrap();
    refused(result.map(|_| ()), ErrorKind::Unavailable, "did not come in time");
}

#[tokio::test]
async fn an_unknown_call_is_refused() {
    let gateway = Gateway::start(short()).await;
    let dialled = stranger(&gateway).await;
    let codec = WireCodec::<Renew, Certified>::new();
    let path = http::uri::PathAndQuery::from_static("/landfall.v1.Gateway/Else");
    let answer = dialled.grpc(1024).unary(Request::new(Renew { csr: Bytes::new() }), path, codec).await;
    refused(answer.map_err(|s| dialled.failed(&s)), ErrorKind::Unsupported, "does not know this call");
}

#[tokio::test]
async fn a_token_works_once_for_its_machine_and_at_its_site() {
    let gateway = Gateway::start(short()).await;
    let other = Gateway::with_seed(short(), &[66; 32]).await;
    let (token, machine) = (gateway.token("db-1"), "db-1".parse().unwrap());
    // Somebody between: another authority.
    refused(enroll(&other.address, &token, &machine).await, ErrorKind::Key, "somebody is between");
    // A mistyped token.
    let text = token.to_string();
    let letter = if text.ends_with('A') { 'B' } else { 'A' };
    let middle = if &text[30..31] == "A" { "B" } else { "A" };
    refused((text[..text.len() - 1].to_owned() + &letter.to_string()).parse::<Token>(), ErrorKind::Usage, "token");
    refused(format!("{}{middle}{}", &text[..30], &text[31..]).parse::<Token>(), ErrorKind::Usage, "mistyped");
    enroll(&gateway.address, &text.to_lowercase().parse().unwrap(), &machine).await.unwrap();
    refused(enroll(&gateway.address, &token, &machine).await, ErrorKind::Key, "unknown or used");
    let result = enroll(&gateway.address, &gateway.token("db-2"), &machine).await;
    refused(result, ErrorKind::Key, "certified machine db-2, not db-1");
}

#[tokio::test]
async fn showing_the_authority_is_not_enough() {
    let (ours, evil) = (Authority::from_seed(&[7; 32]).unwrap(), Authority::from_seed(&[66; 32]).unwrap());
    // The certificate of our authority is public; the leaf is not signed by it.
    let Credentials { mut chain, key } = evil.server(&[]).unwrap();
    chain.push(ours.certificate().to_vec().into());
    let acceptor = TlsAcceptor::from(tls::server(&evil, Credentials { chain, key }).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepted = tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() });
    let result = enroll(&address, &Token::new(ours.pin()).unwrap(), &"db-1".parse().unwrap()).await;
    refused(result, ErrorKind::Key, "somebody is between");
    assert!(!accepted.await.unwrap());
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let gateway = Gateway::start(short()).await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let stream = TcpStream::connect(&gateway.address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let error = connector.connect(tls::gateway_name().unwrap(), stream).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
}
