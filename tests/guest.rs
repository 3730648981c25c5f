//! The guest that other tests stand on: it boots, does what it is told, and what it writes is on its disks.

use std::fs;
use std::time::Duration;

use landfall_qmp::{GuestAgent, Qmp};
use landfall_tests::guest::{GuestDisk, Programs};
use landfall_tests::{disks, need};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_guest_boots_runs_its_script_takes_commands_and_freezes() {
    let programs = need!(Programs::find());
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("root.img"), folder.path().join("data.img"));
    programs.system_disk(&root, 64 * MIB, "echo started >/begun; sync; echo SCRIPT-RUNS");
    disks::zeroes(&data, 4 * MIB);
    let all = [GuestDisk::raw("root", &root), GuestDisk::raw("data", &data)];
    let guest = programs.start(&folder.path().join("vm"), &all, &[]);
    guest.wait_for("SCRIPT-RUNS");
    assert_eq!(guest.run("cat /begun"), "started");
    assert_eq!(guest.try_run("exit 7").0, 7);
    guest.run("printf landfall | dd of=/dev/vdb bs=512 seek=100 conv=fsync");
    assert_eq!(&fs::read(&data).unwrap()[51_200..51_208], b"landfall");
    let mut qmp = Qmp::connect(&guest.qmp(), LONG).unwrap();
    assert_eq!(qmp.execute("query-status", Value::Null).unwrap()["running"], true);
    let mut agent = GuestAgent::connect(&guest.agent(), LONG).unwrap();
    assert_eq!(agent.freeze(LONG).unwrap(), 1);
    assert!(agent.is_frozen(LONG).unwrap());
    // What a file system that is frozen has on its disk needs no journal.
    disks::assert_ext4_healthy(&root);
    assert_eq!(agent.thaw(LONG).unwrap(), 1);
    guest.run("touch /thawed");
    qmp.execute("quit", Value::Null).unwrap();
    assert_eq!(qmp.event(|e| e.name == "SHUTDOWN", LONG).unwrap().data["guest"], false);
}
