use bytes::Bytes;
use landfall_model::{
    Consistency, CycleId, Digest, DiskDigest, Extent, GroupId, MachineShape, Nic, OrderId, OrderKind, Outcome, Seq,
    Timeline, Timestamp,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::pki::{Certificate, Token};
use crate::{
    Begin, DATA_BYTES_MAX, DISK_BYTES_MAX, DISKS_MAX, Data, DiskShape, End, FromAgent, FromGateway, Hello,
    TEXT_BYTES_MAX, Welcome, choose_version,
};

fn cycle() -> impl Strategy<Value = CycleId> {
    any::<[u8; 16]>().prop_map(CycleId::from_bytes)
}

fn group() -> impl Strategy<Value = GroupId> {
    any::<[u8; 16]>().prop_map(GroupId::from_bytes)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,40}", Just("x".repeat(TEXT_BYTES_MAX))]
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}"
}

fn disk() -> impl Strategy<Value = DiskShape> {
    (name(), 1..=DISK_BYTES_MAX, 9_u32..=16, any::<[bool; 3]>(), text(), text()).prop_map(
        |(name, size, sector, [boot, excluded, whole], source, identity)| DiskShape {
            name: name.parse().unwrap(),
            size,
            sector_size: 1 << sector,
            boot,
            excluded,
            whole,
            source,
            identity,
        },
    )
}

fn consistency() -> impl Strategy<Value = Consistency> {
    prop_oneof![
        Just(Consistency::Crash),
        Just(Consistency::Filesystem),
        Just(Consistency::Application),
        Just(Consistency::Unfinished)
    ]
}

fn shape() -> impl Strategy<Value = MachineShape> {
    let nic = (text(), text(), text(), vec(text(), 0..3)).prop_map(|(name, model, mac, addresses)| Nic {
        name,
        model,
        mac,
        addresses,
    });
    (text(), any::<(u32, u64)>(), vec(nic, 0..3)).prop_map(|(firmware, (cpus, memory_bytes), nics)| MachineShape {
        firmware,
        cpus,
        memory_bytes,
        nics,
    })
}

fn begin() -> impl Strategy<Value = Begin> {
    let time = -62_135_596_800_000_i64..=253_402_300_799_999;
    (cycle(), option::of(cycle()), time, consistency(), vec(disk(), 1..6), option::of(group()), option::of(shape()))
        .prop_map(|(cycle, parent, time, consistency, mut disks, group, shape)| {
            disks.sort_by(|a, b| a.name.cmp(&b.name));
            disks.dedup_by(|a, b| a.name == b.name);
            disks.iter_mut().for_each(|d| d.whole |= parent.is_none());
            Begin {
                cycle,
                parent,
                time: Timestamp::from_millis(time),
                consistency,
                disks,
                group,
                shape,
                hooks: Vec::new(),
            }
        })
}

fn order_id() -> impl Strategy<Value = OrderId> {
    any::<[u8; 16]>().prop_map(OrderId::from_bytes)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let disk = (name(), any::<[u8; 32]>())
        .prop_map(|(name, digest)| DiskDigest { name: name.parse().unwrap(), digest: Digest::from_bytes(digest) });
    prop_oneof![
        (option::of(cycle()), consistency(), vec(disk, 0..3)).prop_map(|(cycle, consistency, disks)| Outcome::Done {
            cycle,
            consistency,
            disks
        }),
        (any::<u8>(), text()).prop_map(|(code, why)| Outcome::Failed { code, why }),
    ]
}

fn from_agent() -> impl Strategy<Value = FromAgent> {
    let hello =
        (any::<(u32, u32)>(), name(), text(), any::<u64>()).prop_map(|(versions, machine, program, interval_ms)| {
            FromAgent::Hello(Hello { versions, machine: machine.parse().unwrap(), program, interval_ms })
        });
    let data = (0..DISKS_MAX, any::<u64>(), vec(any::<u8>(), 1..5000))
        .prop_map(|(disk, start, bytes)| FromAgent::Data(Data { disk, start, bytes: bytes.into() }));
    let zero = (0..DISKS_MAX, 0..u64::MAX / 2, 1..u64::MAX / 2)
        .prop_map(|(disk, start, len)| FromAgent::Zero(disk, Extent { start, len }));
    let end = (cycle(), any::<[u8; 32]>())
        .prop_map(|(cycle, digest)| FromAgent::End(End { cycle, digest: Digest::from_bytes(digest) }));
    prop_oneof![
        hello,
        begin().prop_map(FromAgent::Begin),
        data,
        zero,
        end,
        text().prop_map(FromAgent::Abort),
        text().prop_map(FromAgent::Ask),
        Just(FromAgent::Alive),
        group().prop_map(FromAgent::Ready),
        group().prop_map(FromAgent::Frozen),
        (group(), text()).prop_map(|(id, why)| FromAgent::Unready(id, why)),
        (order_id(), outcome()).prop_map(|(id, outcome)| FromAgent::Answer(id, outcome)),
    ]
}

