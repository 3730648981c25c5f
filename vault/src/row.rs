//! Rows of records: something whose state changes, each record its whole state and linked to the one before (FORMAT.md section 8).
//!
//! # Consistency
//! The next state is put if absent: of two that go on with one row, one does, and the other learns that it must not.

use std::fmt::Display;
use std::str::FromStr;

use landfall_model::{Digest, Error, ErrorKind, Generation, MachineId, Result, Seq};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{Kind, Position};
use crate::store::PutExact;
use crate::vault::Vault;

/// What stands in rows.
pub(crate) trait State: Serialize + DeserializeOwned {
    /// The kind of its records.
    const KIND: Kind;
    /// What it is called.
    const WHAT: &str;
    /// Where somebody looks who wonders about it.
    const SEE: &str;
    /// Names a row.
    type Id: Copy + Eq + Display + FromStr;

    /// Whose state it is.
    fn id(&self) -> Self::Id;
    /// The same as bytes.
    fn id_bytes(id: Self::Id) -> [u8; 16];
    /// The folder of a row.
    fn folder(id: Self::Id) -> String;
}

/// A row as it was read or written last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row<T> {
    /// Its state.
    pub meta: T,
    seq: Seq,
    digest: Digest,
}

/// A record of a row.
pub(crate) fn record_name<T: State>(id: T::Id, seq: Seq) -> String {
    format!("{}/{}", T::folder(id), seq.key())
}

impl Vault {
    fn row_position<T: State>(&self, id: T::Id, seq: Seq, previous: Digest) -> Position {
        let of = MachineId::from_bytes(T::id_bytes(id));
        Position { previous, ..self.aside(T::KIND, of, seq, Generation(0)) }
    }

    /// Reads a row as it is now.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where its newest record is damaged, false or another object; `Unavailable`.
    pub(crate) async fn row<T: State>(&self, id: T::Id) -> Result<Row<T>> {
        let folder = T::folder(id);
        let listed = self.store().list(&folder).await?;
        let newest = listed.iter().rev().find_map(|o| {
            let seq = o.name.strip_prefix(&folder)?.strip_prefix('/')?;
            Some((o.name.clone(), Seq::from_key(seq).ok()?))
        });
        let none = || Error::new(ErrorKind::NotFound, format!("there is no {} {id}: see {}", T::WHAT, T::SEE));
        let (name, seq) = newest.ok_or_else(none)?;
        let place = |previous| self.row_position::<T>(id, seq, previous);
        let read = self.read_linked::<T>(&name, place).await?;
        let (meta, digest) = read.ok_or_else(|| Error::corrupt(format!("{name}: it is missing")))?;
        if meta.id() != id {
            return Err(Error::corrupt(format!("{name}: it says something else than its name")));
        }
        Ok(Row { meta, seq, digest })
    }

    /// Writes the next state of a row; `before`: as it was read or written last, none for a new one.
    ///
    /// # Errors
    /// `Conflict` where somebody else has written to it; `Unavailable`.
    pub(crate) async fn put_row<T: State>(&self, meta: T, before: Option<&Row<T>>) -> Result<Row<T>> {
        let (seq, previous) = before.map_or((Seq::FIRST, Digest::NONE), |row| (Seq(row.seq.0 + 1), row.digest));
        let id = meta.id();
        let signed = self.sign_linked(self.row_position::<T>(id, seq, previous), &meta)?;
        match self.store().put_exact(&record_name::<T>(id, seq), signed.bytes.into()).await? {
            PutExact::Created | PutExact::Same => Ok(Row { meta, seq, digest: signed.digest }),
            PutExact::Different => {
                let why = format!("{} {id} is being worked on elsewhere: see {}", T::WHAT, T::SEE);
                Err(Error::new(ErrorKind::Conflict, why))
            }
        }
    }
}
