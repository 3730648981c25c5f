//! Segments: many frames and their sealed directory in one immutable object, named by its own BLAKE3 (FORMAT.md section 7).
//!
//! ```text
//! | header 32 | frame | frame | ... | sealed directory | trailer 32 |
//! ```

use std::collections::HashMap;

use bytes::Bytes;
use landfall_keys::SiteKey;
use landfall_model::num::to_u32;
use landfall_model::{ChunkId, ChunkRef, Codec, EpochId, Location, SegmentId, SiteKeyId, Source, VaultId};

use crate::buffer::Buffer;
use crate::frame::PAGE_BYTES_MAX;
use crate::wire::{self, Reader, Writer};
use landfall_model::{Error, Result};

/// A segment is closed when its frames reach this many bytes: a range GET of several MiB is useful, and the requests are few.
pub const SEGMENT_BYTES: usize = 32 * 1024 * 1024;
/// No segment is larger; a reader refuses it before it allocates.
pub const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"LANDSEGM";
const END_MAGIC: &[u8; 8] = b"LANDSEND";
const VERSION: u16 = 1;
const HEADER_LEN: usize = 32;
const TRAILER_LEN: usize = 32;
/// A directory of so many 1-sector frames as a segment of the largest size can hold stays below this.
const DIRECTORY_BYTES_MAX: usize = 128 * 1024 * 1024;

/// A frame in a segment that is being filled.
#[derive(Clone, Copy, Debug)]
struct Packed {
    id: ChunkId,
    stored_len: u32,
    raw_len: u32,
    codec: Codec,
    epoch: EpochId,
}

/// A segment being filled.
#[derive(Debug)]
pub struct SegmentBuilder {
    vault: VaultId,
    bytes: Buffer,
    frames: Vec<Packed>,
}

/// A finished segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// BLAKE3 of the object.
    pub id: SegmentId,
    /// The object.
    pub bytes: Bytes,
    /// Its frames, with their places.
    pub chunks: Vec<ChunkRef>,
}

fn header(vault: VaultId) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(MAGIC);
    out[8..10].copy_from_slice(&VERSION.to_le_bytes());
    out[16..].copy_from_slice(vault.as_bytes());
    out
}

fn trailer(directory_len: usize, frames: usize, frames_len: u64, key: SiteKeyId) -> [u8; TRAILER_LEN] {
    let mut out = [0; TRAILER_LEN];
    out[..4].copy_from_slice(&to_u32(directory_len).to_le_bytes());
    out[4..8].copy_from_slice(&to_u32(frames).to_le_bytes());
    out[8..16].copy_from_slice(&frames_len.to_le_bytes());
    out[16..24].copy_from_slice(key.as_bytes());
    out[24..].copy_from_slice(END_MAGIC);
    out
}

impl SegmentBuilder {
    /// An empty segment of a vault.
    pub fn new(vault: VaultId) -> Self {
        let mut bytes = Buffer::with_capacity(SEGMENT_BYTES + SEGMENT_BYTES / 16);
        bytes.end().extend_from_slice(&header(vault));
        Self { vault, bytes, frames: Vec::new() }
    }

    /// Bytes of frames so far.
    pub fn frame_bytes(&self) -> usize {
        self.bytes.len() - HEADER_LEN
    }

    /// Whether it holds no frame.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Adds a frame that `seal` appends to the buffer.
    ///
    /// # Errors
    /// Whatever `seal` returns; the segment is then as before.
    pub fn push(
        &mut self,
        id: ChunkId,
        raw_len: u32,
        codec: Codec,
        epoch: EpochId,
        seal: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let before = self.bytes.len();
        if let Err(error) = seal(self.bytes.end()) {
            self.bytes.truncate(before);
            return Err(error);
        }
        let stored_len = to_u32(self.bytes.len() - before);
        self.frames.push(Packed { id, stored_len, raw_len, codec, epoch });
        Ok(())
    }

    /// Takes over the frames of another segment being filled.
    pub fn absorb(&mut self, other: Self) {
        self.bytes.end().extend_from_slice(&other.bytes.as_ref()[HEADER_LEN..]);
        self.frames.extend(other.frames);
    }

