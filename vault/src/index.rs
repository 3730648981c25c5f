//! The dedup index: which chunks the vault has, and where. Local, and made again from the vault when it is lost.
//!
//! # Overview
//! A redb file in the state directory: ChunkId to location. What another gateway stored is found by comparing the store's listing with the
//! sources that the file knows, and reading the directories of the new ones.
//!
//! # Consistency
//! A chunk is in the file only after the object that holds it is stored. Sources that vanished, and epochs whose wrapped key is gone,
//! are no dedup targets ([`DedupIndex::find`] misses). Inline frames of a point serve the machine of that point only.
//!
//! # Crash consistency
//! The file may lose its newest transactions; the next listing finds them again. It holds no key and no content.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use futures_util::{StreamExt, TryStreamExt, stream};
use landfall_model::{
    ChunkId, ChunkRef, Codec, DomainId, EpochId, ErrorKind, Location, MachineId, SegmentId, Seq, Source, Timeline,
};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::layout::{self, Name};
use crate::segment::{self, Segment, Trailer};
use crate::vault::Vault;
use crate::wire::{Reader, Writer};
use landfall_model::{Error, Result};

/// ChunkId -> source number, offset, stored length, raw length, codec, epoch number.
const CHUNKS: TableDefinition<'_, &[u8; 32], &[u8; 21]> = TableDefinition::new("chunks-1");
/// Source number -> kind, key (32 bytes), size.
const SOURCES: TableDefinition<'_, u32, &[u8; 41]> = TableDefinition::new("sources-1");
/// Epoch number -> epoch id.
const EPOCHS: TableDefinition<'_, u32, &[u8; 16]> = TableDefinition::new("epochs-1");

/// Page cache of the file: the index of a 1 TiB vault is some 3 GiB, and most look-ups are for chunks that are new.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Directories fetched at once after the index was lost.
const DIRECTORIES_IN_FLIGHT: usize = 8;

/// A source as the file names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum SourceKey {
    Segment(SegmentId),
    Point(MachineId, Timeline, Seq),
}

impl SourceKey {
    fn encode(self, size: u64) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Self::Segment(id) => {
                out.u8(0);
                out.raw(id.as_bytes());
            }
            Self::Point(machine, timeline, seq) => {
                out.u8(1);
                out.raw(machine.as_bytes());
                out.u32(timeline.0);
                out.u64(seq.0);
                out.u32(0);
            }
        }
        out.u64(size);
        out.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<(Self, u64)> {
        let mut reader = Reader::new(bytes, "dedup index");
        let key = match reader.u8()? {
            0 => Self::Segment(SegmentId::from_bytes(reader.array()?)),
            _ => {
                let key =
                    Self::Point(MachineId::from_bytes(reader.array()?), Timeline(reader.u32()?), Seq(reader.u64()?));
                reader.u32()?;
                key
            }
        };
        Ok((key, reader.u64()?))
    }
}

/// The index of one vault.
pub struct DedupIndex {
    db: Database,
    sources: BTreeMap<u32, (SourceKey, u64)>,
    numbers: HashMap<SourceKey, u32>,
    epochs: Vec<EpochId>,
    epoch_numbers: HashMap<EpochId, u32>,
    /// Sources that are in the store now.
    live: BTreeSet<u32>,
    /// Epochs whose wrapped keys are stored.
    live_epochs: BTreeSet<u32>,
    /// Points in the store, of the machines that are written here.
    points: BTreeMap<MachineId, BTreeSet<(Timeline, Seq)>>,
    /// Segments that were added here and were not in a listing yet: on their way to the store, or there.
    unlisted: BTreeSet<u32>,
    /// Those of them that are in the store.
    stored: BTreeSet<u32>,
}

fn local(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let (kind, advice) = match &error {
        redb::Error::DatabaseAlreadyOpen => {
            (ErrorKind::Conflict, "another landfall uses this state directory; wait for it")
        }
        redb::Error::Io(e) if e.kind() == std::io::ErrorKind::StorageFull => (ErrorKind::NoSpace, "no space is left"),
        _ => (ErrorKind::Unavailable, "delete the file; it is made again from the vault"),
    };
    Error::with_source(kind, format!("the dedup index cannot be used: {advice}"), error)
}

