//! What stands beside the points: small signed records with a JSON body (generations, heartbeats, revocations; FORMAT.md section 8).

use landfall_model::{Digest, Error, ErrorKind, Generation, MachineId, Result, Seq, Timeline};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{self, Kind, Position};
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
        let body =
            serde_json::to_vec(body).map_err(|e| Error::with_source(ErrorKind::Bug, "cannot encode a record", e))?;
        Ok(record::encode(self.site(), position, &body, &[])?.bytes)
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
        let Some(bytes) = self.store().get(name).await? else { return Ok(None) };
        let record = record::decode(self.site(), self.signers(), &bytes).map_err(|e| e.context(name))?;
        let whole = record.header.inline_start() == bytes.len() as u64;
        if record.header.position != position || !whole {
            return Err(Error::corrupt(format!("{name}: it is another object, put in this place")));
        }
        let body = serde_json::from_slice(&record.body);
        let body = body.map_err(|e| Error::corrupt(format!("{name}: its body does not parse: {e}")))?;
        Ok(Some((body, record.digest)))
    }
}
