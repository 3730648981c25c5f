//! What the cycle in flight changes in the fingerprints.
//!
//! ```text
//! "LFJRNL01" | length u32 | head, JSON | run ... | end: u32::MAX, 0 u32, number of runs u64 | BLAKE3 of all before, 32
//! run: disk u32 | blocks u32 | first block u64 | hash of each block, 16
//! ```
//! Numbers are little-endian. Runs ascend within a disk. A journal without a base replaces all fingerprints; one with a base changes
//! those of the base. It is written aside while the cycle is sent and gets its name, durable, before the cycle's end is sent. Applying it
//! twice is applying it once.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use landfall_model::{Consistency, CycleId, DiskName, Error, ErrorKind, Result, Timestamp};
use serde::{Deserialize, Serialize};

use crate::durable::{self, failed};
use crate::fingerprints::{BlockHash, HASH_BYTES, block_count};

const MAGIC: &[u8; 8] = b"LFJRNL01";
/// A head of the most disks with the longest names is less.
const HEAD_BYTES_MAX: usize = 1024 * 1024;
/// Most blocks of one run: 64 KiB of hashes.
const RUN_BLOCKS_MAX: usize = 4096;
const END: u32 = u32::MAX;
const FILE_BUFFER_BYTES: usize = 256 * 1024;

/// A protected disk at the cut.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DiskState {
    /// Its name.
    pub(crate) name: DiskName,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// The cycle that a journal is of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct JournalHead {
    /// Its name.
    pub(crate) cycle: CycleId,
    /// The cycle whose fingerprints the runs change; none where they replace everything.
    pub(crate) base: Option<CycleId>,
    /// The cycle that the gateway was given the changes to.
    pub(crate) parent: Option<CycleId>,
    /// The moment of the cut.
    pub(crate) time: Timestamp,
    /// What the cut guarantees.
    pub(crate) consistency: Consistency,
    /// The protected disks, in the order of the runs' numbers.
    pub(crate) disks: Vec<DiskState>,
}

/// Writes a journal, aside.
pub(crate) struct JournalWriter {
    file: BufWriter<File>,
    path: PathBuf,
    digest: blake3::Hasher,
    disk: u32,
    first: u64,
    hashes: Vec<u8>,
    runs: u64,
    sealed: bool,
}

impl Drop for JournalWriter {
    fn drop(&mut self) {
        if !self.sealed {
            // Where it cannot be removed now, it is when the state directory is opened again.
            let _ = std::fs::remove_file(durable::aside(&self.path));
        }
    }
}

impl JournalWriter {
    /// Begins the journal that will have this path.
    pub(crate) fn create(path: &Path, head: &JournalHead) -> Result<Self> {
        let file = durable::create(&durable::aside(path)).map_err(|e| failed("write", path, e))?;
        let mut writer = Self {
            file: BufWriter::with_capacity(FILE_BUFFER_BYTES, file),
            path: path.to_owned(),
            digest: blake3::Hasher::new(),
            disk: 0,
            first: 0,
            hashes: Vec::with_capacity(RUN_BLOCKS_MAX * HASH_BYTES),
            runs: 0,
            sealed: false,
        };
        let head = serde_json::to_vec(head)
            .map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode the head of a journal", e))?;
        writer.write(MAGIC)?;
        writer.write(&u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        writer.write(&head)?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.digest.update(bytes);
        self.file.write_all(bytes).map_err(|e| failed("write", &self.path, e))
    }

    fn flush_run(&mut self) -> Result<()> {
        if self.hashes.is_empty() {
            return Ok(());
        }
        let blocks = u32::try_from(self.hashes.len() / HASH_BYTES).unwrap_or(u32::MAX);
        self.write_run_head(self.disk, blocks, self.first)?;
        let hashes = std::mem::take(&mut self.hashes);
        self.write(&hashes)?;
        self.hashes = hashes;
        self.hashes.clear();
        self.runs += 1;
        Ok(())
    }

    fn write_run_head(&mut self, disk: u32, blocks: u32, first: u64) -> Result<()> {
        self.write(&disk.to_le_bytes())?;
        self.write(&blocks.to_le_bytes())?;
        self.write(&first.to_le_bytes())
    }

    /// A block has changed.
    pub(crate) fn push(&mut self, disk: usize, block: u64, hash: BlockHash) -> Result<()> {
        let disk = u32::try_from(disk).unwrap_or(END);
        let blocks = self.hashes.len() / HASH_BYTES;
        let follows = disk == self.disk && block == self.first + blocks as u64 && blocks < RUN_BLOCKS_MAX;
        if blocks == 0 || !follows {
            self.flush_run()?;
            (self.disk, self.first) = (disk, block);
        }
        self.hashes.extend_from_slice(&hash.0);
        Ok(())
    }

    /// The cycle was read whole: the journal becomes durable under its name.
    pub(crate) fn seal(mut self) -> Result<()> {
        self.flush_run()?;
        self.write_run_head(END, 0, self.runs)?;
        let digest = *self.digest.finalize().as_bytes();
        let done = self.file.write_all(&digest).and_then(|()| self.file.flush());
        let done = done.and_then(|()| durable::publish(self.file.get_ref(), &self.path));
        self.sealed = done.is_ok();
        done.map_err(|e| failed("write", &self.path, e))
    }
}

/// Reads a journal.
pub(crate) struct JournalReader {
    file: BufReader<File>,
    path: PathBuf,
    digest: blake3::Hasher,
    head: JournalHead,
}

impl JournalReader {
    /// Opens a journal and reads its head.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where it is none.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| failed("read", path, e))?;
        let mut file = BufReader::with_capacity(FILE_BUFFER_BYTES, file);
        let mut digest = blake3::Hasher::new();
        let mut start = [0; 12];
        take(&mut file, &mut digest, &mut start, path)?;
        let len = usize::try_from(u32::from_le_bytes([start[8], start[9], start[10], start[11]])).unwrap_or(usize::MAX);
        if &start[..8] != MAGIC || len > HEAD_BYTES_MAX {
            return Err(damaged(path, "it does not begin as a journal"));
        }
        let mut bytes = vec![0; len];
        take(&mut file, &mut digest, &mut bytes, path)?;
        let head = serde_json::from_slice(&bytes)
            .map_err(|e| Error::with_source(ErrorKind::Corrupt, format!("{} is damaged", path.display()), e))?;
        Ok(Self { file, path: path.to_owned(), digest, head })
    }

