//! Holding applications and file systems still while the disks are read, and letting them go whatever happens.
//!
//! Whatever is frozen has a guard: a shell that waits for the end of a pipe, at most for the time that the configuration allows, and then
//! thaws. The agent holds the other end. It closes it when it is done; the kernel closes it when the agent dies. Guards are started
//! before anything is frozen.
//!
//! ```text
//!   agent --- pipe ---> sh: timeout N cat; then: fsfreeze -u MOUNT, or the operator's command with LANDFALL_PHASE=thaw
//! ```
//! A guard that has thawed before the disks were read is an error: the cut would claim more than it holds.
//!
//! Guards hold a lock in the state directory until they have thawed, and nothing is frozen before the lock is free. So the guard of an agent
//! that was killed never thaws what the next one has frozen.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use landfall_model::{Consistency, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::qemu::{FrozenGuest, GuestFreeze, Thawed};
use crate::{durable, mounts};

/// Waits for the end of its input, for `$1` seconds at most, and runs the rest. A signal that ends the agent's group does not end it.
/// Its stdout is the lock: what it runs does not get it, but may say something.
const GUARD: &str =
    r#"trap "" HUP INT TERM; timeout -s KILL "$1" cat >/dev/null; shift; trap - HUP INT TERM; "$@" >&2; exit $?"#;
/// In the state directory.
const LOCK: &str = "frozen.lock";
/// A thaw that takes longer is reported, and goes on.
const THAW_WAIT_MAX: Duration = Duration::from_secs(60);
/// After it was killed, a command is waited for so long.
const KILL_WAIT_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// What to hold still.
#[derive(Clone, Debug)]
pub(crate) struct Freeze {
    /// The operator's command, run with `LANDFALL_PHASE=freeze` and `LANDFALL_PHASE=thaw`.
    pub(crate) command: Option<String>,
    /// File systems, by their mount points: those that the configuration names, and those that were found.
    pub(crate) mounts: Vec<PathBuf>,
    /// How many of them the configuration names.
    pub(crate) named: usize,
    /// Those that the copies of these disks hold still, and nobody else may.
    pub(crate) by_copies: Vec<(PathBuf, PathBuf)>,
    /// Protected disks that name none.
    pub(crate) unnamed: Vec<PathBuf>,
    /// Whether the file systems of every protected disk are known.
    pub(crate) all_mounts: bool,
    /// Everything is thawed after so long, read or not.
    pub(crate) longest: Duration,
    /// `fsfreeze` of util-linux.
    pub(crate) program: PathBuf,
    /// A guest's file systems, where the disks are those of a virtual machine.
    pub(crate) guest: Option<GuestFreeze>,
}

impl Freeze {
    /// Finds the file systems of disks that name none, as they are mounted now: of those that are watched. Disks that are compared are held
    /// still for as long as that lasts, and only where somebody says so.
    pub(crate) fn look(&mut self, watched: &[PathBuf], still_by_themselves: &[PathBuf]) {
        self.mounts.truncate(self.named);
        let is_found =
            |disk: &PathBuf| watched.contains(disk) && !mounts::on(std::slice::from_ref(disk)).freezable.is_empty();
        let found: Vec<PathBuf> = self.unnamed.iter().filter(|disk| is_found(disk)).cloned().collect();
        self.all_mounts = found.len() == self.unnamed.len();
        self.mounts.extend(mounts::on(&found).freezable);
        let by_copy = |mount: &PathBuf| {
            let disk = still_by_themselves.iter().find(|disk| mounts::is_directly_on(mount, disk))?;
            Some((mount.clone(), disk.clone()))
        };
        self.by_copies = self.mounts.iter().filter_map(by_copy).collect();
    }

    /// The disks whose copies are to hold their file systems still.
    pub(crate) fn left_to_copies(&self) -> impl Iterator<Item = &PathBuf> {
        self.by_copies.iter().map(|(_, disk)| disk)
    }

    /// Whether nothing that is written after everything was frozen is in a cut, however much later that is made.
    pub(crate) fn holds_until_the_cut(&self) -> bool {
        self.command.is_some() || self.by_copies.is_empty()
    }

    fn frozen_here(&self) -> impl Iterator<Item = &PathBuf> {
        self.mounts.iter().filter(|mount| !self.by_copies.iter().any(|(other, _)| other == *mount))
    }

    /// What a cut guarantees that was made in this way.
    pub(crate) fn consistency(&self) -> Consistency {
        self.consistency_where(self.guest.is_some())
    }

    /// The same where it is known whether a guest was frozen.
    pub(crate) fn consistency_where(&self, guest: bool) -> Consistency {
        match (&self.command, guest || self.all_mounts && !self.mounts.is_empty()) {
            (Some(_), _) => Consistency::Application,
            (None, true) => Consistency::Filesystem,
            (None, false) => Consistency::Crash,
        }
    }

