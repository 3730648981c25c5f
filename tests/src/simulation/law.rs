//! What must be true of a vault, whatever happened: read with the recovery key, and compared with what the machines remember.
//!
//! - Every point is a cut of its machine, byte for byte, and later than the one before it.
//! - The points of a machine are one chain without a hole, and each cut is in at most one of them.
//! - What was committed first under a number stays.
//! - What was said to be committed is there, at the number that was said, as that cut or a later one.
//! - What was spooled is in the newest point, or a later cut is: see [`super::world`], which waits for a last cut of each machine.
//! - `landfall verify` finds nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use landfall_keys::EpochOpener;
use landfall_model::{
    ChunkRef, CycleId, DiskMeta, EntryKind, EpochId, Error, MachineId, Progress, RegionMap, Result, Seq, Source,
    Timeline,
};
use landfall_vault::{
    Decompressor, Machine, MapView, Point, REGION_BYTES, SignedPoint, Store, Vault, follows, layout, load_page, verify,
};

use super::agent::{Agent, Cut, Said};
use super::disk::{BLOCK, Image};
use super::store::{Bucket, Keys};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Looked {
    /// Points.
    pub points: u64,
    /// Chunks that were opened.
    pub chunks: u64,
    /// Segments in the vault.
    pub segments: u64,
    /// Times that a gateway took a machine over from another.
    pub takeovers: u64,
    /// Cycles that were said to be spooled and are no points: a later one has what they had.
    pub superseded: u64,
}

/// Reads the vault and says what breaks the law.
///
/// # Errors
/// The first thing that does.
pub async fn check(bucket: &Bucket, agents: &[Agent]) -> std::result::Result<Looked, String> {
    let store = Store::over(bucket.objects(), object_store::path::Path::default(), "simulated://bucket");
    let vault = Vault::open_with_recovery_key(store, &Keys::get().recovery).await.map_err(|e| e.to_string())?;
    let mut looked = Looked::default();
    let mut reader = Reader::new(vault.clone()).map_err(|e| e.to_string())?;
    if let Some(name) = bucket.changed_point().await {
        return Err(format!("{name} is not what was committed there first: a point was overwritten or lost"));
    }
    for agent in agents {
        if let Some(broken) = agent.broken().first() {
            return Err(broken.clone());
        }
        let machine = vault.machine(&agent.name);
        let points = reader.machine(&machine, agent).await.map_err(|e| format!("{}: {e}", agent.name))?;
        looked.points += points.len() as u64;
        let there: HashSet<CycleId> = points.values().copied().collect();
        let spooled: HashSet<CycleId> =
            agent.said().into_iter().filter(|(_, said)| *said == Said::Spooled).map(|(cycle, _)| cycle).collect();
        looked.superseded += spooled.difference(&there).count() as u64;
        let claimed = machine.generations().await.map_err(|e| e.to_string())?.len() as u64;
        looked.takeovers += claimed.saturating_sub(1);
        said(agent, &points).map_err(|e| format!("{}: {e}", agent.name))?;
    }
    looked.chunks = reader.chunks.len() as u64;
    // Not a deep one: all that is referred to has been opened.
    let report = verify::verify(&vault, None, None, &verify::Heads::new(), &Arc::new(Progress::default())).await;
    let report = report.map_err(|e| e.to_string())?;
    looked.segments = report.segments;
    match report.findings.first() {
        Some(finding) => Err(format!("verify: {}: {}", finding.object, finding.what)),
        None => Ok(looked),
    }
}

/// What was said to be committed is there.
fn said(agent: &Agent, points: &BTreeMap<(Timeline, Seq), CycleId>) -> std::result::Result<(), String> {
    let cuts = agent.cuts();
    for (cycle, said) in agent.said() {
        let Said::Committed(timeline, seq) = said else { continue };
        let Some(there) = points.get(&(timeline, seq)) else {
            return Err(format!("cycle {cycle} was said to be committed as point {seq}, which is not in the vault"));
        };
        let (of, wanted) = (cuts.get(there).map(|c| c.order), cuts.get(&cycle).map(|c| c.order));
        if of < wanted {
            return Err(format!("cycle {cycle} was said to be committed as point {seq}, which is of an older cut"));
        }
    }
    Ok(())
}

/// Reads points as whoever has the recovery key does; opens each chunk once.
struct Reader {
    vault: Vault,
    decompressor: Decompressor,
    openers: HashMap<EpochId, EpochOpener>,
    chunks: HashMap<(MachineId, ChunkRef), Bytes>,
    objects: HashMap<String, Bytes>,
}

impl Reader {
    fn new(vault: Vault) -> Result<Self> {
        let (openers, chunks, objects) = (HashMap::new(), HashMap::new(), HashMap::new());
        Ok(Self { vault, decompressor: Decompressor::new()?, openers, chunks, objects })
    }

    async fn object(&mut self, name: &str) -> Result<Bytes> {
        if let Some(bytes) = self.objects.get(name) {
            return Ok(bytes.clone());
        }
        let bytes = self.vault.store().get(name).await?;
        let bytes = bytes.ok_or_else(|| Error::corrupt(format!("{name} is missing, and a map refers to it")))?;
        self.objects.insert(name.to_owned(), bytes.clone());
        Ok(bytes)
    }

