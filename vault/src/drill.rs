//! Reports of drills: one record each, signed and sealed as the others, with the picture of the screen behind its signature (FORMAT.md section 8).
//!
//! ```text
//! | header 160, with the digest of the sealed picture | sealed report | signature 64 | sealed picture |
//! ```
//! The report is for whoever has the site key, as jobs are. The picture is what stood on a screen of the machine: only the recovery key opens it.

use bytes::Bytes;
use landfall_keys::RecoveryKey;
use landfall_model::{DrillMeta, Error, ErrorKind, Generation, JobId, MachineId, Result, Seq};

use crate::layout::{self, Name};
use crate::machine::head_bytes;
use crate::record::{self, Header, Kind, Position};
use crate::store::PutExact;
use crate::vault::Vault;

/// Largest picture: a screen of 1280 x 1024 without compression fits.
pub const PICTURE_BYTES_MAX: usize = 4 << 20;
/// Largest report with its picture: what is longer is none, and is not read.
const DRILL_BYTES_MAX: u64 = 8 << 20;

/// A report in a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DrillKey {
    /// When the drill was begun, in milliseconds since 1970.
    pub begun: Seq,
    /// The job that was the drill.
    pub job: JobId,
    /// Size of its object.
    size: u64,
}

impl DrillKey {
    /// Its object's name.
    pub fn name(&self) -> String {
        layout::drill(self.begun, self.job)
    }
}

fn begun(meta: &DrillMeta) -> Seq {
    Seq(u64::try_from(meta.begun.millis()).unwrap_or(0))
}

impl Vault {
    fn drill_position(&self, begun: Seq, job: JobId) -> Position {
        self.aside(Kind::Drill, MachineId::from_bytes(*job.as_bytes()), begun, Generation(0))
    }

    fn picture_aad(&self, job: JobId) -> Vec<u8> {
        [&self.config().vault_id.as_bytes()[..], job.as_bytes()].concat()
    }

