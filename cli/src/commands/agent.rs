//! `landfall agent enroll | run | status | check-config`.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use landfall_agent::{AgentConfig, Cancel, DiskCheck, Status, run as run_agent, run_once};
use landfall_model::{Consistency, Error, ErrorKind, Result};
use landfall_wire::client;
use landfall_wire::pki::Token;
use serde_json::json;

use crate::args::{AgentFile, Common};
use crate::{interrupt, output};

/// Where an agent keeps its certificate.
fn identity(config: &AgentConfig) -> PathBuf {
    config.state_dir.join("identity")
}

/// Gets a certificate with a token.
pub(crate) async fn enroll(common: &Common, file: &AgentFile, gateway: &str, token: &str) -> Result<()> {
    let config = AgentConfig::read(&file.config)?;
    let mut line = String::new();
    let token = if token == "-" {
        let read = std::io::stdin().lock().read_line(&mut line);
        read.map_err(|e| Error::with_source(ErrorKind::Usage, "cannot read the token from stdin", e))?;
        line.trim()
    } else {
        token
    };
    let token: Token = token.parse()?;
    let identity_dir = identity(&config);
    let enrolled = client::enroll(gateway, &token, &config.machine).await?;
    std::fs::create_dir_all(&identity_dir).map_err(|e| {
        Error::with_source(
            ErrorKind::Usage,
            format!("cannot make {}: run as the agent's user", identity_dir.display()),
            e,
        )
    })?;
    enrolled.store(&identity_dir)?;
    let value = json!({ "machine": config.machine, "gateway": gateway, "expires": enrolled.expires(), "identity": identity_dir });
    output::document(common.json, &value, || {
        format!(
            "{} is enrolled; its certificate is valid until {} and renews itself.\nNext: landfall agent run --config {}\n",
            config.machine,
            enrolled.expires(),
            file.config.display()
        )
    })
}

/// Ships until the first signal; the second does not wait for what is being done.
pub(crate) async fn run(file: &AgentFile, once: bool) -> Result<()> {
    let config = AgentConfig::read(&file.config)?;
    let cancel = Cancel::default();
    let asked = cancel.clone();
    let first = interrupt::first();
    let signals = tokio::spawn(async move {
        first.await;
        asked.cancel();
    });
    let identity = identity(&config);
    let shipping = async {
        if once { run_once(&config, &identity, &cancel).await } else { run_agent(&config, &identity, &cancel).await }
    };
    let outcome = interrupt::or_second(shipping, "what is frozen is thawed without the agent").await;
    signals.abort();
    outcome.map_err(|e| e.context(format!("agent of {}", config.machine)))
}

/// Shows what the agent did last.
pub(crate) fn status(common: &Common, file: &AgentFile) -> Result<()> {
    let config = AgentConfig::read(&file.config)?;
    let status = Status::read(&config.state_dir)?.ok_or_else(|| {
        let why = format!("no agent has run with {}: start `landfall agent run`", file.config.display());
        Error::new(ErrorKind::NotFound, why)
    })?;
    let value = serde_json::to_value(&status)
        .map_err(|e| Error::with_source(ErrorKind::Bug, "the status cannot be written", e))?;
    output::document(common.json, &value, || {
        let moment = |m: Option<landfall_model::Timestamp>| m.map_or_else(|| "never".to_owned(), |m| m.to_string());
        let committed = status.last_committed.as_ref();
        format!(
            "Machine         {}\nGateway         {}\nLast cut        {}\nOn the gateway  {}\nIn the vault    {}\nWaits           {}\nHeld            {}\nError           {}\n",
            status.machine,
            status.gateway.as_deref().unwrap_or("none"),
            moment(status.last_cut.map(|c| c.time)),
            moment(status.last_spooled.map(|c| c.time)),
            committed.map_or_else(|| "never".to_owned(), |c| format!("{} (point {})", moment(c.time), c.seq)),
            status.waits.as_deref().unwrap_or("for nothing"),
            status.held.as_ref().map_or_else(|| "no".to_owned(), |h| format!("since {}: {}", h.since, h.reason)),
            status.error.as_ref().map_or("none", |e| e.text.as_str()),
        )
    })
}

