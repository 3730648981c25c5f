//! The points of one machine that wait for their commit, in order: its owner adds behind the last, or puts another in the place of the
//! last; its committer takes off the first. Who works at a point holds it, and the other leaves it alone.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use landfall_model::{ChunkRef, Consistency, Error, ErrorKind, PointMeta, Result, Timestamp};
use landfall_vault::{MapView, Point};
use tokio::sync::watch;

use crate::spool::Pins;

/// So many points at the front keep their bytes in memory; those behind them are read from the spool again.
const HOT_POINTS: usize = 4;

/// A point on its way from the spool to the vault, and the maps as of it.
pub(crate) struct Waiting {
    pub(crate) view: MapView,
    /// Its object, and the chunks that stand in it; none where the spool has it alone.
    hot: Option<(Bytes, Vec<ChunkRef>)>,
    /// Its segments are not dropped from the spool.
    _pins: Pins,
}

impl Waiting {
    /// A point that was just made.
    pub(crate) fn made(view: MapView, bytes: Bytes, inline: Vec<ChunkRef>, pins: Pins) -> Self {
        Self { view, hot: Some((bytes, inline)), _pins: pins }
    }

    /// A point of an earlier run.
    pub(crate) fn recovered(view: MapView, pins: Pins) -> Self {
        Self { view, hot: None, _pins: pins }
    }

    /// Leaves its object to the spool alone, unless it is one of the first.
    fn cooled(mut self, place: usize) -> Self {
        self.hot = self.hot.filter(|_| place < HOT_POINTS);
        self
    }

    /// The point itself.
    pub(crate) fn point(&self) -> &Point {
        &self.view.layers()[self.view.layers().len() - 1]
    }

    pub(crate) fn meta(&self) -> &PointMeta {
        self.point().meta()
    }

    /// Whether it is no point yet: it waits for the one after it, and becomes one with that.
    pub(crate) fn is_unfinished(&self) -> bool {
        self.meta().consistency == Consistency::Unfinished
    }

    /// Its object, where that is in memory.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        self.hot.as_ref().map(|(bytes, _)| bytes.clone())
    }

    /// The chunks that stand in it, where that is known.
    pub(crate) fn inline(&self) -> &[ChunkRef] {
        self.hot.as_ref().map_or(&[], |(_, inline)| inline)
    }
}

struct Place {
    point: Arc<Waiting>,
    /// Somebody works at it.
    held: bool,
}

#[derive(Default)]
struct State {
    points: VecDeque<Place>,
    /// The machine can no longer be written here.
    lost: bool,
    /// Nothing will be added.
    closed: bool,
}

/// The queue, as its owner, its committer and those who look at it share it.
#[derive(Clone)]
pub(crate) struct Queue(Arc<watch::Sender<State>>);

