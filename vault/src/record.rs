//! Records: the signed, sealed and chained objects: points, checkpoints, generations, heartbeats, revocations, jobs, reports of drills, boot profiles, orders (FORMAT.md section 8).
//!
//! ```text
//! | header 160 (plain) | sealed body | signature 64 | inline frames |
//!   `--------- digest, signed --------'
//! ```
//! The chain (digest of the one before, sequence, generation) is plain, so that it can be checked with public keys alone; the
//! body is sealed under the index key.

use landfall_keys::{SiteKey, SitePublic};
use landfall_model::num::to_u32;
use landfall_model::{Digest, ErrorKind, Generation, MachineId, Seq, SiteKeyId, Timeline, VaultId};

use crate::wire::{self, Reader, Writer};
use landfall_model::{Error, Result};

const MAGIC: &[u8; 8] = b"LANDRECD";
const VERSION: u16 = 1;
/// Bytes of the plain header.
pub(crate) const HEADER_LEN: usize = 160;
const SIGNATURE_LEN: usize = 64;
/// Largest body: the page references of 64 TiB of disks (524288 regions, 54 bytes each) and their 2 million segments (40 bytes each) fit.
const BODY_BYTES_MAX: usize = 160 * 1024 * 1024;
/// The sealed body is at most so much longer: packed block header, salt and tag.
const BODY_OVERHEAD: usize = 5 + landfall_keys::FRAME_OVERHEAD;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A recovery point.
    Point,
    /// Whole maps as of a point.
    Checkpoint,
    /// Who writes.
    Generation,
    /// A gateway lives, and which machines it holds.
    Heartbeat,
    /// Certificates of a machine that are refused.
    Revocation,
    /// A failover, and how far it is.
    Job,
    /// The report of a drill.
    Drill,
    /// What a machine reads when it boots.
    Profile,
    /// What an agent is told to do, and what came of it.
    Order,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Point,
        Self::Checkpoint,
        Self::Generation,
        Self::Heartbeat,
        Self::Revocation,
        Self::Job,
        Self::Drill,
        Self::Profile,
        Self::Order,
    ];

    fn byte(self) -> u8 {
        match self {
            Self::Point => 1,
            Self::Checkpoint => 2,
            Self::Generation => 3,
            Self::Heartbeat => 4,
            Self::Revocation => 5,
            Self::Job => 6,
            Self::Drill => 7,
            Self::Profile => 8,
            Self::Order => 9,
        }
    }
}

/// The plain part of a record that its writer chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// What it is.
    pub kind: Kind,
    /// Whose vault.
    pub vault: VaultId,
    /// Whose machine; of a heartbeat, the gateway's id; of a job or an order, its own; of a report, its job's.
    pub machine: MachineId,
    /// On which timeline (0 but for points and checkpoints).
    pub timeline: Timeline,
    /// The timeline of the point before.
    pub parent_timeline: Timeline,
    /// Where on it (0 for generations and heartbeats; of a revocation or report, its time in milliseconds since 1970; of a job or an order, how often it was written; of a boot profile, its number).
    pub seq: Seq,
    /// Under which generation (0 for heartbeats, revocations, jobs, reports, orders and boot profiles).
    pub generation: Generation,
    /// The record digest of the point before; of the point itself for a checkpoint; of the record before for a job or an order.
    pub previous: Digest,
}

/// A record's header, read but not yet believed: only the signature makes it so.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What its writer chose.
    pub position: Position,
    /// Length of the sealed body.
    pub body_len: u32,
    /// Length of the inline frames.
    pub inline_len: u64,
    /// BLAKE3 of the inline frames.
    pub inline_digest: Digest,
    /// Who signed it and whose index key seals the body.
    pub site_key: SiteKeyId,
}

impl Header {
    /// First byte of the inline frames in the object.
    pub fn inline_start(&self) -> u64 {
        (HEADER_LEN + SIGNATURE_LEN) as u64 + u64::from(self.body_len)
    }

    fn encode(&self) -> Vec<u8> {
        let p = &self.position;
        let mut out = Writer::default();
        out.raw(MAGIC);
        out.u16(VERSION);
        out.u8(p.kind.byte());
        out.u8(0);
        out.u32(self.body_len);
        out.raw(p.vault.as_bytes());
        out.raw(p.machine.as_bytes());
        out.u32(p.timeline.0);
        out.u32(p.parent_timeline.0);
        out.u64(p.seq.0);
        out.u64(p.generation.0);
        out.raw(p.previous.as_bytes());
        out.u64(self.inline_len);
        out.raw(self.inline_digest.as_bytes());
        out.raw(self.site_key.as_bytes());
        out.u64(0);
        out.into_bytes()
    }

