//! A watch over a device: attach, take what was marked, say when that cannot be relied on.
//!
//! The order of a take is what makes it sound:
//! ```text
//! canary -> notes of bios under way -> exchange of the marks -> were runs of the programs skipped? -> same device?
//! ```
//! Notes come before marks, because a program marks before it forgets a note. What may have gone wrong is asked after the marks were taken:
//! what goes wrong later stands in what is found by the next take.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use landfall_model::{BlockSet, Error, ErrorKind, Extent, Result};
use tracing::debug;

use crate::bios::{self, Maps, NOTES_MAX};
use crate::device::{Device, SECTOR_BYTES};
use crate::layout::{self, Layout};
use crate::marking::{Head, Marks as How, Row, Target};
use crate::requests::{self, When};
use crate::sys::{Hash, Program, Shared, lift_memory_limit};
use crate::tally::Tally;

/// A device that is not seen in so many tries cannot be watched.
const CANARIES: usize = 3;

/// How a device is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Where its requests complete.
    Requests,
    /// Where its bios are queued and complete: it has no requests.
    Bios,
}

/// What was written since the last take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    /// The blocks, in bytes of the device that was given.
    pub blocks: BlockSet,
    /// Why anything else may have been written too, if so: drop the watch, attach a new one, then read everything.
    pub lost: Option<String>,
}

/// What tests turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// None: by atomic OR if the kernel has it.
    pub(crate) marks: Option<How>,
    /// None: what the device turns out to be.
    pub(crate) kind: Option<Kind>,
    pub(crate) when: When,
    pub(crate) notes_max: u32,
    /// The disk that is looked for, where it is not the right one.
    pub(crate) disk: Option<(u32, u32)>,
    /// Not asked whether what is written can be seen.
    #[cfg(test)]
    pub(crate) unproven: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            marks: None,
            kind: None,
            when: When::Completed,
            notes_max: NOTES_MAX,
            disk: None,
            #[cfg(test)]
            unproven: false,
        }
    }
}

/// A watch over the writes to a device. It ends when it is dropped.
pub struct Watch {
    device: Device,
    kind: Kind,
    target: Target,
    shared: Shared,
    notes: Option<Hash>,
    programs: Vec<Program>,
    /// Of requests: of bios the kernel's drivers each count in a way of their own.
    tally: Option<Tally>,
    /// Runs that were skipped, as of the last take, of each program.
    skipped: Vec<Option<u64>>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("device", &self.device).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Whether this process may track blocks on this kernel: loads and attaches what a watch would, for a disk that does not exist.
///
/// # Errors
/// One sentence of what is missing: permission, the kernel's description of itself, or eBPF.
pub fn support() -> Result<()> {
    let layout = layout()?;
    let target = Target::new((0, 0), 0, 1, How::Bits);
    loaded(|how| {
        let shared = Shared::new(Target { marks: how, ..target.clone() }.words())?;
        let target = Target { marks: how, ..target.clone() };
        let code = requests::program(layout, &target, When::Completed, shared.fd()).map_err(io::Error::other)?;
        Program::attach(&code, When::Completed.tracepoint(layout)).map(drop)
    })
    .map(drop)
}

/// Of this kernel; read once, because it is some megabytes.
fn layout() -> Result<&'static Layout> {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    if let Some(layout) = LAYOUT.get() {
        return Ok(layout);
    }
    let layout = layout::of_this_kernel()?;
    Ok(LAYOUT.get_or_init(|| layout))
}

/// Tries with atomic OR, then without, and lifts the limit of memory where that may be what is in the way.
fn loaded<T>(load: impl Fn(How) -> io::Result<T>) -> Result<T> {
    let may_not = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
    let mut first = match load(How::Bits) {
        Err(error) if may_not(&error) => {
            lift_memory_limit();
            load(How::Bits)
        }
        other => other,
    };
    if first.as_ref().is_err_and(|error| !may_not(error)) {
        first = load(How::Bytes).or(first);
    }
    first.map_err(|error| {
        let (kind, why) = if may_not(&error) {
            (
                ErrorKind::Usage,
                "needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, and no lockdown that forbids eBPF to read the kernel",
            )
        } else {
            (ErrorKind::Unsupported, "the kernel refuses eBPF programs")
        };
        Error::with_source(kind, format!("blocks cannot be tracked: {why}"), error)
    })
}

impl Watch {
    /// Begins to track the writes to a block device: a whole disk or a partition. What was written before is not known.
    ///
    /// # Errors
    /// No support, as of [`support`]; no such device; a device that cannot be tracked, with the reason.
    pub fn attach(path: &Path) -> Result<Self> {
        Self::attach_with(path, Options::default(), layout()?)
    }

