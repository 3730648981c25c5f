//! Single cycles, each for one thing that must hold.

use std::fs;
use std::time::Duration;

use landfall_model::{Consistency, ErrorKind};
use landfall_wire::{FromAgent, FromGateway};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::gateway::{FakeGateway, Trouble};
use super::machine::{BLOCK, Machine, copy_folder, noise};
use crate::link::Link;
use crate::ship::{Event, Fault};

/// A machine whose gateway has two cycles of it.
async fn protected() -> (Machine, FakeGateway) {
    let mut machine = Machine::new(&[("root", 20 * BLOCK + 77), ("data", 9 * BLOCK)]);
    let gateway = FakeGateway::default();
    machine.write("root", 3 * BLOCK, &noise(1, 2 * BLOCK));
    machine.write("data", 100, &noise(2, 300));
    assert!(machine.ship(&gateway).await.full);
    machine.write("root", 20 * BLOCK, &noise(3, 77));
    assert!(!machine.ship(&gateway).await.full);
    (machine, gateway)
}

#[tokio::test]
async fn a_full_cycle_sends_what_is_not_zero_and_the_next_what_changed() {
    let (mut machine, gateway) = protected().await;
    assert_eq!(gateway.last().data_bytes, 77, "one short block");
    machine.write("data", 5 * BLOCK - 1, b"xy");
    let shipped = machine.ship(&gateway).await;
    assert_eq!((gateway.last().data_bytes, gateway.last().runs), (2 * BLOCK as u64, 1), "two blocks, one run");
    assert_eq!(shipped.sent_bytes, 2 * BLOCK as u64);
    assert_eq!(gateway.last().begin.consistency, Consistency::Crash);
}

#[tokio::test]
async fn an_unchanged_disk_sends_nothing() {
    let (mut machine, gateway) = protected().await;
    for _ in 0..3 {
        let shipped = machine.ship(&gateway).await;
        assert_eq!((gateway.last().runs, shipped.sent_bytes, shipped.full), (0, 0, false));
        machine.kill();
    }
}

#[tokio::test]
async fn blocks_that_become_zero_are_sent_as_zeroes_in_one_run() {
    let (mut machine, gateway) = protected().await;
    machine.write("root", 3 * BLOCK, &vec![0; 2 * BLOCK]);
    machine.ship(&gateway).await;
    assert_eq!((gateway.last().data_bytes, gateway.last().runs), (0, 1));
    machine.write("root", 4 * BLOCK, &noise(9, 10));
    machine.ship(&gateway).await;
    assert_eq!(gateway.last().data_bytes, BLOCK as u64);
}

#[tokio::test]
async fn disks_larger_than_a_read_and_many_changes_arrive() {
    let mut machine = Machine::new(&[("root", 70 * BLOCK + 1)]);
    let gateway = FakeGateway::default();
    machine.write("root", 0, &noise(1, 70 * BLOCK + 1));
    machine.ship(&gateway).await;
    assert_eq!(gateway.last().data_bytes, 70 * BLOCK as u64 + 1);
    for block in (0..70).step_by(2) {
        machine.write("root", block * BLOCK + 5, &noise(block as u64, 5));
    }
    machine.ship(&gateway).await;
    assert_eq!((gateway.last().data_bytes, gateway.last().runs), (35 * BLOCK as u64, 35));
}

#[tokio::test]
async fn another_gateway_that_has_an_older_cycle_is_given_everything_since() {
    let (mut machine, first) = protected().await;
    machine.write("root", 7 * BLOCK, &noise(4, 10));
    machine.ship(&first).await;
    machine.write("root", 8 * BLOCK, &noise(5, 10));
    let second = first.with_first(1);
    let shipped = machine.ship(&second).await;
    assert_eq!((shipped.full, second.last().begin.parent), (false, Some(first.cycle(0))));
    assert_eq!(second.last().data_bytes, 2 * BLOCK as u64 + 77, "two cycles that it lacks, and what changed now");
    // The first one comes back: it lacks what the second has.
    machine.write("data", 0, &noise(6, 10));
    let shipped = machine.ship(&first).await;
    assert_eq!((shipped.full, first.last().begin.parent), (false, Some(first.cycle(2))));
}