    /// All reports, the oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn drills(&self) -> Result<Vec<DrillKey>> {
        let listed = self.store().list(layout::DRILLS).await?;
        let key = |o: &crate::store::Listed| match layout::parse(&o.name)? {
            Name::Drill(begun, job) => Some(DrillKey { begun, job, size: o.size }),
            _ => None,
        };
        Ok(listed.iter().filter_map(key).collect())
    }

    /// Reads a report, without its picture.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged, false or another object, `Key` where another site key sealed it, `Unavailable`.
    pub async fn drill(&self, key: DrillKey) -> Result<DrillMeta> {
        let name = self.readable(key)?;
        let bytes = head_bytes(self.store(), &name, key.size).await?;
        Ok(self.decode_drill(key, &name, &bytes)?.1)
    }

    /// Reads a report with what stands behind it, and checks that against the digest that was signed; the sealed picture, where there is one.
    ///
    /// # Errors
    /// As for [`Self::drill`].
    pub async fn drill_whole(&self, key: DrillKey) -> Result<(DrillMeta, Option<Bytes>)> {
        let name = self.readable(key)?;
        let bytes = self.store().get(&name).await?;
        let bytes = bytes.ok_or_else(|| Error::corrupt(format!("{name}: it is missing")))?;
        let (header, meta) = self.decode_drill(key, &name, &bytes)?;
        let start = usize::try_from(header.inline_start()).unwrap_or(usize::MAX).min(bytes.len());
        let behind = bytes.slice(start..);
        if behind.len() as u64 != header.inline_len
            || *blake3::hash(&behind).as_bytes() != *header.inline_digest.as_bytes()
        {
            return Err(Error::corrupt(format!("{name}: its picture is not the one that was signed")));
        }
        Ok((meta, (!behind.is_empty()).then_some(behind)))
    }

    /// The picture of a report, if it has one.
    ///
    /// # Errors
    /// As for [`Self::drill`]; `Key` where it was sealed for another recovery key.
    pub async fn drill_picture(&self, key: DrillKey, recovery: &RecoveryKey) -> Result<(DrillMeta, Option<Vec<u8>>)> {
        let (meta, sealed) = self.drill_whole(key).await?;
        let (Some(said), Some(sealed)) = (&meta.picture, sealed) else { return Ok((meta, None)) };
        let opened = recovery.open_picture(&self.picture_aad(key.job), &sealed).map_err(|e| {
            let why = format!("{}: its picture does not open with this recovery key", key.name());
            Error::with_source(ErrorKind::Key, why, e)
        })?;
        if opened.len() as u64 != said.bytes || *blake3::hash(&opened).as_bytes() != *said.blake3.as_bytes() {
            return Err(Error::corrupt(format!("{}: its picture is another one than it says", key.name())));
        }
        Ok((meta, Some(opened)))
    }

    fn readable(&self, key: DrillKey) -> Result<String> {
        let name = key.name();
        if key.size > DRILL_BYTES_MAX {
            return Err(Error::corrupt(format!("{name}: it is larger than a report can be")));
        }
        Ok(name)
    }

    fn decode_drill(&self, key: DrillKey, name: &str, bytes: &[u8]) -> Result<(Header, DrillMeta)> {
        let record = record::decode(self.site(), self.signers(), bytes).map_err(|e| e.context(name))?;
        let header = record.header;
        let whole = header.inline_start().checked_add(header.inline_len) == Some(key.size);
        if header.position != self.drill_position(key.begun, key.job) || !whole {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        let meta = serde_json::from_slice(&record.body);
        let meta: DrillMeta = meta.map_err(|e| Error::corrupt(format!("{name}: its body does not parse: {e}")))?;
        if meta.job != key.job || begun(&meta) != key.begun || meta.picture.is_some() != (header.inline_len > 0) {
            return Err(Error::corrupt(format!("{name}: it says something else than its name")));
        }
        Ok((header, meta))
    }

    /// Stores a report; `picture`: of the screen, as its report describes it, sealed here for the recovery key alone. There is one report of a drill.
    ///
    /// # Errors
    /// `Conflict` where there is another report of it; `Unavailable`.
    pub async fn put_drill(&self, meta: &DrillMeta, picture: Option<(&[u8], &RecoveryKey)>) -> Result<()> {
        let sealed = match picture {
            Some((bytes, recovery)) => recovery.seal_picture(&self.picture_aad(meta.job), bytes)?,
            None => Vec::new(),
        };
        let body =
            serde_json::to_vec(meta).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode a report", e))?;
        let signed = record::encode(self.site(), self.drill_position(begun(meta), meta.job), &body, &sealed)?;
        match self.store().put_exact(&layout::drill(begun(meta), meta.job), signed.bytes.into()).await? {
            PutExact::Created | PutExact::Same => Ok(()),
            PutExact::Different => {
                let why = format!("drill {} has a report already: see `landfall drill show {}`", meta.job, meta.job);
                Err(Error::new(ErrorKind::Conflict, why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use landfall_keys::SiteKey;
    use landfall_model::{Digest, DrillPicture, DrillResult, Timestamp, VaultId};
    use object_store::memory::InMemory;
    use object_store::path::Path;

    use super::*;
    use crate::{Store, now};

    async fn vault() -> (Vault, RecoveryKey) {
        let recovery = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        let site = SiteKey::generate(VaultId::from_bytes([3; 16]), recovery.root_public()).expect("randomness");
        let store = Store::over(Arc::new(InMemory::new()), Path::default(), "memory");
        (Vault::create(store, &recovery, site, now()).await.expect("a vault"), recovery)
    }

    fn meta(id: u8, picture: Option<&[u8]>) -> DrillMeta {
        let picture = picture.map(|bytes| DrillPicture {
            format: "png".to_owned(),
            bytes: bytes.len() as u64,
            blake3: Digest::from_bytes(*blake3::hash(bytes).as_bytes()),
        });
        DrillMeta {
            job: JobId::from_bytes([id; 16]),
            machine: "web".parse().expect("a name"),
            target: "kvm".to_owned(),
            asked: "latest".to_owned(),
            point: None,
            consistency: None,
            host: "here".to_owned(),
            begun: Timestamp::from_millis(1000 + i64::from(id)),
            ended: Timestamp::from_millis(2000),
            rto_ms: Some(1000),
            steps: Vec::new(),
            probes: Vec::new(),
            fetched_bytes: 1,
            result: DrillResult::Passed,
            why: None,
            code: 0,
            version: "0".to_owned(),
            picture,
            no_picture: None,
        }
    }

    #[tokio::test]
    async fn a_report_is_what_was_stored_once_and_its_picture_is_for_the_recovery_key_alone() {
        let (vault, recovery) = vault().await;
        let (with, without) = (meta(1, Some(b"a screen")), meta(2, None));
        vault.put_drill(&without, None).await.expect("stored");
        vault.put_drill(&with, Some((b"a screen", &recovery))).await.expect("stored");
        let keys = vault.drills().await.expect("listed");
        assert_eq!(keys.iter().map(|k| k.job).collect::<Vec<_>>(), [with.job, without.job], "the oldest first");
        assert_eq!(vault.drill(keys[0]).await.expect("read"), with);
        assert_eq!(vault.drill_whole(keys[1]).await.expect("read"), (without.clone(), None));
        let (_, picture) = vault.drill_picture(keys[0], &recovery).await.expect("opened");
        assert_eq!(picture.as_deref(), Some(&b"a screen"[..]));
        let other = RecoveryKey::generate(VaultId::from_bytes([3; 16])).expect("randomness");
        assert_eq!(vault.drill_picture(keys[0], &other).await.expect_err("another's").kind(), ErrorKind::Key);
        // Whoever comes second does not replace it.
        let again = DrillMeta { fetched_bytes: 2, ..without };
        assert_eq!(vault.put_drill(&again, None).await.expect_err("there is one").kind(), ErrorKind::Conflict);
    }

    #[tokio::test]
    async fn a_report_that_was_changed_at_any_byte_or_moved_is_none() {
        let (vault, recovery) = vault().await;
        let with = meta(1, Some(b"a screen"));
        vault.put_drill(&with, Some((b"a screen", &recovery))).await.expect("stored");
        let key = vault.drills().await.expect("listed")[0];
        let right = vault.store().get(&key.name()).await.expect("read").expect("there");
        for at in 0..right.len() {
            let mut wrong = right.to_vec();
            wrong[at] ^= 1;
            vault.store().put(&key.name(), wrong.into()).await.expect("stored");
            assert!(vault.drill_whole(key).await.is_err(), "byte {at}");
        }
        vault.store().put(&key.name(), right.slice(..right.len() - 1)).await.expect("stored");
        let short = vault.drills().await.expect("listed")[0];
        assert_eq!(vault.drill(short).await.expect_err("cut short").kind(), ErrorKind::Corrupt);
        // At another time, and as another drill's.
        for name in [layout::drill(Seq(key.begun.0 + 1), key.job), layout::drill(key.begun, JobId::from_bytes([9; 16]))]
        {
            vault.store().put(&name, right.clone()).await.expect("stored");
        }
        for moved in vault.drills().await.expect("listed") {
            assert_eq!(vault.drill(moved).await.expect_err("moved, or cut short").kind(), ErrorKind::Corrupt);
        }
        // What is too large is not read at all.
        let large = DrillKey { size: DRILL_BYTES_MAX + 1, ..key };
        assert_eq!(vault.drill(large).await.expect_err("too large").kind(), ErrorKind::Corrupt);
    }
}