    pub(crate) fn attach_with(path: &Path, options: Options, layout: &Layout) -> Result<Self> {
        let device = Device::open(path)?;
        let kinds = options.kind.map_or_else(|| vec![Kind::Requests, Kind::Bios], |kind| vec![kind]);
        let mut why = String::new();
        for kind in kinds {
            let load = |how| Self::load(&device, kind, options, layout, how);
            let watch = match options.marks {
                Some(how) => load(how)
                    .map_err(|error| Error::with_source(ErrorKind::Unsupported, "blocks cannot be tracked", error)),
                None => loaded(load),
            };
            let watch = watch.map_err(|error| error.context(path.display()))?;
            #[cfg(test)]
            if options.unproven {
                return Ok(watch);
            }
            // A kernel that leaves out a program now and then may do so just here.
            let mut found = watch.canary();
            for _ in 1..CANARIES {
                found = found.and_then(|_| watch.canary());
            }
            debug!(path = %path.display(), ?kind, block_bytes = watch.block_size(), ?found, "attached");
            match found {
                None => {
                    watch.admit(path)?;
                    return Ok(watch);
                }
                Some(reason) => why = reason,
            }
        }
        Err(Error::new(ErrorKind::Unsupported, format!("cannot track {}: {why}", path.display())))
    }

    fn load(device: &Device, kind: Kind, options: Options, layout: &Layout, how: How) -> io::Result<Self> {
        let target = Target::new(options.disk.unwrap_or(device.disk), device.start(), device.sectors(), how);
        let shared = Shared::new(target.words())?;
        let (notes, programs) = match kind {
            Kind::Requests => {
                let code = requests::program(layout, &target, options.when, shared.fd()).map_err(io::Error::other)?;
                (None, vec![Program::attach(&code, options.when.tracepoint(layout))?])
            }
            Kind::Bios => {
                let notes = Hash::new(options.notes_max)?;
                let maps = Maps { shared: shared.fd(), notes: notes.fd() };
                let complete = bios::complete_program(layout, &target, maps).map_err(io::Error::other)?;
                let queue = bios::queue_program(layout, &target, maps).map_err(io::Error::other)?;
                // Who sees the end first: else a bio might end between the two, and its note would stand.
                let complete = Program::attach(&complete, layout.bio_complete.id)?;
                (Some(notes), vec![complete, Program::attach(&queue, layout.bio_queue.id)?])
            }
        };
        // They are new: what is skipped from here on counts, for a bio whose queueing is not seen may end after the attach.
        let skipped = programs.iter().map(|program| Ok(program.misses()?.map(|_| 0))).collect::<io::Result<_>>()?;
        let sum = || shared.words()[Head::Sectors.word()].load(Ordering::SeqCst);
        let tally = (kind == Kind::Requests).then(|| Tally::begin(device, sum));
        Ok(Self { device: device.clone(), kind, target, shared, notes, programs, tally, skipped })
    }

    /// What else must be so, once the programs are known to work.
    fn admit(&self, path: &Path) -> Result<()> {
        if self.kind == Kind::Requests {
            return Ok(());
        }
        let refused = self.held().or_else(|| self.past_bios());
        if let Some(why) = refused {
            return Err(Error::new(ErrorKind::Unsupported, format!("cannot track {}: {why}", path.display())));
        }
        self.device.settle()
    }

    /// Drivers hand bios on to what is beneath them, and the kernel does not tell of those again.
    fn held(&self) -> Option<String> {
        let holder = self.device.holder().filter(|_| self.kind == Kind::Bios)?;
        Some(format!("{holder} is built upon it, and what that writes is not seen here: track {holder}"))
    }

    fn past_bios(&self) -> Option<String> {
        let it_does = self.head(Head::PastBios) != 0;
        it_does.then(|| "its driver lets pages be written past what can be seen (rw_page, before Linux 6.3)".to_owned())
    }

    /// Ends the programs, as if the kernel had.
    #[cfg(test)]
    pub(crate) fn end_programs(&mut self) {
        self.programs.clear();
        self.skipped.clear();
    }

    #[cfg(test)]
    pub(crate) fn overflowed(&self) -> bool {
        self.head(Head::Overflow) != 0
    }

    fn head(&self, head: Head) -> u64 {
        self.shared.words()[head.word()].load(Ordering::SeqCst)
    }

    /// Bytes of the smallest block that is marked.
    pub fn block_size(&self) -> u64 {
        1 << self.target.fine_bits.unwrap_or(self.target.block_bits)
    }

