//! The tail of a cycle: what the workers had open when the last region was read. A small cycle's frames stand inline in the point, so
//! that it is one request; else they are one more segment.

use landfall_model::{Result, Seq, Source, Timeline};
use landfall_vault::segment::{SEGMENT_BYTES, SegmentBuilder};

use crate::Session;
use crate::maps::Inline;
use crate::upload::Uploader;

/// Cycles with at most so many bytes of frames are one PUT. Request cost is the price of a short RPO.
pub(crate) const INLINE_FRAMES_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Stores what is left; returns the inline frames and the places of their chunks.
pub(crate) async fn store(
    session: &Session,
    uploader: &Uploader,
    open: Vec<SegmentBuilder>,
    (timeline, seq): (Timeline, Seq),
) -> Result<(Vec<u8>, Vec<landfall_model::ChunkRef>)> {
    let mut merged: Vec<SegmentBuilder> = Vec::new();
    for part in open.into_iter().filter(|part| !part.is_empty()) {
        match merged.last_mut().filter(|m| m.frame_bytes() + part.frame_bytes() <= SEGMENT_BYTES) {
            Some(last) => last.absorb(part),
            None => merged.push(part),
        }
    }
    let bytes: usize = merged.iter().map(SegmentBuilder::frame_bytes).sum();
    if uploader.segments() == 0 && merged.len() == 1 && bytes <= INLINE_FRAMES_BYTES_MAX {
        uploader.epoch_is_stored(session).await?;
        let only = merged.remove(0);
        return Ok(only.into_inline(Source::Point(timeline, seq)));
    }
    for part in merged {
        uploader.store(session, part.finish(session.vault.site())?).await?;
    }
    Ok((Vec::new(), Vec::new()))
}

/// The places of inline chunks by their names.
pub(crate) fn places(chunks: &[landfall_model::ChunkRef]) -> Inline {
    chunks.iter().map(|c| (c.id, c.location)).collect()
}
