//! The restore side: materialise. From a recovery point to disks, fetching nothing twice and writing nothing that is equal.
//!
//! ```text
//!  view: maps of the point --region by region--> compare.rs (existing disk: what differs) or all data
//!      --> plan.rs: what to fetch, sorted by object and place, each chunk once, near ones in one request
//!      --> fetch.rs: many in flight --> write.rs: open, decompress, check the name, write where it belongs
//! ```
//! The recovery key is needed, and nothing from the old site.

mod boot;
mod cache;
mod compare;
mod disk_view;
pub mod drill;
mod export;
pub mod failover;
mod fetch;
mod kvm;
mod openers;
pub mod orders;
mod overlay;
mod plan;
mod proof;
mod rehydrate;
mod write;

pub use disk_view::{DiskView, PointView};
pub use export::ReadOnly;
pub use overlay::Overlay;
pub use rehydrate::{Damage, DiskOutcome, Options, Outcome, TargetSpec, rehydrate};
