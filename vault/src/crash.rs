//! Named crash points: where a test can end the process as `kill -9` would, to see what is left behind.
//!
//! The list is the documentation of every step between which a crash leaves a different state. Without the `crash-points`
//! feature, which no release has, [`crash_point`] is empty.

/// Every crash point, in the order in which one replication and one rehydrate meet them.
pub const CRASH_POINTS: &[&str] = &[
    // vault create: the key files exist, the vault does not: run again with other file names, or delete the key files.
    "create.keys-written",
    // the site key's wrap is stored, `vault.json` is not: an empty prefix to every reader.
    "create.site-key-stored",
    // a generation is claimed, and the heartbeat names the machine: the next run by the same gateway goes on with it.
    "generation.claimed",
    // the epoch's wrapped key is stored, nothing is sealed under it yet: an epoch of no use, harmless.
    "epoch.stored",
    // a segment is stored, the local index does not know: the next run finds it by listing.
    "segment.stored",
    // the local index knows the segment's chunks, no point refers to them: the next run does.
    "segment.indexed",
    // everything is stored but the point: the next run uploads only the point.
    "point.before-commit",
    // the point is committed, nothing local knows: the next run starts from it.
    "point.committed",
    // the checkpoint's pages are stored, the checkpoint is not: the next run writes it.
    "checkpoint.before-commit",
    // the checkpoint is there; the machine still looks held, by the same gateway.
    "replicate.before-release",
    // of a gateway: everything of a cycle is spooled but its point: the agent was told nothing, and sends it again.
    "spool.before-point",
    // the point is spooled, the agent was not told: it hears of it when it connects again.
    "spool.point-written",
    // of two points that wait, one is made: the earlier is still there as it was, the agent was told nothing of the later.
    "coalesce.before-point",
    // it stands in the place of the earlier, the agent was not told: it hears of it when it connects again.
    "coalesce.point-written",
    // an object is stored, the spool still has it: the next run finds it there and forgets it.
    "spool.object-stored",
    // some bytes of the disk are written under its temporary name.
    "rehydrate.first-write",
    // all bytes are written, the image does not have its name yet.
    "rehydrate.before-finish",
    // a step of a failover is done, and nobody has written that down: it finds out for itself when the job is gone on with.
    "failover.step-done",
    // it is written down.
    "failover.step-written",
    // a disk of the machine is copied and durable, and its overlay still has the vault behind it: copying it again finds nothing to do.
    "failover.copied",
    // the machine of a drill has ended, and its report is not stored: its job says how far it came.
    "drill.seen",
    // the report is stored; its folder is still there.
    "drill.reported",
];

/// Ends the process here, as `kill -9` would, where the environment variable `LANDFALL_CRASH_AT` names this point
/// (with `:N` after it, at the N-th time that it is met).
#[cfg(feature = "crash-points")]
pub fn crash_point(name: &'static str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static MET: AtomicU64 = AtomicU64::new(0);
    debug_assert!(CRASH_POINTS.contains(&name), "{name} is not listed");
    let Ok(wanted) = std::env::var("LANDFALL_CRASH_AT") else { return };
    let (wanted, nth) = wanted.split_once(':').map_or((wanted.as_str(), 1), |(w, n)| (w, n.parse().unwrap_or(1)));
    if wanted == name && MET.fetch_add(1, Ordering::SeqCst) + 1 == nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }
}

/// Nothing: releases have no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn crash_point(_name: &'static str) {}
