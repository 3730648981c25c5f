//! The messages as the program sees them: checked, in the words of the model.

use bytes::Bytes;
use landfall_model::{
    Consistency, CycleId, Digest, DiskName, Error, Extent, MachineName, Result, Seq, Timeline, Timestamp,
};
use prost::Message;

use crate::raw::{self, AgentKind, AgentMessage, GatewayKind, GatewayMessage};
use crate::{DATA_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX, MESSAGE_BYTES_MAX, TEXT_BYTES_MAX, VERSIONS};

/// The first message of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest version of the protocol that the agent speaks.
    pub versions: (u32, u32),
    /// The machine that the agent says it is; its certificate must say the same.
    pub machine: MachineName,
    /// Program and version, for the log.
    pub program: String,
}

/// A disk of the machine at the cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskShape {
    /// Its name in the machine.
    pub name: DiskName,
    /// Size in bytes, at least one.
    pub size: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Whether the machine boots from it.
    pub boot: bool,
    /// Known, but not protected.
    pub excluded: bool,
    /// All of its data is sent, and what is not sent is zero. Always so where the cycle has no parent, and for a disk that was not in the
    /// parent cycle or excluded there. Else what is not sent is as it was in the parent cycle.
    pub whole: bool,
    /// The source that captured it.
    pub source: String,
    /// What tells it from another disk.
    pub identity: String,
}

/// The beginning of a cycle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begin {
    /// Its name.
    pub cycle: CycleId,
    /// The cycle that the changes are relative to. None: every disk is sent whole.
    pub parent: Option<CycleId>,
    /// The moment of the cut, by the agent's clock.
    pub time: Timestamp,
    /// What the cut guarantees.
    pub consistency: Consistency,
    /// All disks of the machine.
    pub disks: Vec<DiskShape>,
}

/// Bytes of a disk as they were at the cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Data {
    /// Number of the disk in [`Begin::disks`].
    pub disk: usize,
    /// First byte.
    pub start: u64,
    /// The bytes: at least one, at most [`DATA_BYTES_MAX`].
    pub bytes: Bytes,
}

/// The end of a cycle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct End {
    /// Its name.
    pub cycle: CycleId,
    /// Of all that was sent: [`crate::CycleDigest`].
    pub digest: Digest,
}

/// What an agent says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromAgent {
    /// Who it is.
    Hello(Hello),
    /// A cycle begins.
    Begin(Begin),
    /// Bytes that may have changed.
    Data(Data),
    /// A run of zeroes: number of the disk, range.
    Zero(usize, Extent),
    /// The cycle is complete.
    End(End),
    /// The cycle that was begun will not be completed: why.
    Abort(String),
    /// Nothing to send, and alive.
    Alive,
}

/// The answer to [`Hello`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u32,
    /// The newest cycle of this machine that the gateway has, spooled or committed.
    pub newest: Option<CycleId>,
}

/// What a gateway says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromGateway {
    /// Go on.
    Welcome(Welcome),
    /// The cycle is durable on the gateway.
    Spooled(CycleId),
    /// The cycle is a recovery point.
    Committed(CycleId, Timeline, Seq),
    /// The cycle cannot be taken as it is: begin one without a parent. Why.
    Resync(String),
    /// No, and trying again as it is does not help: the exit code that the reason stands for, and the reason.
    Refuse(u8, String),
    /// Nothing to say, and alive. Before [`Welcome`] too, while the gateway looks into the vault.
    Alive,
}

fn wrong(why: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the other side of the link sent what cannot be: {why}"))
}

fn text(what: &str, text: String) -> Result<String> {
    if text.len() > TEXT_BYTES_MAX { Err(wrong(format_args!("{what} of {} bytes", text.len()))) } else { Ok(text) }
}

fn cycle_id(bytes: &[u8]) -> Result<CycleId> {
    let bytes = bytes.try_into().map_err(|_| wrong(format_args!("a cycle id of {} bytes", bytes.len())))?;
    Ok(CycleId::from_bytes(bytes))
}

fn optional_cycle_id(bytes: &[u8]) -> Result<Option<CycleId>> {
    if bytes.is_empty() { Ok(None) } else { cycle_id(bytes).map(Some) }
}

fn id_bytes(id: Option<CycleId>) -> Bytes {
    id.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default()
}

