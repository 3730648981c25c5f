//! The client against a QEMU, and against those that only look like one.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_model::{Error, ErrorKind};
use landfall_qmp::{EVENTS_MAX, GuestAgent, LINE_BYTES_MAX, Qmp, QmpError};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(200);

/// A QEMU with no machine in it. Killed when it is dropped.
struct Qemu(Child);

impl Qemu {
    /// `None` after saying that there is none.
    fn start(socket: &Path) -> Option<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "none", "-nodefaults", "-display", "none", "-no-user-config", "-S", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", socket.display())).stdin(Stdio::null());
        let Ok(child) = command.spawn() else {
            assert!(std::env::var_os("CI").is_none(), "qemu-system-x86_64 is missing: run tests/tools/setup.sh");
            eprintln!("SKIPPED: qemu-system-x86_64 is missing; run tests/tools/setup.sh");
            return None;
        };
        let qemu = Self(child);
        let start = Instant::now();
        while UnixStream::connect(socket).is_err() {
            assert!(start.elapsed() < LONG, "QEMU does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(qemu)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn commands_are_answered_or_refused_and_events_wait_until_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let Some(mut qemu) = Qemu::start(&socket) else { return };
    let mut qmp = Qmp::connect(&socket, LONG).unwrap();
    assert!(qmp.version().major >= 5, "{:?}", qmp.version());
    let status = qmp.execute("query-status", Value::Null).unwrap();
    assert_eq!(status["running"], false, "{status}");
    let error = qmp.execute("no-such-command", json!({})).unwrap_err();
    assert_eq!(error.class(), Some("CommandNotFound"));
    assert_eq!(Error::from(error).kind(), ErrorKind::Unsupported);
    let error = qmp.execute("blockdev-del", json!({ "node-name": "nobody" })).unwrap_err();
    assert!(error.desc().unwrap().contains("nobody"), "{error}");
    // More than fits into one read.
    assert!(qmp.execute("query-qmp-schema", Value::Null).unwrap().as_array().unwrap().len() > 500);
    // One client at a time: the next is told so, and is served when the first has gone.
    let error = Qmp::connect(&socket, SHORT).err().unwrap();
    assert!(matches!(error, QmpError::Silent { .. }) && error.to_string().contains("another client"), "{error}");
    qmp.execute("query-version", Value::Null).unwrap();
    drop(qmp);
    let mut qmp = Qmp::connect(&socket, LONG).unwrap();
    qmp.execute("quit", Value::Null).unwrap();
    let event = qmp.event(|event| event.name == "SHUTDOWN", LONG).unwrap();
    assert_eq!(event.data["reason"], "host-qmp-quit");
    assert!(matches!(qmp.event(|_| true, LONG), Err(QmpError::Ended { .. })));
    assert!(qemu.0.wait().unwrap().success());
    assert!(matches!(Qmp::connect(&socket, LONG), Err(QmpError::Io { .. })));
}

/// Somebody at the other end of a socket, in a thread.
struct Peer {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    thread: JoinHandle<()>,
}

impl Peer {
    fn of(play: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let thread = std::thread::spawn(move || play(listener.accept().unwrap().0));
        Self { _folder: folder, socket, thread }
    }

    fn end(self) {
        self.thread.join().unwrap();
    }
}

/// Reads one request; its id.
fn request(from: &mut impl BufRead) -> Value {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let line = line.trim_start_matches('\u{fffd}');
    serde_json::from_str::<Value>(line).unwrap_or(Value::Null)
}

/// Greets, and answers the first command.
fn greet(stream: &mut UnixStream) -> BufReader<UnixStream> {
    stream.write_all(b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, \"micro\": 22}}}}\r\n").unwrap();
    let mut from = BufReader::new(stream.try_clone().unwrap());
    let id = request(&mut from)["id"].clone();
    writeln!(stream, "{{\"return\": {{}}, \"id\": {id}}}").unwrap();
    from
}

#[test]
fn what_is_no_greeting_is_refused() {
    for greeting in ["hello\n", "[1]\n", "{\"QMP2\": 1}\n", "\n"] {
        let peer = Peer::of(move |mut stream| stream.write_all(greeting.as_bytes()).unwrap());
        let error = Qmp::connect(&peer.socket, LONG).err().unwrap();
        assert!(matches!(error, QmpError::Malformed { .. }), "{greeting:?}: {error}");
        peer.end();
    }
}

#[test]
fn a_line_that_does_not_end_is_bounded() {
    let peer = Peer::of(|mut stream| {
        // It hangs up long before all of this is written.
        let sent = (0..64).try_for_each(|_| stream.write_all(&[b'x'; LINE_BYTES_MAX / 8]));
        assert!(sent.is_err());
    });
    let error = Qmp::connect(&peer.socket, LONG).err().unwrap();
    assert!(error.to_string().contains("does not end"), "{error}");
    peer.end();
}

#[test]
fn an_answer_that_is_late_is_not_taken_for_another() {
    let peer = Peer::of(|mut stream| {
        let mut from = greet(&mut stream);
        let (late, next) = (request(&mut from)["id"].clone(), request(&mut from)["id"].clone());
        writeln!(stream, "{{\"return\": \"late\", \"id\": {late}}}\n{{\"return\": \"next\", \"id\": {next}}}").unwrap();
        request(&mut from);
    });
    let mut qmp = Qmp::connect(&peer.socket, LONG).unwrap();
    let error = qmp.execute_within("first", Value::Null, SHORT).unwrap_err();
    assert!(matches!(error, QmpError::Silent { .. }), "{error}");
    assert_eq!(qmp.execute("second", Value::Null).unwrap(), "next");
    drop(qmp);
    peer.end();
}

#[test]
fn an_answer_to_nothing_ends_all_trust() {
    for answer in ["{\"return\": 1, \"id\": 999}", "{\"return\": 1}", "{\"id\": 2}", "7"] {
        let peer = Peer::of(move |mut stream| {
            let mut from = greet(&mut stream);
            request(&mut from);
            writeln!(stream, "{answer}").unwrap();
            request(&mut from);
        });
        let mut qmp = Qmp::connect(&peer.socket, LONG).unwrap();
        assert!(matches!(qmp.execute("anything", Value::Null), Err(QmpError::Malformed { .. })), "{answer}");
        assert!(matches!(qmp.execute("anything", Value::Null), Err(QmpError::Malformed { .. })), "{answer}");
        drop(qmp);
        peer.end();
    }
}

#[test]
fn events_that_nobody_asks_for_are_bounded_and_the_newest_are_kept() {
    let peer = Peer::of(|mut stream| {
        let mut from = greet(&mut stream);
        let id = request(&mut from)["id"].clone();
        for number in 0..EVENTS_MAX + 10 {
            writeln!(stream, "{{\"event\": \"E\", \"data\": {{\"n\": {number}}}}}").unwrap();
        }
        writeln!(stream, "{{\"return\": {{}}, \"id\": {id}}}").unwrap();
        request(&mut from);
    });
    let mut qmp = Qmp::connect(&peer.socket, LONG).unwrap();
    qmp.execute("anything", Value::Null).unwrap();
    assert_eq!(qmp.events_dropped(), 10);
    assert_eq!(qmp.event(|_| true, LONG).unwrap().data["n"], 10);
    assert_eq!(qmp.event(|event| event.data["n"] == 500, LONG).unwrap().data["n"], 500);
    assert_eq!(qmp.event(|_| true, LONG).unwrap().data["n"], 11);
    assert!(matches!(qmp.event(|event| event.data["n"] == 500, SHORT), Err(QmpError::Silent { .. })));
    drop(qmp);
    peer.end();
}

/// Reads one request of a client of the guest's agent; the byte before it is no text.
fn guest_request(from: &mut impl BufRead) -> Value {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).unwrap();
    let begin = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
    serde_json::from_slice(&line[begin..]).unwrap_or(Value::Null)
}

#[test]
fn what_a_guests_agent_said_to_somebody_else_is_thrown_away() {
    let peer = Peer::of(|mut stream| {
        let mut from = BufReader::new(stream.try_clone().unwrap());
        // Answers that nobody read, one of them cut off; then to a client before us.
        stream.write_all(b"{\"return\": 7}\n{\"return\": \xff{\"return\": 12}\n").unwrap();
        let number = guest_request(&mut from)["arguments"]["id"].clone();
        stream.write_all(b"garbage\xff").unwrap();
        writeln!(stream, "{{\"return\": {number}}}").unwrap();
        assert_eq!(guest_request(&mut from)["execute"], "guest-fsfreeze-freeze");
        writeln!(stream, "{{\"return\": 2}}").unwrap();
        assert_eq!(guest_request(&mut from)["execute"], "guest-fsfreeze-status");
        writeln!(stream, "{{\"return\": \"frozen\"}}").unwrap();
        assert_eq!(guest_request(&mut from)["execute"], "guest-fsfreeze-thaw");
        writeln!(stream, "{{\"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}}}").unwrap();
        guest_request(&mut from);
    });
    let mut agent = GuestAgent::connect(&peer.socket, LONG).unwrap();
    assert_eq!(agent.freeze(LONG).unwrap(), 2);
    assert!(agent.is_frozen(LONG).unwrap());
    assert_eq!(agent.thaw(LONG).unwrap_err().desc(), Some("no"));
    drop(agent);
    peer.end();
}

#[test]
fn after_an_answer_that_did_not_come_the_next_one_is_found_again() {
    let peer = Peer::of(|mut stream| {
        let mut from = BufReader::new(stream.try_clone().unwrap());
        let synchronise = |stream: &mut UnixStream, number: &Value| {
            stream.write_all(&[0xff]).unwrap();
            writeln!(stream, "{{\"return\": {number}}}").unwrap();
        };
        let number = guest_request(&mut from)["arguments"]["id"].clone();
        synchronise(&mut stream, &number);
        assert_eq!(guest_request(&mut from)["execute"], "guest-fsfreeze-freeze");
        // Nothing is said until the client has given up and asks anew.
        let number = guest_request(&mut from)["arguments"]["id"].clone();
        writeln!(stream, "{{\"return\": 3}}").unwrap();
        synchronise(&mut stream, &number);
        assert_eq!(guest_request(&mut from)["execute"], "guest-fsfreeze-thaw");
        writeln!(stream, "{{\"return\": 4}}").unwrap();
        guest_request(&mut from);
    });
    let mut agent = GuestAgent::connect(&peer.socket, LONG).unwrap();
    assert!(matches!(agent.freeze(SHORT), Err(QmpError::Silent { .. })));
    assert_eq!(agent.thaw(LONG).unwrap(), 4);
    drop(agent);
    peer.end();
}

#[test]
fn a_guest_without_an_agent_is_not_waited_for_beyond_the_limit() {
    let peer = Peer::of(|stream| {
        let mut from = BufReader::new(stream);
        while guest_request(&mut from) != Value::Null {}
    });
    let error = GuestAgent::connect(&peer.socket, SHORT).err().unwrap();
    assert!(matches!(error, QmpError::Silent { .. }), "{error}");
    peer.end();
}
