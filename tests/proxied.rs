//! The store behind a proxy that wants a password, with TLS of an authority that only its owner knows; and what is said where that fails.
#![expect(clippy::expect_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use landfall_tests::landfall::{Ran, Site, exit};
use landfall_tests::peers::{Kind, Peer, dead_address};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::tls::TlsFront;
use landfall_tests::tunnel::Tunnel;
use landfall_tests::{disks, need};
use support::{MIB, Needles};

/// The store's name: only the proxy knows where that is.
const STORE: &str = "store.site.test";
/// As it stands in a file, and in a URL of the environment.
const CREDENTIALS: &str = "landfall:p@ss/word:42";
const CREDENTIALS_IN_URL: &str = "landfall:p%40ss%2Fword%3A42";

/// A store, TLS before it, and a proxy before that.
struct Behind {
    peer: Peer,
    front: TlsFront,
    proxy: Tunnel,
}

impl Behind {
    fn start(kind: Kind) -> Option<Self> {
        let peer = Peer::start(kind)?;
        let front = TlsFront::start(peer.address(), &[STORE, "127.0.0.1"]);
        let proxy = Self::proxy_to(&front);
        Some(Self { peer, front, proxy })
    }

    fn proxy_to(front: &TlsFront) -> Tunnel {
        let place = format!("{STORE}:{}", front.address().port());
        Tunnel::start(Some(CREDENTIALS), &[(&place, front.address())])
    }

    /// A site that knows the store's name, and neither the proxy nor the authority.
    fn site(&self) -> Site {
        let endpoint = format!("https://{STORE}:{}", self.front.address().port());
        let mut site = Site::at_url(self.peer.url("vault"), self.peer.env_by(&endpoint));
        site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
        site
    }

    /// A site whose environment says all that is needed.
    fn told_site(&self) -> Site {
        let mut site = self.site();
        site.set_env("HTTPS_PROXY", &self.proxy.url_as(CREDENTIALS_IN_URL));
        site.set_env("LANDFALL_CA_FILE", plain(&self.front.authority()));
        site
    }

    /// A file with the proxy's credentials.
    fn credentials(&self, text: &str) -> PathBuf {
        let file = self.front.folder().join("proxy");
        fs::write(&file, text).expect("own folder");
        file
    }

    /// Fails the test where something was asked for but the store, or a password was wrong.
    #[track_caller]
    fn assert_only_the_store_was_asked_for(&self) {
        let asked = self.proxy.asked();
        let place = format!("{STORE}:{}", self.front.address().port());
        assert!(asked.opened > 0 && asked.denied == 0, "{asked:?}");
        assert!(asked.targets.iter().all(|target| *target == place), "{asked:?}");
    }
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// The password, as it is, as URLs have it, and as headers have it.
fn password() -> Needles {
    let mut needles = Needles::default();
    needles.add("the proxy's password", b"p@ss/word:42");
    needles.add("the proxy's password in a URL", b"p%40ss%2Fword%3A42");
    needles.add("the proxy's password in a header", b"bGFuZGZhbGw6cEBzcy93b3JkOjQy");
    needles
}

/// Fails the test where a run printed the password.
#[track_caller]
fn assert_silent(ran: &Ran) {
    password().assert_not_in("stdout", ran.stdout.as_bytes());
    password().assert_not_in("stderr", ran.stderr.as_bytes());
}

#[test]
fn a_vault_behind_a_proxy_with_tls_of_an_own_authority_is_made_filled_and_read() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        let behind = need!(Behind::start(kind));
        let mut site = behind.told_site();
        site.set_env("LANDFALL_LOG", "trace");
        let disk = site.disk("disk.img");
        disks::random(&disk, 3 * MIB, 1);
        let made = site.try_create_vault();
        assert_eq!(made.code(), Some(exit::DONE), "{}", made.story());
        let point = site.try_replicate("web", &[("root", &disk)], &[]);
        point.json();
        site.assert_disk_is("web", "latest", "root", &disk);
        behind.assert_only_the_store_was_asked_for();
        // Everything is logged, and yet the password is nowhere.
        assert!(point.stderr.contains("TRACE") || point.stderr.contains("DEBUG"), "{}", point.story());
        assert_silent(&made);
        assert_silent(&point);
        password().assert_not_below(site.folder());

