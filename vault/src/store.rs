//! The object store under a vault: one prefix of one bucket, container or directory.
//!
//! # Overview
//! Four kinds of store through `object_store`: `file://`, `s3://`, `az://`, `gs://`. Correctness of everything above needs one thing
//! of them: put-if-absent that is atomic ([`Store::probe`] checks it, because stores lie).
//!
//! # Consistency
//! Objects are immutable but for `vault.json` and heartbeats. An unclear put-if-absent (time-out, then "exists") is resolved by the
//! caller, who reads back and compares.
//!
//! # Retries
//! What may go away by itself is tried again with back-off, doubling from [`BACKOFF_FIRST`] to [`BACKOFF_MAX`], until the retry time
//! of the store is spent; then the error is "unavailable". Answers that will not change (denied, not found, exists) are not tried again.
//!
//! # Crash consistency
//! The local directory writes aside, fsyncs file and directories, and links into place: an object is there whole, or not at all.

use std::error::Error as StdError;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use landfall_model::ErrorKind;
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use tokio::time::Instant;

use crate::access::{Obstacle, StoreOptions};
use crate::local;
use landfall_model::{Error, Result};

/// First pause before a request is tried again.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause: long enough not to hammer a store that struggles, short enough to notice that it is back.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// How long a request is tried again where nothing else is said: longer than a reboot of a router.
const RETRY_TIME_DEFAULT: Duration = Duration::from_secs(300);
/// One request, body included: of four 32 MiB segments at once, each still fits a line of 2 Mbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(900);
/// A request whose answer does not begin for so long is given up and tried again: a connection that a router forgot says nothing, ever.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The time that bytes take counts on top of it, at this rate: of four bodies at once on a line of 2 Mbit/s, each has as much.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// No object of a vault is larger; what is, is not read into memory.
const OBJECT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a put-if-absent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// The object was not there and is now.
    Created,
    /// There already is an object of that name: untouched.
    Exists,
}

/// What became of an object whose bytes are ours alone to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutExact {
    /// It was not there and is now.
    Created,
    /// It was there with these bytes: an earlier try that was not heard of, or one that another sent.
    Same,
    /// It was there with other bytes: untouched.
    Different,
}

/// An object in a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Name relative to the vault's prefix.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

/// Bytes and requests since the store was opened.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU64,
    fetched: AtomicU64,
    requests: AtomicU64,
}

impl Traffic {
    /// Bytes of objects sent, tries that failed left out.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes of objects fetched.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Requests made, retries included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// One prefix of one store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Where the objects are files: large ones are written past the page cache.
    directory: Option<PathBuf>,
    url: String,
    /// The proxy before it, without a password: for errors.
    proxy: Option<String>,
    retry_time: Duration,
    traffic: Arc<Traffic>,
}

