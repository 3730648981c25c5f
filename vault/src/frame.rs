//! Frames: one chunk or page, compressed and sealed. The stages are types: what is sealed was compressed first, and what comes
//! out of an opener was checked against its name.
//!
//! ```text
//!   Plain bytes --compress--> Compressed --ContentSealer / SiteKey--> salt | ciphertext | tag
//! ```

use landfall_keys::{ContentSealer, EpochOpener, Fingerprinter, FrameAad, PageSealer, SiteKey};
use landfall_model::{ChunkRef, Codec, EpochId, VaultId};

use crate::wire;
use landfall_model::{Error, Result};

/// Longest chunk, `chunking.max` of version 1, in bytes.
pub const CHUNK_BYTES_MAX: u32 = 256 * 1024;
/// Longest page, in bytes: a region of 32768 sectors, each its own chunk, with room to spare.
pub const PAGE_BYTES_MAX: u32 = 4 * 1024 * 1024;

fn bug(error: std::io::Error) -> Error {
    Error::with_source(landfall_model::ErrorKind::Bug, "cannot start Zstandard", error)
}

fn context(level: i32) -> Result<zstd::bulk::Compressor<'static>> {
    let mut zstd = zstd::bulk::Compressor::new(level).map_err(bug)?;
    // The frame's own length field is redundant: every raw length stands in a sealed map.
    zstd.include_contentsize(false).map_err(bug)?;
    Ok(zstd)
}

/// Compresses chunks; keeps its context, so one per thread.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    level: i32,
    packed: Vec<u8>,
}

/// A chunk as its codec stores it: the only thing that can be sealed.
#[derive(Clone, Copy, Debug)]
pub struct Compressed<'a> {
    codec: Codec,
    raw_len: u32,
    data: &'a [u8],
}

impl Compressor {
    /// At a Zstandard level.
    ///
    /// # Errors
    /// `Bug` where the library refuses the level.
    pub fn new(level: i32) -> Result<Self> {
        Ok(Self { zstd: context(level)?, level, packed: vec![0; CHUNK_BYTES_MAX as usize] })
    }

    /// Goes on at another level.
    ///
    /// # Errors
    /// `Bug` where the library refuses the level.
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        if level != self.level {
            // Another context: one that has met a chunk which does not get smaller is in the middle of a frame, and takes no parameters.
            (self.zstd, self.level) = (context(level)?, level);
        }
        Ok(())
    }

    /// Compresses where that makes it smaller.
    pub fn compress<'a>(&'a mut self, plain: &'a [u8]) -> Compressed<'a> {
        let raw_len = landfall_model::num::to_u32(plain.len());
        // A destination one byte short of the source: what does not fit is not worth it.
        let room = plain.len().saturating_sub(1);
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        match self.zstd.compress_to_buffer(plain, &mut self.packed[..room]) {
            Ok(len) => Compressed { codec: Codec::Zstd, raw_len, data: &self.packed[..len] },
            Err(_) => Compressed { codec: Codec::Raw, raw_len, data: plain },
        }
    }
}

impl Compressed<'_> {
    /// How it is stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Bytes of the frame that sealing makes of it.
    pub fn frame_len(&self) -> usize {
        self.data.len() + landfall_keys::FRAME_OVERHEAD
    }

    /// Seals content for an epoch, appending the frame to `out`.
    ///
    /// # Errors
    /// `Bug` only.
    pub fn seal_content(
        self,
        sealer: &ContentSealer,
        vault: VaultId,
        id: landfall_model::ChunkId,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let aad = FrameAad { vault, epoch: sealer.epoch(), id, raw_len: self.raw_len, codec: self.codec.byte() };
        Ok(sealer.seal_into(&aad, self.data, out)?)
    }

    /// Seals a page under the index key.
    ///
    /// # Errors
    /// `Bug` only.
    pub fn seal_page(self, sealer: &PageSealer, vault: VaultId, id: landfall_model::ChunkId) -> Result<Vec<u8>> {
        let aad = FrameAad { vault, epoch: EpochId::INDEX, id, raw_len: self.raw_len, codec: self.codec.byte() };
        Ok(sealer.seal_page(&aad, self.data)?)
    }
}

