//! `landfall demo`: the whole story on this machine. A real ext4 disk with real files is protected, changed, protected again and
//! deleted; both points come back from nothing but the vault and the recovery key, and hash and fsck are the judges.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use landfall_disk::{Existing, Format};
use landfall_gateway::{Cancel, DiskSpec, Outcome, Request, State, replicate};
use landfall_keys::{RecoveryKey, SiteKey};
use landfall_model::{DiskName, Error, ErrorKind, MachineName, Progress, Result, Seq, VaultId};
use landfall_restore::{Options, TargetSpec, rehydrate};
use landfall_vault::{Selector, Store, Vault, now};
use serde_json::json;

use crate::args::{Common, Demo};
use crate::output::{self, seconds, size};

/// Folders of this machine whose files go onto the disk, until it is filled well.
const FILES_FROM: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/share", "/usr/lib"];
/// What the logs take.
const LOG_ROOM: u64 = 32 * 1024 * 1024;
/// Changed between the two points: a log that grew, a file that went, new files.
const NEW_FILES: usize = 40;

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |e| Error::with_source(ErrorKind::of_io(&e), what, e)
}

/// Runs the demo.
pub(crate) async fn run(common: &Common, args: &Demo) -> Result<()> {
    for tool in ["mkfs.ext4", "e2fsck", "debugfs"] {
        if tool_path(tool).is_none() {
            let why = format!("{tool} is not there: install e2fsprogs (apt-get install e2fsprogs) and run again");
            return Err(Error::new(ErrorKind::NotFound, why));
        }
    }
    let temporary =
        tempfile::Builder::new().prefix("landfall-demo-").tempdir().map_err(failed("cannot make a folder"))?;
    let dir = match &args.dir {
        Some(dir) => {
            fs::create_dir(dir).map_err(failed(format!("cannot make the folder {}", dir.display())))?;
            dir.clone()
        }
        None => temporary.path().to_owned(),
    };
    let story = Story::new(&dir, args.size_mib)?;
    let told = |text: &str| if common.json || common.quiet { Ok(()) } else { output::text(&format!("{text}\n")) };
    let report = story.tell(told).await?;
    output::document(common.json, &report.document(), || report.table())?;
    if !report.proved() {
        return Err(Error::corrupt("the demo failed: a disk that came back is not what it was"));
    }
    Ok(())
}

fn tool_path(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(tool)).find(|p| p.is_file())
}

fn command(tool: &str, arguments: &[&std::ffi::OsStr]) -> Result<bool> {
    let path = tool_path(tool).unwrap_or_else(|| tool.into());
    let status =
        Command::new(path).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.map(|s| s.success()).map_err(failed(format!("cannot run {tool}")))
}

fn must(tool: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    match command(tool, arguments)? {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Unavailable, format!("{tool} failed"))),
    }
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(failed(format!("cannot read {}", path.display())))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer).map_err(failed(format!("cannot read {}", path.display())))?;
        if len == 0 {
            return Ok(hasher.finalize());
        }
        hasher.update(&buffer[..len]);
    }
}

/// One point's figures.
struct Turn {
    name: &'static str,
    replicated: Outcome,
    rehydrate_ms: u64,
    fetched_bytes: u64,
    same: bool,
    healthy: bool,
}

struct Report {
    turns: Vec<Turn>,
    vault_bytes: u64,
    elapsed_ms: u64,
}

impl Report {
    fn proved(&self) -> bool {
        self.turns.iter().all(|t| t.same && t.healthy)
    }

    fn document(&self) -> serde_json::Value {
        let turn = |t: &Turn| {
            let disk = &t.replicated.disks[0];
            json!({
                "seq": t.replicated.seq, "size": disk.size, "read_bytes": disk.read_bytes, "changed_bytes": disk.changed_bytes,
                "new_chunk_bytes": t.replicated.new_chunk_bytes, "uploaded_bytes": t.replicated.uploaded_bytes,
                "replicate_ms": t.replicated.elapsed_ms, "rehydrate_ms": t.rehydrate_ms, "fetched_bytes": t.fetched_bytes,
                "same_bytes": t.same, "fsck_clean": t.healthy,
            })
        };
        json!({
            "points": self.turns.iter().map(turn).collect::<Vec<_>>(), "vault_bytes": self.vault_bytes,
            "proved": self.proved(), "elapsed_ms": self.elapsed_ms,
        })
    }

