//! Bytes of protocol version 1. They never change: agents of that version are out there.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use landfall_model::{
    Consistency, Digest, DiskDigest, Error, ErrorKind, Extent, GroupId, MachineShape, Nic, OrderId, OrderKind, Outcome,
    Seq, Timeline, Timestamp,
};
use prost::Message;

use super::support::{begin, cycle_id, data, hello, refused};
use crate::codec::Wire;
use crate::raw::{
    AgentKind, AgentMessage, Certified, Enroll, GatewayKind, GatewayMessage, GroupCut, GroupReason, Prepare, Renew,
    Shape,
};
use crate::{
    Begin, DATA_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX, End, FromAgent, FromGateway, MESSAGE_BYTES_MAX, NICS_MAX,
    TEXT_BYTES_MAX, Welcome, kind_of_code,
};

fn group_id() -> GroupId {
    GroupId::from_bytes([6; 16])
}

fn agent_messages() -> Vec<(FromAgent, &'static str)> {
    let end = End { cycle: cycle_id(1), digest: Digest::from_bytes([2; 32]) };
    vec![
        (FromAgent::Hello(hello("db-1")), "0a13080110011a0464622d3122076167656e742031"),
        (
            FromAgent::Hello(crate::Hello { interval_ms: 30_000, ..hello("db-1") }),
            "0a17080110011a0464622d3122076167656e74203128b0ea01",
        ),
        (
            FromAgent::Begin(begin(4096)),
            concat!(
                "1283010a10010101010101010101010101010101011210090909090909090909090909090909091880f8b2e5bd682001",
                "2a1a0a016110802018800420013203626c6b3a0873657269616c20312a1c0a016210802018800420013203626c6b3a08",
                "73657269616c203140012a1a0a016310802018800428013203626c6b3a0873657269616c2031",
            ),
        ),
        (FromAgent::Data(data(1, 512, vec![0xab; 4])), "1a0b08011080041a04abababab"),
        (FromAgent::Zero(1, Extent { start: 512, len: 1024 }), "22080801108004188008"),
        (
            FromAgent::End(end),
            concat!(
                "2a340a100101010101010101010101010101010112200202020202020202020202020202020202020202020202020202",
                "020202020202",
            ),
        ),
        (FromAgent::Abort("why".to_owned()), "3203776879"),
        (FromAgent::Alive, "3a00"),
        (FromAgent::Ask("why".to_owned()), "5a03776879"),
        (
            FromAgent::Begin(Begin { group: Some(group_id()), ..begin(4096) }),
            concat!(
                "1295010a10010101010101010101010101010101011210090909090909090909090909090909091880f8b2e5bd682001",
                "2a1a0a016110802018800420013203626c6b3a0873657269616c20312a1c0a016210802018800420013203626c6b3a08",
                "73657269616c203140012a1a0a016310802018800428013203626c6b3a0873657269616c2031",
                "321006060606060606060606060606060606",
            ),
        ),
        (FromAgent::Ready(group_id()), "421006060606060606060606060606060606"),
        (FromAgent::Frozen(group_id()), "4a1006060606060606060606060606060606"),
        (FromAgent::Unready(group_id(), "why".to_owned()), "52170a10060606060606060606060606060606061203776879"),
    ]
}