pub(crate) fn lost() -> Error {
    Error::new(ErrorKind::Conflict, "this gateway no longer writes this machine; the agent asks again")
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// How many wait; none where the machine can no longer be written here.
    pub(crate) fn len(&self) -> Option<usize> {
        let state = self.0.borrow();
        (!state.lost).then_some(state.points.len())
    }

    /// Waits until fewer than so many wait.
    ///
    /// # Errors
    /// `Conflict` where the machine can no longer be written here.
    pub(crate) async fn until_below(&self, count: usize) -> Result<()> {
        let mut seen = self.0.subscribe();
        let state = seen.wait_for(|s| s.lost || s.points.len() < count).await.map_err(|_| lost())?;
        if state.lost { Err(lost()) } else { Ok(()) }
    }

    /// Those that wait, in order.
    pub(crate) fn points(&self) -> Vec<Arc<Waiting>> {
        self.0.borrow().points.iter().map(|p| p.point.clone()).collect()
    }

    /// Adds one behind the last.
    ///
    /// # Errors
    /// `Conflict` where the machine can no longer be written here.
    pub(crate) fn push(&self, point: Waiting) -> Result<()> {
        let added = self.0.send_if_modified(|state| {
            if !state.lost {
                let point = point.cooled(state.points.len());
                state.points.push_back(Place { point: Arc::new(point), held: false });
            }
            !state.lost
        });
        if added { Ok(()) } else { Err(lost()) }
    }

    /// Nothing will be added: who takes points off ends with the last.
    pub(crate) fn close(&self) {
        self.0.send_modify(|state| state.closed = true);
    }

    /// The machine can no longer be written here: nothing waits any more.
    pub(crate) fn lose(&self) {
        self.0.send_modify(|state| {
            state.lost = true;
            state.points.clear();
        });
    }

    /// How many wait that can be committed.
    pub(crate) fn finished(&self) -> usize {
        self.0.borrow().points.iter().filter(|p| !p.point.is_unfinished()).count()
    }

    /// Holds the first; waits for one that nobody holds, and that is finished. None where nothing will come.
    pub(crate) async fn hold_first(&self) -> Option<Arc<Waiting>> {
        let mut seen = self.0.subscribe();
        loop {
            let ready = |s: &State| {
                s.lost || s.points.front().map_or(s.closed, |p| !p.held && (s.closed || !p.point.is_unfinished()))
            };
            seen.wait_for(ready).await.ok()?;
            let mut first = None;
            let mut over = false;
            self.0.send_if_modified(|state| {
                let front = state.points.front_mut().filter(|p| !p.point.is_unfinished());
                over = state.lost || (state.closed && front.is_none());
                if let Some(place) = front.filter(|p| !p.held) {
                    place.held = true;
                    first = Some(place.point.clone());
                }
                // Nobody waits for a point to be held.
                false
            });
            if first.is_some() || over {
                return first;
            }
        }
    }

    /// The first, which the caller holds, does not wait any more.
    pub(crate) fn pop_first(&self) {
        self.0.send_modify(|state| {
            state.points.pop_front();
        });
    }

    /// Holds the last where nobody does, and `may` says so of it, of the cut of the point before it, of that of the first, and of how
    /// many wait.
    pub(crate) fn hold_last(&self, may: impl FnOnce(&Last<'_>) -> bool) -> Option<HeldLast> {
        let mut held = None;
        self.0.send_if_modified(|state| {
            let cuts = state.points.front().map(|p| p.point.meta().source_time);
            let before = state.points.len().checked_sub(2).map(|at| state.points[at].point.meta().source_time);
            let count = state.points.len();
            if let (Some(place), Some(first)) = (state.points.back_mut().filter(|p| !p.held), cuts)
                && may(&Last { meta: place.point.meta(), before, first, count })
            {
                place.held = true;
                held = Some(place.point.clone());
            }
            false
        });
        held.map(|point| HeldLast { queue: self.clone(), point, other: None })
    }

    /// The last of those that wait.
    pub(crate) fn last(&self) -> Option<Arc<Waiting>> {
        self.0.borrow().points.back().map(|p| p.point.clone())
    }
}

/// The last point, which nobody else touches. Released when it is dropped, however that comes about.
pub(crate) struct HeldLast {
    queue: Queue,
    point: Arc<Waiting>,
    other: Option<Waiting>,
}

impl HeldLast {
    pub(crate) fn point(&self) -> &Arc<Waiting> {
        &self.point
    }

    /// Puts another in its place: it is in the spool.
    pub(crate) fn replace(mut self, other: Waiting) {
        self.other = Some(other);
    }
}

impl Drop for HeldLast {
    fn drop(&mut self) {
        let other = self.other.take();
        self.queue.0.send_modify(|state| {
            let at = state.points.len().saturating_sub(1);
            if let Some(place) = state.points.back_mut() {
                place.held = false;
                if let Some(other) = other {
                    place.point = Arc::new(other.cooled(at));
                }
            }
        });
    }
}

/// What is known of the last point when it is asked whether it may be held.
pub(crate) struct Last<'a> {
    pub(crate) meta: &'a PointMeta,
    /// The cut of the point before it, where that waits too.
    pub(crate) before: Option<Timestamp>,
    /// The cut of the first that waits.
    pub(crate) first: Timestamp,
    pub(crate) count: usize,
}
