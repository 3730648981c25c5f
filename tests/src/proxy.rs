//! A reverse proxy before a peer, so that the whole binary can be run against a store that fails, hangs, or lies.
//!
//! # Fault model
//! Each request is matched against the rules in order; the first that matches decides. A [`Rule`] lets its first `skip` matching requests
//! pass, then spoils the next `times`. What [`Fault`] can do is what networks and stores have been seen to do:
//!
//! ```text
//! client --- request ---> proxy --- request ---> store
//!            Status, Reset, Stall |                        nothing was applied
//!            Slow, Overtaken      |                        applied later; Overtaken: after one that came later
//!                                 |   Unconditional..      applied, but without the condition that came with it
//!        <-- answer --------------+-- answer ----
//!            AppliedThen.., CutAnswer                      applied, and the client does not know
//! ```
//!
//! One connection carries one request. The bytes of a request or answer are never changed, but for what a fault says. A signature that covers
//! `If-None-Match` would notice its removal: Azurite's does, moto and the GCS emulator check none, so the lies are for those two.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Head of a request or answer: more than any client or store here sends.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long a store that is wrong in a race looks for a racer: long enough that requests sent together overlap.
const RACE_WINDOW: Duration = Duration::from_millis(100);
/// How long a request that is to be overtaken waits for one that does.
const OVERTAKEN_MAX: Duration = Duration::from_secs(1);
/// Headers that make a put conditional, in lower case.
const CONDITIONS: [&str; 2] = ["if-none-match", "x-goog-if-generation-match"];

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answered with this status; the store never hears of it.
    Status(u16),
    /// The connection is reset; the store never hears of it.
    Reset,
    /// Nothing happens, ever: neither applied nor answered.
    Stall,
    /// The store applies it, the client is told this status.
    AppliedThenStatus(u16),
    /// The store applies it, the connection is reset before the answer.
    AppliedThenReset,
    /// The store applies it, no answer ever comes.
    AppliedThenStall,
    /// The answer ends after so many bytes, head included.
    CutAnswer(usize),
    /// The store hears of it so much later.
    Slow(Duration),
    /// The store hears of it after it has answered a request that came later, or a second has passed.
    Overtaken,
    /// Conditions are dropped: a put-if-absent always overwrites and always succeeds.
    Unconditional,
    /// Conditions are dropped where another put-if-absent of the same object is under way: right alone, wrong in a race.
    UnconditionalInRace,
}

/// Which requests go wrong.
#[derive(Clone, Debug)]
pub struct Rule {
    method: Option<&'static str>,
    target_has: Option<String>,
    conditional: bool,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every request.
    pub fn every(fault: Fault) -> Self {
        Self { method: None, target_has: None, conditional: false, skip: 0, times: u64::MAX, fault }
    }

    /// Only requests with this method.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only requests whose path or query has this text in it; slashes of an object's name may stand as `%2F`.
    #[must_use]
    pub fn target_has(mut self, text: &str) -> Self {
        self.target_has = Some(text.to_owned());
        self
    }

    /// Only requests with a condition: puts-if-absent.
    #[must_use]
    pub fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// Lets the first `n` that match pass.
    #[must_use]
    pub fn skip(mut self, n: u64) -> Self {
        self.skip = n;
        self
    }

    /// Spoils only `n` requests; what comes after passes.
    #[must_use]
    pub fn times(mut self, n: u64) -> Self {
        self.times = n;
        self
    }

    fn matches(&self, head: &Head) -> bool {
        let target = head.target.replace("%2F", "/").replace("%2f", "/");
        self.method.is_none_or(|method| method == head.method)
            && self.target_has.as_ref().is_none_or(|text| target.contains(text.as_str()))
            && (!self.conditional || head.is_conditional())
    }
}

/// A request that the proxy saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query as they came.
    pub target: String,
    /// Length of the request's body.
    pub body_bytes: u64,
    /// Whether it was a put-if-absent.
    pub conditional: bool,
    /// What went wrong, if anything.
    pub fault: Option<Fault>,
}

/// A running proxy. Ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    state: Mutex<Track>,
}

#[derive(Debug, Default)]
struct Track {
    rules: Vec<(Rule, u64)>,
    seen: Vec<Seen>,
    answer_bytes: u64,
    racing: HashMap<String, u32>,
    /// Requests that came.
    came: u64,
    /// The last of them, in the order in which they came, that the store has answered.
    answered: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Track> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }
}

