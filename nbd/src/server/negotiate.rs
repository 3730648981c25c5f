//! The negotiation: which export, whether replies are structured, which metadata contexts.

use std::sync::Arc;

use landfall_model::num::to_u32;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Chosen, Disk, Server};
use crate::protocol::{
    BASE_ALLOCATION, MAGIC, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_BYTES_MAX,
    flag, handshake, info, option, option_reply,
};

/// The number of the one metadata context that there is.
pub(crate) const ALLOCATION_ID: u32 = 1;
/// What a read is best a multiple of.
const BLOCK_BYTES_PREFERRED: u32 = 64 * 1024;
/// Options before a client must have chosen: who sends more wants nothing good.
const OPTIONS_MAX: usize = 64;

fn broken(why: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

/// Flags of an export.
pub(crate) fn flags(disk: &dyn Disk) -> u16 {
    let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_DF | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
    always | if disk.writable() { flag::SEND_FUA | flag::SEND_TRIM | flag::SEND_WRITE_ZEROES } else { flag::READ_ONLY }
}

/// Reads the fields of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A text with its length before it.
    fn name(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        let bytes = self.bytes(len).filter(|_| len <= NAME_BYTES_MAX)?;
        std::str::from_utf8(bytes).ok()
    }
}

/// The contexts that a client asks for, of an export.
struct Contexts<'a> {
    export: &'a str,
    allocation: bool,
}

fn contexts(data: &[u8], listing: bool) -> Option<Contexts<'_>> {
    let mut fields = Fields(data);
    let export = fields.name()?;
    let queries = fields.u32()?;
    let mut allocation = listing && queries == 0;
    for _ in 0..queries {
        let query = fields.name()?;
        allocation |= query == BASE_ALLOCATION || (listing && query == "base:");
    }
    fields.0.is_empty().then_some(Contexts { export, allocation })
}

struct Negotiation<'a, W> {
    server: &'a Server,
    to: &'a mut W,
    structured: bool,
    /// The export that contexts were chosen for.
    allocation_of: Option<String>,
}

impl<W: AsyncWrite + Unpin> Negotiation<'_, W> {
    async fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> std::io::Result<()> {
        let mut out = Vec::with_capacity(20 + data.len());
        out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&to_u32(data.len()).to_be_bytes());
        out.extend_from_slice(data);
        self.to.write_all(&out).await?;
        self.to.flush().await
    }

    fn chosen(&self, name: &str, disk: &Arc<dyn Disk>) -> Chosen {
        let allocation = self.structured && self.allocation_of.as_deref() == Some(name);
        Chosen { disk: disk.clone(), structured: self.structured, allocation }
    }

    /// `INFO` and `GO`: tells about an export, and chooses it.
    async fn info(&mut self, option: u32, data: &[u8]) -> std::io::Result<Option<Chosen>> {
        let mut fields = Fields(data);
        let asked = (|| {
            let name = fields.name()?;
            let count = fields.u16()?;
            let asked: Option<Vec<u16>> = (0..count).map(|_| fields.u16()).collect();
            Some((name, asked?)).filter(|_| fields.0.is_empty())
        })();
        let Some((name, asked)) = asked else {
            self.reply(option, option_reply::ERR_INVALID, b"malformed").await?;
            return Ok(None);
        };
        let Some(disk) = self.server.export(name) else {
            self.reply(option, option_reply::ERR_UNKNOWN, b"no such export").await?;
            return Ok(None);
        };
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend_from_slice(&disk.size().to_be_bytes());
        export.extend_from_slice(&flags(&**disk).to_be_bytes());
        self.reply(option, option_reply::INFO, &export).await?;
        for kind in asked {
            let mut out = kind.to_be_bytes().to_vec();
            match kind {
                info::NAME => out.extend_from_slice(name.as_bytes()),
                info::DESCRIPTION => out.extend_from_slice(disk.description().as_bytes()),
                info::BLOCK_SIZE => {
                    out.extend([1, BLOCK_BYTES_PREFERRED, REQUEST_BYTES_MAX].into_iter().flat_map(u32::to_be_bytes));
                }
                _ => continue,
            }
            self.reply(option, option_reply::INFO, &out).await?;
        }
        self.reply(option, option_reply::ACK, &[]).await?;
        Ok((option == option::GO).then(|| self.chosen(name, disk)))
    }

    async fn list(&mut self, data: &[u8]) -> std::io::Result<()> {
        if !data.is_empty() {
            return self.reply(option::LIST, option_reply::ERR_INVALID, b"no data is expected").await;
        }
        let server = self.server;
        for (name, disk) in &server.exports {
            let mut out = to_u32(name.len()).to_be_bytes().to_vec();
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(disk.description().as_bytes());
            self.reply(option::LIST, option_reply::SERVER, &out).await?;
        }
        self.reply(option::LIST, option_reply::ACK, &[]).await
    }

    async fn contexts(&mut self, option: u32, data: &[u8]) -> std::io::Result<()> {
        let setting = option == option::SET_META_CONTEXT;
        let Some(asked) = contexts(data, !setting).filter(|_| self.structured) else {
            return self.reply(option, option_reply::ERR_INVALID, b"malformed, or before structured replies").await;
        };
        if self.server.export(asked.export).is_none() {
            return self.reply(option, option_reply::ERR_UNKNOWN, b"no such export").await;
        }
        if setting {
            self.allocation_of = asked.allocation.then(|| asked.export.to_owned());
        }
        if asked.allocation {
            let mut out = if setting { ALLOCATION_ID } else { 0 }.to_be_bytes().to_vec();
            out.extend_from_slice(BASE_ALLOCATION.as_bytes());
            self.reply(option, option_reply::META_CONTEXT, &out).await?;
        }
        self.reply(option, option_reply::ACK, &[]).await
    }
}

