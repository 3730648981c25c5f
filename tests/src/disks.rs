//! Disk images to protect, made on this machine without root, and the programs that judge what comes back.
//!
//! ext4 is filled by `mkfs.ext4 -d` and changed by `debugfs`, xfs by a prototype file: nothing is mounted. The files in them are this
//! machine's own, up to a budget of bytes and in the order of their names, so that content is as real as the machine and the same in
//! every run on it. Whatever is random has a seed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::SeekFrom as HoleSeek;

use crate::tools::{self, succeed};

/// The same file systems in every run: their identifiers are part of their bytes.
const EXT4_ID: &str = "11111111-2222-4333-8444-555555555555";
const XFS_ID: &str = "99999999-8888-4777-8666-555555555555";
/// `mkfs.xfs` refuses anything smaller than this.
pub const XFS_BYTES_MIN: u64 = 320 << 20;
/// What may be left of a budget of content: the search for still smaller files would never end.
const BUDGET_REST_BYTES: u64 = 64 << 10;
/// Block size of comparisons and copies.
const BLOCK_BYTES: usize = 1 << 20;

/// Random bytes that are the same for the same seed.
pub fn seeded_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

/// SplitMix64: not for keys, but incompressible and repeatable.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for chunk in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
    }
}

/// A disk of random bytes, none of them a hole.
pub fn random(path: &Path, size: u64, seed: u64) {
    let mut file = BufWriter::with_capacity(BLOCK_BYTES, create(path));
    let mut left = size;
    let mut block = vec![0; BLOCK_BYTES];
    while left > 0 {
        let len = usize::try_from(left.min(BLOCK_BYTES as u64)).expect("a block");
        fill(&mut block[..len], seed ^ left.rotate_left(17));
        file.write_all(&block[..len]).expect("room for a disk");
        left -= len as u64;
    }
    file.flush().expect("room for a disk");
}

/// A disk with nothing on it: one hole. `false` where the file system does not take files of that size.
pub fn sparse(path: &Path, size: u64) -> bool {
    create(path).set_len(size).is_ok()
}

/// A disk of zeroes that are written, not left out.
pub fn zeroes(path: &Path, size: u64) {
    let mut source = io::repeat(0).take(size);
    io::copy(&mut source, &mut create(path)).expect("room for a disk");
}

/// Overwrites part of a disk.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the disk is there");
    file.write_all_at(bytes, offset).expect("room on the disk");
}

/// Grows a disk by a hole, or cuts its end off.
pub fn resize(path: &Path, size: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(size)).expect("a new size");
}

/// Bytes that a file takes on its file system, holes not counted.
pub fn allocated_bytes(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").blocks() * 512
}

/// Size of a file.
pub fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").len()
}

fn create(path: &Path) -> File {
    File::create_new(path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()))
}

/// Copies a disk, holes and all.
pub fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("--sparse=always").arg("--reflink=auto").args([from, to]));
}

/// A folder for disks of this size: the given one, or shared memory, whose files may be far larger than ext4's 16 TiB.
/// `None` after saying that nothing here takes such a file.
pub fn folder_for(size: u64) -> Option<tempfile::TempDir> {
    for parent in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let Ok(folder) = tempfile::Builder::new().prefix("landfall").tempdir_in(parent) else { continue };
        if sparse(&folder.path().join("try"), size) {
            fs::remove_file(folder.path().join("try")).expect("own file");
            return Some(folder);
        }
    }
    tools::missing(&format!("a file system that takes a file of {size} bytes"));
    None
}

/// A new ext4 file system with this machine's files, about `content` bytes of them.
pub fn ext4(path: &Path, size: u64, content: u64) -> Option<()> {
    let (mkfs, _judge) = (tools::need("mkfs.ext4")?, tools::need("e2fsck")?);
    let folder = tempfile::tempdir().expect("a temporary folder");
    gather(folder.path(), content);
    assert!(sparse(path, size), "no room for a disk of {size} bytes");
    let extended = format!("hash_seed={EXT4_ID},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0");
    let mut command = Command::new(mkfs);
    command.args(["-q", "-F", "-U", EXT4_ID, "-E", &extended, "-d"]).arg(folder.path()).arg(path);
    succeed(&mut command);
    Some(())
}

