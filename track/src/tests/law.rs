//! The law: who reads what is marked, while writes go on, has after the last take what the device has.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use landfall_model::BlockSet;

use super::rig::{
    Loop, Mounted, Partition, Shadow, Zram, attach, direct, patient, run, until, whole, with_devices, write_direct,
};
use crate::marking::Marks as How;
use crate::requests::When;
use crate::watch::{Kind, Options, Watch};

/// What the writers of a test leave behind: takes, blocks that were read again, blocks that differ.
struct Outcome {
    takes: u32,
    bytes: u64,
    differ: Vec<usize>,
}

/// Takes while `write` runs, and reads what is marked; then once more.
fn follow(
    path: &Path,
    watch: &mut Watch,
    take: impl Fn(&mut Watch) -> BlockSet,
    write: impl FnOnce() + Send,
) -> Outcome {
    take(watch);
    follow_shadow(Shadow::new(path), watch, take, write)
}

fn follow_shadow(
    mut shadow: Shadow,
    watch: &mut Watch,
    take: impl Fn(&mut Watch) -> BlockSet,
    write: impl FnOnce() + Send,
) -> Outcome {
    let (over, mut takes, mut bytes) = (AtomicBool::new(false), 0, 0);
    std::thread::scope(|scope| {
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let over = &over;
        scope.spawn(move || {
            let _over = Over(over);
            write();
        });
        while !over.load(Ordering::SeqCst) {
            bytes += shadow.apply_blocks(&take(watch));
            takes += 1;
        }
    });
    bytes += shadow.apply_blocks(&take(watch));
    Outcome { takes, bytes, differ: shadow.differences() }
}

fn none_lost(watch: &mut Watch) -> BlockSet {
    whole(watch.take())
}

fn marks_alone(watch: &mut Watch) -> BlockSet {
    let noted = watch.take_notes().unwrap();
    let (mut blocks, _) = watch.take_marks();
    blocks.union(&noted);
    blocks
}

/// Random writes of random bytes, many at once, each place several times.
fn fio(path: &Path, seconds: u32, more: &str) {
    run(&format!(
        "fio --name=w --filename={} --rw=randwrite --bsrange=4k-32k --direct=1 --iodepth=64 --refill_buffers=1 \
         --norandommap=1 --randrepeat=0 --time_based=1 --runtime={seconds} {more}",
        path.display()
    ));
}

fn law(path: &Path, options: Options, seconds: u32, more: &str) {
    let tries = Cell::new(0);
    patient(|| {
        tries.set(tries.get() + 1);
        // Where the kernel leaves out a program once in some thousand requests, fewer requests say the same.
        let (seconds, more) = match tries.get() {
            0..=5 => (seconds, more.to_owned()),
            6..=8 => (2, format!("{more} --rate_iops=2000")),
            _ => (2, format!("{more} --rate_iops=200")),
        };
        let mut watch = attach(path, options).unwrap();
        let outcome = follow(path, &mut watch, none_lost, || fio(path, seconds, &more));
        eprintln!("{} takes, {} MiB read again", outcome.takes, outcome.bytes >> 20);
        assert_eq!(outcome.differ, Vec::<usize>::new(), "blocks differ after {} takes", outcome.takes);
        assert!(outcome.takes > 3 && outcome.bytes > 0);
    });
}

#[test]
fn it_holds_for_a_loop_device_under_random_writes() {
    with_devices(&["fio"], || {
        let disk = Loop::new(192);
        law(&disk.path, Options::default(), 5, "--ioengine=io_uring --numjobs=2");
    });
}

#[test]
fn it_holds_with_bytes_for_marks() {
    with_devices(&["fio"], || {
        let disk = Loop::new(64);
        let options = Options { marks: Some(How::Bytes), ..Options::default() };
        law(&disk.path, options, 3, "--ioengine=libaio --trim_percentage=0");
    });
}

#[test]
fn it_holds_for_a_partition_whose_neighbour_is_written_too() {
    with_devices(&["fio", "addpart", "delpart"], || {
        let disk = Loop::new(128);
        // Begins and ends within blocks of the disk.
        let first = Partition::new(&disk, 1, 63, 100_001);
        let second = Partition::new(&disk, 2, 100_064, 99_936);
        std::thread::scope(|scope| {
            scope.spawn(|| fio(&second.path, 4, "--ioengine=libaio"));
            law(&first.path, Options::default(), 3, "--ioengine=io_uring");
        });
    });
}

#[test]
fn it_holds_for_a_device_without_requests() {
    with_devices(&["fio"], || {
        let Some(zram) = Zram::new(96) else { return };
        law(&zram.path, Options::default(), 4, "--ioengine=io_uring --numjobs=3");
        let options = Options { marks: Some(How::Bytes), ..Options::default() };
        law(&zram.path, options, 2, "--ioengine=psync --numjobs=3");
    });
}

#[test]
fn it_holds_for_loop_upon_loop_and_both_are_watched() {
    with_devices(&["fio", "mkfs.ext4"], || {
        let beneath = Loop::new(160);
        run(&format!("mkfs.ext4 -q {}", beneath.path.display()));
        let mut lower = Watch::attach(&beneath.path).unwrap();
        let mounted = Mounted::new(&beneath.path);
        let upper = Loop::on(mounted.path().join("disk"), 96);
        let outcome = follow(&beneath.path, &mut lower, none_lost, || {
            law(&upper.path, Options::default(), 4, "--ioengine=io_uring");
            run("sync");
            drop(upper);
            drop(mounted);
        });
        assert_eq!(outcome.differ, Vec::<usize>::new());
    });
}

