//! A virtual machine whose disks are protected: what is asked of its QEMU before a cut, and cleaned up after it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landfall_model::{CycleId, DiskName, Error, ErrorKind, MachineShape, Nic, Result};
use landfall_qmp::{GuestAgent, Qmp, Version};
use serde_json::{Value, json};

use super::config::QemuConfig;
use super::cut::{CutDisk, Prepared};
use super::graph::{self, Known};
use super::names::{Names, Part};
use crate::durable::failed;
use crate::fingerprints::BLOCK_BYTES;
use crate::image::DiskConfig;

/// For each command: the slowest waits until the writes in flight are done.
pub(crate) const COMMAND_MAX: Duration = Duration::from_secs(30);
/// An export whose clients have gone is gone at once.
const EXPORT_GONE_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
/// Has a filter that gives up its snapshot where it cannot keep an old block, and lets the guest go on.
const OLDEST: Version = Version { major: 7, minor: 1, micro: 0 };
const SOCKET: &str = "nbd.sock";
const STOPPED: &str = "stopped";

/// A virtual machine.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) config: QemuConfig,
    pub(crate) names: Names,
    /// Ours alone, below the folder that the configuration names.
    folder: PathBuf,
    /// This program: a guard runs it.
    pub(crate) program: PathBuf,
}