#[tokio::test]
async fn a_gateway_that_lacks_a_disk_that_went_or_shrank_is_given_all_of_it() {
    let (mut machine, first) = protected().await;
    machine.write("root", 15 * BLOCK, &noise(4, BLOCK));
    machine.ship(&first).await;
    let number = first.count();
    machine.resize("root", 10 * BLOCK + 5);
    machine.exclude("data", true);
    machine.ship(&first).await;
    machine.resize("root", 20 * BLOCK + 77);
    machine.exclude("data", false);
    machine.write("data", 0, &vec![0; 9 * BLOCK]);
    let shipped = machine.ship(&first).await;
    assert!(!shipped.full);
    let second = first.with_first(number);
    machine.ship(&second).await;
    assert_eq!(second.last().begin.parent, Some(first.cycle(number - 1)));
}

#[tokio::test]
async fn a_gateway_that_has_nothing_or_something_unknown_is_given_everything() {
    let (mut machine, first) = protected().await;
    let empty = FakeGateway::default();
    assert!(machine.ship(&empty).await.full);
    assert!(machine.ship(&first).await.full, "the history of the first ended with the full cycle");
}

#[tokio::test]
async fn what_is_committed_ends_the_history_before_it() {
    let (mut machine, first) = protected().await;
    machine.ship(&first).await;
    let commits = vec![first.cycle(1)];
    machine.attempt(&first, Trouble::None, commits).await.expect("alive").expect("spooled");
    machine.kill();
    assert!(!machine.ship(&first.with_first(2)).await.full);
    assert!(machine.ship(&first.with_first(1)).await.full);
    let events = machine.events.lock().expect("events");
    assert!(events.iter().any(|e| matches!(e, Event::Committed { time: Some(_), .. })));
}

#[tokio::test]
async fn a_cycle_that_was_spooled_unheard_is_the_parent_of_the_next() {
    let (mut machine, gateway) = protected().await;
    for full in [false, true] {
        if full {
            fs::remove_dir_all(machine.state_dir()).expect("lost");
            machine.kill();
        }
        machine.write("root", 11 * BLOCK, &noise(4 + u64::from(full), 10));
        let outcome = machine.attempt(&gateway, Trouble::SpoolAndCut, Vec::new()).await.expect("alive");
        assert!(matches!(outcome, Err(Fault::Link(_))), "{outcome:?}");
        let unheard = gateway.newest();
        machine.kill();
        machine.write("root", 12 * BLOCK, &noise(5 + u64::from(full), 10));
        let shipped = machine.ship(&gateway).await;
        assert_eq!((shipped.full, gateway.last().begin.parent), (false, unheard));
        assert_eq!(gateway.last().data_bytes, BLOCK as u64);
    }
}

#[tokio::test]
async fn committed_without_spooled_is_spooled() {
    let (mut machine, gateway) = protected().await;
    machine.write("root", 11 * BLOCK, &noise(4, 10));
    machine.attempt(&gateway, Trouble::OnlyCommitted, Vec::new()).await.expect("alive").expect("spooled");
    assert!(!machine.ship(&gateway).await.full);
}

#[tokio::test]
async fn a_lost_state_directory_means_everything() {
    let (mut machine, gateway) = protected().await;
    machine.kill();
    fs::remove_dir_all(machine.state_dir()).expect("lost");
    assert!(machine.ship(&gateway).await.full);
    assert!(!machine.ship(&gateway).await.full);
}

#[tokio::test]
async fn each_lost_or_damaged_file_of_the_state_means_everything_or_nothing_wrong() {
    for file in ["key", "state.json", "fingerprints/root", "fingerprints/data"] {
        for damage in ["removed", "emptied", "cut off"] {
            let (mut machine, gateway) = protected().await;
            machine.kill();
            let path = machine.state_dir().join(file);
            match damage {
                "removed" => fs::remove_file(&path).expect("removed"),
                "emptied" => fs::write(&path, b"").expect("emptied"),
                _ => {
                    let len = fs::metadata(&path).expect("a file").len();
                    fs::File::options().write(true).open(&path).and_then(|f| f.set_len(len / 2)).expect("cut off");
                }
            }
            machine.write("data", 0, &vec![0; 9 * BLOCK]);
            assert!(machine.ship(&gateway).await.full, "{file} {damage}");
            assert!(!machine.ship(&gateway).await.full);
        }
    }
}