/// Writes a file of random bytes into an ext4 file system, as its owner would, and the file system stays whole.
pub fn ext4_write(disk: &Path, name: &str, len: usize, seed: u64) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), seeded_bytes(seed, len)).expect("room");
    debugfs(disk, &format!("write {} {name}", file.path().display()));
}

/// Removes a file from the top of an ext4 file system.
pub fn ext4_remove(disk: &Path, name: &str) {
    debugfs(disk, &format!("rm {name}"));
}

fn debugfs(disk: &Path, request: &str) {
    let program = tools::find("debugfs").expect("debugfs comes with mkfs.ext4");
    succeed(Command::new(program).args(["-w", "-R", request]).arg(disk));
}

/// A new xfs file system with this machine's files, about `content` bytes of them. At least [`XFS_BYTES_MIN`] in size.
pub fn xfs(path: &Path, size: u64, content: u64) -> Option<()> {
    let (mkfs, _judge) = (tools::need("mkfs.xfs")?, tools::need("xfs_repair")?);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = folder.path().join("files");
    fs::create_dir(&files).expect("own folder");
    gather(&files, content);
    let mut prototype = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
    describe(&files, &mut prototype);
    let description = folder.path().join("prototype");
    fs::write(&description, prototype + "$\n").expect("room");
    assert!(sparse(path, size), "no room for a disk of {size} bytes");
    let data = format!("file,name={},size={size}", path.display());
    let mut command = Command::new(mkfs);
    command.args(["-q", "-m", &format!("uuid={XFS_ID}"), "-d", &data, "-p"]).arg(description);
    succeed(&mut command);
    Some(())
}

/// One folder in the language of `mkfs.xfs -p`; a `$` ends it, which the caller writes.
fn describe(folder: &Path, out: &mut String) {
    for entry in sorted(folder) {
        let name = entry.file_name().and_then(|name| name.to_str()).expect("gathered names are text");
        let kind = fs::symlink_metadata(&entry).expect("gathered").file_type();
        if kind.is_dir() {
            out.push_str(&format!("{name} d--755 0 0\n"));
            describe(&entry, out);
            out.push_str("$\n");
        } else if kind.is_symlink() {
            let target = fs::read_link(&entry).expect("a link");
            out.push_str(&format!("{name} l--777 0 0 {}\n", target.display()));
        } else {
            out.push_str(&format!("{name} ---644 0 0 {}\n", entry.display()));
        }
    }
}

/// Copies files of this machine until the budget is spent.
fn gather(into: &Path, budget: u64) {
    let mut left = budget;
    for (source, share) in [("/etc", 8), ("/usr/share/doc", 8), ("/usr/bin", 1), ("/usr/lib", 1)] {
        let mut part = left / share;
        let before = part;
        let to = into.join(source.trim_start_matches('/').replace('/', "-"));
        fs::create_dir(&to).expect("own folder");
        gather_folder(Path::new(source), &to, &mut part);
        left -= before - part;
    }
}

fn gather_folder(from: &Path, to: &Path, left: &mut u64) {
    for entry in sorted(from) {
        let Some(name) = entry.file_name().and_then(|name| name.to_str()) else { continue };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        let Ok(meta) = fs::symlink_metadata(&entry) else { continue };
        // Spaces and the like cannot be said in a prototype file; empty folders and devices show nothing new.
        if !name.chars().all(plain) || *left < BUDGET_REST_BYTES {
            continue;
        }
        let target = to.join(name);
        if meta.is_dir() {
            fs::create_dir(&target).expect("own folder");
            gather_folder(&entry, &target, left);
        } else if meta.is_symlink() {
            let link = fs::read_link(&entry).expect("a link");
            if link.to_str().is_some_and(|link| link.chars().all(|c| plain(c) || c == '/')) {
                std::os::unix::fs::symlink(link, target).expect("a link");
            }
        } else if meta.is_file() && meta.len() <= *left && fs::copy(&entry, &target).is_ok() {
            *left -= meta.len();
        }
    }
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()).collect());
    let mut entries: Vec<PathBuf> = entries.unwrap_or_default();
    entries.sort();
    entries
}

