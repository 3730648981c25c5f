//! Probes: what is asked of a machine before it counts as up.
//!
//! | probe | asks | how |
//! |---|---|---|
//! | `console:TEXT` | this stands on its first serial port | the end of what it has said |
//! | `agent` | its guest agent answers | `guest-sync` |
//! | `command:PROGRAM ARG...` | the program ends with 0 | `guest-exec` of the agent, without its output; again each second until it does |
//! | `tcp:PORT` | somebody listens | a connection that the guest has taken |
//! | `http:PORT/PATH` | the answer has a status below 400 | GET, HTTP/1.0; no redirect is followed |
//!
//! `tcp` and `http` reach the machine by QEMU's own network: a port of 127.0.0.1 is forwarded to it while the probe waits, and no longer. QEMU takes each
//! connection itself, before the guest does; whether the guest took it as well stands in QEMU's list of connections.
//!
//! # Bounds
//! All that comes from the guest is hostile: so many bytes of it are read, for so long, and none of it gets into a message.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use landfall_model::{Result, Timestamp};
use landfall_qmp::{Exited, GuestAgent, QmpError};
use landfall_vault::now;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Plan;
use super::machine::{Running, blocking, tail};

/// Probes of one machine.
pub(crate) const PROBES_MAX: usize = 16;
/// Between two tries.
const POLL: Duration = Duration::from_millis(200);
/// Between two tries of what is work for the guest.
const POLL_WORK: Duration = Duration::from_secs(1);
/// How often it is looked whether the machine still runs.
const WATCH: Duration = Duration::from_secs(1);
/// One try of an agent, or of a connection.
const TRY_LIMIT: Duration = Duration::from_secs(3);
/// One run of a command in the guest; it is given up after that, and begun again.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// So much of an HTTP answer is read for its status.
const STATUS_BYTES_MAX: usize = 256;
/// Longest path of a URL.
const PATH_BYTES_MAX: usize = 1024;
/// Ports that are tried for a forward, where others take them first.
const FORWARD_TRIES: usize = 8;

/// What is asked of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Probe {
    /// This stands on its first serial port.
    Console(String),
    /// Its guest agent answers.
    Agent,
    /// This program, run by its agent, ends with 0.
    Command(Vec<String>),
    /// Somebody listens on this port.
    Tcp(u16),
    /// This answers with a status below 400.
    Http(u16, String),
}

impl Probe {
    /// Whether it needs QEMU's own network.
    pub(crate) fn needs_network(&self) -> bool {
        matches!(self, Self::Tcp(_) | Self::Http(..))
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Console(text) => write!(f, "console:{text}"),
            Self::Agent => f.write_str("agent"),
            Self::Command(words) => write!(f, "command:{}", words.join(" ")),
            Self::Tcp(port) => write!(f, "tcp:{port}"),
            Self::Http(port, path) => write!(f, "http:{port}{path}"),
        }
    }
}

impl FromStr for Probe {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = |what: &str| {
            format!(
                "probe {text:?}: {what}; it is agent, console:TEXT, command:PROGRAM ARG..., tcp:PORT or http:PORT/PATH"
            )
        };
        let port = |port: &str| {
            let number = port.parse::<u16>().ok().filter(|p| *p > 0 && port.bytes().all(|b| b.is_ascii_digit()));
            number.ok_or_else(|| wrong("a port is a number from 1 to 65535"))
        };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "agent" if text == "agent" => Ok(Self::Agent),
            "console" if !rest.is_empty() => Ok(Self::Console(rest.to_owned())),
            "command" => {
                let words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
                if words.is_empty() { Err(wrong("it names no program")) } else { Ok(Self::Command(words)) }
            }
            "tcp" => Ok(Self::Tcp(port(rest)?)),
            "http" => {
                let (number, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let path = if path.is_empty() { "/" } else { path };
                if path.len() > PATH_BYTES_MAX || !path.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(wrong("its path is printable ASCII, without blanks"));
                }
                Ok(Self::Http(port(number)?, path.to_owned()))
            }
            _ => Err(wrong("it is none")),
        }
    }
}

/// What became of a probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Probed {
    pub(crate) probe: String,
    /// When it passed.
    pub(crate) passed: Option<Timestamp>,
    /// Why it did not, at the last try.
    pub(crate) why: Option<String>,
}

/// A try: passed, or why not.
type Try = std::result::Result<(), String>;

