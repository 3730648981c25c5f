//! What a QEMU says of its disks: devices, nodes, bitmaps. Parsed from its answers, and pure.

use landfall_model::{Error, ErrorKind, Result};
use serde_json::Value;

/// A guest's disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    /// Where its property `drive` is.
    pub(crate) qom: String,
    /// The node that it has now.
    pub(crate) node: String,
    /// Bytes.
    pub(crate) size: u64,
    /// The file behind it, as QEMU names it.
    pub(crate) file: String,
    /// All that it is called.
    names: Vec<String>,
}

/// A bitmap of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bitmap {
    pub(crate) name: String,
    /// Whether writes are marked in it.
    pub(crate) recording: bool,
    /// It may lack marks: QEMU did not write it when it ended.
    pub(crate) inconsistent: bool,
    pub(crate) granularity: u64,
}

/// A node with a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) bitmaps: Vec<Bitmap>,
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The devices in the answer to `query-block`; empty drives are left out.
pub(crate) fn devices(said: &Value) -> Vec<Device> {
    let device = |block: &Value| {
        let (qdev, inserted) = (text(&block["qdev"])?, &block["inserted"]);
        let node = text(&inserted["node-name"])?;
        let qom = if qdev.starts_with('/') { qdev.clone() } else { format!("/machine/peripheral/{qdev}") };
        // "/machine/peripheral/ID/virtio-backend"
        let id = qom.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
        let mut names: Vec<String> = id.map(str::to_owned).into_iter().chain([qdev, node.clone()]).collect();
        names.extend(text(&block["device"]));
        let file = text(&inserted["image"]["filename"]).unwrap_or_default();
        Some(Device { qom, node, size: inserted["image"]["virtual-size"].as_u64()?, file, names })
    };
    said.as_array().into_iter().flatten().filter_map(device).collect()
}

/// The nodes in the answer to `query-named-block-nodes`.
pub(crate) fn nodes(said: &Value) -> Vec<Node> {
    let bitmap = |bitmap: &Value| {
        Some(Bitmap {
            name: text(&bitmap["name"])?,
            recording: bitmap["recording"] == true,
            inconsistent: bitmap["inconsistent"] == true,
            granularity: bitmap["granularity"].as_u64()?,
        })
    };
    let node = |node: &Value| {
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten().filter_map(bitmap).collect();
        Some(Node { name: text(&node["node-name"])?, bitmaps })
    };
    said.as_array().into_iter().flatten().filter_map(node).collect()
}

/// The device that a configuration means: by its id, the name of its drive, or its node.
///
/// # Errors
/// `NotFound`, with the names that there are; `Usage` where several have it.
pub(crate) fn find<'a>(devices: &'a [Device], wanted: &str) -> Result<&'a Device> {
    let mut found = devices.iter().filter(|device| device.names.iter().any(|name| name == wanted));
    match (found.next(), found.next()) {
        (Some(device), None) => Ok(device),
        (Some(_), Some(_)) => {
            Err(Error::new(ErrorKind::Usage, format!("several disks of the guest are called {wanted:?}: give its id")))
        }
        (None, _) => {
            let known: Vec<&str> = devices.iter().filter_map(|device| Some(device.names.first()?.as_str())).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let why = format!("no disk of the guest is called {wanted:?}; it has: {known}");
            Err(Error::new(ErrorKind::NotFound, why))
        }
    }
}

/// What there is of our bitmaps on a disk, and what is to be made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Known {
    /// The bitmap of the base has, or with `merge` will have, all that was written since; `forget` is of no use any more.
    Since { merge: Vec<String>, forget: Vec<String> },
    /// What was written is not known: why, and what is to be removed.
    Unknown { why: &'static str, forget: Vec<String> },
}

/// Looks at our bitmaps of a disk. `base`: the name of the one that is needed; none where nothing is known of the disk anyhow.
///
/// Where the base's bitmap does not record any more, its cycle was followed by a cut, whose own bitmap began before it ended: together they have everything as long as one of them records. A
/// bitmap that is older than the base may be among the others; it names too much, never too little.
pub(crate) fn known(ours: &[Bitmap], base: Option<&str>, granularity: u64) -> Known {
    let all = || ours.iter().map(|bitmap| bitmap.name.clone()).collect();
    let unknown = |why| Known::Unknown { why, forget: all() };
    let Some(base) = base else { return unknown("nothing was captured before") };
    let Some(found) = ours.iter().find(|bitmap| bitmap.name == base) else {
        return unknown("this QEMU has no bitmap of the cut before: it was started anew, or the disk is new");
    };
    if ours.iter().any(|bitmap| bitmap.inconsistent || bitmap.granularity != granularity) {
        return unknown("a bitmap is inconsistent");
    }
    let others: Vec<String> = ours.iter().filter(|b| b.name != base).map(|b| b.name.clone()).collect();
    if found.recording {
        return Known::Since { merge: Vec::new(), forget: others };
    }
    if ours.iter().any(|bitmap| bitmap.recording) {
        return Known::Since { merge: others, forget: Vec::new() };
    }
    unknown("no bitmap was recording")
}
