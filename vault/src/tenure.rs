//! Who may write a machine: generations, claimed by put-if-absent.
//!
//! A generation fences: a point of a lower generation than its predecessor's is no point. Whether its holder is alive is told by the
//! holder's [heartbeat](crate::heartbeat), which is advice only. Clocks of different hosts are never compared: a gateway is given up
//! when its heartbeat did not change while the watcher waited for its time to live.

use std::time::Duration;

use landfall_model::{ErrorKind, GatewayId, Generation, GenerationMeta, JobId, MachineName, Seq, Timestamp};

use crate::crash::crash_point;
use crate::heartbeat::{Beat, HEARTBEAT_TTL, Heartbeat, Held};
use crate::layout::{self, Name};
use crate::machine::Machine;
use crate::record::{Kind, Position};
use crate::store::Put;
use landfall_model::{Error, Result};

/// How often a waiting gateway looks.
const POLL: Duration = Duration::from_secs(1);
/// Claims that lost a race before giving up: each loss means that somebody else made progress.
const CLAIMS_MAX: u32 = 8;

/// A held generation.
#[derive(Clone)]
pub struct Tenure {
    machine: Machine,
    name: MachineName,
    generation: Generation,
}

impl Machine {
    fn claim(&self, generation: Generation) -> Position {
        self.vault().aside(Kind::Generation, self.id(), Seq(0), generation)
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

    /// Who claimed a generation.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn generation(&self, generation: Generation) -> Result<Option<GenerationMeta>> {
        let name = layout::generation(self.id(), generation);
        Ok(self.vault().read_aside(&name, self.claim(generation)).await?.map(|(meta, _)| meta))
    }

    /// Takes the right to write this machine: ours already, given back, or given up by a gateway that no longer lives. It is given back
    /// when what is returned beside the tenure is dropped.
    ///
    /// # Errors
    /// `Conflict` where another gateway is alive and holds it.
    pub async fn take(
        &self,
        name: &MachineName,
        heartbeat: &Heartbeat,
        now: impl Fn() -> Timestamp,
    ) -> Result<(Tenure, Held)> {
        let us = heartbeat.gateway();
        for _ in 0..CLAIMS_MAX {
            let newest = self.generations().await?.last().copied();
            let claim = match newest {
                Some(generation) => self.generation(generation).await?,
                None => None,
            };
            if let Some(job) = claim.as_ref().and_then(|claim| claim.failover) {
                return Err(failed_over(name, job));
            }
            let owner = claim.map(|claim| claim.gateway);
            if let Some(owner) = owner.filter(|owner| *owner != us) {
                self.until_given_up(owner).await?;
            }
            // First: who sees the claim finds the machine in the heartbeat.
            let held = heartbeat.hold(self.id());
            heartbeat.tell().await?;
            let tenure = |generation| Tenure { machine: self.clone(), name: name.clone(), generation };
            if let Some(generation) = newest.filter(|_| owner == Some(us)) {
                return Ok((tenure(generation), held));
            }
            let generation = newest.map_or(Generation::FIRST, Generation::next);
            let meta = GenerationMeta { machine: name.clone(), gateway: us, claimed: now(), failover: None };
            let object = layout::generation(self.id(), generation);
            let bytes = self.vault().sign_aside(self.claim(generation), &meta)?;
            let put = self.vault().store().put_if_absent(&object, bytes.into()).await?;
            if put == Put::Created || self.generation(generation).await? == Some(meta) {
                crash_point("generation.claimed");
                return Ok((tenure(generation), held));
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("other gateways keep claiming machine {name}: stop all but one")))
    }

    /// Claims the next generation for a failover: whoever writes this machine is fenced, and nobody may write it until [`Self::unfence`].
    /// Done already, it is done no second time.
    ///
    /// # Errors
    /// `Conflict` where another failover of this machine is under way.
    pub async fn fence(&self, name: &MachineName, job: JobId, now: impl Fn() -> Timestamp) -> Result<Generation> {
        self.claim_for(name, job, Some(job), now).await
    }

    /// The failover that fences this machine now.
    ///
    /// # Errors
    /// `Corrupt`, `Unavailable`.
    pub async fn fenced_by(&self) -> Result<Option<JobId>> {
        match self.generations().await?.last() {
            Some(newest) => Ok(self.generation(*newest).await?.and_then(|claim| claim.failover)),
            None => Ok(None),
        }
    }

    /// Lets gateways write this machine again, where this failover fenced them.
    ///
    /// # Errors
    /// `Conflict` where another failover of this machine is under way.
    pub async fn unfence(&self, name: &MachineName, job: JobId, now: impl Fn() -> Timestamp) -> Result<Generation> {
        self.claim_for(name, job, None, now).await
    }

    async fn claim_for(
        &self,
        name: &MachineName,
        job: JobId,
        failover: Option<JobId>,
        now: impl Fn() -> Timestamp,
    ) -> Result<Generation> {
        for _ in 0..CLAIMS_MAX {
            let newest = self.generations().await?.last().copied();
            let fenced = match newest {
                Some(generation) => self.generation(generation).await?.and_then(|claim| claim.failover),
                None => None,
            };
            match (newest, fenced) {
                (_, Some(other)) if other != job => return Err(failed_over(name, other)),
                (Some(generation), fenced) if fenced == failover => return Ok(generation),
                _ => {}
            }
            let generation = newest.map_or(Generation::FIRST, Generation::next);
            let gateway = GatewayId::from_bytes(*job.as_bytes());
            let meta = GenerationMeta { machine: name.clone(), gateway, claimed: now(), failover };
            let bytes = self.vault().sign_aside(self.claim(generation), &meta)?;
            let object = layout::generation(self.id(), generation);
            let put = self.vault().store().put_if_absent(&object, bytes.into()).await?;
            if put == Put::Created || self.generation(generation).await? == Some(meta) {
                return Ok(generation);
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("gateways keep claiming machine {name}: stop them")))
    }

    /// Waits until the holder has given the machine back, or has not changed its heartbeat for its time to live.
    async fn until_given_up(&self, holder: GatewayId) -> Result<()> {
        let gave_back = |beat: &Option<Beat>| beat.as_ref().is_some_and(|b| b.gave_back(holder, self.id()));
        let seen = self.vault().heartbeat_or_none(holder).await?;
        if gave_back(&seen) {
            return Ok(());
        }
        let ttl = seen.as_ref().map_or(HEARTBEAT_TTL, Beat::ttl);
        tracing::info!(%holder, ttl_s = ttl.as_secs(), "another gateway wrote this machine last: watching its heartbeat");
        let start = tokio::time::Instant::now();
        while start.elapsed() < ttl {
            tokio::time::sleep(POLL).await;
            let beat = self.vault().heartbeat_or_none(holder).await?;
            if gave_back(&beat) {
                return Ok(());
            }
            if beat != seen {
                let why = format!("gateway {holder} replicates this machine now: stop it there first");
                return Err(Error::new(ErrorKind::Conflict, why));
            }
        }
        Ok(())
    }
}

fn failed_over(name: &MachineName, job: JobId) -> Error {
    let why = format!(
        "machine {name} was failed over: it is written no more until `landfall failover cancel {job}` gives it back"
    );
    Error::new(ErrorKind::Conflict, why)
}

impl Tenure {
    /// The generation.
    pub fn generation(&self) -> Generation {
        self.generation
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

#[cfg(test)]
mod tests;
