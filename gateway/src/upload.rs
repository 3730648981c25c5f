//! The uploader: segments go to the store, several at once, and into the ledger when they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use landfall_keys::{ContentSealer, SiteKey};
use landfall_model::{DomainId, Error, Result};
use landfall_vault::segment::Segment;
use landfall_vault::{PutExact, Vault, crash_point, layout};
use tokio::sync::OnceCell;

use crate::Session;
use crate::rate::Rate;
use crate::spool::Spool;

/// Segments on their way at once: enough to fill a link of some latency; with the queue before it 200 MiB are in memory.
pub(crate) const UPLOADS_IN_FLIGHT: usize = 4;
/// Full segments that wait for the uploader; when they do, the workers wait.
pub(crate) const UPLOAD_QUEUE: usize = 2;

/// Stores an object that nobody else can have written: its name is random, or the hash of its bytes. Returns whether it was sent.
///
/// # Errors
/// `Corrupt` where other bytes stand under this name; those of the store.
pub(crate) async fn put_object(vault: &Vault, name: &str, bytes: Bytes) -> Result<bool> {
    match vault.store().put_exact(name, bytes).await? {
        PutExact::Created => Ok(true),
        PutExact::Same => Ok(false),
        PutExact::Different => {
            let url = vault.store().url();
            Err(Error::corrupt(format!("{name} in {url}: other bytes stand under this name; run `landfall verify`")))
        }
    }
}

/// Where the objects of a cycle go.
enum Destination {
    Store,
    Spool(Arc<Spool>),
}

/// The key that chunks are sealed with, and whether its wrapped form is stored (or spooled).
pub(crate) struct Epoch {
    sealer: ContentSealer,
    stored: OnceCell<()>,
}

impl Epoch {
    /// A new one.
    ///
    /// # Errors
    /// `Unavailable` where the host has no randomness.
    pub(crate) fn open(site: &SiteKey, domain: DomainId) -> Result<Self> {
        Ok(Self { sealer: ContentSealer::open_epoch(site, domain)?, stored: OnceCell::new() })
    }
}

/// Puts objects into the store or spool in the order that invariant 7 wants: an epoch's wrapped key before anything sealed under it.
pub(crate) struct Uploader {
    epoch: Arc<Epoch>,
    to: Destination,
    rate: Option<Arc<Rate>>,
    uploaded_bytes: AtomicU64,
    segments: AtomicU64,
}

impl Uploader {
    pub(crate) fn to_store(epoch: Arc<Epoch>) -> Self {
        Self::to(epoch, Destination::Store)
    }

    pub(crate) fn to_spool(epoch: Arc<Epoch>, spool: Arc<Spool>) -> Self {
        Self::to(epoch, Destination::Spool(spool))
    }

    fn to(epoch: Arc<Epoch>, to: Destination) -> Self {
        Self { epoch, to, rate: None, uploaded_bytes: AtomicU64::new(0), segments: AtomicU64::new(0) }
    }

    /// What goes to the store keeps to a rate.
    pub(crate) fn keeping_to(mut self, rate: Arc<Rate>) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Seals the cycle's chunks.
    pub(crate) fn sealer(&self) -> &ContentSealer {
        &self.epoch.sealer
    }

    /// Bytes that this cycle sent.
    pub(crate) fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes.load(Ordering::Relaxed)
    }

    /// Segments that this cycle stored.
    pub(crate) fn segments(&self) -> u64 {
        self.segments.load(Ordering::Relaxed)
    }

    pub(crate) fn add_uploaded(&self, bytes: u64) {
        self.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    async fn put(&self, session: &Session, name: &str, bytes: Bytes) -> Result<()> {
        let size = bytes.len() as u64;
        if let Destination::Spool(spool) = &self.to {
            self.add_uploaded(size);
            return spool.put(name, bytes).await;
        }
        if let Some(rate) = &self.rate {
            rate.take(size).await;
        }
        if put_object(&session.vault, name, bytes).await? {
            self.add_uploaded(size);
        }
        Ok(())
    }

    /// Invariant 7: makes the epoch's key durable, wrapped to every recovery key, before anything sealed under it is.
    pub(crate) async fn epoch_is_stored(&self, session: &Session) -> Result<()> {
        let store = || async {
            for recipient in session.vault.config().recipients()? {
                let wrapped = self.sealer().wrapped_for(session.vault.site(), &recipient)?;
                let name = layout::epoch(self.sealer().domain(), self.sealer().epoch(), recipient.id());
                self.put(session, &name, wrapped.into()).await?;
            }
            crash_point("epoch.stored");
            Ok(())
        };
        self.epoch.stored.get_or_try_init(store).await.map(|_| ())
    }

    /// Stores a segment; its chunks have places after that.
    pub(crate) async fn store(&self, session: &Session, segment: Segment) -> Result<()> {
        self.epoch_is_stored(session).await?;
        let size = segment.bytes.len() as u64;
        self.put(session, &layout::segment(segment.id), segment.bytes.clone()).await?;
        self.segments.fetch_add(1, Ordering::Relaxed);
        session.progress.add_moved(size);
        crash_point("segment.stored");
        session.ledger.stored(&segment, matches!(self.to, Destination::Store))?;
        crash_point("segment.indexed");
        Ok(())
    }
}
