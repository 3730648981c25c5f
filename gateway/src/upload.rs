//! The uploader: segments go to the store, several at once, and into the ledger when they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use landfall_keys::ContentSealer;
use landfall_model::{Error, Result};
use landfall_vault::segment::Segment;
use landfall_vault::{PutExact, crash_point, layout};
use tokio::sync::OnceCell;

use crate::Session;

/// Segments on their way at once: enough to fill a link of some latency; with the queue before it 200 MiB are in memory.
pub(crate) const UPLOADS_IN_FLIGHT: usize = 4;
/// Full segments that wait for the uploader; when they do, the workers wait.
pub(crate) const UPLOAD_QUEUE: usize = 2;

/// Puts objects into the store in the order that invariant 7 wants: an epoch's wrapped key before anything sealed under it.
pub(crate) struct Uploader {
    sealer: Arc<ContentSealer>,
    epoch_stored: OnceCell<()>,
    uploaded_bytes: AtomicU64,
    segments: AtomicU64,
}

impl Uploader {
    pub(crate) fn new(sealer: Arc<ContentSealer>) -> Self {
        Self { sealer, epoch_stored: OnceCell::new(), uploaded_bytes: AtomicU64::new(0), segments: AtomicU64::new(0) }
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

    /// Stores an object that nobody else can have written: its name is random, or the hash of its bytes.
    async fn put(&self, session: &Session, name: &str, bytes: Bytes) -> Result<()> {
        let size = bytes.len() as u64;
        match session.vault.store().put_exact(name, bytes).await? {
            PutExact::Created => self.add_uploaded(size),
            PutExact::Same => {}
            PutExact::Different => {
                let url = session.vault.store().url();
                return Err(Error::corrupt(format!(
                    "{name} in {url}: other bytes stand under this name; run `landfall verify`"
                )));
            }
        }
        Ok(())
    }

    /// Invariant 7: makes the epoch's key durable, wrapped to every recovery key, before anything sealed under it is.
    pub(crate) async fn epoch_is_stored(&self, session: &Session) -> Result<()> {
        let store = || async {
            for recipient in session.vault.config().recipients()? {
                let wrapped = self.sealer.wrapped_for(session.vault.site(), &recipient)?;
                let name = layout::epoch(self.sealer.domain(), self.sealer.epoch(), recipient.id());
                self.put(session, &name, wrapped.into()).await?;
            }
            crash_point("epoch.stored");
            Ok(())
        };
        self.epoch_stored.get_or_try_init(store).await.map(|_| ())
    }

    /// Stores a segment; its chunks have places after that.
    pub(crate) async fn store(&self, session: &Session, segment: Segment) -> Result<()> {
        self.epoch_is_stored(session).await?;
        let size = segment.bytes.len() as u64;
        self.put(session, &layout::segment(segment.id), segment.bytes.clone()).await?;
        self.segments.fetch_add(1, Ordering::Relaxed);
        session.progress.add_moved(size);
        crash_point("segment.stored");
        session.ledger.stored(&segment)?;
        crash_point("segment.indexed");
        Ok(())
    }
}
