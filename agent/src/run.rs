//! The loop of an agent: connect, ship a cycle at every interval, connect again.
//!
//! A failure of the link is met with a wait that doubles, and with the next gateway of the list; the cycle that failed is due at once. A
//! failure of this host waits for the next tick. Ticks that are missed are skipped, never made up for.
//!
//! # Cancellation
//! [`Cancel`] aborts the cycle in flight and thaws what is frozen; then the loop returns.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use landfall_model::{CycleId, Error, ErrorKind, GroupId, Result};
use landfall_wire::Order;
use tokio::time::{Instant, sleep, sleep_until};

use crate::backoff::Backoff;
use crate::cancel::Cancel;
use crate::config::AgentConfig;
use crate::freeze::Freeze;
use crate::link::{Connect, Gateways, Link, Receive};
use crate::orders::Orders;
use crate::power::Power;
use crate::qemu::Vm;
use crate::ship::{Event, Fault, Shared, Shipper};
use crate::skip::Skip;
use crate::state::StateDir;
use crate::status::StatusFile;
use crate::watch;

/// Wait before the next gateway is asked where one has refused.
const NEXT_GATEWAY_WAIT: Duration = Duration::from_secs(1);

/// Protects this host until it is cancelled. `identity` is the folder that `landfall_wire::pki::Identity` was stored in.
///
/// # Errors
/// What no later attempt can mend: `NotFound` where the machine is not enrolled, `Usage` for the configuration, `Conflict` where another
/// agent has the state directory. Everything else is logged, shown in `status.json`, and tried again.
pub async fn run(config: &AgentConfig, identity: &Path, cancel: &Cancel) -> Result<()> {
    let gateways = Gateways::open(identity, &config.machine, config.interval)?;
    let renewing = gateways.clone();
    let agent = Agent::open(config, gateways, cancel)?;
    tokio::select! {
        () = agent.run() => Ok(()),
        () = renewing.keep_renewed(&config.gateways) => Err(Error::new(ErrorKind::Bug, "the certificate is not watched any more")),
    }
}

/// Ships one cycle to the first gateway that takes it, and returns when that is durable there. Renews the certificate before, where that is
/// due: a machine that only ever does this must not be locked out.
///
/// # Errors
/// As for [`run`], and whatever keeps the cycle from being spooled.
pub async fn run_once(config: &AgentConfig, identity: &Path, cancel: &Cancel) -> Result<()> {
    let gateways = Gateways::open(identity, &config.machine, config.interval)?;
    let agent = Agent::open(config, gateways.clone(), cancel)?;
    tokio::select! {
        () = gateways.renew_if_due(&config.gateways) => {}
        () = cancel.cancelled() => {}
    }
    agent.run_once().await
}

/// What is due.
enum Due {
    /// A cycle.
    Cycle,
    /// A group's cut.
    Group(GroupId),
    /// What an operator wants.
    Order(Order),
}

/// A running agent.
pub(crate) struct Agent<C> {
    connect: C,
    gateways: Vec<String>,
    interval: Duration,
    shipper: Shipper,
    status: Arc<Mutex<StatusFile>>,
    cancel: Cancel,
    backoff: Backoff,
    /// Where in the list of gateways the next attempt begins.
    first: usize,
    /// How many gateways have refused, one after the other.
    refusals: usize,
    /// Whether a cycle was spooled since the last failure.
    spooled: bool,
    /// When the next cycle begins.
    due: Instant,
}

impl<C: Connect> Agent<C> {
    /// Opens the state directory.
    ///
    /// # Errors
    /// As for [`run`].
    pub(crate) fn open(config: &AgentConfig, connect: C, cancel: &Cancel) -> Result<Self> {
        let state = StateDir::open(&config.state_dir)?;
        let status = Arc::new(Mutex::new(StatusFile::open(&config.state_dir, &config.machine)));
        let events = status.clone();
        let record = move |event: Event| {
            log(&event);
            events.lock().unwrap_or_else(PoisonError::into_inner).event(&event);
        };
        let vm = config.qemu.as_ref().map(|qemu| Arc::new(Vm::new(qemu, &config.state_dir)));
        let shipper = Shipper {
            power: Power::of(config, vm.clone()),
            answered: None,
            application: false,
            hooked: None,
            last: None,
            digests: Vec::new(),
            late_max: config.late_max,
            skip: Skip::new(config.skip_swap),
            state: Shared::new(state),
            state_root: config.state_dir.clone(),
            disks: config.disks.clone(),
            freeze: Freeze::of(config),
            cancel: cancel.clone(),
            tracking: watch::tracking(&config.disks, &config.state_dir)?,
            vm,
            patient: true,
            orders: Orders::default(),
            events: Box::new(record),
        };
        Ok(Self {
            connect,
            gateways: config.gateways.clone(),
            interval: config.interval,
            shipper,
            status,
            cancel: cancel.clone(),
            backoff: Backoff::default(),
            first: 0,
            refusals: 0,
            spooled: false,
            due: Instant::now(),
        })
    }

