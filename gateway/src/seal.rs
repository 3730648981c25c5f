//! Where new chunks go: compressed, sealed and packed into the worker's open segment, which goes to the uploader when it is full.

use std::sync::Arc;

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

/// One worker's end of the packing.
pub(crate) struct ChunkStore<'a> {
    session: &'a Session,
    sealer: Arc<ContentSealer>,
    compressor: Compressor,
    open: SegmentBuilder,
    full: Sender<Segment>,
    waiting_entries: u64,
    /// Bytes of the chunks that were new.
    pub(crate) new_bytes: u64,
}

impl<'a> ChunkStore<'a> {
    pub(crate) fn new(session: &'a Session, sealer: Arc<ContentSealer>, full: Sender<Segment>) -> Result<Self> {
        Ok(Self {
            session,
            sealer,
            compressor: Compressor::new(session.level)?,
            open: SegmentBuilder::new(session.vault_id()),
            full,
            waiting_entries: 0,
            new_bytes: 0,
        })
    }

    /// Stores a chunk unless the vault has it; returns its place where that is known already.
    pub(crate) fn store(&mut self, id: ChunkId, bytes: &[u8]) -> Result<Option<Location>> {
        // Counted for known chunks too: their region may wait behind one that is not.
        self.waiting_entries += 1;
        match self.session.ledger.claim(id)? {
            Claim::Known(location) => return Ok(Some(location)),
            Claim::Pending => {}
            Claim::New => {
                let compressed = self.compressor.compress(bytes);
                let (vault, sealer) = (self.session.vault_id(), &self.sealer);
                self.open.push(id, to_u32(bytes.len()), compressed.codec(), sealer.epoch(), |out| {
                    compressed.seal_content(sealer, vault, id, out)
                })?;
                self.new_bytes += bytes.len() as u64;
                if self.open.frame_bytes() >= SEGMENT_BYTES {
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
    pub(crate) fn end_region(&mut self) -> Result<()> {
        if self.waiting_entries > WAITING_ENTRIES_MAX && !self.open.is_empty() { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<()> {
        let open = std::mem::replace(&mut self.open, SegmentBuilder::new(self.session.vault_id()));
        self.waiting_entries = 0;
        let segment = open.finish(self.session.vault.site())?;
        self.full
            .blocking_send(segment)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "the upload stopped; its own error says why"))
    }

    /// What is left: for the tail of the cycle.
    pub(crate) fn into_open(self) -> SegmentBuilder {
        self.open
    }
}
