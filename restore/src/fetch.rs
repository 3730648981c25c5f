//! Fetching what was planned: a range of a segment, or of a point's inline frames.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use landfall_model::{Error, Result, Seq, Source, Timeline};
use landfall_vault::{Machine, PointKey, layout};
use tokio::sync::Mutex;

use crate::plan::Fetch;

/// Fetches frames; remembers where the inline frames of points begin.
pub(crate) struct Fetcher {
    machine: Machine,
    line: Vec<PointKey>,
    inline_starts: Mutex<HashMap<(Timeline, Seq), u64>>,
}

impl Fetcher {
    pub(crate) fn new(machine: Machine, line: Vec<PointKey>) -> Arc<Self> {
        Arc::new(Self { machine, line, inline_starts: Mutex::default() })
    }

    async fn inline_start(&self, timeline: Timeline, seq: Seq) -> Result<u64> {
        let mut known = self.inline_starts.lock().await;
        if let Some(start) = known.get(&(timeline, seq)) {
            return Ok(*start);
        }
        let missing = || Error::corrupt(format!("point {seq} is missing, and later ones need chunks that stand in it"));
        let key = self.line.iter().find(|p| (p.timeline, p.seq) == (timeline, seq)).ok_or_else(missing)?;
        let start = self.machine.point(*key).await?.header.inline_start();
        known.insert((timeline, seq), start);
        Ok(start)
    }

    /// The bytes of a planned range.
    ///
    /// # Errors
    /// `Corrupt` where the object is missing or shorter than the map says, `Unavailable`.
    pub(crate) async fn fetch<P>(&self, fetch: &Fetch<P>) -> Result<Bytes> {
        let (name, base) = match fetch.source {
            Source::Segment(id) => (layout::segment(id), 0),
            Source::Point(timeline, seq) => {
                (layout::point(self.machine.id(), timeline, seq), self.inline_start(timeline, seq).await?)
            }
        };
        let store = self.machine.vault().store();
        let bytes = store.get_range(&name, base + fetch.start, base + fetch.end).await?;
        let bytes = bytes.ok_or_else(|| Error::corrupt(format!("{name} is missing")))?;
        if bytes.len() as u64 != fetch.end - fetch.start {
            return Err(Error::corrupt(format!("{name} is shorter than the map says")));
        }
        Ok(bytes)
    }
}
