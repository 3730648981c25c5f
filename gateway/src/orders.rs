//! Orders of operators: found in the vault, given to the agents that have a link here, and answered there (ADR 0026).
//!
//! ```text
//!   asked, in time, its machine has a link here --> taken (put if absent: one gateway) --> said on the link --> answered by the agent --> over
//! ```
//! One that was taken is said again on every new link of its machine, here or at another gateway, until it is answered or too old. What an order says is little more than
//! its kind: what is run for it stands in the agent's configuration.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use landfall_model::{ErrorKind, MachineName, OrderId, OrderMeta, OrderState, Outcome, Result};
use landfall_vault::{Order, Vault, now};
use landfall_wire::{FromGateway, ORDERS_SINCE};
use tokio::sync::watch;

use crate::groups::Groups;

/// How often the vault is asked: one listing of a folder that has what was ordered today.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Orders that are not over and are kept in mind at once. More are looked at when some are.
const OPEN_MAX: usize = 1024;

/// An order that is not over.
struct Open {
    order: Order,
    /// How many records it had.
    records: usize,
    /// The link on which it was said.
    said: Option<u64>,
    /// What the agent said.
    answer: Option<Outcome>,
}

/// The orders that a gateway knows.
pub(crate) struct Orders {
    vault: Vault,
    links: Arc<Groups>,
    open: Mutex<HashMap<OrderId, Open>>,
    /// Those that nothing more is done about.
    over: Mutex<HashSet<OrderId>>,
    /// Something is to be written.
    answers: watch::Sender<()>,
}

