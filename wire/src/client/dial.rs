//! A connection to a gateway: TCP, TLS, HTTP/2.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::body::Incoming as ResponseBody;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use landfall_model::{Error, ErrorKind, Result};
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};

use crate::pki::{GATEWAY_NAME, pin_of};
use crate::status::to_error;
use crate::tls;

/// Longest wait for a connection: address, TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a silent gateway is left alone before it is asked whether it is alive, and how long it has to answer.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Bytes that the gateway may send ahead of the reader: its messages are short.
const WINDOW_BYTES: u32 = 256 * 1024;
/// Longest list of headers, in bytes.
const HEADERS_BYTES_MAX: u32 = 8 * 1024;

/// A connection. Dropping it closes it once its calls have ended.
pub(crate) struct Dialled {
    gateway: String,
    sender: http2::SendRequest<Body>,
    chain: Vec<CertificateDer<'static>>,
    alert: Arc<OnceLock<AlertDescription>>,
}

/// Connects to a gateway. `distrust` says what it is when its certificate is not accepted.
pub(crate) async fn dial(gateway: &str, config: Arc<ClientConfig>, distrust: &str) -> Result<Dialled> {
    let why = |e: io::Error| unreachable(gateway, distrust, e);
    let connected = timeout(CONNECT, async {
        let stream = TcpStream::connect(gateway).await.map_err(why)?;
        stream.set_nodelay(true).map_err(why)?;
        let stream = TlsConnector::from(config).connect(tls::gateway_name()?, stream).await.map_err(why)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|c| c.clone().into_owned()).collect();
        let alert = Arc::new(OnceLock::new());
        let watched = Watched { stream, alert: alert.clone() };
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let (sender, connection) = http.handshake(TokioIo::new(watched)).await.map_err(|e| why(io::Error::other(e)))?;
        // It ends when the last call has ended and nobody can begin one.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the gateway ended");
            }
        });
        Ok::<_, Error>(Dialled { gateway: gateway.to_owned(), sender, chain, alert })
    });
    let late = |_| Error::new(ErrorKind::Unavailable, format!("gateway {gateway} does not answer: try again"));
    connected.await.map_err(late)?
}

fn unreachable(gateway: &str, distrust: &str, error: io::Error) -> Error {
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(_)) => {
            Error::with_source(ErrorKind::Key, format!("gateway {gateway} {distrust}"), error)
        }
        _ => {
            Error::with_source(ErrorKind::Unavailable, format!("gateway {gateway} cannot be reached: try again"), error)
        }
    }
}

impl Dialled {
    /// A client for calls whose messages are at most so long.
    pub(crate) fn grpc(&self, message_bytes_max: usize) -> Grpc<Sender> {
        let origin = http::Uri::builder().scheme("https").authority(GATEWAY_NAME).path_and_query("/").build();
        Grpc::with_origin(Sender(self.sender.clone()), origin.unwrap_or_default())
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(message_bytes_max)
    }

    /// The gateway's authority, which a token's pin names.
    pub(crate) fn authority(&self, pin: &[u8; 32]) -> Result<Vec<u8>> {
        let pinned = self.chain.iter().find(|certificate| pin_of(certificate) == *pin);
        pinned
            .map(|c| c.to_vec())
            .ok_or_else(|| Error::new(ErrorKind::Bug, "a gateway without its authority was trusted"))
    }

    /// Why a call failed.
    pub(crate) fn failed(&self, status: &Status) -> Error {
        self.explain(to_error(status))
    }

    /// With TLS 1.3 a client learns only after its handshake that its certificate is refused.
    pub(crate) fn explain(&self, error: Error) -> Error {
        use AlertDescription as Alert;
        let gateway = &self.gateway;
        let why = match self.alert.get() {
            Some(Alert::CertificateExpired) => "says that this machine's certificate has expired: enrol again",
            Some(Alert::UnknownCA | Alert::DecryptError) => "is not of the site that this machine is enrolled with",
            Some(
                Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateRevoked
                | Alert::AccessDenied
                | Alert::UnsupportedCertificate
                | Alert::CertificateRequired,
            ) => "refuses this machine's certificate: enrol again",
            _ => return error.context(format_args!("gateway {gateway}")),
        };
        Error::with_source(ErrorKind::Key, format!("gateway {gateway} {why}"), error)
    }
}

/// What tonic sends requests through.
pub(crate) struct Sender(http2::SendRequest<Body>);

impl GrpcService<Body> for Sender {
    type ResponseBody = ResponseBody;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, std::result::Result<http::Response<ResponseBody>, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Keeps the alert that ends the connection: HTTP/2 would make a text of it.
struct Watched {
    stream: TlsStream<TcpStream>,
    alert: Arc<OnceLock<AlertDescription>>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let tls = read.as_ref().err().and_then(io::Error::get_ref).and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = tls {
            self.alert.get_or_init(|| *alert);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
