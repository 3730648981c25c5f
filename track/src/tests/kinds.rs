//! Every kind of write is marked, and no more than it touched; whole disks and partitions; many watches.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::rig::{
    BLOCK, Loop, Mounted, Partition, Shadow, Zram, attach, missed, patient, ready, run, whole, with_devices,
    write_direct,
};
use landfall_model::Extent;

use crate::marking::Marks as How;
use crate::watch::{Kind, Marks, Options, Watch};

fn runs(marks: Marks) -> Vec<(u64, u64)> {
    whole(marks).runs().map(|run| (run.start / BLOCK as u64, run.end().div_ceil(BLOCK as u64))).collect()
}

/// Both ways of marking.
const WAYS: [How; 2] = [How::Bits, How::Bytes];

fn each_way(path: &Path, test: impl Fn(&mut Watch)) {
    for way in WAYS {
        patient(|| {
            let mut watch = attach(path, Options { marks: Some(way), ..Options::default() }).unwrap();
            watch.take();
            test(&mut watch);
        });
    }
}

/// Writes that name their range, and blocks of 64 KiB that they touch.
fn exact(path: &Path) {
    each_way(path, |watch| {
        assert_eq!(runs(watch.take()), []);
        for (at, len, wanted) in [
            (0, 4096, (0, 1)),
            ((64 << 10) - 4096, 4096, (0, 1)),
            ((64 << 10) - 4096, 8192, (0, 2)),
            (5 << 20, 64 << 10, (80, 81)),
            (4 << 20, 4 << 20, (64, 128)),
            ((4 << 20) - 4096, (4 << 20) + 8192, (63, 129)),
            ((16 << 20) - 4096, 4096, (255, 256)),
        ] {
            write_direct(path, at, len, 1);
            assert_eq!(runs(watch.take()), [wanted], "{len} bytes at {at}");
            assert_eq!(runs(watch.take()), [], "marks that were taken are gone");
        }
    });
}

#[test]
fn a_write_marks_the_blocks_that_it_touches_and_no_other() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        assert_eq!(Watch::attach(&disk.path).unwrap().kind(), Kind::Requests);
        exact(&disk.path);
        let Some(zram) = Zram::new(16) else { return };
        assert_eq!(Watch::attach(&zram.path).unwrap().kind(), Kind::Bios);
        exact(&zram.path);
    });
}

#[test]
fn marks_of_a_partition_count_from_its_beginning() {
    with_devices(&["addpart", "delpart"], || {
        let disk = Loop::new(40);
        let partition = Partition::new(&disk, 1, 63, 16 << 11);
        let neighbour = Partition::new(&disk, 2, 63 + (16 << 11), 8 << 11);
        exact(&partition.path);
        let (mut whole, mut part) = (Watch::attach(&disk.path).unwrap(), Watch::attach(&partition.path).unwrap());
        write_direct(&neighbour.path, 0, 4096, 1);
        assert_eq!(runs(part.take()), []);
        assert_eq!(runs(whole.take()), [(256, 257)]);
        // The last sector before the partition, and its first.
        write_direct(&disk.path, 62 * 512, 1024, 1);
        assert_eq!((runs(part.take()), runs(whole.take())), (vec![(0, 1)], vec![(0, 1)]));
    });
}

/// Keeps a copy while something is done to a device, and compares.
fn kept(path: &Path, name: &str, write: impl Fn()) {
    each_way(path, |watch| {
        let mut shadow = Shadow::new(path);
        write();
        let read = shadow.apply(watch.take());
        assert_eq!(shadow.differences(), Vec::<usize>::new(), "{name}");
        assert!(read > 0, "{name}: nothing was marked");
    });
}