#[tokio::test]
async fn a_restored_old_state_directory_means_everything_and_never_a_wrong_change() {
    let (mut machine, gateway) = protected().await;
    machine.kill();
    let aside = machine.folder.path().join("aside");
    copy_folder(&machine.state_dir(), &aside);
    machine.write("root", 3 * BLOCK, &noise(4, BLOCK));
    machine.ship(&gateway).await;
    machine.kill();
    fs::remove_dir_all(machine.state_dir()).expect("removed");
    copy_folder(&aside, &machine.state_dir());
    // As it was when the copy was made: the old fingerprints say that nothing changed.
    machine.write("root", 3 * BLOCK, &noise(1, BLOCK));
    assert!(machine.ship(&gateway).await.full);

    // Fingerprints of one time and a state of another.
    for part in ["state.json", "fingerprints"] {
        machine.kill();
        let (to, from) = (machine.state_dir().join(part), aside.join(part));
        if from.is_dir() {
            fs::remove_dir_all(&to).expect("removed");
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copied");
        }
        assert!(machine.ship(&gateway).await.full, "{part}");
    }
}

#[tokio::test]
async fn resync_is_answered_with_everything_at_once() {
    for at in [1, 2, 3] {
        let (mut machine, gateway) = protected().await;
        machine.write("root", 11 * BLOCK, &noise(4, 10));
        let shipped = machine.attempt(&gateway, Trouble::ResyncAt(at), Vec::new()).await;
        assert!(shipped.expect("alive").expect("spooled").full);
        assert_eq!(gateway.resyncs(), 1);
        assert!(!machine.ship(&gateway).await.full);
    }
}

/// A link whose other end is the test.
fn by_hand() -> (Link<mpsc::Receiver<FromGateway>>, mpsc::Receiver<FromAgent>, mpsc::Sender<FromGateway>) {
    let ((to, from_agent), (to_agent, from)) = (mpsc::channel(4), mpsc::channel(4));
    (Link { to, from, held: None, version: 2 }, from_agent, to_agent)
}

