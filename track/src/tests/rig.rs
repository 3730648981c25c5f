//! Devices for tests, which go away with their guards, and a copy of a device that is kept up to date by what a watch says.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use landfall_model::BlockSet;
use tempfile::TempDir;

use crate::device::Device;
use crate::watch::{Marks, Options, Watch};

pub(crate) const BLOCK: usize = 64 << 10;
/// Bytes that are read at once.
const READ: usize = 1 << 20;
const MIB: u64 = 1 << 20;

/// Says that a test is skipped; fails it where `CI` is set.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot run here: {why}");
    eprintln!("skipped: {why}");
}

/// Whether devices can be made and watched here; says so if not.
pub(crate) fn ready(programs: &[&str]) -> bool {
    let lacking = || {
        crate::support().err().map(|error| error.to_string()).or_else(|| {
            let mut programs = ["losetup"].iter().chain(programs);
            let lacking = programs.find(|program| !output(Command::new("which").arg(program)).status.success())?;
            Some(format!("the program '{lacking}' is missing"))
        })
    };
    let lacking = lacking().or_else(|| {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        opened.err().map(|error| format!("no loop devices: {error}"))
    });
    lacking.inspect(|why| skipped(why)).is_none()
}

/// What a test is ended by when the kernel did not run a program: that was said, as it must be, and says nothing of the rest.
struct Missed;

/// Ends a test, to be run anew by `patient`.
pub(crate) fn missed() -> ! {
    std::panic::resume_unwind(Box::new(Missed));
}

/// What a watch says, which must be that nothing is lost.
pub(crate) fn whole(marks: Marks) -> BlockSet {
    let by_kernel = ["without running the program", "was not seen: what is written", "skipped runs"];
    if let Some(lost) = &marks.lost
        && by_kernel.iter().any(|why| lost.contains(why))
    {
        missed();
    }
    assert_eq!(marks.lost, None);
    marks.blocks
}

/// Runs a test where devices can be made and watched.
pub(crate) fn with_devices(programs: &[&str], test: impl Fn()) {
    if ready(programs) {
        patient(test);
    }
}

/// Runs a test, or a part of one, anew where the kernel did not run a program, as some kernels do not while certain tasks run.
pub(crate) fn patient(test: impl Fn()) {
    for _ in 0..12 {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test)) {
            Err(why) if why.is::<Missed>() => eprintln!("this kernel does not always run programs: once more"),
            Err(why) => std::panic::resume_unwind(why),
            Ok(()) => return,
        }
    }
    panic!("this kernel hardly ever runs the programs");
}

pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Runs a command that must succeed; its words are split at spaces.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let out = output(Command::new(words.next().unwrap()).args(words));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command}: {}\n{stdout}{stderr}", out.status);
    stdout.trim().to_owned()
}

/// Runs a command in a drop: must not panic there.
fn try_run(command: &str) {
    let mut words = command.split_whitespace();
    if let Some(program) = words.next() {
        let _ = Command::new(program).args(words).stdin(Stdio::null()).output();
    }
}

/// A loop device on a file of its own, or of somebody else.
pub(crate) struct Loop {
    pub(crate) path: PathBuf,
    pub(crate) file: PathBuf,
    _folder: Option<TempDir>,
}

impl Loop {
    pub(crate) fn new(mib: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("disk");
        let mut disk = Self::on(file, mib);
        disk._folder = Some(folder);
        disk
    }

    /// On a file, which is made. Direct, so that requests overtake each other: through the page cache it does one after the other.
    pub(crate) fn on(file: PathBuf, mib: u64) -> Self {
        Self::with(file, mib, "--direct-io=on")
    }

    pub(crate) fn with(file: PathBuf, mib: u64, options: &str) -> Self {
        File::create(&file).unwrap().set_len(mib * MIB).unwrap();
        let path = run(&format!("losetup {options} -f --show {}", file.display()));
        Self { path: path.into(), file, _folder: None }
    }

    pub(crate) fn name(&self) -> String {
        self.path.file_name().unwrap().display().to_string()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        try_run(&format!("losetup -d {}", self.path.display()));
    }
}

/// A partition of a loop device.
pub(crate) struct Partition {
    pub(crate) path: PathBuf,
    disk: PathBuf,
    number: u32,
}

impl Partition {
    pub(crate) fn new(disk: &Loop, number: u32, start: u64, sectors: u64) -> Self {
        run(&format!("addpart {} {number} {start} {sectors}", disk.path.display()));
        let path = PathBuf::from(format!("{}p{number}", disk.path.display()));
        until("the partition's node", || path.exists());
        Self { path, disk: disk.path.clone(), number }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        try_run(&format!("delpart {} {}", self.disk.display(), self.number));
    }
}

