//! One cut of the disks: held still, read, compared with what is known, and what differs given away as messages.
//!
//! ```text
//!   Whole:  freeze -> open -> reader thread ==4 buffers==> compare, hash, journal ==4 messages==> the link -> thaw
//!   Staged: freeze -> open -> read what was written, into memory -> thaw -> compare, hash, journal ==4 messages==> the link
//!           disks that are copied: copied while frozen, read after the thaw
//!   Round:  as Whole, and nothing is frozen: what is read is no moment, and the cycle is unfinished
//! ```
//! While a staged cut holds everything still, it writes nothing: also the file system of the state directory may be frozen.
//!
//! # Bounds
//! [`MEMORY_BYTES_MAX`] is the sum of all that a cycle holds at once, whatever the sizes of the disks; beside the marks, and what a late
//! cut reads at once ([`crate::rounds`]).

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use landfall_disk::{DiskDigester, RawReader};
use landfall_model::num::to_usize;
use landfall_model::{
    BlockSet, Consistency, CycleId, Digest, DiskDigest, DiskName, Error, ErrorKind, Extent, ExtentSet, GroupId, Result,
    Timestamp,
};
use landfall_wire::{Begin, CycleDigest, Data, FromAgent, MESSAGES_WAITING_MAX};
use tokio::sync::mpsc;

use crate::fingerprints::{self, BLOCK_BYTES, BlockHash, HASH_BYTES, block_count, is_zero};
use crate::freeze::{Freeze, Held};
use crate::history::{Plan, RUNS_MAX};
use crate::image::{
    BUFFERS, DiskConfig, DiskReader, Flowing, OpenDisk, Piece, READ_BYTES, STAGE_BYTES_MAX, StagedPieces, WINDOW_BYTES,
    open_disks, read_all, stage, stopped,
};
use crate::journal::{DiskState, JournalHead, JournalWriter};
use crate::qemu::{Thawed, Vm};
use crate::settle::{Settled, settle};
use crate::shape;
use crate::skip::Skip;
use crate::state::Base;
use crate::tracking::{Dirty, Tracking};

/// Messages on their way to the link.
pub(crate) const MESSAGES: usize = 4;
/// Most memory that a cycle takes.
pub(crate) const MEMORY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A run in a set: two numbers, and their share of a node of the tree.
const RUN_BYTES: usize = 32;
/// Runs of data in one window of a disk: at worst every second 4 KiB.
const WINDOW_RUNS_BYTES: usize = 2 * 16 * (to_usize(WINDOW_BYTES) / 8192);
/// Messages that are being made, taken over, encoded or written, beside those that wait.
const MESSAGES_HELD: usize = 6;
/// Buffers and messages; or what is read while everything is held still, and is sent from where it lies.
const FLOWING_BYTES: usize = to_usize(READ_BYTES) * (BUFFERS + MESSAGES + MESSAGES_WAITING_MAX + MESSAGES_HELD);
const _: () = assert!(to_usize(STAGE_BYTES_MAX) <= FLOWING_BYTES);
/// Those; hashes and journal; kept ranges and those of the plan; the runs of a window.
const MEMORY_BYTES: usize = FLOWING_BYTES + 1024 * 1024 + 2 * RUNS_MAX * RUN_BYTES + WINDOW_RUNS_BYTES;
const _: () = assert!(MEMORY_BYTES <= MEMORY_BYTES_MAX, "a cycle stays within its memory");

/// A part of a block that is zero is sent as zeroes from this length on: what is shorter is data to the gateway in any case.
const ZEROES_BYTES_MIN: u64 = 16 * 1024;

/// Tells a cut to end before it is complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// How a cut is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Everything is held still until it is sent.
    Whole,
    /// Everything is held still until what was written is read: at most so many bytes.
    Staged(u64),
    /// Nothing is held still, and the cycle is unfinished.
    Round,
}

