//! The law of clones, on real file systems: a copy that takes over only the blocks that are named, from one clone to the
//! next, is always the newest clone, byte for byte, whatever is done to the image meanwhile and by how many.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fiemap::{Fiemap, FiemapFlags};
use landfall_disk::{AlignedBuf, DiskErrorKind, Reason, changed_blocks, clone_file};
use landfall_model::BlockSet;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use tempfile::tempdir;

use crate::mounts::{FileSystem, Loop, Mount, missing, run, text};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 64 << 10;
const IMAGE_BYTES: u64 = 48 * MIB;

/// SplitMix64: the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Bytes, half of the times ones that compress.
    fn fill(&mut self, bytes: &mut [u8]) {
        let word = self.next();
        let keep = if word & 1 == 0 { 0 } else { u64::MAX };
        bytes.chunks_mut(8).for_each(|c| c.copy_from_slice(&(word ^ (self.next() & keep)).to_le_bytes()[..c.len()]));
    }
}

/// An image, the newest clone of it, and the copy that follows.
struct Lab<'a> {
    on: &'a FileSystem,
    image: PathBuf,
    shadow: Vec<u8>,
    clone: PathBuf,
    taken: u32,
}

impl<'a> Lab<'a> {
    fn new(on: &'a FileSystem, image: PathBuf) -> Self {
        let clone = on.join("clone-0");
        clone_file(&image, &clone).unwrap();
        let shadow = fs::read(&clone).unwrap();
        Self { on, image, shadow, clone, taken: 0 }
    }

    /// The next point: clones, takes over what is named, and checks the law. Gives what was named.
    fn follow(&mut self) -> BlockSet {
        let new_path = self.take();
        let (old, new) = (File::open(&self.clone).unwrap(), File::open(&new_path).unwrap());
        let changed = changed_blocks(&old, &new, BLOCK).unwrap();
        drop(old);
        fs::remove_file(&self.clone).unwrap();
        self.shadow.resize(new.metadata().unwrap().len() as usize, 0);
        for run in changed.runs() {
            new.read_exact_at(&mut self.shadow[run.start as usize..run.end() as usize], run.start).unwrap();
        }
        let wanted = fs::read(&new_path).unwrap();
        assert_eq!(wanted.len(), self.shadow.len());
        let wrong = wanted.iter().zip(&self.shadow).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "clone {} of {:?}: a changed byte in no block that was named", self.taken, self.image);
        self.clone = new_path;
        changed
    }

    fn take(&mut self) -> PathBuf {
        self.taken += 1;
        let path = self.on.join(&format!("clone-{}", self.taken));
        clone_file(&self.image, &path).unwrap();
        path
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.clone);
    }
}

fn writable(path: &Path, flags: OFlags) -> File {
    OpenOptions::new().read(true).write(true).custom_flags(flags.bits().cast_signed()).open(path).unwrap()
}

/// A new image with something in every other MiB.
fn image(on: &FileSystem, name: &str) -> PathBuf {
    let path = on.join(name);
    let file = File::create_new(&path).unwrap();
    fill(&file);
    path
}

fn fill(file: &File) {
    file.set_len(IMAGE_BYTES).unwrap();
    let mut bytes = vec![0; MIB as usize];
    for n in (0..IMAGE_BYTES / MIB).step_by(2) {
        Dice(n).fill(&mut bytes);
        file.write_all_at(&bytes, n * MIB).unwrap();
    }
}

/// How many of the things that [`disturb`] does are done: those through the page cache, those that keep the size, all.
/// (A file that is mapped into memory is not to be written directly too: Linux then fails its next sync.)
const BUFFERED: u64 = 8;
const KEEP_SIZE: u64 = 11;
const EVERYTHING: u64 = 16;

