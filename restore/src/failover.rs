//! Failover: a machine in the place of another, as a job that stands in the vault.
//!
//! ```text
//!   begin --> supervise: planned:   stop -> point -> proof -> fence -.
//!                        unplanned: (stop) -> fence -> point --------+-> disks -> machine -> up -> hydrate --> (commit | cancel)
//!                        test:      point ---------------------------'                       '-> until the lease ends, or cleanup
//! ```
//! Whoever supervises may be killed at any moment: each step finds out for itself what is done already, and is written down when it is done. See
//! `docs/adr/0019-serve-and-failover.md`.

mod place;
mod recorder;
mod source;
mod supervisor;

use std::path::{Path, PathBuf};
use std::time::Duration;

use landfall_model::{Error, ErrorKind, JobId, JobKind, JobMeta, JobState, MachineName, Result, Timestamp};
use landfall_vault::{Job, Selector, Vault, now};

use crate::drill;
use crate::kvm::{self, Files, Plan, Settings};
use place::Place;
use recorder::{Recorder, in_the_way};
pub use supervisor::{Supervision, Told};

/// How long whoever supervises may take to end in order.
const END_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A failover that is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is done.
    pub kind: JobKind,
    /// To which machine.
    pub machine: MachineName,
    /// The point, as text that parses as a [`Selector`].
    pub asked: String,
    /// The target's file, and its name for errors.
    pub settings: (String, PathBuf),
    /// The job's folder is made below this one.
    pub root: PathBuf,
    /// A test ends after so long.
    pub lease: Duration,
    /// The source is not asked to stop.
    pub source_is_lost: bool,
    /// Of a planned one: digests of the source's disks are compared with the point's.
    pub proof: bool,
    /// Of a drill: when its command was given.
    pub drill: Option<Timestamp>,
}

/// What this host calls itself.
fn host() -> String {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (name, id) = (text("/proc/sys/kernel/hostname"), text("/etc/machine-id"));
    // Copies of an image have one name.
    id.get(..8).map_or_else(|| name.clone(), |id| format!("{name}/{id}"))
}

/// All jobs, the newest first. What cannot be read is told, and left out.
///
/// # Errors
/// `Unavailable`.
pub async fn jobs(vault: &Vault) -> Result<Vec<JobMeta>> {
    let mut found = Vec::new();
    for id in vault.jobs().await? {
        match vault.job(id).await {
            Ok(job) => found.push(job.meta),
            Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
            Err(error) => tracing::warn!(%error, job = %id, "a job cannot be read"),
        }
    }
    found.sort_by_key(|meta| std::cmp::Reverse(meta.created));
    Ok(found)
}

/// Makes a job, and its folder on this host.
///
/// # Errors
/// `Usage` where the settings are wrong, `NotFound` where there is no such machine or point, `Conflict` where the machine is failed over already.
pub async fn begin(vault: &Vault, request: Request) -> Result<JobMeta> {
    let Request { kind, machine, asked, settings: (text, file), root, lease, source_is_lost, proof, drill } = request;
    let settings = Settings::parse(&text, &file)?;
    settings.reached_by_probes(kind == JobKind::Test)?;
    if kind.is_real() {
        let for_real = settings.clone().with_network()?;
        let ready = tokio::task::spawn_blocking(move || kvm::ready(&for_real)).await;
        ready.map_err(|e| Error::with_source(ErrorKind::Bug, "looking at this host ended early", e))??;
        let others = jobs(vault).await?;
        let other = others.iter().find(|j| j.kind.is_real() && j.machine == machine && !j.state.is_over());
        if let Some(other) = other {
            return Err(in_the_way(other));
        }
    }
    let (log, line) = vault.protected(&machine).await?;
    let selector: Selector = asked.parse()?;
    let point = log.select(&line, selector).await.map_err(|e| e.context(format!("machine {machine}")))?;
    // Before a source is stopped for a file that names what the machine has not.
    settings.fitting(log.point(point).await?.meta())?;
    let job = JobId::from_bytes(landfall_vault::random()?);
    let place = Place::make(&root, job)?;
    place.keep_settings(&text)?;
    let folder = place.folder().display().to_string();
    let mut meta = JobMeta::begun(job, kind, machine, &asked, (&host(), &folder), now());
    (meta.source.lost, meta.source.proof) = (source_is_lost, proof);
    meta.drill = drill;
    if kind == JobKind::Test {
        let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        meta.lease_until = Some(Timestamp::from_millis(meta.created.millis().saturating_add(lease_ms)));
    }
    match vault.put_job(meta, None).await {
        Ok(job) => Ok(job.meta),
        Err(error) => {
            place.remove()?;
            Err(error)
        }
    }
}

