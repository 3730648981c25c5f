//! File systems of the test's own, in image files behind loop devices; gone when dropped, after a panic too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use tempfile::{TempDir, tempdir};

/// Folders that hold administrators' programs and are not on the `PATH` of everybody.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Somebody else may take the same loop device, or look at a mount for a moment.
const TRIES_MAX: u32 = 50;

/// Says that a test is skipped for want of something; fails it where `CI` is set.
pub(crate) fn missing(what: &str) {
    assert!(env::var_os("CI").is_none(), "{what} is missing");
    eprintln!("SKIPPED: {what} is missing");
}

/// Runs a program; its output, or what it complained of.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = env::split_paths(&path).chain(ADMIN_FOLDERS.iter().map(PathBuf::from));
    let Some(found) = folders.find_map(|folder| Some(folder.join(program)).filter(|file| file.is_file())) else {
        return Err(format!("the program '{program}' is not installed"));
    };
    let output = Command::new(found).args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(stdout.into_owned()) } else { Err(format!("{program} {args:?}: {stdout}{stderr}")) }
}

/// As text, for arguments.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's own")
}

/// A loop device over a file.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn new(file: &Path, options: &[&str]) -> Result<Self, String> {
        let args = [&["--find", "--show"], options, &[text(file)]].concat();
        let mut last = String::new();
        for _ in 0..TRIES_MAX {
            match run("losetup", &args) {
                Ok(path) => return Ok(Self(path.trim().into())),
                Err(e) => last = e,
            }
            if !last.contains("busy") {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(last)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", text(&self.0)]);
    }
}

/// A mounted file system.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(device: &Path, at: &Path, options: &str) -> Result<Self, String> {
        run("mount", &["-o", options, text(device), text(at)])?;
        Ok(Self::of(at))
    }

    /// One that is there already.
    pub(crate) fn of(at: &Path) -> Self {
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..TRIES_MAX {
            if run("umount", &[text(&self.0)]).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _ = run("umount", &["--lazy", text(&self.0)]);
    }
}

/// A new file system, mounted. The order is that of taking apart.
pub(crate) struct FileSystem {
    _mount: Mount,
    pub(crate) device: Loop,
    folder: TempDir,
}

impl FileSystem {
    /// `None`, loudly, where this cannot be had: not root, no loop devices, a program or the kernel's part is missing.
    pub(crate) fn new(kind: &str, mkfs: &[&str], options: &str, bytes: u64) -> Option<Self> {
        Self::try_new(kind, mkfs, options, bytes).inspect_err(|e| missing(&format!("a file system {kind} ({e})"))).ok()
    }

    fn try_new(kind: &str, mkfs: &[&str], options: &str, bytes: u64) -> Result<Self, String> {
        let folder = tempdir().map_err(|e| e.to_string())?;
        let (image, at) = (folder.path().join("image"), folder.path().join("at"));
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("room for an image");
        std::fs::create_dir(&at).expect("a folder");
        run(&format!("mkfs.{kind}"), &[mkfs, &["-q", text(&image)]].concat())?;
        let device = Loop::new(&image, &[])?;
        let mount = Mount::new(&device.0, &at, options)?;
        Ok(Self { _mount: mount, device, folder })
    }

    pub(crate) fn xfs() -> Option<Self> {
        Self::new("xfs", &["-m", "reflink=1"], "defaults", 1 << 30)
    }

    pub(crate) fn btrfs(options: &str) -> Option<Self> {
        Self::new("btrfs", &[], options, 1 << 30)
    }

    /// A place on it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join("at").join(name)
    }
}