/// Fails the test unless the ext4 file system in this image is whole.
pub fn assert_ext4_healthy(image: &Path) {
    succeed(Command::new(tools::find("e2fsck").expect("checked before the disk was made")).arg("-fn").arg(image));
}

/// Fails the test unless the xfs file system in this image is whole.
pub fn assert_xfs_healthy(image: &Path) {
    succeed(
        Command::new(tools::find("xfs_repair").expect("checked before the disk was made"))
            .args(["-n", "-f"])
            .arg(image),
    );
}

/// Fails the test unless `qemu-img` finds the image whole.
pub fn assert_image_whole(image: &Path, format: &str) {
    let qemu = tools::find("qemu-img").expect("checked before the image was made");
    if format == "qcow2" {
        succeed(Command::new(&qemu).args(["check", "-f", format]).arg(image));
    }
    succeed(Command::new(&qemu).args(["info", "-f", format]).arg(image));
}

/// Fails the test unless `qemu-img` reads the same bytes from an image as from a raw disk; a longer one may end in zeroes.
pub fn assert_image_holds(image: &Path, format: &str, raw: &Path) {
    let qemu = tools::find("qemu-img").expect("checked before the image was made");
    succeed(Command::new(qemu).args(["compare", "-f", "raw", "-F", format]).args([raw, image]));
}

/// Fails the test, naming the first byte, unless two files are of one size and have the same bytes. Holes cost nothing.
pub fn assert_same(one: &Path, other: &Path) {
    assert_eq!(size(one), size(other), "sizes of {} and {}", one.display(), other.display());
    if let Some(offset) = first_difference(one, other, 0..size(one)) {
        panic!("{} and {} differ first at byte {offset}", one.display(), other.display());
    }
}

/// The first byte in a range where two files differ; what lies behind the end of a file counts as zeroes.
pub fn first_difference(one: &Path, other: &Path, range: std::ops::Range<u64>) -> Option<u64> {
    let mut files = [File::open(one).expect("first file"), File::open(other).expect("second file")];
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    let mut at = range.start;
    while at < range.end {
        // Where both have a hole they are equal up to the nearer of the next data.
        let next = files.iter().map(|file| next_data(file, at)).min().expect("two files").max(at);
        if next >= range.end {
            return None;
        }
        at = next;
        let len = usize::try_from((range.end - at).min(BLOCK_BYTES as u64)).expect("a block");
        read_padded(&mut files[0], at, &mut left[..len]);
        read_padded(&mut files[1], at, &mut right[..len]);
        if let Some(differs) = (0..len).find(|&n| left[n] != right[n]) {
            return Some(at + differs as u64);
        }
        at += len as u64;
    }
    None
}

fn next_data(file: &File, from: u64) -> u64 {
    match rustix::fs::seek(file, HoleSeek::Data(from)) {
        Ok(at) => at,
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        Err(_) => from,
    }
}

fn read_padded(file: &mut File, at: u64, into: &mut [u8]) {
    into.fill(0);
    file.seek(SeekFrom::Start(at)).expect("an offset");
    let mut done = 0;
    while done < into.len() {
        match file.read(&mut into[done..]).expect("the file can be read") {
            0 => return,
            n => done += n,
        }
    }
}

/// Whether these bytes stand anywhere in a file.
pub fn holds_bytes(file: &Path, wanted: &[u8]) -> bool {
    let mut file = File::open(file).expect("the file is there");
    let mut window = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let n = file.read(&mut block).expect("the file can be read");
        if n == 0 {
            return false;
        }
        window.extend_from_slice(&block[..n]);
        if window.windows(wanted.len()).any(|bytes| bytes == wanted) {
            return true;
        }
        window.drain(..window.len().saturating_sub(wanted.len()));
    }
}
