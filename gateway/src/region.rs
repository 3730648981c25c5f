//! One region of one disk against its map: what is equal is passed over, what differs is cut, named, and sealed where it is new.
//!
//! Comparison follows the map: where a chunk fills a map entry wholly, the same range of the disk is hashed and compared with its
//! ChunkId; only where that differs is the range cut anew. No store is read. The whole work on a byte is done while it is in the cache.

use landfall_keys::Fingerprinter;
use landfall_model::num::{to_u32, to_usize};
use landfall_model::{ChunkId, ChunkRef, Entry, EntryKind, Extent, ExtentSet, Location, RegionMap, Result};
use landfall_vault::REGION_BYTES;

use crate::cut::{Cutter, Piece, SECTOR};
use crate::seal::ChunkStore;
use crate::source::{DiskBytes, Task};

/// Bytes read at once: large enough for the disk, small enough to stay near the CPU. Each worker has one such buffer.
pub(crate) const WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// A changed run: zero, or a chunk whose place may not be known yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) start: u32,
    pub(crate) len: u32,
    pub(crate) data: Option<(ChunkId, Option<Location>)>,
}

/// A part of a region that was captured.
pub(crate) struct Done {
    pub(crate) disk: usize,
    pub(crate) region: u32,
    pub(crate) number: u32,
    pub(crate) last: bool,
    pub(crate) changes: Vec<Change>,
    /// Bytes that were looked at, holes included.
    pub(crate) covered_bytes: u64,
    pub(crate) read_bytes: u64,
}

/// A run of the region to look at: to compare with a chunk, or to cut.
struct Run {
    start: u32,
    end: u32,
    expected: Option<ChunkRef>,
}

/// What a worker reuses from region to region.
pub(crate) struct Scanner {
    cutter: Cutter,
    fingerprinter: Fingerprinter,
    window: Vec<u8>,
}

fn sector_floor(at: u32) -> u32 {
    at - at % to_u32(SECTOR)
}

fn sector_ceil(at: u32, end: u32) -> u32 {
    to_u32((at as usize).div_ceil(SECTOR) * SECTOR).min(end)
}

/// What of a part must be looked at where nothing is known: all of it.
fn all_of(parts: &[Extent]) -> Vec<Run> {
    let mut merged = ExtentSet::default();
    parts.iter().for_each(|part| merged.insert(*part));
    let narrow = |at: u64| to_u32(to_usize(at));
    merged.iter().map(|e| Run { start: narrow(e.start), end: narrow(e.end()), expected: None }).collect()
}

/// What of a part must be looked at, given the region's old map and where the disk has data.
///
/// What a map says is believed only where it can still be restored (`is_stored`): what the vault has lost is stored anew from the disk.
fn runs(old: &RegionMap, data: &[Extent], part: Extent, is_stored: &dyn Fn(&Location) -> bool) -> Vec<Run> {
    let (from, len) = (to_u32(to_usize(part.start)), to_u32(to_usize(part.end())));
    let mut entries = old.covering(len);
    entries.retain(|e| e.end() > from);
    // Runs are cut on sectors of the region: an entry that ends elsewhere (the disk ended there once) is cut anew with its sector.
    let on_sectors = |e: &Entry| e.start.is_multiple_of(to_u32(SECTOR)) && e.end() == sector_ceil(e.end(), len);
    let comparable =
        |e: &Entry| e.whole_chunk().filter(|c| e.start >= from && on_sectors(e) && is_stored(&c.location)).copied();
    let expected: Vec<Option<ChunkRef>> = entries.iter().map(comparable).collect();
    let mut dirty = ExtentSet::default();
    let mut add = |start: u32, end: u32| {
        let (start, end) = (sector_floor(start).max(from), sector_ceil(end, len));
        dirty.insert(Extent::between(u64::from(start), u64::from(end)));
    };
    for (entry, expected) in entries.iter().zip(&expected) {
        match expected {
            Some(_) => {}
            None if matches!(entry.kind, EntryKind::Zero) => {
                let run = Extent::between(u64::from(entry.start), u64::from(entry.end()));
                for data in data.iter().filter_map(|d| d.intersection(&run)) {
                    add(to_u32(to_usize(data.start)), to_u32(to_usize(data.end())));
                }
            }
            None => add(entry.start, entry.end()),
        }
    }
    let narrow = |at: u64| to_u32(to_usize(at));
    let mut out: Vec<Run> =
        dirty.iter().map(|d| Run { start: narrow(d.start), end: narrow(d.end()), expected: None }).collect();
    let untouched = |e: &Entry| !dirty.intersects(&Extent::between(u64::from(e.start), u64::from(e.end())));
    // Few runs are dirty before anything was read: only those of odd ends and of zeroes that are allocated now.
    for (entry, expected) in entries.iter().zip(expected) {
        if expected.is_some() {
            let expected = expected.filter(|_| untouched(entry));
            out.push(Run { start: entry.start, end: entry.end(), expected });
        }
    }
    out.sort_by_key(|r| (r.start, r.end));
    // A chunk whose sector is dirty is cut from where the dirt ends: runs do not overlap.
    let mut end = 0;
    out.retain_mut(|run| {
        run.start = run.start.max(end);
        end = end.max(run.end);
        run.start < run.end
    });
    out
}

impl Scanner {
    pub(crate) fn new(cutter: Cutter, fingerprinter: Fingerprinter) -> Self {
        Self { cutter, fingerprinter, window: vec![0; WINDOW_BYTES] }
    }

