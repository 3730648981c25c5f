//! The monitor of QEMU.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::error::{QmpError, Result};
use crate::lines::{Deadline, Lines};

/// Events that wait for somebody who asks for them: QEMU sends a few for each block job, and most are limited to one a second.
pub const EVENTS_MAX: usize = 1024;

/// Something that happened in QEMU.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Its name: `STOP`, `SHUTDOWN`, `BLOCK_EXPORT_DELETED`, ...
    pub name: String,
    /// What it says beyond that; null where that is nothing.
    pub data: Value,
}

/// Version of a QEMU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Version {
    /// The first number.
    pub major: u64,
    /// The second.
    pub minor: u64,
    /// The third.
    pub micro: u64,
}

/// A connection to the monitor of a QEMU. Ends when it is dropped; QEMU goes on.
pub struct Qmp {
    lines: Lines,
    version: Version,
    /// For each command that names none of its own.
    limit: Duration,
    next_id: u64,
    events: VecDeque<Event>,
    events_dropped: u64,
    /// What the other side sends cannot be followed any more.
    broken: bool,
}

impl Qmp {
    /// Connects to a socket (`-qmp unix:PATH,server=on,wait=off`) and ends the negotiation. `limit`: for all of this, and for each command later.
    ///
    /// # Errors
    /// `Io` where there is no such socket, `Silent` where another client has it.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let deadline = Deadline::after(limit);
        let mut lines = Lines::connect(path, deadline)?;
        let greeting = parsed(&lines.line("the greeting", deadline)?).ok_or_else(|| lines.malformed("no greeting"))?;
        let version = &greeting.get("QMP").ok_or_else(|| lines.malformed("no greeting"))?["version"]["qemu"];
        let number = |name: &str| version[name].as_u64().unwrap_or(0);
        let version = Version { major: number("major"), minor: number("minor"), micro: number("micro") };
        let events = VecDeque::new();
        let mut qmp = Self { lines, version, limit, next_id: 0, events, events_dropped: 0, broken: false };
        qmp.by("qmp_capabilities", json!({}), deadline)?;
        Ok(qmp)
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        self.lines.path()
    }

    /// The version that QEMU says it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Events that nobody asked for in time.
    pub fn events_dropped(&self) -> u64 {
        self.events_dropped
    }

    /// Executes a command and returns what it returns, within the limit of the connection. `arguments`: an object, or null for none.
    ///
    /// # Errors
    /// `Refused` with class and text where QEMU says no; `Silent` where it does not answer in time: the command may still be executed, and the connection goes on.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.by(command, arguments, Deadline::after(self.limit))
    }

    /// The same with a limit of its own.
    ///
    /// # Errors
    /// As for [`Self::execute`].
    pub fn execute_within(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        self.by(command, arguments, Deadline::after(limit))
    }

    fn by(&mut self, command: &str, arguments: Value, deadline: Deadline) -> Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        if self.broken {
            return Err(self.lines.malformed("an earlier answer could not be read"));
        }
        let mut text = request.to_string();
        text.push('\n');
        tracing::trace!(command, id, "to QEMU");
        let sent = self.lines.send(text.as_bytes(), command, deadline);
        // A part of a line may have gone.
        self.broken = sent.is_err();
        sent?;
        loop {
            let mut message = self.message(command, deadline)?;
            let of = message.get("id").and_then(Value::as_u64);
            // Of a command that was given up.
            if of.is_some_and(|of| of < id) {
                continue;
            }
            if let Some(error) = message.get("error") {
                let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
                let (path, command) = (self.path().to_owned(), command.to_owned());
                return Err(QmpError::Refused { path, command, class: text("class"), desc: text("desc") });
            }
            return match message.remove("return") {
                Some(value) if of == Some(id) => Ok(value),
                _ => {
                    self.broken = true;
                    Err(self.lines.malformed("an answer to nothing that was asked"))
                }
            };
        }
    }

    /// The next event that matches: one that waits already, or the first to come. The others go on waiting.
    ///
    /// # Errors
    /// `Silent` where none comes in time, `Ended` where QEMU has ended.
    pub fn event(&mut self, mut matching: impl FnMut(&Event) -> bool, limit: Duration) -> Result<Event> {
        let deadline = Deadline::after(limit);
        loop {
            if let Some(event) = self.events.iter().position(&mut matching).and_then(|at| self.events.remove(at)) {
                return Ok(event);
            }
            // An answer that comes here is of a command that was given up.
            self.event_or_answer("an event", deadline)?;
        }
    }

    /// The next message that is no event.
    fn message(&mut self, to: &str, deadline: Deadline) -> Result<Map<String, Value>> {
        loop {
            if let Some(answer) = self.event_or_answer(to, deadline)? {
                return Ok(answer);
            }
        }
    }

    /// Reads one message; none where it was an event, which waits now.
    fn event_or_answer(&mut self, to: &str, deadline: Deadline) -> Result<Option<Map<String, Value>>> {
        if self.broken {
            return Err(self.lines.malformed("an earlier answer could not be read"));
        }
        let line = self.lines.line(to, deadline);
        self.broken = matches!(line, Err(QmpError::Malformed { .. }));
        let Some(mut message) = parsed(&line?) else {
            self.broken = true;
            return Err(self.lines.malformed("a line that is no object"));
        };
        let Some(Value::String(name)) = message.remove("event") else { return Ok(Some(message)) };
        tracing::trace!(event = name, "from QEMU");
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.events_dropped += 1;
        }
        self.events.push_back(Event { name, data: message.remove("data").unwrap_or(Value::Null) });
        Ok(None)
    }
}

/// A line as an object.
pub(crate) fn parsed(line: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}