    /// Freezes everything: the application first, then its file systems. `stop` ends a command that does not return. `writes`: the state
    /// directory is written to meanwhile.
    ///
    /// # Errors
    /// `Usage` where something cannot be frozen, or the state directory lies on what would be and is written to; all is thawed again.
    pub(crate) fn hold(&self, state: &Path, writes: bool, stop: &dyn Fn() -> bool) -> Result<Held> {
        let is_lock_needed = self.command.is_some() || self.frozen_here().next().is_some();
        let lock = if is_lock_needed { Some(self.after_earlier_guards(state, stop)?) } else { None };
        let mut held = Held { guards: Vec::new(), lock, since: Instant::now(), longest: self.longest, guest: None };
        if let Some(command) = &self.command {
            let shell: Vec<OsString> = ["/bin/sh".into(), "-c".into(), command.into()].into();
            let action = Action { what: "the freeze command".to_owned(), freeze: shell.clone(), thaw: shell };
            held.freeze(action, stop)?;
        }
        for mount in self.frozen_here() {
            if writes {
                not_the_state(mount, state)?;
            }
            let run = |flag: &str| vec![self.program.clone().into(), flag.into(), mount.clone().into()];
            let action =
                Action { what: format!("the file system {}", mount.display()), freeze: run("-f"), thaw: run("-u") };
            held.freeze(action, stop)?;
        }
        if let Some(guest) = &self.guest {
            held.guest = guest.freeze(self.longest)?;
        }
        Ok(held)
    }

    /// Waits until the guards of an agent that is gone have thawed; gives the lock that the new ones hold.
    fn after_earlier_guards(&self, state: &Path, stop: &dyn Fn() -> bool) -> Result<File> {
        let path = state.join(LOCK);
        let file = durable::create(&path).map_err(|e| durable::failed("open", &path, e))?;
        let start = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < self.longest + THAW_WAIT_MAX && !stop() => {
                    std::thread::sleep(POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let why = "the thaw of a cut before it has not returned";
                    return Err(failed("what is to be held still", "freeze", why));
                }
                Err(error) => return Err(durable::failed("lock", &path, error.into())),
            }
        }
    }
}

/// An agent that freezes the file system that it writes to waits for itself.
fn not_the_state(mount: &Path, state: &Path) -> Result<()> {
    let device = |path: &Path| {
        let meta = std::fs::metadata(path);
        meta.map(|m| m.dev()).map_err(|e| {
            Error::with_source(ErrorKind::Usage, format!("cannot look at {} to freeze it", path.display()), e)
        })
    };
    if device(mount)? == device(state)? {
        let (mount, state) = (mount.display(), state.display());
        let why = format!(
            "the state directory {state} lies on {mount}, which is to be frozen: move it to another file system"
        );
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(())
}

struct Action {
    what: String,
    freeze: Vec<OsString>,
    thaw: Vec<OsString>,
}

fn failed(what: &str, phase: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Usage, format!("{what}: {phase} failed: {why}; no point was taken"))
}

/// Its own process group: a signal for the agent's does not reach it, and what it has started is ended with it.
fn command(words: &[OsString], phase: &str) -> Command {
    let mut command = Command::new(words.first().map_or_else(|| OsString::from("false"), Clone::clone));
    command.args(words.iter().skip(1)).env("LANDFALL_PHASE", phase).process_group(0);
    // What it says goes to stderr: stdout is the program's.
    command.stdin(Stdio::null()).stdout(io::stderr());
    command
}

