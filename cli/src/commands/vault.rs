//! `landfall vault create | info`.

use landfall_keys::{RecoveryKey, SiteKey};
use landfall_model::{Error, ErrorKind, Result, VaultId};
use landfall_vault::{FORMAT, Vault, crash_point, layout, now};
use serde_json::json;

use crate::args::Common;
use crate::output;

/// Makes the key files and the vault.
pub(crate) async fn create(common: &Common) -> Result<()> {
    let store = common.store()?;
    let (recovery_path, site_path) = (common.recovery_key_path()?, common.site_key_path()?);
    for path in [recovery_path, site_path] {
        if path.exists() {
            let why = format!("{} already exists: name a new file; nothing was changed", path.display());
            return Err(Error::new(ErrorKind::Conflict, why));
        }
    }
    if recovery_path == site_path {
        return Err(Error::new(ErrorKind::Usage, "the recovery key and the site key must be two files"));
    }
    Vault::refuse_existing(&store).await?;
    store.probe().await?;
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|e| Error::with_source(ErrorKind::Unavailable, "the host gives no random numbers", e))?;
    let recovery = RecoveryKey::generate(VaultId::from_bytes(id))?;
    let site = SiteKey::generate(recovery.vault_id(), recovery.root_public())?;
    recovery.write_new(recovery_path, common.passphrase()?.as_ref())?;
    if let Err(error) = site.write_new(site_path) {
        let _ = std::fs::remove_file(recovery_path);
        return Err(error.into());
    }
    crash_point("create.keys-written");
    let vault = match Vault::create(store, &recovery, site, now()).await {
        Ok(vault) => vault,
        Err(error) => {
            if error.kind() == ErrorKind::Unavailable {
                let why = "the vault may be there or not: the key files are kept; see `landfall vault info`";
                return Err(error.context(why));
            }
            // Keys of a vault that does not exist would only be mistaken for others.
            for path in [recovery_path, site_path] {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
    };
    let config = vault.config();
    let url = vault.store().url();
    let value = json!({
        "vault": url, "vault_id": config.vault_id, "format": FORMAT, "created": config.created,
        "recovery_key": recovery_path, "site_key": site_path, "site_key_id": vault.site().id(),
    });
    output::document(common.json, &value, || {
        format!(
            "Vault {} made at {url}.\n\nRecovery key: {}\n  Without it nothing can be read, by anybody. Keep copies off this site; see `landfall keys shares`.\n\
             Site key: {}\n  The gateway's. It writes and verifies; it reads no content.\n\n\
             Next: landfall replicate --vault {url} --site-key {} --machine NAME --disk root=/dev/...\n",
            config.vault_id,
            recovery_path.display(),
            site_path.display(),
            site_path.display(),
        )
    })
}

/// Shows what a vault is and holds.
pub(crate) async fn info(common: &Common) -> Result<()> {
    let vault = common.any_vault().await?;
    let (mut objects, mut bytes, mut points, mut segments) = (0_u64, 0_u64, 0_u64, 0_u64);
    for object in vault.store().list("").await? {
        objects += 1;
        bytes += object.size;
        match layout::parse(&object.name) {
            Some(layout::Name::Point(..)) => points += 1,
            Some(layout::Name::Segment(_)) => segments += 1,
            _ => {}
        }
    }
    let machines = vault.machines().await?.len();
    let config = vault.config();
    let recipients: Vec<_> = config.recipients()?.iter().map(|r| r.id()).collect();
    let value = json!({
        "vault": vault.store().url(), "vault_id": config.vault_id, "format": FORMAT, "created": config.created,
        "revision": config.revision, "recovery_key_ids": recipients, "site_key_id": vault.site().id(),
        "machines": machines, "points": points, "segments": segments, "objects": objects, "stored_bytes": bytes,
    });
    output::document(common.json, &value, || {
        format!(
            "Vault          {}\nURL            {}\nFormat         {FORMAT}\nCreated        {}\nRecovery keys  {}\nSite key       {}\n\
             Machines       {machines}\nPoints         {points}\nSegments       {segments}\nStored         {} in {objects} objects\n",
            config.vault_id,
            vault.store().url(),
            config.created,
            recipients.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            vault.site().id(),
            output::size(bytes),
        )
    })
}
