//! PostgreSQL servers, each with its own data directory and Unix socket, as the user that its package makes. Needs root.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::tools;

/// A recovery is of tens of MiB of WAL: whoever takes longer hangs.
const READY_MAX: Duration = Duration::from_secs(180);
/// After it was told to stop.
const STOP_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Where Debian and Ubuntu put the programs, by version; only some of them are on the `PATH`.
const VERSIONS: &str = "/usr/lib/postgresql";
/// No TCP. Little is cached, and checkpoints are frequent, so that blocks of tables are written all the time, and not only WAL.
const SETTINGS: [&str; 7] = [
    "listen_addresses=",
    "shared_buffers=16MB",
    "min_wal_size=32MB",
    "max_wal_size=64MB",
    "checkpoint_timeout=30s",
    "max_connections=20",
    "log_checkpoints=on",
];

/// The programs of one version.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
    setpriv: PathBuf,
}

impl Programs {
    /// Those of the newest version here; `None` after saying that there is none.
    ///
    /// # Panics
    /// Where `CI` is set and there is none.
    pub fn find() -> Option<Self> {
        let version = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        let installed = fs::read_dir(VERSIONS).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut folders: Vec<(u32, PathBuf)> =
            installed.filter_map(|path| Some((version(&path)?, path.join("bin")))).collect();
        folders.sort();
        folders.extend(tools::find("pg_amcheck").and_then(|file| Some((u32::MAX, file.parent()?.to_owned()))));
        let is_whole = |folder: &Path| ["initdb", "pgbench", "pg_amcheck"].iter().all(|p| folder.join(p).is_file());
        let found = folders.into_iter().rev().map(|(_, folder)| folder).find(|folder| is_whole(folder));
        let has_user = tools::output(Command::new("id").arg("postgres")).status.success();
        let Some(folder) = found.filter(|_| has_user && rustix::process::geteuid().is_root()) else {
            tools::missing("root, and PostgreSQL from version 14 on with its user 'postgres',");
            return None;
        };
        Some(Self { folder, setpriv: tools::need("setpriv")? })
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of them, as its own user, who owns nothing here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.setpriv);
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(self.folder.join(program));
        command.env_remove("PGDATABASE").env("LC_ALL", "C").current_dir("/");
        command
    }

    /// A new cluster with data checksums, small segments of WAL, and no passwords.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn create_cluster(&self, data: &Path) {
        make_for_postgres(data);
        let how = ["--data-checksums", "--wal-segsize=4", "--auth=trust", "--encoding=UTF8", "--locale=C"];
        tools::succeed(self.command("initdb").args(how).arg("--pgdata").arg(data));
    }

    /// Fails the test unless every page of a cluster that is stopped has the checksum that it should.
    pub fn assert_checksums(&self, data: &Path) {
        tools::succeed(self.command("pg_checksums").arg("--check").arg("--pgdata").arg(data));
    }
}

fn make_for_postgres(folder: &Path) {
    let owner = ["--directory", "--owner=postgres", "--group=postgres", "--mode=0700"];
    tools::succeed(Command::new("install").args(owner).arg(folder));
}

/// A temporary folder that other users may enter.
///
/// # Panics
/// If there is no room for it.
pub fn folder_for_all() -> TempDir {
    let folder = tempfile::Builder::new().prefix("landfall-pg").tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("own folder");
    folder
}

/// A process that is killed when it is dropped.
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running server. Ended at once, as by a power cut of its own, when it is dropped.
pub struct Server {
    programs: Programs,
    process: Option<Guarded>,
    /// Its socket and its log: not on the disk that holds its data.
    outside: TempDir,
}

impl Server {
    /// Starts it, and waits until it has recovered and takes connections.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(programs: &Programs, data: &Path) -> Self {
        let outside = folder_for_all();
        make_for_postgres(&outside.path().join("socket"));
        let log = File::create(outside.path().join("log")).expect("own folder");
        let mut command = programs.command("postgres");
        command.arg("-D").arg(data).arg("-k").arg(outside.path().join("socket"));
        SETTINGS.iter().for_each(|setting| {
            command.args(["-c", setting]);
        });
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("own file")).stderr(log);
        let process = Some(Guarded(command.spawn().expect("setpriv is there")));
        let mut server = Self { programs: programs.clone(), process, outside };
        let start = Instant::now();
        while !tools::output(server.command("psql").args(["-X", "-d", "postgres", "-c", ""])).status.success() {
            let over = server.process.as_mut().is_none_or(|p| p.0.try_wait().expect("own child").is_some());
            assert!(!over && start.elapsed() < READY_MAX, "the server does not start\n{}", server.log());
            std::thread::sleep(POLL);
        }
        server
    }

    /// The folder of its socket: what `PGHOST` wants.
    pub fn host(&self) -> PathBuf {
        self.outside.path().join("socket")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.outside.path().join("log")).unwrap_or_default()
    }

    /// A program that talks to it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.programs.command(program);
        command.env("PGHOST", self.host()).env("PGUSER", "postgres");
        command
    }

    /// Runs SQL; the answer's columns are separated by `|`.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let options = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql];
        tools::succeed(self.command("psql").args(options)).trim().to_owned()
    }

    /// Fails the test unless tables and indexes of all databases are sound, and agree.
    pub fn assert_sound(&self) {
        let options = ["--all", "--install-missing", "--heapallindexed", "--no-strict-names"];
        tools::succeed(self.command("pg_amcheck").args(options));
    }

    /// Halts it where it is, as a host that is overloaded does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let _ = kill_process(Pid::from_child(&process.0), signal);
        }
    }

    fn wait(&mut self) -> Option<std::process::ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < STOP_MAX {
            if let Some(status) = self.process.as_mut()?.0.try_wait().expect("own child") {
                self.process = None;
                return Some(status);
            }
            std::thread::sleep(POLL);
        }
        None
    }

    /// Tells it to end once all sessions have: it takes no new ones.
    pub fn stop_when_idle(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it in order, with a checkpoint.
    ///
    /// # Panics
    /// If it does not end so.
    pub fn stop(mut self) {
        self.signal(Signal::INT);
        let status = self.wait();
        assert!(status.is_some_and(|s| s.success()), "the server ended with {status:?}\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.resume();
            self.signal(Signal::QUIT);
            let _ = self.wait();
        }
    }
}
