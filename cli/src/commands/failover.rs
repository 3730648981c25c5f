//! `landfall failover`: a machine in the place of another, from a point.
//!
//! ```text
//!   failover test       --> keep --> supervise --> become QEMU     all of it ends with the supervisor
//!   failover unplanned  ----------> supervise --> QEMU             which outlives everybody
//! ```
//! The command itself only begins the job, and waits until the machine is up.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use landfall_model::{Error, ErrorKind, JobKind, JobMeta, Result};
use landfall_restore::failover::{self, Request, Supervision, Told};
use landfall_vault::Vault;
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};
use serde_json::{Value, json};

use super::jobs;
use crate::args::{Common, Failover, FailoverCommand, JobArg, Work};
use crate::{interrupt, output};

/// Does what the command says.
pub(crate) async fn run(common: &Common, command: FailoverCommand) -> Result<ExitCode> {
    let shown = match command {
        FailoverCommand::Test(args) => return start(common, JobKind::Test, args, |_| ()).await,
        FailoverCommand::Unplanned { args, source_is_lost } => {
            return start(common, JobKind::Unplanned, args, |r| r.source_is_lost = source_is_lost).await;
        }
        FailoverCommand::Planned { args, no_proof } => {
            if args.point != "latest" {
                let why =
                    "a planned failover goes to the point that is taken when the source was stopped: leave --point out";
                return Err(Error::new(ErrorKind::Usage, why));
            }
            return start(common, JobKind::Planned, args, |r| r.proof = !no_proof).await;
        }
        FailoverCommand::Supervise(work) => return supervise(common, work).await,
        FailoverCommand::Keep(work) => return keep(common, work).await,
        FailoverCommand::Become { parent, command } => return Err(become_it(parent, &command)),
        FailoverCommand::Commit(job) => failover::commit(&common.any_vault().await?, job.job).await?,
        FailoverCommand::Cleanup(job) => failover::cleanup(&common.any_vault().await?, job.job).await?,
        FailoverCommand::Cancel { job, apply: true, host_is_lost, source_is_lost } => {
            let told = |text: &str| {
                if !common.quiet {
                    output::note(text);
                }
            };
            failover::cancel(&common.any_vault().await?, job.job, host_is_lost, source_is_lost, told).await?
        }
        FailoverCommand::Cancel { job, apply: false, .. } => {
            let meta = common.any_vault().await?.job(job.job).await?.meta;
            let text = format!(
                "Would end machine {} on host {}, remove its disks in {} with all that was written to them since point {}, and let gateways write it again.\n\
                 Pass --apply to do it.\n",
                meta.machine,
                meta.host,
                meta.folder,
                meta.point.map_or_else(|| meta.asked.clone(), |p| p.seq.to_string()),
            );
            let document = json!({ "job": meta.job, "would_remove": meta.folder, "applied": false });
            output::document(common.json, &document, || text)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    output::document(common.json, &jobs::document(&shown), || jobs::people(&shown))?;
    Ok(ExitCode::SUCCESS)
}

/// Folders of jobs are made below this one.
pub(super) fn root(common: &Common, folder: Option<PathBuf>) -> Result<PathBuf> {
    let root = folder.map_or_else(|| common.state_root().map(|root| root.join("failover")), Ok)?;
    std::path::absolute(&root)
        .map_err(|e| Error::with_source(ErrorKind::Usage, format!("{}: no path", root.display()), e))
}

async fn start(common: &Common, kind: JobKind, args: Failover, more: impl FnOnce(&mut Request)) -> Result<ExitCode> {
    let recovery = common.recovery()?;
    let vault = common.vault_to_restore(&recovery).await?;
    let settings = match &args.target_file {
        Some(file) => (landfall_settings::read(file)?, file.clone()),
        None => (String::new(), PathBuf::from("target")),
    };
    let root = root(common, args.folder)?;
    failover::sweep(&vault, &root).await?;
    let machine = args.machine.machine;
    let what = format!("failover of {machine}");
    let mut request = Request {
        kind,
        machine,
        asked: args.point,
        settings,
        root: root.clone(),
        lease: args.lease,
        source_is_lost: false,
        proof: false,
        drill: None,
    };
    more(&mut request);
    let meta = failover::begin(&vault, request).await.map_err(|e| e.context(what))?;
    let work = Work { job: JobArg { job: meta.job }, folder: Some(root), target_file: None };
    supervise_until_up(common, &vault, &meta, work).await
}

/// Has a job done in the background, and waits until its machine is up.
///
/// # Errors
/// Those of the steps.
pub(crate) async fn supervise_until_up(common: &Common, vault: &Vault, meta: &JobMeta, work: Work) -> Result<ExitCode> {
    let id = meta.job;
    let verb = if meta.kind == JobKind::Test { "keep" } else { "supervise" };
    let mut command = background(common, verb, work)?.1;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_of(meta)?).spawn();
    let mut child = child.map_err(|e| Error::with_source(ErrorKind::Unavailable, "cannot start the supervisor", e))?;
    let said = child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Bug, "the supervisor has no output"))?;
    let quiet = common.quiet || common.json;
    let waited = tokio::task::spawn_blocking(move || wait_until_up(BufReader::new(said), quiet));
    let waited = async { waited.await.map_err(|e| Error::with_source(ErrorKind::Bug, "waiting ended early", e))? };
    let goes_on = format!("job {id} goes on without: see `landfall jobs show {id}`");
    let outcome = interrupt::or_interrupted(waited, &goes_on).await;
    let shown = vault.job(id).await?.meta;
    match outcome {
        Ok(()) => {
            output::document(common.json, &jobs::document(&shown), || jobs::people(&shown))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.context(format!("job {id}"))),
    }
}

