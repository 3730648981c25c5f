//! A machine's timelines and points in the vault: list, read, commit.
//!
//! # Consistency
//! The put-if-absent of a point's object at the next sequence number is the commit and the fence, and the only one.
//! The invariants that guard it are named functions ([`refers_only_to_stored`], [`follows`]).

use bytes::Bytes;
use landfall_model::{Consistency, Digest, ErrorKind, MachineId, PointMeta, SegmentId, Seq, Timeline, Timestamp};

use crate::body::Body;
use crate::layout::{self, Name};
use crate::record::{self, Header, Kind, Position};
use crate::store::{PutExact, Store};
use crate::vault::Vault;
use landfall_model::{Error, Result};

/// First read of a record: most points' heads are shorter, so one request opens them.
const HEAD_BYTES: u64 = 64 * 1024;

/// A machine of a vault.
#[derive(Clone)]
pub struct Machine {
    vault: Vault,
    id: MachineId,
}

/// A point in a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PointKey {
    /// On which timeline its object lies.
    pub timeline: Timeline,
    /// Its number.
    pub seq: Seq,
    /// Size of its object.
    pub size: u64,
}

/// A point (or checkpoint) that was read: signature, chain fields and body checked.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its header.
    pub header: Header,
    /// Its digest.
    pub digest: Digest,
    /// Its body.
    pub body: Body,
}

/// A point as it is or will be stored.
#[derive(Clone, Debug)]
pub struct SignedPoint {
    /// What it says.
    pub point: Point,
    /// Its object, inline frames included.
    pub bytes: Bytes,
}

impl Point {
    /// Where it stands in listings.
    pub fn key(&self) -> PointKey {
        let size = self.header.inline_start() + self.header.inline_len;
        PointKey { timeline: self.timeline(), seq: self.seq(), size }
    }

    /// Its number.
    pub fn seq(&self) -> Seq {
        self.header.position.seq
    }

    /// Its timeline.
    pub fn timeline(&self) -> Timeline {
        self.header.position.timeline
    }

    /// What it says of itself.
    pub fn meta(&self) -> &PointMeta {
        &self.body.meta
    }
}

/// Which point is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selector {
    /// The newest.
    Latest,
    /// By number.
    Seq(Seq),
    /// The newest whose source time is not later.
    Time(Timestamp),
}

impl std::str::FromStr for Selector {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(seq) = text.parse() {
            return Ok(Self::Seq(Seq(seq)));
        }
        let why = || format!("point {text:?}: expected latest, a sequence number or a time like 2026-11-21T09:30:00Z");
        text.parse().map(Self::Time).map_err(|_| Error::new(ErrorKind::Usage, why()))
    }
}

/// The beginning of a record's object of `size` bytes, up to its signature: one request for most.
pub(crate) async fn head_bytes(store: &Store, name: &str, size: u64) -> Result<Bytes> {
    let missing = || Error::corrupt(format!("{name}: it is missing"));
    let first = store.get_range(name, 0, size.clamp(1, HEAD_BYTES)).await?.ok_or_else(missing)?;
    let needed = Header::parse(&first).map_err(|e| e.context(name))?.inline_start();
    if needed <= first.len() as u64 {
        return Ok(first);
    }
    if needed > size {
        return Err(Error::corrupt(format!("{name}: it is cut short")));
    }
    let rest = store.get_range(name, first.len() as u64, needed).await?.ok_or_else(missing)?;
    Ok([first, rest].concat().into())
}

impl Machine {
    pub(crate) fn new(vault: Vault, id: MachineId) -> Self {
        Self { vault, id }
    }

    /// Its id in the store.
    pub fn id(&self) -> MachineId {
        self.id
    }