        // Nobody else knows the store: without its proxy it is not there.
        site.set_env("LANDFALL_LOG", "error");
        site.set_env("HTTPS_PROXY", "");
        site.gateway(&["points", "--machine", "web"]).assert_refused(exit::UNAVAILABLE, &[site.url()]);
    }
}

#[test]
fn a_gateway_reaches_its_store_as_its_configuration_says_and_not_as_the_environment_does() {
    let behind = need!(Behind::start(Kind::S3));
    // Commands have a proxy of their own; what the gateway sends comes by the other.
    let commands = Behind::proxy_to(&behind.front);
    let mut site = behind.site();
    site.set_env("HTTPS_PROXY", &commands.url_as(CREDENTIALS_IN_URL));
    site.set_env("LANDFALL_CA_FILE", plain(&behind.front.authority()));
    site.create_vault();
    site.set_env("LANDFALL_LOG", "trace");
    let section = format!(
        "[store]\nproxy = \"{}\"\nproxy_credentials_file = \"{}\"\nno_proxy = [\"other.site\"]\nca_files = [\"{}\"]",
        behind.proxy.url(),
        behind.credentials(CREDENTIALS).display(),
        behind.front.authority().display(),
    );
    let mut gateway = GatewayHost::new(&site, "gw", &section);
    let checked = gateway.command(&["gateway", "check-config"]);
    assert_eq!(checked.json()["proxy"], behind.proxy.url().as_str());
    assert!(behind.proxy.asked().targets.is_empty(), "check-config does nothing else");
    let before = commands.asked().opened;
    gateway.start();
    assert_eq!(commands.asked().opened, before, "the gateway went by the environment's proxy");
    let disk = site.disk("disk.img");
    disks::random(&disk, 3 * MIB, 1);
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", disk.as_path())], "");
    host.enroll(&gateway);
    host.ship();
    host.wait_for_points(1);
    site.assert_disk_is("web", "1", "root", &disk);
    behind.assert_only_the_store_was_asked_for();
    let status = gateway.command(&["status"]);
    let ended = gateway.stop();
    for ran in [checked, status, ended] {
        assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
        assert_silent(&ran);
    }
    password().assert_not_below(site.folder());
}

#[test]
fn a_store_of_an_unknown_authority_is_refused_at_once_and_the_option_that_helps_is_named() {
    for kind in [Kind::S3, Kind::Azure, Kind::Gcs] {
        let behind = need!(Behind::start(kind));
        let mut site = behind.told_site();
        site.set_env("LANDFALL_CA_FILE", "");
        site.set_env("LANDFALL_STORE_RETRY_SECONDS", "600");
        let ran = site.try_create_vault();
        ran.assert_refused(exit::USAGE, &[site.url(), "LANDFALL_CA_FILE", "ca_files", "UnknownIssuer"]);
        assert_silent(&ran);
    }
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let peer = need!(Peer::start(Kind::S3));
    let front = TlsFront::start(peer.address(), &["other.site.test"]);
    let proxy = Behind::proxy_to(&front);
    let behind = Behind { peer, front, proxy };
    let site = behind.told_site();
    site.try_create_vault().assert_refused(exit::USAGE, &[site.url(), "not the store's"]);
}

