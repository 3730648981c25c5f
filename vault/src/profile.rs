//! Boot profiles: where a machine reads when it boots (FORMAT.md section 8). A row of records for each machine, each put if absent; the newest that is right counts. They only make a boot
//! faster: whoever cannot read one does without.

use landfall_model::{BootProfile, Error, ErrorKind, Generation, MachineId, MachineName, Result, Seq};

use crate::layout::{self, Name};
use crate::record::{Kind, Position};
use crate::store::{Listed, PutExact};
use crate::vault::Vault;

/// Largest record that is read: 32768 ranges take less.
const PROFILE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// So many of the newest are looked at, where those are damaged.
const TRIES: usize = 3;

impl Vault {
    /// Its records in the store, ascending, with their numbers.
    async fn listed_profiles(&self, machine: MachineId) -> Result<Vec<(Listed, Seq)>> {
        let listed = self.store().list(&layout::profiles(machine)).await?;
        let number = |o: Listed| match layout::parse(&o.name)? {
            Name::Profile(_, seq) => Some((o, seq)),
            _ => None,
        };
        Ok(listed.into_iter().filter_map(number).collect())
    }

    fn profile_position(&self, machine: MachineId, seq: Seq) -> Position {
        self.aside(Kind::Profile, machine, seq, Generation(0))
    }

    /// The machines that have boot profiles.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn profiled(&self) -> Result<Vec<MachineId>> {
        let folders = self.store().list_folders(layout::PROFILES).await?;
        Ok(folders.iter().filter_map(|f| f.parse().ok()).collect())
    }

    /// All profiles of a machine, the oldest first: what is wrong with each that is.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn check_profiles(&self, machine: MachineId) -> Result<Vec<(String, Result<BootProfile>)>> {
        let mut out = Vec::new();
        for (object, seq) in self.listed_profiles(machine).await? {
            let read = self.read_profile(machine, &object, seq).await;
            out.push((object.name, read));
        }
        Ok(out)
    }

    /// The newest profile of a machine that can be read, if there is one. What is wrong with newer ones is told.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn boot_profile(&self, machine: &MachineName) -> Result<Option<BootProfile>> {
        let id = self.site().machine_id(machine);
        for (object, seq) in self.listed_profiles(id).await?.into_iter().rev().take(TRIES) {
            match self.read_profile(id, &object, seq).await {
                Ok(profile) => return Ok(Some(profile)),
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => tracing::warn!(%error, "a boot profile is ignored: the machine boots without it"),
            }
        }
        Ok(None)
    }

    async fn read_profile(&self, machine: MachineId, object: &Listed, seq: Seq) -> Result<BootProfile> {
        let name = &object.name;
        if object.size > PROFILE_BYTES_MAX as u64 {
            return Err(Error::corrupt(format!("{name}: {} bytes are more than a boot profile has", object.size)));
        }
        let read = self.read_small::<BootProfile>(name, self.profile_position(machine, seq), PROFILE_BYTES_MAX).await?;
        let profile = read.ok_or_else(|| Error::corrupt(format!("{name}: it is missing")))?;
        if self.site().machine_id(&profile.machine) != machine || !profile.is_sound() {
            return Err(Error::corrupt(format!("{name}: it says what a boot profile does not say")));
        }
        Ok(profile)
    }

    /// Keeps a profile as the newest of its machine. `false`: somebody else has kept one in the same moment.
    ///
    /// # Errors
    /// `Unavailable`; `Corrupt` where there is no number behind the newest.
    pub async fn keep_boot_profile(&self, profile: &BootProfile) -> Result<bool> {
        let id = self.site().machine_id(&profile.machine);
        let newest = self.listed_profiles(id).await?.last().map_or(0, |(_, seq)| seq.0);
        let next = newest.checked_add(1).map(Seq).ok_or_else(|| {
            Error::corrupt(format!("{}: its newest profile has the last number that there is", profile.machine))
        })?;
        let bytes = self.sign_aside(self.profile_position(id, next), profile)?;
        let put = self.store().put_exact(&layout::profile(id, next), bytes.into()).await?;
        Ok(put != PutExact::Different)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use landfall_keys::{RecoveryKey, SiteKey};
    use landfall_model::{Timestamp, VaultId};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::{Store, now};

    async fn vault() -> Vault {
        let recovery = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        let site = SiteKey::generate(VaultId::from_bytes([3; 16]), recovery.root_public()).expect("randomness");
        let store = Store::over(Arc::new(InMemory::new()), Path::default(), "memory");
        Vault::create(store, &recovery, site, now()).await.expect("a vault")
    }

    fn profile(ranges: Vec<(u16, u32, u32)>) -> BootProfile {
        let disks = vec!["root".parse().expect("a name")];
        BootProfile { machine: "web".parse().expect("a name"), recorded: Timestamp::from_millis(1), disks, ranges }
    }

    #[tokio::test]
    async fn the_newest_that_is_right_counts_and_others_are_passed_over() {
        let (vault, web) = (vault().await, "web".parse().expect("a name"));
        assert_eq!(vault.boot_profile(&web).await.expect("none yet"), None);
        let (old, new) = (profile(vec![(0, 1, 1)]), profile(vec![(0, 2, 2)]));
        assert!(
            vault.keep_boot_profile(&old).await.expect("kept") && vault.keep_boot_profile(&new).await.expect("kept")
        );
        assert_eq!(vault.boot_profile(&web).await.expect("read"), Some(new.clone()));
        let id = vault.site().machine_id(&web);
        let first = vault.store().get(&layout::profile(id, Seq(1))).await.expect("read").expect("there");
        // One of another number, one that is too large in what it says, and one that is no record.
        vault.store().put(&layout::profile(id, Seq(3)), first).await.expect("stored");
        assert!(vault.keep_boot_profile(&profile(vec![(0, 0, u32::MAX)])).await.expect("kept"));
        assert_eq!(vault.boot_profile(&web).await.expect("read"), Some(new));
        vault.store().put(&layout::profile(id, Seq(u64::MAX)), vec![7; 3 << 20].into()).await.expect("stored");
        assert_eq!(vault.keep_boot_profile(&old).await.expect_err("no number").kind(), ErrorKind::Corrupt);
        assert_eq!(vault.boot_profile(&web).await.expect("read"), None, "so many are looked at and no more");
        let wrong = vault.check_profiles(id).await.expect("listed");
        assert_eq!(wrong.iter().map(|(_, read)| read.is_ok()).collect::<Vec<_>>(), [true, true, false, false, false]);
    }

    #[tokio::test]
    async fn one_that_opens_into_more_than_it_may_is_not_opened() {
        let (vault, web) = (vault().await, "web".parse().expect("a name"));
        let id = vault.site().machine_id(&web);
        // It is small in the store, and 40 MiB when it is decompressed.
        let body = " ".repeat(40 << 20);
        let bytes = vault.sign_aside(vault.profile_position(id, Seq(1)), &body).expect("signed");
        assert!(bytes.len() < PROFILE_BYTES_MAX);
        vault.store().put(&layout::profile(id, Seq(1)), bytes.into()).await.expect("stored");
        let wrong = vault.check_profiles(id).await.expect("listed").remove(0).1.expect_err("refused");
        assert_eq!(wrong.kind(), ErrorKind::Corrupt);
        assert!(wrong.to_string().contains("longer") || wrong.to_string().contains("larger"), "{wrong}");
    }
}
