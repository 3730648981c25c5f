//! Opened chunks that were read a moment ago, within a budget of bytes. Those that are on their way are there too, so that nobody fetches them again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use landfall_model::{ChunkId, Error, ErrorKind};
use tokio::sync::watch;

/// What became of a chunk: its bytes, or why they cannot be had. None while it is on its way.
pub(crate) type Arrival = Option<Result<Bytes, Failed>>;

/// Why a chunk cannot be had, for all who wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) kind: ErrorKind,
    pub(crate) why: Arc<str>,
}

impl From<&Error> for Failed {
    fn from(error: &Error) -> Self {
        Self { kind: error.kind(), why: error.to_string().into() }
    }
}

enum Slot {
    /// Fetched, and when it was last used.
    Here(Bytes, u64),
    /// Somebody fetches it.
    Coming(watch::Receiver<Arrival>),
}

#[derive(Default)]
struct Inner {
    slots: HashMap<ChunkId, Slot>,
    /// By when they were last used; that is a number of its own for each.
    by_use: BTreeMap<u64, ChunkId>,
    clock: u64,
    bytes: u64,
}

/// The cache.
pub(crate) struct Cache {
    inner: Mutex<Inner>,
    bytes_max: u64,
}

/// A chunk as the cache knows it.
pub(crate) enum Found {
    /// Here.
    Here(Bytes),
    /// On its way: to be waited for.
    Coming(watch::Receiver<Arrival>),
    /// Unknown until now; whoever asked must fetch it, and say what became of it.
    Ours(Ticket),
}

/// The duty to fetch a chunk. Dropped without a word, those who wait learn that nobody fetches it any more.
pub(crate) struct Ticket {
    chunk: ChunkId,
    arrival: watch::Sender<Arrival>,
    cache: Arc<Cache>,
}

impl Cache {
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), bytes_max })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are kept at most.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether a chunk is here or on its way.
    pub(crate) fn knows(&self, chunk: ChunkId) -> bool {
        self.lock().slots.contains_key(&chunk)
    }

    /// Looks for a chunk.
    pub(crate) fn find(self: &Arc<Self>, chunk: ChunkId) -> Found {
        let mut inner = self.lock();
        let Inner { slots, by_use, clock, .. } = &mut *inner;
        match slots.get_mut(&chunk) {
            Some(Slot::Here(bytes, used)) => {
                *clock += 1;
                by_use.remove(used);
                by_use.insert(*clock, chunk);
                *used = *clock;
                Found::Here(bytes.clone())
            }
            Some(Slot::Coming(arrival)) => Found::Coming(arrival.clone()),
            None => {
                let (arrival, waiting) = watch::channel(None);
                slots.insert(chunk, Slot::Coming(waiting));
                Found::Ours(Ticket { chunk, arrival, cache: self.clone() })
            }
        }
    }
}

impl Ticket {
    /// To wait for it, as others do.
    pub(crate) fn arrival(&self) -> watch::Receiver<Arrival> {
        self.arrival.subscribe()
    }

    /// Says what became of the chunk.
    pub(crate) fn settle(self, arrived: Result<Bytes, Failed>) {
        if let Ok(bytes) = &arrived {
            let mut inner = self.cache.lock();
            inner.clock += 1;
            let (used, len) = (inner.clock, bytes.len() as u64);
            inner.slots.insert(self.chunk, Slot::Here(bytes.clone(), used));
            inner.by_use.insert(used, self.chunk);
            inner.bytes += len;
            // The newest stays even where it alone is too large.
            while inner.bytes > self.cache.bytes_max
                && inner.by_use.len() > 1
                && let Some((_, oldest)) = inner.by_use.pop_first()
            {
                if let Some(Slot::Here(bytes, _)) = inner.slots.remove(&oldest) {
                    inner.bytes -= bytes.len() as u64;
                }
            }
        }
        self.arrival.send_replace(Some(arrived));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.cache.lock();
        // One that failed, or was given up, is fetched anew by who asks next.
        if let Some(Slot::Coming(_)) = inner.slots.get(&self.chunk) {
            inner.slots.remove(&self.chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> ChunkId {
        ChunkId::from_bytes([n; 32])
    }

    fn fetch(cache: &Arc<Cache>, n: u8) -> bool {
        match cache.find(id(n)) {
            Found::Ours(ticket) => {
                ticket.settle(Ok(Bytes::from(vec![n; 100])));
                true
            }
            Found::Here(bytes) => {
                assert!(bytes.iter().all(|b| *b == n));
                false
            }
            Found::Coming(_) => panic!("nobody fetches it"),
        }
    }

    #[test]
    fn what_was_used_last_stays_within_the_budget() {
        let cache = Cache::new(300);
        assert!(fetch(&cache, 1) && fetch(&cache, 2) && fetch(&cache, 3));
        assert!(!fetch(&cache, 1), "it is here, and used now");
        assert!(fetch(&cache, 4));
        assert!(!fetch(&cache, 1) && !fetch(&cache, 3) && !fetch(&cache, 4));
        assert!(fetch(&cache, 2), "it was used least of late");
        assert_eq!(cache.lock().bytes, 300);
        assert_eq!(cache.lock().slots.len(), 3);
    }

    #[tokio::test]
    async fn who_comes_second_waits_and_learns_what_became_of_it() {
        let cache = Cache::new(300);
        let Found::Ours(ticket) = cache.find(id(1)) else { panic!("it is new") };
        let Found::Coming(mut waiting) = cache.find(id(1)) else { panic!("it is on its way") };
        ticket.settle(Err((&Error::corrupt("it is missing")).into()));
        let arrived = waiting.wait_for(Option::is_some).await.expect("said");
        assert!(matches!(&*arrived, Some(Err(failed)) if &*failed.why == "it is missing"));
        let Found::Ours(ticket) = cache.find(id(1)) else { panic!("a failure is not kept") };
        let Found::Coming(mut waiting) = cache.find(id(1)) else { panic!("it is on its way") };
        drop(ticket);
        assert!(waiting.wait_for(Option::is_some).await.is_err(), "given up");
        assert!(fetch(&cache, 1));
    }
}