/// One cut that is to be made.
pub(crate) struct Cut {
    pub(crate) manner: Manner,
    pub(crate) tracking: Tracking,
    /// The virtual machine whose disks are cut; none: they are this host's.
    pub(crate) vm: Option<Arc<Vm>>,
    pub(crate) cycle: CycleId,
    pub(crate) plan: Plan,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) freeze: Freeze,
    pub(crate) skip: Skip,
    pub(crate) base: Base,
    pub(crate) state_root: PathBuf,
    pub(crate) stop: Stop,
    /// The group's cut that it is.
    pub(crate) group: Option<GroupId>,
    /// The machine was stopped before: nothing of it is held still.
    pub(crate) stopped: bool,
    /// All disks are compared whole, whatever was marked, and a digest is made of each.
    pub(crate) proof: bool,
}

/// What was read and sent.
pub(crate) struct CutDone {
    pub(crate) journal: JournalWriter,
    pub(crate) digest: Digest,
    pub(crate) read_bytes: u64,
    pub(crate) sent_bytes: u64,
    /// How long everything was held still.
    pub(crate) held: Duration,
    /// Of the protected disks, where they were asked for.
    pub(crate) digests: Vec<DiskDigest>,
}

impl Cut {
    /// Makes the cut: gives `Begin` and all runs to `out`, in order. `time` tells the moment when everything is held still, and may wait for
    /// it; `journal` begins the journal. Blocks; everything is thawed when it returns.
    ///
    /// Returns none where more was written than a staged cut may read: nothing was given then.
    ///
    /// # Errors
    /// What the disks, the freezing and `time` say; `Unavailable` where nobody takes the messages any more.
    pub(crate) fn make(
        self,
        time: impl FnOnce() -> Result<Timestamp>,
        journal: impl FnOnce(&JournalHead) -> Result<JournalWriter>,
        out: mpsc::Sender<FromAgent>,
    ) -> Result<Option<CutDone>> {
        let stop = || self.stop.is_set() || out.is_closed() || self.tracking.is_alarmed();
        // Before anything is held still; a round is one with a cycle that has it.
        let shape = if self.manner == Manner::Round || self.vm.is_some() { None } else { shape::read() };
        let prepared =
            self.vm.as_ref().map(|vm| vm.prepare(&self.disks, |disk| self.base.cycle_of(disk))).transpose()?;
        let mut held = match self.manner {
            Manner::Round => None,
            manner => Some(self.freeze.hold(&self.state_root, manner == Manner::Whole, &stop)?),
        };
        let since = Instant::now();
        let time = time()?;
        let view = prepared.map(|prepared| prepared.cut(self.cycle)).transpose()?;
        let guest = match (&view, &mut held) {
            (Some(_), Some(held)) => held.thaw_guest(),
            _ => Thawed::default(),
        };
        let consistency = match self.manner {
            Manner::Round => Consistency::Unfinished,
            _ if guest.application => Consistency::Application,
            _ => self.freeze.consistency_where(view.is_some() && (guest.frozen || self.stopped)),
        };
        let mut frozen = Duration::ZERO;
        let mut thaw = |held: &mut Option<Held>| {
            let Some(held) = held.take() else { return Ok(()) };
            let thawed = held.thaw();
            frozen = since.elapsed();
            thawed
        };
        let (mut disks, shape) = match &view {
            Some(view) => {
                // What is read is of the cut: nothing has to stand still for it.
                thaw(&mut held)?;
                (view.open()?, view.shape.clone())
            }
            None => (open_disks(&self.disks)?, shape),
        };
        let is_held = self.look(&mut disks)?;
        if !is_held && matches!(self.manner, Manner::Staged(_)) {
            return Ok(None);
        }
        if !is_held {
            let why = "a snapshot could not be taken, and nothing else held its file system still; the next cycle does without";
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        let mut staged = Vec::new();
        if let Manner::Staged(bytes_max) = self.manner {
            let mut read = stage(&disks, bytes_max, &stop);
            if let (Consistency::Crash, Ok(Some(pieces))) = (consistency, &mut read) {
                match settle(&self.tracking, &mut disks, pieces, bytes_max, &stop) {
                    Ok(Settled::Moment) => {}
                    Ok(Settled::Never) => tracing::warn!(
                        "the disks are written to without a pause and nothing holds them still: this point is of no one moment; \
                         a freeze_command, or mounts, would make it one"
                    ),
                    Ok(Settled::TooMuch) => read = Ok(None),
                    Err(error) => read = Err(error),
                }
            }
            thaw(&mut held)?;
            match read? {
                Some(pieces) => staged = pieces,
                None => return Ok(None),
            }
        }
        if self.manner != Manner::Round && self.vm.is_none() {
            self.look_at_copies(&mut disks, &stop)?;
        }
        let parent = match &self.plan {
            Plan::Full { .. } => None,
            Plan::Incremental { parent, .. } => Some(*parent),
        };
        let shapes = disks.iter().map(|d| d.shape.clone()).collect();
        let begin = Begin {
            cycle: self.cycle,
            parent,
            time,
            consistency,
            disks: shapes,
            group: self.group,
            shape,
            hooks: guest.hooks,
        };
        let protected = || disks.iter().filter(|d| d.reader.is_some());
        let states = protected().map(|d| DiskState { name: d.shape.name.clone(), size: d.shape.size });
        let base = parent.and(self.base.cycle);
        let head = JournalHead { cycle: self.cycle, base, parent, time, consistency, disks: states.collect() };
        let journal = journal(&head)?;
        out.blocking_send(FromAgent::Begin(begin)).map_err(|_| stopped())?;
        let done = self.compare(&disks, staged, journal, &out, &stop)?;
        // What the guest overwrites need not be kept any more.
        drop((disks, view));
        thaw(&mut held)?;
        Ok(Some(CutDone { held: frozen, ..done }))
    }

    /// Says of each disk what is looked at: what was written, what the gateway does not have, or all. Of disks that are copied, that is said later.
    ///
    /// Returns whether everything was held still that was to be: a file system that only its copy holds still was not, where no copy was made.
    fn look(&self, disks: &mut [OpenDisk]) -> Result<bool> {
        let taken = self.tracking.take(self.manner != Manner::Round);
        let is_copied = |path: &PathBuf| {
            let named = self.disks.iter().filter(|disk| disk.path.as_ref() == Some(path));
            named.into_iter().any(|disk| taken.iter().any(|taken| taken.name == disk.name && taken.copied))
        };
        let is_held = self.manner == Manner::Round || self.freeze.left_to_copies().all(is_copied);
        for disk in disks {
            disk.shape.whole = self.is_whole(&disk.shape.name);
            if self.vm.is_some() {
                self.look_at_guest(disk);
                continue;
            }
            disk.leisurely = self.manner == Manner::Round;
            let known = taken.iter().find(|taken| taken.name == disk.shape.name);
            disk.copied = disk.reader.is_some() && known.is_some_and(|known| known.copied);
            // After the marks were taken: what is written once it is swap no more is marked again. Of a copy nothing is skipped.
            disk.skip = if disk.copied { None } else { self.skipped(disk) };
            let again = self.tracking.skip(&disk.shape.name, disk.skip.as_ref());
            let Some(known) = known else { continue };
            disk.shape.source = known.source.to_owned();
            if !disk.copied {
                self.look_at(disk, &known.dirty, again);
            }
        }
        Ok(is_held)
    }

    /// The same of disks that were copied.
    fn look_at_copies(&self, disks: &mut [OpenDisk], stop: &dyn Fn() -> bool) -> Result<()> {
        if !disks.iter().any(|disk| disk.copied) {
            return Ok(());
        }
        let copies = self.tracking.compare(stop)?;
        for disk in disks.iter_mut().filter(|disk| disk.copied) {
            let failed = |e: Error| e.context(format!("the copy of disk {}", disk.shape.name));
            let copy = copies.iter().find(|copy| copy.name == disk.shape.name);
            let copy = copy.ok_or_else(|| failed(Error::new(ErrorKind::Unavailable, "it is gone")))?;
            let reader = RawReader::open(&copy.path).map_err(|e| failed(e.into()))?;
            // As it was at the cut, and it is the disk's.
            disk.shape.size = reader.size();
            disk.reader = Some(DiskReader::Host(reader));
            // What was skipped before is in what differs.
            self.look_at(disk, &copy.dirty, None);
        }
        Ok(())
    }

    fn look_at(&self, disk: &mut OpenDisk, dirty: &Dirty, again: Option<BlockSet>) {
        if disk.shape.whole || self.proof {
            return;
        }
        disk.look = match dirty {
            Dirty::Blocks(set) if set.disk_size() == disk.shape.size => Dirty::Blocks(set.clone()),
            Dirty::Nothing => Dirty::Blocks(BlockSet::new(disk.shape.size, BLOCK_BYTES)),
            _ => return,
        };
        if let (Dirty::Blocks(set), Plan::Incremental { extra, .. }) = (&mut disk.look, &self.plan) {
            extra.of(&disk.shape.name).into_iter().flat_map(ExtentSet::iter).for_each(|run| set.insert(run));
            again.into_iter().flat_map(|before| before.runs().collect::<Vec<_>>()).for_each(|run| set.insert(run));
            // Of what is skipped whole blocks are zero.
            let within = disk.skip.iter().flat_map(BlockSet::runs).flat_map(|run| set.runs_within(run));
            let marked: Vec<Extent> = within.collect();
            marked.into_iter().map(whole_blocks_around).for_each(|run| set.insert(run));
        }
    }

    /// The same of a guest's disk, which knows what was written.
    fn look_at_guest(&self, disk: &mut OpenDisk) {
        // What came on, or was cut off, is in no bitmap.
        let resized = self.base.size_of(&disk.shape.name) != Some(disk.shape.size);
        if disk.shape.whole || resized || self.proof {
            disk.look = Dirty::All;
        }
        if let (Dirty::Blocks(set), Plan::Incremental { extra, .. }) = (&mut disk.look, &self.plan) {
            extra.of(&disk.shape.name).into_iter().flat_map(ExtentSet::iter).for_each(|run| set.insert(run));
        }
    }

    fn skipped(&self, disk: &OpenDisk) -> Option<BlockSet> {
        let path = self.disks.iter().find(|d| d.name == disk.shape.name)?.path.as_deref()?;
        let Some(DiskReader::Host(reader)) = &disk.reader else { return None };
        self.skip.of(path, reader)
    }

    /// Whether all data of a disk is sent, and what is not sent is zero: also where the parent may not have the disk.
    fn is_whole(&self, disk: &DiskName) -> bool {
        match &self.plan {
            Plan::Full { .. } => true,
            Plan::Incremental { extra, .. } => !self.base.has(disk) || extra.has_all_of(disk),
        }
    }

    /// Reads in one thread and compares in another.
    fn compare(
        &self,
        disks: &[OpenDisk],
        staged: StagedPieces,
        journal: JournalWriter,
        out: &mpsc::Sender<FromAgent>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<CutDone> {
        let (pieces, incoming) = sync_channel(BUFFERS);
        let (back, buffers) = channel();
        for _ in 0..BUFFERS {
            back.send(Vec::new()).map_err(|_| stopped())?;
        }
        let mut comparison = Comparison::new(self, disks, journal, out, back)?;
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || read_all(disks, staged, &Flowing { pieces, buffers }, stop));
            let compared = incoming.into_iter().try_for_each(|piece| comparison.piece(piece));
            // Without its buffers a reader that is still under way ends.
            let done = comparison.finish();
            let read = reading.join().unwrap_or_else(|_| Err(stopped()));
            compared?;
            read?;
            done
        })
    }
}

