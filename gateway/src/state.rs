//! What a site remembers outside of the vault: who it is, what it saw last, which chunks the vault has.
//!
//! ```text
//! <state>/gateway-id             which gateway this is, made at first use
//! <state>/<vault id>/lock        held while a command writes to the vault
//! <state>/<vault id>/index.redb  dedup index, made again from the vault when it is lost
//! <state>/<vault id>/heads.json  newest point seen of each machine: rollback of the vault is found by it
//! <state>/<vault id>/probed      the store passed its probe
//! <state>/<vault id>/spool/      of a gateway: what waits for the store
//! <state>/<vault id>/agents/     of a gateway: tokens, and what is revoked
//! <state>/<vault id>/status.json of a gateway: how it is, written every second
//! ```
//! No key and no plain text is in it. Losing it costs a wait for a heartbeat and a listing of the vault; of a gateway, also the points that
//! were not uploaded yet, whose changes its agents send again, tokens, and revocations that the vault does not have yet.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use landfall_model::{Error, ErrorKind, GatewayId, Result, VaultId};
use landfall_vault::verify::Heads;
use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

/// How long a command waits for another on the same state directory: an initial copy of a large disk may be under way.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(600);
const LOCK_POLL: Duration = Duration::from_millis(200);
/// A probe of the store is trusted for so long.
const PROBE_TRUSTED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The state directory of one vault.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
    folder: PathBuf,
}

/// Held while a command writes to the vault; other commands wait.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

fn failed(doing: &str, path: &Path, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::of_io(&error), format!("cannot {doing} {} (state directory)", path.display()), error)
}

/// Replaces a file so that after a crash it is the old or the new one: write aside, fsync, rename, fsync the folder.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let aside = path.with_added_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|e| {
        // Room for others: half a file is of no use.
        let _ = fs::remove_file(&aside);
        failed("write", path, e)
    })
}

impl State {
    /// The state of a vault below a root directory; makes the folders.
    ///
    /// # Errors
    /// `Usage` where they cannot be made, `NoSpace`.
    pub fn open(root: &Path, vault: VaultId) -> Result<Self> {
        let folder = root.join(vault.to_string());
        // Names of chunks are not public.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(|e| failed("make", &folder, e))?;
        Ok(Self { root: root.to_owned(), folder })
    }

    /// This site's gateway id.
    ///
    /// # Errors
    /// `Corrupt` where the file is damaged, `Usage`, `NoSpace`.
    pub fn gateway_id(&self) -> Result<GatewayId> {
        let path = self.root.join("gateway-id");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| {
                let why = format!("{} holds no gateway id: delete it, and a new one is made", path.display());
                Error::corrupt(why)
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut id = [0; 16];
                getrandom::fill(&mut id)
                    .map_err(|e| Error::with_source(ErrorKind::Unavailable, "the host gives no random numbers", e))?;
                let id = GatewayId::from_bytes(id);
                replace(&path, id.to_string().as_bytes())?;
                Ok(id)
            }
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// Waits until no other command writes from this state directory.
    ///
    /// # Errors
    /// `Conflict` after ten minutes.
    pub async fn lock(&self) -> Result<Lock> {
        let path = self.folder.join("lock");
        let file = File::create(&path).map_err(|e| failed("open", &path, e))?;
        let start = Instant::now();
        let mut told = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(error) if error != rustix::io::Errno::WOULDBLOCK => {
                    return Err(failed("lock", &path, error.into()));
                }
                Err(_) if start.elapsed() > LOCK_WAIT_MAX => {
                    let why =
                        format!("another landfall has held {} for ten minutes; wait for it or stop it", path.display());
                    return Err(Error::new(ErrorKind::Conflict, why));
                }
                Err(_) => {}
            }
            if !told {
                tracing::warn!(path = %path.display(), "waiting for another landfall on this state directory");
                told = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Where the dedup index lies.
    pub fn index_path(&self) -> PathBuf {
        self.folder.join("index.redb")
    }

    /// Where a gateway keeps what waits for the store.
    pub fn spool_path(&self) -> PathBuf {
        self.folder.join("spool")
    }

    /// Where a gateway keeps what it knows of its agents.
    pub fn agents_path(&self) -> PathBuf {
        self.folder.join("agents")
    }

    /// Where a running gateway says how it is.
    pub fn status_path(&self) -> PathBuf {
        self.folder.join("status.json")
    }

    /// The newest points that this site has seen.
    ///
    /// # Errors
    /// `Corrupt` where the file is damaged.
    pub fn heads(&self) -> Result<Heads> {
        let path = self.folder.join("heads.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                let why = format!("{} is damaged: delete it to forget what this site saw of the vault", path.display());
                Error::with_source(ErrorKind::Corrupt, why, e)
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Heads::new()),
            Err(error) => Err(failed("read", &path, error)),
        }
    }

    /// Remembers the newest points.
    ///
    /// # Errors
    /// `NoSpace`, `Usage`.
    pub fn remember(&self, heads: &Heads) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(heads)
            .map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode the heads", e))?;
        replace(&self.folder.join("heads.json"), &bytes)
    }

    /// Whether the store at this URL passed its probe lately.
    pub fn was_probed(&self, url: &str) -> bool {
        let path = self.folder.join("probed");
        let fresh = fs::metadata(&path)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age < PROBE_TRUSTED));
        fresh && fs::read_to_string(&path).is_ok_and(|text| text == url)
    }

    /// Remembers that the store at this URL passed its probe.
    ///
    /// # Errors
    /// `NoSpace`, `Usage`.
    pub fn set_probed(&self, url: &str) -> Result<()> {
        replace(&self.folder.join("probed"), url.as_bytes())
    }
}
