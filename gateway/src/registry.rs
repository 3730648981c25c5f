//! What a gateway remembers of its agents: tokens that wait to be used, and which certificates are revoked.
//!
//! ```text
//! <agents>/tokens/<hash of the secret>     machine and end of validity; deleted when it is used
//! <agents>/revoked/<machine>-<until>       what the machine enrolled until then (milliseconds since 1970, 16 hex) is refused
//! <agents>/resync/<machine>                to be compared in full, until it was
//! <agents>/paused/<machine>                it is to begin no cycle; since when
//! ```
//! Files, so that `gateway token`, `gateway revoke`, `pause` and `resume` work beside a running gateway. No secret is in them. The vault has
//! the revocations too, for all gateways ([`crate::revoked`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use landfall_model::{Error, ErrorKind, MachineName, Result, RevocationMeta, Seq, Timestamp};
use landfall_vault::now;
use landfall_wire::pki::{BACKDATED, Token};
use serde::{Deserialize, Serialize};

use crate::state::replace;

/// A revocation reaches so far into the future: what a gateway enrolled whose clock is ahead is revoked too. A certificate that says to be of
/// still later is not valid yet. Machines that enrol again say that they did so after it; the rest of the hour is for hosts whose clocks are behind.
const AHEAD: Duration = BACKDATED.saturating_sub(Duration::from_secs(5 * 60));
/// Certificates say the second of their enrolment: what is revoked a second time lies so far behind what was enrolled in between.
const AGAIN: Duration = Duration::from_secs(2);

/// Tokens and revocations of one vault's agents.
pub struct Registry {
    folder: PathBuf,
    /// As of the last look: asked for each call, so no disk is read then.
    revoked: RwLock<BTreeMap<MachineName, BTreeSet<Timestamp>>>,
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
        for part in ["tokens", "revoked", "resync", "paused"] {
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
        let expires = later(now(), valid);
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

    /// Revokes every certificate of a machine of an enrolment until now, whichever gateway enrolled it and whichever renews it.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub fn revoke(&self, machine: &MachineName) -> Result<RevocationMeta> {
        self.look()?;
        let (until, again) = (later(now(), AHEAD), self.revoked_until(machine).map(|last| later(last, AGAIN)));
        let until = again.map_or(until, |again| until.max(again));
        let revocation = RevocationMeta { machine: machine.clone(), until };
        self.learn(&revocation)?;
        Ok(revocation)
    }

    /// Adds a revocation, from whichever gateway it comes.
    ///
    /// # Errors
    /// `NoSpace`, `Usage` of the folder.
    pub(crate) fn learn(&self, revocation: &RevocationMeta) -> Result<()> {
        let until = Seq(u64::try_from(revocation.until.millis()).unwrap_or(0));
        let name = format!("{}-{}", revocation.machine, until.key());
        replace(&self.folder.join("revoked").join(name), b"")?;
        self.look()
    }

    /// All that is revoked.
    pub(crate) fn revocations(&self) -> Vec<RevocationMeta> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let of = |(machine, times): (&MachineName, &BTreeSet<Timestamp>)| {
            times.iter().map(|until| RevocationMeta { machine: machine.clone(), until: *until }).collect::<Vec<_>>()
        };
        revoked.iter().flat_map(of).collect()
    }

    fn revoked_until(&self, machine: &MachineName) -> Option<Timestamp> {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        revoked.get(machine).and_then(|times| times.last().copied())
    }

    /// The moment that the certificate of a machine that enrols now says: after all that is revoked of it.
    pub(crate) fn enrolment(&self, machine: &MachineName) -> Timestamp {
        let after = self.revoked_until(machine).map(|last| Timestamp::from_millis((last.millis() / 1000 + 1) * 1000));
        after.map_or(now(), |after| now().max(after))
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
        let mut revoked: BTreeMap<MachineName, BTreeSet<Timestamp>> = BTreeMap::new();
        for (machine, until) in names(&self.folder.join("revoked"))?.iter().filter_map(|name| parse(name)) {
            revoked.entry(machine).or_default().insert(until);
        }
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = revoked;
        Ok(())
    }

    /// Whether a machine's certificate of this enrolment is revoked.
    pub(crate) fn is_revoked(&self, machine: &MachineName, enrolled: Timestamp) -> bool {
        self.revoked_until(machine).is_some_and(|until| enrolled <= until)
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(time.millis().saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// Machine and time of a revocation's file.
fn parse(name: &str) -> Option<(MachineName, Timestamp)> {
    let (machine, until) = name.rsplit_once('-')?;
    let until = i64::try_from(Seq::from_key(until).ok()?.0).ok()?;
    Some((machine.parse().ok()?, Timestamp::from_millis(until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str) -> MachineName {
        name.parse().expect("a name")
    }

    /// As a certificate says it.
    fn second(time: Timestamp) -> Timestamp {
        Timestamp::from_millis(time.millis() / 1000 * 1000)
    }

    #[test]
    fn what_was_enrolled_until_a_revocation_is_refused_and_what_comes_after_is_not_however_soon() {
        let folder = tempfile::tempdir().expect("a folder");
        let registry = Registry::open(folder.path().to_owned()).expect("opens");
        // Names with the separator in them, and one that looks like a file that is being written.
        for name in ["web", "web-1", "web-000000000000002a", "web.new"] {
            let (name, mut enrolled) = (machine(name), Vec::new());
            for round in 0..4 {
                enrolled.push(second(registry.enrolment(&name)));
                assert!(!registry.is_revoked(&name, enrolled[round]), "{name}: enrolled after {round} revocations");
                let revocation = registry.revoke(&name).expect("revoked");
                assert!(registry.revocations().contains(&revocation));
                // And what a gateway enrolled whose clock is ahead; but what enrols again has a certificate that is valid.
                assert!(registry.is_revoked(&name, later(now(), Duration::from_secs(50 * 60))));
                assert!(registry.enrolment(&name) < later(now(), BACKDATED - Duration::from_secs(60)));
                assert!(enrolled.iter().all(|e| registry.is_revoked(&name, *e)), "{name}: round {round}");
            }
        }
        assert!(!registry.is_revoked(&machine("db"), second(now())), "nothing was said of it");
        // Another process of the same folder, and a gateway that was told, refuse the same.
        let (again, other) =
            (Registry::open(folder.path().to_owned()).expect("opens"), tempfile::tempdir().expect("one"));
        let told = Registry::open(other.path().to_owned()).expect("opens");
        registry.revocations().iter().rev().for_each(|r| told.learn(r).expect("learnt"));
        assert_eq!(again.revocations(), registry.revocations());
        assert_eq!(told.revocations(), registry.revocations());
        assert_eq!(registry.revocations().len(), 16);
    }
}
