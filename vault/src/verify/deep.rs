//! The deep check: every frame is fetched, opened with the recovery key and compared with its name.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use landfall_keys::{EpochOpener, Fingerprinter, RecoveryKey};
use landfall_model::{ChunkRef, DomainId, EpochId, ErrorKind, MachineId, Progress, SegmentId, Seq, Timeline};

use super::Check;
use crate::frame::{CHUNK_BYTES_MAX, Decompressor, open_page};
use crate::layout;
use crate::machine::PointKey;
use crate::segment;
use crate::vault::Vault;
use landfall_model::{Error, Result};

/// Segments in memory at once: two cores are busy, and 96 MiB are taken.
const SEGMENTS_IN_FLIGHT: usize = 3;

/// What opens any frame of the vault.
struct Openers {
    vault: Vault,
    by_epoch: BTreeMap<EpochId, (EpochOpener, Fingerprinter)>,
}

impl Openers {
    async fn new(vault: &Vault, recovery: &RecoveryKey, epochs: &BTreeMap<EpochId, DomainId>) -> Result<Self> {
        let mut by_epoch = BTreeMap::new();
        for (epoch, domain) in epochs {
            // An epoch that does not open is said of each frame that needs it.
            match vault.open_epoch(recovery, *domain, *epoch).await {
                Ok(opener) => {
                    by_epoch.insert(*epoch, (opener, vault.site().fingerprinter(*domain)));
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => tracing::warn!(%epoch, %error, "an epoch does not open"),
            }
        }
        Ok(Self { vault: vault.clone(), by_epoch })
    }

    /// Opens every frame of `chunks`, which lie in `bytes`; counts those that opened.
    fn open_all(&self, bytes: &[u8], chunks: &[ChunkRef]) -> Result<u64> {
        let mut decompressor = Decompressor::new()?;
        let mut plain = vec![0; CHUNK_BYTES_MAX as usize];
        let vault = self.vault.config().vault_id;
        for chunk in chunks {
            let start = chunk.location.offset as usize;
            let frame = bytes.get(start..start + chunk.location.stored_len as usize);
            let frame = frame.ok_or_else(|| Error::corrupt(format!("chunk {}: its frame lies outside", chunk.id)))?;
            if chunk.location.epoch == EpochId::INDEX {
                open_page(self.vault.site(), vault, chunk, frame)?;
                continue;
            }
            let opener = self.by_epoch.get(&chunk.location.epoch);
            let (opener, fingerprinter) =
                opener.ok_or_else(|| Error::corrupt(format!("chunk {}: its epoch's key is missing", chunk.id)))?;
            decompressor.open_content(opener, fingerprinter, vault, chunk, &mut frame.to_vec(), &mut plain)?;
        }
        Ok(chunks.len() as u64)
    }
}

impl Check {
    /// Opens every frame: of all segments, or of those that the chosen machine needs.
    pub(super) async fn deep(&mut self, recovery: Arc<RecoveryKey>, all: bool, progress: &Arc<Progress>) -> Result<()> {
        let openers = Arc::new(Openers::new(&self.vault, &recovery, &self.epochs).await?);
        let wanted: Vec<(SegmentId, u64)> = self
            .stored
            .iter()
            .filter(|(id, _)| all || self.references.contains_key(id))
            .map(|(id, size)| (*id, *size))
            .collect();
        progress.add_total(wanted.iter().map(|(_, size)| size).sum());
        let mut checked = stream::iter(wanted)
            .map(|(id, size)| {
                let openers = openers.clone();
                async move { (id, size, check_segment(openers, id).await) }
            })
            .buffer_unordered(SEGMENTS_IN_FLIGHT);
        while let Some((id, size, opened)) = checked.next().await {
            progress.add_done(size);
            progress.add_moved(size);
            if let Some(frames) = self.note(&layout::segment(id), opened)? {
                self.report.frames_opened += frames;
            }
        }
        drop(checked);
        for ((machine, timeline, seq), chunks) in std::mem::take(&mut self.inline) {
            let chunks: Vec<ChunkRef> = chunks.into_iter().collect();
            let name = layout::point(machine, timeline, seq);
            let opened = self.check_inline(&openers, machine, timeline, seq, &chunks).await;
            if let Some(frames) = self.note(&name, opened)? {
                self.report.frames_opened += frames;
            }
        }
        Ok(())
    }

    async fn check_inline(
        &self,
        openers: &Openers,
        machine: MachineId,
        timeline: Timeline,
        seq: Seq,
        chunks: &[ChunkRef],
    ) -> Result<u64> {
        let name = layout::point(machine, timeline, seq);
        let bytes = self.vault.store().get(&name).await?;
        let bytes = bytes.ok_or_else(|| Error::corrupt("it is missing, and maps refer to its inline frames"))?;
        let key = PointKey { timeline, seq, size: bytes.len() as u64 };
        let point = crate::machine::Machine::new(self.vault.clone(), machine).point(key).await?;
        let inline = bytes.get(landfall_model::num::to_usize(point.header.inline_start())..).unwrap_or_default();
        openers.open_all(inline, chunks)
    }
}

async fn check_segment(openers: Arc<Openers>, id: SegmentId) -> Result<u64> {
    let name = layout::segment(id);
    let bytes = openers.vault.store().get(&name).await?.ok_or_else(|| Error::corrupt("it is missing"))?;
    let check = move || {
        let chunks = segment::open_whole(openers.vault.site(), openers.vault.config().vault_id, id, &bytes)?;
        openers.open_all(&bytes, &chunks)
    };
    let done = tokio::task::spawn_blocking(check).await;
    done.map_err(|e| Error::with_source(ErrorKind::Bug, "a check ended early", e))?
}
