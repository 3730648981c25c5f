//! Who may write a machine: generations, claimed by put-if-absent, and the lease beside the newest.
//!
//! A generation fences: a point of a lower generation than its predecessor's is no point. The lease is advice only: it tells a second
//! gateway whether the first is alive, so that it need not push it aside. Clocks of different hosts are never compared: a lease
//! is dead when it did not change while the watcher waited for its time to live.

use std::time::Duration;

use landfall_model::{
    Digest, ErrorKind, GatewayId, Generation, GenerationMeta, LeaseMeta, MachineName, Seq, Timeline, Timestamp,
};

use crate::crash::crash_point;
use crate::layout::{self, Name};
use crate::machine::Machine;
use crate::record::{self, Kind, Position};
use crate::store::Put;
use landfall_model::{Error, Result};

/// A lease that did not change for so long is given up. A takeover within 15 s is promised; renewals are three to a life.
pub const LEASE_TTL: Duration = Duration::from_secs(12);
/// How often the holder renews it.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(4);
/// How often a waiting gateway looks.
const LEASE_POLL: Duration = Duration::from_secs(1);
/// Claims that lost a race before giving up: each loss means that somebody else made progress.
const CLAIMS_MAX: u32 = 8;

/// What to do about the newest generation, decided from what was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    /// It is ours: go on with it.
    Hold,
    /// Nobody holds it: claim the next.
    Claim,
    /// Somebody may: watch the lease.
    Watch,
}

fn decide(owner: Option<GatewayId>, us: GatewayId, lease: Option<&LeaseMeta>) -> Decision {
    match (owner, lease) {
        (None, _) => Decision::Claim,
        (Some(owner), _) if owner == us => Decision::Hold,
        (Some(owner), Some(lease)) if lease.gateway == owner && lease.released => Decision::Claim,
        (Some(_), _) => Decision::Watch,
    }
}

/// A held generation. Renew it while working; release it at the end.
#[derive(Clone)]
pub struct Tenure {
    machine: Machine,
    name: MachineName,
    gateway: GatewayId,
    generation: Generation,
}

impl Machine {
    fn side_record(&self, kind: Kind, generation: Generation) -> Position {
        Position {
            kind,
            vault: self.vault().config().vault_id,
            machine: self.id(),
            timeline: Timeline(0),
            parent_timeline: Timeline(0),
            seq: Seq(0),
            generation,
            previous: Digest::NONE,
        }
    }

    /// The generations that were claimed, ascending.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn generations(&self) -> Result<Vec<Generation>> {
        let listed = self.vault().store().list(&layout::generations(self.id())).await?;
        let generation = |name: &str| match layout::parse(name)? {
            Name::Generation(_, generation) => Some(generation),
            _ => None,
        };
        Ok(listed.iter().filter_map(|o| generation(&o.name)).collect())
    }

    async fn side_body<T: serde::de::DeserializeOwned>(
        &self,
        name: &str,
        kind: Kind,
        g: Generation,
    ) -> Result<Option<T>> {
        let Some(bytes) = self.vault().store().get(name).await? else { return Ok(None) };
        let record =
            record::decode(self.vault().site(), self.vault().signers(), &bytes).map_err(|e| e.context(name))?;
        let whole = record.header.inline_start() == bytes.len() as u64;
        if record.header.position != self.side_record(kind, g) || !whole {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        let body = serde_json::from_slice(&record.body);
        body.map(Some).map_err(|e| Error::corrupt(format!("{name}: its body does not parse: {e}")))
    }

    /// Who claimed a generation.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn generation(&self, generation: Generation) -> Result<Option<GenerationMeta>> {
        self.side_body(&layout::generation(self.id(), generation), Kind::Generation, generation).await
    }

    /// The lease beside a generation.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn lease(&self, generation: Generation) -> Result<Option<LeaseMeta>> {
        self.side_body(&layout::lease(self.id(), generation), Kind::Lease, generation).await
    }

    /// A lease is advice: one that cannot be read is none.
    async fn lease_or_none(&self, generation: Generation) -> Result<Option<LeaseMeta>> {
        match self.lease(generation).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Key | ErrorKind::Unsupported) => {
                tracing::warn!(%error, "the lease cannot be read; it is taken as none");
                Ok(None)
            }
            other => other,
        }
    }

    /// Takes the right to write this machine: ours already, given back, or given up by a gateway that stopped renewing it.
    ///
    /// # Errors
    /// `Conflict` where another gateway is alive and holds it.
    pub async fn take(&self, name: &MachineName, gateway: GatewayId, now: impl Fn() -> Timestamp) -> Result<Tenure> {
        for _ in 0..CLAIMS_MAX {
            let newest = self.generations().await?.last().copied();
            let (owner, lease) = match newest {
                Some(g) => (self.generation(g).await?.map(|m| m.gateway), self.lease_or_none(g).await?),
                None => (None, None),
            };
            let tenure = |generation| Tenure { machine: self.clone(), name: name.clone(), gateway, generation };
            let decision = decide(owner, gateway, lease.as_ref());
            if let (Decision::Hold, Some(generation)) = (decision, newest) {
                let held = tenure(generation);
                held.renew(now()).await?;
                return Ok(held);
            }
            if let (Decision::Watch, Some(generation)) = (decision, newest) {
                self.watch(generation, lease).await?;
            }
            let generation = newest.map_or(Generation::FIRST, Generation::next);
            let meta = GenerationMeta { machine: name.clone(), gateway, claimed: now() };
            let body = serde_json::to_vec(&meta).map_err(bug)?;
            let position = self.side_record(Kind::Generation, generation);
            let signed = record::encode(self.vault().site(), position, &body, &[])?;
            let object = layout::generation(self.id(), generation);
            let put = self.vault().store().put_if_absent(&object, signed.bytes.into()).await?;
            if put == Put::Created || self.generation(generation).await? == Some(meta) {
                crash_point("generation.claimed");
                let held = tenure(generation);
                held.renew(now()).await?;
                return Ok(held);
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("other gateways keep claiming machine {name}: stop all but one")))
    }

    /// Waits for the life of a lease; returns when it did not change.
    async fn watch(&self, generation: Generation, seen: Option<LeaseMeta>) -> Result<()> {
        let ttl = seen.as_ref().map_or(LEASE_TTL, |l| Duration::from_millis(l.ttl_ms).min(LEASE_TTL * 10));
        tracing::info!(%generation, ttl_s = ttl.as_secs(), "another gateway wrote this machine last: watching its lease");
        let start = tokio::time::Instant::now();
        while start.elapsed() < ttl {
            tokio::time::sleep(LEASE_POLL).await;
            let lease = self.lease_or_none(generation).await?;
            if lease.as_ref().is_some_and(|l| l.released) {
                return Ok(());
            }
            if lease != seen {
                let holder = lease.map_or_else(|| "another gateway".to_owned(), |l| format!("gateway {}", l.gateway));
                let why = format!("{holder} replicates this machine now: stop it there first");
                return Err(Error::new(ErrorKind::Conflict, why));
            }
        }
        Ok(())
    }
}

