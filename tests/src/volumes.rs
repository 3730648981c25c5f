//! Stand-ins for the programs of LVM and ZFS, which need a kernel that has them: scripts that keep files as snapshots of loop devices, and print what the real programs
//! print. What they show is that the agent asks for what it should, believes what it may, and cleans up; not that the real programs do as they do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::landfall::{Disk, Site};

const LVM: &str = include_str!("volumes/lvm.sh");
const ZFS: &str = include_str!("volumes/zfs.sh");

/// A `/dev` of its own for a process, in which ZFS has its device nodes. File systems of other tests are not kept mounted by it.
const WITH_DEVICES: &str = r#"set -e
for at in $(awk '$5 ~ "/landfall-site" { print $5 }' /proc/self/mountinfo | sort -r); do umount -l "$at"; done
mkdir -p "$0/newdev"
mount -t tmpfs none "$0/newdev"
cp -a /dev/loop* /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/fd /dev/stdin /dev/stdout /dev/stderr "$0/newdev/"
mkdir "$0/newdev/zvol" "$0/newdev/shm"
mount --rbind "$0/newdev" /dev
mount --bind "$0/zvol" /dev/zvol
exec "$@"
"#;

/// Which of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The disks are thin volumes `vg0/NAME` of the pool `vg0/pool`.
    Lvm,
    /// The disks are volumes `tank/NAME`.
    Zfs,
}

/// A folder with the stand-ins, and the snapshots that they keep.
pub struct StandIns {
    folder: PathBuf,
    kind: Kind,
}

impl StandIns {
    /// Stand-ins that know these loop devices as volumes.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn new(site: &Site, kind: Kind, disks: &[Disk<'_>]) -> Self {
        let folder = site.folder().join("stand-ins");
        for name in ["bin", "origins", "snaps", "fault", "mounted", "dev/vg0", "zvol/tank"] {
            fs::create_dir_all(folder.join(name)).expect("own folder");
        }
        let (script, names) = match kind {
            Kind::Lvm => (LVM, &["lvs", "lvcreate", "lvchange", "lvremove", "dmsetup", "thin_delta"][..]),
            Kind::Zfs => (ZFS, &["zfs", "zpool", "zstream"][..]),
        };
        let at = folder.join("stand-in.sh");
        fs::write(&at, script.replace("FOLDER", folder.to_str().expect("a plain name"))).expect("own folder");
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).expect("own file");
        for name in names {
            symlink(&at, folder.join("bin").join(name)).expect("own folder");
        }
        for (id, (name, device)) in disks.iter().enumerate() {
            let number = fs::metadata(device).expect("a device").rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            let text = format!("{} {major} {minor} {}\n", device.display(), id + 1);
            fs::write(folder.join("origins").join(name), text).expect("own folder");
            symlink(device, folder.join("zvol/tank").join(name)).expect("own folder");
        }
        let lab = Self { folder, kind };
        for (name, text) in [
            ("next", "100"),
            ("held", "-"),
            ("usage", "17/1024 30/100"),
            ("version", "0.9.0"),
            ("capacity", "37"),
            ("snapdev", "visible"),
            ("log", ""),
        ] {
            lab.set(name, text);
        }
        lab
    }

    /// What launches an agent that finds them.
    ///
    /// # Panics
    /// Where there is no `PATH`.
    pub fn launcher(&self) -> Vec<String> {
        let path = std::env::var("PATH").expect("a PATH");
        let with_path = format!("PATH={}:{path}:/usr/sbin:/sbin", self.folder.join("bin").display());
        let with_path = ["env".to_owned(), "LANDFALL_LOG=warn".to_owned(), with_path];
        match self.kind {
            Kind::Lvm => with_path.into(),
            Kind::Zfs => {
                let folder = self.folder.to_str().expect("a plain name");
                let within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_DEVICES, folder];
                within.map(str::to_owned).into_iter().chain(with_path).collect()
            }
        }
    }

    /// Sets what they tell: `usage`, `held`, `version` (LVM); `capacity`, `snapdev` (ZFS).
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn set(&self, name: &str, text: &str) {
        let aside = self.folder.join(format!("{name}.new"));
        fs::write(&aside, format!("{text}\n")).expect("own folder");
        fs::rename(aside, self.folder.join(name)).expect("own folder");
    }

    /// What they keep under a name.
    ///
    /// # Panics
    /// If there is nothing.
    pub fn get(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).expect("own file").trim().to_owned()
    }

    /// From now on a program does something wrong: `fails`, `truncated`, `warns`, `hangs`. Nothing: it does what it should.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn fault(&self, program: &str, what: &str) {
        self.set(&format!("fault/{program}"), what);
    }

    /// LVM freezes the file system on a volume for its snapshot.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn is_mounted(&self, volume: &str, at: &Path) {
        self.set(&format!("mounted/{volume}"), at.to_str().expect("a plain name"));
    }

    /// A program is not installed.
    ///
    /// # Panics
    /// If it was not.
    pub fn uninstall(&self, program: &str) {
        fs::remove_file(self.folder.join("bin").join(program)).expect("own file");
    }

    /// The snapshots that are there.
    ///
    /// # Panics
    /// If they cannot be listed, or anything else of the host's was removed.
    pub fn snapshots(&self) -> Vec<String> {
        let wrong = fs::read_to_string(self.folder.join("wrongly-removed")).unwrap_or_default();
        assert_eq!(wrong, "", "nothing but snapshots of ours is removed");
        let names = fs::read_dir(self.folder.join("snaps")).expect("own folder").flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.contains('.')).collect();
        names.sort();
        names
    }

    /// The commands that were run.
    ///
    /// # Panics
    /// If there is no log.
    pub fn log(&self) -> Vec<String> {
        self.get("log").lines().map(str::to_owned).collect()
    }
}
