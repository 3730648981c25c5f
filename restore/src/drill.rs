//! Drills: a test failover that is asked something, photographed and ended, with a signed report of how it went.
//!
//! ```text
//!   begin (a test, with the moment of the command in its job) --> supervise, as any test: point -> disks -> machine -> up
//!                                                   picture -> the machine ends -> report -> the folder goes <--'
//! ```
//! There is no pipeline of its own: steps, keeper, lease and cleanup are those of a test. Whoever supervises stores the report, so that it is there although
//! whoever gave the command has gone. See `docs/adr/0023-drills.md`.

mod report;

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use landfall_model::{
    Consistency, DrillMeta, Error, ErrorKind, JobId, JobMeta, MachineId, MachineName, Result, Seq, Timestamp,
};
use landfall_vault::{DrillKey, Vault, now};

use crate::failover::{self, Request};
use crate::kvm::{Network, NicSettings, Settings};
pub(crate) use report::{Seen, store};

/// A drill is over after so long, whatever it does.
pub const LIMIT: Duration = Duration::from_secs(4 * 60 * 60);
/// A drill is taken up within so many milliseconds of its beginning, or never.
const TAKEN_UP_WITHIN_MS: i64 = 10 * 60 * 1000;
/// Reports, or points, read at once.
const READS_IN_FLIGHT: usize = 16;

/// A drill, as the vault knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Drill {
    /// It has a report.
    Reported(DrillMeta),
    /// It has none: it goes on, or whoever did it was killed. Its job says how far it came.
    Unreported(JobMeta),
}

impl Drill {
    /// Its id.
    pub fn job(&self) -> JobId {
        match self {
            Self::Reported(report) => report.job,
            Self::Unreported(job) => job.job,
        }
    }

    /// When its command was given.
    pub fn begun(&self) -> Timestamp {
        match self {
            Self::Reported(report) => report.begun,
            Self::Unreported(job) => job.drill.unwrap_or(job.created),
        }
    }

    fn machine(&self) -> &MachineName {
        match self {
            Self::Reported(report) => &report.machine,
            Self::Unreported(job) => &job.machine,
        }
    }
}

/// Whether a drill can be done with these settings.
///
/// # Errors
/// `Usage` where nothing is asked of the machine, or it would be on a network with others.
pub(crate) fn suits(settings: &Settings) -> Result<()> {
    let why = if settings.probes.is_empty() {
        "a drill asks something of the machine: write probe = \"agent\" (or console:TEXT, tcp:PORT, http:PORT/PATH, command:PROGRAM) in [kvm] of the target's file, and pass --target-file FILE"
    } else if settings
        .network_of_tests()
        .into_iter()
        .chain(settings.nics.iter().filter_map(NicSettings::network_of_tests))
        .any(Network::is_shared)
    {
        "a drill boots in isolation, and the target's file connects a test of the machine to a network with others (a bridge, or user): write test_network = \"isolated\""
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Usage, why))
}

/// Whether nobody will do a drill: its command was killed before anybody took it up. What is being done is locked, and not asked about.
pub(crate) fn is_forsaken(job: &JobMeta) -> bool {
    job.is_drill() && now().millis().saturating_sub(job.created.millis()) > TAKEN_UP_WITHIN_MS
}

/// Makes the job of a drill, and its folder on this host.
///
/// # Errors
/// As for [`failover::begin`]; `Usage` where nothing is asked of the machine, or it would not be isolated.
pub async fn begin(vault: &Vault, request: Request) -> Result<JobMeta> {
    let (text, file) = &request.settings;
    suits(&Settings::parse(text, file)?)?;
    failover::begin(vault, request).await
}

/// The newest point of a machine at which applications were quiesced.
///
/// # Errors
/// `NotFound` where there is none; `Corrupt`, `Unavailable`.
pub async fn newest_application(vault: &Vault, name: &MachineName) -> Result<Seq> {
    let (machine, line) = vault.protected(name).await?;
    let mut points = stream::iter(line.into_iter().rev()).map(|key| machine.point(key)).buffered(READS_IN_FLIGHT);
    while let Some(point) = points.next().await {
        let point = point?;
        if point.meta().consistency == Consistency::Application {
            return Ok(point.seq());
        }
    }
    let why = format!(
        "machine {name} has no point at which applications were quiesced: see `landfall points`, or do the drill without --app"
    );
    Err(Error::new(ErrorKind::NotFound, why))
}