fn every_kind(path: &Path) {
    let device = path.display();
    let fio = |engine: &str, size: &str, more: &str| {
        run(&format!(
            "fio --name=w --filename={device} --rw=randwrite --bs=4k --io_size={size} --refill_buffers=1 --randrepeat=0 \
             --ioengine={engine} {more}"
        ));
    };
    kept(path, "buffered", || {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&vec![2; 3 << 20], 777).unwrap();
        file.sync_all().unwrap();
    });
    kept(path, "direct", || write_direct(path, 1 << 20, 1 << 20, 3));
    kept(path, "mapped", || fio("mmap", "4M", "--end_fsync=1"));
    kept(path, "io_uring", || fio("io_uring", "4M", "--iodepth=32 --direct=1"));
    kept(path, "libaio", || fio("libaio", "4M", "--iodepth=32 --direct=1"));
    kept(path, "vectors, each made durable", || fio("pvsync2", "256k", "--sync=dsync"));
    kept(path, "zeroes", || drop(run(&format!("fallocate -z -o 8M -l 4M {device}"))));
    kept(path, "discard", || drop(run(&format!("blkdiscard -o 12M -l 4M {device}"))));
    kept(path, "punch", || drop(run(&format!("fallocate -p -o 4M -l 5M {device}"))));
    kept(path, "zeroes that are written", || drop(run(&format!("blkdiscard -z -o 20M -l 1M {device}"))));
    kept(path, "everything discarded", || drop(run(&format!("blkdiscard {device}"))));
}

#[test]
fn every_kind_of_write_is_marked() {
    with_devices(&["fio", "blkdiscard", "fallocate"], || {
        let disk = Loop::new(48);
        every_kind(&disk.path);
        let partition = (ready(&["addpart", "delpart"])).then(|| Partition::new(&disk, 3, 2047, 32 << 11));
        if let Some(partition) = &partition {
            every_kind(&partition.path);
        }
        let Some(zram) = Zram::new(48) else { return };
        every_kind(&zram.path);
    });
}

#[test]
fn discards_of_gigabytes_are_marked_to_their_last_block() {
    with_devices(&["blkdiscard"], || {
        let disk = Loop::new(9 << 10);
        let mut watch = attach(&disk.path, Options { marks: Some(How::Bits), ..Options::default() }).unwrap();
        watch.take();
        run(&format!("blkdiscard -o 4096 -l 9000000000 {}", disk.path.display()));
        assert_eq!(runs(watch.take()), [(0, 9_000_004_096_u64.div_ceil(BLOCK as u64))]);
        // Bytes for marks do not reach as far in one request: then everything may have changed, and that is said.
        let mut watch = attach(&disk.path, Options { marks: Some(How::Bytes), ..Options::default() }).unwrap();
        run(&format!("blkdiscard -o 4096 -l 9000000000 {}", disk.path.display()));
        let lost = watch.take().lost.unwrap();
        assert!(lost.contains("changed more at once than can be marked"), "{lost}");
        assert_eq!(watch.take().lost, None);
    });
}

fn file_system(kind: &str, options: &str) {
    with_devices(&[&format!("mkfs.{kind}"), "fstrim", "fsfreeze"], || {
        let disk = Loop::new(400);
        let mut watch = Watch::attach(&disk.path).unwrap();
        let mut shadow = Shadow::new(&disk.path);
        run(&format!("mkfs.{kind} -q {options} {}", disk.path.display()));
        let mounted = Mounted::new(&disk.path);
        for round in 0..4_u8 {
            for number in 0..20_u8 {
                let mut file = std::fs::File::create(mounted.path().join(format!("{number}"))).unwrap();
                file.write_all(&vec![round ^ number; 1 << 20]).unwrap();
            }
            shadow.apply(watch.take());
            std::fs::remove_file(mounted.path().join(format!("{round}"))).unwrap();
            if round % 2 == 1 {
                run(&format!("fstrim {}", mounted.path().display()));
            }
            mounted.freeze();
            shadow.apply(watch.take());
            assert_eq!(shadow.differences(), Vec::<usize>::new(), "{kind}, round {round}");
            mounted.thaw();
        }
        drop(mounted);
        shadow.apply(watch.take());
        assert_eq!(shadow.differences(), Vec::<usize>::new(), "{kind}, unmounted");
    });
}

#[test]
fn a_frozen_ext4_is_copied_as_it_is() {
    file_system("ext4", "");
}

#[test]
fn a_frozen_xfs_is_copied_as_it_is() {
    file_system("xfs", "-f");
}

