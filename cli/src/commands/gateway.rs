//! `landfall gateway run | token | revoke | check-config`, and `landfall resync | pause | resume`.

use std::sync::Arc;
use std::time::Duration;

use landfall_gateway::{
    Gateway, GatewayConfig, GroupConfig, Options, Registry, State, raise_open_files, share_revocations,
};
use landfall_keys::SiteKey;
use landfall_model::{Error, ErrorKind, Result};
use landfall_vault::{Store, Vault};
use landfall_wire::pki::{Authority, Token};
use landfall_wire::server::Limits;
use serde_json::json;
use tokio::net::TcpListener;

use crate::args::{Common, GatewayFile, Machine};
use crate::{interrupt, output};

/// How long `revoke` tries to reach the store: somebody waits for it, and a running gateway tries again.
const REVOKE_RETRY: Duration = Duration::from_secs(10);

fn site_key(config: &GatewayConfig) -> Result<SiteKey> {
    SiteKey::read(&config.site_key)
        .map_err(|e| Error::from(e).context(format!("site key {}", config.site_key.display())))
}

/// Waits between attempts to start while the store does not answer.
const START_RETRY: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(60)];

/// What commands beside a running gateway share with it.
fn beside(file: &GatewayFile) -> Result<(Registry, SiteKey)> {
    let config = GatewayConfig::read(&file.config)?;
    let site = site_key(&config)?;
    let state = State::open(&config.state_dir, site.vault_id())?;
    Ok((Registry::open(state.agents_path())?, site))
}

/// Serves until the first signal. Reads its configuration anew at SIGHUP.
pub(crate) async fn run(common: &Common, file: &GatewayFile) -> Result<()> {
    let config = GatewayConfig::read_whole(&file.config)?;
    let options = Options {
        domain: config.domain.clone(),
        spool_bytes: config.spool_bytes,
        rules: config.rules.clone(),
        names: config.names.clone(),
        groups: config.groups.clone(),
    };
    let stopped = interrupt::first();
    let gateway = tokio::select! {
        opened = open_once_the_store_answers(&config, &options) => Arc::new(opened?),
        () = stopped => return Ok(()),
    };
    let (listener, address) = listen(&config.listen, "listen", file).await?;
    let (metrics, metrics_at) = match &config.metrics {
        Some(at) => {
            let (listener, address) = listen(at, "metrics", file).await?;
            (Some(listener), Some(address))
        }
        None => (None, None),
    };
    let limits = Limits::default().within_open_files(raise_open_files());
    let reloads = interrupt::at_hangup(|| gateway.reload(&config, GatewayConfig::read_whole(&file.config)))?;
    let served = gateway.clone().run(listener, metrics, &options, limits, interrupt::first());
    let served = interrupt::or_second(served, "what is spooled stays, and the heartbeat runs out");
    // After signals are heard: whoever waits for this line may send one at once.
    let value = json!({ "listening": address, "metrics": metrics_at, "vault": config.vault });
    output::document(common.json, &value, || format!("Listening at {address} for agents; vault {}.\n", config.vault))?;
    tokio::select! {
        outcome = served => outcome,
        () = reloads => Ok(()),
    }
}

/// Opens the gateway. While its store does not answer it waits, and says so: after a power cut of a site everything starts at once.
async fn open_once_the_store_answers(config: &GatewayConfig, options: &Options) -> Result<Gateway> {
    let mut tries = 0;
    loop {
        match open(config, options).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let wait = START_RETRY[tries.min(START_RETRY.len() - 1)];
                tries += 1;
                tracing::error!(%error, wait_s = wait.as_secs(), "the store does not answer: no agent is served until it does");
                tokio::time::sleep(wait).await;
            }
            other => return other,
        }
    }
}

async fn open(config: &GatewayConfig, options: &Options) -> Result<Gateway> {
    let store = Store::open_with(&config.vault, &config.store)?;
    let vault = Vault::open_with_site_key(store, site_key(config)?).await?;
    let state = State::open(&config.state_dir, vault.config().vault_id)?;
    Gateway::open(vault, state, options).await
}

async fn listen(at: &str, key: &str, file: &GatewayFile) -> Result<(TcpListener, String)> {
    let failed = |e| {
        let why = format!("cannot listen at {at}: change {key} in {}", file.config.display());
        Error::with_source(ErrorKind::Usage, why, e)
    };
    let listener = TcpListener::bind(at).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    Ok((listener, address))
}

