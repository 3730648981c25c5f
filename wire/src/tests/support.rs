//! A gateway that keeps nothing, and agents for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use landfall_model::{
    Consistency, CycleId, Digest, Error, ErrorKind, Extent, MachineName, Result, Seq, Timeline, Timestamp,
};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::pki::{Authority, Identity, Token, now};
use crate::server::{Limits, Service, serve};
use crate::{
    Begin, CycleCheck, CycleDigest, Data, DiskShape, End, FromAgent, FromGateway, Hello, Incoming, Peer, Welcome,
    client,
};

pub(super) const SEED: [u8; 32] = [7; 32];

/// What the gateway knows and has seen.
pub(super) struct Site {
    pub(super) authority: Arc<Authority>,
    tokens: Mutex<HashMap<Digest, MachineName>>,
    /// Machines, and the last enrolment of each that is refused.
    pub(super) revoked: Mutex<HashMap<MachineName, Timestamp>>,
    /// Links are not read while this is set.
    pub(super) held: AtomicBool,
    pub(super) release: Notify,
    /// Bytes of disks received.
    pub(super) received: AtomicU64,
    /// How links ended, in order.
    pub(super) ends: mpsc::UnboundedSender<Result<()>>,
    /// Refused at the first message with this.
    pub(super) refuse: Mutex<Option<(u8, String)>>,
    /// Validity of certificates.
    pub(super) valid: Mutex<Duration>,
    /// How often it says that it is alive before it says welcome.
    pub(super) alive: AtomicU64,
}

impl Site {
    async fn link(&self, mut from: Incoming<FromAgent>, to: &mpsc::Sender<FromGateway>) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Unavailable, "the agent is gone");
        let mut check = None;
        while let Some(message) = from.next().await? {
            match message {
                FromAgent::Hello(_) => {
                    for _ in 0..self.alive.load(Ordering::SeqCst) {
                        to.send(FromGateway::Alive).await.map_err(gone)?;
                    }
                    let refuse = self.refuse.lock().unwrap().clone();
                    let answer = match refuse {
                        Some((code, why)) => FromGateway::Refuse(code, why),
                        None => FromGateway::Welcome(Welcome {
                            version: 1,
                            newest: Some(CycleId::from_bytes([9; 16])),
                            held: None,
                        }),
                    };
                    to.send(answer).await.map_err(gone)?;
                    if self.held.load(Ordering::SeqCst) {
                        self.release.notified().await;
                    }
                }
                FromAgent::Begin(begin) => check = Some(CycleCheck::new(begin)),
                FromAgent::Data(data) => {
                    self.received.fetch_add(data.bytes.len() as u64, Ordering::SeqCst);
                    if let Some(check) = &mut check {
                        check.data(&data)?;
                    }
                }
                FromAgent::Zero(disk, extent) => check.as_mut().unwrap().zero(disk, extent)?,
                FromAgent::End(end) => {
                    check.take().unwrap().end(&end)?;
                    to.send(FromGateway::Spooled(end.cycle)).await.map_err(gone)?;
                    to.send(FromGateway::Committed(end.cycle, Timeline(1), Seq(2))).await.map_err(gone)?;
                }
                FromAgent::Abort(why) => return Err(Error::new(ErrorKind::Conflict, why)),
                FromAgent::Alive => to.send(FromGateway::Alive).await.map_err(gone)?,
                FromAgent::Ask(why) => to.send(FromGateway::Resync(why)).await.map_err(gone)?,
                FromAgent::Ready(_) | FromAgent::Frozen(_) | FromAgent::Unready(..) | FromAgent::Answer(..) => {
                    return Err(Error::corrupt("nobody asked for a group's cut"));
                }
            }
        }
        Ok(())
    }
}

impl Service for Site {
    async fn ship(&self, _peer: Peer, from: Incoming<FromAgent>, to: mpsc::Sender<FromGateway>) -> Result<()> {
        let result = self.link(from, &to).await;
        let said = match &result {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::new(e.kind(), e.to_string())),
        };
        let _ = self.ends.send(said);
        result
    }

    async fn enroll(&self, _address: SocketAddr, token_secret: [u8; 16], csr: Vec<u8>) -> Result<Vec<u8>> {
        let machine = self.tokens.lock().unwrap().remove(&Token::hash_of(&token_secret));
        let machine = machine.ok_or_else(|| Error::new(ErrorKind::Key, "the token is unknown or used"))?;
        let revoked = self.revoked.lock().unwrap().get(&machine).copied();
        let after = revoked.map_or(now(), |until| now().max(Timestamp::from_millis(until.millis() + 1000)));
        self.authority.sign_agent(&csr, &machine, after, *self.valid.lock().unwrap())
    }

    async fn renew(&self, peer: Peer, csr: Vec<u8>) -> Result<Vec<u8>> {
        self.authority.sign_agent(&csr, &peer.machine, peer.enrolled, *self.valid.lock().unwrap())
    }

    fn is_revoked(&self, peer: &Peer) -> bool {
        self.revoked.lock().unwrap().get(&peer.machine).is_some_and(|until| peer.enrolled <= *until)
    }
}

