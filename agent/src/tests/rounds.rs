//! Disks whose writes are watched: rounds, a short cut, and nothing lost in between.

use std::sync::Arc;

use landfall_model::{BlockSet, Consistency, Extent};

use super::gateway::{FakeGateway, Trouble};
use super::machine::{BLOCK, Machine, noise};
use crate::ship::Event;
use crate::tracking::Tracking;

const SIZE: usize = 640 * BLOCK;

async fn watched() -> (Machine, FakeGateway) {
    let mut machine = Machine::new(&[("root", SIZE), ("data", 3 * BLOCK + 1)]);
    machine.watches.work();
    machine.write("root", 0, &noise(1, 20 * BLOCK));
    let gateway = FakeGateway::default();
    machine.ship(&gateway).await;
    (machine, gateway)
}

#[tokio::test]
async fn a_disk_is_read_once_and_then_only_where_it_was_written() {
    let (mut machine, gateway) = watched().await;
    assert_eq!(gateway.consistencies(), [Consistency::Unfinished, Consistency::Crash], "the first copy is a round");
    machine.write("root", 100 * BLOCK + 8192, &noise(2, 4096));
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.read_bytes, shipped.sent_bytes), (4096, 4096), "of the block what was written");
    assert_eq!(gateway.last().begin.disks[0].source, "told");
    machine.write("root", 3 * BLOCK, &noise(10, BLOCK));
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.read_bytes, shipped.sent_bytes), (BLOCK as u64, BLOCK as u64));
    machine.write("root", 3 * BLOCK, &noise(10, BLOCK));
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.read_bytes, shipped.sent_bytes), (BLOCK as u64, 0), "the same bytes again are no change");
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.read_bytes, shipped.sent_bytes), (0, 0));
    machine.write("root", 0, &vec![0; 2 * BLOCK]);
    let shipped = machine.ship(&gateway).await;
    assert_eq!(shipped.sent_bytes, 0, "zeroes are a range");
}

#[tokio::test]
async fn what_is_written_meanwhile_is_brought_by_rounds_that_shrink_and_a_cut_of_the_rest() {
    let (mut machine, gateway) = watched().await;
    let before = gateway.count();
    machine.write("root", 0, &noise(3, 300 * BLOCK));
    // While the first round is read, and while the second one is: looks are before each and within it.
    machine.watches.write_later(3, machine.path("root"), 17, noise(4, 135 * BLOCK));
    machine.watches.write_later(5, machine.path("root"), 5000, noise(5, 20 * BLOCK));
    machine.ship(&gateway).await;
    assert_eq!(machine.watches.left(), 0);
    use Consistency::{Crash, Unfinished};
    assert_eq!(gateway.consistencies()[before..], [Unfinished, Unfinished, Crash]);
    let events = machine.events.lock().expect("events");
    let last: Vec<_> = events.iter().rev().take(4).collect();
    assert!(matches!(last[..], [Event::Spooled(_), Event::Cut { .. }, Event::Round(_), Event::Round(_)]), "{last:?}");
}

#[tokio::test]
async fn what_was_lost_sight_of_is_compared_whole_once() {
    let (mut machine, gateway) = watched().await;
    machine.watches.lose(&machine.path("root"));
    machine.write("root", 300 * BLOCK, &noise(6, 10));
    let shipped = machine.ship(&gateway).await;
    assert_eq!(shipped.read_bytes, 0, "a round had it all");
    assert_eq!(gateway.last().begin.parent, Some(gateway.cycle(gateway.count() - 2)));
    machine.write("root", 301 * BLOCK, &noise(7, 10));
    assert_eq!(machine.ship(&gateway).await.read_bytes, 4096, "it is watched again");
}

