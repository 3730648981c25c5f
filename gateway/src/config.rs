//! The gateway's configuration file.
//!
//! ```toml
//! [gateway]
//! vault = "s3://bucket/dr"
//! site_key = "/etc/landfall/site.key"
//! listen = "0.0.0.0:7443"          # the default
//! names = ["gw-1.site"]            # host names and addresses by which agents reach it
//! state_dir = "/var/lib/landfall"  # the default
//! domain = "default"               # dedup domain of the machines; the default
//! spool = "20GiB"                  # most bytes that wait for the store; the default
//! metrics = "127.0.0.1:9464"       # /metrics for Prometheus and /health; default: not served
//!
//! [store]                          # how the store is reached; default: as the environment says
//! proxy = "http://proxy.site:3128"
//! proxy_credentials_file = "/etc/landfall/proxy"   # its first line: user:password
//! no_proxy = ["store.site"]
//! ca_files = ["/etc/ssl/own-ca.pem"]               # trusted besides the system's
//! ```
//! What may change while it runs stands in [`crate::rules`]; sections `[[group]]` in [`crate::group_config`].

mod store;

use std::path::{Path, PathBuf};

use landfall_model::{DomainName, Result};
use landfall_settings::{Source, check_address};
use landfall_vault::StoreOptions;

use crate::group_config;
use crate::groups::GroupConfig;
use crate::rules::{self, Rules};

const KEYS: &[&str] =
    &["vault", "site_key", "listen", "names", "state_dir", "domain", "spool", "rate", "metrics", "utc_offset"];
const SPOOL_BYTES: u64 = 20 << 30;

/// What a gateway is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayConfig {
    /// URL of the vault.
    pub vault: String,
    /// The site key's file.
    pub site_key: PathBuf,
    /// Where it listens: `HOST:PORT`.
    pub listen: String,
    /// Host names and addresses in its certificate.
    pub names: Vec<String>,
    /// What it remembers lies here.
    pub state_dir: PathBuf,
    /// The dedup domain of its machines.
    pub domain: DomainName,
    /// Most bytes of objects that wait for the store.
    pub spool_bytes: u64,
    /// Where metrics are served: `HOST:PORT`.
    pub metrics: Option<String>,
    /// How the store is reached.
    pub store: StoreOptions,
    /// What may change while it runs.
    pub rules: Rules,
    /// Machines whose points are of one moment.
    pub groups: Vec<GroupConfig>,
}

impl GatewayConfig {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// `NotFound`; `Usage`, naming the line and what to do.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&landfall_settings::read(path)?, path)
    }

    /// Reads a configuration file, and looks whether what it names besides vault and site key can be used: secrets of webhooks.
    ///
    /// # Errors
    /// As for [`Self::read`], and of these files.
    pub fn read_whole(path: &Path) -> Result<Self> {
        let config = Self::read(path)?;
        for webhook in &config.rules.webhooks {
            webhook.secret().map_err(|e| e.context(path.display().to_string()))?;
        }
        Ok(config)
    }

    /// Reads the text of a configuration file; errors name the file.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let source = Source::new(text, file);
        let document = source.parse()?;
        let root = source.root(&document);
        root.only(&[&["gateway", "store", "group"], &rules::SECTIONS[..]].concat())?;
        let table = source.table(root.required("gateway", "add a section [gateway]")?, "[gateway]")?;
        table.only(KEYS)?;
        let vault = table.parsed::<String>("vault", "add vault = \"URL\"")?;
        table.required("site_key", "add site_key = \"/path/of/site.key\"")?;
        let address = |key| {
            let Some((at, text)) = table.text(key)? else { return Ok(None) };
            check_address(&text).map(|()| Some(text)).map_err(|why| source.wrong(at, why))
        };
        let names = table.get("names").map(|names| source.texts(names)).transpose()?.unwrap_or_default();
        let default_domain = || "default".parse().map_err(|e| source.wrong(table.place(), e));
        let store = root.get("store").map(|value| store::options(&source.table(value, "[store]")?)).transpose()?;
        Ok(Self {
            vault,
            site_key: table.path("site_key")?.unwrap_or_default(),
            listen: address("listen")?.unwrap_or_else(|| "0.0.0.0:7443".to_owned()),
            names: names.into_iter().map(|(_, name)| name).collect(),
            state_dir: table.path("state_dir")?.unwrap_or_else(|| PathBuf::from("/var/lib/landfall")),
            domain: table.optional("domain")?.map_or_else(default_domain, Ok)?,
            spool_bytes: table.size("spool")?.unwrap_or(SPOOL_BYTES),
            metrics: address("metrics")?,
            store: store.unwrap_or_default(),
            rules: Rules::read(&root, &table)?,
            groups: group_config::groups(source, root.get("group"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GatewayConfig> {
        GatewayConfig::parse(text, Path::new("gateway.toml"))
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let config = parse("[gateway]\nvault = \"file:///v\"\nsite_key = \"/k\"\n").expect("enough");
        assert_eq!(config.listen, "0.0.0.0:7443");
        assert_eq!(config.spool_bytes, 20 << 30);
        assert_eq!(config.domain.as_str(), "default");
    }

    #[test]
    fn the_example_is_right_as_it_is_and_with_everything_that_it_offers() {
        let example = include_str!("../../deploy/gateway.toml");
        parse(example).expect("as it is");
        // Settings stand behind "# " and have no capital letter before their "=" or bracket; sentences begin with one.
        let offered = |line: &str| {
            line.strip_prefix("# ").is_some_and(|l| l.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
        };
        let all: Vec<&str> = example.lines().map(|l| if offered(l) { &l[2..] } else { l }).collect();
        let config = parse(&all.join("\n")).expect("with everything");
        assert!(config.rules.uploads.usual().is_some() && !config.rules.machines.is_empty());
        assert!(config.rules.resync.is_some() && !config.rules.webhooks.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_what_to_do() {
        for (text, wanted) in [
            ("", "gateway.toml:1: the file has no gateway: add a section [gateway]"),
            ("[gateway]\nsite_key = \"/k\"", "gateway.toml:1: [gateway] has no vault: add vault = \"URL\""),
            (
                "[gateway]\nvault = \"v\"\nsite_key = \"k\"",
                "gateway.toml:3: the path \"k\" is relative: write it from / on",
            ),
            ("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nspol = \"1GiB\"", "did you mean \"spool\"?"),
            (
                "[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nspool = \"1GB\"",
                "gateway.toml:4: spool: \"1GB\" is no size",
            ),
            (
                "[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nlisten = \"7443\"",
                "gateway.toml:4: \"7443\" is no address",
            ),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