impl Tenure {
    /// The generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    async fn put_lease(&self, now: Timestamp, released: bool) -> Result<()> {
        let ttl_ms = u64::try_from(LEASE_TTL.as_millis()).unwrap_or(u64::MAX);
        let lease = LeaseMeta { machine: self.name.clone(), gateway: self.gateway, renewed: now, ttl_ms, released };
        let body = serde_json::to_vec(&lease).map_err(bug)?;
        let position = self.machine.side_record(Kind::Lease, self.generation);
        let signed = record::encode(self.machine.vault().site(), position, &body, &[])?;
        let name = layout::lease(self.machine.id(), self.generation);
        self.machine.vault().store().put(&name, signed.bytes.into()).await
    }

    /// Says that the holder lives.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn renew(&self, now: Timestamp) -> Result<()> {
        self.put_lease(now, false).await
    }

    /// Gives the machine back, so that another gateway need not wait.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn release(&self, now: Timestamp) -> Result<()> {
        self.put_lease(now, true).await
    }

    /// Refuses to go on where a later generation was claimed.
    ///
    /// # Errors
    /// `Conflict`.
    pub async fn still_held(&self) -> Result<()> {
        match self.machine.generations().await?.last() {
            Some(newest) if *newest > self.generation => {
                let why = format!(
                    "fenced: generation {newest} of machine {} was claimed by another gateway, this run held {}",
                    self.name, self.generation
                );
                Err(Error::new(ErrorKind::Conflict, why))
            }
            _ => Ok(()),
        }
    }
}

fn bug(error: serde_json::Error) -> Error {
    Error::with_source(ErrorKind::Bug, "cannot encode a record", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_held_claimed_or_watched_by_owner_and_lease_alone() {
        let (us, other) = (GatewayId::from_bytes([1; 16]), GatewayId::from_bytes([2; 16]));
        let lease = |gateway, released| LeaseMeta {
            machine: "m".parse().expect("a name"),
            gateway,
            renewed: Timestamp::from_millis(0),
            ttl_ms: 1,
            released,
        };
        assert_eq!(decide(None, us, None), Decision::Claim);
        assert_eq!(decide(Some(us), us, None), Decision::Hold);
        assert_eq!(decide(Some(us), us, Some(&lease(us, true))), Decision::Hold);
        assert_eq!(decide(Some(other), us, None), Decision::Watch, "claimed, and died before its first lease");
        assert_eq!(decide(Some(other), us, Some(&lease(other, false))), Decision::Watch);
        assert_eq!(decide(Some(other), us, Some(&lease(other, true))), Decision::Claim);
        assert_eq!(decide(Some(other), us, Some(&lease(us, true))), Decision::Watch, "not its holder's word");
    }
}