/// The machines that have points; and those whose newest one cannot be read, so that nobody knows their names.
///
/// # Errors
/// `Unavailable`.
pub async fn machines(vault: &Vault) -> Result<(Vec<MachineName>, Vec<(MachineId, Error)>)> {
    let (mut names, mut unreadable) = (Vec::new(), Vec::new());
    for machine in vault.machines().await? {
        let newest = async {
            match machine.line().await?.last() {
                Some(last) => Ok(Some(machine.point(*last).await?.meta().machine.clone())),
                None => Ok::<_, Error>(None),
            }
        };
        match newest.await {
            Ok(name) => names.extend(name),
            Err(error) if error.kind() == ErrorKind::Corrupt => unreadable.push((machine.id(), error)),
            Err(error) => return Err(error),
        }
    }
    names.sort();
    Ok((names, unreadable))
}

/// Reads reports, the newest first, until enough was heard. What cannot be read is told, and left out.
async fn reports(vault: &Vault, keys: Vec<DrillKey>, mut hear: impl FnMut(DrillMeta) -> bool) -> Result<()> {
    let read = |key: DrillKey| async move { (key, vault.drill(key).await) };
    let mut read = stream::iter(keys.into_iter().rev()).map(read).buffered(READS_IN_FLIGHT);
    while let Some((key, report)) = read.next().await {
        match report {
            Ok(report) => {
                if !hear(report) {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => tracing::warn!(%error, drill = %key.job, "the report of a drill cannot be read"),
        }
    }
    Ok(())
}

/// All drills, or those of a machine, the newest first.
///
/// # Errors
/// `Unavailable`.
pub async fn list(vault: &Vault, machine: Option<&MachineName>) -> Result<Vec<Drill>> {
    let (mut found, keys) = (Vec::new(), vault.drills().await?);
    let reported: Vec<JobId> = keys.iter().map(|key| key.job).collect();
    reports(vault, keys, |report| {
        found.push(Drill::Reported(report));
        true
    })
    .await?;
    let others = failover::jobs(vault).await?.into_iter();
    found.extend(others.filter(|j| j.is_drill() && !reported.contains(&j.job)).map(Drill::Unreported));
    found.retain(|drill| machine.is_none_or(|name| drill.machine() == name));
    found.sort_by_key(|drill| std::cmp::Reverse(drill.begun()));
    Ok(found)
}

/// A drill, and where its report stands.
///
/// # Errors
/// `NotFound` where there is none of this id; `Corrupt` where its report is damaged or false; `Unavailable`.
pub async fn find(vault: &Vault, id: JobId) -> Result<(Drill, Option<DrillKey>)> {
    if let Some(key) = vault.drills().await?.into_iter().find(|key| key.job == id) {
        return Ok((Drill::Reported(vault.drill(key).await?), Some(key)));
    }
    match vault.job(id).await {
        Ok(job) if job.meta.is_drill() => Ok((Drill::Unreported(job.meta), None)),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Err(Error::new(ErrorKind::NotFound, format!("there is no drill {id}: see `landfall drill list`"))),
    }
}

/// What drills say of one machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Covered {
    /// When its newest drill that passed was begun.
    pub passed: Option<Timestamp>,
    /// Its newest drill with a report.
    pub newest: Option<DrillMeta>,
}

/// What drills say of each machine.
///
/// # Errors
/// `Unavailable`.
pub async fn coverage(vault: &Vault, names: &[MachineName]) -> Result<BTreeMap<MachineName, Covered>> {
    let mut all: BTreeMap<MachineName, Covered> = names.iter().map(|n| (n.clone(), Covered::default())).collect();
    let mut left = all.len();
    reports(vault, vault.drills().await?, |report| {
        if let Some(one) = all.get_mut(&report.machine) {
            if report.passed() && one.passed.is_none() {
                one.passed = Some(report.begun);
                left -= 1;
            }
            if one.newest.is_none() {
                one.newest = Some(report);
            }
        }
        left > 0
    })
    .await?;
    Ok(all)
}