impl Vm {
    pub(crate) fn new(config: &QemuConfig, state_dir: &Path) -> Self {
        let names = Names::of(state_dir);
        let folder = config.scratch_dir.join(names.prefix().trim_end_matches('-'));
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("landfall"));
        Self { config: config.clone(), names, folder, program }
    }

    pub(crate) fn connect(&self) -> Result<Qmp> {
        Ok(Qmp::connect(&self.config.qmp, COMMAND_MAX)?)
    }

    /// Where QEMU serves what is read.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    /// Says that the guest was stopped by us.
    pub(crate) fn stopped_marker(&self) -> PathBuf {
        self.folder.join(STOPPED)
    }

    /// Makes everything ready for a cut while the guest goes on. `base`: the cycle that the fingerprints of a disk are of.
    ///
    /// # Errors
    /// `NotFound` where there is no such QEMU or disk, `Unsupported` where QEMU is too old, `Conflict` where another program reads disks by the same QEMU's server.
    pub(crate) fn prepare(
        &self,
        disks: &[DiskConfig],
        base: impl Fn(&DiskName) -> Option<CycleId>,
    ) -> Result<Prepared<'_>> {
        let about = |e: Error| e.context(format_args!("virtual machine {}", self.config.qmp.display()));
        let mut qmp = self.connect().map_err(about)?;
        check_version(&qmp).map_err(about)?;
        self.make_folder()?;
        self.clean(&mut qmp).map_err(about)?;
        let mut prepared = Prepared::new(self, shape(&mut qmp, &self.config), qmp);
        prepared.find(disks).map_err(about)?;
        for disk in prepared.disks.iter_mut().filter(|disk| !disk.excluded) {
            let base = base(&disk.name);
            disk.since = known_since(&self.names, prepared.qmp.as_mut(), disk, base).map_err(about)?;
            self.make_scratch(prepared.qmp.as_mut(), disk).map_err(about)?;
        }
        self.serve(prepared.qmp.as_mut()).map_err(about)?;
        Ok(prepared)
    }

    fn make_folder(&self) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|e| failed("make", &self.folder, e))?;
        self.give_to_qemu(&self.folder);
        Ok(())
    }

    /// QEMU often runs as a user of its own, who owns its socket. Where we may not do this, QEMU says what it lacks.
    fn give_to_qemu(&self, path: &Path) {
        if let Ok(socket) = fs::metadata(&self.config.qmp) {
            let _ = chown(path, Some(socket.uid()), Some(socket.gid()));
        }
    }

    /// A file where the old bytes of a disk go, as large as the disk, and empty.
    fn make_scratch(&self, qmp: Option<&mut Qmp>, disk: &CutDisk) -> Result<()> {
        let node = self.names.node(&disk.device.node, Part::Scratch);
        let path = self.folder.join(&node);
        let make = || -> io::Result<()> {
            let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.set_len(disk.device.size)
        };
        make().map_err(|e| failed("make", &path, e))?;
        self.give_to_qemu(&path);
        let file = json!({ "driver": "file", "node-name": node, "filename": path });
        execute(qmp, "blockdev-add", file).map_err(|e| e.context("scratch_dir must be writable for QEMU"))?;
        Ok(())
    }

    fn serve(&self, qmp: Option<&mut Qmp>) -> Result<()> {
        let address = json!({ "addr": { "type": "unix", "data": { "path": self.socket() } } });
        execute(qmp, "nbd-server-start", address).map(|_| ()).map_err(|error| {
            if error.to_string().contains("already running") {
                let why =
                    "another program reads the disks of this guest by QEMU's server (a backup?): this is tried again";
                return Error::with_source(ErrorKind::Conflict, why, error);
            }
            error
        })
    }

    /// Removes all that a cut needs, whoever has left it there. Bitmaps stay.
    pub(crate) fn clean(&self, qmp: &mut Qmp) -> Result<()> {
        self.end_exports(qmp)?;
        let nodes = graph::nodes(&qmp.execute("query-named-block-nodes", json!({ "flat": true }))?);
        let there = |name: &str| nodes.iter().any(|node| node.name == name);
        for node in &nodes {
            let of = |part| self.names.node(&node.name, part);
            let [snapshot, filter, scratch] = [Part::Snapshot, Part::Filter, Part::Scratch].map(of);
            if there(&snapshot) {
                delete(qmp, &snapshot)?;
            }
            if there(&filter) {
                for device in graph::devices(&qmp.execute("query-block", Value::Null)?) {
                    if device.node == filter {
                        set_drive(qmp, &device.qom, &node.name)?;
                    }
                }
                delete(qmp, &filter)?;
            }
            if there(&scratch) {
                delete(qmp, &scratch)?;
            }
        }
        if UnixStream::connect(self.socket()).is_ok() {
            qmp.execute("nbd-server-stop", Value::Null)?;
        }
        // Of an agent that died, and its guard with it, in the milliseconds of a cut.
        if self.stopped_marker().exists() {
            if qmp.execute("query-status", Value::Null)?["status"] == "paused" {
                qmp.execute("cont", Value::Null)?;
            }
            let _ = fs::remove_file(self.stopped_marker());
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        Ok(())
    }

    fn end_exports(&self, qmp: &mut Qmp) -> Result<()> {
        let exports = |qmp: &mut Qmp| -> Result<Vec<String>> {
            let said = qmp.execute("query-block-exports", Value::Null)?;
            let ids = said.as_array().into_iter().flatten().filter_map(|e| e["id"].as_str());
            Ok(ids.filter(|id| self.names.is_ours(id)).map(str::to_owned).collect())
        };
        for id in exports(qmp)? {
            qmp.execute("block-export-del", json!({ "id": id, "mode": "hard" }))?;
        }
        let start = Instant::now();
        while !exports(qmp)?.is_empty() {
            if start.elapsed() > EXPORT_GONE_MAX {
                return Err(Error::new(ErrorKind::Unavailable, "QEMU does not end the export of an earlier cut"));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

/// A command over a connection that may be closed already.
pub(crate) fn execute(qmp: Option<&mut Qmp>, command: &str, arguments: Value) -> Result<Value> {
    let qmp = qmp.ok_or_else(|| Error::new(ErrorKind::Unavailable, "the connection to QEMU was closed"))?;
    Ok(qmp.execute(command, arguments)?)
}

fn delete(qmp: &mut Qmp, node: &str) -> Result<()> {
    qmp.execute("blockdev-del", json!({ "node-name": node }))?;
    Ok(())
}

/// Has a device use another node from now on.
pub(crate) fn set_drive(qmp: &mut Qmp, qom: &str, node: &str) -> Result<()> {
    qmp.execute("qom-set", json!({ "path": qom, "property": "drive", "value": node }))?;
    Ok(())
}

fn check_version(qmp: &Qmp) -> Result<()> {
    let version = qmp.version();
    if version >= OLDEST {
        return Ok(());
    }
    let Version { major, minor, micro } = version;
    let why = format!(
        "QEMU {major}.{minor}.{micro} cannot give up a snapshot without stopping the guest: 7.1 or newer is needed"
    );
    Err(Error::new(ErrorKind::Unsupported, why))
}

/// Puts our bitmaps of a disk in order; the one that has all that was written since the base, where that is known.
fn known_since(names: &Names, qmp: Option<&mut Qmp>, disk: &CutDisk, base: Option<CycleId>) -> Result<Option<String>> {
    let Some(qmp) = qmp else { return Ok(None) };
    let nodes = graph::nodes(&qmp.execute("query-named-block-nodes", json!({ "flat": true }))?);
    let root = &disk.device.node;
    let ours = nodes.into_iter().filter(|node| node.name == *root).flat_map(|node| node.bitmaps);
    let ours: Vec<_> = ours.filter(|bitmap| names.is_ours(&bitmap.name)).collect();
    let base = base.map(|cycle| names.bitmap(cycle));
    let (since, merge, forget) = match graph::known(&ours, base.as_deref(), BLOCK_BYTES) {
        Known::Since { merge, forget } => (base, merge, forget),
        Known::Unknown { why, forget } => {
            tracing::info!(disk = %disk.name, why, "what was written to it is not known: this cycle compares it whole");
            (None, Vec::new(), forget)
        }
    };
    let mut actions = Vec::new();
    let mut action = |kind: &str, data: Value| actions.push(json!({ "type": kind, "data": data }));
    if let (Some(since), false) = (&since, merge.is_empty()) {
        // In this order: what is written meanwhile is marked in one of them at any moment.
        action("block-dirty-bitmap-enable", json!({ "node": root, "name": since }));
        action("block-dirty-bitmap-merge", json!({ "node": root, "target": since, "bitmaps": merge }));
    }
    for name in merge.iter().chain(&forget) {
        action("block-dirty-bitmap-remove", json!({ "node": root, "name": name }));
    }
    if !actions.is_empty() {
        qmp.execute("transaction", json!({ "actions": actions }))?;
    }
    Ok(since)
}

/// What is needed to make the machine again elsewhere, as far as QEMU and the guest say so.
fn shape(qmp: &mut Qmp, config: &QemuConfig) -> Option<MachineShape> {
    let cpus = qmp.execute("query-cpus-fast", Value::Null).ok()?.as_array()?.len();
    let memory = qmp.execute("query-memory-size-summary", Value::Null).ok()?;
    let flash = qmp.execute("qom-get", json!({ "path": "/machine", "property": "pflash0" }));
    let is_uefi = flash.is_ok_and(|drive| drive.as_str().is_some_and(|drive| !drive.is_empty()));
    // Of virtio only; the guest's agent would know of others.
    let filters = qmp.execute("query-rx-filter", Value::Null).unwrap_or_default();
    let nic = |filter: &Value| {
        Some(Nic {
            name: filter["name"].as_str()?.to_owned(),
            model: "virtio".to_owned(),
            mac: filter["main-mac"].as_str()?.to_owned(),
            addresses: Vec::new(),
        })
    };
    let nics = filters.as_array().into_iter().flatten().filter_map(nic).take(landfall_wire::NICS_MAX).collect();
    tracing::trace!(qmp = %config.qmp.display(), cpus, "shape of the guest");
    Some(MachineShape {
        firmware: if is_uefi { "uefi" } else { "bios" }.to_owned(),
        cpus: u32::try_from(cpus).ok()?,
        memory_bytes: memory["base-memory"].as_u64()? + memory["plugged-memory"].as_u64().unwrap_or(0),
        nics,
    })
}

/// Tries what a configuration says, and changes nothing: what each disk's device says, and whether the guest's agent answers.
pub(crate) fn check(config: &QemuConfig, disks: &[DiskConfig]) -> (Vec<Result<String>>, Result<bool>) {
    let connected = Qmp::connect(&config.qmp, COMMAND_MAX).map_err(Error::from);
    let devices = connected.and_then(|mut qmp| {
        check_version(&qmp)?;
        fs::metadata(&config.scratch_dir).map_err(|e| failed("find", &config.scratch_dir, e))?;
        let (said, version) = (qmp.execute("query-block", Value::Null)?, qmp.version());
        Ok((graph::devices(&said), format!("QEMU {}.{}.{}", version.major, version.minor, version.micro)))
    });
    let disk = |disk: &DiskConfig| match &devices {
        Ok((devices, version)) => {
            graph::find(devices, disk.device.as_deref().unwrap_or_default()).map(|_| version.clone())
        }
        Err(error) => Err(Error::new(error.kind(), error.to_string())),
    };
    let agent = config.guest_agent.as_ref().map(|path| GuestAgent::connect(path, COMMAND_MAX).map_err(Error::from));
    (disks.iter().map(disk).collect(), agent.map_or(Ok(false), |agent| agent.map(|_| true)))
}
