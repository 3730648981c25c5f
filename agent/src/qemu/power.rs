//! A guest is shut down, and its QEMU stays, with its disks.

use std::time::{Duration, Instant};

use landfall_model::{Error, ErrorKind, Result};
use landfall_qmp::{GuestAgent, Qmp, QmpError};
use serde_json::{Value, json};

use super::vm::Vm;

/// An agent that does not answer at once is not there: then the power button is pressed.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The guest's agent says nothing when it does as it was told.
const WORD_MAX: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(200);
/// QEMU's word for a guest that has shut down.
const SHUT_DOWN: &str = "shutdown";

fn status(qmp: &mut Qmp) -> Result<String> {
    Ok(qmp.execute("query-status", Value::Null)?["status"].as_str().unwrap_or_default().to_owned())
}

fn at_shutdown(qmp: &mut Qmp, action: &str) -> Result<()> {
    let set = qmp.execute("set-action", json!({ "shutdown": action }));
    set.map_err(|e| Error::from(e).context("having QEMU stay when its guest shuts down"))?;
    Ok(())
}

impl Vm {
    /// Whether the guest has shut down, and QEMU stays.
    pub(crate) fn is_shut_down(&self) -> Result<bool> {
        Ok(status(&mut self.connect()?)? == SHUT_DOWN)
    }

    /// Shuts the guest down, by its agent or by the power button, and waits until it is. Blocks. Its QEMU stays, paused.
    ///
    /// # Errors
    /// `Unavailable` where it does not shut down in time, or QEMU ends with it; `Conflict` where it does not run.
    pub(crate) fn shut_down(&self, longest: Duration, stop: &dyn Fn() -> bool) -> Result<()> {
        let about = |e: Error| e.context(format_args!("shutting down the guest of {}", self.config.qmp.display()));
        self.ask_to_shut_down().map_err(about)?;
        let start = Instant::now();
        while start.elapsed() < longest {
            if stop() {
                // It may shut down a moment later, and its QEMU must stay then: who asks again finds it.
                return Err(about(Error::new(ErrorKind::Unavailable, "nobody waits for it any more")));
            }
            // The monitor has one client at a time: others may want it meanwhile.
            match self.is_shut_down() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let why = "QEMU has ended with its guest, and with it the way to its disks: whoever manages it must let it stay";
                    return Err(about(Error::with_source(ErrorKind::Unavailable, why, error)));
                }
                Err(error) => tracing::debug!(%error, "the monitor is busy"),
            }
            std::thread::sleep(POLL);
        }
        at_shutdown(&mut self.connect()?, "poweroff")?;
        // In the last moment.
        if self.is_shut_down()? {
            return Ok(());
        }
        let why = format!(
            "it has not shut down within {} s (stop_max), and goes on: shut it down by hand and try again",
            start.elapsed().as_secs()
        );
        Err(about(Error::new(ErrorKind::Unavailable, why)))
    }

    fn ask_to_shut_down(&self) -> Result<()> {
        let mut qmp = self.connect()?;
        match status(&mut qmp)?.as_str() {
            SHUT_DOWN => return Ok(()),
            "running" => {}
            other => return Err(Error::new(ErrorKind::Conflict, format!("it does not run, QEMU says: {other}"))),
        }
        at_shutdown(&mut qmp, "pause")?;
        if let Some(socket) = &self.config.guest_agent {
            let mode = json!({ "mode": "powerdown" });
            let told: landfall_qmp::Result<()> = match GuestAgent::connect(socket, ANSWER_MAX) {
                Ok(mut agent) => match agent.execute("guest-shutdown", mode, WORD_MAX) {
                    Err(error @ QmpError::Refused { .. }) => Err(error),
                    _ => return Ok(()),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = told {
                tracing::warn!(%error, "the guest's agent does not shut it down: the power button is pressed");
            }
        }
        qmp.execute("system_powerdown", Value::Null)?;
        Ok(())
    }

    /// Boots a guest that was shut down; one that runs goes on.
    ///
    /// # Errors
    /// What QEMU says.
    pub(crate) fn start_again(&self) -> Result<()> {
        let about = |e: Error| e.context(format_args!("starting the guest of {}", self.config.qmp.display()));
        let mut qmp = self.connect().map_err(about)?;
        at_shutdown(&mut qmp, "poweroff").map_err(about)?;
        let mut found = status(&mut qmp).map_err(about)?;
        if found == SHUT_DOWN {
            qmp.execute("system_reset", Value::Null).map_err(Error::from).map_err(about)?;
            found = status(&mut qmp).map_err(about)?;
        }
        // One that was reset by an agent that died then is in the first of these.
        if found == "prelaunch" || found == "paused" {
            qmp.execute("cont", Value::Null).map_err(Error::from).map_err(about)?;
            found = status(&mut qmp).map_err(about)?;
        }
        if found != "running" {
            return Err(about(Error::new(ErrorKind::Conflict, format!("it does not run, QEMU says: {found}"))));
        }
        Ok(())
    }
}
