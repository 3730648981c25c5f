//! The keys of the epochs that a rehydrate needs, opened once each.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{StreamExt, stream};
use landfall_keys::{EpochOpener, Fingerprinter, RecoveryKey};
use landfall_model::{ChunkRef, DomainId, EpochId, Error, ErrorKind, Result, VaultId};
use landfall_vault::{Decompressor, Vault};

/// Wrapped keys fetched at once: a month of short runs has thousands of epochs.
const EPOCHS_IN_FLIGHT: usize = 16;

/// Opens content frames of one domain.
pub(crate) struct Openers {
    vault: Vault,
    recovery: Arc<RecoveryKey>,
    domain: DomainId,
    fingerprinter: Fingerprinter,
    /// An epoch whose key is missing or wrong stays an error, said for each chunk that needs it.
    by_epoch: RwLock<HashMap<EpochId, std::result::Result<Arc<EpochOpener>, String>>>,
}

impl Openers {
    pub(crate) fn new(vault: Vault, recovery: Arc<RecoveryKey>, domain: DomainId) -> Self {
        let fingerprinter = vault.site().fingerprinter(domain);
        Self { vault, recovery, domain, fingerprinter, by_epoch: RwLock::default() }
    }

    pub(crate) fn fingerprinter(&self) -> &Fingerprinter {
        &self.fingerprinter
    }

    fn vault_id(&self) -> VaultId {
        self.vault.config().vault_id
    }

    fn known(&self, epoch: EpochId) -> Option<std::result::Result<Arc<EpochOpener>, String>> {
        self.by_epoch.read().unwrap_or_else(PoisonError::into_inner).get(&epoch).cloned()
    }

    /// Fetches and opens the keys of epochs.
    ///
    /// # Errors
    /// `Unavailable`; a key that is missing or wrong is an error of the chunks that need it.
    pub(crate) async fn prepare(&self, epochs: impl Iterator<Item = EpochId>) -> Result<()> {
        let unknown: Vec<EpochId> = epochs.filter(|epoch| self.known(*epoch).is_none()).collect();
        let mut opened = stream::iter(unknown)
            .map(|epoch| async move { (epoch, self.vault.open_epoch(&self.recovery, self.domain, epoch).await) })
            .buffer_unordered(EPOCHS_IN_FLIGHT);
        while let Some((epoch, opened)) = opened.next().await {
            let opened = match opened {
                Ok(opener) => Ok(Arc::new(opener)),
                Err(error) if error.kind() != ErrorKind::Unavailable && error.kind() != ErrorKind::Usage => {
                    Err(error.to_string())
                }
                Err(error) => return Err(error),
            };
            self.by_epoch.write().unwrap_or_else(PoisonError::into_inner).insert(epoch, opened);
        }
        Ok(())
    }

    /// Opens a frame in place into `out`.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn open(
        &self,
        decompressor: &mut Decompressor,
        chunk: &ChunkRef,
        frame: &mut [u8],
        out: &mut [u8],
    ) -> Result<()> {
        let opener = match self.known(chunk.location.epoch) {
            Some(Ok(opener)) => opener,
            Some(Err(why)) => return Err(Error::corrupt(why)),
            None => return Err(Error::corrupt(format!("epoch {} was not opened", chunk.location.epoch))),
        };
        decompressor.open_content(&opener, &self.fingerprinter, self.vault_id(), chunk, frame, out)
    }
}
