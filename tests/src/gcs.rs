//! The XML API of Google Cloud Storage, in memory, as far as `object_store` uses it.
//!
//! No emulator that a registry offers speaks this API, so this is our own. It is strict where a lenient one would hide a bug: what
//! it does not know is answered with 501, a part that is too small with 400, a page holds 1000 keys. One mutex around everything makes
//! each request atomic: `x-goog-if-generation-match: 0` lets exactly one of any number of racing writers win, as the real one does.
//!
//! ```text
//! PUT    /bucket/key                          store; x-goog-if-generation-match, x-goog-copy-source
//! PUT    /bucket/key?partNumber=N&uploadId=U  one part
//! POST   /bucket/key?uploads                  begin a multipart upload
//! POST   /bucket/key?uploadId=U               complete it: the object appears whole, or not at all
//! DELETE /bucket/key?uploadId=U               abort it
//! GET    /bucket/key                          Range, If-Match, If-None-Match;  HEAD alike
//! DELETE /bucket/key
//! GET    /bucket?list-type=2                  prefix, delimiter, start-after, continuation-token, max-keys
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use bytes::Bytes;
use tokio::runtime::Runtime;

/// Keys in one page of a listing, as in the real service.
const PAGE_KEYS: usize = 1000;
/// Smallest part of a multipart upload but for the last, as in the real service.
const PART_BYTES_MIN: usize = 5 << 20;
/// Largest request that is taken into memory: more than any test sends.
const REQUEST_BYTES_MAX: usize = 1 << 30;

const GENERATION_MATCH: &str = "x-goog-if-generation-match";
const COPY_SOURCE: &str = "x-goog-copy-source";
const GENERATION: &str = "x-goog-generation";

/// A running emulator. Ends when dropped.
#[derive(Debug)]
pub struct GcsEmulator {
    address: SocketAddr,
    bucket: Arc<Bucket>,
    runtime: Option<Runtime>,
}

impl GcsEmulator {
    /// Starts one with one empty bucket, on a free port of 127.0.0.1.
    pub fn start(bucket: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener that tokio takes");
        let address = listener.local_addr().expect("an address");
        let bucket = Arc::new(Bucket { name: bucket.to_owned(), state: Mutex::default() });
        let app = Router::new().fallback(handle).with_state(Arc::clone(&bucket));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            axum::serve(listener, app).await.expect("the emulator serves until it is dropped");
        });
        Self { address, bucket, runtime: Some(runtime) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The objects that are there, by name.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.bucket.lock().objects.iter().map(|(name, object)| (name.clone(), object.bytes.clone())).collect()
    }

    /// Multipart uploads that were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.bucket.lock().uploads.len()
    }
}

impl Drop for GcsEmulator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Bucket {
    name: String,
    state: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, Upload>,
    numbers: u64,
}

#[derive(Clone, Debug)]
struct Object {
    bytes: Bytes,
    generation: u64,
    modified: chrono::DateTime<chrono::Utc>,
}

#[derive(Debug)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, Bytes>,
}

impl Object {
    fn etag(&self) -> String {
        format!("\"{:016x}\"", self.generation)
    }
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.state.lock().expect("no request panics while it holds the lock")
    }
}

impl Contents {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn store(&mut self, key: &str, bytes: Bytes) -> &Object {
        let object = Object { bytes, generation: self.number(), modified: chrono::Utc::now() };
        self.objects.insert(key.to_owned(), object);
        &self.objects[key]
    }

    /// Whether the generation precondition of a request holds.
    fn admits(&self, key: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(wanted) = headers.get(GENERATION_MATCH) else { return Ok(()) };
        let wanted: Option<u64> = wanted.to_str().ok().and_then(|text| text.parse().ok());
        let wanted = wanted.ok_or(refuse(400, "InvalidArgument", "not a generation"))?;
        if self.objects.get(key).map_or(0, |object| object.generation) == wanted {
            Ok(())
        } else {
            Err(refuse(412, "PreconditionFailed", "the generation is another"))
        }
    }
}

struct Refusal {
    status: u16,
    code: &'static str,
    message: &'static str,
}

fn refuse(status: u16, code: &'static str, message: &'static str) -> Refusal {
    Refusal { status, code, message }
}

const NO_SUCH_KEY: Refusal = Refusal { status: 404, code: "NoSuchKey", message: "there is no such object" };

type Reply = Result<Response<Body>, Refusal>;

async fn handle(State(bucket): State<Arc<Bucket>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let reply = match to_bytes(body, REQUEST_BYTES_MAX).await {
        Ok(body) => {
            let query = Query::parse(parts.uri.query().unwrap_or(""));
            route(&bucket, &parts.method, parts.uri.path(), &query, &parts.headers, body)
        }
        Err(_) => Err(refuse(400, "IncompleteBody", "the request's body did not arrive")),
    };
    reply.unwrap_or_else(|refusal| {
        let Refusal { status, code, message } = refusal;
        let xml = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        let status = StatusCode::from_u16(status).expect("a status code");
        Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/xml")
            .body(xml.into())
            .expect("whole")
    })
}

