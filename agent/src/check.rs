//! What protecting the disks of this host will be like, found out by trying.

use std::path::{Path, PathBuf};

use landfall_model::{Consistency, DiskName, Result};

use crate::config::AgentConfig;
use crate::freeze::Freeze;
use crate::image::{DiskConfig, SourceChoice};
use crate::qemu::{self, QemuConfig};
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
    let disks: Vec<DiskCheck> = config.disks.iter().map(|d| disk(d, &config.state_dir)).collect();
    let is_watched = |check: &&DiskCheck| check.source.is_some_and(|source| source != IMAGE);
    let path = |check: &DiskCheck| config.disks.iter().find(|d| d.name == check.name)?.path.clone();
    let watched: Vec<_> = disks.iter().filter(is_watched).filter_map(path).collect();
    let mut freeze = Freeze::of(config);
    freeze.look(&watched);
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
        DiskCheck { name: disk.name.clone(), source, why, cost: cost.to_owned(), error }
    };
    let disks = config.disks.iter().zip(found).map(disk).collect();
    let consistency = Freeze::of(config).consistency_where(matches!(agent, Ok(true)));
    Check { disks, consistency, frozen: Vec::new(), not_frozen: Vec::new() }
}

fn disk(disk: &DiskConfig, state_dir: &Path) -> DiskCheck {
    let name = disk.name.clone();
    let of = |source, why: &str, cost: &str, error| DiskCheck {
        name: name.clone(),
        source,
        why: why.to_owned(),
        cost: cost.to_owned(),
        error,
    };
    let Some(path) = disk.path.as_deref().filter(|_| !disk.exclude) else {
        return of(None, "it is excluded", "nothing", None);
    };
    if let Err(error) = landfall_disk::RawReader::open(path) {
        return of(None, "it cannot be read", "", Some(error.to_string()));
    }
    const COMPARED: &str = "each cycle reads all of it";
    if disk.source == SourceChoice::Image {
        return of(Some(IMAGE), "the configuration says so", COMPARED, None);
    }
    // A probe, which leaves the clones of a running agent alone.
    let watch = watch::attach_as(disk.source, path, &state_dir.join("check"));
    match (disk.source.demanded(), watch) {
        (Some(wanted), Err(error)) => {
            of(None, &format!("the configuration wants \"{wanted}\""), "", Some(error.to_string()))
        }
        (_, Ok(watch)) if watch.copy().is_some() => {
            let cost = "what is overwritten between two cycles is kept that long; writers wait while a clone is made";
            of(Some(watch.source()), "its file system can clone it", cost, None)
        }
        (_, Ok(watch)) => {
            let cost = "what is written is read once more, and all of it after a restart";
            of(Some(watch.source()), "its writes can be watched", cost, None)
        }
        (None, Err(error)) => of(Some(IMAGE), &error.to_string(), COMPARED, None),
    }
}
