//! One cut of the disks: held still, read, compared with what is known, and what differs given away as messages.
//!
//! ```text
//!   freeze -> open -> reader thread ==4 buffers==> compare, hash, journal ==4 messages==> the link
//! ```
//! # Bounds
//! [`MEMORY_BYTES_MAX`] is the sum of all that a cycle holds at once, whatever the sizes of the disks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};

use bytes::Bytes;
use landfall_model::num::to_usize;
use landfall_model::{CycleId, Digest, DiskName, Extent, ExtentSet, GroupId, Result, Timestamp};
use landfall_wire::{Begin, CycleDigest, Data, FromAgent, MESSAGES_WAITING_MAX};
use tokio::sync::mpsc;

use crate::fingerprints::{self, BLOCK_BYTES, BlockHash, HASH_BYTES, block_count, is_zero};
use crate::freeze::Freeze;
use crate::history::{Plan, RUNS_MAX};
use crate::image::{BUFFERS, DiskConfig, OpenDisk, Piece, Pieces, READ_BYTES, WINDOW_BYTES, open_disks, stopped};
use crate::journal::{DiskState, JournalHead, JournalWriter};
use crate::state::Base;

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
/// Buffers and messages; hashes and journal; kept ranges and those of the plan; the runs of a window.
const MEMORY_BYTES: usize = to_usize(READ_BYTES) * (BUFFERS + MESSAGES + MESSAGES_WAITING_MAX + MESSAGES_HELD)
    + 1024 * 1024
    + 2 * RUNS_MAX * RUN_BYTES
    + WINDOW_RUNS_BYTES;
const _: () = assert!(MEMORY_BYTES <= MEMORY_BYTES_MAX, "a cycle stays within its memory");

/// Tells a cut to end before it is complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One cut that is to be made.
pub(crate) struct Cut {
    pub(crate) cycle: CycleId,
    pub(crate) plan: Plan,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) freeze: Freeze,
    pub(crate) base: Base,
    pub(crate) state_root: PathBuf,
    pub(crate) stop: Stop,
    /// The group's cut that it is.
    pub(crate) group: Option<GroupId>,
}

/// What was read and sent.
pub(crate) struct CutDone {
    pub(crate) journal: JournalWriter,
    pub(crate) digest: Digest,
    pub(crate) read_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Cut {
    /// Makes the cut: gives `Begin` and all runs to `out`, in order. `time` tells the moment when everything is held still, and may wait for
    /// it; `journal` begins the journal. Blocks; everything is thawed when it returns.
    ///
    /// # Errors
    /// What the disks, the freezing and `time` say; `Unavailable` where nobody takes the messages any more.
    pub(crate) fn make(
        self,
        time: impl FnOnce() -> Result<Timestamp>,
        journal: impl FnOnce(&JournalHead) -> Result<JournalWriter>,
        out: mpsc::Sender<FromAgent>,
    ) -> Result<CutDone> {
        let stop = || self.stop.is_set() || out.is_closed();
        let held = self.freeze.hold(&self.state_root, &stop)?;
        let (time, consistency) = (time()?, self.freeze.consistency());
        let mut disks = open_disks(&self.disks)?;
        disks.iter_mut().for_each(|d| d.shape.whole = self.is_whole(&d.shape.name));
        let parent = match &self.plan {
            Plan::Full { .. } => None,
            Plan::Incremental { parent, .. } => Some(*parent),
        };
        let shapes = disks.iter().map(|d| d.shape.clone()).collect();
        let begin = Begin { cycle: self.cycle, parent, time, consistency, disks: shapes, group: self.group };
        let protected = || disks.iter().filter(|d| d.reader.is_some());
        let states = protected().map(|d| DiskState { name: d.shape.name.clone(), size: d.shape.size });
        let base = parent.and(self.base.cycle);
        let head = JournalHead { cycle: self.cycle, base, parent, time, consistency, disks: states.collect() };
        let journal = journal(&head)?;
        out.blocking_send(FromAgent::Begin(begin)).map_err(|_| stopped())?;
        let done = self.compare(&disks, journal, &out, &stop)?;
        held.thaw()?;
        Ok(done)
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
            let reading = scope.spawn(move || Pieces { pieces, buffers }.read_all(disks, stop));
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

/// A disk as it is compared.
struct Known<'a> {
    /// Its number in the journal.
    number: usize,
    /// None: all of it was zero, or that is taken to be so.
    fingerprints: Option<fingerprints::Reader>,
    /// All data is sent, and no zeroes.
    whole: bool,
    /// What is sent in any case.
    extra: Option<&'a ExtentSet>,
}

struct Comparison<'a> {
    cut: &'a Cut,
    /// None where a disk is excluded.
    known: Vec<Option<Known<'a>>>,
    journal: JournalWriter,
    out: Output<'a>,
    back: Sender<Vec<u8>>,
    read_bytes: u64,
}

impl<'a> Comparison<'a> {
    fn new(
        cut: &'a Cut,
        disks: &[OpenDisk],
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
            known.push(Some(Known { number: protected, fingerprints, whole: disk.shape.whole, extra }));
            protected += 1;
        }
        let out = Output { out, digest: CycleDigest::default(), zeroes: None, sent_bytes: 0 };
        Ok(Self { cut, known, journal, out, back, read_bytes: 0 })
    }

