//! Planned failover and orders, as their users run them: a real guest under a real QEMU is shut down, what it wrote last comes up at the target, and it goes on where that is
//! taken back.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landfall_qmp::Qmp;
use landfall_tests::guest::{Guest, GuestDisk, Programs};
use landfall_tests::landfall::{Ran, Running, Site, exit, number};
use landfall_tests::need;
use landfall_tests::service::{AgentHost, GatewayHost};
use serde_json::{Value, json};
use support::MIB;

const LIMIT: Duration = Duration::from_secs(300);
/// Counts on its disk, durably, and says where it began.
const COUNTER: &str = "i=$(cat /counter 2>/dev/null || echo 0)
echo BEGAN $i.
while true; do i=$((i+1)); echo $i >/new; sync; mv /new /counter; sync; echo WROTE $i.; sleep 0.2; done";

/// A guest that is protected by an agent on its host.
struct Source {
    programs: Programs,
    folder: PathBuf,
    guest: Option<Guest>,
}

impl Source {
    fn new(site: &Site) -> Option<Self> {
        let programs = Programs::find()?;
        let folder = site.folder().join("vm");
        fs::create_dir(&folder).unwrap();
        programs.system_disk(&folder.join("root.raw"), 64 * MIB, COUNTER);
        let mut source = Self { programs, folder, guest: None };
        let root = source.root();
        source.guest = Some(source.programs.start(&source.folder.join("run"), &[GuestDisk::raw("root", &root)], &[]));
        Some(source)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root.raw")
    }

    fn guest(&self) -> &Guest {
        self.guest.as_ref().unwrap()
    }

    /// What QEMU says that it does.
    fn status(&self) -> String {
        // Its agent may be at the monitor, which has one client at a time.
        let mut qmp = Qmp::connect(&self.guest().qmp(), LIMIT).unwrap();
        let said = qmp.execute("query-status", Value::Null).unwrap();
        said["status"].as_str().unwrap().to_owned()
    }

    fn last(&self, word: &str) -> u64 {
        last(&self.guest().serial(), word)
    }

    /// Its agent, enrolled. `more`: lines of the section [qemu].
    fn protect<'a>(&self, site: &'a Site, gateway: &GatewayHost<'_>, more: &str) -> AgentHost<'a> {
        let host = AgentHost::new(site, "web", &[gateway.address()], &[], "");
        let scratch = self.folder.join("scratch");
        let sockets =
            format!("qmp = \"{}\"\nguest_agent = \"{}\"", self.guest().qmp().display(), self.guest().agent().display());
        let text = format!(
            "stop_max = \"20s\"\n[qemu]\n{sockets}\nscratch_dir = \"{}\"\n{more}\n[[disk]]\nname = \"root\"\ndevice = \"root\"\n",
            scratch.display()
        );
        fs::create_dir(&scratch).unwrap();
        host.configure(&[gateway.address()], &[], &text);
        host.enroll(gateway);
        host
    }
}

/// The number behind the last line of a guest that begins with a word.
fn last(said: &str, word: &str) -> u64 {
    let mut numbers = said.lines().filter_map(|l| l.trim().strip_prefix(word)?.trim().strip_suffix('.')?.parse().ok());
    numbers.next_back().unwrap_or(0)
}

#[track_caller]
fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn root(site: &Site) -> PathBuf {
    site.folder().join("f")
}

/// Runs a planned failover of `web`.
fn planned(site: &Site, programs: &Programs, more: &[&str]) -> Ran {
    failover(site, programs, "planned", more)
}

fn failover(site: &Site, programs: &Programs, kind: &str, more: &[&str]) -> Ran {
    let file = site.disk("target.toml");
    let text = format!(
        "[kvm]\naccel = \"tcg\"\ncpu = \"qemu64\"\nmemory = \"192MiB\"\ncpus = 1\nkernel = {:?}\ninitrd = {:?}\nappend = {:?}\n\
         network = \"none\"\nprobe = \"console:BEGAN\"\narguments = [\"-serial\", \"null\"]\n",
        programs.kernel(),
        programs.initrd(),
        programs.kernel_arguments(),
    );
    fs::write(&file, text).unwrap();
    let (file, root) = (file.display().to_string(), root(site).display().to_string());
    let first = ["failover", kind, "--machine", "web", "--target", "kvm", "--target-file", &file, "--folder", &root];
    site.customer(&[&first, more].concat())
}

fn step<'a>(job: &'a Value, name: &str) -> &'a Value {
    job["steps"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap_or(&Value::Null)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// Ends whatever a failed test has left.
struct Leftovers<'a>(&'a Site);

