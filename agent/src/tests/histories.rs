//! Random histories: whatever is done to the disks, the link, the agent and the gateways, what a gateway has taken is what the disks held.

use std::fs;
use std::path::PathBuf;

use landfall_model::CycleId;
use proptest::prelude::*;

use super::gateway::{FakeGateway, Trouble};
use super::machine::{BLOCK, Machine, copy_folder, noise};

const NAMES: [&str; 3] = ["root", "data", "log"];
const SIZE_MAX: usize = 24 * BLOCK;

#[derive(Clone, Debug)]
enum Step {
    Write {
        disk: usize,
        at: usize,
        len: usize,
        seed: u64,
    },
    Zero {
        disk: usize,
        at: usize,
        len: usize,
    },
    Resize {
        disk: usize,
        size: usize,
    },
    Remove {
        disk: usize,
    },
    Exclude {
        disk: usize,
        exclude: bool,
    },
    /// Within a later cycle.
    WriteLater {
        disk: usize,
        at: usize,
        len: usize,
        looks: usize,
    },
    /// What is written to it is not known any more.
    LoseSight {
        disk: usize,
    },
    Kill,
    LoseState,
    /// A copy of the state directory is put aside.
    CopyState,
    /// The copy is put back.
    RestoreState,
    /// One attempt, and the names of cycles that are said to be committed on the way.
    Cycle {
        trouble: Trouble,
        commits: usize,
    },
    /// Another gateway goes on from an earlier cycle.
    Takeover {
        back: usize,
    },
    /// A gateway that has nothing.
    Fresh,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        4 => Just(Trouble::None),
        2 => (1usize..8).prop_map(Trouble::CutAt),
        2 => (1usize..8).prop_map(Trouble::DieAt),
        2 => Just(Trouble::SpoolAndCut),
        1 => Just(Trouble::OnlyCommitted),
        1 => (1usize..6).prop_map(Trouble::ResyncAt),
        1 => (1usize..6).prop_map(Trouble::RefuseAt),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let disk = || 0..NAMES.len();
    let size = 1..SIZE_MAX;
    prop_oneof![
        6 => (disk(), 0..SIZE_MAX, 1..3 * BLOCK, 0u64..6)
            .prop_map(|(disk, at, len, seed)| Step::Write { disk, at, len, seed }),
        2 => (disk(), 0..SIZE_MAX, 1..6 * BLOCK).prop_map(|(disk, at, len)| Step::Zero { disk, at, len }),
        2 => (disk(), size).prop_map(|(disk, size)| Step::Resize { disk, size }),
        1 => disk().prop_map(|disk| Step::Remove { disk }),
        1 => (disk(), any::<bool>()).prop_map(|(disk, exclude)| Step::Exclude { disk, exclude }),
        2 => (disk(), 0..SIZE_MAX, 1..3 * BLOCK, 1usize..6)
            .prop_map(|(disk, at, len, looks)| Step::WriteLater { disk, at, len, looks }),
        1 => disk().prop_map(|disk| Step::LoseSight { disk }),
        1 => Just(Step::Kill),
        8 => (trouble(), 0usize..3).prop_map(|(trouble, commits)| Step::Cycle { trouble, commits }),
        2 => (0usize..4).prop_map(|back| Step::Takeover { back }),
        1 => prop_oneof![Just(Step::Fresh), Just(Step::LoseState)],
        2 => prop_oneof![Just(Step::CopyState), Just(Step::RestoreState)],
    ]
}

struct World {
    machine: Machine,
    gateway: FakeGateway,
}

impl World {
    /// Makes the disk where there is none: what is done to one that is missing adds it.
    fn disk(&mut self, disk: usize) -> &'static str {
        let name = NAMES[disk];
        if !self.machine.disks.iter().any(|d| d.name.as_str() == name) {
            self.machine.add(name, 5 * BLOCK + 300);
        }
        name
    }

    /// At least one disk is protected.
    fn protect_one(&mut self) {
        if self.machine.disks.iter().all(|d| d.exclude) {
            let name = self.disk(0);
            self.machine.exclude(name, false);
        }
    }

    fn aside(&self) -> PathBuf {
        self.machine.folder.path().join("aside")
    }

    fn lose_state(&mut self) {
        self.machine.kill();
        drop(self.machine.open_state());
        fs::remove_dir_all(self.machine.state_dir()).expect("lost");
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Write { disk, at, len, seed } => {
                let name = self.disk(disk);
                self.machine.write(name, at, &noise(seed, len));
            }
            Step::Zero { disk, at, len } => {
                let name = self.disk(disk);
                self.machine.write(name, at, &vec![0; len]);
            }
            Step::Resize { disk, size } => {
                let name = self.disk(disk);
                self.machine.resize(name, size);
            }
            Step::Remove { disk } => {
                self.machine.remove(NAMES[disk]);
                self.protect_one();
            }
            Step::Exclude { disk, exclude } => {
                let name = self.disk(disk);
                self.machine.exclude(name, exclude);
                self.protect_one();
            }
            Step::WriteLater { disk, at, len, looks } => {
                let name = self.disk(disk);
                self.machine.watches.write_later(looks, self.machine.path(name), at as u64, noise(looks as u64, len));
            }
            Step::LoseSight { disk } => self.machine.watches.lose(&self.machine.path(NAMES[disk])),
            Step::Kill => self.machine.kill(),
            Step::LoseState => self.lose_state(),
            Step::CopyState => {
                self.machine.kill();
                drop(self.machine.open_state());
                let _ = fs::remove_dir_all(self.aside());
                copy_folder(&self.machine.state_dir(), &self.aside());
            }
            Step::RestoreState => {
                if self.aside().exists() {
                    self.lose_state();
                    copy_folder(&self.aside(), &self.machine.state_dir());
                }
            }
            Step::Cycle { trouble, commits } => {
                let first = self.gateway.count().saturating_sub(commits);
                let commits: Vec<CycleId> = (first..self.gateway.count()).map(|n| self.gateway.cycle(n)).collect();
                let _ = self.machine.attempt(&self.gateway, trouble, commits).await;
            }
            Step::Takeover { back } => {
                self.gateway = self.gateway.with_first(self.gateway.count().saturating_sub(back));
            }
            Step::Fresh => self.gateway = FakeGateway::default(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn what_a_gateway_has_is_what_the_disks_held(watched in 0..3, steps in prop::collection::vec(step(), 4..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let machine = Machine::new(&[("root", 10 * BLOCK), ("data", 3 * BLOCK + 1)]);
            match watched {
                0 => {}
                1 => machine.watches.work(),
                _ => machine.watches.copy(),
            }
            let mut world = World { machine, gateway: FakeGateway::default() };
            for step in steps {
                world.step(step).await;
            }
            world.machine.watches.write_no_more();
            world.machine.ship(&world.gateway).await;
            let again = world.machine.ship(&world.gateway).await;
            assert!(!again.full && again.sent_bytes == 0, "nothing changed, nothing is sent");
        });
    }
}