impl Proxy {
    /// Starts a proxy before a peer, on a free port of 127.0.0.1.
    pub fn start(upstream: SocketAddr, rules: Vec<Rule>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let track = Track { rules: rules.into_iter().map(|rule| (rule, 0)).collect(), ..Track::default() };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(track) });
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener that tokio takes");
        let address = listener.local_addr().expect("an address");
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // A broken connection is the client's to notice; there is nobody here to tell.
                tokio::spawn(async move { carry(client, &shared).await.ok() });
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on these rules, counted from zero.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.shared.lock().rules = rules.into_iter().map(|rule| (rule, 0)).collect();
    }

    /// Every request so far, in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Bytes of all answers so far, heads included.
    pub fn answer_bytes(&self) -> u64 {
        self.shared.lock().answer_bytes
    }

    /// How many requests were spoilt.
    pub fn spoilt(&self) -> usize {
        self.shared.lock().seen.iter().filter(|seen| seen.fault.is_some()).count()
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        let mut track = self.shared.lock();
        track.seen.clear();
        track.answer_bytes = 0;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The first line and the headers of a request.
struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
        Some(Self { method, target, headers })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn is_conditional(&self) -> bool {
        self.method == "PUT" && CONDITIONS.iter().any(|name| self.get(name).is_some())
    }

    fn body_bytes(&self) -> u64 {
        self.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The head to send on: one request a connection, and with or without its conditions.
    fn text(&self, with_conditions: bool) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            let drop = name == "connection" || (!with_conditions && CONDITIONS.contains(&name.as_str()));
            if !drop {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text + "connection: close\r\n\r\n"
    }
}

async fn carry(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let Some((head, early)) = read_head(&mut client).await? else { return Ok(()) };
    let (arrival, fault) = decide(shared, &head);
    match fault {
        Some(Fault::Slow(wait)) => tokio::time::sleep(wait).await,
        Some(Fault::Overtaken) => until_overtaken(shared, arrival).await,
        _ => {}
    }
    let with_conditions = match fault {
        Some(Fault::Unconditional) => false,
        Some(Fault::UnconditionalInRace) => !meets_a_racer(shared, &head).await,
        _ => true,
    };
    // The body is read in full also where it is thrown away, so that the client gets to the point of waiting for its answer.
    match fault {
        Some(Fault::Reset) => client.set_zero_linger(),
        Some(Fault::Status(status)) => {
            drain(&mut client, &head, early).await?;
            refuse(&mut client, status).await
        }
        Some(Fault::Stall) => {
            drain(&mut client, &head, early).await?;
            std::future::pending().await
        }
        _ => {
            let mut store = TcpStream::connect(shared.upstream).await?;
            store.write_all(head.text(with_conditions).as_bytes()).await?;
            store.write_all(&early).await?;
            let rest = head.body_bytes().saturating_sub(early.len() as u64);
            tokio::io::copy(&mut (&mut client).take(rest), &mut store).await?;
            answer(client, store, shared, fault).await?;
            let mut track = shared.lock();
            track.answered = track.answered.max(arrival);
            Ok(())
        }
    }
}

/// Waits until a request was answered that came later.
async fn until_overtaken(shared: &Shared, arrival: u64) {
    let start = std::time::Instant::now();
    while shared.lock().answered <= arrival && start.elapsed() < OVERTAKEN_MAX {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads up to the empty line; gives the head and what already came of the body.
async fn read_head(client: &mut TcpStream) -> io::Result<Option<(Head, Vec<u8>)>> {
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(at + 4);
            return Ok(Head::parse(&String::from_utf8_lossy(&bytes)).map(|head| (head, body)));
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Ok(None);
        }
    }
}

/// The number of a request, and what goes wrong with it.
fn decide(shared: &Shared, head: &Head) -> (u64, Option<Fault>) {
    let mut track = shared.lock();
    track.came += 1;
    let arrival = track.came;
    let rule = track.rules.iter_mut().find(|(rule, _)| rule.matches(head));
    let fault = rule.and_then(|(rule, met)| {
        *met += 1;
        (*met > rule.skip && *met - rule.skip <= rule.times).then_some(rule.fault)
    });
    let (conditional, body_bytes) = (head.is_conditional(), head.body_bytes());
    track.seen.push(Seen { method: head.method.clone(), target: head.target.clone(), body_bytes, conditional, fault });
    (arrival, fault)
}

/// Whether another put-if-absent of the same object comes within the window. Over before the client has its answer, so
/// that requests one after the other never meet.
async fn meets_a_racer(shared: &Shared, head: &Head) -> bool {
    if !head.is_conditional() {
        return false;
    }
    let count = |change: i32| {
        let mut track = shared.lock();
        let racing = track.racing.entry(head.target.clone()).or_default();
        *racing = racing.saturating_add_signed(change);
        *racing
    };
    let before = count(1);
    tokio::time::sleep(RACE_WINDOW).await;
    let after = count(0);
    count(-1);
    before.max(after) > 1
}

async fn drain(client: &mut TcpStream, head: &Head, early: Vec<u8>) -> io::Result<()> {
    let rest = head.body_bytes().saturating_sub(early.len() as u64);
    tokio::io::copy(&mut client.take(rest), &mut tokio::io::sink()).await.map(drop)
}

/// An answer in the shape that S3 and Google give it.
async fn refuse(client: &mut TcpStream, status: u16) -> io::Result<()> {
    let code = match status {
        409 => "ConditionalRequestConflict",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!("<Error><Code>{code}</Code><Message>made by the test's proxy</Message></Error>");
    let head = format!("HTTP/1.1 {status} Spoilt\r\ncontent-type: application/xml\r\nconnection: close");
    client.write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    client.shutdown().await
}

async fn answer(mut client: TcpStream, mut store: TcpStream, shared: &Shared, fault: Option<Fault>) -> io::Result<()> {
    let applied_then =
        |fault| matches!(fault, Fault::AppliedThenStatus(_) | Fault::AppliedThenReset | Fault::AppliedThenStall);
    if fault.is_some_and(applied_then) {
        tokio::io::copy(&mut store, &mut tokio::io::sink()).await?;
    }
    match fault {
        Some(Fault::AppliedThenStatus(status)) => refuse(&mut client, status).await,
        Some(Fault::AppliedThenReset) => client.set_zero_linger(),
        Some(Fault::AppliedThenStall) => std::future::pending().await,
        Some(Fault::CutAnswer(bytes)) => {
            let sent = tokio::io::copy(&mut store.take(bytes as u64), &mut client).await?;
            shared.lock().answer_bytes += sent;
            client.set_zero_linger()
        }
        _ => {
            let sent = tokio::io::copy(&mut store, &mut client).await?;
            shared.lock().answer_bytes += sent;
            client.shutdown().await
        }
    }
}
