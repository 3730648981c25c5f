//! Verification: is everything that the points promise there, and is it what it was?
//!
//! | level | needs | finds |
//! |---|---|---|
//! | plain | site key | signatures, the chain, holes, mixing, references to objects that are missing, short or other than said |
//! | deep | recovery key | the same, and every frame of every segment opened and compared with its name |
//!
//! Rollback of a whole vault is found by heads that were remembered outside of it. What is wrong is reported, never repaired.

mod deep;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use landfall_keys::{RecoveryKey, WrappedKind};
use landfall_model::{
    ChunkRef, Digest, DomainId, EntryKind, EpochId, ErrorKind, MachineId, MachineName, Progress, SegmentId, Seq,
    Source, Timeline,
};
use serde::{Deserialize, Serialize};

use crate::body::PageRef;
use crate::index;
use crate::layout::{self, Name};
use crate::machine::{Machine, Point, follows};
use crate::record::Position;
use crate::vault::Vault;
use crate::view::load_page;
use landfall_model::Result;

/// Directories checked at once.
const DIRECTORIES_IN_FLIGHT: usize = 8;

/// The newest point of a machine that this site has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its number.
    pub seq: Seq,
    /// Its record digest.
    pub digest: Digest,
}

/// Heads that were remembered outside of the vault.
pub type Heads = BTreeMap<MachineId, Head>;

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The object, relative to the vault.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// The machines' points that need it.
    pub affects: Vec<String>,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Machines checked.
    pub machines: u64,
    /// Recovery points checked.
    pub points: u64,
    /// Segments checked.
    pub segments: u64,
    /// Frames opened.
    pub frames_opened: u64,
    /// Segments that no point refers to (a run that was killed leaves some; the next run uses them).
    pub unreferenced_segments: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// The newest point of each machine as the vault shows it now.
    #[serde(skip)]
    pub heads: Heads,
}

/// Checks a vault, or one machine of it.
///
/// # Errors
/// `Unavailable` where the store is; what is wrong with the vault is in the report and no error.
pub async fn verify(
    vault: &Vault,
    only: Option<&MachineName>,
    deep: Option<Arc<RecoveryKey>>,
    heads: &Heads,
    progress: &Arc<Progress>,
) -> Result<Report> {
    let mut check = Check::new(vault.clone());
    check.wrapped_keys().await?;
    check.list_segments().await?;
    check.beside_the_points().await?;
    let machines = match only {
        Some(name) => vec![vault.machine(name)],
        None => vault.machines().await?,
    };
    let mut chains = BTreeMap::new();
    for machine in &machines {
        chains.insert(machine.id(), check.machine(machine).await?);
    }
    let wanted = only.map(|name| vault.site().machine_id(name));
    for (machine, head) in heads.iter().filter(|(id, _)| wanted.is_none_or(|w| w == **id)) {
        check.remembered(*machine, head, chains.get(machine));
    }
    check.inline_references();
    check.directories().await?;
    check.epochs_are_there();
    if let Some(recovery) = deep {
        check.deep(recovery, only.is_none(), progress).await?;
    }
    Ok(check.finish())
}

/// Digests of a machine's points, by place.
type Chain = BTreeMap<(Timeline, Seq), (Position, Digest)>;

/// A reference to a frame as 8 bytes: a large vault has many. Two that differ are taken for equal once in 2^64.
fn reference(chunk: &ChunkRef) -> u64 {
    let mut hasher = DefaultHasher::new();
    chunk.hash(&mut hasher);
    hasher.finish()
}

struct Check {
    vault: Vault,
    report: Report,
    /// Segments in the store, with their sizes.
    stored: BTreeMap<SegmentId, u64>,
    /// What points and checkpoints refer to in each segment.
    references: BTreeMap<SegmentId, HashSet<u64>>,
    /// From which point on a machine may need a segment.
    users: BTreeMap<SegmentId, BTreeMap<MachineName, Seq>>,
    /// Inline frames that maps refer to, by point.
    inline: BTreeMap<(MachineId, Timeline, Seq), HashSet<ChunkRef>>,
    /// Length of the inline frames of each point.
    inline_lens: BTreeMap<(MachineId, Timeline, Seq), u64>,
    /// Epochs whose wrapped key is there and right, and the domain that they are of.
    epochs: BTreeMap<EpochId, DomainId>,
    /// Epochs that frames need, and a place that does.
    epochs_needed: BTreeMap<EpochId, String>,
    pages_seen: HashSet<ChunkRef>,
    /// Findings that many references lead to.
    told: HashSet<(String, String)>,
}

