//! The section `[qemu]` of an agent's configuration.

use std::path::PathBuf;

use landfall_model::Result;
use landfall_settings::Table;

use crate::image::DiskConfig;

const KEYS: &[&str] = &["qmp", "guest_agent", "scratch_dir"];

/// The virtual machine on this host whose disks are protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QemuConfig {
    /// Socket of QEMU's monitor, in control mode (QMP). The agent connects for each cut, and leaves.
    pub qmp: PathBuf,
    /// Socket of the guest's agent, which freezes the guest's file systems for the cut.
    pub guest_agent: Option<PathBuf>,
    /// What the guest overwrites while a cut is read is kept here. QEMU must be able to write to it.
    pub scratch_dir: PathBuf,
}

/// Reads the section, and checks that the disks are those of a virtual machine.
///
/// # Errors
/// `Usage`, naming the line and what to do.
pub(crate) fn qemu(table: &Table<'_>, disks: &[DiskConfig]) -> Result<QemuConfig> {
    table.only(KEYS)?;
    let (source, at) = (table.source(), table.place());
    let path = |name: &str, what: &str| match table.path(name)? {
        Some(path) => Ok(path),
        None => Err(table.required(name, what).err().unwrap_or_else(|| source.wrong(at, what))),
    };
    let config = QemuConfig {
        qmp: path("qmp", "add qmp = \"/run/.../SOCKET\", the socket of QEMU's -qmp unix:SOCKET,server=on,wait=off")?,
        guest_agent: table.path("guest_agent")?,
        scratch_dir: path("scratch_dir", "add scratch_dir = \"/var/lib/landfall-agent/scratch\"")?,
    };
    for disk in disks {
        let why = match disk {
            _ if disk.path.is_some() => {
                "has a path: with [qemu], write device = \"ID\", which is QEMU's name of the guest's disk"
            }
            _ if !disk.mounts.is_empty() => "has mounts: with [qemu], guest_agent freezes the guest's file systems",
            _ if disk.source.demanded().is_some() => "has a source: with [qemu], leave it out",
            _ if disk.device.is_none() && !disk.exclude => "has no device: write device = \"ID\"",
            _ => continue,
        };
        return Err(source.wrong(at, format_args!("disk {} {why}", disk.name)));
    }
    Ok(config)
}