fn disk_number(number: u32) -> Result<usize> {
    usize::try_from(number).ok().filter(|n| *n < DISKS_MAX).ok_or_else(|| wrong(format_args!("disk number {number}")))
}

fn disk_from(raw: raw::Disk) -> Result<DiskShape> {
    let name: DiskName = raw.name.parse().map_err(wrong)?;
    if raw.size == 0 {
        return Err(wrong(format_args!("disk {name} without a byte")));
    }
    if raw.size > DISK_BYTES_MAX {
        return Err(wrong(format_args!("disk {name} of {} bytes (at most {DISK_BYTES_MAX} are taken)", raw.size)));
    }
    if !raw.sector_size.is_power_of_two() || !(512..=65536).contains(&raw.sector_size) {
        return Err(wrong(format_args!("disk {name} with sectors of {} bytes", raw.sector_size)));
    }
    Ok(DiskShape {
        name,
        size: raw.size,
        sector_size: raw.sector_size,
        boot: raw.boot,
        excluded: raw.excluded,
        whole: raw.whole,
        source: text("the source of a disk", raw.source)?,
        identity: text("the identity of a disk", raw.identity)?,
    })
}

fn begin_from(raw: raw::Begin) -> Result<Begin> {
    if raw.disks.is_empty() || raw.disks.len() > DISKS_MAX {
        return Err(wrong(format_args!("a machine of {} disks", raw.disks.len())));
    }
    let disks = raw.disks.into_iter().map(disk_from).collect::<Result<Vec<_>>>()?;
    let mut names = std::collections::BTreeSet::new();
    if let Some(twice) = disks.iter().find(|d| !names.insert(&d.name)) {
        return Err(wrong(format_args!("disk {} twice", twice.name)));
    }
    if raw.parent.is_empty() && disks.iter().any(|d| !d.excluded && !d.whole) {
        return Err(wrong("a cycle without a parent that does not send its disks whole"));
    }
    let consistency = match raw.consistency {
        0 => Consistency::Crash,
        1 => Consistency::Filesystem,
        2 => Consistency::Application,
        other => return Err(wrong(format_args!("consistency {other}"))),
    };
    Ok(Begin {
        cycle: cycle_id(&raw.cycle)?,
        parent: optional_cycle_id(&raw.parent)?,
        time: Timestamp::from_millis(raw.time_ms),
        consistency,
        disks,
    })
}

fn raw_begin(begin: Begin) -> raw::Begin {
    let disk = |d: DiskShape| raw::Disk {
        name: d.name.to_string(),
        size: d.size,
        sector_size: d.sector_size,
        boot: d.boot,
        excluded: d.excluded,
        whole: d.whole,
        source: d.source,
        identity: d.identity,
    };
    raw::Begin {
        cycle: id_bytes(Some(begin.cycle)),
        parent: id_bytes(begin.parent),
        time_ms: begin.time.millis(),
        consistency: match begin.consistency {
            Consistency::Crash => 0,
            Consistency::Filesystem => 1,
            Consistency::Application => 2,
        },
        disks: begin.disks.into_iter().map(disk).collect(),
    }
}

fn raw_number(disk: usize) -> u32 {
    u32::try_from(disk).unwrap_or(u32::MAX)
}

impl FromAgent {
    /// The bytes of the message.
    pub fn encode(self) -> Vec<u8> {
        self.into_raw().encode_to_vec()
    }

    pub(crate) fn into_raw(self) -> AgentMessage {
        let kind = match self {
            Self::Hello(hello) => AgentKind::Hello(raw::Hello {
                oldest: hello.versions.0,
                newest: hello.versions.1,
                machine: hello.machine.to_string(),
                program: hello.program,
            }),
            Self::Begin(begin) => AgentKind::Begin(raw_begin(begin)),
            Self::Data(data) => {
                AgentKind::Data(raw::Data { disk: raw_number(data.disk), start: data.start, bytes: data.bytes })
            }
            Self::Zero(disk, extent) => {
                AgentKind::Zero(raw::Zero { disk: raw_number(disk), start: extent.start, len: extent.len })
            }
            Self::End(end) => AgentKind::End(raw::End {
                cycle: id_bytes(Some(end.cycle)),
                digest: Bytes::copy_from_slice(end.digest.as_bytes()),
            }),
            Self::Abort(why) => AgentKind::Abort(why),
            Self::Alive => AgentKind::Alive(raw::Alive {}),
        };
        AgentMessage { kind: Some(kind) }
    }