    fn table(&self) -> String {
        let headings = [
            "POINT",
            ">DISK",
            ">READ",
            ">CHANGED",
            ">NEW",
            ">STORED",
            ">DEDUP",
            ">COMPRESSION",
            ">REPLICATE",
            ">REHYDRATE",
            "HASH",
            "FSCK",
        ];
        let mut rows = vec![headings.map(String::from).to_vec()];
        let ratio = |a: u64, b: u64| {
            let hundredths = a.saturating_mul(100).checked_div(b);
            hundredths.map_or_else(|| "-".to_owned(), |h| format!("{}.{:02}x", h / 100, h % 100))
        };
        let word = |ok: bool, yes: &str, no: &str| if ok { yes.to_owned() } else { no.to_owned() };
        for turn in &self.turns {
            let (done, disk) = (&turn.replicated, &turn.replicated.disks[0]);
            rows.push(vec![
                turn.name.to_owned(),
                size(disk.size),
                size(disk.read_bytes),
                size(disk.changed_bytes),
                size(done.new_chunk_bytes),
                size(done.uploaded_bytes),
                ratio(disk.changed_bytes, done.new_chunk_bytes),
                ratio(done.new_chunk_bytes, done.uploaded_bytes),
                seconds(done.elapsed_ms),
                seconds(turn.rehydrate_ms),
                word(turn.same, "same", "DIFFERS"),
                word(turn.healthy, "clean", "DAMAGED"),
            ]);
        }
        format!(
            "\n{}\nThe vault holds {} for both points. All in {}.\n",
            output::table(&rows),
            size(self.vault_bytes),
            seconds(self.elapsed_ms)
        )
    }
}

struct Story {
    dir: PathBuf,
    size_mib: u64,
    machine: MachineName,
    disk: DiskName,
}

