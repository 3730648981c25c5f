//! What is left out of points because the configuration says so: swap that is in use, and only for as long as it is.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landfall_tests::landfall::{Site, exit};
use landfall_tests::loops::{Loop, can_be_watched};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::{disks, need, tools};
use serde_json::Value;
use support::MIB;

const SKIP: &str = "skip = [\"swap\"]";
/// What is sent of a swap all the same.
const HEAD_BYTES: u64 = 64 << 10;

/// A swap that is in use. Not any more when it is dropped.
struct Swap(PathBuf);

impl Swap {
    /// `None` after saying that this host, which may be a container, cannot.
    fn on(at: &Path) -> Option<Self> {
        tools::succeed(Command::new(tools::need("mkswap")?).arg(at));
        let out = tools::output(Command::new(tools::need("swapon")?).arg(at));
        if !out.status.success() {
            tools::missing("leave to swap");
            return None;
        }
        Some(Self(at.to_owned()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

fn need_watch() -> Option<()> {
    can_be_watched().then_some(())
}

#[test]
fn a_swap_device_is_zero_behind_its_head_while_it_is_in_use_and_whole_afterwards() {
    need!(need_watch());
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let file = site.disk("disk.img");
    disks::random(&file, 16 * MIB + 4096, 1);
    let device = need!(Loop::of(&file));
    let swap = need!(Swap::on(device.device()));
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", device.device())], SKIP);
    host.enroll(&gateway);
    let check = host.check().json();
    let disk = &check["disks"][0];
    assert_eq!(
        (&disk["skipped_bytes"], &disk["not_skipped"]),
        (&(16 * MIB - HEAD_BYTES).into(), &Value::Null),
        "{check}"
    );
    let config = host.state().with_file_name("agent.toml");
    let people = site.run(&["agent", "check", "--config", config.to_str().unwrap()]);
    assert!(people.story().contains("SKIPS") && people.story().contains("swap in use: 15.9 MiB"), "{}", people.story());
    let agent = host.start();
    host.wait_for_points(2);
    let back = site.disk("back");
    site.rehydrate("web", "latest", &[("root", &back)]);
    assert_eq!(disks::first_difference(&back, &file, 0..HEAD_BYTES), None, "its signature and UUID are there");
    let bytes = fs::read(&back).unwrap();
    let head = usize::try_from(HEAD_BYTES).unwrap();
    assert!(bytes[head..16 << 20].iter().all(|byte| *byte == 0), "what was swapped is not");
    assert_eq!(disks::first_difference(&back, &file, 16 * MIB..disks::size(&file)), None, "less than a block is sent");
    // The same agent, which compares nothing by itself.
    drop(swap);
    assert_eq!(host.check().json()["disks"][0]["skipped_bytes"], 0);
    site.wait_until_newest_is("web", "root", &file);
    disks::write_at(device.device(), 5 * MIB, b"no swap any more");
    fs::File::open(device.device()).unwrap().sync_all().unwrap();
    site.wait_until_newest_is("web", "root", &file);
    agent.interrupt();
    assert_eq!(agent.finish().code(), Some(exit::DONE));
    drop(device);
}

#[test]
fn a_swap_file_is_zero_while_it_is_in_use_and_no_other_file_is_ever() {
    need!(need_watch());
    let debugfs = need!(tools::need("debugfs"));
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let file = site.disk("disk.img");
    need!(disks::ext4(&file, 96 * MIB, 8 * MIB));
    let device = need!(Loop::of(&file));
    let mounted = device.mount(&site.folder().join("mnt"));
    let (at, beside) = (mounted.at().join("swap"), mounted.at().join("beside"));
    fs::write(&at, disks::seeded_bytes(1, 8 << 20)).unwrap();
    fs::write(&beside, disks::seeded_bytes(2, 3 << 20)).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::sync();
    let swap = need!(Swap::on(&at));
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", device.device())], SKIP);
    host.enroll(&gateway);
    let agent = host.start();
    host.wait_for_points(2);
    let dump = |name: &str| {
        let (back, out) = (site.disk("back"), site.disk("dumped"));
        site.rehydrate("web", "latest", &[("root", &back)]);
        disks::assert_ext4_healthy(&back);
        let request = format!("dump /{name} {}", out.display());
        tools::succeed(Command::new(&debugfs).args(["-R", &request]).arg(&back));
        let bytes = fs::read(&out).unwrap();
        fs::remove_file(back).unwrap();
        fs::remove_file(out).unwrap();
        bytes
    };
    let swapped = dump("swap");
    assert_eq!(swapped.len(), 8 << 20);
    assert_eq!(&swapped[4086..4096], b"SWAPSPACE2");
    let zeroes = swapped.iter().filter(|byte| **byte == 0).count();
    assert!(zeroes > 7 << 20, "{zeroes} bytes of it are zero");
    assert_eq!(dump("beside"), disks::seeded_bytes(2, 3 << 20));
    // Its blocks become those of other files.
    drop(swap);
    fs::remove_file(&at).unwrap();
    fs::write(mounted.at().join("after"), disks::seeded_bytes(3, 60 << 20)).unwrap();
    rustix::fs::sync();
    let points = site.point_count("web");
    host.wait_for_points(points + 2);
    assert!(dump("after") == disks::seeded_bytes(3, 60 << 20), "blocks that were swap are read again");
    drop(mounted);
    site.wait_until_newest_is("web", "root", &file);
    agent.interrupt();
    assert_eq!(agent.finish().code(), Some(exit::DONE));
    drop(device);
}
