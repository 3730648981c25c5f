//! Pages: the map of one region of a disk as bytes (FORMAT.md section 9), in columns, so that what repeats compresses.

use std::collections::HashMap;
use std::hash::Hash;

use landfall_model::{
    ChunkId, ChunkRef, Entry, EntryKind, EpochId, Location, RegionMap, SegmentId, Seq, Source, Timeline,
};

use crate::frame::CHUNK_BYTES_MAX;
use crate::wire::{Reader, Writer};
use landfall_model::{Error, Result};

/// Bytes of a disk that one page describes. With 64 KiB chunks a full page is some 100 KB; a 64 TiB disk has half a million.
pub const REGION_BYTES: u64 = 128 * 1024 * 1024;

const VERSION: u8 = 1;

/// Numbers the distinct values that it is given, in order of their first use.
struct Table<T> {
    values: Vec<T>,
    index_of: HashMap<T, u32>,
}

impl<T: Copy + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { values: Vec::new(), index_of: HashMap::new() }
    }

    fn index(&mut self, value: T) -> u32 {
        *self.index_of.entry(value).or_insert_with(|| {
            self.values.push(value);
            landfall_model::num::to_u32(self.values.len() - 1)
        })
    }
}

/// A table index as the format's u16. A region has at most 32768 sectors, so as many chunks, sources and epochs.
fn narrow(index: u32) -> Result<u16> {
    u16::try_from(index)
        .map_err(|_| Error::new(landfall_model::ErrorKind::Bug, "a page has more sources than a region has sectors"))
}

/// Encodes the map of a region.
///
/// # Errors
/// `Bug` where it has more than 65535 sources or epochs, which no region of sectors can have.
pub fn encode(map: &RegionMap) -> Result<Vec<u8>> {
    let (mut sources, mut epochs, mut chunks) = (Table::new(), Table::new(), Table::new());
    for entry in map.iter() {
        if let EntryKind::Data { chunk, .. } = entry.kind {
            chunks.index(chunk);
            sources.index(chunk.location.source);
            epochs.index(chunk.location.epoch);
        }
    }
    let mut out = Writer::default();
    out.u8(VERSION);
    out.u16(narrow(landfall_model::num::to_u32(sources.values.len()))?);
    for source in &sources.values {
        match source {
            Source::Segment(id) => {
                out.u8(0);
                out.raw(id.as_bytes());
            }
            Source::Point(timeline, seq) => {
                out.u8(1);
                out.u32(timeline.0);
                out.u64(seq.0);
            }
        }
    }
    out.u16(narrow(landfall_model::num::to_u32(epochs.values.len()))?);
    epochs.values.iter().for_each(|e| out.raw(e.as_bytes()));
    let all = &chunks.values;
    out.count(all.len());
    all.iter().for_each(|c| out.raw(c.id.as_bytes()));
    for chunk in all {
        out.u16(narrow(sources.index(chunk.location.source))?);
    }
    all.iter().for_each(|c| out.u32(c.location.offset));
    all.iter().for_each(|c| out.u32(c.location.stored_len));
    all.iter().for_each(|c| out.u32(c.location.raw_len));
    all.iter().for_each(|c| out.u8(c.location.codec.byte()));
    for chunk in all {
        out.u16(narrow(epochs.index(chunk.location.epoch))?);
    }
    out.count(map.len());
    map.iter().for_each(|e| out.u32(e.start));
    map.iter().for_each(|e| out.u32(e.len));
    map.iter().for_each(|e| {
        out.u8(match e.kind {
            EntryKind::Data { .. } => 0,
            EntryKind::Zero => 1,
            EntryKind::Excluded => 2,
        });
    });
    for entry in map.iter() {
        if let EntryKind::Data { chunk, .. } = entry.kind {
            out.u32(chunks.index(chunk));
        }
    }
    for entry in map.iter() {
        if let EntryKind::Data { skip, .. } = entry.kind {
            out.u32(skip);
        }
    }
    Ok(out.into_bytes())
}

