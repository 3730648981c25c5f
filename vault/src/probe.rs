//! Does the store keep the one promise that correctness rests on? Stores have been seen that answer 200 to a put-if-absent and
//! overwrite, and others that are right one at a time and wrong in a race.

use bytes::Bytes;
use futures_util::future::join_all;
use landfall_model::ErrorKind;

use crate::layout;
use crate::store::{Put, Store};
use landfall_model::{Error, Result};

/// Writers in one race: enough that a check-then-write store was caught in every run, few enough to be cheap.
const RACERS: u8 = 8;
/// Races: a store that is wrong in half of them goes unnoticed once in eight probes by one, once in 4096 by four.
const RACES: u8 = 4;

impl Store {
    /// Checks that put-if-absent creates once, leaves what is there, lets exactly one of several writers win, and shows what was written.
    ///
    /// Leaves nothing behind where the credentials may delete.
    ///
    /// # Errors
    /// `Unsupported`, naming the store and what it did wrong.
    pub async fn probe(&self) -> Result<()> {
        let tag = crate::random_hex()?;
        let mut names = Vec::new();
        let outcome = self.probe_with(&tag, &mut names).await;
        for name in &names {
            if let Err(error) = self.delete(name).await {
                tracing::debug!(name, %error, "probe object stays: the credentials may not delete");
            }
        }
        outcome
    }

    async fn probe_with(&self, tag: &str, names: &mut Vec<String>) -> Result<()> {
        let refused = |what: &str| {
            let url = self.url();
            let why = format!("store {url} cannot hold a vault: {what}; use a store with an atomic put-if-absent");
            Error::new(ErrorKind::Unsupported, why)
        };
        let name = format!("{}/{tag}", layout::PROBE);
        names.push(name.clone());
        if self.put_if_absent(&name, Bytes::from_static(b"first")).await? != Put::Created {
            return Err(refused("it says that an object exists which was never written"));
        }
        if self.put_if_absent(&name, Bytes::from_static(b"second")).await? != Put::Exists {
            return Err(refused("it ignores put-if-absent and overwrites"));
        }
        if self.get(&name).await?.as_deref() != Some(b"first") {
            return Err(refused("a refused put-if-absent changed the object, or a new object does not read back"));
        }
        if self.get_range(&name, 1, 3).await?.as_deref() != Some(b"ir") {
            return Err(refused("it does not serve ranges"));
        }
        if !self.list(layout::PROBE).await?.iter().any(|o| o.name == name && o.size == 5) {
            return Err(refused("a new object is not listed"));
        }
        for race in 0..RACES {
            let name = format!("{}/{tag}-{race}", layout::PROBE);
            names.push(name.clone());
            let puts = (0..RACERS).map(|racer| self.put_if_absent(&name, Bytes::copy_from_slice(&[racer; 64])));
            let results = join_all(puts).await.into_iter().collect::<Result<Vec<Put>>>()?;
            let mut winners =
                (0..RACERS).zip(&results).filter(|(_, put)| **put == Put::Created).map(|(racer, _)| racer);
            let (winner, second) = (winners.next(), winners.next());
            let stands = self.get(&name).await?;
            // No winner at all is a request that got through and was then tried again: seen with answers lost on the way.
            if second.is_some() || winner.is_some_and(|w| stands.as_deref() != Some(&[w; 64])) {
                return Err(refused("its put-if-absent is not atomic: several of a few racing writers won"));
            }
        }
        Ok(())
    }
}