    /// Runs until it is cancelled.
    pub(crate) async fn run(mut self) {
        while !self.cancel.is_set() {
            let fault = match self.connect().await {
                Ok((mut link, newest)) => self.serve(&mut link, newest).await,
                Err(fault) => fault,
            };
            self.with_status(|status| status.connected(None));
            let wait = self.wait_after(fault);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.cancel.cancelled() => {}
            }
        }
    }

    /// Ships one cycle.
    pub(crate) async fn run_once(mut self) -> Result<()> {
        self.shipper.patient = false;
        let shipped = match self.connect().await {
            Ok((mut link, newest)) => match self.shipper.orders.held() {
                Some(why) => {
                    let why = format!("the gateway lets no cycle of this machine begin: {why}");
                    Err(Fault::Refused(Error::new(ErrorKind::Unavailable, why)))
                }
                None => self.shipper.ship(&mut link, newest).await.map(|_| ()),
            },
            Err(fault) => Err(fault),
        };
        self.with_status(|status| status.connected(None));
        let Err(fault) = shipped else { return Ok(()) };
        let error = match fault {
            Fault::Link(error) | Fault::Local(error) | Fault::Refused(error) => error,
            Fault::Resync(reason) | Fault::NoGroup(reason) => Error::new(ErrorKind::Conflict, reason),
            Fault::Wait(reason) => Error::new(ErrorKind::Unavailable, reason),
            Fault::Cancelled => Error::new(ErrorKind::Unavailable, "interrupted: the cycle was not completed"),
        };
        self.with_status(|status| status.failed(&error));
        Err(error)
    }

    fn with_status(&self, change: impl FnOnce(&mut StatusFile)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Opens a link to the first gateway that answers.
    async fn connect(&mut self) -> std::result::Result<(Link<C::From>, Option<CycleId>), Fault> {
        let mut last = None;
        for n in 0..self.gateways.len() {
            let gateway = &self.gateways[(self.first + n) % self.gateways.len()];
            let opened = tokio::select! {
                opened = self.connect.connect(gateway) => opened,
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            };
            match opened {
                Ok((mut link, newest)) => {
                    tracing::info!(gateway, newest = newest.map(tracing::field::display), "connected");
                    self.first = (self.first + n) % self.gateways.len();
                    self.with_status(|status| status.connected(Some(gateway)));
                    self.shipper.orders = Orders::default();
                    self.shipper.hold(link.held.take());
                    return Ok((link, newest));
                }
                Err(error) => {
                    tracing::debug!(gateway, %error, "no link");
                    last = Some(error);
                }
            }
        }
        Err(Fault::Link(last.unwrap_or_else(|| Error::new(ErrorKind::Usage, "no gateway is configured"))))
    }

    /// Ships cycles until something ends that.
    async fn serve(&mut self, link: &mut Link<C::From>, mut newest: Option<CycleId>) -> Fault {
        loop {
            let due = match self.wait_until_due(link).await {
                Ok(due) => due,
                Err(fault) => return fault,
            };
            let begun = Instant::now();
            let shipped = match due {
                Due::Cycle => self.shipper.ship(link, newest).await.map(Some),
                Due::Group(id) => self.shipper.ship_in_group(link, newest, id).await,
                Due::Order(order) => match self.shipper.obey(link, newest, order).await {
                    Ok(known) => {
                        newest = known;
                        continue;
                    }
                    Err(fault) => Err(fault),
                },
            };
            let failed_here = matches!(shipped, Err(Fault::Local(_)));
            if matches!(shipped, Ok(Some(_))) || failed_here {
                self.due = next_tick(begun, Instant::now(), self.interval);
            }
            match shipped {
                Ok(None) => {}
                Ok(Some(shipped)) => {
                    newest = Some(shipped.cycle);
                    self.backoff.reset();
                    self.refusals = 0;
                    self.spooled = true;
                }
                Err(fault) => return fault,
            }
        }
    }

    /// Hears what the gateway says until the next cycle begins, its own or a group's.
    async fn wait_until_due<R: Receive>(&mut self, link: &mut Link<R>) -> std::result::Result<Due, Fault> {
        loop {
            if let Some((id, group)) = self.shipper.orders.prepare() {
                tracing::debug!(%group, %id, "a cut of the group is prepared");
                return Ok(Due::Group(id));
            }
            if let Some(order) = self.shipper.orders.take_order() {
                return Ok(Due::Order(order));
            }
            let held = self.shipper.orders.held().is_some();
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
                () = sleep_until(self.due), if !held => return Ok(Due::Cycle),
                incoming = link.from.next() => {
                    self.shipper.hear(incoming, None).await?;
                }
            }
        }
    }

    /// Records what ended a link, and says how long to wait before the next.
    fn wait_after(&mut self, fault: Fault) -> Duration {
        let spooled = std::mem::take(&mut self.spooled);
        let next = (self.first + 1) % self.gateways.len().max(1);
        let (error, wait) = match fault {
            Fault::Cancelled => return Duration::ZERO,
            Fault::Link(error) => {
                // In the order of the list again; but one that answers and takes no cycle does not keep the others from being asked.
                self.first = if spooled { 0 } else { next };
                (error, self.backoff.failed())
            }
            Fault::Local(error) => (error, NEXT_GATEWAY_WAIT),
            Fault::Resync(reason) | Fault::NoGroup(reason) => {
                (Error::new(ErrorKind::Conflict, reason), NEXT_GATEWAY_WAIT)
            }
            Fault::Wait(reason) => (Error::new(ErrorKind::Unavailable, reason), NEXT_GATEWAY_WAIT),
            Fault::Refused(error) => {
                self.first = next;
                self.refusals += 1;
                let all = self.refusals >= self.gateways.len();
                (error, if all { self.backoff.refused() } else { NEXT_GATEWAY_WAIT })
            }
        };
        tracing::warn!(%error, code = error.kind().exit_code(), wait_ms = wait.as_millis(), "no cycle was spooled");
        self.with_status(|status| status.failed(&error));
        wait
    }
}

