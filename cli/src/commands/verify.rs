//! `landfall verify`.

use std::process::ExitCode;
use std::sync::Arc;

use landfall_model::{Error, ErrorKind, Progress, Result};
use landfall_vault::Vault;
use landfall_vault::verify::{Report, verify};
use serde_json::{Value, json};

use crate::args::{Common, Verify};
use crate::{interrupt, output, progress};

/// Verifies; what is wrong is listed, and the exit code is 4.
pub(crate) async fn run(common: &Common, args: Verify) -> Result<ExitCode> {
    let recovery = if args.deep { Some(common.recovery()?) } else { None };
    let vault = match &recovery {
        Some(recovery) if common.site_key.is_none() => Vault::open_with_recovery_key(common.store()?, recovery).await?,
        _ => common.any_vault().await?,
    };
    if recovery.as_ref().is_some_and(|key| key.root_public() != vault.site().root_public()) {
        let why = format!("it is not the recovery key of vault {}", vault.config().vault_id);
        return Err(common.of_recovery_key(Error::new(ErrorKind::Key, why)));
    }
    let state = common.state(&vault)?;
    let heads = state.heads()?;
    let counters = Arc::new(Progress::default());
    let work = verify(&vault, args.machine.as_ref(), recovery, &heads, &counters);
    let work = interrupt::or_interrupted(work, "nothing was changed");
    let report = progress::shown(common, "verify", "fetched", counters.clone(), work).await?;
    if let Some(machine) = args.machine.as_ref().filter(|_| report.points == 0 && report.findings.is_empty()) {
        return Err(vault.no_points(machine));
    }
    if report.findings.is_empty() {
        // Replications may have gone on meanwhile: a head is never set back.
        let _lock = state.lock().await?;
        let mut heads = state.heads()?;
        for (machine, head) in &report.heads {
            let newer = heads.get(machine).is_none_or(|known| (known.timeline, known.seq) < (head.timeline, head.seq));
            if newer {
                heads.insert(*machine, *head);
            }
        }
        state.remember(&heads)?;
    }
    output::document(common.json, &document(&report, args.deep), || people(&report, args.deep))?;
    Ok(ExitCode::from(if report.findings.is_empty() { 0 } else { ErrorKind::Corrupt.exit_code() }))
}

fn document(report: &Report, deep: bool) -> Value {
    json!({
        "ok": report.findings.is_empty(), "deep": deep, "machines": report.machines, "points": report.points,
        "segments": report.segments, "frames_opened": report.frames_opened,
        "unreferenced_segments": report.unreferenced_segments, "findings": report.findings,
    })
}

fn people(report: &Report, deep: bool) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&format!("WRONG  {}: {}\n", finding.object, finding.what));
        for affected in &finding.affects {
            text.push_str(&format!("       needed by {affected}\n"));
        }
    }
    let (machines, points, segments) = (report.machines, report.points, report.segments);
    text.push_str(&format!("{machines} machines, {points} points, {segments} segments checked"));
    if deep {
        text.push_str(&format!(", {} frames opened", report.frames_opened));
    }
    text.push_str(match report.findings.len() {
        0 => ": all is well.\n",
        _ => ".\nDo not delete anything; rehydrate an unaffected point, or save what is left with --salvage.\n",
    });
    text
}
