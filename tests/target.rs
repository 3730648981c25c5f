//! The machine at its target: its networks and addresses, its disks that are not protected, and what its boot is known to read.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use landfall_keys::SiteKey;
use landfall_model::BootProfile;
use landfall_tests::guest::{self, Programs};
use landfall_tests::landfall::{Ran, Site, exit};
use landfall_tests::{disks, need, tools};
use landfall_vault::{Store, Vault};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Everything waited for is there long before.
const LIMIT: Duration = Duration::from_secs(300);
const ROOT: &str = "root.img";

/// A protected guest, and its failovers on this host.
struct World {
    site: Site,
    programs: Programs,
    commands: AtomicU32,
}

impl World {
    /// `start`: what the guest does at its boot; `more`: further disks, and arguments of `replicate`.
    fn new(start: &str, size: u64, more: &[(&str, u64)], arguments: &[&str]) -> Option<Self> {
        let programs = Programs::find()?;
        tools::need("qemu-img")?;
        let site = Site::with_vault();
        let root = site.disk(ROOT);
        programs.system_disk(&root, size, start);
        let paths: Vec<(&str, PathBuf)> = more.iter().map(|(name, _)| (*name, site.disk(name))).collect();
        for ((_, path), (_, size)) in paths.iter().zip(more) {
            disks::zeroes(path, *size);
        }
        let mut all = vec![("root", root.as_path())];
        all.extend(paths.iter().map(|(name, path)| (*name, path.as_path())));
        site.try_replicate("web", &all, arguments).json();
        Some(Self { site, programs, commands: AtomicU32::new(0) })
    }

    fn root(&self) -> PathBuf {
        self.site.folder().join("f")
    }

    fn start(&self, kind: &str, kvm: &str, more: &str) -> Ran {
        self.start_probed(&[], kind, guest::READY, kvm, more)
    }

    /// `up`: what the guest says on its console when it is up; `environment`: of the command.
    fn start_probed(&self, environment: &[(&str, &str)], kind: &str, up: &str, kvm: &str, more: &str) -> Ran {
        let file = self.site.disk("target.toml");
        let shell = self.site.folder().join("shell");
        let text = format!(
            "[kvm]\naccel = \"tcg\"\ncpu = \"qemu64\"\nmemory = \"192MiB\"\ncpus = 1\nkernel = {:?}\ninitrd = {:?}\nappend = {:?}\n\
             arguments = [\"-chardev\", \"socket,id=shell,path={},server=on,wait=off\", \"-serial\", \"chardev:shell\"]\n\
             probe = \"console:{up}\"\n{kvm}\n{more}\n",
            self.programs.kernel(),
            self.programs.initrd(),
            self.programs.kernel_arguments(),
            shell.display(),
        );
        fs::write(&file, text).unwrap();
        let (target, root) = (file.display().to_string(), self.root().display().to_string());
        let arguments =
            ["failover", kind, "--machine", "web", "--target", "kvm", "--target-file", &target, "--folder", &root];
        self.site.customer_with(environment, &arguments)
    }

    fn show(&self, job: &str) -> Value {
        self.site.customer(&["jobs", "show", job]).json()
    }

    fn newest(&self) -> String {
        text(&self.site.customer(&["jobs"]).json()["jobs"][0], "job")
    }

    fn clean(&self, job: &str) {
        assert_eq!(text(&self.site.customer(&["failover", "cleanup", job]).json(), "state"), "cleaned");
    }

    /// Runs a line in the guest that was brought up last.
    fn run(&self, line: &str) -> String {
        let number = self.commands.fetch_add(1, Ordering::SeqCst);
        let (code, said) = guest::run_in(&self.site.folder().join("shell"), number, line).expect("the guest answers");
        assert_eq!(code, 0, "{line}: {said}");
        said
    }

    /// Numbers of the processes that have these words in their command line.
    fn processes(&self, words: &[&str]) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if words.iter().all(|word| line.contains(word)) {
                found.push(id);
            }
        }
        found
    }

    #[track_caller]
    fn assert_nothing_left(&self, job: &str) {
        let left = || (self.processes(&[job]), self.root().join(job).exists(), namespace(job).exists());
        let start = Instant::now();
        while left() != (Vec::new(), false, false) {
            assert!(start.elapsed() < LIMIT, "left of the job (processes, folder, network): {:?}", left());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            let job = entry.file_name().to_string_lossy().into_owned();
            self.processes(&[&job]).into_iter().for_each(kill);
            if namespace(&job).exists() {
                let _ = Command::new("ip").args(["netns", "del", &format!("landfall-{job}")]).status();
            }
        }
    }
}

fn namespace(job: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("landfall-{job}"))
}

