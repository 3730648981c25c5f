//! The binary as its users run it: real processes, files, an environment of its own, exit codes, JSON.
//!
//! A [`Site`] is one protected place: its folder holds disks, key files, the gateway's state, and the vault unless that lives in a
//! [`crate::peers::Peer`]. Its parts:
//!
//! ```text
//! <temporary folder>/
//!   vault/          the vault (file://), unless another URL was given
//!   recovery.key    the customer's
//!   site.key        the gateway's
//!   state/          LANDFALL_STATE_DIR of the site
//!   tmp/            TMPDIR of every run: what is left in it was left by us
//!   home/           HOME: empty, and stays so
//! ```
//! A rehydrate runs with the recovery key and a state folder that never was used: after a disaster there is nothing else.

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::disks;
use crate::peers::Peer;
use crate::tools;

/// A run that takes longer hangs: the longest test moves less than a gigabyte.
const RUN_LIMIT: Duration = Duration::from_secs(900);
/// How long the store is tried again where it is down: the default is minutes, as it should be, but not in a test.
const STORE_RETRY_SECONDS: &str = "10";

/// Exit codes of the command line, as `cli.md` gives them.
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Usage or configuration.
    pub const USAGE: i32 = 2;
    /// Key missing or wrong.
    pub const KEY: i32 = 3;
    /// Corrupt or tampered.
    pub const CORRUPT: i32 = 4;
    /// Fenced or conflicting.
    pub const CONFLICT: i32 = 5;
    /// No space.
    pub const NO_SPACE: i32 = 6;
    /// Store or host unavailable, worth a retry.
    pub const UNAVAILABLE: i32 = 7;
    /// Unsupported.
    pub const UNSUPPORTED: i32 = 8;
    /// Not found.
    pub const NOT_FOUND: i32 = 9;
}

/// Crash points that tests/failover.rs meets.
pub const IN_FAILOVER: [&str; 3] = ["failover.step-done", "failover.step-written", "failover.copied"];

/// Crash points that tests/drill.rs meets.
pub const IN_DRILL: [&str; 2] = ["drill.seen", "drill.reported"];

/// The binary that belongs to the running test: `target/<profile>/landfall`.
///
/// # Panics
/// If it is not built.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("LANDFALL_BINARY") {
        return PathBuf::from(named);
    }
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a test is in target/<profile>/deps");
    let binary = profile.join("landfall");
    assert!(
        binary.is_file(),
        "{} is not built: run 'cargo build --bin landfall --features crash-points' first, or 'make test', which does",
        binary.display()
    );
    binary
}

/// A run of the binary that is over.
#[derive(Debug)]
pub struct Ran {
    /// The arguments, for messages.
    pub arguments: Vec<String>,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Ran {
    /// Exit code; `None` where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Everything about the run, for a message.
    pub fn story(&self) -> String {
        let Self { arguments, status, stdout, stderr } = self;
        format!("landfall {} ended with {status}\nstdout: {stdout}\nstderr: {stderr}", arguments.join(" "))
    }

    /// The JSON document on stdout.
    ///
    /// # Panics
    /// If the run did not succeed or printed anything else.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code(), Some(exit::DONE), "{}", self.story());
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document: {error}\n{}", self.story()))
    }

    /// Fails the test unless the run was refused with this exit code and one line on stderr that has all of these words in it.
    #[track_caller]
    pub fn assert_refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code(), Some(code), "exit code\n{}", self.story());
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "an error is one line\n{}", self.story());
        for word in words {
            let said = lines[0].to_lowercase().contains(&word.to_lowercase());
            assert!(said, "the error does not say {word:?}\n{}", self.story());
        }
    }
}

/// A run of the binary that goes on. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    arguments: Vec<String>,
    child: Child,
    output: TempDir,
}

impl Running {
    pub(crate) fn start(mut command: Command, arguments: &[&str]) -> Self {
        let output = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| File::create(output.path().join(name)).expect("a file");
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { arguments: arguments.iter().map(ToString::to_string).collect(), child, output }
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends what Ctrl-C sends.
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    /// Sends what `systemctl reload` does.
    pub fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    /// Stops it where it is, as a host that is suspended does.
    pub fn pause(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        // It may be over already: then there is nothing to send.
        let _ = rustix::process::kill_process(id, signal);
    }

    /// Whether it is over.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_some()
    }

