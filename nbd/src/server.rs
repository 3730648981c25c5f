//! The server: any number of exports, many connections, many requests in flight on each.
//!
//! ```text
//!   listener --connection--> negotiate (exports, contexts) --> requests --16 in flight--> Disk --> replies, in any order
//! ```
//!
//! # Bounds
//! Connections, requests in flight on each, and the bytes of all requests in flight are bounded by named constants; who sends more waits.

mod negotiate;
mod transmit;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Address;
use async_trait::async_trait;
use bytes::Bytes;
use landfall_model::{Error, ErrorKind, Extent, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may take to choose an export.
const NEGOTIATION_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
/// Requests in flight on one connection.
pub const REQUESTS_MAX: usize = 16;
/// Bytes of all requests in flight, of all connections. At least the largest request.
pub const BYTES_IN_FLIGHT_MAX: u32 = 128 * 1024 * 1024;
const _: () = assert!(BYTES_IN_FLIGHT_MAX >= crate::protocol::REQUEST_BYTES_MAX);

/// A disk as it is served. Ranges lie within the disk.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Whether it takes writes.
    fn writable(&self) -> bool;

    /// What it is, for people.
    fn description(&self) -> String;

    /// Fills `out` from `start` on.
    ///
    /// # Errors
    /// What cannot be read is an error of this range alone.
    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()>;

    /// Writes. Durable after [`Self::flush`].
    ///
    /// # Errors
    /// `NoSpace`; of a disk that takes no writes, `Usage`.
    async fn write(&self, start: u64, bytes: Bytes) -> Result<()>;

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As for [`Self::write`].
    async fn zero(&self, extent: Extent) -> Result<()>;

    /// Makes durable what was written before.
    ///
    /// # Errors
    /// What the disk below says.
    async fn flush(&self) -> Result<()>;

    /// What a range holds, from its beginning on: at least one run, and at most as many as are asked for. Runs follow each other.
    ///
    /// # Errors
    /// As for [`Self::read`].
    async fn status(&self, extent: Extent, runs_max: usize) -> Result<Vec<Run>>;
}

/// A run of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Its range.
    pub extent: Extent,
    /// It may hold anything; else it reads as zeroes.
    pub data: bool,
}

/// Disks by the names of their exports.
pub struct Server {
    exports: BTreeMap<String, Arc<dyn Disk>>,
    bytes: Arc<Semaphore>,
}

/// A socket that listens; one in the file system is removed with it.
pub struct Listening {
    listener: Listener,
    address: Address,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listening {
    /// Listens. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `Conflict` where somebody listens there; what the host says.
    pub async fn at(address: &Address) -> Result<Self> {
        let fail = |e: std::io::Error| {
            let (kind, place) = (ErrorKind::of_io(&e), address.uri(""));
            let kind = if e.kind() == std::io::ErrorKind::AddrInUse { ErrorKind::Conflict } else { kind };
            Error::with_source(kind, format!("cannot listen at {place}"), e)
        };
        Ok(match address {
            Address::Unix(path) => {
                if path.exists() {
                    if tokio::net::UnixStream::connect(path).await.is_ok() {
                        let why = format!("{}: somebody listens there already", path.display());
                        return Err(Error::new(ErrorKind::Conflict, why));
                    }
                    let _ = std::fs::remove_file(path);
                }
                Self { listener: Listener::Unix(UnixListener::bind(path).map_err(fail)?), address: address.clone() }
            }
            Address::Tcp(at) => {
                let listener = TcpListener::bind(at).await.map_err(fail)?;
                let address = Address::Tcp(listener.local_addr().map_err(fail)?.to_string());
                Self { listener: Listener::Tcp(listener), address }
            }
        })
    }

    /// Where: with the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Server {
    /// Of these exports.
    pub fn new(exports: BTreeMap<String, Arc<dyn Disk>>) -> Arc<Self> {
        Arc::new(Self { exports, bytes: Arc::new(Semaphore::new(BYTES_IN_FLIGHT_MAX as usize)) })
    }

    /// The export of a name; the only one has no name too.
    fn export(&self, name: &str) -> Option<&Arc<dyn Disk>> {
        match self.exports.get(name) {
            None if name.is_empty() && self.exports.len() == 1 => self.exports.values().next(),
            found => found,
        }
    }

    /// Serves until it is dropped; connections end with it.
    ///
    /// # Errors
    /// Where the socket fails.
    pub async fn serve(self: Arc<Self>, listening: &Listening) -> Result<()> {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            while connections.try_join_next().is_some() {}
            let server = self.clone();
            let accepted = match &listening.listener {
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(server.connection(stream));
                }),
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(server.connection(stream));
                }),
            };
            match accepted {
                Ok(()) => {}
                // The one who called has gone, or there are too many files open: others may come.
                Err(error) if ErrorKind::of_io(&error) == ErrorKind::Unavailable => {
                    tracing::warn!(%error, "an NBD connection was not accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                Err(error) => {
                    return Err(Error::with_source(ErrorKind::of_io(&error), "the NBD socket failed", error));
                }
            }
        }
    }

    /// Serves one client until it goes, or breaks the protocol.
    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let (mut from, mut to) = tokio::io::split(stream);
        let negotiated = tokio::time::timeout(NEGOTIATION_LIMIT, negotiate::negotiate(&self, &mut from, &mut to));
        let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut));
        let chosen = match negotiated.await.unwrap_or_else(late) {
            Ok(Some(chosen)) => chosen,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "an NBD client did not come to an agreement");
                return;
            }
        };
        if let Err(error) = transmit::transmit(&self.bytes, chosen, from, to).await {
            tracing::debug!(%error, "an NBD connection ended");
        }
    }
}

/// What a client and the server have agreed upon.
pub(crate) struct Chosen {
    disk: Arc<dyn Disk>,
    structured: bool,
    /// `base:allocation` was asked for.
    allocation: bool,
}

#[cfg(test)]
mod tests;