/// The first tick after now of those that the cycle began one of.
fn next_tick(begun: Instant, now: Instant, interval: Duration) -> Instant {
    let missed = now.duration_since(begun).as_nanos() / interval.as_nanos().max(1);
    begun + interval * u32::try_from(missed + 1).unwrap_or(u32::MAX)
}

fn log(event: &Event) {
    match event {
        Event::Cut { cycle, time } => tracing::debug!(%cycle, %time, "cut"),
        Event::Waits(why) => tracing::warn!(why, "everything must be sent, and waits"),
        Event::Spooled(shipped) => tracing::info!(
            cycle = %shipped.cycle,
            time = %shipped.time,
            full = shipped.full,
            sent_bytes = shipped.sent_bytes,
            read_bytes = shipped.read_bytes,
            elapsed_ms = shipped.elapsed.as_millis(),
            held_ms = shipped.held.as_millis(),
            "spooled"
        ),
        Event::Round(shipped) => tracing::debug!(
            cycle = %shipped.cycle,
            sent_bytes = shipped.sent_bytes,
            read_bytes = shipped.read_bytes,
            elapsed_ms = shipped.elapsed.as_millis(),
            "a round is spooled"
        ),
        Event::Committed { cycle, timeline, seq, .. } => tracing::info!(%cycle, %timeline, %seq, "committed"),
        Event::Held(Some(why)) => tracing::warn!(why, "the gateway holds this machine: no cycle begins"),
        Event::Held(None) => tracing::info!("the gateway holds this machine no longer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_skipped_and_the_grid_is_kept() {
        let begun = Instant::now();
        let seconds = Duration::from_secs;
        assert_eq!(next_tick(begun, begun, seconds(30)), begun + seconds(30));
        assert_eq!(next_tick(begun, begun + seconds(29), seconds(30)), begun + seconds(30));
        assert_eq!(next_tick(begun, begun + seconds(30), seconds(30)), begun + seconds(60));
        assert_eq!(next_tick(begun, begun + seconds(100), seconds(30)), begun + seconds(120));
    }
}
