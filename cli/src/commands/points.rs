//! `landfall points` and `landfall machines`.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use landfall_model::{ErrorKind, GroupId, GroupMark, MachineName, Result};
use landfall_vault::{Machine, Point, PointKey, Vault, now};
use serde_json::{Value, json};

use crate::args::Common;
use crate::output;

/// Points read at once.
const POINTS_IN_FLIGHT: usize = 16;

/// Lists the points of a machine.
pub(crate) async fn points(common: &Common, name: &MachineName) -> Result<()> {
    let vault = common.any_vault().await?;
    let (machine, line) = vault.protected(name).await?;
    // A row a point: the maps of a hundred thousand points are not kept.
    let row = |p: Point| {
        let (meta, counters) = (p.meta(), &p.meta().counters);
        let row = json!({
            "seq": p.seq(), "time": meta.source_time, "timeline": p.timeline(), "consistency": meta.consistency, "shape": meta.shape, "hooks": meta.hooks,
            "changed_bytes": counters.changed_bytes, "stored_bytes": counters.stored_bytes, "pinned": meta.pinned,
        });
        (row, meta.group.clone())
    };
    let rows: Vec<(Value, Option<GroupMark>)> = read(&machine, line, row).await?;
    let complete = complete(&vault, &machine_marks(name, &rows)).await?;
    let points: Vec<Value> = rows.into_iter().map(|(row, mark)| with_group(row, mark, &complete)).collect();
    let value = json!({ "machine": name, "points": points });
    output::document(common.json, &value, || people(&points))
}

/// The rows for people; groups have a column where there are any.
fn people(points: &[Value]) -> String {
    let grouped = points.iter().any(|p| !p["group"].is_null());
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let bytes = |v: &Value| output::size(v.as_u64().unwrap_or(0));
    let head = [">SEQ", "TIME", ">TIMELINE", "CONSISTENCY", ">CHANGED", ">STORED"].map(String::from);
    let group_head = grouped.then(|| "GROUP".to_owned());
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().chain(group_head).collect()];
    rows.extend(points.iter().map(|p| {
        let fields = [&p["seq"], &p["time"], &p["timeline"], &p["consistency"]].map(text);
        let sizes = [&p["changed_bytes"], &p["stored_bytes"]].map(bytes);
        fields.into_iter().chain(sizes).chain(grouped.then(|| group_text(&p["group"]))).collect()
    }));
    output::table(&rows)
}

/// Reads the points of a line; few at a time, and what is not wanted of them is not kept.
async fn read<T>(machine: &Machine, line: Vec<PointKey>, row: impl Fn(Point) -> T) -> Result<Vec<T>> {
    stream::iter(line).map(|key| machine.point(key)).buffered(POINTS_IN_FLIGHT).map_ok(row).try_collect().await
}

/// The cuts of groups that stand in the points of a machine, and those who must have each.
fn machine_marks(name: &MachineName, rows: &[(Value, Option<GroupMark>)]) -> BTreeMap<GroupId, BTreeSet<MachineName>> {
    let marks = rows.iter().filter_map(|(_, mark)| mark.as_ref());
    marks.map(|m| (m.id, m.members.iter().filter(|m| *m != name).cloned().collect())).collect()
}

/// The cuts of which every other member has a point: the groups that exist (FORMAT.md, section 8). Reads the points of these members.
async fn complete(vault: &Vault, wanted: &BTreeMap<GroupId, BTreeSet<MachineName>>) -> Result<BTreeSet<GroupId>> {
    let mut found: BTreeMap<MachineName, BTreeSet<GroupId>> = BTreeMap::new();
    for name in wanted.values().flatten().collect::<BTreeSet<_>>() {
        let machine = vault.machine(name);
        let ids = async { read(&machine, machine.line().await?, |p| p.meta().group.as_ref().map(|g| g.id)).await };
        match ids.await {
            Ok(ids) => drop(found.insert(name.clone(), ids.into_iter().flatten().collect())),
            // What is damaged there is no group here; this machine's points are listed all the same.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(%error, machine = %name, "its points cannot be read: groups with it are shown as incomplete");
            }
            Err(error) => return Err(error),
        }
    }
    let has = |name: &MachineName, id: &GroupId| found.get(name).is_some_and(|ids| ids.contains(id));
    let whole = wanted.iter().filter(|(id, members)| members.iter().all(|m| has(m, id)));
    Ok(whole.map(|(id, _)| *id).collect())
}

/// A point's row with its group, if it has one.
fn with_group(mut row: Value, mark: Option<GroupMark>, complete: &BTreeSet<GroupId>) -> Value {
    row["group"] = mark.map_or(Value::Null, |m| {
        let complete = complete.contains(&m.id);
        json!({ "name": m.name, "id": m.id, "time": m.time, "members": m.members, "complete": complete })
    });
    row
}

fn group_text(group: &Value) -> String {
    match (group["name"].as_str(), group["complete"].as_bool()) {
        (Some(name), Some(true)) => name.to_owned(),
        (Some(name), _) => format!("{name} (incomplete)"),
        (None, _) => "-".to_owned(),
    }
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
