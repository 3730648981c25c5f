//! Requests in flight and the chunks that answer them.

use std::collections::VecDeque;

use landfall_model::num::to_usize;
use landfall_model::{Error, ErrorKind, Extent, ExtentSet};

use super::{Client, Failure};
use crate::protocol::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, command, errno};

/// Longest answer to a question for the status of blocks: no server that is known sends more than 1 MiB of extents.
const STATUS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Chunks that answer one question for the status of blocks: one for each context, and errors.
const STATUS_CHUNKS_MAX: usize = 64;
/// What an error says beyond its number.
const ERROR_BYTES_MAX: usize = 8192;

type Result<T> = std::result::Result<T, Failure>;

/// Beginning of an answer.
struct Head {
    handle: u64,
    /// Nothing more comes for this request.
    done: bool,
    kind: u16,
    len: usize,
}

impl Client {
    fn corrupt<T>(&self, why: &str) -> Result<T> {
        Err(Failure::Lost(self.stream.corrupt(why)))
    }

    fn head(&mut self) -> Result<Head> {
        let mut head = || -> landfall_model::Result<Option<Head>> {
            match self.stream.u32()? {
                STRUCTURED_REPLY_MAGIC => {
                    let (flags, kind) = (self.stream.u16()?, self.stream.u16()?);
                    let (handle, len) = (self.stream.u64()?, to_usize(u64::from(self.stream.u32()?)));
                    Ok(Some(Head { handle, done: flags & chunk::DONE != 0, kind, len }))
                }
                SIMPLE_REPLY_MAGIC => {
                    let (error, handle) = (self.stream.u32()?, self.stream.u64()?);
                    // Only an error may be told in this way.
                    let told = Head { handle, done: true, kind: chunk::ERROR_ANY, len: 0 };
                    Ok((error != 0).then_some(told))
                }
                _ => Ok(None),
            }
        };
        match head().map_err(Failure::Lost)? {
            Some(head) => Ok(head),
            None => self.corrupt("an answer begins wrongly"),
        }
    }

    /// The error that a chunk tells; none where the chunk tells none.
    fn told(&mut self, head: &Head, doing: &str) -> Result<Option<Error>> {
        if head.kind & chunk::ERROR == 0 {
            return Ok(None);
        }
        if head.len > ERROR_BYTES_MAX || (head.len < 6 && head.len != 0) {
            return self.corrupt("an error of a wrong length");
        }
        let mut data = vec![0; head.len];
        self.stream.fill(&mut data).map_err(Failure::Lost)?;
        let number = data.first_chunk().map_or(errno::IO, |bytes| u32::from_be_bytes(*bytes));
        let text = data.get(6..).unwrap_or_default();
        let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(200).collect();
        let kind = match number {
            errno::NOTSUP => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        };
        Ok(Some(self.stream.error(kind, format!("{doing}: the server says error {number} {text:?}"))))
    }
}

/// One request of a read.
struct Part {
    handle: u64,
    range: Extent,
    /// What has come of it.
    have: ExtentSet,
    error: Option<Error>,
}

/// Fills a buffer with what is at `offset`, with at most so many requests in flight.
pub(super) fn read(client: &mut Client, buf: &mut [u8], offset: u64, in_flight: usize) -> Result<()> {
    let end = offset + buf.len() as u64;
    let (mut asked, mut parts, mut error) = (offset, VecDeque::<Part>::new(), None);
    loop {
        while parts.len() < in_flight && asked < end && error.is_none() {
            let range = Extent::between(asked, end.min(asked + client.read_max as u64));
            let handle = client.request(command::READ, range)?;
            parts.push_back(Part { handle, range, have: ExtentSet::default(), error: None });
            asked = range.end();
        }
        // All that was asked for is answered before an error is told: the next request finds nothing left over.
        if parts.is_empty() {
            return error.map_or(Ok(()), |error| Err(Failure::Told(error)));
        }
        let head = client.head()?;
        let Some(at) = parts.iter().position(|part| part.handle == head.handle) else {
            return client.corrupt("an answer to nothing that was asked");
        };
        piece(client, &head, &mut parts[at], buf, offset)?;
        if !head.done {
            continue;
        }
        let Some(part) = parts.remove(at) else { continue };
        match part.error {
            Some(told) => error = error.or(Some(told)),
            None if part.have.len() != part.range.len => return client.corrupt("a read that lacks bytes"),
            None => {}
        }
    }
}

