//! Stores to test against, each started for one test on a free port of 127.0.0.1 and stopped when the test ends.
//!
//! | peer | what runs | URL |
//! |---|---|---|
//! | [`Kind::Local`] | nothing: a directory, written with fsync | `file:///tmp/..` |
//! | [`Kind::S3`] | moto (PyPI), a process | `s3://landfall/..` |
//! | [`Kind::Azure`] | Azurite (npm), a process | `az://landfall/..` |
//! | [`Kind::Gcs`] | [`crate::gcs`], a thread of the test | `gs://landfall/..` |
//!
//! All hold their objects in memory or in the test's own folder. The credentials are public constants; they are given in the
//! environment of the binary, as an administrator would, so nothing ever asks for a cloud machine's metadata address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use tempfile::TempDir;

use crate::gcs::GcsEmulator;
use crate::{http, tools};

/// The bucket or container that each peer has.
pub const BUCKET: &str = "landfall";
/// Azurite's account and key: published constants, the same on every machine.
const AZURITE_ACCOUNT: &str = "devstoreaccount1";
const AZURITE_KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
/// An account SAS made from the key above (services b, resource types sco, permissions rwdlac, until 2099): a container is
/// made with it, because `object_store` makes none and signing a request by hand would need a MAC here.
const AZURITE_SAS: &str = "sv=2021-08-06&ss=b&srt=sco&sp=rwdlac&se=2099-12-31T00%3A00%3A00Z&sig=9PrJXpkg0uDpMTlhcSkxwDci7Jbwk9kdy%2FVbKUT1vtg%3D";
/// Below the range that the kernel gives out by itself, so that nobody else on this machine gets one by accident.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Starting takes a second or two; a machine under load may take many times that.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Servers that may fail to start before the test does: each try takes another port.
const START_TRIES: u32 = 3;

/// The kinds of store that a vault can live in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Local,
    /// moto, as S3.
    S3,
    /// Azurite, as Azure Blob Storage.
    Azure,
    /// Our emulator, as Google Cloud Storage.
    Gcs,
}

/// A running store. Ends when dropped.
#[derive(Debug)]
pub struct Peer {
    kind: Kind,
    runs: Runs,
}

#[derive(Debug)]
enum Runs {
    Directory(TempDir),
    Process(Process),
    Thread(GcsEmulator),
}

impl Peer {
    /// Starts a store, or says that the test is skipped where it is not installed.
    ///
    /// # Panics
    /// If it is installed and does not start; if it is not installed and `CI` is set.
    pub fn start(kind: Kind) -> Option<Self> {
        let runs = match kind {
            Kind::Local => Runs::Directory(tempfile::tempdir().expect("a temporary folder")),
            Kind::S3 => Runs::Process(moto()?),
            Kind::Azure => Runs::Process(azurite()?),
            Kind::Gcs => Runs::Thread(GcsEmulator::start(BUCKET)),
        };
        Some(Self { kind, runs })
    }

    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it listens.
    ///
    /// # Panics
    /// For the local directory, which listens nowhere.
    pub fn address(&self) -> SocketAddr {
        match &self.runs {
            Runs::Directory(_) => panic!("a directory has no address"),
            Runs::Process(process) => process.address,
            Runs::Thread(emulator) => emulator.address(),
        }
    }

    /// The vault URL for a prefix in this store.
    pub fn url(&self, prefix: &str) -> String {
        match &self.runs {
            Runs::Directory(folder) => format!("file://{}", folder.path().join(prefix).display()),
            Runs::Process(_) | Runs::Thread(_) => format!("{}://{BUCKET}/{prefix}", self.scheme()),
        }
    }

