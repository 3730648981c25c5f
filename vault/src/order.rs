//! Orders: what a machine's agent is told to do, by whoever has the vault, wherever he stands (FORMAT.md section 8).

use std::collections::BTreeSet;
use std::time::Duration;

use landfall_model::{OrderId, OrderMeta, Result, Timestamp};

use crate::layout::{self, Name};
use crate::record::Kind;
use crate::row::{Row, State};
use crate::vault::Vault;

/// Nobody begins an order that is older. One that was begun may be given again for a day.
pub const ORDER_TIME: Duration = Duration::from_secs(120);
/// After so long nobody looks for it any more.
pub(crate) const ORDER_AGAIN: Duration = Duration::from_secs(25 * 3600);

/// An order as it was read or written last.
pub type Order = Row<OrderMeta>;

impl State for OrderMeta {
    const KIND: Kind = Kind::Order;
    const WHAT: &str = "order";
    const SEE: &str = "`landfall status`";
    type Id = OrderId;

    fn id(&self) -> OrderId {
        self.order
    }

    fn id_bytes(id: OrderId) -> [u8; 16] {
        *id.as_bytes()
    }

    fn folder(id: OrderId) -> String {
        layout::order(id)
    }
}

impl Vault {
    /// The orders that may still be open at a moment, ascending, each with how many records it has: two requests, that of the day before among them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn orders_at(&self, now: Timestamp) -> Result<Vec<(OrderId, usize)>> {
        let again = i64::try_from(ORDER_AGAIN.as_millis()).unwrap_or(i64::MAX);
        let oldest = OrderId::of(Timestamp::from_millis(now.millis().saturating_sub(again)), [0; 8]);
        let mut found: Vec<(OrderId, usize)> = Vec::new();
        for day in oldest.day()..=OrderId::of(now, [0; 8]).day() {
            for object in self.store().list(&layout::orders(day)).await? {
                let Some(Name::Order(id, _)) = layout::parse(&object.name) else { continue };
                match found.last_mut() {
                    Some((last, records)) if *last == id => *records += 1,
                    _ if id >= oldest => found.push((id, 1)),
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// All orders.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn orders(&self) -> Result<BTreeSet<OrderId>> {
        let listed = self.store().list(layout::ORDERS).await?;
        let id = |name: &str| match layout::parse(name)? {
            Name::Order(id, _) => Some(id),
            _ => None,
        };
        Ok(listed.iter().filter_map(|o| id(&o.name)).collect())
    }

    /// Reads an order as it is now.
    ///
    /// # Errors
    /// As for [`Vault::job`].
    pub async fn order(&self, id: OrderId) -> Result<Order> {
        self.row(id).await
    }

    /// Writes the next state of an order; `before`: as it was read or written last, none for a new one.
    ///
    /// # Errors
    /// As for [`Vault::put_job`].
    pub async fn put_order(&self, meta: OrderMeta, before: Option<&Order>) -> Result<Order> {
        self.put_row(meta, before).await
    }
}
