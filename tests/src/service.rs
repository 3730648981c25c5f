//! Gateways and agents as processes: each with its own configuration and state in the folder of a [`Site`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::disks;
use crate::landfall::{Disk, Ran, Running, Site, binary, in_small_file_system};

/// A gateway of a site: its folder stays when the process ends.
pub struct GatewayHost<'a> {
    site: &'a Site,
    config: PathBuf,
    running: Option<Running>,
    address: String,
    metrics: String,
    /// What comes before its command line.
    launcher: Vec<String>,
}

/// The binary in a site's environment, behind what launches it.
fn launched(site: &Site, launcher: &[String]) -> Command {
    let state = site.folder().join("state");
    let [program, rest @ ..] = launcher else { return site.command(&state) };
    let mut command = Command::new(program);
    command.args(rest).arg(binary());
    site.environment(command, &state)
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

impl<'a> GatewayHost<'a> {
    /// A gateway that is not running yet; `more` are lines of its configuration.
    pub fn new(site: &'a Site, name: &str, more: &str) -> Self {
        let folder = site.folder().join(name);
        fs::create_dir(&folder).expect("own folder");
        let config = folder.join("gateway.toml");
        let (address, metrics, launcher) = ("127.0.0.1:0".to_owned(), String::new(), Vec::new());
        let mut gateway = Self { site, config, running: None, address, metrics, launcher };
        gateway.configure(more);
        gateway
    }

    /// A gateway that something else launches, to listen at this address.
    pub fn placed(site: &'a Site, name: &str, launcher: &[String], address: &str) -> Self {
        let mut gateway = Self::new(site, name, "");
        (gateway.launcher, gateway.address) = (launcher.to_vec(), address.to_owned());
        gateway
    }

    /// A gateway that listens.
    pub fn started(site: &'a Site, name: &str) -> Self {
        let mut gateway = Self::new(site, name, "");
        gateway.start();
        gateway
    }

    fn configure(&mut self, more: &str) {
        let state = self.config.with_file_name("state");
        let text = format!(
            "[gateway]\nvault = \"{}\"\nsite_key = \"{}\"\nlisten = \"{}\"\nstate_dir = \"{}\"\n{more}\n",
            self.site.url(),
            self.site.site_key().display(),
            self.address,
            state.display(),
        );
        fs::write(&self.config, text).expect("own folder");
    }

    /// Starts it; again on the port that it had, so that agents find it.
    ///
    /// # Panics
    /// If it does not listen.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it so that it dies at a crash point.
    pub fn start_to_die_at(&mut self, crash_point: &str) {
        self.start_with(&[("LANDFALL_CRASH_AT", crash_point)]);
    }

    /// Waits until it died by itself.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_until_dead(&mut self) {
        let mut running = self.running.take().expect("it is running");
        let start = std::time::Instant::now();
        assert!(!running.wait_until(|| start.elapsed() > Duration::from_secs(60)), "it does not get there");
        assert_eq!(running.finish().signal(), Some(9), "it ended in another way");
    }

    /// Starts it with a state directory of its own that is empty, on a small file system. `None` where this machine cannot do that.
    pub fn start_in_small_file_system(&mut self, bytes: u64) -> Option<()> {
        let folder = self.folder().join("state");
        self.start_as(&[], |site, command| {
            let inside = in_small_file_system(&folder, bytes, &command)?;
            Some(site.environment(inside, &site.folder().join("state")))
        })
    }

    fn start_with(&mut self, env: &[(&str, &str)]) {
        let started = self.start_as(env, |_, command| Some(command));
        assert!(started.is_some(), "a command is started as it is");
    }

    fn start_as(&mut self, env: &[(&str, &str)], how: impl FnOnce(&Site, Command) -> Option<Command>) -> Option<()> {
        let text = fs::read_to_string(&self.config).expect("own file");
        let listen = text.lines().find(|l| l.starts_with("listen")).expect("a line");
        fs::write(&self.config, text.replace(listen, &format!("listen = \"{}\"", self.address))).expect("own folder");
        let arguments = ["gateway", "run", "--config", plain(&self.config), "--json"];
        let mut command = launched(self.site, &self.launcher);
        command.args(arguments).envs(env.iter().copied());
        let mut running = Running::start(how(self.site, command)?, &arguments);
        let mut said = None;
        let heard = running_text(&mut running, |text| {
            said = serde_json::from_str::<Value>(text).ok();
            said.is_some()
        });
        assert!(heard, "the gateway ended\n{}", running.finish().story());
        let said = said.expect("heard");
        self.address = said["listening"].as_str().expect("an address").to_owned();
        self.metrics = said["metrics"].as_str().unwrap_or_default().to_owned();
        self.running = Some(running);
        Some(())
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its metrics are.
    pub fn metrics_address(&self) -> &str {
        &self.metrics
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.config.parent().expect("a file in a folder")
    }

    /// Ends it as a power cut does.
    pub fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.kill();
            running.finish();
        }
    }

    /// The process.
    ///
    /// # Panics
    /// If it is not running.
    pub fn process(&self) -> &Running {
        self.running.as_ref().expect("it is running")
    }

    /// Changes its configuration, and has it read anew where it runs.
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.config).expect("own file");
        fs::write(&self.config, change(text)).expect("own folder");
        if let Some(running) = &self.running {
            running.hang_up();
        }
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// If it is not running.
    pub fn stop(&mut self) -> Ran {
        let running = self.running.take().expect("it is running");
        running.interrupt();
        running.finish()
    }

    /// Runs a command beside it.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        self.site.run(&[arguments, &["--config", plain(&self.config), "--json"]].concat())
    }

    /// A token for a machine.
    #[track_caller]
    pub fn token(&self, machine: &str) -> String {
        let made = self.command(&["gateway", "token", "--machine", machine]).json();
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Why it did not take its configuration, once it did not. The command `status` reads that configuration too, and says the same.
    #[track_caller]
    pub fn refusal(&self) -> String {
        for _ in 0..200 {
            let folders = fs::read_dir(self.folder().join("state")).into_iter().flatten().flatten();
            let texts = folders.filter_map(|folder| fs::read_to_string(folder.path().join("status.json")).ok());
            let mut read = texts.filter_map(|text| serde_json::from_str::<Value>(&text).ok());
            if let Some(why) = read.find_map(|s| s["configuration"]["refused"]["why"].as_str().map(str::to_owned)) {
                return why;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the gateway took its configuration");
    }

    /// How it is, once that is so: it is written every second.
    #[track_caller]
    pub fn status_where(&self, so: impl Fn(&Value) -> bool) -> Value {
        let mut status = Value::Null;
        for _ in 0..200 {
            let ran = self.command(&["status"]);
            if ran.code() == Some(0) {
                status = ran.json();
                if so(&status) {
                    return status;
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the gateway's status never was so: {status}");
    }
}

fn running_text(running: &mut Running, mut so: impl FnMut(&str) -> bool) -> bool {
    let stdout = running.stdout_file();
    running.wait_until(|| so(&fs::read_to_string(&stdout).unwrap_or_default()))
}

/// While it lasts, the store of a site whose vault is a folder is not there.
pub struct Outage {
    vault: PathBuf,
    away: PathBuf,
}

impl Outage {
    /// Takes the store away.
    ///
    /// # Panics
    /// If the vault is no folder.
    pub fn of(site: &Site) -> Self {
        let (vault, away) = (site.vault_folder(), site.folder().join("away"));
        fs::write(&away, "no folder").expect("own folder");
        // In one step: whoever finds no folder makes one.
        exchange(&vault, &away);
        Self { vault, away }
    }

    /// Brings it back.
    ///
    /// # Panics
    /// If somebody touched it.
    pub fn end(self) {
        exchange(&self.vault, &self.away);
        fs::remove_file(&self.away).expect("own file");
    }
}

fn exchange(one: &Path, other: &Path) {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).expect("own folder");
}

/// A protected host with an agent.
pub struct AgentHost<'a> {
    site: &'a Site,
    machine: String,
    config: PathBuf,
    /// What comes before its command lines.
    launcher: Vec<String>,
}

impl<'a> AgentHost<'a> {
    /// A host with these disks whose agent knows these gateways; `more` are lines of its section.
    pub fn new(site: &'a Site, machine: &str, gateways: &[&str], disks: &[Disk<'_>], more: &str) -> Self {
        let folder = site.folder().join(format!("host-{machine}"));
        fs::create_dir(&folder).expect("own folder");
        let host = Self { site, machine: machine.to_owned(), config: folder.join("agent.toml"), launcher: Vec::new() };
        host.configure(gateways, disks, more);
        host
    }

    /// Writes its configuration anew.
    pub fn configure(&self, gateways: &[&str], disks: &[Disk<'_>], more: &str) {
        let gateways: Vec<String> = gateways.iter().map(|g| format!("\"{g}\"")).collect();
        let disk = |(name, path): &Disk<'_>| format!("[[disk]]\nname = \"{name}\"\npath = \"{}\"\n", path.display());
        let text = format!(
            "[agent]\nmachine = \"{}\"\ngateways = [{}]\nstate_dir = \"{}\"\ninterval = \"1s\"\n{more}\n{}",
            self.machine,
            gateways.join(", "),
            self.state().display(),
            disks.iter().map(disk).collect::<String>(),
        );
        fs::write(&self.config, text).expect("own folder");
    }

    /// From now on something else launches its agent.
    pub fn launch_by(&mut self, launcher: &[String]) {
        self.launcher = launcher.to_vec();
    }

    fn launch(&self, arguments: &[&str]) -> Running {
        let mut command = launched(self.site, &self.launcher);
        command.args(arguments);
        Running::start(command, arguments)
    }

    /// What the agent remembers.
    pub fn state(&self) -> PathBuf {
        self.config.with_file_name("state")
    }

    /// Tries to enrol.
    pub fn try_enroll(&self, gateway: &str, token: &str) -> Ran {
        let config = plain(&self.config);
        self.launch(&["agent", "enroll", "--gateway", gateway, "--token", token, "--config", config, "--json"]).finish()
    }

    /// Enrols with a new token of a gateway.
    #[track_caller]
    pub fn enroll(&self, gateway: &GatewayHost<'_>) -> Value {
        self.try_enroll(gateway.address(), &gateway.token(&self.machine)).json()
    }

    /// How it says that its disks will be captured.
    pub fn check(&self) -> Ran {
        self.launch(&["agent", "check", "--config", plain(&self.config), "--json"]).finish()
    }

    /// Changes its configuration.
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(&self.config).expect("own file");
        fs::write(&self.config, change(text)).expect("own folder");
    }

    /// Tries to ship one cycle.
    pub fn try_ship(&self) -> Ran {
        self.launch(&["agent", "run", "--once", "--config", plain(&self.config)]).finish()
    }

    /// Ships one cycle.
    #[track_caller]
    pub fn ship(&self) {
        let ran = self.try_ship();
        assert_eq!(ran.code(), Some(0), "{}", ran.story());
    }

    /// Ships cycles until one is taken: after a gateway was lost, another first waits until its heartbeat is dead.
    #[track_caller]
    pub fn ship_until_taken(&self) {
        let mut last = self.try_ship();
        for _ in 0..60 {
            if last.code() == Some(0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
            last = self.try_ship();
        }
        panic!("no gateway takes a cycle\n{}", last.story());
    }

    /// Starts the agent as a service.
    pub fn start(&self) -> Running {
        self.launch(&["agent", "run", "--config", plain(&self.config)])
    }

    /// Waits until the vault has so many points of the machine.
    #[track_caller]
    pub fn wait_for_points(&self, count: usize) {
        for _ in 0..1200 {
            if self.site.point_count(&self.machine) >= count {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{} has {} points and not {count}", self.machine, self.site.point_count(&self.machine));
    }
}

/// A machine with one disk of random bytes, enrolled at a gateway; `more` are lines of its agent's section.
pub fn enrolled<'a>(
    site: &'a Site,
    gateway: &GatewayHost<'_>,
    machine: &str,
    size: u64,
    more: &str,
) -> (PathBuf, AgentHost<'a>) {
    let disk = site.disk(&format!("{machine}.img"));
    disks::random(&disk, size, 1);
    let host = AgentHost::new(site, machine, &[gateway.address()], &[("root", disk.as_path())], more);
    host.enroll(gateway);
    (disk, host)
}

/// The machine `web`, enrolled at a gateway.
pub fn protected<'a>(site: &'a Site, gateway: &GatewayHost<'_>, size: u64) -> (PathBuf, AgentHost<'a>) {
    enrolled(site, gateway, "web", size, "")
}
