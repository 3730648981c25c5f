//! Orders to a protected machine, by way of the vault: its gateway finds them there, and its agent does what they say (ADR 0026).

use std::time::Duration;

use landfall_model::{
    Consistency, CycleId, DiskDigest, Error, ErrorKind, MachineName, OrderId, OrderKind, OrderMeta, OrderState,
    Outcome, Result, Timestamp,
};
use landfall_vault::{ORDER_TIME, Order, Point, PointKey, Vault, now};
use tokio::time::{Instant, sleep};

/// How often it is looked what came of an order.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clocks of hosts differ by so much: after it, nobody takes an order whose time is over.
const CLOCKS_MAX: Duration = Duration::from_secs(5);
/// After a cycle was taken it becomes a point within this time, unless the gateway cannot reach the store.
pub const COMMIT_MAX: Duration = Duration::from_secs(600);

/// An order that is to be given.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whose agent.
    pub machine: MachineName,
    /// What.
    pub kind: OrderKind,
    /// Of a point: what it is to guarantee at least.
    pub consistency: Consistency,
    /// Of `stop`: the disks are compared whole, and their digests told.
    pub proof: bool,
    /// A gateway must have taken it by then.
    pub taken_max: Duration,
    /// How long it is waited for once it was taken.
    pub done_max: Duration,
}

impl Request {
    /// An order of this kind, with usual limits.
    pub fn of(machine: &MachineName, kind: OrderKind) -> Self {
        let (machine, day) = (machine.clone(), Duration::from_secs(24 * 3600));
        let (consistency, proof) = (Consistency::Crash, false);
        Self { machine, kind, consistency, proof, taken_max: ORDER_TIME, done_max: day }
    }
}

/// What came of an order that was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// The cycle that was taken for it.
    pub cycle: Option<CycleId>,
    /// What that guarantees.
    pub consistency: Consistency,
    /// The machine's disks, where they were asked for.
    pub disks: Vec<DiskDigest>,
}

/// Gives an order, and waits until it is done. `told` hears how far it is.
///
/// # Errors
/// `Unavailable` where no gateway takes it, or the agent does not answer, in time; what the agent says.
pub async fn give(vault: &Vault, request: Request, mut told: impl FnMut(&str)) -> Result<Done> {
    let Request { machine, kind, consistency, proof, taken_max, done_max } = request;
    let created = now();
    let order = OrderId::of(created, landfall_vault::random()?);
    let taken_ms = i64::try_from(taken_max.as_millis()).unwrap_or(i64::MAX / 2);
    let until = Timestamp::from_millis(created.millis().saturating_add(taken_ms));
    let state = OrderState::Asked;
    let name = machine.clone();
    vault.put_order(OrderMeta { order, machine, kind, consistency, proof, created, until, state }, None).await?;
    told("waiting for the machine's gateway");
    let asked = Instant::now();
    let mut taken = None;
    loop {
        sleep(LOOK_EVERY).await;
        let read = match vault.order(order).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "what came of an order cannot be read: it is tried again");
                None
            }
            read => Some(read?),
        };
        match read.map(|order: Order| order.meta.state) {
            Some(OrderState::Over(Outcome::Done { cycle, consistency, disks })) => {
                return Ok(Done { cycle, consistency, disks });
            }
            Some(OrderState::Over(Outcome::Failed { code, why })) => {
                let kind = ErrorKind::of_exit_code(code).unwrap_or(ErrorKind::Unavailable);
                return Err(Error::new(kind, why).context(format_args!("the agent of {name}")));
            }
            Some(OrderState::Taken) if taken.is_none() => {
                taken = Some(Instant::now());
                told("the machine's agent was told");
            }
            _ => {}
        }
        let late = |what: &str| Error::new(ErrorKind::Unavailable, format!("machine {name}: {what}"));
        match taken {
            None if asked.elapsed() > taken_max + CLOCKS_MAX => {
                return Err(late(
                    "no gateway told its agent in time: see `landfall status` at the source whether its agent is connected",
                ));
            }
            Some(taken) if taken.elapsed() > done_max => {
                return Err(late("its agent was told, and has not said that it is done"));
            }
            _ => {}
        }
    }
}

/// The point that a cycle has become, once it is committed.
///
/// # Errors
/// `Unavailable` where it is not in time.
pub async fn point_of(
    vault: &Vault,
    machine: &MachineName,
    cycle: CycleId,
    longest: Duration,
) -> Result<(PointKey, Point)> {
    let begun = Instant::now();
    let mut seen: Option<PointKey> = None;
    loop {
        let log = vault.machine(machine);
        let line = log.line().await?;
        // The newest comes last; what was looked at is not looked at again.
        let new = line.iter().rev().take_while(|key| seen.is_none_or(|seen| **key != seen));
        let mut new: Vec<PointKey> = new.copied().collect();
        if seen.is_none() {
            // A cycle of a moment ago is one of the last.
            new.truncate(64);
        }
        for key in &new {
            let point = log.point(*key).await?;
            if point.meta().cycle == Some(cycle) {
                return Ok((*key, point));
            }
        }
        seen = line.last().copied().or(seen);
        if begun.elapsed() > longest {
            let why = format!(
                "the cycle {cycle} of machine {machine} is not a recovery point yet: its gateway has it, and cannot reach the store"
            );
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        sleep(LOOK_EVERY).await;
    }
}