pub(super) struct Gateway {
    pub(super) address: String,
    pub(super) site: Arc<Site>,
    pub(super) ends: mpsc::UnboundedReceiver<Result<()>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

/// Bounds in which tests end within seconds.
pub(super) fn short() -> Limits {
    Limits {
        handshake: Duration::from_secs(2),
        first_message: Duration::from_millis(600),
        check_every: Duration::from_millis(100),
        grace: Duration::from_secs(2),
        ..Limits::default()
    }
}

impl Gateway {
    pub(super) async fn start(limits: Limits) -> Self {
        Self::with_seed(limits, &SEED).await
    }

    pub(super) async fn with_seed(limits: Limits, seed: &[u8; 32]) -> Self {
        let authority = Arc::new(Authority::from_seed(seed).unwrap());
        let (ends, ended) = mpsc::unbounded_channel();
        let site = Arc::new(Site {
            authority: authority.clone(),
            tokens: Mutex::default(),
            revoked: Mutex::default(),
            held: AtomicBool::new(false),
            release: Notify::new(),
            received: AtomicU64::new(0),
            ends,
            refuse: Mutex::default(),
            valid: Mutex::new(Duration::from_secs(3600)),
            alive: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let service = site.clone();
        let names = vec!["gateway.example".to_owned(), "127.0.0.1".to_owned()];
        let stopped = async { stopped.await.unwrap_or_default() };
        let task = tokio::spawn(async move { serve(listener, authority, &names, service, limits, stopped).await });
        Self { address, site, ends: ended, stop, task }
    }

    pub(super) fn token(&self, machine: &str) -> Token {
        let token = Token::new(self.site.authority.pin()).unwrap();
        self.site.tokens.lock().unwrap().insert(token.secret_hash(), machine.parse().unwrap());
        token
    }

    /// A machine that is enrolled.
    pub(super) async fn enrolled(&self, machine: &str) -> Identity {
        client::enroll(&self.address, &self.token(machine), &machine.parse().unwrap()).await.unwrap()
    }

    pub(super) async fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

pub(super) fn hello(machine: &str) -> Hello {
    Hello { versions: (1, 1), machine: machine.parse().unwrap(), program: "agent 1".to_owned(), interval_ms: 0 }
}

pub(super) fn cycle_id(byte: u8) -> CycleId {
    CycleId::from_bytes([byte; 16])
}

pub(super) fn begin(size: u64) -> Begin {
    let disk = |name: &str, excluded: bool| DiskShape {
        name: name.parse().unwrap(),
        size,
        sector_size: 512,
        boot: !excluded,
        excluded,
        whole: name == "b",
        source: "blk".to_owned(),
        identity: "serial 1".to_owned(),
    };
    Begin {
        cycle: cycle_id(1),
        parent: Some(cycle_id(9)),
        time: Timestamp::from_millis(1_795_000_000_000),
        consistency: Consistency::Filesystem,
        disks: vec![disk("a", false), disk("b", false), disk("c", true)],
        group: None,
        hooks: Vec::new(),
        shape: None,
    }
}

pub(super) fn data(disk: usize, start: u64, bytes: Vec<u8>) -> Data {
    Data { disk, start, bytes: bytes.into() }
}

/// A small cycle as an agent sends it.
pub(super) fn cycle() -> Vec<FromAgent> {
    let (first, zeroes) = (data(0, 0, vec![5; 1 << 20]), Extent { start: 1 << 20, len: 1 << 20 });
    let mut digest = CycleDigest::default();
    digest.data(&first);
    digest.zero(0, zeroes);
    vec![
        FromAgent::Begin(begin(4 << 20)),
        FromAgent::Data(first),
        FromAgent::Zero(0, zeroes),
        FromAgent::End(End { cycle: cycle_id(1), digest: digest.finish() }),
    ]
}

/// The error of something that must fail.
#[track_caller]
pub(super) fn refused<T>(result: Result<T>, kind: ErrorKind, part: &str) {
    match result {
        Ok(_) => panic!("it did not fail"),
        Err(e) => assert!(e.kind() == kind && e.to_string().contains(part), "{:?}: {e} ({e:?})", e.kind()),
    }
}
