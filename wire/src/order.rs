//! Orders and what came of them, between their bytes and the words of the model.

use bytes::Bytes;
use landfall_model::{Consistency, Digest, DiskDigest, DiskName, OrderId, OrderKind, Outcome, Result};

use crate::begin::{consistency_from, raw_consistency};
use crate::message::{id_bytes, optional_cycle_id, text, wrong};
use crate::{DISKS_MAX, raw};

/// What an operator wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// Its name.
    pub id: OrderId,
    /// What.
    pub kind: OrderKind,
    /// Of a point: what it is to guarantee at least.
    pub consistency: Consistency,
    /// Of `stop`: the disks are compared whole, and their digests told.
    pub proof: bool,
}

fn order_id(bytes: &[u8]) -> Result<OrderId> {
    let bytes = bytes.try_into().map_err(|_| wrong(format_args!("an order id of {} bytes", bytes.len())))?;
    Ok(OrderId::from_bytes(bytes))
}

fn raw_id(id: OrderId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn order_from(raw: &raw::Order) -> Result<Order> {
    let kind = match raw.kind {
        1 => OrderKind::Point,
        2 => OrderKind::Stop,
        3 => OrderKind::Start,
        other => return Err(wrong(format_args!("an order of kind {other}"))),
    };
    Ok(Order { id: order_id(&raw.id)?, kind, consistency: consistency_from(raw.consistency)?, proof: raw.proof })
}

pub(crate) fn raw_order(order: Order) -> raw::Order {
    let kind = match order.kind {
        OrderKind::Point => 1,
        OrderKind::Stop => 2,
        OrderKind::Start => 3,
    };
    raw::Order { id: raw_id(order.id), kind, consistency: raw_consistency(order.consistency), proof: order.proof }
}

pub(crate) fn answer_from(raw: raw::Answer) -> Result<(OrderId, Outcome)> {
    let id = order_id(&raw.order)?;
    if let Some(raw::Refuse { code, reason }) = raw.failed {
        let code = u8::try_from(code).map_err(|_| wrong(format_args!("code {code}")))?;
        return Ok((id, Outcome::Failed { code, why: text("a reason", reason)? }));
    }
    if raw.disks.len() > DISKS_MAX {
        return Err(wrong(format_args!("digests of {} disks", raw.disks.len())));
    }
    let digest = |raw: raw::DiskDigest| {
        let name: DiskName = raw.name.parse().map_err(wrong)?;
        let digest = raw.digest.as_ref().try_into();
        let digest = digest.map_err(|_| wrong(format_args!("a digest of {} bytes", raw.digest.len())))?;
        Ok(DiskDigest { name, digest: Digest::from_bytes(digest) })
    };
    let disks = raw.disks.into_iter().map(digest).collect::<Result<_>>()?;
    let (cycle, consistency) = (optional_cycle_id(&raw.cycle)?, consistency_from(raw.consistency)?);
    Ok((id, Outcome::Done { cycle, consistency, disks }))
}

pub(crate) fn raw_answer(id: OrderId, outcome: Outcome) -> raw::Answer {
    let none = raw::Answer { order: raw_id(id), ..raw::Answer::default() };
    match outcome {
        Outcome::Done { cycle, consistency, disks } => {
            let digest = |disk: DiskDigest| raw::DiskDigest {
                name: disk.name.to_string(),
                digest: Bytes::copy_from_slice(disk.digest.as_bytes()),
            };
            let (consistency, disks) = (raw_consistency(consistency), disks.into_iter().map(digest).collect());
            raw::Answer { cycle: id_bytes(cycle), consistency, disks, ..none }
        }
        Outcome::Failed { code, why } => {
            raw::Answer { failed: Some(raw::Refuse { code: u32::from(code), reason: why }), ..none }
        }
    }
}
