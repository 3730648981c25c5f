//! Bytes to and from a server, and what an error says of where they come from.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, Result};

use crate::Address;

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

pub(super) struct Stream {
    socket: Socket,
    /// The export and where it is served, for errors.
    name: String,
}

impl Stream {
    pub(super) fn connect(address: &Address, export: &str, limit: Duration) -> Result<Self> {
        let name = format!("NBD export {export:?} at {address}");
        let connect = || match address {
            Address::Unix(path) => {
                let socket = UnixStream::connect(path)?;
                socket.set_read_timeout(Some(limit))?;
                socket.set_write_timeout(Some(limit))?;
                Ok(Socket::Unix(socket))
            }
            Address::Tcp(address) => {
                let mut outcome = Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
                for address in address.to_socket_addrs()? {
                    outcome = TcpStream::connect_timeout(&address, limit);
                    if outcome.is_ok() {
                        break;
                    }
                }
                let socket = outcome?;
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(limit))?;
                socket.set_write_timeout(Some(limit))?;
                Ok(Socket::Tcp(socket))
            }
        };
        match connect() {
            Ok(socket) => Ok(Self { socket, name }),
            Err(e) => Err(Error::with_source(ErrorKind::of_io(&e), format!("{name}: cannot connect"), e)),
        }
    }

    pub(super) fn error(&self, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("{}: {why}", self.name))
    }

    /// What the server says cannot be.
    pub(super) fn corrupt(&self, why: impl std::fmt::Display) -> Error {
        self.error(ErrorKind::Corrupt, format_args!("not what the protocol says: {why}"))
    }

    fn failed(&self, doing: &str, error: io::Error) -> Error {
        let why = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server does not answer",
            io::ErrorKind::UnexpectedEof => "the server has ended the connection",
            _ => "the connection broke",
        };
        Error::with_source(ErrorKind::Unavailable, format!("{}: {doing}: {why}", self.name), error)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = match &mut self.socket {
            Socket::Unix(socket) => socket.write_all(bytes),
            Socket::Tcp(socket) => socket.write_all(bytes),
        };
        sent.map_err(|e| self.failed("sending", e))
    }

    pub(super) fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        let read = match &mut self.socket {
            Socket::Unix(socket) => socket.read_exact(buf),
            Socket::Tcp(socket) => socket.read_exact(buf),
        };
        read.map_err(|e| self.failed("receiving", e))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}