/// Does one thing to the image, at random.
fn disturb(buffered: &File, direct: &File, dice: &mut Dice, things: u64) {
    let size = buffered.metadata().unwrap().len().max(2 * MIB);
    let (offset, len) = (dice.below(size - MIB), 1 + dice.below(300_000));
    let (aligned, blocks) = (offset & !4095, len.next_multiple_of(4096));
    let at = |how| {
        // Not everything everywhere: btrfs neither collapses nor inserts.
        let _ = fallocate(buffered, how, aligned, blocks);
    };
    match dice.below(things) {
        0..4 => {
            let mut bytes = vec![0; len as usize];
            dice.fill(&mut bytes);
            buffered.write_all_at(&bytes, offset).unwrap();
        }
        4 => at(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        5 => at(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        6 => at(FallocateFlags::KEEP_SIZE),
        7 => buffered.sync_data().unwrap(),
        8..11 => {
            let mut bytes = AlignedBuf::new(blocks as usize);
            dice.fill(&mut bytes);
            direct.write_all_at(&bytes, aligned).unwrap();
        }
        11 => at(FallocateFlags::COLLAPSE_RANGE),
        12 => at(FallocateFlags::INSERT_RANGE),
        13 => {
            buffered.set_len(IMAGE_BYTES / 2 + dice.below(IMAGE_BYTES / 2)).unwrap();
            buffered.set_len(IMAGE_BYTES + dice.below(100_000)).unwrap();
        }
        _ => {
            // Shared, not copied, where the file system can.
            let (mut from, mut to) = (aligned, dice.below(size - MIB) & !4095);
            let _ = rustix::fs::copy_file_range(buffered, Some(&mut from), buffered, Some(&mut to), blocks as usize);
        }
    }
}

/// Lets others write while `body` runs.
fn disturbed<R>(image: &Path, writers: u64, things: u64, body: impl FnOnce() -> R) -> R {
    let stop = AtomicBool::new(false);
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        for seed in 0..writers {
            let stop = &stop;
            scope.spawn(move || {
                let (buffered, direct) = (writable(image, OFlags::empty()), writable(image, OFlags::DIRECT));
                let mut dice = Dice(seed);
                while !stop.load(Ordering::Relaxed) {
                    disturb(&buffered, &direct, &mut dice, things);
                    thread::sleep(Duration::from_millis(dice.below(8)));
                }
            });
        }
        let _stop = Stop(&stop);
        body()
    })
}

/// The law while three write, whole blocks and parts of them, and change the size.
fn law_under_writers(on: &FileSystem, image: PathBuf) {
    let mut lab = Lab::new(on, image.clone());
    disturbed(&image, 3, EVERYTHING, || {
        for _ in 0..25 {
            thread::sleep(Duration::from_millis(60));
            lab.follow();
        }
    });
    // Nothing more: nothing is named but what was written after the last clone.
    lab.follow();
    assert!(lab.follow().is_empty());
}

#[test]
fn the_copy_follows_on_xfs_while_others_write() {
    let Some(on) = FileSystem::xfs() else { return };
    law_under_writers(&on, image(&on, "image"));
}

#[test]
fn the_copy_follows_on_btrfs_while_others_write() {
    let Some(on) = FileSystem::btrfs("defaults") else { return };
    law_under_writers(&on, image(&on, "image"));
}

#[test]
fn the_copy_follows_on_btrfs_without_copying_on_write() {
    let Some(on) = FileSystem::btrfs("defaults") else { return };
    let path = on.join("image");
    let file = File::create_new(&path).unwrap();
    run("chattr", &["+C", text(&path)]).unwrap();
    fill(&file);
    law_under_writers(&on, path);
}

#[test]
fn the_copy_follows_on_btrfs_with_compression() {
    let Some(on) = FileSystem::btrfs("compress-force=zstd") else { return };
    let image = image(&on, "image");
    let mut lab = Lab::new(&on, image.clone());
    disturbed(&image, 2, EVERYTHING, || (0..15).for_each(|_| drop(lab.follow())));
}

/// fio writing through a mapping of the image into memory; ended when dropped, which takes a thread: it leaves processes behind.
struct Fio(Child);