impl Running {
    /// Waits until all probes of the plan have passed, all at once; whether they did in time. What became of each is in `probed`, whatever the outcome.
    ///
    /// # Errors
    /// `Unavailable` where the machine ends before.
    pub(crate) async fn until_up(&self, plan: &Plan, probed: &Mutex<Vec<Probed>>) -> Result<bool> {
        let probes = &plan.settings.probes;
        let none = |probe: &Probe| Probed { probe: probe.to_string(), passed: None, why: None };
        let change = |place: usize, outcome: Try| {
            let mut all = probed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(one) = all.get_mut(place) {
                one.passed = outcome.is_ok().then(now);
                one.why = outcome.err();
            }
        };
        *probed.lock().unwrap_or_else(PoisonError::into_inner) = probes.iter().map(none).collect();
        self.check().await?;
        let deadline = Instant::now() + plan.settings.probe_limit;
        let agent = tokio::sync::Mutex::new(());
        let waiting = probes.iter().enumerate().map(|(place, probe)| {
            let (change, agent) = (&change, &agent);
            async move { self.until_passed(plan, probe, agent, deadline, |outcome| change(place, outcome)).await }
        });
        let all = join_all(waiting);
        tokio::pin!(all);
        loop {
            tokio::select! {
                passed = &mut all => return Ok(passed.into_iter().all(|p| p)),
                () = sleep(WATCH) => self.check().await.map_err(|e| e.context("the machine has ended"))?,
            }
        }
    }

    /// Tries a probe until it passes, or time is up.
    async fn until_passed(
        &self,
        plan: &Plan,
        probe: &Probe,
        agent: &tokio::sync::Mutex<()>,
        deadline: Instant,
        outcome: impl Fn(Try),
    ) -> bool {
        let mut forward = None;
        let passed = loop {
            if let (Probe::Tcp(port) | Probe::Http(port, _), None) = (probe, forward) {
                forward = self.forward(*port).await.inspect_err(|why| outcome(Err(why.clone()))).ok();
            }
            let tried = match (probe, forward) {
                (Probe::Console(text), _) => console(plan, text).await,
                (Probe::Agent, _) => self.agent(plan, agent).await,
                (Probe::Command(words), _) => self.command(plan, agent, words, deadline).await,
                (Probe::Tcp(_), Some(port)) => self.tcp(port).await,
                (Probe::Http(_, path), Some(port)) => http(port, path).await,
                (Probe::Tcp(_) | Probe::Http(..), None) => Err("QEMU forwards no port to it".to_owned()),
            };
            let passed = tried.is_ok();
            outcome(tried);
            if passed || Instant::now() > deadline {
                break passed;
            }
            sleep(if matches!(probe, Probe::Command(_) | Probe::Http(..)) { POLL_WORK } else { POLL }).await;
        };
        if let Some(port) = forward {
            self.people(&format!("hostfwd_remove net0 tcp:127.0.0.1:{port}")).await;
        }
        passed
    }

    /// What QEMU's monitor for people says. Only it knows forwards.
    async fn people(&self, line: &str) -> String {
        let said = self.execute("human-monitor-command", json!({ "command-line": line })).await;
        said.ok().and_then(|said| said.as_str().map(str::to_owned)).unwrap_or_else(|| "QEMU says nothing".to_owned())
    }

