//! An `ObjectStore` that misbehaves on purpose, over any other: the fault model of [`crate::proxy`] for tests below the binary.
//!
//! # Fault model
//! Requests are counted by [`Kind`]. The first [`Rule`] that matches one decides: it lets the first `skip` pass and spoils the next `times`.
//!
//! | fault | applied | the caller sees |
//! |---|---|---|
//! | [`Fault::Unavailable`] | no | a generic error, as for 503 |
//! | [`Fault::AppliedUnavailable`] | **yes** | the same error |
//! | [`Fault::Hang`] | no | nothing, for ever |
//! | [`Fault::Conflict`] | no | `AlreadyExists`, which is what `object_store` makes of a 409 though nothing is there |
//! | [`Fault::Overwrites`] | yes | success of a put-if-absent, always: the condition is ignored |
//! | [`Fault::OverwritesInRace`] | yes | the same, but only where another put-if-absent of that name is under way |
//!
//! Nothing else is changed: what is stored is what was sent, and a read gives what is stored.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How long a store that is wrong in a race looks for a racer.
const RACE_WINDOW: Duration = Duration::from_millis(50);
const STORE: &str = "faulty";

/// What kind of request it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A put that may overwrite, or the start of a multipart upload.
    Put,
    /// A put-if-absent.
    Create,
    /// A get, whole or of a range, or a head.
    Get,
    /// A listing.
    List,
    /// A delete.
    Delete,
    /// A copy or rename.
    Copy,
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails before anything is applied.
    Unavailable,
    /// Is applied, then fails.
    AppliedUnavailable,
    /// Never returns.
    Hang,
    /// "Exists", though it does not.
    Conflict,
    /// A put-if-absent overwrites.
    Overwrites,
    /// A put-if-absent overwrites where another one runs at the same time.
    OverwritesInRace,
}

/// Which requests go wrong.
#[derive(Clone, Debug)]
pub struct Rule {
    kind: Kind,
    name_has: Option<String>,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every request of a kind.
    pub fn every(kind: Kind, fault: Fault) -> Self {
        Self { kind, name_has: None, skip: 0, times: u64::MAX, fault }
    }

    /// Only the n-th request of a kind, counted from 1.
    pub fn nth(kind: Kind, n: u64, fault: Fault) -> Self {
        Self { kind, name_has: None, skip: n.saturating_sub(1), times: 1, fault }
    }

    /// Only objects whose name has this text in it.
    #[must_use]
    pub fn name_has(mut self, text: &str) -> Self {
        self.name_has = Some(text.to_owned());
        self
    }
}

/// How many requests, and bytes of objects that they carried.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    /// Requests, spoilt ones included.
    pub requests: u64,
    /// Bytes sent by puts, or asked for and found by gets.
    pub bytes: u64,
}

/// The store. Clones share rules and counts.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<Track>>,
}

#[derive(Debug, Default)]
struct Track {
    rules: Vec<(Rule, u64)>,
    counts: BTreeMap<Kind, Count>,
    racing: HashMap<Path, u32>,
}

impl Faulty {
    /// A store that behaves as the rules say.
    pub fn new(inner: Arc<dyn ObjectStore>, rules: Vec<Rule>) -> Self {
        let state = Arc::new(Mutex::new(Track::default()));
        let store = Self { inner, state };
        store.set_rules(rules);
        store
    }