impl Fio {
    fn mmap(image: &Path) -> Option<Self> {
        let file = format!("--filename={}", text(image));
        let args = [
            "--name=w",
            "--thread",
            "--ioengine=mmap",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--time_based",
            "--runtime=600",
        ];
        let size = format!("--size={IMAGE_BYTES}");
        let rest =
            [file.as_str(), size.as_str(), "--rate=20m", "--randseed=7", "--allow_file_create=0", "--fallocate=none"];
        let fio = Command::new("fio").args(args).args(rest).stdout(Stdio::null()).stdin(Stdio::null()).spawn();
        fio.inspect_err(|e| missing(&format!("fio ({e})"))).ok().map(Self)
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_copy_follows_while_the_image_is_mapped_into_memory() {
    for on in [FileSystem::xfs(), FileSystem::btrfs("defaults")].into_iter().flatten() {
        let image = image(&on, "image");
        let mut lab = Lab::new(&on, image.clone());
        let Some(mut fio) = Fio::mmap(&image) else { return };
        let mut named = 0;
        disturbed(&image, 1, BUFFERED, || {
            for _ in 0..12 {
                thread::sleep(Duration::from_millis(150));
                named += lab.follow().len();
            }
        });
        assert!(named > 0 && fio.0.try_wait().unwrap().is_none(), "fio wrote to the end");
    }
}

#[test]
fn the_copy_follows_a_file_system_in_the_image() {
    for on in [FileSystem::xfs(), FileSystem::btrfs("defaults")].into_iter().flatten() {
        for direct in ["--direct-io=on", "--direct-io=off"] {
            let image = image(&on, direct);
            run("mkfs.ext4", &["-q", "-F", text(&image)]).unwrap();
            let device = Loop::new(&image, &[direct]).unwrap();
            let at = tempdir().unwrap();
            let inside = Mount::new(&device.0, at.path(), "discard").unwrap();
            let mut lab = Lab::new(&on, image);
            let mut dice = Dice(5);
            for round in 0..12 {
                for n in 0..8 {
                    let mut bytes = vec![0; 1 + dice.below(200_000) as usize];
                    dice.fill(&mut bytes);
                    fs::write(at.path().join(format!("file-{}", dice.below(40))), &bytes).unwrap();
                    let _ = fs::remove_file(at.path().join(format!("file-{}", dice.below(40))));
                    if n == round % 8 {
                        File::open(at.path())
                            .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
                            .unwrap();
                    }
                }
                lab.follow();
            }
            drop(inside);
            drop(device);
            lab.follow();
            // What arrived is a file system that is whole.
            let arrived = at.path().join("arrived");
            fs::write(&arrived, &lab.shadow).unwrap();
            run("e2fsck", &["-f", "-n", text(&arrived)]).unwrap();
        }
    }
}

#[test]
fn little_more_is_named_than_was_written() {
    for on in [FileSystem::xfs(), FileSystem::btrfs("defaults")].into_iter().flatten() {
        let image = image(&on, "image");
        let (buffered, direct) = (writable(&image, OFlags::empty()), writable(&image, OFlags::DIRECT));
        let mut lab = Lab::new(&on, image);
        let mut dice = Dice(11);
        let (mut written, mut named) = (0, 0);
        for round in 0..10 {
            let mut blocks = BlockSet::new(IMAGE_BYTES, BLOCK);
            for _ in 0..30 {
                let mut bytes = AlignedBuf::new(BLOCK as usize);
                dice.fill(&mut bytes);
                let offset = dice.below(IMAGE_BYTES / BLOCK) * BLOCK;
                if round % 2 == 0 { &buffered } else { &direct }.write_all_at(&bytes, offset).unwrap();
                blocks.insert(landfall_model::Extent { start: offset, len: BLOCK });
            }
            let changed = lab.follow();
            assert!(blocks.runs().all(|run| changed.intersects(&run)));
            (written, named) = (written + blocks.len(), named + changed.len());
        }
        eprintln!("{:?}: {written} bytes written, {named} named", on.device.0);
        assert!(named * 2 <= written * 3, "{named} bytes named, {written} written");
    }
}

#[test]
fn nothing_is_lost_when_blocks_are_moved_or_shared_between_clones() {
    for (kind, on) in [("xfs", FileSystem::xfs()), ("btrfs", FileSystem::btrfs("defaults"))] {
        let Some(on) = on else { continue };
        let image = image(&on, "image");
        let mut lab = Lab::new(&on, image.clone());
        let file = writable(&image, OFlags::empty());
        let mut dice = Dice(3);
        for round in 0..8 {
            // The same content in two places, which then is one place.
            let mut bytes = vec![0; BLOCK as usize];
            dice.fill(&mut bytes);
            let (a, b) = (dice.below(IMAGE_BYTES / BLOCK / 2) * BLOCK, (IMAGE_BYTES / 2) + dice.below(300) * BLOCK);
            file.write_all_at(&bytes, a).unwrap();
            file.write_all_at(&bytes, b).unwrap();
            file.sync_all().unwrap();
            let dedupe = format!("dedupe {} {a} {b} {BLOCK}", text(&image));
            run("xfs_io", &["-c", &dedupe, text(&image)]).unwrap();
            // A piece of the older clone comes back in another place.
            let back = format!("reflink {} {a} {} {BLOCK}", text(&lab.clone), b - BLOCK);
            run("xfs_io", &["-c", &back, text(&image)]).unwrap();
            let target = if round % 2 == 0 { &image } else { &lab.clone };
            match kind {
                "xfs" => run("xfs_fsr", &["-v", text(target)]),
                _ => run("btrfs", &["filesystem", "defragment", "-f", text(target)]),
            }
            .unwrap();
            lab.follow();
        }
    }
}

#[test]
fn nothing_is_lost_while_a_balance_moves_everything() {
    let Some(on) = FileSystem::btrfs("defaults") else { return };
    let image = image(&on, "image");
    let mut lab = Lab::new(&on, image.clone());
    let at = on.join("");
    let mut moving = 0;
    disturbed(&image, 1, KEEP_SIZE, || {
        for _ in 0..4 {
            let mut balance = Command::new("btrfs")
                .args(["balance", "start", "-d", text(&at)])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            while balance.try_wait().unwrap().is_none() {
                // Where it is moved in just that moment, the law holds for the next comparison.
                let new = lab.take();
                let (old, newest) = (File::open(&lab.clone).unwrap(), File::open(&new).unwrap());
                if changed_blocks(&old, &newest, BLOCK).is_err_and(|e| e.reason() == Some(Reason::Moving)) {
                    moving += 1;
                }
                fs::remove_file(&new).unwrap();
            }
            lab.follow();
        }
    });
    eprintln!("{moving} comparisons met a moving block");
}

/// The map as it comes: offset, place, length, and whether it is compressed.
fn triples(path: &Path) -> Vec<(u64, u64, u64, bool)> {
    let map = Fiemap::with_flags(File::open(path).unwrap(), FiemapFlags::SYNC);
    let triple = |e: fiemap::FiemapExtent| {
        (e.fe_logical, e.fe_physical, e.fe_length, e.fe_flags.contains(fiemap::FiemapExtentFlags::ENCODED))
    };
    map.map(|e| triple(e.unwrap())).collect()
}

/// Why compressed extents always count as changed: the map does not tell which part of one a file uses.
#[test]
fn two_parts_of_one_compressed_extent_have_the_same_map_and_are_told_apart() {
    let Some(on) = FileSystem::btrfs("compress-force=zstd") else { return };
    let (source, image) = (on.join("source"), on.join("image"));
    let half = BLOCK as usize;
    let bytes = [vec![b'a'; half], vec![b'b'; half]].concat();
    fs::write(&source, &bytes).unwrap();
    File::open(&source).unwrap().sync_all().unwrap();
    let reflink = |offset: u64| {
        let command = format!("reflink {} {offset} 0 {BLOCK}", text(&source));
        run("xfs_io", &["-f", "-c", &command, text(&image)]).unwrap();
    };
    reflink(0);
    let mut lab = Lab::new(&on, image.clone());
    reflink(BLOCK);
    assert_eq!(triples(&lab.clone), triples(&image), "the same map");
    assert!(triples(&image)[0].3, "compressed");
    assert_ne!(fs::read(&lab.clone).unwrap(), fs::read(&image).unwrap(), "but not the same bytes");
    assert_eq!(lab.follow().len(), BLOCK);
    // Also without anything done to it.
    assert_eq!(lab.follow().len(), BLOCK);
}

#[test]
fn a_clone_is_new_private_and_whole() {
    for on in [FileSystem::xfs(), FileSystem::btrfs("defaults")].into_iter().flatten() {
        let (image, clone) = (image(&on, "image"), on.join("clone"));
        fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
        // What a killed run left.
        fs::write(on.join("clone.partial"), "left").unwrap();
        clone_file(&image, &clone).unwrap();
        assert!(fs::read(&clone).unwrap() == fs::read(&image).unwrap());
        assert_eq!(fs::metadata(&clone).unwrap().permissions().mode() & 0o777, 0o600);
        let e = clone_file(&image, &clone).unwrap_err();
        assert_eq!((e.kind(), e.reason(), e.path()), (DiskErrorKind::Exists, Some(Reason::Taken), clone.as_path()));
        let missing = clone_file(&on.join("nothing"), &on.join("other")).unwrap_err();
        assert_eq!(missing.kind(), DiskErrorKind::NotFound);
        let folder = clone_file(&on.join(""), &on.join("other")).unwrap_err();
        assert_eq!(folder.reason(), Some(Reason::NoClones), "{folder}");
        let elsewhere = tempdir().unwrap();
        let e = clone_file(&image, &elsewhere.path().join("clone")).unwrap_err();
        assert!(matches!(e.reason(), Some(Reason::OtherFileSystem | Reason::NoClones)), "{e}");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nothing is left behind");
        let mut names: Vec<_> = fs::read_dir(on.join("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["clone", "image"]);
    }
}

#[test]
fn a_larger_and_a_smaller_image_are_followed_to_the_byte() {
    for on in [FileSystem::xfs(), FileSystem::btrfs("defaults")].into_iter().flatten() {
        let image = image(&on, "image");
        let file = writable(&image, OFlags::empty());
        let mut lab = Lab::new(&on, image);
        let odd = 7 * MIB + 1234;
        for size in [odd, odd + 1, odd + 3000, odd + 100_000, 1, 0, 5000, 40 * MIB, 3] {
            let old = lab.shadow.len() as u64;
            file.set_len(size).unwrap();
            let changed = lab.follow();
            let behind = landfall_model::Extent::between(old.min(size), size);
            assert!(behind.len == 0 || changed.len() >= behind.len, "everything behind the old end");
        }
    }
}

#[test]
fn where_it_cannot_be_done_it_says_so() {
    let options = "size=8m";
    let at = tempdir().unwrap();
    let ext4 = FileSystem::new("ext4", &[], "defaults", 32 * MIB);
    let old_xfs = FileSystem::new("xfs", &["-m", "reflink=0"], "defaults", 512 * MIB);
    let tmpfs = run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(at.path())])
        .inspect_err(|e| missing(&format!("a file system tmpfs ({e})")))
        .ok()
        .map(|_| Mount::of(at.path()));
    let mut places: Vec<PathBuf> = [&ext4, &old_xfs].into_iter().flatten().map(|on| on.join("")).collect();
    places.extend(tmpfs.as_ref().map(|_| at.path().to_owned()));
    for place in places {
        let image = place.join("image");
        fs::write(&image, vec![7; 100_000]).unwrap();
        let e = clone_file(&image, &place.join("clone")).unwrap_err();
        assert_eq!((e.kind(), e.reason()), (DiskErrorKind::Unsupported, Some(Reason::NoClones)), "{e}");
        assert_eq!(
            fs::read_dir(&place)
                .unwrap()
                .filter(|e| e.as_ref().unwrap().path() != image.with_file_name("lost+found"))
                .count(),
            1
        );
        let file = File::open(&image).unwrap();
        match changed_blocks(&file, &file, BLOCK) {
            // XFS has maps without clones.
            Ok(changed) => assert!(changed.is_empty()),
            Err(e) => {
                assert_eq!((e.kind(), e.reason()), (DiskErrorKind::Unsupported, Some(Reason::NoMaps)), "{e}");
                assert_eq!(e.path(), image);
            }
        }
    }
    if let (Some(a), Some(b)) = (FileSystem::xfs(), old_xfs) {
        let (a, b) = (image(&a, "image"), b.join("image"));
        let e = changed_blocks(&File::open(a).unwrap(), &File::open(b).unwrap(), BLOCK).unwrap_err();
        assert_eq!(e.reason(), Some(Reason::OtherFileSystem));
    }
}

#[test]
#[ignore = "a measurement"]
fn the_time_that_a_hundred_thousand_extents_take() {
    let xfs = FileSystem::new("xfs", &["-m", "reflink=1"], "defaults", 4 << 30);
    let btrfs = FileSystem::new("btrfs", &[], "defaults", 4 << 30);
    for (kind, on) in [("xfs", xfs), ("btrfs", btrfs)] {
        let Some(on) = on else { continue };
        let image = on.join("image");
        File::create_new(&image).unwrap().set_len(10 << 30).unwrap();
        let (file, bytes) = (writable(&image, OFlags::empty()), [7; 4096]);
        let stride = (10 << 30) / 100_000 / 4096 * 4096;
        let write = |step| (0..100_000).step_by(step).for_each(|n| file.write_all_at(&bytes, n * stride).unwrap());
        write(1);
        file.sync_all().unwrap();
        for step in [0, 100, 10] {
            if step > 0 {
                write(step);
            }
            let clone = on.join(&format!("clone-{step}"));
            let start = std::time::Instant::now();
            // The longest that a writer waits meanwhile.
            let done = AtomicBool::new(false);
            let (cloned, waited) = thread::scope(|scope| {
                let (done, file) = (&done, &file);
                let writer = scope.spawn(move || {
                    let mut longest = Duration::ZERO;
                    while !done.load(Ordering::Relaxed) {
                        let start = std::time::Instant::now();
                        file.write_all_at(&bytes, 0).unwrap();
                        longest = longest.max(start.elapsed());
                        thread::sleep(Duration::from_millis(1));
                    }
                    longest
                });
                clone_file(&image, &clone).unwrap();
                let cloned = start.elapsed();
                done.store(true, Ordering::Relaxed);
                (cloned, writer.join().unwrap())
            });
            let start = std::time::Instant::now();
            let (old, new) = (File::open(on.join("clone-0")).unwrap(), File::open(&clone).unwrap());
            let changed = changed_blocks(&old, &new, BLOCK).unwrap();
            let maps = start.elapsed();
            let blocks = changed.len() / BLOCK;
            eprintln!("{kind}: clone {cloned:?}, a writer waits {waited:?}, changed_blocks {maps:?}, {blocks} blocks");
            if std::env::var_os("FILEFRAG").is_some() {
                let start = std::time::Instant::now();
                run("filefrag", &[text(&clone)]).unwrap();
                let frag = start.elapsed();
                let start = std::time::Instant::now();
                let n = triples(&clone).len();
                eprintln!("  filefrag {frag:?}, by eights {:?} {n}", start.elapsed());
            }
        }
    }
}
