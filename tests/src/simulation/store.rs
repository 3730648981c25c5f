//! The store of a simulation: a bucket in memory, and how each gateway reaches it.
//!
//! A request takes time, on the way there and back. It may fail and not have been applied; fail and have been applied; or fail now and be applied
//! later. What was sent is applied also where its sender has died meanwhile. Put-if-absent is atomic, listings are consistent.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use landfall_vault::layout::{self, Name};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::dice::Dice;

/// Longest wait for an object to be sent.
const TRAP: Duration = Duration::from_secs(100);

/// A store that is wrong in a way that no gateway can survive: to see that the law notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// Put-if-absent overwrites.
    Overwrites,
    /// Some segments are said to be stored and are not.
    LosesSegments,
    /// Some points are said to be stored and are not.
    LosesPoints,
    /// Some segments are stored with a byte changed.
    Rots,
}

/// What all gateways have in common.
#[derive(Debug)]
pub struct Bucket {
    objects: Arc<InMemory>,
    seed: u64,
    lie: Option<Lie>,
    /// Nobody is answered.
    down: AtomicBool,
    /// Everything goes well and fast.
    healed: AtomicBool,
    /// How many of a thousand requests fail.
    failing: u64,
    requests: AtomicU64,
    /// The points that were stored, by the hash of their bytes: what was stored first must stay.
    points: Mutex<BTreeMap<String, blake3::Hash>>,
}

impl Bucket {
    /// A bucket that holds this already.
    ///
    /// # Panics
    /// Where memory does not store.
    pub async fn new(seed: u64, lie: Option<Lie>, holds: &[(String, Bytes)]) -> Arc<Self> {
        let objects = Arc::new(InMemory::new());
        for (name, bytes) in holds {
            objects.put(&name.as_str().into(), bytes.clone().into()).await.expect("memory stores");
        }
        let failing = [0, 5, 20, 80][Dice::of(seed, &[11]).below(4)];
        let (down, healed) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self {
            objects,
            seed,
            lie,
            down,
            healed,
            failing,
            requests: AtomicU64::new(0),
            points: Mutex::default(),
        })
    }

    /// From now on, or no longer, nobody is answered.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// From now on everything goes well.
    pub fn heal(&self) {
        self.set_down(false);
        self.healed.store(true, Ordering::Relaxed);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What it holds, reached without a fault.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        self.objects.clone()
    }

    /// How many objects have a name that begins so.
    pub async fn count(&self, folder: &str) -> usize {
        self.objects.list(Some(&folder.into())).count().await
    }

    /// The bytes of an object.
    pub async fn get(&self, name: &str) -> Option<Bytes> {
        let got = self.objects.get(&name.into()).await.ok()?;
        got.bytes().await.ok()
    }

    /// The first point that is not there any more as it was stored first.
    pub async fn changed_point(&self) -> Option<String> {
        let points = self.points.lock().expect("nobody panics").clone();
        for (name, hash) in points {
            if self.get(&name).await.is_none_or(|bytes| blake3::hash(&bytes) != hash) {
                return Some(name);
            }
        }
        None
    }

    async fn put(&self, name: &Path, payload: PutPayload, options: PutOptions, dice: &mut Dice) -> Result<PutResult> {
        let point = matches!(layout::parse(name.as_ref()), Some(Name::Point(..)));
        let hash = point.then(|| blake3::hash(&Bytes::from(payload.clone())));
        let done = self.apply(name, payload, options, dice).await;
        if let (Ok(_), Some(hash)) = (&done, hash) {
            self.points.lock().expect("nobody panics").entry(name.to_string()).or_insert(hash);
        }
        done
    }

    async fn apply(&self, name: &Path, payload: PutPayload, options: PutOptions, dice: &mut Dice) -> Result<PutResult> {
        let create = options.mode == PutMode::Create;
        let result = || PutResult { e_tag: None, version: None, extensions: Default::default() };
        match (self.lie, layout::parse(name.as_ref())) {
            (Some(Lie::Overwrites), _) if create => {
                return self.objects.put_opts(name, payload, PutOptions::default()).await;
            }
            (Some(Lie::LosesSegments), Some(Name::Segment(_))) if dice.permille(200) => return Ok(result()),
            (Some(Lie::LosesPoints), Some(Name::Point(..))) if dice.permille(100) => return Ok(result()),
            (Some(Lie::Rots), Some(Name::Segment(_))) if dice.permille(200) => {
                let mut bytes = Bytes::from(payload).to_vec();
                let at = dice.below(bytes.len());
                bytes[at] ^= 4;
                return self.objects.put_opts(name, bytes.into(), options).await;
            }
            _ => {}
        }
        self.objects.put_opts(name, payload, options).await
    }
}