    /// The frames with their places in some source, counted from `base`.
    fn placed(&self, source: Source, base: usize) -> Vec<ChunkRef> {
        let mut offset = to_u32(base);
        let place = |f: &Packed| {
            let at = offset;
            offset += f.stored_len;
            let location = Location {
                source,
                offset: at,
                stored_len: f.stored_len,
                raw_len: f.raw_len,
                codec: f.codec,
                epoch: f.epoch,
            };
            ChunkRef { id: f.id, location }
        };
        self.frames.iter().map(place).collect()
    }

    /// The frames alone, to stand inline in a point, with their places there.
    pub fn into_inline(self, point: Source) -> (Vec<u8>, Vec<ChunkRef>) {
        let chunks = self.placed(point, 0);
        (self.bytes.as_ref()[HEADER_LEN..].to_vec(), chunks)
    }

    /// Seals the directory and names the segment.
    ///
    /// # Errors
    /// `Bug` only.
    pub fn finish(mut self, site: &SiteKey) -> Result<Segment> {
        let directory = wire::pack_block(&self.directory());
        let frames_len = self.frame_bytes() as u64;
        let directory_len = directory.len() + landfall_keys::FRAME_OVERHEAD;
        let trailer = trailer(directory_len, self.frames.len(), frames_len, site.id());
        let aad = [header(self.vault).as_slice(), &trailer].concat();
        let sealed = site.seal_directory(&aad, &directory)?;
        self.bytes.end().extend_from_slice(&sealed);
        self.bytes.end().extend_from_slice(&trailer);
        let id = SegmentId::from_bytes(*blake3::hash(self.bytes.as_ref()).as_bytes());
        let chunks = self.placed(Source::Segment(id), HEADER_LEN);
        Ok(Segment { id, bytes: Bytes::from_owner(self.bytes), chunks })
    }

    fn directory(&self) -> Vec<u8> {
        let mut epochs = vec![EpochId::INDEX];
        let mut index_of: HashMap<EpochId, u16> = HashMap::from([(EpochId::INDEX, 0)]);
        for frame in &self.frames {
            index_of.entry(frame.epoch).or_insert_with(|| {
                epochs.push(frame.epoch);
                u16::try_from(epochs.len() - 1).unwrap_or(u16::MAX)
            });
        }
        let mut out = Writer::default();
        out.u16(u16::try_from(epochs.len()).unwrap_or(u16::MAX));
        epochs.iter().for_each(|e| out.raw(e.as_bytes()));
        out.count(self.frames.len());
        self.frames.iter().for_each(|f| out.raw(f.id.as_bytes()));
        self.frames.iter().for_each(|f| out.u32(f.stored_len));
        self.frames.iter().for_each(|f| out.u32(f.raw_len));
        self.frames.iter().for_each(|f| out.u8(f.codec.byte()));
        self.frames.iter().for_each(|f| out.u16(index_of[&f.epoch]));
        out.into_bytes()
    }
}

/// Where a segment's directory lies, read off its trailer.
#[derive(Clone, Copy, Debug)]
pub struct Trailer {
    bytes: [u8; TRAILER_LEN],
    frames: u32,
    frames_len: u64,
    directory_len: u32,
    key: SiteKeyId,
}

impl Trailer {
    /// Bytes of the trailer, at the end of the object.
    pub const LEN: u64 = TRAILER_LEN as u64;

    /// Reads the trailer of an object of `object_len` bytes off its last bytes.
    ///
    /// # Errors
    /// `Corrupt` where it is no segment's trailer, or its lengths are not the object's.
    pub fn parse(tail: &[u8], object_len: u64) -> Result<Self> {
        let corrupt = |why: &str| Error::corrupt(format!("segment trailer: {why}"));
        let start = tail.len().checked_sub(TRAILER_LEN).ok_or_else(|| corrupt("the object is too short"))?;
        let mut reader = Reader::new(&tail[start..], "segment trailer");
        let (directory_len, frames, frames_len) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let key = SiteKeyId::from_bytes(reader.array()?);
        if reader.array::<8>()? != *END_MAGIC {
            return Err(corrupt("its mark is missing"));
        }
        let parts = (HEADER_LEN + TRAILER_LEN) as u64 + u64::from(directory_len);
        if object_len > SEGMENT_BYTES_MAX || frames_len.checked_add(parts) != Some(object_len) {
            return Err(corrupt("its lengths are not those of the object"));
        }
        let mut bytes = [0; TRAILER_LEN];
        bytes.copy_from_slice(&tail[start..]);
        Ok(Self { bytes, frames, frames_len, directory_len, key })
    }

