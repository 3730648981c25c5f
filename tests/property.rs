//! Whatever happens to the disks between two cycles: every point comes back as the bytes of its moment.
//!
//! The oracle is a plain copy of each disk, made at each cycle. Sequences are random and seeded; a failure prints the seed and
//! every step that led to it.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use landfall_tests::landfall::{Disk, Site, exit, number};
use landfall_tests::{disks, need, tools};
use rustix::fs::{FallocateFlags, fallocate};
use support::{Dice, KIB, MIB, REGION, Story, read_at, replicate_in};

/// Longest write of a step: a disk has some MiB of data, so that many sequences fit into a minute.
const WRITE_BYTES_MAX: u64 = 3 * MIB;
const NAMES: [&str; 4] = ["root", "data", "log", "swap"];

/// A disk that is being protected.
struct Live {
    name: &'static str,
    path: PathBuf,
    excluded: bool,
}

/// A machine and its disks now.
struct Guest {
    name: String,
    live: Vec<Live>,
    domain: &'static str,
}

/// A point, and the copies of its disks; `None` for one that was excluded.
struct Moment {
    machine: String,
    seq: u64,
    time: String,
    disks: BTreeMap<&'static str, Option<PathBuf>>,
}

struct World {
    site: Site,
    dice: Dice,
    story: Story,
    guests: Vec<Guest>,
    moments: Vec<Moment>,
    /// State folders of the two gateways of the site.
    gateways: [PathBuf; 2],
    files: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let site = Site::with_vault();
        let dice = Dice::new(seed);
        let gateways = [site.folder().join("state"), site.folder().join("state-second")];
        let story = Story::new(&dice);
        let mut world = Self { site, dice, story, guests: Vec::new(), moments: Vec::new(), gateways, files: 0 };
        for number in 0..1 + seed % 2 {
            world.guests.push(Guest { name: format!("guest-{number}"), live: Vec::new(), domain: "default" });
            world.add_disk(usize::try_from(number).unwrap(), "root");
        }
        world
    }

    fn new_file(&mut self, what: &str) -> PathBuf {
        self.files += 1;
        self.site.disk(&format!("{:04}-{what}", self.files))
    }

    fn some_size(&mut self) -> u64 {
        let odd = [1, 511, 512, 4095, 4096, 4097, 65_535, 65_537, 200_000, MIB, 6 * MIB - 1];
        match self.dice.within(0..6) {
            0 | 1 => *self.dice.pick(&odd),
            2 => *self.dice.pick(&[REGION - 1, REGION, REGION + 1, REGION + 4096, 2 * REGION + 3 * 512]),
            3 => self.dice.within(REGION..3 * REGION),
            _ => self.dice.within(1..6 * MIB),
        }
    }

    fn add_disk(&mut self, guest: usize, name: &'static str) {
        let (path, size) = (self.new_file("disk"), self.some_size());
        assert!(disks::sparse(&path, size));
        self.story.tell(format!("{}: add {name}, {size} bytes", self.guests[guest].name));
        self.guests[guest].live.push(Live { name, path, excluded: false });
        for _ in 0..self.dice.within(0..4) {
            let last = self.guests[guest].live.len() - 1;
            self.write(guest, last);
        }
    }

    /// Where something happens on a disk: anywhere, near its end, or around the border of two regions.
    fn some_place(&mut self, size: u64) -> u64 {
        let at = match self.dice.within(0..5) {
            0 => size.saturating_sub(self.dice.within(1..200_000)),
            1 if size > REGION => {
                REGION * self.dice.within(1..size.div_ceil(REGION)) - self.dice.within(0..200_000).min(size)
            }
            2 => self.dice.within(0..size.min(6 * MIB)),
            _ => self.dice.within(0..size),
        };
        let unit = *self.dice.pick(&[1, 512, 4096, 65_536]);
        at / unit * unit
    }

    fn some_content(&mut self, len: usize) -> (Vec<u8>, &'static str) {
        match self.dice.within(0..6) {
            0 => (vec![0; len], "zeroes"),
            1 => (vec![u8::try_from(self.dice.within(1..256)).unwrap(); len], "one byte again and again"),
            2 => {
                // A copy of what is somewhere else: chunks that the vault has.
                let all: Vec<PathBuf> = self.guests.iter().flat_map(|g| &g.live).map(|l| l.path.clone()).collect();
                let from = self.dice.pick(&all).clone();
                let at = self.some_place(disks::size(&from));
                (read_at(&from, at, len), "a copy of another place")
            }
            3 => {
                let word = self.dice.bytes(64);
                (word.iter().copied().cycle().take(len).collect(), "words")
            }
            _ => (self.dice.bytes(len), "random bytes"),
        }
    }

    fn write(&mut self, guest: usize, disk: usize) {
        let path = self.guests[guest].live[disk].path.clone();
        let size = disks::size(&path);
        let at = self.some_place(size);
        let most = if self.dice.once_in(5) { WRITE_BYTES_MAX } else { 300 * KIB };
        let len = usize::try_from(self.dice.within(1..most).min(size - at)).unwrap();
        let (bytes, what) = self.some_content(len);
        self.story.tell(format!("{}: write {what} to {at} + {len}", self.named(guest, disk)));
        disks::write_at(&path, at, &bytes);
    }

    fn punch(&mut self, guest: usize, disk: usize) {
        let path = self.guests[guest].live[disk].path.clone();
        let size = disks::size(&path);
        let at = self.some_place(size);
        let len = self.dice.within(1..2 * MIB).min(size - at);
        self.story.tell(format!("{}: punch {at} + {len}", self.named(guest, disk)));
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, how, at, len).expect("a file system with holes");
    }

    fn resize(&mut self, guest: usize, disk: usize) {
        let path = self.guests[guest].live[disk].path.clone();
        let before = disks::size(&path);
        let after = match self.dice.within(0..3) {
            0 => self.some_size(),
            1 => before + self.dice.within(1..MIB),
            _ => before.saturating_sub(self.dice.within(1..MIB)).max(1),
        };
        disks::resize(&path, after);
        // Cut off and grown again within one cycle: only the bytes tell.
        let again = self.dice.once_in(3);
        if again {
            disks::resize(&path, before);
        }
        let way = if again { format!(" and back to {before}") } else { String::new() };
        self.story.tell(format!("{}: from {before} to {after} bytes{way}", self.named(guest, disk)));
    }

    fn named(&self, guest: usize, disk: usize) -> String {
        let guest = &self.guests[guest];
        format!("{}/{}", guest.name, guest.live[disk].name)
    }

    /// One change of a machine's disks.
    fn change(&mut self, guest: usize) {
        let disk = self.dice.below(self.guests[guest].live.len());
        match self.dice.within(0..20) {
            0..9 => self.write(guest, disk),
            9..12 => self.punch(guest, disk),
            12..15 => self.resize(guest, disk),
            15 => {
                let live = &mut self.guests[guest].live;
                live[disk].excluded = !live[disk].excluded;
                let how = if live[disk].excluded { "exclude" } else { "include" };
                self.story.tell(format!("{}: {how}", self.named(guest, disk)));
            }
            16 if self.guests[guest].live.len() > 1 => {
                self.story.tell(format!("{}: remove", self.named(guest, disk)));
                self.guests[guest].live.remove(disk);
            }
            17 => {
                // Another file under the same name: as a disk that was replaced.
                let name = self.guests[guest].live[disk].name;
                self.guests[guest].live.remove(disk);
                self.add_disk(guest, name);
            }
            18 => self.guests[guest].live.rotate_left(1),
            _ => {
                let taken: Vec<&str> = self.guests[guest].live.iter().map(|l| l.name).collect();
                if let Some(free) = NAMES.iter().find(|name| !taken.contains(name)) {
                    self.add_disk(guest, free);
                }
            }
        }
    }

    /// Something happens to the gateways: another one takes over, or one loses what it remembers.
    fn some_gateway(&mut self) -> PathBuf {
        let gateway = self.dice.below(2);
        let state = self.gateways[gateway].clone();
        match self.dice.within(0..8) {
            0 if state.exists() => {
                self.story.tell(format!("gateway {gateway} loses its whole state folder"));
                fs::remove_dir_all(&state).unwrap();
            }
            1 => {
                for index in support::walk(&state).iter().filter(|f| f.ends_with("index.redb")) {
                    self.story.tell(format!("gateway {gateway} loses its index"));
                    fs::remove_file(index).unwrap();
                }
            }
            2 => {
                for index in support::walk(&state).iter().filter(|f| f.ends_with("index.redb")) {
                    self.story.tell(format!("gateway {gateway} has rubbish for an index"));
                    fs::write(index, self.dice.bytes(10_000)).unwrap();
                }
            }
            _ => {}
        }
        state
    }

    /// Changes a machine, takes a point of it, and copies its disks.
    fn cycle(&mut self) {
        let guest = self.dice.below(self.guests.len());
        for _ in 0..self.dice.within(0..5) {
            self.change(guest);
        }
        if self.guests[guest].live.iter().all(|live| live.excluded) {
            self.guests[guest].live[0].excluded = false;
        }
        if self.dice.once_in(12) {
            self.guests[guest].domain = if self.guests[guest].domain == "default" { "tenant" } else { "default" };
        }
        let state = self.some_gateway();
        let gateway = self.gateways.iter().position(|g| *g == state).unwrap();
        let machine = self.guests[guest].name.clone();
        let live = &self.guests[guest].live;
        let named: Vec<Disk<'_>> = live.iter().map(|l| (l.name, l.path.as_path())).collect();
        let mut more = vec!["--domain", self.guests[guest].domain];
        live.iter().filter(|l| l.excluded).for_each(|l| more.extend(["--exclude", l.name]));
        let point = replicate_in(&self.site, &state, &machine, &named, &more);
        let seq = number(&point, "seq");
        self.story.tell(format!("{machine}: point {seq} by gateway {gateway} {more:?}"));
        let live: Vec<_> = live.iter().map(|l| (l.name, l.path.clone(), l.excluded)).collect();
        let mut disks = BTreeMap::new();
        for (name, path, excluded) in live {
            let kept = (!excluded).then(|| {
                let kept = self.new_file("kept");
                disks::copy(&path, &kept);
                kept
            });
            disks.insert(name, kept);
        }
        let time = point["time"].as_str().expect("a time").to_owned();
        self.moments.push(Moment { machine, seq, time, disks });
    }

    /// Every point of every machine, whole, from nothing but the vault and the recovery key.
    fn assert_every_point_is_its_moment(&mut self) {
        for at in 0..self.moments.len() {
            let by_time = self.dice.once_in(4);
            let moment = &self.moments[at];
            let protected: Vec<(&str, &PathBuf)> =
                moment.disks.iter().filter_map(|(name, kept)| Some((*name, kept.as_ref()?))).collect();
            let backs: Vec<PathBuf> =
                protected.iter().map(|(name, _)| self.site.disk(&format!("back-{name}"))).collect();
            let targets: Vec<Disk<'_>> =
                protected.iter().zip(&backs).map(|((name, _), back)| (*name, back.as_path())).collect();
            let point = if by_time { moment.time.clone() } else { moment.seq.to_string() };
            let done = self.site.rehydrate(&moment.machine, &point, &targets);
            assert_eq!(number(&done, "seq"), moment.seq, "{point} of {}", moment.machine);
            for ((name, kept), back) in protected.iter().zip(&backs) {
                assert_is(kept, back, &format!("{} {name} at point {}", moment.machine, moment.seq));
                fs::remove_file(back).unwrap();
            }
            for (name, _) in moment.disks.iter().filter(|(_, kept)| kept.is_none()) {
                let back = self.site.disk("back-excluded");
                let ran = self.site.try_rehydrate(&moment.machine, &[(name, &back)], &["--point", &point]);
                ran.assert_refused(exit::NOT_FOUND, &[name, "excluded"]);
            }
        }
    }

    /// One image that is brought from point to point, in any order, and from rubbish.
    fn assert_a_disk_goes_from_any_point_to_any_other(&mut self, steps: u32) {
        let image = self.site.disk("wanderer");
        let size = self.dice.within(1..3 * MIB);
        disks::random(&image, size, self.dice.next());
        for _ in 0..steps {
            let moment = &self.moments[self.dice.below(self.moments.len())];
            let protected: Vec<(&str, &PathBuf)> =
                moment.disks.iter().filter_map(|(name, kept)| Some((*name, kept.as_ref()?))).collect();
            let (name, kept) = *self.dice.pick(&protected);
            let seq = moment.seq.to_string();
            self.story.tell(format!("compare with {}/{name} at point {seq}", moment.machine));
            let more = ["--point", &seq, "--existing", "compare"];
            self.site.try_rehydrate(&moment.machine, &[(name, &image)], &more).json();
            assert_is(kept, &image, &format!("compared with {} {name} at point {seq}", moment.machine));
            assert!(!mark_of(&image).exists(), "the image is whole, and its mark is still there");
            if self.dice.once_in(3) {
                // Somebody writes to it: what differs is found.
                let (at, len) = (self.dice.within(0..disks::size(&image)), self.dice.within(1..100_000));
                let bytes = self.dice.bytes(usize::try_from(len.min(disks::size(&image) - at)).unwrap());
                disks::write_at(&image, at, &bytes);
            }
        }
    }
}