/// What a job's supervisor logs goes into its folder.
pub(super) fn log_of(meta: &JobMeta) -> Result<Stdio> {
    let log = |folder: PathBuf| {
        OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join("supervisor.log")).ok()
    };
    Ok(failover::folder(meta)?.and_then(log).map_or_else(Stdio::null, Stdio::from))
}

/// Hears the supervisor out until it says how it went.
fn wait_until_up(said: impl BufRead, quiet: bool) -> Result<()> {
    for line in said.lines().map_while(std::result::Result::ok) {
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        match event["event"].as_str() {
            Some("up") => return Ok(()),
            Some("failed") => {
                let code = event["code"].as_u64().and_then(|code| u8::try_from(code).ok());
                let kind = code.and_then(ErrorKind::of_exit_code).unwrap_or(ErrorKind::Bug);
                return Err(Error::new(kind, event["error"].as_str().unwrap_or_default()));
            }
            Some("step") if !quiet => output::note(&format!("{} ...", event["name"].as_str().unwrap_or_default())),
            _ => {}
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "whoever worked on it ended without a word: `landfall jobs resume` goes on"))
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|e| Error::with_source(ErrorKind::Unavailable, "cannot find this program", e))
}

/// Another process of ours, for a job; and the folder that holds those of jobs.
pub(super) fn background(common: &Common, verb: &str, work: Work) -> Result<(PathBuf, Command)> {
    let root = root(common, work.folder)?;
    let mut command = Command::new(own_program()?);
    command.args(["failover", verb, &work.job.job.to_string()]).arg("--folder").arg(&root).args(own_options(common));
    if let Some(file) = work.target_file {
        command.arg("--target-file").arg(std::path::absolute(&file).unwrap_or(file));
    }
    Ok((root, command))
}