    /// Its vault.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Its timelines, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn timelines(&self) -> Result<Vec<Timeline>> {
        let folders = self.vault.store().list_folders(&layout::timelines(self.id)).await?;
        Ok(folders.iter().filter_map(|f| Timeline::from_key(f).ok()).collect())
    }

    /// The points of one timeline's own folder, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn points_of(&self, timeline: Timeline) -> Result<Vec<PointKey>> {
        self.keys_in(&layout::points(self.id, timeline)).await
    }

    /// The checkpoints of a timeline, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn checkpoints_of(&self, timeline: Timeline) -> Result<Vec<PointKey>> {
        self.keys_in(&layout::checkpoints(self.id, timeline)).await
    }

    async fn keys_in(&self, folder: &str) -> Result<Vec<PointKey>> {
        let listed = self.vault.store().list(folder).await?;
        let key = |o: &crate::store::Listed| match layout::parse(&o.name)? {
            Name::Point(_, timeline, seq) | Name::Checkpoint(_, timeline, seq) => {
                Some(PointKey { timeline, seq, size: o.size })
            }
            _ => None,
        };
        Ok(listed.iter().filter_map(key).collect())
    }

    /// The line of points that ends with the newest point of the newest timeline, ascending: through the points where timelines were forked.
    ///
    /// # Errors
    /// `Unavailable`; `Corrupt` where a timeline hangs on a point that is not there.
    pub async fn line(&self) -> Result<Vec<PointKey>> {
        // A timeline without points is one that nobody has committed to: it hides nothing.
        for timeline in self.timelines().await?.into_iter().rev() {
            let line = self.line_of(timeline).await?;
            if !line.is_empty() {
                return Ok(line);
            }
        }
        Ok(Vec::new())
    }

    /// The line of points that ends with the newest point of a timeline.
    ///
    /// # Errors
    /// As for [`Self::line`].
    pub async fn line_of(&self, timeline: Timeline) -> Result<Vec<PointKey>> {
        let mut line = self.points_of(timeline).await?;
        // A later timeline was forked, so its first point says from where; one that is not what it should be hides what came before.
        while let Some(first) = line.first().copied().filter(|p| p.seq > Seq::FIRST || p.timeline > Timeline::FIRST) {
            let parent = self.header(first).await?.position.parent_timeline;
            if parent >= first.timeline {
                break;
            }
            let before: Vec<PointKey> =
                self.points_of(parent).await?.into_iter().filter(|p| p.seq < first.seq).collect();
            if before.is_empty() {
                return Err(Error::corrupt(format!("timeline {} hangs on points that are not there", first.timeline)));
            }
            line.splice(0..0, before);
        }
        Ok(line)
    }

    async fn head_bytes(&self, name: &str, size: u64) -> Result<Bytes> {
        head_bytes(self.vault.store(), name, size).await
    }

    async fn header(&self, key: PointKey) -> Result<Header> {
        let name = layout::point(self.id, key.timeline, key.seq);
        let bytes = self.head_bytes(&name, key.size).await?;
        let (header, _) = record::check_signature(self.vault.signers(), &bytes).map_err(|e| e.context(&name))?;
        let at = header.position;
        if at.machine != self.id || (at.timeline, at.seq) != (key.timeline, key.seq) {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        Ok(header)
    }

    async fn read(&self, kind: Kind, name: &str, key: PointKey) -> Result<Point> {
        let bytes = self.head_bytes(name, key.size).await?;
        let record = record::decode(self.vault.site(), self.vault.signers(), &bytes).map_err(|e| e.context(name))?;
        let at = record.header.position;
        let right = at.kind == kind
            && at.vault == self.vault.config().vault_id
            && at.machine == self.id
            && (at.timeline, at.seq) == (key.timeline, key.seq)
            && record.header.inline_start() + record.header.inline_len == key.size;
        if !right {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        let body = Body::decode(&record.body).map_err(|e| e.context(name))?;
        if body.meta.consistency == Consistency::Unfinished {
            return Err(Error::corrupt(format!("{name}: it is unfinished, and should never have left a spool")));
        }
        Ok(Point { header: record.header, digest: record.digest, body })
    }

    /// Reads a point: one request for most.
    ///
    /// # Errors
    /// `Corrupt`, naming the object.
    pub async fn point(&self, key: PointKey) -> Result<Point> {
        self.read(Kind::Point, &layout::point(self.id, key.timeline, key.seq), key).await
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// `Corrupt`, naming the object.
    pub async fn checkpoint(&self, key: PointKey) -> Result<Point> {
        self.read(Kind::Checkpoint, &layout::checkpoint(self.id, key.timeline, key.seq), key).await
    }

    /// Finds a point on a line.
    ///
    /// # Errors
    /// `NotFound` where there is none such, saying which there are.
    pub async fn select(&self, line: &[PointKey], selector: Selector) -> Result<PointKey> {
        let (Some(first), Some(last)) = (line.first(), line.last()) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the machine has no recovery points; run `landfall replicate`",
            ));
        };
        match selector {
            Selector::Latest => Ok(*last),
            Selector::Seq(seq) => line.iter().find(|p| p.seq == seq).copied().ok_or_else(|| {
                let why = format!("there is no point {seq}: the machine has points {} to {}", first.seq, last.seq);
                Error::new(ErrorKind::NotFound, why)
            }),
            Selector::Time(time) => self.select_by_time(line, time).await,
        }
    }

    /// Source times ascend along a line, so a search in halves finds it: a few requests among a month of points.
    async fn select_by_time(&self, line: &[PointKey], time: Timestamp) -> Result<PointKey> {
        let (mut from, mut to) = (0, line.len());
        let mut oldest = None;
        while from < to {
            let middle = (from + to) / 2;
            let at = self.point(line[middle]).await?.meta().source_time;
            if at <= time {
                from = middle + 1;
            } else {
                oldest = Some(at);
                to = middle;
            }
        }
        from.checked_sub(1).map(|i| line[i]).ok_or_else(|| {
            let oldest = oldest.map(|t| format!(" (the oldest is of {t})")).unwrap_or_default();
            Error::new(ErrorKind::NotFound, format!("the machine has no point as old as {time}{oldest}"))
        })
    }

    /// Makes the record of a point: its final bytes.
    ///
    /// # Errors
    /// `Unsupported` where the maps are larger than a record can hold.
    pub fn sign(&self, position: Position, body: &Body, inline: &[u8]) -> Result<SignedPoint> {
        let signed = record::encode(self.vault.site(), position, &body.encode()?, inline)?;
        let header = Header::parse(&signed.bytes)?;
        let point = Point { header, digest: signed.digest, body: body.clone() };
        Ok(SignedPoint { point, bytes: signed.bytes.into() })
    }

    /// Reads a point's object that was kept elsewhere than in the store: all of it is checked.
    ///
    /// # Errors
    /// `Corrupt` where it is not a whole point of this machine.
    pub fn open_signed(&self, bytes: Bytes) -> Result<SignedPoint> {
        let record = record::decode(self.vault.site(), self.vault.signers(), &bytes)?;
        let (at, header) = (record.header.position, record.header);
        let inline = bytes.get(landfall_model::num::to_usize(header.inline_start())..).unwrap_or_default();
        let right = at.kind == Kind::Point
            && at.vault == self.vault.config().vault_id
            && at.machine == self.id
            && inline.len() as u64 == header.inline_len
            && blake3::hash(inline).as_bytes() == header.inline_digest.as_bytes();
        if !right {
            return Err(Error::corrupt(format!("point {}: it is not a whole point of this machine", at.seq)));
        }
        let point = Point { header, digest: record.digest, body: Body::decode(&record.body)? };
        Ok(SignedPoint { point, bytes })
    }

    /// Commits a point, of which these are the bytes: the one put-if-absent that makes it real.
    ///
    /// # Errors
    /// `Conflict` where another writer has committed this sequence number.
    pub async fn commit(&self, point: &Point, bytes: Bytes) -> Result<()> {
        if point.meta().consistency == Consistency::Unfinished {
            return Err(Error::new(ErrorKind::Bug, "what is unfinished was to be committed"));
        }
        self.put(&layout::point(self.id, point.timeline(), point.seq()), bytes).await
    }

    /// Stores a checkpoint. That one of this number is already there is no error: it says the same.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn commit_checkpoint(&self, position: Position, body: &Body) -> Result<()> {
        let name = layout::checkpoint(self.id, position.timeline, position.seq);
        match self.put(&name, self.sign(position, body, &[])?.bytes).await {
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            other => other,
        }
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        if self.vault.store().put_exact(name, bytes).await? == PutExact::Different {
            let why = format!("{name}: another writer has committed it; this run committed nothing; run again");
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        Ok(())
    }
}