fn mark_of(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".landfall-incomplete");
    name.into()
}

/// As `disks::assert_same`, saying what is compared.
#[track_caller]
fn assert_is(wanted: &Path, found: &Path, what: &str) {
    let (size, back) = (disks::size(wanted), disks::size(found));
    assert_eq!(size, back, "{what}: its size");
    if let Some(at) = disks::first_difference(wanted, found, 0..size) {
        let (right, wrong) = (read_at(wanted, at, 16), read_at(found, at, 16));
        panic!("{what}: byte {at} of {size} is wrong: {wrong:02x?} and not {right:02x?}");
    }
}

fn sequence(seed: u64, cycles: u32) {
    let mut world = World::new(seed);
    for _ in 0..cycles {
        world.cycle();
    }
    world.assert_every_point_is_its_moment();
    world.assert_a_disk_goes_from_any_point_to_any_other(5);
    world.site.assert_sound();
    assert!(world.site.files("tmp").is_empty(), "something is left in the temporary folder");
}

/// Seeds from `first` on, every other one: `LANDFALL_TEST_SEQUENCES` of them, where that is set.
fn sequences(first: u64) {
    let named = std::env::var("LANDFALL_TEST_SEQUENCES").ok();
    let count: u64 = named.map_or(8, |text| text.parse().unwrap());
    (0..count).for_each(|n| sequence(first + 2 * n, 10));
}

