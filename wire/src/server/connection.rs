//! One connection: its handshake, its calls, its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use landfall_model::{Error, ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::calls::Calls;
use super::slots::Slot;
use super::{Limits, Service, Shared};
use crate::link::Closing;
use crate::pki;
use crate::tls::{ALPN, Peer};

/// Window of a connection without a certificate, in bytes: it carries one short request.
const WINDOW_WITHOUT_CERTIFICATE_BYTES: u32 = 64 * 1024;
/// Longest frame, in bytes: an extent in one piece. Without a certificate: the least that HTTP/2 allows.
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
const FRAME_WITHOUT_CERTIFICATE_BYTES_MAX: u32 = 16 * 1024;
/// Longest list of headers, in bytes: ours have some hundred.
const HEADERS_BYTES_MAX: u32 = 8 * 1024;
/// Time in which calls learn that their connection is about to be closed.
const FAREWELL: Duration = Duration::from_secs(2);
/// After a failed handshake: how long and how much is still read, so that the peer reads the alert before it meets a closed connection.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: u64 = 64 * 1024;

const STOPPING: Closing = Closing { kind: ErrorKind::Unavailable, why: "the gateway is stopping: try again" };
const EXPIRED: Closing = Closing { kind: ErrorKind::Key, why: "the machine's certificate has expired: enrol again" };
const REVOKED: Closing = Closing { kind: ErrorKind::Key, why: "the machine's certificate is revoked: enrol again" };
const IDLE: Closing = Closing { kind: ErrorKind::Unavailable, why: "the connection was idle" };
const TOO_OLD: Closing =
    Closing { kind: ErrorKind::Unavailable, why: "the connection without a certificate took too long" };

pub(super) struct Connection<S> {
    pub(super) address: SocketAddr,
    pub(super) slot: Slot,
    pub(super) shared: Arc<Shared<S>>,
}

/// Why a certificate is no longer good.
pub(super) fn certificate_fault(peer: Option<&Peer>, service: &impl Service) -> Option<Closing> {
    let peer = peer?;
    if peer.not_after <= pki::now() {
        return Some(EXPIRED);
    }
    service.is_revoked(peer).then_some(REVOKED)
}

impl<S: Service> Connection<S> {
    pub(super) async fn run(mut self, stream: TcpStream, tls: TlsAcceptor) {
        match self.handshake(stream, tls).await {
            Ok((stream, peer)) => self.serve(stream, peer).await,
            Err(error) => self.shared.refusals.say(self.address, "handshake", &error),
        }
    }

    async fn handshake(&mut self, stream: TcpStream, tls: TlsAcceptor) -> Result<(TlsStream<TcpStream>, Option<Peer>)> {
        let failed = |why: String| Error::new(ErrorKind::Unavailable, why);
        stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
        let mut stop = self.shared.stop.clone();
        let accepted = tokio::select! {
            accepted = timeout(self.shared.limits.handshake, tls.accept(stream).into_fallible()) => accepted,
            _ = stop.wait_for(|stop| *stop) => return Err(STOPPING.error()),
        };
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                linger(stream).await;
                return Err(failed(format!("TLS: {error}")));
            }
            Err(_) => return Err(failed("the TLS handshake took too long".to_owned())),
        };
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(ALPN) {
            return Err(failed("the peer does not speak HTTP/2".to_owned()));
        }
        let peer = Peer::of(session.peer_certificates(), self.address)?;
        if let Some(peer) = &peer {
            let full = |why| failed(format!("{}: {why}", peer.machine));
            self.slot.belongs_to(&peer.machine).map_err(full)?;
        }
        Ok((stream, peer))
    }

    fn http(&self, with_certificate: bool) -> http2::Builder<TokioExecutor> {
        let limits = &self.shared.limits;
        let (stream, connection, frame, calls) = if with_certificate {
            (limits.stream_window_bytes, limits.connection_window_bytes, FRAME_BYTES_MAX, limits.calls)
        } else {
            let window = WINDOW_WITHOUT_CERTIFICATE_BYTES;
            (window, window, FRAME_WITHOUT_CERTIFICATE_BYTES_MAX, 1)
        };
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .initial_stream_window_size(stream)
            .initial_connection_window_size(connection)
            .max_concurrent_streams(calls)
            .max_frame_size(frame)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(limits.keepalive)
            .keep_alive_timeout(limits.keepalive);
        http
    }

    async fn serve(self, stream: TlsStream<TcpStream>, peer: Option<Peer>) {
        let http = self.http(peer.is_some());
        let (closing, closed) = watch::channel(None);
        let open = Arc::new(());
        let calls = Calls {
            shared: self.shared.clone(),
            peer: peer.clone(),
            address: self.address,
            closed,
            open: Arc::downgrade(&open),
            slot: Arc::new(self.slot),
        };
        let answer = service_fn(move |request| {
            let calls = calls.clone();
            async move { Ok::<_, Infallible>(calls.answer(request).await) }
        });
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), answer));
        let mut stop = self.shared.stop.clone();
        let mut life = Life::new(&self.shared.limits, peer.is_none(), open);
        let mut tick = interval(self.shared.limits.check_every);
        let mut deadline = None;
        loop {
            let reason = tokio::select! {
                _ = connection.as_mut() => return,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return,
                _ = stop.wait_for(|stop| *stop), if deadline.is_none() => STOPPING,
                _ = tick.tick(), if deadline.is_none() => {
                    let fault = certificate_fault(peer.as_ref(), &*self.shared.service);
                    match fault.or_else(|| life.over(Instant::now())) {
                        Some(reason) => reason,
                        None => continue,
                    }
                }
            };
            let last = if reason == STOPPING { self.shared.limits.grace } else { FAREWELL };
            deadline = Some(Instant::now() + last);
            closing.send_replace(Some(reason));
            if reason.kind == ErrorKind::Key {
                // Whoever calls meanwhile is told why; HTTP/2's farewell would say only that the connection ends.
                self.shared.refusals.say(self.address, reason.why, &reason.error());
            } else {
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Reads on for a moment.
async fn linger(mut stream: TcpStream) {
    let rest = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await
    };
    // The handshake has failed already, and its error is what is said.
    let _ = timeout(LINGER, rest).await;
}

/// How long a connection may live.
struct Life {
    /// Held by each open call.
    open: Arc<()>,
    used: Instant,
    idle: Duration,
    end: Option<Instant>,
}

impl Life {
    fn new(limits: &Limits, without_certificate: bool, open: Arc<()>) -> Self {
        let now = Instant::now();
        let end = without_certificate.then(|| now + limits.without_certificate);
        Self { open, used: now, idle: limits.idle, end }
    }

    fn over(&mut self, now: Instant) -> Option<Closing> {
        if Arc::strong_count(&self.open) > 1 {
            self.used = now;
        }
        if self.end.is_some_and(|end| now >= end) {
            return Some(TOO_OLD);
        }
        (now.duration_since(self.used) >= self.idle).then_some(IDLE)
    }
}

/// Counts an open call while it is held.
pub(super) type Open = Weak<()>;