fn from_gateway() -> impl Strategy<Value = FromGateway> {
    prop_oneof![
        (any::<u32>(), option::of(cycle()), option::of(text()))
            .prop_map(|(version, newest, held)| FromGateway::Welcome(Welcome { version, newest, held })),
        cycle().prop_map(FromGateway::Spooled),
        (cycle(), any::<u32>(), any::<u64>()).prop_map(|(c, t, s)| FromGateway::Committed(c, Timeline(t), Seq(s))),
        text().prop_map(FromGateway::Resync),
        text().prop_map(FromGateway::Wait),
        (any::<u8>(), text()).prop_map(|(code, why)| FromGateway::Refuse(code, why)),
        Just(FromGateway::Alive),
        text().prop_map(FromGateway::Hold),
        Just(FromGateway::Go),
        (group(), name()).prop_map(|(id, name)| FromGateway::Prepare(id, name.parse().unwrap())),
        group().prop_map(FromGateway::Freeze),
        (group(), any::<i64>()).prop_map(|(id, time)| FromGateway::Cut(id, Timestamp::from_millis(time))),
        (group(), text()).prop_map(|(id, why)| FromGateway::Cancel(id, why)),
        (order_id(), consistency(), any::<bool>()).prop_map(|(id, consistency, proof)| {
            let kind = [OrderKind::Point, OrderKind::Stop, OrderKind::Start][usize::from(id.as_bytes()[0] % 3)];
            FromGateway::Order(crate::Order { id, kind, consistency, proof })
        }),
    ]
}

/// Bytes with a few of them changed, cut off, or added.
fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (Just(bytes), changes, any::<prop::sample::Index>(), vec(any::<u8>(), 0..4)).prop_map(
        |(mut bytes, changes, cut, more)| {
            for (index, byte) in changes {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            if cut.index(4) == 0 {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            bytes.extend(more);
            bytes
        },
    )
}

proptest! {
    #[test]
    fn what_an_agent_says_is_what_is_read(message in from_agent()) {
        prop_assert_eq!(FromAgent::decode(message.clone().encode().into()).unwrap(), message);
    }

    #[test]
    fn what_a_gateway_says_is_what_is_read(message in from_gateway()) {
        prop_assert_eq!(FromGateway::decode(message.clone().encode().into()).unwrap(), message);
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = FromAgent::decode(bytes.clone());
        let _ = FromGateway::decode(bytes.clone());
        let _ = Certificate::read(&bytes);
    }

    /// Whatever is read can be said again: nothing beyond the bounds comes through.
    #[test]
    fn mutated_messages_are_within_the_bounds_or_an_error(
        agent in from_agent().prop_flat_map(|m| mutated(m.encode())),
        gateway in from_gateway().prop_flat_map(|m| mutated(m.encode())),
    ) {
        if let Ok(message) = FromAgent::decode(agent.into()) {
            if let FromAgent::Data(data) = &message {
                prop_assert!(data.disk < DISKS_MAX && (1..=DATA_BYTES_MAX).contains(&data.bytes.len()));
            }
            prop_assert_eq!(FromAgent::decode(message.clone().encode().into()).unwrap(), message);
        }
        if let Ok(message) = FromGateway::decode(gateway.into()) {
            prop_assert_eq!(FromGateway::decode(message.clone().encode().into()).unwrap(), message);
        }
    }

    #[test]
    fn any_text_is_a_token_or_an_error(text in "(LFT1-)?[A-Z2-7]{0,90}") {
        prop_assert!(text.parse::<Token>().is_err());
    }
}

#[test]
fn the_newest_common_version_is_chosen() {
    for (agent, chosen) in [
        ((1, 1), Some(1)),
        ((1, 9), Some(3)),
        ((0, 1), Some(1)),
        ((2, 9), Some(3)),
        ((4, 9), None),
        ((0, 0), None),
        ((5, 1), None),
    ] {
        assert_eq!(choose_version(agent), chosen, "{agent:?}");
    }
}
