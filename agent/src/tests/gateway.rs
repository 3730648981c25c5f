//! A gateway in memory: takes cycles as a real one must, checks them with the code that a real one uses, and keeps their disks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use landfall_model::num::to_usize;
use landfall_model::{Consistency, CycleId, DiskName, Result, Seq, Timeline};
use landfall_wire::{Begin, CycleCheck, FromAgent, FromGateway};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::link::{Link, Receive};

pub(super) type Disks = BTreeMap<DiskName, Vec<u8>>;

impl Receive for mpsc::Receiver<FromGateway> {
    async fn next(&mut self) -> Result<Option<FromGateway>> {
        Ok(self.recv().await)
    }
}

/// What goes wrong on a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    None,
    /// The link ends at this message.
    CutAt(usize),
    /// The agent dies when this message has arrived.
    DieAt(usize),
    /// The cycle is spooled, and the link ends before that is said.
    SpoolAndCut,
    /// The cycle is spooled and committed, and only the latter is said.
    OnlyCommitted,
    /// The first cycle is answered with resync at this message.
    ResyncAt(usize),
    /// The gateway refuses at this message.
    RefuseAt(usize),
}

/// A cycle that was taken.
#[derive(Clone)]
pub(super) struct Taken {
    pub(super) begin: Begin,
    pub(super) disks: Disks,
    pub(super) data_bytes: u64,
    pub(super) runs: usize,
}

#[derive(Default)]
struct Inner {
    taken: Vec<Taken>,
    aborted: usize,
    resyncs: usize,
    /// What was said beside cycles.
    said: Vec<FromAgent>,
    /// The newest link.
    to_agent: Option<mpsc::WeakSender<FromGateway>>,
    /// Ends the links that are open.
    cut: Option<oneshot::Sender<()>>,
    /// The next cycle is to be a full one.
    resync_next: bool,
    /// The version of the protocol that it speaks; the newest where that is not said.
    version: Option<u32>,
}

/// What a gateway knows; clones are the same one.
#[derive(Clone, Default)]
pub(super) struct FakeGateway(Arc<Mutex<Inner>>);

struct Taking {
    check: CycleCheck,
    disks: Disks,
    data_bytes: u64,
    runs: usize,
}

impl FakeGateway {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another gateway that has only the first so many cycles of this one.
    pub(super) fn with_first(&self, cycles: usize) -> Self {
        let taken = self.inner().taken[..cycles].to_vec();
        Self(Arc::new(Mutex::new(Inner { taken, ..Inner::default() })))
    }

    pub(super) fn count(&self) -> usize {
        self.inner().taken.len()
    }

    pub(super) fn newest(&self) -> Option<CycleId> {
        self.inner().taken.last().map(|t| t.begin.cycle)
    }

    pub(super) fn last(&self) -> Taken {
        self.inner().taken.last().expect("a cycle was taken").clone()
    }

    pub(super) fn cycle(&self, number: usize) -> CycleId {
        self.inner().taken[number].begin.cycle
    }

    pub(super) fn aborted(&self) -> usize {
        self.inner().aborted
    }

    pub(super) fn resyncs(&self) -> usize {
        self.inner().resyncs
    }

    /// What the agent said of groups, in order.
    pub(super) fn said(&self) -> Vec<FromAgent> {
        self.inner().said.clone()
    }

    pub(super) fn forget_said(&self) {
        self.inner().said.clear();
    }

    /// Says something on the newest link.
    pub(super) async fn say(&self, message: FromGateway) {
        let to = self.inner().to_agent.as_ref().and_then(mpsc::WeakSender::upgrade).expect("a link");
        to.send(message).await.expect("the agent is there");
    }

    /// Ends the newest link.
    pub(super) fn cut_links(&self) {
        let cut = self.inner().cut.take().expect("a link");
        let _ = cut.send(());
    }

    /// It speaks this version of the protocol.
    pub(super) fn speak(&self, version: u32) {
        self.inner().version = Some(version);
    }

    /// What the cycles guarantee that it took, in order.
    pub(super) fn consistencies(&self) -> Vec<Consistency> {
        self.inner().taken.iter().map(|t| t.begin.consistency).collect()
    }

    /// Bytes of data in the cycles from this one on.
    pub(super) fn sent_since(&self, first: usize) -> u64 {
        self.inner().taken[first..].iter().map(|t| t.data_bytes).sum()
    }

    /// The next cycle is not taken unless it is a full one.
    pub(super) fn resync_next(&self) {
        self.inner().resync_next = true;
    }

    /// A link to it, what tells when the agent is to die, and the task at its other end.
    pub(super) fn link(
        &self,
        trouble: Trouble,
        commits: Vec<CycleId>,
    ) -> (Link<mpsc::Receiver<FromGateway>>, oneshot::Receiver<()>, JoinHandle<()>) {
        let (to, from_agent) = mpsc::channel(2);
        let (to_agent, from) = mpsc::channel(64);
        let (die, death) = oneshot::channel();
        for (cycle, seq) in commits.into_iter().zip(1..) {
            to_agent.try_send(FromGateway::Committed(cycle, Timeline::FIRST, Seq(seq))).expect("room");
        }
        let (cut, is_cut) = oneshot::channel();
        {
            let mut inner = self.inner();
            (inner.to_agent, inner.cut) = (Some(to_agent.downgrade()), Some(cut));
        }
        let served = self.clone().serve(from_agent, to_agent, trouble, die);
        let serving = tokio::spawn(async {
            tokio::select! {
                () = served => {}
                Ok(()) = is_cut => {}
            }
        });
        (Link { to, from, held: None, version: self.inner().version.unwrap_or(2) }, death, serving)
    }

