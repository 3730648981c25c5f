//! `landfall point take`: a recovery point now, ordered from wherever the vault can be reached.

use std::process::ExitCode;

use landfall_model::{Consistency, Error, ErrorKind, OrderKind, Result};
use landfall_restore::orders::{self, COMMIT_MAX, Request};
use serde_json::json;

use crate::args::{Common, PointTake};
use crate::{interrupt, output};

/// Orders a point, and waits until it is one.
pub(crate) async fn take(common: &Common, args: PointTake) -> Result<ExitCode> {
    let vault = common.any_vault().await?;
    let machine = args.machine.machine;
    // A name that nobody protects is told at once.
    vault.protected(&machine).await?;
    let wanted: Consistency = args.consistency.into();
    let request = Request { consistency: wanted, ..Request::of(&machine, OrderKind::Point) };
    let quiet = common.quiet;
    let told = |text: &str| {
        if !quiet {
            output::note(&format!("{text} ..."));
        }
    };
    let work = async {
        let done = orders::give(&vault, orders::new_id()?, request, told).await?;
        let cycle = done.cycle.ok_or_else(|| Error::corrupt(format!("the agent of {machine} names no cycle")))?;
        orders::point_of(&vault, &machine, cycle, COMMIT_MAX).await
    };
    let (key, point) = interrupt::or_interrupted(work, "the point may be taken all the same").await?;
    let meta = point.meta();
    let value = json!({
        "machine": machine, "timeline": key.timeline, "seq": key.seq, "time": meta.source_time,
        "consistency": meta.consistency, "wanted": wanted, "hooks": meta.hooks, "changed_bytes": meta.counters.changed_bytes,
    });
    output::document(common.json, &value, || {
        format!("Point {} of {} at {}: {}.\n", key.seq, machine, meta.source_time, meta.consistency)
    })?;
    if meta.consistency < wanted {
        let why = format!(
            "point {} of {machine} guarantees {}, {} was asked for: set freeze_command or hook_before in its agent's configuration, \
             and see why it failed in the agent's log",
            key.seq, meta.consistency, wanted
        );
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    Ok(ExitCode::SUCCESS)
}