fn aad_of(vault: VaultId, chunk: &ChunkRef) -> FrameAad {
    let location = &chunk.location;
    FrameAad { vault, epoch: location.epoch, id: chunk.id, raw_len: location.raw_len, codec: location.codec.byte() }
}

/// Opens content frames into a caller's buffer; keeps its context, so one per thread.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    /// A new context.
    ///
    /// # Errors
    /// `Bug` where the library refuses.
    pub fn new() -> Result<Self> {
        let bug = |e| Error::with_source(landfall_model::ErrorKind::Bug, "cannot start Zstandard", e);
        Ok(Self { zstd: zstd::bulk::Decompressor::new().map_err(bug)? })
    }

    /// Opens a frame in place and puts the chunk's bytes at the beginning of `out`, which holds at least `raw_len` bytes.
    ///
    /// # Errors
    /// `Corrupt` where the frame does not open under its epoch's key, does not decompress, or is not the chunk of that name.
    pub fn open_content(
        &mut self,
        opener: &EpochOpener,
        fingerprinter: &Fingerprinter,
        vault: VaultId,
        chunk: &ChunkRef,
        frame: &mut [u8],
        out: &mut [u8],
    ) -> Result<()> {
        let corrupt = |why: &str| Error::corrupt(format!("chunk {}: {why}", chunk.id));
        let raw_len = chunk.location.raw_len as usize;
        let out = out.get_mut(..raw_len).ok_or_else(|| corrupt("it is longer than its place"))?;
        let data = opener
            .open_in_place(&aad_of(vault, chunk), frame)
            .map_err(|_| corrupt("its frame does not open under its epoch's key"))?;
        match chunk.location.codec {
            Codec::Raw if data.len() == raw_len => out.copy_from_slice(data),
            Codec::Raw => return Err(corrupt("its length is not what the map says")),
            Codec::Zstd => match self.zstd.decompress_to_buffer(&*data, out) {
                Ok(len) if len == raw_len => {}
                _ => return Err(corrupt("it does not decompress")),
            },
        }
        if fingerprinter.chunk_id(out) != chunk.id {
            return Err(corrupt("its bytes are not those of its name"));
        }
        Ok(())
    }
}

/// Opens an index frame: a page's bytes, checked against its name.
///
/// # Errors
/// `Corrupt`.
pub(crate) fn open_page(site: &SiteKey, vault: VaultId, page: &ChunkRef, frame: &[u8]) -> Result<Vec<u8>> {
    let corrupt = |why: &str| Error::corrupt(format!("page {}: {why}", page.id));
    if page.location.raw_len > PAGE_BYTES_MAX {
        return Err(corrupt("it is larger than the format allows"));
    }
    let data =
        site.index_sealer().open_page(&aad_of(vault, page), frame).map_err(|_| corrupt("its frame does not open"))?;
    let raw_len = page.location.raw_len as usize;
    let raw = match page.location.codec {
        Codec::Raw => Some(data).filter(|d| d.len() == raw_len),
        Codec::Zstd => wire::decompress(&data, raw_len),
    };
    let raw = raw.ok_or_else(|| corrupt("it does not decompress to its length"))?;
    if site.page_fingerprinter().chunk_id(&raw) != page.id {
        return Err(corrupt("its bytes are not those of its name"));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_can_change_after_a_chunk_that_did_not_get_smaller() {
        let mut noise = vec![0; 64 * 1024];
        getrandom::fill(&mut noise).expect("random");
        let mut compressor = Compressor::new(1).expect("starts");
        for level in [1, 2, 9, 1] {
            compressor.set_level(level).expect("another level");
            assert_eq!(compressor.compress(&noise).codec(), Codec::Raw, "it did not get smaller");
            assert_eq!(compressor.compress(&[7; 4096]).codec(), Codec::Zstd);
            compressor.compress(&noise);
        }
    }
}
