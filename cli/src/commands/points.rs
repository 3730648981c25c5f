//! `landfall points` and `landfall machines`.

use futures_util::{StreamExt, TryStreamExt, stream};
use landfall_model::{Error, ErrorKind, MachineName, Result};
use landfall_vault::{Point, now};
use serde_json::{Value, json};

use crate::args::Common;
use crate::output;

/// Points read at once.
const POINTS_IN_FLIGHT: usize = 16;

/// Lists the points of a machine.
pub(crate) async fn points(common: &Common, name: &MachineName) -> Result<()> {
    let vault = common.any_vault().await?;
    let machine = vault.machine(name);
    let line = machine.line().await?;
    if line.is_empty() {
        let why = format!("machine {name} has no recovery points in {}: see `landfall machines`", vault.store().url());
        return Err(Error::new(ErrorKind::NotFound, why));
    }
    // A row a point: the maps of a hundred thousand points are not kept.
    let row = |p: Point| {
        let (meta, counters) = (p.meta(), &p.meta().counters);
        json!({
            "seq": p.seq(), "time": meta.source_time, "timeline": p.timeline(), "consistency": meta.consistency,
            "changed_bytes": counters.changed_bytes, "stored_bytes": counters.stored_bytes, "pinned": meta.pinned,
        })
    };
    let points: Vec<Value> =
        stream::iter(line).map(|key| machine.point(key)).buffered(POINTS_IN_FLIGHT).map_ok(row).try_collect().await?;
    let value = json!({ "machine": name, "points": points });
    output::document(common.json, &value, || {
        let mut rows =
            vec![[">SEQ", "TIME", ">TIMELINE", "CONSISTENCY", ">CHANGED", ">STORED"].map(String::from).to_vec()];
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let bytes = |v: &Value| output::size(v.as_u64().unwrap_or(0));
        rows.extend(points.iter().map(|p| {
            let fields = [&p["seq"], &p["time"], &p["timeline"], &p["consistency"]].map(text);
            fields.into_iter().chain([&p["changed_bytes"], &p["stored_bytes"]].map(bytes)).collect()
        }));
        output::table(&rows)
    })
}

/// Lists the machines of a vault, each with its newest point.
pub(crate) async fn machines(common: &Common) -> Result<()> {
    let vault = common.any_vault().await?;
    let mut found = Vec::new();
    for machine in vault.machines().await? {
        let line = machine.line().await?;
        let Some(last) = line.last() else { continue };
        found.push((machine.point(*last).await?, line.len()));
    }
    found.sort_by(|(a, _), (b, _)| a.meta().machine.cmp(&b.meta().machine));
    let now = now();
    let rpo_seconds = |p: &Point| (now.millis() - p.meta().source_time.millis()).max(0) / 1000;
    let value = json!({
        "machines": found.iter().map(|(point, points)| json!({
            "machine": point.meta().machine, "id": point.header.position.machine, "timeline": point.timeline(),
            "points": points, "last_seq": point.seq(), "last_time": point.meta().source_time, "rpo_seconds": rpo_seconds(point),
            "disks": point.meta().disks.iter().map(|d| json!({ "name": d.name, "size": d.size, "excluded": d.excluded })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    output::document(common.json, &value, || {
        let mut rows = vec![["MACHINE", ">POINTS", "LAST POINT", ">AGE", ">SIZE", "DISKS"].map(String::from).to_vec()];
        for (point, points) in &found {
            let meta = point.meta();
            let protected = meta.disks.iter().filter(|d| !d.excluded);
            rows.push(vec![
                meta.machine.to_string(),
                points.to_string(),
                format!("{} of {}", point.seq(), meta.source_time),
                output::seconds(u64::try_from(rpo_seconds(point)).unwrap_or(0) * 1000),
                output::size(protected.map(|d| d.size).sum()),
                meta.disks.iter().map(|d| d.name.to_string()).collect::<Vec<_>>().join(", "),
            ]);
        }
        output::table(&rows)
    })
}