    /// Waits until something is so, or the run is over; `true` where it became so first.
    pub fn wait_until(&mut self, mut so: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < RUN_LIMIT {
            if so() {
                return true;
            }
            if self.is_over() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("landfall {} neither got there nor ended within {RUN_LIMIT:?}", self.arguments.join(" "));
    }

    /// Where what it prints is.
    pub fn stdout_file(&self) -> PathBuf {
        self.output.path().join("stdout")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it hangs.
    pub fn finish(mut self) -> Ran {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("own child") {
                break status;
            }
            if start.elapsed() > RUN_LIMIT {
                self.kill();
                panic!("landfall {} hangs\n{}", self.arguments.join(" "), self.text("stderr"));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = (self.text("stdout"), self.text("stderr"));
        Ran { arguments: std::mem::take(&mut self.arguments), status, stdout, stderr }
    }

    fn text(&self, name: &str) -> String {
        let bytes = fs::read(self.output.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A disk as `--disk` names it.
pub type Disk<'a> = (&'a str, &'a Path);

/// One protected place and its vault. Its folder goes when it is dropped.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    url: String,
    env: Vec<(String, String)>,
    strangers: Cell<u32>,
}

impl Site {
    /// A site whose vault is a directory in the site's own folder.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("landfall-site").tempdir().expect("a temporary folder");
        let url = format!("file://{}", folder.path().join("vault").display());
        Self::with(folder, url, Vec::new())
    }

    /// A site whose vault is in a running store.
    pub fn at(peer: &Peer) -> Self {
        Self::at_url(peer.url("vault"), peer.env())
    }

    /// A site whose vault is at this URL, reached with this environment.
    pub fn at_url(url: String, env: Vec<(String, String)>) -> Self {
        Self::with(tempfile::Builder::new().prefix("landfall-site").tempdir().expect("a temporary folder"), url, env)
    }

    fn with(folder: TempDir, url: String, env: Vec<(String, String)>) -> Self {
        for name in ["tmp", "home", "disks"] {
            fs::create_dir(folder.path().join(name)).expect("own folder");
        }
        Self { folder, url, env, strangers: Cell::new(0) }
    }

    /// A site with a new vault.
    pub fn with_vault() -> Self {
        let site = Self::new();
        site.create_vault();
        site
    }

    /// The site's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a disk of this name may be made.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.folder().join("disks").join(name)
    }

    /// The vault's directory, where it is one of ours.
    pub fn vault_folder(&self) -> PathBuf {
        self.folder().join("vault")
    }

    /// The vault's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The environment of every later run, beyond what a site always has: the last of a name counts.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The recovery key's file.
    pub fn recovery_key(&self) -> PathBuf {
        self.folder().join("recovery.key")
    }

    /// The site key's file.
    pub fn site_key(&self) -> PathBuf {
        self.folder().join("site.key")
    }

    /// A state folder that never was used.
    pub fn new_state(&self) -> PathBuf {
        self.strangers.set(self.strangers.get() + 1);
        self.folder().join(format!("state-elsewhere-{}", self.strangers.get()))
    }

    /// The binary in this site's environment, with no arguments yet.
    pub fn command(&self, state: &Path) -> Command {
        self.environment(Command::new(binary()), state)
    }

    /// Gives any command the environment that a site has and nothing else.
    pub fn environment(&self, mut command: Command, state: &Path) -> Command {
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.folder().join("home")).env("TMPDIR", self.folder().join("tmp"));
        command.env("LANDFALL_STATE_DIR", state).env("LANDFALL_STORE_RETRY_SECONDS", STORE_RETRY_SECONDS);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder());
        command
    }

    /// Runs the binary to its end, with exactly these arguments.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.start(arguments).finish()
    }