    /// The points of a machine: each is compared with its cut.
    async fn machine(&mut self, machine: &Machine, agent: &Agent) -> Result<BTreeMap<(Timeline, Seq), CycleId>> {
        let cuts = agent.cuts();
        let (mut points, mut seen) = (BTreeMap::new(), HashMap::new());
        let mut images: Vec<Image> = Vec::new();
        let mut before: Option<(Point, Cut)> = None;
        let line = machine.line().await?;
        for key in &line {
            let bytes = self.object(&layout::point(machine.id(), key.timeline, key.seq)).await?;
            let SignedPoint { point, .. } = machine.open_signed(bytes)?;
            follows(&point.header.position, before.as_ref().map(|(p, _)| (&p.header.position, p.digest)))?;
            let seq = point.seq();
            let broken = |why: String| Error::corrupt(format!("point {seq}: {why}"));
            let cycle = point.meta().cycle.ok_or_else(|| broken("it is of no cycle".to_owned()))?;
            let cut = cuts.get(&cycle).ok_or_else(|| broken(format!("nobody made cut {cycle}")))?;
            if let Some(twice) = seen.insert(cycle, seq) {
                return Err(broken(format!("cut {cycle} is in point {twice} too")));
            }
            if let Some((last, older)) = &before {
                if cut.order <= older.order {
                    return Err(broken(format!("cut number {} comes after number {}", cut.order, older.order)));
                }
                if point.meta().source_time <= last.meta().source_time {
                    return Err(broken("its time is not after that of the one before".to_owned()));
                }
            }
            if images.is_empty() {
                images = cut.disks.iter().map(|disk| Image::zero(disk.size())).collect();
            }
            self.lay(machine, &point, &mut images).await?;
            compare(&images, &cut.disks).map_err(broken)?;
            // What is equal is shared: the next comparison is of what differs from here.
            images.clone_from(&cut.disks);
            points.insert((key.timeline, key.seq), cycle);
            before = Some((point, cut.clone()));
        }
        if let (Some(last), Some((_, cut))) = (line.last(), &before) {
            self.newest(machine, &MapView::open(machine, &line, *last).await?, &cut.disks).await?;
        }
        Ok(points)
    }

    /// Lays the changes of a point over what the disks held before it.
    async fn lay(&mut self, machine: &Machine, point: &Point, images: &mut [Image]) -> Result<()> {
        for (number, pages) in point.body.disks.iter().enumerate() {
            for (region, page) in pages {
                let map = load_page(machine, page).await?;
                self.fill(machine, *region, &map, &mut images[number]).await?;
            }
        }
        Ok(())
    }

    async fn fill(&mut self, machine: &Machine, region: u32, map: &RegionMap, image: &mut Image) -> Result<()> {
        let base = usize::try_from(u64::from(region) * REGION_BYTES).unwrap_or(usize::MAX);
        for entry in map.iter() {
            let at = base + entry.start as usize;
            match &entry.kind {
                EntryKind::Data { chunk, skip } => {
                    let bytes = self.chunk(machine, chunk).await?;
                    let (from, to) = (*skip as usize, *skip as usize + entry.len as usize);
                    image.write(at, &bytes[from..to]);
                }
                EntryKind::Zero => image.write(at, &vec![0; entry.len as usize]),
                EntryKind::Excluded => return Err(Error::corrupt("a run is excluded that is protected")),
            }
        }
        Ok(())
    }

    /// The newest point as a restore reads it: through its checkpoint, where there is one.
    async fn newest(&mut self, machine: &Machine, view: &MapView, wanted: &[Image]) -> Result<()> {
        let disks: Vec<DiskMeta> = view.meta().disks.clone();
        for (disk, wanted) in disks.iter().zip(wanted) {
            let mut image = Image::zero(wanted.size());
            for region in view.described_regions(disk) {
                let map = view.region(disk, region).await?;
                self.fill(machine, region, &map, &mut image).await?;
            }
            compare(&[image], std::slice::from_ref(wanted))
                .map_err(|e| Error::corrupt(format!("the newest point, through its maps: {e}")))?;
        }
        Ok(())
    }

    async fn chunk(&mut self, machine: &Machine, chunk: &ChunkRef) -> Result<Bytes> {
        // Inline frames are of one machine.
        let key = (machine.id(), *chunk);
        if let Some(bytes) = self.chunks.get(&key) {
            return Ok(bytes.clone());
        }
        let at = chunk.location;
        let (name, base) = match at.source {
            Source::Segment(id) => (layout::segment(id), 0),
            Source::Point(timeline, seq) => {
                let name = layout::point(machine.id(), timeline, seq);
                let point = machine.open_signed(self.object(&name).await?)?.point;
                (name, usize::try_from(point.header.inline_start()).unwrap_or(usize::MAX))
            }
        };
        let object = self.object(&name).await?;
        let from = base + at.offset as usize;
        let frame = object.get(from..from + at.stored_len as usize);
        let mut frame = frame.ok_or_else(|| Error::corrupt(format!("{name} is shorter than a map says")))?.to_vec();
        let domain = self.vault.site().domain_id(&"default".parse().map_err(|_| Error::corrupt("no name"))?);
        if !self.openers.contains_key(&at.epoch) {
            let opener = self.vault.open_epoch(&Keys::get().recovery, domain, at.epoch).await?;
            self.openers.insert(at.epoch, opener);
        }
        let mut out = vec![0; at.raw_len as usize];
        let names = self.vault.site().fingerprinter(domain);
        let vault = self.vault.config().vault_id;
        self.decompressor.open_content(&self.openers[&at.epoch], &names, vault, chunk, &mut frame, &mut out)?;
        let out = Bytes::from(out);
        self.chunks.insert(key, out.clone());
        Ok(out)
    }
}

/// Whether disks hold what they should.
fn compare(found: &[Image], wanted: &[Image]) -> std::result::Result<(), String> {
    for (number, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        if let Some(block) = (0..wanted.count()).find(|block| !found.same(wanted, *block)) {
            let at = block * BLOCK;
            return Err(format!("disk {number} differs from what was cut, in the {BLOCK} bytes at {at}"));
        }
    }
    Ok(())
}