    /// The cycle that it is of.
    pub(crate) fn head(&self) -> &JournalHead {
        &self.head
    }

    /// Gives every run to `each`: number of the disk, first block, hashes. That the runs are whole is known when this returns.
    ///
    /// # Errors
    /// `Corrupt`, and what `each` returns.
    pub(crate) fn runs(mut self, mut each: impl FnMut(usize, u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut hashes = vec![0; RUN_BLOCKS_MAX * HASH_BYTES];
        let mut runs = 0;
        loop {
            let mut start = [0; 16];
            take(&mut self.file, &mut self.digest, &mut start, &self.path)?;
            let (disk, rest) = start.split_at(4);
            let (blocks, first) = rest.split_at(4);
            let disk = number(disk);
            let (blocks, first) = (number(blocks), number(first));
            if disk == u64::from(END) {
                let mut wanted = [0; 32];
                let read = self.file.read_exact(&mut wanted);
                if read.is_err() || first != runs || *self.digest.finalize().as_bytes() != wanted {
                    return Err(damaged(&self.path, "it is not what was written"));
                }
                return Ok(());
            }
            let disk = usize::try_from(disk).unwrap_or(usize::MAX);
            let count = usize::try_from(blocks).unwrap_or(usize::MAX);
            let all = self.head.disks.get(disk).map_or(0, |d| block_count(d.size));
            if count == 0 || count > RUN_BLOCKS_MAX || first.checked_add(blocks).is_none_or(|end| end > all) {
                return Err(damaged(&self.path, "it names blocks that the disk does not have"));
            }
            let run = &mut hashes[..count * HASH_BYTES];
            take(&mut self.file, &mut self.digest, run, &self.path)?;
            each(disk, first, run)?;
            runs += 1;
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::corrupt(format!("{} is damaged: {why}", path.display()))
}

fn take(file: &mut impl Read, digest: &mut blake3::Hasher, bytes: &mut [u8], path: &Path) -> Result<()> {
    match file.read_exact(bytes) {
        Ok(()) => {
            digest.update(bytes);
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(path, "it is cut off")),
        Err(e) => Err(failed("read", path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprints::BLOCK_BYTES;

    fn head(blocks: u64) -> JournalHead {
        let disk = |name: &str| DiskState { name: name.parse().expect("a name"), size: blocks * BLOCK_BYTES - 1 };
        JournalHead {
            cycle: CycleId::from_bytes([1; 16]),
            base: None,
            parent: Some(CycleId::from_bytes([2; 16])),
            time: Timestamp::from_millis(3),
            consistency: Consistency::Crash,
            disks: vec![disk("a"), disk("b")],
        }
    }

    fn write(path: &Path) -> Vec<(usize, u64, BlockHash)> {
        let mut writer = JournalWriter::create(path, &head(10_000)).expect("a journal");
        let hash = |n: u64| BlockHash(std::array::from_fn(|i| n.to_le_bytes()[i % 8]));
        let mut blocks: Vec<_> = (0..9000).map(|n| (0, n, hash(n))).collect();
        blocks.extend([(0, 9500, hash(1)), (1, 9501, hash(2)), (1, 9999, BlockHash::ZERO)]);
        blocks.iter().for_each(|(disk, block, hash)| writer.push(*disk, *block, *hash).expect("pushed"));
        writer.seal().expect("sealed");
        blocks
    }

    fn read(path: &Path) -> Result<Vec<(usize, u64, BlockHash)>> {
        let reader = JournalReader::open(path)?;
        assert_eq!(reader.head(), &head(10_000));
        let mut blocks = Vec::new();
        reader.runs(|disk, first, hashes| {
            let run = hashes.chunks(HASH_BYTES).zip(first..).map(|(hash, block)| (disk, block, BlockHash::read(hash)));
            blocks.extend(run);
            Ok(())
        })?;
        Ok(blocks)
    }

    #[test]
    fn a_journal_gives_back_what_was_pushed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("j");
        let blocks = write(&path);
        assert!(!durable::aside(&path).exists());
        assert!(read(&path).expect("read") == blocks);
    }

    #[test]
    fn a_journal_that_is_cut_off_or_changed_anywhere_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("j");
        write(&path);
        let whole = std::fs::read(&path).expect("bytes");
        for at in (0..whole.len()).step_by(1013).chain([whole.len() - 1]) {
            std::fs::write(&path, &whole[..at]).expect("cut off");
            assert!(JournalReader::open(&path).and_then(|r| r.runs(|_, _, _| Ok(()))).is_err(), "cut at {at}");
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            std::fs::write(&path, &changed).expect("changed");
            let outcome = JournalReader::open(&path).and_then(|r| r.runs(|_, _, _| Ok(())));
            assert!(outcome.is_err(), "changed at {at}");
        }
    }
}