    /// Reads the header at the beginning of a record.
    ///
    /// # Errors
    /// `Corrupt` where it is none, `Unsupported` where it is of a later version.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes.get(..HEADER_LEN).unwrap_or(bytes), "record header");
        if reader.array::<8>()? != *MAGIC {
            return Err(reader.error("it is no record"));
        }
        let version = reader.u16()?;
        if version != VERSION {
            let why =
                format!("record of format version {version}: this Landfall reads version {VERSION}; use a newer one");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let kind = reader.u8()?;
        let kind =
            Kind::ALL.into_iter().find(|k| k.byte() == kind).ok_or_else(|| reader.error("its kind is unknown"))?;
        let reserved = reader.u8()?;
        let body_len = reader.u32()?;
        if body_len as usize > BODY_BYTES_MAX + BODY_OVERHEAD {
            return Err(reader.error("it is larger than the format allows"));
        }
        let position = Position {
            kind,
            vault: VaultId::from_bytes(reader.array()?),
            machine: MachineId::from_bytes(reader.array()?),
            timeline: Timeline(reader.u32()?),
            parent_timeline: Timeline(reader.u32()?),
            seq: Seq(reader.u64()?),
            generation: Generation(reader.u64()?),
            previous: Digest::from_bytes(reader.array()?),
        };
        let inline_len = reader.u64()?;
        let inline_digest = Digest::from_bytes(reader.array()?);
        let site_key = SiteKeyId::from_bytes(reader.array()?);
        if reserved != 0 || reader.u64()? != 0 {
            return Err(reader.error("a reserved field is not zero"));
        }
        Ok(Self { position, body_len, inline_len, inline_digest, site_key })
    }
}

/// A record whose signature holds, with its body opened.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Its header.
    pub header: Header,
    /// Its digest: the link that the next point carries.
    pub digest: Digest,
    /// Its body's raw bytes.
    pub body: Vec<u8>,
}

/// A record ready to be stored.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    /// The object.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
}

/// Seals and signs a record.
///
/// # Errors
/// `Bug` only.
pub(crate) fn encode(site: &SiteKey, position: Position, body: &[u8], inline: &[u8]) -> Result<Signed> {
    if body.len() > BODY_BYTES_MAX {
        let why = "the maps of the machine are larger than a record can hold: protect its disks as several machines";
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    let block = wire::pack_block(body);
    let header = Header {
        position,
        body_len: to_u32(block.len() + landfall_keys::FRAME_OVERHEAD),
        inline_len: inline.len() as u64,
        inline_digest: Digest::from_bytes(*blake3::hash(inline).as_bytes()),
        site_key: site.id(),
    };
    let mut bytes = header.encode();
    let sealed = site.seal_record(&bytes, &block)?;
    bytes.extend_from_slice(&sealed);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(&site.sign_record(digest.as_bytes()));
    bytes.extend_from_slice(inline);
    Ok(Signed { bytes, digest: Digest::from_bytes(*digest.as_bytes()) })
}

/// Checks a record's signature with public keys alone; `bytes` may end after the signature.
///
/// # Errors
/// `Corrupt` where the bytes are no record, or one that none of `signers` signed.
pub(crate) fn check_signature(signers: &[SitePublic], bytes: &[u8]) -> Result<(Header, Digest)> {
    let header = Header::parse(bytes)?;
    let signed_len = HEADER_LEN + header.body_len as usize;
    let signed = bytes.get(..signed_len).ok_or_else(|| Error::corrupt("record: it ends within its body"))?;
    let signature = bytes
        .get(signed_len..signed_len + SIGNATURE_LEN)
        .and_then(|s| <[u8; SIGNATURE_LEN]>::try_from(s).ok())
        .ok_or_else(|| Error::corrupt("record: it ends within its signature"))?;
    let digest = blake3::hash(signed);
    let signer = signers.iter().find(|s| s.id() == header.site_key);
    let signer = signer.ok_or_else(|| {
        Error::corrupt(format!("record: site key {}, which this vault does not know, signed it", header.site_key))
    })?;
    if !signer.verify_record(digest.as_bytes(), &signature) {
        return Err(Error::corrupt("record: its signature does not hold"));
    }
    Ok((header, Digest::from_bytes(*digest.as_bytes())))
}

/// Checks and opens a record; `bytes` may end after the signature.
///
/// # Errors
/// As for [`check_signature`], and `Key` where another site key sealed it.
pub(crate) fn decode(site: &SiteKey, signers: &[SitePublic], bytes: &[u8]) -> Result<Record> {
    decode_within(site, signers, bytes, BODY_BYTES_MAX)
}

/// The same of one whose body has at most so many bytes.
///
/// # Errors
/// As for [`decode`].
pub(crate) fn decode_within(site: &SiteKey, signers: &[SitePublic], bytes: &[u8], body_max: usize) -> Result<Record> {
    let (header, digest) = check_signature(signers, bytes)?;
    if header.site_key != site.id() {
        let why = format!("record sealed under site key {}; this is site key {}", header.site_key, site.id());
        return Err(Error::new(ErrorKind::Key, why));
    }
    let (aad, sealed) = bytes[..HEADER_LEN + header.body_len as usize].split_at(HEADER_LEN);
    let block = site.open_record(aad, sealed).map_err(|_| Error::corrupt("record: its body does not open"))?;
    let body = wire::unpack_block(&block, body_max, "record body")?;
    Ok(Record { header, digest, body })
}
