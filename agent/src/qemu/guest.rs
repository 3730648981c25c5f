//! The guest's file systems, held still by its agent for a cut; and what guards run where the agent of the host has died.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landfall_model::{HookResult, Result};
use landfall_qmp::{GuestAgent, Qmp, QmpError};
use serde_json::Value;

use super::config::QemuConfig;
use super::hooks::{self, Hooks};
use super::vm::COMMAND_MAX;
use crate::freeze::Guard;

/// An agent that does not answer at once is not there: everything waits for it.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// A guard goes on for so long: also a freeze that is under way ends before.
const RELEASE_MAX: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(200);

/// How a guest's file systems are frozen.
#[derive(Clone, Debug)]
pub(crate) struct GuestFreeze {
    /// Socket of the guest's agent.
    pub(crate) socket: PathBuf,
    /// This program: a guard runs it.
    pub(crate) program: PathBuf,
    /// What is run around the next freeze, if anything.
    pub(crate) hooks: Option<Hooks>,
}

/// What came of a thaw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Thawed {
    /// The file systems were frozen until now.
    pub(crate) frozen: bool,
    /// Hooks were run, and each did what it was for.
    pub(crate) application: bool,
    /// What came of each.
    pub(crate) hooks: Vec<HookResult>,
}

/// File systems of a guest that are frozen. Thawed where it is dropped.
pub(crate) struct FrozenGuest {
    agent: GuestAgent,
    guard: Guard,
    hooks: Option<Hooks>,
    ran: Vec<HookResult>,
}

impl GuestFreeze {
    /// What a configuration says; none where it names no agent of the guest.
    pub(crate) fn of(config: &QemuConfig) -> Option<Self> {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("landfall"));
        Some(Self { socket: config.guest_agent.clone()?, program, hooks: config.hooks.clone() })
    }

    /// Runs the hook and freezes; none where that did not work, which is said in the log: the cut is one as of a power failure then. A hook that fails leaves a
    /// point of frozen file systems.
    ///
    /// # Errors
    /// Where no guard can be started: nothing is frozen then.
    pub(crate) fn freeze(&self, longest: Duration) -> Result<Option<FrozenGuest>> {
        let not_frozen = |error: &dyn std::fmt::Display| {
            tracing::warn!(%error, "the guest's file systems are not frozen: the point is as of a power failure");
        };
        let mut agent = match GuestAgent::connect(&self.socket, ANSWER_MAX.min(longest)) {
            Ok(agent) => agent,
            Err(error) => {
                not_frozen(&error);
                return Ok(None);
            }
        };
        let words: [OsString; 4] =
            [self.program.clone().into(), "agent".into(), "release".into(), "--guest-agent".into()];
        let after = self.hooks.iter().flat_map(|hooks| &hooks.after).map(OsString::from);
        let after: Vec<OsString> = after.collect();
        let mark = (!after.is_empty()).then(|| OsString::from("--"));
        let words = words.into_iter().chain([self.socket.clone().into()]).chain(mark).chain(after).collect();
        let guard = Guard::start("the guest's file systems", words, longest, None)?;
        let hooks = self.hooks.clone();
        let before = hooks.as_ref().and_then(|h| hooks::run(&mut agent, &h.before, "freeze", h.longest.min(longest)));
        let frozen = agent.freeze(longest);
        match &frozen {
            Ok(0) => not_frozen(&"the guest has none that can be"),
            Ok(_) => return Ok(Some(FrozenGuest { agent, guard, hooks, ran: before.into_iter().collect() })),
            Err(error) => not_frozen(error),
        }
        // Some of them may be.
        FrozenGuest { agent, guard, hooks, ran: Vec::new() }.thaw();
        Ok(None)
    }
}

impl FrozenGuest {
    /// Thaws, and runs the hook.
    pub(crate) fn thaw(self) -> Thawed {
        let Self { mut agent, guard, hooks, mut ran } = self;
        let thawed = agent.thaw(ANSWER_MAX);
        let after = match (&thawed, &hooks) {
            (Ok(_), Some(hooks)) => hooks::run(&mut agent, &hooks.after, "thaw", hooks.longest),
            _ => None,
        };
        // The guard needs the connection.
        drop(agent);
        match thawed {
            Ok(count) => {
                // One that could not be run is tried again.
                match &after {
                    Some(after) if after.code.is_none() => guard.leave(),
                    _ => guard.dismiss(),
                }
                ran.extend(after);
                if count == 0 {
                    tracing::warn!("the guest's file systems were thawed before the cut was made");
                }
                let application = hooks.is_some() && count > 0 && ran.iter().all(|hook| hook.code == Some(0));
                Thawed { frozen: count > 0, application, hooks: ran }
            }
            Err(error) => {
                tracing::warn!(%error, "the guest's agent does not answer: its file systems are thawed as soon as it does");
                // It goes on in a process of its own; nobody waits.
                guard.leave();
                Thawed::default()
            }
        }
    }
}

fn until_done(mut attempt: impl FnMut() -> landfall_qmp::Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if start.elapsed() > RELEASE_MAX => return Err(error.into()),
            // Nobody listens: no QEMU, nothing that stands still.
            Err(QmpError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
            {
                return Ok(());
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Thaws a guest's file systems and runs the hook `after`, for an agent that cannot do so any more. Blocks for minutes at most.
///
/// # Errors
/// `Unavailable` where the guest's agent does not answer.
pub fn release_guest(socket: &Path, after: &[String]) -> Result<()> {
    until_done(|| {
        let mut agent = GuestAgent::connect(socket, COMMAND_MAX)?;
        agent.thaw(COMMAND_MAX)?;
        hooks::run(&mut agent, after, "thaw", COMMAND_MAX);
        Ok(())
    })
}

/// Lets a virtual machine go on that was stopped, for an agent that cannot do so any more. Blocks for minutes at most.
///
/// # Errors
/// `Unavailable` where QEMU does not answer.
pub fn release_machine(socket: &Path) -> Result<()> {
    until_done(|| Qmp::connect(socket, COMMAND_MAX)?.execute("cont", Value::Null).map(|_| ()))
}
