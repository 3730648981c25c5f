//! The agent's configuration file.
//!
//! ```toml
//! [agent]
//! machine = "web-01"
//! gateways = ["gw-1.site:7443", "gw-2.site:7443"]
//! interval = "30s"                        # default: 5min; from 1s to 24h
//! state_dir = "/var/lib/landfall-agent"   # the default
//! freeze_command = "/etc/landfall/freeze" # run with LANDFALL_PHASE=freeze and =thaw; default: none
//! freeze_max = "1min"                     # the default: everything is thawed after so long
//! skip = ["swap"]                         # swap that is in use is not sent; default: nothing is left out
//! late_max = "1min"                       # the default: a point may be so late, rather than that it freezes for more than a moment
//! stop_command = "/etc/landfall/stop"     # run with LANDFALL_PHASE=stop before the last cycle of a planned failover; default: none
//! start_command = "/etc/landfall/start"   # run with LANDFALL_PHASE=start where that is taken back; default: none
//! stop_max = "10min"                      # the default: stopping may take so long
//!
//! [[disk]]
//! name = "root"
//! path = "/dev/vda"
//! mounts = ["/", "/home"]                 # frozen while the disks are read; default: none
//! source = "auto"                         # how changes are found: "lvm-thin", "zfs", "ebpf", "clone", "image"; default: "auto", the best that works
//!
//! [[disk]]
//! name = "swap"
//! path = "/dev/vdb"
//! exclude = true                          # default: false
//! ```
//! The disks of a virtual machine on this host, captured from outside:
//!
//! ```toml
//! [qemu]
//! qmp = "/run/vm/web.qmp"                 # QEMU's -qmp unix:SOCKET,server=on,wait=off
//! guest_agent = "/run/vm/web.qga"         # freezes the guest's file systems for the cut; default: none
//! scratch_dir = "/var/lib/landfall-agent/scratch"
//!
//! [[disk]]
//! name = "root"
//! device = "drive0"                       # id of the guest's disk in QEMU, or of its drive or block node, in place of a path
//! ```
//! Every error names the file, the line, and what to do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use landfall_model::{DiskName, MachineName, Result};
use landfall_settings::{Source, Table, Value, check_address};
use landfall_wire::DISKS_MAX;

use crate::freeze::Freeze;
use crate::image::{DiskConfig, SourceChoice};
use crate::qemu::{GuestFreeze, QemuConfig, qemu};

const STATE_DIR: &str = "/var/lib/landfall-agent";
const INTERVAL: Duration = Duration::from_secs(300);
const FREEZE_MAX: Duration = Duration::from_secs(60);
const LATE_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(600);

const AGENT_KEYS: &[&str] = &[
    "machine",
    "gateways",
    "state_dir",
    "interval",
    "freeze_command",
    "freeze_max",
    "late_max",
    "skip",
    "stop_command",
    "start_command",
    "stop_max",
];
const DISK_KEYS: &[&str] = &["name", "path", "exclude", "mounts", "source", "device"];

/// What an agent protects, and where it sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentConfig {
    /// The machine's name, as it was enrolled.
    pub machine: MachineName,
    /// Gateways as `host:port`, in the order in which they are tried.
    pub gateways: Vec<String>,
    /// What the agent remembers lies here.
    pub state_dir: PathBuf,
    /// From the beginning of a cycle to the beginning of the next.
    pub interval: Duration,
    /// Holds applications still while the disks are read.
    pub freeze_command: Option<String>,
    /// Everything is thawed after so long.
    pub freeze_max: Duration,
    /// A point may be so late, rather than that everything is held still for more than a moment.
    pub late_max: Duration,
    /// What is in swap is left out: swap that is in use is zero in points, but for its first 64 KiB.
    pub skip_swap: bool,
    /// Stops this host's work before the last cycle of a planned failover.
    pub stop_command: Option<String>,
    /// Takes that back.
    pub start_command: Option<String>,
    /// Stopping may take so long.
    pub stop_max: Duration,
    /// The disks; the machine boots from the first.
    pub disks: Vec<DiskConfig>,
    /// The virtual machine that they are of; none: they are this host's.
    pub qemu: Option<QemuConfig>,
}

impl AgentConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `NotFound`; `Usage`, naming the line and what to do.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&landfall_settings::read(path)?, path)
    }

    /// Reads the text of a configuration file; errors name the file.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let source = Source::new(text, file);
        let document = source.parse()?;
        let root = source.root(&document);
        root.only(&["agent", "disk", "qemu"])?;
        let agent = source.table(root.required("agent", "add a section [agent]")?, "[agent]")?;
        agent.only(AGENT_KEYS)?;
        let machine = agent.parsed::<MachineName>("machine", "add machine = \"NAME\"")?;
        let gateways = agent.required("gateways", "add gateways = [\"HOST:PORT\"]")?;
        let gateways = source.texts(gateways)?;
        if gateways.is_empty() {
            return Err(source.wrong(agent.place(), "gateways is empty: add at least one \"HOST:PORT\""));
        }
        for (at, gateway) in &gateways {
            check_address(gateway).map_err(|why| source.wrong(*at, why))?;
        }
        let disks = disks(source, root.get("disk"))?;
        let table = root.get("qemu").map(|value| source.table(value, "[qemu]")).transpose()?;
        let qemu = table.map(|table| qemu(&table, &disks)).transpose()?;
        if let Some(disk) = disks.iter().find(|disk| qemu.is_none() && disk.device.is_some()) {
            let why = format!("disk {} has a device: add a section [qemu] with the machine that it is of", disk.name);
            return Err(source.wrong(source.end(), why));
        }
        let (stop, start) = (agent.text("stop_command")?, agent.text("start_command")?);
        if let (Some((at, _)), Some(_)) = (stop.as_ref().or(start.as_ref()), &qemu) {
            return Err(source.wrong(*at, "with [qemu], the guest is shut down by QEMU: leave the command out"));
        }
        let (stop_command, start_command) = (stop.map(|(_, text)| text), start.map(|(_, text)| text));
        Ok(Self {
            machine,
            gateways: gateways.into_iter().map(|(_, gateway)| gateway).collect(),
            state_dir: agent.path("state_dir")?.unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            interval: agent.duration("interval")?.unwrap_or(INTERVAL),
            freeze_command: agent.text("freeze_command")?.map(|(_, text)| text),
            freeze_max: agent.duration("freeze_max")?.unwrap_or(FREEZE_MAX),
            late_max: agent.duration("late_max")?.unwrap_or(LATE_MAX),
            skip_swap: skips_swap(&agent)?,
            stop_command,
            start_command,
            stop_max: agent.duration("stop_max")?.unwrap_or(STOP_MAX),
            disks,
            qemu,
        })
    }
}

