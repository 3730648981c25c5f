//! The agent's end: enrols a machine, renews its certificate, opens a link.
//!
//! An error of kind `Key` says that trying again does not help: this machine, or the gateway, is not who the other side takes it for. An
//! error of kind `Unavailable` says that it does.

pub(crate) mod dial;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, poll_fn};
use landfall_model::{Error, ErrorKind, MachineName, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::{Request, Response, Streaming};

use crate::codec::{CALL_BYTES_MAX, Wire, WireCodec};
use crate::link::{ENROLL, Incoming, RENEW, SHIP};
use crate::message::{FromAgent, FromGateway, Hello, Welcome};
use crate::pki::{self, Identity, Token};
use crate::raw::{Certified, Enroll, Renew};
use crate::status::kind_of_code;
use crate::{MESSAGE_BYTES_MAX, MESSAGES_WAITING_MAX, tls};
use dial::{Dialled, dial};

/// Longest wait for an answer once connected. A gateway that has to look into the vault first says meanwhile that it is alive.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// Longest wait for the welcome of a gateway that says that it is alive: longer than it tries its store again.
const OPENING: Duration = Duration::from_secs(900);

/// A link to a gateway. It ends when both halves are dropped, and at once when `from` is.
pub struct Link {
    /// To the gateway. Few messages wait in it: it is full while the gateway does not read, and closed when the link has ended.
    pub to: mpsc::Sender<FromAgent>,
    /// From the gateway.
    pub from: Incoming<FromGateway>,
}

fn unanswered(gateway: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("gateway {gateway} does not answer: try again"))
}

/// Opens a link to a gateway (`host:port`) and says hello.
///
/// # Errors
/// `Unavailable` where the gateway does not answer; `Key` where the certificate of either side is not accepted by the other; else what the
/// gateway refuses with.
pub async fn connect(gateway: &str, identity: &Identity, hello: Hello) -> Result<(Link, Welcome)> {
    let versions = hello.versions;
    let dialled = dial_known(gateway, identity).await?;
    let (to, mut waiting) = mpsc::channel(MESSAGES_WAITING_MAX);
    to.try_send(FromAgent::Hello(hello)).map_err(|_| unanswered(gateway))?;
    let (held, gone) = oneshot::channel::<Infallible>();
    let messages = poll_fn(move |cx| waiting.poll_recv(cx)).take_until(gone);
    let opened = timeout(ANSWER, ship(dialled, messages));
    let (mut from, dialled) = opened.await.map_err(|_| unanswered(gateway))??;
    let first = timeout(OPENING, first_but_alive(&mut from)).await.ok().flatten().ok_or_else(|| unanswered(gateway))?;
    let welcome = match first.map_err(|e| dialled.explain(e))? {
        Some(FromGateway::Welcome(welcome)) => welcome,
        Some(FromGateway::Refuse(code, why)) => {
            return Err(Error::new(kind_of_code(code), format!("gateway {gateway}: {why}")));
        }
        Some(_) => return Err(Error::corrupt(format!("gateway {gateway} does not begin with welcome: update it"))),
        None => return Err(unanswered(gateway)),
    };
    if !(versions.0..=versions.1).contains(&welcome.version) {
        let why = format!("gateway {gateway} chose version {}, which was not offered: update it", welcome.version);
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    Ok((Link { to, from: from.holding((dialled, held)) }, welcome))
}

/// What a gateway says first, but that it is alive. `None` where it falls silent.
async fn first_but_alive(from: &mut Incoming<FromGateway>) -> Option<Result<Option<FromGateway>>> {
    loop {
        match timeout(ANSWER, from.next()).await.ok()? {
            Ok(Some(FromGateway::Alive)) => {}
            said => return Some(said),
        }
    }
}

pub(crate) async fn ship<M: Wire>(
    dialled: Dialled,
    messages: impl Stream<Item = M> + Send + 'static,
) -> Result<(Incoming<FromGateway>, Dialled)> {
    let path = http::uri::PathAndQuery::from_static(SHIP);
    let codec = WireCodec::<M, FromGateway>::new();
    let answer = dialled.grpc(MESSAGE_BYTES_MAX).streaming(Request::new(messages), path, codec).await;
    let answer: Response<Streaming<FromGateway>> = answer.map_err(|status| dialled.failed(&status))?;
    Ok((Incoming::new(answer.into_inner()), dialled))
}

async fn dial_known(gateway: &str, identity: &Identity) -> Result<Dialled> {
    if identity.expires() <= pki::now() {
        let why = format!("the certificate of machine {} has expired: enrol again", identity.machine());
        return Err(Error::new(ErrorKind::Key, why));
    }
    let distrust = "is not a gateway of the site that this machine is enrolled with: check its address";
    dial(gateway, tls::client(identity)?, distrust).await
}

/// Enrols a machine at a gateway (`host:port`) with a token: makes a key, and has its certificate signed.
///
/// # Errors
/// `Key` where the gateway is not the token's, or the token is used up or unknown; `Corrupt` where the certificate is for another machine;
/// `Unavailable` where the gateway does not answer.
pub async fn enroll(gateway: &str, token: &Token, machine: &MachineName) -> Result<Identity> {
    let distrust = "is not the one that made the token, or somebody is between: check its address, ask for a new token";
    let dialled = dial(gateway, tls::enrolling_client(*token.pin())?, distrust).await?;
    let authority = dialled.authority(token.pin())?;
    let request = Identity::request()?;
    let message = Enroll { secret: Bytes::copy_from_slice(token.secret()), csr: Bytes::copy_from_slice(request.csr()) };
    let certificate = call(&dialled, gateway, ENROLL, message).await?;
    named(Identity::new(request, certificate, authority)?, machine)
}

/// Has a new key certified for the machine that an identity names, while that is valid.
///
/// # Errors
/// As for [`connect`]; `Corrupt` where the certificate is for another machine.
pub async fn renew(gateway: &str, identity: &Identity) -> Result<Identity> {
    let dialled = dial_known(gateway, identity).await?;
    let request = Identity::request()?;
    let message = Renew { csr: Bytes::copy_from_slice(request.csr()) };
    let certificate = call(&dialled, gateway, RENEW, message).await?;
    named(Identity::new(request, certificate, identity.authority().to_vec())?, identity.machine())
}

fn named(identity: Identity, machine: &MachineName) -> Result<Identity> {
    if identity.machine() == machine {
        return Ok(identity);
    }
    let why = format!("the gateway certified machine {}, not {machine}: use a token for {machine}", identity.machine());
    Err(Error::new(ErrorKind::Key, why))
}

async fn call<M: Wire>(dialled: &Dialled, gateway: &str, path: &'static str, message: M) -> Result<Vec<u8>> {
    let path = http::uri::PathAndQuery::from_static(path);
    let codec = WireCodec::<M, Certified>::new();
    let mut grpc = dialled.grpc(CALL_BYTES_MAX);
    let answer = timeout(ANSWER, grpc.unary(Request::new(message), path, codec)).await;
    let answer = answer.map_err(|_| unanswered(gateway))?.map_err(|status| dialled.failed(&status))?;
    Ok(answer.into_inner().certificate.into())
}