/// Comes to an agreement with a client; none where it ended the negotiation.
pub(crate) async fn negotiate(
    server: &Server,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<Option<Chosen>> {
    to.write_u64(MAGIC).await?;
    to.write_u64(OPTION_MAGIC).await?;
    to.write_u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).await?;
    to.flush().await?;
    let client = from.read_u32().await?;
    let (fixed, no_zeroes) = (u32::from(handshake::FIXED_NEWSTYLE), u32::from(handshake::NO_ZEROES));
    if client & fixed == 0 || client & !(fixed | no_zeroes) != 0 {
        return Err(broken("the client does not speak the fixed newstyle protocol"));
    }
    let mut negotiation = Negotiation { server, to, structured: false, allocation_of: None };
    for _ in 0..OPTIONS_MAX {
        if from.read_u64().await? != OPTION_MAGIC {
            return Err(broken("an option does not begin as one"));
        }
        let (option, len) = (from.read_u32().await?, from.read_u32().await? as usize);
        if len > OPTION_BYTES_MAX {
            return Err(broken("an option is too large"));
        }
        let mut data = vec![0; len];
        from.read_exact(&mut data).await?;
        match option {
            option::EXPORT_NAME => {
                let name = std::str::from_utf8(&data).ok();
                // This option knows no errors: the connection ends.
                let found = name.and_then(|name| Some((name, server.export(name)?)));
                let (name, disk) = found.ok_or_else(|| broken("the client wants an export that is not there"))?;
                let mut out = disk.size().to_be_bytes().to_vec();
                out.extend_from_slice(&flags(&**disk).to_be_bytes());
                out.resize(out.len() + if client & no_zeroes == 0 { 124 } else { 0 }, 0);
                let chosen = negotiation.chosen(name, disk);
                to.write_all(&out).await?;
                to.flush().await?;
                return Ok(Some(chosen));
            }
            option::ABORT => {
                negotiation.reply(option, option_reply::ACK, &[]).await?;
                return Ok(None);
            }
            option::LIST => negotiation.list(&data).await?,
            option::INFO | option::GO => {
                if let Some(chosen) = negotiation.info(option, &data).await? {
                    return Ok(Some(chosen));
                }
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                negotiation.structured = true;
                negotiation.reply(option, option_reply::ACK, &[]).await?;
            }
            option::STRUCTURED_REPLY => negotiation.reply(option, option_reply::ERR_INVALID, &[]).await?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => negotiation.contexts(option, &data).await?,
            _ => negotiation.reply(option, option_reply::ERR_UNSUP, &[]).await?,
        }
    }
    Err(broken("the client negotiates for ever"))
}
