//! The heartbeat of a gateway: one object that says that it lives, and which machines it holds.
//!
//! It is advice: it tells another gateway whether the holder of a machine is alive, so that it need not push it aside. What fences are
//! generations and the put-if-absent of points. Nothing that is correct rests on a heartbeat: it may be missing, damaged, old or false.
//!
//! # Consistency
//! A machine stands in the heartbeat before its generation is claimed, and as long as it is held. So a heartbeat of the holder that does not
//! name the machine says that it was given back, or that the holder was started again and never took it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use landfall_model::{Digest, Error, ErrorKind, GatewayId, Generation, HeartbeatMeta, MachineId, Result, Seq};
use tokio::sync::Notify;

use crate::layout;
use crate::now;
use crate::record::{Kind, Position};
use crate::store::Store;
use crate::vault::Vault;

/// A heartbeat that did not change for so long: what its gateway held is given up. A takeover within 15 s is promised.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(12);
/// How often it is renewed while the gateway holds a machine: three times in its life.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(4);

/// The heartbeat of this gateway, shared by all machines that it writes.
#[derive(Clone)]
pub struct Heartbeat(Arc<Inner>);

struct Inner {
    vault: Vault,
    gateway: GatewayId,
    list: Mutex<List>,
    /// Which version of the list the store has. One request at a time: an older list never follows a newer one.
    told: tokio::sync::Mutex<u64>,
    given_back: Notify,
}

/// The machines that are held, and how often: an old owner may still go while a new one has come.
#[derive(Default)]
struct List {
    machines: BTreeMap<MachineId, u32>,
    version: u64,
}

/// A machine stands in the heartbeat until this is dropped.
pub struct Held {
    heartbeat: Heartbeat,
    machine: MachineId,
}

impl Heartbeat {
    /// The heartbeat of a gateway that holds nothing. Stores nothing yet.
    pub fn new(vault: &Vault, gateway: GatewayId) -> Self {
        let (list, told, given_back) = (Mutex::default(), tokio::sync::Mutex::new(0), Notify::new());
        Self(Arc::new(Inner { vault: vault.clone(), gateway, list, told, given_back }))
    }

    /// Whose it is.
    pub fn gateway(&self) -> GatewayId {
        self.0.gateway
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a machine. Others see it once [`Self::tell`] has returned.
    pub(crate) fn hold(&self, machine: MachineId) -> Held {
        let mut list = self.list();
        let count = list.machines.entry(machine).or_default();
        *count += 1;
        if *count == 1 {
            list.version += 1;
        }
        drop(list);
        Held { heartbeat: self.clone(), machine }
    }

    /// Stores it where the store does not have what it says now: many who call at once are served by one request or two.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn tell(&self) -> Result<()> {
        let wanted = self.list().version;
        let mut told = self.0.told.lock().await;
        if *told >= wanted {
            return Ok(());
        }
        self.put(self.0.vault.store(), &mut told).await
    }

    /// Stores it anew while a machine is held, so that others see that this gateway lives; else only where it changed. Gives up soon: the
    /// next renewal is a better one.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn renew(&self) -> Result<()> {
        let mut told = self.0.told.lock().await;
        let is_idle = |list: &List| list.machines.is_empty() && list.version == *told;
        if is_idle(&self.list()) {
            return Ok(());
        }
        self.put(&self.0.vault.store().clone().with_retry_time(HEARTBEAT_EVERY), &mut told).await
    }

    async fn put(&self, store: &Store, told: &mut u64) -> Result<()> {
        let (machines, version) = {
            let list = self.list();
            (list.machines.keys().copied().collect(), list.version)
        };
        let ttl_ms = u64::try_from(HEARTBEAT_TTL.as_millis()).unwrap_or(u64::MAX);
        let meta = HeartbeatMeta { gateway: self.0.gateway, renewed: now(), ttl_ms, machines };
        let bytes = self.0.vault.sign_aside(position(&self.0.vault, self.0.gateway), &meta)?;
        store.put(&layout::heartbeat(self.0.gateway), bytes.into()).await?;
        *told = version;
        Ok(())
    }

    /// Ready when a machine was given back since the last call: others need not wait where they are told at once.
    pub async fn given_back(&self) {
        self.0.given_back.notified().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut list = self.heartbeat.list();
        let last = list.machines.get_mut(&self.machine).is_none_or(|count| {
            *count -= 1;
            *count == 0
        });
        if last {
            list.machines.remove(&self.machine);
            list.version += 1;
            drop(list);
            self.heartbeat.0.given_back.notify_one();
        }
    }
}

fn position(vault: &Vault, gateway: GatewayId) -> Position {
    vault.aside(Kind::Heartbeat, MachineId::from_bytes(*gateway.as_bytes()), Seq(0), Generation(0))
}

/// A heartbeat as it was read. It is sealed anew each time, so two reads of one digest are of one renewal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beat {
    /// What it says.
    pub meta: HeartbeatMeta,
    /// Its record digest.
    pub digest: Digest,
}

impl Beat {
    /// Whether its gateway says that it does not hold a machine.
    pub(crate) fn gave_back(&self, gateway: GatewayId, machine: MachineId) -> bool {
        self.meta.gateway == gateway && !self.meta.machines.contains(&machine)
    }

    /// How long it counts. A strange one does not hold anybody up for long.
    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_millis(self.meta.ttl_ms).min(HEARTBEAT_TTL * 10)
    }
}

impl Vault {
    /// The heartbeat of a gateway, if it has one.
    ///
    /// # Errors
    /// `Corrupt`, `Key`, `Unavailable`.
    pub async fn heartbeat(&self, gateway: GatewayId) -> Result<Option<Beat>> {
        let name = layout::heartbeat(gateway);
        let read = self.read_aside::<HeartbeatMeta>(&name, position(self, gateway)).await?;
        match read {
            Some((meta, _)) if meta.gateway != gateway => {
                Err(Error::corrupt(format!("{name}: it says that it is of gateway {}", meta.gateway)))
            }
            read => Ok(read.map(|(meta, digest)| Beat { meta, digest })),
        }
    }

    /// A heartbeat is advice: one that cannot be read is none.
    pub(crate) async fn heartbeat_or_none(&self, gateway: GatewayId) -> Result<Option<Beat>> {
        match self.heartbeat(gateway).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Key | ErrorKind::Unsupported) => {
                tracing::warn!(%error, "the heartbeat cannot be read; it is taken as none");
                Ok(None)
            }
            other => other,
        }
    }

    /// The gateways that have a heartbeat.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn gateways(&self) -> Result<Vec<GatewayId>> {
        let listed = self.store().list(layout::GATEWAYS).await?;
        let gateway = |name: &str| match layout::parse(name)? {
            layout::Name::Heartbeat(gateway) => Some(gateway),
            _ => None,
        };
        Ok(listed.iter().filter_map(|o| gateway(&o.name)).collect())
    }
}
