//! `landfall status`: the gateway on this host and its machines.

use landfall_gateway::{GatewayConfig, GroupStatus, MachineStatus, State, Status};
use landfall_keys::SiteKey;
use landfall_model::{Error, Result, Timestamp};
use landfall_vault::now;
use serde_json::json;

use crate::args::{Common, GatewayFile};
use crate::output;

/// A gateway that runs writes its status every second.
const ALIVE_MS: i64 = 10_000;

fn age_ms(since: Option<Timestamp>) -> Option<u64> {
    since.map(|t| u64::try_from(now().millis() - t.millis()).unwrap_or(0))
}

/// Shows it.
pub(crate) fn run(common: &Common, file: &GatewayFile) -> Result<()> {
    let config = GatewayConfig::read(&file.config)?;
    let site = SiteKey::read(&config.site_key)
        .map_err(|e| Error::from(e).context(format!("site key {}", config.site_key.display())))?;
    let state = State::open(&config.state_dir, site.vault_id())?;
    let status = Status::read(&state.status_path())?;
    let runs = status.time.is_some_and(|t| now().millis() - t.millis() < ALIVE_MS);
    let machine = |(name, m): (&String, &MachineStatus)| {
        let (health, why) = m.health(now());
        json!({
            "machine": name, "linked": m.linked && runs, "health": health, "why": why, "waiting_since": m.waiting_since,
            "failures": m.failures, "rpo_ms": age_ms(m.committed), "spooled": m.spooled,
            "committed": m.committed, "seq": m.seq, "cycles": m.cycles, "resyncs": m.resyncs, "error": m.error,
            "paused": m.paused, "held": m.held,
        })
    };
    let (spool_health, _) = status.spool_health();
    let value = json!({
        "running": runs, "spool_health": spool_health, "time": status.time, "spool_bytes": status.spool_bytes, "spool_budget_bytes": config.spool_bytes,
        "uploaded_bytes": status.uploaded_bytes, "upload_error": status.upload_error,
        "machines": status.machines.iter().map(machine).collect::<Vec<_>>(), "groups": status.groups,
    });
    output::document(common.json, &value, || people(&config, &status, runs))
}

fn people(config: &GatewayConfig, status: &Status, runs: bool) -> String {
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
            why.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    let group = |(name, g): (&String, &GroupStatus)| {
        let taken = g.taken.map_or_else(|| "never taken".to_owned(), |t| format!("taken as of {t}"));
        let missed = g.missed.zip(g.why.as_ref()).map(|(at, why)| format!("; MISSED at {at}: {why}"));
        format!("Group {name}: {taken}{}\n", missed.unwrap_or_default())
    };
    let groups: String = status.groups.iter().map(group).collect();
    format!(
        "{}{groups}Gateway {}; spool {} of {}; uploaded {}; upload error: {}\n",
        output::table(&rows),
        if runs { "running" } else { "NOT RUNNING" },
        output::size(status.spool_bytes),
        output::size(config.spool_bytes),
        output::size(status.uploaded_bytes),
        status.upload_error.as_deref().unwrap_or("none"),
    )
}