/// The disk beneath the temporary folder, whatever it is: where the file system says that a file lies, there are marks.
#[test]
fn a_file_that_is_written_is_marked_on_the_disk_of_this_host() {
    with_devices(&["findmnt", "filefrag"], || {
        let folder = tempfile::TempDir::new().unwrap();
        let source = run(&format!("findmnt -n -o SOURCE -T {}", folder.path().display()));
        // Where reading it is forbidden there is no canary.
        let options = Options { kind: Some(Kind::Requests), unproven: true, ..Options::default() };
        let mut watch = match attach(Path::new(&source), options) {
            Ok(watch) => watch,
            // A memory or network file system: nothing that a machine for tests could be blamed for.
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let file = folder.path().join("file");
        std::fs::write(&file, vec![7; 9 << 20]).unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        let marks = watch.take_marks().0;
        if watch.passed_by() {
            missed();
        }
        let listing = run(&format!("filefrag -b512 -v {}", file.display()));
        let mut sectors = 0;
        for line in listing.lines() {
            // extent: first..last of the file: first..last of the device: length: flags
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let Some((first, last)) = fields.get(2).and_then(|range| range.split_once("..")) else { continue };
            let (first, last): (u64, u64) = (first.trim().parse().unwrap(), last.trim().parse().unwrap());
            for sector in (first..=last).step_by(64) {
                assert!(marks.intersects(&Extent { start: sector * 512, len: 512 }), "sector {sector} of {source}");
            }
            sectors += last + 1 - first;
        }
        assert!(sectors >= 9 << 11, "{listing}");
        eprintln!("{source}: {:?}, {} MiB marked for a file of 9 MiB", watch.kind(), marks.len() >> 20);
    });
}

#[test]
fn many_watches_of_one_device_each_have_their_own_marks() {
    with_devices(&[], || {
        let disk = Loop::new(16);
        let mut watches: Vec<Watch> = (0..64).map(|_| Watch::attach(&disk.path).unwrap()).collect();
        watches.iter_mut().for_each(|watch| drop(watch.take()));
        write_direct(&disk.path, 1 << 20, 4096, 1);
        assert!(watches.iter_mut().step_by(2).all(|watch| runs(watch.take()) == [(16, 17)]));
        write_direct(&disk.path, 2 << 20, 4096, 1);
        assert!(watches.iter_mut().step_by(2).all(|watch| runs(watch.take()) == [(32, 33)]));
        watches.truncate(33);
        assert!(watches.iter_mut().skip(1).step_by(2).all(|watch| runs(watch.take()) == [(16, 17), (32, 33)]));
    });
}

#[test]
fn blocks_grow_with_the_disk_until_the_marks_are_small_enough() {
    use crate::marking::Target;
    for (sectors, marks, kib) in [
        (1, How::Bits, 64),
        (1 << 31, How::Bits, 64),
        (1 << 33, How::Bits, 256),
        (1 << 29, How::Bytes, 128),
        (u64::MAX >> 9, How::Bits, 1 << 30),
    ] {
        let target = Target::new((1, 1), 0, sectors, marks);
        assert_eq!(1_u64 << target.block_bits >> 10, kib, "{sectors} sectors");
        assert!(target.words() * 8 <= 4 << 20);
    }
    for (gib, marks, fine) in [
        (1, How::Bits, Some(4)),
        (100, How::Bits, Some(4)),
        (300, How::Bits, Some(16)),
        (600, How::Bits, Some(32)),
        (900, How::Bits, None),
        (1, How::Bytes, None),
    ] {
        let target = Target::new((1, 1), 0, gib << 21, marks);
        assert_eq!(target.fine_bits.map(|bits| 1_u64 << bits >> 10), fine, "{gib} GiB");
        assert!(target.words() * 8 <= 4 << 20);
    }
}

#[test]
fn a_small_write_marks_what_it_writes_and_a_long_one_all_blocks_it_touches() {
    with_devices(&["fio", "blkdiscard"], || {
        let disk = Loop::new(48);
        let mut watch = attach(&disk.path, Options { marks: Some(How::Bits), ..Options::default() }).unwrap();
        watch.take();
        let write = |at: u64, len: u64| {
            let path = disk.path.display();
            run(&format!("dd if=/dev/urandom of={path} oflag=direct,seek_bytes seek={at} bs={len} count=1"));
        };
        write(40_960, 4096);
        write(12 << 20, 16_384);
        let marked: Vec<_> = whole(watch.take()).runs().map(|run| (run.start, run.len)).collect();
        assert_eq!(marked, [(40_960, 4096), (12 << 20, 16_384)]);
        run(&format!("blkdiscard -o 4096 -l {} {}", 20 << 20, disk.path.display()));
        assert_eq!(
            whole(watch.take()).runs().map(|run| (run.start, run.len)).collect::<Vec<_>>(),
            [(0, (20 << 20) + (64 << 10))]
        );
    });
}
