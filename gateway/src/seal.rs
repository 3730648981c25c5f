//! Where new chunks go: compressed, sealed and packed into the worker's open segment, which goes to the uploader when it is full.

use std::sync::atomic::Ordering;

use landfall_keys::ContentSealer;
use landfall_model::num::to_u32;
use landfall_model::{ChunkId, Error, ErrorKind, Location, Result};
use landfall_vault::Compressor;
use landfall_vault::segment::{SEGMENT_BYTES, Segment, SegmentBuilder};
use tokio::sync::mpsc::Sender;

use crate::Session;
use crate::ledger::Claim;

/// A segment is closed although it is not full when so many map entries wait for its chunks to have places: 6 MiB of them.
const WAITING_ENTRIES_MAX: u64 = 128 * 1024;

/// A segment being filled. A cycle has as many as workers work for it at once, and they take turns.
pub(crate) struct Packing {
    open: SegmentBuilder,
    waiting_entries: u64,
}

impl Packing {
    pub(crate) fn new(session: &Session) -> Self {
        Self { open: SegmentBuilder::new(session.vault_id()), waiting_entries: 0 }
    }

    /// What is left: for the tail of the cycle.
    pub(crate) fn into_open(self) -> SegmentBuilder {
        self.open
    }
}

/// One worker's end of the packing, for one part.
pub(crate) struct ChunkStore<'a> {
    pub(crate) session: &'a Session,
    pub(crate) sealer: &'a ContentSealer,
    pub(crate) compressor: &'a mut Compressor,
    pub(crate) packing: &'a mut Packing,
    pub(crate) full: &'a Sender<Segment>,
}

impl ChunkStore<'_> {
    /// Stores a chunk unless the vault has it; returns its place where that is known already.
    pub(crate) fn store(&mut self, id: ChunkId, bytes: &[u8]) -> Result<Option<Location>> {
        // Counted for known chunks too: their region may wait behind one that is not.
        self.packing.waiting_entries += 1;
        match self.session.ledger.claim(id)? {
            Claim::Known(location) => return Ok(Some(location)),
            Claim::Pending => {}
            Claim::New => {
                let compressed = self.compressor.compress(bytes);
                let (vault, sealer) = (self.session.vault_id(), self.sealer);
                self.packing.open.push(id, to_u32(bytes.len()), compressed.codec(), sealer.epoch(), |out| {
                    compressed.seal_content(sealer, vault, id, out)
                })?;
                self.session.new_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if self.packing.open.frame_bytes() >= SEGMENT_BYTES {
                    self.close()?;
                }
            }
        }
        Ok(None)
    }

    /// Whether what a map says of a chunk can still be restored.
    pub(crate) fn is_stored(&self, location: &Location) -> bool {
        self.session.ledger.is_stored(location)
    }

    /// Closes the segment where too much waits for it.
    pub(crate) fn end_part(&mut self) -> Result<()> {
        let too_many = self.packing.waiting_entries > WAITING_ENTRIES_MAX;
        if too_many && !self.packing.open.is_empty() { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<()> {
        let full = std::mem::replace(self.packing, Packing::new(self.session));
        let segment = full.open.finish(self.session.vault.site())?;
        self.full
            .blocking_send(segment)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the upload stopped; its own error says why"))
    }
}
