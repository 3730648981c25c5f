//! `landfall status`: the gateway on this host and its machines.

use landfall_gateway::{GatewayConfig, GroupStatus, MachineStatus, Receiving, State, Status};
use landfall_keys::SiteKey;
use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use landfall_vault::now;
use serde_json::json;

use crate::args::{Common, GatewayFile};
use crate::output;

/// A gateway that runs writes its status every second.
const ALIVE_MS: i64 = 10_000;

fn age_ms(since: Option<Timestamp>) -> Option<u64> {
    since.map(|t| u64::try_from(now().millis() - t.millis()).unwrap_or(0))
}

fn receiving(r: &Receiving) -> serde_json::Value {
    json!({
        "full": r.full, "since": r.since, "bytes": r.bytes, "reached_bytes": r.reached_bytes, "of_bytes": r.of_bytes,
        "percent": r.percent(), "left_ms": r.left_ms(now()),
    })
}

/// What an operator may want to know of a machine that is well.
fn progress(r: &Receiving) -> Option<String> {
    let left = r.left_ms(now()).map(|ms| format!(", about {} left", output::seconds(ms)));
    r.full.then(|| format!("receiving everything: {} %{}", r.percent(), left.unwrap_or_default()))
}

/// What it does now; how well it is protected is another matter.
fn state(m: &MachineStatus, runs: bool) -> &'static str {
    match m {
        _ if !(m.linked && runs) => "down",
        MachineStatus { paused: Some(_), .. } => "paused",
        MachineStatus { waits: Some(_), .. } => "waiting",
        MachineStatus { receiving: Some(r), .. } if r.full => "receiving everything",
        MachineStatus { receiving: Some(_), .. } => "receiving",
        MachineStatus { held: Some(_), .. } => "held",
        _ => "idle",
    }
}

fn machine(name: &str, m: &MachineStatus, runs: bool) -> serde_json::Value {
    let (health, why) = m.health(now());
    json!({
        "machine": name, "linked": m.linked && runs, "state": state(m, runs), "health": health, "why": why,
        "rpo_ms": age_ms(m.committed), "rpo_seconds": age_ms(m.committed).map(|ms| ms / 1000),
        "spooled": m.spooled, "committed": m.committed, "seq": m.seq, "cycles": m.cycles, "resyncs": m.resyncs,
        "failures": m.failures, "error": m.error, "waits": m.waits, "receiving": m.receiving.as_ref().map(receiving),
        "rate": m.rate, "received_bytes": m.received_bytes, "window": m.window,
        "waiting_since": m.waiting_since, "waiting_ms": age_ms(m.waiting_since), "waiting_points": m.waiting_points,
        "waiting_bytes": m.waiting_bytes, "paused": m.paused, "held": m.held,
    })
}

/// Shows it: all machines, or one in full.
pub(crate) fn run(common: &Common, file: &GatewayFile, only: Option<&MachineName>) -> Result<()> {
    let config = GatewayConfig::read(&file.config)?;
    let site = SiteKey::read(&config.site_key)
        .map_err(|e| Error::from(e).context(format!("site key {}", config.site_key.display())))?;
    let state = State::open(&config.state_dir, site.vault_id())?;
    let mut status = Status::read(&state.status_path())?;
    if let Some(only) = only {
        status.machines.retain(|name, _| name == only.as_str());
        if status.machines.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("this gateway has not heard of machine {only}")));
        }
    }
    let runs = status.time.is_some_and(|t| now().millis() - t.millis() < ALIVE_MS);
    let (spool_health, _) = status.spool_health();
    let value = json!({
        "running": runs, "spool_health": spool_health, "time": status.time, "spool_bytes": status.spool_bytes,
        "spool_budget_bytes": status.spool_budget_bytes, "configuration": status.configuration,
        "uploaded_bytes": status.uploaded_bytes, "rate": status.rate, "upload_error": status.upload_error,
        "machines": status.machines.iter().map(|(name, m)| machine(name, m, runs)).collect::<Vec<_>>(),
        "groups": status.groups,
    });
    let details = || status.machines.iter().map(|(name, m)| detail(name, m, runs)).collect();
    output::document(common.json, &value, || if only.is_some() { details() } else { people(&status, runs) })
}