    /// Forwards a port of this host's own address to one of the machine's first interface.
    async fn forward(&self, port: u16) -> std::result::Result<u16, String> {
        for _ in 0..FORWARD_TRIES {
            // Free a moment ago: whoever takes it first is in QEMU's way, and another is tried.
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr());
            let free = free.map_err(|e| format!("this host has no free port: {e}"))?.port();
            if self.people(&format!("hostfwd_add net0 tcp:127.0.0.1:{free}-:{port}")).await.trim().is_empty() {
                return Ok(free);
            }
        }
        Err("QEMU forwards no port to it: has it a network interface?".to_owned())
    }

    async fn agent(&self, plan: &Plan, agent: &tokio::sync::Mutex<()>) -> Try {
        // It serves one at a time.
        let _turn = agent.lock().await;
        let path = plan.files.agent();
        let answers = tokio::task::spawn_blocking(move || GuestAgent::connect(&path, TRY_LIMIT).is_ok()).await;
        if matches!(answers, Ok(true)) { Ok(()) } else { Err("the guest's agent does not answer".to_owned()) }
    }

    async fn command(&self, plan: &Plan, agent: &tokio::sync::Mutex<()>, words: &[String], deadline: Instant) -> Try {
        let _turn = agent.lock().await;
        let (path, words) = (plan.files.agent(), words.to_vec());
        let limit = COMMAND_LIMIT.min(deadline.saturating_duration_since(Instant::now()).max(TRY_LIMIT));
        let ran = tokio::task::spawn_blocking(move || run_in_guest(&path, &words, limit)).await;
        ran.unwrap_or_else(|_| Err("the task died".to_owned()))
    }

    async fn tcp(&self, port: u16) -> Try {
        let connected = tokio::task::spawn_blocking(move || connect(port)).await;
        // Held open until it was looked for.
        let _held = connected.map_err(|_| "the task died".to_owned())??;
        let until = Instant::now() + TRY_LIMIT;
        while Instant::now() < until {
            match taken(&self.people("info usernet").await, port) {
                Some(true) => return Ok(()),
                Some(false) => sleep(POLL / 4).await,
                None => break,
            }
        }
        Err("nobody listens there, or the machine's network is not up".to_owned())
    }
}

/// The probes that did not pass, for a message.
pub(crate) fn not_passed(probed: &[Probed]) -> String {
    let left = probed.iter().filter(|p| p.passed.is_none());
    let one = |p: &Probed| match &p.why {
        Some(why) => format!("{} ({why})", p.probe),
        None => p.probe.clone(),
    };
    left.map(one).collect::<Vec<_>>().join(", ")
}

async fn console(plan: &Plan, text: &str) -> Try {
    let (path, text) = (plan.files.console(), text.to_owned());
    let found = blocking(tokio::task::spawn_blocking(move || Ok(tail(&path).contains(&text))).await);
    if matches!(found, Ok(true)) { Ok(()) } else { Err("it is not on the first serial port".to_owned()) }
}

/// Has the guest's agent run a program. What the program prints is not asked for.
fn run_in_guest(path: &Path, words: &[String], limit: Duration) -> Try {
    let silent = || "the guest's agent does not answer".to_owned();
    let Some((program, arguments)) = words.split_first() else { return Err("it names no program".to_owned()) };
    let mut agent = GuestAgent::connect(path, TRY_LIMIT).map_err(|_| silent())?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match agent.run(program, &arguments, &[], false, limit) {
        Ok(Exited { code: Some(0), .. }) => Ok(()),
        Ok(Exited { code: Some(code), .. }) => Err(format!("it ended with {code}")),
        Ok(Exited { code: None, .. }) => Err("it was ended by a signal".to_owned()),
        Err(QmpError::Refused { .. }) => {
            Err("the guest's agent does not run it: there is no such program, or it is not allowed to run any"
                .to_owned())
        }
        Err(QmpError::Silent { .. }) => Err(format!("it did not end within {} s", limit.as_secs())),
        Err(_) => Err(silent()),
    }
}

fn connect(port: u16) -> std::result::Result<TcpStream, String> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&at, TRY_LIMIT).map_err(|e| format!("QEMU does not take a connection: {e}"))
}

/// Whether the guest has taken a connection to this forwarded port, by QEMU's list of connections; none where there is no such connection.
///
/// ```text
///   TCP[ESTABLISHED]   87       127.0.0.1 45671       10.0.2.15  8080     0     0
/// ```
fn taken(list: &str, port: u16) -> Option<bool> {
    let mut found = None;
    for line in list.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [state, _, from, of, ..] = words[..] else { continue };
        if from != "127.0.0.1" || of.parse() != Ok(port) || state == "TCP[HOST_FORWARD]" {
            continue;
        }
        // One that the guest has ended already it had taken.
        let is_taken = matches!(state, "TCP[ESTABLISHED]" | "TCP[CLOSE_WAIT]" | "TCP[LAST_ACK]");
        found = Some(found == Some(true) || is_taken);
    }
    found
}

async fn http(port: u16, path: &str) -> Try {
    let path = path.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = connect(port)?;
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nUser-Agent: landfall\r\nConnection: close\r\n\r\n");
        let sent = stream.set_write_timeout(Some(TRY_LIMIT)).and_then(|()| stream.write_all(request.as_bytes()));
        sent.map_err(|_| "it takes no request".to_owned())?;
        let status = status_of(&first_line(&mut stream)).ok_or("it does not answer in HTTP")?;
        if status < 400 { Ok(()) } else { Err(format!("it answers with status {status}")) }
    });
    asked.await.unwrap_or_else(|_| Err("the task died".to_owned()))
}

