//! A raw volume that is written to and that nothing can hold still: each point is as a power cut would have left it.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use landfall_tests::landfall::{Site, exit, number};
use landfall_tests::loops::{Loop, can_be_watched};
use landfall_tests::need;
use landfall_tests::service::{AgentHost, GatewayHost};
use support::{KIB, MIB};

/// Places that are written in turn: as much as is read in one cut without a round before it, so that the reading takes longer than a few writes.
const SLOTS: u64 = 64;
const SLOT_BYTES: usize = 28 << 10;
/// Buffers begin at a multiple of this.
const PAGE: usize = 4096;
/// Between two writes.
const PACE: Duration = Duration::from_millis(3);

/// Where a number is written: the next one is far from it, before it or behind it.
fn slot(number: u64) -> u64 {
    number * 37 % SLOTS
}

/// Writes numbers in order, each when the one before is on the disk. Ends when it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(device: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
        let flags = flags.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(device).unwrap();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut room = vec![0_u8; SLOT_BYTES + PAGE];
            let border = room.as_ptr().align_offset(PAGE);
            let page = &mut room[border..border + SLOT_BYTES];
            for number in 1_u64.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                page.chunks_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
                file.write_all_at(page, slot(number) * 64 * KIB + 8 * KIB).unwrap();
                std::thread::sleep(PACE);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The number in each slot, sector by sector.
fn numbers(image: &Path) -> Vec<Vec<u64>> {
    let file = fs::File::open(image).unwrap();
    let read = |at: u64| {
        let mut page = vec![0; SLOT_BYTES];
        file.read_exact_at(&mut page, at * 64 * KIB + 8 * KIB).unwrap();
        page.chunks(512).map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap())).collect()
    };
    (0..SLOTS).map(read).collect()
}

/// What a slot holds once this number and all before it are written.
fn wanted(at: u64, newest: u64) -> u64 {
    (newest.saturating_sub(SLOTS - 1).max(1)..=newest).find(|n| slot(*n) == at).unwrap_or(0)
}

#[test]
fn every_point_of_a_raw_volume_that_is_written_to_is_as_after_a_power_cut() {
    need!(can_be_watched().then_some(()));
    let site = Site::with_vault();
    let gateway = GatewayHost::started(&site, "gw");
    let file = site.disk("disk.img");
    landfall_tests::disks::zeroes(&file, 8 * MIB);
    let device = need!(Loop::of(&file));
    let host = AgentHost::new(&site, "web", &[gateway.address()], &[("root", device.device())], "");
    host.enroll(&gateway);
    let writer = Writer::start(device.device());
    let agent = host.start();
    host.wait_for_points(12);
    drop(writer);
    agent.interrupt();
    assert_eq!(agent.finish().code(), Some(exit::DONE));
    let mut last = 0;
    for point in site.points("web") {
        assert_eq!(point["consistency"], "crash", "{point}");
        let (seq, back) = (number(&point, "seq").to_string(), site.disk("back"));
        site.rehydrate("web", &seq, &[("root", &back)]);
        let held = numbers(&back);
        fs::remove_file(back).unwrap();
        let newest = held.iter().flatten().copied().max().unwrap();
        assert!(newest >= last, "point {seq} goes back from {last} to {newest}");
        last = newest;
        for (at, sectors) in (0..SLOTS).zip(&held) {
            // The newest may have been under way, sector by sector; all before it were complete.
            let is_newest = slot(newest) == at;
            let before = wanted(at, newest - u64::from(is_newest));
            let fits = |n: &u64| *n == before || is_newest && *n == newest;
            assert!(
                sectors.iter().all(fits),
                "point {seq} has {newest}, and in slot {at} {sectors:?} and not {before}"
            );
        }
    }
    assert!(last > SLOTS, "it was written to all the time: {last}");
    drop(device);
}
