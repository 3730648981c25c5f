//! Stopping the protected machine before its last cycle, and letting it go on where nothing came of it.

use std::sync::Arc;
use std::time::Duration;

use landfall_model::{Error, ErrorKind, Result};

use crate::config::AgentConfig;
use crate::freeze::run_shell;
use crate::qemu::Vm;

/// How the machine is stopped.
#[derive(Clone, Debug)]
pub(crate) struct Power {
    /// The guest whose disks are protected; none: this host.
    vm: Option<Arc<Vm>>,
    /// The operator's commands for this host.
    stop: Option<String>,
    start: Option<String>,
    /// Stopping may take so long.
    longest: Duration,
}

impl Power {
    /// What a configuration says.
    pub(crate) fn of(config: &AgentConfig, vm: Option<Arc<Vm>>) -> Self {
        let (stop, start) = (config.stop_command.clone(), config.start_command.clone());
        Self { vm, stop, start, longest: config.stop_max }
    }

    /// Stops it; one that is stopped stays so. Blocks. `stop` ends the waiting.
    ///
    /// # Errors
    /// `Unsupported` where nothing says how; `Unavailable` where it does not stop in time: it goes on then.
    pub(crate) fn stop(&self, stop: &dyn Fn() -> bool) -> Result<()> {
        match (&self.vm, &self.stop) {
            (Some(vm), _) => vm.shut_down(self.longest, stop),
            (None, Some(command)) => {
                run_shell("stop_command", command, "stop", self.longest, stop)?;
                // What its programs have written is on the disks before these are read.
                rustix::fs::sync();
                Ok(())
            }
            (None, None) => Err(Error::new(
                ErrorKind::Unsupported,
                "nothing says how this host is stopped: set stop_command in the agent's configuration",
            )),
        }
    }

    /// Lets it go on; one that runs does so. Blocks.
    ///
    /// # Errors
    /// As for [`Self::stop`].
    pub(crate) fn start(&self, stop: &dyn Fn() -> bool) -> Result<()> {
        match (&self.vm, &self.start) {
            (Some(vm), _) => vm.start_again(),
            (None, Some(command)) => run_shell("start_command", command, "start", self.longest, stop),
            (None, None) if self.stop.is_none() => Ok(()),
            (None, None) => Err(Error::new(
                ErrorKind::Unsupported,
                "nothing says how this host goes on: set start_command in the agent's configuration",
            )),
        }
    }
}