    /// Starts the binary with exactly these arguments.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_in(&self.folder().join("state"), arguments)
    }

    /// Starts the binary with exactly these arguments and another state folder.
    pub fn start_in(&self, state: &Path, arguments: &[&str]) -> Running {
        let mut command = self.command(state);
        command.args(arguments);
        Running::start(command, arguments)
    }

    /// The options that name vault and site key, `--json` and `--quiet`, behind a command and its own options.
    pub fn as_gateway(&self, arguments: &[&str]) -> Vec<String> {
        self.options(arguments, "--site-key", &self.site_key())
    }

    /// The options that name vault and recovery key, `--json` and `--quiet`, behind a command and its own options.
    pub fn as_customer(&self, arguments: &[&str]) -> Vec<String> {
        self.options(arguments, "--recovery-key", &self.recovery_key())
    }

    fn options(&self, arguments: &[&str], key_option: &str, key: &Path) -> Vec<String> {
        let mut all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let key = key.to_str().expect("temporary folders have plain names");
        all.extend(["--vault", &self.url, key_option, key, "--json", "--quiet"].map(str::to_owned));
        all
    }

    /// Runs a command as the gateway does: with the site key.
    pub fn gateway(&self, arguments: &[&str]) -> Ran {
        self.run(&strs(&self.as_gateway(arguments)))
    }

    /// Runs a command as the customer does after a disaster: with the recovery key, and nothing that the site had.
    pub fn customer(&self, arguments: &[&str]) -> Ran {
        self.start_in(&self.new_state(), &strs(&self.as_customer(arguments))).finish()
    }

    /// The same with further variables in the environment.
    pub fn customer_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let all = self.as_customer(arguments);
        let mut command = self.command(&self.new_state());
        command.args(&all).envs(environment.iter().copied());
        Running::start(command, &strs(&all)).finish()
    }

    /// Tries to make the vault and both key files.
    pub fn try_create_vault(&self) -> Ran {
        let (recovery, site) = (self.recovery_key(), self.site_key());
        let (recovery, site) = (recovery.to_str().expect("plain"), site.to_str().expect("plain"));
        let keys = ["--recovery-key", recovery, "--site-key", site];
        let command = ["vault", "create", "--vault", &self.url, "--json", "--quiet"];
        self.run(&[&command[..], &keys[..]].concat())
    }

    /// Makes the vault and both key files.
    #[track_caller]
    pub fn create_vault(&self) -> Value {
        self.try_create_vault().json()
    }

    /// The arguments of one cycle, without vault and keys.
    pub fn replicate_arguments(machine: &str, disks: &[Disk<'_>], more: &[&str]) -> Vec<String> {
        command_of(&["replicate", "--machine", machine], disks, more)
    }

    /// Tries one cycle.
    pub fn try_replicate(&self, machine: &str, disks: &[Disk<'_>], more: &[&str]) -> Ran {
        self.gateway(&strs(&Self::replicate_arguments(machine, disks, more)))
    }

    /// One cycle: the point's description.
    #[track_caller]
    pub fn replicate(&self, machine: &str, disks: &[Disk<'_>]) -> Value {
        self.try_replicate(machine, disks, &[]).json()
    }

    /// The points of a machine, oldest first.
    #[track_caller]
    pub fn points(&self, machine: &str) -> Vec<Value> {
        let points = self.gateway(&["points", "--machine", machine]).json()["points"].clone();
        points.as_array().cloned().expect("a list of points")
    }

    /// How many points a machine has; one that the vault does not know has none.
    #[track_caller]
    pub fn point_count(&self, machine: &str) -> usize {
        let unknown = self.gateway(&["points", "--machine", machine]).code() == Some(exit::NOT_FOUND);
        if unknown { 0 } else { self.points(machine).len() }
    }

    /// Tries to bring disks back.
    pub fn try_rehydrate(&self, machine: &str, disks: &[Disk<'_>], more: &[&str]) -> Ran {
        self.customer(&strs(&command_of(&["rehydrate", "--machine", machine], disks, more)))
    }

    /// Brings disks back, as they were at a point: `latest`, a sequence number, or a time.
    #[track_caller]
    pub fn rehydrate(&self, machine: &str, point: &str, disks: &[Disk<'_>]) -> Value {
        self.try_rehydrate(machine, disks, &["--point", point]).json()
    }

    /// Fails the test unless a disk of a point is exactly these bytes; brings it back under another name to see.
    #[track_caller]
    pub fn assert_disk_is(&self, machine: &str, point: &str, disk: &str, wanted: &Path) {
        let back =
            self.disk(&format!("back-{}", self.new_state().file_name().and_then(|n| n.to_str()).expect("plain")));
        self.rehydrate(machine, point, &[(disk, &back)]);
        disks::assert_same(wanted, &back);
        fs::remove_file(back).expect("own file");
    }

    /// Fails the test unless the whole vault is sound, down to the bytes of every frame.
    #[track_caller]
    pub fn assert_sound(&self) {
        self.customer(&["verify", "--deep"]).json();
    }

    /// Waits until a disk of the newest point is this one: what was shipped last may still be on its way.
    #[track_caller]
    pub fn wait_until_newest_is(&self, machine: &str, disk: &str, wanted: &Path) {
        for _ in 0..60 {
            let back = self.disk("newest");
            self.rehydrate(machine, "latest", &[(disk, &back)]);
            let same = disks::first_difference(&back, wanted, 0..disks::size(wanted)).is_none();
            fs::remove_file(back).expect("own file");
            if same {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        self.assert_disk_is(machine, "latest", disk, wanted);
    }

    /// Every file below a folder of this site, as `find -type f` would list them.
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let kind = entry.file_type().expect("a kind of file");
                if kind.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort();
        found
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

fn command_of(command: &[&str], disks: &[Disk<'_>], more: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = command.iter().map(ToString::to_string).collect();
    for (name, path) in disks {
        all.extend(["--disk".to_owned(), format!("{name}={}", path.display())]);
    }
    all.extend(more.iter().map(ToString::to_string));
    all
}

/// Borrowed arguments.
pub fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// A number of a JSON document.
///
/// # Panics
/// If it is not there, or no whole number from zero up.
#[track_caller]
pub fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("no number {name:?} in {value}"))
}

/// Runs a command of this machine with a small file system of its own at `folder`, so that space can run out. Needs no root.
/// `None` after saying that this machine cannot.
pub fn in_small_file_system(folder: &Path, bytes: u64, command: &Command) -> Option<Command> {
    let unshare = tools::need("unshare")?;
    let works = tools::output(Command::new(&unshare).args(["-rm", "true"])).status.success();
    if !works {
        tools::missing("the right to make a mount namespace");
        return None;
    }
    let mut outer = Command::new(unshare);
    let script = format!("mount -t tmpfs -o size={bytes} none '{}' && exec \"$@\"", folder.display());
    outer.args(["-rm", "sh", "-c", &script, "sh"]).arg(command.get_program()).args(command.get_args());
    Some(outer)
}
