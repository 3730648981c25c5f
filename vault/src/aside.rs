//! What stands beside the points: small signed records with a JSON body (generations, heartbeats, revocations, jobs, reports of drills, boot profiles, orders; FORMAT.md section 8).

use landfall_model::{Digest, Error, ErrorKind, Generation, MachineId, Result, Seq, Timeline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{self, Kind, Position, Record, Signed};
use crate::vault::Vault;

impl Vault {
    /// The header of a record that is on no timeline. `of` is the machine, or the gateway's id.
    pub(crate) fn aside(&self, kind: Kind, of: MachineId, seq: Seq, generation: Generation) -> Position {
        Position {
            kind,
            vault: self.config().vault_id,
            machine: of,
            timeline: Timeline(0),
            parent_timeline: Timeline(0),
            seq,
            generation,
            previous: Digest::NONE,
        }
    }

    /// Makes the object.
    pub(crate) fn sign_aside(&self, position: Position, body: &impl Serialize) -> Result<Vec<u8>> {
        Ok(self.sign_linked(position, body)?.bytes)
    }

    /// Makes the object, and tells its digest: the link that the next one carries.
    pub(crate) fn sign_linked(&self, position: Position, body: &impl Serialize) -> Result<Signed> {
        let body =
            serde_json::to_vec(body).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode a record", e))?;
        record::encode(self.site(), position, &body, &[])
    }

    /// Reads one: what it says, and its digest. `None` where there is no such object.
    ///
    /// # Errors
    /// `Corrupt` where it is damaged or another object, `Key` where another site key sealed it, `Unavailable`.
    pub(crate) async fn read_aside<T: DeserializeOwned>(
        &self,
        name: &str,
        position: Position,
    ) -> Result<Option<(T, Digest)>> {
        self.read_linked(name, |_| position).await
    }

    /// The same of one that carries a link: `position` tells what it must be with the link that it says it carries.
    ///
    /// # Errors
    /// As for [`Self::read_aside`].
    pub(crate) async fn read_linked<T: DeserializeOwned>(
        &self,
        name: &str,
        position: impl Fn(Digest) -> Position,
    ) -> Result<Option<(T, Digest)>> {
        let Some(bytes) = self.store().get(name).await? else { return Ok(None) };
        let record = record::decode(self.site(), self.signers(), &bytes).map_err(|e| e.context(name))?;
        Self::parsed(name, &bytes, record, position)
    }

    /// Reads one of at most `bytes_max`, in the store and opened.
    ///
    /// # Errors
    /// As for [`Self::read_aside`].
    pub(crate) async fn read_small<T: DeserializeOwned>(
        &self,
        name: &str,
        position: Position,
        bytes_max: usize,
    ) -> Result<Option<T>> {
        // One more than it may have tells that it has more.
        let Some(bytes) = self.store().get_range(name, 0, bytes_max as u64 + 1).await? else { return Ok(None) };
        if bytes.len() > bytes_max {
            return Err(Error::corrupt(format!("{name}: it is larger than the format allows")));
        }
        let record = record::decode_within(self.site(), self.signers(), &bytes, bytes_max);
        let record = record.map_err(|e| e.context(name))?;
        Ok(Self::parsed(name, &bytes, record, |_| position)?.map(|(body, _)| body))
    }

    fn parsed<T: DeserializeOwned>(
        name: &str,
        bytes: &[u8],
        record: Record,
        position: impl Fn(Digest) -> Position,
    ) -> Result<Option<(T, Digest)>> {
        let whole = record.header.inline_start() == bytes.len() as u64;
        let found = record.header.position;
        if found != position(found.previous) || !whole {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        let body = serde_json::from_slice(&record.body);
        let body = body.map_err(|e| Error::corrupt(format!("{name}: its body does not parse: {e}")))?;
        Ok(Some((body, record.digest)))
    }
}
