//! Fixed newstyle negotiation, up to the moment when requests may be sent.

use landfall_model::num::{to_u32, to_usize};
use landfall_model::{ErrorKind, Result};

use super::Context;
use super::stream::Stream;
use crate::protocol::{
    MAGIC, NAME_BYTES_MAX, OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake, info, option, option_reply,
};

/// Replies to one option: a context or a piece of information each.
const REPLIES_MAX: usize = 64;

/// What was agreed on.
pub(super) struct Agreed {
    pub(super) size: u64,
    /// The largest request that the server takes, where it says so.
    pub(super) request_max: Option<u32>,
    pub(super) contexts: Vec<Context>,
}

pub(super) fn negotiate(stream: &mut Stream, export: &str, contexts: &[&str]) -> Result<Agreed> {
    if export.len() > NAME_BYTES_MAX || contexts.iter().any(|context| context.len() > NAME_BYTES_MAX) {
        return Err(stream.error(ErrorKind::Usage, "a name is longer than the protocol allows"));
    }
    if (stream.u64()?, stream.u64()?) != (MAGIC, OPTION_MAGIC) {
        return Err(stream.corrupt("the greeting is not that of an NBD server of our time"));
    }
    let flags = stream.u16()?;
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(stream.error(ErrorKind::Unsupported, "the server has no fixed newstyle negotiation"));
    }
    let ours = u32::from(flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES));
    stream.send(&ours.to_be_bytes())?;
    send_option(stream, option::STRUCTURED_REPLY, &[])?;
    answers(stream, option::STRUCTURED_REPLY, |stream, _, _| Err(stream.corrupt("an answer that was not asked for")))?;
    let mut agreed = Agreed { size: 0, request_max: None, contexts: Vec::new() };
    if !contexts.is_empty() {
        let mut data = Vec::new();
        [export].iter().for_each(|name| put_name(&mut data, name));
        data.extend(to_u32(contexts.len()).to_be_bytes());
        contexts.iter().for_each(|name| put_name(&mut data, name));
        send_option(stream, option::SET_META_CONTEXT, &data)?;
        answers(stream, option::SET_META_CONTEXT, |stream, kind, data| {
            let Some((id, name)) = data.split_first_chunk().filter(|_| kind == option_reply::META_CONTEXT) else {
                return Err(stream.corrupt("an answer that names no context"));
            };
            let (id, name) = (u32::from_be_bytes(*id), String::from_utf8_lossy(name).into_owned());
            let is_new = agreed.contexts.iter().all(|c| c.id != id && c.name != name);
            if !is_new || !contexts.contains(&name.as_str()) {
                return Err(stream.corrupt("a context that was not asked for, or twice"));
            }
            agreed.contexts.push(Context { id, name });
            Ok(())
        })?;
    }
    let mut data = Vec::new();
    put_name(&mut data, export);
    data.extend(1_u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    send_option(stream, option::GO, &data)?;
    let mut size = None;
    answers(stream, option::GO, |stream, kind, data| {
        let Some((what, data)) = data.split_first_chunk().filter(|_| kind == option_reply::INFO) else {
            return Err(stream.corrupt("an answer that is no information"));
        };
        match (u16::from_be_bytes(*what), data) {
            (info::EXPORT, [s0, s1, s2, s3, s4, s5, s6, s7, _, _]) => {
                size = Some(u64::from_be_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]));
            }
            (info::BLOCK_SIZE, [_, _, _, _, _, _, _, _, m0, m1, m2, m3]) => {
                agreed.request_max = Some(u32::from_be_bytes([*m0, *m1, *m2, *m3]));
            }
            (info::EXPORT | info::BLOCK_SIZE, _) => return Err(stream.corrupt("information of a wrong length")),
            _ => {}
        }
        Ok(())
    })?;
    agreed.size = size.ok_or_else(|| stream.corrupt("the size of the export was not told"))?;
    if agreed.size > i64::MAX as u64 {
        return Err(stream.corrupt("a disk larger than 8 EiB"));
    }
    Ok(agreed)
}

fn put_name(data: &mut Vec<u8>, name: &str) {
    data.extend(to_u32(name.len()).to_be_bytes());
    data.extend(name.as_bytes());
}

fn send_option(stream: &mut Stream, option: u32, data: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(to_u32(data.len()).to_be_bytes());
    bytes.extend(data);
    stream.send(&bytes)
}

/// Gives all answers to an option to `take`, until the server has acknowledged it.
fn answers(stream: &mut Stream, option: u32, mut take: impl FnMut(&Stream, u32, &[u8]) -> Result<()>) -> Result<()> {
    for _ in 0..REPLIES_MAX {
        if stream.u64()? != OPTION_REPLY_MAGIC {
            return Err(stream.corrupt("an answer to an option begins wrongly"));
        }
        let (of, kind, len) = (stream.u32()?, stream.u32()?, to_usize(u64::from(stream.u32()?)));
        if of != option {
            return Err(stream.corrupt("an answer to an option that was not sent"));
        }
        if len > OPTION_BYTES_MAX {
            return Err(stream.corrupt("an answer to an option is too long"));
        }
        let mut data = vec![0; len];
        stream.fill(&mut data)?;
        if kind == option_reply::ACK {
            return Ok(());
        }
        if kind & option_reply::ERROR != 0 {
            return Err(refusal(stream, option, kind, &data));
        }
        take(stream, kind, &data)?;
    }
    Err(stream.corrupt("answers to an option do not end"))
}

fn refusal(stream: &Stream, option: u32, kind: u32, text: &[u8]) -> landfall_model::Error {
    let said: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(200).collect();
    let (kind, why) = match (kind, option) {
        (option_reply::ERR_UNKNOWN, _) => (ErrorKind::NotFound, "there is no such export"),
        (option_reply::ERR_POLICY, _) => (ErrorKind::Usage, "the server does not allow it"),
        (_, option::STRUCTURED_REPLY) => (ErrorKind::Unsupported, "the server has no structured replies"),
        (option_reply::ERR_UNSUP, _) => (ErrorKind::Unsupported, "the server lacks an option that is needed"),
        _ => (ErrorKind::Unavailable, "the server refuses"),
    };
    stream.error(kind, format!("{why} (it says {said:?})"))
}
