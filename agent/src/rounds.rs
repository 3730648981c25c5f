//! A cycle of disks that are watched: rounds while everything is written on, and a short cut at the end.
//!
//! ```text
//!   round: all that was written      |    round: what was written meanwhile  |  round ... |  freeze, read the rest, thaw
//!   unfinished                       |    unfinished                         |            |  the point, one with the rounds
//! ```
//! Each round is a cycle of its own on the link, durable on the gateway when it is spooled; the gateway makes all of them one point.
//!
//! # When the cut is made
//! ```text
//!   left <= LITTLE                     the cut
//!   less left than a round ago         another round
//!   no less, and left <= MUCH          the cut: it may find too much, and is tried again after another round
//!   no less, and more                  another round, until the point is late by `late_max`; then everything is held still until all is read,
//!                                      or where that is too much for the memory, until all is sent
//! ```
//! A point that is late is better than a database that stands still for seconds. Nothing would ever end that for one who always writes faster than
//! rounds go: so it is bounded.
//!
//! # Bounds
//! Everything is held still while at most [`STAGE_BYTES_MAX`](crate::image::STAGE_BYTES_MAX) are read (128 MiB for a late point), and what is dirty in the page cache is flushed. That is
//! brought out before ([`rustix::fs::syncfs`]), while everything goes on.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use landfall_model::{CycleId, DiskName, Error, ErrorKind, GroupId};
use tokio::task::spawn_blocking;

use crate::compare::Manner;
use crate::history::Plan;
use crate::image::STAGE_BYTES_MAX;
use crate::link::{Link, Receive};
use crate::ship::{Fault, Shipped, Shipper, died};

/// Gateways of an older version would take a round for a point.
const SINCE_VERSION: u32 = 2;
/// With so little left, another round costs more than it saves.
const LITTLE_BYTES: u64 = STAGE_BYTES_MAX / 8;
/// With so much left, what is written until all is frozen still finds room.
const MUCH_BYTES: u64 = STAGE_BYTES_MAX / 4 * 3;
/// Read at once while everything is held still, where a point is late: for as long as that takes, and not until it is sent. Memory is taken for it then,
/// beside that of a cycle, and given back.
const LATE_STAGE_BYTES_MAX: u64 = 8 * STAGE_BYTES_MAX;
/// Rounds, and cuts that find too much, before everything is held still, however little time these take.
const TRIES: usize = 4;

/// Why a cycle was not shipped.
pub(crate) enum Unshipped {
    /// More was written than is read while everything is held still.
    TooMuch,
    /// Anything else.
    Fault(Fault),
}

impl From<Fault> for Unshipped {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Shipper {
    fn protected(&self) -> Vec<DiskName> {
        self.disks.iter().filter(|d| !d.exclude).map(|d| d.name.clone()).collect()
    }

    /// Ships one cycle; with rounds before it, where all disks are watched.
    ///
    /// # Errors
    /// As for [`Shipper::ship`].
    pub(crate) async fn cycle<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        mut plan: Plan,
        group: Option<GroupId>,
    ) -> Result<Shipped, Fault> {
        // Copies are read whole as they are; what is no copy is held still until all of it was read.
        let copied = self.vm.is_some() || self.tracking.copies(&self.protected());
        if self.last.is_some_and(|last| last.proof) && !copied {
            return whole(self.one(link, plan, group, Manner::Whole).await);
        }
        // All that is read is of the cut.
        if self.vm.is_some() {
            return whole(self.one(link, plan, group, Manner::Staged(STAGE_BYTES_MAX)).await);
        }
        let mut left = self.left().await?;
        if !self.tracking.watches(&self.protected()) {
            return whole(self.one(link, plan, group, Manner::Whole).await);
        }
        // The others of a group wait: its rounds were before.
        let rounds = link.version >= SINCE_VERSION && group.is_none();
        // What is copied at the cut is read once, after it.
        if matches!(plan, Plan::Full { .. }) && !self.tracking.copies(&self.protected()) {
            left = None;
        }
        let mut begun = None;
        let (mut before, mut tries) = (None, 0);
        while tries < TRIES || begun.is_none_or(|begun: Instant| begun.elapsed() < self.late_max) {
            let shrinks = before.is_none_or(|before| left.is_some_and(|left| left < before));
            if rounds && !is_ripe(left, shrinks) {
                plan = self.round(link, plan).await?;
                // Not from when all was compared.
                begun.get_or_insert_with(Instant::now);
                tries += usize::from(!shrinks);
                before = Some(left.unwrap_or(u64::MAX));
                left = self.left().await?;
                continue;
            }
            match self.one(link, plan.clone(), group, Manner::Staged(STAGE_BYTES_MAX)).await {
                Ok(shipped) => return Ok(shipped),
                Err(Unshipped::Fault(fault)) => return Err(fault),
                Err(Unshipped::TooMuch) if !rounds => break,
                Err(Unshipped::TooMuch) => {
                    plan = self.round(link, plan).await?;
                    begun.get_or_insert_with(Instant::now);
                    tries += 1;
                    (before, left) = (None, self.left().await?);
                }
            }
        }
        let late = Manner::Staged(LATE_STAGE_BYTES_MAX);
        match self.one(link, plan.clone(), group, late).await {
            Err(Unshipped::TooMuch) => {
                tracing::warn!(
                    "more is written than can be read while everything is held still for a moment: it is held still until all is sent"
                );
                whole(self.one(link, plan, group, Manner::Whole).await)
            }
            shipped => whole(shipped),
        }
    }

