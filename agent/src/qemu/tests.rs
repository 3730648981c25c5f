//! What is decided of the answers of QEMU.

use landfall_model::ErrorKind;
use serde_json::json;

use super::graph::{self, Bitmap, Known};
use super::names::{Names, Part};
use crate::fingerprints::BLOCK_BYTES;

fn bitmap(name: &str, recording: bool) -> Bitmap {
    Bitmap { name: name.to_owned(), recording, inconsistent: false, granularity: BLOCK_BYTES }
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn the_bitmap_of_the_base_has_all_that_was_written_since_or_nothing_is_believed() {
    let known = |ours: &[Bitmap], base| graph::known(ours, base, BLOCK_BYTES);
    let since = |merge: &[&str], forget: &[&str]| Known::Since { merge: names(merge), forget: names(forget) };
    // The usual case; and after a cycle that was spooled, whose bitmap before is still there.
    assert_eq!(known(&[bitmap("c", true)], Some("c")), since(&[], &[]));
    assert_eq!(known(&[bitmap("b", false), bitmap("c", true)], Some("c")), since(&[], &["b"]));
    // A cycle that was not spooled: what was written since its cut belongs to the next.
    assert_eq!(known(&[bitmap("c", false), bitmap("d", true)], Some("c")), since(&["d"], &[]));
    // The agent died before the one before ended.
    assert_eq!(known(&[bitmap("c", true), bitmap("d", true)], Some("c")), since(&[], &["d"]));
    // Another QEMU; a state directory of another time; nobody recorded; a first cycle.
    for (ours, base) in [
        (vec![], Some("c")),
        (vec![bitmap("d", true)], Some("c")),
        (vec![bitmap("c", false)], Some("c")),
        (vec![bitmap("c", false), bitmap("d", false)], Some("c")),
        (vec![bitmap("c", true)], None),
        (vec![Bitmap { inconsistent: true, ..bitmap("c", true) }], Some("c")),
        (vec![Bitmap { granularity: 512, ..bitmap("c", true) }], Some("c")),
    ] {
        let all: Vec<String> = ours.iter().map(|b| b.name.clone()).collect();
        let answer = known(&ours, base);
        assert!(matches!(&answer, Known::Unknown { forget, .. } if *forget == all), "{ours:?}: {answer:?}");
    }
}

#[test]
fn a_disk_is_found_by_what_it_is_called() {
    let block = |device: &str, qdev: &str, node: &str| {
        let image = json!({ "filename": "/x", "virtual-size": 1024 });
        json!({ "device": device, "qdev": qdev, "inserted": { "node-name": node, "image": image } })
    };
    let mut said = json!([
        block("", "/machine/peripheral/root/virtio-backend", "n0"),
        block("drive1", "/machine/peripheral-anon/device[1]/virtio-backend", "#block123"),
        block("", "scsi0", "n2"),
        { "device": "cd0", "qdev": "cd" },
        block("floppy0", "", "n4"),
    ]);
    let devices = graph::devices(&said);
    for (name, qom) in [
        ("root", "/machine/peripheral/root/virtio-backend"),
        ("n0", "/machine/peripheral/root/virtio-backend"),
        ("drive1", "/machine/peripheral-anon/device[1]/virtio-backend"),
        ("#block123", "/machine/peripheral-anon/device[1]/virtio-backend"),
        ("scsi0", "/machine/peripheral/scsi0"),
    ] {
        assert_eq!(graph::find(&devices, name).expect("found").qom, qom, "{name}");
    }
    for nobody in ["cd0", "floppy0", "", "peripheral"] {
        let error = graph::find(&devices, nobody).expect_err("not there");
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("root"), "{error}");
    }
    said[0]["inserted"]["node-name"] = "scsi0".into();
    let error = graph::find(&graph::devices(&said), "scsi0").expect_err("two of them");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(graph::devices(&json!({ "what": 1 })).is_empty() && graph::nodes(&json!(7)).is_empty());
}

#[test]
fn names_fit_into_what_qemu_takes_and_tell_agents_and_disks_apart() {
    let (one, other) = (Names::of("/one".as_ref()), Names::of("/other".as_ref()));
    let long = "n".repeat(31);
    let node = one.node(&long, Part::Filter);
    assert!(node.len() <= 31 && one.is_ours(&node) && !other.is_ours(&node), "{node}");
    assert_ne!(node, one.node("#block123", Part::Filter));
    assert_ne!(node, one.node(&long, Part::Scratch));
}
