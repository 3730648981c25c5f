//! Rehydrate: the disks of a point, into images or onto existing disks.
//!
//! # Crash consistency
//! A new image has its final name only when it is whole. An existing disk that is being brought up to date carries a mark beside it until it
//! is at the point: killed in between, it says that it is neither old nor new, and running again makes it right.
//!
//! # Damage
//! What cannot be had is reported with disk, range and point, and never replaced silently: the run fails, or, where the
//! operator asks for what is left, writes everything else and fails at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures_util::{StreamExt, stream};
use landfall_disk::{Existing, Format, Target};
use landfall_keys::RecoveryKey;
use landfall_model::{
    ChunkRef, DiskMeta, DiskName, EntryKind, Error, ErrorKind, Extent, MachineName, Progress, Result, Seq, Timestamp,
};
use landfall_vault::{MapView, REGION_BYTES, Selector, Vault, crash_point, region_count, region_len};

use crate::compare::{self, Differences};
use crate::fetch::Fetcher;
use crate::openers::Openers;
use crate::plan::{Fetch, Place, plan};
use crate::write::{self, Written};

/// Regions planned together: chunks that occur several times within 4 GiB of disk are fetched once.
const REGIONS_PER_BATCH: usize = 32;
/// Regions whose maps are loaded, or compared, at once.
const REGIONS_IN_FLIGHT: usize = 4;
/// Requests in flight, each of up to 4 MiB and as much again being opened: some 64 MiB in memory.
const FETCHES_IN_FLIGHT: usize = 6;

/// Where a disk goes.
#[derive(Clone, Debug)]
pub struct TargetSpec {
    /// The disk of the point.
    pub disk: DiskName,
    /// The image or device.
    pub path: PathBuf,
}

/// How to rehydrate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The container.
    pub format: Format,
    /// What to do about a target that exists.
    pub existing: Existing,
    /// Write what can be had, although some cannot.
    pub salvage: bool,
}

/// What was done with a disk.
#[derive(Clone, Debug)]
pub struct DiskOutcome {
    /// Its name.
    pub name: DiskName,
    /// Its size in the point, in bytes.
    pub size: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes that were right already.
    pub skipped_bytes: u64,
}

/// A run that could not be had.
#[derive(Clone, Debug)]
pub struct Damage {
    /// The disk.
    pub disk: DiskName,
    /// The run.
    pub extent: Extent,
    /// Why.
    pub why: String,
}

/// What a rehydrate did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The point.
    pub seq: Seq,
    /// The moment that its bytes are of.
    pub time: Timestamp,
    /// Per disk.
    pub disks: Vec<DiskOutcome>,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Runs that could not be had; empty unless salvage was asked for.
    pub damaged: Vec<Damage>,
    /// Wall time.
    pub elapsed_ms: u64,
}