    /// Ships what was written by now, of a group that is about to be cut: what is left for the cut is little then.
    ///
    /// # Errors
    /// As for [`Shipper::ship`].
    pub(crate) async fn rounds_before<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
    ) -> Result<Option<CycleId>, Fault> {
        if self.vm.is_some() {
            return Ok(newest);
        }
        let left = self.left().await?;
        let little = left.is_some_and(|left| left <= LITTLE_BYTES);
        if little || link.version < SINCE_VERSION || !self.tracking.watches(&self.protected()) {
            return Ok(newest);
        }
        match self.state.run(move |state| state.plan(newest)).await? {
            // That may have to wait for its hours.
            Plan::Full { .. } => Ok(newest),
            plan => Ok(Some(whole(self.one(link, plan, None, Manner::Round).await)?.cycle)),
        }
    }

    /// Ships a round; returns what the cycle after it sends.
    async fn round<R: Receive>(&mut self, link: &mut Link<R>, plan: Plan) -> Result<Plan, Fault> {
        let shipped = whole(self.one(link, plan, None, Manner::Round).await)?;
        self.state.run(move |state| state.plan(Some(shipped.cycle))).await
    }

    /// Brings out what the page cache holds, and says how much is to be read; none: a disk is to be read whole.
    async fn left(&mut self) -> Result<Option<u64>, Fault> {
        let (tracking, mut freeze, disks) = (self.tracking.clone(), self.freeze.clone(), self.protected());
        let looked = spawn_blocking(move || {
            // Marks of what this brings out are taken with the others.
            freeze.look(&tracking.watched(), &tracking.still_by_themselves());
            freeze.mounts.iter().for_each(|mount| flush(mount));
            let left = tracking.gather(&disks);
            freeze.look(&tracking.watched(), &tracking.still_by_themselves());
            (freeze, left)
        });
        let (freeze, left) = looked.await.map_err(|e| Fault::Local(died(e)))?;
        self.freeze = freeze;
        Ok(left)
    }
}

/// What does not work here is done by the freeze, which takes longer then.
fn flush(mount: &Path) {
    let flushed = File::open(mount).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    if let Err(error) = flushed {
        tracing::debug!(%error, mount = %mount.display(), "the file system was not flushed before it is frozen");
    }
}

/// Whether the cut may be made with so much left.
fn is_ripe(left: Option<u64>, shrinks: bool) -> bool {
    left.is_some_and(|left| left <= if shrinks { LITTLE_BYTES } else { MUCH_BYTES })
}

fn whole(shipped: Result<Shipped, Unshipped>) -> Result<Shipped, Fault> {
    shipped.map_err(|why| match why {
        Unshipped::Fault(fault) => fault,
        Unshipped::TooMuch => Fault::Local(Error::new(ErrorKind::Bug, "only a staged cut can be too much")),
    })
}