impl DedupIndex {
    /// Opens or makes the file. It knows of nothing in the store until [`Self::catch_up`].
    ///
    /// # Errors
    /// `Conflict` where another process has it open, `Unavailable`.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || Database::builder().set_cache_size(CACHE_BYTES).create(path);
        let db = match open() {
            Ok(db) => db,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(local(redb::Error::DatabaseAlreadyOpen)),
            Err(error) => {
                tracing::warn!(%error, "the dedup index is damaged: making it again from the vault");
                std::fs::remove_file(path).map_err(|e| {
                    Error::with_source(ErrorKind::of_io(&e), "cannot remove the damaged dedup index", e)
                })?;
                open().map_err(local)?
            }
        };
        let mut index = Self {
            db,
            sources: BTreeMap::new(),
            numbers: HashMap::new(),
            epochs: Vec::new(),
            epoch_numbers: HashMap::new(),
            live: BTreeSet::new(),
            live_epochs: BTreeSet::new(),
            points: BTreeMap::new(),
            unlisted: BTreeSet::new(),
            stored: BTreeSet::new(),
        };
        index.load()?;
        index.allow_epoch(EpochId::INDEX)?;
        Ok(index)
    }

    /// Brings an index up to what the store holds now: segments that other gateways stored are added, those that are gone are no dedup
    /// targets, and neither are chunks of epochs of other domains than this or whose wrapped keys are gone.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn catch_up(index: &RwLock<Self>, vault: &Vault, domain: DomainId) -> Result<()> {
        let write = || index.write().unwrap_or_else(PoisonError::into_inner);
        // What is stored while the listing is under way need not be in it.
        let stored_before = write().stored.clone();
        let listed = vault.store().list(layout::SEGMENTS).await?;
        let unknown = write().seen(listed.iter().map(|o| (o.name.as_str(), o.size)), &stored_before);
        let mut directories = stream::iter(unknown)
            .map(|(id, size)| async move { Ok::<_, Error>((id, size, read_directory(vault, id, size).await)) })
            .buffer_unordered(DIRECTORIES_IN_FLIGHT);
        while let Some((id, size, chunks)) = directories.try_next().await? {
            match chunks {
                Ok(chunks) => write().add(SourceKey::Segment(id), size, &chunks)?,
                // A damaged or foreign segment is no dedup target; `verify` is where it is reported.
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Key | ErrorKind::Unsupported) => {
                    tracing::warn!(segment = %id, %error, "a segment's directory cannot be read: run `landfall verify`");
                }
                Err(error) => return Err(error),
            }
        }
        // After the segments: the key of what was listed is stored by now.
        vault.epochs(domain).await?.iter().try_for_each(|epoch| write().allow_epoch(*epoch))
    }

    fn load(&mut self) -> Result<()> {
        let write = self.db.begin_write().map_err(local)?;
        write.open_table(CHUNKS).map_err(local)?;
        for row in write.open_table(SOURCES).map_err(local)?.iter().map_err(local)? {
            let (number, value) = row.map_err(local)?;
            let (key, size) = SourceKey::decode(value.value())?;
            self.sources.insert(number.value(), (key, size));
            self.numbers.insert(key, number.value());
        }
        for row in write.open_table(EPOCHS).map_err(local)?.iter().map_err(local)? {
            let (_, value) = row.map_err(local)?;
            let epoch = EpochId::from_bytes(*value.value());
            self.epoch_numbers.insert(epoch, landfall_model::num::to_u32(self.epochs.len()));
            self.epochs.push(epoch);
        }
        write.commit().map_err(local)
    }

    /// Takes what the store lists as what it holds; returns the segments that the file does not know.
    fn seen<'a>(
        &mut self,
        listed: impl Iterator<Item = (&'a str, u64)>,
        stored_before: &BTreeSet<u32>,
    ) -> Vec<(SegmentId, u64)> {
        let mut unknown = Vec::new();
        let mut there = BTreeSet::new();
        for (name, size) in listed {
            let Some(Name::Segment(id)) = layout::parse(name) else { continue };
            match self.numbers.get(&SourceKey::Segment(id)) {
                Some(number) if self.sources[number].1 == size => {
                    there.insert(*number);
                }
                _ => unknown.push((id, size)),
            }
        }
        self.unlisted.retain(|n| !there.contains(n) && !stored_before.contains(n));
        self.stored.retain(|n| self.unlisted.contains(n));
        let point = |n: &u32| matches!(self.sources.get(n), Some((SourceKey::Point(..), _)));
        self.live.retain(|n| there.contains(n) || self.unlisted.contains(n) || point(n));
        self.live.extend(there);
        unknown
    }

    fn allow_epoch(&mut self, epoch: EpochId) -> Result<()> {
        let number = match self.epoch_numbers.get(&epoch) {
            Some(number) => *number,
            None => {
                let number = landfall_model::num::to_u32(self.epochs.len());
                let write = self.db.begin_write().map_err(local)?;
                write.open_table(EPOCHS).map_err(local)?.insert(number, epoch.as_bytes()).map_err(local)?;
                write.commit().map_err(local)?;
                self.epochs.push(epoch);
                self.epoch_numbers.insert(epoch, number);
                number
            }
        };
        self.live_epochs.insert(number);
        Ok(())
    }

    fn add(&mut self, key: SourceKey, size: u64, chunks: &[ChunkRef]) -> Result<()> {
        let mut write = self.db.begin_write().map_err(local)?;
        write.set_durability(Durability::None).map_err(local)?;
        // A source that is added again gets a new number: rows of what stood under its name before stay dead.
        let number = self.sources.keys().next_back().map_or(0, |n| n + 1);
        let before = self.numbers.get(&key).copied();
        {
            let mut sources = write.open_table(SOURCES).map_err(local)?;
            let row = key.encode(size);
            let row = <&[u8; 41]>::try_from(row.as_slice())
                .map_err(|_| Error::new(ErrorKind::Bug, "a row of the dedup index has the wrong length"))?;
            sources.insert(number, row).map_err(local)?;
            if let Some(before) = before {
                sources.remove(before).map_err(local)?;
            }
            let mut epochs = write.open_table(EPOCHS).map_err(local)?;
            let mut table = write.open_table(CHUNKS).map_err(local)?;
            for chunk in chunks {
                let at = &chunk.location;
                let epoch = match self.epoch_numbers.get(&at.epoch) {
                    Some(number) => *number,
                    None => {
                        let number = landfall_model::num::to_u32(self.epochs.len());
                        epochs.insert(number, at.epoch.as_bytes()).map_err(local)?;
                        self.epochs.push(at.epoch);
                        self.epoch_numbers.insert(at.epoch, number);
                        number
                    }
                };
                let mut row = [0; 21];
                for (field, value) in row.chunks_exact_mut(4).zip([number, at.offset, at.stored_len, at.raw_len, epoch])
                {
                    field.copy_from_slice(&value.to_le_bytes());
                }
                row[20] = at.codec.byte();
                table.insert(chunk.id.as_bytes(), &row).map_err(local)?;
            }
        }
        write.commit().map_err(local)?;
        if let Some(before) = before {
            self.sources.remove(&before);
            self.live.remove(&before);
        }
        self.sources.insert(number, (key, size));
        self.numbers.insert(key, number);
        self.live.insert(number);
        Ok(())
    }

    /// Adds a segment that is in the spool of this gateway, or in the store ([`Self::segment_stored`]).
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable` of the local file.
    pub fn add_segment(&mut self, segment: &Segment) -> Result<()> {
        for epoch in segment.chunks.iter().map(|c| c.location.epoch).collect::<BTreeSet<_>>() {
            self.allow_epoch(epoch)?;
        }
        let key = SourceKey::Segment(segment.id);
        self.add(key, segment.bytes.len() as u64, &segment.chunks)?;
        self.unlisted.extend(self.numbers.get(&key));
        Ok(())
    }

    /// A segment that was added is in the store.
    pub fn segment_stored(&mut self, id: SegmentId) {
        let number = self.numbers.get(&SourceKey::Segment(id)).filter(|n| self.unlisted.contains(n));
        self.stored.extend(number);
    }

    /// Whether a segment is known to be in the store, and not only on its way there.
    pub fn is_in_store(&self, id: SegmentId) -> bool {
        let number = self.numbers.get(&SourceKey::Segment(id)).filter(|n| self.live.contains(n));
        number.is_some_and(|n| !self.unlisted.contains(n) || self.stored.contains(n))
    }

    /// A segment that was not uploaded never will be: its chunks are no dedup targets.
    pub fn forget_segment(&mut self, id: SegmentId) {
        if let Some(number) = self.numbers.get(&SourceKey::Segment(id)) {
            self.live.remove(number);
            self.unlisted.remove(number);
        }
    }

    /// Whether the inline frames of a point of a machine are known.
    pub fn knows_point(&self, machine: MachineId, timeline: Timeline, seq: Seq) -> bool {
        self.numbers.get(&SourceKey::Point(machine, timeline, seq)).is_some_and(|n| self.live.contains(n))
    }

    /// Adds a point of a machine that is committed, and its inline frames. One that is not committed may never be, and another gateway's
    /// may stand in its place.
    ///
    /// # Errors
    /// As for [`Self::add_segment`].
    pub fn add_point(&mut self, machine: MachineId, timeline: Timeline, seq: Seq, chunks: &[ChunkRef]) -> Result<()> {
        self.points.entry(machine).or_default().insert((timeline, seq));
        if chunks.is_empty() {
            return Ok(());
        }
        self.add(SourceKey::Point(machine, timeline, seq), 0, chunks)
    }

    /// Says which points of a machine are in the store. Where they are the ones that this file was told of (`trusted`), their inline
    /// frames are dedup targets; else they are not, until they are added again.
    pub fn set_points(&mut self, machine: MachineId, points: impl Iterator<Item = (Timeline, Seq)>, trusted: bool) {
        let of_machine = |n: &u32| matches!(self.sources.get(n), Some((SourceKey::Point(m, ..), _)) if *m == machine);
        self.live.retain(|n| !of_machine(n));
        let points: BTreeSet<_> = points.collect();
        for (timeline, seq) in points.iter().filter(|_| trusted) {
            if let Some(number) = self.numbers.get(&SourceKey::Point(machine, *timeline, *seq)) {
                self.live.insert(*number);
            }
        }
        self.points.insert(machine, points);
    }

    /// Whether the object of a frame and the key of its epoch are in the store: else what a map says of it can no longer be restored.
    pub fn is_stored(&self, machine: MachineId, location: &Location) -> bool {
        let source = match location.source {
            Source::Segment(id) => self.numbers.get(&SourceKey::Segment(id)).is_some_and(|n| self.live.contains(n)),
            Source::Point(timeline, seq) => self.points.get(&machine).is_some_and(|p| p.contains(&(timeline, seq))),
        };
        source && self.epoch_numbers.get(&location.epoch).is_some_and(|n| self.live_epochs.contains(n))
    }

    /// Where a chunk is, if the vault has it where a map of this machine may refer to it.
    ///
    /// # Errors
    /// `Unavailable` of the local file.
    pub fn find(&self, machine: MachineId, id: ChunkId) -> Result<Option<Location>> {
        let read = self.db.begin_read().map_err(local)?;
        let table = read.open_table(CHUNKS).map_err(local)?;
        let Some(row) = table.get(id.as_bytes()).map_err(local)? else { return Ok(None) };
        let row = *row.value();
        let mut fields = Reader::new(&row, "dedup index").column_u32(5)?.into_iter();
        let mut field = || fields.next().unwrap_or_default();
        let (number, offset, stored_len, raw_len, epoch) = (field(), field(), field(), field(), field());
        let (Some(codec), true) = (Codec::from_byte(row[20]), self.live.contains(&number)) else { return Ok(None) };
        let source = match self.sources.get(&number) {
            Some((SourceKey::Segment(id), _)) => Source::Segment(*id),
            Some((SourceKey::Point(owner, timeline, seq), _)) if *owner == machine => Source::Point(*timeline, *seq),
            _ => return Ok(None),
        };
        let Some(epoch_id) = self.epochs.get(epoch as usize).filter(|_| self.live_epochs.contains(&epoch)) else {
            return Ok(None);
        };
        Ok(Some(Location { source, offset, stored_len, raw_len, codec, epoch: *epoch_id }))
    }

    /// Size of a segment that is in the store.
    pub fn segment_size(&self, id: SegmentId) -> Option<u64> {
        let number = self.numbers.get(&SourceKey::Segment(id))?;
        self.live.contains(number).then(|| self.sources[number].1)
    }

    /// Makes what was added durable.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable` of the local file.
    pub fn flush(&self) -> Result<()> {
        self.db.begin_write().map_err(local)?.commit().map_err(local)
    }
}

