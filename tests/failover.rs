//! Failover into a machine in QEMU, as its users run it: a real guest boots from the vault, and whoever works on it is killed at every step.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use landfall_keys::SiteKey;
use landfall_model::JobMeta;
use landfall_tests::guest::{self, Programs};
use landfall_tests::landfall::{IN_FAILOVER, Ran, Site, exit, number};
use landfall_tests::{disks, need, tools};
use landfall_vault::{Store, Vault};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A machine is up, or gone, long before.
const LIMIT: Duration = Duration::from_secs(300);

/// A protected guest, and what its failovers say of it.
struct World {
    site: Site,
    programs: Programs,
    disk: PathBuf,
    commands: AtomicU32,
}

impl World {
    fn new() -> Option<Self> {
        let programs = Programs::find()?;
        tools::need("qemu-img")?;
        let site = Site::with_vault();
        let disk = site.disk("root.img");
        programs.system_disk(&disk, 64 * MIB, "echo generation-one");
        site.replicate("web", &[("root", &disk)]);
        Some(Self { site, programs, disk, commands: AtomicU32::new(0) })
    }

    /// The folder that holds the folders of jobs: sockets must fit.
    fn root(&self) -> PathBuf {
        self.site.folder().join("f")
    }

    /// Writes the target's file.
    fn target(&self, more: &str) -> PathBuf {
        let file = self.site.disk("target.toml");
        let shell = self.site.folder().join("shell");
        let text = format!(
            "[kvm]\naccel = \"tcg\"\ncpu = \"qemu64\"\nmemory = \"192MiB\"\ncpus = 1\nkernel = {:?}\ninitrd = {:?}\nappend = {:?}\n\
             arguments = [\"-chardev\", \"socket,id=shell,path={},server=on,wait=off\", \"-serial\", \"chardev:shell\"]\n{more}\n",
            self.programs.kernel(),
            self.programs.initrd(),
            self.programs.kernel_arguments(),
            shell.display(),
        );
        fs::write(&file, text).unwrap();
        file
    }

    fn ready(&self) -> PathBuf {
        self.target(&format!("network = \"none\"\nprobe = \"console:{}\"", guest::READY))
    }

    fn start(&self, kind: &str, target: &Path, more: &[&str], crash_at: Option<&str>) -> Ran {
        let (target, root) = (target.display().to_string(), self.root().display().to_string());
        let mut arguments =
            vec!["failover", kind, "--machine", "web", "--target", "kvm", "--target-file", &target, "--folder", &root];
        arguments.extend(more);
        if kind == "unplanned" {
            // Nobody who would stop it has a gateway here (tests/planned.rs).
            arguments.push("--source-is-lost");
        }
        let environment: Vec<(&str, &str)> = crash_at.map(|at| ("LANDFALL_CRASH_AT", at)).into_iter().collect();
        self.site.customer_with(&environment, &arguments)
    }

    fn job(&self, command: &[&str]) -> Value {
        self.site.customer(command).json()
    }

    /// Runs a line in the guest that was brought up.
    fn run(&self, line: &str) -> String {
        let number = self.commands.fetch_add(1, Ordering::SeqCst);
        let (code, said) = guest::run_in(&self.site.folder().join("shell"), number, line).expect("the guest answers");
        assert_eq!(code, 0, "{line}: {said}");
        said
    }

