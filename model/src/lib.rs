//! The words of Landfall as types: ids, names, units, extents and the metadata of recovery points.
//!
//! Pure values: no I/O, no clock, no randomness, no async. Everything else in the workspace stands on this crate.

mod block_set;
mod drill;
mod error;
mod extent;
mod id;
mod job;
mod map;
mod name;
pub mod num;
mod order;
mod point;
mod profile;
mod progress;
mod time;

pub use block_set::BlockSet;
pub use drill::{DrillMeta, DrillPicture, DrillProbe, DrillResult};
pub use error::{Error, ErrorKind, Result};
pub use extent::{Extent, ExtentSet};
pub use id::{
    ChunkId, CycleId, Digest, DomainId, EpochId, GatewayId, Generation, GroupId, IdError, JobId, MachineId, OrderId,
    RecipientId, SegmentId, Seq, SiteKeyId, Timeline, VaultId,
};
pub use job::{JobKind, JobMeta, JobPoint, JobSource, JobState, JobStep};
pub use map::{ChunkRef, Codec, Entry, EntryKind, Location, MapError, RegionMap, Source};
pub use name::{DiskName, DomainName, GroupName, MachineName, NameError};
pub use order::{DiskDigest, OrderKind, OrderMeta, OrderState, Outcome};
pub use point::{
    Consistency, Counters, DiskMeta, GenerationMeta, GroupMark, HeartbeatMeta, HookResult, MachineShape, Nic,
    PointMeta, RevocationMeta,
};
pub use profile::BootProfile;
pub use progress::Progress;
pub use time::{TimeError, Timestamp};
