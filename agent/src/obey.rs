//! Orders: what an operator wants this machine to do, by way of its gateway (ADR 0026).
//!
//! ```text
//!   Order(point) -> a cycle as any other            -> Answer: its name, and what it guarantees
//!   Order(stop)  -> the machine is stopped -> the last cycle, compared whole -> Answer: its name, digests of the disks
//!   Order(start) -> the machine goes on             -> Answer
//! ```
//! Cycles go on after `stop`: they hold nothing where nothing writes, and show it where something does.
//!
//! The gateway may say an order again where a link has ended in between. Each is right to do twice; one that was answered is answered again.

use landfall_model::{Consistency, CycleId, Error, ErrorKind, OrderKind, Outcome};
use landfall_wire::{FromAgent, Order};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::compare::Stop;
use crate::history::Plan;
use crate::link::{Link, Receive};
use crate::ship::{Fault, Shipper, StopOnDrop, died, shortened};

/// How the last cycle of a machine that was stopped is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Last {
    /// The disks are compared whole, and a digest is made of each.
    pub(crate) proof: bool,
}

impl Shipper {
    /// Does what an order says, and answers. Returns the newest cycle of the gateway then.
    ///
    /// # Errors
    /// Where the link is of no use any more. What fails here is answered.
    pub(crate) async fn obey<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
        order: Order,
    ) -> Result<Option<CycleId>, Fault> {
        if let Some((id, outcome)) = &self.answered
            && *id == order.id
        {
            let answer = FromAgent::Answer(*id, outcome.clone());
            self.deliver(link, answer).await?;
            return Ok(newest);
        }
        tracing::info!(order = %order.id, kind = ?order.kind, "an operator's order");
        let done = match order.kind {
            OrderKind::Point => {
                self.application = order.consistency == Consistency::Application;
                let point = self.point(link, newest).await;
                self.application = false;
                point
            }
            OrderKind::Stop => self.stop(link, newest, Last { proof: order.proof }).await,
            OrderKind::Start => self.start(link).await,
        };
        let outcome = match done {
            Ok(outcome) => outcome,
            Err(Fault::Local(error)) => {
                tracing::warn!(%error, order = %order.id, "an order cannot be done");
                Outcome::Failed { code: error.kind().exit_code(), why: shortened(error.line()) }
            }
            Err(Fault::Wait(why)) => Outcome::Failed { code: ErrorKind::Unavailable.exit_code(), why: shortened(why) },
            // Said again on the next link.
            Err(fault) => return Err(fault),
        };
        let cycle = match &outcome {
            Outcome::Done { cycle, .. } => *cycle,
            Outcome::Failed { .. } => None,
        };
        self.answered = Some((order.id, outcome.clone()));
        self.deliver(link, FromAgent::Answer(order.id, outcome)).await?;
        Ok(cycle.or(newest))
    }

    async fn point<R: Receive>(&mut self, link: &mut Link<R>, newest: Option<CycleId>) -> Result<Outcome, Fault> {
        let shipped = self.ship(link, newest).await?;
        Ok(Outcome::Done { cycle: Some(shipped.cycle), consistency: shipped.consistency, disks: Vec::new() })
    }

    async fn stop<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        newest: Option<CycleId>,
        last: Last,
    ) -> Result<Outcome, Fault> {
        // A machine that waits for hours with its last cycle is not stopped for it.
        let not_now = |why: String| Err(Fault::Local(Error::new(ErrorKind::Unavailable, why)));
        if let Some(why) = self.orders.held() {
            return not_now(format!("it is not stopped while its gateway lets no cycle begin: {why}"));
        }
        if let Plan::Full { reason } = self.state.run(move |state| state.plan(newest)).await? {
            return not_now(format!(
                "it is not stopped before everything was sent once more ({reason}): try again then"
            ));
        }
        let (power, flag) = (self.power.clone(), StopOnDrop(Stop::default()));
        let stop = flag.0.clone();
        self.meanwhile(link, spawn_blocking(move || power.stop(&|| stop.is_set()))).await?;
        (self.last, self.patient) = (Some(last), false);
        let shipped = self.ship(link, newest).await;
        (self.last, self.patient) = (None, true);
        let error = match shipped {
            Ok(shipped) => {
                let disks = std::mem::take(&mut self.digests);
                return Ok(Outcome::Done { cycle: Some(shipped.cycle), consistency: shipped.consistency, disks });
            }
            // Somebody has failed it over already: it must not run here.
            Err(Fault::Refused(error)) if error.kind() == ErrorKind::Conflict => return Err(Fault::Refused(error)),
            Err(Fault::Local(error) | Fault::Refused(error)) => error,
            Err(Fault::Wait(why) | Fault::Resync(why) | Fault::NoGroup(why)) => Error::new(ErrorKind::Unavailable, why),
            // Said again on the next link.
            Err(fault @ (Fault::Link(_) | Fault::Cancelled)) => return Err(fault),
        };
        // Nobody fails over with this: the machine is wanted here.
        let error = error.context("the machine was stopped, its last cycle failed");
        let also = self.start(link).await.err();
        Err(Fault::Local(match also {
            Some(Fault::Local(other)) => error.context(format!("it cannot be started again either ({other})")),
            _ => error,
        }))
    }

    async fn start<R: Receive>(&mut self, link: &mut Link<R>) -> Result<Outcome, Fault> {
        let (power, flag) = (self.power.clone(), StopOnDrop(Stop::default()));
        let stop = flag.0.clone();
        self.meanwhile(link, spawn_blocking(move || power.start(&|| stop.is_set()))).await?;
        Ok(Outcome::Done { cycle: None, consistency: Consistency::Crash, disks: Vec::new() })
    }

    /// Waits for something that blocks, and hears what the gateway says meanwhile.
    async fn meanwhile<R: Receive>(
        &mut self,
        link: &mut Link<R>,
        mut work: JoinHandle<landfall_model::Result<()>>,
    ) -> Result<(), Fault> {
        loop {
            tokio::select! {
                done = &mut work => return done.map_err(died).flatten().map_err(Fault::Local),
                incoming = link.from.next() => {
                    self.hear(incoming, None).await?;
                }
                () = self.cancel.cancelled() => return Err(Fault::Cancelled),
            }
        }
    }
}
