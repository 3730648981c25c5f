//! A guest in QEMU, by emulation: no KVM is needed. It boots in seconds, runs a script of the test, and takes commands.
//!
//! ```text
//!   <folder>/serial.log   first serial port: the kernel, then all that the script /etc/start prints
//!   <folder>/shell        second serial port: commands of Guest::run
//!   <folder>/qmp          QEMU's monitor
//!   <folder>/agent        the guest's agent (qemu-ga), where the disk has it
//! ```
//! The system is busybox on an ext4 file system that fills its disk, without a partition table. Its kernel is given to QEMU, with an initrd that loads the drivers of virtio
//! disks, SCSI disks, network and console. `tests/tools/setup.sh` makes both; `tests/tools/guest-init.sh` is the first process.
//!
//! ```text
//!   let guest = need!(Programs::find());
//!   guest.system_disk(&root, 64 << 20, "while true; do dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek=$((RANDOM % 64)) conv=fsync; done");
//!   let vm = guest.start(folder, &[GuestDisk::raw("root", &root), GuestDisk::raw("data", &data)], &[]);
//!   assert_eq!(vm.run("cat /proc/sys/kernel/ostype"), "Linux");
//! ```

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::tools;

/// The guest says so on its first serial port when it takes commands.
pub const READY: &str = "LANDFALL-GUEST-READY";
/// Booting takes 4 s by emulation; a busy machine needs many times that.
const READY_MAX: Duration = Duration::from_secs(300);
/// A command that takes longer hangs.
const COMMAND_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(20);

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    qemu: PathBuf,
    mke2fs: PathBuf,
    busybox: PathBuf,
    folder: PathBuf,
}

/// A disk of a guest. Its block node is named `node-ID`; the guest sees `/dev/vda`, `/dev/vdb`, ... in their order.
#[derive(Clone, Copy, Debug)]
pub struct GuestDisk<'a> {
    /// Id of the device.
    pub id: &'a str,
    /// The image.
    pub path: &'a Path,
    /// `raw` or `qcow2`.
    pub format: &'a str,
}

impl<'a> GuestDisk<'a> {
    /// A raw image.
    pub fn raw(id: &'a str, path: &'a Path) -> Self {
        Self { id, path, format: "raw" }
    }

    /// A qcow2 image.
    pub fn qcow2(id: &'a str, path: &'a Path) -> Self {
        Self { id, path, format: "qcow2" }
    }
}

impl Programs {
    /// `None` after saying what is missing.
    ///
    /// # Panics
    /// Where `CI` is set and something is missing.
    pub fn find() -> Option<Self> {
        let (qemu, mke2fs) = (tools::need("qemu-system-x86_64")?, tools::need("mke2fs")?);
        let (busybox, folder) = (tools::need("busybox")?, tools::peers_folder().join("guest"));
        if !folder.join("made-1").is_file() {
            tools::missing("the guest's kernel");
            return None;
        }
        Some(Self { qemu, mke2fs, busybox, folder })
    }

