//! What protecting the disks of this host will be like, found out by trying.

use std::path::PathBuf;

use landfall_model::{Consistency, DiskName, Result};

use crate::config::AgentConfig;
use crate::freeze::Freeze;
use crate::image::{DiskConfig, SourceChoice};
use crate::qemu::{self, QemuConfig};
use crate::skip::{self, Skip};
use crate::snapshots::Owner;
use crate::watch::{Attached, Watching};
use crate::{mounts, watch};

/// The source that compares.
pub(crate) const IMAGE: &str = "image";

/// How one disk will be captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskCheck {
    /// Its name in the machine.
    pub name: DiskName,
    /// The source; none where it is excluded.
    pub source: Option<&'static str>,
    /// Why that one.
    pub why: String,
    /// What it costs the host.
    pub cost: String,
    /// Bytes of it that are swap in use now, and are not sent.
    pub skipped_bytes: u64,
    /// Why swap of it is sent all the same, where the configuration says that it is not to be.
    pub not_skipped: Option<String>,
    /// What keeps it from being captured at all.
    pub error: Option<String>,
}

/// How a machine will be captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// Its disks.
    pub disks: Vec<DiskCheck>,
    /// What its points will guarantee.
    pub consistency: Consistency,
    /// File systems that are frozen, in order.
    pub frozen: Vec<PathBuf>,
    /// File systems on its disks that cannot be frozen.
    pub not_frozen: Vec<PathBuf>,
}

/// Tries how a configuration will work on this host. Nothing is changed, and nothing is left behind.
pub fn check(config: &AgentConfig) -> Check {
    if let Some(qemu) = &config.qemu {
        return virtual_machine(config, qemu);
    }
    // Leaves alone what a running agent has.
    let by = Watching::new(Owner::probe(&config.state_dir));
    let mut still_by_themselves = Vec::new();
    let skip = Skip { swap: config.skip_swap };
    let disks: Vec<DiskCheck> = config.disks.iter().map(|d| disk(d, &by, skip, &mut still_by_themselves)).collect();
    let is_watched = |check: &&DiskCheck| check.source.is_some_and(|source| source != IMAGE);
    let path = |check: &DiskCheck| config.disks.iter().find(|d| d.name == check.name)?.path.clone();
    let watched: Vec<_> = disks.iter().filter(is_watched).filter_map(path).collect();
    let mut freeze = Freeze::of(config);
    freeze.look(&watched, &still_by_themselves);
    let paths: Vec<_> = disks.iter().filter(|d| d.source.is_some()).filter_map(path).collect();
    let not_frozen = mounts::on(&paths).others;
    Check { disks, consistency: freeze.consistency(), not_frozen, frozen: freeze.mounts }
}

/// The same of a virtual machine.
fn virtual_machine(config: &AgentConfig, qemu: &QemuConfig) -> Check {
    const COST: &str = "what the guest overwrites while a cut is read is kept in scratch_dir until then";
    let (found, agent) = qemu::check(qemu, &config.disks);
    let frozen = match &agent {
        Ok(true) => String::new(),
        Ok(false) => "; no guest_agent is named, so nothing in the guest is held still".to_owned(),
        Err(error) => format!("; nothing in the guest is held still: {error}"),
    };
    let disk = |(disk, found): (&DiskConfig, Result<String>)| {
        let (source, why, cost, error) = match found {
            _ if disk.exclude => (None, "it is excluded".to_owned(), "nothing", None),
            Ok(version) => (Some(qemu::SOURCE), format!("{version} can cut it{frozen}"), COST, None),
            Err(error) => (None, "QEMU cannot be asked for it".to_owned(), "", Some(error.to_string())),
        };
        let not_skipped = (config.skip_swap && !disk.exclude).then(|| "the swap of a guest is not known".to_owned());
        DiskCheck { name: disk.name.clone(), source, why, cost: cost.to_owned(), skipped_bytes: 0, not_skipped, error }
    };
    let disks = config.disks.iter().zip(found).map(disk).collect();
    let consistency = Freeze::of(config).consistency_where(matches!(agent, Ok(true)));
    Check { disks, consistency, frozen: Vec::new(), not_frozen: Vec::new() }
}

fn disk(disk: &DiskConfig, by: &Watching, skip: Skip, still_by_themselves: &mut Vec<PathBuf>) -> DiskCheck {
    let name = disk.name.clone();
    let of = |source, why: &str, cost: &str, error| DiskCheck {
        name: name.clone(),
        source,
        why: why.to_owned(),
        cost: cost.to_owned(),
        skipped_bytes: 0,
        not_skipped: None,
        error,
    };
    let Some(path) = disk.path.as_deref().filter(|_| !disk.exclude) else {
        return of(None, "it is excluded", "nothing", None);
    };
    let reader = match landfall_disk::RawReader::open(path) {
        Ok(reader) => reader,
        Err(error) => return of(None, "it cannot be read", "", Some(error.to_string())),
    };
    let swap_bytes = skip.of(path, &reader).map_or(0, |set| set.len());
    let skipping = |check: DiskCheck| DiskCheck { skipped_bytes: swap_bytes, not_skipped: skip.hindered(), ..check };
    const COMPARED: &str = "each cycle reads all of it";
    if disk.source == SourceChoice::Image {
        return skipping(of(Some(IMAGE), "the configuration says so", COMPARED, None));
    }
    match (disk.source.demanded(), watch::attach_as(disk.source, path, by)) {
        (Some(wanted), Err(error)) => {
            of(None, &format!("the configuration wants \"{wanted}\""), "", Some(error.to_string()))
        }
        (_, Ok(Attached { watch, instead })) => {
            if watch.holds_still() {
                still_by_themselves.push(path.to_owned());
            }
            let (why, cost) = reason(watch.source());
            let why = instead.map_or_else(|| why.to_owned(), |instead| format!("{why}; {instead}"));
            let check = of(Some(watch.source()), &why, cost, None);
            if watch.copy().is_none() {
                return skipping(check);
            }
            let not_skipped = (swap_bytes > 0).then(|| skip::OF_COPIES.to_owned());
            DiskCheck { not_skipped, ..check }
        }
        (None, Err(error)) => skipping(of(Some(IMAGE), &error.to_string(), COMPARED, None)),
    }
}

/// Why a source is taken, and what it costs.
fn reason(source: &str) -> (&'static str, &'static str) {
    const KEPT: &str = "what is overwritten between two cycles is kept that long";
    match source {
        "clone" => (
            "its file system can clone it",
            "what is overwritten between two cycles is kept that long; writers wait while a clone is made",
        ),
        "lvm-thin" => ("it is a thin volume of LVM, and its pool has room for a snapshot", KEPT),
        "zfs" => (
            "it is a volume of ZFS; those of one pool are cut at one moment",
            "what is overwritten between two cycles is kept that long; what changed is read twice",
        ),
        _ => ("its writes can be watched", "what is written is read once more, and all of it after a restart"),
    }
}