/// Tries how the disks will be captured.
pub(crate) fn check(common: &Common, file: &AgentFile) -> Result<()> {
    let config = AgentConfig::read(&file.config)?;
    let check = landfall_agent::check(&config);
    let disk = |d: &DiskCheck| {
        json!({
            "name": d.name, "source": d.source, "why": d.why, "cost": d.cost, "error": d.error,
            "skipped_bytes": d.skipped_bytes, "not_skipped": d.not_skipped,
        })
    };
    let value = json!({
        "machine": config.machine, "consistency": check.consistency, "frozen": check.frozen, "not_frozen": check.not_frozen,
        "disks": check.disks.iter().map(disk).collect::<Vec<_>>(),
    });
    output::document(common.json, &value, || {
        let mut rows = vec![["DISK", "SOURCE", "WHY", "COST", "SKIPS"].map(str::to_owned).to_vec()];
        rows.extend(check.disks.iter().map(|d| {
            let why = d.error.as_ref().map_or_else(|| d.why.clone(), |error| format!("{}: {error}", d.why));
            vec![d.name.to_string(), d.source.unwrap_or("none").to_owned(), why, d.cost.clone(), skips(d)]
        }));
        let list = |paths: &[PathBuf]| {
            let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
            if paths.is_empty() { "none".to_owned() } else { paths.join(" ") }
        };
        format!(
            "{}\nPoints guarantee  {}\nFrozen            {}\nCannot be frozen  {}\n",
            output::table(&rows),
            guarantee(check.consistency),
            list(&check.frozen),
            list(&check.not_frozen),
        )
    })?;
    match check.disks.iter().find_map(|d| Some((d, d.error.as_ref()?))) {
        Some((disk, error)) => {
            let why = format!("disk {}: {}: {error}; correct {}", disk.name, disk.why, file.config.display());
            Err(Error::new(ErrorKind::Usage, why))
        }
        None => Ok(()),
    }
}

/// What of a disk is not sent.
fn skips(disk: &DiskCheck) -> String {
    match (disk.skipped_bytes, &disk.not_skipped) {
        (0, None) => "nothing".to_owned(),
        (0, Some(why)) => format!("nothing: {why}"),
        (bytes, _) => format!("swap in use: {}", output::size(bytes)),
    }
}

/// What a consistency means to who restores a point.
fn guarantee(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Unfinished => "nothing",
        Consistency::Crash => "crash: nothing is held still while the disks are read",
        Consistency::Filesystem => "filesystem: the file systems are whole, and hold what was written before the cut",
        Consistency::Application => "application: what the freeze command has done was done",
    }
}

/// Lets go what an agent that died holds still of a virtual machine.
pub(crate) fn release(qmp: Option<&Path>, guest_agent: Option<&Path>, after: &[String]) -> Result<()> {
    guest_agent.map_or(Ok(()), |socket| landfall_agent::release_guest(socket, after))?;
    qmp.map_or(Ok(()), landfall_agent::release_machine)
}

/// Reads a configuration.
pub(crate) fn check_config(common: &Common, file: &AgentFile) -> Result<()> {
    let config = AgentConfig::read(&file.config)?;
    let disks: Vec<_> = config
        .disks
        .iter()
        .map(|d| json!({ "name": d.name, "path": d.path, "device": d.device, "exclude": d.exclude }))
        .collect();
    let value = json!({
        "config": file.config, "machine": config.machine, "gateways": config.gateways, "state_dir": config.state_dir,
        "interval_ms": u64::try_from(config.interval.as_millis()).unwrap_or(u64::MAX), "disks": disks,
    });
    output::document(common.json, &value, || format!("{} is right.\n", file.config.display()))
}
