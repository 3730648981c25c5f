//! The messages as the program sees them: checked, in the words of the model.

use bytes::Bytes;
use landfall_model::{
    Consistency, CycleId, Digest, DiskName, Error, Extent, GroupId, GroupName, HookResult, MachineName, MachineShape,
    OrderId, Outcome, Result, Seq, Timeline, Timestamp,
};
use prost::Message;

use crate::begin;
use crate::order::{Order, answer_from, order_from, raw_answer, raw_order};
use crate::raw::{self, AgentKind, AgentMessage, GatewayKind, GatewayMessage};
use crate::{DATA_BYTES_MAX, DISKS_MAX, MESSAGE_BYTES_MAX, TEXT_BYTES_MAX, VERSIONS};

/// The first message of a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest version of the protocol that the agent speaks.
    pub versions: (u32, u32),
    /// The machine that the agent says it is; its certificate must say the same.
    pub machine: MachineName,
    /// Program and version, for the log.
    pub program: String,
    /// From the beginning of a cycle to that of the next, in milliseconds; 0 where that is not said. For the status.
    pub interval_ms: u64,
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
    /// The group's cut that it is, where the gateway named the moment: [`FromGateway::Cut`].
    pub group: Option<GroupId>,
    /// What is needed to make the machine again, where the agent can tell. Since version 2.
    pub shape: Option<MachineShape>,
    /// What was run around the cut in a guest. Since version 3.
    pub hooks: Vec<HookResult>,
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
    /// Every disk must be sent whole: may it be now? Why it must. The answer is [`FromGateway::Resync`], at once or after
    /// [`FromGateway::Wait`].
    Ask(String),
    /// For a group's cut: no cycle is in flight, and none begins until this cut is over.
    Ready(GroupId),
    /// Everything is held still.
    Frozen(GroupId),
    /// This machine takes no part in the cut, and nothing is held still for it: why.
    Unready(GroupId, String),
    /// What came of an order. Since version 3.
    Answer(OrderId, Outcome),
}

/// The answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u32,
    /// The newest cycle of this machine that the gateway has, spooled or committed.
    pub newest: Option<CycleId>,
    /// Why no cycle is to begin yet: as [`FromGateway::Hold`].
    pub held: Option<String>,
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
    /// The cycle cannot be taken as it is: begin one without a parent. Why. Also the answer to [`FromAgent::Ask`].
    Resync(String),
    /// No, and trying again as it is does not help: the exit code that the reason stands for, and the reason.
    Refuse(u8, String),
    /// Nothing to say, and alive. Before [`Welcome`] too, while the gateway looks into the vault.
    Alive,
    /// Not everything now, and nothing else either: why. [`Self::Resync`] follows on this link when it may be sent.
    Wait(String),
    /// Begin no cycle until [`Self::Go`]; one in flight goes on. Why.
    Hold(String),
    /// Cycles may begin again.
    Go,
    /// A cut of this group: finish the cycle in flight, begin no other, say [`FromAgent::Ready`].
    Prepare(GroupId, GroupName),
    /// All members are ready: hold everything still, say [`FromAgent::Frozen`].
    Freeze(GroupId),
    /// All members hold still, and this is the moment: begin the cycle.
    Cut(GroupId, Timestamp),
    /// The cut does not take place: let everything go. Why.
    Cancel(GroupId, String),
    /// To be done now; answered by [`FromAgent::Answer`]. Since version 3.
    Order(Order),
}

pub(crate) fn wrong(why: impl std::fmt::Display) -> Error {
    Error::corrupt(format!("the other side of the link sent what cannot be: {why}"))
}

pub(crate) fn text(what: &str, text: String) -> Result<String> {
    if text.len() > TEXT_BYTES_MAX { Err(wrong(format_args!("{what} of {} bytes", text.len()))) } else { Ok(text) }
}

pub(crate) fn cycle_id(bytes: &[u8]) -> Result<CycleId> {
    let bytes = bytes.try_into().map_err(|_| wrong(format_args!("a cycle id of {} bytes", bytes.len())))?;
    Ok(CycleId::from_bytes(bytes))
}

pub(crate) fn optional_cycle_id(bytes: &[u8]) -> Result<Option<CycleId>> {
    if bytes.is_empty() { Ok(None) } else { cycle_id(bytes).map(Some) }
}

pub(crate) fn group_id(bytes: &[u8]) -> Result<GroupId> {
    let bytes = bytes.try_into().map_err(|_| wrong(format_args!("a group id of {} bytes", bytes.len())))?;
    Ok(GroupId::from_bytes(bytes))
}

