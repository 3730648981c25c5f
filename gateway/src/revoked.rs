//! Revocations are of all gateways of a vault: what one is told, the others read there.

use std::collections::{BTreeMap, BTreeSet};

use landfall_model::{ErrorKind, Result, RevocationMeta};
use landfall_vault::{RevocationKey, Vault};

use crate::registry::Registry;

/// Brings registry and vault to the same revocations: one listing, and a request for each that is new here or there. What cannot be read is
/// left out. So a gateway that was told while the store was down tells it later, and one that somebody deleted is put back by whoever knows it.
///
/// # Errors
/// `Unavailable`; then the registry keeps what it knows.
pub async fn share_revocations(vault: &Vault, registry: &Registry) -> Result<()> {
    registry.look()?;
    let listed: BTreeSet<RevocationKey> = vault.revocations().await?.into_iter().collect();
    let keyed = |r: RevocationMeta| (RevocationKey::of(vault, &r.machine, r.until), r);
    let known: BTreeMap<RevocationKey, RevocationMeta> = registry.revocations().into_iter().map(keyed).collect();
    for key in listed.iter().filter(|key| !known.contains_key(key)) {
        match vault.revocation(*key).await {
            Ok(revocation) => {
                tracing::info!(machine = %revocation.machine, until = %revocation.until, "certificates are revoked");
                registry.learn(&revocation)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Key | ErrorKind::Unsupported) => {
                tracing::warn!(%error, "a revocation cannot be read: run `landfall verify`");
            }
            Err(error) => return Err(error),
        }
    }
    for (_, revocation) in known.iter().filter(|(key, _)| !listed.contains(key)) {
        vault.revoke(revocation).await?;
    }
    Ok(())
}