    async fn serve(
        self,
        mut from: mpsc::Receiver<FromAgent>,
        to: mpsc::Sender<FromGateway>,
        trouble: Trouble,
        die: oneshot::Sender<()>,
    ) {
        let mut die = Some(die);
        let mut taking: Option<Taking> = None;
        let mut number = 0;
        while let Some(message) = from.recv().await {
            if let FromAgent::Ask(why) = message {
                let _ = to.send(FromGateway::Resync(why)).await;
                continue;
            }
            number += 1;
            match trouble {
                Trouble::CutAt(at) if at == number => return,
                Trouble::DieAt(at) if at == number => {
                    let _ = die.take().map(|die| die.send(()));
                }
                Trouble::ResyncAt(at) if at == number => {
                    self.inner().resyncs += 1;
                    // What follows of this cycle is read and forgotten, up to its end or abort, or the next beginning.
                    taking = None;
                    let _ = to.send(FromGateway::Resync("as the test wants it".to_owned())).await;
                    continue;
                }
                Trouble::RefuseAt(at) if at == number => {
                    let _ = to.send(FromGateway::Refuse(5, "as the test wants it".to_owned())).await;
                    return;
                }
                _ => {}
            }
            match message {
                FromAgent::Begin(begin) => {
                    assert!(taking.is_none(), "a cycle begins in a cycle");
                    taking = self.begin(begin);
                    if taking.is_none() {
                        let _ = to.send(FromGateway::Resync("not on top of the newest".to_owned())).await;
                    }
                }
                FromAgent::Data(data) => {
                    let Some(taking) = &mut taking else { continue };
                    taking.check.data(&data).expect("in order");
                    let name = taking.check.begin().disks[data.disk].name.clone();
                    let start = to_usize(data.start);
                    let disk = taking.disks.get_mut(&name).expect("a disk");
                    disk[start..start + data.bytes.len()].copy_from_slice(&data.bytes);
                    taking.data_bytes += data.bytes.len() as u64;
                    taking.runs += 1;
                }
                FromAgent::Zero(disk, extent) => {
                    let Some(taking) = &mut taking else { continue };
                    taking.check.zero(disk, extent).expect("in order");
                    let name = taking.check.begin().disks[disk].name.clone();
                    let disk = taking.disks.get_mut(&name).expect("a disk");
                    disk[to_usize(extent.start)..to_usize(extent.end())].fill(0);
                    taking.runs += 1;
                }
                FromAgent::End(end) => {
                    let Some(done) = taking.take() else { continue };
                    done.check.end(&end).expect("the digest of what was sent");
                    self.take(done);
                    let said = match trouble {
                        Trouble::SpoolAndCut => return,
                        Trouble::OnlyCommitted => FromGateway::Committed(end.cycle, Timeline::FIRST, Seq::FIRST),
                        _ => FromGateway::Spooled(end.cycle),
                    };
                    let _ = to.send(said).await;
                }
                FromAgent::Abort(_) => {
                    taking = None;
                    self.inner().aborted += 1;
                }
                said
                @ (FromAgent::Ready(_) | FromAgent::Frozen(_) | FromAgent::Unready(..) | FromAgent::Answer(..)) => {
                    assert!(taking.is_none(), "within a cycle nothing else is said");
                    self.inner().said.push(said);
                }
                FromAgent::Hello(_) | FromAgent::Alive | FromAgent::Ask(_) => {}
            }
        }
    }

    fn begin(&self, begin: Begin) -> Option<Taking> {
        let mut inner = self.inner();
        let newest = inner.taken.last().map(|t| t.begin.cycle);
        if begin.parent.is_some() && begin.parent != newest || std::mem::take(&mut inner.resync_next) {
            inner.resyncs += 1;
            return None;
        }
        let newest = inner.taken.last();
        if let Some(newest) = newest {
            assert!(begin.time > newest.begin.time, "the time of a cut is later than those before");
        }
        let before = newest.filter(|_| begin.parent.is_some()).map(|t| &t.disks);
        let protected = begin.disks.iter().filter(|d| !d.excluded);
        let disks = protected.map(|d| {
            let known = before.and_then(|b| b.get(&d.name));
            assert!(d.whole || known.is_some(), "disk {} is not known here, and not sent whole", d.name);
            let mut bytes = known.filter(|_| !d.whole).cloned().unwrap_or_default();
            bytes.resize(to_usize(d.size), 0);
            (d.name.clone(), bytes)
        });
        let disks = disks.collect();
        Some(Taking { check: CycleCheck::new(begin), disks, data_bytes: 0, runs: 0 })
    }

    fn take(&self, done: Taking) {
        let begin = done.check.begin().clone();
        let Taking { disks, data_bytes, runs, .. } = done;
        self.inner().taken.push(Taken { begin, disks, data_bytes, runs });
    }
}
