//! What a recovery point says about its machine, its disks and itself (FORMAT.md section 8).

use serde::{Deserialize, Serialize};

use crate::{
    CycleId, DiskName, DomainName, GatewayId, GroupId, GroupName, JobId, MachineId, MachineName, Seq, Timestamp,
};

/// What a point guarantees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// None yet: the disks were written while they were read. It stands for no moment, and is no point until what was written meanwhile is
    /// added. No record of a vault says so, only one that waits in a gateway's spool.
    Unfinished,
    /// As after a power cut.
    Crash,
    /// File systems were frozen.
    Filesystem,
    /// Applications were quiesced, and their hooks succeeded.
    Application,
}

impl std::fmt::Display for Consistency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unfinished => "unfinished",
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        })
    }
}

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Nic {
    /// Its name in the machine.
    pub name: String,
    /// Device model, for example `virtio`.
    pub model: String,
    /// Hardware address.
    pub mac: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// What is needed to make the machine again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MachineShape {
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Number of virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Network interfaces.
    pub nics: Vec<Nic>,
}

/// A disk as a point knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiskMeta {
    /// Its name in the machine.
    pub name: DiskName,
    /// Size in bytes.
    pub size: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Whether the machine boots from it.
    pub boot: bool,
    /// Known, but its content is not protected.
    pub excluded: bool,
    /// The source that captured it, for example `image`.
    pub source: String,
    /// What tells this disk from another: the file's or device's own identity.
    pub identity: String,
    /// The point at which its history begins, from all zeroes.
    pub base_seq: Seq,
}

/// What a cycle moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes of the disks whose content is not what it was at the point before.
    pub changed_bytes: u64,
    /// Bytes read from the disks.
    pub read_bytes: u64,
    /// Bytes in chunks that the vault did not have.
    pub new_chunk_bytes: u64,
    /// Bytes that these chunks and the maps take in the store.
    pub stored_bytes: u64,
}

/// Says that a point is of a moment at which all machines of a group were held still. It means something only where every one of them has a
/// point with a mark of this id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupMark {
    /// The group's name.
    pub name: GroupName,
    /// This cut of it.
    pub id: GroupId,
    /// The moment, by the gateway's clock.
    pub time: Timestamp,
    /// All its machines.
    pub members: Vec<MachineName>,
}

/// What came of a program that was run around a cut, so that applications are quiet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HookResult {
    /// `freeze` or `thaw`.
    pub phase: String,
    /// Its exit code; none where it could not be run, did not end in time, or a signal ended it.
    pub code: Option<i64>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// Metadata of a point or checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PointMeta {
    /// The machine.
    pub machine: MachineName,
    /// The dedup domain that its chunks are in.
    pub domain: DomainName,
    /// The moment that the bytes are of.
    pub source_time: Timestamp,
    /// When the gateway committed it.
    pub store_time: Timestamp,
    /// What it guarantees.
    pub consistency: Consistency,
    /// Who wrote it.
    pub gateway: GatewayId,
    /// The machine around the disks, where the source can know it.
    pub shape: Option<MachineShape>,
    /// The disks, in the order of the record's maps.
    pub disks: Vec<DiskMeta>,
    /// What the cycle moved.
    pub counters: Counters,
    /// Kept until unpinned.
    pub pinned: bool,
    /// The agent's cut that the bytes are of; none where no agent was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycle: Option<CycleId>,
    /// Other machines have points of the same moment; none where the cut was the machine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupMark>,
    /// What was run around the cut in a guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookResult>,
}

/// Body of a generation record: who may write.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GenerationMeta {
    /// The machine.
    pub machine: MachineName,
    /// The gateway that claimed it.
    pub gateway: GatewayId,
    /// When, by the gateway's clock.
    pub claimed: Timestamp,
    /// The failover that claimed it: no gateway may claim the next one, until the failover is cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<JobId>,
}

/// Body of a heartbeat record: a gateway lives, and holds these machines. Advisory: correctness never rests on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeartbeatMeta {
    /// The gateway.
    pub gateway: GatewayId,
    /// When it was last renewed, by the gateway's clock.
    pub renewed: Timestamp,
    /// Unchanged for so long, what the gateway held is given up.
    pub ttl_ms: u64,
    /// The machines that it holds, ascending: one that is not here was given back, or never taken.
    pub machines: Vec<MachineId>,
}

/// Body of a revocation record: certificates of a machine that enrolled until then are refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RevocationMeta {
    /// The machine.
    pub machine: MachineName,
    /// The last moment of an enrolment that is refused.
    pub until: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(group: Option<GroupMark>) -> PointMeta {
        PointMeta {
            machine: "web".parse().expect("a name"),
            domain: "default".parse().expect("a name"),
            source_time: Timestamp::from_millis(0),
            store_time: Timestamp::from_millis(1),
            consistency: Consistency::Application,
            gateway: GatewayId::from_bytes([4; 16]),
            shape: None,
            disks: Vec::new(),
            counters: Counters::default(),
            pinned: false,
            cycle: None,
            group,
            hooks: Vec::new(),
        }
    }

    #[test]
    fn a_groups_mark_is_written_as_the_format_says_and_is_absent_where_there_is_none() {
        let members = ["web", "db"].map(|name| name.parse().expect("a name")).into();
        let (name, id) = ("shop".parse().expect("a name"), GroupId::from_bytes([6; 16]));
        let marked = meta(Some(GroupMark { name, id, time: Timestamp::from_millis(5), members }));
        let text = serde_json::to_string(&marked).expect("encodes");
        let wanted = r#","group":{"name":"shop","id":"06060606060606060606060606060606","time":"1970-01-01T00:00:00.005Z","members":["web","db"]}}"#;
        assert!(text.ends_with(wanted), "{text}");
        assert_eq!(serde_json::from_str::<PointMeta>(&text).expect("reads"), marked);
        let plain = serde_json::to_string(&meta(None)).expect("encodes");
        assert!(!plain.contains("group"), "{plain}");
        assert_eq!(serde_json::from_str::<PointMeta>(&plain).expect("reads"), meta(None));
        let wrong = text.replace("\"shop\"", "\"../shop\"");
        assert!(serde_json::from_str::<PointMeta>(&wrong).is_err(), "a name is a name");
    }
}
