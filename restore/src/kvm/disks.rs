//! The files of a machine's disks: an overlay over the vault for each that is protected, and an empty one for the others.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use landfall_model::{DiskMeta, Error, ErrorKind, Result};

use super::nics::{Network, NicSettings};
use super::settings::Settings;
use super::{Plan, empty, seed};

/// Runs a program to its end.
///
/// # Errors
/// `Unsupported` where it is not there; `Unavailable` with what it says where it fails.
fn run(program: &str, command: &mut Command) -> Result<String> {
    let done = command.output().map_err(|e| {
        let why = format!("cannot start {program}: install it, or put it on the PATH");
        Error::with_source(ErrorKind::Unsupported, why, e)
    })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(Error::new(ErrorKind::Unavailable, format!("{program} failed: {}", said.trim())))
}

/// Whether this host can bring a machine up: looked at before its source is stopped. Blocks.
///
/// # Errors
/// `Unsupported` where QEMU or `qemu-img` cannot be run; `Usage` where a bridge is not there.
pub(crate) fn ready(settings: &Settings) -> Result<()> {
    let qemu = settings.qemu.display().to_string();
    for program in [qemu.as_str(), "qemu-img"] {
        run(program, Command::new(program).arg("--version"))?;
    }
    for network in settings.network.iter().chain(settings.nics.iter().filter_map(NicSettings::network)) {
        let Network::Bridge(name) = network else { continue };
        if !Path::new("/sys/class/net").join(name).join("bridge").exists() {
            let why = format!("bridge {name} is not on this host: make it, or name another one in the target's file");
            return Err(Error::new(ErrorKind::Usage, why));
        }
    }
    Ok(())
}

/// Makes the disks that are not there yet. Blocks. The overlays read what nobody has written from the export of the same name.
///
/// # Errors
/// What the host says; `Unsupported` where `qemu-img` is missing.
pub(crate) fn make(plan: &Plan) -> Result<()> {
    for disk in &plan.point.disks {
        let path = if disk.excluded { plan.files.empty_disk(&disk.name) } else { plan.files.disk(&disk.name) };
        if path.exists() {
            continue;
        }
        // Under another name until it is whole: what has its name need not be made again.
        let mut new = path.clone().into_os_string();
        new.push("-new");
        let new = Path::new(&new);
        let _ = std::fs::remove_file(new);
        let fail =
            |e: std::io::Error| Error::with_source(ErrorKind::of_io(&e), format!("cannot make {}", path.display()), e);
        if disk.excluded {
            let bytes = sectors(disk, empty::size(&plan.settings.empty, disk));
            File::create_new(new).and_then(|file| file.set_len(bytes)).map_err(fail)?;
            if let Some((program, mut command)) = empty::command(&plan.settings.empty, disk, new) {
                run(program, &mut command).map_err(|e| e.context(format!("disk {}", disk.name)))?;
            }
        } else {
            let mut qemu_img = Command::new("qemu-img");
            // Not opened now: nothing need be served yet.
            qemu_img.args(["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &backing(plan, disk)]);
            run("qemu-img", qemu_img.arg(new).arg(sectors(disk, disk.size).to_string()))?;
        }
        // Whole on the disk before it has its name, also if the host crashes.
        File::open(new).and_then(|file| file.sync_all()).map_err(fail)?;
        std::fs::rename(new, &path).map_err(fail)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
    }
    seed::make(plan)
}

/// A disk of QEMU has whole sectors. One whose size is not known, since it is not protected, keeps its place.
fn sectors(disk: &DiskMeta, size: u64) -> u64 {
    let least = if disk.excluded { 1 << 20 } else { 512 };
    size.next_multiple_of(u64::from(disk.sector_size.max(512))).max(least)
}

/// Where the overlay says that it has the rest of its bytes from.
fn backing(plan: &Plan, disk: &DiskMeta) -> String {
    format!("nbd+unix:///{}?socket={}", disk.name, plan.files.nbd().display())
}

/// Whether a disk still needs the vault: its overlay has something behind it.
pub(crate) fn needs_vault(path: &Path) -> Result<bool> {
    let mut qemu_img = Command::new("qemu-img");
    let said = run("qemu-img", qemu_img.args(["info", "-U", "-f", "qcow2", "--output=json"]).arg(path))?;
    let info: serde_json::Value = serde_json::from_str(&said)
        .map_err(|e| Error::with_source(ErrorKind::Unsupported, "qemu-img says what is not JSON", e))?;
    Ok(info.get("backing-filename").is_some())
}
