//! Ten thousand connections that want nothing: a gateway takes as many as it may, in bounded memory and files, and serves its machines.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use landfall_tests::disks;
use landfall_tests::landfall::Site;
use landfall_tests::service::{AgentHost, GatewayHost};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

const CONNECTIONS: usize = 10_000;
/// Hosts that they come from.
const ADDRESSES: usize = 100;
/// What a login shell gives to what it starts.
const FILES_OF_A_SHELL: u64 = 1024;
/// Files that this test needs beside the connections.
const OWN_FILES: u64 = 200;
/// Most connections of a gateway without a certificate (`Limits::default`), and files that it needs beside them.
const FILES_MAX: usize = 1024 + 200;
/// What so many connections may cost: some 100 KiB each.
const GROWTH_MAX_KIB: u64 = 128 << 10;
/// Who is sent away comes again after so long.
const AGAIN: Duration = Duration::from_secs(8);

/// Believes everything: it wants to be on a connection, and nothing of what is on it.
#[derive(Debug)]
struct Believes(Arc<CryptoProvider>);

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS as a gateway speaks it, without a certificate.
fn tls() -> TlsConnector {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let mut config =
        config.dangerous().with_custom_certificate_verifier(Arc::new(Believes(provider))).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config).into()
}

/// What the crowd has met.
#[derive(Default)]
struct Met {
    stop: AtomicBool,
    connected: AtomicUsize,
    handshakes: AtomicUsize,
    sent_away: AtomicUsize,
}

/// Reads until the other side has had enough.
async fn stay(mut stream: impl AsyncRead + Unpin) {
    while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
}

/// One that connects again and again: every other one says nothing at all, the rest do TLS and then say nothing.
async fn one(number: usize, gateway: SocketAddr, tls: TlsConnector, met: Arc<Met>) {
    let host = u8::try_from(number % ADDRESSES).unwrap();
    while !met.stop.load(Ordering::SeqCst) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, 0, host + 1), 0))).unwrap();
        if let Ok(stream) = socket.connect(gateway).await {
            met.connected.fetch_add(1, Ordering::SeqCst);
            hold(number, stream, &tls, &met).await;
            met.sent_away.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn hold(number: usize, stream: TcpStream, tls: &TlsConnector, met: &Met) {
    if number.is_multiple_of(2) {
        return stay(stream).await;
    }
    let name = ServerName::try_from("landfall-gateway").unwrap();
    if let Ok(stream) = tls.connect(name, stream).await {
        met.handshakes.fetch_add(1, Ordering::SeqCst);
        stay(stream).await;
    }
}

fn set_files(limit: u64) {
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: getrlimit(Resource::Nofile).maximum }).unwrap();
}

/// Resident memory of a process, in KiB.
fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn open_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// How often the log says that it refused, by address and reason.
fn refusals(log: &str) -> HashMap<(String, String), usize> {
    let mut said = HashMap::new();
    for line in log.lines().filter(|line| line.contains("refused")) {
        let word = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=")).unwrap_or_default();
            rest.trim_start_matches('"').split(['"', ' ']).next().unwrap_or_default().to_owned()
        };
        let address = word("address").rsplit_once(':').map(|(host, _)| host.to_owned()).unwrap_or_default();
        *said.entry((address, word("reason"))).or_default() += 1;
    }
    said
}

#[test]
fn ten_thousand_connections_are_bounded_told_once_and_keep_no_machine_from_its_points() {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let crowd = CONNECTIONS.min(usize::try_from(hard.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX));
    if crowd < CONNECTIONS {
        eprintln!("only {crowd} connections: this machine allows a process {hard} open files");
    }
    let mut site = Site::with_vault();
    site.set_env("LANDFALL_LOG", "warn");
    site.set_env("NO_COLOR", "1");
    set_files(FILES_OF_A_SHELL.min(hard));
    let mut gateway = GatewayHost::started(&site, "gw");
    set_files(hard);
    let disk = site.disk("disk.img");
    disks::random(&disk, 1 << 20, 1);
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", disk.as_path())], "");
    host.enroll(&gateway);
    let agent = host.start();
    host.wait_for_points(2);

    let process = gateway.process().id();
    let before = resident_kib(process);
    let (start, met) = (Instant::now(), Arc::new(Met::default()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (to, tls) = (gateway.address().parse().unwrap(), tls());
    (0..crowd).for_each(|number| drop(runtime.spawn(one(number, to, tls.clone(), met.clone()))));
    let (mut files, mut most) = (0, 0);
    let mut look = || {
        (files, most) = (files.max(open_files(process)), most.max(resident_kib(process)));
        std::thread::sleep(Duration::from_millis(100));
    };
    while met.connected.load(Ordering::SeqCst) < crowd {
        look();
    }
    // All came. The machine that has its link goes on meanwhile.
    let points = site.point_count("web");
    while site.point_count("web") < points + 3 {
        look();
    }
    let handshakes = met.handshakes.load(Ordering::SeqCst);
    met.stop.store(true, Ordering::SeqCst);
    runtime.shutdown_background();
    let minutes = usize::try_from(start.elapsed().as_secs() / 60).unwrap() + 1;
    let sent_away = met.sent_away.load(Ordering::SeqCst);
    eprintln!(
        "{crowd} connections, {handshakes} handshakes, {sent_away} sent away, {} s; files {files}, memory {before} KiB, at most {most} KiB",
        start.elapsed().as_secs()
    );
    assert!(handshakes > 0 && sent_away > crowd / 2, "it was no flood: {handshakes} handshakes, {sent_away} sent away");
    assert!(files <= FILES_MAX, "{files} files were open");
    assert!(most < before + GROWTH_MAX_KIB, "memory grew from {before} to {most} KiB");
    // Whoever has no link yet gets one when they are gone.
    agent.kill();
    agent.finish();
    host.ship_until_taken();
    let log = gateway.stop().stderr;
    assert!(!log.contains("not accepted"), "it ran out of files");
    let said = refusals(&log);
    assert!(!said.is_empty(), "nothing is said of who was refused");
    for (who, times) in &said {
        assert!(*times <= minutes + 1, "{who:?} is told of {times} times in {minutes} minutes");
    }
    assert!(said.len() <= ADDRESSES * 3, "{} addresses and reasons are told of", said.len());
    site.assert_sound();
}