fn kill(id: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Whether nothing of a process is left but its number. One that is ending has no command line any more, and holds its files and locks yet.
fn has_ended(id: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[track_caller]
fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

fn step<'a>(job: &'a Value, name: &str) -> &'a Value {
    job["steps"].as_array().unwrap().iter().find(|s| s["name"] == name).unwrap_or(&Value::Null)
}

/// What this machine must let us do to have networks of our own.
fn networks() -> Option<()> {
    let (ip, name) = (tools::need("ip")?, format!("landfall-test-probe-{}", std::process::id()));
    tools::need("busybox")?;
    let done = tools::output(Command::new(&ip).args(["netns", "add", &name]));
    if !done.status.success() || !Path::new("/dev/net/tun").exists() {
        tools::missing("network namespaces and /dev/net/tun (root)");
        return None;
    }
    tools::succeed(Command::new(ip).args(["netns", "del", &name]));
    Some(())
}

/// Whether an address answers in the network of a test.
fn answers(job: &str, address: &str) -> bool {
    let namespace = format!("landfall-{job}");
    let ping = ["netns", "exec", &namespace, "busybox", "ping", "-c", "1", "-W", "2", address];
    tools::output(Command::new("ip").args(ping)).status.success()
}

const LAB: &str = "[[nic]]\nmac = \"52:54:00:00:00:01\"\nnetwork = \"bridge:no-such-bridge\"\ntest_network = \"created:lab\"\n\
    addresses = [\"10.77.0.3/24\", \"fd77::3/64\"]\ngateways = [\"10.77.0.1\", \"fd77::1\"]\ndns = [\"10.77.0.53\"]\n\
    [[nic]]\nmac = \"52:54:00:00:00:02\"\ntest_network = \"created:lab\"\ntest_addresses = [\"10.78.0.4/24\"]\n";