/// The folder of a job on this host, if it is there.
///
/// # Errors
/// `Conflict` where its record names something else.
pub fn folder(meta: &JobMeta) -> Result<Option<PathBuf>> {
    Ok(Place::of_job(Path::new(&meta.folder), meta.job)?.map(|place| place.folder().to_owned()))
}

/// Removes the folder of a job below a root, where its supervisor was killed. Does nothing while somebody works there.
///
/// # Errors
/// What the host says.
pub fn tidy(root: &Path, job: JobId) -> Result<()> {
    match Place::of_job(&root.join(job.to_string()), job)? {
        Some(place) => match place.take()? {
            Some(_lock) => place.remove(),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

/// Ends the tests of this host whose lease has ended, or whose supervisor was killed.
///
/// # Errors
/// `Unavailable`; what the host says.
pub async fn sweep(vault: &Vault, root: &Path) -> Result<()> {
    let folders = std::fs::read_dir(root).into_iter().flatten().flatten();
    for id in folders.filter_map(|entry| entry.file_name().to_str()?.parse::<JobId>().ok()) {
        let Ok(job) = vault.job(id).await else { continue };
        let begun = job.meta.steps.iter().any(|s| s.name == supervisor::MACHINE);
        let abandoned = job.meta.kind == JobKind::Test
            && (job.meta.state.is_over()
                || begun
                || drill::is_forsaken(&job.meta)
                || job.meta.lease_until.is_some_and(|until| until < now()));
        let Some(place) = Place::of_job(&root.join(id.to_string()), id)?.filter(|_| abandoned) else { continue };
        if job.meta.host == host() && Path::new(&job.meta.folder) == place.folder() && place.take()?.is_some() {
            tracing::info!(job = %id, "a test that nobody supervises any more is cleaned up");
            // What is left of a test keeps nobody from a failover.
            if let Err(error) = clean(vault, job).await {
                tracing::warn!(%error, job = %id, "something of a test is left");
            }
        }
    }
    Ok(())
}

/// Ends whatever of a job runs on this host, and removes its folder.
async fn end_here(meta: &JobMeta) -> Result<()> {
    let Some(place) = Place::of_job(Path::new(&meta.folder), meta.job)? else { return Ok(()) };
    let deadline = tokio::time::Instant::now() + END_LIMIT;
    let _lock = loop {
        if !place.exists() {
            return Ok(());
        }
        if let Some(lock) = place.ask_to_end()? {
            break lock;
        }
        if tokio::time::Instant::now() > deadline {
            let why = format!("job {} does not end: its process works on in {}", meta.job, place.folder().display());
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        tokio::time::sleep(POLL).await;
    };
    kvm::end(&Files::of(place.folder())).await?;
    place.remove()
}

async fn clean(vault: &Vault, job: Job) -> Result<JobMeta> {
    end_here(&job.meta).await?;
    // Whoever supervised it may have written that it is over.
    let job = vault.job(job.meta.job).await?;
    let mut recorder = Recorder::new(vault.clone(), job);
    if !recorder.meta().state.is_over() {
        let changed = recorder.change(|meta| meta.state = JobState::Cleaned).await;
        // It removes the folder, and then writes: it may do so in this moment.
        if changed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Conflict) {
            let newest = vault.job(recorder.meta().job).await?.meta;
            return if newest.state.is_over() { Ok(newest) } else { changed.map(|()| newest) };
        }
        changed?;
    }
    Ok(recorder.meta().clone())
}

fn must_be(meta: &JobMeta, real: bool, what: &str) -> Result<()> {
    if meta.kind.is_real() != real {
        let is = if real {
            "a test: end it with `landfall failover cleanup`"
        } else {
            "a failover: end it with `landfall failover commit` or `landfall failover cancel`"
        };
        return Err(Error::new(ErrorKind::Usage, format!("job {} cannot be {what}: it is {is}", meta.job)));
    }
    Ok(())
}

fn must_be_here(meta: &JobMeta) -> Result<()> {
    let here = host();
    if meta.host != here {
        let why = format!(
            "job {} runs on host {}, this is {here}: run the command there, or pass --host-is-lost to `failover cancel` where that host is gone for good",
            meta.job, meta.host
        );
        return Err(Error::new(ErrorKind::Conflict, why));
    }
    Ok(())
}

/// Ends a test: nothing of it is left on this host.
///
/// # Errors
/// `Usage` where it is no test, `Conflict` where it runs on another host, `NotFound`, `Unavailable`.
pub async fn cleanup(vault: &Vault, id: JobId) -> Result<JobMeta> {
    let job = vault.job(id).await?;
    must_be(&job.meta, false, "cleaned up")?;
    must_be_here(&job.meta)?;
    clean(vault, job).await
}

/// Makes a failover final.
///
/// # Errors
/// `Usage` where it is a test, `Conflict` where the machine is not up, or its disks are not all on this host yet.
pub async fn commit(vault: &Vault, id: JobId) -> Result<JobMeta> {
    let job = vault.job(id).await?;
    must_be(&job.meta, true, "committed")?;
    let mut recorder = Recorder::new(vault.clone(), job);
    match recorder.meta().state {
        JobState::Committed => return Ok(recorder.meta().clone()),
        JobState::Cancelled => {
            return Err(Error::new(ErrorKind::Conflict, format!("job {id} was cancelled: nothing is left to commit")));
        }
        _ => {}
    }
    if !recorder.meta().step(supervisor::HYDRATE).is_some_and(landfall_model::JobStep::is_done) {
        let why = format!(
            "job {id} cannot be committed yet: its disks are not whole on the target; see `landfall jobs show {id}`"
        );
        return Err(Error::new(ErrorKind::Conflict, why));
    }
    recorder.change(|meta| meta.state = JobState::Committed).await?;
    Ok(recorder.meta().clone())
}

/// Takes a failover back: the machine is ended, its disks with all that was written to them are removed, and the source may go on.
///
/// # Errors
/// `Usage` where it is a test, `Conflict` where it was committed, or runs on another host, unless that is lost.
pub async fn cancel(
    vault: &Vault,
    id: JobId,
    host_is_lost: bool,
    source_is_lost: bool,
    told: impl FnMut(&str),
) -> Result<JobMeta> {
    let job = vault.job(id).await?;
    must_be(&job.meta, true, "cancelled")?;
    if job.meta.state == JobState::Committed {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("job {id} was committed: there is no way back but failback"),
        ));
    }
    if !host_is_lost || job.meta.host == host() {
        must_be_here(&job.meta)?;
        end_here(&job.meta).await?;
    }
    let job = vault.job(id).await?;
    let mut recorder = Recorder::new(vault.clone(), job);
    if !recorder.meta().state.is_over() {
        // From here on nobody goes on with it: its source may.
        let lost = recorder.meta().source.lost || source_is_lost;
        recorder.change(|meta| (meta.source.cancelling, meta.source.lost) = (true, lost)).await?;
    }
    let machine = recorder.meta().machine.clone();
    let log = vault.machine(&machine);
    // One that came second fenced nobody.
    if log.fenced_by().await?.is_none_or(|by| by == id) {
        log.unfence(&machine, id, now).await?;
    }
    if recorder.meta().state != JobState::Cancelled {
        // It is written down only then: whoever runs the command again orders it again.
        source::start(vault, &mut recorder, told).await?;
        recorder.change(|meta| meta.state = JobState::Cancelled).await?;
    }
    Ok(recorder.meta().clone())
}

/// What is to be made of a job's point, in a place with its target's file.
fn plan(meta: &JobMeta, place: &Place, point: landfall_model::PointMeta) -> Result<Plan> {
    let title = format!("landfall-{}-{}", meta.machine, &meta.job.to_string()[..8]);
    let (text, file) = place.settings()?;
    let mut settings = Settings::parse(&text, &file)?.fitting(&point)?;
    settings.reached_by_probes(meta.kind == JobKind::Test)?;
    if meta.kind.is_real() {
        settings = settings.with_network()?;
    }
    if meta.is_drill() {
        drill::suits(&settings)?;
    }
    Ok(Plan { files: Files::of(place.folder()), settings, point, test: meta.kind == JobKind::Test, title })
}
