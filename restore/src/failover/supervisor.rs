//! Who does a job: serves the disks, starts the machine, and stays with it for as long as it needs somebody.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use landfall_keys::RecoveryKey;
use landfall_model::{DiskName, Error, ErrorKind, JobId, JobKind, JobPoint, JobState, Result, Timestamp};
use landfall_nbd::Address;
use landfall_nbd::server::{Disk, Listening, Server};
use landfall_vault::{Selector, Vault, crash_point, now};
use tokio::time::{Instant, sleep};

use super::place::{Lock, Place};
use super::recorder::Recorder;
use super::{host, plan, source};
use crate::boot;
use crate::disk_view::PointView;
use crate::drill::{self, Seen};
use crate::export::ReadOnly;
use crate::kvm::{self, Files, Picture, Plan, Running, Settings};
use crate::proof::prove as prove_disks;

/// Names of steps.
pub(super) const FENCE: &str = "fence";
pub(super) const POINT: &str = "point";
pub(super) const PROOF: &str = "proof";
pub(super) const DISKS: &str = "disks";
pub(super) const MACHINE: &str = "machine";
pub(super) const ADDRESSES: &str = "addresses";
pub(super) const UP: &str = "up";
pub(super) const HYDRATE: &str = "hydrate";
pub(super) const PROFILE: &str = "profile";

/// Memory for what was read from the vault.
const CACHE_BYTES: u64 = 256 << 20;
/// How often a machine is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// What the machine of a test reads is recorded until so long after it was up.
const RECORD: Duration = Duration::from_secs(10);
/// The same where nobody has looked whether it is up, only that it runs.
const RECORD_UNPROBED: Duration = Duration::from_secs(60);
/// After copying failed it is tried again after so long.
const RETRY: Duration = Duration::from_secs(15);

