//! Volumes of ZFS: one snapshot of all of a machine's at each cut, and from `zfs send -i | zstream dump` what differs from the one before.
//!
//! ```text
//!   cut        zfs snapshot POOL/A@NAME POOL/B@NAME ...     one command for each pool: one transaction group, one moment
//!   after it   zfs hold | zfs send -L -c -i OLD NEW | zstream dump -v | zfs release, zfs destroy of the one before
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landfall_disk::zstream_dump;
use landfall_model::{BlockSet, Error, ErrorKind, Result};

use super::{LEFT_MAX, Lookout, Owner, Usage, check_room, size_of_new, text, with_growth};
use crate::fingerprints::BLOCK_BYTES;
use crate::tracking::{Watch, Written};
use crate::{mounts, program};

/// What this needs, and what it is a part of.
const PROGRAMS: [(&str, &str); 3] =
    [("zfs", "zfsutils-linux"), ("zpool", "zfsutils-linux"), ("zstream", "zfsutils-linux, 2.0 or newer")];
/// Where ZFS has the device nodes of volumes and their snapshots, by name.
const DEVICES: &str = "/dev/zvol";
/// Keeps others from destroying a snapshot.
const HOLD: &str = "landfall";

/// The snapshots of all volumes of a machine, of one moment each.
#[derive(Clone, Default)]
pub(crate) struct Moments(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Moments {
    fn volumes(&self) -> MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume's snapshot of the cut that is being made: one that was made with that of another volume, or a new one of all.
    fn take(&self, volume: &str, owner: &Owner) -> Result<String> {
        let mut volumes = self.volumes();
        if let Some(name) = volumes.get_mut(volume).and_then(Option::take) {
            return Ok(name);
        }
        check_room(pool_of(volume), usage(volume)?)?;
        let name = owner.new_name()?;
        let in_pool = |other: &&String| pool_of(other) == pool_of(volume);
        let together: Vec<String> = volumes.keys().filter(in_pool).cloned().collect();
        snapshot(&together, &name)?;
        for other in together.iter().filter(|other| *other != volume) {
            volumes.insert(other.clone(), Some(name.clone()));
        }
        Ok(name)
    }

    /// What was made before is not of the cut that begins.
    fn forget(&self, volume: &str) {
        self.volumes().insert(volume.to_owned(), None);
    }
}

fn snapshot(volumes: &[String], name: &str) -> Result<()> {
    let snapshots: Vec<String> = volumes.iter().map(|volume| format!("{volume}@{name}")).collect();
    let words: Vec<&str> = ["zfs", "snapshot"].into_iter().chain(snapshots.iter().map(String::as_str)).collect();
    program::output(&words).map(drop)
}

fn pool_of(volume: &str) -> &str {
    volume.split('/').next().unwrap_or(volume)
}

/// The volume at a path; none where there is another thing.
fn find(path: &Path) -> Result<Option<String>> {
    let Some(number) = mounts::number(path) else { return Ok(None) };
    let list = ["zfs", "list", "-H", "-p", "-t", "volume", "-o", "name,snapdev"];
    let listed = match program::need(&PROGRAMS[..1]).and_then(|()| program::output(&list)) {
        Ok(listed) => listed,
        Err(error) => {
            // Of other devices ZFS is not expected to say anything.
            let is_volume = std::fs::canonicalize(path).is_ok_and(|path| path.to_string_lossy().starts_with("/dev/zd"));
            return if is_volume { Err(error) } else { Ok(None) };
        }
    };
    let is_at = |name: &str| mounts::number(&Path::new(DEVICES).join(name)) == Some(number);
    let found =
        text::lines::<2>("zfs list", &listed)?.into_iter().find(|[name, _]| text::is_zfs_name(name) && is_at(name));
    match found {
        None => Ok(None),
        Some([name, snapdev]) if snapdev == "visible" => Ok(Some(name)),
        Some([name, snapdev]) => {
            let why = format!(
                "snapshots of the volume {name} have no device (snapdev is {snapdev}): zfs set snapdev=visible '{name}'"
            );
            Err(Error::new(ErrorKind::Unsupported, why))
        }
    }
}

fn usage(volume: &str) -> Result<Usage> {
    text::zpool_usage(&program::output(&["zpool", "list", "-H", "-p", "-o", "capacity,health", pool_of(volume)])?)
}

/// Destroys the snapshots of this volume that this agent made, but for one. Returns how many could not be, and why the first.
fn destroy_own(volume: &str, owner: &Owner, but: Option<&str>) -> Result<(usize, Option<Error>)> {
    let listed = program::output(&["zfs", "list", "-H", "-p", "-t", "snapshot", "-d", "1", "-o", "name", volume])?;
    let (mut left, mut why) = (0, None);
    for [full_name] in text::lines::<1>("zfs list", &listed)? {
        let name = full_name.strip_prefix(volume).and_then(|rest| rest.strip_prefix('@'));
        if name.is_none_or(|name| !owner.is_own(name) || but == Some(name)) {
            continue;
        }
        // One that was not held cannot be released.
        let _ = program::output(&["zfs", "release", HOLD, &full_name]);
        if let Err(error) = program::output(&["zfs", "destroy", &full_name]) {
            left += 1;
            why = why.or(Some(error));
        }
    }
    Ok((left, why))
}

/// A snapshot that can be read.
struct Snapshot {
    name: String,
    path: PathBuf,
    size: u64,
}

fn open(volume: &str, name: String) -> Result<Snapshot> {
    let full_name = format!("{volume}@{name}");
    let path = Path::new(DEVICES).join(&full_name);
    let size = size_of_new(&path)?;
    if let Err(error) = program::output(&["zfs", "hold", HOLD, &full_name]) {
        tracing::warn!(%error, "others may destroy the snapshot");
    }
    Ok(Snapshot { name, path, size })
}

/// What is written to a volume, by its snapshots. They go with it.
pub(crate) struct Zvol {
    owner: Owner,
    volume: String,
    moments: Moments,
    /// What the next one is compared with, and the newest that can be read.
    base: Snapshot,
    /// Made since, and not compared yet.
    newer: Option<String>,
    /// Could not be destroyed.
    left: usize,
    lookout: Option<Lookout>,
}

impl Zvol {
    /// Begins with a first snapshot; none where there is no volume of ZFS at the path. `alarm` is set where a pool fills up.
    ///
    /// # Errors
    /// Why it cannot be done although there is one.
    pub(crate) fn attach(
        path: &Path,
        owner: &Owner,
        moments: &Moments,
        alarm: &Arc<AtomicBool>,
    ) -> Result<Option<Self>> {
        let Some(volume) = find(path)? else { return Ok(None) };
        program::need(&PROGRAMS)?;
        // Of an agent that was killed: this one has the state directory now.
        if let (_, Some(error)) = destroy_own(&volume, owner, None)? {
            return Err(error.context("a snapshot of before cannot be destroyed"));
        }
        check_room(pool_of(&volume), usage(&volume)?)?;
        let name = owner.new_name()?;
        let begun = snapshot(std::slice::from_ref(&volume), &name).and_then(|()| open(&volume, name));
        let base = begun.inspect_err(|_| drop(destroy_own(&volume, owner, None)))?;
        let (looks_at, lets_go, of) = (volume.clone(), volume.clone(), owner.clone());
        let let_go = move || match destroy_own(&lets_go, &of, None)? {
            (_, Some(error)) => Err(error),
            _ => Ok(()),
        };
        let lookout = Lookout::start(pool_of(&volume).to_owned(), alarm.clone(), move || usage(&looks_at), let_go);
        moments.forget(&volume);
        let (owner, moments, lookout) = (owner.clone(), moments.clone(), Some(lookout));
        Ok(Some(Self { owner, volume, moments, base, newer: None, left: 0, lookout }))
    }

    fn snapshot(&mut self) -> Result<()> {
        if self.left >= LEFT_MAX {
            return Err(Error::new(ErrorKind::Conflict, format!("{} snapshots cannot be destroyed", self.left)));
        }
        self.newer = Some(self.moments.take(&self.volume, &self.owner)?);
        Ok(())
    }

    /// Destroys all but the newest that was compared.
    fn destroy_others(&mut self) {
        let (left, why) = match destroy_own(&self.volume, &self.owner, Some(&self.base.name)) {
            Ok((left, why)) => (left, why),
            Err(error) => (self.left + 1, Some(error)),
        };
        self.left = left;
        if let Some(error) = why {
            tracing::warn!(%error, "a snapshot was not destroyed; it is tried again after the next cut");
        }
    }

    fn changed(&self, newer: &Snapshot, stop: &dyn Fn() -> bool) -> Result<BlockSet> {
        let [old, new] = [&self.base, newer].map(|snapshot| format!("{}@{}", self.volume, snapshot.name));
        let size = newer.size;
        let send = ["zfs", "send", "-L", "-c", "-i", &old, &new];
        let changed = program::listen(&[&send, &["zstream", "dump", "-v"]], stop, move |from| {
            zstream_dump(from, size, BLOCK_BYTES).map_err(|e| Error::corrupt(e.to_string()))
        });
        Ok(with_growth(changed?, self.base.size))
    }
}

impl Watch for Zvol {
    fn begin_cut(&mut self) {
        self.moments.forget(&self.volume);
    }

    fn take(&mut self) -> Written {
        self.snapshot().map_or_else(|error| Written::Lost(error.line()), |()| Written::Later)
    }

    fn tidy(&mut self) {
        if self.newer.take().is_some() {
            self.destroy_others();
        }
    }

    fn compare(&mut self, stop: &dyn Fn() -> bool) -> Written {
        let Some(name) = self.newer.take() else { return Written::All("no snapshot was taken".to_owned()) };
        let newer = match open(&self.volume, name) {
            Ok(newer) => newer,
            Err(error) => return Written::Lost(error.line()),
        };
        let changed = self.changed(&newer, stop);
        self.base = newer;
        self.destroy_others();
        changed.map_or_else(|error| Written::All(error.line()), Written::Blocks)
    }

    fn source(&self) -> &'static str {
        "zfs"
    }

    fn copy(&self) -> Option<&Path> {
        Some(&self.base.path)
    }

    fn gives_up(&self) -> Option<String> {
        let is_full = self.lookout.as_ref().is_some_and(Lookout::is_full);
        is_full.then(|| format!("the pool {} is nearly full", pool_of(&self.volume)))
    }
}

impl Drop for Zvol {
    fn drop(&mut self) {
        drop(self.lookout.take());
        self.moments.volumes().remove(&self.volume);
        match destroy_own(&self.volume, &self.owner, None) {
            Ok((_, None)) => {}
            Ok((_, Some(error))) | Err(error) => {
                tracing::warn!(%error, "a snapshot was left; the next agent destroys it");
            }
        }
    }
}
