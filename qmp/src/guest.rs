//! The agent inside a guest.
//!
//! Nobody greets here, and answers have no ids: what an earlier client did not read is still on its way. So a connection begins by saying a number that the
//! agent repeats behind a byte that no JSON has; all that comes before is thrown away.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::{QmpError, Result};
use crate::lines::{Deadline, Lines};
use crate::monitor::parsed;

/// Begins an answer to `guest-sync-delimited`, and clears what the agent has read so far.
const DELIMITER: u8 = 0xff;
/// What was sent while no agent was there may be lost: it is said again after so long.
const REPEAT: Duration = Duration::from_secs(1);

/// How often it is asked whether a program has ended.
const POLL: Duration = Duration::from_millis(50);
/// As much of what a program said is kept.
const SAID_BYTES_MAX: usize = 200;

/// How a program of a guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exited {
    /// Its code; none where a signal ended it.
    pub code: Option<i64>,
    /// The end of what it said on stderr, else on stdout: for people.
    pub said: String,
}

/// A connection to a guest's agent (`org.qemu.guest_agent.0`).
///
/// All that it says is said by the guest. While file systems are frozen it answers little more than [`Self::thaw`], [`Self::is_frozen`] and [`Self::ping`].
pub struct GuestAgent {
    lines: Lines,
    next_number: u64,
    /// A command was given up: its answer may still come.
    stale: bool,
}

impl GuestAgent {
    /// Connects and waits for the agent to answer.
    ///
    /// # Errors
    /// `Io` where there is no such socket, `Silent` where no agent runs in the guest, or another client has it.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Deadline::after(limit);
        let lines = Lines::connect(path, deadline)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Another number than the client before had; the agent takes those of 63 bits.
        let next_number = u64::from(since.subsec_nanos()) << 24 | u64::from(std::process::id() & 0xffff) << 8;
        let mut agent = Self { lines, next_number, stale: true };
        agent.synchronise(deadline)?;
        Ok(agent)
    }

    fn synchronise(&mut self, deadline: Deadline) -> Result<()> {
        const WHAT: &str = "guest-sync-delimited";
        while deadline.left().is_some() {
            self.next_number += 1;
            let number = self.next_number;
            let mut bytes = vec![DELIMITER];
            bytes.extend(json!({ "execute": WHAT, "arguments": { "id": number } }).to_string().bytes());
            bytes.push(b'\n');
            self.lines.send(&bytes, WHAT, deadline)?;
            let turn = deadline.at_most(REPEAT);
            loop {
                let line = match self.lines.line(WHAT, turn) {
                    Ok(line) => line,
                    Err(QmpError::Silent { .. }) => break,
                    Err(error) => return Err(error),
                };
                let answer = line.iter().rposition(|byte| *byte == DELIMITER).map_or(&line[..], |at| &line[at + 1..]);
                let said = parsed(answer).and_then(|answer| answer.get("return")?.as_u64());
                if said == Some(number) {
                    self.stale = false;
                    return Ok(());
                }
            }
        }
        Err(self.lines.silent(WHAT, deadline))
    }

    /// Executes a command of the agent and returns what it returns. `arguments`: an object, or null for none.
    ///
    /// # Errors
    /// `Refused` where the agent says no; `Silent` where it does not answer in time: it may still do it.
    pub fn execute(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let deadline = Deadline::after(limit);
        if self.stale {
            self.synchronise(deadline)?;
        }
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut text = request.to_string();
        text.push('\n');
        self.stale = true;
        self.lines.send(text.as_bytes(), command, deadline)?;
        let line = self.lines.line(command, deadline)?;
        let mut answer = parsed(&line).ok_or_else(|| self.lines.malformed("a line that is no object"))?;
        self.stale = false;
        if let Some(error) = answer.get("error") {
            // The guest's own words: they end up in messages.
            let text = |name: &str| printable(error[name].as_str().unwrap_or_default());
            let (path, command) = (self.lines.path().to_owned(), command.to_owned());
            return Err(QmpError::Refused { path, command, class: text("class"), desc: text("desc") });
        }
        answer.remove("return").ok_or_else(|| self.lines.malformed("an answer that says nothing"))
    }

    /// Asks whether the agent is there.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub fn ping(&mut self, limit: Duration) -> Result<()> {
        self.execute("guest-ping", Value::Null, limit).map(|_| ())
    }

    /// Runs a program of the guest to its end, with these variables (`NAME=VALUE`) in its environment. `hear`: what it says is asked for.
    ///
    /// # Errors
    /// As for [`Self::execute`]: `Refused` where there is no such program, or the agent may run none; `Silent` where it does not end in time. It runs on then.
    pub fn run(
        &mut self,
        program: &str,
        arguments: &[&str],
        environment: &[&str],
        hear: bool,
        limit: Duration,
    ) -> Result<Exited> {
        const WHAT: &str = "guest-exec-status";
        let deadline = Deadline::after(limit);
        let begin = json!({ "path": program, "arg": arguments, "env": environment, "capture-output": hear });
        let begun = self.execute("guest-exec", begin, limit)?;
        let pid = begun["pid"].as_i64().ok_or_else(|| self.lines.malformed("a program without a number"))?;
        while let Some(left) = deadline.left() {
            let status = self.execute(WHAT, json!({ "pid": pid }), left)?;
            if let Some(exited) = exited(&status) {
                return Ok(exited);
            }
            std::thread::sleep(POLL);
        }
        Err(self.lines.silent(WHAT, deadline))
    }

    /// Freezes the guest's file systems, after the hooks that the guest has for it; returns how many.
    ///
    /// # Errors
    /// As for [`Self::execute`]. Thaw in any case: it may have frozen some.
    pub fn freeze(&mut self, limit: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-freeze", limit)
    }

    /// Thaws the guest's file systems; returns how many were frozen. None is no error.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub fn thaw(&mut self, limit: Duration) -> Result<u64> {
        self.count("guest-fsfreeze-thaw", limit)
    }

    /// Whether the guest's file systems are frozen.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub fn is_frozen(&mut self, limit: Duration) -> Result<bool> {
        let said = self.execute("guest-fsfreeze-status", Value::Null, limit)?;
        match said.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(self.lines.malformed("neither frozen nor thawed")),
        }
    }

    fn count(&mut self, command: &str, limit: Duration) -> Result<u64> {
        let said = self.execute(command, Value::Null, limit)?;
        said.as_u64().ok_or_else(|| self.lines.malformed("no count of file systems"))
    }
}

