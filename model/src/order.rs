//! What a machine's agent is told to do, by way of the vault (FORMAT.md section 8), and what came of it.

use serde::{Deserialize, Serialize};

use crate::{Consistency, CycleId, Digest, DiskName, MachineName, OrderId, Timestamp};

const DAY_MS: u64 = 24 * 3600 * 1000;

impl OrderId {
    /// The id of an order of a moment. Ids ascend with time.
    pub fn of(at: Timestamp, random: [u8; 8]) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&u64::try_from(at.millis()).unwrap_or(0).to_be_bytes());
        bytes[8..].copy_from_slice(&random);
        Self::from_bytes(bytes)
    }

    /// The day of its moment, in UTC: days since 1970.
    pub fn day(self) -> u64 {
        let mut millis = [0; 8];
        millis.copy_from_slice(&self.as_bytes()[..8]);
        u64::from_be_bytes(millis) / DAY_MS
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderKind {
    /// A recovery point now.
    Point,
    /// The machine is stopped, and its last cycle sent.
    Stop,
    /// A machine that was stopped by an order goes on.
    Start,
}

/// A disk as its source had it when the last cycle was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskDigest {
    /// Its name.
    pub name: DiskName,
    /// Of all its bytes: docs/FORMAT.md section 8.
    pub digest: Digest,
}

/// What came of an order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was done.
    Done {
        /// The cycle that was taken for it; none for `start`.
        cycle: Option<CycleId>,
        /// What that cycle guarantees.
        consistency: Consistency,
        /// The disks at the last cycle, where they were asked for.
        disks: Vec<DiskDigest>,
    },
    /// It was not done, or not to its end: the exit code that the reason stands for, and the reason.
    Failed {
        /// See docs: exit codes.
        code: u8,
        /// Why.
        why: String,
    },
}

/// How far an order is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrderState {
    /// No gateway has taken it.
    Asked,
    /// The machine's agent was told.
    Taken,
    /// It is over.
    Over(Outcome),
}

/// Body of a record of an order: all of its state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OrderMeta {
    /// Which order.
    pub order: OrderId,
    /// Whose agent.
    pub machine: MachineName,
    /// What is to be done.
    pub kind: OrderKind,
    /// Of a point: what it is to guarantee at least.
    pub consistency: Consistency,
    /// Of `stop`: whether the disks are compared whole, and their digests told.
    pub proof: bool,
    /// When it was made.
    pub created: Timestamp,
    /// Nobody begins it later.
    pub until: Timestamp,
    /// How far it is.
    pub state: OrderState,
}
