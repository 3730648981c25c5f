//! `landfall drill`: does a machine come up from its point? Tried beside the source, and kept as a signed report.
//!
//! A drill is a test failover: the same keeper and supervisor do it (see `failover.rs`). The command begins the job, waits for its end, and shows its report.

mod show;
mod units;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use landfall_keys::RecoveryKey;
use landfall_model::{DrillMeta, Error, ErrorKind, JobKind, JobMeta, MachineName, Result};
use landfall_restore::drill::{self, Drill};
use landfall_restore::failover::{self, Request};
use landfall_vault::{Vault, now};
use serde_json::{Value, json};

use super::failover::{background, log_of, root};
use crate::args::{Common, DrillCommand, DrillRun, JobArg, Work};
use crate::{interrupt, output};

/// Does what the command says.
pub(crate) async fn run(common: &Common, command: DrillCommand) -> Result<ExitCode> {
    match command {
        DrillCommand::Run(args) => return start(common, args).await,
        DrillCommand::List { machine } => show::list(common, machine.as_ref()).await?,
        DrillCommand::Show { job, picture } => show::one(common, job.job, picture.as_deref()).await?,
        DrillCommand::Coverage { days } => show::coverage(common, days).await?,
        DrillCommand::Schedule(args) => units::print(common, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What drills of several machines share.
struct Drills<'a> {
    common: &'a Common,
    vault: Vault,
    recovery: Arc<RecoveryKey>,
    root: PathBuf,
    args: &'a DrillRun,
}

/// How one of them ended.
struct Ended {
    report: DrillMeta,
    interrupted: bool,
}

async fn start(common: &Common, args: DrillRun) -> Result<ExitCode> {
    let given = now();
    if let Some(file) = &args.picture {
        refuse_existing(file)?;
    }
    let recovery = common.recovery()?;
    let vault = common.vault_to_restore(&recovery).await?;
    let root = root(common, args.folder.clone())?;
    failover::sweep(&vault, &root).await?;
    let drills = Drills { common, vault, recovery, root, args: &args };
    let Some(machine) = &args.which.machine else { return drills.all().await };
    let Ended { report, .. } = drills.one(machine.clone(), given).await?;
    output::document(common.json, &show::document(&report), || show::people(&report))?;
    // A drill without a picture says so, and is none the worse for it.
    if let Some(file) = args.picture.as_ref().filter(|_| report.picture.is_some()) {
        save_picture(&drills.vault, &drills.recovery, report.job, file).await?;
    }
    Ok(code(&report))
}

/// The exit code of a drill: 0, or that of what it failed by.
fn code(report: &DrillMeta) -> ExitCode {
    report.failure().map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.exit_code()))
}

