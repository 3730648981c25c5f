//! What a gateway remembers of its agents: tokens that wait to be used, certificates that were given out, and those that are revoked.
//!
//! ```text
//! <agents>/tokens/<hash of the secret>     machine and end of validity; deleted when it is used
//! <agents>/issued/<machine>/<serial>       one certificate, with its end of validity
//! <agents>/revoked/<serial>                not accepted any more
//! <agents>/resync/<machine>                to be compared in full, until it was
//! ```
//! Files, so that `gateway token` and `gateway revoke` work beside a running gateway. No secret is in them.

use std::collections::BTreeSet;
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
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    machine: MachineName,
    expires: Timestamp,
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

impl Registry {
    /// Opens or makes it.
    ///
    /// # Errors
    /// `Usage`, `NoSpace` of the folder.
    pub fn open(folder: PathBuf) -> Result<Self> {
        for part in ["tokens", "issued", "revoked", "resync"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(|e| failed("make", &part, e))?;
        }
        let registry = Self { folder, revoked: RwLock::default() };
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

    /// Whether a full comparison is asked for.
    pub(crate) fn asks_resync(&self, machine: &MachineName) -> bool {
        self.folder.join("resync").join(machine.as_str()).exists()
    }

    /// The full comparison that was asked for is done. Where that cannot be remembered there is another one.
    pub(crate) fn resync_done(&self, machine: &MachineName) {
        let path = self.folder.join("resync").join(machine.as_str());
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "the machine will be compared in full again");
        }
    }

    /// Reads anew which certificates are revoked.
    ///
    /// # Errors
    /// `Unavailable`.
    pub(crate) fn look(&self) -> Result<()> {
        let revoked = names(&self.folder.join("revoked"))?.into_iter().collect();
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked;
        Ok(())
    }

    /// Whether a certificate is revoked.
    pub(crate) fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&HEXLOWER.encode(serial))
    }
}
