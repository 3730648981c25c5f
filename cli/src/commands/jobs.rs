//! `landfall jobs`: what was failed over, how far it is, and going on with it.

use std::process::ExitCode;

use landfall_model::{JobKind, JobMeta, JobState, JobStep, Result};
use landfall_restore::failover;
use serde_json::{Value, json};

use super::failover::supervise_until_up;
use crate::args::{Common, JobsCommand};
use crate::output;

/// Lists, shows, or goes on.
pub(crate) async fn run(common: &Common, command: Option<JobsCommand>) -> Result<ExitCode> {
    match command {
        None => {
            let jobs = failover::jobs(&common.any_vault().await?).await?;
            let listed = json!({ "jobs": jobs.iter().map(document).collect::<Vec<_>>() });
            output::document(common.json, &listed, || table(&jobs))?;
        }
        Some(JobsCommand::Show(job)) => {
            let found = common.any_vault().await?.job(job.job).await?;
            output::document(common.json, &document(&found.meta), || people(&found.meta))?;
        }
        Some(JobsCommand::Resume(work)) => {
            let vault = common.vault_to_restore(&*common.recovery()?).await?;
            let found = vault.job(work.job.job).await?;
            return supervise_until_up(common, &vault, &found.meta, work).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn word(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Test => "test",
        JobKind::Unplanned => "unplanned",
        JobKind::Planned => "planned",
    }
}

fn state(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Up => "up",
        JobState::Failed => "failed",
        JobState::Committed => "committed",
        JobState::Cancelled => "cancelled",
        JobState::Cleaned => "cleaned",
    }
}

/// Steps, in the document of a job.
pub(super) fn steps(steps: &[JobStep]) -> Vec<Value> {
    let step = |s: &JobStep| json!({ "name": s.name, "started": s.started, "elapsed_ms": s.took_ms(), "done": s.is_done(), "error": s.error, "detail": s.detail });
    steps.iter().map(step).collect()
}

/// The stable document of a job.
pub(crate) fn document(meta: &JobMeta) -> Value {
    json!({
        "job": meta.job, "kind": meta.kind, "machine": meta.machine, "target": meta.target, "state": meta.state,
        "asked": meta.asked, "seq": meta.point.map(|p| p.seq), "time": meta.point.map(|p| p.time), "host": meta.host, "folder": meta.folder,
        "created": meta.created, "updated": meta.updated, "lease_until": meta.lease_until,
        "drill": meta.is_drill(), "steps": steps(&meta.steps),
    })
}

fn table(jobs: &[JobMeta]) -> String {
    let mut rows = vec![["JOB", "KIND", "MACHINE", ">POINT", "STATE", "BEGUN", "HOST"].map(String::from).to_vec()];
    for j in jobs {
        let point = j.point.map_or_else(|| j.asked.clone(), |p| p.seq.to_string());
        let kind = if j.is_drill() { "drill" } else { word(j.kind) };
        let (kind, state) = (kind.to_owned(), state(j.state).to_owned());
        rows.push(vec![
            j.job.to_string(),
            kind,
            j.machine.to_string(),
            point,
            state,
            j.created.to_string(),
            j.host.clone(),
        ]);
    }
    output::table(&rows)
}

/// A job for people.
pub(crate) fn people(meta: &JobMeta) -> String {
    let point = meta.point.map_or_else(|| meta.asked.clone(), |p| format!("{} of {}", p.seq, p.time));
    let mut text = format!(
        "Job {}: {} failover of {} to {}, point {point}: {}\nOn host {} in {}\n",
        meta.job,
        word(meta.kind),
        meta.machine,
        meta.target,
        state(meta.state),
        meta.host,
        meta.folder
    );
    if let Some(until) = meta.lease_until.filter(|_| !meta.state.is_over()) {
        text.push_str(&format!("Ends by itself at {until}\n"));
    }
    let mut rows = vec![["STEP", ">TOOK", "OUTCOME"].map(String::from).to_vec()];
    for s in &meta.steps {
        let took = s.took_ms().map_or_else(|| "-".to_owned(), output::seconds);
        let outcome = match (&s.error, s.ended, &s.detail) {
            (Some(error), ..) => format!("failed: {error}"),
            (None, None, _) => "not done yet".to_owned(),
            (None, Some(_), detail) => detail.clone().unwrap_or_else(|| "done".to_owned()),
        };
        rows.push(vec![s.name.clone(), took, outcome]);
    }
    text += &output::table(&rows);
    match (meta.kind, meta.state) {
        (_, state) if state.is_over() => {}
        _ if meta.source.cancelling => {
            text.push_str(&format!("Next: landfall failover cancel {} --apply\n", meta.job));
        }
        (JobKind::Test, _) => text.push_str(&format!("Next: landfall failover cleanup {}\n", meta.job)),
        (_, JobState::Up) => {
            text.push_str(&format!("Next: landfall failover commit {0}, or landfall failover cancel {0}\n", meta.job));
        }
        _ => text.push_str(&format!("Next: landfall jobs resume {}\n", meta.job)),
    }
    text
}
