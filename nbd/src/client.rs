//! The client: reads disks that somebody serves, and what is known of their blocks.
//!
//! ```text
//!   connect: greeting -> STRUCTURED_REPLY -> SET_META_CONTEXT -> GO (size, block size)
//!   read:    requests of 256 KiB, up to 16 in flight, answered in any order and in any pieces
//!   extents: BLOCK_STATUS in steps of at most 1 GiB, each of which must get on
//! ```
//! It is blocking, because those who read disks are threads; one client is one connection, used by one thread at a time. The server is not believed: every length is checked before memory is
//! taken for it, every handle must be one that was asked, a read is whole only when each of its bytes has come exactly once. After an answer that cannot be, nothing is read any more.

mod negotiate;
mod replies;
mod stream;

use std::time::Duration;

use landfall_model::num::{to_u32, to_usize};
use landfall_model::{Error, ErrorKind, Extent, Result};

use crate::Address;
use crate::protocol::{REQUEST_BYTES_MAX, REQUEST_MAGIC, command};
use stream::Stream;

/// Bytes of one request of a read.
pub const PART_BYTES: usize = 256 * 1024;
/// Requests that are under way at once: twice what hides the round trip of a unix socket, and less than any server refuses.
pub const IN_FLIGHT_MAX: usize = 16;
/// The status of so many bytes is asked for at once.
const STATUS_STEP_BYTES: u64 = 1 << 30;
const _: () = assert!(PART_BYTES <= to_usize(REQUEST_BYTES_MAX as u64));

/// A metadata context that was agreed on.
#[derive(Debug)]
struct Context {
    id: u32,
    name: String,
}

/// A connection to one export.
pub struct Client {
    stream: Stream,
    size: u64,
    /// The largest read that the server takes.
    read_max: usize,
    contexts: Vec<Context>,
    next_handle: u64,
    /// What comes cannot be followed any more.
    broken: bool,
}

impl Client {
    /// Connects to an export. `contexts`: what is to be told of its blocks; which of them the server knows, [`Self::has_context`] says. `limit`: after so long without a byte, an answer does not
    /// come any more; that holds for everything later too.
    ///
    /// # Errors
    /// `NotFound` where there is no server or no such export, `Unsupported` where the server has no structured replies, `Corrupt` where it is none, `Unavailable`.
    pub fn connect(address: &Address, export: &str, contexts: &[&str], limit: Duration) -> Result<Self> {
        let mut stream = Stream::connect(address, export, limit)?;
        let agreed = negotiate::negotiate(&mut stream, export, contexts)?;
        let read_max = PART_BYTES.min(to_usize(u64::from(agreed.request_max.unwrap_or(REQUEST_BYTES_MAX))).max(512));
        let (size, contexts) = (agreed.size, agreed.contexts);
        Ok(Self { stream, size, read_max, contexts, next_handle: 1, broken: false })
    }

    /// Bytes of the disk.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Whether the server tells this of its blocks.
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|context| context.name == name)
    }

    /// Fills a buffer from `offset` on, with several requests in flight.
    ///
    /// # Errors
    /// `Usage` for a range over the end; what the server says; `Corrupt`, and on every later call, where it says what cannot be.
    pub fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.read_in(buf, offset, IN_FLIGHT_MAX)
    }

    /// The same with at most so many requests in flight, at least one.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_in(&mut self, buf: &mut [u8], offset: u64, in_flight: usize) -> Result<()> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.size) {
            let why = format!("{} bytes at {offset} are not on a disk of {} bytes", buf.len(), self.size);
            return Err(self.stream.error(ErrorKind::Usage, why));
        }
        self.check()?;
        let outcome = replies::read(self, buf, offset, in_flight.clamp(1, IN_FLIGHT_MAX));
        self.checked(outcome)
    }

    /// Tells what a metadata context says of a range: `take` gets runs and their flags, ascending, without gaps, within the range.
    ///
    /// # Errors
    /// `Unsupported` where the context was not agreed on; those of `take`; as for [`Self::read`].
    pub fn extents(
        &mut self,
        context: &str,
        within: Extent,
        mut take: impl FnMut(Extent, u32) -> Result<()>,
    ) -> Result<()> {
        let Some(id) = self.contexts.iter().find(|c| c.name == context).map(|c| c.id) else {
            return Err(self.stream.error(ErrorKind::Unsupported, format!("the server does not tell {context:?}")));
        };
        let (mut at, end) = (within.start, within.end().min(self.size));
        while at < end {
            let step = Extent::between(at, end.min(at + STATUS_STEP_BYTES));
            self.check()?;
            let outcome = replies::status(self, id, step);
            for (run, flags) in self.checked(outcome)? {
                take(run, flags)?;
                at = run.end();
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.broken { Err(self.stream.corrupt("an earlier answer could not be read")) } else { Ok(()) }
    }

    /// An error that the server has told leaves the connection as it is; after all others nobody knows what comes next.
    fn checked<T>(&mut self, outcome: std::result::Result<T, Failure>) -> Result<T> {
        outcome.map_err(|failure| match failure {
            Failure::Told(error) => error,
            Failure::Lost(error) => {
                self.broken = true;
                error
            }
        })
    }

    /// Sends a request and returns its handle.
    fn request(&mut self, kind: u16, range: Extent) -> std::result::Result<u64, Failure> {
        let handle = self.next_handle;
        self.next_handle += 1;
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..16].copy_from_slice(&handle.to_be_bytes());
        bytes[16..24].copy_from_slice(&range.start.to_be_bytes());
        bytes[24..].copy_from_slice(&to_u32(to_usize(range.len)).to_be_bytes());
        self.stream.send(&bytes).map_err(Failure::Lost)?;
        Ok(handle)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // In order, so that the server need not wonder; it has no answer.
        if !self.broken {
            let _ = self.request(command::DISC, Extent { start: 0, len: 0 });
        }
    }
}

/// Why a request failed.
enum Failure {
    /// The server says so.
    Told(Error),
    /// The connection is of no use any more.
    Lost(Error),
}
