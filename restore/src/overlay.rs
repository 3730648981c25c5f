//! A disk of a point that can be written: what is written lies in a sparse file, and a map beside it says which blocks.
//!
//! # Consistency
//! A block is in the map after all of it is in the file: one that is written in part is filled from the vault first. On a flush the file is made
//! durable, then the map replaced by one that names no block which was not in the file before. So after a crash the disk is as it was at the last
//! flush, but for writes that came later and may or may not be there: what a disk may do.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use landfall_model::num::to_usize;
use landfall_model::{BlockSet, Error, ErrorKind, Extent, Result};
use landfall_nbd::server::{Disk, Run};
use rustix::fs::{FallocateFlags, fallocate};

use crate::disk_view::DiskView;
use crate::export;

/// Bytes of a block of the map.
const BLOCK_BYTES: u64 = 64 * 1024;
const MAGIC: &[u8; 8] = b"LANDOVL1";

/// A disk with an overlay.
pub struct Overlay {
    base: DiskView,
    shared: Arc<Shared>,
    /// Held while a block that is not in the map is filled and written.
    filling: tokio::sync::Mutex<()>,
    /// Held while a map is written.
    saving: tokio::sync::Mutex<()>,
}

struct Shared {
    file: File,
    path: PathBuf,
    map_path: PathBuf,
    /// Says of which disk of which point it is an overlay.
    of: [u8; 32],
    blocks: Mutex<Blocks>,
}

struct Blocks {
    set: BlockSet,
    /// It has blocks that the map on the disk has not.
    changed: bool,
}

fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&e), format!("cannot {what} the overlay {}", path.display()), e)
}

impl Overlay {
    /// Opens an overlay, or makes it. Blocks.
    ///
    /// # Errors
    /// `Conflict` where the file is in use, or of another point or disk, or no overlay; `Corrupt` where its map is damaged.
    pub fn open(base: DiskView, path: &Path) -> Result<Self> {
        let size = base.meta().size;
        let mut map_path = path.as_os_str().to_owned();
        map_path.push(".blocks");
        let map_path = PathBuf::from(map_path);
        let of = base.identity();
        let fail = |e| failed("open", path, e);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.map_err(fail)?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => {
                let why = format!("the overlay {} is in use by another landfall", path.display());
                Error::new(ErrorKind::Conflict, why)
            }
            std::fs::TryLockError::Error(e) => fail(e),
        })?;
        let set = match std::fs::read(&map_path) {
            Ok(map) => decode(&map, &of, size).map_err(|e| e.context(map_path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                if file.metadata().map_err(fail)?.len() > 0 {
                    let why = format!("{} exists and is no overlay: choose another file", path.display());
                    return Err(Error::new(ErrorKind::Conflict, why));
                }
                BlockSet::new(size, BLOCK_BYTES)
            }
            Err(e) => return Err(failed("read the map of", path, e)),
        };
        file.set_len(size).map_err(fail)?;
        let blocks = Mutex::new(Blocks { set, changed: true });
        let shared = Arc::new(Shared { file, path: path.to_owned(), map_path, of, blocks });
        // At once: from here on the file is known to be an overlay.
        shared.save()?;
        Ok(Self { base, shared, filling: tokio::sync::Mutex::default(), saving: tokio::sync::Mutex::default() })
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Shared) -> Result<T> + Send + 'static) -> Result<T> {
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared)).await;
        done.map_err(|e| Error::with_source(ErrorKind::Bug, "a task of an overlay died", e))?
    }

    /// Brings the parts of a block that a write leaves out into the file: the block is not in the map.
    async fn fill_around(&self, extent: Extent) -> Result<()> {
        let size = self.base.meta().size;
        for block in [extent.start / BLOCK_BYTES, (extent.end() - 1) / BLOCK_BYTES] {
            let whole = Extent::between(block * BLOCK_BYTES, ((block + 1) * BLOCK_BYTES).min(size));
            if self.shared.has(whole.start) {
                continue;
            }
            let before = Extent::between(whole.start, extent.start.clamp(whole.start, whole.end()));
            let after = Extent::between(extent.end().clamp(whole.start, whole.end()), whole.end());
            for part in [before, after] {
                if part.len == 0 || part.intersection(&extent).is_some() {
                    continue;
                }
                let mut bytes = vec![0; to_usize(part.len)];
                self.base.read(part.start, &mut bytes).await?;
                self.run(move |shared| shared.write(part.start, &bytes)).await?;
            }
        }
        Ok(())
    }

    /// Changes a range: all of its blocks are in the map afterwards.
    async fn change(&self, extent: Extent, work: impl FnOnce(&Shared) -> Result<()> + Send + 'static) -> Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        // What is in the map already needs nothing but the write.
        let new = !self.shared.has_all(extent);
        let filling = if new { Some(self.filling.lock().await) } else { None };
        if new {
            self.fill_around(extent).await?;
        }
        self.run(move |shared| {
            work(shared)?;
            if new {
                let mut blocks = shared.blocks();
                blocks.set.insert(extent);
                blocks.changed = true;
            }
            Ok(())
        })
        .await?;
        drop(filling);
        Ok(())
    }
}