/// The beginning of what a guest says, without commands to a terminal.
fn printable(text: &str) -> String {
    text.chars().take(SAID_BYTES_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What an agent says of a program; none while it runs.
fn exited(status: &Value) -> Option<Exited> {
    if status["exited"].as_bool() != Some(true) {
        return None;
    }
    let said = |name: &str| {
        let text = data_encoding::BASE64.decode(status[name].as_str()?.as_bytes()).ok()?;
        let tail = &text[text.len().saturating_sub(SAID_BYTES_MAX)..];
        let text: String = String::from_utf8_lossy(tail).replace(char::is_control, " ").trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let code = if status["signal"].is_null() { status["exitcode"].as_i64() } else { None };
    Some(Exited { code, said: said("err-data").or_else(|| said("out-data")).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_ended_well_only_where_its_agent_says_so() {
        let code = |status: Value| exited(&status).map(|exited| exited.code);
        assert_eq!(code(json!({ "exited": false })), None);
        assert_eq!(code(json!({ "exited": "yes", "exitcode": 0 })), None);
        assert_eq!(code(json!(["exited"])), None);
        assert_eq!(code(json!({ "exited": true, "exitcode": 0 })), Some(Some(0)));
        assert_eq!(code(json!({ "exited": true, "exitcode": "0" })), Some(None));
        assert_eq!(code(json!({ "exited": true, "exitcode": 0, "signal": 9 })), Some(None));
        assert_eq!(code(json!({ "exited": true })), Some(None));
    }

    #[test]
    fn what_a_program_of_a_guest_says_is_short_and_holds_no_commands_of_a_terminal() {
        let said = format!("\x1b[2Jno {}", "no ".repeat(1000));
        let said = data_encoding::BASE64.encode(said.as_bytes());
        let exited = exited(&json!({ "exited": true, "exitcode": 1, "err-data": said, "out-data": "not base64" }));
        let said = exited.expect("it ended").said;
        assert!(said.len() <= SAID_BYTES_MAX && !said.contains('\x1b') && said.contains("no no"), "{said}");
    }
}