    /// Its kernel, for who starts QEMU in another way.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// What the kernel begins with.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// What the kernel is told.
    pub fn kernel_arguments(&self) -> &'static str {
        "console=ttyS0 quiet panic=-1"
    }

    /// Makes a raw disk of `size` bytes (64 MiB are enough) with the guest's system on it. `start`: a script of the shell that runs in the background from the boot on; what it prints comes on the
    /// first serial port.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn system_disk(&self, disk: &Path, size: u64, start: &str) {
        self.system_disk_with(disk, size, start, &[]);
    }

    /// The same with programs in `/bin`, by their names.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn system_disk_with(&self, disk: &Path, size: u64, start: &str, programs: &[(&str, &Path)]) {
        let tree = tempfile::tempdir().expect("a temporary folder");
        let inside = |name: &str| tree.path().join(name);
        for folder in ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "mnt", "agent"] {
            fs::create_dir(inside(folder)).expect("own folder");
        }
        // Of a name that goes on: the folder is the root of the guest, which is not only root's.
        fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).expect("own folder");
        fs::copy(&self.busybox, inside("bin/busybox")).expect("busybox is copied");
        for applet in tools::succeed(Command::new(&self.busybox).arg("--list")).lines().filter(|a| *a != "busybox") {
            symlink("busybox", inside("bin").join(applet)).expect("own folder");
        }
        for entry in fs::read_dir(self.folder.join("agent")).into_iter().flatten().flatten() {
            fs::copy(entry.path(), inside("agent").join(entry.file_name())).expect("the agent is copied");
        }
        for (name, file) in programs {
            fs::copy(file, inside("bin").join(name)).expect("a program is copied");
        }
        let init = tools::repository().join("tests/tools/guest-init.sh");
        fs::copy(init, inside("sbin/init")).expect("the first process is copied");
        // What the guest's agent runs when it is told to shut down.
        let shutdown = "#!/bin/busybox sh\nsync\nmount -o remount,ro /\npoweroff -f\n";
        fs::write(inside("sbin/shutdown"), shutdown).expect("own file");
        for program in ["sbin/init", "sbin/shutdown"] {
            fs::set_permissions(inside(program), fs::Permissions::from_mode(0o755)).expect("own file");
        }
        fs::write(inside("etc/start"), start).expect("own file");
        let file = File::create(disk).expect("room for a disk");
        file.set_len(size).expect("room for a disk");
        tools::succeed(Command::new(&self.mke2fs).args(["-q", "-F", "-t", "ext4", "-d"]).arg(tree.path()).arg(disk));
    }

    /// Compiles a program of `tests/tools` for the guest. `None` after saying that there is no compiler.
    ///
    /// # Panics
    /// If it does not compile; where `CI` is set and there is no compiler.
    pub fn compile(&self, source: &str, to: &Path) -> Option<()> {
        let file = tools::repository().join("tests/tools").join(source);
        tools::succeed(
            Command::new(tools::need("cc")?).args(["-static", "-O1", "-Wall", "-Werror", "-o"]).arg(to).arg(file),
        );
        Some(())
    }

    /// The command line of a guest with these disks whose sockets and log are in `folder`; `more` are further arguments.
    ///
    /// # Panics
    /// If there is no room in the folder.
    pub fn command(&self, folder: &Path, disks: &[GuestDisk<'_>], more: &[&str]) -> Command {
        fs::create_dir_all(folder).expect("own folder");
        for socket in ["shell", "qmp", "agent", "serial.log"] {
            let _ = fs::remove_file(folder.join(socket));
        }
        File::create(folder.join("serial.log")).expect("own folder");
        let server = |name: &str| format!("socket,id={name},path={},server=on,wait=off", folder.join(name).display());
        let mut command = Command::new(&self.qemu);
        command.args([
            "-machine",
            "pc",
            "-accel",
            "tcg",
            "-cpu",
            "qemu64",
            "-m",
            "192",
            "-nodefaults",
            "-no-user-config",
        ]);
        command.args(["-display", "none", "-append", self.kernel_arguments()]);
        command.arg("-kernel").arg(self.kernel()).arg("-initrd").arg(self.initrd());
        command.args(["-chardev", &server("shell"), "-chardev", &server("qmp"), "-chardev", &server("agent")]);
        command.arg("-serial").arg(format!("file:{}", folder.join("serial.log").display()));
        command.args(["-serial", "chardev:shell", "-mon", "chardev=qmp,mode=control"]);
        command.args(["-device", "virtio-serial-pci,max_ports=2"]);
        command.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0,nr=1"]);
        for GuestDisk { id, path, format } in disks {
            let file = path.display();
            command.arg("-blockdev");
            command.arg(format!("driver={format},node-name=node-{id},file.driver=file,file.filename={file}"));
            command.arg("-device").arg(format!("virtio-blk-pci,drive=node-{id},id={id}"));
        }
        command.args(more).stdin(Stdio::null());
        command
    }

    /// Starts a guest and waits until it takes commands.
    ///
    /// # Panics
    /// If it does not boot, with all that it said.
    pub fn start(&self, folder: &Path, disks: &[GuestDisk<'_>], more: &[&str]) -> Guest {
        let guest = Guest::of(self.command(folder, disks, more), folder);
        guest.wait_for(READY);
        guest
    }
}

/// A running guest. Ended as by a power cut when it is dropped.
pub struct Guest {
    process: Child,
    folder: PathBuf,
    commands: std::sync::atomic::AtomicU32,
}

impl Guest {
    /// Starts what [`Programs::command`] says.
    ///
    /// # Panics
    /// If it does not start.
    pub fn of(mut command: Command, folder: &Path) -> Self {
        let log = File::create(folder.join("qemu.log")).expect("own folder");
        command.stdout(log.try_clone().expect("own file")).stderr(log);
        let process = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { process, folder: folder.to_owned(), commands: 0.into() }
    }

    /// The number of QEMU's process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Socket of QEMU's monitor.
    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// Socket of the guest's agent.
    pub fn agent(&self) -> PathBuf {
        self.folder.join("agent")
    }

    /// What came on the first serial port so far.
    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("serial.log")).unwrap_or_default()).into_owned()
    }

    /// Everything that was said, for a message.
    fn story(&self) -> String {
        let log = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        format!("the guest said:\n{}\nQEMU said:\n{log}", self.serial())
    }

    /// Waits until something is on the first serial port.
    ///
    /// # Panics
    /// If it does not come.
    #[track_caller]
    pub fn wait_for(&self, marker: &str) {
        self.wait_until(marker, |said| said.contains(marker));
    }

    /// Waits until what came on the first serial port is so.
    ///
    /// # Panics
    /// If it does not become so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut so: impl FnMut(&str) -> bool) {
        let start = Instant::now();
        while !so(&self.serial()) {
            let runs = Path::new("/proc").join(self.id().to_string()).join("exe").exists();
            assert!(runs && start.elapsed() < READY_MAX, "never came: {what}; {}", self.story());
            std::thread::sleep(POLL);
        }
    }

    /// Runs a line of the shell in the guest, to its end; what it printed, without white space around it.
    ///
    /// # Panics
    /// If it fails, or does not end.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        let (code, said) = self.try_run(line);
        assert_eq!(code, 0, "{line}: {said}");
        said
    }

    /// The same; code, and what it printed.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn try_run(&self, line: &str) -> (i32, String) {
        let number = self.commands.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        run_in(&self.folder.join("shell"), number, line).unwrap_or_else(|so_far| {
            panic!("{line}: no end; so far {so_far:?}; {}", self.story());
        })
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a line of the shell in the guest behind a socket; code, and what it printed. `number` tells it from the commands before.
///
/// # Errors
/// What it printed so far, where it does not end.
///
/// # Panics
/// If nobody listens there.
pub fn run_in(socket: &Path, number: u32, line: &str) -> Result<(i32, String), String> {
    let mut shell = UnixStream::connect(socket).expect("QEMU listens");
    shell.set_read_timeout(Some(COMMAND_MAX)).expect("a limit");
    writeln!(shell, "{number} {line}").expect("the guest listens");
    let (mut said, mut part) = (Vec::new(), [0; 4096]);
    let (begin, end) = (format!("<{number}\n"), format!("\n>{number} "));
    loop {
        let read = shell.read(&mut part).unwrap_or(0);
        if read == 0 {
            return Err(String::from_utf8_lossy(&said).into_owned());
        }
        said.extend_from_slice(&part[..read]);
        let text = String::from_utf8_lossy(&said);
        let Some((output, code)) = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)) else {
            continue;
        };
        if let Some((code, _)) = code.split_once('\n') {
            return Ok((code.trim().parse().expect("a code"), output.trim().to_owned()));
        }
    }
}