/// Where no completion is told at all, as of a driver that hands its bios on, notes alone must keep the law.
#[test]
fn it_holds_where_the_kernel_tells_of_no_completion() {
    with_devices(&["fio"], || {
        let disk = Loop::new(96);
        let refused = attach(&disk.path, Options { kind: Some(Kind::Bios), ..Options::default() }).unwrap_err();
        assert!(refused.to_string().contains("does not tell when what is written to it is complete"), "{refused}");
        let options = Options { kind: Some(Kind::Bios), unproven: true, ..Options::default() };
        let mut watch = attach(&disk.path, options).unwrap();
        let outcome = follow(&disk.path, &mut watch, marks_alone, || fio(&disk.path, 3, "--ioengine=io_uring"));
        assert_eq!(outcome.differ, Vec::<usize>::new(), "after {} takes", outcome.takes);
    });
}

/// Writes in great number that are held in flight, again and again, while what is marked is read: the device's file lies on a file system
/// that is frozen and thawed. A loop device does one thing after the other, and a read of it would wait for the writes before it: the
/// reads are of its file.
fn differences_where_writes_are_held(when: When) -> (usize, u32) {
    let beneath = Loop::new(300);
    run(&format!("mkfs.ext4 -q {}", beneath.path.display()));
    let mounted = Mounted::new(&beneath.path);
    let disk = Loop::with(mounted.path().join("disk"), 192, "--direct-io=off");
    let mut watch = attach(&disk.path, Options { when, ..Options::default() }).unwrap();
    let shadow = Shadow::of(File::open(&disk.file).unwrap(), 192 << 20);
    // The canary would wait behind the writes.
    let outcome = follow_shadow(
        shadow,
        &mut watch,
        |watch| watch.take_marks().0,
        || {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| fio(&disk.path, 4, "--ioengine=io_uring --rate_iops=3000"));
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        mounted.freeze();
                        std::thread::sleep(Duration::from_millis(50));
                        mounted.thaw();
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
                let done = writer.join();
                over.store(true, Ordering::SeqCst);
                done.unwrap();
            });
        },
    );
    whole(watch.take());
    (outcome.differ.len(), outcome.takes)
}

/// And the law's own test: marks that are set when a request begins break it.
#[test]
fn it_holds_where_writes_are_held_in_flight_and_would_not_for_marks_that_come_too_early() {
    with_devices(&["fio", "mkfs.ext4", "fsfreeze"], || {
        let (differ, takes) = differences_where_writes_are_held(When::Completed);
        assert_eq!(differ, 0, "after {takes} takes");
        let (early, early_takes) = differences_where_writes_are_held(When::Issued);
        eprintln!("marked on completion: 0 blocks differ after {takes} takes; on issue: {early} after {early_takes}");
        assert!(early > 0, "the test does not see that marks come too early");
    });
}

/// One write that is held in flight: the device's file lies on a file system that is frozen.
fn marks_of_a_write_in_flight(when: When) -> (BlockSet, BlockSet) {
    let beneath = Loop::new(64);
    run(&format!("mkfs.ext4 -q {}", beneath.path.display()));
    let mounted = Mounted::new(&beneath.path);
    let disk = Loop::with(mounted.path().join("disk"), 16, "--direct-io=off");
    run("sync");
    let mut watch = attach(&disk.path, Options { when, ..Options::default() }).unwrap();
    whole(watch.take());
    mounted.freeze();
    let in_flight = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_direct(&disk.path, 3 << 20, 4096, 7));
        until("the write", || {
            let counts = std::fs::read_to_string(format!("/sys/block/{}/inflight", disk.name())).unwrap();
            counts.split_whitespace().nth(1) == Some("1")
        });
        // The canary would wait behind the write.
        let (in_flight, _) = watch.take_marks();
        assert_eq!(std::fs::read(&disk.file).unwrap()[3 << 20], 0, "the write is not held");
        mounted.thaw();
        writer.join().unwrap();
        in_flight
    });
    (in_flight, whole(watch.take()))
}

#[test]
fn a_write_in_flight_is_marked_when_it_completes_and_not_before() {
    with_devices(&["mkfs.ext4", "fsfreeze"], || {
        let (during, after) = marks_of_a_write_in_flight(When::Completed);
        assert!(during.is_empty(), "{:?}", during.runs().collect::<Vec<_>>());
        assert_eq!(after.runs().map(|run| (run.start, run.len)).collect::<Vec<_>>(), [(3 << 20, 4 << 10)]);
        // Marked early it would be read too early, and never again.
        let (during, after) = marks_of_a_write_in_flight(When::Issued);
        assert_eq!((during.len(), after.len()), (4 << 10, 0));
    });
}

#[test]
fn a_device_that_is_only_read_has_no_marks() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        let mut watch = Watch::attach(&disk.path).unwrap();
        watch.take();
        let _ = Shadow::new(&disk.path);
        direct(&disk.path, true).sync_all().unwrap();
        assert!(watch.take().blocks.is_empty());
    });
}