/// Invariant 1: a committed point refers only to stored objects.
///
/// # Errors
/// `Corrupt`, naming the object that is missing.
pub fn refers_only_to_stored(body: &Body, is_stored: impl Fn(SegmentId) -> bool) -> Result<()> {
    match body.segments.keys().find(|id| !is_stored(**id)) {
        Some(id) => Err(Error::corrupt(format!("the point would refer to segment {id}, which is not in the store"))),
        None => Ok(()),
    }
}

/// Invariants 2 and 3: a point's number is one more than its predecessor's, its generation not lower, and it carries its digest.
///
/// # Errors
/// `Corrupt`, saying which is broken.
pub fn follows(next: &Position, before: Option<(&Position, Digest)>) -> Result<()> {
    let broken = |why: String| Err(Error::corrupt(format!("point {} of timeline {}: {why}", next.seq, next.timeline)));
    let Some((before, digest)) = before else {
        if next.seq != Seq::FIRST || next.previous != Digest::NONE {
            return broken("the points before it are missing".to_owned());
        }
        return Ok(());
    };
    if next.seq != before.seq.next() {
        return broken(format!("points {} to {} are missing", before.seq.next(), Seq(next.seq.0.saturating_sub(1))));
    }
    if next.generation < before.generation {
        return broken(format!("its generation {} is lower than {} before it", next.generation, before.generation));
    }
    if next.parent_timeline != before.timeline {
        return broken(format!("it does not continue timeline {}", before.timeline));
    }
    if next.previous != digest {
        return broken("it does not carry the digest of the point before it".to_owned());
    }
    Ok(())
}