pub(crate) fn group_bytes(id: GroupId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn group_reason(raw: raw::GroupReason) -> Result<(GroupId, String)> {
    Ok((group_id(&raw.id)?, text("a reason", raw.reason)?))
}

fn raw_reason(id: GroupId, reason: String) -> raw::GroupReason {
    raw::GroupReason { id: group_bytes(id), reason }
}

pub(crate) fn id_bytes(id: Option<CycleId>) -> Bytes {
    id.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default()
}

fn disk_number(number: u32) -> Result<usize> {
    usize::try_from(number).ok().filter(|n| *n < DISKS_MAX).ok_or_else(|| wrong(format_args!("disk number {number}")))
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
                interval_ms: hello.interval_ms,
            }),
            Self::Begin(begin) => AgentKind::Begin(begin::raw_begin(begin)),
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
            Self::Ask(why) => AgentKind::Ask(why),
            Self::Ready(id) => AgentKind::Ready(group_bytes(id)),
            Self::Frozen(id) => AgentKind::Frozen(group_bytes(id)),
            Self::Unready(id, why) => AgentKind::Unready(raw_reason(id, why)),
            Self::Answer(id, outcome) => AgentKind::Answer(raw_answer(id, outcome)),
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
                interval_ms: raw.interval_ms,
            }),
            AgentKind::Begin(raw) => Self::Begin(begin::begin_from(raw)?),
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
            AgentKind::Ask(why) => Self::Ask(text("a reason", why)?),
            AgentKind::Ready(id) => Self::Ready(group_id(&id)?),
            AgentKind::Frozen(id) => Self::Frozen(group_id(&id)?),
            AgentKind::Unready(raw) => {
                let (id, why) = group_reason(raw)?;
                Self::Unready(id, why)
            }
            AgentKind::Answer(raw) => {
                let (id, outcome) = answer_from(raw)?;
                Self::Answer(id, outcome)
            }
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
                let (version, newest) = (welcome.version, id_bytes(welcome.newest));
                GatewayKind::Welcome(raw::Welcome { version, newest, held: welcome.held })
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
            Self::Wait(why) => GatewayKind::Wait(why),
            Self::Hold(why) => GatewayKind::Hold(why),
            Self::Go => GatewayKind::Go(raw::Go {}),
            Self::Prepare(id, group) => {
                GatewayKind::Prepare(raw::Prepare { id: group_bytes(id), group: group.to_string() })
            }
            Self::Freeze(id) => GatewayKind::Freeze(group_bytes(id)),
            Self::Cut(id, time) => GatewayKind::Cut(raw::GroupCut { id: group_bytes(id), time_ms: time.millis() }),
            Self::Cancel(id, why) => GatewayKind::Cancel(raw_reason(id, why)),
            Self::Order(order) => GatewayKind::Order(raw_order(order)),
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
                let held = raw.held.map(|why| text("a reason", why)).transpose()?;
                Self::Welcome(Welcome { version: raw.version, newest: optional_cycle_id(&raw.newest)?, held })
            }
            GatewayKind::Spooled(cycle) => Self::Spooled(cycle_id(&cycle)?),
            GatewayKind::Committed(raw) => Self::Committed(cycle_id(&raw.cycle)?, Timeline(raw.timeline), Seq(raw.seq)),
            GatewayKind::Resync(why) => Self::Resync(text("a reason", why)?),
            GatewayKind::Refuse(raw) => {
                let code = u8::try_from(raw.code).map_err(|_| wrong(format_args!("code {}", raw.code)))?;
                Self::Refuse(code, text("a reason", raw.reason)?)
            }
            GatewayKind::Alive(_) => Self::Alive,
            GatewayKind::Wait(why) => Self::Wait(text("a reason", why)?),
            GatewayKind::Hold(why) => Self::Hold(text("a reason", why)?),
            GatewayKind::Go(_) => Self::Go,
            GatewayKind::Prepare(raw) => Self::Prepare(group_id(&raw.id)?, raw.group.parse().map_err(wrong)?),
            GatewayKind::Freeze(id) => Self::Freeze(group_id(&id)?),
            GatewayKind::Cut(raw) => Self::Cut(group_id(&raw.id)?, Timestamp::from_millis(raw.time_ms)),
            GatewayKind::Cancel(raw) => {
                let (id, why) = group_reason(raw)?;
                Self::Cancel(id, why)
            }
            GatewayKind::Order(raw) => Self::Order(order_from(&raw)?),
        })
    }
}

/// The newest version that both sides speak; `None` where there is none.
pub fn choose_version(agent: (u32, u32)) -> Option<u32> {
    let newest = agent.1.min(*VERSIONS.end());
    (newest >= agent.0.max(*VERSIONS.start())).then_some(newest)
}
