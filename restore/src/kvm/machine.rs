//! A machine that runs: started, found again, watched, moved off the vault, ended.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use landfall_model::{Error, ErrorKind, Result};
use landfall_qmp::{Qmp, QmpError};
use landfall_vault::crash_point;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::command::{Host, arguments, is_uefi, node, vault_node};
use super::settings::Inject;
use super::{Files, Plan, addresses, disks, network, nics};

/// How long QEMU may take to open its monitor, and to answer a command.
const MONITOR_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const QUIT_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);
/// So much of the end of a log is shown, or looked at.
const TAIL_BYTES: u64 = 4 * 1024 * 1024;
/// Where distributions have the firmware of UEFI machines: code, and the variables that a machine begins with.
const FIRMWARE: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
];

impl Host {
    /// Whether this host runs guests by KVM: the device alone does not say so, where the processor lends no virtualisation to us.
    pub(crate) fn look() -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let lends = flags
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        Self { kvm: device && (lends || std::env::consts::ARCH == "aarch64") }
    }
}

/// A machine that runs.
pub(crate) struct Running {
    qmp: Arc<Mutex<Qmp>>,
}

/// The end of a log.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        use std::io::{Seek, SeekFrom};
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

pub(super) fn blocking<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.map_err(|e| Error::with_source(ErrorKind::Bug, "a task of a machine died", e))?
}

impl Running {
    /// The machine of this folder, where one runs already.
    pub(crate) async fn find_at(files: &Files) -> Option<Self> {
        let path = files.qmp();
        let connected = tokio::task::spawn_blocking(move || Qmp::connect(&path, MONITOR_LIMIT)).await.ok()?;
        Some(Self { qmp: Arc::new(Mutex::new(connected.ok()?)) })
    }