    fn piece(&mut self, piece: Piece) -> Result<()> {
        match piece {
            Piece::Zero { disk, extent } => self.blocks(disk, extent, None),
            Piece::Data { disk, start, bytes } => {
                self.read_bytes += bytes.len() as u64;
                self.blocks(disk, Extent { start, len: bytes.len() as u64 }, Some(&bytes))?;
                // The reader may be done and need no buffer any more.
                let _ = self.back.send(bytes);
                Ok(())
            }
        }
    }

    /// Compares a run of blocks; no bytes: they are all zero.
    fn blocks(&mut self, disk: usize, extent: Extent, bytes: Option<&[u8]>) -> Result<()> {
        let Some(Some(known)) = self.known.get_mut(disk) else { return Ok(()) };
        let count = to_usize(block_count(extent.len));
        let before = known.fingerprints.as_mut().map(|f| f.next(count)).transpose()?;
        let extra = known.extra.filter(|set| set.intersects(&extent));
        if bytes.is_none() && extra.is_none() && before.is_none_or(is_zero) {
            return Ok(());
        }
        // Where the run of changed data begins that is not sent yet.
        let mut data: Option<usize> = None;
        for at in 0..count {
            let start = at * to_usize(BLOCK_BYTES);
            let here = Extent::between(
                extent.start + start as u64,
                extent.end().min(extent.start + start as u64 + BLOCK_BYTES),
            );
            let block = bytes.map(|b| &b[start..start + to_usize(here.len)]);
            let hash = block.map_or(BlockHash::ZERO, |b| self.cut.base.key.hash(b));
            let old = before.map_or(BlockHash::ZERO, |b| BlockHash::read(&b[at * HASH_BYTES..(at + 1) * HASH_BYTES]));
            if hash != old {
                self.journal.push(known.number, here.start / BLOCK_BYTES, hash)?;
            }
            let wanted = hash != old || known.whole || extra.is_some_and(|set| set.intersects(&here));
            if wanted && hash != BlockHash::ZERO {
                data = data.or(Some(start));
                continue;
            }
            if let (Some(from), Some(bytes)) = (data.take(), bytes) {
                self.out.data(disk, extent.start + from as u64, &bytes[from..start])?;
            }
            if wanted && !known.whole {
                self.out.zeroes(disk, here)?;
            }
        }
        match (data, bytes) {
            (Some(from), Some(bytes)) => self.out.data(disk, extent.start + from as u64, &bytes[from..]),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<CutDone> {
        self.out.flush()?;
        let Output { digest, sent_bytes, .. } = self.out;
        Ok(CutDone { journal: self.journal, digest: digest.finish(), read_bytes: self.read_bytes, sent_bytes })
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
    fn data(&mut self, disk: usize, start: u64, bytes: &[u8]) -> Result<()> {
        self.flush()?;
        let data = Data { disk, start, bytes: Bytes::copy_from_slice(bytes) };
        self.digest.data(&data);
        self.sent_bytes += bytes.len() as u64;
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
