//! What a gateway remembers of its agents: tokens that wait to be used, certificates that were given out, and those that are revoked.
//!
//! ```text
//! <agents>/tokens/<hash of the secret>     machine and end of validity; deleted when it is used
//! <agents>/issued/<machine>/<serial>       one certificate, with its end of validity
//! <agents>/revoked/<serial>                not accepted any more
//! <agents>/resync/<machine>                its next cycle is to be compared in full
//! <agents>/paused/<machine>                it is to begin no cycle; since when
//! ```
//! Files, so that `gateway token`, `gateway revoke`, `pause` and `resume` work beside a running gateway. No secret is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use data_encoding::HEXLOWER;
use landfall_model::{Error, ErrorKind, MachineName, Result, Timestamp};
use landfall_vault::now;
use landfall_wire::pki::Token;
use serde::{Deserialize, Serialize};

use crate::state::replace;

/// Tokens, issued and revoked certificates of one vault's agents.
pub struct Registry {
    folder: PathBuf,
    /// As of the last look: asked for each call, so no disk is read then.
    revoked: RwLock<BTreeSet<String>>,
    /// Likewise.
    paused: RwLock<BTreeMap<MachineName, Timestamp>>,
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    machine: MachineName,
    expires: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Paused {
    since: Timestamp,
}

#[derive(Serialize, Deserialize)]
struct Issued {
    expires: Timestamp,
}

fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    Error::with_source(
        ErrorKind::of_io(&error),
        format!("cannot {doing} {} (agents of the gateway)", path.display()),
        error,
    )
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode a record", e))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
            Ok(names.filter(|n| !n.ends_with(".new")).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("list", folder, error)),
    }
}

fn paused_since(path: &Path) -> Option<Timestamp> {
    let paused: Option<Paused> = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    paused.map(|p| p.since)
}

impl Registry {
    /// Opens or makes it.
    ///
    /// # Errors
    /// `Usage`, `NoSpace` of the folder.
    pub fn open(folder: PathBuf) -> Result<Self> {
        for part in ["tokens", "issued", "revoked", "resync", "paused"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(|e| failed("make", &part, e))?;
        }
        let registry = Self { folder, revoked: RwLock::default(), paused: RwLock::default() };
        registry.look()?;
        Ok(registry)
    }

    /// Makes it possible to enrol a machine once, until the token expires.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub fn add_token(&self, token: &Token, machine: &MachineName, valid: Duration) -> Result<Timestamp> {
        let millis = i64::try_from(valid.as_millis()).unwrap_or(i64::MAX);
        let expires = Timestamp::from_millis(now().millis().saturating_add(millis));
        let waiting = Waiting { machine: machine.clone(), expires };
        replace(&self.folder.join("tokens").join(token.secret_hash().to_string()), &json(&waiting)?)?;
        Ok(expires)
    }

    /// Uses a token up: of several that come with it at once, one is told its machine.
    ///
    /// # Errors
    /// `Key` where there is no such token, or it has expired or was used.
    pub(crate) fn use_token(&self, secret: &[u8; 16]) -> Result<MachineName> {
        let refused = || {
            Error::new(
                ErrorKind::Key,
                "the token is not known here, was used, or has expired: make one with `landfall gateway token`",
            )
        };
        let path = self.folder.join("tokens").join(Token::hash_of(secret).to_string());
        let bytes = fs::read(&path).map_err(|_| refused())?;
        // Who deletes the file has the token.
        fs::remove_file(&path).map_err(|_| refused())?;
        let folder = self.folder.join("tokens");
        fs::File::open(&folder).and_then(|f| f.sync_all()).map_err(|e| failed("sync", &folder, e))?;
        let waiting: Waiting = serde_json::from_slice(&bytes).map_err(|_| refused())?;
        if waiting.expires <= now() { Err(refused()) } else { Ok(waiting.machine) }
    }

    /// Remembers a certificate that was given out.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub(crate) fn add_issued(&self, machine: &MachineName, serial: &[u8], expires: Timestamp) -> Result<()> {
        let folder = self.folder.join("issued").join(machine.as_str());
        fs::create_dir_all(&folder).map_err(|e| failed("make", &folder, e))?;
        replace(&folder.join(HEXLOWER.encode(serial)), &json(&Issued { expires })?)
    }

    /// Revokes every certificate of a machine that this gateway gave out; returns how many.
    ///
    /// # Errors
    /// `NotFound` where it gave out none.
    pub fn revoke(&self, machine: &MachineName) -> Result<usize> {
        let serials = names(&self.folder.join("issued").join(machine.as_str()))?;
        if serials.is_empty() {
            let why = format!("this gateway gave no certificate to machine {machine}; it is revoked where it enrolled");
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        for serial in &serials {
            replace(&self.folder.join("revoked").join(serial), b"")?;
        }
        self.look()?;
        Ok(serials.len())
    }

    /// Asks for a full comparison of a machine at its next cycle.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub fn ask_resync(&self, machine: &MachineName) -> Result<()> {
        replace(&self.folder.join("resync").join(machine.as_str()), b"")
    }

    /// Whether a full comparison was asked for; it is not asked for any more then.
    pub(crate) fn take_resync(&self, machine: &MachineName) -> bool {
        fs::remove_file(self.folder.join("resync").join(machine.as_str())).is_ok()
    }

    /// Lets a machine begin no cycle until it is resumed; gives since when that is so. Points stay.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub fn pause(&self, machine: &MachineName) -> Result<Timestamp> {
        let path = self.folder.join("paused").join(machine.as_str());
        if let Some(since) = paused_since(&path) {
            return Ok(since);
        }
        let since = now();
        replace(&path, &json(&Paused { since })?)?;
        Ok(since)
    }

    /// Lets a machine that was paused begin cycles again.
    ///
    /// # Errors
    /// `NotFound` where it is not paused here.
    pub fn resume(&self, machine: &MachineName) -> Result<()> {
        let folder = self.folder.join("paused");
        let path = folder.join(machine.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let why = format!("machine {machine} is not paused at this gateway: see `landfall status`");
                return Err(Error::new(ErrorKind::NotFound, why));
            }
            done => done.map_err(|e| failed("delete", &path, e))?,
        }
        fs::File::open(&folder).and_then(|f| f.sync_all()).map_err(|e| failed("sync", &folder, e))
    }

    /// The machines that are paused, and since when.
    pub(crate) fn paused(&self) -> BTreeMap<MachineName, Timestamp> {
        self.paused.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look_paused(&self) -> Result<()> {
        let folder = self.folder.join("paused");
        let machines = names(&folder)?.into_iter().filter_map(|n| n.parse::<MachineName>().ok());
        // A file that says no time says that it is paused.
        let epoch = Timestamp::from_millis(0);
        let since = |m: MachineName| (m.clone(), paused_since(&folder.join(m.as_str())).unwrap_or(epoch));
        let paused = machines.map(since).collect();
        *self.paused.write().unwrap_or_else(PoisonError::into_inner) = paused;
        Ok(())
    }

    /// Reads anew which certificates are revoked and which machines are paused.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn look(&self) -> Result<()> {
        self.look_paused()?;
        let revoked = names(&self.folder.join("revoked"))?.into_iter().collect();
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked;
        Ok(())
    }

    /// Whether a certificate is revoked.
    pub(crate) fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&HEXLOWER.encode(serial))
    }
}