    /// Numbers of the processes that have this job, or its folder, in their command line.
    fn processes(&self, job: &str) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(job) {
                found.push(id);
            }
        }
        found
    }

    /// The supervisor of a job.
    fn supervisor(&self, job: &str) -> u32 {
        let mut found = self.processes(job);
        found.retain(|id| {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("supervise")
        });
        assert_eq!(found.len(), 1, "one supervisor");
        found[0]
    }

    #[track_caller]
    fn assert_nothing_left(&self, job: &str) {
        wait("nothing of the job is left", || self.processes(job).is_empty() && !self.root().join(job).exists());
        let left: Vec<_> = fs::read_dir(self.root()).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Whether the vault still has exactly what the source had.
    fn assert_point_untouched(&self) {
        self.site.assert_disk_is("web", "latest", "root", &self.disk);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            for id in self.processes(&entry.file_name().to_string_lossy()) {
                kill(id);
            }
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

fn step<'a>(job: &'a Value, name: &str) -> &'a Value {
    job["steps"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn a_test_boots_from_the_vault_and_touches_nothing_and_leaves_nothing_behind() {
    let world = need!(World::new());
    let ran = world.start("test", &world.ready(), &[], None);
    let job = ran.json();
    let id = text(&job, "job");
    assert_eq!((text(&job, "state").as_str(), number(&job, "seq")), ("up", 1));
    assert!(world.run("cat /etc/start").contains("generation-one"));
    world.run("echo changed by the test >/etc/start; dd if=/dev/urandom of=/noise bs=1M count=8; sync");
    assert_eq!(world.run("md5sum </noise").len(), world.run("md5sum </noise").len());
    // Replication goes on beside it.
    let next = world.site.replicate("web", &[("root", &world.disk)]);
    assert_eq!(number(&next, "seq"), 2);
    let second = world.start("test", &world.target("network = \"isolated\""), &["--point", "1"], None);
    let listed = world.job(&["jobs"]);
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 2, "{listed}; {}", second.story());
    for job in listed["jobs"].as_array().unwrap() {
        let cleaned = world.job(&["failover", "cleanup", &text(job, "job")]);
        assert_eq!(text(&cleaned, "state"), "cleaned");
    }
    world.assert_nothing_left(&id);
    assert_eq!(text(&world.job(&["jobs", "show", &id]), "state"), "cleaned");
    world.assert_point_untouched();
    world.site.assert_sound();
}

#[test]
fn a_lost_machine_runs_again_and_stands_on_its_own_disks_in_the_end() {
    let world = need!(World::new());
    let (data, swap) = (world.site.disk("data.img"), world.site.disk("swap.img"));
    disks::random(&data, 24 * MIB + 512, 3);
    disks::zeroes(&swap, 16 * MIB);
    let swap_arguments = ["--exclude", "swap"];
    let three = [("root", world.disk.as_path()), ("data", data.as_path()), ("swap", swap.as_path())];
    world.site.try_replicate("web", &three, &swap_arguments).json();
    let more = format!(
        "network = \"isolated\"\nprobe = \"console:{}\"\n[[disk]]\nname = \"swap\"\nformat = \"swap\"",
        guest::READY
    );
    let job = world.start("unplanned", &world.target(&more), &[], None).json();
    let id = text(&job, "job");
    assert_eq!(text(&job, "state"), "up", "{job}");
    // The source is fenced, and told why.
    world
        .site
        .try_replicate("web", &[("root", &world.disk)], &[])
        .assert_refused(exit::CONFLICT, &["failed over", &id]);
    world.start("unplanned", &world.target(&more), &[], None).assert_refused(exit::CONFLICT, &[&id]);
    let digest = tools::succeed(Command::new("md5sum").arg(&data));
    // The sectors that are whole: the last is half a kilobyte.
    assert_eq!(world.run("md5sum </dev/vdb")[..32], digest[..32]);
    world.run("head -c 4096 /dev/vdc | strings | grep SWAPSPACE2");
    world.run("echo written after the disaster >/later; dd if=/dev/urandom of=/noise bs=1M count=4; sync");
    let noise = world.run("md5sum </noise");
    wait("the disks are here", || step(&world.job(&["jobs", "show", &id]), "hydrate")["done"] == true);
    assert_eq!(text(&world.job(&["failover", "commit", &id]), "state"), "committed");
    world.site.customer(&["failover", "cancel", &id, "--apply"]).assert_refused(exit::CONFLICT, &["committed"]);
    // Whoever supervised it has gone, and so may the vault.
    wait("nobody supervises it", || world.processes(&id).len() == 1);
    fs::rename(world.site.vault_folder(), world.site.disk("vault-away")).unwrap();
    world.run("echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(world.run("md5sum </noise"), noise);
    assert_eq!(world.run("md5sum </dev/vdb")[..32], digest[..32]);
    world.run("sync");
    for id in world.processes(&id) {
        kill(id);
    }
    let folder = world.root().join(&id);
    wait("it ended", || world.processes(&id).is_empty());
    for disk in ["root", "data"] {
        let file = folder.join(format!("disk-{disk}.qcow2"));
        // One that was killed holds its files for a moment yet.
        wait("nobody has it open", || tools::output(Command::new("qemu-img").arg("check").arg(&file)).status.success());
        let info = tools::succeed(Command::new("qemu-img").arg("info").arg(&file));
        assert!(!info.contains("backing"), "{info}");
    }
    let raw = world.site.disk("data-back.img");
    tools::succeed(
        Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(folder.join("disk-data.qcow2")).arg(&raw),
    );
    disks::assert_same(&data, &raw);
}

#[test]
fn a_failover_that_is_cancelled_gives_the_machine_back_to_its_source() {
    let world = need!(World::new());
    let job = world.start("unplanned", &world.ready(), &[], None).json();
    let id = text(&job, "job");
    let plan = world.job(&["failover", "cancel", &id]);
    assert_eq!(plan["applied"], false);
    assert_eq!(text(&world.job(&["jobs", "show", &id]), "state"), "up", "nothing was done yet");
    world.site.customer(&["failover", "cleanup", &id]).assert_refused(exit::USAGE, &["cancel"]);
    // What cannot be seen may hold a machine that runs: no other is made in its place, and it is not given up.
    wait("nobody supervises it", || world.processes(&id).len() == 1);
    let (folder, away) = (world.root().join(&id), world.root().join("unmounted"));
    fs::rename(&folder, &away).unwrap();
    let target = world.ready().display().to_string();
    let resume = world.site.customer(&["jobs", "resume", &id, "--target-file", &target]);
    resume.assert_refused(exit::CONFLICT, &["not there now"]);
    fs::rename(&away, &folder).unwrap();
    // A folder that others can write to may hold what others want to have run.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let cancel = world.site.customer(&["failover", "cancel", &id, "--apply"]);
    cancel.assert_refused(exit::CONFLICT, &["no folder of job"]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(text(&world.job(&["failover", "cancel", &id, "--apply"]), "state"), "cancelled");
    assert_eq!(text(&world.job(&["failover", "cancel", &id, "--apply"]), "state"), "cancelled");
    world.assert_nothing_left(&id);
    world.site.customer(&["failover", "commit", &id]).assert_refused(exit::CONFLICT, &["cancelled"]);
    let point = world.site.replicate("web", &[("root", &world.disk)]);
    assert_eq!(number(&point, "seq"), 2);
    world.site.assert_sound();
}

#[test]
fn a_test_whose_supervisor_is_killed_at_any_step_leaves_nothing() {
    let world = need!(World::new());
    for crash in ["step-done:1", "step-done:2", "step-done:3", "step-done:4", "step-written:2"] {
        let ran = world.start("test", &world.ready(), &[], Some(&format!("failover.{crash}")));
        ran.assert_refused(exit::UNAVAILABLE, &["job"]);
        let jobs = world.job(&["jobs"]);
        let id = text(&jobs["jobs"][0], "job");
        world.assert_nothing_left(&id);
        assert_eq!(text(&world.job(&["failover", "cleanup", &id]), "state"), "cleaned", "{crash}");
    }
    // And while its machine runs.
    let job = world.start("test", &world.ready(), &[], None).json();
    let id = text(&job, "job");
    kill(world.supervisor(&id));
    world.assert_nothing_left(&id);
    world.assert_point_untouched();
}

#[test]
fn a_failover_whose_supervisor_is_killed_at_any_step_is_gone_on_with() {
    let world = need!(World::new());
    let steps = ["fence", "point", "disks", "machine", "up", "hydrate"];
    let [done, written, copied] = IN_FAILOVER;
    // What is written down is what is gone on from: at two steps, that it is, shows it.
    let at_steps = (0..steps.len()).map(|step| (done, step));
    for (crash_point, step_number) in at_steps.chain([(written, 0), (written, 4), (copied, 5)]) {
        let nth = if crash_point == copied { 1 } else { step_number + 1 };
        let crash = format!("{crash_point}:{nth}");
        let ran = world.start("unplanned", &world.ready(), &[], Some(&crash));
        let jobs = world.job(&["jobs"]);
        let id = text(&jobs["jobs"][0], "job");
        let (came_up, was_begun) = (step_number >= 4, step_number >= 3);
        if step_number < 5 {
            assert_ne!(ran.code(), Some(exit::DONE), "{crash}: {}", ran.story());
        }
        let left = usize::from(was_begun);
        wait("the supervisor has gone", || world.processes(&id).len() == left);
        if came_up {
            world.run("echo kept >/dev/shm-mark");
        }
        let root = world.root().display().to_string();
        let resumed = world.site.customer(&["jobs", "resume", &id, "--folder", &root]).json();
        assert_eq!(text(&resumed, "state"), "up", "{crash}: {resumed}");
        if came_up {
            assert_eq!(world.run("cat /dev/shm-mark"), "kept", "{crash}: it is the same machine, and not another");
        }
        wait("the disks are here", || step(&world.job(&["jobs", "show", &id]), "hydrate")["done"] == true);
        wait("nobody supervises it", || world.processes(&id).len() == 1);
        assert!(world.run("cat /etc/start").contains("generation-one"), "{crash}");
        world.job(&["failover", "cancel", &id, "--apply"]);
        world.assert_nothing_left(&id);
    }
    world.assert_point_untouched();
}

#[test]
fn a_machine_waits_for_its_disks_while_nobody_serves_them() {
    let world = need!(World::new());
    let job = world.start("unplanned", &world.ready(), &[], Some("failover.step-written:5")).story();
    let jobs = world.job(&["jobs"]);
    let id = text(&jobs["jobs"][0], "job");
    wait("the supervisor has gone", || world.processes(&id).len() == 1);
    let root = world.root().display().to_string();
    // What is in no cache: it is read from the vault, once somebody serves it again.
    let shell = world.site.folder().join("shell");
    let read = "echo 3 >/proc/sys/vm/drop_caches; md5sum </dev/vda";
    let reading = std::thread::spawn(move || guest::run_in(&shell, 9000, read));
    assert!(!reading.is_finished(), "{job}");
    world.site.customer(&["jobs", "resume", &id, "--folder", &root]).json();
    let (code, said) = reading.join().expect("it ends").expect("the guest answers");
    assert_eq!((code, said.len()), (0, 35), "{said}");
    world.job(&["failover", "cancel", &id, "--apply"]);
    world.assert_nothing_left(&id);
}

#[test]
fn a_test_ends_by_itself_when_its_lease_ends() {
    let world = need!(World::new());
    let job = world.start("test", &world.target("network = \"none\""), &["--lease", "1s"], None);
    let id = text(&world.job(&["jobs"])["jobs"][0], "job");
    world.assert_nothing_left(&id);
    assert_eq!(text(&world.job(&["jobs", "show", &id]), "state"), "cleaned", "{}", job.story());
}

#[test]
fn a_machine_that_does_not_come_up_is_told_and_can_be_looked_at() {
    let world = need!(World::new());
    let target = world.target("network = \"none\"\nprobe = \"console:never said\"\nprobe_limit = \"1s\"");
    let ran = world.start("test", &target, &[], None);
    ran.assert_refused(exit::UNAVAILABLE, &["was not up within", "console.log"]);
    let job = world.job(&["jobs"])["jobs"][0].clone();
    let id = text(&job, "job");
    assert_eq!(text(&job, "state"), "failed");
    assert!(world.root().join(&id).join("console.log").exists());
    world.job(&["failover", "cleanup", &id]);
    world.assert_nothing_left(&id);
}

#[test]
fn what_cannot_be_done_is_told_before_anything_is_done() {
    let world = need!(World::new());
    let moon = world.target("network = \"moon\"");
    world.start("test", &moon, &[], None).assert_refused(exit::USAGE, &["moon", "bridge:NAME"]);
    let target = world.target("");
    world.start("unplanned", &target, &[], None).assert_refused(exit::USAGE, &["network", "--target-file"]);
    world.start("test", &target, &["--point", "7"], None).assert_refused(exit::NOT_FOUND, &["7"]);
    world.start("test", &target, &["--point", "soon"], None).assert_refused(exit::USAGE, &["soon"]);
    let other = world.site.customer(&["failover", "test", "--machine", "db", "--target", "kvm"]);
    other.assert_refused(exit::NOT_FOUND, &["db"]);
    let none = "0".repeat(32);
    world.site.customer(&["jobs", "show", &none]).assert_refused(exit::NOT_FOUND, &[&none]);
    world.site.customer(&["failover", "commit", "x"]).assert_refused(exit::USAGE, &["32 hex digits"]);
    let bridge = world.target("network = \"bridge:no-such-0\"");
    world.start("unplanned", &bridge, &[], None).assert_refused(exit::USAGE, &["no-such-0", "this host"]);
    let qemu = world.target("network = \"none\"\nqemu = \"/no/such/qemu\"");
    world.start("unplanned", &qemu, &[], None).assert_refused(exit::UNSUPPORTED, &["/no/such/qemu", "install"]);
    world.start("test", &qemu, &[], None).assert_refused(exit::UNAVAILABLE, &["/no/such/qemu"]);
    let jobs = world.job(&["jobs"]);
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "only the last was begun: {jobs}");
    let id = text(&jobs["jobs"][0], "job");
    assert_eq!(text(&jobs["jobs"][0], "state"), "failed");
    world.assert_nothing_left(&id);
    world.site.assert_sound();
}

#[tokio::test]
async fn what_a_forged_record_names_is_not_touched() {
    let world = need!(World::new());
    let id = text(&world.start("test", &world.ready(), &[], None).json(), "job");
    // Whoever has the site key can write any record.
    let site = SiteKey::read(&world.site.site_key()).expect("the gateway's key");
    let vault =
        Vault::open_with_site_key(Store::open(world.site.url()).expect("a store"), site).await.expect("a vault");
    let job = vault.job(id.parse().expect("an id")).await.expect("there");
    let treasure = world.site.disk("treasure");
    let named = treasure.join(&id);
    fs::create_dir_all(&named).unwrap();
    fs::write(named.join("letters"), "dear all").unwrap();
    let mut before = job.clone();
    for folder in [&treasure, &named] {
        let forged = JobMeta { folder: folder.display().to_string(), ..job.meta.clone() };
        before = vault.put_job(forged, Some(&before)).await.expect("forged");
        world.site.customer(&["failover", "cleanup", &id]).assert_refused(exit::CONFLICT, &["no folder of job"]);
        world.site.customer(&["jobs", "resume", &id]).assert_refused(exit::CONFLICT, &["no folder of job"]);
    }
    assert_eq!(fs::read_dir(&named).unwrap().count(), 1, "nothing was written there");
    vault.put_job(job.meta, Some(&before)).await.expect("as it was");
    world.job(&["failover", "cleanup", &id]);
    world.assert_nothing_left(&id);
}

#[tokio::test]
async fn a_failover_whose_host_is_lost_is_cancelled_from_another() {
    let world = need!(World::new());
    world.start("unplanned", &world.ready(), &[], Some("failover.step-written:4"));
    let id = text(&world.job(&["jobs"])["jobs"][0], "job");
    let site = SiteKey::read(&world.site.site_key()).expect("the gateway's key");
    let vault =
        Vault::open_with_site_key(Store::open(world.site.url()).expect("a store"), site).await.expect("a vault");
    let job = vault.job(id.parse().expect("an id")).await.expect("there");
    let (host, folder) = (job.meta.host.clone(), job.meta.folder.clone());
    let elsewhere = JobMeta { host: "burnt-down".to_owned(), ..job.meta.clone() };
    vault.put_job(elsewhere, Some(&job)).await.expect("as if it had run elsewhere");
    for command in [&["jobs", "resume", &id][..], &["failover", "cancel", &id, "--apply"]] {
        world.site.customer(command).assert_refused(exit::CONFLICT, &["burnt-down", &host]);
    }
    assert!(Path::new(&folder).exists(), "nothing was done yet");
    let cancelled = world.job(&["failover", "cancel", &id, "--apply", "--host-is-lost"]);
    assert_eq!(text(&cancelled, "state"), "cancelled");
    world.site.replicate("web", &[("root", &world.disk)]);
    for id in world.processes(&id) {
        kill(id);
    }
}
