//! The target `kvm`: a machine in QEMU on this host, by its shape in the point and a file of settings.

mod addresses;
mod command;
mod disks;
mod empty;
mod machine;
mod network;
mod nics;
mod picture;
mod probe;
mod seed;
mod settings;

pub(crate) use disks::{make as make_disks, ready};
pub(crate) use machine::{Running, end};
pub(crate) use network::remove as remove_networks;
pub(crate) use nics::{Network, NicSettings};
pub(crate) use picture::Picture;
pub(crate) use probe::{Probed, not_passed};
pub(crate) use settings::Settings;

use std::path::{Path, PathBuf};

use landfall_model::{DiskName, PointMeta};

/// Where the files of one machine are: a folder of its own.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The socket of QEMU's monitor.
    pub(crate) fn qmp(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// The number of QEMU's process.
    pub(crate) fn pid(&self) -> PathBuf {
        self.folder.join("qemu.pid")
    }

    /// The socket of the guest's agent.
    pub(crate) fn agent(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// What the guest says on its first serial port.
    pub(crate) fn console(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What QEMU says.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("qemu.log")
    }

    /// The socket of its screen, for a VNC client.
    pub(crate) fn screen(&self) -> PathBuf {
        self.folder.join("screen.sock")
    }

    /// A picture of its screen.
    pub(crate) fn picture(&self) -> PathBuf {
        self.folder.join("picture")
    }

    /// The socket on which the vault's disks are served to it.
    pub(crate) fn nbd(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    /// Variables of its UEFI.
    pub(crate) fn variables(&self) -> PathBuf {
        self.folder.join("uefi-variables.fd")
    }

    /// What connects a network interface of it to a bridge.
    pub(crate) fn wire_script(&self, place: usize) -> PathBuf {
        self.folder.join(format!("wire-{place}"))
    }

    /// The disk that cloud-init reads.
    pub(crate) fn seed(&self) -> PathBuf {
        self.folder.join("seed.img")
    }

    /// A disk.
    pub(crate) fn disk(&self, name: &DiskName) -> PathBuf {
        self.folder.join(format!("disk-{name}.qcow2"))
    }

    /// A disk that is not protected, and comes back empty.
    pub(crate) fn empty_disk(&self, name: &DiskName) -> PathBuf {
        self.folder.join(format!("disk-{name}.raw"))
    }
}

/// A machine that is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) files: Files,
    pub(crate) settings: Settings,
    pub(crate) point: PointMeta,
    /// It ends with the process that starts it, and its addresses are not those of the source.
    pub(crate) test: bool,
    /// How it is found among others.
    pub(crate) title: String,
}

impl Plan {
    /// Whether interfaces of it are to have addresses that the target's file says.
    pub(crate) fn has_addresses(&self) -> bool {
        nics::wired(self).iter().any(|nic| !nic.addresses.own.is_empty())
    }
}
