//! Revocations: certificates of a machine that no gateway of this vault may accept any more (FORMAT.md section 8).
//!
//! One immutable object for each: its name says machine and time, so one listing shows what is new. A reader of the vault needs none.

use landfall_model::{Error, Generation, MachineId, MachineName, Result, RevocationMeta, Seq, Timestamp};

use crate::layout::{self, Name};
use crate::record::{Kind, Position};
use crate::store::PutExact;
use crate::vault::Vault;

/// Where a revocation stands in listings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RevocationKey {
    /// The machine.
    pub machine: MachineId,
    until: Seq,
}

impl RevocationKey {
    /// The object that revokes what a machine enrolled until then.
    pub fn of(vault: &Vault, machine: &MachineName, until: Timestamp) -> Self {
        Self { machine: vault.site().machine_id(machine), until: number(until) }
    }

    /// Its object's name.
    pub fn name(&self) -> String {
        layout::revocation(self.machine, self.until)
    }

    fn position(&self, vault: &Vault) -> Position {
        vault.aside(Kind::Revocation, self.machine, self.until, Generation(0))
    }
}

fn number(until: Timestamp) -> Seq {
    Seq(u64::try_from(until.millis()).unwrap_or(0))
}

impl Vault {
    /// The revocations that the store lists.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn revocations(&self) -> Result<Vec<RevocationKey>> {
        let listed = self.store().list(layout::REVOKED).await?;
        let key = |name: &str| match layout::parse(name)? {
            Name::Revocation(machine, until) => Some(RevocationKey { machine, until }),
            _ => None,
        };
        Ok(listed.iter().filter_map(|o| key(&o.name)).collect())
    }

    /// Reads a revocation.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged, false or another object, `Unavailable`.
    pub async fn revocation(&self, key: RevocationKey) -> Result<RevocationMeta> {
        let name = key.name();
        let read = self.read_aside::<RevocationMeta>(&name, key.position(self)).await?;
        let (meta, _) = read.ok_or_else(|| Error::corrupt(format!("{name}: it is missing")))?;
        if self.site().machine_id(&meta.machine) != key.machine || number(meta.until) != key.until {
            return Err(Error::corrupt(format!("{name}: it says something else than its name")));
        }
        Ok(meta)
    }

    /// Stores a revocation. That it is there already is no error: it says the same.
    ///
    /// # Errors
    /// `Corrupt` where something else stands in its place, `Unavailable`.
    pub async fn revoke(&self, meta: &RevocationMeta) -> Result<()> {
        let key = RevocationKey::of(self, &meta.machine, meta.until);
        let bytes = self.sign_aside(key.position(self), meta)?;
        match self.store().put_exact(&key.name(), bytes.into()).await? {
            PutExact::Created | PutExact::Same => Ok(()),
            // Another gateway's, sealed under another salt: it is what it should be, or that is told.
            PutExact::Different => self.revocation(key).await.map(drop),
        }
    }
}