fn read_chunks(reader: &mut Reader<'_>) -> Result<Vec<ChunkRef>> {
    let sources = usize::from(reader.u16()?);
    let sources = (0..sources)
        .map(|_| match reader.u8()? {
            0 => Ok(Source::Segment(SegmentId::from_bytes(reader.array()?))),
            1 => Ok(Source::Point(Timeline(reader.u32()?), Seq(reader.u64()?))),
            _ => Err(reader.error("a source is of an unknown kind")),
        })
        .collect::<Result<Vec<_>>>()?;
    let epochs = usize::from(reader.u16()?);
    let epochs = (0..epochs).map(|_| reader.array().map(EpochId::from_bytes)).collect::<Result<Vec<_>>>()?;
    let n = reader.count(49)?;
    let ids = reader.column_32(n)?;
    let source_of = reader.column_u16(n)?;
    let offsets = reader.column_u32(n)?;
    let stored = reader.column_u32(n)?;
    let raws = reader.column_u32(n)?;
    let codecs = (0..n).map(|_| reader.codec()).collect::<Result<Vec<_>>>()?;
    let epoch_of = reader.column_u16(n)?;
    let mut chunks = Vec::with_capacity(n);
    for i in 0..n {
        let source = sources.get(usize::from(source_of[i])).ok_or_else(|| reader.error("a chunk names no source"))?;
        let epoch = epochs.get(usize::from(epoch_of[i])).ok_or_else(|| reader.error("a chunk names no epoch"))?;
        let overhead = landfall_keys::FRAME_OVERHEAD;
        if raws[i] == 0 || raws[i] > CHUNK_BYTES_MAX || stored[i] as usize <= overhead {
            return Err(reader.error("a chunk's length is not possible"));
        }
        if stored[i] as usize > raws[i] as usize + overhead {
            return Err(reader.error("a chunk is stored in more bytes than it has"));
        }
        let location = Location {
            source: *source,
            offset: offsets[i],
            stored_len: stored[i],
            raw_len: raws[i],
            codec: codecs[i],
            epoch: *epoch,
        };
        chunks.push(ChunkRef { id: ChunkId::from_bytes(ids[i]), location });
    }
    Ok(chunks)
}

/// Decodes a page and checks the map's invariants.
///
/// # Errors
/// `Corrupt`, saying what is wrong.
pub fn decode(bytes: &[u8]) -> Result<RegionMap> {
    let mut reader = Reader::new(bytes, "page");
    if reader.u8()? != VERSION {
        return Err(reader.error("its version is unknown"));
    }
    let chunks = read_chunks(&mut reader)?;
    let n = reader.count(9)?;
    let starts = reader.column_u32(n)?;
    let lens = reader.column_u32(n)?;
    let kinds = reader.raw(n)?;
    let data = kinds.iter().filter(|k| **k == 0).count();
    let chunk_of = reader.column_u32(data)?;
    let skips = reader.column_u32(data)?;
    let mut data_entries = chunk_of.into_iter().zip(skips);
    let mut entries = Vec::with_capacity(n);
    for i in 0..n {
        let kind = match kinds[i] {
            0 => {
                let (index, skip) = data_entries.next().ok_or_else(|| reader.error("an entry is missing"))?;
                let chunk = chunks.get(index as usize).ok_or_else(|| reader.error("an entry names no chunk"))?;
                EntryKind::Data { chunk: *chunk, skip }
            }
            1 => EntryKind::Zero,
            2 => EntryKind::Excluded,
            _ => return Err(reader.error("an entry is of an unknown kind")),
        };
        entries.push(Entry { start: starts[i], len: lens[i], kind });
    }
    reader.end()?;
    let region_len = u32::try_from(REGION_BYTES).unwrap_or(u32::MAX);
    RegionMap::checked(&entries, region_len).map_err(|e| Error::corrupt(format!("page: {e}")))
}
