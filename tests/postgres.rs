//! A database that is written to all the time, on a file system that is frozen for moments: every point of it starts, is sound, and has all
//! that was committed before its cut.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use landfall_tests::landfall::{Running, Site, exit, number};
use landfall_tests::loops::{Loop, Mounted, can_be_watched};
use landfall_tests::postgres::{Guarded, Programs, Server, folder_for_all};
use landfall_tests::service::{AgentHost, GatewayHost};
use landfall_tests::{disks, need, tools};
use serde_json::Value;
use support::MIB;
use tempfile::TempDir;

/// What both file systems take: tables, WAL, and a history that grows.
const DISK_BYTES: u64 = 640 * MIB;
const _: () = assert!(DISK_BYTES >= disks::XFS_BYTES_MIN);
/// Of `pgbench -i`: 75 MB of tables and indexes.
const SCALE: &str = "5";
/// So many points are brought back; where there are more, first and last and some between them.
const VERIFIED: usize = 8;
const POINTS: usize = 8;
/// From one row of the log to the next.
const PACE: Duration = Duration::from_millis(10);
/// For one point more.
const POINT_MAX: Duration = Duration::from_secs(120);
const DATABASE: &str = "bench";

fn points_wanted() -> usize {
    let named = std::env::var("LANDFALL_POSTGRES_POINTS").ok();
    named.map_or(POINTS, |text| text.parse().expect("LANDFALL_POSTGRES_POINTS is a number"))
}