/// Whether the list of what is skipped names swap. Nothing else is known.
fn skips_swap(agent: &Table<'_>) -> Result<bool> {
    let source = agent.source();
    let named = agent.get("skip").map(|value| source.texts(value)).transpose()?.unwrap_or_default();
    match named.iter().find(|(_, what)| what != "swap") {
        Some((at, what)) => Err(source.wrong(*at, format!("skip {what:?}: what can be skipped is \"swap\""))),
        None => Ok(!named.is_empty()),
    }
}

impl Freeze {
    /// What a configuration says.
    pub(crate) fn of(config: &AgentConfig) -> Self {
        let protected = || config.disks.iter().filter(|d| !d.exclude);
        let unnamed = protected().filter(|d| d.mounts.is_empty());
        let unnamed: Vec<PathBuf> = unnamed.map(|d| d.path.clone().unwrap_or_default()).collect();
        let mut mounts: Vec<PathBuf> = Vec::new();
        for mount in protected().flat_map(|d| &d.mounts) {
            if !mounts.contains(mount) {
                mounts.push(mount.clone());
            }
        }
        Self {
            command: config.freeze_command.clone(),
            named: mounts.len(),
            mounts,
            by_copies: Vec::new(),
            all_mounts: unnamed.is_empty(),
            unnamed,
            longest: config.freeze_max,
            program: PathBuf::from("fsfreeze"),
            guest: config.qemu.as_ref().and_then(GuestFreeze::of),
        }
    }
}

fn disks<'a>(source: Source<'a>, value: Option<&'a Value<'a>>) -> Result<Vec<DiskConfig>> {
    let at = value.map_or_else(|| source.end(), |v| v.span().start);
    let list =
        |v: &'a Value<'a>| v.get_ref().as_array().ok_or_else(|| source.wrong(at, "disk is not a list: write [[disk]]"));
    let mut disks: Vec<DiskConfig> = Vec::new();
    for value in value.map(list).transpose()?.into_iter().flat_map(|list| list.iter()) {
        let table = source.table(value, "[[disk]]")?;
        let disk = disk(&table)?;
        if disks.iter().any(|d| d.name == disk.name) {
            let why = format!("disk {} is named twice: give each disk once", disk.name);
            return Err(source.wrong(table.place(), why));
        }
        disks.push(disk);
    }
    if disks.len() > DISKS_MAX {
        return Err(source.wrong(at, format_args!("a machine has at most {DISKS_MAX} disks")));
    }
    if disks.iter().all(|d| d.exclude) {
        return Err(source.wrong(at, "no disk to protect: add a section [[disk]] with name and path"));
    }
    Ok(disks)
}

fn disk(table: &Table<'_>) -> Result<DiskConfig> {
    table.only(DISK_KEYS)?;
    let name = table.parsed::<DiskName>("name", "add name = \"NAME\"")?;
    let exclude = table.flag("exclude")?.unwrap_or(false);
    let path = table.path("path")?;
    let device = table.text("device")?.map(|(_, device)| device);
    if path.is_none() && device.is_none() && !exclude {
        table.required("path", "add path = \"/dev/...\", or exclude = true")?;
    }
    let source = table.source();
    let mounts = table.get("mounts").map(|value| source.texts(value)).transpose()?.unwrap_or_default();
    let mounts = mounts.into_iter().map(|(at, text)| source.absolute(at, &text)).collect::<Result<_>>()?;
    let choice = match table.text("source")? {
        None => SourceChoice::Auto,
        Some((at, text)) => match text.as_str() {
            "auto" => SourceChoice::Auto,
            "image" => SourceChoice::Image,
            "ebpf" => SourceChoice::Ebpf,
            "clone" => SourceChoice::Clone,
            "lvm-thin" => SourceChoice::LvmThin,
            "zfs" => SourceChoice::Zfs,
            other => {
                let known = "\"auto\", \"image\", \"ebpf\", \"clone\", \"lvm-thin\" or \"zfs\"";
                let why = format!("source {other:?}: it is {known}");
                return Err(source.wrong(at, why));
            }
        },
    };
    Ok(DiskConfig { name, path, exclude, mounts, source: choice, device })
}

#[cfg(test)]
mod tests;
