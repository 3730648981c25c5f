//! BTF as it is made here, as it is damaged, and as this kernel has it.

use proptest::prelude::*;

use super::*;

/// `struct outer { int a; union { struct { u8 b; int c:3; }; }; void *d; }` and a tracepoint that takes `b`.
fn small() -> Vec<u8> {
    let mut strings = vec![0];
    let mut name = |text: &str| {
        let at = strings.len();
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        u32::try_from(at).unwrap()
    };
    let info = |kind: u32, parts: u32| kind << 24 | parts;
    let flagged = |kind: u32, parts: u32| 1 << 31 | kind << 24 | parts;
    let words = [
        // 1: int, 2: typedef of it, 3: const of that, 4: void *
        [name("int"), info(1, 0), 4, 32].to_vec(),
        [name("word"), info(8, 0), 1].to_vec(),
        [0, info(10, 0), 2].to_vec(),
        [0, info(2, 0), 0].to_vec(),
        // 5: the inner struct, 6: the union, 7: the outer struct
        [0, flagged(4, 2), 8, name("b"), 3, 8, name("c"), 1, 3 << 24 | 16].to_vec(),
        [0, info(5, 1), 8, 0, 5, 0].to_vec(),
        [name("outer"), info(4, 3), 24, name("a"), 3, 0, 0, 6, 64, name("d"), 8, 128].to_vec(),
        // 8: outer *, 9: void (*)(void *, struct outer *first), 10: its typedef, 11: the prototype
        [0, info(2, 0), 7].to_vec(),
        [0, info(2, 0), 11].to_vec(),
        [name("btf_trace_x"), info(8, 0), 9].to_vec(),
        [0, info(13, 2), 0, 0, 4, 0, 8].to_vec(),
        // 12: enum
        [name("op"), info(6, 2), 4, name("OP_READ"), 0, name("OP_WRITE"), 1].to_vec(),
    ];
    let types: Vec<u8> = words.concat().into_iter().flat_map(u32::to_le_bytes).collect();
    let lengths = [24, 0, u32::try_from(types.len()).unwrap(), u32::try_from(types.len()).unwrap()];
    let mut bytes = vec![0x9f, 0xeb, 1, 0];
    bytes.extend(lengths.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend(u32::try_from(strings.len()).unwrap().to_le_bytes());
    [bytes, types, strings].concat()
}

/// Asks for everything that the crate asks for, of every type.
fn ask_all(bytes: Vec<u8>) {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for id in (0..u32::try_from(btf.types.len()).unwrap() + 2).chain([u32::MAX]).map(TypeId) {
        let _ = (btf.size(id), btf.pointee(id), btf.parameters(id), btf.number(id, "OP_WRITE"), btf.member(id, "c"));
        let _ = (btf.is_struct(id, "outer"), btf.find(&[Kind::Typedef], "btf_trace_x"));
    }
}

#[test]
fn what_was_put_in_is_found() {
    let btf = Btf::parse(small()).unwrap_or_else(|why| panic!("{why:?}"));
    let tracepoint = btf.find(&[Kind::Typedef], "btf_trace_x").unwrap();
    let parameters = btf.parameters(tracepoint).unwrap();
    assert_eq!((parameters.len(), btf.pointee(parameters[0])), (2, None));
    let outer = btf.pointee(parameters[1]).unwrap();
    assert!(btf.is_struct(outer, "outer") && !btf.is_struct(outer, "oute"));
    let offset = |name| btf.member(outer, name).map(|member| (member.offset, btf.size(member.of)));
    assert_eq!(offset("a"), Some((0, Some(4))));
    assert_eq!(offset("b"), Some((9, Some(4))));
    assert_eq!(offset("c"), None, "a bit field has no place of its own");
    assert_eq!(offset("d"), Some((16, Some(8))));
    assert_eq!(offset("nothing"), None);
    let op = btf.find(&[Kind::Enum, Kind::Enum64], "op").unwrap();
    assert_eq!((btf.number(op, "OP_WRITE"), btf.number(op, "OP")), (Some(1), None));
    assert_eq!(btf.find(&[Kind::Struct], "btf_trace_x"), None);
}

#[test]
fn types_that_go_in_circles_come_to_an_end() {
    let mut bytes = small();
    // The typedef means itself, and the union's member without a name is the union, a thousand ways deep.
    let typedef = 24 + 16;
    bytes[typedef + 8..typedef + 12].copy_from_slice(&2_u32.to_le_bytes());
    ask_all(bytes);
    let members = 2000_u32;
    let mut types: Vec<u32> = vec![0, 5 << 24 | members, 8];
    (0..members).for_each(|_| types.extend([0, 1, 0]));
    let length = u32::try_from(types.len() * 4).unwrap();
    let header = [0x0001_eb9f, 24, 0, length, length, 1];
    let bytes = header.into_iter().chain(types).flat_map(u32::to_le_bytes).chain([0]).collect();
    let btf = Btf::parse(bytes).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(btf.member(TypeId(1), "x"), None);
}

#[test]
fn every_cut_is_refused_or_read() {
    let whole = small();
    (0..whole.len()).for_each(|length| assert!(Btf::parse(whole[..length].to_vec()).is_err(), "cut to {length}"));
}

proptest! {
    #[test]
    fn damaged_bytes_never_panic(changes in prop::collection::vec((0_usize..600, any::<u8>()), 1..20)) {
        let mut bytes = small();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        ask_all(bytes);
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), headed in any::<bool>()) {
        let header = [0x0001_eb9f_u32, 24, 0, 100, 100, 50].into_iter().flat_map(u32::to_le_bytes);
        ask_all(if headed { header.chain(bytes).collect() } else { bytes });
    }
}
