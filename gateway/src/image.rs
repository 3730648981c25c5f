//! The `image` source: files and block devices, read at one moment of the caller's choosing, changes found by comparison.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use landfall_disk::RawReader;
use landfall_model::{Consistency, DiskMeta, DiskName, Error, ErrorKind, PointMeta, Result, Seq};

/// A disk as the operator names it.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Its name in the machine.
    pub name: DiskName,
    /// The file or device; an excluded disk may have none.
    pub path: Option<PathBuf>,
    /// Known, but not protected.
    pub excluded: bool,
}

/// A disk that was opened, or that is excluded.
pub(crate) struct OpenDisk {
    pub(crate) meta: DiskMeta,
    pub(crate) reader: Option<Arc<RawReader>>,
}

/// Opens the disks of a machine.
///
/// # Errors
/// `Usage` where a disk is named twice or has no bytes or none is protected, `NotFound` where a path leads nowhere.
pub(crate) fn open_disks(specs: &[DiskSpec], before: Option<&PointMeta>, seq: Seq) -> Result<Vec<OpenDisk>> {
    let mut names = BTreeSet::new();
    if let Some(twice) = specs.iter().find(|d| !names.insert(&d.name)) {
        let why = format!("disk {} is named twice: give each disk once", twice.name);
        return Err(Error::new(ErrorKind::Usage, why));
    }
    if !specs.iter().any(|d| !d.excluded) {
        return Err(Error::new(ErrorKind::Usage, "no disk to protect: give at least one with --disk NAME=PATH"));
    }
    let mut disks = Vec::with_capacity(specs.len());
    for (number, spec) in specs.iter().enumerate() {
        let known = before.and_then(|m| m.disks.iter().find(|d| d.name == spec.name));
        let reader = spec
            .path
            .as_deref()
            .map(RawReader::open)
            .transpose()
            .map_err(|e| Error::from(e).context(format!("disk {}", spec.name)))?;
        // No disk has no bytes: a device whose medium is out, a file cut off. A point of it would hide the loss.
        if let (Some(path), false, Some(0)) = (&spec.path, spec.excluded, reader.as_ref().map(RawReader::size)) {
            let why = format!("{}: it has no bytes (medium gone, file cut off?); no point was taken", path.display());
            return Err(Error::new(ErrorKind::Usage, why).context(format!("disk {}", spec.name)));
        }
        let meta = DiskMeta {
            name: spec.name.clone(),
            size: reader.as_ref().map(RawReader::size).or(known.map(|d| d.size)).unwrap_or(0),
            sector_size: reader.as_ref().map_or(512, RawReader::sector_size),
            boot: number == 0,
            excluded: spec.excluded,
            source: "image".to_owned(),
            identity: reader.as_ref().map(RawReader::identity).unwrap_or_default(),
            // A disk that was not there, or not protected, begins anew: what was known of it is of another time.
            base_seq: known.filter(|d| !d.excluded && !spec.excluded).map_or(seq, |d| d.base_seq),
        };
        disks.push(OpenDisk { meta, reader: reader.filter(|_| !spec.excluded).map(Arc::new) });
    }
    Ok(disks)
}

/// Holds the application still while the disks are read, and lets it go whatever happens.
pub(crate) struct Quiesce {
    command: Option<String>,
}

impl Quiesce {
    /// Runs the operator's command with `LANDFALL_PHASE=freeze`; with no command, nothing is held.
    ///
    /// # Errors
    /// `Usage` where the command cannot be run or fails: no point is taken that claims more than it holds.
    pub(crate) fn freeze(command: Option<&str>) -> Result<Self> {
        let held = Self { command: command.map(str::to_owned) };
        // From here on the thaw runs in any case: also a command that failed may have frozen something.
        if held.command.is_some() {
            held.run("freeze")?;
        }
        Ok(held)
    }

    /// What the point may say of itself.
    pub(crate) fn consistency(&self) -> Consistency {
        if self.command.is_some() { Consistency::Application } else { Consistency::Crash }
    }

    fn run(&self, phase: &str) -> Result<()> {
        let Some(command) = &self.command else { return Ok(()) };
        // What it says goes to stderr: stdout is the document's.
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(command).env("LANDFALL_PHASE", phase).stdin(Stdio::null()).stdout(std::io::stderr());
        let status = shell.status();
        let failed = |why: String| {
            Error::new(
                ErrorKind::Usage,
                format!("the consistency command failed in phase {phase}: {why}; no point was taken"),
            )
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(status.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Lets the application go on.
    ///
    /// # Errors
    /// `Usage` where the command fails.
    pub(crate) fn thaw(mut self) -> Result<()> {
        let outcome = self.run("thaw");
        self.command = None;
        outcome
    }
}

impl Drop for Quiesce {
    fn drop(&mut self) {
        if let Err(error) = self.run("thaw") {
            tracing::error!(%error, "the application may still be frozen");
        }
    }
}
