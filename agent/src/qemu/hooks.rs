//! Programs that a guest's agent runs before and after a freeze, so that what is in the guest's applications is on its disks at the cut.

use std::time::{Duration, Instant};

use landfall_model::HookResult;
use landfall_qmp::GuestAgent;

/// What is run in a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hooks {
    /// Program and arguments, run before the file systems are frozen, with `LANDFALL_PHASE=freeze`.
    pub before: Vec<String>,
    /// The same after they were thawed, with `LANDFALL_PHASE=thaw`; whatever happens in between, it runs.
    pub after: Vec<String>,
    /// Each may take so long.
    pub longest: Duration,
    /// From one point with hooks to the next. Points in between are of frozen file systems.
    pub every: Duration,
}

/// Runs a hook, if it names a program; what is stored of it in the point.
pub(super) fn run(agent: &mut GuestAgent, words: &[String], phase: &str, longest: Duration) -> Option<HookResult> {
    let (program, arguments) = words.split_first()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let ran = agent.run(program, &arguments, &[&format!("LANDFALL_PHASE={phase}")], true, longest);
    let code = match ran {
        Ok(exited) => {
            if exited.code != Some(0) {
                tracing::warn!(program, phase, code = exited.code, said = exited.said, "a hook in the guest failed");
            }
            exited.code
        }
        Err(error) => {
            tracing::warn!(%error, program, phase, "a hook in the guest could not be run");
            None
        }
    };
    let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Some(HookResult { phase: phase.to_owned(), code, elapsed_ms })
}