/// How one gateway reaches the bucket.
#[derive(Clone, Debug)]
pub struct Line {
    bucket: Arc<Bucket>,
    number: u64,
    sent: Arc<AtomicU64>,
    /// The network between them is down.
    cut: Arc<AtomicBool>,
    /// The gateway's host sleeps: what it sent goes on when it wakes.
    asleep: Arc<watch::Sender<bool>>,
    trap: Arc<Trap>,
}

/// Waits for an object of some kind to be sent.
#[derive(Debug, Default)]
struct Trap {
    kind: Mutex<Option<Kind>>,
    sprung: Notify,
}

/// What is on its way when something happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A recovery point.
    Point,
    /// A segment or an epoch's key.
    Object,
    /// Anything.
    Any,
}

impl Kind {
    fn is(self, name: &Path) -> bool {
        let name = layout::parse(name.as_ref());
        match self {
            Self::Any => true,
            Self::Point => matches!(name, Some(Name::Point(..))),
            Self::Object => matches!(name, Some(Name::Segment(_) | Name::Epoch(..))),
        }
    }
}

/// What becomes of a request.
enum Fate {
    Well,
    /// Not applied.
    Fails,
    /// Applied, and not heard of.
    Unheard,
    /// Not heard of, and applied after so long.
    Late(Duration),
}

impl Line {
    /// The line of a gateway.
    pub fn new(bucket: Arc<Bucket>, number: u64) -> Self {
        let asleep = Arc::new(watch::channel(false).0);
        Self { bucket, number, sent: Arc::default(), cut: Arc::default(), asleep, trap: Arc::default() }
    }

    /// Waits until an object of this kind has been sent and has not arrived yet; not for ever.
    pub async fn on_its_way(&self, kind: Kind) {
        *self.trap.kind.lock().expect("nobody panics") = Some(kind);
        let _ = timeout(TRAP, self.trap.sprung.notified()).await;
        *self.trap.kind.lock().expect("nobody panics") = None;
    }

    fn tread(&self, name: &Path) {
        if self.trap.kind.lock().expect("nobody panics").take_if(|kind| kind.is(name)).is_some() {
            self.trap.sprung.notify_one();
        }
    }

    /// Cuts it, or mends it.
    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// Whether the gateway sleeps.
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.send_replace(asleep);
    }

    fn dice(&self) -> Dice {
        self.bucket.requests.fetch_add(1, Ordering::Relaxed);
        let nth = self.sent.fetch_add(1, Ordering::Relaxed);
        Dice::of(self.bucket.seed, &[12, self.number, nth])
    }

    fn healed(&self) -> bool {
        self.bucket.healed.load(Ordering::Relaxed)
    }

    fn latency(&self, dice: &mut Dice) -> Duration {
        match dice.below(1000) {
            _ if self.healed() => dice.millis(1, 20),
            0..3 => dice.millis(3_000, 40_000),
            3..30 => dice.millis(100, 3_000),
            _ => dice.millis(2, 30),
        }
    }

    fn fate(&self, dice: &mut Dice) -> Fate {
        let unreachable = self.cut.load(Ordering::Relaxed) || self.bucket.down.load(Ordering::Relaxed);
        if self.healed() || !(unreachable || dice.permille(self.bucket.failing)) {
            return Fate::Well;
        }
        match dice.below(100) {
            0..10 if !unreachable => Fate::Late(dice.millis(1_000, 90_000)),
            10..40 if !unreachable => Fate::Unheard,
            0..3 => Fate::Unheard,
            _ => Fate::Fails,
        }
    }

    async fn awake(&self) {
        let mut asleep = self.asleep.subscribe();
        let _ = asleep.wait_for(|asleep| !asleep).await;
    }

    /// Sends a request that changes something: it goes on without its sender.
    async fn send<T, F>(&self, apply: impl FnOnce(Arc<Bucket>, Dice) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send,
    {
        let mut dice = self.dice();
        let (answer, answered) = oneshot::channel();
        let line = self.clone();
        tokio::spawn(async move {
            sleep(line.latency(&mut dice)).await;
            line.awake().await;
            let fate = line.fate(&mut dice);
            match fate {
                Fate::Fails => return drop(answer.send(Err(unavailable()))),
                Fate::Late(later) => {
                    let _ = answer.send(Err(unavailable()));
                    sleep(later).await;
                    drop(apply(line.bucket.clone(), dice).await);
                    return;
                }
                Fate::Well | Fate::Unheard => {}
            }
            let back = line.latency(&mut dice);
            let done = apply(line.bucket.clone(), dice).await;
            sleep(back).await;
            line.awake().await;
            let _ = answer.send(if matches!(fate, Fate::Unheard) { Err(unavailable()) } else { done });
        });
        answered.await.unwrap_or_else(|_| Err(unavailable()))
    }

    /// Waits for a read to arrive, and to be answered.
    async fn read(&self) -> Result<()> {
        let mut dice = self.dice();
        sleep(self.latency(&mut dice)).await;
        self.awake().await;
        match self.fate(&mut dice) {
            Fate::Well => Ok(()),
            _ => Err(unavailable()),
        }
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "simulated", source: "503 Slow Down".into() }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated({})", self.number)
    }
}