impl Orders {
    pub(crate) fn new(vault: Vault, links: Arc<Groups>) -> Self {
        Self { vault, links, open: Mutex::default(), over: Mutex::default(), answers: watch::Sender::new(()) }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<OrderId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> std::sync::MutexGuard<'_, HashSet<OrderId>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an agent says of an order. Of one that it was not given, nothing is believed.
    pub(crate) fn answered(&self, machine: &MachineName, id: OrderId, outcome: Outcome) {
        let mut open = self.open();
        let Some(known) = open.get_mut(&id).filter(|o| o.order.meta.machine == *machine && o.said.is_some()) else {
            tracing::warn!(%machine, order = %id, "an agent answers what it was not told");
            return;
        };
        known.answer.get_or_insert(outcome);
        drop(open);
        self.answers.send_replace(());
    }

    /// Looks for orders again and again, until told to end.
    pub(crate) async fn run(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        let mut answers = self.answers.subscribe();
        loop {
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "orders cannot be looked for");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = answers.changed() => {}
                _ = ended.wait_for(|e| *e) => return,
            }
        }
    }

    async fn look(&self) -> Result<()> {
        let listed: BTreeMap<OrderId, usize> = self.vault.orders_at(now()).await?.into_iter().collect();
        self.open().retain(|id, _| listed.contains_key(id));
        self.over().retain(|id| listed.contains_key(id));
        for (id, records) in listed {
            if self.over().contains(&id) {
                continue;
            }
            match self.one(id, records).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => tracing::warn!(%error, order = %id, "an order is left alone"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn one(&self, id: OrderId, records: usize) -> Result<()> {
        let known = self.open().get(&id).map(|o| (o.records, o.order.clone(), o.said, o.answer.clone()));
        let (order, said, answer) = match known {
            Some((seen, order, said, answer)) if seen == records => (order, said, answer),
            None if self.open().len() >= OPEN_MAX => return Ok(()),
            _ => {
                let order = self.vault.order(id).await?;
                self.open().insert(id, Open { order: order.clone(), records, said: None, answer: None });
                (order, None, None)
            }
        };
        let asked = order.meta.state == OrderState::Asked;
        if matches!(order.meta.state, OrderState::Over(_)) || asked && now() > order.meta.until {
            self.open().remove(&id);
            self.over().insert(id);
            return Ok(());
        }
        if let Some(outcome) = answer {
            return self.write(&order, OrderState::Over(outcome)).await.map(|_| ());
        }
        let Some(link) = self.links.link(&order.meta.machine).filter(|link| said != Some(link.number)) else {
            return Ok(());
        };
        if link.version < ORDERS_SINCE {
            let why = "the machine's agent is of an older version, which takes no orders: update it".to_owned();
            let outcome = Outcome::Failed { code: ErrorKind::Unsupported.exit_code(), why };
            return self.write(&order, OrderState::Over(outcome)).await.map(|_| ());
        }
        if asked && !self.write(&order, OrderState::Taken).await? {
            // Another gateway was first: seen when it is listed.
            return Ok(());
        }
        let OrderMeta { kind, consistency, proof, machine, .. } = order.meta;
        tracing::info!(%machine, order = %id, ?kind, "an operator's order");
        // Before it is said: the answer may come at once.
        if let Some(open) = self.open().get_mut(&id) {
            open.said = Some(link.number);
        }
        let order = FromGateway::Order(landfall_wire::Order { id, kind, consistency, proof });
        if link.orders.try_send(order).is_err() {
            // What waits on the link is said first.
            if let Some(open) = self.open().get_mut(&id) {
                open.said = None;
            }
        }
        Ok(())
    }

    /// Writes the next state; `false` where another gateway has written one.
    async fn write(&self, order: &Order, state: OrderState) -> Result<bool> {
        let meta = OrderMeta { state, ..order.meta.clone() };
        let id = meta.order;
        match self.vault.put_order(meta, Some(order)).await {
            Ok(order) => {
                if let Some(open) = self.open().get_mut(&id) {
                    (open.order, open.records) = (order, open.records + 1);
                }
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.open().remove(&id);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use landfall_keys::{RecoveryKey, SiteKey};
    use landfall_model::{Consistency, CycleId, OrderKind, Timestamp, VaultId};
    use landfall_vault::Store;
    use landfall_wire::FromGateway;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::groups::Member;

    struct World {
        orders: Orders,
        groups: Arc<Groups>,
        vault: Vault,
    }

    fn web() -> MachineName {
        "web".parse().expect("a name")
    }

    fn done() -> Outcome {
        let cycle = Some(CycleId::from_bytes([5; 16]));
        Outcome::Done { cycle, consistency: Consistency::Filesystem, disks: Vec::new() }
    }

    impl World {
        async fn new() -> Self {
            let id = VaultId::from_bytes([3; 16]);
            let recovery = RecoveryKey::generate(id).expect("randomness");
            let site = SiteKey::generate(id, recovery.root_public()).expect("randomness");
            let folder = tempfile::tempdir().expect("a folder").keep();
            let store = Store::open(&format!("file://{}", folder.display())).expect("a store");
            let vault = Vault::create(store, &recovery, site, now()).await.expect("a vault");
            let groups = Arc::new(Groups::new(&[]));
            Self { orders: Orders::new(vault.clone(), groups.clone()), groups, vault }
        }

        fn link(&self, version: u32) -> (Member, Receiver<FromGateway>) {
            self.groups.join(&web(), version)
        }

        /// Orders a stop, to be taken until so many milliseconds from now.
        async fn order(&self, until_ms: i64) -> OrderId {
            let created = now();
            let order = OrderId::of(created, landfall_vault::random().expect("randomness"));
            let until = Timestamp::from_millis(created.millis() + until_ms);
            let (kind, consistency, state) = (OrderKind::Stop, Consistency::Crash, OrderState::Asked);
            let meta = OrderMeta { order, machine: web(), kind, consistency, proof: true, created, until, state };
            self.vault.put_order(meta, None).await.expect("written").meta.order
        }

        async fn look(&self) {
            self.orders.look().await.expect("a store that answers");
        }

        async fn state(&self, id: OrderId) -> OrderState {
            self.vault.order(id).await.expect("there").meta.state
        }
    }

    fn said(orders: &mut Receiver<FromGateway>) -> Option<OrderId> {
        match orders.try_recv() {
            Ok(FromGateway::Order(order)) => Some(order.id),
            _ => None,
        }
    }

    #[tokio::test]
    async fn an_order_is_said_once_on_a_link_and_again_on_the_next_until_it_is_answered() {
        let world = World::new().await;
        let id = world.order(60_000).await;
        world.look().await;
        assert_eq!(world.state(id).await, OrderState::Asked, "its machine is not here");
        let (member, mut first) = world.link(3);
        world.look().await;
        assert_eq!((said(&mut first), world.state(id).await), (Some(id), OrderState::Taken));
        world.look().await;
        assert_eq!(said(&mut first), None);
        drop(member);
        let (_member, mut second) = world.link(3);
        world.look().await;
        assert_eq!(said(&mut second), Some(id));
        // Another machine's agent, and what nobody was told.
        world.orders.answered(&"db".parse().expect("a name"), id, done());
        world.orders.answered(&web(), OrderId::of(now(), [9; 8]), done());
        world.look().await;
        assert_eq!(world.state(id).await, OrderState::Taken);
        world.orders.answered(&web(), id, done());
        world.look().await;
        assert_eq!(world.state(id).await, OrderState::Over(done()));
        world.look().await;
        assert_eq!(said(&mut second), None);
    }

    #[tokio::test]
    async fn another_gateway_says_again_what_a_lost_one_has_taken_and_never_what_is_too_old() {
        let world = World::new().await;
        let (taken, old) = (world.order(60_000).await, world.order(-1).await);
        let (_member, mut orders) = world.link(3);
        world.look().await;
        assert_eq!((said(&mut orders), said(&mut orders)), (Some(taken), None));
        assert_eq!(world.state(old).await, OrderState::Asked);
        let groups = Arc::new(Groups::new(&[]));
        let second = Orders::new(world.vault.clone(), groups.clone());
        let (_member, mut orders) = groups.join(&web(), 3);
        second.look().await.expect("a store that answers");
        assert_eq!((said(&mut orders), said(&mut orders)), (Some(taken), None));
    }

    #[tokio::test]
    async fn what_was_withdrawn_is_not_said_again() {
        let world = World::new().await;
        let id = world.order(60_000).await;
        let (member, mut orders) = world.link(3);
        world.look().await;
        assert_eq!(said(&mut orders), Some(id));
        let taken = world.vault.order(id).await.expect("there");
        let over = OrderMeta {
            state: OrderState::Over(Outcome::Failed { code: 7, why: String::new() }),
            ..taken.meta.clone()
        };
        world.vault.put_order(over.clone(), Some(&taken)).await.expect("withdrawn");
        drop(member);
        let (_member, mut orders) = world.link(3);
        world.look().await;
        assert_eq!(said(&mut orders), None);
        world.orders.answered(&web(), id, done());
        world.look().await;
        assert_eq!(world.state(id).await, over.state);
    }

    #[tokio::test]
    async fn an_agent_that_takes_no_orders_is_not_told_and_whoever_waits_is() {
        let world = World::new().await;
        let id = world.order(60_000).await;
        let (_member, mut orders) = world.link(2);
        world.look().await;
        assert_eq!(said(&mut orders), None);
        let OrderState::Over(Outcome::Failed { code, why }) = world.state(id).await else { panic!("refused") };
        assert!(code == ErrorKind::Unsupported.exit_code() && why.contains("update"), "{why}");
    }
}
