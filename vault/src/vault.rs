//! An open vault: its store, its verified description, and the site key that reads its metadata.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use landfall_keys::{EpochOpener, RecoveryKey, SiteKey, SitePublic, WrappedHeader, WrappedKind};
use landfall_model::{DomainId, EpochId, ErrorKind, MachineId, MachineName, RecipientId, Timestamp};

use crate::crash::crash_point;
use crate::layout;
use crate::machine::{Machine, PointKey};
use crate::store::{PutExact, Store};
use crate::vault_file::VaultConfig;
use landfall_model::{Error, Result};

/// Size of a wrapped epoch key (FORMAT.md section 5).
const EPOCH_WRAP_BYTES: u64 = 224;

/// An open vault. Holds no key that opens content.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    /// Where segments are looked for before the store is asked: those that are on their way there.
    ahead: OnceLock<Store>,
    config: VaultConfig,
    site: SiteKey,
    signers: Vec<SitePublic>,
}

impl Vault {
    /// Makes a vault in a store that passed its probe: the site key's wrap first, `vault.json` last.
    ///
    /// # Errors
    /// `Conflict` where there already is one, `Unsupported` where the store fails the probe.
    pub async fn create(store: Store, recovery: &RecoveryKey, site: SiteKey, now: Timestamp) -> Result<Self> {
        let recipient = recovery.recipient();
        let wrap = site.wrap_to(&recipient)?;
        store.put(&layout::site_key(site.id(), recipient.id()), wrap.into()).await?;
        crash_point("create.site-key-stored");
        let config = VaultConfig::new(recovery, &site, now);
        let file = config.encode(recovery)?;
        if store.put_exact(layout::VAULT_FILE, file.into()).await? == PutExact::Different {
            return Err(already_there(&store));
        }
        Self::assemble(store, config, site)
    }

    /// Refuses a store that already holds a vault.
    ///
    /// # Errors
    /// `Conflict` where there is one.
    pub async fn refuse_existing(store: &Store) -> Result<()> {
        match store.get(layout::VAULT_FILE).await? {
            Some(_) => Err(already_there(store)),
            None => Ok(()),
        }
    }

    fn assemble(store: Store, config: VaultConfig, site: SiteKey) -> Result<Self> {
        let signers = config.signers()?;
        if !signers.iter().any(|s| s.id() == site.id()) {
            let why =
                format!("site key {} is not one of vault {}: it was replaced or revoked", site.id(), config.vault_id);
            return Err(Error::new(ErrorKind::Key, why));
        }
        Ok(Self { inner: Arc::new(Inner { store, ahead: OnceLock::new(), config, site, signers }) })
    }

    async fn vault_file(store: &Store) -> Result<Bytes> {
        let missing = || {
            let why = format!("no vault at {}: check the URL, or make one with `landfall vault create`", store.url());
            Error::new(ErrorKind::NotFound, why)
        };
        store.get(layout::VAULT_FILE).await?.ok_or_else(missing)
    }

    /// Opens a vault with its site key: enough to write to it and to verify it, not to read content.
    ///
    /// # Errors
    /// `NotFound` where there is no vault, `Key` where the key is another's, `Corrupt`, `Unsupported`.
    pub async fn open_with_site_key(store: Store, site: SiteKey) -> Result<Self> {
        let config = VaultConfig::decode(&Self::vault_file(&store).await?, &site.root_public())?;
        if config.vault_id != site.vault_id() {
            let why = format!("the site key is of vault {}, this is vault {}", site.vault_id(), config.vault_id);
            return Err(Error::new(ErrorKind::Key, why));
        }
        Self::assemble(store, config, site)
    }

