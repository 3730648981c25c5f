//! `landfall rehydrate`: the disks of a point, from nothing but the vault and the recovery key.

use std::process::ExitCode;
use std::sync::Arc;

use landfall_model::{ErrorKind, Progress, Result};
use landfall_restore::{Options, Outcome, TargetSpec, rehydrate};
use serde_json::{Value, json};

use crate::args::{Common, Rehydrate};
use crate::{interrupt, output, progress};

/// Rehydrates.
pub(crate) async fn run(common: &Common, args: Rehydrate) -> Result<ExitCode> {
    let recovery = common.recovery()?;
    let vault = common.vault_to_restore(&recovery).await?;
    let specs: Vec<TargetSpec> =
        args.disk.iter().map(|d| TargetSpec { disk: d.name.clone(), path: d.path.clone() }).collect();
    let options = Options { format: args.format, existing: args.existing, salvage: args.salvage };
    let counters = Arc::new(Progress::default());
    let machine = &args.machine.machine;
    let work = rehydrate(&vault, recovery, machine, args.point.0, &specs, options, &counters);
    let work = interrupt::or_interrupted(work, "no image has its final name that is not whole; run again to go on");
    let outcome = progress::shown(common, &format!("rehydrate {machine}"), "fetched", counters.clone(), work).await;
    let outcome = outcome.map_err(|e| e.context(format!("rehydrate {machine}")))?;
    output::document(common.json, &document(&outcome), || people(&outcome, &specs))?;
    for damage in &outcome.damaged {
        let (start, end) = (damage.extent.start, damage.extent.end());
        output::error_line(&format!(
            "disk {} bytes {start}..{end} of point {} are lost: {}",
            damage.disk, outcome.seq, damage.why
        ));
    }
    let code = if outcome.damaged.is_empty() { 0 } else { ErrorKind::Corrupt.exit_code() };
    Ok(ExitCode::from(code))
}

/// The stable document.
fn document(outcome: &Outcome) -> Value {
    let disk = |d: &landfall_restore::DiskOutcome| json!({ "name": d.name, "size": d.size, "written_bytes": d.written_bytes, "skipped_bytes": d.skipped_bytes });
    let damage = |d: &landfall_restore::Damage| json!({ "disk": d.disk, "start": d.extent.start, "length": d.extent.len, "why": d.why });
    json!({
        "seq": outcome.seq, "time": outcome.time, "disks": outcome.disks.iter().map(disk).collect::<Vec<_>>(),
        "fetched_bytes": outcome.fetched_bytes, "damaged": outcome.damaged.iter().map(damage).collect::<Vec<_>>(),
        "elapsed_ms": outcome.elapsed_ms,
    })
}

fn people(outcome: &Outcome, specs: &[TargetSpec]) -> String {
    let mut rows = vec![["DISK", ">SIZE", ">WRITTEN", ">ALREADY RIGHT", "TARGET"].map(String::from).to_vec()];
    for (disk, spec) in outcome.disks.iter().zip(specs) {
        let sizes = [disk.size, disk.written_bytes, disk.skipped_bytes].map(output::size);
        let target = spec.path.display().to_string();
        rows.push(std::iter::once(disk.name.to_string()).chain(sizes).chain([target]).collect());
    }
    format!(
        "Point {} of {}:\n{}Fetched {} in {}.\n",
        outcome.seq,
        outcome.time,
        output::table(&rows),
        output::size(outcome.fetched_bytes),
        output::seconds(outcome.elapsed_ms),
    )
}
