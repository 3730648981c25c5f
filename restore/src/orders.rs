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
/// Points that are looked at for a cycle that was taken a moment ago.
const LAST_POINTS: usize = 64;
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

/// The name of an order that is to be given now.
///
/// # Errors
/// `Unavailable` where the host has no randomness.
pub fn new_id() -> Result<OrderId> {
    Ok(OrderId::of(now(), landfall_vault::random()?))
}

/// Withdraws an order that nobody waits for any more: who has not heard it never will. What came of it, where it is over.
///
/// # Errors
/// `Unavailable`; `Corrupt` where its record is damaged.
pub async fn withdraw(vault: &Vault, order: OrderId) -> Result<Option<Outcome>> {
    loop {
        let row = match vault.order(order).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            row => row?,
        };
        if let OrderState::Over(outcome) = row.meta.state {
            return Ok(Some(outcome));
        }
        let (code, why) = (ErrorKind::Unavailable.exit_code(), "it was withdrawn".to_owned());
        let over = OrderMeta { state: OrderState::Over(Outcome::Failed { code, why }), ..row.meta.clone() };
        match vault.put_order(over, Some(&row)).await {
            // Its gateway was a moment faster.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            put => return put.map(|_| None),
        }
    }
}

/// Gives an order of a new name, and waits until it is done. `told` hears how far it is. One that is not done in time is withdrawn.
///
/// # Errors
/// `Unavailable` where no gateway takes it, or the agent does not answer, in time; what the agent says.
pub async fn give(vault: &Vault, order: OrderId, request: Request, mut told: impl FnMut(&str)) -> Result<Done> {
    let Request { machine, kind, consistency, proof, taken_max, done_max } = request;
    let created = now();
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
            Some(OrderState::Over(outcome)) => return done(outcome, &name),
            Some(OrderState::Taken) if taken.is_none() => {
                taken = Some(Instant::now());
                told("the machine's agent was told");
            }
            _ => {}
        }
        let late = |what: &str| Error::new(ErrorKind::Unavailable, format!("machine {name}: {what}"));
        let late = match taken {
            None if asked.elapsed() > taken_max + CLOCKS_MAX => late(
                "no gateway told its agent in time: see `landfall status` at the source whether its agent is connected",
            ),
            Some(taken) if taken.elapsed() > done_max => late("its agent was told, and has not said that it is done"),
            _ => continue,
        };
        return match withdraw(vault, order).await {
            Ok(Some(outcome)) => done(outcome, &name),
            Ok(None) => Err(late),
            Err(error) => Err(late.context(format!("the order could not be withdrawn ({error})"))),
        };
    }
}

fn done(outcome: Outcome, machine: &MachineName) -> Result<Done> {
    match outcome {
        Outcome::Done { cycle, consistency, disks } => Ok(Done { cycle, consistency, disks }),
        Outcome::Failed { code, why } => {
            let kind = ErrorKind::of_exit_code(code).unwrap_or(ErrorKind::Unavailable);
            Err(Error::new(kind, why).context(format_args!("the agent of {machine}")))
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
        let why = match look_for(vault, machine, cycle, &mut seen).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => "its gateway has it, and cannot reach the store".to_owned(),
            // Of a store that is away for a moment.
            Err(error) if error.kind() == ErrorKind::Unavailable => error.line(),
            Err(error) => return Err(error),
        };
        if begun.elapsed() > longest {
            let why = format!("the cycle {cycle} of machine {machine} is not a recovery point yet: {why}");
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The point of a cycle, among those that were not `seen`.
async fn look_for(
    vault: &Vault,
    machine: &MachineName,
    cycle: CycleId,
    seen: &mut Option<PointKey>,
) -> Result<Option<(PointKey, Point)>> {
    let log = vault.machine(machine);
    let line = log.line().await?;
    // The newest comes last; what was looked at is not looked at again.
    let mut new: Vec<PointKey> = line.iter().rev().take_while(|key| Some(**key) != *seen).copied().collect();
    if seen.is_none() {
        // A cycle of a moment ago is one of the last.
        new.truncate(LAST_POINTS);
    }
    for key in &new {
        let point = log.point(*key).await?;
        if point.meta().cycle == Some(cycle) {
            return Ok(Some((*key, point)));
        }
    }
    *seen = line.last().copied().or(*seen);
    Ok(None)
}