#[test]
fn a_test_has_its_addresses_in_a_network_that_is_made_for_it_and_goes_with_it() {
    need!(networks());
    let world = need!(World::new("echo started", 64 * MIB, &[], &[]));
    let job = world.start("test", "inject = \"agent\"", LAB).json();
    let id = text(&job, "job");
    let said = text(step(&job, "addresses"), "detail");
    for part in ["52:54:00:00:00:01", "10.77.0.3/24", "fd77::3/64", "10.78.0.4/24", "until its next boot"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    for address in ["10.77.0.3", "fd77::3"] {
        wait(address, || answers(&id, address));
    }
    assert!(world.run("ip route").contains("default via 10.77.0.1"));
    assert!(world.run("ip -6 route").contains("default via fd77::1"));
    assert!(world.run("cat /etc/resolv.conf").contains("nameserver 10.77.0.53"));
    world.run("ping -c 1 -W 10 10.77.0.1");
    // Both interfaces are on one bridge, and nothing else is.
    let on_bridge = tools::succeed(Command::new("ip").args(["-n", &format!("landfall-{id}"), "-o", "link"]));
    assert_eq!(on_bridge.matches("master lab").count(), 2, "{on_bridge}");
    assert_eq!(on_bridge.lines().count(), 4, "lo, the bridge, and the two: {on_bridge}");
    world.clean(&id);
    world.assert_nothing_left(&id);
    // The one who would remove it is killed.
    let id = text(&world.start("test", "inject = \"agent\"", LAB).json(), "job");
    assert!(namespace(&id).exists());
    world.processes(&[&id, "supervise"]).into_iter().for_each(kill);
    world.assert_nothing_left(&id);
    // And its keeper too: the next failover on this host finds what is left.
    let id = text(&world.start("test", "inject = \"agent\"", LAB).json(), "job");
    let both = world.processes(&[&id, "landfall"]);
    both.iter().copied().for_each(kill);
    wait("all have ended", || both.iter().copied().all(has_ended) && world.processes(&[&id]).is_empty());
    assert!(namespace(&id).exists(), "nobody was there to remove it");
    let other = text(&world.start("test", "network = \"none\"", "").json(), "job");
    world.assert_nothing_left(&id);
    world.clean(&other);
}

#[test]
fn an_interface_that_cannot_have_its_addresses_is_named_and_the_machine_runs_on() {
    let world = need!(World::new("echo started", 64 * MIB, &[], &[]));
    // The guest has no driver for it.
    let nic = "[[nic]]\nmac = \"52:54:00:00:00:07\"\nmodel = \"e1000\"\naddresses = [\"10.77.0.3/24\"]";
    let ran = world.start("test", "inject = \"agent\"", nic);
    ran.assert_refused(exit::NOT_FOUND, &["52:54:00:00:00:07", "no such interface"]);
    let id = world.newest();
    let job = world.show(&id);
    assert_eq!(text(&job, "state"), "failed");
    assert!(text(step(&job, "addresses"), "error").contains("52:54:00:00:00:07"), "{job}");
    assert_eq!(world.run("cat /proc/sys/kernel/ostype"), "Linux", "it can be looked at");
    world.clean(&id);
    world.assert_nothing_left(&id);
    // What the machine has not is told before it is made.
    let ran = world.start("test", "", "[[disk]]\nname = \"root\"\nformat = \"swap\"");
    ran.assert_refused(exit::USAGE, &["root", "is protected"]);
    world.assert_nothing_left(&world.newest());
    let created = world.start("unplanned", "network = \"created:lab\"", "");
    created.assert_refused(exit::USAGE, &["ends with a test"]);
}

#[test]
fn the_seed_for_cloud_init_is_the_last_disk_and_other_tools_read_it() {
    let world = need!(World::new("echo started", 64 * MIB, &[("data", 4 * MIB)], &[]));
    need!(tools::need("mtype"));
    let nic = "[[nic]]\nmac = \"52:54:00:00:00:08\"\naddresses = [\"10.77.0.3/24\"]\ngateways = [\"10.77.0.1\"]\ndns = [\"10.77.0.53\"]";
    let job = world.start("test", "inject = \"seed\"", nic).json();
    let id = text(&job, "job");
    assert!(text(step(&job, "addresses"), "detail").contains("seed"), "{job}");
    let seed = world.root().join(&id).join("seed.img");
    let read = |name: &str| tools::succeed(Command::new("mtype").arg("-i").arg(&seed).arg(format!("::{name}")));
    let config: Value = serde_json::from_str(&read("network-config")).expect("YAML that is JSON");
    let ethernet = &config["ethernets"]["nic0"];
    assert_eq!(ethernet["match"]["macaddress"], "52:54:00:00:00:08");
    assert_eq!(
        (&ethernet["addresses"][0], &ethernet["routes"][0]["via"]),
        (&"10.77.0.3/24".into(), &"10.77.0.1".into())
    );
    assert!(read("meta-data").contains(&id), "another instance for each job");
    assert!(read("user-data").starts_with("#cloud-config\n"));
    let label = tools::succeed(Command::new("mlabel").args(["-s", "-i"]).arg(&seed).arg("::"));
    assert!(label.contains("cidata"), "{label}");
    // The guest sees the same bytes, behind its own disks, and cannot change them.
    let digest = tools::succeed(Command::new("md5sum").arg(&seed));
    assert_eq!(world.run("md5sum </dev/vdc")[..32], digest[..32]);
    assert_eq!(world.run("cat /sys/block/vdc/ro /sys/block/vdb/ro"), "1\n0");
    assert_eq!(world.run("cat /sys/block/vdb/size"), (4 * MIB / 512).to_string());
    world.clean(&id);
    world.assert_nothing_left(&id);
}

#[test]
fn disks_that_are_not_protected_come_back_in_their_places_with_the_names_that_they_had() {
    let more = [("swap", 16 * MIB), ("data", 4 * MIB), ("scratch", 24 * MIB), ("blank", 2 * MIB)];
    let arguments = ["--exclude", "swap", "--exclude", "scratch", "--exclude", "blank"];
    let world = need!(World::new("echo started", 64 * MIB, &more, &arguments));
    for tool in ["mkswap", "mkfs.ext4", "blkid"] {
        need!(tools::need(tool));
    }
    let (swap, scratch) = ("0b6c7f3e-5a0d-4e0b-9c55-0d6a1f6e2a10", "5a3d1c22-74e6-4f5b-8d59-3f0f8d6b1b77");
    let settings = format!(
        "[[disk]]\nname = \"swap\"\nformat = \"swap\"\nuuid = \"{swap}\"\nlabel = \"old-swap\"\n\
         [[disk]]\nname = \"scratch\"\nformat = \"ext4\"\nuuid = \"{scratch}\"\n[[disk]]\nname = \"blank\"\nsize = \"8MiB\""
    );
    let id = text(&world.start("test", "network = \"none\"", &settings).json(), "job");
    let sizes = world.run("cat /sys/block/vd[a-e]/size");
    let wanted: Vec<String> = [64, 16, 4, 24, 8].map(|mib: u64| (mib * MIB / 512).to_string()).into();
    assert_eq!(sizes.lines().collect::<Vec<_>>(), wanted, "each in its place");
    let folder = world.root().join(&id);
    let named =
        |disk: &str| tools::succeed(Command::new("blkid").args(["-p"]).arg(folder.join(format!("disk-{disk}.raw"))));
    let (as_swap, as_ext4) = (named("swap"), named("scratch"));
    for part in [swap, "LABEL=\"old-swap\"", "TYPE=\"swap\""] {
        assert!(as_swap.contains(part), "{part}: {as_swap}");
    }
    assert!(as_ext4.contains(scratch) && as_ext4.contains("TYPE=\"ext4\""), "{as_ext4}");
    world.run("swapon /dev/vdb && grep -q /dev/vdb /proc/swaps");
    world.run("mount -t ext4 /dev/vdd /mnt && echo kept >/mnt/file && umount /mnt");
    world.run("cmp -n 8388608 /dev/vde /dev/zero");
    world.clean(&id);
    world.assert_nothing_left(&id);
}

/// Reads that waited for the store until the machine was up, and KiB that a profile had fetched ahead.
fn reading(job: &Value) -> (u64, u64) {
    let said = text(step(job, "up"), "detail");
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers.len(), 3, "{said}");
    (numbers[0], numbers[2])
}

