//! The cut itself: filters are put in, and the bitmaps change over.

use std::ffi::OsString;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use landfall_model::{CycleId, DiskName, MachineShape, Result};
use landfall_qmp::Qmp;
use serde_json::{Value, json};

use super::graph::{self, Device};
use super::names::Part;
use super::view::{View, ViewDisk};
use super::vm::{COMMAND_MAX, Vm, execute, set_drive};
use crate::durable::failed;
use crate::fingerprints::BLOCK_BYTES;
use crate::freeze::Guard;
use crate::image::DiskConfig;

/// Where an old block cannot be kept within so long, the snapshot is given up and the guest goes on.
const OLD_BLOCK_SECONDS_MAX: u64 = 10;

/// A disk that is to be cut.
#[derive(Clone, Debug)]
pub(crate) struct CutDisk {
    pub(crate) name: DiskName,
    pub(crate) boot: bool,
    pub(crate) excluded: bool,
    pub(crate) device: Device,
    /// The bitmap of what was written since the cycle that is known; none where that is not known.
    pub(crate) since: Option<String>,
}

/// Everything is ready for a cut. What was made is removed where it is dropped.
pub(crate) struct Prepared<'a> {
    vm: &'a Vm,
    /// None once it is closed.
    pub(super) qmp: Option<Qmp>,
    pub(super) disks: Vec<CutDisk>,
    pub(crate) shape: Option<MachineShape>,
    cut: bool,
}

impl<'a> Prepared<'a> {
    pub(super) fn new(vm: &'a Vm, shape: Option<MachineShape>, qmp: Qmp) -> Self {
        Self { vm, qmp: Some(qmp), disks: Vec::new(), shape, cut: false }
    }

    /// Finds the devices; an excluded one that is not there is left out.
    pub(super) fn find(&mut self, disks: &[DiskConfig]) -> Result<()> {
        let devices = graph::devices(&execute(self.qmp.as_mut(), "query-block", Value::Null)?);
        for (number, disk) in disks.iter().enumerate() {
            let found = match (graph::find(&devices, disk.device.as_deref().unwrap_or_default()), disk.exclude) {
                (Ok(device), _) => device.clone(),
                (Err(_), true) => continue,
                (Err(error), false) => return Err(error.context(format_args!("disk {}", disk.name))),
            };
            if let Some(other) = self.disks.iter().find(|other| other.device.qom == found.qom) {
                let why = format!("disk {} is the same disk of the guest as {}: name it once", disk.name, other.name);
                return Err(landfall_model::Error::new(landfall_model::ErrorKind::Usage, why));
            }
            // What its file still has in memory is brought out now: else the guest would wait for that while it is stopped.
            if let Ok(file) = File::open(&found.file) {
                let _ = file.sync_data();
            }
            let name = disk.name.clone();
            self.disks.push(CutDisk { name, boot: number == 0, excluded: disk.exclude, device: found, since: None });
        }
        Ok(())
    }

    fn protected(&self) -> impl Iterator<Item = &CutDisk> {
        self.disks.iter().filter(|disk| !disk.excluded)
    }