#[test]
fn a_proxy_that_wants_other_credentials_is_told_and_not_asked_for_minutes() {
    let behind = need!(Behind::start(Kind::S3));
    let mut site = behind.told_site();
    site.create_vault();
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "600");
    for (n, wrong) in ["", "landfall:no-password@", "other:p%40ss%2Fword%3A42@"].into_iter().enumerate() {
        site.set_env("HTTPS_PROXY", &behind.proxy.url().replace("http://", &format!("http://{wrong}")));
        let ran = site.gateway(&["vault", "info"]);
        ran.assert_refused(
            exit::USAGE,
            &[&behind.proxy.url(), "user and password", "proxy_credentials_file", "HTTPS_PROXY"],
        );
        assert_silent(&ran);
        assert!(!ran.stderr.contains("no-password"), "{}", ran.story());
        assert_eq!(behind.proxy.asked().denied, n + 1, "it is asked once");
    }
    // The same of a gateway, whose credentials stand in a file.
    let file = behind.credentials("landfall:no-password");
    let section = format!(
        "[store]\nproxy = \"{}\"\nproxy_credentials_file = \"{}\"\nca_files = [\"{}\"]",
        behind.proxy.url(),
        file.display(),
        behind.front.authority().display(),
    );
    let gateway = GatewayHost::new(&site, "gw", &section);
    let ran = gateway.command(&["gateway", "run"]);
    ran.assert_refused(exit::USAGE, &[&behind.proxy.url(), "proxy_credentials_file"]);
    assert!(!ran.stderr.contains("no-password"), "{}", ran.story());
}

#[test]
fn a_proxy_that_is_down_or_does_not_reach_the_store_is_worth_a_retry_and_named() {
    let behind = need!(Behind::start(Kind::S3));
    let mut site = behind.told_site();
    let (dead, _reserved) = dead_address();
    site.set_env("HTTPS_PROXY", &format!("http://{CREDENTIALS_IN_URL}@{dead}"));
    let down = site.try_create_vault();
    down.assert_refused(exit::UNAVAILABLE, &[&format!("the proxy http://{dead}"), "does not answer", site.url()]);
    let narrow = Tunnel::start(Some(CREDENTIALS), &[]);
    site.set_env("HTTPS_PROXY", &narrow.url_as(CREDENTIALS_IN_URL));
    let refused = site.try_create_vault();
    refused.assert_refused(exit::UNAVAILABLE, &[&narrow.url(), "does not connect to the store", site.url()]);
    assert!(narrow.asked().targets.len() > 1, "it may be mended: it is tried again");
    assert_silent(&down);
    assert_silent(&refused);
}

#[test]
fn hosts_that_are_not_to_be_proxied_are_reached_directly() {
    let behind = need!(Behind::start(Kind::S3));
    let endpoint = format!("https://{}", behind.front.address());
    let mut site = Site::at_url(behind.peer.url("vault"), behind.peer.env_by(&endpoint));
    site.set_env("LANDFALL_CA_FILE", plain(&behind.front.authority()));
    site.set_env("LANDFALL_STORE_RETRY_SECONDS", "1");
    site.set_env("HTTPS_PROXY", &behind.proxy.url_as(CREDENTIALS_IN_URL));
    site.try_create_vault().assert_refused(exit::UNAVAILABLE, &[&behind.proxy.url()]);
    let asked = behind.proxy.asked().targets.len();
    site.set_env("NO_PROXY", "other.site,127.0.0.0/8");
    site.create_vault();
    site.set_env("NO_PROXY", "");
    let section = format!("[store]\nproxy = \"{}\"\nno_proxy = [\"127.0.0.1\"]", behind.proxy.url());
    let mut gateway = GatewayHost::new(&site, "gw", &section);
    gateway.start();
    assert_eq!(
        behind.proxy.asked().targets.len(),
        asked,
        "the proxy was asked for a host that it must not be asked for"
    );
    gateway.kill();
}