#[async_trait]
impl ObjectStore for Line {
    async fn put_opts(&self, name: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let name = name.clone();
        self.tread(&name);
        self.send(|bucket, mut dice| async move { bucket.put(&name, payload, options, &mut dice).await }).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotSupported { source: "no vault uses it".into() })
    }

    async fn get_opts(&self, name: &Path, options: GetOptions) -> Result<GetResult> {
        self.read().await?;
        self.bucket.objects.get_opts(name, options).await
    }

    fn delete_stream(&self, names: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let line = self.clone();
        let delete = move |name: Result<Path>| {
            let line = line.clone();
            async move {
                let name = name?;
                let gone = name.clone();
                line.send(|bucket, _| async move { bucket.objects.delete(&gone).await }).await.map(|()| name)
            }
        };
        names.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (line, prefix) = (self.clone(), prefix.cloned());
        let begin = async move {
            line.read().await?;
            Ok::<_, Error>(line.bucket.objects.list(prefix.as_ref()))
        };
        stream::once(begin).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.read().await?;
        self.bucket.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotSupported { source: "no vault uses it".into() })
    }
}

/// Keys of a vault, and its first objects: made once, used by every seed.
pub struct Keys {
    /// Opens content.
    pub recovery: Arc<landfall_keys::RecoveryKey>,
    /// Where the site key's file is.
    pub site: std::path::PathBuf,
    /// The objects of the new vault.
    pub objects: Vec<(String, Bytes)>,
    _folder: tempfile::TempDir,
}

impl Keys {
    /// Makes a vault with keys that are always the same, so that content is always cut at the same places.
    ///
    /// # Panics
    /// Where the keys of the golden vault cannot be read.
    pub fn get() -> &'static Self {
        static KEYS: Mutex<Option<&'static Keys>> = Mutex::new(None);
        KEYS.lock().expect("nobody panics").get_or_insert_with(|| Box::leak(Box::new(Self::make())))
    }

    fn make() -> Self {
        let golden = crate::tools::repository().join("tests/golden/v1");
        let folder = tempfile::tempdir().expect("a folder");
        // Its own file: who reads a key looks at its mode.
        for key in ["site.key", "recovery.key"] {
            std::fs::copy(golden.join(key), folder.path().join(key)).expect("a copy");
        }
        let site = folder.path().join("site.key");
        let recovery =
            landfall_keys::RecoveryKey::read(&folder.path().join("recovery.key"), None).expect("a recovery key");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let objects = runtime.block_on(async {
            let memory = Arc::new(InMemory::new());
            let store = landfall_vault::Store::over(memory.clone(), Path::default(), "memory");
            let key = landfall_keys::SiteKey::read(&site).expect("a site key");
            landfall_vault::Vault::create(store, &recovery, key, landfall_vault::now()).await.expect("a vault");
            let names: Vec<ObjectMeta> = memory.list(None).try_collect().await.expect("a listing");
            let mut objects = Vec::new();
            for meta in names {
                let bytes = memory.get(&meta.location).await.expect("it is there").bytes().await.expect("its bytes");
                objects.push((meta.location.to_string(), bytes));
            }
            objects
        });
        Self { recovery: Arc::new(recovery), site, objects, _folder: folder }
    }
}