fn gateway_messages() -> Vec<(FromGateway, &'static str)> {
    vec![
        (
            FromGateway::Welcome(Welcome { version: 1, newest: Some(cycle_id(1)), held: None }),
            "0a140801121001010101010101010101010101010101",
        ),
        (FromGateway::Welcome(Welcome { version: 1, newest: None, held: None }), "0a020801"),
        (
            FromGateway::Welcome(Welcome { version: 1, newest: None, held: Some("why".to_owned()) }),
            "0a0708011a03776879",
        ),
        (FromGateway::Spooled(cycle_id(1)), "121001010101010101010101010101010101"),
        (
            FromGateway::Committed(cycle_id(1), Timeline(2), Seq(300)),
            "1a170a1001010101010101010101010101010101100218ac02",
        ),
        (FromGateway::Resync("why".to_owned()), "2203776879"),
        (FromGateway::Refuse(5, "why".to_owned()), "2a0708051203776879"),
        (FromGateway::Alive, "3200"),
        (FromGateway::Wait("why".to_owned()), "6a03776879"),
        (FromGateway::Hold("why".to_owned()), "3a03776879"),
        (FromGateway::Go, "4200"),
        (
            FromGateway::Prepare(group_id(), "shop".parse().unwrap()),
            "4a180a1006060606060606060606060606060606120473686f70",
        ),
        (FromGateway::Freeze(group_id()), "521006060606060606060606060606060606"),
        (
            FromGateway::Cut(group_id(), Timestamp::from_millis(1_789_000_000_000)),
            "5a190a1006060606060606060606060606060606108088ad8b9168",
        ),
        (FromGateway::Cancel(group_id(), "why".to_owned()), "62170a10060606060606060606060606060606061203776879"),
    ]
}

fn bytes(hex: &str) -> Bytes {
    HEXLOWER.decode(hex.as_bytes()).unwrap().into()
}

/// What version 2 has added.
fn agent_messages_2() -> Vec<(FromAgent, &'static str)> {
    let nic = Nic {
        name: "eth0".to_owned(),
        model: "virtio".to_owned(),
        mac: "52:54:00:00:00:01".to_owned(),
        addresses: vec!["10.0.0.2/24".to_owned()],
    };
    let shape = MachineShape { firmware: "uefi".to_owned(), cpus: 2, memory_bytes: 1 << 30, nics: vec![nic] };
    vec![(
        FromAgent::Begin(Begin { consistency: Consistency::Unfinished, shape: Some(shape), ..begin(4096) }),
        concat!(
            "12c3010a10010101010101010101010101010101011210090909090909090909090909090909091880f8b2e5bd682003",
            "2a1a0a016110802018800420013203626c6b3a0873657269616c20312a1c0a016210802018800420013203626c6b3a08",
            "73657269616c203140012a1a0a016310802018800428013203626c6b3a0873657269616c20313a3e0a04756566691002",
            "188080808004222e0a0465746830120676697274696f1a1135323a35343a30303a30303a30303a3031220b31302e302e",
            "302e322f3234",
        ),
    )]
}

#[test]
fn messages_of_version_2() {
    for (message, hex) in agent_messages_2() {
        assert_eq!(HEXLOWER.encode(&message.clone().encode()), hex, "{message:?}");
        assert_eq!(FromAgent::decode(bytes(hex)).unwrap(), message);
    }
}

#[test]
fn messages_of_version_3() {
    let (order, seven) = (OrderId::from_bytes([7; 16]), "07".repeat(16));
    let said = crate::Order { id: order, kind: OrderKind::Stop, consistency: Consistency::Crash, proof: true };
    let (said, hex) = (FromGateway::Order(said), format!("72160a10{seven}10022001"));
    assert_eq!(HEXLOWER.encode(&said.clone().encode()), hex);
    assert_eq!(FromGateway::decode(bytes(&hex)).unwrap(), said);
    let disks = vec![DiskDigest { name: "a".parse().unwrap(), digest: Digest::from_bytes([2; 32]) }];
    let done = Outcome::Done { cycle: Some(cycle_id(1)), consistency: Consistency::Application, disks };
    let failed = Outcome::Failed { code: 5, why: "why".to_owned() };
    for (outcome, hex) in [
        (done, format!("624d0a10{seven}1210{}180222250a01611220{}", "01".repeat(16), "02".repeat(32))),
        (failed, format!("621b0a10{seven}2a0708051203776879")),
    ] {
        let said = FromAgent::Answer(order, outcome);
        assert_eq!(HEXLOWER.encode(&said.clone().encode()), hex);
        assert_eq!(FromAgent::decode(bytes(&hex)).unwrap(), said);
    }
    let raw = crate::raw::Order { id: vec![7; 16].into(), kind: 4, ..crate::raw::Order::default() };
    let message = GatewayMessage { kind: Some(GatewayKind::Order(raw)) };
    refused(FromGateway::decode(message.encode_to_vec().into()), ErrorKind::Corrupt, "order of kind 4");
}

