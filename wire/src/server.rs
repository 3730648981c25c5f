//! The gateway's end: takes connections, says who is at the other end of each, and gives the links to a [`Service`].
//!
//! ```text
//!  accept --slot--> TLS (10 s) --certificate?--> HTTP/2 --> Ship: first message within 10 s, its machine = the certificate's --> Service
//!            '-- none left: closed                    '--> Renew: with a certificate
//!                                                     '--> Enroll: without one too; such a connection lives a minute
//! ```
//! Everything is bounded by [`Limits`]. A connection is closed when its certificate expires or is revoked, when it has had no call for a
//! while, and when its peer no longer answers pings. What is refused is logged, once a minute for each address and reason.

mod calls;
mod connection;
mod limits;
mod patience;
mod refusals;
mod ship;
mod slots;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::link::Incoming;
use crate::message::{FromAgent, FromGateway};
use crate::pki::Authority;
use crate::tls::{self, Peer};
use connection::Connection;
use refusals::Refusals;
use slots::Slots;

pub use limits::Limits;
pub use patience::alive_while;

/// A gateway makes itself a new certificate this often; it is valid for 90 days.
const CERTIFICATE_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Wait after the host could not accept a connection (it has no file descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Who it was is not known.
const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// What a gateway does with the calls of agents.
pub trait Service: Send + Sync + 'static {
    /// One link of an agent. `from` gives checked messages; the first is the agent's `Hello`, whose machine is the certificate's and whose
    /// versions include one of ours. The link ends when the future returns: what `to` took is still sent, then an error if it is one.
    /// `from` says when the connection is lost or about to be closed; if the future has not returned [`Limits::grace`] later, it is dropped.
    fn ship(
        &self,
        peer: Peer,
        from: Incoming<FromAgent>,
        to: mpsc::Sender<FromGateway>,
    ) -> impl Future<Output = Result<()>> + Send;

    /// A machine that has a token asks for its first certificate, DER. The secret is compared by [`crate::pki::Token::hash_of`].
    fn enroll(
        &self,
        address: SocketAddr,
        token_secret: [u8; 16],
        csr: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// A machine asks for its next certificate, DER.
    fn renew(&self, peer: Peer, csr: Vec<u8>) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// Whether a machine's certificate is revoked. Asked at each call and every few seconds: must not block.
    fn is_revoked(&self, peer: &Peer) -> bool;
}

/// What all connections share.
struct Shared<S> {
    service: Arc<S>,
    limits: Limits,
    refusals: Refusals,
    /// Becomes true, or is dropped, when the gateway stops.
    stop: watch::Receiver<bool>,
    /// Held by whatever must end before the gateway has stopped.
    _alive: mpsc::Sender<()>,
}

/// Serves agents until `stop` is ready, then gives the links [`Limits::grace`] to end. `names` are the host names and IP addresses of this
/// gateway, for its certificate.
///
/// # Errors
/// `Usage` where a name is none; `Bug` where TLS cannot be set up. What happens on a connection is never an error of the gateway.
pub async fn serve(
    listener: TcpListener,
    authority: Arc<Authority>,
    names: &[String],
    service: Arc<impl Service>,
    limits: Limits,
    stop: impl Future<Output = ()> + Send,
) -> Result<()> {
    let acceptor = || -> Result<TlsAcceptor> { Ok(tls::server(&authority, authority.server(names)?)?.into()) };
    let mut tls = acceptor()?;
    let (stopping, stopped) = watch::channel(false);
    let (alive, mut ended) = mpsc::channel(1);
    let grace = limits.grace;
    let slots = Arc::new(Slots::new(&limits));
    let shared = Arc::new(Shared { service, limits, refusals: Refusals::default(), stop: stopped, _alive: alive });
    let mut renewal = interval_at(Instant::now() + CERTIFICATE_AGE_MAX, CERTIFICATE_AGE_MAX);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            _ = renewal.tick() => match acceptor() {
                Ok(new) => tls = new,
                Err(error) => tracing::error!(%error, "the gateway's certificate is not renewed"),
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => begin(stream, address, &tls, &slots, &shared),
                Err(error) => {
                    shared.refusals.say(NOBODY, "not accepted", &error);
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stopping.send_replace(true);
    drop(shared);
    // Each link is dropped at its own deadline; this one is for what cannot be dropped.
    let _ = timeout(grace.saturating_mul(2), ended.recv()).await;
    Ok(())
}

fn begin<S: Service>(
    stream: TcpStream,
    address: SocketAddr,
    tls: &TlsAcceptor,
    slots: &Arc<Slots>,
    shared: &Arc<Shared<S>>,
) {
    match slots.take(address.ip()) {
        Ok(slot) => {
            let connection = Connection { address, slot, shared: shared.clone() };
            tokio::spawn(connection.run(stream, tls.clone()));
        }
        Err(full) => shared.refusals.say(address, "no slot", &Error::new(ErrorKind::Unavailable, full)),
    }
}
