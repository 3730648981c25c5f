//! Tests with devices of this host: loop devices, their partitions, zram.

mod figures;
mod kinds;
mod law;
mod losses;
pub(crate) mod rig;