impl Shared {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, byte: u64) -> bool {
        self.blocks().set.intersects(&Extent { start: byte, len: 1 })
    }

    fn has_all(&self, extent: Extent) -> bool {
        self.blocks().set.runs_within(extent).next() == Some(extent)
    }

    fn write(&self, start: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, start).map_err(|e| failed("write", &self.path, e))
    }

    fn zero(&self, extent: Extent) -> Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, how, extent.start, extent.len) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeroes = vec![0; to_usize(BLOCK_BYTES)];
                let mut at = extent.start;
                while at < extent.end() {
                    let len = (extent.end() - at).min(BLOCK_BYTES);
                    self.write(at, &zeroes[..to_usize(len)])?;
                    at += len;
                }
                Ok(())
            }
            Err(e) => Err(failed("punch a hole into", &self.path, e.into())),
        }
    }

    fn save(&self) -> Result<()> {
        let (set, changed) = {
            let mut blocks = self.blocks();
            (blocks.set.clone(), std::mem::take(&mut blocks.changed))
        };
        let saved = self
            .file
            .sync_data()
            .map_err(|e| failed("flush", &self.path, e))
            .and_then(|()| if changed { self.replace_map(&encode(&set, &self.of)) } else { Ok(()) });
        if saved.is_err() && changed {
            self.blocks().changed = true;
        }
        saved
    }

    fn replace_map(&self, bytes: &[u8]) -> Result<()> {
        let new = self.map_path.with_extension("blocks-new");
        let fail = |e| failed("save the map of", &self.path, e);
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        let mut file = made.map_err(fail)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
        std::fs::rename(&new, &self.map_path).map_err(fail)?;
        let folder = self.map_path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)
    }
}

/// `LANDOVL1 | of 32 | size u64 | runs: start u64, length u64 | BLAKE3 of all before`, little-endian.
fn encode(set: &BlockSet, of: &[u8; 32]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(of);
    out.extend_from_slice(&set.disk_size().to_le_bytes());
    set.runs().for_each(|run| out.extend([run.start, run.len].into_iter().flat_map(u64::to_le_bytes)));
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

fn decode(bytes: &[u8], of: &[u8; 32], size: u64) -> Result<BlockSet> {
    let damaged =
        || Error::corrupt("the map of the overlay is damaged: what was written since the point is lost with it");
    let (body, digest) = bytes.split_last_chunk::<32>().ok_or_else(damaged)?;
    if blake3::hash(body).as_bytes() != digest || !body.starts_with(MAGIC) {
        return Err(damaged());
    }
    let number = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    if body.get(8..40) != Some(of) || number(40) != Some(size) {
        let why =
            "the overlay is of another disk or another point: choose another file, or the point that it was made for";
        return Err(Error::new(ErrorKind::Conflict, why));
    }
    let mut set = BlockSet::new(size, BLOCK_BYTES);
    let mut at = 48;
    while at < body.len() {
        let (start, len) = number(at).zip(number(at + 8)).ok_or_else(damaged)?;
        set.insert(Extent { start, len });
        at += 16;
    }
    Ok(set)
}

#[async_trait]
impl Disk for Overlay {
    fn size(&self) -> u64 {
        self.base.meta().size
    }

    fn writable(&self) -> bool {
        true
    }

    fn description(&self) -> String {
        export::description(&self.base, "writes go to an overlay")
    }

    async fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        let extent = Extent { start, len: out.len() as u64 };
        for run in self.runs(extent) {
            let part = to_usize(run.extent.start - start)..to_usize(run.extent.end() - start);
            if run.data {
                let at = run.extent.start;
                let mut bytes = vec![0; part.len()];
                let read = self.run(move |shared| {
                    let read = shared.file.read_exact_at(&mut bytes, at);
                    read.map(|()| bytes).map_err(|e| failed("read", &shared.path, e))
                });
                out[part].copy_from_slice(&read.await?);
            } else {
                self.base.read(run.extent.start, &mut out[part]).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, start: u64, bytes: Bytes) -> Result<()> {
        let extent = Extent { start, len: bytes.len() as u64 };
        self.change(extent, move |shared| shared.write(start, &bytes)).await
    }

    async fn zero(&self, extent: Extent) -> Result<()> {
        self.change(extent, move |shared| shared.zero(extent)).await
    }

    async fn flush(&self) -> Result<()> {
        let _one = self.saving.lock().await;
        self.run(Shared::save).await
    }

    async fn status(&self, extent: Extent, runs_max: usize) -> Result<Vec<Run>> {
        let mut found: Vec<Run> = Vec::new();
        for run in self.runs(extent) {
            if run.data {
                found.push(run);
            } else {
                let below = self.base.status(run.extent, runs_max).await?;
                let reached = below.last().map_or(run.extent.start, |last| last.extent.end());
                found.extend(below);
                if reached < run.extent.end() {
                    break;
                }
            }
            if found.len() >= runs_max {
                break;
            }
        }
        found.truncate(runs_max.max(1));
        Ok(found)
    }
}

impl Overlay {
    /// A range as runs that are in the file (`data`) or not.
    fn runs(&self, extent: Extent) -> Vec<Run> {
        let blocks = self.shared.blocks();
        let mut runs = Vec::new();
        let mut at = extent.start;
        for here in blocks.set.runs_within(extent) {
            if here.start > at {
                runs.push(Run { extent: Extent::between(at, here.start), data: false });
            }
            runs.push(Run { extent: here, data: true });
            at = here.end();
        }
        if at < extent.end() {
            runs.push(Run { extent: Extent::between(at, extent.end()), data: false });
        }
        runs
    }
}