fn whole_blocks_around(run: Extent) -> Extent {
    Extent::between(run.start - run.start % BLOCK_BYTES, run.end().next_multiple_of(BLOCK_BYTES))
}

/// A disk as it is compared.
struct Known<'a> {
    /// Its number in the journal.
    number: usize,
    /// Its bytes.
    size: u64,
    /// None: all of it was zero, or that is taken to be so.
    fingerprints: Option<fingerprints::Reader>,
    /// All data is sent, and no zeroes.
    whole: bool,
    /// What is sent in any case.
    extra: Option<&'a ExtentSet>,
    /// The block whose fingerprint comes next.
    at: u64,
    /// The last block of which a part was sent.
    in_part: Option<u64>,
    /// Of all its bytes, where that is wanted.
    digester: Option<DiskDigester>,
}

struct Comparison<'a> {
    cut: &'a Cut,
    disks: &'a [OpenDisk],
    /// None where a disk is excluded.
    known: Vec<Option<Known<'a>>>,
    journal: JournalWriter,
    out: Output<'a>,
    /// To the reader.
    back: Sender<Vec<u8>>,
    read_bytes: u64,
}

impl<'a> Comparison<'a> {
    fn new(
        cut: &'a Cut,
        disks: &'a [OpenDisk],
        journal: JournalWriter,
        out: &'a mpsc::Sender<FromAgent>,
        back: Sender<Vec<u8>>,
    ) -> Result<Self> {
        let mut known = Vec::with_capacity(disks.len());
        let mut protected = 0;
        for disk in disks {
            if disk.reader.is_none() {
                known.push(None);
                continue;
            }
            let name = &disk.shape.name;
            let (fingerprints, extra) = match &cut.plan {
                Plan::Full { .. } => (None, None),
                Plan::Incremental { extra, .. } => (cut.base.reader(name)?, extra.of(name)),
            };
            let (number, size, whole) = (protected, disk.shape.size, disk.shape.whole);
            let digester = cut.proof.then(|| DiskDigester::new(size));
            known.push(Some(Known { number, size, fingerprints, whole, extra, at: 0, in_part: None, digester }));
            protected += 1;
        }
        let out = Output { out, digest: CycleDigest::default(), zeroes: None, sent_bytes: 0 };
        Ok(Self { cut, disks, known, journal, out, back, read_bytes: 0 })
    }

