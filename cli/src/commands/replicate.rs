//! `landfall replicate`: one cycle of the image source, the gateway in process.

use std::sync::Arc;

use landfall_gateway::{DiskSpec, Outcome, Request, replicate};
use landfall_model::{Error, ErrorKind, Progress, Result};
use serde_json::{Value, json};

use crate::args::{Common, NamedPath, Replicate};
use crate::{interrupt, output, progress};

/// Takes a recovery point.
pub(crate) async fn run(common: &Common, args: Replicate) -> Result<()> {
    let request = Request {
        machine: args.machine.machine.clone(),
        domain: args.domain,
        disks: disks(&args.disk, &args.exclude)?,
        consistency_command: args.consistency_cmd,
        accept_clock: args.accept_clock,
    };
    let vault = common.site_vault().await?;
    let state = common.state(&vault)?;
    let (cancel, twice) = interrupt::cancel();
    let counters = Arc::new(Progress::default());
    let work = replicate(&vault, &state, &request, &counters, &cancel);
    let what = format!("replicate {}", request.machine);
    // At the second signal the work is dropped where it is: what held the application lets it go.
    let work = async {
        tokio::select! {
            outcome = work => outcome,
            () = twice => Err(Error::new(ErrorKind::Unavailable, "interrupted twice: stopped at once; run again to go on")),
        }
    };
    let outcome = progress::shown(common, &what, "sent", counters.clone(), work).await;
    let outcome = outcome.map_err(|e| e.context(format!("replicate {}", request.machine)))?;
    output::document(common.json, &document(&request, &outcome), || people(&request, &outcome))
}

fn disks(named: &[NamedPath], excluded: &[landfall_model::DiskName]) -> Result<Vec<DiskSpec>> {
    let mut disks: Vec<DiskSpec> = named
        .iter()
        .map(|d| DiskSpec { name: d.name.clone(), path: Some(d.path.clone()), excluded: excluded.contains(&d.name) })
        .collect();
    for name in excluded {
        if excluded.iter().filter(|e| *e == name).count() > 1 {
            return Err(Error::new(ErrorKind::Usage, format!("disk {name} is excluded twice: name each disk once")));
        }
        if !disks.iter().any(|d| d.name == *name) {
            disks.push(DiskSpec { name: name.clone(), path: None, excluded: true });
        }
    }
    Ok(disks)
}

/// The stable document.
pub(crate) fn document(request: &Request, outcome: &Outcome) -> Value {
    let disk = |d: &landfall_gateway::DiskOutcome| json!({ "name": d.name, "size": d.size, "read_bytes": d.read_bytes, "changed_bytes": d.changed_bytes });
    json!({
        "machine": request.machine, "timeline": outcome.timeline, "seq": outcome.seq, "time": outcome.time,
        "disks": outcome.disks.iter().map(disk).collect::<Vec<_>>(),
        "new_chunk_bytes": outcome.new_chunk_bytes, "uploaded_bytes": outcome.uploaded_bytes,
        "elapsed_ms": outcome.elapsed_ms,
    })
}

fn people(request: &Request, outcome: &Outcome) -> String {
    let mut rows = vec![["DISK", ">SIZE", ">READ", ">CHANGED"].map(String::from).to_vec()];
    for disk in &outcome.disks {
        let sizes = [disk.size, disk.read_bytes, disk.changed_bytes].map(output::size);
        rows.push(std::iter::once(disk.name.to_string()).chain(sizes).collect());
    }
    format!(
        "{} is at point {} of {}.\n{}New data {}, sent {}, in {}.\n",
        request.machine,
        outcome.seq,
        outcome.time,
        output::table(&rows),
        output::size(outcome.new_chunk_bytes),
        output::size(outcome.uploaded_bytes),
        output::seconds(outcome.elapsed_ms),
    )
}
