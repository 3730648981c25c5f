//! `landfall serve`: disks of a point over NBD, straight from the vault, as the clients of this world read and write them.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use landfall_tests::landfall::{Running, Site, exit, strs};
use landfall_tests::{disks, need, tools};

const MIB: u64 = 1 << 20;

/// A server that is up.
struct Served {
    running: Running,
    socket: PathBuf,
}

impl Served {
    fn start(site: &Site, machine: &str, more: &[&str]) -> Self {
        let socket = site.disk("nbd.sock");
        let _ = fs::remove_file(&socket);
        let address = format!("unix:{}", socket.display());
        let mut arguments = vec!["serve", "--machine", machine, "--nbd", &address];
        arguments.extend(more);
        let customer = site.as_customer(&arguments);
        let mut running = site.start_in(&site.new_state(), &strs(&customer));
        assert!(running.wait_until(|| socket.exists()), "it ended: {}", running.finish().story());
        Self { running, socket }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Ends it as Ctrl-C does: in order.
    fn stop(self) {
        self.running.interrupt();
        let ran = self.running.finish();
        assert_eq!(ran.code(), Some(exit::DONE), "{}", ran.story());
        assert!(!self.socket.exists(), "the socket is gone");
    }
}

fn copy(from: &str, to: &Path) {
    tools::succeed(Command::new("nbdcopy").arg(from).arg(to));
}

/// Runs commands of qemu-io on an export.
fn io(uri: &str, commands: &[&str]) {
    let mut qemu_io = Command::new("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let said = tools::succeed(qemu_io.arg(uri));
    assert!(!said.to_lowercase().contains("failed"), "{commands:?}: {said}");
}

fn here() -> Option<()> {
    for tool in ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"] {
        tools::need(tool)?;
    }
    Some(())
}

#[test]
fn each_disk_of_each_point_is_served_as_it_was() {
    need!(here());
    let site = Site::with_vault();
    let (root, data) = (site.disk("root.img"), site.disk("data.img"));
    need!(disks::ext4(&root, 96 * MIB, 40 * MIB));
    disks::random(&data, 5 * MIB + 512, 3);
    let (root_1, data_1) = (site.disk("root-1.img"), site.disk("data-1.img"));
    site.replicate("web", &[("root", &root), ("data", &data)]);
    disks::copy(&root, &root_1);
    disks::copy(&data, &data_1);
    disks::ext4_write(&root, "report.bin", 3_000_000, 7);
    disks::write_at(&data, 4 * MIB - 100, &[9; 5000]);
    site.replicate("web", &[("root", &root), ("data", &data)]);

    for (point, root, data) in [("1", &root_1, &data_1), ("latest", &root, &data)] {
        let served = Served::start(&site, "web", &["--point", point]);
        let listed = tools::succeed(Command::new("nbdinfo").args(["--list", &served.uri("")]));
        assert!(listed.contains("export=\"root\"") && listed.contains("export=\"data\""), "{listed}");
        assert!(listed.contains("is_read_only: true"), "{listed}");
        for (name, disk) in [("root", root), ("data", data)] {
            let back = site.disk("back.img");
            copy(&served.uri(name), &back);
            disks::assert_same(disk, &back);
            tools::succeed(
                Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(disk).arg(served.uri(name)),
            );
            fs::remove_file(back).unwrap();
        }
        served.stop();
    }
}

#[test]
fn holes_are_told_and_are_not_moved() {
    need!(here());
    let site = Site::with_vault();
    let disk = site.disk("sparse.img");
    disks::zeroes(&disk, 640 * MIB);
    for at in [0, 130 * MIB, 512 * MIB] {
        disks::write_at(&disk, at, &disks::seeded_bytes(17, 300_000));
    }
    site.replicate("web", &[("root", &disk)]);
    let served = Served::start(&site, "web", &[]);
    let map = tools::succeed(Command::new("nbdinfo").args(["--map", "--totals", &served.uri("root")]));
    let data: u64 = map
        .lines()
        .filter(|line| line.contains("data"))
        .map(|line| line.split_whitespace().next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!((900_000..3_000_000).contains(&data), "{map}");
    let back = site.disk("back.img");
    copy(&served.uri("root"), &back);
    disks::assert_same(&disk, &back);
    assert!(disks::allocated_bytes(&back) < 8 * MIB, "holes stay holes");
    served.stop();
}

#[test]
fn what_is_written_goes_to_the_overlay_and_is_there_again_and_the_point_is_not_touched() {
    need!(here());
    let site = Site::with_vault();
    let (disk, overlay) = (site.disk("disk.img"), site.disk("disk.overlay"));
    disks::random(&disk, 6 * MIB + 512, 5);
    site.replicate("web", &[("root", &disk)]);
    let written = site.disk("written.img");
    disks::copy(&disk, &written);
    let file = fs::OpenOptions::new().write(true).open(&written).unwrap();
    // Parts of blocks, whole blocks, over the borders of blocks, the last sector; and the same again, other bytes.
    let writes: [(u64, usize, u8); 7] = [
        (100, 1, 0x11),
        (65_000, 2_000, 0x22),
        (2 * MIB, 131_072, 0x33),
        (2 * MIB + 70_000, 10, 0x44),
        (3 * MIB - 512, 512 + 65_536 + 512, 0x55),
        (6 * MIB, 512, 0x66),
        (65_100, 100, 0x77),
    ];
    let overlay_text = overlay.display().to_string();
    let served = Served::start(&site, "web", &["--overlay", &overlay_text]);
    for (at, len, byte) in writes {
        io(&served.uri("root"), &[&format!("write -q -P {byte:#x} {at} {len}")]);
        file.write_all_at(&vec![byte; len], at).unwrap();
    }
    io(&served.uri("root"), &["write -q -z 1M 200k", &format!("discard {} 64k", 5 * MIB), "flush"]);
    file.write_all_at(&vec![0; 200 << 10], MIB).unwrap();
    file.write_all_at(&vec![0; 64 << 10], 5 * MIB).unwrap();
    let back = site.disk("back.img");
    copy(&served.uri("root"), &back);
    disks::assert_same(&written, &back);
    // Killed after a flush: all of it is there again.
    served.running.kill();
    drop(served);
    let served = Served::start(&site, "web", &["--overlay", &overlay_text]);
    copy(&served.uri("root"), &back);
    disks::assert_same(&written, &back);
    let second = site.customer(&["serve", "--machine", "web", "--nbd", "127.0.0.1:0", "--overlay", &overlay_text]);
    second.assert_refused(exit::CONFLICT, &["in use"]);
    served.stop();
    let served = Served::start(&site, "web", &[]);
    copy(&served.uri("root"), &back);
    disks::assert_same(&disk, &back);
    served.stop();
}

#[test]
fn an_overlay_of_another_point_and_a_file_that_is_none_are_refused() {
    need!(here());
    let site = Site::with_vault();
    let (disk, overlay) = (site.disk("disk.img"), site.disk("disk.overlay"));
    disks::random(&disk, MIB, 5);
    site.replicate("web", &[("root", &disk)]);
    disks::write_at(&disk, 0, &[1; 512]);
    site.replicate("web", &[("root", &disk)]);
    let overlay_text = overlay.display().to_string();
    Served::start(&site, "web", &["--point", "1", "--overlay", &overlay_text]).stop();
    let nbd = format!("unix:{}", site.disk("other.sock").display());
    let serve = |more: &[&str]| {
        let mut arguments = vec!["serve", "--machine", "web", "--nbd", &nbd];
        arguments.extend(more);
        site.customer(&arguments)
    };
    serve(&["--point", "2", "--overlay", &overlay_text]).assert_refused(exit::CONFLICT, &["another point"]);
    let map = format!("{overlay_text}.blocks");
    let mut bytes = fs::read(&map).unwrap();
    bytes[45] ^= 1;
    fs::write(&map, bytes).unwrap();
    serve(&["--point", "1", "--overlay", &overlay_text]).assert_refused(exit::CORRUPT, &["damaged"]);
    let other = site.disk("letter.txt");
    fs::write(&other, "dear all").unwrap();
    serve(&["--overlay", &other.display().to_string()]).assert_refused(exit::CONFLICT, &["no overlay"]);
    assert_eq!(fs::read(&other).unwrap(), b"dear all");
    serve(&["--disk", "swap"]).assert_refused(exit::NOT_FOUND, &["no content", "root"]);
    serve(&["--point", "9"]).assert_refused(exit::NOT_FOUND, &["9"]);
}

#[test]
fn a_chunk_that_is_damaged_is_an_error_of_its_range_and_others_are_read() {
    need!(here());
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    // Two segments: the second is damaged.
    disks::random(&disk, 48 * MIB, 5);
    site.replicate("web", &[("root", &disk)]);
    let mut segments: Vec<PathBuf> = site.files("vault/segments");
    segments.sort_by_key(|s| fs::metadata(s).unwrap().len());
    assert!(segments.len() >= 2, "{segments:?}");
    let smaller = &segments[0];
    let len = usize::try_from(fs::metadata(smaller).unwrap().len()).unwrap();
    disks::write_at(smaller, 0, &vec![0xee; len / 2]);
    let served = Served::start(&site, "web", &[]);
    let back = site.disk("back.img");
    let failed = tools::output(Command::new("nbdcopy").arg(served.uri("root")).arg(&back));
    assert!(!failed.status.success(), "wrong bytes are never given as right ones");
    // Read piece by piece: what can be had is right, and some can not.
    let original = fs::read(&disk).unwrap();
    let (mut right, mut lost) = (0, 0);
    for at in (0..48).map(|n| n * MIB) {
        let piece = site.disk("piece.img");
        let arguments = ["convert", "-O", "raw", "--image-opts"];
        let opts = format!(
            "driver=raw,offset={at},size={MIB},file.driver=nbd,file.server.type=unix,file.server.path={},file.export=root",
            served.socket.display()
        );
        let _ = fs::remove_file(&piece);
        if tools::output(Command::new("qemu-img").args(arguments).arg(opts).arg(&piece)).status.success() {
            let at = usize::try_from(at).unwrap();
            assert!(fs::read(&piece).unwrap() == original[at..at + (1 << 20)], "at {at}");
            right += 1;
        } else {
            lost += 1;
        }
    }
    assert!(right >= 20 && lost >= 3, "{right} right, {lost} lost");
    served.stop();
}