/// Makes a token.
pub(crate) fn token(common: &Common, file: &GatewayFile, machine: &Machine, valid: Duration) -> Result<()> {
    let (registry, site) = beside(file)?;
    let authority = Authority::from_seed(site.agent_authority_seed().as_bytes())?;
    let token = Token::new(authority.pin())?;
    let expires = registry.add_token(&token, &machine.machine, valid)?;
    let text = token.to_string();
    let value = json!({ "machine": machine.machine, "token": text, "expires": expires });
    output::document(common.json, &value, || {
        format!(
            "{text}\n\nFor machine {}, once, until {expires}. On that machine:\n  landfall agent enroll --gateway HOST:PORT --token -\n",
            machine.machine
        )
    })
}

/// Revokes a machine's certificates: at this gateway first, whatever the store does, then at the others by way of the vault.
pub(crate) async fn revoke(common: &Common, file: &GatewayFile, machine: &Machine) -> Result<()> {
    let config = GatewayConfig::read(&file.config)?;
    let (registry, site) = beside(file)?;
    let revocation = registry.revoke(&machine.machine)?;
    let known = tell_others(&config, site, &registry, machine).await.map_err(|e| {
        e.context(format!(
            "{} is revoked at this gateway; the others will hear of it when this one runs and reaches the store",
            machine.machine
        ))
    })?;
    let value = json!({ "machine": machine.machine, "revoked_until": revocation.until, "known": known });
    output::document(common.json, &value, || {
        let doubt = if known { "" } else { "The vault has no such machine: check the name.\n" };
        format!(
            "{} is revoked: here at once, at the other gateways of this vault within a minute. A new token lets it in again.\n{doubt}",
            machine.machine
        )
    })
}

/// Returns whether any gateway ever wrote the machine: one that only enrolled is not known either.
async fn tell_others(config: &GatewayConfig, site: SiteKey, registry: &Registry, machine: &Machine) -> Result<bool> {
    let store = Store::open(&config.vault)?.with_retry_time(REVOKE_RETRY);
    let vault = Vault::open_with_site_key(store, site).await?;
    share_revocations(&vault, registry).await?;
    Ok(!vault.machine(&machine.machine).generations().await?.is_empty())
}

/// Asks for a full comparison.
pub(crate) fn resync(common: &Common, file: &GatewayFile, machine: &Machine) -> Result<()> {
    beside(file)?.0.ask_resync(&machine.machine)?;
    let value = json!({ "machine": machine.machine, "resync": "next cycle" });
    output::document(common.json, &value, || {
        format!("{} is compared in full at its next cycle; see `landfall status`.\n", machine.machine)
    })
}

/// Lets a machine begin no cycle.
pub(crate) fn pause(common: &Common, file: &GatewayFile, machine: &Machine) -> Result<()> {
    let since = beside(file)?.0.pause(&machine.machine)?;
    let value = json!({ "machine": machine.machine, "paused": since });
    output::document(common.json, &value, || {
        format!("{} is paused since {since}: see `landfall status`. Its points stay.\n", machine.machine)
    })
}

/// Lets a paused machine go on.
pub(crate) fn resume(common: &Common, file: &GatewayFile, machine: &Machine) -> Result<()> {
    beside(file)?.0.resume(&machine.machine)?;
    let value = json!({ "machine": machine.machine, "paused": null });
    output::document(common.json, &value, || {
        format!("{} goes on: its next cycle has everything since.\n", machine.machine)
    })
}

/// Reads a configuration.
pub(crate) fn check_config(common: &Common, file: &GatewayFile) -> Result<()> {
    let config = GatewayConfig::read_whole(&file.config)?;
    Store::open_with(&config.vault, &config.store)?;
    let millis = |interval: Duration| u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    let group = |g: &GroupConfig| json!({ "name": g.name, "machines": g.machines, "interval_ms": millis(g.interval) });
    let groups: Vec<_> = config.groups.iter().map(group).collect();
    let value = json!({
        "config": file.config, "vault": config.vault, "site_key": config.site_key, "listen": config.listen, "names": config.names,
        "state_dir": config.state_dir, "domain": config.domain, "spool_bytes": config.spool_bytes,
        "rate": config.rules.uploads.usual(), "metrics": config.metrics,
        "proxy": config.store.proxy, "no_proxy": config.store.no_proxy, "ca_files": config.store.ca_files,
        "webhooks": config.rules.webhooks.iter().map(|w| w.url.to_string()).collect::<Vec<_>>(),
        "groups": groups,
    });
    output::document(common.json, &value, || format!("{} is right.\n", file.config.display()))
}
