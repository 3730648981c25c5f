//! The beginning of a cycle, between its bytes and the words of the model.

use std::collections::BTreeSet;

use landfall_model::{Consistency, DiskName, HookResult, MachineShape, Nic, Result, Timestamp};

use crate::message::{cycle_id, group_bytes, group_id, id_bytes, optional_cycle_id, text, wrong};
use crate::{Begin, DISK_BYTES_MAX, DISKS_MAX, DiskShape, NICS_MAX, raw};

/// Addresses of one interface.
const ADDRESSES_MAX: usize = 64;
/// Programs that were run around a cut.
const HOOKS_MAX: usize = 16;

fn shape_from(raw: raw::Shape) -> Result<MachineShape> {
    if raw.nics.len() > NICS_MAX {
        return Err(wrong(format_args!("a machine of {} network interfaces", raw.nics.len())));
    }
    let nic = |raw: raw::Nic| {
        if raw.addresses.len() > ADDRESSES_MAX {
            return Err(wrong(format_args!("a network interface of {} addresses", raw.addresses.len())));
        }
        Ok(Nic {
            name: text("the name of a network interface", raw.name)?,
            model: text("the model of a network interface", raw.model)?,
            mac: text("a hardware address", raw.mac)?,
            addresses: raw.addresses.into_iter().map(|a| text("an address", a)).collect::<Result<_>>()?,
        })
    };
    Ok(MachineShape {
        firmware: text("the firmware of a machine", raw.firmware)?,
        cpus: raw.cpus,
        memory_bytes: raw.memory_bytes,
        nics: raw.nics.into_iter().map(nic).collect::<Result<_>>()?,
    })
}

fn raw_shape(shape: MachineShape) -> raw::Shape {
    let nic = |nic: Nic| {
        let addresses = nic.addresses.into_iter().take(ADDRESSES_MAX).collect();
        raw::Nic { name: nic.name, model: nic.model, mac: nic.mac, addresses }
    };
    raw::Shape {
        firmware: shape.firmware,
        cpus: shape.cpus,
        memory_bytes: shape.memory_bytes,
        nics: shape.nics.into_iter().map(nic).collect(),
    }
}

fn disk_from(raw: raw::Disk) -> Result<DiskShape> {
    let name: DiskName = raw.name.parse().map_err(wrong)?;
    if raw.size == 0 {
        return Err(wrong(format_args!("disk {name} without a byte")));
    }
    if raw.size > DISK_BYTES_MAX {
        return Err(wrong(format_args!("disk {name} of {} bytes (at most {DISK_BYTES_MAX} are taken)", raw.size)));
    }
    if !raw.sector_size.is_power_of_two() || !(512..=65536).contains(&raw.sector_size) {
        return Err(wrong(format_args!("disk {name} with sectors of {} bytes", raw.sector_size)));
    }
    Ok(DiskShape {
        name,
        size: raw.size,
        sector_size: raw.sector_size,
        boot: raw.boot,
        excluded: raw.excluded,
        whole: raw.whole,
        source: text("the source of a disk", raw.source)?,
        identity: text("the identity of a disk", raw.identity)?,
    })
}

pub(crate) fn begin_from(raw: raw::Begin) -> Result<Begin> {
    if raw.disks.is_empty() || raw.disks.len() > DISKS_MAX {
        return Err(wrong(format_args!("a machine of {} disks", raw.disks.len())));
    }
    let disks = raw.disks.into_iter().map(disk_from).collect::<Result<Vec<_>>>()?;
    let mut names = BTreeSet::new();
    if let Some(twice) = disks.iter().find(|d| !names.insert(&d.name)) {
        return Err(wrong(format_args!("disk {} twice", twice.name)));
    }
    if raw.parent.is_empty() && disks.iter().any(|d| !d.excluded && !d.whole) {
        return Err(wrong("a cycle without a parent that does not send its disks whole"));
    }
    let consistency = consistency_from(raw.consistency)?;
    Ok(Begin {
        cycle: cycle_id(&raw.cycle)?,
        parent: optional_cycle_id(&raw.parent)?,
        time: Timestamp::from_millis(raw.time_ms),
        consistency,
        disks,
        shape: raw.shape.map(shape_from).transpose()?,
        hooks: hooks_from(raw.hooks)?,
        group: if raw.group.is_empty() { None } else { Some(group_id(&raw.group)?) },
    })
}

fn hooks_from(raw: Vec<raw::Hook>) -> Result<Vec<HookResult>> {
    if raw.len() > HOOKS_MAX {
        return Err(wrong(format_args!("{} hooks", raw.len())));
    }
    let hook = |raw: raw::Hook| {
        Ok(HookResult { phase: text("a phase", raw.phase)?, code: raw.code, elapsed_ms: raw.elapsed_ms })
    };
    raw.into_iter().map(hook).collect()
}

fn raw_hook(hook: HookResult) -> raw::Hook {
    raw::Hook { phase: hook.phase, code: hook.code, elapsed_ms: hook.elapsed_ms }
}

pub(crate) fn consistency_from(raw: u32) -> Result<Consistency> {
    Ok(match raw {
        0 => Consistency::Crash,
        1 => Consistency::Filesystem,
        2 => Consistency::Application,
        3 => Consistency::Unfinished,
        other => return Err(wrong(format_args!("consistency {other}"))),
    })
}

pub(crate) fn raw_consistency(consistency: Consistency) -> u32 {
    match consistency {
        Consistency::Crash => 0,
        Consistency::Filesystem => 1,
        Consistency::Application => 2,
        Consistency::Unfinished => 3,
    }
}

pub(crate) fn raw_begin(begin: Begin) -> raw::Begin {
    let disk = |d: DiskShape| raw::Disk {
        name: d.name.to_string(),
        size: d.size,
        sector_size: d.sector_size,
        boot: d.boot,
        excluded: d.excluded,
        whole: d.whole,
        source: d.source,
        identity: d.identity,
    };
    raw::Begin {
        cycle: id_bytes(Some(begin.cycle)),
        parent: id_bytes(begin.parent),
        time_ms: begin.time.millis(),
        consistency: raw_consistency(begin.consistency),
        disks: begin.disks.into_iter().map(disk).collect(),
        group: begin.group.map(group_bytes).unwrap_or_default(),
        shape: begin.shape.map(raw_shape),
        hooks: begin.hooks.into_iter().map(raw_hook).collect(),
    }
}