impl Drills<'_> {
    /// One machine, to the end.
    async fn one(&self, machine: MachineName, given: landfall_model::Timestamp) -> Result<Ended> {
        let what = format!("drill of {machine}");
        self.of(machine, given).await.map_err(|e| e.context(what))
    }

    async fn of(&self, machine: MachineName, given: landfall_model::Timestamp) -> Result<Ended> {
        let asked = match self.args.app {
            true => drill::newest_application(&self.vault, &machine).await?.to_string(),
            false => self.args.point.clone(),
        };
        let (settings, root) = (self.settings(&machine)?, self.root.clone());
        let (kind, drill) = (JobKind::Test, Some(given));
        let (source_is_lost, proof) = (false, false);
        let lease = drill::LIMIT;
        let request = Request { kind, machine, asked, settings, root, lease, source_is_lost, proof, drill };
        let job = drill::begin(&self.vault, request).await?;
        let (failed, interrupted) = self.supervise(&job).await?;
        match drill::find(&self.vault, job.job).await {
            Ok((Drill::Reported(report), _)) => Ok(Ended { report, interrupted }),
            Ok((Drill::Unreported(_), _)) => {
                let why = format!("it ended without a report: see `landfall jobs show {}`", job.job);
                Err(failed.unwrap_or_else(|| Error::new(ErrorKind::Unavailable, why)))
            }
            Err(error) => Err(failed.unwrap_or(error)),
        }
    }

    /// The target's file of a machine: the one that was named, or, of a folder, the one of the machine's name, or `default.toml`.
    fn settings(&self, machine: &MachineName) -> Result<(String, PathBuf)> {
        let file = match &self.args.target_file {
            None => return Ok((String::new(), PathBuf::from("target"))),
            Some(folder) if folder.is_dir() => {
                let own = folder.join(format!("{machine}.toml"));
                if own.exists() { own } else { folder.join("default.toml") }
            }
            Some(file) => file.clone(),
        };
        Ok((landfall_settings::read(&file)?, file))
    }

    /// Has the job done, to its end; what it failed by, and whether it was interrupted. Then nothing of it is left on this host.
    async fn supervise(&self, job: &JobMeta) -> Result<(Option<Error>, bool)> {
        let work = Work { job: JobArg { job: job.job }, folder: Some(self.root.clone()), target_file: None };
        let mut command = background(self.common, "keep", work)?.1;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_of(job)?).spawn();
        let cannot = |e| Error::with_source(ErrorKind::Unavailable, "cannot start the supervisor", e);
        let mut child = child.map_err(cannot)?;
        let said = child.stdout.take().ok_or_else(|| Error::new(ErrorKind::Bug, "the supervisor has no output"))?;
        let quiet = self.common.quiet || self.common.json;
        let waited = tokio::task::spawn_blocking(move || {
            let failed = hear_out(BufReader::new(said), quiet);
            let _ = child.wait();
            failed
        });
        tokio::pin!(waited);
        let died = |e| Error::with_source(ErrorKind::Bug, "waiting ended early", e);
        tokio::select! {
            failed = &mut waited => Ok((failed.map_err(died)?, false)),
            () = interrupt::first() => {
                output::note("ending the drill ...");
                failover::cleanup(&self.vault, job.job).await?;
                Ok((waited.await.map_err(died)?, true))
            }
        }
    }

    /// Every machine, one after another.
    async fn all(&self) -> Result<ExitCode> {
        let (names, unreadable) = drill::machines(&self.vault).await?;
        let (mut rows, mut documents, mut first) = (Vec::new(), Vec::new(), None);
        let mut add = |machine: String, outcome: std::result::Result<&DrillMeta, &Error>| {
            let failed = match outcome {
                Ok(report) => report.failure(),
                Err(error) => Some(error.kind()),
            };
            first = first.or(failed);
            documents.push(match outcome {
                Ok(report) => show::document(report),
                Err(error) => json!({ "machine": machine, "result": "failed", "drill": null, "why": error.line(), "code": error.kind().exit_code() }),
            });
            rows.push(show::row_of(machine, outcome));
        };
        for (id, error) in &unreadable {
            add(id.to_string(), Err(error));
        }
        let mut left = names.len();
        for name in names {
            left -= 1;
            if !self.common.quiet {
                output::note(&format!("{name} ..."));
            }
            let ended = self.one(name.clone(), now()).await;
            add(name.to_string(), ended.as_ref().map(|e| &e.report));
            if ended.is_ok_and(|e| e.interrupted) {
                break;
            }
        }
        let passed = documents.iter().filter(|d| d["result"] == "passed").count();
        let failed = documents.len() - passed;
        let summary = json!({ "passed": passed, "failed": failed, "not_begun": left, "drills": documents });
        output::document(self.common.json, &summary, || {
            let total = passed + failed + left;
            format!("{}{passed} of {total} machines came up.\n", output::table(&show::with_heading(rows)))
        })?;
        Ok(first.map_or(ExitCode::SUCCESS, |kind: ErrorKind| ExitCode::from(kind.exit_code())))
    }
}

/// Hears the supervisor out until nobody is there any more; what it failed by, if it did.
fn hear_out(said: impl BufRead, quiet: bool) -> Option<Error> {
    let mut failed = None;
    for line in said.lines().map_while(std::result::Result::ok) {
        let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
        match event["event"].as_str() {
            Some("failed") => {
                let code = event["code"].as_u64().and_then(|code| u8::try_from(code).ok());
                let kind = code.and_then(ErrorKind::of_exit_code).unwrap_or(ErrorKind::Bug);
                failed = Some(Error::new(kind, event["error"].as_str().unwrap_or_default()));
            }
            Some("step") if !quiet => output::note(&format!("{} ...", event["name"].as_str().unwrap_or_default())),
            _ => {}
        }
    }
    failed
}

fn refuse_existing(file: &Path) -> Result<()> {
    if file.symlink_metadata().is_ok() {
        let why = format!("{} exists: name a file that does not, for the picture", file.display());
        return Err(Error::new(ErrorKind::Conflict, why));
    }
    Ok(())
}

/// Writes the picture of a drill into a new file, for us alone: it shows a screen of the machine.
///
/// # Errors
/// `NotFound` where the drill has none; `Conflict` where there is such a file.
async fn save_picture(vault: &Vault, recovery: &RecoveryKey, id: landfall_model::JobId, file: &Path) -> Result<()> {
    refuse_existing(file)?;
    let (_, key) = drill::find(vault, id).await?;
    let none = |why: &str| Error::new(ErrorKind::NotFound, format!("drill {id} has no picture: {why}"));
    let key = key.ok_or_else(|| none("it has no report"))?;
    let (report, picture) = vault.drill_picture(key, recovery).await?;
    let picture = picture.ok_or_else(|| none(report.no_picture.as_deref().unwrap_or("none was taken")))?;
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).and_then(|mut f| {
        f.write_all(&picture)?;
        f.sync_all()
    });
    written.map_err(|e| Error::with_source(ErrorKind::of_io(&e), format!("cannot write {}", file.display()), e))
}