/// The first line of what comes, as far as it may be long and may take.
fn first_line(stream: &mut TcpStream) -> Vec<u8> {
    let until = std::time::Instant::now() + TRY_LIMIT;
    let (mut line, mut part) = (Vec::new(), [0; STATUS_BYTES_MAX]);
    while line.len() < STATUS_BYTES_MAX && !line.contains(&b'\n') {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match stream.read(&mut part) {
            Ok(n) if n > 0 => line.extend_from_slice(&part[..n]),
            _ => break,
        }
    }
    line.truncate(STATUS_BYTES_MAX);
    line
}

/// The status in the first line of an HTTP answer.
fn status_of(line: &[u8]) -> Option<u16> {
    let line = line.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let status = line.get(1..)?.strip_prefix(' ')?.get(..3)?;
    let status: u16 = status.bytes().all(|b| b.is_ascii_digit()).then(|| status.parse().ok())??;
    (100..600).contains(&status).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_written_as_it_is_read_and_what_is_none_is_told() {
        for text in [
            "agent",
            "console:login: ",
            "tcp:22",
            "http:80/",
            "http:8080/a?b=c",
            "command:/bin/true",
            "command:ls -l /",
        ] {
            assert_eq!(text.parse::<Probe>().expect(text).to_string(), text);
        }
        assert_eq!("http:80".parse(), Ok(Probe::Http(80, "/".to_owned())));
        for text in [
            "",
            "agents",
            "agent:",
            "console:",
            "console",
            "tcp:",
            "tcp:0",
            "tcp:+22",
            "tcp:65536",
            "tcp:22-:23",
            "http:/",
            "http:80/a b",
            "http:80/\r\nX: y",
            "http:80x/",
            "command:",
            "command: ",
            "udp:53",
        ] {
            let why = text.parse::<Probe>().expect_err(text);
            assert!(why.contains("tcp:PORT"), "{text}: {why}");
        }
    }

    #[test]
    fn only_a_connection_that_the_guest_took_counts() {
        let list = "Hub -1 (net0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n\
            \x20 TCP[SYN_SENT]      88       127.0.0.1 45672       10.0.2.15    81     0     0\n\
            \x20 TCP[ESTABLISHED]   87       127.0.0.1 45671       10.0.2.15  8080     0     0\n\
            \x20 TCP[HOST_FORWARD]  86       127.0.0.1 45673       10.0.2.15    82     0     0\n\
            \x20 TCP[ESTABLISHED]   85       10.0.2.15 45673       192.0.2.1    45673     0     0\n";
        assert_eq!([45671, 45672, 45673, 9].map(|port| taken(list, port)), [Some(true), Some(false), None, None]);
        assert_eq!(taken("TCP[CLOSE_WAIT] 1 127.0.0.1 7 10.0.2.15 7 0 0", 7), Some(true));
        assert_eq!(taken("Could not\r\n127.0.0.1\u{0} TCP[", 7), None);
    }

    #[test]
    fn whatever_a_guest_answers_is_no_status_unless_it_is_one() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\nX"), Some(200));
        assert_eq!(status_of(b"HTTP/1.0 503"), Some(503));
        for wrong in [
            &b""[..],
            b"HTTP/1.1",
            b"HTTP/1.1 2",
            b"HTTP/1.1 +20 OK",
            b"HTTP/1.1 999",
            b"HTTP/1.1 099",
            b"\xff\xff",
            b"SSH-2.0",
        ] {
            assert_eq!(status_of(wrong), None, "{wrong:?}");
        }
        assert_eq!(status_of("HTTP/1.é 200".as_bytes()), None);
        assert_eq!(status_of("HTTP/1.1 20é".as_bytes()), None);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_read_so_far_and_no_further() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let flood = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the probe");
            let (mut sent, part) = (0, [b'A'; 64 * 1024]);
            // Until the one who reads has gone.
            while let Ok(n) = stream.write(&part) {
                sent += n;
            }
            sent
        });
        let outcome = http(port, "/").await;
        assert_eq!(outcome, Err("it does not answer in HTTP".to_owned()));
        assert!(flood.join().expect("it ended") > STATUS_BYTES_MAX, "more was sent than was read");
    }
}
