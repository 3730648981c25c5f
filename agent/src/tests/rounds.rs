//! Disks whose writes are watched: rounds, a short cut, and nothing lost in between.

use landfall_model::Consistency;

use super::gateway::{FakeGateway, Trouble};
use super::machine::{BLOCK, Machine, noise};
use crate::ship::Event;

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
    assert_eq!(shipped.read_bytes, BLOCK as u64, "the block around it");
    assert_eq!(shipped.sent_bytes, BLOCK as u64, "and all of it: its fingerprint is of all");
    assert_eq!(gateway.last().begin.disks[0].source, "told");
    machine.write("root", 100 * BLOCK + 8192, &noise(2, 4096));
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
    assert_eq!(machine.ship(&gateway).await.read_bytes, BLOCK as u64, "it is watched again");
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