    /// Starts the machine. `stub`: the beginning of a command line that has QEMU end with us; to be called on the thread that lives as long as we do.
    ///
    /// # Errors
    /// `Unsupported` where QEMU or its firmware is missing; what QEMU says where it does not start.
    pub(crate) async fn start(plan: &Plan, stub: Option<&[String]>) -> Result<Self> {
        let (for_disks, mut needs_vault) = (plan.clone(), Vec::new());
        let looked = tokio::task::spawn_blocking(move || {
            for disk in &for_disks.point.disks {
                needs_vault.push(!disk.excluded && disks::needs_vault(&for_disks.files.disk(&disk.name))?);
            }
            Ok(needs_vault)
        });
        let needs_vault = blocking(looked.await)?;
        let firmware = if is_uefi(plan) { Some(firmware(plan)?) } else { None };
        let for_network = plan.clone();
        blocking(tokio::task::spawn_blocking(move || network::make(&for_network)).await)?;
        let mut arguments = arguments(plan, Host::look(), &needs_vault, firmware.as_deref());
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(plan.files.log());
        let log = log.map_err(|e| Error::with_source(ErrorKind::of_io(&e), "cannot make the log of QEMU", e))?;
        let qemu = plan.settings.qemu.display().to_string();
        let mut command = match stub {
            Some([program, rest @ ..]) => {
                let mut command = Command::new(program);
                command.args(rest).arg(&qemu);
                command
            }
            _ => {
                arguments.push("-daemonize".to_owned());
                Command::new(&qemu)
            }
        };
        command.args(&arguments).stdin(Stdio::null()).stderr(
            log.try_clone().map_err(|e| Error::with_source(ErrorKind::of_io(&e), "cannot share the log of QEMU", e))?,
        );
        command.stdout(log);
        tracing::info!(?command, "starting the machine");
        let mut child = command.spawn().map_err(|e| {
            let why = format!("cannot start {qemu}: install QEMU, or set qemu = in the target's file");
            Error::with_source(ErrorKind::Unsupported, why, e)
        })?;
        let daemon = stub.is_none();
        let deadline = Instant::now() + MONITOR_LIMIT;
        loop {
            let ended =
                child.try_wait().map_err(|e| Error::with_source(ErrorKind::Unavailable, "cannot wait for QEMU", e))?;
            if let Some(status) = ended.filter(|status| !(daemon && status.success())) {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("QEMU ended with {status}: {}", last_words(plan)),
                ));
            }
            let ready = !daemon || ended.is_some();
            if ready && let Some(found) = Self::find_at(&plan.files).await {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("QEMU does not open its monitor: {}", last_words(plan)),
                ));
            }
            sleep(POLL).await;
        }
    }

    pub(super) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> std::result::Result<Value, QmpError> {
        let qmp = self.qmp.clone();
        let done = tokio::task::spawn_blocking(move || {
            qmp.lock().unwrap_or_else(PoisonError::into_inner).execute(command, arguments)
        });
        done.await.unwrap_or_else(|_| Err(QmpError::Malformed { path: PathBuf::new(), why: "the task died" }))
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// `Unavailable` where it does not, and why.
    pub(crate) async fn check(&self) -> Result<()> {
        let status = self.execute("query-status", Value::Null).await?;
        match status["status"].as_str() {
            // One that was stopped for want of space, or has crashed within, is there, with all that it has written.
            Some(
                "running" | "prelaunch" | "inmigrate" | "paused" | "suspended" | "io-error" | "guest-panicked"
                | "watchdog",
            ) => Ok(()),
            other => {
                let why = format!("the machine does not run: QEMU says {:?}", other.unwrap_or("nothing"));
                Err(Error::new(ErrorKind::Unavailable, why))
            }
        }
    }

    /// Lets it go on where QEMU stopped it because a disk had no space.
    ///
    /// # Errors
    /// Where QEMU does not answer.
    pub(crate) async fn go_on(&self) -> Result<()> {
        let status = self.execute("query-status", Value::Null).await?;
        if status["status"] == "io-error" {
            tracing::warn!("the machine was stopped by an error of a disk: it goes on");
            self.execute("cont", Value::Null).await?;
        }
        Ok(())
    }

    /// Gives the guest its addresses, where the target's file has some; what was done, for people.
    ///
    /// # Errors
    /// Naming the interface: those of [`addresses::set`]; `Unavailable` where its agent is to do it and does not answer.
    pub(crate) async fn set_addresses(&self, plan: &Plan) -> Result<Option<String>> {
        let by_seed = "on the seed disk, for cloud-init: nobody has looked whether the guest took them";
        match plan.settings.inject {
            Inject::Seed => return Ok(Some(by_seed.to_owned())),
            Inject::None => return Ok(Some("not injected, as the target's file says".to_owned())),
            Inject::Auto | Inject::Agent => {}
        }
        let (socket, nics, limit) = (plan.files.agent(), nics::wired(plan), plan.settings.probe_limit);
        let set = blocking(tokio::task::spawn_blocking(move || addresses::set(&socket, &nics, limit)).await)?;
        match set {
            Some(said) => Ok(Some(said)),
            None if plan.settings.inject == Inject::Auto => Ok(Some(format!("{by_seed}, no agent answered"))),
            None => {
                let why = format!("the guest's agent did not answer within {} s", limit.as_secs());
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("{why}: install qemu-guest-agent in it, or set inject = \"seed\""),
                ))
            }
        }
    }

    /// Makes a disk durable, with what QEMU itself keeps of it in memory. Only its monitor for people has that.
    async fn flush(&self, place: usize) -> Result<()> {
        let line = format!("qemu-io {} flush", node(place));
        let said = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        match said.as_str().map(str::trim) {
            Some("") => Ok(()),
            other => {
                let why =
                    format!("a disk of the machine cannot be made durable: QEMU says {:?}", other.unwrap_or("nothing"));
                Err(Error::new(ErrorKind::Unavailable, why))
            }
        }
    }

    /// Copies what of a disk is still only in the vault, while the machine runs; `told`: bytes done, and of how many.
    ///
    /// # Errors
    /// `NoSpace`, `Unavailable`: what is not copied stays readable from the vault, and calling again goes on.
    pub(crate) async fn hydrate(&self, plan: &Plan, place: usize, mut told: impl FnMut(u64, u64)) -> Result<()> {
        let Some(disk) = plan.point.disks.get(place).filter(|d| !d.excluded) else { return Ok(()) };
        let path = plan.files.disk(&disk.name);
        let still = || {
            let path = path.clone();
            async move { blocking(tokio::task::spawn_blocking(move || disks::needs_vault(&path)).await) }
        };
        if !still().await? {
            return Ok(());
        }
        let job = format!("hydrate-{}", node(place));
        let stream = json!({ "job-id": job, "device": node(place), "auto-finalize": false });
        match self.execute("block-stream", stream).await {
            // It goes on from an earlier start of ours.
            Err(error) if error.desc().is_some_and(|d| d.contains("already exists") || d.contains("in use")) => {}
            started => drop(started?),
        }
        let mut why = None;
        loop {
            let blocks = self.execute("query-block-jobs", Value::Null).await?;
            let copying = blocks.as_array().and_then(|jobs| jobs.iter().find(|j| j["device"] == job.as_str()));
            if let Some(status) = copying.and_then(|c| c["io-status"].as_str()).filter(|status| *status != "ok") {
                why = Some(status.to_owned());
            }
            let jobs = self.execute("query-jobs", Value::Null).await?;
            let Some(found) = jobs.as_array().and_then(|jobs| jobs.iter().find(|j| j["id"] == job.as_str())) else {
                break;
            };
            told(found["current-progress"].as_u64().unwrap_or(0), found["total-progress"].as_u64().unwrap_or(0));
            if found["status"] == "pending" {
                // Everything is copied. Made durable before the overlay forgets where it came from: a host that crashes in between would have neither.
                self.flush(place).await?;
                crash_point("failover.copied");
                self.execute("job-finalize", json!({ "id": job })).await?;
            }
            sleep(POLL).await;
        }
        self.flush(place).await?;
        if still().await? {
            let (kind, why) = match why.as_deref() {
                Some("nospace") => (ErrorKind::NoSpace, "there is no space left for it"),
                _ => (ErrorKind::Unavailable, "QEMU could not copy all of it: is the store there?"),
            };
            return Err(Error::new(kind, format!("disk {} is not whole on this host: {why}", disk.name)));
        }
        // Nobody stands on it any more, and it keeps its connection to us as long as it is there.
        if let Err(error) = self.execute("blockdev-del", json!({ "node-name": vault_node(place) })).await {
            tracing::debug!(%error, "the vault's node of a disk that is here");
        }
        Ok(())
    }
}