impl Check {
    fn new(vault: Vault) -> Self {
        Self {
            vault,
            report: Report::default(),
            stored: BTreeMap::new(),
            references: BTreeMap::new(),
            users: BTreeMap::new(),
            inline: BTreeMap::new(),
            inline_lens: BTreeMap::new(),
            epochs: BTreeMap::new(),
            epochs_needed: BTreeMap::new(),
            pages_seen: HashSet::new(),
            told: HashSet::new(),
        }
    }

    fn found(&mut self, object: impl Into<String>, what: impl Into<String>) {
        let finding = Finding { object: object.into(), what: what.into(), affects: Vec::new() };
        tracing::debug!(object = finding.object, what = finding.what, "verify: finding");
        self.report.findings.push(finding);
    }

    /// Keeps what is wrong with an object as a finding; lets failures of the store pass on.
    fn note<T>(&mut self, object: &str, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Key | ErrorKind::Unsupported
                ) =>
            {
                self.found(object, error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn wrapped_keys(&mut self) -> Result<()> {
        let site = self.vault.site().id();
        for recipient in self.vault.config().recipients()? {
            let name = layout::site_key(site, recipient.id());
            let wrapped = self.vault.wrapped(&name, WrappedKind::SiteKey(site), recipient.id()).await;
            self.note(&name, wrapped)?;
        }
        for object in self.vault.store().list(layout::EPOCHS).await? {
            let Some(Name::Epoch(domain, epoch, recipient)) = layout::parse(&object.name) else { continue };
            let wrapped = self.vault.wrapped(&object.name, WrappedKind::Epoch { domain, epoch }, recipient).await;
            if self.note(&object.name, wrapped)?.is_some() {
                self.epochs.insert(epoch, domain);
            }
        }
        Ok(())
    }

    async fn list_segments(&mut self) -> Result<()> {
        for object in self.vault.store().list(layout::SEGMENTS).await? {
            if let Some(Name::Segment(id)) = layout::parse(&object.name) {
                self.stored.insert(id, object.size);
            }
        }
        Ok(())
    }

    /// Heartbeats, revocations, jobs, reports of drills, orders, boot profiles: no restore needs them, and none of them need be there.
    async fn beside_the_points(&mut self) -> Result<()> {
        for gateway in self.vault.gateways().await? {
            let read = self.vault.heartbeat(gateway).await;
            self.note(&layout::heartbeat(gateway), read)?;
        }
        for key in self.vault.revocations().await? {
            let read = self.vault.revocation(key).await;
            self.note(&key.name(), read)?;
        }
        for id in self.vault.jobs().await? {
            let read = self.vault.job(id).await;
            self.note(&layout::job(id), read)?;
        }
        for id in self.vault.orders().await? {
            let read = self.vault.order(id).await;
            self.note(&layout::order(id), read)?;
        }
        for machine in self.vault.profiled().await? {
            for (name, read) in self.vault.check_profiles(machine).await? {
                self.note(&name, read)?;
            }
        }
        for key in self.vault.drills().await? {
            let read = self.vault.drill_whole(key).await;
            self.note(&key.name(), read)?;
        }
        Ok(())
    }

    async fn machine(&mut self, machine: &Machine) -> Result<Chain> {
        self.report.machines += 1;
        let generations = machine.generations().await?;
        for generation in &generations {
            let read = machine.generation(*generation).await;
            self.note(&layout::generation(machine.id(), *generation), read)?;
        }
        let mut chain = Chain::new();
        for timeline in machine.timelines().await? {
            let keys = machine.points_of(timeline).await?;
            if keys.is_empty() {
                self.found(
                    format!("{}/{}", layout::timelines(machine.id()), timeline.key()),
                    "a timeline without points",
                );
            }
            for key in keys {
                let name = layout::point(machine.id(), timeline, key.seq);
                let read = machine.point(key).await;
                let Some(point) = self.note(&name, read)? else { continue };
                self.report.points += 1;
                let position = point.header.position;
                let before = chain.get(&(position.parent_timeline, Seq(position.seq.0.saturating_sub(1))));
                let chained = follows(&position, before.map(|(p, d)| (p, *d)));
                self.note(&name, chained)?;
                if generations.binary_search(&position.generation).is_err() {
                    let missing = layout::generation(machine.id(), position.generation);
                    self.found(missing, format!("it is missing, and point {} was written under it", key.seq));
                }
                let head = Head { timeline, seq: key.seq, digest: point.digest };
                self.report.heads.insert(machine.id(), head);
                chain.insert((timeline, key.seq), (position, point.digest));
                self.inline_lens.insert((machine.id(), timeline, key.seq), point.header.inline_len);
                self.inline_frames(&point, &name).await?;
                self.references_of(machine, &point, &name).await?;
            }
            for key in machine.checkpoints_of(timeline).await? {
                let name = layout::checkpoint(machine.id(), timeline, key.seq);
                let read = machine.checkpoint(key).await;
                let Some(checkpoint) = self.note(&name, read)? else { continue };
                let point = chain.get(&(timeline, key.seq)).map(|(_, digest)| *digest);
                if point != Some(checkpoint.header.position.previous) {
                    self.found(&name, "it is not the checkpoint of the point with its number");
                }
                self.references_of(machine, &checkpoint, &name).await?;
            }
        }
        Ok(chain)
    }

    fn remembered(&mut self, machine: MachineId, head: &Head, chain: Option<&Chain>) {
        let name = layout::point(machine, head.timeline, head.seq);
        match chain.and_then(|c| c.get(&(head.timeline, head.seq))) {
            Some((_, digest)) if *digest == head.digest => {}
            Some(_) => self.found(
                name,
                "it is not the point that this site committed or saw: the vault was rolled back or rewritten",
            ),
            None => self.found(name, "this site committed or saw it, and it is gone: the vault was rolled back"),
        }
    }

    /// The inline frames against the digest that the signed header carries.
    async fn inline_frames(&mut self, point: &Point, name: &str) -> Result<()> {
        if point.header.inline_len == 0 {
            return Ok(());
        }
        let start = point.header.inline_start();
        let bytes = self.vault.store().get_range(name, start, start + point.header.inline_len).await?;
        let digest = bytes.map(|b| Digest::from_bytes(*blake3::hash(&b).as_bytes()));
        if digest != Some(point.header.inline_digest) {
            self.found(name, "its inline frames are not those that were signed");
        }
        Ok(())
    }

    async fn references_of(&mut self, machine: &Machine, record: &Point, name: &str) -> Result<()> {
        for (id, size) in &record.body.segments {
            let seq = record.seq();
            let of_machine = self.users.entry(*id).or_default();
            let first = of_machine.entry(record.meta().machine.clone()).or_insert(seq);
            *first = (*first).min(seq);
            self.references.entry(*id).or_default();
            match self.stored.get(id) {
                Some(stored) if stored == size => {}
                Some(stored) => {
                    let what = format!("it has {stored} bytes, {name} says {size}");
                    self.found_once(&layout::segment(*id), what);
                }
                None => self.found_once(&layout::segment(*id), "it is missing".to_owned()),
            }
        }
        let disks = record.meta().disks.clone();
        for (disk, pages) in disks.iter().zip(&record.body.disks) {
            for (region, page) in pages {
                if let PageRef::Stored(chunk) = page {
                    if !self.pages_seen.insert(*chunk) {
                        continue;
                    }
                    self.refer(machine, chunk, name);
                }
                let place = format!("{name}: disk {}, page of region {region}", disk.name);
                let loaded = load_page(machine, page).await;
                let Some(map) = self.note(&place, loaded)? else { continue };
                for entry in map.iter() {
                    if let EntryKind::Data { chunk, .. } = &entry.kind {
                        self.refer(machine, chunk, name);
                    }
                }
            }
        }
        Ok(())
    }

    fn found_once(&mut self, object: &str, what: String) {
        if self.told.insert((object.to_owned(), what.clone())) {
            self.found(object, what);
        }
    }

    fn refer(&mut self, machine: &Machine, chunk: &ChunkRef, name: &str) {
        if chunk.location.epoch != EpochId::INDEX && !self.epochs_needed.contains_key(&chunk.location.epoch) {
            self.epochs_needed.insert(chunk.location.epoch, name.to_owned());
        }
        match chunk.location.source {
            Source::Segment(id) => {
                self.references.entry(id).or_default().insert(reference(chunk));
            }
            Source::Point(timeline, seq) => {
                self.inline.entry((machine.id(), timeline, seq)).or_default().insert(*chunk);
            }
        }
    }

    /// Every reference to an inline frame against the point that should hold it.
    fn inline_references(&mut self) {
        let mut wrong = BTreeSet::new();
        for (point, chunks) in &self.inline {
            let len = self.inline_lens.get(point);
            let outside = |c: &ChunkRef| {
                let end = u64::from(c.location.offset) + u64::from(c.location.stored_len);
                len.is_none_or(|len| end > *len)
            };
            if chunks.iter().any(outside) {
                wrong.insert(*point);
            }
        }
        for (machine, timeline, seq) in wrong {
            let what = "maps refer to inline frames that are not in it";
            self.found(layout::point(machine, timeline, seq), what);
        }
    }

    /// Every reference into a segment against the segment's own directory.
    async fn directories(&mut self) -> Result<()> {
        let unlisted: Vec<SegmentId> =
            self.references.keys().filter(|id| !self.stored.contains_key(id)).copied().collect();
        for id in unlisted {
            self.found_once(&layout::segment(id), "it is missing".to_owned());
        }
        let vault = self.vault.clone();
        let referenced: Vec<(SegmentId, u64)> =
            self.stored.iter().filter(|(id, _)| self.references.contains_key(id)).map(|(i, s)| (*i, *s)).collect();
        self.report.unreferenced_segments = (self.stored.len() - referenced.len()) as u64;
        let mut read = stream::iter(referenced)
            .map(|(id, size)| {
                let vault = vault.clone();
                async move { (id, index::read_directory(&vault, id, size).await) }
            })
            .buffer_unordered(DIRECTORIES_IN_FLIGHT);
        while let Some((id, directory)) = read.next().await {
            self.report.segments += 1;
            let Some(directory) = self.note(&layout::segment(id), directory)? else { continue };
            let there: HashSet<u64> = directory.iter().map(reference).collect();
            let missing = self.references[&id].iter().filter(|r| !there.contains(r)).count();
            if missing > 0 {
                self.found(
                    layout::segment(id),
                    format!("{missing} frames that maps refer to are not in its directory"),
                );
            }
        }
        Ok(())
    }

    fn epochs_are_there(&mut self) {
        let missing: Vec<(EpochId, String)> = self
            .epochs_needed
            .iter()
            .filter(|(epoch, _)| !self.epochs.contains_key(epoch))
            .map(|(epoch, name)| (*epoch, name.clone()))
            .collect();
        for (epoch, name) in missing {
            self.found(
                format!("{}/*/{epoch}", layout::EPOCHS),
                format!("the epoch's key is missing or wrong, and {name} needs it"),
            );
        }
    }

    fn finish(mut self) -> Report {
        for finding in &mut self.report.findings {
            if let Some(Name::Segment(id)) = layout::parse(&finding.object)
                && let Some(users) = self.users.get(&id)
            {
                // What a point brought stays in the maps of those after it, until it is overwritten.
                finding.affects = users.iter().map(|(m, first)| format!("{m}: point {first} and later ones")).collect();
            }
        }
        self.report
    }
}