#[test]
fn messages_of_version_1() {
    for (message, hex) in agent_messages() {
        assert_eq!(HEXLOWER.encode(&message.clone().encode()), hex, "{message:?}");
        assert_eq!(FromAgent::decode(bytes(hex)).unwrap(), message);
    }
    for (message, hex) in gateway_messages() {
        assert_eq!(HEXLOWER.encode(&message.clone().encode()), hex, "{message:?}");
        assert_eq!(FromGateway::decode(bytes(hex)).unwrap(), message);
    }
}

#[test]
fn calls_of_version_1() {
    let csr = Bytes::from_static(&[0xcc, 0xdd]);
    let enroll = Enroll { secret: Bytes::from_static(&[0xaa; 16]), csr: csr.clone() };
    assert_eq!(HEXLOWER.encode(&enroll.encode_to_vec()), "0a10aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1202ccdd");
    assert_eq!(HEXLOWER.encode(&Renew { csr: csr.clone() }.encode_to_vec()), "0a02ccdd");
    assert_eq!(HEXLOWER.encode(&Certified { certificate: csr }.encode_to_vec()), "0a02ccdd");
    refused(Renew::from_bytes(bytes("0aff")), ErrorKind::Corrupt, "cannot be");
}

#[test]
fn fields_that_a_newer_program_adds_are_skipped_and_kinds_that_it_adds_are_corrupt() {
    // Field 15 of a welcome, and of the message.
    assert_eq!(
        FromGateway::decode(bytes("0a0508017a0178")).unwrap(),
        FromGateway::Welcome(Welcome { version: 1, newest: None, held: None })
    );
    refused(FromGateway::decode(bytes("7a0178")), ErrorKind::Corrupt, "does not know");
    refused(FromAgent::decode(Bytes::new()), ErrorKind::Corrupt, "does not know");
}