// Two tests, so that both cores have one.

#[test]
fn whatever_happens_to_its_disks_every_point_is_its_moment() {
    sequences(100);
}

#[test]
fn whatever_happens_to_two_machines_every_point_is_its_moment() {
    sequences(201);
}

#[test]
fn an_image_in_a_container_goes_from_any_point_to_any_other() {
    let _judge = need!(tools::need("qemu-img"));
    for seed in [400, 401] {
        let mut world = World::new(seed);
        (0..6).for_each(|_| world.cycle());
        for format in ["qcow2", "vhd"] {
            let image = world.site.disk(&format!("wanderer.{format}"));
            for _ in 0..7 {
                let moment = &world.moments[world.dice.below(world.moments.len())];
                let protected: Vec<(&str, &PathBuf)> =
                    moment.disks.iter().filter_map(|(name, kept)| Some((*name, kept.as_ref()?))).collect();
                let (name, kept) = *world.dice.pick(&protected);
                let seq = moment.seq.to_string();
                world.story.tell(format!("{format}: compare with {}/{name} at point {seq}", moment.machine));
                let more = ["--point", &seq, "--existing", "compare", "--format", format];
                world.site.try_rehydrate(&moment.machine, &[(name, &image)], &more).json();
                let called = if format == "vhd" { "vpc" } else { format };
                disks::assert_image_whole(&image, called);
                disks::assert_image_holds(&image, called, kept);
                assert!(!mark_of(&image).exists(), "the image is whole, and its mark is still there");
            }
        }
    }
}