    /// Where the sealed directory begins in the object.
    pub fn directory_start(&self) -> u64 {
        HEADER_LEN as u64 + self.frames_len
    }

    /// Length of the sealed directory.
    pub fn directory_len(&self) -> u64 {
        u64::from(self.directory_len)
    }
}

/// Opens the sealed directory of a segment.
///
/// # Errors
/// `Key` where another site key sealed it, `Corrupt` for anything that is not as FORMAT.md says.
pub fn open_directory(
    site: &SiteKey,
    vault: VaultId,
    id: SegmentId,
    trailer: &Trailer,
    sealed: &[u8],
) -> Result<Vec<ChunkRef>> {
    let corrupt = |why: &str| Error::corrupt(format!("segment {id}: {why}"));
    if trailer.key != site.id() {
        return Err(Error::new(
            landfall_model::ErrorKind::Key,
            format!("segment {id} was sealed under site key {}, not {}", trailer.key, site.id()),
        ));
    }
    let aad = [header(vault).as_slice(), &trailer.bytes].concat();
    let block = site.open_directory(&aad, sealed).map_err(|_| corrupt("its directory does not open"))?;
    let raw = wire::unpack_block(&block, DIRECTORY_BYTES_MAX, "segment directory")?;
    let mut reader = Reader::new(&raw, "segment directory");
    let epochs = usize::from(reader.u16()?);
    let epochs = (0..epochs).map(|_| reader.array().map(EpochId::from_bytes)).collect::<Result<Vec<_>>>()?;
    let n = reader.count(43)?;
    if n != trailer.frames as usize {
        return Err(corrupt("directory and trailer count different frames"));
    }
    let ids = reader.column_32(n)?;
    let stored = reader.column_u32(n)?;
    let raws = reader.column_u32(n)?;
    let codecs = (0..n).map(|_| reader.codec()).collect::<Result<Vec<_>>>()?;
    let epoch_of = reader.column_u16(n)?;
    reader.end()?;
    let mut offset = HEADER_LEN as u64;
    let mut chunks = Vec::with_capacity(n);
    for i in 0..n {
        let epoch = *epochs.get(usize::from(epoch_of[i])).ok_or_else(|| corrupt("a frame names no epoch"))?;
        if raws[i] == 0 || raws[i] > PAGE_BYTES_MAX || (stored[i] as usize) <= landfall_keys::FRAME_OVERHEAD {
            return Err(corrupt("a frame's length is not possible"));
        }
        let location = Location {
            source: Source::Segment(id),
            offset: u32::try_from(offset).map_err(|_| corrupt("a frame lies outside"))?,
            stored_len: stored[i],
            raw_len: raws[i],
            codec: codecs[i],
            epoch,
        };
        chunks.push(ChunkRef { id: ChunkId::from_bytes(ids[i]), location });
        offset += u64::from(stored[i]);
    }
    if offset != trailer.directory_start() {
        return Err(corrupt("its frames do not add up"));
    }
    Ok(chunks)
}

/// Checks a whole segment object against its name and opens its directory.
///
/// # Errors
/// As for [`open_directory`], and `Corrupt` where the bytes are not those of the name.
pub fn open_whole(site: &SiteKey, vault: VaultId, id: SegmentId, bytes: &[u8]) -> Result<Vec<ChunkRef>> {
    if blake3::hash(bytes).as_bytes() != id.as_bytes() {
        return Err(Error::corrupt(format!("segment {id}: its bytes are not those of its name")));
    }
    let version = bytes.get(8..10).map(|v| u16::from_le_bytes([v[0], v[1]]));
    if bytes.starts_with(MAGIC) && version.is_some_and(|v| v > VERSION) {
        let why = format!("segment {id}: it is of a later format: use a newer Landfall");
        return Err(Error::new(landfall_model::ErrorKind::Unsupported, why));
    }
    if !bytes.starts_with(&header(vault)) {
        return Err(Error::corrupt(format!("segment {id}: it is no segment of this vault")));
    }
    let trailer = Trailer::parse(bytes, bytes.len() as u64)?;
    let start = landfall_model::num::to_usize(trailer.directory_start());
    let sealed = bytes.get(start..bytes.len() - TRAILER_LEN).unwrap_or_default();
    open_directory(site, vault, id, &trailer, sealed)
}