/// One machine, for people.
fn detail(name: &str, m: &MachineStatus, runs: bool) -> String {
    let moment = |t: Option<Timestamp>| t.map_or_else(|| "none".to_owned(), |t| t.to_string());
    let ms = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), output::seconds);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::size);
    let (health, why) = m.health(now());
    let w = &m.window;
    let rows = [
        ("Machine", name.to_owned()),
        ("State", state(m, runs).to_owned()),
        (
            "Health",
            format!("{}{}", format!("{health:?}").to_uppercase(), why.map_or_else(String::new, |w| format!(": {w}"))),
        ),
        ("RPO now", ms(age_ms(m.committed))),
        (
            "In the vault",
            format!("point {} of {}", m.seq.map_or_else(|| "-".to_owned(), |s| s.to_string()), moment(m.committed)),
        ),
        ("On the gateway", moment(m.spooled)),
        (
            "Waits for the store",
            format!(
                "{} points, {}, for {}",
                m.waiting_points,
                output::size(m.waiting_bytes),
                ms(age_ms(m.waiting_since))
            ),
        ),
        (
            "Arrives now",
            m.receiving.as_ref().map_or_else(
                || "nothing".to_owned(),
                |r| format!("{} of {} ({} %)", output::size(r.bytes), output::size(r.of_bytes), r.percent()),
            ),
        ),
        ("Rate", format!("{}/s of {}/s", output::size(w.received_bytes_per_second), size(m.rate))),
        ("Since", format!("{} (12 h at most)", moment(w.since))),
        ("Cycles", format!("{} good, {} failed, {} missed", w.good, w.failed, w.missed)),
        (
            "Change of a cycle",
            format!("{} on average, {} at most", size(w.change_average_bytes), size(w.change_largest_bytes)),
        ),
        ("Cut to vault", format!("{} on average, {} at most", ms(w.latency_average_ms), ms(w.latency_largest_ms))),
    ];
    rows.iter().map(|(what, value)| format!("{what:<21}{value}\n")).collect()
}

/// What an operator has to know of a configuration that was changed.
fn configuration(status: &Status) -> String {
    let mut lines = String::new();
    if let Some(refused) = &status.configuration.refused {
        lines += &format!("The configuration was not taken at {}: {}\n", refused.time, refused.why);
    }
    if !status.configuration.needs_restart.is_empty() {
        lines += &format!("Changed, and holds after a restart: {}\n", status.configuration.needs_restart.join(", "));
    }
    lines
}

fn people(status: &Status, runs: bool) -> String {
    let mut rows =
        vec![["MACHINE", "HEALTH", "LINK", ">RPO NOW", ">POINT", "NEWEST POINT OF", "WHY"].map(str::to_owned).to_vec()];
    for (name, m) in &status.machines {
        let moment = |t: Option<Timestamp>| t.map_or_else(|| "none".to_owned(), |t| t.to_string());
        let (health, why) = m.health(now());
        rows.push(vec![
            name.clone(),
            format!("{health:?}").to_uppercase(),
            if m.linked && runs { "up" } else { "down" }.to_owned(),
            age_ms(m.committed).map_or_else(|| "-".to_owned(), output::seconds),
            m.seq.map_or_else(|| "-".to_owned(), |s| s.to_string()),
            moment(m.committed),
            why.or_else(|| m.receiving.as_ref().and_then(progress)).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let group = |(name, g): (&String, &GroupStatus)| {
        let taken = g.taken.map_or_else(|| "never taken".to_owned(), |t| format!("taken as of {t}"));
        let missed = g.missed.zip(g.why.as_ref()).map(|(at, why)| format!("; MISSED at {at}: {why}"));
        format!("Group {name}: {taken}{}\n", missed.unwrap_or_default())
    };
    let groups: String = status.groups.iter().map(group).collect();
    format!(
        "{}{groups}Gateway {}; spool {} of {}; uploaded {}; upload error: {}\n{}",
        output::table(&rows),
        if runs { "running" } else { "NOT RUNNING" },
        output::size(status.spool_bytes),
        output::size(status.spool_budget_bytes),
        output::size(status.uploaded_bytes),
        status.upload_error.as_deref().unwrap_or("none"),
        configuration(status),
    )
}