/// The objects that hold data or the keys to it.
fn data_objects(site: &Site) -> Vec<PathBuf> {
    [site.files("vault/segments"), site.files("vault/epochs")].concat()
}

#[test]
fn what_the_vault_lost_is_in_the_next_point_again() {
    for seed in 300..304 {
        let mut world = World::new(seed);
        // So much that it stands in segments, also where nothing changes any more.
        let disk = world.guests[0].live[0].path.clone();
        disks::resize(&disk, 9 * MIB + 512);
        disks::write_at(&disk, MIB, &disks::seeded_bytes(seed, 4_000_000));
        for cycle in 0..6 {
            if cycle > 0 {
                let objects = data_objects(&world.site);
                let lost = world.dice.pick(&objects).clone();
                world.story.tell(format!("lost: {}", lost.display()));
                if world.dice.once_in(3) {
                    disks::resize(&lost, disks::size(&lost) / 2);
                } else {
                    fs::remove_file(lost).unwrap();
                }
            }
            world.cycle();
            // Older points may need what is gone; the newest of the machine that took one needs nothing of it.
            let newest = world.moments.len() - 1;
            let older: Vec<Moment> = world.moments.drain(..newest).collect();
            world.assert_every_point_is_its_moment();
            world.moments.splice(0..0, older);
        }
    }
}