impl std::fmt::Debug for Store {
    /// What clients print of themselves may have credentials in it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url).field("proxy", &self.proxy).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store that a URL names; credentials, endpoints and proxies come from the ecosystems' own environment variables.
    ///
    /// # Errors
    /// `Usage` for a URL that names no store or a store that is not configured.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, &StoreOptions::default())
    }

    /// The same, reached as the options say.
    ///
    /// # Errors
    /// As for [`Self::open`]; `Usage` where the options name a file that is missing or is not what it should be.
    pub fn open_with(url: &str, options: &StoreOptions) -> Result<Self> {
        let usage = |why: String| Error::new(ErrorKind::Usage, format!("vault URL {url:?}: {why}"));
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            usage("expected file:///path, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix".to_owned())
        })?;
        if scheme == "file" {
            options.check()?;
            return Self::open_directory(url, rest);
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_allow_http(is_set(if scheme == "az" { "AZURE_ALLOW_HTTP" } else { "AWS_ALLOW_HTTP" }));
        let (client, proxy) = options.apply(client)?;
        // One place retries: this module. A layer below would multiply the time that an operator waits.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let configured = |e: object_store::Error| usage(one_line(&e));
        let inner: Arc<dyn ObjectStore> = match scheme {
            "s3" => Arc::new(
                object_store::aws::AmazonS3Builder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .build()
                    .map_err(configured)?,
            ),
            "az" => Arc::new(
                object_store::azure::MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket)
                    .with_client_options(client)
                    .with_retry(retry)
                    .build()
                    .map_err(configured)?,
            ),
            "gs" => Arc::new(
                object_store::gcp::GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket)
                    .with_client_options(client.with_allow_http(true))
                    .with_retry(retry)
                    .build()
                    .map_err(configured)?,
            ),
            other => return Err(usage(format!("unknown scheme {other:?}: expected file, s3, az or gs"))),
        };
        if bucket.is_empty() {
            return Err(usage("no bucket or container in it".to_owned()));
        }
        let prefix = Path::parse(prefix.trim_end_matches('/')).map_err(|e| usage(e.to_string()))?;
        Ok(Self { proxy, ..Self::over(inner, prefix, url) })
    }

    fn open_directory(url: &str, path: &str) -> Result<Self> {
        let usage = |why: String| Error::new(ErrorKind::Usage, format!("vault URL {url:?}: {why}"));
        if !path.starts_with('/') {
            return Err(usage("the path must be absolute, as in file:///srv/vault".to_owned()));
        }
        std::fs::create_dir_all(path).map_err(|e| {
            let kind = ErrorKind::of_io(&e);
            Error::with_source(kind, format!("cannot make the vault's directory {path}"), e)
        })?;
        let inner = object_store::local::LocalFileSystem::new_with_prefix(path)
            .map_err(|e| usage(one_line(&e)))?
            .with_fsync(true);
        let store = Self::over(Arc::new(inner), Path::default(), url);
        Ok(Self { directory: Some(path.into()), ..store })
    }

    /// A vault's store over any `object_store`, under a prefix; `name` is what errors call it.
    pub fn over(inner: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        let seconds = std::env::var("LANDFALL_STORE_RETRY_SECONDS").ok().and_then(|s| s.parse().ok());
        let retry_time = seconds.map_or(RETRY_TIME_DEFAULT, Duration::from_secs);
        Self { inner, prefix, directory: None, url: name.to_owned(), proxy: None, retry_time, traffic: Arc::default() }
    }

    /// The same store, giving up retries after this long.
    #[must_use]
    pub fn with_retry_time(mut self, retry_time: Duration) -> Self {
        self.retry_time = retry_time;
        self
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was moved since it was opened.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    fn path(&self, name: &str) -> Path {
        let parts = self.prefix.parts().chain(name.split('/').filter(|p| !p.is_empty()).map(Into::into));
        Path::from_iter(parts)
    }

    /// Runs a request on the store until it succeeds, fails for good, or the retry time is spent.
    async fn retried<T, F, R>(&self, doing: &str, name: &str, request: R) -> std::result::Result<T, Failed>
    where
        F: Future<Output = object_store::Result<T>>,
        R: Fn(Arc<dyn ObjectStore>) -> F,
    {
        let start = Instant::now();
        let mut pause = BACKOFF_FIRST;
        loop {
            self.traffic.requests.fetch_add(1, Ordering::Relaxed);
            let error = match request(self.inner.clone()).await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let failed = Failed::classify(&error);
            if !matches!(failed, Failed::Transient) || start.elapsed() + pause > self.retry_time {
                return Err(failed.told(doing, name, self, &error));
            }
            tracing::warn!(
                doing,
                name,
                pause_ms = pause.as_millis(),
                error = one_line(&error),
                "store: will try again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Stores an object under a name that has none: the one operation that commits and fences.
    ///
    /// After a retry `Exists` may mean that the first try got through: who needs to know reads back and compares.
    ///
    /// # Errors
    /// `Unavailable` after the retry time, `Usage` when access is denied, `NoSpace`.
    pub async fn put_if_absent(&self, name: &str, bytes: Bytes) -> Result<Put> {
        let path = self.path(name);
        let size = bytes.len() as u64;
        let put = self
            .retried("store", name, |store| {
                let (path, bytes) = (path.clone(), bytes.clone());
                let direct = self.directory.clone().filter(|_| bytes.len() >= local::DIRECT_BYTES_MIN);
                async move {
                    match direct {
                        Some(root) => put_file(root, path, bytes).await,
                        None => {
                            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                            in_time(size, store.put_opts(&path, bytes.into(), options)).await.map(|_| ())
                        }
                    }
                }
            })
            .await;
        match put {
            Ok(()) => {
                self.traffic.sent.fetch_add(size, Ordering::Relaxed);
                Ok(Put::Created)
            }
            Err(Failed::Exists) => Ok(Put::Exists),
            Err(other) => Err(other.into_error(&self.url)),
        }
    }

    /// Stores an object under a name that has none, and believes that it exists only after reading it back: "exists" may also mean that
    /// another try is under way (S3 answers 409 to that) and nothing is stored yet.
    ///
    /// # Errors
    /// As for [`Self::put_if_absent`]; `Unavailable` where the store says that it exists and does not show it.
    pub async fn put_exact(&self, name: &str, bytes: Bytes) -> Result<PutExact> {
        let start = Instant::now();
        loop {
            if self.put_if_absent(name, bytes.clone()).await? == Put::Created {
                return Ok(PutExact::Created);
            }
            match self.get(name).await? {
                Some(there) if there == bytes => return Ok(PutExact::Same),
                Some(_) => return Ok(PutExact::Different),
                None if start.elapsed() < self.retry_time => tokio::time::sleep(BACKOFF_FIRST).await,
                None => {
                    let why = format!("{name}: {} says that it exists and does not show it; try again later", self.url);
                    return Err(Error::new(ErrorKind::Unavailable, why));
                }
            }
        }
    }

    /// Stores an object, over one that may be there.
    ///
    /// # Errors
    /// As for [`Self::put_if_absent`].
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let path = self.path(name);
        let size = bytes.len() as u64;
        let put = self
            .retried("store", name, |store| {
                let (path, bytes) = (path.clone(), bytes.clone());
                async move { in_time(size, store.put(&path, bytes.into())).await }
            })
            .await;
        put.map_err(|f| f.into_error(&self.url))?;
        self.traffic.sent.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    async fn get_bounded(&self, name: &str, range: Option<Range<u64>>, bytes_max: u64) -> Result<Option<Bytes>> {
        let path = self.path(name);
        let got = self
            .retried("fetch", name, |store| {
                let (path, range) = (path.clone(), range.clone());
                async move { fetch(&*store, &path, range, bytes_max).await }
            })
            .await;
        match got {
            Ok(Ok(bytes)) => {
                self.traffic.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(Some(bytes))
            }
            Ok(Err(why)) => Err(Error::corrupt(format!("{name}: {why}"))),
            Err(Failed::NotFound) => Ok(None),
            Err(other) => Err(other.into_error(&self.url)),
        }
    }

    /// A whole object, or `None` where there is none.
    ///
    /// # Errors
    /// `Unavailable` after the retry time, `Usage` when access is denied, `Corrupt` where it is larger than any object of a vault.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>> {
        self.get_bounded(name, None, OBJECT_BYTES_MAX).await
    }

    /// Bytes `start .. end` of an object, fewer where it is shorter; `None` where there is no such object.
    ///
    /// # Errors
    /// As for [`Self::get`]; `Corrupt` where the object ends at or before `start`.
    pub async fn get_range(&self, name: &str, start: u64, end: u64) -> Result<Option<Bytes>> {
        self.get_bounded(name, Some(start..end), end.saturating_sub(start)).await
    }

    /// Every object whose name begins with a folder, ascending by name.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let path = self.path(folder);
        let listed = self
            .retried("list", folder, |store| {
                let path = path.clone();
                async move {
                    let (mut listed, mut found) = (store.list(Some(&path)), Vec::new());
                    while let Some(meta) = in_time(0, listed.try_next()).await? {
                        found.push(meta);
                    }
                    Ok(found)
                }
            })
            .await;
        let mut out = Vec::new();
        for meta in listed.map_err(|f| f.into_error(&self.url))? {
            let Some(parts) = meta.location.prefix_match(&self.prefix) else { continue };
            let name = parts.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>().join("/");
            out.push(Listed { name, size: meta.size });
        }
        out.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(out)
    }

    /// The folders right below a folder, ascending.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let listed = self
            .retried("list", folder, |store| {
                let path = path.clone();
                async move { in_time(0, store.list_with_delimiter(Some(&path))).await }
            })
            .await;
        let prefixes = listed.map_err(|f| f.into_error(&self.url))?.common_prefixes;
        let mut out: Vec<String> = prefixes.iter().filter_map(|p| p.filename().map(str::to_owned)).collect();
        out.sort();
        Ok(out)
    }

    /// Deletes an object; that there is none is no error.
    ///
    /// # Errors
    /// As for [`Self::get`].
    pub async fn delete(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        let deleted = self
            .retried("delete", name, |store| {
                let path = path.clone();
                async move { in_time(0, store.delete(&path)).await }
            })
            .await;
        match deleted {
            Ok(()) | Err(Failed::NotFound) => Ok(()),
            Err(other) => Err(other.into_error(&self.url)),
        }
    }
}