    fn scheme(&self) -> &'static str {
        match self.kind {
            Kind::Local => "file",
            Kind::S3 => "s3",
            Kind::Azure => "az",
            Kind::Gcs => "gs",
        }
    }

    /// The environment that the `landfall` binary needs to reach it.
    pub fn env(&self) -> Vec<(String, String)> {
        match self.kind {
            Kind::Local => Vec::new(),
            Kind::S3 | Kind::Azure | Kind::Gcs => self.env_at(self.address()),
        }
    }

    /// The same, but reached at another address: a [`crate::proxy::Proxy`] before it, or a port where nobody listens.
    pub fn env_at(&self, at: SocketAddr) -> Vec<(String, String)> {
        self.env_by(&format!("http://{at}"))
    }

    /// The same, but reached at `http://HOST:PORT` or `https://HOST:PORT`.
    pub fn env_by(&self, at: &str) -> Vec<(String, String)> {
        let mut pairs: Vec<(&str, String)> = match self.kind {
            Kind::Local => Vec::new(),
            Kind::S3 => vec![
                ("AWS_ENDPOINT", at.to_owned()),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_ACCESS_KEY_ID", "test".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "testtest".to_owned()),
            ],
            Kind::Azure => vec![
                ("AZURE_STORAGE_ENDPOINT", format!("{at}/{AZURITE_ACCOUNT}")),
                ("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT.to_owned()),
                ("AZURE_STORAGE_ACCOUNT_KEY", AZURITE_KEY.to_owned()),
            ],
            Kind::Gcs => vec![("GOOGLE_SERVICE_ACCOUNT_KEY", google_key(at))],
        };
        if at.starts_with("http://") {
            let allowed = ["AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP"];
            pairs.extend(allowed.map(|name| (name, "true".to_owned())));
        }
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// A plain client of it, with the retries that `object_store` makes by default.
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        match &self.runs {
            Runs::Directory(folder) => {
                Arc::new(LocalFileSystem::new_with_prefix(folder.path()).expect("the folder exists").with_fsync(true))
            }
            Runs::Process(_) | Runs::Thread(_) => self.client(self.address(), RetryConfig::default(), None),
        }
    }

    /// A client that reaches it at another address, tries once, and waits no longer than `patience` for an answer.
    ///
    /// # Panics
    /// For the local directory.
    pub fn impatient_client(&self, at: SocketAddr, patience: Duration) -> Arc<dyn ObjectStore> {
        self.client(at, RetryConfig { max_retries: 0, ..RetryConfig::default() }, Some(patience))
    }

    /// A client that reaches it at another address, with the default retries.
    ///
    /// # Panics
    /// For the local directory.
    pub fn client_at(&self, at: SocketAddr) -> Arc<dyn ObjectStore> {
        self.client(at, RetryConfig::default(), None)
    }

    fn client(&self, at: SocketAddr, retry: RetryConfig, patience: Option<Duration>) -> Arc<dyn ObjectStore> {
        let mut options = ClientOptions::new().with_allow_http(true);
        if let Some(patience) = patience {
            options = options.with_timeout(patience);
        }
        match self.kind {
            Kind::Local => panic!("a directory has no clients"),
            Kind::S3 => Arc::new(
                AmazonS3Builder::new()
                    .with_endpoint(format!("http://{at}"))
                    .with_bucket_name(BUCKET)
                    .with_region("us-east-1")
                    .with_access_key_id("test")
                    .with_secret_access_key("testtest")
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .expect("S3 client"),
            ),
            Kind::Azure => Arc::new(
                MicrosoftAzureBuilder::new()
                    .with_endpoint(format!("http://{at}/{AZURITE_ACCOUNT}"))
                    .with_container_name(BUCKET)
                    .with_account(AZURITE_ACCOUNT)
                    .with_access_key(AZURITE_KEY)
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .expect("Azure client"),
            ),
            Kind::Gcs => Arc::new(
                GoogleCloudStorageBuilder::new()
                    .with_service_account_key(google_key(&format!("http://{at}")))
                    .with_bucket_name(BUCKET)
                    .with_client_options(options)
                    .with_retry(retry)
                    .build()
                    .expect("Google client"),
            ),
        }
    }
}

