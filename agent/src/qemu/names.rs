//! Names of what the agent makes in a QEMU.

use std::path::Path;

use landfall_model::CycleId;

/// Names of one agent: those of another state directory are of another.
#[derive(Clone, Debug)]
pub(crate) struct Names(String);

fn short(of: &[u8]) -> String {
    blake3::hash(of).to_hex()[..8].to_owned()
}

impl Names {
    /// Of the agent with this state directory.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self(format!("landfall-{}-", short(state_dir.as_os_str().as_encoded_bytes())))
    }

    /// What all of them begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0
    }

    /// Whether the agent has made it.
    pub(crate) fn is_ours(&self, name: &str) -> bool {
        name.starts_with(&self.0)
    }

    /// A bitmap of what is written from the cut of this cycle on.
    pub(crate) fn bitmap(&self, cycle: CycleId) -> String {
        format!("{}{cycle}", self.0)
    }

    /// A node, or an export, for the disk with this root node. QEMU takes names of up to 31 bytes; those of disks may be as long, so they are in it as a hash.
    pub(crate) fn node(&self, root: &str, part: Part) -> String {
        let part = match part {
            Part::Scratch => "fil",
            Part::Filter => "cbw",
            Part::Snapshot => "acc",
            Part::Export => "nbd",
        };
        format!("{}{}-{part}", self.0, short(root.as_bytes()))
    }
}

/// What is made for each disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Where old bytes go.
    Scratch,
    /// What sends them there.
    Filter,
    /// The disk as it was.
    Snapshot,
    /// Where that is read.
    Export,
}