/// A zram device: it has no requests, only bios.
pub(crate) struct Zram {
    pub(crate) path: PathBuf,
    number: String,
}

impl Zram {
    /// None, after saying so, where there is none to be had.
    pub(crate) fn new(mib: u64) -> Option<Self> {
        let Ok(number) = fs::read_to_string("/sys/class/zram-control/hot_add") else {
            skipped("no zram");
            return None;
        };
        let number = number.trim().to_owned();
        let zram = Self { path: format!("/dev/zram{number}").into(), number };
        fs::write(format!("/sys/block/zram{}/disksize", zram.number), (mib * MIB).to_string()).unwrap();
        until("zram's node", || zram.path.exists());
        Some(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        for _ in 0..100 {
            let _ = fs::write(format!("/sys/block/zram{}/reset", self.number), "1");
            if fs::write("/sys/class/zram-control/hot_remove", &self.number).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A file system of a device, mounted.
pub(crate) struct Mounted {
    folder: TempDir,
}

impl Mounted {
    pub(crate) fn new(device: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        run(&format!("mount -o noatime {} {}", device.display(), folder.path().display()));
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Stops all writes until `thaw`.
    pub(crate) fn freeze(&self) {
        run(&format!("fsfreeze -f {}", self.path().display()));
    }

    pub(crate) fn thaw(&self) {
        run(&format!("fsfreeze -u {}", self.path().display()));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        try_run(&format!("fsfreeze -u {}", self.path().display()));
        try_run(&format!("umount {}", self.path().display()));
    }
}

/// Waits for something, which must come.
pub(crate) fn until(what: &str, come: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !come() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn attach(path: &Path, options: Options) -> landfall_model::Result<Watch> {
    Watch::attach_with(path, options, &crate::layout::of_this_kernel()?)
}

/// Bytes whose address direct I/O takes.
pub(crate) struct Aligned {
    storage: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(crate) fn new(len: usize) -> Self {
        let storage = vec![0; len + 4096];
        let start = storage.as_ptr().align_offset(4096);
        Self { storage, start, len }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..][..self.len]
    }
}

pub(crate) fn direct(path: &Path, write: bool) -> File {
    OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// Writes past the page cache.
pub(crate) fn write_direct(path: &Path, at: u64, len: usize, byte: u8) {
    let mut bytes = Aligned::new(len);
    bytes.bytes().fill(byte);
    direct(path, true).write_all_at(bytes.bytes(), at).unwrap();
}

/// What a device held when it was last read, block by block.
pub(crate) struct Shadow {
    file: File,
    pub(crate) bytes: Vec<u8>,
}

impl Shadow {
    pub(crate) fn new(path: &Path) -> Self {
        Self::of(direct(path, false), Device::open(path).unwrap().size())
    }

    /// Of what another file tells of the device.
    pub(crate) fn of(file: File, size: u64) -> Self {
        let mut shadow = Self { file, bytes: vec![0; usize::try_from(size).unwrap()] };
        shadow.bytes = shadow.read_all();
        shadow
    }

    fn read(&self, start: usize, into: &mut [u8]) {
        let mut room = Aligned::new(READ);
        for (at, piece) in into.chunks_mut(READ).enumerate() {
            let offset = (start + at * READ) as u64;
            let part = &mut room.bytes()[..piece.len()];
            self.file.read_exact_at(part, offset).unwrap_or_else(|error| panic!("at {offset}: {error}"));
            piece.copy_from_slice(part);
        }
    }

    fn read_all(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes.len()];
        self.read(0, &mut bytes);
        bytes
    }

    /// Reads what is marked. Nothing may be lost.
    pub(crate) fn apply(&mut self, marks: Marks) -> u64 {
        self.apply_blocks(&whole(marks))
    }

    pub(crate) fn apply_blocks(&mut self, blocks: &BlockSet) -> u64 {
        for run in blocks.runs() {
            let (start, end) = (usize::try_from(run.start).unwrap(), usize::try_from(run.end()).unwrap());
            let mut bytes = vec![0; end - start];
            self.read(start, &mut bytes);
            self.bytes[start..end].copy_from_slice(&bytes);
        }
        blocks.len()
    }

    /// Places, in blocks of 64 KiB, where this is not what the device holds.
    pub(crate) fn differences(&self) -> Vec<usize> {
        let now = self.read_all();
        let pairs = now.chunks(BLOCK).zip(self.bytes.chunks(BLOCK)).enumerate();
        pairs.filter(|(_, (now, then))| now != then).map(|(at, _)| at).collect()
    }
}