/// A service account that needs no token: `object_store` understands these two extra fields.
fn google_key(at: &str) -> String {
    format!(r#"{{"gcs_base_url":"{at}","disable_oauth":true,"client_email":"","private_key":"","private_key_id":""}}"#)
}

/// An address of this machine where nobody listens, and nobody will while the guard lives.
pub fn dead_address() -> (SocketAddr, impl Drop) {
    let reserved = Reserved::take();
    (reserved.address, reserved)
}

fn moto() -> Option<Process> {
    // Not any moto_server of the machine: ours makes its puts atomic.
    let program = tools::peers_folder().join("moto_server");
    if !program.is_file() {
        tools::missing("moto_server");
        return None;
    }
    let process = Process::start("moto_server", |at| {
        let mut command = Command::new(&program);
        command.args(["-H", "127.0.0.1", "-p", &at.port().to_string()]);
        // Whatever name it is called by, no part of that is a bucket's.
        command.env("S3_IGNORE_SUBDOMAIN_BUCKETNAME", "true");
        command
    });
    process.must(200, "PUT", &format!("/{BUCKET}"));
    Some(process)
}

fn azurite() -> Option<Process> {
    let main = tools::peers_folder().join("node/node_modules/azurite/dist/src/blob/main.js");
    let (Some(node), true) = (tools::find("node"), main.is_file()) else {
        tools::missing("azurite");
        return None;
    };
    let process = Process::start("azurite", |at| {
        let mut command = Command::new(&node);
        command.arg(&main).args(["--blobHost", "127.0.0.1", "--blobPort", &at.port().to_string()]);
        // Whatever name it is called by, no part of that is an account's.
        command.arg("--disableProductStyleUrl");
        command.args(["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]);
        command
    });
    process.must(201, "PUT", &format!("/{AZURITE_ACCOUNT}/{BUCKET}?restype=container&{AZURITE_SAS}"));
    Some(process)
}

/// A port that no other test takes while this lives: the mark is a UDP socket on the same number, so a dead test leaves no lock.
#[derive(Debug)]
struct Reserved {
    address: SocketAddr,
    _mark: UdpSocket,
}

impl Drop for Reserved {
    fn drop(&mut self) {}
}

impl Reserved {
    fn take() -> Self {
        let (first, width) = (u32::from(PORTS.start), u32::from(PORTS.end - PORTS.start));
        let spread = std::process::id().wrapping_mul(37);
        for offset in 0..width {
            let port = u16::try_from(first + (spread + offset * 101) % width).expect("ports fit");
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if let (Ok(mark), Ok(_free)) = (UdpSocket::bind(address), TcpListener::bind(address)) {
                return Self { address, _mark: mark };
            }
        }
        panic!("no free port on 127.0.0.1 in {PORTS:?}");
    }
}

/// A server that runs as a child of the test.
#[derive(Debug)]
struct Process {
    name: &'static str,
    child: Child,
    address: SocketAddr,
    folder: TempDir,
    _reserved: Reserved,
}

impl Process {
    fn start(name: &'static str, command: impl Fn(SocketAddr) -> Command) -> Self {
        let mut why = String::new();
        for _ in 0..START_TRIES {
            let reserved = Reserved::take();
            let folder = tempfile::tempdir().expect("a temporary folder");
            let log = std::fs::File::create(folder.path().join("log")).expect("a log file");
            let mut command = command(reserved.address);
            command.current_dir(folder.path()).stdin(Stdio::null());
            command.stdout(log.try_clone().expect("a second handle")).stderr(log);
            let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
            let mut process = Self { name, child, address: reserved.address, folder, _reserved: reserved };
            match process.wait_ready() {
                Ok(()) => return process,
                Err(error) => why = error,
            }
        }
        panic!("{name} does not start: {why}");
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended with {status}\n{}", self.log()));
            }
            if http::request(self.address, "GET", "/").is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(format!("it does not answer at {} within {START_LIMIT:?}\n{}", self.address, self.log()))
    }

    fn must(&self, status: u16, method: &str, target: &str) {
        let answer = http::request(self.address, method, target);
        let answer = answer.unwrap_or_else(|error| panic!("{}: {method} {target}: {error}\n{}", self.name, self.log()));
        assert_eq!(answer.status, status, "{}: {method} {target} answered {}", self.name, answer.text);
    }

    fn log(&self) -> String {
        let file: PathBuf = self.folder.path().join("log");
        std::fs::read_to_string(file).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Exactly this child; what it held was in memory or in its folder, which goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