fn route(bucket: &Bucket, method: &Method, path: &str, query: &Query, headers: &HeaderMap, body: Bytes) -> Reply {
    let path = path.trim_start_matches('/');
    let (name, key) = path.split_once('/').map_or((path, None), |(name, key)| (name, Some(decode(key, false))));
    if name.is_empty() {
        return Ok(Response::new(Body::empty()));
    }
    if decode(name, false) != bucket.name {
        return Err(refuse(404, "NoSuchBucket", "there is no such bucket"));
    }
    let mut contents = bucket.lock();
    match (method.as_str(), key.filter(|key| !key.is_empty()), query.get("uploadId")) {
        ("GET", None, None) if query.get("list-type") == Some("2") => list(&contents, query),
        ("GET", Some(key), None) => read(&contents, &key, headers, true),
        ("HEAD", Some(key), None) => read(&contents, &key, headers, false),
        ("PUT", Some(key), None) => write(&mut contents, bucket, &key, headers, body),
        ("PUT", Some(key), Some(upload)) => write_part(&mut contents, &key, upload, query, body),
        ("POST", Some(key), None) if query.get("uploads").is_some() => {
            let upload = format!("upload-{}", contents.number());
            contents.uploads.insert(upload.clone(), Upload { key, parts: BTreeMap::new() });
            xml(format!("<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"))
        }
        ("POST", Some(key), Some(upload)) => complete(&mut contents, &key, upload, &body),
        ("DELETE", Some(key), Some(upload)) => {
            let known = contents.uploads.get(upload).is_some_and(|u| u.key == key);
            known.then(|| contents.uploads.remove(upload)).ok_or(refuse(404, "NoSuchUpload", "no such upload"))?;
            empty(204)
        }
        ("DELETE", Some(key), None) => {
            contents.admits(&key, headers)?;
            contents.objects.remove(&key).ok_or(NO_SUCH_KEY)?;
            empty(204)
        }
        _ => Err(refuse(501, "NotImplemented", "the emulator does not know this request")),
    }
}

fn empty(status: u16) -> Reply {
    Ok(Response::builder().status(status).body(Body::empty()).expect("whole"))
}

fn xml(text: String) -> Reply {
    let text = format!("<?xml version='1.0' encoding='UTF-8'?>{text}");
    Ok(Response::builder().header(header::CONTENT_TYPE, "application/xml").body(text.into()).expect("whole"))
}

fn write(contents: &mut Contents, bucket: &Bucket, key: &str, headers: &HeaderMap, body: Bytes) -> Reply {
    contents.admits(key, headers)?;
    let bytes = match headers.get(COPY_SOURCE) {
        None => body,
        Some(source) => {
            let source = decode(source.to_str().map_err(|_| refuse(400, "InvalidArgument", "copy source"))?, false);
            let source = source.strip_prefix(&format!("{}/", bucket.name)).ok_or(NO_SUCH_KEY)?;
            contents.objects.get(source).ok_or(NO_SUCH_KEY)?.bytes.clone()
        }
    };
    let object = contents.store(key, bytes);
    let reply = Response::builder().header(header::ETAG, object.etag()).header(GENERATION, object.generation);
    Ok(reply.body(Body::empty()).expect("whole"))
}

fn write_part(contents: &mut Contents, key: &str, upload: &str, query: &Query, body: Bytes) -> Reply {
    let number = query.get("partNumber").and_then(|n| n.parse::<u32>().ok()).filter(|n| (1..=10_000).contains(n));
    let number = number.ok_or(refuse(400, "InvalidArgument", "part numbers are 1 to 10000"))?;
    let upload = contents.uploads.get_mut(upload).filter(|u| u.key == key);
    let upload = upload.ok_or(refuse(404, "NoSuchUpload", "no such upload"))?;
    let etag = part_etag(number, &body);
    upload.parts.insert(number, body);
    Ok(Response::builder().header(header::ETAG, etag).body(Body::empty()).expect("whole"))
}

/// Not a digest: enough that a client which mixes up its parts is told.
fn part_etag(number: u32, bytes: &Bytes) -> String {
    format!("\"part-{number}-{}\"", bytes.len())
}

