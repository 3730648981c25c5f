//! Drills, as their users run them: a real guest boots from the vault, is asked whether it is up, and nothing of it is left but a report.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use landfall_keys::SiteKey;
use landfall_model::{DrillMeta, DrillResult, JobId, Timestamp};
use landfall_tests::guest::{self, Programs};
use landfall_tests::landfall::{IN_DRILL, Ran, Running, Site, exit, number};
use landfall_tests::{disks, need, tools};
use landfall_vault::{Store, Vault};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A machine is up, or gone, long before.
const LIMIT: Duration = Duration::from_secs(300);
/// Brings the guest's network up, as its address is on QEMU's own, and two servers.
const SERVERS: &str = "ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; mkdir /www; echo hello >/www/health; \
    httpd -p 8080 -h /www; echo generation-one; while true; do nc -l -p 7 -e cat; done";

/// A protected guest, and what its drills say of it.
struct World {
    site: Site,
    programs: Programs,
    disk: PathBuf,
}

impl World {
    fn new() -> Option<Self> {
        let programs = Programs::find()?;
        tools::need("qemu-img")?;
        let site = Site::with_vault();
        let disk = site.disk("root.img");
        programs.system_disk(&disk, 64 * MIB, SERVERS);
        site.replicate("web", &[("root", &disk)]);
        Some(Self { site, programs, disk })
    }

    /// The folder that holds the folders of jobs: sockets must fit.
    fn root(&self) -> PathBuf {
        self.site.folder().join("f")
    }