    /// Reads a message. Bytes of a disk are not copied.
    ///
    /// # Errors
    /// `Corrupt`, saying what cannot be.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let len = bytes.len();
        if len > MESSAGE_BYTES_MAX {
            return Err(wrong(format_args!("a message of {len} bytes")));
        }
        let message = AgentMessage::decode(bytes).map_err(wrong)?;
        Ok(match message.kind.ok_or_else(|| wrong("a message of a kind that this version does not know"))? {
            AgentKind::Hello(raw) => Self::Hello(Hello {
                versions: (raw.oldest, raw.newest),
                machine: raw.machine.parse().map_err(wrong)?,
                program: text("a program's name", raw.program)?,
            }),
            AgentKind::Begin(raw) => Self::Begin(begin_from(raw)?),
            AgentKind::Data(raw) => {
                if raw.bytes.is_empty() || raw.bytes.len() > DATA_BYTES_MAX {
                    return Err(wrong(format_args!("an extent of {} bytes", raw.bytes.len())));
                }
                Self::Data(Data { disk: disk_number(raw.disk)?, start: raw.start, bytes: raw.bytes })
            }
            AgentKind::Zero(raw) => {
                if raw.len == 0 || raw.start.checked_add(raw.len).is_none() {
                    return Err(wrong(format_args!("{} zeroes at {}", raw.len, raw.start)));
                }
                Self::Zero(disk_number(raw.disk)?, Extent { start: raw.start, len: raw.len })
            }
            AgentKind::End(raw) => {
                let digest = raw.digest.as_ref().try_into();
                let digest = digest.map_err(|_| wrong(format_args!("a digest of {} bytes", raw.digest.len())))?;
                Self::End(End { cycle: cycle_id(&raw.cycle)?, digest: Digest::from_bytes(digest) })
            }
            AgentKind::Abort(why) => Self::Abort(text("a reason", why)?),
            AgentKind::Alive(_) => Self::Alive,
        })
    }
}

impl FromGateway {
    /// The bytes of the message.
    pub fn encode(self) -> Vec<u8> {
        self.into_raw().encode_to_vec()
    }

    pub(crate) fn into_raw(self) -> GatewayMessage {
        let kind = match self {
            Self::Welcome(welcome) => {
                GatewayKind::Welcome(raw::Welcome { version: welcome.version, newest: id_bytes(welcome.newest) })
            }
            Self::Spooled(cycle) => GatewayKind::Spooled(id_bytes(Some(cycle))),
            Self::Committed(cycle, timeline, seq) => GatewayKind::Committed(raw::Committed {
                cycle: id_bytes(Some(cycle)),
                timeline: timeline.0,
                seq: seq.0,
            }),
            Self::Resync(why) => GatewayKind::Resync(why),
            Self::Refuse(code, reason) => GatewayKind::Refuse(raw::Refuse { code: u32::from(code), reason }),
            Self::Alive => GatewayKind::Alive(raw::Alive {}),
        };
        GatewayMessage { kind: Some(kind) }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// `Corrupt`, saying what cannot be.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(wrong(format_args!("a message of {} bytes", bytes.len())));
        }
        let message = GatewayMessage::decode(bytes).map_err(wrong)?;
        Ok(match message.kind.ok_or_else(|| wrong("a message of a kind that this version does not know"))? {
            GatewayKind::Welcome(raw) => {
                Self::Welcome(Welcome { version: raw.version, newest: optional_cycle_id(&raw.newest)? })
            }
            GatewayKind::Spooled(cycle) => Self::Spooled(cycle_id(&cycle)?),
            GatewayKind::Committed(raw) => Self::Committed(cycle_id(&raw.cycle)?, Timeline(raw.timeline), Seq(raw.seq)),
            GatewayKind::Resync(why) => Self::Resync(text("a reason", why)?),
            GatewayKind::Refuse(raw) => {
                let code = u8::try_from(raw.code).map_err(|_| wrong(format_args!("code {}", raw.code)))?;
                Self::Refuse(code, text("a reason", raw.reason)?)
            }
            GatewayKind::Alive(_) => Self::Alive,
        })
    }
}

/// The newest version that both sides speak; `None` where there is none.
pub fn choose_version(agent: (u32, u32)) -> Option<u32> {
    let newest = agent.1.min(*VERSIONS.end());
    (newest >= agent.0.max(*VERSIONS.start())).then_some(newest)
}