fn millis() -> i128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// The moment of a point's cut: everything was frozen already.
fn time_of(point: &Value) -> i128 {
    let out = Command::new("date").args(["-d", point["time"].as_str().unwrap(), "+%s%3N"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
}

/// A row of `landfall_log`: its number is its place.
#[derive(Clone, Copy)]
struct Row {
    begun: i128,
    committed: i128,
}

/// Commits rows 1, 2, 3, ... one after the other in a session of its own. Ends when it is dropped.
struct Log {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<Vec<Row>>>,
}

impl Log {
    fn start(server: &Server) -> Self {
        server.sql(DATABASE, "CREATE TABLE landfall_log (n bigint PRIMARY KEY, at timestamptz DEFAULT now())");
        let stop = Arc::new(AtomicBool::new(false));
        let mut psql = server.command("psql");
        psql.args(["-X", "-A", "-t", "-q", "-d", DATABASE]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut session = Guarded(psql.spawn().unwrap());
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            let (mut ask, answer) = (session.0.stdin.take().unwrap(), session.0.stdout.take().unwrap());
            let (mut answers, mut rows) = (BufReader::new(answer).lines(), Vec::new());
            while !stopped.load(Ordering::SeqCst) {
                let (number, begun) = (rows.len() + 1, millis());
                writeln!(ask, "INSERT INTO landfall_log VALUES ({number}) RETURNING n;").unwrap();
                assert_eq!(answers.next().unwrap().unwrap(), number.to_string());
                rows.push(Row { begun, committed: millis() });
                std::thread::sleep(PACE);
            }
            rows
        });
        Self { stop, writer: Some(writer) }
    }

    fn end(mut self) -> Vec<Row> {
        self.stop.store(true, Ordering::SeqCst);
        self.writer.take().unwrap().join().unwrap()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Which file system the database lies on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// An empty one.
    fn make(self, device: &Path) {
        let (mkfs, options) = match self {
            Self::Ext4 => ("mkfs.ext4", ["-q", "-F"]),
            Self::Xfs => ("mkfs.xfs", ["-q", "-f"]),
        };
        tools::succeed(Command::new(tools::find(mkfs).unwrap()).args(options).arg(device));
    }

    /// As it was frozen, before anybody mounts it: nothing is in its journal. Files that were open and had no name any more still hold
    /// blocks, as after a power cut; the next mount frees them. Whether there are any.
    fn assert_frozen(self, image: &Path) -> bool {
        let judge = |program: &str, options: &[&str]| {
            let out = tools::output(Command::new(tools::find(program).unwrap()).args(options).arg(image));
            let said = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            (out.status.success(), said)
        };
        let (whole, nameless, said) = match self {
            Self::Ext4 => {
                let (_, about) = judge("dumpe2fs", &["-h"]);
                assert!(about.contains("has_journal") && !about.contains("needs_recovery"), "{about}");
                let nameless = about.contains("First orphan inode");
                let (healthy, said) = judge("e2fsck", &["-fn"]);
                (healthy || nameless, nameless, said)
            }
            Self::Xfs => {
                // Its log is covered: the superblock twice, so that a mount recovers, and nothing that would be recovered.
                let (_, log) = judge("xfs_logprint", &["-t"]);
                let buffers: Vec<&str> = log.lines().map(str::trim).filter(|line| line.ends_with("Buffer:")).collect();
                let is_covered = buffers.iter().all(|line| *line == "SUPER Block Buffer:") && !log.contains("INODE:");
                assert!(is_covered && log.contains("log tail"), "{log}");
                // That is a complaint too, and its status says so: what counts is what it would repair.
                let (_, said) = judge("xfs_repair", &["-n", "-f"]);
                let complains = |line: &&str| ["would ", "bad ", "orrupt"].iter().any(|word| line.contains(word));
                let is_nameless =
                    |line: &str| line.contains("disconnected inode") || line.contains("nlinks from 0 to 1");
                let complaints: Vec<&str> = said.lines().filter(complains).collect();
                let whole = said.contains("Phase 7") && complaints.iter().all(|line| is_nameless(line));
                (whole, !complaints.is_empty(), said)
            }
        };
        assert!(whole, "{said}");
        nameless
    }

    /// After a mount.
    fn assert_healthy(self, image: &Path) {
        match self {
            Self::Ext4 => disks::assert_ext4_healthy(image),
            Self::Xfs => disks::assert_xfs_healthy(image),
        }
    }
}

/// A host with a database on a disk that is mounted, and its agent.
struct Host<'a> {
    server: Server,
    agent: AgentHost<'a>,
    mounted: Mounted,
    device: Loop,
    file: PathBuf,
    programs: Programs,
    /// Where file systems are mounted: the site's folder is for one user.
    mounts: TempDir,
}

impl<'a> Host<'a> {
    /// `settings` makes lines of the agent's section from what the server needs.
    fn new(
        site: &'a Site,
        gateway: &GatewayHost<'_>,
        kind: Kind,
        settings: impl Fn(&Programs, &Server) -> String,
    ) -> Option<Self> {
        if !can_be_watched() {
            return None;
        }
        let programs = Programs::find()?;
        for tool in match kind {
            Kind::Ext4 => ["fsfreeze", "mkfs.ext4", "e2fsck", "dumpe2fs"],
            Kind::Xfs => ["fsfreeze", "mkfs.xfs", "xfs_repair", "xfs_logprint"],
        } {
            tools::need(tool)?;
        }
        let file = site.disk("disk.img");
        assert!(disks::sparse(&file, DISK_BYTES));
        let device = Loop::of(&file)?;
        kind.make(device.device());
        let mounts = folder_for_all();
        let mounted = device.mount(&mounts.path().join("mnt"));
        let data = mounted.at().join("data");
        programs.create_cluster(&data);
        let server = Server::start(&programs, &data);
        tools::succeed(server.command("createdb").arg(DATABASE));
        tools::succeed(server.command("pgbench").args(["-i", "-q", "-s", SCALE, DATABASE]));
        let more = settings(&programs, &server);
        let agent = AgentHost::new(site, "web", &[gateway.address()], &[("root", device.device())], &more);
        agent.enroll(gateway);
        Some(Self { server, agent, mounted, device, file, programs, mounts })
    }
}

fn status(host: &AgentHost<'_>) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(host.state().join("status.json")).ok()?).ok()
}

/// The last cycle is the newest point, or in it.
fn wait_until_all_is_committed(site: &Site, host: &AgentHost<'_>) {
    let start = Instant::now();
    let spooled = status(host).unwrap()["last_spooled"]["time"].clone();
    while site.points("web").last().is_none_or(|point| point["time"] != spooled) {
        assert!(start.elapsed() < POINT_MAX, "{spooled} is not committed");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How long everything was held still for each cycle, as the agent says; until it has made so many points.
fn watch(host: &AgentHost<'_>, agent: &mut Running, points: usize) -> Vec<u64> {
    let (mut held, mut newest, mut since) = (BTreeMap::new(), 0, Instant::now());
    while newest < points as u64 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(!agent.is_over() && since.elapsed() < POINT_MAX, "{newest} points, and no more");
        let Some(status) = status(host) else { continue };
        if let Some(time) = status["last_spooled"]["time"].as_str() {
            held.insert(time.to_owned(), number(&status, "held_ms"));
        }
        let committed = status["last_committed"]["seq"].as_u64().unwrap_or(0);
        if committed > newest {
            (newest, since) = (committed, Instant::now());
        }
    }
    host.wait_for_points(points);
    held.into_values().collect()
}

/// Some of many, the first and the last among them.
fn spread<T>(all: &[T], most: usize) -> Vec<&T> {
    let chosen = most.min(all.len());
    (0..chosen).map(|n| &all[n * (all.len() - 1) / (chosen - 1).max(1)]).collect()
}

/// Fails the test unless the database of a point starts, is sound, and has the rows that it should.
fn assert_point_is_whole(site: &Site, host: (&Programs, Kind, &Path), point: &Value, log: &[Row]) {
    let ((programs, kind, mounts), seq) = (host, number(point, "seq").to_string());
    let back = site.disk("back");
    site.rehydrate("web", &seq, &[("root", &back)]);
    let nameless = if kind.assert_frozen(&back) { ", with files without a name" } else { "" };
    let device = Loop::of(&back).unwrap();
    let mounted = device.mount(&mounts.join("back"));
    let data = mounted.at().join("data");
    let start = Instant::now();
    let server = Server::start(programs, &data);
    let recovery = start.elapsed();
    server.assert_sound();

    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    let answer = server.sql(DATABASE, sums);
    let all: Vec<&str> = answer.split('|').collect();
    assert!(all.len() == 4 && all.iter().all(|sum| *sum == all[0]), "point {seq}: sums of pgbench: {answer}");

    let answer = server.sql(DATABASE, "SELECT count(*), coalesce(min(n), 1), coalesce(max(n), 0) FROM landfall_log");
    let rows: Vec<usize> = answer.split('|').map(|n| n.parse().unwrap()).collect();
    let (has, cut) = (rows[2], time_of(point));
    assert!(rows[0] == has && rows[1] == 1, "point {seq}: rows are missing within: {answer}");
    let committed = log.iter().take_while(|row| row.committed < cut).count();
    assert!(has >= committed, "point {seq}: row {committed} was committed before the cut, and the last in it is {has}");
    let begun = log.iter().take_while(|row| row.begun <= cut).count();
    assert!(has <= begun, "point {seq}: row {begun} was the last begun before the cut, and the last in it is {has}");

    server.stop();
    programs.assert_checksums(&data);
    drop(mounted);
    drop(device);
    kind.assert_healthy(&back);
    eprintln!("point {seq}: {has} rows of {committed}..={begun}, started in {recovery:?}{nameless}");
    fs::remove_file(back).unwrap();
}

/// The whole story on one file system; `consistency` is what its points are to say.
fn every_point_is_whole(kind: Kind, consistency: &str, settings: impl Fn(&Programs, &Server) -> String) {
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    // The last that is named here ends first.
    let Host { mounts, programs, file, device, mounted, agent: host, server } =
        need!(Host::new(&site, &gateway, kind, settings));
    let log = Log::start(&server);
    let mut bench = server.command("pgbench");
    bench.args(["-n", "-c", "2", "-j", "1", "-T", "86400", DATABASE]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bench = Guarded(bench.spawn().unwrap());
    let start = Instant::now();
    let mut agent = host.start();
    let held = watch(&host, &mut agent, points_wanted());
    let (lasted, points) = (start.elapsed(), site.points("web"));
    assert!(bench.0.try_wait().unwrap().is_none(), "pgbench ended");
    agent.interrupt();
    assert_eq!(agent.finish().code(), Some(exit::DONE));
    let log = log.end();
    drop(bench);
    let transactions = server.sql(DATABASE, "SELECT count(*) FROM pgbench_history");
    let stall = log.iter().map(|row| row.committed - row.begun).max();
    eprintln!(
        "{} points in {lasted:?}; {} rows, {transactions} transactions; longest commit {stall:?} ms; held_ms {held:?}",
        points.len(),
        log.len()
    );
    assert!(mounted.is_thawed());
    server.stop();

    // At rest, and brought home by the next cut: what was watched missed nothing.
    drop(mounted);
    host.ship();
    wait_until_all_is_committed(&site, &host);
    drop(device);
    site.assert_disk_is("web", "latest", "root", &file);

    for point in &points {
        assert_eq!(point["consistency"], consistency, "{point}");
    }
    for point in spread(&points, VERIFIED) {
        assert_point_is_whole(&site, (&programs, kind, mounts.path()), point, &log);
    }
}

fn hook() -> PathBuf {
    tools::repository().join("deploy/hooks/postgresql")
}

#[test]
fn every_point_of_a_database_on_ext4_is_whole_and_its_hook_has_made_recovery_short() {
    every_point_is_whole(Kind::Ext4, "application", |programs, server| {
        let (path, host) = (programs.folder().display(), server.host());
        let host = host.display();
        format!("freeze_command = \"PATH='{path}':$PATH PGHOST='{host}' PGUSER=postgres '{}'\"", hook().display())
    });
}

#[test]
fn every_point_of_a_database_on_xfs_is_whole_without_a_hook() {
    every_point_is_whole(Kind::Xfs, "filesystem", |_, _| String::new());
}

/// Runs the hook before a cut: whether it succeeded, and what it said.
fn freeze(programs: &Programs, host: &Path, more: &[(&str, &str)]) -> (bool, String) {
    let path = format!("{}:{}", programs.folder().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(hook());
    command.env("PATH", path).env("LANDFALL_PHASE", "freeze").env("PGHOST", host).env("PGUSER", "postgres");
    let out = tools::output(command.envs(more.iter().copied()));
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn the_hook_takes_a_checkpoint_and_refuses_a_point_only_where_the_server_hangs_or_refuses_it() {
    let programs = need!(Programs::find());
    let folder = folder_for_all();
    let data = folder.path().join("data");
    programs.create_cluster(&data);
    let server = Server::start(&programs, &data);
    let host = server.host();

    let at = || server.sql("postgres", "SELECT checkpoint_lsn FROM pg_control_checkpoint()");
    server.sql("postgres", "CREATE TABLE t (n int); CREATE ROLE nobody LOGIN");
    let before = at();
    assert_eq!(freeze(&programs, &host, &[]), (true, String::new()));
    assert_ne!(at(), before, "there was a checkpoint");

    let (done, said) = freeze(&programs, &host, &[("PGUSER", "nobody")]);
    assert!(!done && said.contains("CHECKPOINT"), "{said}");
    let (done, said) = freeze(&programs, &host, &[("PGUSER", "stranger")]);
    assert!(!done && said.contains("stranger"), "{said}");

    server.pause();
    let (done, said) = freeze(&programs, &host, &[("LANDFALL_CHECKPOINT_SECONDS", "1")]);
    assert!(!done && said.contains("within 1 s"), "{said}");
    server.resume();

    // A session keeps it from ending: it takes no more of them.
    let mut session = server.command("psql");
    let session = Guarded(session.args(["-X", "-d", "postgres"]).stdin(Stdio::piped()).spawn().unwrap());
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
    while server.sql("postgres", sessions) != "2" {
        std::thread::sleep(PACE);
    }
    server.stop_when_idle();
    let (done, said) = freeze(&programs, &host, &[]);
    assert!(done && said.contains("starts or stops"), "{said}");
    drop(session);
    server.stop();
    let (done, said) = freeze(&programs, &host, &[]);
    assert!(done && said.contains("not running"), "{said}");
}