/// Rehydrates disks of a point.
///
/// # Errors
/// `NotFound` for what does not exist, `Conflict` where a target exists and must not be touched, `NoSpace` (before writing where it can
/// be told), `Corrupt` with disk, range and point.
pub async fn rehydrate(
    vault: &Vault,
    recovery: Arc<RecoveryKey>,
    machine: &MachineName,
    selector: Selector,
    specs: &[TargetSpec],
    options: Options,
    progress: &Arc<Progress>,
) -> Result<Outcome> {
    let start = Instant::now();
    let (machine_log, line) = vault.protected(machine).await?;
    let key = machine_log.select(&line, selector).await.map_err(|e| e.context(format!("machine {machine}")))?;
    let view = MapView::open(&machine_log, &line, key).await?;
    let disks = chosen(&view, specs)?;
    room(&view, &disks, specs, options).await?;
    let mut targets = Vec::with_capacity(disks.len());
    for (disk, spec) in disks.iter().zip(specs) {
        let target = Target::create_or_open(&spec.path, options.format, disk.size, options.existing);
        targets.push(Arc::new(target.map_err(|e| match (Error::from(e), options.existing) {
            (error, Existing::Refuse) if error.kind() == ErrorKind::Conflict => {
                error.context("pass --existing compare to bring it up to date, or --existing overwrite")
            }
            (error, _) => error,
        })?));
    }
    let domain = vault.site().domain_id(&view.meta().domain);
    let work = Arc::new(Work {
        written: disks.iter().map(|_| AtomicU64::new(0)).collect(),
        openers: Openers::new(vault.clone(), recovery, domain),
        fetcher: Fetcher::new(machine_log, line),
        disks,
        targets,
        view,
        format: options.format,
        salvage: options.salvage,
        progress: progress.clone(),
    });
    let damaged = work.run().await?;
    crash_point("rehydrate.before-finish");
    let work = Arc::try_unwrap(work).map_err(|_| Error::new(ErrorKind::Bug, "a task outlived the rehydrate"))?;
    for target in work.targets {
        let target = Arc::try_unwrap(target).map_err(|_| Error::new(ErrorKind::Bug, "a target is still in use"))?;
        if !damaged.is_empty() && !target.is_fresh() {
            // It is neither what it was nor the point: its mark stays.
            continue;
        }
        tokio::task::spawn_blocking(move || target.finish())
            .await
            .map_err(|e| Error::with_source(ErrorKind::Bug, "finishing an image ended early", e))??;
    }
    let outcome = |(disk, written): (&DiskMeta, AtomicU64)| {
        let written_bytes = written.into_inner();
        let skipped_bytes = disk.size.saturating_sub(written_bytes);
        DiskOutcome { name: disk.name.clone(), size: disk.size, written_bytes, skipped_bytes }
    };
    Ok(Outcome {
        seq: key.seq,
        time: work.view.meta().source_time,
        disks: work.disks.iter().zip(work.written).map(outcome).collect(),
        fetched_bytes: vault.store().traffic().fetched_bytes(),
        damaged,
        elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// The disks of the point that the targets name.
fn chosen(view: &MapView, specs: &[TargetSpec]) -> Result<Vec<DiskMeta>> {
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    specs
        .iter()
        .map(|spec| {
            if !names.insert(&spec.disk) || !paths.insert(&spec.path) {
                let why = format!("disk {} or its target {} is named twice", spec.disk, spec.path.display());
                return Err(Error::new(ErrorKind::Usage, why));
            }
            let there = || view.meta().disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", ");
            let disk = view.disk(&spec.disk).ok_or_else(|| {
                let why = format!("point {} has no disk {}: it has {}", view.key().seq, spec.disk, there());
                Error::new(ErrorKind::NotFound, why)
            })?;
            if disk.excluded {
                let why = format!(
                    "disk {} is excluded from protection in point {}: the vault has no content of it",
                    disk.name,
                    view.key().seq
                );
                return Err(Error::new(ErrorKind::NotFound, why));
            }
            Ok(disk.clone())
        })
        .collect()
}

/// Finds out before anything is written whether new images have room: by size where that is enough, else by the data in the maps.
async fn room(view: &MapView, disks: &[DiskMeta], specs: &[TargetSpec], options: Options) -> Result<()> {
    // Several images on one file system share its room.
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    for (disk, spec) in disks.iter().zip(specs) {
        if options.existing == Existing::Compare && spec.path.exists() {
            continue;
        }
        let folder = spec.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let taken = taken.entry(folder.metadata().map_or(0, |m| m.dev())).or_default();
        let available = Target::available_bytes(&spec.path)?.saturating_sub(*taken);
        if available >= disk.size {
            *taken += disk.size;
            continue;
        }
        let mut needed = if options.format == Format::Vhd { disk.size } else { 0 };
        for region in view.described_regions(disk) {
            if needed > available {
                break;
            }
            // A map that cannot be read is reported when its turn comes.
            let Ok(map) = view.region(disk, region).await else { continue };
            let data = map.iter().filter(|e| matches!(e.kind, EntryKind::Data { .. }));
            needed += data.map(|e| u64::from(e.len)).sum::<u64>();
        }
        if needed > available {
            let why = format!(
                "disk {} does not fit: {} has {available} bytes free, at least {needed} are needed; nothing was written",
                disk.name,
                spec.path.display()
            );
            return Err(Error::new(ErrorKind::NoSpace, why));
        }
        *taken += needed;
    }
    Ok(())
}

struct Work {
    view: MapView,
    disks: Vec<DiskMeta>,
    targets: Vec<Arc<Target>>,
    written: Vec<AtomicU64>,
    openers: Openers,
    fetcher: Arc<Fetcher>,
    format: Format,
    salvage: bool,
    progress: Arc<Progress>,
}

impl Work {
    async fn run(self: &Arc<Self>) -> Result<Vec<Damage>> {
        let mut damaged = Vec::new();
        for (number, disk) in self.disks.iter().enumerate() {
            self.progress.add_total(disk.size);
            let described = self.view.described_regions(disk);
            let regions = self.regions(number, described)?;
            let counted: u64 = regions.iter().map(|r| u64::from(region_len(disk.size, *r))).sum();
            self.progress.add_done(disk.size - counted);
            self.clear_padding(number)?;
            for batch in regions.chunks(REGIONS_PER_BATCH) {
                let mut needs = Vec::new();
                let mut found = stream::iter(batch.to_vec())
                    .map(|region| {
                        let work = self.clone();
                        async move { (region, work.region(number, region).await) }
                    })
                    .buffered(REGIONS_IN_FLIGHT);
                while let Some((region, differences)) = found.next().await {
                    let differences = match differences {
                        Ok(differences) => differences,
                        Err(error) if error.kind() == ErrorKind::Corrupt => {
                            let len = u64::from(region_len(disk.size, region));
                            let extent = Extent { start: u64::from(region) * REGION_BYTES, len };
                            self.damage(
                                Damage { disk: disk.name.clone(), extent, why: error.to_string() },
                                &mut damaged,
                            )?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    self.written[number].fetch_add(differences.zeroed, Ordering::Relaxed);
                    needs.extend(differences.needs);
                }
                drop(found);
                self.materialise(needs, &mut damaged).await?;
                let done: u64 = batch.iter().map(|r| u64::from(region_len(disk.size, *r))).sum();
                self.progress.add_done(done);
            }
        }
        Ok(damaged)
    }

    /// On a fresh image only what is described can be anything but zero; of an existing disk, also what has data on it.
    fn regions(&self, number: usize, mut regions: BTreeSet<u32>) -> Result<Vec<u32>> {
        let (target, size) = (&self.targets[number], self.disks[number].size);
        if !target.is_fresh() {
            region_count(size)?;
            let number_of = |byte: u64| u32::try_from(byte / REGION_BYTES).unwrap_or(u32::MAX);
            for data in target.data_extents(Extent { start: 0, len: size })?.iter().filter(|d| d.len > 0) {
                regions.extend(number_of(data.start)..=number_of(data.end() - 1));
            }
        }
        Ok(regions.into_iter().collect())
    }

    /// A container rounds the size of its disk up: what lies behind the disk's end reads as zero.
    fn clear_padding(&self, number: usize) -> Result<()> {
        let (target, size) = (&self.targets[number], self.disks[number].size);
        if self.format != Format::Raw && !target.is_fresh() && target.size() > size {
            target.write_zeroes(Extent::between(size, target.size()))?;
        }
        Ok(())
    }

    /// What a region needs.
    async fn region(self: Arc<Self>, number: usize, region: u32) -> Result<Differences> {
        let disk = &self.disks[number];
        let map = self.view.region(disk, region).await?;
        let base = u64::from(region) * REGION_BYTES;
        if self.targets[number].is_fresh() {
            let need = |e: &landfall_model::Entry| match e.kind {
                EntryKind::Data { chunk, skip } => {
                    let place =
                        Place { disk: number, start: base + u64::from(e.start), len: e.len, skip, compare: false };
                    Some((chunk, place))
                }
                EntryKind::Zero | EntryKind::Excluded => None,
            };
            return Ok(Differences { needs: map.iter().filter_map(need).collect(), zeroed: 0 });
        }
        let entries = map.covering(region_len(disk.size, region));
        let work = self.clone();
        let compared = tokio::task::spawn_blocking(move || {
            compare::region(&work.targets[number], number, base, &entries, work.openers.fingerprinter())
        });
        compared.await.map_err(|e| Error::with_source(ErrorKind::Bug, "a comparison ended early", e))?
    }

    async fn materialise(self: &Arc<Self>, needs: Vec<(ChunkRef, Place)>, damaged: &mut Vec<Damage>) -> Result<()> {
        let epochs: BTreeSet<_> = needs.iter().map(|(chunk, _)| chunk.location.epoch).collect();
        self.openers.prepare(epochs.into_iter()).await?;
        let mut done =
            stream::iter(plan(needs)).map(|fetch| self.clone().serve(fetch)).buffer_unordered(FETCHES_IN_FLIGHT);
        while let Some(written) = done.next().await {
            let written = written?;
            for (disk, bytes) in written.bytes {
                self.written[disk].fetch_add(bytes, Ordering::Relaxed);
            }
            for (place, why) in written.damaged {
                let disk = self.disks[place.disk].name.clone();
                self.damage(Damage { disk, extent: place.extent(), why }, damaged)?;
            }
        }
        Ok(())
    }

    /// Keeps a run that cannot be had, where the operator asked for what is left.
    fn damage(&self, damage: Damage, damaged: &mut Vec<Damage>) -> Result<()> {
        if !self.salvage {
            return Err(self.damage_error(&damage));
        }
        damaged.push(damage);
        Ok(())
    }

    fn damage_error(&self, damage: &Damage) -> Error {
        let extent = damage.extent;
        Error::corrupt(format!(
            "disk {} bytes {}..{} of point {} cannot be had: {}; other ranges can be saved with --salvage, or take another point",
            damage.disk,
            extent.start,
            extent.end(),
            self.view.key().seq,
            damage.why
        ))
    }

    /// Fetches a range and writes what is in it.
    async fn serve(self: Arc<Self>, fetch: Fetch) -> Result<Written> {
        let bytes = match self.fetcher.fetch(&fetch).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let places = fetch.chunks.iter().flat_map(|c| &c.places);
                let damaged = places.map(|p| (*p, error.to_string())).collect();
                return Ok(Written { bytes: Vec::new(), damaged });
            }
            Err(error) => return Err(error),
        };
        self.progress.add_moved(bytes.len() as u64);
        let work = self.clone();
        tokio::task::spawn_blocking(move || write::write(&work.openers, &work.targets, &fetch, bytes))
            .await
            .map_err(|e| Error::with_source(ErrorKind::Bug, "a write ended early", e))?
    }
}