/// What a store does with a request that moves so many bytes, unless it says nothing for too long.
async fn in_time<T>(bytes: u64, request: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    let longest = ANSWER_MAX + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND);
    let silent = |_| {
        let source = format!("no answer within {} s", longest.as_secs()).into();
        object_store::Error::Generic { store: "store", source }
    };
    tokio::time::timeout(longest, request).await.map_err(silent).flatten()
}

/// Whether a variable says yes.
fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|v| matches!(v.to_lowercase().as_str(), "1" | "true" | "yes" | "on"))
}

/// A large object into a local directory, in the words of `object_store`.
async fn put_file(root: PathBuf, path: Path, bytes: Bytes) -> object_store::Result<()> {
    let name = path.to_string();
    let put = tokio::task::spawn_blocking(move || local::put_if_absent(&root, path.as_ref(), &bytes)).await;
    let generic = |source| object_store::Error::Generic { store: "directory", source };
    match put {
        Ok(Ok(Put::Created)) => Ok(()),
        Ok(Ok(Put::Exists)) => Err(object_store::Error::AlreadyExists { path: name, source: "it exists".into() }),
        Ok(Err(error)) => Err(generic(error.into())),
        Err(error) => Err(generic(error.into())),
    }
}

/// Fetches an object or a range of it. The inner error is about the object and will not change: it is shorter or longer than it can be.
async fn fetch(
    store: &dyn ObjectStore,
    path: &Path,
    range: Option<Range<u64>>,
    bytes_max: u64,
) -> object_store::Result<std::result::Result<Bytes, String>> {
    let start = range.as_ref().map_or(0, |r| r.start);
    let bounded = range.is_some();
    let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
    match in_time(0, store.get_opts(path, options)).await {
        Ok(got) if got.range.end.saturating_sub(got.range.start) > bytes_max => {
            Ok(Err("it is larger than it can be".to_owned()))
        }
        Ok(got) => in_time(got.range.end.saturating_sub(got.range.start), got.bytes()).await.map(Ok),
        // Stores refuse a range behind the end each in its own way; the size tells what happened.
        Err(error) if bounded && matches!(Failed::classify(&error), Failed::Transient | Failed::Final(_)) => {
            match in_time(0, store.head(path)).await {
                Ok(meta) if meta.size <= start => {
                    Ok(Err(format!("it has {} bytes and ends before byte {start}", meta.size)))
                }
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// What an answer of the store means to the caller.
enum Failed {
    Transient,
    Exists,
    NotFound,
    Final(ErrorKind),
    Told(Error),
}

impl Failed {
    fn classify(error: &object_store::Error) -> Self {
        use object_store::Error as E;
        match error {
            E::AlreadyExists { .. } | E::Precondition { .. } => Self::Exists,
            E::NotFound { .. } => Self::NotFound,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } | E::InvalidPath { .. } => {
                Self::Final(ErrorKind::Usage)
            }
            E::UnknownConfigurationKey { .. } => Self::Final(ErrorKind::Usage),
            E::NotSupported { .. } | E::NotImplemented { .. } => Self::Final(ErrorKind::Unsupported),
            E::JoinError { .. } => Self::Final(ErrorKind::Bug),
            // A request that cannot even be made, for example to an http:// endpoint that was not allowed.
            other if one_line(other).contains("builder error") => Self::Final(ErrorKind::Usage),
            other if Obstacle::of(&one_line(other)).is_some_and(|o| o.kind() == ErrorKind::Usage) => {
                Self::Final(ErrorKind::Usage)
            }
            other => match io_cause(other).map(ErrorKind::of_io) {
                Some(kind @ (ErrorKind::NoSpace | ErrorKind::Usage)) => Self::Final(kind),
                _ => Self::Transient,
            },
        }
    }

    fn told(self, doing: &str, name: &str, store: &Store, error: &object_store::Error) -> Self {
        let cause = one_line(error);
        let obstacle = Obstacle::of(&cause).map(|obstacle| (obstacle.kind(), obstacle.advice(store.proxy.as_deref())));
        let (kind, advice) = match self {
            Self::Transient | Self::Final(_) if let Some((kind, advice)) = &obstacle => (*kind, advice.as_str()),
            Self::Final(ErrorKind::Usage) if cause.contains("URL scheme is not allowed") => (
                ErrorKind::Usage,
                "an http:// endpoint is not protected by TLS; use https://, or set AWS_ALLOW_HTTP or AZURE_ALLOW_HTTP to allow it",
            ),
            Self::Transient => (ErrorKind::Unavailable, "the store does not answer as it should; try again later"),
            Self::Final(ErrorKind::Usage) => {
                (ErrorKind::Usage, "the store denies it; check endpoint, credentials and policy")
            }
            Self::Final(ErrorKind::NoSpace) => (ErrorKind::NoSpace, "no space is left; make room and run again"),
            Self::Final(kind) => (kind, "the store cannot do this"),
            other => return other,
        };
        let object = if name.is_empty() { "objects" } else { name };
        Self::Told(Error::with_source(kind, format!("cannot {doing} {object} in {}: {advice}", store.url), cause))
    }

    fn into_error(self, url: &str) -> Error {
        match self {
            Self::Told(error) => error,
            Self::Exists => Error::new(ErrorKind::Conflict, format!("{url}: the object already exists")),
            Self::NotFound => {
                let why =
                    format!("{url}: there is no such bucket or container; make it, or check the URL and the endpoint");
                Error::new(ErrorKind::NotFound, why)
            }
            Self::Transient => {
                Error::new(ErrorKind::Unavailable, format!("{url}: the store does not answer; try again later"))
            }
            Self::Final(kind) => Error::new(kind, format!("{url}: the store refused")),
        }
    }
}

/// The I/O error below, for the local directory.
fn io_cause(error: &object_store::Error) -> Option<&std::io::Error> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

/// An error of the store and its causes on one line, each said once.
fn one_line(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
