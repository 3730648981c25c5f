//! The body of a point or checkpoint: its metadata, the segments it refers to, and for each disk the pages of its regions.

use std::collections::BTreeMap;

use landfall_model::{ChunkId, ChunkRef, EpochId, Location, PointMeta, SegmentId, Source};

use crate::frame::PAGE_BYTES_MAX;
use crate::wire::{self, Reader, Writer};
use landfall_model::{Error, Result};

/// Where a page is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PageRef {
    /// In the record itself: a packed block.
    Inline(Vec<u8>),
    /// An index frame in a segment.
    Stored(ChunkRef),
}

/// The pages of one disk, by region number. A region that is not here is unchanged in a point and zero in a checkpoint.
pub type DiskPages = BTreeMap<u32, PageRef>;

/// A decoded body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Body {
    /// What the point says of itself.
    pub meta: PointMeta,
    /// Every segment that the pages or their entries refer to, with the size of the object.
    pub segments: BTreeMap<SegmentId, u64>,
    /// Per disk, in the order of the metadata.
    pub disks: Vec<DiskPages>,
}

impl PageRef {
    /// An encoded page, to stand in the record itself.
    pub fn inline(page: &[u8]) -> Self {
        Self::Inline(wire::pack_block(page))
    }
}

impl Body {
    /// The body's bytes.
    ///
    /// # Errors
    /// `Bug` where a page lies in a segment that the body does not list.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let bug = |why: String| Error::with_source(landfall_model::ErrorKind::Bug, "cannot encode a point", why);
        let meta = serde_json::to_vec(&self.meta).map_err(|e| bug(e.to_string()))?;
        let mut out = Writer::default();
        out.count(meta.len());
        out.raw(&meta);
        out.count(self.segments.len());
        for (id, size) in &self.segments {
            out.raw(id.as_bytes());
            out.u64(*size);
        }
        let index_of: BTreeMap<SegmentId, u32> = self.segments.keys().copied().zip(0..).collect();
        out.count(self.disks.len());
        let mut inline = Vec::new();
        for disk in &self.disks {
            out.count(disk.len());
            for (region, page) in disk {
                out.u32(*region);
                match page {
                    PageRef::Inline(block) => {
                        out.u8(0);
                        out.count(inline.len());
                        out.count(block.len());
                        inline.extend_from_slice(block);
                    }
                    PageRef::Stored(chunk) => {
                        let at = &chunk.location;
                        let Source::Segment(id) = at.source else {
                            return Err(bug("a page is not in a segment".to_owned()));
                        };
                        let index = index_of.get(&id).ok_or_else(|| bug(format!("segment {id} is not listed")))?;
                        out.u8(1);
                        out.raw(chunk.id.as_bytes());
                        out.u32(*index);
                        out.u32(at.offset);
                        out.u32(at.stored_len);
                        out.u32(at.raw_len);
                        out.u8(at.codec.byte());
                    }
                }
            }
        }
        out.count(inline.len());
        out.raw(&inline);
        Ok(out.into_bytes())
    }

    /// Reads a body.
    ///
    /// # Errors
    /// `Corrupt`, saying what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes, "record body");
        let meta_len = reader.count(1)?;
        let meta: PointMeta = serde_json::from_slice(reader.raw(meta_len)?)
            .map_err(|e| Error::corrupt(format!("record body: its metadata does not parse: {e}")))?;
        let segments = read_segments(&mut reader)?;
        let disks = reader.count(4)?;
        if disks != meta.disks.len() {
            return Err(reader.error("it has maps of more or fewer disks than it names"));
        }
        let mut tables = Vec::with_capacity(disks);
        for _ in 0..disks {
            tables.push(read_pages(&mut reader, &segments)?);
        }
        let inline_len = reader.count(1)?;
        let inline = reader.raw(inline_len)?;
        let corrupt = || Error::corrupt("record body: an inline page lies outside");
        let resolve = |reference| -> Result<PageRef> {
            match reference {
                RawRef::Stored(chunk) => Ok(PageRef::Stored(chunk)),
                RawRef::Inline { offset, len } => {
                    let end = offset.checked_add(len).ok_or_else(corrupt)?;
                    Ok(PageRef::Inline(inline.get(offset..end).ok_or_else(corrupt)?.to_vec()))
                }
            }
        };
        let disks = tables
            .into_iter()
            .map(|table| table.into_iter().map(|(region, r)| Ok((region, resolve(r)?))).collect())
            .collect::<Result<Vec<DiskPages>>>()?;
        reader.end()?;
        Ok(Self { meta, segments: segments.into_iter().collect(), disks })
    }
}

enum RawRef {
    Inline { offset: usize, len: usize },
    Stored(ChunkRef),
}

fn read_segments(reader: &mut Reader<'_>) -> Result<Vec<(SegmentId, u64)>> {
    let n = reader.count(40)?;
    let mut segments: Vec<(SegmentId, u64)> = Vec::with_capacity(n);
    for _ in 0..n {
        let segment = (SegmentId::from_bytes(reader.array()?), reader.u64()?);
        if segments.last().is_some_and(|last| last.0 >= segment.0) {
            return Err(reader.error("its segments are not in order"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn read_pages(reader: &mut Reader<'_>, segments: &[(SegmentId, u64)]) -> Result<Vec<(u32, RawRef)>> {
    let n = reader.count(13)?;
    let mut pages: Vec<(u32, RawRef)> = Vec::with_capacity(n);
    for _ in 0..n {
        let region = reader.u32()?;
        if pages.last().is_some_and(|last| last.0 >= region) {
            return Err(reader.error("its regions are not in order"));
        }
        let page = match reader.u8()? {
            0 => RawRef::Inline { offset: reader.u32()? as usize, len: reader.u32()? as usize },
            1 => {
                let id = ChunkId::from_bytes(reader.array()?);
                let segment = segments.get(reader.u32()? as usize);
                let (segment, size) = segment.ok_or_else(|| reader.error("a page names no segment"))?;
                let (offset, stored_len, raw_len) = (reader.u32()?, reader.u32()?, reader.u32()?);
                if u64::from(offset) + u64::from(stored_len) > *size || raw_len > PAGE_BYTES_MAX {
                    return Err(reader.error("a page lies outside its segment"));
                }
                let location = Location {
                    source: Source::Segment(*segment),
                    offset,
                    stored_len,
                    raw_len,
                    codec: reader.codec()?,
                    epoch: EpochId::INDEX,
                };
                RawRef::Stored(ChunkRef { id, location })
            }
            _ => return Err(reader.error("a page reference is of an unknown kind")),
        };
        pages.push((region, page));
    }
    Ok(pages)
}
