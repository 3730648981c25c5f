//! The groups of a configuration file.
//!
//! ```toml
//! [[group]]
//! name = "shop"
//! machines = ["web-01", "db-01"]  # at least two; a machine is in one group at most
//! interval = "5min"               # the default; from 1s to 24h
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use landfall_model::{GroupName, MachineName, Result};
use landfall_settings::{Source, Table, Value};

use crate::groups::GroupConfig;

const KEYS: &[&str] = &["name", "machines", "interval"];
const INTERVAL: Duration = Duration::from_secs(300);
/// Most machines of a group: all of them stand still together.
const MACHINES_MAX: usize = 64;

/// Reads all `[[group]]` sections.
///
/// # Errors
/// `Usage`, naming the line and what to do.
pub(crate) fn groups<'a>(source: Source<'a>, value: Option<&'a Value<'a>>) -> Result<Vec<GroupConfig>> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let list = value.get_ref().as_array();
    let list = list.ok_or_else(|| source.wrong(value.span().start, "group is not a list: write [[group]]"))?;
    let (mut names, mut members) = (BTreeSet::new(), BTreeSet::new());
    let mut groups = Vec::new();
    for value in list.iter() {
        let table = source.table(value, "[[group]]")?;
        let group = group(&table)?;
        if !names.insert(group.name.clone()) {
            let why = format!("group {} is named twice: give each group once", group.name);
            return Err(source.wrong(table.place(), why));
        }
        if let Some(twice) = group.machines.iter().find(|m| !members.insert((*m).clone())) {
            let why = format!("machine {twice} is named twice: give each machine once, in one group");
            return Err(source.wrong(table.place(), why));
        }
        groups.push(group);
    }
    Ok(groups)
}

fn group(table: &Table<'_>) -> Result<GroupConfig> {
    table.only(KEYS)?;
    let source = table.source();
    let name = table.parsed::<GroupName>("name", "add name = \"NAME\"")?;
    let texts = source.texts(table.required("machines", "add machines = [\"NAME\", \"NAME\"]")?)?;
    let machine = |(at, text): (usize, String)| text.parse::<MachineName>().map_err(|e| source.wrong(at, e));
    let machines = texts.into_iter().map(machine).collect::<Result<Vec<_>>>()?;
    if !(2..=MACHINES_MAX).contains(&machines.len()) {
        let why = format!("a group has from 2 to {MACHINES_MAX} machines, not {}", machines.len());
        return Err(source.wrong(table.place(), why));
    }
    Ok(GroupConfig { name, machines, interval: table.duration("interval")?.unwrap_or(INTERVAL) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn parse(text: &str) -> Result<Vec<GroupConfig>> {
        let source = Source::new(text, Path::new("gateway.toml"));
        let document = source.parse()?;
        groups(source, source.root(&document).get("group"))
    }

    #[test]
    fn groups_are_read_and_what_is_wrong_is_told_with_its_line() {
        let two = "[[group]]\nname = \"shop\"\nmachines = [\"web\", \"db\"]\ninterval = \"30s\"\n[[group]]\nname = \"b\"\nmachines = [\"x\", \"y\"]\n";
        let groups = parse(two).expect("right");
        assert_eq!(groups.iter().map(|g| g.interval.as_secs()).collect::<Vec<_>>(), [30, 300]);
        assert_eq!(groups[0].machines.iter().map(MachineName::as_str).collect::<Vec<_>>(), ["web", "db"]);
        assert_eq!(parse("").expect("none"), []);
        for (text, wanted) in [
            ("[group]\nname = \"a\"", "gateway.toml:1: group is not a list: write [[group]]"),
            ("[[group]]\nmachines = [\"a\", \"b\"]", "gateway.toml:1: [[group]] has no name"),
            ("\n[[group]]\nname = \"a\"", "gateway.toml:2: [[group]] has no machines"),
            ("[[group]]\nname = \"a\"\nmachines = [\"a\"]", "from 2 to 64 machines, not 1"),
            ("[[group]]\nname = \"a\"\nmachines = [\"a\",\n \"../b\"]", "gateway.toml:4: "),
            ("[[group]]\nname = \"a\"\nmachines = [\"a\", \"a\"]", "machine a is named twice"),
            (&two.replace('x', "web"), "gateway.toml:5: machine web is named twice"),
            (&two.replace("\"b\"", "\"shop\""), "gateway.toml:5: group shop is named twice"),
            (&two.replace("30s", "30"), "gateway.toml:4: interval"),
            (&two.replace("interval", "intervall"), "did you mean \"interval\"?"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(wanted), "{text:?}: {error}");
        }
    }
}