#[tokio::test]
async fn an_agent_that_may_not_send_everything_yet_freezes_and_reads_nothing_until_it_may() {
    let (mut machine, gateway) = protected().await;
    let log = machine.folder.path().join("log");
    machine.freeze_command = Some(format!("echo $LANDFALL_PHASE >> {}", log.display()));
    machine.kill();
    // Sends everything: of its own accord, and where a gateway does not take its changes.
    for newest in [None, gateway.newest()] {
        let _ = fs::remove_file(&log);
        let events = machine.events.clone();
        events.lock().expect("events").clear();
        let (mut link, mut said, say) = by_hand();
        let frozen = || fs::read_to_string(&log).unwrap_or_default();
        let gateway = async {
            let first = said.recv().await.expect("it says something");
            assert_eq!(matches!(first, FromAgent::Ask(_)), newest.is_none(), "{first:?}");
            say.send(FromGateway::Wait("it waits for Sat 22:00".to_owned())).await.expect("a link");
            while !events.lock().expect("events").iter().any(|e| matches!(e, Event::Waits(why) if why.contains("Sat")))
            {
                sleep(Duration::from_millis(5)).await;
            }
            // Nothing after the question; what was begun before is thawed, and what is on its way of it is skipped.
            assert_eq!(frozen(), if newest.is_none() { "" } else { "freeze\nthaw\n" });
            while let Ok(left) = said.try_recv() {
                assert!(newest.is_some(), "{left:?}");
            }
            say.send(FromGateway::Resync("now".to_owned())).await.expect("a link");
            match said.recv().await {
                Some(FromAgent::Begin(begin)) => assert_eq!(begin.parent, None),
                other => panic!("{other:?}"),
            }
            drop((said, say));
        };
        let (shipped, ()) = tokio::join!(machine.shipper().ship(&mut link, newest), gateway);
        assert!(matches!(shipped, Err(Fault::Link(_))), "{shipped:?}");
    }
    // Who is run for one cycle is told, and does not wait.
    let (mut link, mut said, say) = by_hand();
    let shipper = machine.shipper();
    shipper.patient = false;
    let gateway = async move {
        assert!(matches!(said.recv().await, Some(FromAgent::Ask(_))));
        say.send(FromGateway::Wait("it waits for Sat 22:00".to_owned())).await.expect("a link");
        said.recv().await
    };
    let shipping = async {
        let shipped = shipper.ship(&mut link, None).await;
        drop(link);
        shipped
    };
    match tokio::join!(shipping, gateway) {
        (Err(Fault::Refused(error)), None) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_refusal_is_an_error_of_its_kind_and_the_next_attempt_is_right() {
    let (mut machine, gateway) = protected().await;
    machine.write("root", 11 * BLOCK, &noise(4, 10));
    for at in [1, 2, 3] {
        match machine.attempt(&gateway, Trouble::RefuseAt(at), Vec::new()).await {
            Some(Err(Fault::Refused(error))) => assert_eq!(error.kind(), ErrorKind::Conflict),
            other => panic!("{other:?}"),
        }
    }
    assert!(!machine.ship(&gateway).await.full);
}

#[tokio::test]
async fn a_disk_that_cannot_be_read_aborts_nothing_that_was_not_begun_and_mends_itself() {
    let (mut machine, gateway) = protected().await;
    fs::rename(machine.path("data"), machine.folder.path().join("elsewhere")).expect("renamed");
    match machine.attempt(&gateway, Trouble::None, Vec::new()).await {
        Some(Err(Fault::Local(error))) => assert_eq!(error.kind(), ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    assert_eq!((gateway.aborted(), gateway.count()), (0, 2));
    fs::write(machine.path("data"), b"").expect("an empty disk");
    match machine.attempt(&gateway, Trouble::None, Vec::new()).await {
        Some(Err(Fault::Local(error))) => assert_eq!(error.kind(), ErrorKind::Usage),
        other => panic!("{other:?}"),
    }
    fs::rename(machine.folder.path().join("elsewhere"), machine.path("data")).expect("renamed");
    assert!(!machine.ship(&gateway).await.full);
}

#[tokio::test]
async fn the_freeze_command_is_always_undone_by_a_thaw() {
    let (mut machine, gateway) = protected().await;
    let log = machine.folder.path().join("log");
    let read = || fs::read_to_string(&log).unwrap_or_default();
    machine.freeze_command = Some(format!("echo $LANDFALL_PHASE >> {}", log.display()));
    machine.kill();
    machine.ship(&gateway).await;
    assert_eq!(read(), "freeze\nthaw\n");
    assert_eq!(gateway.last().begin.consistency, Consistency::Application);

    machine.write("root", 0, &noise(4, 20 * BLOCK));
    for trouble in [Trouble::CutAt(2), Trouble::RefuseAt(1), Trouble::DieAt(2), Trouble::DieAt(3)] {
        fs::remove_file(&log).expect("removed");
        let _ = machine.attempt(&gateway, trouble, Vec::new()).await;
        machine.kill();
        drop(machine.open_state());
        assert_eq!(read(), "freeze\nthaw\n", "{trouble:?}");
    }

    fs::remove_file(&log).expect("removed");
    machine.freeze_command = Some(format!("echo $LANDFALL_PHASE >> {}; test $LANDFALL_PHASE = thaw", log.display()));
    machine.kill();
    match machine.attempt(&gateway, Trouble::None, Vec::new()).await {
        Some(Err(Fault::Local(error))) => assert_eq!(error.kind(), ErrorKind::Usage),
        other => panic!("{other:?}"),
    }
    assert_eq!(read(), "freeze\nthaw\n");
}
