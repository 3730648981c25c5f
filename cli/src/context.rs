//! What commands stand on: the store, the keys, the state directory, as the common options name them.

use std::path::PathBuf;
use std::sync::Arc;

use landfall_gateway::State;
use landfall_keys::{Passphrase, RecoveryKey, SiteKey};
use landfall_model::{Error, ErrorKind, Result};
use landfall_vault::{Store, Vault};

use crate::args::Common;

impl Common {
    pub(crate) fn store(&self) -> Result<Store> {
        let url = self
            .vault
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Usage, "no vault is named: pass --vault URL or set LANDFALL_VAULT"))?;
        Store::open(url)
    }

    pub(crate) fn site_key_path(&self) -> Result<&PathBuf> {
        self.site_key.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Key, "the site key is needed: pass --site-key FILE or set LANDFALL_SITE_KEY")
        })
    }

    pub(crate) fn recovery_key_path(&self) -> Result<&PathBuf> {
        self.recovery_key.as_ref().ok_or_else(|| {
            let why = "the recovery key is needed: pass --recovery-key FILE or set LANDFALL_RECOVERY_KEY";
            Error::new(ErrorKind::Key, why)
        })
    }

    pub(crate) fn passphrase(&self) -> Result<Option<Passphrase>> {
        Ok(self.passphrase_file.as_deref().map(Passphrase::from_file).transpose()?)
    }

    pub(crate) fn recovery(&self) -> Result<Arc<RecoveryKey>> {
        let path = self.recovery_key_path()?;
        Ok(Arc::new(RecoveryKey::read(path, self.passphrase()?.as_ref())?))
    }

    /// Says of a wrong key in which file it is.
    pub(crate) fn of_recovery_key(&self, error: Error) -> Error {
        match &self.recovery_key {
            Some(path) if error.kind() == ErrorKind::Key => error.context(format!("recovery key {}", path.display())),
            _ => error,
        }
    }

    /// The vault, opened with the site key.
    pub(crate) async fn site_vault(&self) -> Result<Vault> {
        let path = self.site_key_path()?;
        let site = SiteKey::read(path)?;
        Vault::open_with_site_key(self.store()?, site).await.map_err(|error| match error.kind() {
            ErrorKind::Key => error.context(format!("site key {}", path.display())),
            _ => error,
        })
    }

    /// The vault's metadata, with whichever key was given.
    pub(crate) async fn any_vault(&self) -> Result<Vault> {
        match (&self.site_key, &self.recovery_key) {
            (None, Some(_)) => {
                let recovery = self.recovery()?;
                Vault::open_with_recovery_key(self.store()?, &recovery).await.map_err(|e| self.of_recovery_key(e))
            }
            (None, None) => {
                let why = "a key is needed: pass --site-key FILE or --recovery-key FILE";
                Err(Error::new(ErrorKind::Key, why))
            }
            _ => self.site_vault().await,
        }
    }

    /// The vault, opened with the recovery key alone; where its own copy of the site key is lost, with the one that is at hand.
    pub(crate) async fn vault_to_restore(&self, recovery: &RecoveryKey) -> Result<Vault> {
        match Vault::open_with_recovery_key(self.store()?, recovery).await {
            Err(error) if error.kind() == ErrorKind::Corrupt && self.site_key.is_some() => {
                tracing::warn!(%error, "going on with the site key that was given");
                self.site_vault().await
            }
            opened => opened.map_err(|e| self.of_recovery_key(e)),
        }
    }

    /// The state directory of a vault: named, or where the system keeps such things.
    pub(crate) fn state(&self, vault: &Vault) -> Result<State> {
        State::open(&self.state_root()?, vault.config().vault_id)
    }

    /// Where state directories are.
    pub(crate) fn state_root(&self) -> Result<PathBuf> {
        self.state_dir.clone().map_or_else(default_state_dir, Ok)
    }
}

fn default_state_dir() -> Result<PathBuf> {
    let from = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(state) = from("STATE_DIRECTORY") {
        return Ok(state);
    }
    if let Some(state) = from("XDG_STATE_HOME") {
        return Ok(state.join("landfall"));
    }
    from("HOME").map(|home| home.join(".local/state/landfall")).ok_or_else(|| {
        Error::new(ErrorKind::Usage, "no place for the state directory: pass --state-dir DIR or set LANDFALL_STATE_DIR")
    })
}