impl Story {
    fn new(dir: &Path, size_mib: u64) -> Result<Self> {
        let name = |e: landfall_model::NameError| Error::new(ErrorKind::Bug, e.to_string());
        if size_mib < 64 {
            return Err(Error::new(ErrorKind::Usage, "a disk of the demo has at least 64 MiB"));
        }
        Ok(Self {
            dir: dir.to_owned(),
            size_mib,
            machine: "demo-server".parse().map_err(name)?,
            disk: "root".parse().map_err(name)?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    async fn tell(&self, told: impl Fn(&str) -> Result<()>) -> Result<Report> {
        let start = Instant::now();
        let original = self.path("server.img");
        told(&format!("1. An ext4 disk of {} with files of this machine.", size(self.size_mib << 20)))?;
        self.make_disk(&original)?;
        told("2. A vault in a directory. The gateway gets the site key; the recovery key is yours.")?;
        let (vault, recovery_path) = self.make_vault().await?;
        let state = State::open(&self.path("state"), vault.config().vault_id)?;
        told("3. Replicate: read, cut, deduplicate, compress, encrypt, store.")?;
        let first = self.replicate(&vault, &state, &original).await?;
        let first_hash = hash(&original)?;
        told("4. The server works on: a log grows, files come and go. Replicate again.")?;
        self.change_files(&original)?;
        let second = self.replicate(&vault, &state, &original).await?;
        let second_hash = hash(&original)?;
        told("5. Disaster: the disk, the gateway's state and its key are deleted.")?;
        drop(vault);
        fs::remove_file(&original).map_err(failed("cannot delete the disk"))?;
        fs::remove_file(self.path("site.key")).map_err(failed("cannot delete the site key"))?;
        fs::remove_dir_all(self.path("state")).map_err(failed("cannot delete the state"))?;
        told("6. Rehydrate both points from the vault and the recovery key. BLAKE3 and fsck judge.")?;
        let mut turns = Vec::new();
        for (name, replicated, hashed) in [("1 first copy", first, first_hash), ("2 changes", second, second_hash)] {
            let image = self.path(&format!("restored-{}.img", replicated.seq));
            let (fetched_bytes, rehydrate_ms) = self.rehydrate(&recovery_path, replicated.seq, &image).await?;
            let same = hash(&image)? == hashed;
            let healthy = command("e2fsck", &["-fn".as_ref(), image.as_os_str()])?;
            turns.push(Turn { name, replicated, rehydrate_ms, fetched_bytes, same, healthy });
        }
        let store = self.store()?;
        let vault_bytes = store.list("").await?.iter().map(|o| o.size).sum();
        Ok(Report { turns, vault_bytes, elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) })
    }

    fn store(&self) -> Result<Store> {
        Store::open(&format!(
            "file://{}",
            fs::canonicalize(&self.dir).map_err(failed("cannot find the folder"))?.join("vault").display()
        ))
    }

    /// An ext4 disk filled by `mkfs.ext4 -d`: no root and no mount is needed.
    fn make_disk(&self, image: &Path) -> Result<()> {
        let content = self.path("content");
        // Room for the log that grows, and for what the file system itself takes.
        let mut left = (self.size_mib * 1024 * 1024 / 10 * 6).saturating_sub(LOG_ROOM);
        for from in FILES_FROM {
            copy_files(Path::new(from), &content.join(from.trim_start_matches('/')), &mut left)?;
        }
        fs::create_dir_all(content.join("var/log")).map_err(failed("cannot make a folder"))?;
        fs::write(content.join("var/log/app.log"), log_lines(0, 200_000)).map_err(failed("cannot write a log"))?;
        File::create(image).and_then(|f| f.set_len(self.size_mib << 20)).map_err(failed("cannot make the disk"))?;
        must("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), "-d".as_ref(), content.as_os_str(), image.as_os_str()])?;
        fs::remove_dir_all(&content).map_err(failed("cannot remove a folder"))
    }

    /// Changes files inside the image with `debugfs`, as a running server would.
    fn change_files(&self, image: &Path) -> Result<()> {
        let log = self.path("app.log");
        fs::write(&log, log_lines(0, 260_000)).map_err(failed("cannot write a log"))?;
        let mut script = format!("rm /var/log/app.log\nwrite {} /var/log/app.log\nmkdir /srv\n", log.display());
        for number in 0..NEW_FILES {
            let file = self.path(&format!("upload-{number}"));
            let mut noise = vec![0; 64 * 1024 + number * 4096];
            getrandom::fill(&mut noise)
                .map_err(|e| Error::with_source(ErrorKind::Unavailable, "no random numbers", e))?;
            fs::write(&file, noise).map_err(failed("cannot write a file"))?;
            script.push_str(&format!("write {} /srv/upload-{number}\n", file.display()));
        }
        let commands = self.path("changes");
        fs::write(&commands, script).map_err(failed("cannot write a script"))?;
        must("debugfs", &["-w".as_ref(), "-f".as_ref(), commands.as_os_str(), image.as_os_str()])
    }

    async fn make_vault(&self) -> Result<(Vault, PathBuf)> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| Error::with_source(ErrorKind::Unavailable, "no random numbers", e))?;
        let store = self.store()?;
        store.probe().await?;
        let recovery = RecoveryKey::generate(VaultId::from_bytes(id))?;
        let site = SiteKey::generate(recovery.vault_id(), recovery.root_public())?;
        let (recovery_path, site_path) = (self.path("recovery.key"), self.path("site.key"));
        recovery.write_new(&recovery_path, None)?;
        site.write_new(&site_path)?;
        Ok((Vault::create(store, &recovery, site, now()).await?, recovery_path))
    }

    async fn replicate(&self, vault: &Vault, state: &State, image: &Path) -> Result<Outcome> {
        let request = Request {
            machine: self.machine.clone(),
            domain: "default"
                .parse()
                .map_err(|e: landfall_model::NameError| Error::new(ErrorKind::Bug, e.to_string()))?,
            disks: vec![DiskSpec { name: self.disk.clone(), path: Some(image.to_owned()), excluded: false }],
            consistency_command: None,
            accept_clock: false,
        };
        replicate(vault, state, &request, &Arc::new(Progress::default()), &Cancel::default()).await
    }

    /// Returns the bytes fetched and the time taken.
    async fn rehydrate(&self, recovery_path: &Path, seq: Seq, image: &Path) -> Result<(u64, u64)> {
        let recovery = Arc::new(RecoveryKey::read(recovery_path, None)?);
        let vault = Vault::open_with_recovery_key(self.store()?, &recovery).await?;
        let specs = [TargetSpec { disk: self.disk.clone(), path: image.to_owned() }];
        let options = Options { format: Format::Raw, existing: Existing::Refuse, salvage: false };
        let progress = Arc::new(Progress::default());
        let outcome =
            rehydrate(&vault, recovery, &self.machine, Selector::Seq(seq), &specs, options, &progress).await?;
        Ok((outcome.fetched_bytes, outcome.elapsed_ms))
    }
}

/// Copies regular files, folder by folder, until the budget is spent.
fn copy_files(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to).map_err(failed("cannot make a folder"))?;
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_files(&entry.path(), &target, left)?;
        } else if kind.is_file() {
            let len = entry.metadata().map_or(0, |m| m.len());
            if len > *left / 4 || len == 0 {
                continue;
            }
            // A file that this user may not read is no reason to stop.
            if fs::copy(entry.path(), &target).is_ok() {
                *left -= len;
            }
        }
    }
    Ok(())
}

fn log_lines(from: u32, to: u32) -> String {
    let mut text = String::new();
    for i in from..to {
        let (app, item) = (i % 977, u64::from(i) * 7919 % 100_003);
        text.push_str(&format!(
            "2026-11-21T09:00:00Z host app[{app}]: request id={i} path=/v1/items/{item} status=200\n"
        ));
    }
    text
}