#[test]
fn a_disk_that_was_cut_and_grew_again_has_zeroes_where_it_grew() {
    let site = Site::with_vault();
    let (disk, kept) = (site.disk("disk.img"), |n: usize| site.disk(&format!("kept-{n}")));
    let sizes = [
        MIB,
        300_001,
        MIB,
        4096,
        4095,
        4097,
        1,
        2 * MIB + 1,
        REGION + 70_000,
        REGION + 1,
        REGION + 70_000,
        REGION,
        REGION + 70_000,
        REGION - 1,
        2 * REGION + 512,
        3,
        MIB,
    ];
    disks::sparse(&disk, sizes[0]);
    for (n, size) in sizes.into_iter().enumerate() {
        disks::resize(&disk, size);
        let point = site.replicate("web", &[("root", &disk)]);
        assert_eq!(number(&point, "seq"), n as u64 + 1);
        disks::copy(&disk, &kept(n));
        // Full to the last byte, so that anything that comes back where it grew again is stale and not zero by chance.
        for from in [0, size.saturating_sub(100_000)] {
            let len = usize::try_from(size.min(100_000)).unwrap();
            disks::write_at(&disk, from, &disks::seeded_bytes(n as u64 ^ from, len));
        }
        site.replicate("full", &[("root", &disk)]);
        disks::copy(&disk, &site.disk(&format!("full-{n}")));
    }
    for (n, _) in sizes.iter().enumerate() {
        let seq = (n + 1).to_string();
        for (machine, wanted) in [("web", kept(n)), ("full", site.disk(&format!("full-{n}")))] {
            let back = site.disk("back");
            site.rehydrate(machine, &seq, &[("root", &back)]);
            assert_is(&wanted, &back, &format!("{machine} at point {seq}, {} bytes", sizes[n]));
            fs::remove_file(back).unwrap();
        }
    }
    site.assert_sound();
}

#[test]
fn a_disk_without_a_byte_is_refused() {
    let site = Site::with_vault();
    let (disk, empty) = (site.disk("disk.img"), site.disk("empty.img"));
    disks::random(&disk, 10_000, 1);
    disks::sparse(&empty, 0);
    let ran = site.try_replicate("web", &[("root", &disk), ("empty", &empty)], &[]);
    ran.assert_refused(exit::USAGE, &["empty.img", "no bytes"]);
    // A disk that was cut off to nothing: its last good point stays the newest.
    disks::resize(&empty, 10_000);
    site.replicate("web", &[("root", &disk), ("empty", &empty)]);
    disks::resize(&empty, 0);
    site.try_replicate("web", &[("root", &disk), ("empty", &empty)], &[]).assert_refused(exit::USAGE, &["no bytes"]);
    assert_eq!(site.points("web").len(), 1);
}

/// A machine of one small disk, taken often; every moment is kept in memory.
struct Small<'a> {
    site: &'a Site,
    machine: &'static str,
    disk: PathBuf,
    moments: Vec<Vec<u8>>,
}

