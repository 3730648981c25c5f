//! The way to a store: through a proxy, and with certificate authorities of one's own.
//!
//! Two places say it: a section `[store]` of a gateway's configuration ([`StoreOptions`]), and, for every command, the environment:
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` as other programs read them, and [`CA_FILE`]. What the options say
//! of a proxy replaces what the environment says; certificate authorities add up, and the system's are always among them.
//!
//! # Secrets
//! The proxy's password comes from a file of its own (or stands in the environment's URL). It goes into the HTTP client and nowhere else:
//! no error, log or `Debug` has it.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use landfall_model::{Error, ErrorKind, Result};
use object_store::aws::AmazonS3Builder;
use object_store::{Certificate, ClientOptions};

/// Names a PEM file of certificate authorities that are trusted besides the system's, in every command.
const CA_FILE: &str = "LANDFALL_CA_FILE";
/// The bundles of whole systems have a quarter of that.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;
const CREDENTIALS_BYTES_MAX: u64 = 4 << 10;
/// Where clouds give their machines credentials: a proxy cannot reach it, and must not be asked for what comes from there.
const NEVER_PROXIED: &str = "169.254.0.0/16,fd00:ec2::/32,metadata.google.internal";

/// How a store is reached. The default is what the environment says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreOptions {
    /// URL of an HTTP proxy, without a password.
    pub proxy: Option<String>,
    /// A file whose first line is `user:password` for the proxy.
    pub proxy_credentials_file: Option<PathBuf>,
    /// Hosts that are reached without the proxy: names (with all below them), addresses, networks.
    pub no_proxy: Vec<String>,
    /// PEM files of certificate authorities that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
}

impl StoreOptions {
    /// Checks the URL of a proxy.
    ///
    /// # Errors
    /// What to write instead; never what was written, where that may be a password.
    pub fn check_proxy(url: &str) -> std::result::Result<(), String> {
        match proxy_place(url)? {
            (_, false) => Ok(()),
            (_, true) => Err("the URL has a user or password in it, which do not belong here: write user:password into a file, name that with proxy_credentials_file, and leave http://HOST:PORT".to_owned()),
        }
    }

    /// Checks one host that is not to be proxied.
    ///
    /// # Errors
    /// What to write instead.
    pub fn check_no_proxy(host: &str) -> std::result::Result<(), String> {
        let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        let (address, bits) = host.split_once('/').unwrap_or((host, "0"));
        let is_network = address.parse::<IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| bits <= 128);
        if !is_name && !is_network && host != "*" {
            return Err(format!(
                "{host:?} is no host: write a name (\"store.site\", with all below it), an address or a network (\"10.0.0.0/8\"), without a port"
            ));
        }
        Ok(())
    }

    /// The HTTP client's options with all of this in them, and the name of the proxy for errors.
    ///
    /// # Errors
    /// `Usage` where a file is missing or is not what it should be, naming it; never with what is in it.
    pub(crate) fn apply(&self, client: ClientOptions) -> Result<(ClientOptions, Option<String>)> {
        let (mut client, proxy) = match &self.proxy {
            Some(proxy) => self.through(proxy, client)?,
            None => (client, proxy_of_environment(|name| std::env::var(name).ok())?),
        };
        let named = std::env::var_os(CA_FILE).filter(|file| !file.is_empty()).map(PathBuf::from);
        let mut all = self.authorities()?;
        all.extend(named.iter().map(|file| certificates(file, CA_FILE)).collect::<Result<Vec<_>>>()?.concat());
        for certificate in all {
            client = client.with_root_certificate(certificate);
        }
        Ok((client, proxy))
    }

    /// Checks all that is said here, for a store that needs none of it.
    ///
    /// # Errors
    /// As for [`Self::apply`].
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(proxy) = &self.proxy {
            self.through(proxy, ClientOptions::new())?;
        }
        self.authorities().map(|_| ())
    }

    fn through(&self, proxy: &str, client: ClientOptions) -> Result<(ClientOptions, Option<String>)> {
        Self::check_proxy(proxy).map_err(|why| Error::new(ErrorKind::Usage, why))?;
        let user = self.proxy_credentials_file.as_deref().map(credentials).transpose()?.unwrap_or_default();
        let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", proxy));
        let except: Vec<&str> = self.no_proxy.iter().map(String::as_str).chain([NEVER_PROXIED]).collect();
        let client = client.with_proxy_url(format!("{scheme}://{user}{rest}")).with_proxy_excludes(except.join(","));
        Ok((client, Some(proxy.to_owned())))
    }

    fn authorities(&self) -> Result<Vec<Certificate>> {
        let each = self.ca_files.iter().map(|file| certificates(file, "ca_files"));
        Ok(each.collect::<Result<Vec<_>>>()?.concat())
    }
}

/// What stands in the way of a request, as the HTTP client tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Obstacle {
    /// The proxy wants a user and password, or others.
    ProxyDenies,
    /// Nobody listens at the proxy's address.
    ProxyDown,
    /// The proxy does not connect to the store.
    ProxyRefuses,
    /// The store's, or the proxy's, certificate is of an authority that is not known here, or known by another key.
    UnknownAuthority,
    /// The certificate is for another name, or is broken.
    WrongCertificate,
}

impl Obstacle {
    /// Finds it in an error and its causes: the client has no types for them that are public.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let has = |what| text.contains(what);
        // A proxy may itself be reached by TLS: what is wrong with its certificate is not that it is down.
        let certificate = has("invalid peer certificate: ");
        if has("proxy authorization required") || has("non-2xx status code: 407") {
            Some(Self::ProxyDenies)
        } else if certificate && (has("UnknownIssuer") || has("BadSignature")) {
            Some(Self::UnknownAuthority)
        } else if certificate && !["xpired", "not valid yet", "NotValidYet"].into_iter().any(has) {
            Some(Self::WrongCertificate)
        } else if has("tunnel error: failed to create underlying connection") {
            Some(Self::ProxyDown)
        } else if has("tunnel error: ") {
            Some(Self::ProxyRefuses)
        } else {
            None
        }
    }

    /// Whether it may go away by itself.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::ProxyDown | Self::ProxyRefuses => ErrorKind::Unavailable,
            Self::ProxyDenies | Self::UnknownAuthority | Self::WrongCertificate => ErrorKind::Usage,
        }
    }

    /// What it is and what to do.
    pub(crate) fn advice(self, proxy: Option<&str>) -> String {
        let proxy = proxy.map_or_else(|| "the proxy".to_owned(), |proxy| format!("the proxy {proxy}"));
        match self {
            Self::ProxyDenies => format!(
                "{proxy} wants a user and password, or others: give them in proxy_credentials_file (in [store] of gateway.toml) or in HTTPS_PROXY"
            ),
            Self::ProxyDown => format!("{proxy} does not answer; start it, or correct its address"),
            Self::ProxyRefuses => format!("{proxy} does not connect to the store; see what it allows, and its log"),
            Self::UnknownAuthority => format!(
                "the certificate that was shown is of an authority that is not trusted here; if it is your own, or that of a proxy that looks into TLS, name its PEM file in {CA_FILE} or in ca_files (in [store] of gateway.toml)"
            ),
            Self::WrongCertificate => {
                "the certificate that was shown is not the store's; check the endpoint, and the certificate".to_owned()
            }
        }
    }
}

/// The proxy of the environment, for errors; the HTTP client reads these variables itself, and ignores what it does not understand.
fn proxy_of_environment(read: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
    for names in [["HTTPS_PROXY", "https_proxy"], ["ALL_PROXY", "all_proxy"]] {
        // As the client does: the first that is set counts, and an empty one says no proxy.
        let Some((name, value)) = names.into_iter().find_map(|n| Some((n, read(n)?))) else { continue };
        if !value.is_empty() {
            let place = proxy_place(&value).map_err(|why| Error::new(ErrorKind::Usage, format!("{name}: {why}")))?;
            return Ok(Some(place.0));
        }
    }
    Ok(None)
}

/// The URL of a proxy without what may be a password, and whether there was one.
fn proxy_place(url: &str) -> std::result::Result<(String, bool), String> {
    let wrong = || {
        "this is no URL of a proxy: write http://HOST:PORT (characters that are not letters or digits in a user or password as %XX)".to_owned()
    };
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
    let user_is_plain = user.is_none_or(|u| !u.contains(|c: char| !c.is_ascii_graphic() || "/?#@[]\\".contains(c)));
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, port)| (host, port.strip_prefix(':'))).ok_or_else(wrong)?,
        None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
    };
    let host_is_plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    let port_is_one = port.is_none_or(|port| port.parse::<u16>().is_ok());
    if !matches!(scheme, "http" | "https") || !user_is_plain || !host_is_plain || !port_is_one {
        return Err(wrong());
    }
    Ok((format!("{scheme}://{place}"), user.is_some()))
}

/// `user:password@` as a URL has it, of the first line of a file.
fn credentials(file: &Path) -> Result<String> {
    let bytes = read(file, CREDENTIALS_BYTES_MAX, "proxy_credentials_file")?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let colon = line.iter().position(|byte| *byte == b':').filter(|at| *at > 0);
    let Some((user, password)) = colon.map(|at| (&line[..at], &line[at + 1..])) else {
        let why = format!("{} (proxy_credentials_file): its first line must be user:password", file.display());
        return Err(Error::new(ErrorKind::Usage, why));
    };
    Ok(format!("{}:{}@", percent(user), percent(password)))
}

/// Bytes as they stand in any part of a URL.
fn percent(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// The certificates of a PEM file: at least one.
fn certificates(file: &Path, said_by: &str) -> Result<Vec<Certificate>> {
    let pem = read(file, CA_FILE_BYTES_MAX, said_by)?;
    let wrong = |why: &str| {
        let what = format!("{} ({said_by}): {why}; name a file of certificates in PEM", file.display());
        Error::new(ErrorKind::Usage, what)
    };
    let found = Certificate::from_pem_bundle(&pem).map_err(|_| wrong("it is not PEM"))?;
    if found.is_empty() {
        return Err(wrong("there is no certificate in it"));
    }
    // Only a client reads what is in a certificate: one that is never used tells whether that works.
    let options = found.iter().cloned().fold(ClientOptions::new(), ClientOptions::with_root_certificate);
    let client = AmazonS3Builder::new().with_bucket_name("none").with_client_options(options).build();
    client.map_err(|_| wrong("a certificate in it is damaged, or is none of an authority"))?;
    Ok(found)
}

/// A small file whole.
fn read(file: &Path, bytes_max: u64, said_by: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let done = File::open(file).and_then(|open| open.take(bytes_max + 1).read_to_end(&mut bytes));
    done.map_err(|e| {
        let why = format!("cannot read {} ({said_by}): make it readable, or correct the path", file.display());
        Error::with_source(ErrorKind::Usage, why, e)
    })?;
    if bytes.len() as u64 > bytes_max {
        let why = format!("{} ({said_by}) has more than {bytes_max} bytes: it is something else", file.display());
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url_without_a_password_and_no_error_repeats_one() {
        for good in
            ["http://proxy.site:3128", "https://proxy.site", "http://10.0.0.1:80/", "http://[fd00::1]:3128", "proxy:1"]
        {
            StoreOptions::check_proxy(good).expect(good);
        }
        for bad in [
            "",
            "http://",
            "socks5://p:1",
            "http://p:port",
            "http://p:99999",
            "http://p:1/path",
            "http://p q:1",
            "http://[fd00::1:3128",
            "http://user:se!cret@p:1",
            "http://user:secret@p:1",
            "http://user:sec/ret@p:1",
            "http://user:sec@ret@p:1",
        ] {
            let why = StoreOptions::check_proxy(bad).expect_err(bad);
            assert!(!why.contains("cret") && !why.contains("sec/") && !why.contains("@ret"), "{bad}: {why}");
            assert!(why.contains("http://HOST:PORT"), "{bad}: {why}");
        }
    }

    #[test]
    fn a_host_without_proxy_is_a_name_an_address_or_a_network() {
        for good in ["store.site", ".site", "10.0.0.1", "10.0.0.0/8", "fd00::/8", "::1", "*", "localhost"] {
            StoreOptions::check_no_proxy(good).expect(good);
        }
        for bad in
            ["", "*.site", "store.site:9000", "http://store.site", "a,b", "a b", "10.0.0.0/x", "10.0.0.1:80", "store/8"]
        {
            let why = StoreOptions::check_no_proxy(bad).expect_err(bad);
            assert!(why.contains("write a name"), "{bad}: {why}");
        }
    }

    #[test]
    fn the_environment_names_the_proxy_and_what_would_be_ignored_is_refused() {
        let proxy = |pairs: &[(&str, &str)]| {
            proxy_of_environment(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(proxy(&[]).expect("none"), None);
        assert_eq!(proxy(&[("HTTPS_PROXY", "")]).expect("none"), None);
        let full = [("https_proxy", "http://user:secr%40et@proxy:3128/"), ("ALL_PROXY", "http://other:1")];
        assert_eq!(proxy(&full).expect("one").as_deref(), Some("http://proxy:3128"));
        assert_eq!(proxy(&[("ALL_PROXY", "proxy:1")]).expect("one").as_deref(), Some("http://proxy:1"));
        for bad in ["http://user:secr@et@proxy:1", "socks5://secret:secret@proxy:1", "http://user:secret@:1"] {
            let error = proxy(&[("HTTPS_PROXY", bad)]).expect_err(bad).to_string();
            assert!(error.starts_with("HTTPS_PROXY: ") && !error.contains("secr"), "{error}");
        }
    }

    #[test]
    fn what_may_go_away_by_itself_is_told_from_what_does_not() {
        let kind = |text| Obstacle::of(text).map(Obstacle::kind);
        for (text, wanted) in [
            ("invalid peer certificate: certificate expired: verification time 2", None),
            ("invalid peer certificate: certificate not valid yet: verification time 1", None),
            ("tcp connect error: Connection refused", None),
            ("invalid peer certificate: BadSignature", Some(ErrorKind::Usage)),
            ("Server returned non-2xx status code: 407 Proxy Authentication Required: ", Some(ErrorKind::Usage)),
            ("tunnel error: unsuccessful", Some(ErrorKind::Unavailable)),
        ] {
            assert_eq!(kind(text), wanted, "{text}");
        }
    }

    #[test]
    fn credentials_are_the_first_line_of_a_file_and_no_error_repeats_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("proxy");
        let read = |text: &[u8]| {
            std::fs::write(&file, text).expect("own folder");
            credentials(&file)
        };
        assert_eq!(read(b"user:pa:ss@w/rd \r\nmore\n").expect("good"), "user:pa%3Ass%40w%2Frd%20@");
        assert_eq!(read(b"user:").expect("no password"), "user:@");
        for bad in [&b""[..], b"secret", b":secret", b"\nuser:secret", &[b's'; 5000]] {
            let error = read(bad).expect_err("no credentials").to_string();
            assert!(error.contains(&file.display().to_string()) && !error.contains("sec"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_authority_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("own.pem");
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cut = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        for text in [None, Some(""), Some("no PEM"), Some(damaged), Some(cut)] {
            if let Some(text) = text {
                std::fs::write(&file, text).expect("own folder");
            }
            let options = StoreOptions { ca_files: vec![file.clone()], ..StoreOptions::default() };
            for url in ["s3://bucket/vault", "file:///tmp"] {
                let error = crate::Store::open_with(url, &options).expect_err("no certificate");
                assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
                assert!(error.to_string().contains(&file.display().to_string()), "{text:?} for {url}: {error}");
            }
        }
    }

    #[test]
    fn what_a_store_prints_of_itself_has_no_password() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("proxy");
        std::fs::write(&file, "user:hunter22").expect("own folder");
        let options = StoreOptions {
            proxy: Some("http://proxy:3128".to_owned()),
            proxy_credentials_file: Some(file),
            ..StoreOptions::default()
        };
        let store = crate::Store::open_with("s3://bucket/vault", &options).expect("a store");
        let text = format!("{store:?} {options:?}");
        assert!(text.contains("http://proxy:3128") && !text.contains("hunter22"), "{text}");
    }
}
