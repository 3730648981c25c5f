//! Reports of drills, for people and as JSON.

use std::path::Path;

use landfall_model::{DrillMeta, Error, JobId, JobMeta, MachineName, Result, Timestamp};
use landfall_restore::drill::{self, Drill};
use landfall_vault::now;
use serde_json::{Value, json};

use super::save_picture;
use crate::args::Common;
use crate::commands::jobs;
use crate::output;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The stable document of a report.
pub(super) fn document(report: &DrillMeta) -> Value {
    let picture = report.picture.as_ref().map(|p| json!({ "format": p.format, "bytes": p.bytes, "blake3": p.blake3 }));
    json!({
        "drill": report.job, "machine": report.machine, "target": report.target, "result": report.result, "why": report.why, "code": report.code,
        "asked": report.asked, "seq": report.point.map(|p| p.seq), "timeline": report.point.map(|p| p.timeline), "time": report.point.map(|p| p.time),
        "consistency": report.consistency, "host": report.host, "begun": report.begun, "ended": report.ended, "rto_ms": report.rto_ms,
        "steps": jobs::steps(&report.steps), "probes": report.probes, "fetched_bytes": report.fetched_bytes, "version": report.version,
        "picture": picture, "no_picture": report.no_picture,
    })
}

/// A drill without a report.
fn unreported(job: &JobMeta) -> Value {
    json!({
        "drill": job.job, "machine": job.machine, "target": job.target, "result": null, "begun": job.drill.unwrap_or(job.created),
        "why": "it has no report: it goes on, or was killed", "host": job.host, "job": jobs::document(job),
    })
}

const HEADING: [&str; 7] = ["DRILL", "MACHINE", ">POINT", "RESULT", ">RTO", "BEGUN", "WHY"];

/// Rows with their heading.
pub(super) fn with_heading(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    rows.insert(0, HEADING.map(String::from).to_vec());
    rows
}

fn cells(cells: [String; 7]) -> Vec<String> {
    cells.into_iter().map(|text| plain(&text)).collect()
}

/// What stands in a report reaches a terminal as text only.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A row of one that was tried.
pub(super) fn row_of(machine: String, outcome: std::result::Result<&DrillMeta, &Error>) -> Vec<String> {
    let none = || "-".to_owned();
    match outcome {
        Ok(report) => cells([
            report.job.to_string(),
            machine,
            report.point.map_or_else(|| report.asked.clone(), |p| p.seq.to_string()),
            if report.passed() { "passed" } else { "failed" }.to_owned(),
            report.rto_ms.map_or_else(none, output::seconds),
            report.begun.to_string(),
            report.why.clone().unwrap_or_default(),
        ]),
        Err(error) => cells([none(), machine, none(), "failed".to_owned(), none(), none(), error.line()]),
    }
}

/// A report for people.
pub(super) fn people(report: &DrillMeta) -> String {
    let point = report.point.map_or_else(|| report.asked.clone(), |p| format!("{} of {}", p.seq, p.time));
    let consistency = report.consistency.map(|c| format!(", {}", json!(c).as_str().unwrap_or_default()));
    let mut lines = vec![format!(
        "Drill {}: {} from point {point}{}: {}",
        report.job,
        report.machine,
        consistency.unwrap_or_default(),
        if report.passed() { "it came up" } else { "FAILED" }
    )];
    match (&report.why, report.rto_ms) {
        (Some(why), _) => lines.push(format!("Why: {why}")),
        (None, Some(rto)) => lines.push(format!("Up {} after the command", output::seconds(rto))),
        (None, None) => {}
    }
    lines.push(format!(
        "Begun {} on host {}, Landfall {}; {} were fetched",
        report.begun,
        report.host,
        report.version,
        output::size(report.fetched_bytes)
    ));
    lines.push(match (&report.picture, &report.no_picture) {
        (Some(p), _) => {
            format!("Picture of the screen: {}, {} (drill show --picture FILE)", p.format, output::size(p.bytes))
        }
        (None, why) => format!("No picture: {}", why.as_deref().unwrap_or("none was taken")),
    });
    let mut text: String = lines.iter().map(|line| plain(line) + "\n").collect();
    let mut rows = vec![["PROBE", ">PASSED AFTER", "OUTCOME"].map(String::from).to_vec()];
    for p in &report.probes {
        let passed = p.passed_ms.map_or_else(|| "-".to_owned(), output::seconds);
        let outcome = if p.passed_ms.is_some() { "passed" } else { p.why.as_deref().unwrap_or("not tried") };
        rows.push(vec![plain(&p.probe), passed, plain(outcome)]);
    }
    text += &output::table(&rows);
    let mut rows = vec![["STEP", ">TOOK", "OUTCOME"].map(String::from).to_vec()];
    for s in &report.steps {
        let took = s.took_ms().map_or_else(|| "-".to_owned(), output::seconds);
        let outcome = s.error.as_ref().map(|e| format!("failed: {e}")).or_else(|| s.detail.clone());
        rows.push(vec![plain(&s.name), took, plain(&outcome.unwrap_or_else(|| "done".to_owned()))]);
    }
    text + &output::table(&rows)
}