impl<'a> Small<'a> {
    fn new(site: &'a Site, machine: &'static str) -> Self {
        let disk = site.disk(machine);
        disks::random(&disk, 50_000, 1);
        Self { site, machine, disk, moments: Vec::new() }
    }

    fn cycle(&mut self) {
        let point = self.site.replicate(self.machine, &[("root", &self.disk)]);
        self.moments.push(fs::read(&self.disk).unwrap());
        assert_eq!(number(&point, "seq"), self.moments.len() as u64);
    }

    fn change(&self, dice: &mut Dice) {
        let size = fs::metadata(&self.disk).unwrap().len();
        if dice.once_in(20) {
            disks::resize(&self.disk, dice.within(20_000..90_000));
            return;
        }
        let at = dice.within(0..size);
        let len = dice.within(1..6000).min(size - at);
        let bytes = dice.bytes(usize::try_from(len).unwrap());
        OpenOptions::new().write(true).open(&self.disk).unwrap().write_all_at(&bytes, at).unwrap();
    }

    /// The numbers of the points that a checkpoint was written for.
    fn checkpoints(&self) -> Vec<u64> {
        let checkpoints = self.site.files("vault/machines").into_iter();
        let seqs = checkpoints.filter(|f| f.parent().is_some_and(|p| p.ends_with("checkpoints")));
        let mut seqs: Vec<u64> =
            seqs.map(|f| u64::from_str_radix(f.file_name().unwrap().to_str().unwrap(), 16).unwrap()).collect();
        seqs.sort_unstable();
        seqs
    }

    fn assert_point(&self, seq: u64) {
        let back = self.site.disk(&format!("back-{}", self.machine));
        self.site.rehydrate(self.machine, &seq.to_string(), &[("root", &back)]);
        let wanted = &self.moments[usize::try_from(seq).unwrap() - 1];
        assert!(fs::read(&back).unwrap() == *wanted, "point {seq} of {} is not its moment", self.machine);
        fs::remove_file(back).unwrap();
    }

    /// Points around every checkpoint, at both ends, and some others.
    fn assert_points_around_checkpoints(&self, checkpoints: &[u64], dice: &mut Dice) {
        let last = self.moments.len() as u64;
        let around = checkpoints.iter().flat_map(|c| c.saturating_sub(2)..c + 3);
        let mut seqs: Vec<u64> = around.chain([1, 2, last]).chain((0..8).map(|_| dice.within(1..last))).collect();
        seqs.retain(|seq| (1..=last).contains(seq));
        seqs.sort_unstable();
        seqs.dedup();
        seqs.into_iter().for_each(|seq| self.assert_point(seq));
    }
}

#[test]
fn a_machine_that_is_written_to_all_the_time_has_every_point_around_its_checkpoints() {
    let (site, mut dice) = (Site::with_vault(), Dice::new(31));
    let mut small = Small::new(&site, "busy");
    for n in 0..150 {
        small.change(&mut dice);
        small.cycle();
        if n == 90 {
            // The index and the newest heads are made again from a vault that has a checkpoint.
            fs::remove_dir_all(site.folder().join("state")).unwrap();
        }
    }
    let checkpoints = small.checkpoints();
    assert!(checkpoints.len() >= 2, "checkpoints at {checkpoints:?}: too few to have been opened through");
    small.assert_points_around_checkpoints(&checkpoints, &mut dice);
    site.assert_sound();
}

#[test]
fn three_hundred_quiet_cycles_have_a_checkpoint_and_every_point_around_it() {
    let (site, mut dice) = (Site::with_vault(), Dice::new(32));
    let mut small = Small::new(&site, "quiet");
    for n in 0..310 {
        // So few changes that only the number of points makes a checkpoint due.
        if n % 8 == 0 {
            small.change(&mut dice);
        }
        small.cycle();
    }
    let checkpoints = small.checkpoints();
    assert_eq!(checkpoints, [256], "one checkpoint, where the 256 points of CHECKPOINT_POINTS_MAX are reached");
    small.assert_points_around_checkpoints(&checkpoints, &mut dice);
    assert_eq!(site.points("quiet").len(), 310);
    site.assert_sound();
}