    fn piece(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Zero { disk, extent } => self.blocks(disk, extent, None),
            Piece::Data { disk, runs, bytes } => {
                self.runs(disk, &runs, &bytes, &|run| Bytes::copy_from_slice(&bytes[run]))?;
                // The reader may be done and need no buffer any more.
                let _ = self.back.send(bytes);
                Ok(())
            }
            // Sent from where it lies.
            Piece::Staged { disk, runs, bytes } => self.runs(disk, &runs, &bytes, &|run| bytes.slice(run)),
        }
    }

    /// Compares runs whose bytes lie one behind the other; `message` makes a message of some.
    fn runs(
        &mut self,
        disk: usize,
        runs: &[Extent],
        bytes: &[u8],
        message: &dyn Fn(Range<usize>) -> Bytes,
    ) -> Result<()> {
        let mut at = 0;
        for run in runs {
            let end = at + to_usize(run.len);
            self.read_bytes += run.len;
            let message = |part: Range<usize>| message(at + part.start..at + part.end);
            self.blocks(disk, *run, Some(Read { bytes: &bytes[at..end], message: &message }))?;
            at = end;
        }
        Ok(())
    }

    /// Compares a run; no bytes: it is all zero. Of blocks that it covers in part, that part is sent as it is (ADR 0017).
    fn blocks(&mut self, disk: usize, extent: Extent, bytes: Option<Read<'_>>) -> Result<()> {
        let Some(Some(known)) = self.known.get_mut(disk) else { return Ok(()) };
        if let Some(digester) = &mut known.digester {
            // What is not given is zero: a hole that nobody names.
            digester.zeroes(extent.start.saturating_sub(digester.at()));
            match &bytes {
                Some(read) => digester.data(read.bytes),
                None => digester.zeroes(extent.len),
            }
        }
        let (first, end) = (extent.start / BLOCK_BYTES, block_count(extent.end()));
        let ends_with_disk = extent.end() == known.size;
        let whole = extent.start.div_ceil(BLOCK_BYTES)..if ends_with_disk { end } else { extent.end() / BLOCK_BYTES };
        let before = match &mut known.fingerprints {
            Some(fingerprints) if !whole.is_empty() => {
                if whole.start > known.at {
                    fingerprints.skip(whole.start - known.at)?;
                }
                known.at = whole.end;
                Some(fingerprints.next(to_usize(whole.end - whole.start))?)
            }
            _ => None,
        };
        let extra = known.extra.filter(|set| set.intersects(&extent));
        if whole == (first..end) && bytes.is_none() && extra.is_none() && before.is_none_or(is_zero) {
            return Ok(());
        }
        // The run of changed data that is not sent yet.
        let mut data = Extent { start: extent.start, len: 0 };
        for block in first..end {
            let start = block * BLOCK_BYTES;
            let here = Extent::between(start.max(extent.start), extent.end().min(start + BLOCK_BYTES));
            let block_bytes = bytes.as_ref().map(|b| b.of(extent.start, here));
            let is_zeroes = if whole.contains(&block) {
                let hash = block_bytes.map_or(BlockHash::ZERO, |b| self.cut.base.key.hash(b));
                let at = to_usize(block - whole.start) * HASH_BYTES;
                let old = before.map_or(BlockHash::ZERO, |b| BlockHash::read(&b[at..at + HASH_BYTES]));
                if hash != old {
                    self.journal.push(known.number, block, hash)?;
                }
                let wanted = hash != old || known.whole || extra.is_some_and(|set| set.intersects(&here));
                if !wanted {
                    continue;
                }
                hash == BlockHash::ZERO
            } else {
                // Said again where it was said before: the journal names all that a gateway that is behind does not have.
                if known.in_part.replace(block) != Some(block) {
                    self.journal.push(known.number, block, BlockHash::UNKNOWN)?;
                }
                block_bytes.is_none_or(|bytes| here.len >= ZEROES_BYTES_MIN && is_zero(bytes))
            };
            if is_zeroes {
                self.out.read(disk, extent.start, &mut data, bytes.as_ref())?;
                if !known.whole {
                    self.out.zeroes(disk, here)?;
                }
                continue;
            }
            if data.end() != here.start {
                self.out.read(disk, extent.start, &mut data, bytes.as_ref())?;
                data = Extent { start: here.start, len: 0 };
            }
            data.len += here.len;
        }
        self.out.read(disk, extent.start, &mut data, bytes.as_ref())
    }

    fn finish(mut self) -> Result<CutDone> {
        self.out.flush()?;
        let Output { digest, sent_bytes, .. } = self.out;
        let (digest, held) = (digest.finish(), Duration::ZERO);
        let mut digests = Vec::new();
        for (disk, known) in self.disks.iter().zip(self.known) {
            let Some(Known { digester: Some(mut digester), size, .. }) = known else { continue };
            digester.zeroes(size.saturating_sub(digester.at()));
            digests.push(DiskDigest { name: disk.shape.name.clone(), digest: digester.finish()? });
        }
        Ok(CutDone { journal: self.journal, digest, read_bytes: self.read_bytes, sent_bytes, held, digests })
    }
}

