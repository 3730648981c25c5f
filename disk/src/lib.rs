//! Block I/O on files and devices, and the containers that disks come in.
//!
//! Two halves: [`RawReader`] is where capture reads, [`Target`] is what materialise compares with and writes to. Both
//! are blocking, take `&self`, and are used from many threads at once: every call names its offset, none moves a shared
//! position. Calls of different threads must not overlap in the bytes they write.
//!
//! What a killed run leaves on disk is decided in one module, `place`, and described there.
//!
//! For images on file systems and volumes that can tell: [`clone_file`] takes a moment's copy, [`changed_blocks`] tells what
//! differs between two of them; [`thin_delta`] and [`zstream_dump`] read what other snapshots' own tools tell.

mod aligned;
mod changes;
mod clone;
mod convert;
mod digest;
mod direct;
mod error;
mod extent_map;
mod format;
mod holes;
mod physical;
mod place;
mod qcow2;
mod raw;
mod reader;
mod target;
mod thin;
mod uncached;
mod understand;
mod vhd;
mod zvol;

pub use aligned::{AlignedBuf, DIRECT_ALIGN};
pub use changes::changed_blocks;
pub use clone::clone_file;
pub use digest::DiskDigester;
pub use error::{DiskError, DiskErrorKind, Operation, Reason, Result};
pub use format::{Existing, Format, UnknownName};
pub use physical::places_on_device;
pub use reader::RawReader;
pub use target::Target;
pub use thin::thin_delta;
pub use understand::NotUnderstood;
pub use zvol::zstream_dump;