    /// From now on these rules, counted from zero.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.lock().rules = rules.into_iter().map(|rule| (rule, 0)).collect();
    }

    /// What was asked so far, by kind.
    pub fn count(&self, kind: Kind) -> Count {
        self.lock().counts.get(&kind).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Track> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    fn decide(&self, kind: Kind, name: &Path, bytes: u64) -> Option<Fault> {
        let mut track = self.lock();
        let count = track.counts.entry(kind).or_default();
        count.requests += 1;
        count.bytes += bytes;
        let matching = track.rules.iter_mut().find(|(rule, _)| {
            rule.kind == kind && rule.name_has.as_ref().is_none_or(|text| name.as_ref().contains(text.as_str()))
        });
        matching.and_then(|(rule, met)| {
            *met += 1;
            (*met > rule.skip && *met - rule.skip <= rule.times).then_some(rule.fault)
        })
    }

    /// Faults that act before the request; `true` where it is to fail after it was applied.
    async fn before(&self, kind: Kind, name: &Path, bytes: u64) -> Result<bool> {
        match self.decide(kind, name, bytes) {
            Some(Fault::Unavailable) => Err(unavailable()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Conflict) => Err(conflict(name)),
            Some(Fault::AppliedUnavailable) => Ok(true),
            Some(Fault::Overwrites | Fault::OverwritesInRace) | None => Ok(false),
        }
    }

    /// Whether another put-if-absent of that name runs within the window.
    async fn races(&self, name: &Path) -> bool {
        let count = |change: i32| {
            let mut track = self.lock();
            let racing = track.racing.entry(name.clone()).or_default();
            *racing = racing.saturating_add_signed(change);
            *racing
        };
        let before = count(1);
        tokio::time::sleep(RACE_WINDOW).await;
        let after = count(0);
        count(-1);
        before.max(after) > 1
    }
}

fn unavailable() -> Error {
    Error::Generic { store: STORE, source: "503 Slow Down, made by the test".into() }
}

fn conflict(name: &Path) -> Error {
    Error::AlreadyExists { path: name.to_string(), source: "409 Conflict, made by the test".into() }
}

fn spoil<T>(after: bool, done: Result<T>) -> Result<T> {
    if after { done.and(Err(unavailable())) } else { done }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, name: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let bytes = payload.content_length() as u64;
        if options.mode != PutMode::Create {
            let after = self.before(Kind::Put, name, bytes).await?;
            return spoil(after, self.inner.put_opts(name, payload, options).await);
        }
        let mut after = false;
        match self.decide(Kind::Create, name, bytes) {
            Some(Fault::Unavailable) => return Err(unavailable()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Conflict) => return Err(conflict(name)),
            Some(Fault::AppliedUnavailable) => after = true,
            Some(Fault::Overwrites) => options.mode = PutMode::Overwrite,
            Some(Fault::OverwritesInRace) if self.races(name).await => options.mode = PutMode::Overwrite,
            Some(Fault::OverwritesInRace) | None => {}
        }
        spoil(after, self.inner.put_opts(name, payload, options).await)
    }

    async fn put_multipart_opts(&self, name: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let after = self.before(Kind::Put, name, 0).await?;
        spoil(after, self.inner.put_multipart_opts(name, options).await)
    }

    async fn get_opts(&self, name: &Path, options: GetOptions) -> Result<GetResult> {
        let after = self.before(Kind::Get, name, 0).await?;
        let got = spoil(after, self.inner.get_opts(name, options).await)?;
        self.lock().counts.entry(Kind::Get).or_default().bytes += got.range.end - got.range.start;
        Ok(got)
    }

    async fn get_ranges(&self, name: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let after = self.before(Kind::Get, name, ranges.iter().map(|range| range.end - range.start).sum()).await?;
        spoil(after, self.inner.get_ranges(name, ranges).await)
    }

    fn delete_stream(&self, names: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |name: Result<Path>| {
            let store = store.clone();
            async move {
                let name = name?;
                let after = store.before(Kind::Delete, &name, 0).await?;
                let one = stream::once(std::future::ready(Ok(name.clone()))).boxed();
                let done = store.inner.delete_stream(one).try_for_each(|_| std::future::ready(Ok(()))).await;
                spoil(after, done).map(|()| name)
            }
        };
        names.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let begin = async move {
            let after = store.before(Kind::List, &prefix.clone().unwrap_or_default(), 0).await?;
            if after { Err(unavailable()) } else { Ok(store.inner.list(prefix.as_ref())) }
        };
        stream::once(begin).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let after = self.before(Kind::List, &prefix.cloned().unwrap_or_default(), 0).await?;
        spoil(after, self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let after = self.before(Kind::Copy, to, 0).await?;
        spoil(after, self.inner.copy_opts(from, to, options).await)
    }
}