/// Writes a profile into the vault as its gateway could.
async fn forge(site: &Site, profile: &BootProfile) {
    let key = SiteKey::read(&site.site_key()).expect("the gateway's key");
    let vault = Vault::open_with_site_key(Store::open(site.url()).expect("a store"), key).await.expect("a vault");
    assert!(vault.keep_boot_profile(profile).await.expect("forged"));
}

#[tokio::test]
async fn what_a_test_has_read_at_its_boot_is_fetched_ahead_at_the_next_and_a_forged_profile_is_harmless() {
    // Beside its system, what it reads before it is up.
    let start = "for file in /big-*; do md5sum $file; done; echo ALL-READ";
    let world = need!(World::new(start, 64 * MIB, &[], &[]));
    let root = world.site.disk(ROOT);
    for n in 0..12 {
        disks::ext4_write(&root, &format!("big-{n}"), 1 << 20, n);
    }
    world.site.replicate("web", &[("root", &root)]);
    let probe = "network = \"none\"\nprobe_limit = \"5min\"";
    let begin = || {
        let job = world.start_probed(&[("LANDFALL_LOG", "warn")], "test", "ALL-READ", probe, "").json();
        (text(&job, "job"), reading(&job))
    };
    let (first, (waited, ahead)) = begin();
    assert_eq!(ahead, 0, "nothing is known yet");
    assert!(waited > 5, "{waited}");
    let kept = || text(step(&world.show(&first), "profile"), "detail");
    wait("what it read is kept", || !kept().is_empty());
    assert!(kept().contains("kept for the next boot"), "{}", kept());
    world.clean(&first);
    assert_eq!(world.site.files("vault/control/profiles").len(), 1);
    let (second, (waited_then, ahead)) = begin();
    assert!(ahead > 12 << 10, "all that was read: {ahead} KiB");
    assert!(waited_then * 4 < waited, "{waited_then} of {waited} reads wait");
    let kept = || text(step(&world.show(&second), "profile"), "detail");
    wait("it is looked at again", || !kept().is_empty());
    assert!(kept().contains("as recorded at"), "it says the same: {}", kept());
    world.clean(&second);
    world.site.assert_sound();

    // Whoever has the site key can write one: of ranges that are nobody's, of disks that are not there.
    let disks = ["nothing", "root"].map(|name| name.parse().expect("a name")).into();
    let ranges = vec![(0, 0, 8), (1, u32::MAX, 1), (1, 0, 2), (1, 900, 3000)];
    let forged =
        BootProfile { machine: "web".parse().expect("a name"), recorded: landfall_vault::now(), disks, ranges };
    forge(&world.site, &forged).await;
    let (third, (_, ahead)) = begin();
    assert!(ahead < 65 << 10, "no more than the disk has: {ahead} KiB");
    world.clean(&third);
    // One that is too large, and one that is damaged, are told and passed over.
    forge(&world.site, &BootProfile { ranges: vec![(1, 0, u32::MAX)], ..forged }).await;
    let newest = world.site.files("vault/control/profiles").into_iter().max().expect("some");
    let next = newest.with_file_name(format!("{:016x}", 99));
    fs::write(&next, "LANDRECD and then nothing").unwrap();
    let (fourth, _) = begin();
    let log = fs::read_to_string(world.root().join(&fourth).join("supervisor.log")).unwrap();
    assert_eq!(log.matches("a boot profile is ignored").count(), 2, "{log}");
    world.clean(&fourth);
    world.assert_nothing_left(&fourth);
    let verified = world.site.customer(&["verify"]);
    assert_eq!(verified.code(), Some(exit::CORRUPT));
    assert!(verified.story().contains("control/profiles"), "{}", verified.story());
}