/// What whoever waits for the machine is told.
#[derive(Debug)]
pub enum Told<'a> {
    /// A step begins.
    Step(&'a str),
    /// The machine is up.
    Up,
    /// It is not, and why. It may run all the same.
    Failed(&'a Error),
}

/// Somebody who does a job.
pub struct Supervision<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// Opens its content.
    pub recovery: Arc<RecoveryKey>,
    /// Where folders of jobs are made, if this host takes it over from another.
    pub root: PathBuf,
    /// The target's file, where it is another than the one that the job was begun with.
    pub settings: Option<String>,
    /// The beginning of a command line that becomes a program which ends with us.
    pub stub: Vec<String>,
    /// Hears what happens.
    pub told: Box<dyn FnMut(Told<'_>) + 'a>,
}

impl Supervision<'_> {
    /// Does a job, from wherever it stands. Returns when the machine needs nobody any more, or `stop` says so.
    ///
    /// To be run on the thread that lives as long as the process: the machine of a test ends with the thread that started it.
    ///
    /// # Errors
    /// `Conflict` where somebody else does it, or it is over; those of the steps.
    pub async fn run(mut self, id: JobId, stop: impl Future<Output = ()>) -> Result<()> {
        let job = self.vault.job(id).await?;
        if job.meta.state.is_over() {
            return Err(Error::new(ErrorKind::Conflict, format!("job {id} is over: see `landfall jobs show {id}`")));
        }
        if job.meta.source.cancelling {
            let why = format!("job {id} is being taken back: run `landfall failover cancel {id} --apply` again");
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let mut recorder = Recorder::new(self.vault.clone(), job);
        let place = self.settle(&mut recorder).await?;
        let lock = place.take()?;
        let mut lock = lock.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("job {id} is being worked on by another process of this host"))
        })?;
        lock.sign()?;
        if let Some(text) = &self.settings {
            Settings::parse(text, &place.folder().join("target.toml"))?;
            place.keep_settings(text)?;
        }
        let (test, is_drill) = (recorder.meta().kind == JobKind::Test, recorder.meta().is_drill());
        let lease_until = recorder.meta().lease_until.filter(|_| is_drill);
        let stop = async move {
            tokio::select! {
                () = stop => "it was told to stop",
                () = until(lease_until) => "it took too long",
            }
        };
        tokio::pin!(stop);
        let seen = Seen::default();
        let made = tokio::select! {
            made = self.make(&mut recorder, &place, &seen) => made,
            why = &mut stop => Err(Error::new(ErrorKind::Unavailable, why)),
        };
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                (self.told)(Told::Failed(&error));
                seen.failed(&error);
                if is_drill {
                    let none = Err("there was no machine, or no more".to_owned());
                    // What is left on this host goes in any case.
                    if let Err(error) = self.report(&recorder, &place, &seen, none).await {
                        tracing::error!(%error, "the report of a drill cannot be stored");
                    }
                }
                if test {
                    self.wipe(&mut recorder, &place, lock).await?;
                }
                return Err(error);
            }
        };
        let Made { plan, machine, server, view } = made;
        let ended =
            async { server.await.map_err(|e| Error::with_source(ErrorKind::Bug, "the server of the disks died", e))? };
        let outcome = if is_drill {
            let told = async {
                let picture = machine.picture(&plan.files).await;
                if recorder.meta().state == JobState::Up
                    && let Err(error) = keep_profile(&mut recorder, self.vault, &view).await
                {
                    tracing::warn!(%error, "what the machine read at its boot is not kept");
                }
                self.report(&recorder, &place, &seen, picture).await
            };
            // A store that is away does not keep the machine running for longer than a drill may take.
            let stored = tokio::select! {
                stored = told => stored,
                why = &mut stop => Err(Error::new(ErrorKind::Unavailable, format!("{why}, and its report is not stored"))),
            };
            stored.inspect_err(|error| (self.told)(Told::Failed(error)))
        } else if test {
            let attended = attend(&mut recorder, &machine, &plan, self.vault, &view);
            tokio::select! {
                () = attended => Ok(()),
                served = ended => served,
                _ = &mut stop => Ok(()),
            }
        } else {
            tokio::select! {
                hydrated = self.hydrate(&mut recorder, &machine, &plan) => hydrated,
                served = ended => served,
                _ = &mut stop => Ok(()),
            }
        };
        if test {
            self.wipe(&mut recorder, &place, lock).await?;
        }
        outcome
    }

    /// The folder where the job is done: that of this host, where it was begun elsewhere and nothing runs there.
    async fn settle(&self, recorder: &mut Recorder) -> Result<Place> {
        let (here, id) = (host(), recorder.meta().job);
        let found = if recorder.meta().host == here {
            Place::of_job(Path::new(&recorder.meta().folder), id)?
        } else if recorder.meta().step(MACHINE).is_some() {
            let why = format!(
                "job {id} has a machine on host {}, this is {here}: go on there, or cancel it there and begin anew",
                recorder.meta().host
            );
            return Err(Error::new(ErrorKind::Conflict, why));
        } else {
            None
        };
        let place = match found {
            Some(place) => place,
            // Its disks are in the folder, with all that the machine has written.
            None if recorder.meta().step(MACHINE).is_some() => {
                let why = format!(
                    "job {id} has a machine in {}, which is not there now: mount what holds it, or cancel the job and begin anew",
                    recorder.meta().folder
                );
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            None => {
                let place = Place::make(&self.root, id)?;
                let folder = place.folder().display().to_string();
                recorder.change(|meta| (meta.host, meta.folder) = (here, folder)).await?;
                place
            }
        };
        Ok(place)
    }

    /// Stores the report of a drill, whose machine is ended first: it does not wait for the store.
    async fn report(
        &self,
        recorder: &Recorder,
        place: &Place,
        seen: &Seen,
        picture: std::result::Result<Picture, String>,
    ) -> Result<()> {
        kvm::end(&Files::of(place.folder())).await?;
        crash_point("drill.seen");
        drill::store(self.vault, &self.recovery, recorder.meta(), seen, picture).await?;
        crash_point("drill.reported");
        Ok(())
    }

    /// Ends a test: its machine, its folder.
    async fn wipe(&mut self, recorder: &mut Recorder, place: &Place, lock: Lock) -> Result<()> {
        kvm::end(&Files::of(place.folder())).await?;
        place.remove()?;
        drop(lock);
        let failed = recorder.meta().state == JobState::Failed && recorder.meta().step(UP).is_none();
        if !failed {
            recorder.change(|meta| meta.state = JobState::Cleaned).await?;
        }
        Ok(())
    }

    /// All steps until the machine runs.
    async fn make(&mut self, recorder: &mut Recorder, place: &Place, seen: &Seen) -> Result<Made> {
        let Self { vault, told, .. } = self;
        let (kind, name) = (recorder.meta().kind, recorder.meta().machine.clone());
        let stopped_before = recorder.meta().source.cycle.is_some();
        // Whoever goes on with a job whose source is fenced finds it stopped, or lost.
        let fenced = recorder.meta().step(FENCE).is_some_and(landfall_model::JobStep::is_done);
        if kind.is_real() && recorder.meta().step(FENCE).is_none() {
            told(Told::Step(source::STOP));
            source::stop(vault, recorder).await?;
        }
        if kind == JobKind::Unplanned {
            told(Told::Step(FENCE));
            fence(vault, recorder, None).await?;
        }
        told(Told::Step(POINT));
        let selector = match recorder.meta().point {
            Some(point) => Selector::Seq(point.seq),
            None if kind == JobKind::Planned => {
                let why = "the source was stopped, and its last point is not known: cancel the failover and begin anew";
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            None => recorder.meta().asked.parse()?,
        };
        let (recovery, before) = (self.recovery.clone(), recorder.meta().point);
        let choose = async {
            let view = PointView::open(vault, recovery, &name, selector, CACHE_BYTES).await?;
            let (key, meta) = (view.key(), view.meta());
            let point = JobPoint { timeline: key.timeline, seq: key.seq, time: meta.source_time };
            if before.is_some_and(|before| before != point) {
                let why = format!("point {} is another than the one that the job was begun with", key.seq);
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            let said = format!("point {} of {}", key.seq, meta.source_time);
            Ok(((view, point), Some(said)))
        };
        let (view, point) = recorder.step(POINT, choose).await?;
        if before.is_none() {
            recorder.change(|meta| meta.point = Some(point)).await?;
        }
        if kind == JobKind::Planned {
            let proved = recorder.meta().step(PROOF).is_some_and(landfall_model::JobStep::is_done);
            if recorder.meta().source.proof && !proved {
                told(Told::Step(PROOF));
                prove(&view, recorder).await?;
            }
            // A source that was stopped long ago may have been started since.
            if !fenced && (recorder.meta().source.proof || stopped_before) {
                told(Told::Step(source::STILL));
                source::is_still(vault, recorder, point).await?;
            }
            told(Told::Step(FENCE));
            fence(vault, recorder, Some(point)).await?;
        }
        seen.point(view.meta().consistency);
        let plan = plan(recorder.meta(), place, view.meta().clone())?;
        let view = Arc::new(view);
        if plan.test {
            view.record();
        }
        tokio::spawn(fetch_ahead(vault.clone(), view.clone()));
        told(Told::Step(DISKS));
        let for_disks = plan.clone();
        let disks = async {
            let made = tokio::task::spawn_blocking(move || kvm::make_disks(&for_disks)).await;
            made.map_err(|e| Error::with_source(ErrorKind::Bug, "making disks ended early", e))??;
            Ok(((), None))
        };
        recorder.step(DISKS, disks).await?;
        let server = serve(&view, &plan).await?;
        told(Told::Step(MACHINE));
        recorder.be_patient();
        let stub = (kind == JobKind::Test).then_some(self.stub.as_slice());
        let start = async {
            let machine = match Running::find_at(&plan.files).await {
                Some(machine) => machine,
                None => Running::start(&plan, stub).await?,
            };
            machine.go_on().await?;
            machine.check().await?;
            Ok((machine, None))
        };
        let machine = recorder.step(MACHINE, start).await?;
        let addressed = if plan.has_addresses() {
            told(Told::Step(ADDRESSES));
            let set = async { machine.set_addresses(&plan).await.map(|said| ((), said)) };
            recorder.step(ADDRESSES, set).await
        } else {
            Ok(())
        };
        told(Told::Step(UP));
        let is_drill = recorder.meta().is_drill();
        let up = async {
            let passed = machine.until_up(&plan, &seen.probed).await?;
            if passed { Ok(((), Some(view.story()))) } else { Err(seen.not_up(&plan, is_drill)) }
        };
        // One that is not up runs all the same, and somebody will want to look at it.
        let is_up = recorder.step(UP, up).await;
        match addressed.and(is_up) {
            Ok(()) => {
                recorder.change(|meta| meta.state = JobState::Up).await?;
                told(Told::Up);
            }
            Err(error) => {
                if recorder.meta().state != JobState::Failed {
                    recorder.change(|meta| meta.state = JobState::Failed).await?;
                }
                seen.failed(&error);
                told(Told::Failed(&error));
            }
        }
        Ok(Made { plan, machine, server, view })
    }

    /// Copies what is still only in the vault, for as long as it takes.
    async fn hydrate(&mut self, recorder: &mut Recorder, machine: &Running, plan: &Plan) -> Result<()> {
        loop {
            let failed = recorder.meta().state == JobState::Failed;
            let far = Cell::new((0, 0));
            let copy = async {
                let (mut before, mut last) = (0, 0);
                for place in 0..plan.point.disks.len() {
                    let told = |done, of| {
                        last = of;
                        far.set((before + done, before + of));
                    };
                    machine.hydrate(plan, place, told).await?;
                    before += std::mem::take(&mut last);
                }
                Ok(((), Some(format!("{} MiB, all on this host", before >> 20))))
            };
            let how_far = || {
                let (done, of) = far.get();
                Some(format!("{} of {} MiB of the disk", done >> 20, of >> 20))
            };
            let copied = recorder.long_step(HYDRATE, how_far, copy).await;
            recorder.change(|meta| meta.state = if failed { JobState::Failed } else { JobState::Up }).await?;
            match copied {
                Ok(()) => return Ok(()),
                // The machine reads on from the vault meanwhile: who gives up here stops it.
                Err(error) => {
                    tracing::error!(%error, "copying the disks failed: it is tried again");
                    sleep(RETRY).await;
                    machine.check().await?;
                    machine.go_on().await?;
                }
            }
        }
    }
}

/// No gateway writes the machine any more. `last`: the point that holds all that the source had when it was stopped.
async fn fence(vault: &Vault, recorder: &mut Recorder, last: Option<JobPoint>) -> Result<()> {
    let (id, name, proof) = (recorder.meta().job, recorder.meta().machine.clone(), recorder.meta().source.proof);
    let fence = async {
        let generation = vault.machine(&name).fence(&name, id, now).await?;
        let mut said = format!("generation {generation}: no gateway writes this machine any more");
        // What a source wrote after it was stopped was captured until the fence.
        let later = match last {
            Some(last) => source::written_after(vault, &name, last).await?,
            None => 0,
        };
        if later > 0 && proof {
            let why = format!(
                "the source wrote {later} bytes after it was stopped: something on it still writes. `landfall failover cancel` lets it go on"
            );
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        if later > 0 {
            said += &format!("; the source wrote {later} bytes after it was stopped, which are left behind");
        }
        Ok(((), Some(said)))
    };
    recorder.step(FENCE, fence).await
}

/// The point is what the source had when it was stopped.
async fn prove(view: &PointView, recorder: &mut Recorder) -> Result<()> {
    let disks = recorder.meta().source.disks.clone();
    let far = Cell::new((0, 0));
    let work = async {
        let bytes = prove_disks(view, &disks, |done, of| far.set((done, of))).await?;
        Ok(((), Some(format!("{} disks, {} MiB: equal to the source", disks.len(), bytes >> 20))))
    };
    let how_far = || {
        let (done, of) = far.get();
        Some(format!("{} of {} MiB compared", done >> 20, of >> 20))
    };
    recorder.long_step(PROOF, how_far, work).await
}

struct Made {
    plan: Plan,
    machine: Running,
    server: tokio::task::JoinHandle<Result<()>>,
    view: Arc<PointView>,
}

/// Serves the disks of a point to the machine.
async fn serve(view: &PointView, plan: &Plan) -> Result<tokio::task::JoinHandle<Result<()>>> {
    let mut exports: BTreeMap<String, Arc<dyn Disk>> = BTreeMap::new();
    let content: Vec<&DiskName> = plan.point.disks.iter().filter(|d| !d.excluded).map(|d| &d.name).collect();
    for name in content {
        exports.insert(name.to_string(), Arc::new(ReadOnly::patient(view.disk(name)?)));
    }
    let listening = Listening::at(&Address::Unix(plan.files.nbd())).await?;
    Ok(tokio::spawn(async move { Server::new(exports).serve(&listening).await }))
}

/// Returns at a moment; never where there is none.
async fn until(moment: Option<Timestamp>) {
    let Some(moment) = moment else { return std::future::pending().await };
    while now() < moment {
        sleep(WATCH).await;
    }
}

/// Fetches what the machine read when it booted before. It boots without, whatever comes of it.
async fn fetch_ahead(vault: Vault, view: Arc<PointView>) {
    let ahead = async {
        match vault.boot_profile(&view.meta().machine).await? {
            Some(profile) => view.fetch_ahead(&profile).await,
            None => Ok(()),
        }
    };
    if let Err(error) = ahead.await {
        tracing::warn!(%error, "what the machine will read is not fetched ahead");
    }
}

/// Writes down where the machine has read, for its next boot.
///
/// # Errors
/// Those of writing to the job; that the profile could not be kept is none.
async fn keep_profile(recorder: &mut Recorder, vault: &Vault, view: &PointView) -> Result<()> {
    let Some(profile) = view.recorded(&view.meta().machine, now()) else { return Ok(()) };
    let keep = async {
        let kept = boot::keep(vault, &profile).await;
        Ok(((), Some(kept.unwrap_or_else(|error| format!("not kept: {}", error.line())))))
    };
    recorder.step(PROFILE, keep).await
}

/// Returns when a test's lease has ended, or its machine. Keeps meanwhile what it has read at its boot.
async fn attend(recorder: &mut Recorder, machine: &Running, plan: &Plan, vault: &Vault, view: &PointView) {
    let until = recorder.meta().lease_until.unwrap_or_else(now);
    let record = if !plan.settings.probes.is_empty() { RECORD } else { RECORD_UNPROBED };
    // One that is not up has not read what a boot reads.
    let mut record_until = (recorder.meta().state == JobState::Up).then(|| Instant::now() + record);
    while now() < until {
        if record_until.is_some_and(|until| until < Instant::now()) {
            record_until = None;
            if let Err(error) = keep_profile(recorder, vault, view).await {
                tracing::warn!(%error, "what the machine read at its boot is not kept");
            }
        }
        if let Err(error) = machine.check().await {
            tracing::warn!(%error, "the machine of the test has ended");
            return;
        }
        sleep(WATCH).await;
    }
    tracing::info!("the lease of the test has ended");
}