    /// Writes the target's file.
    fn target(&self, more: &str) -> String {
        let file = self.site.disk("target.toml");
        let text = format!(
            "[kvm]\naccel = \"tcg\"\ncpu = \"qemu64\"\nmemory = \"192MiB\"\ncpus = 1\nkernel = {:?}\ninitrd = {:?}\nappend = {:?}\n\
             arguments = [\"-serial\", \"null\"]\n{more}\n",
            self.programs.kernel(),
            self.programs.initrd(),
            self.programs.kernel_arguments(),
        );
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    fn ready(&self) -> String {
        self.target(&format!("probe = \"console:{}\"", guest::READY))
    }

    fn arguments(&self, target: &str, more: &[&str]) -> Vec<String> {
        let root = self.root().display().to_string();
        let which: &[&str] = if more.contains(&"--all") { &[] } else { &["--machine", "web"] };
        let all = [&["drill", "run", "--target-file", target, "--folder", &root][..], which, more].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    fn drill(&self, target: &str, more: &[&str]) -> Ran {
        let arguments = self.arguments(target, more);
        self.site.customer(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Begins a drill, and lets it go on.
    fn start(&self, target: &str) -> Running {
        let arguments = self.arguments(target, &[]);
        let all = self.site.as_customer(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        self.site.start_in(&self.site.new_state(), &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn ask(&self, command: &[&str]) -> Value {
        self.site.customer(command).json()
    }

    /// The newest job.
    fn newest_job(&self) -> String {
        text(&self.ask(&["jobs"])["jobs"][0], "job")
    }

    /// Numbers and command lines of the processes that have this job, or its folder, in their command line.
    fn processes(&self, job: &str) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains(job) {
                found.push((id, line));
            }
        }
        found
    }

    /// Kills the supervisor of the only job, in the moment in which its guest boots.
    fn kill_supervisor_while_the_guest_boots(&self) {
        let mut supervisor = None;
        wait("the guest boots", || {
            let Some(folder) = fs::read_dir(self.root()).into_iter().flatten().flatten().next() else { return false };
            let boots = fs::metadata(folder.path().join("console.log")).is_ok_and(|log| log.len() > 0);
            let all = self.processes(&folder.file_name().to_string_lossy());
            supervisor = all.into_iter().find(|(_, line)| line.contains("supervise")).map(|(id, _)| id);
            boots && supervisor.is_some()
        });
        kill(supervisor.unwrap());
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        let root = self.root();
        let left = || fs::read_dir(&root).into_iter().flatten().flatten().count();
        let folder = root.display().to_string();
        wait("nothing is left", || left() == 0 && self.processes(&folder).is_empty());
    }

    /// What the vault has of the machine is what its source has, and replication goes on.
    fn assert_source_untouched(&self, next: u64) {
        self.site.assert_disk_is("web", "latest", "root", &self.disk);
        assert_eq!(number(&self.site.replicate("web", &[("root", &self.disk)]), "seq"), next);
        self.site.assert_sound();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for (id, _) in self.processes(&self.root().display().to_string()) {
            kill(id);
        }
    }
}

fn kill(id: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[track_caller]
fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn probe<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["probes"].as_array().unwrap().iter().find(|p| p["probe"] == name).unwrap_or(&Value::Null)
}

/// What a command says, whatever its exit code.
fn said(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("no document: {}", ran.story()))
}

#[test]
fn a_drill_that_passes_has_a_report_with_times_and_a_picture_and_leaves_nothing() {
    let world = need!(World::new());
    let probes =
        [&format!("console:{}", guest::READY), "agent", "command:/bin/test -f /etc/start", "tcp:7", "http:8080/health"];
    let target = world.target(&format!("network = \"isolated\"\nprobe = {probes:?}"));
    let screen = world.site.disk("screen.png");
    // The newest point at which applications were quiesced is not the newest.
    world.site.try_replicate("web", &[("root", &world.disk)], &["--consistency-cmd", "true"]).json();
    world.site.replicate("web", &[("root", &world.disk)]);
    let report = world.drill(&target, &["--app", "--picture", screen.to_str().unwrap()]).json();
    assert_eq!((text(&report, "result").as_str(), number(&report, "seq")), ("passed", 2), "{report}");
    let passed: Vec<u64> = probes.iter().map(|name| number(probe(&report, name), "passed_ms")).collect();
    assert_eq!(report["rto_ms"].as_u64(), passed.iter().max().copied(), "{report}");
    assert!(number(&report, "fetched_bytes") > MIB && text(&report, "consistency") == "application", "{report}");
    let steps: Vec<String> = report["steps"].as_array().unwrap().iter().map(|s| text(s, "name")).collect();
    assert_eq!(steps, ["point", "disks", "machine", "up", "profile"]);
    assert!(report["steps"].as_array().unwrap().iter().all(|s| s["done"] == true), "{report}");
    world.assert_nothing_left();
    // The picture is the one that the report says, and only the recovery key opens it.
    let picture = fs::read(&screen).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() as u64 == number(&report["picture"], "bytes"));
    assert_eq!(text(&report["picture"], "blake3"), blake3::hash(&picture).to_string());
    let id = text(&report, "drill");
    let other = world.site.disk("other.png").display().to_string();
    world.site.gateway(&["drill", "show", &id, "--picture", &other]).assert_refused(exit::KEY, &["recovery key"]);
    let taken = ["drill", "show", &id, "--picture", screen.to_str().unwrap()];
    world.site.customer(&taken).assert_refused(exit::CONFLICT, &["exists"]);
    // The report is what everybody with a key reads, and one of the vault's records.
    assert_eq!(world.site.gateway(&["drill", "show", &id]).json(), report);
    assert_eq!(world.ask(&["drill", "list", "--machine", "web"])["drills"][0], report);
    assert_eq!(world.ask(&["drill", "list", "--machine", "db"])["drills"].as_array().unwrap().len(), 0);
    let job = world.ask(&["jobs", "show", &id]);
    assert_eq!((text(&job, "state").as_str(), &job["drill"]), ("cleaned", &Value::Bool(true)));
    let covered = world.ask(&["drill", "coverage"]);
    assert_eq!((number(&covered, "machines"), number(&covered, "booted")), (1, 1), "{covered}");
    world.assert_source_untouched(4);
    // Changed by whoever writes to the store: it is none, and is told.
    let file = world.site.files("vault/control/drills").pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[200] ^= 1;
    fs::write(&file, &bytes).unwrap();
    world.site.customer(&["drill", "show", &id]).assert_refused(exit::CORRUPT, &["control/drills", &id]);
    assert_eq!(number(&world.ask(&["drill", "coverage"]), "booted"), 0);
    let verified = world.site.gateway(&["verify"]);
    assert_eq!(verified.code(), Some(exit::CORRUPT), "{}", verified.story());
    assert!(verified.stdout.contains(&id), "{}", verified.story());
}

#[test]
fn a_drill_that_fails_says_why_in_its_report_and_leaves_nothing() {
    let world = need!(World::new());
    let probes =
        ["console:never said", "command:/bin/false", "command:/no/such", "tcp:9", "http:8080/nothing", "http:7/"];
    let target = world.target(&format!("probe = {probes:?}\nprobe_limit = \"1min\""));
    let ran = world.drill(&target, &[]);
    let report = said(&ran);
    assert_eq!((ran.code(), text(&report, "result").as_str()), (Some(exit::UNAVAILABLE), "failed"), "{}", ran.story());
    assert_eq!((&report["rto_ms"], number(&report, "code")), (&Value::Null, 7));
    for (name, why) in probes.into_iter().zip([
        "serial port",
        "ended with 1",
        "no such program",
        "nobody listens",
        "status 404",
        "HTTP",
    ]) {
        let probe = probe(&report, name);
        assert!(probe["passed_ms"].is_null() && text(probe, "why").contains(why), "{name}: {report}");
        assert!(text(&report, "why").contains(name), "{report}");
    }
    // The picture tells more than any probe.
    assert_eq!(text(&report["picture"], "format"), "png");
    world.assert_nothing_left();
    assert_eq!(text(&world.ask(&["jobs", "show", &text(&report, "drill")]), "state"), "cleaned");
    let covered = world.ask(&["drill", "coverage"]);
    assert_eq!((number(&covered, "booted"), text(&covered["missing"][0], "machine").as_str()), (0, "web"), "{covered}");
    world.assert_source_untouched(2);
}

#[test]
fn a_drill_whose_supervisor_is_killed_leaves_nothing_and_its_job_or_report_says_so() {
    let world = need!(World::new());
    let ready = world.ready();
    let [seen, reported] = IN_DRILL;
    for crash_point in ["failover.step-done:3", seen, reported] {
        let arguments = world.arguments(&ready, &[]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = world.site.customer_with(&[("LANDFALL_CRASH_AT", crash_point)], &arguments);
        world.assert_nothing_left();
        let id = world.newest_job();
        let shown = world.ask(&["drill", "show", &id]);
        if crash_point == reported {
            assert_eq!((ran.code(), text(&shown, "result").as_str()), (Some(exit::DONE), "passed"), "{}", ran.story());
        } else {
            ran.assert_refused(exit::UNAVAILABLE, &["drill of web", "without a report", &id]);
            assert!(shown["result"].is_null() && !shown["job"]["steps"].as_array().unwrap().is_empty(), "{shown}");
        }
        assert_eq!(text(&world.ask(&["drill", "list"])["drills"][0], "drill"), id);
    }
    let drill = world.start(&ready);
    world.kill_supervisor_while_the_guest_boots();
    let ran = drill.finish();
    ran.assert_refused(exit::UNAVAILABLE, &["without a report"]);
    world.assert_nothing_left();
    let shown = world.ask(&["drill", "show", &world.newest_job()]);
    assert!(shown["result"].is_null() && text(&shown["job"], "state") == "running", "{shown}");
    world.assert_source_untouched(2);
}

#[test]
fn a_drill_is_done_to_its_end_though_its_command_is_killed_and_ends_in_order_when_it_is_asked_to() {
    let world = need!(World::new());
    let drill = world.start(&world.ready());
    let folder = world.root().display().to_string();
    wait("somebody does it", || world.processes(&folder).iter().any(|(_, line)| line.contains("supervise")));
    drill.kill();
    drop(drill);
    wait("its report is there", || world.ask(&["drill", "list"])["drills"][0]["result"] == "passed");
    world.assert_nothing_left();
    // Asked to end, it does, and says so.
    let never = world.target("probe = \"console:never said\"\nprobe_limit = \"30min\"");
    let drill = world.start(&never);
    wait("its machine runs", || {
        world.processes(&world.root().display().to_string()).iter().any(|(_, l)| l.starts_with("qemu"))
    });
    drill.interrupt();
    let ran = drill.finish();
    let report = said(&ran);
    assert_eq!((ran.code(), text(&report, "result").as_str()), (Some(exit::UNAVAILABLE), "failed"), "{}", ran.story());
    assert!(
        text(&report, "why").contains("told to stop") && text(&report, "no_picture").contains("no machine"),
        "{report}"
    );
    world.assert_nothing_left();
}

#[test]
fn drills_of_all_machines_are_summed_up_and_one_that_fails_does_not_stop_the_others() {
    let world = need!(World::new());
    let disk = world.site.disk("db.img");
    world.programs.system_disk(&disk, 64 * MIB, "sync; poweroff -f");
    world.site.replicate("db", &[("root", &disk)]);
    // What is asked of each stands in a file of its own.
    let targets = world.site.folder().join("targets");
    fs::create_dir(&targets).unwrap();
    for (name, probe) in [("web", "console:generation-one"), ("default", "console:generation-two")] {
        let target = world.target(&format!("probe = {probe:?}\nprobe_limit = \"30min\""));
        fs::rename(target, targets.join(format!("{name}.toml"))).unwrap();
    }
    let ran = world.drill(&targets.display().to_string(), &["--all"]);
    let all = said(&ran);
    assert_eq!(
        (number(&all, "passed"), number(&all, "failed"), number(&all, "not_begun")),
        (1, 1, 0),
        "{}",
        ran.story()
    );
    assert_eq!(ran.code(), Some(exit::UNAVAILABLE), "of the one that failed: {}", ran.story());
    let why = text(&all["drills"][0], "why");
    assert!(text(&all["drills"][0], "machine") == "db" && why.contains("the machine has ended"), "{all}");
    assert_eq!(all["drills"][0]["probes"][0]["probe"], "console:generation-two");
    world.assert_nothing_left();
    let covered = world.ask(&["drill", "coverage"]);
    assert_eq!((number(&covered, "machines"), number(&covered, "booted")), (2, 1), "{covered}");
}

#[test]
fn what_cannot_be_drilled_is_told_before_anything_is_done() {
    let world = need!(World::new());
    world.drill(&world.target(""), &[]).assert_refused(exit::USAGE, &["probe = ", "--target-file"]);
    let bridge = world.target("test_network = \"bridge:br0\"\nprobe = \"agent\"");
    world.drill(&bridge, &[]).assert_refused(exit::USAGE, &["isolat", "bridge"]);
    let none = world.target("network = \"none\"\nprobe = \"tcp:22\"");
    world.drill(&none, &[]).assert_refused(exit::USAGE, &["tcp:22", "isolated"]);
    world.drill(&world.ready(), &["--app"]).assert_refused(exit::NOT_FOUND, &["quiesced", "--app"]);
    world.drill(&world.ready(), &["--point", "9"]).assert_refused(exit::NOT_FOUND, &["9"]);
    let taken = world.disk.display().to_string();
    world.drill(&world.ready(), &["--picture", &taken]).assert_refused(exit::CONFLICT, &["exists"]);
    world.site.customer(&["drill", "run"]).assert_refused(exit::USAGE, &["--machine", "--all"]);
    assert_eq!(world.ask(&["jobs"])["jobs"].as_array().unwrap().len(), 0, "nothing was begun");
    let id = "0".repeat(32);
    world.site.customer(&["drill", "show", &id]).assert_refused(exit::NOT_FOUND, &[&id]);
    world.assert_nothing_left();
}

#[tokio::test]
async fn coverage_counts_machines_that_came_up_lately_and_names_the_others() {
    let site = Site::with_vault();
    let disk = site.disk("disk.img");
    disks::random(&disk, 70_001, 1);
    for machine in ["fresh", "stale", "broken", "never"] {
        site.replicate(machine, &[("root", &disk)]);
    }
    let key = SiteKey::read(&site.site_key()).expect("the gateway's key");
    let vault = Vault::open_with_site_key(Store::open(site.url()).expect("a store"), key).await.expect("a vault");
    let day = 24 * 60 * 60 * 1000;
    let drill = |id: u8, machine: &str, days: i64, passed: bool| {
        let begun = Timestamp::from_millis(landfall_vault::now().millis() - days * day);
        DrillMeta {
            job: JobId::from_bytes([id; 16]),
            machine: machine.parse().expect("a name"),
            target: "kvm".to_owned(),
            asked: "latest".to_owned(),
            point: None,
            consistency: None,
            host: "here".to_owned(),
            begun,
            ended: begun,
            rto_ms: passed.then_some(1),
            steps: Vec::new(),
            probes: Vec::new(),
            fetched_bytes: 0,
            result: if passed { DrillResult::Passed } else { DrillResult::Failed },
            why: (!passed).then(|| "no \u{1b}[2J console".to_owned()),
            code: if passed { 0 } else { exit::UNAVAILABLE.try_into().expect("small") },
            version: "0".to_owned(),
            picture: None,
            no_picture: Some("none".to_owned()),
        }
    };
    let all = [("fresh", 1, true), ("stale", 10, true), ("broken", 3, true), ("broken", 2, false), ("gone", 1, true)];
    for (id, (machine, days, passed)) in (1..).zip(all) {
        vault.put_drill(&drill(id, machine, days, passed), None).await.expect("stored");
    }
    let asked = |days: &str| site.gateway(&["drill", "coverage", "--days", days]).json();
    let seven = asked("7");
    assert_eq!((number(&seven, "machines"), number(&seven, "booted")), (4, 2), "{seven}");
    let missing = seven["missing"].as_array().unwrap();
    assert_eq!(missing.iter().map(|m| text(m, "machine")).collect::<Vec<_>>(), ["never", "stale"]);
    assert!(missing[0]["last_passed"].is_null() && text(&missing[1], "last_passed").contains('T'), "{seven}");
    let two = asked("2");
    let broken =
        two["missing"].as_array().unwrap().iter().find(|m| m["machine"] == "broken").expect("it is not up lately");
    assert!(text(broken, "why").contains("console") && text(broken, "last_passed").contains('T'), "{two}");
    assert_eq!(number(&asked("30"), "booted"), 3);
    let key = site.site_key().display().to_string();
    let people = |command: &[&str]| site.run(&[command, &["--vault", site.url(), "--site-key", &key]].concat()).stdout;
    assert!(people(&["drill", "coverage"]).starts_with("2 of 4 machines booted in the last 7 days."));
    let listed = people(&["drill", "list"]);
    assert!(listed.lines().count() == 6 && !listed.contains('\u{1b}'), "{listed}");
    site.assert_sound();
}

#[test]
fn a_schedule_is_printed_as_units_that_are_those_of_the_examples() {
    let site = Site::new();
    let file = "/etc/landfall/drill.toml";
    let printed = site.run(&["drill", "schedule", "--every", "7d", "--all", "--target-file", file, "--json"]).json();
    for (unit, name) in [("service", "landfall-drill.service"), ("timer", "landfall-drill.timer")] {
        assert_eq!(text(&printed[unit], "name"), name);
        let example = fs::read_to_string(tools::repository().join("deploy/systemd").join(name)).expect("an example");
        assert_eq!(text(&printed[unit], "text"), example);
    }
    let one = ["drill", "schedule", "--every", "1d", "--machine", "web", "--app", "--target-file", file];
    let given = ["--vault", "s3://b/a $x%h", "--recovery-key", "/k/recovery.key", "--passphrase-file", "/k/pass"];
    let printed = site.run(&[&one[..], &given].concat()).stdout;
    for part in [
        "# /etc/systemd/system/landfall-drill-web.service",
        "ExecStart=/usr/local/bin/landfall drill run --machine web --app --target-file /etc/landfall/drill.toml --vault \"s3://b/a $$x%%h\"\n",
        "LoadCredential=recovery.key:/k/recovery.key\n",
        "LoadCredential=passphrase:/k/pass\n",
        "OnCalendar=daily\n",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }
    let analyze = need!(tools::need("systemd-analyze"));
    tools::succeed(Command::new(analyze).args(["calendar", "daily"]));
    let every = site.run(&["drill", "schedule", "--every", "3d", "--all", "--target-file", file]);
    every.assert_refused(exit::USAGE, &["1d, 7d or 30d"]);
    let relative = site.run(&["drill", "schedule", "--all", "--target-file", "drill.toml"]);
    relative.assert_refused(exit::USAGE, &["whole path"]);
}
