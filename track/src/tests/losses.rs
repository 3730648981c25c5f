//! What cannot be relied on is said.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use landfall_model::ErrorKind;

use super::rig::{Loop, Partition, Zram, attach, output, run, skipped, whole, with_devices, write_direct};
use crate::device::Device;
use crate::tally::Tally;
use crate::watch::{Kind, Options, Watch};

fn lost(watch: &mut Watch) -> String {
    watch.take().lost.unwrap_or_else(|| panic!("nothing is said to be lost"))
}

#[test]
fn a_loop_device_that_is_detached_is_lost_and_so_is_the_next_on_its_number() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        let mut watch = Watch::attach(&disk.path).unwrap();
        whole(watch.take());
        run(&format!("losetup -d {}", disk.path.display()));
        let said = lost(&mut watch);
        assert!(said.contains(&disk.name()), "{said}");
        // Another test may be faster; then it is another device all the more.
        let _ = output(Command::new("losetup").arg(&disk.path).arg(&disk.file));
        lost(&mut watch);
    });
}

#[test]
fn a_device_of_another_size_is_lost() {
    with_devices(&["addpart", "delpart"], || {
        let disk = Loop::new(16);
        let mut watch = Watch::attach(&disk.path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&disk.file).unwrap().set_len(20 << 20).unwrap();
        run(&format!("losetup -c {}", disk.path.display()));
        assert!(lost(&mut watch).contains("had 32768 sectors from 0 on and has 40960 from 0 on"));
        let partition = Partition::new(&disk, 1, 2048, 4096);
        let mut watch = Watch::attach(&partition.path).unwrap();
        whole(watch.take());
        drop(partition);
        let _moved = Partition::new(&disk, 1, 4096, 4096);
        assert!(lost(&mut watch).contains("from 4096 on"));
    });
}

#[test]
fn a_partition_that_is_made_anew_is_another_one() {
    with_devices(&["addpart", "delpart"], || {
        let disk = Loop::new(16);
        let partition = Partition::new(&disk, 1, 2048, 4096);
        let mut watch = Watch::attach(&partition.path).unwrap();
        drop(partition);
        let _again = Partition::new(&disk, 1, 2048, 4096);
        assert!(lost(&mut watch).contains("is not the device that it was"));
    });
}

#[test]
fn a_watch_that_looks_for_another_disk_is_not_attached() {
    with_devices(&[], || {
        let (disk, other) = (Loop::new(16), Loop::new(16));
        let minor = other.name().trim_start_matches("loop").parse().unwrap();
        let options = Options { disk: Some((7, minor)), ..Options::default() };
        let error = attach(&disk.path, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("a read of it was not seen"), "{error}");
        // And where it was let through, the first take says so.
        let mut watch = attach(&disk.path, Options { unproven: true, ..options }).unwrap();
        assert!(lost(&mut watch).contains("a read of it was not seen"));
    });
}

#[test]
fn programs_that_have_ended_are_missed() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        let mut watch = Watch::attach(&disk.path).unwrap();
        watch.end_programs();
        assert!(lost(&mut watch).contains("a read of it was not seen"));
    });
}

#[test]
fn a_completion_that_the_kernel_counts_and_the_program_does_not_is_found() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        let device = Device::open(&disk.path).unwrap();
        let mut blind = Tally::begin(&device, || 1 << 40);
        assert!(!blind.passed_by(&device, || 1 << 40));
        write_direct(&disk.path, 0, 4096, 1);
        assert!(!blind.passed_by(&device, || (1 << 40) + 8), "it was seen");
        write_direct(&disk.path, 0, 4096, 1);
        assert!(blind.passed_by(&device, || (1 << 40) + 8), "it was not");
        assert!(!blind.passed_by(&device, || (1 << 40) + 8), "it is told once");
    });
}

#[test]
fn more_bios_under_way_than_can_be_noted_are_a_loss_from_then_on() {
    with_devices(&["fio"], || {
        let disk = Loop::new(16);
        // No end is seen of bios that end as parts of requests: notes stay.
        let options = Options { kind: Some(Kind::Bios), unproven: true, notes_max: 2, ..Options::default() };
        let mut watch = attach(&disk.path, options).unwrap();
        run(&format!(
            "fio --name=w --filename={} --rw=randwrite --bs=4k --size=4M --ioengine=libaio --iodepth=32 --direct=1",
            disk.path.display()
        ));
        for _ in 0..2 {
            assert!(watch.overflowed());
            watch.take();
        }
    });
}

#[test]
fn a_driver_that_writes_past_all_bios_is_refused() {
    with_devices(&[], || {
        let Some(zram) = Zram::new(16) else { return };
        // No kernel has both this tracepoint and such a driver here: another of the driver's functions stands in for it.
        let bytes = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        let btf = crate::btf::Btf::parse(bytes).unwrap_or_else(|why| panic!("{why:?}"));
        let layout = crate::layout::of_btf(&btf, "submit_bio").unwrap();
        assert!(layout.write_past_bios.is_some());
        let error = Watch::attach_with(&zram.path, Options::default(), &layout).unwrap_err();
        assert!(error.to_string().contains("rw_page"), "{error}");
    });
}

#[test]
fn what_is_no_device_is_refused() {
    with_devices(&[], || {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, kind) in [
            (file.path(), ErrorKind::Usage),
            (Path::new("/dev/null"), ErrorKind::Usage),
            (Path::new("/dev/there-is-none"), ErrorKind::NotFound),
        ] {
            let error = Watch::attach(path).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        // Nothing is attached to it; a number that no other test has.
        let Ok(number) = std::fs::read_to_string("/sys/class/zram-control/hot_add") else { return skipped("no zram") };
        let error = Watch::attach(Path::new(&format!("/dev/zram{}", number.trim()))).unwrap_err();
        std::fs::write("/sys/class/zram-control/hot_remove", number).unwrap();
        assert!(error.to_string().contains("nothing is attached to it"), "{error}");
    });
}

#[test]
fn marks_end_with_the_watch() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        drop(Watch::attach(&disk.path).unwrap());
        write_direct(&disk.path, 0, 4096, 1);
        let mut watch = Watch::attach(&disk.path).unwrap();
        assert!(watch.take().blocks.is_empty());
    });
}

/// Run by the test below, in a process without rights.
#[test]
#[ignore = "part of another test"]
fn says_what_support_says() {
    eprintln!(
        "support: {:?} {:?}",
        crate::support().map_err(|error| error.to_string()),
        Watch::attach(Path::new("/dev/loop0")).is_err()
    );
}

#[test]
fn without_rights_the_missing_ones_are_named() {
    with_devices(&[], || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", "tests::losses::says_what_support_says", "--ignored", "--nocapture"]);
        let Ok(out) = command.output() else { return skipped("the program 'setpriv' is missing") };
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(said.contains("blocks cannot be tracked: needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN"), "{said}");
    });
}

/// Programs come and go at the tracepoint while a watch stays: nothing may pass it by.
#[test]
fn others_that_attach_and_end_cost_a_watch_nothing() {
    with_devices(&[], || {
        let (disk, other) = (Loop::new(16), Loop::new(16));
        {
            let mut watch = Watch::attach(&disk.path).unwrap();
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        drop(attach(&other.path, Options { unproven: true, ..Options::default() }));
                    }
                });
                let done = (1..=5000).map(|_| watch.take()).find(|marks| marks.lost.is_some());
                over.store(true, Ordering::SeqCst);
                done.map(whole);
            });
        }
    });
}