    /// Opens a vault with nothing but the recovery key: the site key is unwrapped from the vault.
    ///
    /// # Errors
    /// As for [`Self::open_with_site_key`].
    pub async fn open_with_recovery_key(store: Store, recovery: &RecoveryKey) -> Result<Self> {
        let config = VaultConfig::decode(&Self::vault_file(&store).await?, &recovery.root_public())?;
        if config.vault_id != recovery.vault_id() {
            let why =
                format!("the recovery key is of vault {}, this is vault {}", recovery.vault_id(), config.vault_id);
            return Err(Error::new(ErrorKind::Key, why));
        }
        let signer = config.signers()?.pop().ok_or_else(|| Error::corrupt("vault.json names no site key"))?;
        let name = layout::site_key(signer.id(), recovery.recipient().id());
        let wrapped = store.get(&name).await?;
        let wrapped = wrapped.ok_or_else(|| Error::corrupt(format!("{name}: the wrapped site key is missing")))?;
        // Asked for by the recipient's name and found: one that this key cannot open is damage, not a wrong key.
        let header = WrappedHeader::parse(&wrapped).map_err(|e| Error::from(e).context(&name))?;
        if !header.verify_signature(&signer) {
            return Err(Error::corrupt(format!("{name}: it is damaged, or not of this vault")));
        }
        let site = recovery.unwrap_site_key(&wrapped, &signer).map_err(|e| Error::from(e).context(&name))?;
        Self::assemble(store, config, site)
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Looks for segments in another store first, where they wait to be uploaded. Can be said once.
    pub fn look_ahead_in(&self, store: Store) {
        let _ = self.inner.ahead.set(store);
    }

    /// A range of a segment; none where there is no such segment.
    ///
    /// # Errors
    /// As for [`Store::get_range`].
    pub async fn segment_range(&self, name: &str, start: u64, end: u64) -> Result<Option<Bytes>> {
        // What is taken out of there is in the store by then.
        if let Some(ahead) = self.inner.ahead.get()
            && let Some(bytes) = ahead.get_range(name, start, end).await?
        {
            return Ok(Some(bytes));
        }
        self.store().get_range(name, start, end).await
    }

    /// Its verified description.
    pub fn config(&self) -> &VaultConfig {
        &self.inner.config
    }

    /// Its site key.
    pub fn site(&self) -> &SiteKey {
        &self.inner.site
    }

    /// The keys that may sign records.
    pub fn signers(&self) -> &[SitePublic] {
        &self.inner.signers
    }

    /// One of its machines, which may not have a point yet.
    pub fn machine(&self, name: &MachineName) -> Machine {
        Machine::new(self.clone(), self.site().machine_id(name))
    }

    /// A machine that has recovery points, and the line of them.
    ///
    /// # Errors
    /// `NotFound` where it has none; as for [`Machine::line`].
    pub async fn protected(&self, name: &MachineName) -> Result<(Machine, Vec<PointKey>)> {
        let machine = self.machine(name);
        let line = machine.line().await?;
        if line.is_empty() { Err(self.no_points(name)) } else { Ok((machine, line)) }
    }

    /// The error that a machine has no recovery points.
    pub fn no_points(&self, name: &MachineName) -> Error {
        let why = format!("machine {name} has no recovery points in {}: see `landfall machines`", self.store().url());
        Error::new(ErrorKind::NotFound, why)
    }

    /// One of its machines, by its name in the store.
    pub fn machine_by_id(&self, id: MachineId) -> Machine {
        Machine::new(self.clone(), id)
    }

    /// Every machine that has objects in the vault.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn machines(&self) -> Result<Vec<Machine>> {
        let ids = self.store().list_folders(layout::MACHINES).await?;
        let ids = ids.iter().filter_map(|id| id.parse::<MachineId>().ok());
        Ok(ids.map(|id| Machine::new(self.clone(), id)).collect())
    }

    /// The epochs of a domain whose wrapped keys are stored: only what they sealed can be read, so only that is a dedup target.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn epochs(&self, domain: DomainId) -> Result<Vec<EpochId>> {
        let listed = self.store().list(&format!("{}/{domain}", layout::EPOCHS)).await?;
        let mut epochs: Vec<EpochId> = listed
            .iter()
            .filter_map(|o| match layout::parse(&o.name) {
                // A wrap that was cut short is no wrap: what its epoch sealed is stored anew.
                Some(layout::Name::Epoch(d, epoch, _)) if d == domain && o.size == EPOCH_WRAP_BYTES => Some(epoch),
                _ => None,
            })
            .collect();
        epochs.dedup();
        Ok(epochs)
    }

    /// A wrapped key, checked by its signature against what its name says; not opened.
    pub(crate) async fn wrapped(
        &self,
        name: &str,
        kind: WrappedKind,
        recipient: RecipientId,
    ) -> Result<(Bytes, SitePublic)> {
        let bytes = self.store().get(name).await?.ok_or_else(|| Error::corrupt(format!("{name}: it is missing")))?;
        let signer = self.check_wrapped(name, kind, recipient, &bytes)?;
        Ok((bytes, signer))
    }

    fn check_wrapped(&self, name: &str, kind: WrappedKind, recipient: RecipientId, bytes: &[u8]) -> Result<SitePublic> {
        let header = WrappedHeader::parse(bytes).map_err(|e| Error::from(e).context(name))?;
        let signer = self.signers().iter().find(|s| header.verify_signature(s));
        let signer = signer.filter(|_| header.vault() == self.config().vault_id);
        let signer = signer.ok_or_else(|| Error::corrupt(format!("{name}: no key of this vault signed it")))?;
        if header.kind() != kind || header.recipient() != recipient {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        Ok(*signer)
    }

    /// Whether the bytes of a segment or wrapped epoch key are what their name says: content of one, signature and place of the other.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn check_object(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let right = match layout::parse(name) {
            Some(layout::Name::Segment(id)) => blake3::hash(bytes).as_bytes() == id.as_bytes(),
            Some(layout::Name::Epoch(domain, epoch, recipient)) => {
                self.check_wrapped(name, WrappedKind::Epoch { domain, epoch }, recipient, bytes)?;
                true
            }
            _ => false,
        };
        if right { Ok(()) } else { Err(Error::corrupt(format!("{name}: its bytes are not what its name says"))) }
    }

    /// Opens an epoch with the recovery key.
    ///
    /// # Errors
    /// `Corrupt` where its wrapped key is missing or tampered with.
    pub async fn open_epoch(&self, recovery: &RecoveryKey, domain: DomainId, epoch: EpochId) -> Result<EpochOpener> {
        let recipient = recovery.recipient().id();
        let name = layout::epoch(domain, epoch, recipient);
        let (bytes, signer) = self.wrapped(&name, WrappedKind::Epoch { domain, epoch }, recipient).await?;
        recovery.unwrap_epoch(&bytes, &signer).map_err(|e| Error::from(e).context(&name))
    }
}

fn already_there(store: &Store) -> Error {
    let why = format!("{} already holds a vault: choose another prefix; nothing was changed", store.url());
    Error::new(ErrorKind::Conflict, why)
}