#[test]
fn what_is_beyond_the_bounds_is_corrupt() {
    let agent = |kind: AgentKind| FromAgent::decode(AgentMessage { kind: Some(kind) }.encode_to_vec().into());
    let raw = |change: &dyn Fn(&mut crate::raw::Begin)| {
        let Some(AgentKind::Begin(mut raw)) = FromAgent::Begin(begin(4096)).into_raw().kind else { panic!("begin") };
        change(&mut raw);
        agent(AgentKind::Begin(raw))
    };
    raw(&|_| {}).unwrap();
    refused(raw(&|b| b.disks.clear()), ErrorKind::Corrupt, "0 disks");
    refused(raw(&|b| b.disks[0].size = DISK_BYTES_MAX + 1), ErrorKind::Corrupt, "at most");
    refused(raw(&|b| b.disks = vec![b.disks[0].clone(); DISKS_MAX + 1]), ErrorKind::Corrupt, "1025 disks");
    refused(raw(&|b| b.disks[1] = b.disks[0].clone()), ErrorKind::Corrupt, "twice");
    refused(raw(&|b| b.disks[0].size = 0), ErrorKind::Corrupt, "without a byte");
    refused(raw(&|b| b.disks[0].sector_size = 513), ErrorKind::Corrupt, "sectors");
    refused(raw(&|b| b.disks[0].name = "../x".to_owned()), ErrorKind::Corrupt, "name");
    refused(raw(&|b| b.disks[0].source = "x".repeat(TEXT_BYTES_MAX + 1)), ErrorKind::Corrupt, "source");
    refused(raw(&|b| b.parent = Bytes::new()), ErrorKind::Corrupt, "whole");
    refused(raw(&|b| b.consistency = 4), ErrorKind::Corrupt, "consistency");
    let nics = |count| Some(Shape { nics: vec![crate::raw::Nic::default(); count], ..Shape::default() });
    raw(&|b| b.shape = nics(NICS_MAX)).unwrap();
    refused(raw(&|b| b.shape = nics(NICS_MAX + 1)), ErrorKind::Corrupt, "257 network interfaces");
    refused(raw(&|b| b.cycle = Bytes::new()), ErrorKind::Corrupt, "cycle id");
    refused(raw(&|b| b.parent = Bytes::from_static(&[1])), ErrorKind::Corrupt, "cycle id");
    let data = |disk, len| agent(AgentKind::Data(crate::raw::Data { disk, start: 0, bytes: vec![0; len].into() }));
    data(1023, DATA_BYTES_MAX).unwrap();
    refused(data(1024, 1), ErrorKind::Corrupt, "disk number");
    refused(data(0, 0), ErrorKind::Corrupt, "extent of 0");
    refused(data(0, DATA_BYTES_MAX + 1), ErrorKind::Corrupt, "extent of 1048577");
    let zero = |start, len| agent(AgentKind::Zero(crate::raw::Zero { disk: 0, start, len }));
    refused(zero(0, 0), ErrorKind::Corrupt, "zeroes");
    refused(zero(u64::MAX, 1), ErrorKind::Corrupt, "zeroes");
    refused(agent(AgentKind::Abort("x".repeat(TEXT_BYTES_MAX + 1))), ErrorKind::Corrupt, "reason");
    refused(raw(&|b| b.group = Bytes::from_static(&[1])), ErrorKind::Corrupt, "group id");
    refused(agent(AgentKind::Ready(Bytes::new())), ErrorKind::Corrupt, "group id of 0");
    refused(agent(AgentKind::Frozen(vec![1; 17].into())), ErrorKind::Corrupt, "group id of 17");
    let long = || GroupReason { id: vec![1; 16].into(), reason: "x".repeat(TEXT_BYTES_MAX + 1) };
    refused(agent(AgentKind::Unready(long())), ErrorKind::Corrupt, "reason");
    let gateway = |kind| FromGateway::decode(GatewayMessage { kind: Some(kind) }.encode_to_vec().into());
    refused(gateway(GatewayKind::Cancel(long())), ErrorKind::Corrupt, "reason");
    refused(gateway(GatewayKind::Hold(long().reason)), ErrorKind::Corrupt, "reason");
    let welcome = crate::raw::Welcome { version: 1, newest: Bytes::new(), held: Some(long().reason) };
    refused(gateway(GatewayKind::Welcome(welcome)), ErrorKind::Corrupt, "reason");
    let prepare = Prepare { id: vec![1; 16].into(), group: "../x".to_owned() };
    refused(gateway(GatewayKind::Prepare(prepare)), ErrorKind::Corrupt, "group name");
    refused(gateway(GatewayKind::Cut(GroupCut::default())), ErrorKind::Corrupt, "group id");
    refused(FromAgent::decode(vec![0; MESSAGE_BYTES_MAX + 1].into()), ErrorKind::Corrupt, "a message of");
    refused(FromGateway::decode(vec![0; MESSAGE_BYTES_MAX + 1].into()), ErrorKind::Corrupt, "a message of");
}

#[test]
fn data_is_not_copied() {
    let whole = Bytes::from(FromAgent::Data(data(0, 0, vec![3; 4096])).encode());
    let Ok(FromAgent::Data(read)) = FromAgent::decode(whole.clone()) else { panic!("data") };
    assert!(whole.as_ptr_range().contains(&read.bytes.as_ptr()));
}

#[test]
fn every_kind_of_error_has_its_code_on_the_link() {
    for code in 1..=9 {
        let kind = kind_of_code(code);
        assert_eq!(kind.exit_code(), code);
        let error = Error::new(kind, format!("why {}", "\u{e9}".repeat(2000)));
        let back = crate::status::to_error(&crate::status::to_status(&error));
        assert_eq!(back.kind(), kind);
        assert!(back.to_string().starts_with("why \u{e9}") && back.to_string().len() <= 1024);
    }
    assert_eq!(kind_of_code(200), ErrorKind::Unsupported);
}