/// Bytes that were read, and how some of them become a message.
struct Read<'a> {
    bytes: &'a [u8],
    message: &'a dyn Fn(Range<usize>) -> Bytes,
}

impl Read<'_> {
    /// Those of a range; the first of all lies at `start`.
    fn of(&self, start: u64, range: Extent) -> &[u8] {
        &self.bytes[to_usize(range.start - start)..to_usize(range.end() - start)]
    }
}

/// Runs on their way out: counted, and zeroes that touch as one.
struct Output<'a> {
    out: &'a mpsc::Sender<FromAgent>,
    digest: CycleDigest,
    zeroes: Option<(usize, Extent)>,
    sent_bytes: u64,
}

impl Output<'_> {
    /// Gives a run of what was read from `start` on, which is empty then.
    fn read(&mut self, disk: usize, start: u64, run: &mut Extent, bytes: Option<&Read<'_>>) -> Result<()> {
        let run = std::mem::replace(run, Extent { start: run.end(), len: 0 });
        let Some(read) = bytes.filter(|_| run.len > 0) else { return Ok(()) };
        self.flush()?;
        let bytes = (read.message)(to_usize(run.start - start)..to_usize(run.end() - start));
        let data = Data { disk, start: run.start, bytes };
        self.digest.data(&data);
        self.sent_bytes += run.len;
        self.out.blocking_send(FromAgent::Data(data)).map_err(|_| stopped())
    }

    fn zeroes(&mut self, disk: usize, extent: Extent) -> Result<()> {
        match &mut self.zeroes {
            Some((open, run)) if *open == disk && run.end() == extent.start => run.len += extent.len,
            _ => {
                self.flush()?;
                self.zeroes = Some((disk, extent));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let Some((disk, extent)) = self.zeroes.take() else { return Ok(()) };
        self.digest.zero(disk, extent);
        self.out.blocking_send(FromAgent::Zero(disk, extent)).map_err(|_| stopped())
    }
}
