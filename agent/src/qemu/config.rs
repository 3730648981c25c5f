//! The section `[qemu]` of an agent's configuration.

use std::path::PathBuf;
use std::time::Duration;

use landfall_model::Result;
use landfall_settings::Table;

use super::hooks::Hooks;
use crate::image::DiskConfig;

const KEYS: &[&str] =
    &["qmp", "guest_agent", "scratch_dir", "hook_before", "hook_after", "hook_max", "application_every"];
const HOOK_MAX: Duration = Duration::from_secs(30);
const APPLICATION_EVERY: Duration = Duration::from_secs(3600);

/// The virtual machine on this host whose disks are protected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QemuConfig {
    /// Socket of QEMU's monitor, in control mode (QMP). The agent connects for each cut, and leaves.
    pub qmp: PathBuf,
    /// Socket of the guest's agent, which freezes the guest's file systems for the cut.
    pub guest_agent: Option<PathBuf>,
    /// What is run in the guest around a freeze.
    pub hooks: Option<Hooks>,
    /// What the guest overwrites while a cut is read is kept here. QEMU must be able to write to it.
    pub scratch_dir: PathBuf,
}

/// What the section says of hooks; none where it names no program.
fn hooks(table: &Table<'_>) -> Result<Option<Hooks>> {
    let source = table.source();
    let words = |name: &str| -> Result<Vec<String>> {
        let words = table.get(name).map(|value| source.texts(value)).transpose()?.unwrap_or_default();
        Ok(words.into_iter().map(|(_, word)| word).collect())
    };
    let (before, after) = (words("hook_before")?, words("hook_after")?);
    let longest = table.duration("hook_max")?.unwrap_or(HOOK_MAX);
    let every = table.duration("application_every")?.unwrap_or(APPLICATION_EVERY);
    let named = !before.is_empty() || !after.is_empty();
    Ok(named.then_some(Hooks { before, after, longest, every }))
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
        hooks: hooks(table)?,
        scratch_dir: path("scratch_dir", "add scratch_dir = \"/var/lib/landfall-agent/scratch\"")?,
    };
    if config.hooks.is_some() && config.guest_agent.is_none() {
        return Err(source.wrong(at, "hooks are run by the guest's agent: add guest_agent = \"/run/.../SOCKET\""));
    }
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