    /// Cuts all disks at one moment, which lies within the call. What was written before it, and nothing that was written after it, is in the view.
    ///
    /// # Errors
    /// What QEMU says; the guest goes on, and nothing of the cut is left.
    pub(crate) fn cut(mut self, cycle: CycleId) -> Result<View<'a>> {
        let about = |e: landfall_model::Error| e.context("cutting the disks of the virtual machine");
        self.change_over(cycle).map_err(about)?;
        let disks = self.export().map_err(about)?;
        self.cut = true;
        Ok(View { vm: self.vm, disks, shape: self.shape.take() })
    }

    fn change_over(&mut self, cycle: CycleId) -> Result<()> {
        let (names, disks) = (&self.vm.names, self.protected().cloned().collect::<Vec<_>>());
        let bitmap = names.bitmap(cycle);
        let action = |disk: &CutDisk, kind: &str, name: &str, more: Value| {
            let mut data = json!({ "node": disk.device.node, "name": name });
            if let (Value::Object(data), Value::Object(more)) = (&mut data, more) {
                data.extend(more);
            }
            json!({ "type": kind, "data": data })
        };
        let begin = |disk| action(disk, "block-dirty-bitmap-add", &bitmap, json!({ "granularity": BLOCK_BYTES }));
        let begins: Vec<Value> = disks.iter().map(begin).collect();
        execute(self.qmp.as_mut(), "transaction", json!({ "actions": begins }))?;
        let stopped = if disks.len() > 1 { self.stop()? } else { None };
        let inserted = disks.iter().try_for_each(|disk| self.insert(disk));
        if let Some(stopped) = stopped {
            self.go_on(stopped)?;
        }
        inserted?;
        // Now, and not before: what was written while filters were put in is in both.
        let end = |disk: &CutDisk| Some(action(disk, "block-dirty-bitmap-disable", disk.since.as_ref()?, json!({})));
        let ends: Vec<Value> = disks.iter().filter_map(end).collect();
        if !ends.is_empty() {
            execute(self.qmp.as_mut(), "transaction", json!({ "actions": ends }))?;
        }
        Ok(())
    }

    fn insert(&mut self, disk: &CutDisk) -> Result<()> {
        let node = |part| self.vm.names.node(&disk.device.node, part);
        let (filter, scratch) = (node(Part::Filter), node(Part::Scratch));
        let options = json!({
            "driver": "copy-before-write", "node-name": filter, "file": disk.device.node, "target": scratch,
            "on-cbw-error": "break-snapshot", "cbw-timeout": OLD_BLOCK_SECONDS_MAX,
        });
        execute(self.qmp.as_mut(), "blockdev-add", options)?;
        let Some(qmp) = self.qmp.as_mut() else { return Ok(()) };
        set_drive(qmp, &disk.device.qom, &filter).map_err(|e| e.context(format_args!("disk {}", disk.name)))
    }

    /// Stops the guest, if it runs.
    fn stop(&mut self) -> Result<Option<Stopped>> {
        if execute(self.qmp.as_mut(), "query-status", Value::Null)?["running"] != true {
            return Ok(None);
        }
        let marker = self.vm.stopped_marker();
        fs::write(&marker, b"").map_err(|e| failed("write", &marker, e))?;
        let words = ["agent", "release", "--qmp"].map(OsString::from);
        let program = self.vm.program.clone().into_os_string();
        let socket = self.vm.config.qmp.clone().into_os_string();
        let words = std::iter::once(program).chain(words).chain([socket]).collect();
        let guard = Guard::start("the virtual machine", words, COMMAND_MAX, None)?;
        let since = Instant::now();
        match execute(self.qmp.as_mut(), "stop", Value::Null) {
            Ok(_) => Ok(Some(Stopped { guard, since })),
            Err(error) => {
                // It may be stopped all the same: the guard needs the connection.
                self.qmp = None;
                drop(guard);
                Err(error)
            }
        }
    }

    fn go_on(&mut self, stopped: Stopped) -> Result<()> {
        let gone_on = execute(self.qmp.as_mut(), "cont", Value::Null);
        let elapsed: Duration = stopped.since.elapsed();
        tracing::debug!(stopped_us = elapsed.as_micros(), "the guest was stopped while several disks were cut");
        match gone_on {
            Ok(_) => {
                stopped.guard.dismiss();
                let _ = fs::remove_file(self.vm.stopped_marker());
                Ok(())
            }
            Err(error) => {
                self.qmp = None;
                drop(stopped.guard);
                Err(error)
            }
        }
    }

    fn export(&mut self) -> Result<Vec<ViewDisk>> {
        let mut disks = Vec::with_capacity(self.disks.len());
        for disk in self.disks.clone() {
            let node = |part| self.vm.names.node(&disk.device.node, part);
            let export = node(Part::Export);
            if !disk.excluded {
                let snapshot = node(Part::Snapshot);
                let options = json!({ "driver": "snapshot-access", "node-name": snapshot, "file": node(Part::Filter) });
                execute(self.qmp.as_mut(), "blockdev-add", options)?;
                let since: Vec<Value> =
                    disk.since.iter().map(|name| json!({ "node": disk.device.node, "name": name })).collect();
                let options = json!({
                    "type": "nbd", "id": export, "node-name": snapshot, "name": export, "bitmaps": since,
                });
                execute(self.qmp.as_mut(), "block-export-add", options)?;
            }
            disks.push(ViewDisk { disk, export });
        }
        Ok(disks)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if self.cut {
            return;
        }
        // Another connection, where this one is of no use.
        let cleaned = match self.qmp.take() {
            Some(mut qmp) => self.vm.clean(&mut qmp),
            None => self.vm.connect().and_then(|mut qmp| self.vm.clean(&mut qmp)),
        };
        if let Err(error) = cleaned {
            tracing::warn!(%error, "something of a cut is left in QEMU: it is removed before the next one");
        }
    }
}

/// The guest stands still.
struct Stopped {
    guard: Guard,
    since: Instant,
}