    /// Captures a part of a region; new chunks go into `store`.
    pub(crate) fn scan(&mut self, task: &Task, store: &mut ChunkStore<'_>) -> Result<Done> {
        let (base, reader) = (u64::from(task.region) * REGION_BYTES, &*task.bytes);
        let mut data = Vec::new();
        for part in &task.parts {
            let found = reader.data_extents(Extent { start: base + part.start, len: part.len })?;
            data.extend(found.iter().map(|e| Extent { start: e.start - base, len: e.len }));
        }
        let mut done = Done {
            disk: task.disk,
            region: task.region,
            number: task.number,
            last: task.last,
            changes: Vec::new(),
            covered_bytes: task.parts.iter().map(|p| p.len).sum(),
            read_bytes: 0,
        };
        let old = task.old.as_deref();
        if old.is_none() && data.is_empty() {
            // All zero, and nothing to compare with: nothing is read.
            let zero =
                |p: &Extent| Change { start: to_u32(to_usize(p.start)), len: to_u32(to_usize(p.len)), data: None };
            done.changes = task.parts.iter().filter(|p| p.len > 0).map(zero).collect();
            return Ok(done);
        }
        let runs = match old {
            None => all_of(&task.parts),
            Some(old) => {
                let is_stored = |location: &Location| store.is_stored(location);
                task.parts.iter().flat_map(|part| runs(old, &data, *part, &is_stored)).collect()
            }
        };
        let Self { cutter, fingerprinter, window } = self;
        let mut emit = |piece: Piece<'_>| match piece {
            Piece::Zero { start, len } => {
                match old {
                    Some(old) => push_zeroes(&mut done.changes, old, start, start + len),
                    None => done.changes.push(Change { start, len, data: None }),
                }
                Ok(())
            }
            Piece::Data { start, bytes } => {
                let id = fingerprinter.chunk_id(bytes);
                let location = store.store(id, bytes)?;
                done.changes.push(Change { start, len: to_u32(bytes.len()), data: Some((id, location)) });
                Ok(())
            }
        };
        let mut open_until = None;
        let mut next = 0;
        while next < runs.len() {
            let batch = batch_len(&runs[next..]);
            let (start, end) = (runs[next].start, runs[next + batch - 1].end);
            let mut at = start;
            while at < end {
                // One window: as many whole runs to compare as fit, or a part of a run to cut.
                let until = window_end(&runs[next..next + batch], at);
                let buffer = &mut window[..(until - at) as usize];
                done.read_bytes += fill(reader, base, at, &data, buffer)?;
                for run in runs[next..next + batch].iter().filter(|r| r.start < until && r.end > at) {
                    let (from, to) = (run.start.max(at), run.end.min(until));
                    let bytes = &buffer[(from - at) as usize..(to - at) as usize];
                    let equal = run.expected.is_some_and(|c| fingerprinter.chunk_id(bytes) == c.id);
                    if equal || open_until.is_some_and(|open| open != from) {
                        cutter.end_run(&mut emit)?;
                        open_until = None;
                    }
                    if equal {
                        continue;
                    }
                    if open_until.is_none() {
                        cutter.begin_run(from);
                    }
                    cutter.feed(bytes, &mut emit)?;
                    open_until = Some(to);
                }
                at = until;
            }
            next += batch;
        }
        if open_until.is_some() {
            cutter.end_run(&mut emit)?;
        }
        Ok(done)
    }
}

/// How many of the runs follow each other without a gap.
fn batch_len(runs: &[Run]) -> usize {
    1 + runs.windows(2).take_while(|pair| pair[0].end == pair[1].start).count()
}

/// Where a window that begins at `at` ends: at the end of a run that fits, so that a run to compare is never torn.
fn window_end(runs: &[Run], at: u32) -> u32 {
    let full = at + to_u32(WINDOW_BYTES);
    let fitting = runs.iter().filter(|r| r.end > at && r.end <= full).map(|r| r.end).next_back();
    let torn = runs.iter().find(|r| r.start < full && r.end > full);
    match torn {
        // A run to cut may be torn: the cutter carries over.
        Some(run) if run.expected.is_none() => full,
        Some(run) => run.start,
        None => fitting.unwrap_or(full),
    }
}

/// Reads `at ..` of the region into the buffer; holes are zeroes and not read. Returns the bytes read.
fn fill(reader: &dyn DiskBytes, base: u64, at: u32, data: &[Extent], buffer: &mut [u8]) -> Result<u64> {
    let wanted = Extent { start: u64::from(at), len: buffer.len() as u64 };
    let (mut filled, mut read) = (0, 0);
    for part in data.iter().filter_map(|d| d.intersection(&wanted)) {
        let (from, to) = (to_usize(part.start - wanted.start), to_usize(part.end() - wanted.start));
        buffer[filled..from].fill(0);
        reader.read_exact_at(&mut buffer[from..to], base + part.start)?;
        filled = to;
        read += part.len;
    }
    buffer[filled..].fill(0);
    Ok(read)
}

/// Zeroes where the old map has something else.
fn push_zeroes(changes: &mut Vec<Change>, old: &RegionMap, start: u32, end: u32) {
    for entry in old.within(Extent::between(u64::from(start), u64::from(end))) {
        if matches!(entry.kind, EntryKind::Zero) {
            continue;
        }
        match changes.last_mut() {
            Some(last) if last.data.is_none() && last.start + last.len == entry.start => last.len += entry.len,
            _ => changes.push(Change { start: entry.start, len: entry.len, data: None }),
        }
    }
}
