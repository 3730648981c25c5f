//! The messages as Protocol Buffers carry them. Numbers of fields are never used again for something else.

use bytes::Bytes;

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct AgentMessage {
    #[prost(oneof = "AgentKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) kind: Option<AgentKind>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum AgentKind {
    #[prost(message, tag = "1")]
    Hello(Hello),
    #[prost(message, tag = "2")]
    Begin(Begin),
    #[prost(message, tag = "3")]
    Data(Data),
    #[prost(message, tag = "4")]
    Zero(Zero),
    #[prost(message, tag = "5")]
    End(End),
    #[prost(string, tag = "6")]
    Abort(String),
    #[prost(message, tag = "7")]
    Alive(Alive),
    #[prost(bytes = "bytes", tag = "8")]
    Ready(Bytes),
    #[prost(bytes = "bytes", tag = "9")]
    Frozen(Bytes),
    #[prost(message, tag = "10")]
    Unready(GroupReason),
    #[prost(string, tag = "11")]
    Ask(String),
    #[prost(message, tag = "12")]
    Answer(Answer),
}

/// What came of an order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Answer {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) order: Bytes,
    /// Empty: none was taken for it.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) cycle: Bytes,
    #[prost(uint32, tag = "3")]
    pub(crate) consistency: u32,
    #[prost(message, repeated, tag = "4")]
    pub(crate) disks: Vec<DiskDigest>,
    /// It was not done, and why.
    #[prost(message, optional, tag = "5")]
    pub(crate) failed: Option<Refuse>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct DiskDigest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) digest: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(crate) oldest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) newest: u32,
    #[prost(string, tag = "3")]
    pub(crate) machine: String,
    #[prost(string, tag = "4")]
    pub(crate) program: String,
    /// 0: not said.
    #[prost(uint64, tag = "5")]
    pub(crate) interval_ms: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Begin {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cycle: Bytes,
    /// Empty: everything is sent.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) parent: Bytes,
    #[prost(sint64, tag = "3")]
    pub(crate) time_ms: i64,
    #[prost(uint32, tag = "4")]
    pub(crate) consistency: u32,
    #[prost(message, repeated, tag = "5")]
    pub(crate) disks: Vec<Disk>,
    /// Empty: the cut is the machine's own.
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) group: Bytes,
    #[prost(message, optional, tag = "7")]
    pub(crate) shape: Option<Shape>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) hooks: Vec<Hook>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Hook {
    #[prost(string, tag = "1")]
    pub(crate) phase: String,
    #[prost(sint64, optional, tag = "2")]
    pub(crate) code: Option<i64>,
    #[prost(uint64, tag = "3")]
    pub(crate) elapsed_ms: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Shape {
    #[prost(string, tag = "1")]
    pub(crate) firmware: String,
    #[prost(uint32, tag = "2")]
    pub(crate) cpus: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) memory_bytes: u64,
    #[prost(message, repeated, tag = "4")]
    pub(crate) nics: Vec<Nic>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Nic {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(string, tag = "2")]
    pub(crate) model: String,
    #[prost(string, tag = "3")]
    pub(crate) mac: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) addresses: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Disk {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(uint64, tag = "2")]
    pub(crate) size: u64,
    #[prost(uint32, tag = "3")]
    pub(crate) sector_size: u32,
    #[prost(bool, tag = "4")]
    pub(crate) boot: bool,
    #[prost(bool, tag = "5")]
    pub(crate) excluded: bool,
    #[prost(string, tag = "6")]
    pub(crate) source: String,
    #[prost(string, tag = "7")]
    pub(crate) identity: String,
    #[prost(bool, tag = "8")]
    pub(crate) whole: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Data {
    #[prost(uint32, tag = "1")]
    pub(crate) disk: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) start: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) bytes: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Zero {
    #[prost(uint32, tag = "1")]
    pub(crate) disk: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) start: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) len: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct End {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cycle: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) digest: Bytes,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Alive {}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct GatewayMessage {
    #[prost(oneof = "GatewayKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub(crate) kind: Option<GatewayKind>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(crate) enum GatewayKind {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(bytes = "bytes", tag = "2")]
    Spooled(Bytes),
    #[prost(message, tag = "3")]
    Committed(Committed),
    #[prost(string, tag = "4")]
    Resync(String),
    #[prost(message, tag = "5")]
    Refuse(Refuse),
    #[prost(message, tag = "6")]
    Alive(Alive),
    #[prost(string, tag = "13")]
    Wait(String),
    #[prost(string, tag = "7")]
    Hold(String),
    #[prost(message, tag = "8")]
    Go(Go),
    #[prost(message, tag = "9")]
    Prepare(Prepare),
    #[prost(bytes = "bytes", tag = "10")]
    Freeze(Bytes),
    #[prost(message, tag = "11")]
    Cut(GroupCut),
    #[prost(message, tag = "12")]
    Cancel(GroupReason),
    #[prost(message, tag = "14")]
    Order(Order),
}

/// What an operator wants done.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Order {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) id: Bytes,
    /// 1: a point; 2: stop; 3: start.
    #[prost(uint32, tag = "2")]
    pub(crate) kind: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) consistency: u32,
    #[prost(bool, tag = "4")]
    pub(crate) proof: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Go {}

/// A group's cut begins.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Prepare {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) id: Bytes,
    #[prost(string, tag = "2")]
    pub(crate) group: String,
}

/// All members of a group are frozen.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct GroupCut {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) id: Bytes,
    #[prost(sint64, tag = "2")]
    pub(crate) time_ms: i64,
}

/// Why a group's cut does not take place.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct GroupReason {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) id: Bytes,
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// Empty: the gateway knows no cycle of this machine.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) newest: Bytes,
    /// Why the machine is to begin no cycle yet.
    #[prost(string, optional, tag = "3")]
    pub(crate) held: Option<String>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Committed {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) cycle: Bytes,
    #[prost(uint32, tag = "2")]
    pub(crate) timeline: u32,
    #[prost(uint64, tag = "3")]
    pub(crate) seq: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Refuse {
    /// The exit code that the reason stands for.
    #[prost(uint32, tag = "1")]
    pub(crate) code: u32,
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
}

/// Asks for a first certificate. Nothing prints it: it holds the secret of a token.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct Enroll {
    /// The secret of the token.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) secret: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) csr: Bytes,
}

/// Asks for the next certificate of the machine that asks.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Renew {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) csr: Bytes,
}

/// The certificate that was asked for, DER.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Certified {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) certificate: Bytes,
}
