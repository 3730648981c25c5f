//! Lines over a unix socket, with a bound and a time limit for each.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::{QmpError, Result};

/// Longest line that is read: the answer to `query-qmp-schema` has some 250 KiB, that of a machine with 64 disks some 200 KiB.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one read.
const READ_BYTES: usize = 16 * 1024;
/// The operating system takes no time limit of zero.
const SHORTEST: Duration = Duration::from_millis(1);

/// Until when something may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    /// For the error.
    pub(crate) limit: Duration,
}

impl Deadline {
    /// From now on.
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// The earlier of two.
    pub(crate) fn at_most(self, limit: Duration) -> Self {
        Self { at: self.at.min(Instant::now() + limit), ..self }
    }

    pub(crate) fn left(self) -> Option<Duration> {
        self.at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }
}

pub(crate) struct Lines {
    stream: UnixStream,
    path: PathBuf,
    /// What was read and not yet taken.
    buffer: Vec<u8>,
    /// So many bytes of it have no end of a line in them.
    searched: usize,
}

impl Lines {
    pub(crate) fn connect(path: &Path, deadline: Deadline) -> Result<Self> {
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Of a socket whose queue is full, the limit of writes holds for the connect too.
            socket.set_write_timeout(Some(deadline.left().unwrap_or(SHORTEST).max(SHORTEST)))?;
            socket.connect(&SockAddr::unix(path)?)?;
            Ok(UnixStream::from(OwnedFd::from(socket)))
        };
        match connect() {
            Ok(stream) => Ok(Self { stream, path: path.to_owned(), buffer: Vec::new(), searched: 0 }),
            Err(error) => Err(Self::failed(path, error, "the connection", deadline)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn failed(path: &Path, source: io::Error, to: &str, deadline: Deadline) -> QmpError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                QmpError::Silent { path, to: to.to_owned(), limit: deadline.limit }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => QmpError::Ended { path },
            _ => QmpError::Io { path, source },
        }
    }

    pub(crate) fn silent(&self, to: &str, deadline: Deadline) -> QmpError {
        QmpError::Silent { path: self.path.clone(), to: to.to_owned(), limit: deadline.limit }
    }

    pub(crate) fn malformed(&self, why: &'static str) -> QmpError {
        QmpError::Malformed { path: self.path.clone(), why }
    }

    /// Sends these bytes. `to`: what they are, for the error.
    pub(crate) fn send(&mut self, mut bytes: &[u8], to: &str, deadline: Deadline) -> Result<()> {
        while !bytes.is_empty() {
            let left = deadline.left().ok_or_else(|| self.silent(to, deadline))?;
            let sent = self.stream.set_write_timeout(Some(left.max(SHORTEST))).and_then(|()| self.stream.write(bytes));
            match sent {
                Ok(0) => return Err(QmpError::Ended { path: self.path.clone() }),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Self::failed(&self.path, error, to, deadline)),
            }
        }
        Ok(())
    }

    /// The next line, without its end. `to`: what it is waited for, for the error.
    pub(crate) fn line(&mut self, to: &str, deadline: Deadline) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                self.searched = 0;
                line.truncate(end);
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.malformed("a line does not end"));
            }
            let left = deadline.left().ok_or_else(|| self.silent(to, deadline))?;
            let mut part = [0; READ_BYTES];
            let read =
                self.stream.set_read_timeout(Some(left.max(SHORTEST))).and_then(|()| self.stream.read(&mut part));
            match read {
                Ok(0) => return Err(QmpError::Ended { path: self.path.clone() }),
                Ok(n) => self.buffer.extend_from_slice(&part[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Self::failed(&self.path, error, to, deadline)),
            }
        }
    }
}