/// Runs an operator's command to its end; twice in a row it must do what once does. `phase`: told to it as `LANDFALL_PHASE`.
///
/// # Errors
/// `Unavailable` where it fails, or does not return in time.
pub(crate) fn run_shell(name: &str, text: &str, phase: &str, longest: Duration, stop: &dyn Fn() -> bool) -> Result<()> {
    let failed = |why: &dyn std::fmt::Display| Error::new(ErrorKind::Unavailable, format!("{name} {text:?}: {why}"));
    let words: [OsString; 3] = ["/bin/sh".into(), "-c".into(), text.into()];
    let mut child = command(&words, phase).spawn().map_err(|e| failed(&e))?;
    match wait(&mut child, longest, stop) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(failed(&status)),
        Ok(None) => {
            kill(&mut child);
            Err(failed(&format_args!("it did not return within {} s", longest.as_secs())))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// Waits for a process, but not longer than this, and not once it is to stop.
fn wait(child: &mut Child, longest: Duration, stop: &dyn Fn() -> bool) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= longest || stop() {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn kill(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = wait(child, KILL_WAIT_MAX, &|| false);
}

/// What is frozen, until it is thawed or dropped.
pub(crate) struct Held {
    guards: Vec<Guard>,
    /// Where there are guards.
    lock: Option<File>,
    since: Instant,
    longest: Duration,
    guest: Option<FrozenGuest>,
}

impl Held {
    /// The disks of a guest were cut: thaws its file systems.
    pub(crate) fn thaw_guest(&mut self) -> Thawed {
        self.guest.take().map(FrozenGuest::thaw).unwrap_or_default()
    }

    fn freeze(&mut self, action: Action, stop: &dyn Fn() -> bool) -> Result<()> {
        let Action { what, freeze, thaw } = action;
        // From here on the thaw runs in any case: also a command that failed may have frozen something.
        self.guards.push(Guard::start(&what, thaw, self.longest, self.lock.as_ref())?);
        let mut child = command(&freeze, "freeze").spawn().map_err(|e| failed(&what, "freeze", e))?;
        match wait(&mut child, self.longest, stop) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(failed(&what, "freeze", status)),
            Ok(None) => {
                kill(&mut child);
                Err(failed(
                    &what,
                    "freeze",
                    format_args!("it did not return within {} s", self.since.elapsed().as_secs()),
                ))
            }
            Err(error) => Err(failed(&what, "freeze", error)),
        }
    }

    /// The disks were read: lets everything go, the last frozen first.
    ///
    /// # Errors
    /// `Usage` where something was not frozen all the time, or cannot be thawed.
    pub(crate) fn thaw(mut self) -> Result<()> {
        let in_time = self.since.elapsed() < self.longest;
        self.thaw_guest();
        let mut outcome = Ok(());
        while let Some(mut guard) = self.guards.pop() {
            let kept = in_time && guard.is_holding();
            let thawed = guard.release();
            let longest = self.longest.as_secs();
            let early = || {
                failed(
                    &guard.what,
                    "freeze",
                    format_args!("it was thawed before all was read (freeze_max: {longest} s)"),
                )
            };
            outcome = outcome.and(if kept { thawed } else { Err(early()) });
        }
        outcome
    }
}

/// Thaws one thing, unless it is dismissed.
pub(crate) struct Guard {
    what: String,
    child: Child,
    thaw: Vec<OsString>,
    released: bool,
}

impl Guard {
    /// Begins to wait. `thaw`: what is run when the agent has gone, or it took too long. `lock`: is held until that is done.
    ///
    /// # Errors
    /// `Usage` where no process can be started.
    pub(crate) fn start(what: &str, thaw: Vec<OsString>, longest: Duration, lock: Option<&File>) -> Result<Self> {
        let seconds = format!("{}", longest.as_secs_f64());
        let mut words: Vec<OsString> = ["/bin/sh", "-c", GUARD, "landfall-thaw", &seconds].map(OsString::from).into();
        words.extend(thaw.iter().cloned());
        let mut shell = command(&words, "thaw");
        if let Some(lock) = lock {
            shell.stdout(lock.try_clone().map_err(|e| failed(what, "freeze", e))?);
        }
        let child = shell.stdin(Stdio::piped()).spawn().map_err(|e| failed(what, "freeze", e))?;
        Ok(Self { what: what.to_owned(), child, thaw, released: false })
    }

    /// There is nothing to thaw any more.
    pub(crate) fn dismiss(mut self) {
        self.released = true;
        kill(&mut self.child);
    }

    /// Lets it thaw, and waits for nothing.
    pub(crate) fn leave(mut self) {
        drop(self.child.stdin.take());
        std::thread::spawn(move || self.release());
    }

    fn is_holding(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn release(&mut self) -> Result<()> {
        self.released = true;
        drop(self.child.stdin.take());
        let status = wait(&mut self.child, THAW_WAIT_MAX, &|| false).map_err(|e| failed(&self.what, "thaw", e))?;
        match status {
            Some(status) if status.success() => Ok(()),
            // Somebody killed the guard: nobody else thaws.
            Some(status) if status.signal().is_some() => self.thaw_directly(),
            Some(status) => Err(failed(&self.what, "thaw", status)),
            None => Err(failed(&self.what, "thaw", "it does not return")),
        }
    }

    fn thaw_directly(&self) -> Result<()> {
        let mut child = command(&self.thaw, "thaw").spawn().map_err(|e| failed(&self.what, "thaw", e))?;
        match wait(&mut child, THAW_WAIT_MAX, &|| false) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(failed(&self.what, "thaw", status)),
            Ok(None) => Err(failed(&self.what, "thaw", "it does not return")),
            Err(error) => Err(failed(&self.what, "thaw", error)),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if let Err(error) = self.release() {
            tracing::error!(%error, "something may still be frozen");
        }
    }
}

#[cfg(test)]
mod tests;