#[tokio::test]
async fn a_block_of_which_a_part_was_sent_is_sent_whole_when_it_is_compared_and_then_no_more() {
    let (mut machine, gateway) = watched().await;
    machine.write("root", 100 * BLOCK + 8192, &noise(2, 4096));
    machine.write("root", 100 * BLOCK + 40960, &noise(3, 100));
    machine.write("data", 3 * BLOCK, &noise(3, 1));
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.sent_bytes, gateway.last().runs), (2 * 4096 + 1, 3), "the end of a disk is a whole block");
    for wanted in [BLOCK as u64, 0] {
        machine.watches.lose(&machine.path("root"));
        machine.watches.lose(&machine.path("data"));
        let before = gateway.count();
        machine.ship(&gateway).await;
        assert_eq!(gateway.sent_since(before), wanted);
    }
}

#[tokio::test]
async fn a_gateway_that_is_behind_is_given_blocks_of_which_only_parts_were_sent_since() {
    let (mut machine, first) = watched().await;
    let behind = first.with_first(first.count());
    for n in 0..3 {
        machine.write("root", 5 * BLOCK + n * 8192, &noise(20 + n as u64, 4096));
        machine.ship(&first).await;
    }
    machine.write("root", 5 * BLOCK + 3 * 8192, &noise(30, 4096));
    let shipped = machine.ship(&behind).await;
    assert_eq!((shipped.full, shipped.sent_bytes), (false, BLOCK as u64));
}

#[tokio::test]
async fn a_part_of_a_block_that_becomes_zero_is_sent_as_zeroes_or_data_by_its_length() {
    let (mut machine, gateway) = watched().await;
    machine.write("root", 7 * BLOCK, &vec![0; BLOCK / 2]);
    machine.write("root", 9 * BLOCK + 4096, &[0; 4096]);
    let shipped = machine.ship(&gateway).await;
    assert_eq!((shipped.sent_bytes, gateway.last().runs), (4096, 2));
}

#[tokio::test]
async fn what_was_read_for_a_cycle_that_failed_is_read_again() {
    for trouble in [Trouble::CutAt(1), Trouble::CutAt(2), Trouble::DieAt(2), Trouble::SpoolAndCut, Trouble::RefuseAt(2)]
    {
        let (mut machine, gateway) = watched().await;
        machine.write("root", 30 * BLOCK, &noise(8, 3 * BLOCK));
        let _ = machine.attempt(&gateway, trouble, Vec::new()).await;
        machine.write("data", 5, &noise(9, 10));
        machine.ship(&gateway).await;
    }
}

#[tokio::test]
async fn a_gateway_that_knows_no_rounds_is_sent_none() {
    let mut machine = Machine::new(&[("root", SIZE)]);
    machine.watches.work();
    machine.write("root", 0, &noise(1, 20 * BLOCK));
    let gateway = FakeGateway::default();
    gateway.speak(1);
    machine.ship(&gateway).await;
    machine.write("root", 0, &noise(3, 300 * BLOCK));
    machine.ship(&gateway).await;
    machine.write("root", 0, &noise(4, 3 * BLOCK));
    assert_eq!(machine.ship(&gateway).await.read_bytes, 3 * BLOCK as u64);
    assert_eq!(gateway.consistencies(), [Consistency::Crash; 3]);
}

#[tokio::test]
async fn what_is_written_between_a_look_and_the_reading_is_not_taken_for_sent() {
    let (mut machine, gateway) = watched().await;
    machine.write("root", 0, &noise(3, 300 * BLOCK));
    machine.write("root", 400 * BLOCK, &noise(4, 4096));
    // In the block that the round reads because of the other, and not told to that round.
    machine.watches.write_behind(2, machine.path("root"), 400 * BLOCK as u64 + 8192, noise(5, 4096));
    machine.ship(&gateway).await;
    assert_eq!(machine.watches.left(), 0);
}

#[tokio::test]
async fn who_writes_faster_than_rounds_go_gets_a_late_point_that_is_whole() {
    let (mut machine, gateway) = watched().await;
    machine.write("root", 0, &noise(1, 210 * BLOCK));
    // At each look of each round, and at the last one: no less than before, and too much for a short cut.
    for look in 1..15 {
        machine.watches.write_later(look, machine.path("root"), 0, noise(100 + look as u64, 210 * BLOCK));
    }
    let before = gateway.count();
    let shipped = machine.attempt(&gateway, Trouble::None, Vec::new()).await.expect("alive").expect("spooled");
    let seen = &gateway.consistencies()[before..];
    assert!(seen.len() > 4 && seen[..seen.len() - 1].iter().all(|c| *c == Consistency::Unfinished), "{seen:?}");
    assert_eq!((seen.last(), shipped.read_bytes), (Some(&Consistency::Crash), 210 * BLOCK as u64));
    machine.watches.write_no_more();
    machine.ship(&gateway).await;
}