pub(super) async fn list(common: &Common, machine: Option<&MachineName>) -> Result<()> {
    let drills = drill::list(&common.any_vault().await?, machine).await?;
    let documents = drills.iter().map(|d| match d {
        Drill::Reported(report) => document(report),
        Drill::Unreported(job) => unreported(job),
    });
    let value = json!({ "drills": documents.collect::<Vec<_>>() });
    output::document(common.json, &value, || {
        let rows = drills.iter().map(|d| match d {
            Drill::Reported(report) => row_of(report.machine.to_string(), Ok(report)),
            Drill::Unreported(job) => cells([
                job.job.to_string(),
                job.machine.to_string(),
                job.point.map_or_else(|| job.asked.clone(), |p| p.seq.to_string()),
                "no report".to_owned(),
                "-".to_owned(),
                d.begun().to_string(),
                format!("see landfall jobs show {}", job.job),
            ]),
        });
        output::table(&with_heading(rows.collect()))
    })
}

pub(super) async fn one(common: &Common, id: JobId, picture: Option<&Path>) -> Result<()> {
    let vault = common.any_vault().await?;
    let found = drill::find(&vault, id).await?.0;
    if let Some(file) = picture {
        save_picture(&vault, &*common.recovery()?, id, file).await?;
    }
    match &found {
        Drill::Reported(report) => output::document(common.json, &document(report), || people(report)),
        Drill::Unreported(job) => output::document(common.json, &unreported(job), || {
            format!("Drill {id} has no report: it goes on, or was killed. Its job:\n{}", jobs::people(job))
        }),
    }
}

pub(super) async fn coverage(common: &Common, days: u32) -> Result<()> {
    let vault = common.any_vault().await?;
    let (names, unreadable) = drill::machines(&vault).await?;
    let covered = drill::coverage(&vault, &names).await?;
    let since = Timestamp::from_millis(now().millis() - i64::from(days) * DAY_MS);
    let total = names.len() + unreadable.len();
    let missing: Vec<_> = covered.iter().filter(|(_, c)| c.passed.is_none_or(|at| at < since)).collect();
    let booted = names.len() - missing.len();
    let named = missing.iter().map(|(name, c)| {
        let newest = c.newest.as_ref();
        json!({ "machine": name, "last_passed": c.passed, "last_drill": newest.map(|r| r.job), "last_begun": newest.map(|r| r.begun),
                "why": newest.and_then(|r| r.why.clone()) })
    });
    let unnamed = unreadable.iter().map(|(id, error)| {
        json!({ "machine": null, "id": id, "last_passed": null, "last_drill": null, "last_begun": null, "why": error.line() })
    });
    let value = json!({ "days": days, "since": since, "machines": total, "booted": booted, "missing": named.chain(unnamed).collect::<Vec<_>>() });
    output::document(common.json, &value, || {
        let mut text = format!("{booted} of {total} machines booted in the last {days} days.\n");
        let mut rows = vec![["MACHINE", "LAST BOOTED", "LAST DRILL", "WHY"].map(String::from).to_vec()];
        let never = || "never".to_owned();
        for (name, c) in &missing {
            let newest = c.newest.as_ref();
            rows.push(vec![
                name.to_string(),
                c.passed.map_or_else(never, |at| at.to_string()),
                newest.map_or_else(never, |r| r.begun.to_string()),
                plain(newest.and_then(|r| r.why.as_deref()).unwrap_or_default()),
            ]);
        }
        for (id, error) in &unreadable {
            rows.push(vec![id.to_string(), "?".to_owned(), "?".to_owned(), plain(&error.line())]);
        }
        if rows.len() > 1 {
            text += &output::table(&rows);
        }
        text
    })
}