#[test]
fn a_proxy_may_be_reached_by_tls_and_a_file_may_hold_several_authorities() {
    let behind = need!(Behind::start(Kind::S3));
    let before =
        TlsFront::start(behind.proxy.url().trim_start_matches("http://").parse().expect("an address"), &["127.0.0.1"]);
    let both = behind.front.folder().join("both.pem");
    let pem = |front: &TlsFront| fs::read_to_string(front.authority()).expect("own folder");
    fs::write(&both, format!("# ours\n{}\n{}", pem(&behind.front), pem(&before))).expect("own folder");
    let mut site = behind.told_site();
    site.set_env("HTTPS_PROXY", &format!("https://{CREDENTIALS_IN_URL}@{}", before.address()));
    site.try_create_vault().assert_refused(exit::USAGE, &["not trusted here", "LANDFALL_CA_FILE"]);
    // Both authorities have one name, as one has that was given a new key.
    site.set_env("LANDFALL_CA_FILE", plain(&both));
    site.create_vault();
    behind.assert_only_the_store_was_asked_for();
}

/// What a cloud gives its machines as credentials is not to come by a proxy.
#[test]
fn a_proxy_is_not_asked_for_the_credentials_of_a_machine() {
    let behind = need!(Behind::start(Kind::S3));
    let site = behind.told_site();
    site.create_vault();
    let mut stranger = Site::at_url(site.url().to_owned(), Vec::new());
    stranger.set_env("AWS_REGION", "us-east-1");
    stranger.set_env("LANDFALL_STORE_RETRY_SECONDS", "0");
    stranger.set_env("LANDFALL_SITE_KEY", plain(&site.site_key()));
    fs::copy(site.site_key(), stranger.site_key()).expect("own folder");
    let section = format!(
        "[store]\nproxy = \"{}\"\nproxy_credentials_file = \"{}\"",
        behind.proxy.url(),
        behind.credentials(CREDENTIALS).display()
    );
    let gateway = GatewayHost::new(&stranger, "gw", &section);
    let before = behind.proxy.asked().targets.len();
    // It goes on trying: nobody may have given it its credentials yet.
    let config = gateway.folder().join("gateway.toml");
    let running = stranger.start(&["gateway", "run", "--config", plain(&config)]);
    std::thread::sleep(std::time::Duration::from_secs(6));
    running.interrupt();
    let ran = running.finish();
    assert_eq!(ran.stdout, "", "it listens without a store\n{}", ran.story());
    let asked = behind.proxy.asked().targets.split_off(before);
    assert!(!asked.iter().any(|target| target.contains("169.254.")), "{asked:?}\n{}", ran.story());
}

#[test]
fn check_config_reads_the_files_of_the_store_section() {
    let site = Site::with_vault();
    let file = site.folder().join("file");
    let path = plain(&file);
    for (key, text) in [
        ("ca_files", None),
        ("ca_files", Some("landfall:hunter22")),
        ("proxy_credentials_file", None),
        ("proxy_credentials_file", Some("hunter22 without a user\n")),
    ] {
        let _ = fs::remove_file(&file);
        if let Some(text) = text {
            fs::write(&file, text).expect("own folder");
        }
        let said = match key {
            "ca_files" => format!("[store]\nca_files = [\"{path}\"]"),
            _ => format!("[store]\nproxy = \"http://proxy:3128\"\n{key} = \"{path}\""),
        };
        let gateway = GatewayHost::new(&site, &format!("gw-{key}-{}", text.is_some()), &said);
        let ran = gateway.command(&["gateway", "check-config"]);
        ran.assert_refused(exit::USAGE, &[path, key]);
        assert!(!ran.stderr.contains("hunter22"), "{}", ran.story());
    }
    let mut told = site;
    told.set_env("HTTPS_PROXY", "http://user:se@cret@proxy:3128");
    let ran = told.run(&["machines", "--vault", "s3://bucket/vault", "--site-key", plain(&told.site_key())]);
    ran.assert_refused(exit::USAGE, &["HTTPS_PROXY", "%XX"]);
    assert!(!ran.stderr.contains("cret"), "{}", ran.story());
}