/// Takes one chunk of an answer to a read.
fn piece(client: &mut Client, head: &Head, part: &mut Part, buf: &mut [u8], offset: u64) -> Result<()> {
    if let Some(told) = client.told(head, "reading")? {
        part.error = Some(told);
        return Ok(());
    }
    let fail = Failure::Lost;
    let run = match head.kind {
        chunk::NONE if head.len == 0 && head.done => return Ok(()),
        chunk::OFFSET_DATA if head.len > 8 => {
            Extent { start: client.stream.u64().map_err(fail)?, len: head.len as u64 - 8 }
        }
        chunk::OFFSET_HOLE if head.len == 12 => {
            Extent { start: client.stream.u64().map_err(fail)?, len: u64::from(client.stream.u32().map_err(fail)?) }
        }
        _ => return client.corrupt("a piece of a read of a wrong kind or length"),
    };
    let inside =
        run.start >= part.range.start && run.start.checked_add(run.len).is_some_and(|end| end <= part.range.end());
    if run.len == 0 || !inside || part.have.intersects(&run) {
        return client.corrupt("a piece of a read that was not asked for, or came before");
    }
    part.have.insert(run);
    let target = &mut buf[to_usize(run.start - offset)..to_usize(run.end() - offset)];
    if head.kind == chunk::OFFSET_HOLE {
        target.fill(0);
        return Ok(());
    }
    client.stream.fill(target).map_err(fail)
}

/// What a context says of a range: of its beginning at least.
pub(super) fn status(client: &mut Client, context: u32, within: Extent) -> Result<Vec<(Extent, u32)>> {
    let asked = client.request(command::BLOCK_STATUS, within)?;
    let (mut runs, mut error) = (None, None);
    for _ in 0..STATUS_CHUNKS_MAX {
        let head = client.head()?;
        if head.handle != asked {
            return client.corrupt("an answer to nothing that was asked");
        }
        if let Some(told) = client.told(&head, "asking for the status of blocks")? {
            error = Some(told);
        } else {
            match head.kind {
                chunk::NONE if head.len == 0 && head.done => {}
                chunk::BLOCK_STATUS if head.len >= 12 && head.len <= STATUS_BYTES_MAX && head.len % 8 == 4 => {
                    let of = client.stream.u32().map_err(Failure::Lost)?;
                    let mut data = vec![0; head.len - 4];
                    client.stream.fill(&mut data).map_err(Failure::Lost)?;
                    if of == context && runs.replace(parsed(client, &data, within)?).is_some() {
                        return client.corrupt("the status of blocks comes twice");
                    }
                }
                _ => return client.corrupt("a status of blocks of a wrong kind or length"),
            }
        }
        if head.done {
            return match (error, runs) {
                (Some(error), _) => Err(Failure::Told(error)),
                (None, Some(runs)) => Ok(runs),
                (None, None) => client.corrupt("no status of blocks"),
            };
        }
    }
    client.corrupt("a status of blocks that does not end")
}

fn parsed(client: &Client, data: &[u8], within: Extent) -> Result<Vec<(Extent, u32)>> {
    let (mut runs, mut at) = (Vec::with_capacity(data.len() / 8), within.start);
    for pair in data.chunks_exact(8) {
        let number =
            |from: usize| pair.get(from..from + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b));
        let (len, flags) = (u64::from(number(0)), number(4));
        if len == 0 || at >= within.end() {
            return client.corrupt("an extent of no bytes, or behind what was asked");
        }
        // The last may say more than was asked.
        let run = Extent::between(at, (at + len).min(within.end()));
        runs.push((run, flags));
        at = run.end();
    }
    Ok(runs)
}
