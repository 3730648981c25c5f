//! Block devices to protect: files behind loop devices, and file systems mounted from them. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::tools;

/// One `losetup --find` at a time: two may find the same.
static FINDING: Mutex<()> = Mutex::new(());

/// A file behind a loop device. Detached when it is dropped.
pub struct Loop {
    device: PathBuf,
}

impl Loop {
    /// `None` after saying that this host, which may be a container, cannot.
    ///
    /// # Panics
    /// Where `CI` is set and it cannot.
    pub fn of(file: &Path) -> Option<Self> {
        let losetup = tools::need("losetup")?;
        let _one = FINDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let out = tools::output(Command::new(losetup).args(["--direct-io=on", "--find", "--show"]).arg(file));
        if !out.status.success() {
            tools::missing("leave to attach loop devices");
            return None;
        }
        Some(Self { device: PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()) })
    }

    /// The device.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Mounts the file system on it.
    ///
    /// # Panics
    /// If that does not work.
    pub fn mount(&self, at: &Path) -> Mounted {
        fs::create_dir_all(at).expect("own folder");
        tools::succeed(Command::new("mount").arg(&self.device).arg(at));
        Mounted { at: at.to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// A mounted file system. Thawed and unmounted when it is dropped.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Where.
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Whether it takes a write at once: a frozen one does not.
    pub fn is_thawed(&self) -> bool {
        let probe = Command::new("timeout").args(["20", "touch"]).arg(self.at.join("thawed")).status();
        probe.is_ok_and(|status| status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test that failed may have left it frozen; else this says that it is not.
        let quiet = || std::process::Stdio::null();
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.at).stderr(quiet()).status();
        // An agent that is cutting has it open for a moment; who took that for unmounted would see it written to again and again.
        for _ in 0..600 {
            if Command::new("umount").arg(&self.at).stderr(quiet()).status().is_ok_and(|status| status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// Whether writes to block devices can be watched here; `false` after saying that they cannot.
///
/// # Panics
/// Where `CI` is set and they cannot.
pub fn can_be_watched() -> bool {
    let has_btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let is_root = rustix::process::geteuid().is_root();
    if !has_btf || !is_root {
        tools::missing("root and a kernel that describes itself (/sys/kernel/btf/vmlinux)");
    }
    has_btf && is_root
}
