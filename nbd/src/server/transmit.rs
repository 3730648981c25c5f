//! Requests and replies, after the negotiation.

use std::sync::Arc;

use bytes::Bytes;
use landfall_model::num::to_u32;
use landfall_model::{Error, ErrorKind, Extent};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

use super::negotiate::ALLOCATION_ID;
use super::{Chosen, Disk, REQUESTS_MAX};
use crate::protocol::{
    REQUEST_BYTES_MAX, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, allocation, chunk, command,
    command_flag, errno,
};

/// Runs in one reply about a range.
const RUNS_MAX: usize = 2048;
/// Bytes of a message in an error's reply.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Bytes of the header of a structured reply's chunk.
const CHUNK_HEADER_BYTES: usize = 20;
/// And the offset before its data.
const OFFSET_BYTES: usize = 8;

/// A request, without its data.
#[derive(Clone, Copy)]
struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    extent: Extent,
}

impl Request {
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Self> {
        if from.read_u32().await? != REQUEST_MAGIC {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a request does not begin as one"));
        }
        let (flags, command) = (from.read_u16().await?, from.read_u16().await?);
        let (cookie, start) = (from.read_u64().await?, from.read_u64().await?);
        let len = u64::from(from.read_u32().await?);
        Ok(Self { flags, command, cookie, extent: Extent { start, len } })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What a request is answered with.
enum Answer {
    Done,
    /// A buffer with room for the header before the data.
    Data(Vec<u8>),
    Status(Vec<u8>),
}

/// Why a request is refused.
struct Refused {
    number: u32,
    why: String,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let number = match error.kind() {
            ErrorKind::NoSpace => errno::NOSPC,
            ErrorKind::Usage => errno::INVAL,
            ErrorKind::Unsupported => errno::NOTSUP,
            _ => errno::IO,
        };
        Self { number, why: error.to_string() }
    }
}

fn refused(number: u32, why: &str) -> Refused {
    Refused { number, why: why.to_owned() }
}

struct Connection<W> {
    disk: Arc<dyn Disk>,
    structured: bool,
    allocation: bool,
    to: Mutex<W>,
}

impl<W: AsyncWrite + Unpin + Send> Connection<W> {
    /// Whether a request is one that can be served.
    fn check(&self, request: &Request) -> Result<(), Refused> {
        let writes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && !self.disk.writable() {
            return Err(refused(errno::PERM, "the export is read only"));
        }
        let Extent { start, len } = request.extent;
        let moves = matches!(request.command, command::READ | command::WRITE);
        if moves && len > u64::from(REQUEST_BYTES_MAX) {
            return Err(refused(errno::OVERFLOW, "more bytes than one request may move"));
        }
        if request.command != command::FLUSH && start.checked_add(len).is_none_or(|end| end > self.disk.size()) {
            let number = if writes { errno::NOSPC } else { errno::INVAL };
            return Err(refused(number, "the range ends behind the end of the disk"));
        }
        Ok(())
    }

    async fn perform(&self, request: &Request, data: Bytes) -> Result<Answer, Refused> {
        self.check(request)?;
        let extent = request.extent;
        match request.command {
            command::READ => {
                let header = if self.structured { CHUNK_HEADER_BYTES + OFFSET_BYTES } else { 16 };
                let mut out = vec![0; header + landfall_model::num::to_usize(extent.len)];
                self.disk.read(extent.start, &mut out[header..]).await?;
                return Ok(Answer::Data(out));
            }
            command::WRITE => self.disk.write(extent.start, data).await?,
            command::FLUSH => self.disk.flush().await?,
            // What is discarded reads as zeroes: simple, and allowed.
            command::TRIM | command::WRITE_ZEROES if extent.len > 0 => self.disk.zero(extent).await?,
            command::TRIM | command::WRITE_ZEROES => {}
            command::CACHE => return self.cache(extent).await,
            command::BLOCK_STATUS if !self.allocation || extent.len == 0 => {
                return Err(refused(errno::INVAL, "no metadata context was chosen, or the range is empty"));
            }
            command::BLOCK_STATUS => {
                let runs_max = if request.has(command_flag::REQ_ONE) { 1 } else { RUNS_MAX };
                let mut out = ALLOCATION_ID.to_be_bytes().to_vec();
                for run in self.disk.status(extent, runs_max).await?.iter().take(runs_max) {
                    let flags = if run.data { 0 } else { allocation::HOLE | allocation::ZERO };
                    let len = u32::try_from(run.extent.len).unwrap_or(u32::MAX);
                    out.extend([len, flags].into_iter().flat_map(u32::to_be_bytes));
                }
                return Ok(Answer::Status(out));
            }
            _ => return Err(refused(errno::NOTSUP, "the command is not known")),
        }
        if request.has(command_flag::FUA) {
            self.disk.flush().await?;
        }
        Ok(Answer::Done)
    }