impl Drop for Leftovers<'_> {
    fn drop(&mut self) {
        for entry in fs::read_dir(root(self.0)).into_iter().flatten().flatten() {
            let job = entry.file_name().to_string_lossy().into_owned();
            for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
                let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
                let id = process.file_name().to_str().and_then(|n| n.parse().ok());
                if let (true, Some(id)) = (String::from_utf8_lossy(&line).contains(&job), id)
                    && let Some(pid) = rustix::process::Pid::from_raw(id)
                {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

fn stop(agent: Running) {
    agent.interrupt();
    agent.finish();
}

#[test]
fn a_planned_failover_loses_nothing_and_the_source_goes_on_where_it_is_taken_back() {
    let site = Site::with_vault();
    let source = need!(Source::new(&site));
    let _leftovers = Leftovers(&site);
    let gateway = GatewayHost::started(&site, "gw");
    let host = source.protect(&site, &gateway, "");
    let agent = host.start();
    host.wait_for_points(2);
    let job = planned(&site, &source.programs, &[]).json();
    let id = text(&job, "job").to_owned();
    assert_eq!((text(&job, "state"), text(&job, "kind")), ("up", "planned"), "{job}");
    for name in ["stop", "point", "proof", "still", "fence", "disks", "machine", "up"] {
        assert_eq!(step(&job, name)["done"], true, "{name}: {job}");
    }
    assert!(text(step(&job, "proof"), "detail").contains("equal to the source"), "{job}");
    // The source is shut down, and what it had then is what came up.
    assert_eq!(source.status(), "shutdown");
    let wrote = source.last("WROTE");
    let console = fs::read_to_string(root(&site).join(&id).join("console.log")).unwrap();
    let began = last(&console, "BEGAN");
    assert!((wrote..=wrote + 1).contains(&began), "{wrote} was written, {began} came up");
    let seq = number(&job, "seq").to_string();
    site.assert_disk_is("web", &seq, "root", &source.root());
    // Back. Whoever was killed while taking it back takes it back again, and nobody goes on with it.
    let killed =
        site.customer_with(&[("LANDFALL_CRASH_AT", "failover.step-done")], &["failover", "cancel", &id, "--apply"]);
    assert!(killed.signal().is_some(), "{}", killed.story());
    let folder = root(&site).display().to_string();
    let resumed = site.customer(&["jobs", "resume", &id, "--folder", &folder]);
    resumed.assert_refused(exit::CONFLICT, &["being taken back", "cancel"]);
    let cancelled = site.customer(&["failover", "cancel", &id, "--apply"]).json();
    assert_eq!(
        (text(&cancelled, "state"), step(&cancelled, "start source")["done"].as_bool()),
        ("cancelled", Some(true))
    );
    wait("the source counts on", || source.last("BEGAN") >= wrote && source.last("WROTE") > wrote + 3);
    assert_eq!(source.status(), "running");
    let before = site.point_count("web");
    host.wait_for_points(before + 2);
    assert!(!root(&site).join(&id).exists());
    stop(agent);
    site.assert_sound();
}

#[test]
fn a_source_that_does_not_stop_goes_on_and_so_does_its_replication() {
    let site = Site::with_vault();
    let source = need!(Source::new(&site));
    let gateway = GatewayHost::started(&site, "gw");
    let host = source.protect(&site, &gateway, "");
    let agent = host.start();
    host.wait_for_points(1);
    // Neither its agent nor anybody who hears the power button shuts it down.
    source.guest().run("mv /sbin/shutdown /sbin/none; printf '#!/bin/busybox sh\\nexit 0\\n' >/sbin/shutdown; chmod 755 /sbin/shutdown");
    let ran = planned(&site, &source.programs, &[]);
    ran.assert_refused(exit::UNAVAILABLE, &["has not shut down within", "goes on"]);
    assert_eq!(source.status(), "running");
    let jobs = site.customer(&["jobs"]).json();
    let job = &jobs["jobs"][0];
    assert_eq!((text(job, "state"), step(job, "fence")), ("failed", &Value::Null), "{job}");
    let (before, wrote) = (site.point_count("web"), source.last("WROTE"));
    host.wait_for_points(before + 2);
    wait("the source counts on", || source.last("WROTE") > wrote);
    // It can be shut down now: the job goes on.
    source.guest().run("mv /sbin/none /sbin/shutdown");
    let id = text(job, "job").to_owned();
    let folder = root(&site).display().to_string();
    let _leftovers = Leftovers(&site);
    let resumed = site.customer(&["jobs", "resume", &id, "--folder", &folder]).json();
    assert_eq!(text(&resumed, "state"), "up", "{resumed}");
    assert_eq!(source.status(), "shutdown");
    site.customer(&["failover", "cancel", &id, "--apply"]).json();
    stop(agent);
}

#[test]
fn a_point_is_taken_when_somebody_wants_one_and_hooks_run_in_the_guest() {
    let site = Site::with_vault();
    let source = need!(Source::new(&site));
    let gateway = GatewayHost::started(&site, "gw");
    let hooks = "hook_before = [\"/bin/sh\", \"-c\", \"echo $LANDFALL_PHASE >>/hooks; sync\"]\n\
        hook_after = [\"/bin/sh\", \"-c\", \"echo $LANDFALL_PHASE >>/hooks; test ! -e /broken\"]\napplication_every = \"24h\"";
    let host = source.protect(&site, &gateway, hooks);
    let agent = host.start();
    // The first has them, since none had; then none is due.
    host.wait_for_points(3);
    let points = site.points("web");
    let kinds: Vec<&str> = points.iter().map(|p| text(p, "consistency")).collect();
    assert_eq!(&kinds[..3], ["application", "filesystem", "filesystem"], "{points:?}");
    let take = |more: &[&str]| site.gateway(&[&["point", "take", "--machine", "web"], more].concat());
    let taken = take(&["--consistency", "application"]).json();
    assert_eq!(text(&taken, "consistency"), "application", "{taken}");
    let hooks = taken["hooks"].as_array().unwrap();
    let ran: Vec<_> = hooks.iter().map(|h| (text(h, "phase"), h["code"].clone())).collect();
    assert_eq!(ran, [("freeze", json!(0)), ("thaw", json!(0))]);
    assert_eq!(source.guest().run("cat /hooks"), "freeze\nthaw\nfreeze\nthaw");
    // A hook that fails: a point of frozen file systems, which says so.
    source.guest().run("touch /broken");
    let ran = take(&["--consistency", "application"]);
    ran.assert_refused(exit::UNSUPPORTED, &["guarantees filesystem", "application was asked for"]);
    let usual = take(&[]).json();
    assert_eq!((text(&usual, "consistency"), usual["hooks"].as_array().unwrap().len()), ("filesystem", 0), "{usual}");
    take(&["--machine", "nobody"]).assert_refused(exit::USAGE, &["machine"]);
    site.gateway(&["point", "take", "--machine", "nobody"]).assert_refused(exit::NOT_FOUND, &["no recovery points"]);
    stop(agent);
}

#[test]
fn a_host_is_stopped_and_started_by_its_own_commands() {
    let site = Site::with_vault();
    let programs = need!(Programs::find());
    let _leftovers = Leftovers(&site);
    let gateway = GatewayHost::started(&site, "gw");
    let disk = site.disk("root.img");
    programs.system_disk(&disk, 64 * MIB, COUNTER);
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", disk.as_path())], "");
    host.enroll(&gateway);
    let agent = host.start();
    host.wait_for_points(1);
    planned(&site, &programs, &["--no-proof"]).assert_refused(exit::UNSUPPORTED, &["stop_command"]);
    planned(&site, &programs, &["--point", "1"]).assert_refused(exit::USAGE, &["--point"]);
    let failed = text(&site.customer(&["jobs"]).json()["jobs"][0], "job").to_owned();
    site.customer(&["failover", "cancel", &failed, "--apply"]).json();
    stop(agent);
    let log = site.disk("phases");
    let phases = format!("echo $LANDFALL_PHASE >>{}", log.display());
    let commands = format!("stop_command = \"{phases}\"\nstart_command = \"{phases}\"");
    host.configure(&[gateway.address()], &[("root", disk.as_path())], &commands);
    let agent = host.start();
    // What is written a moment before is there.
    write_at_the_end(&disk, b"the last word");
    let job = planned(&site, &programs, &[]).json();
    assert_eq!((text(&job, "state"), fs::read_to_string(&log).unwrap().as_str()), ("up", "stop\nstop\n"), "{job}");
    site.assert_disk_is("web", &number(&job, "seq").to_string(), "root", &disk);
    let id = text(&job, "job").to_owned();
    site.customer(&["failover", "cancel", &id, "--apply"]).json();
    assert_eq!(fs::read_to_string(&log).unwrap(), "stop\nstop\nstart\n");
    // Where the source is lost, it is stopped all the same, if somebody hears it; what it had last is there.
    let before = site.point_count("web");
    host.wait_for_points(before + 1);
    write_at_the_end(&disk, b"the very last word");
    let job = failover(&site, &programs, "unplanned", &[]).json();
    assert_eq!(fs::read_to_string(&log).unwrap(), "stop\nstop\nstart\nstop\n");
    assert!(text(step(&job, "stop"), "detail").contains("its last point is"), "{job}");
    site.assert_disk_is("web", &number(&job, "seq").to_string(), "root", &disk);
    stop(agent);
}

fn write_at_the_end(disk: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(disk).unwrap();
    let len = file.metadata().unwrap().len();
    file.write_all_at(bytes, len - 4096).unwrap();
}
