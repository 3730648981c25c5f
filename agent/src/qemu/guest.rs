//! The guest's file systems, held still by its agent for a cut; and what guards run where the agent of the host has died.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landfall_model::Result;
use landfall_qmp::{GuestAgent, Qmp, QmpError};
use serde_json::Value;

use super::config::QemuConfig;
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
}

/// File systems of a guest that are frozen. Thawed where it is dropped.
pub(crate) struct FrozenGuest {
    agent: GuestAgent,
    guard: Guard,
}

impl GuestFreeze {
    /// What a configuration says; none where it names no agent of the guest.
    pub(crate) fn of(config: &QemuConfig) -> Option<Self> {
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("landfall"));
        Some(Self { socket: config.guest_agent.clone()?, program })
    }

    /// Freezes, with the hooks that the guest has for it; none where that did not work, which is said in the log: the cut is one as of a power failure then.
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
        let words = words.into_iter().chain([self.socket.clone().into()]).collect();
        let guard = Guard::start("the guest's file systems", words, longest, None)?;
        let frozen = agent.freeze(longest);
        match &frozen {
            Ok(0) => not_frozen(&"the guest has none that can be"),
            Ok(_) => return Ok(Some(FrozenGuest { agent, guard })),
            Err(error) => not_frozen(error),
        }
        // Some of them may be.
        FrozenGuest { agent, guard }.thaw();
        Ok(None)
    }
}

impl FrozenGuest {
    /// Thaws; `true` where the file systems were frozen until now.
    pub(crate) fn thaw(self) -> bool {
        let Self { mut agent, guard } = self;
        let thawed = agent.thaw(ANSWER_MAX);
        // The guard needs the connection.
        drop(agent);
        match thawed {
            Ok(count) => {
                guard.dismiss();
                if count == 0 {
                    tracing::warn!("the guest's file systems were thawed before the cut was made");
                }
                count > 0
            }
            Err(error) => {
                tracing::warn!(%error, "the guest's agent does not answer: its file systems are thawed as soon as it does");
                // It goes on in a process of its own; nobody waits.
                guard.leave();
                false
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

/// Thaws a guest's file systems, for an agent that cannot do so any more. Blocks for minutes at most.
///
/// # Errors
/// `Unavailable` where the guest's agent does not answer.
pub fn release_guest(socket: &Path) -> Result<()> {
    until_done(|| GuestAgent::connect(socket, COMMAND_MAX)?.thaw(COMMAND_MAX).map(|_| ()))
}

/// Lets a virtual machine go on that was stopped, for an agent that cannot do so any more. Blocks for minutes at most.
///
/// # Errors
/// `Unavailable` where QEMU does not answer.
pub fn release_machine(socket: &Path) -> Result<()> {
    until_done(|| Qmp::connect(socket, COMMAND_MAX)?.execute("cont", Value::Null).map(|_| ()))
}
