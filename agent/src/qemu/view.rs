//! The disks as they were at a cut, read from QEMU.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use landfall_model::{BlockSet, Error, Extent, MachineShape, Result};
use landfall_nbd::Address;
use landfall_nbd::client::Client;
use landfall_nbd::protocol::{BASE_ALLOCATION, allocation};
use landfall_wire::DiskShape;

use super::SOURCE;
use super::cut::CutDisk;
use super::vm::Vm;
use crate::fingerprints::BLOCK_BYTES;
use crate::image::{DiskReader, OpenDisk};
use crate::tracking::Dirty;

/// A QEMU that sends nothing for so long is not waited for.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// What QEMU counts sizes in.
const SECTOR_BYTES: u32 = 512;
/// Flag of an extent of a bitmap: written to.
const DIRTY: u32 = 1;

/// A disk of a view.
pub(crate) struct ViewDisk {
    pub(super) disk: CutDisk,
    pub(super) export: String,
}

/// The disks as they were at a cut. While it lives, QEMU keeps what the guest overwrites; dropped, nothing of it is left.
pub(crate) struct View<'a> {
    pub(super) vm: &'a Vm,
    pub(super) disks: Vec<ViewDisk>,
    /// Of the machine, as it was before the cut.
    pub(crate) shape: Option<MachineShape>,
}

impl View<'_> {
    /// Opens the disks: what is looked at of each is what was written since the cycle that is known, or all.
    ///
    /// # Errors
    /// `Unavailable` where QEMU does not serve them.
    pub(crate) fn open(&self) -> Result<Vec<OpenDisk>> {
        self.disks
            .iter()
            .map(|disk| self.disk(disk).map_err(|e| e.context(format_args!("disk {}", disk.disk.name))))
            .collect()
    }

    fn disk(&self, ViewDisk { disk, export }: &ViewDisk) -> Result<OpenDisk> {
        let identity = format!("qemu-{}-{}", self.vm.config.qmp.display(), disk.device.qom);
        let shape = |size| DiskShape {
            name: disk.name.clone(),
            size,
            sector_size: SECTOR_BYTES,
            boot: disk.boot,
            excluded: disk.excluded,
            whole: false,
            source: SOURCE.to_owned(),
            identity: identity.clone(),
        };
        if disk.excluded {
            return Ok(OpenDisk {
                shape: shape(disk.device.size),
                reader: None,
                look: Dirty::All,
                copied: false,
                leisurely: false,
                skip: None,
            });
        }
        let written = disk.since.as_ref().map(|name| format!("qemu:dirty-bitmap:{name}"));
        let contexts: Vec<&str> = [BASE_ALLOCATION].into_iter().chain(written.as_deref()).collect();
        let mut client = Client::connect(&Address::Unix(self.vm.socket()), export, &contexts, SILENT_MAX)?;
        let look = match &written {
            Some(context) => Dirty::Blocks(blocks(&mut client, context)?),
            None => Dirty::All,
        };
        let shape = shape(client.size());
        let scratch = self.vm.config.scratch_dir.display().to_string();
        let reader = Some(DiskReader::Guest(GuestDisk { size: client.size(), client: Mutex::new(client), scratch }));
        Ok(OpenDisk { shape, reader, look, copied: true, leisurely: false, skip: None })
    }
}

/// The blocks that a bitmap marks.
fn blocks(client: &mut Client, context: &str) -> Result<BlockSet> {
    let mut set = BlockSet::new(client.size(), BLOCK_BYTES);
    let all = Extent::between(0, client.size());
    client.extents(context, all, |run, flags| {
        if flags & DIRTY != 0 {
            set.insert(run);
        }
        Ok(())
    })?;
    Ok(set)
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let cleaned = self.vm.connect().and_then(|mut qmp| self.vm.clean(&mut qmp));
        if let Err(error) = cleaned {
            tracing::warn!(%error, "something of a cut is left in QEMU: it is removed before the next one");
        }
    }
}

/// One disk of a guest, as it was at the cut.
pub(crate) struct GuestDisk {
    client: Mutex<Client>,
    size: u64,
    /// For errors.
    scratch: String,
}

impl GuestDisk {
    /// Bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Runs of `within` that may hold data, ascending.
    pub(crate) fn data_extents(&self, within: Extent) -> Result<Vec<Extent>> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if !client.has_context(BASE_ALLOCATION) {
            return Ok(vec![within]);
        }
        let mut runs: Vec<Extent> = Vec::new();
        let taken = client.extents(BASE_ALLOCATION, within, |run, flags| {
            match runs.last_mut() {
                _ if flags & allocation::ZERO != 0 => {}
                Some(last) if last.end() == run.start => last.len += run.len,
                _ => runs.push(run),
            }
            Ok(())
        });
        taken.map_err(|e| self.explained(e))?;
        Ok(runs)
    }

    /// Fills `buf` from `offset` on.
    pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.read(buf, offset).map_err(|e| self.explained(e))
    }

    fn explained(&self, error: Error) -> Error {
        let why = "the snapshot cannot be read; QEMU gives it up, so that the guest goes on, where it finds no room in";
        error.context(format_args!("{why} {}", self.scratch))
    }
}