    /// Reads what will be read, so that it is at hand then.
    async fn cache(&self, extent: Extent) -> Result<Answer, Refused> {
        let mut piece = vec![0; 1024 * 1024];
        let mut at = extent.start;
        while at < extent.end() {
            let len = (extent.end() - at).min(piece.len() as u64);
            self.disk.read(at, &mut piece[..landfall_model::num::to_usize(len)]).await?;
            at += len;
        }
        Ok(Answer::Done)
    }

    async fn answer(&self, request: &Request, answer: Result<Answer, Refused>) -> std::io::Result<()> {
        if let Err(refused) = &answer
            && refused.number == errno::IO
        {
            let (start, len) = (request.extent.start, request.extent.len);
            tracing::error!(start, len, why = refused.why, "a request of an NBD client failed");
        }
        let out = if self.structured { structured(request, answer) } else { simple(request, answer) };
        let mut to = self.to.lock().await;
        to.write_all(&out).await?;
        to.flush().await
    }
}

fn simple(request: &Request, answer: Result<Answer, Refused>) -> Vec<u8> {
    let (number, mut out) = match answer {
        Ok(Answer::Data(out)) => (0, out),
        Ok(_) => (0, vec![0; 16]),
        Err(refused) => (refused.number, vec![0; 16]),
    };
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&number.to_be_bytes());
    out[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    out
}

fn structured(request: &Request, answer: Result<Answer, Refused>) -> Vec<u8> {
    let (kind, mut out) = match answer {
        Ok(Answer::Data(mut out)) if request.extent.len > 0 => {
            out[CHUNK_HEADER_BYTES..CHUNK_HEADER_BYTES + OFFSET_BYTES]
                .copy_from_slice(&request.extent.start.to_be_bytes());
            (chunk::OFFSET_DATA, out)
        }
        Ok(Answer::Status(data)) => {
            let mut out = vec![0; CHUNK_HEADER_BYTES];
            out.extend_from_slice(&data);
            (chunk::BLOCK_STATUS, out)
        }
        Ok(Answer::Done | Answer::Data(_)) => (chunk::NONE, vec![0; CHUNK_HEADER_BYTES]),
        Err(mut refused) => {
            refused.why.truncate(refused.why.floor_char_boundary(MESSAGE_BYTES_MAX));
            let mut out = vec![0; CHUNK_HEADER_BYTES];
            out.extend_from_slice(&refused.number.to_be_bytes());
            out.extend_from_slice(&u16::try_from(refused.why.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(refused.why.as_bytes());
            (chunk::ERROR_ANY, out)
        }
    };
    let len = to_u32(out.len() - CHUNK_HEADER_BYTES);
    out[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&chunk::DONE.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    out[16..20].copy_from_slice(&len.to_be_bytes());
    out
}

/// Serves requests until the client goes. What is in flight then is ended before this returns.
pub(crate) async fn transmit<W: AsyncWrite + Unpin + Send + 'static>(
    bytes: &Arc<Semaphore>,
    chosen: Chosen,
    mut from: impl AsyncRead + Unpin,
    to: W,
) -> std::io::Result<()> {
    let Chosen { disk, structured, allocation } = chosen;
    let connection = Arc::new(Connection { disk, structured, allocation, to: Mutex::new(to) });
    let mut in_flight: JoinSet<std::io::Result<()>> = JoinSet::new();
    let closed = || std::io::Error::other("the server ends");
    let mut failed = None;
    let ended = loop {
        while in_flight.len() >= REQUESTS_MAX
            && let Some(done) = in_flight.join_next().await
        {
            failed = failed.or(done.map_err(std::io::Error::other).flatten().err());
        }
        while let Some(done) = in_flight.try_join_next() {
            failed = failed.or(done.map_err(std::io::Error::other).flatten().err());
        }
        // Never left before what is in flight is done: a write that goes on after its client is gone would overtake those of the next one.
        if let Some(error) = failed {
            break Err(error);
        }
        let request = match Request::read(&mut from).await {
            Ok(request) if request.command == command::DISC => break Ok(()),
            Ok(request) => request,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break Ok(()),
            Err(error) => break Err(error),
        };
        let len = u32::try_from(request.extent.len).unwrap_or(u32::MAX);
        let moves = matches!(request.command, command::READ | command::WRITE);
        if request.command == command::WRITE && len > REQUEST_BYTES_MAX {
            // Its data cannot be taken, so there is no telling where the next request begins.
            break Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a write of more than can be taken"));
        }
        let permit = if moves { len.min(REQUEST_BYTES_MAX) } else { 0 };
        let Ok(permit) = bytes.clone().acquire_many_owned(permit).await else { break Err(closed()) };
        let mut data = Bytes::new();
        if request.command == command::WRITE {
            let mut taken = vec![0; len as usize];
            if let Err(error) = from.read_exact(&mut taken).await {
                break Err(error);
            }
            data = taken.into();
        }
        let connection = connection.clone();
        in_flight.spawn(async move {
            let answer = connection.perform(&request, data).await;
            let answered = connection.answer(&request, answer).await;
            drop(permit);
            answered
        });
    };
    while in_flight.join_next().await.is_some() {}
    ended
}