    /// How the device is watched.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Takes the marks that were set since the last take, and clears them. It waits for one read of the device.
    pub fn take(&mut self) -> Marks {
        let canary = self.canary();
        let noted = self.take_notes();
        let (mut blocks, everything) = self.take_marks();
        let unasked = |error| format!("the kernel does not answer about its eBPF programs: {error}");
        let unnoted = noted.map(|noted| blocks.union(&noted)).map_err(unasked).err();
        let skipped = self.skips().map_err(unasked).map(|now| now != std::mem::replace(&mut self.skipped, now.clone()));
        let passed_by = self.passed_by();
        let because = |it_is: bool, why: &str| it_is.then(|| why.to_owned());
        // What explains more comes first: a canary whose run was skipped was not seen either.
        let lost = self
            .device
            .changed()
            .or_else(|| match skipped {
                Ok(skipped) => because(skipped, "the kernel skipped runs of a program, because it was running already"),
                Err(why) => Some(why),
            })
            .or(canary)
            .or_else(|| because(passed_by, "the kernel completed requests without running the program"))
            .or_else(|| self.held())
            .or_else(|| self.past_bios())
            .or(unnoted)
            .or_else(|| because(self.head(Head::Overflow) != 0, "more writes were under way at once than can be noted"))
            .or_else(|| {
                because(
                    everything,
                    "there was a command that changed more at once than can be marked, or does not say what",
                )
            });
        Marks { blocks, lost }
    }

    /// Blocks of the bios whose end was not seen.
    pub(crate) fn take_notes(&self) -> io::Result<BlockSet> {
        let mut blocks = BlockSet::new(self.device.size(), self.block_size());
        for [start, end] in self.notes.as_ref().map_or(Ok(Vec::new()), Hash::values)? {
            let of_device = |sector: u64| sector.saturating_sub(self.target.start).saturating_mul(SECTOR_BYTES);
            blocks.insert(Extent::between(of_device(start), of_device(end)));
        }
        Ok(blocks)
    }

    /// Blocks that are marked, which are not after this, and whether everything is.
    pub(crate) fn take_marks(&self) -> (BlockSet, bool) {
        let mut blocks = BlockSet::new(self.device.size(), self.block_size());
        let words = self.shared.words();
        let everything = words[Head::Everything.word()].swap(0, Ordering::SeqCst) != 0;
        // Most are 0, and an exchange is dear.
        let taken = |word: &AtomicU64| {
            if word.load(Ordering::SeqCst) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) }
        };
        let mut part = |row: Row, word: usize, bits: u64| {
            let block = 1 << row.block_bits;
            let mut insert = |at: u64| blocks.insert(Extent { start: at * block, len: block });
            let first = word as u64;
            match self.target.marks {
                How::Bits => (0..64).filter(|bit| bits >> bit & 1 != 0).for_each(|bit| insert(first * 64 + bit)),
                How::Bytes => (0_u64..)
                    .zip(bits.to_le_bytes())
                    .filter(|(_, byte)| *byte != 0)
                    .for_each(|(byte, _)| insert(first * 8 + byte)),
            }
        };
        let coarse = self.target.coarse();
        for (at, word) in words[coarse.first_word..coarse.first_word + coarse.words].iter().enumerate() {
            match taken(word) {
                0 => {}
                bits => part(coarse, at, bits),
            }
        }
        if let Some(fine) = self.target.fine() {
            for (at, word) in words[fine.first_word..fine.first_word + fine.words].iter().enumerate() {
                blocks.insert_word(at, taken(word));
            }
        }
        (blocks, everything)
    }

    pub(crate) fn passed_by(&mut self) -> bool {
        let words = self.shared.words();
        let sum = || words[Head::Sectors.word()].load(Ordering::SeqCst);
        self.tally.as_mut().is_some_and(|tally| tally.passed_by(&self.device, sum))
    }

    fn skips(&self) -> io::Result<Vec<Option<u64>>> {
        self.programs.iter().map(Program::misses).collect()
    }

    /// Reads from the device, which the programs must see. Gives what is wrong.
    fn canary(&self) -> Option<String> {
        let canary = &self.shared.words()[Head::Canary.word()];
        let ended = if self.kind == Kind::Bios { Head::Ended } else { Head::Seen };
        let before = (self.head(Head::Seen), self.head(ended));
        canary.store(1, Ordering::SeqCst);
        let touched = self.device.touch();
        canary.store(0, Ordering::SeqCst);
        if let Err(error) = touched {
            return Some(format!("it cannot be read: {error}"));
        }
        let grew = (self.head(Head::Seen) != before.0, self.head(ended) != before.1);
        match grew {
            (true, true) => None,
            (true, false) => Some("the kernel does not tell when what is written to it is complete".to_owned()),
            (false, _) => Some("a read of it was not seen: what is written to it would not be either".to_owned()),
        }
    }
}
