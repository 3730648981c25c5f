//! A configuration that is read anew while the gateway runs: what changes at once, and what needs a restart.

use landfall_model::{Result, Timestamp};
use landfall_vault::now;
use serde::{Deserialize, Serialize};

use crate::config::GatewayConfig;

/// What a running gateway knows of its configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// When what holds now was read.
    pub read: Option<Timestamp>,
    /// When it was last asked to read it anew, and why it did not take what it read.
    pub refused: Option<Refusal>,
    /// Keys that were changed since it was started, and hold after a restart.
    pub needs_restart: Vec<String>,
}

/// A configuration that was not taken.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// When.
    pub time: Timestamp,
    /// Why: the file, the line, and what to do.
    pub why: String,
}

impl GatewayConfig {
    /// Keys whose values differ in a newer configuration and cannot change while a gateway runs.
    pub fn needs_restart(&self, newer: &Self) -> Vec<String> {
        // Whoever adds a key decides here what becomes of it.
        let Self { vault, site_key, listen, names, state_dir, domain, spool_bytes, metrics, store, groups, rules: _ } =
            self;
        let keys = [
            ("vault", *vault != newer.vault),
            ("site_key", *site_key != newer.site_key),
            ("listen", *listen != newer.listen),
            ("names", *names != newer.names),
            ("state_dir", *state_dir != newer.state_dir),
            ("domain", *domain != newer.domain),
            ("spool", *spool_bytes != newer.spool_bytes),
            ("metrics", *metrics != newer.metrics),
            ("store", *store != newer.store),
            ("group", *groups != newer.groups),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
    }
}

impl Configuration {
    /// It was read, and holds.
    pub(crate) fn first() -> Self {
        Self { read: Some(now()), ..Self::default() }
    }

    /// It was read anew: gives what holds from now on, where it is taken.
    pub(crate) fn again(&mut self, running: &GatewayConfig, read: Result<GatewayConfig>) -> Option<GatewayConfig> {
        match read {
            Ok(newer) => {
                *self = Self { read: Some(now()), refused: None, needs_restart: running.needs_restart(&newer) };
                if self.needs_restart.is_empty() {
                    tracing::info!("the configuration was read anew");
                } else {
                    tracing::warn!(
                        needs_restart = self.needs_restart.join(", "),
                        "the configuration was read anew, but for what needs a restart"
                    );
                }
                Some(newer)
            }
            Err(error) => {
                tracing::error!(%error, "the configuration was not taken: what was read before holds");
                self.refused = Some(Refusal { time: now(), why: error.to_string() });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<GatewayConfig> {
        GatewayConfig::parse(text, std::path::Path::new("g.toml"))
    }

    #[test]
    fn what_cannot_change_is_named_and_what_is_wrong_changes_nothing() {
        let running = config("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\n").expect("right");
        let mut known = Configuration::first();
        let taken = known.again(&running, config("[gateway]\nvault = \"v\"\nsite_key = \"/k\"\nrate = \"1MiB\"\n"));
        assert_eq!((taken.map(|c| c.rules.uploads.usual()), known.needs_restart.len()), (Some(Some(1 << 20)), 0));
        let other = "[gateway]\nvault = \"w\"\nsite_key = \"/l\"\nlisten = \"h:1\"\nnames = [\"n\"]\nstate_dir = \"/s\"\n\
            domain = \"d\"\nspool = \"1GiB\"\nmetrics = \"h:2\"\n";
        assert!(known.again(&running, config(other)).is_some());
        let all = ["vault", "site_key", "listen", "names", "state_dir", "domain", "spool", "metrics"];
        assert_eq!(known.needs_restart, all);
        assert!(known.again(&running, config("[gateway]\nvolt = \"v\"\n")).is_none());
        assert!(known.refused.as_ref().is_some_and(|r| r.why.contains("did you mean \"vault\"?")), "{known:?}");
        assert_eq!(known.needs_restart, all, "as before");
        // Put back, nothing needs a restart any more.
        assert!(known.again(&running, Ok(running.clone())).is_some());
        assert_eq!((known.refused, known.needs_restart.len()), (None, 0));
    }
}