/// Reads the directory of a stored segment: its trailer, then the directory before it.
///
/// # Errors
/// `Corrupt`, `Unavailable`.
pub async fn read_directory(vault: &Vault, id: SegmentId, size: u64) -> Result<Vec<ChunkRef>> {
    /// One request serves most segments: 32 MiB of frames have a directory of some 60 KB.
    const TAIL_BYTES: u64 = 96 * 1024;
    let name = layout::segment(id);
    let missing = || Error::corrupt(format!("{name}: it is missing"));
    if size < Trailer::LEN {
        return Err(Error::corrupt(format!("{name}: it is too short for a segment")));
    }
    let start = size.saturating_sub(TAIL_BYTES);
    let tail = vault.store().get_range(&name, start, size).await?.ok_or_else(missing)?;
    if tail.len() as u64 != size - start {
        return Err(Error::corrupt(format!("{name}: it is shorter than listed")));
    }
    let trailer = Trailer::parse(&tail, size).map_err(|e| e.context(&name))?;
    let from = trailer.directory_start();
    let to = from + trailer.directory_len();
    let sealed = match from.checked_sub(start) {
        Some(skip) => tail.slice(landfall_model::num::to_usize(skip)..landfall_model::num::to_usize(to - start)),
        None => vault.store().get_range(&name, from, to).await?.ok_or_else(missing)?,
    };
    segment::open_directory(vault.site(), vault.config().vault_id, id, &trailer, &sealed)
}