/// Ends the machine of a folder at once, as a power cut does, and waits until it has ended. QEMU itself is not asked: it would wait for the vault's
/// disks, which nobody may serve any more.
///
/// # Errors
/// `Unavailable` where it does not end.
pub(crate) async fn end(files: &Files) -> Result<()> {
    let deadline = Instant::now() + QUIT_LIMIT;
    while let Some(pid) = process(files) {
        if Instant::now() > deadline {
            let why = format!("the machine does not end: process {pid} is QEMU of {}", files.qmp().display());
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended in between.
            let _ = kill_process(pid, Signal::KILL);
        }
        sleep(POLL / 4).await;
    }
    Ok(())
}

/// The process of a folder's QEMU, while it runs: the number that it wrote down, if the process of that number is it.
fn process(files: &Files) -> Option<i32> {
    let pid: i32 = fs::read_to_string(files.pid()).ok()?.trim().parse().ok()?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = files.qmp();
    let ours = ours.as_os_str().as_encoded_bytes();
    // One that has ended, and that nobody has waited for, has no command line.
    line.windows(ours.len()).any(|part| part == ours).then_some(pid)
}

/// The last that QEMU said.
fn last_words(plan: &Plan) -> String {
    let log = tail(&plan.files.log());
    let lines: Vec<&str> = log.lines().rev().take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
}

/// The firmware's code; its variables are copied once, and stay with the machine.
fn firmware(plan: &Plan) -> Result<String> {
    let found = FIRMWARE.iter().find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    let (code, variables) = found.ok_or_else(|| {
        let why = "the machine boots by UEFI, and this host has no firmware for it: install the package ovmf";
        Error::new(ErrorKind::Unsupported, why)
    })?;
    let ours = plan.files.variables();
    if !ours.exists() {
        let fail = |e| Error::with_source(ErrorKind::of_io(&e), "cannot copy the variables of the firmware", e);
        fs::copy(variables, &ours).map_err(fail)?;
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    }
    Ok((*code).to_owned())
}