#[test]
fn what_was_skipped_and_is_not_any_more_is_compared() {
    let machine = Machine::new(&[("root", SIZE)]);
    machine.watches.work();
    let tracking = Tracking::new(&machine.disks, machine.watches.clone().begin(), Arc::default());
    let name = &machine.disks[0].name;
    let block = BLOCK as u64;
    let mut swap = BlockSet::new(SIZE as u64, block);
    swap.insert(Extent { start: 3 * block, len: 20 * block });
    let look = |skip: Option<&BlockSet>, spooled: bool| {
        let taken = tracking.take(true).remove(0).dirty;
        let again = tracking.skip(name, skip);
        tracking.settle(spooled);
        (taken.bytes(), again.map_or(0, |set| set.len()))
    };
    let all = 20 * block;
    assert_eq!(look(Some(&swap), true), (None, 0), "the first look compares all");
    machine.write("root", 4 * BLOCK, &noise(1, BLOCK));
    assert_eq!(tracking.gather([name]), Some(0), "what is skipped is not read");
    assert_eq!(look(Some(&swap), true), (Some(block), 0));
    assert_eq!(look(None, false), (Some(0), all), "and this cycle fails");
    assert_eq!(look(Some(&swap), false), (Some(all), 0), "it comes back, and is swap again");
    assert_eq!(look(None, true), (Some(all), all));
    assert_eq!(look(None, true), (Some(0), 0));
}

#[tokio::test]
async fn what_is_written_while_nothing_is_held_still_is_read_again_until_nothing_is() {
    let (mut machine, gateway) = watched().await;
    machine.write("root", 10 * BLOCK, &noise(40, 3 * BLOCK));
    // Looks: how much is left, the cut, and then one for each pass. What is written behind them is seen by the next one.
    for (look, at) in [(2, 11 * BLOCK + 4096), (3, 50 * BLOCK), (4, 11 * BLOCK + 4096), (5, 12 * BLOCK - 4096)] {
        machine.watches.write_behind(look, machine.path("root"), at as u64, noise(50 + look as u64, 8192));
    }
    let before = gateway.count();
    machine.ship(&gateway).await;
    assert_eq!((machine.watches.left(), gateway.count()), (0, before + 1), "one cut, without a round");
    // And what is remembered of it is what was sent.
    machine.watches.lose(&machine.path("root"));
    let before = gateway.count();
    machine.ship(&gateway).await;
    assert_eq!(gateway.sent_since(before), BLOCK as u64, "the block of which a part was sent");
}

#[tokio::test]
async fn the_last_cycle_of_a_machine_that_was_stopped_finds_what_a_watch_has_missed() {
    use std::os::unix::fs::FileExt;
    let (mut machine, gateway) = watched().await;
    let file = std::fs::File::options().write(true).open(machine.path("root")).expect("own file");
    file.write_all_at(&noise(9, 4096), 70 * BLOCK as u64).expect("written behind the watch's back");
    machine.shipper().last = Some(crate::obey::Last { proof: false });
    let newest = gateway.newest();
    let (mut link, _death, _serving) = gateway.link(Trouble::None, Vec::new());
    let shipped = machine.shipper().ship(&mut link, newest).await.expect("spooled");
    assert_eq!(shipped.sent_bytes, 0, "nobody has marked it");
    machine.shipper().last = Some(crate::obey::Last { proof: true });
    let shipped = machine.shipper().ship(&mut link, Some(shipped.cycle)).await.expect("spooled");
    assert_eq!(shipped.sent_bytes, BLOCK as u64);
    assert_eq!(machine.shipper().digests.len(), 2);
    machine.check(&gateway);
}