fn complete(contents: &mut Contents, key: &str, upload: &str, body: &Bytes) -> Reply {
    let known = contents.uploads.get(upload).filter(|u| u.key == key);
    let known = known.ok_or(refuse(404, "NoSuchUpload", "no such upload"))?;
    let text = String::from_utf8_lossy(body);
    let mut whole = Vec::new();
    let parts: Vec<&str> = text.split("<Part>").skip(1).collect();
    for (at, part) in parts.iter().enumerate() {
        let number = element(part, "PartNumber").and_then(|n| n.parse::<u32>().ok());
        let number = number.ok_or(refuse(400, "MalformedXML", "a part without a number"))?;
        let bytes = known.parts.get(&number).ok_or(refuse(400, "InvalidPart", "a part that was never sent"))?;
        let etag = element(part, "ETag").map(|etag| etag.replace("&quot;", "\""));
        if etag.as_deref() != Some(&part_etag(number, bytes)) {
            return Err(refuse(400, "InvalidPart", "the part's ETag is another"));
        }
        if bytes.len() < PART_BYTES_MIN && at + 1 < parts.len() {
            return Err(refuse(400, "EntityTooSmall", "only the last part may be smaller than 5 MiB"));
        }
        whole.extend_from_slice(bytes);
    }
    if parts.is_empty() {
        return Err(refuse(400, "MalformedXML", "no parts"));
    }
    contents.uploads.remove(upload);
    let etag = contents.store(key, whole.into()).etag();
    xml(format!("<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"))
}

/// The text of the first element of that name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn read(contents: &Contents, key: &str, headers: &HeaderMap, with_body: bool) -> Reply {
    let object = contents.objects.get(key).ok_or(NO_SUCH_KEY)?;
    let (etag, size) = (object.etag(), object.bytes.len());
    let header_text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if header_text(header::IF_MATCH).is_some_and(|wanted| wanted != "*" && wanted != etag) {
        return Err(refuse(412, "PreconditionFailed", "the ETag is another"));
    }
    if header_text(header::IF_NONE_MATCH).is_some_and(|known| known == "*" || known == etag) {
        return empty(304);
    }
    let mut reply = Response::builder()
        .header(header::ETAG, etag)
        .header(GENERATION, object.generation)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::LAST_MODIFIED, object.modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    let mut bytes = object.bytes.clone();
    if let Some(range) = header_text(header::RANGE) {
        let range = parse_range(range, size).ok_or(refuse(416, "InvalidRange", "outside the object"))?;
        reply = reply
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1));
        bytes = bytes.slice(range);
    }
    reply = reply.header(header::CONTENT_LENGTH, bytes.len());
    Ok(reply.body(if with_body { bytes.into() } else { Body::empty() }).expect("whole"))
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n`, cut at the end of the object; `None` where nothing of it is inside.
fn parse_range(text: &str, size: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        size.saturating_sub(last.parse().ok()?)..size
    } else {
        let end = if last.is_empty() { size } else { last.parse::<usize>().ok()?.saturating_add(1).min(size) };
        first.parse().ok()?..end
    };
    (range.start < range.end).then_some(range)
}

fn list(contents: &Contents, query: &Query) -> Reply {
    let prefix = query.get("prefix").unwrap_or("");
    let delimiter = query.get("delimiter").filter(|d| !d.is_empty());
    let after = query.get("continuation-token").or(query.get("start-after")).unwrap_or("");
    let page_keys = query.get("max-keys").and_then(|n| n.parse().ok()).unwrap_or(PAGE_KEYS).min(PAGE_KEYS);

    let (mut keys, mut folders, mut last) = (String::new(), Vec::<String>::new(), None);
    let (mut entries, mut more) = (0, false);
    for (key, object) in contents.objects.range(prefix.to_owned()..) {
        if !key.starts_with(prefix) {
            break;
        }
        let folder = delimiter.and_then(|d| key[prefix.len()..].find(d).map(|at| &key[..prefix.len() + at + d.len()]));
        // A page that ended with a folder goes on behind everything in that folder.
        let shown =
            key.as_str() <= after || folder.is_some_and(|f| f == after || folders.last().is_some_and(|l| l == f));
        if shown {
            continue;
        }
        if entries == page_keys {
            more = true;
            break;
        }
        entries += 1;
        last = Some(folder.unwrap_or(key).to_owned());
        match folder {
            Some(folder) => folders.push(folder.to_owned()),
            None => {
                let (size, etag) = (object.bytes.len(), object.etag());
                let time = object.modified.format("%Y-%m-%dT%H:%M:%S%.3fZ");
                let key = escape(key);
                write!(
                    keys,
                    "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>{time}</LastModified><ETag>{etag}</ETag></Contents>"
                )
                .expect("text grows");
            }
        }
    }
    let folders: String =
        folders.iter().map(|f| format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(f))).collect();
    let next = match (more, last) {
        (true, Some(last)) => format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&last)),
        _ => String::new(),
    };
    xml(format!("<ListBucketResult><IsTruncated>{more}</IsTruncated>{next}{keys}{folders}</ListBucketResult>"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The parameters behind the question mark, decoded.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Self(pairs.collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Undoes percent encoding; in a query a plus is a space.
fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                out.push(value);
                at += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}