/// The common options, for another process of ours. Secrets stand in files.
fn own_options(common: &Common) -> Vec<std::ffi::OsString> {
    let mut out = Vec::new();
    let mut add = |name: &str, value: Option<std::ffi::OsString>| {
        if let Some(value) = value {
            out.extend([name.into(), value]);
        }
    };
    let path = |path: &Option<PathBuf>| {
        path.as_deref().map(|p| std::path::absolute(p).unwrap_or_else(|_| p.to_owned()).into_os_string())
    };
    add("--vault", common.vault.clone().map(Into::into));
    add("--recovery-key", path(&common.recovery_key));
    add("--passphrase-file", path(&common.passphrase_file));
    add("--site-key", path(&common.site_key));
    add("--state-dir", path(&common.state_dir));
    out
}

/// Does a job. Said on stdout, a line of JSON each: steps, then how it went.
async fn supervise(common: &Common, work: Work) -> Result<ExitCode> {
    let stop = interrupt::first();
    // Not of the terminal that began it. Whoever is the first of a group is alone already.
    let _ = setsid();
    let recovery = common.recovery()?;
    let vault = common.vault_to_restore(&recovery).await?;
    let program = own_program()?.display().to_string();
    let parent = std::process::id().to_string();
    let stub = [&program, "failover", "become", "--parent", &parent, "--"].map(str::to_owned).to_vec();
    let mut said = false;
    let supervision = Supervision {
        vault: &vault,
        recovery,
        root: root(common, work.folder)?,
        settings: work.target_file.as_deref().map(landfall_settings::read).transpose()?,
        stub,
        told: Box::new(|told| {
            let event = match told {
                Told::Step(name) => json!({ "event": "step", "name": name }),
                Told::Up => json!({ "event": "up" }),
                Told::Failed(error) => failed(error),
            };
            said |= event["event"] != "step";
            // The one who waited has gone: nobody need be told.
            let _ = output::text(&format!("{event}\n"));
        }),
    };
    let outcome = supervision.run(work.job.job, stop).await;
    if let Err(error) = &outcome
        && !said
    {
        let _ = output::text(&format!("{}\n", failed(error)));
    }
    outcome.map(|()| ExitCode::SUCCESS)
}

fn failed(error: &Error) -> Value {
    json!({ "event": "failed", "error": error.line(), "code": error.kind().exit_code() })
}

/// Has a test supervised; when its supervisor was killed, nothing of the test is left either.
async fn keep(common: &Common, work: Work) -> Result<ExitCode> {
    let _ = setsid();
    let id = work.job.job;
    let (root, mut command) = background(common, "supervise", work)?;
    let child = command.stdin(Stdio::null()).spawn();
    let mut child = child.map_err(|e| Error::with_source(ErrorKind::Unavailable, "cannot start the supervisor", e))?;
    // Asked to end, it asks on.
    let stop = interrupt::first();
    let pid = rustix::process::Pid::from_child(&child);
    tokio::spawn(async move {
        stop.await;
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    });
    let ended = tokio::task::spawn_blocking(move || child.wait()).await;
    let orderly = matches!(&ended, Ok(Ok(status)) if status.success());
    if !orderly {
        failover::tidy(&root, id)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes another program. Returns only where that fails.
fn become_it(parent: u32, command: &[std::ffi::OsString]) -> Error {
    let Some((program, arguments)) = command.split_first() else {
        return Error::new(ErrorKind::Usage, "no program is named");
    };
    let bound = set_parent_process_death_signal(Some(Signal::KILL));
    let ours = getppid().is_some_and(|pid| u32::try_from(pid.as_raw_nonzero().get()) == Ok(parent));
    if let Err(error) = bound {
        return Error::with_source(ErrorKind::Unsupported, "cannot bind a process to another", error);
    }
    if !ours {
        return Error::new(ErrorKind::Unavailable, "the one who started it has gone");
    }
    let error = Command::new(program).args(arguments).exec();
    let why = format!("cannot start {}: install QEMU, or set qemu = in the target's file", program.display());
    Error::with_source(ErrorKind::Unsupported, why, error)
}
